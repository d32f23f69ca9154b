"""Hugging Face's Trainer for classifiers: rows of tokens, batches, settings, progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, SequentialSampler
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from dnabert_rm.downstream.metrics import classification_metrics
from dnabert_rm.downstream.settings import CHECKPOINTS_FOLDER, TENSORBOARD_FOLDER, FinetuneSettings
from dnabert_rm.errors import ConfigError
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.tokenizer.padding import pad_rows


class TokenRows(Dataset):
    """Rows for Trainer: `input_ids` (T_i,) int32 with special tokens, and the class number `labels`."""

    def __init__(self, rows: list[NDArray], labels: NDArray[np.int64], num_cut: int):
        self.rows, self.labels = rows, labels
        self.num_cut = num_cut
        """Rows that were longer than allowed and kept their middle."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.rows[index], "labels": int(self.labels[index])}

    @property
    def num_empty(self) -> int:
        """Rows too short for a single k-mer."""
        return sum(len(row) == 2 for row in self.rows)

    @property
    def lengths_differ(self) -> bool:
        """Whether batches need padding."""
        return len({len(row) for row in self.rows}) > 1


def token_rows(
    tokenizer: KmerTokenizer, sequences: Sequence[str], labels: NDArray[np.int64], max_tokens: int
) -> TokenRows:
    """Tokens of each sequence between `[CLS]` and `[SEP]`; of more than `max_tokens` the middle is kept."""
    ids = tokenizer.kmer_ids(sequences)
    room = max_tokens - 2
    rows = [
        np.concatenate(([tokenizer.cls_token_id], middle(row, room), [tokenizer.sep_token_id]), dtype=np.int32)
        for row in ids
    ]
    return TokenRows(rows, labels, num_cut=sum(len(row) > room for row in ids))


def middle(ids: NDArray, room: int) -> NDArray:
    """The `room` tokens in the middle of (T,) ids; where they can't be centred, one more is cut on the right."""
    start = max(0, len(ids) - room) // 2
    return ids[start : start + room]


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One batch: `input_ids` (B, W) and `labels` (B,), int64, and `attention_mask` where anything is padded.

    Without a mask attention runs its faster kernels, and most data sets have rows of one length.
    """
    width = max(len(row["input_ids"]) for row in rows)
    ids, mask = pad_rows([row["input_ids"] for row in rows], width)
    batch = {"input_ids": torch.from_numpy(ids), "labels": torch.tensor([row["labels"] for row in rows])}
    return batch if mask.all() else batch | {"attention_mask": torch.from_numpy(mask)}


class ClassifierTrainer(Trainer):
    """Trainer whose predictions come in the order of the rows, also when training groups rows by length."""

    def _get_eval_sampler(self, eval_dataset: Dataset) -> SequentialSampler:
        return SequentialSampler(eval_dataset)  # type: ignore[arg-type]


class Progress(TrainerCallback):
    """A bar on standard error where that is a terminal, and a line for each evaluation in any case."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.loss = float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = tqdm(total=state.max_steps, desc="fine-tuning", unit="step", disable=None, file=sys.stderr)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        # The last evaluation's line, too, shall have the loss up to it, however short the run was.
        control.should_log |= state.global_step >= state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.loss = given["logs"].get("loss", self.loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.bar is not None and state.is_world_process_zero:
            metrics = given["metrics"]
            line = (
                f"step {state.global_step}/{state.max_steps}  loss {self.loss:.4f}"
                f"  dev loss {metrics['eval_loss']:.4f}  dev MCC {metrics['eval_mcc']:.4f}"
            )
            tqdm.write(line, file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()
        self.bar = None


def training_arguments(settings: FinetuneSettings, group_by_length: bool) -> TrainingArguments:
    """Trainer's own settings for ours; `ConfigError` where the ranks can't share a batch."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if settings.batch_size % world_size:
        raise ConfigError(f"--batch-size {settings.batch_size}: must be a multiple of the {world_size} ranks")
    rows_a_rank = settings.batch_size // world_size
    args = TrainingArguments(
        output_dir=str(settings.output / CHECKPOINTS_FOLDER),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=rows_a_rank,
        per_device_eval_batch_size=4 * rows_a_rank,
        learning_rate=settings.learning_rate,
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
        metric_for_best_model="mcc",
        greater_is_better=True,
        logging_steps=min(50, settings.eval_steps),
        seed=settings.seed,
        bf16=settings.precision == "bf16",
        # Trainer refuses bf16 on a CPU unless it is told that a CPU is meant.
        use_cpu=not torch.accelerator.is_available(),
        train_sampling_strategy="group_by_length" if group_by_length else "random",
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    # With several GPUs in sight and one process, Trainer would take DataParallel and so a larger batch.
    args._n_gpu = min(args.n_gpu, 1)
    return args


def metrics_of(output: Any) -> dict[str, float | None]:
    """The metrics of Trainer's predictions: `label_ids` (N,) and `predictions` (N, C), logits."""
    return classification_metrics(output.label_ids, output.predictions)


def make_trainer(model: PreTrainedModel, train: TokenRows, dev: TokenRows, settings: FinetuneSettings) -> Trainer:
    """A Trainer that keeps the checkpoint with the best MCC on `dev`, the first of equals."""
    trainer = ClassifierTrainer(
        model=model,
        args=training_arguments(settings, train.lengths_differ),
        data_collator=collate,
        train_dataset=train,
        eval_dataset=dev,
        compute_metrics=metrics_of,
        callbacks=[Progress(), TensorBoardCallback(SummaryWriter(str(settings.output / TENSORBOARD_FOLDER)))],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
