"""What must hold whatever the input: of command lines that nobody would type, of tasks, ranks, and curves.

Hypothesis draws the inputs, the same at every run.  The many of the slow ones are for the times when the command line is changed."""
import dataclasses
import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import emergence
import faults
import measures
import models
import run
import tasks


def drawn(count):
    return settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


# ---------------------------------------------------------------------------------------------------------------
# The command line

@pytest.fixture
def harmless(tmp_path, monkeypatch):
    """An empty folder to be in; nothing trains, nothing is timed, nothing leaves the machine."""
    import pythia

    def offline(*_):
        raise RuntimeError("no network")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "estimate", lambda *_: (0, 0, 1))
    monkeypatch.setattr(run, "execute", lambda *_: pytest.fail("a run was begun"))
    for name in ("manifest", "fetch"):
        monkeypatch.setattr(pythia, name, offline)
    return tmp_path


def fields(*configs):
    return [(f.name, type(f.default)) for config in configs for f in dataclasses.fields(config)]


NUMBERS = {int: ("", "x", "1.5", "nan", "1e3", "-1", "0x10"), float: ("", "fast", "nan", "inf", "-inf", "-0.5")}
BAD = [["sweep", "--task", "add", "--set", f"{name}={value}"] for name, kind in fields(models.TrainConfig, run.MeasureConfig) for value in NUMBERS.get(kind, ())]
BAD += [["sweep", "--task", "add", "--set", text] for text in (
    "", "=", "lr", "=3", "lr 3", "learning=1", "size=nano", "seed=1", "device=cpu", "levels=", "levels=add", "levels=add-4", "levels=add-1,add-1", "levels=-",
    "measures=rank", "measures=rankme,rankme", "dtype=int8", "dtype=", "beta1=1", "beta2=1", "threads=99999", "snapshots=1", "__class__=int", "lr=1=2")]
BAD += [["sweep", "--task", text] for text in ("", ",", "substract", "add,", "ADD", "add;sort", "add sort", "-", "../add", "all,add", "\N{GREEK SMALL LETTER ALPHA}", "add-1")]
BAD += [["sweep", "--task", "add", option, text] for option, texts in {
    "--sizes": ("", "huge", "nano,", "nano;micro", "1"), "--measures": ("", "rank", "rankme,", "none,rankme"), "--seeds": ("", "0", "-1", "many", "1.5", "10001"),
    "--steps": ("", "-1", "x", "1e3"), "--controls": ("", "25", "x", "1.5"), "--train-fraction": ("", "0", "-1", "1.1", "nan", "inf", "half"),
    "--device": ("", "tpu", "cuda:99", "CPU"), "--keep": ("", "-1", "x"), "--sizs": ("nano",), "--no": ("",)}.items() for text in texts]
BAD += [["sweep"], ["sweep", "--task"], ["sweep", "add"], ["sweep", "--task", "add", "more"], ["sweep", "--task", "add", "--dry-run", "yes"], ["swep"], ["--task", "add"],
        ["--version"], ["analyse"], ["analyse", "nowhere"], ["analyse", ""], ["analyse", "/dev/null"], ["analyse", "."], ["analyse", "nowhere", "nowhere"],
        ["tasks", "division"], ["tasks", ""], ["tasks", "add", "sort"], ["tasks", "--all"], ["pythia"], ["pythia", "audits"], ["pythia", "evals", "nowhere"],
        ["pythia", "compare", "nowhere"], ["pythia", "measure"], ["pythia", "plan", "160m", "--items", "many"]]


def test_bad_command_lines_get_one_sentence(harmless, capsys):
    assert len(BAD) >= 200
    for arguments in BAD:
        status, _, err = faults.call(capsys, *arguments)
        assert status == 2 and err.startswith("run.py: ") and err.count("\n") == 1 and "run.py: unexpected" not in err, (arguments, status, err)
        assert not list(harmless.iterdir()), (arguments, "nothing is written")
    print(f"{len(BAD)} bad command lines, each refused in one sentence")


OPTIONS = ["--task", "--sizes", "--seeds", "--steps", "--measures", "--controls", "--train-fraction", "--device", "--keep", "--set", "--help", "--items",
           "--probes", "--dtype", "--json", "-h", "--"]
VALUES = ["add", "all", "none", "nano", "nano,micro", "0", "1", "3", "-1", "0.5", "nan", "1e9", "cpu", "auto", "rankme", "lr=0.1", "steps=3", "levels=add-1", "runs",
          ".", "..", "/dev/null", "160m", "owner/name", "[bold]", "[/]"]
