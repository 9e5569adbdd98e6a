"""Dates on curves that are drawn by hand; statistics against closed forms and slow exact methods;
the way from a table of measurements to events, on made-up runs whose events are planted."""
import doctest
import functools
import itertools
import math
import random

import numpy as np
import pytest

import emergence
from emergence import (Collapse, EventTable, Permutations, collapse, concordance, emergence_step,
                       event_table, from_table, lead_time, rate_with_interval, risk_set_test)

exercise = pytest.mark.exercise
STEPS = list(range(0, 200, 10))


def curve(*pieces):
    """(value, how often) pairs -> a list."""
    return [v for value, n in pieces for v in [value] * n]


# ------------------------------------------------------------------------------------------------
# Dates on one curve

@exercise(name="emergence.emergence_index")
@pytest.mark.parametrize("accuracy, expected", [
    (curve((0, 10), (1, 10)), 100),                           # a step
    (curve((0, 10), (0.3, 10)), 100),                         # exactly the threshold counts
    (curve((0, 10), (0.29, 10)), None),
    (curve((0, 5), (1, 1), (0, 14)), None),                   # a spike
    (curve((0, 5), (1, 2), (0, 3), (1, 10)), 100),            # two are not enough, three are
    (curve((0, 18), (1, 2)), None),                           # too late to have been seen to last
    (curve((0, 17), (1, 3)), 170),                            # just in time
    (curve((1, 20)), 0),                                      # there from the start
    (curve((0, 5), (1, 3), (0, 12)), 50),                     # learned and lost: it did emerge
    (curve((0, 10), (None, 1), (1, 9)), 110),                 # not measured is not "yes"
    (curve((0, 10), (1, 2), (math.nan, 1), (1, 7)), 130),
    ([], None)])
def test_emergence_is_the_first_of_three_snapshots_in_a_row(accuracy, expected):
    assert emergence_step(STEPS[:len(accuracy)], accuracy) == expected


@exercise(name="emergence.emergence_index")
def test_several_curves_are_dated_at_once():
    curves = np.array([curve((0, 4), (1, 4)), curve((0.5, 2), (0.8, 6)), curve((0.5, 8))])
    assert emergence.emergence_index(curves, 0.5, None, 0.3, 3).tolist() == [4, 2, -1]
    chance = np.array([[0.0], [0.5], [0.1]])                  # each curve has its own
    assert emergence.emergence_index(curves, chance, 1000, 0.3, 3).tolist() == [4, 2, 0]


@exercise(name="emergence.emergence_index")
def test_emergence_is_measured_from_chance():
    rise = [0.5 + i / 40 for i in range(20)]                  # a coin's 0.5, then up to 0.975
    assert emergence_step(STEPS, rise, chance=0.5) == 60      # 0.65 is 30% of the way
    assert emergence_step(STEPS, rise) == 0
    assert emergence_step(STEPS, rise, chance=0.5, threshold=0.5) == 100
    assert emergence_step(STEPS, rise, chance=0.5, persistence=15) is None


@exercise(name="emergence.emergence_index")
def test_few_examples_raise_the_bar():
    """With 20 examples of a coin, 3 standard errors are 0.335 above one half, two thirds of the
    way: 0.8 might be luck."""
    good, better = curve((0.5, 10), (0.8, 10)), curve((0.5, 10), (0.85, 10))
    assert emergence_step(STEPS, good, chance=0.5) == 100
    assert emergence_step(STEPS, good, chance=0.5, examples=20) is None
    assert emergence_step(STEPS, better, chance=0.5, examples=20) == 100


def test_noise_at_chance_does_not_emerge():
    rng, found = np.random.default_rng(0), []
    for _ in range(500):
        accuracy = rng.binomial(1000, 0.5, len(STEPS)) / 1000
        found.append(emergence_step(STEPS, accuracy, 0.5, threshold=0.0, examples=1000))
    assert found.count(None) == 500                           # three beyond 3 errors: 1e-9


