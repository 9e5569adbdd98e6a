"""Dates on curves drawn by hand, statistics against closed forms and slow exact methods, figures that show what they should."""
import doctest
import math

import numpy as np
import pytest

import emergence
from emergence import Choices, collapse, concordance, emergence_step, lead_time, rate_with_interval, risk_set_test

STEPS = list(range(0, 200, 10))


def curve(*pieces):
    """(value, how often) pairs -> a list."""
    return [v for value, n in pieces for v in [value] * n]


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


def test_emergence_is_measured_from_chance():
    rise = [0.5 + i / 40 for i in range(20)]                           # a coin's 0.5, then slowly up to 0.975
    assert emergence_step(STEPS, rise, chance=0.5) == 60               # 0.65 is 30% of the way
    assert emergence_step(STEPS, rise) == 0
    assert emergence_step(STEPS, rise, chance=0.5, threshold=0.5) == 100
    assert emergence_step(STEPS, rise, chance=0.5, persistence=15) is None


def test_few_examples_raise_the_bar():
    """With 20 examples of a coin, 3 standard errors are 0.335 above one half, two thirds of the way: 0.8 might be luck."""
    assert emergence_step(STEPS, curve((0.5, 10), (0.8, 10)), chance=0.5) == 100
    assert emergence_step(STEPS, curve((0.5, 10), (0.8, 10)), chance=0.5, examples=20) is None
    assert emergence_step(STEPS, curve((0.5, 10), (0.85, 10)), chance=0.5, examples=20) == 100


def test_noise_at_chance_does_not_emerge():
    rng = np.random.default_rng(0)
    found = [emergence_step(STEPS, rng.binomial(1000, 0.5, len(STEPS)) / 1000, 0.5, threshold=0.0, examples=1000) for _ in range(500)]
    assert found.count(None) == 500                                    # three in a row beyond 3 standard errors: 1e-9


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
    config = {"levels": list(levels), "size": size, "seed": seed, "parameters": parameters, "width": 128, "steps": steps, "eval_examples": 1000, "train_fraction": 1.0,
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
    return config, rows


def test_events_of_a_planted_run():
    by_level = {e["level"]: e for e in emergence.events(*made_up_run())}
    for k in (1, 2):
        e = by_level[f"add-{k}"]
        assert (e["floor"], e["floor_step"], e["onset"], e["emergence"], e["lead"]) == (k + 1, 30, 100 * k, 100 * k + 60, 60)
        assert e["emergence_log_prob"] == e["emergence"] and (e["lead_low"], e["lead_high"]) == (50, 70)
        assert e["ceiling"] == 100 and e["floor_share"] == (k + 1) / 100 and e["top_down_floor"] == 1 and not e["control"]
    assert by_level["sham-add-1"]["emergence"] is None and by_level["sham-add-1"]["onset"] is None and by_level["sham-add-1"]["control"]
    answer = emergence.events(*made_up_run(), Choices(position="answer"))[0]
    assert answer["ceiling"] == 128                                    # 200 states, but the width is 128


def test_summary_over_seeds_counts_what_never_came():
    runs = [made_up_run(seed) for seed in range(3)]
    for row in runs[2][1]:
        row["levels"]["add-2"]["accuracy"] = 0.1                       # the third seed does not learn add-2
    summary = {s["level"]: s for s in emergence.summarise([e for run in runs for e in emergence.events(*run)])}
    assert summary["add-1"]["emerged"] == summary["add-1"]["rankme_first"] == 3
    assert summary["add-2"]["emerged"] == 2 and summary["add-2"]["seeds"] == 3 and summary["add-2"]["emergence"]["median"] == 260
    assert summary["sham-add-1"]["emergence"] is None
    assert emergence.seed_range([None, 3, 1, 2]) == (2, 1, 3) and emergence.seed_range([None]) is None


def test_emergence_is_on_unseen_operands_where_there_are_some():
    config, rows = made_up_run()
    config["train_fraction"] = 0.4
    for row in rows:
        for level in row["levels"].values():
            level["accuracy_train"], level["accuracy_test"] = float(row["step"] >= 50), float(row["step"] >= 300)
    event = emergence.events(config, rows)[0]
    assert (event["memorised"], event["emergence"]) == (50, 300)
    assert len(emergence.figure_curves([(config, rows)])["curves"].axes[0].lines) > 3


def test_lead_check_counts_runs_apart_and_shams_for_themselves():
    found = [e for seed in range(3) for e in emergence.events(*made_up_run(seed))]
    one = emergence.lead_check(emergence.events(*made_up_run()))
    z, information = risk_set_test([100, 200], [160, 260])
    assert (one["z"], one["information"]) == pytest.approx((z, information))
    assert emergence.lead_check(found)["information"] == pytest.approx(3 * information) and "cannot tell" in one["verdict"]
    assert (one["shams"], one["sham_onsets"], one["sham_emergences"]) == (1, 0, 0)


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
