"""Self-check of an exported folder: compare the exported model's weights and logits with the trained model.

The folder is loaded with stock transformers. To save memory, the trained weights are compared one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from dnabert_rm.checkpoint.reference_output import ReferenceOutput
from dnabert_rm.utils.errors import CheckpointError

TOLERANCE = {("fp32", "cpu"): 1e-5, ("fp32", "cuda"): 5e-3, ("bf16", "cpu"): 3e-2, ("bf16", "cuda"): 3e-2}
"""Largest allowed difference of logits, divided by the largest training logit (at least 1).

Keys are the precision and device of training. For fp32, a GPU may use TF32.
"""
MEAN_TOLERANCE = 1e-5
"""Largest allowed difference of an averaged weight, as a share of the weight's largest element."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_exported(
    folder: Path,
    trained: Iterable[tuple[str, Tensor]],
    aliases: Mapping[str, str],
    reference: ReferenceOutput,
    exact: bool = True,
) -> float:
    """Load `folder` with stock transformers, and compare weights and logits with the trained model.

    Args:
        trained: Name and tensor of each trained weight; a tied weight appears once.
        aliases: The second name of each tied weight, mapped to its first name.
        reference: The training model's logits for a fixed input.
        exact: Require equal weights. If false, allow rounding differences, as for averaged weights.

    Returns:
        The largest absolute difference between exported and training logits, divided by the largest absolute training
        logit. The divisor is at least 1.

    Raises:
        CheckpointError: The exported model differs from the trained model.
    """
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"export: stock transformers cannot load the exported folder ({reason}); check the version of transformers"
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
            raise CheckpointError(f"export: weight {alias} is not tied to {name}; report this error")
    return compare_logits(model, reference)


def _compare_weights(
    loaded: Mapping[str, Tensor], trained: Iterable[tuple[str, Tensor]], aliases: Mapping[str, str], exact: bool
) -> None:
    """Raise `CheckpointError` if an exported weight is missing, additional, or different from the trained weight."""
    seen = set(aliases)
    for name, weight in trained:
        seen.add(name)
        if name not in loaded:
            raise CheckpointError(f"export: the trained weight {name} is missing; report this error")
        same = loaded[name].shape == weight.shape and (
            torch.equal(loaded[name], weight) if exact else _nearly_equal(loaded[name], weight)
        )
        if not same:
            raise CheckpointError(f"export: weight {name} differs from the trained weight; report this error")
    if loaded.keys() != seen:
        raise CheckpointError(
            f"export: missing or additional weights: {sorted(loaded.keys() ^ seen)[:3]}; report this error"
        )


def _nearly_equal(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= MEAN_TOLERANCE * expected.abs().max())


def compare_logits(model: PreTrainedModel, reference: ReferenceOutput) -> float:
    """Compare the exported model's logits with the training logits.

    Return the largest absolute difference, divided by the largest absolute training logit. The divisor is at least 1.
    The exported model runs in the precision of training. Raises `CheckpointError` if the result exceeds `TOLERANCE`.
    """
    if model.config.vocab_size != reference.logits.shape[1]:
        raise CheckpointError(
            f"export: the vocabulary has {model.config.vocab_size} tokens, but the training model gave"
            f" {reference.logits.shape[1]} logits; report this error"
        )
    model = model.eval()
    # As in training, only the parameters are rounded, and the frequencies of rotary positions stay in fp32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[reference.precision])
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(reference.input_ids)).logits
    found = logits.flatten(0, 1)[torch.from_numpy(reference.positions)].float().numpy()
    difference = float(np.abs(found - reference.logits).max() / max(1.0, np.abs(reference.logits).max()))
    allowed = TOLERANCE.get((reference.precision, reference.device), 3e-2)
    if not difference <= allowed:
        raise CheckpointError(
            f"export: logits differ from the training model's by up to {difference:.2g} × the largest logit"
            f" (limit {allowed:.2g}); compare the package versions with environment.json in the run folder"
        )
    return difference
