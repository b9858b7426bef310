"""The run file: one YAML document that says everything about a training run.

Validated as a whole: every complaint at once, each with the path, what was got and what is legal.
"""

from __future__ import annotations

import difflib
import os.path
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from longwave.data import DataSection, vocabulary_size
from longwave.model import LongwaveConfig, LongwaveForCausalLM
from longwave.training.values import leaves, parse_override, parse_yaml, read_yaml, set_value, shown, unfit_numbers

SET_BY_TOKENIZER = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache"}


Beta = Annotated[float, Field(ge=0, lt=1)]
#: Far above what anybody needs, and low enough that no product of them overflows.
MOST, MOST_TOKENS, LARGEST_SEED = 2**31 - 1, 10**15, 2**32 - 1
MOST_OF_MODEL = {
    "hidden_size": 2**20,
    "num_hidden_layers": 1024,
    "num_heads": 2**20,
    "intermediate_size": 2**24,
    "max_position_embeddings": MOST,
}


class Section(BaseModel):
    """A part of a run file: unknown keys are refused; a number written as text is that number, and finite."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class TrainingSection(Section):
    """Optimisation, counted in optimizer steps.

    Attributes:
        tokens: tokens to train on, rounded up to whole steps.
        batch_size: rows of a step, over all devices and parts.
        accumulation: parts that a device's share of a step is split into, one after the other.
        optimizer: ``adamw``, or ``muon`` for the matrices of the body with AdamW for the rest.
        learning_rate: peak.
        minimum_learning_rate: at the end of the cosine or line.
        warmup_steps: steps of linear growth from 0.
        schedule: what follows the warm-up.
        weight_decay: on weights of two or more dimensions.
        betas: of AdamW.
        clip: largest global gradient norm; ``null`` for no clipping.
        precision: of the products; ``bfloat16`` is autocast, weights stay float32.
        carry_state: read the text in order and carry each row's state into the next step's rows, without
            gradient (truncated back-propagation through time); not with a task.
        gradient_checkpointing: recompute each block's activations in the backward pass.
        compile: ``torch.compile`` the model.
        device: ``auto`` takes a GPU where there is one.
        save_every_steps: steps between checkpoints; 0 for none.
        keep_checkpoints: newest checkpoints that are kept.
        tensorboard: write TensorBoard event files too.
        seed: of the weights, the order of the rows, dropout, and a task's training rows.
    """

    tokens: int = Field(1_000_000, ge=1, le=MOST_TOKENS)
    batch_size: int = Field(16, ge=1, le=MOST)
    accumulation: int = Field(1, ge=1, le=MOST)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    minimum_learning_rate: float = Field(1e-5, ge=0)
    warmup_steps: int = Field(50, ge=0, le=MOST)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: float | None = Field(1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    carry_state: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every_steps: int = Field(0, ge=0, le=MOST)
    keep_checkpoints: int = Field(2, ge=1, le=MOST)
    tensorboard: bool = False
    seed: int = Field(0, ge=0, le=LARGEST_SEED)

    @model_validator(mode="after")
    def _falling_rate(self) -> TrainingSection:
        if self.minimum_learning_rate > self.learning_rate:
            raise ValueError(
                f"minimum_learning_rate {self.minimum_learning_rate} is above learning_rate {self.learning_rate}"
            )
        return self

    @field_validator("device")
    @classmethod
    def _present_device(cls, device: str) -> str:
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("cuda was asked for, but PyTorch finds no CUDA device; legal here: auto, cpu")
        return device

    @field_validator("tensorboard")
    @classmethod
    def _installed_tensorboard(cls, wanted: bool) -> bool:
        if wanted and find_spec("tensorboard") is None:
            raise ValueError("tensorboard is not installed; install longwave[track] or set false")
        return wanted


class EvaluationSection(Section):
    """Scoring on the validation text, or on a task's scored rows.

    Attributes:
        every_steps: steps between scores; 0 for the end only.
        batch_size: rows of a batch.
        patience: scores without a better one after which training stops; ``null`` for no early stop.
        keep_best: save the best-scored weights instead of the last.
        samples: prompts that are continued at every score, into ``samples.jsonl``.
    """

    every_steps: int = Field(0, ge=0, le=MOST)
    batch_size: int = Field(16, ge=1, le=MOST)
    patience: int | None = Field(None, ge=1, le=MOST)
    keep_best: bool = False
    samples: list[str] = []

    @model_validator(mode="after")
    def _scores_to_act_on(self) -> EvaluationSection:
        wanted = [name for name in ("patience", "keep_best", "samples") if getattr(self, name)]
        if wanted and not self.every_steps:
            raise ValueError(f"{wanted[0]} needs scores during training: set every_steps")
        return self


def _model_section() -> type[Section]:
    """The model's own configuration, as a section: the fields of :class:`LongwaveConfig` and their defaults."""
    own = LongwaveConfig.__annotations__.items()
    fields: dict[str, Any] = {
        name: (Annotated[hint, Field(le=MOST_OF_MODEL.get(name))], getattr(LongwaveConfig, name))
        for name, hint in own
        if name not in SET_BY_TOKENIZER
    }
    section = create_model("ModelSection", __base__=Section, **fields)
    section.__doc__ = LongwaveConfig.__doc__
    return section


