"""How many tasks and seeds would show a small lead?  `python tests/power.py results/all` simulates.

A lead is a precursor rate above what exchanged tasks give (claims.precursor_rate).  Here sweeps are
made up in which that excess is .05 on average, and the share of them is counted in which the test
sees it: p < .05 over exchanges of whole tasks.

Dates are made as those of the given sweep lie at its smallest size, in log steps:

    date[t, k, r] = level k + task t + (task t at level k) + (run r of it)

All three deviations are normal, with standard deviations fitted to the sweep (analysis of variance;
what never came is left out).  Onsets and emergences share nothing but this: the deviations of a
task correlate by rho.  rho is what makes the excess .05.  Letters: T tasks, K levels, R runs.
"""
import functools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import claims
import emergence

EXCESS, SIZES, SEEDS = 0.05, (8, 16, 24), (1, 3, 5, 10)


def in_logs(dates):
    """(T, K, R) steps -> logs; NaN for what never came, or was there from the start."""
    return np.log(np.where(np.isfinite(dates) & (dates > 0), dates, np.nan))


def fit(dates):
    """(T, K, R) steps -> (means of the levels (K,), deviations of task, level and run)."""
    x = in_logs(dates)
    x = x[np.isfinite(x).sum(2).min(1) > 1]                     # tasks with two dates at each level
    if len(x) < 3:
        raise ValueError("fewer than three tasks have two dates at every level")
    means = np.nanmean(x, axis=(0, 2))                                      # (K,)
    cells = np.nanmean(x - means[:, None], axis=2)                          # (T, K)
    run = np.nanvar(x, axis=2, ddof=1).mean()
    per_cell = np.isfinite(x).sum(2).mean()
    level = max(cells.var(axis=1, ddof=1).mean() - run / per_cell, 0)
    task = max(cells.mean(1).var(ddof=1) - level / x.shape[1], 0)
    return means, np.sqrt([task, level, run])


def grid(events, dates):
    """(R, L) dates of an EventTable -> (T, K, R); NaN where a task lacks a level."""
    names, levels = list(dict.fromkeys(events.tasks)), sorted({k[-1] for k in events.levels})
    found = np.full((len(names), len(levels), len(dates)), np.nan)
    for column, level in enumerate(events.levels):
        found[names.index(events.tasks[column]), levels.index(level[-1])] = dates[:, column]
    return found


def made_up(rng, fits, rho, T, R):
    """Onsets and emergences, (T, K, R) each, of one sweep: logs of steps."""
    K, dates = len(fits[0][0]), []
    shared = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], T)       # (T, 2)
    for (means, (task, level, run)), own in zip(fits, shared.T):
        noise = level * rng.normal(size=(T, K, 1)) + run * rng.normal(size=(T, K, R))
        dates.append(means[:, None] + (task * own)[:, None, None] + noise)
    return dates


def excess_and_p(onset, arrival, drawn):
    """-> (rate above its null, p), over exchanges of whole tasks `drawn` (M, T)."""
    first = (onset[None] < arrival[:, None]).mean((2, 3))                   # (T, T): [j, i]
    rates = emergence.exchanged(first, drawn) / len(first)
    return rates[0] - rates.mean(), (rates >= rates[0] - 1e-12).mean()


@functools.cache
def some_exchanges(T, count=2000):
    """As emergence.exchanges draws them, but no more than `count`, which is enough for p = .05."""
    drawn = np.tile(np.arange(T), (count, 1))
    drawn[1:] = np.random.default_rng(0).permuted(drawn[1:], axis=1)
    return drawn


def power(fits, rho, T, R, sweeps=400, seed=0):
    """-> (mean excess, share of made-up sweeps with p < .05)."""
    rng, drawn = np.random.default_rng(seed), some_exchanges(T)
    found = [excess_and_p(*made_up(rng, fits, rho, T, R), drawn) for _ in range(sweeps)]
    excess, p = np.array(found).T
    return excess.mean(), (p < 0.05).mean()


def correlation_for(fits, excess, T=8, R=5):
    """The rho at which the mean excess is that; NaN if none is."""
    low, high = 0.0, 0.999
    if power(fits, high, T, R)[0] < excess:
        return np.nan
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if power(fits, middle, T, R)[0] < excess else (low, middle)
    return (low + high) / 2


def correlation_of(events):
    """Of the tasks' deviations of onset and emergence, as the sweep has them."""
    sides = [in_logs(grid(events, dates)) for dates in (events.onset, events.arrivals)]
    both = np.isfinite(sides[0]) & np.isfinite(sides[1])
    sides = [np.where(both, x, np.nan) for x in sides]
    tasks = both.any((1, 2))
    return np.corrcoef(*[np.nanmean(x - np.nanmean(x, axis=(0, 2))[:, None], axis=(1, 2),
                                    where=both)[tasks] for x in sides])[0, 1]


def main(folder):
    import run
    events = emergence.event_table(run.select(Path(folder))[0]).only()
    events = events.subset(runs=claims.by_size(events)[0])
    fits = [fit(grid(events, dates)) for dates in (events.onset, events.arrivals)]
    for name, (means, (task, level, one)) in zip(("onset", "emergence"), fits):
        print(f"{name}: levels at steps {', '.join(f'{s:.0f}' for s in np.exp(means))}; log sd "
              f"between tasks {task:.2f}, levels of one {level:.2f}, runs {one:.2f}")
    print(f"rho {correlation_of(events):.2f} in this sweep")
    rho = correlation_for(fits, EXCESS)
    print(f"rho {rho:.2f} makes the rate {EXCESS} above its null, on average over 400 sweeps")
    print(f"{'tasks':>6}", *(f"{R:>3} runs" for R in SEEDS), "  without a lead")
    for T in SIZES:
        shares = [power(fits, rho, T, R)[1] for R in SEEDS]
        null = power(fits, 0.0, T, 5, seed=1)[1]
        print(f"{T:6}", *(f"{share:8.2f}" for share in shares), f"{null:8.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
