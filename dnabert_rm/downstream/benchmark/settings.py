"""GUE's 28 data sets: how each is fine-tuned, and the published means to set ours beside.

Settings: the scripts of Zhou et al. for models over k-mers (DNABERT-2's repository, `finetune/scripts/run_dnabert1.sh`,
batch of four GPUs × 8 rows). Means: Zhou et al., "DNABERT-2: Efficient Foundation Model and Benchmark for Multi-Species
Genome", arXiv:2306.15006.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class SetSettings:
    """What a data set's fine-tuning is told, by the names of `FinetuneSettings`."""

    epochs: int = 3
    eval_steps: int = 200
    warmup_steps: int = 50
    max_steps: int | None = None
    """As Trainer reads it: exactly so many steps, whatever `epochs` says."""
    learning_rate: float = 3e-5
    batch_size: int = 32
    weight_decay: float = 0.01


@dataclass(frozen=True)
class GueSet:
    """One data set of GUE."""

    name: str
    """Official folder, e.g. `mouse/0`."""
    family: str
    """The task whose data sets are averaged in the published table."""
    num_classes: int
    num_bases: int
    num_tokens: int
    """The scripts' longest input, specials included; enough for the overlapping k-mers of every k from 3 to 6."""
    settings: SetSettings


METRICS = {"Covid": "f1_macro"}
"""The metric of a family, by its name in `scores.json`; `DEFAULT_METRIC` for the others."""
DEFAULT_METRIC = "mcc"
METRIC_TITLES = {"mcc": "MCC", "f1_macro": "macro F1"}
UNKNOWN_SETTINGS = SetSettings()
"""For folders that are none of GUE's."""

_TATA = SetSettings(epochs=10)
_PROMOTER = SetSettings(epochs=4, eval_steps=400)
_MARKS = ("H3", "H3K14ac", "H3K36me3", "H3K4me1", "H3K4me2", "H3K4me3", "H3K79me3", "H3K9ac", "H4", "H4ac")


def _all_sets() -> Iterator[GueSet]:
    for mark in _MARKS:
        yield GueSet(f"EMP/{mark}", "EMP", 2, 500, 512, SetSettings())
    for kind in range(5):
        yield GueSet(f"tf/{kind}", "TF human", 2, 100, 110, SetSettings(warmup_steps=30))
    for kind in range(5):
        yield GueSet(f"mouse/{kind}", "TF mouse", 2, 100, 110, SetSettings(epochs=5, warmup_steps=30, max_steps=1000))
    for family, stem, bases, tokens in (("promoter 300", "prom_300", 300, 310), ("core promoter", "prom_core", 70, 80)):
        yield GueSet(f"prom/{stem}_all", family, 2, bases, tokens, _PROMOTER)
        yield GueSet(f"prom/{stem}_notata", family, 2, bases, tokens, _PROMOTER)
        yield GueSet(f"prom/{stem}_tata", family, 2, bases, tokens, _TATA)
    yield GueSet("splice/reconstructed", "splice", 3, 400, 410, SetSettings(epochs=5))
    yield GueSet("virus/covid", "Covid", 9, 1000, 1024, SetSettings(epochs=9))


GUE = {gue_set.name: gue_set for gue_set in _all_sets()}
"""The data sets by name, in the order of the published table."""
FAMILIES = tuple(dict.fromkeys(gue_set.family for gue_set in GUE.values()))

PUBLISHED = {
    "DNABERT (3-mer)": (49.54, 64.43, 57.74, 84.63, 72.96, 84.14, 62.23),
    "DNABERT (6-mer)": (49.10, 64.17, 56.43, 81.70, 71.81, 84.07, 55.50),
    "NT-500M-human": (45.35, 57.14, 45.24, 85.51, 66.54, 79.71, 50.82),
    "NT-2500M-multi": (58.06, 63.33, 67.02, 88.15, 71.63, 89.35, 73.04),
    "DNABERT-2": (55.98, 70.11, 68.00, 84.21, 70.53, 84.99, 71.02),
}
"""Means of each family, in the order of `FAMILIES`: MCC × 100, macro F1 × 100 for Covid."""
PUBLISHED_SOURCE = "Zhou et al. 2023, arXiv:2306.15006"


def family_of(name: str) -> str | None:
    """The family of a data set; None where it is none of GUE's."""
    return GUE[name].family if name in GUE else None


def metric_of(name: str) -> str:
    """The metric that a data set is judged by, named as in `scores.json`."""
    return METRICS.get(family_of(name) or "", DEFAULT_METRIC)


def settings_of(name: str) -> SetSettings:
    """A data set's settings; the defaults where it is none of GUE's."""
    return GUE[name].settings if name in GUE else UNKNOWN_SETTINGS
