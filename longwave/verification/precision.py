"""Property P9: what a mixer computes in float32, bfloat16 and float16, beside float64.

The other properties work in float64, where nothing is rounded and no kernel is given a narrow number.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from longwave.mixers.base import State, TokenMixer, fork
from longwave.ops import preferred_backend, use_backend
from longwave.verification.measure import Worst, moved, same_size
from longwave.verification.subjects import MixerSubject

#: Rows of the first piece, of the steps at the end, and of all; enough for every fast form.
FIRST, STEPS, ROWS = 7, 5, 72
BATCH_SIZE = 2
#: Random movements of all that goes in, each by at most this share: so small that changes are in proportion.
DRAWS, SHAKE = 8, 1e-7
#: What is below this share of the largest result is nothing but float64's own rounding, and counts against the largest.
VANISHING = 1e-6


class Setting(NamedTuple):
    """A way to compute in less than float64: weights and input in ``weights``, under autocast to ``autocast``."""

    name: str
    weights: torch.dtype
    autocast: torch.dtype | None = None


SETTINGS = (
    Setting("float32", torch.float32),
    Setting("bfloat16 weights", torch.bfloat16),
    Setting("bfloat16 autocast", torch.float32, torch.bfloat16),
    Setting("float16 autocast", torch.float32, torch.float16),
)


def precision(subject: MixerSubject, longest: int) -> Worst:
    """P9: the error, over what a rounding of everything that goes in changes in float64.

    Results (outputs and states of documents, pieces and steps) and gradients, each against its own size, by every
    backend that ``auto`` may choose. What goes in are the input, the weights and the gradient of the results. A change
    counts as at least the rounding of the result itself. In float32 sums round too, one of N numbers sqrt(N) times, N
    being the rows; narrower settings add in float32. A field of a state that is narrower may only store, or its error
    is infinite.
    """
    worst, mixer = Worst(), subject.mixer
    x = subject.sample(BATCH_SIZE, max(min(ROWS, longest), FIRST + STEPS + 1))
    exact = _run_through(mixer, x)
    shaken = [_run_through(*_shaken(mixer, x, seed), seed=seed) for seed in range(1, DRAWS + 1)]
    changes = {name: max(moved(other[name], value) for other in shaken) / SHAKE for name, value in exact.items()}
    scales = {name: max(changes[name], float(value.abs().max())) for name, value in exact.items()}
    largest = max(scales.values()) or 1.0
    scales = {name: scale if scale > VANISHING * largest else largest for name, scale in scales.items()}
    in_sums = x.shape[:2].numel() ** 0.5 * rounding(torch.float32)
    for setting in SETTINGS:
        narrow, rows = copy.deepcopy(mixer).to(setting.weights), x.to(setting.weights)
        share = max(rounding(setting.autocast or setting.weights), in_sums)
        for backend in _backends():
            with use_backend(backend, any_rows=True):
                found = _run_through(narrow, rows, autocast=setting.autocast)
            for name, value in exact.items():
                error = moved(found[name], value) / (share * scales[name])
                worst.see(error, f"{name}, {setting.name}, backend {backend}")
        for name in _adding_fields(narrow, rows):
            worst.see(float("inf"), f"{setting.name}: the state's {name} is kept in {rows.dtype}, and more than stored")
    return worst


def rounding(dtype: torch.dtype) -> float:
    """The largest share by which rounding to ``dtype`` moves a number."""
    return torch.finfo(dtype).eps / 2


def _backends() -> tuple[str, ...]:
    """The one that has been chosen, or those that ``auto`` may choose: torch, and ``auto`` for the fast forms."""
    return ("torch", "auto") if preferred_backend() == "auto" else (preferred_backend(),)


def _run_through(
    mixer: TokenMixer, x: Tensor, *, seed: int = 0, autocast: torch.dtype | None = None
) -> dict[str, Tensor]:
    """All that the mixer computes of ``x``, in float64 and by name: documents, two pieces, steps, and the gradients.

    ``seed``: shakes the gradient of the outputs.
    """
    x = x.detach().requires_grad_()
    starts = torch.zeros(x.shape[:2], dtype=torch.bool)
    starts[0, x.shape[1] // 2] = starts[1, x.shape[1] // 3] = True
    with torch.autocast("cpu", autocast) if autocast else nullcontext():
        documents, _ = mixer(x, starts=starts)
        first, state = mixer(x[:, :FIRST], return_state=True)
        state = type(state)(*(part.detach().requires_grad_(part.is_floating_point()) for part in state))
        piece, after = mixer(x[:, FIRST:-STEPS], state, return_state=True)
        current, rows = fork(type(after)(*(part.detach() for part in after))), []
        for row in x.detach()[:, -STEPS:].unbind(dim=1):
            step, current = mixer(row, current)
            rows.append(step)
    targets = {"documents": documents, "the first piece": first, "a piece": piece} | _floats("state of a piece", after)
    inputs = {"x": x} | _floats("the state", state) | {n: p for n, p in mixer.named_parameters() if p.requires_grad}
    upstream = [_upstream(target, seed) for target in targets.values()]
    slopes = torch.autograd.grad(list(targets.values()), list(inputs.values()), upstream, allow_unused=True)
    found = targets | {"steps": torch.stack(rows, dim=1)} | _floats("state after steps", current)
    found |= {f"gradient of {name}": slope for name, slope in zip(inputs, slopes, strict=True) if slope is not None}
    return {name: value.detach().double() for name, value in found.items()}


def _floats(owner: str, state: State) -> dict[str, Tensor]:
    fields = state._asdict().items()
    return {f"{owner}: {name}": part for name, part in fields if part.is_floating_point() and part.numel()}


def _upstream(target: Tensor, seed: int) -> Tensor:
    """A gradient of ``target`` for the backward pass to begin with."""
    drawn = torch.randn(target.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return _shake(drawn, seed).to(target.dtype)


@torch.no_grad()
def _shaken(mixer: TokenMixer, x: Tensor, seed: int) -> tuple[TokenMixer, Tensor]:
    """Copies whose weights and input have moved a little."""
    mixer = copy.deepcopy(mixer)
    for index, parameter in enumerate(mixer.parameters()):
        parameter.copy_(_shake(parameter, seed + 1000 * index))
    return mixer, _shake(x, seed)


def _shake(values: Tensor, seed: int) -> Tensor:
    """``values`` moved at random, each by at most the share ``SHAKE``; by nothing for seed 0."""
    if not seed:
        return values
    noise = 2 * torch.rand(values.shape, generator=torch.Generator().manual_seed(seed), dtype=values.dtype) - 1
    return values * (1 + SHAKE * noise)


@torch.no_grad()
def _adding_fields(mixer: TokenMixer, x: Tensor) -> Iterator[str]:
    """Fields narrower than float32 in which a step makes new entries out of old ones.

    An entry that is only stored stays as it is, or becomes the same whatever was there before.
    """
    _, state = mixer(x[:, :FIRST], return_state=True)
    for name, old in state._asdict().items():
        if not old.is_floating_point() or not old.numel() or old.dtype.itemsize >= torch.float32.itemsize:
            continue
        other = old + 1
        new, new_other = (
            getattr(mixer(x[:, FIRST], fork(state._replace(**{name: before})))[1], name) for before in (old, other)
        )
        (old, new), (other, new_other) = same_size(old, new), same_size(other, new_other)
        if not bool((((new == old) & (new_other == other)) | (new == new_other)).all()):
            yield name
