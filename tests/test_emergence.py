"""Dates on curves that are drawn by hand; statistics against closed forms and slow exact methods;
the way from a table of measurements to events, on made-up runs whose events are planted."""
import doctest
import functools
import itertools
import json
import math
import random

import numpy as np
import pytest

import claims
import emergence
from emergence import (Collapse, EventTable, collapse, concordance, emergence_step, event_table,
                       exchanges, forecast, from_table, lead_time, rate_with_interval,
                       risk_set_test)

STEPS = list(range(0, 200, 10))


def curve(*pieces):
    """(value, how often) pairs -> a list."""
    return [v for value, n in pieces for v in [value] * n]


# ------------------------------------------------------------------------------------------------
# Dates on one curve

@pytest.mark.parametrize("accuracy, expected", [
    (curve((0, 10), (1, 10)), 100),                           # a step
    (curve((0, 10), (0.3, 10)), 100),                         # exactly the threshold counts
    (curve((0, 10), (0.29, 10)), None),
    (curve((0, 5), (1, 1), (0, 14)), None),                   # a spike
    (curve((0, 5), (1, 2), (0, 3), (1, 10)), 100),            # two are not enough, three are
    (curve((0, 12), (1, 3), (0, 5)), None),                   # up to 150: three are not enough now
    (curve((0, 12), (1, 4), (0, 4)), 120),                    # 120, 130, 140, 150 are
    (curve((0, 16), (1, 4)), None),                           # too late to have been seen to last
    (curve((0, 15), (1, 5)), 150),                            # just in time: up to 187.5
    (curve((1, 20)), 0),                                      # there from the start
    (curve((1, 8), (0, 12)), 0),
    (curve((0, 5), (1, 3), (0, 12)), 50),                     # learned and lost: it did emerge
    (curve((0, 10), (None, 1), (1, 9)), 110),                 # not measured is not "yes"
    (curve((0, 10), (1, 2), (math.nan, 1), (1, 7)), 130),
    ([], None)])
def test_emergence_lasts_for_a_quarter_of_its_step_and_for_three_snapshots(accuracy, expected):
    assert emergence_step(STEPS[:len(accuracy)], accuracy) == expected


def test_three_snapshots_in_a_row_are_enough_if_one_asks_for_no_more():
    late = curve((0, 17), (1, 3))
    assert emergence_step(STEPS, late) is None and emergence_step(STEPS, late, lasting=1.0) == 170
    falls_back = curve((0, 12), (1, 3), (0, 5))
    assert emergence_step(STEPS, falls_back, lasting=1.0) == 120
    twice = [step * 2.0 for step in STEPS]                    # steps in another unit
    assert emergence_step(twice, curve((0, 10), (1, 10))) == 200.0


def test_several_curves_are_dated_at_once():
    steps, inf = np.arange(8), math.inf
    curves = np.array([curve((0, 4), (1, 4)), curve((0.5, 2), (0.8, 6)), curve((0.5, 8))])
    found = emergence.emergence_index(curves, steps, 0.5, inf, 0.3, 3, 1.25)
    assert found.tolist() == [4, 2, -1]
    chance = np.array([[0.0], [0.5], [0.1]])                  # each curve has its own
    found = emergence.emergence_index(curves, steps, chance, 1000, 0.3, 3, 1.25)
    assert found.tolist() == [4, 2, 0]
    few = np.array([[1000.0], [20.0], [inf]])                 # and its own examples
    found = emergence.emergence_index(curves, steps, 0.5, few, 0.3, 3, 1.25)
    assert found.tolist() == [4, -1, -1]


def test_emergence_is_measured_from_chance():
    rise = [0.5 + i / 40 for i in range(20)]                  # a coin's 0.5, then up to 0.975
    assert emergence_step(STEPS, rise, chance=0.5) == 60      # 0.65 is 30% of the way
    assert emergence_step(STEPS, rise) == 0
    assert emergence_step(STEPS, rise, chance=0.5, threshold=0.5) == 100
    assert emergence_step(STEPS, rise, chance=0.5, persistence=15) is None


def test_few_examples_raise_the_bar():
    """With 20 examples of a coin, 3 standard errors are 0.335 above one half, two thirds of the
    way: 0.8 might be luck."""
    good, better = curve((0.5, 10), (0.8, 10)), curve((0.5, 10), (0.85, 10))
    assert emergence_step(STEPS, good, chance=0.5) == 100
    assert emergence_step(STEPS, good, chance=0.5, examples=20) is None
    assert emergence_step(STEPS, better, chance=0.5, examples=20) == 100


@pytest.mark.parametrize("found, expected", [
    ([False] * 20, -1),
    ([False] * 10 + [True] * 10, 10),
    ([False] * 10 + [True] * 3 + [False] * 7, 10),            # 100 ... 120, up to 125
    ([False] * 12 + [True] * 3 + [False] * 5, -1),            # 120 ... 140, up to 150
    ([False] * 15 + [True] * 5, 15),
    ([False] * 16 + [True] * 4, -1),                          # 1.25 * 160 was not reached
    ([False] * 3 + [True] * 3 + [False] * 14, 3),             # 30 ... 50, up to 37.5
    ([True] * 20, 0)])
def test_flags_last_as_long_as_they_must(found, expected):
    assert emergence.first_lasting(np.array(found), STEPS, 3, 1.25) == expected
    both = emergence.first_lasting(np.array([found, [False] * 20]), STEPS, 3, 1.25)
    assert both.tolist() == [expected, -1]


def test_flags_last_by_the_slow_way_too():
    rng = np.random.default_rng(0)
    for _ in range(300):
        steps = np.sort(rng.choice(400, 25, replace=False))
        flags = rng.random(25) < 0.8
        slow = -1
        for t in range(25):
            held = [k for k in range(t, 25) if steps[k] <= 1.5 * steps[t] or k < t + 2]
            seen = steps[-1] >= 1.5 * steps[t] and t + 2 <= 25
            if seen and flags[held].all():
                slow = t
                break
        assert emergence.first_lasting(flags, steps, 2, 1.5) == slow


class Series:
    """As pandas has it: a label is no place.  labels: those of the values."""

    def __init__(self, values, labels):
        self.values, self.labels = list(values), list(labels)

    def __iter__(self):
        return iter(self.values)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, label):
        return self.values[self.labels.index(label)]            # ValueError for a place

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


@pytest.mark.parametrize("make", [
    list, tuple, np.array, lambda x: Series(x, range(100, 100 + len(x))),
    lambda x: np.array(x, dtype=object), lambda x: np.array(x, dtype=np.float32)])
def test_curves_and_dates_may_be_of_any_library_and_results_go_into_json(make):
    steps, ranks = make(range(10)), make([9, 5, 2, 2, 3, 4, 5, 6, 7, 8])
    accuracy = make([0, 0, 0, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1])
    found = [emergence_step(steps, accuracy), collapse(steps, ranks),
             risk_set_test(make([5, 20, 5]), make([10, 30, 40])),
             concordance(make([1, 2, 3]), make([1, 3, 2])), lead_time(*make([2, 3]))]
    assert json.loads(json.dumps(found))[:2] == [3, [2.0, 2, 4]]
    assert found[3] == pytest.approx(2 / 3) and found[4] == 1
    assert found[2] == risk_set_test([5, 20, 5], [10, 30, 40])


