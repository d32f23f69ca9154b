"""`gue`: every data set of a folder fine-tuned in processes of their own, finished ones kept, one table at the end."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dnabert_rm.evaluate import jobs
from dnabert_rm.evaluate import report_tables as tables
from dnabert_rm.evaluate.gue_suite import GUE, STAND_IN, DataSet, choose_sets, find_sets, why_not
from dnabert_rm.evaluate.report_tables import Remarks
from dnabert_rm.evaluate.results import data_set_rows, family_rows, load_results, main_score
from dnabert_rm.evaluate.suite_runs import LOG_FILE, RECORD_FILE, Plan, Run, check_kept, make_runs, read_run_file
from dnabert_rm.finetune.finetune_settings import MODEL_FOLDER, SCORES_FILE
from dnabert_rm.utils.errors import ConfigError, DataError, StoppedError
from dnabert_rm.utils.files import write_text
from dnabert_rm.utils.lock import LockHeldError, file_lock

LOCK_FILE = ".gue.lock"
UNUSABLE_FILE = "unusable_scores.json"
"""Scores without the metric that the table shows."""


@dataclass(frozen=True)
class GueOptions:
    """What one call is told, besides its plan."""

    plan: Plan
    data: Path
    sets: tuple[str, ...] = ()
    """Names or patterns of data sets; all of them where there are none."""
    stand_in: bool = False
    jobs: int | None = None
    """Runs at a time; None for one a visible GPU."""
    overwrite: bool = False
    keep_models: bool = False
    dry_run: bool = False


def gue(options: GueOptions) -> int:
    """Run what is not finished yet and write the tables; returns 0, or 1 where a run failed.

    Raises `DataError`, `ConfigError` or `CheckpointError` before anything is started, `StoppedError` on SIGTERM.
    """
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: must be 1 or more")
    sets = choose_sets(find_sets(options.data), options.sets)
    left_out = {s.name: why for s in sets if (why := why_not(s, options.stand_in))}
    runnable = [data_set for data_set in sets if data_set.name not in left_out]
    _tell_sets(sets, left_out, everything=not options.sets)
    if not runnable:
        raise DataError(f"--data {options.data}: none of these data sets can be run")
    runs = make_runs(options.plan, runnable)
    output = options.plan.output
    if options.dry_run:
        _print_runs(runs, check_kept(runs, output, options.overwrite), left_out)
        return 0
    with _lock(output):
        finished = check_kept(runs, output, options.overwrite)
        failed = _run_all(options, runs, [run for run in runs if run.folder not in finished], left_out)
        _draw(output)
    print((output / tables.MARKDOWN_FILE).read_text(encoding="utf-8"), end="")
    if failed:
        _notice(f"{len(failed)} of {len(runs)} runs failed; the same command tries them again")
    return 1 if failed else 0


# ---- before the first run


def _tell_sets(sets: Sequence[DataSet], left_out: dict[str, str], everything: bool) -> None:
    for name, why in left_out.items():
        _notice(f"warning: {name}: not run: {why}")
    for data_set in sets:
        if data_set.name in left_out:
            continue
        if not data_set.known:
            _notice(f"note: {data_set.name} is not one of GUE's data sets: run with default settings")
        if data_set.may_stand_in:
            _notice(f"note: {data_set.name}: {STAND_IN}: trained on dev.csv, for want of train.csv; not a GUE number")
    if everything and (absent := absent_sets(sets)):
        _notice(f"note: {len(absent)} of GUE's {len(GUE)} data sets are not in --data: {', '.join(absent)}")


def absent_sets(sets: Sequence[DataSet]) -> list[str]:
    """GUE's data sets that are not among these."""
    there = {data_set.name for data_set in sets}
    return [name for name in GUE if name not in there]


def _print_runs(runs: Sequence[Run], finished: set[Path], left_out: dict[str, str]) -> None:
    """What `--dry-run` prints: a line a run."""
    for run in runs:
        told = ", ".join(f"{name} {value}" for name, value in run.record["settings"].items() if value is not None)
        print(f"{'finished' if run.folder in finished else 'to do':<8}  {run.title}: {told}")
    for name, why in left_out.items():
        print(f"not run   {name}: {why}")


