"""measures.py against known answers: closed forms, slow exact methods, invariants, other code."""
import collections
import contextlib
import copy
import doctest
import functools
import json
import math
import random
import threading
import types
import warnings
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import measures
from measures import (collect_states, effective_rank, effective_samples, fisher_rank, gradient_gram,
                      gradient_rank, hessian_top, lanczos, linear_probe, llc, llc_draws, mean_share,
                      per_example_gradients, per_example_gradients_vmap, plain_llc, power_iteration,
                      rankme, rankme_centred, rankme_many, sgld_step, split_r_hat)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def orthogonal(n, seed=0):
    return torch.linalg.qr(normal(n, n, seed=seed, dtype=torch.float64)).Q


def net_and_data(n=40, dtype=torch.float64, seed=0):
    """A small classifier with what a measure could trip over: dropout, running statistics, a frozen
    and an unused parameter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5),
                              nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
        model.register_parameter("unused", nn.Parameter(torch.ones(5)))
        model[0].bias.requires_grad_(False)
        data = (torch.randn(n, 6).to(dtype), torch.randint(3, (n,)))
    return model.to(dtype), data


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def scalar_output(model, batch):
    return model(batch[0])[:, 0]


class Toy(nn.Module):
    """A loss that is a function of the weights alone."""

    def __init__(self, w, potential=None):
        super().__init__()
        self.w, self.potential = nn.Parameter(w.clone()), potential


def toy_loss(model, batch):
    return model.potential(model.w).expand(len(batch[0]))


def pulled(model, batch):
    """|w|^2 / 2 + w . x_i: each example pulls in a direction of its own."""
    return model.w.square().sum() / 2 + batch[0] @ model.w


def quadratic(h):
    """The potential sum h_i w_i^2 / 2."""
    def potential(w):
        return (h * w * w).sum() / 2
    return potential


ONE_ROW = (torch.zeros(1, 1),)


def toy_llc(w, potential, **options):
    defaults = {"localization": 0.0, "generator": seeded()}
    return llc(Toy(w, potential), toy_loss, ONE_ROW, **(defaults | options))


def assert_llc(result, exact, what):
    """Within the larger of 2% and 3 of its own Monte Carlo errors."""
    error, allowed = abs(result.mean - exact), max(0.02 * abs(exact), 3 * result.mc_error)
    assert error <= allowed, (f"{what}: {result.mean:.4f} for {exact:.4f}, off by {error:.4f}, "
                              f"allowed {allowed:.4f}")
    assert result.mc_error < 0.05 * abs(exact), (f"{what}: a Monte Carlo error of "
                                                 f"{result.mc_error:.4f} would allow anything")


def assert_close(got, exact, allowed, what="value"):
    """The largest difference is at most `allowed` of the largest exact value."""
    error, scale = float((got - exact).abs().max()), float(exact.abs().max())
    assert error <= allowed * scale, f"{what}: off by {error:.3g}, of {scale:.3g}"


# ------------------------------------------------------------------------------------------ RankMe


@pytest.mark.parametrize("r", [1, 2, 16, 64])
def test_rankme_of_r_orthonormal_directions_is_r(r):
    left = torch.linalg.qr(normal(200, 128)).Q[:, :r]
    right = torch.linalg.qr(normal(128, r, seed=1)).Q.T
    assert rankme(left @ right) == pytest.approx(r, rel=1e-3)   # eps adds 2e-4 of it


def test_rankme_uses_singular_values_neither_squared_nor_centred():
    known = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0]))      # entropy 1.75 bits
    assert rankme(known) == pytest.approx(2 ** 1.75, abs=1e-4)
    assert rankme(torch.ones(50, 7)) == pytest.approx(1, abs=1e-3)      # centred: nothing left


@pytest.mark.parametrize("bad", [torch.zeros(5, 3), torch.full((5, 3), math.nan),
                                 torch.full((5, 3), math.inf), torch.ones(3)])
def test_rankme_refuses_what_has_no_rank(bad):
    with pytest.raises(ValueError, match="rankme"):
        rankme(bad)


@pytest.mark.parametrize("shape", [(200, 128), (50, 128), (30, 30)])
def test_rankme_many_equals_rankme_down_to_collapse(shape):
    n, width = shape
    x = [normal(*shape, seed=i) * torch.logspace(0, -k, width) for i, k in enumerate((0, 2, 5, 9))]
    for rank in (1, 16):
        x.append(normal(n, rank, seed=8) @ normal(rank, width, seed=9))
    x.append(1e-12 * x[0])
    x = x * 3                                                   # more than are taken at a time
    many = rankme_many(torch.stack(x))
    assert many.dtype == torch.float64
    for got, features in zip(many.tolist(), x):
        assert got == pytest.approx(rankme(features), abs=1e-3)
    two = torch.diag(torch.tensor([1.0, 1, 0, 0]))
    assert rankme(two, 0.0) == pytest.approx(2) == float(rankme_many(two[None], 0.0))


def test_rankme_many_names_the_matrix_that_has_no_rank():
    good = normal(30, 8)
    for bad in (torch.zeros(30, 8), good * math.nan):
        with pytest.raises(ValueError, match="matrix 2"):
            rankme_many(torch.stack([good, good, bad]))
    with pytest.raises(ValueError, match=r"\(M, N, D\)"):
        rankme_many(good)
    assert rankme_many(torch.zeros(0, 30, 8)).shape == (0,)


def repeated(x, times):
    return x.repeat_interleave(times, 0)


def test_mean_share_of_known_rows():
    """x = m + z, z without mean: |m|^2 of |m|^2 + E|z|^2.  All equal rows: 1."""
    z = normal(50, 6, dtype=torch.float64)
    z, m = z - z.mean(0), torch.arange(6.0, dtype=torch.float64)
    exact = float(m @ m / (m @ m + z.square().sum(1).mean()))
    assert mean_share(z + m) == pytest.approx(exact)
    assert mean_share(z) == pytest.approx(0, abs=1e-12)
    assert mean_share(torch.ones(9, 3)) == pytest.approx(1)
    assert mean_share(torch.eye(4)) == pytest.approx(1 / 4)     # rows at right angles: 1 / N


def test_rankme_centred_of_known_rows():
    assert rankme_centred(torch.eye(10)) == pytest.approx(9, rel=1e-4)
    assert rankme_centred(normal(400, 5) + 1e4) == pytest.approx(5, rel=0.01)
    pair = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    assert rankme_centred(pair) == pytest.approx(1, abs=1e-4)


def test_weights_are_numbers_of_repetitions():
    x, times = normal(30, 6) + torch.arange(6.0), torch.arange(30) % 4
    assert mean_share(x, times) == pytest.approx(mean_share(repeated(x, times)))
    assert rankme_centred(x, times) == pytest.approx(rankme_centred(repeated(x, times)))
    stack = torch.stack([x, x ** 2])
    rest, share = measures.centred(stack, times.expand(2, -1))
    assert share.tolist() == pytest.approx([mean_share(part, times) for part in stack])
    assert rankme_many(rest).tolist() == pytest.approx([rankme_centred(part, times)
                                                        for part in stack], rel=1e-4)


@pytest.mark.parametrize("measure", [mean_share, rankme_centred])
def test_what_has_no_mean_share_or_no_rank_is_refused(measure):
    x = normal(5, 3)
    for bad in (x * math.nan, x[0], torch.zeros(5, 3)):
        with pytest.raises(ValueError):
            measure(bad)
    for weights in (torch.zeros(5), torch.ones(4), -torch.ones(5), torch.full((5,), math.nan)):
        with pytest.raises(ValueError, match="weights"):
            measure(x, weights)
    with pytest.raises(ValueError, match="same"):
        rankme_centred(normal(1, 7).expand(5, 7) * 0.1)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e200])
def test_ranks_do_not_see_the_scale(scale):
    x = normal(40, 8, dtype=torch.float64) + 1
    assert float(rankme_many((x * scale)[None])) == pytest.approx(rankme(x), rel=1e-6)
    assert rankme(x * scale) == pytest.approx(rankme(x), rel=1e-6)
    assert rankme_centred(x * scale) == pytest.approx(rankme_centred(x), rel=1e-6)
    assert mean_share(x * scale) == pytest.approx(mean_share(x), rel=1e-6)


FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.int64, *FLOAT8])
def test_features_of_other_dtypes_have_the_rank_of_their_values(dtype):
    x = (normal(40, 8) * 4).round().to(dtype)
    exact = x.double()
    for measure in (rankme, rankme_centred, mean_share):
        assert measure(x) == measure(exact)
    assert float(rankme_many(x[None])) == float(rankme_many(exact[None]))
    labels = (exact[:, 0] > 0).long()
    assert linear_probe(x, labels, seeded()) == linear_probe(exact, labels, seeded())


# --------------------------------------------------------------------------- gradient, Fisher rank


def test_effective_rank_of_equal_and_of_known_eigenvalues():
    assert effective_rank(torch.tensor([3.0] * 7 + [0.0] * 5)) == pytest.approx(7)
    p = torch.tensor([0.5, 0.25, 0.25])                         # entropy 1.5 bits
    assert effective_rank(1e-12 * p) == pytest.approx(2 ** 1.5)
    assert effective_rank(torch.tensor([1.0, -1e-12])) == pytest.approx(1)
    for bad in (torch.zeros(3), torch.tensor([1.0, -0.5]), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="effective_rank"):
            effective_rank(bad)


def slow_gram(model, data):
    """One backward pass per example, over the trainable parameters, nothing shared with the code
    under test."""
    model = copy.deepcopy(model).eval()
    rows = []
    for x, y in zip(*data):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[None]), y[None]).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad
                     for p in model.parameters() if p.requires_grad]
        rows.append(torch.cat([g.flatten() for g in gradients]))
    g = torch.stack(rows).double()
    return g @ g.T


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_gradient_gram_of_two_linear_layers(chunk):
    """f = v . W x: the gradient in v is W x, in W the outer product of v and x.  So
    K = (WX)(WX)' + |v|^2 X X'.  Dropout is off while measuring; the frozen bias and the unused
    parameter add nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 1, bias=False))
    model = model.double()
    model[0].bias.requires_grad_(False).zero_()
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    x = normal(20, 5, seed=1, dtype=torch.float64)
    W, v = model[0].weight.detach(), model[2].weight.detach()[0]
    exact = (x @ W.T) @ (x @ W.T).T + v @ v * (x @ x.T)
    got = gradient_gram(model, scalar_output, (x,), chunk)
    assert got.dtype == torch.float64 and got.shape == (20, 20)
    assert_close(got, exact, 1e-9)
    assert model.training and model[2].weight.grad is None, "measuring disturbs nothing"
    assert model[0].bias.requires_grad is False


def test_gradient_gram_refuses_what_it_cannot_measure():
    model, x = nn.Linear(3, 1), torch.ones(4, 3)

    def two_dimensional(model, batch):
        return model(batch[0])

    def not_a_number(model, batch):
        return scalar_output(model, batch) * math.nan
    for loss_fn, message in ((two_dimensional, "one loss per example"), (not_a_number, "finite")):
        with pytest.raises(ValueError, match=message):
            gradient_gram(model, loss_fn, (x,))
    with torch.no_grad():
        model.weight[0, 1] = math.nan
    with pytest.raises(ValueError, match="weight"):
        gradient_gram(model, scalar_output, (x,))


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_gradient_gram_equals_the_loop(chunk):
    model, data = net_and_data()
    exact = slow_gram(model, data)
    got = gradient_gram(model, cross_entropy, data, chunk)
    assert got.dtype == torch.float64 and got.shape == (40, 40)
    assert_close(got, exact, 1e-9)
    single, data32 = net_and_data(dtype=torch.float32)
    rank = effective_rank(torch.linalg.eigvalsh(exact))
    assert fisher_rank(single, cross_entropy, data32) == pytest.approx(rank, rel=1e-3)


def test_gradient_gram_in_blocks_of_parameters_is_exact_and_keeps_its_bound(monkeypatch):
    model, data = net_and_data()
    sizes = []

    def recorded(net, loss_fn, batch):
        columns = per_example_gradients_vmap(net, loss_fn, batch)
        sizes.append(sum(column.numel() for column in columns))
        return columns
    as_if_large = functools.partial(measures.gradient_blocks, small=0)
    monkeypatch.setattr(measures, "gradient_blocks", as_if_large)
    monkeypatch.setattr(measures, "per_example_gradients_vmap", recorded)
    got = gradient_gram(model, cross_entropy, data, chunk=4)
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert_close(got, slow_gram(model, data), 1e-9)
    largest = max(p.numel() for p in model.parameters())
    assert max(sizes) <= 2 * 4 * total + 40 * largest, "two chunks, and one parameter more"
    assert sum(sizes) == 40 * total, "each gradient once"


