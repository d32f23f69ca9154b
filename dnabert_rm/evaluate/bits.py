"""Bits per base of exported or stock models on held-out DNA, beside guessing, base frequencies and Markov chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForMaskedLM

from dnabert_rm.data.baselines import COMPOSITION, Baselines, measure_baselines
from dnabert_rm.data.held_out import HeldOutRegion, HiddenStretches, find_stretches, read_regions
from dnabert_rm.data.split_reader import SplitReader
from dnabert_rm.evaluate.bits_settings import BitsSettings
from dnabert_rm.finetune.pretrained_encoder import load_config, load_kmer_tokenizer
from dnabert_rm.finetune.trained_tokens import is_trained_overlapping
from dnabert_rm.inference.model_loading import load_model
from dnabert_rm.inference.model_runner import check_finite, default_device
from dnabert_rm.masking.hidden_stretches import WindowShape, make_batches, place_windows
from dnabert_rm.model.losses import hidden_base_bits
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.model.pretrained import model_fields, pretraining_data
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import check_output_file, write_json
from dnabert_rm.utils.progress import progress_bar
from dnabert_rm.utils.statistics import mean_over_groups

CONTEXT_BASES = 8192
"""Visible bases on both sides of a region, enough for the longest windows."""

Bits = dict[int, NDArray[np.float64]]
"""For each number n of hidden bases, the bits of the bases of all stretches, (S, n). NaN for a base without a token."""


@dataclass(frozen=True)
class HeldOutData:
    """Held-out regions, the stretches hidden in them, and the lines that models are compared with."""

    regions: list[HeldOutRegion]
    stretches: list[HiddenStretches]
    lines: Baselines


@dataclass(frozen=True)
class LoadedModel:
    """A masked language model on its device, and how it reads a sequence."""

    folder: Path
    model: MaskedLM
    shape: WindowShape
    device: torch.device
    batch_size: int
    precision: str

    def bits(self, regions: Sequence[HeldOutRegion], found: HiddenStretches) -> NDArray[np.float64]:
        """Return the bits of each hidden base, (S, n) for the S stretches of n bases in `found`.

        Raises `CheckpointError` if the model's outputs are NaN or infinite.
        """
        codes = [region.codes for region in regions]
        # `place_windows` takes stretches in ascending order.
        order = np.lexsort((found.start, found.region))
        start = found.start[order]
        windows = place_windows(list(map(len, codes)), found.region[order], start, found.num_hidden, self.shape)
        bits = np.full((len(order), found.num_hidden), np.nan)
        for batch in make_batches(codes, windows, start, found.num_hidden, self.shape, self.batch_size):
            arrays = (batch.input_ids, batch.positions, batch.hidden, batch.true_codes)
            input_ids, positions, hidden, true_codes = (torch.from_numpy(array).to(self.device) for array in arrays)
            with torch.inference_mode():
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                    logits = self.model(input_ids, positions)
                found_bits = hidden_base_bits(logits, hidden, true_codes, self.shape.k).cpu().numpy()
            check_finite(found_bits, str(self.folder))
            bits[order[batch.stretches.reshape(-1, found.num_hidden)[:, 0]]] = found_bits.reshape(-1, found.num_hidden)
        return bits


def window_shape(folder: Path, settings: BitsSettings) -> WindowShape:
    """Return how a model reads a sequence, without loading its weights.

    Raises `ConfigError` if `--window` does not fit the model, and `CheckpointError` if the folder has no BERT or
    ModernBERT model of k-mers.
    """
    model_fields(folder, missing="pass a model folder, such as one that `dnabert-rm export` wrote")
    config = load_config(folder)
    k = load_kmer_tokenizer(folder, config, "evaluate bits").k
    data = pretraining_data(folder)
    positions = config.max_position_embeddings
    window = settings.window or min(positions, int(data.get("window", positions)), CONTEXT_BASES)
    if window > positions:
        raise ConfigError(f"--window {window}: {folder} has {positions} positions; pass {positions} or less")
    overlaps = is_trained_overlapping(folder) and not settings.non_overlapping
    shape = WindowShape(k, 1 if overlaps else k, window - 2)
    for n in settings.hidden:
        if not shape.can_hide(n):
            raise ConfigError(
                f"--window {window}: is too short to hide {n} bases from {folder}; raise --window or lower --hidden"
            )
    return shape


def load_measured_model(folder: Path, shape: WindowShape, settings: BitsSettings) -> LoadedModel:
    """Load a model. Raise `CheckpointError` if its weights can't be loaded."""
    device = default_device()
    network = load_model(AutoModelForMaskedLM, folder, load_config(folder))
    model = MaskedLM(network, shape.k).to(device).eval()
    return LoadedModel(folder, model, shape, device, settings.batch_size, settings.precision)


