"""Command `dnabert-rm check`: report all errors of a run's configuration at once, without training."""

from __future__ import annotations

from dataclasses import dataclass

from dnabert_rm.cli.run_flags import RunCommand, RunFlags
from dnabert_rm.config.schema import Settings, setting


@dataclass(frozen=True)
class CheckSettings(Settings):
    """Flags of `check`, in addition to the flags of a run configuration."""

    gpus: int = setting(1, metavar="N", minimum=1)
    """Number of ranks of the run, one per GPU, or without a GPU one per group of CPU cores."""


def run(settings: CheckSettings, flags: RunFlags) -> None:
    """Check the configuration and print a summary of the run."""
    from dnabert_rm.train.preflight import check_run

    print("\n".join(check_run(flags.config(), settings.gpus)))


COMMAND = RunCommand(
    name="check",
    help="check a pretraining configuration and its data without training",
    example="dnabert-rm check --preset tiny --data prepared --output runs/first --gpus 8",
    settings=CheckSettings,
    run=run,
    usage="--data DIR --output RUN [--gpus N]",
)