@exercise(name="emergence.recovery")
@pytest.mark.parametrize("rank, expected", [
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


@exercise(name="emergence.recovery")
def test_several_curves_recover_at_once():
    nan = math.nan
    smooth = np.array([[9, 8, 2, 2, 2.1, 3, 4, 5], [5, 4, 1, nan, 2, 2, nan, 2],
                       [9, 8, 7, 6, 5, 4, 3, 2], [nan, 3, 3, 3.5, 4, 4, 4, 4]])
    floor, low, onset = emergence.recovery(smooth, 0.2, 2)
    assert floor.tolist() == [2, 1, 2, 3]
    assert low.tolist() == [2, 2, 7, 1]
    assert onset.tolist() == [5, 4, -1, 4]


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
    for never in (None, math.inf, math.nan):
        assert lead_time(never, 50) is lead_time(50, never) is None


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


@exercise(name="emergence.holm")
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


def test_seed_range_leaves_out_what_never_came():
    assert emergence.seed_range([None, 3, 1, 2]) == {"median": 2, "low": 1, "high": 3}
    assert emergence.seed_range([math.nan, 1.5]) == {"median": 1.5, "low": 1.5, "high": 1.5}
    assert emergence.seed_range([None, math.nan]) is None


def logistic(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("rate, tasks_differ, runs_differ", [
    (0.7, 1, 0.5), (0.85, 1, 0.5), (0.7, 2, 0.5), (0.85, 0, 1), (0.7, 1, 0),
    (0.7, 0, 0), (0.85, 0, 0)])                               # 0, 0: independent events
def test_clustered_intervals_cover_the_planted_rate(rate, tasks_differ, runs_differ):
    rng, tasks, covered = np.random.default_rng(1), np.repeat(np.arange(8), 3), 0
    middle = math.log(rate / (1 - rate))
    task, run = rng.normal(size=(2, 400_000))
    truth = logistic(middle + tasks_differ * task + runs_differ * run).mean()
    for _ in range(2000):
        task, run = rng.normal(size=8)[tasks], rng.normal(size=(5, 1))
        p = logistic(middle + tasks_differ * task + runs_differ * run)  # (5, 24)
        events = (rng.random((5, 24)) < p).astype(float)
        _, bottom, top = emergence.clustered_interval(events, tasks)
        covered += bottom <= truth <= top
    assert 0.92 <= covered / 2000 <= 0.98, f"{covered / 2000:.1%} of them cover {truth:.3f}"


def bootstrap_variance(rng, values, n):
    """Variance of the mean of n values drawn anew, as of independent ones."""
    means = values[rng.integers(0, len(values), (20_000, n))].mean(1)
    return means.var() * n / (n - 1)


def test_clustered_interval_has_the_variance_of_a_bootstrap():
    """tasks drawn anew + runs drawn anew - single task x run cells drawn anew, by drawing."""
    stats = pytest.importorskip("scipy.stats")
    rng, tasks = np.random.default_rng(2), np.repeat(np.arange(8), 3)
    x = rng.normal(size=8)[tasks] + rng.normal(size=(6, 1)) + 0.5 * rng.normal(size=(6, 24))
    by_task = x.reshape(6, 8, 3).mean(2)
    variance = (bootstrap_variance(rng, by_task.mean(0), 8)
                + bootstrap_variance(rng, by_task.mean(1), 6)
                - bootstrap_variance(rng, by_task.reshape(-1), 48) * 47 / 48)
    mean, low, high = emergence.clustered_interval(x, tasks, rate=False)
    assert mean == pytest.approx(x.mean())
    error = (high - low) / 2 / stats.t.ppf(0.975, np.linspace(5, 40, 400))      # for each df
    off = abs(error / math.sqrt(variance) - 1)
    assert off.min() < 0.03, "no degrees of freedom reconcile the interval with the bootstrap"


def test_clustered_interval_of_events_that_are_all_alike_is_open_below():
    rate, low, high = emergence.clustered_interval(np.ones((1, 24)), np.repeat(np.arange(8), 3))
    assert rate == high == 1 and low < 0.8
    assert all(map(math.isnan, emergence.clustered_interval(np.full((2, 3), math.nan), "abc")))


def test_students_quantile_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for df in (1, 2, 3, 5, 20):
        exact = stats.t.ppf(0.975, df)
        assert emergence._student_quantile(df) == pytest.approx(exact, rel=0.01)


# ------------------------------------------------------------------------------------------------
# From a table of measurements to runs

def measured(level, step, quantity, value, run="mine"):
    return run, level, step, quantity, value


def test_rows_may_come_in_any_order_as_tuples_or_dicts():
    rows = [measured(level, step, quantity, step + len(level) + len(quantity), run)
            for run in ("a", "b") for level in ("x-1", "long-1") for step in (0, 5, 7)
            for quantity in ("accuracy", "loss")]
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
            for quantity in ("accuracy", "loss"):
                assert np.array_equal(runs[run.name].curves[quantity], run.curves[quantity])


def test_of_two_rows_for_the_same_place_the_last_counts():
    (run,) = from_table([measured("x-1", 0, "accuracy", value) for value in (1, 0.5, 0.25)])
    assert run.accuracy.tolist() == [[0.25]]


def test_none_nan_and_nothing_are_not_measured_and_numbers_may_be_text():
    values = ["0.5", None, math.nan, "", 1]
    (run,) = from_table([measured("x-1", str(k), "accuracy", v) for k, v in enumerate(values)])
    assert np.isnan(run.accuracy[0]).tolist() == [False, True, True, True, False]
    steps, values = run.curve("x-1", "accuracy")
    assert steps.tolist() == [0, 4] and values.tolist() == [0.5, 1]
    steps, values = run.curve("x-1", "never heard of")
    assert len(steps) == len(values) == 0


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
    with pytest.raises(ValueError, match="run 'mine' has a step that is no number"):
        from_table([measured("x-1", math.nan, "accuracy", 1)])


def test_a_table_of_accuracy_alone_gives_emergence_and_no_onset():
    rows = [measured(level, step / 2, "accuracy", min(1, step / 50))            # steps of one half
            for level in ("chess", "go") for step in range(100)]
    runs = from_table(rows)
    events = event_table(runs)
    assert events.emergence.tolist() == [[7.5, 7.5]] and events.tasks == ("chess", "go")
    assert np.isinf(events.onset).all() and np.isnan(events.floor).all()
    assert np.isinf(events.floor_step).all()
    (chess, _) = emergence.medians(events)
    assert (chess["size"], chess["seeds"], chess["emerged"], chess["floor"]) == ("", 1, 1, None)
    found = {(row["quantity"], row["event"]): row["step"] for row in emergence.event_rows(events)}
    assert found == {("rankme", "onset"): None, ("accuracy", "emergence"): 7.5,
                     ("log_prob", "emergence"): None}


def test_what_a_config_lacks_has_a_plain_default():
    first, second = from_table([measured("x-1", 0, "accuracy", 1, run) for run in "ab"],
                               {"b": {"size": "nano", "warmup": 7}})
    assert (first.config["seed"], second.config["seed"]) == (0, 1)
    assert (first.config["size"], second.config["size"]) == ("", "nano")
    assert (first.config["warmup"], second.config["warmup"]) == (0, 7)
    assert math.isnan(first.config["parameters"]) and first.config["train_fraction"] == 1
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
    assert set(run.rankme) == {"first", "last"} and run.rankme["last"].shape == (1, 3, 2)
    assert run.rankme["first"][0, :, 0].tolist() == [500, 502, 510]
    assert run.rankme_at("last", -1)[0].tolist() == [410, 410]
    assert np.isnan(run.rankme_at("answer", -1)).all()


# ------------------------------------------------------------------------------------------------
# From runs to events, on runs whose events are planted

TASKS = ("copy", "reverse", "compare", "parity", "add", "modadd", "sort", "multiply")
LEVELS = tuple(f"{task}-{k}" for task in TASKS for k in (1, 2, 3))


def made_up_run(seed=0, size="nano", parameters=400_000, levels=("add-1", "add-2", "sham-add-1"),
                steps=400, measures=(), **config):
    """A run whose events are planted: add-k collapses to k + 1 at step 30, recovers at 100 k, and
    emerges at 100 k + 60.  Shams never do.  measures: of rare_columns, every 20 steps."""
    name, rows = f"{size}-s{seed}", []
    for step, level in itertools.product(range(0, steps + 1, 10), levels):
        k, sham = int(level[-1]), level.startswith("sham")
        rank = 12.0
        if step >= 30:
            rank = k + 1.0
        if step >= 100 * k and not sham:
            rank = min(12.0, (step - 100 * k) / 10 + 2 * (k + 1.0))
        emerged = not sham and step >= 100 * k + 60
        columns = {"accuracy": 0.95 if emerged else 0.1, "log_prob": -0.1 if emerged else -2.3,
                   "distinct": 100}
        for position in ("first", "answer", "last"):
            layers = [1.0, rank + 1, rank, rank]
            columns |= {f"rankme.{position}.{layer}": x for layer, x in enumerate(layers)}
        if measures and step % 20 == 0:
            columns |= rare_columns(step, 100 * k + 60)
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
    arrays |= {"onset": onset, "emergence": emerged}
    return EventTable(runs, tuple(levels), {}, **arrays)


@pytest.mark.parametrize("k", [1, 2])
def test_the_events_of_a_planted_run_are_found(k):
    events = event_table([made_up_run()])
    at = 0, events.levels.index(f"add-{k}")
    assert (events.floor[at], events.floor_step[at], events.start[at]) == (k + 1, 30, 12)
    assert (events.onset[at], events.emergence[at]) == (100 * k, 100 * k + 60)
    assert (events.ceiling[at], events.down_floor[at], events.shams[at[1]]) == (100, 1, False)
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
    first, second, sham = emergence.medians(event_table(runs))
    assert first["level"] == "add-1" and first["emerged"] == first["rankme_first"] == 3
    assert first["lead"] == {"median": 60, "low": 60, "high": 60}
    assert first["floor_share"]["median"] == 2 / 100 and first["ceiling"] == 100
    assert (second["emerged"], second["seeds"], second["emergence"]["median"]) == (2, 3, 260)
    assert second["final_accuracy"] == {"median": 0.95, "low": 0.1, "high": 0.95}
    assert sham["control"] and sham["emergence"] is sham["lead"] is None


def test_medians_have_the_smallest_size_first():
    runs = [made_up_run(size="micro", parameters=1_300_000), made_up_run()]
    sizes = [row["size"] for row in emergence.medians(event_table(runs))]
    assert sizes == ["nano"] * 3 + ["micro"] * 3


def test_emergence_is_on_unseen_operands_where_there_are_some():
    run = made_up_run(train_fraction=0.4)
    early, late = run.steps >= 50, run.steps >= 300
    run.curves["accuracy_train"] = np.tile(early.astype(float), (3, 1))
    run.curves["accuracy_test"] = np.tile(late.astype(float), (3, 1))
    events = event_table([run])
    assert events.emergence[0].tolist() == [300] * 3
    steps = {(row["level"], row["quantity"]): row["step"] for row in emergence.event_rows(events)}
    assert (steps["add-1", "accuracy_train"], steps["add-1", "accuracy"]) == (50, 300)


def test_event_rows_have_a_row_for_each_event():
    events = event_table([made_up_run(measures=("llc", "hessian_top")), made_up_run(1)])
    rows = emergence.event_rows(events)
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
         warmup=False)])
