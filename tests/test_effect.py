"""Two arms of runs: planted shifts are found, with the power that is stated, and none where there
is none; the model of censored steps against a slow fit; claims on arms, on made-up arms."""
import functools
import itertools
import math

import numpy as np
import pytest

import emergence
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
    assert verdicts(found) == {"copy-1": "no effect", "copy-2": "cannot tell: never emerges"}
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
    (6, 1.1, 0.13), (6, 1.33, 0.7), (13, 1.1, 0.43), (27, 1.1, 0.75), (5, 2.0, 0.0)])
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
