"""Tasks: answers against arithmetic on the decoded line, chance against enumeration, splits, shams.
"""
import doctest
import math
import operator
import time
from collections import Counter

import pytest
import torch

import models
import tasks
from tasks import IGNORE, LEVELS, PAD, TASKS, VOCAB_SIZE, decode, sample

exercise = pytest.mark.exercise
ALL = [(task, level) for task in TASKS for level in LEVELS]


# --------------------------------------------------------------------------------------------------
# Lines and answers

def answer_by_hand(line):
    """"add 12 + 7 = 19" -> what must stand behind "=".

    It does arithmetic on words, and shares nothing with tasks.py.
    """
    task, rest = line.split(" ", 1)
    prompt = rest[:-4] if rest.endswith(" = =") else rest[:rest.rindex(" = ")]
    words = prompt.split()
    if task == "copy":
        return prompt
    if task == "reverse":
        return prompt[::-1]
    if task == "sort":
        return " ".join(sorted(words))
    if task == "parity":
        return "1" if words.count("1") in (1, 3, 5, 7) else "0"
    if task == "compare":
        a, b = map(int, words)
        return "<>="[(a > b) + 2 * (a == b)]
    a, sign, b = int(words[0]), words[1], int(words[2])
    value = {"+": operator.add, "*": operator.mul}[sign](a, b)
    if task == "modadd":
        assert words[3] == "mod"
        while value >= int(words[4]):
            value -= int(words[4])
    return str(value)


@pytest.mark.parametrize("task, level", ALL)
def test_answers_match_arithmetic_done_by_hand(task, level, generator):
    for row in sample(task, level, 500, generator).tokens:
        line = decode(row)
        assert line.startswith(task)
        expected = answer_by_hand(line)
        assert line.endswith(f" = {expected}"), f"{line}: expected {expected}"


@pytest.mark.parametrize("task", TASKS)
def test_lines_contain_digits_their_names_and_the_words_of_their_row(task, generator):
    found = set()
    for level in LEVELS:
        used = sample(task, level, 500, generator).tokens.unique()
        found |= {tasks.VOCABULARY[t] for t in used.tolist()}
    assert found - set("0123456789") - {"="} == {task, *TASKS[task].words} - {"="}


def test_the_vocabulary_keeps_its_order():
    """A word's place in it is a row of the embedding of every model that was ever saved."""
    signs = ["+", "*", "mod 7", "mod 23", "mod 97", ",", "=", "<", ">", "sham"]
    names = ["copy", "reverse", "compare", "parity", "add", "modadd", "sort", "multiply"]
    assert list(tasks.VOCABULARY) == [*"0123456789", *signs, *names, "pad"]
    assert VOCAB_SIZE == 29 and PAD == 28


@exercise(name="tasks.answer_targets")
@pytest.mark.parametrize("task, level", ALL + [("sham-add", 2), ("sham-sort", 1)])
def test_targets_are_the_next_tokens_and_only_the_answer(task, level, generator):
    tokens, targets = sample(task, level, 50, generator)
    assert tokens.shape == targets.shape and tokens.dtype == targets.dtype == torch.int64
    assert (tokens >= 0).all() and (tokens < VOCAB_SIZE).all() and (tokens != PAD).all()
    scored = targets != IGNORE
    assert torch.equal(targets[:, :-1][scored[:, :-1]], tokens[:, 1:][scored[:, :-1]])
    assert not scored[:, -1].any()
    for row, asked in zip(tokens.tolist(), scored.tolist()):
        first = row.index(tasks.ID["="])              # from the first "=" to the token before last
        assert asked == [first <= t < len(row) - 1 for t in range(len(row))]


@exercise(name="tasks.answer_targets")
@pytest.mark.parametrize("length", [1, 2, 4])
def test_answer_targets_of_known_lines(length):
    tokens = torch.arange(10, 22).view(2, 6)
    before = tokens.clone()
    targets = tasks.answer_targets(tokens, length)
    for row, last in zip(targets.tolist(), (15, 21)):
        answer = list(range(last - length + 1, last + 1))
        assert row == [IGNORE] * (5 - length) + answer + [IGNORE]
    assert targets.dtype == torch.int64
    assert torch.equal(tokens, before), "the line itself must stay as it is"


@pytest.mark.parametrize("words, expected", [
    (["copy", *"3141", "=", *"3141", "pad", "pad"], "copy 3 1 4 1 = 3 1 4 1"),
    (["reverse", *"031", "=", *"130"], "reverse 0 3 1 = 1 3 0"),
    (["compare", *"12", ",", *"07", "=", ">"], "compare 12 7 = >"),
    (["compare", *"07", ",", *"07", "=", "="], "compare 7 7 = ="),
    (["add", *"12", "+", *"07", "=", *"910"], "add 12 + 7 = 19"),
    (["add", *"00", "+", *"00", "=", *"000"], "add 0 + 0 = 0"),
    (["modadd", *"17", "+", *"19", "mod 23", "=", *"13"], "modadd 17 + 19 mod 23 = 13"),
    (["multiply", *"12", "*", *"07", "=", *"4800"], "multiply 12 * 7 = 84"),
    (["sham", "parity", *"101", "=", "1"], "sham parity 1 0 1 = 1"),
    (["add", *"12", "+", *"07"], "add 12 + 7"),
])
def test_decode_reads_like_the_design(words, expected):
    assert decode(torch.tensor([tasks.ID[word] for word in words])) == expected