def test_many_curves_are_dated_as_one_curve_at_a_time(keywords):
    """The arrays of event_table against the functions of one curve, on noisy curves."""
    rng, run = np.random.default_rng(0), made_up_run(warmup=100)
    for values in run.rankme.values():
        values *= rng.uniform(0.8, 1.25, values.shape)
    run.accuracy[:] = np.clip(run.accuracy + rng.normal(0, 0.1, run.accuracy.shape), 0, 1)
    events = event_table([run], **keywords)
    by, start = events.dated_by, 0 if keywords.get("warmup", True) else 10
    steps = run.steps[start:].tolist()
    for k in range(2):
        rank = run.rankme[by["position"]][k, by["layer"], start:]
        slow = collapse(steps, rank, by["smoothing"], by["rise"], by["persistence"])
        emerged = emergence_step(steps, run.accuracy[k, start:], 0.1, by["threshold"],
                                 by["persistence"], 1000)
        fast = Collapse(events.floor[0, k], events.floor_step[0, k], events.onset[0, k])
        assert fast == slow._replace(onset_step=slow.onset_step or math.inf)
        assert events.emergence[0, k] == (emerged or math.inf)


def test_top_down_reads_layers_without_embedding_and_norm():
    assert emergence.top_down([1, 4, 3, 2, 99]) == 1 and emergence.top_down([99, 2, 3, 4, 0]) == 0
    assert emergence.top_down([0, 4, 2, 3, 0]) == pytest.approx(2 / 3)
    assert np.isnan(emergence.top_down([[0, 1, 2], [0, 1, 2]])).tolist() == [True, True]


