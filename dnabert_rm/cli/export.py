"""Command `dnabert-rm export`: write a run's checkpoint as a Hugging Face folder and check it."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dnabert_rm.cli.push import upload
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
    license: str | None = setting(None, metavar="ID")
    """The license in the model card, as the hub writes it, such as apache-2.0 or cc-by-4.0."""
    push_to_hub: str | None = setting(None, metavar="OWNER/NAME")
    """Then upload the checked folder to this repository of the Hugging Face hub, as `push` does."""
    hub_private: Literal["true", "false"] | None = None
    """With --push-to-hub: whether a new repository is private; by default as its owner has set."""
    hub_revision: str | None = setting(None, metavar="NAME")
    """With --push-to-hub: the branch; by default main."""

    def problems(self) -> Iterator[str]:
        """Yield an error message for a wrong license or name of a repository, and for flags without --push-to-hub."""
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            yield f"--license {self.license}: pass an identifier of the hub, such as apache-2.0, mit or cc-by-4.0"
        if self.push_to_hub is not None:
            from dnabert_rm.export.hub import repo_problems

            yield from repo_problems(self.push_to_hub, "--push-to-hub")
            return
        for flag, value in (("--hub-private", self.hub_private), ("--hub-revision", self.hub_revision)):
            if value is not None:
                yield f"{flag} {value}: has no effect without --push-to-hub OWNER/NAME"


def run(settings: ExportSettings) -> None:
    """Export the model and print a summary. Then upload it if the user wants so."""
    suppress_library_output()
    from dnabert_rm.export.export_model import export

    average = settings.average
    with contextlib.redirect_stdout(sys.stderr):
        done = export(settings.run, settings.output, settings.step, average, settings.max_shard_size, settings.license)
    steps = f"step {done.steps[0]}" if average == 1 else f"mean of the steps {', '.join(map(str, done.steps))}"
    trained = "training" if average == 1 else "averaged"
    compared = (
        f"logits differ from the {trained} model's by {done.max_difference:.1e} of the largest logit"
        if done.max_difference
        else f"logits equal the {trained} model's"
    )
    size = f"{done.num_parameters / 1e6:.1f} M parameters"
    print(f"{done.folder}: {steps}, {size}; stock transformers loads it; {compared}", flush=True)
    if settings.push_to_hub is not None:
        upload(done.folder, settings.push_to_hub, settings.hub_private, settings.hub_revision or "main")


COMMAND = Command(
    name="export",
    help="write a run's model as a Hugging Face folder, checked against the training model",
    example="dnabert-rm export runs/first --output models/first",
    settings=ExportSettings,
    run=run,
)
