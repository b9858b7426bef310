"""Token embedding with its positions, and the head that goes back to tokens."""

from __future__ import annotations

from torch import Tensor, nn

from longwave.model.configuration import LongwaveConfig
from longwave.modules import Linear, sinusoidal
from longwave.ops import linear_cross_entropy


class Embeddings(nn.Module):
    """Adds positions to token embeddings; positions count the tokens of a document."""

    def __init__(self, config: LongwaveConfig) -> None:
        super().__init__()
        self.kind = config.positions
        self.scale = config.hidden_size**0.5 if config.scale_embedding else 1.0
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if self.kind == "learned":
            self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, embeds: Tensor, positions: Tensor) -> Tensor:
        """``embeds`` `[B, N, D]` from :attr:`tokens`, ``positions`` `[B, N]` int64 -> `[B, N, D]`.

        Raises:
            ValueError: a position lies beyond a learned table.
        """
        hidden = embeds * self.scale if self.scale != 1.0 else embeds
        if self.kind == "learned":
            longest, limit = int(positions.max()) + 1, self.positions.num_embeddings
            if longest > limit:
                raise ValueError(f"a document of {longest} tokens exceeds the {limit} learned positions")
            hidden = hidden + self.positions(positions)
        elif self.kind == "sinusoidal":
            hidden = hidden + sinusoidal(positions, hidden.shape[-1]).to(hidden.dtype)
        return self.dropout(hidden)


class Head(Linear):
    """Logits of hidden rows; or their loss alone, for which the logits of all rows need not be held at once."""

    def forward(self, input: Tensor, targets: Tensor | None = None) -> Tensor:
        """`[B, N, D]` -> logits `[B, N, V]`, or with ``targets`` `[B, N]`, -100 ignored, the sum of cross-entropies."""
        if targets is None:
            return super().forward(input)
        return linear_cross_entropy(input.flatten(0, 1), self.weight, targets.flatten())
