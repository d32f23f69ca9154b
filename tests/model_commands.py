"""Inputs and words of the commands that read a model folder of 3-mers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from builds import build
from finetuning import write_classes
from support import random_bases
from tiny_models import POSITIONS, write_fasta


def write_inputs(folder: Path) -> Path:
    """Write tables of two classes, genome.fa, a VCF with one substitution, and the prepared folder of the genome."""
    rng = np.random.default_rng(0)
    write_classes(folder)
    contigs = {"t": random_bases(rng, 3000), "v": random_bases(rng, 1000)}
    fasta = write_fasta(folder / "genome.fa", contigs)
    reference = contigs["t"][99]
    alternative = "ACGT".replace(reference, "")[0]
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (folder / "one.vcf").write_text(f"{header}t\t100\t.\t{reference}\t{alternative}\t.\t.\t.\n")
    build(fasta, "--out", folder / "prepared", "--k", "3", "--val-contigs", "v")
    return folder


def words_of(command: str, model: Path, data: Path, output: Path) -> list[str]:
    """Return the words of a command. `output` is the file that it writes, or the folder for `finetune`."""
    inputs: list[object] = ["--input", data / "genome.fa"]
    if command == "finetune":
        inputs = ["--train", data / "train.csv", "--test", data / "test.csv", "--max-steps", 1]
    elif command == "evaluate bits":
        inputs = ["--data", data / "prepared", "--hidden", "1", "--window", POSITIONS - 2]
    elif command == "score-variants":
        inputs = ["--vcf", data / "one.vcf", "--fasta", data / "genome.fa"]
    return [*command.split(), *map(str, ["--model", model, *inputs, "--output", output])]
