"""Command `dnabert-rm score-variants`: compare variant and reference alleles under a pretrained model."""

from __future__ import annotations

import sys

from dnabert_rm.config.command_line import Command
from dnabert_rm.inference.inference_settings import VariantSettings
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.files import check_output_file
from dnabert_rm.utils.out_of_memory import explain_out_of_memory


def run(settings: VariantSettings) -> None:
    """Score the variants. Print metrics to standard output, and a summary to standard error."""
    suppress_library_output()
    if settings.picture is not None:
        from dnabert_rm.analysis.figures import check_picture_name, new_figure

        check_picture_name(settings.picture, "--picture")
        check_output_file(settings.picture, settings.overwrite, [settings.model, settings.fasta], "--picture")
        new_figure(1, 1)  # before the scoring, in case matplotlib is missing
    from dnabert_rm.inference.variant_scores import score_variants

    with explain_out_of_memory("lower --batch-size"):
        tally = score_variants(settings)
    print(tally.line(settings.output), file=sys.stderr)
    if tally.metrics:
        print(tally.metrics)
    if settings.picture is not None:
        from dnabert_rm.analysis.region_figure import draw_region

        draw_region(settings.output, settings.picture, settings.score)
        print(settings.picture, file=sys.stderr)


COMMAND = Command(
    name="score-variants",
    help="score single-base variants of a VCF or a region, by default by log P(alt) - log P(ref)",
    example="dnabert-rm score-variants --model exported/ --vcf my.vcf.gz --fasta genome.fa.gz --output scores.csv\n"
    "dnabert-rm score-variants --model exported/ --region chr1:1001-1200 --fasta genome.fa.gz --output scores.csv"
    " --picture scores.png",
    settings=VariantSettings,
    run=run,
)