def test_dates_may_be_text_as_csv_has_them():
    as_numbers = risk_set_test([5, 20, 5, None], [10, 30, 40, None])
    for make in (list, np.array, tuple):
        onsets, emergences = make(["5", "20", "5", ""]), make(["10", "30.0", "40", ""])
        assert risk_set_test(onsets, emergences) == as_numbers
    assert lead_time("40", "50") == 10 and concordance(["9", "10"], ["1", "2"]) == 1


@pytest.mark.parametrize("threshold", [30, -0.1, 1.01, math.nan])
def test_a_threshold_in_percent_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold .*between 0 and 1"):
        emergence_step([0, 1, 2], [0.0, 0.5, 1.0], threshold=threshold)
    runs = from_table([("mine", "x-1", step, "accuracy", step / 9) for step in range(9)])
    with pytest.raises(ValueError, match="threshold .*between 0 and 1"):
        event_table(runs, threshold=threshold)


def test_accuracy_in_percent_is_refused():
    with pytest.raises(ValueError, match="37.5: an accuracy lies between 0 and 1"):
        emergence_step([0, 1, 2], [0.0, 37.5, 80.0])
    with pytest.raises(ValueError, match="run 'mine': accuracy 50: an accuracy lies"):
        from_table([("mine", "x-1", 0, "accuracy", 50)])


def test_noise_at_chance_does_not_emerge():
    rng, found = np.random.default_rng(0), []
    for _ in range(500):
        accuracy = rng.binomial(1000, 0.5, len(STEPS)) / 1000
        found.append(emergence_step(STEPS, accuracy, 0.5, threshold=0.0, examples=1000))
    assert found.count(None) == 500                           # three beyond 3 errors: 1e-9


@pytest.mark.parametrize("rank, expected", [
    (curve((8, 3), (2, 9), (6, 3), (2, 5)), (2, 30, None)),   # 120 ... 140: it falls back too soon
    (curve((8, 3), (2, 7), (6, 10)), (2, 30, 100)),           # collapse, floor, recovery
    (curve((8, 3), (2, 17)), (2, 30, None)),                  # never recovers
    (curve((8, 3), (2, 7), (6, 1), (2, 9)), (2, 30, None)),   # the median takes a spike out
    (curve((8, 3), (2, 7), (6, 2), (2, 8)), (2, 30, None)),   # two are no recovery either
    (curve((8, 3), (2, 15), (6, 2)), (2, 30, None)),          # too late to have lasted
    (curve((8, 3), (2, 7), (2.3, 10)), (2, 30, None)),        # 15% is the wander of a floor
    (curve((8, 3), (2, 7), (2.4, 10)), (2, 30, 100)),         # 20% is not
    (curve((8, 3), (0.5, 1), (3, 6), (6, 10)), (3, 30, 100)),           # one odd value: no floor
    (curve((2, 5), (8, 15)), (2, 0, 50)),                     # no collapse: floor at the start
    (curve((8, 3), (None, 2), (2, 5), (6, 10)), (2, 40, 100))])         # a gap is bridged
def test_collapse_finds_the_floor_and_the_onset(rank, expected):
    found = collapse(STEPS, rank)
    assert found == expected, f"{found} instead of {expected}"


def test_several_curves_recover_at_once():
    nan = math.nan
    smooth = np.array([[9, 8, 2, 2, 2.1, 3, 4, 5], [5, 4, 1, nan, 2, 2, nan, 2],
                       [9, 8, 7, 6, 5, 4, 3, 2], [nan, 3, 3, 3.5, 4, 4, 4, 4]])
    floor, low, risen = emergence.recovery(smooth, 0.2)
    assert floor.tolist() == [2, 1, 2, 3]
    assert low.tolist() == [2, 2, 7, 1]
    found = [np.flatnonzero(row).tolist() for row in risen]
    assert found == [[5, 6, 7], [4, 5, 7], [], [4, 5, 6, 7]]
    exact, _, risen = emergence.recovery(np.array([4.0, 2.0, 2.5, 2.0, 3.0]), 0.25)
    assert exact == 2 and risen.tolist() == [False, False, True, False, True]


def test_bad_curves_are_errors():
    for function in (emergence_step, collapse):
        with pytest.raises(ValueError, match="3 steps but 2 values"):
            function([0, 1, 2], [1, 1])
        with pytest.raises(ValueError, match="must increase"):
            function([0, 2, 2], [1, 1, 1])
    with pytest.raises(ValueError, match="chance"):
        emergence_step([0], [1], chance=1)
    with pytest.raises(ValueError, match="no values"):
        collapse([0, 1], [None, None])


@pytest.mark.parametrize("window", [1, 3, 7])
def test_running_median_is_that_of_the_slow_way(window):
    values = np.random.default_rng(1).normal(size=30)
    half = window // 2
    slow = [float(np.median(values[max(0, i - half):i + half + 1])) for i in range(30)]
    assert emergence.running_median(values, window).tolist() == pytest.approx(slow)


@pytest.mark.filterwarnings("error")
def test_running_median_leaves_out_what_was_not_measured():
    nan = math.nan
    found = emergence.running_median([[nan, nan, nan, 4, nan, 8]], 3)
    assert np.array_equal(found, [[nan, nan, 4, 4, 6, 8]], equal_nan=True)


def test_a_lead_is_positive_if_geometry_came_first():
    assert lead_time(50, 70) == 20 and lead_time(70, 50) == -20


# ------------------------------------------------------------------------------------------------
# Statistics of several events

def test_wilson_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for k, n in [(0, 5), (3, 7), (24, 24), (100, 1000)]:
        exact = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert rate_with_interval(k, n) == pytest.approx((k / n, exact.low, exact.high), abs=1e-6)
    assert rate_with_interval(0, 0)[1:] == (0, 1)
    with pytest.raises(ValueError):
        rate_with_interval(3, 2)


def test_concordance_is_a_count_of_pairs():
    assert concordance([1, 2, 3], [5, 6, 9]) == 1 and concordance([1, 2, 3], [9, 6, 5]) == 0
    assert concordance([1, 1, 2], [1, 2, 3]) == pytest.approx(2.5 / 3)  # a tie counts one half
    assert math.isnan(concordance([None, None], [1, 2])) and math.isnan(concordance([1], [1]))
    assert concordance([1, None], [1, None]) == 1 and concordance([1, None], [None, 1]) == 0
    assert concordance([1, None, None], [1, 2, 3]) == 1       # two that never came have no order
    with pytest.raises(ValueError):
        concordance([1], [1, 2])


def test_concordance_is_kendalls_tau_without_ties():
    kendall = pytest.importorskip("scipy.stats").kendalltau
    a = np.random.default_rng(2).permutation(12).tolist()
    b = np.random.default_rng(3).permutation(12).tolist()
    assert concordance(a, b) == pytest.approx((kendall(a, b).statistic + 1) / 2)