ModelSection = _model_section()


class Run(Section):
    """A run file.

    Attributes:
        description: one line for ``longwave list``.
        published: numbers that the original authors report for this run, name to value.
        model: sizes and mixers.
        data: text or a task.
        tokenizer: ``byte``, ``bpe:SIZE`` or another of text; a task has its own.
        training: optimisation.
        evaluation: scoring.
    """

    description: str = ""
    published: dict[str, float | str] = {}
    model: ModelSection = ModelSection()  # type: ignore[valid-type]
    data: DataSection = DataSection()
    tokenizer: str = "byte"
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()

    @field_validator("tokenizer")
    @classmethod
    def _known_tokenizer(cls, kind: str, info: ValidationInfo) -> str:
        vocabulary_size(kind)
        default = cls.model_fields["tokenizer"].default
        if _has_task(info) and kind != default:
            raise ValueError(f"a task has a tokenizer of its own: leave tokenizer at {default}, got {kind!r}")
        return kind

    @field_validator("training")
    @classmethod
    def _rows_with_a_past(cls, training: TrainingSection, info: ValidationInfo) -> TrainingSection:
        if _has_task(info) and training.carry_state:
            raise ValueError("carry_state needs rows that continue each other, but those of a task do not; set false")
        return training

    def vocabulary_size(self) -> int:
        """Tokens of the task, or of the tokenizer as far as its name tells."""
        return self.data.task.vocabulary if self.data.task else vocabulary_size(self.tokenizer)

    def model_configuration(self, vocab_size: int, end_of_text: int = 0) -> LongwaveConfig:
        """The model's configuration once the tokenizer is known."""
        return LongwaveConfig(
            vocab_size=vocab_size,
            bos_token_id=end_of_text,
            eos_token_id=end_of_text,
            pad_token_id=end_of_text,
            **self.model.model_dump(),
        )


def _has_task(info: ValidationInfo) -> bool:
    """Whether the data section of a run being validated is of a task."""
    data = info.data.get("data")
    return data is not None and data.task is not None


def preset_names() -> list[str]:
    """Names of the run files that come with the package."""
    return sorted(
        path.name.removesuffix(".yaml") for path in files("longwave.presets").iterdir() if path.name.endswith(".yaml")
    )


def load_run(source: str, overrides: Sequence[str] = ()) -> Run:
    """Read a run file or preset, apply ``path.to.key=value`` overrides, and check the whole.

    Raises:
        ValueError: the file cannot be read, or anything in it is illegal; one line for each complaint.
    """
    values = read_values(source)
    for override in overrides:
        set_value(values, *parse_override(override))
    return check_run(values, source)


