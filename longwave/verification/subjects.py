"""What can be certified: a mixer alone, a longwave model, any causal language model of transformers.

A subject is a function on a stream of vectors with a state. Whole models are fed input embeddings, so that
a check can perturb and differentiate them; the table of embeddings itself mixes nothing.
"""

from __future__ import annotations

import inspect
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longwave.mixers import Declaration, TokenMixer, build, in_one_sentence
from longwave.mixers.base import State, fork

LONGEST = 257
#: What models of transformers call their cache, in ``forward`` and in what it returns; the newest name first.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")
WIDTH, HEADS = 16, 2


class Subject(ABC):
    """A stream function in float64 with redrawn weights and no dropout, that has been run once.

    Attributes:
        name: as the user gave it.
        module: its parameters.
        width: channels of the stream.
        declaration: promises that it is held to.
        knows_starts: whether documents can be packed by ``starts``.

    Raises:
        ValueError: it cannot be run at all, or what it returns is of another kind or shape than the law speaks of.
    """

    def __init__(self, name: str, module: nn.Module, width: int, declaration: Declaration, *, knows_starts: bool):
        self.name, self.module, self.width = name, module.double(), width
        self.declaration, self.knows_starts = declaration, knows_starts
        _silence_dropout(module)
        redraw(module)
        with in_one_sentence(f"{name} cannot be certified"), torch.no_grad():
            self.try_out()

    @abstractmethod
    def try_out(self) -> None:
        """Run once; raise whatever is no question of the law."""

    def sample(self, batch_size: int, num_rows: int, seed: int = 0) -> Tensor:
        """`[B, N, D]` float64, standard normal; a shorter sample is a prefix of a longer one."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(num_rows, batch_size, self.width, generator=generator, dtype=torch.float64)
        return rows.transpose(0, 1).contiguous()

    def lengths(self, longest: int = LONGEST) -> list[int]:
        """Lengths worth checking: around every declared edge, and the longest."""
        around = {1, 2, 3, 17, longest}
        for edge in self.declaration.edges:
            around |= {edge - 1, edge, edge + 1}
        return sorted(length for length in around if 1 <= length <= longest)

    @abstractmethod
    def run(
        self, x: Tensor, state: Any = None, *, starts: Tensor | None = None, return_state: bool = False
    ) -> tuple[Tensor, Any]:
        """Feed a piece after ``state``."""

    @abstractmethod
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Feed one token `[B, D]` as decoding does; may write into ``state``."""

    @abstractmethod
    def start(self, batch_size: int) -> Any:
        """The state before the first token."""

    @abstractmethod
    def tensors(self, state: Any) -> Iterator[tuple[str, Tensor]]:
        """The parts of a state that two ways of feeding must agree on, by name."""

    def run_left_padded(self, pieces: list[Tensor]) -> list[Tensor]:
        """Outputs of single sequences `[1, n, D]` fed as one batch, shorter ones padded on the left."""
        batch, lengths = _left_padded(pieces)
        starts = torch.arange(batch.shape[1]) == batch.shape[1] - lengths[:, None]
        y, _ = self.run(batch, starts=starts)
        return [y[row : row + 1, -length:] for row, length in enumerate(lengths.tolist())]


class MixerSubject(Subject):
    """A token mixer by itself."""

    def __init__(self, name: str, mixer: TokenMixer) -> None:
        self.mixer = mixer
        with in_one_sentence(f"{name} cannot be certified"):
            declaration = _checked(mixer.declaration())
        super().__init__(name, mixer, mixer.hidden_size, declaration, knows_starts=True)

    def try_out(self):
        x, kind = self.sample(2, 5), type(self.start(2))
        if "tokens" not in getattr(kind, "_fields", ()):
            raise ValueError(
                f"init_state returned {kind.__name__}, expected a NamedTuple of tensors, tokens among them"
            )
        state = _pair("forward", self.mixer(x, return_state=True), x, kind)
        _pair("step", self.mixer.step(x[:, 0], fork(state)), x[:, 0], type(state))
        for name in ("state_bytes", "flops"):
            count = getattr(self.mixer, name)(5)
            if not isinstance(count, int) or count < 0:
                raise ValueError(f"{name}(5) returned {count!r}, expected a whole number")

    def run(self, x, state=None, *, starts=None, return_state=False):
        return self.mixer(x, state, starts=starts, return_state=return_state)

    def step(self, x, state):
        return self.mixer(x, state)

    def start(self, batch_size):
        return self.mixer.init_state(batch_size)

    def tensors(self, state):
        yield from state._asdict().items()


