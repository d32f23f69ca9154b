"""Losses, class weights and rows of the fine-tuning tasks."""

import numpy as np
import pytest
import torch

from dnabert_rm.finetune import token_rows as rows
from dnabert_rm.finetune.finetune_settings import TASKS
from dnabert_rm.finetune.task_heads import TASK_CLASSES
from dnabert_rm.tokenizer import KmerTokenizer


def test_every_task_has_its_class():
    assert tuple(TASK_CLASSES) == TASKS


def test_which_tokens_speak_for_which_bases():
    """7 bases at k = 3: 5 overlapping tokens, or 2 others and a base that is in none."""
    pairs = [set(zip(*(a.tolist() for a in rows.speakers(range(5), 5, 7, 3, 1)), strict=True))]
    assert pairs[0] == {(base, token) for token in range(5) for base in range(token, token + 3)}
    bases, tokens = rows.speakers(range(2), 2, 7, 3, 3)
    assert (bases.tolist(), tokens.tolist()) == ([0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1, 1])
    bases, tokens = rows.speakers(range(1, 3), 5, 7, 3, 1)
    assert (bases.tolist(), tokens.tolist()) == ([1, 2, 3, 2, 3, 4], [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("name", ["classes", "multi-label", "regression", "bases"])
def test_loss_is_a_sum_over_what_is_not_ignored(name):
    """A row that fills up a batch adds nothing, and the rest is transformers' loss times its number of targets."""
    task = TASK_CLASSES[name](("a", "b"), ("a", "b"), (0.0, 0.0), (1.0, 1.0))
    torch.manual_seed(0)
    shape = {"classes": (3,), "bases": (3, 4)}.get(name, (3, 2))
    logits = torch.randn(3, 4, 2) if name == "bases" else torch.randn(3, 2)
    targets = torch.randint(2, shape) if name in ("classes", "bases") else torch.rand(shape)
    flat = (logits.flatten(0, -2), targets.flatten()) if name in ("classes", "bases") else (logits, targets)
    mean = {"multi-label": torch.nn.BCEWithLogitsLoss(), "regression": torch.nn.MSELoss()}
    expected = mean.get(name, torch.nn.CrossEntropyLoss())(*flat) * targets.numel()
    assert task.loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    filled = torch.cat([targets, torch.full_like(targets[:1], -100)])
    assert task.loss(torch.cat([logits, logits[:1]]), filled).item() == pytest.approx(expected.item(), rel=1e-5)


def test_balanced_classes_weigh_alike():
    targets = [np.array(number) for number in [0, 0, 0, 1]]
    task = TASK_CLASSES["classes"](("label",), ("a", "b", "c"))
    weights = task.class_weights(targets)
    assert weights.tolist() == [2 / 3, 2, 1]
    logits = torch.zeros(4, 3)
    loss = task.loss(logits, torch.tensor([0, 0, 0, 1]), torch.from_numpy(weights).float())
    assert loss.item() == pytest.approx(4 * np.log(3))
    several = TASK_CLASSES["multi-label"](("x", "y"), ("x", "y"))
    assert several.class_weights([np.array([1, 0]), np.array([0, 0]), np.array([0, 0])]).tolist() == [2, 3]


def test_kmer_tokens_of_a_window_are_those_of_the_sequence():
    tokenizer = KmerTokenizer(3)
    made = rows.token_rows(tokenizer, ["ACGTTGCAAGT"], [np.array(1)], 6, long="window")
    ids = tokenizer("ACGTTGCAAGT")["input_ids"][1:-1]
    assert [piece[1:-1].tolist() for piece in made[0].windows] == [ids[start : start + 4] for start in (0, 2, 4, 5)]
    assert made.num_long == 1 and made.lengths == [24]
