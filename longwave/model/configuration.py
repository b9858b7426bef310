"""Configuration of a longwave model."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from longwave.modules import FEED_FORWARDS, NORMS

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
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (the Trainer adds lists to it)
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
            self.mixer_types = [self.mixer_types] * self.num_hidden_layers
        self.mixer_kwargs = dict(self.mixer_kwargs or {})
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        super().__post_init__(**kwargs)
        self._check_values()

    def labels(self) -> list[tuple[str, ...]]:
        """The mixer labels of each layer."""
        return [tuple(entry) if isinstance(entry, list | tuple) else (entry,) for entry in self.mixer_types]

    def _check_values(self) -> None:
        """Raise every complaint about the configuration's own values, in one error."""
        complaints = [
            f"{name} must be at least 1, got {getattr(self, name)}" for name in COUNTS if getattr(self, name) < 1
        ]
        complaints += [
            f"{name} must not be negative, got {getattr(self, name)}" for name in SCALES if getattr(self, name) < 0
        ]
        if self.dropout >= 1:
            complaints.append(f"dropout must be below 1, got {self.dropout}")
        if not complaints and self.hidden_size % self.num_heads:
            complaints.append(f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            complaints.append(f"sinusoidal positions need an even hidden_size, got {self.hidden_size}")
        if len(self.mixer_types) != self.num_hidden_layers:
            complaints.append(
                f"mixer_types has {len(self.mixer_types)} entries for num_hidden_layers {self.num_hidden_layers}"
            )
        odd = [label for entry in self.labels() for label in entry if not isinstance(label, str)]
        if odd:
            raise ValueError(f"mixer_types holds {odd[0]!r}, expected labels")
        used = {label for entry in self.labels() for label in entry}
        for label in sorted(set(self.mixer_kwargs) - used):
            complaints.append(f"mixer_kwargs names {label!r}, which no layer uses; used: {', '.join(sorted(used))}")
        for label, arguments in self.mixer_kwargs.items():
            if not isinstance(arguments, dict):
                complaints.append(f"mixer_kwargs.{label} must map arguments to values, got {arguments!r}")
        for name, legal in KINDS.items():
            if getattr(self, name) not in legal:
                complaints.append(f"unknown {name} {getattr(self, name)!r}; legal: {', '.join(legal)}")
        if complaints:
            raise ValueError("; ".join(complaints))
