"""Small random models and tables for tests of fine-tuning."""

import csv

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from dnabert_rm.downstream import heads
from dnabert_rm.downstream.finetuning.settings import FinetuneSettings
from dnabert_rm.tokenizer import KmerTokenizer

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def save_model(folder, k=3, positions=40, **options):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=5 + 4**k, max_position_embeddings=positions, **{**BERT, **options})
    with heads.quiet_transformers():
        BertForMaskedLM(config).save_pretrained(folder)
        KmerTokenizer(k).save_pretrained(folder)
    return folder


def write_table(path, classes, rows, seed, lengths=(20, 36)):
    """Sequences whose base composition tells their class."""
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


def settings_for(model, data, output, **options):
    quick = {"max_steps": 20, "eval_steps": 10, "warmup_steps": 2, "learning_rate": 3e-3, "dev": data / "dev.csv"}
    files = {"model": model, "train": data / "train.csv", "test": data / "test.csv", "output": output}
    return FinetuneSettings(**(files | quick | options))
