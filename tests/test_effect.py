"""Two arms of runs: planted shifts are found, with the power that is stated, and none where there
is none; the model of censored steps against a slow fit; claims on arms, on made-up arms."""
import functools
import io
import itertools
import math

import numpy as np
import pytest
from rich.console import Console

import claims
import emergence
import report
from emergence import Run, censored_shift, effect, paired_mean, sign_flip
from test_emergence import LEVELS

# 60 snapshots up to step 2,000, each some 8% later than the one before
STEPS = np.unique(np.concatenate([[0], np.round(np.geomspace(20, 2000, 60))])).astype(int)
PLATEAU = ("parity-1", "parity-2", "parity-3", "add-1", "modadd-1")


def usual(level):
    """The step at which a level emerges usually: 60 to 800."""
    return 60 * 1.12 ** LEVELS.index(level)


def run_with(seed, emergence_of, levels=LEVELS, size="nano", steps=STEPS, curves=None, **config):
    """A run whose levels emerge at given steps; RankMe, where asked for, as `curves` has it."""
    dates = np.array([emergence_of[level] for level in levels])
    accuracy = np.where(steps >= dates[:, None], 0.95, 0.1)
    config = {"size": size, "seed": seed, "levels": list(levels), **config}
    config = emergence.DEFAULTS | {"chance": dict.fromkeys(levels, 0.1), "width": 128} | config
    return Run(f"{size}-s{seed}", config, list(levels), steps,
               {"accuracy": accuracy, "distinct": np.full(accuracy.shape, 100.0), **(curves or {})})


def arm(rng, pairs, factors=None, noise=0.34, **config):
    """Runs whose steps of emergence differ between seeds as those of results/first-look do, by an
    sd of .34 in each task-level, and by some .12 in their mean."""
    runs = []
    for seed in range(pairs):
        own = rng.normal(0, noise / 3)                          # what a seed does to all levels
        steps = {level: usual(level) * (factors or {}).get(level, 1.0)
                 * math.exp(own + rng.normal(0, noise * math.sqrt(8) / 3)) for level in LEVELS}
        runs.append(run_with(seed, steps, **config))
    return runs


def verdicts(found):
    return {one.level: one.verdict for one in found.levels}


# ------------------------------------------------------------------------------------------------
# One shift by hand

TWO = ("copy-1", "copy-2", "sham-copy-1")


def hand(steps_of, **config):
    """Runs of two levels and a sham, from the steps at which the two emerge in each seed."""
    return [run_with(seed, dict(zip(TWO, (*dates, math.inf))), TWO, **config)
            for seed, dates in enumerate(steps_of)]


def snapshot(step):
    return int(STEPS[np.searchsorted(STEPS, step)])


def test_a_shift_is_the_mean_of_log_ratios_and_never_is_the_end_of_training():
    a, b, c = snapshot(100), snapshot(400), snapshot(900)
    found = effect(hand([(a, b), (b, math.inf)]), hand([(b, b), (c, c)]))
    first = [math.log(b / a), math.log(c / b)]
    second = [0.0, math.log(c / 2000)]
    assert found.end == 2000 and found.pairs == ("nano-s0", "nano-s1")
    assert np.allclose(found.differences, np.transpose([first, second]))
    assert [one.level for one in found.levels] == ["copy-1", "copy-2"]      # shams do not count
    assert [one.emerged for one in found.levels] == [(2, 2), (1, 2)]
    assert found.levels[0].shift == pytest.approx(np.mean(first))
    assert found.mean.shift == pytest.approx(np.mean([first, second]))
    assert found.mean.emerged == (3, 4)
    half = 12.706 * np.std(first, ddof=1) / math.sqrt(2)
    assert found.levels[0].high - found.levels[0].shift == pytest.approx(half, rel=1e-3)


