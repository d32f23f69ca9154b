"""`check-run --reference`: a run beside reference runs with several seeds."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
from validated_rows import rows_of, validation, write_run

from dnabert_rm.analysis.run_comparison import compare_run, half_width, read_reference, reference_names
from dnabert_rm.analysis.run_records import read_run
from dnabert_rm.cli.main import main

BITS = (1.90, 1.91, 1.92)


def config(seed: int, lr: float = 1e-3) -> str:
    return f'[optim]\nlr = {lr}\n[train]\nseed = {seed}\nsteps = 1000\noutput = "somewhere {seed}"\n'


def one_run(folder: Path, bits: Sequence[float], seed: int, *, lr: float = 1e-3, every: int = 100, markov=1.93) -> Path:
    rows = rows_of([validation(value, markov=markov, loss=3 + value) for value in bits], every)
    return write_run(folder, rows, config=config(seed, lr))


@pytest.fixture
def references(tmp_path: Path) -> list[Path]:
    """Three runs with 1.90, 1.91 and 1.92 bits per base after 200 steps, 0.1 more after 100."""
    return [one_run(tmp_path / f"r{seed}", [bits + 0.1, bits], seed) for seed, bits in enumerate(BITS, 1)]


def printed(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    assert main(["check-run", *map(str, words)]) == code
    found = capsys.readouterr()
    return found.err if code == 2 else found.out


def test_the_range_holds_another_value_of_the_same_kind() -> None:
    assert half_width([1, 2, 3]) == pytest.approx(4.302653 * 1 * (4 / 3) ** 0.5)
    assert half_width([1.0]) is None
    chance = random.Random(1)
    inside = 0
    for _ in range(4000):
        first, second, third, another = (chance.gauss(5, 2) for _ in range(4))
        half = half_width([first, second, third])
        inside += half is not None and abs(another - statistics.fmean([first, second, third])) <= half
    assert 0.94 < inside / 4000 < 0.96


@pytest.mark.parametrize(
    ("bits", "code", "result"),
    [
        (1.93, 0, "within the range that another seed explains"),
        (1.85, 0, "better than another seed explains"),
        (1.97, 1, "worse than another seed explains"),
    ],
)
def test_result_and_exit_code(tmp_path: Path, references, capsys, bits: float, code: int, result: str) -> None:
    run = one_run(tmp_path / "run", [2.01, bits], 9)
    text = printed(capsys, code, run, "--reference", *references)
    # 4.303 * 0.01 * sqrt(4 / 3) = 0.0497
    last = f"After 200 steps (bits per base at 5 hidden bases): {bits:.4f}, reference 1.9100 ± 0.0497: {result}.\n"
    assert text.endswith(last)
    assert "(seeds 1, 2, 3); settings that differ: none" in text
    assert [line.split()[:2] for line in text.splitlines() if line.endswith("± 0.0497")][:2] == [
        ["100", "2.0100"],
        ["200", f"{bits:.4f}"],
    ]


def test_only_common_validations_and_all_measures_in_json(tmp_path: Path, references, capsys) -> None:
    run = one_run(tmp_path / "run", [2.2, 2.1, 2.05, 1.93], 9, every=50)
    found = json.loads(printed(capsys, 0, run, "--reference", *references, "--json"))["comparison"]
    assert [(one["steps"], one["name"], round(one["value"], 4), round(one["mean"], 4)) for one in found["measures"]][
        -6:
    ] == [
        (200, "token loss, span 6", 4.93, 4.91),
        (200, "base accuracy, span 6", 0.7, 0.7),
        (200, "bits per base at 1 hidden base", 1.73, 1.71),
        (200, "bits per base at 3 hidden bases", 1.83, 1.81),
        (200, "bits per base at 5 hidden bases", 1.93, 1.91),
        (200, "bits per base at 9 hidden bases", 1.98, 1.96),
    ]
    assert {one["steps"] for one in found["measures"]} == {100, 200}
    assert found["is_worse"] is False and found["same_seed_difference"] is None


def test_settings_that_differ_are_named(tmp_path: Path, references, capsys) -> None:
    text = printed(capsys, 0, one_run(tmp_path / "run", [2.0, 1.9], 2, lr=5e-4), "--reference", *references)
    assert "settings that differ: optim.lr is 0.0005, reference 0.001\n" in text
    assert "same seed" not in text, "another learning rate explains a difference"


def test_a_setting_newer_than_a_run_has_its_default_there(tmp_path: Path, references, capsys) -> None:
    new = one_run(tmp_path / "run", [2.0, 1.9], 2)
    with open(new / "config.toml", "a") as stream:
        stream.write('[model]\nrope_period = 3.0\narchitecture = "bert"\n[masking]\nphase_spans = []\n')
    text = printed(capsys, 0, new, "--reference", *references)
    assert "settings that differ: model.rope_period is 3.0, reference 0.0\n" in text


def test_bits_that_are_no_number_are_worse(tmp_path: Path, references, capsys) -> None:
    text = printed(capsys, 1, one_run(tmp_path / "run", [2.0, float("nan")], 5), "--reference", *references)
    assert "nan, reference 1.9100" in text and "worse than another seed explains" in text


def test_the_run_with_the_same_seed_is_held_against_its_twin(tmp_path: Path, references) -> None:
    name, found = read_reference(list(map(str, references)))
    twin = compare_run(read_run(one_run(tmp_path / "twin", [2.01, 1.91], 2)), name, found)
    assert twin.same_seed_difference == 0 and twin.text.endswith("with the same seed: 0.")
    other = compare_run(read_run(one_run(tmp_path / "other", [2.01, 1.9101], 2)), name, found)
    assert other.same_seed_difference == pytest.approx(1e-4)


def test_one_reference_run_has_no_range(tmp_path: Path, references, capsys) -> None:
    text = printed(capsys, 0, one_run(tmp_path / "run", [2.5, 2.4], 9), "--reference", references[0])
    assert "2.4000, reference 1.9000: one reference run has no range; pass runs with several seeds." in text


def test_runs_that_can_not_be_compared_are_one_line(tmp_path: Path, references, capsys) -> None:
    cases = {
        "has other training or held-out data than": one_run(tmp_path / "data", [2.0, 1.9], 9, markov=1.94),
        "no validation at a step at which the reference has one (100, 200)": one_run(
            tmp_path / "x", [1.9], 9, every=70
        ),
    }
    for reason, run in cases.items():
        text = printed(capsys, 2, run, "--reference", *references)
        assert reason in text and len(text.splitlines()) == 1
    rows = rows_of([{"token": {"loss": 7.2, "masked_accuracy": 0.1, "base_accuracy": 0.4}}])
    bpe = write_run(tmp_path / "bpe", rows, config=config(9))
    text = printed(capsys, 2, bpe, "--reference", *references)
    assert "bpe: the reference has no token loss, single tokens; pass another --reference" in text
    run = one_run(tmp_path / "run", [2.0, 1.9], 9)
    other = one_run(tmp_path / "r4", [2.0, 1.9], 4, lr=1)
    text = printed(capsys, 2, run, "--reference", *references, other)
    assert "r4: optim.lr is 1, reference 0.001; pass reference runs that differ only in their seeds" in text
    text = printed(capsys, 2, run, "--reference", "tiny_wheat")
    assert "--reference tiny_wheat: neither a run folder nor a shipped reference; choose tiny_yeast" in text


@pytest.mark.parametrize("name", reference_names())
def test_the_shipped_references_agree_with_themselves(name: str) -> None:
    runs = read_reference([name])[1]
    assert len({run.setting("train", "seed") for run in runs}) == len(runs) >= 3
    for run in runs:
        comparison = compare_run(run, name, runs)
        assert comparison.same_seed_difference == 0 and not comparison.changed and not comparison.is_worse
        assert len(comparison.curve) >= 8 and comparison.compared == "bits per base at 5 hidden bases"
