"""Dates on curves drawn by hand, statistics against closed forms and slow exact methods, tests and intervals on made-up sweeps in which the
truth is planted, figures that show what they should."""
import doctest
import math

import numpy as np
import pytest

import emergence
from emergence import Choices, collapse, concordance, emergence_step, lead_time, rate_with_interval, risk_set_test

exercise = pytest.mark.exercise
STEPS = list(range(0, 200, 10))


def curve(*pieces):
    """(value, how often) pairs -> a list."""
    return [v for value, n in pieces for v in [value] * n]


@exercise(name="emergence.emergence_index")
@pytest.mark.parametrize("accuracy, expected", [
    (curve((0, 10), (1, 10)), 100),                                    # a step
    (curve((0, 10), (0.3, 10)), 100),                                  # exactly the threshold counts
    (curve((0, 10), (0.29, 10)), None),
    (curve((0, 5), (1, 1), (0, 14)), None),                            # a spike
    (curve((0, 5), (1, 2), (0, 3), (1, 10)), 100),                     # two are not enough, three are
    (curve((0, 18), (1, 2)), None),                                    # too late to have been seen to last
    (curve((0, 17), (1, 3)), 170),                                     # just in time
    (curve((1, 20)), 0),                                               # there from the start
    (curve((0, 5), (1, 3), (0, 12)), 50),                              # learned and lost again: it did emerge
    (curve((0, 10), (None, 1), (1, 9)), 110),                          # not measured is not "yes"
    (curve((0, 10), (1, 2), (math.nan, 1), (1, 7)), 130),
    ([], None)])
def test_emergence_on_made_up_curves(accuracy, expected):
    assert emergence_step(STEPS[:len(accuracy)], accuracy) == expected


@exercise(name="emergence.emergence_index")
def test_emergence_of_several_curves_at_once():
    curves = np.array([curve((0, 4), (1, 4)), curve((0.5, 2), (0.8, 6)), curve((0.5, 8))])
    assert emergence.emergence_index(curves, 0.5, None, 0.3, 3).tolist() == [4, 2, -1]
    chance = np.array([[0.0], [0.5], [0.1]])                           # each curve has its own
    assert emergence.emergence_index(curves, chance, 1000, 0.3, 3).tolist() == [4, 2, 0]


@exercise(name="emergence.emergence_index")
def test_emergence_is_measured_from_chance():
    rise = [0.5 + i / 40 for i in range(20)]                           # a coin's 0.5, then slowly up to 0.975
    assert emergence_step(STEPS, rise, chance=0.5) == 60               # 0.65 is 30% of the way
    assert emergence_step(STEPS, rise) == 0
    assert emergence_step(STEPS, rise, chance=0.5, threshold=0.5) == 100
    assert emergence_step(STEPS, rise, chance=0.5, persistence=15) is None


@exercise(name="emergence.emergence_index")
def test_few_examples_raise_the_bar():
    """With 20 examples of a coin, 3 standard errors are 0.335 above one half, two thirds of the way: 0.8 might be luck."""
    assert emergence_step(STEPS, curve((0.5, 10), (0.8, 10)), chance=0.5) == 100
    assert emergence_step(STEPS, curve((0.5, 10), (0.8, 10)), chance=0.5, examples=20) is None
    assert emergence_step(STEPS, curve((0.5, 10), (0.85, 10)), chance=0.5, examples=20) == 100


def test_noise_at_chance_does_not_emerge():
    rng = np.random.default_rng(0)
    found = [emergence_step(STEPS, rng.binomial(1000, 0.5, len(STEPS)) / 1000, 0.5, threshold=0.0, examples=1000) for _ in range(500)]
    assert found.count(None) == 500                                    # three in a row beyond 3 standard errors: 1e-9


