"""The loader with PyTorch's real workers: the same batches for any number of workers, and after a resume."""

from __future__ import annotations

import collections
import logging
import os
import signal
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from support import random_bases, write_prepared

from dnabert_rm.data import loader as loader_module
from dnabert_rm.data.batching import BatchPlan
from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.loader import MicroBatchSampler, make_loader
from dnabert_rm.data.sampler import CYCLE
from dnabert_rm.data.storage import StorageSettings
from dnabert_rm.genome.kmer import decode, reverse_complement, vocab_size
from dnabert_rm.masking.collator import RandomMaskCollator
from dnabert_rm.masking.schedule import make_schedule
from dnabert_rm.utils.errors import DataError, FileSystemError, explain_file_system_errors

PLAN, STEPS = BatchPlan.constant(24), 12
Batch = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three prepared shards with 300 windows of 30 tokens, so that twelve steps of 24 stay within an epoch."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("loader") / "data"
    write_prepared(path, [[random_bases(rng, 1500), random_bases(rng, 1500)] for _ in range(3)])
    return path


def load(folder, **how) -> list[Batch]:
    """Return the batches of `open_loader`."""
    return list(open_loader(folder, **how))


def open_loader(
    folder, *, first=0, last=STEPS, rank=0, ranks=1, accumulation=1, plan=PLAN, settings=None, storage=None, **how
):
    """Return the loader of one rank; the phases change at steps 3, 6 and 9. `folder` may be a list of folders."""
    settings = WindowSettings(**{"window": 32, "num_streams": 5, **(settings or {})})
    dataset = WindowDataset(folder if isinstance(folder, list) else [folder], [], settings, 0, storage)
    schedule = make_schedule("randommask", k=6, total_steps=STEPS, phase_ends=[3, 6, 9, 12])
    collate = RandomMaskCollator(schedule, plan.step_of, vocab_size(6), 0)
    sampler = MicroBatchSampler(plan, first, last, rank, ranks, plan.sizes()[0] // (ranks * accumulation))
    loader = make_loader(dataset, collate, sampler, **how)
    assert len(loader) == sum(plan.batch_of_step(step) for step in range(first, last)) // ranks // sampler.micro_batch
    return loader


def by_sample(batches: list[Batch]) -> dict[int, tuple]:
    """Return input ids, targets and span of every window by its sample index."""
    found = {}
    for batch in batches:
        width = batch["input_ids"].shape[1]
        targets = torch.full(batch["input_ids"].shape, -100)
        targets.view(-1)[batch["positions"]] = batch["targets"]
        assert width == targets.shape[1]
        for row, sample in enumerate(batch["samples"].tolist()):
            assert sample not in found, "a window came twice"
            found[sample] = (batch["input_ids"][row].tolist(), targets[row].tolist(), int(batch["span"][row]))
    return found


@pytest.fixture(scope="module")
def whole_run(folder) -> dict[int, tuple]:
    """The windows of all steps, loaded in this process by one rank."""
    return by_sample(load(folder))


@pytest.mark.parametrize(("num_workers", "prefetch"), [(1, 1), (4, 1), (4, 16)])
def test_workers_and_prefetch_change_nothing(folder, whole_run, num_workers, prefetch):
    batches = load(folder, num_workers=num_workers, prefetch=prefetch)
    assert by_sample(batches) == whole_run
    in_order = [batch["samples"].tolist() for batch in batches]
    assert in_order == [list(range(24 * step, 24 * step + 24)) for step in range(STEPS)]


@pytest.mark.parametrize(("ranks", "accumulation", "num_workers"), [(2, 4, 3), (3, 1, 2), (6, 4, 0), (8, 1, 0)])
def test_ranks_and_accumulation_change_nothing(folder, whole_run, ranks, accumulation, num_workers):
    batches = [
        load(folder, rank=rank, ranks=ranks, accumulation=accumulation, num_workers=num_workers)
        for rank in range(ranks)
    ]
    assert by_sample([batch for part in batches for batch in part]) == whole_run
    for step in range(STEPS):
        of_step = slice(step * accumulation, (step + 1) * accumulation)
        samples = torch.cat([batch["samples"] for part in batches for batch in part[of_step]])
        assert sorted(samples.tolist()) == list(range(24 * step, 24 * step + 24))


@pytest.fixture(scope="module")
def two_genomes(tmp_path_factory) -> dict[Path, list[str]]:
    """Two prepared folders, of 100 and of 200 windows of 30 tokens, and their sequences."""
    rng, path = np.random.default_rng(1), tmp_path_factory.mktemp("genomes")
    genomes = {path / "small": [[80], [20]], path / "large": [[66, 37], [50], [47]]}
    found = {}
    for folder, counts in genomes.items():
        shards = [[random_bases(rng, 30 * count + 11) for count in shard] for shard in counts]
        write_prepared(folder, shards)
        found[folder] = [sequence for shard in shards for sequence in shard]
    return found


def true_bases(row: tuple) -> str:
    """Return the bases of a window of `by_sample`, before it was masked."""
    inputs, targets, _ = row
    return decode(np.array([i if t == -100 else t for i, t in zip(inputs, targets, strict=True)][1:-1]), 6)


def find(bases: str, sequences: list[str]) -> tuple[bool, int, int] | None:
    """Return whether bases are on the reverse strand of a sequence, its number, and their start on its forward one."""
    for is_reverse, text in enumerate((bases, reverse_complement(bases.encode()).decode())):
        for number, sequence in enumerate(sequences):
            if text in sequence:
                return bool(is_reverse), number, sequence.index(text)
    return None


@pytest.mark.parametrize(("num_genomes", "strand"), [(1, "forward"), (2, "forward"), (2, "random"), (2, "both")])
def test_the_grid_changes_nothing_across_epochs(two_genomes, num_genomes, strand, monkeypatch):
    """A cycle of the mixture has 20.48 epochs of the small genome and 10.24 of the large one.

    An epoch has one window for each of the equal parts of a contig, or one for each strand of a part.
    """
    folders = list(two_genomes)[:num_genomes]
    how = {"plan": BatchPlan.constant(64), "last": CYCLE // 64, "settings": {"strand": strand}}
    expected = by_sample(load(folders, **how))
    assert sorted(expected) == list(range(CYCLE))
    monkeypatch.setattr(loader_module, "LOCATED_AHEAD", 200)
    for ranks, accumulation, num_workers, first in ((1, 1, 3, 0), (2, 4, 2, 0), (4, 2, 1, 37)):
        grid = {"ranks": ranks, "accumulation": accumulation, "num_workers": num_workers, "first": first}
        parts = [load(folders, rank=rank, **grid, **how) for rank in range(ranks)]
        rows = {sample: row for sample, row in expected.items() if sample >= 64 * first}
        assert by_sample([batch for part in parts for batch in part]) == rows
    bases = [true_bases(row) for row in expected.values()]
    for folder, num_windows in zip(folders, (100, 200), strict=False):
        genome = two_genomes[folder]
        seen = collections.Counter()
        for is_reverse, number, start in (place for text in bases if (place := find(text, genome))):
            length = len(genome[number]) - 5
            part = ((start + 15) * (length // 30) - 1) // length  # of the window's middle token
            seen[strand != "forward" and is_reverse, number, part] += 1
        assert seen.total() == CYCLE // num_genomes
        if strand == "random":
            assert 0.4 < sum(count for place, count in seen.items() if place[0]) / seen.total() < 0.6
            seen = collections.Counter([place[1:] for place in seen.elements()])
        num_parts = num_windows * (2 if strand == "both" else 1)
        epochs, rest = divmod(CYCLE // num_genomes, num_parts)
        assert sorted(seen.values()) == [epochs] * (num_parts - rest) + [epochs + 1] * rest


@pytest.mark.parametrize("step", [1, 3, 7, 11])
def test_a_resume_at_another_grid_point_continues_exactly(folder, whole_run, step):
    before = load(folder, last=step, num_workers=2)
    after = [
        batch
        for rank in range(3)
        for batch in load(folder, first=step, rank=rank, ranks=3, accumulation=2, num_workers=rank)
    ]
    assert by_sample(before + after) == whole_run


def test_masks_follow_the_phase_of_their_own_step(whole_run):
    """Even though a prefetching worker is steps ahead."""
    for sample, (_, _, span) in whole_run.items():
        assert span <= 6 + 2 * (sample // 24 // 3)
    assert max(span for _, _, span in whole_run.values()) == 12


def test_the_global_batch_can_change_at_a_step(folder, whole_run):
    """The order of samples stays the same; the steps, and so the phases, are those of the new plan."""
    plan = PLAN.changed(2, 12)
    batches = load(folder, plan=plan, num_workers=2)
    assert [batch["samples"].tolist() for batch in batches[:3]] == [
        [*range(0, 24, 2)],
        [*range(1, 24, 2)],
        [*range(24, 48, 2)],
    ]
    assert [len(batch["samples"]) for batch in batches] == [12] * 14
    found = by_sample(batches)
    assert sorted(found) == list(range(48 + 120))
    assert all(found[sample] == whole_run[sample] for sample in range(60))
    wide = {found[sample][2] for sample in range(60, 72)}  # step 3 of the new plan, and so the second phase
    assert wide == {6, 8}


@pytest.mark.parametrize(("ranks", "first"), [(1, 0), (2, 0), (2, 3), (1, 7)])
def test_a_batch_warm_up_gives_the_same_samples_for_any_ranks_and_first_step(folder, ranks, first):
    """Batches of 8, 16 and 24 windows, four steps each: one, two and three micro-batches of 8 over the ranks."""
    plan = BatchPlan.growing(8, 0, 24, 8)
    assert plan.sizes() == [8, 16, 24]
    everything = by_sample(load(folder, plan=plan))
    parts = [load(folder, plan=plan, first=first, rank=rank, ranks=ranks, num_workers=2) for rank in range(ranks)]
    found = by_sample([batch for part in parts for batch in part])
    assert found == {sample: row for sample, row in everything.items() if sample >= plan.first_sample(first)}
    assert [len(batch["samples"]) for batch in parts[0]] == [8 // ranks] * len(parts[0])


def test_all_windows_of_a_step_have_one_length(folder):
    settings = {"lengths": "random"}
    whole = by_sample(load(folder, settings=settings))
    parts = [load(folder, settings=settings, rank=rank, ranks=2, accumulation=3, num_workers=2) for rank in range(2)]
    assert by_sample([batch for part in parts for batch in part]) == whole
    lengths = [{len(whole[sample][0]) for sample in range(24 * step, 24 * step + 24)} for step in range(STEPS)]
    assert all(len(length) == 1 for length in lengths)
    assert len(set.union(*lengths)) > 3


@pytest.mark.parametrize("ahead", [1, 50, 10**6])
def test_locating_ahead_changes_nothing(folder, whole_run, ahead, monkeypatch):
    monkeypatch.setattr(loader_module, "LOCATED_AHEAD", ahead)
    assert by_sample(load(folder, accumulation=2)) == whole_run


def test_a_worker_locates_its_own_micro_batches_in_one_call(folder, monkeypatch):
    """`locate` has a cost per call, so the third of three workers calls it once for all that it will load."""
    dataset, calls = WindowDataset([folder], [], WindowSettings(window=32), 0), []
    sampler = MicroBatchSampler(PLAN, 0, STEPS, 0, 2, 4)
    batches = loader_module._BatchDataset(dataset, lambda batch: {"samples": batch[0]}, sampler)
    monkeypatch.setattr(loader_module, "get_worker_info", lambda: types.SimpleNamespace(num_workers=3))
    locate = dataset.locate
    monkeypatch.setattr(dataset, "locate", lambda samples: calls.append(len(samples)) or locate(samples))
    for number in range(2, len(sampler), 3):
        assert (batches[number]["samples"] == sampler[number]).all()
    assert calls == [STEPS * 24 // 2 // 3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_shard_stops_the_loader_with_one_line(folder, tmp_path, num_workers):
    """PyTorch would wrap a worker's error in a second traceback."""
    copy_damaged(folder, tmp_path)
    with pytest.raises(DataError, match=r"shard-000001\.tar: is damaged") as caught:
        load(tmp_path, num_workers=num_workers)
    assert "\n" not in str(caught.value)
    assert caught.value.on_one_rank


def bus_error(_: int) -> None:
    """End the worker as a memory-mapped shard does that the server of a network file system has lost."""
    os.kill(os.getpid(), signal.SIGBUS)


def late_bus_error(number: int) -> None:
    """The same, while the main thread works on a batch."""
    threading.Timer(1.0, bus_error, [number]).start()


@pytest.mark.parametrize(("prepare_worker", "seconds"), [(bus_error, 0.0), (late_bus_error, 60.0)])
def test_a_bus_error_of_a_worker_is_one_line(folder, prepare_worker, seconds):
    """PyTorch raises its error where the main thread is at that moment: usually not in the loader, but in the step."""
    with (
        pytest.raises(FileSystemError, match="a loader worker ended with a bus error: a shard could not be") as caught,
        explain_file_system_errors(folder, "and start again"),
    ):
        for _ in open_loader(folder, num_workers=2, prepare_worker=prepare_worker):
            time.sleep(seconds)
    assert "\n" not in str(caught.value)
    assert caught.value.on_one_rank


def copy_damaged(folder: Path, copy: Path) -> None:
    """Copy the folder with one byte of a shard flipped."""
    for path in folder.iterdir():
        data = bytearray(path.read_bytes())
        if path.name == "shard-000001.tar":
            data[700] ^= 1
        (copy / path.name).write_bytes(data)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_skipped_shards_are_counted_in_the_batch(folder, tmp_path, whole_run, num_workers, caplog):
    copy_damaged(folder, tmp_path)
    with caplog.at_level(logging.WARNING):
        batches = load(tmp_path, storage=StorageSettings(on_bad_shard="skip"), num_workers=num_workers)
    found = by_sample(batches)
    changed = [sample for sample in whole_run if found[sample] != whole_run[sample]]
    assert sum(int(batch["num_replaced"]) for batch in batches) == len(changed) > 50
    assert found == by_sample(load(tmp_path, storage=StorageSettings(on_bad_shard="skip")))


def test_no_remaining_steps_give_an_empty_loader(folder):
    assert load(folder, first=12, last=12) == []