# ------------------------------------------------------------------------------------------------
# What chance gives

@exercise(name="emergence.p_value")
@pytest.mark.parametrize("values, distance, expected", [
    ([2.0, 1, 3, 2], np.asarray, 0.75),                       # a tie is as far out
    ([5.0] + [0.0] * 99, np.asarray, 0.01),                   # never 0
    ([-3.0, 1, 2, 3], np.abs, 0.5),
    ([0.5, 0.5 - 1e-12, 0.1, 0.2], np.asarray, 0.5),
    ([1.0, math.nan, 2, 0], np.asarray, 0.5),
    ([math.nan, 1, 2], np.asarray, None),
    ([1.0], np.asarray, None)])
def test_p_value_by_counting(values, distance, expected):
    found = emergence.p_value(np.array(values), distance)
    assert found == (expected if expected is None else pytest.approx(expected))


@exercise(name="emergence.precursor_rate")
def test_precursor_rate_by_counting():
    """6 emergences.  As they are: run 0: yes, no, no (never); run 1: no (the same step), yes, no.
    Onsets exchanged 0 <-> 1, 2 <-> 3: run 0: 50 20 no, 10 40 yes, 5 60 yes; run 1: 20 30 yes,
    30 90 yes, 5 70 yes."""
    inf = math.inf
    onset = [[10, 50, 5, inf], [30, 20, inf, 5]]
    events = made_up_events(onset, [[20, 40, inf, 60], [30, 90, 70, inf]], LEVELS[:4])
    exchanged = Permutations(np.array([[0, 1, 2, 3], [1, 0, 3, 2]]), None, None)
    assert emergence.precursor_rate(events, exchanged) == pytest.approx([2 / 6, 5 / 6])
    never = made_up_events(onset, [[inf] * 4] * 2, LEVELS[:4])
    assert np.isnan(emergence.precursor_rate(never, exchanged)).all()


