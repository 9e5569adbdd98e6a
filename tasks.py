"""Chapter 1: tasks.  Small tasks, written as lines of tokens that a transformer completes.

A capability can only be seen to *emerge* if we can say, at every step of training, whether it is
there.  So each task here has an exact answer.  An answer counts only if every token of it is right:

    add 12 + 7 = 19            the model reads up to "=", then writes what follows, token by token

Two tables stand at the end of this file.  TASKS has the paper's eight.  MORE_TASKS has sixteen
others, in two families: arithmetic and sequences.  Each task has three levels of difficulty, so
eight tasks make 24 *task-levels*, from "copy-1" to "multiply-3".  They are chosen so that a
transformer of 409 thousand parameters learns most of them, trained on 24 at once for 2,000 steps:
19 or 20 of the 24 in either family.  The others are left to larger ones.  Three decisions made
that possible:

  - Where carries run, numbers are written with the least significant digit first: in sums,
    differences and products.  Then every digit needs only carries that have been seen.  Written
    the usual way, the sum of two 3-digit numbers does not emerge at this size.  A quotient is
    found from its most significant digit on, and is written so.  `decode` turns digits round.
  - The modulus stands in the line, as one token.  Otherwise mod 23 and mod 97 would look alike.
  - A third of the comparisons are between equal numbers.  Otherwise "=" would hardly ever be right.

*Sham* tasks are the negative controls.  A line of "sham-add" looks like a line of "add", but the
answers are shuffled within the batch.  Nothing connects them with the operands.  All that can be
learned is which answers are frequent.  If a measure sees a sham task coming, it is a false alarm.

What can go wrong: a task looks learned and is not.  A coin answers parity half of the time, and
"0" is the right product in one of five cases of multiply-1.  So accuracy is read beside `chance`.
Operands that were trained on may be known by heart.  So `sample` can keep some of them apart.

A new task is one function and one row of MORE_TASKS.  Nothing else names it.

This file draws examples and says what chance is.  It trains nothing, measures nothing, and knows
no model.
Source: Billa 2026 (arXiv 2602.15997) names the first eight tasks.
Differs from the paper: its sizes are not public, so the levels are ours; the sixteen are ours.
Read more: Power et al. 2022 (arXiv 2201.02177), modular arithmetic, memorised, then generalised;
Nogueira et al. 2021 (arXiv 2102.13019), the order of digits decides what a transformer can add;
Charton 2023 (arXiv 2308.15594), the greatest common divisor, one divisor after the other.

Letters for shapes:  N examples, T tokens of a line, K operands, A tokens of an answer,
V vocabulary, S tuples of columns, M different operands."""
import functools
import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass
from itertools import combinations_with_replacement, zip_longest
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F

LEVELS = (1, 2, 3)
VOCAB_SIZE = 64                   # V: the words in use stand first, then free places, then PAD
PAD = VOCAB_SIZE - 1              # fills the places of a row where no line stands
IGNORE = -100                     # the target of a place that is not scored; torch's own default
LISTED = 1_000_000                # so many tuples of columns, at most, are gone through one by one


class Batch(NamedTuple):
    """Lines of one task-level.  They all have the same length."""
    tokens: torch.Tensor          # (N, T) int64: the whole line, answer included
    targets: torch.Tensor         # (N, T) int64: the token that comes next; IGNORE off the answer


# --------------------------------------------------------------------------------------------------
# One function per task: from operands to a line
#
# It takes the operands x, (N, K) int64, and the size of the level.  The size has the name of what
# it means: n digits of a sequence, d digits of a number, p the modulus.
# It returns what stands between the task's name and "=", as a list of pieces, and the answer,
# (N, A).  A piece is a word, the same in every line, or an (N, w) tensor of tokens.
# The token of a digit is the digit itself.  So arithmetic needs no translation.

def digits(x, width):
    """(N,) non-negative integers -> (N, width) decimal digits, most significant first.

    >>> digits(torch.tensor([7, 42]), 3).tolist()
    [[0, 0, 7], [0, 4, 2]]"""
    powers = 10 ** torch.arange(width - 1, -1, -1, device=x.device)
    return x[:, None] // powers % 10


def copy(x, n):
    return [x], x


def reverse(x, n):
    return [x], x.flip(1)


def sort(x, n):
    return [x], x.sort(dim=1).values


def parity(x, n):
    """x: n bits.  Is the number of ones odd (1) or even (0)?"""
    return [x], x.sum(1, keepdim=True) % 2


def add(x, d):
    """12 + 7 = 19, with the 19 written backwards.

    >>> add(torch.tensor([[12, 7]]), 2)
    ([tensor([[1, 2]]), '+', tensor([[0, 7]])], tensor([[9, 1, 0]]))"""
    a, b = x.unbind(1)                                      # (N,) each
    return [digits(a, d), "+", digits(b, d)], digits(a + b, d + 1).flip(1)


def multiply(x, lengths):
    """lengths: a pair, the digits of the first and of the second factor."""
    a, b = x.unbind(1)
    d, e = lengths
    return [digits(a, d), "*", digits(b, e)], digits(a * b, d + e).flip(1)


def subtract(x, d):
    """42 - 17 = 25, with the 25 written backwards.  The first number is not the smaller one."""
    a, b = x.unbind(1)
    return [digits(a, d), "-", digits(b, d)], digits(a - b, d).flip(1)


