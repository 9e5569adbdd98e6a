"""Chapter 3: measures.  Five numbers that describe a network's geometry while it learns, and a probe.

A network that is about to acquire a capability may change inside before it changes outside.  This file measures the inside, on
any torch.nn.Module.  It is ordered by difficulty; each section needs only what stands above it.

  1  RankMe                   how many directions the hidden states use:  exp(entropy of the normalised singular values)
  2  gradient, Fisher rank    how many ways the examples pull on the weights:  the same entropy, of the Gram matrix K = G G^T
  3  top Hessian eigenvalue   how sharp the loss is:  Hv = lambda v, by power iteration and then by Lanczos
  4  LLC                      how much of weight space stays good:  nbeta (E[L(w)] - L(w0)), w drawn around w0 by SGLD
  5  linear probe             is the answer linearly readable from a hidden state?

They follow section by section the measures of "Anatomy of Capability Emergence" (arXiv 2602.15997); every deviation has a line
of its own in a docstring.  Three rules hold throughout:
  - `loss_fn(model, batch)` returns one loss per example, (B,); `data` is a tuple of tensors whose rows belong together.
  - Measuring disturbs nothing.  All work is done on a deep copy in eval mode (dropout off, running statistics frozen), over all
    of its parameters that require gradients; random numbers come from generators of our own, never from the global one.
  - What cannot be measured is a ValueError that says where (`NaN or infinity in parameter 'head.weight'`); what can be measured but
    not trusted comes with its diagnostics (residual, effective samples, warnings), never silently.
What this file does not do: it trains nothing, knows no task, writes no file, and does not decide what "emerged" means.

Letters: B batch, T tokens, D width, N examples, P parameters, C chains, K groups.

In your own training loop:
>>> import torch; _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).requires_grad_()
>>> def loss_fn(model, batch):                                     # one loss per example: no mean over the batch
...     return (model(batch[0]).squeeze(1) - batch[1]).square()
>>> x = torch.linspace(-1, 1, 96).reshape(32, 3); data = (x, x.prod(1))
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> for step in range(101):
...     loss_fn(model, data).mean().backward(); optimizer.step(); optimizer.zero_grad()
...     if step % 50 == 0:
...         top = hessian_top(model, loss_fn, data, start=top.eigenvector if step else None)
...         row = dict(rankme=rankme(model[:2](x)), rank=gradient_rank(model, loss_fn, data), sharpness=top.eigenvalue,
...                    llc=llc(model, loss_fn, data, num_chains=2, num_draws=20, num_burnin_steps=5).mean)
>>> sorted(row), top.converged, 1 <= row["rankme"] <= 8
(['llc', 'rank', 'rankme', 'sharpness'], True, True)
"""
import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

# ---------------------------------------------------------------------------------------------------------------- 1  RankMe


def rankme(features, eps=1e-7):
    """Effective rank of a feature matrix: how many directions it really uses.
        p_i = s_i / sum_j s_j + eps        RankMe = exp(-sum_i p_i log p_i)
    features: (N, D), one row per example.  Returns a float, about 1 to min(N, D); unit: dimensions.
    The singular values s_i are not squared and the features not centred: on the same hidden states squaring gave 2.7 and
    centring 31.4 where this gives 26.0, so a RankMe without its kind, its N and its positions says little.
    Raises ValueError if features are not a matrix, not finite, or all zero.
    Source: Garrido et al. 2023 (arXiv 2210.02885).  Differs from the paper: nothing known.
    Exercise: measures.rankme (set 2, 10 points, without rankme_many and _rankme_chunk)
    Hint: torch.linalg.svdvals; or, since s_i^2 are its eigenvalues, the smaller of X^T X and X X^T in double precision.
    >>> round(rankme(torch.eye(10)[:4]), 3), round(rankme(torch.ones(10, 5)), 3)
    (4.0, 1.0)"""
    if features.dim() != 2:
        raise ValueError(f"rankme: features must be (N, D), got shape {tuple(features.shape)}")
    x = features.detach().double()                              # (N, D)
    if not torch.isfinite(x).all() or not x.any():              # checked first: the SVD has its own error type
        raise ValueError("rankme: features must be finite and not all zero")
    s = torch.linalg.svdvals(x)                                 # (min(N, D),)
    p = s / s.sum() + eps                                       # eps keeps log finite when s_i = 0
    return float(torch.exp(-(p * p.log()).sum()))


def _rankme_chunk(features, eps):
    if features.device.type == "cpu":
        torch.set_num_threads(1)                                # holds for this worker thread alone: see rankme_many
    s = []
    for x in features.split(16):                                # 16 matrices of 200 x 128 in float64 stay in the cache
        x = x.double()
        gram = x.mT @ x if x.shape[1] >= x.shape[2] else x @ x.mT               # the smaller side: (M, d, d)
        s.append(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt())
    s = torch.cat(s)                                            # (M, d)
    p = s / s.sum(1, keepdim=True) + eps
    return torch.exp(-(p * p.log()).sum(1))


def rankme_many(features, eps=1e-7, workers=None):
    """RankMe of M feature matrices of one shape, several times faster than M calls of rankme.
        s_i = sqrt(eigenvalue_i of X^T X), in float64
    features: (M, N, D).  Returns (M,) float64, equal to rankme's to 1e-4.  Raises ValueError as rankme does, naming the matrix.
    Two things make it fast.  The eigenvalues of the smaller Gram matrix cost less than singular values; in float64 rounding
    leaves singular values of 1e-8 of the largest, harmless, where in float32 a collapsed representation would read 1.045 for 1.
    And matrices this small are best given to one core each: a LAPACK that shares one 128 x 128 matrix out over the cores
    spends most of its time waiting.  workers: threads on a CPU; None means torch's own number."""
    if features.dim() != 3:
        raise ValueError(f"rankme_many: features must be (M, N, D), got shape {tuple(features.shape)}")
    features = features.detach()
    bad = ~(torch.isfinite(features).flatten(1).all(1) & features.flatten(1).any(1))
    if bad.any():
        raise ValueError(f"rankme_many: features must be finite and not all zero; matrix {int(bad.nonzero()[0])} is not")
    if features.device.type != "cpu":
        return _rankme_chunk(features, eps)
    workers = workers or torch.get_num_threads()
    with ThreadPoolExecutor(workers) as pool:
        return torch.cat(list(pool.map(lambda x: _rankme_chunk(x, eps), features.tensor_split(min(workers, len(features))))))


# ----------------------------------------------------------------------------- what the measures of a loss have in common


