"""Command `inspect`: print a summary of a folder of shards, and the bases of random subsequences, as text or JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.decode import make_decoder
from dnabert_rm.data.manifest import SPLITS, Manifest, load_manifest
from dnabert_rm.data.shards import Meta, read_metas, read_segments
from dnabert_rm.genome.intervals import merge
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import ConfigError, DataError
from dnabert_rm.utils.files import check_output_file, write_text
from dnabert_rm.utils.progress import notice

SAMPLE_BASES = 66
_LETTERS = np.frombuffer(b"ATCGN", dtype=np.uint8)


def run(folder: Path, as_json: bool, num_samples: int, seed: int, bed: Path | None = None) -> int:
    """Run `inspect`: print a summary of `folder` as text or as one JSON object, and write held-out ranges to `bed`."""
    manifest = load_manifest(folder)
    if bed is not None:
        check_output_file(bed, overwrite=True, name="--bed")
        if bed.exists():
            raise ConfigError(f"--bed {bed}: exists already; choose another file")
        lines = list(held_out_lines(manifest, folder))
        if not lines:
            raise ConfigError(f"--bed: {folder} holds out nothing; omit it")
        write_text(bed, "".join(lines))
        notice(f"{bed}: {len(lines):,} held-out ranges")
    content = describe(manifest, folder) | {"samples": random_samples(manifest, folder, num_samples, seed)}
    print(json.dumps(content) if as_json else as_text(str(folder), content))
    return 0


def describe(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """Read all shards in `folder` and return a summary that can be written as JSON.

    For each split, the summary has the numbers of shards, segments, tokens and bases. For the whole folder, the summary
    has the tokenizer, the genomes, the numbers of contigs and bases, the number of bases left out for each reason, and
    the data's fingerprint.
    """
    bases = {
        split: unique_bases(meta for shard in shards for meta in read_metas(folder / shard.name))
        for split in SPLITS
        if (shards := [shard for shard in manifest.shards if shard.split == split])
    }
    return summary(manifest, bases)


def summary(manifest: Manifest, bases_of_split: dict[str, int]) -> dict[str, Any]:
    """Return the summary that `describe` returns, without reading shards.

    `bases_of_split` holds the number of bases in each split.
    """
    splits = {}
    for split, bases in bases_of_split.items():
        shards = manifest.shards_of(split)
        splits[split] = {
            "shards": len(shards),
            "segments": sum(len(shard.segments) for shard in shards),
            "tokens": sum(shard.tokens for shard in shards),
            "bases": bases,
        }
    left_out = {reason: int(column.sum()) for reason, column in manifest.contigs.left_out.items()}
    return {
        "tokenizer": {name: value for name, value in vars(manifest.tokenizer).items() if value is not None},
        "genomes": sorted({source.genome for source in manifest.sources}),
        "contigs": len(manifest.contigs),
        "bases": int(manifest.contigs.lengths.sum()),
        "splits": splits,
        "left_out": {reason: bases for reason, bases in sorted(left_out.items()) if bases},
        "fingerprint": manifest.fingerprint,
    }


def held_out_lines(manifest: Manifest, folder: Path) -> Iterator[str]:
    """Yield the lines of a BED file with the segments of the splits val and test.

    Segments that touch or overlap are merged. The name is the split. If there are several genomes, the contig is
    GENOME:NAME, as `build` reads it.
    """
    shards = [shard for shard in manifest.shards if shard.split != "train"]
    metas = [meta for shard in shards for meta in read_metas(folder / shard.name)]
    several = len({source.genome for source in manifest.sources}) > 1
    places = sorted({(meta["genome"], meta["contig"], meta["split"], meta["start"], meta["end"]) for meta in metas})
    for (genome, contig, split), ranges in itertools.groupby(places, lambda place: place[:3]):
        for start, end in merge(np.array([place[3:] for place in ranges], dtype=np.int64)).tolist():
            yield f"{f'{genome}:' if several else ''}{contig}\t{start}\t{end}\t{split}\n"


def unique_bases(metas: Iterable[Meta]) -> int:
    """Return the number of bases covered by segments. Bases shared by neighbouring segments count once."""
    ranges = sorted({(meta["genome"], meta["contig"], meta["start"], meta["end"]) for meta in metas})
    total = 0
    contig = ("", "")
    reached = 0
    for genome, name, start, end in ranges:
        if (genome, name) != contig:
            contig = (genome, name)
            reached = 0
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def random_samples(manifest: Manifest, folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` random subsequences of at most `SAMPLE_BASES` forward-strand bases, with their coordinates.

    Each subsequence is from a random segment. All segments are equally probable, whatever their length.
    """
    segments = [(shard.name, i) for shard in manifest.shards for i in range(len(shard.segments))]
    bits = random.fold(random.key(seed, "inspect"), np.arange(2 * count))
    decode = make_decoder(manifest.tokenizer, folder)
    samples = []
    for index, offset_bits in zip(random.below(bits[:count], len(segments)), bits[count:], strict=True):
        name, number = segments[index]
        segment = next((segment for i, segment in enumerate(read_segments(folder / name)) if i == number), None)
        if segment is None:
            raise DataError(f"{folder / name}: has fewer segments than the manifest lists; run verify")
        _, meta, ids = segment
        codes = decode(ids)
        codes = (codes ^ np.uint8(1))[::-1] if meta.get("strand") == "-" else codes
        first = int(random.below(offset_bits, max(1, len(codes) - SAMPLE_BASES)))
        bases = _LETTERS[codes[first : first + SAMPLE_BASES]].tobytes().decode()
        start = meta["start"] + first
        samples.append(
            {
                "genome": meta["genome"],
                "contig": meta["contig"],
                "split": meta["split"],
                "start": start,
                "end": start + len(bases),
                "bases": bases,
                "shard": name,
            }
        )
    return samples


def as_text(folder: str, content: dict[str, Any]) -> str:
    """Format a summary as text. Random subsequences are listed if `content` has them."""
    tokenizer = content["tokenizer"]
    genomes = content["genomes"]
    kind = f"{tokenizer['k']}-mers" if tokenizer["kind"] == "kmer" else "BPE"
    shown = ", ".join(genomes[:5]) + (f" and {len(genomes) - 5} more" if len(genomes) > 5 else "")
    lines = [
        f"{folder}: {content['bases']:,} bases in {content['contigs']:,} contigs of {shown}; "
        f"{kind}, vocabulary {tokenizer['vocab_size']:,}"
    ]
    for split, counts in content["splits"].items():
        lines.append(f"  {split:5}  " + ", ".join(f"{value:,} {name}" for name, value in counts.items()))
    for reason, bases in content["left_out"].items():
        lines.append(f"  left out, {reason.replace('_', ' ')}: {bases:,} bases")
    lines.append(f"  fingerprint {content['fingerprint']}")
    for sample in content.get("samples", []):
        coordinates = f"{sample['genome']}:{sample['contig']}:{sample['start']}-{sample['end']}"
        lines.append(f"  {coordinates} {sample['split']:5} {sample['bases']}")
    return "\n".join(lines)
