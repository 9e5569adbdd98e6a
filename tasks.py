"""Chapter 1: tasks.  Eight small tasks, written as lines of tokens that a transformer completes.

A capability can only be seen to *emerge* if we can say, at every step of training, whether it is
there.  So each task here has an exact answer.  An answer counts only if every token of it is right:

    add 12 + 7 = 19            the model reads up to "=", then writes what follows, token by token

The table TASKS stands at the end of this file.  Each of its eight tasks has three levels of
difficulty.  That makes 24 *task-levels*, from "copy-1" to "multiply-3".  They are chosen so that
a transformer of 405 thousand parameters learns nearly all of them, trained on all of them at
once for a few thousand steps.  Three decisions made that possible:

  - Sums and products are written with the least significant digit first.  Then every digit needs
    only carries that have been seen.  Written the usual way, the sum of two 3-digit numbers does
    not emerge at this size.  `decode` turns the digits round for the reader.
  - The modulus stands in the line, as one token.  Otherwise mod 23 and mod 97 would look alike.
  - A third of the comparisons are between equal numbers.  Otherwise "=" would hardly ever be right.

*Sham* tasks are the negative controls.  A line of "sham-add" looks like a line of "add", but the
answers are shuffled within the batch.  Nothing connects them with the operands.  All that can be
learned is which answers are frequent.  If a measure sees a sham task coming, it is a false alarm.

What can go wrong: a task looks learned and is not.  A coin answers parity half of the time, and
"0" is the right product in one of five cases of multiply-1.  So accuracy is read beside `chance`.
Operands that were trained on may be known by heart.  So `sample` can keep some of them apart.

This file draws examples and says what chance is.  It trains nothing, measures nothing, and knows
no model.
Source: Billa 2026 (arXiv 2602.15997) names the eight tasks.
Differs from the paper: its sizes are not public, so the levels are ours.
Read more: Power et al. 2022 (arXiv 2201.02177), modular addition, memorised and then generalised;
Nogueira et al. 2021 (arXiv 2102.13019), the order of digits decides what a transformer can add.

Letters for shapes:  N examples, T tokens of a line, K operands, A tokens of an answer.
"""
import functools
import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Callable, NamedTuple

import torch

LEVELS = (1, 2, 3)
IGNORE = -100                     # the target of a place that is not scored; torch's own default


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
    [[0, 0, 7], [0, 4, 2]]
    """
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
    ([tensor([[1, 2]]), '+', tensor([[0, 7]])], tensor([[9, 1, 0]]))
    """
    a, b = x.unbind(1)                                      # (N,) each
    return [digits(a, d), "+", digits(b, d)], digits(a + b, d + 1).flip(1)


def multiply(x, lengths):
    """lengths: a pair, the digits of the first and of the second factor."""
    a, b = x.unbind(1)
    d, e = lengths
    return [digits(a, d), "*", digits(b, e)], digits(a * b, d + e).flip(1)


def modadd(x, p):
    a, b = x.unbind(1)
    d = len(str(p - 1))                                     # the digits of the largest residue
    return [digits(a, d), "+", digits(b, d), f"mod {p}"], digits((a + b) % p, d)


def compare(x, d):
    a, b = x.unbind(1)
    sign = torch.full_like(a, ID["="])
    sign[a < b] = ID["<"]
    sign[a > b] = ID[">"]
    return [digits(a, d), ",", digits(b, d)], sign[:, None]


# --------------------------------------------------------------------------------------------------
# A task is one row of the table

def as_drawn(columns, size):
    """The operands of nearly every task are the columns of numbers that were drawn."""
    return columns


@dataclass(frozen=True)
class Task:
    """One row of TASKS."""
    line: Callable                # (operands (N, K), size) -> pieces of the prompt, answer (N, A)
    sizes: tuple                  # what levels 1, 2 and 3 mean for `line`
    operand_ranges: tuple         # of each level: r_1 ... r_K; column k is drawn from 0 ... r_k - 1
    about: str                    # one line for `run.py tasks`
    words: tuple = ()             # what its lines contain besides digits and its name
    numbers: bool = False         # the operands are numbers, not sequences of digits
    backwards: bool = False       # the answer is written least significant digit first
    operands: Callable = as_drawn             # (columns, size) -> operands (N, K)
    answers: Callable | None = None           # size -> answer_distribution in closed form, for
                                              # levels with too many operands to count


