"""Properties 1 to 8: a softmax gather over 1, 2, 4, ..., 1024, and the algebra of the K⊗V field."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longwave.ops import offset_attention
from longwave.verification.dwarf.properties import Finding, Group, normals
from longwave.verification.dwarf.waves import D4, convolve, impulse

OFFSETS = tuple(2**j for j in range(11))
WIDTH = 32

GROUP = Group("Gather and K⊗V algebra")


@GROUP.property(1, "the gather reads the past alone", {"own key": 0.0, "own value": 0.0, "value before": 17.5})
def causality() -> Finding:
    """Another key or value at t = 50 leaves the output there within 1e-6; another value at t - 1 moves it."""
    randn, t = normals(1), 50
    q, k, v, fresh = randn(4, 128, WIDTH)

    def gathered(k: Tensor, v: Tensor) -> Tensor:
        rows = (x[None, :, None] for x in (q, k, v))
        out: Any = offset_attention(*rows, offsets=OFFSETS)
        return out[0, t, 0]

    def replaced(x: Tensor, at: int) -> Tensor:
        return torch.where(torch.arange(128)[:, None] == at, fresh, x)

    base = gathered(k, v)
    others = (gathered(replaced(k, t), v), gathered(k, replaced(v, t)), gathered(k, replaced(v, t - 1)))
    own_key, own_value, before = (float((other - base).abs().sum()) for other in others)
    holds = own_key < 1e-6 and own_value < 1e-6 and before > 1e-3
    return Finding(holds, {"own key": own_key, "own value": own_value, "value before": before})


@GROUP.property(2, "the field decomposes into scores", {"float32": 9.5e-7})
def decomposition() -> Finding:
    """qᵀ Σ c k⊗v = Σ c (q·k) v over four taps: within 1e-4 in float32, and 1e-12 in float64."""
    errors = {}
    for dtype in (torch.float32, torch.float64):
        randn, t = normals(2, dtype), 12
        q, k, v = randn(WIDTH), randn(16, WIDTH), randn(16, WIDTH)
        rows, taps = torch.arange(t - 1, t - 5, -1), torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=dtype)
        field = torch.einsum("t,tk,tv->kv", taps, k[rows], v[rows])
        error = q @ field - (taps * (k[rows] @ q)) @ v[rows]
        errors[str(dtype).removeprefix("torch.")] = float(error.abs().max())
    return Finding(errors["float32"] < 1e-4 and errors["float64"] < 1e-12, errors)


@GROUP.property(3, "five convolutions smear an impulse", {"left": 0.99993, "positions above 1 %": 7})
def smearing() -> Finding:
    """An impulse leaves between 5 % and less than all of its energy where it was."""
    field = impulse(64, 10)
    for _ in range(5):
        field = convolve(field, D4)
    energy = field**2
    left = 1 - float(energy[10] / energy.sum())
    return Finding(0.05 < left < 1, {"left": left, "positions above 1 %": int((energy > 0.01 * energy.max()).sum())})


@GROUP.property(4, "the gather keeps an open choice", {"gather": 1.453, "full attention": 3.444})
def entropy() -> Finding:
    """Mean entropy of random scores at t = 50: more than 0.5 nat, and less than over all of the past."""
    randn, t = normals(4), 50
    q, k = randn(100, WIDTH), randn(100, t, WIDTH)
    gather, full = (float(_entropy(_weights(q, keys)).mean()) for keys in (k[:, _behind(t)], k))
    return Finding(0.5 < gather < full, {"gather": gather, "full attention": full})


@GROUP.property(5, "a planted key is recovered", {"weight": 0.877, "cosine": 0.998})
def recovery() -> Finding:
    """The key 4 tokens back is 20 times the query: it takes more than half of the weight (100 draws)."""
    randn, t = normals(5), 60
    q = F.one_hot(torch.tensor(0), WIDTH).double().expand(100, WIDTH)
    k, v = randn(2, 100, t, WIDTH)
    k[:, t - 4], v[:, t - 4] = 20 * q, 1.0
    rows = _behind(t)
    weights = _weights(q, k[:, rows])
    out = torch.einsum("bt,btd->bd", weights, v[:, rows])
    weight = float(weights[:, rows.index(t - 4)].mean())
    cosine = float(F.cosine_similarity(out, v[:, t - 4]).mean())
    return Finding(weight > 0.5, {"weight": weight, "cosine": cosine})


@GROUP.property(6, "the gather is sparse", {"rows read": 0.0625, "largest score read": 0.072})
def sparsity() -> Finding:
    """At t = 128 it reads less than 15 % of the past, and the largest score no more often than by chance."""
    randn, t = normals(6), 128
    q, k = randn(1000, WIDTH), randn(1000, t, WIDTH)
    largest = torch.einsum("bd,btd->bt", q, k).argmax(dim=1)
    rows = torch.tensor(_behind(t))
    share, hit = len(rows) / t, float(torch.isin(largest, rows).double().mean())
    return Finding(share < 0.15, {"rows read": share, "largest score read": hit})


@GROUP.property(7, "softmax gather beside a uniform field", {"mean": 0.54, "least": -0.44, "most": 0.99})
def likeness() -> Finding:
    """Cosine between the two outputs over the distances 1, 2, 4, 8 (50 draws); nothing is asserted."""
    randn = normals(7)
    q, k, v = randn(50, WIDTH), randn(50, 4, WIDTH), randn(50, 4, WIDTH)
    gathered = torch.einsum("bt,btd->bd", _weights(q, k), v)
    field = torch.einsum("bd,btd,btv->bv", q, k, v) / 4
    cosine = F.cosine_similarity(gathered, field)
    return Finding(None, {"mean": float(cosine.mean()), "least": float(cosine.min()), "most": float(cosine.max())})


@GROUP.property(8, "what one row reads")
def summary() -> Finding:
    """Rows that a row at t = 1024 reads, of all rows before it; nothing is asserted."""
    return Finding(None, {"rows": len(_behind(1024)), "of": 1024})


def _behind(t: int) -> list[int]:
    """Rows that row t reads, nearest first."""
    return [t - offset for offset in OFFSETS if offset <= t]


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q·k / sqrt(d)) of `[B, d]` and `[B, T, d]`."""
    return (torch.einsum("bd,btd->bt", q, k) / q.shape[1] ** 0.5).softmax(dim=1)


def _entropy(weights: Tensor) -> Tensor:
    return -torch.xlogy(weights, weights).sum(dim=1)
