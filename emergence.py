"""Chapter 4: emergence.  When a capability emerges, what came before it, and how sure one can be.

Curves (a number per snapshot of training) come in; dates (a step, or None for "never") and tests
of what they say come out.  Try it on curves drawn by hand, or your own (`from_table`):

    >>> steps    = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    >>> accuracy = [0,  0,  0,  0,  0,  0, .2, .7, .9,  1]
    >>> rank     = [8,  5,  3,  2,  2,  3,  4,  6,  7,  8]
    >>> emergence_step(steps, accuracy), collapse(steps, rank)
    (70, Collapse(floor=2.0, floor_step=30, onset_step=50))

The paper (Billa 2026, arXiv 2602.15997) tells of three moments.  This file dates them:

    collapse      training begins, and RankMe of the hidden states falls to a *floor*
    onset         the representation recovers: RankMe rises clearly above what says nothing
    emergence     the model answers clearly better than chance

If the onset comes first, geometry "leads".  The onset of *another* task might have come first as
well: so this file also says what chance gives, by exchanging whole tasks.  Two sections ask more
than order: does geometry help to *forecast* emergence, and what *effect* has another training?
This file knows nothing of models, of run directories, of figures, and of what the paper claims.

Letters for shapes:  R runs, L task-levels of a run, T tasks, S snapshots, J landmarks, N rows of a
forecast, M data sets (the observed one, then M - 1 in which whole tasks were exchanged).
"""
import functools
import itertools
import math
import re
import warnings
from collections import namedtuple
from dataclasses import dataclass, replace
from typing import Iterable, NamedTuple, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


# ------------------------------------------------------------------------------------------------
# Dates.  What is not about one curve takes many at once, (..., S), and returns indices; -1: never.

def first_lasting(flags, steps, persistence, lasting):
    """Index of the first snapshot from which all flags are True for long enough; -1 for never.

    Long enough: at every snapshot from its step t up to lasting * t, which must have been reached,
    and at `persistence` snapshots at least.  flags: (..., S) bool.  steps: (S,)."""
    steps, S = np.asarray(steps, dtype=float), flags.shape[-1]
    if S == 0:
        return np.full(flags.shape[:-1], -1)
    last = np.searchsorted(steps, lasting * steps, side="right") - 1
    last = np.maximum(last, np.arange(S) + persistence - 1)                 # (S,)
    observed = (last < S) & (lasting * steps <= steps[-1])
    # how many flags are True from each snapshot to its last one
    total = np.concatenate([np.zeros((*flags.shape[:-1], 1), int), flags.cumsum(-1)], axis=-1)
    held = total[..., np.minimum(last, S - 1) + 1] - total[..., :-1]
    lasts = observed & (held == last + 1 - np.arange(S))
    return np.where(lasts.any(-1), lasts.argmax(-1), -1)


def emergence_index(values, steps, chance, examples, threshold, persistence, lasting):
    """Index of the first snapshot from which values stay clearly above chance; -1 for never.

        (values - chance) / (1 - chance) >= bar - 1e-12
        bar = max(threshold, 3 sqrt(chance / (1 - chance) / examples))

    values: (..., S); NaN, not measured, counts as "no".  chance: in [0, 1), a number or (..., 1).
    examples: how many the values were measured on, likewise; infinity: all that there are.
    A value that is on the bar, but for rounding, counts.  Returns integers, (...).
    Exercise: emergence.emergence_index (set 4, 10 points)
    Hint: first_lasting(flags, steps, persistence, lasting) does what "stay" means."""
    bar = np.maximum(threshold, 3 * np.sqrt(chance / (1 - chance) / examples))
    above = (values - chance) / (1 - chance) >= bar - 1e-12
    return first_lasting(above, steps, persistence, lasting)


def emergence_step(steps: Sequence, accuracy: Sequence, chance: float = 0.0,
                   threshold: float = 0.3, persistence: int = 3, lasting: float = 1.25,
                   examples: int | None = None) -> int | None:
    """The step from which a model is clearly above chance, by `emergence_index`; None for never.

    accuracy: in [0, 1], None where it was not measured.  examples: None, all that there are.
    ValueError if lengths differ, steps do not increase, or a number is out of its range."""
    steps, values = _as_curve(steps, accuracy, "emergence_step")
    if not 0 <= chance < 1:
        raise ValueError(f"emergence_step: chance {chance}: expected at least 0 and below 1")
    check_share(values, "emergence_step: accuracy")
    check_threshold(threshold)
    index = emergence_index(values, steps, chance, examples or math.inf, threshold, persistence,
                            lasting)
    return None if index < 0 else steps[index]


def _as_curve(steps, values, name):
    steps, values = np.asarray(steps).tolist(), np.array(list(values), dtype=float)
    if len(steps) != len(values):
        raise ValueError(f"{name}: {len(steps)} steps but {len(values)} values")
    if any(later <= earlier for earlier, later in zip(steps, steps[1:])):
        raise ValueError(f"{name}: the steps must increase")
    return steps, values                                # plain numbers; of values, None is NaN


def check_share(values, what):
    wrong = values[(values < -1e-9) | (values > 1 + 1e-9)]
    if len(wrong):
        raise ValueError(f"{what} {wrong[0]:g}: an accuracy lies between 0 and 1; divide percent "
                         "by 100")


def check_threshold(threshold):
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold:g}: expected a share of the way from chance to 1, "
                         "between 0 and 1; divide percent by 100")


def recovery(smooth, rise):
    """The floor of a smoothed curve, and where the curve stands clearly above it.

        floor = min_t x_t, first reached at index low
        risen = t > low  and  x_t >= (1 + rise) floor

    smooth: (..., S), NaN where there is no value.  Returns (floor, low, risen), of which risen is
    (..., S) bool.  If all values are NaN, so is floor, and low is any index.
    Exercise: emergence.recovery (set 4, 10 points)
    Hint: NaN is neither a minimum nor a recovery, and what stands before the floor is not risen."""
    low = np.where(np.isnan(smooth), np.inf, smooth).argmin(-1)
    floor = np.take_along_axis(smooth, low[..., None], -1)                  # (..., 1)
    later = np.arange(smooth.shape[-1]) > low[..., None]
    return floor[..., 0], low, later & (smooth >= (1 + rise) * floor)


def running_median(values, window):
    """Median of the `window` values around each, fewer at the ends; NaN does not count."""
    half, values = window // 2, np.asarray(values, dtype=float)
    margins = [(0, 0)] * (values.ndim - 1) + [(half, half)]
    padded = np.pad(values, margins, constant_values=math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)                     # windows of NaN only
        return np.nanmedian(sliding_window_view(padded, 2 * half + 1, axis=-1), axis=-1)


class Collapse(NamedTuple):
    floor: float                  # the lowest value
    floor_step: int               # where it was first reached
    onset_step: int | None        # where recovery begins; None: it does not


def collapse(steps: Sequence, rank: Sequence, smoothing: int = 3, rise: float = 0.2,
             persistence: int = 3, lasting: float = 1.25) -> Collapse:
    """Where a curve of effective ranks, smoothed, has its floor, and where it leaves it lastingly.
    ValueError if lengths differ, steps do not increase, or there is no value at all."""
    steps, values = _as_curve(steps, rank, "collapse")
    smooth = running_median(values, smoothing)
    if np.isnan(smooth).all():
        raise ValueError("collapse: the curve has no values")
    floor, low, risen = recovery(smooth, rise)
    onset = first_lasting(risen, steps, persistence, lasting)
    return Collapse(float(floor), steps[low], None if onset < 0 else steps[onset])