def a_third_equal(columns, d):
    """The operands (a, b) of compare: equal in a third of all draws, different in the others.

    columns: (N, 3): kind, a and offset.  kind is 0, 1 or 2, and 0 makes the numbers equal.
    Otherwise b is found by counting on from a, 1 + offset steps.  After 9...9 comes 0.
    """
    kind, a, offset = columns.unbind(1)
    other = (a + 1 + offset) % 10 ** d                      # each number but a is equally likely
    b = torch.where(kind == 0, a, other)
    return torch.stack([a, b], 1)


def split_name(level_name):
    """The two arguments that the functions below take, from the name of a task-level.

    >>> split_name("sham-add-2")
    ('sham-add', 2)
    """
    task, _, level = level_name.rpartition("-")
    return task, int(level)


def _lookup(task, level):
    """-> (Task, size, is it a sham?).  Raises ValueError for a wrong name or level."""
    base = task.removeprefix("sham-")
    if base not in TASKS:
        raise ValueError(f"task {task!r} does not exist; the tasks are {', '.join(TASKS)}"
                         " (or sham-NAME, a negative control)")
    if level not in LEVELS:
        raise ValueError(f"level {level!r} of {task} does not exist; the levels are 1, 2 and 3")
    return TASKS[base], TASKS[base].sizes[level - 1], base != task


# --------------------------------------------------------------------------------------------------
# Drawing examples

