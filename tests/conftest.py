"""Shared by all tests: where the modules lie, one thread for torch, and a seeded generator.

The number of threads decides in which order sums are taken, and so their last bits.  With one, no
number depends on how many cores the machine has."""
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
