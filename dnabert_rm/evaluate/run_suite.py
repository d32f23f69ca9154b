"""Fine-tune a model on every data set of a suite, in parallel processes, and write tables of the test scores."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from dnabert_rm.evaluate import parallel_jobs
from dnabert_rm.evaluate import suite_tables as tables
from dnabert_rm.evaluate.data_sets import (
    STAND_IN,
    DataSet,
    choose_sets,
    find_sets,
    other_suite_warning,
    reason_not_to_run,
)
from dnabert_rm.evaluate.suite import Suite, load_suite
from dnabert_rm.evaluate.suite_results import data_set_rows, family_rows, load_results, main_score
from dnabert_rm.evaluate.suite_runs import LOG_FILE, RECORD_FILE, Run, check_finished, make_runs, read_run_file
from dnabert_rm.evaluate.suite_settings import SuiteSettings
from dnabert_rm.evaluate.suite_tables import UnfinishedRuns
from dnabert_rm.finetune.finetune_settings import METRIC_TITLES, MODEL_FOLDER, SCORES_FILE
from dnabert_rm.finetune.trained_tokens import stride_warning
from dnabert_rm.utils.errors import ConfigError, DataError, StoppedError
from dnabert_rm.utils.files import write_text
from dnabert_rm.utils.lock import LockHeldError, file_lock

LOCK_FILE = ".gue.lock"
UNUSABLE_FILE = "unusable_scores.json"
"""File name to which a scores.json without the data set's metric is renamed."""


def run_suite(settings: SuiteSettings) -> int:
    """Execute the unfinished runs and write the tables. Return the exit code: 0, or 1 if a run failed.

    Before any run starts, raise `DataError`, `ConfigError` or `CheckpointError` if an input is invalid. Raise
    `StoppedError` on SIGTERM or SIGHUP.
    """
    suite = load_suite(settings.suite)
    sets = choose_sets(find_sets(settings.data, suite), settings.sets)
    not_run = {data_set.name: reason for data_set in sets if (reason := reason_not_to_run(data_set, settings.stand_in))}
    runnable = [data_set for data_set in sets if data_set.name not in not_run]
    _report_sets(suite, sets, not_run, all_sets=not settings.sets)
    if not runnable:
        raise DataError(
            f"--data {settings.data}: none of these data sets can be run; add the CSV files named in the warnings"
        )
    runs = make_runs(settings, suite, runnable)
    if "pretrained" in settings.arms and (warning := stride_warning(settings.overlapping, settings.model)):
        _notice(warning)
    output = settings.output
    if settings.dry_run:
        _print_runs(runs, check_finished(runs, output, settings.overwrite), not_run)
        return 0
    with _lock(output):
        finished = check_finished(runs, output, settings.overwrite)
        failed = _run_all(settings, suite, runs, [run for run in runs if run.folder not in finished], not_run)
        _plot_table(output, suite)
    print((output / tables.MARKDOWN_FILE).read_text(encoding="utf-8"), end="")
    if failed:
        _notice(f"{len(failed)} of {len(runs)} runs failed; repeat the command to retry them")
    return 1 if failed else 0


# ---- before the first run


def _report_sets(suite: Suite, sets: Sequence[DataSet], not_run: Mapping[str, str], all_sets: bool) -> None:
    """Print a notice for each data set that is not run, is not in the suite, or needs training on dev.csv.

    If `all_sets` is true, also list the data sets of the suite that are not in `sets`.
    """
    if warning := other_suite_warning(sets, suite):
        _notice(warning)
    for name, reason in not_run.items():
        _notice(f"warning: {name}: not run: {reason}")
    for data_set in sets:
        if data_set.name in not_run:
            continue
        if not data_set.known:
            _notice(f"note: {data_set.name} is not a {suite.name} data set; default settings are used")
        if data_set.may_stand_in:
            _notice(
                f"note: {data_set.name}: {STAND_IN}: trained on dev.csv because train.csv is missing; "
                f"not a {suite.name} score"
            )
    names = {data_set.name for data_set in sets}
    if all_sets and (absent := [name for name in suite.names if name not in names]):
        total = len(suite.names)
        _notice(f"note: {len(absent)} of {suite.name}'s {total} data sets are not in --data: {', '.join(absent)}")


def _print_runs(runs: Sequence[Run], finished: set[Path], not_run: Mapping[str, str]) -> None:
    """Print the output of `--dry-run`: one line per run, and one per data set that can't be run."""
    for run in runs:
        settings = ", ".join(f"{name} {value}" for name, value in run.record["settings"].items() if value is not None)
        print(f"{'finished' if run.folder in finished else 'to do':<8}  {run.title}: {settings}")
    for name, reason in not_run.items():
        print(f"not run   {name}: {reason}")


