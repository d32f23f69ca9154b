"""The tokenizer: encoding, padding, decoding and files, against slow independent references."""

import itertools
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizer, pipeline

from dnabert_rm.genome import kmer
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.tokenizer.vocabulary_files import stock_tokenizer
from dnabert_rm.utils.errors import CheckpointError

TEXTS = st.lists(
    st.one_of(
        st.text("ACGTacgt", max_size=40),
        st.text("ACGTNnRé?\u20ac-", max_size=12),
        st.sampled_from(" \n\t"),
        st.sampled_from(kmer.SPECIAL_TOKENS),
        st.just("["),
    ),
    max_size=6,
).map("".join)


def slow_ids(text: str, k: int, step: int = 1) -> list[int]:
    """Encode one k-mer at a time, with an independent dictionary."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    numbers = {"".join(word): 5 + i for i, word in enumerate(itertools.product("ATCG", repeat=k))}
    ids = []
    for piece in re.split(r"(\[(?:PAD|UNK|CLS|SEP|MASK)\])", text):
        if piece in specials:
            ids.append(specials.index(piece))
            continue
        for run in re.split("[ \t\n\r\x0b\x0c]", piece):
            for start in range(0, len(run) - k + 1, step):
                ids.append(numbers.get(run[start : start + k].upper(), 1))
    return ids


@pytest.mark.parametrize("k", [3, 4, 6])
@pytest.mark.parametrize("overlapping", [True, False])
def test_encodes_as_the_slow_reference(k, overlapping):
    tokenizer = KmerTokenizer(k, overlapping=overlapping)
    step = 1 if overlapping else k

    @settings(max_examples=60, deadline=None)
    @given(st.lists(TEXTS, min_size=1, max_size=4))
    def check(texts):
        expected = [slow_ids(text, k, step) for text in texts]
        assert tokenizer(texts, add_special_tokens=False)["input_ids"] == expected
        assert [row.tolist() for row in tokenizer.token_ids(texts)] == expected
        assert tokenizer(texts[0])["input_ids"] == [2, *expected[0], 3]

    check()


@pytest.mark.parametrize("k", [3, 6])
@pytest.mark.parametrize("overlapping", [True, False])
def test_stock_tokenizer_gives_the_same_ids(k, overlapping):
    """`tokenizer.json`, for users without this package."""
    ours, stock = KmerTokenizer(k, overlapping=overlapping), stock_tokenizer(k, overlapping)

    @settings(max_examples=60, deadline=None)
    @given(TEXTS)
    def check(text):
        assert stock.encode(text).ids == ours(text)["input_ids"]

    check()


class _General(KmerTokenizer):
    """The same tokenizer, restricted to transformers' general path."""

    def _encode_plus(self, *args, **options):
        return PreTrainedTokenizer._encode_plus(self, *args, **options)


@pytest.mark.parametrize("padding", [False, "longest", "max_length"])
@pytest.mark.parametrize("truncation", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("specials", [True, False])
def test_fast_path_equals_the_general_path(padding, truncation, side, specials):
    texts = ["ACGTACGTACGTTTTA", "", "ACG", "TTTNTTTTTTA", "AC[MASK]GTTGA GTA"]
    options = {"padding": padding, "truncation": truncation, "max_length": 8 if truncation or padding else None}
    options |= {"add_special_tokens": specials, "pad_to_multiple_of": 4 if padding == "longest" else None}
    options |= {"return_token_type_ids": True}
    if padding == "max_length" and not truncation:
        options["max_length"] = 30
    made = [cls(3, padding_side=side, truncation_side=side) for cls in (KmerTokenizer, _General)]
    fast, general = (dict(tokenizer(texts, **options)) for tokenizer in made)
    assert fast == general
    for text in texts if specials else filter(None, texts):  # transformers does not pad a single empty row
        assert dict(made[0](text, **options)) == dict(made[1](text, **options))
    if padding:
        tensors = made[0](texts, return_tensors="pt", **options)
        assert {name: tensor.tolist() for name, tensor in tensors.items()} == general


def test_pairs_and_rare_options_take_the_general_path():
    tokenizer = KmerTokenizer(3)
    pair = tokenizer("ACGT", "TTTT", return_token_type_ids=True)
    assert pair["input_ids"] == [2, *slow_ids("ACGT", 3), 3, *slow_ids("TTTT", 3), 3]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert tokenizer("ACGT", return_special_tokens_mask=True)["special_tokens_mask"] == [1, 0, 0, 1]
    assert dict(tokenizer([])) == {"input_ids": [], "attention_mask": []}


def test_rows_of_different_lengths_make_no_tensor():
    with pytest.raises(ValueError, match="padding=True"):
        KmerTokenizer(3)(["ACGTA", "ACG"], return_tensors="np")


def test_token_types_are_returned_only_on_request():
    assert set(KmerTokenizer(3)("ACGT")) == {"input_ids", "attention_mask"}
    assert KmerTokenizer(3)("ACGT", return_token_type_ids=True)["token_type_ids"] == [0, 0, 0, 0]


def test_boundaries_of_k_and_ambiguous_letters():
    tokenizer = KmerTokenizer(6)
    assert tokenizer("ACGTA")["input_ids"] == [2, 3]
    assert len(tokenizer("ACGTAC")["input_ids"]) == 3
    assert tokenizer.tokenize("ACGTACG") == ["ACGTAC", "CGTACG"]
    assert tokenizer("NACGTACN")["input_ids"] == [2, 1, *slow_ids("ACGTAC", 6), 1, 3]
    assert tokenizer("ACGUAC")["input_ids"] == [2, 1, 3]


@settings(max_examples=150, deadline=None)
@given(st.text("ACGT", min_size=6, max_size=80), st.booleans())
def test_decodes_to_the_bases(bases, overlapping):
    tokenizer = KmerTokenizer(6, overlapping=overlapping)
    if not overlapping:
        bases = bases[: len(bases) // 6 * 6]
    ids = tokenizer(bases.lower())["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == bases
    assert tokenizer.decode(ids) == f"[CLS] {bases} [SEP]"


def test_decodes_ambiguous_bases_to_n():
    tokenizer = KmerTokenizer(3)
    for text in ("ACGNTTT", "NNACGT", "ACGTN", "NNNN", "ACGNNNNTTTA", "NACGTNACGNN"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 4), st.just(1), st.integers(5, 68)), max_size=30), st.booleans())
