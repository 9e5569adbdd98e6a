"""Tasks: every answer against arithmetic on the decoded line, chance against enumeration, splits, shams, speed."""
import doctest
import math
import operator
import time
from collections import Counter

import pytest
import torch

import tasks
from tasks import IGNORE, LEVELS, PAD, TASKS, VOCAB_SIZE, decode, sample

exercise = pytest.mark.exercise
ALL = [(task, level) for task in TASKS for level in LEVELS]


def answer_by_hand(line):
    """"add 12 + 7 = 19" -> what ought to stand behind "=": arithmetic on words, sharing nothing with tasks.py."""
    task, rest = line.split(" ", 1)
    prompt = rest[:rest.rindex(" = ")] if not rest.endswith("= =") else rest[:-4]
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


@exercise(name="tasks.answer_targets")
@pytest.mark.parametrize("task, level", ALL + [("sham-add", 2), ("sham-sort", 1)])
def test_targets_are_the_next_tokens_and_only_the_answer(task, level, generator):
    tokens, targets = sample(task, level, 50, generator)
    assert tokens.shape == targets.shape and tokens.dtype == targets.dtype == torch.int64
    assert (tokens >= 0).all() and (tokens < VOCAB_SIZE).all() and (tokens != PAD).all()
    scored = targets != IGNORE
    assert torch.equal(targets[:, :-1][scored[:, :-1]], tokens[:, 1:][scored[:, :-1]])
    assert not scored[:, -1].any()
    equals = [[i for i, t in enumerate(row.tolist()) if t == tasks.ID["="]][0] for row in tokens]
    for row, first in zip(scored.tolist(), equals):                    # from the first "=" to the token before the last
        assert row == [first <= i < len(row) - 1 for i in range(len(row))]


@exercise(name="tasks.answer_targets")
@pytest.mark.parametrize("length", [1, 2, 4])
def test_answer_targets_of_known_lines(length):
    tokens = torch.arange(10, 22).view(2, 6)
    before = tokens.clone()
    targets = tasks.answer_targets(tokens, length)
    expected = [[IGNORE] * (5 - length) + list(range(last - length + 1, last + 1)) + [IGNORE] for last in (15, 21)]
    assert targets.tolist() == expected and targets.dtype == torch.int64
    assert torch.equal(tokens, before), "the line itself must stay as it is"


def test_decode_reads_like_the_design():
    def line(text):
        return torch.tensor([tasks.ID[w] for w in text])
    assert decode(line(["copy", *"3141", "=", *"3141", "pad", "pad"])) == "copy 3 1 4 1 = 3 1 4 1"
    assert decode(line(["compare", *"12", ",", *"07", "=", ">"])) == "compare 12 7 = >"
    assert decode(line(["compare", *"07", ",", *"07", "=", "="])) == "compare 7 7 = ="
    assert decode(line(["add", *"12", "+", *"07", "=", *"910"])) == "add 12 + 7 = 19"
    assert decode(line(["modadd", *"17", "+", *"19", "mod 23", "=", *"13"])) == "modadd 17 + 19 mod 23 = 13"
    assert decode(line(["multiply", *"12", "*", *"07", "=", *"4800"])) == "multiply 12 * 7 = 84"
    assert decode(line(["sham", "parity", *"101", "=", "1"])) == "sham parity 1 0 1 = 1"


def pairs_of(distribution):
    """{probability: number of answers}, whether or not equal probabilities were put together."""
    found = Counter()
    for p, count in distribution:
        found[round(p, 12)] += count
    return dict(found)


