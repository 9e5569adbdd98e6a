"""Chapter 3: measures.  Five numbers that describe the inside of a network, and a probe.

A network that is about to acquire a capability may change inside before its behaviour changes.
This file measures the inside of any torch.nn.Module.  The sections go from easy to hard, and what
exists for speed alone stands at the end.

  1  RankMe                  how many directions the hidden states use:
                             exp(entropy of the normalised singular values)
  2  gradient, Fisher rank   in how many directions the examples pull the weights:
                             exp(entropy of the eigenvalues of K = G G^T)
  3  top Hessian eigenvalue  how sharp the loss is:
                             H v = lambda v, by power iteration, then by Lanczos
  4  LLC                     how much of the weight space around w0 has a low loss:
                             nbeta (E[L(w)] - L(w0)), w drawn around w0 by SGLD
  5  linear probe            whether a linear map can read the answer from a hidden state

They are the measures of "Anatomy of Capability Emergence" (arXiv 2602.15997).  Three rules hold:
  - `loss_fn(model, batch)` returns one loss per example, (B,).  `data` is a tuple of tensors whose
    rows belong together.
  - Measuring disturbs nothing.  It works on a deep copy in eval mode, over all parameters that
    require gradients, with random generators of its own.
  - What cannot be measured is a ValueError that says where the problem is.  A value that cannot be
    trusted carries its diagnostics.
This file trains nothing, writes no file, knows no task, and does not decide what "emerged" means.

Letters: B batch, T tokens, D width, N examples, P parameters, C chains, J groups, M matrices.

Between two steps of any training loop:
>>> import torch; _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
>>> def loss_fn(model, batch):                                  # no mean over the batch
...     return (model(batch[0]).squeeze(1) - batch[1]).square()
>>> x = torch.randn(32, 3)
>>> data = (x, x.prod(1))
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
from dataclasses import dataclass, field

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
    features: (N, D), one row per example.  Unit: dimensions, from about 1 to min(N, D).
    The singular values s_i are not squared, and the features not centred: on the same hidden states
    this gives 26.0, squaring 2.7, centring 31.4.  It depends on N too: report N with it.
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


# --------------------------------------------------- what the measures of a loss have in common


def _prepare(name, model, data):
    """Check the arguments.  Returns a copy of the model, its trainable parameters, the data, N."""
    data = tuple(data)
    rows = [len(tensor) for tensor in data]
    if not rows or rows[0] == 0 or len(set(rows)) > 1:
        raise ValueError(f"{name}: data must be tensors with the same number of rows, "
                         f"at least one; got {rows}")
    for key, p in model.named_parameters():
        if not torch.isfinite(p).all():
            raise ValueError(f"{name}: NaN or infinity in parameter '{key}'")
    net = copy.deepcopy(model).eval()
    params = [p for p in net.parameters() if p.requires_grad]
    if not params:
        raise ValueError(f"{name}: the model has no parameter that requires gradients")
    if len({(p.dtype, p.device) for p in params}) > 1:
        raise ValueError(f"{name}: parameters must share one dtype and one device, "
                         "so that they form one vector")
    for p in params:
        p.grad = None
    return net, params, data, rows[0]


def _checked(name, losses, rows):
    if losses.shape != (rows,):
        raise ValueError(f"{name}: loss_fn must return one loss per example, ({rows},); "
                         f"got shape {tuple(losses.shape)}")
    return losses


def _generator(generator, device="cpu"):
    """A new generator on `device`, seeded from the caller's, or from 0 if there is none.
    The caller's advances by one number, however many are drawn here."""
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
    Source: Roy & Vetterli 2007.  RankMe is the same of the singular values, plus its eps.
    Exercise: measures.effective_rank (set 2, 5 points)
    Hint: rounding can leave an eigenvalue just below 0; 0 log 0 is 0 here: torch.special.entr.
    >>> round(effective_rank(torch.tensor([2., 2., 2., 0.])), 6)
    3.0"""
    values = torch.as_tensor(eigenvalues).detach().double()
    finite = torch.isfinite(values).all()
    if not finite or not (values > 0).any() or values.min() < -1e-6 * values.max():
        raise ValueError("effective_rank: eigenvalues must be finite, not negative, "
                         "and not all zero")
    p = values.clamp(min=0)
    return float(torch.exp(torch.special.entr(p / p.sum()).sum()))      # entr(p) is -p log p


def per_example_gradients(net, loss_fn, data, params):
    """The gradient of each example's loss, one backward pass per example.
    Returns one (N, *shape) tensor per parameter.  Works for every model."""
    rows = []
    for i in range(len(data[0])):
        batch = tuple(t[i:i + 1] for t in data)
        loss = _checked("gradient_gram", loss_fn(net, batch), 1).sum()
        rows.append(torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True))
    return [torch.stack(column) for column in zip(*rows)]


def gradient_gram(model: Module, loss_fn: Callable, data: tuple, chunk: int = 8) -> Tensor:
    """Gram matrix of the per-example gradients, over all parameters.
        K_ij = g_i . g_j        g_i = gradient of example i's loss, (P,)
    data: N rows.  Returns (N, N) float64 on the CPU; unit: loss^2 / weight^2.  The eigenvalues of
    K = G G^T that are not zero are those of G^T G, (P, P).
    chunk bounds memory: at most 3 * chunk gradients exist at a time, or 1 GiB where that is more.
    Raises ValueError on NaN (parameter or example named), or if loss_fn does not return (N,).
    Differs from the paper: all parameters; there the first 50K, which are mostly embeddings.
    Exercise: measures.gradient_gram (set 2, 15 points)
    Hint: _prepare; one backward pass per example (per_example_gradients); K in float64 at once.
    >>> w = torch.nn.Linear(2, 1, bias=False)                   # the gradient of w . x is x
    >>> x = torch.tensor([[1., 0.], [3., 4.]])
    >>> gradient_gram(w, lambda model, batch: model(batch[0])[:, 0], (x,)).tolist()
    [[1.0, 3.0], [3.0, 25.0]]"""
    if chunk < 1:
        raise ValueError(f"gradient_gram: chunk must be at least 1, got {chunk}")
    net, params, data, n = _prepare("gradient_gram", model, data)
    gram = torch.zeros(n, n, dtype=torch.float64, device=params[0].device)
    # vmap has no rule for fused attention
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        # K is a sum over parameters.  per_example_gradients has the same g, but takes longer.
        for g in gradient_blocks(net, loss_fn, data, params, chunk):
            g = g.flatten(1)                                    # (N, size of one parameter)
            gram += g @ g.mT                                    # the sum is in float64
    if not torch.isfinite(gram).all():
        bad = int((~torch.isfinite(gram.diagonal())).nonzero()[0])
        raise ValueError(f"gradient_gram: the gradient of example {bad} is not finite")
    return ((gram + gram.mT) / 2).cpu()


def gradient_rank(model: Module, loss_fn: Callable, data: tuple, chunk: int = 8) -> float:
    """Effective rank of the gradient covariance: along how many directions do examples disagree?
        exp(entropy(eigenvalues of (I - 1/N) K (I - 1/N)))        K = gradient_gram
    Unit: dimensions, from 1 to N - 1.  The value lies near that ceiling: report it with its N.
    Raises ValueError for one example, or if all gradients coincide: there is no covariance."""
    gram = gradient_gram(model, loss_fn, data, chunk)
    if len(gram) < 2:
        raise ValueError("gradient_rank: a covariance needs at least two examples")
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    if not centred.trace() > 1e-10 * gram.trace():
        raise ValueError("gradient_rank: the gradients of all examples coincide, "
                         "their covariance is zero")
    return effective_rank(torch.linalg.eigvalsh(centred))


def fisher_rank(model: Module, loss_fn: Callable, data: tuple, chunk: int = 8) -> float:
    """Effective rank of the Fisher matrix: that of K itself, not centred.
        exp(entropy(eigenvalues of K))        K = gradient_gram
    Unit: dimensions, from 1 to N.  With true labels it is the `empirical` Fisher matrix, whose rank
    nearly equals gradient_rank (57.3 and 57.3 at N = 64).  With labels drawn from the model it is
    the Fisher matrix, a measure of its own.
    Differs from the paper: it reports the empirical one."""
    return effective_rank(torch.linalg.eigvalsh(gradient_gram(model, loss_fn, data, chunk)))


# ------------------------------------------------------------------- 3  top Hessian eigenvalue


@dataclass
class HessianTop:
    eigenvalue: float             # signed; the largest in size
    eigenvector: Tensor           # (P,), unit length, in the order of model.parameters()
    smallest: float               # smallest Ritz value of the same pass
    smallest_residual: float      # its own residual: the pass did not wait for it
    iterations: int               # Hessian-vector products
    residual: float               # |Hv - lambda v| / |lambda|, computed from H v itself
    converged: bool               # residual <= tol
    vectors: Tensor               # (2, P), unit Ritz vectors of the smallest and largest eigenvalue


def _relative(error, eigenvalue):
    if eigenvalue == 0:
        return math.inf if error else 0.0
    return error / abs(eigenvalue)


def power_iteration(matvec, start, tol=1e-2, max_iters=1000):
    """The eigenvalue largest in size, for the reader: multiply, normalise, repeat.
        v <- Hv / |Hv|        lambda = v . Hv        residual = |Hv - lambda v| / |lambda|
    matvec: (P,) -> (P,), symmetric.  start: (P,), not zero, of any length.  max_iters: products at
    most.  It stops on the residual, because a Rayleigh quotient v . Hv that stands still proves
    nothing: with both +1 and -1 in the spectrum it stands still at any value between.
    Returns HessianTop of the last pair, converged or not: `smallest` and its residual nan,
    `vectors` empty, (0, P).  lambda = 0 has residual 0 if Hv = 0.
    Exercise: measures.power_iteration (set 2, 10 points, without lanczos)
    Hint: compare Hv with lambda v before you normalise Hv; return the last pair in any case.
    >>> round(power_iteration(lambda v: torch.tensor([-2., 1.]) * v, torch.ones(2)).eigenvalue, 3)
    -2.0"""
    v = start / start.norm()
    for products in range(1, max_iters + 1):
        hv = matvec(v)
        eigenvalue = float(v @ hv)
        residual = _relative(float((hv - eigenvalue * v).norm()), eigenvalue)
        if residual <= tol or products == max_iters:
            return HessianTop(eigenvalue, v, math.nan, math.nan, products, residual,
                              converged=residual <= tol, vectors=v.new_empty(0, len(v)))
        v = hv / hv.norm()


# Lanczos is power iteration that remembers.  It keeps every vector so far, and finds the best
# approximate eigenpairs in their span (Ritz pairs):
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
    if not length > 1e-5 * size:
        return None
    return q / length


def grow(q, matvec, basis, images, projected):
    """One product: q joins the basis and H q the images.  Returns the larger Q^T H Q."""
    basis.append(q)
    images.append(matvec(q))
    column = torch.tensor([float(b @ images[-1]) for b in basis], dtype=torch.float64)
    projected = F.pad(projected, (0, 1, 0, 1))
    projected[-1, :] = projected[:, -1] = column
    return projected


def _combine(coefficients, vectors):
    total = torch.zeros_like(vectors[0])
    for coefficient, vector in zip(coefficients.tolist(), vectors):
        total.add_(vector, alpha=coefficient)
    return total


def ritz_pair(which, basis, images, projected):
    """Ritz pair number `which`, counted from the smallest: theta, v, r, |r| / |theta|."""
    values, s = torch.linalg.eigh(projected)
    theta = float(values[which])
    v = _combine(s[:, which], basis)
    r = _combine(s[:, which], images).sub_(v, alpha=theta)
    return theta, v, r, _relative(float(r.norm()), theta)


def best_pair(basis, images, projected):
    """The Ritz pair whose value is largest in size."""
    values = torch.linalg.eigh(projected).eigenvalues
    return ritz_pair(int(values.abs().argmax()), basis, images, projected)


def restart(basis, images, projected, max_basis):
    """A smaller span: the Ritz vectors of both ends of the spectrum, without another product."""
    values, s = torch.linalg.eigh(projected)
    keep = [0, 1, 2, -3, -2, -1]
    if max_basis <= len(keep):
        keep = [int(values.abs().argmax())]
    basis = [_combine(s[:, k], basis) for k in keep]
    images = [_combine(s[:, k], images) for k in keep]
    return basis, images, torch.diag(values[keep])


def lanczos(matvec, start, tol=1e-2, max_iters=100, max_basis=24):
    """The same eigenvalue as power_iteration, in far fewer products.
    start: (P,), or (m, P) for several vectors that are expected to be nearly eigenvectors.
    In exact arithmetic each remainder is parallel to Lanczos's next vector, so this is Lanczos with
    full reorthogonalisation.  Memory: 2 * max_basis * P numbers at most."""
    basis, images, projected = [], [], torch.zeros(0, 0, dtype=torch.float64)
    for vector in start.reshape(-1, start.shape[-1]):
        q = orthogonalise(vector, basis)
        if q is not None and len(basis) < max_iters:
            projected = grow(q, matvec, basis, images, projected)
    if not basis:
        raise ValueError("lanczos: start must not be zero")

    for products in range(len(basis), max_iters + 1):
        theta, v, r, residual = best_pair(basis, images, projected)
        converged = residual <= tol
        complete = len(basis) == len(v)                         # the basis spans the whole space
        if converged or complete or products == max_iters:
            break
        if len(basis) >= max_basis:
            basis, images, projected = restart(basis, images, projected, max_basis)
        q = orthogonalise(r, basis)
        closed = q is None                                      # H maps the span into itself
        if closed:
            break
        projected = grow(q, matvec, basis, images, projected)

    smallest, low, _, smallest_residual = ritz_pair(0, basis, images, projected)
    _, high, _, _ = ritz_pair(-1, basis, images, projected)
    return HessianTop(theta, v / v.norm(), smallest, smallest_residual, products, residual,
                      converged, vectors=torch.stack([low / low.norm(), high / high.norm()]))


def hessian_matvec(net, loss_fn, data, params):
    """The function v -> Hv, H the Hessian of the mean loss over data.
        H v = d(g . v) / dw        g = gradient of the mean loss
    The graph of g is built once, for all rows, and kept.  Each product is one more backward pass
    through it; building it every time would take 1.6 times as long.  On a CPU the rows go in pieces
    of 64, whose activations stay in the cache: 40% less time.  On a GPU launches count."""
    n, graphs, sizes = len(data[0]), [], [p.numel() for p in params]
    rows = 64 if params[0].device.type == "cpu" else 1024
    # fused attention has no second derivative
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for i in range(0, n, rows):
            batch = tuple(t[i:i + rows] for t in data)
            losses = _checked("hessian_top", loss_fn(net, batch), len(batch[0]))
            if not torch.isfinite(losses).all():
                bad = i + int((~torch.isfinite(losses)).nonzero()[0])
                raise ValueError(f"hessian_top: the loss of example {bad} is not finite")
            g = torch.autograd.grad(losses.sum() / n, params, create_graph=True,
                                    allow_unused=True, materialize_grads=True)
            # a piece that requires no gradient is constant in w and adds nothing to H
            graph = [(j, piece) for j, piece in enumerate(g) if piece.requires_grad]
            if graph:
                graphs.append(graph)

    def matvec(v):
        parts = [part.view_as(p) for part, p in zip(v.split(sizes), params)]
        out = torch.zeros_like(v)
        for graph in graphs:
            hv = torch.autograd.grad([piece for _, piece in graph], params,
                                     [parts[j] for j, _ in graph], retain_graph=True,
                                     allow_unused=True, materialize_grads=True)
            out += torch.cat([piece.reshape(-1) for piece in hv])
        return out
    return matvec


def hessian_top(model: Module, loss_fn: Callable, data: tuple, tol: float = 3e-3,
                max_iters: int = 100, start: Tensor | None = None,
                generator: Generator | None = None) -> HessianTop:
    """Top eigenvalue of the Hessian of the mean loss: the curvature of the sharpest direction.
        H v = lambda v        |lambda| largest, reported with its sign: spectrum {-2, 1} gives -2
    data: all rows are used.  Unit: loss / weight^2.
    tol bounds the residual |Hv - lambda v| / |lambda|.  The relative error of lambda is about
    tol^2 / (relative gap): by default 1e-3 even where the next eigenvalue is 1% away.
    start: (P,), such as the eigenvector of the previous snapshot, which saves about half of the
    products; or (m, P), such as its `vectors`.  None: random.  A start that is an eigenvector is
    accepted as the answer, even if another eigenvalue has overtaken it: now and then start cold.
    smallest: the smallest Ritz value on the way, an upper bound of the smallest eigenvalue.
    Raises ValueError on NaN (parameter or example named), a wrong argument or shape of the losses.
    Differs from the paper: nothing known; its method and batch are not public."""
    net, params, data, _ = _prepare("hessian_top", model, data)
    count = sum(p.numel() for p in params)
    if start is None:
        start = torch.randn(count, generator=_generator(generator))
    start = start.detach().to(params[0])
    if start.shape[-1] != count or not torch.isfinite(start).all() or not start.any():
        raise ValueError(f"hessian_top: start must be ({count},), finite and not zero; "
                         f"got shape {tuple(start.shape)}")
    if not tol > 0 or max_iters < 1:
        raise ValueError(f"hessian_top: tol must be positive and max_iters at least 1; "
                         f"got {tol} and {max_iters}")
    return lanczos(hessian_matvec(net, loss_fn, data, params), start, tol, max_iters)


# --------------------------------------------------------------- 4  local learning coefficient


def sgld_step(w, w0, gradient, noise, lr, nbeta, localization):
    """One step of stochastic gradient Langevin dynamics, in place on w.
        drift = nbeta gradient + localization (w - w0)        w <- w - lr/2 drift + sqrt(lr) noise
    All tensors (P,).  With fresh noise, N(0, 1), this is SGLD, and it spreads the weights too far:
    in a direction of curvature c (of nbeta L + localization/2 |w - w0|^2) the variance is
    1 / (c (1 - lr c / 4)), not 1 / c.  With the mean of this step's noise and the one before it is
    1 / c at any stable lr, up to second order in lr; exactly for quadratics.  `llc` passes that.
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
    """What each draw says about the LLC.
        LLC = mean of nbeta (L(w) - L(w0)), over the draws after burn-in
    losses, baselines: (C, num_burnin_steps + n, ...), at w and at w0, on the same mini-batch.
    Returns (C, n, ...), in nats times nbeta.  Their mean is the estimate, bias included.
    Exercise: measures.llc_draws (set 3, 5 points)
    Hint: the first num_burnin_steps draws of every chain go; the baseline is each draw's own.
    >>> llc_draws(torch.tensor([[9., 3., 4.]]), torch.tensor([[1., 1., 2.]]), 10.0, 1).tolist()
    [[20.0, 20.0]]"""
    return nbeta * (losses - baselines)[:, num_burnin_steps:]