@exercise(name="emergence.shuffles")
def test_shuffles_are_all_equally_likely():
    """3 tasks of one level have 6 orders, 2 runs have 2.  In 6,000 data sets each comes up as often
    as chance has it, to 5 standard errors."""
    levels = ("add-1", "add-2", "copy-1", "sort-1")
    s = emergence.shuffles(levels, 2, 6001, seed=3)
    assert s.tasks.shape == (6001, 4) and s.runs.shape == s.upside_down.shape == (6001, 2)
    assert s.tasks[0].tolist() == [0, 1, 2, 3] and s.runs[0].tolist() == [0, 1]
    assert not s.upside_down[0].any() and (s.tasks[:, 1] == 1).all()
    assert (np.sort(s.tasks, 1) == range(4)).all() and (np.sort(s.runs, 1) == range(2)).all()

    orders, counts = np.unique(s.tasks[1:], axis=0, return_counts=True)
    assert len(orders) == 6 and abs(counts - 1000).max() < 5 * math.sqrt(6000 * 5 / 36), counts
    alike = (s.upside_down[1:, 0] == s.upside_down[1:, 1]).mean()
    for share in (s.runs[1:, 0].mean(), *s.upside_down[1:].mean(0), alike):
        assert abs(share - 0.5) < 5 * math.sqrt(0.25 / 6000)

    again = emergence.shuffles(levels, 2, 6001, seed=3)
    other = emergence.shuffles(levels, 2, 6001, seed=4)
    assert (again.tasks == s.tasks).all() and (other.tasks != s.tasks).any()


@exercise(name="emergence.shuffles")
def test_shuffles_exchange_tasks_within_a_level_alike_in_all_runs():
    levels = [f"{task}-{k}" for task in "abcdefgh" for k in (1, 2, 3)]
    s = emergence.shuffles(levels, 5, 50)
    assert (s.tasks[0] == range(24)).all() and (s.runs[0] == range(5)).all()
    assert not s.upside_down[0].any() and len(np.unique(s.tasks, axis=0)) == 50
    assert (np.sort(s.tasks, 1) == range(24)).all()
    assert (s.tasks % 3 == np.arange(24) % 3).all()


def test_levels_without_a_number_are_exchanged_too():
    s = emergence.shuffles(("chess", "go", "shogi"), 1, 200)
    assert len(np.unique(s.tasks, axis=0)) == 6


# ------------------------------------------------------------------------------------------------
# Measures that are taken at a few snapshots only

def test_a_curve_of_fewer_than_three_values_does_not_rise():
    nan = math.nan
    assert emergence.rise_index(np.array([nan, 1, 2, nan])) == -1
    assert emergence.rise_index(np.full(5, nan)) == -1
    assert emergence.rise_index(np.array([2.0, 2, 2, 2])) == -1
    assert emergence.rise_index(np.array([2.0, nan, 1, 5, 5])) == 3


def test_several_curves_rise_at_once():
    nan = math.nan
    curves = np.array([[9, 1, 2, 4, 5, 9], [1, 2, 3, 4, 5, 6], [5, 4, 3, 2, 1, 0], [nan] * 6])
    assert emergence.rise_index(curves).tolist() == [3, 1, -1, -1]


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(emergence).failed == 0
