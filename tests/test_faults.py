"""Nothing is lost: after any fault, the same command ends with the files of an undisturbed run; what cannot be mended is left as it is, and named."""
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time

import faults
import pytest
import run
from faults import TINY, Disk, call, contents, differences


@pytest.fixture(autouse=True)
def small(monkeypatch):
    faults.small(monkeypatch)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The undisturbed sweep: (what it leaves, what it asks of the disk)."""
    folder, patch = tmp_path_factory.mktemp("reference"), pytest.MonkeyPatch()
    faults.small(patch)
    with Disk() as disk, open(os.devnull, "w") as screen:
        patch.setattr(sys, "stdout", screen)
        patch.setattr(sys, "argv", ["run.py", *TINY, "--out", str(folder)])
        with pytest.raises(SystemExit) as stop:
            run.main()
    patch.undo()
    assert not stop.value.code
    return contents(folder / "parity"), disk.log


def one_sentence(err):
    return err.startswith("run.py: ") and err.count("\n") == 1 and "unexpected" not in err and "Traceback" not in err


def test_the_shim_sees_every_write(reference):
    """A file that comes into being without the disk's knowing would not be tried."""
    files, log = reference
    moved = [os.path.basename(entry.split()[-1]).removesuffix(".tmp") for entry in log if entry.startswith("replace")]
    assert {os.path.basename(name) for name in files} - {"dot.png"} <= {*moved}
    assert {entry.split()[0] for entry in log} == {"write", "fsync", "replace", "mkdir", "unlink"} and len(log) > 100


def inject(reference, points, folder, capsys):
    """A fault at each of the points; then the same command again.  -> the number of faults tried"""
    files, tried = reference[0], 0
    for at, how in points:
        out = folder / f"{at}-{how}"
        with Disk(at, how):
            status, _, err = call(capsys, *TINY, "--out", out)
        assert status is None if how == "kill" else status == 1 and "No space left" in err and one_sentence(err), (at, how, status, err)
        status, _, err = call(capsys, *TINY, "--out", out)
        assert (status, err) == (0, "") and differences(out / "parity", files) == ([], [], []), (at, how, reference[1][at - 1], err)
        shutil.rmtree(out)
        tried += 1
    return tried


def test_a_fault_at_every_ninth_operation(reference, tmp_path, capsys):
    points = [(at, ("kill", "full")[at % 2]) for at in range(1, len(reference[1]) + 1, 9)]
    assert inject(reference, points, tmp_path, capsys) >= 12


@pytest.mark.slow
def test_a_fault_at_every_operation(reference, tmp_path, capsys):
    points = [(at, how) for at in range(1, len(reference[1]) + 1) for how in ("kill", "full")]
    tried = inject(reference, points, tmp_path, capsys)
    print(f"{tried} faults at {len(reference[1])} operations: runs lost 0, rows lost 0")


LONGER = [*TINY, "--steps", "15", "--set", "snapshots=16"]


def begin(folder):
    """LONGER in a process of its own, which is begun in no time, for it is forked from one that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=faults.child, args=([*LONGER, "--out", str(folder)], str(folder) + ".txt"))
    process.start()
    return process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What LONGER leaves, and how many seconds it takes."""
    if sys.platform == "win32":
        pytest.skip("signals")
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.get_context("forkserver").set_forkserver_preload(["faults", "torch._dynamo", "matplotlib.backends.backend_agg"])
        begin(folder / "first").join()                                 # the first starts the process that the others are forked from
    start, process = time.monotonic(), begin(folder / "second")
    process.join()
    assert process.exitcode == 0, (folder / "second.txt").read_text()
    return contents(folder / "second" / "parity"), time.monotonic() - start


def kill(undisturbed, times, folder, capsys):
    files, seconds = undisturbed
    killed = 0
    for i, share in enumerate(times):
        process = begin(folder / str(i))
        time.sleep(share * seconds)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        status, _, err = call(capsys, *LONGER, "--out", folder / str(i))
        assert (status, err) == (0, "") and differences(folder / str(i) / "parity", files) == ([], [], []), (i, share, err)
    return killed


def test_kill_9_at_a_few_times(undisturbed, tmp_path, capsys):
    assert kill(undisturbed, (0.2, 0.4, 0.6, 0.8), tmp_path, capsys) >= 2


@pytest.mark.slow
def test_kill_9_at_50_random_times(undisturbed, tmp_path, capsys):
    times = random.Random(0)
    killed = kill(undisturbed, [times.random() for _ in range(50)], tmp_path, capsys)
    assert killed > 30
    print(f"{killed} of 50 killed while running: runs lost 0, rows lost 0")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_in_one_sentence_and_resume(how, undisturbed, tmp_path, capsys):
    process = begin(tmp_path / "x")
    rows, deadline = tmp_path / "x/parity/nano-s0/metrics.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and not (rows.exists() and rows.read_bytes().count(b"\n") > 5):
        time.sleep(0.005)
    os.kill(process.pid, how)
    process.join()
    assert process.exitcode == 130 and "run.py: stopped; the same command goes on from the last checkpoint\n" in (tmp_path / "x.txt").read_text()
    assert call(capsys, *LONGER, "--out", tmp_path / "x")[0] == 0
    assert differences(tmp_path / "x/parity", undisturbed[0]) == ([], [], [])