def test_risk_set_test_by_hand():
    """Four levels.  At t=10 level 0 emerges; at risk are all four, with onsets 5, 20, 5, None:
    x = 1, 0, 1, 0.  At t=30 level 1 emerges; at risk 1, 2, 3 with x = 1, 1, 0.  At t=40 level 2; at
    risk 2, 3 with x = 1, 0."""
    z, information = risk_set_test([5, 20, 5, None], [10, 30, 40, None])
    U = (1 - 1 / 2) + (1 - 2 / 3) + (1 - 1 / 2)
    V = 1 / 4 + 2 / 9 + 1 / 4
    assert information == pytest.approx(V) and z == pytest.approx(U / math.sqrt(V))


def test_risk_set_test_is_not_fooled_by_common_onsets():
    z, information = risk_set_test([5] * 6, [10, 20, 30, 40, 50, None])
    assert information == 0 and math.isnan(z)
    with pytest.raises(ValueError):
        risk_set_test([1], [1, 2])


def test_what_is_not_watched_any_more_leaves_the_risk_set():
    """6-mercaptopurine against placebo in acute leukaemia (Freireich 1963; weeks of remission): the
    log-rank chi^2 is 16.79.  If the censored are kept for ever it is 21.0."""
    treated = [6, 6, 6, 7, 10, 13, 16, 22, 23] + [None] * 12
    ended = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    placebo = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
    onsets = [0] * 21 + [None] * 21
    censored = [None] * 9 + ended + [None] * 21
    z, _ = risk_set_test(onsets, treated + placebo, censored)
    assert z ** 2 == pytest.approx(16.79, abs=0.01)
    assert risk_set_test(onsets, treated + placebo)[0] ** 2 == pytest.approx(21.0, abs=0.1)
    with pytest.raises(ValueError):
        risk_set_test([1], [1], [1, 2])


@pytest.mark.parametrize("never", [
    None, math.nan, math.inf, "", "nan", "None", "NA", "<NA>", "null", " never ", np.float32("nan"),
    np.datetime64("NaT"), np.ma.masked])
def test_never_has_many_spellings(never):
    plain = risk_set_test([5, 20, 5, None], [10, 30, 40, None])
    assert risk_set_test([5, 20, 5, never], [10, 30, 40, never]) == plain
    assert concordance([1, never, 3], [1, 9, never]) == concordance([1, None, 3], [1, 9, None])
    assert claims.spearman([1, never, 3], [1, 9, never]) == claims.spearman([1, 99, 3], [1, 9, 99])
    assert claims.ranks([10, 20, never]).tolist() == [1, 2, 3]
    assert lead_time(never, 50) is lead_time(50, never) is None


def test_risk_set_test_is_standard_normal_without_a_lead():
    rng, z = np.random.default_rng(0), []
    for _ in range(600):
        onsets, emergences = rng.exponential(1, (2, 30)).tolist()
        z.append(risk_set_test(onsets, emergences)[0])
    assert abs(np.mean(z)) < 0.15 and 0.85 < np.std(z) < 1.15


def test_risk_set_test_with_ties_is_the_stratified_mantel_haenszel():
    """At each emergence time a 2 x 2 table (onset before or not, emerged now or not): the
    hypergeometric mean and variance."""
    hypergeom = pytest.importorskip("scipy.stats").hypergeom
    rng = np.random.default_rng(4)
    onset, emerged = rng.integers(0, 9, 25), rng.integers(1, 9, 25)
    U = V = 0
    for t in sorted(set(emerged.tolist())):
        risk = [i for i in range(25) if emerged[i] >= t]
        exposed = [i for i in risk if onset[i] < t]
        now = [i for i in risk if emerged[i] == t]
        law = hypergeom(len(risk), len(exposed), len(now))
        U += len(set(exposed) & set(now)) - law.mean()
        V += law.var() if len(risk) > 1 else 0
    found = risk_set_test(onset.tolist(), emerged.tolist())
    assert found == pytest.approx((U / math.sqrt(V), V))


@pytest.mark.parametrize("p, expected", [
    ([0.01, 0.04, None, 0.03], [0.03, 0.06, None, 0.06]),
    ([0.5, 0.4], [0.8, 0.8]),
    ([0.9, 0.8, 0.7], [1, 1, 1]),
    ([], []),
    ([None], [None]),
    ([0.02, 0.001, 0.02], [0.04, 0.003, 0.04]),
    ([0.011, 0.01, 0.5, 0.2], [0.04, 0.04, 0.5, 0.4])])
def test_holm_by_hand(p, expected):
    given = list(p)
    assert emergence.holm(p) == [e if e is None else pytest.approx(e) for e in expected]
    assert p == given


def test_holm_by_its_definition():
    p = (np.random.default_rng(3).random(7) ** 3).tolist()
    slow = [max(min(1, (7 - sorted(p).index(q)) * q) for q in p if q <= x) for x in p]
    assert emergence.holm(p) == pytest.approx(slow)


@pytest.mark.parametrize("df, expected", [
    (1, 12.7062), (1.6, 5.5172), (2, 4.30265), (3, 3.18245), (7, 2.36462), (20, 2.08596),
    (1e4, 1.9602)])
def test_students_quantile_is_that_of_the_tables(df, expected):
    assert emergence.t_quantile(df) == pytest.approx(expected, rel=1e-4)


def test_students_quantile_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for df in (1, 1.3, 2.7, 5, 40, 1000):
        for confidence in (0.9, 0.95, 0.99):
            exact = stats.t.ppf((1 + confidence) / 2, df)
            assert emergence.t_quantile(df, confidence) == pytest.approx(exact, rel=1e-4)


# ------------------------------------------------------------------------------------------------
# From a table of measurements to runs

def measured(level, step, quantity, value, run="mine"):
    return run, level, step, quantity, value


def test_rows_may_come_in_any_order_as_tuples_or_dicts():
    rows = [measured(level, step, quantity, step + len(level) + len(quantity), run)
            for run in ("a", "b") for level in ("x-1", "long-1") for step in (0, 5, 7)
            for quantity in ("log_prob", "loss")]
    straight = from_table(rows)
    assert [run.name for run in straight] == ["a", "b"]
    assert straight[0].levels == ["x-1", "long-1"] and straight[0].steps.tolist() == [0, 5, 7]
    assert straight[0].curves["loss"].tolist() == [[7, 12, 14], [10, 15, 17]]
    shuffled = random.Random(0).sample(rows, len(rows))
    dicts = [dict(zip(emergence.COLUMNS, row)) for row in shuffled]
    configs = {name: {"levels": ["x-1", "long-1"]} for name in ("a", "b")}
    for table in (shuffled, iter(shuffled), dicts):
        runs = {run.name: run for run in from_table(table, configs)}
        for run in straight:
            for quantity in ("log_prob", "loss"):
                assert np.array_equal(runs[run.name].curves[quantity], run.curves[quantity])


