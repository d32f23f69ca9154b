"""Scores of probes and baselines, and the files written from them: probe.csv, probe.md and probe.json."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dnabert_rm.evaluate.data_sets import STAND_IN
from dnabert_rm.evaluate.probes.probe_settings import ProbeSettings
from dnabert_rm.evaluate.suite import Suite
from dnabert_rm.finetune.finetune_settings import METRIC_TITLES
from dnabert_rm.utils.files import write_json, write_text
from dnabert_rm.utils.statistics import mean_and_half_width

CSV_FILE = "probe.csv"
MARKDOWN_FILE = "probe.md"
JSON_FILE = "probe.json"
PLOT_FILE = "probe.png"
METHOD_TITLES = {"kmers": "k-mer counts", "cnn": "CNN from scratch"}
_COLUMNS = (
    "data_set", "stand_in", "metric", "labels_per_class", "method", "model", "seeds", "mean", "half_width", "dev_mean",
    "choices", "train_rows", "dev_rows", "test_rows", "shared_rows", "embed_seconds", "seconds", "from_cache",
)  # fmt: skip


@dataclass
class Measurement:
    """The scores of one method on one data set: a probe of a model, or a baseline."""

    data_set: str
    stand_in: bool
    dev_held_out: bool
    """Whether dev rows are held out of the training table."""
    metric: str
    labels_per_class: int
    """0 if all training rows are used."""
    method: str
    """probe, kmers or cnn."""
    fits: dict[int, dict[str, Any]]
    """Fields of `Fit` for each seed."""
    train_rows: int
    dev_rows: int
    test_rows: int
    shared_rows: int
    """Number of test rows whose sequence is also in the training table."""
    seconds: float
    """Seconds to fit all seeds."""
    embed_seconds: float = 0.0
    """Seconds to compute the features: forward passes, or counts of k-mers. 0 if they come from the cache."""
    from_cache: bool = False
    model: str = ""
    """Folder of the model; empty for baselines."""

    @property
    def test(self) -> tuple[float, float | None]:
        """Mean test score × 100 over seeds, and half its 95 % interval, which is None for one seed."""
        return mean_and_half_width(100 * fit["test"] for fit in self.fits.values())

    @property
    def dev(self) -> float:
        """Mean dev score × 100 of the chosen settings."""
        return mean_and_half_width(100 * fit["dev"] for fit in self.fits.values())[0]

    def chosen(self, name: str) -> str:
        """Return the chosen values of a setting such as "layer" over the seeds, e.g. "2" or "1/2"."""
        return "/".join(map(str, sorted({fit["choice"][name] for fit in self.fits.values()})))


def write_results(
    settings: ProbeSettings, suite: Suite, measurements: Sequence[Measurement], not_run: Mapping[str, str]
) -> str:
    """Write probe.csv, probe.md and probe.json to `--output`. Return the text of probe.md."""
    text = results_markdown(measurements, not_run, settings.precision, suite.name)
    settings.output.mkdir(parents=True, exist_ok=True)
    write_text(settings.output / CSV_FILE, _csv_text(measurements))
    write_text(settings.output / MARKDOWN_FILE, text)
    shown = {name: _plain(value) for name, value in asdict(settings).items()}
    results = [
        asdict(item) | {"mean": item.test[0], "half_width": item.test[1], "dev_mean": item.dev} for item in measurements
    ]
    write_json(settings.output / JSON_FILE, {"settings": shown, "results": results, "not_run": dict(not_run)})
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _csv_text(measurements: Sequence[Measurement]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for item in measurements:
        mean, half_width = item.test
        names = next(iter(item.fits.values()))["choice"]
        computed = {
            "seeds": " ".join(map(str, item.fits)),
            "mean": f"{mean:.3f}",
            "half_width": "" if half_width is None else f"{half_width:.3f}",
            "dev_mean": f"{item.dev:.3f}",
            "choices": "; ".join(f"{name} {item.chosen(name)}" for name in names),
            "embed_seconds": f"{item.embed_seconds:.2f}",
            "seconds": f"{item.seconds:.2f}",
        }
        fields = {name: getattr(item, name) for name in _COLUMNS if name not in computed}
        writer.writerow(fields | computed)
    return stream.getvalue()


# ---- probe.md


def results_markdown(
    measurements: Sequence[Measurement], not_run: Mapping[str, str], precision: str, suite_name: str
) -> str:
    """Return the text of probe.md: one table with a line per data set and number of labels, then notes."""
    models = list(dict.fromkeys(item.model for item in measurements if item.method == "probe"))
    baselines = [name for name in METHOD_TITLES if any(item.method == name for item in measurements)]
    titles = model_titles(models)
    columns = ["data set", "metric", "labels per class", "train rows", "test rows", "test rows in train"]
    for model in models:
        columns += [titles[model], "layer", "seconds"]
    columns += [METHOD_TITLES[name] for name in baselines]
    if "kmers" in baselines:
        columns += [f"{titles[model]} − k-mer counts" for model in models]
    lines = [_line(columns), _line(["---", "---", *["---:"] * (len(columns) - 2)])]
    groups: dict[tuple[str, int], list[Measurement]] = {}
    for item in measurements:
        groups.setdefault((item.data_set, item.labels_per_class), []).append(item)
    lines += [_line(_cells(group, models, baselines)) for group in groups.values()]
    notes = "\n".join(f"- {note}" for note in _notes(measurements, titles, not_run, precision, suite_name))
    return "\n".join(["# Probes of frozen embeddings", "", *lines, "", notes]) + "\n"


def model_titles(models: Sequence[str]) -> dict[str, str]:
    """Return a short title for each model: "probe" for a single one, otherwise also the end of its path."""
    if len(models) == 1:
        return {models[0]: "probe"}
    parts = {model: Path(model).parts for model in models}
    for length in range(1, max(map(len, parts.values()), default=0) + 1):
        ends = {model: "/".join(path[-length:]) for model, path in parts.items()}
        if len(set(ends.values())) == len(models):
            return {model: f"probe of {end}" for model, end in ends.items()}
    return {model: f"probe of {model}" for model in models}


def _cells(group: Sequence[Measurement], models: Sequence[str], baselines: Sequence[str]) -> list[str]:
    first = group[0]
    by_method = {(item.method, item.model): item for item in group}
    name = f"{first.data_set} ({STAND_IN})" if first.stand_in else first.data_set
    metric = METRIC_TITLES[first.metric]
    rows = [f"{rows:,}" for rows in (first.train_rows, first.test_rows, first.shared_rows)]
    cells = [name, f"{metric} × 100", str(first.labels_per_class or "all"), *rows]
    for model in models:
        item = by_method["probe", model]
        cells += [_score(item), item.chosen("layer"), f"{item.embed_seconds + item.seconds:.1f}"]
    cells += [_score(by_method[baseline, ""]) for baseline in baselines]
    if "kmers" in baselines:
        counts = by_method["kmers", ""]
        differences = (by_method["probe", model].test[0] - counts.test[0] for model in models)
        cells += [f"{difference:+z.1f}" + ("" if difference > 0 else ", not better") for difference in differences]
    return cells


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _score(item: Measurement) -> str:
    mean, half_width = item.test
    return f"{mean:.1f}" + ("" if half_width is None else f" ± {half_width:.1f}")


def _notes(
    measurements: Sequence[Measurement],
    titles: Mapping[str, str],
    not_run: Mapping[str, str],
    precision: str,
    suite_name: str,
) -> Iterator[str]:
    """Yield the notes that explain the table."""
    for model, title in titles.items():
        yield f"{title}: {model}, frozen, in {precision}; linear probe of the layer in the next column."
    yield (
        "Layer, regularization, k of the k-mers and the CNN's epoch are chosen on dev; test is scored once per seed. "
        "Seconds are for embedding and fitting; embeddings from the cache take none."
    )
    if any(len(item.fits) > 1 for item in measurements):
        yield "± is half the 95 % interval of the mean over seeds (Student's t)."
    if any(item.labels_per_class for item in measurements):
        yield "With few labels per class, only training rows are drawn: dev stays whole, so choices use all its labels."
    if held_out := [item.data_set for item in measurements if item.dev_held_out and not item.stand_in]:
        yield f"dev.csv is missing, so a tenth of train is held out as dev: {', '.join(dict.fromkeys(held_out))}."
    if any(item.stand_in for item in measurements):
        yield f"{STAND_IN}: trained on dev.csv, because train.csv is missing. These are not {suite_name} scores."
    worse = dict.fromkeys(item.data_set for item in measurements if _is_not_better(item, measurements))
    if worse:
        yield f"A probe does not beat k-mer counts on {', '.join(worse)}."
    for name, reason in not_run.items():
        yield f"Not measured: {name}: {reason}."


def _is_not_better(item: Measurement, measurements: Sequence[Measurement]) -> bool:
    """Return whether a probe has no higher mean test score than the k-mer counts of the same row."""
    if item.method != "probe":
        return False
    row = (item.data_set, item.labels_per_class)
    counts = [other for other in measurements if (other.data_set, other.labels_per_class) == row]
    return any(other.method == "kmers" and item.test[0] <= other.test[0] for other in counts)