anything = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
word = st.one_of(st.sampled_from(OPTIONS), st.sampled_from(VALUES), st.integers().map(str), st.floats().map(str), anything,
                 st.tuples(st.sampled_from([name for name, _ in fields(models.TrainConfig, run.MeasureConfig)]), anything).map("=".join))
pair = st.tuples(st.sampled_from(OPTIONS), word).map(list)
command_lines = st.tuples(st.sampled_from([["sweep"], ["sweep", "--task", "add"], ["analyse"], ["tasks"], ["pythia"], ["pythia", "audit"], ["pythia", "plan"],
                                           ["pythia", "measure"], ["pythia", "evals"], ["pythia", "compare"], []]),
                          st.lists(st.one_of(pair, word.map(lambda w: [w])), max_size=5)).map(lambda parts: [*parts[0], *(w for part in parts[1] for w in part)])


def never_a_traceback(arguments, capsys):
    if arguments[:1] == ["sweep"]:
        arguments = [*arguments, "--dry-run"]
    status, out, err = faults.call(capsys, *arguments)
    assert status in (0, 1, 2) and "Traceback" not in out + err and "run.py: unexpected" not in err, (arguments, status, err)
    assert err.count("\n") == (status != 0) or status == 2 and "--help" not in err and not err, (arguments, status, err)


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_command_lines_never_end_in_a_traceback(count, harmless, capsys):
    seen = []

    @drawn(count)
    @given(command_lines)
    def check(arguments):
        seen.append(1)
        never_a_traceback(arguments, capsys)
    check()
    assert len(seen) >= 0.9 * count
    print(f"{len(seen)} random command lines")


@given(st.lists(st.sampled_from([name for name, kind in fields(models.TrainConfig, run.MeasureConfig) if kind in (int, float)]), unique=True), st.data())
@drawn(100)
def test_a_config_survives_the_command_line_and_the_disk(names, data):
    """--set, then config.json, then back: the same numbers, to the six digits that are written."""
    kinds = dict(fields(models.TrainConfig, run.MeasureConfig))
    names = [name for name in names if name not in ("seed",)]
    values = {name: data.draw(st.integers(2, 10 ** 9) if kinds[name] is int else st.floats(1e-6, 0.99)) for name in names}
    train, measure = run.with_settings([f"{name}={value!r}" for name, value in values.items()], models.TrainConfig(), run.MeasureConfig())
    assert {name: getattr(train if hasattr(train, name) else measure, name) for name in names} == values
    again = json.loads(json.dumps(run.rounded(dataclasses.asdict(train) | dataclasses.asdict(measure))))
    assert all(math.isclose(again[name], value, rel_tol=1e-5) for name, value in values.items()) and run.rounded(again) == again


json_values = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()), lambda inner: st.one_of(
    st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=12)


@given(json_values)
@drawn(200)
def test_whatever_is_written_is_json_and_rounding_twice_is_rounding_once(value):
    once = run.rounded(value)
    assert run.rounded(once) == once
    assert json.loads(json.dumps(once, allow_nan=False)) == once


# ---------------------------------------------------------------------------------------------------------------
# Tasks

NAMES = [(sham + task, level) for sham in ("", "sham-") for task in tasks.TASKS for level in tasks.LEVELS]


def answer(task, line):
    """From the text of a line: what must stand behind the "="."""
    prompt = line.removeprefix(task + " ")
    if task == "compare":
        a, b = map(int, prompt.split())
        return "<" if a < b else ">" if a > b else "="
    if task in ("add", "multiply", "modadd"):
        head, _, modulus = prompt.partition(" mod ")
        a, sign, b = head.split()
        value = int(a) * int(b) if sign == "*" else int(a) + int(b)
        return str(value % int(modulus) if modulus else value)
    digits = prompt.split()
    return " ".join({"copy": digits, "reverse": digits[::-1], "sort": sorted(digits), "parity": [str(digits.count("1") % 2)]}[task])