def test_of_two_rows_for_the_same_place_the_last_counts():
    said = "values measured twice, .*: 2, such as accuracy at step 0 of mine"
    with pytest.warns(UserWarning, match=said):
        (run,) = from_table([measured("x-1", 0, "accuracy", value) for value in (1, 0.5, 0.25)])
    assert run.accuracy.tolist() == [[0.25]]


def test_none_nan_and_nothing_are_not_measured_and_numbers_may_be_text():
    values = ["0.5", None, math.nan, "", 1]
    (run,) = from_table([measured("x-1", str(k), "accuracy", v) for k, v in enumerate(values)])
    assert np.isnan(run.accuracy[0]).tolist() == [False, True, True, True, False]
    assert np.isnan(run.table("never heard of")).all()


@pytest.mark.parametrize("row", [
    {"run": "a", "level": "x", "step": 1, "quantity": "loss"},                  # no value
    {"run": "a", "level": "x", "step": 1, "quantity": "loss", "value": "high"},
    {"run": "a", "level": "x", "step": "soon", "quantity": "loss", "value": 1},
    ("a", "x", None, "loss", 1),
    ("a", "x", 1, "loss", [1, 2]),
    ("a", "x", 1, "loss"),
    ("a", ["x"], 1, "loss", 1),
    "run", 7])
def test_a_row_that_cannot_be_read_is_named_in_one_sentence(row):
    with pytest.raises(ValueError) as error:
        from_table([("a", "x", 0, "loss", 1), row])
    assert "row 2" in str(error.value) and "run, level, step, quantity, value" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_table_without_rows_and_a_step_that_is_no_number_are_errors():
    with pytest.raises(ValueError, match="no rows"):
        from_table([])
    for step in (math.nan, -1, math.inf):
        with pytest.raises(ValueError, match=r"row 1 .* step \(>= 0\)"):
            from_table([measured("x-1", step, "accuracy", 1)])
    with pytest.raises(ValueError, match="run 'mine' has settings alone"):
        from_table([measured("x-1", 0, "chance", 0.5)])


@pytest.mark.parametrize("value", [0, -3, 0.9, 1e300])
def test_a_rankme_that_cannot_be_is_refused(value):
    rows = [measured("x-1", 0, "rankme.first.0", 1 - 1e-6), measured("x-1", 0, "rankme.error", 0)]
    assert from_table(rows)
    with pytest.raises(ValueError, match="run 'mine', level x-1, step 5: rankme.first.0 .* 1, at"):
        from_table([*rows, measured("x-1", 5, "rankme.first.0", value)])


def test_a_table_of_accuracy_alone_gives_emergence_and_no_onset():
    rows = [measured(level, step / 2, "accuracy", min(1, step / 50))            # steps of one half
            for level in ("chess", "go") for step in range(100)]
    runs = from_table(rows)
    events = event_table(runs)
    assert events.emergence.tolist() == [[7.5, 7.5]] and events.tasks == ("chess", "go")
    assert np.isnan(events.onset).all() and np.isnan(events.floor).all()
    assert np.isinf(events.floor_step).all()
    (chess, _) = claims.medians(events)
    assert (chess["size"], chess["seeds"], chess["emerged"], chess["floor"]) == ("", 1, 1, None)
    found = {(row["quantity"], row["event"]): row["step"] for row in claims.event_rows(events)}
    assert found == {("accuracy", "emergence"): 7.5}


def test_what_a_config_lacks_has_a_plain_default():
    first, second = from_table([measured("x-1", 0, "accuracy", 1, run) for run in "ab"],
                               {"b": {"size": "nano", "warmup": 7}})
    assert (first.config["seed"], second.config["seed"]) == (0, 1)
    assert (first.config["size"], second.config["size"]) == ("", "nano")
    assert (first.config["warmup"], second.config["warmup"]) == (0, 7)
    assert math.isnan(first.config["parameters"]) and first.config["unit"] == "step"
    assert first.measures == []


def test_each_curve_is_dated_on_the_snapshots_at_which_it_was_measured():
    """A loss at every step, accuracy at every second, RankMe at every fifth: no gaps in any."""
    rows = [measured("x-1", step, "loss", 1.0) for step in range(100)]
    rows += [measured("x-1", step, "accuracy", float(step >= 60)) for step in range(0, 100, 2)]
    rows += [measured("x-1", step, "rankme.first.0", 2.0 if 10 <= step < 50 else 8.0)
             for step in range(0, 100, 5)]
    events = event_table(from_table(rows))                    # one layer: -2 is that one
    assert (events.emergence.item(), events.onset.item()) == (60, 50)
    assert (events.floor.item(), events.floor_step.item(), events.start.item()) == (2, 10, 8)


def test_rankme_is_collected_by_position_and_layer():
    rows = [measured("x-1", step, f"rankme.{position}.{layer}", 100 * len(position) + layer)
            for step in (0, 1) for position in ("first", "last") for layer in (10, 2, 0)]
    (run,) = from_table(rows)
    assert set(run.layered) == {"rankme.first", "rankme.last"}
    assert run.rankme_layers("last").shape == (1, 3, 2)
    assert run.rankme_layers("first")[0, :, 0].tolist() == [500, 502, 510]
    assert run.rankme_at("last", -1)[0].tolist() == [410, 410]
    assert np.isnan(run.rankme_at("answer", -1)).all()


@pytest.mark.parametrize("names, last_block, norm, embedding", [
    (("embedding", "block1", "block2", "final_norm"), 2, 3, 0),
    (("final_norm", "block1", "block2", "embedding"), 2, 0, 3),
    (("block1", "block2"), 1, None, None),                    # floor 5.5, not 11.0
    (("block1", "block10", "block2"), 1, None, None),         # in the order of letters
    (("final_norm", "layer_9", "layer_10", "layer_0", "embedding"), 2, 0, 4),
    (("attn 2", "mlp 1"), 1, None, None),                     # two names: as they come
    (("0", "1"), 0, 1, 0)])                                   # of the last block and the norm
def test_layers_have_names_where_rows_name_them(names, last_block, norm, embedding):
    rows = [measured("x-1", 0, f"rankme.first.{name}", 1 + k) for k, name in enumerate(names)]
    (run,) = from_table(rows)

    def found(layer):
        value = run.rankme_at("first", layer).item()
        return None if math.isnan(value) else value - 1
    assert (found(-2), found(-1)) == (last_block, norm)
    assert run.rankme_layers("first")[0, 0].item() - 1 == embedding or embedding is None


def test_what_is_neither_behaviour_nor_rankme_is_a_measure():
    quantities = ("accuracy", "log_prob", "loss", "llc", "llc.mc_error", "mine", "spread.0",
                  "spread.1", "rankme.first.0", "linear_probe_shuffled", "mine.error", "theirs",
                  "theirs.mc_error")
    rows = [measured("x-1", step, name, step + name.startswith("rankme"))
            for name in quantities for step in (0, 1)]
    config = {"numbers": {"llc": ["llc"]}, "chance_log_prob": -2.3}
    (run,) = from_table(rows, {"mine": config})
    assert run.measures == ["llc", "mine", "theirs", "spread"]
    assert run.table("spread").tolist() == [[0, 1]]       # after the last block
    for name in ("llc", "mine", "theirs"):
        assert run.error_of(name).tolist() == [[0, 1]]
    assert run.error_of("loss").tolist() == [[0, 0]]


