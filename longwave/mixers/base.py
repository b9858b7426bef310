"""The law that every token mixer obeys, its state, and the few helpers that mixers share.

    y, state' = mixer(x, state)            x, y: [B, N, D]

Feeding x in pieces and carrying the state gives the same y, the same final state and the same gradients as feeding x
whole; nothing crosses a document start; the state never exceeds its declared bytes.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STATE_FORMAT = "longwave-state-1"
#: Rows of the smallest buffer of a state that grows.
SMALLEST_BUFFER = 16
#: Tokens for which the buffers of a state that is read are expected to suffice, if it says that it has seen more.
MANY_TOKENS = 1 << 20

#: A mixer's state: a NamedTuple of batch-first tensors, one of them ``tokens`` `[B]` int64, the rows that
#: the current document of each batch row has seen.
State = Any


class MemoryRows(NamedTuple):
    """Learned rows that the model inserts: ``count`` of them before every ``every`` tokens of a document.

    ``every=None`` inserts them once, at the document's start.
    """

    count: int
    every: int | None = None


@dataclass(frozen=True)
class Declaration:
    """What a mixer promises, and what the certificate holds it to.

    Attributes:
        growth: bytes of the state as a function of the rows seen.
        cost: contractions of ``forward`` as a function of the rows fed.
        edges: lengths at which behaviour changes (blocks, windows, chunks); checks crowd around them.
        memory_rows: rows that the mixer asks the model to insert.
        breaks: published defects kept on purpose, property (``"P3"``) to reason.
    """

    growth: Literal["constant", "logarithmic", "linear"]
    cost: Literal["linear", "linearithmic", "quadratic"] = "linear"
    edges: tuple[int, ...] = ()
    memory_rows: MemoryRows | None = None
    breaks: Mapping[str, str] = field(default_factory=dict)


class TokenMixer(nn.Module, ABC):
    """A causal function on a stream of rows, with a state. Subclasses are final.

    A call has one door, ``forward``, so that hooks on ``forward`` or on the call see all that a mixer does: a piece,
    ``mixer(x [B, N, D])``, and a step, ``mixer(x [B, D], state)``. The base class sees to it, whatever ``forward``,
    ``step`` and ``init_state`` a subclass writes: it refuses other shapes, switches gradients off for a step, and
    says on which device and in which dtype a state is made.

    A constructor takes ``hidden_size`` and ``num_heads``, then keyword arguments with defaults; it may also
    name ``layer_index`` and ``num_layers``, which the model then fills in.
    """

    #: True: the mixer is given the raw residual stream and normalises it itself.
    owns_norm: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, wrapped in (("forward", _one_door), ("step", torch.no_grad()), ("init_state", _placed)):
            if name in vars(cls):
                setattr(cls, name, wrapped(vars(cls)[name]))

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads must be at least 1, got {num_heads}")
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by num_heads {num_heads}")
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads

    @abstractmethod
    def declaration(self) -> Declaration:
        """Growth, cost, edges, memory rows and broken laws of this very configuration."""

    @abstractmethod
    def init_state(
        self, batch_size: int, *, max_tokens: int | None = None, device: Any = None, dtype: Any = None
    ) -> State:
        """The state that has seen nothing. ``max_tokens`` lets a growing state allocate once.

        ``device`` and ``dtype`` are by default those of the parameters; a subclass is always given both.
        """

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        starts: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, State | None]:
        """Mix ``x`` `[B, N, D]`; differentiable through ``state``, which is never written to.

        ``starts`` `[B, N]` bool marks the first row of each document; without a state, row 0 is a start
        whatever it says. The second value is ``None`` unless ``return_state``.

        Called with one row ``x`` `[B, D]` and a state, it is :meth:`step`; a subclass need not see to that.

        Raises:
            ValueError: ``x``, ``starts`` or ``state`` has another shape.
        """

    @torch.no_grad()
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token, ``x`` `[B, D]`, without gradient; may write into ``state`` (``fork`` keeps the old one).

        For subclasses to write, if they have a faster form than a piece of one row; call ``mixer(x, state)``.
        """
        y, state = type(self).forward(self, x[:, None], state, return_state=True)
        return y[:, 0], state

    @abstractmethod
    def state_bytes(self, num_tokens: int, dtype: torch.dtype = torch.float32) -> int:
        """Most bytes that the state of one sequence holds after ``num_tokens`` rows."""

    @abstractmethod
    def flops(self, num_tokens: int) -> int:
        """Floating-point operations of the contractions of ``forward`` on one sequence (2 a multiply-add)."""

    def parameter_options(self) -> Mapping[str, Mapping[str, float]]:
        """What the optimizer should do otherwise: parameter's name to ``weight_decay`` or ``rate`` (a factor)."""
        return {}

    def reset_parameters(self) -> None:
        """Initial values; the model calls it after its own initialisation, so that it has the last word."""


def select(state: State, rows: Tensor | Sequence[int]) -> State:
    """The batch rows ``rows`` of a state, copied, in that order; a row may occur more than once."""
    index = _row_index(rows, state)
    return type(state)(*(tensor.index_select(0, index) for tensor in state))