@torch.enable_grad()
def plain_llc(model, loss_fn, data, nbeta=30.0, lr=1e-4, localization=300.0, num_draws=1000,
              num_burnin_steps=200, generator=None):
    """The LLC as a float, in its plain form, for the reader: one chain from w0, all of data at
    every step, fresh noise, no diagnostics.  `llc` is the one to use."""
    net, params, data, _ = _prepare("plain_llc", model, data)
    gauss = _generator(generator, params[0].device)
    w = torch.cat([p.detach().reshape(-1) for p in params])     # (P,)
    vector_to_parameters(w, params)                             # the weights are views of w now
    w0, losses = w.clone(), []
    for step in range(num_burnin_steps + num_draws):
        loss = loss_fn(net, data).mean()
        losses.append(loss.detach())                            # the first one is L(w0)
        g = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        gradient = torch.cat([piece.reshape(-1) for piece in g])                # (P,)
        noise = torch.empty_like(w).normal_(generator=gauss)
        sgld_step(w, w0, gradient, noise, lr, nbeta, localization)
    losses = torch.stack(losses)[None]                          # (1, burn-in + n)
    return float(llc_draws(losses, losses[:, :1], nbeta, num_burnin_steps).mean())


# How far can such a mean be trusted?  The draws of a chain depend on one another.


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
    n - t products over n, averaged over chains.  var+ also counts the variance between chains, so
    chains that disagree are worth little.  The sum stops where a pair rho_{2t} + rho_{2t+1} first
    falls below zero (Geyer 1992; as in Stan).
    Returns (ess, mc_error), floats.  Traces that do not vary are worth C n draws, with error 0.
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
    negative = (pairs < 0).nonzero()
    if len(negative):
        pairs = pairs[:int(negative[0])]
    tau = 1.0
    if len(pairs):
        tau = float(2 * torch.cummin(pairs, 0).values.sum() - 1)
    ess = chains * n / max(tau, 1 / math.log10(chains * n + 10))
    return ess, math.sqrt(float(total) / ess)


