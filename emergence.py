"""Chapter 4: emergence.  When a capability emerges, what came before it, and how sure one can be.

The input is curves: a number per snapshot of training.  The output is dates (a step, or None for
"never") and tests of what they say.  Try it on curves drawn by hand, or your own (`from_table`):

    >>> steps    = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    >>> accuracy = [0,  0,  0,  0,  0,  0, .2, .7, .9,  1]
    >>> rank     = [8,  5,  3,  2,  2,  3,  4,  6,  7,  8]
    >>> emergence_step(steps, accuracy), collapse(steps, rank)
    (70, Collapse(floor=2.0, floor_step=30, onset_step=50))
    >>> lead_time(50, 70)
    20

The paper (Billa 2026, arXiv 2602.15997) tells a story of three moments.  This file dates them:

    collapse      training begins, and RankMe of the hidden states falls to a *floor*
    onset         the representation recovers: RankMe rises clearly above its floor
    emergence     the model answers clearly better than chance

If the onset comes first, geometry "leads".  The onset of *another* task might have come first as
well: so this file also says what chance gives.  What can go wrong:

    An onset that is early for every task comes before everything, and says nothing.
    A sharp rise may be the metric's own: compare "log_prob" (Schaeffer 2023, arXiv 2304.15004).
    A measure that is looked at rarely looks late.

This file knows nothing of models, of run directories, of figures, and of what the paper claims.

Letters for shapes:  R runs, L task-levels of a run, S snapshots, G snapshots of a rare measure,
M data sets (the observed one, then M - 1 in which something was exchanged at random).
"""
import functools
import math
import re
import statistics
import warnings
from dataclasses import dataclass, replace
from typing import Iterable, NamedTuple, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


# ------------------------------------------------------------------------------------------------
# Dates on one curve.  `emergence_index` and `recovery` take any number of curves at once, (..., S),
# and answer with indices, -1 for "never".

def _first_run(flags, persistence):
    """Where the first `persistence` True in a row begin; -1 where there are none."""
    if flags.shape[-1] < persistence:
        return np.full(flags.shape[:-1], -1)
    in_a_row = sliding_window_view(flags, persistence, axis=-1).all(-1)
    return np.where(in_a_row.any(-1), in_a_row.argmax(-1), -1)


def emergence_index(values, chance, examples, threshold, persistence):
    """Index of the first of `persistence` snapshots in a row clearly above chance; -1 for never.

        (values - chance) / (1 - chance) >= bar - 1e-12
        bar = max(threshold, 3 sqrt(chance / (1 - chance) / examples))

    values: (..., S); NaN, not measured, counts as "no".  chance: in [0, 1), a number or (..., 1).
    examples: how many the values were measured on; None: the bar is the threshold alone.
    1e-12 is for rounding: a value that is on the bar counts.  Returns integers, (...).
    Exercise: emergence.emergence_index (set 4, 10 points)
    Hint: _first_run(flags, persistence) does the counting in a row.

    >>> curves = np.array([[.5, .6, .9, .9], [.5, .9, .6, .9]])
    >>> emergence_index(curves, 0.5, None, 0.3, 2).tolist()
    [2, -1]
    """
    bar = threshold
    if examples:
        bar = np.maximum(threshold, 3 * np.sqrt(chance / (1 - chance) / examples))
    return _first_run((values - chance) / (1 - chance) >= bar - 1e-12, persistence)


def emergence_step(steps: Sequence, accuracy: Sequence, chance: float = 0.0,
                   threshold: float = 0.3, persistence: int = 3,
                   examples: int | None = None) -> int | None:
    """The step from which a model is clearly above chance, by `emergence_index`; None for never.

    accuracy: a number in [0, 1] per step, None where it was not measured.
    Raises ValueError if lengths differ, steps do not increase, or chance is not in [0, 1)."""
    values = _as_curve(steps, accuracy, "emergence_step")
    if not 0 <= chance < 1:
        raise ValueError(f"emergence_step: chance {chance}: expected at least 0 and below 1")
    index = emergence_index(values, chance, examples, threshold, persistence)
    return None if index < 0 else steps[index]


def _as_curve(steps, values, name):
    if len(steps) != len(values):
        raise ValueError(f"{name}: {len(steps)} steps but {len(values)} values")
    if any(later <= earlier for earlier, later in zip(steps, steps[1:])):
        raise ValueError(f"{name}: the steps must increase")
    return np.array(values, dtype=float)                                    # None becomes NaN


