"""Run many small pretraining arms on a CPU, a few at a time, and compare them in bits per base.

    python benchmarks/arms.py run benchmarks/arms.txt --output runs/arms --results dev/arms.csv --slots 2
    python benchmarks/arms.py table --results dev/arms.csv --match masking/ [--against masking/randommask]
    python benchmarks/arms.py pictures --results dev/arms.csv --match masking/ --output docs/images/masking_arms
    python benchmarks/arms.py reference runs/arms/masking/randommask --output dnabert_rm/reference_runs/tiny_yeast

A line of arms.txt is a name, the seeds, and flags of pretraining. A line with the name `*` has flags for all lines up
to the next such line. They are run seed by seed:

    * --data prepared --preset tiny --steps 1000
    losses/bert/token 1,2,3 --model.architecture bert --model.loss token

`run`: each arm has one thread and its own process, forked from one that has imported everything. When it ends, its
validations are appended to the results, one row each. `run` can be repeated, on another machine too: arms with rows are
skipped, unfinished ones resume.

`table`: the mean over seeds and half its 95 % interval, of the last validations, or of their differences from the arm
`--against` with the same seed. An arm has left the plateau of single k-mers at the first validation with more than half
of the bases right at the narrowest span.

`reference`: keep the configuration and the validations of the runs of one arm, for `dnabert-rm check-run --reference`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

LEFT_AT_ACCURACY = 0.5
COMMON = "--train.threads_per_rank 1 --workers 0 --ds-config zero0 --precision fp32 --train.keep_last 1"
HIDDEN = (1, 3, 5, 9)
FIGURES = ("token_loss", "widest_loss", "base_accuracy", *(f"bits_{hidden}" for hidden in HIDDEN))
"""Columns to compare. The token losses are those at the narrowest and at the widest span."""
MARKOV = tuple(f"markov_{hidden}" for hidden in HIDDEN)
"""Columns of the Markov line: the order with the fewest bits at 5 hidden bases."""
FIELDS = ("name", "steps", "tokens", *FIGURES, *MARKOV, "commit", "fingerprint", "processor", "date")


def main(argv: list[str] | None = None) -> int:
    """Run or compare the arms. Return exit code 1 if an arm failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the arms that have no row yet")
    run.add_argument("arms", type=Path, metavar="ARMS.txt")
    run.add_argument("--slots", type=int, default=2, help="arms that run at the same time (%(default)s)")
    compare = commands.add_parser("table", help="compare the arms over their seeds")
    compare.add_argument("--against", metavar="ARM", help="print differences from this arm, seed by seed")
    pictures = commands.add_parser("pictures", help="plot bits per base by step, and those at the end")
    for command in (run, compare, pictures):
        command.add_argument("--results", type=Path, required=True, metavar="CSV", help="one row per validation")
        command.add_argument("--match", nargs="+", default=[""], help="only arms whose name contains one of these")
    reference = commands.add_parser("reference", help="keep the validations of an arm's runs")
    reference.add_argument("runs", type=Path, metavar="FOLDER", help="folder with one run folder per seed")
    for command, text in ((run, "folder of the run folders"), (reference, "new folder"), (pictures, "start of names")):
        command.add_argument("--output", type=Path, required=True, help=text)
    args = parser.parse_args(argv)
    if args.command == "reference":
        write_reference(args.runs, args.output)
        return 0
    rows = [row for row in read_results(args.results) if any(word in row["name"] for word in args.match)]
    if args.command == "table":
        print(table(rows, args.against))
    elif args.command == "pictures":
        draw(rows, args.output)
    else:
        done = {row["name"] for row in rows}
        arms = {name: flags for name, flags in read_arms(args.arms).items() if any(word in name for word in args.match)}
        return run_all({name: flags for name, flags in arms.items() if name not in done}, args)
    return 0