@contextlib.contextmanager
def _lock(output: Path) -> Iterator[None]:
    """Hold a lock on the output folder. Raise `ConfigError` if the folder is already locked or can't be written."""
    with contextlib.ExitStack() as stack:
        try:
            output.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(output / LOCK_FILE))
        except LockHeldError:
            raise ConfigError(
                f"--output {output}: another call is using this folder; wait, or choose another folder"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"--output {output}: can't be written ({error.strerror}); choose another folder"
            ) from None
        yield


# ---- the runs


def _run_all(
    settings: SuiteSettings, suite: Suite, all_runs: Sequence[Run], pending: Sequence[Run], not_run: Mapping[str, str]
) -> dict[str, str]:
    """Execute the `pending` runs. After each run, print its result and rewrite the tables.

    Return the reason for each failure, keyed by `Run.title`.
    """
    gpus = parallel_jobs.visible_gpus()
    num_jobs = min(settings.jobs or len(gpus) or 1, max(1, len(pending)))
    device = f"on {len(gpus)} GPUs" if len(gpus) > 1 else "on one GPU" if gpus else "on the CPU"
    counts = f"{len(all_runs)} in total, {len(all_runs) - len(pending)} finished before, {len(pending)} to do"
    _notice(f"runs: {counts}, {num_jobs} at a time {device}")
    failed: dict[str, str] = {}
    _write_tables(settings.output, suite, not_run, failed)
    job_generator = (_prepare(run) for run in pending)
    finished_jobs = parallel_jobs.run_jobs(job_generator, parallel_jobs.slot_environments(num_jobs, gpus))
    with _stop_on_signals(), contextlib.closing(finished_jobs):
        for count, job in enumerate(finished_jobs, 1):
            run = pending[job.index]
            if failure := _failure(run, suite, job.code):
                failed[run.title] = failure
            result = f"failed: {failure}" if failure else _finish(run, suite, settings.keep_models)
            _notice(f"[{count}/{len(pending)}] {run.title}: {result} ({duration(job.seconds)})")
            _write_tables(settings.output, suite, not_run, failed)
    return failed


def _prepare(run: Run) -> parallel_jobs.ChildProcess:
    """Prepare the folder of a run, and return the job that executes the run.

    An old scores.json is removed before the new settings are written to `RECORD_FILE`. In the opposite order, a process
    killed between the two steps would leave old scores beside new settings.
    """
    (run.folder / SCORES_FILE).unlink(missing_ok=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.folder / RECORD_FILE, tables.to_json(run.record))
    return parallel_jobs.ChildProcess(run.command(), run.folder / LOG_FILE)


def _finish(run: Run, suite: Suite, keep_model: bool) -> str:
    """Return the test score of a successful run as text. Delete the fine-tuned model unless `keep_model` is true."""
    if not keep_model:
        shutil.rmtree(run.folder / MODEL_FOLDER, ignore_errors=True)
    name = run.data_set.name
    metric = suite.metric_of(name)
    return f"{METRIC_TITLES[metric]} {main_score(name, metric, read_run_file(run.folder / SCORES_FILE)):.2f}"


def _failure(run: Run, suite: Suite, code: int) -> str | None:
    """Return the reason why a run failed, with the path and last line of its log, or None for a successful run."""
    log = run.folder / LOG_FILE
    scores = run.folder / SCORES_FILE
    if code == 0 and scores.is_file():
        try:
            main_score(run.data_set.name, suite.metric_of(run.data_set.name), read_run_file(scores))
        except DataError as error:
            scores.replace(run.folder / UNUSABLE_FILE)
            return f"{error}, log {log}"
        return None
    if code < 0:
        reason = f"killed by {signal.Signals(-code).name}"
    else:
        reason = f"exit code {code}" if code else f"no {SCORES_FILE}"
    return f"{reason}, log {log}: {parallel_jobs.last_line(log)}"


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Raise `StoppedError` on SIGTERM or SIGHUP, so that child processes are terminated before this process ends."""

    def stop(number: int, _: object) -> NoReturn:
        name = signal.Signals(number).name
        raise StoppedError(f"stopped by {name}; repeat the command to continue (finished runs are kept)")

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# ---- the results


def _write_tables(output: Path, suite: Suite, not_run: Mapping[str, str], failed: Mapping[str, str]) -> None:
    tables.write_tables(output, suite, load_results(output, suite), UnfinishedRuns(not_run, failed))


def _plot_table(output: Path, suite: Suite) -> None:
    try:
        from dnabert_rm.evaluate.suite_plot import plot_table

        rows = data_set_rows(load_results(output, suite), suite)
        if rows:
            plot_table(output / tables.PLOT_FILE, suite, rows, family_rows(rows, suite))
    except ImportError:
        _notice(f"note: {tables.PLOT_FILE} is not written: matplotlib is not installed; install dnabert_rm[plots]")


def duration(seconds: float) -> str:
    """Format a duration in seconds, e.g. as `42 s`, `3 min 5 s` or `2 h 10 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def _notice(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
