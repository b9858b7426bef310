"""Numba in company: forked data workers, many Python threads, no folder for compiled code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numba
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from longwave.mixers import build
from longwave.ops.numba._adapter import exp, kernel, prange


@pytest.fixture(autouse=True)
def two_threads():
    """The parallel forms, whose threads are what can go wrong."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def outputs(mixer, seed):
    """Forward and backward, by the numba forms: there are rows enough."""
    x = torch.randn(1, 150, 16, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    y, _ = mixer(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    return torch.cat([y.detach(), gradient])


class Outputs(Dataset):
    def __init__(self, mixer):
        self.mixer = mixer

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return outputs(self.mixer, index)


@pytest.mark.timeout(120)
def test_forked_data_workers_compute_the_same():
    mixer = build("hale", 16, 2)
    expected = [outputs(mixer, seed) for seed in range(8)]
    loader = DataLoader(Outputs(mixer), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for found, right in zip(loader, expected, strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.timeout(120)
def test_many_python_threads_compute_the_same():
    mixer = build("hale", 16, 2)
    expected = [outputs(mixer, seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for found, right in zip(pool.map(partial(outputs, mixer), range(8)), expected, strict=True):
                torch.testing.assert_close(found, right)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere PyTorch and Numba have their own OpenMP")
def test_a_kernel_runs_on_the_threads_of_pytorch_and_leaves_their_number():
    """With more threads at hand than PyTorch is told to use; in a process of its own, in which Numba has not begun."""
    code = """
        import os, torch
        from longwave import ops

        def threads():
            return torch.get_num_threads(), len(os.listdir("/proc/self/task"))

        torch.set_num_threads(2)
        torch.randn(10**6).exp()
        before = threads()
        ops.block_means(torch.randn(1, 4096, 2, 8), num_levels=2, backend="numba")
        torch.randn(10**6).exp()
        assert threads() == before, (before, threads())
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, env={**os.environ, "NUMBA_NUM_THREADS": "4"}
    )


class TestCache:
    """Compiled code that cannot be kept, or read as it was kept, is compiled again."""

    @pytest.fixture(autouse=True)
    def _folder(self, monkeypatch, tmp_path):
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def doubled(self):
        """A kernel of a new process, as it were, called once: its hits in the cache."""
        double, x, out = kernel(_double), torch.randn(5), torch.empty(5)
        double(x, out)
        torch.testing.assert_close(out, 2 * x)
        return sum(double._parallel.stats.cache_hits.values())

    def test_is_used(self):
        assert (self.doubled(), self.doubled()) == (0, 1)

    @pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: b"",
            lambda content: content[:-1],
            lambda content: content[: len(content) // 2],
            lambda content: content[:40],
            lambda content: b"\0" * len(content),
            lambda content: content + b"more",
            lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
            lambda content: content[:60] + bytes([content[60] ^ 128]) + content[61:],
            lambda content: b"nonsense" * 50,
        ],
        ids=[
            "empty",
            "one byte short",
            "half",
            "40 bytes",
            "zeros",
            "longer",
            "a late bit",
            "an early bit",
            "nonsense",
        ],
    )
    def test_a_damaged_file_counts_as_missing_and_is_written_anew(self, tmp_path, suffix, damage):
        self.doubled()
        (path,) = tmp_path.rglob(f"*{suffix}")
        path.write_bytes(damage(path.read_bytes()))
        assert (self.doubled(), self.doubled()) == (0, 1)

    def test_a_missing_file_is_written_anew(self, tmp_path):
        self.doubled()
        (path,) = tmp_path.rglob("*.nbc")
        path.unlink()
        assert (self.doubled(), self.doubled()) == (0, 1)

    def test_a_full_disk_keeps_nothing(self, monkeypatch):
        def full(*arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "_open_for_write", full)
        assert (self.doubled(), self.doubled()) == (0, 0)

    def test_without_a_folder_nothing_is_kept(self, monkeypatch):
        def nowhere(self, function):
            raise RuntimeError("cannot cache function: no locator available")

        monkeypatch.setattr(numba.core.caching.FunctionCache, "__init__", nowhere)
        assert (self.doubled(), self.doubled()) == (0, 0)


def _double(x, out):
    for i in prange(x.shape[0]):
        out[i] = 2 * x[i]


def test_exp_keeps_seven_digits_in_float32():
    @kernel
    def exponentials(x, out):
        for i in prange(x.shape[0]):
            out[i] = exp(x[i])

    x = torch.linspace(-87, 88, 10001)
    out = torch.empty_like(x)
    exponentials(x, out)
    torch.testing.assert_close(out.double(), x.double().exp(), rtol=3e-7, atol=0)