def read_arms(path: Path) -> dict[str, list[str]]:
    """Return the flags of each run, keyed by the arm's name and the seed, in the order in which they are run."""
    arms: dict[str, list[str]] = {}
    common: list[str] = []
    block: list[tuple[str, str, list[str]]] = []
    lines = [shlex.split(line, comments=True) for line in path.read_text(encoding="utf-8").splitlines()]
    for words in [*filter(None, lines), ["*"]]:
        if words[0] == "*":
            block.sort(key=lambda run: int(run[1]))
            arms |= {f"{name}/{seed}": [*common, *flags, "--seed", seed] for name, seed, flags in block}
            common, block = words[1:], []
        else:
            block += [(words[0], seed, words[2:]) for seed in words[1].split(",")]
    return arms


def read_results(path: Path) -> list[dict[str, str]]:
    """Return the validations of finished arms, or none if there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and (missing := [column for column in FIELDS if column not in rows[0]]):
        raise SystemExit(f"{path}: not a file of results that `run` writes: no column {', '.join(missing)}")
    return rows


def run_all(arms: dict[str, list[str]], args: argparse.Namespace) -> int:
    """Run the arms and append their results. Return exit code 1 if one of them failed."""
    if not arms:
        print("no arms left to run", file=sys.stderr)
        return 0
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    import torch

    import dnabert_rm.train.trainer  # noqa: F401  # imported before the fork, so that each arm starts at once

    torch.set_num_threads(1)
    waiting = list(arms)
    running: dict[int, str] = {}
    failed = []
    while waiting or running:
        while waiting and len(running) < args.slots:
            name = waiting.pop(0)
            running[_start(arms[name], args.output / name)] = name
            print(f"{time.strftime('%H:%M:%S')} {name}: started", file=sys.stderr)
        process, status = os.wait()
        name = running.pop(process)
        if status:
            failed.append(name)
        else:
            try:
                append_results(args.results, result_rows(name, args.output / name))
            except (OSError, LookupError, TypeError, ValueError) as error:
                # The other arms go on.
                print(f"{name}: no row: {type(error).__name__}: {error}", file=sys.stderr)
                failed.append(name)
        print(f"{time.strftime('%H:%M:%S')} {name}: {'failed' if status else 'finished'}", file=sys.stderr)
    return 1 if failed else 0


def _start(flags: list[str], run: Path) -> int:
    """Fork a process that runs one arm, with its output in `log.txt`. Return the process id."""
    run.mkdir(parents=True, exist_ok=True)
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = os.open(run / "log.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from dnabert_rm.cli.main import main as dnabert_rm

        code = dnabert_rm(["pretrain", *shlex.split(COMMON), *flags, "--output", str(run)])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def result_rows(name: str, run: Path) -> list[dict[str, Any]]:
    """Return an arm's rows: its validations, and what is needed to repeat them."""
    state = json.loads(max((run / "checkpoints").glob("step_*/state.json")).read_text(encoding="utf-8"))
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    origin = {
        "commit": environment["commit"][:10],
        "fingerprint": state["fingerprint"][:12],
        "processor": _processor(),
        "date": time.strftime("%Y-%m-%d"),
    }
    return [{"name": name, **_figures(row), **origin} for row in _rows(run) if row.get("validation")]


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of one validation."""
    from dnabert_rm.train.validation_record import loss_curves, markov_bits, markov_order, model_bits

    values = row["validation"]
    # "span_6", "span_8" …, or "token" if tokens don't overlap.
    curves = sorted(loss_curves(values).items(), key=lambda curve: int("".join(filter(str.isdigit, curve[0])) or 0))
    order = markov_order(values)
    markov = {} if order is None else markov_bits(values)[order]
    return {
        "steps": row["step"] + 1,
        "tokens": row["consumed_tokens"],
        "token_loss": round(curves[0][1]["loss"], 4),
        "widest_loss": round(curves[-1][1]["loss"], 4),
        "base_accuracy": round(curves[0][1]["base_accuracy"], 4),
        **{f"bits_{hidden}": round(bits, 5) for hidden, bits in model_bits(values).items()},
        **{f"markov_{hidden}": round(bits, 5) for hidden, bits in markov.items()},
    }


def append_results(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows, after the header if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def by_arm(rows: list[dict[str, str]]) -> dict[str, dict[str, list[dict[str, str]]]]:
    """Return the validations by arm, then by seed, both in the order of the file."""
    arms: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        arm, _, seed = row["name"].rpartition("/")
        arms.setdefault(arm, {}).setdefault(seed, []).append(row)
    return arms


def table(rows: list[dict[str, str]], against: str | None = None) -> str:
    """Return a Markdown table: one line per arm, with the mean over its seeds ± half the 95 % interval.

    With `against`, the means are of the differences from that arm, seed by seed.
    """
    arms = by_arm(rows)
    if against is not None and against not in arms:
        raise SystemExit(f"--against {against}: no such arm; choose one of {', '.join(arms)}")
    lines = [f"| arm | steps | seeds | left at | {' | '.join(FIGURES)} |", "| --- " * (4 + len(FIGURES)) + "|"]
    for arm, seeds in arms.items():
        last = {seed: found[-1] for seed, found in seeds.items()}
        if against is not None:
            others = {seed: found[-1] for seed, found in arms[against].items() if seed in last}
            last = {seed: last[seed] for seed in others}
            if any(last[seed]["steps"] != other["steps"] for seed, other in others.items()):
                raise SystemExit(f"--against {against}: {arm} has other steps; select arms with --match")
            cells = [
                _mean([_difference(last[seed], other, figure) for seed, other in others.items()], sign="+")
                for figure in FIGURES
            ]
        else:
            cells = [_mean([_number(row, figure) for row in last.values()]) for figure in FIGURES]
        steps = "/".join(dict.fromkeys(row["steps"] for row in last.values()))
        left = ", ".join(str(plateau_step(found) or "never") for found in seeds.values())
        lines.append(f"| {arm} | {steps} | {len(last)} | {left} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(row: dict[str, str], figure: str) -> float | None:
    return float(row[figure]) if row[figure] else None


def _difference(row: dict[str, str], other: dict[str, str], figure: str) -> float | None:
    ours, theirs = _number(row, figure), _number(other, figure)
    return None if ours is None or theirs is None else ours - theirs


def _mean(values: list[float | None], sign: str = "") -> str:
    """Return the mean, ± half the 95 % interval if there are several values."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values) or not numbers:
        return "not measured"
    from dnabert_rm.utils.statistics import mean_and_half_width

    mean, half_width = mean_and_half_width(numbers)
    return f"{mean:{sign}.4f}" + ("" if half_width is None else f" ± {half_width:.4f}")


