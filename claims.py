"""Chapter 5: claims.  What the paper claims, claim by claim, and what a sweep of runs says of it.

A claim is one row of the table CLAIMS at the end: a statistic, what counts as holding, and what is
exchanged to learn what chance gives.  Beside it stand the numbers of the paper (Billa 2026, arXiv
2602.15997; v1 and v2 agree, v3 and v4 differ).

Every date depends on choices: how clear is "clearly above chance"?  A Specification is one set of
choices.  The *multiverse* recomputes every claim under all reasonable ones (Steegen et al. 2016),
on the data and on data sets in which tasks were exchanged (specification-curve inference:
Simonsohn, Simmons & Nelson 2020).  So each claim comes with

    value, interval     under the default choices
    null, p             what chance gives; how often chance is as far out (Holm over all claims)
    share, p            under which share of the choices it holds; how often chance gets there
    verdict             one sentence

Dates, tests and the letters for shapes are those of emergence.py.  This file knows nothing of
models, of run directories, and of figures.
"""
import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import Callable

import numpy as np

from emergence import (EventTable, clustered_interval, event_table, holm, order_signs, p_value,
                       precursor_rate, rare_onset, rise_index, risk_set_sums, risk_sets, shuffles,
                       split_level, steps_at)


@dataclass(frozen=True)
class Specification:
    """One set of choices of analysis: the keywords of emergence.event_table, which explains them.

    The paper's own choices are public only in outline ("a low threshold that persists")."""
    threshold: float = 0.3        # above every plateau of a half-learned answer (a guess, a sign)
    persistence: int = 3          # one or two may be luck
    behaviour: str = "accuracy"
    rise: float = 0.2             # RankMe of 200 examples wanders by some 10% along a flat floor
    position: str = "first"
    layer: int = -2
    smoothing: int = 3
    warmup: bool = True


# What other researchers might as well have chosen: 864 combinations.
ALTERNATIVES = {
    "threshold": (0.1, 0.3, 0.5), "persistence": (3, 5), "behaviour": ("accuracy", "log_prob"),
    "rise": (0.1, 0.2, 0.5), "position": ("first", "answer", "last"), "layer": (-2, -1),
    "smoothing": (3, 7), "warmup": (True, False)}


def specifications(alternatives: dict = ALTERNATIVES) -> list[Specification]:
    """All combinations of the alternatives."""
    return [Specification(**dict(zip(alternatives, options)))
            for options in itertools.product(*alternatives.values())]


# ------------------------------------------------------------------------------------------------
# Statistics that belong to single claims.  Like those of emergence.py, they take an EventTable
# without shams and Permutations, and return (M,) numbers; or one number where nothing is exchanged.
# The row of the claim says what is exchanged.

NOT_TOLD = np.full(1, math.nan)


def by_size(events):
    """For each size, the smallest first: which runs have it, (R,) bool."""
    # unknown numbers of parameters are taken to be alike
    parameters = np.nan_to_num([run.config["parameters"] for run in events.runs])
    return [parameters == size for size in np.unique(parameters)]


def by_task(events):
    """For each task: which levels belong to it, (L,) bool."""
    tasks = np.array(events.tasks)
    return [tasks == task for task in dict.fromkeys(events.tasks)]


def by_level(events):
    """For each level's number: which task-levels have it, (L,) bool."""
    numbers = np.array([split_level(level)[1] for level in events.levels])
    return [numbers == number for number in np.unique(numbers)]


def collapsed(events):
    """(R, L): 1 if RankMe loses at least half of what it has above 1, the least there can be."""
    lost_half = events.floor - 1 <= (events.start - 1) / 2
    return np.where(np.isnan(events.floor), math.nan, lost_half)


def collapse_rate(events, permutations):
    return collapsed(events).mean(keepdims=True).ravel()


def collapse_interval(events):
    return clustered_interval(collapsed(events), events.tasks)


def task_share(events, permutations):
    """Share of the variance of log floors, within a level, that lies between tasks."""
    tasks = by_task(events)
    if len(tasks) < 2:
        return NOT_TOLD
    x = np.log(events.floor).mean(0)                                        # (L,)
    for same in by_level(events):
        x[same] -= x[same].mean()
    x = x[permutations.tasks]                                               # (M, L)
    between = sum(x[:, own].mean(1) ** 2 * own.sum() for own in tasks)
    return between / np.maximum((x ** 2).sum(1), 1e-12)


