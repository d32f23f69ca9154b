"""Fine-tuning on two ranks equals fine-tuning on one."""

import pytest
import torch
from finetuning import data_of, save_model, settings_for, write_classes
from safetensors.torch import load_file
from support import on_ranks

from dnabert_rm.finetune.finetune_model import finetune


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("pretrained") / "hf")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"))


def finetune_on_a_rank(ranks, several):
    return [(scores["metrics"], scores["steps"]) for scores in map(finetune, several)]


def test_two_ranks_equal_one(model, classes, tmp_path):
    """The weights agree to rounding for rows of several lengths, an odd number of rows, and windows."""
    (tmp_path / "bases").mkdir()
    data = {"classes": classes, "bases": data_of("bases", ("label",), tmp_path / "bases")}
    common = {"dropout": 0.0, "batch_size": 14, "max_steps": 14, "long": "window", "max_tokens": 16}
    on_one_rank, on_two_ranks = (
        [settings_for(model, data[task], tmp_path / name / task, task=task, **common) for task in data]
        for name in ("one_rank", "two_ranks")
    )
    expected = finetune_on_a_rank(None, on_one_rank)
    found = on_ranks(2, finetune_on_a_rank, on_two_ranks)
    assert found[0] == found[1]
    for one, two, settings in zip(expected, found[0], on_two_ranks, strict=True):
        assert one[1] == two[1]
        for split, scores in one[0].items():
            assert two[0][split] == pytest.approx(scores, abs=1e-4)
        files = [tmp_path / name / settings.task / "model" / "model.safetensors" for name in ("one_rank", "two_ranks")]
        weights = [load_file(file) for file in files]
        assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-4) for name in weights[0])
        assert len(list((settings.output / "tensorboard").iterdir())) == 1, "one rank writes"
        name = "bert.embeddings.LayerNorm.weight"
        assert not torch.allclose(load_file(model / "model.safetensors")[name], weights[0][name], atol=2e-3)


def test_order_of_rows_is_the_same_on_one_rank():
    from dnabert_rm.finetune.hf_trainer import RowSampler

    for lengths in ([9] * 23, [*range(5, 28)]):
        one, two = (list(RowSampler(lengths, 6, 3, pad_last_batch)) for pad_last_batch in (False, True))
        assert two == [*one, 23] and sorted(one) == list(range(23))
