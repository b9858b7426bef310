"""Properties P1 to P4 and P7: what a function on streams may depend on."""

from __future__ import annotations

import random
from itertools import pairwise

import torch
from torch import Tensor

from longwave.verification.measure import Worst, moved, relative, relative_gradients, relative_state
from longwave.verification.subjects import Subject

JACOBIAN_LENGTH = 65
GRADIENT_LENGTH = 70
SAME = 1e-10


def causality(subject: Subject, longest: int) -> Worst:
    """P1: a changed suffix moves no earlier output, by exactly 0; the Jacobian's upper triangle is 0."""
    worst = Worst()
    for length in subject.lengths(longest):
        x, other = subject.sample(1, length), 3 * subject.sample(1, length, seed=1)
        with torch.no_grad():
            y, _ = subject.run(x)
            for cut in range(1, length):
                changed = torch.cat([x[:, :cut], other[:, cut:]], dim=1)
                after, _ = subject.run(changed)
                distance = (after - y)[0, :cut].abs().amax(dim=-1)
                place = int(distance.argmax())
                worst.see(float(distance.max()), f"output {place} when tokens {cut}..{length - 1} change")
    x = subject.sample(1, min(JACOBIAN_LENGTH, longest)).requires_grad_()
    y, _ = subject.run(x)
    for row in range(x.shape[1] - 1):
        (slope,) = torch.autograd.grad((y[0, row] * _ramp(y[0, row])).sum(), x, retain_graph=True)
        future = slope[0, row + 1 :].abs().amax(dim=-1)
        worst.see(float(future.max()), f"slope of output {row} by token {row + 1 + int(future.argmax())}")
    return worst


@torch.no_grad()
def length_independence(subject: Subject, longest: int) -> Worst:
    """P2: f(x[:n]) = f(x)[:n] for every n."""
    worst = Worst()
    x = subject.sample(1, longest)
    y, _ = subject.run(x)
    for length in range(1, longest):
        short, _ = subject.run(x[:, :length])
        worst.see(relative(short, y[:, :length]), f"n={length} of N={longest}")
    return worst


def split_law(subject: Subject, longest: int) -> Worst:
    """P3: whole = pieces = token by token, in outputs, final state and (through ``forward``) gradients."""
    worst = Worst()
    with torch.no_grad():
        for length in subject.lengths(longest):
            x = subject.sample(2, length)
            whole = _whole(subject, x)
            for cuts in _partitions(subject, length):
                pieces = _run_pieces(subject, x, cuts)
                _compare(worst, subject, pieces, whole, f"N={length} in pieces cut at {cuts}")
            rows, state = [], subject.start(2)
            for token in x.unbind(dim=1):
                row, state = subject.step(token, state)
                rows.append(row)
            by_step = (torch.stack(rows, dim=1), state)
            _compare(worst, subject, by_step, whole, f"N={length} token by token")
    if worst.value > SAME:  # gradients of other numbers say nothing more
        return worst
    length = min(GRADIENT_LENGTH, longest)
    x = subject.sample(2, length).requires_grad_()
    inputs = [x, *(p for p in subject.module.parameters() if p.requires_grad)]
    expected = _gradients(subject.run(x)[0], inputs)
    for cuts in (_partitions(subject, length)[0], list(range(1, length))):
        found = _gradients(_run_pieces(subject, x, cuts)[0], inputs)
        for index, error in enumerate(relative_gradients(found, expected)):
            what = "the input" if index == 0 else f"parameter {index}"
            worst.see(error, f"gradient of {what}, N={length} in {len(cuts) + 1} pieces")
    return worst


@torch.no_grad()
def document_law(subject: Subject, longest: int) -> Worst:
    """P4: packed = left-padded = alone, and a start inside a continued piece resets."""
    worst = Worst()
    lengths = [5, 1, 2, *sorted(subject.declaration.edges, reverse=True)[:3], 17]
    lengths = [min(length, longest) for length in lengths]
    documents = [subject.sample(1, length, seed=index) for index, length in enumerate(lengths)]
    for length, document, y in zip(lengths, documents, subject.run_left_padded(documents), strict=True):
        worst.see(relative(y, subject.run(document)[0]), f"document of {length} tokens, left-padded")
    if not subject.knows_starts:
        return worst
    alone = [subject.run(document, return_state=True) for document in documents]
    packed = torch.cat(documents, dim=1)
    firsts = torch.tensor([sum(lengths[:index]) for index in range(len(lengths))])
    starts = torch.zeros(1, packed.shape[1], dtype=torch.bool)
    starts[0, firsts] = True
    expected = torch.cat([y for y, _ in alone], dim=1)
    splits = [[], [3, 6], *_partitions(subject, packed.shape[1])]
    for cuts in splits:
        y, state = _run_pieces(subject, packed, cuts, starts)
        place = f"{len(lengths)} packed documents in {len(cuts) + 1} pieces"
        _compare(worst, subject, (y, state), (expected, alone[-1][1]), place)
    return worst


def batch_independence(subject: Subject, longest: int) -> Worst:
    """P7: changing one row of the batch moves the others by exactly 0."""
    worst = Worst()
    length = min(65, longest)
    x, other = subject.sample(3, length), 3 * subject.sample(3, length, seed=1)
    with torch.no_grad():
        y, _ = subject.run(x)
        for row in range(3):
            changed = x.clone()
            changed[row] = other[row]
            after, _ = subject.run(changed)
            rest = [index for index in range(3) if index != row]
            worst.see(moved(after[rest], y[rest]), f"other rows when batch row {row} changes")
    return worst


def _partitions(subject: Subject, length: int) -> list[list[int]]:
    """A few ways to cut ``length`` tokens: at random, and around every edge."""
    chance = random.Random(length)
    positions = range(1, length)
    cuts = [sorted(chance.sample(positions, min(count, length - 1))) for count in (4, 1, 11)]
    near = {edge + shift for edge in subject.declaration.edges for shift in (-1, 0, 1)}
    return [*cuts, sorted(near & set(positions))]


def _whole(subject: Subject, x: Tensor):
    """What training computes, and the state after it."""
    return subject.run(x)[0], subject.run(x, return_state=True)[1]


def _run_pieces(subject: Subject, x: Tensor, cuts: list[int], starts: Tensor | None = None):
    outputs, state = [], None
    for begin, end in pairwise([0, *cuts, x.shape[1]]):
        marks = None if starts is None else starts[:, begin:end]
        y, state = subject.run(x[:, begin:end], state, starts=marks, return_state=True)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def _compare(worst: Worst, subject: Subject, found, expected, place: str) -> None:
    (y, state), (y0, state0) = found, expected
    distance = (y - y0).abs().amax(dim=(0, 2)) / y0.abs().max().clamp(min=1e-30)
    first = int((distance > SAME).int().argmax()) if float(distance.max()) > SAME else int(distance.argmax())
    worst.see(float(distance.max()), f"{place}: output {first}")
    for (name, tensor), (_, reference) in zip(subject.tensors(state), subject.tensors(state0), strict=True):
        worst.see(relative_state(tensor, reference), f"{place}: final state, {name}")


def _gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad((y * _ramp(y)).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def _ramp(y: Tensor) -> Tensor:
    """Weights that tell all entries apart."""
    return torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
