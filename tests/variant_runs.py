"""Runs of `score-variants`, and a slow version of its likelihoods: one window at a time, over every k-mer."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from tiny_models import read_table

from dnabert_rm.cli.main import main

K = 3
COMPLEMENT = dict(zip("ACGT", "TGCA", strict=True))
IDS = {word: 5 + i for i, word in enumerate(map("".join, itertools.product("ATCG", repeat=K)))}


def write_vcf(path: Path, rows: list[tuple[str, int, str, str]]) -> Path:
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    lines += [
        f"{contig}\t{position + 1}\trs{i}\t{ref}\t{alt}\t.\t.\t." for i, (contig, position, ref, alt) in enumerate(rows)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def score(
    model: Path, vcf: Path, fasta: Path, output: Path, *words: object, code: int = 0, read: bool = True
) -> list[dict[str, str]]:
    command = ["score-variants", "--model", model, "--vcf", vcf, "--fasta", fasta, "--output", output, *words]
    assert main([str(word) for word in command]) == code
    return read_table(output) if read and output.exists() else []


def reverse_complement(text: str) -> str:
    return "".join(COMPLEMENT.get(letter, letter) for letter in reversed(text))


def slow_log_p(model: torch.nn.Module, window: str, target: int, span: int) -> dict[str, float]:
    num_tokens = len(window) - K + 1
    first = target - K + 1 - (span - K) // 2
    masked = {t for t in range(first, first + span) if 0 <= t < num_tokens}
    kept = {t: window[t : t + K] for t in range(num_tokens) if t not in masked and "N" not in window[t : t + K]}
    seen = {t + j: word[j] for t, word in kept.items() for j in range(K)}
    window_ids = [1 if "N" in window[t : t + K] else IDS[window[t : t + K]] for t in range(num_tokens)]
    ids = [2, *(4 if t in masked else window_ids[t] for t in range(num_tokens)), 3]
    with torch.no_grad():
        probabilities = model(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1).numpy()
    logs = []
    for t in range(num_tokens):
        if t <= target < t + K:
            weight = dict.fromkeys("ACGT", 0.0)
            for word, number in IDS.items():
                if all(seen.get(t + j, word[j]) == word[j] for j in range(K)):
                    weight[word[target - t]] += probabilities[t + 1][number]
            logs.append({base: np.log(w / sum(weight.values())) for base, w in weight.items()})
    return {base: float(np.mean([log[base] for log in logs])) for base in "ACGT"}