def put(state: State, rows: Tensor | Sequence[int], part: State) -> State:
    """A copy of ``state`` whose batch rows ``rows`` are those of ``part``; sizes grow to the larger."""
    index = _row_index(rows, state)
    return type(state)(*(whole.index_copy(0, index, new.to(whole)) for whole, new in map(_same_size, state, part)))


def concatenate(states: Sequence[State]) -> State:
    """The states of several batches as the state of one; sizes grow to the largest."""
    joined = states[0]
    for state in states[1:]:
        joined = type(joined)(*(torch.cat(_same_size(a, b)) for a, b in zip(joined, state, strict=True)))
    return joined


def fork(state: State) -> State:
    """A copy that shares no memory with ``state``."""
    return type(state)(*(tensor.clone() for tensor in state))


def to_device(state: State, device: torch.device | str) -> State:
    """The state on another device."""
    return type(state)(*(tensor.to(device) for tensor in state))


def nbytes(state: State) -> int:
    """Bytes that the state's tensors occupy, all batch rows together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state)


def save(state: State, path: str | Path, *, configuration: Mapping) -> None:
    """Write a state as safetensors, stamped with the format and the hash of ``configuration`` (JSON-able)."""
    from safetensors.torch import save_file

    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state._asdict().items()}
    save_file(tensors, str(path), {"format": STATE_FORMAT, "configuration": configuration_hash(configuration)})


def load(
    path: str | Path, state_type: type[State], *, configuration: Mapping, mixer: TokenMixer | None = None
) -> State:
    """Read what :func:`save` wrote.

    Args:
        mixer: whose state it is; types and shapes are then held to those of its ``init_state``.

    Raises:
        ValueError: the file is damaged, has another format, belongs to another configuration, or holds no such state.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != STATE_FORMAT:
        raise ValueError(f"{path}: not a state file of format {STATE_FORMAT!r}")
    if metadata.get("configuration") != configuration_hash(configuration):
        raise ValueError(f"{path}: the state was written under another configuration")
    return check_state(path, tensors, state_type) if mixer is None else read_state(path, tensors, mixer)


