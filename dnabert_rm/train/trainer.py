"""Pretraining: `pretrain()` runs one rank, and `Trainer` holds the training loop over steps (`train/step.py`)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dnabert_rm.checkpoint.compatibility import record_changes
from dnabert_rm.checkpoint.load import load_checkpoint
from dnabert_rm.checkpoint.metadata import make_metadata, read_data_provenance
from dnabert_rm.checkpoint.resume import Start, find_start
from dnabert_rm.checkpoint.run_folder import CONFIG_NAME, ENVIRONMENT_NAME, complete_steps
from dnabert_rm.checkpoint.save import EARLIER_CHECKPOINTS, CheckpointSave, remove_leftovers, remove_old_checkpoints
from dnabert_rm.config import RunConfig
from dnabert_rm.data.batching import split_batch
from dnabert_rm.data.dataset import WindowDataset, consumed_tokens, make_dataset
from dnabert_rm.data.loader import Loader, MicroBatchSampler, make_loader
from dnabert_rm.distributed.collectives import any_rank, barrier, on_first_rank
from dnabert_rm.distributed.consistency import check_consistency
from dnabert_rm.distributed.device import peak_memory, resolve_precision
from dnabert_rm.distributed.process_group import Ranks, collective_timeout, process_group, set_collective_timeout
from dnabert_rm.distributed.rank_failure import explain_rank_failures
from dnabert_rm.distributed.watchdog import Watchdog
from dnabert_rm.masking.collator import make_collator
from dnabert_rm.masking.schedule import make_mask_schedule
from dnabert_rm.model.flops import model_shape
from dnabert_rm.model.kernels import attention_kernels, deterministic_kernels, has_compiled_layers
from dnabert_rm.model.losses import base_loss_share
from dnabert_rm.planning.planner import job_of_run
from dnabert_rm.train.build_engine import build_engine
from dnabert_rm.train.device_limits import check_device
from dnabert_rm.train.metrics import MetricsWriter, metrics_row
from dnabert_rm.train.optimizer import learning_rate, warmup_length
from dnabert_rm.train.run_lock import run_lock
from dnabert_rm.train.run_summary import end_summary, start_summary
from dnabert_rm.train.step import NonFiniteLossError, QueuedStep, StepStart, queue_step
from dnabert_rm.train.step_result import StepResult
from dnabert_rm.train.stop import StopRequests
from dnabert_rm.train.trackers import is_failure
from dnabert_rm.train.validation import Validation
from dnabert_rm.train.validation_record import VALIDATION, validation_line
from dnabert_rm.utils.errors import CheckpointError, explain_file_system_errors
from dnabert_rm.utils.files import write_text
from dnabert_rm.utils.out_of_memory import explain_out_of_memory
from dnabert_rm.utils.progress import progress_bar
from dnabert_rm.utils.system_info import describe_environment

MEMORY_ADVICE = (
    "lower --micro-batch (accumulation keeps the global batch), pass --model.activation_checkpointing, or choose "
    "another --ds-config (`dnabert-rm plan` lists the memory of each)"
)


def pretrain(config: RunConfig, stop: StopRequests | None = None) -> StepResult | None:
    """Start or resume a pretraining run on this process's rank.

    Returns the result of the last step, or None if no step was left. Raises `UserError` for an error in the
    configuration, data or checkpoints. Raises `StoppedError` if `stop` ended the run before its last step, and
    `RankFailureError` if another rank failed. The ranks compare their configurations before they form a process group.
    """
    train = config.train
    folder = Path(train.output)
    hang_seconds = train.hang_timeout_seconds
    dataset = make_dataset(config)
    stop = stop or StopRequests()
    check = functools.partial(check_consistency, config=config, fingerprint=dataset.fingerprint)
    with (
        process_group(
            train.threads_per_rank,
            collective_timeout(hang_seconds),
            start_seconds=train.start_timeout_seconds,
            check=check,
        ) as ranks,
        explain_rank_failures(folder, ranks.rank, bool(stop.launchers), complete_steps),
        explain_file_system_errors(folder, EARLIER_CHECKPOINTS),
        contextlib.closing(Watchdog(folder, ranks.rank, hang_seconds)) as watchdog,
        run_lock(folder, ranks),
        explain_out_of_memory(MEMORY_ADVICE, ranks.rank),
        attention_kernels(config.model.attention, train.deterministic),
        deterministic_kernels(train.deterministic),
    ):
        if ranks.is_first:
            stop.watch_files(folder)
        return Trainer(config, dataset, ranks, stop, watchdog).run()


class Trainer:
    """One rank of a pretraining run: data, masks, engine, checkpoints, metrics and the loop over steps."""

    def __init__(
        self, config: RunConfig, dataset: WindowDataset, ranks: Ranks, stop: StopRequests, watchdog: Watchdog
    ) -> None:
        """Build the model, and load a checkpoint if there is one. All ranks must call this together."""
        precision = resolve_precision(config.train)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
        start = find_start(config, dataset, ranks)
        self.config, config = start.recorded_config(config), start.sized_config(config)
        self.state, self.checkpoint = start.state, start.checkpoint
        self.dataset = dataset
        self.ranks = ranks
        self.stop = stop
        self.watchdog = watchdog
        self.folder = Path(config.train.output)
        self.vocab_size = dataset.tokenizer.vocab_size
        self.first_step = start.state.step
        self.last_step = min(config.train.steps, config.train.stop_after or config.train.steps)
        self.save_seconds: float | None = None
        self.stopping = False
        self.saving: CheckpointSave | None = None
        self.cleaner: threading.Thread | None = None

        self.data_provenance = on_first_rank(lambda: read_data_provenance(start, dataset), ranks)
        self.split = split_batch(self.state.plan, config.train.micro_batch, ranks.world_size, self.state.step)
        self.schedule = make_mask_schedule(config, dataset.tokenizer.k)
        self.collate = make_collator(config, self.schedule, self.state.plan.step_of, self.vocab_size)
        self.shape = model_shape(config.model, self.vocab_size)
        self.job = job_of_run(
            config, self.vocab_size, self.state.plan, self.split, self.schedule,
            on_gpu=ranks.device.type == "cuda", first_step=self.state.step,
        )  # fmt: skip
        if self.first_step < self.last_step:
            on_first_rank(lambda: check_device(config, self.job, ranks), ranks)
        if ranks.is_first:
            remove_leftovers(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
        barrier()
        watchdog.reset("loading")
        self.engine = build_engine(config, self.split, dataset.tokenizer, self.checkpoint, ranks)
        # DeepSpeed has created its process groups by now, so the timeout applies to them too.
        set_collective_timeout(collective_timeout(config.train.hang_timeout_seconds))
        if self.checkpoint:
            load_checkpoint(self.engine.deepspeed, self.checkpoint, self.folder, ranks, precision)
            self.engine.num_skipped = self.engine.deepspeed.skipped_steps
        if ranks.is_first:  # a run that can't load its checkpoint must not change these files
            self._write_run_files(start)
        self.validation = Validation.from_config(config, dataset, ranks, self.split.micro_batch)
        self.num_tokens = consumed_tokens(dataset, self.state.plan, self.state.step)
        self.metrics_writer = (
            MetricsWriter(self.folder, self.state.step, self.num_tokens, self.config.to_toml(), config.train.trackers)
            if ranks.is_first
            else None
        )
        self.bar = self._open_progress_bar()
        self.loader = self._build_loader()

    def run(self) -> StepResult | None:
        """Train to the last step. Print a summary on standard error before the first step and after the last.

        Raises `StoppedError` on all ranks if any rank was asked to stop before the last step. By then all completed
        steps have been saved in a checkpoint.
        """
        self._print_start()
        try:
            if any_rank(self.stop.wanted(), self.ranks):
                self.stop.raise_if_unfinished(self.state.step, self.last_step)
            result = self.train()
            if self.stopping:
                self.stop.raise_if_unfinished(self.state.step, self.last_step)
        finally:
            self.bar.close()
            if self.cleaner:
                self.cleaner.join()
            if self.metrics_writer:
                self.metrics_writer.close(failed=is_failure(sys.exception()))
        self._print_end(result)
        return result

    def train(self) -> StepResult | None:
        """Run the remaining steps and return the result of the last one, or None if no step was left.

        The result of a step is read while the device works on the next step, so that the device never waits. Before a
        validation or a checkpoint, the run waits for the current step.
        """
        config = self.config
        loader = iter(self.loader)
        result: StepResult | None = None
        earlier: QueuedStep | None = None
        for step in range(self.state.step, self.last_step):
            # Next batch: this rank's share of the global batch, one batch per forward pass.
            start = StepStart(self.ranks.device)
            self.watchdog.reset("loader" if result else "first batch")
            num_batches = self.split.accumulation(self.state.plan.batch_of_step(step))
            batches = [next(loader) for _ in range(num_batches)]
            start.batches_ready()

            # Forward, backward, update.
            self.engine.set_learning_rate(self.learning_rate(step))
            self.engine.set_accumulation(num_batches)
            self.engine.set_base_share(self.base_share(step))
            self.watchdog.reset("step" if result else "first step")
            queued = queue_step(self.engine, batches, step, config.train.seed, self.flags, start)
            self.state = dataclasses.replace(self.state, step=step + 1)

            # Read and log the step before this one.
            if earlier:
                result = self.finish(earlier)
            earlier = queued
            if not (self.stopping or self._is_due(config.validation.every) or self._is_due(config.train.save_every)):
                continue

            # Wait for this step, validate, log, save, stop.
            is_validated = self._is_due(config.validation.every)
            result, earlier = self.finish(queued, self.validate if is_validated else None), None
            if self.stopping or self._is_due(config.train.save_every):
                self.save()
            if self.stopping:
                break
        self.finish_save()
        return result

    def flags(self) -> tuple[bool, bool]:
        """Return whether this rank was asked to stop, and whether it has written its files of a checkpoint."""
        return self.stop.wanted(), self.saving is not None and self.saving.is_written

    def finish(self, queued: QueuedStep, validate: Callable[[], dict[str, Any]] | None = None) -> StepResult:
        """Wait for a queued step, validate after it if asked to, log it and return its result.

        Also finish a checkpoint that all ranks have written, because they learn of it from the same step.
        """
        try:
            result = queued.result()
        except NonFiniteLossError:
            with contextlib.suppress(CheckpointError):
                self.finish_save()  # the checkpoint is from before the step
            raise
        self.stopping = self.stopping or result.stop_wanted
        if result.num_written == self.ranks.world_size:
            self.finish_save()
        self.num_tokens += result.num_tokens
        self.bar.update()
        if self.ranks.is_first and queued.step == self.first_step and has_compiled_layers(self.engine.module):
            self.bar.write(f"compiled the layers: the first step took {result.seconds:.1f} s", file=sys.stderr)
        self.log(result, validate() if validate else {})
        return result

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        optim = self.config.optim
        total_steps = self.config.train.steps
        return learning_rate(
            step,
            peak=optim.lr,
            schedule=optim.schedule,
            warmup_steps=warmup_length(optim.warmup_steps, total_steps),
            total_steps=total_steps,
            decay_share=optim.decay_share,
        )

    def base_share(self, step: int) -> float:
        """Return the fraction of a step's training loss that is the loss over bases."""
        model = self.config.model
        return base_loss_share(model.loss, model.loss_switch, step, self.config.train.steps)

    def validate(self) -> dict[str, Any]:
        """Run the validation and return its results and duration, to add to a metrics row.

        Return an empty dict if the run has no validation.
        """
        if self.validation is None:
            return {}
        start = time.perf_counter()
        curves = self.validation.run(self.engine, self.watchdog.reset)
        return {VALIDATION: curves, "validation_seconds": time.perf_counter() - start}

    def log(self, result: StepResult, validation: dict[str, Any]) -> None:
        """Write a row of metrics if one is due: every `log_every` steps, after a validation or after the last step."""
        step = result.step
        is_due = step % self.config.train.log_every == 0 or step + 1 == self.last_step or validation
        if self.metrics_writer is None or not is_due:
            return
        state = dataclasses.replace(self.state, step=step + 1)  # a later step may have been queued
        row = metrics_row(
            result,
            state,
            self.schedule,
            self.engine,
            shape=self.shape,
            learning_rate=self.learning_rate(step),
            save_seconds=self.save_seconds,
            peak_memory_bytes=peak_memory(self.ranks.device),
            epoch_samples=self.dataset.epoch_samples,
            consumed_tokens=self.num_tokens,
        )
        samples = np.arange(state.plan.first_sample(step), state.consumed_samples)
        self.metrics_writer.log(row | validation, self.collate.spans(samples))
        self.save_seconds = None
        if validation:
            self.bar.write(validation_line(step + 1, validation[VALIDATION]), file=sys.stderr)
        self.bar.set_postfix(loss=f"{row['loss']:.3f}", phase=row["phase"], refresh=False)

    def save(self) -> None:
        """Flush all logged metrics to disk and start a checkpoint, after the one before is finished."""
        start = time.perf_counter()
        self.finish_save()
        self.watchdog.reset("save")
        if self.cleaner:
            self.cleaner.join()  # it frees space on the disk
        if self.metrics_writer:
            self.metrics_writer.flush()
        engine = self.engine.deepspeed
        metadata = make_metadata(engine, self.config, self.dataset, self.data_provenance, self.ranks)
        self.saving = CheckpointSave(engine, self.state, self.folder, self.ranks, metadata)
        if not self.config.train.save_in_background:
            self.finish_save()
        self.save_seconds = time.perf_counter() - start

    def finish_save(self) -> None:
        """Wait until a started checkpoint is complete, and then delete old ones. All ranks must call this together."""
        if self.saving is None:
            return
        self.watchdog.reset("save")
        saving, self.saving = self.saving, None
        saving.finish()
        if self.ranks.is_first:
            if self.cleaner:
                self.cleaner.join()
            train = self.config.train
            self.cleaner = threading.Thread(
                target=remove_old_checkpoints, args=(self.folder, train.keep_last, train.keep_every), name="cleaner"
            )
            self.cleaner.start()

    def _is_due(self, every: int) -> bool:
        """Return whether the number of completed steps is a multiple of `every`, or the last step is done."""
        done = self.state.step
        return done == self.last_step or (every > 0 and done % every == 0)

    def _write_run_files(self, start: Start) -> None:
        """Write the configuration, the environment and the accepted changes to the run folder.

        Accepted changes are the changes of the configuration that the user allowed with `--allow-changes`. Call this
        only on rank 0.
        """
        write_text(self.folder / CONFIG_NAME, self.config.to_toml())
        environment = json.dumps(describe_environment(self.ranks.world_size), indent=1)
        write_text(self.folder / ENVIRONMENT_NAME, environment + "\n")
        record_changes(self.folder, start.state.step, start.changes)

    def _build_loader(self) -> Loader:
        """Return the loader of this rank's batches, from the next step to the last step."""
        sampler = MicroBatchSampler(
            self.state.plan,
            self.state.step,
            self.last_step,
            self.ranks.rank,
            self.split.world_size,
            self.split.micro_batch,
        )
        return make_loader(
            self.dataset,
            self.collate,
            sampler,
            num_workers=self.config.data.num_workers,
            prefetch=self.config.data.prefetch,
            pin_memory=self.ranks.device.type == "cuda",
            prepare_worker=self.watchdog.prepare_worker,
        )

    def _open_progress_bar(self) -> Any:
        return progress_bar(
            "pretraining",
            self.last_step,
            "step",
            done=self.state.step,
            scaled=False,
            leave=True,
            quiet=not self.ranks.is_first,
        )

    def _print_start(self) -> None:
        """Print the start summary of the run on rank 0."""
        if self.ranks.is_first:
            summary = start_summary(
                self.config,
                self.dataset,
                self.state,
                self.split,
                self.schedule,
                self.job,
                self.engine,
                last_step=self.last_step,
                has_validation=self.validation is not None,
            )
            print(summary, file=sys.stderr, flush=True)

    def _print_end(self, result: StepResult | None) -> None:
        """Print the final summary of the run on rank 0."""
        if self.ranks.is_first:
            summary = end_summary(self.config, self.state.step, result is not None)
            print(summary, file=sys.stderr, flush=True)
