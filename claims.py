"""Chapter 5: claims.  What the paper claims, claim by claim, and what a sweep of runs says of it.

A claim is one row of the table CLAIMS at the end: a statistic, what is exchanged to learn what
chance gives, and what counts as holding.  Beside it stand the numbers of the paper (Billa 2026,
arXiv 2602.15997; v1 and v2 agree, v3 and v4 differ).

Every date depends on choices: how clear is "clearly above chance"?  A Specification is one set of
choices.  The *multiverse* recomputes every claim under all reasonable ones (Steegen et al. 2016;
Simonsohn, Simmons & Nelson 2020).  Each claim comes with

    value, interval     under the default choices; over tasks or over runs, whichever is wider
    null, p             what chance gives, and how often it is as far out
    share               under which share of the choices it holds
    verdict             one sentence; "cannot tell", and why, where that is so

To come before emergence is not to lead it: behaviour with a lower bar comes first as well.  So the
table of leads has such rows for reference: a measure leads if its excess over chance is above
theirs.  Claims on arms, runs that differ in what was done to training, are in ARM_CLAIMS.  This
file knows nothing of models, of run directories, and of figures.
"""
import functools
import itertools
import math
import statistics
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Callable, NamedTuple, Sequence

import numpy as np

from emergence import (ONSETS, EventTable, as_times, at_start, effect, emergence_index,
                       emergences, event_table, exchanged, exchanges, first_lasting, floors,
                       forecast, from_below, holm, latest, lead_time, measured_at, order_signs,
                       own_grids, p_value, pair_arms, paired_mean, paired_runs, plain,
                       precursor_counts, rate_with_interval, risk_set_test, risk_sets,
                       split_level, steps_at, t_quantile, way_from_chance)


@dataclass(frozen=True)
class Specification:
    """One set of choices of analysis: the keywords of emergence.event_table, which explains them.

    The paper's own choices are public only in outline ("a low threshold that persists")."""
    threshold: float = 0.3        # above every plateau of a half-learned answer (a guess, a sign)
    persistence: int = 3          # one or two may be luck
    lasting: float = 1.25         # three snapshots may span one step in twenty
    behaviour: str = "accuracy"
    onset: str = "shams"          # RankMe of shams rises and falls back, too
    rise: float = 0.2             # RankMe of 200 examples wanders by some 10% along a flat floor
    position: str = "first"
    layer: int = -2
    smoothing: int = 3
    warmup: bool = True


# What other researchers might as well have chosen: 720 combinations.
ALTERNATIVES = {
    "threshold": (0.1, 0.3, 0.5), "behaviour": ("accuracy", "log_prob"),
    "onset": ("shams", "floor", "departure", "steepest", "mean_sham"), "rise": (0.1, 0.2, 0.5),
    "position": ("first", "last"), "layer": (-2, -1), "warmup": (True, False)}


def specifications(alternatives: dict = ALTERNATIVES, runs: Sequence = ()) -> list[Specification]:
    """All combinations of the alternatives; the other fields as by default.

    Where runs are given, options that need what none of them has are left out."""
    kept = {choice: [x for x in options if not runs or any(has(run, choice, x) for run in runs)]
            or options[:1] for choice, options in alternatives.items()}
    return [Specification(**dict(zip(kept, options)))
            for options in itertools.product(*kept.values())]


def has(run, choice, option):
    """Has a run measured what an option needs?"""
    values = np.zeros(1)
    if choice == "behaviour":
        values, _ = way_from_chance(run, option)
    elif choice == "position":
        values = run.layered.get(f"rankme.{option}", np.full(1, math.nan))
    elif choice == "layer":
        values = run.rankme_at(Specification.position, option)
    return not np.isnan(values).all()


# ------------------------------------------------------------------------------------------------
# What is exchanged.  Each function draws data sets: the data as they are, then others.

def draw_tasks(events):
    """(M, T): whose geometry each task gets."""
    return exchanges(events.tasks)


def draw_levels(events, count=2001):
    """(M, L): the tasks of each level on their own, for what whole tasks would not change."""
    rng = np.random.default_rng(0)
    drawn = np.tile(np.arange(len(events.levels)), (count, 1))
    for same in by_level(events):
        drawn[1:, same] = rng.permuted(drawn[1:, same], axis=1)
    return drawn


def draw_layers(events, count=4096):
    """(M, R) bool: is the order of a run's layers reversed?  All 2^R ways, up to 12 runs."""
    R = len(events.runs)
    if 2 ** R <= count:
        return np.array(list(itertools.product((False, True), repeat=R)))
    drawn = np.random.default_rng(0).random((count, R)) < 0.5
    drawn[0] = False
    return drawn


NULLS = {"whole tasks exchanged": draw_tasks, "tasks exchanged within a level": draw_levels,
         "layers in reverse": draw_layers, "": draw_tasks}
TASKS, LEVELS, LAYERS, NONE = NULLS     # where nothing is tested, what is drawn is not read


def by_size(events):
    """For each size, the smallest first: which runs have it, (R,) bool."""
    keys = [(np.nan_to_num(run.config["parameters"]), run.config["size"]) for run in events.runs]
    return [np.array([key == size for key in keys]) for size in sorted(set(keys))]


def by_level(events):
    """For each level's number: which task-levels have it, (L,) bool."""
    numbers = np.array([split_level(level)[1] for level in events.levels])
    return [numbers == number for number in np.unique(numbers)]


# ------------------------------------------------------------------------------------------------
# Statistics of claims: an EventTable without shams, and what was drawn -> (M,) numbers

NOT_TOLD = np.full(1, math.nan)
PAIRED = 1000                         # exchanges for a statistic that is no sum over tasks
THINNED = 500                         # exchanges for each specification of the multiverse


def collapsed(events):
    """(R, L) bool: does RankMe lose at least half of what it has above 1, its least value?"""
    return events.floor - 1 <= (events.start - 1) / 2           # False where it was not measured


def collapse_rate(events, drawn):
    """Share of levels whose RankMe collapses."""
    known = ~np.isnan(events.floor)
    return np.where(known, collapsed(events), math.nan).mean(keepdims=True).ravel()


def task_share(events, drawn):
    """Share of the variance of log floors, within a level, that lies between tasks."""
    if len(events.owner) < 2:
        return NOT_TOLD
    x = np.log(events.floor).mean(0)                                        # (L,)
    for same in by_level(events):
        x[same] -= x[same].mean()
    x = x[drawn]                                                            # (M, L)
    between = sum(x[:, own].mean(1) ** 2 * own.sum() for own in events.owner)
    return between / np.maximum((x ** 2).sum(1), 1e-12)


def floor_ratio(events, drawn):
    """Floor at a larger size over that at a smaller one, geometric means over task-levels: of the
    two sizes that differ most, for floors may rise with size, and fall again."""
    means = [np.log(events.floor[size]).mean() for size in by_size(events)]
    if len(means) < 2 or np.isnan(means).any():
        return NOT_TOLD
    return np.exp([max((y - x for x, y in itertools.combinations(means, 2)), key=abs)])


def top_down(layer_values):
    """Share of layer pairs whose deeper one has the smaller value: (..., layers) -> (...)

    0.5 is no order.  The embedding (first entry) and the final LayerNorm (last) do not count; nan
    for fewer than two others."""
    blocks = np.asarray(layer_values, dtype=float)[..., 1:-1]
    i, j = np.triu_indices(blocks.shape[-1], 1)
    if len(i) == 0:
        return np.full(blocks.shape[:-1], math.nan)
    return ((1 + order_signs(blocks)[..., i, j]) / 2).mean(-1)


def top_downs(which, events):
    """(R, L) `top_down` of floors (which = 0), or of the steps at which they are reached (1)."""
    by = events.dated_by["smoothing"], events.dated_by["warmup"]
    found = [floors(run, "first", *by)[which] for run in events.runs]
    return np.array([top_down(values)[events.rows] for values in found])