def read_tensors(path: str | Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata; ``ValueError`` if it is damaged or another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or no safetensors file: {error}") from error


def check_state(path: str | Path, tensors: Mapping[str, Tensor], state_type: type[State]) -> State:
    """Tensors of the file ``path`` as a state: all of its fields, of one batch size, and no value that is none.

    Raises:
        ValueError: they are not.
    """
    fields = state_type._fields
    if sorted(tensors) != sorted(fields):
        raise ValueError(f"{path}: holds {sorted(tensors)}, expected {sorted(fields)}")
    sizes = sorted({(*tensor.shape[:1],) for tensor in tensors.values()})
    if len(sizes) > 1 or sizes in ([()], [(0,)]):
        raise ValueError(f"{path}: holds tensors of batch sizes {sizes}, expected one, at least 1")
    for name, tensor in tensors.items():
        if tensor.is_complex() or tensor.isnan().any():
            raise ValueError(f"{path}: {name} holds {'complex numbers' if tensor.is_complex() else 'NaN'}")
    tokens = tensors.get("tokens")
    if tokens is None or tokens.dtype != torch.int64 or tokens.dim() != 1 or int(tokens.min()) < 0:
        raise ValueError(f"{path}: tokens is not a list of whole numbers that are not negative")
    return state_type(**tensors)


def read_state(path: str | Path, tensors: Mapping[str, Tensor], mixer: TokenMixer) -> State:
    """:func:`check_state`, and types and shapes held to those of the mixer's ``init_state``.

    A state that grows may have larger buffers; any floating-point type may stand for another.

    Raises:
        ValueError: a tensor is missing or is none of the state's, or its type, its shape or a value is impossible.
    """
    empty = mixer.init_state(1)
    state = check_state(path, tensors, type(empty))
    grows = mixer.declaration().growth != "constant"
    least, more = empty, empty
    if grows:
        sizes = min(int(state.tokens.max()), MANY_TOKENS), 2 * MANY_TOKENS
        least, more = (mixer.init_state(1, max_tokens=size, device=torch.device("meta")) for size in sizes)
    for name, tensor, blank, low, high in zip(state._fields, state, empty, least, more, strict=True):
        if tensor.dtype != blank.dtype and not (tensor.is_floating_point() and blank.is_floating_point()):
            raise ValueError(f"{path}: {name} is of type {tensor.dtype}, expected a type like {blank.dtype}")
        free = grows and low.shape == high.shape  # init_state does not say how it grows
        shapes = zip(tensor.shape[1:], low.shape[1:], high.shape[1:], strict=False)
        fits = (have >= size if free or size != more else have == size for have, size, more in shapes)
        if tensor.dim() != blank.dim() or not all(fits):
            raise ValueError(f"{path}: {name} has shape {[*tensor.shape]}, expected {[len(tensor), *low.shape[1:]]}")
        if tensor.isinf().any() and not blank.isinf().any():
            raise ValueError(f"{path}: {name} holds infinity")
    return state


def run_by_document(
    mixer: TokenMixer, x: Tensor, state: State | None, starts: Tensor, return_state: bool
) -> tuple[Tensor, State | None]:
    """A mixer's ``forward`` with ``starts``, each document by itself: for mixers without a faster form."""
    outputs, finals = [], []
    for row in range(x.shape[0]):
        borders = starts[row].nonzero().flatten().tolist()
        current = None if state is None or starts[row, 0] else select(state, [row])
        pieces = []
        for begin, end in pairwise(sorted({0, *borders, x.shape[1]})):
            # Of the class: this is a part of one call, which hooks on the instance have seen.
            y, final = type(mixer).forward(mixer, x[row : row + 1, begin:end], current, return_state=return_state)
            pieces.append(y)
            current = None
        outputs.append(torch.cat(pieces, dim=1))
        finals.append(final)
    return torch.cat(outputs), concatenate(finals) if return_state else None


def buffer_size(num_tokens: int) -> int:
    """Rows of a buffer that doubles as it fills: the power of two that holds ``num_tokens``."""
    return max(SMALLEST_BUFFER, 1 << max(num_tokens - 1, 0).bit_length())


# A plain global, which torch.compile can guard on; a ContextVar it cannot read.
_collected: dict[str, list[Tensor]] | None = None


def observe(name: str, tensor: Tensor) -> Tensor:
    """Return ``tensor``; inside :func:`collecting` also keep it under ``name``."""
    if _collected is not None:
        _collected.setdefault(name, []).append(tensor.detach())
    return tensor


@contextmanager
def collecting() -> Iterator[dict[str, list[Tensor]]]:
    """Collect what mixers :func:`observe` while the block runs, in all threads; an entry for each call."""
    global _collected
    before, _collected = _collected, {}
    try:
        yield _collected
    finally:
        _collected = before


def _one_door(forward: Callable) -> Callable:
    """A subclass's ``forward`` behind the checks, and its ``step`` behind ``forward``."""

    @wraps(forward)
    def enter(
        self: TokenMixer,
        x: Tensor,
        state: State | None = None,
        *,
        starts: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, State | None]:
        _check(self, x, state, starts)
        if x.dim() == 2:
            return self.step(x, state)
        return forward(self, x, state, starts=starts, return_state=return_state)

    enter.__code__ = enter.__code__.replace()  # of its own: torch.compile counts the forms of a code object
    return enter


def _placed(init_state: Callable) -> Callable:
    """A subclass's ``init_state`` with device and dtype filled in.

    Offloaded parameters are on ``meta``, where a state would hold no numbers: PyTorch's default device then.
    """

    @wraps(init_state)
    def place(
        self: TokenMixer, batch_size: int, *, max_tokens: int | None = None, device: Any = None, dtype: Any = None
    ) -> State:
        parameter = next(self.parameters(), torch.empty(0))
        if device is None:
            device = torch.get_default_device() if parameter.is_meta else parameter.device
        return init_state(self, batch_size, max_tokens=max_tokens, device=device, dtype=dtype or parameter.dtype)

    return place


def _check(mixer: TokenMixer, x: Tensor, state: State | None, starts: Tensor | None) -> None:
    name, width = type(mixer).__name__, mixer.hidden_size
    if x.dim() not in (2, 3) or x.shape[-1] != width or not x.numel():
        raise ValueError(
            f"{name}: x must be [B, N, {width}] or, for a step, [B, {width}], with B and N at least 1; "
            f"got {tuple(x.shape)}"
        )
    if x.dim() == 2 and (state is None or starts is not None):
        raise ValueError(f"{name}: a step, x of shape [B, {width}], needs a state and takes no starts")
    if starts is not None and (starts.shape != x.shape[:2] or starts.dtype != torch.bool):
        raise ValueError(f"{name}: starts must be bool {list(x.shape[:2])}, got {starts.dtype} {list(starts.shape)}")
    if state is not None and len(state.tokens) != len(x):
        raise ValueError(f"{name}: the state is of {len(state.tokens)} sequences, x of {len(x)}")


def _row_index(rows: Tensor | Sequence[int], state: State) -> Tensor:
    index = torch.as_tensor(rows, device=state[0].device)
    return index.nonzero().flatten() if index.dtype == torch.bool else index.to(torch.int64)


def _same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both padded with zeros (the canonical unreachable entry) to the larger size, the batch axis excepted."""
    target = [max(sizes) for sizes in zip(a.shape[1:], b.shape[1:], strict=True)]
    return _padded(a, target), _padded(b, target)


def _padded(tensor: Tensor, target: list[int]) -> Tensor:
    missing = [size - have for size, have in zip(target, tensor.shape[1:], strict=True)]
    if not any(missing):
        return tensor
    return F.pad(tensor, [amount for size in reversed(missing) for amount in (0, size)])


def configuration_hash(configuration: Mapping) -> str:
    """SHA-256 of a JSON-able mapping, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True, default=str).encode()).hexdigest()
