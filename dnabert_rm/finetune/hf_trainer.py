"""Hugging Face's Trainer, adapted to the fine-tuning tasks: arguments, row order, loss and progress output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import Dataset, RandomSampler, Sampler, SequentialSampler
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from dnabert_rm.finetune.finetune_settings import CHECKPOINTS_FOLDER, TENSORBOARD_FOLDER, FinetuneSettings
from dnabert_rm.finetune.tasks import Task
from dnabert_rm.finetune.token_rows import TokenRows, collate, pool_logits
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.progress import progress_bar

MODEL_INPUTS = ("input_ids", "attention_mask")
LOWER_IS_BETTER = "mse"
"""Prefix of the metrics to minimize: `mse`, and `mse_NAME` for a single target."""
NOT_FINITE = -1
"""Class index of a base whose logits are NaN or infinite. Trainer itself pads with -100."""


# ---- construction


def make_trainer(
    model: Any, task: Task, train: TokenRows, dev: TokenRows, settings: FinetuneSettings, args: TrainingArguments
) -> TaskTrainer:
    """Return a Trainer that keeps the checkpoint with the best metric on `dev`.

    If several checkpoints are equally good, Trainer keeps the earliest of them.
    """
    callbacks: list[TrainerCallback] = [ProgressCallback(str(args.metric_for_best_model)), SeedDropoutPerRank()]
    if args.process_index == 0:
        callbacks.append(TensorBoardCallback(SummaryWriter(str(settings.output / TENSORBOARD_FOLDER))))
    if settings.early_stopping:
        callbacks.append(EarlyStoppingCallback(settings.early_stopping))
    weights = task.class_weights(train.targets) if settings.class_weights else None
    trainer = TaskTrainer(
        task,
        settings,
        None if weights is None else torch.from_numpy(weights),
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=dev,
        callbacks=callbacks,
        preprocess_logits_for_metrics=_predicted_classes if task.per_base else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(settings: FinetuneSettings, best_metric: str, learning_rate: float) -> TrainingArguments:
    """Return the `TrainingArguments`. Under a launcher, constructing them also initializes the process group.

    Raises `ConfigError` if the batch size is not a multiple of the number of ranks.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if settings.batch_size % world_size:
        raise ConfigError(
            f"--batch-size {settings.batch_size}: must be a multiple of the number of ranks ({world_size})"
        )
    rows_per_rank = settings.batch_size // world_size
    args = TrainingArguments(
        output_dir=str(settings.output / CHECKPOINTS_FOLDER),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=rows_per_rank,
        per_device_eval_batch_size=4 * rows_per_rank,
        learning_rate=learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type="linear",
        eval_strategy="steps",
        eval_steps=settings.eval_steps,
        save_strategy="steps",
        save_steps=settings.eval_steps,
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model=best_metric,
        greater_is_better=not best_metric.startswith(LOWER_IS_BETTER),
        logging_steps=min(50, settings.eval_steps),
        seed=settings.seed,
        bf16=settings.precision == "bf16",
        # Trainer rejects bf16 on a CPU unless `use_cpu` is set.
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    # With several visible GPUs and one process, Trainer would use DataParallel, which enlarges the batch.
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _predicted_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Convert logits (rows, bases, classes) to class indices (rows, bases).

    Trainer keeps the outputs of all rows in memory. Class indices need less memory than logits. The class of a base
    with a logit that is NaN or infinite is `NOT_FINITE`.
    """
    return logits.argmax(-1).masked_fill(~logits.isfinite().all(-1), NOT_FINITE)


# ---- training


class TaskTrainer(Trainer):
    """Trainer with a task's loss: the loss summed over the global batch, divided by the batch's number of targets.

    A target is a label value other than `IGNORE_INDEX`. Trainer counts the targets of all ranks before the backward
    pass, so the gradient does not depend on the number of ranks.
    """

    def __init__(self, task: Task, settings: FinetuneSettings, class_weights: Tensor | None, **options: Any):
        self.task = task
        self.settings = settings
        self.class_weights = class_weights
        # `compute_loss_func` makes Trainer count the targets; `compute_loss` below uses the count.
        super().__init__(**options, data_collator=collate, compute_loss_func=task.loss, compute_metrics=self.scores)

    def scores(self, output: Any) -> dict[str, float | None]:
        """Compute the task's metrics from Trainer's predictions. Raise `ConfigError` if a prediction is not finite."""
        outputs = output.predictions
        is_wrong = outputs == NOT_FINITE if self.task.per_base else ~np.isfinite(outputs)
        if is_wrong.any():
            raise ConfigError(
                f"--learning-rate {self.args.learning_rate:g}: the model's outputs became NaN or infinite;"
                " choose a lower rate"
            )
        return self.task.metrics(output.label_ids, outputs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        pad_last_batch = self.args.world_size > 1
        return RowSampler(rows.lengths, self.settings.batch_size, self.settings.seed, pad_last_batch)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler:
        return SequentialSampler(eval_dataset)  # type: ignore[arg-type]

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of one rank's rows, scaled so that the mean over ranks is the loss of the global batch."""
        model_inputs = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
        outputs = pool_logits(model(**model_inputs).logits, inputs)
        weights = None if self.class_weights is None else self.class_weights.to(outputs)
        loss = self.task.loss(outputs, inputs["labels"], weights)
        loss = loss * self.accelerator.num_processes / torch.clamp(num_items_in_batch, min=1)
        return (loss, {"logits": outputs}) if return_outputs else loss


class RowSampler(Sampler):
    """Sampler of shuffled row indices, in the same order for any number of ranks.

    If row lengths differ, rows of similar length share a batch. `pad_last_batch` completes the last batch of an
    epoch with padding rows, which the loss ignores. Without padding, accelerate would repeat rows to give all ranks
    the same number of rows.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, pad_last_batch: bool):
        generator = torch.Generator().manual_seed(seed)
        self.order: Sampler = (
            RandomSampler(lengths, generator=generator)
            if len(set(lengths)) == 1
            else LengthGroupedSampler(batch_size, lengths=list(lengths), generator=generator)
        )
        self.num_rows = len(lengths)
        self.num_padding = -len(lengths) % batch_size if pad_last_batch else 0

    def __len__(self) -> int:
        return self.num_rows + self.num_padding

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [self.num_rows] * self.num_padding


# ---- ranks


def wait_for_ranks() -> None:
    """Wait until every rank has called this function."""
    PartialState().wait_for_everyone()


def leave_ranks() -> None:
    """Destroy the process group, if any, because torch warns at exit about a group that still exists."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class SeedDropoutPerRank(TrainerCallback):
    """Callback that seeds dropout differently on each rank, because Trainer gives all ranks the same seed."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.process_index:
            torch.manual_seed(args.seed + args.process_index)


# ---- progress


class ProgressCallback(TrainerCallback):
    """Progress bar on standard error, and one line for each evaluation."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        """Metric on dev for choosing the checkpoint."""
        self.bar: Any = None
        self.loss = float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = progress_bar(
            "fine-tuning", state.max_steps, "step", scaled=False, leave=True, quiet=not state.is_world_process_zero
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        # Log at the last step, so that the last line shows a loss even if the run is shorter than `logging_steps`.
        control.should_log |= state.global_step >= state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.loss = options["logs"].get("loss", self.loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if self.bar is not None and state.is_world_process_zero:
            metrics = options["metrics"]
            line = (
                f"step {state.global_step}/{state.max_steps}  loss {self.loss:.4f}"
                f"  dev loss {metrics['eval_loss']:.4f}  dev {self.metric} {metrics['eval_' + self.metric]:.4f}"
            )
            tqdm.write(line, file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()
        self.bar = None
