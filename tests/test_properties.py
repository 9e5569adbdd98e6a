"""What must hold whatever the input: of command lines that nobody would type, of tasks, ranks, and
curves.

Hypothesis draws the inputs, the same at every run.  The many of the slow ones are for the times
when the command line is changed.
"""
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
import sweep
import tasks


def drawn(count):
    return settings(max_examples=count, derandomize=True, database=None, deadline=None,
                    suppress_health_check=list(HealthCheck))


# --------------------------------------------------------------------------------------------------
# The command line

@pytest.fixture
def harmless(tmp_path, monkeypatch):
    """An empty folder to be in; nothing trains, nothing is timed, nothing leaves the machine."""
    import pythia

    def offline(*_):
        raise sweep.Failed("no network")

    def begun(*_):
        pytest.fail("a run was begun")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "estimate", lambda *_: (0, 0, 1))
    for name in ("run_one", "run_workers"):
        monkeypatch.setattr(sweep, name, begun)
    for name in ("manifest", "fetch"):
        monkeypatch.setattr(pythia, name, offline)
    return tmp_path


def fields():
    """[(name, type)] of everything that --set may change, and of a few more."""
    return [(field.name, type(field.default))
            for config in (models.TrainConfig, sweep.MeasureConfig)
            for field in dataclasses.fields(config)]


BAD_NUMBERS = {int: ("", "x", "1.5", "nan", "1e3", "-1", "0x10"),
               float: ("", "fast", "nan", "inf", "-inf", "-0.5")}
BAD_SETTINGS = (
    "", "=", "lr", "=3", "lr 3", "learning=1", "size=nano", "seed=1", "device=cpu", "levels=",
    "levels=add", "levels=add-4", "levels=add-1,add-1", "levels=-", "measures=rank",
    "measures=rankme,rankme", "dtype=int8", "dtype=", "beta1=1", "beta2=1", "threads=99999",
    "snapshots=1", "__class__=int", "lr=1=2", "compile=2", "train_fraction=1.5", "stop=601",
    "stop=-1", "filler=-2", "filler=101", "filler_shuffled=2", "strength=inf", "intervene=magic")
BAD_TASKS = ("", ",", "substract", "add,", "ADD", "add;sort", "add sort", "-", "../add", "all,adds",
             "\N{GREEK SMALL LETTER ALPHA}", "add-4")
BAD_OPTIONS = {
    "--sizes": ("", "huge", "nano,", "nano;micro", "1"),
    "--measures": ("", "rank", "rankme,", "none,rankme"),
    "--seeds": ("", "0", "-1", "many", "1.5", "10001", "5-3", "3-", "a-b"),
    "--intervene": ("magic", "rank", "Rank-up"),
    "--steps": ("", "0", "-1", "x", "1e3"),
    "--controls": ("", "25", "-1", "x", "1.5"),
    "--train-fraction": ("", "0", "-1", "1.1", "nan", "inf", "half"),
    "--device": ("", "tpu", "cuda:99", "CPU"),
    "--workers": ("", "0", "-1", "x"),
    "--keep": ("", "-1", "x"),
    "--sizs": ("nano",),
    "--no": ("",)}
BAD_COMMANDS = (
    "sweep", "sweep --task", "sweep add", "sweep --task add more",
    "sweep --task add --dry-run yes", "swep", "--task add", "--version",
    "analyse", "analyse nowhere", "analyse /dev/null", "analyse .", "analyse nowhere nowhere",
    "tasks division", "tasks add sort", "tasks --all",
    "measure", "measure nowhere", "measure nowhere --measure rank",
    "measure nowhere --measure rankme --step -1",
    "bench add", "bench --device tpu", "handout", "handout x --problem-set many", "grade",
    "grade nowhere",
    "pythia audits", "pythia evals nowhere", "pythia compare nowhere", "pythia measure",
    "pythia plan 160m --items many", "pythia plan 160m --dtype int8")


