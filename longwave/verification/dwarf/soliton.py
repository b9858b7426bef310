"""Properties 32 to 38: the soliton of the Korteweg-de Vries equation u_t + 6 u u_x + u_xxx = 0, periodic in x.

The crate writes the profile's width as sqrt(c / 2), so that it is no soliton; the exact one is sqrt(c) / 2. Both run.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from longwave.verification.dwarf.properties import Finding, Group


class Tank(NamedTuple):
    """N points on [0, L), K steps of dt, and a wave of speed c that starts at x0."""

    N: int = 64
    L: float = 20.0
    dt: float = 1e-3
    steps: int = 1000
    c: float = 1.0
    x0: float = 5.0

    @property
    def x(self) -> Tensor:
        """Where the points are."""
        return torch.arange(self.N, dtype=torch.float64) * self.L / self.N


#: The factor of x - x0 in sech², by speed.
WIDTHS = {"as_written": lambda c: math.sqrt(c / 2), "exact": lambda c: math.sqrt(c) / 2}

GROUP = Group("Soliton")


def soliton(tank: Tank, width: float) -> Tensor:
    """(c / 2) sech²(width (x - x0)), x - x0 the shorter way round: `[N]`."""
    away = (tank.x - tank.x0 + tank.L / 2) % tank.L - tank.L / 2
    return tank.c / 2 / torch.cosh(width * away) ** 2


def propagate(u: Tensor, tank: Tank, nonlinear: Tensor | float = 1.0) -> Tensor:
    """``steps`` Runge-Kutta steps of `[..., N]`; the term 6 u u_x is scaled by ``nonlinear``.

    Derivatives are taken of the waves up to N / 3; of the pair just above it the crate keeps the negative one.
    """
    mode = torch.fft.fftfreq(tank.N, 1 / tank.N, dtype=torch.float64)
    edge = math.ceil(tank.N / 3)
    kept = (mode < edge) & (mode >= -edge)
    first = 2j * math.pi / tank.L * mode * kept
    spectra = torch.stack([kept.to(first.dtype), first, first**3])

    def slope(u: Tensor) -> Tensor:
        smooth, u_x, u_xxx = torch.fft.ifft(spectra * torch.fft.fft(u)[..., None, :]).real.unbind(-2)
        return -6 * nonlinear * smooth * u_x - u_xxx

    for _ in range(tank.steps):
        a = slope(u)
        b = slope(u + tank.dt / 2 * a)
        c = slope(u + tank.dt / 2 * b)
        d = slope(u + tank.dt * c)
        u = u + tank.dt / 6 * (a + 2 * b + 2 * c + d)
    return u


@cache
def runs(tank: Tank = Tank()) -> dict[str, Tensor]:  # noqa: B008 (immutable)
    """Initial and final profile `[2, N]` of ``as_written`` and ``exact``, each under ``kdv`` and ``linear``."""
    begin = torch.stack([soliton(tank, width(tank.c)) for width in WIDTHS.values()])
    begin = begin[:, None].expand(-1, 2, -1)
    end = propagate(begin, tank, nonlinear=torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    names = [f"{width}_{equation}" for width in WIDTHS for equation in ("kdv", "linear")]
    return dict(zip(names, torch.stack([begin, end], dim=2).flatten(0, 1), strict=True))


def peak(u: Tensor) -> float:
    """The largest value."""
    return float(u.max())


def place(u: Tensor, tank: Tank) -> float:
    """Where the largest value is."""
    return float(tank.x[u.argmax()])


@GROUP.property(32, "the profile is the formula")
def initial_profile() -> Finding:
    """Every point of both profiles is the formula's value within 1e-6."""
    tank, worst = Tank(), 0.0
    for name, width in WIDTHS.items():
        u = runs()[f"{name}_kdv"][0].tolist()
        for x, found in zip(tank.x.tolist(), u, strict=True):
            away = min(abs(x - tank.x0), tank.L - abs(x - tank.x0))
            worst = max(worst, abs(found - tank.c / 2 / math.cosh(width(tank.c) * away) ** 2))
    return Finding(worst < 1e-6, {"error": worst})


@GROUP.property(33, "the soliton keeps its height", {"as written": 0.433, "exact": 0.4995})
def height() -> Finding:
    """The peak stays within 20 % of c / 2 as written, and within 1 % with the exact width."""
    written, exact = (peak(runs()[f"{name}_kdv"][1]) for name in WIDTHS)
    half = Tank().c / 2
    holds = abs(written / half - 1) < 0.20 and abs(exact / half - 1) < 0.01
    return Finding(holds, {"as written": written, "exact": exact})


@GROUP.property(34, "without nonlinearity it flattens", {"as written": 0.389, "exact": 0.443})
def linear_height() -> Finding:
    """Under the linear equation the peak falls below 90 % of c / 2."""
    written, exact = (peak(runs()[f"{name}_linear"][1]) for name in WIDTHS)
    return Finding(max(written, exact) < 0.9 * Tank().c / 2, {"as written": written, "exact": exact})


@GROUP.property(35, "nonlinear keeps more than linear")
def advantage() -> Finding:
    """The peak is higher under the full equation than under the linear one."""
    gained = [peak(runs()[f"{name}_kdv"][1]) - peak(runs()[f"{name}_linear"][1]) for name in WIDTHS]
    return Finding(min(gained) > 0, {"as written": gained[0], "exact": gained[1]})


@GROUP.property(36, "the soliton moves at its speed", {"as written": 5.625, "exact": 5.9375})
def speed() -> Finding:
    """The peak is within two grid cells of x0 + c T = 6."""
    tank = Tank()
    places = [place(runs()[f"{name}_kdv"][1], tank) for name in WIDTHS]
    goal = tank.x0 + tank.c * tank.steps * tank.dt
    holds = all(abs(x - goal) <= 2 * tank.L / tank.N for x in places)
    return Finding(holds, {"as written": places[0], "exact": places[1]})


@GROUP.property(37, "mass and energy are conserved")
def conservation() -> Finding:
    """Σu and Σu² change by less than 1e-3 of themselves."""
    changes = {}
    for power, name in ((1, "mass"), (2, "energy")):
        sums = torch.stack([runs()[f"{width}_kdv"] ** power for width in WIDTHS]).sum(dim=2)
        changes[name] = float((sums[:, 1] / sums[:, 0] - 1).abs().max())
    return Finding(max(changes.values()) < 1e-3, changes)


@GROUP.property(38, "table of the soliton")
def table() -> Finding:
    """Where the linear waves peak, and what they keep of their energy; nothing is asserted."""
    tank, found = Tank(), {}
    for name in WIDTHS:
        begin, end = runs()[f"{name}_linear"]
        found[f"{name.replace('_', ' ')} at"] = place(end, tank)
        found[f"{name.replace('_', ' ')} energy kept"] = float((end**2).sum() / (begin**2).sum())
    return Finding(None, found)