@exercise(name="emergence.recovery")
@pytest.mark.parametrize("rank, expected", [
    (curve((8, 3), (2, 7), (6, 10)), (2, 30, 100)),                    # collapse, floor, recovery
    (curve((8, 3), (2, 17)), (2, 30, None)),                           # never recovers
    (curve((8, 3), (2, 7), (6, 1), (2, 9)), (2, 30, None)),            # a spike is no recovery: the median takes it out
    (curve((8, 3), (2, 7), (6, 2), (2, 8)), (2, 30, None)),            # nor are two
    (curve((8, 3), (2, 15), (6, 2)), (2, 30, None)),                   # too late to have lasted
    (curve((8, 3), (2, 7), (2.3, 10)), (2, 30, None)),                 # 15% is within the wander of a floor
    (curve((8, 3), (2, 7), (2.4, 10)), (2, 30, 100)),                  # 20% is not
    (curve((8, 3), (0.5, 1), (3, 6), (6, 10)), (3, 30, 100)),          # one odd value is no floor
    (curve((2, 5), (8, 15)), (2, 0, 50)),                              # no collapse: floor at the start
    (curve((8, 3), (None, 2), (2, 5), (6, 10)), (2, 40, 100))])        # a gap is bridged by its neighbours' median
def test_collapse_on_made_up_curves(rank, expected):
    found = collapse(STEPS, rank)
    assert found == expected, f"{found} instead of {expected}"


@exercise(name="emergence.recovery")
def test_recovery_of_several_curves_at_once():
    nan = math.nan
    smooth = np.array([[9, 8, 2, 2, 2.1, 3, 4, 5], [5, 4, 1, nan, 2, 2, nan, 2], [9, 8, 7, 6, 5, 4, 3, 2], [nan, 3, 3, 3.5, 4, 4, 4, 4]])
    floor, low, onset = emergence.recovery(smooth, 0.2, 2)
    assert (floor.tolist(), low.tolist(), onset.tolist()) == ([2, 1, 2, 3], [2, 2, 7, 1], [5, 4, -1, 4])


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


def test_running_median_against_the_slow_way():
    values = np.random.default_rng(1).normal(size=30)
    for window in (1, 3, 7):
        half = window // 2
        slow = [float(np.median(values[max(0, i - half):i + half + 1])) for i in range(30)]
        assert emergence.running_median(values, window).tolist() == pytest.approx(slow)


def test_leads_have_signs_and_intervals():
    assert lead_time(50, 70) == 20 and lead_time(70, 50) == -20 and lead_time(None, 50) is lead_time(50, None) is None
    assert emergence.lead_interval([0, 10, 20, 30, 40], 20, 40) == (10, 30)
    assert emergence.lead_interval([0, 10, 20], 20, 20) == (-10, 10)
    assert emergence.lead_interval([0, 10], None, 10) is None


def test_wilson_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for k, n in [(0, 5), (3, 7), (24, 24), (100, 1000)]:
        exact = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert rate_with_interval(k, n) == pytest.approx((k / n, exact.low, exact.high), abs=1e-6)
    assert rate_with_interval(0, 0)[1:] == (0, 1)
    with pytest.raises(ValueError):
        rate_with_interval(3, 2)


def test_concordance_by_counting():
    assert concordance([1, 2, 3], [5, 6, 9]) == 1 and concordance([1, 2, 3], [9, 6, 5]) == 0
    assert concordance([1, 1, 2], [1, 2, 3]) == pytest.approx(2.5 / 3)           # the tie counts one half
    assert math.isnan(concordance([None, None], [1, 2])) and math.isnan(concordance([1], [1]))
    assert concordance([1, None], [1, None]) == 1 and concordance([1, None], [None, 1]) == 0
    assert concordance([1, None, None], [1, 2, 3]) == 1                          # the two that never came have no order
    kendall = pytest.importorskip("scipy.stats").kendalltau
    a, b = np.random.default_rng(2).permutation(12).tolist(), np.random.default_rng(3).permutation(12).tolist()
    assert concordance(a, b) == pytest.approx((kendall(a, b).statistic + 1) / 2)


def test_risk_set_test_by_hand():
    """Four levels.  At t=10 level 0 emerges; at risk are all four, with onsets 5, 20, 5, None: x = 1, 0, 1, 0.
    At t=30 level 1 emerges; at risk 1, 2, 3 with x = 1, 1, 0.  At t=40 level 2; at risk 2, 3 with x = 1, 0."""
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
        z.append(risk_set_test(rng.exponential(1, 30).tolist(), rng.exponential(1, 30).tolist())[0])
    assert abs(np.mean(z)) < 0.15 and 0.85 < np.std(z) < 1.15