def top_down_cells(which, events, drawn):
    """Share of task x size cells that are top-down, on average over levels and seeds, at the first
    answer token.  which: see top_downs."""
    down = top_downs(which, events)                                         # (R, L)
    if np.isnan(down).any():
        return NOT_TOLD
    rows = down @ events.owner.T / events.owner.sum(1)                      # (R, tasks)
    rows = np.where(drawn[:, :, None], 1 - rows, rows)                      # (M, R, tasks)
    return np.mean([rows[:, size].mean(1) > 0.5 for size in by_size(events)], axis=(0, 2))


def rate_table(first, counted):
    """(T, T): a precursor rate as a sum over tasks; of counts (T, T), summed over runs.

        entry (j, i) = share of task j's emergences that come after task i's onset
                       * task j's share of all emergences

    Where two tasks have no level in common, the mean share of task j stands in."""
    own = np.diagonal(counted)
    known = counted > 0
    share = np.where(known, first / np.maximum(counted, 1), 0)
    usual = share.sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
    return np.where(known, share, usual) * (own / (own.sum() or math.nan))[:, None]


def precursor_rate(events, drawn):
    """Of the task-levels that emerge, the share whose onset came before.  nan: none emerges."""
    first, counted = precursor_counts(events)
    return exchanged(rate_table(first.sum(0), counted.sum(0)), drawn)


def risk_set_excess(events, drawn):
    """U of the risk-set test over all runs, above its mean over exchanges: in emergences."""
    table = np.zeros((len(events.owner),) * 2)
    onset = events.of_partners(events.onset)                                # (R, L, T)
    for r in range(len(events.runs)):
        times, at_risk, emerges = risk_sets(events.arrivals[r], events.censored[r])
        # each level adds these weights at the times after its onset
        weights = emerges - at_risk * (emerges.sum(0) / at_risk.sum(0))     # (L, times)
        after = onset[r][:, :, None] < times                                # (L, T, times)
        added = np.einsum("lt,lit->li", weights, after.astype(float))
        table += events.by_task(added[None])[0]
    U = exchanged(table, drawn)
    return U - U.mean()


def ranks(values):
    """1 for the smallest, and so on; ties get the mean of their ranks; "never" comes last."""
    x = as_times(values)
    smaller = (x[:, None] > x).sum(1)
    equal = (x[:, None] == x).sum(1)                                        # itself included
    return smaller + (equal + 1) / 2


def spearman(a: Sequence, b: Sequence) -> float:
    """Correlation of the `ranks` of two lists of values; nan where one is constant."""
    a, b = ranks(a), ranks(b)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt((a ** 2).sum() * (b ** 2).sum())
    return float((a * b).sum() / size) if size else math.nan


def order_correlation(events, drawn):
    """Spearman's rho of onset and emergence, mean over runs; what never came comes last.  A level
    of which one is NaN, not measured, has no rank and adds nothing, as one without a partner."""
    tables = []
    for onset, emergence in zip(events.onset, events.arrivals):
        a, b = np.zeros((2, len(onset)))
        known = ~(np.isnan(onset) | np.isnan(emergence))        # their sum: inf - inf is NaN, too
        for deviations, values in ((a, onset), (b, emergence)):
            deviations[known] = ranks(values[known]) - (known.sum() + 1) / 2
        size = math.sqrt((a ** 2).sum() * (b ** 2).sum())
        if size:
            products = b[:, None] * np.nan_to_num(events.of_partners(a[None])[0])   # (L, T)
            tables.append(events.by_task(products[None])[0] / size)
    return exchanged(np.mean(tables, axis=0), drawn) if tables else NOT_TOLD


