"""Experiment trackers of a run: Weights & Biases and MLflow. Torch-free.

Each tracker has a thread, because a call to a server that is slow or gone takes minutes. Libraries are imported in the
main thread, since the data loader forks its workers, and a fork in the middle of an import could leave a lock behind.

accelerate's trackers are not used. They need accelerate's `PartialState`, which may create a process group of its own
and outlives the run's group, so that a later fine-tuning in the same process would use a group that is gone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from dnabert_rm.utils.errors import ConfigError, StoppedError
from dnabert_rm.utils.files import read_json_or_empty, write_json
from dnabert_rm.utils.progress import notice_beside_bar

TENSORBOARD = "tensorboard"
PROJECT = "dnabert_rm"
"""Name of the project or experiment, unless the library's environment variable names another."""
CLOSE_SECONDS = 20.0
"""Longest wait for all trackers at the end of a run. Slurm kills a run 30 seconds after it was asked to stop."""
MLFLOW_BATCH = 1000
"""Largest number of metrics in a request, by MLflow's REST API."""
MLFLOW_PARAMETERS = 100
"""Largest number of parameters in a request, by MLflow's REST API."""

Row = tuple[int, dict[str, float]]
"""A step and its values by tag, such as "train/loss"."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise `ConfigError` if a tracker's package is not installed."""
    for name in names:
        if name == TENSORBOARD:  # a requirement of this package
            continue
        spec = importlib.util.find_spec(name)
        # Without an origin it is not the package, but a folder with this name, such as the one that wandb writes.
        if spec is None or spec.origin is None:
            raise ConfigError(f"train.trackers {name}: is not installed; run pip install 'dnabert_rm[{name}]'")


def open_trackers(
    names: Sequence[str], run: Path, settings: dict[str, dict[str, Any]], last_step: int
) -> list[Tracker]:
    """Start a thread for each tracker in `names`, except TensorBoard.

    `settings` are the sections of the run's configuration. `last_step` is the last step that an earlier process of
    this run logged, or -1. A tracker that can't be started is left out with a warning.
    """
    services: dict[str, Callable[[], Service]] = {"wandb": WandbService, "mlflow": MlflowService}
    wanted = [name for name in dict.fromkeys(names) if name != TENSORBOARD]
    return [Tracker(name, services[name], run, settings, last_step) for name in wanted]


def close_trackers(trackers: Sequence[Tracker], failed: bool = False) -> None:
    """End the runs of all trackers, marked as failed if `failed`. Wait until all values are sent, but not for long."""
    for tracker in trackers:
        tracker.finish(failed)
    deadline = time.monotonic() + CLOSE_SECONDS
    for tracker in trackers:
        tracker.wait(deadline - time.monotonic())


def is_failure(error: BaseException | None) -> bool:
    """Return whether a run has failed that ends with `error`. A stop on request is not a failure."""
    return isinstance(error, Exception) and not isinstance(error, StoppedError)


class Service(Protocol):
    """A tracker's library. All methods may raise any error and may wait for a server. `__init__` only imports."""

    def start(self, run: Path, run_id: str | None, settings: dict[str, dict[str, Any]]) -> tuple[str, int | None]:
        """Start a run, or continue `run_id`. Return its id and its last logged step: -1 for no step, None if unknown.

        `settings` are stored as the run's parameters.
        """

    def log(self, rows: Sequence[Row]) -> None:
        """Log the values of steps, in ascending order."""

    def close(self, failed: bool) -> None:
        """Send the remaining values and end the run."""