def test_per_example_gradients_are_those_of_vmap_and_of_jacrev():
    model, data = net_and_data()
    net = copy.deepcopy(model).eval()
    plain = per_example_gradients(net, cross_entropy, data)
    fast = per_example_gradients_vmap(net, cross_entropy, data)
    params = [p for p in net.parameters() if p.requires_grad]
    assert [g.shape for g in plain] == [g.shape for g in fast] == [(40, *p.shape) for p in params]
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(plain, fast))

    def losses(point):
        logits = torch.func.functional_call(net, point, (data[0],))
        return nn.functional.cross_entropy(logits, data[1], reduction="none")
    jacobian = torch.func.jacrev(losses)(dict(net.named_parameters()))
    g = torch.cat([jacobian[k].flatten(1) for k, p in net.named_parameters() if p.requires_grad], 1)
    assert_close(gradient_gram(model, cross_entropy, data), (g @ g.T).detach(), 1e-10)


def branches_on_data(model, batch):
    factor = 2.0 if float(batch[0].detach().sum()) > -1e9 else 1.0      # vmap cannot run .item()
    return cross_entropy(model, batch) * factor


def test_gradient_gram_of_a_loss_that_vmap_cannot_run():
    model, data = net_and_data()
    got = gradient_gram(model, branches_on_data, data)
    assert torch.allclose(got, 4 * slow_gram(model, data), rtol=1e-9)


def test_the_plain_way_refuses_a_loss_of_the_wrong_shape_too():
    model, data = net_and_data()

    def mean_loss(model, batch):
        return branches_on_data(model, batch).mean()
    with pytest.raises(ValueError, match="one loss per example"):
        gradient_gram(model, mean_loss, data)


def test_ranks_of_gradients_that_are_known():
    """The gradient of w . x in w is x: K is the Gram matrix of the inputs; centring it centres
    them."""
    model = nn.Linear(12, 1, bias=False)
    x = normal(30, 12) + 2
    raw = effective_rank(torch.linalg.svdvals(x) ** 2)
    centred = effective_rank(torch.linalg.svdvals(x - x.mean(0)) ** 2)
    assert fisher_rank(model, scalar_output, (x,)) == pytest.approx(raw, rel=1e-4)
    assert gradient_rank(model, scalar_output, (x,)) == pytest.approx(centred, rel=1e-4)
    with pytest.raises(ValueError, match="coincide"):
        gradient_rank(model, scalar_output, (torch.ones(9, 12),))
    with pytest.raises(ValueError, match="two examples"):
        gradient_rank(model, scalar_output, (x[:1],))


# ---------------------------------------------------------------------------------- top eigenvalue


def matrix(spectrum, seed=0):
    """A symmetric matrix with this spectrum.  Its `mv` is the matvec of the functions below."""
    spectrum = torch.as_tensor(spectrum, dtype=torch.float64)
    q = orthogonal(len(spectrum), seed)
    return q @ torch.diag(spectrum) @ q.T


def start_of(n, seed=1):
    return normal(n, seed=seed, dtype=torch.float64)


SPECTRA = {
    "largest in size is negative": [-2.0, 1.0] + [0.1 * i / 50 for i in range(50)],
    "gap ratio .99": [1.0, 0.99] + [0.5 * i / 100 for i in range(100)],
    "gap ratio .99, scaled by 1e-5": [1e-5, 0.99e-5] + [0.5e-5 * i / 100 for i in range(100)],
    "power law": [1 / i for i in range(1, 200)],
}


def assert_pair(result, h, exact, tol):
    """The eigenvalue is right, the residual is that of the pair, and within tol."""
    v = result.eigenvector
    residual = float((h @ v - result.eigenvalue * v).norm()) / abs(result.eigenvalue)
    assert result.converged and result.eigenvalue == pytest.approx(exact, rel=1e-3)
    assert residual == pytest.approx(result.residual, rel=1e-6, abs=1e-12) and residual <= tol
    assert float(v.norm()) == pytest.approx(1)


@pytest.mark.parametrize("name", SPECTRA)
def test_power_iteration_finds_the_largest_in_size_sign_included(name):
    h, products = matrix(SPECTRA[name]), []

    def matvec(v):
        products.append(v)
        return h @ v
    result = power_iteration(matvec, 5 * start_of(len(h)), tol=1e-3, max_iters=5000)
    assert_pair(result, h, max(SPECTRA[name], key=abs), tol=1e-3)
    assert result.iterations == len(products), "iterations are the products that were made"


def test_power_iteration_that_cannot_converge_says_so():
    both_signs, start = matrix([1.0, -1.0]), start_of(2)
    result = power_iteration(both_signs.mv, start, max_iters=200)
    assert not result.converged and result.residual > 0.1 and result.iterations == 200
    ones = torch.ones(2)
    short = power_iteration(torch.diag(torch.tensor([2.0, 1.0])).mv, ones, tol=1e-9, max_iters=2)
    assert not short.converged and short.iterations == 2
    assert short.eigenvalue == pytest.approx(1.8)               # of H (1, 1) = (2, 1): 9 / 5
    once = power_iteration((-3 * torch.eye(2)).mv, 5 * ones)
    assert once.iterations == 1 and once.eigenvalue == pytest.approx(-3)
    assert float(once.eigenvector.norm()) == pytest.approx(1)
    zero = power_iteration(torch.zeros(2, 2).mv, ones)
    assert zero.converged and zero.iterations == 1
    assert zero.eigenvalue == 0 and zero.residual == 0


def test_power_iteration_leaves_open_what_it_does_not_compute():
    result = power_iteration(torch.eye(3).mv, torch.ones(3))
    assert math.isnan(result.smallest) and math.isnan(result.residual_largest)
    assert result.vectors is None and result.row()["largest"] is None


@pytest.mark.parametrize("name", SPECTRA)
def test_power_iteration_and_lanczos_agree_with_the_dense_spectrum(name):
    h, exact = matrix(SPECTRA[name]), max(SPECTRA[name], key=abs)
    slow = power_iteration(h.mv, start_of(len(h)), tol=1e-3, max_iters=5000)
    fast = lanczos(h.mv, start_of(len(h)), tol=1e-3)
    assert_pair(slow, h, exact, tol=1e-3)
    assert_pair(fast, h, exact, tol=1e-3)
    assert fast.iterations < slow.iterations


def test_both_signs_never_converge_by_power_iteration_but_by_lanczos():
    h, start = matrix([1.0, -1.0]), start_of(2)
    slow = power_iteration(h.mv, start, max_iters=200)
    assert not slow.converged and slow.residual > 0.1 and slow.iterations == 200
    fast = lanczos(h.mv, start)
    assert fast.converged and abs(fast.eigenvalue) == pytest.approx(1)
    assert fast.smallest == pytest.approx(-1)


@pytest.mark.parametrize("seed", range(5))
def test_converged_is_never_set_when_the_residual_is_too_large(seed):
    h = matrix(start_of(80, seed), seed)
    for tol in (1e-1, 1e-2, 1e-6, 1e-9):
        for limit in (1, 2, 5, 20, 60):
            result = lanczos(h.mv, start_of(80, seed + 100), tol, limit)
            v = result.eigenvector
            residual = float((h @ v - result.eigenvalue * v).norm()) / abs(result.eigenvalue)
            assert not result.converged or residual <= tol * (1 + 1e-6), (tol, limit, residual)
            assert result.iterations <= limit


def test_lanczos_of_a_spectrum_that_is_crowded_at_the_top():
    spectrum = [1 - 0.5 * (i / 300) ** 0.5 for i in range(300)]
    h = matrix(spectrum)
    result = lanczos(h.mv, start_of(300), tol=1e-4, max_iters=400)
    assert result.converged and 20 < result.iterations < 200
    assert result.eigenvalue == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("pairs", [4, 7, 12])
@pytest.mark.parametrize("name", SPECTRA)
def test_lanczos_with_little_room_keeps_few_vectors_and_finds_the_same(name, pairs, monkeypatch):
    """30 vectors of a model of 85M and their products are 20 GB: it starts again from 3 of 6."""
    extended, held = measures.extended, []
    h, exact = matrix(SPECTRA[name]), max(SPECTRA[name], key=abs)

    def spied(Q, HQ, q, matvec):
        held.append(len(Q) + 1)
        return extended(Q, HQ, q, matvec)
    monkeypatch.setattr(measures, "extended", spied)
    result = lanczos(h.mv, start_of(len(h)), tol=1e-3, max_iters=500, room=2 * pairs * len(h))
    assert_pair(result, h, exact, tol=1e-3)
    assert max(held) <= pairs and result.iterations == len(held)
    free = lanczos(h.mv, start_of(len(h)), tol=1e-3, max_iters=500)
    assert result.iterations >= free.iterations
    slow = power_iteration(h.mv, start_of(len(h)), tol=1e-3, max_iters=5000)
    assert result.iterations < slow.iterations, "what it keeps is worth keeping"
    short = lanczos(h.mv, start_of(len(h)), tol=1e-12, max_iters=9, room=2 * pairs * len(h))
    assert short.iterations <= 9


@pytest.mark.parametrize("exact", [-1, 0])
def test_lanczos_from_both_ends_of_which_one_is_exact_goes_on_with_the_other(exact):
    """As a sweep starts it: the remainder of the exact one is rounding, and leads nowhere."""
    h = matrix([1.0, -0.9999, *torch.linspace(-0.9, 0.9, 298).tolist()]).float()
    ends = torch.linalg.eigh(h)[1].T[[0, -1]]
    for rough in 0.03 * torch.randn(10, 2, 300, generator=seeded()) / 300 ** 0.5:
        rough[exact] = 0
        found = lanczos(h.mv, ends + rough, tol=0.02, max_iters=30)
        assert found.converged and found.iterations <= 12
        assert found.eigenvalue == pytest.approx(1, rel=1e-4)


def test_the_hessian_of_what_is_too_large_to_be_kept_is_the_same(monkeypatch):
    """Its graph is then built anew for every product, 64 rows at a time."""
    data, calls = (normal(150, 6, seed=3), torch.arange(150) % 3), []

    def counted(model, batch):
        calls.append(len(batch[0]))
        return cross_entropy(model, batch)
    found = {}
    for limit in (measures.KEPT, 0):
        monkeypatch.setattr(measures, "KEPT", limit)
        calls.clear()
        top = hessian_top(small_net(), counted, data, generator=seeded())
        found[limit] = top.eigenvalue, calls.count(64), top.iterations
    (one, once, products), (other, often, again) = found.values()
    assert one == other and products == again and once == 2 and often == 2 * products


def test_lanczos_from_several_vectors_from_none_and_of_a_zero_matrix():
    h, start = matrix(SPECTRA["power law"]), start_of(199)
    top = lanczos(h.mv, start, tol=1e-4).eigenvector
    warm = lanczos(h.mv, torch.stack([top, start]), tol=1e-3)
    assert warm.converged and warm.iterations <= 3
    repeated = lanczos(h.mv, torch.stack([start, 2 * start]), tol=1e-3)
    assert repeated.converged and repeated.eigenvalue == pytest.approx(1, rel=1e-3)
    zero = lanczos(torch.zeros(199, 199, dtype=torch.float64).mv, start)
    assert zero.converged and zero.eigenvalue == 0 and zero.residual == 0
    with pytest.raises(ValueError, match="start must be finite and not zero"):
        lanczos(h.mv, 0 * start)


@pytest.mark.parametrize("spectrum", [[-2.0, 1.0, 0.5, 0.1], [3.0, 1.0, -0.5, -2.9]])
def test_lanczos_returns_the_unit_vectors_of_both_ends(spectrum):
    h = matrix(spectrum)
    result = lanczos(h.mv, start_of(4), tol=1e-8)
    assert result.vectors.shape == (2, 4)
    for v, exact in zip(result.vectors, (min(spectrum), max(spectrum))):
        assert float(v.norm()) == pytest.approx(1)
        assert float((h @ v - exact * v).norm()) < 1e-6 * abs(exact)
    same = [torch.equal(result.eigenvector, v) for v in result.vectors]
    assert same == [result.eigenvalue < 0, result.eigenvalue > 0]


def dense_hessian(model, data):
    model = copy.deepcopy(model).eval()
    params = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in params.values()]

    def loss(flat):
        point = {k: v.view_as(p) for (k, p), v in zip(params.items(), flat.split(sizes))}
        logits = torch.func.functional_call(model, point, (data[0],))
        return nn.functional.cross_entropy(logits, data[1])
    w = torch.cat([p.flatten() for p in params.values()])
    return torch.autograd.functional.hessian(loss, w)


