"""Train a SentencePiece BPE model on a sample of the genomes. BPE is DNABERT-2's tokenizer, used here as a baseline.

BPE ids can't be reverse-complemented or shifted when shards are loaded: the reverse strand splits into different
tokens, and a window can't start inside a token. Therefore `build --strand both` also stores the reverse strand.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.sharding.decompress import check_headers, decompress_sources, is_gzip
from data_prep.sharding.scan import join_contigs, scan_files
from data_prep.sharding.segments import cut_runs, long_enough
from data_prep.sharding.sources import Source
from dnabert_rm.genome.bpe_model import MODEL_NAME, missing_bases
from dnabert_rm.genome.contigs import Contig, RegionReaders, pure_codes
from dnabert_rm.genome.intervals import subtract
from dnabert_rm.genome.kmer import SPECIAL_TOKENS, codes_to_bases
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import NO_SPACE, ConfigError

SENTENCE_BASES = 4096
_MAX_PIECE_BASES = 16


def train_from_files(
    sources: Sequence[Source], out: Path, vocab_size: int, sample_bases: int, seed: int, rna: bool, executor: Executor
) -> None:
    """Run `train-bpe`: scan the FASTA files, sample sequences, and write a BPE model to the file `out`.

    Raises `ConfigError` for an unusable setting or output folder, and `DataError` for an unusable input file. After an
    error, the file `out` is unchanged.
    """
    if sample_bases < 1:
        raise ConfigError(f"--sample-bases {sample_bases}: must be at least 1")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: {out.parent} is not a folder; create it first")
    check_headers(sources)
    with _explain_write_errors(out), tempfile.TemporaryDirectory(prefix=".bpe-", dir=out.parent) as scratch:
        paths = {i: source.path for i, source in enumerate(sources) if not is_gzip(source.path)}
        paths |= decompress_sources(sources, Path(scratch), executor)
        contigs = join_contigs(sources, paths, scan_files(sources, paths, rna, executor)[1])
        files = [(paths[i], source.path) for i, source in enumerate(sources)]
        model = train(sample_sentences(contigs, files, sample_bases, seed), vocab_size)
        temporary = Path(scratch) / MODEL_NAME
        temporary.write_bytes(model)
        temporary.replace(out)
    print(
        f"{out}: BPE model with {vocab_size:,} ids, "
        f"trained on about {min(sample_bases, sum(c.length for c in contigs)):,} bases"
    )


@contextlib.contextmanager
def _explain_write_errors(out: Path) -> Iterator[None]:
    """Raise `ConfigError` if the model or temporary files can't be written to the folder of `out`."""
    try:
        yield
    except OSError as error:
        fix = "free some space there" if error.errno in NO_SPACE else "choose another folder"
        raise ConfigError(f"--out {out}: {out.parent} cannot be written ({error.strerror}); {fix}") from None


def sample_sentences(
    contigs: Sequence[Contig], paths: Sequence[tuple[str, str]], sample_bases: int, seed: int
) -> Iterator[str]:
    """Yield a random selection of sequences of at most `SENTENCE_BASES` unambiguous bases, in input order.

    Memory holds only the bases of the current sequence, and the coordinates of all sequences that can be selected.

    Args:
        contigs: Contigs of all input files.
        paths: A pair for each input file: the path of the uncompressed file, and the file name for messages.
        sample_bases: Total number of bases to sample, rounded up to whole sequences.
        seed: Seed of the random selection.
    """
    table = np.concatenate([_sentence_table(number, contig) for number, contig in enumerate(contigs)])
    order = random.permutation(random.key(seed, "bpe sample"), len(table))
    sizes = np.cumsum((table[:, 2] - table[:, 1])[order])
    chosen = np.sort(order[: np.searchsorted(sizes, sample_bases) + 1])
    with RegionReaders() as readers:
        for number, start, end, anchor_byte, anchor_base in table[chosen].tolist():
            reader = readers.of(*paths[contigs[number].source])
            letters = reader.read(number, start, end, (anchor_byte, anchor_base))
            yield codes_to_bases(pure_codes(letters)).decode()


def _sentence_table(number: int, contig: Contig) -> NDArray[np.int64]:
    """Return a table of the sequences that can be sampled from a contig, shape (n, 5) for n sequences.

    Columns: the contig's index (`number`), the start and end of the sequence in the contig, a byte offset in the file,
    and the position in the contig of the base at this offset. The offset is at or before the sequence's start, so
    reading can begin there.
    """
    runs = subtract(np.array([[0, contig.length]]), contig.gaps)
    pieces = cut_runs(runs[long_enough(runs, 1, _MAX_PIECE_BASES)], 1, SENTENCE_BASES)
    return np.column_stack([np.full(len(pieces), number), pieces, contig.anchors_of(pieces[:, 0])])


def train(sentences: Iterator[str], vocab_size: int) -> bytes:
    """Train a BPE model with `vocab_size` ids, special tokens included. Return the content of the model file.

    `sentences` are strings of A, C, G and T. Raises `ConfigError` if `sentences` have too few bases for
    `vocab_size` ids, or lack one of the four bases.
    """
    import sentencepiece

    out = io.BytesIO()
    pad, unk, cls, sep, mask = SPECIAL_TOKENS
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=out,
            model_type="bpe",
            vocab_size=vocab_size,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=pad,
            unk_piece=unk,
            bos_piece=cls,
            eos_piece=sep,
            control_symbols=[mask],
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_unicode_script=False,
            split_by_whitespace=False,
            split_by_number=False,
            max_sentence_length=2 * SENTENCE_BASES,
            max_sentencepiece_length=_MAX_PIECE_BASES,
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except RuntimeError as error:
        # The message has the form "INTERNAL: file(line) [condition] Reason."
        reason = " ".join(str(error).rpartition("] ")[2].split()) or "the sample is too small"
        raise ConfigError(
            f"--vocab-size {vocab_size}: {reason.rstrip('.')}; lower --vocab-size or raise --sample-bases"
        ) from None
    content = out.getvalue()
    if missing := missing_bases(sentencepiece.SentencePieceProcessor(model_proto=content)):
        raise ConfigError(f"--sample-bases: the sample has no {missing}; raise it, or pass other genomes")
    return content
