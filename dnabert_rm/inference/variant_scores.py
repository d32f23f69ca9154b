"""Score single-base variants of a VCF or of a region, from file to file.

The score is a masked likelihood (masked_likelihood.py) or a distance between embeddings (embedding_distance.py).
docs/predictions.md explains the scores.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForMaskedLM

from dnabert_rm.finetune.pretrained_encoder import load_config, load_kmer_tokenizer
from dnabert_rm.finetune.trained_tokens import check_trained_overlapping
from dnabert_rm.genome.fasta_stream import Input
from dnabert_rm.genome.reference import Genome
from dnabert_rm.genome.vcf import Site, VariantReader, region_sites
from dnabert_rm.inference.embed_sequences import Embedder
from dnabert_rm.inference.embedding_distance import EmbeddingDistance
from dnabert_rm.inference.inference_settings import VariantSettings, parse_region
from dnabert_rm.inference.masked_likelihood import MaskedLikelihood
from dnabert_rm.inference.model_loading import load_encoder, load_model, model_inputs, open_model_folder
from dnabert_rm.inference.model_runner import BatchRunner, chunked, default_device
from dnabert_rm.inference.output_files import open_text
from dnabert_rm.inference.scored_vcf import CsvScores, ScoredSite, ScoreFile, VcfScores, open_vcf
from dnabert_rm.inference.variant_labels import LabelledScores
from dnabert_rm.model.mlm import MaskedLM
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import atomic_outputs, check_output_file
from dnabert_rm.utils.progress import progress_bar

BATCHES_PER_GROUP = 16
"""Number of batches of sites that are read and scored together."""
GROUP_BYTES = 1 << 26
"""Bytes of VCF lines at which a group of sites ends, since rows with many samples are long."""
NO_KMER = "no known k-mer"
"""Reason of an allele whose window has ambiguous bases in every k-mer, so that it has no embedding."""
RULES = {
    "log-ratio": "log P(alt) - log P(ref)",
    "marginal": "log P(alt)",
    "embedding": "1 - cosine similarity of the embeddings of ref and alt",
    "embedding-l2": "Euclidean distance between the embeddings of ref and alt",
}
"""Formula of each score."""


class VariantScorer(Protocol):
    """A model with a score."""

    def scores(self, sites: Sequence[Site]) -> list[NDArray[np.float64]]:
        """Return the scores of each site's alleles, shape (alleles,), or NaN. Each site must have a sequence."""


@dataclass
class VariantTally:
    """Numbers of scored alleles, unscored alleles and dropped rows, for the final summary line."""

    scored: int = 0
    unscored: Counter[str] = field(default_factory=Counter)
    """Number of alleles without a score, for each reason."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of rows left out because they contradict the FASTA, for each reason."""
    metrics: str = ""
    """Agreement with the labels, two lines; empty without labels."""

    def line(self, output: object) -> str:
        """Return a one-line summary that begins with the path of the output file."""
        parts = [f"{output}: {self.scored:,} allele{'s' * (self.scored != 1)} scored"]
        for what, counts in (("without a score", self.unscored), ("left out", self.dropped)):
            if counts:
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
                parts.append(f"{counts.total():,} {what} ({reasons})")
        return "; ".join(parts)


def load_scorer(settings: VariantSettings) -> tuple[VariantScorer, int, int]:
    """Load the model. Return the scorer, the largest number of k-mers per window, and k.

    Raise `ConfigError` if `--span` or `--max-tokens` is out of range for the model, and `CheckpointError` if the model
    was trained on non-overlapping k-mers.
    """
    folder = open_model_folder(settings.model) if settings.uses_embeddings else None
    config = folder.config if folder else load_config(settings.model)
    tokenizer = load_kmer_tokenizer(folder.tokenizer if folder else settings.model, config, "score-variants")
    check_trained_overlapping("score-variants", *(folder.folders if folder else [settings.model]))
    k = tokenizer.k
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
    if folder:
        encoder = load_encoder(folder).to(device)  # type: ignore[arg-type]
        runner = BatchRunner(tokenizer, device, settings.precision, settings.batch_size)
        embedder = Embedder(encoder, runner, "mean", None, False, positions, config.hidden_size)
        return EmbeddingDistance(embedder, settings.strand, settings.score == "embedding"), max_kmers, k
    model = MaskedLM(load_model(AutoModelForMaskedLM, settings.model, config)).to(device).eval()
    likelihood = MaskedLikelihood(
        model=model,
        k=k,
        device=device,
        span=span,
        strand=settings.strand,
        batch_size=settings.batch_size,
        precision=settings.precision,
        relative=settings.score == "log-ratio",
    )
    return likelihood, max_kmers, k


