"""HALE: hierarchical adaptive linear-enhanced attention.

Two branches and a gate. *Local*: softmax attention over the last W tokens. *Global*: linear attention over
the raw keys and values, plus one linear attention for each level l = 1..L, whose keys and values are the
running mean of the current block of 2^l tokens, mapped by P_l and R_l. A scalar gate for each token
interpolates. Training costs O(N); the state is constant.

    q, k, v, k', v' = projections of x
    local  = softmax over the window of (q·k' / sqrt(d)) v'
    LA(K, V)_i = sum_{j<=i} (phi(q_i)·phi(K_j)) V_j / max(sum_{j<=i} phi(q_i)·phi(K_j), eps)
    global = LA(k, v) + sum_l softmax(w)_l LA(P_l mean_l(k), R_l mean_l(v))
    a = sigmoid(G2 silu(G1 [x; local - global]));   y = W_o (a local + (1 - a) global)

Every position contributes one (key, value) pair to every level, the mean its block has reached, so each
level's past is one matrix and decoding needs only the sums of the current blocks.

Symbols of the method and names here: W_q W_k W_v W_kl W_vl W_o -> {q,k,v,local_k,local_v,o}_proj;
P, R, w_scale -> levels.{keys,values,logits}; G1, G2 -> gate.{hidden,out}.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from longwave.mixers.base import Declaration, TokenMixer, observe, run_by_document
from longwave.modules import Linear
from longwave.ops import DyadicState, Ring, dyadic_linear_attention, elu_plus_one, offset_attention, without_autocast

INITIALIZER_STD = 0.02
EPS = 1e-6
MOST_LEVELS = 30


class HaleState(NamedTuple):
    """Constant-size state of one HALE layer; M = L + 1 streams, the raw keys first.

    ``memory`` `[B, M, H, d, d + 1]` sums phi(key) [value, 1]ᵀ; ``blocks`` `[B, L, 2, H, d]` sums k and v of
    each level's current block; ``local`` `[B, W, 2, H, d]` is the ring of (k', v'); ``tokens`` `[B]`.
    """

    memory: Tensor
    blocks: Tensor
    local: Tensor
    tokens: Tensor

    def branches(self) -> tuple[Ring, DyadicState]:
        """The local branch's state and the global one's."""
        return Ring(self.local, self.tokens), DyadicState(self.memory, self.blocks, self.tokens)


class Levels(NamedTuple):
    """Key maps and value maps `[L, d, d]` of the levels, and their weights `[L]`; L may be 0."""

    keys: Tensor
    values: Tensor
    weights: Tensor

    def streams(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, N, L, H, d]` of the levels from the means `[B, N, L, 2, H, d]` of k and v."""
        keys, values = (maps.to(means.dtype) for maps in self[:2])
        return (
            torch.einsum("bnlhd,led->bnlhe", means[:, :, :, 0], keys),
            torch.einsum("bnlhd,led->bnlhe", means[:, :, :, 1], values),
        )

    def mixed(self, outputs: Tensor) -> Tensor:
        """sum_l weights_l outputs_l: `[B, N, L, H, d] -> [B, N, H, d]`."""
        return torch.einsum("bnlhd,l->bnhd", outputs, self.weights.to(outputs.dtype))


