"""Copying: the model is shown what a copy is, and asked for one."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from torch import nn

from longwave.evaluation.generation import Sampling, continue_prompt
from longwave.evaluation.protocol import ProtocolResult
from longwave.evaluation.scores import Progress
from longwave.evaluation.text_metrics import edit_distance, first_word
from longwave.evaluation.texts import COPY_PROMPTS, COPY_TEMPLATES, COPY_WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLING = Sampling(temperature=0.1, top_p=0.9)
#: Characters behind the word that the few-shot edit distance still reads.
MARGIN = 5


def copying(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    templates: Sequence[str] = COPY_TEMPLATES,
    words: Sequence[str] = COPY_WORDS,
    prompts: Sequence[tuple[str, str]] = COPY_PROMPTS,
    max_new_tokens: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProtocolResult:
    """Both published forms, with 20 new tokens at T = 0.1 and top-p 0.9.

    - ``few_shot``, each word in each template (``{word}``): ``exact`` if the text begins with it, whatever the case;
      ``edit_distance`` of its first len + 5 characters, so a copy that goes on is up to 5 away.
    - ``prompts``, each with its answer: the text's first word without punctuation is ``exact``, or the text begins
      with the answer (``prefix``); ``edit_distance`` of that word.

    A record is a prompt.

    Raises:
        ValueError: ``max_new_tokens`` is below 1, or a prompt fills the positions of the model.
    """
    asked = [("few_shot", template.format(word=word), word) for template in templates for word in words]
    asked += [("prompts", prompt, answer) for prompt, answer in prompts]
    scores = {"few_shot": score_few_shot, "prompts": score_answer}
    records: list[dict[str, Any]] = []
    for index, (form, prompt, answer) in enumerate(asked):
        text = continue_prompt(
            model, tokenizer, prompt, SAMPLING, max_new_tokens=max_new_tokens, seed=seed + index
        ).text
        records.append({"form": form, "prompt": prompt, "answer": answer, "text": text, **scores[form](text, answer)})
        if progress is not None:
            progress(index + 1, len(asked))
    aggregates = {}
    for form in scores:
        group = [record for record in records if record["form"] == form]
        for key in ("exact", "prefix", "edit_distance"):
            if group and key in group[0]:
                aggregates[f"{key}@{form}"] = fmean(record[key] for record in group)
    return ProtocolResult(
        aggregates, tuple(records), {"sampling": str(SAMPLING), "max_new_tokens": max_new_tokens, "seed": seed}
    )


def score_few_shot(text: str, word: str) -> dict[str, Any]:
    """``exact`` and ``edit_distance`` of a few-shot copy, both without leading white space and case."""
    text, word = text.strip().casefold(), word.casefold()
    return {"exact": text.startswith(word), "edit_distance": edit_distance(text[: len(word) + MARGIN], word)}


def score_answer(text: str, answer: str) -> dict[str, Any]:
    """``found``, ``exact``, ``prefix`` and ``edit_distance`` of an answer in the first word of a text."""
    found = first_word(text)
    return {
        "found": found,
        "exact": found == answer,
        "prefix": text.strip().startswith(answer),
        "edit_distance": edit_distance(found, answer),
    }
