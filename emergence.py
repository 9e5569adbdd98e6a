"""When a capability emerges, what came before it, and how sure one can be.

Input are curves: a number per snapshot of training, for accuracy, for RankMe, for anything else that was measured.  Output
are events (a step, or None for "never"), intervals, tests, and figures.  This file never sees a model, so everything in it can be tried
on a curve that one draws by hand:

    >>> steps    = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    >>> accuracy = [0,  0,  0,  0,  0,  0, .2, .7, .9,  1]
    >>> rank     = [8,  5,  3,  2,  2,  3,  4,  6,  7,  8]
    >>> emergence_step(steps, accuracy), collapse(steps, rank)
    (70, Collapse(floor=2.0, floor_step=30, onset_step=50))
    >>> lead_time(50, 70)
    20

The story that the paper tells (Billa 2026, arXiv 2602.15997) has three moments, and this file dates them:

    collapse      training begins, and the hidden states of all inputs fall together: RankMe drops to a *floor*
    onset         the representation recovers: RankMe rises from its floor, for good
    emergence     the model answers better than chance, clearly and for good

If onset comes before emergence, geometry "leads", by `lead_time` steps.  Every date depends on choices (how clear is
"clearly"? how long is "for good"?).  They are fields of `Choices`, with the reason for each default beside it.

Letters:  L levels (task-levels) of a run, S snapshots.
"""
import math
import statistics
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


@dataclass(frozen=True)
class Choices:
    """What the dates depend on.  The paper's own choices are public only in outline ("a low threshold that persists")."""
    threshold: float = 0.3        # share of the way from chance to perfect that counts as emerged: low, as the paper has it,
                                  # and above every plateau that a half-learned answer gives here (a parity guess, a sign)
    persistence: int = 3          # snapshots in a row that must agree, for emergence and for onset: one may be luck
    behaviour: str = "accuracy"   # "accuracy", or "log_prob": the share of the answer's entropy that is explained
    position: str = "first"       # whose hidden state: where the "first" answer token is predicted (nothing of the answer is
                                  # known there), all "answer" tokens, or the "last" token of the line (all is known)
    layer: int = -2               # the residual stream after the last block; -1 is after the final LayerNorm, 0 the embedding
    smoothing: int = 3            # running median of so many snapshots, so that a floor is not a single odd value
    rise: float = 0.2             # RankMe counts as recovering when it is 20% above its floor: with 200 probes, the curve
                                  # wanders by some 10% along a flat floor


# ---------------------------------------------------------------------------------------------------------------
# Dates

def _check(steps, values, name):
    if len(steps) != len(values):
        raise ValueError(f"{name}: {len(steps)} steps but {len(values)} values")
    if any(b <= a for a, b in zip(steps, steps[1:])):
        raise ValueError(f"{name}: the steps must increase")
    return np.array([math.nan if v is None else v for v in values], dtype=float)


def _first_run(flags, persistence):
    """Index of the first of `persistence` True in a row, or None."""
    run = 0
    for i, flag in enumerate(flags):
        run = run + 1 if flag else 0
        if run == persistence:
            return i - persistence + 1
    return None


def emergence_step(steps, accuracy, chance=0.0, threshold=0.3, persistence=3, examples=None):
    """The first of `persistence` snapshots in a row whose accuracy is clearly above chance; None if there is none.

        (accuracy - chance) / (1 - chance) >= max(threshold, 3 standard errors)
        standard error of chance itself = sqrt(chance / (1 - chance) / examples), on the same scale

    steps: increasing; accuracy: one number per step in [0, 1] (None or NaN: not measured, counts as "no").
    examples: how many the accuracy was measured on; None leaves the second bar out.
    A rise at the very end, with fewer than `persistence` snapshots left, has not been seen to last: None.
    Raises ValueError if lengths differ, steps do not increase, or chance is not in [0, 1).
    """
    values = _check(steps, accuracy, "emergence_step")
    if not 0 <= chance < 1:
        raise ValueError(f"emergence_step: chance {chance}: expected a number of at least 0 and below 1")
    bar = max(threshold, 3 * math.sqrt(chance / (1 - chance) / examples) if examples else 0)
    i = _first_run((values - chance) / (1 - chance) >= bar - 1e-12, persistence)
    return None if i is None else steps[i]


