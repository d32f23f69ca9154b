"""`dnabert-rm score-variants`: how much less likely a pretrained model finds each variant than the reference."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from dnabert_rm.finetune.finetune_settings import PRECISIONS
from dnabert_rm.genome.vcf import BAD_ROWS
from dnabert_rm.inference.inference_settings import STRANDS, VariantSettings
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.out_of_memory import explain_out_of_memory

HELP = "masked-likelihood scores of single-base variants: VCF and FASTA in, log P(alt) - log P(ref) out"
EXAMPLE = "dnabert-rm score-variants --model exported/ --vcf my.vcf.gz --fasta genome.fa.gz --output scores.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Files, and how the model is asked."""
    files = parser.add_argument_group("files")
    files.add_argument("--model", required=True, type=Path, metavar="HFDIR", help="folder of an exported model")
    files.add_argument("--vcf", required=True, metavar="FILE", help="variants, gzip too; - for standard input")
    files.add_argument("--fasta", required=True, type=Path, metavar="FILE", help="the genome they are of, gzip too")
    files.add_argument("--output", required=True, type=Path, metavar="FILE", help="table of scores (CSV)")
    files.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    files.add_argument(
        "--bad-rows", choices=BAD_ROWS, default="fail", help="whose REF or place is not the FASTA's (default: fail)"
    )
    scoring = parser.add_argument_group("scoring")
    scoring.add_argument("--strand", choices=STRANDS, default="both", help="strands scored (default: both, their mean)")
    scoring.add_argument("--span", type=int, metavar="N", help="tokens masked around a variant (default: k)")
    scoring.add_argument("--max-tokens", type=int, metavar="N", help="tokens at once (default: the model's)")
    scoring.add_argument("--batch-size", type=int, default=64, metavar="N", help="windows a batch (default: 64)")
    scoring.add_argument("--precision", choices=PRECISIONS, default="fp32", help="arithmetic (default: fp32)")


def run(args: argparse.Namespace) -> None:
    """Score, and say on standard error how much was done."""
    settings = VariantSettings(**{field.name: getattr(args, field.name) for field in fields(VariantSettings)})
    suppress_library_output()
    from dnabert_rm.inference.variant_scores import score_variants

    with explain_out_of_memory("lower --batch-size"):
        print(score_variants(settings).line(settings.output), file=sys.stderr)
