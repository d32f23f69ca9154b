"""`dnabert-rm embed`: a model's embeddings of sequences of any length."""

from __future__ import annotations

import argparse
import sys

from dnabert_rm.cli.sequence_flags import add_sequence_flags, settings_of
from dnabert_rm.inference.inference_settings import POOLINGS, EmbeddingSettings
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.out_of_memory import explain_out_of_memory

HELP = "embeddings of FASTA or a table, one a sequence or one a token, to .npy, .csv or .parquet"
EXAMPLE = "dnabert-rm embed --model exported/ --input genes.fa --both-strands --output genes.npy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of sequences, and what is taken from the model."""
    add_sequence_flags(
        parser,
        model="folder of an exported or fine-tuned model",
        output=".npy with NAME.ids.csv beside it, .csv or .parquet",
        default_long="window",
    )
    taken = parser.add_argument_group("embeddings")
    taken.add_argument("--pooling", choices=POOLINGS, default="mean", help="over a sequence's tokens (default: mean)")
    taken.add_argument("--per-token", action="store_true", help="one embedding a token (.npy)")
    taken.add_argument(
        "--layer",
        type=int,
        metavar="N",
        help="0: input embeddings, 1 …: outputs of layers, negative from the end (default: -1)",
    )
    taken.add_argument("--both-strands", action="store_true", help="mean of the sequence and its reverse complement")
    taken.add_argument("--non-overlapping", dest="overlapping", action="store_false", help="tokens with stride k")


def run(args: argparse.Namespace) -> None:
    """Embed, and say on standard error how much was done."""
    settings = settings_of(EmbeddingSettings, args)
    suppress_library_output()
    from dnabert_rm.inference.embed_sequences import embed

    with explain_out_of_memory("lower --batch-size"):
        print(embed(settings).line(settings.output), file=sys.stderr)
