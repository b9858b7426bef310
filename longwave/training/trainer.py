"""The Hugging Face Trainer, as a run uses it; what touches its inner side is in this file."""

from __future__ import annotations

from collections import deque
from collections.abc import Sized
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import has_length

from longwave.data import PackedRows
from longwave.model import CACHE_NAME, LongwaveCache, LongwaveForCausalLM
from longwave.training.checkpoints import keep_lines, rotate, seal, writing
from longwave.training.configuration import Run, TrainingSection
from longwave.training.optimizers import build_optimizer
from longwave.training.schedule import learning_rate

LOG_STEPS = 10


class Lanes(Dataset):
    """Rows in the order in which states are carried: lane b's next row is always ``num_lanes`` rows later.

    There is a lane for each row of an optimizer step. It is a contiguous part of ``rows``; its first row is a start.
    """

    def __init__(self, rows: Dataset, num_lanes: int) -> None:
        self.rows, self.num_lanes, self.per_lane = rows, num_lanes, len(rows) // num_lanes

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
        check_rows(run, train_dataset, arguments.world_size)
        arguments.per_device_train_batch_size = settings.batch_size // (arguments.world_size * settings.accumulation)
        if settings.carry_state:
            train_dataset = Lanes(train_dataset, settings.batch_size)
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
        #: States at the end of the rows read so far, one cache for each part of an optimizer step, the next one first.
        self.carried: deque[LongwaveCache | None] = deque([None] * settings.accumulation)

    def set_initial_training_values(self, args, dataloader):
        """The Trainer's numbers for epochs of whole optimizer steps; rows left over at the end of one are not read."""
        if not has_length(dataloader):
            return super().set_initial_training_values(args, dataloader)
        num_parts = args.gradient_accumulation_steps
        return super().set_initial_training_values(args, range(len(dataloader) // num_parts * num_parts))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss; with ``carry_state``, after the states in which these lanes ended a step ago."""
        inputs = {**inputs, "skip_logits": not return_outputs}
        if not self.carry_state:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs["num_items_in_batch"] = num_items_in_batch
        outputs = model(**inputs, cache=self.carried.popleft(), use_cache=True)
        outputs[CACHE_NAME].detach()
        self.carried.append(outputs[CACHE_NAME])
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            outputs.loss = outputs.loss * self.accelerator.num_processes
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def carried_files(self, checkpoint: Path) -> list[Path]:
        """Where this process keeps its carried states, in their order."""
        places = (f"carried-{self.args.process_index}-{part}.safetensors" for part in range(len(self.carried)))
        return [checkpoint / place for place in places] if self.carry_state else []

    def _save_checkpoint(self, *args, **kwargs):
        with writing(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(*args, **kwargs)

    def resume(self, checkpoint: Path) -> None:
        """Continue from a whole checkpoint.

        Raises:
            ValueError: it holds carried states of another number of processes.
        """
        mine, all_files = self.carried_files(checkpoint), list(checkpoint.glob("carried-*"))
        if len(all_files) != len(mine) * self.args.world_size:
            raise ValueError(
                f"{checkpoint}: holds the carried states of {len(all_files)} parts of a step, but now there are "
                f"{len(mine) * self.args.world_size}; go on with as many processes as before"
            )
        if mine:
            self.carried = deque(LongwaveCache.load(path, self.model) for path in mine)
        self.train(resume_from_checkpoint=str(checkpoint))


class SealCheckpoints(TrainerCallback):
    """Adds the carried states and the lines written so far to a checkpoint, seals it, and deletes old ones."""

    def __init__(self, trainer: RunTrainer, identity: str, keep: int) -> None:
        self.trainer, self.identity, self.keep = trainer, identity, keep

    def on_save(self, args, state, control, **kwargs):
        """Called when the Trainer and the other callbacks have written all they write."""
        trainer, checkpoint = self.trainer, Path(args.output_dir) / f"checkpoint-{state.global_step}"
        with writing(checkpoint):
            for cache, path in zip(trainer.carried, trainer.carried_files(checkpoint), strict=False):
                cache.save(path, trainer.model.config)
            trainer.accelerator.wait_for_everyone()
            if trainer.is_world_process_zero():
                keep_lines(checkpoint.parent, checkpoint)
                seal(checkpoint, self.identity)
                rotate(checkpoint.parent, self.keep)


def check_rows(run: Run, rows: Dataset, num_devices: int = 1) -> None:
    """See that the optimizer's steps of a run can be made of ``rows``.

    Raises:
        ValueError: they cannot.
    """
    settings = run.training
    if settings.batch_size % (num_devices * settings.accumulation):
        raise ValueError(
            f"training.batch_size {settings.batch_size} is not divisible by {num_devices} devices times "
            f"{settings.accumulation} parts (training.accumulation)"
        )
    if settings.carry_state and not isinstance(rows, PackedRows):
        raise ValueError("training.carry_state reads one stored source in order; not a mix, and not streaming")
    if isinstance(rows, Sized) and len(rows) < settings.batch_size:
        raise ValueError(
            f"the training text has {len(rows)} rows of {run.data.sequence_length} tokens, fewer than "
            f"training.batch_size {settings.batch_size}"
        )


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
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several would each be given a whole batch: they are torchrun's
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
