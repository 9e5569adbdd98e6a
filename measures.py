"""Chapter 3: measures.  Five numbers that describe the inside of a network, and a probe.

Before its behaviour changes, the inside of a network may.  From easy to hard:

  1  RankMe                  how many directions the hidden states use
  2  gradient, Fisher rank   in how many directions the examples pull the weights
  3  top Hessian eigenvalue  how sharp the loss is
  4  LLC                     how much of the weight space around the weights w0 has a low loss
  5  linear probe            whether a linear map can read the answer from a hidden state

Three rules hold, for any torch.nn.Module:
  - `loss_fn(model, batch)` returns one loss per example, (B,).  `data` is a tuple of tensors with a
    row for each example.
  - Measuring disturbs nothing.  It works on a copy in eval mode, over all parameters that require
    gradients, with random generators of its own.
  - What cannot be measured is a ValueError that says where.  What cannot be trusted carries its
    diagnostics.
It trains nothing, writes no file, and knows no task.
Letters: B batch, D width, N examples, P parameters, C chains, J groups, M matrices.

Between two steps of any training loop:
>>> import torch; _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
>>> def loss_fn(model, batch):                                  # no mean over the batch
...     return (model(batch[0]).squeeze(1) - batch[1]).square()
>>> x = torch.randn(32, 3); data = (x, x.prod(1))
>>> 1 <= rankme(model[:2](x)) <= 8, 1 <= gradient_rank(model, loss_fn, data) <= 31
(True, True)
>>> top = hessian_top(model, loss_fn, data)
>>> top.converged, hessian_top(model, loss_fn, data, start=top.eigenvector).iterations
(True, 1)
>>> llc(model, loss_fn, data, num_draws=20).losses.shape        # .mean is the LLC
torch.Size([4, 20])
"""
import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import vector_to_parameters

# ------------------------------------------------------------------------------------- 1  RankMe

def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of a feature matrix: how many directions it really uses.
        p_i = s_i / sum_j s_j + eps        RankMe = exp(-sum_i p_i log p_i)
    features: (N, D).  Unit: dimensions, from about 1 to min(N, D).  Report N with it.
    The s_i are not squared (26.0 would read 2.7), the rows not centred (31.4).
    Raises ValueError if features are not a matrix, not finite, or all zero.
    Source: Garrido et al. 2023 (arXiv 2210.02885).  Differs from the paper: nothing known.
    Exercise: measures.rankme (set 2, 10 points, without rankme_many)
    Hint: torch.linalg.svdvals; or eigenvalues s_i^2 of the smaller of X^T X and X X^T, in float64.
    >>> round(rankme(torch.eye(10)[:4]), 3), round(rankme(torch.ones(10, 5)), 3)
    (4.0, 1.0)"""
    if features.dim() != 2:
        raise ValueError(f"rankme: features must be (N, D), got shape {tuple(features.shape)}")
    x = features.detach().double()                              # (N, D)
    if not torch.isfinite(x).all() or not x.any():              # the SVD has its own error type
        raise ValueError("rankme: features must be finite and not all zero")
    s = torch.linalg.svdvals(x)                                 # (min(N, D),)
    p = s / s.sum() + eps                                       # eps keeps log finite when s_i = 0
    return float(torch.exp(-(p * p.log()).sum()))


def centred(features: Tensor, weights: Tensor | None = None) -> tuple:
    """Rows without their mean, and the mean share: how much of their energy was in that mean.
        sum_i w_i |mean|^2 / sum_i w_i |x_i|^2        mean = sum_i w_i x_i / sum_i w_i
    features: (..., N, D).  weights: (..., N), how often each row counts; None: each once.
    Returns sqrt(w_i) (x_i - mean), (..., N, D), which has the RankMe of the rows repeated w_i
    times, and the shares, (...), from 0 to 1; both float64.  nan where all features are zero."""
    x = features.detach().double()
    if not torch.isfinite(x).all() or x.dim() < 2:
        raise ValueError(f"features must be (N, D) and finite, got shape {tuple(x.shape)}")
    w = x.new_ones(x.shape[:-1]) if weights is None else weights.detach().to(x)         # (..., N)
    if w.shape != x.shape[:-1] or not (w >= 0).all() or not (w.sum(-1) > 0).all():
        raise ValueError(f"weights must be {tuple(x.shape[:-1])}, none negative, not all zero")
    w = (w / w.sum(-1, keepdim=True)).unsqueeze(-1)             # (..., N, 1)
    size = x.abs().amax((-1, -2), keepdim=True)                 # so that squares stay in range
    mean = (w * (x / size)).sum(-2, keepdim=True)               # (..., 1, D)
    share = mean.square().sum((-1, -2)) / (w * (x / size).square()).sum((-1, -2))
    return w.sqrt() * (x - mean * size), share


def mean_share(features: Tensor, weights: Tensor | None = None) -> float:
    """Share of the energy of the rows that lies in the direction they have in common.
        N |mean row|^2 / sum_i |row_i|^2
    features: (N, D).  weights: (N,), how often each row counts.  0: the mean is zero.  1: all rows
    are the same.  RankMe, which is not centred, is small where this is near 1.
    >>> round(mean_share(torch.tensor([[3., 1.], [3., -1.]])), 6)
    0.9"""
    share = float(centred(features, weights)[1])
    if math.isnan(share):
        raise ValueError("mean_share: features are all zero")
    return share


def rankme_centred(features: Tensor, weights: Tensor | None = None, eps: float = 1e-7) -> float:
    """RankMe of the rows without their (weighted) mean: at most min(N - 1, D)."""
    rest, share = centred(features, weights)
    if not share < 1 - 1e-12:
        raise ValueError("rankme_centred: all rows are the same")
    return rankme(rest, eps)


def marginal_kl(frequencies: Tensor, predicted: Tensor) -> float:
    """How far the mean prediction is from how often each answer comes up.
        KL = sum_v f_v log(f_v / p_v)        f: frequencies        p: mean prediction over inputs
    frequencies, predicted: (V,), each of sum 1.  Returns nats; 0 if they are equal, and never less.
    What a network learns first is to guess by frequency: then this is near 0, and nothing else is
    known.  Source: ours.
    >>> round(marginal_kl(torch.tensor([.5, .5, 0.]), torch.tensor([.25, .25, .5])), 4)   # log 2
    0.6931"""
    f, p = frequencies.double(), predicted.double()
    tiny = torch.finfo(p.dtype).tiny                            # log of an underflow is finite
    return float(torch.special.xlogy(f, f / p.clamp(min=tiny)).sum())


# --------------------------------------------------- what the measures of a loss have in common

def _prepare(name, model, data):
    """Check the arguments.  Returns a copy of the model, its trainable parameters, the data, N."""
    data = tuple(data)
    rows = [len(tensor) for tensor in data]
    if len(set(rows)) != 1 or rows[0] == 0:
        raise ValueError(f"{name}: data must have the same number of rows, not 0; got {rows}")
    for key, p in model.named_parameters():
        if not torch.isfinite(p).all():
            raise ValueError(f"{name}: NaN or infinity in parameter '{key}'")
    net = copy.deepcopy(model).eval()
    params = [p for p in net.parameters() if p.requires_grad]
    if len({(p.dtype, p.device) for p in params}) != 1:
        raise ValueError(f"{name}: no parameter requires gradients, or dtypes or devices differ")
    return net, params, data, rows[0]


def _batches(data, rows):
    return zip(*(tensor.split(rows) for tensor in data))


def _losses(name, loss_fn, net, batch):
    losses, rows = loss_fn(net, batch), len(batch[0])
    if losses.shape != (rows,):
        raise ValueError(f"{name}: loss_fn must return one loss per example, ({rows},); "
                         f"got shape {tuple(losses.shape)}")
    return losses


def _check_finite(what, values, first=0):
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        raise ValueError(f"{what} of example {first + int(bad[0])} is not finite")


def _gradient(loss, params, *args, **options):
    """The gradient as one vector, (P,): zero where the loss does not depend on a parameter."""
    pieces = torch.autograd.grad(loss, params, *args, allow_unused=True, materialize_grads=True,
                                 **options)
    return torch.cat([piece.reshape(-1) for piece in pieces])


def _generator(generator, device="cpu"):
    """A new generator, seeded from the caller's, which advances by one number; from 0 if None."""
    seed = 0
    if generator is not None:
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return Generator(device).manual_seed(seed)


