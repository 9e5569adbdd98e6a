"""Nothing is lost.  After any fault, the same command ends with the files of an undisturbed run.
What cannot be mended is left as it is, and named."""
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

import pytest
import torch
from rich.console import Console

import faults
import models
import report
import run
import sweep
from faults import TINY, Disk, call, contents, differences

pytestmark = pytest.mark.system        # whole sweeps and courses: not while editing


@pytest.fixture(autouse=True)
def small(monkeypatch):
    faults.small(monkeypatch)


def tiny_sweep(folder, at=None):
    """The small sweep outside of a test, on a disk that dies at operation `at`.  -> the disk"""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, Disk(at) as disk, open(os.devnull, "w") as screen:
        faults.small(patch)
        patch.setattr(sys, "stdout", screen)
        patch.setattr(sys, "argv", ["run.py", *TINY, "--out", str(folder)])
        with pytest.raises((faults.Killed, SystemExit)) as stop:
            run.main()
        assert disk.dead or not stop.value.code
    return disk


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The undisturbed sweep: (what it leaves, what it asks of the disk)."""
    folder = tmp_path_factory.mktemp("reference")
    disk = tiny_sweep(folder)
    return contents(folder / "parity"), disk.log


def one_sentence(err):
    return (err.startswith("run.py: ") and err.count("\n") == 1
            and "run.py: unexpected" not in err and "Traceback" not in err)


def begins_again(err):
    """Nothing, or one sentence that a run begins again."""
    return not err or ": the run begins again" in err and err.count("\n") == 1


# --------------------------------------------------------------------------------------------------
# A disk that fails

def test_the_shim_sees_every_write(reference):
    """A file that comes into being without the disk's knowing would not be tried."""
    files, log = reference
    moved = {os.path.basename(entry.split()[-1]).removesuffix(".tmp")
             for entry in log if entry.startswith("replace")}
    assert {os.path.basename(name) for name in files} <= moved
    kinds = {entry.split()[0] for entry in log}
    assert kinds == {"write", "fsync", "replace", "mkdir"} and len(log) > 80


def inject(reference, points, folder, capsys):
    """A fault at each of the points; then the same command again.  -> how many were tried"""
    files, log = reference
    for at, how in points:
        out = folder / f"{at}-{how}"
        out.mkdir()
        with Disk(at, how) as disk:
            status, _, err = call(capsys, *TINY, "--out", out)
        if how == "kill":
            assert status is None, (at, log[at - 1], err)
        elif status == 0:                                       # the folder was there already
            assert disk.log[at - 1].startswith("mkdir"), (at, log[at - 1])
        else:
            named = "No space left" in err and one_sentence(err)
            assert status == 1 and named, (at, log[at - 1], status, err)
        status, _, err = call(capsys, *TINY, "--out", out)
        assert status == 0 and begins_again(err), (at, how, log[at - 1], err)
        assert differences(out / "parity", files) == ([], [], []), (at, how, log[at - 1])
        shutil.rmtree(out)
    return len(points)


def test_a_fault_at_every_seventh_operation(reference, tmp_path, capsys):
    points = [(at, ("kill", "full")[at % 2]) for at in range(1, len(reference[1]) + 1, 7)]
    assert inject(reference, points, tmp_path, capsys) >= 12


@pytest.mark.slow
def test_a_fault_at_every_operation(reference, tmp_path, capsys):
    operations = range(1, len(reference[1]) + 1)
    points = [(at, how) for at in operations for how in ("kill", "full")]
    tried = inject(reference, points, tmp_path, capsys)
    print(f"{tried} faults at {len(operations)} operations: runs lost 0, rows lost 0")


@pytest.mark.parametrize("at", [1, 2, 3, 40, 80])
def test_a_folder_that_cannot_be_written_is_named(at, reference, tmp_path, capsys):
    with Disk(at, "read-only"):
        status, _, err = call(capsys, *TINY, "--out", tmp_path)
    assert status == 1 and one_sentence(err)
    assert "parity" in err and "Read-only file system" in err
    assert call(capsys, *TINY, "--out", tmp_path)[0] == 0
    assert differences(tmp_path / "parity", reference[0]) == ([], [], [])


