"""Cost of data in many pieces: `build`, `verify` and the start of a run on contigs that are each one short segment.

    python benchmarks/data_scale.py [--contigs 100000 1000000] [--bases 1000] [--folder DIR]

Every row is a process of its own, started once per number of contigs, in wall and processor time without the start of
the interpreter. The start of a run reads the manifest, orders the windows, and reads the first 256 of them; its memory
is that of the process before a DataLoader's workers are forked from it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

_MEASURE = """
import json, re, sys, time
def peak_kilobytes():
    # Not ru_maxrss, which begins with the size of the process that started this one.
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
{imports}
before, start, cpu = peak_kilobytes(), time.perf_counter(), time.process_time()
{work}
print(json.dumps({{
    "wall": time.perf_counter() - start, "processor": time.process_time() - cpu,
    "before": before / 1024, "peak": peak_kilobytes() / 1024,
}}))
"""
_COMMAND = ("from data_prep.cli import main", "assert main(sys.argv[1:]) == 0")
_START = (
    "import numpy as np\nfrom dnabert_rm.data.dataset import WindowDataset, WindowSettings",
    "data = WindowDataset([sys.argv[1]], [], WindowSettings(window=int(sys.argv[2])), 0)\n"
    "data.windows(np.arange(256), 0)",
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contigs", type=int, nargs="+", default=[100_000, 1_000_000], help="(100000 1000000)")
    parser.add_argument("--bases", type=int, default=1000, help="bases of a contig (1000)")
    parser.add_argument("--folder", help="folder to write to (default: a temporary one)")
    args = parser.parse_args()
    print(f"contigs of {args.bases:,} bases    wall s  processor s    Mbase/s   peak MiB")
    for contigs in args.contigs:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            measure_size(Path(folder), contigs, args.bases)


def measure_size(folder: Path, contigs: int, bases: int) -> None:
    """Print the rows of one number of contigs."""
    fasta, out = folder / "contigs.fa", folder / "out"
    write_fasta(fasta, contigs, bases)
    rows = {
        "build": (_COMMAND, ["build", fasta, "--out", out, "--workers", "1"]),
        "verify": (_COMMAND, ["verify", out, "--workers", "1"]),
        "start of a run": (_START, [out, min(512, bases - 6)]),
    }
    for what, ((imports, work), words) in rows.items():
        code = _MEASURE.format(imports=imports, work=work)
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)], check=True, capture_output=True, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        rate = contigs * bases / found["processor"] / 1e6
        print(
            f"{contigs:>10,} {what:16}{found['wall']:9.2f}{found['processor']:13.2f}{rate:11.1f}{found['peak']:11.0f}"
        )
    ids = 2 * contigs * (bases - 5)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{contigs:>10,} bytes beside the ids: {size / ids - 1:.1%} ({size / 1e6:,.0f} MB)", flush=True)


def write_fasta(path: Path, contigs: int, bases: int) -> None:
    """Write random contigs, each on one line."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as out:
        for first in range(0, contigs, 10_000):
            names = [f">contig_{number:08d}\n" for number in range(first, min(first + 10_000, contigs))]
            lines = np.full((len(names), len(names[0]) + bases + 1), ord("\n"), dtype=np.uint8)
            lines[:, : len(names[0])] = np.frombuffer("".join(names).encode(), np.uint8).reshape(len(names), -1)
            letters = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, (len(names), bases), dtype=np.uint8)]
            lines[:, len(names[0]) : -1] = letters
            out.write(lines.tobytes())


if __name__ == "__main__":
    main()
