"""HALE's published parts, each usable alone: attention, block, decoding cache, block context, gate.

The functions and modules that work on heads take `[B, H, N, d]`, heads before rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from longwave.mixers.hale import EPS, BranchGate, Hale, HaleState, LevelMixture
from longwave.model import LongwaveConfig, LongwaveForCausalLM
from longwave.model.block import Block
from longwave.ops import block_means, elu_plus_one, linear_attention

#: Arguments of related models that one script may pass to all of them: accepted, without effect.
IGNORED = frozenset(
    {
        "compile_gwm",
        "depth_embed_dim",
        "device",
        "field_size",
        "interference_interval",
        "jacobi_iters",
        "k_max",
        "tree_mode",
        "use_depth_conditioned_gwm",
        "use_haar_init",
    }
)


class HALEInferenceCache:
    """What a mixer or block remembers between calls of ``forward_incremental``, which replaces ``state``.

    Attributes:
        state: sums, block sums, window and token count; its size does not depend on the tokens seen.
    """

    def __init__(self, state: HaleState) -> None:
        self.state = state


class HALEAttention(nn.Module):
    """The HALE mixer with the published arguments; ``mixer`` is the :class:`~longwave.mixers.hale.Hale` inside.

    Args:
        embedding_dim: D (also ``d_model``).
        num_heads: H (also ``n_heads``).
        local_window: tokens that the local branch reads, the present one included.
        num_haar_levels: L, block sizes 2..2^L.
        chunk_size: rows of a chunk; never changes a result.
        dropout: probability, after the output projection.
        mixer_kwargs: further arguments of :class:`~longwave.mixers.hale.Hale`, such as ``cache="published"``.

    Raises:
        TypeError: an argument is neither published nor one of ``IGNORED``.
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        embedding_dim: int = 256,
        num_heads: int = 8,
        local_window: int = 64,
        num_haar_levels: int = 4,
        chunk_size: int = 128,
        dropout: float = 0.1,
        mixer_kwargs: Mapping[str, Any] | None = None,
        **legacy,
    ) -> None:
        super().__init__()
        embedding_dim = legacy.pop("d_model", embedding_dim)
        num_heads = legacy.pop("n_heads", num_heads)
        refuse_unknown(type(self), legacy)
        arguments = hale_arguments(local_window, num_haar_levels, chunk_size, dropout, mixer_kwargs)
        self.mixer = Hale(embedding_dim, num_heads, **arguments)

    def forward(self, x: Tensor, mask: Tensor | None = None, **ignored) -> Tensor:
        """`[B, N, D]` or `[N, D]` to the same shape; ``mask`` as in :func:`require_right_padding`."""
        refuse_unknown(type(self), ignored)
        require_right_padding(mask, x.shape[:-1])
        y, _ = self.mixer(x if x.dim() == 3 else x[None])
        return y.reshape(x.shape)

    def init_inference_cache(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> HALEInferenceCache:
        """A cache that has seen nothing, by default on the weights' device and in their dtype."""
        return _empty_cache(self.mixer, batch_size, device, dtype)

    def forward_incremental(self, x_new: Tensor, cache: HALEInferenceCache) -> Tensor:
        """The next token, `[B, 1, D] -> [B, 1, D]`, without gradient; ``cache`` moves on by one token.

        Raises:
            ValueError: ``x_new`` has another shape.
        """
        _require_one_token(x_new, cache, self.mixer.hidden_size)
        y, cache.state = self.mixer(x_new[:, 0], cache.state)
        return y[:, None]


class WaveFieldAttention(HALEAttention):
    """HALE under an older name: ``local_window`` is 32, arguments after the second are given by name."""

    def __init__(self, embedding_dim: int = 256, num_heads: int = 8, **arguments) -> None:
        super().__init__(embedding_dim, num_heads, **{"local_window": 32, **arguments})


WaveFieldAttentionHALE = WaveFieldAttention


class HALETransformerLayer(nn.Module):
    """A pre-norm block: HALE and a GELU feed-forward, each with LayerNorm and residual.

    Dropout acts on the mixer's output inside the mixer and again in the block, by two independent masks.

    Args:
        embedding_dim: D (also ``d_model``).
        num_heads: H (also ``n_heads``).
        ffn_dim: width of the feed-forward.
        local_window, num_haar_levels, chunk_size, dropout, mixer_kwargs: as in :class:`HALEAttention`.

    Raises:
        TypeError: an argument is neither published nor one of ``IGNORED``.
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        embedding_dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        local_window: int = 64,
        num_haar_levels: int = 4,
        chunk_size: int = 128,
        dropout: float = 0.1,
        mixer_kwargs: Mapping[str, Any] | None = None,
        **legacy,
    ) -> None:
        super().__init__()
        config = LongwaveConfig(
            vocab_size=1,
            hidden_size=legacy.pop("d_model", embedding_dim),
            num_hidden_layers=1,
            num_heads=legacy.pop("n_heads", num_heads),
            mixer_types="hale",
            mixer_kwargs={"hale": hale_arguments(local_window, num_haar_levels, chunk_size, dropout, mixer_kwargs)},
            intermediate_size=ffn_dim,
            dropout=dropout,
        )
        refuse_unknown(type(self), legacy)
        (block,) = LongwaveForCausalLM(config).blocks.children()
        assert isinstance(block, Block)
        self.block = block

    def forward(self, x: Tensor, mask: Tensor | None = None, **ignored) -> Tensor:
        """`[B, N, D] -> [B, N, D]`; ``mask`` as in :func:`require_right_padding`."""
        refuse_unknown(type(self), ignored)
        require_right_padding(mask, x.shape[:-1])
        y, _ = self.block(x, [None])
        return y

    def init_inference_cache(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> HALEInferenceCache:
        """A cache that has seen nothing, by default on the weights' device and in their dtype."""
        return _empty_cache(self._mixer(), batch_size, device, dtype)

    @torch.no_grad()
    def forward_incremental(self, x_new: Tensor, cache: HALEInferenceCache) -> Tensor:
        """The next token, `[B, 1, D] -> [B, 1, D]`, without gradient; ``cache`` moves on by one token.

        Raises:
            ValueError: ``x_new`` has another shape.
        """
        _require_one_token(x_new, cache, self._mixer().hidden_size)
        y, (cache.state,) = self.block(x_new, [cache.state], return_state=True)
        return y

    def _mixer(self) -> Hale:
        (mixer,) = self.block.mixers.children()
        assert isinstance(mixer, Hale)
        return mixer


def causal_linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float = EPS) -> Tensor:
    """Linear attention with the feature map elu + 1; `[B, H, N, d]` three times to `[B, H, N, d]`."""
    return causal_linear_attention_chunked(q, k, v, eps=eps)


