"""When a capability emerges, what came before it, and how sure one can be.

Input are curves: a number per snapshot of training, for accuracy, for RankMe, for anything else that was measured.  Output
are events (a step, or None for "never"), tests, claims with verdicts, and figures.  This file never sees a model, so everything in it
can be tried on a curve that one draws by hand:

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

If onset comes before emergence, geometry "leads", by `lead_time` steps.  Three questions decide what such a lead is worth, and they are
the sections of this file after the dates:

    chance        would the onset of *another* task have come first as well?  (risk-set test, tasks exchanged, sham tasks)
    claims        what the paper says, number by number, beside what these runs say: the table CLAIMS
    choices       every date depends on choices (how clear is "clearly"?).  Does a claim hold under most of them?  (`multiverse`)

What can go wrong: an onset that comes early for every task precedes whatever comes later, and "first in 100%" says nothing; a sharp rise may
be the metric's (so `behaviour="log_prob"`); looked at rarely, a measure looks late.  Read more: Schaeffer et al. 2023 (arXiv 2304.15004), on
emergence and the choice of metric; Cox 1972, on risk sets; Steegen et al. 2016, on multiverse analysis.

Letters:  R runs, L levels (task-levels) of a run, S snapshots, M data sets: the one that was observed, then M - 1 shuffled ones.
"""
import functools
import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Callable, NamedTuple

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.lib.stride_tricks import sliding_window_view


@dataclass(frozen=True)
class Choices:
    """What the dates depend on.  The paper's own choices are public only in outline ("a low threshold that persists")."""
    threshold: float = 0.3        # share of the way from chance to perfect that counts as emerged: low, as the paper has it,
                                  # and above every plateau that a half-learned answer gives here (a parity guess, a sign)
    persistence: int = 3          # snapshots in a row that must agree, for emergence and for onset: one may be luck
    behaviour: str = "accuracy"   # "accuracy", or "log_prob": the share of the answer's entropy that is explained
    rise: float = 0.2             # RankMe counts as recovering when it is 20% above its floor: with 200 probes, the curve
                                  # wanders by some 10% along a flat floor
    position: str = "first"       # whose hidden state: where the "first" answer token is predicted (nothing of the answer is
                                  # known there), all "answer" tokens, or the "last" token of the line (all is known)
    layer: int = -2               # the residual stream after the last block; -1 is after the final LayerNorm, 0 the embedding
    smoothing: int = 3            # running median of so many snapshots, so that a floor is not a single odd value
    warmup: bool = True           # do snapshots within the learning rate's warm-up count?


# What other researchers might as well have chosen: `multiverse` goes through all combinations, 864 of them.
ALTERNATIVES = {"threshold": (0.1, 0.3, 0.5), "persistence": (3, 5), "behaviour": ("accuracy", "log_prob"), "rise": (0.1, 0.2, 0.5),
                "position": ("first", "answer", "last"), "layer": (-2, -1), "smoothing": (3, 7), "warmup": (True, False)}


# ---------------------------------------------------------------------------------------------------------------
# Dates.  The first functions take any number of curves at once, (..., S), and answer with indices, -1 for "never".

def _check(steps, values, name):
    if len(steps) != len(values):
        raise ValueError(f"{name}: {len(steps)} steps but {len(values)} values")
    if any(b <= a for a, b in zip(steps, steps[1:])):
        raise ValueError(f"{name}: the steps must increase")
    return np.array([math.nan if v is None else v for v in values], dtype=float)


def _first_run(flags, persistence):
    """Where the first `persistence` True in a row begin."""
    if flags.shape[-1] < persistence:
        return np.full(flags.shape[:-1], -1)
    runs = sliding_window_view(flags, persistence, axis=-1).all(-1)
    return np.where(runs.any(-1), runs.argmax(-1), -1)


def emergence_index(values, chance, examples, threshold, persistence):
    """Index of the first of `persistence` snapshots in a row that are clearly above chance; -1 if there is none.
        (values - chance) / (1 - chance) >= max(threshold, 3 sqrt(chance / (1 - chance) / examples)) - 1e-12
    values: (..., S), NaN where nothing was measured, which counts as "no".  chance: in [0, 1), a number or (..., 1).
    examples: None leaves the second bar out.  1e-12 is for rounding: a value that is on the bar counts.  Returns (...) integers.
    Exercise: emergence.emergence_index (set 4, 10 points)
    Hint: _first_run(flags, persistence) does the counting in a row.

    >>> emergence_index(np.array([[.5, .6, .9, .9], [.5, .9, .6, .9]]), 0.5, None, 0.3, 2).tolist()
    [2, -1]
    """
    bar = np.maximum(threshold, 3 * np.sqrt(chance / (1 - chance) / examples)) if examples else threshold
    return _first_run((values - chance) / (1 - chance) >= bar - 1e-12, persistence)


def recovery(smooth, rise, persistence):
    """The floor of a smoothed curve, and where the curve leaves it for good.
        floor = min_t x_t, first reached at index low       onset: first of `persistence` indices t > low in a row with x_t >= (1 + rise) floor
    smooth: (..., S), NaN where there is no value (no curve has NaN only).  Returns (floor, low, onset), each (...); onset -1 for "never".
    Exercise: emergence.recovery (set 4, 10 points)
    Hint: NaN is neither a minimum nor a recovery; and a curve may stand above its floor before it gets there, which is not one either.

    >>> [x.tolist() for x in recovery(np.array([[8., 2., 2., 5., 6.], [8., 6., 4., 3., 2.]]), 0.2, 2)]
    [[2.0, 2.0], [1, 4], [3, -1]]
    """
    low = np.where(np.isnan(smooth), np.inf, smooth).argmin(-1)
    floor = np.take_along_axis(smooth, low[..., None], -1)
    later = np.arange(smooth.shape[-1]) > low[..., None]
    return floor[..., 0], low, _first_run(later & (smooth >= (1 + rise) * floor), persistence)


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
    i = emergence_index(values, chance, examples, threshold, persistence)
    return None if i < 0 else steps[i]


