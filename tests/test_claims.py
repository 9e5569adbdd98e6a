"""Statistics of single claims by counting; tests and verdicts on made-up sweeps in which the truth
is planted; the multiverse against the plain way."""
import dataclasses
import doctest
import math

import numpy as np
import pytest

import claims
import emergence
from claims import ALTERNATIVES, CLAIMS, Claim, Specification, judge, robustness, specifications
from emergence import Permutations, event_table, risk_set_test, shuffles
from test_emergence import LEVELS, made_up_events, made_up_run

CLAIM = {claim.key: claim for claim in CLAIMS}
FOUR = ("add-1", "add-2", "copy-1", "copy-2")
FEW = specifications({axis: options if axis in ("behaviour", "position") else options[:1]
                      for axis, options in ALTERNATIVES.items()})


def as_they_are(events):
    """The Permutations that hold nothing but the observed data."""
    R, L = events.onset.shape
    return Permutations(np.arange(L)[None], np.arange(R)[None], np.zeros((1, R), bool))


def with_arrays(events, **arrays):
    return dataclasses.replace(events, **{name: np.array(x, float) for name, x in arrays.items()})


def claim_rows(findings):
    return {row["claim"]: row for row in findings["claims"]}


# ------------------------------------------------------------------------------------------------
# Made-up sweeps: 8 tasks x 3 levels, later levels later.  What tasks do is the same in all runs,
# but for some noise.

LEVEL = np.array([int(name[-1]) for name in LEVELS])


def emergence_steps(rng, runs):
    own = rng.normal(0, 0.7, len(LEVELS))
    steps = np.round(150 * 2.0 ** (LEVEL + own + rng.normal(0, 0.3, (runs, len(LEVELS)))))
    steps[steps > 2000] = math.inf
    return steps


def own_onsets(rng, steps, level=LEVEL):
    """Nothing leads: an onset has to do with the level and with the task, but not with when that
    task emerges."""
    own, noise = rng.normal(0, 0.7, len(LEVELS)), rng.normal(0, 0.3, steps.shape)
    return np.round(60 * 2.0 ** (level + own + noise))


def common_onsets(rng, steps):
    return np.round(30 + rng.normal(0, 5, steps.shape))


def leading_onsets(rng, steps):
    return np.where(np.isfinite(steps), steps - 200, np.inf)


def rejections(onsets, statistic, runs, repetitions=400):
    """Share of made-up sweeps in which a test at 5% finds something."""
    rng, found = np.random.default_rng(0), 0
    for seed in range(repetitions):
        steps = emergence_steps(rng, runs)
        events = made_up_events(onsets(rng, steps), steps)
        values = statistic(events, shuffles(LEVELS, runs, 200, seed=seed))
        found += emergence.p_value(values) < 0.05
    return found / repetitions


@pytest.mark.parametrize("statistic", [
    claims.risk_set_excess, emergence.precursor_rate, claims.order_correlation])
@pytest.mark.parametrize("runs", [1, 5])
def test_tests_have_their_size_and_power_on_planted_sweeps(statistic, runs):
    """Where nothing leads, at most 7% of the tests at 5% say that something does (400 sweeps: two
    standard errors are 2%).  Where all lead by 200 steps, at least 80% say so."""
    assert rejections(own_onsets, statistic, runs) <= 0.07
    assert rejections(common_onsets, statistic, runs) <= 0.07
    assert rejections(leading_onsets, statistic, runs, 100) >= 0.8


