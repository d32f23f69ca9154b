"""`dnabert-rm export`: a run's checkpoint as one checked Hugging Face folder."""

from __future__ import annotations

import argparse
import contextlib
import sys

from dnabert_rm.utils.environment import suppress_library_output

HELP = "write a run's model as a Hugging Face folder, checked against the training model"
EXAMPLE = "dnabert-rm export runs/first --output models/first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, the output and which step."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or one of its checkpoints/step_… folders")
    parser.add_argument("--output", required=True, metavar="HFDIR", help="the new folder")
    parser.add_argument("--step", type=int, help="the checkpoint of this step (default: the last)")
    parser.add_argument(
        "--average", type=int, default=1, metavar="N", help="the mean of the last N checkpoints' weights (default: 1)"
    )
    parser.add_argument(
        "--max-shard-size",
        default="2GB",
        metavar="SIZE",
        help="the largest file of weights (default: 2GB)",
    )


def run(args: argparse.Namespace) -> None:
    """Export and print what was written."""
    suppress_library_output()
    from dnabert_rm.export.export_model import export

    with contextlib.redirect_stdout(sys.stderr):
        done = export(args.run, args.output, args.step, args.average, args.max_shard_size)
    steps = f"step {done.steps[0]}" if args.average == 1 else f"mean of the steps {', '.join(map(str, done.steps))}"
    trained = "training" if args.average == 1 else "averaged"
    print(
        f"{done.folder}: {steps}, {done.num_parameters / 1e6:.1f} M parameters; stock transformers loads it; "
        f"logits differ from the {trained} model's by {done.max_difference:.1e} of the largest"
    )