def causal_linear_attention_chunked(q: Tensor, k: Tensor, v: Tensor, chunk_size: int = 128, eps: float = EPS) -> Tensor:
    """:func:`causal_linear_attention` in chunks of ``chunk_size`` rows, which never change a result."""
    keys, values = (rearrange(x, "b h n d -> b n 1 h d") for x in (k, v))
    return rearrange(_attend_streams(q, keys, values, chunk_size, eps), "b n 1 h d -> b h n d")


class CausalHaarContext(nn.Module):
    """The multi-scale part of the global branch: a mixture of linear attentions over running block means.

    Args:
        head_dim: d.
        num_haar_levels: L; 0 gives zeros.
        chunk_size: rows of a chunk; never changes a result.
        eps: lower bound of the normaliser.
    """

    def __init__(self, head_dim: int, num_haar_levels: int = 4, chunk_size: int = 128, eps: float = EPS) -> None:
        super().__init__()
        self.num_levels, self.chunk_size, self.eps = num_haar_levels, chunk_size, eps
        self.levels = LevelMixture(num_haar_levels, head_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """sum_l softmax(logits)_l LA(q, P_l mean_l(k), R_l mean_l(v)); `[B, H, N, d]` throughout."""
        pair = torch.stack([rearrange(x, "b h n d -> b n h d") for x in (k, v)], dim=2)
        levels = self.levels()
        keys, values = levels.streams(block_means(pair, self.num_levels))
        outputs = _attend_streams(q, keys, values, self.chunk_size, self.eps)
        return rearrange(levels.mixed(outputs), "b n h d -> b h n d")


class AdaptiveReasoningGate(BranchGate):
    """One share a per token between two branches: a local + (1 - a) glob, a = 1/2 at the start."""


class FieldInterferenceModule(nn.Module):
    """The identity, where an older model had a layer; its arguments have no effect."""

    def __init__(self, embedding_dim: int, dropout: float = 0.1, initial_temperature: float = 1.0) -> None:
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x`` itself."""
        return x


def hale_arguments(
    local_window: int, num_haar_levels: int, chunk_size: int, dropout: float, further: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Published argument values as arguments of :class:`~longwave.mixers.hale.Hale`; ``further`` wins."""
    published = {
        "window": local_window,
        "num_levels": num_haar_levels,
        "chunk_size": chunk_size,
        "dropout": dropout,
    }
    return {**published, **(further or {})}


def refuse_unknown(owner: type, names: Iterable[str]) -> None:
    """Let the names of ``IGNORED`` pass.

    Raises:
        TypeError: another name is among ``names``.
    """
    unknown = sorted(set(names) - IGNORED)
    if unknown:
        ignored = ", ".join(sorted(IGNORED))
        raise TypeError(f"{owner.__name__} has no argument {unknown[0]!r}; accepted without effect: {ignored}")


def require_right_padding(mask: Tensor | None, shape: torch.Size) -> None:
    """Accept a mask that needs no action: right padding, which no real row reads in a causal model.

    Args:
        mask: `[B, N]` bool or 0/1, true at real tokens; ``None`` for no padding.
        shape: what the mask's shape must be.

    Raises:
        ValueError: the mask has another shape, other values, or hides a token before a real one.
    """
    if mask is None:
        return
    if mask.shape != shape:
        raise ValueError(f"mask must have the shape {tuple(shape)} of the tokens, got {tuple(mask.shape)}")
    real = mask.bool()
    if not torch.equal(real.to(mask.dtype), mask):
        raise ValueError("mask must be true (1) at real tokens and false (0) at padding, got other values")
    if (real[..., 1:] & ~real[..., :-1]).any():
        raise ValueError(
            "mask hides a token before a real one; only right padding is supported here "
            "(for left padding and packed documents use longwave.model.LongwaveForCausalLM)"
        )


def _empty_cache(
    mixer: Hale, batch_size: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> HALEInferenceCache:
    device = None if device is None else torch.device(device)
    return HALEInferenceCache(mixer.init_state(batch_size, device=device, dtype=dtype))


def _require_one_token(x_new: Tensor, cache: HALEInferenceCache, hidden_size: int) -> None:
    expected = (cache.state.tokens.shape[0], 1, hidden_size)
    if tuple(x_new.shape) != expected:
        raise ValueError(f"forward_incremental takes one token for each sequence, {expected}; got {tuple(x_new.shape)}")


def _attend_streams(q: Tensor, keys: Tensor, values: Tensor, chunk_size: int, eps: float) -> Tensor:
    """Linear attention of `q [B, H, N, d]` to M streams `[B, N, M, H, d]`, which share it: `[B, N, M, H, d]`."""
    q = elu_plus_one(rearrange(q, "b h n d -> b n h d"))
    return linear_attention(q, elu_plus_one(keys), values, chunk_size=chunk_size, eps=eps)