# What counts as a recovery: each row of ONSETS takes curves (L, S), the shams' (K, S), steps (S,)
# and `rise`, and says where a curve has risen, (L, S) bool.

def from_below(flags):
    """Without what is True from the first snapshot on: a bar must be crossed."""
    return flags & ~np.logical_and.accumulate(flags, axis=-1)


def above_highest_sham(curves, shams, steps, rise):
    """Above all that tasks reach which cannot be learned, at the same step of the same run."""
    return from_below(curves >= (1 + rise) * np.fmax.reduce(shams))


def above_mean_sham(curves, shams, steps, rise):
    measured = [sham for sham in shams if not np.isnan(sham).all()] or shams
    return from_below(curves >= (1 + rise) * np.mean(measured, axis=0))


def above_floor(curves, shams, steps, rise):
    return recovery(curves, rise)[2]


def above_floor_for_good(curves, shams, steps, rise):
    """After the last departure from the floor: that looks at all that comes later."""
    risen = recovery(curves, rise)[2]
    return np.logical_and.accumulate(risen[..., ::-1], axis=-1)[..., ::-1]


def after_steepest_rise(curves, shams, steps, rise):
    """After the steepest step of log RankMe over log step, behind the floor."""
    if curves.shape[-1] < 2:
        return np.zeros(curves.shape, bool)
    _, low, _ = recovery(curves, rise)
    slopes = np.diff(np.log(curves)) / np.diff(np.log1p(steps))             # (L, S - 1)
    slopes = np.where((np.arange(slopes.shape[-1]) >= low[..., None]) & (slopes > 0), slopes, 0)
    steepest = slopes.argmax(-1)[..., None]
    return (np.arange(curves.shape[-1]) > steepest) & (slopes > 0).any(-1, keepdims=True)


ONSETS = {"shams": above_highest_sham, "floor": above_floor, "departure": above_floor_for_good,
          "steepest": after_steepest_rise, "mean_sham": above_mean_sham}
NEED_SHAMS = ("shams", "mean_sham")   # a sweep without shams takes "floor" in their place


def lead_time(geometry_step: int | None, emergence_step: int | None) -> int | None:
    """Steps by which geometry came first, negative if behaviour did; None unless both happened."""
    geometry, behaviour = as_times((geometry_step, emergence_step)).tolist()
    return plain(behaviour - geometry)


# "Never", as other libraries write it: pandas, R, SQL, and tables for people.
NEVER = ("", "none", "nan", "nat", "na", "n/a", "<na>", "null", "never", "-", "--")


def as_times(dates):
    """Steps; None, NaN, infinity or a word of NEVER -> floats, infinity for "never"."""
    if not (isinstance(dates, np.ndarray) and dates.dtype.kind == "f"):
        dates = [math.inf if str(date).strip().lower() in NEVER else date for date in dates]
    times = np.array(dates, float)
    return np.where(np.isnan(times), np.inf, times)


def plain(x):
    """A number as JSON has it: None for never, an int for a whole one."""
    if x is None or not math.isfinite(x):
        return None
    return int(x) if x == int(x) else float(x)


# ------------------------------------------------------------------------------------------------
# Statistics of several events

def rate_with_interval(k: float, n: float, z: float = 1.959964) -> tuple[float, float, float]:
    """k of n independent events, with Wilson's interval, 95% by default: (rate, low, high).

    n = 0 gives (nan, 0, 1).  Raises ValueError unless 0 <= k <= n."""
    if not 0 <= k <= n:
        raise ValueError(f"rate_with_interval: {k} of {n} is not a rate")
    if n == 0:
        return math.nan, 0.0, 1.0
    rate, scale = k / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / scale
    return rate, max(0.0, centre - spread), min(1.0, centre + spread)


@functools.lru_cache(maxsize=100)
def t_angles(df):
    """Angles up to pi / 2, and how much of Student's t = sqrt(df) tan(angle) lies within each.

    The density of the angle is proportional to cos(angle)^(df - 1).  df >= 1, any number."""
    edges = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos((edges[1:] + edges[:-1]) / 2) ** (df - 1)
    return edges, np.concatenate([[0], density.cumsum()]) / density.sum()


def t_quantile(df: float, confidence: float = 0.95) -> float:
    """How many standard errors a two-sided interval of Student's t reaches; df >= 1."""
    edges, within = t_angles(df)
    return math.sqrt(df) * math.tan(np.interp(confidence, within, edges))


def t_p_value(t, df):
    """How often Student's t is at least as far from 0: two-sided."""
    edges, within = t_angles(df)
    return float(1 - np.interp(math.atan(abs(t) / math.sqrt(df)), edges, within))


def order_signs(x):
    """Signs of x_i - x_j along the last axis, (..., i, j); NaN where both never came (inf)."""
    with np.errstate(invalid="ignore"):
        return np.sign(x[..., :, None] - x[..., None, :])


def concordance(a: Sequence, b: Sequence) -> float:
    """Share of pairs (i, j) that a and b put in the same order; unrelated orders give 0.5.

    A tie in either counts one half.  None (or NaN, "", infinity), never, is later than every step;
    two that never came have no order.  nan if no pair counts; ValueError if lengths differ."""
    if len(a) != len(b):
        raise ValueError(f"concordance: {len(a)} and {len(b)} values")
    alike = (order_signs(as_times(a)) * order_signs(as_times(b)))[np.triu_indices(len(a), 1)]
    alike = alike[~np.isnan(alike)]                                         # 1: alike; 0: a tie
    return float((1 + alike).mean() / 2) if len(alike) else math.nan


def holm(p_values):
    """p-values of several tests, adjusted: the chance of even one false alarm stays at the level.

        sorted, the k-th smallest of n becomes the largest of min(1, (n - j + 1) p_j) over j <= k

    k and j count from 1.  A list in the order given; p_values stay as they are.  None, a test that
    could not be made, stays None and does not count.  Source: Holm 1979.
    Exercise: emergence.holm (set 4, 5 points)
    Hint: go through them from the smallest up, and remember the largest so far."""
    known = [i for i, p in enumerate(p_values) if p is not None]
    order = sorted(known, key=p_values.__getitem__)
    out, worst = [None] * len(p_values), 0.0
    for k, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - k) * p_values[i]))
        out[i] = worst
    return out


def risk_set_test(onsets: Sequence, emergences: Sequence,
                  censored: Sequence | None = None) -> tuple[float, float]:
    """Do levels whose geometry has recovered emerge sooner than the others?  -> (z, information)

    At each emergence time t, the risk set R holds the levels that have not emerged before t and are
    still watched; x = 1 for those with an onset before t, m their share of R; d levels emerge at t:

        U = sum_t [sum of x over those d  -  d m]
        V = sum_t d m (1 - m) (|R| - d) / (|R| - 1)            z = U / sqrt(V)

    If onsets have nothing to do with emergence, z is standard normal.  V, the information, says how
    much is learned: nothing where onsets are early for all levels alike, for then m is 1.
    None (or NaN, "", infinity): it has not happened while it was watched.  censored: the steps at
    which watching ended; None: after everything.  z is nan where V = 0.  ValueError if lengths
    differ.  Source: log-rank test with a covariate that changes in time (Cox 1972)."""
    censored = [None] * len(emergences) if censored is None else censored
    lengths = len(onsets), len(emergences), len(censored)
    if len(set(lengths)) > 1:
        raise ValueError("risk_set_test: %d onsets, %d emergences, %d ends of watching" % lengths)
    times, at_risk, emerges = risk_sets(as_times(emergences), as_times(censored))
    x = as_times(onsets)[:, None] < times                                   # (L, times)
    size, d = at_risk.sum(0), emerges.sum(0)                                # (times,)
    m = (x & at_risk).sum(0) / size
    U = float(((x & emerges).sum(0) - d * m).sum())
    V = float((d * m * (1 - m) * (size - d) / np.maximum(size - 1, 1)).sum())
    return (U / math.sqrt(V) if V > 0 else math.nan), V