# ------------------------------------------------------- 2  gradient covariance and Fisher rank

def effective_rank(eigenvalues: Tensor) -> float:
    """Effective rank of a spectrum: the exponential of its entropy.
        p_i = l_i / sum_j l_j        rank = exp(-sum_i p_i log p_i)
    eigenvalues: (n,), none negative beyond rounding.  Unit: dimensions, from 1 to n.
    Raises ValueError if they are not finite, all zero, or one is below -1e-6 of the largest.
    Source: Roy & Vetterli 2007.  RankMe is that of the singular values, plus its eps.
    Exercise: measures.effective_rank (set 2, 5 points)
    Hint: rounding can leave an eigenvalue just below 0; 0 log 0 is 0 here: torch.special.entr.
    >>> round(effective_rank(torch.tensor([2., 2., 2., 0.])), 6)
    3.0"""
    values = torch.as_tensor(eigenvalues).detach().double()
    finite = torch.isfinite(values).all()
    if not finite or not (values > 0).any() or values.min() < -1e-6 * values.max():
        raise ValueError("effective_rank: eigenvalues must be finite, not negative, not all zero")
    p = values.clamp(min=0)
    return float(torch.exp(torch.special.entr(p / p.sum()).sum()))      # entr(p) is -p log p


def per_example_gradients(net, loss_fn, data):
    """The gradients of each example's loss, one (N, *shape) tensor per trainable parameter."""
    rows, params = [], [p for p in net.parameters() if p.requires_grad]
    for example in _batches(data, 1):
        loss = _losses("gradient_gram", loss_fn, net, example)
        rows.append(torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True))
    return [torch.stack(column) for column in zip(*rows)]


def gradient_gram(model: Module, loss_fn: Callable, data: tuple, chunk: int = 8) -> Tensor:
    """Gram matrix of the per-example gradients, over all parameters.
        K_ij = g_i . g_j        g_i = gradient of example i's loss, (P,)
    Returns (N, N) float64 on the CPU; apart from zeros, K = G G^T has the eigenvalues of G^T G.
    Memory: at most 3 * chunk gradients, or 1 GiB if that is more.
    Differs from the paper: all parameters, not the first 50K.
    Exercise: measures.gradient_gram (set 2, 15 points)
    Hint: _prepare; one backward pass per example (per_example_gradients); K in float64 at once.
    >>> w = torch.nn.Linear(2, 1, bias=False)                   # the gradient of w . x is x
    >>> x = torch.tensor([[1., 0.], [3., 4.]])
    >>> gradient_gram(w, lambda model, batch: model(batch[0])[:, 0], (x,)).tolist()
    [[1.0, 3.0], [3.0, 25.0]]"""
    net, params, data, n = _prepare("gradient_gram", model, data)
    gram = torch.zeros(n, n, dtype=torch.float64, device=params[0].device)
    # vmap has no rule for fused attention
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        # K is a sum over parameters.  per_example_gradients has the same g, but takes longer.
        for g in gradient_blocks(net, loss_fn, data, chunk):
            g = g.flatten(1)                                    # (N, size of one parameter)
            gram += g @ g.mT                                    # the sum is in float64
    _check_finite("gradient_gram: the gradient", gram.diagonal())
    return ((gram + gram.mT) / 2).cpu()