# --------------------------------------------------------------------------------------------------
# Kills and signals, in processes

LONGER = [*TINY, "--steps", "15", "--set", "snapshots=16"]


def begin(folder):
    """LONGER in a process of its own.

    It begins at once, for it is forked from one that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    arguments = [*LONGER, "--out", str(folder)]
    process = context.Process(target=faults.child, args=(arguments, f"{folder}.txt"))
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
        multiprocessing.get_context("forkserver").set_forkserver_preload(
            ["faults", "torch._dynamo", "matplotlib.backends.backend_agg"])
        begin(folder / "first").join()                          # it starts the process to fork from
    start, process = time.monotonic(), begin(folder / "second")
    process.join()
    assert process.exitcode == 0, (folder / "second.txt").read_text()
    return contents(folder / "second" / "parity"), time.monotonic() - start


def kill(undisturbed, times, folder, capsys):
    """Kill LONGER at some shares of its time, and go on.  -> how often it was still running"""
    files, seconds = undisturbed
    killed = 0
    for i, share in enumerate(times):
        process = begin(folder / str(i))
        time.sleep(share * seconds)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        status, _, err = call(capsys, *LONGER, "--out", folder / str(i))
        assert status == 0 and begins_again(err), err
        assert differences(folder / str(i) / "parity", files) == ([], [], []), share
    return killed


@pytest.mark.system
def test_kill_9_at_a_few_times(undisturbed, tmp_path, capsys):
    assert kill(undisturbed, (0.2, 0.4, 0.6, 0.8), tmp_path, capsys) >= 2


@pytest.mark.system
@pytest.mark.slow
def test_kill_9_at_50_random_times(undisturbed, tmp_path, capsys):
    times = random.Random(0)
    killed = kill(undisturbed, [times.random() for _ in range(50)], tmp_path, capsys)
    assert killed > 30
    print(f"{killed} of 50 killed while running: runs lost 0, rows lost 0")


def wait_for_rows(path, count, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") > count:
            return
        time.sleep(0.005)


@pytest.mark.system
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_in_one_sentence_and_resume(how, undisturbed, tmp_path, capsys):
    for attempt in "abcdef":                                    # it may be over before the signal
        folder = tmp_path / attempt
        process = begin(folder)
        wait_for_rows(folder / "parity/nano-s0/metrics.jsonl", 2)
        os.kill(process.pid, how)
        process.join()
        if process.exitcode:
            break
    screen = Path(f"{folder}.txt").read_text()
    assert process.exitcode == 130
    assert "run.py: stopped; the same command goes on from the last checkpoint\n" in screen
    assert call(capsys, *LONGER, "--out", folder)[0] == 0
    assert differences(folder / "parity", undisturbed[0]) == ([], [], [])


@pytest.mark.system
def test_two_sweeps_side_by_side_share_the_runs_or_wait(undisturbed, tmp_path, capsys):
    both = [begin(tmp_path / "x"), begin(tmp_path / "x")]
    for process in both:
        process.join()
    screen = (tmp_path / "x.txt").read_text()
    assert all(process.exitcode in (0, 1) for process in both)
    assert "unexpected" not in screen and "Traceback" not in screen
    assert call(capsys, *LONGER, "--out", tmp_path / "x")[0] == 0
    assert differences(tmp_path / "x/parity", undisturbed[0]) == ([], [], [])


@pytest.mark.system
def test_no_codes_for_a_terminal_where_there_is_none(undisturbed, tmp_path):
    begin(tmp_path / "x").join()
    screen = (tmp_path / "x.txt").read_bytes()
    assert b"nano-s0  done" in screen and b"\x1b" not in screen and b"\r" not in screen


# --------------------------------------------------------------------------------------------------
# Damaged directories: sweeps of two runs, the first one finished, the second stopped on its way
# ("stopped"), or finished, too

@pytest.fixture(scope="module")
def sweeps(reference, tmp_path_factory):
    """A folder with the two sweeps, "stopped" and "finished", to be copied."""
    folder = tmp_path_factory.mktemp("sweeps")
    last_row = max(i for i, entry in enumerate(reference[1], 1)
                   if entry.startswith("write") and entry.endswith("nano-s1/metrics.jsonl"))
    tiny_sweep(folder / "stopped", last_row)
    tiny_sweep(folder / "finished")
    there = {path.name for path in (folder / "stopped/parity/nano-s1").iterdir()}
    assert there - {"lock"} == {"config.json", "metrics.jsonl", "checkpoint.pt", "weights"}
    return folder


def edit(path, change):
    """config.json, or the first row, changed by hand."""
    lines = [path.read_text()]
    if path.suffix == ".jsonl":
        lines = lines[0].split("\n")
    value = json.loads(lines[0])
    change(value)
    path.write_text("\n".join([json.dumps(value), *lines[1:]]))


def put(value, *keys):
    """A damage: one field of the JSON object gets another value."""
    def change(tree):
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value
    return lambda path: edit(path, change)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def becomes_a_folder(path):
    path.unlink()
    path.mkdir()


def swap(path):
    """With the other run's."""
    other = path.parent.parent / "nano-s0" / path.name
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(b)
    other.write_bytes(a)


