"""The course's own exercises: six small functions for what no module has a place for.

A ninth task, a fifth measure of rank, the stiffness of an SGLD step, an intervention on training,
an exchange test, and the score of a forecast.  Each says all that is asked of it.  What it needs
from the toolkit is imported here.
"""
import math

import numpy as np
import torch

from emergence import exchanges, p_value
from tasks import digits


# --------------------------------------------------------------------------------------------------
# Set 1: a ninth task

def affine(x, p):
    """A new task: 2 , 6 = 3 * 2 + 5 * 6 mod 7, which is 1.  The pieces of its line.

        answer = (3 a + 5 b) mod p

    x: (N, 2) int64, the operands a and b, each from 0 to p - 1.  p: the modulus.
    Returns (prompt, answer), like every `line` in tasks.py.  prompt: the list [digits of a, ",",
    digits of b].  answer: (N, w), the digits of the answer.  All three are written with w digits,
    as many as p - 1 has, the most significant digit first.  The operands stay as they are.
    Exercise: workbook.affine (set 1, 10 points)
    Hint: digits(x, w) of tasks.py writes a column of numbers, (N,), as (N, w) digits.

    >>> prompt, answer = affine(torch.tensor([[2, 6]]), 7)
    >>> prompt[0].tolist(), prompt[1], prompt[2].tolist(), answer.tolist()
    ([[2]], ',', [[6]], [[1]])
    """
    a, b = x.unbind(1)
    w = len(str(p - 1))
    return [digits(a, w), ",", digits(b, w)], digits((3 * a + 5 * b) % p, w)


# --------------------------------------------------------------------------------------------------
# Set 2: a fifth measure

def renyi_rank(features):
    """A rank that gives less weight to small directions than RankMe does.

        p_i = s_i / sum_j s_j        rank = (sum_i p_i^3)^(-1/2)

    This is the exponential of the Renyi entropy of order 3, 1 / (1 - order) = -1/2.  Order 1 would
    be RankMe without its eps.
    features: (N, D).  s_i: their singular values, neither squared nor centred.  Unit: dimensions,
    from 1 to min(N, D).  Returns a float.  The features may be of any floating type.
    Raises ValueError if features are not a matrix, not finite, or all zero.
    Exercise: workbook.renyi_rank (set 2, 10 points)
    Hint: r equal singular values must give r, whatever the order is.

    >>> round(renyi_rank(torch.eye(10)[:4]), 6)
    4.0
    """
    x = features.detach().double()
    if x.dim() != 2 or not torch.isfinite(x).all() or not x.any():
        raise ValueError("renyi_rank: features must be (N, D), finite and not all zero")
    s = torch.linalg.svdvals(x)
    p = s / s.sum()
    return float((p ** 3).sum() ** (1 / (1 - 3)))


# --------------------------------------------------------------------------------------------------
# Set 3: stiffness, and an intervention

def stiffness(lr, nbeta, curvatures, localization):
    """How large an SGLD step is for the sharpest direction; and the lr that would be right for it.

        stiffness = lr (nbeta lambda + localization)        lambda: the largest of curvatures

    Without noise, a step multiplies the distance from the minimum by 1 - stiffness / 2: beyond 4
    the chain diverges.  A step is fine as long as its stiffness is 0.25 or less.
    curvatures: (P,), eigenvalues of the Hessian, of any sign.
    Returns two floats: the stiffness of lr, and the lr whose stiffness is 0.25.
    Raises ValueError if nbeta lambda + localization is not above 0: then no direction holds the
    chain back, and no lr can be told.
    Exercise: workbook.stiffness (set 3, 10 points)
    Hint: the largest, not the largest in size: along a negative curvature nothing oscillates.

    >>> stiffness(0.01, 10.0, torch.tensor([1.0, 2.0, -9.0]), 5.0)
    (0.25, 0.01)
    """
    sharpest = nbeta * float(torch.as_tensor(curvatures).max()) + localization
    if not sharpest > 0:
        raise ValueError(f"stiffness: nbeta lambda + localization is {sharpest:g}, not above 0")
    return lr * sharpest, 0.25 / sharpest


