"""Loader and RandomMask compared with their peers on one core: tokens per second, seek, memory.

    python benchmarks/loader.py

Every round runs every row once; a row's figure is its median over the rounds. Rates are tokens per second of processor
time, so that other load on the machine matters less. All rows run in one process and one thread.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from setting import prepare
from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

from dnabert_rm.data.batching import BatchPlan
from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.loader import MicroBatchSampler, make_loader
from dnabert_rm.genome import kmer
from dnabert_rm.masking.collator import RandomMaskCollator
from dnabert_rm.masking.schedule import make_schedule
from dnabert_rm.tokenizer.vocabulary_files import VOCAB_FILE

WINDOW = 512
MICRO_BATCH = 64
GLOBAL_BATCH = 2048
STEPS = 500_000
TARGET = 10.0


def write_samples(folder: Path, num_samples: int) -> str:
    """Write a plain webdataset shard of ready-made 512-token samples and return its path."""
    path, rng = folder / "samples.tar", np.random.default_rng(1)
    with webdataset.TarWriter(str(path)) as tar:
        for number in range(num_samples):
            ids = rng.integers(kmer.NUM_SPECIAL, kmer.vocab_size(6), WINDOW).astype(np.uint16)
            tar.write({"__key__": f"{number:07d}", "ids.npy": ids})
    return str(path)


def endless(make: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Yield the items of one pass after another, without end."""
    while True:
        yield from make()


def ours(data: Path, first_step: int = 400_000, micro_batch: int = MICRO_BATCH) -> Iterator[dict[str, Any]]:
    """Return masked batches of one rank, by default from the last phase of a run."""
    dataset, plan = WindowDataset([data], [], WindowSettings(window=WINDOW), seed=0), BatchPlan.constant(GLOBAL_BATCH)
    schedule = make_schedule("randommask", k=6, total_steps=STEPS)
    collate = RandomMaskCollator(schedule, plan.step_of, dataset.tokenizer.vocab_size, seed=0)
    sampler = MicroBatchSampler(plan, first_step, STEPS, 0, 1, micro_batch)
    return iter(make_loader(dataset, collate, sampler))


def ours_unmasked(data: Path) -> Iterator[Any]:
    """Return the same windows without masking."""
    dataset, plan = WindowDataset([data], [], WindowSettings(window=WINDOW), seed=0), BatchPlan.constant(GLOBAL_BATCH)
    sampler = MicroBatchSampler(plan, 400_000, STEPS, 0, 1, MICRO_BATCH)
    return iter(make_loader(dataset, lambda batch: {"ids": batch[1]}, sampler))


def hugging_face(folder: Path) -> tuple[Iterator[Any], Iterator[Any]]:
    """Return batches of transformers' collator: from tensors, and from run_mlm.py's lists with special-tokens mask."""
    (folder / VOCAB_FILE).write_text(kmer.vocabulary_text(6))
    collate = DataCollatorForLanguageModeling(BertTokenizerFast(str(folder / VOCAB_FILE)), mlm_probability=0.15)
    ids = torch.randint(kmer.NUM_SPECIAL, kmer.vocab_size(6), (MICRO_BATCH, WINDOW))
    ids[:, 0], ids[:, -1] = kmer.CLS_ID, kmer.SEP_ID
    special = [1] + [0] * (WINDOW - 2) + [1]
    lists = [{"input_ids": row, "special_tokens_mask": special} for row in ids.tolist()]
    return endless(lambda: iter([collate(list(ids))])), endless(lambda: iter([collate(lists)]))


def plain_webdataset(path: str) -> Iterator[Any]:
    """Yield MICRO_BATCH decoded samples at a time, read by plain webdataset."""

    def decode(sample: dict[str, Any]) -> Any:
        return np.load(io.BytesIO(sample["ids.npy"]), allow_pickle=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = endless(lambda: iter(webdataset.WebDataset(path, shardshuffle=False).map(decode)))
    while True:
        yield [next(samples) for _ in range(MICRO_BATCH)]


def rate(batches: Iterator[Any], seconds: float) -> float:
    """Return tokens per second of processor time, measured for about `seconds`."""
    count, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        next(batches)
        count += 1
    return count * MICRO_BATCH * WINDOW / spent


def seek_seconds(data: Path, sample: int) -> float:
    """Return seconds from opening the folder to the first collated global batch at `sample`, shard checks included."""
    start = time.perf_counter()
    next(ours(data, sample // GLOBAL_BATCH, GLOBAL_BATCH))
    return time.perf_counter() - start


class _Measured:
    """A collator that also reports the private and total memory of its process, in MB."""

    def __init__(self, collate: RandomMaskCollator) -> None:
        self._collate = collate

    def __call__(self, batch: Any) -> dict[str, Any]:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        return {**self._collate(batch), "own": kilobytes["Private_Dirty"] / 1000, "all": kilobytes["Rss"] / 1000}


def worker_megabytes(data: Path, num_batches: int) -> tuple[float, float]:
    """Return the private and total memory of a loader process after `num_batches` micro-batches, in MB."""
    dataset, plan = WindowDataset([data], [], WindowSettings(window=WINDOW), seed=0), BatchPlan.constant(GLOBAL_BATCH)
    schedule = make_schedule("randommask", k=6, total_steps=STEPS)
    collate = _Measured(RandomMaskCollator(schedule, plan.step_of, dataset.tokenizer.vocab_size, seed=0))
    sampler = MicroBatchSampler(plan, 0, num_batches * MICRO_BATCH // GLOBAL_BATCH, 0, 1, MICRO_BATCH)
    *_, last = make_loader(dataset, collate, sampler, num_workers=1)
    return float(last["own"]), float(last["all"])


def main() -> int:
    """Print the table. Return exit code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", type=int, default=64_000_000, help="size of the random genome (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="processor time per row and round (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        return compare(Path(scratch), args)


def compare(folder: Path, args: argparse.Namespace) -> int:
    """Measure all rows, with files in `folder`, and print them."""
    data = prepare(folder, args.bases)
    on_tensors, on_lists = hugging_face(folder)
    rows = {
        "this loader + RandomMask": ours(data),
        "this loader, no masks": ours_unmasked(data),
        "transformers' collator, ready tensors": on_tensors,
        "transformers' collator, ready lists": on_lists,
        "webdataset, 512-token samples": plain_webdataset(write_samples(folder, 20_000)),
    }
    for batches in rows.values():
        rate(batches, args.seconds)
    rates_of: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(args.rounds):
        for name, batches in rows.items():
            rates_of[name].append(rate(batches, args.seconds))
    medians = {name: statistics.median(rates) for name, rates in rates_of.items()}
    first = next(iter(medians.values()))
    print(f"{'tokens per second, one core':<40} {'Mtoken/s':>9} {'this loader is':>15}")
    for name, median in medians.items():
        print(f"{name:<40} {median / 1e6:>9.2f} {first / median:>13.1f} x")
    tries = [(seek_seconds(data, 0), seek_seconds(data, 10**9)) for _ in range(args.rounds)]
    near, far = (statistics.median(seconds) for seconds in zip(*tries, strict=True))
    print(f"seek, shards checked: {near:.3f} s to sample 0, {far:.3f} s to sample 1,000,000,000")
    own, total = worker_megabytes(data, 2048)
    print(f"memory of a worker: {own:.0f} MB private, {total:.0f} MB with shared libraries and page cache")
    best = max(median for name, median in medians.items() if name.startswith("transformers"))
    if first < TARGET * best or far > 1 or far > 1.5 * near + 0.05:
        print(f"FAILED: the targets are {TARGET:g} x transformers' collator and a seek under 1 s", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
