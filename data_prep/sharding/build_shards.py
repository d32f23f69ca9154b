"""Command `build`: scan and decompress the inputs, plan the shards, and write the shards and the manifest."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.inspect import summary
from data_prep.parallel import run_all
from data_prep.sharding.build_record import BuildRecord, is_intact
from data_prep.sharding.decompress import check_headers, decompress_sources, is_gzip
from data_prep.sharding.options import BuildOptions
from data_prep.sharding.regions import read_regions
from data_prep.sharding.scan import join_contigs, scan_files
from data_prep.sharding.shard_plan import Plan, ShardPlan, bases_of_splits, make_plan
from data_prep.sharding.shard_writer import ContigRef, ShardTask, write_shard
from data_prep.sharding.sources import Source
from dnabert_rm.data.manifest import MANIFEST_NAME, ContigInfo, Manifest, ShardInfo, TokenizerInfo
from dnabert_rm.genome.bpe_model import MODEL_NAME, load_model
from dnabert_rm.genome.contigs import Contig
from dnabert_rm.genome.kmer import vocab_size
from dnabert_rm.patches.webdataset_patches import tar_writer_class
from dnabert_rm.utils.errors import DataError
from dnabert_rm.utils.files import NO_SPACE, sha256_of_file, write_text
from dnabert_rm.utils.progress import notice, progress_bar


@dataclass(frozen=True)
class Job:
    """Inputs, options and output folder of a build.

    `bpe_model` is the path of a SentencePiece model, or None for k-mers. `regions` and `exclude_regions` are the paths
    of the BED files that `options` names.
    """

    sources: Sequence[Source]
    options: BuildOptions
    folder: Path
    bpe_model: str | None = None
    regions: Sequence[str] = ()
    exclude_regions: Sequence[str] = ()


def build(job: Job, executor: Executor) -> dict[str, Any]:
    """Build a folder of shards, or resume an unfinished build. Return the summary that `inspect` prints.

    Raises `ConfigError` or `DataError`. After an error, finished shards are kept, so that the next run can resume the
    build. If no shard is finished, all files of this build are removed.
    """
    try:
        return _build(job, BuildRecord(job.folder), executor)
    except OSError as error:
        fix = "free disk space" if error.errno in NO_SPACE else "fix the cause"
        raise DataError(
            f"{error.filename or job.folder}: {error.strerror}; {fix} and run the same command again "
            "(finished shards are kept)"
        ) from None


def _build(job: Job, record: BuildRecord, executor: Executor) -> dict[str, Any]:
    sources = job.sources
    options = job.options
    sizes_and_times = _sizes_and_times(sources)
    check_headers(sources)
    regions = read_regions(job.regions, job.exclude_regions)
    tar_writer_class()  # Imported before workers are forked, so that they inherit the import.
    uncompressed = {i: source.path for i, source in enumerate(sources) if not is_gzip(source.path)}
    infos, pieces = scan_files(sources, uncompressed, options.rna, executor, checksums=True)
    with record.open(options, infos):
        tokenizer, model = _prepare_tokenizer(job, record.scratch)
        decompressed = decompress_sources(sources, record.scratch, executor)
        pieces |= scan_files(sources, decompressed, options.rna, executor)[1]
        paths = uncompressed | decompressed
        contigs = join_contigs(sources, paths, pieces)
        plan = make_plan(contigs, options, regions)
        refs = [ContigRef(c.genome, c.name, paths[c.source], sources[c.source].path) for c in contigs]
        shards = _write_shards(options, refs, plan, record, model, executor)
        if _sizes_and_times(sources) != sizes_and_times:
            raise DataError(
                f"--out {job.folder}: an input file changed during the build; build again, into an empty folder"
            )
        if model is not None:
            os.replace(model, job.folder / MODEL_NAME)
        rows = _contig_infos(contigs, plan, shards, options)
        manifest = Manifest(tokenizer, infos, rows, shards, options.to_json())
        write_text(job.folder / MANIFEST_NAME, manifest.to_json())
    return summary(manifest, bases_of_splits(plan.segments))


def _sizes_and_times(sources: Sequence[Source]) -> list[tuple[int, int]]:
    """Return the size and modification time of every input file, to detect changes during the build."""
    return [(stat.st_size, stat.st_mtime_ns) for stat in (os.stat(source.path) for source in sources)]


def _prepare_tokenizer(job: Job, scratch: Path) -> tuple[TokenizerInfo, str | None]:
    """Return the tokenizer's manifest entry, and the path of a copy of the BPE model.

    The copy is made in `scratch`, the folder for temporary files. For k-mers the path is None.
    """
    if job.options.k is not None:
        return TokenizerInfo("kmer", vocab_size(job.options.k), job.options.k), None
    assert job.bpe_model is not None
    size = load_model(job.bpe_model).vocab_size()
    if job.options.strand == "forward":
        notice(
            "training can't reverse-complement or shift BPE ids; pass --strand both to also store the reverse strand"
        )
    copy = scratch / MODEL_NAME
    shutil.copyfile(job.bpe_model, copy)
    return TokenizerInfo("bpe", size, None, None, MODEL_NAME, sha256_of_file(copy)), str(copy)


def _write_shards(
    options: BuildOptions,
    refs: Sequence[ContigRef],
    plan: Plan,
    record: BuildRecord,
    bpe_model: str | None,
    executor: Executor,
) -> list[ShardInfo]:
    """Write all shards that are not finished yet.

    Return the `ShardInfo` (manifest entry) of every shard in `plan`, in the order of `plan`.
    """
    infos = _finished_shards(plan, record, executor)
    if infos:
        notice(f"{record.folder}: {len(infos)} of {len(plan.shards)} shards are already finished")
    missing = [shard for shard in plan.shards if shard.name not in infos]
    tasks = [_shard_task(shard, refs, options, record, bpe_model) for shard in missing]
    bases = [int((shard.segments.end - shard.segments.start).sum()) for shard in missing]
    with progress_bar("shards", sum(bases), "base") as bar:
        for index, info in run_all(executor, write_shard, tasks):
            infos[info.name] = info
            bar.update(bases[index])
    return [infos[shard.name] for shard in plan.shards]


def _finished_shards(plan: Plan, record: BuildRecord, executor: Executor) -> dict[str, ShardInfo]:
    """Return the intact shards of an earlier run of this build, keyed by name."""
    recorded = record.finished_shards()
    known = [recorded[shard.name] for shard in plan.shards if shard.name in recorded]
    checks = run_all(executor, functools.partial(is_intact, record.folder), known)
    return {known[i].name: known[i] for i, intact in checks if intact}


def _shard_task(
    shard: ShardPlan, refs: Sequence[ContigRef], options: BuildOptions, record: BuildRecord, bpe_model: str | None
) -> ShardTask:
    used = {number: refs[number] for number in np.unique(shard.segments.contig).tolist()}
    return ShardTask(shard, used, options, str(record.folder), str(record.scratch), bpe_model)


def _contig_infos(
    contigs: Sequence[Contig], plan: Plan, shards: Sequence[ShardInfo], options: BuildOptions
) -> list[ContigInfo]:
    """Return each contig's manifest entry: length, number of tokens, and number of bases left out for each reason."""
    tokens = np.zeros(len(contigs), dtype=np.int64)
    for shard, info in zip(plan.shards, shards, strict=True):
        np.add.at(tokens, np.repeat(shard.segments.contig, options.strands), info.segments)
    return [
        ContigInfo(contig.genome, contig.name, contig.length, int(count), left_out)
        for contig, count, left_out in zip(contigs, tokens, plan.left_out, strict=True)
    ]