def test_any_ids_survive_decoding_and_encoding(ids, overlapping):
    tokenizer = KmerTokenizer(3, overlapping=overlapping)
    assert tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] == ids


@pytest.mark.parametrize(("k", "overlapping"), [(3, True), (6, True), (6, False)])
def test_saves_and_loads(tmp_path, k, overlapping):
    KmerTokenizer(k, overlapping=overlapping, model_max_length=512).save_pretrained(tmp_path / "a")
    BertConfig(vocab_size=kmer.vocab_size(k)).save_pretrained(tmp_path / "a")
    assert (tmp_path / "a" / "vocab.txt").read_bytes() == kmer.vocabulary_text(k).encode()
    loaded = KmerTokenizer.from_pretrained(tmp_path / "a")
    assert (loaded.k, loaded.overlapping, loaded.model_max_length) == (k, overlapping, 512)
    loaded.save_pretrained(tmp_path / "b")
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
        assert str(tmp_path) not in path.read_text()
    stock = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert stock.model_max_length == 512 and stock.model_input_names == ["input_ids", "attention_mask"]
    assert stock("ACGTACGTTTG") == loaded("ACGTACGTTTG")


def test_stock_transformers_loads_a_saved_folder(tmp_path):
    """`AutoTokenizer` in a process that does not import this package."""
    texts = ["ACGTACGTNACGTTTGACC", "acg", "ACGTACG[MASK]ACGTAC", "ACGTAC CGTACG"]
    KmerTokenizer(6).save_pretrained(tmp_path)
    BertConfig(vocab_size=4101).save_pretrained(tmp_path)
    script = (
        "import sys; from transformers import AutoTokenizer;"
        "t = AutoTokenizer.from_pretrained(sys.argv[1]);"
        "assert 'dnabert_rm' not in sys.modules;"
        "print(t(sys.argv[2:], padding=True)['input_ids'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), *texts], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == str(KmerTokenizer(6)(texts, padding=True)["input_ids"])


def test_tokenizer_json_contains_the_stock_tokenizer(tmp_path):
    KmerTokenizer(4).save_pretrained(tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).to_str() == stock_tokenizer(4).to_str()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\nhouse\n"), "not a k-mer vocabulary"),
        (lambda folder: (folder / "vocab.txt").write_bytes(b"\xff\xfe\x00"), "not a readable vocabulary"),
        (lambda folder: (folder / "vocab.txt").write_text(""), "not a k-mer vocabulary"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no vocab.txt"),
        (
            lambda folder: (folder / "vocab.txt").write_text("\n".join(sorted(kmer.vocabulary(3)[5:], key=str)) + "\n"),
            "not a k-mer vocabulary",
        ),
    ],
)
def test_rejects_files_that_are_no_kmer_vocabulary(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        KmerTokenizer.from_pretrained(tmp_path)


def test_rejects_a_k_that_contradicts_the_file(tmp_path):
    KmerTokenizer(3).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds 3-mers"):
        KmerTokenizer.from_pretrained(tmp_path, k=4)


def test_fill_mask_pipeline():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=kmer.vocab_size(3), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    fill = pipeline("fill-mask", model=BertForMaskedLM(config).eval(), tokenizer=KmerTokenizer(3), device="cpu")
    for text in ("ACGTA[MASK]TTTA", "ACG CGT [MASK] TAC"):
        best = fill(text, top_k=2)[0]
        assert best["token_str"] in kmer.vocabulary(3) and set(best["sequence"]) <= set("ACGTN ")
    assert len(fill("ACGTAC[MASK][MASK]TTT")) == 2


def test_batches_are_ten_times_faster_than_token_by_token():
    rng = np.random.default_rng(0)
    texts = ["".join(row) for row in rng.choice(list("ACGT"), (100, 500))]

    def best_time(tokenizer):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            tokenizer(texts)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best_time(_General(6)) > 10 * best_time(KmerTokenizer(6))


def test_added_tokens_are_encoded():
    tokenizer = KmerTokenizer(3)
    tokenizer.add_tokens(["<gap>"])
    assert tokenizer("ACG<gap>TTT", add_special_tokens=False)["input_ids"] == [
        *slow_ids("ACG", 3),
        69,
        *slow_ids("TTT", 3),
    ]