def test_runs_are_paired_by_size_and_seed_whatever_their_order():
    control = hand([(100, 200), (200, 400), (400, 800)])
    treated = [*hand([(400, 800)], size="micro"), *hand([(50, 100), (100, 200), (200, 400)])[::-1]]
    found = effect(control, treated)
    assert found.pairs == ("nano-s0", "nano-s1", "nano-s2")                 # micro has no partner
    assert np.abs(found.differences - math.log(0.5)).max() < 0.1            # half, but for the grid
    with pytest.raises(ValueError, match="no pair of one size and seed"):
        effect(control, treated[:1])


def test_both_arms_are_dated_on_the_snapshots_they_share():
    """A grid of twice as many snapshots dates earlier; 'treated' by that alone, nothing moves."""
    fine = np.arange(0, 2001, 10)
    dates = [(333, 777), (222, 555), (411, 999)]
    coarse = hand(dates, steps=fine[::4])
    found = effect(coarse, hand(dates, steps=fine))
    assert not found.differences.any() and found.mean.verdict == "no effect"
    shorter = hand(dates, steps=fine[:101])                     # up to step 1,000
    assert effect(hand(dates, steps=fine), shorter).end == 1000


def test_no_effect_needs_a_narrow_interval_and_what_never_emerges_tells_nothing():
    same = [(100, math.inf)] * 6
    found = effect(hand(same), hand(same))
    assert verdicts(found) == {"copy-1": "no effect", "copy-2": "never emerges"}
    assert found.levels[1].p is None
    one = effect(hand(same[:1]), hand([(200, math.inf)]))
    assert one.mean.verdict == "cannot tell" and one.mean.p is None and one.mean.needed is None
    assert math.isnan(one.mean.low)
    twice = effect(hand(same), hand([(200, math.inf)] * 6))
    assert verdicts(twice)["copy-1"] == "later" and twice.mean.verdict == "later"
    assert twice.mean.p == 2 / 64


def test_sign_flips_are_counted_one_by_one():
    differences = np.array([0.3, -0.1, 0.4, 0.2, -0.05])
    means = [abs(np.mean(signs * differences)) for signs in itertools.product((1, -1), repeat=5)]
    assert sign_flip(differences) == np.mean(np.array(means) >= abs(differences.mean()) - 1e-12)
    assert sign_flip(np.ones(6)) == 2 / 64 and sign_flip(np.ones(5)) > 0.05
    assert sign_flip(np.ones(1)) is None


def test_a_paired_mean_is_students_t_as_scipy_has_it():
    stats = pytest.importorskip("scipy.stats")
    x = np.array([0.3, -0.1, 0.4, 0.2, -0.05, 0.6])
    found, exact = paired_mean(x), stats.ttest_1samp(x, 0)
    assert found.p == pytest.approx(exact.pvalue, abs=1e-6)
    for level, half in ((0.95, found.half), (0.9, found.half90)):
        low, high = exact.confidence_interval(level)
        assert (found.mean - half, found.mean + half) == pytest.approx((low, high), abs=1e-5)
    assert paired_mean(np.full(3, 0.2), least_sd=0.1).sd == 0.1             # a coarse grid


def test_the_censored_model_is_the_likeliest_as_scipy_finds_it():
    """Four intervals in one arm, three and one still to come in the other."""
    stats, optimize = (pytest.importorskip(f"scipy.{name}") for name in ("stats", "optimize"))
    low = np.array([[4.0, 4.3, 4.1, 4.6], [5.0, 5.2, 4.7, 5.5]])
    high = np.array([[4.2, 4.5, 4.4, 4.9], [5.1, 5.4, 4.9, np.inf]])

    def loss(x):
        mean, sd = np.array([[x[0]], [x[1]]]), math.exp(x[2])
        inside = stats.norm.cdf((high - mean) / sd) - stats.norm.cdf((low - mean) / sd)
        return -np.log(inside).sum()

    best = optimize.minimize(loss, (4.3, 5.2, -1.0), method="Nelder-Mead",
                             options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 5000}).x
    found = censored_shift(low[..., None], high[..., None])
    assert found == pytest.approx(best[1] - best[0], abs=1e-3)
    high[1] = np.inf
    assert np.isnan(censored_shift(low[..., None], high[..., None]))        # one arm never emerges


# ------------------------------------------------------------------------------------------------
# 200 made-up sweeps: alarms where nothing moves, power where something does