def read_held_out(settings: BitsSettings) -> HeldOutData:
    """Read the held-out regions and the lines. Raise `DataError` or `ConfigError` for unsuitable data."""
    held_out = [SplitReader(folder, settings.split) for folder in settings.data]
    training = [SplitReader(folder, settings.train_split) for folder in settings.data]
    for folder, reader in zip(settings.data, held_out, strict=True):
        if reader.manifest.tokenizer.k is None:
            raise ConfigError(f"--data {folder}: holds BPE tokens; build the genome with k-mers (`build --k 6`)")
    regions = read_regions(held_out, settings.regions, CONTEXT_BASES)
    if not regions:
        raise DataError(
            f"{settings.data[0]}: no held-out segment is long enough; hold out more with data_prep build "
            "--val-fraction or --val-contigs"
        )
    if "repeats" in settings.by and any(region.soft_masked is None for region in regions):
        raise ConfigError("--by repeats: the data don't record soft-masking; build them with --record-soft-mask")
    stretches = [find_stretches(regions, n) for n in sorted(set(settings.hidden))]
    k = int(training[0].manifest.tokenizer.k or 0)
    return HeldOutData(regions, stretches, measure_baselines(training, regions, stretches, k, settings.orders))


def evaluate_bits(settings: BitsSettings) -> dict[str, Any]:
    """Measure all models. Return the results as a JSON object, and write them to `--output` if it is given."""
    if settings.output:
        check_output_file(settings.output, settings.overwrite, [*settings.model, *settings.data])
    shapes = {folder: window_shape(folder, settings) for folder in settings.model}  # mistakes come before long work
    held_out = read_held_out(settings)
    sources: dict[str, dict[str, Bits]] = {}
    strands = ("+", "-") if "strand" in settings.by else ("+",)
    total = len(settings.model) * len(strands) * len(held_out.stretches)
    with progress_bar("bits per base", total, "measurement") as bar:
        for folder in settings.model:
            model = load_measured_model(folder, shapes[folder], settings)
            sources[str(folder)] = {strand: {} for strand in strands}
            for strand in strands:
                for found in held_out.stretches:
                    sources[str(folder)][strand][found.num_hidden] = _bits_of_strand(model, held_out, found, strand)
                    bar.update()
    results = _results(settings, held_out, sources)
    results["non_overlapping"] = [str(folder) for folder, shape in shapes.items() if shape.stride > 1]
    if settings.output:
        write_json(settings.output, results)
    return results


def _bits_of_strand(
    model: LoadedModel, held_out: HeldOutData, found: HiddenStretches, strand: str
) -> NDArray[np.float64]:
    """Return the bits of a model that reads one strand, (S, n), with bases in the order of the forward strand."""
    if strand == "+":
        return model.bits(held_out.regions, found)
    reverse = [region.reverse_complement() for region in held_out.regions]
    return model.bits(reverse, found.reversed(held_out.regions))[:, ::-1]


