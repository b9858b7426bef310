"""Every mixer with every kind of argument that changes what it computes: one list for all tests of all mixers."""

from __future__ import annotations

import torch

from longwave.mixers import TokenMixer, available, build
from longwave.verification.subjects import redraw
from tests.mixers.test_dwarf import VARIANTS as DWARF
from tests.mixers.test_dwarf_grid import VARIANTS as GRID
from tests.verification.test_certificate import VARIANTS as CERTIFIED

#: Peers: the published forms that one set of arguments each makes.
PEERS = [
    ("gated_linear", {"decay": "head", "expand_v": 2.0, "chunk_size": 8}),
    (
        "gated_linear",
        {"decay": "fixed", "conv_size": 0, "expand_k": 1.0, "expand_v": 2.0, "rotary_base": 10000.0, "chunk_size": 8},
    ),
    ("gated_delta", {"decay": False, "expand_k": 1.0, "expand_v": 1.0, "chunk_size": 8}),
    ("gated_delta", {"negative_eigenvalues": True, "chunk_size": 8}),
    ("softmax", {"gate_bias": 2.0, "num_kv_heads": 1}),
]
FIELDS = [
    ("dwarf_field", {"condition": "H", "n_scales": 3, "skip_offsets": [7]}),
    ("dwarf_field", {"condition": "I", "n_scales": 3}),
    ("dwarf_field", {"n_scales": 3, "tap_order": "reversed", "scale_gain": "query", "gate": "q"}),
]
VARIANTS = [
    *((name, {}) for name in available()),
    *((name, arguments) for name, arguments in CERTIFIED if name in available()),
    ("hale", {"cache": "published", "window": 5, "num_levels": 3}),
    ("hale", {"gate_init": "normal", "window": 5, "num_levels": 2}),
    *PEERS,
    *FIELDS,
    *(("dwarf", arguments) for arguments in DWARF.values()),
    ("dwarf", {"condition": "K", "phantom": "original"}),
    ("dwarf", {"condition": "LRP", "phantom": "original"}),
    *(("dwarf_grid", arguments) for arguments in GRID),
    *(("dwarf_grid", {"condition": c, "grid": "original", "field_size": 64}) for c in "ABCD"),
]
WIDTH, HEADS = 16, 2


def drawn(name: str, arguments: dict, dtype: torch.dtype = torch.float32) -> TokenMixer:
    """The variant, small, with weights that are all different from 0 and from each other."""
    mixer = build(name, WIDTH, HEADS, arguments).to(dtype).eval()
    redraw(mixer)
    return mixer