def risk_sets(emergence, censored):
    """The times at which something emerges; who is at risk then, and who emerges: (L, times)."""
    emerged = np.isfinite(emergence) & (emergence <= censored)
    t = np.unique(emergence[emerged])
    return (t, np.minimum(emergence, censored)[:, None] >= t,
            emerged[:, None] & (emergence[:, None] == t))


# ------------------------------------------------------------------------------------------------
# From a table of measurements, which any training loop can write, to runs

COLUMNS = ("run", "level", "step", "quantity", "value")
PER_LEVEL = ("chance", "chance_log_prob", "token_chance", "answer_tokens", "examples")
SETTINGS = (*PER_LEVEL, "size", "parameters", "width", "seed", "warmup")
DEFAULTS = {"size": "", "parameters": math.nan, "width": math.nan, "warmup": 0, "unit": "step",
            "linear_examples": None, "numbers": {}, **dict.fromkeys(PER_LEVEL, {})}
LIMITS = {"chance": (0, 1), "chance_log_prob": (-math.inf, 0),
          **dict.fromkeys(("warmup", "width", "parameters"), (0, math.inf))}
SHARES = ("accuracy", "accuracy_train", "accuracy_test", "token_accuracy")
CHECKS = ("distinct", "linear_probe_shuffled", "marginal_kl", "mean_share")
ENDS, ERRORS = ("embedding", "final_norm"), ("error", "mc_error")
NO_LAYER = ("rankme", "rankme.first", "rankme.answer", "rankme.last")       # of one layer, unnamed


@dataclass(eq=False)              # compared, and cached, by identity
class Run:                        # NaN: not measured
    name: str
    config: dict                  # config.json, completed by DEFAULTS
    levels: list                  # (L,) names such as "add-1"; controls begin with "sham-"
    steps: np.ndarray             # (S,) all steps at which anything was measured
    curves: dict                  # {quantity: (L, S)}

    def table(self, quantity):
        """One quantity of all levels, (L, S); if it has layers, that after the last block."""
        if quantity in NO_LAYER:
            return self.rankme_at(quantity.partition(".")[2], -2)
        if quantity in self.layered:
            return layer_of(self.layered[quantity], -2)
        return self.curves.get(quantity, self.unmeasured)

    @functools.cached_property
    def unmeasured(self):
        return np.full((len(self.levels), len(self.steps)), math.nan)

    def per_level(self, key, default):
        """An entry of the config, {level: number}, or one number for all of them: (L, 1).

        The number of the level "" is for those that have none of their own."""
        entry = self.config[key]
        values = entry if isinstance(entry, dict) else {"": entry}
        found = [values.get(level, values.get("")) for level in self.levels]
        return np.array([[default if x is None else x] for x in found], dtype=float)

    @property
    def held_back(self):
        """Were operands kept from training?  Then these count: knowing by heart is no capability"""
        return "accuracy_test" in self.curves

    @functools.cached_property
    def accuracy(self):
        return self.table("accuracy_test" if self.held_back else "accuracy")

    @functools.cached_property
    def shams(self):
        """(L,) bool: is it a control, whose answers are shuffled so that no model can learn it?"""
        return np.array([level.startswith("sham-") for level in self.levels], dtype=bool)

    @functools.cached_property
    def layer_names(self):
        """{quantity: [its layers]} of curves such as "rankme.first.embedding", "mean_share.0".

        Of RankMe any names; of others, where one is a number, or among ENDS."""
        found = {}
        for name in self.curves:
            quantity, _, layer = (name, "", "") if name in NO_LAYER else name.rpartition(".")
            if quantity and layer not in ERRORS:
                found.setdefault(quantity, []).append(layer)
        return {quantity: in_order(layers) for quantity, layers in found.items()
                if quantity.startswith("rankme") or any(x.isdigit() or x in ENDS for x in layers)}

    @functools.cached_property
    def layered(self):
        """{quantity: (L, layers, S)}; a layer of NaN where it was not measured."""
        return {quantity: np.stack([self.curves.get(f"{quantity}.{layer}".rstrip("."),
                                                    self.unmeasured) for layer in layers], axis=1)
                for quantity, layers in self.layer_names.items()}

    def rankme_layers(self, position):
        """(L, layers, S) RankMe at one position, or where it was measured at one alone."""
        found = {name: layers for name, layers in self.layered.items()
                 if name.partition(".")[0] == "rankme"}
        if len(found) == 1:
            return next(iter(found.values()))
        return found.get(f"rankme.{position}", self.unmeasured[:, None])

    def rankme_at(self, position, layer):
        """(L, S).  RankMe at one position and layer; NaN where it was not measured."""
        return layer_of(self.rankme_layers(position), layer)

    @functools.cached_property
    def measures(self):
        """Names of the measured quantities that are neither behaviour nor RankMe."""
        known = {*SHARES, *CHECKS}
        if self.config["chance_log_prob"]:                      # else it has no scale
            known |= {"log_prob"}
        if "log_prob" in self.curves:                           # of which the loss is a part
            known |= {"loss"}
        for quantity, layers in self.layer_names.items():
            known |= {f"{quantity}.{layer}" for layer in layers}
        names = dict.fromkeys([*self.config["numbers"], *self.curves, *self.layered])
        return [name for name in names
                if name not in known and name.rpartition(".")[2] not in ERRORS
                and name.partition(".")[0] not in ("rankme", "joint")
                and not np.isnan(self.table(name)).all()]

    def error_of(self, name):
        """(L, S) the standard error of a measure's own values; 0 where none was recorded."""
        if name == "linear_probe" and self.config["linear_examples"]:
            share = self.table(name)
            return np.sqrt(share * (1 - share) / (self.config["linear_examples"] / 4))
        for place in (f"{name}.{error}" for error in ERRORS):
            if place in self.curves:
                return np.nan_to_num(self.curves[place])
        return np.zeros_like(self.unmeasured)


def in_order(layers):
    """From the embedding to the final norm, measured or not, with the blocks between them: numbers
    in their order, also within a name that they have in common (a logger may put block10 before
    block2); other names in that of appearance.  Numbers from 0 on are places in a list of hidden
    states, of which the first is the embedding and the last the final norm."""
    blocks = [layer for layer in layers if layer not in ENDS]
    numbers = {layer: re.fullmatch(r"(\D*)(\d+)(\D*)", layer) for layer in blocks}
    if all(numbers.values()) and len({found.group(1, 3) for found in numbers.values()}) == 1:
        blocks.sort(key=lambda layer: int(numbers[layer][2]))
    places = blocks[:1] == ["0"] and len(blocks) == len(layers)
    return blocks if places else [ENDS[0], *blocks, ENDS[1]]


