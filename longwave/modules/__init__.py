"""Parts that mixers and blocks share."""

from longwave.modules.feed_forward import FEED_FORWARDS, feed_forward
from longwave.modules.gated_heads import ConvolvedHeads, GatedOutput, HeadDecay, MemoryState, head_width
from longwave.modules.head_coupling import HeadCoupling
from longwave.modules.injection import Injection
from longwave.modules.lattice import ScaleGains, lattice, tap_bias
from longwave.modules.linear import Linear
from longwave.modules.local_window import LocalWindow
from longwave.modules.norms import NORMS, LayerNorm, norm
from longwave.modules.positions import apply_rotary, rotary_angles, sinusoidal
from longwave.modules.wave_field import FieldMemory, WaveField

__all__ = [
    "FEED_FORWARDS",
    "NORMS",
    "ConvolvedHeads",
    "FieldMemory",
    "GatedOutput",
    "HeadCoupling",
    "HeadDecay",
    "Injection",
    "LayerNorm",
    "Linear",
    "LocalWindow",
    "MemoryState",
    "ScaleGains",
    "WaveField",
    "apply_rotary",
    "feed_forward",
    "head_width",
    "lattice",
    "norm",
    "rotary_angles",
    "sinusoidal",
    "tap_bias",
]