def floor_ratio(events, permutations):
    """Floor at the largest size over floor at the smallest: geometric mean over task-levels."""
    sizes = by_size(events)
    if len(sizes) < 2:
        return NOT_TOLD
    log_floor = np.log(events.floor).mean(1)[permutations.runs]             # (M, R)
    return np.exp(log_floor[:, sizes[-1]].mean(1) - log_floor[:, sizes[0]].mean(1))


def floor_ratio_interval(events):
    """The same ratio, (mean, low, high), over tasks."""
    sizes, log_floor = by_size(events), np.log(events.floor)
    per_level = log_floor[sizes[-1]].mean(0) - log_floor[sizes[0]].mean(0)  # (L,)
    return tuple(np.exp(clustered_interval(per_level[None], events.tasks, rate=False)))


def distance_from_one(ratios):
    return np.abs(np.log(ratios))


def top_down_cells(shares, events, permutations):
    """Share of task x size cells that are top-down, on average over levels and seeds.

    shares: "down_floor" or "down_time", an array of the EventTable."""
    down = getattr(events, shares)                                          # (R, L)
    rows = np.array([down[:, own].mean(1) for own in by_task(events)]).T    # (R, tasks)
    rows = np.where(permutations.upside_down[:, :, None], 1 - rows, rows)   # (M, R, tasks)
    return np.mean([rows[:, size].mean(1) > 0.5 for size in by_size(events)], axis=(0, 2))


def lead_rate_interval(events):
    """Of the task-levels that emerge, the share whose onset came before: (mean, low, high)."""
    emerges = np.isfinite(events.emergence)
    first = np.where(emerges, events.onset < events.emergence, math.nan)
    return clustered_interval(first, events.tasks)


def risk_set_excess(events, permutations):
    """(M,): U of the risk-set test over all runs, as a z against its own permutation distribution.

    So what all levels have in common does not count.  Nor are the seeds, in which tasks repeat
    themselves, taken for independent."""
    levels, U = np.arange(events.onset.shape[1]), np.zeros(len(permutations.tasks))
    for onset, emergence in zip(events.onset, events.emergence):
        x, at_risk, emerges = risk_sets(onset, emergence)
        # U is a sum over levels; entry (k, i) is what level k adds if the onset of i were its own
        share = emerges.sum(0) / at_risk.sum(0)                             # (T,)
        added = (emerges - share * at_risk) @ x.T.astype(float)             # (L, L)
        U += added[levels, permutations.tasks].sum(1)
    spread = U.std()
    return (U - U.mean()) / spread if spread > 1e-9 else np.zeros_like(U)


def ranks(values):
    """1 for the smallest along the last axis, and so on; ties get the mean of their ranks.

    >>> ranks([30, 10, 20, 10]).tolist()
    [4.0, 1.5, 3.0, 1.5]
    """
    x = np.asarray(values, dtype=float)
    smaller = (x[..., None] > x[..., None, :]).sum(-1)
    equal = (x[..., None] == x[..., None, :]).sum(-1)                       # itself included
    return smaller + (equal + 1) / 2


def spearman(a, b):
    """Correlation of two sets of `ranks` along the last axis; nan where one is constant."""
    a = a - a.mean(-1, keepdims=True)
    b = b - b.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(-1) / np.sqrt((a ** 2).sum(-1) * (b ** 2).sum(-1))


def order_correlation(events, permutations):
    """Spearman's rho of onset and emergence, mean over runs; what never came comes last."""
    each = []
    for onset, emergence in zip(events.onset, events.emergence):
        rho = spearman(ranks(onset)[permutations.tasks], ranks(emergence))  # (M,)
        if not np.isnan(rho[0]):
            each.append(rho)
    return np.mean(each, axis=0) if each else np.full(len(permutations.tasks), math.nan)


def order_interval(events):
    """(mean, low, high) over runs; no correlation is beyond -1 and 1."""
    rho = [spearman(ranks(onset), ranks(emergence))
           for onset, emergence in zip(events.onset, events.emergence)]
    if len(rho) < 2:
        return rho[0], math.nan, math.nan
    return tuple(np.clip(clustered_interval(np.array(rho)[:, None], ("",), rate=False), -1, 1))


