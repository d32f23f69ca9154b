"""The weights of soft-masked bases, against a look-up in the FASTA one letter at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builds import build
from slow_fasta import slow_records
from support import random_bases

from dnabert_rm.data.batching import BatchPlan
from dnabert_rm.data.dataset import WindowDataset, WindowSettings
from dnabert_rm.data.loader import MicroBatchSampler, make_loader
from dnabert_rm.data.storage import StorageSettings
from dnabert_rm.masking.collator import IGNORE, RandomMaskCollator
from dnabert_rm.masking.schedule import make_schedule

WEIGHT, BATCH, STEPS = 0.25, 24, 10
FLAGS = {
    3: ["--segment-tokens", "900"],
    6: ["--segment-tokens", "700", "--shard-tokens", "3000", "--ambiguous", "unk"],
    8: ["--segment-tokens", "1001"],
}
CASES = [
    (3, {"strand": "both"}),
    (6, {"strand": "random"}),
    (6, {"strand": "both", "overlap": False}),
    (6, {"strand": "both", "lengths": "random"}),
    (6, {"strand": "random", "overlap": False, "lengths": "random"}),
    (8, {"strand": "both"}),
    (8, {"strand": "forward", "overlap": False}),
]


def genome(rng: np.random.Generator) -> str:
    """Return contigs of runs in lower and upper case, with other letters in both cases."""
    contigs = []
    for size in (4000, 2500, 1200):
        letters, position = list(random_bases(rng, size)), 0
        while position < size:
            end = position + int(rng.geometric(1 / rng.choice([2, 20, 200])))
            if rng.random() < 0.5:
                letters[position:end] = [letter.lower() for letter in letters[position:end]]
            position = end
        for place in rng.integers(0, size, 4):
            letters[place] = "n" if letters[place].islower() else "R"
        contigs.append("".join(letters))
    return "".join(f">contig{number}\n{bases}\n" for number, bases in enumerate(contigs))


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    path.write_text(genome(np.random.default_rng(0)))
    return path


@pytest.fixture(scope="module")
def prepared(fasta: Path) -> dict[int, Path]:
    """One prepared folder for each k."""
    folders = {k: fasta.parent / f"k{k}" for k in FLAGS}
    for k, folder in folders.items():
        build(fasta, "--out", folder, "--k", str(k), "--workers", "1", "--record-soft-mask", *FLAGS[k])
    return folders


def dataset_of(folder: Path | str, settings: dict, storage: StorageSettings | None = None) -> WindowDataset:
    overlap = settings.get("overlap", True)
    settings = {"window": 62 if overlap else 14, "num_streams": 3, "soft_mask": True, **settings}
    return WindowDataset([folder], [], WindowSettings(**settings), 1, storage)


def check_batches(dataset: WindowDataset, fasta: Path, num_workers: int = 0) -> list[float]:
    """Compare all batches of a run with the letters of the FASTA, and return the weights of all bases."""
    contigs, k = dict(slow_records(fasta.read_text())), int(dataset.tokenizer.k or 0)
    plan, seen = BatchPlan.constant(BATCH), []
    schedule = make_schedule("fixed", k=k, total_steps=STEPS, fixed_span=4)
    collate = RandomMaskCollator(schedule, plan.step_of, dataset.tokenizer.vocab_size, 2, repeat_weight=WEIGHT)
    sampler = MicroBatchSampler(plan, 0, STEPS, 0, 1, BATCH // 2)
    for number, batch in enumerate(make_loader(dataset, collate, sampler, num_workers=num_workers)):
        width = batch["input_ids"].shape[1]
        places = dataset.coordinates(batch["samples"].numpy(), sampler.step_of(number))
        if batch["targets"].tolist() == [IGNORE]:
            assert batch["base_weights"].tolist() == [[0.0] * k]
            continue
        assert batch["base_weights"].shape == (len(batch["targets"]), k)
        for position, found in zip(batch["positions"].tolist(), batch["base_weights"].tolist(), strict=True):
            row, token = divmod(position, width)
            place = places[row]
            letters = contigs[place["contig"]][place["start"] : place["end"]]
            letters = letters[::-1] if place["strand"] == "-" else letters
            first = (token - 1) * dataset.stride
            assert found == [WEIGHT if letter.islower() else 1.0 for letter in letters[first : first + k]]
            seen += found
    return seen


@pytest.mark.parametrize(("k", "settings"), CASES)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_weights_are_those_of_the_letters(prepared, fasta, k, settings, num_workers) -> None:
    seen = check_batches(dataset_of(prepared[k], settings), fasta, num_workers)
    assert len(seen) > 500 and set(seen) == {WEIGHT, 1.0}


def test_windows_of_a_bad_shard_have_the_weights_of_the_windows_that_replace_them(prepared, fasta, tmp_path) -> None:
    for path in prepared[6].glob("[!.]*"):
        data = bytearray(path.read_bytes())
        data[700] ^= path.name == "shard-000001.tar"
        (tmp_path / path.name).write_bytes(data)
    dataset = dataset_of(tmp_path, {"strand": "both"}, StorageSettings(on_bad_shard="skip"))
    assert set(check_batches(dataset, fasta)) == {WEIGHT, 1.0}
    assert dataset.readers[0].bad == {1}


def test_a_mixture_has_the_weights_of_its_own_folders(prepared, fasta, tmp_path) -> None:
    upper = tmp_path / "upper.fa"
    upper.write_text(fasta.read_text().upper().replace("CONTIG", "upper"))
    build(upper, "--out", tmp_path / "upper", "--workers", "1", "--record-soft-mask", "--segment-tokens", "700")
    settings = WindowSettings(window=62, num_streams=3, soft_mask=True)
    mixture = WindowDataset([prepared[6], tmp_path / "upper"], [1, 3], settings, 1)
    both = fasta.parent / "both.fa"
    both.write_text(fasta.read_text() + upper.read_text())
    assert set(check_batches(mixture, both)) == {WEIGHT, 1.0}
