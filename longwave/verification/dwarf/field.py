"""Properties 9, 13, 14 and 15: the field's normaliser, the delta-gated field of condition O, and φ over channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from longwave.ops.features import elu_plus_one
from longwave.verification.dwarf.properties import Finding, Group, normals
from longwave.verification.dwarf.waves import D4, EXACT_D4, SCALES, convolve, tap_weights

DELTA_BETAS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.9)
PROFILE_BETAS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9)
WIDTH = 32

NORMALISER = Group("Field normaliser")
DELTA = Group("Delta field (condition O)")
PHI = Group("Normaliser φ over output channels")


def channel_taps(width: int, taps: Tensor) -> Tensor:
    """T of condition O: lower-triangular Toeplitz with the taps below the diagonal, `[width, width]`."""
    return convolve(torch.eye(width, dtype=taps.dtype), taps)


def steady_norm(beta: float, width: int, taps: Tensor = EXACT_D4) -> float:
    """Root mean square of the norm of F_n = (1 - β) F_{n-1} Tᵀ + β k vᵀ at rest, k and v standard normal.

    It is β sqrt(d Σ_t |((1 - β) T)^t|²); the sum is taken by doubling.
    """
    power = (1 - beta) * channel_taps(width, taps)
    total = torch.eye(width, dtype=taps.dtype)
    for _ in range(16):
        total = total + power.T @ total @ power
        power = power @ power
    return beta * math.sqrt(width * float(total.trace()))


def profile_distances(betas: Sequence[float], scales: int = SCALES) -> Tensor:
    """L1 distance of the tap weights to (1 - β)^δ of sum 1, for each β; tap τ of scale j counts as δ = (τ + 1) 2^j."""
    reach = (2.0 ** torch.arange(scales, dtype=torch.float64)[:, None] * torch.arange(1, 5)).flatten()
    decay = (1 - torch.tensor(betas, dtype=torch.float64)[:, None]) ** reach
    return (tap_weights(scales) - decay / decay.sum(dim=1, keepdim=True)).abs().sum(dim=1)


@NORMALISER.property(
    9,
    "q·F as a normaliser",
    {"median at 32": 0.163, "below 1e-3 at 32": 0.0035, "median at 80": 0.105, "below 1e-3 at 80": 0.0058}
    | {"negative": 0.498},
)
def field_normaliser() -> Finding:
    """|q·F| of 10,000 draws is never 0, and its median lies between 1e-3 and 100 for 32 and for 80 channels.

    F is a weighted sum of 44 keys, convolved over channels; keys and queries have norm 1 on average.
    """
    measured, holds, negative = {}, True, 0.0
    weights = tap_weights() / tap_weights()[0] * EXACT_D4[0]
    for width in (32, 80):
        randn = normals(9)
        scores = torch.cat([_normaliser(randn, weights, width) for _ in range(10)])
        least, median = float(scores.abs().min()), float(scores.abs().median())
        holds = holds and least > 0 and 1e-3 < median < 100
        measured[f"median at {width}"] = median
        measured[f"below 1e-3 at {width}"] = float((scores.abs() < 1e-3).double().mean())
        negative += float((scores < 0).double().mean()) / 2
    return Finding(holds, measured | {"negative": negative})


def _normaliser(randn, weights: Tensor, width: int) -> Tensor:
    keys = randn(1000, len(weights), width) / width**0.5
    field = convolve(torch.einsum("t,btd->db", weights, keys), D4)
    return torch.einsum("bd,db->b", randn(1000, width) / width**0.5, field)


@DELTA.property(13, "raw taps grow unless β ≥ 0.29", {"β 0.3": 21.9, "β 0.05": 6.8e5})
def delta_field() -> Finding:
    """2048 steps: β = 0.3 settles below 100 d, β = 0.05 does not; every β within a factor 2 of the closed form.

    With the taps scaled to sum 1 every β stays below 100 d.
    """
    draws, steps = 8, 2048
    taps = torch.stack([channel_taps(WIDTH, D4), channel_taps(WIDTH, D4 / D4.sum())])[:, None, None]
    beta = torch.tensor(DELTA_BETAS, dtype=torch.float64)[:, None, None, None]
    turn, randn = (1 - beta) * taps.mT, normals(13)
    field = torch.zeros(2, len(DELTA_BETAS), draws, WIDTH, WIDTH, dtype=torch.float64)
    norms = {}
    for step in range(1, steps + 1):
        field = field @ turn + beta * (randn(draws, WIDTH, 1) * randn(draws, 1, WIDTH))
        if step in (512, steps):
            norms[step] = field.square().sum(dim=(-2, -1)).mean(dim=-1).sqrt()
    raw, scaled = norms[steps]
    closed = torch.tensor([steady_norm(beta, WIDTH) for beta in DELTA_BETAS], dtype=torch.float64)
    factor = float(torch.exp((raw / closed).log().abs().max()))
    settled, growing = (DELTA_BETAS.index(beta) for beta in (0.3, 0.05))
    settles = raw[settled] < 2 * norms[512][0, settled] and raw[settled] < 100 * WIDTH
    holds = settles and raw[growing] > 100 * WIDTH and factor < 2 and scaled.max() < 100 * WIDTH
    found = {"β 0.3": float(raw[settled]), "β 0.05": float(raw[growing])}
    return Finding(bool(holds), found | {"factor": factor, "unit taps at most": float(scaled.max())})


@DELTA.property(14, "the taps are no exponential decay", {"L1 distance": 0.6202, "at β": 0.05})
def profile() -> Finding:
    """The weights of the 44 taps are at least 0.10 from every exponential, and not monotone."""
    distances = profile_distances(PROFILE_BETAS)
    rises = bool((tap_weights().diff() > 0).any())
    best = int(distances.argmin())
    found = {"L1 distance": float(distances[best]), "at β": PROFILE_BETAS[best]}
    return Finding(rises and found["L1 distance"] > 0.10, found)


@PHI.property(15, "dividing by Σφ changes the variance", {"normal": 0.0009, "mixed": 0.0010})
def variance_ratio() -> Finding:
    """Outputs over the sum of their φ have another variance, by more than 5 %, for one kind of output at least."""
    randn = normals(15)
    scores, values = randn(2000, 11), 0.5 * randn(2000, 11, WIDTH)
    outputs = {
        "normal": 0.5 * randn(2000, WIDTH),
        "mixed": torch.einsum("bt,btd->bd", scores.softmax(dim=1), values),
    }
    ratios = {name: _variance_ratio(out) for name, out in outputs.items()}
    return Finding(any(abs(ratio - 1) > 0.05 for ratio in ratios.values()), ratios)


def _variance_ratio(out: Tensor) -> float:
    after = out / elu_plus_one(out).sum(dim=1, keepdim=True)
    return float(after.var(dim=1, correction=0).mean() / out.var(dim=1, correction=0).mean())
