"""Several workers at one sweep leave the files that one leaves, even where some are killed.

Nobody hands out runs.  Each process goes through the same list, and locks keep two from the same
run.  FOUR is a sweep of four small runs; it has to be quick, for it is made again and again.
"""
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import models
import run
import sweep
from faults import call, names, rows_of, same_weights

pytestmark = pytest.mark.system        # whole sweeps and courses: not while editing

RUN = str(Path(run.__file__))
FOUR = ["--task", "parity", "--sizes", "nano", "--seeds", "4", "--steps", "40",
        "--measures", "rankme"]
for _field in ("snapshots=10", "per_level=4", "eval_examples=50", "threads=1"):
    FOUR += ["--set", _field]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def launch(folder, *options, launcher=(sys.executable,)):
    """FOUR in a process of its own."""
    command = [*launcher, RUN, "sweep", *FOUR, *options, "--out", folder]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def assert_same_run(folder, expected):
    """Two runs' directories hold the same numbers and the same weights."""
    film = {"film.jsonl"} if expected.name == "nano-s0" else set()
    assert names(folder) == {"config.json", "metrics.jsonl", "checkpoint.pt", "done"} | film
    assert all((folder / name).read_bytes() == (expected / name).read_bytes() for name in film)
    assert same_weights(folder, expected), expected.name
    assert rows_of(folder) == rows_of(expected), expected.name