def recovery(smooth, rise, persistence):
    """The floor of a smoothed curve, and where the curve leaves it.

        floor = min_t x_t, first reached at index low
        onset = first of `persistence` indices t > low in a row with x_t >= (1 + rise) floor

    smooth: (..., S), NaN where there is no value; no curve has NaN only.
    Returns (floor, low, onset), each (...); onset is -1 for "never".
    Exercise: emergence.recovery (set 4, 10 points)
    Hint: NaN is neither a minimum nor a recovery; and a curve may stand above its floor before it
    gets there, which is not one either.

    >>> curves = np.array([[8., 2., 2., 5., 6.], [8., 6., 4., 3., 2.]])
    >>> [x.tolist() for x in recovery(curves, 0.2, 2)]
    [[2.0, 2.0], [1, 4], [3, -1]]
    """
    low = np.where(np.isnan(smooth), np.inf, smooth).argmin(-1)
    floor = np.take_along_axis(smooth, low[..., None], -1)                  # (..., 1)
    later = np.arange(smooth.shape[-1]) > low[..., None]
    onset = _first_run(later & (smooth >= (1 + rise) * floor), persistence)
    return floor[..., 0], low, onset


def running_median(values, window):
    """Median of the `window` values around each, along the last axis; fewer at the ends.

    NaN does not count; the median is NaN where all of them are.

    >>> running_median([1, 9, 1, 1], 3).tolist()
    [5.0, 1.0, 1.0, 1.0]
    """
    half, values = window // 2, np.asarray(values, dtype=float)
    margins = [(0, 0)] * (values.ndim - 1) + [(half, half)]
    padded = np.pad(values, margins, constant_values=math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)                     # windows of NaN only
        return np.nanmedian(sliding_window_view(padded, 2 * half + 1, axis=-1), axis=-1)


class Collapse(NamedTuple):
    floor: float                  # the lowest value of the smoothed curve
    floor_step: int               # where it was first reached
    onset_step: int | None        # where recovery begins; None: it does not


def collapse(steps: Sequence, rank: Sequence, smoothing: int = 3, rise: float = 0.2,
             persistence: int = 3) -> Collapse:
    """Where a curve of effective ranks has its floor, and where it starts to recover.

    It is the `recovery` of the running median over `smoothing` snapshots.
    Raises ValueError if lengths differ, steps do not increase, or there is no value at all."""
    smooth = running_median(_as_curve(steps, rank, "collapse"), smoothing)
    if np.isnan(smooth).all():
        raise ValueError("collapse: the curve has no values")
    floor, low, onset = recovery(smooth, rise, persistence)
    return Collapse(float(floor), steps[low], None if onset < 0 else steps[onset])


def lead_time(geometry_step: int | None, emergence_step: int | None) -> int | None:
    """Steps by which geometry came first, negative if behaviour did; None unless both happened."""
    if np.isinf(_as_times((geometry_step, emergence_step))).any():
        return None
    return emergence_step - geometry_step


def _as_times(dates):
    """Steps, None or NaN for "never" -> floats, infinity for "never"."""
    times = np.array(dates, dtype=float)                                    # None becomes NaN
    return np.where(np.isnan(times), np.inf, times)


# ------------------------------------------------------------------------------------------------
# Statistics of several events

def rate_with_interval(k: float, n: float, z: float = 1.959964) -> tuple[float, float, float]:
    """k of n, with Wilson's interval, 95% by default: (rate, low, high).

    It takes the n for independent; the levels of one model are not: see `clustered_interval`.
    n = 0 gives (nan, 0, 1).  Raises ValueError unless 0 <= k <= n.

    >>> [round(x, 3) for x in rate_with_interval(24, 24)]
    [1.0, 0.862, 1.0]
    """
    if not 0 <= k <= n:
        raise ValueError(f"rate_with_interval: {k} of {n} is not a rate")
    if n == 0:
        return math.nan, 0.0, 1.0
    rate = k / n
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return rate, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _student_quantile(df):
    """97.5% quantile of Student's t: Cornish and Fisher's expansion, good to 1% from df = 3 on."""
    if round(df) < 3:
        return {1: 12.706, 2: 4.303}[round(df)]
    z = 1.959964
    return (z + (z ** 3 + z) / (4 * df) + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * df ** 2)
            + (3 * z ** 7 + 19 * z ** 5 + 17 * z ** 3 - 15 * z) / (384 * df ** 3))


