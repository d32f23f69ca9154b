"""Scoring rules, regions and pictures of `score-variants`, compared with slow computations."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from support import random_bases
from tiny_models import POSITIONS, read_table, save_bert, stock_states, write_fasta
from transformers import AutoModelForMaskedLM, BertForMaskedLM
from variant_runs import COMPLEMENT, IDS, K, reverse_complement, score, slow_log_p, write_vcf

from dnabert_rm.analysis.region_figure import mean_effects, read_region_scores, region_figure
from dnabert_rm.cli.main import main
from dnabert_rm.finetune.pretrained_encoder import suppress_transformers_output

RADIUS = (POSITIONS - 2 + K - 2) // 2
MOTIF = "GATTACA"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "mlm", BertForMaskedLM)


@pytest.fixture(scope="module")
def genome() -> dict[str, str]:
    rng = np.random.default_rng(5)
    return {"chr1": random_bases(rng, 60), "HLA:1": random_bases(rng, 8) + "R" + random_bases(rng, 9) + "NNNGNNN"}


def run_region(model: Path, fasta: Path, region: str, output: Path, *words: object, code: int = 0) -> str:
    command = ["score-variants", "--model", model, "--fasta", fasta, "--region", region, "--output", output, *words]
    assert main([str(word) for word in command]) == code
    return output.read_text() if output.exists() else ""


def all_alternatives(sequence: str) -> list[tuple[str, int, str, str]]:
    """Return every alternative at every fourth base, two per row, as rows of a VCF."""
    bases = list(enumerate(sequence))[::4]
    return [("chr1", i, ref, ",".join(base for base in "ACGT" if base != ref)) for i, ref in bases]


def strand_windows(sequence: str, position: int, alt: str, strand: str) -> list[tuple[str, str, int]]:
    """Return the window with ref, that with alt and the variant's index, for each strand."""
    start = max(0, position - RADIUS)
    window, target = sequence[start : position + RADIUS + 1], position - start
    changed = window[:target] + alt + window[target + 1 :]
    both = [(window, changed, target)]
    both.append((reverse_complement(window), reverse_complement(changed), len(window) - 1 - target))
    return {"+": both[:1], "-": both[1:], "both": both}[strand]


def slow_distance(model: Path, ref: str, alt: str, rule: str) -> float:
    a, b = (stock_states(model, window)[1:-1].astype(np.float64).mean(axis=0) for window in (ref, alt))
    return float(1 - a @ b / np.sqrt((a @ a) * (b @ b)) if rule == "embedding" else np.sqrt(((a - b) ** 2).sum()))


@pytest.mark.parametrize("strand", ["both", "+", "-"])
@pytest.mark.parametrize("rule", ["marginal", "embedding", "embedding-l2"])
def test_each_rule_matches_a_slow_computation(
    model: Path, genome: dict[str, str], tmp_path: Path, rule: str, strand: str
) -> None:
    sequence, rows = genome["chr1"], all_alternatives(genome["chr1"])
    fasta, vcf = write_fasta(tmp_path / "g.fa", genome), write_vcf(tmp_path / "v.vcf", rows)
    words = ["--score", rule, "--strand", strand, "--batch-size", 3]
    found = [float(row["score"]) for row in score(model, vcf, fasta, tmp_path / "s.csv", *words)]
    with suppress_transformers_output():
        slow = AutoModelForMaskedLM.from_pretrained(model).eval()
    expected = []
    for _, position, _, alts in rows:
        for alt in alts.split(","):
            values = []
            for i, (ref_window, alt_window, target) in enumerate(strand_windows(sequence, position, alt, strand)):
                base = COMPLEMENT[alt] if strand == "-" or i else alt
                if rule == "marginal":
                    values.append(slow_log_p(slow, ref_window, target, K)[base])
                else:
                    values.append(slow_distance(model, ref_window, alt_window, rule))
            expected.append(np.mean(values))
    assert found == pytest.approx(expected, abs=2e-5, rel=1e-3)
    assert np.std(expected) > 0.01
    assert min(found) >= 0 if rule.startswith("embedding") else max(found) <= 0


