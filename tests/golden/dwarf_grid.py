"""Golden files of DWARF's conditions A to D: symbols of the method to parameters, forms of the mixer."""

from __future__ import annotations

import torch

from longwave.mixers.dwarf_grid import DwarfGrid
from tests.golden.core import Answers, Golden, collect, load, prefixed

MIXER = {
    "W_qkv": ("qkv_proj.weight",),
    "b_qkv": ("qkv_proj.bias",),
    "W_g": ("gate_proj.weight",),
    "b_g": ("gate_proj.bias",),
    "W_o": ("o_proj.weight",),
    "b_o": ("o_proj.bias",),
    "coupling": ("coupling.weight",),
    "freq": ("kernel.freq",),
    "damp": ("kernel.damp",),
    "phase": ("kernel.phase",),
    "disp": ("kernel.disp",),
    "band_gain": ("kernel.band_gain",),
    "kdv": ("steepness",),
}
#: Tokens of a piece.
PIECE = 5


def mixer(golden: Golden) -> Answers:
    """The mixer in parallel."""
    return answered(golden, golden_mixer(golden), piece=golden.config["N"])


def mixer_in_pieces(golden: Golden) -> Answers:
    """The mixer piece by piece, the state carried; the original has no such form and is run whole."""
    dwarf = golden_mixer(golden)
    return answered(golden, dwarf, piece=PIECE if dwarf.grid == "token" else golden.config["N"])


def golden_mixer(golden: Golden) -> DwarfGrid:
    """The mixer with a file's parameters."""
    config = golden.config
    sizes = {"field_size": config["field_size"], "grid": "original"}
    if config["variant"] == "corrected":
        sizes |= {"stride": config["stride"], "grid": "token"}
    dwarf = DwarfGrid(config["D"], config["H"], condition=config["condition"], **sizes).double()
    load(dwarf, MIXER, golden.parameters)
    return dwarf


def answered(golden: Golden, dwarf: DwarfGrid, piece: int) -> Answers:
    """Output and all gradients, ``piece`` tokens at a time."""
    x, rows, state = golden.leaf("x"), [], None
    for part in x.split(piece, dim=1):
        y, state = dwarf(part, state, return_state=True)
        rows.append(y)
    y = torch.cat(rows, dim=1)
    y.backward(golden.tensors["in.cotangent"])
    gradients = collect(dwarf, MIXER, lambda parameter: parameter.grad)
    return {"out.y": y, "grad.x": x.grad, **prefixed("grad.", gradients)}


def initial_values(golden: Golden) -> Answers:
    """What A to D start from."""
    config, values = golden.config, {}
    for condition in "BC":
        dwarf = DwarfGrid(config["H"], config["H"], condition=condition, field_size=config["field_size_C"]).double()
        dwarf.reset_parameters()
        values |= {
            symbol: getattr(dwarf.kernel, symbol)
            for symbol in ("freq", "damp", "phase", "disp", "band_gain")
            if hasattr(dwarf.kernel, symbol)
        }
    rescaled = []
    for layer in range(4):
        sizes = {"field_size": config["field_size_D"], "layer_index": layer}
        dwarf = DwarfGrid(config["H"], config["H"], condition="D", **sizes).double()
        dwarf.reset_parameters()
        rescaled.append(dwarf.kernel.band_gain)
    values["band_gain_rg_D_layer2"] = rescaled[2]
    values["band_gain_rg_D_means"] = torch.stack([gains.mean() for gains in rescaled])
    return prefixed("out.", values)