class LevelMixture(nn.Module):
    """What turns block means into keys and values of the levels, and the levels' outputs into one.

    Args:
        num_levels: L.
        head_dim: d; the maps are shared by all heads.
        learn_logits: False freezes the mixture at its uniform start.
    """

    def __init__(self, num_levels: int, head_dim: int, *, learn_logits: bool = True) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(num_levels, head_dim, head_dim))
        self.values = nn.Parameter(torch.empty(num_levels, head_dim, head_dim))
        self.logits = nn.Parameter(torch.empty(num_levels), requires_grad=learn_logits)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Maps N(0, 0.02²), logits 0."""
        nn.init.normal_(self.keys, std=INITIALIZER_STD)
        nn.init.normal_(self.values, std=INITIALIZER_STD)
        nn.init.zeros_(self.logits)

    def forward(self) -> Levels:
        """The maps, and softmax(logits) in float32 or wider."""
        wide = torch.promote_types(self.logits.dtype, torch.float32)
        return Levels(self.keys, self.values, observe("hale.level_weights", self.logits.to(wide).softmax(dim=0)))


class BranchGate(nn.Module):
    """One share of the local branch for each token: a = sigmoid(G2 silu(G1 [x; local - global]))."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden = Linear(2 * hidden_size, hidden_size)
        self.out = Linear(hidden_size, 1)
        self.reset_parameters()

    def reset_parameters(self, out_std: float = 0.0) -> None:
        """G1 N(0, 0.02²), G2 N(0, out_std²), biases 0; with ``out_std`` 0 an even mixture."""
        nn.init.normal_(self.hidden.weight, std=INITIALIZER_STD)
        nn.init.normal_(self.out.weight, std=out_std)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, local: Tensor, glob: Tensor) -> Tensor:
        """a local + (1 - a) glob, `[..., D]` throughout."""
        difference = local - glob
        hidden = nn.functional.silu(self.hidden(torch.cat([x, difference], dim=-1)))
        share = observe("hale.gate", torch.sigmoid(self.out(hidden)))
        return glob + share * difference