@functools.lru_cache
def sweeps(pairs, factor=1.0, named=LEVELS, repetitions=200):
    """Effects of made-up sweeps in which the named levels emerge at `factor` of their usual step.

    Without RankMe and the model of censored steps, which take most of the time."""
    rng, factors = np.random.default_rng(pairs), dict.fromkeys(named, factor)
    with pytest.MonkeyPatch.context() as patched:
        nothing = np.full(len(LEVELS), math.nan)
        there = dict.fromkeys(("onset", "floor", "floor_step", "start", "ceiling"), nothing)
        patched.setattr(emergence, "geometry", lambda *_, **__: there)
        patched.setattr(emergence, "censored_shift", lambda low, high: nothing)
        return [effect(arm(rng, pairs), arm(rng, pairs, factors)) for _ in range(repetitions)]


def test_no_effect_is_found_where_there_is_none():
    """At .05: two standard errors over 200 sweeps are 3%.  Over all levels together, one sweep in
    twenty has a false alarm at most, but for chance."""
    found = sweeps(6)
    of_mean = np.mean([one.mean.p < 0.05 for one in found])
    of_any = np.mean([any(x.p < 0.05 for x in one.levels) for one in found])
    covered = np.mean([one.mean.low <= 0 <= one.mean.high for one in found])
    print(f"mean {of_mean:.3f}, any level {of_any:.3f}, interval covers 0 in {covered:.3f}")
    assert of_mean <= 0.08 and of_any <= 0.08 and 0.92 <= covered <= 0.98


@pytest.mark.parametrize("pairs, factor, expected", [
    (6, 1.1, 0.13), (6, 1.33, 0.7), pytest.param(13, 1.1, 0.43, marks=pytest.mark.slow),
    (27, 1.1, 0.75), (5, 2.0, 0.0)])
def test_power_of_the_mean(pairs, factor, expected):
    """Seeds as those of results/first-look, nothing in common between the runs of a pair: a shift
    of 10% takes some 30 pairs, six show one of a third.  Five show nothing at all: 2 / 32 > .05."""
    found = sweeps(pairs, factor)
    share = np.mean([one.mean.verdict == "later" for one in found])
    needed = np.median([one.mean.needed for one in found])
    print(f"{pairs} pairs, factor {factor}: later in {share:.2f}; {needed} pairs are said to do")
    assert share == pytest.approx(expected, abs=0.1)            # three standard errors over 200
    assert 25 <= needed <= 35 and not any(one.mean.verdict == "earlier" for one in found)


def test_power_of_a_level_after_holms_correction_over_24():
    """Six pairs find a level that comes three times sooner in half of the sweeps, four times in
    three of four; and they say nothing wrong of the other nineteen."""
    for factor, expected in ((1 / 3, 0.55), (1 / 4, 0.78)):
        found = [verdicts(one) for one in sweeps(6, factor, PLATEAU)]
        share = np.mean([[one[level] == "earlier" for level in PLATEAU] for one in found])
        wrong = np.mean([any(verdict in ("earlier", "later") for level, verdict in one.items()
                             if level not in PLATEAU) for one in found])
        print(f"factor {factor:.2f}: earlier in {share:.2f}, an alarm elsewhere in {wrong:.2f}")
        assert share == pytest.approx(expected, abs=0.08) and wrong <= 0.08


def test_equivalence_is_rarely_said_of_what_moves():
    """With a shift of just 10%, "no effect" is wrong, and said in one of twenty sweeps at most."""
    found = sweeps(27, 1.1)
    assert np.mean([one.mean.verdict == "no effect" for one in found]) <= 0.05 + 0.03
    quiet = np.random.default_rng(0)
    calm = [effect(arm(quiet, 6, noise=0.06), arm(quiet, 6, noise=0.06)) for _ in range(5)]
    assert all(one.mean.verdict == "no effect" for one in calm)


# ------------------------------------------------------------------------------------------------
# Claims on arms, on arms in which the truth is planted

