"""What a run takes at least, held against the machine's memory before anything is built."""

from __future__ import annotations

import os

import torch

from longwave.data.limits import check_fits
from longwave.model import LongwaveForCausalLM
from longwave.training.configuration import Run

FLOAT_BYTES = 4
#: A weight, its gradient, and the optimizer's two moments of it.
COPIES_IN_TRAINING = 4
#: Of a row that waits in the buffer: an id, and whether a document begins.
BUFFERED_BYTES = 5


def check_memory(run: Run) -> None:
    """See that the model, its optimizer, a batch and the buffer of streamed rows have room.

    Counted is what no implementation can do without: so what is refused cannot run, but what passes may still not fit.

    Raises:
        ValueError: one of them takes more than there is; with the settings and both numbers.
    """
    training, data, model = run.training, run.data, run.model
    device = training.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        built = LongwaveForCausalLM(run.model_configuration(run.vocabulary_size()))
    parameters = sum(parameter.numel() for parameter in built.parameters())
    what = f"model of {parameters:,} parameters (hidden_size {model.hidden_size}, {run.vocabulary_size():,} tokens)"
    check_fits(FLOAT_BYTES * COPIES_IN_TRAINING * parameters, f"training a {what}", device)
    parts = training.accumulation * int(os.environ.get("WORLD_SIZE", "1"))
    layers = 1 if training.gradient_checkpointing else model.num_hidden_layers
    for name, rows, width in (
        ("training", max(1, training.batch_size // parts), layers * model.hidden_size + run.vocabulary_size()),
        ("evaluation", run.evaluation.batch_size, run.vocabulary_size()),
    ):
        what = f"{name}.batch_size: {rows:,} rows of data.sequence_length {data.sequence_length:,} at a time"
        check_fits(FLOAT_BYTES * rows * data.sequence_length * width, what, device)
    if data.streaming:
        what = f"data.shuffle_buffer: {data.shuffle_buffer:,} rows of data.sequence_length {data.sequence_length:,}"
        check_fits(BUFFERED_BYTES * data.shuffle_buffer * data.sequence_length, what)
