"""The command line from end to end: a small sweep, its files, resuming, and every bad input.

SMALL trains the smallest real model for forty steps.  It runs once, for the fixture `finished`;
the tests work on copies of what it leaves.
"""
import contextlib
import csv
import functools
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import claims
import emergence
import faults
import models
import report
import run
import sweep
import tasks
from faults import call, names, rows_of, same_weights, weights

pytestmark = pytest.mark.system        # whole sweeps and courses: not while editing

ROOT = Path(run.__file__).parent
SMALL = ["--task", "parity,copy", "--controls", "1", "--sizes", "nano", "--seeds", "1",
         "--steps", "40", "--measures", "rankme"]
FEW = ("snapshots=10", "per_level=4", "eval_examples=50", "threads=1")
for _field in FEW:
    SMALL += ["--set", _field]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small sweep: (its directory, what it printed)."""
    folder, screen = tmp_path_factory.mktemp("sweep"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(screen):
        patch.setattr(sys, "argv", ["run.py", "sweep", *SMALL, "--out", str(folder)])
        with pytest.raises(SystemExit) as stop:
            run.main()
    assert not stop.value.code
    return folder / "copy+parity", screen.getvalue()


@pytest.fixture
def copied(finished, tmp_path):
    """The same directory once more, to be changed."""
    shutil.copytree(finished[0], tmp_path / "copy+parity")
    return tmp_path / "copy+parity"


@pytest.fixture
def untimed(monkeypatch):
    """No run is timed for the plan."""
    monkeypatch.setattr(sweep, "estimate", lambda *_: (60, 60, 1))


@pytest.fixture
def undrawn(monkeypatch):
    """One small figure: for tests that ask about something else."""
    monkeypatch.setattr(report, "FIGURES", {"choices": (faults.no_figure, ""),
                                            "dot": (faults.dot, "A dot.")})
    monkeypatch.setattr(run, "first_look", faults.no_figure)


@pytest.fixture
def few(undrawn, monkeypatch):
    """Nor are there many specifications."""
    chosen = claims.specifications(faults.FEW)
    monkeypatch.setattr(claims, "specifications", lambda runs: chosen)


def unfinished(folder):
    """The run of a sweep, as if it had been stopped.  -> its directory"""
    (folder / "nano-s0/done").unlink()
    return folder / "nano-s0"


def one_sentence(err):
    return err.startswith("run.py: ") and err.count("\n") == 1 and "Traceback" not in err


# --------------------------------------------------------------------------------------------------
# A sweep and its files

def test_a_sweep_leaves_what_the_docstring_draws(finished):
    folder, screen = finished
    assert names(folder) == {"nano-s0", "findings.json", "events.csv", "figures", "report.html"}
    assert names(folder / "nano-s0") == {"config.json", "metrics.jsonl", "film.jsonl",
                                         "checkpoint.pt", "done"}
    assert names(folder / "figures") == {"curves-nano.png", "layers-nano.png", "measures.png"}
    assert "report.html" in screen.replace("\n", "") and "parity-3" in screen


def test_a_config_and_its_rows(finished):
    one = finished[0] / "nano-s0"
    config = json.loads((one / "config.json").read_text())
    levels = [f"{task}-{k}" for task in ("copy", "parity") for k in (1, 2, 3)]
    assert config["levels"] == [*levels, "sham-modadd-2"]
    assert config["steps"] == 40 and config["chance"]["parity-1"] == 0.5
    assert config["environment"]["torch"] == torch.__version__
    rows = rows_of(one)
    assert [row["step"] for row in rows] == models.snapshot_steps(40, 10)
    assert config["examples"]["parity-1"] is None and config["examples"]["copy-3"] == 50
    assert rows[0]["loss"] is None and rows[-1]["loss"] > 0
    level = rows[-1]["levels"]["parity-1"]
    assert level["distinct"] == 8 and set(level["rankme"]) == {"first", "answer", "last"}
    assert {key: len(layers) for key, layers in level["rankme"].items()} == {
        "first": 4, "answer": 2, "last": 2}                    # all layers; the last two
    for layers in [*level["rankme"].values(), level["rankme_centred"][1:]]:
        assert all(1 <= rank <= 8.1 for rank in layers)
    assert level["rankme_centred"][0] is None                  # one token, "=", for all inputs
    assert len(level["mean_share"]) == 4 and level["marginal_kl"] >= 0


def test_events_have_a_row_for_each_event_of_each_level(finished):
    with open(finished[0] / "events.csv") as file:
        events = list(csv.DictReader(file))
    kinds = {(event["quantity"], event["event"]) for event in events}
    assert kinds == {("rankme", "onset"), ("rankme_centred", "onset"),
                     ("accuracy", "emergence"), ("log_prob", "emergence"),
                     ("token_accuracy", "emergence")}
    counts = Counter((event["level"], event["quantity"]) for event in events)
    assert max(counts.values()) == 1 and len({level for level, _ in counts}) == 7
    behaviour = [event for event in events if event["event"] == "emergence"]
    assert len(behaviour) == 7 * 3 and sum(event["sham"] == "True" for event in behaviour) == 3
    assert sum(event["quantity"] == "rankme" for event in events) == 7
    assert len(events) < 7 * 5, "of rankme_centred, those that had room to move"


@pytest.mark.usefixtures("few")
def test_the_same_command_gives_the_same_bits_and_measuring_changes_none(
        finished, tmp_path, capsys, untimed):
    for name, extra in (("twice", []), ("unmeasured", ["--measures", "none"])):
        status, screen, err = call(capsys, "sweep", *SMALL, "--out", tmp_path / name, *extra)
        assert status == 0, err
        one = tmp_path / name / "copy+parity/nano-s0"
        assert same_weights(one, finished[0] / "nano-s0"), name
        assert ("RankMe was not measured" in screen) == (name == "unmeasured")
        assert "could not be drawn" not in screen
    assert rows_of(tmp_path / "twice/copy+parity/nano-s0") == rows_of(finished[0] / "nano-s0")


@pytest.mark.usefixtures("few")
def test_a_killed_run_goes_on_to_the_same_bits(finished, tmp_path, capsys, monkeypatch, untimed):
    """Killed at its seventh snapshot, in the middle of writing a row; then the same command."""
    real, left = sweep.measure_behaviour, [None] * 6

    def killed(*arguments):
        if not left:
            raise MemoryError("planted")
        left.pop()
        return real(*arguments)
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(sweep, "measure_behaviour", killed)
        status, _, err = call(capsys, "sweep", *SMALL, "--out", tmp_path)
    assert status == 1 and "planted" in err
    one = tmp_path / "copy+parity/nano-s0"
    assert not (one / "done").exists() and len(rows_of(one)) == 6
    with open(one / "metrics.jsonl", "a") as file:
        file.write('{"step": 17, "lev')
    assert call(capsys, "sweep", *SMALL, "--out", tmp_path)[0] == 0
    assert rows_of(one) == rows_of(finished[0] / "nano-s0")
    assert same_weights(one, finished[0] / "nano-s0")


def test_by_default_all_measures_are_planned_for_the_first_run_alone(tmp_path, capsys, untimed):
    status, screen, _ = call(capsys, "sweep", "--task", "modadd", "--seeds", "2", "--dry-run",
                             "--out", tmp_path)
    also = [line for line in screen.replace("\n  ", " ").splitlines() if "also:" in line]
    assert status == 0 and len(also) == 1 and also[0].startswith("nano-s0 also: gradient_rank")


@pytest.mark.parametrize("asked, folder, count", [
    ("add-1", "add-1", 1), ("xor-2, add", "add+xor-2", 4), ("add-3,add-1,add-2", "add", 3),
    ("parity-1,add-2,add", "parity-1+add", 4), ("arithmetic", "arithmetic", 28)])
def test_tasks_and_single_levels_can_be_asked_for_together(asked, folder, count, tmp_path, capsys,
                                                           untimed):
    status, screen, _ = call(capsys, "sweep", "--task", asked, "--seeds", "1", "--dry-run",
                             "--measures", "none", "--out", tmp_path)
    assert status == 0 and f"/{folder}:{count}task-level" in "".join(screen.split())


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_is_not_run_again_and_analyse_makes_the_same_files(copied, capsys):
    def times():
        return {path: path.stat().st_mtime_ns for path in (copied / "nano-s0").iterdir()}
    before = times()
    derived = ("findings.json", "events.csv")
    expected = [(copied / name).read_text() for name in derived]
    status, screen, _ = call(capsys, "sweep", *SMALL, "--out", copied.parent)
    assert status == 0 and "0 runs to do, 1 done already" in screen
    assert [(copied / name).read_text() for name in derived] == expected

    (copied / "findings.json").unlink()
    assert call(capsys, "analyse", copied)[0] == 0
    assert [(copied / name).read_text() for name in derived] == expected
    assert times() == before


def test_another_config_or_the_version_before_is_not_taken_for_this_one(copied, capsys, untimed):
    def everything():
        return {path: path.read_bytes() for path in copied.rglob("*")
                if path.is_file() and path.name != "lock"}
    before = everything()
    status, _, err = call(capsys, "sweep", *SMALL, "--set", "lr=0.5", "--out", copied.parent)
    assert status == 2 and one_sentence(err) and "lr was 0.002, now 0.5" in err
    assert everything() == before

    path = copied / "nano-s0/config.json"
    old = json.loads(path.read_text())
    del old["numbers"]
    path.write_text(json.dumps(old))
    before = everything()
    for command in (["sweep", *SMALL, "--out", copied.parent], ["analyse", copied],
                    ["measure", copied / "nano-s0", "--measure", "rankme"]):
        status, _, err = call(capsys, *command)
        assert status in (1, 2) and one_sentence(err) and "nano-s0" in err, (command, err)
    assert everything() == before


def test_dry_run_writes_nothing(tmp_path, capsys):
    status, screen, _ = call(capsys, "sweep", *SMALL, "--dry-run", "--out", tmp_path / "x")
    assert status == 0 and "1 run to do" in screen and not (tmp_path / "x").exists()


@pytest.mark.parametrize("sizes, seeds, workers, time", [
    ("nano", 1, 2, "10 s"), ("nano", 4, 2, "20 s"), ("nano", 4, 3, "20 s"), ("nano", 4, 4, "10 s"),
    ("micro,nano", 2, 2, "60 s"), ("micro,nano", 3, 2, "1.7 min"), ("micro,nano", 3, 9, "50 s")])
def test_a_run_begins_when_a_worker_is_free(sizes, seeds, workers, time, tmp_path, capsys,
                                            monkeypatch):
    """A shortest run, then the longest first.  Of three of 10 s and three of 50, one worker has 10,
    50, 10, 10 and the other 50, 50: together 100 s, not half of 180."""
    monkeypatch.setattr(sweep, "estimate", lambda train, measure: (
        (8.0, 2.0, 5) if train.size == "nano" else (40.0, 10.0, 5)))
    status, screen, _ = call(capsys, "sweep", "--task", "add", "--sizes", sizes, "--seeds", seeds,
                             "--measures", "none", "--workers", workers, "--dry-run",
                             "--out", tmp_path)
    assert status == 0 and f"about {time} on this machine" in screen, screen


@pytest.mark.parametrize("stop, to_do", [(39, 0), (0, 0), (20, 0)])
def test_a_plan_leaves_a_finished_run_as_it_is(stop, to_do, copied, capsys):
    """Where its end is another one, too: only a run that goes on notes that."""
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    status, screen, err = call(capsys, "sweep", *SMALL, "--set", f"stop={stop}", "--dry-run",
                               "--out", copied.parent)
    assert status == 0 and f"{to_do} runs to do" in screen, (screen, err)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("few")
def test_held_back_operands_have_a_folder_and_columns_of_their_own(tmp_path, capsys, untimed):
    arguments = ["modadd" if word == "parity,copy" else word for word in SMALL]
    status, _, err = call(capsys, "sweep", *arguments, "--train-fraction", "0.4", "--keep", "3",
                          "--out", tmp_path)
    assert status == 0, err
    one = tmp_path / "modadd-fraction0.4/nano-s0"
    level = rows_of(one)[-1]["levels"]["modadd-1"]
    assert {"accuracy", "accuracy_train", "accuracy_test"} <= set(level)
    kept = models.snapshot_steps(40, 10)[::3]
    assert names(one / "weights") == {f"step-{step:06d}.pt" for step in kept}


def test_a_run_that_another_process_holds_is_a_failure_of_the_only_worker(
        copied, capsys, untimed):
    with sweep.locked(unfinished(copied)):
        status, _, err = call(capsys, "sweep", *SMALL, "--out", copied.parent)
    assert status == 1 and one_sentence(err) and "another process" in err


# --------------------------------------------------------------------------------------------------
# Progress

class Writer:
    """Steps of a run, written one at a time; it waits until they have been seen."""

    def __init__(self, folder, steps):
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self.job = sweep.Job(folder, models.TrainConfig(steps=steps), sweep.MeasureConfig())
        folder.mkdir(parents=True)

    def write(self, step):
        with open(self.path, "a") as file:
            levels = {f"modadd-{k}": {"accuracy": step / 40 / k} for k in (1, 2)}
            levels["sham-add-1"] = {"accuracy": 0.5}
            file.write(json.dumps({"step": step, "loss": 1.5, "levels": levels}) + "\n")


def wait_for(text, screen, seconds=10):
    deadline = time.monotonic() + seconds
    while text not in screen.getvalue() and time.monotonic() < deadline:
        time.sleep(0.005)
    return text in screen.getvalue()


class Impatient(run.threading.Event):
    def wait(self, timeout=None):
        return super().wait(0.01)


@pytest.fixture
def screen(monkeypatch):
    """What is printed where the output is no terminal; progress is looked at very often."""
    text = io.StringIO()
    monkeypatch.setattr(run, "out", Console(file=text, highlight=False, width=80))
    monkeypatch.setattr(run.threading, "Event", Impatient)
    return text


def test_without_a_terminal_there_is_a_line_at_every_tenth_of_a_run(tmp_path, screen):
    writer = Writer(tmp_path / "nano-s0", 40)
    with run.show_progress([writer.job]):
        for step in range(0, 41, 2):
            writer.write(step)
            if step % 4 == 0 and 0 < step < 40:
                accuracy = f"modadd {step / 40:.2f} {step / 80:.2f}".replace(" 0", " ")
                percent = (step + 10 * (step + 1)) * 100 // (40 + 10 * 41)  # a snapshot: ten steps
                line = f"nano-s0  {percent}%  step {step}  loss 1.500  {accuracy}"
                assert wait_for(line, screen), (line, screen.getvalue())
        done = {"until": 40, "wall_train_s": 100, "wall_measure_s": 7}
        sweep.write_atomically(writer.folder / "done", done)
        assert wait_for("nano-s0  done: training 1.7 min, measuring 7 s\n", screen)
    text = screen.getvalue()
    assert text.count("nano-s0") == 10, "nine tenths, and the end"
    assert text.count(" left") >= 7, "how long it will take, once two rows have been seen"


def test_without_a_terminal_nobody_waits_long_for_a_word(tmp_path, screen, monkeypatch):
    monkeypatch.setattr(run, "SILENCE", 0.05)
    writer = Writer(tmp_path / "nano-s0", 40)
    with run.show_progress([writer.job]):
        assert wait_for("still at work\n", screen)
        writer.write(1)                                        # long before the first tenth
        assert wait_for("nano-s0  4%  step 1  loss 1.500", screen)
        before = screen.getvalue().count("step 1 ")
        deadline = time.monotonic() + 10
        while screen.getvalue().count("step 1 ") == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert screen.getvalue().count("step 1 ") > before, "it is said again"


@pytest.mark.parametrize("levels, text", [
    ({"add-1": 0.5, "add-2": 1.0, "sham-add-1": 0.9}, "  add .50 1.00"),
    ({"parity-1": 0.5, "parity-2": 0.64, "compare-1": 0.54, "copy-3": 0.31, "sham-add-1": 1.0},
     "  2 of 4 off chance")])
def test_accuracies_are_numbers_or_a_count_of_what_left_chance(levels, text):
    """Chance is 1/2 of parity, 1/3 of compare, next to nothing of copy; 30% of the way counts."""
    assert run.accuracies({level: {"accuracy": x} for level, x in levels.items()}) == text


def test_progress_of_an_earlier_command_is_not_shown_as_this_ones(tmp_path, screen):
    writer = Writer(tmp_path / "nano-s0", 40)
    writer.write(20)
    past = time.time() - 100
    assert run.progress_of(writer.job, past) == (20, "step 20  loss 1.500  modadd .50 .25")
    assert run.progress_of(writer.job, time.time() + 1) == (None, None)
    done = {"until": 20, "wall_train_s": 100, "wall_measure_s": 7}      # `stop` was 20, then raised
    sweep.write_atomically(writer.folder / "done", done)
    assert run.progress_of(writer.job, past)[0] == 20
    sweep.write_atomically(writer.folder / "done", done | {"until": 40})
    assert run.progress_of(writer.job, past)[1].startswith("done: ")
    (writer.folder / "done").unlink()
    writer.path.write_text('{"step": 2')                       # half a row
    assert run.progress_of(writer.job, past) == (None, None)


def test_time_left_is_told_where_a_row_takes_minutes(tmp_path, screen, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(run, "Progress", functools.partial(run.Progress,
                                                           get_time=lambda: clock[0]))
    writer = Writer(tmp_path / "nano-s0", 40)
    with run.show_progress([writer.job]):
        for step in range(0, 29, 4):
            writer.write(step)
            assert step == 0 or wait_for(f"step {step} ", screen)
            clock[0] += 240
    assert screen.getvalue().count(" min left") >= 4, screen.getvalue()


def test_ctrl_c_under_a_run_is_named_with_what_to_do(tmp_path, screen):
    writer = Writer(tmp_path / "nano-s0", 40)
    with pytest.raises(run.Stopped, match="same command goes on"):
        with run.show_progress([writer.job]):
            raise KeyboardInterrupt
    assert run.explain(run.Stopped())[0] == run.explain(KeyboardInterrupt())[0] == 130


# --------------------------------------------------------------------------------------------------
# analyse

@pytest.mark.usefixtures("few")
def test_analyse_names_what_is_missing(copied, capsys):
    shutil.copytree(copied / "nano-s0", copied / "nano-s1")
    config = json.loads((copied / "nano-s1/config.json").read_text())
    (copied / "nano-s1/config.json").write_text(json.dumps(config | {"seed": 1}))
    rows = copied / "nano-s1/metrics.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:5]) + lines[5][:40])
    status, screen, _ = call(capsys, "analyse", copied)
    assert status == 0 and "Missing: nano-s1 stopped at step" in screen
    findings = json.loads((copied / "findings.json").read_text())
    assert findings["runs"] == ["nano-s0"] and len(findings["missing"]) == 1


def test_a_directory_without_runs_is_refused(tmp_path, capsys):
    status, _, err = call(capsys, "analyse", tmp_path)
    assert status == 2 and one_sentence(err) and "holds no finished run" in err


def test_shams_alone_are_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "shams.csv").write_text("run,level,step,accuracy\nr,sham-add-1,0,0\n"
                                        "r,sham-add-1,1,0\nr,sham-add-1,2,0\n")
    status, _, err = call(capsys, "analyse", tmp_path / "shams.csv")
    assert status == 2 and one_sentence(err) and "Only shams were trained" in err


@pytest.mark.usefixtures("undrawn")
def test_a_runs_own_folder_can_be_analysed(copied, capsys):
    one = copied / "nano-s0"
    before = {name: (one / name).read_bytes() for name in names(one)}
    status, screen, err = call(capsys, "analyse", one)
    assert status == 0, err
    assert names(one) == {*before, "findings.json", "events.csv", "figures", "report.html"}
    assert all((one / name).read_bytes() == content for name, content in before.items())
    for name in ("findings.json", "events.csv"):
        assert (one / name).read_text() == (copied / name).read_text()
    status, _, err = call(capsys, "analyse", copied)            # what was derived is no run
    assert status == 0, err


@pytest.mark.usefixtures("few")
def test_several_sweeps_are_also_set_side_by_side(copied, tmp_path, capsys):
    shutil.copytree(copied, tmp_path / "other")
    status, screen, _ = call(capsys, "analyse", copied, tmp_path / "other")
    assert status == 0
    last = screen[screen.rindex("analysing and drawing"):]
    assert "copy+parity" in last and "other" in last


@pytest.mark.usefixtures("few")
def test_sweeps_of_one_name_are_told_apart_and_one_given_twice_counts_once(
        copied, tmp_path, capsys):
    for name in "ab":
        shutil.copytree(copied, tmp_path / name / "mine")
    paths = [tmp_path / name for name in ("a/mine", "b/mine", "b/../a/mine")]
    status, screen, err = call(capsys, "analyse", *paths)
    assert status == 0, err
    last = screen[screen.rindex("analysing and drawing"):]
    assert "\na/mine " in last and "\nb/mine " in last and last.count("mine") == 2
    assert screen.count("What happened") == 2
    assert "Of the paper's claims" not in screen, "each sweep has its story alone"


def test_arms_are_paired_by_seed_and_stand_in_the_report_of_the_first(copied, tmp_path, capsys):
    """The same run twice, of which one says that its rank was held up: nothing moves."""
    treated = tmp_path / "treated"
    shutil.copytree(copied, treated)
    for path in treated.glob("*/config.json"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"intervene": "rank-up", "strength": 3.0}))
    status, screen, err = call(capsys, "analyse", copied, treated)
    assert status == 0, err
    found = json.loads((copied / "effects.json").read_text())
    (effect,) = found["effects"]
    assert found["sweeps"] == [copied.name, "treated"]
    assert (effect["treated"], effect["control"]) == ("rank-up 3", "none")
    runs = sorted(path.parent.name for path in copied.glob("*/config.json"))
    assert sorted(effect["pairs"]) == runs
    assert all(level["shift"] == 0 for level in effect["levels"]) and effect["levels"]
    for text in (screen, (copied / "report.html").read_text()):
        assert "rank-up 3 / none" in text
    assert {"arms.png", "shifts.png"} <= names(copied / "figures")
    assert not (treated / "effects.json").exists() and "arms.png" not in names(treated / "figures")
    assert "arms" not in json.loads((copied / "findings.json").read_text())


def large_sweep(folder):
    """A sweep of one run with so many rows that another process draws."""
    one = folder / "nano-s0"
    one.mkdir(parents=True)
    levels = [f"{task}-{k}" for task in ("add", "copy", "sort") for k in tasks.LEVELS]
    train = models.TrainConfig(levels=tuple(levels), steps=1200)
    sweep.write_atomically(one / "config.json", sweep.run_config(train, sweep.MeasureConfig()))
    with open(one / "metrics.jsonl", "w") as file:
        for step in range(1201):
            columns = {"accuracy": float(step > 600), "log_prob": -1.0, "loss": 1.0, "distinct": 9,
                       "rankme": dict.fromkeys(("first", "answer", "last"), [3.0, 4.0, 5.0])}
            row = {"step": step, "loss": 1.0, "levels": dict.fromkeys(levels, columns)}
            file.write(json.dumps(row) + "\n")
    done = {"until": None, "wall_train_s": 1.0, "wall_measure_s": 1.0}
    sweep.write_atomically(one / "done", done)
    return folder


@pytest.mark.system
def test_of_a_large_sweep_another_process_draws_the_figures(tmp_path, capsys, monkeypatch):
    few = claims.specifications({"layer": (-2,)})

    def drawn_here(events):
        raise RuntimeError("this process draws")
    monkeypatch.setattr(claims, "specifications", lambda runs: few)
    monkeypatch.setitem(report.FIGURES, "curves", (drawn_here, ""))
    folder = large_sweep(tmp_path / "large")
    status, screen, err = call(capsys, "analyse", folder)
    assert status == 0 and "could not be drawn" not in screen, err
    assert {"curves-nano.png", "layers-nano.png", "measures.png"} <= names(folder / "figures")


@pytest.mark.parametrize("error", [OSError("no semaphores"), ImportError("no _multiprocessing"),
                                   NotImplementedError("no processes"), RuntimeError("no threads")])
def test_where_there_can_be_no_other_process_this_one_draws(error, monkeypatch):
    def fails(*_):
        raise error
    monkeypatch.setattr(run, "ProcessPoolExecutor", fails)
    with contextlib.ExitStack() as stack:
        assert run.draw_elsewhere(stack, [], {}) is None


def test_a_first_look_that_fails_leaves_the_sweep_alone(copied, monkeypatch):
    errors, left = [OSError("full"), ValueError("odd"), sweep.Failed("gone")], []

    def fails(*_, **__):
        raise left.pop()
    monkeypatch.setattr(emergence, "event_table", fails)
    for error in errors:
        left.append(error)
        run.first_look(copied)
        assert not left                                         # it came that far


# --------------------------------------------------------------------------------------------------
# What grows is one row of one table

def test_a_measure_that_was_added_can_be_asked_for(copied, capsys, monkeypatch, untimed):
    def norm(snapshot, evals):
        total = sum(float(p.detach().square().sum()) for p in snapshot.model.parameters())
        return {level: {"norm": total} for level in evals.levels}
    row = sweep.Measure(norm, ("norm",), "llc_snapshots", 1, ("norm",), "Sum of squared weights.")
    monkeypatch.setitem(sweep.MEASURES, "norm", row)
    status, screen, err = call(capsys, "measure", copied, "--measure", "norm", "--level", "copy-1")
    total = sum(float(p.square().sum()) for p in weights(copied / "nano-s0").values())
    assert status == 0 and f"{total:.3g}" in screen and row.about in screen, err
    status, screen, err = call(capsys, "sweep", "--task", "add", "--dry-run", "--measures", "norm")
    assert status == 0 and "nano-s0 also: norm" in screen, err


@pytest.mark.usefixtures("undrawn")
def test_analyse_says_what_it_does_and_asks_for_the_forecasts_p_only_if_told_to(copied, capsys):
    status, screen, err = call(capsys, "analyse", copied)
    assert status == 0 and "1 run under 720 combinations of choices" in screen, err
    rows = json.loads((copied / "findings.json").read_text())["forecasts"]
    assert all(row["p"] is None for row in rows)
    status, _, err = call(capsys, "analyse", copied, "--forecast-null", "3")
    assert status == 0, err
    again = json.loads((copied / "findings.json").read_text())["forecasts"]
    assert [row["gain"] for row in again] == [row["gain"] for row in rows]
    assert call(capsys, "analyse", copied, "--forecast-null", "-1")[0] == 2


@pytest.mark.usefixtures("few")
def test_a_claim_that_was_added_stands_in_the_findings(copied, capsys, monkeypatch):
    def levels(events, permutations):
        return np.full(1, float(len(events.levels)))
    row = claims.Claim("X1", "there are many task-levels", "-", "-", "-", levels, above=5,
                       form="{:.0f}")
    monkeypatch.setattr(claims, "CLAIMS", (*claims.CLAIMS, row))
    status, screen, err = call(capsys, "analyse", copied, "--full")
    assert status == 0 and "there are many task-levels" in screen, err
    findings = json.loads((copied / "findings.json").read_text())
    found = findings["claims"][-1]
    assert (found["claim"], found["value"], found["verdict"]) == ("X1", 6, "cannot tell: one run")
    assert "there are many task-levels" in (copied / "report.html").read_text()


class NoGradient(models.Intervention):
    """The weights stay as they are, but for the decay."""

    def gradients(self, params, penalty):
        for p in params:
            p.grad.zero_()


@pytest.mark.usefixtures("few")
def test_an_intervention_that_was_added_trains(finished, tmp_path, capsys, monkeypatch, untimed):
    monkeypatch.setitem(models.INTERVENTIONS, "no-gradient", NoGradient)
    command = ["sweep", *SMALL, "--set", "weight_decay=0", "--set", "intervene=no-gradient"]
    status, _, err = call(capsys, *command, "--out", tmp_path)
    assert status == 0, err
    one = tmp_path / "copy+parity-no-gradient/nano-s0"
    config = json.loads((one / "config.json").read_text())
    assert config["intervene"] == "no-gradient"
    kept = weights(one)
    untrained = models.new_model(models.TrainConfig()).state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in untrained.items())
    assert rows_of(one)[0] == rows_of(finished[0] / "nano-s0")[0]


@pytest.mark.parametrize("name, settings, expected", [
    ("rank-up", [], "copy+parity-rank-up"),
    ("rank-down", ["strength=3", "until=7"], "copy+parity-rank-down-3-until7"),
    ("", ["filler=3"], "copy+parity-filler3"),
    ("", ["filler=10", "filler_shuffled=1"], "copy+parity-filler10-shuffled")])
def test_the_arm_stands_in_the_folders_name(name, settings, expected, tmp_path, capsys, untimed):
    command = ["sweep", *SMALL, "--out", tmp_path, "--dry-run", "--intervene", name]
    for setting in settings:
        command += ["--set", setting]
    status, screen, _ = call(capsys, *command)
    assert status == 0 and f"{expected}: " in screen.replace("\n", "")


def test_another_training_in_the_folder_of_a_sweep_is_refused(finished, capsys, untimed):
    folder, _ = finished
    before = (folder / "nano-s0/config.json").read_bytes()
    status, _, err = call(capsys, "sweep", *SMALL, "--set", "clip=3", "--out", folder.parent)
    assert status == 2 and one_sentence(err) and "clip was 1" in err
    assert (folder / "nano-s0/config.json").read_bytes() == before


LINE = '''def twice(x, n):
    """Every digit is written twice."""
    return [x], x.repeat_interleave(2, dim=1)


'''
ROW = '''    "twice": Task(
        twice, sizes=(1, 2, 3), operand_ranges=((10,), (10,) * 2, (10,) * 3),
        about="every digit is written twice", words=("!",)),
'''


@pytest.mark.system
def test_a_task_added_as_one_function_and_one_row_is_trained_measured_and_analysed(tmp_path):
    """In a copy of the tree.  What was there before is where it was: no older model changes."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    source = (tmp_path / "tasks.py").read_text(encoding="utf-8")
    end = source.index("\n}\n", source.index("MORE_TASKS: dict[str, Task] = {")) + 1
    function = source.index("def xor(")
    (tmp_path / "tasks.py").write_text(
        source[:function] + LINE + source[function:end] + ROW + source[end:], encoding="utf-8")
    command = ["sweep", "--task", "twice", "--sizes", "nano", "--seeds", "1", "--steps", "20",
               "--measures", "rankme"]
    for field in FEW:
        command += ["--set", field]
    done = subprocess.run([sys.executable, "run.py", *command], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0 and "twice-3" in done.stdout, done.stderr
    folder = tmp_path / "runs/twice"
    assert names(folder) == {"nano-s0", "findings.json", "events.csv", "figures", "report.html"}
    config = json.loads((folder / "nano-s0/config.json").read_text())
    assert config["chance"] == {"twice-1": 0.1, "twice-2": 0.01, "twice-3": 0.001}
    assert len(rows_of(folder / "nano-s0")) == len(models.snapshot_steps(20, 10))
    shown = subprocess.run([sys.executable, "run.py", "tasks", "twice"], cwd=tmp_path,
                           capture_output=True, text=True)
    assert shown.returncode == 0 and "twice-3" in shown.stdout, shown.stderr
    grown = runpy.run_path(str(tmp_path / "tasks.py"))
    assert [*grown["VOCABULARY"]] == [*tasks.VOCABULARY, "!", "twice"]


# --------------------------------------------------------------------------------------------------
# Bad input, and help

ADD = ["sweep", "--task", "add"]


@pytest.mark.parametrize("arguments, status, message", [
    (["sweep", "--task", "substract"], 2, "'substract' is not one of copy, reverse"),
    (["sweep", "--task", "add-4"], 2, "'add-4' is not one of copy, reverse"),
    (["sweep", "--task", "add-1,"], 2, "'' is not one of copy, reverse"),
    (["sweep"], 2, "--task"),
    (["swep"], 2, "swep"),
    ([*ADD, "--sizs", "nano"], 2, "--sizs"),
    ([*ADD, "--sizes", "huge"], 2, "'huge' is not one of nano"),
    ([*ADD, "--measures", "rank"], 2, "'rank' is not one of"),
    ([*ADD, "--measures", ""], 2, "'' is not one of"),
    ([*ADD, "--seeds", "0"], 2, "--seeds"),
    ([*ADD, "--controls", "99"], 2, "there are 24"),
    ([*ADD, "--seeds", "many"], 2, "--seeds"),
    ([*ADD, "--set", "learning=1"], 2, "a field out of beta1"),
    ([*ADD, "--set", "eval_examples=99999999999999999999"], 2, "expected a number from"),
    ([*ADD, "--set", "levels=add-2"], 2, "a field out of beta1"),
    ([*ADD, "--set", "strength=3"], 2, "strength 3 does nothing here"),
    ([*ADD, "--set", "until=5"], 2, "without an intervention"),
    ([*ADD, "--set", "filler=0", "--set", "filler_shuffled=1"], 2, "here: without filler"),
    ([*ADD, "--set", "lr=fast"], 2, "of type float"),
    ([*ADD, "--set", "lr=0"], 2, "lr: expected a number from 1e-12"),
    ([*ADD, "--set", "dtype=int8"], 2, "float32, bfloat16"),
    ([*ADD, "--set", "intervene=magic"], 2, "'magic' does not exist"),
    ([*ADD, "--train-fraction", "1.5"], 2, "train_fraction"),
    ([*ADD, "--device", "tpu"], 2, "--device"),
    (["sweep", "--task", "parity", "--train-fraction", "1e-9"], 2, "has no operands"),
    (["tasks", "division"], 2, "'division' is not one of"),
    (["analyse", "nowhere"], 2, "nowhere is not a directory"),
    (["measure", "nowhere", "--measure", "llc"], 2, "nowhere holds 0 runs"),
])
def test_bad_arguments_get_one_sentence(arguments, status, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found, _, err = call(capsys, *arguments)
    assert found == status and one_sentence(err) and message in err, err
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none_is_refused(capsys):
    status, _, err = call(capsys, *ADD, "--device", "cuda")
    assert status == 2 and "torch finds none here" in err


@pytest.mark.parametrize("theirs, expected", [(None, "passive"), ("active", "active")])
def test_threads_that_wait_sleep_unless_the_user_wants_otherwise(theirs, expected, monkeypatch,
                                                                 capsys):
    monkeypatch.setenv("OMP_WAIT_POLICY", theirs or "")         # it is put back afterwards
    if not theirs:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    seen = []
    monkeypatch.setattr(run, "app", lambda *_, **__: seen.append(os.environ["OMP_WAIT_POLICY"]))
    assert call(capsys, "tasks")[0] == 0 and seen == [expected]


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "sweep", "--task", "nothing", "--debug"])
    with pytest.raises(ValueError, match="'nothing' is not one of"):
        run.main()