def length_penalty(states):
    """An intervention: a penalty that keeps the hidden states at one length.

        penalty = mean over rows of (|row|^2 / (2 D) - 1)^2

    So a row of D numbers whose mean square is 2 costs nothing.  Added to the loss of training, it
    takes from the network the freedom to grow its states.  models.Intervention.penalty is the place
    for it.
    states: (M, D), of any floating type; half precision is computed in float32.  Returns a scalar
    tensor, through which gradients flow to the states.  A row of zeros costs 1 and has the gradient
    0, not NaN.
    Exercise: workbook.length_penalty (set 3, 5 points)
    Hint: a square root has an infinite slope at 0, and none is needed.

    >>> length_penalty(torch.tensor([[1.0, -1.0], [2.0, 2.0]])).item()        # 1/4 and 1
    0.625
    """
    x = states.to(torch.promote_types(states.dtype, torch.float32))
    return (x.square().mean(1) / 2 - 1).square().mean()


# --------------------------------------------------------------------------------------------------
# Set 4: an exchange test, and the score of a forecast

def exchange_test(table):
    """Does a task's own geometry go before its emergence more often than another task's does?

        observed = sum_j table[j, j]        of exchange m: sum_j table[j, m_j]

    table: (T, T), T at least 2; entry (j, i) says how often task i's geometry came before task j's
    emergence.  Entry (j, j) is the task's own.
    Returns three floats: observed; the mean over the rows of emergence.exchanges; and p, the share
    of these rows whose sum is at least the observed one, but for 1e-9.  The exchange that leaves
    all as it is counts too, in the mean and in p.
    Exercise: workbook.exchange_test (set 4, 10 points, without emergence.exchanged)
    Hint: emergence.exchanges has a row m for each exchange, emergence.p_value counts.  Not every
    way to choose an i for each j is an exchange: no task's geometry goes to two.

    >>> exchange_test(np.array([[3.0, 1.0], [0.0, 2.0]]))          # 5 as it is, 1 exchanged
    (5.0, 3.0, 0.5)
    """
    table = np.asarray(table, dtype=float)
    sums = table[np.arange(len(table)), exchanges(range(len(table)))].sum(1)
    return float(sums[0]), float(sums.mean()), p_value(sums)


def log_score(forecasts, happened):
    """How good forecasts were, and how much better than always to name one share: (score, gain).

        score = mean of log q        q = the forecast if it happened, else 1 - forecast
        gain = score - what forecasting the share of all that happened would have scored

    forecasts: (N,), probabilities.  Before scoring they are moved into [0.01, 0.99]: no single
    forecast can lose more than log 0.01.  happened: (N,), 1 or 0, or NaN where nobody could watch:
    such rows are left out, of the share too.  The share is moved into [0.01, 0.99] as well.
    Returns two floats, in nats for each forecast; 0 is perfect, and a gain below 0 is worse than
    nothing.
    Raises ValueError if a forecast is NaN or outside [0, 1], also in a row that nobody watched, or
    if no row was watched.
    Exercise: workbook.log_score (set 4, 10 points)
    Hint: log 0 must not come up, not even in a branch that is thrown away.

    >>> score, gain = log_score([0.8, 0.2, 0.5, 0.5], [1, 0, 1, math.nan])
    >>> round(score, 4), round(gain, 4)
    (-0.3798, 0.2567)
    """
    q, y = np.asarray(forecasts, dtype=float), np.asarray(happened, dtype=float)
    if not ((q >= 0) & (q <= 1)).all() or np.isnan(y).all():
        raise ValueError("log_score: forecasts must lie in [0, 1], and one row at least be watched")
    watched = ~np.isnan(y)
    q, y = np.clip(q[watched], 0.01, 0.99), y[watched] == 1
    share = min(max(y.mean(), 0.01), 0.99)
    score = np.log(np.where(y, q, 1 - q)).mean()
    return float(score), float(score - np.log(np.where(y, share, 1 - share)).mean())