def clustered_interval(values, tasks, rate=True) -> tuple[float, float, float]:
    """Mean of a table of events with its 95% interval: (mean, low, high); nan for an empty table.

    It knows that the events of one task are alike, and those of one run:

        variance = T + R - C, and no less than the larger of T and R
        T, R: if tasks, or runs, are drawn anew; C: if the cells task x run are
        each is  sum over clusters (sum of deviations in the cluster / n)^2 * g / (g - 1)
        for g clusters; C is without the last factor

    It is what a bootstrap over tasks x runs estimates, in closed form.
    values: (R, L); NaN entries are left out.  tasks: (L,) labels.
    rate: the entries are 0 or 1.  Then it is Wilson's interval for as many independent events as
    have the same variance: at most n; if all entries are alike, the larger number of clusters.
    Source: Cameron, Gelbach & Miller 2011; Student's t with Satterthwaite's degrees of freedom."""
    present = ~np.isnan(values)
    n = present.sum()
    if n == 0:
        return math.nan, math.nan, math.nan

    # sums of the deviations in each cell, and how many tasks and runs there are
    mean = float(values[present].mean())
    deviations = np.where(present, values - mean, 0) / n                    # (R, L)
    labels = np.unique(tasks, return_inverse=True)[1]
    cells = np.zeros((len(values), labels.max() + 1))                       # (R, tasks)
    np.add.at(cells.T, labels, deviations.T)
    clusters = [len(np.unique(labels[present.any(0)])), int(present.any(1).sum())]

    # the variance; with one cluster only, its term says nothing
    sums = [cells.sum(0), cells.sum(1)]
    terms = [(x ** 2).sum() * g / (g - 1) if g > 1 else 0.0 for x, g in zip(sums, clusters)]
    variance = sum(terms)
    if min(clusters) > 1:
        variance = max(variance - (cells ** 2).sum(), *terms)
    df = max(clusters)
    if variance > 0:
        df = sum(terms) ** 2 / sum(x ** 2 / (g - 1) for x, g in zip(terms, clusters) if g > 1)
    t = _student_quantile(df)
    if not rate:
        half = t * math.sqrt(variance)
        return mean, float(mean - half), float(mean + half)

    # a rate; the variance of n independent events is no estimate: it gets the normal's quantile
    independent = mean * (1 - mean) / variance if variance > 1e-12 else max(clusters)
    if independent >= n:
        return rate_with_interval(mean * n, n)
    return rate_with_interval(mean * independent, independent, t)


def order_signs(x):
    """Signs of x_i - x_j along the last axis, (..., i, j); NaN where both never came (inf)."""
    with np.errstate(invalid="ignore"):
        return np.sign(x[..., :, None] - x[..., None, :])


def concordance(a: Sequence, b: Sequence) -> float:
    """Share of pairs (i, j) that a and b put in the same order; unrelated orders give 0.5.

    A tie in either counts one half.  None means "never", later than every step; two that never came
    have no order.  Returns nan if no pair counts.  Raises ValueError if the lengths differ.

    >>> concordance([1, 2, 3, None], [10, 30, 20, 40])
    0.8333333333333334
    """
    if len(a) != len(b):
        raise ValueError(f"concordance: {len(a)} and {len(b)} values")
    alike = order_signs(_as_times(a)) * order_signs(_as_times(b))           # 1: alike; 0: a tie
    alike = alike[np.triu_indices(len(a), 1)]
    alike = alike[~np.isnan(alike)]
    return float((1 + alike).mean() / 2) if len(alike) else math.nan


