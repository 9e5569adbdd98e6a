"""The tests of the exercises.  Each has points of its own, and says what it expected and got.

Those that are marked hidden grade, and are not handed out.  A refusal earns nothing by itself: each
test of one asks first for a value that is right.  The numbers in capitals change with the variant
of a handout (course.VARIANTS).
"""
import itertools
import math

import numpy as np
import pytest
import torch

import emergence
import measures
import models
import tasks
import workbook

exercise = pytest.mark.exercise

FACTOR = 3
EPS = 1e-7
BELOW = 1e-6
ORDER = 3
RIGHT = 0.25
LENGTH = 2
ERRORS = 3
LEAST = 0.01


# --------------------------------------------------------------------------------------------------
# Expected and got

def numbers(x):
    """Numbers, lists, arrays and tensors as a flat list of floats; None as it is."""
    if x is None or isinstance(x, str):
        return [x]
    if isinstance(x, (torch.Tensor, np.ndarray, np.generic)):
        x = x.tolist()
    if isinstance(x, (list, tuple)):
        return [number for part in x for number in numbers(part)]
    return [float(x)]


def shape_of(x):
    """Of a tensor, an array or nested lists; () of a number, None of anything else."""
    try:
        return tuple(x.shape) if hasattr(x, "shape") else np.shape(x)
    except ValueError:
        return None


def alike(got, expected, tol):
    try:
        a, b = numbers(got), numbers(expected)
    except (TypeError, ValueError):
        return False
    if len(a) != len(b):
        return False
    for x, y in zip(a, b):
        if x is None or y is None or isinstance(x, str) or isinstance(y, str):
            if x != y:
                return False
        elif x != y and not (math.isnan(x) and math.isnan(y)):
            if math.isinf(y) or not abs(x - y) <= tol * max(abs(y), 1.0):
                return False
    return True


def shown(x):
    if isinstance(x, (torch.Tensor, np.ndarray, np.generic)):
        x = x.tolist()
    if isinstance(x, float):
        return f"{x:.6g}"
    if isinstance(x, (list, tuple)):
        most = 2 if x and isinstance(x[0], (list, tuple)) else 8
        inside = ", ".join(shown(part) for part in x[:most]) + (", ..." if len(x) > most else "")
        return f"({inside})" if isinstance(x, tuple) else f"[{inside}]"
    return repr(x)[:80]


def check(what, got, expected, *mistakes, tol=1e-6):
    """mistakes: pairs of a value that a known mistake gives, and the question that helps."""
    other_shape = (isinstance(expected, (torch.Tensor, np.ndarray))
                   and shape_of(got) != tuple(expected.shape))
    if alike(got, expected, tol) and not other_shape:
        return
    hints = [f": {question}" for value, question in mistakes if alike(got, value, max(tol, 1e-4))]
    hint = hints[0] if hints else ""
    if other_shape:
        raise AssertionError(f"{what}: expected the shape {tuple(expected.shape)}, got "
                             f"{shape_of(got)}{hint}")
    raise AssertionError(f"{what}: expected {shown(expected)}, got {shown(got)}{hint}")


def refuses(what, function, *arguments):
    try:
        got = function(*arguments)
    except ValueError:
        return
    except Exception as error:
        raise AssertionError(f"{what}: expected a ValueError, got {type(error).__name__}") from None
    raise AssertionError(f"{what}: expected a ValueError, got {shown(got)}")


def normal(*shape, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


# --------------------------------------------------------------------------------------------------
# Set 1

@exercise(name="tasks.answer_targets", points=3)
def test_answer_targets_of_known_lines():
    tokens = torch.arange(10, 22).view(2, 6)
    before = tokens.clone()
    got = tasks.answer_targets(tokens, 2)
    off = tasks.IGNORE
    same_place = torch.tensor([[off] * 4 + [14, 15], [off] * 4 + [20, 21]])
    everywhere = tokens.roll(-1, 1)
    everywhere[:, -1] = off
    check("targets of tokens 10 ... 15, answer 14 15", got,
          torch.tensor([[off, off, off, 14, 15, off], [off, off, off, 20, 21, off]]),
          (same_place, "is the target the next token, not the one at its own place?"),
          (everywhere, "is the prompt scored too?"))
    check("the tokens afterwards", tokens, before)


@exercise(name="tasks.answer_targets", points=2, hidden=True)
@pytest.mark.parametrize("length", [1, 5])
def test_answer_targets_of_short_and_long_answers(length):
    tokens = torch.arange(30, 36)[None]
    expected = torch.full((1, 6), tasks.IGNORE)
    expected[0, 5 - length:5] = tokens[0, 6 - length:]
    got = tasks.answer_targets(tokens, length)
    check(f"targets of an answer of {length} tokens", got, expected)
    check("their type is int64", got.dtype == torch.int64, True)
    batch = tasks.sample("add", 2, 20, torch.Generator().manual_seed(0))
    check("targets of lines of add", tasks.answer_targets(batch.tokens, 3), batch.targets)


def pairs_of(distribution):
    """[(probability, count)] in any order, equal probabilities together."""
    together = {}
    for p, count in distribution:
        key = round(float(p), 12)
        together[key] = together.get(key, 0) + int(count)
    return sorted(together.items())


def counted(answers):
    """The same from a list with the answer of every tuple of operands."""
    times = {}
    for answer in answers:
        times[answer] = times.get(answer, 0) + 1
    return pairs_of([(n / len(answers), 1) for n in times.values()])


@exercise(name="tasks.answer_distribution", points=6)
def test_answers_counted_by_hand():
    found = {name: pairs_of(tasks.answer_distribution(*name)) for name in
             [("modadd", 1), ("add", 1), ("compare", 1)]}
    check("modadd-1: 7 residues, each 1/7", found["modadd", 1], [(round(1 / 7, 12), 7)])
    sums = counted([a + b for a in range(10) for b in range(10)])
    check("add-1: the sums of two digits", found["add", 1], sums)
    check("compare-1: three signs, each 1/3", found["compare", 1], [(round(1 / 3, 12), 3)])


@exercise(name="tasks.answer_distribution", points=4, hidden=True)
def test_answers_of_many_digits_and_answers_too_many_to_list():
    products = counted([a * b for a in range(100) for b in range(10)])
    check("multiply-2: products", pairs_of(tasks.answer_distribution("multiply", 2)), products)
    check("copy-1: a thousand answers", pairs_of(tasks.answer_distribution("copy", 1)),
          [(0.001, 1000)])
    check("sham-compare-1", pairs_of(tasks.answer_distribution("sham-compare", 1)),
          [(round(1 / 3, 12), 3)])
    got = tasks.answer_distribution("copy", 3)
    check("copy-3, by the closed form", pairs_of(got), [(1e-8, 10 ** 8)])


@exercise(name="models.attention", points=6)
def test_attention_weighs_by_the_product_of_query_and_key():
    """q . k = sqrt(d) ln 3 for the second key and 0 for the first: weights 1/4 and 3/4."""
    for d in (1, 4, 16):
        q = torch.zeros(2, d)
        q[:, 0] = 1
        k = torch.zeros(2, d)
        k[1, 0] = math.sqrt(d) * math.log(3)
        v = torch.tensor([[4.0], [8.0]]).expand(2, d)
        got = models.attention(torch.cat([q, k, v], 1)[None], torch.zeros(2, 2), 1)
        weight = torch.softmax(torch.tensor([0, math.sqrt(d) * math.log(3)]), 0)[1]
        check(f"attention with one head of width {d}", got, torch.full((1, 2, d), 7.0),
              (torch.full((1, 2, d), float(4 + 4 * weight)), "are scores divided by sqrt(d)?"),
              tol=1e-5)
    causal = torch.zeros(2, 2).masked_fill(torch.ones(2, 2).triu(1).bool(), -math.inf)
    same = torch.tensor([[[0.0, 0, 1], [0, 0, 3]]])
    check("equal keys under a causal mask", models.attention(same, causal, 1),
          torch.tensor([[[1.0], [2.0]]]), (torch.full((1, 2, 1), 2.0), "is the mask added?"))


@exercise(name="models.attention", points=4, hidden=True)
def test_attention_heads_are_apart():
    qkv = normal(2, 3, 3 * 8).float()
    mask = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -math.inf)
    whole = models.attention(qkv, mask.expand(2, 1, 3, 3), 4)
    check("the shape for 4 heads", tuple(whole.shape), (2, 3, 8))
    for head in range(4):
        columns = [part * 8 + head * 2 + i for part in range(3) for i in range(2)]
        q, k, v = qkv[:, :, columns].split(2, -1)
        weights = (q @ k.mT / math.sqrt(2) + mask).softmax(-1)
        mixed = [head * 6 + part * 2 + i for part in range(3) for i in range(2)]
        q, k, other = qkv[:, :, mixed].split(2, -1)
        check(f"head {head} of 4", whole[:, :, 2 * head:2 * head + 2], weights @ v,
              ((q @ k.mT / math.sqrt(2) + mask).softmax(-1) @ other,
               "is the first third the queries of all heads, and so on?"), tol=1e-5)
    half = models.attention(qkv.bfloat16(), mask, 4)
    check("in bfloat16: is the dtype that of qkv", half.dtype == torch.bfloat16, True)


