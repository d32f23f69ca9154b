"""Baseline of probes: logistic regression on the counts of k-mers, with k chosen on dev."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfTransformer

from dnabert_rm.evaluate.probes.probe_data import Division, ProbeSet
from dnabert_rm.evaluate.probes.probe_fit import Candidate, Fit, fit_best
from dnabert_rm.genome import kmer

KMER_SIZES = (3, 4, 5, 6)
STRENGTHS = (1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Values of C for scaled counts, whose rows have norm 1."""
ALPHAS = (100.0, 10.0, 1.0, 1e-1, 1e-2)
"""Values of alpha of the ridge regression for scaled counts."""


def count_kmers(sequences: Sequence[str], k: int) -> csr_matrix:
    """Count the overlapping k-mers of each sequence on the given strand.

    Returns: a (sequences, 4^k) float64 matrix. Columns are in the order of `genome/kmer.py`. K-mers with an ambiguous
    base are not counted.
    """
    columns: list[NDArray[np.int64]] = []
    for sequence in sequences:
        ids = kmer.encode(sequence, k).astype(np.int64)
        columns.append(ids[ids >= kmer.NUM_SPECIAL] - kmer.NUM_SPECIAL)
    starts = np.concatenate(([0], np.cumsum([len(part) for part in columns])))
    counts = csr_matrix((np.ones(starts[-1]), np.concatenate(columns), starts), shape=(len(sequences), 4**k))
    counts.sum_duplicates()
    return counts


def scaled_counts(sequences: Sequence[str], k: int) -> csr_matrix:
    """Return k-mer counts as term frequencies, 1 + ln(count), with rows of Euclidean norm 1."""
    return TfidfTransformer(use_idf=False, sublinear_tf=True).fit_transform(count_kmers(sequences, k))


def kmer_candidates(data: ProbeSet) -> list[Candidate]:
    """Return the features of all rows for each k, counted once."""
    counts = {k: scaled_counts(data.sequences, k) for k in KMER_SIZES}
    return [Candidate({"k": k}, partial(counts.__getitem__, k)) for k in KMER_SIZES]


def fit_kmers(data: ProbeSet, division: Division, candidates: Sequence[Candidate]) -> Fit:
    """Fit the baseline, with k and the regularization chosen on dev."""
    return fit_best(data, division, candidates, STRENGTHS if data.num_classes else ALPHAS, scale=False)
