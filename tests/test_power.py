"""The simulation of power, on made-up dates whose deviations and lead are known."""
import numpy as np
import pytest

import power

FITS = [([4.4, 4.4, 4.5], (1.2, 0.4, 0.5)), ([5.1, 6.1, 6.3], (0.5, 0.4, 0.3))]
FITS = [(np.array(means), np.array(deviations)) for means, deviations in FITS]


def test_the_deviations_of_made_up_dates_are_found_again():
    dates = power.made_up(np.random.default_rng(0), FITS, 0.5, 400, 8)
    for (means, deviations), x in zip(FITS, dates):
        found = power.fit(np.exp(x))
        assert found[0] == pytest.approx(means, abs=0.15)
        assert found[1] == pytest.approx(deviations, rel=0.1)


def test_what_never_came_is_left_out_and_too_little_is_refused():
    x = np.exp(power.made_up(np.random.default_rng(1), FITS, 0.0, 60, 5)[0])
    x[0, 0] = np.inf                                            # a level that never emerges
    x[1, 1, 0], x[2, 2, 1] = np.nan, -np.inf
    assert power.fit(x)[1] == pytest.approx(FITS[0][1], rel=0.35)
    with pytest.raises(ValueError, match="three tasks"):
        power.fit(x[:3])


def test_without_a_lead_one_in_twenty_is_found_and_with_a_large_one_nearly_all():
    excess, share = power.power(FITS, 0.0, 8, 5, sweeps=300, seed=3)
    assert abs(excess) < 0.01 and 0.02 <= share <= 0.09
    excess, share = power.power(FITS, 0.98, 24, 5, sweeps=60)
    assert excess > 0.06 and share > 0.9


def test_the_correlation_that_makes_a_lead_of_five_in_a_hundred():
    rho = power.correlation_for(FITS, 0.05)
    assert 0.5 < rho < 0.95 and power.power(FITS, rho, 8, 5)[0] == pytest.approx(0.05, abs=0.004)
    assert np.isnan(power.correlation_for(FITS, 0.4))
