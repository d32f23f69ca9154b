"""Masked-likelihood scores of single-base variants: log P(alt) - log P(ref) at the variant's position.

All k-mers that cover the variant's base are masked, because a single visible k-mer would reveal the base. For each
masked token t, the model predicts a distribution over k-mers. Only k-mers that agree with the visible bases are
used. Their probabilities are summed for each base b at the position, then renormalised over the four bases:

    P_t(b) = sum of P_t(k-mer with b) / sum over b' of P_t(k-mer with b')

log P(b) is the mean of log P_t(b) over the tokens that cover the base. docs/predictions.md explains this score.

Shapes: T tokens of a window, M masked tokens that cover the base (k, or fewer at a contig's ends), n k-mers per base.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForMaskedLM

from dnabert_rm.finetune.pretrained_encoder import load_config, load_kmer_tokenizer
from dnabert_rm.genome import kmer
from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.genome.reference import Genome
from dnabert_rm.genome.vcf import Site, VariantReader
from dnabert_rm.inference.inference_settings import VariantSettings
from dnabert_rm.inference.model_loading import load_model, model_inputs
from dnabert_rm.inference.model_runner import chunked, default_device
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import atomic_outputs, check_output_file
from dnabert_rm.utils.progress import progress_bar

BATCHES_PER_GROUP = 16
"""Number of batches of sites that are read and scored together."""


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
class Scorer:
    """A masked language model on its device, with the scoring settings."""

    model: MaskedLM
    k: int
    device: torch.device
    span: int
    strand: str
    batch_size: int
    precision: str
    max_kmers: int
    """K-mers per window, without special tokens."""

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
        bounds = np.cumsum([0, *(len(site.positions) for site in sites)])
        return np.add.reduceat(token_log_p, bounds[:-1]) / np.diff(bounds)[:, None]


@dataclass
class VariantTally:
    """Numbers of scored alleles, unscored alleles and dropped rows, for the final summary line."""

    scored: int = 0
    unscored: Counter[str] = field(default_factory=Counter)
    """Number of alleles without a score, for each reason."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of rows left out because they contradict the FASTA, for each reason."""

    def line(self, output: object) -> str:
        """Return a one-line summary that begins with the path of the output file."""
        parts = [f"{output}: {self.scored:,} alleles scored"]
        for what, counts in (("without a score", self.unscored), ("left out", self.dropped)):
            if counts:
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
                parts.append(f"{counts.total():,} {what} ({reasons})")
        return "; ".join(parts)


def load_scorer(settings: VariantSettings) -> Scorer:
    """Load the pretrained model. Raise `ConfigError` if `--span` or `--max-tokens` is out of range for the model."""
    config = load_config(settings.model)
    k = load_kmer_tokenizer(settings.model, config, "score-variants").k
    positions = config.max_position_embeddings
    max_kmers = (settings.max_tokens or positions) - 2
    span = settings.span or k
    if max_kmers + 2 > positions:
        raise ConfigError(
            f"--max-tokens {max_kmers + 2}: the model has {positions} positions; pass {positions} or less"
        )
    if not k <= span <= max_kmers:
        raise ConfigError(
            f"--span {span}: {k} tokens cover a base, and the model takes {max_kmers}; pass {k} … {max_kmers}"
        )
    device = default_device()
    model = MaskedLM(load_model(AutoModelForMaskedLM, settings.model, config)).to(device).eval()
    return Scorer(
        model=model,
        k=k,
        device=device,
        span=span,
        strand=settings.strand,
        batch_size=settings.batch_size,
        precision=settings.precision,
        max_kmers=max_kmers,
    )


def score_variants(settings: VariantSettings) -> VariantTally:
    """Write a CSV table with one row per allele, in the order of the VCF file.

    The columns are chrom, pos (1-based), id, ref, alt, score and reason. `score` is log P(alt) - log P(ref), with
    natural logarithms. If an allele has no score, `reason` explains why. Raises `ConfigError`, `CheckpointError`, or
    `DataError` with the line number. After an error, no output file remains.
    """
    check_output_file(settings.output, settings.overwrite, model_inputs(settings.model, settings.vcf, settings.fasta))
    scorer = load_scorer(settings)
    # The same number of bases on either side, so that both strands have the same window.
    radius = (scorer.max_kmers + scorer.k - 2) // 2
    tally = VariantTally()
    with (
        Genome(str(settings.fasta)) as genome,
        Input(settings.vcf, "a VCF file") as source,
        progress_bar("variants", source.size, "byte") as bar,
        atomic_outputs(settings.output) as (temporary,),
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        reader = VariantReader(source, genome, radius, scorer.k, settings.bad_rows == "drop")
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["chrom", "pos", "id", "ref", "alt", "score", "reason"])
        for sites in chunked(reader.sites(), settings.batch_size * BATCHES_PER_GROUP):
            writer.writerows(_score_rows(sites, scorer, tally))
            bar.update(source.position - bar.n)
    tally.dropped = reader.dropped
    return tally


def _score_rows(sites: Sequence[Site], scorer: Scorer, tally: VariantTally) -> list[list[Any]]:
    """Score the alleles at all `sites` and return one table row per allele."""
    scorable = [site for site in sites if site.sequence]
    log_probabilities = iter(scorer.log_probabilities(scorable) if scorable else ())
    rows = []
    for site in sites:
        log_p = next(log_probabilities) if site.sequence else None
        for allele in site.alleles:
            score = ""
            if allele.reason:
                tally.unscored[allele.reason] += 1
            else:
                assert log_p is not None
                ref, alt = kmer.base_codes(allele.ref + allele.alt)
                score = f"{log_p[alt] - log_p[ref]:.6f}"
                tally.scored += 1
            rows.append([allele.contig, allele.position + 1, allele.name, allele.ref, allele.alt, score, allele.reason])
    return rows