def holm(p_values):
    """p-values of several tests, adjusted: the chance of even one false alarm stays at the level.

        sorted, the k-th smallest of n becomes the largest of min(1, (n - j + 1) p_j) over j <= k

    k and j count from 1.  Returns a list in the order given; p_values stay as they are.
    None, a test that could not be made, stays None and does not count.  Source: Holm 1979.
    Exercise: emergence.holm (set 4, 5 points)
    Hint: go through them from the smallest up, and remember the largest so far.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    known = [i for i, p in enumerate(p_values) if p is not None]
    order = sorted(known, key=p_values.__getitem__)
    out, worst = [None] * len(p_values), 0.0
    for k, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - k) * p_values[i]))
        out[i] = worst
    return out


def risk_set_test(onsets: Sequence, emergences: Sequence) -> tuple[float, float]:
    """Do levels whose geometry has recovered emerge sooner than the others?  -> (z, information)

    At each emergence time t, the risk set R holds the levels that have not emerged before t; x = 1
    for those with an onset before t; m is the mean of x over R; d levels emerge at t:

        U = sum_t [sum of x over those d  -  d m]
        V = sum_t d m (1 - m) (|R| - d) / (|R| - 1)            z = U / sqrt(V)

    If onsets have nothing to do with emergence, z is standard normal.  V, the information, says how
    much is learned: nothing where onsets are early for all levels alike, for then m is 1.
    None means censored: it has not happened by the end of the run.  z is nan where V = 0.
    Raises ValueError if the lengths differ.
    Source: the log-rank (Mantel-Haenszel) test with a covariate that changes in time (Cox 1972).
    Differs from the paper: it has no null at all."""
    U, V = risk_set_sums(onsets, emergences)
    return (U / math.sqrt(V) if V > 0 else math.nan), V


def risk_set_sums(onsets, emergences):
    """(U, V) of `risk_set_test`: over several runs, or strata, they add up."""
    if len(onsets) != len(emergences):
        raise ValueError(f"risk_set_test: {len(onsets)} onsets but {len(emergences)} emergences")
    x, at_risk, emerges = risk_sets(_as_times(onsets), _as_times(emergences))
    size, d = at_risk.sum(0), emerges.sum(0)                                # (T,)
    m = (x & at_risk).sum(0) / size
    U = (x & emerges).sum(0) - d * m
    V = d * m * (1 - m) * (size - d) / np.maximum(size - 1, 1)
    return float(U.sum()), float(V.sum())


def risk_sets(onset, emergence):
    """A column for each of T emergence times: x, is it in the risk set, does it emerge; (L, T)."""
    t = np.unique(emergence[np.isfinite(emergence)])
    return onset[:, None] < t, emergence[:, None] >= t, emergence[:, None] == t


# ------------------------------------------------------------------------------------------------
# From a table of measurements, which any training loop can write, to runs

COLUMNS = ("run", "level", "step", "quantity", "value")
DEFAULTS = {"size": "", "parameters": math.nan, "width": math.inf, "warmup": 0,
            "train_fraction": 1.0, "eval_examples": None, "chance": {}, "chance_log_prob": {},
            "answer_tokens": {}, "numbers": {}}


@dataclass(eq=False)              # compared, and cached, by identity
class Run:
    """The curves of one run as arrays; NaN where nothing was measured."""
    name: str
    config: dict                  # config.json, completed by DEFAULTS
    levels: list                  # (L,) names such as "add-1"; controls begin with "sham-"
    steps: np.ndarray             # (S,) all steps at which anything was measured
    curves: dict                  # {quantity: (L, S)}

    def table(self, quantity):
        """One quantity of all levels, (L, S)."""
        unmeasured = np.full((len(self.levels), len(self.steps)), math.nan)
        return self.curves.get(quantity, unmeasured)

    def curve(self, level, quantity):
        """One quantity of one level, only where it was measured: (steps, values)."""
        values = self.table(quantity)[self.levels.index(level)]
        measured = ~np.isnan(values)
        return self.steps[measured], values[measured]

    def per_level(self, key, default):
        """An entry of the config that has a number for each level, (L, 1)."""
        return np.array([[self.config[key].get(level, default)] for level in self.levels])

    @functools.cached_property
    def accuracy(self):
        """(L, S).  On unseen operands where there are some: knowing by heart is no capability."""
        return self.table("accuracy_test" if self.config["train_fraction"] < 1 else "accuracy")

    @functools.cached_property
    def rankme(self):
        """{position: (L, layers, S)}, from the quantities "rankme.<position>.<layer>"."""
        found = {}
        for quantity, values in self.curves.items():
            place = re.fullmatch(r"rankme\.(.*)\.(\d+)", quantity)
            if place:
                position, layer = place.groups()
                found.setdefault(position, {})[int(layer)] = values
        return {position: np.stack([layers[layer] for layer in sorted(layers)], axis=1)
                for position, layers in found.items()}

    def rankme_layers(self, position):
        """(L, layers, S).  RankMe at one position; a layer of NaN where it was not measured."""
        unmeasured = np.full((len(self.levels), 1, len(self.steps)), math.nan)
        return self.rankme.get(position, unmeasured)

    def rankme_at(self, position, layer):
        """(L, S).  RankMe at one position and layer; NaN where it was not measured."""
        layers = self.rankme_layers(position)
        return layers[:, max(layer, -layers.shape[1])]                      # there may be only one

    @property
    def measures(self):
        """Names of the measures that were taken at a few snapshots only."""
        return [name for name in self.config["numbers"] if not np.isnan(self.table(name)).all()]


def from_table(rows: Iterable, configs: dict | None = None) -> list[Run]:
    """A table of measurements, one number per row -> runs, in order of appearance.

    rows: dicts with the keys run, level, step, quantity, value, or tuples in that order; of two for
      the same place the last counts.  Numbers may be text; None, "" and NaN: not measured.
      Understood are the quantities accuracy, accuracy_train, accuracy_test, log_prob, distinct
      (how many inputs differ), rankme.<position>.<layer>, and the measures that a config names
      under "numbers"; all others are kept as curves.
    configs: {run: its config.json as a dict}.  What is absent is as in DEFAULTS; a level's chance
      is 0, its answer_tokens 1; the seed is the run's place.  levels: in order of appearance; where
      a config names them, others are left out.
    Raises ValueError for a table without rows, a missing key, a step or value that is no number.

    >>> table = [("mine", "add-1", step, "accuracy", step / 100) for step in range(100)]
    >>> float(event_table(from_table(table)).emergence[0, 0])
    30.0
    """
    found = {}                    # {run: {(level, quantity): (steps, values)}}
    for number, row in enumerate(rows, start=1):
        try:
            cells = [row[name] for name in COLUMNS] if isinstance(row, dict) else row
            run, level, step, quantity, value = cells
            series = found.setdefault(run, {})
            steps, values = series.setdefault((level, quantity), ([], []))
            steps.append(float(step))
            values.append(math.nan if value is None or value == "" else float(value))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(f"from_table: row {number} is {row!r:.200}, expected: "
                             f"{', '.join(COLUMNS)}, with numbers as step and value") from None
    if not found:
        raise ValueError("from_table: the table has no rows")
    configs = configs or {}
    return [_run(name, series, {"seed": seed} | DEFAULTS | configs.get(name, {}))
            for seed, (name, series) in enumerate(found.items())]


def _run(name, series, config):
    """series: {(level, quantity): (steps, values)}."""
    steps = np.unique(np.concatenate([taken for taken, _ in series.values()]))
    if not np.isfinite(steps).all():
        raise ValueError(f"from_table: run {name!r} has a step that is no number")
    levels = list(config.get("levels") or dict.fromkeys(level for level, _ in series))
    curves = {}
    for (level, quantity), (taken, values) in series.items():
        if level in levels:
            unmeasured = np.full((len(levels), len(steps)), math.nan)
            table = curves.setdefault(quantity, unmeasured)
            table[levels.index(level), np.searchsorted(steps, taken)] = values
    if (steps == np.floor(steps)).all():
        steps = steps.astype(int)
    return Run(name, config, levels, steps, curves)


# ------------------------------------------------------------------------------------------------
# From runs to their events

@dataclass(frozen=True, eq=False)
class EventTable:
    """The events of all runs.  Arrays are (R, L); a step that never came is infinity."""
    runs: list                    # (R,)
    levels: tuple                 # (L,)
    dated_by: dict                # the keywords of event_table
    onset: np.ndarray             # step at which RankMe begins to recover
    emergence: np.ndarray         # step at which behaviour emerges
    floor: np.ndarray             # the lowest RankMe; NaN where it was not measured
    floor_step: np.ndarray
    start: np.ndarray             # RankMe of the untrained model
    ceiling: np.ndarray           # RankMe is at most that
    down_floor: np.ndarray        # share of layer pairs whose deeper one has the lower floor
    down_time: np.ndarray         # ... whose deeper one reaches its floor first

    @functools.cached_property
    def tasks(self):
        """(L,) names of the levels without their numbers."""
        return tuple(split_level(level)[0] for level in self.levels)

    @functools.cached_property
    def shams(self):
        """(L,) bool: is it a control, whose answers are shuffled so that no model can learn it?"""
        return np.array([level.startswith("sham-") for level in self.levels])

    @functools.cached_property
    def rows(self):
        """(L,) the rows of these levels in the curves of any of the runs."""
        return [self.runs[0].levels.index(level) for level in self.levels]

    def only(self, shams: bool = False) -> "EventTable":
        """The columns of the levels that can be learned, or those of the shams."""
        chosen = np.flatnonzero(self.shams == shams)
        columns = {name: getattr(self, name).take(chosen, axis=1) for name in ARRAYS}
        return replace(self, levels=tuple(self.levels[k] for k in chosen), **columns)


ARRAYS = ("onset", "emergence", "floor", "floor_step", "start", "ceiling", "down_floor",
          "down_time")


def split_level(level):
    """A level's name -> (task, number as text); the number is "" where the name has none.

    >>> split_level("modadd-2"), split_level("chess")
    (('modadd', '2'), ('chess', ''))
    """
    task, _, number = level.rpartition("-")
    return (task, number) if task and number.isdigit() else (level, "")


def event_table(runs, threshold=0.3, persistence=3, behaviour="accuracy", rise=0.2,
                position="first", layer=-2, smoothing=3, warmup=True) -> EventTable:
    """Date the events of all runs, each curve on the snapshots at which it was measured.

    threshold: share of the way from chance to perfect that counts as emerged.
    persistence: snapshots in a row that must agree, for emergence and for onset.
    behaviour: "accuracy", or "log_prob": 1 - log p of the answer / log p of the best blind answer.
    rise: RankMe counts as recovering when it is that fraction above its floor.
    position: whose hidden state: where the "first" answer token is predicted (nothing of the answer
      is known there), all "answer" tokens, or the "last" token of the line (all of it is known).
    layer: 0 is the embedding, -2 the last block, -1 the final LayerNorm.
    smoothing: RankMe's running median is over so many snapshots.
    warmup: do snapshots within the learning rate's warm-up count?
    Raises ValueError if the runs do not have the same levels."""
    dated_by = dict(threshold=threshold, persistence=persistence, behaviour=behaviour, rise=rise,
                    position=position, layer=layer, smoothing=smoothing, warmup=warmup)
    rows = []
    for run in runs:
        if run.levels != runs[0].levels:
            raise ValueError(f"event_table: {runs[0].name} and {run.name} have different levels")
        geometry = _geometry(run, position, layer, smoothing, rise, persistence, warmup)
        emergence = _emergence(run, behaviour, threshold, persistence, warmup)
        rows.append(geometry | {"emergence": emergence})
    tables = {name: np.array([row[name] for row in rows]) for name in ARRAYS}
    return EventTable(list(runs), tuple(runs[0].levels), dated_by, **tables)


def _measured(run, values, warmup=True):
    """The snapshots at which any of the curves (..., S) was measured: steps, values.

    Without warmup only those that come after it; the last one always counts."""
    measured = ~np.isnan(values).all(axis=tuple(range(values.ndim - 1)))    # (S,)
    if not measured.any():
        return run.steps, values                                            # NaN all along
    if not warmup:
        last = run.steps[measured][-1]
        measured &= run.steps >= min(run.config["warmup"], last)
    return run.steps[measured], values[..., measured]


def steps_at(steps, index):
    """Indices of snapshots -> steps; infinity, for "never", where an index is -1 or too large."""
    return np.append(steps, np.inf)[index]


@functools.lru_cache(maxsize=20000)       # the multiverse of claims.py asks again and again
def _emergence(run, behaviour, threshold, persistence, warmup):
    """(L,) steps at which a behaviour emerges: "accuracy", "log_prob", or a column of the table."""
    values = run.accuracy if behaviour == "accuracy" else run.table(behaviour)
    chance = run.per_level("chance", 0.0)                                   # (L, 1)
    if behaviour == "log_prob":           # the share of the answer's entropy that is explained
        values, chance = 1 - values / run.per_level("chance_log_prob", math.nan), 0.0
    steps, values = _measured(run, values, warmup)
    examples = run.config["eval_examples"]
    return steps_at(steps, emergence_index(values, chance, examples, threshold, persistence))


@functools.lru_cache(maxsize=20000)
def _geometry(run, position, layer, smoothing, rise, persistence, warmup):
    """What RankMe says in one run: {name of an array of EventTable: (L,)}."""
    steps, smooth = _smooth_rankme(run, position, smoothing, warmup)        # (L, layers, S)
    known = ~np.isnan(smooth).all(-1)                                       # (L, layers)
    floor, floor_step, onset = (np.full(known.shape, x) for x in (np.nan, np.inf, np.inf))
    floor[known], low, rises = recovery(smooth[known], rise, persistence)
    floor_step[known], onset[known] = steps_at(steps, low), steps_at(steps, rises)

    # RankMe is at most the number of distinct states, and at most the width
    distinct = _measured(run, run.table("distinct"))[1][:, 0]
    if position == "answer":
        distinct = distinct * run.per_level("answer_tokens", 1)[:, 0]

    chosen = max(layer, -floor.shape[1])                                    # there may be only one
    return {"floor": floor[:, chosen], "floor_step": floor_step[:, chosen],
            "onset": onset[:, chosen], "ceiling": np.fmin(distinct, run.config["width"]),
            "start": _measured(run, run.rankme_at(position, layer))[1][:, 0],
            "down_floor": top_down(floor), "down_time": top_down(floor_step)}


@functools.lru_cache(maxsize=200)
def _smooth_rankme(run, position, smoothing, warmup):
    steps, values = _measured(run, run.rankme_layers(position), warmup)
    return steps, running_median(values, smoothing)                         # (L, layers, S)


def top_down(layer_values):
    """Do deeper layers have smaller values?  (..., layers) -> (...)

    Share of layer pairs for which they do: 1 top-down, 0 bottom-up, 0.5 no order.  The embedding
    (first entry) and the final LayerNorm (last) do not count; nan for fewer than two others."""
    blocks = np.asarray(layer_values, dtype=float)[..., 1:-1]
    i, j = np.triu_indices(blocks.shape[-1], 1)
    if len(i) == 0:
        return np.full(blocks.shape[:-1], math.nan)
    return ((1 + order_signs(blocks)[..., i, j]) / 2).mean(-1)


def medians(events: EventTable) -> list[dict]:
    """One dict per size and level, the smallest size first: medians over seeds with the range.

    The range of n seeds is an interval for the median over all seeds with confidence 1 - 2^(1-n),
    whatever the distribution: 75% for three seeds, 94% for five.
    "emerged" counts the seeds with an emergence, "rankme_first" those with an onset before it."""
    sizes = {}
    for r, run in enumerate(events.runs):
        key = np.nan_to_num(run.config["parameters"]), run.config["size"]
        sizes.setdefault(key, []).append(r)
    return [_level_medians(events, sizes[key], k)
            for key in sorted(sizes) for k in range(len(events.levels))]


def _level_medians(events, rows, k):
    """rows: indices of the runs.  k: index of the level."""
    runs, level = [events.runs[r] for r in rows], events.levels[k]
    onset, emergence = events.onset[rows, k], events.emergence[rows, k]
    columns = {
        "floor": events.floor[rows, k],
        "floor_share": events.floor[rows, k] / events.ceiling[rows, k],
        "floor_step": [_plain(x) for x in events.floor_step[rows, k]],
        "onset": [_plain(x) for x in onset],
        "emergence": [_plain(x) for x in emergence],
        "lead": [lead_time(_plain(a), _plain(b)) for a, b in zip(onset, emergence)],
        "top_down_floor": events.down_floor[rows, k],
        "top_down_time": events.down_time[rows, k],
        "final_accuracy": [x for run in runs for x in run.curve(level, "accuracy")[1][-1:]]}
    return {"size": runs[0].config["size"], "parameters": runs[0].config["parameters"],
            "level": level, "control": bool(events.shams[k]), "seeds": len(rows),
            "emerged": int(np.isfinite(emergence).sum()),
            "rankme_first": int((onset < emergence)[np.isfinite(emergence)].sum()),
            "ceiling": _plain(events.ceiling[rows[0], k]),
            **{name: seed_range(values) for name, values in columns.items()}}


def seed_range(values):
    """{"median", "low", "high"} of those that are numbers; None where none is."""
    values = [value for value in values if value is not None and not math.isnan(value)]
    if not values:
        return None
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _plain(x):
    """A number as JSON has it: None for never, an int for a whole one."""
    if not math.isfinite(x):
        return None
    return int(x) if x == int(x) else float(x)


# ------------------------------------------------------------------------------------------------
# Measures that are taken at a few snapshots only; and all events as rows of a table

def rise_index(values):
    """Where curves (..., G) have begun to rise: one rule for measures of any unit.

    Index of the first of two snapshots in a row, behind the lowest value, that have gone a fifth of
    the way from there to the highest value after it; -1 for never.

    >>> int(rise_index(np.array([9., 1., 1., 1.5, 4., 5., 9.])))
    4
    """
    low = np.where(np.isnan(values), np.inf, values).argmin(-1)[..., None]
    lowest = np.take_along_axis(values, low, -1)                            # (..., 1)
    later = np.arange(values.shape[-1]) > low
    top = np.where(later & ~np.isnan(values), values, lowest).max(-1, keepdims=True)
    risen = values >= lowest + 0.2 * (top - lowest)
    return _first_run(later & risen & (top > lowest), 2)


def rare_onset(events, run, measure):
    """Where a rare measure of one run rises: its snapshots, (G,), and steps, (L,).

    The rule is `rise_index`; negative LLCs, at points that are no minimum, are left out.
    A linear probe must be `threshold` of the way from what is blind to 1, twice in a row.  Blind
    are the probe of the untrained model, and that of shuffled labels."""
    grid, values = _measured(run, run.table(measure)[events.rows])          # (G,), (L, G)
    if measure == "linear_probe":
        shuffled = run.table("linear_probe_shuffled")[events.rows][:, np.isin(run.steps, grid)]
        blind = np.maximum(values[:, :1], shuffled)
        share = (values - blind) / np.maximum(1 - blind, 1e-9)
        return grid, steps_at(grid, _first_run(share >= events.dated_by["threshold"], 2))
    if measure == "llc":
        values = np.where(values < 0, math.nan, values)
    return grid, steps_at(grid, rise_index(values))


def event_rows(events: EventTable) -> list[dict]:
    """A dict for each event: run, size, seed, task, level, sham, quantity, event, step.

    event: "onset", of RankMe and of every measure that was taken; or "emergence", of accuracy, of
    log_prob, and of accuracy_train where that is another.  step: None for never."""
    out = []
    by = [events.dated_by[choice] for choice in ("threshold", "persistence", "warmup")]
    for r, run in enumerate(events.runs):
        behaviours = ["accuracy", "log_prob"]
        if run.config["train_fraction"] < 1:
            behaviours.append("accuracy_train")
        found = [("rankme", "onset", events.onset[r])]
        found += [(name, "emergence", _emergence(run, name, *by)[events.rows])
                  for name in behaviours]
        found += [(name, "onset", rare_onset(events, run, name)[1]) for name in run.measures]

        about = {"run": run.name, "size": run.config["size"], "seed": run.config["seed"]}
        for k, level in enumerate(events.levels):
            about |= {"task": events.tasks[k], "level": level, "sham": bool(events.shams[k])}
            out += [about | {"quantity": quantity, "event": event, "step": _plain(steps[k])}
                    for quantity, event, steps in found]
    return out


# ------------------------------------------------------------------------------------------------
# What chance gives.  A statistic takes an EventTable and Permutations and returns (M,) numbers: of
# the data as they are, then of M - 1 data sets in which what it is about was exchanged.

class Permutations(NamedTuple):
    tasks: np.ndarray             # (M, L): whose geometry each task-level gets
    runs: np.ndarray              # (M, R): runs exchanged, and so the sizes
    upside_down: np.ndarray       # (M, R) bool: the layers of a run in reverse order


def shuffles(levels, num_runs, count, seed=0) -> Permutations:
    """Draw `count` data sets; the first is the data as they are.

    tasks: tasks of one level are exchanged.  They are exchangeable if geometry and behaviour have
      nothing to do with each other; levels of one task are not, for they are ordered by difficulty.
      One permutation serves all runs, for seeds repeat what tasks do.
    runs, upside_down: runs are exchanged; each layer order is reversed with probability 1/2.
    levels: names such as "add-1", with the level's number behind the last dash.
    Every row of tasks and of runs is a random permutation of indices, all of them equally likely;
    the same seed gives the same.
    Exercise: emergence.shuffles (set 4, 10 points)
    Hint: np.random.default_rng(seed); rng.permuted(x, axis=1) shuffles each row of x by itself.

    >>> drawn = shuffles(("add-1", "add-2", "copy-1"), num_runs=2, count=50)
    >>> drawn.tasks[:, 1].tolist() == [1] * 50            # the only task of its level
    True
    """
    rng = np.random.default_rng(seed)
    number = np.array([split_level(level)[1] for level in levels])
    tasks = np.tile(np.arange(len(levels)), (count, 1))
    for k in np.unique(number):
        (where,) = (number == k).nonzero()
        tasks[1:, where] = rng.permuted(np.tile(where, (count - 1, 1)), axis=1)
    runs = np.tile(np.arange(num_runs), (count, 1))
    runs[1:] = rng.permuted(runs[1:], axis=1)
    upside_down = rng.random((count, num_runs)) < 0.5
    upside_down[0] = False
    return Permutations(tasks, runs, upside_down)


def precursor_rate(events, permutations):
    """Of the task-levels that emerge, the share whose onset came before, in each data set m:

        rate_m = #{(r, k): onset[r, tasks[m, k]] < emergence[r, k] < inf}
                 / #{(r, k): emergence[r, k] < inf}

    over all runs r and levels k.  tasks: permutations.tasks, (M, L).  events.onset and .emergence:
    (R, L), infinity for "never".  An onset at the very step of emergence is not before it.
    Returns (M,), nan where nothing emerges.
    Exercise: emergence.precursor_rate (set 4, 10 points)
    Hint: events.onset[:, permutations.tasks] has the shape (R, M, L).
    """
    emerges = np.isfinite(events.emergence)
    onset = events.onset[:, permutations.tasks]                             # (R, M, L)
    first = (onset < events.emergence[:, None]) & emerges[:, None]
    return first.sum((0, 2)) / (emerges.sum() or math.nan)


def p_value(values, distance_from_null=np.asarray):
    """How often chance is at least as far out as what was observed.

        p = #{m: distance_from_null(values_m) >= distance_from_null(values_0) - 1e-9} / M

    values: (M,), of the observed data, m = 0, then of M - 1 shuffled data sets (NaN there: not far
    out).  What was observed counts too.
    Returns None for M < 2, or if the observed value is NaN.
    Exercise: emergence.p_value (set 4, 5 points)
    Hint: so it is never 0, but 1 / M at the least: the data as they are belong to what could have
    happened.

    >>> p_value(np.array([2.0, 1.0, 3.0, 2.0]))
    0.75
    """
    if len(values) < 2 or math.isnan(values[0]):
        return None
    x = distance_from_null(values)
    return float((x >= x[0] - 1e-9).mean())
