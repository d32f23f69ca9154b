"""VCF output and labels of `score-variants`, compared with its table, with pysam and with scikit-learn."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pysam
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from support import random_bases
from tiny_models import save_bert, write_fasta
from transformers import BertForMaskedLM
from variant_runs import score

import dnabert_rm.inference.variant_scores as variant_scores
from dnabert_rm.genome.vcf import Site
from dnabert_rm.inference.variant_labels import label_metrics

HEADER = """##fileformat=VCFv4.3
##contig=<ID=chr1,length=120>
##INFO=<ID=CLNSIG,Number=.,Type=String,Description="a, class, see dbSNP,ID=rs1">
##INFO=<ID=RARE,Number=0,Type=Flag,Description="flag">
##INFO=<ID=SIDE,Number=A,Type=String,Description="one per ALT">
##FORMAT=<ID=GT,Number=1,Type=String,Description="genotype">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\ts2
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / 'my "mlm"', BertForMaskedLM)


@pytest.fixture(scope="module")
def sequence() -> str:
    return random_bases(np.random.default_rng(7), 120)


@pytest.fixture
def fasta(sequence: str, tmp_path: Path) -> Path:
    return write_fasta(tmp_path / "g.fa", {"chr1": sequence})


def rows(sequence: str) -> str:
    """Return 60 rows with one or two substitutions, an indel or no ALT, and different INFO columns."""
    lines = []
    for i in range(60):
        ref = sequence[2 * i]
        others = [base for base in "ACGT" if base != ref]
        alt = {7: ref + "A", 8: ".", 9: f"{others[0]},<DEL>,{others[1]}"}.get(i, ",".join(others[: 1 + i % 2]))
        values = ["Pathogenic", "Benign|drug_response", "Uncertain,other", "Likely_pathogenic"]
        info = [f"CLNSIG={values[i % 4]}"] * (i % 5 != 0) + ["RARE"] * (i % 3 == 0)
        info += ["SIDE=" + ",".join("LR"[(i + j) % 2] + "|x" * (i % 4 == 2) for j in range(alt.count(",") + 1))] * (
            i % 6 != 1
        )
        lines.append(f"chr1\t{2 * i + 1}\trs{i}\t{ref}\t{alt}\t{i}.50\tPASS\t{';'.join(info) or '.'}\tGT\t0|1\t./.\n")
    return "".join(lines)