def bad_command_lines():
    lines = [line.split() for line in BAD_COMMANDS] + [["analyse", ""], ["tasks", ""]]
    lines += [["sweep", "--task", text] for text in BAD_TASKS]
    begin = ["sweep", "--task", "add"]
    lines += [[*begin, "--set", f"{name}={value}"] for name, kind in fields()
              for value in BAD_NUMBERS.get(kind, ()) if (name, value) != ("filler", "-1")]
    lines += [[*begin, "--set", text] for text in BAD_SETTINGS]
    lines += [[*begin, option, text] for option, texts in BAD_OPTIONS.items() for text in texts]
    return lines


def test_bad_command_lines_get_one_sentence(harmless, capsys):
    lines = bad_command_lines()
    assert len(lines) >= 250
    for arguments in lines:
        status, _, err = faults.call(capsys, *arguments)
        assert status == 2 and err.startswith("run.py: ") and err.count("\n") == 1, (
            arguments, status, err)
        assert "run.py: unexpected" not in err, (arguments, err)
        assert {path.name for path in harmless.iterdir()} <= {"lock"}, (arguments, "is written")
    print(f"{len(lines)} bad command lines, each refused in one sentence")


COMMANDS = [[], ["sweep"], ["sweep", "--task", "add"], ["analyse"], ["tasks"], ["measure"],
            ["pythia"], ["pythia", "audit"], ["pythia", "plan"], ["pythia", "measure"],
            ["pythia", "evals"], ["pythia", "compare"]]
OPTIONS = ["--task", "--sizes", "--seeds", "--steps", "--measures", "--measure", "--controls",
           "--train-fraction", "--device", "--workers", "--keep", "--set", "--level", "--help",
           "--items", "--probes", "--dtype", "--json", "-h", "--"]
VALUES = ["add", "all", "none", "nano", "nano,micro", "0", "1", "3", "-1", "0.5", "nan", "1e9",
          "cpu", "auto", "rankme", "lr=0.1", "steps=3", "levels=add-1", "runs", ".", "..",
          "/dev/null", "160m", "owner/name", "[bold]", "[/]"]
anything = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
setting = st.tuples(st.sampled_from([name for name, _ in fields()]), anything).map("=".join)
word = st.one_of(st.sampled_from(OPTIONS), st.sampled_from(VALUES), st.integers().map(str),
                 st.floats().map(str), anything, setting)
words = st.lists(st.one_of(st.tuples(st.sampled_from(OPTIONS), word), st.tuples(word)), max_size=5)


@st.composite
def command_lines(draw):
    line = list(draw(st.sampled_from(COMMANDS)))
    for part in draw(words):
        line += part
    return line


def never_a_traceback(arguments, capsys):
    if arguments[:1] == ["sweep"]:
        arguments = [*arguments, "--dry-run"]
    status, out, err = faults.call(capsys, *arguments)
    happened = arguments, status, err
    assert status in (0, 1, 2), happened
    assert "Traceback" not in out + err and "run.py: unexpected" not in err, happened
    assert err.count("\n") == (status != 0), happened


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_command_lines_never_end_in_a_traceback(count, harmless, capsys):
    seen = []

    @drawn(count)
    @given(command_lines())
    def check(arguments):
        seen.append(1)
        never_a_traceback(arguments, capsys)
    check()
    assert len(seen) >= 0.9 * count
    print(f"{len(seen)} random command lines")


NUMBERS = [name for name, kind in fields() if kind in (int, float)
           and name not in ("seed", "stop")]                   # stop may not be beyond steps


@given(st.lists(st.sampled_from(NUMBERS), unique=True), st.data())
@drawn(100)
def test_a_config_survives_the_command_line_and_the_disk(names, data):
    """--set, then config.json, then back: the same numbers, to the six digits that are written."""
    kinds, values = dict(fields()), {}
    for name in names:
        if kinds[name] is int:
            low, high = run.LEAST.get(name, 1), run.MOST.get(name, 10 ** 9)
            values[name] = data.draw(st.integers(low, high))
        else:
            values[name] = data.draw(st.floats(1e-6, 0.99))
    texts = [f"{name}={value!r}" for name, value in values.items()]
    everything = models.TrainConfig(intervene="rank-up", filler=3)          # else some do nothing
    train, measure = run.with_settings(texts, everything, sweep.MeasureConfig())
    found = dataclasses.asdict(train) | dataclasses.asdict(measure)
    assert {name: found[name] for name in names} == values

    again = json.loads(json.dumps(sweep.rounded(found)))
    assert sweep.rounded(again) == again
    for name, value in values.items():
        assert math.isclose(again[name], value, rel_tol=1e-5)


