"""Command `dnabert-rm score-variants`: compare variant and reference alleles by likelihood under a pretrained model."""

from __future__ import annotations

import sys

from dnabert_rm.config.command_line import Command
from dnabert_rm.inference.inference_settings import VariantSettings
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.out_of_memory import explain_out_of_memory


def run(settings: VariantSettings) -> None:
    """Score the variants and print a summary to standard error."""
    suppress_library_output()
    from dnabert_rm.inference.variant_scores import score_variants

    with explain_out_of_memory("lower --batch-size"):
        print(score_variants(settings).line(settings.output), file=sys.stderr)


COMMAND = Command(
    name="score-variants",
    help="score single-base variants of a VCF by log P(alt) - log P(ref), with the position masked",
    example="dnabert-rm score-variants --model exported/ --vcf my.vcf.gz --fasta genome.fa.gz --output scores.csv",
    settings=VariantSettings,
    run=run,
)
