"""Command `dnabert-rm finetune`: fine-tune a model on a table of sequences and labels."""

from __future__ import annotations

import contextlib
import sys

from dnabert_rm.config.command_line import Command
from dnabert_rm.finetune.finetune_settings import FinetuneSettings
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.errors import is_first_rank
from dnabert_rm.utils.out_of_memory import explain_out_of_memory


def run(settings: FinetuneSettings) -> None:
    """Fine-tune a model and print the scores to standard output."""
    suppress_library_output()
    from dnabert_rm.finetune import finetune_model, multiple_seeds

    # Only the result goes to standard output; library output goes to standard error.
    advice = "lower --batch-size, or lower --max-tokens to truncate long sequences"
    with contextlib.redirect_stdout(sys.stderr), explain_out_of_memory(advice):
        try:
            if settings.seeds is None:
                scores = finetune_model.finetune(settings)
            else:
                scores = multiple_seeds.finetune_seeds(settings)
        finally:
            if "torch" in sys.modules:  # some errors are raised before torch is imported
                from dnabert_rm.finetune.hf_trainer import leave_ranks

                leave_ranks()
    if is_first_rank():
        print(finetune_model.scores_table(scores) if settings.seeds is None else multiple_seeds.seeds_table(scores))


COMMAND = Command(
    name="finetune",
    help="fine-tune a head (for classes, multiple labels, numbers, or a class per base) on a CSV or TSV table",
    example=(
        "dnabert-rm finetune --model exported/ --train train.csv --dev dev.csv --test test.csv --output runs/promoters"
    ),
    settings=FinetuneSettings,
    run=run,
)