def test_risk_set_test_with_ties_is_the_stratified_mantel_haenszel():
    """At each emergence time a 2 x 2 table (onset before or not, emerged now or not): the hypergeometric mean and variance."""
    hypergeom = pytest.importorskip("scipy.stats").hypergeom
    rng = np.random.default_rng(4)
    onset, emerged = rng.integers(0, 9, 25), rng.integers(1, 9, 25)
    U = V = 0
    for t in sorted(set(emerged.tolist())):
        risk = [i for i in range(25) if emerged[i] >= t]
        exposed, now = [i for i in risk if onset[i] < t], [i for i in risk if emerged[i] == t]
        law = hypergeom(len(risk), len(exposed), len(now))
        U += len(set(exposed) & set(now)) - law.mean()
        V += law.var() if len(risk) > 1 else 0
    assert risk_set_test(onset.tolist(), emerged.tolist()) == pytest.approx((U / math.sqrt(V), V))


def made_up_run(seed=0, size="nano", parameters=400_000, levels=("add-1", "add-2", "sham-add-1"), steps=400):
    """A run whose events are planted: add-k collapses to k + 1, recovers at 100 k, emerges at 100 k + 60; the sham never does."""
    schedule = list(range(0, steps + 1, 10))
    config = {"levels": list(levels), "size": size, "seed": seed, "parameters": parameters, "width": 128, "steps": steps, "eval_examples": 1000, "train_fraction": 1.0, "warmup": 0,
              "measures": ["rankme"], "chance": dict.fromkeys(levels, 0.1), "chance_log_prob": dict.fromkeys(levels, -2.3), "answer_tokens": dict.fromkeys(levels, 2)}
    rows = []
    for step in schedule:
        row = {"step": step, "loss": 1.0, "levels": {}}
        for level in levels:
            k, sham = int(level[-1]), level.startswith("sham")
            low, high = k + 1.0, 12.0
            rank = high if step < 30 else low if sham or step < 100 * k else min(high, low + (step - 100 * k) / 10 + low)
            done = not sham and step >= 100 * k + 60
            layers = [1.0, rank + 1, rank, rank]
            row["levels"][level] = {"accuracy": 0.95 if done else 0.1, "log_prob": -0.1 if done else -2.3, "loss": 1.0, "distinct": 100,
                                    "rankme": {"first": layers, "answer": layers, "last": layers}}
        rows.append(row)
    return emergence.tabulate(config, rows)


def test_events_of_a_planted_run():
    by_level = {e["level"]: e for e in emergence.events(made_up_run())}
    for k in (1, 2):
        e = by_level[f"add-{k}"]
        assert (e["floor"], e["floor_step"], e["onset"], e["emergence"], e["lead"]) == (k + 1, 30, 100 * k, 100 * k + 60, 60)
        assert e["emergence_log_prob"] == e["emergence"] and (e["lead_low"], e["lead_high"]) == (50, 70)
        assert e["ceiling"] == 100 and e["floor_share"] == (k + 1) / 100 and e["top_down_floor"] == 1 and not e["control"]
    assert by_level["sham-add-1"]["emergence"] is None and by_level["sham-add-1"]["onset"] is None and by_level["sham-add-1"]["control"]
    answer = emergence.events(made_up_run(), Choices(position="answer"))[0]
    assert answer["ceiling"] == 128                                    # 200 states, but the width is 128


def test_summary_over_seeds_counts_what_never_came():
    runs = [made_up_run(seed) for seed in range(3)]
    config, rows = runs[2].config, runs[2].rows
    for row in rows:
        row["levels"]["add-2"]["accuracy"] = 0.1                       # the third seed does not learn add-2
    runs[2] = emergence.tabulate(config, rows)
    summary = {s["level"]: s for s in emergence.summarise([e for run in runs for e in emergence.events(run)])}
    assert summary["add-1"]["emerged"] == summary["add-1"]["rankme_first"] == 3
    assert summary["add-2"]["emerged"] == 2 and summary["add-2"]["seeds"] == 3 and summary["add-2"]["emergence"]["median"] == 260
    assert summary["sham-add-1"]["emergence"] is None
    assert emergence.seed_range([None, 3, 1, 2]) == (2, 1, 3) and emergence.seed_range([None]) is None


