"""What a run says when it begins, a few lines on what is trained, on what, and how; and when it is done."""

from __future__ import annotations

from dnabert_rm.checkpoint.train_state import TrainState
from dnabert_rm.config import RunConfig
from dnabert_rm.data.batching import BatchSplit
from dnabert_rm.data.dataset import WindowDataset
from dnabert_rm.distributed.device import memory_of_rank
from dnabert_rm.masking.schedule import MaskSchedule
from dnabert_rm.planning.planner import advice_line, make_job
from dnabert_rm.train.engine import Engine


def start_summary(
    config: RunConfig, dataset: WindowDataset, state: TrainState, split: BatchSplit, schedule: MaskSchedule,
    engine: Engine, validates: bool,
) -> str:  # fmt: skip
    """The lines, for standard error. Args: `validates` tells whether there are held-out windows to look at."""
    train = config.train
    last_step = min(train.steps, train.stop_after or train.steps)
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    short = sum(order.num_short_tokens for order in dataset.samplers)
    device = engine.ranks.device
    vocab_size, on_gpu = dataset.tokenizer.vocab_size, device.type == "cuda"
    job = make_job(config, vocab_size, split.world_size, on_gpu, state.plan, state.step)
    lines = [
        f"{'resuming at' if state.step else 'starting'} step {state.step} of {last_step}: "
        f"{parameters / 1e6:.1f} M parameters, {train.precision}, {split.world_size} ranks x "
        f"{split.micro_batch} windows x {split.accumulation(state.plan.batch_of_step(state.step))} accumulation",
        f"data: {dataset.num_windows} windows an epoch"
        + (f"; {short} tokens lie in segments shorter than a window and are not used" if short else ""),
        f"phases end at steps {', '.join(map(str, schedule.phase_ends))}; tensorboard --logdir {train.output}",
    ]
    if config.validation.every and not validates:
        lines.append(
            f"no validation: the data have no split {config.validation.split} with a segment as long as a window "
            "(data_prep build --val-contigs or --val-fraction holds one out)"
        )
    lines.append(advice_line(job, memory_of_rank(device, engine.ranks.local_world_size), train.ds_config))
    return "\n".join(lines)


def closing(config: RunConfig, step: int, loss: float | None) -> str:
    """The last line of a run that ended after `step`, which was its last or `--stop-after`'s, for standard error.

    Args: `loss` of the last step, None where no step was left to run.
    """
    train = config.train
    said = f"done: step {step} of {train.steps}" + (", by an earlier call" if loss is None else f", loss {loss:.3f}")
    if step < train.steps:
        return f"{said}; the same command without --stop-after goes on"
    return f"{said}; next: dnabert-rm export {train.output} --output HFDIR"
