"""Tasks: answers against arithmetic on the decoded line, chance and frequencies against draws,
splits, shams, the lines that a run is measured on.

Nothing here lists the tasks.  BY_HAND knows how to work out a line of each task; a row that was
added later is held against its own chance, frequencies and lines, like all the others.
"""
import doctest
import functools
import math
import operator
import time
from collections import Counter

import pytest
import torch

import models
import tasks
from tasks import ALL_TASKS, IGNORE, LEVELS, PAD, TASKS, VOCAB_SIZE, decode, sample

ALL = [(task, level) for task in ALL_TASKS for level in LEVELS]


# --------------------------------------------------------------------------------------------------
# Lines and answers

def arithmetic_by_hand(task, words):
    """The words between the name and "=" -> the number behind it.  Plain integers throughout."""
    numbers = [int(word) for word in words if word.isdigit()]
    if task == "increment":
        return numbers[0] + 1
    a, b, *modulus = numbers
    if task == "gcd":
        return max(d for d in range(1, 100) if a % d == b % d == 0)
    if task == "modpoly":
        value = a ** 2 + a * b + b ** 2
    elif task == "moddiv":                            # what must b be multiplied with, to get a?
        return next(c for c in range(modulus[0]) if (b * c - a) % modulus[0] == 0)
    else:
        signs = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
        value = signs[words[1]](a, b)
    if task.startswith("mod"):
        assert words[-2] == "mod"
        while not 0 <= value < modulus[0]:
            value += modulus[0] if value < 0 else -modulus[0]
    assert value >= 0
    return value


def rotated(words):
    row = words[2:]
    for _ in range(int(words[0])):
        row = row[1:] + row[:1]
    return row


def recalled(words):
    pairs = dict(zip(words[:-2:2], words[1:-2:2]))
    assert len(pairs) == len(set(pairs.values())) == (len(words) - 2) // 2, "each once"
    return [pairs[words[-1]]]


def permuted(words):
    p, q = halves(words)
    assert sorted(p) == sorted(q) == [str(i) for i in range(len(p))]
    return [p[int(i)] for i in q]


def halves(words):
    middle = words.index(",")
    assert len(words) == 2 * middle + 1
    return words[:middle], words[middle + 1:]


def sequence_by_hand(task, words):
    """The words between the name and "=" -> those behind it."""
    if task == "compare":
        a, b = map(int, words)
        return ["<>="[(a > b) + 2 * (a == b)]]
    if task in ("xor", "interleave"):
        pairs = list(zip(*halves(words)))
        return ["01"[x != y] for x, y in pairs] if task == "xor" else sum(pairs, ())
    found = {"copy": words, "reverse": words[::-1], "sort": sorted(words),
             "parity": ["1" if words.count("1") in (1, 3, 5, 7) else "0"],
             "maximum": [max(words)], "count": [str(words.count(words[0]) - 1)],
             "majority": [max("01", key=words.count)]}
    others = {"rotate": rotated, "recall": recalled, "permute": permuted}
    return others[task](words) if task in others else found[task]


ARITHMETIC = ("add", "multiply", "modadd", "subtract", "divide", "modsub", "modmul", "moddiv",
              "modpoly", "gcd", "increment")
SEQUENCES = ("copy", "reverse", "compare", "parity", "sort", "maximum", "count", "rotate",
             "interleave", "majority", "xor", "recall", "permute")
BY_HAND = {task: arithmetic_by_hand for task in ARITHMETIC}
BY_HAND |= {task: sequence_by_hand for task in SEQUENCES}


def answer_by_hand(line):
    """"add 12 + 7 = 19" -> what must stand behind "=".

    It works on words, and shares nothing with tasks.py.
    """
    task, rest = line.split(" ", 1)
    prompt = rest[:-4] if rest.endswith(" = =") else rest[:rest.rindex(" = ")]
    answer = BY_HAND[task](task, prompt.split())
    return str(answer) if isinstance(answer, int) else " ".join(answer)


@pytest.mark.parametrize("task, level", [pair for pair in ALL if pair[0] in BY_HAND])
def test_answers_match_what_is_worked_out_by_hand(task, level, generator):
    for row in sample(task, level, 500, generator).tokens:
        line = decode(row)
        assert line.startswith(task)
        expected = answer_by_hand(line)
        assert line.endswith(f" = {expected}"), f"{line}: expected {expected}"


