"""`dnabert-rm plan`: which stage fits, the advice, and invalid flags."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, random_bases, write_prepared

from dnabert_rm.cli.main import main
from dnabert_rm.config import RunConfig, load_preset, preset_names, resolve
from dnabert_rm.config.deepspeed_config import ZeroSettings, load_ds_config
from dnabert_rm.data.batching import make_batch_plan
from dnabert_rm.masking.schedule import make_mask_schedule
from dnabert_rm.model.flops import num_parameters, training_flops_per_token
from dnabert_rm.planning.planner import (
    USABLE_SHARE,
    Job,
    advice,
    advice_line,
    best_option,
    estimate,
    estimate_stages,
    job_of_run,
    largest_micro_batch,
    make_job,
    message_bytes,
    zero_settings,
)
from dnabert_rm.utils.errors import ConfigError

GIB = 2**30
VOCAB = 4101


def run_config(preset: str, **train: object) -> RunConfig:
    needed = {"data": {"path": ["x"]}, "train": {"output": "x", **train}}
    return resolve(load_preset(preset), needed)


def job(preset: str, world_size: int, on_gpu: bool = True, **train: object) -> Job:
    return make_job(run_config(preset, **train), VOCAB, world_size, on_gpu)


@pytest.mark.parametrize("world_size", [1, 8, 64])
def test_states_are_the_zero_papers_bytes_per_parameter(world_size: int) -> None:
    """2 + 2 + 12 bytes; each stage divides more of them among the ranks."""
    work = job("10b", world_size, micro_batch=1, global_batch=64 * 64)
    P = num_parameters(work.shape)
    held = {stage: estimate(work, ZeroSettings(stage, reduce_bucket=1)) for stage in (1, 2, 3)}
    assert all(memory.optimizer == pytest.approx(12 * P / world_size) for memory in held.values())
    assert held[1].weights == held[2].weights == 2 * P
    assert held[3].weights == pytest.approx(2 * P / world_size)
    assert held[1].gradients >= 2 * P  # accumulated over the micro-batches before they are divided
    assert held[3].gradients == pytest.approx(2 * P / world_size, rel=0.02)
    if world_size > 1:
        assert held[1].total > held[2].total > held[3].total
    single_rank = job("1b", 1, on_gpu=False, micro_batch=1)
    memory = estimate(single_rank, ZeroSettings(0))
    P = num_parameters(single_rank.shape)
    assert memory.weights + memory.optimizer == 12 * P  # fp32 without ZeRO: no master copy


def test_offload_moves_states_to_the_host() -> None:
    work = job("3b", 8)
    on_gpu, off = (
        next(o for o in estimate_stages(work, None) if o.name == name) for name in ("zero3", "zero3_offload")
    )
    assert (off.memory.weights, off.memory.optimizer) == (0, 0)
    assert off.memory.total < on_gpu.memory.total
    assert off.memory.host == pytest.approx(20 * num_parameters(work.shape) / 8)
    assert on_gpu.memory.host == 0


def test_memory_grows_with_the_micro_batch_and_the_largest_that_fits_is_found() -> None:
    work = job("base", 8)
    for option in estimate_stages(work, 80 * GIB):
        totals = {
            size: estimate(work.with_micro_batch(size), option.zero).total for size in work.possible_micro_batches()
        }
        assert list(totals.values()) == sorted(totals.values(), reverse=True)
        assert [size for size in totals if 256 % size] == []
        for size, total in totals.items():
            assert largest_micro_batch(work, option.zero, total) == size
            assert largest_micro_batch(work, option.zero, total - 1) == size // 2


def test_a_batch_warm_up_limits_the_micro_batch_to_what_divides_every_batch() -> None:
    warmed = {"batch_start": 96, "batch_increment": 32, "batch_warmup_steps": 10, "global_batch": 256, "micro_batch": 8}
    assert job("tiny", 2, **warmed).possible_micro_batches() == [16, 8, 4, 2, 1]


def test_the_lowest_stage_that_fits_is_advised() -> None:
    work = job("10b", 64, micro_batch=1)
    found = estimate_stages(work, 80 * GIB)
    totals = {option.name: option.memory.total for option in found}
    for name in ("zero1", "zero2", "zero3"):
        memory = 1.01 * totals[name] / USABLE_SHARE
        best = best_option(estimate_stages(work, memory))
        assert best is not None and best.name == name
        assert "fits, tightly" in advice(work, estimate_stages(work, memory), memory, "zero1")
        assert "tightly" not in advice(work, estimate_stages(work, 10 * memory), 10 * memory, "zero1")
    assert best_option(estimate_stages(work, 1)) is None


def test_zero3_where_stage_1_fits_is_called_pointless() -> None:
    work = job("base", 8, micro_batch=32)
    text = advice(work, estimate_stages(work, 80 * GIB), 80 * GIB, "zero3")
    assert "ZeRO-3 (zero3) is not needed" in text and text.endswith("choose --ds-config zero1")
    assert "pointless" not in advice(work, estimate_stages(work, 80 * GIB), 80 * GIB, "zero1")
    work = job("10b", 16, micro_batch=1)
    assert "pointless" not in advice(work, estimate_stages(work, 40 * GIB), 40 * GIB, "zero3")


@pytest.mark.parametrize(
    ("preset", "gpus", "memory", "expected"),
    [
        ("base", 1, 16, "--ds-config zero1 --micro-batch 64"),
        ("10b", 16, 16, "--model.activation_checkpointing"),
        ("10b", 1, 80, "--ds-config zero3_offload"),
        ("10b", 1, 2, "more GPUs"),
    ],
)
def test_if_nothing_fits_flags_that_fit_are_named(preset: str, gpus: int, memory: int, expected: str) -> None:
    work = job(preset, gpus)
    text = advice(work, estimate_stages(work, memory * GIB), memory * GIB, "zero3")
    assert "no stage fits" in text and expected in text
    if "--micro-batch" in text:
        name, size = text.split("--ds-config ")[1].split()[0], int(text.split("--micro-batch ")[1].split()[0])
        changed = work.with_micro_batch(size, "checkpointing" in text)
        assert next(o for o in estimate_stages(changed, memory * GIB) if o.name == name).fits


def test_message_bytes_are_those_of_each_stage() -> None:
    work = job("10b", 4, micro_batch=16, global_batch=256)  # 4 micro-batches a step
    unit = 2 * num_parameters(work.shape) * 3 / 4
    assert [message_bytes(work, ZeroSettings(stage)) / unit for stage in (0, 1, 2, 3)] == [2, 3, 9, 12]
    small = job("base", 4, micro_batch=64, global_batch=256)
    unit = 2 * num_parameters(small.shape) * 3 / 4
    assert message_bytes(small, ZeroSettings(3)) / unit == 2  # gathered once, kept for the backward pass
    assert message_bytes(job("base", 1), ZeroSettings(3)) == 0


def test_settings_are_read_from_deepspeeds_names() -> None:
    zero = {
        "stage": 3,
        "reduce_bucket_size": 7,
        "stage3_max_live_parameters": 8,
        "stage3_prefetch_bucket_size": "auto",
        "offload_param": {"device": "cpu"},
    }
    found = ZeroSettings.from_ds({"zero_optimization": zero, "data_types": {"grad_accum_dtype": "fp32"}}, "bf16")
    expected = ZeroSettings(3, reduce_bucket=7, max_live=8, overlap=True, offload_weights="cpu", gradient_bytes=4)
    assert found == expected
    assert ZeroSettings.from_ds({}, "fp32") == ZeroSettings(0)
    assert not ZeroSettings.from_ds({"zero_optimization": {"stage": 2}}, "bf16").overlap


def test_only_deepspeeds_own_engine_trains_in_fp16() -> None:
    settings = load_ds_config("zero1")[1]
    bf16, fp16 = (ZeroSettings.from_ds(settings, precision) for precision in ("bf16", "fp16"))
    assert bf16.flat_gradients and not fp16.flat_gradients
    works = [job("tiny", 8, precision=precision) for precision in ("bf16", "fp16")]
    buckets = [estimate(work, zero_settings(work, "zero1")).buffers for work in works]
    # In fp16 it has two of DeepSpeed's buckets of 5e8 values, in bf16 one copy of the gradients.
    assert buckets[0] < 2**24 and buckets[1] == pytest.approx(2 * 2 * 5e8, rel=0.01)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_several_micro_batches_need_fp32_gradients(stage: int) -> None:
    work = job("base", 8, precision="bf16")
    many = dataclasses.replace(work, split=dataclasses.replace(work.split, global_batch=work.split.global_batch * 4))
    zero = zero_settings(work, f"zero{stage}")
    assert zero.fp32_accumulation and (work.accumulation, many.accumulation) == (1, 4)
    in_bf16 = dataclasses.replace(zero, fp32_accumulation=False)
    assert estimate(work, zero) == estimate(work, in_bf16)
    more = estimate(many, zero).total - estimate(many, in_bf16).total
    assert (more > 0) == (stage > 1)  # at stage 1, the peak is at another moment
    if stage == 1:
        assert message_bytes(many, zero) == message_bytes(many, in_bf16) * 3 / 2


def test_auto_is_fp32_at_stage_0(capsys) -> None:
    """The run itself decides so."""
    code, out, err = plan(capsys, "--preset", "tiny", "--ds-config", "zero0")
    assert (code, err) == (0, "") and ", fp32, " in out


def test_a_file_like_a_shipped_one_needs_no_change(tmp_path: Path, capsys) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text((ROOT / "ds_configs" / "zero1.json").read_text())
    flags = ["--preset", "base", "--gpus", "8", "--gpu-memory", "80", "--ds-config", str(mine)]
    _, out, _ = plan(capsys, *flags)
    advice = out.splitlines()[-1]
    assert advice.startswith(f"{mine} takes an estimated") and "choose" not in advice and "lowest stage" in advice


def test_offload_that_is_not_needed_is_named(capsys) -> None:
    flags = "--preset 10b --gpus 64 --gpu-memory 20 --micro-batch 2 --ds-config zero3_offload"
    assert plan(capsys, *flags.split())[1].rstrip().endswith("choose --ds-config zero3")


def test_a_resumed_run_keeps_or_avoids_stage_0() -> None:
    work = job("tiny", 1, on_gpu=False, precision="fp32")
    config = resolve(load_preset("tiny"), {"data": {"path": ["x"]}, "train": {"output": "x", "precision": "fp32"}})
    plan_, schedule = make_batch_plan(config), make_mask_schedule(config, 6)
    resumed = job_of_run(config, VOCAB, plan_, work.split, schedule, on_gpu=False, first_step=5)
    assert "zero0" in work.choices and "zero0" not in resumed.choices
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, ds_config="zero0"))
    resumed = job_of_run(config, VOCAB, plan_, work.split, schedule, on_gpu=False, first_step=5)
    assert resumed.choices == ("zero0",)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, ds_config="zero3_nvme"))
    assert job_of_run(config, VOCAB, plan_, work.split, schedule, on_gpu=False, first_step=5).choices == ()


def test_tokens_follow_the_batch_size_and_the_lengths(capsys) -> None:
    words = ["--preset", "tiny", "--steps", "300", "--global-batch", "16", "--window", "66", "--json"]
    tokens = [
        json.loads(plan(capsys, *words, *more)[1])["time"]["tokens"]
        for more in (
            [],
            ["--train.batch_start", "4", "--train.batch_warmup_steps", "300"],
            ["--data.lengths", "random"],
        )
    ]
    # Stages of 100 steps with 4, 8 and 12 windows. Of random lengths, half are 64 tokens, half from 5 to 64.
    assert tokens == [300 * 16 * 66, 100 * (4 + 8 + 12) * 66, 300 * 16 * ((64 + 34.5) / 2 + 2)]


def test_advice_for_a_run_is_one_line() -> None:
    line = advice_line(job("base", 8, precision="bf16"), 80 * GIB, "zero3")
    assert line.startswith("plan: ") and "\n" not in line and "not needed" in line
    cpu = advice_line(job("base", 2, on_gpu=False, precision="fp32", micro_batch=0), 16 * GIB, "zero3")
    assert "no stage fits: choose --ds-config zero0 --micro-batch " in cpu
    with pytest.raises(ConfigError, match="stage 0"):
        advice_line(job("base", 8, precision="bf16"), 80 * GIB, "zero0")


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_prints_a_table_and_the_advice(capsys) -> None:
    flags = "--preset 3b --gpus 64 --gpu-memory 80 --gpu h100 --tokens 1e12 --bandwidth 50"
    code, out, err = plan(capsys, *flags.split())
    assert (code, err) == (0, "")
    assert "2,942,772,741 parameters" in out and "days" in out
    names = [line.split()[0] for line in out.splitlines() if line.startswith("zero")]
    assert names[:4] == ["zero1", "zero2", "zero3*", "zero3_offload"]
    assert out.rstrip().endswith("choose --ds-config zero1")


def test_json_is_one_object_whose_numbers_agree(capsys) -> None:
    flags = "--preset base --gpus 8 --gpu-memory 80 --gpu a100 --mfu 0.5 --tokens 1e9 --bandwidth 10 --json"
    code, out, _ = plan(capsys, *flags.split())
    report = json.loads(out)
    assert code == 0 and report["estimate"] is True
    time, flops = report["time"], report["flops_per_token"]
    assert time["seconds"] == pytest.approx(1e9 * flops["training"] / (8 * 312e12 * 0.5))
    assert time["tokens_per_second"] == pytest.approx(1e9 / time["seconds"])
    assert flops["training"] == pytest.approx(3 * flops["forward"])
    for option in report["options"]:
        memory = option["memory"]
        parts = sum(memory[name] for name in ("weights", "gradients", "optimizer", "activations", "buffers"))
        assert parts == pytest.approx(memory["total"], abs=5)
        assert option["fits"] == (memory["total"] <= report["usable_bytes"])
        assert option["message_seconds"] == pytest.approx(option["message_bytes"] / 1e10)


def test_the_vocabulary_is_that_of_the_data_if_given(tmp_path: Path, capsys) -> None:
    write_prepared(tmp_path / "prepared", [[random_bases(np.random.default_rng(0), 200)]], k=3)
    _, out, _ = plan(capsys, "--preset", "tiny", "--data", str(tmp_path / "prepared"), "--json")
    assert json.loads(out)["model"]["vocab_size"] == 69
    _, out, _ = plan(capsys, "--preset", "tiny", "--k", "4", "--json")
    assert json.loads(out)["model"]["vocab_size"] == 261


@pytest.mark.parametrize(("ds_config", "precision"), [("zero0", "fp32"), ("zero3", "bf16")])
def test_check_prints_the_memory_of_a_rank(ds_config: str, precision: str, tmp_path: Path, capsys) -> None:
    write_prepared(tmp_path / "prepared", [[random_bases(np.random.default_rng(0), 4000)]], k=6)
    data, output = str(tmp_path / "prepared"), str(tmp_path / "run")
    words = ["--preset", "small", "--global-batch", "16", "--window", "64", "--steps", "10", "--ds-config", ds_config]
    assert main(["check", *words, "--data", data, "--output", output]) == 0
    train = {"output": output, "global_batch": 16, "steps": 10, "ds_config": ds_config}
    config = resolve(load_preset("small"), {"data": {"path": [data], "window": 64}, "train": train})
    work = make_job(config, VOCAB, 1, ds_config != "zero0")
    (option,) = [option for option in estimate_stages(work, None, ds_config) if option.name == ds_config]
    expected = f"memory: {ds_config} takes an estimated {option.memory.total / GIB:.1f} GiB per rank in {precision} ("
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--gpus", "0"], "--gpus 0: must be at least 1"),
        (["--gpus", "3"], "choose a multiple of 3"),
        (["--gpu", "abacus"], "--gpu abacus: unknown GPU"),
        (["--gpu-memory", "-1"], "--gpu-memory -1: must be above 0"),
        (["--mfu", "40"], "--mfu 40: must be at most 1"),
        (["--k", "0"], "--k 0"),
        (["--ds-config", "zero9"], "--ds-config zero9: no such file"),
        (["--ds-config", "zero0", "--precision", "bf16"], "stage 0"),
        (["--preset", "huge"], "--preset huge: no such preset"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_invalid_flags_give_one_line(capsys, words: list[str], text: str) -> None:
    code, out, err = plan(capsys, *words)
    assert (code, out) == (2, "")
    assert text in err and len(err.splitlines()) == 1


def test_a_plan_needs_no_torch() -> None:
    code = "import sys, dnabert_rm.cli.main as m; m.main(['plan', '--gpus', '8']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_the_table_of_the_documentation_is_what_plan_computes() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    for preset in preset_names():
        assert table_row(preset) in text, f"docs/training.md should hold:\n{table_row(preset)}"
    large = [preset for preset in preset_names() if job(preset, 8, micro_batch=8).shape.architecture == "modernbert"]
    assert sorted(large) == ["10b", "1b", "3b"], "the sentence below the table names the presets from `1b`"


def table_row(preset: str) -> str:
    """Return the preset's row: size, operations, and for each stage GiB per rank on 8 and 64 GPUs."""
    jobs = {gpus: job(preset, gpus, micro_batch=8) for gpus in (8, 64)}
    work = jobs[8]
    per_token = training_flops_per_token(work.shape, 512, work.masked) / 1e9
    millions = num_parameters(work.shape) / 1e6
    stages = zip(*(estimate_stages(jobs[gpus], None) for gpus in (8, 64)), strict=True)
    cells = [", ".join(f"{option.memory.total / GIB:.1f}" for option in stage) for stage in stages]
    return f"| `{preset}` | {millions:,.1f} M | {per_token:,.3f} | " + " | ".join(cells) + " |"