SHAM = "sham-add-1"
FOUR = ("parity-1", "add-1", "copy-1", "copy-2")
USUAL = {"parity-1": 600, "add-1": 500, "copy-1": 90, "copy-2": 150, SHAM: math.inf}


def rank_of(emergence, floor, start=6.0, low_until=None):
    """RankMe of one level: down to its floor by step 40, up by half of the way to emergence."""
    up = 0.6 * emergence if low_until is None else low_until
    curve = np.where(STEPS < 40, start + (floor - start) * STEPS / 40, floor)
    return np.where(STEPS >= up, 12.0, curve)


def planted_arm(pairs, factors=None, floor=2.0, centred=4.0, low_until=None, seed=0, **config):
    """Runs of four levels and a sham; `factors` move their emergence, `floor` is RankMe's."""
    rng, runs, levels = np.random.default_rng(seed), [], (*FOUR, SHAM)
    for number in range(pairs):
        dates = {level: step * (factors or {}).get(level, 1.0) * math.exp(rng.normal(0, 0.1))
                 for level, step in USUAL.items()}
        curves = {}
        for name, bottom in (("rankme.first", floor), ("rankme_centred", centred)):
            rank = np.array([rank_of(dates[level], bottom, low_until=low_until)
                             for level in levels])
            curves |= {f"{name}.{layer}": rank for layer in range(4)}
        runs.append(run_with(number, dates, levels, curves=curves, **config))
    return runs


def claim_rows(found):
    return {(row["claim"], row["treated"]): row for row in found["claims"]}


def test_arms_are_told_apart_by_their_config_alone():
    runs = [run_with(0, USUAL, (*FOUR, SHAM), **config) for config in (
        {}, {"intervene": "", "strength": 0.3}, {"intervene": "rank-up", "strength": 0.3},
        {"intervene": "rank-up", "until": 300}, {"filler": 3, "filler_shuffled": 1},
        {"filler": 0, "filler_shuffled": 1}, {"filler": 0}, {"lr": 1.0, "intervene": "placebo"})]
    (arms,) = claims.experiments(runs)                          # another learning rate is no arm
    assert sorted(map(str, arms)) == ["filler 0", "filler 3 shuffled", "none", "rank-up 0.3",
                                      "rank-up until 300"]
    assert [len(arms[claims.Arm()]), len(arms[claims.Arm(filler=0)])] == [2, 2]
    assert claims.experiments(runs[:2]) == []


def test_each_arm_is_held_against_its_control():
    Arm = claims.Arm
    arms = {Arm(), Arm("placebo"), Arm("rank-up", 0.3), Arm("rank-up"), Arm(filler=0),
            Arm(filler=3), Arm(filler=3, filler_shuffled=1), Arm("marginal")}
    expected = {(Arm("rank-up"), ""): Arm(), (Arm("rank-up", 0.3), ""): Arm(),
                (Arm("rank-up", 0.3), "placebo"): Arm("placebo"),
                (Arm(filler=3), ""): Arm(filler=0), (Arm(filler=0), ""): Arm(), (Arm(), ""): None,
                (Arm(filler=3), "shuffled"): Arm(filler=3, filler_shuffled=1),
                (Arm(filler=3, filler_shuffled=1), "shuffled"): None,
                (Arm("marginal"), "wrong-marginal"): None}
    for (arm, against), control in expected.items():
        assert claims.control_of(arm, arms, against) == control, (arm, against)
    both = {*arms, Arm("placebo", 0.3)}
    assert claims.control_of(Arm("rank-up", 0.3), both, "placebo") == Arm("placebo", 0.3)


def test_arms_are_drawn_of_the_sizes_that_all_of_them_have(monkeypatch):
    """Of five sizes without an intervention and one with it, that one is compared."""
    drawn = []
    monkeypatch.setattr(report, "figure_arms", lambda experiments: drawn.extend(experiments) or {})
    runs = [*planted_arm(2), *planted_arm(2, size="other"), *planted_arm(2, intervene="rank-up")]
    report.draw_arms(runs, [], {})
    (arms,) = drawn
    assert {name: {one.config["size"] for one in events.runs} for name, events in arms.items()} == {
        "none": {runs[0].config["size"]}, "rank-up": {runs[0].config["size"]}}


