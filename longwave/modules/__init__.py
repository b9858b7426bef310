"""Parts that mixers and blocks share."""

from longwave.modules.feed_forward import FEED_FORWARDS, feed_forward
from longwave.modules.gated_heads import ConvolvedHeads, GatedOutput, HeadDecay, MemoryState, head_width
from longwave.modules.linear import Linear
from longwave.modules.norms import NORMS, norm
from longwave.modules.positions import apply_rotary, rotary_angles, sinusoidal

__all__ = [
    "FEED_FORWARDS",
    "NORMS",
    "ConvolvedHeads",
    "GatedOutput",
    "HeadDecay",
    "Linear",
    "MemoryState",
    "apply_rotary",
    "feed_forward",
    "head_width",
    "norm",
    "rotary_angles",
    "sinusoidal",
]
