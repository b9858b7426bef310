"""DWARF's conditions A to D: what tokens deposit spreads as a wave, by one causal kernel for each head.

    u = |k| v;   f_n = sum_{m<=n} kappa[s (n - m)] u_m;   y = W_o (coupled heads of f * sigmoid(W_g x + b))

s is the stride of tokens on a grid of cells, T the cells that a kernel covers (``field_size``). The kernels, each
divided by its L1 norm:

* A: a damped cosine, kappa_t = e^(-alpha t) cos(omega t + phi), alpha = softplus(damp) + floor, omega = |freq|.
  As a recurrence it is S_n = e^((-alpha + i omega) s) S_{n-1} + u_n, f_n = Re(e^(i phi) S_n) / norm: the state is
  one complex number for each channel, and nothing is cut off at T.
* B: A, then dispersed: each frequency F of T is turned by 2 pi disp (F/T)².
* C: a mixture of Morlet wavelets exp(-t²/2w²) cos(pi t/w) of widths w = T/2, T/4, ... 1.
* D: a mixture of the Daubechies-4 filter stretched by 1, 2, 4, ...; afterwards the field steepens as in the
  Korteweg-de Vries equation, F <- F + alpha F (F - F one cell earlier).

The state of B to D is a ring of the deposits within the kernel's support. Queries are projected, as published, and
read by nothing.

``grid="original"`` is the published form: the N tokens of the sequence are stretched over T cells, so that the
stride depends on N, and deposits and reads are interpolated between two cells. Every output then depends on the
length; beyond T/2 tokens neighbours share a cell, and a token reads the next one. It has no recurrence: a piece
recomputes its whole document. The published runs also began with ``gate_bias=0``.

Symbols of the method and names here: W_qkv W_g W_o -> {qkv,gate,o}_proj; C -> coupling; freq, damp, phase, disp and
band_gain -> kernel; alpha of D -> steepness.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longwave.mixers.base import (
    SMALLEST_BUFFER,
    Declaration,
    TokenMixer,
    buffer_size,
    observe,
    run_by_document,
)
from longwave.modules import HeadCoupling, Linear
from longwave.ops import Ring, document_positions, empty_ring, without_autocast
from longwave.ops.documents import expand_mask
from longwave.ops.grid_field import FILTER_CHUNK, WAVE_CHUNK, causal_filter, damped_wave

STEEPNESS = 0.05
EPS = 1e-8
D4 = (0.4829629, 0.8365163, 0.2241439, -0.1294095)
#: Tokens up to which certificates look: the published grid's leak is declared if it shows below.
CERTIFIED = 257


class DwarfGridState(NamedTuple):
    """State of one layer, float32 or wider, and ``tokens`` `[B]`.

    ``field`` is `[B, H, 2, d]` for A, the real and the imaginary part of S; `[B, R, H, d]` for B to D, a ring of
    deposits, R the tokens that a kernel covers, the slot t mod R; for the original grid the document's deposits
    `[B, R, H, d]`, row t in slot t, R doubling as it fills.
    """

    field: Tensor
    tokens: Tensor


class WaveKernel(nn.Module):
    """The damped cosine of A, dispersed for B.

    Args:
        num_heads: H.
        size: T, cells.
        floor: least damping, in 1 / cells.
        dispersive: B.
        skip_still: as published, a dispersion within 1e-8 for all heads is left out, and gets no gradient.
    """

    def __init__(self, num_heads: int, size: int, floor: float, *, dispersive: bool, skip_still: bool) -> None:
        super().__init__()
        self.size, self.floor, self.skip_still = size, floor, skip_still
        self.freq, self.damp, self.phase = (nn.Parameter(torch.empty(num_heads)) for _ in range(3))
        self.disp = nn.Parameter(torch.empty(num_heads)) if dispersive else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Frequencies from 0.1 to 10, damping logits from -2 to 0, phases around the circle, dispersion 1."""
        heads, exact = len(self.freq), {"dtype": torch.float64, "device": "cpu"}
        self.freq.copy_(torch.logspace(-1, 1, heads, **exact))
        self.damp.copy_(torch.linspace(-2, 0, heads, **exact))
        self.phase.copy_(2 * math.pi * torch.arange(heads, **exact) / heads)
        if self.disp is not None:
            nn.init.ones_(self.disp)

    def forward(self, dtype: torch.dtype, stride: int | None = None) -> Any:
        """kappa, `[H, T]`; with a stride, pole and read `[2, H]` of A for :func:`longwave.ops.grid_field.damped_wave`.

        A row of the recurrence is ``stride`` cells.
        """
        damp, freq, phase = (rate.to(dtype) for rate in (self.damp, self.freq.abs(), self.phase))
        damping = F.softplus(damp) + self.floor
        cells = torch.arange(self.size, device=phase.device, dtype=dtype)
        wave = torch.exp(-damping[:, None] * cells) * torch.cos(freq[:, None] * cells + phase[:, None])
        if stride is not None:
            norm = wave.abs().sum(dim=1).clamp(min=EPS)
            return stride * torch.stack([damping, freq]), torch.stack([phase.cos(), phase.sin()]) / norm
        kernel = _normalised(wave)
        if self.disp is None:
            return kernel
        frequencies = torch.arange(self.size + 1, device=kernel.device, dtype=dtype) / self.size
        angles = 2 * math.pi * self.disp[:, None].to(dtype) * frequencies.square()
        spectrum = torch.fft.rfft(kernel, 2 * self.size) * torch.polar(torch.ones_like(angles), angles)
        dispersed = torch.fft.irfft(spectrum, 2 * self.size)[:, : self.size]
        return torch.where(self.disp.abs().amax() > EPS, dispersed, kernel) if self.skip_still else dispersed