def test_the_paper_s_tasks_and_two_families_of_eight_are_there():
    assert list(TASKS) == "copy reverse compare parity add modadd sort multiply".split()
    assert list(ALL_TASKS) == [*TASKS, *tasks.MORE_TASKS]
    assert sorted(sum(tasks.FAMILIES.values(), ())) == sorted(tasks.MORE_TASKS)
    for family in ("arithmetic", "sequences"):
        assert len(tasks.FAMILIES[family]) >= 8


@pytest.mark.parametrize("task, level", ALL)
def test_lines_are_short_enough_for_every_size_of_model(task, level, generator):
    block_size = min(config.block_size for config in models.SIZES.values())
    for name in (task, f"sham-{task}"):
        assert sample(name, level, 1, generator).tokens.shape[1] <= block_size


@pytest.mark.parametrize("task", ALL_TASKS)
def test_lines_contain_digits_their_names_and_the_words_of_their_row(task, generator):
    found = set()
    for level in LEVELS:
        used = sample(task, level, 500, generator).tokens.unique()
        found |= {tasks.VOCABULARY[t] for t in used.tolist()}
    assert found - set("0123456789") - {"="} == {task, *ALL_TASKS[task].words} - {"="}


def test_the_vocabulary_keeps_its_order():
    """A word's place in it is a row of the embedding of every model that was ever saved."""
    signs = ["+", "*", "mod 7", "mod 23", "mod 97", ",", "=", "<", ">", "sham"]
    names = ["copy", "reverse", "compare", "parity", "add", "modadd", "sort", "multiply"]
    later = ["-", "subtract", "/", "divide", "mod 11", "modsub", "mod 5", "modmul", "moddiv",
             "modpoly", "gcd", "increment", "maximum", "count", "rotate", "interleave", "majority",
             "xor", "recall", "permute"]
    known = [*"0123456789", *signs, *names, *later]
    assert list(tasks.VOCABULARY[:len(known)]) == known      # what is added stands behind these
    assert all(tasks.ID[word] == i for i, word in enumerate(tasks.VOCABULARY))
    assert VOCAB_SIZE == 64 and PAD == tasks.ID["pad"] == 63 and "pad" not in tasks.VOCABULARY


def test_too_many_words_are_refused(monkeypatch):
    words = tuple(map(str, range(64)))
    monkeypatch.setattr(tasks, "VOCABULARY", words)
    with pytest.raises(ValueError, match="need 64 words, and the vocabulary has room for"):
        tasks.check_tables()


def test_a_row_with_too_many_operands_needs_a_closed_form(monkeypatch):
    row = tasks.Task(tasks.copy, sizes=(3, 5, 8), about="",
                     operand_ranges=((10,) * 3, (10,) * 5, (10,) * 8))
    monkeypatch.setitem(ALL_TASKS, "again", row)
    with pytest.raises(ValueError, match="again-3 has more than 1,000,000 tuples of columns"):
        tasks.check_tables()


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
    (["subtract", *"42", "-", *"17", "=", *"52"], "subtract 42 - 17 = 25"),
    (["divide", *"85", "/", "7", "=", *"12"], "divide 85 / 7 = 12"),
    (["modsub", "3", "-", "5", "mod 7", "=", "5"], "modsub 3 - 5 mod 7 = 5"),
    (["modpoly", *"03", ",", *"10", "mod 11", "=", *"07"], "modpoly 3 10 mod 11 = 7"),
    (["gcd", *"12", ",", *"18", "=", *"06"], "gcd 12 18 = 6"),
    (["increment", *"199", "=", *"0020"], "increment 199 = 200"),
    (["rotate", "2", ",", *"314", "=", *"431"], "rotate 2 , 3 1 4 = 4 3 1"),
    (["recall", *"1437", ",", "3", "=", "7"], "recall 1 4 3 7 , 3 = 7"),
    (["add", *"12", "+", *"07"], "add 12 + 7"),
])
def test_decode_reads_like_the_design(words, expected):
    assert decode(torch.tensor([tasks.ID[word] for word in words])) == expected


def test_decode_shows_what_is_no_word():
    tokens = torch.tensor([tasks.ID["copy"], 3, PAD - 1, PAD])
    assert decode(tokens) == "copy 3 ?", "the last place before the padding is free"


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