def test_the_default_table_is_unchanged(model: Path, genome: dict[str, str], tmp_path: Path) -> None:
    """Each line as this command wrote it before it had other rules, from a slow computation."""
    sequence, rows = genome["chr1"], all_alternatives(genome["chr1"])[3:7]
    rows.append(("chr1", 30, sequence[30], sequence[30] + "A"))
    fasta, vcf = write_fasta(tmp_path / "g.fa", genome), write_vcf(tmp_path / "v.vcf", rows)
    score(model, vcf, fasta, tmp_path / "s.csv")
    with suppress_transformers_output():
        slow = AutoModelForMaskedLM.from_pretrained(model).eval()
    lines = ["chrom,pos,id,ref,alt,score,reason"]
    for number, (contig, position, ref, alts) in enumerate(rows[:-1]):
        for alt in alts.split(","):
            (window, _, target), (other, _, other_target) = strand_windows(sequence, position, alt, "both")
            forward, reverse = slow_log_p(slow, window, target, K), slow_log_p(slow, other, other_target, K)
            value = (forward[alt] - forward[ref] + reverse[COMPLEMENT[alt]] - reverse[COMPLEMENT[ref]]) / 2
            lines.append(f"{contig},{position + 1},rs{number},{ref},{alt},{value:.6f},")
    lines.append(f"chr1,31,rs4,{sequence[30]},{sequence[30]}A,,indel")
    found = (tmp_path / "s.csv").read_text()
    assert found.endswith("\n") and len(found.splitlines()) == len(lines)
    for line, expected in zip(found.splitlines(), lines, strict=True):
        cells, expected_cells = line.split(","), expected.split(",")
        assert cells[:5] + cells[6:] == expected_cells[:5] + expected_cells[6:]
        if "." in expected_cells[5]:
            assert len(cells[5].partition(".")[2]) == 6 and float(cells[5]) == pytest.approx(
                float(expected_cells[5]), abs=2e-6
            )
        else:
            assert cells[5] == expected_cells[5]


@pytest.mark.parametrize("rule", ["log-ratio", "embedding"])
@pytest.mark.parametrize("region", ["chr1:1-60", "HLA:1:1-1", "HLA:1:4-25"])
def test_a_region_equals_its_variants_in_a_vcf(
    model: Path, genome: dict[str, str], tmp_path: Path, region: str, rule: str
) -> None:
    contig, _, ends = region.rpartition(":")
    start, end = map(int, ends.split("-"))
    bases = list(enumerate(genome[contig]))[start - 1 : end]
    rows = [(contig, i, ref, ",".join(base for base in "ACGT" if base != ref)) for i, ref in bases]
    fasta = write_fasta(tmp_path / "g.fa", genome)
    expected = score(model, write_vcf(tmp_path / "v.vcf", rows), fasta, tmp_path / "v.csv", "--score", rule)
    found = list(csv.DictReader(io.StringIO(run_region(model, fasta, region, tmp_path / "r.csv", "--score", rule))))
    assert [{**row, "id": "."} for row in expected] == found
    if region == "HLA:1:4-25":
        reasons = {(row["ref"], row["reason"]) for row in found if row["reason"]}
        assert reasons == {("R", "not A, C, G, T"), ("N", "REF is N")}


def test_a_window_without_a_known_kmer_has_no_embedding(model: Path, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "g.fa", {"c": "N" * 30 + "G" + "N" * 30})
    table = run_region(model, fasta, "c:31-31", tmp_path / "s.csv", "--score", "embedding")
    assert table.splitlines()[1:] == [f"c,31,.,G,{alt},,no known k-mer" for alt in "ACT"]


