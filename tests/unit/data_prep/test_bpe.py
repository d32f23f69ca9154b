"""BPE: special ids, stored segments, both strands, and samples that depend only on the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from slow_fasta import slow_file

from data_prep import bpe
from data_prep.bpe import sample_sentences, train, train_from_files
from data_prep.cli import main
from data_prep.decode import make_decoder
from data_prep.parallel import open_executor
from data_prep.sharding.build_shards import Job, build
from data_prep.sharding.options import BuildOptions
from data_prep.sharding.scan import join_contigs, scan_files
from data_prep.sharding.sources import Source
from data_prep.stats import collect
from data_prep.verify import find_faults
from dnabert_rm.data.manifest import load_manifest
from dnabert_rm.data.shards import read_segments
from dnabert_rm.genome import kmer
from dnabert_rm.genome.bpe_model import load_model, piece_bases
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import sha256_of_file


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60,003 bases with repeated words, N and lower case."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("ACGT"), 9)) for _ in range(20)]
    text = "".join(words[i] for i in rng.integers(0, 20, 6667))
    path = tmp_path_factory.mktemp("bpe") / "g.fa"
    path.write_text(f">a\n{text[:40_000]}\n>b\nNNN{text[40_000:50_000].lower()}NN{text[50_000:]}\n")
    return path


@pytest.fixture(scope="module")
def model(genome: Path) -> Path:
    out = genome.with_name("m.model")
    with open_executor(1) as executor:
        assert executor is not None
        train_from_files([Source("g", str(genome))], out, 200, 50_000, 0, False, executor)
    return out


def build_bpe(genome: Path, model: Path, out: Path, **options: object) -> list[tuple[dict, np.ndarray]]:
    checked = BuildOptions(k=None, bpe_sha256=sha256_of_file(model), segment_tokens=5000, **options)  # type: ignore[arg-type]
    with open_executor(1) as executor:
        assert executor is not None
        build(Job([Source("g", str(genome))], checked, out, str(model)), executor)
        assert list(find_faults(load_manifest(out), out, executor)) == []
    return [(meta, ids) for shard in load_manifest(out).shards for _, meta, ids in read_segments(out / shard.name)]


def test_the_first_ids_are_our_special_tokens(model: Path) -> None:
    loaded = load_model(model)
    assert loaded.vocab_size() == 200
    assert [loaded.id_to_piece(i) for i in range(5)] == list(kmer.SPECIAL_TOKENS)
    assert set("".join(loaded.id_to_piece(i) for i in range(5, 200))) == set("ACGT")
    sizes = piece_bases(loaded)
    assert sizes[:5].tolist() == [0] * 5 and sizes[5:].min() == 1 and sizes.max() > 4


def test_segments_hold_every_base_once_and_decode(genome: Path, model: Path, tmp_path: Path) -> None:
    records = {name: sequence.upper() for name, sequence in slow_file(genome)}
    seen = {name: np.zeros(len(sequence), int) for name, sequence in records.items()}
    plain = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for meta, ids in build_bpe(genome, model, tmp_path / "out"):
        assert plain.decode(ids.tolist()) == records[meta["contig"]][meta["start"] : meta["end"]]
        assert ids.dtype == np.uint16 and ids.min() >= 5
        seen[meta["contig"]][meta["start"] : meta["end"]] += 1
    for name, sequence in records.items():
        assert seen[name].tolist() == [int(letter in "ACGT") for letter in sequence]
    manifest = load_manifest(tmp_path / "out")
    assert manifest.tokenizer.model == "tokenizer.model"
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == model.read_bytes()


def test_strand_both_stores_the_reverse_complement(genome: Path, model: Path, tmp_path: Path) -> None:
    segments = build_bpe(genome, model, tmp_path / "out", strand="both")
    decode = make_decoder(load_manifest(tmp_path / "out").tokenizer, tmp_path / "out")
    for (meta, ids), (other, reverse_ids) in zip(segments[::2], segments[1::2], strict=True):
        assert (meta.pop("strand"), other.pop("strand")) == ("+", "-")
        assert (meta.pop("tokens"), other.pop("tokens")) == (len(ids), len(reverse_ids)) and meta == other
        assert decode(reverse_ids).tolist() == (decode(ids) ^ 1)[::-1].tolist()
    with open_executor(1) as executor:
        assert executor is not None
        content = collect(load_manifest(tmp_path / "out"), tmp_path / "out", executor)
    train = content["splits"]["train"]
    assert train["bases"] == 60_003 and sum(train["letters"].values()) == 60_003
    assert 2 < train["bases_per_token"] < 9


def test_verify_finds_a_changed_model(genome: Path, model: Path, tmp_path: Path) -> None:
    build_bpe(genome, model, tmp_path / "out")
    (tmp_path / "out" / "tokenizer.model").write_bytes(b"other")
    with open_executor(1) as executor:
        assert executor is not None
        (fault,) = find_faults(load_manifest(tmp_path / "out"), tmp_path / "out", executor)
    assert fault.startswith("tokenizer.model: is missing, or its checksum does not match")


def test_a_sample_comes_from_the_genome_and_depends_only_on_the_seed(genome: Path) -> None:
    with open_executor(1) as executor:
        assert executor is not None
        source, paths = [Source("g", str(genome))], {0: str(genome)}
        contigs = join_contigs(source, paths, scan_files(source, paths, False, executor)[1])
    records = [sequence.upper() for _, sequence in slow_file(genome)]

    def sample(bases: int, seed: int) -> list[str]:
        return list(sample_sentences(contigs, [(str(genome), "g.fa")], bases, seed))

    few = sample(20_000, 1)
    assert few == sample(20_000, 1) != sample(20_000, 2)
    assert 20_000 <= sum(map(len, few)) <= 20_000 + 4096
    assert all(any(sentence in record for record in records) for sentence in few)
    assert sum(map(len, sample(10**9, 0))) == 60_003


def test_training_is_repeatable(genome: Path, model: Path, tmp_path: Path) -> None:
    with open_executor(1) as executor:
        assert executor is not None
        train_from_files([Source("g", str(genome))], tmp_path / "m", 200, 50_000, 0, False, executor)
    assert (tmp_path / "m").read_bytes() == model.read_bytes()


@pytest.mark.parametrize("name", ["g.fa", "link.model", "list.txt"])
def test_the_input_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "g.fa").write_text(">a\n" + "ACGTTGCAAC" * 500 + "\n")
    (tmp_path / "list.txt").write_text("g.fa\n")
    (tmp_path / "link.model").symlink_to(tmp_path / "g.fa")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    words = ["train-bpe", "--list", str(tmp_path / "list.txt"), "--out", str(tmp_path / name), "--vocab-size", "12"]
    assert main([*words, "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"--out {tmp_path / name}: is the same file as the input" in error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before and not (tmp_path / name).is_dir()


def test_a_genome_too_short_to_train_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">a\nACGT\n")
    with open_executor(1) as executor:
        assert executor is not None
        with pytest.raises(ConfigError, match="--vocab-size 100: the sample is too small"):
            train_from_files([Source("g", str(tmp_path / "g.fa"))], tmp_path / "m", 100, 1000, 0, False, executor)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.fa"]


def test_a_vocabulary_too_large_for_the_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match="--vocab-size 5000"):
        train(iter(["ACGT" * 10]), 5000)


def test_a_model_without_one_of_the_bases_is_refused(
    genome: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would encode the missing base as [UNK]."""
    with pytest.raises(ConfigError, match="--sample-bases: the sample has no C, G; raise it, or pass other genomes"):
        train(iter(["ATTATAATTTAA" * 20] * 20), 20)
    with monkeypatch.context() as patch:  # as an earlier version wrote it
        patch.setattr(bpe, "missing_bases", lambda model: "")
        (tmp_path / "at.model").write_bytes(train(iter(["ATTATAATTTAA" * 20] * 20), 20))
    words = ["--tokenizer", str(tmp_path / "at.model"), "--out", str(tmp_path / "out"), "--workers", "1"]
    capsys.readouterr()
    assert main(["build", str(genome), *words]) == 2
    found = capsys.readouterr().err
    assert "at.model: has no token C, G, which would be [UNK]; train it on more bases" in found
    assert found.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_file_that_train_bpe_did_not_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        load_model(tmp_path / "junk")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ACGTTGCAACGT"] * 50),
        model_prefix=str(tmp_path / "other"),
        vocab_size=9,
        minloglevel=2,
    )
    with pytest.raises(DataError, match=r"first tokens must be \[PAD\]"):
        load_model(tmp_path / "other.model")