def score_variants(settings: VariantSettings) -> VariantTally:
    """Score all alleles of the VCF or region, in order, and write them to `output`.

    A CSV table has the columns chrom, pos (1-based), id, ref, alt, score and reason. If an allele has no score,
    `reason` explains why. A VCF is the input with two more INFO fields.

    Raises `ConfigError`, `CheckpointError`, or `DataError` with the line number. After an error, no output file
    remains. The exception is `DataError` for labels of one class only, after which the scores remain.
    """
    inputs = model_inputs(settings.model, settings.fasta, *([] if settings.vcf is None else [settings.vcf]))
    check_output_file(settings.output, settings.overwrite, inputs)
    scorer, max_kmers, k = load_scorer(settings)
    # The same number of bases on either side, so that both strands have the same window.
    radius = (max_kmers + k - 2) // 2
    tally = VariantTally()
    with Genome(str(settings.fasta)) as genome:
        if settings.vcf is None:
            assert settings.region is not None
            labels = None
            contig, start, end = parse_region(settings.region)
            sites = region_sites(genome, contig, start, end, radius, k)
            with progress_bar("bases", end - start, "base") as bar, _open_output(settings, "") as file:
                for group in chunked(sites, settings.batch_size * BATCHES_PER_GROUP):
                    file.write(_score_group(group, scorer, settings, tally))
                    bar.update(len(group))
        else:
            labels = _score_vcf(settings, genome, scorer, radius, k, tally)
    if labels:
        try:
            tally.metrics = labels.summary(settings.seed)
        except DataError as error:
            raise DataError(f"{error} ({settings.output} has the scores)") from None
    return tally


def _score_vcf(
    settings: VariantSettings, genome: Genome, scorer: VariantScorer, radius: int, k: int, tally: VariantTally
) -> LabelledScores | None:
    """Write the scores of a VCF. Return the labelled scores, or None without `--labels`."""
    assert settings.vcf is not None
    with (
        Input(settings.vcf, "a VCF file") as source,
        progress_bar("variants", source.size, "byte") as bar,
        _open_output(settings, source.display_name) as file,
    ):
        labels = _make_labels(settings, source.display_name)
        keep_lines = settings.writes_vcf or labels is not None
        reader = VariantReader(source, genome, radius, k, settings.bad_rows == "drop", keep_lines)
        is_first = True
        for group in _groups(reader.sites(), settings.batch_size * BATCHES_PER_GROUP):
            if is_first:
                _check_header(group[0].comments, file, labels)
                is_first = False
            file.write(_score_group(group, scorer, settings, tally, labels))
            bar.update(source.position - bar.n)
        if is_first:
            _check_header(reader.comments, file, labels)
        file.finish(reader.comments)
    tally.dropped = reader.dropped
    return labels


def _check_header(comments: Iterable[bytes], file: ScoreFile, labels: LabelledScores | None) -> None:
    """Check a VCF's header before the first forward pass."""
    file.check_header(comments)
    if labels:
        labels.check_header(comments)


def _make_labels(settings: VariantSettings, source: str) -> LabelledScores | None:
    if settings.labels is None:
        return None
    # A variant with a large effect has a low likelihood, but a large distance between embeddings.
    sign = 1 if settings.uses_embeddings else -1
    return LabelledScores(source, settings.labels, frozenset(settings.positive), frozenset(settings.negative), sign)


@contextlib.contextmanager
def _open_output(settings: VariantSettings, source: str) -> Iterator[ScoreFile]:
    """Open the output file, which appears when the `with` block ends without an error."""
    with atomic_outputs(settings.output) as (temporary,):
        if settings.writes_vcf:
            model = settings.model.resolve().name
            description = f"{RULES[settings.score]} by dnabert-rm score-variants, model {model}, rule {settings.score}"
            with open_vcf(temporary, settings.output.suffix.lower() != ".vcf") as binary:
                yield VcfScores(binary, source, settings.info_name, description)
        else:
            with open_text(temporary, settings.output) as stream:
                yield CsvScores(stream)


def _groups(sites: Iterable[Site], size: int) -> Iterator[list[Site]]:
    """Yield lists of `size` sites, or fewer if their lines exceed `GROUP_BYTES`."""
    group: list[Site] = []
    num_bytes = 0
    for site in sites:
        group.append(site)
        num_bytes += len(site.line) + len(site.info)
        if len(group) == size or num_bytes >= GROUP_BYTES:
            yield group
            group = []
            num_bytes = 0
    if group:
        yield group


def _score_group(
    sites: Sequence[Site],
    scorer: VariantScorer,
    settings: VariantSettings,
    tally: VariantTally,
    labels: LabelledScores | None = None,
) -> list[ScoredSite]:
    """Score the alleles at all `sites`, and count them."""
    scorable = [site for site in sites if site.sequence]
    found = iter(scorer.scores(scorable) if scorable else ())
    number_format = ".6e" if settings.uses_embeddings else "z.6f"  # distances of embeddings may be tiny
    scored = []
    for site in sites:
        scores = next(found) if site.sequence else np.full(len(site.alleles), np.nan)
        reasons = [
            allele.reason or (NO_KMER if np.isnan(score) else "")
            for allele, score in zip(site.alleles, scores, strict=True)
        ]
        texts = ["" if reason else format(score, number_format) for score, reason in zip(scores, reasons, strict=True)]
        tally.scored += reasons.count("")
        tally.unscored.update(filter(None, reasons))
        if labels:
            labels.add(site, scores)
        scored.append(ScoredSite(site, texts, reasons))
    return scored