def test_emergence_is_on_unseen_operands_where_there_are_some():
    config, rows = made_up_run().config, made_up_run().rows
    config["train_fraction"] = 0.4
    for row in rows:
        for level in row["levels"].values():
            level["accuracy_train"], level["accuracy_test"] = float(row["step"] >= 50), float(row["step"] >= 300)
    run = emergence.tabulate(config, rows)
    event = emergence.events(run)[0]
    assert (event["memorised"], event["emergence"]) == (50, 300)
    assert len(emergence.figure_curves([run])["curves"].axes[0].lines) > 3


def test_lead_check_counts_runs_apart_and_shams_for_themselves():
    check = lambda runs: emergence.lead_check(emergence.dates(runs), emergence.dates(runs, shams=True))
    one, three = check([made_up_run()]), check([made_up_run(seed) for seed in range(3)])
    z, information = risk_set_test([100, 200], [160, 260])
    assert (one["z"], one["information"]) == pytest.approx((z, information))
    assert three["information"] == pytest.approx(3 * information) and three["shams"] == 3
    assert (one["shams"], one["sham_onsets"], one["sham_emergences"]) == (1, 0, 0)


def test_dates_of_many_runs_are_those_of_one_curve_at_a_time():
    """The arrays of the multiverse against the functions of the first section, on noisy curves and under changed choices."""
    rng, run = np.random.default_rng(0), made_up_run()
    for position in run.rankme:
        run.rankme[position] = run.rankme[position] * rng.uniform(0.8, 1.25, run.rankme[position].shape)
    run.accuracy[:] = np.clip(run.accuracy + rng.normal(0, 0.1, run.accuracy.shape), 0, 1)
    run.config["warmup"] = 100
    for choices in (Choices(), Choices(threshold=0.5, persistence=5, rise=0.5, smoothing=7, position="last", layer=-1, warmup=False)):
        d, start = emergence.dates([run], choices), 0 if choices.warmup else 10
        for k in range(2):
            steps = run.steps[start:].tolist()
            floor, _, onset = collapse(steps, run.rankme[choices.position][k, choices.layer, start:], choices.smoothing, choices.rise, choices.persistence)
            emerged = emergence_step(steps, run.accuracy[k, start:], 0.1, choices.threshold, choices.persistence, 1000)
            assert (d.floor[0, k], d.onset[0, k], d.emergence[0, k]) == (floor, onset or math.inf, emerged or math.inf)


# Made-up sweeps: 8 tasks x 3 levels, later levels later; what tasks do is the same in all runs but for some noise.

LEVELS = tuple(f"{task}-{k}" for task in ("copy", "reverse", "compare", "parity", "add", "modadd", "sort", "multiply") for k in (1, 2, 3))


PLANTED = made_up_run(levels=LEVELS)


def made_up_dates(rng, onsets, runs=5, parameters=None):
    """onsets: emergence (R, L) -> onsets (R, L)."""
    level = np.array([int(name[-1]) for name in LEVELS])
    own = rng.normal(0, 0.7, len(LEVELS))
    emergence_steps = np.round(150 * 2.0 ** (level + own + rng.normal(0, 0.3, (runs, len(LEVELS)))))
    emergence_steps[emergence_steps > 2000] = math.inf
    table = np.ones((runs, len(LEVELS)))
    return emergence.Dates(onsets(level, emergence_steps), emergence_steps, table, table, table, table, tuple(name[:-2] for name in LEVELS),
                           np.array(parameters or [4e5] * runs), [PLANTED] * runs, Choices())


def rejections(onsets, statistic, runs, repetitions=400):
    rng, count = np.random.default_rng(0), 0
    for i in range(repetitions):
        d = made_up_dates(rng, lambda level, emergence_steps: onsets(rng, level, emergence_steps), runs)
        count += emergence.p_value(statistic(d, emergence.shuffles(LEVELS, runs, 200, seed=i))) < 0.05
    return count / repetitions


def own_onsets(rng, level, emergence_steps):
    """Nothing leads: an onset has to do with the level and with the task, but not with when that task emerges."""
    return np.round(60 * 2.0 ** (level + rng.normal(0, 0.7, len(LEVELS)) + rng.normal(0, 0.3, emergence_steps.shape)))


def common_onsets(rng, level, emergence_steps):
    return np.round(30 + rng.normal(0, 5, emergence_steps.shape))


def leading_onsets(rng, level, emergence_steps):
    return np.where(np.isfinite(emergence_steps), emergence_steps - 200, np.inf)


