"""Command `dnabert-rm evaluate KIND`: measure pretrained models. Each kind is a subcommand."""

from __future__ import annotations

from dnabert_rm.config.command_line import Command, CommandGroup
from dnabert_rm.evaluate.bits_settings import BitsSettings
from dnabert_rm.evaluate.probes.probe_settings import ProbeSettings
from dnabert_rm.evaluate.suite_settings import SuiteSettings
from dnabert_rm.utils.environment import suppress_library_output
from dnabert_rm.utils.out_of_memory import explain_out_of_memory


def run_bits(settings: BitsSettings) -> None:
    """Measure bits per base and print a table."""
    suppress_library_output()
    from dnabert_rm.evaluate.bits import evaluate_bits
    from dnabert_rm.evaluate.bits_table import bits_table

    with explain_out_of_memory("lower --batch-size"):
        print(bits_table(evaluate_bits(settings)))


def run_probe(settings: ProbeSettings) -> None:
    """Fit probes on frozen embeddings, write the results and print the table."""
    suppress_library_output()
    from dnabert_rm.evaluate.probes.evaluate_probe import evaluate_probe

    with explain_out_of_memory("lower --batch-size"):
        print(evaluate_probe(settings), end="")


def run_suite(settings: SuiteSettings) -> int:
    """Fine-tune on every data set of a suite and print the table of scores."""
    from dnabert_rm.evaluate.run_suite import run_suite

    return run_suite(settings)


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
    "probe": Command(
        name="probe",
        help="linear probes of frozen embeddings on labelled data sets, beside k-mer counts and a small CNN",
        example=(
            "dnabert-rm evaluate probe --model models/first --data GUE --output probes\n"
            "dnabert-rm evaluate probe --model models/first --data GUE --output few --labels-per-class 10,100 "
            "--baselines kmers,cnn"
        ),
        settings=ProbeSettings,
        run=run_probe,
    ),
    "suite": Command(
        name="suite",
        help="fine-tuning on every data set of a benchmark suite; `dnabert-rm gue` is another name of this command",
        example=(
            "dnabert-rm evaluate suite --suite genomic_benchmarks --model exported/ --data tables/ --output results/"
        ),
        settings=SuiteSettings,
        run=run_suite,
    ),
}

COMMAND = CommandGroup(
    name="evaluate",
    help="measure pretrained models: bits per base on held-out DNA, probes, fine-tuning on benchmark suites",
    example="dnabert-rm evaluate bits --model models/first --data prepared",
    kinds=KINDS,
    title="Measure pretrained models.",
)
