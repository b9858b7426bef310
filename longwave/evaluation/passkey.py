"""Passkey: a word is said once, then filler, then it is asked for.

    the secret word is KEY . <filler, exactly ``distance`` tokens> the secret word is

The parts are encoded by themselves and joined as ids, as published. The key is read from farther than ``distance``:
the query, the last token, stands behind the stop, the filler and the cue. ``read_offset`` counts the real tokens
from the query back to the key (distance + 5 with the reference tokenizer).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from longwave.evaluation.protocol import ProtocolResult, ask_last, beginning, encode_text
from longwave.evaluation.scores import Progress
from longwave.evaluation.texts import (
    CHARACTERS,
    PASSKEY_CUE,
    PASSKEY_FILLER,
    PASSKEY_STOP,
    SEED_WORDS,
    SUITE_WORDS,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["corrected", "suite", "seed"]
FORMS: tuple[Form, ...] = ("corrected", "suite", "seed")
CANDIDATES = 10
SUITE_DISTANCES = (*(2**k for k in range(11)), 1536)
#: The published "D4 taps". None of them is a read offset of the lattice: the key stands 5 tokens farther back.
LABELLED = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)
SEED_DISTANCES = tuple(
    sorted(
        {5, 20, 50, 100, 200, 300, 500, 750, 1000, 1250, 1500, 1700, 1850}
        | {10, 20, 40, 80, 160, 320, 640, 1280}
        | {*LABELLED}
    )
)
CLOSE, FAR = 100, 500
BASELINE_FILLER = 200


@dataclass(frozen=True)
class Pieces:
    """The parts of a sequence, as ids.

    Attributes:
        keys: ids of each word that can be asked for, the first of which is the answer.
        dropped: words that cannot, because they are not one token.
        answers: ``words`` or ``characters``.
    """

    begin: list[int]
    cue: list[int]
    stop: list[int]
    filler: list[int]
    keys: dict[str, list[int]]
    dropped: tuple[str, ...] = ()
    answers: str = "words"

    def sequence(self, word: str | None, distance: int, phase: int = 0) -> list[int]:
        """Ids up to the query; without ``word``, filler and cue alone. The filler begins at its ``phase``-th token."""
        filler = [self.filler[(phase + i) % len(self.filler)] for i in range(distance)]
        said = [] if word is None else [*self.cue, *self.keys[word], *self.stop]
        return [*self.begin, *said, *filler, *self.cue]

    def read_offset(self, word: str, distance: int) -> int:
        """Tokens from the query back to the key's first token."""
        return len(self.sequence(word, distance)) - 1 - len(self.begin) - len(self.cue)


@dataclass(frozen=True)
class _Trial:
    word: str
    others: tuple[str, ...]
    distance: int
    phase: int = 0
    has_key: bool = True