def test_hessian_top_against_the_dense_spectrum():
    model, data = net_and_data(n=150)                           # more rows than are taken at a time
    h = dense_hessian(model, data)
    spectrum = torch.linalg.eigvalsh(h)
    exact = float(spectrum[spectrum.abs().argmax()])
    result = hessian_top(model, cross_entropy, data, tol=1e-6)
    assert result.converged and result.eigenvalue == pytest.approx(exact, rel=1e-6)
    v = result.eigenvector
    assert float((h @ v - exact * v).norm()) <= 2e-6 * abs(exact)
    lowest = float(spectrum[0])
    assert lowest - 1e-9 <= result.smallest <= lowest * 0.5
    low, high = result.vectors                                  # their Rayleigh quotients
    assert float(low @ h @ low) == pytest.approx(result.smallest, rel=1e-6)
    assert float(high @ h @ high) == pytest.approx(exact, rel=1e-6)
    again = hessian_top(model, cross_entropy, data, tol=1e-3, start=v)
    assert again.converged and again.iterations == 1
    both = hessian_top(model, cross_entropy, data, tol=1e-3, start=result.vectors)
    assert both.converged and both.iterations == 2
    assert both.smallest == pytest.approx(result.smallest, rel=1e-3)
    plain = power_iteration(h.mv, start_of(len(h), 0), tol=1e-4, max_iters=20000)
    assert plain.converged and plain.eigenvalue == pytest.approx(result.eigenvalue, rel=1e-4)
    default = hessian_top(model, cross_entropy, data)
    assert default.converged and default.eigenvalue == pytest.approx(exact, rel=5e-3)
    short = hessian_top(model, cross_entropy, data, tol=1e-9, max_iters=3)
    assert not short.converged and short.iterations == 3 and short.residual > 1e-9


@pytest.mark.parametrize("spectrum", [[-2.0, 1.0], [1.0, -1.0], [1e-5, -3e-6], [0.0, 0.0]])
def test_hessian_top_of_quadratics(spectrum):
    h = torch.tensor(spectrum)
    result = hessian_top(Toy(torch.ones(2), quadratic(h)), toy_loss, ONE_ROW, tol=1e-4)
    largest = float(h.abs().max())
    assert abs(result.eigenvalue) == pytest.approx(largest, rel=1e-4)
    assert result.converged == (spectrum[0] != 1.0), "which of 1 and -1 is larger is not certain"
    if spectrum[0] != 1.0:
        assert result.eigenvalue == pytest.approx(spectrum[0], rel=1e-4)        # the sign too


