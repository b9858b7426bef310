"""Calibration: how sure a model is of its next token, at the end of a prompt and while it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from longwave.evaluation.distributions import entropy_bits, inverse_simpson, top_mass
from longwave.evaluation.generation import Sampling, continue_prompt
from longwave.evaluation.protocol import ProtocolResult, ask_last, beginning, encode_text
from longwave.evaluation.scores import Progress
from longwave.evaluation.texts import NEXT_TOKEN_PROMPTS, OPENINGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLING = Sampling(temperature=1.0, top_p=0.9)
PERCENTILES = (10, 25, 50, 75, 90)


def calibration(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: Sequence[str] = NEXT_TOKEN_PROMPTS,
    openings: Sequence[str] = OPENINGS,
    max_new_tokens: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProtocolResult:
    """Both published forms; distributions are the model's own, before temperature and nucleus.

    - ``last_position``, after each of ``prompts``: entropy in bits, probability of the likeliest token (``top1``) and
      effective vocabulary 1 / Σ p²; means.
    - ``sampled``, at each of up to 200 tokens sampled behind each of ``openings`` (T = 1, top-p 0.9): entropy, top-1,
      total of the five likeliest (``top5``) and effective vocabulary 2^entropy; mean, standard deviation and
      percentiles (linear) over all tokens.

    A record is a prompt, of ``sampled`` with a number for each token.

    Raises:
        ValueError: ``max_new_tokens`` is below 1, or a prompt fills the positions of the model.
    """
    total = len(prompts) + len(openings)
    sequences = [beginning(tokenizer) + encode_text(tokenizer, prompt) for prompt in prompts]
    records: list[dict[str, Any]] = ask_last(
        model, sequences, lambda index, logits: {"prompt": prompts[index], **last_position(logits.softmax(dim=-1))}
    )
    records = [{"form": "last_position", **record} for record in records]
    aggregates = {
        f"{key}@last_position": float(np.mean([record[key] for record in records]))
        for key in ("entropy_bits", "top1", "effective_vocabulary")
        if records
    }
    steps: dict[str, list[float]] = {}
    for index, opening in enumerate(openings):
        written = continue_prompt(
            model, tokenizer, opening, SAMPLING, max_new_tokens=max_new_tokens, seed=seed + index, keep_logits=True
        )
        assert written.logits is not None
        measured = {key: row.tolist() for key, row in each_token(written.logits.double().softmax(dim=-1)).items()}
        records.append({"form": "sampled", "prompt": opening, "text": written.text, **measured})
        steps = {key: steps.get(key, []) + row for key, row in measured.items()}
        if progress is not None:
            progress(len(prompts) + index + 1, total)
    for key, row in steps.items():
        aggregates |= {f"{key}@{name}": value for name, value in summary(row).items()}
    settings = {"sampling": str(SAMPLING), "max_new_tokens": max_new_tokens, "seed": seed}
    return ProtocolResult(aggregates, tuple(records), settings)


def last_position(probabilities: Tensor) -> dict[str, float]:
    """Of one distribution `[V]`."""
    return {
        "entropy_bits": float(entropy_bits(probabilities, epsilon=1e-10)),
        "top1": float(probabilities.max()),
        "effective_vocabulary": float(inverse_simpson(probabilities)),
    }


def each_token(probabilities: Tensor) -> dict[str, Tensor]:
    """Of distributions `[N, V]`, `[N]` each."""
    entropy = entropy_bits(probabilities)
    return {
        "entropy_bits": entropy,
        "top1": top_mass(probabilities, 1),
        "top5": top_mass(probabilities, 5),
        "effective_vocabulary": entropy.exp2(),
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (of the population) and percentiles, interpolated linearly."""
    found = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    return found | {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}