def divide(x, d):
    """85 / 7 = 12, what is left over is dropped.  The most significant digit comes first."""
    a, b = x.unbind(1)
    return [digits(a, d), "/", digits(b, 1)], digits(a // b, d)


def increment(x, d):
    """199 = 200: the number that follows, written backwards."""
    a = x[:, 0]
    return [digits(a, d)], digits(a + 1, d + 1).flip(1)


def gcd(x, lengths):
    """The greatest common divisor.  b is not 0, so it has no more digits than b.  0 , b = b."""
    a, b = x.unbind(1)
    d, e = lengths
    return [digits(a, d), ",", digits(b, e)], digits(torch.gcd(a, b), e)


def modular(x, sign, value, p):
    """What the modular tasks share: 17 + 19 mod 23 = 13, the most significant digit first."""
    a, b = x.unbind(1)
    d = len(str(p - 1))                                     # the digits of the largest residue
    return [digits(a, d), sign, digits(b, d), f"mod {p}"], digits(value % p, d)


def modadd(x, p):
    return modular(x, "+", x[:, 0] + x[:, 1], p)


def modsub(x, p):
    return modular(x, "-", x[:, 0] - x[:, 1], p)            # 3 - 5 mod 7 = 5


def modmul(x, p):
    return modular(x, "*", x[:, 0] * x[:, 1], p)


def moddiv(x, p):
    """a / b is the number whose product with b is a.  There is one: p is a prime, b is not 0."""
    inverses = torch.tensor([0] + [pow(b, -1, p) for b in range(1, p)], device=x.device)
    return modular(x, "/", x[:, 0] * inverses[x[:, 1]], p)


def modpoly(x, p):
    """a^2 + ab + b^2 mod p: no sign could say so, and "," stands between a and b."""
    a, b = x.unbind(1)
    return modular(x, ",", a * a + a * b + b * b, p)


def compare(x, d):
    a, b = x.unbind(1)
    sign = torch.full_like(a, ID["="])
    sign[a < b] = ID["<"]
    sign[a > b] = ID[">"]
    return [digits(a, d), ",", digits(b, d)], sign[:, None]


def maximum(x, n):
    return [x], x.max(dim=1, keepdim=True).values


def count(x, n):
    """How often the first digit stands in the rest."""
    return [x], (x[:, 1:] == x[:, :1]).sum(1, keepdim=True)


def rotate(x, n):
    """2 , 3 1 4 = 4 3 1: the digits after the "," move to the left, the first ones to the end."""
    shift, row = x[:, :1], x[:, 1:]
    places = (torch.arange(n, device=x.device) + shift) % n                 # (N, n)
    return [shift, ",", row], row.gather(1, places)


def interleave(x, n):
    """1 2 , 3 4 = 1 3 2 4: n digits, in turn from the one half and from the other."""
    a, b = x.chunk(2, dim=1)
    return [a, ",", b], torch.stack([a, b], 2).flatten(1)


def majority(x, n):
    """n bits, an odd number of them.  Are there more ones (1) or more zeros (0)?"""
    return [x], (x.sum(1, keepdim=True) > n // 2).long()


def xor(x, n):
    """Where do the two halves of n bits differ?"""
    a, b = x.chunk(2, dim=1)
    return [a, ",", b], a ^ b


def recall(x, n):
    """1 4 3 7 , 3 = 7: which value follows the key 3?  x: n keys, n values, a key.

    The values differ, so to write any of them is right in 1 of n cases only.  With two pairs this
    alone would count as emerged (emergence.emergence_step), and nobody would look for the key."""
    keys, values, key = x[:, :n], x[:, n:-1], x[:, -1:]
    pairs = torch.stack([keys, values], 2).flatten(1)
    return [pairs, ",", key], values[keys == key][:, None]


def permute(x, n):
    """1 2 0 , 0 2 1 = 1 0 2: the product p q of two permutations.  Place i holds p[q[i]]."""
    p, q = x.chunk(2, dim=1)
    return [p, ",", q], p.gather(1, q)


# --------------------------------------------------------------------------------------------------
# A task is one row of the table

def as_drawn(columns, size):
    """The operands of nearly every task are the columns of numbers that were drawn."""
    return columns


@dataclass(frozen=True)
class Task:
    """One row of TASKS or MORE_TASKS."""
    line: Callable                # (operands (N, K), size) -> pieces of the prompt, answer (N, A)
    sizes: tuple                  # what levels 1, 2 and 3 mean for `line`
    operand_ranges: tuple         # of each level: r_1 ... r_K; column k is drawn from 0 ... r_k - 1
    about: str                    # one line for `run.py tasks`
    words: tuple = ()             # what its lines contain besides digits and its name
    numbers: bool = False         # the operands are numbers, not sequences of digits
    backwards: bool = False       # the answer is written least significant digit first
    operands: Callable = as_drawn             # (columns, size) -> operands (N, K)
    answers: Callable | None = None           # size -> (answer_distribution, answer_frequencies)
                                              # in closed form: for levels with more than LISTED
                                              # operands
    family: str = "own"           # the tasks of a family are asked for by one word
    kind: str = "number"          # of answer: controls are spread over the kinds, see shams_of


def a_third_equal(columns, d):
    """The operands (a, b) of compare: equal in a third of all draws, different in the others.

    columns: (N, 3): kind, a and offset.  kind is 0, 1 or 2, and 0 makes the numbers equal.
    Otherwise b is found by counting on from a, 1 + offset steps.  After 9...9 comes 0."""
    kind, a, offset = columns.unbind(1)
    other = (a + 1 + offset) % 10 ** d                      # each number but a is equally likely
    b = torch.where(kind == 0, a, other)
    return torch.stack([a, b], 1)


def larger_first(columns, d):
    return columns.sort(dim=1, descending=True).values


def divisor_not_zero(columns, size):
    """The second column is drawn from 0 on, but no number can be divided by 0."""
    a, b = columns.unbind(1)
    return torch.stack([a, b + 1], 1)


def all_different(columns, n):
    """Different digits out of 0 ... n - 1.  Column k says which of the digits that are left.

    >>> all_different(torch.tensor([[2, 0, 0], [1, 1, 0]]), 3).tolist()
    [[2, 0, 1], [1, 2, 0]]"""
    left = torch.arange(n, device=columns.device).expand(len(columns), n)
    chosen = []
    for column in columns.unbind(1):
        digit = left.gather(1, column[:, None])                             # (N, 1)
        chosen.append(digit)
        left = left[left != digit].view(len(columns), -1)                   # one column less
    return torch.cat(chosen, 1)


def two_permutations(columns, n):
    return torch.cat([all_different(half, n) for half in columns.chunk(2, dim=1)], 1)


def keys_and_values(columns, n):
    """columns: (N, 2n + 1): n for the keys, n for the values, and which key is asked for."""
    keys = all_different(columns[:, :n], 10)
    values = all_different(columns[:, n:-1], 10)
    return torch.cat([keys, values, keys.gather(1, columns[:, -1:])], 1)


def split_name(level_name):
    """The two arguments that the functions below take, from the name of a task-level.

    >>> split_name("sham-add-2")
    ('sham-add', 2)"""
    task, _, level = level_name.rpartition("-")
    return task, int(level)


def _lookup(task, level):
    """-> (Task, size, is it a sham?).  Raises ValueError for a wrong name or level."""
    base = task.removeprefix("sham-")
    if base not in ALL_TASKS:
        raise ValueError(f"task {task!r} does not exist; the tasks are {', '.join(ALL_TASKS)}"
                         " (or sham-NAME, a negative control)")
    if level not in LEVELS:
        raise ValueError(f"level {level!r} of {task} does not exist; the levels are 1, 2 and 3")
    return ALL_TASKS[base], ALL_TASKS[base].sizes[level - 1], base != task


# --------------------------------------------------------------------------------------------------
# Drawing examples

def seeded(device, *key):
    """A generator whose numbers depend on `key` alone, not on what was drawn before.

    So the training data are a function of (seed, step), and a resumed run sees the batches that
    an uninterrupted run sees."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def all_operands(task, level):
    """(S, K): the operands that each tuple of columns leads to.  At most LISTED of them."""
    spec, size, _ = _lookup(task, level)
    ranges = spec.operand_ranges[level - 1]
    columns = torch.unravel_index(torch.arange(math.prod(ranges)), ranges)
    return spec.operands(torch.stack(columns, 1), size)


def can_be_listed(task, level):
    return math.prod(_lookup(task, level)[0].operand_ranges[level - 1]) <= LISTED


def number_operands(task, level):
    """The different operands of a task-level, numbered.

    Several tuples of columns can lead to the same operands: in compare, 7 and 7 come up often.
    Returns (operands (M, K), each once; number (S,): which of them each tuple of columns leads to).
    """
    operands = all_operands(task, level)                                    # (S, K)
    radix = operands.max(dim=0).values + 1                                  # (K,)
    code = operands @ (radix.cumprod(0) // radix)                           # (S,) one integer each
    distinct, number = code.unique(return_inverse=True)                     # (M,), (S,)
    first = torch.empty_like(distinct)
    first[number] = torch.arange(len(code))                 # one of the tuples that lead there
    return operands[first], number


@functools.lru_cache(maxsize=None)
def split_columns(task, level, split, train_fraction):
    """The tuples of columns on one side of the train / test split, as numbers, in order.

    A generator of its own marks each operand tuple of the task-level as trained on, or not.  So
    every seed and every size of model trains on the same operands, and a sham on those of its task.
    Returns (number of tuples,) int64.
    Raises ValueError if that side is empty, or if there are too many operands for a split."""
    if not can_be_listed(task, level):
        raise ValueError(f"train_fraction {train_fraction}: {task}-{level} has more than"
                         f" {LISTED:,} operands, of which no training sees a share worth the name;"
                         " leave this level out, or train on all of them (train_fraction 1)")
    base = task.removeprefix("sham-")
    operands, number = number_operands(base, level)
    draws = torch.rand(len(operands), generator=seeded("cpu", "split", base, level))
    trained_on = (draws < train_fraction)[number]                           # (S,)
    side = (trained_on == (split == "train")).nonzero()[:, 0]
    if not len(side):
        raise ValueError(f"train_fraction {train_fraction}: the {split} split of {task}-{level} has"
                         f" no operands (of {len(operands)} in all); take a fraction nearer to one"
                         " half")
    return side


def draw_operands(task, level, n, generator, split="all", train_fraction=1.0):
    """(n, K) int64: the columns one after another, each uniform on its range; or, with a split,
    the tuples of columns on one side of it, each as likely as the others."""
    spec, size, _ = _lookup(task, level)
    ranges, device = spec.operand_ranges[level - 1], generator.device
    if split == "all" or (split == "train" and train_fraction == 1):
        columns = [torch.randint(values, (n,), generator=generator, device=device)
                   for values in ranges]
    else:
        side = split_columns(task, level, split, train_fraction).to(device)
        drawn = side[torch.randint(len(side), (n,), generator=generator, device=device)]
        columns = torch.unravel_index(drawn, ranges)
    return spec.operands(torch.stack(columns, 1), size)


def answer_targets(tokens, length):
    """What is asked of the model at each place: the next token, if it is part of the answer.
        targets[n, t] = tokens[n, t + 1]  at the places right before an answer token,  else IGNORE
    tokens: (N, T) int64, whole lines.  The answer is their last `length` tokens, length < T.
    Returns (N, T) int64.  tokens stay as they are.
    Exercise: tasks.answer_targets (set 1, 5 points)
    Hint: "=" stands right before the answer's first token; the last place has no next token.

    >>> answer_targets(torch.tensor([[24, 1, 2, 16, 7, 8]]), 2).tolist()
    [[-100, -100, -100, 7, 8, -100]]"""
    T = tokens.shape[1]
    targets = torch.full_like(tokens, IGNORE)
    targets[:, T - length - 1:-1] = tokens[:, T - length:]
    return targets


def write_lines(task, level, operands, generator=None):
    """Operands (N, K) -> Batch.  generator: shuffles the answers of a sham; no other needs it."""
    spec, size, sham = _lookup(task, level)
    prompt, answer = spec.line(operands, size)
    n, device = len(operands), operands.device
    if sham:                                                # the same answers, in random order
        answer = answer[torch.randperm(n, generator=generator, device=device)]

    columns = []
    for piece in [*task.split("-"), *prompt, "=", answer]:
        if isinstance(piece, str):
            piece = torch.full((n, 1), ID[piece], device=device)
        columns.append(piece)
    tokens = torch.cat(columns, 1)                          # (N, T)
    return Batch(tokens, answer_targets(tokens, answer.shape[1]))


def sample(task: str, level: int, n: int, generator: torch.Generator, split: str = "all",
           train_fraction: float = 1.0) -> Batch:
    """Draw n examples of one task-level.

    task: a name in TASKS or MORE_TASKS, or "sham-" and such a name.  level: 1, 2 or 3.  The batch
    is made on the device of `generator`.  split "train": only a fixed share of the operands,
    about train_fraction of them; "test": only the others; "all": no matter.
    Returns Batch(tokens, targets), both (n, T) int64.
    Raises ValueError for a wrong name, level, split or fraction, for a split that is empty, and
    for one of a level with too many operands.

    >>> batch = sample("add", 2, 1, torch.Generator().manual_seed(0))
    >>> decode(batch.tokens[0]), batch.targets[0].tolist()
    ('add 44 + 39 = 83', [-100, -100, -100, -100, -100, -100, 3, 8, 0, -100])"""
    if split not in ("all", "train", "test"):
        raise ValueError(f"split {split!r}: expected all, train or test")
    if not 0 < train_fraction <= 1:
        raise ValueError(f"train_fraction {train_fraction}: expected a number above 0 and"
                         " at most 1")
    operands = draw_operands(task, level, n, generator, split, train_fraction)
    return write_lines(task, level, operands, generator)


class EvalLines(NamedTuple):
    """The lines that a task-level is measured on.  See eval_lines."""
    batch: Batch                  # N different lines
    weights: torch.Tensor         # (N,) float64: the share that each line counts for; sum 1
    distinct: int                 # how many different prompts: no rank of their states is higher
    exact: bool                   # these are all the lines there are, weighted by probability


@functools.lru_cache(maxsize=None)
def eval_lines(task, level, n, split="all", train_fraction=1.0) -> EvalLines:
    """The lines that a task-level is measured on: fixed, the same for every seed and size.

    If there are at most n different prompts, all of them are taken, and each counts for its
    probability.  A mean over them has no sampling error.  Otherwise n lines are drawn, equal ones
    are put together, and each counts for how often it was drawn.  With a split: likewise on its
    side of the split.  Shams are always drawn, for a prompt has many answers there.
    Raises ValueError as `sample` does.

    >>> lines = eval_lines("parity", 1, 100)
    >>> len(lines.batch.tokens), lines.weights[0].item(), lines.distinct, lines.exact
    (8, 0.125, 8, True)"""
    batch = sample(task, level, n, seeded("cpu", "eval", task, level, split), split, train_fraction)
    if can_be_listed(task, level) and not task.startswith("sham-"):
        operands, number = number_operands(task, level)
        if split == "test" or (split == "train" and train_fraction < 1):
            number = number[split_columns(task, level, split, train_fraction)]
        times = number.bincount(minlength=len(operands))    # tuples of columns for each operands
        possible = times > 0
        if possible.sum() <= n:
            batch = write_lines(task, level, operands[possible])
            weights = times[possible].double() / len(number)
            return EvalLines(batch, weights, len(weights), exact=True)

    both, times = torch.cat(batch, 1).unique(dim=0, return_counts=True)     # (N, 2T)
    batch = Batch(*both.chunk(2, dim=1))
    prompts = batch.tokens[:, :-answer_tokens(f"{task}-{level}")]
    distinct = len(prompts.unique(dim=0))
    return EvalLines(batch, times.double() / n, distinct, exact=False)


# --------------------------------------------------------------------------------------------------
# The way back: from tokens to the task-level that they are of

def level_names():
    """All task-levels of this file, shams last.  `level_and_place` numbers them in this order."""
    names = [f"{name}-{level}" for name in ALL_TASKS for level in LEVELS]
    return [*names, *(f"sham-{name}" for name in names)]


@functools.lru_cache(maxsize=None)
def prompt_shapes():
    """Prompts with every digit read as 0: what all lines of a task-level have in common.

    Returns (shapes (P, T) int64, -1 from the "=" on; answer tokens (P,)).
    Raises ValueError where two task-levels look alike."""
    names, shapes = level_names(), []
    lengths = [answer_tokens(name) for name in names]
    for name, length in zip(names, lengths):
        tokens = sample(*split_name(name), 1, seeded("cpu")).tokens[0, :-length - 1]
        shapes.append(torch.where(tokens < 10, 0, tokens))
    if len({tuple(shape.tolist()) for shape in shapes}) < len(names):
        raise ValueError("two task-levels have prompts of the same length and words: no model could"
                         " tell them apart")
    longest = max(len(shape) for shape in shapes)
    padded = [F.pad(shape, (0, longest - len(shape)), value=-1)
              for shape in shapes]
    return torch.stack(padded), torch.tensor(lengths)


def level_and_place(tokens):
    """Which task-level each line is of, and which place of its answer each token predicts.

    tokens: (N, T) int64, lines from their start; they may end early, or be padded.
    Returns (level, place), both (N, T) int64: an index of level_names(), and 0 where the first
    answer token is predicted, 1 for the second.  Both are -1 off the answer, and where a line is
    of no task-level.

    >>> level, place = level_and_place(sample("add", 2, 1, seeded("cpu")).tokens)
    >>> level_names()[level[0, 6]], place[0].tolist()
    ('add-2', [-1, -1, -1, -1, -1, -1, 0, 1, 2, -1])"""
    shapes, lengths = (x.to(tokens.device) for x in prompt_shapes())        # (P, T'), (P,)
    T = tokens.shape[1]
    after = (tokens == ID["="]).cumsum(1)                                   # 0 in the prompt
    shape = torch.where(tokens < 10, 0, tokens).masked_fill(after > 0, -1)  # (N, T)
    width = max(T, shapes.shape[1])
    shape, shapes = (F.pad(x, (0, width - x.shape[1]), value=-1) for x in (shape, shapes))
    same = (shape[:, None] == shapes).all(2)                                # (N, P)
    level = same.int().argmax(1)[:, None]                                   # (N, 1)
    place = (after > 0).cumsum(1) - 1                                       # (N, T)
    known = same.any(1)[:, None] & (after[:, -1:] > 0)
    inside = known & (place >= 0) & (place < lengths[level])
    return torch.where(inside, level, -1), torch.where(inside, place, -1)


# --------------------------------------------------------------------------------------------------
# Text: what a stream of language looks like beside the tasks (TrainConfig.filler)

@functools.lru_cache(maxsize=None)
def text(shuffled=False):
    """English prose that every Python installation carries: `help` of its topics, in lower case.

    Its characters have tokens of their own, from VOCAB_SIZE on.  shuffled: in an order that means
    nothing, as a control.
    Returns (tokens (S,) int64, the characters).  Another version of Python has another text."""
    from pydoc_data.topics import topics
    prose = " ".join(" ".join(topics.values()).lower().split())
    characters = "".join(sorted(set(prose)))
    number = {c: VOCAB_SIZE + i for i, c in enumerate(characters)}
    tokens = torch.tensor([number[c] for c in prose])
    if shuffled:
        tokens = tokens[torch.randperm(len(tokens), generator=seeded("cpu", "shuffled text"))]
    return tokens, characters


TEXT_LINE = 24                    # characters of a line of text


def sample_text(n, generator, shuffled=False) -> Batch:
    """n lines from anywhere in the text; every next character is asked for.

    shuffled: see `text`.
    Returns Batch(tokens, targets), both (n, TEXT_LINE) int64."""
    tokens, _ = text(shuffled)
    start = torch.randint(len(tokens) - TEXT_LINE, (n, 1), generator=generator,
                          device=generator.device)
    lines = tokens.to(generator.device)[start + torch.arange(TEXT_LINE, device=generator.device)]
    return Batch(lines, answer_targets(lines, TEXT_LINE - 1))


def answer_tokens(level_name) -> int:
    """How many tokens the answers of a task-level have.  They all have the same number.

    >>> answer_tokens("add-2")
    3"""
    line = sample(*split_name(level_name), 1, seeded("cpu"))
    return int((line.targets != IGNORE).sum())


# --------------------------------------------------------------------------------------------------
# Chance: what is right without a look at the operands

@functools.lru_cache(maxsize=None)
def answer_distribution(task, level):
    """How often each answer comes up: pairs (probability, number of answers that have it).

    All tuples of columns are gone through: every combination of the level's operand_ranges, made
    into operands by Task.operands (all_operands does both).  A few task-levels have more than
    LISTED of them.  For these the table has a closed form, Task.answers(size)[0].  A test compares
    the two where both can be had.  A sham has the table of its task.
    Returns a list, in any order; answers of one probability may stand in several of its pairs.
    count * probability adds up to 1.
    Exercise: tasks.answer_distribution (set 1, 10 points)
    Hint: torch.meshgrid of the columns; one integer per answer; unique(return_counts=True), twice.

    >>> round(sum(p * count for p, count in answer_distribution("multiply", 2)), 6)
    1.0"""
    spec, size, _ = _lookup(task, level)
    ranges = spec.operand_ranges[level - 1]
    if math.prod(ranges) > LISTED:
        return spec.answers(size)[0]
    columns = torch.meshgrid(*[torch.arange(values) for values in ranges], indexing="ij")
    columns = torch.stack([column.reshape(-1) for column in columns], 1)    # every tuple, once
    _, answer = spec.line(spec.operands(columns, size), size)               # (N, A)
    code = answer @ (VOCAB_SIZE ** torch.arange(answer.shape[1]))           # (N,) one integer each
    counts = code.unique(return_counts=True)[1]                             # per answer: how often
    values, multiplicity = counts.unique(return_counts=True)                # per count: how many
    return [(v / len(code), m) for v, m in zip(values.tolist(), multiplicity.tolist())]


def chance(task: str, level: int) -> float:
    """Exact-match accuracy of the best answer that ignores the operands, the most frequent one.

    >>> chance("parity", 1), chance("modadd", 1) == 1 / 7
    (0.5, True)"""
    return max(p for p, _ in answer_distribution(task, level))


def chance_log_prob(task, level):
    """Mean log-probability (nats) of the best guess that ignores the operands.

    That guess gives each answer its own frequency.  The value is minus the entropy of the answers.
    """
    return sum(count * p * math.log(p) for p, count in answer_distribution(task, level))


@functools.lru_cache(maxsize=None)
def answer_frequencies(task, level):
    """How often each token stands at each place of the answer, in the order of the line.

    Returns (A, V) float64; each row adds up to 1.  They are exact: all tuples of columns are gone
    through, or Task.answers has a closed form.  A sham has the frequencies of its task.

    >>> answer_frequencies("multiply", 2)[0, [0, 1]].tolist()       # the last digit of 12 * 7
    [0.27, 0.04]"""
    if task.startswith("sham-"):
        return answer_frequencies(task.removeprefix("sham-"), level)        # counted once
    spec, size, _ = _lookup(task, level)
    if not can_be_listed(task, level):
        return spec.answers(size)[1]
    _, answer = spec.line(all_operands(task, level), size)                  # (S, A)
    counts = [column.bincount(minlength=VOCAB_SIZE) for column in answer.unbind(1)]
    return torch.stack(counts).double() / len(answer)


# --------------------------------------------------------------------------------------------------
# Both in closed form, for levels with too many operands to go through
#
# Each function returns a pair: answer_distribution, and answer_frequencies of (A, V).

def frequencies(places):
    """A list for each place of the answer, with the shares of tokens 0, 1, 2 ... -> (A, V)."""
    table = torch.zeros(len(places), VOCAB_SIZE, dtype=torch.float64)
    for row, shares in zip(table, places):
        row[:len(shares)] = torch.tensor(shares, dtype=torch.float64)
    return table


def equally_likely(n):
    """n random digits, in whatever order: 10^n answers."""
    return [(10.0 ** -n, 10 ** n)], frequencies([[0.1] * 10] * n)


def one_digit(n):
    """A single random digit, however many there were to choose from."""
    return equally_likely(1)


def sorted_digits(n):
    """Each answer is a multiset of n digits.  It comes up in n! / (c_0! c_1! ... c_9!) orders,
    where c_i counts digit i."""
    found = Counter()
    places = [[0.0] * 10 for _ in range(n)]
    for multiset in combinations_with_replacement(range(10), n):            # in increasing order
        counts = Counter(multiset).values()
        orders = math.factorial(n) // math.prod(math.factorial(c) for c in counts)
        found[orders] += 1
        for place, digit in zip(places, multiset):
            place[digit] += orders / 10 ** n
    return [(orders / 10 ** n, count) for orders, count in found.items()], frequencies(places)


def largest_digit(n):
    """The largest of n digits is at most i if all of them are: P = ((i + 1) / 10)^n."""
    shares = [((i + 1) / 10) ** n - (i / 10) ** n for i in range(10)]
    return [(share, 1) for share in shares], frequencies([shares])


def three_signs(d):
    """A third of the numbers are equal.  Of the others, half are in either order."""
    shares = [0.0] * VOCAB_SIZE
    for sign in "<=>":
        shares[ID[sign]] = 1 / 3
    return [(1 / 3, 3)], frequencies([shares])


# --------------------------------------------------------------------------------------------------
# Reading

def decode(tokens: torch.Tensor) -> str:
    """One row (T,) of tokens as a line that a person can read.

    Numbers come out most significant digit first, without leading zeros, however they were
    written.  The digits of sequences are spaced.  Padding is dropped.  A free place of the
    vocabulary, which only a model can write, comes out as "?".

    >>> decode(sample("sort", 1, 1, torch.Generator().manual_seed(1)).tokens[0])
    'sort 5 9 4 = 4 5 9'"""
    words = [*VOCABULARY, *"?" * (PAD - len(VOCABULARY))]
    row = [words[t] for t in tokens.tolist() if t != PAD]
    task = next((ALL_TASKS[word] for word in row if word in ALL_TASKS), None)
    if task is None or not task.numbers:
        return " ".join(row)
    if task.backwards and "=" in row:
        answer = row.index("=") + 1
        row[answer:] = reversed(row[answer:])
    line = re.sub(r"(?<=\b\d) (?=\d\b)", "", " ".join(row))       # "0 7 , 1 2" -> "07 , 12"
    return re.sub(r" ,|\b0+(?=\d)", "", line)                     # "07 , 12" -> "7 12"


# --------------------------------------------------------------------------------------------------
# The tables

TASKS: dict[str, Task] = {        # the paper's
    "copy": Task(
        copy, sizes=(3, 5, 8), operand_ranges=((10,) * 3, (10,) * 5, (10,) * 8),
        about="repeat the digits", answers=equally_likely, family="paper", kind="sequence"),
    "reverse": Task(
        reverse, sizes=(3, 5, 8), operand_ranges=((10,) * 3, (10,) * 5, (10,) * 8),
        about="the digits from last to first", answers=equally_likely,
        family="paper", kind="sequence"),
    "compare": Task(
        compare, sizes=(1, 2, 3), operand_ranges=((3, 10, 9), (3, 100, 99), (3, 1000, 999)),
        about="which of two numbers is larger", words=(",", "=", "<", ">"), numbers=True,
        operands=a_third_equal, answers=three_signs, family="paper", kind="sign"),
    "parity": Task(
        parity, sizes=(3, 5, 6), operand_ranges=((2,) * 3, (2,) * 5, (2,) * 6),
        about="is the number of ones odd (1) or even (0)", family="paper", kind="bit"),
    "add": Task(
        add, sizes=(1, 2, 3), operand_ranges=((10, 10), (100, 100), (1000, 1000)),
        about="sum of two numbers", words=("+",), numbers=True, backwards=True, family="paper"),
    "modadd": Task(
        modadd, sizes=(7, 23, 97), operand_ranges=((7, 7), (23, 23), (97, 97)),
        about="sum modulo a prime", words=("+", "mod 7", "mod 23", "mod 97"), numbers=True,
        family="paper", kind="residue"),
    "sort": Task(
        sort, sizes=(3, 5, 8), operand_ranges=((10,) * 3, (10,) * 5, (10,) * 8),
        about="the digits in increasing order", answers=sorted_digits,
        family="paper", kind="sorted"),
    "multiply": Task(
        multiply, sizes=((1, 1), (2, 1), (2, 2)), operand_ranges=((10, 10), (100, 10), (100, 100)),
        about="product of two numbers", words=("*",), numbers=True, backwards=True, family="paper"),
}

MORE_TASKS: dict[str, Task] = {   # ours: a new row comes last, and needs a line function, no more
    "subtract": Task(
        subtract, sizes=(1, 2, 3), operand_ranges=((10, 10), (100, 100), (1000, 1000)),
        about="difference of two numbers, the larger one first", words=("-",), numbers=True,
        backwards=True, operands=larger_first, family="arithmetic"),
    "divide": Task(
        divide, sizes=(1, 2, 3), operand_ranges=((10, 9), (100, 9), (1000, 9)),
        about="quotient by one digit, without remainder", words=("/",), numbers=True,
        operands=divisor_not_zero, family="arithmetic"),
    "modsub": Task(
        modsub, sizes=(7, 11, 23), operand_ranges=((7, 7), (11, 11), (23, 23)),
        about="difference modulo a prime", words=("-", "mod 7", "mod 11", "mod 23"), numbers=True,
        family="arithmetic", kind="residue"),
    "modmul": Task(
        modmul, sizes=(5, 7, 11), operand_ranges=((5, 5), (7, 7), (11, 11)),
        about="product modulo a prime", words=("*", "mod 5", "mod 7", "mod 11"), numbers=True,
        family="arithmetic", kind="residue"),
    "moddiv": Task(
        moddiv, sizes=(5, 7, 11), operand_ranges=((5, 4), (7, 6), (11, 10)),
        about="quotient modulo a prime", words=("/", "mod 5", "mod 7", "mod 11"), numbers=True,
        operands=divisor_not_zero, family="arithmetic", kind="residue"),
    "modpoly": Task(
        modpoly, sizes=(5, 7, 11), operand_ranges=((5, 5), (7, 7), (11, 11)),
        about="a^2 + ab + b^2 modulo a prime", words=(",", "mod 5", "mod 7", "mod 11"),
        numbers=True, family="arithmetic", kind="residue"),
    "gcd": Task(
        gcd, sizes=((1, 1), (2, 1), (2, 2)), operand_ranges=((10, 9), (100, 9), (100, 99)),
        about="greatest common divisor", words=(",",), numbers=True, operands=divisor_not_zero,
        family="arithmetic", kind="divisor"),
    "increment": Task(
        increment, sizes=(2, 3, 5), operand_ranges=((100,), (1000,), (100_000,)),
        about="the number that follows", numbers=True, backwards=True, family="arithmetic"),
    "maximum": Task(
        maximum, sizes=(3, 5, 8), operand_ranges=((10,) * 3, (10,) * 5, (10,) * 8),
        about="the largest digit", answers=largest_digit, family="sequences", kind="digit"),
    "count": Task(
        count, sizes=(4, 5, 6), operand_ranges=((4,) * 4, (4,) * 5, (4,) * 6),
        about="how often the first digit stands in the rest", family="sequences"),
    "rotate": Task(
        rotate, sizes=(2, 3, 4), words=(",",),
        operand_ranges=((2, *(10,) * 2), (3, *(10,) * 3), (4, *(10,) * 4)),
        about="so many digits move from the front to the end", family="sequences", kind="sequence"),
    "interleave": Task(
        interleave, sizes=(4, 6, 8), operand_ranges=((10,) * 4, (10,) * 6, (10,) * 8),
        about="digits of two sequences in turn", words=(",",), answers=equally_likely,
        family="sequences", kind="sequence"),
    "majority": Task(
        majority, sizes=(5, 7, 9), operand_ranges=((2,) * 5, (2,) * 7, (2,) * 9),
        about="are there more ones (1) or more zeros (0)", family="sequences", kind="bit"),
    "xor": Task(
        xor, sizes=(2, 4, 6), operand_ranges=((2,) * 2, (2,) * 4, (2,) * 6),
        about="where two sequences of bits differ", words=(",",), family="sequences", kind="bit"),
    "recall": Task(
        recall, sizes=(3, 4, 5), words=(",",), operands=keys_and_values,
        operand_ranges=((*(10, 9, 8) * 2, 3), (*(10, 9, 8, 7) * 2, 4),
                        (*(10, 9, 8, 7, 6) * 2, 5)),
        about="the value that follows a key", answers=one_digit, family="sequences", kind="digit"),
    "permute": Task(
        permute, sizes=(2, 3, 4), words=(",",), operands=two_permutations,
        operand_ranges=((2, 1) * 2, (3, 2, 1) * 2, (4, 3, 2, 1) * 2),
        about="product of two permutations", family="sequences", kind="sequence"),
}

ALL_TASKS = {**TASKS, **MORE_TASKS}

# The families of MORE_TASKS: name -> its tasks.
FAMILIES: dict[str, tuple] = {}
for _name, _task in MORE_TASKS.items():
    FAMILIES[_task.family] = (*FAMILIES.get(_task.family, ()), _name)

# Negative controls.  Kinds of answer and levels are mixed, so that the first few already differ
# from one another.
KINDS = ("residue", "sorted", "bit", "number", "sign", "sequence", "digit", "divisor")


def shams_of(names):
    """The shams of a whole family, in the order in which they are taken.

    One task of each kind of answer comes first, then a second one of each, and so on.  The level
    goes up by one from sham to sham."""
    of_kind = {kind: [] for kind in KINDS}
    for name in names:
        of_kind.setdefault(ALL_TASKS[name].kind, []).append(name)
    rounds = zip_longest(*of_kind.values())
    mixed = [name for taken in rounds for name in taken if name is not None]
    return tuple(f"sham-{name}-{LEVELS[(i + shift) % 3]}"
                 for shift in (1, 2, 3) for i, name in enumerate(mixed))


def controls(names, count):
    """`count` shams for a sweep of these tasks, from their families in turn.

    Raises ValueError if these families do not have so many.

    >>> controls(["add", "xor"], 4)
    ('sham-modadd-2', 'sham-majority-2', 'sham-sort-3', 'sham-count-3')"""
    pools = {}                                              # the names of a family -> its shams
    for name in names:
        name = name.removeprefix("sham-")
        _lookup(name, 1)                                    # a wrong name is named there
        members = tuple(TASKS) if name in TASKS else FAMILIES[ALL_TASKS[name].family]
        pools[members] = shams_of(members)
    rounds = zip_longest(*pools.values())
    found = [sham for taken in rounds for sham in taken if sham is not None]
    if not 0 <= count <= len(found):
        raise ValueError(f"{count} controls: there are {len(found)} of them for these tasks")
    return tuple(found[:count])


# One vocabulary for all tasks.  A word's place in it is the word's row in the embedding of every
# model, so the order never changes.  What is new stands behind what was there: the words of
# these three tasks came first, and a row of MORE_TASKS appends its words and its name.
_WORDS = [word for name in ("add", "multiply", "modadd", *TASKS) for word in TASKS[name].words]
_WORDS = [*"0123456789", *_WORDS, "sham", *TASKS]
for _name, _task in MORE_TASKS.items():
    _WORDS += [*_task.words, _name]
VOCABULARY = tuple(dict.fromkeys(_WORDS))                   # the words in use
ID = {word: i for i, word in enumerate(VOCABULARY)} | {"pad": PAD}


def check_tables():
    """What a new row can get wrong, said when this file is imported."""
    if len(VOCABULARY) > PAD:
        raise ValueError(f"the tasks need {len(VOCABULARY)} words, and the vocabulary has room for"
                         f" {PAD}: use words that other tasks have, or raise VOCAB_SIZE")
    for name, task in ALL_TASKS.items():
        for level in LEVELS:
            if task.answers is None and not can_be_listed(name, level):
                raise ValueError(f"{name}-{level} has more than {LISTED:,} tuples of columns: take"
                                 " fewer, or give its row `answers`, its chance in closed form")


check_tables()
