"""A pretraining run assembled: data, masks, model, engine, loop, checkpoints, records."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnabert_rm.checkpoint.load import load_checkpoint
from dnabert_rm.checkpoint.metadata import write_metadata
from dnabert_rm.checkpoint.resume import first_state
from dnabert_rm.checkpoint.run_folder import CONFIG_NAME, complete_steps
from dnabert_rm.checkpoint.save import remove_leftovers, remove_old_checkpoints, save_checkpoint
from dnabert_rm.config import RunConfig
from dnabert_rm.data.batching import split_batch
from dnabert_rm.data.dataset import WindowDataset, consumed_tokens, make_dataset
from dnabert_rm.data.loader import MicroBatchSampler, make_loader
from dnabert_rm.distributed.collectives import any_rank, barrier, on_every_rank, sum_over_ranks
from dnabert_rm.distributed.consistency import check_consistency
from dnabert_rm.distributed.device import peak_memory, resolve_precision
from dnabert_rm.distributed.process_group import Ranks, collective_timeout, process_group, set_collective_timeout
from dnabert_rm.distributed.rank_failure import explain_rank_failures
from dnabert_rm.distributed.watchdog import Watchdog, watchdog
from dnabert_rm.masking.collator import IGNORE, make_collator
from dnabert_rm.masking.schedule import make_mask_schedule
from dnabert_rm.model.build import architecture_of, build_model, prepare_layers
from dnabert_rm.model.flops import model_shape, peak_flops, training_flops_per_step
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.train.deepspeed_settings import ds_settings
from dnabert_rm.train.engine import Engine, is_built_partitioned, partitioned_build
from dnabert_rm.train.metrics import VALIDATION, MetricsWriter
from dnabert_rm.train.optimizer import learning_rate, warmup_length
from dnabert_rm.train.run_lock import run_lock
from dnabert_rm.train.run_summary import closing, start_summary
from dnabert_rm.train.stop import StopRequests
from dnabert_rm.train.validation import Validation
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import UserError
from dnabert_rm.utils.files import write_text
from dnabert_rm.utils.out_of_memory import explain_out_of_memory
from dnabert_rm.utils.progress import progress_bar
from dnabert_rm.utils.system_info import ENVIRONMENT_NAME, describe_environment

TAKES_LESS = (
    "lower --micro-batch (the global batch stays, by accumulation), give --model.activation_checkpointing, or choose "
    "another --ds-config (`dnabert-rm plan` says what each takes)"
)


def pretrain(config: RunConfig, stop: StopRequests | None = None) -> StepResult | None:
    """Run (or go on with) a pretraining run on this process's rank; returns the last step's result.

    All of `errors.UserError` can be raised; the ranks are checked against each other before their group is made.
    `errors.EndedEarlyError` where `stop` asked for an end before the last step, or other ranks are gone.
    """
    train, dataset, stop = config.train, make_dataset(config), stop or StopRequests()
    run, limit = Path(train.output), train.hang_timeout_seconds
    check = functools.partial(check_consistency, config=config, fingerprint=dataset.fingerprint)
    with (
        process_group(
            train.threads_per_rank, collective_timeout(limit), start_seconds=train.start_timeout_seconds, check=check
        ) as ranks,
        explain_rank_failures(run, ranks.rank, bool(stop.launchers), complete_steps),
        watchdog(run, ranks.rank, limit) as guard,
        run_lock(run, ranks),
        explain_out_of_memory(TAKES_LESS, ranks.rank),
    ):
        if ranks.is_first:
            stop.watch_files(run)
        return Run(config, dataset, ranks, stop, guard).train()


class Run:
    """One run on one rank: everything that the loop's hooks need to know."""

    def __init__(
        self, config: RunConfig, dataset: WindowDataset, ranks: Ranks, stop: StopRequests, guard: Watchdog
    ) -> None:
        precision = resolve_precision(config.train.precision)
        self.config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
        self.dataset, self.ranks, self.stop, self.guard = dataset, ranks, stop, guard
        self.folder = Path(config.train.output)
        self.state, self.checkpoint = first_state(self.config, dataset, ranks)
        self.split = split_batch(self.state.plan, config.train.micro_batch, ranks.world_size, self.state.step)
        self.schedule = make_mask_schedule(config, dataset.tokenizer.k)
        self.collate = make_collator(self.config, self.schedule, self.state.plan.step_of, dataset.tokenizer.vocab_size)
        self.last_step = min(config.train.steps, config.train.stop_after or config.train.steps)
        self.save_seconds: float | None = None
        self.shape = model_shape(config.model, dataset.tokenizer.vocab_size)
        if ranks.is_first:
            remove_leftovers(self.folder)
            self._write_records()
        barrier()
        guard.beat("loading")
        self.engine = self._make_engine()
        set_collective_timeout(collective_timeout(config.train.hang_timeout_seconds))
        if self.checkpoint:
            load_checkpoint(self.engine.deepspeed, self.checkpoint, self.folder, ranks)
        self.validation = Validation.of(self.config, ranks, self.split.micro_batch)
        self.tokens = consumed_tokens(dataset, self.state.plan, self.state.step)
        self.metrics_writer = (
            MetricsWriter(self.folder, self.state.step, self.tokens, self.config.to_toml()) if ranks.is_first else None
        )
        self.bar = progress_bar(
            "pretraining", self.last_step, "step", done=self.state.step, scaled=False, leave=True,
            quiet=not ranks.is_first,
        )  # fmt: skip

    def _write_records(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / CONFIG_NAME, self.config.to_toml())
        environment = json.dumps(describe_environment(self.ranks.world_size), indent=1)
        write_text(self.folder / ENVIRONMENT_NAME, environment + "\n")

    def _make_engine(self) -> Engine:
        config, model = self.config, self.config.model
        settings = ds_settings(config, self.split, config.train.precision, self.ranks.local_world_size)
        architecture = architecture_of(model, self.dataset.tokenizer.vocab_size, self.checkpoint)
        partitioned = is_built_partitioned(model, self.dataset.tokenizer.vocab_size, settings)
        with partitioned_build(settings) if partitioned else contextlib.nullcontext():
            # A checkpoint brings its own weights.
            init_from = "" if self.checkpoint else model.init_from
            build = functools.partial(build_model, architecture, config.train.seed, model.attention, init_from)
            # A partitioned build exchanges weights as it goes, so a rank whose build fails can only end by itself.
            network = build() if partitioned else on_every_rank(build)
        prepare_layers(network, checkpointing=model.activation_checkpointing, compile_layers=model.compile)
        return Engine(MaskedLM(network, self.dataset.tokenizer.k), config, settings, self.ranks)

    def train(self) -> StepResult | None:
        """Run the steps that are left; `StoppedError` where somebody asked for an end before the last one."""
        config = self.config
        sampler = MicroBatchSampler(
            self.state.plan, self.state.step, self.last_step, self.ranks.rank, self.ranks.world_size,
            self.split.micro_batch,
        )  # fmt: skip
        loader = make_loader(
            self.dataset,
            self.collate,
            sampler,
            num_workers=config.data.num_workers,
            prefetch=config.data.prefetch,
            pin_memory=self.ranks.device.type == "cuda",
            prepare_worker=self.guard.prepare_worker,
        )
        if self.ranks.is_first:
            validates = self.validation is not None
            text = start_summary(config, self.dataset, self.state, self.split, self.schedule, self.engine, validates)
            print(text, file=sys.stderr, flush=True)
        try:
            if any_rank(self.stop.wanted(), self.ranks):
                self.stop.obey(self.state.step, self.last_step)
            result = train(
                self.engine,
                loader,
                first_step=self.state.step,
                last_step=self.last_step,
                accumulation=sampler.accumulation,
                seed=config.train.seed,
                learning_rate=self.learning_rate,
                after_step=self.after_step,
                stop_wanted=self.stop.wanted,
                beat=self.guard.beat,
            )
            if result and result.stop_wanted:
                self.stop.obey(self.state.step, self.last_step)
        finally:
            self.bar.close()
            if self.metrics_writer:
                self.metrics_writer.close()
        if self.ranks.is_first:
            print(closing(config, self.state.step, result.loss if result else None), file=sys.stderr, flush=True)
        return result

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step."""
        optim, steps = self.config.optim, self.config.train.steps
        warmup = warmup_length(optim.warmup_steps, steps)
        return learning_rate(
            step,
            peak=optim.lr,
            schedule=optim.schedule,
            warmup_steps=warmup,
            total_steps=steps,
            decay_share=optim.decay_share,
        )

    def after_step(self, result: StepResult) -> bool:
        """Log and save where it is time to; whether the run stops here."""
        train, done = self.config.train, result.step + 1
        self.state = dataclasses.replace(self.state, step=done)
        last = done == self.last_step
        self.tokens += result.num_tokens
        self.bar.update()
        held_out = self._validate(done, last)
        if self.metrics_writer and (result.step % train.log_every == 0 or last or held_out):
            row = self._row(result) | held_out
            samples = np.arange(self.state.plan.first_sample(result.step), self.state.consumed_samples)
            self.metrics_writer.log(row, self.collate.spans(samples))
            self.save_seconds = None
            self.bar.set_postfix(loss=f"{row['loss']:.3f}", phase=row["phase"], refresh=False)
        if done % train.save_every == 0 or last or result.stop_wanted:
            self._save()
        return result.stop_wanted

    def _validate(self, done: int, last: bool) -> dict[str, Any]:
        """What a validation adds to the line of the step that is done, where one is due."""
        every = self.config.validation.every
        if self.validation is None or (done % every and not last):
            return {}
        start = time.perf_counter()
        found = self.validation.run(self.engine, self.guard.beat)
        return {VALIDATION: found, "validation_seconds": time.perf_counter() - start}

    def _save(self) -> None:
        """A checkpoint of this moment; what was logged before it is on disk first."""
        self.guard.beat("save")
        if self.metrics_writer:
            self.metrics_writer.flush()
        extras = functools.partial(write_metadata, self.engine.deepspeed, self.config, self.dataset, self.ranks)
        self.save_seconds = save_checkpoint(self.engine.deepspeed, self.state, self.folder, self.ranks, extras)
        if self.ranks.is_first:
            remove_old_checkpoints(self.folder, self.config.train.keep_last, self.config.train.keep_every)

    def _row(self, result: StepResult) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        consumed = self.state.consumed_samples
        windows = self.state.plan.batch_of_step(result.step)
        operations = training_flops_per_step(self.shape, windows, result.num_tokens // windows, result.num_masked)
        rate = operations / result.seconds / self.ranks.world_size
        peak = peak_flops(self.ranks.device_name)
        return {
            "step": result.step,
            "consumed_samples": consumed,
            "loss": result.loss,
            "masked_accuracy": result.masked_accuracy,
            "base_accuracy": result.base_accuracy,
            "lr": self.learning_rate(result.step),
            "grad_norm": result.grad_norm,
            "loss_scale": self.engine.loss_scale,
            "skipped_steps": self.engine.skipped_steps,
            "global_batch": windows,
            "phase": int(self.schedule.phase_of(result.step)),
            "max_span": self.schedule.max_span(result.step),
            "mean_span": result.mean_span,
            "replaced_windows": result.num_replaced,
            "masked_fraction": result.num_masked / (result.num_tokens - 2 * windows),
            "tokens_per_second": result.num_tokens / result.seconds,
            "tflops_per_rank": rate / 1e12,
            "mfu": rate / peak if peak else None,
            "data_wait": result.data_wait,
            "save_seconds": self.save_seconds,
            "memory_gb": peak_memory(self.ranks.device) / 1e9,
            "epoch": consumed / self.dataset.num_windows,
            "consumed_tokens": self.tokens,
        }


Batch = dict[str, torch.Tensor]


class NonFiniteLossError(UserError):
    """The loss of a step is NaN or infinite; nothing was updated."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: sums over the global batch, and where the time went."""

    step: int
    loss: float
    masked_accuracy: float
    base_accuracy: float | None
    num_masked: int
    num_tokens: int
    mean_span: float
    num_replaced: int
    grad_norm: float
    seconds: float
    data_wait: float
    stop_wanted: bool


