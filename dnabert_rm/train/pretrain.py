"""A pretraining run assembled: data, masks, model, engine, loop, checkpoints, records."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dnabert_rm.config import RunConfig
from dnabert_rm.data.dataset import WindowDataset
from dnabert_rm.data.loader import MicroBatchSampler, make_loader
from dnabert_rm.model.build import build_model, prepare_layers
from dnabert_rm.model.flops import peak_flops, training_flops_per_step
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.out_of_memory import memory_explained
from dnabert_rm.progress import progress_bar
from dnabert_rm.shards import write_atomically
from dnabert_rm.train.announcement import announcement, closing
from dnabert_rm.train.architecture import architecture_of, is_built_partitioned
from dnabert_rm.train.checkpoint import remove_leftovers, remove_old, save_checkpoint
from dnabert_rm.train.device import peak_memory
from dnabert_rm.train.distributed import Ranks, any_rank, barrier, on_every_rank, process_group
from dnabert_rm.train.ds_config import ds_settings, split_batch
from dnabert_rm.train.engine import Engine, partitioned_build, resolve_precision
from dnabert_rm.train.environment import ENVIRONMENT_NAME, describe_environment
from dnabert_rm.train.extras import write_extras
from dnabert_rm.train.inputs import consumed_tokens, make_collator, make_dataset, make_mask_schedule, model_shape
from dnabert_rm.train.lock import run_lock
from dnabert_rm.train.loop import StepResult, train
from dnabert_rm.train.lost import collective_timeout, lost_ranks_explained, set_collective_timeout
from dnabert_rm.train.monitor import VALIDATION, Monitor
from dnabert_rm.train.optim import learning_rate, warmup_length
from dnabert_rm.train.rank_checks import check_ranks
from dnabert_rm.train.restore import load_checkpoint
from dnabert_rm.train.resume import first_state
from dnabert_rm.train.run_folder import CONFIG_NAME
from dnabert_rm.train.stop import StopRequests
from dnabert_rm.train.validation import Validation
from dnabert_rm.train.watchdog import Watchdog, watchdog

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
    check = functools.partial(check_ranks, config=config, fingerprint=dataset.fingerprint)
    with (
        process_group(
            train.threads_per_rank, collective_timeout(limit), start_seconds=train.start_timeout_seconds, check=check
        ) as ranks,
        lost_ranks_explained(run, ranks.rank, bool(stop.launchers)),
        watchdog(run, ranks.rank, limit) as guard,
        run_lock(run, ranks),
        memory_explained(TAKES_LESS, ranks.rank),
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
        self.collate = make_collator(self.config, dataset, self.state.plan)
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
            load_checkpoint(self.engine, self.checkpoint, self.folder, ranks)
        self.validation = Validation.of(self.config, ranks, self.split.micro_batch)
        self.tokens = consumed_tokens(dataset, self.state.plan, self.state.step)
        self.monitor = (
            Monitor(self.folder, self.state.step, self.tokens, self.config.to_toml()) if ranks.is_first else None
        )
        self.bar = progress_bar(
            "pretraining", self.last_step, "step", done=self.state.step, scaled=False, leave=True,
            quiet=not ranks.is_first,
        )  # fmt: skip

    def _write_records(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / CONFIG_NAME, self.config.to_toml())
        environment = json.dumps(describe_environment(self.ranks.world_size), indent=1)
        write_atomically(self.folder / ENVIRONMENT_NAME, environment + "\n")

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
            text = announcement(config, self.dataset, self.state, self.split, self.schedule, self.engine, validates)
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
            if self.monitor:
                self.monitor.close()
        if self.ranks.is_first:
            print(closing(config, self.state.step, result), file=sys.stderr, flush=True)
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
        if self.monitor and (result.step % train.log_every == 0 or last or held_out):
            row = self._row(result) | held_out
            samples = np.arange(self.state.plan.first_sample(result.step), self.state.consumed_samples)
            self.monitor.log(row, self.collate.spans(samples))
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
        if self.monitor:
            self.monitor.flush()
        extras = functools.partial(write_extras, self.engine, self.config, self.dataset, self.ranks)
        self.save_seconds = save_checkpoint(self.engine, self.state, self.folder, self.ranks, extras)
        if self.ranks.is_first:
            remove_old(self.folder, self.config.train.keep_last, self.config.train.keep_every)

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