def test_answers_counted_by_hand():
    assert pairs_of(tasks.answer_distribution("modadd", 1)) == {round(1 / 7, 12): 7}
    assert pairs_of(tasks.answer_distribution("parity", 2)) == {0.5: 2}
    assert pairs_of(tasks.answer_distribution("compare", 1)) == {round(1 / 3, 12): 3}
    assert pairs_of(tasks.answer_distribution("copy", 1)) == {0.001: 1000}
    products = [a * b for a in range(100) for b in range(10)]
    assert pairs_of(tasks.answer_distribution("multiply", 2)) == frequencies(products)
    sums = [a + b for a in range(10) for b in range(10)]
    assert pairs_of(tasks.answer_distribution("add", 1)) == frequencies(sums)


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


WITH_CLOSED_FORM = [task for task in ALL_TASKS if ALL_TASKS[task].answers is not None]
LISTED = [(task, level) for task in WITH_CLOSED_FORM for level in LEVELS
          if tasks.can_be_listed(task, level)]


@pytest.mark.parametrize("task, level", LISTED)
def test_closed_forms_agree_with_enumeration(task, level):
    closed, places = ALL_TASKS[task].answers(ALL_TASKS[task].sizes[level - 1])
    listed = tasks.answer_distribution(task, level)
    assert sum(count for _, count in closed) == sum(count for _, count in listed)
    assert max(p for p, _ in closed) == pytest.approx(max(p for p, _ in listed))
    assert entropy(closed) == pytest.approx(entropy(listed))
    assert tasks.chance_log_prob(task, level) == pytest.approx(-entropy(closed))
    assert torch.allclose(places, tasks.answer_frequencies(task, level), rtol=1e-12, atol=1e-15)


DRAWS = 200_000


@functools.lru_cache(maxsize=None)
def drawn_answers(task, level):
    """(N, A): the answers of 200,000 draws, from the targets and not from the table."""
    targets = sample(task, level, DRAWS, tasks.seeded("cpu", "compare")).targets
    return targets[:, targets[0] != IGNORE]


@pytest.mark.parametrize("task, level", ALL)
def test_chance_is_what_the_samples_show(task, level):
    """The best answer comes up as often as `chance` says, and the answers have that entropy."""
    code = drawn_answers(task, level) @ 64 ** torch.arange(tasks.answer_tokens(f"{task}-{level}"))
    times = code.unique(return_counts=True)[1]
    p = tasks.chance(task, level)
    assert tasks.chance(f"sham-{task}", level) == p
    best = int(times.max()) / DRAWS
    pairs = tasks.answer_distribution(task, level)
    assert sum(share * count for share, count in pairs) == pytest.approx(1)

    # The frequency of one answer has the error of a coin.  The largest of many is above its own.
    error = 5 * math.sqrt(p * (1 - p) / DRAWS)
    answers = sum(count for _, count in pairs)
    if answers < 2000:
        assert best == pytest.approx(p, abs=error)
        shares = times.double() / DRAWS
        bias = answers / DRAWS                        # of an entropy that is estimated from counts
        found = float((shares * shares.log()).sum())
        assert found == pytest.approx(tasks.chance_log_prob(task, level), abs=0.02 + bias)
    else:
        assert p - error <= best <= p + error + 12 / DRAWS


@pytest.mark.parametrize("task, level", ALL)
def test_frequencies_are_what_the_samples_show(task, level):
    answers = drawn_answers(task, level)
    table = tasks.answer_frequencies(task, level)
    assert table.shape == (answers.shape[1], VOCAB_SIZE) and table.dtype == torch.float64
    assert (table.sum(1) - 1).abs().max() < 1e-12
    found = torch.stack([column.bincount(minlength=VOCAB_SIZE) for column in answers.unbind(1)])
    error = (found / DRAWS - table).abs() / (table * (1 - table) / DRAWS + 1e-12).sqrt()
    place, token = divmod(int(error.argmax()), VOCAB_SIZE)
    word = token if token >= len(tasks.VOCABULARY) else tasks.VOCABULARY[token]
    assert error.max() < 5, (f"place {place}, {word}: {table[place, token]:.4f} expected, "
                             f"{found[place, token] / DRAWS:.4f} found")
    assert tasks.answer_frequencies(f"sham-{task}", level) is table \
        or torch.equal(tasks.answer_frequencies(f"sham-{task}", level), table)


