"""Settings for intervals: the lines of a GFF or GTF file that are used, and where a window is placed.

This module imports no numpy, so that `--help` need not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Anchor = Literal["centre", "start", "end", "summit"]
_NAMES = ("Name", "gene_name", "gene", "gene_id", "ID")
"""Attributes that can give an interval's name, best first."""


@dataclass(frozen=True)
class Selection:
    """Which lines of a GFF or GTF file are used.

    `features` are names of the third column; without any, all lines are used. `attributes` are pairs of key and value,
    all of which a line must have; if it has several values of a key, one of them must be equal. `name_attribute` is
    the attribute that gives the name.
    """

    features: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    name_attribute: str | None = None

    @property
    def takes_all(self) -> bool:
        """Whether all lines are used."""
        return not self.features and not self.attributes

    def accepts(self, feature: str, attributes: Mapping[str, Sequence[str]]) -> bool:
        """Return whether a line is used."""
        return (not self.features or feature in self.features) and all(
            value in attributes.get(key, ()) for key, value in self.attributes
        )

    def name(self, attributes: Mapping[str, Sequence[str]]) -> str:
        """Return the name of a line, or "" if it has none."""
        keys = _NAMES if self.name_attribute is None else (self.name_attribute,)
        return next((attributes[key][0] for key in keys if key in attributes), "")


class IntervalFlags:
    """What the settings of `labels`, `predict` and `embed` share. Each has these fields as flags of its own."""

    feature: tuple[str, ...]
    attribute: tuple[str, ...]
    name_attribute: str | None
    window: int | None
    upstream: int | None

    def interval_problems(self) -> Iterator[str]:
        """Yield an error message for each wrong value of these flags."""
        if self.window is not None and self.upstream is not None and self.upstream >= self.window:
            yield f"--upstream {self.upstream}: must be below --window {self.window}"
        for text in self.attribute:
            if "=" not in text:
                yield f"--attribute {text}: expected KEY=VALUE, such as gene_biotype=protein_coding"

    @property
    def selection(self) -> Selection:
        """Lines of GFF and GTF files that are used."""
        pairs = (text.partition("=") for text in self.attribute)
        return Selection(self.feature, tuple((key, value) for key, _, value in pairs), self.name_attribute)

    @property
    def upstream_bases(self) -> int:
        """Bases of a window before its anchor; half of the window by default."""
        return (self.window or 0) // 2 if self.upstream is None else self.upstream