# Now the sampler itself: several chains, mini-batches, groups of rows, diagnostics.


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
    burnin_losses: Tensor = None  # (C, num_burnin_steps)
    diverged: Tensor = None       # (C,) bool: chains set aside
    num_diverged: int = 0
    init_loss: float = math.nan   # L(w0) over all of data
    nbeta: float = math.nan
    lr: float = math.nan
    localization: float = math.nan
    warnings: list = field(default_factory=list)    # sentences; empty if all is well
    groups: Tensor = None         # (J,) distinct values of groups, in the order of what follows
    group_shares: Tensor = None   # (J,) share of the rows; sum_j share_j mean_j = mean
    group_means: Tensor = None    # (J,) LLC_j = nbeta (E[L_j(w)] - L_j(w0)) - bias_j
    group_mc_errors: Tensor = None      # (J,)
    group_biases: Tensor = None         # (J,)
    group_init_losses: Tensor = None    # (J,)
    group_losses: Tensor = None         # (C, num_draws, J)
    group_baselines: Tensor = None      # (C, num_draws, J)


class Posterior:
    """What the chains share: a density, the make-up of a mini-batch, the losses at w0.
        exp(-nbeta L(w) - localization/2 |w - w0|^2)        L = mean loss over data
    A mini-batch has equally many rows of each group.  Each row counts by its group's share of data.
    Without groups, all rows are one group."""

    def __init__(self, net, loss_fn, data, groups, batch_size, nbeta, localization, autocast):
        self.net, self.loss_fn, self.data = net, loss_fn, data
        self.nbeta, self.localization, self.autocast = nbeta, localization, autocast
        n = len(data[0])
        labels = torch.zeros(n, dtype=torch.int64)
        if groups is not None:
            labels = torch.as_tensor(groups).cpu()
        if labels.shape != (n,):
            raise ValueError(f"llc: groups must be ({n},), one per row of data; "
                             f"got shape {tuple(labels.shape)}")
        # rows of each group, and how many of them are in a mini-batch
        self.groups, owner = labels.unique(return_inverse=True)                 # (J,), (N,)
        J = len(self.groups)
        self.members = [(owner == j).nonzero().squeeze(1) for j in range(J)]
        self.sizes = [min(len(rows), batch_size // J) for rows in self.members]
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
            pieces = [self.losses(net, tuple(t[i:i + 512] for t in data), autocast)
                      for i in range(0, n, 512)]
        self.at_w0 = torch.cat(pieces)                          # (N,)
        if not torch.isfinite(self.at_w0).all():
            bad = int((~torch.isfinite(self.at_w0)).nonzero()[0])
            raise ValueError(f"llc: the loss at w0 of example {bad} is not finite")

    def losses(self, net, batch, autocast):
        """Loss of each row, (B,), in the dtype of the weights."""
        # The weights change in place: a cache of their bfloat16 copies would be out of date.
        with torch.autocast(self.weights.device.type, autocast or torch.bfloat16,
                            enabled=autocast is not None, cache_enabled=False):
            losses = _checked("llc", self.loss_fn(net, batch), len(batch[0]))
        return losses.to(self.weights.dtype)


class Chain:
    """One SGLD chain, with weights, mini-batches and noise of its own."""

    def __init__(self, posterior, lr, seed):
        self.posterior, self.lr, self.net = posterior, lr, copy.deepcopy(posterior.net)
        # All weights become views of one vector, all gradients of another.
        params = [p for p in self.net.parameters() if p.requires_grad]
        sizes = [p.numel() for p in params]
        self.w = torch.cat([p.detach().reshape(-1) for p in params])            # (P,)
        self.w0, self.gradient = self.w.clone(), torch.zeros_like(self.w)
        for p, w, g in zip(params, self.w.split(sizes), self.gradient.split(sizes)):
            p.data, p.grad = w.view_as(p), g.view_as(p)
        self.picker = Generator().manual_seed(seed)
        self.gauss = _generator(self.picker, self.w.device)
        # Begin where the localization alone would leave the weights.
        self.noise, self.before = torch.empty_like(self.w), torch.empty_like(self.w)
        if posterior.localization > 0:
            start = self.noise.normal_(generator=self.gauss)
            self.w.add_(start, alpha=posterior.localization ** -0.5)
        self.noise.normal_(generator=self.gauss)                # of the step before the first

    def minibatch(self):
        """A mini-batch without replacement, and the mean loss of each group in it at w0, (J,)."""
        post = self.posterior
        picked = post.members
        if not post.whole:
            picked = [rows[torch.randperm(len(rows), generator=self.picker)[:size]]
                      for rows, size in zip(post.members, post.sizes)]
        index = torch.cat(picked)                               # (B,), group by group
        batch = tuple(t[index.to(t.device)] for t in post.data)
        return batch, post.averager @ post.at_w0[index.to(self.w.device)].double()

    def loss_and_gradient(self, batch):
        """Mean loss of each group, (J,).  Leaves the joint loss's gradient in self.gradient."""
        post = self.posterior
        self.gradient.zero_()
        with torch.enable_grad():
            losses = post.losses(self.net, batch, post.autocast)
            (losses * post.weights).sum().backward()
        return post.averager @ losses.detach().double()

    def heat(self, batch):
        """Noise d of the mini-batch gradient, and the curvature c_j of group j's loss along it.
            nbeta^2 |d|^2 (1, c_1, .., c_J)        c_j = nbeta d . H_j d / |d|^2
        Returns (1 + J,): from its mean follows the bias."""
        post, here, gradient = self.posterior, self.w.clone(), self.gradient.clone()
        self.loss_and_gradient(self.minibatch()[0])
        d = (gradient - self.gradient) / math.sqrt(2)           # of two: twice the variance of one
        size = d.norm()
        # second difference of the losses along d, in full precision, which it needs
        h = (0.01 * (self.w.norm() + (self.w - self.w0).norm())).clamp(min=1e-3)
        losses = []
        for shift in (h, 0, -h):
            torch.add(here, d * (shift / size.clamp(min=1e-30)), out=self.w)
            with torch.no_grad():
                losses.append(post.averager @ post.losses(self.net, batch, None).double())
        curvatures = (losses[0] - 2 * losses[1] + losses[2]) * post.nbeta / h ** 2
        # back to where the chain was
        self.w.copy_(here)
        self.gradient.copy_(gradient)
        return torch.cat([curvatures.new_ones(1), curvatures]) * (post.nbeta * size) ** 2

    def step(self):
        # the memory of the older noise takes the new one
        self.before, self.noise = self.noise, self.before.normal_(generator=self.gauss)
        sgld_step(self.w, self.w0, self.gradient, (self.before + self.noise) / 2, self.lr,
                  self.posterior.nbeta, self.posterior.localization)

    def run(self, num_burnin_steps, num_draws):
        """Losses and losses at w0, (burn-in + n, J) each, and heats, (any number, 1 + J)."""
        post, total = self.posterior, num_burnin_steps + num_draws
        losses = post.averager.new_full((total, len(post.sizes)), math.nan)
        baselines, heats = losses.clone(), []                   # nan stays where a chain breaks off
        for draw in range(total):
            if draw == 0 or not post.whole:
                batch, at_w0 = self.minibatch()
            losses[draw] = self.loss_and_gradient(batch)
            baselines[draw] = at_w0
            # looked at rarely, because a GPU waits
            if draw % 16 == 15 and not torch.isfinite(losses[draw]).all():
                break
            kept = draw - num_burnin_steps
            if not post.whole and kept >= 0 and kept % 20 == 0:
                heats.append(self.heat(batch))
            self.step()
        if not heats:                                           # all of data: no gradient noise
            heats = [losses.new_zeros(1 + len(post.sizes))]
        return losses.cpu(), baselines.cpu(), torch.stack(heats).cpu()


def llc(model: Module, loss_fn: Callable, data: tuple, nbeta: float | None = None,
        lr: float = 1e-3, localization: float = 300.0, num_chains: int = 4, num_draws: int = 100,
        num_burnin_steps: int = 20, batch_size: int | None = None,
        generator: Generator | None = None, groups: Tensor | None = None,
        autocast: torch.dtype | None = None) -> LLC:
    """Local learning coefficient: how fast the loss grows around w0, in effective parameters / 2.
        LLC = nbeta (E[L(w)] - L(w0)) - bias
        w ~ exp(-nbeta L(w) - localization/2 |w - w0|^2), by SGLD (see sgld_step)
        bias = lr/8 nbeta^2 E|d|^2 s / (s + localization)
        d: noise of a mini-batch's gradient        s: nbeta times the curvature along d
    It is d/2 for a quadratic loss in d dimensions, localization 0, and 1/4 for w^4.

    nbeta: inverse temperature, n / log n for some n, usually the size of the training set.  None
      means 30, that is n = 150, NOT the rows of `data`.  The value is the learning coefficient at
      that temperature and width, not the asymptotic lambda.
    lr: SGLD's eps.  Flat directions forget in 2 / (lr localization) draws, so a large lr mixes
      fast.  Best is the largest whose bias stays under 5%.
    localization: gamma.  The prior's standard deviation is gamma^-1/2 per weight.
    num_draws: kept of each chain, after num_burnin_steps that are not.  A chain begins at w0 plus a
      draw from N(0, 1 / localization), or at w0 if that is 0.  Most directions are flat and end
      there too, so a short burn-in is enough.  Chains that agree have begun apart.
    batch_size: rows per draw, without replacement, each chain's own.  None means 256, or all of
      data if it has no more.  L(w0) is taken over the same mini-batch as L(w).
    groups: (N,) int64, such as the task of each row.  A mini-batch has equally many rows of each
      group, weighted by its share of data.  One set of chains then yields each group's LLC_j and
      bias; their share-weighted sums are the joint ones.
    autocast: such as torch.bfloat16, for the forward and backward pass and the loss at w0.

    Returns LLC.  A chain diverged if a loss is not finite, or if its excess over L(w0) grows
      thirtyfold from one half to the next.  It is set aside and counted; with none left mean is
      nan.  A negative value means that w0 is no minimum of this loss.
    The bias is that of mini-batches.  Their gradients' noise is heat: it widens a direction of
      curvature c by lr/4 nbeta^2 E|d|^2 / c.  At every twentieth draw a second mini-batch shows the
      noise, and a second difference of the losses the curvature along it.  Exact for quadratics
      of one curvature along the noise, else an upper bound (s / (s + localization) is concave).
      The step's own error, of second order in lr, is not estimated: compare with half the lr.
    Raises ValueError on NaN in a parameter or a loss at w0 (named), or an argument out of range.
    Source: Lau et al. 2023 (arXiv 2308.12108).
    Differs from the paper: its nbeta, lr, localization and number of draws are not public.
    Differs from the paper: chains begin spread out by the localization, not at w0.
    Differs from the paper: each step's noise is averaged with that of the step before.
    Differs from the paper: with groups, one set of chains on the joint loss, not one per task.
      Each group then holds the weights with its share of nbeta only, so its value is larger."""
    net, params, data, n = _prepare("llc", model, data)
    nbeta = 30.0 if nbeta is None else float(nbeta)
    batch_size = 256 if batch_size is None else batch_size
    for key, value, low in (("nbeta", nbeta, 0), ("lr", lr, 0), ("num_chains", num_chains, 0),
                            ("num_draws", num_draws, 3)):
        if not low < value < math.inf:
            raise ValueError(f"llc: {key} must be finite and above {low}, got {value}")
    if not localization >= 0 or num_burnin_steps < 0 or batch_size < 1:
        raise ValueError(f"llc: localization and num_burnin_steps must not be negative, batch_size "
                         f"at least 1; got {localization}, {num_burnin_steps}, {batch_size}")
    lr, localization = float(lr), float(localization)
    posterior = Posterior(net, loss_fn, data, groups, min(n, batch_size), nbeta, localization,
                          autocast)

    def trace(seed):
        return Chain(posterior, lr, seed).run(num_burnin_steps, num_draws)
    seeds = torch.randint(2**62, (num_chains,), generator=_generator(generator)).tolist()
    traces = on_cores(trace, seeds, params[0].device)
    return _summary(posterior, lr, traces, num_burnin_steps, groups is not None)


def _summary(posterior, lr, traces, num_burnin_steps, grouped):
    """From the traces of all chains to an LLC."""
    share, at_w0 = posterior.share, posterior.at_w0.double().cpu()
    losses, baselines, heats = zip(*traces)
    losses, baselines = torch.stack(losses), torch.stack(baselines)     # (C, burn-in + n, J)
    kept = slice(num_burnin_steps, None)
    result = LLC(losses=losses[:, kept] @ share, baselines=baselines[:, kept] @ share,
                 burnin_losses=losses[:, :num_burnin_steps] @ share,
                 init_loss=float(at_w0.mean()), nbeta=posterior.nbeta, lr=lr,
                 localization=posterior.localization)

    # chains that diverged are set aside
    half = result.losses.shape[1] // 2
    excess = (result.losses - result.baselines).abs()
    calm = excess[:, -half:].mean(1) <= 30 * excess[:, :half].mean(1)
    sound = calm & torch.isfinite(losses).flatten(1).all(1)
    result.diverged, result.num_diverged = ~sound, int((~sound).sum())
    if result.num_diverged:
        result.warnings.append(f"{result.num_diverged} of {len(sound)} chains diverged and were "
                               "set aside: use a smaller lr")
    if not sound.any():
        return result

    # the joint value, its bias and its errors
    draws = llc_draws(losses[sound], baselines[sound], posterior.nbeta, num_burnin_steps)
    heat = torch.cat([heat for heat, good in zip(heats, sound) if good]).mean(0)
    biases = _biases(heat, share, lr, posterior.localization)           # (J,)
    result.bias = float(share @ biases)
    value = draws @ share - result.bias                                 # (C, n)
    result.mean, result.r_hat = float(value.mean()), split_r_hat(value)
    result.ess, result.mc_error = effective_samples(value)
    if len(value) > 1:
        result.std = float(value.mean(1).std())
    result.warnings += _doubts(result, value)

    # the same of each group
    if grouped:
        result.groups, result.group_shares, result.group_biases = posterior.groups, share, biases
        result.group_losses, result.group_baselines = losses[:, kept], baselines[:, kept]
        result.group_means = draws.mean((0, 1)) - biases
        errors = [effective_samples(draws[:, :, j])[1] for j in range(len(share))]
        result.group_mc_errors = torch.tensor(errors, dtype=torch.float64)
        result.group_init_losses = torch.stack([at_w0[rows].mean() for rows in posterior.members])
    return result


def _biases(heat, share, lr, localization):
    """Bias of each group's value, (J,), from the mean heat, (1 + J,)."""
    power, curved = heat[0], heat[1:]                           # nbeta^2 E|d|^2; times each c_j
    stiffness = localization
    if power > 0:
        stiffness += float(share @ curved / power)
    if not stiffness > 0:
        return torch.zeros_like(curved)
    return lr / 8 * curved / stiffness / (1 - min(lr * stiffness, 2) / 4)


def _doubts(result, value):
    """Sentences on what is wrong with a result, as far as its own draws, (C, n), can tell."""
    half = value.shape[1] // 2
    early, late = float(value[:, :half].mean()), float(value[:, -half:].mean())
    part = abs(result.bias) / max(abs(result.mean + result.bias), 1e-30)
    biased = (f"the bias of step size and mini-batches is {part:.0%} of the raw value: "
              "use a smaller lr")
    doubts = [
        (result.mean < 0,
         "the value is negative: w0 is no minimum of this loss, and the chains found lower ground; "
         "it is not a learning coefficient (usual early in training)"),
        (0.05 < part <= 0.5, biased),
        (part > 0.5, biased + " or larger batches, the correction is not to be trusted"),
        (abs(early - late) > max(0.1 * abs(result.mean), 3 * result.mc_error),
         f"the halves of the chains disagree ({early:.4g}, then {late:.4g}): lengthen the burn-in"),
        (result.ess < 100,
         f"only {result.ess:.0f} effective draws of {value.numel()}: more draws, a larger lr or a "
         "stronger localization"),
        (result.r_hat > 1.05, f"R-hat {result.r_hat:.2f}: the chains disagree"),
    ]
    return [sentence for condition, sentence in doubts if condition]


def llc_grid(model, loss_fn, data, lrs=(2e-4, 5e-4, 1e-3, 2e-3),
             localizations=(100.0, 300.0, 1000.0), seed=0, **options):
    """Which settings?  Yields (lr, localization, LLC) for every pair.  All have the same seed, so
    their differences are those of the settings.  Within one localization the value must not depend
    on lr.  Between localizations it does: each asks how the loss grows at another distance."""
    for localization in localizations:
        for lr in lrs:
            yield lr, localization, llc(model, loss_fn, data, lr=lr, localization=localization,
                                        generator=Generator().manual_seed(seed), **options)


def recommended(cells):
    """{localization: lr} from the cells of llc_grid: the largest lr of a sound cell, or None.
    A cell is sound if no chain diverged, the value is positive, its bias is under 5% of the raw
    value, and R-hat is under 1.05.  Between localizations nothing is recommended."""
    fit = {}
    for lr, localization, result in cells:
        lrs = fit.setdefault(localization, [])
        small_bias = abs(result.bias) < 0.05 * abs(result.mean + result.bias)
        sound = result.num_diverged == 0 and result.mean > 0 and result.r_hat < 1.05
        if sound and small_bias:
            lrs.append(lr)
    return {localization: max(lrs, default=None) for localization, lrs in fit.items()}


# ----------------------------------------------------------------------------- 5  linear probe


def linear_probe(features: Tensor, labels: Tensor, generator: Generator | None = None,
                 ridge: float = 1e-3, steps: int = 30, held_out: float = 0.25) -> float:
    """Held-out accuracy of a linear classifier: can the answer be read from the features?
        W minimises  mean cross-entropy(X W, y) + ridge/2 |W|^2
    features: (N, D), 2,000 rows or more for a number that means something.  labels: (N,), any
    integers.  `generator` chooses the held-out quarter of the rows; the others standardise X.
    Read it beside the same probe on shuffled labels (chance) and on the untrained model.
    Method: Newton-like steps with one fixed matrix.  In each class the Hessian of the cross-entropy
    is at most X^T X / n / 2 (Boehning 1992), so (X^T X / n / 2 + ridge)^-1 times the gradient is a
    step that cannot overshoot.  With Nesterov's momentum 30 are enough.  (The first alone is ridge
    regression on one-hot labels, which misses classes that lie between others.)
    Raises ValueError for features that are not a finite matrix, labels that do not fit, fewer than
    8 rows, or one class only.
    Source: Alain & Bengio 2016.  Differs from the paper: its probe's details are not public."""
    if features.dim() != 2 or not torch.isfinite(features).all():
        raise ValueError("linear_probe: features must be (N, D) and finite; "
                         f"got shape {tuple(features.shape)}")
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(f"linear_probe: labels must be ({len(features)},) and integer; "
                         f"got {tuple(labels.shape)}, {labels.dtype}")
    classes, y = labels.to(features.device).unique(return_inverse=True)
    n = len(y)
    if n < 8 or len(classes) < 2:
        raise ValueError("linear_probe: needs at least 8 rows and 2 classes; "
                         f"got {n} and {len(classes)}")

    # split the rows, standardise, append a constant feature for the bias
    order = torch.randperm(n, generator=_generator(generator)).to(y.device)
    count = max(1, int(n * held_out))
    test, fit = order[:count], order[count:]
    x = features.detach().float()
    spread, mean = torch.std_mean(x[fit], 0)
    floor = 1e-6 * float(spread.max()) + 1e-30                  # a constant feature stays 0
    x = (x - mean) / spread.clamp(min=floor)
    x = torch.cat([x, x.new_ones(n, 1)], 1)                     # (N, D + 1)

    # minimise on the training rows
    a, onehot = x[fit], F.one_hot(y[fit], len(classes)).float()
    bound = a.T @ a / len(a) / 2 + ridge * torch.eye(a.shape[1], device=a.device)
    factor = torch.linalg.cholesky(bound)
    w = ahead = x.new_zeros(a.shape[1], len(classes))
    for step in range(steps):
        gradient = a.T @ ((a @ ahead).softmax(1) - onehot) / len(a) + ridge * ahead
        new = ahead - torch.cholesky_solve(gradient, factor)
        ahead, w = new + (new - w) * (step / (step + 3)), new

    return float(((x[test] @ w).argmax(1) == y[test]).float().mean())


# --------------------------------------------------------------------------- for speed alone
# What follows has the values of the plain versions above, sooner or in less memory.


def rankme_many(features, eps=1e-7):
    """RankMe of M feature matrices of one shape, several times faster than M calls of rankme.
        s_i = sqrt(eigenvalue_i of X^T X), in float64
    features: (M, N, D).  Returns (M,) float64, equal to rankme's to 1e-4.  Raises ValueError as
    rankme does, and names the matrix.  Rounding in float64 leaves singular values of 1e-8 of the
    largest, which is harmless; in float32 a collapsed representation would read 1.045 for 1."""
    if features.dim() != 3:
        raise ValueError("rankme_many: features must be (M, N, D), "
                         f"got shape {tuple(features.shape)}")
    features = features.detach()
    bad = ~(torch.isfinite(features).flatten(1).all(1) & features.flatten(1).any(1))
    if bad.any():
        raise ValueError("rankme_many: features must be finite and not all zero; "
                         f"matrix {int(bad.nonzero()[0])} is not")
    ranks = []
    for x in features.split(16):                                # 16 of 200 x 128 stay in the cache
        x = x.double()
        gram = x.mT @ x if x.shape[1] >= x.shape[2] else x @ x.mT
        s = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()     # (16, min(N, D))
        p = s / s.sum(1, keepdim=True) + eps
        ranks.append(torch.exp(-(p * p.log()).sum(1)))
    return torch.cat(ranks)


class _PerExample(Module):
    """loss_fn(model, batch) as the forward of a module, so that functional_call can run it."""

    def __init__(self, net, loss_fn):
        super().__init__()
        self.net, self.loss_fn = net, loss_fn

    def forward(self, *batch):
        return self.loss_fn(self.net, batch)


def per_example_gradients_vmap(net, loss_fn, data, params):
    """The same as per_example_gradients, in one pass: torch.func.grad makes the gradient of one
    example, vmap runs it for all of them at once."""
    wrapper = _PerExample(net, loss_fn)
    names = {id(p): name for name, p in wrapper.named_parameters()}     # a tied weight: once
    point = {names[id(p)]: p.detach() for p in params}

    def loss(point, *row):
        batch = tuple(t[None] for t in row)
        return _checked("gradient_gram", functional_call(wrapper, point, batch), 1).squeeze(0)
    in_dims = (None,) + (0,) * len(data)                        # one set of weights, many rows
    columns = vmap(grad(loss), in_dims)(point, *data)
    return [columns[names[id(p)]] for p in params]


SMALL = 2**26     # numbers that gradient_gram may always hold: 256 MiB in float32


def gradient_blocks(net, loss_fn, data, params, chunk):
    """The same as per_example_gradients, one parameter after another, in bounded memory.
    Where the gradients of all examples do not fit, the parameters are taken in blocks, and the
    backward pass is repeated for each.  So gradient_gram is exact at any size: 64 examples of a
    model of 85M parameters take 6.7 GiB (measured; float32)."""
    n, total = len(data[0]), sum(p.numel() for p in params)
    rows = min(n, max(chunk, SMALL // total))                   # examples at a time
    most = max(2 * chunk * total, 4 * SMALL)                    # numbers held for one block
    blocks, held = [[]], 0
    for p in params:
        if blocks[-1] and held + n * p.numel() > most:
            blocks.append([])
            held = 0
        blocks[-1].append(p)
        held += n * p.numel()

    for block in blocks:
        for p in params:                                        # the backward pass stops early
            p.requires_grad_(any(p is q for q in block))
        pieces = []
        for i in range(0, n, rows):
            batch = tuple(t[i:i + rows] for t in data)
            try:
                pieces.append(per_example_gradients_vmap(net, loss_fn, batch, block))
            except RuntimeError:                                # .item(), or a branch on the data
                pieces.append(per_example_gradients(net, loss_fn, batch, block))
        for column in zip(*pieces):
            yield column[0] if len(column) == 1 else torch.cat(column)


def on_cores(job, inputs, device):
    """[job(x) for x in inputs]; on a CPU each has a core of its own, because several cores are slow
    to share matrices this small."""
    workers = 1
    if device.type == "cpu":
        workers = min(len(inputs), torch.get_num_threads())
    if workers == 1:
        return [job(x) for x in inputs]
    # set_num_threads holds for the worker thread that calls it
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(job, inputs))