def layer_of(layers, index):
    """(L, layers, S) -> (L, S).  There may be fewer layers than the index asks for."""
    return layers[:, max(index, -layers.shape[1])]


def from_table(rows: Iterable, configs: dict | None = None, unit: str = "step") -> list[Run]:
    """A table of measurements, one number per row -> runs, in order of appearance.

    rows: dicts with the keys run, level, step, quantity, value, tuples in that order, or a pandas
      frame.  Numbers may be text; None, "" and NaN: not measured.  A step twice: the last counts,
      and a warning says so.  Steps may be fractions, or tokens (unit: their name); runs, levels and
      quantities may have any steps of their own, and a run may still go on.
    Quantities: accuracy, which is enough, accuracy_train, accuracy_test, token_accuracy, log_prob,
      distinct (how many inputs differ), rankme, rankme.<position>.<layer> (see in_order).  All
      others are measures: dated, drawn, and in the table of leads; <name>.error is a measure's
      standard error; joint.<name>, of all levels together, is only drawn (report.JOINT).  SETTINGS
      may be quantities too.  The level "" is the whole model: its quantities hold for every level.
    configs: {run: its config.json as a dict}; what is absent is as in DEFAULTS, chance 0, the seed
      the run's place.  examples: a number, or {level: number}; None: all that there are.
      levels: in order of appearance; where a config names them, others are left out.
    ValueError for no rows, a missing key, what is no number, an accuracy not between 0 and 1, a
      RankMe below 1, a run or level of configs that the rows lack.

    >>> table = [("mine", "add-1", step, "accuracy", step / 100) for step in range(100)]
    >>> float(event_table(from_table(table)).emergence[0, 0])
    30.0
    """
    found, twice = {}, []         # {run: {(level, quantity): {step: value}}}
    if hasattr(rows, "to_dict"):
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    for number, row in enumerate(rows, start=1):
        try:
            run, level, step, quantity, value = (
                [row[name] for name in COLUMNS] if isinstance(row, dict) else row)
            hash((run, level, quantity))                        # TypeError: a list is no name
            run, level, step = str(run), "" if level is None else str(level), float(step)
            if quantity not in SETTINGS and not 0 <= step < math.inf:
                raise ValueError
            curve = found.setdefault(run, {}).setdefault((level, quantity), {})
            if step in curve:
                twice.append(f"{quantity} at step {step:g} of {run}")
            if quantity != "size":
                value = math.nan if value is None or value == "" else float(value)
                value = value if math.isfinite(value) else math.nan         # diverged
            curve[step] = value
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(f"from_table: row {number} is {row!r:.200}, expected: "
                             f"{', '.join(COLUMNS)}, numbers as step (>= 0) and value") from None
    configs = {str(name): config for name, config in (configs or {}).items()}
    for name in configs.keys() - found.keys():
        raise ValueError(f"from_table: configs has run {name!r}, the table {[*found]!s:.200}")
    if not found:
        raise ValueError("from_table: the table has no rows")
    if twice:
        warnings.warn(f"values measured twice, of which the last counts: {len(twice)}, such as "
                      f"{twice[0]}", stacklevel=2)
    levels = {level: None for series in found.values() for level, quantity in series
              if level and quantity not in SETTINGS}
    return [_run(name, series, levels, {"seed": k, **DEFAULTS, "unit": unit}, configs.get(name, {}))
            for k, (name, series) in enumerate(found.items())]


def _run(name, series, levels, config, given):
    """series: {(level, quantity): {step: value}}.  given: stands above config and the table."""
    steps = np.unique([step for (_, quantity), curve in series.items()
                       if quantity not in SETTINGS for step in curve])
    if not len(steps):
        raise ValueError(f"from_table: run {name!r} has settings alone")
    there, levels, curves = set(levels), list(given.get("levels") or levels or ["all"]), {}
    for (level, quantity), curve in series.items():
        if quantity in SETTINGS:
            known = [x for x in curve.values() if x not in (None, "") and x == x]
            known = [str(x) if quantity == "size" else plain(x) for x in known[-1:]]
            if known and quantity in PER_LEVEL:
                config[quantity] = config[quantity] | {level: known[0]}
            elif known:
                config[quantity] = known[0]
        elif level in levels or not level:
            unmeasured = np.full((len(levels), len(steps)), math.nan)
            table, place = curves.setdefault(quantity, unmeasured), np.searchsorted(steps, [*curve])
            values = np.array([*curve.values()])
            if level:
                table[levels.index(level), place] = values
            else:                                               # the model's, for want of its own
                table[:, place] = np.where(np.isnan(table[:, place]), values, table[:, place])
    for quantity, table in curves.items():
        if quantity in SHARES:
            check_share(table, f"run {name!r}: {quantity}")
        rank = quantity.partition(".")[0] == "rankme" and quantity.rpartition(".")[2] not in ERRORS
        for k, s in np.argwhere((table < 0.99) | (table > 1e9)) if rank else ():    # .99: rounding
            raise ValueError(f"run {name!r}, level {levels[k]}, step {steps[s]:g}: {quantity} "
                             f"{table[k, s]:g}: a RankMe is at least 1, at most the width")
    whole = (steps == np.floor(steps)).all() and steps[-1] < 2 ** 53
    config |= {key: str(x) if key == "size" else x for key, x in given.items() if x is not None}
    run = Run(name, config, levels, steps.astype(int) if whole else steps, curves)
    check_config(run, there or set(levels))
    if not config["size"] and np.isfinite(config["parameters"] or math.nan):
        config["size"] = f"{config['parameters'] / 1e6:.3g}M"   # sizes are told apart by name
    return run


def check_config(run, there):
    """ValueError for a number out of LIMITS, and for names of no level where a level has none."""
    for key in ("levels", *PER_LEVEL):
        named = run.config.get(key)
        named = {*named} if named and isinstance(named, (dict, list, tuple)) else there
        if there - named and named - there - {""}:
            raise ValueError(f"run {run.name!r}: {key} names {sorted(named, key=str)!s:.200}, but "
                             f"the levels are {sorted(there)!s:.200}")
    for key, (low, high) in LIMITS.items():
        try:
            values = run.per_level(key, low)
        except (TypeError, ValueError):                         # no numbers
            values = np.array([math.inf])
        if run.config[key] is not DEFAULTS[key] and not ((low <= values) & (values < high)).all():
            raise ValueError(f"run {run.name!r}: {key} {run.config[key]!r:.80}: expected numbers "
                             f"of at least {low} and below {high}")


# ------------------------------------------------------------------------------------------------
# From runs to their events

ARRAYS = ("onset", "emergence", "first", "censored", "floor", "floor_step", "start", "ceiling")