def counting_model(tokens):
    """Certain that the next token is the last one plus the number of tokens so far, modulo 10."""
    T = tokens.shape[1]
    logits = torch.full((*tokens.shape, 10), -1e9)
    return logits.scatter(2, ((tokens + torch.arange(1, T + 1)) % 10)[:, :, None], 0.0)


@exercise(name="models.resample_answers", points=6)
def test_resampled_answers_are_read_by_the_model_that_goes_on():
    off = tasks.IGNORE
    tokens = torch.tensor([[1, 2, 0, 0, 0], [5, 5, 5, 0, 0], [7, 7, 7, 7, 7]])
    targets = torch.tensor([[off, 0, 0, off, off], [off, off, 0, 0, off], [off] * 5])
    kept = tokens.clone(), targets.clone()
    drawn = models.resample_answers(counting_model, (tokens, targets),
                                    torch.Generator().manual_seed(0))
    check("tokens drawn from a model that is certain", drawn[0],
          torch.tensor([[1, 2, 4, 7, 0], [5, 5, 5, 8, 2], [7] * 5]),
          (torch.tensor([[1, 2, 4, 3, 0], [5, 5, 5, 8, 4], [7] * 5]),
           "does the model see the tokens that were drawn before?"),
          (tokens, "are the drawn tokens written into the line?"))
    check("the targets that go with them", drawn[1],
          torch.tensor([[off, 4, 7, off, off], [off, off, 8, 2, off], [off] * 5]))
    check("the tokens given, afterwards", tokens, kept[0])
    check("the targets given, afterwards", targets, kept[1])


@exercise(name="models.resample_answers", points=4, hidden=True)
def test_resampled_answers_are_drawn_not_chosen():
    """The first token is 1 with probability 1/4; then 2 surely after 0, and 3 surely after 1."""
    def model(tokens):
        logits = torch.full((*tokens.shape, 5), -1e9)
        logits[tokens == 4] = torch.tensor([0.75, 0.25, 1e-30, 1e-30, 1e-30]).log()
        logits[tokens == 0] = torch.tensor([-1e9, -1e9, 0.0, -1e9, -1e9])
        logits[tokens == 1] = torch.tensor([-1e9, -1e9, -1e9, 0.0, -1e9])
        return logits
    tokens = torch.tensor([[4, 0, 0]]).repeat(1000, 1)
    targets = torch.tensor([[0, 0, tasks.IGNORE]]).repeat(1000, 1)
    drawn = models.resample_answers(model, (tokens, targets), torch.Generator().manual_seed(1))
    share = float((drawn[0][:, 1] == 1).float().mean())
    check("the share of a token with probability 1/4", round(share, 2), 0.25,
          (0.0, "is the token drawn, or is it the most likely one?"), tol=0.05)
    follows = torch.where(drawn[0][:, 1] == 1, 3, 2)
    check("what follows on what was drawn", drawn[0][:, 2], follows)
    asked = torch.tensor([[tasks.IGNORE, tasks.IGNORE, 0]])
    drawn = models.resample_answers(counting_model, (torch.tensor([[1, 2, 3]]), asked),
                                    torch.Generator().manual_seed(0))
    check("where the last place is asked for", (drawn[0], drawn[1]),
          ([[1, 2, 3]], [[tasks.IGNORE, tasks.IGNORE, 6]]))


@exercise(name="models.attention_mask", points=6)
def test_attention_mask_of_one_line_is_causal():
    mask = models.attention_mask(torch.zeros(1, 5, dtype=torch.long))
    check("the shape", tuple(mask.shape), (1, 1, 5, 5))
    allowed = torch.ones(5, 5).tril().bool()
    minus = torch.tensor(-math.inf)
    check("the mask of one line of 5 places", mask[0, 0], torch.where(allowed, 0, minus),
          (torch.where(allowed.T, 0, minus), "may a place look at later ones?"),
          (torch.zeros(5, 5), "may a place look at later ones?"),
          (torch.where(allowed.tril(-1), 0, minus), "may a place look at itself?"))


@exercise(name="models.attention_mask", points=4, hidden=True)
def test_attention_mask_of_several_lines_and_of_empty_places():
    line = torch.tensor([[3, 3, 7, 7, 7], [0, 1, 1, -1, -1]])
    mask = models.attention_mask(line)
    seen = (mask[:, 0] == 0).sum(-1)
    check("how many places each one may look at", seen,
          torch.tensor([[1, 2, 1, 2, 3], [1, 1, 2, 1, 2]]))
    check("place 3 of the first row", mask[0, 0, 3],
          torch.tensor([-math.inf, -math.inf, 0, 0, -math.inf]))
    check("is there NaN in its softmax", bool(mask.softmax(-1).isnan().any()), False)


