"""Masked likelihood of the four bases at one position of a window.

All k-mers that cover the base are masked, because a single visible k-mer would reveal the base. For each masked token
t, the model predicts a distribution over k-mers. Only k-mers that agree with the visible bases are used. Their
probabilities are summed for each base b at the position, then renormalised over the four bases:

    P_t(b) = sum of P_t(k-mer with b) / sum over b' of P_t(k-mer with b')

log P(b) is the mean of log P_t(b) over the tokens that cover the base. docs/predictions.md explains this score.

Shapes: T tokens of a window, M masked tokens that cover the base (k, or fewer at a contig's ends), n k-mers per base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnabert_rm.genome import kmer
from dnabert_rm.genome.vcf import Site
from dnabert_rm.inference.model_runner import check_finite
from dnabert_rm.model.mlm import MaskedLM


@dataclass(frozen=True)
class MaskedSite:
    """A window in which the variant's base is masked, and the candidate k-mers for each possible value of this base."""

    ids: NDArray[np.int64]
    """(T + 2,) token ids with special tokens."""
    positions: NDArray[np.int64]
    """(M,) indices in `ids` of the tokens that cover the base."""
    candidates: NDArray[np.int64]
    """(M, 4, n) ids of the k-mers with base code 0 … 3 at the position, padded with -1."""


def mask_site(sequence: bytes, target: int, k: int, span: int) -> MaskedSite:
    """Mask `span` tokens of a window, centred on the tokens that cover base `target`. Return the `MaskedSite`.

    `span` and the length of `sequence` must be at least k. If span - k is odd, the extra token is masked on the right.
    A base is visible if at least one unmasked token other than `[UNK]` covers it.
    """
    ids = kmer.encode(sequence, k).astype(np.int64)
    first = target - k + 1 - (span - k) // 2
    is_masked = np.zeros(len(ids), dtype=bool)
    is_masked[max(0, first) : first + span] = True
    is_visible = np.zeros(len(sequence), dtype=bool)
    for offset in range(k):
        is_visible[offset : offset + len(ids)] |= ~is_masked & (ids != kmer.UNK_ID)
    covering = np.arange(max(0, target - k + 1), min(len(ids), target + 1))
    codes = kmer.base_codes(sequence)
    by_token = [_candidates(codes[t : t + k], is_visible[t : t + k], target - t, k) for t in covering.tolist()]
    masked_ids = np.concatenate(([kmer.CLS_ID], np.where(is_masked, kmer.MASK_ID, ids), [kmer.SEP_ID]))
    return MaskedSite(masked_ids, covering + 1, _pad_candidates(by_token))


def _candidates(codes: NDArray[np.uint8], is_visible: NDArray[np.bool_], offset: int, k: int) -> NDArray[np.int64]:
    """Return the ids of all k-mers that agree with the visible bases, shape (4, k-mers per base).

    Row b of the result holds the k-mers with base code b at `offset`. The base at `offset` must be hidden. `codes` and
    `is_visible` have shape (k,). `codes` holds base codes 0 … 3. Codes of hidden bases are ignored.
    """
    weights = 4 ** np.arange(k - 1, -1, -1, dtype=np.int64)
    ids = np.array([kmer.NUM_SPECIAL + (codes[is_visible] * weights[is_visible]).sum()])
    for hidden in np.flatnonzero(~is_visible):
        if hidden != offset:
            ids = (ids[:, None] + np.arange(4) * weights[hidden]).reshape(-1)
    return np.arange(4)[:, None] * weights[offset] + ids


