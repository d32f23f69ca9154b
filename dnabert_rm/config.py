"""Configuration of a pretraining run: frozen dataclasses, presets, strict keys, every error at once.

A value comes from, weakest first: the default below, the preset, a TOML file (`--config`), a flag.
Text under a field documents it, and is what `--help` prints.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import json
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any

from dnabert_rm.errors import ConfigError

ARCHITECTURES = ("bert", "modernbert")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LR_SCHEDULES = ("linear", "cosine", "wsd", "constant")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
BUILDS = ("auto", "whole", "partitioned")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture; a preset sets all of it."""

    architecture: str = "bert"
    """"bert" (post-norm, learned positions; DNABERT's) or "modernbert" (pre-norm, rotary, GeGLU)."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_layers: int = 12
    """Number of transformer layers."""
    num_heads: int = 12
    """Attention heads a layer; divides hidden_size."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""
    max_positions: int = 512
    """Longest sequence, special tokens included."""
    dropout: float = 0.0
    """Dropout of hidden states and attention in pretraining (DNABERT's is 0.1)."""
    attention: str = "sdpa"
    """Attention kernel: "sdpa", "eager" or "flash_attention_2" (flash-attn, a GPU, bf16 or fp16)."""
    activation_checkpointing: bool = False
    """Keep a layer's input only and compute the rest again in the backward pass: less memory, a third more work."""
    compile: bool = False
    """torch.compile each layer; under ZeRO-3, whose hooks cut a layer to pieces, it is refused."""
    init_from: str = ""
    """Hugging Face folder (an export, or DNABERT's layout) to begin from; it sets the architecture and its sizes."""
    build: str = "auto"
    """"whole" on every rank, "partitioned" while it is built (ZeRO-3), or "auto": partitioned above 10^9 parameters."""


@dataclass(frozen=True)
class DataConfig:
    """What is read and how windows are cut from it."""

    path: tuple[str, ...] = ()
    """Prepared folders (`python -m data_prep build`) or their URLs; several are mixed by `weights`."""
    weights: tuple[float, ...] = ()
    """Share of each folder in the samples; empty: equal."""
    split: str = "train"
    """The split to train on."""
    window: int = 512
    """Tokens of a training sequence, [CLS] and [SEP] included."""
    lengths: str = "full"
    """"full" windows, or "random" (DNABERT's: half of the steps full, the others uniform from 5 tokens)."""
    overlap: bool = True
    """Overlapping k-mers (stride 1); false: non-overlapping ones, at a random offset."""
    strand: str = "forward"
    """"forward", "random" (half of the windows reverse-complemented) or "both" (each window twice an epoch)."""
    num_streams: int = 64
    """Lanes that an epoch's windows are dealt to."""
    block_windows: int = 65536
    """Windows of a lane that are shuffled together."""
    remainder: str = "wrap"
    """End of an epoch: "wrap" (a batch runs on into the next epoch) or "drop" (what fills no batch is left out)."""
    on_bad_shard: str = "fail"
    """A damaged or missing shard: "fail", or "skip" (other windows stand in; logged and counted)."""
    allow_pipe: bool = False
    """Allow `pipe:` URLs in data.path, which run a shell command."""
    cache_dir: str = "~/.cache/dnabert_rm/shards"
    """Folder on a local disk for shards that come from URLs; runs may share it."""
    cache_gb: float = 50.0
    """Most gigabytes (10^9 bytes) that cache_dir may take; the least recently used shards go first."""
    num_workers: int = 1
    """Loader processes a rank; 0 loads in the training process."""
    prefetch: int = 4
    """Micro-batches each worker holds ready."""


