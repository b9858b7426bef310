"""A block: one or more mixers, each with its norm and residual, then a feed-forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from longwave.mixers import build
from longwave.mixers.base import State
from longwave.model.configuration import LongwaveConfig
from longwave.modules import feed_forward, norm


class Block(GradientCheckpointingLayer):
    """Layer ``layer_index`` of a model.

    Pre-norm: x <- x + drop(mixer(norm(x))) for each mixer, then x <- x + feed_forward(norm(x)).
    Post-norm: the norm follows the sum instead.
    """

    def __init__(self, config: LongwaveConfig, layer_index: int) -> None:
        super().__init__()
        self.post_norm = config.norm_placement == "post"
        place = {"layer_index": layer_index, "num_layers": config.num_hidden_layers}
        labels = config.labels()[layer_index]
        self.mixers = nn.ModuleList(
            build(label, config.hidden_size, config.num_heads, config.mixer_kwargs.get(label), **place)
            for label in labels
        )
        self.mixer_norms = nn.ModuleList(
            nn.Identity() if mixer.owns_norm else norm(config.norm, config.hidden_size, config.norm_eps)
            for mixer in self.mixers
        )
        self.dropout = nn.Dropout(config.dropout)
        self.feed_forward = None
        if config.feed_forward != "none":
            sizes = (config.hidden_size, config.intermediate_size)
            self.feed_forward = feed_forward(config.feed_forward, *sizes, config.dropout)
            self.feed_forward_norm = norm(config.norm, config.hidden_size, config.norm_eps)

    def forward(
        self,
        x: Tensor,
        states: Sequence[State | None],
        starts: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, list[State | None]]:
        """``x`` `[B, N, D]` and one state per mixer in, the same out; a lone token takes the mixer's ``step``."""
        finals = []
        for mixer, mixer_norm, state in zip(self.mixers, self.mixer_norms, states, strict=True):
            inputs = x if self.post_norm else mixer_norm(x)
            lone = x.shape[1] == 1 and state is not None and starts is None and not torch.is_grad_enabled()
            y, final = mixer(inputs[:, 0] if lone else inputs, state, starts=starts, return_state=return_state)
            finals.append(final)
            x = x + self.dropout(y[:, None] if lone else y)
            if self.post_norm:
                x = mixer_norm(x)
        if self.feed_forward is None:
            return x, finals
        if self.post_norm:
            return self.feed_forward_norm(x + self.feed_forward(x)), finals
        return x + self.feed_forward(self.feed_forward_norm(x)), finals
