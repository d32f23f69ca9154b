"""Settings of `predict`, `embed` and `score-variants`, checked when constructed. This module imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.finetune.finetune_settings import Precision
from dnabert_rm.genome.interval_flags import Anchor, IntervalFlags
from dnabert_rm.inference.output_files import compression_problems, text_ending

BEDGRAPH_ENDINGS = (".bedgraph", ".bg")
EMBEDDING_ENDINGS = (".npy", ".csv", ".parquet")
VCF_ENDINGS = (".vcf", ".vcf.gz", ".vcf.bgz")
INFO_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
MAX_REGION_BASES = 10_000
"""Largest region of `score-variants`. It has 30,000 alleles."""
MAX_PICTURE_BASES = 1_000
"""Largest region that a picture shows, in 13 lines of 80 bases."""
_REGION = re.compile(r"(?P<contig>.+):(?P<start>[0-9][0-9,]{0,17})-(?P<end>[0-9][0-9,]{0,17})")


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(IntervalFlags, Settings):
    """Settings shared by `predict` and `embed`: model, sequences, output file, and how to split sequences."""

    GROUPS: ClassVar = {
        "model": "files",
        "regions": "intervals of a genome",
        "long": "long sequences",
        "batch_size": "speed",
        "track": "tracks",
        "pooling": "embeddings",
    }

    model: Path = setting(metavar="DIR")
    """Model folder with config.json, safetensors, and vocab.txt or tokenizer.json."""
    input: str | None = setting(None, metavar="FILE")
    """FASTA, or a CSV or TSV table with the column sequence; may be gzipped. - reads standard input."""
    output: Path = setting(metavar="FILE")
    """File to write: a CSV table. Predictions with coordinates also as .bedGraph or .bed for genome browsers, and
    predictions of any kind as .gz; embeddings also as .npy (row names in NAME.ids.csv) or .parquet."""
    overwrite: bool = False
    """Replace an existing output file."""
    id_column: str | None = setting(None, metavar="NAME")
    """Column with the names of a table's rows; by default id, or row numbers if there is no such column."""
    regions: str | None = setting(None, metavar="FILE")
    """BED, narrowPeak, GFF or GTF file: read its intervals from --fasta, on their strand, instead of --input."""
    fasta: Path | None = setting(None, metavar="GENOME.fa")
    """Genome of the intervals, plain or gzip."""
    feature: tuple[str, ...] = setting((), metavar="NAME")
    """Use only lines of a GFF or GTF file with these features (third column), such as gene."""
    attribute: tuple[str, ...] = setting((), metavar="KEY=VALUE")
    """Use only lines with these attributes, such as gene_biotype=protein_coding."""
    name_attribute: str | None = setting(None, metavar="KEY")
    """Attribute with the name (default: the first of Name, gene_name, gene, gene_id, ID)."""
    ignore_strand: bool = False
    """Read all intervals from the forward strand."""
    window: int | None = setting(None, metavar="N", minimum=1)
    """Bases per interval, as in `data_prep labels`; by default the whole interval."""
    anchor: Anchor = "centre"
    """Position that the window is placed by: centre, start (5' end), end (3' end) or summit."""
    upstream: int | None = setting(None, metavar="N", minimum=0)
    """Bases of the window before the anchor (default: half of the window)."""
    long: Literal["window", "middle"] | None = None
    """For sequences longer than the model's input: join overlapping windows, or use only the middle. By default as in
    fine-tuning; for embeddings, window."""
    tile: int | None = setting(None, metavar="BASES", minimum=1)
    """Bases per tile: each tile gets its own result. By default one result per record."""
    step: int | None = setting(None, metavar="BASES", minimum=1)
    """Bases from one tile's start to the next; by default --tile, so that tiles do not overlap."""
    max_tokens: int | None = setting(None, metavar="N", minimum=3)
    """Tokens per window, special tokens included; by default the model's limit."""
    batch_size: int = setting(64, metavar="N", minimum=1)
    """Windows per batch."""
    precision: Precision = "fp32"
    """fp32, or bf16 to run under autocast."""

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        if self.step is not None and self.tile is None:
            yield f"--step {self.step}: is the distance between tiles; pass --tile as well"
        if (self.input is None) == (self.regions is None):
            yield "--input FILE or --regions FILE: pass one of them"
        if (self.regions is None) != (self.fasta is None):
            yield "--regions FILE and --fasta GENOME.fa: pass both or neither"
        if self.tile is not None and self.regions is not None:
            yield f"--tile {self.tile}: applies to --input; omit it, or pass --window for the length of the intervals"
        yield from self.interval_problems()
        yield from self._ignored_flags()
        if self.regions is not None and self.window is None and (self.upstream is not None or self.anchor != "centre"):
            yield "--anchor and --upstream: place a window; pass --window as well"

    def _ignored_flags(self) -> Iterator[str]:
        """Yield an error message for each flag that has no effect on the kind of input."""
        if self.regions is not None:
            if self.id_column is not None:
                yield f"--id-column {self.id_column}: applies to a table of --input; omit it with --regions"
            return
        flags = {
            "--feature": self.feature,
            "--attribute": self.attribute,
            "--name-attribute": self.name_attribute is not None,
            "--ignore-strand": self.ignore_strand,
            "--window": self.window is not None,
            "--anchor": self.anchor != "centre",
            "--upstream": self.upstream is not None,
        }
        for flag, is_given in flags.items():
            if is_given:
                advice = "omit it, or pass --tile for parts of equal length" if flag == "--window" else "omit it"
                yield f"{flag}: applies to --regions; {advice}"

    @property
    def inputs(self) -> list[str | Path]:
        """Files with sequences that the command reads."""
        return [path for path in (self.input, self.regions, self.fasta) if path is not None]

    @property
    def region_columns(self) -> list[str]:
        """Columns that name a row of the output."""
        if self.regions is not None:
            return ["contig", "start", "end", "strand", "name"]
        return ["id"] if self.tile is None else ["contig", "start", "end"]