def difficulty(events):
    """(R, L): 0 easy, 1 middle, 2 hard; -1 for a run that is the only one of its size.

    Classes are terciles of the median emergence over the *other* runs of the size.  Classes of a
    run's own dates would make precursors: what emerges late has had time for an onset."""
    R, L = events.emergence.shape
    classes = np.full((R, L), -1)
    for size in by_size(events):
        for r in np.flatnonzero(size):
            others = size & (np.arange(R) != r)
            if others.any():
                order = ranks(np.median(events.emergence[others], axis=0)) - 1
                classes[r] = np.minimum(order * 3 // L, 2)
    return classes


def within_class(events, permutations):
    """Concordance of onsets with emergence among the task-levels of one difficulty class."""
    L = len(events.levels)
    i, j = np.triu_indices(L, 1)
    alike = pairs = np.zeros(len(permutations.tasks))
    for onset, emergence, own in zip(events.onset, events.emergence, difficulty(events)):
        order, true = order_signs(onset), order_signs(emergence)            # (L, L)
        use = (own[i] == own[j]) & (own[i] >= 0) & ~np.isnan(true[i, j])
        a, b = i[use], j[use]
        # the order of the two onsets that levels a and b get in each data set, looked up in the
        # flattened table: -1, 0 or 1, and nan if neither of the two ever came
        place = permutations.tasks[:, a] * L + permutations.tasks[:, b]     # (M, pairs)
        known = (~np.isnan(order)).astype(float).take(place).sum(1)
        agree = np.nan_to_num(order).take(place) @ true[a, b]               # alike less not alike
        alike = alike + (known + agree) / 2                                 # a tie counts one half
        pairs = pairs + known
    if not pairs.any():
        return NOT_TOLD
    return np.where(pairs > 0, alike / np.maximum(pairs, 1), math.nan)


def swap_rate(events, permutations):
    """Of the pairs of task-levels that emerge in opposite orders at two sizes, the share whose
    onsets have the order of emergence at both.

    Dates are medians over seeds.  Orders drawn by lot get a quarter right."""
    sizes, right, pairs = by_size(events), 0.0, 0
    onset = [order_signs(np.median(events.onset[size], axis=0)) for size in sizes]
    emergence = [order_signs(np.median(events.emergence[size], axis=0)) for size in sizes]
    for a, b in itertools.combinations(range(len(sizes)), 2):
        i, j = np.triu(emergence[a] * emergence[b] == -1).nonzero()
        # the levels whose onsets the pairs get in each data set, each (M, pairs)
        first, second = permutations.tasks[:, i], permutations.tasks[:, j]
        right_at_a = onset[a][first, second] == emergence[a][i, j]
        right_at_b = onset[b][first, second] == emergence[b][i, j]
        right = right + (right_at_a & right_at_b).sum(1)
        pairs += len(i)
    return right / pairs if pairs else NOT_TOLD


# ------------------------------------------------------------------------------------------------
# Measures that are taken at a few snapshots only.  What is looked at rarely looks late, so all that
# they are compared with is dated on the same snapshots, the measure's grid.

def rare_dates(events, measure):
    """Date one rare measure: (own, rankme, grids).

    own, rankme: EventTables with the onset of the measure, and that of RankMe by the same rule;
      emergence is put at the first snapshot of the grid that is not before it.
    grids: (R,) the snapshots; None for a run with fewer than 3, which has no events at all."""
    by, grids = events.dated_by, [None] * len(events.runs)
    own, rankme, emergence = (np.full(events.onset.shape, np.inf) for _ in range(3))
    for r, run in enumerate(events.runs):
        grid, onset = rare_onset(events, run, measure)
        if measure in run.measures and len(grid) > 2:
            rank = run.rankme_at(by["position"], by["layer"])[events.rows]
            grids[r], own[r] = grid, onset
            rankme[r] = steps_at(grid, rise_index(rank[:, np.isin(run.steps, grid)]))
            emergence[r] = steps_at(grid, np.searchsorted(grid, events.emergence[r]))
    on_grid = replace(events, emergence=emergence)
    return replace(on_grid, onset=own), replace(on_grid, onset=rankme), grids


def rare_rate(measure, events, permutations):
    """Of the task-levels that emerge, the share in which a rare measure rose before that."""
    own, _, grids = rare_dates(events, measure)
    if all(grid is None for grid in grids):
        return NOT_TOLD
    return precursor_rate(own, permutations)


def rare_interval(measure, events):
    return lead_rate_interval(rare_dates(events, measure)[0])


def lead_interval(grid, onset, emergence):
    """The interval (low, high) in which a lead lies, both ends excluded: an event is dated at a
    snapshot, and came after the snapshot before it.

    >>> lead_interval([0, 10, 20, 30], 10, 30)
    (10, 30)
    """
    before = dict(zip(grid, [grid[0], *grid]))
    return before[emergence] - onset, emergence - before[onset]


# ------------------------------------------------------------------------------------------------
# What stands beside the claims

def lead_check(events: EventTable) -> dict:
    """The risk-set test by its formula, each run a stratum; and the false alarms of the shams.

    events: shams included.  z takes the runs for independent, but the tasks in them are the same.
    So the verdict is left to the permutations of `risk_set_excess`."""
    real, shams = events.only(shams=False), events.only(shams=True)
    sums = [risk_set_sums(*dates) for dates in zip(real.onset, real.emergence)]
    U, V = sum(u for u, _ in sums), sum(v for _, v in sums)
    warmup = np.array([[run.config["warmup"]] for run in events.runs])      # (R, 1)
    return {"z": U / math.sqrt(V) if V > 0 else math.nan, "information": V,
            "shams": shams.onset.size,
            "sham_onsets": int(np.isfinite(shams.onset).sum()),
            "sham_emergences": int(np.isfinite(shams.emergence).sum()),
            "warmup": float(np.median(warmup)),
            "median_onset": float(np.median(real.onset)),
            "onsets_in_warmup": float(np.mean(real.onset < warmup))}


def rate_beside_chance(events, permutations) -> dict:
    """Precursor rate, its interval, and what chance gives."""
    rates = precursor_rate(events, permutations)
    rate, low, high = lead_rate_interval(events)
    return {"rate": rate, "low": low, "high": high,
            "null": float(rates[1:].mean()), "p": p_value(rates)}


def class_rates(events, permutations, classes) -> list[dict]:
    """Precursor rate by difficulty class, (R, L), each beside the null of that class."""
    out = []
    for number, name in enumerate(("easy", "middle", "hard")):
        emergence = np.where(classes == number, events.emergence, np.inf)
        count = int(np.isfinite(emergence).sum())
        if count:
            among = replace(events, emergence=emergence)
            out.append({"class": name, "events": count, **rate_beside_chance(among, permutations)})
    return out


def floors_across_sizes(events) -> dict:
    """How much floors vary: coefficients of variation over sizes (of one task-level), seeds (of one
    size) and tasks (of one level); and the ratio of C2 for floors as shares of their ceilings.

    None where there is only one size, seed or task, or no RankMe."""
    if np.isnan(events.floor).all():
        return dict.fromkeys(("over_sizes", "over_seeds", "over_tasks", "ratio_of_shares"))
    sizes = by_size(events)
    floors = np.array([events.floor[size].mean(0) for size in sizes])       # (sizes, L)
    seeds = [_variation(events.floor[size]) for size in sizes if size.sum() > 1]
    tasks = [_variation(floors[:, same].T) or 0 for same in by_level(events)]
    ceiling = np.where(np.isfinite(events.ceiling), events.ceiling, math.nan)
    ratio = floor_ratio_interval(replace(events, floor=events.floor / ceiling))[0]
    return {"over_sizes": _variation(floors),
            "over_seeds": float(np.mean(seeds)) if seeds else None,
            "over_tasks": float(np.mean(tasks)) if len(set(events.tasks)) > 1 else None,
            "ratio_of_shares": float(ratio) if len(sizes) > 1 and not math.isnan(ratio) else None}


def _variation(x):
    """Coefficient of variation along the first axis, mean over the others."""
    return float(np.mean(x.std(0) / x.mean(0))) if len(x) > 1 else None


def compare_measures(events, permutations) -> list[dict]:
    """Lead and lag of every measure that was taken, with RankMe on the same grid beside it."""
    out, classes = [], difficulty(events)
    for name in dict.fromkeys(name for run in events.runs for name in run.measures):
        own, rankme, grids = rare_dates(events, name)
        emerges = np.isfinite(own.emergence)
        if not emerges.any():
            continue
        # the interval of each lead, and the median of both its ends
        spans = [lead_interval(grids[r].tolist(), own.onset[r, k], own.emergence[r, k])
                 for r, k in zip(*(emerges & np.isfinite(own.onset)).nonzero())]
        lead_low, lead_high = np.median(spans, axis=0).tolist() if spans else (None, None)
        taken = [len(grid) for grid in grids if grid is not None]
        out.append({
            "measure": name, "runs": len(taken), "snapshots": min(taken),
            "events": int(emerges.sum()),
            "first": int((own.onset < own.emergence)[emerges].sum()),
            "same": int((own.onset == own.emergence)[emerges].sum()),
            "later_or_never": int((own.onset > own.emergence)[emerges].sum()),
            **rate_beside_chance(own, permutations),
            "rankme_rate": float(precursor_rate(rankme, permutations)[0]),
            "lead_low": lead_low, "lead_high": lead_high,
            "classes": class_rates(own, permutations, classes)})
    return out


def aligned_curves(events: EventTable) -> tuple[np.ndarray, dict]:
    """Curves of every level that emerges, with emergence at the same place: for a figure.

    Returns x, (61,), log10 of step / step of emergence, from -2 to 1; and {name: (curves, 61)} for
    accuracy, rankme and the measures taken, NaN beyond a curve's ends.  Each curve is scaled to its
    own range, 0 to 1.  Left out are shams, and curves that are flat or too short."""
    events = events.only(shams=False)
    x, found, by = np.linspace(-2, 1, 61), {}, events.dated_by
    for run, emergences in zip(events.runs, events.emergence):
        tables = {"accuracy": run.accuracy, "rankme": run.rankme_at(by["position"], by["layer"])}
        tables |= {name: run.table(name) for name in run.measures}
        for row, emergence in zip(events.rows, emergences):
            if not 0 < emergence < math.inf:
                continue
            for name, table in tables.items():
                curves = found.setdefault(name, [])
                used = (run.steps > 0) & ~np.isnan(table[row])              # 0 has no logarithm
                steps, values = run.steps[used], table[row, used]
                if len(values) > 2 and np.ptp(values) > 0:
                    heights = (values - values.min()) / np.ptp(values)
                    places = np.log10(steps / emergence)
                    curves.append(np.interp(x, places, heights, left=math.nan, right=math.nan))
    return x, {name: np.array(curves) for name, curves in found.items() if curves}


# ------------------------------------------------------------------------------------------------
# Verdicts

@dataclass(frozen=True)
class Claim:
    key: str
    text: str
    v1: str                       # what the versions of the paper report
    v3: str
    v4: str
    statistic: Callable           # (EventTable, Permutations) -> (M,)
    above: float = -math.inf      # it holds for a value of at least that,
    below: float = math.inf       # and of at most that
    null: str = ""                # what the Permutations exchange
    kind: str = "describe"        # or "beyond": worth something only if chance gives less;
                                  # or "chance": it says that prediction fails
    form: str = "{:.0%}"          # how its value is written
    needs: str = ""               # what a sweep must have for it, besides RankMe
    interval: Callable = None     # EventTable -> (mean, low, high)
    distance_from_null: Callable = np.asarray                 # large is far from chance
    reads: tuple = tuple(ALTERNATIVES)                        # the choices that it depends on

    def holds(self, values):
        """Which of these values are as the paper says?  Never NaN."""
        return (self.above <= values) & (values <= self.below)


TASKS, LAYERS, SIZES = "tasks exchanged within a level", "layers in reverse", "sizes exchanged"
FLOOR = ("position", "layer", "smoothing", "warmup")          # the choices that a floor depends on
RARELY = ()                       # taken at too few snapshots for other choices to matter


def judge(claim, events, value, p, information) -> str:
    """The verdict in plain words: that of the first condition that is met.

    p: Holm's, over all claims.  information: of the risk-set test."""
    runs, as_claimed = len(events.runs), bool(claim.holds(value))
    beyond = p is not None and p < 0.05
    verdicts = [
        (claim.reads != RARELY and np.isnan(events.floor).all(),
         "cannot tell: needs RankMe"),
        (math.isnan(value),
         f"cannot tell: needs {claim.needs}"),
        (claim.null == TASKS and len(set(events.tasks)) < 2,
         "cannot tell: a single task has no other to be exchanged with"),
        (claim.null == LAYERS and runs < 5,
         f"{'as claimed' if as_claimed else 'not as claimed'}; {runs} of the 5 runs that it takes "
         "to tell it from chance"),
        (claim.key == "C4 risk set" and information < 5,
         f"cannot tell: information {information:.1f}, below 5"),
        (claim.kind == "describe", "holds" if as_claimed else "does not hold"),
        (claim.kind == "chance" and beyond, "does not hold: better than chance"),
        (claim.kind == "chance", "holds: no better than chance"),
        (as_claimed and beyond, "holds, and beyond chance"),
        (as_claimed, "as claimed, but chance gives it too"),
        (beyond, "weaker than claimed, but beyond chance"),
        (True, "does not hold")]
    return next(verdict for condition, verdict in verdicts if condition)


def multiverse(runs, specifications: list[Specification], count=501) -> tuple[list, dict]:
    """Every claim under every specification, on the data and on count - 1 exchanged data sets.

    Returns (specifications, {key of a claim: (specifications, M) numbers}); rare measures, which no
    choice varies, are left out."""
    varying = [claim for claim in CLAIMS if claim.reads != RARELY]
    values, found, permutations = {claim.key: [] for claim in varying}, {}, None
    for specification in specifications:
        events = event_table(runs, **vars(specification)).only(shams=False)
        if permutations is None:
            permutations = shuffles(events.levels, len(runs), count)
        for claim in varying:
            # computed once for each combination of the choices that the claim depends on
            what = claim.key, *[getattr(specification, choice) for choice in claim.reads]
            if what not in found:
                found[what] = np.broadcast_to(claim.statistic(events, permutations), count)
            values[claim.key].append(found[what])
    return specifications, {key: np.array(rows) for key, rows in values.items()}


def robustness(claim, specifications, values) -> dict:
    """Under which share of the specifications a claim holds, and which choice decides that.

    values: (specifications, M), of `multiverse`.  Returns {} where nothing can be told, else
    share, options: the share; {choice: {option: the share among specifications with that option}}
    p_multiverse: how often exchanged data reach the share
    decides: the choice whose options differ most, if by more than 0.1"""
    if np.isnan(values[:, 0]).all():
        return {}
    holds = claim.holds(values)                                             # (specifications, M)
    share, options = holds.mean(0), {}
    for choice in vars(specifications[0]):
        chosen = [getattr(specification, choice) for specification in specifications]
        options[choice] = {str(option): float(holds[[c == option for c in chosen], 0].mean())
                           for option in dict.fromkeys(chosen)}
    swing = {choice: max(shares.values()) - min(shares.values())
             for choice, shares in options.items()}
    most = max(swing, key=swing.get)
    tested = claim.null and claim.kind == "beyond"
    return {"share": float(share[0]), "p_multiverse": p_value(share) if tested else None,
            "options": options, "decides": most if swing[most] > 0.1 else None}


def study(runs: list, specification: Specification = Specification(),
          universe: tuple | None = None, count: int = 2001) -> dict:
    """Everything that the runs of one sweep have to say: a dict for findings.json.

    universe: what `multiverse` returned, or None."""
    with_shams = event_table(runs, **vars(specification))
    events = with_shams.only(shams=False)
    permutations = shuffles(events.levels, len(runs), count)
    check = lead_check(with_shams)
    rows = [_claim_row(claim, events, permutations, universe) for claim in CLAIMS]

    # verdicts, with p-values that know how many claims there are
    for row, claim, p in zip(rows, CLAIMS, holm([row["p"] for row in rows])):
        row["p_holm"] = p
        row["verdict"] = judge(claim, events, row["value"], p, check["information"])
        if row.get("decides") and 0.1 < row["share"] < 0.9:
            row["verdict"] += f"; depends on {row['decides']}"
    return {"claims": rows, "lead_check": check,
            "classes": class_rates(events, permutations, difficulty(events)),
            "measures": compare_measures(events, permutations),
            "floor_variation": floors_across_sizes(events),
            "top_down_floor": clustered_interval(events.down_floor, events.tasks),
            "top_down_time": clustered_interval(events.down_time, events.tasks),
            "specifications": len(universe[0]) if universe else 0}


def _claim_row(claim, events, permutations, universe):
    """What one claim comes to, but for what depends on the other claims."""
    values = claim.statistic(events, permutations)
    low = high = None
    if claim.interval and not math.isnan(values[0]):
        _, low, high = claim.interval(events)
    row = {"claim": claim.key, "text": claim.text, "v1": claim.v1, "v3": claim.v3, "v4": claim.v4,
           "value": float(values[0]), "low": low, "high": high,
           "null": float(np.mean(values[1:])) if claim.null and len(values) > 1 else None,
           "exchanged": claim.null or None,
           "p": p_value(values, claim.distance_from_null) if claim.null else None}
    if universe and claim.key in universe[1]:
        row |= robustness(claim, universe[0], universe[1][claim.key])
    return row


# ------------------------------------------------------------------------------------------------
# The table of claims

def _rare(measure):
    """What the claims on rare measures have in common."""
    return dict(statistic=functools.partial(rare_rate, measure), null=TASKS, reads=RARELY,
                interval=functools.partial(rare_interval, measure), needs=f"--measures {measure}")


# The bounds: the lowest value that a version of the paper reports, or what its words mean at least.
CLAIMS = (
    Claim("C1", "RankMe collapses, losing half of what it has above 1",
          "all tasks", "all tasks", "all tasks", collapse_rate,
          above=0.9, interval=collapse_interval, reads=FLOOR),
    Claim("C1 floor", "the floor depends on the task (share of its variance)",
          "yes", "yes", "yes", task_share,
          above=0.5, null=TASKS, kind="beyond", needs="two tasks", reads=FLOOR),
    Claim("C2", "the floor does not depend on scale (largest / smallest)",
          "same at all", "same at all", "task-specific", floor_ratio,
          above=0.8, below=1.25, null=SIZES, form="{:.2f}", needs="two sizes",
          interval=floor_ratio_interval, distance_from_null=distance_from_one, reads=FLOOR),
    Claim("C3 depth", "deeper layers have lower floors (task x size)",
          "32/32", "28/32", "top-down", functools.partial(top_down_cells, "down_floor"),
          above=0.87, null=LAYERS, kind="beyond", reads=FLOOR),
    Claim("C3 time", "deeper layers reach their floors first (task x size)",
          "32/32", "28/32", "top-down", functools.partial(top_down_cells, "down_time"),
          above=0.87, null=LAYERS, kind="beyond", reads=FLOOR),
    Claim("C4", "RankMe recovers before emergence",
          "75-100%", "100%", "hard tasks only", precursor_rate,
          above=0.75, null=TASKS, kind="beyond", needs="an emergence",
          interval=lead_rate_interval),
    Claim("C4 risk set", "those that have recovered emerge sooner (z)",
          "-", "-", "-", risk_set_excess,
          above=1.645, null=TASKS, kind="beyond", form="{:.1f}"),
    Claim("C5", "the LLC does not lead (share that it does)",
          "0/24", "0/24", "no precursor", below=0.25, **_rare("llc")),
    Claim("C6", "the top Hessian eigenvalue does not lead",
          "about 17%", "lags", "no precursor", below=0.25, **_rare("hessian_top")),
    Claim("C7", "order of onsets and of emergence go together (rho)",
          ".57-.90", ".57-.90", "-", order_correlation,
          above=0.57, null=TASKS, kind="beyond", form="{:.2f}", needs="an emergence",
          interval=order_interval),
    Claim("C7 fine", "but not within a difficulty class (concordance)",
          "27%", "52-69%", "-", within_class,
          below=0.69, null=TASKS, kind="chance",
          needs="two seeds of a size, and several task-levels in a class"),
    Claim("C8", "where sizes reverse an order, prediction fails (swap test)",
          "26%", "26%", "-", swap_rate,
          below=0.5, null=TASKS, kind="chance", needs="two sizes that reverse an order"),
    Claim("C10", "a linear probe finds the answer before behaviour does",
          "-", "-", "yes", above=0.5, kind="beyond", **_rare("linear_probe")),
)
