"""Ways to train the same model on the same masked windows: ours, Hugging Face's Trainer, a bare loop.

Each function calls `report_step` after every step, and trains until `report_step` raises an exception. Model, initial
weights, windows and masks come from the project's own code and are the same for all. The benchmarks therefore check
that the losses of the first step are equal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
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
from dnabert_rm.config.deepspeed_config import load_ds_config  # noqa: E402
from dnabert_rm.data.batching import make_batch_plan  # noqa: E402
from dnabert_rm.data.dataset import make_dataset  # noqa: E402
from dnabert_rm.data.loader import MicroBatchSampler, make_loader  # noqa: E402
from dnabert_rm.distributed.process_group import Ranks, process_group  # noqa: E402
from dnabert_rm.distributed.watchdog import Watchdog  # noqa: E402
from dnabert_rm.masking.collator import IGNORE, make_collator  # noqa: E402
from dnabert_rm.masking.schedule import make_mask_schedule  # noqa: E402
from dnabert_rm.model.build import architecture_of, build_model, encoder_layers, prepare_layers  # noqa: E402
from dnabert_rm.model.kernels import attention_kernels, convert_to_float8, deterministic_kernels  # noqa: E402
from dnabert_rm.model.mlm import MaskedLM  # noqa: E402
from dnabert_rm.train import build_engine, deepspeed_settings  # noqa: E402
from dnabert_rm.train import trainer as pretraining  # noqa: E402
from dnabert_rm.train.optimizer import make_optimizer  # noqa: E402
from dnabert_rm.train.step_result import StepResult  # noqa: E402
from dnabert_rm.train.stop import StopRequests  # noqa: E402

ReportStep = Callable[..., None]
"""See `workers.StepReporter`."""
RESIDENT = ("input_ids", "positions", "targets")
"""Tensors of a batch that the model takes, in this order."""


def ours(setting: Setting, report_step: ReportStep) -> None:
    """Train as `pretrain` does on one rank, logging included."""
    with process_group(setting.threads) as ranks:
        ours_on(ranks, setting, report_step)


def ours_on(ranks: Ranks, setting: Setting, report_step: ReportStep) -> None:
    """Train as `pretrain` does, in a process group that exists already. The engine is destroyed afterwards."""
    with tempfile.TemporaryDirectory() as folder, opened_trainer(ranks, setting, folder) as trainer:
        trainer.report_step = report_step
        trainer.train_on_one_batch() if setting.synthetic else trainer.run()


@contextlib.contextmanager
def opened_trainer(ranks: Ranks, setting: Setting, folder: str) -> Iterator[_Timed]:
    """Build a trainer, and destroy its engine after the block."""
    with (
        # Timeout 0 turns the watchdog off, because waiting for the parent is not a hang.
        contextlib.closing(Watchdog(Path(folder), 0, 0.0)) as watchdog,
        changed_engine(setting),
    ):
        config = changed_deepspeed(setting.config(folder), setting.deepspeed_changes)
        with (
            attention_kernels(config.model.attention, config.train.deterministic),
            deterministic_kernels(config.train.deterministic),
        ):
            trainer = _Timed(config, make_dataset(config), ranks, StopRequests(), watchdog)
            try:
                yield trainer
            finally:
                trainer.engine.deepspeed.destroy()


def changed_deepspeed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """Write a DeepSpeed configuration with `changes` to the run folder, and return a configuration that uses it."""
    if not changes:
        return config
    _, settings = load_ds_config(config.train.ds_config)
    for section, values in changes.items():
        settings[section] = settings.get(section, {}) | values
    path = Path(config.train.output) / "deepspeed.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, ds_config=str(path)))


@contextlib.contextmanager
def changed_engine(setting: Setting) -> Iterator[None]:
    """Change in the block how a trainer builds its engine, in ways that no setting of the package offers."""
    with contextlib.ExitStack() as changes:

        def change(module: Any, name: str, value: Any) -> None:
            changes.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)

        if not setting.own_engine:
            for module in (deepspeed_settings, build_engine):
                change(module, "updates_on_device", lambda settings, precision: False)
        if setting.float8:
            prepare = build_engine.prepare_layers

            def prepare_in_float8(model: PreTrainedModel, **flags: Any) -> None:
                convert_to_float8(encoder_layers(model)[:-1])
                prepare(model, **flags)

            change(build_engine, "prepare_layers", prepare_in_float8)
        yield


class _Timed(pretraining.Trainer):
    """A trainer that reports every step."""

    report_step: ReportStep

    def log(self, result: StepResult, validation: dict[str, Any]) -> None:
        """Log as the run does, then report the step."""
        super().log(result, validation)
        parts = {"data wait": result.data_wait * result.seconds, "masked": result.num_masked}
        self.report_step(result.loss, parts)

    def train_on_one_batch(self) -> None:
        """Train on one batch that is already on the device. The difference from `train` is the cost of the loader."""
        batch = next(masked_batches(self.config))
        resident = {name: value.to(self.ranks.device) if name in RESIDENT else value for name, value in batch.items()}
        self.loader = itertools.repeat(resident)
        self.train()


def masked_batches(config: RunConfig) -> Iterator[dict[str, torch.Tensor]]:
    """Return the run's masked batches, from the project's loader and collator."""
    dataset, plan = make_dataset(config), make_batch_plan(config)
    tokenizer = dataset.tokenizer
    schedule = make_mask_schedule(config, tokenizer.k)
    collate = make_collator(config, schedule, plan.step_of, tokenizer.vocab_size)
    sampler = MicroBatchSampler(plan, 0, config.train.steps, 0, 1, config.train.global_batch)
    return iter(make_loader(dataset, collate, sampler, num_workers=config.data.num_workers))


def stock_model(config: RunConfig, vocab_size: int) -> PreTrainedModel:
    """Return transformers' model with the same initial weights as ours."""
    return build_model(architecture_of(config.model, vocab_size), config.train.seed, config.model.attention)