def test_seeds_are_not_independent_and_only_the_permutations_know():
    """The formula's z adds up over five seeds in which each task does the same again, and raises
    false alarms; hence `risk_set_excess`."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(300):
        steps = emergence_steps(rng, 5)
        onset = own_onsets(rng, steps, level=3)
        U, V = np.sum([emergence.risk_set_sums(*dates) for dates in zip(onset, steps)], axis=0)
        alarms += U / math.sqrt(V) > 1.645
    assert alarms / 300 > 0.1


def test_the_permutation_p_value_is_that_of_all_permutations():
    """One level: 4 tasks, 24 permutations, all of them counted by scipy."""
    stats = pytest.importorskip("scipy.stats")
    onset, emerged = np.array([10., 30, 20, 50]), np.array([100., 200, 300, 400])

    def rho(x):
        return stats.spearmanr(x, emerged).statistic
    exact = stats.permutation_test((claims.ranks(onset),), rho, permutation_type="pairings",
                                   alternative="greater")
    levels = ("copy-1", "add-1", "sort-1", "parity-1")
    values = claims.order_correlation(made_up_events(onset[None], emerged[None], levels),
                                      shuffles(levels, 1, 20_000))
    assert emergence.p_value(values) == pytest.approx(exact.pvalue, abs=0.01)


# ------------------------------------------------------------------------------------------------
# Statistics of single claims

def test_collapse_is_the_loss_of_half_of_what_lies_above_one():
    events = made_up_events([[1, 1, 1]], [[1, 1, 1]], ("add-1", "copy-1", "sort-1"))
    events = with_arrays(events, start=[[9, 9, 9]], floor=[[5, 5.1, 2]])
    assert claims.collapsed(events).tolist() == [[1, 0, 1]]
    assert claims.collapse_rate(events, as_they_are(events)) == pytest.approx([2 / 3])
    unmeasured = with_arrays(events, floor=[[math.nan] * 3])
    assert np.isnan(claims.collapse_rate(unmeasured, as_they_are(events))).all()


def test_task_share_is_all_or_nothing_at_its_ends():
    levels = tuple(f"{task}-{k}" for task in ("add", "copy") for k in (1, 2))
    ones = made_up_events([[1] * 4], [[1] * 4], levels)
    by_task = with_arrays(ones, floor=[[2, 4, 3, 6]])         # copy: 1.5 times add, at both levels
    crossed = with_arrays(ones, floor=[[2, 6, 3, 4]])         # at level 2 the other way round
    s = as_they_are(ones)
    assert claims.task_share(by_task, s) == pytest.approx([1])
    assert claims.task_share(crossed, s) == pytest.approx([0], abs=1e-12)
    alone = made_up_events([[1, 1]], [[1, 1]], ("add-1", "add-2"))
    assert np.isnan(claims.task_share(alone, as_they_are(alone))).all()


def test_top_down_is_counted_by_task_and_size_and_reversed_by_run():
    levels, parameters = ("add-1", "add-2", "copy-1"), [4e5, 4e5, 1.3e6]
    events = made_up_events([[1] * 3] * 3, [[1] * 3] * 3, levels, parameters)
    down = [[1, 0.5, 0], [1, 0.5, 0.5], [0, 0.5, 1]]
    events = with_arrays(events, down_floor=down, down_time=np.zeros((3, 3)))
    reverse = np.array([[False] * 3, [True] * 3])
    s = Permutations(np.tile(np.arange(3), (2, 1)), np.tile(np.arange(3), (2, 1)), reverse)
    # add: .75 at the small size, .25 at the large; copy: .25 and 1
    assert claims.top_down_cells("down_floor", events, s).tolist() == [0.5, 0.5]
    assert claims.top_down_cells("down_time", events, s).tolist() == [0, 1]


def test_a_floor_twice_as_high_is_a_ratio_of_two():
    small = [made_up_run(seed, levels=FOUR) for seed in range(3)]
    large = [made_up_run(seed, "micro", 1.3e6, levels=FOUR) for seed in range(3)]
    for run in large:
        for values in run.rankme.values():
            values *= 2
    events = event_table(small + large)
    assert claims.floor_ratio(events, shuffles(FOUR, 6, 500))[0] == pytest.approx(2)
    assert claims.floor_ratio_interval(events)[0] == pytest.approx(2)
    variation = claims.floors_across_sizes(events)
    assert variation["over_seeds"] == pytest.approx(0)
    assert variation["over_sizes"] == pytest.approx(1 / 3)    # 1 and 2: 0.5 / 1.5
    assert variation["over_tasks"] == pytest.approx(0)        # add and copy have the same floors
    assert variation["ratio_of_shares"] == pytest.approx(2)
    row = claim_rows(claims.study(small + large))["C2"]
    assert row["verdict"] == "does not hold"
    # 2 of the 20 ways to choose 3 of 6 runs are as far out
    assert row["p"] == pytest.approx(2 / 20, abs=0.03)


def test_swap_rate_by_counting():
    """Two sizes, three tasks.  a-b are reversed between the sizes, and so are their onsets; a-c are
    reversed, and their onsets are not."""
    levels = ("copy-1", "add-1", "sort-1")
    events = made_up_events([[10, 20, 30], [25, 20, 30]], [[100, 200, 300], [400, 300, 350]],
                            levels, [4e5, 1.3e6])
    assert claims.swap_rate(events, shuffles(levels, 2, 2000))[0] == 0.5


def test_an_order_drawn_by_lot_gets_a_quarter_of_the_swaps():
    rng, rates = np.random.default_rng(0), []
    for _ in range(300):
        steps = emergence_steps(rng, 2)
        events = made_up_events(rng.random(steps.shape), steps, parameters=[4e5, 1.3e6])
        rates.append(claims.swap_rate(events, as_they_are(events))[0])
    assert np.mean(rates) == pytest.approx(0.25, abs=0.02)


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
    drawn = shuffles(LEVELS, 4, 5)
    slow = []
    for order in drawn.tasks:
        alike = []
        for o, e, own in zip(onset, steps, claims.difficulty(events)):
            for i in range(24):
                for j in range(i):
                    pair = o[order[[i, j]]].tolist(), e[[i, j]].tolist()
                    if own[i] == own[j] and np.isfinite(pair).any(1).all():
                        alike.append(emergence.concordance(*pair))
        slow.append(np.mean(alike))
    assert claims.within_class(events, drawn) == pytest.approx(slow)
    one = made_up_events(onset[:1], steps[:1])
    assert np.isnan(claims.within_class(one, drawn)).all()


def test_ranks_and_spearman_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(3).integers(0, 6, (2, 4, 15)).astype(float)
    rhos = claims.spearman(claims.ranks(a), claims.ranks(b))
    for x, y, rho in zip(a, b, rhos):
        assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert claims.ranks(a).tolist() == stats.rankdata(a, axis=1).tolist()


def test_order_correlation_is_one_if_onsets_have_the_order_of_emergence():
    steps = emergence_steps(np.random.default_rng(3), 3)
    events = made_up_events(steps / 2, steps)
    assert claims.order_correlation(events, as_they_are(events)) == pytest.approx([1])
    assert claims.order_interval(events) == pytest.approx((1, 1, 1))
    common = made_up_events(np.ones(steps.shape), steps)
    assert np.isnan(claims.order_correlation(common, as_they_are(common))).all()
    assert math.isnan(claims.order_interval(made_up_events(steps[:1], steps[:1]))[1])


def test_risk_set_excess_is_the_sum_over_runs_against_its_own_permutations():
    rng = np.random.default_rng(5)
    onset, emerged = rng.integers(0, 20, (2, 3, 24)).astype(float)
    emerged[0, 3] = math.inf
    events = made_up_events(onset, emerged)
    drawn = shuffles(LEVELS, 3, 40)
    slow = [sum(emergence.risk_set_sums(o[order], e)[0] for o, e in zip(onset, emerged))
            for order in drawn.tasks]
    slow = (np.array(slow) - np.mean(slow)) / np.std(slow)
    assert claims.risk_set_excess(events, drawn) == pytest.approx(slow)


def test_lead_check_counts_runs_apart_and_shams_for_themselves():
    one = claims.lead_check(event_table([made_up_run()]))
    three = claims.lead_check(event_table([made_up_run(seed) for seed in range(3)]))
    z, information = risk_set_test([100, 200], [160, 260])
    assert (one["z"], one["information"]) == pytest.approx((z, information))
    assert three["information"] == pytest.approx(3 * information) and three["shams"] == 3
    assert (one["shams"], one["sham_onsets"], one["sham_emergences"]) == (1, 0, 0)
    late = claims.lead_check(event_table([made_up_run(warmup=150)]))
    assert (late["onsets_in_warmup"], late["median_onset"], late["warmup"]) == (0.5, 150, 150)


def test_class_rates_stand_beside_the_null_of_their_class():
    steps = emergence_steps(np.random.default_rng(0), 3)
    events = made_up_events(leading_onsets(None, steps), steps)
    drawn = shuffles(LEVELS, 3, 100)
    rows = claims.class_rates(events, drawn, claims.difficulty(events))
    assert [row["class"] for row in rows] == ["easy", "middle", "hard"]
    assert sum(row["events"] for row in rows) == np.isfinite(steps).sum()
    assert all(row["rate"] == 1 and row["null"] < 1 for row in rows)


# ------------------------------------------------------------------------------------------------
# Measures that are taken at a few snapshots only

def test_rare_measures_are_dated_on_their_own_grid():
    names = ("llc", "hessian_top", "gradient_rank", "linear_probe")
    levels = ("add-1", "add-2")
    runs = [made_up_run(levels=levels, measures=names), made_up_run(1, levels=levels)]
    events = event_table(runs)
    after = {"llc": 0, "hessian_top": 20, "gradient_rank": -40, "linear_probe": -60}
    for name in names:
        own, rankme, grids = claims.rare_dates(events, name)
        assert own.emergence.tolist() == [[160, 260], [math.inf] * 2]           # multiples of 20
        assert (own.onset[0] - own.emergence[0]).tolist() == [after[name]] * 2
        assert rankme.onset[0].tolist() == [100, 200]
        assert len(grids[0]) == 21 and grids[1] is None


def test_emergence_between_two_snapshots_of_a_grid_is_put_at_the_later_one():
    run = made_up_run(levels=("add-1",), measures=("llc",))
    run.accuracy[0] = run.steps >= 150
    own, _, _ = claims.rare_dates(event_table([run]), "llc")
    assert own.emergence.tolist() == [[160]]
    run = made_up_run(levels=("add-1",), measures=("llc",))
    run.curves["llc"][0, run.steps > 100] = math.nan          # it was not taken any more
    assert claims.rare_dates(event_table([run]), "llc")[0].emergence.tolist() == [[math.inf]]


def test_a_lead_is_an_interval_between_snapshots():
    assert claims.lead_interval([0, 10, 20, 30, 40], 20, 40) == (10, 30)
    assert claims.lead_interval([0, 10, 20], 20, 20) == (-10, 10)
    assert claims.lead_interval([0, 10, 20], 0, 20) == (10, 20)      # nothing lies before the first


def test_rare_measures_are_compared_with_rankme_on_their_own_grid():
    """The LLC rises with emergence, the Hessian a snapshot later, the gradient rank two earlier;
    the probe knows the answer at 100 k."""
    names = ("gradient_rank", "hessian_top", "llc", "linear_probe")
    run = made_up_run(levels=FOUR, measures=names)
    rows = claims.compare_measures(event_table([run]), shuffles(FOUR, 1, 100))
    found = {row["measure"]: (row["first"], row["same"], row["later_or_never"], row["events"])
             for row in rows}
    assert found == {"llc": (0, 4, 0, 4), "hessian_top": (0, 0, 4, 4),
                     "gradient_rank": (4, 0, 0, 4), "linear_probe": (4, 0, 0, 4)}
    (llc,) = [row for row in rows if row["measure"] == "llc"]
    assert (llc["lead_low"], llc["lead_high"]) == (-20, 20)
    assert (llc["rankme_rate"], llc["snapshots"], llc["runs"]) == (1, 21, 1)
    verdicts = {key: row["verdict"] for key, row in claim_rows(claims.study([run])).items()}
    assert verdicts["C5"] == verdicts["C6"] == "holds"
    assert verdicts["C2"].startswith("cannot tell")


def test_aligned_curves_have_emergence_at_the_same_place():
    run = made_up_run(measures=("hessian_top",))
    x, curves = claims.aligned_curves(event_table([run]))
    assert x[::10] == pytest.approx([-2, -1.5, -1, -0.5, 0, 0.5, 1])
    assert set(curves) == {"accuracy", "rankme", "hessian_top"}
    assert all(scaled.shape == (2, 61) for scaled in curves.values())           # not the sham
    assert (curves["accuracy"][:, 40] == 1).all() and (curves["accuracy"][:, 30] == 0).all()
    assert np.isnan(curves["accuracy"][:, 0]).all()           # before the first snapshot
    assert (curves["hessian_top"][:, 40] == 0).all()          # it rises a snapshot later
    assert np.nanmax(curves["rankme"]) <= 1 and np.nanmin(curves["rankme"]) >= 0


def test_nothing_is_aligned_where_nothing_emerges():
    run = made_up_run()
    run.accuracy[:] = 0.1
    assert claims.aligned_curves(event_table([run]))[1] == {}


# ------------------------------------------------------------------------------------------------
# Verdicts

def test_a_claim_holds_between_its_bounds_and_never_for_nan():
    values = np.array([0.5, 0.75, 1.0, 1.3, math.nan])

    def held(**bounds):
        return Claim("", "", "", "", "", None, **bounds).holds(values).tolist()
    assert held(above=0.75) == [False, True, True, True, False]
    assert held(below=0.75) == [True, True, False, False, False]
    assert held(above=0.8, below=1.25) == [False, False, True, False, False]


@pytest.mark.parametrize("key, value, p, verdict", [
    ("C1", 0.95, None, "holds"),
    ("C1", 0.5, None, "does not hold"),
    ("C2", math.nan, None, "cannot tell: needs two sizes"),
    ("C2", 1.0, 0.9, "holds"),
    ("C3 depth", 1.0, 0.01, "as claimed; 1 of the 5 runs that it takes to tell it from chance"),
    ("C3 depth", 0.1, 0.01, "not as claimed; 1 of the 5 runs that it takes to tell it from chance"),
    ("C4", 0.8, 0.01, "holds, and beyond chance"),
    ("C4", 0.8, 0.2, "as claimed, but chance gives it too"),
    ("C4", 0.6, 0.01, "weaker than claimed, but beyond chance"),
    ("C4", 0.6, 0.2, "does not hold"),
    ("C4 risk set", 3.0, 0.01, "holds, and beyond chance"),
    ("C7 fine", 0.6, 0.2, "holds: no better than chance"),
    ("C7 fine", 0.6, 0.01, "does not hold: better than chance"),
    ("C5", math.nan, None, "cannot tell: needs --measures llc")])
def test_verdicts_follow_from_value_and_p(key, value, p, verdict):
    events = made_up_events([[1] * 24], [[1] * 24])
    assert judge(CLAIM[key], events, value, p, information=9.0) == verdict


def test_what_cannot_be_told_is_not_judged():
    one_task = made_up_events([[1, 1]], [[1, 1]], ("add-1", "add-2"))
    sentence = "cannot tell: a single task has no other to be exchanged with"
    assert judge(CLAIM["C4"], one_task, 1.0, 0.01, 9.0) == sentence
    events = made_up_events([[1] * 24], [[1] * 24])
    sentence = "cannot tell: information 4.0, below 5"
    assert judge(CLAIM["C4 risk set"], events, 3.0, 0.01, 4.0) == sentence
    unmeasured = with_arrays(events, floor=np.full((1, 24), math.nan))
    assert judge(CLAIM["C4"], unmeasured, 0.0, 1.0, 9.0) == "cannot tell: needs RankMe"


@pytest.mark.filterwarnings("error")
def test_a_table_of_accuracy_alone_can_be_studied():
    rows = [("mine", level, step, "accuracy", min(1, step / 50))
            for level in FOUR for step in range(100)]
    runs = emergence.from_table(rows)
    findings = claims.study(runs, universe=claims.multiverse(runs, FEW, 11), count=20)
    for key, row in claim_rows(findings).items():
        needs = "--measures" if CLAIM[key].reads == claims.RARELY else "RankMe"
        assert row["verdict"].startswith(f"cannot tell: needs {needs}")
    assert findings["measures"] == []


def test_p_values_are_corrected_for_the_number_of_claims():
    runs = [made_up_run(seed, levels=LEVELS, steps=500) for seed in range(2)]
    rows = claim_rows(claims.study(runs, count=100)).values()
    assert [row["p_holm"] for row in rows] == emergence.holm([row["p"] for row in rows])


# ------------------------------------------------------------------------------------------------
# The multiverse

def test_there_are_864_specifications_and_the_default_is_one_of_them():
    everything = specifications()
    assert len(set(everything)) == len(everything) == 864
    assert len(everything) == math.prod(map(len, ALTERNATIVES.values()))
    assert Specification() in everything
    assert tuple(ALTERNATIVES) == tuple(vars(Specification()))
    two = [Specification(rise=0.4), Specification(rise=0.6)]
    assert specifications({"rise": (0.4, 0.6)}) == two


def test_the_keywords_of_event_table_are_those_of_a_specification():
    assert event_table([made_up_run()]).dated_by == vars(Specification())


def test_the_multiverse_is_each_claim_under_each_specification():
    run = made_up_run(levels=(*FOUR, "sham-add-1"))
    everything = specifications()
    found, values = claims.multiverse([run], everything, 11)
    assert found == everything and {x.shape for x in values.values()} == {(864, 11)}
    assert set(CLAIM) - set(values) == {"C5", "C6", "C10"}    # taken too rarely
    s = shuffles(FOUR, 1, 11)
    for k in (0, 500, 863):                                   # the plain way, one at a time
        events = event_table([run], **vars(everything[k])).only()
        for key in values:
            plain = np.broadcast_to(CLAIM[key].statistic(events, s), 11)
            assert np.array_equal(values[key][k], plain, equal_nan=True)


def test_robustness_says_which_choice_decides():
    everything = specifications()
    planted = np.array([[float(c.warmup)] * 11 for c in everything])
    found = robustness(CLAIM["C4"], everything, planted)
    assert (found["share"], found["decides"], found["p_multiverse"]) == (0.5, "warmup", 1)
    assert found["options"]["warmup"] == {"True": 1, "False": 0}
    assert found["options"]["rise"] == {"0.1": 0.5, "0.2": 0.5, "0.5": 0.5}
    assert robustness(CLAIM["C1"], everything, planted)["p_multiverse"] is None
    assert robustness(CLAIM["C4"], everything, np.full((864, 11), math.nan)) == {}


def test_a_study_with_a_universe_says_what_its_verdicts_depend_on():
    runs = [made_up_run(levels=FOUR)]
    for position in ("first", "last"):
        runs[0].rankme[position][:] = 12.0                    # no collapse but at the answer tokens
    universe = claims.multiverse(runs, FEW, 11)
    findings = claims.study(runs, Specification(position="answer"), universe, count=50)
    row = claim_rows(findings)["C1"]
    assert (row["value"], row["share"], row["decides"]) == (1, pytest.approx(1 / 3), "position")
    assert row["verdict"] == "holds; depends on position"
    assert findings["specifications"] == len(FEW) == 6
    assert "share" not in claim_rows(claims.study(runs, count=50))["C1"]


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(claims).failed == 0