def assert_same(folder, expected):
    """Two sweeps' directories hold the same runs, and the same findings."""
    assert names(folder) == names(expected)
    for name in ("findings.json", "events.csv"):
        assert (folder / name).read_text() == (expected / name).read_text(), name
    for one in sorted(expected.glob("*-s*")):
        assert_same_run(folder / one.name, one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one worker leaves."""
    folder = tmp_path_factory.mktemp("alone")
    done = launch(folder, "--workers", "1")
    assert done.returncode == 0, done.stderr
    return folder / "parity"


# --------------------------------------------------------------------------------------------------
# Whole sweeps

@pytest.mark.system
@pytest.mark.slow
def test_two_workers_make_the_files_of_one(alone, tmp_path):
    done = launch(tmp_path, "--workers", "2")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "workers: 2" in done.stdout and done.stdout.count("done: training") == 4
    assert_same(tmp_path / "parity", alone)


@pytest.mark.system
@pytest.mark.slow
def test_torchrun_makes_the_files_of_one_worker(alone, tmp_path):
    done = launch(tmp_path, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 runs to do") == 2, "each of them goes through the same list"
    assert_same(tmp_path / "parity", alone)


@pytest.mark.system
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="workers are found in /proc")
def test_a_killed_worker_is_made_up_for_and_what_failed_is_named_once(alone, tmp_path):
    """The parent starts two; one is killed in the middle of its first run.  Another run's
    checkpoint is none of ours: both workers come by it."""
    foreign = tmp_path / "parity/nano-s2"
    foreign.mkdir(parents=True)
    sweep.save(foreign / "checkpoint.pt", {"foreign": 1})
    command = [sys.executable, RUN, "sweep", *FOUR, "--workers", "2", "--out", str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = []

    def kill_one():
        rows = tmp_path / "parity/nano-s1/metrics.jsonl"
        while parent.poll() is None and not killed:
            if rows.exists() and rows.stat().st_size:
                workers = workers_of(parent.pid)
                if workers:
                    os.kill(workers[0], 9)
                    killed.append(workers[0])
            time.sleep(0.01)
    thread = threading.Thread(target=kill_one)
    thread.start()
    out, err = parent.communicate(timeout=120)
    thread.join()
    assert parent.returncode == 1 and killed, err
    assert "workers: 2" in out and out.count("done: training") == 3
    assert len(err.strip().splitlines()) == 1 and err.count("is not a checkpoint") == 1, err
    for name in ("nano-s0", "nano-s1", "nano-s3"):
        assert_same_run(tmp_path / "parity" / name, alone / name)
    assert not (foreign / "done").exists()

    # without it the same command goes on, and leaves what one worker leaves
    (foreign / "checkpoint.pt").unlink()
    done = launch(tmp_path, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "parity", alone)


def children(pid):
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(one) for one in listed.stdout.split()]


def workers_of(pid):
    """The children of a process that carry out runs: not the one that keeps track of resources."""
    found = []
    for child in children(pid):
        line = Path(f"/proc/{child}/cmdline")
        if line.exists() and b"spawn_main" in line.read_bytes():
            found.append(child)
    return found


# --------------------------------------------------------------------------------------------------
# The parts

def hold(folder):
    """A process that holds the lock of a run."""
    code = f"""
import pathlib, sys, time
sys.path.insert(0, {str(Path(RUN).parent)!r})
import sweep
with sweep.locked(pathlib.Path({str(folder)!r})):
    print(1, flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


@pytest.mark.system
def test_the_lock_of_a_killed_process_is_free(tmp_path):
    other = hold(tmp_path)
    with pytest.raises(sweep.Busy, match="another process"), sweep.locked(tmp_path):
        pass
    other.kill()
    other.wait()
    assert (tmp_path / "lock").exists()
    with sweep.locked(tmp_path):
        with pytest.raises(sweep.Busy), sweep.locked(tmp_path):
            pass


@pytest.mark.system
def test_a_run_that_is_held_is_passed_over_and_looked_at_again(tmp_path, monkeypatch):
    plan = [sweep.Job(tmp_path / name, models.TrainConfig(), sweep.MeasureConfig())
            for name in "ab"]
    for job in plan:
        job.folder.mkdir()
    order = []

    def run_one(job):
        with sweep.locked(job.folder):
            order.append(job.folder.name)
            (job.folder / "done").write_text('{"until": 600}')
        if job.folder.name == "b":
            other.kill()
            other.wait()
    monkeypatch.setattr(sweep, "run_one", run_one)
    other = hold(plan[0].folder)
    assert sweep.run_worker(plan[:1], alone=True)[0].endswith("stop it") and not order
    assert sweep.run_worker(plan) == [] and order == ["b", "a"]


def test_one_failure_does_not_keep_a_worker_from_the_other_runs(tmp_path, monkeypatch):
    plan = [sweep.Job(tmp_path / name, models.TrainConfig(), sweep.MeasureConfig())
            for name in "abc"]

    def run_one(job):
        if job.folder.name == "b":
            raise sweep.Failed("planted")
        job.folder.mkdir()
        (job.folder / "done").write_text('{"until": 600}')
    monkeypatch.setattr(sweep, "run_one", run_one)
    assert sweep.run_worker(plan) == ["planted"]
    assert [job.folder.exists() for job in plan] == [True, False, True]


class Processes:
    """A stand-in for multiprocessing: how the processes of each round of workers end."""

    def __init__(self, *rounds):
        self.codes = [code for codes in rounds for code in codes]
        self.started = self.killed = 0

    def SimpleQueue(self):
        return self

    def get(self):
        return ["what failed"]

    def Process(self, target, args):
        self.started += 1
        return Process(self, self.codes.pop(0))


class Process:
    def __init__(self, owner, exitcode):
        self.owner, self.exitcode, self.pid = owner, exitcode, 1

    def start(self):
        pass

    join = start

    def kill(self):
        self.owner.killed += 1


UNDER_TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "WORLD_SIZE": "4"}
LEFT_BEHIND = [{"RANK": "1"}, {"RANK": ""}, {"LOCAL_RANK": "2"}, {"LOCAL_RANK": ""},
               {"LOCAL_RANK": "x", "RANK": "x", "WORLD_SIZE": "x"},
               {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"},
               {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2"},
               {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
               UNDER_TORCHRUN, UNDER_TORCHRUN | {"LOCAL_RANK": "-1"}]


@pytest.mark.parametrize("variables", LEFT_BEHIND)
def test_what_another_launcher_left_behind_changes_nothing(variables, monkeypatch, capsys):
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    plain = call(capsys, "tasks", "copy")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert sweep.local_rank() is None
    assert call(capsys, "tasks", "copy") == plain and "copy-1" in plain[1]


@pytest.mark.parametrize("variables, rank, device", [
    (UNDER_TORCHRUN | {"LOCAL_RANK": "1"}, None, 1),
    (UNDER_TORCHRUN | {"LOCAL_RANK": "6"}, None, 2),
    ({"LOCAL_RANK": "1"}, None, 0), ({}, 3, 3), ({"LOCAL_RANK": "1"}, 2, 2)])
def test_each_process_of_a_machine_has_a_device(variables, rank, device, monkeypatch, tmp_path):
    """Of four.  rank: as the parent of a worker gave it."""
    chosen = []
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    train = models.TrainConfig(device="cuda")
    monkeypatch.setattr(sweep, "is_done", lambda *_: True)
    sweep.run_worker([sweep.Job(tmp_path, train, sweep.MeasureConfig())], rank=rank)
    assert chosen == [device]


@pytest.mark.parametrize("rounds", [[(0, -9)], [(-9, -9), (-9, 0)], [(-9, -9)] * 3 + [(0, 0)]])
def test_workers_are_started_again_where_all_were_killed(rounds, monkeypatch):
    processes = Processes(*rounds)
    monkeypatch.setattr(sweep.multiprocessing, "get_context", lambda kind: processes)
    assert sweep.run_workers(2, []) == ["what failed"]
    assert processes.started == processes.killed == 2 * len(rounds)     # none is left over


def test_workers_that_are_killed_again_and_again_are_given_up(monkeypatch):
    processes = Processes(*[(-9, -9)] * 4)
    monkeypatch.setattr(sweep.multiprocessing, "get_context", lambda kind: processes)
    with pytest.raises(sweep.Failed, match="killed four times"):
        sweep.run_workers(2, [])
    assert processes.started == 8


def test_threads_follow_from_the_plan_and_stay_what_a_run_began_with(
        tmp_path, capsys, monkeypatch):
    """So seeds can be added to a sweep, and no number depends on how many workers there are.

    A process with one worker waits for runs that another holds, if there are several."""
    seen, alone = [], []
    options = ["sweep", *FOUR[:-2], "--out", tmp_path]

    def run_workers(workers, plan):
        seen.append((workers, [job.train.threads for job in plan]))
        return []

    def run_worker(plan, by_itself):
        alone.append(by_itself)
        return run_workers(1, plan)
    with monkeypatch.context() as patch:
        patch.setattr(run, "cores", lambda: 8)
        patch.setattr(sweep, "estimate", lambda *_: (0, 0, 1))
        patch.setattr(sweep, "run_workers", run_workers)
        patch.setattr(sweep, "run_worker", run_worker)
        for extra in (["--workers", "1"], ["--workers", "3"], [], ["--seeds", "16"],
                      ["--seeds", "1"]):
            assert call(capsys, *options, *extra)[0] == 0
    assert seen == [(1, [2] * 4), (3, [2] * 4), (4, [2] * 4), (8, [1] * 16), (1, [8])]
    assert alone == [False, True]

    monkeypatch.setattr(sweep, "estimate", lambda *_: (0, 0, 1))
    options += ["--seeds", "1", "--steps", "5"]
    assert call(capsys, *options, "--set", "threads=2")[0] == 0
    assert call(capsys, *options)[0] == 0
    status, _, err = call(capsys, *options, "--set", "threads=1")
    assert status == 2 and "threads was 2, now 1" in err


# --------------------------------------------------------------------------------------------------
# Many kills

@pytest.mark.system
@pytest.mark.slow
def test_twenty_kills_at_random_times_change_nothing(tmp_path):
    """torchrun starts the workers again; with few checkpoints, no run would ever get on."""
    longer = [*FOUR, "--steps", "3000", "--set", "snapshots=60"]
    expected = tmp_path / "expected"
    done = subprocess.run([sys.executable, RUN, "sweep", *longer, "--workers", "1",
                           "--out", str(expected)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    program = tmp_path / "often.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(Path(RUN).parent)!r})\n"
                       "import run, sweep\nsweep.CHECKPOINT_SECONDS = 0.3\nrun.main()\n")
    command = [*TORCHRUN, "--max-restarts", "100", str(program), "sweep", *longer,
               "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    dice, kills = random.Random(0), 0
    while kills < 20 and process.poll() is None:
        time.sleep(dice.uniform(0, 8))
        workers = children(process.pid)
        if workers:
            os.kill(dice.choice(workers), 9)
            kills += 1
    assert process.wait(timeout=600) == 0 and kills == 20
    assert_same(tmp_path / "killed/parity", expected / "parity")