def seeded(device, *key):
    """A generator whose numbers depend on `key` alone, not on what was drawn before.

    So the training data are a function of (seed, step), and a resumed run sees the batches that
    an uninterrupted run sees.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def draw_operands(task, level, n, generator):
    """(n, K) int64: the columns one after another, each uniform on its range."""
    spec, size, _ = _lookup(task, level)
    columns = []
    for values in spec.operand_ranges[level - 1]:
        column = torch.randint(values, (n,), generator=generator, device=generator.device)
        columns.append(column)
    return spec.operands(torch.stack(columns, 1), size)


def operand_hash(x):
    """One number in [0, 1) for each tuple of operands, fixed, and as good as random.

    x: (N, K) int64.  Returns (N,) float64.  A tuple is trained on if its number lies below
    `train_fraction`.  That is a property of the tuple itself: every seed and every size of model
    trains on the same ones.

    The state h is 64 bits, and int64 arithmetic wraps around.  Each operand is mixed in by an
    exclusive or.  The product carries every bit upwards, and the shift brings high bits down
    again, so neighbours like (3, 4) and (3, 5) end up far apart.  The two constants are the usual
    ones (golden ratio; Knuth's MMIX generator).  Any large number does for the first, and any
    large odd number for the second.
    """
    h = torch.full_like(x[:, 0], 0x9E3779B97F4A7C1)
    for column in x.unbind(1):
        h = (h ^ (column + 1)) * 6364136223846793005
        h = h ^ ((h >> 29) & (2 ** 35 - 1))                 # & removes the copies of the sign bit
    return ((h >> 11) & (2 ** 53 - 1)).double() / 2 ** 53   # the upper 53 bits, as a fraction


def draw_split(task, level, n, generator, split, train_fraction):
    """(n, K) operands from one side of the train / test split: drawn until there are enough.

    Raises ValueError if that side has no operands.
    """
    if split == "all" or (split == "train" and train_fraction == 1):
        return draw_operands(task, level, n, generator)

    share = train_fraction if split == "train" else 1 - train_fraction
    count = int(1.3 * n / max(share, 0.01)) + 32            # nearly always enough at the first try
    kept = []
    for _ in range(100):
        x = draw_operands(task, level, count, generator)
        in_train = operand_hash(x) < train_fraction
        kept.append(x[in_train == (split == "train")])
        if sum(len(part) for part in kept) >= n:
            return torch.cat(kept)[:n]
    ranges = _lookup(task, level)[0].operand_ranges[level - 1]
    raise ValueError(f"train_fraction {train_fraction}: the {split} split of {task}-{level} has no"
                     f" operands (of {math.prod(ranges)} in all); take a fraction nearer to one"
                     " half")


def answer_targets(tokens, length):
    """What is asked of the model at each place: the next token, if it is part of the answer.
        targets[n, t] = tokens[n, t + 1]  at the places right before an answer token,  else IGNORE
    tokens: (N, T) int64, whole lines.  The answer is their last `length` tokens.
    Returns (N, T) int64.  tokens stay as they are.
    Exercise: tasks.answer_targets (set 1, 5 points)
    Hint: "=" stands right before the answer's first token; the last place has no next token.

    >>> answer_targets(torch.tensor([[24, 1, 2, 16, 7, 8]]), 2).tolist()
    [[-100, -100, -100, 7, 8, -100]]
    """
    T = tokens.shape[1]
    targets = torch.full_like(tokens, IGNORE)
    targets[:, T - length - 1:-1] = tokens[:, T - length:]
    return targets


def sample(task: str, level: int, n: int, generator: torch.Generator, split: str = "all",
           train_fraction: float = 1.0) -> Batch:
    """Draw n examples of one task-level.

    task: a name in TASKS, or "sham-" and such a name.  level: 1, 2 or 3.  The batch is made on the
    device of `generator`.  split "train": only operands whose hash lies below train_fraction;
    "test": only the others; "all": no matter.
    Returns Batch(tokens, targets), both (n, T) int64.
    Raises ValueError for a wrong name, level, split or fraction, and for a split that is empty.

    >>> batch = sample("add", 2, 1, torch.Generator().manual_seed(0))
    >>> decode(batch.tokens[0]), batch.targets[0].tolist()
    ('add 44 + 39 = 83', [-100, -100, -100, -100, -100, -100, 3, 8, 0, -100])
    """
    spec, size, sham = _lookup(task, level)
    if split not in ("all", "train", "test"):
        raise ValueError(f"split {split!r}: expected all, train or test")
    if not 0 < train_fraction <= 1:
        raise ValueError(f"train_fraction {train_fraction}: expected a number above 0 and"
                         " at most 1")

    operands = draw_split(task, level, n, generator, split, train_fraction)
    prompt, answer = spec.line(operands, size)
    if sham:                                                # the same answers, in random order
        answer = answer[torch.randperm(n, generator=generator, device=answer.device)]

    columns = []
    for piece in [*task.split("-"), *prompt, "=", answer]:
        if isinstance(piece, str):
            piece = torch.full((n, 1), ID[piece], device=answer.device)
        columns.append(piece)
    tokens = torch.cat(columns, 1)                          # (n, T)
    return Batch(tokens, answer_targets(tokens, answer.shape[1]))


def distinct_lines(task, level, n, generator):
    """n examples with different prompts; where fewer exist, all of these, repeated in turn.

    Returns (Batch, number of different prompts).  That number is a ceiling for any effective rank
    that is measured on the batch.
    """
    pool = sample(task, level, 20 * n, generator)
    end = int((pool.targets[0] != IGNORE).nonzero()[0]) + 1 # right behind "="
    prompts = pool.tokens[:, :end].tolist()                 # no answers: a sham's vary
    first = {}                    # prompt -> the first row that has it, in the order of the draws
    for row, prompt in enumerate(prompts):
        first.setdefault(tuple(prompt), row)
    rows = list(first.values())[:n]
    index = torch.tensor(rows * math.ceil(n / len(rows)), device=pool.tokens.device)[:n]
    return Batch(pool.tokens[index], pool.targets[index]), len(rows)


def answer_tokens(level_name) -> int:
    """How many tokens the answers of a task-level have.  They all have the same number.

    >>> answer_tokens("add-2")
    3
    """
    line = sample(*split_name(level_name), 1, seeded("cpu"))
    return int((line.targets != IGNORE).sum())


# --------------------------------------------------------------------------------------------------
# Chance: what is right without a look at the operands

@functools.lru_cache(maxsize=None)
def answer_distribution(task, level):
    """How often each answer comes up: pairs (probability, number of answers that have it).

    All tuples of columns are gone through: every combination of the level's operand_ranges, made
    into operands by Task.operands.  A few task-levels have more than 2 million of them.  For these
    the table has a closed form, Task.answers.  A test compares the two where both can be had.
    Returns a list, in any order.  count * probability adds up to 1.
    Exercise: tasks.answer_distribution (set 1, 10 points)
    Hint: torch.meshgrid of the columns; one integer per answer; unique(return_counts=True), twice.

    >>> round(sum(p * count for p, count in answer_distribution("multiply", 2)), 6)
    1.0
    """
    spec, size, _ = _lookup(task, level)
    ranges = spec.operand_ranges[level - 1]
    if math.prod(ranges) > 2_000_000:
        return spec.answers(size)
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
    (0.5, True)
    """
    return max(p for p, _ in answer_distribution(task, level))


def chance_log_prob(task, level):
    """Mean log-probability (nats) of the best guess that ignores the operands.

    That guess gives each answer its own frequency.  The value is minus the entropy of the answers.
    """
    return sum(count * p * math.log(p) for p, count in answer_distribution(task, level))


def equally_likely(n):
    """n random digits, copied or reversed: 10^n answers."""
    return [(10.0 ** -n, 10 ** n)]


def sorted_digits(n):
    """Each answer is a multiset of n digits.  It comes up in n! / (c_0! c_1! ... c_9!) orders,
    where c_i counts digit i."""
    found = Counter()
    for multiset in combinations_with_replacement(range(10), n):
        counts = Counter(multiset).values()
        orders = math.factorial(n) // math.prod(math.factorial(c) for c in counts)
        found[orders] += 1
    return [(orders / 10 ** n, count) for orders, count in found.items()]


def three_signs(d):
    """A third of the numbers are equal.  Of the others, half are in either order."""
    return [(1 / 3, 3)]


# --------------------------------------------------------------------------------------------------
# Reading

def decode(tokens: torch.Tensor) -> str:
    """One row (T,) of tokens as a line that a person can read.

    Numbers come out most significant digit first, without leading zeros, however they were
    written.  The digits of sequences are spaced.  Padding is dropped.

    >>> decode(sample("sort", 1, 1, torch.Generator().manual_seed(1)).tokens[0])
    'sort 5 9 4 = 4 5 9'
    """
    row = [VOCABULARY[t] for t in tokens if t != PAD]
    task = next((TASKS[word] for word in row if word in TASKS), None)
    if task is None or not task.numbers:
        return " ".join(row)
    if task.backwards and "=" in row:
        answer = row.index("=") + 1
        row[answer:] = reversed(row[answer:])
    line = re.sub(r"(?<=\b\d) (?=\d\b)", "", " ".join(row))       # "0 7 , 1 2" -> "07 , 12"
    return re.sub(r" ,|\b0+(?=\d)", "", line)                     # "07 , 12" -> "7 12"


# --------------------------------------------------------------------------------------------------
# The tables

TASKS: dict[str, Task] = {
    "copy": Task(
        copy, sizes=(3, 5, 8), operand_ranges=((10,) * 3, (10,) * 5, (10,) * 8),
        about="repeat the digits", answers=equally_likely),
    "reverse": Task(
        reverse, sizes=(3, 5, 8), operand_ranges=((10,) * 3, (10,) * 5, (10,) * 8),
        about="the digits from last to first", answers=equally_likely),
    "compare": Task(
        compare, sizes=(1, 2, 3), operand_ranges=((3, 10, 9), (3, 100, 99), (3, 1000, 999)),
        about="which of two numbers is larger", words=(",", "=", "<", ">"), numbers=True,
        operands=a_third_equal, answers=three_signs),
    "parity": Task(
        parity, sizes=(3, 5, 6), operand_ranges=((2,) * 3, (2,) * 5, (2,) * 6),
        about="is the number of ones odd (1) or even (0)"),
    "add": Task(
        add, sizes=(1, 2, 3), operand_ranges=((10, 10), (100, 100), (1000, 1000)),
        about="sum of two numbers", words=("+",), numbers=True, backwards=True),
    "modadd": Task(
        modadd, sizes=(7, 23, 97), operand_ranges=((7, 7), (23, 23), (97, 97)),
        about="sum modulo a prime", words=("+", "mod 7", "mod 23", "mod 97"), numbers=True),
    "sort": Task(
        sort, sizes=(3, 5, 8), operand_ranges=((10,) * 3, (10,) * 5, (10,) * 8),
        about="the digits in increasing order", answers=sorted_digits),
    "multiply": Task(
        multiply, sizes=((1, 1), (2, 1), (2, 2)), operand_ranges=((10, 10), (100, 10), (100, 100)),
        about="product of two numbers", words=("*",), numbers=True, backwards=True),
}

# Negative controls, in the order in which `--controls N` takes them.  Kinds of answer and levels
# are mixed, so that the first few already differ from one another.
_MIXED = ("modadd", "sort", "parity", "add", "compare", "copy", "multiply", "reverse")
CONTROLS = tuple(f"sham-{task}-{LEVELS[(i + shift) % 3]}"
                 for shift in (1, 2, 3) for i, task in enumerate(_MIXED))

# One vocabulary for all tasks.  A word's place in it is the word's row in the embedding of every
# model, so the order never changes: the words of these three tasks come first.
_WORDS = [word for name in ("add", "multiply", "modadd", *TASKS) for word in TASKS[name].words]
VOCABULARY = tuple(dict.fromkeys([*"0123456789", *_WORDS, "sham", *TASKS, "pad"]))
VOCAB_SIZE = len(VOCABULARY)
ID = {word: i for i, word in enumerate(VOCABULARY)}
PAD = ID["pad"]                   # fills the places of a row where no line stands
