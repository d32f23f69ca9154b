"""Configuration: layers, strict keys, every error at once, flags."""

from __future__ import annotations

import tomllib

import pytest
from support import run_cli

from dnabert_rm.cli.check import COMMAND
from dnabert_rm.config import free_on_resume, load_preset, preset_names, resolve, run_settings
from dnabert_rm.config.run_config import ignored_settings
from dnabert_rm.utils.errors import ConfigError

NEEDED = {"data": {"path": ["prepared"]}, "train": {"output": "run"}}


def parsed(*words: str):
    _, flags = COMMAND.parse("check", ["--data", "prepared", "--output", "run", *words])
    return flags.config()


def test_later_layers_win_and_defaults_fill_the_rest() -> None:
    config = resolve({"optim": {"lr": 1e-3}, "model": {"num_layers": 3}}, {"optim": {"lr": 2e-3}}, NEEDED)
    assert (config.optim.lr, config.model.num_layers, config.optim.beta2) == (2e-3, 3, 0.98)


def test_every_error_is_reported_at_once_with_a_near_name() -> None:
    with pytest.raises(ConfigError) as raised:
        resolve({"model": {"hiden_size": 3}, "trian": {}, "data": {"window": "a"}}, NEEDED)
    lines = str(raised.value).split("\n  ")
    assert len(lines) == 3
    assert "did you mean 'model.hidden_size'" in lines[0]
    assert "did you mean 'train'" in lines[1]
    assert "data.window: 'a' is not of type int" in lines[2]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "hidden_size", 130),
        ("model", "architecture", "gpt"),
        ("model", "rope_period", 3.0),
        ("data", "window", 513),
        ("data", "window", 2),
        ("data", "strand", "reverse"),
        ("train", "steps", 0),
        ("train", "seed", -1),
        ("train", "precision", "fp8"),
        ("optim", "lr", 0.0),
        ("optim", "schedule", "step"),
        ("optim", "decay_share", 0.0),
        ("optim", "decay_share", 1.5),
        ("train", "start_timeout_seconds", 0.0),
        ("train", "hang_timeout_seconds", -1.0),
        ("train", "keep_every", 1500),
        ("train", "resume", ""),
        ("train", "output", ""),
        ("data", "path", []),
        ("validation", "spans", [6, 0]),
        ("model", "hidden_size", 0),
        ("model", "dropout", 1.5),
        ("data", "cache_gb", -1.0),
        ("optim", "beta2", 1.0),
        ("optim", "eps", -1e-6),
        ("optim", "clip", -1.0),
        ("optim", "warmup_steps", -2),
        ("train", "threads_per_rank", -1),
        ("train", "output", "runs/\udcff"),
        ("data", "path", ["a", "b\udcff"]),
    ],
)
def test_a_value_that_cannot_be_right_is_named(section: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{section}.{key}[: ]"):
        resolve(NEEDED, {section: {key: value}})


def test_rotary_positions_can_have_a_period_of_two_tokens_or_more() -> None:
    for period in (0.0, 2.0, 3.0):
        assert resolve(NEEDED, {"model": {"architecture": "modernbert", "rope_period": period}})
    with pytest.raises(ConfigError, match=r"^model.rope_period 1.9: must be 0, or at least 2"):
        resolve(NEEDED, {"model": {"architecture": "modernbert", "rope_period": 1.9}})


def test_a_batch_warm_up_leaves_no_remainder_to_drop() -> None:
    with pytest.raises(ConfigError, match=r"data\.remainder drop: not possible with a batch-size warm-up"):
        resolve(NEEDED, {"data": {"remainder": "drop"}, "train": {"batch_start": 8}})


def test_a_boolean_is_no_integer_and_a_float_no_integer() -> None:
    for value in (True, 1.0, "1"):
        with pytest.raises(ConfigError, match=r"train\.steps"):
            resolve(NEEDED, {"train": {"steps": value}})


def test_toml_round_trip_keeps_everything() -> None:
    config = resolve(load_preset("base"), NEEDED, {"masking": {"phase_ends": [0.5, 1.0], "phase_spans": [6, 9]}})
    assert resolve(tomllib.loads(config.to_toml())) == config


def test_presets_grow_and_all_resolve() -> None:
    assert preset_names()[:4] == ["tiny", "mini", "small", "base"]
    for name in preset_names():
        resolve(load_preset(name), NEEDED)
    base = resolve(load_preset("base"), NEEDED).model
    assert (base.hidden_size, base.num_layers, base.num_heads, base.intermediate_size, base.dropout) == (
        768, 12, 12, 3072, 0.1,
    )  # fmt: skip


def test_a_preset_sizes_each_architecture_for_itself() -> None:
    assert parsed("--preset", "base").model.intermediate_size == 3072
    assert parsed("--preset", "base", "--model.architecture", "modernbert").model.intermediate_size == 2048
    assert parsed("--preset", "tiny").model.rope_period == 0
    assert parsed("--preset", "tiny", "--model.architecture", "modernbert").model.rope_period == 3
    assert parsed("--preset", "1b").model.architecture == "modernbert"
    assert parsed("--preset", "1b", "--model.architecture", "bert").model.intermediate_size == 8192


def test_every_field_is_documented() -> None:
    assert all(item.text.strip().endswith((".", "…")) for item in run_settings().values())


def test_a_default_as_it_is_shown_is_what_its_flag_takes() -> None:
    shown = {name: item for name, item in run_settings().items() if item.shown_default != "empty"}
    assert len(shown) > 50
    words = [word for name, item in shown.items() for word in (f"--{name}", item.shown_default)]
    config = parsed(*words)
    for name, item in shown.items():
        section, key = name.split(".")
        assert getattr(getattr(config, section), key) == item.default, name


def test_fields_that_a_resume_may_change() -> None:
    assert run_settings().keys() > free_on_resume() > {"train.keep_last", "data.path"}


def test_the_page_of_all_fields_is_what_the_code_says() -> None:
    done = run_cli("docs/write_configuration.py", "--check")
    assert done.returncode == 0, done.stderr


def test_the_text_of_a_field_names_all_its_choices() -> None:
    items = {name: item for name, item in run_settings().items() if item.choices}
    assert len(items) >= 10
    for name, item in items.items():
        assert all(choice == "auto" or f'"{choice}"' in item.text for choice in item.choices), name


def test_flags_short_and_dotted_lists_and_booleans() -> None:
    config = parsed("--phase-ends", "10,20", "30", "--phase-spans", "6", "8", "10", "--optim.eps", "1e-7", "--lr", "1",
                    "--data.overlap", "false", "--preset", "tiny", "--allow-changes")  # fmt: skip
    assert config.masking.phase_ends == (10.0, 20.0, 30.0)
    assert config.masking.phase_spans == (6, 8, 10)
    assert (config.optim.eps, config.optim.lr, config.data.overlap, config.train.allow_changes) == (
        1e-7,
        1,
        False,
        True,
    )
    assert config.model.hidden_size == 128


def test_wrong_flags_are_named_together() -> None:
    with pytest.raises(ConfigError) as raised:
        parsed("--steps", "many", "--lr", "high")
    assert "--steps many: must be of type int" in str(raised.value)
    assert "--lr high: must be of type float" in str(raised.value)


def test_an_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match="no such preset; choose one of tiny, mini"):
        parsed("--preset", "huge")