class Attention(nn.Module):
    """The fused attention of torch, which has no second derivative and no rule for vmap."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).view(len(x), -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.square().mean((1, 2, 3))


def test_a_fused_attention_has_a_hessian_and_a_gram_matrix():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Attention(), torch.randn(5, 6, 8)

    def output(model, batch):
        return model(batch[0])
    assert hessian_top(model, output, (x,)).converged
    assert gradient_gram(model, output, (x,)).shape == (5, 5)


# --------------------------------------------------------------------------------------------- LLC


def test_sgld_step_is_its_equation():
    w, w0, g, noise = (normal(50, seed=i, dtype=torch.float64) for i in range(4))
    new = w.clone()
    sgld_step(new, w0, g, noise, lr=0.01, nbeta=7.0, localization=3.0)
    drift = 7 * g + 3 * (w - w0)
    assert torch.allclose(new, w - 0.005 * drift + 0.1 * noise, atol=1e-14)


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 40.0])
def test_sgld_steps_sample_a_quadratic(gamma, averaged):
    """L = |w|^2 / 2.  With the mean of two draws of noise nbeta E[L] is d nbeta / (2 c),
    c = nbeta + gamma, at any lr, here a coarse one; with fresh noise 1 / (1 - lr c / 4) of that."""
    d, lr, nbeta, source = 4000, 8e-3, 100.0, seeded()
    w0, w, found = torch.zeros(d), torch.zeros(d), []
    noise = torch.randn(d, generator=source)
    for step in range(300):
        found.append(nbeta * float(w @ w) / 2)
        before, noise = noise, torch.randn(d, generator=source)
        used = (before + noise) / 2 if averaged else noise
        sgld_step(w, w0, w.clone(), used, lr, nbeta, gamma)
    value, exact = sum(found[50:]) / 250, d * nbeta / (2 * (nbeta + gamma))
    if not averaged:
        exact = exact / (1 - lr * (nbeta + gamma) / 4)
    assert value == pytest.approx(exact, rel=0.01), f"{value:.1f} instead of {exact:.1f}"
    assert not w0.any(), "w0 must stay as it is"


def test_llc_draws_are_paired_and_without_burn_in():
    losses = torch.tensor([[90.0, 80, 3, 5], [70, 60, 4, 6]])
    baselines = torch.tensor([[1.0, 1, 1, 2], [9, 9, 3, 1]])
    assert llc_draws(losses, baselines, 10.0, 2).tolist() == [[20, 30], [10, 50]]
    assert llc_draws(losses, baselines, 1.0, 0).shape == (2, 4)


def test_llc_draws_of_several_groups_and_of_a_negative_value():
    losses = torch.arange(24.0).view(2, 4, 3)
    got = llc_draws(losses, losses + 1, 2.0, 1)                 # w0 is no minimum
    assert torch.equal(got, torch.full((2, 3, 3), -2.0))


H = torch.linspace(0.5, 2, 20)


@pytest.mark.parametrize("gamma", [0.0, 300.0])
def test_plain_llc_of_a_quadratic_is_that_of_sgld_with_its_step(gamma):
    """Fresh noise: each direction of curvature c = nbeta h + gamma is too wide by
    1 / (1 - lr c / 4).  500 copies of the 20 curvatures make the Monte Carlo error small."""
    nbeta, lr = 1000.0, 5e-4
    c = nbeta * H + gamma
    exact = 500 * float((nbeta * H / (2 * c) / (1 - lr * c / 4)).sum())
    model = Toy(torch.zeros(10000), quadratic(H.repeat(500)))
    options = dict(nbeta=nbeta, lr=lr, localization=gamma, num_draws=300, num_burnin_steps=100)
    with torch.no_grad():                                       # a measuring loop may run under it
        value = plain_llc(model, toy_loss, ONE_ROW, **options)
        assert plain_llc(model, toy_loss, ONE_ROW, **options) == value
    assert value == pytest.approx(exact, rel=0.02)
    assert not model.w.any() and model.w.grad is None, "measuring disturbs nothing"


def test_plain_llc_and_llc_agree_on_a_network():
    model, data = net_and_data(dtype=torch.float32)
    options = dict(nbeta=30.0, lr=2e-4, localization=1000.0, num_draws=600, num_burnin_steps=50)
    plain = plain_llc(model, cross_entropy, data, **options)
    full = llc(model, cross_entropy, data, num_chains=2, **options)
    assert plain == pytest.approx(full.mean, abs=6 * full.mc_error), (plain, full.mean)


@pytest.mark.parametrize("lr, gamma, draws", [
    pytest.param(3e-5, 0.0, 2000, marks=pytest.mark.slow), (1e-4, 0.0, 600),
    (1e-3, 0.0, 400), (1e-3, 500.0, 400)])
def test_llc_of_a_quadratic(lr, gamma, draws):
    """Exact at any step: d/2 without localization, sum nbeta h / (2 (nbeta h + gamma)) with it.
    At lr 1e-3 SGLD with fresh noise would give half as much again, and twice as much.  20 copies
    of the 20 curvatures make the Monte Carlo error small."""
    nbeta, h = 1000.0, H.repeat(20)
    exact = float((nbeta * h / (2 * (nbeta * h + gamma))).sum())
    # chains forget their start at the rate lr nbeta h / 2 per draw
    burnin = int(min(1500, 3 / (lr * nbeta)))
    result = toy_llc(torch.zeros(400), quadratic(h), nbeta=nbeta, lr=lr, localization=gamma,
                     num_draws=draws, num_burnin_steps=burnin, num_chains=3)
    assert_llc(result, exact, f"quadratic at lr {lr}, localization {gamma}")
    assert result.bias == 0, "every draw sees all of data: there is no noise"
    assert result.losses.shape == result.baselines.shape == (3, draws)
    assert result.init_loss == 0 and result.num_diverged == 0


@pytest.mark.parametrize("gamma", [0.0, 300.0])
def test_llc_of_a_quadratic_with_gradient_noise(gamma):
    """Example i pulls with w_i^2 / 2 + w . u_i, mean of u zero: mini-batches of b of N rows add
    noise of known variance, and so heat."""
    d, n, b, nbeta, lr = 200, 64, 4, 200.0, 5e-4
    u = normal(n, d, seed=5) / 2
    u = u - u.mean(0)
    result = llc(Toy(torch.zeros(d)), pulled, (u,), nbeta=nbeta, lr=lr, localization=gamma,
                 batch_size=b, num_draws=800, num_burnin_steps=100, generator=seeded())
    # variance of the gradient's noise per coordinate, without replacement
    c = float(u.var(0, unbiased=False).mean()) / b * (n - b) / (n - 1)
    exact, stiffness = d / 2 * nbeta / (nbeta + gamma), nbeta + gamma
    momentum = measures.Sampler.momentum
    heat = lr / 4 * nbeta ** 2 * c / (1 - lr * stiffness / 4) * (1 + momentum) / (1 - momentum)
    raw = exact * (1 + heat)
    assert result.mean + result.bias == pytest.approx(raw, rel=0.05) and raw > 1.6 * exact
    assert_llc(result, exact, "quadratic with gradient noise")


@pytest.mark.parametrize("power, lr", [(4, 2e-4), (4, 1e-3), (6, 5e-4)])
def test_llc_of_powers(power, lr):
    """L = sum w_i^(2k): d / (2k) at every nbeta.  A thousand coordinates at once make the Monte
    Carlo error small."""
    def potential(w):
        return (w ** power).sum()
    result = toy_llc(torch.zeros(1000), potential, nbeta=1000.0, lr=lr, num_draws=1000,
                     num_burnin_steps=1000)
    assert_llc(result, 1000 / power, f"w^{power} at lr {lr}")


def test_llc_of_a_product_in_a_box():
    """L = (w1 w2)^2 on |w| <= 1: .3478 at nbeta 100 by integration (its lambda is 1/2, with
    multiplicity 2).  The weights run free and a triangle wave folds them into the box, which is
    the same as reflecting them at its walls."""
    def potential(w):
        x = 1 - ((w + 1) % 4 - 2).abs()
        return (x[0] * x[1]).square().sum()
    grid = torch.linspace(-14, 0, 200001, dtype=torch.float64)          # log of u = |w1 w2|
    density, energy = -grid * grid.exp(), 100 * (2 * grid).exp()        # the density is -log u
    boltzmann = density * (-energy).exp()
    exact = float((boltzmann * energy).sum() / boltzmann.sum())
    assert exact == pytest.approx(0.348, abs=1e-3)
    result = toy_llc(torch.zeros(2, 1500), potential, nbeta=100.0, lr=1e-3, num_draws=1000,
                     num_burnin_steps=1000)
    assert_llc(result, 1500 * exact, "(w1 w2)^2 in a box")


@pytest.mark.slow
@pytest.mark.parametrize("inputs, hidden, outputs, rank",
                         [(5, 3, 5, 2), (4, 2, 6, 1), (3, 4, 3, 2)])
def test_llc_of_reduced_rank_regression_against_a_small_step(inputs, hidden, outputs, rank):
    """|BA - S|^2 / 2, 32 copies side by side.  At finite nbeta the truth lies below lambda, so the
    reference is a small step."""
    copies, size = 32, hidden * inputs
    a = torch.zeros(copies, hidden, inputs)
    b = torch.zeros(copies, outputs, hidden)
    for i in range(rank):
        a[:, i, i], b[:, i, i] = 1, 1
    true = b @ a

    def potential(w):
        w = w.view(copies, -1)
        left = w[:, size:].view(copies, outputs, hidden)
        right = w[:, :size].view(copies, hidden, inputs)
        return (left @ right - true).square().sum() / 2
    w0 = torch.cat([a.flatten(1), b.flatten(1)], 1).flatten()
    options = dict(nbeta=1000.0, localization=10.0, num_chains=2)
    coarse = toy_llc(w0, potential, lr=2e-4, num_draws=6000, num_burnin_steps=4000, **options)
    fine = toy_llc(w0, potential, lr=2e-5, num_draws=30000, num_burnin_steps=30000, **options)
    allowed = max(0.02 * fine.mean, 3 * math.hypot(coarse.mc_error, fine.mc_error))
    assert abs(coarse.mean - fine.mean) <= allowed, (coarse.mean, fine.mean)


CROSSINGS = [((0, 1), 1 / 2), ((1, 1), 1 / 2), ((0, 2), 1 / 4), ((1, 2), 1 / 4), ((2, 2), 1 / 4),
             ((0, 3), 1 / 6), ((1, 3), 1 / 6), ((2, 3), 1 / 6), ((3, 3), 1 / 6)]


def test_llc_of_the_normal_crossings_of_devinterp_is_within_its_tolerances():
    """Its accuracy test: y = noise of size .25, fitted by x w1^a w2^b with 1,000 rows of x of size
    2, nbeta n / log n, lr 2e-4, localization 0, ten chains from w = 0.  The mean of the chains is
    within two of their standard deviations of lambda.  Here the chains of all nine are the groups
    of one; each has a 90th of the loss, so nbeta is 90 times as large."""
    x, y = 2 * normal(1000, dtype=torch.float64), normal(1000, seed=1, dtype=torch.float64) / 4
    powers = torch.tensor([powers for powers, _ in CROSSINGS]).repeat_interleave(10, 0)

    def loss(model, batch):
        slope = (model.w ** powers).prod(1)[batch[0]]           # mean of (y - slope x)^2
        return x @ x / 1000 * slope ** 2 - 2 * x @ y / 1000 * slope + y @ y / 1000
    nbeta = 1000 / math.log(1000)
    result = llc(Toy(torch.zeros(90, 2, dtype=torch.float64)), loss, (torch.arange(90),),
                 groups=torch.arange(90), nbeta=90 * nbeta, lr=2e-4, localization=0.0, init="w0",
                 num_chains=1, num_draws=2000, num_burnin_steps=0, generator=seeded())
    found = (result.group_means / 90).view(9, 10)
    for (case, exact), mean, std in zip(CROSSINGS, found.mean(1), found.std(1)):
        assert abs(float(mean) - exact) < 2 * float(std), (case, float(mean), float(std))
    # with one weight lambda is exact at every nbeta
    for case in (0, 2, 5):
        error = float(found[case].std()) / 10 ** 0.5
        assert abs(float(found[case].mean()) - CROSSINGS[case][1]) < 4 * error + 0.02
        assert error < 0.1 * CROSSINGS[case][1]


def test_llc_sets_diverged_chains_aside():
    stiff = toy_llc(torch.zeros(5), quadratic(2e4), nbeta=100.0, lr=5e-5, num_draws=100,
                    num_burnin_steps=20)
    assert stiff.num_diverged == 2 and stiff.diverged.all() and math.isnan(stiff.mean)
    assert "diverged" in stiff.warnings[0] and stiff.group_means is None

    def cliff(w):                                               # falls without end beyond |w| = 1
        outside = 1.0 - w.abs().clamp(min=1) ** 6 / 2
        return torch.where(w.abs() < 1, 0.5 * w ** 2, outside).sum()
    mixed = toy_llc(torch.zeros(1), cliff, nbeta=5.0, lr=0.05, num_chains=16, num_draws=60,
                    num_burnin_steps=20)
    assert 0 < mixed.num_diverged < 16, "some chains find the edge"
    assert math.isfinite(mixed.mean) and 0 < mixed.mean < 2
    assert mixed.num_diverged == int(mixed.diverged.sum())
    assert f"{mixed.num_diverged} of 16" in mixed.warnings[0]
    assert mixed.losses.shape == (16, 60)


def warns(result, words):
    return any(words in sentence for sentence in result.warnings)


def test_chains_that_drift_are_named_and_steady_ones_are_not():
    """Both chains rise alike: a ramp from 0 to 2 around a mean of 1."""
    for ramp, named in ((torch.linspace(0, 2, 100), True), (torch.ones(100), False)):
        losses = ramp.double().repeat(2, 1)
        found = measures.LLC(mean=1.0, bias=0.0, mc_error=0.01, losses=losses, nbeta=1.0,
                             baselines=torch.zeros_like(losses), ess=200.0, r_hat=1.0,
                             diverged=torch.zeros(2, dtype=torch.bool)).judge()
        assert warns(found, "not mixed") == named and found.usable != named


def test_llc_says_what_is_wrong():
    slope = toy_llc(torch.full((10,), 2.0), quadratic(1.0), nbeta=100.0, lr=1e-3, num_draws=200,
                    num_burnin_steps=200)
    assert slope.mean < 0 and warns(slope, "no minimum")
    slow = toy_llc(torch.zeros(10), quadratic(1.0), nbeta=100.0, lr=1e-5, num_draws=200,
                   num_burnin_steps=0)
    assert slow.ess < 100 and warns(slow, "effective draws") and warns(slow, "not mixed")
    assert warns(slow, "a larger lr")
    pulls = torch.cat([torch.eye(10), -torch.eye(10)]) * 8
    coarse = llc(Toy(torch.zeros(10)), pulled, (pulls,), nbeta=100.0, lr=1e-2, localization=0.0,
                 batch_size=2, num_draws=300, num_burnin_steps=20, generator=seeded())
    assert warns(coarse, "raw value")
    fine = toy_llc(torch.zeros(10), quadratic(1.0), nbeta=100.0, lr=1e-3, num_draws=1500,
                   num_burnin_steps=100)
    assert fine.warnings == [] and fine.r_hat < 1.05 and fine.ess >= 100


def test_llc_of_a_constant_loss_is_zero_and_says_nothing_of_a_bias():
    """Mean and bias are both 0: no share of one in the other."""
    def constant(model, batch):
        return batch[0].squeeze(1) + 0 * model.w.sum()
    result = llc(Toy(torch.zeros(3)), constant, (torch.zeros(20, 1),), batch_size=4, num_draws=50)
    assert result.mean == 0 and result.bias == 0 and not warns(result, "bias")


def test_llc_baseline_is_paired_and_batches_are_each_chains_own():
    """One row has a huge constant loss: unpaired, each mini-batch with it would shift the value by
    nbeta * 1000 / 4."""
    offset = torch.zeros(16, 1, dtype=torch.float64)
    offset[3] = 1000

    def loss(model, batch):
        return model.w.square().sum() / 2 + batch[0].squeeze(1)
    model = Toy(torch.zeros(10, dtype=torch.float64))
    result = llc(model, loss, (offset,), nbeta=100.0, lr=1e-3, localization=0.0, batch_size=4,
                 num_draws=1500, generator=seeded())
    assert_llc(result, 5.0, "paired baseline")
    assert result.init_loss == pytest.approx(62.5)
    has_it = result.baselines > 0                               # (C, draws): is the row in it?
    assert 0.2 < float(has_it.double().mean()) < 0.3
    assert float((has_it[0] == has_it[1]).double().mean()) < 0.75


def test_llc_is_reproducible_and_follows_its_generator():
    options = dict(nbeta=100.0, lr=1e-3, num_draws=50, num_burnin_steps=5)
    runs = [toy_llc(torch.zeros(3), quadratic(2.0), generator=generator, **options)
            for generator in (None, None, seeded(0), seeded(0), seeded(1))]
    assert runs[0].mean == runs[1].mean and runs[2].mean == runs[3].mean
    assert runs[3].mean != runs[4].mean
    assert not torch.equal(runs[0].losses[0], runs[0].losses[1]), "chains have their own noise"


def test_llc_does_not_depend_on_how_many_cores_share_the_chains():
    model, data = net_and_data(dtype=torch.float64)
    options = dict(num_chains=3, num_draws=20, num_burnin_steps=3, batch_size=8)
    one = llc(model, cross_entropy, data, **options)
    torch.set_num_threads(2)                                    # the fixture puts it back
    two = llc(model, cross_entropy, data, **options)
    assert torch.get_num_threads() == 2, "a chain's one core holds for its own thread"
    assert_close(two.losses, one.losses, 1e-9)


def test_llc_of_groups_adds_up():
    """Group k pulls on coordinates of its own, 2, 4 and 8 of them: LLC_k times its share is half
    their number.  One group's curvature is six times the others', and so is its bias, which
    therefore cannot be shared out equally."""
    kinds = torch.tensor([7] * 10 + [-1] * 30 + [3] * 20)
    owner = {7: slice(0, 2), -1: slice(2, 6), 3: slice(6, 14)}
    rows = torch.zeros(60, 14, dtype=torch.float64)
    for i, kind in enumerate(kinds.tolist()):
        rows[i, owner[kind]] = 6 if kind == 7 else 1

    def loss(model, batch):
        return batch[0] @ model.w.square() / 2 + batch[0][:, 0] / 6
    model = Toy(torch.zeros(14, dtype=torch.float64))
    options = dict(nbeta=300.0, localization=0.0, num_draws=1500)
    for batch_size, lr in ((60, 2e-3), (9, 1e-3)):
        result = llc(model, loss, (rows,), lr=lr, groups=kinds, batch_size=batch_size,
                     generator=seeded(), **options)
        share = result.group_shares
        assert result.groups.tolist() == [-1, 3, 7]
        assert share.tolist() == pytest.approx([0.5, 1 / 3, 1 / 6])
        assert float(share @ result.group_means) == pytest.approx(result.mean, rel=1e-9)
        assert float(share @ result.group_biases) == pytest.approx(result.bias, rel=1e-9)
        exact = torch.tensor([2.0, 4.0, 1.0], dtype=torch.float64) / share
        allowed = torch.maximum(0.03 * exact, 4 * result.group_mc_errors)
        assert ((result.group_means - exact).abs() <= allowed).all(), (result.group_means, exact)
    joint = llc(model, loss, (rows,), lr=2e-3, generator=seeded(), **options)
    assert joint.group_shares.tolist() == [1], "without groups, all rows are one"
    assert joint.group_means.tolist() == pytest.approx([joint.mean])
    assert joint.mean == pytest.approx(7, abs=max(0.14, 3 * joint.mc_error))


WHITE = normal(4, 2000, dtype=torch.float64)


def test_r_hat_of_known_series():
    assert split_r_hat(WHITE) == pytest.approx(1, abs=0.01)
    assert split_r_hat(WHITE + torch.arange(4.0)[:, None]) > 1.3        # chains that stand apart
    assert split_r_hat(WHITE + torch.linspace(0, 4, 2000)) > 1.3        # that drift together
    # parts 1 3, 5 7, 2 4, 8 10: means 2 6 3 9 with variance 10, within-variance 2
    exact = math.sqrt(1 / 2 + 10 / 2)
    even = torch.tensor([[1.0, 3, 5, 7], [2, 4, 8, 10]])
    odd = torch.tensor([[1.0, 3, 99, 5, 7], [2, 4, 99, 8, 10]])
    assert split_r_hat(even) == pytest.approx(exact) and split_r_hat(odd) == pytest.approx(exact)
    assert math.isnan(split_r_hat(torch.ones(2, 10))) and math.isnan(split_r_hat(torch.rand(4, 3)))


def test_effective_samples_of_known_series():
    ess, error = effective_samples(WHITE)
    assert ess == pytest.approx(8000, rel=0.15)
    assert error == pytest.approx(1 / 8000 ** 0.5, rel=0.15)
    phi, x = 0.9, [torch.zeros(4, dtype=torch.float64)]
    for row in normal(20000, 4, seed=1, dtype=torch.float64):
        x.append(phi * x[-1] + row)
    ess, _ = effective_samples(torch.stack(x[1000:], 1))
    assert ess == pytest.approx(4 * 19001 * (1 - phi) / (1 + phi), rel=0.2)
    apart = WHITE + torch.arange(4.0)[:, None]
    assert effective_samples(apart)[0] < 40
    assert effective_samples(torch.ones(2, 10)) == (20.0, 0.0)
    swinging = torch.tensor([[1.0, -1.0] * 50] * 2)            # no pair counts: the most there is
    assert effective_samples(swinging)[0] == pytest.approx(200 * math.log10(210))


# ------------------------------------------------------------------------------------ linear probe


def test_linear_probe_reads_planted_labels_and_not_shuffled_ones():
    scale = torch.logspace(-2, 2, 32)
    x = normal(2400, 32) * scale + 5
    w = normal(32, 6, seed=1) / scale[:, None]
    y = ((x - 5) @ w).argmax(1) * 10 - 20                       # any integers will do
    assert linear_probe(x, y, seeded()) > 0.9
    shuffled = y[torch.randperm(len(y), generator=seeded(2))]
    top = float(y.unique(return_counts=True)[1].max()) / len(y)
    assert linear_probe(x, shuffled, seeded()) < top + 4 * (top * (1 - top) / 600) ** 0.5
    assert linear_probe(x, y, seeded(3)) == linear_probe(x, y, seeded(3))


def test_linear_probe_finds_classes_that_lie_between_others():
    """Five classes along one direction: least squares on one-hot labels never chooses the second or
    the fourth."""
    x = normal(3000, 8)
    y = torch.bucketize(x[:, 0].contiguous(), torch.tensor([-0.84, -0.25, 0.25, 0.84]))
    constant = torch.cat([x, torch.full((3000, 2), 3.0)], 1)    # it must not become NaN
    assert linear_probe(constant, y, seeded()) > 0.7


def test_rows_of_one_input_never_stand_on_both_sides():
    """Labels random for each input, 8 rows of each: who remembers inputs is right, until all rows
    of an input are held out together."""
    inputs = torch.arange(1600) % 200
    x = normal(200, 300)[inputs] + normal(1600, 300, seed=1) / 100
    y = torch.randint(4, (200,), generator=seeded(2))[inputs]
    assert linear_probe(x, y, seeded()) > 0.95
    apart = linear_probe(x, y, seeded(), inputs=inputs)
    assert abs(apart - 1 / 4) < 4 * (3 / 16 / 50) ** 0.5        # 50 inputs are held out
    names = inputs * 7 - 300                                    # any integers will do
    assert linear_probe(x, y, seeded(), inputs=names) == apart


def test_linear_probe_does_not_see_scale_and_offset():
    x = normal(800, 16, dtype=torch.float64)
    y = (x[:, 0] + x[:, 1] > 0).long()
    exact = linear_probe(x, y, seeded())
    assert exact > 0.95
    for other in (x + 1e8, x * 1e-200, x * 1e200, x - 1e6 * x[:1]):
        assert linear_probe(other, y, seeded()) == pytest.approx(exact, abs=0.01)
    with torch.inference_mode():
        assert linear_probe(x, y, seeded()) == exact


def test_linear_probe_refuses_bad_input():
    x, y = normal(50, 4), torch.arange(50) % 2
    for inputs in (torch.zeros(50, dtype=torch.int64), torch.arange(49), torch.rand(50)):
        with pytest.raises(ValueError, match="inputs"):
            linear_probe(x, y, seeded(), inputs=inputs)
    for features, labels in ((x[0], y), (x, y[:40]), (x * math.nan, y), (x, y.float()),
                             (x, torch.zeros_like(y)), (x[:4], y[:4])):
        with pytest.raises(ValueError, match="linear_probe"):
            linear_probe(features, labels, seeded())


BULKS = {"even": torch.linspace(-0.5, 0.5, 298), "normal": normal(298, seed=3) / 5}


@pytest.mark.parametrize("bulk", BULKS)
@pytest.mark.parametrize("other", [-0.999, -0.99, -0.9])
def test_the_larger_of_two_ends_of_about_one_size_is_certain(other, bulk):
    h = matrix(torch.cat([torch.tensor([1.0, other]), BULKS[bulk]])).float()
    for tol in (2e-2, 3e-3):
        found = [lanczos(h.mv, normal(300, seed=seed), tol=tol) for seed in range(100)]
        wrong = [seed for seed, r in enumerate(found) if r.converged and r.eigenvalue < 0]
        assert wrong == [] and sum(r.converged for r in found) == 100, (tol, wrong)
        assert sum(r.iterations for r in found) / 100 < 13
        for r in found:
            assert r.largest == r.eigenvalue and r.residual_largest == r.residual <= tol
            assert r.smallest == pytest.approx(other, abs=5e-3) and r.residual_smallest < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lanczos_stays_orthogonal_where_the_tolerance_is_at_the_rounding_error(dtype):
    h = matrix([5.0, 4.0] + [i / 100 for i in range(100)]).to(dtype)
    for seed in range(10):
        found = lanczos(h.mv, normal(102, seed=seed, dtype=dtype), tol=1e-7, max_iters=150)
        assert found.eigenvalue == pytest.approx(5, rel=1e-5)


def test_fisher_rank_names_itself_where_gradients_are_zero():
    def loss(model, batch):
        return 0 * scalar_output(model, batch)
    with pytest.raises(ValueError, match="fisher_rank: the gradients of all examples are zero"):
        fisher_rank(nn.Linear(3, 1), loss, (torch.ones(4, 3),))
    with pytest.raises(ValueError, match="gradient_rank"):
        gradient_rank(nn.Linear(3, 1), loss, (torch.ones(4, 3),))


# The step is chosen, and what cannot be trusted says so.

def kink(w):
    """A quadratic that goes over into a straight line: curvature 400 at 0, slope 20."""
    return torch.logaddexp(20 * w, -20 * w) - math.log(2)


def summed(each):
    def potential(w):
        return each(w).sum()
    return potential


def exact_llc(each, nbeta, gamma, lim=4.0):
    """nbeta E[L] of one weight, by integration."""
    x = torch.linspace(-lim, lim, 800001, dtype=torch.float64)
    loss = each(x)
    weight = (-nbeta * loss - gamma * x ** 2 / 2).exp()
    return float(nbeta * (loss * weight).sum() / weight.sum())


def warned(result):
    """The kinds of its warnings."""
    kinds = {"chains diverged": "diverged", "negative": "negative", "the stiffness is": "coarse",
             "steeper away": "steeper", "the bias": "bias", "not mixed": "not mixed",
             "only": "few", "effective draws of": "swings", "training gained": "lost",
             "under noise": "noise", "half of localization": "localization"}
    found = [[kind for words, kind in kinds.items() if words in sentence]
             for sentence in result.warnings]
    assert all(len(kinds) == 1 for kinds in found), result.warnings
    return {kind for kind, in found}


@pytest.mark.parametrize("stiffness", [0.5, 1, 2])
def test_llc_of_kinks_at_several_steps(stiffness):
    exact = 100 * exact_llc(kink, 30, 300)
    assert exact == pytest.approx(49.53, abs=0.01)
    lr = stiffness / (30 * 400 + 300)
    result = toy_llc(torch.zeros(100), summed(kink), nbeta=30.0, localization=300.0, lr=lr,
                     num_draws=600)
    assert_llc(result, exact, f"kinks at stiffness {stiffness}")
    assert result.stiffness == pytest.approx(stiffness, rel=0.02)
    assert result.usable and "coarse" not in warned(result)


def test_a_step_that_is_too_large_is_obeyed_and_named():
    """At a stiffness of 12 the draws hang between the two slopes, mixed and far off."""
    options = dict(nbeta=30.0, localization=300.0, num_draws=200)
    coarse = toy_llc(torch.zeros(100), summed(kink), lr=12 / 12300, **options)
    assert coarse.lr == 12 / 12300 and coarse.stiffness == pytest.approx(12, rel=0.02)
    assert not coarse.usable and warned(coarse) & {"coarse", "diverged"}
    between = toy_llc(torch.zeros(100), quadratic(400.0), lr=3 / 12300, **options)
    assert between.usable and "coarse" in warned(between), "a quadratic is right up to 4"
    assert_llc(between, 100 / 2 * 12000 / 12300, "quadratic at stiffness 3")
    mean, error = between.half_lr
    assert mean == pytest.approx(between.mean, abs=4 * error + 4 * between.mc_error)


def test_the_step_is_chosen_by_the_curvature():
    for h, gamma in ((400.0, 300.0), (1.0, 300.0), (1e-3, 50.0), (2.0, 0.0)):
        result = toy_llc(torch.zeros(40), quadratic(h), nbeta=30.0, localization=gamma,
                         num_draws=400)
        assert result.stiffness == pytest.approx(2)
        assert result.lr == pytest.approx(2 / (30 * h + gamma), rel=0.06)
        assert result.stiffness_after == pytest.approx(2, rel=0.06)
        error = max(0.03 * result.mean, 4 * result.mc_error)
        assert result.mean == pytest.approx(20 * 30 * h / (30 * h + gamma), abs=error)
    with pytest.raises(ValueError, match="lr must be given"):
        toy_llc(torch.zeros(3), summed(lambda w: w ** 4))


def test_a_loss_that_is_steeper_away_from_w0_is_named():
    def quartic(w):
        return 3 * w ** 4                                       # no curvature at all at 0
    blind = toy_llc(torch.zeros(100), summed(quartic), nbeta=1000.0, localization=30.0,
                    num_draws=100)
    assert not blind.usable and warned(blind) & {"steeper", "diverged"}
    careful = toy_llc(torch.zeros(100), summed(quartic), nbeta=1000.0, localization=30.0, lr=1e-3,
                      init="w0", num_draws=1500, num_burnin_steps=200)
    assert careful.usable and "steeper" not in warned(careful)
    assert_llc(careful, 100 * exact_llc(quartic, 1000, 30), "3 w^4 with localization")


@pytest.mark.parametrize("power", [4, 6])
def test_llc_of_powers_with_localization(power):
    def each(w):
        return w ** power
    options = dict(nbeta=1000.0, localization=10.0, lr=1e-3)
    result = toy_llc(torch.zeros(1000), summed(each), init="w0", num_draws=800,
                     num_burnin_steps=300, **options)
    assert_llc(result, 1000 * exact_llc(each, 1000, 10), f"w^{power}")
    assert result.usable
    steep = toy_llc(torch.zeros(1000), summed(each), **options)
    assert not steep.usable, "at a draw of the prior the same step is far too large"


FIVE_DECADES = torch.logspace(-2, 3, 50)


@pytest.mark.parametrize("init, burnin", [("prior", 20), ("w0", 100)])
def test_llc_of_curvatures_over_five_decades_from_either_start(init, burnin):
    exact = float((30 * FIVE_DECADES / 2 / (30 * FIVE_DECADES + 3000)).sum())
    result = toy_llc(torch.zeros(50), quadratic(FIVE_DECADES), nbeta=30.0, localization=3000.0,
                     init=init, num_draws=800, num_burnin_steps=burnin)
    assert_llc(result, exact, f"from {init}")
    with pytest.raises(ValueError, match="init must be"):
        toy_llc(torch.zeros(3), quadratic(1.0), init="zero")


def test_the_claimed_errors_cover_the_truth():
    """40 seeds, with the draws that are the default."""
    exact = float((30 * FIVE_DECADES / 2 / (30 * FIVE_DECADES + 3000)).sum())
    inside, r_hats = 0, []
    for seed in range(40):
        result = toy_llc(torch.zeros(50), quadratic(FIVE_DECADES), nbeta=30.0,
                         localization=3000.0, generator=seeded(seed))
        inside += abs(result.mean - exact) <= 2 * result.mc_error
        r_hats.append(result.r_hat)
        assert result.usable and not warned(result) & {"swings", "steeper", "diverged", "negative"}
    assert inside >= 36, inside


def test_sensitivity_is_the_slope_over_localization():
    h, nbeta, gamma = torch.logspace(-1, 2, 200), 30.0, 300.0
    exact = -float((nbeta * h / 2 / (nbeta * h + gamma) ** 2).sum())
    result = toy_llc(torch.zeros(200), quadratic(h), nbeta=nbeta, localization=gamma,
                     num_draws=2000)
    assert result.sensitivity == pytest.approx(exact, rel=0.15)
    slope = 400 * (exact_llc(kink, 1, 21) - exact_llc(kink, 1, 19)) / 2
    result = toy_llc(torch.zeros(400), summed(kink), nbeta=1.0, localization=20.0, lr=0.4 / 420,
                     num_draws=2000)
    assert result.sensitivity == pytest.approx(slope, rel=0.2)
    # a mini-batch's own noise does not pass for it
    u = normal(64, 20, seed=5) / 3
    parts = llc(Toy(torch.zeros(20)), pulled, (u - u.mean(0),), nbeta=30.0, localization=30.0,
                batch_size=32, num_draws=1500, generator=seeded())
    assert parts.sensitivity == pytest.approx(-30 * 20 / 2 / 60 ** 2, rel=0.2)


def test_localization_is_named_where_it_decides():
    stiff = toy_llc(torch.zeros(40), quadratic(100.0), nbeta=100.0, localization=10.0,
                    num_draws=400)
    assert warned(stiff) == set(), stiff.warnings
    soft = toy_llc(torch.zeros(40), quadratic(1.0), nbeta=100.0, localization=100.0, num_draws=400)
    assert warned(soft) == {"localization"} and soft.usable
    assert "half of localization 100 would change the value by +2" in soft.warnings[0]


def test_what_is_no_more_than_noise_is_named():
    """d / 2 nbeta h / gamma without sampling: what nbeta h << gamma gives with it."""
    weak = toy_llc(torch.zeros(400), quadratic(0.01), nbeta=100.0, localization=1000.0,
                   num_draws=400)
    assert weak.noise_only == pytest.approx(0.2, abs=5 * weak.noise_only_error)
    assert 0 < weak.noise_only_error < 0.02 and "noise" in warned(weak)
    held = toy_llc(torch.zeros(400), quadratic(10.0), nbeta=100.0, localization=1000.0,
                   num_draws=400)
    assert held.noise_only == pytest.approx(200, rel=0.1) and "noise" not in warned(held)
    assert math.isnan(toy_llc(torch.zeros(4), quadratic(1.0)).noise_only), "there is no prior"


def test_how_much_of_what_training_gained_is_lost_again():
    """nbeta E[L] is 20, so E[L] is 2."""
    for worst, share in ((100.0, 0.02), (4.0, 0.5)):
        result = toy_llc(torch.zeros(40), quadratic(100.0), nbeta=10.0, worst_loss=worst,
                         num_draws=600)
        assert result.lost_share == pytest.approx(share, rel=0.1)
        assert ("lost" in warned(result)) == (share > 0.2) and result.usable
    assert math.isnan(toy_llc(torch.zeros(4), quadratic(1.0)).lost_share)


def test_draws_are_made_until_the_error_is_small():
    sizes = []

    def watch(result):
        sizes.append(result.losses.shape[1])
    options = dict(nbeta=100.0, localization=10.0, num_draws=2000)
    result = toy_llc(torch.zeros(200), quadratic(1.0), mc_error=0.02, callback=watch, **options)
    assert result.mc_error <= 0.02 * result.mean and 50 <= sizes[-1] < 1000
    assert sizes == list(range(50, sizes[-1] + 1, 50))
    again = toy_llc(torch.zeros(200), quadratic(1.0), **(options | {"num_draws": sizes[-1]}))
    assert torch.equal(again.losses, result.losses), "pieces are one chain"
    options["num_draws"] = 70
    capped = toy_llc(torch.zeros(200), quadratic(1.0), mc_error=1e-9, **options)
    assert capped.losses.shape == (2, 70) and capped.mc_error > 1e-9


def test_noise_in_flat_and_in_stiff_directions_at_once():
    """Half of the weights are flat.  Noise in these heats nothing that the loss would see."""
    n, b, d, nbeta, gamma, lr = 64, 8, 400, 100.0, 10.0, 3e-3
    h = torch.cat([torch.full((200,), 4.0), torch.zeros(200)])
    u = normal(n, d, seed=5) / 3
    u = u - u.mean(0)

    def loss(model, batch):
        return (h * model.w.square()).sum() / 2 + batch[0] @ model.w
    result = llc(Toy(torch.zeros(d)), loss, (u,), nbeta=nbeta, lr=lr, localization=gamma,
                 batch_size=b, num_draws=800, num_burnin_steps=100, generator=seeded())
    assert result.bias > 0.2 * result.mean
    assert_llc(result, 100 * 400 / 410, "noise in flat and stiff directions")
    assert "bias" in warned(result)


@pytest.mark.parametrize("stiffness", [3.3, 3.9])
def test_the_correction_holds_up_to_the_limit_of_stability(stiffness):
    d, n, b, nbeta, gamma = 200, 64, 32, 30.0, 3.0
    u = normal(n, d, seed=5) / 20
    u = u - u.mean(0)
    result = llc(Toy(torch.zeros(d)), pulled, (u,), nbeta=nbeta, lr=stiffness / 33,
                 localization=gamma, batch_size=b, num_draws=600, num_burnin_steps=100,
                 generator=seeded())
    assert_llc(result, 100 * 30 / 33, f"mini-batches at stiffness {stiffness}")
    assert "coarse" in warned(result)


def test_a_chain_above_what_the_prior_loses_has_diverged():
    """Kinks hide it: the loss stays finite, and the draws are mixed."""
    wild = toy_llc(torch.zeros(100), summed(kink), nbeta=30.0, localization=3.0, lr=0.2,
                   num_draws=100)
    assert torch.isfinite(wild.losses).all() and wild.num_diverged == 2
    assert not wild.usable and "diverged" in warned(wild) and math.isnan(wild.mean)


@pytest.mark.slow
def test_a_slow_chain_is_not_called_diverged():
    """w^8 at a step a thousand times too small; then at one that is not."""
    def flat(w):
        return (w ** 8).sum()
    slow = toy_llc(torch.zeros(10), flat, nbeta=100.0, lr=1e-6, num_chains=4, num_draws=400)
    assert slow.num_diverged == 0 and not slow.usable
    assert warns(slow, "not mixed") and warns(slow, "a larger lr")
    right = toy_llc(torch.zeros(10), flat, nbeta=100.0, lr=1e-3, num_chains=4, num_draws=6000,
                    num_burnin_steps=2000)
    assert right.mean == pytest.approx(1.25, abs=3 * right.mc_error)
    assert not warns(right, "diverged")


@pytest.mark.parametrize("loss", [
    lambda w: (w ** 4).sum(), lambda w: (w ** 6).sum(), lambda w: w.abs().sum(),
    lambda w: (w[::2] * w[1::2]).square().sum(), lambda w: 1e-4 * w.square().sum()])
def test_other_slow_chains_are_told_to_take_larger_steps(loss):
    slow = toy_llc(torch.zeros(10), loss, nbeta=100.0, lr=1e-6, num_chains=4, num_draws=200)
    assert slow.num_diverged == 0 and not slow.usable and not warns(slow, "diverged")
    assert warns(slow, "not mixed") and warns(slow, "a larger lr") and not warns(slow, "smaller lr")


def test_more_effective_draws_than_draws_are_named():
    losses = torch.rand(2, 100, generator=seeded(), dtype=torch.float64)
    for ess, named in ((400.0, True), (150.0, False)):
        found = measures.LLC(mean=0.5, bias=0.0, mc_error=0.02, losses=losses, nbeta=1.0, r_hat=1.0,
                             baselines=0 * losses, ess=ess,
                             diverged=torch.zeros(2, dtype=torch.bool)).judge()
        assert ("swings" in warned(found)) == named and found.usable != named


@pytest.mark.slow
def test_llc_of_a_trained_network_is_that_of_either_start_and_step():
    """A nano of 600 steps on modadd, which is mostly learned.  The numbers agree within errors."""
    import models
    import tasks
    for snapshot in models.train(models.TrainConfig(snapshots=2)):
        pass
    lines = [tasks.sample("modadd", k, 128, seeded(k)) for k in (1, 2, 3)]
    width = max(batch.tokens.shape[1] for batch in lines)
    data = [torch.cat([nn.functional.pad(batch[i], (0, width - batch[i].shape[1]), value=value)
                       for batch in lines]) for i, value in ((0, tasks.PAD), (1, tasks.IGNORE))]

    def found(**options):
        return llc(snapshot.model, models.packed_loss, data, batch_size=144, generator=seeded(),
                   groups=torch.arange(3).repeat_interleave(128), **options)
    first = found(num_draws=200)
    assert first.usable and first.mc_error < 0.04 * first.mean
    assert first.mean < 0.8 * first.noise_only, "the loss holds the weights"
    others = {"w0": found(init="w0", num_draws=200, num_burnin_steps=60),
              "half": found(lr=first.lr / 2, num_draws=400, num_burnin_steps=40),
              "warm": found(start=first.eigenvector, num_draws=200)}
    for name, other in others.items():
        allowed = 3 * math.hypot(first.mc_error, other.mc_error)
        assert abs(other.mean - first.mean) <= allowed, (name, first.mean, other.mean, allowed)


# ---------------------------------------------------------------------------- any context, any data


def grouped_llc(model, loss_fn, data, **options):
    n = len(next(iter(data.values())) if isinstance(data, dict) else data[0])
    defaults = dict(num_chains=2, num_draws=4, num_burnin_steps=2, batch_size=8)
    return llc(model, loss_fn, data, **(defaults | {"groups": torch.arange(n) % 2} | options))


def ungrouped_llc(model, loss_fn, data, **options):
    return llc(model, loss_fn, data, num_chains=2, num_draws=4, num_burnin_steps=2, batch_size=8,
               **options)


LOSS_MEASURES = {"gradient_gram": gradient_gram, "gradient_rank": gradient_rank,
                 "fisher_rank": fisher_rank, "hessian_top": hessian_top, "llc": ungrouped_llc}


def number(result):
    """What a measure found, as a tensor."""
    if isinstance(result, measures.HessianTop):
        result = result.eigenvalue
    elif isinstance(result, measures.LLC):
        result = result.mean
    return torch.as_tensor(result, device="cpu")


def small_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.GELU(),
                             nn.Linear(8, 3))


def small_data(n=16, seed=1):
    return normal(n, 6, seed=seed), torch.arange(n) % 3


@functools.cache
def reference(name):
    return number(LOSS_MEASURES[name](small_net(), cross_entropy, small_data()))


def assert_reference(name, result, rel=2e-3):
    exact = reference(name)
    assert_close(number(result).double(), exact.double(), rel, name)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def inference_and_autocast():
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        yield


@contextlib.contextmanager
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def counted_operations():
    with FlopCounterMode(display=False):
        yield


CONTEXTS = {
    "none": contextlib.nullcontext,
    "autocast to float16": functools.partial(torch.autocast, "cpu", torch.float16),
    "saved tensors elsewhere": torch.autograd.graph.save_on_cpu,
    "warnings are errors": warnings_are_errors,
    "operations are counted": counted_operations,
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": functools.partial(torch.autocast, "cpu", torch.bfloat16),
    "inference and autocast": inference_and_autocast,
    "default dtype": functools.partial(default_dtype, torch.float64),
    "default device": functools.partial(torch.device, "meta"),
    "deterministic": deterministic,
    "anomaly": functools.partial(torch.autograd.set_detect_anomaly, True),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", LOSS_MEASURES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_measure_gives_the_same_number_in_every_context(name, context):
    model, data = small_net(), small_data()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with CONTEXTS[context]():
        result = LOSS_MEASURES[name](model, cross_entropy, data)
    assert_reference(name, result)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap, torch.func.jacfwd])
@pytest.mark.parametrize("name", LOSS_MEASURES)
def test_a_measure_within_a_transform_of_torch_func_is_the_same(name, transform):
    model, data, found = small_net(), small_data(), []

    def function(x):
        found.append(LOSS_MEASURES[name](model, cross_entropy, data))
        return x * 2
    transform(function)(torch.ones(3) if transform is torch.func.vmap else torch.tensor(1.0))
    assert_reference(name, found[0])


def made_in_inference_mode():
    with torch.inference_mode():
        return small_net()


def with_hooks():
    """Hooks of the caller, which fail if they are called."""
    def never(*_):
        raise AssertionError("a hook of the caller was called")
    model = small_net()
    model[0].register_forward_hook(never)
    model[2].register_forward_pre_hook(never)
    model[2].register_full_backward_hook(never)
    return model


class KeepsItsActivation(nn.Module):
    """Under a name, in a dict, in lists within lists, and in an object."""
    def __init__(self):
        super().__init__()
        self.net, self.all = small_net(), []

    def forward(self, x):
        self.last = self.net[:2](x)
        self.parts = {"hidden": self.last}
        self.all.append((0, [self.last]))
        self.held = types.SimpleNamespace(inner={"hidden": self.last})
        return self.net[2:](self.last)


class Checkpointed(nn.Module):
    """Recomputes activations in the backward pass."""
    def __init__(self, use_reentrant):
        super().__init__()
        self.net, self.use_reentrant = small_net(), use_reentrant

    def forward(self, x):
        hidden = torch.utils.checkpoint.checkpoint(self.net[:2], x,
                                                   use_reentrant=self.use_reentrant)
        return self.net[2:](hidden)


class DropsByHand(nn.Module):
    """Its Dropout is in a list, where eval() does not find it."""
    def __init__(self):
        super().__init__()
        self.net, self.others = small_net(), [nn.Dropout(0.5)]

    def forward(self, x):
        return self.net[2:](self.others[0](self.net[:2](x)))


def whose_block_is_replaced():
    """As a wrapper does it that looks at what goes through a block."""
    model = small_net()
    forward = model[0].forward
    model[0].forward = lambda x: forward(x)
    return model


def whose_forward_is_replaced():
    model = small_net()
    model.forward = lambda x, forward=model.forward: forward(x)
    return model


def keeps_its_activation():
    model = KeepsItsActivation()
    model(torch.ones(2, 6))
    return model


def compiled_in_place():
    model = small_net()
    model.compile()
    return model


def in_half_precision(dtype=torch.bfloat16):
    """Weights that bfloat16 can hold, so that the number is that of float32."""
    return rounded_net().to(dtype)


def rounded_net():
    model = small_net()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    return model


def with_weight_norm():
    model = small_net()
    nn.utils.parametrizations.weight_norm(model[2])
    return model


def with_tied_weights():
    model = small_net()
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())
    return model


MODELS = {
    "plain": small_net,
    "compiled": lambda: torch.compile(small_net()),
    "part of it compiled": lambda: nn.Sequential(torch.compile(small_net()[:3]), small_net()[3:]),
    "DataParallel": lambda: nn.DataParallel(small_net()),
    "made in inference mode": made_in_inference_mode,
    "hooks": with_hooks,
    "keeps its activation": keeps_its_activation,
    "own copy of a weight": with_tied_weights,
    "compiled in place": compiled_in_place,
    "compiled in parallel": lambda: torch.compile(nn.DataParallel(small_net())),
    "TorchScript": lambda: torch.jit.script(small_net()),
    "traced": lambda: torch.fx.symbolic_trace(small_net()),
    "checkpointed": lambda: Checkpointed(use_reentrant=False),
}


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")])
@pytest.mark.parametrize("name", LOSS_MEASURES)
def test_too_little_memory_is_no_fault_of_a_loss(name, error, monkeypatch):
    """So a run that had too little can go on where there is more."""
    def full(*_):
        raise error
    with pytest.raises(type(error)) as raised:
        LOSS_MEASURES[name](small_net(), full, small_data())
    assert raised.value is error
    monkeypatch.setattr(measures, "lanczos", full)
    with pytest.raises(type(error)) as raised:
        hessian_top(small_net(), cross_entropy, small_data())
    assert raised.value is error


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", LOSS_MEASURES)
def test_a_measure_gives_the_same_number_for_every_kind_of_model(name, kind):
    assert_reference(name, LOSS_MEASURES[name](MODELS[kind](), cross_entropy, small_data()))


@pytest.mark.parametrize("name", LOSS_MEASURES)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_loss_has_the_same_number(name, backend):
    compiled = torch.compile(cross_entropy, backend=backend)
    model = small_net()
    compiled(model, small_data())                               # compiled before it is measured
    assert_reference(name, LOSS_MEASURES[name](model, compiled, small_data()))


@pytest.mark.parametrize("name", LOSS_MEASURES)
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore")
def test_hooks_that_torch_itself_needs_stay(name, norm):
    """weight_norm computes a weight from others, in a hook or a parametrisation: a copy without it
    would not depend on them."""
    model = small_net()
    norm(model[2])
    once = number(LOSS_MEASURES[name](model, cross_entropy, small_data()))
    model(torch.ones(2, 6)).sum().backward()
    model.zero_grad()
    assert torch.equal(number(LOSS_MEASURES[name](model, cross_entropy, small_data())), once)
    gram = gradient_gram(model, cross_entropy, small_data())
    assert_close(gram, slow_gram(with_weight_norm(), small_data()), 1e-4)


@pytest.mark.parametrize("name", LOSS_MEASURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(name, dtype):
    x, y = small_data()
    x = x.bfloat16().float()
    with torch.random.fork_rng():
        model = rounded_net()
    exact = number(LOSS_MEASURES[name](model, cross_entropy, (x, y)))
    half = model.to(dtype)
    if all(torch.equal(p.float().bfloat16().float(), p.float()) for p in half.parameters()):
        got = number(LOSS_MEASURES[name](half, cross_entropy, (x.to(dtype), y)))
        assert_close(got.double(), exact.double(), 5e-3, name)
    assert next(half.parameters()).dtype == dtype


class Quadratic(nn.Module):
    def __init__(self, at, dtype):
        super().__init__()
        self.w = nn.Parameter(torch.full((200,), float(at), dtype=dtype))
        self.register_buffer("c", self.w.detach().clone())


@pytest.mark.parametrize("dtype, at", [(torch.bfloat16, 1), (torch.bfloat16, 5),
                                       (torch.float16, 20), (torch.float32, 20)])
def test_llc_of_half_precision_does_not_depend_on_where_the_weights_are(dtype, at):
    """200 weights, nbeta 30, localization 300: 200 / 2 * 30 / 330."""
    def loss(model, batch):
        return (model.w - model.c).float().square().sum().expand(len(batch[0])) / 2
    result = llc(Quadratic(at, dtype), loss, ONE_ROW, nbeta=30.0, localization=300.0,
                 num_draws=400, generator=seeded())
    assert_llc(result, 200 / 2 * 30 / 330, f"{dtype} at {at}")


def dict_loss(model, batch):
    assert isinstance(batch, dict)
    return cross_entropy(model, (batch["x"], batch["y"]))


def kinds_of_data():
    x, y = small_data()
    return {"tuple": (x, y), "list": [x, y], "dict": {"x": x, "y": y},
            "numpy": (x.numpy(), y.numpy()), "numpy float64": (x.double().numpy(), y.numpy()),
            "dict of numpy": {"x": x.numpy(), "y": y.numpy()},
            "numbers": (x.tolist(), y.tolist()),
            "TensorDataset": torch.utils.data.TensorDataset(x, y),
            "gradients": (x.clone().requires_grad_(), y),
            "reversed numpy": (x.numpy()[::-1].copy()[::-1], y.numpy()),
            "big-endian numpy": (x.numpy().astype(">f4"), y.numpy().astype(">i8")),
            "UserDict": collections.UserDict(x=x, y=y),
            "namedtuple": collections.namedtuple("Pair", "x y")(x, y)}


@pytest.mark.parametrize("kind", kinds_of_data())
@pytest.mark.parametrize("name", LOSS_MEASURES)
def test_data_as_people_have_it(name, kind):
    data = kinds_of_data()[kind]
    loss = dict_loss if isinstance(data, Mapping) else cross_entropy
    assert_reference(name, LOSS_MEASURES[name](small_net(), loss, data))


def test_a_bare_tensor_is_a_column():
    def loss(model, batch):
        x, = batch
        return model(x).square().sum(1)
    x = small_data()[0]
    for name, measure in LOSS_MEASURES.items():
        exact = number(measure(small_net(), loss, (x,)))
        for bare in (x, x.numpy()):
            assert torch.equal(number(measure(small_net(), loss, bare)), exact), name


def loader(*columns):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*columns))


def test_a_loss_that_changes_its_batch_changes_no_data_of_the_callers():
    def loss(model, batch):
        x, y = batch
        x.clamp_(max=0.5)
        y[y == 2] = 0
        return cross_entropy(model, (x, y))
    x, y = small_data()
    for name, measure in LOSS_MEASURES.items():
        data = x.clone(), y.clone()
        found = number(measure(small_net(), loss, data))
        assert torch.equal(data[0], x) and torch.equal(data[1], y), name
        exact = measure(small_net(), cross_entropy, (x.clamp(max=0.5), y * (y != 2)))
        assert_close(found.double(), number(exact).double(), 1e-4, name)


@pytest.mark.parametrize("scale", [2.0 ** -100, 2.0 ** -70, 2.0 ** 80, 2.0 ** 110])
@pytest.mark.parametrize("name", LOSS_MEASURES)
def test_a_measure_of_a_loss_does_not_see_its_scale(name, scale):
    """Squares of such numbers are beyond float32.  The LLC is that of nbeta times the loss."""
    def loss(model, batch):
        return cross_entropy(model, batch) * scale
    unit = {"gradient_gram": scale ** 2, "hessian_top": scale}.get(name, 1.0)
    options = dict(nbeta=100 / scale) if name == "llc" else {}
    found = LOSS_MEASURES[name](small_net(), loss, small_data(), **options)
    assert_reference(name, number(found).double() / unit)


@pytest.mark.parametrize("name", LOSS_MEASURES)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_other_data_is_refused_by_a_sentence_that_says_what_to_write(name):
    x, y = small_data()
    for data, words in ((loader(x, y), r"tuple\(dataset.tensors\)"), (iter([x, y]), "DataLoader"),
                        (None, "DataLoader"), ([(x[0], y[0]), (x[1], y[1])], "stack examples"),
                        ((x, ["a"] * 16), "stack examples"), ((x, 3.0), "rows"), ((), "rows"),
                        ({}, "rows"), ((x.to_sparse(), y), "sparse"),
                        ((torch.nested.nested_tensor(list(x)), y), "nested"),
                        ((np.ma.masked_array(x.numpy(), x.numpy() > 1), y), "masked")):
        with pytest.raises(ValueError, match=words) as caught:
            LOSS_MEASURES[name](small_net(), cross_entropy, data)
        assert "\n" not in str(caught.value)


OUTSIDE, THE_MODEL = small_net(), [small_net()]


def ignores_the_model(model, batch):
    return cross_entropy(OUTSIDE, batch)


def couples_by_contrast(model, batch):
    """InfoNCE: the other rows of the batch are the wrong answers."""
    z = nn.functional.normalize(model(batch[0]))
    return nn.functional.cross_entropy(z @ z.T * 5, torch.arange(len(z)), reduction="none")


def couples_by_batch_statistics(model, batch):
    z = model(batch[0])
    z = (z - z.mean(0)) / (z.std(0, correction=0) + 0.1)
    return nn.functional.cross_entropy(z, batch[1], reduction="none")


def divides_by_the_batch(model, batch):
    return cross_entropy(model, batch) / len(batch[0])


def without_gradient(model, batch):
    return cross_entropy(model, batch).detach()


def under_no_grad(model, batch):
    with torch.no_grad():
        return cross_entropy(model, batch)


def counts_errors(model, batch):
    return (model(batch[0]).argmax(1) != batch[1]).float()


def returns_a_tuple(model, batch):
    return cross_entropy(model, batch), model(batch[0])


def reads_a_tuple(model, batch):                                # as nanoGPT's (logits, loss)
    return nn.functional.cross_entropy((model(batch[0]), None), batch[1], reduction="none")


def leaves_dropout_on(model, batch):
    return cross_entropy(model, (nn.functional.dropout(batch[0]), batch[1]))


def draws_from_python(model, batch):
    return cross_entropy(model, (batch[0] * random.random(), batch[1]))


def draws_from_numpy(model, batch):
    return cross_entropy(model, (batch[0] * float(np.random.rand()), batch[1]))


def detaches_a_part(model, batch):
    logits = model[2:](model[:2](batch[0]).detach())
    return nn.functional.cross_entropy(logits, batch[1], reduction="none")


def is_relative_to_the_best(model, batch):
    losses = cross_entropy(model, batch)
    return losses - losses.min().detach()


def averages_over_all_tokens(model, batch):
    """Rows count by their length; the first eight of small_data() have the same one."""
    lengths = 1 + (batch[0] - small_data()[0][8]).abs().sum(1).lt(1e-6).float()
    return cross_entropy(model, batch) * lengths / lengths.mean()


def uses_a_part_of_another(model, batch):
    """A mistake in a closure: its first layer is that of the caller's model."""
    logits = model[2:](THE_MODEL[0][:2](batch[0]))
    return nn.functional.cross_entropy(logits, batch[1], reduction="none")