def test_answer_tokens_counts_what_is_scored(generator):
    for task, level in ALL + [("sham-multiply", 3)]:
        targets = sample(task, level, 5, generator).targets
        expected = tasks.answer_tokens(f"{task}-{level}")
        assert (targets != IGNORE).sum(1).tolist() == [expected] * 5


# --------------------------------------------------------------------------------------------------
# Chance

def pairs_of(distribution):
    """{probability: number of answers}, whether or not equal probabilities were put together."""
    found = Counter()
    for p, count in distribution:
        found[round(p, 12)] += count
    return dict(found)


def frequencies(values):
    """The same from a list with the answer of every tuple of operands."""
    times = Counter(Counter(values).values())
    return {round(n / len(values), 12): m for n, m in times.items()}


@exercise(name="tasks.answer_distribution")
def test_answers_counted_by_hand():
    assert pairs_of(tasks.answer_distribution("modadd", 1)) == {round(1 / 7, 12): 7}
    assert pairs_of(tasks.answer_distribution("parity", 2)) == {0.5: 2}
    assert pairs_of(tasks.answer_distribution("compare", 1)) == {round(1 / 3, 12): 3}
    assert pairs_of(tasks.answer_distribution("copy", 1)) == {0.001: 1000}
    products = [a * b for a in range(100) for b in range(10)]
    assert pairs_of(tasks.answer_distribution("multiply", 2)) == frequencies(products)
    sums = [a + b for a in range(10) for b in range(10)]
    assert pairs_of(tasks.answer_distribution("add", 1)) == frequencies(sums)


@exercise(name="tasks.answer_distribution")
def test_answers_too_many_to_go_through():
    """10^8 tuples of operands: only the closed form of the table can answer within a test."""
    assert pairs_of(tasks.answer_distribution("copy", 3)) == {round(1e-8, 12): 10 ** 8}
    assert sum(p * n for p, n in tasks.answer_distribution("sort", 3)) == pytest.approx(1)


@pytest.mark.parametrize("task, level, expected", [
    ("copy", 1, 1e-3), ("reverse", 3, 1e-8), ("parity", 3, 1 / 2), ("modadd", 2, 1 / 23),
    ("compare", 1, 1 / 3), ("compare", 3, 1 / 3), ("sham-modadd", 3, 1 / 97),
    ("add", 1, 10 / 100), ("add", 2, 100 / 1e4), ("add", 3, 1000 / 1e6),    # 9...9 has 10^d ways
    ("multiply", 1, 19 / 100), ("multiply", 3, 199 / 1e4),                  # zero
    ("sort", 1, 6 / 1000), ("sort", 3, math.factorial(8) / 1e8),
])
def test_chance_in_closed_form(task, level, expected):
    assert tasks.chance(task, level) == pytest.approx(expected, rel=1e-12)


def entropy(pairs):
    return -sum(count * p * math.log(p) for p, count in pairs)


@pytest.mark.parametrize("task", ["copy", "reverse", "sort", "compare"])
@pytest.mark.parametrize("level", [1, 2])
def test_closed_form_of_the_answers_agrees_with_enumeration(task, level):
    closed = TASKS[task].answers(TASKS[task].sizes[level - 1])
    listed = tasks.answer_distribution(task, level)
    assert sum(count for _, count in closed) == sum(count for _, count in listed)
    assert max(p for p, _ in closed) == pytest.approx(max(p for p, _ in listed))
    assert entropy(closed) == pytest.approx(entropy(listed))
    assert tasks.chance_log_prob(task, level) == pytest.approx(-entropy(closed))


@pytest.mark.parametrize("task, level", [
    ("sort", 1), ("multiply", 2), ("modadd", 1), ("compare", 2), ("sham-add", 1)])
def test_chance_is_what_the_samples_show(task, level, generator):
    n = 40_000
    _, targets = sample(task, level, n, generator)
    answers = Counter(map(tuple, targets[:, targets[0] != IGNORE].tolist()))
    p = tasks.chance(task, level)
    share = answers.most_common(1)[0][1] / n
    assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))


def test_a_third_of_the_comparisons_are_equal(generator):
    for level in LEVELS:
        lines = [decode(row) for row in sample("compare", level, 6000, generator).tokens]
        signs = Counter(line[-1] for line in lines)
        assert all(abs(signs[sign] / 6000 - 1 / 3) < 0.03 for sign in "<=>"), signs


# --------------------------------------------------------------------------------------------------
# Shams, splits, seeds

def test_shams_have_the_same_lines_and_unrelated_answers(generator):
    n, right = 20_000, 0
    for row in sample("sham-modadd", 2, n, generator).tokens:
        line = decode(row).removeprefix("sham ")
        right += line.rsplit(" = ", 1)[1] == answer_by_hand(line)
    assert right / n == pytest.approx(1 / 23, abs=5 * math.sqrt(1 / 23 / n))


