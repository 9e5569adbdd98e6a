"""Nothing is lost: after any fault, the same command ends with the files of an undisturbed run; what cannot be mended is left as it is, and named."""
import ast
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import faults
import models
import pytest
import run
import torch
from faults import TINY, Disk, call, contents, differences
from rich.console import Console


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
    return err.startswith("run.py: ") and err.count("\n") == 1 and "run.py: unexpected" not in err and "Traceback" not in err


def test_the_shim_sees_every_write(reference):
    """A file that comes into being without the disk's knowing would not be tried."""
    files, log = reference
    moved = [os.path.basename(entry.split()[-1]).removesuffix(".tmp") for entry in log if entry.startswith("replace")]
    assert {os.path.basename(name) for name in files} - {"dot.png"} <= {*moved}
    assert {entry.split()[0] for entry in log} == {"write", "fsync", "replace", "mkdir", "unlink"} and len(log) > 100


def begins_again(err):
    """Nothing, or one sentence that a run begins again."""
    return not err or err.endswith(": the run begins again, and comes to the same numbers\n") and err.count("\n") == 1


def inject(reference, points, folder, capsys):
    """A fault at each of the points; then the same command again.  -> the number of faults tried"""
    files, tried = reference[0], 0
    for at, how in points:
        out = folder / f"{at}-{how}"
        out.mkdir()
        with Disk(at, how) as disk:
            status, _, err = call(capsys, *TINY, "--out", out)
        harmless = how == "full" and disk.log[at - 1].startswith("mkdir") and status == 0        # of a folder that is there already
        assert harmless or (status is None if how == "kill" else status == 1 and "No space left" in err and one_sentence(err)), (at, how, status, err)
        status, _, err = call(capsys, *TINY, "--out", out)
        assert status == 0 and begins_again(err) and differences(out / "parity", files) == ([], [], []), (at, how, reference[1][at - 1], err)
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
    for attempt in "abcdef":                                           # a run may be over before the signal arrives
        folder = tmp_path / attempt
        process, rows, deadline = begin(folder), folder / "parity/nano-s0/metrics.jsonl", time.monotonic() + 60
        while time.monotonic() < deadline and not (rows.exists() and rows.read_bytes().count(b"\n") > 2):
            time.sleep(0.005)
        os.kill(process.pid, how)
        process.join()
        if process.exitcode:
            break
    assert process.exitcode == 130 and "run.py: stopped; the same command goes on from the last checkpoint\n" in Path(f"{folder}.txt").read_text()
    assert call(capsys, *LONGER, "--out", folder)[0] == 0
    assert differences(folder / "parity", undisturbed[0]) == ([], [], [])


# ---------------------------------------------------------------------------------------------------------------
# Damaged directories: sweeps of two runs, the first one finished, the second stopped on its way ("stopped"), or finished, too.

@pytest.fixture(scope="module")
def sweeps(reference, tmp_path_factory):
    """-> {"stopped": directory, "finished": directory}, to be copied."""
    folder, patch = tmp_path_factory.mktemp("sweeps"), pytest.MonkeyPatch()
    faults.small(patch)
    at = max(i for i, entry in enumerate(reference[1], 1) if entry.startswith("write") and entry.endswith("nano-s1/metrics.jsonl"))      # its last row
    for name, point in (("stopped", at), ("finished", None)):
        (folder / name).mkdir()
        with Disk(point), open(os.devnull, "w") as screen:
            patch.setattr(sys, "stdout", screen)
            patch.setattr(sys, "argv", ["run.py", *TINY, "--out", str(folder / name)])
            with pytest.raises((faults.Killed, SystemExit)):
                run.main()
    patch.undo()
    assert {p.name for p in (folder / "stopped/parity/nano-s1").iterdir()} - {"lock"} == {"config.json", "metrics.jsonl", "checkpoint.pt", "weights"}
    return folder


def edit(path, change):
    """One field of config.json, or of the first row, changed by hand."""
    lines = path.read_text().split("\n") if path.suffix == ".jsonl" else [path.read_text()]
    value = json.loads(lines[0])
    change(value)
    path.write_text("\n".join([json.dumps(value), *lines[1:]]))