@dataclass(frozen=True, kw_only=True)
class PredictSettings(InferenceSettings):
    """Settings of `predict`."""

    track: str | None = setting(None, metavar="LABEL")
    """Label whose probability a .bedGraph file holds; by default the last of two. Regression: the target."""

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        yield from super().problems()
        yield from compression_problems(self.output)
        if self.is_bedgraph and self.tile is not None and self.step is not None and self.step < self.tile:
            yield f"--step {self.step}: bedGraph allows no overlap; pass at least --tile {self.tile}, or write .bed"

    @property
    def is_bedgraph(self) -> bool:
        """Whether the output is a bedGraph file, whose ranges must be sorted and must not overlap."""
        return text_ending(self.output) in BEDGRAPH_ENDINGS


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings(InferenceSettings):
    """Settings of `embed`, which turns hidden states into embeddings."""

    pooling: Literal["mean", "cls", "max"] = "mean"
    """Pooling over the tokens of a sequence: mean, max, or cls (the state of [CLS])."""
    per_token: bool = False
    """Write one embedding per token (.npy) instead of one per sequence."""
    layer: int | None = setting(None, metavar="N")
    """Hidden state to use: 0 is the first layer's input, N the output of layer N; negative numbers count from the end.
    By default the encoder's output."""
    both_strands: bool = False
    """Average the embeddings of the sequence and of its reverse complement."""
    overlapping: bool = setting(True, off="--non-overlapping")
    """Take tokens with stride k instead of 1."""

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        yield from super().problems()
        if self.output.suffix not in EMBEDDING_ENDINGS:
            yield f"--output {self.output}: must end in {', '.join(EMBEDDING_ENDINGS)}"
        elif self.per_token and self.output.suffix != ".npy":
            yield f"--output {self.output}: --per-token writes only .npy; choose a .npy file"
        if self.per_token and self.pooling != "mean":
            yield f"--pooling {self.pooling}: has no effect with --per-token; pass only one of them"


ScoreRule = Literal["log-ratio", "marginal", "embedding", "embedding-l2"]


