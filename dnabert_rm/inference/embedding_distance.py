"""Distance between the embeddings of a window with the reference base and with the alternative base.

An embedding is the mean of the encoder's output over the k-mers of the window. Nothing is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome import kmer
from dnabert_rm.genome.vcf import Site
from dnabert_rm.inference.embed_sequences import Embedder


@dataclass(frozen=True)
class EmbeddingDistance:
    """Scorer of variants by the distance between embeddings."""

    embedder: Embedder
    """An embedder of sequences on their given strand, with one embedding per sequence."""
    strand: str
    is_cosine: bool
    """Use 1 - cosine similarity, not the Euclidean distance."""

    def scores(self, sites: Sequence[Site]) -> list[NDArray[np.float64]]:
        """Return the scores of each site's alleles, shape (alleles,).

        Each site must have a sequence. The score is NaN for an allele that has a `reason`, and if the window has no
        known k-mer. With `strand` "both", the score is the mean of the distances on both strands.
        """
        windows: list[bytes] = []
        for site in sites:
            windows += self._windows(site)
        strands = []
        if self.strand != "-":
            strands.append(self.embedder.forward(windows))
        if self.strand != "+":
            strands.append(self.embedder.forward([kmer.reverse_complement(window) for window in windows]))
        scores = []
        start = 0
        for site in sites:
            by_strand = [self._site_scores(site, embeddings[start:]) for embeddings in strands]
            scores.append(np.mean(by_strand, axis=0))
            start += 1 + sum(not allele.reason for allele in site.alleles)
        return scores

    def _windows(self, site: Site) -> list[bytes]:
        """Return the window with the reference base, then one window per allele without a `reason`."""
        scored = [allele for allele in site.alleles if not allele.reason]
        before, after = site.sequence[: site.target], site.sequence[site.target + 1 :]
        # The FASTA may have an IUPAC code for REF.
        bases = [scored[0].ref, *(allele.alt for allele in scored)]
        return [before + base.upper().encode() + after for base in bases]

    def _site_scores(self, site: Site, embeddings: Sequence[NDArray | None]) -> NDArray[np.float64]:
        """Return the scores of one site on one strand. `embeddings` starts with those of the site's windows."""
        reference, following = embeddings[0], iter(embeddings[1:])
        scores = np.full(len(site.alleles), np.nan)
        for i, allele in enumerate(site.alleles):
            if not allele.reason:
                alternative = next(following)
                if reference is not None and alternative is not None:
                    scores[i] = self._distance(reference, alternative)
        return scores

    def _distance(self, reference: NDArray, alternative: NDArray) -> float:
        a, b = reference.astype(np.float64), alternative.astype(np.float64)
        if not self.is_cosine:
            return float(np.linalg.norm(a - b))
        # Half the squared distance of unit vectors is 1 - cosine, without cancellation between almost equal numbers.
        return float(np.square(a / np.linalg.norm(a) - b / np.linalg.norm(b)).sum() / 2)