def _prepare(name, model, data):
    """Check the arguments; return (copy of the model in eval mode, its trainable parameters, tuple of tensors, N)."""
    data = tuple(data)
    n = len(data[0]) if data else 0
    if n == 0 or any(len(tensor) != n for tensor in data):
        raise ValueError(f"{name}: data must be tensors with the same number of rows, at least one; got {[len(t) for t in data]}")
    for key, p in model.named_parameters():
        if not torch.isfinite(p).all():
            raise ValueError(f"{name}: NaN or infinity in parameter '{key}'")
    net = copy.deepcopy(model).eval()
    params = [p for p in net.parameters() if p.requires_grad]
    if not params:
        raise ValueError(f"{name}: the model has no parameter that requires gradients")
    if len({(p.dtype, p.device) for p in params}) > 1:
        raise ValueError(f"{name}: parameters must share one dtype and one device, so that they form one vector")
    for p in params:
        p.grad = None
    return net, params, data, n


def _checked(name, losses, rows):
    if losses.shape != (rows,):
        raise ValueError(f"{name}: loss_fn must return one loss per example, ({rows},); got shape {tuple(losses.shape)}")
    return losses


def _generator(generator, device="cpu"):
    """A generator of our own on `device`, seeded from the caller's (from 0 if there is none): the caller's advances by one
    number, whatever is drawn here; the global one is never touched; and a CPU generator serves a CUDA model."""
    seed = 0
    if generator is not None:
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return torch.Generator(device).manual_seed(seed)


# --------------------------------------------------------------------------------------- 2  gradient covariance and Fisher rank


def effective_rank(eigenvalues):
    """Effective rank of a spectrum: the exponential of its entropy.
        p_i = l_i / sum_j l_j        rank = exp(-sum_i p_i log p_i)
    eigenvalues: (n,), none negative beyond rounding.  Returns a float from 1 to n; unit: dimensions.
    Raises ValueError if they are not finite, all zero, or one is below -1e-6 of the largest.
    Source: Roy & Vetterli 2007.  RankMe is this of the singular values, plus its eps.
    Exercise: measures.effective_rank (set 2, 5 points)
    Hint: rounding may leave an eigenvalue just below 0, and 0 log 0 is 0 here; torch.special.entr knows that.
    >>> round(effective_rank(torch.tensor([2., 2., 2., 0.])), 6)
    3.0"""
    values = torch.as_tensor(eigenvalues).detach().double()
    if not torch.isfinite(values).all() or not (values > 0).any() or values.min() < -1e-6 * values.max():
        raise ValueError("effective_rank: eigenvalues must be finite, not negative, and not all zero")
    p = values.clamp(min=0)
    return float(torch.exp(torch.special.entr(p / p.sum()).sum()))              # entr(p) = -p log p, and 0 at 0


class _PerExample(torch.nn.Module):
    """loss_fn(model, batch) as a module's forward, which is what functional_call swaps parameters in and out of."""

    def __init__(self, net, loss_fn):
        super().__init__()
        self.net, self.loss_fn = net, loss_fn

    def forward(self, *batch):
        return self.loss_fn(self.net, batch)


def per_example_gradients(net, loss_fn, data, params):
    """The plain way: one backward pass per example.  Returns one (N, *shape) tensor per parameter.  Works for every model."""
    rows = []
    for i in range(len(data[0])):
        loss = loss_fn(net, tuple(t[i:i + 1] for t in data)).sum()
        rows.append(torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True))
    return [torch.stack(column) for column in zip(*rows)]


def per_example_gradients_vmap(net, loss_fn, data, params):
    """The same in one pass: torch.func writes the gradient of one example, vmap runs it for all of them at once."""
    wrapper = _PerExample(net, loss_fn)
    names = {id(p): name for name, p in wrapper.named_parameters()}             # a tied weight appears once
    point = {names[id(p)]: p.detach() for p in params}

    def loss(point, *row):
        return _checked("gradient_gram", functional_call(wrapper, point, tuple(t[None] for t in row)), 1).squeeze(0)

    columns = vmap(grad(loss), in_dims=(None,) + (0,) * len(data))(point, *data)
    return [columns[names[id(p)]] for p in params]


SMALL = 2**26     # numbers that gradient_gram may always hold at a time, whatever chunk says: 256 MiB in float32