@pytest.mark.parametrize("arguments, words", [
    ([], "sweep analyse measure tasks bench handout grade pythia"),
    (["pythia"], "audit plan measure evals compare"),
    (["--help"], "sweep analyse"), (["sweep", "--help"], "--task --train-fraction --dry-run"),
    (["pythia", "plan", "--help"], "--probes --dtype")])
def test_help_names_every_command(arguments, words, capsys):
    status, out, err = call(capsys, *arguments)
    assert status == 0 and not err
    assert all(word in out for word in words.split())
    assert max(map(len, out.splitlines())) <= 80


AT_ONCE = """
import runpy, sys
sys.argv = ["run.py", *{arguments!r}]
try:
    runpy.run_path({program!r}, run_name="__main__")
except SystemExit as stop:
    status = stop.code or 0
loaded = [module for module in ("torch", "numpy", "matplotlib") if module in sys.modules]
print("status", status, "loaded", *loaded)
"""


@pytest.mark.system
@pytest.mark.parametrize("arguments, status", [
    ([], 0), (["pythia"], 0), (["--help"], 0), (["sweep", "--help"], 0),
    (["sweep", "--sizs", "nano"], 2), ([*ADD, "--seeds", "many"], 2), ([*ADD, "--steps", "0"], 2),
    ([*ADD, "--device", "tpu"], 2), (["analyse"], 2),
    (["pythia", "plan", "160m", "--items", "many"], 2)])