@dataclass(frozen=True, eq=False)
class EventTable:                 # arrays are (R, L); a step that never came is infinity
    runs: list                    # (R,)
    levels: tuple                 # (L,)
    dated_by: dict                # the keywords of event_table
    onset_rule: str               # the row of ONSETS that was used
    onset: np.ndarray             # step at which RankMe begins to recover; NaN: it has no date
    emergence: np.ndarray         # step at which behaviour emerges; NaN: it was not measured
    first: np.ndarray             # the first snapshot that counts
    censored: np.ndarray          # the last step at which an emergence could be dated
    floor: np.ndarray             # the lowest RankMe; NaN where it was not measured
    floor_step: np.ndarray
    start: np.ndarray             # RankMe of the untrained model
    ceiling: np.ndarray           # RankMe is at most that

    @functools.cached_property
    def tasks(self):
        """(L,) names of the levels without their numbers."""
        return tuple(split_level(level)[0] for level in self.levels)

    @functools.cached_property
    def shams(self):
        return self.runs[0].shams[self.rows]

    @functools.cached_property
    def rows(self):
        """(L,) the rows of these levels in the curves of any of the runs."""
        return [self.runs[0].levels.index(level) for level in self.levels]

    @functools.cached_property
    def owner(self):
        """(T, L) bool: which levels belong to each task."""
        tasks = np.array(self.tasks)
        return np.array([tasks == task for task in dict.fromkeys(self.tasks)])

    @functools.cached_property
    def partners(self):
        """(L, T): the level of each task that has the number of level l; -1 where it has none."""
        places = {split_level(level): k for k, level in enumerate(self.levels)}
        return np.array([[places.get((task, split_level(level)[1]), -1)
                          for task in dict.fromkeys(self.tasks)] for level in self.levels])

    @functools.cached_property
    def arrivals(self):
        """(R, L) emergence; minus infinity for what was there when watching began, for nothing
        can be seen to come before that: it is in no rate, and in no risk set."""
        return np.where(self.emergence <= self.first, -np.inf, self.emergence)

    def of_partners(self, dates):
        """(R, L) -> (R, L, T): of level l, the date of its partner in each task; NaN for none."""
        none = np.full((len(dates), 1), math.nan)
        return np.concatenate([dates, none], axis=1)[:, self.partners]

    def by_task(self, values):
        """(R, L, T) -> (R, T, T): sums over the levels of each task, which become the rows."""
        return np.einsum("jl,rli->rji", self.owner.astype(float), values)

    def subset(self, runs=slice(None), levels=slice(None)) -> "EventTable":
        """Some of the runs and of the levels, as indices or bool."""
        r, k = np.arange(len(self.runs))[runs], np.arange(len(self.levels))[levels]
        arrays = {name: getattr(self, name)[np.ix_(r, k)] for name in ARRAYS}
        return replace(self, runs=[self.runs[i] for i in r],
                       levels=tuple(self.levels[i] for i in k), **arrays)

    def only(self, shams: bool = False) -> "EventTable":
        return self.subset(levels=self.shams == shams)


def split_level(level):
    """ "modadd-2" -> ("modadd", "2"); "chess" -> ("chess", "")."""
    task, _, number = level.rpartition("-")
    return (task, number) if task and number.isdigit() else (level, "")


def event_table(runs, threshold=0.3, persistence=3, lasting=1.25, behaviour="accuracy",
                onset="shams", rise=0.2, position="first", layer=-2, smoothing=3,
                warmup=True) -> EventTable:
    """Date the events of all runs, each curve on the snapshots at which it was measured.

    threshold: share of the way from chance to perfect that counts as emerged.
    persistence, lasting: how long an emergence, or an onset, must last: see first_lasting.
    behaviour: "accuracy", or "log_prob": 1 - log p of the answer / log p of the best blind answer.
    onset: the row of ONSETS; where it needs shams, and a run has RankMe of none, "floor" is used.
    rise: RankMe counts as recovering when it is that fraction above its bar.
    position: whose hidden state: where the "first" answer token is predicted (nothing of the answer
      is known there), all "answer" tokens, or the "last" token of the line (all of it is known).
    layer: -2 the last block, -1 the final LayerNorm; at position "first" also 0, the embedding.
    smoothing: snapshots of RankMe's running median.  warmup: does the learning rate's count?
    ValueError if the runs do not have the same levels, or the threshold is in percent."""
    check_threshold(threshold)
    lasts = dict(persistence=persistence, lasting=lasting, warmup=warmup)
    where = dict(position=position, layer=layer, smoothing=smoothing, rise=rise)
    dated_by = dict(threshold=threshold, behaviour=behaviour, onset=onset, **lasts, **where)
    def bare(run):                                              # RankMe, but of no sham
        curves = run.rankme_at(position, layer)
        return np.isnan(curves[run.shams]).all() and not np.isnan(curves).all()
    needs = onset in NEED_SHAMS and (not runs[0].shams.any() or any(map(bare, runs)))
    rule, rows = "floor" if needs else onset, []
    for run in runs:
        if run.levels != runs[0].levels:
            raise ValueError(f"event_table: {runs[0].name} and {run.name} have different levels")
        rows.append(emergences(run, behaviour, threshold, **lasts)
                    | geometry(run, rule, **lasts, **where))
    tables = {name: np.array([row[name] for row in rows], dtype=float) for name in ARRAYS}
    return EventTable(list(runs), tuple(runs[0].levels), dated_by, rule, **tables)


def measured_at(run, values, warmup=True):
    """(S,) bool: the snapshots at which any of the curves (..., S) was measured.

    Without warmup: those after it, and the last one."""
    measured = ~np.isnan(values).all(axis=tuple(range(values.ndim - 1)))
    if measured.any() and not warmup:
        measured &= run.steps >= min(run.config["warmup"], run.steps[measured][-1])
    return measured


def own_grids(curves):
    """The rows of curves (L, S) that were measured at the same snapshots: (L,) and (S,) bool."""
    measured = ~np.isnan(curves)
    alike = (measured == measured[:1]).all()                    # sorting takes its time
    for snapshots in measured[:1] if alike else np.unique(measured, axis=0):
        if snapshots.any():
            yield (measured == snapshots).all(-1), snapshots


def latest(steps, curves, at):
    """(L, J): what was last measured of each curve (L, S) by the steps `at`; NaN for nothing."""
    place = np.where(np.isnan(curves), -1, np.arange(curves.shape[1]))
    place = np.maximum.accumulate(np.pad(place, ((0, 0), (1, 0)), constant_values=-1), axis=1)
    place = place[:, np.searchsorted(steps, at, side="right")]
    return np.where(place < 0, math.nan, np.take_along_axis(curves, np.maximum(place, 0), 1))


def at_start(curves):
    """(L,): what was first measured of each curve (L, S); NaN for nothing."""
    return np.take_along_axis(curves, (~np.isnan(curves)).argmax(-1)[:, None], 1)[:, 0]


def steps_at(steps, index):
    """Indices of snapshots -> steps; infinity, for "never", where an index is -1 or too large."""
    return np.append(steps, np.inf)[index]


def way_from_chance(run, behaviour):
    """values (L, S) and chance (L, 1) of a behaviour, whose (values - chance) / (1 - chance) count.

    "log_prob" is the share of the answer's entropy that is explained; others are accuracies."""
    chance = run.per_level("chance", 0.0)
    if behaviour == "log_prob":
        explained = 1 - run.table("log_prob") / run.per_level("chance_log_prob", math.nan)
        return explained, np.zeros_like(chance)
    if behaviour == "token_accuracy":     # chance not recorded: as if all tokens were alike
        alike = chance ** (1 / run.per_level("answer_tokens", 1))
        known = run.per_level("token_chance", math.nan)
        return run.table(behaviour), np.where(np.isnan(known), alike, known)
    return run.accuracy if behaviour == "accuracy" else run.table(behaviour), chance