class Tracker:
    """A run in an experiment tracker. `log()` never waits, and an error ends only the tracker, with one warning.

    The run folder's file `NAME_run.json` has the id of the tracker's run, so that a resume continues this run.
    """

    def __init__(
        self,
        name: str,
        service: Callable[[], Service],
        run: Path,
        settings: dict[str, dict[str, Any]],
        last_step: int,
    ) -> None:
        """Import the library and start the thread. See `open_trackers` for the arguments."""
        self._name = name
        self._run = run
        self._settings = settings
        self._last_step = last_step
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._failed = False
        self._has_warned = False
        self._thread: threading.Thread | None = None
        try:
            self._service = service()
        except Exception as error:  # a library's own errors, of any type
            self._warn(error)
            return
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Queue the values of a step."""
        if self._thread and self._thread.is_alive():
            self._rows.put((step, values))

    def finish(self, failed: bool) -> None:
        """Ask the thread to send all values and to end the tracker's run, marked as failed if `failed`."""
        self._failed = failed
        self._rows.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for the thread after `finish()`, for at most `seconds`."""
        if self._thread is None:
            return
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._warn(f"the server did not answer within {CLOSE_SECONDS:g} seconds")

    def _work(self) -> None:
        """Send rows until `finish()` is called.

        A resumed run repeats steps. Those that the tracker already has are not sent again.
        """
        try:
            last_step = self._start()
            for rows in self._batches():
                self._service.log([row for row in rows if row[0] > last_step])
            self._service.close(self._failed)
        except Exception as error:  # a library's own errors, of any type
            self._warn(error)

    def _start(self) -> int:
        """Start or continue the tracker's run. Return the last step that it has."""
        path = self._run / f"{self._name}_run.json"
        stored = read_json_or_empty(path)
        run_id, found = self._service.start(self._run, stored.get("id"), self._settings)
        earlier = max(self._last_step, stored.get("last_step", -1)) if "id" in stored else -1
        write_json(path, {"id": run_id, "last_step": earlier})
        return earlier if found is None else found

    def _batches(self) -> Iterator[list[Row]]:
        """Yield all rows that are queued, each time there are any."""
        is_open = True
        while is_open:
            rows = []
            row = self._rows.get()
            while row is not None:
                rows.append(row)
                if self._rows.empty():
                    break
                row = self._rows.get()
            is_open = row is not None
            yield rows

    def _warn(self, reason: Exception | str) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        notice_beside_bar(
            f"warning: train.trackers {self._name}: {' '.join(str(reason).split())[:300]}; the run goes on without it, "
            "and metrics.jsonl has all values"
        )


class WandbService:
    """Weights & Biases. Its own process writes the values to the run folder and sends them."""

    def __init__(self) -> None:
        import wandb

        self._wandb = wandb
        if sys.stdin and sys.stdin.isatty():
            wandb.login()  # asks for a key if there is none, which must not happen in the thread, beside a progress bar

    def start(self, run: Path, run_id: str | None, settings: dict[str, dict[str, Any]]) -> tuple[str, int | None]:
        """See `Service`. In offline mode the last step is unknown, because only a server has it."""
        run_id = run_id or uuid.uuid4().hex[:8]
        variables = os.environ
        self._active = self._wandb.init(
            project=variables.get("WANDB_PROJECT", PROJECT),
            name=variables.get("WANDB_NAME", run.name),
            dir=variables.get("WANDB_DIR", str(run)),
            id=run_id,
            resume="allow",
            config=settings,
            allow_val_change=True,
            settings=self._wandb.Settings(
                console="off",  # it would copy the progress bar
                # By default wandb waits for its server without a limit when the process exits.
                finish_timeout=float(variables.get("WANDB_FINISH_TIMEOUT", CLOSE_SECONDS)),
            ),
        )
        return run_id, None if self._active.offline else self._active.step - 1

    def log(self, rows: Sequence[Row]) -> None:
        """See `Service`."""
        for step, values in rows:
            self._active.log(values, step=step, commit=True)

    def close(self, failed: bool) -> None:
        """See `Service`."""
        self._active.finish(exit_code=int(failed))


class MlflowService:
    """MLflow: a server, or a local database such as `sqlite:///mlflow.db`."""

    def __init__(self) -> None:
        import mlflow

        with contextlib.suppress(ImportError):  # a server needs no database
            import mlflow.store.tracking.sqlalchemy_store
        self._mlflow = mlflow

    def start(self, run: Path, run_id: str | None, settings: dict[str, dict[str, Any]]) -> tuple[str, int | None]:
        """See `Service`. A parameter keeps its first value, because MLflow allows no change."""
        from mlflow.entities import Param

        # For a database, this connects, creates tables and retries for minutes.
        client = self._client = self._mlflow.MlflowClient()
        if run_id:
            client.update_run(run_id, status="RUNNING")
            last_step = max((point.step for point in client.get_metric_history(run_id, "train/loss")), default=-1)
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
            run_name = os.environ.get("MLFLOW_RUN_NAME", run.name)
            run_id, last_step = client.create_run(experiment_id, run_name=run_name).info.run_id, -1
        self._run_id = run_id
        known = client.get_run(run_id).data.params
        flat = {f"{section}.{name}": value for section, fields in settings.items() for name, value in fields.items()}
        new = [Param(name, str(value)) for name, value in flat.items() if name not in known]
        for first in range(0, len(new), MLFLOW_PARAMETERS):
            client.log_batch(run_id, params=new[first : first + MLFLOW_PARAMETERS])
        return run_id, last_step

    def log(self, rows: Sequence[Row]) -> None:
        """See `Service`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(tag, value, now, step) for step, values in rows for tag, value in values.items()]
        for first in range(0, len(metrics), MLFLOW_BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[first : first + MLFLOW_BATCH])

    def close(self, failed: bool) -> None:
        """See `Service`."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")
