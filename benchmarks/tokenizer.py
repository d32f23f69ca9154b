"""Speed of tokenizing batches of DNA into padded ids: `KmerTokenizer` compared with other methods.

    python benchmarks/tokenizer.py [--sequences 64] [--bases 512] [--k 6] [--repeats 5]

The other methods: a naive Python loop over k-mers, DNABERT's method (join k-mers with spaces, `BertTokenizerFast`), and
the stock tokenizer in an export's `tokenizer.json`. All must give the same ids. Times are the best of `--repeats`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core for every method

from support import random_bases
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from dnabert_rm.genome import kmer
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.tokenizer.vocabulary_files import stock_tokenizer


def contenders(k: int) -> dict[str, Callable[[list[str]], Any]]:
    """Return functions from sequences to padded ids, by name."""
    vocabulary = {token: index for index, token in enumerate(kmer.vocabulary(k))}
    kmers = {"".join(bases): vocabulary["".join(bases)] for bases in itertools.product("ACGT", repeat=k)}
    bert = BertTokenizerFast(vocab=vocabulary, do_lower_case=False)
    stock = PreTrainedTokenizerFast(tokenizer_object=stock_tokenizer(k), pad_token="[PAD]")
    ours = KmerTokenizer(k)

    def naive(texts: list[str]) -> list[list[int]]:
        rows = [[2, *(kmers.get(text[i : i + k], 1) for i in range(len(text) - k + 1)), 3] for text in texts]
        width = max(map(len, rows))
        return [row + [0] * (width - len(row)) for row in rows]

    def joined(texts: list[str]) -> list[list[int]]:
        spaced = [" ".join(text[i : i + k] for i in range(len(text) - k + 1)) for text in texts]
        return bert(spaced, padding=True)["input_ids"]

    return {
        "KmerTokenizer, tensors": lambda texts: ours(texts, padding=True, return_tensors="pt")["input_ids"],
        "KmerTokenizer": lambda texts: ours(texts, padding=True)["input_ids"],
        "naive loop": naive,
        "BertTokenizerFast on joined k-mers": joined,
        "stock tokenizer.json": lambda texts: stock(texts, padding=True)["input_ids"],
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (("sequences", 64), ("bases", 512), ("k", 6), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    texts = [random_bases(rng, args.bases) for _ in range(args.sequences)]
    seconds = {}
    ids = []
    for name, encode in contenders(args.k).items():
        ids.append(np.asarray(encode(texts)))
        times = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            encode(texts)
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
    assert all(np.array_equal(rows, ids[0]) for rows in ids), "the ids differ"
    first = next(iter(seconds.values()))
    print(f"{args.sequences} x {args.bases} bases, k = {args.k}; Mbase/s, and the time relative to the first row")
    for name, taken in seconds.items():
        print(f"{name:36} {args.sequences * args.bases / taken / 1e6:8.2f} {taken / first:8.1f}")


if __name__ == "__main__":
    main()