def test_the_probes_error_is_that_of_a_quarter_of_its_examples():
    rows = [measured("x-1", 0, "linear_probe", 0.8)]
    (run,) = from_table(rows, {"mine": {"linear_examples": 400}})
    assert run.error_of("linear_probe").item() == pytest.approx(math.sqrt(0.8 * 0.2 / 100))


def test_examples_are_a_number_or_one_for_each_level_and_none_where_all_were_seen():
    rows = [measured(level, step, "accuracy", 0.5 if step < 50 else 0.66)
            for level in ("parity-1", "parity-2") for step in range(0, 100, 10)]
    config = {"levels": ["parity-1", "parity-2"], "chance": {"parity-1": 0.5, "parity-2": 0.5}}
    for examples, expected in ((None, [50, 50]), (20, [math.inf] * 2), (5000, [50, 50]),
                               ({"parity-1": 20, "parity-2": None}, [math.inf, 50])):
        runs = from_table(rows, {"mine": config | {"examples": examples}})
        assert event_table(runs).emergence.tolist() == [expected], examples


# ------------------------------------------------------------------------------------------------
# From runs to events, on runs whose events are planted

TASKS = ("copy", "reverse", "compare", "parity", "add", "modadd", "sort", "multiply")
LEVELS = tuple(f"{task}-{k}" for task in TASKS for k in (1, 2, 3))


def made_up_run(seed=0, size="nano", parameters=400_000, levels=("add-1", "add-2", "sham-add-1"),
                steps=400, measures=(), **config):
    """A run whose events are planted: add-k collapses to k + 1 at step 30, recovers at 100 k, and
    emerges at 100 k + 60.  Shams fall to k + 2, and stay there.  measures: of rare_columns, every
    20 steps."""
    name, rows = f"{size}-s{seed}", []
    for step, level in itertools.product(range(0, steps + 1, 10), levels):
        k, sham = int(level[-1]), level.startswith("sham")
        rank = 12.0
        if step >= 30:
            rank = k + 1.0 + sham
        if step >= 100 * k and not sham:
            rank = min(12.0, (step - 100 * k) / 10 + 2 * (k + 1.0))
        emerged = not sham and step >= 100 * k + 60
        columns = {"accuracy": 0.95 if emerged else 0.1, "log_prob": -0.1 if emerged else -2.3,
                   "distinct": 100}
        for position in ("first", "answer", "last"):
            layers = [1.0, rank + 1, rank, rank]
            columns |= {f"rankme.{position}.{layer}": x for layer, x in enumerate(layers)}
        if measures and step % 20 == 0:
            rare = rare_columns(step, math.inf if sham else 100 * k + 60)
            columns |= {name: value for name, value in rare.items()
                        if name.removesuffix("_shuffled") in measures}
        rows += [measured(level, step, quantity, x, name) for quantity, x in columns.items()]
    given = {"levels": list(levels), "size": size, "seed": seed, "parameters": parameters,
             "width": 128, "eval_examples": 1000, "chance": dict.fromkeys(levels, 0.1),
             "chance_log_prob": dict.fromkeys(levels, -2.3),
             "answer_tokens": dict.fromkeys(levels, 2), "numbers": {m: [m] for m in measures}}
    (run,) = from_table(rows, {name: given | config})
    return run


def rare_columns(step, emergence):
    """The LLC rises with emergence, the Hessian a snapshot later, the gradient rank two earlier;
    the probe knows the answer three earlier."""
    return {"llc": -50.0 if step < 20 else 5.0 + 40 * (step >= emergence),
            "hessian_top": 1.0 + 9 * (step >= emergence + 20),
            "gradient_rank": 10.0 + 9 * (step >= emergence - 40),
            "linear_probe": 0.1 + 0.8 * (step >= emergence - 60), "linear_probe_shuffled": 0.1}


@functools.lru_cache
def planted_run(parameters):
    return made_up_run(levels=LEVELS, parameters=parameters)


def made_up_events(onset, emerged, levels=LEVELS, parameters=None) -> EventTable:
    """onset, emerged: (R, L), infinity for never.  Everything else is 1."""
    onset, emerged = np.array(onset, dtype=float), np.array(emerged, dtype=float)
    runs = [planted_run(p) for p in parameters or [4e5] * len(onset)]
    arrays = dict.fromkeys(emergence.ARRAYS, np.ones(onset.shape))
    arrays |= {"onset": onset, "emergence": emerged, "first": np.zeros(onset.shape),
               "censored": np.full(onset.shape, np.inf)}
    by = vars(claims.Specification())
    return EventTable(runs, tuple(levels), by, "floor", **arrays)


@pytest.mark.parametrize("k", [1, 2])
def test_the_events_of_a_planted_run_are_found(k):
    events = event_table([made_up_run()])
    at = 0, events.levels.index(f"add-{k}")
    assert (events.floor[at], events.floor_step[at], events.start[at]) == (k + 1, 30, 12)
    assert (events.onset[at], events.emergence[at]) == (100 * k, 100 * k + 60)
    assert (events.ceiling[at], events.shams[at[1]]) == (100, False)
    by_log_prob = event_table([made_up_run()], behaviour="log_prob")
    assert by_log_prob.emergence[at] == 100 * k + 60
    at_answer = event_table([made_up_run()], position="answer")
    assert at_answer.ceiling[at] == 128                       # 200 states, but the width is 128


def test_shams_never_emerge_and_are_columns_of_their_own():
    events = event_table([made_up_run(), made_up_run(1)])
    assert events.shams.tolist() == [False, False, True]
    real, shams = events.only(), events.only(shams=True)
    assert real.levels == ("add-1", "add-2") and shams.levels == ("sham-add-1",)
    assert real.tasks == ("add", "add") and shams.tasks == ("sham-add",)
    assert real.rows == [0, 1] and shams.rows == [2]
    assert shams.onset.tolist() == shams.emergence.tolist() == [[math.inf]] * 2
    for name in emergence.ARRAYS:
        assert np.array_equal(getattr(real, name), getattr(events, name)[:, :2])


def test_the_keywords_go_with_the_table():
    events = event_table([made_up_run()], threshold=0.5, layer=-1)
    assert events.dated_by["threshold"] == 0.5 and events.dated_by["layer"] == -1
    again = event_table(events.runs, **events.dated_by)
    assert np.array_equal(again.onset, events.onset) and again.dated_by == events.dated_by


def test_runs_of_one_table_have_the_same_levels():
    with pytest.raises(ValueError, match="nano-s0 and micro-s0 have different levels"):
        event_table([made_up_run(), made_up_run(size="micro", levels=("add-1",))])