def test_frequencies_of_known_answers():
    table = tasks.answer_frequencies("add", 1)        # least significant digit first: 0 to 9, then
    assert table[0, :10].tolist() == [0.1] * 10       # 45 of 100 sums have a carry
    assert table[1, :2].tolist() == [0.55, 0.45]
    gcds = Counter(math.gcd(a, b) for a in range(100) for b in range(1, 10))
    expected = [gcds[d] / 900 for d in range(10)]
    assert tasks.answer_frequencies("gcd", 2)[0, :10].tolist() == pytest.approx(expected)
    smallest = tasks.answer_frequencies("sort", 3)[0, 9]                    # all eight are 9
    assert float(smallest) == pytest.approx(1e-8)


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
    every = {f"sham-{task}-{level}" for task in TASKS for level in LEVELS}
    controls = tasks.controls(TASKS, 24)
    assert set(controls) == every and len(controls) == len(every)
    assert controls[:8] == (
        "sham-modadd-2", "sham-sort-3", "sham-parity-1", "sham-add-2", "sham-compare-3",
        "sham-copy-1", "sham-multiply-2", "sham-reverse-3")
    assert tasks.controls(TASKS, 8) == tasks.controls(["add"], 8) == controls[:8]


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_a_family_has_shams_of_its_own_spread_over_its_kinds_of_answer(family):
    names = tasks.FAMILIES[family]
    every = tasks.controls(names, 3 * len(names))
    assert set(every) == {f"sham-{name}-{level}" for name in names for level in LEVELS}
    kinds = len({ALL_TASKS[name].kind for name in names})
    first = [tasks.split_name(sham)[0].removeprefix("sham-") for sham in every[:kinds]]
    assert len({ALL_TASKS[name].kind for name in first}) == kinds
    with pytest.raises(ValueError, match=f"there are {3 * len(names)} of them"):
        tasks.controls(names, 3 * len(names) + 1)


def test_a_mixture_takes_shams_from_its_families_in_turn():
    mixed = tasks.controls(["xor", "add", "sort", "gcd"], 6)
    families = [tasks.split_name(sham)[0].removeprefix("sham-") for sham in mixed]
    families = [ALL_TASKS[name].family for name in families]
    assert families == ["sequences", "paper", "arithmetic"] * 2
    assert tasks.controls(["add"], 0) == ()
    with pytest.raises(ValueError, match="task 'nothing' does not exist"):
        tasks.controls(["nothing"], 1)


def prompts_of(batch):
    end = int((batch.targets[0] != IGNORE).nonzero()[0]) + 1
    return set(map(tuple, batch.tokens[:, :end].tolist()))


@pytest.mark.parametrize("task, level", [
    ("modadd", 1), ("modadd", 3), ("add", 2), ("compare", 2), ("parity", 3), ("subtract", 2),
    ("permute", 3), ("count", 1)])
def test_train_and_test_operands_are_disjoint_and_cover_everything(task, level, generator):
    train, test, everything = (prompts_of(sample(task, level, 60_000, generator, split, 0.4))
                               for split in ("train", "test", "all"))
    assert not train & test
    if len(everything) < 5000:                        # few enough for 60,000 draws to find them all
        assert train | test == everything
    known = len(train | test)
    assert len(train) / known == pytest.approx(0.4, abs=3 * math.sqrt(0.24 / known) + 0.01)


def test_a_sham_is_trained_on_the_operands_of_its_task(generator):
    real = prompts_of(sample("modsub", 1, 5000, generator, "train", 0.5))
    sham = prompts_of(sample("sham-modsub", 1, 5000, generator, "train", 0.5))
    assert {prompt[1:] for prompt in sham} == real


def test_a_larger_share_keeps_the_operands_of_a_smaller_one(generator):
    shares = [prompts_of(sample("modadd", 2, 20_000, generator, "train", f)) for f in (0.2, 0.6)]
    assert shares[0] < shares[1]


def test_draws_from_a_split_keep_the_weights_of_the_operands(generator):
    """compare: "=" is as likely as "<" and ">", on either side."""
    for split in ("train", "test"):
        targets = sample("compare", 2, 30_000, generator, split, 0.5).targets
        shares = targets[targets != IGNORE].bincount(minlength=VOCAB_SIZE) / 30_000
        for sign in "<=>":
            assert float(shares[tasks.ID[sign]]) == pytest.approx(1 / 3, abs=0.06)


