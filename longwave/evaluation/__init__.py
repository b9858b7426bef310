"""What a trained model is worth."""

from longwave.evaluation.perplexity import LikelihoodScore, score
from longwave.evaluation.recall import RecallScore, recall
from longwave.evaluation.scores import Score, recorded_loss

__all__ = ["LikelihoodScore", "RecallScore", "Score", "recall", "recorded_loss", "score"]