@functools.lru_cache(maxsize=5000)        # the multiverse of claims.py asks again and again
def emergences(run, behaviour, threshold, persistence, lasting, warmup):
    """{"emergence", "first", "censored"}: (L,) steps, of each level on snapshots of its own."""
    values, chance = way_from_chance(run, behaviour)
    values = np.where(measured_at(run, values, warmup), values, math.nan)
    examples = run.per_level("examples", math.inf)
    emergence, first, censored = np.multiply.outer((np.nan, 0, -np.inf), np.ones(len(values)))
    for rows, on in own_grids(values):
        steps = run.steps[on]
        index = emergence_index(values[rows][:, on], steps, chance[rows], examples[rows],
                                threshold, persistence, lasting)
        emergence[rows], first[rows] = steps_at(steps, index), steps[0]
        in_time = np.append(steps, -np.inf)[max(len(steps) - persistence, -1)]
        censored[rows] = min(steps[-1] / lasting, in_time)
    return {"emergence": emergence, "first": first, "censored": censored}


@functools.lru_cache(maxsize=5000)
def geometry(run, rule, persistence, lasting, warmup, position, layer, smoothing, rise):
    """What RankMe says in one run: {name of an array of EventTable: (L,)}."""
    floor, floor_step, smooth = floors(run, position, smoothing, warmup)
    counts = ~np.isnan(smooth).all(axis=(0, 1))                             # (S,)
    if rule in NEED_SHAMS:            # their bar may have been crossed within the warm-up
        *_, smooth = floors(run, position, smoothing, True)
    curves = layer_of(smooth, layer)
    shams, onset = latest(run.steps, curves[run.shams], run.steps), np.full(len(curves), math.nan)
    for rows, on in own_grids(curves):
        risen = ONSETS[rule](curves[rows][:, on], shams[:, on], run.steps[on], rise)
        steps = run.steps[on & counts]
        index = first_lasting(risen[:, counts[on]], steps, persistence, lasting)
        onset[rows] = steps_at(steps, index)
    # RankMe is at most the number of distinct states, and at most the width
    states = run.per_level("answer_tokens", 1)[:, 0] if position == "answer" else 1
    return {"onset": onset, "start": at_start(run.rankme_at(position, layer)),
            "floor": layer_of(floor, layer), "floor_step": layer_of(floor_step, layer),
            "ceiling": np.fmin(states * at_start(run.table("distinct")), run.config["width"])}


@functools.lru_cache(maxsize=500)
def floors(run, position, smoothing, warmup):
    """floor (L, layers), its step, smoothed RankMe (L, layers, S); NaN where it does not count."""
    values = run.rankme_layers(position)
    counts = measured_at(run, values, warmup)
    curves = np.where(counts, values, math.nan).reshape(-1, len(run.steps))     # (L layers, S)
    for rows, on in own_grids(curves):
        curves[np.ix_(rows, on)] = running_median(curves[rows][:, on], smoothing)
    smooth = curves.reshape(values.shape)
    floor, low, _ = recovery(smooth, 0.0)
    return floor, np.where(np.isnan(floor), np.inf, run.steps[low]), smooth


# ------------------------------------------------------------------------------------------------
# What chance gives.  Whole tasks are exchanged: each task's behaviour gets the geometry of another,
# in all levels, seeds and sizes alike, for they repeat what tasks do.  A statistic is a sum over
# pairs (whose behaviour j, whose geometry i): a table (T, T), of which an exchange picks T entries.

def exchanges(tasks: Sequence, count: int = 10_000, seed: int = 0) -> np.ndarray:
    """Every way to exchange whole tasks, (M, T): in row m, task j gets the geometry of task [m, j].

    tasks: labels, numbered as they appear; those that come again, as of levels, count once.
    Up to 9 tasks: all T! permutations, each once.  More: `count` rows in all, drawn at random with
    `seed`, equally likely.  The first row of all leaves everything as it is.
    Exercise: emergence.exchanges (set 4, 10 points)
    Hint: itertools.permutations; rng.permuted(x, axis=1) shuffles each row of x by itself."""
    T = len(set(tasks))
    if T <= 9:
        return np.array(list(itertools.permutations(range(T))))
    drawn = np.tile(np.arange(T), (count, 1))
    drawn[1:] = np.random.default_rng(seed).permuted(drawn[1:], axis=1)
    return drawn


def exchanged(table, permutations):
    """What a table (..., T, T) adds up to under each exchange: (..., M)."""
    T = table.shape[-1]
    return table[..., np.arange(T), permutations].sum(-1)


def precursor_counts(events):
    """How often task i's geometry comes before task j's emergence: (first, counted), (R, T, T).

        counted[r, j, i] = #{levels of task j that emerge while watched, and whose partner in
                             task i has an onset that can be dated}
        first[r, j, i] = #{those of them whose partner's onset comes before the emergence}

    events.onset: (R, L), NaN where it cannot be dated; infinity, never, is a date that counts.
    events.arrivals: (R, L), finite for what emerges while it is watched; neither infinity nor minus
    infinity counts.  events.of_partners(dates) makes (R, L, T) of (R, L), NaN without a partner.
    events.by_task(values) sums (R, L, T) over the levels of each task.  No more of events is
    needed.  An onset at the very step of emergence is not before it.
    Exercise: emergence.precursor_counts (set 4, 10 points)
    Hint: events.arrivals[:, :, None] stands beside every partner."""
    onset, emergence = events.of_partners(events.onset), events.arrivals[:, :, None]
    counted = np.isfinite(emergence) & ~np.isnan(onset)                     # (R, L, T)
    first = counted & (onset < emergence)
    return events.by_task(first), events.by_task(counted)


def p_value(values):
    """How often chance is at least as far out as what was observed.

        p = #{m: values_m >= values_0 - 1e-9} / M

    values: (M,), of the observed data, m = 0, then of M - 1 exchanged data sets (NaN there: not far
    out).  What was observed counts too.  None for M < 2, or if the observed value is NaN.
    Exercise: emergence.p_value (set 4, 5 points)
    Hint: it is never 0, but 1 / M at the least: the data as they are could have happened."""
    if len(values) < 2 or math.isnan(values[0]):
        return None
    return float((values >= values[0] - 1e-9).mean())


# ------------------------------------------------------------------------------------------------
# Forecast: does geometry say anything that behaviour does not?

RATIO, PHASES, START, PENALTIES = 1.5, 5, 20, (0.3, 3.0, 30.0)
BEHAVIOUR = ("log_prob", "accuracy", "token_accuracy",
             "log_prob slope", "accuracy slope", "token_accuracy slope")


class Forecast(NamedTuple):
    gain: float                   # in log score (nats) per emergence, beyond behaviour's
    low: float                    # a 95% t interval over what was left out
    high: float
    p: float | None               # how often another task's features gain as much
    each: dict                    # {task or run that was left out: its part of the gain}
    emergences: float
    rows: int
    features: tuple
    over: str                     # "task" or "run"


