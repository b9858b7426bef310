"""Properties 39 to 50: convolution and a KdV step on a field of 64 numbers."""

from __future__ import annotations

import torch

from longwave.verification.dwarf.properties import Finding, Group
from longwave.verification.dwarf.waves import (
    D4,
    centroid,
    convolve,
    difference,
    evolve,
    gaussian,
    impulse,
    kdv_step,
    largest_before,
    morlet,
    pulse,
    taps_for_energy,
)

POSITIONS, STEPS = 64, 8
PULSE = pulse(POSITIONS, 21, 3)

GROUP = Group("Field update")


@GROUP.property(39, "no difference before the first")
def first_difference() -> Finding:
    """The difference at the first position of a ramp is 0."""
    first = float(difference(1 + 0.1 * torch.arange(POSITIONS, dtype=torch.float64))[0])
    return Finding(first == 0, {"difference": first})


@GROUP.property(40, "the difference does not look ahead")
def causal_difference() -> Finding:
    """Of an impulse at 20: 0 before it, 1 at it, -1 after it, within 1e-6."""
    found = difference(impulse(POSITIONS, 20))
    before, at, after = largest_before([found], 20), float(found[20]), float(found[21])
    return Finding(max(before, abs(at - 1), abs(after + 1)) < 1e-6, {"before": before, "at": at, "after": after})


@GROUP.property(41, "the KdV step is causal")
def causal_step() -> Finding:
    """An impulse at 30, α = 0.1: below 1e-9 before it, not 0 at it."""
    found = kdv_step(impulse(POSITIONS, 30), 0.1)
    before, at = largest_before([found], 30), float(found[30])
    return Finding(before < 1e-9 and at != 0, {"before": before, "at": at})


@GROUP.property(42, "α = 0 changes nothing")
def identity() -> Finding:
    """A KdV step of α = 0 is the identity."""
    error = float((kdv_step(PULSE, 0.0) - PULSE).abs().max())
    return Finding(error == 0, {"error": error})


@GROUP.property(43, "D4's energy comes first", {"D4": 2, "Morlet": 5})
def front_loaded() -> Finding:
    """80 % of the energy lies in fewer taps than of a Morlet wavelet of width 4."""
    taps = {"D4": taps_for_energy(D4, 0.8), "Morlet": taps_for_energy(morlet(4, 24), 0.8)}
    return Finding(taps["D4"] < taps["Morlet"], taps)


@GROUP.property(44, "two taps hold the energy", {"share": 0.933})
def two_taps() -> Finding:
    """D4's first two taps hold more than 90 %."""
    share = float((D4[:2] ** 2).sum() / (D4**2).sum())
    return Finding(share > 0.90, {"share": share})


@GROUP.property(45, "the KdV step slows the decay", {"α 0": 0.640, "α 0.3": 0.666})
def slower_decay() -> Finding:
    """Eight steps with a Gaussian kernel: both peaks fall, that of α = 0.3 less than that of α = 0."""
    linear, nonlinear = (float(evolve(PULSE, gaussian(2, 8), alpha, STEPS).max()) for alpha in (0.0, 0.3))
    return Finding(linear < nonlinear < 1, {"α 0": linear, "α 0.3": nonlinear})


@GROUP.property(46, "more α keeps more")
def monotone() -> Finding:
    """Five steps: the peak does not fall by more than 1e-4 from one α to the next of 0, 0.05, 0.1, 0.2, 0.4."""
    peaks = [float(evolve(PULSE, gaussian(2, 6), alpha, 5).max()) for alpha in (0.0, 0.05, 0.1, 0.2, 0.4)]
    rises = torch.tensor(peaks).diff()
    return Finding(bool((rises >= -1e-4).all()), {"α 0": peaks[0], "α 0.4": peaks[-1]})


@GROUP.property(47, "the convolution is causal")
def causal_convolution() -> Finding:
    """An impulse at 15: below 1e-9 before it."""
    before = largest_before([convolve(impulse(POSITIONS, 15), D4)], 15)
    return Finding(before < 1e-9, {"before": before})


@GROUP.property(48, "table of the field update")
def table() -> Finding:
    """Peaks after eight steps, by α; nothing is asserted."""
    alphas = (0.0, 0.1, 0.2, 0.3, 0.5)
    return Finding(None, {f"α {alpha:g}": float(evolve(PULSE, gaussian(2, 8), alpha, STEPS).max()) for alpha in alphas})


@GROUP.property(49, "Morlet drift over α", {"least drift": 12.41, "at α": 0.20})
def morlet_drift() -> Finding:
    """The α of 0, 0.02, ..., 0.5 under which the centroid drifts least; nothing is asserted."""
    drifts = {step / 50: abs(_drift(morlet(4, 16), step / 50)) for step in range(26)}
    best = min(drifts, key=lambda alpha: drifts[alpha])
    return Finding(None, {"least drift": drifts[best], "at α": best})


@GROUP.property(50, "a causal kernel drifts forward", {"drift": 10.41})
def gaussian_drift() -> Finding:
    """Eight convolutions with a Gaussian move the centroid to later positions."""
    drift = _drift(gaussian(2, 8), 0.0)
    return Finding(drift > 0, {"drift": drift})


def _drift(kernel: torch.Tensor, alpha: float) -> float:
    return centroid(evolve(PULSE, kernel, alpha, STEPS)) - centroid(PULSE)