def train(
    engine: Engine,
    loader: Iterable[Batch],
    *,
    first_step: int,
    last_step: int,
    accumulation: Callable[[int], int],
    seed: int,
    learning_rate: Callable[[int], float],
    after_step: Callable[[StepResult], bool | None],
    stop_wanted: Callable[[], bool],
    beat: Callable[[str], None],
) -> StepResult | None:
    """Run the steps `first_step` … `last_step - 1`; returns the last step's result.

    `loader` gives this rank's micro-batches in order, `accumulation(step)` of them a step. `after_step` logs and
    saves; a true answer stops the run after that step. `stop_wanted` is asked once a step; a result tells the answer
    of all ranks together. `beat` is told what is waited for next.
    """
    batches, result = iter(loader), None
    for step in range(first_step, last_step):
        start = time.perf_counter()
        beat("loader" if result else "first batch")
        micro_batches = [next(batches) for _ in range(accumulation(step))]
        waited = time.perf_counter() - start
        engine.set_learning_rate(learning_rate(step))
        engine.set_accumulation(len(micro_batches))
        beat("step" if result else "first step")
        totals = run_step(engine, micro_batches, step, seed, stop_wanted)
        result = _result(engine, totals, step, time.perf_counter() - start, waited)
        if after_step(result):
            break
    return result