def forecast(runs, features, over="task", null=0, seed=0, events=None) -> Forecast | None:
    """What do features add to a forecast of emergence by BEHAVIOUR, on a task never seen?

    Rows: each level at each landmark 20 * 1.5^(j + phase / 5), all five phases with weight 1/5, as
    long as it has not emerged.  (Where steps are epochs, or tokens, the first step replaces 20.)
    Target: it emerges within the next factor 1.5, if that window could be watched whatever
    happened.  The level's number, log step and its square are always known; behaviour and features
    are read at the landmark, or from before.  The forecast is a logistic regression with a ridge
    penalty.  Each task (or run: `over`) is left out once, and the penalty is chosen in the same way
    among the others.
    features: names of columns; "rankme.answer" is the log of RankMe after the last block there.
      With " slope": the change since a factor 1.5 ago; with " excess": above the highest sham.
    null: so many exchanges of whole tasks' features give the p-value; 0: none.  events: whose
      emergences count; None: those by the default keywords.
    Returns None where nothing can be told: fewer than 3 groups, or no emergence."""
    events = (event_table(runs) if events is None else events).only()
    known, extra, target, (r, level, j), table = landmark_rows(events, features)
    groups, names = (r, [run.name for run in events.runs])
    if over == "task":
        groups, names = events.owner.argmax(0)[level], list(dict.fromkeys(events.tasks))
    if len(np.unique(groups)) < 3 or not target.any():
        return None
    # behaviour alone, then with features; each with penalties of its own
    without, _ = left_out_scores(known, target, groups)
    scores, penalties = left_out_scores(np.concatenate([known, extra], 1), target, groups)
    emergences = target.sum() / PHASES
    each = np.bincount(groups, (scores - without) / emergences)
    each = {names[g]: float(each[g]) for g in np.unique(groups)}
    # the same with the features of another task
    found, orders, task = [sum(each.values())], exchanges(events.tasks), events.owner.argmax(0)
    for order in orders[np.random.default_rng(seed).integers(1, len(orders), null)]:
        partner = events.partners[level, order[task[level]]]                # (N,)
        extra = np.where((partner >= 0)[:, None], table[:, r, partner, j].T, math.nan)
        scores, _ = left_out_scores(np.concatenate([known, extra], 1), target, groups, penalties)
        found.append((scores - without).sum() / emergences)
    gain, n = found[0], len(each)                               # the sum of n parts
    half = t_quantile(n - 1) * math.sqrt(n) * float(np.std(list(each.values()), ddof=1))
    return Forecast(gain, gain - half, gain + half, p_value(np.array(found)), each,
                    float(emergences), len(target), tuple(features), over)


def landmark_rows(events, features):
    """known (N, K), features (N, F), target (N,), places of rows; all features (F, R, L, J)."""
    every = np.concatenate([run.steps for run in events.runs])
    least, most = min(every[every > 0], default=1), max(every.max(), 1e-9)
    start = START if least <= START <= most else least          # of tokens, or epochs
    steps = start * RATIO ** np.arange(0, math.log(most / start) / math.log(RATIO), 1 / PHASES)

    def columns(names):
        found = [[trailing(run, name, steps)[events.rows] for run in events.runs] for name in names]
        return np.array(found).reshape(len(names), *events.onset.shape, len(steps))
    told, table = columns(BEHAVIOUR), columns(features)
    told = told[~np.isnan(told).all((2, 3)).any(1)]             # those that all runs have
    # at risk: not emerged yet, watched to the end of the window, and everything measured
    at_risk = (events.arrivals[..., None] > steps) & (RATIO * steps <= events.censored[..., None])
    r, level, j = (at_risk & np.isfinite([*told, *table]).all(0)).nonzero()
    numbers = np.array([split_level(name)[1] for name in events.levels])[level]
    clock = np.log(steps)[j]
    known = np.stack([clock, clock ** 2, *[numbers == x for x in np.unique(numbers)[1:]],
                      *told[:, r, level, j]], axis=1)
    return (known, table[:, r, level, j].T, events.arrivals[r, level] <= RATIO * steps[j],
            (r, level, j), table)


def trailing(run, feature, steps):
    """(L, J): a feature of every level at the given steps, the last that was measured by then."""
    name, _, kind = feature.rpartition(" ")
    if kind not in ("slope", "excess"):                         # a name may have spaces
        name, kind = feature, ""
    curves = np.log(run.table(name)) if name.startswith("rankme") else run.table(name)
    if name in ("accuracy", "token_accuracy", "log_prob"):
        values, chance = way_from_chance(run, name)
        curves = (values - chance) / (1 - chance)
    if kind == "excess":
        curves = curves - np.fmax.reduce(curves[run.shams])
    now = latest(run.steps, curves, steps)
    return now - latest(run.steps, curves, steps / RATIO) if kind == "slope" else now


def left_out_scores(X, target, groups, penalties=None):
    """Log score of each row, by a fit without its group: (scores (N,), {group: penalty}).

    The penalties, if not given, are best where each of the other groups is left out as well."""
    def score(out, penalty):
        inside = ~np.isin(groups, out)
        mean, scale = np.nanmean(X[inside], axis=0), np.nanstd(X[inside], axis=0)
        Z = np.nan_to_num((X - mean) / np.where(scale > 1e-9, scale, np.inf))   # missing: the mean
        Z = np.concatenate([np.ones((len(Z), 1)), Z], axis=1)
        w = ridge_logistic(Z[inside], target[inside], 1 / PHASES, penalty)
        return -np.logaddexp(0, np.where(target, -1, 1) * (Z @ w)) / PHASES

    names = np.unique(groups)
    if penalties is None:
        # leaving out two groups serves both: each is the inner one of the other
        inner = np.zeros((len(PENALTIES), names[-1] + 1))
        for k, penalty in enumerate(PENALTIES):
            for a, b in itertools.combinations(names, 2):
                found = np.bincount(groups, score([a, b], penalty))
                inner[k, a] += found[b]
                inner[k, b] += found[a]
        penalties = {g: PENALTIES[inner[:, g].argmax()] for g in names}
    scores = np.zeros(len(target))
    for g in names:
        scores[groups == g] = score([g], penalties[g])[groups == g]
    return scores, penalties


def ridge_logistic(X, y, weight, penalty):
    """Logistic regression by Newton's method: the w, (K,), that minimise

        weight * sum_n log(1 + exp(-(2 y_n - 1) x_n w)) + penalty / 2 * sum of w_k^2, k > 0

    X: (N, K), whose column 0 is 1: its coefficient is not penalised.  y: (N,) bool."""
    w, ridge = np.zeros(X.shape[1]), np.array([1e-8] + [penalty] * (X.shape[1] - 1))
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(X @ w, -30, 30)))
        gradient = weight * X.T @ (p - y) + ridge * w
        curvature = (X.T * (weight * p * (1 - p))) @ X + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        w -= step / max(1.0, np.abs(step).max() / 2)            # no step beyond 2 in any direction
        if np.abs(step).max() < 1e-7:
            break
    return w


# ------------------------------------------------------------------------------------------------
# Effect: does a treatment move emergence?  Two arms of runs, which are pairs of one size and seed.

NO_EFFECT = math.log(1.1)         # a 90% interval within that, either way, is "no effect"
PairedMean = namedtuple("PairedMean", "mean sd half half90 p")


class Shift(NamedTuple):          # in log steps: exp of one is a factor; negative: it comes sooner
    level: str                    # a task-level, or "mean" over all of them
    emerged: tuple                # in how many runs: (control, treated)
    shift: float                  # mean over pairs of log min(T, step), treated less control
    low: float                    # its 95% interval, Student's t over pairs
    high: float
    p: float | None               # mean: by sign_flip; a level: Student's, with Holm's correction
    model: float                  # the shift by a log-normal model: see censored_shift
    needed: int | None            # so many pairs would show a shift of 10% with power .8
    verdict: str                  # earlier, later, no effect, cannot tell, never emerges