@dataclass(frozen=True)
class VariantSettings(Settings):
    """Settings of `score-variants`: a pretrained model, variants, the genome, the scores and their output."""

    GROUPS: ClassVar = {"model": "files", "score": "scoring", "labels": "labels"}

    model: Path = setting(metavar="HFDIR")
    """Folder of a model pretrained on overlapping k-mers."""
    fasta: Path = setting(metavar="FILE")
    """The genome as FASTA, may be gzipped."""
    output: Path = setting(metavar="FILE")
    """File to write: a table of scores (CSV, also .gz). With the ending .vcf or .vcf.gz, the VCF with scores in
    INFO."""
    vcf: str | None = setting(None, metavar="FILE")
    """VCF file, may be gzipped; - reads standard input."""
    region: str | None = setting(None, metavar="CONTIG:START-END")
    """Instead of --vcf: all substitutions in a region. START and END are included and count from 1."""
    picture: Path | None = setting(None, metavar="FILE")
    """Heat map of the region's scores with a logo (.png, .svg or .pdf)."""
    info_name: str = setting("DNABERT_RM", metavar="NAME")
    """Name of the INFO field of a VCF output. The reasons are in NAME_REASON."""
    overwrite: bool = False
    """Replace an existing output file."""
    bad_rows: Literal["fail", "drop"] = "fail"
    """Rows whose REF or position contradicts the FASTA: stop at the first (fail), or leave them out (drop)."""
    score: ScoreRule = "log-ratio"
    """log-ratio: log P(alt) - log P(ref); marginal: log P(alt); embedding: 1 - cosine similarity of the mean embeddings
    of both windows; embedding-l2: their Euclidean distance."""
    strand: Literal["both", "+", "-"] = "both"
    """Strand to score: +, -, or both for their mean."""
    span: int | None = setting(None, metavar="N", minimum=1)
    """Tokens masked around a variant; by default the k tokens that cover it."""
    max_tokens: int | None = setting(None, metavar="N", minimum=3)
    """Tokens per window, special tokens included; by default all positions of the model."""
    batch_size: int = setting(64, metavar="N", minimum=1)
    """Windows per batch."""
    precision: Precision = "fp32"
    """fp32, or bf16 to run under autocast."""
    labels: str | None = setting(None, metavar="FIELD")
    """INFO field of the VCF with labels: print AUROC and average precision of the scores. A flag marks positives."""
    positive: tuple[str, ...] = setting((), metavar="A,B", separator=",")
    """Values of --labels that mean positive; needed unless the field is a flag."""
    negative: tuple[str, ...] = setting((), metavar="A,B", separator=",")
    """Values of --labels that mean negative; by default all other values."""
    seed: int = setting(0, metavar="N", minimum=0)
    """Seed of the bootstrap intervals of --labels."""

    @property
    def uses_embeddings(self) -> bool:
        """Whether the score compares embeddings, not likelihoods."""
        return self.score.startswith("embedding")

    @property
    def writes_vcf(self) -> bool:
        """Whether the output is a VCF, by its ending."""
        return self.output.name.lower().endswith(VCF_ENDINGS)

    def problems(self) -> Iterator[str]:
        """Yield an error message for each conflict between settings."""
        if (self.vcf is None) == (self.region is None):
            yield "give one of --vcf and --region" + ("" if self.vcf is None else ", not both")
        if not self.writes_vcf:
            yield from compression_problems(self.output)
        if self.region is not None:
            yield from self._region_problems(self.region)
        elif self.picture is not None:
            yield f"--picture {self.picture}: shows a region; pass --region instead of --vcf, or omit --picture"
        if self.picture is not None and self.picture == self.output:
            yield f"--picture {self.picture}: is the same file as --output; choose another file"
        if self.uses_embeddings and self.span is not None:
            yield f"--span {self.span}: has no effect with --score {self.score}, which masks nothing; omit it"
        if not INFO_NAME.fullmatch(self.info_name):
            yield f"--info-name {self.info_name}: must consist of letters, digits and _, and not start with a digit"
        if self.labels is None and (self.positive or self.negative):
            yield f"--{'positive' if self.positive else 'negative'}: has no effect without --labels; pass --labels"
        if self.negative and not self.positive:
            yield "--negative: also needs --positive"
        if both := sorted({*self.positive} & {*self.negative}):
            yield f"--positive and --negative: both have {both[0]}; remove it from one of them"

    def _region_problems(self, region: str) -> Iterator[str]:
        if self.writes_vcf:
            yield f"--output {self.output}: --region has no VCF to add scores to; choose a .csv file"
        if self.labels is not None:
            yield f"--labels {self.labels}: a region has no labels; pass --vcf instead of --region, or omit --labels"
        try:
            _, start, end = parse_region(region)
        except ValueError as error:
            yield f"--region {region}: {error}"
            return
        limit, what = MAX_REGION_BASES, "region"
        if self.picture is not None:
            limit, what = MAX_PICTURE_BASES, "region with --picture"
        if end - start > limit:
            yield f"--region {region}: has {end - start:,} bases; a {what} may have {limit:,}. Split it"


def parse_region(text: str) -> tuple[str, int, int]:
    """Return contig, start (0-based) and end (exclusive) of a region CONTIG:START-END, whose positions count from 1.

    Positions may have commas, and the contig may have colons. Raise ValueError if `text` has another form.
    """
    found = _REGION.fullmatch(text)
    if found is None:
        raise ValueError("must have the form CONTIG:START-END, such as chr1:1001-1200")
    start, end = (int(found[group].replace(",", "")) for group in ("start", "end"))
    if not 1 <= start <= end:
        raise ValueError("START must be at least 1, and END at least START")
    return found["contig"], start - 1, end