class Hale(TokenMixer):
    """HALE token mixer.

    Args:
        hidden_size: D.
        num_heads: H, a divisor of D.
        window: W, tokens that the local branch reads, the present one included; at least 1.
        num_levels: L, block sizes 2..2^L; 0 leaves plain linear attention as the global branch.
        chunk_size: rows of a chunk of the chunkwise form; never changes a result.
        dropout: probability, after the output projection.
        gate: ``"learned"``, or a constant share of the local branch in [0, 1] (1 local only, 0 global only).
        gate_init: ``"zero"`` starts at an even mixture; ``"normal"`` is the published N(0, 0.02²).
        share_local: the local branch reads the global keys and values instead of its own.
        learn_level_logits: False freezes the mixture of levels at its uniform start.
        cache: ``"exact"``, or ``"published"``: the original's decoding, which leaves the feature map out of
            the levels and keeps one entry per completed block, hence computes another function than training.

    Raises:
        ValueError: an argument is outside its range, or D is not divisible by H.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        window: int = 64,
        num_levels: int = 4,
        chunk_size: int = 32,
        dropout: float = 0.0,
        gate: Literal["learned"] | float = "learned",
        gate_init: Literal["zero", "normal"] = "zero",
        share_local: bool = False,
        learn_level_logits: bool = True,
        cache: Literal["exact", "published"] = "exact",
    ) -> None:
        super().__init__(hidden_size, num_heads)
        if window < 1 or not 0 <= num_levels <= MOST_LEVELS or chunk_size < 1:
            raise ValueError(
                f"hale needs window >= 1, {MOST_LEVELS} >= num_levels >= 0 and chunk_size >= 1; "
                f"got {window}, {num_levels}, {chunk_size}"
            )
        if gate != "learned" and not (isinstance(gate, int | float) and 0 <= gate <= 1):
            raise ValueError(f"hale: gate must be 'learned' or a number in [0, 1], got {gate!r}")
        if gate_init not in ("zero", "normal"):
            raise ValueError(f"hale: gate_init must be 'zero' or 'normal', got {gate_init!r}")
        if cache not in ("exact", "published"):
            raise ValueError(f"hale: cache must be 'exact' or 'published', got {cache!r}")
        self.window, self.num_levels, self.chunk_size = window, num_levels, chunk_size
        self.gate_init, self.share_local, self.cache = gate_init, share_local, cache

        def projection() -> Linear:
            return Linear(hidden_size, hidden_size, bias=False)

        self.q_proj, self.k_proj, self.v_proj = projection(), projection(), projection()
        if not share_local:
            self.local_k_proj, self.local_v_proj = projection(), projection()
        self.levels = None
        if num_levels:
            self.levels = LevelMixture(num_levels, self.head_dim, learn_logits=learn_level_logits)
        self.gate = BranchGate(hidden_size) if gate == "learned" else gate
        self.o_proj = Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for projection in self.children():
            if isinstance(projection, Linear):
                nn.init.normal_(projection.weight, std=INITIALIZER_STD)
        nn.init.zeros_(self.o_proj.bias)
        if self.levels is not None:
            self.levels.reset_parameters()
        if isinstance(self.gate, BranchGate):
            self.gate.reset_parameters(out_std=INITIALIZER_STD if self.gate_init == "normal" else 0.0)

    def declaration(self) -> Declaration:
        breaks = {}
        if self.cache == "published" and self.num_levels:
            breaks["P3"] = "the published cache decodes another function than training computes"
            breaks["P9"] = "its weights have both signs: it divides by as little as 1e-6, beyond the range of float16"
        blocks = tuple(2**level for level in range(1, self.num_levels + 1))
        return Declaration(growth="constant", edges=(*blocks, self.window, self.chunk_size), breaks=breaks)

    def forward(
        self,
        x: Tensor,
        state: HaleState | None = None,
        *,
        starts: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, HaleState | None]:
        if self.cache == "published" and (state is not None or return_state):
            return self._decode_as_published(x, state, starts, return_state)
        q, k, v, local_k, local_v = self._project(x)  # [B, N, H, d] each
        ring, past = (None, None) if state is None else state.branches()
        shared = {"starts": starts, "return_state": return_state}
        local: Any = offset_attention(q, local_k, local_v, window=self.window, initial_state=ring, **shared)
        glob: Any = dyadic_linear_attention(
            *(q, k, v, *self._levels(q)), eps=EPS, chunk_size=self.chunk_size, initial_state=past, **shared
        )
        if not return_state:
            return self._combine(x, local, glob), None
        (local, ring), (glob, past) = local, glob
        return self._combine(x, local, glob), HaleState(past.memory, past.blocks, ring.rows, ring.tokens)

    def step(self, x: Tensor, state: HaleState) -> tuple[Tensor, HaleState]:
        return self._advance(x, state)

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None) -> HaleState:
        wide = torch.promote_types(dtype, torch.float32)
        heads = (self.num_heads, self.head_dim)
        return HaleState(
            torch.zeros(batch_size, self.num_levels + 1, *heads, self.head_dim + 1, device=device, dtype=wide),
            torch.zeros(batch_size, self.num_levels, 2, *heads, device=device, dtype=wide),
            torch.zeros(batch_size, self.window, 2, *heads, device=device, dtype=dtype),
            torch.zeros(batch_size, dtype=torch.int64, device=device),
        )

    def state_bytes(self, num_tokens: int, dtype: torch.dtype = torch.float32) -> int:
        wide = torch.promote_types(dtype, torch.float32).itemsize
        memory = (self.num_levels + 1) * self.hidden_size * (self.head_dim + 1)
        blocks = self.num_levels * 2 * self.hidden_size
        local = self.window * 2 * self.hidden_size
        return wide * (memory + blocks) + dtype.itemsize * local + 8

    def flops(self, num_tokens: int) -> int:
        D, d, streams = self.hidden_size, self.head_dim, self.num_levels + 1
        chunk, block = min(self.chunk_size, num_tokens), min(self.window, num_tokens)
        projections = 2 * D * D * (4 if self.share_local else 6)
        gate = 2 * D * (2 * D + 1) if isinstance(self.gate, BranchGate) else 0
        levels = 4 * D * d * self.num_levels
        local = 4 * D * (2 * block - 1)
        inside = streams * 2 * D * (2 * chunk + 1)
        between = streams * 4 * D * (d + 1)
        return num_tokens * (projections + gate + levels + local + inside + between)

    def _project(self, x: Tensor) -> list[Tensor]:
        k, v = self.k_proj(x), self.v_proj(x)
        local_k, local_v = (k, v) if self.share_local else (self.local_k_proj(x), self.local_v_proj(x))
        parts = (self.q_proj(x), k, v, local_k, local_v)
        return [rearrange(part, "b n (h d) -> b n h d", h=self.num_heads) for part in parts]

    def _levels(self, like: Tensor) -> Levels:
        if self.levels is None:
            none = like.new_empty(0, self.head_dim, self.head_dim)
            return Levels(none, none, like.new_empty(0))
        return self.levels()

    def _combine(self, x: Tensor, local: Tensor, glob: Tensor) -> Tensor:
        """Two branches `[B, N, H, d]` to the mixer's output."""
        local, glob = (rearrange(part, "b n h d -> b n (h d)") for part in (local, glob))
        local, glob = observe("hale.local", local), observe("hale.global", glob)
        mixed = self.gate(x, local, glob) if isinstance(self.gate, BranchGate) else glob + self.gate * (local - glob)
        return self.dropout(self.o_proj(mixed))

    def _advance(self, x: Tensor, state: HaleState) -> tuple[Tensor, HaleState]:
        """The recurrence on one token, `x [B, D]`: the published cache differs in two marked places."""
        q, k, v, local_k, local_v = (part[:, 0] for part in self._project(x[:, None]))  # [B, H, d] each
        memory, blocks, ring, tokens = state
        batch = torch.arange(x.shape[0], device=x.device)
        pair = torch.stack([local_k, local_v], dim=1).to(ring.dtype)
        ring = ring.index_put((batch, tokens % self.window), pair)
        with without_autocast(x.device.type):  # which would round sums and normalisers
            given, (q, k, v) = v.dtype, (part.to(memory.dtype) for part in (q, k, v))
            local = self._attend_ring(q, ring, tokens)
            glob, memory, blocks = self._attend_streams(q, k, v, memory, blocks, tokens)
        y = self._combine(x[:, None], *(part[:, None].to(given) for part in (local, glob)))
        return y[:, 0], HaleState(memory, blocks, ring, tokens + 1)

    def _attend_streams(
        self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor, blocks: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The global branch of one row `[B, H, d]`, and its sums after it."""
        published, levels = self.cache == "published", self._levels(q)
        sizes = 2 ** torch.arange(self.num_levels + 1, device=q.device)  # the raw stream's blocks have one row
        phase = tokens[:, None] % sizes
        begins = (phase == 0)[:, 1:, None, None, None]
        blocks = torch.where(begins, 0.0, blocks) + torch.stack([k, v], dim=1)[:, None]
        keys, values = levels.streams((blocks / (phase[:, 1:] + 1)[..., None, None, None])[:, None])
        on_levels = keys[:, 0] if published else elu_plus_one(keys[:, 0])
        features = torch.cat([elu_plus_one(k)[:, None], on_levels], dim=1)
        update = _outer(features, torch.cat([v[:, None], values[:, 0]], dim=1))
        read = memory + update
        if published:  # the past keeps completed blocks only
            completed = (phase + 1 == sizes)[..., None, None, None]
            memory = memory + torch.where(completed, update, 0.0)
        else:
            memory = read
        out = torch.einsum("bhd,bmhde->bmhe", elu_plus_one(q), read)
        streams = out[..., :-1] / out[..., -1:].clamp(min=EPS)
        return streams[:, 0] + levels.mixed(streams[:, None, 1:])[:, 0], memory, blocks

    def _attend_ring(self, q: Tensor, ring: Tensor, tokens: Tensor) -> Tensor:
        """Softmax attention of one query `[B, H, d]` over the ring's slots written so far."""
        keys, values = ring[:, :, 0].to(q.dtype), ring[:, :, 1].to(q.dtype)
        scores = torch.einsum("bhd,bwhd->bhw", q, keys) / self.head_dim**0.5
        written = torch.arange(self.window, device=q.device) <= tokens[:, None]
        weights = scores.masked_fill(~written[:, None], -torch.inf).softmax(dim=-1)
        return torch.einsum("bhw,bwhd->bhd", weights, values)

    def _decode_as_published(
        self, x: Tensor, state: HaleState | None, starts: Tensor | None, return_state: bool
    ) -> tuple[Tensor, HaleState | None]:
        """The original fed prompts through its cache token by token: so does its ``forward`` with a state."""
        if starts is not None:
            return run_by_document(self, x, state, starts, return_state)
        if state is None:
            state = self.init_state(x.shape[0], device=x.device, dtype=x.dtype)
        rows = []
        for row in x.unbind(dim=1):
            y, state = self._advance(row, state)
            rows.append(y)
        return torch.stack(rows, dim=1), state if return_state else None


def _outer(features: Tensor, values: Tensor) -> Tensor:
    """phi(key) [value, 1]ᵀ: `[..., d]` and `[..., e]` to `[..., d, e + 1]`."""
    return features[..., :, None] * nn.functional.pad(values, (0, 1), value=1.0)[..., None, :]
