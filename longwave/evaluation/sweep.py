"""Temperature sweep: how much a model repeats itself under the usual ways to decode."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from torch import nn

from longwave.evaluation.generation import Sampling, continue_prompt
from longwave.evaluation.protocol import ProtocolResult
from longwave.evaluation.scores import Progress
from longwave.evaluation.text_metrics import distinct, repetition_rate
from longwave.evaluation.texts import OPENINGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SWEEP = (
    Sampling(temperature=0.0),
    Sampling(temperature=0.5, top_p=0.9),
    Sampling(temperature=0.7, top_p=0.9),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(temperature=0.7, top_k=50),
)


def temperature_sweep(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    openings: Sequence[str] = OPENINGS,
    samplings: Sequence[Sampling] = SWEEP,
    max_new_tokens: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProtocolResult:
    """Repeated 4-grams, distinct 2-grams and distinct 4-grams, as shares, of the words written behind each opening.

    Means over the openings of each way to decode. A record is a text; one that ends early counts like any other.

    Raises:
        ValueError: ``max_new_tokens`` is below 1, or an opening fills the positions of the model.
    """
    records: list[dict[str, Any]] = []
    aggregates = {}
    for sampling in samplings:
        for index, opening in enumerate(openings):
            written = continue_prompt(
                model, tokenizer, opening, sampling, max_new_tokens=max_new_tokens, seed=seed + index
            )
            record = {"sampling": str(sampling), "prompt": opening, "text": written.text, "tokens": written.num_tokens}
            records.append(record | repetition(written.text))
            if progress is not None:
                progress(len(records), len(samplings) * len(openings))
        group = records[-len(openings) :]
        for key in ("repeated4", "distinct2", "distinct4"):
            aggregates[f"{key}@{sampling}"] = fmean(record[key] for record in group)
    return ProtocolResult(aggregates, tuple(records), {"max_new_tokens": max_new_tokens, "seed": seed})


def repetition(text: str) -> dict[str, Any]:
    """Number of words of a text, and its rates."""
    words = text.split()
    return {
        "words": len(words),
        "repeated4": repetition_rate(words, 4),
        "distinct2": distinct(words, 2),
        "distinct4": distinct(words, 4),
    }
