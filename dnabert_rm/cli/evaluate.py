"""Command `dnabert-rm evaluate KIND`: measure pretrained models. Each kind is a subcommand."""

from __future__ import annotations

from dnabert_rm.config.command_line import Command, CommandGroup
from dnabert_rm.evaluate.bits_settings import BitsSettings
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.out_of_memory import explain_out_of_memory


def run_bits(settings: BitsSettings) -> None:
    """Measure bits per base and print a table."""
    suppress_library_output()
    from dnabert_rm.evaluate.bits import evaluate_bits
    from dnabert_rm.evaluate.bits_table import bits_table

    with explain_out_of_memory("lower --batch-size"):
        print(bits_table(evaluate_bits(settings)))


KINDS = {
    "bits": Command(
        name="bits",
        help="bits per base of models on held-out DNA, beside guessing and Markov chains",
        example=(
            "dnabert-rm evaluate bits --model models/first --data prepared\n"
            "dnabert-rm evaluate bits --model models/first models/second --data prepared --by strand,repeats,genome"
        ),
        settings=BitsSettings,
        run=run_bits,
    ),
}

COMMAND = CommandGroup(
    name="evaluate",
    help="measure pretrained models: bits per base on held-out DNA",
    example="dnabert-rm evaluate bits --model models/first --data prepared",
    kinds=KINDS,
    title="Measure pretrained models.",
)