def check_run(values: Mapping[str, Any], source: str) -> Run:
    """The run that ``values`` describe; ``source`` is what complaints call it.

    Raises:
        ValueError: anything is illegal; one line for each complaint.
    """
    found = dict([*unfit_numbers(values), *_misplaced_truths(Run, values)])
    complaints = [f"{path}: {complaint}" for path, complaint in found.items()]
    try:
        run = Run.model_validate(values)
    except ValidationError as error:
        complaints += [_sentence(item) for item in error.errors() if not _is_within(item["loc"], found)]
        run = _model_alone(values)
    if run is not None:
        complaints += _model_complaints(run)
    if complaints:
        raise ValueError("\n".join(f"{source}: {complaint}" for complaint in complaints))
    return run


def _model_alone(values: Mapping[str, Any]) -> Run | None:
    """A run of which only the model is as given; ``None`` if that does not hold either."""
    try:
        return Run.model_validate({"model": values.get("model", {})})
    except ValidationError:
        return None


def _is_within(loc: Sequence[str | int], paths: Collection[str]) -> bool:
    """Whether ``loc`` is one of the dotted ``paths``, or a part of what is there."""
    return any(".".join(map(str, loc[:length])) in paths for length in range(1, len(loc) + 1))


def _misplaced_truths(section: type[BaseModel], values: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and complaint of every ``true`` or ``false`` within ``values`` that stands for a number of ``section``."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        where = f"{path}.{name}" if path else name
        kinds = list(_kinds(section.model_fields[name].annotation)) if name in section.model_fields else []
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is not None:
            for part, entry in enumerate(value) if isinstance(value, list) else [("", value)]:
                yield from _misplaced_truths(inner, entry, f"{where}.{part}" if isinstance(value, list) else where)
        elif bool not in kinds and {int, float} & set(kinds):
            truths = ((place, leaf) for place, leaf in leaves(value, where) if isinstance(leaf, bool))
            yield from ((place, f"expected a number, got {str(leaf).lower()}") for place, leaf in truths)


def _kinds(hint: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    yield get_origin(hint) or hint
    for part in get_args(hint):
        yield from _kinds(part)


def _model_complaints(run: Run) -> list[str]:
    """What the model's configuration and its mixers refuse, found by building it without memory."""
    try:
        with torch.device("meta"):
            LongwaveForCausalLM(run.model_configuration(run.vocabulary_size()))
    except ValueError as error:
        return [f"model: {error}"]
    except (RuntimeError, OverflowError, MemoryError) as error:  # of sizes that no tensor can have
        return [f"model: cannot be built: {type(error).__name__}: {str(error).splitlines()[0]}"]
    return []


def read_values(source: str) -> dict[str, Any]:
    """What a run file or preset says, unchecked.

    Raises:
        ValueError: there is no such file, or it is not a YAML mapping.
    """
    if source in preset_names():
        preset = files("longwave.presets").joinpath(f"{source}.yaml")
        values = parse_yaml(preset.read_text(encoding="utf-8"), source) or {}
    elif os.path.exists(source):
        values = read_yaml(Path(source)) or {}
    else:
        raise ValueError(f"{source}: no such file or preset; presets: {', '.join(preset_names())}")
    if not isinstance(values, dict):
        raise ValueError(f"{source}: a run file is a mapping of sections, got {type(values).__name__}")
    return values


def _sentence(item: Mapping[str, Any]) -> str:
    """One complaint of pydantic's, as path, value and what is legal."""
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "value_error":
        return f"{where}: {item['ctx']['error']}"
    if item["type"] != "extra_forbidden":
        return f"{where}: {item['msg'][0].lower()}{item['msg'][1:]}, got {shown(item['input'])}"
    section = Run
    for part in item["loc"][:-1]:
        annotation = section.model_fields[part].annotation
        section = next(kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields"))
    legal, key = list(section.model_fields), str(item["loc"][-1])
    close = difflib.get_close_matches(key, legal, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{where}: unknown key{hint}; legal: {', '.join(legal)}"