def gradient_gram(model, loss_fn, data, chunk=8):
    """Gram matrix of the per-example gradients, over all parameters.
        K_ij = g_i . g_j        g_i = gradient of example i's loss, (P,)
    data: N rows.  Returns (N, N) float64 on the CPU; unit: loss^2 / weight^2.  Its eigenvalues are those of G^T G, (P, P).
    chunk bounds memory: no more than 3 * chunk gradients (or 1 GiB, where that is more) exist at a time.  K is a sum over
    parameters, K = sum_p G_p G_p^T, so where all N gradients do not fit, the parameters are taken in as many blocks as needed and
    the backward pass is repeated for each: exact at any size, 64 examples of the 85M model in 6.7 GiB (measured; float32).
    Gradients are computed in the model's dtype, summed per parameter, and added up in float64.
    Raises ValueError on NaN (parameter or example named) or on a loss_fn that does not return (N,).
    Differs from the paper: all parameters; there the first 50K, which are mostly embeddings.
    Exercise: measures.gradient_gram (set 2, 15 points)
    Hint: _prepare first; one backward pass per example (per_example_gradients) will do, and K may be built in float64 at once.
    >>> w = torch.nn.Linear(2, 1, bias=False)                       # the gradient of w . x is x
    >>> gradient_gram(w, lambda model, batch: model(batch[0])[:, 0], (torch.tensor([[1., 0.], [3., 4.]]),)).tolist()
    [[1.0, 3.0], [3.0, 25.0]]"""
    name = "gradient_gram"
    if chunk < 1:
        raise ValueError(f"{name}: chunk must be at least 1, got {chunk}")
    net, params, data, n = _prepare(name, model, data)
    total, device = sum(p.numel() for p in params), params[0].device
    rows = min(n, max(chunk, SMALL // total))                                   # examples at a time
    budget = max(2 * chunk * total, 4 * SMALL)                                  # numbers held for one block of parameters
    blocks, held = [[]], 0
    for p in params:
        if blocks[-1] and held + n * p.numel() > budget:
            blocks, held = blocks + [[]], 0
        blocks[-1].append(p)
        held += n * p.numel()
    gram = torch.zeros(n, n, dtype=torch.float64, device=device)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):                     # fused attention has no rule for vmap
        for block in blocks:
            for p in params:
                p.requires_grad_(any(p is q for q in block))                    # the backward pass stops where nothing is asked
            pieces = []
            for i in range(0, n, rows):
                batch = tuple(t[i:i + rows] for t in data)
                try:
                    pieces.append(per_example_gradients_vmap(net, loss_fn, batch, block))
                except RuntimeError:                                            # .item(), in-place writes, branches on data
                    pieces.append(per_example_gradients(net, loss_fn, batch, block))
            for column in zip(*pieces):
                g = column[0] if len(column) == 1 else torch.cat(column)
                g = g.flatten(1)                                                # (N, P_p)
                gram += g @ g.mT                                                # float32 inside one parameter, float64 between
    if not torch.isfinite(gram).all():
        bad = int((~torch.isfinite(gram.diagonal())).nonzero()[0])
        raise ValueError(f"{name}: the gradient of example {bad} is not finite")
    return ((gram + gram.mT) / 2).cpu()


def gradient_rank(model, loss_fn, data, chunk=8):
    """Effective rank of the gradient covariance: along how many directions do examples disagree?
        exp(entropy(eigenvalues of H K H)),    H = I - 1/N,    K = gradient_gram
    Returns a float from 1 to N - 1.  It lives near that ceiling: report it with its N.
    Raises ValueError for fewer than two examples, and where all gradients coincide (there is no covariance)."""
    gram = gradient_gram(model, loss_fn, data, chunk)
    if len(gram) < 2:
        raise ValueError("gradient_rank: a covariance needs at least two examples")
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    if not centred.trace() > 1e-10 * gram.trace():
        raise ValueError("gradient_rank: the gradients of all examples coincide, their covariance is zero")
    return effective_rank(torch.linalg.eigvalsh(centred))


def fisher_rank(model, loss_fn, data, chunk=8):
    """Effective rank of the Fisher matrix: the same of K as it is, not centred.  Returns a float from 1 to N.
    With true labels this is the `empirical` Fisher, which nearly equals gradient_rank (57.3 and 57.3 at N = 64); with labels drawn
    from the model it is the Fisher itself, and a measure of its own.  Which of the two is decided by `data`.
    Differs from the paper: it reports the empirical one."""
    return effective_rank(torch.linalg.eigvalsh(gradient_gram(model, loss_fn, data, chunk)))


# ------------------------------------------------------------------------------------------------ 3  top Hessian eigenvalue


@dataclass
class HessianTop:
    eigenvalue: float             # signed; the largest in size
    eigenvector: torch.Tensor     # (P,), unit length, in the order of model.parameters()
    smallest: float               # most negative Ritz value of the same pass (nan from power_iteration)
    smallest_residual: float      # its own |Hv - lambda v| / |lambda|: the pass was not run for it
    iterations: int               # Hessian-vector products
    residual: float               # |Hv - lambda v| / |lambda|, computed from H v itself
    converged: bool               # residual <= tol


def power_iteration(matvec, start, tol=1e-2, max_iters=1000):
    """The eigenvalue largest in size, for the reader: multiply, normalise, repeat.
        v <- Hv / |Hv|        lambda = v . Hv        residual = |Hv - lambda v| / |lambda|
    matvec: (P,) -> (P,), symmetric.  Stops on the residual: a Rayleigh quotient that stands still proves nothing (a spectrum
    with both +1 and -1 holds it still at any value between).  start: (P,), not zero, of any length.  max_iters: products at most.
    Returns HessianTop, its residual that of the pair that it holds, `smallest` and its residual nan; lambda = 0 has residual 0 if Hv = 0.
    Exercise: measures.power_iteration (set 2, 10 points, without lanczos)
    Hint: compare Hv with lambda v before you normalise Hv; the last pair is returned even where it has not converged.
    >>> round(power_iteration(lambda v: torch.tensor([-2., 1.]) * v, torch.ones(2)).eigenvalue, 3)
    -2.0"""
    v = start / start.norm()
    for products in range(1, max_iters + 1):
        hv = matvec(v)
        eigenvalue = float(v @ hv)
        error, scale = float((hv - eigenvalue * v).norm()), abs(eigenvalue)
        residual = error / scale if scale else (math.inf if error else 0.0)
        if residual <= tol or products == max_iters:
            return HessianTop(eigenvalue, v, math.nan, math.nan, products, residual, residual <= tol)
        v = hv / hv.norm()


def _combine(weights, vectors):
    total = torch.zeros_like(vectors[0])
    for weight, vector in zip(weights.tolist(), vectors):
        total.add_(vector, alpha=weight)
    return total


def lanczos(matvec, start, tol=1e-2, max_iters=100, max_basis=24):
    """The same eigenvalue in far fewer products.  Lanczos is power iteration that remembers: it keeps every vector so far, finds
    the best approximation in their span (Rayleigh-Ritz), and steps along that approximation's residual.
        Q = [q_1 .. q_k],  T = Q^T H Q,  T s = theta s,  v = Q s,  r = H v - theta v,  q_{k+1} = r orthogonalised against Q
    start: (P,), or (m, P) for several vectors that are expected to be nearly eigenvectors.
    In exact arithmetic every Ritz residual is parallel to Lanczos's next vector, so this is Lanczos with full
    reorthogonalisation; written so, the residual is computed from H v itself, and a full basis is restarted from the best vectors
    of both ends of the spectrum without another product.  Memory: 2 * max_basis * P at most."""
    start = start if start.dim() == 2 else start[None]
    queue, basis, images = list(start), [], []
    T = torch.zeros(0, 0, dtype=torch.float64)
    products = 0
    while True:
        q, size = queue.pop(0).clone(), None
        for _ in range(2):                                      # once is not enough in floating point, twice is
            size = float(q.norm())
            for b in basis:
                q.sub_(b, alpha=float(b @ q))
        length = float(q.norm())
        if length > 1e-5 * size and length > 0:                 # otherwise it adds nothing to the span
            basis.append(q / length)
            images.append(matvec(basis[-1]))
            products += 1
            column = torch.tensor([float(b @ images[-1]) for b in basis], dtype=torch.float64)
            T = torch.nn.functional.pad(T, (0, 1, 0, 1))
            T[-1, :], T[:, -1] = column, column
        elif not basis:
            raise ValueError("lanczos: start must not be zero")
        elif not queue:
            queue = None                                        # the span is closed under H: no better answer exists in it
        if queue and products < max_iters:
            continue
        theta, S = torch.linalg.eigh(T)
        top = int(theta.abs().argmax())
        v = _combine(S[:, top], basis)
        r = _combine(S[:, top], images).sub_(v, alpha=float(theta[top]))
        error, scale = float(r.norm()), abs(float(theta[top]))
        residual = error / scale if scale else (math.inf if error else 0.0)
        if residual <= tol or products >= max_iters or queue is None or len(basis) == len(r):
            low = _combine(S[:, 0], images).sub_(_combine(S[:, 0], basis), alpha=float(theta[0]))
            low = float(low.norm()) / abs(float(theta[0])) if theta[0] else 0.0
            return HessianTop(float(theta[top]), v / v.norm(), float(theta[0]), low, products, residual, residual <= tol)
        if len(basis) >= max_basis:                             # restart: keep a few Ritz vectors of each end, and their images
            keep = torch.cat([torch.arange(3), torch.arange(len(theta) - 3, len(theta))]) if max_basis > 6 else torch.tensor([top])
            basis, images = ([_combine(S[:, k], old) for k in keep] for old in (basis, images))
            T = torch.diag(theta[keep])
        queue = [r]


def hessian_matvec(net, loss_fn, data, params):
    """v -> Hv for the mean loss over data.  The graph of the first gradient is built once and kept; each product is then one more
    backward pass through it: H v = d(g . v)/dw.  (Rebuilding it for every product costs 1.6 times as much.)
    On a CPU the rows go through in pieces of 64, whose activations stay in the cache: a product then costs 40% less than in one
    piece.  Elsewhere the launches count, and pieces are large.  Memory holds the graph of all rows."""
    n, graphs = len(data[0]), []
    size = 64 if params[0].device.type == "cpu" else 1024
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):     # no fused attention kernel has a second derivative
        for i in range(0, n, size):
            batch = tuple(t[i:i + size] for t in data)
            losses = _checked("hessian_top", loss_fn(net, batch), len(batch[0]))
            if not torch.isfinite(losses).all():
                bad = i + int((~torch.isfinite(losses)).nonzero()[0])
                raise ValueError(f"hessian_top: the loss of example {bad} is not finite")
            g = torch.autograd.grad(losses.sum() / n, params, create_graph=True, allow_unused=True, materialize_grads=True)
            graphs.append([(j, piece) for j, piece in enumerate(g) if piece.requires_grad])     # the rest is constant in w

    def matvec(v):
        parts = [piece.view_as(p) for piece, p in zip(v.split([p.numel() for p in params]), params)]
        out = torch.zeros_like(v)
        for g in graphs:
            if g:
                hv = torch.autograd.grad([piece for _, piece in g], params, [parts[j] for j, _ in g], retain_graph=True,
                                         allow_unused=True, materialize_grads=True)
                out += torch.cat([piece.reshape(-1) for piece in hv])
        return out
    return matvec