plain_values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
json_values = st.recursive(plain_values, lambda inner: st.one_of(
    st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=12)


@given(json_values)
@drawn(200)
def test_whatever_is_written_is_json_and_rounding_twice_is_rounding_once(value):
    once = sweep.rounded(value)
    assert sweep.rounded(once) == once
    assert json.loads(json.dumps(once, allow_nan=False)) == once


# --------------------------------------------------------------------------------------------------
# Tasks

NAMES = [(sham + task, level) for sham in ("", "sham-") for task in tasks.TASKS
         for level in tasks.LEVELS]


def answer(task, line):
    """From the text of a line: what must stand behind the "="."""
    prompt = line.removeprefix(task + " ")
    if task == "compare":
        a, b = map(int, prompt.split())
        if a == b:
            return "="
        return "<" if a < b else ">"
    if task in ("add", "multiply", "modadd"):
        head, _, modulus = prompt.partition(" mod ")
        a, sign, b = head.split()
        value = int(a) * int(b) if sign == "*" else int(a) + int(b)
        return str(value % int(modulus) if modulus else value)
    digits = prompt.split()
    found = {"copy": digits, "reverse": digits[::-1], "sort": sorted(digits),
             "parity": [str(digits.count("1") % 2)]}
    return " ".join(found[task])


SPLITS = [("all", 1.0), ("train", 0.5), ("test", 0.5)]


@given(st.sampled_from(NAMES), st.integers(0, 2 ** 40), st.sampled_from(SPLITS))
@drawn(150)
def test_every_line_of_every_task_is_right_and_can_be_read(name, seed, split):
    task, level = name
    if split[1] < 1 and f"{task}-{level}".endswith(("compare-3", "copy-3", "reverse-3", "sort-3")):
        split = SPLITS[0]                                      # these spaces are too large to split
    tokens, targets = tasks.sample(task, level, 6, torch.Generator().manual_seed(seed), *split)
    scored = targets != tasks.IGNORE
    assert tokens.shape == targets.shape
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < tasks.PAD

    # What is asked is the next token, from the "=" to the last place but one.
    assert torch.equal(targets[:, :-1][scored[:, :-1]], tokens[:, 1:][scored[:, :-1]])
    assert not scored[:, -1].any()
    equals = (tokens == tasks.ID["="]).int().argmax(1)
    assert (scored.int().argmax(1) == equals).all()
    assert (scored.sum(1) == tokens.shape[1] - 1 - equals).all()

    padding = torch.tensor([tasks.PAD] * 3)
    for row in tokens:
        line = tasks.decode(row)
        assert tasks.decode(torch.cat([row, padding])) == line
        if not task.startswith("sham-"):
            prompt, _, written = line.partition(" = ")
            assert written == answer(task, prompt), line


@given(st.lists(st.integers(0, tasks.VOCAB_SIZE - 1), max_size=20))
@drawn(200)
def test_decode_reads_any_tokens(tokens):
    """A model may write anything."""
    assert isinstance(tasks.decode(torch.tensor(tokens, dtype=torch.int64)), str)


# --------------------------------------------------------------------------------------------------
# RankMe

@given(st.integers(2, 30), st.integers(2, 12), st.integers(0, 2 ** 40), st.floats(-6, 6))
@drawn(100)
def test_rankme_does_not_see_scale_rotation_or_the_order_of_rows(n, d, seed, exponent):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)
    spectrum = 10.0 ** -torch.arange(d, dtype=torch.float64)
    x = normal(n, d) @ torch.diag(spectrum)                     # all sorts of spectra
    rotation = torch.linalg.qr(normal(d, d)).Q
    shuffled = x[torch.randperm(n, generator=generator)]
    rank = measures.rankme(x)
    assert 1 - 1e-4 <= rank <= min(n, d) * (1 + 1e-4)
    for same in (x * 10.0 ** exponent, x @ rotation, shuffled, -x, torch.cat([x, 0 * x[:1]])):
        # each p carries eps, and there are as many of them as singular values
        more = abs(min(same.shape) - min(n, d))
        assert math.isclose(measures.rankme(same), rank, rel_tol=1e-9 + 2e-6 * more), (
            rank, measures.rankme(same))


