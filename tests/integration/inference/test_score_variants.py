"""`score-variants` compared with hand-computed scores and with a slow version that sums over every k-mer."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from support import random_bases
from tiny_models import POSITIONS, save_bert, write_fasta
from transformers import AutoModelForMaskedLM, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM
from variant_runs import COMPLEMENT, IDS, K, reverse_complement, score, slow_log_p, write_vcf

from dnabert_rm.finetune.pretrained_encoder import suppress_transformers_output
from dnabert_rm.genome import kmer
from dnabert_rm.tokenizer import KmerTokenizer

MAX_KMERS = POSITIONS - 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "mlm", BertForMaskedLM)


@pytest.fixture(scope="module")
def genome() -> dict[str, str]:
    rng = np.random.default_rng(2)
    gap = random_bases(rng, 31) + "NN" + random_bases(rng, 20)
    return {"chr1": random_bases(rng, 90), "chr2": gap, "tiny": "AC", "short": random_bases(rng, 11)}


def scores(*given: object) -> list[float]:
    return [float(row["score"]) for row in score(*given)]  # type: ignore[arg-type]


def snvs(genome: dict[str, str]) -> list[tuple[str, int, str, str]]:
    """Return a variant to the next letter for every base of the longer contigs."""
    following = dict(zip("ACGT", "CGTA", strict=True))
    return [
        (name, position, base, following[base])
        for name, sequence in genome.items()
        if len(sequence) >= K
        for position, base in enumerate(sequence)
        if base != "N"
    ]


def slow_score(
    model: torch.nn.Module, sequence: str, position: int, ref: str, alt: str, span: int, strand: str
) -> float:
    radius = (MAX_KMERS + K - 2) // 2
    start = max(0, position - radius)
    window = sequence[start : position + radius + 1]
    target = position - start
    forward = slow_log_p(model, window, target, span)
    reverse = slow_log_p(model, reverse_complement(window), len(window) - 1 - target, span)
    found = {"+": forward[alt] - forward[ref], "-": reverse[COMPLEMENT[alt]] - reverse[COMPLEMENT[ref]]}
    return found[strand] if strand in found else sum(found.values()) / 2


@pytest.mark.parametrize(("span", "strand"), [(None, "both"), (None, "+"), (None, "-"), (6, "both")])
def test_scores_match_the_slow_version(
    model: Path, genome: dict[str, str], tmp_path: Path, span: int | None, strand: str
) -> None:
    """Includes contig ends, bases beside Ns and a contig shorter than a window."""
    rows = snvs(genome)
    if strand != "both":
        rows = rows[::7]
    words = ["--strand", strand, "--batch-size", 5, *([] if span is None else ["--span", span])]
    found = scores(
        model, write_vcf(tmp_path / "v.vcf", rows), write_fasta(tmp_path / "g.fa", genome), tmp_path / "s.csv", *words
    )
    with suppress_transformers_output():
        slow = AutoModelForMaskedLM.from_pretrained(model).eval()
    expected = [slow_score(slow, genome[row[0]], *row[1:], span or K, strand) for row in rows]
    assert found == pytest.approx(expected, abs=2e-5)
    assert np.std(expected) > 0.1, "the model should distinguish the bases"


def test_modernbert_scores(genome: dict[str, str], tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "initializer_range": 0.4,
    }
    config = ModernBertConfig(
        vocab_size=5 + 4**K,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
        **sizes,
    )
    folder, rows = tmp_path / "modernbert", snvs(genome)[::9]
    with suppress_transformers_output():
        ModernBertForMaskedLM(config).save_pretrained(folder)
        KmerTokenizer(K).save_pretrained(folder)
        slow = AutoModelForMaskedLM.from_pretrained(folder).eval()
    fasta, vcf = write_fasta(tmp_path / "g.fa", genome), write_vcf(tmp_path / "v.vcf", rows)
    expected = [slow_score(slow, genome[row[0]], *row[1:], K, "both") for row in rows]
    assert scores(folder, vcf, fasta, tmp_path / "s.csv") == pytest.approx(expected, abs=2e-5)
    rough = scores(folder, vcf, fasta, tmp_path / "b.csv", "--precision", "bf16")
    assert rough == pytest.approx(expected, abs=0.3) and rough != pytest.approx(expected, abs=2e-5)


def test_a_model_with_known_probabilities(genome: dict[str, str], tmp_path: Path) -> None:
    """With all weights 0 except the decoder's bias, k-mer w has a probability proportional to e^bias(w) everywhere."""
    folder = save_bert(tmp_path / "by_hand", BertForMaskedLM)
    with suppress_transformers_output():
        model = AutoModelForMaskedLM.from_pretrained(folder)
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
            for word, number in IDS.items():
                model.cls.predictions.bias[number] = {"A": 0.0, "C": 1.0, "G": 3.0, "T": 7.0}[word[0]] + word.count(
                    "G"
                ) / 8
        model.save_pretrained(folder)
    # At G in ...AAGAA... the three k-mers are AAG, AGA, GAA. T instead of G changes the first letter only of the last,
    # and each loses a G: ((0 - 0) + (0 - 0) + (7 - 3)) / 3 - 1 / 8.
    sequence = "A" * 20 + "AAGAA" + "A" * 20
    fasta, vcf = write_fasta(tmp_path / "g.fa", {"c": sequence}), write_vcf(tmp_path / "v.vcf", [("c", 22, "G", "T,C")])
    assert scores(folder, vcf, fasta, tmp_path / "s.csv", "--strand", "+") == pytest.approx(
        [4 / 3 - 1 / 8, -2 / 3 - 1 / 8]
    )


