"""Configuration of a longwave model, and whether one that was read from a file may name code of others."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from longwave.mixers import names_code
from longwave.modules import FEED_FORWARDS, NORMS

SHIM = "longwave_shim"
SHIM_TEXT = '''"""Loads this directory with trust_remote_code=True; the code is the installed package longwave."""

from longwave.model import LongwaveConfig, LongwaveForCausalLM  # noqa: F401
'''
AUTO_MAP = {
    "AutoConfig": f"{SHIM}.LongwaveConfig",
    "AutoModelForCausalLM": f"{SHIM}.LongwaveForCausalLM",
}

KINDS = {
    "positions": ("none", "learned", "sinusoidal"),
    "norm": tuple(NORMS),
    "norm_placement": ("pre", "post"),
    "feed_forward": (*FEED_FORWARDS, "none"),
}
COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_heads",
    "intermediate_size",
    "max_position_embeddings",
)
SCALES = ("norm_eps", "initializer_range", "dropout")
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: No machine holds a model of more rows, channels or layers.
LARGEST, MOST_LAYERS = 1 << 24, 1 << 12


class Refused(ValueError):
    """What a directory holds is not accepted; the sentence names the directory or the file."""


_trusting: ContextVar[bool] = ContextVar("_trusting", default=False)


@contextmanager
def trusting(trust: bool | None) -> Iterator[None]:
    """Whether configurations read in the ``with`` block, and models built in it, may name code of others."""
    token = _trusting.set(bool(trust))
    try:
        yield
    finally:
        _trusting.reset(token)


@strict
class LongwaveConfig(PreTrainedConfig):
    """Sizes and kinds of a :class:`~longwave.model.LongwaveForCausalLM`.

    Attributes:
        vocab_size: rows of the embedding, tokens.
        hidden_size: width of the residual stream, channels.
        num_hidden_layers: blocks.
        num_heads: heads of every mixer (also readable as ``num_attention_heads``).
        mixer_types: one entry per layer, each a label (``"hale"``, ``"hale@wide"``, ``"module.path:Class"``)
            or a list of labels, every one with its own norm and residual; one label alone means all layers.
        mixer_kwargs: label to keyword arguments of its constructor.
        feed_forward: ``"gelu"``, ``"swiglu"`` or ``"none"``.
        intermediate_size: width of the feed-forward, channels; ``None`` for 4 hidden_size.
        norm: ``"layer_norm"`` or ``"rms_norm"``.
        norm_placement: ``"pre"`` (x + f(norm(x)), a final norm before the head) or ``"post"`` (norm(x + f(x))).
        norm_eps: added to the variance.
        positions: added to the embedding: ``"none"``, ``"learned"`` or ``"sinusoidal"``.
        max_position_embeddings: rows of the learned table, tokens; other kinds have no limit.
        scale_embedding: multiply token embeddings by the square root of hidden_size.
        dropout: probability after the embedding, on each mixer's output and in the feed-forward.
        initializer_range: standard deviation of linear weights and embeddings.

    Raises:
        ValueError: values are illegal or do not fit each other; all complaints at once.
    """

    model_type = "longwave"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 (the Trainer adds lists to it)
    attribute_map = {"num_attention_heads": "num_heads"}  # noqa: RUF012 (read by PreTrainedConfig)

    vocab_size: int = 257
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_heads: int = 8
    mixer_types: list | tuple | str = "hale"
    mixer_kwargs: dict | None = None
    feed_forward: str = "gelu"
    intermediate_size: int | None = None
    norm: str = "layer_norm"
    norm_placement: str = "pre"
    norm_eps: float = 1e-5
    positions: str = "none"
    max_position_embeddings: int = 2048
    scale_embedding: bool = False
    dropout: float | int = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.mixer_types, str):
            self.mixer_types = [self.mixer_types] * min(max(self.num_hidden_layers, 1), MOST_LAYERS)
        self.mixer_kwargs = dict(self.mixer_kwargs or {})
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        for name in kwargs:
            if callable(getattr(type(self), str(name), None)):
                raise ValueError(f"{name!r} is no setting")
        super().__post_init__(**kwargs)
        complaints = [*self._numbers(), *self._mixers(), *self._kinds()]
        if complaints:
            raise ValueError("; ".join(complaints))

    def labels(self) -> list[tuple[str, ...]]:
        """The mixer labels of each layer."""
        return [tuple(entry) if isinstance(entry, list | tuple) else (entry,) for entry in self.mixer_types]

    def check_trust(self) -> None:
        """Refuse to build what a file names that is not the package's, unless inside :func:`trusting`.

        Raises:
            Refused: the configuration was read from a file, without trust, and a label of it names code.
        """
        if getattr(self, "_read_without_trust", False) and not _trusting.get():
            label = next(label for entry in self.labels() for label in entry if names_code(label))
            raise Refused(
                f"{self.name_or_path or 'config.json'}: mixer_types names {label!r}, code that is not longwave's; if "
                "you trust it, give --trust, in Python trust_remote_code=True"
            )
        self._read_without_trust = False

    @classmethod
    def from_pretrained(cls, *args, trust_remote_code: bool | None = None, **kwargs):
        """As in transformers; ``trust_remote_code=True`` lets a model be built whose labels name code of others."""
        with trusting(trust_remote_code):
            return super().from_pretrained(*args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, which calls it for whatever it has read from a file."""
        found = super().from_dict(config_dict, **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        foreign = any(names_code(label) for entry in config.labels() for label in entry)
        config._read_without_trust = foreign and not _trusting.get()
        return found

    @classmethod
    def from_json_file(cls, json_file):
        """As in transformers."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def to_dict(self) -> dict:
        """As in transformers, and how to load it with ``trust_remote_code=True``."""
        values = super().to_dict()
        values.pop("_read_without_trust", None)
        return {**values, "auto_map": dict(AUTO_MAP)}

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: the code of a saved model is the installed package, so that no source is copied beside it."""

    def save_pretrained(self, save_directory: str | Path, *args, **kwargs) -> None:
        """As in transformers; the directory also loads with ``trust_remote_code=True``."""
        super().save_pretrained(save_directory, *args, **kwargs)
        (Path(save_directory) / f"{SHIM}.py").write_text(SHIM_TEXT, encoding="utf-8")

    def _numbers(self) -> Iterator[str]:
        """Complaints about sizes, scales and tokens, and how they fit each other."""
        sound = True
        for name in COUNTS:
            value, most = getattr(self, name), MOST_LAYERS if name == "num_hidden_layers" else LARGEST
            if not 1 <= value <= most:
                sound = False
                legal = "at least 1" if value < 1 else f"a whole number of at most {most}"
                yield f"{name} must be {legal}, got {value}"
        for name in SCALES:
            value = getattr(self, name)
            if not math.isfinite(value):
                yield f"{name} must be a finite number, got {value}"
            elif value < 0:
                yield f"{name} must not be negative, got {value}"
        if self.dropout >= 1:
            yield f"dropout must be below 1, got {self.dropout}"
        if sound and self.hidden_size % self.num_heads:
            yield f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}"
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            yield f"sinusoidal positions need an even hidden_size, got {self.hidden_size}"
        if sound and len(self.mixer_types) != self.num_hidden_layers:
            yield f"mixer_types has {len(self.mixer_types)} entries for num_hidden_layers {self.num_hidden_layers}"
        for name in TOKENS:
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [] if value is None else [value]:
                if not 0 <= token < self.vocab_size:
                    yield f"{name} must be below vocab_size {self.vocab_size} and not negative, got {token}"

    def _mixers(self) -> Iterator[str]:
        """Complaints about labels and their arguments."""
        odd = [entry for entry in self.mixer_types if entry in ([], ())]
        odd += [label for entry in self.labels() for label in entry if not isinstance(label, str)]
        if odd:
            raise ValueError(f"mixer_types holds {str(odd[0])[:60]}, expected labels")
        used = {label for entry in self.labels() for label in entry}
        for label in sorted(set(self.mixer_kwargs) - used, key=str):
            yield f"mixer_kwargs names {label!r}, which no layer uses; used: {', '.join(sorted(used))}"
        for label, arguments in self.mixer_kwargs.items():
            if not isinstance(arguments, dict):
                yield f"mixer_kwargs.{label} must map arguments to values, got {arguments!r}"

    def _kinds(self) -> Iterator[str]:
        """Complaints about what is one of a few."""
        for name, legal in KINDS.items():
            if getattr(self, name) not in legal:
                yield f"unknown {name} {getattr(self, name)!r}; legal: {', '.join(legal)}"
        if self.dtype is not None and self.dtype not in DTYPES:
            legal = ", ".join(str(kind).removeprefix("torch.") for kind in DTYPES)
            yield f"unknown dtype {str(self.dtype).removeprefix('torch.')!r}; legal: {legal}"
