"""Ways to train the same model on the same masked windows: ours, Hugging Face's Trainer, a bare loop.

Each function trains until its `turn` raises, and calls it after every step. Model, first weights, windows and masks are
the same for all, made by the project's own code; so is the loss of the first step, which the benchmarks compare.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from setting import ENDLESS, Setting

from dnabert_rm.utils.environment import suppress_library_output

suppress_library_output()

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import IterableDataset  # noqa: E402
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from dnabert_rm.config import RunConfig  # noqa: E402
from dnabert_rm.data.batching import make_plan  # noqa: E402
from dnabert_rm.data.dataset import make_dataset
from dnabert_rm.data.loader import MicroBatchSampler, make_loader  # noqa: E402
from dnabert_rm.distributed.process_group import process_group  # noqa: E402
from dnabert_rm.distributed.watchdog import watchdog  # noqa: E402
from dnabert_rm.masking.collator import (
    IGNORE,
    make_collator,
)
from dnabert_rm.masking.schedule import make_mask_schedule
from dnabert_rm.model.build import (  # noqa: E402
    architecture_of,
    build_model,
    prepare_layers,
)
from dnabert_rm.model.mlm import MaskedLM  # noqa: E402
from dnabert_rm.train.optimizer import make_optimizer  # noqa: E402
from dnabert_rm.train.stop import StopRequests  # noqa: E402
from dnabert_rm.train.trainer import (  # noqa: E402
    Run,
    StepResult,
    train,
)

TurnOf = Callable[..., None]


def ours(setting: Setting, turn: TurnOf) -> None:
    """`pretrain`'s run on one rank, logging included."""
    with (
        tempfile.TemporaryDirectory() as folder,
        process_group(setting.threads) as ranks,
        # Limit 0, never: who waits for a turn does not hang.
        watchdog(Path(folder), 0, 0.0) as watchdog_,
    ):
        config = setting.config(folder)
        run = _Timed(config, make_dataset(config), ranks, StopRequests(), watchdog_)
        run.turn = turn
        run.train_again_and_again() if setting.synthetic else run.train()


class _Timed(Run):
    """A run that takes turns."""

    turn: TurnOf

    def after_step(self, result: StepResult) -> bool:
        """Log as the run does, then wait for the next turn."""
        stops = super().after_step(result)
        self.turn(result.loss, {"data wait": result.data_wait * result.seconds, "masked": result.num_masked})
        return stops

    def train_again_and_again(self) -> None:
        """Train on one batch that lies on the device already: what the loader costs is the difference."""
        batch = next(masked_batches(self.config))
        resident = {name: value.to(self.ranks.device) if name in RESIDENT else value for name, value in batch.items()}
        train(
            self.engine, itertools.repeat(resident), first_step=0, last_step=ENDLESS, accumulation=lambda _: 1, seed=0,
            learning_rate=self.learning_rate, after_step=self.after_step, stop_wanted=self.stop.wanted,
            beat=self.watchdog_.beat,
        )  # fmt: skip


RESIDENT = ("input_ids", "positions", "targets")


def masked_batches(config: RunConfig) -> Iterator[dict[str, torch.Tensor]]:
    """The run's micro-batches, from the project's loader and collate step."""
    dataset, plan = make_dataset(config), make_plan(config)
    sampler = MicroBatchSampler(plan, 0, config.train.steps, 0, 1, config.train.global_batch)
    workers = config.data.num_workers
    return iter(
        make_loader(
            dataset,
            make_collator(
                config, make_mask_schedule(config, dataset.tokenizer.k), plan.step_of, dataset.tokenizer.vocab_size
            ),
            sampler,
            num_workers=workers,
        )
    )


def stock_model(config: RunConfig, vocab_size: int) -> PreTrainedModel:
    """transformers' model with the weights that ours begins with."""
    return build_model(architecture_of(config.model, vocab_size), config.train.seed, config.model.attention)


def labels_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, L) int64 labels as transformers wants them: the original token where one is predicted, else -100."""
    labels = torch.full_like(batch["input_ids"], IGNORE)
    labels.view(-1)[batch["positions"]] = batch["targets"]
    return labels


class _Windows(IterableDataset):
    """The same windows one by one, masked, as a map of `input_ids` and `labels` (L,)."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in masked_batches(self._config):
            for ids, labels in zip(batch["input_ids"], labels_of(batch), strict=True):
                yield {"input_ids": ids, "labels": labels}


