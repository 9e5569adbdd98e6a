"""Statistics of single claims by counting; tests and verdicts on made-up sweeps in which the truth
is planted, with effects drawn for each task; the multiverse against the plain way."""
import csv
import dataclasses
import doctest
import functools
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

import claims
import emergence
from claims import (ALTERNATIVES, CLAIMS, MEAN_EXCESS, Claim, Specification, judge, robustness,
                    specifications)
from emergence import event_table, exchanges, from_table, risk_set_test
from test_emergence import LEVELS, TASKS, made_up_events, made_up_run

ROOT = Path(__file__).resolve().parent.parent
CLAIM = {claim.key: claim for claim in (*CLAIMS, MEAN_EXCESS)}
FOUR = ("add-1", "add-2", "copy-1", "copy-2")
FEW = specifications({axis: options if axis in ("behaviour", "position") else options[:1]
                      for axis, options in ALTERNATIVES.items()})
SEVENTY = exchanges(range(8))[::600]                          # some of the 40,320; the first as is


def observed(statistic, events, null=claims.TASKS):
    return claims.as_they_are(statistic, null, events)


def with_arrays(events, **arrays):
    return dataclasses.replace(events, **{name: np.array(x, float) for name, x in arrays.items()})


def claim_rows(findings):
    return {row["claim"]: row for row in findings["claims"]}


# ------------------------------------------------------------------------------------------------
# Made-up sweeps: 8 tasks x 3 levels.  Effects belong to tasks: within a level, the ranks of the
# levels of a task are correlated at about .95 in onset and .74 in emergence: results/first-look.

LEVEL = np.array([int(name[-1]) for name in LEVELS])


def effects(rng, runs, correlation):
    """(R, L) with variance 1, of which `correlation` is the task's own, in all runs and levels."""
    task = np.repeat(rng.normal(0, 1, 8), 3)
    return (math.sqrt(correlation) * task
            + math.sqrt(1 - correlation) * rng.normal(0, 1, (runs, 24)))


def emergence_steps(rng, runs):
    steps = np.round(150 * 2.0 ** (0.7 * LEVEL + 0.8 * effects(rng, runs, 0.74)))
    steps[steps > 1600] = math.inf
    return steps


def own_onsets(rng, steps):
    """Nothing leads: an onset belongs to its task, but has nothing to do with its emergence."""
    return np.round(200 * 2.0 ** (0.3 * LEVEL + 0.8 * effects(rng, len(steps), 0.95)))


def common_onsets(rng, steps):
    return np.round(30 + rng.normal(0, 5, steps.shape))


def leading_onsets(rng, steps):
    """An onset at .6 of the step of emergence, give or take a factor of 1.3; never for never."""
    return np.where(np.isfinite(steps), steps * 0.6 * 1.3 ** rng.normal(0, 1, steps.shape), np.inf)


def rejections(onsets, statistic, runs, repetitions=200):
    """Share of made-up sweeps in which the exact test at 5% finds something."""
    rng, found, orders = np.random.default_rng(0), 0, exchanges(range(8))
    for _ in range(repetitions):
        steps = emergence_steps(rng, runs)
        events = made_up_events(onsets(rng, steps), steps)
        found += emergence.p_value(statistic(events, orders)) < 0.05
    return found / repetitions


def test_the_made_up_effects_are_those_of_the_real_sweep():
    rng = np.random.default_rng(0)
    for correlation in (0.95, 0.74):
        x = np.concatenate([effects(rng, 1, correlation).reshape(8, 3) for _ in range(500)])
        assert np.corrcoef(x[:, 0], x[:, 1])[0, 1] == pytest.approx(correlation, abs=0.03)


@pytest.mark.parametrize("statistic", [
    claims.risk_set_excess, claims.precursor_rate, claims.order_correlation])
def test_tests_have_their_size_where_nothing_leads_and_power_where_it_does(statistic):
    """Over 200 sweeps of 5 runs whose tasks differ, and in which nothing leads, 2 to 8% of the
    tests at 5% say that something does.  Two standard errors are 3%."""
    size, common = rejections(own_onsets, statistic, 5), rejections(common_onsets, statistic, 5, 50)
    power = rejections(leading_onsets, statistic, 5, 50)
    print(f"{statistic.__name__}: size {size:.3f}, common onsets {common:.3f}, power {power:.2f}")
    assert 0.02 <= size <= 0.08 and common <= 0.1
    assert power >= 0.6


def test_levels_exchanged_on_their_own_cry_wolf():
    """24 things taken for exchangeable where there are 8: what the whole-task exchange mends."""
    rng, alarms = np.random.default_rng(0), 0
    number = np.array([level[-1] for level in LEVELS])
    for _ in range(300):
        steps = emergence_steps(rng, 5)
        drawn = np.tile(np.arange(24), (400, 1))
        for k in "123":
            drawn[1:, number == k] = rng.permuted(drawn[1:, number == k], axis=1)
        a, b = (np.array([claims.ranks(row) for row in x]) - 12.5
                for x in (own_onsets(rng, steps), steps))
        alarms += emergence.p_value((a[:, drawn] * b[:, None]).sum((0, 2))) < 0.05
    assert alarms / 300 > 0.09, alarms / 300


# ------------------------------------------------------------------------------------------------
# The exact null

