"""Masked-likelihood scores of single-base variants: log P(alt) - log P(ref) of the base at the position.

The k-mers that cover the base are masked, all of them, since each one left would give it away. Each masked token t
then has a distribution over k-mers; the probability of base b is that of the k-mers with b at the position which agree
with the bases that the model sees in the tokens left, renormalised over the four bases:

    P_t(b) = sum of P_t(k-mer with b) / sum over b' of P_t(k-mer with b')

and log P(b) is the mean of log P_t(b) over the tokens that cover the base. docs/predictions.md says why.

Shapes: L bases, T tokens, M masked tokens that cover the base (k, fewer at a contig's ends), V vocabulary.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForMaskedLM

from dnabert_rm.finetune.pretrained_encoder import load_config, load_tokenizer
from dnabert_rm.genome import kmer
from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.genome.reference import Genome
from dnabert_rm.genome.vcf import Site, VariantReader
from dnabert_rm.inference.inference_settings import VariantSettings
from dnabert_rm.inference.model_runner import in_groups, load_model, take_device
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.utils.errors import ConfigError
from dnabert_rm.utils.files import atomic_outputs, check_output_file
from dnabert_rm.utils.progress import progress_bar

BATCHES_HELD = 16


@dataclass(frozen=True)
class Question:
    """A window with its base masked, and which k-mers speak for which base."""

    row: NDArray[np.int64]
    """(T + 2,) ids with specials."""
    coordinates: NDArray[np.int64]
    """(M,) where in `row` the tokens that cover the base are."""
    candidates: NDArray[np.int64]
    """(M, 4, n) ids of the k-mers with base code 0 … 3 at the position; -1 where a token has fewer than n."""


def make_question(sequence: bytes, target: int, k: int, span: int) -> Question:
    """Mask `span` tokens centred on those that cover base `target` of a sequence of L >= k bases; span >= k.

    With span - k odd the one more is masked on the right. Bases count as seen where a token that is neither masked
    nor `[UNK]` covers them.
    """
    ids = kmer.encode(sequence, k).astype(np.int64)
    first = target - k + 1 - (span - k) // 2
    is_masked = np.zeros(len(ids), dtype=bool)
    is_masked[max(0, first) : first + span] = True
    seen = np.zeros(len(sequence), dtype=bool)
    for offset in range(k):
        seen[offset : offset + len(ids)] |= ~is_masked & (ids != kmer.UNK_ID)
    covering = np.arange(max(0, target - k + 1), min(len(ids), target + 1))
    codes = kmer.base_codes(sequence)
    found = [_candidates(codes[t : t + k], seen[t : t + k], target - t, k) for t in covering.tolist()]
    candidates = np.full((len(found), 4, max(one.shape[1] for one in found)), -1, dtype=np.int64)
    for row, one in zip(candidates, found, strict=True):
        row[:, : one.shape[1]] = one
    row = np.concatenate(([kmer.CLS_ID], np.where(is_masked, kmer.MASK_ID, ids), [kmer.SEP_ID]))
    return Question(row, covering + 1, candidates)


def _candidates(codes: NDArray[np.uint8], seen: NDArray[np.bool_], offset: int, k: int) -> NDArray[np.int64]:
    """Ids (4, n) of all k-mers that have the codes (k,) where they are `seen`, by their base at `offset`, unseen."""
    weights = 4 ** np.arange(k - 1, -1, -1, dtype=np.int64)
    ids = np.array([kmer.NUM_SPECIAL + (codes[seen] * weights[seen]).sum()])
    for place in np.flatnonzero(~seen):
        if place != offset:
            ids = (ids[:, None] + np.arange(4) * weights[place]).reshape(-1)
    return np.arange(4)[:, None] * weights[offset] + ids


def base_log_probabilities(logits: Tensor, candidates: Tensor) -> Tensor:
    """log P_t(b), (M, 4) float32, from logits (M, V) and candidates (M, 4, n)."""
    picked = logits.float().gather(1, candidates.clamp(min=0).flatten(1)).view(candidates.shape)
    return picked.masked_fill(candidates < 0, -torch.inf).logsumexp(dim=2).log_softmax(dim=1)


@dataclass(frozen=True)
class Scorer:
    """A masked language model on its device, and how it is asked."""

    model: MaskedLM
    k: int
    device: torch.device
    span: int
    strand: str
    batch_size: int
    precision: str

    def log_probabilities(self, sites: Sequence[Site]) -> NDArray[np.float64]:
        """log P of the base codes at each site, (N, 4), the mean over the strands that are asked."""
        questions = []
        for site in sites:
            last = len(site.sequence) - 1
            if self.strand != "-":
                questions.append(make_question(site.sequence, site.target, self.k, self.span))
            if self.strand != "+":
                other = kmer.reverse_complement(site.sequence)
                questions.append(make_question(other, last - site.target, self.k, self.span))
        answers = self._ask(questions)
        reverse = answers[:, [1, 0, 3, 2]]  # the complement of a code is code ^ 1
        if self.strand == "both":
            return (answers[0::2] + reverse[1::2]) / 2
        return answers if self.strand == "+" else reverse

    def _ask(self, questions: Sequence[Question]) -> NDArray[np.float64]:
        """log P of each question, (N, 4). Rows of one length share batches, so that none is padded."""
        answers = np.empty((len(questions), 4))
        lengths = np.array([len(question.row) for question in questions])
        for length in np.unique(lengths):
            same = np.flatnonzero(lengths == length)
            for start in range(0, len(same), self.batch_size):
                batch = same[start : start + self.batch_size]
                answers[batch] = self._ask_batch([questions[i] for i in batch])
        return answers

    def _ask_batch(self, batch: Sequence[Question]) -> NDArray[np.float64]:
        length = len(batch[0].row)
        coordinates = np.concatenate([question.coordinates + i * length for i, question in enumerate(batch)])
        width = max(question.candidates.shape[2] for question in batch)
        candidates = np.full((len(coordinates), 4, width), -1, dtype=np.int64)
        bounds = np.cumsum([0, *(len(question.coordinates) for question in batch)])
        for question, start, end in zip(batch, bounds, bounds[1:], strict=False):
            candidates[start:end, :, : question.candidates.shape[2]] = question.candidates
        rows = np.stack([question.row for question in batch])
        rows_there, places_there, candidates_there = (
            torch.from_numpy(array).to(self.device) for array in (rows, coordinates, candidates)
        )
        with torch.inference_mode():
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                logits = self.model(rows_there, places_there)
            tokens = base_log_probabilities(logits, candidates_there).cpu().numpy().astype(np.float64)
        return np.add.reduceat(tokens, bounds[:-1]) / np.diff(bounds)[:, None]


@dataclass
class VariantTally:
    """What was done, for the last line."""

    scored: int = 0
    unscored: Counter[str] | None = None
    dropped: Counter[str] | None = None

    def line(self, output: object) -> str:
        """One line for the user."""
        parts = [f"{output}: {self.scored:,} alleles scored"]
        for what, counts in (("without a score", self.unscored), ("left out", self.dropped)):
            if counts:
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
                parts.append(f"{counts.total():,} {what} ({reasons})")
        return "; ".join(parts)


def load_scorer(settings: VariantSettings) -> tuple[Scorer, int]:
    """The model of a pretrained folder, and the tokens it takes at once; `ConfigError` where the span is too wide."""
    config = load_config(settings.model)
    k = load_tokenizer(settings.model, config).k
    positions = config.max_position_embeddings
    room = (settings.max_tokens or positions) - 2
    span = settings.span or k
    if room + 2 > positions:
        raise ConfigError(f"--max-tokens {room + 2}: the model has {positions} positions; pass at most that")
    if not k <= span <= room:
        raise ConfigError(f"--span {span}: {k} tokens cover a base, and the model takes {room}; pass {k} … {room}")
    device = take_device()
    model = MaskedLM(load_model(AutoModelForMaskedLM, settings.model, config)).to(device).eval()
    return Scorer(model, k, device, span, settings.strand, settings.batch_size, settings.precision), room


def score_variants(settings: VariantSettings) -> VariantTally:
    """Write a row for each allele of the VCF, in its order: chrom, pos (from 1), id, ref, alt, score, reason.

    `score` is log P(alt) - log P(ref), natural logarithm; it is empty where `reason` says why. Raises `ConfigError`,
    `CheckpointError` or, with the line, `DataError`; then no output is left.
    """
    check_output_file(settings.output, settings.overwrite)
    scorer, room = load_scorer(settings)
    # As many bases on either side, so that the opposite strand has the same window.
    radius = (room + scorer.k - 2) // 2
    tally = VariantTally(unscored=Counter())
    with (
        Genome(str(settings.fasta)) as genome,
        Input(settings.vcf, "a VCF file") as source,
        progress_bar("variants", source.size, "byte") as bar,
        atomic_outputs(settings.output) as (aside,),
        open(aside, "w", newline="", encoding="utf-8") as stream,
    ):
        reader = VariantReader(source, genome, radius, scorer.k, settings.bad_rows == "drop")
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["chrom", "pos", "id", "ref", "alt", "score", "reason"])
        for group in in_groups(reader.sites(), settings.batch_size * BATCHES_HELD):
            writer.writerows(_rows(group, scorer, tally))
            bar.update(source.position - bar.n)
    tally.dropped = reader.dropped
    return tally


def _rows(sites: Sequence[Site], scorer: Scorer, tally: VariantTally) -> list[list[Any]]:
    """The rows of a group of sites, all scored together."""
    asked = [site for site in sites if site.sequence]
    found: Iterator[NDArray] = iter(scorer.log_probabilities(asked) if asked else [])
    rows = []
    for site in sites:
        log_p = next(found) if site.sequence else None
        for allele in site.alleles:
            score = ""
            if allele.reason:
                assert tally.unscored is not None
                tally.unscored[allele.reason] += 1
            else:
                assert log_p is not None
                ref, alt = kmer.base_codes(allele.ref + allele.alt)
                score, tally.scored = f"{log_p[alt] - log_p[ref]:.6f}", tally.scored + 1
            rows.append([allele.contig, allele.position + 1, allele.name, allele.ref, allele.alt, score, allele.reason])
    return rows
