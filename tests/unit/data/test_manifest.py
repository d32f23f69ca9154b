"""The manifest: round trip, fingerprint, and errors of an invalid one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from support import random_bases, write_prepared

from dnabert_rm.data.columns import ContigTable
from dnabert_rm.data.manifest import load_manifest, write_manifest
from dnabert_rm.utils.errors import DataError


@pytest.fixture()
def prepared(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    write_prepared(tmp_path / "prepared", [[random_bases(rng, 50)], [random_bases(rng, 60)]], splits={1: "val"})
    return tmp_path / "prepared"


def change(folder: Path, edit) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_round_trip_and_fingerprint(prepared: Path) -> None:
    manifest = load_manifest(prepared)
    text = (prepared / "manifest.json").read_bytes()
    assert manifest.fingerprint == hashlib.sha256(text).hexdigest()
    assert write_manifest(prepared, manifest).fingerprint == manifest.fingerprint
    assert (prepared / "manifest.json").read_bytes() == text
    first, *others = manifest.contigs
    longer = ContigTable.from_rows([dataclasses.replace(first, length=51), *others])
    changed = write_manifest(prepared, dataclasses.replace(manifest, contigs=longer))
    assert changed.fingerprint == load_manifest(prepared).fingerprint != manifest.fingerprint
    assert load_manifest(prepared).contigs[0].length == 51


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.update(format="other"), "format is not"),
        (lambda c: c.update(format_version=99), "format version 99"),
        (lambda c: c.pop("columns"), "columns"),
        (lambda c: c["columns"].pop("contig_length"), "contig_length"),
        (lambda c: c["columns"]["contig_length"].update(rows=3), "columns of contigs have different lengths"),
        (lambda c: c["columns"].pop("segment_tokens"), "segment_tokens"),
        (lambda c: c["columns"]["segment_tokens"].update(rows=10**12), "another size than in the manifest"),
        (lambda c: c["columns"]["contig_name"].update(rows="x"), "numbers of rows that are not integers"),
        (lambda c: c.update(genomes=[{}]), "the name of a genome is not a string"),
        (lambda c: c["columns"]["segment_tokens"].update(sha256="0" * 64), "segment_tokens does not match"),
        (lambda c: c.update(more=1), "unknown key 'more'"),
        (lambda c: c["shards"][0].update(name="../../etc/shard.tar"), "not a plain file name"),
        (lambda c: c["shards"][0].update(name="pipe:cat x.tar"), "not a plain file name"),
        (lambda c: c["shards"][1].update(name=c["shards"][0]["name"]), "have the same name"),
        (lambda c: c["shards"][0].update(split="dev"), "unknown split"),
        (lambda c: c["shards"][0].update(sha256="0"), "is not 64 lower-case hexadecimal digits"),
        (lambda c: c["shards"][0].update(segments=2), "its shards have 3 segments, and columns.npz has 2"),
        (lambda c: c["shards"][0].update(segments=[1]), "not a valid manifest"),
        (lambda c: c["shards"][0].update(segments=0), "its shards have 1 segments"),
        (
            lambda c: [s.update(segments=n) for s, n in zip(c["shards"], (0, 2), strict=True)],
            "a shard without segments",
        ),
        (lambda c: c["tokenizer"].update(k=9), "k from 3 to 8"),
        (lambda c: c["tokenizer"].update(vocab_size=7), "vocab_size 7"),
        (lambda c: c["tokenizer"].update(model="../evil.model"), "plain file name"),
    ],
)
def test_an_invalid_manifest_names_the_fault(prepared: Path, edit, reason: str) -> None:
    change(prepared, edit)
    with pytest.raises(DataError, match=reason):
        load_manifest(prepared)


def test_a_missing_manifest_and_a_missing_split_are_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; pass a folder"):
        load_manifest(tmp_path)
    with pytest.raises(DataError, match=r"no shards for split 'test' .*train, val"):
        load_manifest(prepared).shards_of("test")
