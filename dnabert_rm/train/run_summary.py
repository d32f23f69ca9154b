"""Summaries that a run prints at its start and at its end."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from dnabert_rm.checkpoint.run_folder import METRICS_NAME
from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import RunConfig
from dnabert_rm.config.run_config import ignored_settings
from dnabert_rm.data.batching import BatchSplit, describe_batch
from dnabert_rm.data.dataset import WindowDataset
from dnabert_rm.distributed.device import memory_of_rank
from dnabert_rm.masking.schedule import MaskSchedule
from dnabert_rm.model.kernels import chosen_attention_kernel, has_compiled_layers
from dnabert_rm.planning.planner import Job, advice_line
from dnabert_rm.train.engine import Engine
from dnabert_rm.train.run_verdict import judge_run
from dnabert_rm.train.validation_record import last_loss_text, read_validations


def start_summary(
    config: RunConfig,
    dataset: WindowDataset,
    state: TrainState,
    split: BatchSplit,
    schedule: MaskSchedule,
    job: Job,
    engine: Engine,
    *,
    last_step: int,
    has_validation: bool,
) -> str:
    """Return a few lines of text on a run's model, data, masking phases and memory use."""
    train = config.train
    num_parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    accumulation = split.accumulation(state.plan.batch_of_step(state.step))
    unused_tokens = sum(sampler.num_short_tokens for sampler in dataset.samplers)
    lines = [
        f"{'resuming at' if state.step else 'starting'} step {state.step} of {last_step}: "
        f"{num_parameters / 1e6:.1f} M parameters, {train.precision}, "
        + describe_batch(split.world_size, split.micro_batch, accumulation),
        f"data: {dataset.num_windows} windows per epoch"
        + (f"; {unused_tokens} tokens in segments shorter than a window are not used" if unused_tokens else ""),
        f"phases end at steps {', '.join(map(str, schedule.phase_ends))}"
        + (f"; tensorboard --logdir {train.output}" if "tensorboard" in train.trackers else ""),
    ]
    lines.append(_kernels_line(config, engine))
    if config.validation.every and not has_validation:
        lines.append(
            f"no validation: the data have no segment of split {config.validation.split} that is as long as a window; "
            "hold out data with data_prep build --val-contigs or --val-fraction"
        )
    lines += [f"warning: {text}" for text in ignored_settings(config)]
    memory = memory_of_rank(engine.ranks.device, engine.ranks.local_world_size)
    lines.append(advice_line(job, memory, train.ds_config))
    return "\n".join(lines)


def _kernels_line(config: RunConfig, engine: Engine) -> str:
    """Return a line of text on the attention kernel, and on compiled layers."""
    module: Any = engine.module
    kernel = chosen_attention_kernel(
        config.model, module.model.config, config.data.window, config.train.precision, engine.ranks.device
    )
    text = f"attention: {kernel}"
    if has_compiled_layers(module):
        cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_*")
        text += f"; the first step compiles the layers, which can take minutes ({cache} keeps them for the next run)"
    return text


def end_summary(config: RunConfig, step: int, has_trained: bool) -> str:
    """Return the last lines that a run prints on standard error: the verdict on the run, and what to do next.

    `step` is the number of completed steps. `has_trained` is false if no step was left to run. Loss and verdict come
    from the run folder's metrics.jsonl. Without a validation, there is no verdict.
    """
    train = config.train
    metrics = Path(train.output) / METRICS_NAME
    outcome = last_loss_text(metrics, step) if has_trained else "no step was left to run"
    if step < train.steps:
        advice = "run the same command without --stop-after to continue"
    else:
        advice = f"next: dnabert-rm export {train.output} --output HFDIR"
    done = f"done: step {step} of {train.steps}, {outcome}; {advice}"
    validations = read_validations(metrics, step)
    return f"{judge_run(validations).text}\n{done}" if validations else done