def test_help_and_bad_options_answer_at_once(arguments, status):
    """In half a second, without torch.  The clock is asserted loosely, for a loaded machine."""
    code = AT_ONCE.format(arguments=arguments, program=str(ROOT / "run.py"))
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    seconds = time.monotonic() - start
    assert done.stdout.splitlines()[-1] == f"status {status} loaded", done.stdout + done.stderr
    assert seconds < 1.5


# --------------------------------------------------------------------------------------------------
# measure, and tasks

def test_measure_trains_again_to_the_same_bits(copied):
    """The last step without its checkpoint, and one before it that no snapshot was taken at; and
    one that was kept is loaded."""
    expected = weights(copied / "nano-s0")
    (copied / "nano-s0/checkpoint.pt").unlink()
    folder, train, _ = run.saved_run(copied / "nano-s0")
    again = run.snapshot_at(folder, train, 40).model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in expected.items())
    assert 5 not in models.snapshot_steps(40, 10)
    assert run.snapshot_at(folder, train, 5).step == 5

    (folder / "weights").mkdir()
    sweep.save(folder / "weights/step-000005.pt", {key: x + 1 for key, x in again.items()})
    kept = run.snapshot_at(folder, train, 5).model.state_dict()
    assert all(torch.equal(value + 1, kept[key]) for key, value in again.items())


