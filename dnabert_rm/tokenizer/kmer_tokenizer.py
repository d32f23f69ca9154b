"""Hugging Face tokenizer for k-mers: converts raw DNA to `[CLS]` k-mers `[SEP]`.

How text is encoded:
- Bases in either case become k-mers with stride 1, or with stride k if `overlapping=False`.
- A k-mer that covers any other letter (N, other IUPAC codes, U, …) is `[UNK]`.
- White space separates sequences, and no k-mer crosses it. So DNABERT's notation, k-mers separated by spaces,
  gives one token per word. At k = 6, "ACGTAC CGTACG" gives the same ids as the raw sequence "ACGTACG".
- A sequence of fewer than k letters gives no token: "ACG" at k = 6 is `[CLS] [SEP]`.
- A special token in the text is encoded as that token, and no k-mer crosses it. So "ACGTAC[MASK]GTACGT" is two k-mers
  around one masked token, which stands for unknown bases.

Decoding joins k-mers that overlap and writes N for a base that only `[UNK]` tokens cover. It writes a space between
adjacent tokens that do not overlap. Encoding the decoded text gives the same ids.

`save_pretrained` writes `vocab.txt`, identical to DNABERT's, and a `tokenizer.json` for users without this package.
`AutoTokenizer` loads `tokenizer.json` without remote code and encodes raw DNA to the same ids, but much more slowly.
For speed, load the folder with `KmerTokenizer.from_pretrained`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import BatchEncoding, PreTrainedTokenizer

from dnabert_rm.genome import kmer
from dnabert_rm.tokenizer.vocabulary_files import (
    STOCK_FILE,
    VOCAB_FILE,
    name_stock_class,
    read_k,
    write_tokenizer_files,
)
from dnabert_rm.tokenizer.windows import pad_rows, padded_width
from dnabert_rm.utils.errors import CheckpointError

_WHITE_SPACE = b" \t\n\r\x0b\x0c"
_SPECIAL_NAMES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
# Options that only transformers' general path supports.
_GENERAL_OPTIONS = ("is_split_into_words", "return_overflowing_tokens", "return_special_tokens_mask", "return_length")


@lru_cache
def _vocabulary(k: int) -> dict[str, int]:
    """Return the mapping from tokens to ids, in id order. The mapping is cached, so callers must not change it."""
    return {token: index for index, token in enumerate(kmer.vocabulary(k))}


@lru_cache
def _tokens(k: int) -> tuple[str, ...]:
    return tuple(_vocabulary(k))


class KmerTokenizer(PreTrainedTokenizer):
    """K-mer tokenizer; the module's docstring describes how text is encoded.

    `token_type_ids` are returned only on request. For a single sequence they are all 0. If they are missing, BERT
    assumes zeros. ModernBERT does not use them.

    Args:
        k: Bases per token; by default read from `vocab_file` or `tokenizer_file`.
        vocab_file: Path of a `vocab.txt`.
        tokenizer_file: Path of a `tokenizer.json`, which is read if there is no `vocab_file`.
        overlapping: Whether tokens have stride 1; otherwise stride k.

    Raises `CheckpointError` if neither k nor a file is given, if k contradicts the file, or if the file is not a k-mer
    vocabulary. `tokenizer.json` is also accepted, because transformers 5 saves most tokenizers in this file only.
    """

    vocab_files_names = {"vocab_file": VOCAB_FILE}  # noqa: RUF012 (as transformers requires)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, k: int | None = None, vocab_file: str | None = None, overlapping: bool = True, **kwargs: Any):
        path = vocab_file or kwargs.pop("tokenizer_file", None)
        file_k = k if path is None else read_k(path)
        if file_k is None:
            name = kwargs.get("name_or_path") or "KmerTokenizer"
            raise CheckpointError(
                f"{name}: no {VOCAB_FILE} or {STOCK_FILE} found and no k given; add the "
                f"{VOCAB_FILE} that was used for pretraining, or pass k"
            )
        if k not in (None, file_k):
            raise CheckpointError(
                f"{path}: holds {file_k}-mers, but k = {k} was passed or is in tokenizer_config.json; set k = {file_k}"
            )
        self.k = kmer.check_k(file_k)
        self.overlapping = overlapping
        # These options only describe where the files were loaded from.
        for option in ("tokenizer_file", "is_local", "local_files_only"):
            kwargs.pop(option, None)
        special = dict(zip(_SPECIAL_NAMES, kmer.SPECIAL_TOKENS, strict=True))
        fixed = {"special_tokens_pattern": "cls_sep", "model_input_names": self.model_input_names}
        super().__init__(**(fixed | special | kwargs), k=file_k, overlapping=overlapping)

    @property
    def vocab_size(self) -> int:
        """Number of ids, not counting tokens that a user has added."""
        return kmer.vocab_size(self.k)

    @property
    def step(self) -> int:
        """Stride in bases from one token to the next."""
        return 1 if self.overlapping else self.k

    def get_vocab(self) -> dict[str, int]:
        """Return the mapping from tokens to ids, added tokens included."""
        return _vocabulary(self.k) | self._added_tokens_encoder

    # ---- encoding: a fast path for plain texts, and the general path of transformers

    def token_ids(self, texts: Sequence[str]) -> list[NDArray]:
        """Return the ids of each text without `[CLS]` and `[SEP]`: one array (tokens,), uint16 or uint32, per text.

        If no text has white space or special tokens, all texts are encoded together as one array, which is then split.
        """
        letters = [_letters(text) for text in texts]
        joined = b"".join(letters)
        has_user_tokens = len(self._added_tokens_encoder) > kmer.NUM_SPECIAL
        if has_user_tokens or b"[" in joined or len(joined.translate(None, _WHITE_SPACE)) < len(joined):
            return [self._ids_of_mixed_text(text) for text in texts]
        ids = kmer.encode(joined, self.k)
        bounds = np.cumsum([0, *map(len, letters)]).tolist()
        return [ids[start : max(start, end - self.k + 1) : self.step] for start, end in pairwise(bounds)]

    def token_ranges(self, text: str) -> NDArray[np.int64]:
        """Return the half-open range of bases that each token of a text without spaces predicts, shape (T, 2).

        A k-mer predicts the k bases that it covers. With non-overlapping k-mers, up to k - 1 bases after the last
        token are in no k-mer. The last token also predicts these bases.
        """
        starts = np.arange(0, max(0, len(text) - self.k + 1), self.step)
        ranges = np.stack([starts, starts + self.k], axis=1)
        ranges[-1:, 1] = len(text)
        return ranges

    def _ids_of_mixed_text(self, text: str) -> NDArray:
        """Return the ids of one text that may contain white space and special tokens, shape (tokens,)."""
        parts: list[NDArray] = [np.empty(0, dtype=kmer.id_dtype(len(self)))]
        for piece in [text] if self.split_special_tokens else self.tokens_trie.split(text):
            if piece in self._added_tokens_encoder and not self.split_special_tokens:
                parts.append(np.array([self._added_tokens_encoder[piece]], dtype=parts[0].dtype))
            else:
                parts += [kmer.encode(run, self.k)[:: self.step] for run in _letters(piece).split()]
        return np.concatenate(parts)

    def _encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:  # type: ignore[override]
        """Implement `tokenizer(…)`. Plain strings are encoded here, other inputs by transformers' slower code."""
        texts = [text] if isinstance(text, str) else text
        plain = text_pair is None and isinstance(texts, list | tuple) and all(isinstance(one, str) for one in texts)
        general = any(options.get(name) for name in _GENERAL_OPTIONS) or options["truncation_strategy"] == "only_second"
        splits = options.get("split_special_tokens", self.split_special_tokens) != self.split_special_tokens
        if isinstance(text, list | tuple) and not text:
            return BatchEncoding({name: [] for name in self.model_input_names})
        if not plain or general or splits:
            return super()._encode_plus(text, text_pair, **options)
        rows = self._rows(texts, options)
        tensors = options.get("return_tensors")
        columns = self._columns(rows, as_lists=tensors is None, options=options)
        if tensors is None and isinstance(text, str):
            columns = {name: column[0] for name, column in columns.items()}
        return BatchEncoding(columns, tensor_type=tensors)

    def _rows(self, texts: Sequence[str], options: dict[str, Any]) -> list[NDArray[np.int64]]:
        """Return one array of ids per text, (tokens,) int64, with special tokens and truncation if requested."""
        num_special = 2 if options.get("add_special_tokens", True) else 0
        ids = self.token_ids(texts)
        max_length = options.get("max_length")
        longest = max(map(len, ids)) + num_special
        if max_length and longest > max_length and options["truncation_strategy"] != "do_not_truncate":
            max_tokens = max(0, max_length - num_special)
            keep_end = self.truncation_side == "left"
            ids = [row[max(0, len(row) - max_tokens) :] if keep_end else row[:max_tokens] for row in ids]
        elif longest > self.model_max_length:
            self._eventual_warn_about_too_long_sequence([0] * longest, max_length, options.get("verbose", True))
        if not num_special:
            return [row.astype(np.int64) for row in ids]
        first = np.array([self.cls_token_id])
        last = np.array([self.sep_token_id])
        return [np.concatenate((first, row, last), dtype=np.int64) for row in ids]

    def _columns(self, rows: list[NDArray[np.int64]], as_lists: bool, options: dict[str, Any]) -> dict[str, Any]:
        """Return `input_ids` and other requested columns, as lists or as int64 arrays.

        The arrays have shape (B, W) for B texts that are padded to W tokens. Lists are padded only if requested.
        """
        ids: Any
        mask: Any
        multiple = options.get("pad_to_multiple_of") or 1
        width = padded_width(rows, options["padding_strategy"].value, options.get("max_length"), multiple)
        if width is None and as_lists:
            ids = [row.tolist() for row in rows]
            mask = [[1] * len(row) for row in rows]
        else:
            ids, mask = pad_rows(rows, width, left=(options.get("padding_side") or self.padding_side) == "left")
            if as_lists:
                ids = ids.tolist()
                mask = mask.tolist()
        columns = {"input_ids": ids}
        if self._returns("token_type_ids", options):
            # A single sequence has type 0 everywhere, including padding.
            columns["token_type_ids"] = [[0] * len(row) for row in ids] if as_lists else np.zeros_like(ids)
        if self._returns("attention_mask", options):
            columns["attention_mask"] = mask
        return columns

    def _returns(self, name: str, options: dict[str, Any]) -> bool:
        requested = options.get(f"return_{name}")
        return name in self.model_input_names if requested is None else requested

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        """Return the k-mers of a text without special tokens. Only transformers' slower code calls this method."""
        runs = re.split(f"[{_WHITE_SPACE.decode()}]", text)
        return [run[i : i + self.k] for run in runs for i in range(0, len(run) - self.k + 1, self.step)]

    def _convert_token_to_id(self, token: str) -> int:
        return _vocabulary(self.k).get(token.upper(), kmer.UNK_ID)

    # ---- decoding

    def _convert_id_to_token(self, index: int) -> str:
        return _tokens(self.k)[index if 0 <= index < self.vocab_size else kmer.UNK_ID]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Convert tokens to text, in the format of `decode`."""
        return self._decode([self._convert_token_to_id_with_added_voc(token) for token in tokens])

    def _decode(  # type: ignore[override]
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **_: Any
    ) -> str:
        """Decode ids to text. `skip_special_tokens` does not remove `[UNK]`, since `[UNK]` represents bases."""
        words: list[str] = []
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        for is_added, group in groupby(ids, lambda i: i in self._added_tokens_decoder and i != kmer.UNK_ID):
            if not is_added:
                words.append(self._bases(list(group)))
            elif not skip_special_tokens:
                words += [self._added_tokens_decoder[index].content for index in group]
        return " ".join(words)

    def _bases(self, ids: list[int]) -> str:
        """Return the bases of k-mers and `[UNK]` tokens, with a space where adjacent tokens do not overlap.

        If u unknown tokens separate two k-mers, u - k + 1 bases between the k-mers are covered by neither k-mer and
        become N. If there are no such bases, each unknown token is written as "[UNK]" instead.
        """
        if not self.overlapping:
            return "".join("N" * self.k if i == kmer.UNK_ID else self._convert_id_to_token(i) for i in ids)
        pieces: list[str] = []
        previous = ""
        unknown = 0
        for index in ids:
            if index == kmer.UNK_ID:
                unknown += 1
                continue
            word = self._convert_id_to_token(index)
            if not previous:
                pieces += ["N" * unknown, word]
            elif unknown >= self.k:
                pieces += ["N" * (unknown - self.k + 1), word]
            elif unknown == 0 and previous[1:] == word[:-1]:
                pieces.append(word[-1])
            else:
                pieces += [" [UNK]" * unknown, " ", word]
            previous = word
            unknown = 0
        return "".join(pieces) + "N" * (unknown if previous else unknown + self.k - 1)

    # ---- files

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Save the tokenizer to a folder, and return the paths of the files.

        `KmerTokenizer` can load the folder, and so can `AutoTokenizer` of transformers 4.40 and newer.
        """
        files = super().save_pretrained(save_directory, *args, **kwargs)
        name_stock_class(Path(files[0]))
        return files

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write `vocab.txt` and `tokenizer.json`, and return their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        return write_tokenizer_files(save_directory, self.k, self.overlapping, prefix)


def _letters(text: str) -> bytes:
    """Encode text as one byte per letter. Letters outside Latin-1 become "?", which is not a base."""
    return text.encode("latin-1", errors="replace")
