"""Eight small tasks, as lines of tokens that a transformer learns to complete.

A capability can only be seen to *emerge* if one can say, at every step of training, whether it is there.
So each task here has an exact answer, and an example counts only if every token of the answer is right:

    add 12 + 7 = 19            the model reads up to "=", and writes what follows, token by token

There are eight tasks (the table TASKS at the end of this file), each at three levels of difficulty: 24
*task-levels*, called "add-1" ... "add-3".  Billa 2026 (arXiv 2602.15997) names the eight tasks; their sizes are
not public, so the levels are ours, chosen so that a transformer of 405K parameters learns nearly all of them
within a few thousand steps of joint training.  What it took:

  - sums and products are written least significant digit first, so that each digit needs only carries that
    have been seen (most significant first, 3-digit addition does not emerge at this size); `decode` turns them round;
  - the modulus stands in the line, as one token, for mod 23 and mod 97 look alike otherwise;
  - a third of the comparisons are between equal numbers, or "=" would hardly ever be the answer.

A ninth kind stands outside the table: *sham* tasks ("sham-add").  Their lines look like the task's, but the
answers are shuffled within the batch, so nothing connects them with the operands, and nothing can be learned beyond
which answers are frequent.  Whatever a measure claims to see coming on a sham task is a false alarm.

What can go wrong: a task that looks learned and is not.  A coin answers parity half of the time, "0" is the right product in one of five cases of level 1;
so accuracy is read beside `chance`, and counts whole answers only.  And operands that were trained on may be known by heart: `split`.

This file makes data and says what chance is.  It trains nothing, and measures nothing.
Read more: Power et al. 2022 (arXiv 2201.02177), modular addition memorised and then generalised; Nogueira et al. 2021 (arXiv 2102.13019),
how the order of digits decides what a transformer can add.

Letters used for shapes:  N examples, T tokens of a line, K operands, A tokens of an answer.
"""
import functools
import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Callable, NamedTuple

import torch

# ---------------------------------------------------------------------------------------------------------------
# The vocabulary: one for all tasks.  A digit's token is the digit itself, which keeps the arithmetic below plain.
TASK_NAMES = ("copy", "reverse", "compare", "parity", "add", "modadd", "sort", "multiply")
MODULI = (7, 23, 97)
VOCABULARY = (*"0123456789", "+", "*", *(f"mod {p}" for p in MODULI), ",", "=", "<", ">", "sham", *TASK_NAMES, "pad")
VOCAB_SIZE = len(VOCABULARY)
ID = {word: i for i, word in enumerate(VOCABULARY)}
PAD = ID["pad"]
IGNORE = -100                                    # the target of a position that is not scored (torch's own default)
LEVELS = (1, 2, 3)


class Batch(NamedTuple):
    tokens: torch.Tensor     # (N, T) int64: the whole line, answer included
    targets: torch.Tensor    # (N, T) int64: targets[n, t] is the token after tokens[n, t]; IGNORE off the answer


def digits(x, width):
    """(N,) non-negative integers -> (N, width) decimal digits, most significant first.

    >>> digits(torch.tensor([7, 42]), 3).tolist()
    [[0, 0, 7], [0, 4, 2]]
    """
    powers = 10 ** torch.arange(width - 1, -1, -1, device=x.device)
    return x[:, None] // powers % 10


def words(n, device, *names):
    """The same few words in every row: (N, len(names))."""
    return torch.tensor([ID[name] for name in names], device=device).expand(n, -1)


# ---------------------------------------------------------------------------------------------------------------
# One function per task: operands (N, K) -> what stands between the task's name and "=", and the answer after it.
# `size` is what a level means for that task: a length, a number of digits, a modulus.

def copy(x, size):
    return x, x


def reverse(x, size):
    return x, x.flip(1)


def sort(x, size):
    return x, x.sort(dim=1).values


def parity(x, size):
    """Is the number of ones odd?  (N, size) bits."""
    return x, x.sum(1, keepdim=True) % 2


def compare(x, size):
    """Numbers of `size` digits."""
    a, b = x.unbind(1)
    sign = torch.where(a < b, ID["<"], torch.where(a > b, ID[">"], ID["="]))
    return torch.cat([digits(a, size), words(len(a), a.device, ","), digits(b, size)], 1), sign[:, None]


