"""Measured peak memory of a training step on a CPU rank, from the events of torch's allocator."""

from __future__ import annotations

import gc
from typing import Any

import torch
import torch.distributed as dist

from dnabert_rm.config import RunConfig, resolve
from dnabert_rm.data.batching import BatchPlan, split_batch
from dnabert_rm.data.dataset import make_dataset
from dnabert_rm.distributed.process_group import Ranks
from dnabert_rm.masking.collator import make_collator
from dnabert_rm.masking.schedule import make_mask_schedule
from dnabert_rm.model.build import architecture_of, build_model, prepare_layers
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.train.build_engine import make_engine
from dnabert_rm.train.deepspeed_settings import ds_settings
from dnabert_rm.train.engine import Engine
from dnabert_rm.train.step import Batch, StepStart, queue_step

WARM_UP_STEPS = 2
"""Short steps before the measurement. The first allocates AdamW's states, and ZeRO-3 records the module order in it."""


def step_peak(ranks: Ranks, sections: dict[str, Any], zero: dict[str, Any] | None) -> tuple[float, int]:
    """Return the peak bytes in tensors during one step with `Engine`, and the mean masked tokens of its micro-batches.

    `sections` are those of the run's configuration; `zero` updates the "zero_optimization" of its DeepSpeed
    configuration. The profiler does not see memory that gloo's threads free. So the bytes before the step are counted
    from all tensors, and the profiler is used only for the changes during the step.
    """
    config = resolve(sections)
    split = split_batch(BatchPlan.constant(config.train.global_batch), config.train.micro_batch, ranks.world_size)
    settings = ds_settings(config, split, config.train.precision, ranks.local_world_size)
    settings["zero_optimization"] |= zero or {}
    engine = _engine(config, settings, ranks)
    for step in range(WARM_UP_STEPS):
        short = [_short(batch) for batch in _batches(config, split.micro_batch, ranks)]
        queue_step(engine, short, step, 0, lambda: (False, False), StepStart(ranks.device)).result()
    batches = _batches(config, split.micro_batch, ranks)
    dist.barrier()
    before = _live_bytes()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        queue_step(engine, batches, WARM_UP_STEPS, 0, lambda: (False, False), StepStart(ranks.device)).result()
    return before + _peak(profile), sum(len(batch["positions"]) for batch in batches) // len(batches)


def _engine(config: RunConfig, settings: dict[str, Any], ranks: Ranks) -> Engine:
    network = build_model(architecture_of(config.model, 4101), 0, config.model.attention)
    prepare_layers(network, checkpointing=config.model.activation_checkpointing, compiled=False)
    return make_engine(MaskedLM(network, 6), config, settings, ranks)


def _batches(config: RunConfig, micro_batch: int, ranks: Ranks) -> list[Batch]:
    """Return the masked batches of one step, made from real windows."""
    dataset, plan = make_dataset(config), BatchPlan.constant(config.train.global_batch)
    collate = make_collator(
        config, make_mask_schedule(config, dataset.tokenizer.k), plan.step_of, dataset.tokenizer.vocab_size
    )
    found = []
    for first in range(ranks.rank * micro_batch, config.train.global_batch, micro_batch * ranks.world_size):
        # From the last step of the run, where spans are widest.
        samples = (config.train.steps - 1) * config.train.global_batch + torch.arange(first, first + micro_batch)
        windows = dataset.windows(samples.numpy(), config.train.steps - 1)
        masked = collate.mask(windows.samples, windows.ids)
        names = ("input_ids", "positions", "targets", "span")
        tensors = {name: torch.from_numpy(getattr(masked, name)) for name in names}
        found.append({"samples": samples, "num_replaced": torch.zeros((), dtype=torch.int64), **tensors})
    return found


def _short(batch: Batch) -> Batch:
    """Return a batch of the first eight tokens of the first window, with one prediction."""
    first = {"positions": torch.tensor([3]), "targets": torch.tensor([7]), "input_ids": batch["input_ids"][:1, :8]}
    return {**batch, **first}


def _live_bytes() -> int:
    """Return the bytes of all storages that tensors use now."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _peak(profile: Any) -> int:
    """Return the largest running sum of allocations and frees in a profile, in bytes."""
    changes = []
    nodes = list(profile.profiler.kineto_results.experimental_event_tree())
    while nodes:
        node = nodes.pop()
        nodes += node.children
        if node.tag == torch._C._profiler._EventType.Allocation:
            changes.append((node.start_time_ns, node.extra_fields.alloc_size))
    current = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        current += change
        peak = max(peak, current)
    return peak