def run_step(
    engine: Engine, micro_batches: list[Batch], step: int, seed: int, stop_wanted: Callable[[], bool]
) -> list[float]:
    """Forward, backward and update on one global batch.

    Returns sums over the global batch: loss, right predictions, right bases, ranks that were asked to stop, masked
    tokens, tokens, spans, windows, stand-ins. The divisor of the loss is known before the first backward pass, so the
    gradient is that of the global mean.
    """
    device = engine.ranks.device
    counts = sum_over_ranks(_counts(micro_batches), engine.ranks)
    num_masked = counts[0].clamp(min=1)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for number, batch in enumerate(micro_batches):
        seed_dropout(seed, int(batch["samples"][0]))
        inputs = (batch[name].to(device, non_blocking=True) for name in ("input_ids", "positions", "targets"))
        loss_sum, num_right, num_right_bases = engine(*inputs)
        sums += torch.stack([loss_sum.detach().double(), num_right.double(), num_right_bases.double()])
        is_last = number == len(micro_batches) - 1
        engine.backward(loss_sum, num_masked, is_last)
        if is_last:
            # Asked as late as the step's last sum allows, so that a stop waits for no further step.
            totals = sum_over_ranks(torch.cat([sums, sums.new_tensor([stop_wanted()])]), engine.ranks)
            _check_finite(float(totals[0]), micro_batches, step, int(counts[3]))
        engine.step()
    return [*totals.tolist(), *counts.tolist()]