@given(st.integers(2, 30), st.integers(2, 12), st.integers(0, 2 ** 40), st.floats(-200, 200))
@drawn(60)
def test_centred_measures_do_not_see_scale_rotation_order_or_repetition(n, d, seed, exponent):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) + 1
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    times = torch.randint(1, 4, (n,), generator=generator)
    share, rank = measures.mean_share(x, times), measures.rankme_centred(x, times)
    assert 0 <= share <= 1 + 1e-12 and 1 - 1e-4 <= rank <= min(n - 1, d) * (1 + 1e-4)
    order = torch.randperm(n, generator=generator)
    for same, weights in ((x * 10.0 ** exponent, times), (x @ rotation, times),
                          (x[order], times[order]), (x.repeat_interleave(times, 0), None),
                          (x, times * 0.01)):
        assert math.isclose(measures.mean_share(same, weights), share, rel_tol=1e-9)
        again = measures.rankme_centred(same, weights)
        more = abs(min(same.shape) - min(n, d))                 # each p carries eps
        assert math.isclose(again, rank, rel_tol=1e-6 + 2e-6 * more), (rank, again)


# --------------------------------------------------------------------------------------------------
# Curves

steps_of = st.lists(st.integers(0, 10 ** 6), min_size=1, max_size=40, unique=True).map(sorted)
level = st.one_of(st.none(), st.floats(0, 1))
rank_value = st.one_of(st.none(), st.floats(1, 200))


def or_never(step):
    return math.inf if step is None else step


@given(steps_of, st.data(), st.floats(0, 0.9), st.integers(1, 5))
@drawn(200)
def test_emergence_is_one_of_the_steps_and_comes_later_the_more_one_asks(
        steps, data, chance, persistence):
    accuracy = data.draw(st.lists(level, min_size=len(steps), max_size=len(steps)))
    found = [emergence.emergence_step(steps, accuracy, chance, threshold, persistence)
             for threshold in (0.1, 0.3, 0.5, 0.9)]
    assert all(step is None or step in steps for step in found)
    later = [or_never(step) for step in found]
    assert later == sorted(later)
    longer = emergence.emergence_step(steps, accuracy, chance, 0.3, persistence + 1)
    assert or_never(longer) >= or_never(found[1])
    if found[1] is not None:
        held = accuracy[steps.index(found[1]):][:persistence]
        assert len(held) == persistence
        assert all((a - chance) / (1 - chance) >= 0.3 - 1e-9 for a in held)


@given(steps_of, st.data(), st.integers(1, 5))
@drawn(200)
def test_collapse_has_its_dates_among_the_steps_and_in_order(steps, data, persistence):
    rank = data.draw(st.lists(rank_value, min_size=len(steps), max_size=len(steps)))
    known = [r for r in rank if r is not None]
    if not known:
        with pytest.raises(ValueError):
            emergence.collapse(steps, rank)
        return
    found = [emergence.collapse(steps, rank, rise=rise, persistence=persistence)
             for rise in (0.0, 0.2, 1.0)]
    assert len({(c.floor, c.floor_step) for c in found}) == 1
    assert found[0].floor_step in steps and min(known) <= found[0].floor <= max(known)

    onsets = [or_never(c.onset_step) for c in found]
    assert onsets == sorted(onsets)
    for onset in onsets:
        assert onset == math.inf or onset in steps and onset > found[0].floor_step

    larger = [None if r is None else 4 * r for r in rank]
    scaled = emergence.collapse(steps, larger, persistence=persistence)
    assert (scaled.floor_step, scaled.onset_step) == (found[1].floor_step, found[1].onset_step)