def test_medians_over_seeds_count_what_never_came():
    runs = [made_up_run(seed) for seed in range(3)]
    runs[2].accuracy[1] = 0.1                                 # the third does not learn add-2
    first, second, sham = claims.medians(event_table(runs))
    assert first["level"] == "add-1" and first["emerged"] == first["rankme_first"] == 3
    assert first["lead"] == {"median": 60, "low": 60, "high": 60}
    assert first["floor_share"]["median"] == 2 / 100 and first["ceiling"] == 100
    assert (second["emerged"], second["seeds"], second["emergence"]["median"]) == (2, 3, 260)
    assert second["final_accuracy"] == {"median": 0.95, "low": 0.1, "high": 0.95}
    assert sham["control"] and sham["emergence"] is sham["lead"] is None


def test_an_overview_counts_capabilities_and_orders_what_emerges():
    runs = [made_up_run(seed) for seed in range(3)]
    runs[2].accuracy[1] = 0.1                                 # the third does not learn add-2
    rows = claims.medians(event_table(runs))
    (size,) = claims.overview(event_table(runs))
    assert (size["seeds"], size["levels"], size["measured"]) == (3, 2, 6)
    for count in ("collapsed", "recovered", "emerged", "rankme_first"):
        assert size[count] == sum(row[count] for row in rows if not row["control"])
    assert (size["collapsed"], size["emerged"], size["never"]) == (6, 5, [])
    assert size["order"] == [["add-1", 160], ["add-2", 260]]
    flat = [made_up_run(seed) for seed in range(3)]
    for run in flat:
        run.accuracy[:] = 0.1
        for name in run.curves:
            if name.startswith("rankme"):
                run.curves[name][0] = 9.0                     # add-1 does not fall
    events = event_table([emergence.replace(run) for run in flat])         # without what was read
    (size,) = claims.overview(events)
    assert (size["emerged"], size["order"], size["never"]) == (0, [], ["add-1", "add-2"])
    assert size["collapsed"] == 3 and claims.medians(events)[0]["collapsed"] == 0


def test_medians_have_the_smallest_size_first():
    runs = [made_up_run(size="micro", parameters=1_300_000), made_up_run()]
    sizes = [row["size"] for row in claims.medians(event_table(runs))]
    assert sizes == ["nano"] * 3 + ["micro"] * 3


def test_emergence_is_on_unseen_operands_where_there_are_some():
    run = made_up_run(train_fraction=0.4)
    early, late = run.steps >= 50, run.steps >= 300
    run.curves["accuracy_train"] = np.tile(early.astype(float), (3, 1))
    run.curves["accuracy_test"] = np.tile(late.astype(float), (3, 1))
    events = event_table([run])
    assert events.emergence[0].tolist() == [300] * 3
    steps = {(row["level"], row["quantity"]): row["step"] for row in claims.event_rows(events)}
    assert (steps["add-1", "accuracy_train"], steps["add-1", "accuracy"]) == (50, 300)


def test_event_rows_have_a_row_for_each_event():
    events = event_table([made_up_run(measures=("llc", "hessian_top")), made_up_run(1)])
    rows = claims.event_rows(events)
    assert list(rows[0]) == ["run", "size", "seed", "task", "level", "sham", "quantity", "event",
                             "step"]
    first = {(row["level"], row["quantity"], row["event"]): row["step"]
             for row in rows if row["run"] == "nano-s0"}
    assert first["add-1", "rankme", "onset"] == 100 and first["add-1", "llc", "onset"] == 160
    assert first["add-2", "accuracy", "emergence"] == first["add-2", "log_prob", "emergence"] == 260
    assert first["sham-add-1", "rankme", "onset"] is None
    assert len(first) == 3 * 5
    second = {row["quantity"] for row in rows if row["run"] == "nano-s1"}
    assert second == {"rankme", "accuracy", "log_prob"}
    assert len({tuple(row.values())[:-1] for row in rows}) == len(rows) == 3 * 5 + 3 * 3


@pytest.mark.parametrize("keywords", [
    {},
    dict(threshold=0.5, persistence=5, rise=0.5, smoothing=7, position="last", layer=-1,
         warmup=False, lasting=1.5)])
def test_many_curves_are_dated_as_one_curve_at_a_time(keywords):
    """The arrays of event_table against the functions of one curve, on noisy curves."""
    rng, run = np.random.default_rng(0), made_up_run(warmup=100)
    for values in run.layered.values():
        values *= rng.uniform(0.8, 1.25, values.shape)
    run.accuracy[:] = np.clip(run.accuracy + rng.normal(0, 0.1, run.accuracy.shape), 0, 1)
    events = event_table([run], onset="floor", **keywords)
    by, start = events.dated_by, 0 if keywords.get("warmup", True) else 10
    steps = run.steps[start:].tolist()
    for k in range(2):
        rank = run.rankme_at(by["position"], by["layer"])[k, start:]
        slow = collapse(steps, rank, by["smoothing"], by["rise"], by["persistence"], by["lasting"])
        emerged = emergence_step(steps, run.accuracy[k, start:], 0.1, by["threshold"],
                                 by["persistence"], by["lasting"], 1000)
        fast = Collapse(events.floor[0, k], events.floor_step[0, k], events.onset[0, k])
        assert fast == slow._replace(onset_step=slow.onset_step or math.inf)
        assert events.emergence[0, k] == (emerged or math.inf)


# Onsets, on curves drawn by hand.  STEPS are 0, 10 ... 190; the shams stay at 2 and at 3, but for
# the steps from 50 to 70, where both reach 6.

SHAMS = np.array([curve((8, 2), (2, 3), (6, 3), (2, 12)), curve((8, 2), (3, 3), (6, 3), (3, 12))])


@pytest.mark.parametrize("rank, expected", [
    # falls, is above the floor from 50 on and above all shams from 120 on
    (curve((8, 2), (2, 3), (6, 3), (3, 4), (9, 8)),
     {"shams": 120, "mean_sham": 80, "floor": 50, "departure": 50, "steepest": 120}),
    # above its bar from 90 on, but not for long enough; then again, to stay
    (curve((8, 2), (2, 7), (9, 1), (2, 2), (9, 8)),
     {"shams": 120, "mean_sham": 120, "floor": 120, "departure": 120, "steepest": 120}),
    # falls back below all bars after it has lasted: only the last departure knows
    (curve((8, 2), (2, 3), (9, 5), (2, 4), (9, 6)),
     {"shams": 50, "mean_sham": 50, "floor": 50, "departure": 140, "steepest": 140}),
    # rises too late to be seen to last
    (curve((8, 2), (2, 15), (9, 3)),
     {"shams": None, "mean_sham": None, "floor": None, "departure": None, "steepest": None}),
    # not measured when it rises: the date is the first snapshot that was
    (curve((8, 2), (2, 8), (math.nan, 2), (9, 8)),
     {"shams": 120, "mean_sham": 120, "floor": 120, "departure": 120}),
    # above its bar from the start, and all along: it does not cross it
    (curve((20, 20)), {"shams": None, "mean_sham": None, "floor": None, "departure": None,
                       "steepest": None}),
    # above its bar from the start, then below it, then across it
    (curve((20, 3), (2, 5), (9, 12)),
     {"shams": 80, "mean_sham": 80, "floor": 80, "departure": 80, "steepest": 80})])