def test_the_split_is_blind_to_what_the_task_computes():
    operands, number = tasks.number_operands("modadd", 3)
    side = tasks.split_columns("modadd", 3, "train", 0.5)
    trained_on = torch.zeros(len(operands), dtype=torch.float64)
    trained_on[number[side]] = 1
    a, b = operands.unbind(1)
    for values in (a, b, (a + b) % 97, (a + b) % 2):
        correlation = torch.corrcoef(torch.stack([trained_on, values.double()]))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(len(operands))


def test_operands_are_numbered_once_each():
    operands, number = tasks.number_operands("compare", 1)
    assert len(operands) == 100 and len(number) == 270
    times = number.bincount()
    equal = operands[:, 0] == operands[:, 1]
    assert times[equal].tolist() == [9] * 10 and times[~equal].tolist() == [2] * 90
    assert torch.equal(operands[number], tasks.all_operands("compare", 1))


def test_batches_are_a_function_of_the_key():
    def draw(*key):
        return sample("sort", 2, 20, tasks.seeded("cpu", *key)).tokens

    assert torch.equal(draw("train", 0, 5), draw("train", 0, 5))
    assert not torch.equal(draw("train", 0, 5), draw("train", 1, 5))
    assert not torch.equal(draw("train", 0, 5), draw("train", 0, 6))


# --------------------------------------------------------------------------------------------------
# The lines that a run is measured on

@pytest.mark.parametrize("task, level", ALL)
def test_lines_to_measure_on(task, level):
    """All of them, weighted by probability, or drawn ones, each counted as often as drawn."""
    n = 200
    lines = tasks.eval_lines(task, level, n)
    prompts = prompts_of(lines.batch)
    assert lines.distinct == len(prompts) == len(lines.batch.tokens) <= n
    assert float(lines.weights.sum()) == pytest.approx(1) and lines.weights.min() > 0
    assert lines.weights.dtype == torch.float64
    again = tasks.eval_lines(task, level, n)
    assert torch.equal(lines.batch.tokens, again.batch.tokens)
    assert torch.equal(lines.weights, again.weights)
    if not lines.exact:
        assert (lines.weights * n - (lines.weights * n).round()).abs().max() < 1e-9
        return
    targets = lines.batch.targets
    answers = targets[:, targets[0] != IGNORE]
    for place, expected in enumerate(tasks.answer_frequencies(task, level)):
        found = torch.bincount(answers[:, place], lines.weights, VOCAB_SIZE)
        assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("task, level, distinct", [
    ("parity", 1, 8), ("modadd", 1, 49), ("compare", 1, 100), ("subtract", 1, 55),
    ("permute", 2, 36)])
def test_small_levels_are_measured_on_all_their_lines(task, level, distinct, generator):
    lines = tasks.eval_lines(task, level, distinct)
    assert lines.exact and lines.distinct == distinct
    assert prompts_of(lines.batch) == prompts_of(sample(task, level, 20_000, generator))
    assert not tasks.eval_lines(task, level, distinct - 1).exact


def test_small_levels_are_weighted_by_probability():
    lines = tasks.eval_lines("compare", 1, 200)
    equal = lines.batch.tokens[:, -1] == tasks.ID["="]
    assert lines.weights[equal].tolist() == pytest.approx([1 / 30] * 10)
    assert lines.weights[~equal].tolist() == pytest.approx([1 / 135] * 90)


@pytest.mark.parametrize("task, level", [("modadd", 1), ("modadd", 2), ("compare", 1)])
def test_both_sides_of_a_split_have_lines_of_their_own(task, level):
    train, test, every = (tasks.eval_lines(task, level, 600, split, 0.4)
                          for split in ("train", "test", "all"))
    assert train.exact and test.exact and every.exact
    for lines in (train, test):
        assert float(lines.weights.sum()) == pytest.approx(1)
    train, test, every = map(prompts_of, (train.batch, test.batch, every.batch))
    assert not train & test and train | test == every
    drawn = tasks.eval_lines(task, level, 15, "test", 0.4)
    assert not drawn.exact and prompts_of(drawn.batch) <= test