def test_a_saved_run_is_the_config_that_it_was_run_with(copied):
    folder, train, measure = run.saved_run(copied)              # a sweep of one run will do, too
    assert folder == copied / "nano-s0"
    assert train == models.TrainConfig(
        levels=train.levels, steps=40, lr=0.002, snapshots=10, per_level=4, threads=1,
        dtype=models.pick_dtype("cpu"))
    assert measure == sweep.MeasureConfig(
        eval_examples=50, hessian_snapshots=40, llc_snapshots=40, film=60)


FEW_GRADIENTS = ["--set", "gradient_examples=42"]
FEW_DRAWS = ["--set", "llc_draws=5", "--set", "llc_burnin=1", "--set", "llc_examples=8"]


@pytest.mark.parametrize("arguments", [
    ["rankme"], ["gradient_rank", *FEW_GRADIENTS], ["fisher_rank", *FEW_GRADIENTS],
    ["hessian_top", "--set", "hessian_examples=42", "--step", "7"],
    ["linear_probe", "--set", "linear_examples=40"],
    ["llc", *FEW_DRAWS, "--level", "parity-1,copy-2"]])
def test_measure_prints_a_table_that_tells_what_it_means(arguments, copied, capsys):
    status, screen, err = call(capsys, "measure", copied, "--measure", *arguments)
    assert status == 0 and all(len(line) <= 80 for line in screen.splitlines()), err
    about = " ".join(sweep.MEASURES[arguments[0]].about.split())
    assert about in " ".join(screen.split())
    assert ("parity-3" in screen) == ("--level" not in arguments)