@contextlib.contextmanager
def _lock(output: Path) -> Iterator[None]:
    """Hold the output folder for this process; `ConfigError` where another one holds it or it can't be written."""
    with contextlib.ExitStack() as stack:
        try:
            output.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(output / LOCK_FILE))
        except LockHeldError:
            raise ConfigError(f"--output {output}: another gue is at work there; wait, or name another") from None
        except OSError as error:
            raise ConfigError(f"--output {output}: can't be written ({error.strerror}); name another folder") from None
        yield


# ---- the runs


def _run_all(
    options: GueOptions, asked: Sequence[Run], runs: Sequence[Run], left_out: dict[str, str]
) -> dict[str, str]:
    """Run them, a line and new tables after each; returns what failed, by title, and why."""
    gpus = jobs.visible_gpus()
    num_jobs = min(options.jobs or len(gpus) or 1, max(1, len(runs)))
    where = f"on {len(gpus)} GPUs" if len(gpus) > 1 else "on one GPU" if gpus else "on the CPU"
    counts = f"{len(asked)} asked for, {len(asked) - len(runs)} finished before, {len(runs)} to do"
    _notice(f"runs: {counts}, {num_jobs} at a time {where}")
    failed: dict[str, str] = {}
    _write_tables(options, left_out, failed)
    prepared = (_prepare(run) for run in runs)
    with (
        _stop_on_signals(),
        contextlib.closing(jobs.run_jobs(prepared, jobs.slot_variables(num_jobs, gpus))) as all_ended,
    ):
        for count, end in enumerate(all_ended, 1):
            run = runs[end.number]
            if fault := _fault(run, end.code):
                failed[run.title] = fault
            said = f"failed: {fault}" if fault else _after(options, run)
            _notice(f"[{count}/{len(runs)}] {run.title}: {said} ({duration(end.seconds)})")
            _write_tables(options, left_out, failed)
    return failed


def _prepare(run: Run) -> jobs.Job:
    """Note down what the run is told, after the scores of an earlier one, which would pass for its own, are gone."""
    (run.folder / SCORES_FILE).unlink(missing_ok=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.folder / RECORD_FILE, tables.to_json(run.record))
    return jobs.Job(run.command(), run.folder / LOG_FILE)


def _after(options: GueOptions, run: Run) -> str:
    """Clear up after a run that went well; returns its score in words."""
    if not options.keep_models:
        shutil.rmtree(run.folder / MODEL_FOLDER, ignore_errors=True)
    title, score = main_score(run.data_set.name, read_run_file(run.folder / SCORES_FILE))
    return f"{title} {score:.2f}"


def _fault(run: Run, code: int) -> str | None:
    """Why a run has failed, its log and the log's last line; None where it has not."""
    log, scores = run.folder / LOG_FILE, run.folder / SCORES_FILE
    if code == 0 and scores.is_file():
        try:
            main_score(run.data_set.name, read_run_file(scores))
        except DataError as error:
            scores.replace(run.folder / UNUSABLE_FILE)
            return f"{error}, log {log}"
        return None
    if code < 0:
        kind = f"killed by {signal.Signals(-code).name}"
    else:
        kind = f"exit code {code}" if code else f"no {SCORES_FILE}"
    return f"{kind}, log {log}: {jobs.last_line(log)}"


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `StoppedError`, so that the processes are ended before this one."""

    def stop(number: int, _: object) -> NoReturn:
        name = signal.Signals(number).name
        raise StoppedError(f"stopped by {name}; finished runs are kept, and the same command does the others")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_tables(options: GueOptions, left_out: dict[str, str], failed: dict[str, str]) -> None:
    remarks = Remarks(left_out, failed)
    tables.write_tables(options.plan.output, load_results(options.plan.output), remarks)


def _draw(output: Path) -> None:
    try:
        from dnabert_rm.evaluate.table_plot import draw_table

        rows = data_set_rows(load_results(output))
        if rows:
            draw_table(output / tables.PICTURE_FILE, rows, family_rows(rows))
    except ImportError:
        _notice(f"note: no {tables.PICTURE_FILE}: matplotlib is not installed; install dnabert_rm[plots]")


def duration(seconds: float) -> str:
    """Seconds as people read them: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def _notice(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
