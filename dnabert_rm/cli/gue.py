"""Command `dnabert-rm gue`: another name of `dnabert-rm evaluate suite`."""

from __future__ import annotations

from dnabert_rm.config.command_line import Command
from dnabert_rm.evaluate.suite_settings import SuiteSettings


def run(settings: SuiteSettings) -> int:
    """Run all fine-tuning runs that are not finished, and print the table of scores."""
    from dnabert_rm.evaluate.run_suite import run_suite

    return run_suite(settings)


COMMAND = Command(
    name="gue",
    help="fine-tune on every data set of GUE or another suite, with several seeds and initial weights; write one table",
    example=(
        "dnabert-rm gue --model exported/ --data GUE/ --output runs/gue --seeds 1,2,3 --arms pretrained,scratch\n"
        "dnabert-rm gue --suite genomic_benchmarks --model exported/ --data tables/ --output runs/benchmarks\n\n"
        "Run the same command again to continue after an interruption. Settings of each data set: docs/finetuning.md."
    ),
    settings=SuiteSettings,
    run=run,
)
