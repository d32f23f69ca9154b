"""The masked-only head and the exact loss.

Shapes: B windows, L tokens a window, H hidden size, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


class MaskedLM(nn.Module):
    """A transformers masked language model whose head runs on masked positions only.

    The encoder sees no attention mask: pretraining has no padding. The loss is a sum in fp32; what it
    is divided by, the masked tokens of the global batch, only the training loop knows.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, positions: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Args: `input_ids` (B, L) int64; `positions` (M,) int64 in the flattened batch; `targets` (M,) int64,
        -100 where nothing is predicted. Returns the summed loss, a scalar in fp32, and how many of the
        predictions are right, a scalar int64; without `targets` the logits (M, V) in the model's dtype.
        """
        logits = self._masked_logits(input_ids, positions)
        if targets is None:
            return logits
        loss_sum = nn.functional.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum")
        num_right = (logits.detach().argmax(dim=-1) == targets).sum()
        return loss_sum, num_right

    def _masked_logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.model.base_model(input_ids=input_ids).last_hidden_state
        selected = hidden.flatten(0, 1).index_select(0, positions)
        model: Any = self.model
        if model.config.model_type == "modernbert":
            return model.decoder(model.head(selected))
        return model.cls(selected)