def becomes_a_folder(path):
    path.unlink()
    path.mkdir()


def swap(path):
    """with the other run's"""
    other = path.parent.parent / "nano-s0" / path.name
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(b), other.write_bytes(a)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


ANY = {"empty": lambda p: p.write_bytes(b""), "cut in half": lambda p: p.write_bytes(p.read_bytes()[:p.stat().st_size // 2]),
       "last byte gone": lambda p: p.write_bytes(p.read_bytes()[:-1]), "one bit flipped": flip,
       "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)), "a picture": lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe"),
       "a table": lambda p: p.write_text("time,loss\n1,2\n3,4\n"), "a list": lambda p: p.write_text("[1, 2]\n"), "a number": lambda p: p.write_text("1e999\n"),
       "nested": lambda p: p.write_text("[" * 100_000), "gone": lambda p: p.unlink(), "a folder": becomes_a_folder, "swapped": swap}


def put(value, *keys):
    def change(tree):
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value
    return lambda path: edit(path, change)


ODD = {"a word": "many", "null": None, "infinite": float("inf"), "huge": 10 ** 400, "a list": [1], "a path": "../../../elsewhere"}
CONFIG = {f"{field} is {name}": put(value, field) for field in ("size", "seed", "steps", "levels", "width", "chance") for name, value in ODD.items()}
ROWS = {f"{'.'.join(map(str, keys))} is {name}": put(value, *keys) for name, value in ODD.items() if value is not None
        for keys in (("step",), ("levels",), ("levels", "parity-1"), ("levels", "parity-1", "accuracy"), ("levels", "parity-1", "rankme", "first"))
        if keys[-1] not in ("accuracy", "first") or isinstance(value, (str, list))}      # another number is a number
UNNOTICED = {("metrics.jsonl", "swapped"), ("metrics.jsonl", "one bit flipped"), ("done", "swapped"), ("metrics.jsonl", "last byte gone")}     # rows carry no checksum
DAMAGES = [(state, file, how, act) for state, files in (("stopped", ("config.json", "metrics.jsonl", "checkpoint.pt")),
                                                        ("finished", ("config.json", "metrics.jsonl", "done")))
           for file in files for how, act in ANY.items() if (file, how) not in UNNOTICED]
DAMAGES += [("finished", "config.json", how, act) for how, act in CONFIG.items()] + [("finished", "metrics.jsonl", how, act) for how, act in ROWS.items()]
DAMAGES += [("stopped", "checkpoint.pt", "weights instead", lambda p: shutil.copy(p.parent / "weights/step-000000.pt", p)),
            ("stopped", "metrics.jsonl", "torn", lambda p: p.write_bytes(p.read_bytes() + b'{"step": 3, "lev')),
            ("stopped", "failed", "empty", lambda p: p.write_bytes(b"")), ("stopped", "failed", "a list", lambda p: p.write_text("[]"))]


def raw(folder):
    if not folder.is_dir():
        return folder.read_bytes()
    return {p: p.readlink() if p.is_symlink() else p.read_bytes() if p.is_file() else None for p in folder.rglob("*") if p.name != "lock"}


def try_damage(damage, sweeps, files, folder, capsys):
    """The sweep again, and the analysis: each of them either ends with the files of an undisturbed run, or says in one sentence what is wrong, and leaves
    the run as it is.  -> "repaired", "missing" or "refused", by the sweep"""
    state, file, how, act = damage
    shutil.copytree(sweeps / state, folder)
    one = folder / "parity/nano-s1"
    act(one / file if file else one)
    before, outcomes = raw(one), []
    for command in (["analyse", folder / "parity"], [*TINY, "--out", folder]):
        status, out, err = call(capsys, *command)
        if status == 0 and "missing: nano-s" not in out:
            lost, _, changed = differences(folder / "parity", files)
            assert (lost, changed) == ([], []) or command[0] == "analyse" and not {"findings.json", "events.csv"} & {*changed}, (damage, command[0], out, err)
            outcomes.append("repaired")
        else:
            assert status == 0 and begins_again(err) or status in (1, 2) and one_sentence(err) and "nano-s" in err, (damage, command[0], out, err)
            assert raw(one) == before, (damage, command[0], err)
            outcomes.append("refused" if status else "missing")
    assert not any("elsewhere" in name for _, _, names in os.walk(folder.parent) for name in names)
    return outcomes[1]


def test_damaged_directories_are_refused_or_repaired(sweeps, reference, tmp_path, capsys):
    found = [try_damage(damage, sweeps, reference[0], tmp_path / f"{i}/x", capsys) for i, damage in enumerate(DAMAGES)]
    print({outcome: found.count(outcome) for outcome in sorted(set(found))}, "of", len(found))
    assert len(found) >= 50 and found.count("repaired") >= 5


def test_one_flipped_bit_anywhere_in_a_checkpoint_is_noticed_or_harmless(sweeps, tmp_path):
    content, noticed = (sweeps / "stopped/parity/nano-s1/checkpoint.pt").read_bytes(), 0
    (tmp_path / "x.pt").write_bytes(content)
    sound = faults.without_clock(run.load_saved(tmp_path / "x.pt"))
    places = range(0, len(content), max(1, len(content) // 300))
    for i in places:
        (tmp_path / "x.pt").write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1:])
        try:
            found = run.load_saved(tmp_path / "x.pt")
        except run.Failed:
            found = None
        assert found is None or faults.without_clock(found) == sound, i
        noticed += found is None
    assert noticed > len(places) / 3                                    # what is left over is padding between the parts of a zip


# ---------------------------------------------------------------------------------------------------------------
# Divergence, and the world around a run

def test_a_run_that_diverges_is_marked_as_failed_and_the_sweep_goes_on(tmp_path, capsys, monkeypatch):
    real = models.learning_rate
    monkeypatch.setattr(models, "learning_rate", lambda config, step: 1e30 if config.seed == 0 and step >= 1 else real(config, step))
    command = [*TINY, "--set", "clip=1e30", "--out", tmp_path]
    status, out, err = call(capsys, *command)
    assert status == 1 and one_sentence(err) and "nano-s0 failed after step" in err and "nano-s1  done" in out
    one = tmp_path / "parity/nano-s0"
    failed, rows = json.loads((one / "failed").read_text()), [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert not (one / "done").exists() and failed["step"] == rows[-1]["step"] and "finite" in failed["reason"]
    saved = run.load_saved(one / "checkpoint.pt")["train"]                    # the last good one
    assert saved["step"] == failed["step"] and all(p.isfinite().all() for p in saved["model"].values())
    assert [f"nano-s0 failed after step {failed['step']}"] == [text.split(":")[0] for text in json.loads((tmp_path / "parity/findings.json").read_text())["missing"]]
    before = raw(one)
    monkeypatch.setattr(models, "learning_rate", real)                  # the same command again does not try again
    assert call(capsys, *command)[0] == 1 and raw(one) == before


def test_weights_that_are_not_finite_are_neither_measured_nor_saved(tmp_path, capsys, monkeypatch):
    """The last update of all may be the bad one: then every loss was finite."""
    real = models.learning_rate
    monkeypatch.setattr(models, "learning_rate", lambda config, step: float("nan") if step == 2 else real(config, step))
    status, _, err = call(capsys, *TINY, "--measures", "none", "--out", tmp_path)
    assert status == 1 and "the weights are no longer finite at step 3" in err
    assert run.load_saved(tmp_path / "parity/nano-s0/checkpoint.pt")["train"]["step"] == 2


@pytest.mark.parametrize("gone", ["parity", "parity/nano-s0", "parity/nano-s0/metrics.jsonl"])
def test_what_is_deleted_under_the_run_is_missed(gone, reference, tmp_path, capsys, monkeypatch):
    real = run.measure_row

    def delete(snapshot, *rest):
        if snapshot.step == 2:
            shutil.rmtree(tmp_path / gone) if (tmp_path / gone).is_dir() else (tmp_path / gone).unlink()
            monkeypatch.setattr(run, "measure_row", real)
        return real(snapshot, *rest)
    monkeypatch.setattr(run, "measure_row", delete)
    status, _, err = call(capsys, *TINY, "--out", tmp_path)
    assert status == 1 and one_sentence(err) and str(tmp_path / "parity/nano-s0") in err
    status, _, err = call(capsys, *TINY, "--out", tmp_path)
    assert status == 0 and bool(err) == gone.endswith("jsonl") and begins_again(err)     # the checkpoint knows that there were rows
    assert differences(tmp_path / "parity", reference[0]) == ([], [], [])


@pytest.mark.parametrize("at", [1, 2, 3, 60, 100])
def test_a_folder_that_cannot_be_written_is_named(at, reference, tmp_path, capsys):
    with Disk(at, "read-only"):
        status, _, err = call(capsys, *TINY, "--out", tmp_path)
    assert status == 1 and one_sentence(err) and "parity" in err and "Read-only file system" in err
    assert call(capsys, *TINY, "--out", tmp_path)[0] == 0 and differences(tmp_path / "parity", reference[0]) == ([], [], [])


def test_two_sweeps_side_by_side_share_the_runs_or_wait(undisturbed, tmp_path, capsys):
    (tmp_path / "x").mkdir()
    both = [begin(tmp_path / "x"), begin(tmp_path / "x")]
    for process in both:
        process.join()
    said = (tmp_path / "x.txt").read_text()
    assert all(process.exitcode in (0, 1) for process in both) and "unexpected" not in said and "Traceback" not in said
    assert call(capsys, *LONGER, "--out", tmp_path / "x")[0] == 0
    assert differences(tmp_path / "x/parity", undisturbed[0]) == ([], [], [])


def test_no_codes_for_a_terminal_that_is_not_one(undisturbed, tmp_path):
    begin(tmp_path / "x").join()
    said = (tmp_path / "x.txt").read_bytes()
    assert b"nano-s0  done" in said and b"\x1b" not in said and b"\r" not in said


def test_forty_columns_are_enough(sweeps, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "out", Console(highlight=False, width=40))
    shutil.copytree(sweeps / "stopped", tmp_path / "x")
    for command in (["tasks"], [*TINY, "--out", tmp_path / "x"], ["analyse", tmp_path / "x/parity"]):
        status, out, _ = call(capsys, *command)
        assert status == 0 and max(map(len, out.splitlines())) <= 40


@pytest.mark.skipif(sys.platform == "win32", reason="a shell, and its devices")
@pytest.mark.parametrize("line, status, says", [
    ("analyse {folder}", 0, ""), ("analyse nowhere-\N{LATIN SMALL LETTER E WITH ACUTE}", 2, "is not a directory"), ("analyse {folder} | true", 0, ""),
    ("sweep --help > /dev/full", 1, "No space left on device"), ("sweep --help >&-", None, "")])
def test_an_old_locale_and_an_output_that_goes_nowhere(line, status, says, sweeps, tmp_path):
    folder = tmp_path / "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    shutil.copytree(sweeps / "finished/parity", folder)
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(f"'{sys.executable}' '{run.__file__}' {line.format(folder=folder)}", shell=True, capture_output=True, env=environment)
    assert status in (None, done.returncode) and says.encode() in done.stderr and b"Traceback" not in done.stderr and b"unexpected" not in done.stderr, done.stderr
    assert done.stderr.count(b"\n") == bool(says)


def test_no_file_that_is_read_can_run_code():
    """What could: pickle, eval, exec, and torch.load without weights_only.  pythia.py names pickle's exception, and no more."""
    for path in Path(run.__file__).parent.glob("*.py"):
        for call_ in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = ast.unparse(call_.func)
            assert name not in ("eval", "exec", "compile", "__import__") and not name.startswith(("pickle.", "marshal.", "shelve.", "yaml.")), (path.name, call_.lineno)
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call_.keywords)
            assert name != "torch.load" or safe, (path.name, call_.lineno)