def test_a_collapse_that_frequencies_spare_holds_and_one_that_they_do_not_does_not():
    """RankMe starts at 6: a floor of 2 is a fall of log 3; one of 4, log 1.5, spares .63 of it."""
    none = planted_arm(4)
    for floor, verdict, share in ((4.0, "holds", 1 - math.log(1.5) / math.log(3)),
                                  (2.2, "does not hold", None)):
        runs = [*none, *planted_arm(4, floor=floor, seed=1, intervene="marginal"),
                *planted_arm(4, floor=1.5, seed=2, intervene="wrong-marginal")]
        row = claim_rows(claims.study_arms(runs))["C11", "marginal"]
        assert row["verdict"] == verdict and row["control"] == "none" and row["pairs"] == 4
        assert row["control_value"] == pytest.approx(math.log(3), abs=0.01)
        assert share is None or row["mean"] == pytest.approx(share, abs=0.01)
        assert row["centred"]["mean"] == pytest.approx(0, abs=0.01)         # its floor is the same
        assert row["centred"]["verdict"] == "does not hold"
    wrong = claim_rows(claims.study_arms(runs))["C11 wrong", "marginal"]
    assert wrong["control"] == "wrong-marginal" and wrong["verdict"] == "holds"
    assert wrong["mean"] == pytest.approx(math.log(1.5 / 2.2), abs=0.01)


def test_levels_that_emerge_without_recovery_are_counted():
    """Held down up to step 550: parity-1 at 600 has recovered by then, the others have not."""
    none = planted_arm(6)
    held = planted_arm(6, low_until=550, seed=0, centred=3.0, intervene="rank-down")
    row = claim_rows(claims.study_arms([*none, *held]))["C12", "rank-down"]
    late = [run.curves["accuracy"][1].argmax() for run in held]             # add-1, around 500
    in_time = sum(STEPS[k] < STEPS[np.searchsorted(STEPS, 550)] for k in late)
    assert row["treated_value"] == row["mean"] == 2 + (in_time >= 4) and in_time >= 4
    assert row["verdict"] == "holds" and row["centred"]["verdict"] == "does not hold"
    assert row["centred"]["mean"] == 0                          # centred never below 2.5
    five = claims.study_arms([*none[:5], *held[:5]])
    assert claim_rows(five)["C12", "rank-down"]["verdict"] == "cannot tell: 5 of 6 pairs"
    free = claims.study_arms([*none, *planted_arm(6, intervene="rank-down")])
    assert claim_rows(free)["C12", "rank-down"]["verdict"] == "does not hold"


def test_what_waits_on_a_plateau_is_moved_against_a_placebo():
    sooner = {"parity-1": 0.4, "add-1": 0.4, "copy-1": 1.5, "copy-2": 1.5}
    runs = [*planted_arm(6), *planted_arm(6, sooner, seed=1, intervene="rank-up"),
            *planted_arm(6, sooner, seed=2, intervene="rank-up", strength=0.3),
            *planted_arm(6, seed=3, intervene="placebo")]
    found = claims.study_arms(runs)
    rows = claim_rows(found)
    for arm in ("rank-up", "rank-up 0.3"):
        assert rows["C13", arm]["verdict"] == rows["C13 others", arm]["verdict"] == "holds"
        assert rows["C13", arm]["control"] == "placebo"
        assert rows["C13", arm]["mean"] == pytest.approx(math.log(0.4), abs=0.15)
    effects = {(row["treated"], row["control"]): row for row in found["effects"]}
    assert set(effects) == {("rank-up", "none"), ("rank-up", "placebo"), ("placebo", "none"),
                            ("rank-up 0.3", "none"), ("rank-up 0.3", "placebo")}
    levels = {row["level"]: row["verdict"] for row in effects["rank-up", "none"]["levels"]}
    assert levels["parity-1"] == "earlier" and levels["copy-1"] == "later"
    as_placebo = claims.study_arms([*runs[:6], *planted_arm(6, sooner, seed=1, intervene="rank-up"),
                                    *planted_arm(6, sooner, seed=3, intervene="placebo")])
    assert claim_rows(as_placebo)["C13", "rank-up"]["verdict"] != "holds"


