"""The Hugging Face Trainer, as a run uses it; what touches its inner side is in this file."""

from __future__ import annotations

from collections.abc import Sized
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from longwave.data import PackedRows
from longwave.model import LongwaveCache, LongwaveForCausalLM
from longwave.training.checkpoints import rotate, seal
from longwave.training.configuration import Run, TrainingSection
from longwave.training.optimizers import build_optimizer
from longwave.training.schedule import learning_rate

LOG_STEPS = 10


class Lanes(Dataset):
    """Rows in the order in which states are carried: lane b's next row is always ``num_lanes`` rows later.

    Each lane is a contiguous part of ``rows``; its first row is a start.
    """

    def __init__(self, rows: Dataset, num_lanes: int) -> None:
        self.rows, self.num_lanes, self.per_lane = rows, num_lanes, len(rows) // num_lanes
        if self.per_lane < 1:
            raise ValueError(f"training.carry_state: {len(rows)} rows are fewer than the {num_lanes} of a batch")

    def __len__(self) -> int:
        return self.num_lanes * self.per_lane

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        step, lane = divmod(index, self.num_lanes)
        row = self.rows[lane * self.per_lane + step]
        if step == 0:
            row["starts"][0] = True
        return row


class RunTrainer(Trainer):
    """A Trainer that carries states across batches, if asked to, and whose checkpoints are sealed.

    Args:
        run: the run file.
        identity: names the run in its checkpoints.
        model, train_dataset, output, total_steps, callbacks: what they say.
    """

    def __init__(
        self,
        run: Run,
        identity: str,
        model: LongwaveForCausalLM,
        train_dataset: Dataset,
        output: Path,
        total_steps: int,
        callbacks: list[TrainerCallback],
    ) -> None:
        settings = run.training
        arguments = _arguments(run, output, total_steps)
        if settings.carry_state:
            if not isinstance(train_dataset, PackedRows):
                raise ValueError("training.carry_state reads one stored source in order; not a mix, and not streaming")
            train_dataset = Lanes(train_dataset, arguments.per_device_train_batch_size * arguments.world_size)
        elif isinstance(train_dataset, Sized) and len(train_dataset) < settings.batch_size:
            raise ValueError(
                f"the training text has {len(train_dataset)} rows of {run.data.sequence_length} tokens, fewer than "
                f"training.batch_size {settings.batch_size}"
            )
        if settings.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        optimizer = build_optimizer(model, settings.optimizer, weight_decay=settings.weight_decay, betas=settings.betas)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=train_dataset,
            optimizers=(optimizer, LambdaLR(optimizer, partial(_rate, settings, total_steps))),
            callbacks=[*callbacks, SealCheckpoints(self, identity, settings.keep_checkpoints)],
        )
        self.remove_callback(PrinterCallback)
        self.carry_state = settings.carry_state
        self.carried: LongwaveCache | None = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss; with ``carry_state``, after the states that the batch before ended in."""
        if not self.carry_state:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = {**inputs, "num_items_in_batch": num_items_in_batch}
        outputs = model(**inputs, past_key_values=self.carried, use_cache=True)
        self.carried = outputs.past_key_values
        self.carried.detach()
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            outputs.loss = outputs.loss * self.accelerator.num_processes
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def carried_file(self, checkpoint: Path) -> Path:
        """Where this process keeps its carried states."""
        return checkpoint / f"carried-{self.args.process_index}.safetensors"

    def resume(self, checkpoint: Path) -> None:
        """Continue from a whole checkpoint."""
        if self.carry_state:
            self.carried = LongwaveCache.load(self.carried_file(checkpoint), self.model)
        self.train(resume_from_checkpoint=str(checkpoint))


class SealCheckpoints(TrainerCallback):
    """Adds the carried states to a checkpoint, seals it, and deletes old ones."""

    def __init__(self, trainer: RunTrainer, identity: str, keep: int) -> None:
        self.trainer, self.identity, self.keep = trainer, identity, keep

    def on_save(self, args, state, control, **kwargs):
        """Called when the Trainer has written all it writes."""
        trainer, checkpoint = self.trainer, Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if trainer.carried is not None:
            trainer.carried.save(trainer.carried_file(checkpoint), trainer.model.config)
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            seal(checkpoint, self.identity)
            rotate(checkpoint.parent, self.keep)


def _arguments(run: Run, output: Path, total_steps: int) -> TrainingArguments:
    settings = run.training
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=total_steps,
        gradient_accumulation_steps=settings.accumulation,
        max_grad_norm=settings.clip or 0.0,
        bf16=settings.precision == "bfloat16",
        torch_compile=settings.compile,
        use_cpu=settings.device == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        train_sampling_strategy="sequential" if settings.carry_state or run.data.task else "random",
        logging_steps=LOG_STEPS,
        save_strategy="steps" if settings.save_every_steps else "no",
        save_steps=settings.save_every_steps or 1,
        report_to=["tensorboard"] if settings.tensorboard else [],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available() and settings.device != "cpu",
        dataloader_drop_last=True,
        ddp_find_unused_parameters=False,
    )
    parts = arguments.world_size * settings.accumulation
    if settings.batch_size % parts:
        raise ValueError(
            f"training.batch_size {settings.batch_size} is not divisible by {arguments.world_size} devices times "
            f"{settings.accumulation} parts (training.accumulation)"
        )
    arguments.per_device_train_batch_size = settings.batch_size // parts
    return arguments


def _rate(settings: TrainingSection, total_steps: int, done: int) -> float:
    """Learning rate after ``done`` optimizer steps, that is, of step ``done + 1``."""
    return learning_rate(
        done + 1,
        base=settings.learning_rate,
        minimum=settings.minimum_learning_rate,
        warmup_steps=settings.warmup_steps,
        total_steps=total_steps,
        schedule=settings.schedule,
    )