def affine_by_hand(a, b, p):
    w = len(str(p - 1))
    return [int(digit) for digit in str((FACTOR * a + 5 * b) % p).zfill(w)]


@exercise(name="workbook.affine", points=6)
def test_affine_is_its_equation():
    x = torch.tensor([[2, 6], [0, 0], [6, 6], [5, 1]])
    prompt, answer = workbook.affine(x, 7)
    expected = [affine_by_hand(a, b, 7) for a, b in x.tolist()]
    other_way = [affine_by_hand(b, a, 7) for a, b in x.tolist()]
    check("answers of (2, 6), (0, 0), (6, 6), (5, 1) modulo 7", answer, torch.tensor(expected),
          (torch.tensor(other_way), "have a and b changed places?"))
    check("the prompt's pieces", [prompt[0], prompt[1], prompt[2]],
          [x[:, :1], ",", x[:, 1:]])


@exercise(name="workbook.affine", points=4, hidden=True)
def test_affine_of_every_operand_modulo_23_is_written_with_two_digits():
    x = torch.cartesian_prod(torch.arange(23), torch.arange(23))
    kept = x.clone()
    prompt, answer = workbook.affine(x, 23)
    expected = torch.tensor([affine_by_hand(a, b, 23) for a, b in x.tolist()])
    check("answers modulo 23", answer, expected,
          (expected.flip(1), "is the most significant digit first?"))
    check("the digits of a", prompt[0], torch.stack([x[:, 0] // 10, x[:, 0] % 10], 1))
    check("the digits of b", prompt[2], torch.stack([x[:, 1] // 10, x[:, 1] % 10], 1))
    _, answer = workbook.affine(torch.tensor([[1, 2]]), 11)
    check("modulo 11, the largest residue 10 has 2 digits", answer.shape[1], 2)
    check("the operands afterwards", x, kept)


# --------------------------------------------------------------------------------------------------
# Set 2

def rank_by_hand(s, eps):
    p = [x / sum(s) + eps for x in s]
    return math.exp(-sum(x * math.log(x) for x in p))


@exercise(name="measures.rankme", points=4)
def test_rankme_of_orthonormal_rows_is_their_number():
    for r in (1, 4, 10):
        got = measures.rankme(torch.eye(10)[:r])
        check(f"rankme of {r} orthonormal rows", got, rank_by_hand([1.0] * r, EPS),
              (math.log(r), "is exp missing?"),
              (rank_by_hand([1.0] * r, 0.0) ** (1 / math.log(2)), "is it log2 under exp?"),
              tol=1e-5)


@exercise(name="measures.rankme", points=3)
def test_rankme_of_known_singular_values():
    s = [4.0, 2.0, 1.0, 1.0]
    check("rankme of singular values 4, 2, 1, 1", measures.rankme(torch.diag(torch.tensor(s))),
          rank_by_hand(s, EPS),
          (rank_by_hand([x * x for x in s], EPS), "are the singular values squared?"),
          (math.log(rank_by_hand(s, EPS)), "is exp missing?"), tol=1e-5)
    check("rankme of 50 equal rows", measures.rankme(torch.ones(50, 7)),
          rank_by_hand([1.0] + [1e-300] * 6, EPS), tol=1e-4)


@exercise(name="measures.rankme", points=3, hidden=True)
def test_rankme_adds_its_eps_and_refuses_what_has_no_rank():
    x = torch.zeros(30, 200)
    x[0, 0] = 3.0
    # 29 empty directions of 30: each adds -eps log eps
    check("rankme of one direction among 30", measures.rankme(x),
          rank_by_hand([1.0] + [0.0] * 29, EPS),
          (1.0, "is eps added after dividing by the sum?"), tol=2e-7)
    check("rankme with eps 0.01", measures.rankme(x, 0.01), rank_by_hand([1.0] + [0.0] * 29, 0.01))
    check("rankme of two directions of 30, eps 0", measures.rankme(x + x.roll((1, 1), (0, 1)), 0.0),
          2.0)
    refuses("rankme of zeros", measures.rankme, torch.zeros(5, 3))
    refuses("rankme of no rows", measures.rankme, torch.zeros(0, 3))
    refuses("rankme of NaN", measures.rankme, torch.full((5, 3), math.nan))
    refuses("rankme of infinity", measures.rankme, torch.full((5, 3), math.inf))
    refuses("rankme of a vector", measures.rankme, torch.ones(3))


@exercise(name="measures.effective_rank", points=3)
def test_effective_rank_of_known_eigenvalues():
    check("effective_rank of 7 equal and 5 zero",
          measures.effective_rank(torch.tensor([3.0] * 7 + [0.0] * 5)), 7.0,
          (math.log(7), "is exp missing?"), (math.nan, "0 log 0 is 0 here"))
    p = torch.tensor([0.5, 0.25, 0.25])
    roots = p.sqrt() / p.sqrt().sum()
    check("effective_rank of 2, 1, 1", measures.effective_rank(4 * p), 2 ** 1.5,
          (float((-(roots * roots.log()).sum()).exp()), "is a root taken that is not asked for?"),
          (float(1 / p.square().sum()), "is it an entropy, or a sum of squares?"))


@exercise(name="measures.effective_rank", points=2, hidden=True)
def test_effective_rank_of_small_and_of_impossible_spectra():
    tiny = 1e-12 * torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    check("effective_rank of 2e-12, 1e-12, 1e-12", measures.effective_rank(tiny), 2 ** 1.5)
    rounding = torch.tensor([1.0, -BELOW / 2], dtype=torch.float64)
    check("effective_rank with rounding below 0", measures.effective_rank(rounding), 1.0)
    too_far = torch.tensor([1.0, -BELOW * 2], dtype=torch.float64)
    refuses("effective_rank of a negative eigenvalue", measures.effective_rank, too_far)
    refuses("effective_rank of zeros", measures.effective_rank, torch.zeros(3))
    refuses("effective_rank of nothing", measures.effective_rank, torch.zeros(0))
    refuses("effective_rank of NaN", measures.effective_rank, torch.tensor([1.0, math.nan]))


def scalar_output(model, batch):
    return model(batch[0])[:, 0]


def two_layers():
    """f = v . W x, with dropout, a frozen bias and an unused parameter."""
    nn = torch.nn
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(normal(4, 5, seed=2))
        model[2].weight.copy_(normal(1, 4, seed=3))
    model[0].bias.requires_grad_(False).zero_()
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    return model


@exercise(name="measures.gradient_gram", points=6)
def test_gradient_gram_of_one_linear_layer():
    """The gradient of w . x in w is x, so K = X X'."""
    model = torch.nn.Linear(3, 1, bias=False)
    x = normal(6, 3).float()
    exact = x.double() @ x.double().T
    got = measures.gradient_gram(model, scalar_output, (x,))
    check("gradient_gram of f = w . x", got, exact, (exact / 6, "is it divided by N?"),
          (exact - exact.mean(0), "is a mean taken away?"),
          (2 * exact, "is each pair counted twice?"), tol=1e-5)
    check("its type is float64", got.dtype == torch.float64, True)


@exercise(name="measures.gradient_gram", points=5)
def test_gradient_gram_over_all_parameters_that_require_gradients():
    """The gradient in v is W x, in W the outer product of v and x: K = (WX)(WX)' + |v|^2 X X'."""
    model = two_layers()
    x = normal(20, 5, seed=1)
    W, v = model[0].weight.detach(), model[2].weight.detach()[0]
    last = (x @ W.T) @ (x @ W.T).T
    got = measures.gradient_gram(model, scalar_output, (x,), 7)
    check("gradient_gram of v . W x, dropout off", got, last + v @ v * (x @ x.T),
          (last, "is the first layer left out?"),
          (v @ v * (x @ x.T), "is the last layer left out?"), tol=1e-9)
    check("is the model still in training mode", model.training, True)
    check("are the caller's gradients untouched", model[2].weight.grad is None, True)


@exercise(name="measures.gradient_gram", points=4, hidden=True)
def test_gradient_gram_refuses_what_it_cannot_measure():
    model, x = torch.nn.Linear(3, 1), torch.ones(4, 3)
    check("gradient_gram of four equal rows", measures.gradient_gram(model, scalar_output, (x,)),
          torch.full((4, 4), 4.0))

    def two_dimensional(model, batch):
        return model(batch[0])

    def not_a_number(model, batch):
        return scalar_output(model, batch) * math.nan
    refuses("a loss_fn that returns (B, 1)", measures.gradient_gram, model, two_dimensional, (x,))
    refuses("a loss that is NaN", measures.gradient_gram, model, not_a_number, (x,))
    refuses("data whose columns differ in length", measures.gradient_gram, model, scalar_output,
            (x, x[:2]))


class Product:
    """v -> H v, and how often that was asked for."""

    def __init__(self, h):
        self.h, self.count = h, 0

    def __call__(self, v):
        self.count += 1
        return self.h @ v


@exercise(name="measures.power_iteration", points=6)
def test_power_iteration_finds_the_largest_in_size_sign_included():
    q = torch.linalg.qr(normal(6, 6)).Q
    for spectrum in ([3.0, 1, 0.5, 0, -1, -2], [1.0, 0.5, 0.2, 0, -1, -4]):
        h = q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T
        product, exact = Product(h), max(spectrum, key=abs)
        got = measures.power_iteration(product, 5 * normal(6, seed=4), tol=1e-4, max_iters=5000)
        check(f"the eigenvalue of {spectrum}", got.eigenvalue, exact,
              (-exact, "is the sign lost?"), tol=1e-3)
        check("iterations are the products that were made", got.iterations, product.count)
        check("does it say that it converged", bool(got.converged), True)
        check("the length of the eigenvector", got.eigenvector.norm(), 1.0)
        v = got.eigenvector
        left = (h @ v - got.eigenvalue * v).norm() / abs(exact)
        check("10,000 times the residual of what it returns", 1e4 * got.residual, 1e4 * float(left),
              (1e4 * float(left) * abs(exact), "is it divided by |lambda|?"),
              (1e4 * got.residual, "does the eigenvector go with the residual?"), tol=1e-2)


@exercise(name="measures.power_iteration", points=4, hidden=True)
def test_power_iteration_that_cannot_converge_says_so():
    ones = torch.ones(2, dtype=torch.float64)
    once = measures.power_iteration(lambda v: -3 * v, 5 * ones)
    check("of -3 I, products and eigenvalue", (once.iterations, once.eigenvalue), (1, -3.0))
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    both = measures.power_iteration(lambda v: signs * v, torch.tensor([0.6, 0.8]).double(),
                                    max_iters=200)
    check("spectrum 1, -1: products, converged", (both.iterations, bool(both.converged)),
          (200, False))
    two = torch.tensor([2.0, 1.0], dtype=torch.float64)
    short = measures.power_iteration(lambda v: two * v, ones, tol=1e-9, max_iters=2)
    check("spectrum 2, 1 from (1, 1), after two products", short.eigenvalue, 1.8)
    zero = measures.power_iteration(torch.zeros_like, ones)
    check("of the zero matrix: eigenvalue, residual, products",
          (zero.eigenvalue, zero.residual, zero.iterations), (0.0, 0.0, 1))
    check("what it does not compute", once.smallest, math.nan)
    turns = measures.power_iteration(lambda v: signs * v, ones, max_iters=2)
    check("spectrum 1, -1 from (1, 1): eigenvalue, residual, converged",
          (round(turns.eigenvalue, 9), turns.residual > 1e9, bool(turns.converged)),
          (0.0, True, False))


def renyi_by_hand(s, order):
    p = [x / sum(s) for x in s]
    return sum(x ** order for x in p) ** (1 / (1 - order))


@exercise(name="workbook.renyi_rank", points=6)
def test_renyi_rank_of_known_singular_values():
    s = [4.0, 2.0, 1.0, 1.0]
    x = torch.diag(torch.tensor(s))
    check("renyi_rank of singular values 4, 2, 1, 1", workbook.renyi_rank(x),
          renyi_by_hand(s, ORDER),
          (renyi_by_hand([v * v for v in s], ORDER), "are the singular values squared?"),
          (1 / renyi_by_hand(s, ORDER), "is the sign of the exponent right?"),
          *[(renyi_by_hand(s, k), f"is the order {ORDER}?") for k in (2, 3, 4, 5, 6)])
    check("renyi_rank of 5 orthonormal rows", workbook.renyi_rank(torch.eye(9)[:5]), 5.0)


@exercise(name="workbook.renyi_rank", points=4, hidden=True)
def test_renyi_rank_is_not_centred_and_refuses_what_has_no_rank():
    check("renyi_rank of 50 equal rows", workbook.renyi_rank(torch.ones(50, 7)), 1.0, tol=1e-5)
    x = normal(40, 12)
    s = torch.linalg.svdvals(x).tolist()
    check("renyi_rank of a random matrix", workbook.renyi_rank(x), renyi_by_hand(s, ORDER))
    check("renyi_rank of 1e-15 times it", workbook.renyi_rank(1e-15 * x), renyi_by_hand(s, ORDER))
    refuses("renyi_rank of zeros", workbook.renyi_rank, torch.zeros(4, 4))
    refuses("renyi_rank of NaN", workbook.renyi_rank, torch.full((4, 4), math.nan))
    refuses("renyi_rank of a vector", workbook.renyi_rank, torch.ones(4))


# --------------------------------------------------------------------------------------------------
# Set 3

@exercise(name="measures.sgld_step", points=6)
def test_sgld_step_is_its_equation():
    w, w0, g, noise = (normal(50, seed=i) for i in range(4))
    new = w.clone()
    measures.sgld_step(new, w0, g, noise, lr=0.01, nbeta=7.0, localization=3.0)
    drift = 7 * g + 3 * (w - w0)
    check("are the weights changed in place", bool((new != w).any()), True)
    check("one step", new, w - 0.005 * drift + 0.1 * noise,
          (w - 0.01 * drift + 0.1 * noise, "is the step lr / 2?"),
          (w - 0.005 * drift + 0.01 * noise, "is the noise times sqrt(lr)?"),
          (w - 0.005 * (g + 3 * (w - w0)) + 0.1 * noise, "is nbeta left out?"),
          (w - 0.005 * (7 * g - 3 * (w - w0)) + 0.1 * noise, "does it pull towards w0?"),
          tol=1e-10)


@exercise(name="measures.sgld_step", points=4, hidden=True)
def test_sgld_steps_sample_a_quadratic():
    """L = |w|^2 / 2: nbeta E[L] is d nbeta / (2 c) / (1 - lr c / 4), c = nbeta + localization."""
    d, lr, nbeta, gamma = 4000, 8e-3, 100.0, 40.0
    w0, w, found, source = torch.zeros(d), torch.zeros(d), [], torch.Generator().manual_seed(0)
    for step in range(250):
        found.append(nbeta * float(w @ w) / 2)
        measures.sgld_step(w, w0, w.clone(), torch.randn(d, generator=source), lr, nbeta, gamma)
    c = nbeta + gamma
    exact = d * nbeta / (2 * c) / (1 - lr * c / 4)
    check("nbeta E[L] of a quadratic in 4000 dimensions", sum(found[50:]) / 200, exact, tol=0.01)
    check("w0 afterwards", w0, torch.zeros(d))


@exercise(name="measures.llc_draws", points=3)
def test_llc_draws_are_paired_and_without_burn_in():
    losses = torch.tensor([[90.0, 80, 3, 5], [70, 60, 4, 6]])
    baselines = torch.tensor([[1.0, 1, 1, 2], [9, 9, 3, 1]])
    check("two chains, the first 2 draws of 4 are burn-in",
          measures.llc_draws(losses, baselines, 10.0, 2), torch.tensor([[20.0, 30], [10, 50]]),
          (10 * (losses - baselines), "are the draws of the burn-in left out?"),
          (10 * (losses - baselines)[:, :2], "are the first draws left out, not the last?"),
          (10 * losses[:, 2:], "is the loss at w0 taken away?"),
          ((losses - baselines)[:, 2:], "is nbeta left out?"))
    try:
        got = measures.llc_draws(losses, baselines[:, :1], 10.0, 2)
    except RuntimeError:                                       # of sizes that do not fit
        got = torch.zeros(2, 0)
    check("with one loss at w0 for each chain", got, torch.tensor([[20.0, 40], [-50, -30]]),
          (torch.zeros(2, 0), "is the difference taken first?"))


@exercise(name="measures.llc_draws", points=2, hidden=True)
def test_llc_draws_of_several_groups_and_of_a_negative_value():
    losses = torch.arange(24.0).view(2, 4, 3)
    check("draws below the loss at w0, in 3 groups",
          measures.llc_draws(losses, losses + 1, 2.0, 1), torch.full((2, 3, 3), -2.0),
          (torch.zeros(2, 3, 3), "may a draw be negative? It may."))
    check("without burn-in", tuple(measures.llc_draws(losses, losses, 1.0, 0).shape), (2, 4, 3))


@exercise(name="measures.split_r_hat", points=3)
def test_r_hat_of_chains_by_hand():
    # parts 1 3, 5 7, 2 4, 8 10: means 2 6 3 9 with variance 10, within-variance 2, h = 2
    even = torch.tensor([[1.0, 3, 5, 7], [2, 4, 8, 10]])
    whole = math.sqrt(3 / 4 + 2.0 / even.var(1).mean())
    check("R-hat of 1 3 5 7 and 2 4 8 10", measures.split_r_hat(even), math.sqrt(0.5 + 5),
          (5.5, "is the root missing?"), (whole, "are the chains cut in halves?"),
          (math.sqrt(6), "is it (h - 1) / h?"),
          *[(math.sqrt(0.5 + x), "do variances divide by n - 1?") for x in (10.0, 7.5, 3.75)])
    odd = torch.tensor([[1.0, 3, 99, 5, 7], [2, 4, 99, 8, 10]])
    check("with a middle draw that is left out", measures.split_r_hat(odd), math.sqrt(5.5))


@exercise(name="measures.split_r_hat", points=2, hidden=True)
def test_r_hat_of_chains_that_drift_or_stand_still():
    white = normal(4, 2000)
    got = measures.split_r_hat(white)
    check("R-hat of independent draws", round(got, 2), 1.0)
    check("is R-hat a float", isinstance(got, float), True)
    drifting = measures.split_r_hat(white + torch.linspace(0, 4, 2000))
    check("is R-hat above 1.3 where all chains drift together", drifting > 1.3, True)
    check("R-hat of what does not vary", measures.split_r_hat(torch.ones(2, 10)), math.nan)
    check("R-hat of 3 draws", measures.split_r_hat(torch.rand(4, 3)), math.nan)


@exercise(name="measures.effective_samples", points=8)
def test_effective_samples_of_independent_and_of_constant_draws():
    few = torch.tensor([[3.0, 3, 9, 3, 3, 8, 8, 9, 7], [6, 4, 1, 2, 6, 4, 3, 0, 9]])
    check("ess of twice 9 draws", measures.effective_samples(few)[0], 13.155893,
          (5.344088, "does the sum begin at lag 1?"), (15.201366, "is the sum taken twice?"),
          (17.676259, "are the pairs rho_0 + rho_1, rho_2 + rho_3 ...?"),
          (14.179260, "does the sum end at the first pair below 0?"),
          (9.080032, "does a pair count for no more than the one before it?"),
          (18.0, "are the correlations summed?"), (11.832638, "do variances divide by n - 1?"))
    ess, error = measures.effective_samples(normal(4, 2000))
    check("of 8000 independent draws", ess / 8000, 1.0, tol=0.15)
    check("the error of their mean, times sqrt(8000)", error * 8000 ** 0.5, 1.0,
          (8000 ** -0.5, "is a root missing?"), tol=0.15)
    check("of 20 draws that do not vary", measures.effective_samples(torch.ones(2, 10)),
          (20.0, 0.0))


@exercise(name="measures.effective_samples", points=7, hidden=True)
def test_effective_samples_of_correlated_chains_and_of_chains_apart():
    phi, x = 0.9, [torch.zeros(4, dtype=torch.float64)]
    for row in normal(6000, 4, seed=1):
        x.append(phi * x[-1] + row)
    ess, _ = measures.effective_samples(torch.stack(x[1000:], 1))
    exact = 4 * 5001 * (1 - phi) / (1 + phi)
    check("of draws with correlation 0.9, in units of what theory says", ess / exact, 1.0,
          (19.0, "are the correlations summed?"), (1.9, "is the sum taken twice?"),
          (0.25, "is it of all chains?"), tol=0.25)
    ess, _ = measures.effective_samples(normal(4, 2000) + torch.arange(4.0)[:, None])
    check("is it below 40 where four chains stand apart", ess < 40, True)
    ess, error = measures.effective_samples(normal(1, 3000, seed=5))
    check("of one chain", ess / 3000, 1.0, tol=0.2)
    check("are both floats", isinstance(ess, float) and isinstance(error, float), True)
    swinging, _ = measures.effective_samples(torch.tensor([[1.0, -1.0] * 10] * 2))
    check("of chains that swing from side to side", swinging, 40 * math.log10(50))


@exercise(name="workbook.stiffness", points=6)
def test_stiffness_of_known_curvatures():
    curvatures = torch.tensor([1.0, 2.0, -9.0])
    got = workbook.stiffness(0.01, 10.0, curvatures, 5.0)
    check("stiffness of lr 0.01 at 10 * 2 + 5, and the right lr", got, (0.25, RIGHT / 25),
          ((0.01 * 95, RIGHT / 95), "is it the largest, or the largest in size?"),
          ((0.2, RIGHT / 20), "is localization left out?"), ((25.0, RIGHT / 25), "is it times lr?"))


@exercise(name="workbook.stiffness", points=4, hidden=True)
def test_stiffness_where_nothing_holds_a_chain_back():
    only = torch.tensor([-1.0, -2.0])
    check("held by localization alone", workbook.stiffness(0.1, 2.0, only, 3.0), (0.1, RIGHT))
    refuses("curvature -1, localization 1, nbeta 2", workbook.stiffness, 0.1, 2.0, only, 1.0)
    refuses("exactly 0", workbook.stiffness, 0.1, 2.0, only, 2.0)
    got = workbook.stiffness(1e-3, 1000.0, normal(200).abs(), 0.0)
    sharpest = 1000 * float(normal(200).abs().max())
    check("200 curvatures", got, (1e-3 * sharpest, RIGHT / sharpest))
    check("are both floats", [isinstance(x, float) for x in got], [True, True])


@exercise(name="workbook.length_penalty", points=3)
def test_length_penalty_of_known_rows():
    rows = torch.tensor([[1.0, -1.0], [2.0, 2.0], [0.0, 0.0]])
    each = [(mean / LENGTH - 1) ** 2 for mean in (1.0, 4.0, 0.0)]
    check("rows of mean square 1, 4 and 0", workbook.length_penalty(rows), sum(each) / 3,
          ((5 / 3 / LENGTH - 1) ** 2, "is each row squared by itself?"),
          (sum(each), "is it the mean over rows?"),
          (sum((2 * m / LENGTH - 1) ** 2 for m in (1.0, 4.0, 0.0)) / 3, "is it divided by D?"))


@exercise(name="workbook.length_penalty", points=2, hidden=True)
def test_length_penalty_moves_states_to_their_length():
    states = torch.zeros(3, 4, dtype=torch.float64)
    states[1:] = normal(2, 4)
    states.requires_grad_(True)
    penalty = workbook.length_penalty(states)
    check("the shape of the penalty", tuple(penalty.shape), ())
    penalty.backward()
    check("the gradient of a row of zeros", states.grad[0], torch.zeros(4))
    size = states.detach().square().mean(1, keepdim=True)
    exact = 2 * (size / LENGTH - 1) / LENGTH * 2 * states.detach() / 4 / 3
    check("the gradient of the other rows", states.grad, exact)
    half = 300 * normal(3, 4).half()                           # whose squares float16 cannot hold
    check("in half precision", workbook.length_penalty(half),
          workbook.length_penalty(half.double()), tol=1e-4)


# --------------------------------------------------------------------------------------------------
# Set 4

@exercise(name="emergence.emergence_index", points=6)
def test_emergence_of_several_curves():
    steps = np.arange(8)
    curves = np.array([[0, 0, 0, 0, 1, 1, 1, 1], [.5, .5, .8, .8, .8, .8, .8, .8], [.5] * 8])
    got = emergence.emergence_index(curves, steps, 0.5, math.inf, 0.3, 3, 1.25)
    check("three curves, chance 0.5", got, np.array([4, 2, -1]),
          (np.array([4, 0, 0]), "is chance taken away?"))
    own = np.array([[0.0], [0.5], [0.1]])
    got = emergence.emergence_index(curves, steps, own, 1000, 0.3, 3, 1.25)
    check("each with a chance of its own", got, np.array([4, 2, 0]))
    on_the_bar = np.array([0, 0, 0, 0.3, 0.3, 0.3, 0.3, 0.3])
    got = emergence.emergence_index(on_the_bar, steps, 0.0, math.inf, 0.3, 3, 1.25)
    check("values exactly on the bar", got, 3, (-1, "does a value on the bar count?"))
    rounded = np.array([0.5, 0.5, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7])
    got = emergence.emergence_index(rounded, steps, 0.5, math.inf, 0.4, 3, 1.25)
    check("on the bar, but for rounding", got, 2, (-1, "does a value on the bar count?"))
    hole = np.array([0, 1, math.nan, 1, 1, 1, 1, 1])
    got = emergence.emergence_index(hole, steps, 0.0, math.inf, 0.3, 3, 1.25)
    check("a value that was not measured", got, 3)


@exercise(name="emergence.emergence_index", points=4, hidden=True)
def test_emergence_with_few_examples_needs_more():
    steps, examples = np.arange(20) * 10, 30.0
    bar = ERRORS * math.sqrt(1 / examples)                     # chance 1/2: p / (1 - p) is 1
    for share, expected in ((bar + 0.01, 10), (bar - 0.01, -1)):
        values = np.array([0.5] * 10 + [0.5 + share / 2] * 10)
        got = emergence.emergence_index(values, steps, 0.5, examples, 0.1, 3, 1.25)
        check(f"{share:.2f} of the way from chance to 1, on 30 examples", got, expected)
    few = np.array([[1000.0], [5.0], [math.inf]])
    curves = np.array([[0.5] * 10 + [0.8] * 10] * 3)
    got = emergence.emergence_index(curves, steps, 0.5, few, 0.3, 3, 1.25)
    check("1000, 5 and all examples", got, np.array([10, -1, 10]))
    short = np.array([0] * 5 + [1] * 3 + [0] * 12)
    found = [int(emergence.emergence_index(short, steps, 0.0, math.inf, 0.3, n, 1.25))
             for n in (3, 4)]
    check("three values that last, persistence 3 and 4", found, [5, -1])


@exercise(name="emergence.recovery", points=6)
def test_recovery_of_several_curves():
    nan = math.nan
    smooth = np.array([[9, 8, 2, 2, 2.1, 3, 4, 5], [5, 4, 1, nan, 2, 2, nan, 2],
                       [9, 8, 7, 6, 5, 4, 3, 2], [nan, 3, 3, 3.5, 4, 4, 4, 4]])
    floor, low, risen = emergence.recovery(smooth, 0.2)
    check("the floors", floor, np.array([2.0, 1, 2, 3]),
          (np.array([2.0, nan, 2, nan]), "is NaN a minimum?"))
    check("where they are", low, np.array([2, 2, 7, 1]))
    found = [np.flatnonzero(row).tolist() for row in np.asarray(risen)]
    early = [[0, 1, 5, 6, 7], [0, 1, 4, 5, 7], [0, 1, 2, 3, 4, 5, 6], [4, 5, 6, 7]]
    share = [[3, 4, 5, 6, 7], [4, 5, 7], [], [2, 3, 4, 5, 6, 7]]
    check("where each curve has risen", found, [[5, 6, 7], [4, 5, 7], [], [4, 5, 6, 7]],
          (share, "is it a share of the floor?"),
          (early, "does what stands before the floor count as risen?"))


@exercise(name="emergence.recovery", points=4, hidden=True)
def test_recovery_of_one_curve_and_exactly_on_the_bar():
    floor, low, risen = emergence.recovery(np.array([4.0, 2.0, 2.5, 2.0, 3.0]), 0.25)
    check("floor and place", (floor, low), (2.0, 1))
    check("25% above the floor", np.asarray(risen).tolist(), [0, 0, 1, 0, 1],
          ([0, 0, 0, 0, 1], "does a value on the bar count?"))
    floor, low, risen = emergence.recovery(np.array([[3.0, 3.3, 4.1], [math.nan] * 3]), 0.2)
    check("floors, one of them of a curve without values", floor, np.array([3.0, math.nan]))
    check("where they have risen", np.asarray(risen), np.array([[0, 0, 1], [0, 0, 0]]))


@exercise(name="emergence.holm", points=3)
def test_holm_by_hand():
    given = [0.01, 0.04, None, 0.03]
    got = emergence.holm(given)
    check("holm of .01 .04 None .03", got, [0.03, 0.06, None, 0.06],
          ([0.03, 0.04, None, 0.06], "is the largest so far kept?"),
          ([0.03, 0.12, None, 0.09], "is the factor smaller for each next one?"),
          ([0.04, 0.09, None, 0.09], "does a test that was not made count?"),
          ([0.03, 0.08, None, 0.08], "are they taken from the smallest up?"),
          ([0.03, 0.08, None, 0.03], "are they taken from the smallest up?"))
    check("what was given, afterwards", given, [0.01, 0.04, None, 0.03])


@exercise(name="emergence.holm", points=2, hidden=True)
@pytest.mark.parametrize("p, expected", [
    ([0.5, 0.4], [0.8, 0.8]),
    ([0.9, 0.8, 0.7], [1, 1, 1]),
    ([0.02, 0.001, 0.02], [0.04, 0.003, 0.04]),
    ([None, 0.2], [None, 0.2])])
def test_holm_of_ties_and_of_large_ones(p, expected):
    check(f"holm of {p}", emergence.holm(p), expected)
    check("holm of nothing", emergence.holm([]), [])


@exercise(name="emergence.exchanges", points=6)
def test_up_to_nine_tasks_every_exchange_comes_once():
    for T in (1, 2, 5, 7):
        found = np.asarray(emergence.exchanges([f"task{k}" for k in range(T)]))
        check(f"the shape for {T} tasks", found.shape, (math.factorial(T), T),
              ((T ** T, T), "does one task's geometry go to two tasks?"))
        check("the first leaves all as it is", found[0], np.arange(T))
        rows = {tuple(row) for row in found.tolist()}
        check(f"are they all the permutations of {T}",
              rows == set(itertools.permutations(range(T))), True)
    check("of the labels add, add, copy, add", emergence.exchanges(["add", "add", "copy", "add"]),
          np.array([[0, 1], [1, 0]]))


@exercise(name="emergence.exchanges", points=4, hidden=True)
def test_more_tasks_are_drawn_and_all_exchanges_are_equally_likely():
    found = np.asarray(emergence.exchanges(range(10), 6001, seed=3))
    check("the shape for 10 tasks", found.shape, (6001, 10))
    check("the first leaves all as it is", found[0], np.arange(10))
    check("is each row a permutation", (np.sort(found, axis=1) == np.arange(10)).all(), True)
    for k in range(10):
        far = abs(np.bincount(found[1:, k], minlength=10) - 600).max()
        check(f"does task {k} get each geometry equally often", far < 5 * 540 ** 0.5, True)
    pair = ((found[1:, 0] == 1) & (found[1:, 1] == 0)).mean()
    check("how often tasks 0 and 1 change places, times 90", 90 * pair, 1.0, tol=0.4)
    check("the same seed draws the same", emergence.exchanges(range(10), 6001, seed=3), found)
    check("does another seed draw others", (emergence.exchanges(range(10), 6001, seed=4)
                                            != found).any(), True)


class Dates:
    """What precursor_counts needs of an EventTable: see its docstring."""

    def __init__(self, onset, arrivals, levels):
        self.onset, self.arrivals = np.array(onset, dtype=float), np.array(arrivals, dtype=float)
        self.emergence = np.where(self.arrivals == -math.inf, 0.0, self.arrivals)
        self.levels, self.runs = levels, range(len(onset))
        self.tasks = [level.partition("-")[0] for level in levels]
        names = list(dict.fromkeys(self.tasks))
        self.owner = np.array([[task == name for task in self.tasks] for name in names])
        numbers = [level.partition("-")[2] for level in levels]
        self.partners = np.full((len(levels), len(names)), -1)
        for k, number in enumerate(numbers):
            for i, name in enumerate(names):
                if f"{name}-{number}" in levels:
                    self.partners[k, i] = levels.index(f"{name}-{number}")

    def of_partners(self, dates):
        return np.where(self.partners >= 0, dates[:, self.partners], math.nan)

    def by_task(self, values):
        return np.einsum("jk,rki->rji", self.owner.astype(int), np.asarray(values, dtype=int))


@exercise(name="emergence.precursor_counts", points=6)
def test_precursor_counts_by_counting():
    """Run 0: add-1 emerges at 20, copy-2 at 60; run 1: add-1 at 30, copy-1 at 70.  add-2 never;
    copy-1 of run 0 was there from the start."""
    inf = math.inf
    onset = [[10, 50, 5, inf], [30, 20, inf, 5]]
    arrivals = [[20, inf, -inf, 60], [30, inf, 70, inf]]
    events = Dates(onset, arrivals, ("add-1", "add-2", "copy-1", "copy-2"))
    first, counted = emergence.precursor_counts(events)
    seen = np.ones((2, 2, 2))
    seen[0, 1] = 2
    check("counted, in two runs", counted, np.ones((2, 2, 2)),
          (seen, "is it events.arrivals? Does what was there from the start count?"))
    # run 0: add-1 at 20, its own onset 10, copy-1's 5; copy-2 at 60, its own never, add-2's 50
    # run 1: add-1 at 30, its own 30 is not before, copy-1's never; copy-1 at 70, never; add-1's 30
    check("first, in two runs", first, np.array([[[1, 1], [1, 0]], [[0, 0], [1, 0]]]),
          (np.array([[[1, 1], [1, 0]], [[1, 0], [1, 0]]]),
           "is an onset at the very step of emergence before it?"))


@exercise(name="emergence.precursor_counts", points=4, hidden=True)
def test_what_has_no_date_or_no_partner_is_not_counted():
    events = Dates([[10, 30, math.nan]], [[20, 40, 60]], ("add-1", "add-2", "copy-1"))
    first, counted = emergence.precursor_counts(events)
    check("counted", counted, np.array([[[2, 0], [1, 0]]]))
    check("first", first, np.array([[[2, 0], [1, 0]]]))
    never = Dates([[5, 6]], [[math.inf, -math.inf]], ("add-1", "copy-1"))
    first, counted = emergence.precursor_counts(never)
    check("what does not emerge while watched", (counted, first), (np.zeros((1, 2, 2)),) * 2)


@exercise(name="emergence.p_value", points=3)
def test_p_value_by_counting():
    check("p_value of 2 against 1, 3, 2", emergence.p_value(np.array([2.0, 1, 3, 2])), 0.75,
          (0.25, "does a tie count, and what was observed?"),
          (2 / 3, "does what was observed count too?"), (0.5, "is it the upper tail, with ties?"))
    check("p_value of the largest of 100", emergence.p_value(np.array([5.0] + [0.0] * 99)), 0.01,
          (0.0, "does what was observed count too?"))


@exercise(name="emergence.p_value", points=2, hidden=True)
@pytest.mark.parametrize("values, expected", [
    ([-3.0, 1, 2, -4], 0.75),
    ([0.5, 0.5 - 1e-12, 0.1, 0.2], 0.5),
    ([1.0, math.nan, 2, 0], 0.5),
    ([math.nan, 1, 2], None),
    ([1.0], None)])
def test_p_value_of_ties_by_rounding_and_of_what_cannot_be_told(values, expected):
    check("p_value of 3 against 1, 2", emergence.p_value(np.array([3.0, 1, 2])), 1 / 3)
    check(f"p_value of {values}", emergence.p_value(np.array(values)), expected)


@exercise(name="workbook.exchange_test", points=6)
def test_exchange_test_of_three_tasks_by_hand():
    table = np.array([[5.0, 1, 0], [2, 4, 2], [0, 1, 3]])
    # 12 as it is; the other five exchanges give 6, 8, 6, 3 and 4, of which one at a time
    sums = [table[0, a] + table[1, b] + table[2, c]
            for a, b, c in itertools.permutations(range(3))]
    free = [table[0, a] + table[1, b] + table[2, c]
            for a, b, c in itertools.product(range(3), repeat=3)]
    got = workbook.exchange_test(table)
    check("of three tasks", got, (12.0, sum(sums) / 6, 1 / 6),
          ((12.0, sum(sums) / 6, 0.0), "does the exchange that changes nothing count in p?"),
          ((12.0, sum(sums[1:]) / 5, 1 / 6), "does it count in the mean?"),
          ((12.0, sum(free) / 27, sum(x >= 12 for x in free) / 27),
           "does one task's geometry go to two tasks?"))


@exercise(name="workbook.exchange_test", points=4, hidden=True)
def test_exchange_test_counts_ties_and_takes_lists():
    check("of a table of ones: everything ties", workbook.exchange_test([[1, 1], [1, 1]]),
          (2.0, 2.0, 1.0))
    table = np.random.default_rng(0).integers(0, 9, (5, 5)).astype(float)
    sums = [sum(table[j, m[j]] for j in range(5)) for m in itertools.permutations(range(5))]
    p = sum(x >= sums[0] - 1e-9 for x in sums) / 120
    check("of five tasks", workbook.exchange_test(table), (sums[0], sum(sums) / 120, p))
    worst = workbook.exchange_test(np.array([[0.0, 1], [1, 0]]))
    check("where the others' come first", worst, (0.0, 1.0, 1.0))


def score_by_hand(q, y):
    return sum(math.log(a if b else 1 - a) for a, b in zip(q, y)) / len(q)


@exercise(name="workbook.log_score", points=6)
def test_log_score_of_known_forecasts():
    q, y = [0.8, 0.2, 0.5, 0.6], [1, 0, 1, 0]
    score, base = score_by_hand(q, y), math.log(0.5)
    check("four forecasts, two of them happened", workbook.log_score(q, y),
          (score, score - base),
          ((-score, base - score), "a score is a log, so not above 0: is the sign lost?"),
          ((4 * score, 4 * (score - base)), "is it the mean?"),
          ((score / math.log(2), (score - base) / math.log(2)), "are they nats, not bits?"),
          ((score, base - score), "is the gain above 0 where the forecast is better?"))
    unseen = workbook.log_score([*q, 0.9], [*y, math.nan])
    check("with one that nobody could watch", unseen, (score, score - base))


@exercise(name="workbook.log_score", points=4, hidden=True)
def test_log_score_of_certain_forecasts():
    got = workbook.log_score(np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0]))
    worst, best = math.log(LEAST), math.log(1 - LEAST)
    base = score_by_hand([2 / 3] * 3, [1, 1, 0])
    check("two certain and wrong, one certain and right", got,
          ((2 * worst + best) / 3, (2 * worst + best) / 3 - base))
    check("where all happened", workbook.log_score([0.5, 0.5], [1, 1]),
          (math.log(0.5), math.log(0.5) - best))
    refuses("a forecast of 1.2", workbook.log_score, [0.5, 1.2], [1, 0])
    refuses("a forecast of NaN", workbook.log_score, [0.5, math.nan], [1, 0])
    refuses("a forecast of 1.2 that nobody watched", workbook.log_score, [0.5, 1.2], [1, math.nan])
    refuses("nothing watched", workbook.log_score, [0.5], [math.nan])
