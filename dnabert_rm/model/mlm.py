"""The masked-only head and the exact loss.

Shapes: B windows, L tokens a window, H hidden size, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dnabert_rm.genome.kmer import NUM_SPECIAL


class MaskedLM(nn.Module):
    """A transformers masked language model whose head runs on masked positions only.

    The encoder sees no attention mask: pretraining has no padding. The loss is a sum in fp32; what it
    is divided by, the masked tokens of the global batch, only the training loop knows.
    """

    def __init__(self, model: PreTrainedModel, k: int | None = None) -> None:
        """Args: `k` of the k-mer vocabulary; None (BPE): right bases are not counted."""
        super().__init__()
        self.model, self.k = model, k

    def forward(
        self, input_ids: Tensor, positions: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor] | Tensor:
        """Args: `input_ids` (B, L) int64; `positions` (M,) int64 in the flattened batch; `targets` (M,) int64,
        -100 where nothing is predicted. Returns the summed loss, a scalar in fp32, how many of the predictions are
        right, and how many of their bases, scalars int64; without `targets` the logits (M, V) in the model's dtype.
        """
        logits = self._masked_logits(input_ids, positions)
        if targets is None:
            return logits
        loss_sum = nn.functional.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum")
        predicted = logits.detach().argmax(dim=-1)
        return loss_sum, (predicted == targets).sum(), num_right_bases(predicted, targets, self.k)

    def _masked_logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.model.base_model(input_ids=input_ids).last_hidden_state
        selected = hidden.flatten(0, 1).index_select(0, positions)
        model: Any = self.model
        if model.config.model_type == "modernbert":
            return model.decoder(model.head(selected))
        return model.cls(selected)


def num_right_bases(predicted: Tensor, targets: Tensor, k: int | None) -> Tensor:
    """How many of the k bases of each predicted k-mer are the target's, summed; scalar int64, 0 where `k` is None.

    Args: `predicted`, `targets` (M,) token ids; a target of -100 and a predicted special token count 0 bases. A k-mer's
    id less the special tokens has its bases as digits to base 4 (kmer.py), so equal bases are equal digits.
    """
    if k is None:
        return torch.zeros((), dtype=torch.int64, device=predicted.device)
    counted = (targets >= NUM_SPECIAL) & (predicted >= NUM_SPECIAL)
    differing = (predicted - NUM_SPECIAL).clamp(min=0) ^ (targets - NUM_SPECIAL).clamp(min=0)
    digits = torch.stack([(differing >> 2 * place) & 3 == 0 for place in range(k)])
    return (digits & counted).sum()