def a_third_equal(x, size):
    """Columns (kind, a, offset) -> operands (a, b): kind 0, a third of the draws, makes the two equal, or "=" would hardly
    ever be the answer; otherwise b is any number but a."""
    kind, a, offset = x.unbind(1)
    return torch.stack([a, torch.where(kind == 0, a, (a + 1 + offset) % 10 ** size)], 1)


def add(x, size):
    a, b = x.unbind(1)
    prompt = torch.cat([digits(a, size), words(len(a), a.device, "+"), digits(b, size)], 1)
    return prompt, digits(a + b, size + 1).flip(1)                          # least significant digit first


def modadd(x, size):
    a, b = x.unbind(1)
    width = len(str(size - 1))
    prompt = torch.cat([digits(a, width), words(len(a), a.device, "+"), digits(b, width),
                        words(len(a), a.device, f"mod {size}")], 1)
    return prompt, digits((a + b) % size, width)


def multiply(x, size):
    """`size` is a pair: the digits of either factor."""
    a, b = x.unbind(1)
    prompt = torch.cat([digits(a, size[0]), words(len(a), a.device, "*"), digits(b, size[1])], 1)
    return prompt, digits(a * b, sum(size)).flip(1)                         # least significant digit first


@dataclass(frozen=True)
class Task:
    """One row of the table TASKS.  Operands are drawn as independent columns, the k-th uniform over range(radices[k])."""
    line: Callable                               # (operands (N, K), size) -> prompt (N, ...), answer (N, A)
    sizes: tuple                                 # what levels 1, 2, 3 mean
    radices: Callable                            # size -> the K numbers of values that the columns take
    about: str                                   # one line for `run.py tasks`
    numbers: bool = True                         # operands are numbers, not sequences of digits
    backwards: bool = False                      # the answer is written least significant digit first
    operands: Callable = lambda columns, size: columns        # where the columns are not the operands themselves
    answers: Callable | None = None              # size -> [(probability, number of answers that have it)], where
                                                 # the operands are too many to go through


def _sequences(size):                            # every answer equally likely
    return [(10.0 ** -size, 10 ** size)]


def _sorted_sequences(size):                     # a multiset of digits comes up in size! / (counts!) orders
    orders = (math.factorial(size) // math.prod(math.factorial(c) for c in Counter(m).values())
              for m in combinations_with_replacement(range(10), size))
    return [(n / 10 ** size, count) for n, count in Counter(orders).items()]


TASKS = {
    "copy": Task(copy, (3, 5, 8), lambda n: (10,) * n, "repeat the digits", numbers=False, answers=_sequences),
    "reverse": Task(reverse, (3, 5, 8), lambda n: (10,) * n, "the digits from last to first", numbers=False,
                    answers=_sequences),
    "compare": Task(compare, (1, 2, 3), lambda d: (3, 10 ** d, 10 ** d - 1), "which of two numbers is larger",
                    operands=a_third_equal, answers=lambda d: [(1 / 3, 3)]),
    "parity": Task(parity, (3, 5, 6), lambda n: (2,) * n, "is the number of ones odd (1) or even (0)", numbers=False),
    "add": Task(add, (1, 2, 3), lambda d: (10 ** d, 10 ** d), "sum of two numbers", backwards=True),
    "modadd": Task(modadd, MODULI, lambda p: (p, p), "sum modulo a prime"),
    "sort": Task(sort, (3, 5, 8), lambda n: (10,) * n, "the digits in increasing order", numbers=False,
                 answers=_sorted_sequences),
    "multiply": Task(multiply, ((1, 1), (2, 1), (2, 2)), lambda d: (10 ** d[0], 10 ** d[1]),
                     "product of two numbers", backwards=True),
}

# Negative controls, in the order in which `--controls N` takes them: kinds of answer, and difficulties, mixed.
CONTROLS = tuple(f"sham-{task}-{level}" for shift in range(3)
                 for task, level in zip(("modadd", "sort", "parity", "add", "compare", "copy", "multiply", "reverse"),
                                        [LEVELS[(1 + i + shift) % 3] for i in range(8)]))


def split_name(level_name):
    """"sham-add-2" -> ("sham-add", 2): the two arguments that the functions below take.

    >>> split_name("sham-add-2")
    ('sham-add', 2)
    """
    task, _, level = level_name.rpartition("-")
    return task, int(level)


