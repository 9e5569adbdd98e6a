"""Chapter 3: measures.  Five numbers that describe the inside of a network, and a probe.

A network that is about to acquire a capability may change inside before its behaviour changes.
This file measures the inside of any torch.nn.Module, from easy to hard:

  1  RankMe                  how many directions the hidden states use
  2  gradient, Fisher rank   in how many directions the examples pull the weights
  3  top Hessian eigenvalue  how sharp the loss is
  4  LLC                     how much of the weight space around the weights w0 has a low loss
  5  linear probe            whether a linear map can read the answer from a hidden state

They are those of "Anatomy of Capability Emergence" (arXiv 2602.15997).  Three rules hold:
  - `loss_fn(model, batch)` returns one loss per example, (B,).  `data` is a tuple or dict of
    tensors with a row for each example, or one tensor; `batch` has some of the rows.
  - Measuring disturbs nothing.  It works on a copy in eval mode, over all parameters that require
    gradients, with random generators of its own, whatever context the caller is in.
  - What cannot be measured is a ValueError that says where.  What cannot be trusted carries its
    diagnostics.  `.row()` of a result is plain Python numbers.
This file trains nothing, writes no file, and knows no task.
Letters: B batch, D width, N examples, P parameters, C chains, J groups, M matrices.

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
torch.Size([2, 20])
"""
import copy
import functools
import inspect
import math
import random
import sys
import types
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.func import functional_call, grad, vmap
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

# ------------------------------------------------------------------------------------- 1  RankMe

def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of a feature matrix: how many directions it really uses.
        p_i = s_i / sum_j s_j + eps        RankMe = exp(-sum_i p_i log p_i)
    features: (N, D), one row per example.  Unit: dimensions, from about 1 to min(N, D).
    The s_i are not squared (26.0 would read 2.7), the rows not centred (31.4).  Report N with it.
    Raises ValueError if features are not a matrix, not finite, empty or all zero.  eps may be 0.
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
    p = s / s.sum() + eps
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))   # 0 log 0 is 0, if eps is


def centred(features: Tensor, weights: Tensor | None = None) -> tuple:
    """Rows without their mean, sqrt(w_i) (x_i - mean), and the share of energy that was in it.
        mean = sum_i w_i x_i / sum_i w_i        share = sum_i w_i |mean|^2 / sum_i w_i |x_i|^2
    features: (..., N, D).  weights: (..., N), how often each row counts; None: each once."""
    x = features.detach().double()
    w = x.new_ones(x.shape[:-1]) if weights is None else weights.detach().to(x)         # (..., N)
    if x.dim() < 2 or 0 in x.shape or not torch.isfinite(x).all() or w.shape != x.shape[:-1]:
        raise ValueError("features must be (N, D) and finite, weights (N,)")
    if not (w >= 0).all() or not (w.sum(-1) > 0).all():
        raise ValueError("weights must not be negative, nor all zero")
    w = (w / w.sum(-1, keepdim=True)).unsqueeze(-1)             # (..., N, 1)
    size = x.abs().amax((-1, -2), keepdim=True)                 # so that squares stay in range
    mean = (w * (x / size)).sum(-2, keepdim=True)               # (..., 1, D)
    share = mean.square().sum((-1, -2)) / (w * (x / size).square()).sum((-1, -2))
    return w.sqrt() * (x - mean * size), share                  # nan where all x are zero