@dataclass(frozen=True)
class MaskingConfig:
    """RandomMask and the arms it is compared with (docs/randommask.md)."""

    policy: str = "randommask"
    """"randommask", "randommask-matched" (same masked fraction in every phase), "fixed" (one span) or "token"."""
    phase_ends: tuple[float, ...] = ()
    """Ends of the phases: steps, or fractions that end in 1; empty: the paper's five, scaled to the run."""
    phase_spans: tuple[int, ...] = ()
    """Largest span of each phase; empty: k, k + 2, k + 4 …"""
    centre_rate: float = 0.025
    """Chance p of a token to be the centre of a span."""
    draw: str = "uniform"
    """Span of a window: "uniform" over {k, k + 2 … largest} or "max"."""
    replacement: str = "token"
    """80/10/10 drawn for each "token" or for each united "span"."""
    fixed_span: int = 0
    """Span of policy "fixed"; 0: k, which is DNABERT's."""
    token_rate: float = 0.15
    """Masked fraction of policy "token"."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule; the defaults are DNABERT's."""

    lr: float = 4e-4
    """Peak learning rate."""
    schedule: str = "linear"
    """After the warm-up: "linear" or "cosine" decay to 0, "wsd" (stable, then linear decay to 0), or "constant"."""
    decay_share: float = 0.1
    """Share of the steps, at the end, in which "wsd" decays."""
    warmup_steps: int = -1
    """Steps of linear warm-up; -1: 10,000 of 480,000 steps, scaled to the run."""
    beta1: float = 0.9
    """AdamW's first decay rate."""
    beta2: float = 0.98
    """AdamW's second decay rate."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """Decoupled weight decay; none on biases and norms."""
    clip: float = 1.0
    """Largest global gradient norm; 0: no clipping."""


@dataclass(frozen=True)
class TrainConfig:
    """The run."""

    output: str = ""
    """Run folder: checkpoints, TensorBoard, metrics."""
    steps: int = 480_000
    """Optimizer steps; the phases and the learning rate are scaled to them."""
    stop_after: int = 0
    """End after this many steps, with a checkpoint, schedules unchanged; 0: at `steps`."""
    global_batch: int = 2048
    """Windows an optimizer step, over all ranks and accumulation steps."""
    micro_batch: int = 0
    """Windows a rank's forward pass; 0: the smallest global batch / ranks, without accumulation there."""
    batch_start: int = 0
    """First global batch of a batch-size warm-up, which grows to global_batch; 0: no warm-up."""
    batch_increment: int = 0
    """Windows by which the global batch grows at a time; 0: batch_start."""
    batch_warmup_steps: int = 0
    """Steps that the batch-size warm-up takes."""
    precision: str = "auto"
    """"fp32", "bf16", "fp16"; "auto": bf16 on a GPU that has it, else fp32."""
    seed: int = 42
    """Seed of everything: order, masks, weights, dropout."""
    save_every: int = 1000
    """Steps between checkpoints; the last step always has one."""
    keep_last: int = 2
    """Checkpoints to keep; 0: all."""
    keep_every: int = 0
    """Keep the checkpoint of every so many steps for ever, a multiple of save_every; 0: none."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl and TensorBoard."""
    ds_config: str = "zero3"
    """DeepSpeed configuration: a file, or the name of one in ds_configs/."""
    offload_dir: str = ""
    """Folder on a node's own NVMe disk, for a DeepSpeed configuration that offloads to it (zero3_nvme)."""
    resume: str = "auto"
    """"auto" (go on if the run folder has a checkpoint), "never", or a run or step_… folder to begin from."""
    allow_changes: bool = False
    """Resume although settings or data that change the result are not those of the checkpoint."""
    threads_per_rank: int = 0
    """CPU threads a rank; 0: the cores divided among the ranks of a machine."""
    start_timeout_seconds: float = 600.0
    """Longest wait for all ranks to start and find each other."""
    hang_timeout_seconds: float = 1800.0
    """Longest wait for a batch, a step or a save before the run ends with the stacks of all ranks; 0: no limit."""