def test_shams_are_always_drawn():
    lines = tasks.eval_lines("sham-parity", 1, 400)
    assert not lines.exact and lines.distinct == 8
    assert len(lines.batch.tokens) == 16, "each prompt with either answer"
    ones = lines.batch.tokens[:, -1] == 1
    assert float(lines.weights[ones].sum()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("arguments, message", [
    (("substract", 1, 3), "task 'substract' does not exist; the tasks are copy, reverse"),
    (("add", 4, 3), "levels are 1, 2 and 3"),
    (("add", 1, 3, "validation"), "expected all, train or test"),
    (("add", 1, 3, "train", 1.5), "train_fraction 1.5"),
    (("add", 1, 3, "test", 1.0), "has no operands"),
    (("parity", 1, 3, "train", 1e-9), "has no operands"),
    (("copy", 3, 3, "train", 0.5), "copy-3 has more than 1,000,000 operands"),
    (("compare", 3, 3, "test", 0.5), "compare-3 has more than 1,000,000 operands"),
])
def test_bad_arguments_are_named(arguments, message, generator):
    task, level, n, *split = arguments
    with pytest.raises(ValueError, match=message):
        sample(task, level, n, generator, *split)


# --------------------------------------------------------------------------------------------------

def test_generation_is_far_faster_than_training():
    """A batch of the joint run, drawn and laid out, against one training step on it."""
    levels = tuple(f"{task}-{level}" for task in TASKS for level in LEVELS)
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


def test_the_split_is_fast_once_it_is_known(generator):
    sample("add", 3, 10, generator, "train", 0.5)
    start = time.perf_counter()
    for _ in range(20):
        sample("add", 3, 640, generator, "train", 0.5)
    assert (time.perf_counter() - start) / 20 < 0.01


def test_examples_in_the_docstrings():
    assert doctest.testmod(tasks).failed == 0


# --------------------------------------------------------------------------------------------------
# The way back, and text

@pytest.mark.parametrize("name", tasks.level_names())
def test_level_and_place_of_every_task_level(name):
    batch = tasks.sample(*tasks.split_name(name), 20, tasks.seeded("cpu", "back"))
    number = tasks.level_names().index(name)
    for tokens, targets in ((batch.tokens, batch.targets), (batch.tokens[:, :-1],
                                                            batch.targets[:, :-1])):
        level, place = tasks.level_and_place(tokens)
        asked = targets != tasks.IGNORE
        assert torch.equal(level, torch.where(asked, number, -1))
        assert torch.equal(place, torch.where(asked, asked.cumsum(1) - 1, -1))
    padded = torch.nn.functional.pad(batch.tokens, (0, 7), value=tasks.PAD)
    assert torch.equal(tasks.level_and_place(padded)[1][:, :-7],
                       tasks.level_and_place(batch.tokens)[1])
    prompt = batch.tokens[:, :int((batch.tokens[0] == tasks.ID["="]).int().argmax())]
    assert (torch.stack(tasks.level_and_place(prompt)) == -1).all()


def test_text_is_prose_of_tokens_of_its_own_and_shuffled_it_has_the_same_characters():
    tokens, characters = tasks.text()
    assert tokens.min() == tasks.VOCAB_SIZE and len(tokens) > 100_000
    letters = [characters[i - tasks.VOCAB_SIZE] for i in tokens[:5000].tolist()]
    assert " the " in "".join(letters) and len(set(characters)) == len(characters)
    plain, mixed = (tasks.sample_text(400, tasks.seeded("cpu", "t"), shuffled)
                    for shuffled in (False, True))
    assert plain.tokens.shape == (400, tasks.TEXT_LINE)
    assert torch.equal(plain.tokens[:, 1:], plain.targets[:, :-1])
    assert (plain.targets[:, -1] == tasks.IGNORE).all()

    def pair_entropy(batch):                               # of a character, its forerunner known
        pairs = batch.tokens[:, :-1] * 1000 + batch.tokens[:, 1:]
        count = pairs.flatten().unique(return_counts=True)[1].double()
        p = count / count.sum()
        return -(p * p.log()).sum().item()
    assert pair_entropy(plain) < pair_entropy(mixed) - 0.5
    assert (tasks.level_and_place(plain.tokens)[0] == -1).all()
