"""Losses, class weights and tokenized rows of the fine-tuning tasks."""

import numpy as np
import pytest
import torch

from dnabert_rm.finetune import token_rows as rows
from dnabert_rm.finetune.finetune_settings import TASKS
from dnabert_rm.finetune.tasks import TASK_CLASSES
from dnabert_rm.tokenizer import KmerTokenizer


def test_every_task_has_its_class():
    assert tuple(TASK_CLASSES) == TASKS


def test_which_token_predicts_which_base():
    """7 bases at k = 3: 5 overlapping tokens, or 2 non-overlapping ones and a base that is in neither."""
    ranges = KmerTokenizer(3).token_ranges("ACGTACG")
    bases, tokens = rows.base_token_pairs(range(5), ranges)
    pairs = set(zip(bases.tolist(), tokens.tolist(), strict=True))
    assert pairs == {(base, token) for token in range(5) for base in range(token, token + 3)}
    bases, tokens = rows.base_token_pairs(range(2), KmerTokenizer(3, overlapping=False).token_ranges("ACGTACG"))
    assert (bases.tolist(), tokens.tolist()) == ([0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1, 1])
    bases, tokens = rows.base_token_pairs(range(1, 3), ranges)
    assert (bases.tolist(), tokens.tolist()) == ([1, 2, 3, 2, 3, 4], [0, 0, 0, 1, 1, 1])
    bases, tokens = rows.base_token_pairs(range(1, 4), np.array([[0, 2], [2, 3], [3, 7], [7, 8]]))
    assert (bases.tolist(), tokens.tolist()) == ([2, 3, 4, 5, 6, 7], [0, 1, 1, 1, 1, 2])
    assert KmerTokenizer(3).token_ranges("AC").shape == (0, 2)


@pytest.mark.parametrize("name", ["classes", "multi-label", "regression", "bases"])
def test_loss_is_the_sum_over_targets_that_are_not_ignored(name):
    """A padding row adds nothing; without it the loss is transformers' mean loss times the number of targets."""
    task = TASK_CLASSES[name](("a", "b"), ("a", "b"), (0.0, 0.0), (1.0, 1.0))
    torch.manual_seed(0)
    shape = {"classes": (3,), "bases": (3, 4)}.get(name, (3, 2))
    logits = torch.randn(3, 4, 2) if name == "bases" else torch.randn(3, 2)
    targets = torch.randint(2, shape) if name in ("classes", "bases") else torch.rand(shape)
    flat = (logits.flatten(0, -2), targets.flatten()) if name in ("classes", "bases") else (logits, targets)
    mean = {"multi-label": torch.nn.BCEWithLogitsLoss(), "regression": torch.nn.MSELoss()}
    expected = mean.get(name, torch.nn.CrossEntropyLoss())(*flat) * targets.numel()
    assert task.loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    padded = torch.cat([targets, torch.full_like(targets[:1], -100)])
    assert task.loss(torch.cat([logits, logits[:1]]), padded).item() == pytest.approx(expected.item(), rel=1e-5)


def test_balanced_class_weights():
    targets = [np.array(label) for label in [0, 0, 0, 1]]
    task = TASK_CLASSES["classes"](("label",), ("a", "b", "c"))
    weights = task.class_weights(targets)
    assert weights.tolist() == [2 / 3, 2, 1]
    logits = torch.zeros(4, 3)
    loss = task.loss(logits, torch.tensor([0, 0, 0, 1]), torch.from_numpy(weights).float())
    assert loss.item() == pytest.approx(4 * np.log(3))
    multi_label = TASK_CLASSES["multi-label"](("x", "y"), ("x", "y"))
    assert multi_label.class_weights([np.array([1, 0]), np.array([0, 0]), np.array([0, 0])]).tolist() == [2, 3]
    # A label of all rows still trains its output.
    assert multi_label.class_weights([np.array([1, 0]), np.array([1, 0]), np.array([1, 1])]).tolist() == [1, 2]


def test_kmer_tokens_of_a_window_are_those_of_the_sequence():
    tokenizer = KmerTokenizer(3)
    tokenized = rows.token_rows(tokenizer, ["ACGTTGCAAGT"], [np.array(1)], 6, long="window")
    ids = tokenizer("ACGTTGCAAGT")["input_ids"][1:-1]
    assert [piece[1:-1].tolist() for piece in tokenized[0].windows] == [
        ids[start : start + 4] for start in (0, 2, 4, 5)
    ]
    assert tokenized.num_long == 1 and tokenized.lengths == [24]
