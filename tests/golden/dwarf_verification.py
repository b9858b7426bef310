"""Golden numbers behind DWARF's properties, answered by the functions that the properties use."""

from __future__ import annotations

from typing import Any

import torch

from longwave.mixers import build
from longwave.verification import reachability
from longwave.verification.dwarf.field import profile_distances, steady_norm
from longwave.verification.dwarf.rank import effective_taps
from longwave.verification.dwarf.rg_schedule import rg_schedule
from longwave.verification.dwarf.soliton import Tank, runs
from longwave.verification.dwarf.waves import D4, evolve, gaussian, morlet, tap_weights
from tests.golden.core import Answers, Golden, Kind, prefixed

KERNELS = {"db4sum1": D4 / D4.sum(), "gauss": gaussian(2, 8), "morlet": morlet(4, 16)}
SHARES = (0.01, 0.05, 0.10)
WIDTH, HOPS, TOKENS = 32, 6, 2047


def verify_numbers(golden: Golden) -> Answers:
    """Everything that needs no random numbers."""
    config, pulse = golden.config, golden.tensors["in.pulse"]
    tank = Tank(**{name: config["soliton"][name] for name in Tank._fields})
    weights = tap_weights()
    answers: Answers = {
        "d4_weights_44": weights,
        "effective_n": torch.tensor([effective_taps(weights, share) for share in SHARES]),
        "profile_l1": profile_distances(config["betas_profile"]),
        "delta_rms_frobenius": torch.tensor(
            [steady_norm(beta, WIDTH) for beta in config["betas_delta"]], dtype=torch.float64
        ),
        "gauss_kernel": KERNELS["gauss"],
        "morlet_kernel": KERNELS["morlet"],
        "hop_reach": torch.stack([reachability(_distances(condition), HOPS, TOKENS) for condition in "KNP"]),
    }
    for name in golden.group("out.evolve_"):
        kernel, alpha = name.split("_")
        answers[f"evolve_{name}"] = evolve(pulse, KERNELS[kernel], float(alpha), config["conv_steps"])
    answers |= prefixed("soliton_", runs(tank))
    return prefixed("out.", answers)


def rg_schedules(golden: Golden) -> Answers:
    """``out.rg_schedule_<layers>x<scales>``, of the kind ``init_values``."""
    sizes = {name: map(int, name.split("x")) for name in golden.group("out.rg_schedule_")}
    return {f"out.rg_schedule_{name}": rg_schedule(*size) for name, size in sizes.items()}


def _distances(condition: str) -> tuple[int, ...]:
    mixer: Any = build("dwarf", 8, 2, {"condition": condition})
    return mixer.distances


KINDS = {"verify_numbers": Kind((verify_numbers,))}
