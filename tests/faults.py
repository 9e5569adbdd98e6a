"""A disk that fails on demand, and a sweep so small that it can be done hundreds of times.

    with Disk(at=7, how="kill") as disk:       the 7th write, sync, move, new folder or deletion is the last thing that the process does
        run.main()
    disk.log                                   what it was asked to do, in order

how="full": that operation fails with "No space left on device", and half of what was to be written is there.
how="kill": half of it is there, and the process is dead: nothing that it does afterwards, to clean up, reaches the disk.
how="read-only": from there on, every operation fails with "Read-only file system".
"""
import builtins
import errno
import json
import os
import sys
from unittest import mock

import torch
from matplotlib.figure import Figure

import conftest                                                             # noqa: F401  few choices of analysis, in every process

import emergence
import models
import run

TINY = ["sweep", "--task", "parity", "--sizes", "nano", "--seeds", "2", "--steps", "3", "--keep", "2", "--measures", "rankme", "--workers", "1"] + [
    word for field in ("snapshots=3", "per_level=2", "eval_examples=4", "probe_examples=4", "threads=1", "dtype=float32") for word in ("--set", field)]


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
        self.disk.operation(f"write {self.file.name}", lambda: put(content), lambda: put(content[:len(content) // 2]))


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
        raise Killed if self.dead else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name.split()[-1])

    def __enter__(self):
        def opened(path, mode="r", *rest, **named):
            return File(self, builtins.open(path, mode, *rest, **named)) if set(mode) & set("wax+") else builtins.open(path, mode, *rest, **named)

        def counted(name, real):
            def call(what, *rest, **named):                           # torch and matplotlib make folders of their own when they are first used
                ours = isinstance(what, int) or "parity" in str(what)
                return self.operation(f"{name} {what}", lambda: real(what, *rest, **named)) if ours else real(what, *rest, **named)
            return call
        self.patches = [mock.patch.object(run, "open", opened, create=True)]
        self.patches += [mock.patch.object(os, name, counted(name, getattr(os, name))) for name in ("replace", "fsync", "mkdir", "unlink")]
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *error):
        for patch in self.patches:
            patch.stop()


def small(monkeypatch):
    """Everything is as in a real sweep, but the model has a thousand parameters, each snapshot a checkpoint, the plan no timing, the report one small
    figure and few specifications."""
    monkeypatch.setitem(models.SIZES, "nano", models.GPTConfig(2, 1, 8))
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(run, "estimate", lambda *_: (0, 0, 1))
    few = {name: values[:1] if name in ("threshold", "persistence", "rise", "warmup") else values for name, values in emergence.ALTERNATIVES.items()}
    monkeypatch.setattr(emergence, "ALTERNATIVES", few)
    monkeypatch.setattr(emergence, "FIGURES", {"dot": lambda *_, **__: {"dot": Figure((0.1, 0.1))}})


def call(capsys, *arguments):
    """The command line in this process -> (exit status, what it wrote to stdout, to stderr); status None: it was killed."""
    status = None
    with mock.patch.object(sys, "argv", ["run.py", *map(str, arguments)]):
        try:
            run.main()
        except SystemExit as stop:
            status = stop.code or 0
        except Killed:
            pass
    return status, *capsys.readouterr()


def without_clock(value):
    """What two runs of the same config have in common: all but clock times and the record of the command."""
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if not str(k).startswith("wall") and k != "environment"}
    if isinstance(value, list):
        return [without_clock(v) for v in value]
    return (str(value.dtype), value.tolist()) if isinstance(value, torch.Tensor) else value


def contents(folder):
    """{relative path: what is in it, without clock times} of everything in a sweep's directory, but for `lock`, which a killed process
    leaves behind, and which then locks nothing."""
    def read(path):
        if path.suffix == ".pt":
            return without_clock(torch.load(path, weights_only=True))
        if path.suffix == ".json" or path.name == "done":
            return without_clock(json.loads(path.read_text()))
        if path.suffix == ".jsonl" and path.read_bytes().endswith(b"\n"):
            return [without_clock(json.loads(line)) for line in path.read_text().splitlines()]
        if path.suffix == ".html":
            return [line for line in path.read_text().splitlines() if not line.startswith("environment: ")]
        return path.read_bytes()
    return {str(path.relative_to(folder)): read(path) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"}


def differences(folder, reference):
    """The paths that are in one of them only, or differ: (missing, added, changed)."""
    found = contents(folder)
    return (sorted(set(reference) - set(found)), sorted(set(found) - set(reference)), sorted(k for k in set(found) & set(reference) if found[k] != reference[k]))


def child(arguments, screen):
    """In a process of its own: the tiny sweep, what it says in a file."""
    import pytest
    small(pytest.MonkeyPatch())
    with open(screen, "w") as sys.stdout:
        sys.stderr = sys.stdout
        sys.argv = ["run.py", *map(str, arguments)]
        run.main()