def has_a_bug(model, batch):
    return batch["labels"]


BAD_LOSSES = [
    (ignores_the_model, "ignores the model"), (couples_by_contrast, "couples its examples"),
    (couples_by_batch_statistics, "couples its examples"),
    (divides_by_the_batch, "couples its examples"), (without_gradient, "no gradient"),
    (under_no_grad, "no gradient"), (counts_errors, "no gradient"),
    (returns_a_tuple, r"one loss per example.*got tuple.*model\(x\)\[0\]"),
    (reads_a_tuple, r"TypeError.*unpacks.*model\(x\)\.logits"), (leaves_dropout_on, "random"),
    (has_a_bug, "loss_fn fails"), (draws_from_python, "random"), (draws_from_numpy, "random"),
    (detaches_a_part, "depends on parameters for which it has no gradient"),
    (is_relative_to_the_best, "couples its examples"),
    (uses_a_part_of_another, "uses the model itself"),
    (averages_over_all_tokens, "couples its examples")]


@pytest.mark.parametrize("loss, words", BAD_LOSSES)
@pytest.mark.parametrize("name", LOSS_MEASURES)
def test_a_loss_that_cannot_be_measured_is_refused_in_one_sentence(name, loss, words):
    model, state, python = THE_MODEL[0], torch.get_rng_state(), random.getstate()
    numpys = str(np.random.get_state())
    with pytest.raises(ValueError, match=words) as caught:
        LOSS_MEASURES[name](model, loss, small_data())
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert str(np.random.get_state()) == numpys
    for net in (model, OUTSIDE):
        assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("loss, seed, seeds", [
    (draws_from_python, random.seed, (2, 126, 132, 178)),
    (draws_from_numpy, np.random.seed, (86, 90, 136, 273))])
