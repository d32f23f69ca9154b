"""Masked language model with its head, its loss and most of its last layer on masked positions only.

Shapes: B windows, L tokens per window, H hidden size, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dnabert_rm.genome.kmer import NUM_SPECIAL
from dnabert_rm.model.last_layer import LastLayer
from dnabert_rm.model.losses import base_loss_sum, token_loss_sum

MODEL_INPUTS = ("input_ids", "positions", "targets", "base_weights")
"""Entries of a batch that `MaskedLM.forward` takes, in this order. `base_weights` is optional."""


class MaskedLM(nn.Module):
    """A transformers masked language model whose head and last layer run on masked positions only.

    The encoder gets no attention mask, because pretraining has no padding. The loss is a sum in fp32. The training
    loop divides this sum by the summed weights of the masked tokens in the global batch.
    """

    def __init__(self, model: PreTrainedModel, k: int | None = None, *, whole_last_layer: bool = False) -> None:
        """Wrap a transformers model.

        Args:
            model: The model, whose last layer is changed in place (see `LastLayer`).
            k: Number of bases per token. With None (BPE), bases are not counted.
            whole_last_layer: Leave the last layer as it is. For comparisons.
        """
        super().__init__()
        self.model = model
        self.k = k
        self._last_layer = None if whole_last_layer else LastLayer(model)
        self.base_share = 0.0
        """Fraction of the training loss that is the loss over bases, from 0 to 1. The rest is the loss over tokens."""

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        targets: Tensor | None = None,
        base_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | Tensor:
        """Return the summed losses and the numbers of correct tokens and bases. Without `targets`, return the logits.

        Args:
            input_ids: (B, L) int64, for B windows of L tokens.
            positions: (M,) int64, the M masked positions in the flattened batch.
            targets: (M,) int64, the original token ids at these positions; -100 is ignored.
            base_weights: (M, k) float32, the weight of each base in the training loss; None means 1. The weight of a
                token is the mean weight of its bases.

        Returns: The training loss (scalar, fp32, with a gradient), the cross-entropy over tokens (scalar, fp32, without
            a gradient) and two counts (scalars, int64). Without `targets`, the logits (M, V) in the model's dtype, for
            a vocabulary of V tokens.
        """
        logits = self._masked_logits(input_ids, positions)
        if targets is None:
            return logits
        logits = logits.float()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.base_share < 1):
            token_loss = token_loss_sum(logits, targets, base_weights)
        loss = token_loss
        if self.base_share:
            assert self.k is not None, "the configuration allows a loss over bases for k-mers only"
            base_loss = base_loss_sum(logits, targets, self.k, base_weights)
            loss = base_loss if self.base_share == 1 else torch.lerp(token_loss, base_loss, self.base_share)
        predicted = logits.detach().argmax(dim=-1)
        num_right = (predicted == targets).sum()
        return loss, token_loss.detach(), num_right, num_right_bases(predicted, targets, self.k)

    def _masked_logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        model: Any = self.model
        if self._last_layer is None:
            hidden = model.base_model(input_ids=input_ids).last_hidden_state
            selected = hidden.flatten(0, 1).index_select(0, positions)
        else:
            with self._last_layer.at(positions):
                selected = model.base_model(input_ids=input_ids).last_hidden_state
        if model.config.model_type == "modernbert":
            return model.decoder(model.head(selected))
        return model.cls(selected)


def num_right_bases(predicted: Tensor, targets: Tensor, k: int | None) -> Tensor:
    """Return the number of predicted bases that equal the target bases, as a scalar int64. Return 0 if `k` is None.

    The base-4 digits of (k-mer id - `NUM_SPECIAL`) encode the bases of the k-mer (see kmer.py). The function therefore
    counts equal digits.

    Args:
        predicted: (M,) predicted token ids at the M masked positions. Special tokens have no bases.
        targets: (M,) original token ids. Special tokens and -100 have no bases.
        k: Bases per token.
    """
    if k is None:
        return torch.zeros((), dtype=torch.int64, device=predicted.device)
    counted = (targets >= NUM_SPECIAL) & (predicted >= NUM_SPECIAL)
    differing = (predicted - NUM_SPECIAL).clamp(min=0) ^ (targets - NUM_SPECIAL).clamp(min=0)
    is_equal = torch.stack([(differing >> 2 * digit) & 3 == 0 for digit in range(k)])
    return (is_equal & counted).sum()
