"""Parts that mixers and blocks share."""

from longwave.modules.feed_forward import FEED_FORWARDS, feed_forward
from longwave.modules.linear import Linear
from longwave.modules.norms import NORMS, norm
from longwave.modules.positions import apply_rotary, rotary_angles, sinusoidal

__all__ = [
    "FEED_FORWARDS",
    "NORMS",
    "Linear",
    "apply_rotary",
    "feed_forward",
    "norm",
    "rotary_angles",
    "sinusoidal",
]