def published_pieces(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> Pieces:
    """All ``words``, however many tokens they are; of several, the first is the answer."""
    cue, stop, filler = (encode_text(tokenizer, text) for text in (PASSKEY_CUE, PASSKEY_STOP, PASSKEY_FILLER))
    return Pieces([], cue, stop, filler, {word: encode_text(tokenizer, f" {word}") for word in words})


def single_token_pieces(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> Pieces:
    """Those of ``words`` that are one token of their own behind the cue; if less than two, single characters.

    Raises:
        ValueError: less than two characters are, too.
    """
    tried: list[str] = []
    for answers, options, cue, joint in (
        ("words", words, PASSKEY_CUE, " "),
        ("characters", CHARACTERS, PASSKEY_CUE, " "),
        ("characters", CHARACTERS, f"{PASSKEY_CUE} ", ""),
    ):
        found: dict[str, list[int]] = {}
        for option in options:
            key = _ids_behind(tokenizer, cue, f"{joint}{option}")
            if len(key) == 1 and key[0] != tokenizer.unk_token_id and key not in found.values():
                found[option] = key
        tried += [option for option in options if option not in found and option not in tried]
        if len(found) > 1:
            stop = _ids_behind(tokenizer, f"{cue}{joint}{next(iter(found))}", PASSKEY_STOP)
            stop = stop or encode_text(tokenizer, PASSKEY_STOP)
            cue_ids, filler = encode_text(tokenizer, cue), encode_text(tokenizer, PASSKEY_FILLER)
            keys = dict(list(found.items())[:CANDIDATES])
            dropped = tuple(option for option in tried if option not in found)
            return Pieces(beginning(tokenizer), cue_ids, stop, filler, keys, dropped, answers)
    raise ValueError("passkey: the tokenizer has less than two words or characters that are one token behind the cue")


def passkey(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    form: Form = "corrected",
    max_length: int = 2048,
    distances: Sequence[int] | None = None,
    trials: int = 10,
    offsets: Collection[int] = (),
    batch_size: int = 16,
    progress: Progress | None = None,
) -> ProtocolResult:
    """Accuracy of the likeliest among the key and up to nine others; a sequence that reaches ``max_length`` is skipped.

    - ``corrected``: words of one token only, ties lose, each repetition of a word has the filler begin elsewhere.
    - ``suite``: as published: ten words whatever their tokens, ties win. The published 50 trials say each five times.
    - ``seed``: as published: each of 20 words against the first nine others at 37 distances, by group, and the same
      words asked for after 200 tokens of filler that never said them. ``trials`` does not apply.

    A record is a trial. ``chance`` is 1 / candidates. With ``offsets``, those that the model's mixers read, it is also
    said whether the read offset is one of them.

    Raises:
        ValueError: an unknown form, no distance fits, or the tokenizer lacks single-token answers.
    """
    if form not in FORMS:
        raise ValueError(f"passkey: unknown form {form!r}; legal: {', '.join(FORMS)}")
    if trials < 1 or (distances is not None and min(distances, default=0) < 1):
        raise ValueError(f"passkey: trials and distances must be at least 1, got {trials} and {distances}")
    if form == "corrected":
        pieces = single_token_pieces(tokenizer, list(dict.fromkeys((*SEED_WORDS, *SUITE_WORDS))))
    else:
        pieces = published_pieces(tokenizer, SUITE_WORDS if form == "suite" else SEED_WORDS)
    wanted = tuple(distances or (SEED_DISTANCES if form == "seed" else SUITE_DISTANCES))
    planned = _trials(form, list(pieces.keys), wanted, trials)
    asked = [trial for trial in planned if len(_sequence(pieces, trial)) < max_length]
    done = {trial.distance for trial in asked if trial.has_key}
    if not done:
        shortest = min(len(_sequence(pieces, trial)) for trial in planned if trial.has_key)
        raise ValueError(f"passkey: the shortest sequence has {shortest} tokens and reaches the length {max_length}")

    def measure(index: int, logits: Tensor) -> dict[str, Any]:
        return _score(pieces, asked[index], logits, ties_win=form != "corrected", offsets=offsets)

    sequences = [_sequence(pieces, trial) for trial in asked]
    records = ask_last(model, sequences, measure, batch_size=batch_size, progress=progress)
    settings = {
        "form": form,
        "answers": pieces.answers,
        "words": list(pieces.keys),
        "dropped_words": list(pieces.dropped),
        "read_offset_beyond_distance": sorted({r["read_offset"] - r["distance"] for r in records if r["has_key"]}),
        "max_length": max_length,
        "skipped_distances": [distance for distance in wanted if distance not in done],
    }
    return ProtocolResult(_aggregates(records, form), tuple(records), settings)


def _trials(form: Form, words: list[str], distances: Sequence[int], trials: int) -> list[_Trial]:
    others = {word: tuple(other for other in words if other != word)[: CANDIDATES - 1] for word in words}
    if form == "seed":
        planned = [_Trial(word, others[word], distance) for distance in distances for word in words]
        return planned + [_Trial(word, others[word], BASELINE_FILLER, has_key=False) for word in words]
    planned = []
    for distance in distances:
        for trial in range(trials):
            turn, index = divmod(trial, len(words))
            phase = turn if form == "corrected" else 0
            planned.append(_Trial(words[index], others[words[index]], distance, phase))
    return planned


def _sequence(pieces: Pieces, trial: _Trial) -> list[int]:
    return pieces.sequence(trial.word if trial.has_key else None, trial.distance, trial.phase)


def _score(
    pieces: Pieces, trial: _Trial, logits: Tensor, *, ties_win: bool, offsets: Collection[int]
) -> dict[str, Any]:
    """A record, from the query's logits `[V]`."""
    log_probabilities = logits.log_softmax(dim=-1)
    target = log_probabilities[pieces.keys[trial.word][0]]
    others = log_probabilities[[pieces.keys[word][0] for word in trial.others]]
    record = {
        "distance": trial.distance,
        "word": trial.word,
        "correct": bool(((target >= others) if ties_win else (target > others)).all()),
        "candidates": 1 + len(trial.others),
        "log_probability": float(target),
        "rank": 1 + int((log_probabilities > target).sum()),
        "has_key": trial.has_key,
    }
    if trial.has_key:
        record["read_offset"] = pieces.read_offset(trial.word, trial.distance)
        if offsets:
            record["on_offset"] = record["read_offset"] in offsets
    return record


def _aggregates(records: Sequence[dict[str, Any]], form: Form) -> dict[str, float]:
    keyed = [record for record in records if record["has_key"]]
    groups: dict[str, list[dict[str, Any]]] = {}
    if form == "seed":
        groups["labelled"] = [record for record in keyed if record["distance"] in LABELLED]
        groups["unlabelled"] = [record for record in keyed if record["distance"] not in LABELLED]
        groups["close"] = [record for record in keyed if record["distance"] <= CLOSE]
        groups["far"] = [record for record in keyed if record["distance"] >= FAR]
        groups["no_key"] = [record for record in records if not record["has_key"]]
    if any("on_offset" in record for record in keyed):
        groups["on_offset"] = [record for record in keyed if record["on_offset"]]
        groups["off_offset"] = [record for record in keyed if not record["on_offset"]]
    found = {**_means(keyed), "chance": fmean(1 / record["candidates"] for record in keyed)}
    for name, group in groups.items():
        found |= {f"{key}@{name}": value for key, value in _means(group).items()}
    for distance in dict.fromkeys(record["distance"] for record in keyed):
        found[f"accuracy@{distance}"] = fmean(r["correct"] for r in keyed if r["distance"] == distance)
    return found


def _means(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    if not records:
        return {}
    means = {key: fmean(record[key] for record in records) for key in ("log_probability", "rank")}
    return {"accuracy": fmean(record["correct"] for record in records), **means}


def _ids_behind(tokenizer: PreTrainedTokenizerBase, before: str, text: str) -> list[int]:
    """Ids that ``text`` adds behind ``before``; none if it changes the ids of ``before``."""
    first, both = encode_text(tokenizer, before), encode_text(tokenizer, before + text)
    return both[len(first) :] if both[: len(first)] == first else []