@exercise(name="tasks.answer_distribution")
def test_answers_counted_by_hand():
    assert pairs_of(tasks.answer_distribution("modadd", 1)) == {round(1 / 7, 12): 7}
    assert pairs_of(tasks.answer_distribution("parity", 2)) == {0.5: 2}
    assert pairs_of(tasks.answer_distribution("compare", 1)) == {round(1 / 3, 12): 3}
    assert pairs_of(tasks.answer_distribution("copy", 1)) == {0.001: 1000}
    products = Counter(a * b for a in range(100) for b in range(10))            # 1,000 pairs of factors
    assert pairs_of(tasks.answer_distribution("multiply", 2)) == {round(n / 1000, 12): m for n, m in Counter(products.values()).items()}
    sums = Counter(a + b for a in range(10) for b in range(10))
    assert pairs_of(tasks.answer_distribution("add", 1)) == {round(n / 100, 12): m for n, m in Counter(sums.values()).items()}


@exercise(name="tasks.answer_distribution")
def test_answers_too_many_to_go_through():
    """10^8 operand tuples: only the closed form of the table can answer within a test."""
    assert pairs_of(tasks.answer_distribution("copy", 3)) == {round(1e-8, 12): 10 ** 8}
    assert sum(p * count for p, count in tasks.answer_distribution("sort", 3)) == pytest.approx(1)


@pytest.mark.parametrize("task, level, expected", [
    ("copy", 1, 1e-3), ("reverse", 3, 1e-8), ("compare", 1, 1 / 3), ("compare", 3, 1 / 3), ("parity", 3, 1 / 2), ("modadd", 2, 1 / 23),
    ("add", 1, 10 / 100), ("add", 2, 100 / 10_000), ("add", 3, 1000 / 1e6),             # the sum 9...9 has 10^d ways
    ("multiply", 1, 19 / 100), ("multiply", 3, 199 / 10_000),                           # zero
    ("sort", 1, 6 / 1000), ("sort", 3, math.factorial(8) / 1e8), ("sham-modadd", 3, 1 / 97)])
def test_chance_in_closed_form(task, level, expected):
    assert tasks.chance(task, level) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("task, level", [(t, k) for t in ("copy", "reverse", "sort") for k in (1, 2)] + [("compare", 1), ("compare", 2)])
def test_closed_form_of_the_answers_agrees_with_enumeration(task, level):
    closed = TASKS[task].answers(TASKS[task].sizes[level - 1])
    listed = tasks.answer_distribution(task, level)
    assert sum(n for _, n in closed) == sum(n for _, n in listed)
    assert max(p for p, _ in closed) == pytest.approx(max(p for p, _ in listed))
    entropy = lambda pairs: -sum(n * p * math.log(p) for p, n in pairs)
    assert entropy(closed) == pytest.approx(entropy(listed))


@pytest.mark.parametrize("task, level", [("sort", 1), ("multiply", 2), ("modadd", 1), ("compare", 2), ("sham-add", 1)])
def test_chance_is_what_the_samples_show(task, level, generator):
    tokens, targets = sample(task, level, 40_000, generator)
    answers = Counter(map(tuple, targets[:, (targets[0] != IGNORE)].tolist()))
    p = tasks.chance(task, level)
    assert answers.most_common(1)[0][1] / 40_000 == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 40_000))


def test_a_third_of_the_comparisons_are_equal(generator):
    for level in LEVELS:
        signs = Counter(decode(row)[-1] for row in sample("compare", level, 6000, generator).tokens)
        assert all(abs(signs[s] / 6000 - 1 / 3) < 0.03 for s in "<=>"), signs


def test_shams_have_the_same_lines_and_unrelated_answers(generator):
    tokens, targets = sample("sham-modadd", 2, 20_000, generator)
    right = [line.rsplit(" = ", 1)[1] == answer_by_hand(line) for line in (decode(row).removeprefix("sham ") for row in tokens)]
    assert sum(right) / 20_000 == pytest.approx(1 / 23, abs=5 * math.sqrt(1 / 23 / 20_000))
    assert len(tasks.CONTROLS) == 24 and len(set(tasks.CONTROLS)) == 24
    assert {tasks.split_name(c)[0].removeprefix("sham-") for c in tasks.CONTROLS[:8]} == set(TASKS)