@pytest.mark.parametrize("statistic", [emergence.risk_set_excess, emergence.precursor_rate, emergence.order_correlation])
@pytest.mark.parametrize("runs", [1, 5])
def test_size_and_power_on_planted_sweeps(statistic, runs):
    """Where nothing leads, at most 7% of the tests at 5% say that something does (400 sweeps: two standard errors are 2%); where all lead by 200
    steps, at least 80% do."""
    assert rejections(own_onsets, statistic, runs) <= 0.07
    assert rejections(common_onsets, statistic, runs) <= 0.07
    assert rejections(leading_onsets, statistic, runs, 100) >= 0.8


def test_seeds_are_not_independent_and_only_the_permutations_know():
    """The formula's z adds up over five seeds in which each task does the same again, and cries wolf; hence `risk_set_excess`."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(300):
        d = made_up_dates(rng, lambda level, emergence_steps: own_onsets(rng, np.full(len(LEVELS), 3), emergence_steps))
        U, V = np.sum([emergence.risk_set_sums(*pair) for pair in zip(d.onset, d.emergence)], axis=0)
        alarms += U / math.sqrt(V) > 1.645
    assert alarms / 300 > 0.1


@pytest.mark.parametrize("rate, tasks_differ, runs_differ", [
    (0.7, 1, 0.5), (0.85, 1, 0.5), (0.7, 2, 0.5), (0.85, 0, 1), (0.7, 1, 0), (0.7, 0, 0), (0.85, 0, 0)])                # 0, 0: independent events
def test_intervals_cover_the_planted_rate(rate, tasks_differ, runs_differ):
    rng, labels, covered = np.random.default_rng(1), np.repeat(np.arange(8), 3), 0
    chance = lambda task, run: 1 / (1 + np.exp(-(math.log(rate / (1 - rate)) + tasks_differ * task + runs_differ * run)))
    truth = chance(rng.normal(size=400_000), rng.normal(size=400_000)).mean()
    for _ in range(2000):
        p = chance(rng.normal(size=8)[labels], rng.normal(size=(5, 1)))
        _, bottom, top = emergence.clustered_interval((rng.random((5, 24)) < p).astype(float), labels)
        covered += bottom <= truth <= top
    assert 0.92 <= covered / 2000 <= 0.98, f"{covered / 2000:.1%} of the intervals cover {truth:.3f}"


def test_clustered_interval_has_the_variance_of_a_bootstrap():
    """tasks drawn anew + runs drawn anew - single task x run cells drawn anew, by drawing."""
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(8), 3)
    x = rng.normal(size=8)[labels] + rng.normal(size=(6, 1)) + 0.5 * rng.normal(size=(6, 24))
    by_task = x.reshape(6, 8, 3).mean(2)
    draw = lambda values, n: values[rng.integers(0, len(values), (20_000, n))].mean(1).var() * n / (n - 1)
    cells = by_task.reshape(-1)
    variance = draw(by_task.mean(0), 8) + draw(by_task.mean(1), 6) - draw(cells, 48) * 47 / 48
    mean, low, high = emergence.clustered_interval(x, labels, rate=False)
    assert mean == pytest.approx(x.mean())
    stats = pytest.importorskip("scipy.stats")
    freedom = [df for df in np.linspace(5, 40, 400) if abs((high - low) / 2 / stats.t.ppf(0.975, df) - math.sqrt(variance)) < 0.03 * math.sqrt(variance)]
    assert freedom, "no degrees of freedom reconcile the interval with the bootstrap"
    assert emergence.clustered_interval(np.ones((1, 24)), labels)[0] == 1 and emergence.clustered_interval(np.ones((1, 24)), labels)[1] < 0.8
    for df in (1, 2, 3, 5, 20):
        assert emergence._student(df) == pytest.approx(stats.t.ppf(0.975, df), rel=0.01)


def test_rank_correlation_and_holm_against_other_code():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 6, (2, 4, 15)).astype(float)
    for x, y, rho in zip(a, b, emergence.spearman(emergence.ranks(a), emergence.ranks(b))):
        assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert emergence.ranks(a).tolist() == stats.rankdata(a, axis=1).tolist()
    p = rng.random(7) ** 3
    slow = [max(min(1, (7 - sorted(p).index(q)) * q) for q in p if q <= x) for x in p]
    assert emergence.holm(p.tolist()) == pytest.approx(slow)


@exercise(name="emergence.holm")
@pytest.mark.parametrize("p, expected", [
    ([0.01, 0.04, None, 0.03], [0.03, 0.06, None, 0.06]), ([0.5, 0.4], [0.8, 0.8]), ([0.9, 0.8, 0.7], [1, 1, 1]), ([], []), ([None], [None]),
    ([0.02, 0.001, 0.02], [0.04, 0.003, 0.04]), ([0.011, 0.01, 0.5, 0.2], [0.04, 0.04, 0.5, 0.4])])
def test_holm_by_hand(p, expected):
    given = list(p)
    assert emergence.holm(p) == [e if e is None else pytest.approx(e) for e in expected]
    assert p == given


@exercise(name="emergence.p_value")
@pytest.mark.parametrize("values, extremity, expected", [
    ([2.0, 1, 3, 2], np.asarray, 0.75),                                # a tie is as far out
    ([5.0] + [0.0] * 99, np.asarray, 0.01),                            # never 0
    ([-3.0, 1, 2, 3], np.abs, 0.5), ([0.5, 0.5 - 1e-12, 0.1, 0.2], np.asarray, 0.5),
    ([1.0, math.nan, 2, 0], np.asarray, 0.5), ([math.nan, 1, 2], np.asarray, None), ([1.0], np.asarray, None)])
def test_p_value_by_counting(values, extremity, expected):
    assert emergence.p_value(np.array(values), extremity) == (expected if expected is None else pytest.approx(expected))


def dates_of(onset, emerged):
    rest = [np.zeros((len(onset), len(onset[0])))] * 4
    return emergence.Dates(np.array(onset), np.array(emerged), *rest, ("a",) * len(onset[0]), np.ones(len(onset)), [], Choices())


@exercise(name="emergence.precursor_rate")
def test_precursor_rate_by_counting():
    inf = math.inf
    d = dates_of([[10.0, 50, 5, inf], [30, 20, inf, 5]], [[20.0, 40, inf, 60], [30, 90, 70, inf]])
    # 6 emergences.  Its own onset came before: run 0: yes, no, no (never); run 1: no (the same step), yes, no
    # onsets exchanged 0 <-> 1, 2 <-> 3: run 0: 50 20 no, 10 40 yes, 5 60 yes; run 1: 20 30 yes, 30 90 yes, 5 70 yes
    shuffled = emergence.Shuffles(np.array([[0, 1, 2, 3], [1, 0, 3, 2]]), None, None)
    assert emergence.precursor_rate(d, shuffled) == pytest.approx([2 / 6, 5 / 6])
    never = dates_of([[1.0, 2]], [[inf, inf]])
    assert np.isnan(emergence.precursor_rate(never, emergence.Shuffles(np.array([[0, 1], [1, 0]]), None, None))).all()


@exercise(name="emergence.shuffles")
def test_shuffles_are_all_equally_likely():
    """3 tasks of one level have 6 orders, 2 runs have 2: in 6,000 data sets each comes up as often as chance has it, to 5 standard errors."""
    levels = ("add-1", "add-2", "copy-1", "sort-1")
    s = emergence.shuffles(levels, 2, 6001, seed=3)
    assert s.tasks.shape == (6001, 4) and s.runs.shape == s.upside_down.shape == (6001, 2)
    assert s.tasks[0].tolist() == [0, 1, 2, 3] and s.runs[0].tolist() == [0, 1] and not s.upside_down[0].any()
    assert (s.tasks[:, 1] == 1).all() and (np.sort(s.tasks, 1) == range(4)).all() and (np.sort(s.runs, 1) == range(2)).all()
    orders, counts = np.unique(s.tasks[1:], axis=0, return_counts=True)
    assert len(orders) == 6 and abs(counts - 1000).max() < 5 * math.sqrt(6000 * 5 / 36), counts
    for share in (s.runs[1:, 0].mean(), *s.upside_down[1:].mean(0), (s.upside_down[1:, 0] == s.upside_down[1:, 1]).mean()):
        assert abs(share - 0.5) < 5 * math.sqrt(0.25 / 6000)
    again, other = emergence.shuffles(levels, 2, 6001, seed=3), emergence.shuffles(levels, 2, 6001, seed=4)
    assert (again.tasks == s.tasks).all() and (other.tasks != s.tasks).any()


def test_permutation_p_value_against_scipy_and_all_permutations():
    """One level: 4 tasks, 24 permutations, all of them counted by scipy."""
    stats = pytest.importorskip("scipy.stats")
    levels = ("copy-1", "add-1", "sort-1", "parity-1")
    onset, emerged = np.array([10., 30, 20, 50]), np.array([100., 200, 300, 400])
    exact = stats.permutation_test((emergence.ranks(onset),), lambda x: stats.spearmanr(x, emerged).statistic, permutation_type="pairings", alternative="greater")
    d = emergence.Dates(onset[None], emerged[None], *[onset[None]] * 4, tuple(x[:-2] for x in levels), np.array([1.0]), [made_up_run(levels=levels)], Choices())
    assert emergence.p_value(emergence.order_correlation(d, emergence.shuffles(levels, 1, 20_000))) == pytest.approx(exact.pvalue, abs=0.01)


@exercise(name="emergence.shuffles")
def test_shuffles_exchange_tasks_within_a_level_alike_in_all_runs():
    s = emergence.shuffles(LEVELS, 5, 50)
    assert (s.tasks[0] == range(24)).all() and (s.runs[0] == range(5)).all() and not s.upside_down[0].any()
    assert (np.sort(s.tasks, 1) == range(24)).all() and (s.tasks % 3 == np.arange(24) % 3).all() and len(np.unique(s.tasks, axis=0)) == 50


def test_swap_test_by_counting():
    """Two sizes, three tasks.  a-b turn round between the sizes, and so do their onsets; a-c turn round, and their onsets do not."""
    emerged = np.array([[100., 200, 300], [400, 300, 350]])
    onset = np.array([[10., 20, 30], [25, 20, 30]])
    levels = ("copy-1", "add-1", "sort-1")
    d = emergence.Dates(onset, emerged, *[onset] * 4, tuple(x[:-2] for x in levels), np.array([1., 2]), [made_up_run(levels=levels)] * 2, Choices())
    assert emergence.swap_rate(d, emergence.shuffles(levels, 2, 2000))[0] == 0.5
    random_orders = []
    rng = np.random.default_rng(0)
    for _ in range(300):
        d = made_up_dates(rng, lambda level, e: rng.random(e.shape), 2, [1.0, 2.0])
        random_orders.append(emergence.swap_rate(d, emergence.shuffles(LEVELS, 2, 1))[0])
    assert np.mean(random_orders) == pytest.approx(0.25, abs=0.02)             # an order drawn by lot


def test_difficulty_comes_from_the_other_seeds():
    rng = np.random.default_rng(0)
    d = made_up_dates(rng, lambda level, e: e, 3)
    d.emergence[2] = d.emergence[2, ::-1]                                        # the third run learns in reverse order
    classes = emergence.difficulty(d)
    order = np.argsort(np.median(d.emergence[:2], axis=0), kind="stable")
    assert classes[2, order[0]] == 0 and classes[2, order[-1]] == 2
    assert (emergence.difficulty(made_up_dates(rng, lambda level, e: e, 1)) == -1).all()


def test_rare_measures_are_dated_on_their_own_grid():
    """The LLC rises with emergence, the Hessian a snapshot later, the gradient rank two earlier; the probe knows the answer at 100 k."""
    run = made_up_run(levels=("add-1", "add-2", "copy-1", "copy-2"))
    for row in run.rows[::2]:                                                   # every 20 steps
        for level, columns in row["levels"].items():
            at, step = 100 * int(level[-1]) + 60, row["step"]
            columns |= {"llc": {"mean": -50.0 if step < 20 else 5.0 + 40 * (step >= at)}, "hessian_top": {"eigenvalue": 1.0 + 9 * (step >= at + 20)},
                        "gradient_rank": 10.0 + 9 * (step >= at - 40), "linear_probe": [0.1, 0.1, 0.1 + 0.8 * (step >= at - 60), 0.1], "linear_probe_shuffled": 0.1}
    d = emergence.dates([run])
    s = emergence.shuffles(run.levels, 1, 100)
    found = {row["measure"]: (row["first"], row["same"], row["later_or_never"], row["events"]) for row in emergence.compare_measures(d, s)}
    assert found == {"llc": (0, 4, 0, 4), "hessian_top": (0, 0, 4, 4), "gradient_rank": (4, 0, 0, 4), "linear_probe": (4, 0, 0, 4)}
    (llc,) = [row for row in emergence.compare_measures(d, s) if row["measure"] == "llc"]
    assert (llc["lead_low"], llc["lead_high"], llc["rankme_rate"], llc["snapshots"]) == (-20, 20, 1, 21)
    verdicts = {row["claim"]: row["verdict"] for row in emergence.study([run])["claims"]}
    assert verdicts["C5"] == "holds" and verdicts["C6"] == "holds" and verdicts["C2"].startswith("cannot tell")


def test_floors_of_two_sizes():
    small, large = [made_up_run(s, "nano", 4e5, levels=("add-1", "add-2", "copy-1", "copy-2")) for s in range(3)], []
    for s in range(3):
        run = made_up_run(s, "micro", 1.3e6, levels=("add-1", "add-2", "copy-1", "copy-2"))
        run.rankme = {position: 2 * values for position, values in run.rankme.items()}
        large.append(run)
    d = emergence.dates(small + large)
    assert emergence.floor_ratio(d, emergence.shuffles(run.levels, 6, 500))[0] == pytest.approx(2)
    assert emergence._ratio_interval(d)[0] == pytest.approx(2) and emergence.floors_across_sizes(d)["over_seeds"] == pytest.approx(0)
    claim = {row["claim"]: row for row in emergence.study(small + large)["claims"]}["C2"]
    assert claim["verdict"] == "does not hold" and claim["p"] == pytest.approx(2 / 20, abs=0.03)     # 2 of the 20 ways to choose 3 of 6 runs are as far out


def test_multiverse_goes_through_all_choices_and_says_which_decides(all_choices):
    run = made_up_run(levels=("add-1", "add-2", "copy-1", "copy-2", "sham-add-1"))
    specifications, values = emergence.multiverse([run], 11)
    assert len(specifications) == len(set(specifications)) == math.prod(map(len, emergence.ALTERNATIVES.values())) == 864
    assert {v.shape for v in values.values()} == {(864, 11)}
    for k in (0, 500, 863):                                                     # against the plain way, one choice at a time
        d, s = emergence.dates([run], specifications[k]), emergence.shuffles(run.levels[:-1], 1, 11)
        for claim in emergence.CLAIMS:
            if claim.key in values:
                assert np.array_equal(values[claim.key][k], np.broadcast_to(claim.statistic(d, s), 11), equal_nan=True)
    claim = next(c for c in emergence.CLAIMS if c.key == "C4")
    planted = np.array([[1.0 if c.warmup else 0.0] * 11 for c in specifications])
    found = emergence.robustness(claim, specifications, planted)
    assert (found["share"], found["decides"], found["p_multiverse"]) == (0.5, "warmup", 1)


def test_top_down_reads_layers_without_embedding_and_norm():
    assert emergence.top_down([1, 4, 3, 2, 99]) == 1 and emergence.top_down([99, 2, 3, 4, 0]) == 0
    assert emergence.top_down([0, 4, 2, 3, 0]) == pytest.approx(2 / 3)


def test_figures_draw_every_level_with_its_dates():
    runs = [made_up_run(seed, size, p) for size, p in (("nano", 4e5), ("micro", 1.3e6)) for seed in range(2)]
    figure = emergence.figure_curves(runs)["curves"]
    assert len(figure.axes) == 2 * 2 * 2                               # sizes x levels x (accuracy, RankMe); the sham is drawn in grey
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert sorted(titles) == ["micro   add-1", "micro   add-2", "nano   add-1", "nano   add-2"]
    vertical = [line.get_xdata()[0] for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1]
    assert sorted(vertical) == [100, 160]
    assert len([ax for ax in emergence.figure_layers(runs)["layers"].axes if ax.get_title()]) == 4
    labels = [t.get_text() for t in emergence.figure_floors(runs)["floors"].axes[0].get_legend().get_texts()]
    assert labels == ["add-1", "add-2"]
    joint = [made_up_run(levels=("add-1", "copy-1", "copy-2", "sham-add-1"))]
    assert set(emergence.figure_curves(joint)) == {"curves-nano"}


def test_examples_in_the_docstrings():
    assert doctest.testmod(emergence).failed == 0