def running_median(values, window):
    """Median of the `window` values around each (fewer at the ends); NaN where all of them are.

    >>> running_median([1, 9, 1, 1], 3).tolist()
    [5.0, 1.0, 1.0, 1.0]
    """
    half, values = window // 2, np.asarray(values, dtype=float)
    padded = np.pad(values, half, constant_values=math.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    out = np.full(len(values), math.nan)
    some = ~np.isnan(windows).all(1)
    out[some] = np.nanmedian(windows[some], axis=1)
    return out


class Collapse(NamedTuple):
    floor: float                  # the lowest value of the smoothed curve
    floor_step: int               # where it was first reached
    onset_step: int | None        # where the curve has left it for good: recovery begins.  None: it does not


def collapse(steps, rank, smoothing=3, rise=0.2, persistence=3):
    """Where a curve of effective ranks has its floor, and where it starts to recover.

    The floor is the minimum of the running median.  The onset is the first of `persistence` snapshots in a row, after the
    floor, that lie at least `rise` (a fraction of the floor) above it.
    Raises ValueError if lengths differ, steps do not increase, or there is no value at all.
    """
    smooth = running_median(_check(steps, rank, "collapse"), smoothing)
    if np.isnan(smooth).all():
        raise ValueError("collapse: the curve has no values")
    low = int(np.nanargmin(smooth))
    i = _first_run(smooth[low + 1:] >= (1 + rise) * smooth[low], persistence)
    return Collapse(float(smooth[low]), steps[low], None if i is None else steps[low + 1 + i])


def lead_time(geometry_step, emergence_step):
    """By how many steps geometry came first (positive), or behaviour did (negative).  None unless both happened."""
    if geometry_step is None or emergence_step is None:
        return None
    return emergence_step - geometry_step


def lead_interval(steps, geometry_step, emergence_step):
    """A date is known only to lie behind the snapshot before it; so a lead is an interval (low, high), both ends excluded.

    >>> lead_interval([0, 10, 20, 30], 10, 30)
    (10, 30)
    """
    if geometry_step is None or emergence_step is None:
        return None
    before = {s: p for p, s in zip([steps[0], *steps], steps)}
    return before[emergence_step] - geometry_step, emergence_step - before[geometry_step]


# ---------------------------------------------------------------------------------------------------------------
# Statistics of several events

def rate_with_interval(k, n):
    """k of n, with Wilson's 95% interval: (rate, low, high).  It takes the n for independent, which the levels of one
    model are not: read it as a lower bound on the doubt.  n = 0 gives (nan, 0, 1).

    >>> [round(x, 3) for x in rate_with_interval(24, 24)]
    [1.0, 0.862, 1.0]
    """
    if not 0 <= k <= n:
        raise ValueError(f"rate_with_interval: {k} of {n} is not a rate")
    if n == 0:
        return math.nan, 0.0, 1.0
    z, p = 1.959964, k / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return p, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def concordance(a, b):
    """Share of pairs (i, j) that a and b put in the same order; 0.5 is what unrelated orders give, nan if no pair counts.

    A tie in either counts one half.  None means "never", later than every step; a pair with a None in one of the sequences counts only
    if the other element of that sequence is a step (two that never happened have no order).
    Raises ValueError if the lengths differ.

    >>> concordance([1, 2, 3, None], [10, 30, 20, 40])
    0.8333333333333334
    """
    if len(a) != len(b):
        raise ValueError(f"concordance: {len(a)} and {len(b)} values")
    a, b = ([math.inf if v is None else v for v in x] for x in (a, b))
    alike = pairs = 0
    for i in range(len(a)):
        for j in range(i):
            if a[i] == a[j] == math.inf or b[i] == b[j] == math.inf:
                continue
            order = ((a[i] > a[j]) - (a[i] < a[j])) * ((b[i] > b[j]) - (b[i] < b[j]))       # 1 alike, -1 not, 0 a tie
            alike, pairs = alike + (1 + order) / 2, pairs + 1
    return alike / pairs if pairs else math.nan


def risk_set_test(onsets, emergences):
    """Do levels whose geometry has already recovered emerge sooner than those whose geometry has not?  -> (z, information)

    At each emergence time t, the risk set R are the levels that have not emerged before t; x = 1 for those with an
    onset before t; m is the mean of x over R; d levels emerge at t:

        U = sum_t [sum of x over those d  -  d m]        V = sum_t d m (1 - m) (|R| - d) / (|R| - 1)        z = U / sqrt(V)

    If onsets have nothing to do with emergence, z is standard normal.  Unlike a count of "onset came first", this is not
    fooled by onsets that are early for every level alike: there m is 1, and nothing is learned.  V, the information, says how
    much was: below 5 the verdict is "cannot tell".  None means censored: it has not happened by the end of the run.
    Returns z = nan where V = 0.  Source: the log-rank (Mantel-Haenszel) test with a covariate that changes in time.
    Differs from the paper: it has no null at all.  Raises ValueError if the lengths differ.
    """
    U, V = risk_set_sums(onsets, emergences)
    return (U / math.sqrt(V) if V > 0 else math.nan), V


def risk_set_sums(onsets, emergences):
    """(U, V) of `risk_set_test`: over several runs, or strata, they add up."""
    if len(onsets) != len(emergences):
        raise ValueError(f"risk_set_test: {len(onsets)} onsets but {len(emergences)} emergences")
    onset = np.array([math.inf if v is None else v for v in onsets], dtype=float)
    emergence = np.array([math.inf if v is None else v for v in emergences], dtype=float)
    U = V = 0.0
    for t in np.unique(emergence[np.isfinite(emergence)]):
        risk, event = emergence >= t, emergence == t
        x, size, d = onset < t, risk.sum(), event.sum()
        m = x[risk].mean()
        U += x[event].sum() - d * m
        V += d * m * (1 - m) * (size - d) / max(size - 1, 1)
    return float(U), float(V)


class Range(NamedTuple):
    median: float
    low: float
    high: float


def seed_range(values):
    """Median and range over seeds; None where none of them has a value.

    The range of n seeds is an interval for the median over all seeds with confidence 1 - 2^(1-n), whatever the
    distribution: 75% for three seeds, 94% for five.
    """
    values = [v for v in values if v is not None and not math.isnan(v)]
    return Range(statistics.median(values), min(values), max(values)) if values else None


# ---------------------------------------------------------------------------------------------------------------
# From a run to its events

def curve(rows, level, *path):
    """One quantity of one task-level along a run: (steps, values), only where it was measured.

    path: keys and indices into the level's entry, such as "rankme", "first", -2.
    """
    steps, values = [], []
    for row in rows:
        value = row["levels"].get(level, {})
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None if value is None else value[key]
        if value is not None:
            steps.append(row["step"])
            values.append(value)
    return steps, values


def behaviour_curve(config, rows, level, behaviour="accuracy"):
    """(steps, values, chance): accuracy with its chance level, or the share of the answers' entropy that the model explains,
    1 - log_prob / (log-probability of the best guess that ignores the operands), which is 0 there and 1 at certainty.
    Accuracy is that on unseen operands where some are never trained on: knowing the others by heart is no capability."""
    unseen = behaviour == "accuracy" and config["train_fraction"] < 1
    steps, values = curve(rows, level, "accuracy_test" if unseen else behaviour)
    if behaviour == "accuracy":
        return steps, values, config["chance"][level]
    return steps, [1 - v / config["chance_log_prob"][level] for v in values], 0.0


def top_down(layer_values):
    """Do deeper layers have smaller values?  Share of layer pairs for which they do: 1 top-down, 0 bottom-up, 0.5 no order.
    The embedding (first entry) and the final LayerNorm (last) are no layers of their own, and left out."""
    blocks = layer_values[1:-1]
    return concordance(range(len(blocks)), [None if v is None else -v for v in blocks])


def events(config, rows, choices=Choices()):
    """Everything that happened in one run: a list of dicts, one per task-level.

    config: its config.json; rows: its metrics.jsonl.  Steps that are None never came within the run.
    """
    c, out = choices, []
    for level in config["levels"]:
        steps, ranks = curve(rows, level, "rankme", c.position)               # ranks: per snapshot a list over layers
        if not steps:
            continue
        layers = [collapse(steps, [r[i] for r in ranks], c.smoothing, c.rise, c.persistence) for i in range(len(ranks[0]))]
        chosen = layers[c.layer]
        emerged = {}
        for behaviour in ("accuracy", "log_prob"):
            at, values, chance = behaviour_curve(config, rows, level, behaviour)
            emerged[behaviour] = emergence_step(at, values, chance, c.threshold, c.persistence, config["eval_examples"])
        emergence = emerged[c.behaviour]
        seen = curve(rows, level, "accuracy_train")                           # only with a train fraction below 1
        states = rows[0]["levels"][level]["distinct"] * (config["answer_tokens"][level] if c.position == "answer" else 1)
        ceiling = min(states, config["width"])                                # RankMe of so many distinct rows cannot be more
        interval = lead_interval(steps, chosen.onset_step, emergence)
        task, _, number = level.rpartition("-")
        out.append({
            "size": config["size"], "parameters": config["parameters"], "seed": config["seed"], "level": level,
            "task": task, "difficulty": int(number), "control": level.startswith("sham-"),
            "floor": chosen.floor, "ceiling": ceiling, "floor_share": chosen.floor / ceiling, "floor_step": chosen.floor_step,
            "start": ranks[0][c.layer], "onset": chosen.onset_step, "emergence": emergence,
            "emergence_accuracy": emerged["accuracy"], "emergence_log_prob": emerged["log_prob"],
            "memorised": emergence_step(*seen, config["chance"][level], c.threshold, c.persistence, config["eval_examples"]),
            "lead": lead_time(chosen.onset_step, emergence),
            "lead_low": interval and interval[0], "lead_high": interval and interval[1],
            "top_down_floor": top_down([x.floor for x in layers]),
            "top_down_time": top_down([x.floor_step for x in layers]),
            "final_accuracy": curve(rows, level, "accuracy")[1][-1], "last_step": rows[-1]["step"],
        })
    return out


def summarise(event_list):
    """Events of several seeds -> one dict per size and task-level, in their order: medians with the range over seeds.

    "rankme_first" counts the seeds in which the onset came before emergence, "emerged" those in which there was one at all.
    """
    groups = {}
    for e in event_list:
        groups.setdefault((e["parameters"], e["size"], e["level"]), []).append(e)
    out = []
    for (parameters, size, level), es in sorted(groups.items(), key=lambda item: item[0][0]):
        row = {"size": size, "parameters": parameters, "level": level, "control": es[0]["control"], "seeds": len(es),
               "emerged": sum(e["emergence"] is not None for e in es),
               "rankme_first": sum(e["lead"] is not None and e["lead"] > 0 for e in es), "ceiling": es[0]["ceiling"]}
        for key in ("floor", "floor_share", "floor_step", "onset", "emergence", "lead", "top_down_floor", "top_down_time", "final_accuracy"):
            spread = seed_range([e[key] for e in es])
            row[key] = spread and spread._asdict()
        out.append(row)
    return out


def lead_check(event_list):
    """Is a lead more than common timing gives?  The risk-set test over all runs, each a stratum of its own, and the controls.

    -> dict: z and information of `risk_set_test`; the verdict in words; how many shams there were, how many of them had an onset (false alarms
    of RankMe), and how many "emerged" (which none should).
    """
    runs, shams = {}, [e for e in event_list if e["control"]]
    for e in event_list:
        if not e["control"]:
            runs.setdefault((e["size"], e["seed"]), []).append(e)
    sums = [risk_set_sums([e["onset"] for e in es], [e["emergence"] for e in es]) for es in runs.values()]
    U, V = (sum(column) for column in zip(*sums))
    z = U / math.sqrt(V) if V > 0 else math.nan
    verdict = ("cannot tell: the information is below 5" if V < 5 else "task-levels whose RankMe has recovered emerge sooner" if z > 1.96 else
               "task-levels whose RankMe has recovered emerge later" if z < -1.96 else "no sign that recovery predicts emergence")
    return {"z": z, "information": V, "verdict": verdict, "shams": len(shams), "sham_onsets": sum(e["onset"] is not None for e in shams),
            "sham_emergences": sum(e["emergence"] is not None for e in shams)}


# ---------------------------------------------------------------------------------------------------------------
# Figures.  `runs` is a list of (config, rows).  Colours are those of Okabe and Ito, which colour-blind readers can tell apart;
# what matters differs in line style or marker too, so that it survives a black-and-white printer.

ACCURACY, RANKME, CONTROL = "#D55E00", "#0072B2", "0.6"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^")


def _grid(runs):
    """What the panels of a figure are: [(figure's name, [(row's name, runs of that row, levels of that row)])].

    One task: one figure, a row per size.  Several tasks: one figure per size, a row per task."""
    sizes = sorted({(c["parameters"], c["size"]) for c, _ in runs})
    tasks = {}
    for config, _ in runs:
        for level in config["levels"]:
            if not level.startswith("sham-"):
                tasks.setdefault(level.rpartition("-")[0], {})[level] = None
    of_size = lambda name: [run for run in runs if run[0]["size"] == name]
    if len(tasks) == 1:
        (levels,) = tasks.values()
        return [("", [(name, of_size(name), list(levels)) for _, name in sizes])]
    return [(f"-{name}", [(task, of_size(name), list(levels)) for task, levels in tasks.items()]) for _, name in sizes]


def _steps_axis(ax, last):
    ax.set_xscale("symlog", linthresh=10, linscale=0.6)                     # step 0 has a place, the first steps have room
    ax.set_xlim(0, last)
    ticks = [0] + [10 ** k for k in range(1, 7) if 10 ** k <= last]
    ax.set_xticks(ticks, [f"{t:,}" for t in ticks], minor=False)
    ax.minorticks_off()
    ax.tick_params(labelsize=7)


def _band(ax, curves, colour, **style):
    """Median and range over seeds, drawn on the steps that all of them have."""
    common = sorted(set.intersection(*(set(steps) for steps, _ in curves)))
    values = np.array([[dict(zip(steps, v))[s] for s in common] for steps, v in curves], dtype=float)
    if len(values) > 1:
        ax.fill_between(common, values.min(0), values.max(0), color=colour, alpha=0.25, linewidth=0)
    ax.plot(common, np.median(values, 0), color=colour, **{"linewidth": 1.3, **style})


def figure_curves(runs, choices=Choices()):
    """Accuracy and RankMe against steps, one panel for each task-level: {name: Figure}.

    Median over seeds as a line, range as a band; emergence a solid vertical line, recovery onset a dashed one, both at
    the median over the seeds that have them; controls in grey."""
    figures, memorising = {}, any(c["train_fraction"] < 1 for c, _ in runs)
    for name, grid in _grid(runs):
        columns = max(len(levels) for _, _, levels in grid)
        figure = Figure(figsize=(2.45 * columns + 0.5, 1.75 * len(grid) + 0.75), layout="constrained")
        figure.get_layout_engine().set(hspace=0)
        panels = figure.add_gridspec(len(grid), columns)
        for i, (title, group, levels) in enumerate(grid):
            dated = summarise([e for c, rows in group for e in events(c, rows, choices)])
            controls = [s["level"] for s in dated if s["control"]]
            for j, level in enumerate(levels):
                upper, lower = panels[i, j].subgridspec(2, 1, hspace=0).subplots(sharex=True)
                for sham in controls:
                    for ax, path in ((upper, ("accuracy",)), (lower, ("rankme", choices.position, choices.layer))):
                        _band(ax, [curve(rows, sham, *path) for _, rows in group], CONTROL, linewidth=0.7)
                _band(upper, [behaviour_curve(c, rows, level)[:2] for c, rows in group], ACCURACY)
                if memorising:
                    _band(upper, [curve(rows, level, "accuracy_train") for _, rows in group], ACCURACY, linestyle=":")
                _band(lower, [curve(rows, level, "rankme", choices.position, choices.layer) for _, rows in group], RANKME)
                summary = next(s for s in dated if s["level"] == level)
                for ax in (upper, lower):
                    for key, colour, dashes in (("emergence", ACCURACY, "-"), ("onset", RANKME, "--")):
                        if summary[key]:
                            ax.axvline(summary[key]["median"], color=colour, linestyle=dashes, linewidth=0.9, alpha=0.9)
                    ax.spines[["top", "right"]].set_visible(False)
                _steps_axis(lower, max(rows[-1]["step"] for _, rows in group))
                upper.tick_params(labelsize=7, labelbottom=False)
                upper.set_ylim(-0.03, 1.03)
                upper.set_yticks([0, 1])
                lower.set_yscale("log", base=2)
                lower.set_yticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
                lower.set_ylim(0.9, 1.15 * max(max(v) for _, rows in group for v in
                                               [curve(rows, x, "rankme", choices.position, choices.layer)[1]
                                                for x in (level, *controls)]))
                upper.set_title(level if title in level else f"{title}   {level}", fontsize=8, pad=3)
                if j == 0:
                    upper.set_ylabel("accuracy", fontsize=7)
                    lower.set_ylabel("RankMe", fontsize=7)
                if i == len(grid) - 1:
                    lower.set_xlabel("training step", fontsize=8)
        key = [Line2D([], [], color=ACCURACY, linestyle="-", label="accuracy on unseen operands; emergence" if memorising else "accuracy; emergence"),
               Line2D([], [], color=RANKME, linestyle="--", label="RankMe (solid); its recovery onset (dashed)")]
        if memorising:
            key.insert(1, Line2D([], [], color=ACCURACY, linestyle=":", label="on seen ones"))
        if any(level.startswith("sham-") for c, _ in runs for level in c["levels"]):
            key.append(Line2D([], [], color=CONTROL, label="sham controls"))
        figure.legend(handles=key, loc="outside upper center", ncols=len(key), fontsize=8, frameon=False)
        figures[f"curves{name}"] = figure
    return figures


def figure_layers(runs, choices=Choices()):
    """RankMe of every layer (upwards) against steps (to the right), median over seeds: {name: Figure}."""
    figures = {}
    for name, grid in _grid(runs):
        columns = max(len(levels) for _, _, levels in grid)
        figure = Figure(figsize=(2.3 * columns + 1.2, 1.15 * len(grid) + 0.7), layout="constrained")
        axes = figure.subplots(len(grid), columns, squeeze=False)
        mesh = None
        for i, (title, group, levels) in enumerate(grid):
            for j, level in enumerate(levels):
                ax, curves = axes[i][j], [curve(rows, level, "rankme", choices.position) for _, rows in group]
                steps = sorted(set.intersection(*(set(s) for s, _ in curves)))
                ranks = np.median([[dict(zip(s, v))[step] for step in steps] for s, v in curves], axis=0)   # (S, layers)
                layers = ranks.shape[1]
                edges = np.append(steps, steps[-1] + 1)
                mesh = ax.pcolormesh(edges, np.arange(layers + 1) - 0.5, ranks.T, cmap="viridis",
                                     norm=LogNorm(1, 32), rasterized=True)
                emergence = seed_range([e["emergence"] for c, rows in group for e in events(c, rows, choices) if e["level"] == level])
                if emergence:
                    ax.axvline(emergence.median, color="white", linewidth=1)
                _steps_axis(ax, steps[-1])
                labels = ["embedding", *map(str, range(1, layers - 1)), "final norm"]
                some = [0, *range(1, layers - 1, max(1, (layers - 2) // 4)), layers - 1]
                ax.set_yticks(some, [labels[k] for k in some] if j == 0 else [], fontsize=6)
                ax.set_title(level if title in level else f"{title}   {level}", fontsize=8, pad=3)
                if i == len(grid) - 1:
                    ax.set_xlabel("training step", fontsize=8)
        bar = figure.colorbar(mesh, ax=axes, pad=0.01, ticks=[1, 2, 4, 8, 16, 32])
        bar.ax.set_yticklabels(["1", "2", "4", "8", "16", "32"], fontsize=7)
        bar.ax.minorticks_off()
        bar.set_label("RankMe\n(white: emergence)", fontsize=8)
        figures[f"layers{name}"] = figure
    return figures


def figure_floors(runs, choices=Choices()):
    """The floor of RankMe against the number of parameters, a line for each task-level, bars for the range over seeds."""
    dated = summarise([e for c, rows in runs for e in events(c, rows, choices)])
    levels = list(dict.fromkeys(s["level"] for s in dated if not s["control"]))
    tasks = list(dict.fromkeys(level.rpartition("-")[0] for level in levels))
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.subplots()
    for k, level in enumerate(levels):
        task, _, number = level.rpartition("-")
        points = [s for s in dated if s["level"] == level]
        x = np.array([s["parameters"] for s in points]) * (1 + 0.012 * (k - len(levels) / 2))     # side by side, not hidden
        y = np.array([s["floor"]["median"] for s in points])
        bars = [y - [s["floor"]["low"] for s in points], [s["floor"]["high"] for s in points] - y]
        colour = PALETTE[(k if len(tasks) == 1 else tasks.index(task)) % len(PALETTE)]
        ax.errorbar(x, y, bars, color=colour, marker=MARKERS[int(number) - 1], linestyle=("-", "--", ":")[int(number) - 1],
                    markersize=4, linewidth=1, capsize=2, label=level)
    ax.set_xscale("log")
    ax.set_yscale("log", base=2)
    ax.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    ax.set_ylim(0.9, max(4.5, 1.2 * max(s["floor"]["high"] for s in dated)))
    sizes = sorted({(s["parameters"], s["size"]) for s in dated})
    ax.set_xticks([p for p, _ in sizes], [f"{name}\n{p / 1e6:.1f}M" for p, name in sizes])
    ax.minorticks_off()
    ax.set_xlim(sizes[0][0] / 2, sizes[-1][0] * 2)
    ax.set_ylabel(f"floor of RankMe ({choices.position} answer token)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=6 if len(levels) > 6 else 8, ncols=1 + len(levels) // 13, frameon=False, loc="center left",
              bbox_to_anchor=(1, 0.5))
    return {"floors": figure}


FIGURES = {"curves": figure_curves, "layers": figure_layers, "floors": figure_floors}