def test_swapped_alleles_change_the_sign_and_swapped_strands_change_nothing(
    model: Path, genome: dict[str, str], tmp_path: Path
) -> None:
    rows = snvs({"chr1": genome["chr1"]})
    vcf, fasta = write_vcf(tmp_path / "v.vcf", rows), write_fasta(tmp_path / "g.fa", genome)
    forward = scores(model, vcf, fasta, tmp_path / "1.csv", "--span", 4)
    for number, (contig, position, ref, alt) in enumerate(rows[::9]):
        mutated = genome["chr1"][:position] + alt + genome["chr1"][position + 1 :]
        changed, back = write_fasta(tmp_path / "m.fa", {"chr1": mutated}), [(contig, position, alt, ref)]
        (found,) = scores(model, write_vcf(tmp_path / "m.vcf", back), changed, tmp_path / f"m{number}.csv", "--span", 4)
        assert found == pytest.approx(-forward[9 * number], abs=1e-5)
    reversed_genome = {name: reverse_complement(sequence) for name, sequence in genome.items()}
    rows = [
        (name, len(genome[name]) - 1 - position, COMPLEMENT[ref], COMPLEMENT[alt]) for name, position, ref, alt in rows
    ]
    vcf, fasta = write_vcf(tmp_path / "r.vcf", rows), write_fasta(tmp_path / "r.fa", reversed_genome)
    assert scores(model, vcf, fasta, tmp_path / "2.csv", "--span", 4) == pytest.approx(forward, abs=2e-6)


def test_every_allele_has_a_row_with_a_score_or_a_reason(
    model: Path, genome: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = genome["chr1"]
    ref, other = one[40], COMPLEMENT[one[40]]
    rows = [
        ("chr1", 40, ref.lower(), f"{other},{ref}T,<DEL>,*"),
        ("chr1", 40, ref, other),
        ("chr1", 4, one[4:7], one[4]),
        ("chr1", 4, one[4:6], "GG"),
        ("chr2", 31, "N", "A"),
        ("chr1", 8, one[8], "."),
        ("chr1", 8, one[8], one[8]),
        ("tiny", 1, "C", "G"),
        ("chr1", 8, one[8], "N"),
        ("chr1", 8, one[8], "]chr2:4]A"),
    ]
    fasta, vcf = tmp_path / "g.fa.gz", tmp_path / "v.vcf.gz"
    fasta.write_bytes(gzip.compress(write_fasta(tmp_path / "g.fa", genome).read_bytes()))
    vcf.write_bytes(gzip.compress(write_vcf(tmp_path / "v.vcf", rows).read_bytes()))
    found = score(model, vcf, fasta, tmp_path / "s.csv")
    assert list(found[0]) == ["chrom", "pos", "id", "ref", "alt", "score", "reason"]
    assert [(row["pos"], row["id"], row["alt"]) for row in found[:4]] == [
        ("41", "rs0", alt) for alt in (other, f"{ref}T", "<DEL>", "*")
    ]
    assert [row["reason"] for row in found] == [
        "",
        "indel",
        "symbolic allele",
        "overlapping deletion",
        "",
        "indel",
        "several bases",
        "REF is N",
        "no alternative allele",
        "ALT is REF",
        "contig shorter than a k-mer",
        "not A, C, G, T",
        "breakend",
    ]
    assert [bool(row["score"]) for row in found] == [not row["reason"] for row in found]
    assert found[0]["score"] == found[4]["score"]
    message = capsys.readouterr().err
    assert "2 alleles scored; 11 without a score (2 indel, 1 symbolic allele, 1 overlapping deletion, " in message


def test_rows_that_contradict_the_genome(
    model: Path, genome: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, fasta = genome["chr1"][40], write_fasta(tmp_path / "g.fa", genome)
    bad = [
        (
            ("chr1", 40, COMPLEMENT[good], good),
            f"REF is {COMPLEMENT[good]}, but {fasta} has {good} there (another assembly?); fix the row",
        ),
        (("1", 40, good, COMPLEMENT[good]), f"contig '1' is not in {fasta} (the file has chr1, chr2, tiny, short"),
        (("chr1", 91, "A", "C"), "position 92: REF is not inside contig chr1, which has 90 bases"),
        (("chr1", 89, "AT", "C"), "position 90: REF is not inside contig chr1, which has 90 bases"),
    ]
    for row, message in bad:
        vcf = write_vcf(tmp_path / "v.vcf", [("chr1", 40, good, COMPLEMENT[good]), row])
        score(model, vcf, fasta, tmp_path / "s.csv", code=2)
        assert f"{vcf}, line 4: {message}" in capsys.readouterr().err
    vcf = write_vcf(tmp_path / "v.vcf", [row for row, _ in bad] + [("chr1", 40, good, COMPLEMENT[good])])
    assert [row["id"] for row in score(model, vcf, fasta, tmp_path / "s.csv", "--bad-rows", "drop")] == ["rs4"]
    assert "4 left out (2 position outside, 1 REF disagrees, 1 contig not in the FASTA)" in capsys.readouterr().err
    vcf.write_text("chr1 41 . A C\n")
    score(model, vcf, fasta, tmp_path / "t.csv", code=2)
    assert "line 1: expected CHROM, POS, ID, REF and ALT, separated by tabs" in capsys.readouterr().err
    score(model, vcf, fasta, tmp_path / "t.csv", "--span", 2, code=2)
    assert "--span 2: 3 tokens cover a base, and the model takes 22; pass 3 … 22" in capsys.readouterr().err


def test_reverse_complement_of_any_letters() -> None:
    assert kmer.reverse_complement(b"ACGTnRacgtMB-") == b"-VKacgtYnACGT"
