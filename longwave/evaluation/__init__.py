"""What a trained model is worth."""

from longwave.evaluation.perplexity import LikelihoodScore, score

__all__ = ["LikelihoodScore", "score"]