def _lookup(task, level):
    """-> (Task, size, is it a sham?).  Raises ValueError for a task or level that does not exist."""
    base = task.removeprefix("sham-")
    if base not in TASKS:
        raise ValueError(f"task {task!r} does not exist; the tasks are {', '.join(TASKS)}"
                         " (or sham-NAME, a negative control)")
    if level not in LEVELS:
        raise ValueError(f"level {level!r} of {task} does not exist; the levels are 1, 2 and 3")
    return TASKS[base], TASKS[base].sizes[level - 1], base != task


# ---------------------------------------------------------------------------------------------------------------
# Drawing examples

def operand_hash(x):
    """A fixed pseudo-random number in [0, 1) for each operand tuple: (N, K) int64 -> (N,) float64.

    It decides who may be trained on when only a fraction of the operands is (`--train-fraction`): a property of
    the tuple itself, the same for every seed and size.  The mixing is a multiplicative congruential step per column, xor-
    shifted, modulo 2^64 (int64 arithmetic wraps around).
    """
    h = torch.full_like(x[:, 0], 0x9E3779B97F4A7C1)
    for column in x.unbind(1):
        h = (h ^ (column + 1)) * 6364136223846793005
        h = h ^ ((h >> 29) & 0x7FFFFFFFF)                                   # & drops the copies of the sign bit
    return ((h >> 11) & (2 ** 53 - 1)).double() / 2 ** 53


def _draw(task, level, n, generator, split, train_fraction):
    """(N, K) operands of one side of the train / test split, by drawing until there are enough."""
    spec, size, _ = _lookup(task, level)
    radices = spec.radices(size)

    def operands(count):
        columns = [torch.randint(r, (count,), generator=generator, device=generator.device) for r in radices]
        return spec.operands(torch.stack(columns, 1), size)
    if split == "all" or (split == "train" and train_fraction == 1):
        return operands(n)
    share = train_fraction if split == "train" else 1 - train_fraction
    kept, have = [], 0
    for _ in range(100):                                                    # one or two rounds, unless the split is tiny
        x = operands(int(1.3 * n / max(share, 0.01)) + 32)
        x = x[(operand_hash(x) < train_fraction) == (split == "train")]
        kept, have = kept + [x], have + len(x)
        if have >= n:
            return torch.cat(kept)[:n]
    raise ValueError(f"train_fraction {train_fraction}: the {split} split of {task}-{level} has no operands"
                     f" (of {math.prod(radices)} in all); take a fraction nearer to one half")


def answer_targets(tokens, length):
    """What is asked of the model at each place of a line: the token that comes next, where that is part of the answer.
        targets[n, t] = tokens[n, t + 1]  at the `length` places t that come right before an answer token,  else IGNORE
    tokens: (N, T) int64, whole lines, whose last `length` tokens are the answer.  Returns (N, T) int64; tokens stay as they are.
    Exercise: tasks.answer_targets (set 1, 5 points)
    Hint: the answer's first token is due at "=", one place before its own; at the last place nothing is due.

    >>> answer_targets(torch.tensor([[24, 1, 2, 16, 7, 8]]), 2).tolist()
    [[-100, -100, -100, 7, 8, -100]]
    """
    targets = torch.full_like(tokens, IGNORE)
    targets[:, tokens.shape[1] - length - 1:-1] = tokens[:, tokens.shape[1] - length:]
    return targets


def sample(task, level, n, generator, split="all", train_fraction=1.0):
    """Draw n examples of one task-level.

    task: a name in TASKS, or "sham-" and such a name; level: 1, 2 or 3; generator: a torch.Generator, on whose device
    the batch is made.  split "train" or "test": only operand tuples whose hash lies below `train_fraction`, or not below.
    Returns Batch(tokens, targets), both (n, T) int64: within a task-level all lines are equally long.
    Raises ValueError for a wrong name, level, split or fraction, and for a split that is empty.

    >>> batch = sample("add", 2, 1, torch.Generator().manual_seed(0))
    >>> decode(batch.tokens[0]), batch.targets[0].tolist()
    ('add 44 + 39 = 83', [-100, -100, -100, -100, -100, -100, 3, 8, 0, -100])
    """
    spec, size, sham = _lookup(task, level)
    if split not in ("all", "train", "test"):
        raise ValueError(f"split {split!r}: expected all, train or test")
    if not 0 < train_fraction <= 1:
        raise ValueError(f"train_fraction {train_fraction}: expected a number above 0 and at most 1")
    prompt, answer = spec.line(_draw(task, level, n, generator, split, train_fraction), size)
    if sham:                                                                # the same answers, in random order
        answer = answer[torch.randperm(n, generator=generator, device=answer.device)]
    device = prompt.device
    tokens = torch.cat([words(n, device, *task.split("-")), prompt, words(n, device, "="), answer], 1)      # (N, T)
    return Batch(tokens, answer_targets(tokens, answer.shape[1]))