class ModelSubject(Subject):
    """A causal language model of transformers, ours or another's; its cache is used up by ``run``."""

    def __init__(self, name: str, model: nn.Module) -> None:
        declarations = [module.declaration() for module in model.modules() if isinstance(module, TokenMixer)]
        edges = {edge for declared in declarations for edge in declared.edges}
        breaks = {law: why for declared in declarations for law, why in declared.breaks.items()}
        declaration = Declaration(growth="linear", edges=tuple(sorted(edges)), breaks=breaks)
        self.arguments = inspect.signature(model.forward).parameters
        self.cache_name = next((name for name in CACHE_NAMES if name in self.arguments), CACHE_NAMES[-1])
        width = model.get_input_embeddings().embedding_dim
        super().__init__(name, model, width, declaration, knows_starts="starts" in self.arguments)

    def try_out(self):
        y, _ = self.run(self.sample(1, 2))
        if y.dim() != 3 or y.shape[:2] != (1, 2):
            raise ValueError(f"forward returned logits of shape {[*y.shape]} for 2 tokens, expected [1, 2, tokens]")

    def run(self, x, state=None, *, starts=None, return_state=False):
        given = {"inputs_embeds": x, self.cache_name: state, "use_cache": return_state}
        if starts is not None:
            given["starts"] = starts
        out = self.module(**given)
        return out.logits, next(out[name] for name in CACHE_NAMES if name in out) if return_state else None

    @torch.no_grad()
    def step(self, x, state):
        y, state = self.run(x[:, None], state, return_state=True)
        return y[:, 0], state

    def start(self, batch_size):
        return None

    def tensors(self, state):
        for index, layer in enumerate(state.layers):
            inner = getattr(layer, "state", None)
            if inner is not None:
                yield from ((f"layer {index} {name}", tensor) for name, tensor in inner._asdict().items())

    def run_left_padded(self, pieces):
        batch, lengths = _left_padded(pieces)
        mask = (torch.arange(batch.shape[1]) >= batch.shape[1] - lengths[:, None]).long()
        given = {"inputs_embeds": batch, "attention_mask": mask, "use_cache": False}
        if "position_ids" in self.arguments:
            given["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        y = self.module(**given).logits
        return [y[row : row + 1, -length:] for row, length in enumerate(lengths.tolist())]


def mixer_subject(
    label: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    hidden_size: int = WIDTH,
    num_heads: int = HEADS,
) -> MixerSubject:
    """The mixer that ``label`` names, small.

    Raises:
        ValueError: unknown mixer or argument.
    """
    torch.manual_seed(0)
    return MixerSubject(label, build(label, hidden_size, num_heads, arguments))


def subject_of(target: str, arguments: Mapping[str, Any] | None = None, *, trust_remote_code: bool = False) -> Subject:
    """A mixer's name, ``module.path:Class``, or the directory of a model or run.

    Args:
        trust_remote_code: code that a directory holds or names may be run.

    Raises:
        ValueError: it is none of them, ``arguments`` are given for a model, or it cannot be built.
    """
    if not Path(target).is_dir():
        return mixer_subject(target, arguments)
    if arguments:
        raise ValueError(f"{target} is a model directory: its configuration cannot be changed by arguments")
    from longwave.model import load_model  # transformers takes seconds to import, and mixers do not need it

    return ModelSubject(target, load_model(target, torch.float64, trust_remote_code=trust_remote_code))


@torch.no_grad()
def redraw(module: nn.Module, seed: int = 1) -> None:
    """New random weights, no two alike and none zero: a zero-initialised gate would hide what is behind it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        if parameter.dim() > 1:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.3 * noise)


def _silence_dropout(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name, value in vars(part).items():
            if "dropout" in name and isinstance(value, float):
                setattr(part, name, 0.0)


def _checked(declaration: Any) -> Declaration:
    """A declaration, its values legal."""
    if not isinstance(declaration, Declaration):
        raise ValueError(f"declaration() returned {declaration!r}, expected a Declaration")
    hints = typing.get_type_hints(Declaration)
    for name in ("growth", "cost"):
        legal = typing.get_args(hints[name])
        if getattr(declaration, name) not in legal:
            raise ValueError(f"declared {name} {getattr(declaration, name)!r}; legal: {', '.join(legal)}")
    if not all(type(edge) is int for edge in declaration.edges):
        raise ValueError(f"declared edges {declaration.edges!r}, expected lengths in tokens")
    if not isinstance(declaration.breaks, Mapping):
        raise ValueError(f"declared breaks {declaration.breaks!r}, expected property to reason")
    return declaration


def _pair(method: str, found: Any, x: Tensor, kind: type) -> State:
    """The state of what ``forward`` or ``step`` returned for ``x``, if it is a pair of rows like ``x`` and a state.

    Args:
        kind: class of the state that ``init_state`` gives.
    """
    if not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(f"{method} returned {type(found).__name__}, expected a pair of y and state")
    y, state = found
    if not isinstance(y, Tensor) or y.shape != x.shape:
        got = [*y.shape] if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{method} returned {got} for x of shape {[*x.shape]}, expected y of the same shape")
    if type(state) is not kind or not all(isinstance(part, Tensor) and len(part) == len(x) for part in state):
        expected = f"expected a {kind.__name__}, as from init_state, of tensors of {len(x)} batch rows"
        raise ValueError(f"{method} returned a state of class {type(state).__name__}; {expected}")
    return state


def _left_padded(pieces: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([piece.shape[1] for piece in pieces])
    batch = torch.full((len(pieces), int(lengths.max()), pieces[0].shape[2]), 7.0, dtype=pieces[0].dtype)
    for row, piece in enumerate(pieces):
        batch[row, batch.shape[1] - piece.shape[1] :] = piece[0]
    return batch, lengths