class Effect(NamedTuple):
    pairs: tuple                  # names of the treated runs
    end: float                    # T, the last snapshot
    mean: Shift
    levels: list                  # of Shift
    differences: np.ndarray       # (pairs, L)


def effect(control, treated, **keywords) -> Effect:
    """Does a treatment move emergence?  control, treated: runs, paired by size and seed.

        shift = mean over pairs of [log min(T, step), treated  -  log min(T, step), control]

    for each task-level, shams apart, and for their mean; T is the last snapshot.  A level counts
    even if it emerges in one arm only, or in none.  The unit is the pair.  A level's standard
    deviation is at least what dates rounded to snapshots give: their distance / sqrt(6).
    Verdict: "no effect" where the 90% interval lies within log 1.1 either way (of each level by
    itself); else "earlier" or "later" where p < .05; else "cannot tell".
    keywords: of event_table.  ValueError if nothing pairs, the levels differ, or no level has been
    measured in all of these runs: those that have not are left out."""
    arms = pair_arms(control, treated, **keywords)
    known = ~np.isnan([arm.emergence for arm in arms]).any((0, 1))          # (L,)
    if not known.any():
        raise ValueError("effect: no task-level whose behaviour was measured in all of these runs")
    before, after = (arm.subset(levels=known) for arm in arms)
    times, steps = np.stack([before.emergence, after.emergence]), before.runs[0].steps
    since = steps[np.maximum(np.searchsorted(steps, times) - 1, 0)]         # the snapshot before
    soonest = steps[steps > 0][0]                                           # 0 has no logarithm
    logs, since = (np.log(np.clip(x, soonest, steps[-1])) for x in (times, since))
    differences, never = logs[1] - logs[0], np.isinf(times)                 # (pairs, L)
    watched = np.log(np.clip([before.censored, after.censored], soonest, None))
    model = censored_shift(np.where(never, watched, since), np.where(never, np.inf, logs))

    widths = (logs - since).mean((0, 1))                                    # (L,)
    found = [paired_mean(x, w / math.sqrt(6)) for x, w in zip(differences.T, widths)]
    emerged = (~never).sum(1).T                                             # (L, 2)
    p = holm([one.p if count.any() else None for one, count in zip(found, emerged)])
    levels = [shift_row(*row) for row in zip(before.levels, emerged, found, p, model)]
    of_all, known = differences.mean(1), model[~np.isnan(model)]
    mean = shift_row("mean", emerged.sum(0), paired_mean(of_all), sign_flip(of_all),
                     known.mean() if len(known) else math.nan)
    return Effect(tuple(x.name for x in after.runs), float(steps[-1]), mean, levels, differences)


def paired_runs(control, treated):
    """Two lists of runs -> those of a size and seed that both have (of several, the first), in one
    order, at the snapshots that all have (a finer grid dates earlier).  Fewer than three: none."""
    arms = [{(run.config["size"], run.config["seed"]): run for run in reversed(runs)}
            for runs in (control, treated)]
    pairs = sorted(arms[0].keys() & arms[1].keys())
    chosen = [arm[pair] for arm in arms for pair in pairs]
    steps = functools.reduce(np.intersect1d, [run.steps for run in chosen]) if pairs else ()
    for k, run in enumerate(chosen):
        there = np.isin(run.steps, steps)
        curves = {name: curve[:, there] for name, curve in run.curves.items()}
        chosen[k] = run if there.all() else replace(run, steps=steps, curves=curves)  # dated once
    return (chosen[:len(pairs)], chosen[len(pairs):]) if len(steps) >= 3 else ([], [])


def pair_arms(control, treated, **keywords):
    """Two EventTables without shams, of `paired_runs` row by row.  keywords: of event_table."""
    control, treated = paired_runs(control, treated)
    if not control:
        raise ValueError("effect: no pair of one size and seed, with three snapshots in common")
    events, n = event_table([*control, *treated], **keywords).only(), len(control)
    return events.subset(runs=slice(n)), events.subset(runs=slice(n, None))


def paired_mean(differences, least_sd=0.0):
    """Mean, sd, half of its 95% and of its 90% interval by Student's t, and p: a PairedMean.

    All but the mean are NaN and None for fewer than two differences, or where one is missing."""
    mean, n = float(np.mean(differences)), len(differences)
    if n < 2 or math.isnan(mean):
        return PairedMean(mean, math.nan, math.nan, math.nan, None)
    sd = max(float(np.std(differences, ddof=1)), least_sd)
    error = max(sd / math.sqrt(n), 1e-12)
    halves = [t_quantile(n - 1, confidence) * error for confidence in (0.95, 0.9)]
    return PairedMean(mean, sd, *halves, t_p_value(mean / error, n - 1))


def sign_flip(differences):
    """How often signs drawn by lot give a mean at least as far from 0: p, two-sided.

    If nothing was done, the runs of a pair could have changed places.  All 2^n ways count, so
    p < .05 takes 6 pairs.  None for one pair; Student's p for more than 16."""
    if not 2 <= len(differences) <= 16:
        return paired_mean(differences).p
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))     # (2^n, n)
    return p_value(abs(signs @ differences) / len(differences))


def shift_row(level, emerged, found, p, model):
    needed = ((1.96 + 0.84) * found.sd / NO_EFFECT) ** 2 + 2                # 2: t is wider
    needed, verdict = None if math.isnan(needed) else math.ceil(needed), "cannot tell"
    if not emerged.any():
        verdict = "never emerges"
    elif abs(found.mean) + found.half90 <= NO_EFFECT:
        verdict = "no effect"
    elif p is not None and p < 0.05:
        verdict = "earlier" if found.mean < 0 else "later"
    return Shift(level, tuple(emerged.tolist()), found.mean, found.mean - found.half,
                 found.mean + found.half, p, float(model), needed, verdict)


def censored_shift(low, high, rounds=100):
    """Treated less control, if log steps are normal and known only to lie in (low, high]: (L,).

    low, high: (2, n, L), control first; infinity for never.  Maximum likelihood with one variance
    for both arms, by expectation-maximisation.  NaN unless both emerge.  A check on `effect`."""
    both = np.isfinite(high).any(1).all(0)
    middle = np.where(np.isinf(high), low, (low + high) / 2)
    mean, sd = middle.mean(1, keepdims=True), middle.std(1).max(0) + 0.05   # (2, 1, L), (L,)
    erf, root = np.vectorize(math.erf, otypes=[float]), math.sqrt(2)
    for _ in range(rounds):
        a, b = (np.clip((end - mean) / sd, -8, 8) for end in (low, high))
        # mean and variance of a normal variable between a and b give those of the arms
        inside = np.maximum(erf(b / root) - erf(a / root), 1e-12) / 2
        at_a, at_b = (np.exp(-x ** 2 / 2) / math.sqrt(2 * math.pi) for x in (a, b))
        moved = (at_a - at_b) / inside
        spread = np.maximum(1 + (a * at_a - b * at_b) / inside - moved ** 2, 0)
        guess = mean + sd * moved
        mean = guess.mean(1, keepdims=True)
        sd = np.sqrt((sd ** 2 * spread + (guess - mean) ** 2).mean((0, 1)) + 1e-6)
    return np.where(both, (mean[1] - mean[0])[0], math.nan)
