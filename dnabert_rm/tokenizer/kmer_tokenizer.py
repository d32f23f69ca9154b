"""The k-mer alphabet as a Hugging Face tokenizer: raw DNA in, `[CLS]` k-mers `[SEP]` out.

How text is read:
- Bases in any case become k-mers with stride 1, or with stride k where `overlapping=False`.
- A k-mer that covers any other letter (N, other IUPAC codes, U, anything) is `[UNK]`.
- A stretch of fewer than k letters has no token: "ACG" at k = 6 is `[CLS] [SEP]`.
- White space separates stretches, and each is read on its own. So DNABERT's own notation, k-mers
  with spaces between them ("ACGTAC CGTACG"), gives one token a word, and the two notations agree.
- A special token written in the text is that token: "ACGTAC[MASK]GTACGT" is two k-mers around one
  masked token, whatever bases it may stand for; no k-mer reaches across it.

Decoding joins k-mers that overlap, writes N where only `[UNK]` tokens cover a base, and puts a space
where two neighbours do not fit; reading the result gives the same ids.

`save_pretrained` writes `vocab.txt` (DNABERT's bytes) and a `tokenizer.json` for readers without
this package: a stock `AutoTokenizer` takes raw DNA, without remote code, only much more slowly.
Where this module is imported, `AutoTokenizer` gives a `KmerTokenizer` for the same folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, BatchEncoding, PreTrainedConfig, PreTrainedTokenizer

from dnabert_rm.genome import kmer
from dnabert_rm.tokenizer.files import VOCAB_FILE, read_k, write_tokenizer_files
from dnabert_rm.tokenizer.windows import pad_rows, padded_width
from dnabert_rm.utils.errors import CheckpointError

_WHITE_SPACE = b" \t\n\r\x0b\x0c"
_SPECIAL_NAMES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
# What the fast path leaves to transformers' general one.
_RARE_OPTIONS = ("is_split_into_words", "return_overflowing_tokens", "return_special_tokens_mask", "return_length")


@lru_cache
def _vocabulary(k: int) -> dict[str, int]:
    """Id of every token, in order; shared, so never to be changed."""
    return {token: index for index, token in enumerate(kmer.vocabulary(k))}


@lru_cache
def _tokens(k: int) -> tuple[str, ...]:
    return tuple(_vocabulary(k))


class KmerTokenizer(PreTrainedTokenizer):
    """Tokens of DNA; the module's text says how sequences are read.

    Args: `k` bases a token, or a `vocab_file` that tells it; `overlapping` False for stride k.
    `CheckpointError` where neither tells k, they disagree, or the file is no k-mer vocabulary.
    `token_type_ids` (all 0 for one sequence) are returned only on request: BERT takes them for
    zeros by itself, and ModernBERT has none.
    """

    vocab_files_names = {"vocab_file": VOCAB_FILE}  # noqa: RUF012 - the form transformers wants
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, k: int | None = None, vocab_file: str | None = None, overlapping: bool = True, **kwargs: Any):
        found = k if vocab_file is None else read_k(vocab_file)
        if found is None:
            raise CheckpointError(
                f"{kwargs.get('name_or_path') or 'KmerTokenizer'}: no {VOCAB_FILE} there and no k given"
            )
        if k not in (None, found):
            raise CheckpointError(f"{vocab_file}: holds {found}-mers, but k = {k} is configured beside it or asked for")
        self.k, self.overlapping = kmer.check_k(found), overlapping
        for where_it_was_read in ("tokenizer_file", "is_local", "local_files_only"):
            kwargs.pop(where_it_was_read, None)
        special = dict(zip(_SPECIAL_NAMES, kmer.SPECIAL_TOKENS, strict=True))
        fixed = {"special_tokens_pattern": "cls_sep", "model_input_names": self.model_input_names}
        super().__init__(**(fixed | special | kwargs), k=found, overlapping=overlapping)

    @property
    def vocab_size(self) -> int:
        """Ids without those of tokens that a user has added."""
        return kmer.vocab_size(self.k)

    @property
    def step(self) -> int:
        """Bases from one token to the next."""
        return 1 if self.overlapping else self.k

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        return _vocabulary(self.k) | self._added_tokens_encoder

    # ---- encoding: a fast path for plain texts, and the general path that transformers drives

    def kmer_ids(self, texts: Sequence[str]) -> list[NDArray]:
        """Token ids of each text without `[CLS]` and `[SEP]`: arrays (T_i,), uint16 or uint32.

        All texts are encoded as one array and then cut apart: one numpy call a batch.
        """
        letters = [_letters(text) for text in texts]
        joined = b"".join(letters)
        has_user_tokens = len(self._added_tokens_encoder) > kmer.NUM_SPECIAL
        if has_user_tokens or b"[" in joined or len(joined.translate(None, _WHITE_SPACE)) < len(joined):
            return [self._ids_of_mixed_text(text) for text in texts]
        ids = kmer.encode(joined, self.k)
        bounds = np.cumsum([0, *map(len, letters)]).tolist()
        return [ids[start : max(start, end - self.k + 1) : self.step] for start, end in pairwise(bounds)]

    def _ids_of_mixed_text(self, text: str) -> NDArray:
        """Ids (T,) of one text that may hold white space and special tokens."""
        parts: list[NDArray] = [np.empty(0, dtype=kmer.id_dtype(len(self)))]
        for piece in [text] if self.split_special_tokens else self.tokens_trie.split(text):
            if piece in self._added_tokens_encoder and not self.split_special_tokens:
                parts.append(np.array([self._added_tokens_encoder[piece]], dtype=parts[0].dtype))
            else:
                parts += [kmer.encode(stretch, self.k)[:: self.step] for stretch in _letters(piece).split()]
        return np.concatenate(parts)

    def _encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:  # type: ignore[override]
        """transformers' entry for `tokenizer(…)`: plain texts go the fast way, the rest the general one."""
        texts = [text] if isinstance(text, str) else text
        plain = text_pair is None and isinstance(texts, list | tuple) and all(isinstance(one, str) for one in texts)
        rare = any(options.get(name) for name in _RARE_OPTIONS) or options["truncation_strategy"] == "only_second"
        splits = options.get("split_special_tokens", self.split_special_tokens) != self.split_special_tokens
        if isinstance(text, list | tuple) and not text:
            return BatchEncoding({name: [] for name in self.model_input_names})
        if not plain or rare or splits:
            return super()._encode_plus(text, text_pair, **options)
        rows, tensors = self._rows(texts, options), options.get("return_tensors")
        columns = self._columns(rows, as_lists=tensors is None, options=options)
        if tensors is None and isinstance(text, str):
            columns = {name: column[0] for name, column in columns.items()}
        return BatchEncoding(columns, tensor_type=tensors)

    def _rows(self, texts: Sequence[str], options: dict[str, Any]) -> list[NDArray[np.int64]]:
        """Ids of each text with special tokens, truncated where asked: arrays (T_i,) int64."""
        num_special = 2 if options.get("add_special_tokens", True) else 0
        ids, max_length = self.kmer_ids(texts), options.get("max_length")
        longest = max(map(len, ids)) + num_special
        if max_length and longest > max_length and options["truncation_strategy"] != "do_not_truncate":
            room = max(0, max_length - num_special)
            keep_end = self.truncation_side == "left"
            ids = [row[max(0, len(row) - room) :] if keep_end else row[:room] for row in ids]
        elif longest > self.model_max_length:
            self._eventual_warn_about_too_long_sequence([0] * longest, max_length, options.get("verbose", True))
        if not num_special:
            return [row.astype(np.int64) for row in ids]
        first, last = np.array([self.cls_token_id]), np.array([self.sep_token_id])
        return [np.concatenate((first, row, last), dtype=np.int64) for row in ids]

    def _columns(self, rows: list[NDArray[np.int64]], as_lists: bool, options: dict[str, Any]) -> dict[str, Any]:
        """`input_ids` and what else is asked for, padded where asked: lists, or matrices (B, W) int64."""
        ids: Any
        mask: Any
        multiple = options.get("pad_to_multiple_of") or 1
        width = padded_width(rows, options["padding_strategy"].value, options.get("max_length"), multiple)
        if width is None and as_lists:
            ids, mask = [row.tolist() for row in rows], [[1] * len(row) for row in rows]
        else:
            ids, mask = pad_rows(rows, width, left=(options.get("padding_side") or self.padding_side) == "left")
            ids, mask = (ids.tolist(), mask.tolist()) if as_lists else (ids, mask)
        columns = {"input_ids": ids}
        if self._returns("token_type_ids", options):
            # One sequence alone is type 0 everywhere, padding included.
            columns["token_type_ids"] = [[0] * len(row) for row in ids] if as_lists else np.zeros_like(ids)
        if self._returns("attention_mask", options):
            columns["attention_mask"] = mask
        return columns

    def _returns(self, name: str, options: dict[str, Any]) -> bool:
        asked = options.get(f"return_{name}")
        return name in self.model_input_names if asked is None else asked

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        """The k-mers of a text without special tokens, cut out one by one: the general path's slow reading."""
        stretches = re.split(f"[{_WHITE_SPACE.decode()}]", text)
        return [s[i : i + self.k] for s in stretches for i in range(0, len(s) - self.k + 1, self.step)]

    def _convert_token_to_id(self, token: str) -> int:
        return _vocabulary(self.k).get(token.upper(), kmer.UNK_ID)

    # ---- decoding

    def _convert_id_to_token(self, index: int) -> str:
        return _tokens(self.k)[index if 0 <= index < self.vocab_size else kmer.UNK_ID]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The bases of tokens, as `decode` writes them."""
        return self._decode([self._convert_token_to_id_with_added_voc(token) for token in tokens])

    def _decode(  # type: ignore[override]
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **_: Any
    ) -> str:
        """Text of ids; `skip_special_tokens` leaves out all special tokens but `[UNK]`, which stands for bases."""
        words: list[str] = []
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        for is_added, group in groupby(ids, lambda i: i in self._added_tokens_decoder and i != kmer.UNK_ID):
            if not is_added:
                words.append(self._bases(list(group)))
            elif not skip_special_tokens:
                words += [self._added_tokens_decoder[index].content for index in group]
        return " ".join(words)

    def _bases(self, ids: list[int]) -> str:
        """Bases of k-mers and `[UNK]`s, with a space wherever a stretch of tokens that fit together ends.

        u unknown tokens between two k-mers leave u - k + 1 bases that no k-mer covers; with fewer
        than k of them the k-mers would overlap, so the stretch ends and each stands as "[UNK]".
        """
        if not self.overlapping:
            return "".join("N" * self.k if i == kmer.UNK_ID else self._convert_id_to_token(i) for i in ids)
        pieces, previous, unknown = [], "", 0
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
            previous, unknown = word, 0
        return "".join(pieces) + "N" * (unknown if previous else unknown + self.k - 1)

    # ---- files

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write `vocab.txt` and `tokenizer.json`; returns their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        return write_tokenizer_files(save_directory, self.k, self.overlapping, prefix)


def _letters(text: str) -> bytes:
    """One byte a letter; what Latin-1 lacks becomes "?", which is no base."""
    return text.encode("latin-1", errors="replace")


class _KmerTokenizerConfig(PreTrainedConfig):
    """No model's configuration: `AutoTokenizer.register` wants one, and BERT's own would claim every BERT."""

    model_type = "dnabert_rm_kmer_tokenizer"


AutoTokenizer.register(_KmerTokenizerConfig, tokenizer_class=KmerTokenizer, exist_ok=True)