def test_each_rule_dates_curves_that_are_drawn_by_hand(rank, expected):
    curves = np.array([rank, *SHAMS])
    for rule, step in expected.items():
        with np.errstate(invalid="ignore"):
            risen = emergence.ONSETS[rule](curves, SHAMS, np.array(STEPS), 0.2)
        index = emergence.first_lasting(risen, STEPS, 3, 1.25)[0]
        assert (None if index < 0 else STEPS[index]) == step, rule


@pytest.mark.parametrize("rule", ["shams", "mean_sham"])
def test_a_sham_that_was_not_measured_raises_no_bar(rule):
    task, steps = curve((8, 2), (2, 3), (6, 3), (3, 4), (9, 8)), np.array(STEPS)
    curves = np.array([task, *SHAMS])
    more = np.vstack([SHAMS, np.full(len(STEPS), math.nan)])
    risen = emergence.ONSETS[rule]
    assert np.array_equal(risen(curves, more, steps, 0.2), risen(curves, SHAMS, steps, 0.2))
    assert risen(curves, SHAMS, steps, 0.2)[0].any()
    assert not risen(curves, more[-1:], steps, 0.2).any()


def test_a_sweep_without_shams_has_its_onsets_by_the_floor_and_says_so():
    run = made_up_run(levels=("add-1", "add-2"))
    for asked, used in (("shams", "floor"), ("mean_sham", "floor"), ("departure", "departure")):
        events = event_table([run], onset=asked)
        assert (events.onset_rule, events.dated_by["onset"]) == (used, asked)
        assert events.onset.tolist() == [[100, 200]]
    assert event_table([made_up_run()]).onset_rule == "shams"


def test_a_bar_of_shams_may_be_crossed_within_the_warm_up():
    """add-1 recovers at 100, add-2 at 200.  By the floor nothing within the warm-up counts, and
    what is found after it is another floor."""
    run = made_up_run(warmup=120)
    events = event_table([run], warmup=False).only()
    assert events.onset.tolist() == [[120, 200]] and events.first.tolist() == [[120, 120]]
    assert event_table([run]).only().onset.tolist() == [[100, 200]]
    by_floor = event_table([run], warmup=False, onset="floor").only()
    assert by_floor.onset[0, 0] > 120 and by_floor.onset[0, 1] == 200


def test_what_is_there_when_watching_begins_is_in_no_rate():
    run = made_up_run(warmup=170)
    events = event_table([run], warmup=False).only()
    assert events.emergence.tolist() == [[170, 260]] and events.first.tolist() == [[170, 170]]
    assert events.arrivals.tolist() == [[-math.inf, 260]]
    _, counted = emergence.precursor_counts(events)
    assert counted.tolist() == [[[1]]]


def test_a_run_is_watched_to_its_end_and_a_level_to_its_own():
    run, short = made_up_run(), made_up_run(steps=200)
    run.accuracy[1, run.steps > 300] = math.nan
    events = event_table([run, short])
    assert events.censored.tolist() == [[320, 240, 320], [160, 160, 160]]
    assert events.emergence.tolist() == [[160, math.inf, math.inf]] * 2


# ------------------------------------------------------------------------------------------------
# What chance gives

@pytest.mark.parametrize("values, expected", [
    ([2.0, 1, 3, 2], 0.75),                                   # a tie is as far out
    ([5.0] + [0.0] * 99, 0.01),                               # never 0
    ([-3.0, 1, 2, -4], 0.75),
    ([0.5, 0.5 - 1e-12, 0.1, 0.2], 0.5),
    ([1.0, math.nan, 2, 0], 0.5),
    ([math.nan, 1, 2], None),
    ([1.0], None)])
def test_p_value_by_counting(values, expected):
    found = emergence.p_value(np.array(values))
    assert found == (expected if expected is None else pytest.approx(expected))


def test_precursor_counts_by_counting():
    """Levels add-1, add-2, copy-1, copy-2.  Run 0: add-1 emerges at 20, copy-2 at 60; run 1: add-1
    at 30, copy-1 at 70.  add-2 never; copy-1 of run 0 was there from the start."""
    inf = math.inf
    onset = [[10, 50, 5, inf], [30, 20, inf, 5]]
    emerged = [[20, inf, 0, 60], [30, inf, 70, inf]]
    events = made_up_events(onset, emerged, ("add-1", "add-2", "copy-1", "copy-2"))
    first, counted = emergence.precursor_counts(events)
    assert counted.tolist() == [[[1, 1], [1, 1]], [[1, 1], [1, 1]]]
    # run 0: add-1 at 20, its own onset 10, copy-1's 5; copy-2 at 60, its own never, add-2's 50
    # run 1: add-1 at 30, its own 30 is not before, copy-1's never; copy-1 at 70, never; add-1's 30
    assert first.tolist() == [[[1, 1], [1, 0]], [[0, 0], [1, 0]]]


def test_what_has_no_date_or_no_partner_is_not_counted():
    nan = math.nan
    events = made_up_events([[10, 30, nan]], [[20, 40, 60]], ("add-1", "add-2", "copy-1"))
    first, counted = emergence.precursor_counts(events)
    assert counted.tolist() == [[[2, 0], [1, 0]]] and first.tolist() == [[[2, 0], [1, 0]]]


def test_up_to_nine_tasks_every_exchange_comes_once():
    for T in (1, 2, 5, 8):
        found = exchanges([f"task{k}" for k in range(T)])
        assert found.shape == (math.factorial(T), T)
        assert len({tuple(row) for row in found.tolist()}) == math.factorial(T)
        assert (np.sort(found, axis=1) == np.arange(T)).all()
        assert found[0].tolist() == list(range(T))
    assert exchanges(["add", "add", "copy", "add"]).tolist() == [[0, 1], [1, 0]]


def test_more_tasks_are_drawn_and_all_exchanges_are_equally_likely():
    """Each task gets the geometry of each of 10 as often as chance has it, to 5 standard errors."""
    found = exchanges(range(10), 6001, seed=3)
    assert found.shape == (6001, 10) and found[0].tolist() == list(range(10))
    assert (np.sort(found, axis=1) == np.arange(10)).all()
    for k in range(10):
        counts = np.bincount(found[1:, k], minlength=10)
        assert abs(counts - 600).max() < 5 * math.sqrt(6000 * 0.09)
    pairs = (found[1:, 0] == 1).mean(), ((found[1:, 0] == 1) & (found[1:, 1] == 0)).mean()
    assert pairs == pytest.approx((1 / 10, 1 / 90), abs=5 * math.sqrt(0.1 / 6000))
    assert (exchanges(range(10), 6001, seed=3) == found).all()
    assert (exchanges(range(10), 6001, seed=4) != found).any()
    assert exchanges(range(24)).shape == (10_000, 24)


