"""Properties 17 to 20: how well one of 44 deposits is read back from a d x d field."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from longwave.verification.dwarf.properties import Finding, Group, normals
from longwave.verification.dwarf.waves import tap_weights

TAPS, TRIALS = 44, 2000
UNIFORM = torch.full((TAPS,), 1 / TAPS, dtype=torch.float64)
#: Perplexity that the authors' smallest model lacks to softmax attention.
PERPLEXITY_GAP = 20.2

GROUP = Group("Rank of the field")


def effective_taps(weights: Tensor, share: float) -> int:
    """Taps whose weight is at least ``share`` of the largest."""
    return int((weights >= share * weights.max()).sum())


def read_back(weights: Tensor, width: int, seed: int) -> tuple[float, float]:
    """F = Σ w_i k_i v_iᵀ read with q = k_0: mean signal to noise in dB, mean share |signal|² / |read|².

    Keys have norm 1, values variance 1/4; signal is w_0 v_0.
    """
    randn, ratios, shares = normals(seed), [], []
    for _ in range(4):
        keys = F.normalize(randn(TRIALS // 4, TAPS, width), dim=-1)
        values = 0.5 * randn(TRIALS // 4, TAPS, width)
        read = weights * torch.einsum("bd,btd->bt", keys[:, 0], keys)
        signal = weights[0] * values[:, 0]
        noise = torch.einsum("bt,btd->bd", read[:, 1:], values[:, 1:])
        ratios.append(signal.square().sum(dim=1) / noise.square().sum(dim=1))
        shares.append(signal.square().sum(dim=1) / (signal + noise).square().sum(dim=1))
    return float(10 * torch.cat(ratios).log10().mean()), float(torch.cat(shares).mean())


@GROUP.property(17, "wider heads separate 44 taps", {"d 32": -1.20, "d 80": 2.81, "d 128": 4.82})
def uniform_taps() -> Finding:
    """Equal weights, dB: below 0 at d = 32, above 0 and more than 2 better at d = 80, better still at 128."""
    ratios = [read_back(UNIFORM, width, 17)[0] for width in (32, 80, 128)]
    holds = ratios[0] < 0 < ratios[1] < ratios[2] and ratios[1] - ratios[0] > 2
    theory = {"theory at 32": 10 * math.log10(32 / 43)}
    return Finding(holds, dict(zip(("d 32", "d 80", "d 128"), ratios, strict=True)) | theory)


@GROUP.property(18, "few taps carry the weight", {"1 %": 40, "5 %": 26, "10 %": 18, "gain dB": 8.2})
def weighted_taps() -> Finding:
    """Fewer than 44 taps weigh 1 % of the largest or more; the weights gain signal over equal ones at d = 32."""
    weights = tap_weights()
    counts = {f"{percent} %": effective_taps(weights, percent / 100) for percent in (1, 5, 10)}
    gain = read_back(weights, 32, 18)[0] - read_back(UNIFORM, 32, 18)[0]
    return Finding(counts["1 %"] < TAPS, counts | {"gain dB": gain})


@GROUP.property(19, "random keys collide", {"off the diagonal": 0.142})
def collisions() -> Finding:
    """Twelve keys of 32 channels (500 draws): mean |cosine| above 0.05, and 1 within 0.05 to themselves."""
    keys = F.normalize(normals(19)(500, 12, 32), dim=-1)
    cosines = torch.einsum("bid,bjd->bij", keys, keys).abs().mean(dim=0)
    own = float(cosines.diagonal().mean())
    other = float(cosines[~torch.eye(12, dtype=torch.bool)].mean())
    exact = math.gamma(16) / (math.sqrt(math.pi) * math.gamma(16.5))
    return Finding(other > 0.05 and abs(own - 1) < 0.05, {"off the diagonal": other, "on it": own, "exact": exact})


@GROUP.property(20, "rank explains little of the gap", {"d 32": 0.832, "d 80": 0.919, "of the gap": 0.005})
def gap() -> Finding:
    """The signal's share is larger at d = 80 than at 32, and its logarithm is above 0.1 % of the gap of 20.2."""
    narrow, wide = (read_back(tap_weights(), width, 20)[1] for width in (32, 80))
    explained = math.log(wide / narrow) / PERPLEXITY_GAP
    return Finding(wide > narrow and explained > 1e-3, {"d 32": narrow, "d 80": wide, "of the gap": explained})