def _results(settings: BitsSettings, held_out: HeldOutData, models: dict[str, dict[str, Bits]]) -> dict[str, Any]:
    """Return rows of mean bits: for each group of bases, one row for each line and each model."""
    lines = held_out.lines.bits
    middle = _middle(held_out)
    best = min((line for line in lines if line != COMPOSITION), key=lambda line: float(np.mean(lines[line][middle])))
    rows = []
    for group, masks in _groups(settings, held_out).items():
        for line, bits in lines.items():
            rows.append(_row(group, line, bits, masks, held_out))
        for model, strands in models.items():
            means = {n: np.mean([bits[n] for bits in strands.values()], axis=0) for n in lines[best]}
            rows.append(_row(group, model, means, masks, held_out, lines[best]))
            if len(strands) > 1 and group == "all":
                rows += [_row(f"strand {s}", model, bits, masks, held_out, lines[best]) for s, bits in strands.items()]
    return {
        "data": list(settings.data),
        "split": settings.split,
        "regions": len(held_out.regions),
        "hidden_bases": {str(found.num_hidden): len(found.start) * found.num_hidden for found in held_out.stretches},
        "guessing": 2.0,
        "best_line": best,
        "rows": rows,
    }


def _middle(held_out: HeldOutData) -> int:
    """Return the number of hidden bases by which Markov chains are ranked: 5, or else the largest one measured."""
    measured = [found.num_hidden for found in held_out.stretches]
    return 5 if 5 in measured else max(measured)


def _groups(settings: BitsSettings, held_out: HeldOutData) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """Return the groups of hidden bases to report: for each name and number n of hidden bases, a mask (S, n)."""
    shapes = {found.num_hidden: (len(found.start), found.num_hidden) for found in held_out.stretches}
    groups = {"all": {n: np.ones(shape, dtype=bool) for n, shape in shapes.items()}}
    if "repeats" in settings.by:
        masked = {found.num_hidden: _soft_masked(held_out.regions, found) for found in held_out.stretches}
        groups["soft-masked"] = masked
        groups["not soft-masked"] = {n: ~mask for n, mask in masked.items()}
    if "genome" in settings.by:
        for genome in sorted({region.genome for region in held_out.regions}):
            is_here = np.array([region.genome == genome for region in held_out.regions])
            groups[genome] = {
                found.num_hidden: np.repeat(is_here[found.region][:, None], found.num_hidden, axis=1)
                for found in held_out.stretches
            }
    return groups


def _soft_masked(regions: Sequence[HeldOutRegion], found: HiddenStretches) -> NDArray[np.bool_]:
    places = found.start[:, None] + np.arange(found.num_hidden)
    masks = [region.soft_masked for region in regions]
    return np.stack([masks[region][place] for region, place in zip(found.region, places, strict=True)])  # type: ignore[index]


def _row(
    group: str,
    name: str,
    bits: Bits,
    masks: dict[int, NDArray[np.bool_]],
    held_out: HeldOutData,
    line: Bits | None = None,
) -> dict[str, Any]:
    """Return the mean bits of one source in one group, with standard errors, and differences from a Markov line."""
    row: dict[str, Any] = {"group": group, "name": name, "bits": {}, "standard_error": {}}
    for found in held_out.stretches:
        n = found.num_hidden
        counted = masks[n] & ~np.isnan(bits[n])
        row["bits"][str(n)], row["standard_error"][str(n)] = _mean_and_error(bits[n], counted, found.region)
        if line is not None:
            difference = _mean_and_error(bits[n] - line[n], counted, found.region)
            row.setdefault("minus_line", {})[str(n)], row.setdefault("minus_line_error", {})[str(n)] = difference
    return row


def _mean_and_error(
    values: NDArray[np.float64], counted: NDArray[np.bool_], region: NDArray[np.int64]
) -> tuple[float | None, float | None]:
    """Return the mean of the counted values and its standard error over regions, or None for an undefined one."""
    counts = np.bincount(region, weights=counted.sum(axis=1))
    sums = np.bincount(region, weights=np.where(counted, values, 0.0).sum(axis=1))
    return mean_over_groups(sums, counts)