def collate_like_run_mlm(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What run_mlm.py's collator hands to the model: `input_ids`, `labels` and `attention_mask` (B, L)."""
    batch = {name: torch.stack([example[name] for example in examples]) for name in ("input_ids", "labels")}
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


class _TrainerThatTells(Trainer):
    """Keeps the last loss, without waiting for it."""

    last_loss: torch.Tensor

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.last_loss = super().training_step(*args, **kwargs)
        return self.last_loss


class _AfterStep(TrainerCallback):
    def __init__(self, turn: TurnOf) -> None:
        self._turn, self.trainer = turn, None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's hook after the update."""
        self._turn(self.trainer.last_loss)


def hugging_face_trainer(setting: Setting, turn: TurnOf) -> None:
    """`Trainer` with `BertForMaskedLM`: its default optimizer, clipping and precision flag."""
    with tempfile.TemporaryDirectory() as folder:
        config = setting.config(folder)
        _use_threads(setting)
        model = stock_model(config, make_dataset(config).tokenizer.vocab_size)
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=setting.windows, max_steps=ENDLESS, save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=setting.device == "cpu", bf16=setting.precision == "bf16",
            fp16=setting.precision == "fp16", torch_compile=config.model.compile,
        )  # fmt: skip
        callback = _AfterStep(turn)
        trainer = _TrainerThatTells(
            model=model, args=arguments, train_dataset=_Windows(config), data_collator=collate_like_run_mlm,
            callbacks=[callback],
        )  # fmt: skip
        callback.trainer = trainer
        trainer.train()


def bare_loop(setting: Setting, turn: TurnOf) -> None:
    """transformers' model in a dozen lines of torch: labels, no attention mask, torch's AdamW, autocast."""
    config = setting.config("unused")
    _use_threads(setting)
    model = stock_model(config, make_dataset(config).tokenizer.vocab_size).to(setting.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    for batch in masked_batches(config):
        with _autocast(setting):
            inputs = batch["input_ids"].to(setting.device), labels_of(batch).to(setting.device)
            loss = model(input_ids=inputs[0], labels=inputs[1]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        turn(loss)


def ours_in_parts(setting: Setting, turn: TurnOf) -> None:
    """Our model and optimizer without DeepSpeed, with a clock at every seam; weights and gradients in the precision."""
    config = setting.config("unused")
    _use_threads(setting)
    vocab_size = make_dataset(config).tokenizer.vocab_size
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[setting.precision]
    model = stock_model(config, vocab_size)
    prepare_layers(model, checkpointing=False, compile_layers=config.model.compile)
    module = MaskedLM(model).to(setting.device, dtype).train()
    clock, optim = _Clock(module, setting.device), config.optim
    optimizer = make_optimizer(
        module, lr=1e-5, betas=(optim.beta1, optim.beta2), eps=optim.eps, weight_decay=optim.weight_decay
    )
    for batch in masked_batches(config):
        clock.start()
        loss_sum = module(*(batch[name].to(setting.device) for name in RESIDENT))[0]
        clock.mark("loss")
        loss = loss_sum / len(batch["targets"])
        loss.backward()
        clock.mark("encoder, backward")
        nn.utils.clip_grad_norm_(module.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        clock.mark("optimizer")
        turn(loss, clock.parts)


class _Clock:
    """Seconds between the seams of a step, by hooks on the encoder and the head and on their answers' gradients."""

    def __init__(self, module: MaskedLM, device: str) -> None:
        self._device = device
        model: Any = module.model
        heads = [model.cls] if hasattr(model, "cls") else [model.head, model.decoder]
        model.base_model.register_forward_hook(lambda *hooked: self._after("encoder", hooked[2].last_hidden_state))
        heads[-1].register_forward_hook(lambda *hooked: self._after("head", hooked[2]))

    def _after(self, name: str, answer: torch.Tensor) -> None:
        self.mark(f"{name}, forward")
        # The gradient of the head's answer is there when the loss is done, that of the encoder's when the head is.
        then = {"encoder": "head, backward", "head": "loss"}[name]
        answer.register_hook(lambda _: self.mark(then))

    def start(self) -> None:
        """A step begins."""
        self.parts: dict[str, float] = {}
        self._last = self._now()

    def mark(self, name: str) -> None:
        """What was done since the last mark belongs to `name`."""
        now = self._now()
        self.parts[name] = self.parts.get(name, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _use_threads(setting: Setting) -> None:
    if setting.threads:
        torch.set_num_threads(setting.threads)


def _autocast(setting: Setting) -> Any:
    if setting.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(setting.device, dtype=torch.bfloat16)