def _counts(micro_batches: list[Batch]) -> list[float]:
    """Masked tokens, tokens, sum of spans, windows and stand-ins for bad shards of this rank's part."""
    return [
        float(sum(int((batch["targets"] != IGNORE).sum()) for batch in micro_batches)),
        float(sum(batch["input_ids"].numel() for batch in micro_batches)),
        float(sum(int(batch["span"].sum()) for batch in micro_batches)),
        float(sum(len(batch["samples"]) for batch in micro_batches)),
        float(sum(int(batch["num_replaced"]) for batch in micro_batches)),
    ]


def _check_finite(loss_sum: float, micro_batches: list[Batch], step: int, num_windows: int) -> None:
    """The same error on every rank; rank 0, which reports it, holds the first sample of the global batch."""
    if not math.isfinite(loss_sum):
        first = min(int(batch["samples"].min()) for batch in micro_batches)
        raise NonFiniteLossError(
            f"step {step}: the loss is {loss_sum} over the samples {first} to {first + num_windows - 1}; nothing was "
            f"updated. Look at them with `dnabert-rm show-batch --step {step}`, and lower --lr or raise "
            "--optim.warmup_steps; the last checkpoint is intact"
        )


def seed_dropout(seed: int, sample: int) -> None:
    """Seed torch's chance by the micro-batch's first sample, so that dropout does not depend on what ran before."""
    torch.manual_seed(int(random.fold(random.key(seed, "dropout"), sample) >> np.uint64(1)))


def _result(engine: Engine, totals: list[float], step: int, seconds: float, waited: float) -> StepResult:
    loss_sum, num_right, num_right_bases, num_stop, *counts = totals
    num_masked, num_tokens, span_sum, num_windows, num_replaced = counts
    divisor = max(1.0, num_masked)
    return StepResult(
        step=step,
        loss=loss_sum / divisor,
        masked_accuracy=num_right / divisor,
        base_accuracy=num_right_bases / divisor / engine.k if engine.k else None,
        num_masked=int(num_masked),
        num_tokens=int(num_tokens),
        mean_span=span_sum / num_windows,
        num_replaced=int(num_replaced),
        grad_norm=engine.grad_norm,
        seconds=seconds,
        data_wait=waited / seconds,
        stop_wanted=num_stop > 0,
    )
