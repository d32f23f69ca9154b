"""Position in the input and the work of overlapping tiles, as progress shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnabert_rm.inference.inference_settings import PredictSettings
from dnabert_rm.inference.sequence_input import Tokenization, cut_windows, regions
from dnabert_rm.inference.window_stream import InputPosition, describe_tiles


@pytest.mark.parametrize(("tile", "step"), [(None, None), (30, None), (30, 7), (12, 40)])
@pytest.mark.parametrize("long", ["window", "middle"])
@pytest.mark.parametrize("stride", [1, 3])
def test_every_base_of_the_input_is_passed_once(tile: int | None, step: int | None, long: str, stride: int) -> None:
    lengths = [100, 100, 2, 31, 250, 7]
    records = ((str(length), iter([b"A" * length])) for length in lengths)
    position = InputPosition()
    passed = 0
    for region, blocks in regions(records, tile, step):
        for window in cut_windows(region, blocks, Tokenization(3, stride, 10), long):
            passed += position.advance(window)
            assert passed <= sum(lengths)
    gap = max(0, (step or 0) - (tile or 0))  # bases after a record's last tile
    assert sum(lengths) - gap * len(lengths) <= passed <= sum(lengths)
    assert gap or passed == sum(lengths)


@pytest.mark.parametrize(
    ("tile", "step", "expected"),
    [
        (1000, 10, "tiles of 1,000 bases every 10: each base goes through the model 100 times"),
        (512, 200, "tiles of 512 bases every 200: each base goes through the model 2.56 times"),
        (20000, 3, "tiles of 20,000 bases every 3: each base goes through the model 6,667 times"),
        (512, 4096, "tiles of 512 bases every 4,096: 12.5% of the bases go through the model"),
        (512, 512, ""),
        (512, None, ""),
        (None, None, ""),
    ],
)
def test_the_work_of_a_step(tile: int | None, step: int | None, expected: str) -> None:
    settings = PredictSettings(model=Path("m"), input="i", output=Path("o"), tile=tile, step=step)
    assert describe_tiles(settings) == expected