def read_bytes(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(("given", "written"), [("v.vcf", "s.vcf.gz"), ("v.vcf.gz", "s.vcf")])
def test_the_vcf_has_the_scores_of_the_table_and_is_otherwise_unchanged(
    model: Path, sequence: str, fasta: Path, tmp_path: Path, given: str, written: str, newline: str
) -> None:
    content = (HEADER + rows(sequence)).replace("\n", newline).encode()
    vcf, output = tmp_path / given, tmp_path / written
    vcf.write_bytes(gzip.compress(content) if vcf.suffix == ".gz" else content)
    table = score(model, vcf, fasta, tmp_path / "s.csv", "--batch-size", 1)
    score(model, vcf, fasta, output, "--batch-size", 1, read=False)
    # Without the new lines and fields, the input's bytes remain.
    added = read_bytes(output)
    restored = re.sub(rb"##INFO=<ID=DNABERT_RM[^\n]*\n", b"", added)
    restored = re.sub(rb"\tDNABERT_RM=[^\t\r\n]*", b"\t.", restored)
    assert re.sub(rb";DNABERT_RM=[^\t\r\n]*", b"", restored) == content
    lines = added.decode().splitlines()
    header = HEADER.splitlines()
    assert lines[:6] == header[:6] and lines[8] == header[6]
    if newline == "\r\n":
        return  # htslib takes the carriage return for part of the last column
    with pysam.VariantFile(str(output)) as records:
        declared = records.header.info["DNABERT_RM"]
        assert (declared.number, declared.type) == ("A", "Float")
        assert "rule log-ratio" in declared.description and 'my \\"mlm\\"' in lines[6]
        found = [
            (record.pos, alt, value, reason)
            for record in records
            for alt, value, reason in zip(
                record.alts or ["."],
                record.info["DNABERT_RM"],
                record.info.get("DNABERT_RM_REASON", [None] * 9),
                strict=False,
            )
        ]
    assert [(pos, alt) for pos, alt, *_ in found] == [(int(row["pos"]), row["alt"]) for row in table]
    for (*_, value, reason), row in zip(found, table, strict=True):
        assert value == (pytest.approx(float(row["score"]), rel=1e-6) if row["score"] else None)
        assert reason in (row["reason"].replace(" ", "_"), None if row["score"] else 0, "." if row["score"] else 0)


def test_comments_between_rows_long_rows_and_dropped_rows(
    model: Path, sequence: str, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are longer than a block, groups end by their bytes, and comments after a row stay where they are."""
    monkeypatch.setattr(variant_scores, "GROUP_BYTES", 1 << 20)
    body = rows(sequence).splitlines(keepends=True)[:6]
    body[2] = body[2].rstrip() + "\t0|1" * 300_000 + "\n"
    bad = "chrX\t1\t.\tA\tC\t.\t.\t.\n"
    text = HEADER + body[0] + "#" + "x" * 600_000 + "\n" + bad + "".join(body[1:]) + "##end"
    vcf = tmp_path / "v.vcf"
    vcf.write_text(text)
    score(model, vcf, fasta, tmp_path / "s.vcf", "--bad-rows", "drop", "--info-name", "X", read=False)
    found = (tmp_path / "s.vcf").read_text()
    assert re.sub(r";X=[^\t;]*|##INFO=<ID=X[^\n]*\n", "", found) == text.replace(bad, "")
    assert found.count(";X=") == 6
    vcf.write_text(HEADER)
    score(model, vcf, fasta, tmp_path / "h.vcf", read=False)
    assert re.sub(r"##INFO=<ID=DNABERT_RM[^\n]*\n", "", (tmp_path / "h.vcf").read_text()) == HEADER


@pytest.mark.parametrize("info", [". ", " ", "DP=1 "])
def test_blanks_at_the_end_of_a_line_are_left_out(
    model: Path, sequence: str, fasta: Path, tmp_path: Path, info: str
) -> None:
    alt = "A" if sequence[49] != "A" else "C"
    vcf = tmp_path / "v.vcf"
    vcf.write_text(
        f"##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nchr1\t50\t.\t{sequence[49]}\t{alt}\t.\t.\t{info}\r\n"
    )
    score(model, vcf, fasta, tmp_path / "s.vcf", read=False)
    with open(tmp_path / "s.vcf", newline="") as stream:
        row = stream.read().splitlines(keepends=True)[-1]
    kept = "DP=1;" if "DP" in info else ""
    assert re.fullmatch(rf"chr1\t50\t\.\t.\t.\t\.\t\.\t{kept}DNABERT_RM=[-.0-9e]+\r\n", row), row


def test_groups_of_rows_end_by_number_or_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variant_scores, "GROUP_BYTES", 1000)
    sites = [Site([], line=b"x" * length) for length in (1, 1, 1, 600, 600, 1000, 5)]
    assert [len(group) for group in variant_scores._groups(sites, 3)] == [3, 2, 1, 1]


def test_a_vcf_that_cannot_be_extended(
    model: Path, sequence: str, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body, vcf, output = rows(sequence), tmp_path / "v.vcf", tmp_path / "s.vcf"
    exists = "has an INFO field {} already; pass another name with --info-name"
    cases = [
        (HEADER.replace("ID=RARE", "ID=DNABERT_RM") + body, [], exists.format("DNABERT_RM")),
        (HEADER.replace("ID=RARE", "ID=DNABERT_RM_REASON") + body, [], exists.format("DNABERT_RM_REASON")),
        (HEADER + body, ["--info-name", "RARE"], exists.format("RARE")),
        (HEADER + body.replace("RARE", "NEW=3"), ["--info-name", "NEW"], exists.format("NEW")),
        (HEADER + body, ["--info-name", "a b"], "--info-name a b: must consist of letters"),
        (body, [], "has no header line #CHROM before the first row"),
        (HEADER + "chr1\t1\t.\tA\tC\n", [], "line 8: expected CHROM, POS, ID, REF, ALT, QUAL, FILTER and INFO"),
    ]
    for content, words, message in cases:
        vcf.write_text(content)
        score(model, vcf, fasta, output, *words, code=2, read=False)
        assert message in capsys.readouterr().err
        assert not output.exists()


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["--labels", "RARE"], lambda i, j, info: "RARE" in info),
        (
            ["--labels", "CLNSIG", "--positive", "Pathogenic,Likely_pathogenic"],
            lambda i, j, info: None if "CLNSIG" not in info else "athogenic" in info,
        ),
        (
            ["--labels", "CLNSIG", "--positive", "Pathogenic", "--negative", "Benign,other"],
            lambda i, j, info: True if "=Path" in info else False if "Benign" in info or "other" in info else None,
        ),
        (
            ["--labels", "SIDE", "--positive", "L"],
            lambda i, j, info: (i + j) % 2 == 0 if "SIDE" in info else None,
        ),
    ],
)
@pytest.mark.parametrize("rule", ["log-ratio", "embedding"])
def test_metrics_match_scikit_learn_on_the_table(
    model: Path, sequence: str, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words, label, rule
) -> None:
    body, vcf = rows(sequence), tmp_path / "v.vcf"
    vcf.write_text(HEADER + body)
    table = score(model, vcf, fasta, tmp_path / "s.csv", *words, "--score", rule)
    printed = capsys.readouterr().out
    labels, scores, unlabelled, unscored = [], [], 0, 0
    alleles = iter(table)
    for i, line in enumerate(body.splitlines()):
        for j in range(line.split("\t")[4].count(",") + 1):
            row, value = next(alleles), label(i, j, line.split("\t")[7])
            if value is None:
                unlabelled += 1
            elif not row["score"]:
                unscored += 1
            else:
                labels.append(value)
                scores.append(float(row["score"]) * (1 if rule == "embedding" else -1))
    num_positive = sum(labels)
    assert printed.startswith(
        f"{words[1]}: {num_positive} positive and {len(labels) - num_positive} negative alleles"
        f" ({unlabelled} without a label, {unscored} without a score)\n"
    )
    numbers = [float(text) for text in re.findall(r"0\.\d{4}|1\.0000", printed)]
    assert numbers[0] == pytest.approx(roc_auc_score(labels, scores), abs=1e-4)
    assert numbers[3] == pytest.approx(average_precision_score(labels, scores), abs=1e-4)
    assert numbers[1] <= numbers[0] <= numbers[2] and numbers[1] < numbers[2]
    assert ("higher" if rule == "embedding" else "lower") + " scores are ranked as positive" in printed
    score(model, vcf, fasta, tmp_path / "t.csv", *words, "--score", rule)
    assert capsys.readouterr().out == printed
    score(model, vcf, fasta, tmp_path / "u.csv", *words, "--score", rule, "--seed", 1)
    assert capsys.readouterr().out != printed
    plain = score(model, vcf, fasta, tmp_path / "p.csv", "--score", rule)
    assert plain == table


def test_the_interval_agrees_with_the_normal_approximation() -> None:
    """Hanley and McNeil's standard error of an AUROC, for scores of two normal distributions."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.array([0, 1], np.int8), [300, 200])
    scores = rng.normal(size=500) + labels
    area, low, high = label_metrics(labels, scores, 3)["AUROC"]
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = np.sqrt((area * (1 - area) + 199 * (q1 - area**2) + 299 * (q2 - area**2)) / (200 * 300))
    assert [low, high] == pytest.approx([area - 1.96 * error, area + 1.96 * error], abs=0.01)


def test_wrong_labels(
    model: Path, sequence: str, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vcf, output = tmp_path / "v.vcf", tmp_path / "s.csv"
    vcf.write_text(HEADER + rows(sequence))
    cases = [
        (["--labels", "CLN"], "has no header line ##INFO=<ID=CLN,...>; choose one of its INFO fields (CLNSIG, RARE"),
        (["--labels", "CLNSIG"], "--labels CLNSIG: is no flag; pass --positive VALUE,..."),
        (["--labels", "RARE", "--positive", "1"], "--labels RARE: is a flag; omit --positive"),
        (["--positive", "A"], "--positive: has no effect without --labels"),
        (["--labels", "CLNSIG", "--negative", "A"], "--negative: also needs --positive"),
        (["--labels", "CLNSIG", "--negative", "A,B", "--positive", "B"], "--positive and --negative: both have B"),
    ]
    for words, message in cases:
        score(model, vcf, fasta, output, *words, code=2)
        assert message in capsys.readouterr().err
        assert not output.exists()
    table = score(model, vcf, fasta, output, "--labels", "CLNSIG", "--positive", "pathogenic", code=2)
    assert "CLNSIG: 0 positive and" in (error := capsys.readouterr().err) and f"({output} has the scores)" in error
    assert len(table) > 60