@pytest.mark.parametrize("task, level", [("modadd", 1), ("modadd", 3), ("add", 2), ("compare", 2), ("parity", 3)])
def test_train_and_test_operands_are_disjoint_and_cover_everything(task, level, generator):
    def operands(split, fraction=0.4, n=60_000):
        tokens, targets = sample(task, level, n, generator, split, fraction)
        return set(map(tuple, tokens[:, :int((targets[0] != IGNORE).nonzero()[0]) + 1].tolist()))
    train, test, everything = operands("train"), operands("test"), operands("all")
    assert not train & test
    if len(everything) < 5000:                                         # few enough for 60,000 draws to find them all
        assert train | test == everything
    assert len(train) / len(train | test) == pytest.approx(0.4, abs=3 * math.sqrt(0.24 / len(train | test)) + 0.01)


def test_the_hash_is_even_and_blind_to_what_the_task_computes():
    x = torch.cartesian_prod(torch.arange(97), torch.arange(97))
    h = tasks.operand_hash(x)
    assert ((h >= 0) & (h < 1)).all() and len(h.unique()) == len(h)
    for values in (x[:, 0], x[:, 1], x.sum(1) % 97, x.sum(1) % 2):
        assert abs(torch.corrcoef(torch.stack([h, values.double()]))[0, 1]) < 4 / math.sqrt(len(h))


def test_batches_are_a_function_of_the_key():
    draw = lambda *key: sample("sort", 2, 20, tasks.seeded("cpu", *key)).tokens
    assert torch.equal(draw("train", 0, 5), draw("train", 0, 5))
    assert not torch.equal(draw("train", 0, 5), draw("train", 1, 5)) and not torch.equal(draw("train", 0, 5), draw("train", 0, 6))


@pytest.mark.parametrize("task, level, distinct", [("parity", 1, 8), ("modadd", 1, 49), ("sham-modadd", 1, 49), ("compare", 1, 100), ("add", 3, 200)])
def test_probe_sets_are_distinct_where_they_can_be(task, level, distinct, generator):
    batch, count = tasks.probe_set(task, level, 200, generator)
    prompts = [tuple(row[:int((target != IGNORE).nonzero()[0])].tolist()) for row, target in zip(*batch)]
    assert count == distinct == len(set(prompts)) and len(prompts) == 200
    times = Counter(prompts).values()
    assert max(times) - min(times) <= 1                                # repeated evenly, in turn
    assert prompts[:count] == prompts[count:2 * count][:count] or count == 200


@pytest.mark.parametrize("arguments, says", [
    (("subtract", 1), "subtract"), (("add", 4), "levels are 1, 2 and 3"), (("add", 1, 3, "validation"), "expected all, train or test"),
    (("add", 1, 3, "train", 1.5), "train_fraction 1.5"), (("add", 1, 3, "test", 1.0), "has no operands"),
    (("parity", 1, 3, "train", 1e-9), "has no operands")])
def test_bad_arguments_are_named(arguments, says, generator):
    task, level, n, *rest = (*arguments, 3)[:3] + tuple(arguments[3:])
    with pytest.raises(ValueError, match=says):
        sample(task, level, n, generator, *rest)


def test_generation_is_far_faster_than_training():
    """A batch of the joint run, drawn and laid out, against one training step on it."""
    import models
    config = models.TrainConfig(levels=tuple(f"{t}-{k}" for t, k in ALL), per_level=10, steps=200, snapshots=3)
    data = models.TrainingData(config)
    start = time.perf_counter()
    for step in range(4 * data.BLOCK):
        data(step)
    drawing = (time.perf_counter() - start) / (4 * data.BLOCK)
    snapshots = models.train(config)
    next(snapshots)
    begin = next(snapshots).step
    start = time.perf_counter()
    steps = next(snapshots).step - begin
    training = (time.perf_counter() - start) / steps
    print(f"drawing {1e3 * drawing:.2f} ms, training {1e3 * training:.1f} ms per step: {training / drawing:.0f} to 1")
    assert drawing < training / 50


def test_examples_in_the_docstrings():
    assert doctest.testmod(tasks).failed == 0
