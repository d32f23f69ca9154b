"""FASTA files to a folder of shards and a manifest: the steps in order, each cut into independent tasks."""

from __future__ import annotations

import errno
import functools
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.bpe import MODEL_NAME, load_model
from data_prep.inspect import summary
from data_prep.build.journal import Journal, is_whole
from data_prep.build.options import BuildOptions
from data_prep.parallel import run_all
from data_prep.build.shard_plan import Plan, ShardPlan, bases_of_splits, make_plan
from data_prep.build.scan import joined_contigs, scan_files
from data_prep.build.shard_writer import ContigRef, ShardTask, write_shard
from dnabert_rm.patches.webdataset_patches import tar_writer_class
from data_prep.build.sources import Source
from data_prep.build.decompress import check_starts, is_gzip, uncompressed
from dnabert_rm.utils.errors import DataError
from dnabert_rm.genome.contigs import Contig
from dnabert_rm.genome.kmer import vocab_size
from dnabert_rm.utils.progress import notice, progress_bar
from dnabert_rm.data.manifest import MANIFEST_NAME, ContigInfo, Manifest, ShardInfo, TokenizerInfo
from dnabert_rm.utils.files import sha256_of_file, write_text

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Job:
    """What is to be built where: `bpe_model` is the path of a SentencePiece model, None for k-mers."""

    sources: Sequence[Source]
    options: BuildOptions
    folder: Path
    bpe_model: str | None = None


def build(job: Job, executor: Executor) -> dict[str, Any]:
    """Build, or go on with, a folder of shards; returns the object of `inspect`.

    Raises `ConfigError` or `DataError`. Finished shards then stay for the next run; where there
    are none, nothing stays.
    """
    try:
        return _build(job, Journal(job.folder), executor)
    except OSError as error:
        mend = "free some space" if error.errno in _NO_SPACE else "mend that"
        raise DataError(
            f"{error.filename or job.folder}: {error.strerror}; {mend} and run the same command again, "
            "it goes on from what is finished"
        ) from None


def _build(job: Job, journal: Journal, executor: Executor) -> dict[str, Any]:
    """The steps in order."""
    sources, options, before = job.sources, job.options, _stamps(job.sources)
    check_starts(sources)
    tar_writer_class()  # Imported before workers are forked, so that none has to.
    plain = {i: source.path for i, source in enumerate(sources) if not is_gzip(source.path)}
    infos, pieces = scan_files(sources, plain, options.rna, executor, checksums=True)
    with journal.open(options, infos):
        tokenizer, model = _tokenizer(job, journal.scratch)
        made = uncompressed(sources, journal.scratch, executor)
        pieces |= scan_files(sources, made, options.rna, executor)[1]
        paths = plain | made
        contigs = joined_contigs(sources, paths, pieces)
        plan = make_plan(contigs, options)
        refs = [ContigRef(c.genome, c.name, paths[c.source], sources[c.source].path) for c in contigs]
        shards = _write_shards(options, refs, plan, journal, model, executor)
        if _stamps(sources) != before:
            raise DataError("an input file changed during the build; leave them alone and build into an empty folder")
        if model is not None:
            os.replace(model, job.folder / MODEL_NAME)
        rows = _contig_infos(contigs, plan, shards, options)
        manifest = Manifest(tokenizer, infos, rows, shards, options.to_json())
        write_text(job.folder / MANIFEST_NAME, manifest.to_json())
    return summary(manifest, bases_of_splits(plan.segments))


def _stamps(sources: Sequence[Source]) -> list[tuple[int, int]]:
    """Size and time of every input."""
    return [(stat.st_size, stat.st_mtime_ns) for stat in (os.stat(source.path) for source in sources)]


def _tokenizer(job: Job, scratch: Path) -> tuple[TokenizerInfo, str | None]:
    """What the ids mean, and a BPE model's copy in the scratch folder."""
    if job.options.k is not None:
        return TokenizerInfo("kmer", vocab_size(job.options.k), job.options.k), None
    assert job.bpe_model is not None
    size = load_model(job.bpe_model).vocab_size()
    if job.options.strand == "forward":
        notice(
            "BPE ids have no reverse strand, shifted start or non-overlapping view; --strand both stores both strands"
        )
    copy = scratch / MODEL_NAME
    shutil.copyfile(job.bpe_model, copy)
    return TokenizerInfo("bpe", size, None, None, MODEL_NAME, sha256_of_file(copy)), str(copy)


def _write_shards(
    options: BuildOptions,
    refs: Sequence[ContigRef],
    plan: Plan,
    journal: Journal,
    bpe_model: str | None,
    executor: Executor,
) -> list[ShardInfo]:
    """Write the shards that are not finished yet; returns all, in order."""
    done = _finished(plan, journal, executor)
    if done:
        notice(f"{journal.folder}: {len(done)} of {len(plan.shards)} shards are there already")
    open_shards = [shard for shard in plan.shards if shard.name not in done]
    tasks = [_task(shard, refs, options, journal, bpe_model) for shard in open_shards]
    bases = [int((shard.segments.end - shard.segments.start).sum()) for shard in open_shards]
    with progress_bar("shards", sum(bases), "base") as bar:
        for index, info in run_all(executor, write_shard, tasks):
            done[info.name] = info
            bar.update(bases[index])
    return [done[shard.name] for shard in plan.shards]


def _task(
    shard: ShardPlan, refs: Sequence[ContigRef], options: BuildOptions, journal: Journal, bpe_model: str | None
) -> ShardTask:
    used = {number: refs[number] for number in np.unique(shard.segments.contig).tolist()}
    return ShardTask(shard, used, options, str(journal.folder), str(journal.scratch), bpe_model)


def _finished(plan: Plan, journal: Journal, executor: Executor) -> dict[str, ShardInfo]:
    """The shards of the plan that an earlier run finished and that still have their checksum."""
    noted = journal.noted_shards()
    known = [noted[shard.name] for shard in plan.shards if shard.name in noted]
    checks = run_all(executor, functools.partial(is_whole, journal.folder), known)
    return {known[i].name: known[i] for i, whole in checks if whole}


def _contig_infos(
    contigs: Sequence[Contig], plan: Plan, shards: Sequence[ShardInfo], options: BuildOptions
) -> list[ContigInfo]:
    """Length, tokens and bases left out of every contig."""
    tokens = np.zeros(len(contigs), dtype=np.int64)
    for shard, info in zip(plan.shards, shards, strict=True):
        np.add.at(tokens, np.repeat(shard.segments.contig, options.strands), info.segments)
    return [
        ContigInfo(contig.genome, contig.name, contig.length, int(count), left_out)
        for contig, count, left_out in zip(contigs, tokens, plan.left_out, strict=True)
    ]
