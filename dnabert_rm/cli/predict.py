"""Command `dnabert-rm predict`: run a fine-tuned model on sequences of any length."""

from __future__ import annotations

import sys

from dnabert_rm.config.command_line import Command
from dnabert_rm.inference.inference_settings import PredictSettings
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.out_of_memory import explain_out_of_memory


def run(settings: PredictSettings) -> None:
    """Write predictions for the sequences, and print a summary to standard error."""
    suppress_library_output()
    from dnabert_rm.inference.predict_sequences import predict

    with explain_out_of_memory("lower --batch-size"):
        print(predict(settings).line(settings.output), file=sys.stderr)


COMMAND = Command(
    name="predict",
    help="predict with a fine-tuned model on sequences of any length in a FASTA or table",
    example=(
        "dnabert-rm predict --model runs/promoters/model --input genome.fa.gz --tile 300 --step 100 --output scan.csv"
    ),
    settings=PredictSettings,
    run=run,
)