def gradient_rank(model: Module, loss_fn: Callable, data: tuple) -> float:
    """Effective rank of the gradient covariance: along how many directions do examples disagree?
        exp(entropy(eigenvalues of (I - 1/N) K (I - 1/N)))        K = gradient_gram
    From 1 to N - 1, and near that ceiling: report it with its N."""
    gram = gradient_gram(model, loss_fn, data)
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    if not centred.trace() > 1e-10 * gram.trace():
        raise ValueError("gradient_rank: needs two examples whose gradients do not coincide")
    return effective_rank(torch.linalg.eigvalsh(centred))


def fisher_rank(model: Module, loss_fn: Callable, data: tuple) -> float:
    """Effective rank of the Fisher matrix: that of K itself, not centred.
        exp(entropy(eigenvalues of K))        K = gradient_gram
    From 1 to N.  With true labels it is the `empirical` Fisher matrix, whose rank nearly equals
    gradient_rank, and which the paper reports; with labels drawn from the model, the Fisher."""
    return effective_rank(torch.linalg.eigvalsh(gradient_gram(model, loss_fn, data)))


# ------------------------------------------------------------------- 3  top Hessian eigenvalue

@dataclass
class HessianTop:
    eigenvalue: float             # signed; the largest in size
    eigenvector: Tensor           # (P,), unit length, in the order of model.parameters()
    smallest: float               # smallest Ritz value: an upper bound of the smallest eigenvalue
    smallest_residual: float      # its own residual, which nothing waits for
    iterations: int               # Hessian-vector products
    residual: float               # |Hv - lambda v| / |lambda|, computed from H v itself
    converged: bool               # residual <= tol
    vectors: Tensor               # (2, P), unit Ritz vectors of the smallest and largest eigenvalue


def power_iteration(matvec, start, tol=1e-2, max_iters=1000):
    """The eigenvalue largest in size, for the reader: multiply, normalise, repeat.
        v <- Hv / |Hv|        lambda = v . Hv        residual = |Hv - lambda v| / |lambda|
    matvec: (P,) -> (P,), symmetric.  start: (P,), not zero, of any length.  max_iters: products at
    most.  It stops on the residual: v . Hv can stand still where there is no eigenvalue.  Returns
    HessianTop of the last pair, converged or not: residual 0 if Hv = 0, nan for `smallest` and its
    residual, `vectors` empty, (0, P).
    Exercise: measures.power_iteration (set 2, 10 points, without lanczos)
    Hint: compare Hv with lambda v before you normalise Hv; return the last pair in any case.
    >>> round(power_iteration(lambda v: torch.tensor([-2., 1.]) * v, torch.ones(2)).eigenvalue, 3)
    -2.0"""
    v = start / start.norm()
    for products in range(1, max_iters + 1):
        hv = matvec(v)
        eigenvalue = float(v @ hv)
        residual = float((hv - eigenvalue * v).norm()) / max(abs(eigenvalue), 1e-300)
        if residual <= tol or products == max_iters:
            return HessianTop(eigenvalue, v, math.nan, math.nan, products, residual,
                              converged=residual <= tol, vectors=v.new_empty(0, len(v)))
        v = hv / hv.norm()


# Lanczos keeps every vector so far, and finds the best eigenpairs in their span (Ritz pairs):
#     Q = [q_1 .. q_k],    (Q^T H Q) s = theta s,    v = Q s,    r = H v - theta v
# The next vector q_{k+1} is the remainder r of the best pair, orthogonalised against Q.

def orthogonalise(q, basis):
    """The part of q orthogonal to an orthonormal basis, at unit length; None if there is none."""
    q = q.clone()
    for _ in range(2):                                          # once leaves rounding errors
        size = float(q.norm())
        for b in basis:
            q.sub_(b, alpha=float(b @ q))
    length = float(q.norm())
    return q / length if length > 1e-5 * size else None


def _combine(coefficients, vectors):
    total = torch.zeros_like(vectors[0])
    for coefficient, vector in zip(coefficients.tolist(), vectors):
        total.add_(vector, alpha=coefficient)
    return total


class Span:
    """The vectors q_1 .. q_k, their images H q, and the small matrix Q^T H Q, (k, k)."""

    def __init__(self, matvec):
        self.matvec, self.basis, self.images = matvec, [], []
        self.projected = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, q):
        """One more vector, for one product with H."""
        self.basis.append(q)
        self.images.append(self.matvec(q))
        column = [float(b @ self.images[-1]) for b in self.basis]
        self.projected = F.pad(self.projected, (0, 1, 0, 1))
        self.projected[-1, :] = self.projected[:, -1] = self.projected.new_tensor(column)
        self.values, self.s = torch.linalg.eigh(self.projected)         # from the smallest

    def pair(self, which):
        """Ritz pair number `which`: theta, v at unit length, r, |r| / |theta|."""
        theta = float(self.values[which])
        v = _combine(self.s[:, which], self.basis)
        r = _combine(self.s[:, which], self.images).sub_(v, alpha=theta)
        return theta, v / v.norm(), r, float(r.norm()) / max(abs(theta), 1e-300)

    def restart(self, ends):
        """Keep the `ends` Ritz vectors of either end of the spectrum.  This takes no product."""
        keep = [*range(ends), *range(-ends, 0)]
        self.basis = [_combine(self.s[:, k], self.basis) for k in keep]
        self.images = [_combine(self.s[:, k], self.images) for k in keep]
        self.projected = torch.diag(self.values[keep])
        self.values, self.s = torch.linalg.eigh(self.projected)


