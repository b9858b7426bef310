"""What it means that two models cost the same: sizes, operations, tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from longwave.comparison.arms import Arm
from longwave.mixers import TokenMixer
from longwave.model import LongwaveForCausalLM
from longwave.training import Run, body_parameters

#: What can be made equal. All but ``tokens`` solve the arms' sizes for one number of parameters.
AXES = ("parameters", "operations", "seconds", "tokens")
#: Largest relative difference in parameters that counts as equal.
TOLERANCE = 0.01
#: The backward pass does about twice the forward pass's contractions.
FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class Size:
    """Parameters outside the embedding, and the feed-forward width, in channels, that they were solved with."""

    body_parameters: int
    intermediate_size: int


def build_without_memory(run: Run) -> LongwaveForCausalLM:
    """The run's model on the meta device."""
    with torch.device("meta"):
        return LongwaveForCausalLM(run.model_configuration(run.vocabulary_size()))


def size_of(run: Run) -> Size:
    """Of the model as it is."""
    model = build_without_memory(run)
    return Size(body_parameters(model), model.config.intermediate_size)


def solve_size(arm: Arm, target: int) -> Arm:
    """The arm with the feed-forward width that brings it nearest to ``target`` parameters outside the embedding.

    Raises:
        ValueError: no width comes within 1 %.
    """
    if arm.run.model.feed_forward == "none":
        raise ValueError(f"{arm.name}: without a feed-forward there is no size to solve for; use --budget tokens")
    one, two = (size_of(_with_width(arm.run, width)).body_parameters for width in (1, 2))
    width = max(1, round((target - one) / (two - one)) + 1)
    solved = replace(arm, run=_with_width(arm.run, width))
    found = size_of(solved.run).body_parameters
    if abs(found - target) > TOLERANCE * target:
        raise ValueError(
            f"{arm.name}: {target:,} parameters outside the embedding are out of reach: the nearest is {found:,}, "
            f"with a feed-forward of {width}; change --parameters or model.hidden_size"
        )
    return solved


def operations_per_token(run: Run) -> float:
    """Floating-point operations of the contractions of a training step, for each token of a row (2 a multiply-add)."""
    model, length = build_without_memory(run), run.data.sequence_length
    mixers = [module for module in model.modules() if isinstance(module, TokenMixer)]
    inside = {id(part) for mixer in mixers for part in mixer.modules()}
    outside = (part for part in model.modules() if isinstance(part, nn.Linear) and id(part) not in inside)
    forward = sum(mixer.flops(length) for mixer in mixers) / length + sum(2 * part.weight.numel() for part in outside)
    return FORWARD_AND_BACKWARD * forward


def state_bytes(run: Run, num_tokens: int) -> int:
    """Bytes of all mixers' states of one sequence after ``num_tokens``."""
    model = build_without_memory(run)
    return sum(module.state_bytes(num_tokens) for module in model.modules() if isinstance(module, TokenMixer))


def with_training(run: Run, **changes: object) -> Run:
    """The run with other values in its training section; ``tokens`` are rounded to whole steps, at least one."""
    if "tokens" in changes:
        step = run.training.batch_size * run.data.sequence_length
        changes["tokens"] = max(1, round(float(changes["tokens"]) / step)) * step  # type: ignore[arg-type]
    return run.model_copy(update={"training": run.training.model_copy(update=changes)})


def _with_width(run: Run, width: int) -> Run:
    return run.model_copy(update={"model": run.model.model_copy(update={"intermediate_size": width})})