@pytest.mark.parametrize("name", ["llc", "llc_narrow"])
def test_measure_llc_prints_how_far_it_can_be_trusted_and_draws_its_chains(name, copied, capsys):
    status, screen, err = call(capsys, "measure", copied, "--measure", name, *FEW_DRAWS)
    assert status == 0, err
    text = " ".join(screen.split())
    for words in ("joint: LLC", " +- ", "by noise alone", "usable", "lr ", "stiffness 2 here",
                  "R-hat", "effective draws", "half of it would change the LLC by",
                  "the draws lose", "Warning: "):
        assert words in text, words
    (figure,) = (copied / "nano-s0").glob(f"{name}-*.png")
    assert figure.read_bytes()[:4] == b"\x89PNG" and figure.name in text.replace(" ", "")


def test_traces_that_cannot_be_drawn_cost_the_figure_alone(copied, capsys, monkeypatch):
    def fails(*_):
        raise OSError("no\nfont")
    monkeypatch.setattr(report, "figure_traces", fails)
    status, screen, err = call(capsys, "measure", copied, "--measure", "llc", *FEW_DRAWS)
    assert status == 0 and not err and "joint: LLC" in screen and "traces: " not in screen
    assert "could not be drawn (OSError: no font)." in " ".join(screen.split())
    assert not list(copied.rglob("llc-*.png"))


