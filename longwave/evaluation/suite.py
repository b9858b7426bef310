"""The evaluation suite: protocols by name, on any causal language model with a tokenizer, as one JSON document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from torch import nn

from longwave.data import TokenStream
from longwave.evaluation.calibration import calibration
from longwave.evaluation.copying import copying
from longwave.evaluation.loss_by_position import distance_loss, position_loss
from longwave.evaluation.passkey import passkey
from longwave.evaluation.protocol import ProtocolResult, longest_input
from longwave.evaluation.scores import Progress, finite
from longwave.evaluation.sweep import temperature_sweep
from longwave.mixers import TokenMixer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The six protocols, which ``all`` names, and the published forms of passkey.
PROTOCOLS = ("passkey", "distance", "position", "copying", "calibration", "temperatures")
PUBLISHED = ("passkey-suite", "passkey-seed")
READING = ("distance", "position")
LONGEST = 2048
COPIED_TOKENS = 20


def protocol_names(text: str) -> tuple[str, ...]:
    """The protocols that ``text`` names, as ``a,b`` or ``all``, each once.

    Raises:
        ValueError: one of them is none.
    """
    names = dict.fromkeys(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in (*PROTOCOLS, *PUBLISHED, "all")]
    if unknown:
        raise ValueError(f"unknown protocol {unknown[0]!r}; legal: {', '.join((*PROTOCOLS, *PUBLISHED))}, all")
    chosen = [PROTOCOLS if name == "all" else (name,) for name in names]
    return tuple(dict.fromkeys(name for group in chosen for name in group))


def needs_text(names: Sequence[str]) -> bool:
    """Whether one of these protocols reads a text."""
    return any(name in READING for name in names)


def run_suite(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    text: TokenStream | str | None = None,
    *,
    protocols: Sequence[str] = PROTOCOLS,
    max_length: int | None = None,
    max_new_tokens: int = 200,
    batch_size: int = 16,
    seed: int = 0,
    label: str | None = None,
    progress: Callable[[str], AbstractContextManager[Progress]] | None = None,
) -> dict[str, Any]:
    """Run protocols; give their aggregates, settings and records as one JSON-able document.

    Args:
        text: what ``distance`` and ``position`` read.
        max_length: tokens of their rows, which sequences of ``passkey`` stay below; default 2048, or what the
            model's positions allow. Generation is bound by the model's positions alone.
        max_new_tokens: of ``calibration`` and ``temperatures``, and of ``copying`` up to 20.
        label: of the model; default the name of its class.
        progress: given a protocol's name, a context of what is called with items done and items in all.

    Raises:
        ValueError: an unknown protocol, no text where one is needed, a length beyond the model's positions, or what
            a protocol refuses.
    """
    names = protocol_names(",".join(protocols))
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2^63 - 1, got {seed}")
    if needs_text(names) and not isinstance(text, TokenStream | str):
        raise ValueError("the protocols distance and position need a text; give one, or leave them out")
    limit = longest_input(model)
    if max_length is not None and limit is not None and max_length > limit:
        raise ValueError(f"a length of {max_length} exceeds the model's {limit} positions")
    max_length = max_length or min(LONGEST, limit or LONGEST)
    calls = _calls(model, text, max_length, max_new_tokens, batch_size, seed)
    found = {}
    for name in names:
        with nullcontext() if progress is None else progress(name) as advance:
            result = calls[name](model, tokenizer, progress=advance)
        found[name] = {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": result.settings,
            "aggregates": result.values(),
            "records": list(result.records),
        }
    return {
        "model": label or type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seed": seed,
        "protocols": finite(found),
    }


def _calls(
    model: nn.Module, text: Any, max_length: int, max_new_tokens: int, batch_size: int, seed: int
) -> dict[str, Callable[..., ProtocolResult]]:
    """Every protocol, settled but for the model, the tokenizer and the progress."""
    reading = {"text": text, "row_length": max_length, "batch_size": batch_size}
    writing = {"max_new_tokens": max_new_tokens, "seed": seed}
    copied = {**writing, "max_new_tokens": min(COPIED_TOKENS, max_new_tokens)}
    asking = {"max_length": max_length, "batch_size": batch_size, "offsets": mixer_offsets(model)}
    return {
        "passkey": partial(passkey, **asking),
        "passkey-suite": partial(passkey, form="suite", **asking),
        "passkey-seed": partial(passkey, form="seed", **asking),
        "distance": partial(distance_loss, **reading),
        "position": partial(position_loss, **reading),
        "copying": partial(copying, **copied),
        "calibration": partial(calibration, **writing),
        "temperatures": partial(temperature_sweep, **writing),
    }


def mixer_offsets(model: nn.Module) -> frozenset[int]:
    """Offsets that fixed-offset mixers of the model read; none if it has no such mixer."""
    mixers = [module for module in model.modules() if isinstance(module, TokenMixer)]
    return frozenset(offset for mixer in mixers for offset in getattr(mixer, "distances", ()))


def print_suite(console: Console, report: Mapping[str, Any]) -> None:
    """A table of aggregates for each protocol."""
    console.print(f"{report['model']}: {report['parameters']:,} parameters", highlight=False, markup=False)
    for name, found in report["protocols"].items():
        table = Table(title=name, title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False)
        for key, value in found["aggregates"].items():
            table.add_row(key, "not finite" if value is None else f"{value:.4f}")
        console.print(table)
        said = (f"{key.replace('_', ' ')} {_in_words(value)}" for key, value in found["settings"].items())
        console.print(f"({'; '.join(said)})\n", highlight=False, markup=False)


def _in_words(value: Any) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