def test_the_exact_p_value_is_that_of_brute_force_on_five_tasks():
    rng = np.random.default_rng(1)
    levels = [f"{task}-{k}" for task in TASKS[:5] for k in (1, 2)]
    onset, emerged = rng.integers(1, 20, (2, 3, 10)).astype(float)
    emerged[0, 3] = math.inf
    events = made_up_events(onset, emerged, levels)

    def slow(statistic):
        values = []
        for order in itertools.permutations(range(5)):
            given = np.stack([onset[:, 2 * order[k // 2] + k % 2] for k in range(10)], axis=1)
            values.append(statistic(given))
        return np.array(values)

    def rate(given):
        hits = [o < e for o, e in zip(given.ravel(), emerged.ravel()) if e < math.inf]
        return sum(hits) / len(hits)

    def rho(given):
        return np.mean([claims.spearman(o, e) for o, e in zip(given, emerged)])

    def u(given):
        found = [risk_set_test(o, e) for o, e in zip(given, emerged)]
        return sum(z * math.sqrt(V) for z, V in found if V > 0)
    for fast, one in ((claims.precursor_rate, rate), (claims.order_correlation, rho),
                      (claims.risk_set_excess, u)):
        values, expected = fast(events, exchanges(events.tasks)), slow(one)
        if one is u:
            expected = expected - expected.mean()
        assert values == pytest.approx(expected)
        assert emergence.p_value(values) == emergence.p_value(expected)


@functools.lru_cache
def reference_runs():
    """The runs of results/first-look, or of whichever sweep there has several tasks and shams."""
    import sweep
    rows, configs, _ = sweep.load(ROOT / "results/first-look")
    return from_table(rows, configs)


@pytest.mark.system
def test_the_default_rate_and_its_p_follow_from_events_csv_alone():
    """First look: the rate of C4 and its exact null, from a table of dates and nothing else."""
    runs = reference_runs()
    events = event_table(runs).only()
    found = {}
    for row in csv.DictReader(csv_lines(claims.event_rows(event_table(runs)))):
        if row["sham"] == "False" and row["quantity"] in ("rankme", "accuracy"):
            step = float(row["step"] or "inf")
            number = row["level"].rpartition("-")[2]
            found[row["run"], row["task"], number, row["event"]] = step
    names = list(dict.fromkeys(task for _, task, _, _ in found))
    table, total = np.zeros((len(names),) * 2), 0
    for (run, task, number, event), step in found.items():
        if event == "emergence" and step < math.inf:
            total += 1
            for i, other in enumerate(names):
                table[names.index(task), i] += found[run, other, number, "onset"] < step
    orders = np.array(list(itertools.permutations(range(len(names)))))
    null = table[np.arange(len(names)), orders].sum(1) / total
    row = claim_rows({"claims": [claims.study_claim(CLAIM["C4"], events, None)]})["C4"]
    assert row["value"] == pytest.approx(null[0]) and row["null"] == pytest.approx(null.mean())
    assert row["p"] == pytest.approx((null >= null[0] - 1e-9).mean())


def csv_lines(rows):
    yield ",".join(rows[0])
    for row in rows:
        yield ",".join("" if value is None else str(value) for value in row.values())


@pytest.mark.slow
def test_the_mean_over_the_first_specifications_is_what_it_was():
    """The 864 specifications of the first analysis, whose onsets were three snapshots in a row
    above the floor: .712 against .605, the least p there is; and the default alone .021."""
    alternatives = {
        "threshold": (0.1, 0.3, 0.5), "persistence": (3, 5), "behaviour": ("accuracy", "log_prob"),
        "rise": (0.1, 0.2, 0.5), "position": ("first", "answer", "last"), "layer": (-2, -1),
        "smoothing": (3, 7), "warmup": (True, False)}
    runs, orders, total = reference_runs(), exchanges(range(8)), np.zeros((8, 8))
    specifications = claims.specifications(alternatives)
    assert len(specifications) == 864
    for one in specifications:
        one = dataclasses.replace(one, onset="floor", lasting=1.0)
        events = event_table(runs, **vars(one)).only()
        # by hand: emergences of task j after the onset of task i, what is there from the start too
        onset, emerged = (x.reshape(8, 8, 3) for x in (events.onset, events.emergence))
        first = (onset[:, None] < emerged[:, :, None]) & np.isfinite(emerged)[:, :, None]
        total += first.sum((0, 3)) / np.isfinite(emerged).sum()
    null = total[np.arange(8), orders].sum(1) / 864
    assert (null[0], null.mean()) == pytest.approx((0.712, 0.605), abs=5e-4)
    assert (null >= null[0] - 1e-12).sum() == 1
    default = event_table(runs, onset="floor", lasting=1.0).only()
    rates = claims.precursor_rate(default, orders)
    assert emergence.p_value(rates) == pytest.approx(840 / 40320)


@pytest.mark.slow
def test_the_mean_excess_is_that_of_a_slow_script_over_the_rows():
    """Every fortieth specification, level by level, run by run, exchange by exchange."""
    runs = reference_runs()
    chosen = specifications()[::40]
    universe = claims.multiverse(runs, chosen)
    orders = exchanges(range(8))[:50]
    fast = claims.mean_excess(universe, orders)
    slow = np.zeros(len(orders))
    for one in chosen:
        events = event_table(runs, **vars(one)).only()
        place = {level: k for k, level in enumerate(events.levels)}
        names = list(dict.fromkeys(events.tasks))
        for m, order in enumerate(orders):
            hits = count = 0
            for r in range(len(runs)):
                for level, k in place.items():
                    task, number = emergence.split_level(level)
                    step = events.emergence[r, k]
                    if events.first[r, k] < step < math.inf:
                        partner = f"{names[order[names.index(task)]]}-{number}"
                        count += 1
                        hits += events.onset[r, place[partner]] < step
            slow[m] += hits / count / len(chosen)
    assert fast - fast[0] == pytest.approx(slow - slow[0])


# ------------------------------------------------------------------------------------------------
# Statistics of single claims

def test_collapse_is_the_loss_of_half_of_what_lies_above_one():
    events = made_up_events([[1, 1, 1]], [[1, 1, 1]], ("add-1", "copy-1", "sort-1"))
    events = with_arrays(events, start=[[9, 9, 9]], floor=[[5, 5.1, 2]])
    assert claims.collapse_rate(events, None) == pytest.approx([2 / 3])
    unmeasured = with_arrays(events, floor=[[math.nan] * 3])
    assert np.isnan(claims.collapse_rate(unmeasured, None)).all()


def test_task_share_is_all_or_nothing_at_its_ends():
    levels = tuple(f"{task}-{k}" for task in ("add", "copy") for k in (1, 2))
    ones = made_up_events([[1] * 4], [[1] * 4], levels)
    by_task = with_arrays(ones, floor=[[2, 4, 3, 6]])         # copy: 1.5 times add, at both levels
    crossed = with_arrays(ones, floor=[[2, 6, 3, 4]])         # at level 2 the other way round
    for events, share in ((by_task, 1), (crossed, 0)):
        found = observed(claims.task_share, events, claims.LEVELS)
        assert found == pytest.approx(share, abs=1e-12)
    alone = made_up_events([[1, 1]], [[1, 1]], ("add-1", "add-2"))
    assert np.isnan(claims.task_share(alone, None)).all()


def test_levels_are_drawn_on_their_own_only_for_the_floors():
    events = made_up_events([[1] * 24], [[1] * 24])
    drawn = claims.draw_levels(events, 50)
    assert (drawn[0] == range(24)).all() and len(np.unique(drawn, axis=0)) == 50
    assert (np.sort(drawn, 1) == range(24)).all()
    assert (drawn % 3 == np.arange(24) % 3).all()
    floors = with_arrays(events, floor=np.random.default_rng(0).uniform(1, 9, (1, 24)))
    whole = np.array([[3 * j + k for j in order for k in range(3)] for order in SEVENTY])
    assert np.ptp(claims.task_share(floors, whole)) < 1e-12   # whole tasks would not change it


def test_layers_are_reversed_in_every_way_there_is():
    events = made_up_events([[1] * 24] * 3, [[1] * 24] * 3)
    drawn = claims.draw_layers(events)
    assert drawn.shape == (8, 3) and not drawn[0].any() and len(np.unique(drawn, axis=0)) == 8
    many = made_up_events([[1] * 24] * 13, [[1] * 24] * 13)
    assert claims.draw_layers(many).shape == (4096, 13)


def test_top_down_reads_layers_without_embedding_and_norm():
    assert claims.top_down([1, 4, 3, 2, 99]) == 1 and claims.top_down([99, 2, 3, 4, 0]) == 0
    assert claims.top_down([0, 4, 2, 3, 0]) == pytest.approx(2 / 3)
    assert np.isnan(claims.top_down([[0, 1, 2], [0, 1, 2]])).tolist() == [True, True]


def test_top_down_is_counted_by_task_and_size_and_reversed_by_run(monkeypatch):
    levels, parameters = ("add-1", "add-2", "copy-1"), [4e5, 4e5, 1.3e6]
    events = made_up_events([[1] * 3] * 3, [[1] * 3] * 3, levels, parameters)
    down = np.array([[1, 0.5, 0], [1, 0.5, 0.5], [0, 0.5, 1]])
    monkeypatch.setattr(claims, "top_downs", lambda which, events: (down, np.zeros((3, 3)))[which])
    reverse = np.array([[False] * 3, [True] * 3])
    # add: .75 at the small size, .25 at the large; copy: .25 and 1
    assert claims.top_down_cells(0, events, reverse).tolist() == [0.5, 0.5]
    assert claims.top_down_cells(1, events, reverse).tolist() == [0, 1]
    monkeypatch.setattr(claims, "top_downs", lambda which, events: np.full((3, 3), math.nan))
    assert np.isnan(claims.top_down_cells(0, events, reverse)).all()        # a single block


def test_top_down_reads_the_first_answer_token_whatever_the_specification():
    events = event_table([made_up_run()], position="last", layer=-1).only()
    floors, steps = (claims.top_downs(which, events) for which in (0, 1))
    assert floors.tolist() == [[1, 1]] and steps.tolist() == [[0.5, 0.5]]


def test_a_floor_twice_as_high_is_a_ratio_of_two():
    small = [made_up_run(seed, levels=FOUR) for seed in range(3)]
    large = [made_up_run(seed, "micro", 1.3e6, levels=FOUR) for seed in range(3)]
    for run in large:
        for values in run.layered.values():
            values *= 2
    events = event_table(small + large)
    assert claims.floor_ratio(events, None) == pytest.approx([2])
    findings = claims.study(small + large)
    assert findings["floor_ratio_of_shares"] == pytest.approx(2)
    row = claim_rows(findings)["C2"]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((2, 2, 2))
    assert row["verdict"] == "does not hold" and row["p"] is None
    assert np.isnan(claims.floor_ratio(event_table(small), None)).all()


def test_floors_that_rise_with_size_and_fall_again_are_not_the_same():
    events = event_table([made_up_run(size=size, parameters=10 ** k)
                          for k, size in enumerate(("small", "middle", "big"), 6)])
    for factors, ratio in (((1, 3, 1), 3), ((1, 0.5, 0.9), 0.5), ((2, 1, 4), 4), ((1, 1, 1), 1)):
        planted = dataclasses.replace(events, floor=events.floor * np.array(factors)[:, None])
        assert claims.floor_ratio(planted, None) == pytest.approx([ratio]), factors
    planted.floor[1] = math.nan
    assert np.isnan(claims.floor_ratio(planted, None)).all()


def test_swap_rate_by_counting():
    """Two sizes, three tasks.  a-b are reversed between the sizes, and so are their onsets; a-c are
    reversed, and their onsets are not."""
    levels = ("copy-1", "add-1", "sort-1")
    events = made_up_events([[10, 20, 30], [25, 20, 30]], [[100, 200, 300], [400, 300, 350]],
                            levels, [4e5, 1.3e6])
    assert claims.swap_rate(events, exchanges("abc"))[0] == 0.5
    never = made_up_events([[10, 20, 30]] * 2, [[100, 200, 300]] * 2, levels, [4e5, 1.3e6])
    assert np.isnan(claims.swap_rate(never, exchanges("abc"))).all()


def test_swaps_are_counted_among_the_levels_that_have_an_onset_and_a_partner():
    """Tasks of one to three levels: by lot it is a quarter, for the observed order and its null."""
    rng, rates = np.random.default_rng(0), []
    levels = ("a-1", "a-2", "a-3", "b-1", "b-2", "b-3", "c-1", "d-1", "e-1", "f-1")
    for _ in range(300):
        onset, emerged = rng.random((2, 2, len(levels)))
        onset[0, 3] = math.nan
        events = made_up_events(onset, emerged, levels, [4e5, 1.3e6])
        values = claims.swap_rate(events, exchanges("abcdef"))
        rates.append([values[0], values[1:].mean()])
    assert np.nanmean(rates, axis=0) == pytest.approx([0.25, 0.25], abs=0.025)


def test_an_order_drawn_by_lot_gets_a_quarter_of_the_swaps():
    rng, rates = np.random.default_rng(0), []
    for _ in range(300):
        steps = emergence_steps(rng, 2)
        events = made_up_events(rng.random(steps.shape), steps, parameters=[4e5, 1.3e6])
        rates.append(observed(claims.swap_rate, events))
    assert np.nanmean(rates) == pytest.approx(0.25, abs=0.02)


def test_difficulty_comes_from_the_other_seeds():
    steps = emergence_steps(np.random.default_rng(0), 3)
    steps[2] = steps[2, ::-1]                                 # the third learns in reverse order
    classes = claims.difficulty(made_up_events(steps, steps))
    order = np.argsort(np.median(steps[:2], axis=0), kind="stable")
    assert classes[2, order[0]] == 0 and classes[2, order[-1]] == 2
    alone = made_up_events(steps[:2], steps[:2], parameters=[4e5, 1.3e6])
    assert (claims.difficulty(alone) == -1).all()


def test_within_class_is_a_concordance_of_pairs_of_one_class():
    steps = emergence_steps(np.random.default_rng(1), 4)
    onset = own_onsets(np.random.default_rng(2), steps)
    onset[0, :3] = math.inf
    events = made_up_events(onset, steps)
    slow = []
    for order in SEVENTY[:5]:
        alike = []
        for o, e, own in zip(onset, steps, claims.difficulty(events)):
            given = [o[3 * order[k // 3] + k % 3] for k in range(24)]
            for i in range(24):
                for j in range(i):
                    if own[i] == own[j]:
                        alike.append(emergence.concordance([given[i], given[j]], [e[i], e[j]]))
        slow.append(np.nanmean(alike))
    assert claims.within_class(events, SEVENTY[:5]) == pytest.approx(slow)
    one = made_up_events(onset[:1], steps[:1])
    assert np.isnan(claims.within_class(one, SEVENTY)).all()


def test_ranks_and_spearman_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(3).integers(0, 6, (2, 15)).astype(float)
    assert claims.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert claims.ranks(a).tolist() == stats.rankdata(a).tolist()


def test_spearman_takes_values_and_ranks_them_itself():
    assert claims.spearman([1, 10, 1000], [3, 4, 5]) == 1
    assert claims.spearman([1, 2, 3, None], [40, 30, 20, 10]) == -1
    assert claims.spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert math.isnan(claims.spearman([1, 1], [1, 2]))


def test_order_correlation_is_one_if_onsets_have_the_order_of_emergence():
    steps = emergence_steps(np.random.default_rng(3), 3)
    events = made_up_events(np.minimum(steps, 1e9) / 2, steps)
    assert observed(claims.order_correlation, events) == pytest.approx(1)
    common = made_up_events(np.ones(steps.shape), steps)
    assert np.isnan(claims.order_correlation(common, SEVENTY)).all()
    events.onset[:, 2] = math.nan                               # not measured: it has no rank
    assert observed(claims.order_correlation, events) == pytest.approx(1)
    events.onset[:] = math.nan
    assert np.isnan(claims.order_correlation(events, SEVENTY)).all()


def test_risk_set_excess_is_the_sum_over_runs_above_its_mean():
    rng = np.random.default_rng(5)
    onset, emerged = rng.integers(1, 20, (2, 3, 24)).astype(float)
    emerged[0, 3] = math.inf
    censored = np.full((3, 24), 15.0)
    censored[1] = math.inf
    events = with_arrays(made_up_events(onset, emerged), censored=censored)
    slow = []
    for order in SEVENTY:
        U = 0
        for o, e, c in zip(onset, emerged, censored):
            z, V = risk_set_test([o[3 * order[k // 3] + k % 3] for k in range(24)], e, c)
            U += z * math.sqrt(V)
        slow.append(U)
    assert claims.risk_set_excess(events, SEVENTY) == pytest.approx(np.array(slow) - np.mean(slow))


def test_a_sham_is_held_against_the_others_for_above_its_own_bar_it_cannot_rise():
    runs = [made_up_run(seed, levels=(*FOUR, "sham-add-1", "sham-copy-1")) for seed in range(2)]
    for run in runs:
        for curve in [x for name, x in run.curves.items() if name.startswith("rankme.first")]:
            curve[4:] = np.where(run.steps >= 100, 9.0, 2.0), np.full(len(run.steps), 2.0)
    events = event_table(runs)
    assert np.isinf(events.only(shams=True).onset).all()
    check = claims.lead_check(events)
    assert (check["shams"], check["sham_onsets"], check["sham_emergences"]) == (4, 2, 0)


def test_lead_check_counts_runs_apart_and_shams_for_themselves():
    one = claims.lead_check(event_table([made_up_run()]))
    three = claims.lead_check(event_table([made_up_run(seed) for seed in range(3)]))
    z, information = risk_set_test([100, 200], [160, 260])
    assert (one["z"], one["information"]) == pytest.approx((z, information))
    assert three["information"] == pytest.approx(3 * information) and three["shams"] == 3
    assert (one["shams"], one["sham_onsets"], one["sham_emergences"]) == (1, 0, 0)
    assert one["onset_rule"] == "shams"
    late = claims.lead_check(event_table([made_up_run(warmup=150)]))
    assert (late["onsets_in_warmup"], late["median_onset"], late["warmup"]) == (0.5, 150, 150)


def test_class_rates_stand_beside_the_null_of_their_class():
    steps = emergence_steps(np.random.default_rng(0), 3)
    events = made_up_events(np.where(np.isfinite(steps), 0.95 * steps, np.inf), steps)
    rows = claims.class_rates(events, SEVENTY, claims.difficulty(events))
    assert [row["class"] for row in rows] == ["easy", "middle", "hard"]
    assert sum(row["events"] for row in rows) == np.isfinite(steps).sum()
    assert [row["rate"] for row in rows] == pytest.approx([1, 1, 1])
    assert rows[0]["null"] < rows[1]["null"] < rows[2]["null"] <= 1


# ------------------------------------------------------------------------------------------------
# Intervals

def test_an_interval_over_tasks_is_students_for_a_mean_of_tasks():
    """8 tasks of 3 levels, one run: the jackknife of a mean is the t interval of the task means."""
    x = np.random.default_rng(0).normal(5, 1, (1, 24))
    events = with_arrays(made_up_events(x, x), floor=x)

    def mean(events):
        return events.floor.mean()
    means = x.reshape(8, 3).mean(1)
    half = 2.364624 * means.std(ddof=1) / math.sqrt(8)
    low, high, over = claims.interval(mean, events, (-math.inf, math.inf))
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half)) and over == "tasks"


def test_an_interval_over_runs_draws_them_anew_within_their_size():
    """Two sizes of 2 and 3 runs whose levels differ by 100: the sizes are no part of the spread.
    Satterthwaite by hand: variances of .5 and 2 around the means; df from their parts."""
    values = np.repeat([[9], [11], [108], [110], [112.0]], 24, axis=1)
    parameters = [4e5, 4e5, 1.3e6, 1.3e6, 1.3e6]
    events = with_arrays(made_up_events(values, values, parameters=parameters), floor=values)

    def both(events):
        sizes = claims.by_size(events)
        return sum(events.floor[size].mean() for size in sizes)
    low, high, over = claims.interval(both, events, (-math.inf, math.inf))
    a, b = 2 / 2, 4 / 3                                       # variance of each mean
    df = (a + b) ** 2 / (a ** 2 / 1 + b ** 2 / 2)
    half = emergence.t_quantile(df) * math.sqrt(a + b)
    assert (low, high, over) == (pytest.approx(120 - half), pytest.approx(120 + half), "runs")


def test_the_wider_interval_is_shown_and_a_rate_of_one_has_wilsons():
    ones = made_up_events(np.ones((2, 24)), np.full((2, 24), 9.0))
    rate = functools.partial(observed, claims.precursor_rate)
    low, high, over = claims.interval(rate, ones)
    assert (low, over) == (pytest.approx(emergence.rate_with_interval(2, 2)[1]), "runs")
    assert high == 1
    one_run = ones.subset(runs=[0])
    assert claims.interval(rate, one_run)[::2] == (
        pytest.approx(emergence.rate_with_interval(8, 8)[1]), "tasks")
    alone = one_run.subset(levels=[0, 1, 2])
    assert math.isnan(claims.interval(rate, alone)[0]) and claims.interval(rate, alone)[2] == ""


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_intervals_over_tasks_cover_what_they_should(spread):
    """300 sweeps of 5 runs: 8 tasks drawn from many; the rate of all tasks is covered in 95%."""
    rng, covered = np.random.default_rng(1), 0
    truth = (1 / (1 + np.exp(-1 - spread * rng.normal(size=200_000)))).mean()
    for _ in range(300):
        chance = 1 / (1 + np.exp(-1 - spread * np.repeat(rng.normal(size=8), 3)))
        onset = np.where(rng.random((5, 24)) < chance, 1.0, 9.0)
        events = made_up_events(onset, np.full((5, 24), 5.0))
        low, high, _ = claims.interval(functools.partial(observed, claims.precursor_rate), events)
        covered += low <= truth <= high
    assert 0.91 <= covered / 300 <= 0.99, covered / 300


# ------------------------------------------------------------------------------------------------
# The table of leads

def rows_of(leads, measure):
    return {row["quantity"]: row for row in leads if row["measure"] == measure}


MEASURES = ("llc", "hessian_top", "gradient_rank", "linear_probe")


def test_a_measure_departs_where_it_leaves_the_shams_on_its_own_grid():
    levels = ("add-1", "add-2", "sham-add-1")
    run, other = made_up_run(levels=levels, measures=MEASURES), made_up_run(1, levels=levels)
    events = event_table([run, other]).only()
    after = {"llc": 0, "hessian_top": 20, "gradient_rank": -40, "linear_probe": -60}
    for name in MEASURES:
        grids = claims.grids_of(events, name)
        dated = claims.on_grids(events, name, grids)
        assert dated.emergence.tolist() == [[160, 260], [math.inf] * 2]         # multiples of 20
        assert (dated.onset[0] - dated.emergence[0]).tolist() == [after[name]] * 2
        rankme = claims.on_grids(events, "rankme", grids)
        assert rankme.onset[0].tolist() == [100, 200]
        assert len(grids[0]) == 21 and grids[1] is None


def test_a_departure_is_beyond_the_measures_own_error_and_in_either_direction():
    steps, nan = range(0, 200, 20), math.nan
    curves = {"add-1": [1, 1, 1, 5, 5, 5, 5, 5, 5, 5], "add-2": [1, 1, 1, *[-5] * 7],
              "add-3": [7, 7, 7, 7, 7, 7, 7, 7, 7, 7], "copy-1": [7, 1, 1, 1, 7, 7, 7, 7, 7, 7],
              "copy-2": [1, 1, 7, 1, 1, 1, 1, 1, 1, 7], "copy-3": [1, 1, 1, 1, nan, 7, 7, 7, 7, 7],
              "sham-add-1": [0] * 10, "sham-add-2": [2] * 10}
    rows = [("mine", level, step, "mine", x) for level, xs in curves.items()
            for step, x in zip(steps, xs)]
    errors = [("mine", level, step, "mine.error", 3.5) for level in curves for step in steps]
    for extra, expected in (([], [60, 60, nan, 80, math.inf, 100]),
                            (errors, [math.inf, 60, nan, 80, math.inf, 100])):
        events = event_table(from_table(rows + extra)).only()
        run, = events.runs
        found = claims.date_on(events, run, "mine", run.steps, claims.ON_A_GRID)[:6]
        assert np.array_equal(found, expected, equal_nan=True)


def test_a_level_whose_untrained_probe_knows_the_answer_has_no_room():
    runs = [made_up_run(seed, levels=(*FOUR, "sham-add-1"), measures=MEASURES) for seed in (0, 1)]
    for run in runs:
        run.curves["linear_probe"][0, 0] = 0.8
    findings = claims.study(runs)
    probe = rows_of(findings["leads"], "linear_probe")["linear_probe"]
    assert (probe["events"], probe["without_room"], probe["first"]) == (6, 2, 6)
    llc = rows_of(findings["leads"], "llc")["llc"]
    assert (llc["events"], llc["without_room"]) == (8, 0)


def test_emergence_between_two_snapshots_of_a_grid_is_put_at_the_later_one():
    levels = ("add-1", "sham-add-1")
    run = made_up_run(levels=levels, measures=("llc",))
    run.accuracy[0] = run.steps >= 150
    events = event_table([run]).only()
    assert claims.on_grids(events, "llc", claims.grids_of(events, "llc")).emergence == [[160]]
    run = made_up_run(levels=levels, measures=("llc",))
    run.curves["llc"][0, run.steps > 100] = math.nan          # it was not taken any more
    run.curves["llc"][1, run.steps > 100] = math.nan
    events = event_table([run]).only()
    assert np.isinf(claims.on_grids(events, "llc", claims.grids_of(events, "llc")).emergence)


def test_every_table_of_leads_has_its_reference_rows():
    levels = (*FOUR, "sham-add-1")
    runs = [made_up_run(seed, levels=levels, measures=MEASURES) for seed in range(2)]
    events = event_table(runs).only()
    leads = claims.lead_rows(events, exchanges(events.tasks))
    for measure in ("rankme", *MEASURES):
        names = list(rows_of(leads, measure))
        assert names == list(dict.fromkeys([measure, "rankme", "accuracy", "log_prob", "step"]))
    found = {row["measure"]: (row["first"], row["same"], row["events"]) for row in leads
             if row["quantity"] == row["measure"]}
    assert found == {"rankme": (8, 0, 8), "llc": (0, 8, 8), "hessian_top": (0, 0, 8),
                     "gradient_rank": (8, 0, 8), "linear_probe": (8, 0, 8)}
    assert rows_of(leads, "llc")["rankme"]["first"] == 8
    assert rows_of(leads, "rankme")["rankme"]["lead"] == 60
    step = rows_of(leads, "rankme")["step"]
    assert step["rate"] == step["null"] and step["p"] == 1
    assert not any(row["leads"] for row in leads if "leads" in row)         # two tasks: p >= .5


def test_rankme_of_the_centred_states_is_dated_by_the_same_rule_and_stands_beside():
    """Where it is a copy it leads as often, where it is flat never; not measured: no row."""
    levels = (*FOUR, "sham-add-1")
    runs = [made_up_run(seed, levels=levels) for seed in range(2)]
    (names,) = {tuple(run.layer_names["rankme.first"]) for run in runs}
    found = {}
    for kind, factor in (("none", None), ("copy", 1), ("flat", 0)):
        for run in runs if factor is not None else ():
            for name in names:
                curve = run.curves[f"rankme.first.{name}".rstrip(".")]
                run.curves[f"rankme_centred.{name}".rstrip(".")] = 1 + factor * (curve - 1)
        again = [dataclasses.replace(run) for run in runs]      # layers are found once
        events, universe = event_table(again).only(), claims.multiverse(again, FEW)
        found[kind] = rows_of(claims.lead_rows(events, exchanges(events.tasks)), "rankme")
        excess, p = claims.mean_excess_row(events, universe, exchanges(events.tasks))["centred"]
        first = [one.position == "first" for one in FEW]
        raw = claims.mean_excess(universe._replace(
            first=universe.first[first], counted=universe.counted[first]), exchanges(events.tasks))
        assert excess == pytest.approx({"none": math.nan, "copy": raw[0], "flat": 0}[kind],
                                       nan_ok=True)
        assert p == {"none": None, "copy": emergence.p_value(raw), "flat": 1}[kind]
    assert "centred_states" not in found["none"]
    assert found["copy"]["centred_states"]["rate"] == found["copy"]["rankme"]["rate"] == 1
    assert found["flat"]["centred_states"]["rate"] == 0


@pytest.mark.parametrize("kind", ["rankme", "rankme.answer.block1", "rankme.first.block1"])
def test_a_table_without_centred_states_has_no_floors_of_them(kind):
    rows = [(size, level, step, quantity, value)
            for size, parameters in (("s", 1e6), ("b", 4e6)) for level in ("add-1", "copy-1")
            for step in range(0, 200, 10) for quantity, value in (
                ("accuracy", float(step > 100)), ("parameters", parameters), ("width", 64),
                (kind, 1 + abs(step - 50) / 50))]
    events = event_table(from_table(rows)).only()
    scales = claims.scales(events)
    assert {row["kind"] for row in scales["floors"]} == {"raw", "share"}
    assert [run.config["size"] for run in events.runs] == ["1M", "4M"], "named by its parameters"
    assert [*scales["floors"][0]["floors"]] == ["1M", "4M"]
    alone = claims.scales(event_table(from_table([row for row in rows if row[1] == "add-1"])))
    assert {row["task"] for row in alone["floors"]} == {"add"}, "of one task there is no mean"


def lead_sweep(rng, shape=None, sharp=False, runs=4):
    """8 tasks x 3 levels and 2 shams.  Behaviour rises at emergence, and sharp behaviour jumps
    there; RankMe rises at half of that step, give or take 10%.  shape: of a quantity "mine", which
    is the same for all levels."""
    steps = np.unique(np.round(8 * 1.15 ** np.arange(40))).astype(int)      # up to 1,860
    task, rows = 1.4 * rng.normal(0, 0.5, 8), []
    for r in range(runs):
        for k, level in enumerate([*LEVELS, "sham-add-1", "sham-copy-1"]):
            sham, j = level.startswith("sham"), min(k // 3, 7)
            at = 200 * 2.0 ** (task[j] + 0.3 * (k % 3) + rng.normal(0, 0.15))
            rises = 0.5 * at * 1.1 ** rng.normal()
            way = 1 / (1 + np.exp(-(200 if sharp else 5) * np.log(steps / at).clip(-3, 3)))
            way = 0 * way if sham else way
            columns = {"accuracy": way, "rankme.first.0": 2.0 + 5 * (steps >= rises) * (not sham)}
            columns["token_accuracy"] = way
            if shape is not None:
                columns["mine"] = shape(steps) + 0.02 * rng.normal(0, 1, len(steps))
            rows += [(f"run{r}", level, int(step), name, float(x))
                     for name, column in columns.items() for step, x in zip(steps, column)]
    return from_table(rows)


def test_geometry_that_leads_by_more_than_behaviour_does_is_said_to_lead():
    """Where behaviour jumps, its tenth of the way is no earlier than its emergence.  Where it
    creeps up, its tenth is as early as geometry: that is above chance, and does not lead."""
    found = {True: [], False: []}
    for seed, sharp in itertools.product(range(10), found):
        events = event_table(lead_sweep(np.random.default_rng(seed), sharp=sharp)).only()
        row = rows_of(claims.lead_rows(events, exchanges(range(8))), "rankme")["rankme"]
        assert set(row["against"]) == {"accuracy", "token_accuracy"}
        found[sharp].append((row["p"] < 0.05, row["leads"]))
    print(found)
    assert sum(leads for _, leads in found[True]) >= 6
    assert sum(above for above, _ in found[False]) >= 6
    assert sum(leads for _, leads in found[False]) <= 1


@pytest.mark.parametrize("shape", [
    lambda steps: np.log(steps), lambda steps: steps / 1000, lambda steps: (steps / 1000) ** 2,
    lambda steps: 0 * steps])
def test_no_shape_of_a_curve_leads_by_itself(shape):
    """A ramp in log step, in step, squared, and noise: the same for all levels and shams."""
    led = significant = 0
    for seed in range(12):
        events = event_table(lead_sweep(np.random.default_rng(seed), shape, runs=2)).only()
        row = rows_of(claims.lead_rows(events, exchanges(range(8))), "mine").get("mine")
        led += bool(row and row["leads"])
        significant += bool(row and row["p"] < 0.05)
    assert led == 0 and significant <= 2, f"{led} of 12 lead, {significant} are above chance"


# ------------------------------------------------------------------------------------------------
# Verdicts

@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_a_claim_holds_between_its_bounds_and_never_for_nan():
    values = np.array([[0.5], [0.75], [1.0], [1.3], [math.nan]])

    def held(**bounds):
        return Claim("", "", "", "", "", None, **bounds).holds(values)[:, 0].tolist()
    assert held(above=0.75) == [False, True, True, True, False]
    assert held(below=0.75) == [True, True, False, False, False]
    assert held(above=0.8, below=1.25) == [False, False, True, False, False]


def test_above_its_null_is_a_p_below_one_in_twenty():
    claim = Claim("", "", "", "", "", None, above_null=True)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 30, (40, 101)).astype(float)
    slow = [[(row >= x - 1e-9).mean() < 0.05 for x in row] for row in values]
    assert claim.holds(values).tolist() == slow
    assert not claim.holds(np.ones((1, 40))).any()


def a_row(value=0.8, low=0.7, high=0.9, over="tasks", null=0.5, p=0.01, least=0.001, runs=5,
          p_holm=None, against=()):
    return {"value": value, "low": low, "high": high, "over": over, "null": null, "p": p,
            "p_holm": p if p_holm is None else p_holm, "least": least, "runs": runs,
            "against": dict(against)}


CANNOT = "cannot tell: the interval over tasks is not within "


@pytest.mark.parametrize("key, changes, verdict", [
    ("C1", dict(value=0.95), "holds"),
    ("C1", dict(value=0.5), "does not hold"),
    ("C1", dict(value=0.95, runs=1), "cannot tell: one run"),
    ("C2", dict(value=math.nan), "cannot tell: needs two sizes"),
    ("C2", dict(value=1.0, low=0.9, high=1.1), "holds"),
    ("C2", dict(value=1.0, low=0.7, high=1.1), CANNOT + "0.80 to 1.25"),
    ("C2", dict(value=1.6, low=1.4, high=1.9), "does not hold"),
    ("C3 depth", dict(), "holds: above chance"),
    ("C3 depth", dict(least=1 / 8), "cannot tell: the null cannot reach .05"),
    ("C4", dict(), "holds: above chance"),
    ("C4", dict(p=0.2), "not shown: chance gives as much"),
    ("C4", dict(p_holm=0.06), "not shown: chance gives as much"),
    ("C4", dict(runs=1), "cannot tell: one run"),
    ("C4", dict(against={"accuracy": 0.9, "log_prob": 0.01}),
     "above chance, but not shown to beat accuracy at a tenth of the way"),
    ("C4 risk set", dict(), "above chance; the same test as C4, counted once"),
    ("C5", dict(value=0.5, low=0.45, high=0.55), "holds: what chance gives"),
    ("C5", dict(value=0.5, low=0.3, high=0.55), CANNOT + "40% to 60%"),
    ("C5", dict(value=0.8, low=0.7, high=0.9), "does not hold: more than chance gives"),
    ("C5", dict(value=0.2, low=0.1, high=0.3), "does not hold: less than chance gives"),
    ("C5", dict(value=math.nan), "cannot tell: needs shams, and --measures llc"),
    ("C7 fine", dict(value=0.55, low=0.5, high=0.59, p=0.04), "holds: what chance gives"),
    ("C7 fine", dict(value=0.55, low=math.nan, high=math.nan), "cannot tell: no interval"),
    ("C10", dict(value=0.5, p=1.0), "not shown: chance gives as much")])
def test_verdicts_follow_from_value_interval_and_p(key, changes, verdict):
    events = made_up_events([[1] * 24], [[1] * 24])
    assert judge(CLAIM[key], events, a_row(**changes)) == verdict


def test_what_cannot_be_told_is_not_judged():
    one_task = made_up_events([[1, 1]], [[1, 1]], ("add-1", "add-2"))
    for claim in CLAIMS:
        assert judge(claim, one_task, a_row()) == "cannot tell: one task"
    events = made_up_events([[1] * 24], [[1] * 24])
    sentence = "cannot tell: information 4.0, below 5"
    assert judge(CLAIM["C4 risk set"], events, a_row(), 4.0) == sentence
    unmeasured = with_arrays(events, floor=np.full((1, 24), math.nan))
    assert judge(CLAIM["C4"], unmeasured, a_row()) == "cannot tell: needs RankMe"


def test_of_one_run_or_one_task_nothing_holds():
    for runs in ([made_up_run(levels=(*LEVELS, "sham-add-1"), steps=500, measures=MEASURES)],
                 [made_up_run(seed, measures=MEASURES) for seed in range(5)]):
        verdicts = [row["verdict"] for row in claims.study(runs)["claims"]]
        assert all(verdict.startswith("cannot tell") for verdict in verdicts), verdicts


def test_p_values_are_corrected_for_the_number_of_tests_and_c4_counts_once():
    runs = [made_up_run(seed, levels=LEVELS, steps=500) for seed in range(2)]
    rows = claim_rows(claims.study(runs))
    counted = [key for key in rows if CLAIM[key].above_null and key != "C4 risk set"]
    assert [rows[key]["p_holm"] for key in counted] == emergence.holm(
        [rows[key]["p"] for key in counted])
    assert rows["C4 risk set"]["p_holm"] == rows["C4 risk set"]["p"]
    assert rows["C7 fine"]["p_holm"] is None


# ------------------------------------------------------------------------------------------------
# What a table may lack

@pytest.mark.filterwarnings("error")
def test_a_table_of_accuracy_alone_can_be_studied():
    rows = [("mine", level, step, "accuracy", min(1, step / 50))
            for level in FOUR for step in range(100)]
    runs = from_table(rows)
    findings = claims.study(runs, universe=claims.multiverse(runs, FEW))
    for key, row in claim_rows(findings).items():
        needs = "shams, and --measures" if CLAIM[key].reads == claims.RARELY else "RankMe"
        assert row["verdict"].startswith(f"cannot tell: needs {needs}")
    assert findings["leads"] == findings["forecasts"] == []


def drop(runs, what):
    """Runs as some researcher's, who lacks something."""
    if what == "runs of different grids":
        return [*runs[:2], made_up_run(2, levels=(*FOUR, "sham-add-1"), steps=300)]
    if what == "NaN rows":
        for run in runs:
            for values in (*run.curves.values(), *run.layered.values()):
                values[..., 3] = math.nan
    if what == "a run that never emerged":
        runs[0].accuracy[:] = 0.1
    if what == "a level that was not measured":
        for values in (*runs[0].curves.values(), *runs[0].layered.values()):
            values[0] = math.nan
    return runs


@pytest.mark.parametrize("what", ["runs of different grids", "NaN rows", "a run that never emerged",
                                  "a level that was not measured"])
def test_what_is_odd_about_a_sweep_leaves_the_rest_computed(what):
    runs = [made_up_run(seed, levels=(*FOUR, "sham-add-1"), measures=MEASURES) for seed in range(3)]
    runs = drop(runs, what)
    universe = claims.multiverse(runs, FEW)
    rows = claim_rows(claims.study(runs, universe=universe))
    assert 0 <= rows["C4"]["value"] <= 1 and rows["C4"]["p"] is not None
    assert all(row["verdict"] for row in rows.values())


def test_without_shams_measures_move_by_a_fifth_of_their_range_and_the_floor_gives_onsets():
    runs = [made_up_run(seed, levels=FOUR, measures=MEASURES) for seed in range(2)]
    findings = claims.study(runs)
    rows = claim_rows(findings)
    assert rows["C5"]["verdict"] == "cannot tell: needs shams, and --measures llc"
    assert findings["lead_check"]["onset_rule"] == "floor" and rows["C4"]["value"] == 1
    assert {row["measure"] for row in findings["leads"]} == {"rankme", *MEASURES}
    dates = {(row["level"], row["quantity"]): row["step"]
             for row in claims.event_rows(event_table(runs)) if row["run"] == runs[0].name}
    for name, after in (("hessian_top", 20), ("gradient_rank", -40), ("linear_probe", -60)):
        assert (dates["add-1", name], dates["add-2", name]) == (160 + after, 260 + after), name


# ------------------------------------------------------------------------------------------------
# The multiverse

def test_there_are_720_specifications_and_the_default_is_one_of_them():
    everything = specifications()
    assert len(set(everything)) == len(everything) == 720
    assert len(everything) == math.prod(map(len, ALTERNATIVES.values()))
    assert Specification() in everything
    assert set(ALTERNATIVES) < set(vars(Specification()))
    assert set(ALTERNATIVES["onset"]) == set(emergence.ONSETS)
    two = [Specification(rise=0.4), Specification(rise=0.6)]
    assert specifications({"rise": (0.4, 0.6)}) == two


def test_the_keywords_of_event_table_are_those_of_a_specification():
    assert event_table([made_up_run()]).dated_by == vars(Specification())


def test_the_multiverse_is_each_claim_under_each_specification():
    runs = [made_up_run(seed, levels=(*FOUR, "sham-add-1")) for seed in range(2)]
    everything = specifications()[::24]
    universe = claims.multiverse(runs, everything)
    assert universe.specifications == everything
    assert set(CLAIM) - set(universe.values) == {"C5", "C5 narrow", "C6", "C10",
                                                  "C4 all choices"}
    for k in (0, 17, 29):                                     # the plain way, one at a time
        events = event_table(runs, **vars(everything[k])).only()
        first, counted = emergence.precursor_counts(events)
        assert np.array_equal(universe.first[k], first)
        assert np.array_equal(universe.counted[k], counted)
        for key, values in universe.values.items():
            plain = observed(CLAIM[key].statistic, events, CLAIM[key].null)
            expected = plain if key != "C4 risk set" else values[k, 0]
            assert np.array_equal(values[k, 0], expected, equal_nan=True), key


def test_robustness_says_which_choice_decides():
    everything = specifications()
    planted = np.zeros((720, 101))
    planted[:, 0] = [one.warmup for one in everything]
    universe = claims.Multiverse(everything, {"C4": planted, "C1": planted + 0.0},
                                 *[None] * 3)
    found = robustness(CLAIM["C4"], universe)
    assert (found["share"], found["decides"]) == (0.5, "warmup")
    assert found["p_multiverse"] == pytest.approx(1 / 101)
    assert found["options"]["warmup"] == {"True": 1, "False": 0}
    assert found["options"]["rise"] == {"0.1": 0.5, "0.2": 0.5, "0.5": 0.5}
    assert "smoothing" not in found["options"]                # which has no alternatives
    assert robustness(CLAIM["C1"], universe)["p_multiverse"] is None
    never = claims.Multiverse(everything, {"C4": np.full((720, 11), math.nan)}, *[None] * 3)
    assert robustness(CLAIM["C4"], never) == {}


def test_more_than_nine_tasks_are_exchanged_at_random_and_the_findings_say_so():
    rng = np.random.default_rng(0)
    levels = [f"task{chr(97 + k)}-1" for k in range(12)]
    rows = [(run, level, step, name, x) for run in ("a", "b") for k, level in enumerate(levels)
            for step in range(0, 400, 10)
            for name, x in (("accuracy", float(step >= 100 + 15 * k)),
                            ("rankme.first.0", 2.0 + 3 * (step >= 50 + 14 * k) + rng.random() / 9))]
    findings = claims.study(from_table(rows))
    assert findings["exchanges"] == "10,000 random"
    rows = claim_rows(findings)
    assert rows["C7"]["value"] > 0.9 and rows["C7"]["p"] == 1e-4
    assert rows["C7"]["verdict"] == "holds: above chance"
    few = claims.study([made_up_run(seed, levels=FOUR) for seed in range(2)])
    assert few["exchanges"] == "all 2"


def test_the_mean_excess_has_each_run_and_each_task_left_out():
    levels = [f"{task}-{k}" for task in ("add", "copy", "sort") for k in (1, 2)]
    runs = [made_up_run(seed, levels=(*levels, "sham-add-1")) for seed in range(2)]
    for run in runs:                                          # sort: late onset, late emergence
        late = run.steps >= 300
        for values in run.layered.values():
            values[4:6] = np.where(late, 9.0, 2.0)
        run.accuracy[4:6] = run.steps >= 310
    universe = claims.multiverse(runs, FEW)
    row = claim_rows(claims.study(runs, universe=universe))["C4 all choices"]
    assert set(row["without"]) == {"nano-s0", "nano-s1", "add", "copy", "sort"}
    table = emergence.exchanged(np.mean([
        claims.rate_table(first.sum(0), counted.sum(0))
        for first, counted in zip(universe.first, universe.counted)], axis=0), exchanges("abc"))
    assert row["value"] == pytest.approx(table[0] - table.mean()) and row["value"] > 0.1
    assert row["without"]["sort"] == [pytest.approx(0), 1]
    assert row["without"]["nano-s0"][0] == pytest.approx(row["value"])
    assert row["verdict"] == "cannot tell: the null cannot reach .05"       # 3 tasks: 1 / 6


def test_a_rate_that_rounding_has_lifted_above_one_has_its_interval():
    events = event_table([made_up_run(seed, levels=FOUR) for seed in range(2)]).only()
    for rate in (1 + 2e-15, 1.0, 0.0, -1e-16):
        low, high, _ = claims.interval(lambda events, rate=rate: rate, events)
        assert 0 <= low < high <= 1


def test_a_study_with_a_universe_says_what_its_verdicts_depend_on():
    runs = [made_up_run(seed, levels=FOUR) for seed in range(2)]
    for run in runs:
        run.layered["rankme.first"][:] = 12.0                 # no collapse but at the last tokens
    universe = claims.multiverse(runs, FEW)
    findings = claims.study(runs, Specification(position="last"), universe)
    row = claim_rows(findings)["C1"]
    assert (row["value"], row["share"], row["decides"]) == (1, pytest.approx(1 / 2), "position")
    assert row["verdict"] == "holds; depends on position"
    assert findings["specifications"] == len(FEW) == 4
    assert "share" not in claim_rows(claims.study(runs))["C1"]


# ------------------------------------------------------------------------------------------------
# The forecast in a study

def test_a_study_forecasts_with_what_was_measured_and_asks_for_p_only_if_told():
    levels = (*LEVELS, "sham-add-1")
    runs = [made_up_run(seed, levels=levels, steps=500, measures=("llc",)) for seed in range(3)]
    rows = claims.study(runs)["forecasts"]
    assert [(row["features"], row["over"]) for row in rows] == [
        (("rankme.answer slope",), "task"), (("rankme.answer slope",), "run"),
        (("llc", "llc slope"), "task"), (("llc", "llc slope"), "run")]
    assert all(row["p"] is None for row in rows)
    asked = claims.forecasts(runs, event_table(runs).only(), null=5)
    assert [row["p"] is None for row in asked] == [False, True, False, True]
    assert not any(row["adds"] for row in asked)              # of 5 exchanges p is 1/6 at least


def test_medians_over_seeds_leave_out_what_never_came():
    assert claims.seed_range([None, 3, 1, 2]) == {"median": 2, "low": 1, "high": 3}
    assert claims.seed_range([math.nan, 1.5]) == {"median": 1.5, "low": 1.5, "high": 1.5}
    assert claims.seed_range([None, math.nan, math.inf]) is None


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(claims).failed == 0
