"""What every test shares: one thread, a fixed seed, no network, and the corpora beside the checkout if any."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

# Read by the libraries when they are imported, and by the processes that tests start.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tokens that tests store go where nobody else looks for any.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="longwave-tests-")
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test begins from the same random numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of corpora and golden numbers beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the corpora and golden numbers of ../shared, which are not here")
    return folder


@pytest.fixture
def poisoned_memory():
    """Uninitialised floating-point memory is NaN while the test runs."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