def of_the_version_before(path):
    edit(path, lambda config: config.pop("numbers"))


def weights_instead(path):
    shutil.copy(path.parent / "weights/step-000000.pt", path)


ANY = {
    "empty": lambda p: p.write_bytes(b""),
    "cut in half": cut_in_half,
    "last byte gone": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "one bit flipped": flip,
    "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
    "a picture": lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe"),
    "a table": lambda p: p.write_text("time,loss\n1,2\n3,4\n"),
    "a list": lambda p: p.write_text("[1, 2]\n"),
    "a number": lambda p: p.write_text("1e999\n"),
    "nested": lambda p: p.write_text("[" * 100_000),
    "gone": lambda p: p.unlink(),
    "a folder": becomes_a_folder,
    "swapped": swap,
}
ODD = {"a word": "many", "null": None, "infinite": float("inf"), "huge": 10 ** 400, "a list": [1],
       "a path": "../../../elsewhere"}
TOO_ODD = {("step", "huge"), ("width", "huge")}     # a whole number, as it should be
FIELDS = ("size", "seed", "steps", "levels", "width", "chance", "numbers")
PLACES = [("step",), ("levels",), ("levels", "parity-1"), ("levels", "parity-1", "accuracy"),
          ("levels", "parity-1", "rankme", "first")]
# Nothing tells that rows and `done` are a sound file of another run.
UNNOTICED = {("metrics.jsonl", "swapped"), ("metrics.jsonl", "one bit flipped"),
             ("metrics.jsonl", "last byte gone"), ("done", "swapped")}
FILES = {"stopped": ("config.json", "metrics.jsonl", "checkpoint.pt"),
         "finished": ("config.json", "metrics.jsonl", "done")}


def damages():
    """[(state of the sweep, file, name of the damage, the function that does it)]"""
    found = [(state, file, how, act) for state, files in FILES.items() for file in files
             for how, act in ANY.items() if (file, how) not in UNNOTICED]
    for how, value in ODD.items():
        for field in FIELDS:
            if (field, how) not in TOO_ODD:
                found.append(("finished", "config.json", f"{field} is {how}", put(value, field)))
        for keys in PLACES:
            a_number_may_be_so = keys[-1] in ("accuracy", "first") and not isinstance(value, str)
            if value is not None and (keys[-1], how) not in TOO_ODD and not a_number_may_be_so:
                name = f"{'.'.join(keys)} is {how}"
                found.append(("finished", "metrics.jsonl", name, put(value, *keys)))
    for state in FILES:
        found.append((state, "config.json", "of the version before", of_the_version_before))
    return found + [
        ("stopped", "checkpoint.pt", "weights instead", weights_instead),
        ("stopped", "metrics.jsonl", "torn",
         lambda p: p.write_bytes(p.read_bytes() + b'{"step": 3, "lev')),
        ("stopped", "failed", "empty", lambda p: p.write_bytes(b"")),
        ("stopped", "failed", "a list", lambda p: p.write_text("[]"))]


