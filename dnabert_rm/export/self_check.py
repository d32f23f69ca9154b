"""Self-check of an exported folder: compare its weights, logits and tokenizer with those of training.

The folder is loaded with stock transformers. Memory holds one model, and trained weights are compared one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from dnabert_rm.checkpoint.reference_output import ReferenceOutput
from dnabert_rm.data.manifest import TokenizerInfo
from dnabert_rm.genome import kmer
from dnabert_rm.tokenizer import KmerTokenizer
from dnabert_rm.tokenizer.vocabulary_files import STOCK_FILE
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import read_json

TOLERANCE = {("fp32", "cpu"): 1e-5, ("fp32", "cuda"): 5e-3, ("bf16", "cpu"): 3e-2, ("bf16", "cuda"): 3e-2}
"""Largest allowed difference of logits, relative to the largest logit or to 1 if that is larger.

Keys are the precision and device of training. A GPU may use TF32 for fp32.
"""
MEAN_TOLERANCE = 1e-5
"""Largest allowed difference between two computations of a mean, as a share of the weight's largest element."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TEST_BASES = 5000


def check_exported(
    folder: Path,
    trained: Iterable[tuple[str, Tensor]],
    aliases: Mapping[str, str],
    reference: ReferenceOutput,
    exact: bool = True,
) -> float:
    """Load `folder` with stock transformers and compare its weights and logits with those of training.

    Args:
        trained: Each trained weight once, with its name.
        aliases: The second name of each tied weight, mapped to its first name.
        reference: The training model's output for a fixed input.
        exact: Require equal weights. False allows rounding differences between two computations of a mean.

    Returns:
        The largest difference of logits, as a share of the largest logit.

    Raises:
        CheckpointError: The exported model differs from the trained model.
    """
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"export: stock transformers cannot load the exported folder ({reason}); check its version"
        ) from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise CheckpointError(
                f"export: {kind.replace('_', ' ')} in the folder: {sorted(info[kind])[:3]}; report this error"
            )
    loaded = model.state_dict()
    _compare_weights(loaded, trained, aliases, exact)
    for alias, name in aliases.items():
        if loaded[alias].data_ptr() != loaded[name].data_ptr():
            raise CheckpointError(f"export: {alias} is not tied to {name}; report this error")
    return _compare_logits(model, reference)


def _compare_weights(
    loaded: Mapping[str, Tensor], trained: Iterable[tuple[str, Tensor]], aliases: Mapping[str, str], exact: bool
) -> None:
    """Raise `CheckpointError` if a weight differs from the trained weight, or if only one model has it."""
    seen = set(aliases)
    for name, weight in trained:
        seen.add(name)
        if name not in loaded:
            raise CheckpointError(f"export: the trained weight {name} is missing; report this error")
        same = loaded[name].shape == weight.shape and (
            torch.equal(loaded[name], weight) if exact else _nearly_equal(loaded[name], weight)
        )
        if not same:
            raise CheckpointError(f"export: {name} differs from the trained weight; report this error")
    if loaded.keys() != seen:
        raise CheckpointError(
            f"export: missing or additional weights: {sorted(loaded.keys() ^ seen)[:3]}; report this error"
        )


def _nearly_equal(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= MEAN_TOLERANCE * expected.abs().max())


def _compare_logits(model: PreTrainedModel, reference: ReferenceOutput) -> float:
    """Return the largest difference from the training logits, as a share of the largest logit.

    Logits are computed in the precision of training. Raises `CheckpointError` above the tolerance.
    """
    if model.config.vocab_size != reference.logits.shape[1]:
        raise CheckpointError(
            f"export: the vocabulary has {model.config.vocab_size} tokens, but the training model gave"
            f" {reference.logits.shape[1]} logits; report this error"
        )
    model = model.to(dtype=DTYPES[reference.precision]).eval()  # type: ignore[call-arg]
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(reference.input_ids)).logits
    found = logits.flatten(0, 1)[torch.from_numpy(reference.positions)].float().numpy()
    difference = float(np.abs(found - reference.logits).max() / max(1.0, np.abs(reference.logits).max()))
    allowed = TOLERANCE.get((reference.precision, reference.device), 3e-2)
    if not difference <= allowed:
        raise CheckpointError(
            f"export: logits differ from the training model's by {difference:.2g} of the largest logit"
            f" (limit {allowed:.2g}); compare the package versions with environment.json"
        )
    return difference


def check_tokenizer(folder: Path, trained: TokenizerInfo) -> None:
    """Raise `CheckpointError` unless `KmerTokenizer` and the stock tokenizer reproduce the ids of the training data.

    The training data has ids from `kmer.encode`. The check compares the whole vocabulary, and the ids of a test
    sequence with upper-case, lower-case and ambiguous bases.
    """
    assert trained.k is not None
    own = KmerTokenizer.from_pretrained(folder)
    stock = Tokenizer.from_file(str(folder / STOCK_FILE))
    size = read_json(folder / "config.json", error=CheckpointError)["vocab_size"]
    _check_vocabulary("vocab.txt", own.get_vocab(), trained, size)
    _check_vocabulary(STOCK_FILE, stock.get_vocab(), trained, size)
    sequence = _test_sequence()
    expected = [kmer.CLS_ID, *kmer.encode(sequence, trained.k).tolist(), kmer.SEP_ID]
    if own(sequence, verbose=False)["input_ids"] != expected:
        raise CheckpointError(
            "export: the token ids of KmerTokenizer differ from those in the training data; report this error"
        )
    if stock.encode(sequence).ids != expected:
        raise CheckpointError(
            f"export: the token ids of {STOCK_FILE} differ from those in the training data; report this error"
        )


def _check_vocabulary(name: str, found: Mapping[str, int], trained: TokenizerInfo, model_size: int) -> None:
    """Raise `CheckpointError` unless `found` is the vocabulary of the training data and has `model_size` tokens."""
    assert trained.k is not None
    if len(found) != trained.vocab_size or len(found) != model_size:
        raise CheckpointError(
            f"export: vocabulary sizes differ: {name} {len(found)}, training data {trained.vocab_size}, "
            f"model {model_size}; report this error"
        )
    for index, token in enumerate(kmer.vocabulary(trained.k)):
        if found.get(token) != index:
            raise CheckpointError(
                f"export: {name} gives {token} the id {found.get(token)}, but the training data has {index};"
                " report this error"
            )


def _test_sequence() -> str:
    """Return a sequence of random upper-case and lower-case bases, with a few N and R."""
    letters: NDArray = np.array(list("ACGTacgt" * 8 + "NR"))
    bits = random.fold(random.key(0, "trial"), np.arange(_TEST_BASES))
    return "".join(letters[random.below(bits, len(letters))])