@dataclass(frozen=True)
class RunConfig:
    """All sections; `resolve` makes one from a preset, a file and flags."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Sections as plain dictionaries; tuples become lists."""
        return json.loads(json.dumps(asdict(self)))

    def to_toml(self) -> str:
        """The configuration as TOML, which `--config` reads back."""
        lines = []
        for section, values in self.to_dict().items():
            # A JSON string, number, boolean or list of them is valid TOML as it stands.
            lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items()), ""]
        return "\n".join(lines)


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "masking": MaskingConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
}


@dataclass(frozen=True)
class FieldInfo:
    """One field for flags and documentation: dotted name, type, default, text."""

    name: str
    type: Any
    default: Any
    text: str


@cache
def field_infos() -> dict[str, FieldInfo]:
    """Every field by its dotted name, with the text under it in the source."""
    found = {}
    for section, cls in SECTIONS.items():
        hints, texts = typing.get_type_hints(cls), _field_texts(cls)
        for item in fields(cls):
            name = f"{section}.{item.name}"
            found[name] = FieldInfo(name, hints[item.name], item.default, texts[item.name])
    return found


def _field_texts(cls: type) -> dict[str, str]:
    """The string literal that follows each field in the class body."""
    body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    texts = {}
    for item, after in itertools.pairwise(body):
        if isinstance(item, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts[item.target.id] = str(after.value.value)  # type: ignore[union-attr]
    return texts


def preset_names() -> list[str]:
    """Names of the shipped presets, smallest model first."""
    folder = resources.files("dnabert_rm") / "presets"
    found = {item.name.removesuffix(".toml"): item for item in folder.iterdir() if item.name.endswith(".toml")}
    size = {name: _layers_and_width(item.read_text()) for name, item in found.items()}
    return sorted(found, key=lambda name: size[name])


def _layers_and_width(text: str) -> tuple[int, int]:
    model = tomllib.loads(text)["model"]
    return model["hidden_size"], model["num_layers"]


def load_preset(name: str, architecture: str | None = None) -> dict[str, Any]:
    """Sections of a shipped preset for an architecture, by default the preset's own.

    A preset's table `[ARCHITECTURE]` holds the model fields in which that architecture differs. `ConfigError` lists
    the names where there is no such preset.
    """
    if name not in preset_names():
        raise ConfigError(f"--preset {name}: no such preset; choose one of {', '.join(preset_names())}")
    sections = tomllib.loads((resources.files("dnabert_rm") / "presets" / f"{name}.toml").read_text())
    own = sections["model"].setdefault("architecture", ModelConfig.architecture)
    differences = {known: sections.pop(known, {}) for known in ARCHITECTURES}
    sections["model"] |= differences.get(architecture or own, {})
    return sections


def load_config_file(path: str) -> dict[str, Any]:
    """Sections of a user's TOML file; `ConfigError` names the file and what is wrong."""
    try:
        with open(path, "rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: no such file; check the path") from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {path}: {error}; mend the file") from None


def resolve(*layers: Mapping[str, Any]) -> RunConfig:
    """One configuration from layers of sections, weakest first; `ConfigError` holds all errors, one a line."""
    errors: list[str] = []
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for layer in layers:
        for section, content in layer.items():
            errors += _merge(values, section, content)
    config = RunConfig(**{section: cls(**values[section]) for section, cls in SECTIONS.items()})
    errors = errors or list(_mistakes(config))
    if errors:
        raise ConfigError("\n  ".join(errors))
    return config


def _merge(values: dict[str, dict[str, Any]], section: str, content: Any) -> Iterator[str]:
    """Put one section's content over what is there; yields a line for every key or value that is wrong."""
    if section not in SECTIONS or not isinstance(content, Mapping):
        yield f"[{section}]: unknown section{_did_you_mean(section, list(SECTIONS))}"
        return
    infos = field_infos()
    for key, value in content.items():
        name = f"{section}.{key}"
        if name not in infos:
            yield f"{name}: unknown field{_did_you_mean(name, list(infos))}"
            continue
        try:
            values[section][key] = _converted(value, infos[name].type)
        except (TypeError, ValueError):
            yield f"{name}: {value!r} is not of type {type_name(infos[name].type)}"


def _did_you_mean(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (there are: {', '.join(known)})" if len(known) < 9 else ""


def type_name(kind: Any) -> str:
    """How messages call a field's type: "int", "float", "list of int" …"""
    return f"list of {typing.get_args(kind)[0].__name__}" if typing.get_origin(kind) is tuple else kind.__name__


def _converted(value: Any, kind: Any) -> Any:
    """`value` as the field's type; TypeError or ValueError where it is of another (no silent rounding)."""
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_converted(item, typing.get_args(kind)[0]) for item in items)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError
    return value


def _mistakes(config: RunConfig) -> Iterator[str]:
    """Lines for values that can't be right together or alone."""
    model, data, optim, train = config.model, config.data, config.optim, config.train
    choices = {
        "model.architecture": (model.architecture, ARCHITECTURES),
        "model.attention": (model.attention, ATTENTIONS),
        "model.build": (model.build, BUILDS),
        "data.strand": (data.strand, ("forward", "random", "both")),
        "data.lengths": (data.lengths, ("full", "random")),
        "data.remainder": (data.remainder, ("wrap", "drop")),
        "data.on_bad_shard": (data.on_bad_shard, ("fail", "skip")),
        "optim.schedule": (optim.schedule, LR_SCHEDULES),
        "train.precision": (train.precision, PRECISIONS),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            yield f"{name}: {value!r} must be one of {', '.join(allowed)}"
    at_least = {
        "model.num_layers": 1, "model.num_heads": 1, "data.window": 3, "data.num_streams": 1, "data.block_windows": 1,
        "data.num_workers": 0, "data.prefetch": 1, "train.steps": 1, "train.global_batch": 1, "train.micro_batch": 0,
        "train.save_every": 1, "train.log_every": 1, "train.keep_last": 0, "train.stop_after": 0, "train.seed": 0,
        "train.keep_every": 0,
        "train.batch_start": 0, "train.batch_increment": 0, "train.batch_warmup_steps": 0,
    }  # fmt: skip
    for name, least in at_least.items():
        section, key = name.split(".")
        if (value := getattr(getattr(config, section), key)) < least:
            yield f"{name}: {value} must be at least {least}"
    if model.num_heads > 0 and model.hidden_size % model.num_heads:
        yield f"model.hidden_size: {model.hidden_size} must be a multiple of model.num_heads ({model.num_heads})"
    if data.window > model.max_positions:
        yield f"data.window: {data.window} is more than model.max_positions ({model.max_positions}); change one of them"
    if not train.start_timeout_seconds > 0:
        yield f"train.start_timeout_seconds: {train.start_timeout_seconds} must be above 0"
    if not optim.lr > 0:
        yield f"optim.lr: {optim.lr} must be above 0"
    if not 0 < optim.decay_share <= 1:
        yield f"optim.decay_share: {optim.decay_share} must be above 0 and at most 1"
    if train.keep_every > 0 and train.keep_every % max(1, train.save_every):
        yield f"train.keep_every: {train.keep_every} must be a multiple of train.save_every ({train.save_every})"
    if not train.resume:
        yield "train.resume: must be auto, never or a folder"
    if train.batch_start and data.remainder == "drop":
        yield "data.remainder: drop and a batch-size warm-up (train.batch_start) exclude each other; change one of them"
    if train.hang_timeout_seconds < 0:
        yield f"train.hang_timeout_seconds: {train.hang_timeout_seconds} must be at least 0"
    if not data.path:
        yield "data.path: no prepared folder; give --data DIR (made by `python -m data_prep build`)"
    if not train.output:
        yield "train.output: no run folder; give --output DIR"