def test_a_random_loss_is_called_random_where_two_of_its_draws_are_close(loss, seed, seeds):
    """Of these seeds the first two draws differ so little that both losses are the same; the rows
    alone, which draw later, differ: the loss was said to couple its examples."""
    python, numpys = random.getstate(), np.random.get_state()
    try:
        for number in seeds:
            seed(number)
            with pytest.raises(ValueError, match="random"):
                LOSS_MEASURES["gradient_gram"](small_net(), loss, small_data())
    finally:
        random.setstate(python)
        np.random.set_state(numpys)


def test_a_loss_with_a_teacher_leaves_the_teacher_alone():
    def distil(model, batch):
        return (model(batch[0]) - OUTSIDE(batch[0])).square().sum(1)
    for measure in LOSS_MEASURES.values():
        assert torch.isfinite(number(measure(small_net(1), distil, small_data()))).all()
    assert all(p.grad is None for p in OUTSIDE.parameters())


def with_shared_storage():
    model = small_net()
    model[2].weight.data = model[2].bias.data.expand(8, 8)      # each row is the bias
    return model


def with_a_detached_alias():
    model = small_net()
    model.alias = model[0].weight.data
    return model


def that_cannot_be_copied():
    model = small_net()
    model.lock = threading.Lock()
    return model