def draw(rows: list[dict[str, str]], output: Path) -> None:
    """Plot bits per base by step to `output`_curves.png, and those at the end to `output`_end.png."""
    from dnabert_rm.analysis.figures import save_figure

    arms = by_arm(rows)
    for figure, kind in ((curves_figure(arms), "curves"), (end_figure(arms), "end")):
        path = output.with_name(f"{output.name}_{kind}.png")
        save_figure(figure, path)
        print(path)


def curves_figure(arms: dict[str, dict[str, list[dict[str, str]]]]) -> Any:
    """Plot each arm's bits by step: the mean over seeds, and a band from the lowest to the highest seed."""
    from dnabert_rm.analysis.figures import COLOURS, LINES, SMALL, new_figure

    figure = new_figure(11, 3.6)
    for panel, hidden in zip(figure.subplots(1, len(HIDDEN)), HIDDEN, strict=True):
        for number, seeds in enumerate(arms.values()):
            steps = [int(row["steps"]) for row in next(iter(seeds.values()))]
            values = [[float(row[f"bits_{hidden}"]) for row in found] for found in seeds.values()]
            columns = list(zip(*values, strict=True))
            style = {"color": COLOURS[number % len(COLOURS)]}
            panel.plot(steps, list(map(statistics.fmean, columns)), linestyle=LINES[number % len(LINES)], **style)
            panel.fill_between(steps, list(map(min, columns)), list(map(max, columns)), alpha=0.2, linewidth=0, **style)
        for line in {row[f"markov_{hidden}"] for seeds in arms.values() for found in seeds.values() for row in found}:
            if line:
                panel.axhline(float(line), color="#555555", linewidth=0.9, linestyle=(0, (5, 2)))
        _format_panel(panel, hidden, "optimizer steps")
    figure.axes[0].set_ylabel("bits per base, held out", fontsize=SMALL)
    figure.legend(handles=_arm_handles(list(arms)), loc="outside lower center", ncols=6, fontsize=SMALL, frameon=False)
    return figure