def running_median(values, window):
    """Median of the `window` values around each, along the last axis (fewer at the ends); NaN where all of them are.

    >>> running_median([1, 9, 1, 1], 3).tolist()
    [5.0, 1.0, 1.0, 1.0]
    """
    half, values = window // 2, np.asarray(values, dtype=float)
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], constant_values=math.nan)
    windows = np.sort(sliding_window_view(padded, 2 * half + 1, axis=-1), axis=-1)                  # NaN last
    n = (~np.isnan(windows)).sum(-1, keepdims=True)
    middle = [np.take_along_axis(windows, i, -1)[..., 0] for i in (np.maximum(n - 1, 0) // 2, n // 2 % windows.shape[-1])]
    return (middle[0] + middle[1]) / 2


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
    floor, low, i = recovery(smooth, rise, persistence)
    return Collapse(float(floor), steps[low], None if i < 0 else steps[i])


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

def rate_with_interval(k, n, z=1.959964):
    """k of n, with Wilson's interval, 95% by default: (rate, low, high).  It takes the n for independent, which the levels of one
    model are not: read it as a lower bound on the doubt, and see `clustered_interval`.  n = 0 gives (nan, 0, 1).

    >>> [round(x, 3) for x in rate_with_interval(24, 24)]
    [1.0, 0.862, 1.0]
    """
    if not 0 <= k <= n:
        raise ValueError(f"rate_with_interval: {k} of {n} is not a rate")
    if n == 0:
        return math.nan, 0.0, 1.0
    p = k / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return p, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _student(df):
    """97.5% quantile of Student's t (Cornish and Fisher's expansion, good to 1% from 3 degrees of freedom)."""
    z = 1.959964
    return {1: 12.706, 2: 4.303}.get(round(df)) or (z + (z ** 3 + z) / (4 * df) + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * df ** 2)
                                                    + (3 * z ** 7 + 19 * z ** 5 + 17 * z ** 3 - 15 * z) / (384 * df ** 3))


def clustered_interval(values, tasks, rate=True):
    """Mean of an (R, L) table of events with its 95% interval, which knows that events of one task, and of one run, are alike.

        variance = (variance if tasks are drawn anew) + (if runs are drawn anew) - (if single events are)
        and no less than the larger of the first two

    It is what a bootstrap over tasks x runs estimates, in closed form; each term is sum over clusters of
    (sum of deviations in the cluster)^2 / n^2 * G / (G - 1), with G clusters.  NaN entries are left out.
    tasks: (L,) labels.  rate: the entries are 0 or 1, and Wilson's formula is used, with the number of independent events that has the
    same variance; all alike, that number is taken to be that of the tasks, or of the runs if there are more.
    Returns (mean, low, high); nan for an empty table.
    Source: Cameron, Gelbach & Miller 2011; Student's t with Satterthwaite's degrees of freedom, for the variance is itself an estimate.
    That of n independent events, the least that a rate of n can have, is not one, and gets the normal's quantile.
    """
    values = np.asarray(values, dtype=float)
    there = ~np.isnan(values)
    n = there.sum()
    if n == 0:
        return math.nan, math.nan, math.nan
    mean = values[there].mean()
    deviation = np.where(there, values - mean, 0) / n
    labels = np.unique(np.asarray(tasks), return_inverse=True)[1]
    by_task = np.zeros((len(values), labels.max() + 1))
    np.add.at(by_task.T, labels, deviation.T)
    count = [len(np.unique(labels[there.any(0)])), int(there.any(1).sum())]
    terms = [(x ** 2).sum() * g / (g - 1) if g > 1 else 0.0 for x, g in zip((by_task.sum(0), by_task.sum(1)), count)]
    variance = max(sum(terms) - (by_task ** 2).sum(), *terms) if min(count) > 1 else sum(terms)
    df = sum(terms) ** 2 / sum(t ** 2 / (g - 1) for t, g in zip(terms, count) if g > 1) if variance > 0 else max(count)
    t = _student(max(df, 1))
    if not rate:
        return float(mean), float(mean - t * math.sqrt(variance)), float(mean + t * math.sqrt(variance))
    independent = mean * (1 - mean) / variance if variance > 1e-12 else max(count)
    return rate_with_interval(mean * n, n) if independent >= n else rate_with_interval(mean * independent, independent, t)


def _order(x):
    """-1, 0, 1: how elements i and j of the last axis are ordered, (..., i, j); nan for two that never came (inf), which have no order."""
    with np.errstate(invalid="ignore"):
        return np.sign(x[..., :, None] - x[..., None, :])


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
    alike = (_order(_times(a)) * _order(_times(b)))[np.triu_indices(len(a), 1)]                     # 1 alike, -1 not, 0 a tie
    return float((1 + alike[~np.isnan(alike)]).mean() / 2) if not np.isnan(alike).all() else math.nan


def ranks(values):
    """1 for the smallest along the last axis, and so on; ties get the mean of their ranks.

    >>> ranks([30, 10, 20, 10]).tolist()
    [4.0, 1.5, 3.0, 1.5]
    """
    x = np.asarray(values, dtype=float)
    return (x[..., None] > x[..., None, :]).sum(-1) + ((x[..., None] == x[..., None, :]).sum(-1) + 1) / 2


def spearman(a, b):
    """Correlation of two sets of `ranks` along the last axis, -1 to 1; nan where one of them is constant."""
    a, b = (r - r.mean(-1, keepdims=True) for r in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(-1) / np.sqrt((a ** 2).sum(-1) * (b ** 2).sum(-1))


def holm(p_values):
    """p-values of several tests, adjusted so that the chance of even one false alarm stays at the level (Holm 1979).
        sorted, the k-th smallest of n (k = 1 ... n) becomes the largest of min(1, (n - j + 1) p_j) over j <= k
    Returns a list in the order given.  None, a test that could not be made, stays None and does not count.
    Exercise: emergence.holm (set 4, 5 points)
    Hint: go through them from the smallest up, and remember the largest so far.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    order = sorted((i for i, p in enumerate(p_values) if p is not None), key=lambda i: p_values[i])
    out, worst = [None] * len(p_values), 0.0
    for k, i in enumerate(order):
        out[i] = worst = max(worst, min(1.0, (len(order) - k) * p_values[i]))
    return out


def _times(dates):
    """Steps, None for "never" -> floats, infinity for "never"."""
    return np.array([math.inf if v is None else v for v in dates], dtype=float)


def _risk_set(onset, emergence):
    """-> at each emergence time, a column each: x (L, T), risk set (L, T), those that emerge (L, T)."""
    t = np.unique(emergence[np.isfinite(emergence)])
    return onset[:, None] < t, emergence[:, None] >= t, emergence[:, None] == t


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
    x, risk, event = _risk_set(_times(onsets), _times(emergences))
    size, d = risk.sum(0), event.sum(0)
    m = (x & risk).sum(0) / size
    U = (x & event).sum(0) - d * m
    V = d * m * (1 - m) * (size - d) / np.maximum(size - 1, 1)
    return float(U.sum()), float(V.sum())


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


@dataclass(eq=False)                  # compared, and cached, by identity
class Run:
    """The curves of one run as arrays; NaN where nothing was measured."""
    config: dict                      # config.json
    rows: list                        # of metrics.jsonl
    steps: np.ndarray                 # (S,)
    accuracy: np.ndarray              # (L, S), on unseen operands where some are never trained on: knowing the others by heart is no capability
    log_prob: np.ndarray              # (L, S): share of the answers' entropy that the model explains, 1 - log p / log p of the best blind guess
    rankme: dict                      # position -> (L, layers, S)

    @property
    def levels(self):
        return self.config["levels"]

    @property
    def name(self):
        return f"{self.config['size']}-s{self.config['seed']}"


def _places(run, shams=False):
    """Where the task-levels of a run stand among its levels; or the shams."""
    return [k for k, level in enumerate(run.levels) if level.startswith("sham-") == shams]


def _real(run):
    return [run.levels[k] for k in _places(run)]


def tabulate(config, rows):
    """config.json and the rows of metrics.jsonl -> Run."""
    def table(*path):                                                           # (L, S, ...)
        value = lambda row, level: functools.reduce(lambda x, key: x[key], path, row["levels"][level])
        return np.array([[value(row, level) for row in rows] for level in config["levels"]], dtype=float)
    blind = np.array([config["chance_log_prob"][level] for level in config["levels"]])
    return Run(config, rows, np.array([row["step"] for row in rows]), table("accuracy_test" if config["train_fraction"] < 1 else "accuracy"),
               1 - table("log_prob") / blind[:, None], {position: table("rankme", position).swapaxes(1, 2) for position in ALTERNATIVES["position"]})


def _since(run, warmup):
    """Index of the first snapshot that counts."""
    return 0 if warmup else min(int(np.searchsorted(run.steps, run.config["warmup"])), len(run.steps) - 1)


def _steps_at(run, index, start):
    """Indices into the snapshots from `start` on -> steps, infinity for never."""
    return np.where(index < 0, np.inf, run.steps[index + start])


@functools.lru_cache(maxsize=20000)
def _geometry(run, position, smoothing, rise, persistence, warmup):
    """-> floor, floor_step, onset, each (L, layers); how far the floors, and their steps, are top-down, (L,)."""
    start = _since(run, warmup)
    floor, low, onset = recovery(_smooth(run, position, smoothing, warmup), rise, persistence)
    floor_step = _steps_at(run, low, start)
    return floor, floor_step, _steps_at(run, onset, start), top_down(floor), top_down(floor_step)


@functools.lru_cache(maxsize=200)
def _smooth(run, position, smoothing, warmup):
    return running_median(run.rankme[position][..., _since(run, warmup):], smoothing)


@functools.lru_cache(maxsize=20000)
def _behaviour(run, behaviour, threshold, persistence, warmup):
    """-> emergence (L,)."""
    chance = np.array([run.config["chance"][level] if behaviour == "accuracy" else 0.0 for level in run.levels])[:, None]
    start = _since(run, warmup)
    return _steps_at(run, emergence_index(getattr(run, behaviour)[:, start:], chance, run.config["eval_examples"], threshold, persistence), start)


def top_down(layer_values):
    """Do deeper layers have smaller values?  Share of layer pairs (last axis) for which they do: 1 top-down, 0 bottom-up, 0.5 no order.
    The embedding (first entry) and the final LayerNorm (last) are no layers of their own, and left out."""
    blocks = np.asarray(layer_values, dtype=float)[..., 1:-1]
    i, j = np.triu_indices(blocks.shape[-1], 1)
    return ((1 + _order(blocks)[..., i, j]) / 2).mean(-1)


def ceilings(run, position):
    """(L,): RankMe cannot exceed the number of distinct states, nor the width."""
    config, first = run.config, run.rows[0]["levels"]
    places = config["answer_tokens"] if position == "answer" else dict.fromkeys(run.levels, 1)
    return np.array([min(first[level]["distinct"] * places[level], config["width"]) for level in run.levels])


def events(run, choices=Choices()):
    """Everything that happened in one run: a list of dicts, one per task-level.  Steps that are None never came within it."""
    c, out, config = choices, [], run.config
    floors, floor_steps, onsets, down_floor, down_time = _geometry(run, c.position, c.smoothing, c.rise, c.persistence, c.warmup)
    emerged = {b: _behaviour(run, b, c.threshold, c.persistence, c.warmup) for b in ALTERNATIVES["behaviour"]}
    step, limit = lambda x: None if math.isinf(x) else int(x), ceilings(run, c.position)
    for k, level in enumerate(run.levels):
        onset, emergence = step(onsets[k, c.layer]), step(emerged[c.behaviour][k])
        seen = curve(run.rows, level, "accuracy_train") if config["train_fraction"] < 1 else ([], [])
        ceiling = int(limit[k])
        interval = lead_interval(run.steps.tolist(), onset, emergence)
        task, _, number = level.rpartition("-")
        out.append({
            "size": config["size"], "parameters": config["parameters"], "seed": config["seed"], "level": level,
            "task": task, "difficulty": int(number), "control": level.startswith("sham-"),
            "floor": float(floors[k, c.layer]), "ceiling": ceiling, "floor_share": float(floors[k, c.layer]) / ceiling,
            "floor_step": int(floor_steps[k, c.layer]), "start": float(run.rankme[c.position][k, c.layer, 0]), "onset": onset, "emergence": emergence,
            "emergence_accuracy": step(emerged["accuracy"][k]), "emergence_log_prob": step(emerged["log_prob"][k]),
            "memorised": emergence_step(*seen, config["chance"][level], c.threshold, c.persistence, config["eval_examples"]),
            "lead": lead_time(onset, emergence), "lead_low": interval and interval[0], "lead_high": interval and interval[1],
            "top_down_floor": float(down_floor[k]), "top_down_time": float(down_time[k]),
            "final_accuracy": float(curve(run.rows[-1:], level, "accuracy")[1][-1]), "last_step": int(run.steps[-1]),
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


class Dates(NamedTuple):
    """The events of all runs as arrays (R, L), infinity for "never"; the shams are left out, or, if asked for, the only ones in it."""
    onset: np.ndarray
    emergence: np.ndarray
    floor: np.ndarray
    start: np.ndarray                 # RankMe of the untrained model
    down_floor: np.ndarray            # share of layer pairs whose deeper one has the lower floor
    down_time: np.ndarray             # ... reaches it first
    tasks: tuple                      # (L,) names of the tasks
    parameters: np.ndarray            # (R,)
    runs: list
    choices: Choices


def dates(runs, choices=Choices(), shams=False):
    """All runs have the same task-levels (one sweep); snapshots and numbers of layers may differ."""
    c, columns = choices, []
    chosen = _places(runs[0], shams)
    for run in runs:
        floor, _, onset, *down = (x[chosen] for x in _geometry(run, c.position, c.smoothing, c.rise, c.persistence, c.warmup))
        columns.append((onset[:, c.layer], _behaviour(run, c.behaviour, c.threshold, c.persistence, c.warmup)[chosen], floor[:, c.layer],
                        run.rankme[c.position][chosen, c.layer, 0], *down))
    return Dates(*(np.array(column) for column in zip(*columns)), tuple(runs[0].levels[k].rpartition("-")[0] for k in chosen),
                 np.array([run.config["parameters"] for run in runs]), runs, c)


# ---------------------------------------------------------------------------------------------------------------
# What chance gives.  A statistic takes Dates and Shuffles and returns (M,) numbers: of the data as they are, then of
# M - 1 data sets in which what the claim is about has been shuffled.

class Shuffles(NamedTuple):
    tasks: np.ndarray                 # (M, L): whose geometry each task-level gets: tasks exchanged within a level, alike in all runs
    runs: np.ndarray                  # (M, R): runs exchanged, and so the sizes
    upside_down: np.ndarray           # (M, R) bool: the layers of a run in reverse order


def shuffles(levels, num_runs, count, seed=0):
    """`count` data sets, the first as it is.  Levels of one task are ordered by difficulty and not exchangeable; tasks within a level are,
    if geometry and behaviour have nothing to do with each other.  One permutation serves all runs, for seeds repeat what tasks do.
    levels: names such as "add-1".  Every row of tasks (a level's number stays what it is) and of runs is a random permutation of indices, all of
    them equally likely; each layer order is reversed with probability 1/2.  Returns Shuffles; the same seed gives the same.
    Exercise: emergence.shuffles (set 4, 10 points)
    Hint: np.random.default_rng(seed); rng.permuted(x, axis=1) shuffles each row of x by itself.

    >>> shuffles(("add-1", "add-2", "copy-1"), 2, 50).tasks[:, 1].tolist() == [1] * 50       # the only one of its level
    True
    """
    rng, number = np.random.default_rng(seed), np.array([level.rpartition("-")[2] for level in levels])
    tasks = np.tile(np.arange(len(levels)), (count, 1))
    for k in np.unique(number):
        (where,) = (number == k).nonzero()
        tasks[1:, where] = rng.permuted(np.tile(where, (count - 1, 1)), axis=1)
    runs = np.tile(np.arange(num_runs), (count, 1))
    runs[1:] = rng.permuted(runs[1:], axis=1)
    upside_down = rng.random((count, num_runs)) < 0.5
    upside_down[0] = False
    return Shuffles(tasks, runs, upside_down)


def collapse_rate(d, s):
    """Share of task-levels whose RankMe loses at least half of what it has above 1, the least there can be."""
    return _collapsed(d).mean(keepdims=True).ravel()


def _collapsed(d):
    return (d.floor - 1 <= (d.start - 1) / 2).astype(float)


def _by_size(d):
    return [d.parameters == p for p in np.unique(d.parameters)]


def floor_ratio(d, s):
    """Floor at the largest size over floor at the smallest: geometric mean over task-levels.  Null: sizes exchanged between runs."""
    sizes = _by_size(d)
    if len(sizes) < 2:
        return np.full(1, math.nan)
    level = np.log(d.floor).mean(1)[s.runs]                                     # (M, R)
    return np.exp(level[:, sizes[-1]].mean(1) - level[:, sizes[0]].mean(1))


def _top_down_cells(down, d, s):
    """Share of task x size cells that are top-down, on average over levels and seeds.  Null: layers in reverse, run by run."""
    by_task = np.array([down[:, [t == task for t in d.tasks]].mean(1) for task in dict.fromkeys(d.tasks)]).T       # (R, tasks)
    by_task = np.where(s.upside_down[:, :, None], 1 - by_task, by_task)         # (M, R, tasks)
    return np.mean([by_task[:, size].mean(1) > 0.5 for size in _by_size(d)], axis=(0, 2))


def precursor_rate(d, s):
    """Of the task-levels that emerge, the share whose onset came before: over all runs, for each of the M data sets.
        rate_m = #{(r, k): onset[r, s.tasks[m, k]] < emergence[r, k] < inf} / #{(r, k): emergence[r, k] < inf}
    d: Dates, infinity for "never"; an onset at the very step of emergence is not before it.  Returns (M,), nan where nothing emerges.
    Exercise: emergence.precursor_rate (set 4, 10 points)
    Hint: d.onset[:, s.tasks] has the shape (R, M, L).
    """
    emerges = np.isfinite(d.emergence)
    first = (d.onset[:, s.tasks] < d.emergence[:, None]) & emerges[:, None]     # (R, M, L)
    return first.sum((0, 2)) / (emerges.sum() or math.nan)


def _leads(d):
    """(R, L): 1 if geometry came first, 0 if not, NaN for what did not emerge."""
    return np.where(np.isfinite(d.emergence), d.onset < d.emergence, math.nan)


def risk_set_excess(d, s):
    """U of the risk-set test over all runs, in standard deviations of its own permutation distribution, and centred there: so it neither
    counts what the levels have in common nor takes the seeds, in which tasks repeat themselves, for independent."""
    U = np.zeros(len(s.tasks))
    for onset, emergence in zip(d.onset, d.emergence):
        x, risk, event = _risk_set(onset, emergence)
        pairs = (event - event.sum(0) / risk.sum(0) * risk) @ x.T.astype(float)               # (L, L): [k, whose onset k is given]
        U += pairs[np.arange(len(onset)), s.tasks].sum(1)
    spread = U.std()
    return (U - U.mean()) / spread if spread > 1e-9 else np.zeros_like(U)


def order_correlation(d, s):
    """Spearman's rho between the order of onsets and the order of emergence, mean over runs; what never came comes last."""
    rho = [spearman(ranks(onset)[s.tasks], ranks(emergence)) for onset, emergence in zip(d.onset, d.emergence)]
    return np.mean([r for r in rho if not np.isnan(r[0])] or [np.full(len(s.tasks), math.nan)], axis=0)


def difficulty(d):
    """(R, L): 0 easy, 1, 2 hard: terciles of the median emergence over the *other* runs of the size; -1 where there is none.
    Classes of a run's own dates would make precursors: what emerges late has had time for an onset."""
    out = np.full(d.emergence.shape, -1)
    for r in range(len(out)):
        others = (d.parameters == d.parameters[r]) & (np.arange(len(out)) != r)
        if others.any():
            out[r] = np.minimum((ranks(np.median(d.emergence[others], axis=0)) - 1) * 3 // out.shape[1], 2)
    return out


def within_class(d, s):
    """Concordance of onsets with emergence among task-levels of one difficulty class."""
    classes, pairs = difficulty(d), np.triu_indices(d.onset.shape[1], 1)
    alike, n = 0.0, 0.0
    for onset, emergence, c in zip(d.onset, d.emergence, classes):
        order, true = _order(onset), _order(emergence)
        i, j = (p[(c[pairs[0]] == c[pairs[1]]) & (c[pairs[0]] >= 0) & ~np.isnan(true[pairs])] for p in pairs)
        place = s.tasks[:, i] * len(c) + s.tasks[:, j]                          # (M, pairs): in the flattened table
        known = (~np.isnan(order)).take(place).sum(1)
        alike, n = alike + (known + np.nan_to_num(order).take(place) @ true[i, j]) / 2, n + known           # a tie counts one half
    return np.where(n > 0, alike / np.maximum(n, 1), math.nan) if np.any(n) else np.full(1, math.nan)


def swap_rate(d, s):
    """Pairs of task-levels that emerge in one order at one size and in the other order at another size: the share whose onsets have the
    order of emergence at both.  Medians over seeds.  An order drawn by lot gets a quarter right."""
    onset, emergence = ([_order(np.median(x[size], axis=0)) for size in _by_size(d)] for x in (d.onset, d.emergence))
    right, n = 0.0, 0
    for a, b in itertools.combinations(range(len(emergence)), 2):
        i, j = np.triu(emergence[a] * emergence[b] == -1).nonzero()             # the pairs that sizes a and b put in opposite orders
        alike = [order[s.tasks[:, i], s.tasks[:, j]] == true[i, j] for order, true in ((onset[a], emergence[a]), (onset[b], emergence[b]))]
        right, n = right + (alike[0] & alike[1]).sum(1), n + len(i)
    return right / n if n else np.full(1, math.nan)


# ---------------------------------------------------------------------------------------------------------------
# Measures that are taken at a few snapshots only

RARE = {"gradient_rank": ("gradient_rank",), "fisher_rank": ("fisher_rank",), "hessian_top": ("hessian_top", "eigenvalue"), "llc": ("llc", "mean"),
        "linear_probe": ("linear_probe", -2)}                                   # name -> where its number stands in a row


def rise_index(values, share=0.2):
    """Where a measure has begun to rise: index of the first of two snapshots in a row, behind its lowest value, that have gone 20% of the way
    from there to the highest value after it; -1 for never.  One rule for measures of any unit.

    >>> int(rise_index(np.array([9., 1., 1., 1.5, 4., 5., 9.])))
    4
    """
    low = int(np.nanargmin(values))
    top = np.nanmax(values[low:])
    return _first_run((np.arange(len(values)) > low) & (values >= values[low] + share * (top - values[low])) & (top > values[low]), 2)


def rare_dates(d, name):
    """Dates of one rare measure on its own grid of snapshots: -> (Dates of the runs that have it, the same for RankMe, their grids).

    A quantity that is looked at rarely looks late, so emergence is put on the same grid: the first of its snapshots that is not before it.
    RankMe is dated there by the rule of the others, `rise_index`.  LLC: negative values, at points that are no minimum, are left out.
    The linear probe has emerged when it is above the untrained model's and above its own on shuffled labels by `threshold` of the way to 1.
    """
    c, chosen, mine, rankme, emergence, grids = d.choices, [], [], [], [], []
    for r, run in enumerate(d.runs):
        real = _places(run)
        curves = [curve(run.rows, run.levels[k], *RARE[name]) for k in real]
        if len(curves[0][0]) < 3:
            continue
        grid = np.array(curves[0][0])
        at = np.searchsorted(run.steps, grid)
        dated = lambda i: np.inf if i < 0 else grid[i]
        columns = []
        for k, (steps, values) in zip(real, curves):
            values = np.array(values, dtype=float)
            if name == "linear_probe":
                base = np.maximum(values[0], curve(run.rows, run.levels[k], "linear_probe_shuffled")[1])
                i = _first_run((values - base) / np.maximum(1 - base, 1e-9) >= c.threshold, 2)
            else:
                values[(values < 0) & (name == "llc")] = math.nan
                i = rise_index(values) if (~np.isnan(values)).sum() > 2 else -1
            when = np.searchsorted(grid, d.emergence[r, real.index(k)])
            columns.append((dated(i), dated(rise_index(run.rankme[c.position][k, c.layer, at])), dated(when if when < len(grid) else -1)))
        for table, column in zip((mine, rankme, emergence), zip(*columns)):
            table.append(column)
        chosen.append(r)
        grids.append(grid)
    part = d._replace(emergence=np.array(emergence), parameters=d.parameters[chosen], runs=[d.runs[r] for r in chosen])
    return part._replace(onset=np.array(mine)), part._replace(onset=np.array(rankme)), grids


def rare_rate(name):
    """Statistic: share of the task-levels that emerge in which this measure rose at an earlier snapshot of its grid."""
    def statistic(d, s):
        mine = rare_dates(d, name)[0]
        return precursor_rate(mine, s) if len(mine.runs) else np.full(1, math.nan)
    return statistic


def compare_measures(d, s):
    """Lead and lag of every measure that was taken, with RankMe on the same grid beside it: a list of dicts."""
    out, classes = [], difficulty(d)
    for name in RARE:
        mine, rankme, grids = rare_dates(d, name)
        emerges = np.isfinite(mine.emergence) if grids else np.zeros(0, bool)
        if not emerges.any():
            continue
        rates, rate = precursor_rate(mine, s), clustered_interval(_leads(mine), d.tasks)
        both = emerges & np.isfinite(mine.onset)
        spans = [lead_interval(grids[r].tolist(), mine.onset[r, k], mine.emergence[r, k]) for r, k in zip(*both.nonzero())]
        lead = [float(np.median(ends)) for ends in zip(*spans)] or [None, None]
        out.append({"measure": name, "runs": len(grids), "snapshots": min(map(len, grids)), "events": int(emerges.sum()),
                    "first": int((mine.onset < mine.emergence)[emerges].sum()), "same": int((mine.onset == mine.emergence)[emerges].sum()),
                    "later_or_never": int((mine.onset > mine.emergence)[emerges].sum()), "rate": rate[0], "low": rate[1], "high": rate[2],
                    "null": float(rates[1:].mean()), "p": p_value(rates), "rankme_rate": float(precursor_rate(rankme, s)[0]),
                    "lead_low": lead[0], "lead_high": lead[1],
                    "classes": class_rates(mine, s, classes[[d.runs.index(run) for run in mine.runs]])})
    return out


# ---------------------------------------------------------------------------------------------------------------
# The claims of the paper

TASKS, LAYERS, SIZES = "tasks exchanged within a level", "layers in reverse", "sizes exchanged"
FLOOR = ("position", "layer", "smoothing", "warmup")                            # the choices that a floor depends on


@dataclass(frozen=True)
class Claim:
    key: str
    text: str
    v1: str                           # what the versions of the paper report
    v3: str
    v4: str
    statistic: Callable               # (Dates, Shuffles) -> (M,)
    holds: Callable                   # these numbers -> booleans: is it as the paper says?
    null: str = ""                    # what the Shuffles exchange
    kind: str = "describe"            # or "beyond": worth something only if chance gives less; or "chance": it says that prediction fails
    form: str = "{:.0%}"
    needs: str = ""                   # what a sweep must have for it
    interval: Callable = None         # Dates -> (mean, low, high)
    extremity: Callable = np.asarray  # what is compared with the null: large is far from chance
    reads: tuple = tuple(ALTERNATIVES)                                          # the choices that it depends on


def _over_runs(statistic):
    """Interval of a correlation that each run has one of; none is beyond -1 and 1."""
    def interval(d):
        one = Shuffles(np.arange(d.onset.shape[1])[None], np.zeros((1, 1), int), np.zeros((1, 1), bool))
        each = [statistic(d._replace(onset=d.onset[r:r + 1], emergence=d.emergence[r:r + 1]), one)[0] for r in range(len(d.runs))]
        if len(each) < 2:
            return each[0], math.nan, math.nan
        return tuple(np.clip(clustered_interval(np.array(each)[:, None], ("",), rate=False), -1, 1))
    return interval


def _ratio_interval(d):
    sizes = _by_size(d)
    if len(sizes) < 2:
        return math.nan, math.nan, math.nan
    level = np.log(d.floor[sizes[-1]]).mean(0) - np.log(d.floor[sizes[0]]).mean(0)
    return tuple(np.exp(clustered_interval(level[None], d.tasks, rate=False)))


def task_share(d, s):
    """Share of the variance of log floors, within a level, that lies between tasks: do the three levels of a task have floors alike?"""
    x = np.log(d.floor).mean(0)
    label = np.array([level.rpartition("-")[2] for level in _real(d.runs[0])])
    for k in np.unique(label):
        x[label == k] -= x[label == k].mean()
    x = x[s.tasks]                                                              # (M, L)
    if len(set(d.tasks)) < 2:
        return np.full(1, math.nan)
    between = sum(x[:, [t == task for t in d.tasks]].mean(1) ** 2 * d.tasks.count(task) for task in set(d.tasks))
    return between / np.maximum((x ** 2).sum(1), 1e-12)


def _events_interval(table):
    return lambda d: clustered_interval(table(d), d.tasks)


def _rare(name):
    return dict(statistic=rare_rate(name), null=TASKS, needs=f"--measures {name}",
                interval=lambda d: clustered_interval(_leads(rare_dates(d, name)[0]), d.tasks))


# The thresholds in `holds` are the lowest value that a version of the paper reports, or what its words mean at the least.
CLAIMS = (
    Claim("C1", "RankMe collapses, losing half of what it has above 1", "all tasks", "all tasks", "all tasks", collapse_rate,
          lambda x: x >= 0.9, interval=_events_interval(_collapsed), reads=FLOOR),
    Claim("C1 floor", "the floor depends on the task (share of its variance)", "yes", "yes", "yes", task_share, lambda x: x >= 0.5, TASKS, "beyond",
          needs="two tasks", reads=FLOOR),
    Claim("C2", "the floor does not depend on scale (largest / smallest)", "same at all", "same at all", "task-specific", floor_ratio,
          lambda x: (x > 0.8) & (x < 1.25), SIZES, form="{:.2f}", needs="two sizes", interval=_ratio_interval, extremity=lambda x: np.abs(np.log(x)),
          reads=FLOOR),
    Claim("C3 depth", "deeper layers have lower floors (task x size)", "32/32", "28/32", "top-down",
          lambda d, s: _top_down_cells(d.down_floor, d, s), lambda x: x >= 0.87, LAYERS, "beyond", reads=FLOOR),
    Claim("C3 time", "deeper layers reach their floors first (task x size)", "32/32", "28/32", "top-down",
          lambda d, s: _top_down_cells(d.down_time, d, s), lambda x: x >= 0.87, LAYERS, "beyond", reads=FLOOR),
    Claim("C4", "RankMe recovers before emergence", "75-100%", "100%", "hard tasks only", precursor_rate, lambda x: x >= 0.75, TASKS, "beyond",
          interval=_events_interval(_leads), needs="an emergence"),
    Claim("C4 risk set", "those that have recovered emerge sooner (z)", "-", "-", "-", risk_set_excess, lambda x: x > 1.645,
          TASKS, "beyond", "{:.1f}"),
    Claim("C5", "the LLC does not lead (share that it does)", "0/24", "0/24", "no precursor", holds=lambda x: x <= 0.25, **_rare("llc")),
    Claim("C6", "the top Hessian eigenvalue does not lead", "about 17%", "lags", "no precursor", holds=lambda x: x <= 0.25, **_rare("hessian_top")),
    Claim("C7", "order of onsets and of emergence go together (rho)", ".57-.90", ".57-.90", "-", order_correlation, lambda x: x >= 0.57,
          TASKS, "beyond", "{:.2f}", "an emergence", _over_runs(order_correlation)),
    Claim("C7 fine", "but not within a difficulty class (concordance)", "27%", "52-69%", "-", within_class, lambda x: x <= 0.69, TASKS, "chance",
          needs="two seeds of a size, and several task-levels in a class"),
    Claim("C8", "where sizes reverse an order, prediction fails (swap test)", "26%", "26%", "-", swap_rate, lambda x: x <= 0.5, TASKS, "chance",
          needs="two sizes that reverse an order"),
    Claim("C10", "a linear probe finds the answer before behaviour does", "-", "-", "yes", holds=lambda x: x >= 0.5, kind="beyond",
          **_rare("linear_probe")),
)
RARELY = ("C5", "C6", "C10")          # taken at too few snapshots for the multiverse to vary anything


def p_value(values, extremity=np.asarray):
    """How often chance is at least as far out as what was observed, which counts as one of the data sets.
        p = #{m: extremity(values_m) >= extremity(values_0) - 1e-9} / M
    values: (M,), of the observed data, then of M - 1 shuffled ones (NaN there: not far out).  None for M < 2, or if the observed one is NaN.
    Exercise: emergence.p_value (set 4, 5 points)
    Hint: so it is never 0, but 1 / M at the least: the data as they are belong to what could have happened.

    >>> p_value(np.array([2.0, 1.0, 3.0, 2.0]))
    0.75
    """
    if len(values) < 2 or math.isnan(values[0]):
        return None
    x = extremity(values)
    return float((x >= x[0] - 1e-9).mean())


def judge(claim, d, value, p, information):
    """The verdict in plain words.  p: Holm's, over all claims."""
    as_claimed, tasks = bool(claim.holds(value)), len(set(d.tasks))
    if math.isnan(value):
        return f"cannot tell: needs {claim.needs}"
    if claim.null == TASKS and tasks < 2:
        return "cannot tell: a single task has no other to be exchanged with"
    if claim.null == LAYERS and len(d.runs) < 5:
        return f"{'as claimed' if as_claimed else 'not as claimed'}; {len(d.runs)} of the 5 runs that it takes to tell it from chance"
    if claim.key == "C4 risk set" and information < 5:
        return f"cannot tell: information {information:.1f}, below 5"
    if claim.kind == "describe":
        return "holds" if as_claimed else "does not hold"
    if claim.kind == "chance":
        return "holds: no better than chance" if p >= 0.05 else "does not hold: better than chance"
    if as_claimed:
        return "holds, and beyond chance" if p < 0.05 else "as claimed, but chance gives it too"
    return "weaker than claimed, but beyond chance" if p < 0.05 else "does not hold"


def lead_check(d, shams):
    """The risk-set test over all runs, each a stratum of its own, with its formula's z and information; and the false alarms of the shams.
    (z takes the runs for independent; the tasks in them are the same, so the verdict is left to the permutations of `risk_set_excess`.)"""
    U, V = (sum(column) for column in zip(*(risk_set_sums(*pair) for pair in zip(d.onset, d.emergence))))
    warmup = np.array([[run.config["warmup"]] for run in d.runs])               # (R, 1)
    return {"z": U / math.sqrt(V) if V > 0 else math.nan, "information": V, "shams": shams.onset.size,
            "sham_onsets": int(np.isfinite(shams.onset).sum()), "sham_emergences": int(np.isfinite(shams.emergence).sum()),
            "warmup": float(np.median(warmup)), "median_onset": float(np.median(d.onset)), "onsets_in_warmup": float(np.mean(d.onset < warmup))}


def class_rates(d, s, classes):
    """Precursor rate by difficulty class, (R, L), each beside the null of that class."""
    out = []
    for k, name in enumerate(("easy", "middle", "hard")):
        among = d._replace(emergence=np.where(classes == k, d.emergence, np.inf))
        if np.isfinite(among.emergence).any():
            rates, (rate, low, high) = precursor_rate(among, s), clustered_interval(_leads(among), d.tasks)
            out.append({"class": name, "events": int(np.isfinite(among.emergence).sum()), "rate": rate, "low": low, "high": high,
                        "null": float(rates[1:].mean()), "p": p_value(rates)})
    return out


def floors_across_sizes(d):
    """How much floors vary: coefficient of variation over sizes (of one task-level), over seeds (of one size), over tasks (of one level); and the
    ratio of C2 with each floor as a share of its ceiling."""
    cv = lambda x: float(np.mean(x.std(0) / x.mean(0))) if len(x) > 1 else None
    sizes = np.array([d.floor[size].mean(0) for size in _by_size(d)])           # (K, L)
    seeds = [cv(d.floor[size]) for size in _by_size(d) if size.sum() > 1]
    levels = np.array([level.rpartition("-")[2] for level in _real(d.runs[0])])
    limit = np.array([ceilings(run, d.choices.position)[_places(run)] for run in d.runs])
    share = _ratio_interval(d._replace(floor=d.floor / limit))[0]
    return {"over_sizes": cv(sizes), "over_seeds": float(np.mean(seeds)) if seeds else None,
            "over_tasks": float(np.mean([cv(sizes[:, levels == k].T) or 0 for k in np.unique(levels)])) if len(set(d.tasks)) > 1 else None,
            "ratio_of_shares": None if math.isnan(share) else float(share)}


def multiverse(runs, count=501, seed=0):
    """Every claim under every combination of ALTERNATIVES, on the data and on count - 1 shuffled data sets (specification-curve inference,
    Simonsohn, Simmons & Nelson 2020).

    -> (specifications, values): a list of Choices, and claim -> (specifications, M) numbers, for the claims that vary.
    """
    specifications = [Choices(**dict(zip(ALTERNATIVES, values))) for values in itertools.product(*ALTERNATIVES.values())]
    s, found, values = shuffles(_real(runs[0]), len(runs), count, seed), {}, {claim.key: [] for claim in CLAIMS if claim.key not in RARELY}
    for choices in specifications:
        d = dates(runs, choices)
        for claim in CLAIMS:
            if claim.key in values:
                what = (claim.key, *(getattr(choices, axis) for axis in claim.reads))
                if what not in found:
                    found[what] = np.broadcast_to(claim.statistic(d, s), count)
                values[claim.key].append(found[what])
    return specifications, {key: np.array(v) for key, v in values.items()}


def robustness(claim, specifications, values):
    """Under which share of the choices a claim holds; how often shuffled data reach that share; which choice decides."""
    holds = np.where(np.isnan(values), False, claim.holds(values))              # (specifications, M)
    share = holds.mean(0)
    options = {axis: {str(option): float(holds[[getattr(c, axis) == option for c in specifications], 0].mean()) for option in choices}
               for axis, choices in ALTERNATIVES.items()}
    swing = {axis: max(shares.values()) - min(shares.values()) for axis, shares in options.items()}
    if np.isnan(values[:, 0]).all():
        return {}
    return {"share": float(share[0]), "p_multiverse": p_value(share) if claim.null and claim.kind == "beyond" else None, "options": options,
            "decides": max(swing, key=swing.get) if max(swing.values()) > 0.1 else None}


def study(runs, choices=Choices(), universe=None, count=2001):
    """Everything that the runs of one sweep have to say: a dict for findings.json.  universe: what `multiverse` returned, or None."""
    d, shams = dates(runs, choices), dates(runs, choices, shams=True)
    s, check, rows = shuffles(_real(runs[0]), len(runs), count), lead_check(d, shams), []
    for claim in CLAIMS:
        values = claim.statistic(d, s)
        _, low, high = claim.interval(d) if claim.interval and not math.isnan(values[0]) else (None, None, None)
        rows.append({"claim": claim.key, "text": claim.text, "v1": claim.v1, "v3": claim.v3, "v4": claim.v4,
                     "value": float(values[0]), "low": low, "high": high,
                     "null": float(np.mean(values[1:])) if len(values) > 1 and claim.null else None, "exchanged": claim.null or None,
                     "p": p_value(values, claim.extremity) if claim.null else None,
                     **(robustness(claim, universe[0], universe[1][claim.key]) if universe and claim.key in universe[1] else {})})
    for row, claim, p in zip(rows, CLAIMS, holm([row["p"] for row in rows])):
        depends = f"; depends on {row['decides']}" if row.get("decides") and 0.1 < row["share"] < 0.9 else ""
        row |= {"p_holm": p, "verdict": judge(claim, d, row["value"], p, check["information"]) + depends}
    return {"claims": rows, "lead_check": check, "classes": class_rates(d, s, difficulty(d)), "measures": compare_measures(d, s),
            "floor_variation": floors_across_sizes(d),
            **{f"top_down_{key}": clustered_interval(table, d.tasks) for key, table in (("floor", d.down_floor), ("time", d.down_time))},
            "specifications": len(universe[0]) if universe else 0}


# ---------------------------------------------------------------------------------------------------------------
# Figures.  Each takes the runs and what `study` and `multiverse` returned, and gives {name: Figure}.  Colours are those of Okabe and Ito,
# which colour-blind readers can tell apart; what matters differs in line style or marker too, so that it survives a black-and-white printer.

ACCURACY, RANKME, CONTROL = "#D55E00", "#0072B2", "0.6"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^")


def _grid(runs):
    """What the panels of a figure are: [(figure's name, [(row's name, runs of that row, levels of that row)])].

    One task: one figure, a row per size.  Several tasks: one figure per size, a row per task."""
    sizes = dict.fromkeys(run.config["size"] for run in sorted(runs, key=lambda run: run.config["parameters"]))
    tasks = {}
    for level in _real(runs[0]):
        tasks.setdefault(level.rpartition("-")[0], []).append(level)
    of_size = lambda name: [run for run in runs if run.config["size"] == name]
    if len(tasks) == 1:
        (levels,) = tasks.values()
        return [("", [(name, of_size(name), levels) for name in sizes])]
    return [(f"-{name}", [(task, of_size(name), levels) for task, levels in tasks.items()]) for name in sizes]


def _sheet(columns, rows, width, height, top, left=0.5, right=0.1):
    """A figure of so many panels of width x height inches, room for labels round them: (Figure, margins for add_gridspec).  By hand, for
    matplotlib's layout engines take as long for 50 panels as drawing them."""
    w, h = columns * width + left + right, rows * height + 0.4 + top
    return Figure(figsize=(w, h)), dict(left=left / w, right=1 - right / w, bottom=0.4 / h, top=1 - top / h)


def _panel(ax, title, level):
    ax.set_title(level if title in level else f"{title}   {level}", fontsize=8, pad=3)


def _steps_axis(ax, last):
    ax.set_xscale("symlog", linthresh=10, linscale=0.6)                     # step 0 has a place, the first steps have room
    ax.set_xlim(0, last)
    ticks = [0] + [10 ** k for k in range(1, 7) if 10 ** k <= last]
    ax.set_xticks(ticks, [f"{t:,}" for t in ticks], minor=False)
    ax.minorticks_off()
    ax.tick_params(labelsize=7)


def _rank_axis(ax, top):
    ax.set_yscale("log", base=2)
    ticks = [2 ** k for k in range(11) if 2 ** k <= top]
    ax.set_yticks(ticks, map(str, ticks))
    ax.set_ylim(0.9, 1.4 * top)


def _common(curves):
    """[(steps, values)] -> the steps that all have, and the values there (curves, S, ...)."""
    steps = sorted(set.intersection(*(set(steps) for steps, _ in curves)))
    return steps, np.array([np.asarray(v, dtype=float)[np.isin(s, steps)] for s, v in curves])


def _band(ax, curves, colour, **style):
    """Median and range over seeds."""
    steps, values = _common(curves)
    if len(values) > 1:
        ax.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.25, linewidth=0)
    ax.plot(steps, np.median(values, 0), color=colour, **{"linewidth": 1.3, **style})


def figure_curves(runs, choices=Choices(), **_):
    """Accuracy and RankMe against steps, one panel for each task-level.

    Median over seeds as a line, range as a band; emergence a solid vertical line, recovery onset a dashed one, both at
    the median over the seeds that have them; controls in grey."""
    figures, memorising = {}, any(run.config["train_fraction"] < 1 for run in runs)
    rankme = lambda run, level: (run.steps, run.rankme[choices.position][run.levels.index(level), choices.layer])
    accuracy = lambda run, level: (run.steps, run.accuracy[run.levels.index(level)])
    for name, grid in _grid(runs):
        columns = max(len(levels) for _, _, levels in grid)
        figure, margins = _sheet(columns, len(grid), 2.45, 1.75, top=0.5)
        panels = figure.add_gridspec(len(grid), columns, wspace=0.13, hspace=0.32, **margins)
        for i, (title, group, levels) in enumerate(grid):
            dated = {s["level"]: s for s in summarise([e for run in group for e in events(run, choices)])}
            controls = [level for level in dated if dated[level]["control"]]
            for j, level in enumerate(levels):
                upper, lower = panels[i, j].subgridspec(2, 1, hspace=0).subplots(sharex=True)
                for ax, values in ((upper, accuracy), (lower, rankme)):
                    for sham in controls:
                        _band(ax, [values(run, sham) for run in group], CONTROL, linewidth=0.7)
                    _band(ax, [values(run, level) for run in group], ACCURACY if ax is upper else RANKME)
                    for key, colour, dashes in (("emergence", ACCURACY, "-"), ("onset", RANKME, "--")):
                        if dated[level][key]:
                            ax.axvline(dated[level][key]["median"], color=colour, linestyle=dashes, linewidth=0.9, alpha=0.9)
                    ax.spines[["top", "right"]].set_visible(False)
                if memorising:
                    _band(upper, [curve(run.rows, level, "accuracy_train") for run in group], ACCURACY, linestyle=":")
                _steps_axis(lower, max(run.steps[-1] for run in group))
                upper.tick_params(labelsize=7, labelbottom=False)
                upper.set_ylim(-0.03, 1.03)
                upper.set_yticks([0, 1])
                _rank_axis(lower, max(np.nanmax(rankme(run, x)[1]) for run in group for x in (level, *controls)))
                _panel(upper, title, level)
                if j == 0:
                    upper.set_ylabel("accuracy", fontsize=7)
                    lower.set_ylabel("RankMe", fontsize=7)
                if i == len(grid) - 1:
                    lower.set_xlabel("training step", fontsize=8)
        key = [Line2D([], [], color=ACCURACY, linestyle="-", label="accuracy on unseen operands; emergence" if memorising else "accuracy; emergence"),
               Line2D([], [], color=RANKME, linestyle="--", label="RankMe (solid); its recovery onset (dashed)")]
        if memorising:
            key.insert(1, Line2D([], [], color=ACCURACY, linestyle=":", label="on seen ones"))
        if controls:
            key.append(Line2D([], [], color=CONTROL, label="sham controls"))
        figure.legend(handles=key, loc="upper center", ncols=len(key), fontsize=8, frameon=False)
        figures[f"curves{name}"] = figure
    return figures


def figure_layers(runs, choices=Choices(), **_):
    """RankMe of every layer (upwards) against steps (to the right), median over seeds."""
    figures = {}
    for name, grid in _grid(runs):
        columns = max(len(levels) for _, _, levels in grid)
        figure, margins = _sheet(columns, len(grid), 2.3, 1.15, top=0.25, left=0.75, right=0.75)
        axes = figure.subplots(len(grid), columns, squeeze=False, gridspec_kw=dict(wspace=0.1, hspace=0.5, **margins))
        for i, (title, group, levels) in enumerate(grid):
            dated = {s["level"]: s for s in summarise([e for run in group for e in events(run, choices)])}
            for j, level in enumerate(levels):
                ax = axes[i][j]
                steps, values = _common([(run.steps, run.rankme[choices.position][run.levels.index(level)].T) for run in group])
                values = np.median(values, axis=0)                              # (S, layers)
                layers = values.shape[1]
                edges = np.append(steps, steps[-1] + 1), np.arange(layers + 1) - 0.5
                mesh = ax.pcolormesh(*edges, values.T, cmap="viridis", norm=LogNorm(1, 32), rasterized=True)
                if dated[level]["emergence"]:
                    ax.axvline(dated[level]["emergence"]["median"], color="white", linewidth=1)
                _steps_axis(ax, steps[-1])
                labels = ["embedding", *map(str, range(1, layers - 1)), "final norm"]
                some = [0, *range(1, layers - 1, max(1, (layers - 2) // 4)), layers - 1]
                ax.set_yticks(some, [labels[k] for k in some] if j == 0 else [], fontsize=6)
                _panel(ax, title, level)
                if i == len(grid) - 1:
                    ax.set_xlabel("training step", fontsize=8)
        beside = figure.add_axes((margins["right"] + 0.012, margins["bottom"], 0.012, margins["top"] - margins["bottom"]))
        bar = figure.colorbar(mesh, cax=beside, ticks=[1, 2, 4, 8, 16, 32])
        bar.ax.set_yticklabels(["1", "2", "4", "8", "16", "32"], fontsize=7)
        bar.ax.minorticks_off()
        bar.set_label("RankMe\n(white: emergence)", fontsize=8)
        figures[f"layers{name}"] = figure
    return figures


def figure_floors(runs, choices=Choices(), **_):
    """The floor of RankMe against the number of parameters, a line for each task-level, bars for the range over seeds."""
    dated = summarise([e for run in runs for e in events(run, choices)])
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
    _rank_axis(ax, max(4.5, max(s["floor"]["high"] for s in dated)))
    sizes = sorted({(s["parameters"], s["size"]) for s in dated})
    ax.set_xticks([p for p, _ in sizes], [f"{name}\n{p / 1e6:.1f}M" for p, name in sizes])
    ax.minorticks_off()
    ax.set_xlim(sizes[0][0] / 2, sizes[-1][0] * 2)
    ax.set_ylabel(f"floor of RankMe ({choices.position} answer token)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=6 if len(levels) > 6 else 8, ncols=1 + len(levels) // 13, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return {"floors": figure}


def figure_measures(runs, choices=Choices(), **_):
    """Every measure along the training of each task-level that emerges, with emergence at 1 on the step axis, and each curve scaled to its
    own range: median and middle half over all of them."""
    d, x = dates(runs, choices), np.linspace(-2, 1, 61)                         # log10 of step / emergence
    scaled = {name: [] for name in ("accuracy", "rankme", *RARE)}
    for run, emergences in zip(runs, d.emergence):
        for level, emergence in zip(_real(run), emergences):
            if not 0 < emergence < math.inf:
                continue
            k = run.levels.index(level)
            curves = {"accuracy": (run.steps, run.accuracy[k]), "rankme": (run.steps, run.rankme[choices.position][k, choices.layer]),
                      **{name: curve(run.rows, level, *path) for name, path in RARE.items()}}
            for name, (steps, values) in curves.items():
                steps, values = (np.array(v, dtype=float)[1:] for v in (steps, values))             # step 0 has no logarithm
                if len(values) > 2 and np.ptp(values) > 0:
                    at = np.log10(steps / emergence)
                    scaled[name].append(np.interp(x, at, (values - values.min()) / np.ptp(values), left=math.nan, right=math.nan))
    shown = [name for name in scaled if scaled[name]]
    if not shown:
        return {}
    columns = min(4, len(shown))
    figure = Figure(figsize=(2.1 * columns + 0.4, 1.75 * -(-len(shown) // columns) + 0.3), layout="constrained")
    axes = figure.subplots(-(-len(shown) // columns), columns, squeeze=False, sharex=True, sharey=True)
    for ax, name in itertools.zip_longest(axes.flat, shown):
        if name is None:
            ax.remove()
            continue
        seen = np.array(scaled[name])
        there = (~np.isnan(seen)).sum(0) >= max(1, len(seen) // 3)              # a median of few is none
        low, middle, high = np.nanquantile(seen[:, there], (0.25, 0.5, 0.75), axis=0)
        colour = ACCURACY if name == "accuracy" else RANKME
        ax.fill_between(10 ** x[there], low, high, color=colour, alpha=0.25, linewidth=0)
        ax.plot(10 ** x[there], middle, color=colour, linewidth=1.3)
        ax.axvline(1, color=ACCURACY, linewidth=0.9)
        ax.set_xscale("log")
        ax.set_xticks([0.01, 0.1, 1, 10], [".01", ".1", "1", "10"], fontsize=7)
        ax.set_yticks([0, 1], ["lowest", "highest"], fontsize=7)
        ax.set_title(f"{name.replace('_', ' ')} ({len(seen)} curves)", fontsize=8, pad=3)
        ax.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("training step / step of emergence", fontsize=8)
    return {"measures": figure}


def figure_choices(runs, findings=None, universe=None, **_):
    """The multiverse.  Left: the precursor rate (C4) under every combination of choices, sorted, above what shuffled tasks give under the
    same choices.  Right: under which share of the combinations each claim holds, option by option: a row with unequal cells decides."""
    if not universe or np.isnan(universe[1]["C4"]).all():
        return {}
    rates, claims = universe[1]["C4"], [row for row in findings["claims"] if "options" in row and not math.isnan(row["value"])]
    options = [(axis, str(option)) for axis, some in ALTERNATIVES.items() for option in some]
    figure = Figure(figsize=(9.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    order = np.lexsort((np.median(rates[:, 1:], axis=1), rates[:, 0]))
    low, middle, high = np.quantile(rates[order, 1:], (0.025, 0.5, 0.975), axis=1)
    left.fill_between(range(len(order)), low, high, color=CONTROL, alpha=0.4, linewidth=0, label="tasks exchanged: middle 95%")
    left.plot(middle, color="0.4", linewidth=0.8, linestyle="--", label="tasks exchanged: median")
    left.plot(rates[order, 0], color=RANKME, linewidth=1.6, label="observed")
    left.axhline(0.75, color=ACCURACY, linewidth=0.9, linestyle=":", label="lowest rate in the paper")
    left.set(xlabel=f"{len(order)} combinations of choices, sorted", ylabel="share of emergences with RankMe first", ylim=(-0.02, 1.02))
    left.legend(fontsize=7, frameon=False, loc="lower right")
    left.spines[["top", "right"]].set_visible(False)
    cells = np.array([[row["options"][axis][option] for row in claims] for axis, option in options])
    right.imshow(cells, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for (i, j), value in np.ndenumerate(cells):
        right.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5, color="white" if value > 0.8 else "black")
    right.set_xticks(range(len(claims)), [row["claim"].replace(" ", "\n") for row in claims], fontsize=7)
    right.set_yticks(range(len(options)), [f"{axis} {option}" for axis, option in options], fontsize=7)
    for first in (i for i, (axis, option) in enumerate(options) if option == str(ALTERNATIVES[axis][0]) and i):
        right.axhline(first - 0.5, color="black", linewidth=0.6)
    right.set_title("% of the combinations with this option under which a claim holds", fontsize=8)
    right.tick_params(length=0)
    return {"choices": figure}


FIGURES = {"curves": figure_curves, "layers": figure_layers, "floors": figure_floors, "measures": figure_measures, "choices": figure_choices}
