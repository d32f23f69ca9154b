"""The report and a run's TensorBoard in a real headless browser: images are loaded and curves are drawn."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from analysis_runs import make_runs
from browser import browse, needs_browser
from support import free_port, read_metrics

from dnabert_rm.cli.main import main

Image = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib: dnabert_rm[plots]")
pytestmark = needs_browser
BLUE, ORANGE, PLAYGROUND = (0, 0x72, 0xB2), (0xD5, 0x5E, 0), (255, 112, 67)
"""Colours of the first and the second run of our curves, and of TensorBoard's first run."""
MEASURE = """<script>addEventListener("load", () => {
  const facts = [...document.images].map(
      i => [i.alt, i.naturalWidth, i.naturalHeight, i.getBoundingClientRect().right]);
  const wide = document.documentElement.scrollWidth - innerWidth;
  document.body.setAttribute("data-facts", encodeURIComponent(JSON.stringify({images: facts, wide: wide})));
})</script>"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"))


def num_pixels(path: Path, colour: tuple[int, int, int]) -> int:
    shown = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(shown - colour).max(axis=-1) < 12).sum())


@pytest.mark.parametrize("width", [1300, 500])
def test_the_report_shows_its_figures_and_fits_the_window(runs: Path, tmp_path: Path, width: int) -> None:
    page = tmp_path / "report.html"
    words = [runs / "randommask", runs / "fixed", "--names", "a_run_with_a_long_name,another_one_with_a_long_name"]
    assert main(["analyze", "report", *map(str, words), "--output", str(page)]) == 0
    if width > 1000:  # in a narrow window the lines are too thin to keep their colour
        browse(tmp_path, f"--screenshot={tmp_path / 'page.png'}", page.as_uri(), width=width, height=8000)
        assert min(num_pixels(tmp_path / "page.png", colour) for colour in (BLUE, ORANGE)) > 50
    # The page runs no script. A copy may, so that the browser can report what it shows.
    copy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    (tmp_path / "copy.html").write_text(copy.replace("</body>", MEASURE + "</body>"))
    dom = browse(tmp_path, "--dump-dom", (tmp_path / "copy.html").as_uri(), width=width)
    facts = json.loads(urllib.request.unquote(re.search(r'data-facts="([^"]+)"', dom)[1]))
    assert facts["images"] and facts["wide"] <= 0
    for described, picture_width, picture_height, right in facts["images"]:
        assert described and picture_width > 500 and picture_height > 300 and right <= width
    headings = re.findall(r"<h2>([^<]+)</h2>", dom)
    assert headings == ["Verdict", "Summary", "Curves", "Speed", "Checkpoints", "Configuration", "Environment"]


@contextlib.contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Run a TensorBoard server and yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
    command += ["--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def get_json(address: str, seconds: float = 90) -> dict:
    """Return JSON from the server, retrying until it is not empty."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=20) as reply:
            if content := json.load(reply):
                return content
        time.sleep(0.5)
    raise AssertionError(f"no reply from {address}")


def test_tensorboard_draws_the_runs_curves(runs: Path, tmp_path: Path) -> None:
    with tensorboard(runs / "randommask") as address:
        tags = get_json(f"{address}/data/plugin/scalars/tags")
        steps = set(tags["tensorboard"])
        assert {"train/loss", "train/masked_accuracy", "train/learning_rate", "validation_loss/span_7"} <= steps
        assert "x_tokens/train/loss" in tags["tensorboard/by_tokens"]
        points = get_json(f"{address}/data/plugin/scalars/scalars?run=tensorboard&tag=train%2Floss")
        rows = read_metrics(runs / "randommask")
        assert [[step, value] for _, step, value in points] == [
            [row["step"], pytest.approx(row["loss"], rel=1e-6)] for row in rows
        ]
        time_budget = "--virtual-time-budget=30000"
        dom = browse(tmp_path, time_budget, "--dump-dom", f"{address}/#timeseries")
        # The page opens the first groups of tags, and bits per base come first.
        assert "bits_per_base/hidden_5" in dom and "train/learning_rate" in dom and dom.count("<canvas") > 4
        assert "validation_lines" in dom and "validation_lines/markov_hidden_5" not in dom
        browse(tmp_path, time_budget, f"--screenshot={tmp_path / 'first.png'}", f"{address}/#custom_scalars")
    drawn = num_pixels(tmp_path / "first.png", PLAYGROUND)
    assert drawn > 1000, drawn  # without charts there are 300, from the list of runs


def test_the_hyperparameters_page_begins_with_what_differs(runs: Path) -> None:
    with tensorboard(runs) as address:
        get_json(f"{address}/data/plugin/scalars/tags")
        found = get_json(f"{address}/data/plugin/hparams/experiment?request=%7B%22includeMetrics%22%3Atrue%7D")
    configs = [tomllib.loads((runs / name / "config.toml").read_text()) for name in ("randommask", "fixed")]
    flat = [{f"{part}.{key}": value for part, keys in one.items() for key, value in keys.items()} for one in configs]
    different = sorted(name for name in flat[0] if flat[0][name] != flat[1][name] and name != "train.output")
    names = [setting["name"] for setting in found["hparamInfos"]]
    assert different and names[: len(different)] == different and len(names) == len(flat[0]) - 1
    metrics = [metric["name"]["tag"] for metric in found["metricInfos"]]
    assert metrics[:4] == [f"bits_per_base/hidden_{hidden}" for hidden in (1, 3, 5, 9)]