def test_a_planted_motif_stands_out(tmp_path: Path) -> None:
    """All weights are 0 except the decoder's bias, which prefers the k-mers of the motif."""
    folder = save_bert(tmp_path / "motif", BertForMaskedLM)
    with suppress_transformers_output():
        model = AutoModelForMaskedLM.from_pretrained(folder)
        for weight in model.parameters():
            weight.data.zero_()
        for i in range(len(MOTIF) - K + 1):
            model.cls.predictions.bias.data[IDS[MOTIF[i : i + K]]] = 6.0
        model.save_pretrained(folder)
    sequence = "C" * 20 + MOTIF + "C" * 20
    fasta = write_fasta(tmp_path / "g.fa", {"c": sequence})
    output, picture = tmp_path / "s.csv", tmp_path / "s.png"
    run_region(folder, fasta, "c:11-37", output, "--strand", "+", "--picture", picture)
    region = read_region_scores(output)
    assert region.bases == sequence[10:37] and region.start == 11
    effects = mean_effects(region.scores, "log-ratio")
    # log P(alt) - log P(ref) is 6 for each covering k-mer that becomes one of the motif, -6 for one that is lost.
    motif_kmers = {MOTIF[i : i + K] for i in range(len(MOTIF) - K + 1)}
    expected = []
    for position in range(10, 37):
        changes = []
        for base in set("ACGT") - {sequence[position]}:
            changed = sequence[:position] + base + sequence[position + 1 :]
            for start in range(position - K + 1, position + 1):
                before, after = sequence[start : start + K], changed[start : start + K]
                changes.append(6 * ((before in motif_kmers) - (after in motif_kmers)))
        expected.append(np.mean(changes))
    assert effects == pytest.approx(expected, abs=1e-5)
    assert effects[10 : 10 + len(MOTIF)].min() > 1.5, "every base of the motif stands out"
    assert np.abs(effects[:8]).max() < 1e-6
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_scores_references_and_effects(model: Path, genome: dict[str, str], tmp_path: Path) -> None:
    sequence = genome["chr1"] + "NN" + genome["chr1"]
    fasta = write_fasta(tmp_path / "g.fa", {"c": sequence})
    for rule in ("log-ratio", "marginal", "embedding"):
        output = tmp_path / f"{rule}.csv"
        run_region(model, fasta, "c:9-112", output, "--score", rule, "--picture", tmp_path / f"{rule}.svg")
        region = read_region_scores(output)
        figure = region_figure(region, rule)
        logos, heats = figure.axes[0:4:2], figure.axes[1:4:2]
        shown = np.concatenate([axes.images[0].get_array().filled(np.nan) for axes in heats], axis=1)
        expected = np.full((4, 104), np.nan)
        for row in read_table(output):
            if row["score"]:
                expected["ACGT".index(row["alt"]), int(row["pos"]) - 9] = float(row["score"])
        np.testing.assert_array_equal(shown, expected)
        dots = [tuple(point) for axes in heats for point in axes.collections[0].get_offsets().tolist()]
        first = [(i % 80, "ACGT".index(base)) for i, base in enumerate(sequence[8:112]) if base != "N"]
        assert dots == first
        neutral = np.log(0.25) if rule == "marginal" else 0.0
        sign = 1 if rule == "embedding" else -1
        letters = [patch.get_path().get_extents() for axes in logos for patch in axes.patches]
        heights = [box.y1 if abs(box.y1) > abs(box.y0) else box.y0 for box in letters]
        known = ~np.isnan(expected).all(axis=0)
        assert heights == pytest.approx((sign * (np.nanmean(expected[:, known], axis=0) - neutral)).tolist(), abs=1e-6)
        norm = heats[0].images[0].norm
        assert norm.vmin == 0 if rule == "embedding" else (norm.vmin + norm.vmax) / 2 == pytest.approx(neutral)