def lanczos(matvec, start, tol=1e-2, max_iters=100, max_basis=24):
    """The same eigenvalue as power_iteration, in far fewer products.
    start: (P,), or (m, P): several vectors that may be nearly eigenvectors.
    Memory: about 2 * max_basis * P numbers."""
    span = Span(matvec)
    for vector in start.reshape(-1, start.shape[-1]):
        q = orthogonalise(vector, span.basis)
        if q is not None and len(span.basis) < max_iters:
            span.add(q)
    if not span.basis:
        raise ValueError("lanczos: start must be finite and not zero, max_iters at least 1")

    for products in range(len(span.basis), max_iters + 1):
        theta, v, r, residual = span.pair(int(span.values.abs().argmax()))
        if residual <= tol or products == max_iters:
            break
        if len(span.basis) >= max_basis:
            span.restart(ends=min(3, max_basis // 4))
        q = orthogonalise(r, span.basis)
        if q is None:                                           # H maps the span into itself
            break
        span.add(q)

    smallest, low, _, smallest_residual = span.pair(0)
    _, high, _, _ = span.pair(-1)
    return HessianTop(theta, v, smallest, smallest_residual, products, residual,
                      converged=residual <= tol, vectors=torch.stack([low, high]))


def hessian_matvec(net, loss_fn, data, params):
    """The function v -> Hv, H the Hessian of the mean loss over data.
        H v = d(g . v) / dw        g = gradient of the mean loss
    The graph of g is built once and kept: building it for every product takes 1.6 times as long."""
    graphs = []
    # on a CPU the activations of 64 rows stay in the cache: 40% less time
    rows = 64 if params[0].device.type == "cpu" else 1024
    # fused attention has no second derivative
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for i, batch in enumerate(_batches(data, rows)):
            losses = _losses("hessian_top", loss_fn, net, batch)
            _check_finite("hessian_top: the loss", losses, first=i * rows)
            graphs.append(_gradient(losses.sum() / len(data[0]), params, create_graph=True))

    def matvec(v):
        out = torch.zeros_like(v)
        for g in graphs:
            if g.requires_grad:                                 # else it is constant in w
                out += _gradient(g, params, v, retain_graph=True)
        return out
    return matvec


def hessian_top(model: Module, loss_fn: Callable, data: tuple, tol: float = 3e-3,
                max_iters: int = 100, start: Tensor | None = None,
                generator: Generator | None = None) -> HessianTop:
    """Top eigenvalue of the Hessian of the mean loss: the curvature of the sharpest direction.
        H v = lambda v        |lambda| largest, reported with its sign: spectrum {-2, 1} gives -2
    tol bounds the residual |Hv - lambda v| / |lambda|.  The error of lambda is about tol^2 / gap.
    start: (P,), or (m, P) such as the `vectors` of the previous snapshot, which saves half of the
    products.  A start that is an eigenvector is accepted, even if another has overtaken it."""
    net, params, data, _ = _prepare("hessian_top", model, data)
    count = sum(p.numel() for p in params)
    if start is None:
        start = torch.randn(count, generator=_generator(generator))
    if start.shape[-1] != count:
        raise ValueError(f"hessian_top: start must be ({count},), got {tuple(start.shape)}")
    start = start.detach().to(params[0])
    return lanczos(hessian_matvec(net, loss_fn, data, params), start, tol, max_iters)


# --------------------------------------------------------------- 4  local learning coefficient

def sgld_step(w, w0, gradient, noise, lr, nbeta, localization):
    """One step of stochastic gradient Langevin dynamics, in place on w.
        drift = nbeta gradient + localization (w - w0)        w <- w - lr/2 drift + sqrt(lr) noise
    All tensors (P,).  With fresh noise, N(0, 1), this is SGLD.  In a direction of curvature c its
    variance is 1 / (c (1 - lr c / 4)), not 1 / c.  With the mean of this step's noise and the one
    before it is 1 / c: exactly for quadratics at any stable lr, else up to second order in lr.
    Source: Welling & Teh 2011; Lau et al. 2023; the mean of two: Leimkuhler & Matthews 2013.
    Exercise: measures.sgld_step (set 3, 10 points)
    Hint: drift needs w before the step; change w in place (add_), the weights are views of it.
    >>> w, zero, one = torch.ones(1), torch.zeros(1), torch.ones(1)
    >>> sgld_step(w, zero, gradient=one, noise=one, lr=0.01, nbeta=2.0, localization=3.0)
    >>> round(float(w), 6)                                      # 1 - .005 * 5 + .1
    1.075"""
    drift = torch.sub(w, w0).mul_(localization).add_(gradient, alpha=nbeta)
    w.add_(drift, alpha=-lr / 2).add_(noise, alpha=math.sqrt(lr))


def llc_draws(losses, baselines, nbeta, num_burnin_steps):
    """What each draw says about the LLC, in nats times nbeta, bias included; (C, n, ...).
        LLC = mean of nbeta (L(w) - L(w0)), over the draws after burn-in
    losses, baselines: (C, num_burnin_steps + n, ...), at w and at w0, on the same mini-batch.
    Exercise: measures.llc_draws (set 3, 5 points)
    Hint: the first num_burnin_steps draws of every chain go; the baseline is each draw's own.
    >>> llc_draws(torch.tensor([[9., 3., 4.]]), torch.tensor([[1., 1., 2.]]), 10.0, 1).tolist()
    [[20.0, 20.0]]"""
    return nbeta * (losses - baselines)[:, num_burnin_steps:]


@torch.enable_grad()
def plain_llc(model, loss_fn, data, nbeta, lr, localization, num_draws, num_burnin_steps):
    """The LLC as a float, in its plain form, for the reader: one chain from w0, all of data at
    every step, fresh noise, no diagnostics.  `llc` is the one to use."""
    net, params, data, _ = _prepare("plain_llc", model, data)
    w = torch.cat([p.detach().reshape(-1) for p in params])     # (P,)
    vector_to_parameters(w, params)                             # the weights are views of w now
    w0, losses, gauss = w.clone(), [], _generator(None, w.device)
    for step in range(num_burnin_steps + num_draws):
        loss = loss_fn(net, data).mean()
        losses.append(loss.detach())                            # the first one is L(w0)
        noise = torch.empty_like(w).normal_(generator=gauss)
        sgld_step(w, w0, _gradient(loss, params), noise, lr, nbeta, localization)
    losses = torch.stack(losses)[None]                          # (1, burn-in + n)
    return float(llc_draws(losses, losses[:, :1], nbeta, num_burnin_steps).mean())


def split_r_hat(traces):
    """Gelman & Rubin's R-hat of chains cut in halves: do the parts agree, given their own spread?
        R^2 = (h - 1) / h + Var(means of the parts) / W        W = mean of their variances
    traces: (C, n): 2C parts of h = n // 2 draws; of an odd n the middle one is left out.  Variances
    divide by n - 1.  Returns a float; 1 is perfect, nan if h < 2 or the parts do not vary.
    Exercise: measures.split_r_hat (set 3, 5 points)
    Hint: the halves go below one another, (2C, h); whole chains would hide that they all drift.
    >>> round(split_r_hat(torch.tensor([[1., 3., 1., 3.], [2., 4., 2., 4.]])), 4)
    0.8165"""
    half = traces.shape[1] // 2
    parts = torch.cat([traces[:, :half], traces[:, -half:]]).double()           # (2C, half)
    within = parts.var(1).mean() if half > 1 else 0
    if not within > 0:
        return math.nan
    return float(((half - 1) / half + parts.mean(1).var() / within).sqrt())


def effective_samples(traces):
    """How many independent draws the C x n correlated ones are worth, and the error of their mean.
        ess = C n / (1 + 2 sum_t rho_t)        mc_error = sqrt(var+ / ess)
        rho_t = 1 - (W - autocovariance_t) / var+        var+ = (n - 1) / n W + Var(chain means)
    traces: (C, n), n >= 4.  W: mean variance within chains.  Autocovariance at lag t: the sum of
    n - t products over n, averaged over chains.  The sum stops where a pair rho_{2t} + rho_{2t+1}
    first falls below 0 (Geyer 1992; Stan).  Returns floats; (C n, 0) if the traces do not vary.
    Exercise: measures.effective_samples (set 3, 15 points)
    Hint: an fft of length 2n has all autocovariances at once; a loop over lags is as good.
    >>> effective_samples(torch.ones(2, 10))
    (20.0, 0.0)"""
    x = traces.double()
    chains, n = x.shape
    # autocovariances, the variance within chains (W), and var+
    f = torch.fft.rfft(x - x.mean(1, keepdim=True), 2 * n)
    acov = torch.fft.irfft(f.abs() ** 2, 2 * n)[:, :n].mean(0) / n              # (n,)
    within = acov[0] * n / (n - 1)
    total = acov[0] + (x.mean(1).var() if chains > 1 else 0)
    if not total > 1e-24 * (1 + x.mean() ** 2):                 # nothing varies
        return float(chains * n), 0.0
    # autocorrelations in pairs, up to the first negative one
    rho = 1 - (within - acov) / total
    rho[0] = 1
    pairs = rho[:n // 2 * 2].view(-1, 2).sum(1)
    pairs = pairs[(pairs >= 0).cumprod(0).bool()]
    tau = float(2 * torch.cummin(pairs, 0).values.sum() - 1) if len(pairs) else 1.0
    ess = chains * n / max(tau, 1 / math.log10(chains * n + 10))
    return ess, math.sqrt(float(total) / ess)


@dataclass
class LLC:
    mean: float = math.nan        # nbeta (E[L(w)] - L(w0)) - bias, over chains that did not diverge
    std: float = math.nan         # between the means of the chains
    mc_error: float = math.nan    # Monte Carlo standard error of mean
    r_hat: float = math.nan       # split R-hat: near 1 where chains and halves of chains agree
    ess: float = 0.0              # effective number of independent draws, all chains together
    bias: float = math.nan        # of mini-batches; mean + bias is the raw value
    losses: Tensor = None         # (C, num_draws) mini-batch loss of each draw, all chains
    baselines: Tensor = None      # (C, num_draws) loss at w0 of the same mini-batches
    diverged: Tensor = None       # (C,) bool: chains set aside
    num_diverged: int = 0
    init_loss: float = math.nan   # L(w0) over all of data
    nbeta: float = math.nan
    lr: float = math.nan
    localization: float = math.nan
    groups: Tensor = None         # (J,) distinct values of groups, in the order of what follows
    group_shares: Tensor = None   # (J,) share of the rows; sum_j share_j mean_j = mean
    group_means: Tensor = None    # (J,) LLC_j = nbeta (E[L_j(w)] - L_j(w0)) - bias_j
    group_mc_errors: Tensor = None      # (J,)
    group_biases: Tensor = None         # (J,)

    @property
    def warnings(self):
        """Sentences on what is wrong; empty if all is well."""
        part = abs(self.bias) / max(abs(self.mean + self.bias), 1e-30)
        draws = self.nbeta * (self.losses - self.baselines)[~self.diverged]     # (C, n)
        half = draws.shape[1] // 2
        early, late = float(draws[:, :half].mean()), float(draws[:, -half:].mean())
        drift = abs(early - late) > max(0.1 * abs(self.mean), 3 * self.mc_error)
        doubts = [
            (self.num_diverged > 0, f"{self.num_diverged} of {len(self.losses)} chains diverged"),
            (self.mean < 0, "the value is negative: w0 is no minimum of this loss"),
            (part > 0.05, f"the bias is {part:.0%} of the raw value: smaller lr or larger batches"),
            (0 < self.ess < 100, f"only {self.ess:.0f} effective draws: more draws or larger lr"),
            (drift, f"the halves of the chains disagree ({early:.4g}, {late:.4g}): more burn-in"),
            (self.r_hat > 1.05, f"R-hat {self.r_hat:.2f}: the chains or their halves disagree"),
        ]
        return [sentence for condition, sentence in doubts if condition]


class Sampler:
    """SGLD chains, and what they share: a density, the make-up of a mini-batch, the losses at w0.
        exp(-nbeta L(w) - localization/2 |w - w0|^2)        L = mean loss over data
    A mini-batch has equally many rows of each group, which count by its share of data."""

    def __init__(self, net, loss_fn, data, groups, batch_size, lr, nbeta, localization, autocast):
        self.net, self.loss_fn, self.data, self.autocast = net, loss_fn, data, autocast
        self.lr, self.nbeta, self.localization = lr, nbeta, localization
        n = len(data[0])
        labels = torch.zeros(n) if groups is None else torch.as_tensor(groups).cpu()     # (N,)
        if labels.shape != (n,):
            raise ValueError(f"llc: groups must be ({n},), got shape {tuple(labels.shape)}")
        # rows of each group, and how many of them are in a mini-batch
        self.groups = labels.unique()                           # (J,)
        J = len(self.groups)
        self.members = [(labels == group).nonzero().squeeze(1) for group in self.groups]
        self.sizes = [min(len(rows), min(n, batch_size) // J) for rows in self.members]
        if min(self.sizes) == 0:
            raise ValueError(f"llc: batch_size {batch_size} leaves no row for each of {J} groups")
        self.whole = sum(self.sizes) == n                       # every mini-batch is all of data
        # mean loss of each group = averager @ losses; joint loss = weights . losses
        like = next(p for p in net.parameters() if p.requires_grad)
        self.share = torch.tensor([len(rows) / n for rows in self.members], dtype=torch.float64)
        means = [torch.full((1, size), 1 / size, dtype=torch.float64) for size in self.sizes]
        self.averager = torch.block_diag(*means).to(like.device)                # (J, B)
        self.weights = (self.share.to(like.device) @ self.averager).to(like)    # (B,)
        with torch.no_grad():
            self.at_w0 = torch.cat([self.losses(batch, autocast) for batch in _batches(data, 512)])
        _check_finite("llc: the loss at w0", self.at_w0)

    def losses(self, batch, autocast):
        """Loss of each row, (B,), in the dtype of the weights."""
        # The weights change in place: a cache of their bfloat16 copies would be out of date.
        with torch.autocast(self.weights.device.type, autocast or torch.bfloat16,
                            enabled=autocast is not None, cache_enabled=False):
            return _losses("llc", self.loss_fn, self.net, batch).to(self.weights.dtype)

    def chain(self, seed):
        """A copy with weights, mini-batches and noise of its own."""
        chain = copy.copy(self)
        chain.net = copy.deepcopy(self.net)
        # all weights become views of one vector, all gradients of another
        params = [p for p in chain.net.parameters() if p.requires_grad]
        chain.w = torch.cat([p.detach().reshape(-1) for p in params])           # (P,)
        chain.w0, chain.gradient = chain.w.clone(), torch.zeros_like(chain.w)
        vector_to_parameters(chain.w, params)
        for p, g in zip(params, chain.gradient.split([p.numel() for p in params])):
            p.grad = g.view_as(p)
        chain.picker = Generator().manual_seed(seed)
        chain.gauss = _generator(chain.picker, chain.w.device)
        return chain

    def noise(self):
        return torch.empty_like(self.w).normal_(generator=self.gauss)

    def minibatch(self):
        """A mini-batch without replacement, and the mean loss of each group in it at w0, (J,)."""
        picked = self.members
        if not self.whole:
            picked = [rows[torch.randperm(len(rows), generator=self.picker)[:size]]
                      for rows, size in zip(self.members, self.sizes)]
        index = torch.cat(picked)                               # (B,), group by group
        batch = tuple(t[index.to(t.device)] for t in self.data)
        return batch, self.averager @ self.at_w0[index.to(self.w.device)].double()

    def loss_and_gradient(self, batch):
        """Mean loss of each group, (J,).  Leaves the joint loss's gradient in self.gradient."""
        self.gradient.zero_()
        with torch.enable_grad():
            losses = self.losses(batch, self.autocast)
            (losses * self.weights).sum().backward()
        return self.averager @ losses.detach().double()

    def heat(self, batch):
        """Noise d of the mini-batch gradient, and the curvature c_j of group j's loss along it.
            nbeta^2 |d|^2 (1, c_1, .., c_J)        c_j = nbeta d . H_j d / |d|^2"""
        # the noise shows in the gradient of a second mini-batch
        here, gradient = self.w.clone(), self.gradient.clone()
        other, _ = self.minibatch()
        self.loss_and_gradient(other)
        d = (gradient - self.gradient) / math.sqrt(2)           # of two: twice the variance of one
        size = d.norm()
        # second difference of the losses along d, in full precision, which it needs
        h = (0.01 * (self.w.norm() + (self.w - self.w0).norm())).clamp(min=1e-3)
        losses = []
        for shift in (h, 0, -h):
            torch.add(here, d * (shift / size.clamp(min=1e-30)), out=self.w)
            with torch.no_grad():
                losses.append(self.averager @ self.losses(batch, None).double())
        curvatures = (losses[0] - 2 * losses[1] + losses[2]) * self.nbeta / h ** 2
        # back to where the chain was
        self.w.copy_(here)
        self.gradient.copy_(gradient)
        return torch.cat([curvatures.new_ones(1), curvatures]) * (self.nbeta * size) ** 2

    def run(self, num_burnin_steps, num_draws):
        """Losses and losses at w0, (burn-in + n, J) each, and heats, (any number, 1 + J)."""
        total, J = num_burnin_steps + num_draws, len(self.sizes)
        losses = self.averager.new_full((total, J), math.nan)   # nan stays where a chain breaks off
        baselines, heats = losses.clone(), []
        # begin where the localization alone would leave the weights
        if self.localization > 0:
            self.w.add_(self.noise(), alpha=self.localization ** -0.5)
        before = self.noise()
        for draw in range(total):
            batch, baselines[draw] = self.minibatch()
            losses[draw] = self.loss_and_gradient(batch)
            # looked at rarely, because a GPU waits
            if draw % 16 == 15 and not torch.isfinite(losses[draw]).all():
                break
            kept = draw - num_burnin_steps
            if not self.whole and kept >= 0 and kept % 20 == 0:
                heats.append(self.heat(batch))
            noise = self.noise()
            sgld_step(self.w, self.w0, self.gradient, (before + noise) / 2, self.lr, self.nbeta,
                      self.localization)
            before = noise
        if not heats:                                           # all of data: no gradient noise
            heats = [losses.new_zeros(1 + J)]
        return losses.cpu(), baselines.cpu(), torch.stack(heats).cpu()


def llc(model: Module, loss_fn: Callable, data: tuple, nbeta: float = 30.0, lr: float = 1e-3,
        localization: float = 300.0, num_chains: int = 4, num_draws: int = 100,
        num_burnin_steps: int = 20, batch_size: int | None = None,
        generator: Generator | None = None, groups: Tensor | None = None,
        autocast: torch.dtype | None = None) -> LLC:
    """Local learning coefficient: how fast the loss grows around w0, in effective parameters / 2.
        LLC = nbeta (E[L(w)] - L(w0)) - bias        w ~ exp(-nbeta L - localization/2 |w - w0|^2)
        bias = lr/8 nbeta^2 E|d|^2 s / (s + localization)
        d: noise of a mini-batch's gradient        s: nbeta times the curvature along d
    With localization 0 it is k/2 for a quadratic loss of k weights, and 1/4 for w^4.
    nbeta: n / log n, n the size of the training set, NOT the rows of `data`.
    lr, localization: SGLD's eps and gamma; the prior's deviation is gamma^-1/2 per weight.
    num_draws: kept of each chain, after num_burnin_steps that are not.
    batch_size: rows per draw, None: 256; at most all of data.
    groups: (N,) integers, such as the task of each row.  The chains yield an LLC_j for each group.
    autocast: such as torch.bfloat16, for all losses but those of the curvature.
    Raises ValueError on NaN in a parameter or a loss at w0 (named), or an argument out of range.
    Source: Lau et al. 2023 (arXiv 2308.12108).
    Differs from the paper: its nbeta, lr, localization and number of draws are not public.
    Differs from the paper: chains begin spread out by the localization; noise is averaged."""
    net, params, data, _ = _prepare("llc", model, data)
    batch_size = 256 if batch_size is None else batch_size
    for key, value, low in (("nbeta", nbeta, 0), ("lr", lr, 0), ("num_chains", num_chains, 0),
                            ("num_draws", num_draws, 3), ("num_burnin_steps", num_burnin_steps, -1),
                            ("batch_size", batch_size, 0)):
        if not low < value < math.inf:
            raise ValueError(f"llc: {key} must be finite and above {low}, got {value}")
    if not localization >= 0:
        raise ValueError(f"llc: localization must not be negative, got {localization}")
    sampler = Sampler(net, loss_fn, data, groups, batch_size, lr, nbeta, localization, autocast)

    def trace(seed):
        return sampler.chain(seed).run(num_burnin_steps, num_draws)
    seeds = torch.randint(2**62, (num_chains,), generator=_generator(generator)).tolist()
    return _summary(sampler, on_cores(trace, seeds, params[0].device), num_burnin_steps)


def _summary(sampler, traces, num_burnin_steps):
    """From the traces of all chains to an LLC."""
    share, lr = sampler.share, sampler.lr
    losses, baselines, heats = zip(*traces)
    losses, baselines = torch.stack(losses), torch.stack(baselines)     # (C, burn-in + n, J)
    result = LLC(losses=losses[:, num_burnin_steps:] @ share,
                 baselines=baselines[:, num_burnin_steps:] @ share,
                 init_loss=float(sampler.at_w0.double().cpu().mean()), nbeta=sampler.nbeta, lr=lr,
                 localization=sampler.localization, groups=sampler.groups, group_shares=share)
    # chains that diverged are set aside
    half = result.losses.shape[1] // 2
    excess = (result.losses - result.baselines).abs()
    calm = excess[:, -half:].mean(1) <= 30 * excess[:, :half].mean(1)
    sound = calm & torch.isfinite(losses).flatten(1).all(1)
    result.diverged, result.num_diverged = ~sound, int((~sound).sum())
    if not sound.any():
        return result
    # the bias of each group, from the mean heat
    heat = torch.cat([heat for heat, good in zip(heats, sound) if good]).mean(0)
    power, curved = heat[0].clamp(min=1e-300), heat[1:]         # nbeta^2 E|d|^2; times each c_j
    stiffness = sampler.localization + float(share @ curved / power)
    biases = lr / 8 * curved / stiffness / (1 - min(lr * stiffness, 2) / 4)
    if not stiffness > 0:
        biases = torch.zeros_like(curved)                       # (J,)
    # the value of each group, and its error
    draws = llc_draws(losses[sound], baselines[sound], sampler.nbeta, num_burnin_steps)
    errors = [effective_samples(draws[:, :, j])[1] for j in range(len(share))]
    result.group_biases, result.group_means = biases, draws.mean((0, 1)) - biases
    result.group_mc_errors = torch.tensor(errors, dtype=torch.float64)
    # the same of the joint loss
    result.bias = float(share @ biases)
    value = draws @ share - result.bias                                 # (C, n)
    result.mean, result.r_hat = float(value.mean()), split_r_hat(value)
    result.ess, result.mc_error = effective_samples(value)
    result.std = float(value.mean(1).std()) if len(value) > 1 else math.nan
    return result


# ----------------------------------------------------------------------------- 5  linear probe

def linear_probe(features: Tensor, labels: Tensor, generator: Generator | None = None,
                 inputs: Tensor | None = None, ridge: float = 1e-3) -> float:
    """Held-out accuracy of a linear classifier: can the answer be read from the features?
        W minimises  mean cross-entropy(X W, y) + ridge/2 |W|^2
    features: (N, D), 2,000 rows or more for a number that means something.  labels: (N,), any
    integers.  inputs: (N,) integers, equal where the input is; None: no two rows have one input.
    `generator` chooses a quarter of the inputs, whose rows are held out: a probe that only
    remembers its inputs scores at chance.  The other rows standardise X.
    Raises ValueError for wrong shapes or types, NaN, fewer than 8 inputs, or one class only.
    Source: Alain & Bengio 2016.  Differs from the paper: its probe's details are not public."""
    x = features.detach().double()
    if x.dim() != 2 or not torch.isfinite(x).all():
        raise ValueError(f"linear_probe: needs finite features (N, D), got {tuple(x.shape)}")
    n = len(x)
    inputs = torch.arange(n, device="cpu") if inputs is None else inputs
    for name, column in (("labels", labels), ("inputs", inputs)):
        if column.shape != (n,) or column.is_floating_point():
            raise ValueError(f"linear_probe: {name} must be integers, ({n},), got "
                             f"{tuple(column.shape)} and {column.dtype}")
    classes, y = labels.to(x.device).unique(return_inverse=True)
    different, owner = inputs.to(x.device).unique(return_inverse=True)
    count = len(different)
    if count < 8 or len(classes) < 2:
        raise ValueError("linear_probe: needs 8 different inputs and 2 classes, got "
                         f"{count} and {len(classes)}")
    # hold out the rows of a quarter of the inputs
    order = torch.randperm(count, generator=_generator(generator), device="cpu")
    test = torch.isin(owner, order[:count // 4].to(x.device))   # (N,) bool
    # standardise; a constant feature becomes 0; append a 1 for the bias
    x = x / x.abs().max().clamp(min=1e-300)
    spread, mean = torch.std_mean(x[~test], 0)
    floor = 1e-6 * spread.max() + 1e-12 * mean.abs() + 1e-300
    x = F.pad((x - mean) / torch.maximum(spread, floor), (0, 1), value=1.0).float()     # (N, D + 1)
    with torch.inference_mode(False), torch.enable_grad():
        x, y = x.clone(), y.clone()
        w = x.new_zeros(x.shape[1], len(classes), requires_grad=True)
        optimizer = torch.optim.LBFGS([w], max_iter=40, line_search_fn="strong_wolfe")

        def loss():
            optimizer.zero_grad()
            value = F.cross_entropy(x[~test] @ w, y[~test]) + ridge / 2 * w.square().sum()
            value.backward()
            return value
        optimizer.step(loss)
        return float(((x[test] @ w).argmax(1) == y[test]).float().mean())


# --------------------------------------------------------------------------- for speed alone
# What follows has the values of the plain versions above, sooner or in less memory.

def rankme_many(features, eps=1e-7):
    """RankMe of M feature matrices of one shape, several times faster than M calls of rankme.
        s_i = sqrt(eigenvalue_i of X^T X), in float64: in float32 a collapsed rank of 1 reads 1.045
    features: (M, N, D).  Returns (M,) float64, within 1e-4 of rankme's.  Errors name the matrix."""
    if features.dim() != 3 or 0 in features.shape[1:]:
        raise ValueError(f"rankme_many: features must be (M, N, D), got {tuple(features.shape)}")
    ranks = [torch.zeros(0, dtype=torch.float64, device=features.device)]
    for first in range(0, len(features), 16):                   # 16 of 200 x 128 stay in the cache
        x = features[first:first + 16].detach().double()
        size = x.abs().amax((1, 2))                             # (16,)
        bad = ~(torch.isfinite(size) & (size > 0))
        if bad.any():
            raise ValueError("rankme_many: features must be finite and not all zero; "
                             f"matrix {first + int(bad.nonzero()[0])} is not")
        x = x / size[:, None, None]                             # so that squares stay in range
        gram = x.mT @ x if x.shape[1] >= x.shape[2] else x @ x.mT
        s = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()     # (16, min(N, D))
        p = s / s.sum(1, keepdim=True) + eps
        ranks.append(torch.exp(-(p * p.log()).sum(1)))
    return torch.cat(ranks)


def per_example_gradients_vmap(net, loss_fn, data):
    """The same in one pass: torch.func.grad makes one example's gradient, vmap runs it for all."""
    # functional_call runs the forward of a module: here it is loss_fn
    def forward(*batch):
        return _losses("gradient_gram", loss_fn, net, batch)
    wrapper = Module()
    wrapper.net, wrapper.forward = net, forward
    point = {name: p.detach() for name, p in wrapper.named_parameters() if p.requires_grad}

    def loss(point, *row):
        return functional_call(wrapper, point, tuple(t[None] for t in row)).squeeze(0)
    in_dims = (None,) + (0,) * len(data)                        # one set of weights, many rows
    columns = vmap(grad(loss), in_dims)(point, *data)
    return [columns[name] for name in point]


def gradient_blocks(net, loss_fn, data, chunk, small=2**26):
    """The same, one parameter after another: where not all gradients fit, in several passes."""
    params = [p for p in net.parameters() if p.requires_grad]
    n, total = len(data[0]), sum(p.numel() for p in params)
    rows = min(n, max(chunk, small // total))                   # examples at a time
    most = max(2 * chunk * total, 4 * small)                    # numbers held for one block
    blocks, held = [[]], 0
    for p in params:
        held += n * p.numel()
        if blocks[-1] and held > most:
            blocks.append([])
            held = n * p.numel()
        blocks[-1].append(p)

    for block in blocks:
        for p in params:                                        # the backward pass stops early
            p.requires_grad_(any(p is q for q in block))
        pieces = []
        for batch in _batches(data, rows):
            try:
                pieces.append(per_example_gradients_vmap(net, loss_fn, batch))
            except RuntimeError:                                # .item(), or a branch on the data
                pieces.append(per_example_gradients(net, loss_fn, batch))
        for column in zip(*pieces):
            yield column[0] if len(column) == 1 else torch.cat(column)


def on_cores(job, inputs, device):
    """[job(x) for x in inputs], on a CPU each on a core of its own: small matrices share badly."""
    workers = min(len(inputs), torch.get_num_threads()) if device.type == "cpu" else 1
    # set_num_threads holds for the worker thread that calls it
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(job, inputs))