def raw(folder):
    """All bytes of a folder, to see whether anything was touched."""
    if not folder.is_dir():
        return folder.read_bytes()
    return {path: path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*") if path.name != "lock"}


def try_damage(damage, sweeps, files, folder, capsys):
    """Analyse a damaged sweep, then give the sweep's command again.

    Each of the two either ends with the files of an undisturbed run, or says in one sentence what
    is wrong, and leaves the run as it is.  -> "repaired", "missing" or "refused", by the sweep"""
    state, file, _, act = damage
    shutil.copytree(sweeps / state, folder)
    one = folder / "parity/nano-s1"
    act(one / file)
    before = raw(one)
    for command in (["analyse", folder / "parity"], [*TINY, "--out", folder]):
        status, out, err = call(capsys, *command)
        happened = damage[:3], command[0], status, out, err
        if status == 0 and "Missing: nano-s" not in " ".join(out.split()):
            lost, _, changed = differences(folder / "parity", files)
            if command[0] == "analyse":                         # it reads rows and config alone
                changed = {"findings.json", "events.csv"} & {*changed}
                lost = {"findings.json", "events.csv"} & {*lost}
            assert not lost and not changed, happened
            outcome = "repaired"
        else:
            named = status in (1, 2) and one_sentence(err) and "nano-s" in err
            assert named or status == 0 and begins_again(err), happened
            assert raw(one) == before, happened
            outcome = "refused" if status else "missing"
    assert not list(folder.parent.rglob("elsewhere*")), damage[:3]
    return outcome


@pytest.mark.filterwarnings("ignore:invalid value")             # one flipped bit: a chance above 1
def test_damaged_directories_are_refused_or_repaired(sweeps, reference, tmp_path, capsys):
    found = [try_damage(damage, sweeps, reference[0], tmp_path / f"{i}/x", capsys)
             for i, damage in enumerate(damages())]
    counts = {outcome: found.count(outcome) for outcome in sorted(set(found))}
    print(counts, "of", len(found))
    assert len(found) >= 100 and counts["repaired"] >= 5


def test_one_flipped_bit_anywhere_in_a_checkpoint_is_noticed_or_harmless(sweeps, tmp_path):
    content = (sweeps / "stopped/parity/nano-s1/checkpoint.pt").read_bytes()
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    sound, noticed = faults.without_clock(sweep.load_saved(path)), 0
    places = range(0, len(content), max(1, len(content) // 300))
    for i in places:
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1:])
        try:
            found = sweep.load_saved(path)
        except sweep.Failed:
            found = None
        assert found is None or faults.without_clock(found) == sound, i
        noticed += found is None
    assert noticed > len(places) / 3                # the rest is padding between parts of the zip


# --------------------------------------------------------------------------------------------------
# Divergence, and the world around a run

def test_a_run_that_diverges_is_marked_as_failed_and_the_sweep_goes_on(
        tmp_path, capsys, monkeypatch):
    real = models.learning_rate

    def explode(config, step):
        return 1e30 if config.seed == 0 and step >= 1 else real(config, step)
    monkeypatch.setattr(models, "learning_rate", explode)
    command = [*TINY, "--set", "clip=1e30", "--out", tmp_path]
    status, out, err = call(capsys, *command)
    assert status == 1 and one_sentence(err)
    assert "nano-s0 failed after step" in err and "nano-s1  done" in out

    one = tmp_path / "parity/nano-s0"
    failed, rows = json.loads((one / "failed").read_text()), faults.rows_of(one)
    assert not (one / "done").exists()
    assert failed["step"] == rows[-1]["step"] and "finite" in failed["reason"]
    saved = sweep.load_saved(one / "checkpoint.pt")["snapshot"]               # the last good one
    assert saved["step"] == failed["step"]
    assert all(p.isfinite().all() for p in saved["model"].values())
    missing = json.loads((tmp_path / "parity/findings.json").read_text())["missing"]
    assert len(missing) == 1
    assert missing[0].startswith(f"nano-s0 failed after step {failed['step']}:")

    before = raw(one)                               # the same command does not try once more
    monkeypatch.setattr(models, "learning_rate", real)
    assert call(capsys, *command)[0] == 1 and raw(one) == before


def test_weights_that_are_not_finite_are_neither_measured_nor_saved(tmp_path, capsys, monkeypatch):
    """The last update of all may be the bad one: then every loss was finite."""
    real = models.learning_rate

    def explode(config, step):
        return float("nan") if step == 2 else real(config, step)
    monkeypatch.setattr(models, "learning_rate", explode)
    status, _, err = call(capsys, *TINY, "--measures", "none", "--out", tmp_path)
    assert status == 1 and "the weights are no longer finite at step 3" in err
    saved = sweep.load_saved(tmp_path / "parity/nano-s0/checkpoint.pt")
    assert saved["snapshot"]["step"] == 2


@pytest.mark.parametrize("gone", ["parity", "parity/nano-s0", "parity/nano-s0/metrics.jsonl"])
def test_what_is_deleted_under_the_run_is_missed(gone, reference, tmp_path, capsys, monkeypatch):
    real, path = sweep.measure_behaviour, tmp_path / gone

    def delete(snapshot, evals):
        if snapshot.step == 2:
            monkeypatch.setattr(sweep, "measure_behaviour", real)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        return real(snapshot, evals)
    monkeypatch.setattr(sweep, "measure_behaviour", delete)
    status, _, err = call(capsys, *TINY, "--out", tmp_path)
    assert status == 1 and one_sentence(err) and str(tmp_path / "parity/nano-s0") in err
    status, _, err = call(capsys, *TINY, "--out", tmp_path)
    assert status == 0 and begins_again(err)
    assert bool(err) == gone.endswith("jsonl")      # the checkpoint knows that there were rows
    assert differences(tmp_path / "parity", reference[0]) == ([], [], [])


def test_a_figure_that_fails_costs_only_itself(sweeps, tmp_path, capsys, monkeypatch):
    def broken(events):
        raise ZeroDivisionError("planted")
    monkeypatch.setitem(report.FIGURES, "curves", (broken, ""))
    folder = tmp_path / "parity"
    shutil.copytree(sweeps / "finished/parity", folder)
    for name in ("findings.json", "events.csv", "report.html"):
        (folder / name).unlink()
    status, out, err = call(capsys, "analyse", folder)
    complaint = "Figure curves could not be drawn (ZeroDivisionError: planted)."
    assert status == 0 and not err and complaint in " ".join(out.split())
    for name in ("findings.json", "events.csv"):
        assert (folder / name).read_text() == (sweeps / "finished/parity" / name).read_text()
    assert complaint in (folder / "report.html").read_text()
    assert [path.name for path in (folder / "figures").iterdir()] == ["dot.png"]


def test_numbers_are_on_disk_before_the_first_figure_is_drawn(
        sweeps, tmp_path, capsys, monkeypatch):
    def killed(events):
        raise faults.Killed
    monkeypatch.setitem(report.FIGURES, "dot", (killed, ""))
    folder = tmp_path / "parity"
    shutil.copytree(sweeps / "finished/parity", folder,
                    ignore=shutil.ignore_patterns("findings.json", "events.csv", "report.html"))
    assert call(capsys, "analyse", folder)[0] is None
    for name in ("findings.json", "events.csv"):
        assert (folder / name).read_text() == (sweeps / "finished/parity" / name).read_text()
    assert not (folder / "report.html").exists()


def test_forty_columns_are_enough(sweeps, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "out", Console(highlight=False, width=40))
    shutil.copytree(sweeps / "stopped", tmp_path / "x")
    commands = (["tasks"], [*TINY, "--out", tmp_path / "x"], ["analyse", tmp_path / "x/parity"])
    for command in commands:
        status, out, _ = call(capsys, *command)
        assert status == 0 and max(map(len, out.splitlines())) <= 40


E_ACUTE = "\N{LATIN SMALL LETTER E WITH ACUTE}"


@pytest.mark.system
@pytest.mark.skipif(sys.platform == "win32", reason="a shell, and its devices")
@pytest.mark.parametrize("line, status, message", [
    ("analyse {folder}", 0, ""),
    (f"analyse nowhere-{E_ACUTE}", 2, "is not a directory"),
    ("tasks | true", 0, ""),
    pytest.param("analyse {folder} | true", 0, "", marks=pytest.mark.slow),
    ("sweep --help > /dev/full", 1, "No space left on device"),
    ("sweep --help >&-", None, ""),
])
def test_an_old_locale_and_an_output_that_goes_nowhere(line, status, message, sweeps, tmp_path):
    folder = tmp_path / f"caf{E_ACUTE}"
    shutil.copytree(sweeps / "finished/parity", folder)
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(f"'{sys.executable}' '{run.__file__}' {line.format(folder=folder)}",
                          shell=True, capture_output=True, env=os.environ | old)
    assert status in (None, done.returncode), done.stderr
    assert message.encode() in done.stderr
    assert b"Traceback" not in done.stderr and b"unexpected" not in done.stderr, done.stderr
    assert done.stderr.count(b"\n") == bool(message), done.stderr


ODD_PLACE = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "RANK": "",
             "LOCAL_RANK": "x", "COLUMNS": "1", "MPLCONFIGDIR": os.devnull}