def _format_panel(panel: Any, hidden: int, x_label: str) -> None:
    from dnabert_rm.analysis.figures import NORMAL, SMALL
    from dnabert_rm.train.validation_record import bases_text

    panel.set_title(bases_text(hidden), fontsize=NORMAL, loc="left")
    panel.set_xlabel(x_label, fontsize=SMALL)
    panel.tick_params(labelsize=SMALL)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _arm_handles(arms: list[str]) -> list[Any]:
    """Return the entries of the legend: the arms' last names, and the Markov line."""
    from matplotlib.lines import Line2D

    from dnabert_rm.analysis.figures import COLOURS, LINES

    handles = [
        Line2D([], [], color=COLOURS[n % len(COLOURS)], linestyle=LINES[n % len(LINES)], label=arm.rpartition("/")[2])
        for n, arm in enumerate(arms)
    ]
    return [*handles, Line2D([], [], color="#555555", linewidth=0.9, linestyle=(0, (5, 2)), label="Markov line")]


def end_figure(arms: dict[str, dict[str, list[dict[str, str]]]]) -> Any:
    """Plot bits at the end: a point per seed, and a bar for the 95 % interval of the mean."""
    from dnabert_rm.analysis.figures import COLOURS, MARKERS, SMALL, new_figure
    from dnabert_rm.utils.statistics import mean_and_half_width

    figure = new_figure(11, 0.9 + 0.42 * len(arms))
    panels = figure.subplots(1, len(HIDDEN), sharey=True)
    for panel, hidden in zip(panels, HIDDEN, strict=True):
        for number, seeds in enumerate(arms.values()):
            values = [float(found[-1][f"bits_{hidden}"]) for found in seeds.values()]
            style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)]}
            mean, half_width = mean_and_half_width(values)
            if half_width is not None:
                panel.errorbar(mean, number, xerr=half_width, capsize=3, **style)
            panel.plot(values, [number] * len(values), MARKERS[number % len(MARKERS)], markersize=4, alpha=0.7, **style)
        for line in {found[-1][f"markov_{hidden}"] for seeds in arms.values() for found in seeds.values()} - {""}:
            panel.axvline(float(line), color="#555555", linewidth=0.9, linestyle=(0, (5, 2)))
        _format_panel(panel, hidden, "bits per base, held out")
    panels[0].set_yticks(range(len(arms)), [arm.rpartition("/")[2] for arm in arms], fontsize=SMALL)
    panels[0].invert_yaxis()
    return figure


def write_reference(runs: Path, output: Path) -> None:
    """Write a run folder per seed to a new folder, with the configuration and the validations only."""
    for run in sorted(path.parent for path in runs.glob("*/metrics.jsonl")):
        folder = output / f"seed_{run.name}"
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text((run / "config.toml").read_text(encoding="utf-8"), encoding="utf-8")
        rows = [row for row in _rows(run) if row.get("validation")]
        for row in rows:
            row["validation"].pop("validation_seconds", None)
        kept = [{key: row[key] for key in ("step", "consumed_tokens", "loss", "phase", "validation")} for row in rows]
        lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in kept]
        (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{folder}: {len(kept)} validations")


def plateau_step(rows: list[dict[str, str]]) -> int | None:
    """Return the number of steps after which a run first had more than half of the bases right, or None."""
    return next((int(row["steps"]) for row in rows if float(row["base_accuracy"]) > LEFT_AT_ACCURACY), None)


def _processor() -> str:
    """Return the processor's name, because digits depend on its kind."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