def test_wrong_regions_and_flags(
    model: Path, genome: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fasta = write_fasta(tmp_path / "g.fa", {**genome, "long": "ACGTT" * 2100})
    cases: list[tuple[str, list[object], str]] = [
        ("chrX:1-5", [], f"--region: contig 'chrX' is not in {fasta} (the file has chr1, HLA:1, long …)"),
        ("chr1:55-61", [], "--region chr1:55-61: contig chr1 has 60 bases; pass an end of 60 or less"),
        ("chr1", [], "--region chr1: must have the form CONTIG:START-END, such as chr1:1001-1200"),
        ("chr1:0-5", [], "--region chr1:0-5: START must be at least 1, and END at least START"),
        ("chr1:7-6", [], "--region chr1:7-6: START must be at least 1"),
        ("long:1-10,001", [], "--region long:1-10,001: has 10,001 bases; a region may have 10,000. Split it"),
        ("long:1-1001", ["--picture", "x.png"], "has 1,001 bases; a region with --picture may have 1,000. Split it"),
        ("chr1:1-5", ["--vcf", "v.vcf"], "give one of --vcf and --region, not both"),
        ("chr1:1-5", ["--picture", tmp_path / "x.gif"], "must end in one of .png, .svg, .pdf"),
        ("chr1:1-5", ["--picture", fasta], "g.fa: the file name must end in one of"),
        ("chr1:1-5", ["--labels", "X"], "--labels X: a region has no labels"),
        ("chr1:1-5", ["--score", "embedding", "--span", "3"], "--span 3: has no effect with --score embedding"),
        (
            "chr1:1-5",
            ["--score", "ratio"],
            "--score ratio: must be one of log-ratio, marginal, embedding, embedding-l2",
        ),
    ]
    for region, words, message in cases:
        run_region(model, fasta, region, tmp_path / "s.csv", *words, code=2)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()
    run_region(model, fasta, "chr1:1-5", tmp_path / "s.vcf", code=2)
    assert "--region has no VCF to add scores to; choose a .csv file" in capsys.readouterr().err
    vcf = write_vcf(tmp_path / "v.vcf", [])
    score(model, vcf, fasta, tmp_path / "s.csv", "--picture", tmp_path / "x.png", code=2)
    assert "x.png: shows a region; pass --region instead of --vcf" in capsys.readouterr().err
    assert main(["score-variants", "--model", str(model), "--fasta", str(fasta), "--output", "s.csv"]) == 2
    assert "give one of --vcf and --region" in capsys.readouterr().err
    run_region(model, fasta, "long:10,001-10,002", tmp_path / "s.csv")
    assert len(read_table(tmp_path / "s.csv")) == 6


@pytest.mark.parametrize("rule", ["log-ratio", "embedding"])
def test_a_model_of_non_overlapping_tokens_is_refused(
    genome: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str
) -> None:
    other = save_bert(tmp_path / "other", BertForMaskedLM)
    (other / "pretraining.json").write_text('{"config": {"data": {"overlap": false}}}')
    fasta = write_fasta(tmp_path / "g.fa", genome)
    run_region(other, fasta, "chr1:1-5", tmp_path / "s.csv", "--score", rule, code=2)
    assert "non-overlapping k-mers, but score-variants needs overlapping ones" in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()


def test_a_table_that_ends_in_gz_is_compressed(
    model: Path, genome: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fasta = write_fasta(tmp_path / "g.fa", genome)
    run_region(model, fasta, "chr1:1-9", tmp_path / "s.csv", "--picture", tmp_path / "a.png")
    words = ["--model", model, "--fasta", fasta, "--region", "chr1:1-9", "--picture", tmp_path / "b.png"]
    assert main(["score-variants", *map(str, words), "--output", str(tmp_path / "s.csv.gz")]) == 0
    assert gzip.decompress((tmp_path / "s.csv.gz").read_bytes()) == (tmp_path / "s.csv").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    run_region(model, fasta, "chr1:1-9", tmp_path / "s.csv.zst", code=2)
    assert "only gzip is written" in capsys.readouterr().err