def with_batch_statistics():
    """BatchNorm without running statistics: in eval mode, too, a row depends on the batch."""
    model = small_net()
    return nn.Sequential(model[:3], nn.BatchNorm1d(8, track_running_stats=False), model[3:])


BAD_MODELS = [
    (with_batch_statistics, "couples its examples|more than 1 value per channel"),
    (with_shared_storage, "share their storage"), (with_a_detached_alias, "share their storage"),
    (that_cannot_be_copied, "cannot be copied"), (lambda: cross_entropy, "torch.nn.Module"),
    (lambda: nn.Sequential(nn.LazyLinear(3)), "nothing at all in parameter '0.weight'"),
    (lambda: small_net().to("meta"), "nothing at all"),
    (whose_block_is_replaced, "Linear.forward was replaced"),
    (whose_forward_is_replaced, "Sequential.forward was replaced"), (DropsByHand, "random"),
    (lambda: Checkpointed(use_reentrant=True), "no gradient.*use_reentrant=False"),
    (lambda: small_net().requires_grad_(False), "requires gradients")]


@pytest.mark.parametrize("make, words", BAD_MODELS)
@pytest.mark.parametrize("name", LOSS_MEASURES)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_model_that_cannot_be_measured_is_refused_in_one_sentence(name, make, words):
    with pytest.raises(ValueError, match=words) as caught:
        LOSS_MEASURES[name](make(), cross_entropy, small_data())
    assert "\n" not in str(caught.value)


def test_views_of_one_flat_vector_are_no_shared_storage():
    model = small_net()
    params = list(model.parameters())
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(params), params)
    for name, measure in LOSS_MEASURES.items():
        assert_reference(name, measure(model, cross_entropy, small_data()))


class Fused(torch.autograd.Function):
    """A function with a first derivative alone."""
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