def seeded(device, *key):
    """A generator that depends on nothing but `key`: the training data are a function of (seed, step), not of how
    often some generator was called before, so a resumed run sees the batches that an uninterrupted one sees."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def probe_set(task, level, n, generator):
    """n examples that are distinct where the operand space allows, else all of them, repeated in turn.

    Returns (Batch, number of distinct ones): that number caps any effective rank measured on the batch.
    """
    pool = sample(task, level, 20 * n, generator)
    prompt = (pool.targets[0] == IGNORE).nonzero()[:-1, 0]                  # distinct inputs: a sham's answers vary
    _, group = pool.tokens[:, prompt].unique(dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(group), device=group.device)
    first.scatter_reduce_(0, group, torch.arange(len(group), device=group.device), "amin")
    rows = first.sort().values[:n]                                          # in order of first appearance: a fair draw
    index = rows.repeat(-(-n // len(rows)))[:n]
    return Batch(pool.tokens[index], pool.targets[index]), len(rows)


# ---------------------------------------------------------------------------------------------------------------
# Chance

@functools.lru_cache(maxsize=None)
def answer_distribution(task, level):
    """How often each answer comes up, as pairs (probability, number of answers that have this probability).

    By going through every operand tuple (the columns that `_draw` draws, made into operands by `Task.operands`); for the few task-levels
    with more than 2 million of them, by the closed form in the table, `Task.answers` (a test compares the two where both can be had).
    Returns a list, in any order; count * probability adds up to 1.
    Exercise: tasks.answer_distribution (set 1, 10 points)
    Hint: torch.meshgrid of the columns; then one integer for each answer, and unique(return_counts=True), twice.

    >>> round(sum(p * count for p, count in answer_distribution("multiply", 2)), 6)
    1.0
    """
    spec, size, _ = _lookup(task, level)
    radices = spec.radices(size)
    if math.prod(radices) > 2_000_000:
        return spec.answers(size)
    columns = torch.meshgrid(*[torch.arange(r) for r in radices], indexing="ij")
    _, answer = spec.line(spec.operands(torch.stack([c.reshape(-1) for c in columns], 1), size), size)
    code = answer @ (VOCAB_SIZE ** torch.arange(answer.shape[1]))           # one integer per answer
    counts = code.unique(return_counts=True)[1]
    values, multiplicity = counts.unique(return_counts=True)
    return [(v / len(code), m) for v, m in zip(values.tolist(), multiplicity.tolist())]


def chance(task, level):
    """Exact-match accuracy of the best answer that ignores the operands: the frequency of the most frequent answer.

    >>> chance("parity", 1), chance("modadd", 1) == 1 / 7
    (0.5, True)
    """
    return max(p for p, _ in answer_distribution(task, level))


def chance_log_prob(task, level):
    """Mean log-probability (nats) of the best guess that ignores the operands: minus the entropy of the answers."""
    return sum(count * p * math.log(p) for p, count in answer_distribution(task, level))


# ---------------------------------------------------------------------------------------------------------------
# Reading

def decode(tokens):
    """One row (T,) of tokens -> a line that a person can read.  Numbers come out most significant digit first, however
    they were written, without leading zeros; the digits of sequences are spaced.  Padding is dropped.

    >>> decode(sample("sort", 1, 1, torch.Generator().manual_seed(1)).tokens[0])
    'sort 5 9 4 = 4 5 9'
    """
    row = [VOCABULARY[t] for t in tokens if t != PAD]
    task = next((TASKS[word] for word in row if word in TASKS), None)
    if task is None or not task.numbers:
        return " ".join(row)
    sides, out = [[]], []
    for word in row:                                                        # split at "=": prompt, answer
        sides.append([]) if word == "=" and len(sides) == 1 else sides[-1].append(word)
    for side, backwards in zip(sides, (False, task.backwards)):
        line, number = [], ""
        for word in [*side, ""]:                                            # runs of digits are numbers
            if word.isdigit():
                number = word + number if backwards else number + word
                continue
            line, number = line + ([str(int(number))] if number else []), ""
            line += [word] if word not in (",", "") else []
        out.append(" ".join(line))
    return " = ".join(out)
