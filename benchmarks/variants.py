"""Substitutions in long open reading frames, labelled by what they do to the protein, for `score-variants`.

    python benchmarks/variants.py yeast.fa.gz --contigs chrXI --output runs/variants

Writes two VCF files of substitutions in `--contigs`, which the model's training data must not contain:

- `missense.vcf`: missense against synonymous.
- `nonsense.vcf`: nonsense against missense.

Both classes of a file have equally many substitutions of each kind: the same codon position, reference base and
alternative base on the strand of the gene. So base composition alone, or knowing the reading frame, can't tell them
apart. Prints the AUROC of Markov chains that were fitted on the other contigs, and the commands that score a model.

An open reading frame runs from the first ATG after a stop codon to the next stop codon, in the standard code. Of
frames that overlap, the longer one is kept. In a genome with few introns, such as yeast's, nearly all frames with 300
codons are genes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnabert_rm.genome.fasta_stream import Input, fasta_records
from dnabert_rm.genome.kmer import AMBIGUOUS, BASE_ORDER, base_codes
from dnabert_rm.genome.kmer_counts import count_kmers
from dnabert_rm.genome.markov import fit_chain, hidden_base_probabilities
from dnabert_rm.inference.variant_labels import label_metrics

_IN_NCBI_ORDER = b"FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
"""Table 1 of the NCBI, the standard genetic code; its codons are sorted with T, C, A, G = 0, 1, 2, 3."""
_NCBI_NUMBERS = np.array(["TCAG".index(base) for base in BASE_ORDER])
AMINO_ACIDS = (
    np.frombuffer(_IN_NCBI_ORDER, dtype=np.uint8)
    .reshape(4, 4, 4)[np.ix_(_NCBI_NUMBERS, _NCBI_NUMBERS, _NCBI_NUMBERS)]
    .ravel()
)
"""The amino acid of each codon: 16 x + 4 y + z for a codon whose bases have the codes x, y, z."""
METHIONINE, STOP = ord("M"), ord("*")
ORDERS = (2, 5, 8)


def read_genome(path: str) -> dict[str, NDArray[np.uint8]]:
    """Return each contig's base codes, (length,) uint8, by name."""
    with Input(path, "a FASTA file") as source:
        records = fasta_records(source.lines(), path)
        return {name: base_codes(b"".join(blocks)) for name, blocks in records}