def test_precursors_that_stay_and_that_vanish_among_text():
    """Without recovery before emergence, the share falls from 1 to 0."""
    none = planted_arm(4, filler=0)
    same = planted_arm(4, {"parity-1": 0.5, "add-1": 0.5}, seed=1, filler=3)
    late = planted_arm(4, low_until=1500, seed=2, filler=10)
    shuffled = planted_arm(4, seed=3, filler=3, filler_shuffled=1)
    rows = claim_rows(claims.study_arms([*none, *same, *late, *shuffled]))
    assert (rows["C14", "filler 3"]["verdict"], rows["C14", "filler 10"]["verdict"]) == (
        "holds", "does not hold")
    assert rows["C14", "filler 10"]["control_value"] == 1 and rows["C14", "filler 10"]["mean"] == -1
    assert rows["C14 text", "filler 3"]["verdict"] == "holds"
    assert rows["C14 text", "filler 3"]["control"] == "filler 3 shuffled"
    assert ("C14 text", "filler 3 shuffled") not in rows        # that is its own control
    shares = claims.study_arms([*planted_arm(4, low_until=1500, filler=0), *late])
    assert claim_rows(shares)["C14", "filler 10"]["verdict"] == (
        "cannot tell: there is too little to lose")             # 0 without text as well
    one = claims.study_arms([*none, *late[:1]])
    assert claim_rows(one)["C14", "filler 10"]["verdict"] == "cannot tell: 1 of 2 pairs"


def test_gains_are_compared_task_by_task():
    none, text = planted_arm(3, filler=0), planted_arm(3, seed=1, filler=3)
    with pytest.MonkeyPatch.context() as patched:
        each = iter(({"parity": 0.1, "add": 0.2}, {"parity": 0.1, "add": 0.1, "copy": 0.3}) * 3)
        patched.setattr(claims, "forecast", lambda *_, **__: emergence.Forecast(
            0, 0, 0, None, next(each), 1, 1, (), "task"))
        row = claim_rows(claims.study_arms([*none, *text]))["C14 forecast", "filler 3"]
    assert row["control_value"] == pytest.approx(0.3) and row["treated_value"] == pytest.approx(0.5)
    assert row["mean"] == pytest.approx(0.2) and row["verdict"].startswith("cannot tell")


def test_every_claim_says_in_which_two_ways_it_could_fail():
    for claim in claims.ARM_CLAIMS:
        assert len(claim.fails) == len(set(claim.fails)) == 2 and all(claim.fails)


def test_arms_without_a_common_seed_and_without_rankme_say_so():
    apart = [*arm(np.random.default_rng(0), 2), *arm(np.random.default_rng(0), 2, size="micro",
                                                     intervene="marginal")]
    assert claims.study_arms(apart) == {"effects": [], "claims": []}
    rng = np.random.default_rng(0)
    blind = claims.study_arms([*arm(rng, 3), *arm(rng, 3, intervene="marginal")])
    assert claim_rows(blind)["C11", "marginal"]["verdict"].startswith("cannot tell: not measured")
    text = [planted_arm(3, filler=filler) for filler in (0, 3)]
    for run in [*text[0], *text[1]]:
        run.curves = {name: x for name, x in run.curves.items() if "centred" not in name}
    row = claim_rows(claims.study_arms(text[0] + text[1]))["C14", "filler 3"]
    assert row["verdict"] == "holds" and row["centred"]["verdict"].startswith("cannot tell: not")


# ------------------------------------------------------------------------------------------------
# What a reader sees of arms