def is_compiled(config: RunConfig) -> bool:
    """Return whether model.compile is set explicitly. The peers and the parts have no automatic choice."""
    return str(config.model.compile).lower() == "true"


def labels_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return labels (B, L) int64 for transformers: the original token where one is predicted, otherwise -100."""
    labels = torch.full_like(batch["input_ids"], IGNORE)
    labels.view(-1)[batch["positions"]] = batch["targets"]
    return labels


class _Windows(IterableDataset):
    """The same masked windows one by one, as dicts of `input_ids` and `labels` (L,)."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in masked_batches(self._config):
            for ids, labels in zip(batch["input_ids"], labels_of(batch), strict=True):
                yield {"input_ids": ids, "labels": labels}


def collate_like_run_mlm(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return a batch like run_mlm.py's collator: `input_ids`, `labels` and `attention_mask` (B, L)."""
    batch = {name: torch.stack([example[name] for example in examples]) for name in ("input_ids", "labels")}
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


class _LossTrainer(Trainer):
    """A Trainer that keeps the last loss, without synchronizing the device."""

    last_loss: torch.Tensor

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.last_loss = super().training_step(*args, **kwargs)
        return self.last_loss


class _StepCallback(TrainerCallback):
    def __init__(self, report_step: ReportStep) -> None:
        self._report_step = report_step
        self.trainer: Any = None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Report the step; the Trainer calls this after the update."""
        self._report_step(self.trainer.last_loss)


def hugging_face_trainer(setting: Setting, report_step: ReportStep) -> None:
    """Train `BertForMaskedLM` with `Trainer`: its default optimizer, clipping and precision flag."""
    with tempfile.TemporaryDirectory() as folder:
        config = setting.config(folder)
        _use_threads(setting)
        model = stock_model(config, make_dataset(config).tokenizer.vocab_size)
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=setting.windows,
            max_steps=ENDLESS,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=setting.device == "cpu",
            bf16=setting.precision == "bf16",
            fp16=setting.precision == "fp16",
            torch_compile=is_compiled(config),
        )
        callback = _StepCallback(report_step)
        trainer = _LossTrainer(
            model=model,
            args=arguments,
            train_dataset=_Windows(config),
            data_collator=collate_like_run_mlm,
            callbacks=[callback],
        )
        callback.trainer = trainer
        trainer.train()


def bare_loop(setting: Setting, report_step: ReportStep) -> None:
    """Train transformers' model in a short torch loop: labels, no attention mask, torch's AdamW, autocast."""
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
        report_step(loss)


def ours_in_parts(setting: Setting, report_step: ReportStep) -> None:
    """Train our model and optimizer without DeepSpeed, timing each part; weights and gradients in `precision`."""
    config = setting.config("unused")
    _use_threads(setting)
    vocab_size = make_dataset(config).tokenizer.vocab_size
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[setting.precision]
    model = stock_model(config, vocab_size)
    prepare_layers(model, checkpointing=False, compiled=is_compiled(config))
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
        report_step(loss, clock.parts)


class _Clock:
    """Seconds by part of a step, measured by hooks on the encoder, the head, and the gradients of their outputs."""

    def __init__(self, module: MaskedLM, device: str) -> None:
        self._device = device
        model: Any = module.model
        heads = [model.cls] if hasattr(model, "cls") else [model.head, model.decoder]
        model.base_model.register_forward_hook(lambda *hooked: self._after("encoder", hooked[2].last_hidden_state))
        heads[-1].register_forward_hook(lambda *hooked: self._after("head", hooked[2]))

    def _after(self, name: str, output: torch.Tensor) -> None:
        self.mark(f"{name}, forward")
        # Backward pass: the gradient of the head's output ends the loss, that of the encoder's output ends the head.
        finished = {"encoder": "head, backward", "head": "loss"}[name]
        output.register_hook(lambda _: self.mark(finished))

    def start(self) -> None:
        """Start timing a step."""
        self.parts: dict[str, float] = {}
        self._last = self._now()

    def mark(self, name: str) -> None:
        """Add the time since the last mark to part `name`."""
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
