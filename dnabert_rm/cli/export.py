"""Command `dnabert-rm export`: write a run's checkpoint as a Hugging Face folder and check it."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

from dnabert_rm.config.command_line import Command
from dnabert_rm.config.schema import Settings, setting
from dnabert_rm.utils.environment import suppress_library_output


@dataclass(frozen=True)
class ExportSettings(Settings):
    """Flags of `export`."""

    run: str = setting(positional=True, metavar="RUN")
    """A run folder, or one of its checkpoints/step_… folders."""
    output: str = setting(metavar="HFDIR")
    """The folder to create."""
    step: int | None = None
    """Export the checkpoint of this step; by default the last."""
    average: int = setting(1, metavar="N")
    """Export the mean weights of the last N checkpoints."""
    max_shard_size: str = setting("2GB", metavar="SIZE")
    """Largest size of a weights file."""


def run(settings: ExportSettings) -> None:
    """Export the model and print a summary."""
    suppress_library_output()
    from dnabert_rm.export.export_model import export

    average = settings.average
    with contextlib.redirect_stdout(sys.stderr):
        done = export(settings.run, settings.output, settings.step, average, settings.max_shard_size)
    steps = f"step {done.steps[0]}" if average == 1 else f"mean of the steps {', '.join(map(str, done.steps))}"
    trained = "training" if average == 1 else "averaged"
    print(
        f"{done.folder}: {steps}, {done.num_parameters / 1e6:.1f} M parameters; stock transformers loads it; "
        f"logits differ from the {trained} model's by {done.max_difference:.1e} of the largest logit"
    )


COMMAND = Command(
    name="export",
    help="write a run's model as a Hugging Face folder, checked against the training model",
    example="dnabert-rm export runs/first --output models/first",
    settings=ExportSettings,
    run=run,
)
