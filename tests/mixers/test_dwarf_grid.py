"""DWARF's conditions A to D: kernels and field are the formulas, and the published grid shows what is said of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from longwave.mixers import build
from longwave.mixers.base import collecting, concatenate, fork
from longwave.mixers.dwarf_grid import DwarfGrid
from longwave.modules import HeadCoupling
from longwave.verification import Verdict, certify, mixer_subject
from longwave.verification.subjects import redraw

CONDITIONS = ("A", "B", "C", "D")
PARAMETERS = {"A": 13_326_352, "B": 13_326_400, "C": 13_326_784, "D": 13_326_832}
VARIANTS = [
    {"condition": "A", "field_size": 64},
    {"condition": "B", "field_size": 30, "stride": 1},
    {"condition": "C", "field_size": 64, "stride": 3},
    {"condition": "D", "field_size": 64, "stride": 1},
    {"condition": "D", "field_size": 64, "stride": 5},
    {"condition": "D", "field_size": 2},
]


def make(condition, **changes):
    """Three heads of four channels in float64, weights redrawn."""
    mixer = DwarfGrid(12, 3, **{"condition": condition, "field_size": 64, **changes}).double()
    redraw(mixer)
    return mixer


def wave(mixer, head, cell):
    kernel = mixer.kernel
    freq, damp, phase = (rates[head].item() for rates in (kernel.freq, kernel.damp, kernel.phase))
    return math.exp(-(math.log1p(math.exp(damp)) + 0.05) * cell) * math.cos(abs(freq) * cell + phase)


def morlet(level, cell, levels):
    width = 2 ** (levels - 1 - level)
    return math.exp(-(cell**2) / (2 * width**2)) * math.cos(math.pi * cell / width)


def daubechies(level, cell, levels):
    tap, rest = divmod(cell, 2**level)
    return (0.4829629, 0.8365163, 0.2241439, -0.1294095)[tap] if rest == 0 and tap < 4 else 0.0


def divided(values):
    return torch.tensor(values, dtype=torch.float64) / sum(map(abs, values))


def expected_kernel(mixer):
    """`[H, T]` from the formulas, cell by cell."""
    size, rows = mixer.field_size, []
    for head in range(mixer.num_heads):
        if mixer.condition in "AB":
            row = divided([wave(mixer, head, cell) for cell in range(size)])
            if mixer.condition == "B":
                turns = mixer.kernel.disp[head] * (torch.arange(size + 1, dtype=torch.float64) / size) ** 2
                row = torch.fft.irfft(torch.fft.rfft(row, 2 * size) * torch.exp(2j * math.pi * turns), 2 * size)[:size]
        else:
            psi, levels = morlet if mixer.condition == "C" else daubechies, int(math.log2(size))
            bands = [divided([psi(level, cell, levels) for cell in range(size)]) for level in range(levels)]
            row = sum(gain * band for gain, band in zip(mixer.kernel.band_gain[head], bands, strict=True))
            row = row / row.abs().sum()
        rows.append(row)
    return torch.stack(rows).detach()


def expected_field(mixer, u):
    """`[N, H, d]` of deposits `[N, H, d]`, token by token on the token grid."""
    kernel, stride = expected_kernel(mixer), mixer.stride

    def at(token, late):
        ages = [(m, stride * (token - m) - late) for m in range(token + 1)]
        return sum(kernel[:, age, None] * u[m] for m, age in ages if 0 <= age < mixer.field_size)

    rows = []
    for token in range(len(u)):
        row = at(token, 0)
        if mixer.condition == "D" and token:
            row = row + mixer.steepness[:, None] * row * (row - at(token, 1))
        rows.append(row)
    return torch.stack(rows).detach()


class TestTokenGrid:
    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_kernels_are_the_formulas(self, condition):
        mixer = make(condition)
        torch.testing.assert_close(mixer.kernel(torch.float64), expected_kernel(mixer), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("stride", [1, 2, 3, 4])
    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_the_whole_is_the_formulas(self, condition, stride):
        mixer = make(condition, stride=stride)
        x = torch.randn(1, 15, 12, dtype=torch.float64)
        with torch.no_grad():
            _, k, v = mixer.qkv_proj(x[0]).unflatten(-1, (3, 3, 4)).unbind(dim=1)
            field = expected_field(mixer, k.norm(dim=-1, keepdim=True) * v)
            heads = torch.stack(
                [(mixer.coupling.weight[h].softmax(0)[:, None] * field).sum(dim=1) for h in range(3)], 1
            )
            expected = mixer.o_proj(heads.flatten(1) * torch.sigmoid(mixer.gate_proj(x[0])))
            torch.testing.assert_close(mixer(x)[0][0], expected, rtol=0, atol=1e-12)

    def test_the_kernel_ends_and_the_recurrence_does_not(self):
        x = torch.randn(1, 80, 12, dtype=torch.float64)
        changed = x.clone()
        changed[:, 0] += 1
        for condition, moves in (("A", True), ("B", False), ("C", False), ("D", False)):
            mixer = make(condition, damping_floor=0.0)
            moved = (mixer(changed)[0] - mixer(x)[0])[0, 40]
            assert bool(moved.any()) is moves, condition

    @pytest.mark.parametrize("arguments", VARIANTS, ids=str)
    def test_is_certified(self, arguments):
        certificate = certify(mixer_subject("dwarf_grid", arguments), longest=65)
        assert [line for line in certificate.lines if line.verdict is not Verdict.PASS] == []

    @pytest.mark.parametrize("condition", ["B", "C", "D"])
    def test_is_certified_as_it_comes(self, condition):
        assert certify(mixer_subject("dwarf_grid", {"condition": condition}), longest=65).passed

    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_a_key_of_length_zero_has_slope_zero(self, condition):
        mixer = make(condition)
        with torch.no_grad():
            mixer.qkv_proj.weight.zero_()
            mixer.qkv_proj.bias.zero_()
        x = torch.randn(1, 5, 12, dtype=torch.float64, requires_grad=True)
        mixer(x)[0].sum().backward()
        assert bool(x.grad.isfinite().all())

    @torch.no_grad()
    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_compiles_whole(self, condition):
        mixer, x = make(condition), torch.randn(2, 40, 12, dtype=torch.float64)
        options = {"fullgraph": True, "backend": "aot_eager"}
        compiled = torch.compile(mixer, **options)
        y, state = compiled(x, mixer.init_state(2), return_state=True)
        torch.testing.assert_close(y, mixer(x)[0], rtol=0, atol=1e-12)
        found, expected = compiled(x[:, 0], fork(state))[0], mixer(x[:, 0], fork(state))[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_observes_kernel_field_and_gate(self, condition):
        mixer = make(condition)
        with collecting() as seen:
            mixer(torch.randn(1, 7, 12, dtype=torch.float64))
        shapes = {name: tuple(tensors[0].shape) for name, tensors in seen.items()}
        expected = {"dwarf_grid.field": (1, 7, 3, 4), "dwarf_grid.gate": (1, 7, 12), "dwarf_grid.kernel": (3, 64)}
        assert shapes == expected if condition != "A" else shapes.items() <= expected.items()


class TestOriginalGrid:
    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_breaks_exactly_what_it_declares(self, condition):
        subject = mixer_subject("dwarf_grid", {"condition": condition, "grid": "original", "field_size": 64})
        certificate = certify(subject, longest=40)
        assert certificate.passed
        failed = {line.key for line in certificate.lines if line.verdict is Verdict.DECLARED_FAIL}
        assert failed == {"P1", "P2", "P3", "P4"}

    def test_a_large_grid_does_not_leak(self):
        subject = mixer_subject("dwarf_grid", {"grid": "original", "field_size": 600})
        certificate = certify(subject, longest=40)
        assert certificate.passed
        assert {line.key for line in certificate.lines if line.verdict is Verdict.DECLARED_FAIL} == {"P2", "P3", "P4"}

    def test_neighbours_leak_as_measured_on_the_published_code(self):
        mixer = DwarfGrid(1, 1, grid="original", field_size=2048)
        with torch.no_grad():
            ahead = mixer._stretched(torch.eye(2047)[None, :, None])[0, :, 0].diagonal(1)
            share = ahead / mixer.kernel(torch.float32)[0, 0]
        assert int((ahead != 0).sum()) == 2045
        assert float(share.max()) == pytest.approx(0.9995, abs=1e-4)

    def test_neighbours_leak_from_more_tokens_than_half_of_the_cells(self):
        mixer, leaks = DwarfGrid(1, 1, grid="original", field_size=64), {}
        for num_tokens in (2, 31, 32, 33, 64):
            with torch.no_grad():
                weights = mixer._stretched(torch.eye(num_tokens)[None, :, None])[0, :, 0]
            leaks[num_tokens] = weights.triu(1).nonzero().tolist()
        # The last token is clamped one cell early: at a stride of 1 it sits in the cell of the one before it.
        assert leaks == {2: [], 31: [], 32: [], 33: [[31, 32]], 64: [[62, 63]]}

    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_states_of_several_lengths_go_on_as_alone(self, condition):
        mixer = make(condition, grid="original")
        pasts, x = torch.randn(2, 1, 20, 12, dtype=torch.float64), torch.randn(2, 3, 12, dtype=torch.float64)
        states = [mixer(past[:, :seen], return_state=True)[1] for past, seen in zip(pasts, (20, 5), strict=True)]
        y, final = mixer(x, concatenate(states), return_state=True)
        for row, state in enumerate(states):
            torch.testing.assert_close(y[row : row + 1], mixer(x[row : row + 1], state)[0], rtol=0, atol=1e-12)
        assert final.tokens.tolist() == [23, 8]

    def test_decoding_is_the_last_output_of_the_prefix(self):
        mixer = make("A", grid="original")
        x, state = torch.randn(1, 9, 12, dtype=torch.float64), mixer.init_state(1, max_tokens=40)
        for token in range(9):
            y, state = mixer(x[:, token], state)
            torch.testing.assert_close(y, mixer(x[:, : token + 1])[0][:, -1], rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("grid", "learns"), [("token", True), ("original", False)])
    def test_only_the_original_leaves_a_still_dispersion_out(self, grid, learns):
        mixer, plain = make("B", grid=grid), make("A", grid=grid)
        with torch.no_grad():
            mixer.kernel.disp.zero_()
        x = torch.randn(1, 9, 12, dtype=torch.float64)
        plain.load_state_dict({name: value for name, value in mixer.state_dict().items() if name != "kernel.disp"})
        y, _ = mixer(x)
        torch.testing.assert_close(y, plain(x)[0], rtol=0, atol=1e-12)
        y.square().sum().backward()
        assert bool(mixer.kernel.disp.grad.any()) is learns


class TestParameters:
    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_counts_are_the_published_ones(self, condition):
        mixer = DwarfGrid(256, 8, condition=condition)
        rest = 2 * 2 * 256 + 256 * 1024 * 2 + 1024 + 256  # of a block: norms and feed-forward
        count = sum(parameter.numel() for parameter in mixer.parameters())
        assert 32_000 * 256 + 2 * 256 + 6 * (rest + count) == PARAMETERS[condition]

    def test_gate_starts_open_and_coupling_near_the_identity(self):
        mixer = DwarfGrid(64, 8)
        assert torch.equal(mixer.gate_proj.bias, torch.full((64,), 2.0))
        assert torch.equal(DwarfGrid(64, 8, gate_bias=0.0).gate_proj.bias, torch.zeros(64))
        torch.testing.assert_close(mixer.coupling.weight.detach(), torch.eye(8), rtol=0, atol=0.06)

    def test_band_gains_of_d_follow_the_layer(self):
        for layer in range(3):
            mixer = build("dwarf_grid", 16, 2, {"condition": "D"}, layer_index=layer, num_layers=3)
            assert mixer.kernel.band_gain.mean().item() == pytest.approx(0.458 * 0.864**layer)
        for arguments in ({"condition": "D", "rg_init": False}, {"condition": "C"}):
            gains = DwarfGrid(16, 2, **arguments).kernel.band_gain
            assert gains[0, 0].item() == pytest.approx(1.5)

    @pytest.mark.parametrize("grid", ["token", "original"])
    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_does_what_it_declares(self, condition, grid):
        mixer = DwarfGrid(16, 2, condition=condition, grid=grid, field_size=256).double()
        for num_tokens in (24, 200):
            with FlopCounterMode(display=False) as counter:
                mixer(torch.randn(1, num_tokens, 16, dtype=torch.float64))
            assert counter.get_total_flops() == pytest.approx(mixer.flops(num_tokens), rel=0.1)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"condition": "E"}, "condition must be 'A', 'B', 'C' or 'D'"),
            ({"grid": "fine"}, "grid 'token' or 'original', got 'A', 'fine'"),
            ({"field_size": 1}, "field_size at least 2"),
            ({"stride": 0}, "stride at least 1"),
            ({"damping_floor": -0.1}, "damping_floor at least 0"),
            ({"condition": "C", "field_size": 100}, "C needs a power of two as field_size, got 100"),
        ],
        ids=str,
    )
    def test_bad_arguments_are_named(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            DwarfGrid(12, 3, **arguments)


def test_coupling_mixes_heads_by_the_softmax_of_each_row():
    coupling, heads = HeadCoupling(3).double(), torch.randn(2, 5, 3, 4, dtype=torch.float64)
    rows = coupling.weight.softmax(dim=1)
    expected = [sum(rows[h, g] * heads[:, :, g] for g in range(3)) for h in range(3)]
    torch.testing.assert_close(coupling(heads), torch.stack(expected, dim=2))
    torch.testing.assert_close(coupling(heads[:, 0]), torch.stack(expected, dim=2)[:, 0])