def test_a_run_that_went_on_elsewhere_is_not_trained_again_here(copied, capsys):
    path = copied / "nano-s0/config.json"
    config = json.loads(path.read_text())
    config["resumed"] = [{"step": 20, "environment": config["environment"] | {"torch": "1.0"}}]
    path.write_text(json.dumps(config))
    status, _, err = call(capsys, "measure", copied, "--measure", "rankme", "--step", "7")
    assert status == 2 and one_sentence(err) and "torch was 1.0" in err


@pytest.mark.parametrize("arguments, message", [
    (["--measure", "llc", "--step", "7"], "torch was 1.0"),
    (["--measure", "llc", "--step", "41"], "0 to 40"),
    (["--measure", "ranks"], "--measure ranks: expected one of rankme"),
    (["--measure", "rankme", "--level", "sort-1"], "'sort-1' is not one of"),
    (["--measure", "rankme", "--set", "steps=3"], "a field out of"),
])
def test_measure_refuses_in_one_sentence(arguments, message, copied, capsys):
    path = copied / "nano-s0/config.json"
    config = json.loads(path.read_text())
    config["environment"]["torch"] = "1.0"
    path.write_text(json.dumps(config))
    status, _, err = call(capsys, "measure", copied, *arguments)
    assert status == 2 and one_sentence(err) and message in err, err


