"""`dnabert-rm gue`: fine-tune on every GUE data set of a folder and print one table."""

from __future__ import annotations

from dnabert_rm.config.command_line import Command
from dnabert_rm.evaluate.suite_settings import SuiteSettings


def run(settings: SuiteSettings) -> int:
    """Run the unfinished fine-tunings and print the table."""
    from dnabert_rm.evaluate.run_suite import run_suite

    return run_suite(settings)


COMMAND = Command(
    name="gue",
    help="fine-tune on every GUE data set of a folder, several seeds and arms; one table and picture",
    example=(
        "dnabert-rm gue --model exported/ --data GUE/ --output runs/gue --seeds 1,2,3 --arms pretrained,scratch\n\n"
        "A second call continues where the first ended. Settings of each data set: docs/gue.md."
    ),
    settings=SuiteSettings,
    run=run,
)