def test_unknown_flags_wrong_types_and_wrong_values_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        parsed("--stepss", "3", "--lr", "high", "--model.num_heads", "7")
    lines = str(raised.value).split("\n  ")
    assert len(lines) == 3
    assert "unrecognized arguments: --stepss 3; did you mean '--steps'?" in lines[0]
    assert lines[1] == "--lr high: must be of type float"
    assert lines[2].startswith("model.hidden_size 768: must be a multiple of model.num_heads (7)")


@pytest.mark.parametrize("value", [False, True])
def test_a_removed_setting_of_a_stored_configuration_is_ignored(value: bool) -> None:
    """Runs before this version stored every setting, and must resume and export."""
    needed = {"data": {"path": ["d"]}, "train": {"output": "r"}}
    assert resolve(needed, {"data": {"allow_pipe": value}}) == resolve(needed)


@pytest.mark.parametrize(("steps", "every"), [(4, 50), (600, 75), (4000, 500), (100_000, 1000)])
def test_a_run_is_validated_eight_times_or_every_thousand_steps(steps: int, every: int) -> None:
    needed = {"data": {"path": ["d"]}, "train": {"output": "r", "steps": steps}}
    assert resolve(needed).validation.every == every
    assert resolve(needed, {"validation": {"every": 3}}).validation.every == 3
    assert resolve(needed, {"validation": {"every": 0}}).validation.every == 0


def test_every_value_can_be_read_from_the_written_file() -> None:
    """Among them infinite numbers, and characters that JSON and TOML write differently."""
    config = resolve(
        NEEDED,
        {
            "data": {"path": ['a "b"\\\n\x7f', "é😀"], "weights": [1.0, 2.5], "cache_gb": float("inf")},
            "optim": {"clip": float("inf"), "eps": 1e-30, "lr": 1e22},
            "train": {"output": "runs/😀", "hang_timeout_seconds": float("inf"), "trackers": []},
        },
    )
    assert resolve(tomllib.loads(config.to_toml())) == config


def test_settings_without_an_effect_are_named() -> None:
    assert list(ignored_settings(resolve(NEEDED))) == []
    config = resolve(
        NEEDED,
        {"masking": {"policy": "fixed", "phase_spans": [6], "fixed_span": 14}, "train": {"batch_increment": 4},
         "optim": {"schedule": "wsd", "decay_share": 0.2}, "model": {"loss_switch": 0.25}, "data": {"weights": [1.0]}},
    )  # fmt: skip
    assert list(ignored_settings(config)) == [
        "model.loss_switch has no effect without model.loss base-then-token",
        "data.weights has no effect without several data sets",
        "masking.phase_spans has no effect without masking.policy randommask or randommask-matched",
        "train.batch_increment has no effect without train.batch_start",
    ]