def difficulty(events):
    """(R, L): 0 easy, 1 middle, 2 hard; -1 where no other run of the size knows.

    Terciles of the median emergence over the *other* runs of the size: by a run's own dates, what
    emerges late has had time for an onset."""
    R, L = events.emergence.shape
    classes = np.full((R, L), -1)
    for size in by_size(events):
        for r in np.flatnonzero(size):
            steps = median_date(events.emergence[size & (np.arange(R) != r)])
            known = ~np.isnan(steps)
            order = ranks(steps[known]) - 1
            classes[r, known] = np.minimum(order * 3 // max(known.sum(), 1), 2)
    return classes


def median_date(dates):
    """(L,) medians over runs of dates (R, L), of those that are known; NaN where none is."""
    known = [x[~np.isnan(x)] for x in dates.T]
    return np.array([np.median(x) if len(x) else math.nan for x in known])


def exchanged_onsets(events, drawn):
    """(M', R, L): the onsets that levels get; of so many exchanges some serve, evenly spread."""
    drawn = drawn[::max(1, len(drawn) // PAIRED)]
    own = events.owner.argmax(0)                                            # (L,)
    onsets = events.of_partners(events.onset)[:, np.arange(len(own)), drawn[:, own]]
    return np.moveaxis(onsets, 0, 1)


def within_class(events, drawn):
    """Concordance of onsets with emergence among the task-levels of one difficulty class."""
    onsets, alike, count = exchanged_onsets(events, drawn), 0.0, 0.0
    for r, own in enumerate(difficulty(events)):
        same = (own[:, None] == own) & (own >= 0)
        i, j = np.triu(same, 1).nonzero()                                   # (pairs,)
        agree = order_signs(onsets[:, r])[:, i, j] * order_signs(events.arrivals[r])[i, j]
        known = ~np.isnan(agree)
        count = count + known.sum(1)
        alike = alike + ((1 + agree) / 2).sum(1, where=known)               # a tie counts one half
    return np.where(count > 0, alike / np.maximum(count, 1), math.nan)


def swap_rate(events, drawn):
    """Of the pairs of task-levels that emerge in opposite orders at two sizes, the share whose
    onsets have the order of emergence at both, by medians over seeds.  By lot: a quarter."""
    onsets, sizes = exchanged_onsets(events, drawn), by_size(events)
    middle = [np.median(onsets[:, size], axis=1) for size in sizes]         # (M', L) each
    onset = [order_signs(steps) for steps in middle]                        # (M', L, L)
    emergence = [order_signs(median_date(events.arrivals[size])) for size in sizes]
    right = count = np.zeros(len(onsets))
    for x, y in itertools.combinations(range(len(sizes)), 2):
        i, j = np.triu(emergence[x] * emergence[y] == -1).nonzero()
        both = [onset[size][:, i, j] == emergence[size][i, j] for size in (x, y)]
        known = ~(np.isnan(middle[x]) | np.isnan(middle[y]))                # measured, and partners
        right = right + (both[0] & both[1]).sum(1)
        count = count + (known[:, i] & known[:, j]).sum(1)
    return np.where(count > 0, right / np.maximum(count, 1), math.nan)


# ------------------------------------------------------------------------------------------------
# Intervals.  What is drawn anew, tasks or runs?  Both are tried, and the wider one is shown.

SHARE, RATIO = (0, 1), (0, math.inf)  # the least and the largest value

def interval(statistic, events, limits=SHARE):
    """A 95% interval of a statistic of events: (low, high, "tasks" or "runs"), by the jackknife.

        variance = sum over strata of (n - 1) / n * sum_i (value without i - mean of these)^2
        degrees of freedom, by Satterthwaite: variance^2 / sum of (a stratum's part)^2 / (n - 1)

    Runs are drawn anew within their size, where each size has several.  For a mean over tasks it is
    Student's t interval.  A rate that nothing changes has Wilson's, for as many events as clusters.
    limits: of the value; a RATIO is taken in logs.  nan, nan, "" if nothing can be drawn anew."""
    ratio = limits == RATIO
    tasks, runs = np.arange(len(events.owner)), np.arange(len(events.runs))
    sizes = by_size(events)
    strata = sizes if all(size.sum() > 1 for size in sizes) else [runs >= 0]
    without = {"tasks": ([tasks >= 0], [events.subset(levels=~own) for own in events.owner]),
               "runs": (strata, [events.subset(runs=runs != r) for r in runs])}
    found = []
    for over, (strata, parts) in without.items():
        values = np.array([statistic(part) for part in (events, *parts) if len(parts) > 1])
        if len(values) == 0 or np.isnan(values).any():
            continue
        values = np.log(values) if ratio else values
        groups = [values[1:][stratum] for stratum in strata]
        each = np.array([(len(group) - 1) * group.var() for group in groups])
        parts_of = sum(x ** 2 / (len(y) - 1) for x, y in zip(each, groups))
        half = 0.0
        if each.sum() > 1e-18:
            half = t_quantile(each.sum() ** 2 / parts_of) * math.sqrt(each.sum())
        low, high = values[0] - half, values[0] + half
        if half == 0 and limits == SHARE:
            _, low, high = rate_with_interval(round(values[0] * len(parts), 9), len(parts))
        low, high = np.exp([low, high]) if ratio else (low, high)
        found.append((high - low, max(low, limits[0]), min(high, limits[1]), over))
    _, low, high, over = max(found, default=(0, math.nan, math.nan, ""))
    return float(low), float(high), over


def as_they_are(statistic, null, events):
    """A statistic of the data as they are."""
    identity = {TASKS: np.arange(len(events.owner)), LEVELS: np.arange(len(events.levels)),
                LAYERS: np.zeros(len(events.runs), bool), NONE: np.zeros(0)}
    return statistic(events, identity[null][None])[0]


def rate_beside_chance(events, drawn) -> dict:
    """The precursor rate with its interval, and what exchanging whole tasks gives."""
    rates = precursor_rate(events, drawn)
    low, high, over = interval(functools.partial(as_they_are, precursor_rate, TASKS), events)
    counted = np.isfinite(events.arrivals) & ~np.isnan(events.onset)
    return {"events": int(counted.sum()), "rate": float(rates[0]), "low": low, "high": high,
            "over": over, "null": float(rates.mean()), "p": p_value(rates),
            "first": int((events.onset < events.arrivals)[counted].sum()),
            "same": int((events.onset == events.arrivals)[counted].sum())}


# ------------------------------------------------------------------------------------------------
# The table of leads: RankMe, every measure on its own snapshots, and what they must be better than

TENTH = 0.1
REFERENCES = ("accuracy", "log_prob", "token_accuracy")       # past a tenth of their way
ROOM = {"linear_probe": 0.75}         # a level whose untrained model is above that has no room
ON_A_GRID = 2                         # the persistence where snapshots are few


def departed(run, name, rise):
    """(L, S): does a measure differ from all shams, at the same step, by more than its error?

    Without shams' values: from its own first one, by that fraction `rise` of its range."""
    values, error = run.table(name), run.error_of(name)
    shams = latest(run.steps, values[run.shams], run.steps)
    if np.isnan(shams).all():                                               # or there are none
        shams = at_start(values)[:, None, None]                             # (L, 1, 1)
        span = np.fmax.reduce(values, axis=1) - np.fmin.reduce(values, axis=1)
        error = np.fmax(error, rise * span[:, None])
    high, low = np.fmax.reduce(shams, axis=-2), np.fmin.reduce(shams, axis=-2)
    return (values > high + error) | (values < low - error)


def date_on(events, run, name, grid, persistence):
    """(L,): when a quantity of one run moves, for one who looks at the snapshots of a grid alone.

    RankMe: its onset.  Behaviour: a tenth of its way.  Both are read where they were last measured.
    A measure: its first lasting departure, on the snapshots of the grid at which it was measured.
    NaN: not measured, or without room (departed all along, or by the table ROOM)."""
    by, dates = events.dated_by, np.full(len(run.levels), math.nan)
    lasts = dict(persistence=persistence, lasting=by["lasting"])
    if name in REFERENCES:
        values, chance = way_from_chance(run, name)
        values, examples = latest(run.steps, values, grid), run.per_level("examples", math.inf)
        index = emergence_index(values, grid, chance, examples, TENTH, **lasts)
        return np.where(np.isnan(values).all(-1), math.nan, steps_at(grid, index))
    if name == "rankme":
        curves = latest(run.steps, run.rankme_at(by["position"], by["layer"]), grid)
        risen = ONSETS[events.onset_rule](curves, curves[run.shams], grid, by["rise"])
        index = first_lasting(risen, grid, **lasts)
        return np.where(np.isnan(curves).all(-1), math.nan, steps_at(grid, index))
    values, outside = run.table(name), departed(run, name, by["rise"])
    values = np.where(np.isin(run.steps, grid), values, math.nan)
    for rows, on in own_grids(values):
        index = first_lasting(from_below(outside[rows][:, on]), run.steps[on], **lasts)
        no_room = outside[rows][:, on].all(-1) | (at_start(values[rows]) > ROOM.get(name, math.inf))
        dates[rows] = np.where(no_room, math.nan, steps_at(run.steps[on], index))
    return dates


def grids_of(events, name):
    """(R,) the snapshots at which RankMe, or a measure, was taken; None for fewer than 3."""
    where, rankme = [events.dated_by[name] for name in ("position", "layer")], name == "rankme"
    curves = [run.rankme_at(*where) if rankme else run.table(name) for run in events.runs]
    grids = [run.steps[measured_at(run, own)] for run, own in zip(events.runs, curves)]
    return [grid if len(grid) > 2 else None for grid in grids]


def on_grids(events, name, grids, persistence=ON_A_GRID):
    """Events with the dates of a quantity as onsets, for one who looks at the grids alone.

    Emergence is put at the first snapshot of the grid that is not before it."""
    onset, emergence, first = np.full((3, *events.onset.shape), np.inf)
    for r, (run, grid) in enumerate(zip(events.runs, grids)):
        if grid is not None:
            onset[r] = date_on(events, run, name, grid, persistence)[events.rows]
            later = steps_at(grid, np.searchsorted(grid, events.emergence[r]))
            emergence[r] = np.where(np.isnan(events.emergence[r]), math.nan, later)
            first[r] = np.maximum(grid[0], events.first[r])
    return replace(events, onset=onset, emergence=emergence, first=first)


def measure_rate(name, events, drawn):
    """Of the task-levels that emerge, the share in which a measure left the shams before that."""
    grids = grids_of(events, name)
    if all(grid is None or not run.shams.any() for grid, run in zip(grids, events.runs)):
        return NOT_TOLD
    return precursor_rate(on_grids(events, name, grids), drawn)


def lead_rows(events, drawn) -> list[dict]:
    """The table of leads: RankMe, then each measure on its grid; a row for each quantity."""
    rows = rows_on_grids("rankme", events, drawn, events.dated_by["persistence"])
    for name in dict.fromkeys(name for run in events.runs for name in run.measures):
        rows += rows_on_grids(name, events, drawn, ON_A_GRID)
    return rows


def rows_on_grids(measure, events, drawn, persistence):
    """One row for each quantity, on the events at which `measure` has room.

    "leads": is its excess over chance above that of each of the REFERENCES, p < .05?"""
    grids = grids_of(events, measure)
    dated = {name: on_grids(events, name, grids, persistence)
             for name in dict.fromkeys((measure, "rankme", *REFERENCES))}
    if measure == "rankme":           # smoothed as always; is it the mean, or what is about it?
        dated |= {"rankme": events, "centred_states": without_mean(events)}
    own, rows, tables = dated[measure], [], {}
    onsets = dated["rankme"].onset[np.isfinite(own.arrivals) & ~np.isnan(dated["rankme"].onset)]
    middle = statistics.median(onsets.tolist() or [0])
    dated["step"] = replace(own, onset=np.full(own.onset.shape, middle))    # the same for all
    for name, table in dated.items():
        table = replace(table, onset=np.where(np.isnan(own.onset), math.nan, table.onset))
        counted = np.isfinite(table.arrivals) & ~np.isnan(table.onset)
        both = counted & np.isfinite(table.onset)
        if counted.any():
            tables[name] = rate_table(*(counts.sum(0) for counts in precursor_counts(table)))
            taken = [len(grid) for grid in grids if grid is not None]
            rows.append({"measure": measure, "quantity": name, "runs": len(taken),
                         "snapshots": min(taken), **rate_beside_chance(table, drawn),
                         "without_room": int((np.isfinite(own.arrivals) & ~counted).sum()),
                         "lead": plain(np.median(table.arrivals[both] - table.onset[both]))
                         if both.any() else None})
    for row in rows:
        if row["quantity"] in (measure, "rankme"):
            own = tables[row["quantity"]]
            row["against"] = {name: p_value(exchanged(own - tables[name], drawn))
                              for name in REFERENCES if name in tables}
            row["leads"] = all(p and p < 0.05 for p in (row["p"], *row["against"].values()))
    return rows


# ------------------------------------------------------------------------------------------------
# What stands beside the claims

def sham_onsets(events):
    """How many shams show an onset.  Above a bar that it has set itself none can rise: each is held
    against the others, or, where there is no other, above its own floor."""
    runs, found = events.runs, 0
    for k in np.flatnonzero(runs[0].shams):
        levels = [f"of {level}" if i == k else level for i, level in enumerate(runs[0].levels)]
        alone = event_table([replace(run, levels=levels) for run in runs], **events.dated_by)
        found += int(np.isfinite(alone.onset[:, k]).sum())
    return found


def lead_check(events: EventTable) -> dict:
    """The risk-set test by its formula, each run a stratum, which takes runs for independent: so
    `risk_set_excess` decides.  And the false alarms of the shams, which `events` must include."""
    real, shams = events.only(shams=False), events.only(shams=True)
    found = [risk_set_test(*dates) for dates in zip(real.onset, real.arrivals, real.censored)]
    U = sum(z * math.sqrt(V) for z, V in found if V > 0)
    V = sum(V for _, V in found)
    warmup = np.array([[run.config["warmup"]] for run in events.runs])      # (R, 1)
    return {"z": U / math.sqrt(V) if V > 0 else math.nan, "information": V,
            "shams": int((~np.isnan(shams.emergence)).sum()), "onset_rule": events.onset_rule,
            "sham_onsets": sham_onsets(events),
            "sham_emergences": int(np.isfinite(shams.emergence).sum()),
            "warmup": float(np.median(warmup)),
            "median_onset": float(median_date(real.onset.reshape(-1, 1))[0]),
            "onsets_in_warmup": float((real.onset < warmup).sum()
                                      / max(np.isfinite(real.onset).sum(), 1))}


def class_rates(events, drawn, classes) -> list[dict]:
    """Precursor rate by difficulty class, (R, L), each beside the null of that class."""
    out = []
    for number, name in enumerate(("easy", "middle", "hard")):
        among = replace(events, emergence=np.where(classes == number, events.emergence, np.inf))
        if (np.isfinite(among.arrivals) & ~np.isnan(among.onset)).any():
            out.append({"class": name, **rate_beside_chance(among, drawn)})
    return out


def medians(events: EventTable) -> list[dict]:
    """One dict per size and level, the smallest size first: medians over seeds with the range.

    "collapsed", "recovered" and "emerged" count the seeds in which that happens, "rankme_first"
    those with an onset before the emergence, "measured" those with RankMe, "with_accuracy" those
    with behaviour, in each of which accuracy was watched to step "watched" at least."""
    return [_level_medians(events.subset(runs=size, levels=[k]))
            for size in by_size(events) for k in range(len(events.levels))]


def _level_medians(one):
    """one: an EventTable of a single level, and of the runs of a single size."""
    onset, emergence = one.onset[:, 0], one.emergence[:, 0]
    curves = [run.accuracy[one.rows[0]] for run in one.runs]                # (S,) each
    finals = [(run.steps[known][-1], curve[known][-1]) for run, curve in zip(one.runs, curves)
              if (known := ~np.isnan(curve)).any()]
    values = {
        "start": one.start[:, 0], "floor": one.floor[:, 0],
        "floor_share": (one.floor / one.ceiling)[:, 0],
        "floor_step": one.floor_step[:, 0], "onset": onset, "emergence": emergence,
        "lead": [lead_time(a, b) for a, b in zip(onset, emergence)],
        "final_accuracy": [x for _, x in finals]}
    return {"size": one.runs[0].config["size"], "parameters": one.runs[0].config["parameters"],
            "level": one.levels[0], "control": bool(one.shams[0]), "seeds": len(one.runs),
            "watched": plain(min([step for step, _ in finals], default=math.nan)),
            **_counts(one), "ceiling": plain(one.ceiling[0, 0]),
            **{name: seed_range(x) for name, x in values.items()}}


def _counts(events):
    """In how many of the (R, L) capabilities each of these happens."""
    emerged = np.isfinite(events.emergence)
    return {"measured": int((~np.isnan(events.floor)).sum()),
            "with_accuracy": int((~np.isnan(events.emergence)).sum()),
            "collapsed": int(collapsed(events).sum()),
            "recovered": int(np.isfinite(events.onset).sum()), "emerged": int(emerged.sum()),
            "rankme_first": int((events.onset < events.emergence)[emerged].sum())}


def overview(events: EventTable) -> list[dict]:
    """One dict per size, over all of its capabilities (task-levels times seeds), shams apart.

    "order": [level, median step of its emergences] of those that emerge, the earliest first."""
    found = []
    for size in by_size(events):
        one = events.subset(runs=size, levels=~events.shams)
        rows = medians(one)
        order = [[row["level"], row["emergence"]["median"]] for row in rows if row["emergence"]]
        found.append({
            "size": one.runs[0].config["size"], "seeds": len(one.runs), "levels": len(one.levels),
            **_counts(one), "start": seed_range(one.start.ravel()),
            "floor": seed_range(one.floor.ravel()),
            "last_step": plain(max(run.steps[-1] for run in one.runs)),
            "watched": min([row["watched"] for row in rows if row["watched"] is not None],
                           default=None),
            "order": sorted(order, key=itemgetter(1)),
            "never": [row["level"] for row in rows if row["with_accuracy"] > row["emerged"] == 0]})
    return found


def seed_range(values):
    """{"median", "low", "high"} of those that are numbers; None where none is."""
    known = [plain(x) for x in values if plain(x) is not None]
    if known:
        return {"median": statistics.median(known), "low": min(known), "high": max(known)}


EVENT = "run", "size", "seed", "task", "level", "sham", "quantity", "event", "step"


def event_rows(events: EventTable) -> list[dict]:
    """A dict of EVENT's keys for each event of what was measured, and had room to move.

    event: "onset", of RankMe or a measure; "emergence", of behaviour.  step: None for never."""
    out = []
    by = [events.dated_by[choice] for choice in ("threshold", "persistence", "lasting", "warmup")]
    for r, run in enumerate(events.runs):
        found = [("rankme", "onset", events.onset[r])]
        for name in ("accuracy", "log_prob", "accuracy_train", "token_accuracy"):
            found.append((name, "emergence", emergences(run, name, *by)["emergence"][events.rows]))
        for name in run.measures:
            grid = run.steps[measured_at(run, run.table(name))]
            dates = date_on(events, run, name, grid, ON_A_GRID)
            found.append((name, "onset", dates[events.rows]))
        for k, level in enumerate(events.levels):
            about = {"run": run.name, "size": run.config["size"], "seed": run.config["seed"],
                     "task": events.tasks[k], "level": level, "sham": bool(events.shams[k])}
            out += [about | {"quantity": quantity, "event": event, "step": plain(steps[k])}
                    for quantity, event, steps in found if not math.isnan(steps[k])]
    return out


# ------------------------------------------------------------------------------------------------
# Claims, and all of them under every specification

@dataclass(frozen=True)
class Claim:
    key: str
    text: str
    v1: str                       # what the versions of the paper report
    v3: str
    v4: str
    statistic: Callable           # (EventTable, what was drawn) -> (M,)
    null: str = NONE              # what is exchanged: a key of NULLS
    above_null: bool = False      # it holds if the value is above what chance gives, p < .05
    within: float = 0.0           # it holds if the interval is no farther than that from chance
    above: float = -math.inf      # it holds from here
    below: float = math.inf       # to there: the value, or
    by_interval: bool = False     # ... the whole interval
    form: str = "{:.0%}"          # how its value is written
    needs: str = ""               # what a sweep must have for it, besides RankMe
    limits: tuple = (-math.inf, math.inf)                     # of its value
    reads: tuple = tuple(vars(Specification()))               # the choices that it depends on
    counts: bool = True           # in Holm's correction: not where another row is the same test
    leader: str = ""              # what is said to lead: then it must be better than behaviour too

    def holds(self, values):
        """In which data sets it holds: (S, M) -> (S, M) bool; column 0 is what was observed."""
        null = np.nanmean(values, axis=1, keepdims=True)
        if self.within:
            return np.abs(values - null) <= self.within
        if not self.above_null:
            return (self.above <= values) & (values <= self.below)
        # p < .05: fewer than one data set in twenty is as far out
        place = values.shape[1] - math.ceil(0.05 * values.shape[1])
        bar = np.partition(np.nan_to_num(values, nan=-np.inf), place, axis=1)[:, [place]]
        return values - 1e-9 > bar


FLOOR = ("position", "layer", "smoothing", "warmup")          # the choices that a floor depends on
DEPTH = ("smoothing", "warmup")                               # top-down is read at one position
RARELY = ()                       # taken at too few snapshots for other choices to matter


class Multiverse(NamedTuple):
    specifications: list          # (S,)
    values: dict                  # {key of a claim: (S, M)}: what was observed, then thinned nulls
    first: np.ndarray             # (S, R, T, T), of emergence.precursor_counts
    counted: np.ndarray
    centred: np.ndarray           # (S', 2, R, T, T): both, of the states without their mean, which
                                  # are measured where the position is "first" alone


def multiverse(runs, specifications: list[Specification], thinned=THINNED, each=iter) -> Multiverse:
    """Every claim but those on rare measures under each specification.  each: may show progress."""
    varying = [claim for claim in CLAIMS if claim.reads != RARELY]
    drawn, values, found, counts, centred = {}, {claim.key: [] for claim in varying}, {}, [], []
    for specification in each(specifications):
        events = event_table(runs, **vars(specification)).only(shams=False)
        counts.append(precursor_counts(events))
        if specification.position == "first":
            centred.append(precursor_counts(without_mean(events)))
        for claim in varying:
            if claim.null not in drawn:
                every = NULLS[claim.null](events)
                drawn[claim.null] = every[::max(1, len(every) // thinned)]
            # computed once for each combination of the choices that the claim depends on
            what = claim.key, *[getattr(specification, choice) for choice in claim.reads]
            if what not in found:
                few = 10 if claim.within else 1               # enough for the mean of the null
                found[what] = claim.statistic(events, drawn[claim.null][::few])
            values[claim.key].append(found[what])
    for key, rows in values.items():                            # what cannot be told is one NaN
        values[key] = np.array([np.broadcast_to(row, max(map(len, rows))) for row in rows])
    first, counted = map(np.array, zip(*counts))
    centred = np.reshape(centred, (-1, 2, *counted.shape[1:]))
    return Multiverse(specifications, values, first, counted, centred)


def robustness(claim, universe) -> dict:
    """Under which share of the specifications a claim holds; {} where nothing can be told.

    options: {choice: {option: the share among specifications with it}}.  p_multiverse: how often
    exchanged data reach the share.  decides: the choice that matters most, if by more than 0.1."""
    values = universe.values[claim.key]                                     # (S, M)
    told = ~np.isnan(values[:, 0])
    if not told.any():
        return {}
    holds = np.zeros(values.shape, bool)
    holds[told] = claim.holds(values[told])
    share, options = holds.mean(0), {}
    for choice in vars(universe.specifications[0]):
        chosen = np.array([str(vars(one)[choice]) for one in universe.specifications])
        if len(set(chosen)) > 1:
            options[choice] = {option: float(holds[chosen == option, 0].mean())
                               for option in dict.fromkeys(chosen.tolist())}
    swing = {choice: max(shares.values()) - min(shares.values())
             for choice, shares in options.items()}
    most = max(swing, key=swing.get, default=None)
    return {"share": float(share[0]), "p_multiverse": p_value(share) if claim.above_null else None,
            "options": options, "decides": most if swing.get(most, 0) > 0.1 else None}


def mean_excess(universe, drawn, runs=slice(None), tasks=slice(None)):
    """(M,): the precursor rate less its null, on average over all specifications.

    runs, tasks: those that count.  drawn: exchanges of these tasks."""
    counts = zip(universe.first[:, runs].sum(1), universe.counted[:, runs].sum(1))
    tables = [rate_table(*(count[tasks][:, tasks] for count in both)) for both in counts]
    tables = [table for table in tables if not np.isnan(table).any()]
    if not tables:
        return NOT_TOLD
    rates = exchanged(np.mean(tables, axis=0), drawn)
    return rates - rates.mean()


def mean_excess_row(events, universe, drawn):
    """The row of the claim on all specifications at once, with each run and each task left out.

    centred: [excess, p] of the states without their mean, by all choices but the position."""
    values, without, first = mean_excess(universe, drawn), {}, universe.centred
    centred = mean_excess(universe._replace(first=first[:, 0], counted=first[:, 1]), drawn)
    runs, tasks = np.arange(len(events.runs)), np.arange(len(events.owner))
    if len(runs) > 1:
        for r, run in enumerate(events.runs):
            without[run.name] = mean_excess(universe, drawn, runs=runs != r)
    if len(tasks) > 2:
        fewer = exchanges(tasks[1:])
        for j, task in enumerate(dict.fromkeys(events.tasks)):
            without[task] = mean_excess(universe, fewer, tasks=tasks != j)
    return claim_row(MEAN_EXCESS, events, values) | {
        "centred": [float(centred[0]), p_value(centred)],
        "without": {name: [float(x[0]), p_value(x)] for name, x in without.items()}}


# ------------------------------------------------------------------------------------------------
# Verdicts

def judge(claim, events, row, information=math.inf) -> str:
    """The verdict in plain words, of the first condition that is met.

    row: of `study`, without verdict.  information: of the risk-set test."""
    value, runs, tasks = row["value"], row["runs"], len(events.owner)
    significant = row["p_holm"] is not None and row["p_holm"] < 0.05
    low, high = claim.above, claim.below
    if claim.within:
        low = max(row["null"] - claim.within, claim.limits[0])
        high = min(row["null"] + claim.within, claim.limits[1])
    judged = (row["low"], row["high"]) if claim.within or claim.by_interval else (value, value)
    bounds = " to ".join(claim.form.format(end) for end in (low, high))
    beaten = [name for name, p in row["against"].items() if p is None or p >= 0.05]
    no_room = row["least"] is not None and row["least"] >= 0.05
    verdicts = [
        (claim.reads != RARELY and np.isnan(events.floor).all(), "cannot tell: needs RankMe"),
        (math.isnan(value), f"cannot tell: needs {claim.needs}"),
        (tasks < 2, "cannot tell: one task"),
        (runs < 2, "cannot tell: one run"),
        (claim.above_null and no_room, "cannot tell: the null cannot reach .05"),
        (not claim.counts and information < 5,
         f"cannot tell: information {information:.1f}, below 5"),
        (claim.above_null and not significant, "not shown: chance gives as much"),
        (not claim.counts, "above chance; the same test as C4, counted once"),
        (claim.above_null and beaten,
         f"above chance, but not shown to beat {' and '.join(beaten)} at a tenth of the way"),
        (claim.above_null, "holds: above chance"),
        (math.isnan(judged[0]), "cannot tell: no interval"),
        (low <= judged[0] and judged[1] <= high,
         "holds: what chance gives" if claim.within else "holds"),
        (claim.within and judged[1] < low, "does not hold: less than chance gives"),
        (claim.within and high < judged[0], "does not hold: more than chance gives"),
        (judged[1] < low or high < judged[0], "does not hold"),
        (True, f"cannot tell: the interval over {row['over']} is not within {bounds}")]
    return next(verdict for condition, verdict in verdicts if condition)


def study(runs: list, specification: Specification = Specification(),
          universe: Multiverse | None = None, forecast_null: int = 0) -> dict:
    """Everything that the runs of one sweep have to say: a dict for findings.json.

    universe: of `multiverse`.  forecast_null: so many exchanges give the forecast's p-value."""
    with_shams = event_table(runs, **vars(specification))
    events = with_shams.only(shams=False)
    drawn, exact = draw_tasks(events), len(events.owner) <= 9
    check, leads, claims = lead_check(with_shams), lead_rows(events, drawn), list(CLAIMS)
    against = {row["measure"]: row["against"] for row in leads if row["quantity"] == row["measure"]}
    rows = [study_claim(claim, events, universe) for claim in claims]
    if universe and not np.isnan(events.floor).all():
        claims.insert(0, MEAN_EXCESS)
        rows.insert(0, mean_excess_row(events, universe, drawn))

    # verdicts, with p-values that know how many such claims there are
    counted = [row["p"] if claim.above_null and claim.counts else None
               for claim, row in zip(claims, rows)]
    for claim, row, p in zip(claims, rows, holm(counted)):
        row["p_holm"] = p if claim.counts else row["p"]
        row["against"] = against.get(claim.leader, {})
        row["verdict"] = judge(claim, events, row, check["information"])
        if row.get("decides") and 0.1 < row["share"] < 0.9 and "tell" not in row["verdict"]:
            row["verdict"] += f"; depends on {row['decides']}"
    return {"claims": rows, "lead_check": check, "leads": leads,
            "forecasts": forecasts(runs, events, forecast_null),
            "classes": class_rates(events, drawn, difficulty(events)), "scales": scales(events),
            "floor_ratio_of_shares": float(floor_ratio(
                replace(events, floor=events.floor / events.ceiling), None)[0]),
            "exchanges": f"all {len(drawn):,}" if exact else f"{len(drawn):,} random",
            "specifications": len(universe.specifications) if universe else 0}


def claim_row(claim, events, values=None):
    """What a claim comes to, but for its interval and its verdict.  values: if known already."""
    if values is None:
        values = claim.statistic(events, NULLS[claim.null](events))
    runs = sum(claim.reads != RARELY or claim.leader in run.measures for run in events.runs)
    known, tested = values[~np.isnan(values)], claim.null and not math.isnan(values[0])
    return {"claim": claim.key, "text": claim.text, "v1": claim.v1, "v3": claim.v3, "v4": claim.v4,
            "form": claim.form, "value": float(values[0]), "low": math.nan, "high": math.nan,
            "over": "", "runs": runs, "exchanged": claim.null or None,
            "null": float(known.mean()) if tested else math.nan,
            "p": p_value(values) if tested else None,           # least: the smallest it could be
            "least": float((values >= known.max() - 1e-9).mean()) if tested else None}


def study_claim(claim, events, universe):
    row = claim_row(claim, events)
    if claim.counts and not math.isnan(row["value"]):
        of_one = functools.partial(as_they_are, claim.statistic, claim.null)
        row["low"], row["high"], row["over"] = interval(of_one, events, claim.limits)
    return row | (robustness(claim, universe) if universe and claim.key in universe.values else {})


# ------------------------------------------------------------------------------------------------
# What changes with size

AT_EACH, OF_PAIRS = ("C1", "C1 floor", "C3 depth", "C3 time", "C4", "C7"), ("C2", "C8")


def scales(events) -> dict:
    """What changes with size, where there are several.  events: without shams.

    floors: rows of `floor_slopes`.  claims: those of AT_EACH at every size, then those of OF_PAIRS
    for every pair of sizes, with the names of their "sizes"; p is not corrected for so many."""
    sizes, rows = by_size(events), []
    if len(sizes) < 2:
        return {"floors": [], "claims": []}
    for keys, chosen in [*[(AT_EACH, [size]) for size in sizes],
                         *[(OF_PAIRS, pair) for pair in itertools.combinations(sizes, 2)]]:
        names = [events.runs[size.argmax()].config["size"] for size in chosen]
        among = events.subset(runs=np.any(chosen, axis=0))
        rows += [claim_row(claim, among) | {"sizes": names}
                 for claim in CLAIMS if claim.key in keys]
    return {"floors": floor_slopes(events), "claims": rows}


def floor_slopes(events) -> list[dict]:
    """How the floor of RankMe goes with size: a row for each task, then "all", their mean.

    floors: at each size, geometric mean over levels and seeds; slope: of log floor against log
    parameters, least squares over sizes: floor ~ parameters^slope.  For RankMe as it is ("raw"), of
    the states without their mean ("centred"), and as a share of its ceiling ("share").  low, high:
    a 95% interval, tasks drawn anew (Student's t)."""
    sizes, rows = by_size(events), []
    heads = [events.runs[size.argmax()].config for size in sizes]
    x = np.log([np.nan_to_num(head["parameters"]) or math.nan for head in heads])
    x -= x.mean()
    kinds = {"raw": events.floor, "centred": without_mean(events).floor,
             "share": events.floor / events.ceiling}
    for kind, floor in kinds.items():
        logs = np.array([np.log(floor[size]).mean(0) for size in sizes])    # (sizes, L)
        logs = logs @ events.owner.T / events.owner.sum(1)                  # (sizes, tasks)
        slopes = x @ logs / (x @ x)                                         # (tasks,)
        if np.isnan(slopes).any():                              # not measured at every size
            continue
        T = len(slopes)
        half = t_quantile(T - 1) * slopes.std(ddof=1) / math.sqrt(T) if T > 1 else math.nan
        own = [*zip(dict.fromkeys(events.tasks), logs.T, slopes)]
        own += [("all", logs.mean(1), slopes.mean())] * (T > 1)
        rows += [{"kind": kind, "task": task, "slope": float(slope),
                  "floors": {head["size"]: float(value) for head, value in zip(heads, np.exp(log))}}
                 for task, log, slope in own]
        rows[-1] |= {"low": rows[-1]["slope"] - half, "high": rows[-1]["slope"] + half}
    return rows


ONE_FEATURE = "rankme.answer slope"   # fixed before the replication; see results/README.md


def forecasts(runs, events, null=0) -> list[dict]:
    """Does geometry add to a forecast by behaviour?  A row for each measure: see `forecast`.

    It "adds" if low > 0, the gain is at least .05 nats, 7 of 8 tasks gain, and p < .05."""
    rows, names = [], dict.fromkeys(name for run in runs for name in run.measures)
    for features in [(ONE_FEATURE,), *[(name, f"{name} slope") for name in names]]:
        quantity = features[0].removesuffix(" slope")
        r = [r for r, run in enumerate(runs) if not np.isnan(run.table(quantity)).all()]
        for over in ("task", "run") if r else ():
            found = forecast(runs, features, over, null if over == "task" else 0,
                             events=events.subset(runs=r))
            if found:
                gaining = float(np.mean([gain > 0 for gain in found.each.values()]))
                adds = found.low > 0 and found.gain >= 0.05 and gaining >= 7 / 8
                if adds:                                        # None: no p was asked for
                    adds = found.p and found.p < 0.05
                rows.append(found._asdict() | {"gaining": gaining, "adds": adds, "runs": len(r)})
    return rows


# ------------------------------------------------------------------------------------------------
# Arms: runs that differ in what was done to training, as their config says.  Claims C11 to C14.

class Arm(NamedTuple):            # fields of a run's config, and what they are where it lacks them
    intervene: str = ""           # a row of models.INTERVENTIONS; "": none
    strength: float = 1.0
    until: int = 0                # 0: all along
    filler: int = -1              # lines of text for each line of a task; -1: nor its tokens
    filler_shuffled: int = 0

    def __str__(self):
        parts = [self.intervene, f"{self.strength:g}" if self.strength != 1 else "",
                 f"until {self.until}" if self.until else "",
                 f"filler {self.filler}" if self.filler >= 0 else "",
                 "shuffled" if self.filler_shuffled else ""]
        return " ".join(filter(None, parts)) or "none"


TRAINED = ("steps", "per_level", "lr", "warmup", "final_lr", "weight_decay", "beta1", "beta2",
           "clip", "train_fraction", "dtype")       # in these all arms must agree


def arm_of(run):
    arm = Arm(*[run.config.get(field, usual) for field, usual in Arm._field_defaults.items()])
    arm = arm if arm.intervene else arm._replace(strength=1.0, until=0)
    return arm if arm.filler > 0 else arm._replace(filler_shuffled=0)


def experiments(runs) -> list[dict]:
    """[{Arm: runs}]: runs of the same levels and training but for the arm; two arms at least."""
    found = {}
    for run in runs:
        alike = tuple(run.levels), tuple(run.config.get(field) for field in TRAINED)
        found.setdefault(alike, {}).setdefault(arm_of(run), []).append(run)
    return [dict(sorted(arms.items())) for arms in found.values() if len(arms) > 1]


def control_of(arm, arms, against=""):
    """The arm that one is held against, if it is among `arms`.

    against: another intervention, of the same strength if possible; "shuffled" text; "": the
    untreated, which for text are runs that have its tokens and no line of it."""
    wanted = [arm._replace(intervene="", strength=1.0, until=0)]
    if against == "shuffled":
        wanted = [arm._replace(filler_shuffled=1)]
    elif against:
        wanted = [arm._replace(intervene=against), Arm(against, filler=arm.filler)]
    elif not arm.intervene:
        wanted = [Arm(filler=0 if arm.filler > 0 else -1)]
    return next((other for other in wanted if other in arms and other != arm), None)


@functools.lru_cache(maxsize=500)     # the same run again, so that what is dated once is known
def centred(run):
    """The run with RankMe of the centred states as that at the first answer token, and no other."""
    return replace(run, curves={
        name.replace("rankme_centred", "rankme.first"): curve
        for name, curve in run.curves.items() if name.partition(".")[0] != "rankme"})


def without_mean(events):
    """The same runs, dated by RankMe of the centred states; NaN where it was not measured."""
    return event_table(list(map(centred, events.runs)),
                       **events.dated_by | {"position": "first"}).only()


# What claims compare: an EventTable without shams -> (n,), a number for each run

def log_fall(events):
    """Log of RankMe of the untrained model over its floor, mean over task-levels."""
    return np.log(np.maximum(events.start / events.floor, 1)).mean(1)


def emerge_low(events, bar=2.5, share=2 / 3):
    """(1,): how many levels emerge, in that share of runs at least, with RankMe below the bar.

    Once below it stays below, until they have emerged.  Some start there: parity has 1.7 to 2.3."""
    by, arrival = events.dated_by, events.emergence[..., None]
    rankme = [run.rankme_at(by["position"], by["layer"])[events.rows] for run in events.runs]
    low, steps = np.array(rankme) < bar, events.runs[0].steps               # (R, L, S)
    fallen = np.logical_or.accumulate(low, axis=-1)
    stays = ~(fallen & ~low & (steps <= arrival)).any(-1) & np.isfinite(events.emergence)
    counted = stays & (fallen & (steps < arrival)).any(-1)                  # (R, L)
    return np.array([(counted.mean(0) >= share - 1e-9).sum()])


PLATEAU = ("parity-1", "parity-2", "parity-3", "add-1", "modadd-1")         # named beforehand

def log_steps(named, events):
    """Mean of log min(T, step of emergence), over the levels of PLATEAU or over all others."""
    steps, among = events.runs[0].steps, np.isin(events.levels, PLATEAU) == named
    if not among.any():
        return NOT_TOLD
    return np.log(np.clip(events.emergence[:, among], steps[steps > 0][0], steps[-1])).mean(1)


def rates_by_run(excess, events):
    """Share of emergences after an onset; with excess: less what exchanged tasks give."""
    drawn = draw_tasks(events)
    rates = [precursor_rate(events.subset(runs=[r]), drawn) for r in range(len(events.runs))]
    return np.array([rate[0] - excess * rate.mean() for rate in rates])


def gains_by_task(events):
    """(T,), whose mean is the gain of the forecast by the one feature."""
    found, tasks = forecast(events.runs, (ONE_FEATURE,), events=events), dict.fromkeys(events.tasks)
    if found is None:
        return NOT_TOLD
    return np.array([found.each.get(task, 0.0) * len(tasks) for task in tasks])


@dataclass(frozen=True)
class ArmClaim:
    key: str
    text: str
    treated: str                  # an intervention; "filler": any text; "text": not shuffled
    value: Callable               # EventTable -> (n,), taken of each arm
    fails: tuple                  # how it could turn out wrong: written before the runs were made
    against: str = ""             # see control_of
    compare: str = "difference"   # treated - control; "spared": less than control, as its share;
                                  # "alone": treated
    above: float = -math.inf      # it holds if the 95% interval, or what stands alone, is from here
    below: float = math.inf       # ... to there
    within: float = 0.0           # it holds if the 90% interval is within that of 0, and the
                                  # control has more than that
    geometry: bool = False        # it reads RankMe: beside it stands that of the centred states
    pairs: int = 2                # so many are needed

    def concerns(self, arm):
        if self.treated in ("filler", "text"):
            return arm.filler > 0 and not (self.treated == "text" and arm.filler_shuffled)
        return arm.intervene == self.treated

    def judge(self, *tables):
        """The tables of pair_arms -> a dict with the fields of a PairedMean, and a verdict."""
        unmeasured = self.geometry and np.isnan(tables[0].floor + tables[1].floor).all()
        before, after = (NOT_TOLD if unmeasured else self.value(events) for events in tables)
        parts = after if self.compare == "alone" else after - before
        found = paired_mean(parts / -before if self.compare == "spared" else parts)
        half, above, below = found.half, self.above, self.below
        if self.within:                                         # an equivalence
            half, above, below = found.half90, -self.within, self.within
        half = 0.0 if self.compare == "alone" else half
        low, high, n = found.mean - half, found.mean + half, len(tables[0].runs)
        verdicts = [(math.isnan(found.mean), "cannot tell: not measured, or nothing emerges"),
                    (n < self.pairs, f"cannot tell: {n} of {self.pairs} pairs"),
                    (self.within and before.mean() <= self.within,
                     "cannot tell: there is too little to lose"),
                    (above <= low and high <= below, "holds"),
                    (high < above or below < low, "does not hold"),
                    (True, "cannot tell: the interval is too wide")]
        return found._asdict() | {
            "pairs": n, "control_value": float(before.mean()), "treated_value": float(after.mean()),
            "verdict": next(verdict for condition, verdict in verdicts if condition)}


def study_arms(runs, specification: Specification = Specification()) -> dict:
    """What the arms among these runs have to say: {"effects", "claims"}, rows for effects.json.

    A row for each arm, and each control of it that has a run of the same size and seed."""
    by, effects, rows = vars(specification), [], []
    for arms, arm in [(arms, arm) for arms in experiments(runs) for arm in arms]:
        claims = [claim for claim in ARM_CLAIMS if claim.concerns(arm)]
        for against in dict.fromkeys(["", *[claim.against for claim in claims]]):
            control = control_of(arm, arms, against)
            pair = paired_runs(arms.get(control, ()), arms[arm])
            if not pair[0]:
                continue
            names, found = {"treated": str(arm), "control": str(control)}, effect(*pair, **by)
            effects.append(names | {"pairs": found.pairs, "end": found.end,
                                    "mean": found.mean._asdict(),
                                    "levels": [one._asdict() for one in found.levels]})
            tables = pair_arms(*pair, **by)
            for claim in [claim for claim in claims if claim.against == against]:
                rows.append({"claim": claim.key, "text": claim.text, "fails": claim.fails}
                            | names | claim.judge(*tables))
                if claim.geometry:
                    rows[-1]["centred"] = claim.judge(*map(without_mean, tables))
    order = [claim.key for claim in ARM_CLAIMS]
    return {"effects": effects, "claims": sorted(rows, key=lambda row: order.index(row["claim"]))}


# ------------------------------------------------------------------------------------------------
# The table of claims

def _measure(name):
    """What the claims on measures other than RankMe have in common."""
    return dict(statistic=functools.partial(measure_rate, name), null=TASKS, reads=RARELY,
                limits=SHARE, leader=name, needs=f"shams, and --measures {name}")


CLAIMS = (
    Claim("C1", "RankMe collapses, losing half of what it has above 1",
          "all tasks", "all tasks", "all tasks", collapse_rate, above=0.9, limits=SHARE,
          reads=FLOOR),
    Claim("C1 floor", "the floor depends on the task (share of its variance)",
          "yes", "yes", "yes", task_share,
          null=LEVELS, above_null=True, limits=SHARE, needs="two tasks", reads=FLOOR),
    Claim("C2", "the floor is the same at every scale (the two sizes farthest apart)",
          "same at all", "same at all", "task-specific", floor_ratio, above=0.8, below=1.25,
          by_interval=True, form="{:.2f}", limits=RATIO, needs="two sizes", reads=FLOOR),
    Claim("C3 depth", "deeper layers have lower floors (task x size)",
          "32/32", "28/32", "top-down", functools.partial(top_down_cells, 0),
          null=LAYERS, above_null=True, limits=SHARE, needs="two blocks", reads=DEPTH),
    Claim("C3 time", "deeper layers reach their floors first (task x size)",
          "32/32", "28/32", "top-down", functools.partial(top_down_cells, 1),
          null=LAYERS, above_null=True, limits=SHARE, needs="two blocks", reads=DEPTH),
    Claim("C4", "RankMe recovers before emergence",
          "75-100%", "100%", "hard tasks only", precursor_rate,
          null=TASKS, above_null=True, limits=SHARE, needs="an emergence", leader="rankme"),
    Claim("C4 risk set", "those that have recovered emerge sooner (events above chance)",
          "-", "-", "-", risk_set_excess, null=TASKS, above_null=True, form="{:.1f}",
          counts=False),
    Claim("C5", "the LLC comes first only as often as chance gives (share)",
          "0/24", "0/24", "no precursor", within=0.1, **_measure("llc")),
    Claim("C5 narrow", "so does the LLC where weights are held closer (localization)",
          "-", "-", "-", within=0.1, **_measure("llc_narrow")),
    Claim("C6", "the top Hessian eigenvalue comes first as often as chance gives",
          "about 17%", "lags", "no precursor", within=0.1, **_measure("hessian_top")),
    Claim("C7", "order of onsets and of emergence go together (rho)",
          ".57-.90", ".57-.90", "-", order_correlation, null=TASKS, above_null=True,
          form="{:.2f}", needs="an emergence", limits=(-1, 1)),
    Claim("C7 fine", "within a difficulty class the order is what chance gives",
          "27%", "52-69%", "-", within_class, null=TASKS, within=0.1, limits=SHARE,
          needs="two seeds of a size, and several task-levels in a class"),
    Claim("C8", "orders that sizes reverse are foreseen as often as chance gives",
          "26%", "26%", "-", swap_rate, null=TASKS, within=0.1, limits=SHARE,
          needs="two sizes that reverse an order"),
    Claim("C10", "a linear probe finds the answer before behaviour does",
          "-", "-", "yes", above_null=True, **_measure("linear_probe")),
)

# The claim on which the study stands; it is about the whole multiverse.
MEAN_EXCESS = Claim("C4 all choices", "RankMe comes first more often than chance has it (mean "
                    "excess)", "-", "-", "-", precursor_rate, null=TASKS, above_null=True,
                    form="{:.3f}", needs="an emergence")

# Claims on arms, each with two ways in which it could fail, written before there were any runs.
MOVES, DILUTES = functools.partial(log_steps, True), {"within": 0.1, "treated": "filler"}
ARM_CLAIMS = (
    ArmClaim("C11", "most of the early collapse is the learning of answer frequencies (share of "
             "the fall that is spared where they are given)", "marginal", log_fall,
             ("less than half is spared: most of the fall is something else",
              "wrong frequencies spare as much (C11 wrong): any offset would do"),
             compare="spared", above=0.5, geometry=True),
    ArmClaim("C11 wrong", "they spare more than wrong frequencies do (log of the fall)",
             "marginal", log_fall, ("it is the same: what the offset says does not matter",
                                    "wrong ones spare more: what is unlearned holds the rank up"),
             against="wrong-marginal", below=0.0, geometry=True),
    ArmClaim("C11 bias", "a bias that can learn them spares some of the fall (share)",
             "head-bias", log_fall, ("nothing is spared: states move although they need not",
                                     "wrong frequencies spare as much: see C11 wrong"),
             compare="spared", above=0.0, geometry=True),
    ArmClaim("C12", "recovery is not necessary: three task-levels emerge, in four runs of six, "
             "though RankMe has been held below 2.5", "rank-down", emerge_low,
             ("fewer do: what emerges has recovered first, or the penalty is too weak to tell",
              "centred RankMe recovers all the same: the mean is held down, not the rank"),
             compare="alone", above=3, geometry=True, pairs=6),
    ArmClaim("C13", "rank held up brings forward what waits on a plateau (log steps of parity-1, "
             "-2, -3, add-1, modadd-1)", "rank-up", MOVES,
             ("a placebo's gradient does so, too",
              "more strength does not bring them forward more, or everything comes sooner"),
             against="placebo", below=0.0),
    ArmClaim("C13 others", "and delays all others (log steps)", "rank-up",
             functools.partial(log_steps, False),
             ("they move no more than with a placebo", "they come sooner as well"),
             against="placebo", above=0.0),
    ArmClaim("C14", "among much text as many emergences come after a recovery (change of share)",
             value=functools.partial(rates_by_run, False), **DILUTES, geometry=True,
             fails=("the share falls by more than .1: dilution hides precursors",
                    "it stays, but chance gives it as well (C14 excess)")),
    ArmClaim("C14 excess", "and that exceeds chance by as much (change)",
             value=functools.partial(rates_by_run, True), **DILUTES, geometry=True,
             fails=("the excess falls by more than .1",
                    "there is none without text: nothing can vanish")),
    ArmClaim("C14 forecast", "and RankMe's slope adds as much to a forecast (change in nats)",
             value=gains_by_task, **DILUTES,
             fails=("the gain falls by more than .1",
                    "there is none without text: nothing can vanish")),
    ArmClaim("C14 text", "language, not any further gradient, brings forward what waits on a "
             "plateau (log steps, text less shuffled text)", "text", MOVES,
             ("shuffled characters do so, too", "neither does: see the effects"),
             against="shuffled", below=0.0),
)
