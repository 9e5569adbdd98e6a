"""Shared by all tests: the modules lie one folder up, and torch gets one thread, so that numbers do not depend on the machine's cores."""
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import emergence                                                          # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


# Hundreds of small sweeps are reported on here: 6 choices of analysis each, not 864, but where a test asks for all of them.
ALL_CHOICES = emergence.ALTERNATIVES
emergence.ALTERNATIVES = {axis: options if axis in ("behaviour", "position") else options[:1] for axis, options in ALL_CHOICES.items()}


@pytest.fixture
def all_choices(monkeypatch):
    monkeypatch.setattr(emergence, "ALTERNATIVES", ALL_CHOICES)
