"""Properties P5, P8 and P12: what a mixer's state may cost, carry and survive."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from longwave.mixers.base import fork, load, nbytes, put, save, select, to_device
from longwave.ops import use_backend
from longwave.verification.measure import Worst, moved, relative, relative_gradients
from longwave.verification.subjects import MixerSubject

BUDGET_SECONDS = 2.0
LEAST_TOKENS = 2048
PIECE = 1024
FAR = 2**30


@torch.no_grad()
def bounded_state(subject: MixerSubject, longest: int) -> Worst:
    """P5: bytes over declared bytes (at most 1), and operations of a step that does not see more.

    Pieces double the tokens seen until the budget ends; the place says how far it went.
    """
    worst, mixer = Worst(), subject.mixer
    _check_growth(worst, subject)
    seen, state, began = 0, None, time.monotonic()
    counts = {}
    while seen < LEAST_TOKENS or 3 * (time.monotonic() - began) < BUDGET_SECONDS:
        target = max(1, 2 * seen)
        while seen < target:
            size = min(PIECE, target - seen)
            _, state = mixer(subject.sample(1, size, seed=seen), state, return_state=True)
            seen += size
        declared = mixer.state_bytes(seen, torch.float64)
        worst.see(nbytes(state) / declared, f"{nbytes(state)} of {declared} bytes after {seen} tokens")
        empty = nbytes(mixer.init_state(1, max_tokens=seen))
        worst.see(empty / declared, f"init_state(max_tokens={seen}): {empty} of {declared} bytes")
        with FlopCounterMode(display=False) as counter:
            mixer(subject.sample(1, 1, seed=seen)[:, 0], fork(state))
        counts[seen] = counter.get_total_flops()
    if subject.declaration.growth == "constant" and len(set(counts.values())) > 1:
        worst.see(float("inf"), f"operations of a step grow with the tokens seen: {counts}")
    worst.where += f" (went to {seen} tokens)"
    return worst


def gradients(subject: MixerSubject, longest: int) -> Worst:
    """P8: against the naive twins (relative) and finite differences (relative over 1e4), initial state included."""
    worst = Worst()
    length = min(41, longest)
    past = subject.sample(2, 7, seed=2)
    x = subject.sample(2, length).requires_grad_()
    with torch.no_grad():
        _, state = subject.run(past, return_state=True)
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in fork(state)]
    state = type(state)(*leaves)
    parameters = [p for p in subject.module.parameters() if p.requires_grad]
    inputs = [x, *(t for t in leaves if t.requires_grad), *parameters]
    names = ["x", *(n for n, t in subject.tensors(state) if t.requires_grad)]
    names += [n for n, p in subject.module.named_parameters() if p.requires_grad]

    def objective() -> Tensor:
        y, final = subject.run(x, state, return_state=True)
        parts = [y, *(t for t in final if t.is_floating_point())]
        weights = torch.Generator().manual_seed(3)
        return sum((t * torch.randn(t.shape, generator=weights, dtype=t.dtype)).sum() for t in parts)

    def slopes() -> list[Tensor]:
        found = torch.autograd.grad(objective(), inputs, allow_unused=True)
        return [torch.zeros_like(i) if g is None else g for g, i in zip(found, inputs, strict=True)]

    analytic = slopes()
    with use_backend("naive"):
        authority = slopes()
    for name, error in zip(names, relative_gradients(analytic, authority), strict=True):
        worst.see(error, f"gradient of {name} against the naive twin")
    for name, leaf, slope in zip(names, inputs, analytic, strict=True):
        if leaf.numel():
            worst.see(_finite_difference_error(objective, leaf, slope) / 1e4, f"gradient of {name} by differences")
    return worst


@torch.no_grad()
def round_trip(subject: MixerSubject, longest: int) -> Worst:
    """P12: a state forked, selected, put, saved, loaded and moved continues exactly as it would have."""
    worst, mixer = Worst(), subject.mixer
    past, x = subject.sample(3, 19, seed=4), subject.sample(3, 5, seed=5)
    _, state = subject.run(past, return_state=True)
    expected, _ = subject.run(x, state)

    kept = fork(state)
    mixer(x[:, 0], fork(state))
    worst.see(moved(subject.run(x, state)[0], expected), "the original after its fork was stepped")
    order = [2, 0, 0]
    chosen, _ = subject.run(x[order], select(state, order))
    worst.see(relative(chosen, expected[order]), "select")
    blank = mixer.init_state(3)
    mended = put(put(blank, [1], select(state, [1])), [2, 0], select(state, [2, 0]))
    worst.see(relative(subject.run(x, mended)[0], expected), "put")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save(state, path, configuration={"mixer": subject.name})
        loaded = load(path, type(state), configuration={"mixer": subject.name}, mixer=mixer)
    for name, copy in (("fork", kept), ("save and load", loaded), ("device move", to_device(state, "cpu"))):
        worst.see(moved(subject.run(x, copy)[0], expected), name)
    return worst


def _check_growth(worst: Worst, subject: MixerSubject) -> None:
    """The declared bytes follow the declared growth from 1 Ki to 1 Gi tokens."""
    near, far = (subject.mixer.state_bytes(n, torch.float64) for n in (1024, FAR))
    allowed = {"constant": 1, "logarithmic": 30, "linear": 2 * FAR // 1024}[subject.declaration.growth]
    if far > allowed * near:
        worst.see(float("inf"), f"state_bytes grows from {near} to {far}, declared {subject.declaration.growth}")


@torch.no_grad()
def _finite_difference_error(objective, leaf: Tensor, slope: Tensor) -> float:
    """|central difference - slope·direction| over the slope's norm, along one random direction."""
    direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(6), dtype=leaf.dtype)
    direction /= direction.norm()
    width = 1e-5
    ends = []
    for sign in (1, -1):
        leaf.add_(direction, alpha=sign * width)
        ends.append(float(objective()))
        leaf.add_(direction, alpha=-sign * width)
    found = (ends[0] - ends[1]) / (2 * width)
    noise = 1e-16 * abs(ends[0]) / width
    error = abs(found - float((slope * direction).sum()))
    return max(0.0, error - 10 * noise) / max(float(slope.norm()), 1e-12)