@pytest.mark.system
def test_variables_of_notebooks_launchers_and_editors_change_no_number(sweeps, tmp_path):
    """In a folder with a matplotlibrc that names what is not there, by python -I."""
    shutil.copytree(sweeps / "finished/parity", tmp_path / "parity")
    for name in ("findings.json", "events.csv", "report.html"):
        (tmp_path / "parity" / name).unlink()
    (tmp_path / "matplotlibrc").write_text("backend: nonsense\ntext.usetex: True\n")
    done = subprocess.run([sys.executable, "-I", run.__file__, "analyse", "parity"], cwd=tmp_path,
                          capture_output=True, text=True, env=os.environ | ODD_PLACE)
    assert done.returncode == 0 and "could not be drawn" not in done.stdout, done.stderr
    assert "Traceback" not in done.stderr and "parity-1" in done.stdout
    assert 40 < max(map(len, done.stdout.splitlines())) <= 80
    found = json.loads((tmp_path / "parity/findings.json").read_text())
    expected = json.loads((sweeps / "finished/parity/findings.json").read_text())
    assert found["levels"] == expected["levels"] and found["runs"] == expected["runs"]
    events = (sweeps / "finished/parity/events.csv").read_text()
    assert (tmp_path / "parity/events.csv").read_text() == events
    page = (tmp_path / "parity/report.html").read_text()
    assert page.count("data:image/png") >= 2


def test_no_file_that_is_read_can_run_code():
    """What could: pickle, eval, exec, and torch.load without weights_only."""
    for path in Path(run.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, where = ast.unparse(node.func), (path.name, node.lineno)
            assert name not in ("eval", "exec", "compile", "__import__"), where
            assert not name.startswith(("pickle.", "marshal.", "shelve.", "yaml.")), where
            safe = any(keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True"
                       for keyword in node.keywords)
            assert name != "torch.load" or safe, where


def test_a_checkpoint_is_loaded_without_running_its_code(sweeps, tmp_path, capsys):
    """The zip is sound, so it comes as far as being loaded."""
    shutil.copytree(sweeps / "stopped", tmp_path / "x")
    path = tmp_path / "x/parity/nano-s1/checkpoint.pt"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)
    sweep.save(path, {"snapshot": Bomb()})
    status, _, err = call(capsys, *TINY, "--out", tmp_path / "x")
    assert status == 1 and one_sentence(err) and "is not a checkpoint that `sweep` wrote" in err
    assert not (tmp_path / "exploded").exists()
    torch.load(path, weights_only=False)                        # it is a bomb
    assert (tmp_path / "exploded").exists()