def test_tasks_shows_examples_and_chance(capsys):
    status, screen, _ = call(capsys, "tasks", "compare")
    assert status == 0 and "compare-3" in screen and "0.333" in screen and "xor" in screen
    assert all(len(line) <= 80 for line in screen.splitlines())
    assert f"vocabulary ({tasks.VOCAB_SIZE})" in call(capsys, "tasks")[1]


# --------------------------------------------------------------------------------------------------
# The parts

@pytest.mark.parametrize("text, picked", [
    ("b,a", ("a", "b")), ("all", ("a", "b", "c")), (" c ", ("c",)), ("a,a", ("a",))])
def test_names_come_in_the_order_of_their_table(text, picked):
    assert run.pick("--x", text, ("a", "b", "c")) == picked


@pytest.mark.parametrize("seconds, text", [
    (5, "5 s"), (89.4, "89 s"), (90, "1.5 min"), (5399, "90.0 min"), (5400, "1.5 h")])
def test_times_have_a_unit_that_suits_them(seconds, text):
    assert run.minutes(seconds) == text


def test_settings_find_their_config_whichever_it_is_in():
    train, measure = run.with_settings(
        ["lr=0.5", "llc_draws=7", "dtype=bfloat16", "measures=llc"],
        models.TrainConfig(), sweep.MeasureConfig())
    assert (train.lr, train.dtype) == (0.5, "bfloat16")
    assert (measure.llc_draws, measure.measures) == (7, ("llc",))