def hessian_top(model, loss_fn, data, tol=3e-3, max_iters=100, start=None, generator=None):
    """Top eigenvalue of the Hessian of the mean loss: the curvature along the sharpest direction.
        H v = lambda v,   |lambda| largest;   reported with its sign (spectrum {-2, 1}: -2)
    data: all rows are used.  Unit: loss / weight^2.  Returns HessianTop; `converged` is true only if residual <= tol.
    tol bounds |Hv - lambda v| / |lambda|.  For a symmetric matrix the eigenvalue's own relative error is about tol^2 / (relative
    gap), so the default gives the eigenvalue to 1e-3 even where the next one is 1% away, and mostly to 1e-5.
    start: (P,), e.g. the eigenvector of the previous snapshot, which saves about half of the products; a fresh random vector
    otherwise.  A start that is already an eigenvector is accepted as the answer, even if another eigenvalue has overtaken it:
    compare with a cold start now and then.
    smallest: the most negative Ritz value on the way, an upper bound of the smallest eigenvalue, with its own residual.
    Raises ValueError on NaN (parameter or example named), a wrong start, or a loss_fn that does not return (N,).
    Differs from the paper: nothing known; its method and batch are not public."""
    net, params, data, n = _prepare("hessian_top", model, data)
    count, like = sum(p.numel() for p in params), params[0]
    if start is None:
        start = torch.randn(count, generator=_generator(generator)).to(like)
    if start.shape[-1] != count or not torch.isfinite(start).all() or not start.any():
        raise ValueError(f"hessian_top: start must be ({count},), finite and not zero; got shape {tuple(start.shape)}")
    if not tol > 0 or max_iters < 1:
        raise ValueError(f"hessian_top: tol must be positive and max_iters at least 1; got {tol} and {max_iters}")
    return lanczos(hessian_matvec(net, loss_fn, data, params), start.detach().to(like), tol, max_iters)


# -------------------------------------------------------------------------------------------- 4  local learning coefficient


@dataclass
class LLC:
    mean: float                   # nbeta (E[L(w)] - L(w0)), corrected for bias, over the chains that did not diverge
    std: float                    # between the means of the chains
    mc_error: float               # Monte Carlo standard error of mean
    r_hat: float                  # split R-hat: near 1 where chains, and halves of chains, agree
    ess: float                    # effective number of independent draws, all chains together
    bias: float                   # of step size and mini-batches, estimated and already subtracted: mean + bias is the raw value
    losses: torch.Tensor          # (C, num_draws) mini-batch loss at each draw after burn-in, all chains
    baselines: torch.Tensor       # (C, num_draws) loss at w0 of the same mini-batches
    burnin_losses: torch.Tensor   # (C, num_burnin_steps)
    diverged: torch.Tensor        # (C,) bool: chains set aside
    num_diverged: int
    init_loss: float              # L(w0) over all of data
    nbeta: float
    lr: float
    localization: float
    warnings: list                # sentences; empty if there is nothing to say
    groups: torch.Tensor = None   # with groups: (K,) the distinct values, and in their order:
    group_shares: torch.Tensor = None         # (K,) share of the rows; sum_k share_k mean_k = mean
    group_means: torch.Tensor = None          # (K,) LLC_k = nbeta (E[L_k(w)] - L_k(w0)), corrected for bias
    group_mc_errors: torch.Tensor = None      # (K,)
    group_biases: torch.Tensor = None         # (K,)
    group_init_losses: torch.Tensor = None    # (K,)
    group_losses: torch.Tensor = None         # (C, num_draws, K)
    group_baselines: torch.Tensor = None      # (C, num_draws, K)


def split_r_hat(traces):
    """Gelman & Rubin's R-hat of chains cut in halves: do the parts agree, as far as their own spread can tell?
        R^2 = (h - 1) / h + Var(means of the parts) / W,   W = mean of their variances
    traces: (C, n): 2C parts of h = n // 2 draws (of an odd n, the middle one is left out); variances with n - 1.  1 is perfect.
    Returns a float; nan where parts have fewer than two draws, or do not vary.
    Exercise: measures.split_r_hat (set 3, 5 points)
    Hint: the halves go below one another, (2C, h); forget the halving and a chain that drifts all along looks perfect.
    >>> round(split_r_hat(torch.tensor([[1., 3., 1., 3.], [2., 4., 2., 4.]])), 4)
    0.8165"""
    half = traces.shape[1] // 2
    parts = torch.cat([traces[:, :half], traces[:, -half:]]).double()           # (2C, half)
    within = parts.var(1).mean() if half > 1 else 0
    if not within > 0:
        return math.nan
    return float(((half - 1) / half + parts.mean(1).var() / within).sqrt())