def test_a_loss_without_a_second_derivative_is_refused():
    def loss(model, batch):
        logits = model[2:](Fused.apply(model[:2](batch[0])))
        return nn.functional.cross_entropy(logits, batch[1], reduction="none")
    with pytest.raises(ValueError, match="second derivative.*not symmetric"):
        hessian_top(small_net(), loss, small_data())
    assert gradient_gram(small_net(), loss, small_data()).shape == (16, 16)


def test_only_restricts_llc_to_the_named_parameters():
    """Two independent quadratics of 100 and 300 weights."""
    def loss(model, batch):
        return sum(p.square().sum() / 2 for p in model.parameters()).expand(len(batch[0]))
    model = nn.ParameterDict({"a": torch.zeros(100), "b": torch.zeros(300)})
    options = dict(nbeta=100.0, localization=0.0, num_draws=300, generator=seeded())
    for only, exact in ((None, 200), (["a"], 50), ("b", 150), (["a", "b"], 200)):
        assert_llc(llc(model, loss, ONE_ROW, only=only, **options), exact, str(only))
    with pytest.raises(ValueError, match="names no parameter: .'c'."):
        llc(model, loss, ONE_ROW, only=["a", "c"])
    net = small_net()
    found = llc(net, cross_entropy, small_data(), only=["2", "4.bias"], num_draws=4)
    assert found.eigenvector.shape == (8 * 8 + 8 + 3,)


def test_results_are_rows_of_plain_numbers():
    model, data = small_net(), small_data()
    top = hessian_top(model, cross_entropy, data)
    found = grouped_llc(model, cross_entropy, data, worst_loss=2.0)
    for result in (top, found, measures.LLC()):
        row = json.loads(json.dumps(result.row(), allow_nan=False))
        assert not {"eigenvector", "vectors", "losses", "baselines"} & set(row)
    assert top.row()["eigenvalue"] == top.eigenvalue and top.row()["converged"] is True
    top.eigenvalues = torch.tensor([2.0, math.nan])
    assert top.row()["eigenvalues"] == [2.0, None]
    row = found.row()
    assert row["group_means"] == found.group_means.tolist() and row["groups"] == [0, 1]
    assert row["warnings"] == found.warnings and row["usable"] == found.usable


# Whatever is called with whatever: the number, or a sentence.

@pytest.mark.parametrize("count", [30, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_random_calls_give_the_number_or_a_sentence(count):
    losses = [(cross_entropy, True)] * 30 + [(loss, False) for loss, _ in BAD_LOSSES]
    models = [(make, True) for make in MODELS.values()] * 4
    models += [(make, False) for make, _ in BAD_MODELS]
    datas = [(kind, True) for kind in kinds_of_data()] * 2
    datas += [("loader", False), ("none", False), ("sparse", False)]
    seen = {"number": 0, "sentence": 0}

    @settings(max_examples=count, derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(LOSS_MEASURES)), st.sampled_from(sorted(CONTEXTS)),
           st.sampled_from(losses), st.sampled_from(models), st.sampled_from(datas))
    def check(name, context, loss, model, data):
        (loss, loss_good), (make, model_good), (kind, data_good) = loss, model, data
        known = kinds_of_data() | {"none": None, "loader": loader(*small_data()), "sparse": (
            small_data()[0].to_sparse(), small_data()[1])}
        if isinstance(known[kind], Mapping) and loss is cross_entropy:
            loss = dict_loss
        reference(name)                                         # not first computed in a context
        built, state = make(), torch.get_rng_state()
        THE_MODEL[0] = built
        with CONTEXTS[context]():
            try:
                result = LOSS_MEASURES[name](built, loss, known[kind])
            except ValueError as error:
                assert "\n" not in str(error) and not (loss_good and model_good and data_good)
                seen["sentence"] += 1
            else:
                assert_reference(name, result)
                assert loss_good and model_good and data_good
                seen["number"] += 1
        assert torch.equal(torch.get_rng_state(), state)
    check()
    print(f"{sum(seen.values())} random calls: {seen}")
    assert min(seen.values()) > 0.2 * count, seen


# --------------------------------------------------------------------------------- for all of them


def short_plain_llc(model, loss_fn, data):
    return plain_llc(model, loss_fn, data, 30.0, 1e-4, 300.0, num_draws=4, num_burnin_steps=2)


@pytest.mark.parametrize("measure", [*LOSS_MEASURES.values(), grouped_llc, short_plain_llc])
def test_measuring_disturbs_nothing(measure):
    model, data = net_and_data(dtype=torch.float32)
    model.train()
    model[3].eval()                                             # mixed modes have to survive
    model[7].weight.grad = torch.ones_like(model[7].weight)     # one gradient set, the others None
    params = list(model.parameters())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pointers, flags = [p.data_ptr() for p in params], [p.requires_grad for p in params]
    inputs, state = [t.clone() for t in data], torch.get_rng_state()
    with torch.no_grad():                                       # a measuring loop may run under it
        first = measure(model, cross_entropy, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert pointers == [p.data_ptr() for p in params]
    assert flags == [p.requires_grad for p in params]
    assert [m.training for m in model] == [True] * 3 + [False] + [True] * 4 and model.training
    assert torch.equal(model[7].weight.grad, torch.ones(3, 8)) and model[4].weight.grad is None
    assert all(torch.equal(a, b) for a, b in zip(inputs, data)) and torch.is_grad_enabled()
    again = measure(model, cross_entropy, data)
    assert torch.equal(number(first), number(again))


@pytest.mark.parametrize("name", LOSS_MEASURES)
def test_not_a_number_is_refused_and_located(name):
    measure, (model, data) = LOSS_MEASURES[name], net_and_data(dtype=torch.float32)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[4].weight[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"'4\.weight'"):
        measure(broken, cross_entropy, data)
    inputs = data[0].clone()
    inputs[13] = math.inf
    with pytest.raises(ValueError, match="example 13"):
        measure(model, cross_entropy, (inputs, data[1]))

    def mean_loss(model, batch):
        return cross_entropy(model, batch).mean()
    with pytest.raises(ValueError, match="one loss per example"):
        measure(model, mean_loss, data)
    with pytest.raises(ValueError, match="same number of rows"):
        measure(model, cross_entropy, (data[0], data[1][:5]))
    with pytest.raises(ValueError, match="same number of rows"):
        measure(model, cross_entropy, (data[0][:0], data[1][:0]))
    with pytest.raises(ValueError, match="requires gradients"):
        measure(copy.deepcopy(model).requires_grad_(False), cross_entropy, data)


@pytest.mark.parametrize("options", [
    dict(nbeta=-1.0), dict(lr=0.0), dict(lr=math.nan), dict(localization=-1.0), dict(num_draws=2),
    dict(batch_size=0), dict(num_chains=0), dict(groups=torch.zeros(3, dtype=torch.int64))])
def test_llc_refuses_arguments_out_of_range(options):
    model, data = net_and_data(dtype=torch.float32)
    with pytest.raises(ValueError, match="llc: .*" + next(iter(options))):
        llc(model, cross_entropy, data, **options)


def test_hessian_top_refuses_a_wrong_start_and_a_wrong_limit():
    model, data = net_and_data(dtype=torch.float32)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for start in (torch.ones(3), torch.zeros(count), torch.full((count,), math.nan)):
        with pytest.raises(ValueError, match="start must be"):
            hessian_top(model, cross_entropy, data, start=start)
    with pytest.raises(ValueError, match="max_iters at least 1"):
        hessian_top(model, cross_entropy, data, max_iters=0)


# ------------------------------------------------------------------- other people's code, and a GPU


def test_hessian_top_against_scipy():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    model, data = net_and_data()
    h = dense_hessian(model, data).numpy()
    exact = linalg.eigsh(h, 1, which="LM", return_eigenvectors=False)[0]
    found = hessian_top(model, cross_entropy, data, tol=1e-5)
    assert found.eigenvalue == pytest.approx(exact, rel=1e-6)


def test_hessian_top_against_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    _, data = net_and_data(n=64, dtype=torch.float32)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    for i, p in enumerate(model.parameters()):
        p.data = normal(*p.shape, seed=i) / 2
    operator = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(),
                                                list(model.parameters()), [data])
    dense = operator @ torch.eye(operator.shape[1])
    spectrum = torch.linalg.eigvalsh((dense + dense.T).double() / 2)
    exact = float(spectrum[spectrum.abs().argmax()])
    found = hessian_top(model, cross_entropy, data, tol=1e-4)
    assert found.eigenvalue == pytest.approx(exact, rel=1e-3)


def test_llc_chain_against_devinterp():
    """Its SGLD optimiser, driven by hand on a quadratic: the raw value, step-size bias and all, is
    the same as that of plain_llc."""
    devinterp = pytest.importorskip("devinterp.optim")
    w = nn.Parameter(torch.zeros(20))
    nbeta, lr, gamma, total = 200.0, 2e-3, 50.0, []
    optimizer = devinterp.SGMCMC.sgld([w], lr=lr, nbeta=nbeta, localization=gamma)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(6000):
            optimizer.zero_grad()
            loss = (H * w * w).sum() / 2
            loss.backward()
            optimizer.step()
            total.append(loss.item())
    theirs = nbeta * torch.tensor(total[500:])
    error = effective_samples(theirs[None])[1]
    ours = plain_llc(Toy(torch.zeros(20), quadratic(H)), toy_loss, ONE_ROW, nbeta, lr, gamma,
                     num_draws=5500, num_burnin_steps=500)
    assert abs(ours - float(theirs.mean())) < 4 * math.hypot(error, error), (ours, theirs.mean())
    assert error < 0.05 * ours


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_all_measures_on_a_gpu():
    model, data = net_and_data(dtype=torch.float32)
    there, data_there = copy.deepcopy(model).cuda(), tuple(t.cuda() for t in data)
    here = gradient_gram(model, cross_entropy, data)
    gpu = gradient_gram(there, cross_entropy, data_there)
    assert torch.allclose(here, gpu, rtol=1e-3, atol=1e-4 * float(here.diagonal().mean()))
    top = hessian_top(model, cross_entropy, data, tol=1e-3).eigenvalue
    top_there = hessian_top(there, cross_entropy, data_there, tol=1e-3).eigenvalue
    assert top_there == pytest.approx(top, rel=1e-2)

    state = torch.cuda.get_rng_state()
    options = dict(num_draws=300, groups=torch.arange(40) % 3)
    a = llc(model, cross_entropy, data, **options)
    b = llc(there, cross_entropy, data_there, generator=seeded(1), **options)
    assert abs(a.mean - b.mean) <= 4 * math.hypot(a.mc_error, b.mc_error)
    assert torch.equal(torch.cuda.get_rng_state(), state)

    x = normal(5, 200, 64)
    assert torch.allclose(rankme_many(x.cuda()).cpu(), rankme_many(x), atol=1e-3)
    y = x[0, :, 0].sign().long()
    accuracy = linear_probe(x[0].cuda(), y.cuda(), seeded())
    assert accuracy == pytest.approx(linear_probe(x[0], y, seeded()), abs=0.05)


# -------------------------------------------------------------------------- models of one's own


class Block(nn.Module):
    """As a language model's: a tuple of the states and of something else."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.mlp(x), None


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.h, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(6, 3)

    def forward(self, x):
        for block in self.h:
            x, _ = block(x)
        return self.head(x)


def test_states_are_collected_by_name_and_measures_add_none():
    model, (x, y) = Blocks(), small_data()
    with collect_states(model, "h.0", "h.1", "h.1.mlp") as states:
        for rows in x.split(5):
            model(rows)
        llc(model, cross_entropy, (x, y), num_draws=4)          # at other weights, on a copy
        hessian_top(model, cross_entropy, (x, y))
    first = x + model.h[0].mlp(x)
    assert list(states) == ["h.0", "h.1", "h.1.mlp"]
    assert [len(part) for part in states["h.0"]] == [5, 5, 5, 1]
    assert torch.allclose(torch.cat(states["h.0"]), first, atol=1e-6)
    assert torch.allclose(torch.cat(states["h.1.mlp"]), model.h[1].mlp(first), atol=1e-6)
    assert torch.allclose(torch.cat(states["h.1"]), first + model.h[1].mlp(first), atol=1e-6)
    assert not any(part.requires_grad for parts in states.values() for part in parts)
    assert 1 < rankme(torch.cat(states["h.1"])) < 6
    model(x)
    assert len(states["h.0"]) == 4, "the hooks are gone"


def test_collecting_leaves_no_hook_behind_and_says_what_is_wrong():
    model, (x, _) = Blocks(), small_data()
    with pytest.raises(ValueError, match=r"no module \['h.2'\]; there are \['h', 'h.0'"):
        with collect_states(model, "h.0", "h.2"):
            pass
    with pytest.raises(ValueError, match=r"\['h'\] did not run"):
        with collect_states(model, "h", "head"):                # a ModuleList is never called
            model(x)
    with pytest.raises(ZeroDivisionError):                      # the caller's own error comes out
        with collect_states(model, "head"):
            1 / 0
    assert not any(module._forward_hooks for module in model.modules())


def test_examples_in_the_docstrings():
    assert doctest.testmod(measures).failed == 0
