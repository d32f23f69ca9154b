"""The checks of an exported folder, made before anybody sees it: is it the trained model, and its tokenizer?

Everything is read back with stock transformers. One model is in memory; what it is compared with comes one weight at
a time.
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
from dnabert_rm.tokenizer.files import STOCK_FILE
from dnabert_rm.utils import random
from dnabert_rm.utils.errors import CheckpointError
from dnabert_rm.utils.files import read_json

TOLERANCE = {("fp32", "cpu"): 1e-5, ("fp32", "cuda"): 5e-3, ("bf16", "cpu"): 3e-2, ("bf16", "cuda"): 3e-2}
"""Largest difference of logits, as a share of the largest logit (at least 1), by precision and device of the
training: a GPU may use TF32 for fp32."""
MEAN_TOLERANCE = 1e-5
"""Largest difference of two ways to the mean of checkpoints, as a share of the weight's largest element."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TRIAL_BASES = 5000


def check_exported(
    folder: Path,
    trained: Iterable[tuple[str, Tensor]],
    aliases: Mapping[str, str],
    probe: ReferenceOutput,
    exact: bool = True,
) -> float:
    """Load `folder` with stock transformers and compare it with the trained weights and the probe.

    Args: `trained` names and weights, each once; `aliases` the second names of tied weights; `exact` False where the
    weights are a mean, computed by another way than the folder's. Returns the largest difference of logits as a share
    of the largest logit; `CheckpointError` says what is wrong.
    """
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"export: stock transformers cannot load it ({reason})") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise CheckpointError(f"export: {kind.replace('_', ' ')}: {sorted(info[kind])[:3]}")
    loaded = model.state_dict()
    _compare_weights(loaded, trained, aliases, exact)
    for alias, name in aliases.items():
        if loaded[alias].data_ptr() != loaded[name].data_ptr():
            raise CheckpointError(f"export: {alias} is not tied to {name}")
    return _compare_logits(model, probe)


def _compare_weights(
    loaded: Mapping[str, Tensor], trained: Iterable[tuple[str, Tensor]], aliases: Mapping[str, str], exact: bool
) -> None:
    """`CheckpointError` names a weight that is not the trained one, or that only one side has."""
    seen = set(aliases)
    for name, weight in trained:
        seen.add(name)
        if name not in loaded:
            raise CheckpointError(f"export: lacks the trained weight {name}")
        same = loaded[name].shape == weight.shape and (
            torch.equal(loaded[name], weight) if exact else _nearly_equal(loaded[name], weight)
        )
        if not same:
            raise CheckpointError(f"export: {name} is not the trained weight")
    if loaded.keys() != seen:
        raise CheckpointError(f"export: other weights than trained: {sorted(loaded.keys() ^ seen)[:3]}")


def _nearly_equal(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= MEAN_TOLERANCE * expected.abs().max())


def _compare_logits(model: PreTrainedModel, probe: ReferenceOutput) -> float:
    """Largest difference from the training model's logits, in its own precision, as a share of the largest logit."""
    if model.config.vocab_size != probe.logits.shape[1]:
        raise CheckpointError(
            f"export: a vocabulary of {model.config.vocab_size}, but {probe.logits.shape[1]} logits were trained"
        )
    model = model.to(dtype=DTYPES[probe.precision]).eval()  # type: ignore[call-arg]
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(probe.input_ids)).logits
    found = logits.flatten(0, 1)[torch.from_numpy(probe.positions)].float().numpy()
    difference = float(np.abs(found - probe.logits).max() / max(1.0, np.abs(probe.logits).max()))
    allowed = TOLERANCE.get((probe.precision, probe.device), 3e-2)
    if not difference <= allowed:
        raise CheckpointError(
            f"export: logits differ from the training model's by {difference:.2g} of the largest (limit {allowed:.2g})"
        )
    return difference


def check_tokenizer(folder: Path, trained: TokenizerInfo) -> None:
    """`CheckpointError` unless both tokenizers of `folder`, ours and the stock one, give the training data's ids.

    The data's ids are `kmer.encode`'s, which wrote the shards. The trial has all letters that genomes have, and all
    ids of the vocabulary are compared.
    """
    assert trained.k is not None
    ours, stock = KmerTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / STOCK_FILE))
    vocabulary = {token: index for index, token in enumerate(kmer.vocabulary(trained.k))}
    size = read_json(folder / "config.json", error=CheckpointError)["vocab_size"]
    for name, found in (("vocab.txt", ours.get_vocab()), (STOCK_FILE, stock.get_vocab())):
        if len(found) != trained.vocab_size or len(found) != size:
            raise CheckpointError(
                f"export: {name} has {len(found)} tokens, the training data {trained.vocab_size}, the model {size}"
            )
        if found != vocabulary:
            token = next(token for token in vocabulary if found.get(token) != vocabulary[token])
            raise CheckpointError(
                f"export: {name} gives {token} the id {found.get(token)}, the training data {vocabulary[token]}"
            )
    text = _trial_sequence()
    expected = [kmer.CLS_ID, *kmer.encode(text, trained.k).tolist(), kmer.SEP_ID]
    for name, ids in (("KmerTokenizer", ours(text, verbose=False)["input_ids"]), (STOCK_FILE, stock.encode(text).ids)):
        if ids != expected:
            raise CheckpointError(f"export: {name} does not give the training data's ids")


def _trial_sequence() -> str:
    """Bases at random, upper and lower case, with a few N."""
    letters: NDArray = np.array(list("ACGTacgt" * 8 + "NR"))
    bits = random.fold(random.key(0, "trial"), np.arange(_TRIAL_BASES))
    return "".join(letters[random.below(bits, len(letters))])