def test_the_longest_run_comes_second_and_one_has_every_measure(tmp_path):
    """The shortest is first, for its figure is soon to be seen."""
    seeds = {"nano": range(2), "micro": range(2)}
    plan = run.make_plan(tmp_path, seeds, models.TrainConfig(), sweep.MeasureConfig(), True, [])
    work = [sweep.work(job.train, job.measure) for job in plan]
    assert work[0] == min(work) and work[1:] == sorted(work[1:], reverse=True) and len(plan) == 4
    every = [job.folder.name for job in plan if job.measure.measures == sweep.FIRST_RUN]
    assert every == ["nano-s0"] and "llc" in sweep.FIRST_RUN
    measure = sweep.MeasureConfig(measures=("llc",))
    plan = run.make_plan(tmp_path, seeds, models.TrainConfig(), measure, True, ["measures=llc"])
    assert {job.measure.measures for job in plan} == {("llc",)}


def test_a_sweep_may_grow_downwards(tmp_path):
    """What was the first run keeps its measures and its film, and the new one has them as well."""
    def plan(seeds):
        return run.make_plan(tmp_path, {"nano": seeds}, models.TrainConfig(),
                             sweep.MeasureConfig(measures=("rankme",)), True, [])
    before = plan(range(5, 7))
    for one in before:
        one.folder.mkdir()
        config = sweep.rounded(sweep.run_config(one.train, one.measure))
        sweep.write_config(one.folder, config, {})
    now = {one.folder.name: one.measure for one in plan(range(3, 7))}
    assert {one.folder.name: one.measure for one in before}.items() <= now.items()
    assert now["nano-s3"].measures == now["nano-s5"].measures == sweep.FIRST_RUN
    assert now["nano-s3"].film and not now["nano-s6"].film


# --------------------------------------------------------------------------------------------------
# The committed results

# Those that have findings: the other folders hold the runs of arms, and are analysed with `all`.
RESULTS = sorted(path.parent.name for path in (ROOT / "results").glob("*/findings.json"))


@pytest.mark.system
@pytest.mark.parametrize("name", ["modadd", *[pytest.param(name, marks=pytest.mark.slow)
                                              for name in RESULTS if name != "modadd"]])
def test_committed_results_are_what_analyse_makes_of_them(name, tmp_path, capsys):
    committed, again, arms = ROOT / "results" / name, tmp_path / name, [name]
    files = ["findings.json", "events.csv"]
    if (committed / "effects.json").exists():                   # analysed together with others
        files.append("effects.json")
        arms = json.loads((committed / "effects.json").read_text())["sweeps"]
    derived = shutil.ignore_patterns("figures", "report.html", *files)
    for arm in arms:
        shutil.copytree(ROOT / "results" / arm, tmp_path / arm, ignore=derived)
    status, _, err = call(capsys, "analyse", *[tmp_path / arm for arm in arms])
    assert status == 0, err
    for file in files:
        assert (again / file).read_text() == (committed / file).read_text(), file
    assert names(again / "figures") == names(committed / "figures")
