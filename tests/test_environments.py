"""The promised Pythons, torchs and numpys; tests/environments.py makes the environments."""
import re
import shutil
import sys
from pathlib import Path

import pytest

import environments

PROJECT = (Path(__file__).parent.parent / "pyproject.toml").read_text()


def numbers(version):
    return tuple(map(int, version.split(".")[:2]))


def test_the_versions_are_those_that_are_promised():
    low, beyond = re.search(r"torch>=([\d.]+),<([\d.]+)", PROJECT).groups()
    oldest, newest = map(numbers, environments.TORCHS)
    assert oldest == numbers(low)
    assert newest == (numbers(beyond)[0], numbers(beyond)[1] - 1)
    least = re.search(r'requires-python = ">=([\d.]+)"', PROJECT)[1]
    assert environments.PYTHONS[0] == least
    assert [numbers(v)[1] for v in environments.PYTHONS] == list(range(10, 14))
    made = list(environments.environments(environments.PYTHONS))
    assert len(made) == len(set(made)) == 3 * len(environments.PYTHONS)


def test_this_python_is_found_and_one_that_is_not_there_is_named(monkeypatch):
    here = "%d.%d" % sys.version_info[:2]
    monkeypatch.setattr(shutil, "which", lambda name: sys.executable if here in name else None)
    assert environments.find_python(here) == sys.executable
    monkeypatch.setenv("PYENV_ROOT", "nowhere")
    with pytest.raises(environments.Skipped, match="no Python 9.9 here"):
        environments.find_python("9.9")


def test_what_fails_and_what_is_skipped_is_told_apart(monkeypatch):
    def make(folder, version, torch, numpy):
        if numpy is None:
            raise environments.Skipped("not to be had")
        return torch

    def check(python, folder):
        if python == environments.TORCHS[0]:
            raise RuntimeError("measures: 1 of 9 examples failed")
        return "torch x, numpy y"
    lines = []
    monkeypatch.setattr(environments, "make", make)
    monkeypatch.setattr(environments, "check", check)
    assert environments.run_all(["3.10"], lines.append) == [False, True]
    assert [line.partition(":")[0] for line in lines] == ["FAILED", "ok", "skipped"]


def test_a_python_without_torch_is_tried_without(monkeypatch):
    def make(folder, version, torch, numpy):
        if torch:
            raise environments.Skipped("not to be had")
        return sys.executable
    monkeypatch.setattr(environments, "make", make)
    lines = []
    assert environments.run_all(["3.13"], lines.append) == [True]
    assert [line.partition(":")[0] for line in lines] == ["skipped"] * 3 + ["ok"]


@pytest.mark.slow
def test_examples_and_analyse_in_every_environment_that_can_be_had():
    passed = environments.run_all()
    if not passed:
        pytest.skip("none can be had")
    assert all(passed)
