"""Several workers at one sweep: the same files as one makes, whoever is killed when."""
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import models
import run
from test_run import RUN, call, rows_without_clock, same_weights

FOUR = ["--task", "parity", "--sizes", "nano", "--seeds", "4", "--steps", "40", "--set", "snapshots=10", "--set", "per_level=4",
        "--set", "eval_examples=50", "--set", "probe_examples=20", "--measures", "rankme", "--set", "threads=1"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def sweep(folder, *options, launcher=(sys.executable,), program=RUN):
    done = subprocess.run([*map(str, launcher), program, "sweep", *FOUR, *options, "--out", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "parity", done


def assert_same(folder, expected):
    assert {p.name for p in folder.iterdir()} - {"lock"} == {p.name for p in expected.iterdir()} - {"lock"}
    for name in ("findings.json", "events.csv"):
        assert (folder / name).read_text() == (expected / name).read_text(), name
    for one in sorted(expected.glob("*-s*")):
        other = folder / one.name
        assert {p.name for p in other.iterdir()} - {"lock"} == {"config.json", "metrics.jsonl", "checkpoint.pt", "done"}
        assert same_weights(other, one), one.name
        assert rows_without_clock(other / "metrics.jsonl") == rows_without_clock(one / "metrics.jsonl"), one.name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("alone"), "--workers", "1")[0]


def test_two_workers_make_the_files_of_one(alone, tmp_path):
    folder, done = sweep(tmp_path, "--workers", "2")
    assert_same(folder, alone)
    assert "workers: 2" in done.stdout and done.stdout.count("done: training") == 4 and not done.stderr, done.stderr


def test_torchrun_makes_the_files_of_one_worker(alone, tmp_path):
    folder, done = sweep(tmp_path, launcher=TORCHRUN)
    assert_same(folder, alone)
    assert done.stdout.count("4 runs to do") == 2, "each of them goes through the same list"


def test_a_failed_run_is_said_once_and_the_others_are_done(tmp_path, alone):
    (tmp_path / "parity/nano-s2").mkdir(parents=True)
    run.save(tmp_path / "parity/nano-s2/checkpoint.pt", {"foreign": 1})
    done = subprocess.run([sys.executable, RUN, "sweep", *FOUR, "--workers", "2", "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1 and done.stderr.count("is not a checkpoint") == 1, done.stderr
    assert [p.parent.name for p in sorted(tmp_path.glob("parity/*/done"))] == ["nano-s0", "nano-s1", "nano-s3"]


def test_threads_follow_from_the_plan_and_stay_what_a_run_was_begun_with(tmp_path, capsys, monkeypatch):
    """So that more seeds can be added to a sweep, and no number depends on how many workers there are."""
    monkeypatch.setattr(run, "cores", lambda: 8)
    monkeypatch.setattr(run, "estimate", lambda *_: (0, 0, 1))
    monkeypatch.setattr(run, "launch", lambda workers, plan: seen.append((workers, [train.threads for _, train, _ in plan])) or [])
    monkeypatch.setattr(run, "take_up", lambda plan, alone: run.launch(1, plan))
    seen, options = [], ["sweep", *FOUR[:-2], "--out", tmp_path]
    for arguments in (["--workers", "1"], ["--workers", "3"], [], ["--seeds", "16"], ["--seeds", "1"]):
        assert call(capsys, monkeypatch, *options, *arguments)[0] == 0
    assert seen == [(1, [2] * 4), (3, [2] * 4), (4, [2] * 4), (8, [1] * 16), (1, [8])]
    monkeypatch.undo()
    assert call(capsys, monkeypatch, *options, "--seeds", "1", "--set", "threads=2")[0] == 0
    assert call(capsys, monkeypatch, *options, "--seeds", "1")[0] == 0
    status, _, err = call(capsys, monkeypatch, *options, "--seeds", "1", "--set", "threads=1")
    assert status == 2 and "threads was 2, now 1" in err


def hold(folder):
    """A process that holds the lock of a run."""
    code = f"import sys, time; sys.path.insert(0, {str(Path(RUN).parent)!r}); import run, pathlib\nwith run.locked(pathlib.Path({str(folder)!r})):\n    print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_the_run_of_a_killed_worker_is_taken_up_by_another(tmp_path):
    other = hold(tmp_path)
    with pytest.raises(run.Busy, match="another process"), run.locked(tmp_path):
        pass
    other.kill()
    other.wait()
    assert (tmp_path / "lock").exists()
    with run.locked(tmp_path):
        with pytest.raises(run.Busy), run.locked(tmp_path):
            pass


def test_a_run_that_is_held_is_passed_over_and_looked_at_again(tmp_path, monkeypatch):
    plan, order = [(tmp_path / name, models.TrainConfig(), run.MeasureConfig()) for name in "ab"], []

    def execute(folder, train, measure):
        with run.locked(folder):
            order.append(folder.name)
            (folder / "done").touch()
        if folder.name == "b":
            other.kill()
            other.wait()
    for folder, *_ in plan:
        folder.mkdir()
    monkeypatch.setattr(run, "execute", execute)
    other = hold(plan[0][0])
    assert run.take_up(plan[:1], alone=True)[0].endswith("stop it") and not order
    assert run.take_up(plan) == [] and order == ["b", "a"]


@pytest.mark.slow
def test_twenty_kills_at_random_times_change_nothing(tmp_path):
    longer = ["--steps", "3000", "--set", "snapshots=60"]
    expected, _ = sweep(tmp_path / "expected", *longer, "--workers", "1")
    program = tmp_path / "often.py"                                    # checkpoints more often, or no run would ever get on
    program.write_text(f"import sys; sys.path.insert(0, {str(Path(RUN).parent)!r}); import run; run.CHECKPOINT_SECONDS = 0.3; run.main()")
    process = subprocess.Popen([*TORCHRUN, "--max-restarts", "100", str(program), "sweep", *FOUR, *longer, "--out", tmp_path / "killed"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    dice, kills = random.Random(0), 0
    while kills < 20 and process.poll() is None:
        time.sleep(dice.uniform(0, 8))
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        if workers:
            os.kill(int(dice.choice(workers)), 9)
            kills += 1
    assert process.wait(timeout=600) == 0 and kills == 20
    assert_same(tmp_path / "killed" / "parity", expected)
