"""Agreement of variant scores with labels from the VCF: AUROC and average precision, with bootstrap intervals."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.vcf import Site
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.progress import progress_bar

NUM_RESAMPLES = 1000
"""Number of bootstrap resamples."""
_INFO_LINE = re.compile(rb'##INFO=<(?:[^"]*?,)?ID=([^,>]*)')
_NUMBER, _TYPE = (re.compile(rb"[<,]" + key + rb"=([^,>]*)") for key in (b"Number", b"Type"))


@dataclass
class LabelledScores:
    """Scores of the alleles that have a label. Memory holds 9 bytes per labelled allele.

    Without `positive`, the INFO field must be a flag, which marks positives. Otherwise an allele is positive if one of
    the field's values is in `positive`. It is negative if one of the values is in `negative`, or, if `negative` is
    empty, if any value is given. Other alleles, and those with values of both kinds, have no label.
    """

    source: str
    """Name of the VCF in messages."""
    name: str
    """Name of the INFO field."""
    positive: frozenset[str]
    negative: frozenset[str]
    sign: int
    """1 if a higher score means positive, -1 if a lower score does."""
    scores: array = field(default_factory=lambda: array("d"))
    labels: array = field(default_factory=lambda: array("b"))
    num_unlabelled: int = 0
    num_unscored: int = 0
    """Number of alleles with a label, but without a score."""
    is_per_allele: bool = False

    def check_header(self, comments: Iterable[bytes]) -> None:
        """Read the field's declaration. Raise `DataError` if there is none, or if `positive` doesn't fit its type."""
        found = {match[1].decode("utf-8", "replace"): line for line in comments if (match := _INFO_LINE.match(line))}
        if self.name not in found:
            known = ", ".join(list(found)[:8]) or "none"
            raise DataError(
                f"--labels {self.name}: {self.source} has no header line ##INFO=<ID={self.name},...>; choose one of its"
                f" INFO fields ({known}), or add the line"
            )
        number, kind = (match[1] if (match := key.search(found[self.name])) else b"" for key in (_NUMBER, _TYPE))
        if (kind == b"Flag") == bool(self.positive):
            advice = "is a flag; omit --positive" if self.positive else "is no flag; pass --positive VALUE,..."
            raise DataError(f"--labels {self.name}: {advice}")
        self.is_per_allele = number == b"A"

    def add(self, site: Site, scores: NDArray[np.float64]) -> None:
        """Add the scores of a site's alleles, shape (alleles,); NaN is no score."""
        for label, score in zip(self._labels(site), scores.tolist(), strict=True):
            if label is None:
                self.num_unlabelled += 1
            elif np.isnan(score):
                self.num_unscored += 1
            else:
                self.labels.append(label)
                self.scores.append(score)

    def _labels(self, site: Site) -> list[bool | None]:
        """Return each allele's label, or None without a label."""
        entries = dict(entry.partition("=")[::2] for entry in site.info.split(";"))
        num_alleles = len(site.alleles)
        if not self.positive:
            return [self.name in entries] * num_alleles
        text = entries.get(self.name, "")
        if not self.is_per_allele:
            return [self._label(set(re.split("[,|]", text)))] * num_alleles
        # One entry per allele, each of which can have several values.
        of_alleles = text.split(",")
        if len(of_alleles) != num_alleles:
            return [None] * num_alleles
        return [self._label(set(values.split("|"))) for values in of_alleles]

    def _label(self, values: set[str]) -> bool | None:
        given = values - {"", "."}
        is_positive = bool(given & self.positive)
        is_negative = bool(given & self.negative) if self.negative else bool(given) and not is_positive
        return is_positive if is_positive != is_negative else None

    def summary(self, seed: int) -> str:
        """Return two lines with the numbers of alleles and the metrics. Raise `DataError` if one class is empty."""
        labels = np.frombuffer(self.labels, np.int8)
        num_positive = int(labels.sum())
        num_negative = len(labels) - num_positive
        counts = (
            f"{self.name}: {num_positive:,} positive and {num_negative:,} negative alleles"
            f" ({self.num_unlabelled:,} without a label, {self.num_unscored:,} without a score)"
        )
        if not num_positive or not num_negative:
            raise DataError(f"--labels {counts}; both classes are needed; check --positive and --negative")
        metrics = label_metrics(labels, self.sign * np.frombuffer(self.scores), seed)
        texts = [f"{name} {value:.4f} ({low:.4f} … {high:.4f})" for name, (value, low, high) in metrics.items()]
        which = "higher" if self.sign > 0 else "lower"
        return f"{counts}\n{', '.join(texts)}; 95 % intervals, {which} scores are ranked as positive"


def label_metrics(
    labels: NDArray[np.int8], scores: NDArray[np.float64], seed: int
) -> dict[str, tuple[float, float, float]]:
    """Return AUROC and average precision, each with the ends of its 95 % interval.

    The interval is the percentile bootstrap. Positives and negatives are resampled separately, so that each resample
    has both classes. `labels` are 0 and 1, shape (N,), and higher `scores`, shape (N,), mean 1.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(-scores, kind="stable")
    # Alleles with the same score form one group, in descending order of the score.
    group = np.concatenate([[0], np.cumsum(np.diff(scores[order]) != 0)])
    sorted_labels = labels[order].astype(bool)
    of_classes = [np.flatnonzero(~sorted_labels), np.flatnonzero(sorted_labels)]

    def metrics(weights: NDArray[np.int64]) -> tuple[float, float]:
        negative, positive = (np.bincount(group[rows], weights[rows], minlength=group[-1] + 1) for rows in of_classes)
        true, false = np.cumsum(positive), np.cumsum(negative)
        auroc = (negative * (true - positive / 2)).sum() / (true[-1] * false[-1])
        precision = np.divide(true, true + false, out=np.zeros(len(true)), where=true + false > 0)
        return float(auroc), float((positive / true[-1] * precision).sum())

    resampled = np.empty((NUM_RESAMPLES, 2))
    with progress_bar("bootstrap", NUM_RESAMPLES, "resample") as bar:
        for row in resampled:
            weights = np.zeros(len(labels), dtype=np.int64)
            for rows in of_classes:
                weights[rows] = np.bincount(rng.integers(len(rows), size=len(rows)), minlength=len(rows))
            row[:] = metrics(weights)
            bar.update()
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    values = metrics(np.ones(len(labels), dtype=np.int64))
    names = ("AUROC", "average precision")
    return dict(zip(names, zip(values, low.tolist(), high.tolist(), strict=True), strict=True))
