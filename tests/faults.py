"""A disk that fails on demand, and a sweep so small that it can be done hundreds of times.

    with Disk(at=7, how="kill") as disk:       the 7th write, sync, move, new folder or deletion
        run.main()                             is the last thing that the process does
    disk.log                                   what it was asked to do, in order

how="full": that operation fails with "No space left on device".  Half of what was to be written is
there.
how="kill": half of it is there, and the process is dead.  Nothing that it does afterwards, to clean
up, reaches the disk.
how="read-only": from there on, every operation fails with "Read-only file system".

The command line in this process (`call`), and what two runs have in common (`contents`), serve
other tests too.
"""
import builtins
import errno
import json
import os
import sys
from unittest import mock

import torch
from matplotlib.figure import Figure

import claims
import models
import report
import run
import sweep

TINY = ["sweep", "--task", "parity", "--sizes", "nano", "--seeds", "2", "--steps", "3",
        "--keep", "2", "--measures", "rankme", "--workers", "1"]
for _field in ("snapshots=3", "per_level=2", "eval_examples=4", "threads=1",
               "dtype=float32"):
    TINY += ["--set", _field]


# --------------------------------------------------------------------------------------------------
# The disk

class Killed(BaseException):
    """Not an Exception: no handler of the program sees it."""


class File:
    """An open file whose writes the disk knows of."""

    def __init__(self, disk, file):
        self.disk, self.file = disk, file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        def put(part):
            self.file.write(part)
            self.file.flush()
        self.disk.operation(f"write {self.file.name}", lambda: put(content),
                            lambda: put(content[:len(content) // 2]))


class Disk:
    def __init__(self, at=None, how="kill"):
        self.at, self.how, self.log, self.dead = at, how, [], False

    def operation(self, name, act, half=lambda: None):
        if self.dead:
            raise Killed
        self.log.append(name)
        if self.how == "read-only" and len(self.log) >= self.at:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), name.split()[-1])
        if len(self.log) != self.at:
            return act()
        half()
        self.dead = self.how == "kill"
        if self.dead:
            raise Killed
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name.split()[-1])

    def open(self, path, mode="r", *rest, **named):
        file = builtins.open(path, mode, *rest, **named)
        return File(self, file) if set(mode) & set("wax+") else file

    def counted(self, name):
        """A function of the module os, as the disk offers it."""
        real = getattr(os, name)

        def call(what, *rest, **named):
            # torch and matplotlib make folders of their own when they are first used
            if not isinstance(what, int) and "parity" not in str(what):
                return real(what, *rest, **named)
            return self.operation(f"{name} {what}", lambda: real(what, *rest, **named))
        return call

    def __enter__(self):
        self.patches = [mock.patch.object(sweep, "open", self.open, create=True)]
        for name in ("replace", "fsync", "mkdir", "unlink"):
            self.patches.append(mock.patch.object(os, name, self.counted(name)))
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *error):
        for patch in self.patches:
            patch.stop()


# --------------------------------------------------------------------------------------------------
# The small sweep

SMALLEST = models.GPTConfig(2, 1, 8)
FEW = dict(claims.ALTERNATIVES)
for _name in ("threshold", "onset", "rise", "warmup"):
    FEW[_name] = FEW[_name][:1]


def no_figure(*_):
    return {}


def dot(events):
    return {"dot": Figure((0.1, 0.1))}


def small(monkeypatch):
    """Everything is as in a real sweep, but the model has a thousand parameters, each snapshot a
    checkpoint, the plan no timing, the report one small figure and few specifications."""
    few = claims.specifications(FEW)
    monkeypatch.setitem(models.SIZES, "nano", SMALLEST)
    monkeypatch.setattr(sweep, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(sweep, "estimate", lambda *_: (0, 0, 1))
    monkeypatch.setattr(run, "first_look", no_figure)           # its thread asks the disk whenever
    monkeypatch.setattr(claims, "specifications", lambda runs: few)
    monkeypatch.setattr(report, "FIGURES", {"choices": (no_figure, ""), "dot": (dot, "A dot.")})


def call(capsys, *arguments):
    """The command line in this process -> (exit status, what it wrote to stdout, to stderr).

    The status is None if it was killed."""
    status = None
    with mock.patch.object(sys, "argv", ["run.py", *map(str, arguments)]):
        try:
            run.main()
        except SystemExit as stop:
            status = stop.code or 0
        except Killed:
            pass
    return status, *capsys.readouterr()


def child(arguments, screen):
    """In a process of its own: the small sweep, what it prints in a file."""
    import pytest
    small(pytest.MonkeyPatch())
    with open(screen, "w") as sys.stdout:
        sys.stderr = sys.stdout
        sys.argv = ["run.py", *map(str, arguments)]
        run.main()


# --------------------------------------------------------------------------------------------------
# What two runs of the same config have in common

def without_clock(value):
    """All but clock times and the record of the command; tensors as lists."""
    if isinstance(value, dict):
        return {key: without_clock(v) for key, v in value.items()
                if not str(key).startswith("wall") and key != "environment"}
    if isinstance(value, list):
        return [without_clock(v) for v in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    return value


def names(folder):
    """What lies in a folder, but for the lock."""
    return {path.name for path in folder.iterdir()} - {"lock"}


def rows_of(folder):
    """The rows of a run, without clock times."""
    return without_clock(sweep.read_rows(folder / "metrics.jsonl"))


def weights(folder):
    """The weights in a run's checkpoint."""
    return sweep.load_saved(folder / "checkpoint.pt")["snapshot"]["model"]


def same_weights(one, other):
    pairs = zip(weights(one).values(), weights(other).values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def content(path):
    """What is in a file that a sweep writes, without clock times."""
    if path.suffix == ".pt":
        return without_clock(torch.load(path, weights_only=True))
    if path.suffix == ".json" or path.name == "done":
        return without_clock(json.loads(path.read_text()))
    if path.suffix == ".jsonl" and path.read_bytes().endswith(b"\n"):
        return [without_clock(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".html":
        lines = path.read_text().splitlines()
        return [line for line in lines if not line.startswith("environment: ")]
    return path.read_bytes()


def contents(folder):
    """{relative path: content} of every file in a sweep's directory, but for the locks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): content(path) for path in files}


def differences(folder, reference):
    """The paths that are in one of them only, or differ: (missing, added, changed)."""
    found = contents(folder)
    missing, added = set(reference) - set(found), set(found) - set(reference)
    changed = [name for name in set(found) & set(reference) if found[name] != reference[name]]
    return sorted(missing), sorted(added), sorted(changed)