@given(st.sampled_from(NAMES), st.integers(0, 2 ** 40), st.sampled_from([("all", 1.0), ("train", 0.5), ("test", 0.5)]))
@drawn(150)
def test_every_line_of_every_task_is_right_and_can_be_read(name, seed, split):
    task, level = name
    batch = tasks.sample(task, level, 6, torch.Generator().manual_seed(seed), *split)
    scored = batch.targets != tasks.IGNORE
    assert batch.tokens.shape == batch.targets.shape and 0 <= int(batch.tokens.min()) <= int(batch.tokens.max()) < tasks.PAD
    assert torch.equal(batch.targets[:, :-1][scored[:, :-1]], batch.tokens[:, 1:][scored[:, :-1]]) and not scored[:, -1].any()
    equals = (batch.tokens == tasks.ID["="]).int().argmax(1)
    assert (scored.int().argmax(1) == equals).all() and (scored.sum(1) == batch.tokens.shape[1] - 1 - equals).all()
    for row in batch.tokens:
        line = tasks.decode(row)
        assert tasks.decode(torch.cat([row, torch.tensor([tasks.PAD] * 3)])) == line
        if not task.startswith("sham-"):
            prompt, _, given_answer = line.partition(" = ")
            assert given_answer == answer(task, prompt), line


@given(st.lists(st.integers(0, tasks.VOCAB_SIZE - 1), max_size=20))
@drawn(200)
def test_decode_reads_any_tokens(tokens):
    """A model may write anything."""
    assert isinstance(tasks.decode(torch.tensor(tokens, dtype=torch.int64)), str)


# ---------------------------------------------------------------------------------------------------------------
# RankMe

@given(st.integers(2, 30), st.integers(2, 12), st.integers(0, 2 ** 40), st.floats(-6, 6))
@drawn(100)
def test_rankme_does_not_see_scale_rotation_or_the_order_of_rows(n, d, seed, exponent):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) @ torch.diag(10.0 ** -torch.arange(d, dtype=torch.float64))     # all sorts of spectra
    rotation = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    rank = measures.rankme(x)
    assert 1 - 1e-4 <= rank <= min(n, d) * (1 + 1e-4)
    for same in (x * 10.0 ** exponent, x @ rotation, x[torch.randperm(n, generator=g)], -x, torch.cat([x, torch.zeros(3, d)])):
        limit = min(same.shape)                                                # each p carries eps: as many of them as there are singular values
        assert math.isclose(measures.rankme(same), rank, rel_tol=1e-9 + 2e-6 * abs(limit - min(n, d))), (rank, measures.rankme(same))


# ---------------------------------------------------------------------------------------------------------------
# Curves

steps_of = st.lists(st.integers(0, 10 ** 6), min_size=1, max_size=40, unique=True).map(sorted)
level = st.one_of(st.none(), st.floats(0, 1))


@given(steps_of, st.data(), st.floats(0, 0.9), st.integers(1, 5))
@drawn(200)
def test_emergence_is_one_of_the_steps_and_comes_later_the_more_one_asks(steps, data, chance, persistence):
    accuracy = data.draw(st.lists(level, min_size=len(steps), max_size=len(steps)))
    found = [emergence.emergence_step(steps, accuracy, chance, threshold, persistence) for threshold in (0.1, 0.3, 0.5, 0.9)]
    assert all(step is None or step in steps for step in found)
    later = [math.inf if step is None else step for step in found]
    assert later == sorted(later)
    longer = emergence.emergence_step(steps, accuracy, chance, 0.3, persistence + 1)
    assert longer is None or found[1] is not None and longer >= found[1]
    if found[1] is not None:
        i = steps.index(found[1])
        assert all((a - chance) / (1 - chance) >= 0.3 - 1e-9 for a in accuracy[i:i + persistence]) and len(steps) - i >= persistence


@given(steps_of, st.data(), st.integers(1, 5))
@drawn(200)
def test_collapse_has_its_dates_among_the_steps_and_in_order(steps, data, persistence):
    rank = data.draw(st.lists(st.one_of(st.none(), st.floats(1, 200)), min_size=len(steps), max_size=len(steps)))
    if all(r is None for r in rank):
        with pytest.raises(ValueError):
            emergence.collapse(steps, rank)
        return
    found = [emergence.collapse(steps, rank, rise=rise, persistence=persistence) for rise in (0.0, 0.2, 1.0)]
    assert len({(c.floor, c.floor_step) for c in found}) == 1
    assert found[0].floor_step in steps and min(r for r in rank if r is not None) <= found[0].floor <= max(r for r in rank if r is not None)
    onsets = [math.inf if c.onset_step is None else c.onset_step for c in found]
    assert onsets == sorted(onsets) and all(o == math.inf or o in steps and o > found[0].floor_step for o in onsets)
    scaled = emergence.collapse(steps, [None if r is None else 4 * r for r in rank], persistence=persistence)
    assert (scaled.floor_step, scaled.onset_step) == (found[1].floor_step, found[1].onset_step)
