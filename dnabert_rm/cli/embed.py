"""Command `dnabert-rm embed`: write a model's embeddings of sequences of any length."""

from __future__ import annotations

import sys

from dnabert_rm.config.command_line import Command
from dnabert_rm.inference.inference_settings import EmbeddingSettings
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.out_of_memory import explain_out_of_memory


def run(settings: EmbeddingSettings) -> None:
    """Write the embeddings of the sequences, and print a summary to standard error."""
    suppress_library_output()
    from dnabert_rm.inference.embed_sequences import embed

    with explain_out_of_memory("lower --batch-size"):
        print(embed(settings).line(settings.output), file=sys.stderr)


COMMAND = Command(
    name="embed",
    help="embed sequences of a FASTA or table, as one vector per sequence or token, into .npy, .csv or .parquet",
    example="dnabert-rm embed --model exported/ --input genes.fa --both-strands --output genes.npy",
    settings=EmbeddingSettings,
    run=run,
)