def mean_share(features: Tensor, weights: Tensor | None = None) -> float:
    """N |mean row|^2 / sum_i |row_i|^2: 1 where all rows are the same, 0 where their mean is 0.
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
    f, p = frequencies.to(predicted.device).double(), predicted.double()
    tiny = torch.finfo(p.dtype).tiny                            # log of an underflow is finite
    return float(torch.special.xlogy(f, f / p.clamp(min=tiny)).sum())


# --------------------------------------------------- what the measures of a loss have in common

@contextmanager
def _prepare(name, model, loss_fn, data, only=None):
    """The one door of every measure of a loss.  Yields a copy of the model, loss_fn for it, its
    trainable parameters, the columns of data, and N.  Whatever context the caller is in, a number
    is the same inside, and all is left as it was.  What cannot be measured is a ValueError."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        for context in (temporarily_clear_interpreter_stack(), torch.inference_mode(False),
                        torch.enable_grad(), torch.random.fork_rng(devices), _other_states()):
            stack.enter_context(context)
        if "torch._dynamo" in sys.modules:                      # compiled code has no Hessian
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        net = _copy(name, model)
        halved = any(p.dtype in HALF for p in net.parameters())
        net = net.float() if halved else net                    # else a chain's steps would vanish
        params = _trainable(name, net, only)
        for device in {"cpu", params[0].device.type}:
            stack.enter_context(torch.autocast(device, enabled=False))
        keys, columns = _columns(name, data, params[0])
        if halved:
            columns = [x.float() if x.dtype in HALF else x for x in columns]

        def loss(net, batch):
            return loss_fn(net, tuple(batch) if keys is None else dict(zip(keys, batch)))
        n = len(columns[0])                                     # a few rows, from all over data
        few = [x[::max(n // 8, 1)][:8] for x in columns]
        _check_loss(name, loss, net, params, few, list(model.parameters()))
        yield net, loss, params, columns, n


@contextmanager
def _other_states():
    """A loss may draw from Python's or numpy's generator, too."""
    numpy, state = sys.modules.get("numpy.random"), random.getstate()
    theirs = numpy and numpy.get_state()
    try:
        yield
    finally:
        random.setstate(state)
        if numpy:
            numpy.set_state(theirs)


HALF = {torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module",
            "DistributedDataParallel": "module"}


def _copy(name, model):
    """A copy in eval mode, without wrappers and without the caller's hooks."""
    while type(model).__name__ in WRAPPERS:
        model = getattr(model, WRAPPERS[type(model).__name__])
    if not isinstance(model, Module):
        raise ValueError(f"{name}: model must be a torch.nn.Module, got {type(model).__name__}")
    memo, seen, own = {}, set(), {id(module) for module in model.modules()}
    for module in model.modules():                              # memo: what stands for what
        for key, value in vars(module).items():
            if key != "_compiled_call_impl" and own & _carried(value):
                raise ValueError(f"{name}: {type(module).__name__}.{key} was replaced by a "
                                 "function that holds the model, which a copy would still call")
            if key.endswith("_hooks") and isinstance(value, dict):      # torch's own stay
                memo[id(value)] = type(value)(
                    (i, hook) for i, hook in value.items()
                    if type(hook).__module__.startswith("torch.nn.utils"))
            for x in _tensors(value, seen):
                if x.grad_fn is not None:                       # such as activations that it keeps
                    memo[id(x)] = x.detach().clone()
    _check_storage(name, model)
    try:
        net = copy.deepcopy(model, memo).eval()
        for p in net.parameters():
            if not p.is_leaf:                                   # of TorchScript: still the model's
                p.detach_().requires_grad_()
        return net
    except Exception as error:
        raise ValueError(f"{name}: the model cannot be copied ({_line(error)})") from error


def _check_storage(name, model):
    """Two tensors that share memory, which torch does not know, would part in a copy."""
    spans = {}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            for label, x in (value if isinstance(value, dict) else {key: value}).items():
                if isinstance(x, Tensor) and x.grad_fn is None and not (
                        is_lazy(x) or x.is_meta or x.numel() == 0 or x.layout != torch.strided):
                    last = sum((n - 1) * step for n, step in zip(x.shape, x.stride()))
                    end = x.data_ptr() + (last + 1) * x.element_size()
                    spans[id(x)] = x.data_ptr(), end, f"{path}.{label}".strip("."), x.requires_grad
    spans = sorted(spans.values())
    for (_, end, a, trained), (begin, _, b, too) in zip(spans, spans[1:]):
        if begin < end and (trained or too):
            raise ValueError(f"{name}: {a} and {b} share their storage: make them one Parameter")


def _carried(function):
    """Ids of what a plain function carries along, of a bound method its object: copies share it."""
    if not isinstance(function, types.FunctionType):
        return set()
    cells = inspect.getclosurevars(function).nonlocals.values()
    return {id(getattr(x, "__self__", x)) for x in (*cells, *(function.__defaults__ or ()))}


def _tensors(value, seen):
    """The tensors that an attribute of a module holds, however deep."""
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen and not isinstance(value, (Module, type, types.ModuleType)):
        seen.add(id(value))
        inner = getattr(value, "__dict__", {}).values()
        if isinstance(value, (Mapping, list, tuple, set)):
            inner = value.values() if isinstance(value, Mapping) else value
        for x in inner:
            yield from _tensors(x, seen)


def _trainable(name, net, only):
    """The parameters that require gradients.  only: names, or their first parts; None: all."""
    wanted, found = [only] if isinstance(only, str) else only, set()
    for key, p in net.named_parameters():
        if is_lazy(p) or p.is_meta or not torch.isfinite(p).all():
            raise ValueError(f"{name}: NaN, infinity or nothing at all in parameter '{key}'")
        if wanted is not None:
            named = {part for part in wanted if f"{key}.".startswith(f"{part}.")}
            found |= named
            p.requires_grad_(p.requires_grad and bool(named))
    if not found >= set(wanted or ()):
        raise ValueError(f"{name}: only= names no parameter: {sorted(set(wanted) - found)}")
    params = [p for p in net.parameters() if p.requires_grad]
    if len({(p.dtype, p.device) for p in params}) != 1 or params[0].is_complex():
        raise ValueError(f"{name}: no parameter requires gradients, or dtypes or devices differ")
    return params


def _columns(name, data, like):
    """(keys, or None; tensors) from data as people have it.  Arrays go where the model is."""
    data = getattr(data, "tensors", data)                       # of a TensorDataset
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        data = (data,)
    keys, columns = (list(data), data.values()) if isinstance(data, Mapping) else (None, data)
    tensors = []
    try:
        if not isinstance(data, (Mapping, list, tuple)):
            raise TypeError("a DataLoader?")
        for x in columns:
            if not isinstance(x, Tensor):
                x = torch.as_tensor(_plain_array(x), device="cpu").to(like.device)
                x = x.to(like.dtype) if x.is_floating_point() else x
            if x.layout != torch.strided or x.is_nested or x.is_quantized:
                raise TypeError("sparse, nested or quantized")
            tensors.append(x.detach().clone())                  # the loss may change its batch
    except Exception as error:
        raise ValueError(
            f"{name}: data must be tensors with a row for each example ({_line(error)}): stack "
            "examples; tuple(dataset.tensors), or next(iter(DataLoader(dataset, batch_size=N)))"
        ) from error
    rows = [len(x) if x.dim() else 0 for x in tensors]
    if len(set(rows)) != 1 or rows[0] == 0:
        raise ValueError(f"{name}: data must have the same number of rows, not 0; got {rows}")
    return keys, tensors


def _plain_array(x):
    """A numpy array that torch can read: in the machine's byte order, not reversed."""
    if getattr(x, "mask", None) is not None:
        raise TypeError("a masked array: what is masked would be read")
    if not hasattr(x, "__array__"):
        return x
    array = x.__array__()
    return array.astype(array.dtype.newbyteorder("="), order="C")


def _check_loss(name, loss_fn, net, params, batch, originals):
    """Is it the loss of this model, and of each example on its own?  A few rows tell.
    originals: the parameters of the caller's model, which the copy must not use."""
    def call(*batches):
        with torch.no_grad():
            return torch.cat([_losses(name, loss_fn, net, rows) for rows in batches])
    losses, pieces = _losses(name, loss_fn, net, batch), [None]
    if losses.requires_grad:
        try:
            pieces = torch.autograd.grad(losses.sum(), params, allow_unused=True, retain_graph=True)
        except RuntimeError as error:
            unless_it_is_memory(error)
            raise ValueError(f"{name}: loss_fn has no gradient ({_line(error)}): does it call "
                             "torch.utils.checkpoint?  With use_reentrant=False") from error
    alone = call([x[:1] for x in batch], [x[-1:] for x in batch])
    allowed = (0.02 if losses.dtype in HALF else 1e-3) * losses.detach().abs().max() + 1e-6
    coupled = ((losses[[0, -1]] - alone).abs() > allowed).any()  # or random: two draws can be close
    again = torch.stack([call(batch) for _ in range(9 if coupled else 1)])
    silent, moved = [p for p, piece in zip(params, pieces) if piece is None], losses
    if silent:
        kept = [p.detach().clone() for p in silent]
        with torch.no_grad():
            for p in silent:
                p.mul_(1.5).add_(0.5)
            moved = call(batch)
            for p, before in zip(silent, kept):
                p.copy_(before)
    for wrong, sentence in (
            (not losses.requires_grad, "has no gradient: is there no_grad, detach or item in it?"),
            (all(p is None for p in pieces), "ignores the model: no parameter has a gradient"),
            (_leaves(losses.grad_fn) & {id(p) for p in originals}, "uses the model itself, not the "
             "copy that it is given: does it, or a forward that was replaced, name the model?"),
            (((losses - again).abs() > allowed).any(), "is random: the same rows have another loss "
             "a second time (does dropout stay on in eval mode?)"),
            (silent and not torch.isclose(moved, losses, 0, float(allowed), equal_nan=True).all(),
             "depends on parameters for which it has no gradient: requires_grad_(False) for those; "
             "use_reentrant=False in checkpoint"),
            (coupled, "couples its examples: a row alone has another loss than in a batch")):
        if wrong:
            raise ValueError(f"{name}: loss_fn {sentence}")


def _leaves(node):
    """Ids of the parameters at which the graph of a loss ends."""
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [inner for inner, _ in node.next_functions]
    return {id(node.variable) for node in seen if hasattr(node, "variable")}


def unless_it_is_memory(error):
    """That there is too little, on a GPU or a CPU, is no fault of a loss: raised as it is."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error):
        raise error


def _losses(name, loss_fn, net, batch):
    """loss_fn of a batch: one loss per example, or a sentence that says what it is instead."""
    rows, unpack = len(batch[0]), "loss_fn unpacks a model's output: model(x)[0], model(x).logits"
    try:
        losses = loss_fn(net, batch)
    except Exception as error:
        unless_it_is_memory(error)
        raise ValueError(f"{name}: loss_fn fails ({_line(error)}); its batch is a tuple, or a dict "
                         f"where data is; {unpack}") from error
    if not isinstance(losses, Tensor) or losses.shape != (rows,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"{name}: loss_fn must return one loss per example, ({rows},); got {got}; "
                         f"{unpack}")
    return losses


def _line(error):
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _batches(data, rows):
    return zip(*(tensor.split(rows) for tensor in data))


def _check_finite(what, values, first=0):
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        raise ValueError(f"{what} of example {first + int(bad[0])} is not finite")


def _gradient(loss, params, *args, **options):
    """The gradient as one vector, (P,): zero where the loss does not depend on a parameter."""
    pieces = torch.autograd.grad(loss, params, *args, allow_unused=True, materialize_grads=True,
                                 **options)
    return torch.cat([piece.reshape(-1) for piece in pieces])


def _power_of_two(x):
    """About the largest size of a number in x: dividing by it rounds nothing.  Else 1."""
    largest = float(x.detach().abs().max()) if x.numel() else 0.0
    return 2.0 ** math.frexp(largest)[1] if 0 < largest < math.inf else 1.0


def _generator(generator, device="cpu"):
    """A new generator, seeded from the caller's, which advances by one number; from 0 if None."""
    seed = 0
    if generator is not None:
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return Generator(device).manual_seed(seed)


class Result:
    def row(self):
        """The numbers of a result as plain Python, for JSON: None where one is not finite."""
        skipped = ("eigenvector", "vectors", "losses", "baselines", "diverged")
        row = {name: value for name, value in vars(self).items() if name not in skipped}
        for name, value in row.items():
            if isinstance(value, Tensor):
                row[name] = [x if math.isfinite(x) else None for x in value.tolist()]
            elif isinstance(value, float) and not math.isfinite(value):
                row[name] = None
        return row


# ------------------------------------------------------- 2  gradient covariance and Fisher rank

def effective_rank(eigenvalues: Tensor) -> float:
    """Effective rank of a spectrum: the exponential of its entropy.
        p_i = l_i / sum_j l_j        rank = exp(-sum_i p_i log p_i)
    eigenvalues: (n,), none negative beyond rounding.  Unit: dimensions, from 1 to n.
    Raises ValueError if none is above 0, not all are finite, or one is below -1e-6 of the largest.
    Source: Roy & Vetterli 2007.  RankMe is that of the singular values, plus its eps.
    Exercise: measures.effective_rank (set 2, 5 points)
    Hint: rounding can leave an eigenvalue just below 0; 0 log 0 is 0 here: torch.special.entr.
    >>> round(effective_rank(torch.tensor([2., 2., 2., 0.])), 6)
    3.0"""
    values = eigenvalues.detach().double()
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
    Returns (N, N) float64 on the CPU; unit: loss^2 / weight^2.  Apart from zeros, K = G G^T has the
    eigenvalues of G^T G, (P, P).  Memory: at most 3 * chunk gradients, or 1 GiB if that is more;
    copies in float64 come on top.  Raises ValueError if a gradient is not finite.
    Differs from the paper: all parameters; there the first 50K, which are mostly embeddings.
    Exercise: measures.gradient_gram (set 2, 15 points)
    Hint: _prepare; per_example_gradients of two chunks of rows at a time give one block of K.
    >>> w = torch.nn.Linear(2, 1, bias=False)                   # the gradient of w . x is x
    >>> x = torch.tensor([[1., 0.], [3., 4.]])
    >>> gradient_gram(w, lambda model, batch: model(batch[0])[:, 0], (x,)).tolist()
    [[1.0, 3.0], [3.0, 25.0]]"""
    with _prepare("gradient_gram", model, loss_fn, data) as (net, loss_fn, params, data, n):
        gram = torch.zeros(n, n, dtype=torch.float64, device=params[0].device)
        # K is a sum over parameters.  per_example_gradients has the same g, but takes longer.
        for g in gradient_blocks(net, loss_fn, data, chunk):
            g = g.flatten(1)                                    # (N, size of one parameter)
            unit = _power_of_two(g)                             # squares stay in range; exact
            g = g / unit
            gram += (g @ g.mT).double() * unit ** 2             # the sum is in float64
    _check_finite("gradient_gram: the gradient", gram.diagonal())
    return ((gram + gram.mT) / 2).cpu()


def gradient_rank(model: Module, loss_fn: Callable, data: tuple) -> float:
    """Effective rank of the gradient covariance: along how many directions do examples disagree?
        exp(entropy(eigenvalues of (I - 1/N) K (I - 1/N)))        K = gradient_gram
    Unit: dimensions, from 1 to N - 1.  The value lies near that ceiling: report it with its N."""
    gram = gradient_gram(model, loss_fn, data)
    centred_gram = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    if not centred_gram.trace() > 1e-10 * gram.trace():
        raise ValueError("gradient_rank: needs two examples whose gradients do not coincide")
    return effective_rank(torch.linalg.eigvalsh(centred_gram))


def fisher_rank(model: Module, loss_fn: Callable, data: tuple) -> float:
    """Effective rank of the Fisher matrix, from 1 to N: that of K itself, not centred.
    With true labels it is the `empirical` Fisher matrix, whose rank nearly equals gradient_rank;
    with labels drawn from the model, the Fisher matrix itself.
    Differs from the paper: it reports the empirical one."""
    gram = gradient_gram(model, loss_fn, data)
    if not gram.trace() > 0:
        raise ValueError("fisher_rank: the gradients of all examples are zero")
    return effective_rank(torch.linalg.eigvalsh(gram))


# ------------------------------------------------------------------- 3  top Hessian eigenvalue

@dataclass
class HessianTop(Result):
    eigenvalue: float             # signed; the largest in size
    eigenvector: Tensor           # (P,), unit length, in the order of model.parameters()
    iterations: int               # Hessian-vector products
    residual: float               # |Hv - lambda v| / |lambda|, computed from H v itself
    converged: bool               # residual <= tol, and this is surely the larger end
    smallest: float = math.nan    # both ends of the spectrum (Ritz values), and their residuals
    largest: float = math.nan
    residual_smallest: float = math.nan
    residual_largest: float = math.nan
    vectors: Tensor = None        # (2, P): their unit Ritz vectors

def power_iteration(matvec, start, tol=1e-2, max_iters=1000):
    """The eigenvalue largest in size, for the reader: multiply, normalise, repeat.
        v <- Hv / |Hv|        lambda = v . Hv        residual = |Hv - lambda v| / |lambda|
    matvec: (P,) -> (P,), symmetric.  start: (P,), not zero, of any length.  max_iters: products at
    most.  It stops on the residual: v . Hv can stand still where there is no eigenvalue.
    Returns HessianTop of the last product, the v in it as eigenvector; converged is residual <= tol
    alone; both ends stay NaN.  residual is 0 if Hv = 0, else infinite if lambda = 0.
    Exercise: measures.power_iteration (set 2, 10 points, without lanczos)
    Hint: compare Hv with lambda v before you normalise Hv; return the last pair in any case.
    >>> round(power_iteration(lambda v: torch.tensor([-2., 1.]) * v, torch.ones(2)).eigenvalue, 3)
    -2.0"""
    v = start / start.norm()
    for products in range(1, max_iters + 1):
        hv = matvec(v)
        eigenvalue = float(v @ hv)
        residual = 0.0
        if hv.any():
            rest = float((hv - eigenvalue * v).norm())
            residual = rest / abs(eigenvalue) if eigenvalue else math.inf
        if residual <= tol or products == max_iters:
            return HessianTop(eigenvalue, v, products, residual, converged=residual <= tol)
        v = hv / hv.norm()


# Lanczos is power iteration that remembers.  It keeps the vectors so far, and finds the best
# approximate eigenpairs in their span (Ritz pairs):
#     Q = [q_1 .. q_k],    (Q^T H Q) s = theta s,    v = Q s,    r = H v - theta v
# The next vector q_{k+1} is the remainder r of a pair, orthogonalised against Q.

def extended(Q, HQ, q, matvec):
    """Q and HQ, (k, P), with q as one more row, for one product; as they are if q lies in Q."""
    size = length = float(q.norm())
    for _ in range(5):                                          # until no rounding error is left
        before, q = length, q - Q.T @ (Q @ q)
        length = float(q.norm())
        if length > before / 2:
            break
    if not length > 1e-5 * size:
        return Q, HQ
    q = q / length
    return torch.cat([Q, q[None]]), torch.cat([HQ, matvec(q)[None]])


def ritz(Q, HQ):
    """theta, (k,), from the smallest, and the coefficients s of their vectors, (k, k), in rows."""
    small = (Q @ HQ.T).double().cpu()                           # (k, k)
    if (small - small.T).abs().max() > 0.02 * small.abs().max():        # some of it is missing
        raise RuntimeError("H is not symmetric")
    values, s = torch.linalg.eigh((small + small.T) / 2)
    return values, s.T.to(Q)


def ritz_pair(Q, HQ, theta, s):
    """(theta, v, r, |r|) of one value and the coefficients of its vector, (k,)."""
    v, r = s @ Q, s @ HQ - theta * (s @ Q)
    return theta, v / v.norm(), r, float(r.norm())


def surely_larger(values, top, other, tol):
    """Is `top` the larger end, whatever `other` may still gain: some |r|, or |r|^2 / gap?"""
    (a, _, _, r), (b, _, _, s) = top, other
    if len(values) < 2 or abs(b) + 10 * s < 0.9 * abs(a):
        return True
    gap = float(values.diff()[[0, -1]].min().clamp(min=1e-300))
    return s <= tol * abs(a) and abs(b) + 2 * (r * r + s * s) / gap <= abs(a)


def lanczos(matvec, start, tol=1e-2, max_iters=100, room=2**30):
    """The same eigenvalue as power_iteration, in far fewer products.
    start: (P,), or (m, P): several vectors that may be nearly eigenvectors.
    room: numbers that Q and HQ may hold, and half as many again for a moment.  Where they are full,
    the outermost Ritz vectors stay, half of them all (thick restart: Wu & Simon 2000)."""
    start = start.reshape(-1, start.shape[-1])
    most = max(4, room // (2 * start.shape[-1]))
    Q = HQ = start[:0]
    for vector in start[:min(most, max_iters)]:
        Q, HQ = extended(Q, HQ, vector, matvec)
    if len(Q) == 0:
        raise ValueError("lanczos: start must be finite and not zero, max_iters at least 1")
    products = len(Q)
    while True:
        values, s = ritz(Q, HQ)
        low, high = (ritz_pair(Q, HQ, float(values[i]), s[i]) for i in (0, -1))
        top, other = (low, high) if -low[0] > high[0] else (high, low)
        small = top[3] <= tol * abs(top[0])
        converged = small and surely_larger(values, top, other, tol)
        if converged or products >= max_iters:
            break
        if len(Q) >= most:
            ends = s.roll(most // 4, 0)[:most // 2]             # some of either end
            Q, HQ = ends @ Q, ends @ HQ
        before = len(Q)
        # the remainder of an end that is exact is rounding: on with the other one
        which = max(top, other, key=lambda pair: pair[3]) if small else top
        Q, HQ = extended(Q, HQ, which[2], matvec)
        if len(Q) == before:                                    # it lies in Q: no product was made
            break
        products += 1
    residuals = [pair[3] / max(abs(pair[0]), 1e-300) for pair in (top, low, high)]
    return HessianTop(top[0], top[1], products, residuals[0], converged, low[0], high[0],
                      *residuals[1:], torch.stack([low[1], high[1]]))


KEPT = 1.2e10                         # rows times parameters, at most, of a graph that is kept


def hessian_matvec(net, loss_fn, data, params):
    """The function v -> Hv, H the Hessian of the mean loss over data.
        H v = d(g . v) / dw        g = gradient of the mean loss
    The graph of g is built once and kept: building it for every product takes 1.6 times as long.
    Of a large model it is built anew: 512 rows of 85M parameters would take more than 20 GB."""
    keep = len(data[0]) * sum(p.numel() for p in params) <= KEPT
    # on a CPU the activations of 64 rows stay in the cache: 40% less time
    rows = 64 if params[0].device.type == "cpu" or not keep else 1024

    def gradients():
        for i, batch in enumerate(_batches(data, rows)):
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):     # fused attention has no
                losses = _losses("hessian_top", loss_fn, net, batch)    # Hessian
                _check_finite("hessian_top: the loss", losses, first=i * rows)
                g = _gradient(losses.sum() / len(data[0]), params, create_graph=True)
            yield g
    kept = [*gradients()] if keep else []

    def matvec(v):
        out = torch.zeros_like(v)
        for g in kept or gradients():
            if g.requires_grad:                                 # else it is constant in w
                out += _gradient(g, params, v, retain_graph=keep)
        return out
    return matvec


def hessian_top(model: Module, loss_fn: Callable, data: tuple, tol: float = 3e-3,
                max_iters: int = 100, start: Tensor | None = None,
                generator: Generator | None = None, room: int = 2**30) -> HessianTop:
    """Top eigenvalue of the Hessian of the mean loss: the curvature of the sharpest direction.
        H v = lambda v        |lambda| largest, reported with its sign: spectrum {-2, 1} gives -2
    Unit: loss / weight^2.  tol bounds the residual |Hv - lambda v| / |lambda|.  The error of lambda
    is about tol^2 / gap, both relative: 1e-3 by default where the next eigenvalue is 1% away.
    Where both ends are about as large, it converges when it is certain which one is larger.
    start: (P,), or (m, P) such as the `vectors` of the previous snapshot, which saves half of the
    products.  None: random.  A start that is an eigenvector is accepted as the answer, even if
    another eigenvalue has overtaken it: now and then start cold.  room: see lanczos."""
    with _prepare("hessian_top", model, loss_fn, data) as (net, loss_fn, params, data, _):
        return _top("hessian_top", net, loss_fn, params, data, tol, max_iters, start,
                    _generator(generator), room)


def _top(name, net, loss_fn, params, data, tol, max_iters, start, generator, room=2**30):
    count = sum(p.numel() for p in params)
    if start is None:
        start = torch.randn(count, generator=generator, dtype=torch.float32, device="cpu")
    if start.shape[-1] != count:
        raise ValueError(f"{name}: start must be ({count},), got {tuple(start.shape)}")
    units = []

    def scaled(v):                                              # so that squares stay in range
        hv = matvec(v)
        units.append(units[0] if units else _power_of_two(hv))
        return hv / units[0]
    try:
        matvec = hessian_matvec(net, loss_fn, data, params)
        found = lanczos(scaled, start.detach().clone().to(params[0]), tol, max_iters, room)
    except RuntimeError as error:
        unless_it_is_memory(error)
        raise ValueError(f"{name}: loss_fn has no second derivative ({_line(error)})")
    for end in ("eigenvalue", "smallest", "largest"):
        setattr(found, end, getattr(found, end) * units[0])
    return found


# --------------------------------------------------------------- 4  local learning coefficient

def sgld_step(w, w0, gradient, noise, lr, nbeta, localization):
    """One step of stochastic gradient Langevin dynamics, in place on w.
        drift = nbeta gradient + localization (w - w0)        w <- w - lr/2 drift + sqrt(lr) noise
    All tensors (P,).  Returns nothing.  With fresh noise, N(0, 1), this is SGLD.  In a direction of
    curvature c its variance is 1 / (c (1 - lr c / 4)), not 1 / c.  With the mean of this step's
    noise and the one before it is 1 / c: for quadratics at any stable lr, else to order lr^2.
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
    baselines may be (C, 1, ...): one loss at w0 for all draws of a chain.
    Exercise: measures.llc_draws (set 3, 5 points)
    Hint: the first num_burnin_steps draws of every chain go; the baseline is each draw's own.
    >>> llc_draws(torch.tensor([[9., 3., 4.]]), torch.tensor([[1., 1., 2.]]), 10.0, 1).tolist()
    [[20.0, 20.0]]"""
    return nbeta * (losses - baselines)[:, num_burnin_steps:]


def plain_llc(model, loss_fn, data, nbeta, lr, localization, num_draws, num_burnin_steps):
    """The LLC as a float, in its plain form, for the reader: one chain from w0, all of data at
    every step, fresh noise, no diagnostics.  `llc` is the one to use."""
    with _prepare("plain_llc", model, loss_fn, data) as (net, loss_fn, params, data, n):
        w = torch.cat([p.detach().reshape(-1) for p in params])             # (P,)
        vector_to_parameters(w, params)                         # the weights are views of w now
        w0, losses, gauss = w.clone(), [], _generator(None, w.device)
        for step in range(num_burnin_steps + num_draws):
            loss = loss_fn(net, data).mean()
            losses.append(loss.detach())                        # the first one is L(w0)
            noise = torch.empty_like(w).normal_(generator=gauss)
            sgld_step(w, w0, _gradient(loss, params), noise, lr, nbeta, localization)
    losses = torch.stack(losses)[None]                          # (1, burn-in + n)
    return float(llc_draws(losses, losses[:, :1], nbeta, num_burnin_steps).mean())


# How far can such a mean be trusted?  The draws of a chain depend on one another.

def split_r_hat(traces):
    """Gelman & Rubin's R-hat of chains cut in halves: do the parts agree, given their own spread?
        R^2 = (h - 1) / h + Var(means of the parts) / W        W = mean of their variances
    traces: (C, n): 2C parts of h = n // 2 draws; of an odd n the middle one is left out.  Variances
    divide by n - 1.  Returns a float; 1 is perfect, nan if h < 2 or W = 0.
    Exercise: measures.split_r_hat (set 3, 5 points)
    Hint: the halves go below one another, (2C, h); whole chains would hide that they all drift.
    >>> round(split_r_hat(torch.tensor([[1., 3., 1., 3.], [2., 4., 2., 4.]])), 4)
    0.8165"""
    half = traces.shape[1] // 2
    parts = torch.cat([traces[:, :half], traces[:, traces.shape[1] - half:]]).double()  # (2C, half)
    within = parts.var(1).mean() if half > 1 else 0
    if not within > 0:
        return math.nan
    return float(((half - 1) / half + parts.mean(1).var() / within).sqrt())


def effective_samples(traces):
    """How many independent draws the C x n correlated ones are worth, and the error of their mean.
        ess = C n / tau        tau = 1 + 2 sum_{t >= 1} rho_t        mc_error = sqrt(var+ / ess)
        rho_t = 1 - (W - autocovariance_t) / var+        var+ = (n - 1) / n W + Var(chain means)
    traces: (C, n), n >= 4.  W: mean variance within chains.  Variances divide by n - 1; Var(chain
    means) by C - 1, and is 0 for C = 1.  Autocovariance at lag t: the sum of n - t products over n,
    averaged over chains.  The sum goes by pairs: tau = 2 sum_k (rho_{2k} + rho_{2k+1}) - 1, with
    rho_0 = 1.  From the first pair below 0 on none counts, nor does the last lag of an odd n; none
    counts for more than the one before (Geyer 1992).  tau is 1 / log10(C n + 10) at the least,
    also where it would be negative (Stan).  Returns floats; (C n, 0) if all draws are the same.
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
    tau = float(2 * torch.cummin(pairs, 0).values.sum() - 1)
    ess = chains * n / max(tau, 1 / math.log10(chains * n + 10))
    return ess, math.sqrt(float(total) / ess)


# Now the sampler itself: several chains, mini-batches, groups of rows, diagnostics.

@dataclass
class LLC(Result):
    mean: float = math.nan        # nbeta (E[L(w)] - L(w0)) - bias, over chains that did not diverge
    std: float = math.nan         # between the means of the chains
    mc_error: float = math.nan    # Monte Carlo standard error of mean
    r_hat: float = math.nan       # split R-hat: near 1 where chains and halves of chains agree
    ess: float = 0.0              # effective number of independent draws, all chains together
    bias: float = math.nan        # of mini-batches; mean + bias is the raw value
    losses: Tensor = None         # (C, n) mini-batch loss of each draw, all chains
    baselines: Tensor = None      # (C, n) loss at w0 of the same mini-batches
    diverged: Tensor = None       # (C,) bool: chains set aside
    num_diverged: int = 0
    init_loss: float = math.nan   # L(w0) over all of data
    nbeta: float = math.nan
    lr: float = math.nan
    localization: float = math.nan
    stiffness: float = math.nan   # lr (nbeta lambda_max + localization) at w0
    stiffness_after: float = math.nan   # the same at the last draw
    eigenvector: Tensor = None    # (P,), of lambda_max: `start` of the next snapshot
    half_lr: tuple = None         # mean and mc_error at lr / 2, where stiffness is above 2
    noise_only: float = math.nan  # nbeta (E L(w0 + N / sqrt(localization)) - L(w0)): no sampling
    noise_only_error: float = math.nan
    lost_share: float = math.nan  # share of worst_loss - L(w0) that the draws lose again
    sensitivity: float = math.nan       # d mean / d localization
    groups: Tensor = None         # (J,) distinct values of groups, in the order of what follows
    group_shares: Tensor = None   # (J,) share of the rows; sum_j share_j mean_j = mean
    group_means: Tensor = None    # (J,) LLC_j = nbeta (E[L_j(w)] - L_j(w0)) - bias_j
    group_mc_errors: Tensor = None      # (J,)
    group_biases: Tensor = None         # (J,)
    group_noise_only: Tensor = None     # (J,)
    usable: bool = True           # False where one of the warnings means that the value is wrong
    warnings: list = field(default_factory=list)        # sentences on what is wrong

    def change_by_half(self):
        """By which share of itself half of localization would change the mean."""
        return -self.sensitivity * self.localization / 2 / max(abs(self.mean), 1e-30)

    def judge(self):
        """Fill `usable` and `warnings`."""
        draws = llc_draws(self.losses, self.baselines, self.nbeta, 0)[~self.diverged]    # (C, n)
        half, size = draws.shape[1] // 2, max(abs(self.mean), 1e-30)
        early, late = float(draws[:, :half].mean()), float(draws[:, -half:].mean())
        part = abs(self.bias) / max(abs(self.mean + self.bias), 1e-30)
        halved = self.change_by_half()
        other, error = self.half_lr or (self.mean, 0.0)
        differs = abs(other - self.mean) > 3 * math.hypot(error, self.mc_error) + 0.02 * size
        noise = abs(self.mean - self.noise_only) - 2 * math.hypot(self.mc_error,
                                                                  self.noise_only_error)
        more = "more burn-in and draws"
        if self.stiffness < 0.5:
            more = f"a larger lr (its stiffness is {self.stiffness:.2g})"
        self.usable, self.warnings = True, []
        for wrong, found, sentence in (
                (True, self.num_diverged > 0,
                 f"{self.num_diverged} of {len(self.losses)} chains diverged: smaller lr"),
                (True, self.mean + 2 * self.mc_error < 0,
                 "the value is negative: w0 is no minimum of this loss"),
                (differs, self.stiffness > 2.001, f"the stiffness is {self.stiffness:.3g}, above "
                 f"2: {self.mean:.4g}, but {other:.4g} at half of lr"),
                (True, self.stiffness_after > 4,
                 f"steeper away from w0: stiffness {self.stiffness_after:.3g}: smaller lr"),
                (part > 0.5, part > 0.05, f"the bias of mini-batches is {part:.0%} of the raw "
                 "value (uncertain at localization 0): smaller lr or larger batches"),
                (True, abs(early - late) > max(0.1 * size, 5 * self.mc_error),
                 f"not mixed, halves disagree ({early:.4g}, {late:.4g}): {more}"),
                (True, self.r_hat > 1.1, f"not mixed, R-hat {self.r_hat:.2f}: {more}"),
                (False, 0 < self.ess < 40, f"only {self.ess:.0f} effective draws: {more}"),
                (True, self.ess > 1.5 * draws.numel(), f"{self.ess:.0f} effective draws of "
                 f"{draws.numel()}: chains swing from side to side: smaller lr"),
                (False, self.lost_share > 0.2, f"the draws lose {self.lost_share:.0%} of what "
                 "training gained: larger localization"),
                (False, noise < 0.02 * size, "no other than under noise alone "
                 f"({self.noise_only:.4g})"),
                (False, abs(halved) > 0.1 and part < 0.2, "half of localization "
                 f"{self.localization:g} would change the value by {halved:+.0%}")):
            if found:
                self.warnings.append(sentence)
                self.usable = self.usable and not wrong
        return self


class Sampler:
    """Chains, and what they share: a density, the rows, the losses at w0.
        exp(-nbeta L(w) - localization/2 |w - w0|^2)        L = mean loss over data"""

    momentum = 0.5                    # kept from step to step: 2.6 times the effective draws of 0

    def __init__(self, net, loss_fn, data, groups, batch_size, nbeta, localization):
        self.net, self.loss_fn, self.data, n = net, loss_fn, data, len(data[0])
        self.nbeta, self.localization, self.batch_size = nbeta, localization, min(batch_size, n)
        groups = torch.as_tensor([0] * n if groups is None else groups, device="cpu")    # (N,)
        if groups.shape != (n,):
            raise ValueError(f"llc: groups must be ({n},), got shape {tuple(groups.shape)}")
        self.groups, self.owner = groups.unique(return_inverse=True)        # (J,), (N,)
        with torch.no_grad():
            pieces = torch.arange(n, device="cpu").split(512)
            self.at_w0 = torch.cat([self.losses(index) for index in pieces])
        _check_finite("llc: the loss at w0", self.at_w0)
        self.member = F.one_hot(self.owner).double().to(self.at_w0.device)  # (N, J)
        self.share = self.member.mean(0)                                    # (J,)

    def losses(self, index):
        """Loss of each of these rows, (B,)."""
        return _losses("llc", self.loss_fn, self.net, [x[index.to(x.device)] for x in self.data])

    def minibatch(self):
        """Rows without replacement, (B,).  Each group has its share of them, to within one row:
        every so-many-th of all rows, in the order of groups, shuffled within."""
        n, options = len(self.owner), {"dtype": torch.float64, "device": "cpu"}
        order = (self.owner + torch.rand(n, generator=self.picker, **options)).argsort()
        places = torch.arange(self.batch_size, **options) + torch.rand(1, generator=self.picker,
                                                                       **options)
        return order[(places * (n / self.batch_size)).long().clamp(max=n - 1)]

    def per_group(self, losses, index):
        """Mean loss of each group, (J,), from a mini-batch: their sum over the number expected."""
        member = self.member[index.to(losses.device)]                       # (B, J)
        return losses.detach().double() @ member / (len(index) * self.share)

    def baseline(self, index):
        return self.per_group(self.at_w0[index.to(self.at_w0.device)], index)

    def chain(self, seed):
        """A copy with weights, mini-batches and noise of its own."""
        chain = copy.copy(self)
        chain.net = _copy("llc", self.net)
        chain.params = [p for p in chain.net.parameters() if p.requires_grad]
        chain.w = parameters_to_vector(chain.params).detach()               # (P,)
        vector_to_parameters(chain.w, chain.params)             # the weights are views of w now
        chain.w0, chain.picker = chain.w.clone(), Generator("cpu").manual_seed(seed)
        chain.gauss = _generator(chain.picker, chain.w.device)
        chain.p, chain.records, chain.heats = chain.noise(), [], []
        return chain

    def noise(self):
        return torch.empty_like(self.w).normal_(generator=self.gauss)

    def spread_out(self):
        """A draw of the prior."""
        torch.add(self.w0, self.noise(), alpha=self.localization ** -0.5, out=self.w)

    def loss_and_gradient(self, index):
        """Mean loss of each group, (J,), and the gradient of the joint loss, (P,)."""
        losses = self.losses(index)
        return self.per_group(losses, index), _gradient(losses.mean(), self.params)

    def step(self, gradient):
        """sgld_step with momentum p (BAOAB: Leimkuhler & Matthews 2013).  c = 0: mean of two.
            p <- p - h drift                        w <- w + h/2 p        h^2 = lr
            p <- c p + sqrt(1 - c^2) noise          w <- w + h/2 p        c = momentum"""
        h, c = math.sqrt(self.lr), self.momentum
        drift = torch.sub(self.w, self.w0).mul_(self.localization)
        self.p.sub_(drift.add_(gradient, alpha=self.nbeta), alpha=h)
        self.w.add_(self.p, alpha=h / 2)
        self.p.mul_(c).add_(self.noise(), alpha=math.sqrt(1 - c * c))
        self.w.add_(self.p, alpha=h / 2)

    def advance(self, draws, keep=True):
        """So many draws more.  A record: losses and losses at w0, (J,) each, and (w - w0) . g."""
        for _ in range(draws):
            index = self.minibatch()
            losses, gradient = self.loss_and_gradient(index)
            if keep:
                virial = ((self.w - self.w0) @ gradient).double()[None]
                self.records.append(torch.cat([losses, self.baseline(index), virial]))
                if len(index) < len(self.owner) and len(self.records) % 40 == 1:
                    self.heats.append(self.heat(index, gradient))
            self.step(gradient)

    def heat(self, index, gradient):
        """The noise d of the mini-batch gradient, and how the losses curve along it.
            (|d|^2, d . s, |s|^2, c_1, .., c_J)      s = nbeta H d, c_j = nbeta d . H_j d
        d, times nbeta, is of the size of the drift, whatever the scale of the loss."""
        _, other = self.loss_and_gradient(self.minibatch())
        d = self.nbeta * (gradient - other) / math.sqrt(2)      # of two: twice the variance of one
        here, ends = self.w.clone(), []
        h = (0.01 * (here.norm() + (here - self.w0).norm())).clamp(min=1e-3)
        h = h / d.norm().clamp(min=1e-30)
        for shift in (h, 0 * h, -h):
            torch.add(here, d * shift, out=self.w)
            ends.append(self.loss_and_gradient(index))
        self.w.copy_(here)
        (up, g_up), (middle, _), (down, g_down) = ends
        s = self.nbeta * (g_up - g_down) / (2 * h)
        curved = self.nbeta * (up - 2 * middle + down) / h ** 2
        return torch.cat([torch.stack([d @ d, d @ s, s @ s]).double(), curved])

    @torch.no_grad()
    def noise_only(self, draws=8):
        """nbeta times the excess loss of each group at draws of the prior, (draws, J)."""
        if self.localization == 0:
            return torch.full_like(self.share, math.nan)[None]
        found = []
        for index in [self.minibatch() for _ in range(draws)]:
            self.spread_out()
            found.append(self.per_group(self.losses(index), index) - self.baseline(index))
        return self.nbeta * torch.stack(found)


def llc(model: Module, loss_fn: Callable, data: tuple, nbeta: float = 100.0,
        lr: float | None = None, localization: float = 1e4, init: str = "prior",
        start: Tensor | None = None, num_chains: int = 2, num_draws: int = 100,
        num_burnin_steps: int = 20, mc_error: float | None = None, batch_size: int | None = None,
        generator: Generator | None = None, groups: Tensor | None = None, only=None,
        callback: Callable | None = None, worst_loss: float | None = None) -> LLC:
    """Local learning coefficient: how fast the loss grows around w0, in effective parameters / 2.
        LLC = nbeta (E[L(w)] - L(w0)) - bias        w ~ exp(-nbeta L - localization/2 |w - w0|^2)
    With localization 0 it is k/2 for a quadratic loss of k weights, and 1/4 for w^4.  Else it is
    that of its nbeta and localization, not the asymptotic lambda: see .sensitivity.
    nbeta: n / log n, n the size of the training set, NOT the rows of `data`.
    lr: SGLD's eps.  None: the largest whose stiffness, lr (nbeta lambda_max + localization), is 2.
      start: (P,), or (m, P) a vector near that of lambda_max, such as LLC.eigenvector.
    localization: gamma.  The prior's standard deviation is gamma^-1/2 per weight.
    init: chains begin at a draw of the prior, where flat directions also end, or at "w0".
    num_draws: kept of each chain, after num_burnin_steps that are not.
    mc_error: stop when the Monte Carlo error is this share of the mean; num_draws is the most.
    batch_size: rows per draw, None: 256; at most all of data.  L(w0) is over the rows of L(w).
    groups: (N,) integers, such as the task of each row.  The chains yield an LLC_j for each group.
    only: names of parameters, or their first parts ("blocks.0"): the others stay at w0.
    callback: called with the LLC so far, after every 50 draws.
    worst_loss: that of guessing, for .lost_share.
    A chain diverged if a loss is not finite, or above what draws of the prior lose.
    Source: Lau et al. 2023 (arXiv 2308.12108).
    Differs from the paper: its nbeta, lr, localization and number of draws are not public; chains
      begin spread out; steps have momentum, and no error in quadratics; with groups, one set of
      chains on the joint loss, not one per task: a group holds the weights with its share only.
    devinterp's test cases, L = prod_i w_i^(2 k_i), at localization 0: LLC = 1 / (2 max k).
    >>> def crossing(model, batch):                             # (w1^0 w2^2)^2, 400 times
    ...     return (model["w"] ** torch.tensor([0, 2])).prod(1).square().sum().expand(1)
    >>> found = llc(torch.nn.ParameterDict({"w": torch.zeros(400, 2)}), crossing, torch.zeros(1),
    ...             145, lr=1e-3, localization=0, init="w0", num_draws=800, num_burnin_steps=400)
    >>> abs(found.mean / 400 - 1 / 4) < 0.02
    True"""
    batch_size = 256 if batch_size is None else batch_size
    for key, value, low in (("nbeta", nbeta, 0), ("lr", lr, 0), ("num_chains", num_chains, 0),
                            ("localization", localization, -1e-300), ("num_draws", num_draws, 3),
                            ("num_burnin_steps", num_burnin_steps, -1), ("mc_error", mc_error, 0),
                            ("batch_size", batch_size, 0)):
        if value is not None and not low < value < math.inf:
            raise ValueError(f"llc: {key} must be finite and above {low}, got {value}")
    if init not in ("prior", "w0"):
        raise ValueError(f"llc: init must be 'prior' or 'w0', got {init!r}")
    seeds = _generator(generator)
    with _prepare("llc", model, loss_fn, data, only) as (net, loss_fn, params, data, n):
        sampler = Sampler(net, loss_fn, data, groups, batch_size, nbeta, localization)
        # the step, from the curvature on as many rows as are cheap
        few = torch.randperm(n, generator=seeds, device="cpu")[:max(batch_size, 512)]
        few = [x[few.to(x.device)] for x in data]
        top = _top("llc", net, loss_fn, params, few, 0.05, 30, start, seeds)
        steepest = nbeta * max(top.largest * (1 + top.residual_largest), 0) + localization
        if lr is None and steepest == 0:
            raise ValueError("llc: lr must be given: the loss is flat at w0, and localization is 0")
        sampler.lr = 2 / steepest if lr is None else lr
        sampler.prior = sampler.chain(1).noise_only()           # (8, J)
        picks = torch.randint(2**62, (num_chains,), generator=seeds, device="cpu").tolist()
        options = picks, init, num_burnin_steps, num_draws, mc_error
        result, chains = _sample(sampler, *options, callback)
        result.stiffness, result.eigenvector = sampler.lr * steepest, top.vectors[1]
        if worst_loss is not None and worst_loss > result.init_loss:
            result.lost_share = result.mean / nbeta / (worst_loss - result.init_loss)
        # a step too large shows at half of it; a loss that is steeper elsewhere, at the last draw
        if result.stiffness > 2.001:
            sampler.lr = sampler.lr / 2
            half, _ = _sample(sampler, *options)
            result.half_lr = half.mean, half.mc_error
        for chain in [chain for chain, bad in zip(chains, result.diverged) if not bad][:1]:
            matvec = hessian_matvec(chain.net, loss_fn, few, chain.params)
            found = power_iteration(matvec, result.eigenvector, 0.0, 3).eigenvalue
            result.stiffness_after = result.lr * (nbeta * found + localization)
    return result.judge()


def _sample(sampler, seeds, init, num_burnin_steps, num_draws, mc_error, callback=None):
    """Chains, and an LLC from their draws: num_draws of each, or until the error is small."""
    chains, done = [sampler.chain(seed) for seed in seeds], 0
    for chain in chains if init == "prior" and sampler.localization > 0 else []:
        chain.spread_out()
    advance_all(chains, num_burnin_steps, keep=False)
    at_once = num_draws if mc_error is None and callback is None else 50
    while True:
        advance_all(chains, min(at_once, num_draws - done))
        done = len(chains[0].records)
        result = _summary(sampler, chains)
        if callback is not None:
            callback(result.judge())
        precise = mc_error is not None and result.mc_error <= mc_error * abs(result.mean)
        if precise or done == num_draws:
            return result, chains


def _summary(sampler, chains):
    """From the records of all chains to an LLC."""
    share, nbeta, gamma = sampler.share.cpu(), sampler.nbeta, sampler.localization
    records = torch.stack([torch.stack(chain.records).cpu() for chain in chains])
    # the joint loss stands behind those of the groups
    J = len(share)
    eye = torch.eye(J, dtype=share.dtype, device="cpu")
    columns = torch.cat([eye, share[:, None]], 1)               # (J, J + 1)
    losses, baselines = records[:, :, :J] @ columns, records[:, :, J:2 * J] @ columns
    draws, prior = llc_draws(losses, baselines, nbeta, 0), sampler.prior.cpu() @ columns
    result = LLC(losses=losses[:, :, J], baselines=baselines[:, :, J], nbeta=nbeta, lr=sampler.lr,
                 init_loss=float(sampler.at_w0.double().mean()), localization=gamma,
                 groups=sampler.groups, group_shares=share, group_noise_only=prior.mean(0)[:J],
                 noise_only=float(prior[:, J].mean()),
                 noise_only_error=float(prior[:, J].std(correction=0)) / math.sqrt(len(prior)))
    # a chain that loses more than the prior's own draws has diverged
    most = 1.5 * float(prior[:, J].abs().max()) + 1e-3 * nbeta * abs(result.init_loss) + 1e-12
    late = draws[:, draws.shape[1] // 2:, J].mean(1)            # (C,)
    result.diverged = ~torch.isfinite(draws).flatten(1).all(1) | (late > most)
    result.num_diverged, sound = int(result.diverged.sum()), ~result.diverged
    if not sound.any():
        return result
    heats = [heat for chain, good in zip(chains, sound) if good for heat in chain.heats]
    biases, doubt = _bias(sampler, heats)
    biases = biases @ columns                                   # (J + 1,)
    values = draws[sound] - biases                              # (C, n, J + 1)
    errors = biases.new_tensor([effective_samples(each)[1] for each in values.unbind(2)])
    means, errors, value = values.mean((0, 1)), torch.hypot(errors, doubt * biases), values[..., J]
    result.group_means, result.group_mc_errors = means[:J], errors[:J]
    result.group_biases, result.bias = biases[:J], float(biases[J])
    result.mean, result.mc_error = float(means[J]), float(errors[J])
    result.r_hat, result.ess = split_r_hat(value), effective_samples(value)[0]
    result.std = float(value.mean(1).std()) if len(value) > 1 else math.nan
    # d/dgamma = -nbeta/2 Cov(L, |w - w0|^2); in many flat directions that is mostly noise.  By
    # parts, gamma Cov(L, |w - w0|^2) = E u - nbeta Cov(L, u) with u = (w - w0) . gradient
    if gamma > 0:
        u = records[sound][:, :, -1]
        covariance = float(((value - value.mean()) * (u - u.mean())).mean())    # times nbeta
        result.sensitivity = nbeta / 2 / gamma * (covariance - float(u.mean()))
    return result


def _bias(sampler, heats):
    """What the noise d of mini-batches adds to each group's value, (J,), and its relative error.
        lr/8 (1 + c) / (1 - c) E[d . f(nbeta H) d]        f(s) = s / (s + gamma) / (1 - z / 4)
    z = lr (s + gamma).  Exact for noise in flat directions and in others of one curvature s."""
    c, gamma, share = sampler.momentum, sampler.localization, sampler.share.cpu()
    if not heats:                                               # all of data: no gradient noise
        return torch.zeros_like(share), 0.0
    heats = torch.stack(heats).cpu()
    power, first, second = heats[:, :3].mean(0).tolist()
    curved = heats[:, 3:].mean(0)                               # (J,)
    if first <= 0 or second <= 0 or not float(share @ curved) > 0:
        return torch.zeros_like(curved), 0.0
    s, stiff = second / first, first ** 2 / second              # noise in curved directions
    joint = stiff * s / (s + gamma) / (1 - min(sampler.lr * (s + gamma), 3.96) / 4)
    if gamma == 0:
        joint += max(power - stiff, 0)
    joint *= sampler.lr / 8 * (1 + c) / (1 - c)
    doubt = float(heats[:, 0].std(correction=0)) / power / math.sqrt(len(heats))
    return joint * curved / (share @ curved), doubt


# ----------------------------------------------------------------------------- 5  linear probe

def linear_probe(features: Tensor, labels: Tensor, generator: Generator | None = None,
                 inputs: Tensor | None = None, ridge: float = 1e-3) -> float:
    """Held-out accuracy of a linear classifier: can the answer be read from the features?
        W minimises  mean cross-entropy(X W, y) + ridge/2 |W|^2
    features: (N, D), 2,000 rows or more for a number that means something.  labels: (N,), any
    integers.  inputs: (N,) integers, equal where the input is; None: no two rows have one input.
    `generator` chooses a quarter of the inputs, whose rows are held out: a probe that only
    remembers its inputs scores at chance.  The other rows standardise X.
    Read it beside the same probe on shuffled labels (chance) and on the untrained model.
    Source: Alain & Bengio 2016.  Differs from the paper: its probe's details are not public."""
    x = features.detach().double()
    if x.dim() != 2 or not torch.isfinite(x).all():
        raise ValueError(f"linear_probe: needs finite features (N, D), got {tuple(x.shape)}")
    inputs = torch.arange(len(x), device="cpu") if inputs is None else inputs
    for name, column in (("labels", labels), ("inputs", inputs)):
        if column.shape != x.shape[:1] or column.is_floating_point():
            raise ValueError(f"linear_probe: {name} must be integers (N,), got "
                             f"{tuple(column.shape)} and {column.dtype}")
    classes, y = labels.to(x.device).unique(return_inverse=True)
    different, owner = inputs.to(x.device).unique(return_inverse=True)
    if len(different) < 8 or len(classes) < 2:
        raise ValueError(f"linear_probe: needs 8 different inputs and 2 classes, got "
                         f"{len(different)} and {len(classes)}")
    # hold out the rows of a quarter of the inputs
    order = torch.randperm(len(different), generator=_generator(generator), device="cpu")
    test = torch.isin(owner, order[:len(order) // 4].to(x.device))          # (N,) bool
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
        ranks.append(torch.exp(-torch.special.xlogy(p, p).sum(1)))
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
    with sdpa_kernel(SDPBackend.MATH):                          # vmap has no rule for the fused one
        columns = vmap(grad(loss), in_dims)(point, *data)
    return [columns[name] for name in point]


def gradient_blocks(net, loss_fn, data, chunk, small=2**28):
    """The same, for as many parameters at a time as fit: the backward pass of each block of them
    stops early.  small: numbers that always fit."""
    params = [p for p in net.parameters() if p.requires_grad]
    sizes = torch.tensor([p.numel() for p in params], device="cpu")
    most = max(2 * chunk * int(sizes.sum()), small)             # numbers held at a time
    blocks = len(data[0]) * sizes.cumsum(0) // most             # the block of each parameter
    for block in blocks.unique():
        for p, own in zip(params, blocks):
            p.requires_grad_(bool(own == block))
        try:
            columns = per_example_gradients_vmap(net, loss_fn, data)
        except (RuntimeError, ValueError):                      # .item(), or a branch on the data
            columns = per_example_gradients(net, loss_fn, data)
        yield from columns


def advance_all(chains, draws, keep=True):
    """Advance the chains, on a CPU each on a core of its own: small matrices share badly."""
    workers = min(len(chains), torch.get_num_threads()) if chains[0].w.device.type == "cpu" else 1
    # set_num_threads holds for the worker thread that calls it
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done in [pool.submit(chain.advance, draws, keep) for chain in chains]:
            done.result()


# -------------------------------------------------------------------------- models of one's own

@contextmanager
def collect_states(model: Module, *names: str):
    """What modules of a model return while this is open: {name: [one tensor for each call]}.
    names: as in model.named_modules(), such as "transformer.h.0".  Of a tuple, as blocks return it
    with a cache, the first.  The states are detached; the hooks are gone afterwards, and measures
    never call them.  Raises ValueError for an unknown name, and for a module that never ran.
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh())
    >>> with collect_states(model, "1") as states:
    ...     _ = model(torch.eye(3)), model(-torch.eye(3))
    >>> torch.cat(states["1"]).shape
    torch.Size([6, 8])"""
    modules, states = dict(model.named_modules()), {name: [] for name in names}
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"collect_states: no module {unknown}; there are {list(modules)[1:]}")

    def keep(name, module, args, output):
        states[name].append((output[0] if isinstance(output, tuple) else output).detach())
    hooks = [modules[name].register_forward_hook(functools.partial(keep, name)) for name in states]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
    silent = [name for name in names if not states[name]]
    if silent:
        raise ValueError(f"collect_states: {silent} did not run (compiled, or used in parts?)")
