"""HALE under its published names: change the import line and scripts written for the original run.

Where the original computes another function when it decodes than when it trains, or ignores what it is
given, these classes do the corrected thing. Published behaviour is an argument of the mixer:
``mixer_kwargs={"cache": "published"}`` decodes as the original does, ``{"gate_init": "normal"}`` starts its
gate as the original does.

Environment variables of the original's commands, and what to write behind ``longwave train`` instead:

    HALE_LOCAL_WINDOW=64         --set model.mixer_kwargs.hale.window=64
    HALE_NUM_HAAR_LEVELS=4       --set model.mixer_kwargs.hale.num_levels=4
    HALE_CHUNK_SIZE=128          --set model.mixer_kwargs.hale.chunk_size=128
    WFL_ACCEL_MODEL=hale         --set model.mixer_types=hale
    PYTHONPATH                   not needed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longwave.compat.hale_generation import generate, next_token_probabilities
from longwave.compat.hale_parts import (
    AdaptiveReasoningGate,
    CausalHaarContext,
    FieldInterferenceModule,
    HALEAttention,
    HALEInferenceCache,
    HALETransformerLayer,
    WaveFieldAttention,
    WaveFieldAttentionHALE,
    causal_linear_attention,
    causal_linear_attention_chunked,
    hale_arguments,
    refuse_unknown,
    require_right_padding,
)
from longwave.mixers.softmax import Softmax
from longwave.model import LongwaveConfig, LongwaveForCausalLM

__all__ = [
    "AdaptiveReasoningGate",
    "CausalHaarContext",
    "FieldInterferenceModule",
    "HALEAttention",
    "HALEInferenceCache",
    "HALETransformer",
    "HALETransformerLayer",
    "StandardTransformer",
    "WaveFieldAttention",
    "WaveFieldAttentionHALE",
    "WaveFieldTransformer",
    "causal_linear_attention",
    "causal_linear_attention_chunked",
    "next_token_probabilities",
]


class PublishedModel(nn.Module):
    """Published calling conventions around ``model``, a :class:`~longwave.model.LongwaveForCausalLM`."""

    def __init__(self, config: LongwaveConfig, use_checkpoint: bool = False) -> None:
        super().__init__()
        self.model = LongwaveForCausalLM(config)
        if use_checkpoint:
            self.model.activation_checkpointing_enable({"use_reentrant": False})

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
        **ignored,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits `[B, N, V]`, and the mean cross-entropy (``None`` without labels).

        Args:
            input_ids: `[B, N]` int64, or `[N]` for a batch of one.
            labels: shape of ``input_ids``: the token that follows each, shifted by the caller; -100 is
                not counted.
            mask: shape of ``input_ids``, true at real tokens; padding must be on the right.
            targets: another name of ``labels``.

        Raises:
            TypeError: an argument is unknown.
            ValueError: ``labels`` beside ``targets``, or a mask that is no right padding.
        """
        refuse_unknown(type(self), ignored)
        if labels is not None and targets is not None:
            raise ValueError("labels and targets are one argument; give one of them")
        require_right_padding(mask, input_ids.shape)
        ids = input_ids if input_ids.dim() == 2 else input_ids[None]
        logits = self.model(input_ids=ids, use_cache=False).logits
        labels = targets if labels is None else labels
        if labels is None:
            return logits, None
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, F.cross_entropy(wide.flatten(0, 1), labels.flatten())

    def generate(
        self,
        input_ids: Tensor | Sequence[Tensor | Sequence[int]],
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = 50,
        top_p: float | None = 0.9,
        repetition_penalty: float = 1.2,
        *,
        repetition_window: int = 50,
        stop_tokens: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> Tensor | list[Tensor]:
        """Sample a continuation of each prompt.

        ``temperature`` to ``repetition_window`` as in
        :func:`~longwave.compat.hale_generation.next_token_probabilities`; prompts, ``stop_tokens``,
        ``generator`` and what is returned as in :func:`~longwave.compat.hale_generation.generate`.
        """
        return generate(
            self.model,
            input_ids,
            max_new_tokens,
            stop_tokens=stop_tokens,
            generator=generator,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            repetition_window=repetition_window,
        )


class HALETransformer(PublishedModel):
    """The published HALE language model: sinusoidal positions, pre-norm blocks, GELU, tied head.

    Args:
        vocab_size: V.
        embedding_dim: D, even and divisible by ``num_heads`` (also ``d_model``).
        num_layers: blocks (also ``n_layers``).
        num_heads: H (also ``n_heads``).
        ffn_dim: width of the feed-forward.
        max_seq_len: kept in the configuration; limits neither ``forward`` nor ``generate``.
        local_window, num_haar_levels, chunk_size, mixer_kwargs: as in :class:`HALEAttention`.
        dropout: probability; on a mixer's output it acts twice, in the mixer and in the block.
        use_checkpoint: recompute each block's activations in the backward pass.

    Raises:
        TypeError: an argument is neither published nor an ignored one of a related model.
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        max_seq_len: int = 256,
        local_window: int = 64,
        num_haar_levels: int = 4,
        chunk_size: int = 128,
        dropout: float = 0.1,
        use_checkpoint: bool = False,
        mixer_kwargs: Mapping[str, Any] | None = None,
        **legacy,
    ) -> None:
        mixer = hale_arguments(local_window, num_haar_levels, chunk_size, dropout, mixer_kwargs)
        config = LongwaveConfig(
            vocab_size=vocab_size,
            hidden_size=legacy.pop("d_model", embedding_dim),
            num_hidden_layers=legacy.pop("n_layers", num_layers),
            num_heads=legacy.pop("n_heads", num_heads),
            mixer_types="hale",
            mixer_kwargs={"hale": mixer},
            intermediate_size=ffn_dim,
            positions="sinusoidal",
            max_position_embeddings=max_seq_len,
            dropout=dropout,
        )
        refuse_unknown(type(self), legacy)
        super().__init__(config, use_checkpoint)


class WaveFieldTransformer(HALETransformer):
    """HALE under an older name, with its defaults; arguments after the fourth are given by name."""

    def __init__(
        self,
        vocab_size: int = 50257,
        embedding_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        **arguments,
    ) -> None:
        defaults = {"max_seq_len": 2048, "local_window": 32}
        super().__init__(vocab_size, embedding_dim, num_layers, num_heads, **{**defaults, **arguments})


class StandardTransformer(PublishedModel):
    """The baseline that HALE was published against: softmax attention, learned positions, the same block.

    The attention's input weights start as the original's fused `[3D, D]` weight does, Xavier-uniform.

    Args:
        vocab_size, embedding_dim, num_layers, num_heads, ffn_dim: as in :class:`HALETransformer`.
        max_seq_len: rows of the table of positions; longer texts are refused.
        dropout: probability after the embedding, on the attention's output and in the feed-forward.

    Raises:
        TypeError: an argument is neither published nor an ignored one of a related model.
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        max_seq_len: int = 256,
        dropout: float = 0.1,
        **legacy,
    ) -> None:
        config = LongwaveConfig(
            vocab_size=vocab_size,
            hidden_size=legacy.pop("d_model", embedding_dim),
            num_hidden_layers=legacy.pop("n_layers", num_layers),
            num_heads=legacy.pop("n_heads", num_heads),
            mixer_types="softmax",
            mixer_kwargs={"softmax": {"rotary_base": None, "bias": True}},
            intermediate_size=ffn_dim,
            positions="learned",
            max_position_embeddings=max_seq_len,
            dropout=dropout,
        )
        refuse_unknown(type(self), legacy)
        super().__init__(config)
        bound = (6 / (4 * config.hidden_size)) ** 0.5
        for mixer in self.model.modules():
            if isinstance(mixer, Softmax):
                for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj):
                    nn.init.uniform_(projection.weight, -bound, bound)
