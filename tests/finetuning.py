"""Small random models and tables for tests of fine-tuning."""

import csv

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from dnabert_rm.finetune import pretrained_encoder as encoder
from dnabert_rm.finetune.finetune_settings import FinetuneSettings
from dnabert_rm.tokenizer import KmerTokenizer

K = 3
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def save_model(folder, k=3, positions=40, **options):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=5 + 4**k, max_position_embeddings=positions, **{**BERT, **options})
    with encoder.suppress_transformers_output():
        BertForMaskedLM(config).save_pretrained(folder)
        KmerTokenizer(k).save_pretrained(folder)
    return folder


def write_table(path, classes, rows, seed, lengths=(20, 36)):
    """Write sequences whose base composition depends on their class."""
    rng = np.random.default_rng(seed)
    weights = np.full((len(classes), 4), 0.1)
    weights[np.arange(len(classes)), np.arange(len(classes))] = 0.7
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sequence", "label"])
        for _ in range(rows):
            number = rng.integers(len(classes))
            bases = rng.choice(list("ACGT"), rng.integers(lengths[0], lengths[1] + 1), p=weights[number])
            writer.writerow(["".join(bases), classes[number]])
    return path


def write_classes(folder):
    """Write train.csv, dev.csv and test.csv of two classes."""
    for seed, (name, count) in enumerate({"train": 96, "dev": 32, "test": 30}.items()):
        write_table(folder / f"{name}.csv", ["0", "1"], count, seed)
    return folder


def settings_for(model, data, output, **options):
    quick = {"max_steps": 20, "eval_steps": 10, "warmup_steps": 2, "learning_rate": 3e-3, "dev": data / "dev.csv"}
    files = {"model": model, "train": data / "train.csv", "test": data / "test.csv", "output": output}
    return FinetuneSettings(**(files | quick | options))


def shares(sequence):
    """Return the fractions of A and of C in a sequence."""
    return [sequence.count(base) / len(sequence) for base in "AC"]


LABELS = {
    # task and label columns → labels of a sequence
    ("multi-label", ("label",)): lambda s: [";".join("xy"[i] for i in (0, 1) if shares(s)[i] > 0.25) or ";"],
    ("multi-label", ("x", "y")): lambda s: [str(int(share > 0.25)) for share in shares(s)],
    ("regression", ("label",)): lambda s: [f"{100 * shares(s)[0] - 7:.4f}"],
    ("regression", ("a", "c")): lambda s: [f"{100 * shares(s)[0]:.4f}", f"{shares(s)[1]:.4f}"],
    ("bases", ("label",)): lambda s: ["".join("E" if base in "AC" else "I" for base in s)],
}


def write_labelled(path, columns, cells, count, seed, lengths=(20, 36)):
    rng = np.random.default_rng(seed)
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sequence", *columns])
        for _ in range(count):
            weights = rng.dirichlet([1, 1, 1, 1])
            sequence = "".join(rng.choice(list("ACGT"), rng.integers(lengths[0], lengths[1] + 1), p=weights))
            writer.writerow([sequence, *cells(sequence)])
    return path


def read(path):
    with open(path) as stream:
        return list(csv.DictReader(stream))


def data_of(task, columns, folder, lengths=(20, 36)):
    for seed, (name, count) in enumerate({"train": 160, "dev": 40, "test": 30}.items()):
        write_labelled(folder / f"{name}.csv", columns, LABELS[task, columns], count, seed, lengths)
    return folder


def slow_windows(num_tokens, length):
    """Return starts of half-overlapping windows, the last one at the end; an independent implementation."""
    starts = [start for start in range(0, num_tokens, length // 2) if start + length < num_tokens]
    return [*starts, max(0, num_tokens - length)]


def slow_outputs(loaded, tokenizer, sequence, facts):
    """Return logits of a sequence, (L,), or of each base, (bases, L), computed one window and base at a time."""
    ids = tokenizer(sequence)["input_ids"][1:-1]
    length = facts["max_tokens"] - 2
    starts = slow_windows(len(ids), length) if facts["long"] == "window" else [max(0, len(ids) - length) // 2]
    logits_of_base = [[] for _ in sequence]
    logits_of_window = []
    for start in starts:
        window = ids[start : start + length]
        with torch.no_grad():
            logits = loaded(torch.tensor([[2, *window, 3]])).logits[0]
        if facts["task"] != "bases":
            logits_of_window.append(logits)
            continue
        step = 1 if facts["overlapping"] else K
        for token in range(len(window)):
            first = (start + token) * step
            is_last = start + token == len(ids) - 1
            for base in range(first, len(sequence) if is_last else first + K):
                logits_of_base[base].append(logits[1 + token])
    if facts["task"] != "bases":
        return torch.stack(logits_of_window).mean(0)
    return [torch.stack(logits).mean(0) if logits else None for logits in logits_of_base]
