"""Reading the validation results of a metrics row: losses, bits per base, and the lines to compare them with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from validated_rows import rows_of, validation

from dnabert_rm.train.validation_record import (
    bits_lines,
    bits_table,
    loss_curves,
    markov_order,
    model_bits,
    narrowest_curve,
    read_validations,
    validation_line,
)


def test_only_results_with_a_loss_are_loss_curves() -> None:
    assert list(loss_curves(validation())) == list(loss_curves(validation(None))) == ["span_6", "span_8", "span_10"]


def test_the_markov_line_is_the_order_with_the_fewest_bits_at_5_hidden_bases() -> None:
    found = validation(markov=1.93)
    assert markov_order(found) == 8
    assert bits_lines(found, 5) == {"guessing": 2, "composition": 1.987, "Markov order 8": 1.93}
    # At 9 hidden bases order 5 has fewer bits.
    assert bits_lines(found, 9)["Markov order 5"] == pytest.approx(1.94)


def test_without_5_hidden_bases_the_largest_number_is_compared() -> None:
    found = validation() | {"bits_per_base": {"1": 1.7, "3": 1.8}, "markov": {"2": {"3": 1.9}}}
    assert validation_line(10, found) == (
        "step 10: 1.800 bits per base at 3 hidden bases; Markov order 2: 1.900; guessing: 2"
    )


def test_a_line_for_the_screen() -> None:
    assert validation_line(1000, validation(1.842, markov=1.931)) == (
        "step 1000: 1.842 bits per base at 5 hidden bases; Markov order 8: 1.931; guessing: 2"
    )
    with_interval = validation(1.842, markov=1.931, half_width=0.004)
    assert validation_line(1000, with_interval) == (
        "step 1000: 1.842 bits per base at 5 hidden bases; Markov order 8: 1.931 (difference -0.089 ± 0.004); "
        "guessing: 2"
    )
    # With few training data the frequencies of single bases can be better than every Markov chain.
    assert validation_line(1000, validation(1.99, markov=1.988)) == (
        "step 1000: 1.990 bits per base at 5 hidden bases; composition: 1.987; Markov order 8: 1.988; guessing: 2"
    )
    alone = {"bits_per_base": {"1": 1.9}}
    assert validation_line(1, alone) == "step 1: 1.900 bits per base at 1 hidden base; guessing: 2"
    old = validation(None, loss=7.3)
    assert validation_line(7, old) == "step 7: held-out loss 7.300 nats per masked token (span 6)"
    assert validation_line(7, old | {"kmer_frequencies": 7.353}).endswith("; k-mer frequencies: 7.353")
    bpe = {"token": {"loss": 5.0, "masked_accuracy": 0.1, "base_accuracy": None}}
    assert validation_line(7, bpe) == "step 7: held-out loss 5.000 nats per masked token (single tokens)"
    assert validation_line(7, {}) == "step 7: no held-out loss"


def test_spans_are_compared_as_numbers() -> None:
    curves = {f"span_{span}": {"loss": 1.0} for span in (10, 12, 8)}
    assert (narrowest_curve(curves) or ("",))[0] == "span_8"


def test_the_table_has_a_row_per_number_of_hidden_bases() -> None:
    titles, rows = bits_table(validation(1.84, markov=1.93))
    markov = ["Markov order 2", "Markov order 5", "Markov order 8"]
    assert titles == ["hidden bases", "model", "composition", *markov, "guessing"]
    assert [row[0] for row in rows] == ["1", "3", "5", "9"]
    assert rows[2] == ["5", "1.840", "1.987", "1.980", "1.940", "1.930", "2.000"]
    assert bits_table(validation(None)) == bits_table({}) == ([], [])
    assert bits_table({"bits_per_base": {"1": 1.9, "5": None}}) == (
        ["hidden bases", "model", "guessing"],
        [["1", "1.900", "2.000"]],
    )


def test_keys_may_be_numbers_before_they_are_written_as_json() -> None:
    assert model_bits({"bits_per_base": {10: 1.9, 9: 1.8}}) == model_bits({"bits_per_base": {"9": 1.8, "10": 1.9}})


def test_validated_rows_of_a_file(tmp_path: Path) -> None:
    rows = rows_of([None, validation(1.9), None, validation(1.8)])
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 500, "validation": {"spa')
    assert read_validations(path) == [rows[1], rows[3]]
    assert read_validations(path, 399) == [rows[1]] and read_validations(path, 400) == [rows[1], rows[3]]
    assert read_validations(tmp_path / "missing.jsonl") == []