def test_levels_are_paired_by_their_numbers():
    events = made_up_events([[1, 2, 3, 4]], [[5, 6, 7, 8]], ("add-2", "add-1", "copy-1", "go"))
    assert events.owner.tolist() == [[True, True, False, False], [False, False, True, False],
                                     [False, False, False, True]]
    assert events.partners.tolist() == [[0, -1, -1], [1, 2, -1], [1, 2, -1], [-1, -1, 3]]


def test_shares_of_a_table_add_up_to_what_an_exchange_gives():
    table = np.arange(9.0).reshape(3, 3)
    orders = exchanges("abc")
    slow = [sum(table[j, order[j]] for j in range(3)) for order in orders]
    assert emergence.exchanged(table, orders).tolist() == slow
    assert emergence.exchanged(np.stack([table, 2 * table]), orders)[1].tolist() == [
        2 * x for x in slow]


# ------------------------------------------------------------------------------------------------
# Forecast

def planted_sweep(seed, runs=3, lead=1.0, noise=0.05):
    """8 tasks x 3 levels and 2 shams.  Behaviour is a step at emergence.  A quantity "hint" begins
    to rise from 0 by a factor of about 1.4 in steps before it, whatever the task, and says nothing
    where lead is 0."""
    rng, rows, configs = np.random.default_rng(seed), [], {}
    steps = np.unique(np.round(10 * 1.12 ** np.arange(48))).astype(int)     # up to 2,000
    own = rng.normal(0, 0.5, len(TASKS))
    for r in range(runs):
        levels = [*LEVELS, "sham-add-1", "sham-copy-1"]
        emerged = 150 * 2.0 ** (np.tile([0, 0.5, 1], 8) + np.repeat(own, 3)
                                + rng.normal(0, 0.2, 24))
        for k, level in enumerate(levels):
            sham = level.startswith("sham")
            at = math.inf if sham else emerged[k]
            hint = np.clip(3 * np.log(steps / at) + 1, 0, 1) if lead and not sham else 0 * steps
            accuracy = np.where(steps >= at, 0.9, 0.02)
            values = {"accuracy": accuracy, "hint": hint + rng.normal(0, noise, len(steps)),
                      "log_prob": np.where(steps >= at, -0.1, -2.3)}
            rows += [(f"run{r}", level, int(step), name, float(np.clip(x, -9, 1)))
                     for name, column in values.items() for step, x in zip(steps, column)]
        configs[f"run{r}"] = {"chance_log_prob": dict.fromkeys(levels, -2.3)}
    return from_table(rows, configs)


def test_a_planted_signal_is_found_by_the_forecast():
    found = forecast(planted_sweep(0), ("hint", "hint slope"), null=20)
    assert found.gain > 0.3 and found.low > 0.1 and found.p == 1 / 21
    assert min(found.each.values()) > 0 and list(found.each) == list(TASKS)
    assert sum(found.each.values()) == pytest.approx(found.gain)
    over_runs = forecast(planted_sweep(0), ("hint",), over="run")
    assert over_runs.gain > 0.3 and list(over_runs.each) == ["run0", "run1", "run2"]


def test_noise_adds_nothing_to_the_forecast():
    found = [forecast(planted_sweep(seed, lead=0.0), ("hint", "hint slope"), null=20)
             for seed in range(3)]
    assert max(one.gain for one in found) < 0.05 and max(one.low for one in found) < 0
    assert np.mean([one.p for one in found]) > 0.15


def test_the_geometry_of_shams_adds_nothing_to_the_forecast():
    """What leads is taken from its level, and each level gets the curve of a sham."""
    runs = planted_sweep(1)
    for run in runs:
        hint, shams = run.curves["hint"], np.flatnonzero(run.shams)
        hint[:24] = hint[np.resize(shams, 24)]
    found = forecast(runs, ("hint", "hint slope"))
    assert found.gain < 0.05 and found.low < 0


def test_a_landmark_counts_if_its_window_was_watched_whatever_happened():
    """Of a level that emerges at 100 and was watched to 160 (lasting 1.25): the last landmark whose
    window ends by then is at 160 / 1.5 = 106.7, and from 100 on it is not at risk."""
    rows = [measured("x-1", step, "accuracy", float(step >= 100), run) for step in range(0, 201, 5)
            for run in ("a", "b")]
    rows += [measured("y-1", step, "accuracy", 0.0, run) for step in range(0, 201, 5)
             for run in ("a", "b")]
    events = event_table(from_table(rows))
    known, _, target, (r, level, j), _ = emergence.landmark_rows(events, ())
    steps = 20 * 1.5 ** (j / 5)
    assert known.shape[0] == len(target) and steps[level == 0].max() < 100
    assert 106 > steps[level == 1].max() > 98 and not target[level == 1].any()
    assert target[level == 0].tolist() == (steps[level == 0] >= 100 / 1.5).tolist()
    assert target[(level == 0) & (r == 0)].sum() == emergence.PHASES


def test_features_are_trailing():
    rows = [measured("x-1", step, "mine", float(step)) for step in (0, 10, 20, 40)]
    (run,) = from_table(rows)
    steps = np.array([5, 10, 19, 30, 45.0])
    assert emergence.trailing(run, "mine", steps).tolist() == [[0, 10, 10, 20, 40]]
    assert emergence.trailing(run, "mine slope", steps).tolist() == [[0, 10, 0, 0, 20]]
    run.curves["mine"][0, 0] = math.nan
    assert np.isnan(emergence.trailing(run, "mine", steps[:1])).all()


def test_no_forecast_where_nothing_can_be_told():
    one_task = [measured(f"add-{k}", step, "accuracy", step / 200) for k in (1, 2)
                for step in range(0, 200, 5)]
    assert forecast(from_table(one_task), ("loss",)) is None
    assert forecast(planted_sweep(0), ("never measured",)) is None


def test_the_logistic_regression_is_at_its_minimum():
    rng = np.random.default_rng(0)
    X = np.concatenate([np.ones((300, 1)), rng.normal(size=(300, 4))], axis=1)
    y = rng.random(300) < 1 / (1 + np.exp(-X @ [0.5, 2, -1, 0, 0]))

    def loss(w):
        return 0.2 * np.logaddexp(0, np.where(y, -1, 1) * (X @ w)).sum() + 1.5 * (w[1:] ** 2).sum()
    w = emergence.ridge_logistic(X, y, 0.2, 3.0)
    for k in range(5):
        for delta in (-1e-3, 1e-3):
            assert loss(w + delta * np.eye(5)[k]) > loss(w)


def test_the_logistic_regression_is_that_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(200, 3)), rng.random(200) < 0.3
    w = emergence.ridge_logistic(np.concatenate([np.ones((200, 1)), X], axis=1), y, 1.0, 3.0)
    theirs = linear.LogisticRegression(C=1 / 3, tol=1e-10, max_iter=1000).fit(X, y)
    assert w == pytest.approx([*theirs.intercept_, *theirs.coef_[0]], abs=1e-4)


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(emergence).failed == 0