def test_there_is_a_control_for_every_task_level_and_the_first_eight_show_every_task():
    assert set(tasks.CONTROLS) == {f"sham-{task}-{level}" for task, level in ALL}
    assert len(tasks.CONTROLS) == 24
    first = [tasks.split_name(control)[0] for control in tasks.CONTROLS[:8]]
    assert {name.removeprefix("sham-") for name in first} == set(TASKS)


@pytest.mark.parametrize("task, level", [
    ("modadd", 1), ("modadd", 3), ("add", 2), ("compare", 2), ("parity", 3)])
def test_train_and_test_operands_are_disjoint_and_cover_everything(task, level, generator):
    def operands(split):
        tokens, targets = sample(task, level, 60_000, generator, split, 0.4)
        end = int((targets[0] != IGNORE).nonzero()[0]) + 1
        return set(map(tuple, tokens[:, :end].tolist()))

    train, test, everything = operands("train"), operands("test"), operands("all")
    assert not train & test
    if len(everything) < 5000:                        # few enough for 60,000 draws to find them all
        assert train | test == everything
    known = len(train | test)
    assert len(train) / known == pytest.approx(0.4, abs=3 * math.sqrt(0.24 / known) + 0.01)


def test_the_hash_is_even_and_blind_to_what_the_task_computes():
    x = torch.cartesian_prod(torch.arange(97), torch.arange(97))
    h = tasks.operand_hash(x)
    assert ((h >= 0) & (h < 1)).all() and len(h.unique()) == len(h)
    for values in (x[:, 0], x[:, 1], x.sum(1) % 97, x.sum(1) % 2):
        correlation = torch.corrcoef(torch.stack([h, values.double()]))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(len(h))


def test_batches_are_a_function_of_the_key():
    def draw(*key):
        return sample("sort", 2, 20, tasks.seeded("cpu", *key)).tokens

    assert torch.equal(draw("train", 0, 5), draw("train", 0, 5))
    assert not torch.equal(draw("train", 0, 5), draw("train", 1, 5))
    assert not torch.equal(draw("train", 0, 5), draw("train", 0, 6))


@pytest.mark.parametrize("task, level, distinct", [
    ("parity", 1, 8), ("modadd", 1, 49), ("sham-modadd", 1, 49), ("compare", 1, 100),
    ("add", 3, 200)])
def test_distinct_lines_are_distinct_where_they_can_be(task, level, distinct, generator):
    batch, count = tasks.distinct_lines(task, level, 200, generator)
    end = int((batch.targets[0] != IGNORE).nonzero()[0])
    prompts = list(map(tuple, batch.tokens[:, :end].tolist()))
    assert count == distinct == len(set(prompts)) and len(prompts) == 200
    times = Counter(prompts).values()
    assert max(times) - min(times) <= 1               # repeated evenly, in turn
    assert prompts == [prompts[i % count] for i in range(200)]


def test_distinct_lines_come_in_the_order_in_which_they_were_drawn():
    batch, count = tasks.distinct_lines("modadd", 1, 30, torch.Generator().manual_seed(4))
    drawn = sample("modadd", 1, 600, torch.Generator().manual_seed(4)).tokens.tolist()
    expected = list(dict.fromkeys(map(tuple, drawn)))[:30]
    assert count == 30 and list(map(tuple, batch.tokens.tolist())) == expected


@pytest.mark.parametrize("arguments, message", [
    (("subtract", 1, 3), "subtract"),
    (("add", 4, 3), "levels are 1, 2 and 3"),
    (("add", 1, 3, "validation"), "expected all, train or test"),
    (("add", 1, 3, "train", 1.5), "train_fraction 1.5"),
    (("add", 1, 3, "test", 1.0), "has no operands"),
    (("parity", 1, 3, "train", 1e-9), "has no operands"),
])
def test_bad_arguments_are_named(arguments, message, generator):
    task, level, n, *split = arguments
    with pytest.raises(ValueError, match=message):
        sample(task, level, n, generator, *split)


# --------------------------------------------------------------------------------------------------

def test_generation_is_far_faster_than_training():
    """A batch of the joint run, drawn and laid out, against one training step on it."""
    levels = tuple(f"{task}-{level}" for task, level in ALL)
    config = models.TrainConfig(levels=levels, per_level=10, steps=200, snapshots=3)
    data = models.TrainingData(config)
    start, steps = time.perf_counter(), 4 * data.BLOCK
    for step in range(steps):
        data(step)
    drawing = (time.perf_counter() - start) / steps

    snapshots = models.train(config)
    next(snapshots)
    begin = next(snapshots).step
    start = time.perf_counter()
    steps = next(snapshots).step - begin
    training = (time.perf_counter() - start) / steps
    print(f"drawing {1e3 * drawing:.2f} ms, training {1e3 * training:.1f} ms per step:"
          f" {training / drawing:.0f} to 1")
    assert drawing < training / 50


def test_examples_in_the_docstrings():
    assert doctest.testmod(tasks).failed == 0