def test_figures_of_arms_show_every_arm_and_shift():
    runs = [*planted_arm(3), *planted_arm(3, {"add-1": 0.5}, floor=3.0, intervene="rank-up")]
    study = claims.study_arms(runs)
    tables = [{str(arm): emergence.event_table(among).only() for arm, among in arms.items()}
              for arms in claims.experiments(runs)]
    (figure,) = report.figure_arms(tables).values()
    panels = {ax.get_title(): ax for ax in figure.axes}
    assert list(panels) == ["parity", "add", "copy"]
    curves = [line for line in panels["copy"].lines if len(line.get_xdata()) > 1]
    dots = [line for line in panels["copy"].lines if len(line.get_xdata()) == 1]
    assert [line.get_ydata().min() for line in curves] == pytest.approx([2.0, 3.0])
    steps = [np.median(table.emergence[:, table.levels.index(level)])
             for table in tables[0].values() for level in ("copy-1", "copy-2")]
    assert [line.get_xdata()[0] for line in dots] == steps      # of each arm, both levels

    (figure,) = report.figure_shifts(study["effects"]).values()
    panels = {ax.get_title(): ax for ax in figure.axes}
    one = next(x for x in study["effects"][0]["levels"] if x["level"] == "add-1")
    line, dot = panels["add"].lines
    assert dot.get_markerfacecolor() == dot.get_color(), "it emerges in every run"
    assert dot.get_xdata()[0] == pytest.approx(math.exp(one["shift"])) and 0.4 < math.exp(
        one["shift"]) < 0.6
    assert list(line.get_xdata()) == pytest.approx([math.exp(one["low"]), math.exp(one["high"])])
    assert [label.get_text() for label in panels["parity"].get_yticklabels()] == ["rank-up / none"]


def test_effects_fit_into_80_columns_a_line_for_each_level():
    """Two pairs have the widest intervals, and a level that never emerges the longest verdict."""
    names = ("multiply-1", "multiply-2")
    arms = [[run_with(seed, dict(zip(names, (seed * 500 + first, math.inf))), names, **config)
             for seed in range(2)]
            for first, config in ((100, {}), (900, {"intervene": "wrong-marginal", "until": 300}))]
    effects = claims.study_arms(arms[0] + arms[1])["effects"]
    screen = io.StringIO()
    tables = [report.text_table(rows, title) for title, rows in report.effect_tables(effects)]
    Console(width=80, file=screen).print(*tables, sep="\n")
    lines = [line.rstrip() for line in screen.getvalue().splitlines() if line.strip()]
    assert [line.split()[0] for line in lines] == [
        "wrong-marginal", "task-level", "mean", "multiply-1", "multiply-2"]
    assert lines[0] == "wrong-marginal until 300 / none: 2 pairs, up to step 2,000"
    (figure,) = report.figure_shifts(effects).values()
    line, dot = figure.axes[0].lines                            # of the one level that emerges
    assert dot.get_marker() == "o" and dot.get_markerfacecolor() == dot.get_color()
    assert lines[-1].endswith("never emerges") and lines[-1].split()[1:4] == ["0", ">", "0"]


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_factor_is_hollow_where_a_run_of_either_arm_does_not_emerge(lacking):
    late = {(1, lacking): math.inf}
    runs = [run_with(seed, {"add-2": 400, "add-3": late.get((seed, arm), 500)}, ("add-2", "add-3"),
                     **config)
            for arm, config in enumerate(({}, {"intervene": "marginal"})) for seed in range(2)]
    (figure,) = report.figure_shifts(claims.study_arms(runs)["effects"]).values()
    faces = {line.get_marker(): line.get_markerfacecolor()
             for line in figure.axes[0].lines if len(line.get_xdata()) == 1}
    assert faces["^"] == "white" != faces["s"] and len(faces) == 2          # by the level's number
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["level 2", "level 3"]


def test_claims_on_arms_say_what_was_found_and_how_they_could_have_failed():
    runs = [*planted_arm(4), *planted_arm(4, floor=4.0, seed=1, intervene="marginal")]
    lines = report.arm_claim_lines(claims.study_arms(runs)["claims"])
    (first, found) = lines
    assert first.startswith("C11: most of the early collapse") and "It could fail: less" in first
    assert found.startswith("C11, marginal / none, 4 pairs: 0.63 +- 0.0")
    assert "holds; of centred states" in found and found.endswith("does not hold")