def codons(codes: NDArray[np.uint8], frame: int) -> NDArray[np.int64]:
    """Return the codon numbers of a reading frame, (C,) int64; -1 if a base is ambiguous."""
    whole = codes[frame : frame + (len(codes) - frame) // 3 * 3].reshape(-1, 3).astype(np.int64)
    return np.where((whole == AMBIGUOUS).any(axis=1), -1, whole @ np.array([16, 4, 1]))


def reading_frames(codes: NDArray[np.uint8], min_codons: int) -> list[tuple[int, NDArray[np.int64]]]:
    """Return the start of each open reading frame on this strand, and its codons from ATG to before the stop codon."""
    found = []
    for frame in range(3):
        numbers = codons(codes, frame)
        letters = np.where(numbers < 0, STOP, AMINO_ACIDS[numbers])
        ends = np.flatnonzero(letters == STOP)
        for begin, end in zip(np.append(-1, ends)[:-1] + 1, ends, strict=True):
            starts = np.flatnonzero(letters[begin:end] == METHIONINE)
            if len(starts) and end - begin - starts[0] >= min_codons and numbers[end] >= 0:
                first = begin + int(starts[0])
                found.append((frame + 3 * first, numbers[first:end]))
    return found


def substitutions(codes: NDArray[np.uint8], min_codons: int) -> NDArray[np.int64]:
    """Return all substitutions in the open reading frames of a contig except those in start codons, (V, 5) int64.

    Columns: position from 0, reference and alternative base on the forward strand, kind (codon position, reference and
    alternative base on the gene's strand as one number), and effect (0 synonymous, 1 missense, 2 nonsense).
    """
    frames = [(len(words), False, start, words) for start, words in reading_frames(codes, min_codons)]
    backward = np.where(codes == AMBIGUOUS, codes, codes ^ 1)[::-1]
    frames += [(len(words), True, start, words) for start, words in reading_frames(backward, min_codons)]
    is_taken = np.zeros(len(codes), dtype=bool)
    rows = []
    for length, is_backward, start, words in sorted(frames, key=lambda frame: -frame[0]):
        begin = len(codes) - start - 3 * length if is_backward else start
        if is_taken[begin : begin + 3 * length].any():
            continue
        is_taken[begin : begin + 3 * length] = True
        for position in range(3):
            unit = 4 ** (2 - position)
            reference = words // unit % 4
            for alternative in range(4):
                changed = AMINO_ACIDS[words + (alternative - reference) * unit]
                effect = np.where(changed == STOP, 2, (changed != AMINO_ACIDS[words]).astype(np.int64))
                place = start + 3 * np.arange(length) + position
                if is_backward:
                    place = len(codes) - 1 - place
                alleles = (reference ^ 1, alternative ^ 1) if is_backward else (reference, alternative)
                kind = (position * 4 + reference) * 4 + alternative
                table = np.stack(np.broadcast_arrays(place, *alleles, kind, effect), axis=1)
                rows.append(table[1:][reference[1:] != alternative])
    return np.concatenate(rows) if rows else np.zeros((0, 5), dtype=np.int64)


def matched(found: NDArray[np.int64], effects: tuple[int, int], size: int, rng: np.random.Generator) -> NDArray:
    """Return about `size` substitutions of each of two effects, with equally many of each kind, by position."""
    sizes = np.array([[(part[:, 3] == kind).sum() for kind in range(48)] for part in by_effect(found, effects)])
    shares = np.floor(sizes.min(axis=0) * min(1.0, size / max(1, sizes.min(axis=0).sum()))).astype(int)
    rows = []
    for part in by_effect(found, effects):
        for kind, share in enumerate(shares):
            rows.append(rng.permutation(part[part[:, 3] == kind])[:share])
    chosen = np.concatenate(rows)
    return chosen[np.lexsort(chosen.T[::-1])]


def by_effect(found: NDArray[np.int64], effects: tuple[int, int]) -> list[NDArray[np.int64]]:
    """Return the substitutions of each effect."""
    return [found[found[:, 4] == effect] for effect in effects]


def write_vcf(path: Path, chosen: dict[str, NDArray[np.int64]]) -> None:
    """Write substitutions by contig as a VCF with the INFO field EFFECT."""
    names = ("synonymous", "missense", "nonsense")
    with open(path, "w", encoding="utf-8") as out:
        out.write('##fileformat=VCFv4.2\n##INFO=<ID=EFFECT,Number=A,Type=String,Description="Effect on the protein">\n')
        out.write("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
        for contig, table in chosen.items():
            for place, reference, alternative, _, effect in table.tolist():
                alleles = f"{BASE_ORDER[reference]}\t{BASE_ORDER[alternative]}"
                out.write(f"{contig}\t{place + 1}\t.\t{alleles}\t.\t.\tEFFECT={names[effect]}\n")


def main() -> None:
    """Write the files, and print the scores of Markov chains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta")
    parser.add_argument("--contigs", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--min-codons", type=int, default=300)
    parser.add_argument("--size", type=int, default=3000, help="substitutions of each class of a file, at most")
    options = parser.parse_args()
    genome = read_genome(options.fasta)
    if missing := [name for name in options.contigs if name not in genome]:
        parser.error(f"{options.fasta} has no contig {missing[0]}")
    options.output.mkdir(parents=True, exist_ok=True)
    found = {name: substitutions(genome[name], options.min_codons) for name in options.contigs}
    if not sum(map(len, found.values())):
        parser.error(f"{' '.join(options.contigs)}: no open reading frame; lower --min-codons")
    rest = [codes for name, codes in genome.items() if name not in options.contigs]
    chain = fit_chain(count_kmers(iter(rest), max(ORDERS) + 1), max(ORDERS))
    rng = np.random.default_rng(0)
    for name, effects in (("missense", (0, 1)), ("nonsense", (1, 2))):
        chosen = {contig: matched(table, effects, options.size // len(found), rng) for contig, table in found.items()}
        write_vcf(options.output / f"{name}.vcf", chosen)
        labels = np.concatenate([table[:, 4] == max(effects) for table in chosen.values()]).astype(np.int8)
        print(f"{name}.vcf: {len(labels) - labels.sum():,} + {labels.sum():,} substitutions")
        for order in ORDERS:
            scores = []
            for contig, table in chosen.items():
                odds = np.log(hidden_base_probabilities(chain.of_order(order), genome[contig], table[:, 0], 1)[:, 0])
                rows = np.arange(len(table))
                scores.append(odds[rows, table[:, 2]] - odds[rows, table[:, 1]])
            value, low, high = label_metrics(labels, -np.concatenate(scores), 0)["AUROC"]
            print(f"  Markov order {order}: AUROC {value:.4f} ({low:.4f} … {high:.4f})")
        negative = {"missense": "synonymous", "nonsense": "missense"}[name]
        print(
            f"  dnabert-rm score-variants --model HFDIR --vcf {options.output / name}.vcf --fasta {options.fasta} "
            f"--output scores.csv --labels EFFECT --positive {name} --negative {negative}"
        )


if __name__ == "__main__":
    main()
