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
from data_prep.sharding.shard_plan import Plan, bases_of_splits, make_plan
from data_prep.sharding.shard_writer import ContigRefs, ShardTask, SourceRef, write_shard
from data_prep.sharding.sources import Source
from dnabert_rm.data.columns import ContigTable
from dnabert_rm.data.manifest import FORMAT_VERSION, Manifest, ShardInfo, TokenizerInfo, write_manifest
from dnabert_rm.genome.bpe_model import MODEL_NAME, load_model
from dnabert_rm.genome.contigs import Contig
from dnabert_rm.genome.kmer import vocab_size
from dnabert_rm.patches.webdataset_patches import tar_writer_class
from dnabert_rm.utils.errors import NO_SPACE, DataError
from dnabert_rm.utils.files import sha256_of_file
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
        if (earlier := record.finished_manifest()) is not None and earlier.format_version != FORMAT_VERSION:
            _check_earlier_version(earlier, record, executor)
            return summary(earlier, bases_of_splits(plan.segments))
        refs = [SourceRef(source.genome, paths[number], source.path) for number, source in enumerate(sources)]
        tasks = _shard_tasks(job, record, contigs, refs, plan, model)
        shards = _write_shards(tasks, record, executor)
        if _sizes_and_times(sources) != sizes_and_times:
            raise DataError(
                f"--out {job.folder}: an input file changed during the build; build again, into an empty folder"
            )
        if model is not None:
            os.replace(model, job.folder / MODEL_NAME)
        table = _contig_table(contigs, plan, shards, options)
        manifest = write_manifest(job.folder, Manifest(tokenizer, infos, table, shards, options.to_json()))
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


def _check_earlier_version(manifest: Manifest, record: BuildRecord, executor: Executor) -> None:
    """Check the shards of a finished build of an earlier format version. It is not changed, so it stays usable.

    Raises `DataError` if a shard is missing or damaged, because this version would write other bytes.
    """
    infos = _finished_shards([shard.name for shard in manifest.shards], record, executor)
    for shard in manifest.shards:
        if shard.name not in infos:
            raise DataError(
                f"{record.folder / shard.name}: is missing or damaged, and format version "
                f"{manifest.format_version} is no longer written; restore the file, or build into another folder"
            )
    notice(f"{record.folder}: {len(infos)} shards of format version {manifest.format_version} are already finished")


def _shard_tasks(
    job: Job,
    record: BuildRecord,
    contigs: Sequence[Contig],
    sources: list[SourceRef],
    plan: Plan,
    bpe_model: str | None,
) -> list[ShardTask]:
    """Return one task for each shard in `plan`, in the order of `plan`."""
    source_of = np.array([contig.source for contig in contigs])
    tasks = []
    for shard in plan.shards:
        numbers = np.unique(shard.segments.contig)
        refs = ContigRefs(numbers, [contigs[number].name for number in numbers.tolist()], source_of[numbers])
        tasks.append(ShardTask(shard, refs, sources, job.options, str(record.folder), str(record.scratch), bpe_model))
    return tasks


def _write_shards(tasks: Sequence[ShardTask], record: BuildRecord, executor: Executor) -> list[ShardInfo]:
    """Write all shards that are not finished yet.

    Return the `ShardInfo` (manifest entry) of every shard, in the order of `tasks`.
    """
    infos = _finished_shards([task.shard.name for task in tasks], record, executor)
    if infos:
        notice(f"{record.folder}: {len(infos)} of {len(tasks)} shards are already finished")
    missing = [task for task in tasks if task.shard.name not in infos]
    bases = [int((task.shard.segments.end - task.shard.segments.start).sum()) for task in missing]
    with progress_bar("shards", sum(bases), "base") as bar:
        for index, info in run_all(executor, write_shard, missing):
            infos[info.name] = info
            bar.update(bases[index])
    return [infos[task.shard.name] for task in tasks]


def _finished_shards(names: Sequence[str], record: BuildRecord, executor: Executor) -> dict[str, ShardInfo]:
    """Return the intact shards of an earlier run of this build, keyed by name."""
    recorded = record.finished_shards()
    known = [recorded[name] for name in names if name in recorded]
    checks = run_all(executor, functools.partial(is_intact, record.folder), known)
    return {known[i].name: known[i] for i, intact in checks if intact}


def _contig_table(
    contigs: Sequence[Contig], plan: Plan, shards: Sequence[ShardInfo], options: BuildOptions
) -> ContigTable:
    """Return the contigs of the manifest: lengths, numbers of tokens, and numbers of bases left out by reason."""
    tokens = np.zeros(len(contigs), dtype=np.int64)
    for shard, info in zip(plan.shards, shards, strict=True):
        np.add.at(tokens, np.repeat(shard.segments.contig, options.strands), info.segments)
    genomes = list(dict.fromkeys(contig.genome for contig in contigs))
    numbers = {genome: number for number, genome in enumerate(genomes)}
    return ContigTable.from_columns(
        genomes,
        genome=np.array([numbers[contig.genome] for contig in contigs]),
        names=[contig.name for contig in contigs],
        lengths=np.array([contig.length for contig in contigs]),
        tokens=tokens,
        left_out=plan.left_out,
    )
