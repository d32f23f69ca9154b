"""`benchmarks/variants.py`: effects against a codon table written by hand, and classes that match."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from support import ROOT, random_bases

CODONS = {
    "F": "TTT TTC", "L": "TTA TTG CTT CTC CTA CTG", "I": "ATT ATC ATA", "M": "ATG", "V": "GTT GTC GTA GTG",
    "S": "TCT TCC TCA TCG AGT AGC", "P": "CCT CCC CCA CCG", "T": "ACT ACC ACA ACG", "A": "GCT GCC GCA GCG",
    "Y": "TAT TAC", "*": "TAA TAG TGA", "H": "CAT CAC", "Q": "CAA CAG", "N": "AAT AAC", "K": "AAA AAG",
    "D": "GAT GAC", "E": "GAA GAG", "C": "TGT TGC", "W": "TGG", "R": "CGT CGC CGA CGG AGA AGG",
    "G": "GGT GGC GGA GGG",
}  # fmt: skip
AMINO_ACIDS = {codon: letter for letter, codons in CODONS.items() for codon in codons.split()}
COMPLEMENT = str.maketrans("ACGT", "TGCA")


def genes(sequence: str, min_codons: int) -> list[tuple[int, str, str]]:
    """Return begin, strand and bases of all frames from ATG to before a stop codon, by a slow search."""
    found = []
    for strand, text in (("+", sequence), ("-", sequence.translate(COMPLEMENT)[::-1])):
        for frame in range(3):
            start = None
            for place in range(frame, len(text) - 2, 3):
                letter = AMINO_ACIDS[text[place : place + 3]]
                if letter == "*":
                    if start is not None and place - start >= 3 * min_codons:
                        begin = start if strand == "+" else len(text) - place
                        found.append((begin, strand, text[start:place]))
                    start = None
                elif letter == "M" and start is None:
                    start = place
    return found


def effect_of(found: list[tuple[int, str, str]], place: int, reference: str, alternative: str) -> tuple:
    """Return the effect of a substitution, and its kind: position in the codon, and the bases on the gene's strand."""
    ((begin, strand, bases),) = [gene for gene in found if gene[0] <= place < gene[0] + len(gene[2])]
    offset = place - begin if strand == "+" else begin + len(bases) - 1 - place
    old, new = (base if strand == "+" else base.translate(COMPLEMENT) for base in (reference, alternative))
    position = offset % 3
    codon = bases[offset - position : offset - position + 3]
    assert codon[position] == old and offset >= 3  # not in the start codon
    before, after = AMINO_ACIDS[codon], AMINO_ACIDS[codon[:position] + new + codon[position + 1 :]]
    effect = "synonymous" if before == after else "nonsense" if after == "*" else "missense"
    return effect, (position, old, new)


def test_effects_and_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    sequences = {"one": random_bases(rng, 60_000), "two": random_bases(rng, 20_000)}
    fasta = tmp_path / "g.fa"
    fasta.write_text("".join(f">{name}\n{text}\n" for name, text in sequences.items()))
    script = [sys.executable, ROOT / "benchmarks" / "variants.py", fasta, "--output", tmp_path, "--contigs", "one"]
    done = subprocess.run([*script, "--min-codons", "60"], capture_output=True, text=True, check=True)
    assert done.stdout.count("Markov order") == 6
    found: list[tuple[int, str, str]] = []
    for gene in sorted(genes(sequences["one"], 60), key=lambda gene: -len(gene[2])):
        if all(gene[0] >= other[0] + len(other[2]) or other[0] >= gene[0] + len(gene[2]) for other in found):
            found.append(gene)
    for name, effects in (("missense", ("synonymous", "missense")), ("nonsense", ("missense", "nonsense"))):
        kinds: dict[str, Counter] = {effect: Counter() for effect in effects}
        rows = [line.split("\t") for line in (tmp_path / f"{name}.vcf").read_text().splitlines() if line[0] != "#"]
        assert len(rows) > 50
        for _, position, _, reference, alternative, *_, info in rows:
            place = int(position) - 1
            assert sequences["one"][place] == reference
            effect, kind = effect_of(found, place, reference, alternative)
            assert info == f"EFFECT={effect}"
            kinds[effect][kind] += 1
        assert kinds[effects[0]] == kinds[effects[1]]
