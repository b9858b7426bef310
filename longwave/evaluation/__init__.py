"""What a trained model is worth."""

from longwave.evaluation.calibration import calibration
from longwave.evaluation.copying import copying
from longwave.evaluation.loss_by_position import distance_loss, position_loss
from longwave.evaluation.passkey import passkey
from longwave.evaluation.perplexity import LikelihoodScore, score
from longwave.evaluation.protocol import ProtocolResult
from longwave.evaluation.recall import RecallScore, recall
from longwave.evaluation.scores import Score, finite, recorded_loss
from longwave.evaluation.suite import needs_text, print_suite, protocol_names, run_suite
from longwave.evaluation.sweep import temperature_sweep

__all__ = [
    "LikelihoodScore",
    "ProtocolResult",
    "RecallScore",
    "Score",
    "calibration",
    "copying",
    "distance_loss",
    "finite",
    "needs_text",
    "passkey",
    "position_loss",
    "print_suite",
    "protocol_names",
    "recall",
    "recorded_loss",
    "run_suite",
    "score",
    "temperature_sweep",
]