class BandKernel(nn.Module):
    """kappa_h = sum_s band_gain_hs psi_s, the wavelets of C or D with L1 norm 1.

    Args:
        num_heads: H.
        size: T, a power of two; it has log2 T bands.
        wavelet: ``"morlet"``, the widest first, or ``"d4"``, the narrowest first.
        mean: what the gains' mean is made at the start; ``None`` for no rescaling.
    """

    def __init__(self, num_heads: int, size: int, wavelet: Literal["morlet", "d4"], mean: float | None) -> None:
        super().__init__()
        self.size, self.wavelet, self.mean = size, wavelet, mean
        self.band_gain = nn.Parameter(torch.empty(num_heads, size.bit_length() - 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Bumps around a band that rises with the head, on a floor of 0.5."""
        (heads, levels), exact = self.band_gain.shape, {"dtype": torch.float64, "device": "cpu"}
        bands, centres = torch.arange(levels, **exact), torch.linspace(0, levels - 1, heads, **exact)[:, None]
        gains = torch.exp(-((bands - centres) / (levels / 4)).square() / 2) + 0.5
        self.band_gain.copy_(gains if self.mean is None else gains * (self.mean / gains.mean()))

    def forward(self, dtype: torch.dtype) -> Tensor:
        """kappa, `[H, T]`."""
        with without_autocast(self.band_gain.device.type):
            return _normalised(self.band_gain.to(dtype) @ _normalised(self._wavelets(dtype)))

    @property
    def cells(self) -> list[int]:
        """Cells where kappa of D is not 0 by construction, ascending: {tau 2^s}."""
        levels = self.size.bit_length() - 1
        return sorted({tap << level for level in range(levels) for tap in range(4) if tap << level < self.size})

    def _wavelets(self, dtype: torch.dtype) -> Tensor:
        """`[levels, T]`."""
        device, levels = self.band_gain.device, self.band_gain.shape[1]
        cells = torch.arange(self.size, device=device)
        if self.wavelet == "d4":
            taps, steps = torch.tensor(D4, device=device, dtype=dtype), 2 ** torch.arange(levels, device=device)
            index = cells // steps[:, None]
            return torch.where((cells % steps[:, None] == 0) & (index < 4), taps[index.clamp(max=3)], 0.0)
        widths = 2.0 ** torch.arange(levels - 1, -1, -1, device=device, dtype=dtype)
        scaled = cells.to(dtype) / widths[:, None]
        return torch.exp(-scaled.square() / 2) * torch.cos(math.pi * scaled)


class DwarfGrid(TokenMixer):
    """DWARF token mixer, conditions A to D.

    Args:
        hidden_size: D.
        num_heads: H, a divisor of D.
        condition: the kernel, ``"A"`` to ``"D"``; see the file.
        grid: ``"token"``, a fixed stride, or ``"original"``.
        field_size: T, cells of a kernel (and of the original's grid), at least 2; a power of two for C and D.
        stride: s, cells from a token to the next; the original grid has its own.
        damping_floor: least damping of A and B, in 1 / cells.
        gate_bias: the gate starts at sigmoid(gate_bias).
        rg_init: D only: band gains start with the mean 0.458 * 0.864^layer instead of about 0.9.
        layer_index: the layer, for ``rg_init``.

    Raises:
        ValueError: an argument is outside its range, or D is not divisible by H.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        condition: Literal["A", "B", "C", "D"] = "A",
        grid: Literal["token", "original"] = "token",
        field_size: int = 4096,
        stride: int = 2,
        damping_floor: float = 0.05,
        gate_bias: float = 2.0,
        rg_init: bool = True,
        layer_index: int = 0,
    ) -> None:
        super().__init__(hidden_size, num_heads)
        if condition not in ("A", "B", "C", "D") or grid not in ("token", "original"):
            raise ValueError(
                "dwarf_grid: condition must be 'A', 'B', 'C' or 'D' and grid 'token' or 'original', "
                f"got {condition!r}, {grid!r}"
            )
        if field_size < 2 or stride < 1 or damping_floor < 0:
            raise ValueError(
                "dwarf_grid needs field_size at least 2, stride at least 1 and damping_floor at least 0; "
                f"got {field_size}, {stride}, {damping_floor}"
            )
        if condition in "CD" and field_size & (field_size - 1):
            raise ValueError(f"dwarf_grid: condition {condition} needs a power of two as field_size, got {field_size}")
        self.condition, self.grid, self.field_size, self.stride = condition, grid, field_size, stride
        self.gate_bias = gate_bias
        self.qkv_proj = Linear(hidden_size, 3 * hidden_size)
        self.gate_proj = Linear(hidden_size, hidden_size)
        self.o_proj = Linear(hidden_size, hidden_size)
        self.coupling = HeadCoupling(num_heads)
        self.kernel: Any
        if condition in "AB":
            forms = {"dispersive": condition == "B", "skip_still": grid == "original"}
            self.kernel = WaveKernel(num_heads, field_size, damping_floor, **forms)
        else:
            mean = 0.458 * 0.864**layer_index if condition == "D" and rg_init else None
            self.kernel = BandKernel(num_heads, field_size, "morlet" if condition == "C" else "d4", mean)
        self.steepness = nn.Parameter(torch.empty(num_heads)) if condition == "D" else None
        self.offsets, self.support = None, -(-field_size // stride)
        if condition == "D":
            cells = self.kernel.cells
            self.offsets = [tuple((t + late) // stride for t in cells if (t + late) % stride == 0) for late in (0, 1)]
            self.support = max(max(offsets, default=0) for offsets in self.offsets) + 1
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gate_proj.bias, self.gate_bias)
        self.coupling.reset_parameters()
        self.kernel.reset_parameters()
        if self.steepness is not None:
            nn.init.constant_(self.steepness, STEEPNESS)

    def declaration(self) -> Declaration:
        if self.grid == "token":
            edges = (WAVE_CHUNK,) if self.condition == "A" else (FILTER_CHUNK, self.support)
            return Declaration(growth="constant", edges=edges)
        breaks = {
            "P2": "tokens are stretched over the grid: the stride, and with it every output, depends on the length",
            "P3": "it has no incremental form: a piece recomputes its document at the stride of what is known by then",
            "P4": "a document that goes on in another piece changes its stride there",
        }
        crowded = (self.field_size + 1) // 2
        if crowded < CERTIFIED:
            breaks["P1"] = f"beyond {crowded} tokens neighbours share a cell, and a token reads the next one"
        return Declaration(growth="linear", edges=(crowded, SMALLEST_BUFFER), breaks=breaks)

    def forward(
        self,
        x: Tensor,
        state: DwarfGridState | None = None,
        *,
        starts: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, DwarfGridState | None]:
        if self.grid == "original":
            return self._recompute(x, state, starts, return_state)
        u, tokens = self._deposits(x), None if state is None else state.tokens
        positions = document_positions(*x.shape[:2], tokens=tokens, starts=starts, device=x.device)
        if self.condition == "A":
            wave, past = self.kernel(u.dtype, self.stride), None if state is None else state.field
            found: Any = damped_wave(u, *wave, initial_state=past, starts=starts, return_state=True)
            return self._read(x, found[0]), DwarfGridState(found[1], positions[:, -1] + 1) if return_state else None
        ring = None if state is None else Ring(*state)
        given = {"initial_state": ring, "starts": starts}
        sums = [causal_filter(u, taps, offsets=offsets, **given) for taps, offsets in self._filters(u.dtype)]
        y = self._read(x, self._steepened(sums, positions))
        if not return_state:
            return y, None
        ring = ring or empty_ring(x.shape[0], self.support, u.shape[2:], u)
        return y, DwarfGridState(*ring.extended(u[:, -self.support :].to(ring.rows.dtype), positions))

    def step(self, x: Tensor, state: DwarfGridState) -> tuple[Tensor, DwarfGridState]:
        if self.grid == "original" or self.condition == "A":
            return super().step(x, state)
        u, (ring, tokens) = self._deposits(x), state
        batch, slots = torch.arange(x.shape[0], device=x.device)[:, None], tokens[:, None]
        ring[batch, slots % self.support] = u[:, None].to(ring.dtype)
        sums = []
        for taps, offsets in self._filters(u.dtype):
            ages = torch.tensor(range(self.support) if offsets is None else offsets, dtype=torch.int64, device=x.device)
            deposits = ring[batch, (slots - ages) % self.support].to(u.dtype)
            with without_autocast(x.device.type):
                sums.append(torch.einsum("hr,brhd->bhd", taps, deposits))
        return self._read(x, self._steepened(sums, tokens)), DwarfGridState(ring, tokens + 1)

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None) -> DwarfGridState:
        wide, shape = torch.promote_types(dtype, torch.float32), self._field_shape(max_tokens or 0)
        field = torch.zeros(batch_size, *shape, device=device, dtype=wide)
        return DwarfGridState(field, torch.zeros(batch_size, dtype=torch.int64, device=device))

    def state_bytes(self, num_tokens: int, dtype: torch.dtype = torch.float32) -> int:
        return math.prod(self._field_shape(num_tokens)) * torch.promote_types(dtype, torch.float32).itemsize + 8

    def flops(self, num_tokens: int) -> int:
        D, H, T = self.hidden_size, self.num_heads, self.field_size
        total = num_tokens * D * (10 * D + 2 * H)
        if self.condition in "CD":
            total += 2 * H * (T.bit_length() - 1) * T
        if self.grid == "original":
            return total + _filter_flops(T, T, D)
        if self.condition == "A":
            whole, rest = divmod(num_tokens, WAVE_CHUNK)
            return total + 2 * D * (whole * (WAVE_CHUNK + 2) ** 2 + (rest + 2) ** 2 * (rest > 0))
        return total + (_filter_flops(num_tokens, self.support, D) if self.condition != "D" else 0)

    def _field_shape(self, num_tokens: int) -> tuple[int, int, int]:
        """Of the state's ``field``, the batch aside."""
        if self.grid == "original":
            return buffer_size(num_tokens), self.num_heads, self.head_dim
        if self.condition == "A":
            return self.num_heads, 2, self.head_dim
        return self.support, self.num_heads, self.head_dim

    def _deposits(self, x: Tensor) -> Tensor:
        """u = |k| v, `[..., H, d]` of `[..., D]`, float32 or wider."""
        _, k, v = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(dim=-3)
        wide = torch.promote_types(v.dtype, torch.float32)
        return torch.linalg.vector_norm(k.to(wide), dim=-1, keepdim=True) * v.to(wide)

    def _read(self, x: Tensor, field: Tensor) -> Tensor:
        """The output `[..., D]` for ``x`` `[..., D]` and its field `[..., H, d]`."""
        heads = self.coupling(observe("dwarf_grid.field", field).to(x.dtype))
        gate = observe("dwarf_grid.gate", torch.sigmoid(self.gate_proj(x)))
        return self.o_proj(heads.flatten(-2) * gate)

    def _filters(self, dtype: torch.dtype) -> list[tuple[Tensor, tuple[int, ...] | None]]:
        """Taps `[H, R]` and how many tokens back: of the field and, for D, of the field one cell earlier."""
        kernel = observe("dwarf_grid.kernel", self.kernel(dtype))
        if self.offsets is None:
            return [(kernel[:, :: self.stride], None)]
        ages = [torch.tensor(offsets, dtype=torch.int64, device=kernel.device) for offsets in self.offsets]
        return [(kernel[:, self.stride * ages[late] - late], self.offsets[late]) for late in (0, 1)]

    def _steepened(self, sums: list[Any], positions: Tensor) -> Tensor:
        """F + alpha F (F - F one cell earlier), the difference being 0 at the first position."""
        if self.steepness is None:
            return sums[0]
        now, before = sums
        change = torch.where(expand_mask(positions == 0, now), 0.0, now - before)
        return now + self.steepness[:, None].to(now.dtype) * now * change

    def _recompute(
        self, x: Tensor, state: DwarfGridState | None, starts: Tensor | None, return_state: bool
    ) -> tuple[Tensor, DwarfGridState | None]:
        """The original grid, for the documents of a batch that are as long as each other."""
        if starts is None and state is not None and bool((state.tokens != state.tokens[0]).any()):
            starts = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        if starts is not None:
            return run_by_document(self, x, state, starts, return_state)
        u, seen = self._deposits(x), 0 if state is None else int(state.tokens[0])
        if state is not None:
            u = torch.cat([state.field[:, :seen].to(u.dtype), u], dim=1)
        y = self._read(x, self._stretched(u)[:, seen:])
        if not return_state:
            return y, None
        tokens = torch.full((x.shape[0],), u.shape[1], dtype=torch.int64, device=x.device)
        return y, DwarfGridState(F.pad(u, (0, 0, 0, 0, 0, buffer_size(u.shape[1]) - u.shape[1])), tokens)

    def _stretched(self, u: Tensor) -> Tensor:
        """The field `[B, N, H, d]` of N tokens stretched over the grid, between two cells both ways."""
        last, step = self.field_size - 1, max(u.shape[1] - 1, 1)
        places = (torch.arange(u.shape[1], device=u.device) * last).clamp(max=(last - 1) * step)  # in cells / step
        cells, share = places // step, (places % step).to(u.dtype)[:, None, None] / step
        grid = u.new_zeros(u.shape[0], self.field_size, *u.shape[2:])
        grid = grid.index_add(1, cells, (1 - share) * u).index_add(1, cells + 1, share * u)
        field: Any = causal_filter(grid, self.kernel(u.dtype))
        field = self._steepened([field, field.roll(1, dims=1)], torch.arange(self.field_size, device=u.device)[None])
        return (1 - share) * field.index_select(1, cells) + share * field.index_select(1, cells + 1)


def _normalised(kernels: Tensor) -> Tensor:
    """Each row over its L1 norm."""
    return kernels / kernels.abs().sum(dim=-1, keepdim=True).clamp(min=EPS)


def _filter_flops(num_rows: int, num_taps: int, width: int) -> int:
    """Of :func:`longwave.ops.grid_field.causal_filter` with a dense kernel."""
    chunk = min(FILTER_CHUNK, num_rows)
    count = -(-num_rows // chunk)
    diagonals = min(-(-(num_taps - 1) // chunk), count - 1)
    pairs = sum(count - back for back in range(diagonals + 1))
    return 2 * pairs * chunk**2 * width