def effective_samples(traces):
    """How many independent draws the C x n correlated ones are worth, and the standard error of their mean.
        ess = C n / (1 + 2 sum_t rho_t),   rho_t = 1 - (W - mean autocovariance_t) / var+,   mc_error = sqrt(var+ / ess)
    W is the variance within chains and var+ also counts that between them, so chains that disagree are worth little.  The sum
    stops where a pair rho_{2t} + rho_{2t+1} first falls below zero (Geyer 1992; as in Stan).  traces: (C, n), n >= 4.
    var+ = (n - 1) / n W + Var(means of the chains); the autocovariance at lag t is the sum of n - t products over n, averaged over chains.
    Returns (ess, mc_error), floats; traces that do not vary at all are worth C n draws, with error 0.
    Exercise: measures.effective_samples (set 3, 15 points)
    Hint: an fft of length 2n has all autocovariances at once; a loop over the first lags is as good.
    >>> effective_samples(torch.ones(2, 10))
    (20.0, 0.0)"""
    x = traces.double()
    chains, n = x.shape
    centred = x - x.mean(1, keepdim=True)
    f = torch.fft.rfft(centred, 2 * n)
    acov = torch.fft.irfft(f.abs() ** 2, 2 * n)[:, :n].mean(0) / n              # (n,) biased: stable at long lags
    within = acov[0] * n / (n - 1)
    total = acov[0] + (x.mean(1).var() if chains > 1 else 0)
    if not total > 1e-24 * (1 + x.mean() ** 2):                                 # constant traces: nothing varies, nothing is unsure
        return float(chains * n), 0.0
    rho = 1 - (within - acov) / total
    rho[0] = 1
    pairs = rho[:n // 2 * 2].view(-1, 2).sum(1)
    negative = (pairs < 0).nonzero()
    pairs = pairs[:int(negative[0])] if len(negative) else pairs
    tau = float(2 * torch.cummin(pairs, 0).values.sum() - 1) if len(pairs) else 1.0
    ess = chains * n / max(tau, 1 / math.log10(chains * n + 10))
    return ess, math.sqrt(float(total) / ess)


def sgld_step(w, w0, gradient, noise, lr, nbeta, localization):
    """One step of stochastic gradient Langevin dynamics, in place on w.
        drift = nbeta gradient + localization (w - w0)        w <- w - lr/2 drift + sqrt(lr) noise
    All tensors (P,).  With fresh noise, N(0, 1), this is SGLD, and a step of finite size spreads the weights too widely: a direction of
    curvature c (of nbeta L + localization/2 |w - w0|^2) gets the variance 1 / (c (1 - lr c / 4)) in place of 1 / c.  With the mean of this
    step's noise and the one before, (noise_n + noise_{n-1}) / 2, it is 1 / c at any stable lr: exact for quadratics, and of second order
    in lr elsewhere.  `llc` passes that mean.
    Source: Welling & Teh 2011; Lau et al. 2023; for the mean of two, Leimkuhler & Matthews 2013.
    Exercise: measures.sgld_step (set 3, 10 points)
    Hint: drift needs w as it was before the step; w must be changed in place (add_), for the model's weights are views of it.
    >>> w = torch.ones(1)
    >>> sgld_step(w, w0=torch.zeros(1), gradient=torch.ones(1), noise=torch.ones(1), lr=0.01, nbeta=2.0, localization=3.0)
    >>> round(float(w), 6)                                          # 1 - .005 * 5 + .1
    1.075"""
    drift = torch.sub(w, w0).mul_(localization).add_(gradient, alpha=nbeta)
    w.add_(drift, alpha=-lr / 2).add_(noise, alpha=math.sqrt(lr))


def llc_draws(losses, baselines, nbeta, num_burnin_steps):
    """What each draw says about the LLC; the mean over draws and chains is the estimate, before its bias is subtracted.
        LLC = mean of nbeta (L(w) - L(w0)), over the draws after burn-in
    losses, baselines: (C, num_burnin_steps + n, ...): at w and at w0, on the same mini-batch.  Returns (C, n, ...), in nats times nbeta.
    Exercise: measures.llc_draws (set 3, 5 points)
    Hint: the first num_burnin_steps draws of every chain go; the baseline is each draw's own.
    >>> llc_draws(torch.tensor([[9., 3., 4.]]), torch.tensor([[1., 1., 2.]]), 10.0, 1).tolist()
    [[20.0, 20.0]]"""
    return nbeta * (losses - baselines)[:, num_burnin_steps:]


def _losses(net, loss_fn, batch, weights, autocast, flat_grad=None):
    """Per-example losses (B,); with flat_grad, also the gradient of sum_i weights_i loss_i, written into it through p.grad."""
    # the weights change in place, so a cache of their bfloat16 copies, ours or the caller's, would be out of date
    with torch.autocast(weights.device.type, autocast or torch.bfloat16, enabled=autocast is not None, cache_enabled=False), \
            torch.set_grad_enabled(flat_grad is not None):
        losses = _checked("llc", loss_fn(net, batch), len(weights)).to(weights.dtype)
        if flat_grad is not None:
            flat_grad.zero_()
            (losses * weights).sum().backward()
    return losses.detach()


def llc(model, loss_fn, data, nbeta=None, lr=1e-3, localization=300.0, num_chains=4, num_draws=100, num_burnin_steps=20,
        batch_size=None, generator=None, groups=None, autocast=None):
    """Local learning coefficient: how fast the loss grows around w0, counted in effective parameters / 2.
        LLC = nbeta (E[L(w)] - L(w0)) - bias        w ~ exp(-nbeta L(w) - localization/2 |w - w0|^2), by SGLD (see sgld_step)
        bias = lr/8 nbeta^2 E|d|^2 s / (s + localization)        d: noise of a mini-batch's gradient; s: nbeta times the curvature along it
    For a quadratic loss in d dimensions, localization 0, it is d/2; for w^4 it is 1/4; flat directions count less.

    nbeta: inverse temperature, n / log n for some n.  None means 30, which is n = 150 examples, and is NOT the size of `data`; for
      the usual one pass nbeta = n / log n with n the size of the training set.  At n = 10,000 (1,086) a small network's number was set
      by the step and the length of the chain (135 to 1,135); at 30 with localization 300 it is a property of the loss.  It is then the
      learning coefficient at that temperature and width: compare such numbers with one another, not with the asymptotic lambda.
    lr: SGLD's eps.  Flat directions forget in 2 / (lr localization) draws, so a large one mixes fast; the largest whose bias stays under
      5% is best, and more than that is said in warnings.  One network trained on 28 task-levels (2,000 steps; nbeta 30, localization 300;
      4 chains, draws of 56 rows; 4 seeds each, of the first 2):
        lr 1e-4   4 x 1500 draws  LLC 66.1 to 66.9   bias 0.3%   R-hat 1.01 to 1.02   115 to 279 effective draws
        lr 2e-4   4 x 500         LLC 66.2 to 66.9   bias 0.6%   R-hat 1.01 to 1.06   64 to 248
        lr 5e-4   4 x 200         LLC 66.1 to 67.2   bias 1.5%   R-hat 1.02 to 1.04   147 to 193
        lr 1e-3   4 x 100         LLC 66.7 to 67.3   bias 3%     R-hat 1.00 to 1.03   174 to 229
        lr 2e-3   4 x 50          LLC 67.6 to 69.6   bias 6%     R-hat 0.99 to 1.01   114 to 167
    localization: gamma; the prior's standard deviation is gamma^-1/2 per weight.
    num_draws are kept of each chain after num_burnin_steps are dropped.  Chains begin at w0 plus a draw from the localization's own normal
      distribution (at w0 where that is 0): most directions are flat, and there this is where they end, so a short burn-in is enough,
      and the chains, begun apart, can be seen to agree.  On a CPU each chain has a core.
    batch_size: rows per draw, without replacement, drawn anew and independently for each chain; None means 256, or all of data if
      it has no more.  L(w0) is paired: losses at w0 are computed once for all rows, and gathered for each mini-batch.
    groups: (N,) int64, e.g. the task of each row.  Mini-batches are then stratified, equally many rows from each group, weighted
      by the group's share of data, and one set of chains yields every group's LLC_k beside the joint one, whose share-weighted sum
      it is; so are the biases.
    autocast: e.g. torch.bfloat16: precision of the forward and backward pass, here and in the baseline; weights stay in float32.

    Returns LLC.  A chain that diverged (a loss that is not finite, or an excess that grows thirtyfold from one half to the next) is
    set aside and counted; with none left mean is nan.  A negative value means that w0 is no minimum of this loss: read it as that.
    The bias is that of mini-batches: their gradients' noise is heat, which widens a direction of curvature c by lr/4 nbeta^2 E|d|^2 / c.  At
      every twentieth draw the gradient of a second mini-batch shows the noise, and a second difference of the losses the curvature
      along it: exact for quadratics where that is the same for all of the noise, else an upper bound (s / (s + localization) is concave in s).
      What the step itself adds is of second order in lr, and is not estimated: compare with half the lr.
    Raises ValueError on NaN in a parameter or in a loss at w0 (named), and on arguments out of range.
    Source: Lau et al. 2023 (arXiv 2308.12108).
    Differs from the paper: its nbeta, lr, localization and number of draws are not public; these are ours.
    Differs from the paper: chains begin spread out by the localization, not at w0, and each step's noise is averaged with the one before.
    Differs from the paper: with groups, one set of chains on the joint loss, in place of one per task.  Each group then holds the weights
      with its share of nbeta only, so they stray further: these values are larger than those of chains on one task's loss."""
    net, params, data, n = _prepare("llc", model, data)
    device, nbeta = params[0].device, 30.0 if nbeta is None else float(nbeta)
    for key, value, low in (("nbeta", nbeta, 0), ("lr", lr, 0), ("num_chains", num_chains, 0), ("num_draws", num_draws, 3)):
        if not low < value < math.inf:
            raise ValueError(f"llc: {key} must be finite and above {low}, got {value}")
    if not localization >= 0 or num_burnin_steps < 0 or (batch_size is not None and batch_size < 1):
        raise ValueError(f"llc: localization and num_burnin_steps must not be negative, batch_size at least 1; "
                         f"got {localization}, {num_burnin_steps}, {batch_size}")
    batch_size = min(n, 256 if batch_size is None else batch_size)
    labels = torch.zeros(n, dtype=torch.int64) if groups is None else torch.as_tensor(groups).cpu()
    if labels.shape != (n,):
        raise ValueError(f"llc: groups must be ({n},), one per row of data; got shape {tuple(labels.shape)}")
    kinds, labels = labels.unique(return_inverse=True)
    members = [(labels == k).nonzero().squeeze(1) for k in range(len(kinds))]   # rows of each group
    sizes = [min(len(rows), batch_size // len(kinds)) for rows in members]      # how many of them are in a mini-batch
    if min(sizes) == 0:
        raise ValueError(f"llc: batch_size {batch_size} leaves no row for each of {len(kinds)} groups")
    share = torch.tensor([len(rows) / n for rows in members], dtype=torch.float64)                  # (K,)
    averager = torch.block_diag(*(torch.full((1, m), 1 / m, dtype=torch.float64) for m in sizes))   # (K, B): means within groups
    weights = (share @ averager).to(params[0])                                  # (B,) of each row in the joint loss
    averager = averager.to(device)

    ones = weights.new_ones(n)
    at_w0 = torch.cat([_losses(net, loss_fn, tuple(t[i:i + 512] for t in data), ones[i:i + 512], autocast) for i in range(0, n, 512)])
    if not torch.isfinite(at_w0).all():
        raise ValueError(f"llc: the loss at w0 of example {int((~torch.isfinite(at_w0)).nonzero()[0])} is not finite")
    whole = all(size == len(rows) for size, rows in zip(sizes, members))        # every draw sees all rows
    total = num_burnin_steps + num_draws

    def chain(seed):
        # All parameters become views of one vector, their gradients of another: a step is then three operations, whatever the model.
        mine = copy.deepcopy(net)
        held = [p for p in mine.parameters() if p.requires_grad]
        w = torch.cat([p.detach().reshape(-1) for p in held])                   # (P,)
        g, noise, w0 = torch.zeros_like(w), torch.zeros_like(w), w.clone()
        for p, view, view_g in zip(held, *(vector.split([p.numel() for p in held]) for vector in (w, g))):
            p.data, p.grad = view.view_as(p), view_g.view_as(p)
        picker = torch.Generator().manual_seed(seed)                            # batches and noise of its own for each chain
        gauss = _generator(picker, device)
        if localization > 0:                                                    # begin where the prior alone would leave it
            w.add_(noise.normal_(generator=gauss), alpha=localization ** -0.5)
        before = torch.empty_like(noise)
        noise.normal_(generator=gauss)
        everything = torch.cat(members)

        def draw():                                                             # a mini-batch, and its mean losses at w0: (K,)
            index = everything if whole else torch.cat([rows[torch.randperm(len(rows), generator=picker)[:m]] for rows, m in zip(members, sizes)])
            return tuple(t[index.to(t.device)] for t in data), averager @ at_w0[index.to(device)].double()

        def noise_of(batch):                                                    # -> nbeta^2 |d|^2, and times nbeta d.H_k d / |d|^2 (K,)
            kept, here = g.clone(), w.clone()
            _losses(mine, loss_fn, draw()[0], weights, autocast, g)
            d = (kept - g) / math.sqrt(2)                                       # two mini-batches differ by twice the variance of one
            size, h = d.norm(), (0.01 * (w.norm() + (w - w0).norm())).clamp(min=1e-3)
            at = []
            for side in (h, 0, -h):                                             # in full precision, which a second difference needs
                torch.add(here, d * (side / size.clamp(min=1e-30)), out=w)
                at.append(averager @ _losses(mine, loss_fn, batch, weights, None).double())
            w.copy_(here)
            g.copy_(kept)
            curvatures = (at[0] - 2 * at[1] + at[2]) * nbeta / h ** 2           # (K,)
            return torch.cat([curvatures.new_ones(1), curvatures]) * (nbeta * size) ** 2

        columns, probes = [], []
        for step in range(total):
            if step == 0 or not whole:
                batch, base = draw()
            losses = averager @ _losses(mine, loss_fn, batch, weights, autocast, g).double()        # (K,)
            columns.append([losses, base])
            if step % 16 == 15 and not torch.isfinite(losses).all():            # looked at rarely: a GPU waits
                break
            if not whole and step >= num_burnin_steps and (step - num_burnin_steps) % 20 == 0:
                probes.append(noise_of(batch))
            before, noise = noise, before.normal_(generator=gauss)              # the memory of the older draw takes the new one
            sgld_step(w, w0, g, (before + noise) / 2, lr, nbeta, localization)
        traces = [torch.stack(column).double().cpu() for column in zip(*columns)]
        return ([torch.cat([t, t.new_full((total - len(t), *t.shape[1:]), math.nan)]) for t in traces]
                + [torch.stack(probes).cpu() if probes else torch.zeros(1, 1 + len(kinds), dtype=torch.float64)])

    seeds = torch.randint(2**62, (num_chains,), generator=_generator(generator)).tolist()
    workers = min(num_chains, torch.get_num_threads()) if device.type == "cpu" else 1
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,) if workers > 1 else (torch.get_num_threads(),)) as pool:
        chains = list(pool.map(chain, seeds))                                   # a chain to a core: see rankme_many
    return _summary(chains, share, num_burnin_steps, at_w0.double().cpu(), members, None if groups is None else kinds,
                    nbeta, float(lr), float(localization))


def _summary(chains, share, burnin, at_w0, members, kinds, nbeta, lr, localization):
    """From the traces of all chains to the numbers, their errors, and what to say about them."""
    everything, baselines = (torch.stack(column) for column in list(zip(*chains))[:2])              # (C, burn-in + n, K)
    losses_k, base_k = everything[:, burnin:], baselines[:, burnin:]
    losses, base = losses_k @ share, base_k @ share                             # (C, n)
    half = losses.shape[1] // 2
    first, second = ((losses - base)[:, part].abs().mean(1) for part in (slice(half), slice(-half, None)))
    good = torch.isfinite(everything).flatten(1).all(1) & (second <= 30 * first)
    nan, said = math.nan, []
    out = LLC(mean=nan, std=nan, mc_error=nan, r_hat=nan, ess=0.0, bias=nan, losses=losses, baselines=base,
              burnin_losses=everything[:, :burnin] @ share, diverged=~good, num_diverged=int((~good).sum()),
              init_loss=float(at_w0.mean()), nbeta=nbeta, lr=lr, localization=localization, warnings=said)
    if not good.all():
        said.append(f"{out.num_diverged} of {len(good)} chains diverged and were set aside: use a smaller lr")
    if not good.any():
        return out
    raw_k = llc_draws(everything[good], baselines[good], nbeta, burnin)         # (C, n, K)
    probes = torch.cat([chain[2] for chain, ok in zip(chains, good) if ok])     # (n, 1 + K): nbeta^2 |d|^2, and times each curvature
    noise, bent = probes.mean(0)[0], probes.mean(0)[1:]
    stiffness = localization + (float(share @ bent / noise) if noise > 0 else 0.0)
    bias_k = lr / 8 * bent / stiffness / (1 - min(lr * stiffness, 2) / 4) if stiffness > 0 else 0 * bent
    bias = float(share @ bias_k)
    value = raw_k @ share - bias                                                # (C, n)
    mean = float(value.mean())
    out.mean, out.bias, out.r_hat = mean, bias, split_r_hat(value)
    out.ess, out.mc_error = effective_samples(value)
    out.std = float(value.mean(1).std()) if len(value) > 1 else nan
    early, late = float(value[:, :half].mean()), float(value[:, -half:].mean())
    if mean < 0:
        said.append("the value is negative: w0 is no minimum of this loss, and the chains found lower ground; it is not a "
                    "learning coefficient (usual early in training)")
    if abs(bias) > 0.05 * abs(mean + bias):
        said.append(f"the bias of step size and mini-batches is {abs(bias / (mean + bias)):.0%} of the raw value: use a smaller lr"
                    + (" or larger batches, the correction is not to be trusted" if abs(bias) > 0.5 * abs(mean + bias) else ""))
    if abs(early - late) > max(0.1 * abs(mean), 3 * out.mc_error):
        said.append(f"the halves of the chains disagree ({early:.4g}, then {late:.4g}): lengthen the burn-in")
    if out.ess < 100:
        said.append(f"only {out.ess:.0f} effective draws of {value.numel()}: more draws, a larger lr or a stronger localization")
    if out.r_hat > 1.05:
        said.append(f"R-hat {out.r_hat:.2f}: the chains disagree")
    if kinds is not None:
        out.groups, out.group_shares, out.group_losses, out.group_baselines = kinds, share, losses_k, base_k
        out.group_biases = bias_k
        out.group_means = raw_k.mean((0, 1)) - out.group_biases
        out.group_mc_errors = torch.tensor([effective_samples(raw_k[:, :, k])[1] for k in range(len(share))], dtype=torch.float64)
        out.group_init_losses = torch.stack([at_w0[rows].mean() for rows in members])
    return out


def llc_grid(model, loss_fn, data, lrs=(2e-4, 5e-4, 1e-3, 2e-3), localizations=(100.0, 300.0, 1000.0), seed=0, **options):
    """Which settings?  Yields (lr, localization, LLC) for every pair; all cells use the same seed, hence the same mini-batches and noise, so
    that their differences are those of the settings.  Within one localization the value must not depend on lr; between localizations it
    does, for they ask different questions: how far from w0 are we to look?"""
    for localization in localizations:
        for lr in lrs:
            generator = torch.Generator().manual_seed(seed)
            yield lr, localization, llc(model, loss_fn, data, lr=lr, localization=localization, generator=generator, **options)


def recommended(cells):
    """{localization: lr} from the cells of llc_grid: the largest lr whose bias is under 5% of the raw value and whose R-hat is under 1.05, all chains
    sound and the value positive; None where there is none.  Between localizations nothing is recommended: they ask different questions."""
    fit = [c for c in cells if not c[2].num_diverged and c[2].mean > 0 and abs(c[2].bias) < 0.05 * abs(c[2].mean + c[2].bias) and c[2].r_hat < 1.05]
    return {gamma: max((lr for lr, other, _ in fit if other == gamma), default=None) for gamma in dict.fromkeys(cell[1] for cell in cells)}


def grid_figure(cells):
    """Value, bias and effective draws over lr, a line for each localization; below, the traces of every chain of every cell."""
    from matplotlib.figure import Figure
    lrs, gammas = (sorted({cell[i] for cell in cells}) for i in (0, 1))
    found = {(lr, gamma): result for lr, gamma, result in cells}
    figure = Figure(figsize=(12, 3.2 + 1.6 * len(gammas)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3.2, 1.6 * len(gammas)))
    panels = {"LLC, corrected (bars: 2 Monte Carlo errors)": lambda r: r.mean,
              "bias, % of the raw value": lambda r: 100 * abs(r.bias / (r.mean + r.bias)), "effective draws": lambda r: r.ess}
    for axis, (title, value) in zip(top.subplots(1, 3), panels.items()):
        for gamma in gammas:
            bars = [2 * found[lr, gamma].mc_error for lr in lrs] if axis is top.axes[0] else None
            axis.errorbar(lrs, [value(found[lr, gamma]) for lr in lrs], yerr=bars, marker="o", label=f"localization {gamma:g}")
        axis.set(xscale="log", yscale="linear" if axis is top.axes[0] else "log", xlabel="lr", title=title)
        axis.set_xticks(lrs, [f"{lr:g}" for lr in lrs])
        axis.minorticks_off()
    for axis, limit in zip(top.axes[1:], (5, 100)):
        axis.axhline(limit, color="grey", linestyle=":")
    top.legend(*top.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(gammas), fontsize="small")
    for axis, (gamma, lr) in zip(bottom.subplots(len(gammas), len(lrs), sharex=True).flat, ((gamma, lr) for gamma in gammas for lr in lrs)):
        result = found[lr, gamma]
        for excess, bad in zip(result.nbeta * (result.losses - result.baselines), result.diverged):
            axis.plot(excess, linewidth=0.6, color="black" if bad else None)
        axis.set_title(f"lr {lr:g}, localization {gamma:g}", fontsize="small")
    bottom.supxlabel("draw after burn-in")
    bottom.supylabel("nbeta (L(w) - L(w0))")
    return figure


# ------------------------------------------------------------------------------------------------------------ 5  linear probe


def linear_probe(features, labels, generator=None, ridge=1e-3, steps=30, held_out=0.25):
    """Held-out accuracy of a linear classifier: is the answer readable from the features before the model can say it?
        W minimises  mean cross-entropy(X W, y) + ridge/2 |W|^2
    features: (N, D), 2,000 rows or more if the number is to mean something; labels: (N,) int64, any values.  Features are
    standardised by the training rows.  Returns the accuracy on the held-out quarter of the rows, split by `generator`.
    Read it beside the same probe on shuffled labels (chance) and on the untrained model (what the input alone gives away).
    Method: Newton-like steps with one fixed matrix.  The cross-entropy's Hessian nowhere exceeds (X^T X / n) / 2 in each class
    (Boehning 1992), so (X^T X / n / 2 + ridge)^-1 times the gradient is a step that cannot overshoot, and one Cholesky factor serves
    all; Nesterov's momentum makes 30 enough.  The first step alone is ridge regression on one-hot labels, which misses classes
    that lie between others.
    Raises ValueError for features that are not a finite matrix, labels that do not fit, fewer than 8 rows, or one class only.
    Source: Alain & Bengio 2016.  Differs from the paper: its probe's details are not public."""
    if features.dim() != 2 or not torch.isfinite(features).all():
        raise ValueError(f"linear_probe: features must be (N, D) and finite; got shape {tuple(features.shape)}")
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(f"linear_probe: labels must be ({len(features)},) and integer; got {tuple(labels.shape)}, {labels.dtype}")
    classes, y = labels.to(features.device).unique(return_inverse=True)
    n = len(y)
    if n < 8 or len(classes) < 2:
        raise ValueError(f"linear_probe: needs at least 8 rows and 2 classes; got {n} and {len(classes)}")
    order = torch.randperm(n, generator=_generator(generator)).to(y.device)
    test, fit = order[:max(1, int(n * held_out))], order[max(1, int(n * held_out)):]
    x = features.detach().float()
    spread, mean = torch.std_mean(x[fit], 0)
    x = (x - mean) / spread.clamp(min=1e-6 * float(spread.max()) + 1e-30)       # a constant feature stays 0, not 0 / 0
    x = torch.cat([x, x.new_ones(n, 1)], 1)                                     # (N, D + 1): the bias
    a, onehot = x[fit], torch.nn.functional.one_hot(y[fit], len(classes)).float()
    factor = torch.linalg.cholesky(a.T @ a / len(a) / 2 + ridge * torch.eye(a.shape[1], device=a.device))
    w = ahead = x.new_zeros(a.shape[1], len(classes))
    for step in range(steps):
        gradient = a.T @ ((a @ ahead).softmax(1) - onehot) / len(a) + ridge * ahead
        new = ahead - torch.cholesky_solve(gradient, factor)
        ahead, w = new + (new - w) * (step / (step + 3)), new
    return float(((x[test] @ w).argmax(1) == y[test]).float().mean())


MEASURES = {"rankme": rankme, "gradient_rank": gradient_rank, "fisher_rank": fisher_rank, "hessian_top": hessian_top, "llc": llc,
            "linear_probe": linear_probe}