def _pad_candidates(candidates: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Stack the candidate ids of all tokens into one array, padded with -1.

    The candidates of one token have shape (4, n): n k-mer ids for each of the four bases. The result has shape (tokens,
    4, largest n).
    """
    padded = np.full((len(candidates), 4, max(ids.shape[1] for ids in candidates)), -1, dtype=np.int64)
    for row, ids in zip(padded, candidates, strict=True):
        row[:, : ids.shape[1]] = ids
    return padded


def base_log_probabilities(logits: Tensor, candidates: Tensor) -> Tensor:
    """Return each masked token's log probabilities of the four bases, float32 of shape (tokens, 4).

    `logits` have shape (tokens, vocabulary). `candidates` are the k-mer ids for each base, shape
    (tokens, 4, k-mers per base), padded with -1.
    """
    selected = logits.float().gather(1, candidates.clamp(min=0).flatten(1)).view(candidates.shape)
    return selected.masked_fill(candidates < 0, -torch.inf).logsumexp(dim=2).log_softmax(dim=1)


@dataclass(frozen=True)
class MaskedLikelihood:
    """A masked language model on its device, with the scoring settings."""

    model: MaskedLM
    k: int
    device: torch.device
    span: int
    strand: str
    batch_size: int
    precision: str
    relative: bool
    """Score log P(alt) - log P(ref). Otherwise the score is log P(alt)."""

    def scores(self, sites: Sequence[Site]) -> list[NDArray[np.float64]]:
        """Return the scores of each site's alleles, shape (alleles,); NaN for an allele that has a `reason`.

        Each site must have a sequence. Logarithms are natural.
        """
        return [
            self._site_scores(site, log_p) for site, log_p in zip(sites, self.log_probabilities(sites), strict=True)
        ]

    def _site_scores(self, site: Site, log_p: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = np.full(len(site.alleles), np.nan)
        for i, allele in enumerate(site.alleles):
            if not allele.reason:
                ref, alt = kmer.base_codes(allele.ref + allele.alt)
                scores[i] = log_p[alt] - log_p[ref] if self.relative else log_p[alt]
        return scores

    def log_probabilities(self, sites: Sequence[Site]) -> NDArray[np.float64]:
        """Return the log probabilities of the four bases at each site, shape (sites, 4).

        With `strand` "both", the result is the mean over both strands.
        """
        masked = []
        for site in sites:
            last = len(site.sequence) - 1
            if self.strand != "-":
                masked.append(mask_site(site.sequence, site.target, self.k, self.span))
            if self.strand != "+":
                reverse_complement = kmer.reverse_complement(site.sequence)
                masked.append(mask_site(reverse_complement, last - site.target, self.k, self.span))
        forward = self._forward(masked)
        reverse = forward[:, [1, 0, 3, 2]]  # the complement of a code is code ^ 1
        if self.strand == "both":
            return (forward[0::2] + reverse[1::2]) / 2
        return forward if self.strand == "+" else reverse

    def _forward(self, sites: Sequence[MaskedSite]) -> NDArray[np.float64]:
        """Return the log probabilities of the four bases at each site, shape (sites, 4).

        Only windows of equal length share a batch, so batches have no padding.
        """
        log_p = np.empty((len(sites), 4))
        lengths = np.array([len(site.ids) for site in sites])
        for length in np.unique(lengths):
            same_length = np.flatnonzero(lengths == length)
            for start in range(0, len(same_length), self.batch_size):
                indices = same_length[start : start + self.batch_size]
                log_p[indices] = self._forward_batch([sites[i] for i in indices])
        return log_p

    def _forward_batch(self, sites: Sequence[MaskedSite]) -> NDArray[np.float64]:
        length = len(sites[0].ids)
        ids = np.stack([site.ids for site in sites])
        positions = np.concatenate([site.positions + i * length for i, site in enumerate(sites)])
        candidates = _pad_candidates([token for site in sites for token in site.candidates])
        ids_device, positions_device, candidates_device = (
            torch.from_numpy(array).to(self.device) for array in (ids, positions, candidates)
        )
        with torch.inference_mode():
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                logits = self.model(ids_device, positions_device)
            token_log_p = base_log_probabilities(logits, candidates_device).cpu().numpy().astype(np.float64)
        check_finite(token_log_p)
        bounds = np.cumsum([0, *(len(site.positions) for site in sites)])
        return np.add.reduceat(token_log_p, bounds[:-1]) / np.diff(bounds)[:, None]
