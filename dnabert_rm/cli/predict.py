"""`dnabert-rm predict`: a fine-tuned model on sequences of any length."""

from __future__ import annotations

import argparse
import sys

from dnabert_rm.cli.sequence_flags import add_sequence_flags, settings_of
from dnabert_rm.inference.inference_settings import InferenceSettings
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.out_of_memory import explain_out_of_memory

HELP = "predictions of a fine-tuned model for FASTA or a table, sequences of any length"
EXAMPLE = "dnabert-rm predict --model runs/promoters/model --input genome.fa.gz --tile 300 --step 100 --output scan.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of sequences."""
    add_sequence_flags(
        parser,
        model="the model/ folder that `dnabert-rm finetune` has written",
        output="table of predictions and probabilities (CSV)",
        default_long="as it was fine-tuned",
    )


def run(args: argparse.Namespace) -> None:
    """Predict, and say on standard error how much was done."""
    settings = settings_of(InferenceSettings, args)
    suppress_library_output()
    from dnabert_rm.inference.predict_sequences import predict

    with explain_out_of_memory("lower --batch-size"):
        print(predict(settings).line(settings.output), file=sys.stderr)
