"""Numba in company: forked data workers, many Python threads, no folder for compiled code."""

from __future__ import annotations

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


def test_without_a_folder_for_compiled_code_a_kernel_still_runs(monkeypatch):
    compiler = numba.njit

    def without_cache(*functions, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return compiler(*functions, **options)

    def double(x, out):
        for i in prange(x.shape[0]):
            out[i] = 2 * x[i]

    monkeypatch.setattr(numba, "njit", without_cache)
    x, out = torch.randn(5), torch.empty(5)
    kernel(double)(x, out)
    torch.testing.assert_close(out, 2 * x)


def test_exp_keeps_seven_digits_in_float32():
    @kernel
    def exponentials(x, out):
        for i in prange(x.shape[0]):
            out[i] = exp(x[i])

    x = torch.linspace(-87, 88, 10001)
    out = torch.empty_like(x)
    exponentials(x, out)
    torch.testing.assert_close(out.double(), x.double().exp(), rtol=3e-7, atol=0)
