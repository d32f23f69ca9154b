"""A configuration's fields: frozen dataclasses. The text under a field is its `--help` and docs/configuration.md's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

ARCHITECTURES = ("bert", "modernbert")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LR_SCHEDULES = ("linear", "cosine", "wsd", "constant")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
BUILDS = ("auto", "whole", "partitioned")


@dataclass(frozen=True)
class ModelConfig:
    """The model's architecture and size. A preset sets the sizes, and the dropout."""

    architecture: str = "bert"
    """"bert" (post-norm, learned positions; DNABERT's) or "modernbert" (pre-norm, rotary, GeGLU)."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_layers: int = 12
    """Number of transformer layers."""
    num_heads: int = 12
    """Attention heads a layer; model.hidden_size must be a multiple of it."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""
    max_positions: int = 512
    """Longest sequence in tokens, special tokens included."""
    dropout: float = 0.0
    """Dropout of hidden states and attention in pretraining (DNABERT's is 0.1)."""
    attention: str = "sdpa"
    """Attention kernel: "sdpa", "eager" or "flash_attention_2" (flash-attn, a GPU, bf16 or fp16)."""
    activation_checkpointing: bool = False
    """Keep a layer's input only and compute the rest again in the backward pass: less memory, a third more work."""
    compile: bool = False
    """torch.compile each layer; refused under ZeRO-3, whose hooks cut a layer to pieces."""
    init_from: str = ""
    """Hugging Face folder (an export, or DNABERT's layout) to begin from; it sets the architecture and its sizes."""
    build: str = "auto"
    """"whole" on every rank, "partitioned" while it is built (ZeRO-3), or "auto": partitioned above 10^9 parameters."""


@dataclass(frozen=True)
class DataConfig:
    """What is read and how windows are cut from it."""

    path: tuple[str, ...] = ()
    """Prepared folders (`python -m data_prep build`) or their URLs, several mixed by data.weights. Needed."""
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
    """Lanes that an epoch's windows are dealt to; a rank reads only its own, so it has few shards open."""
    block_windows: int = 65536
    """Windows of a lane that are shuffled together: fewer stay nearer to each other in the shards."""
    remainder: str = "wrap"
    """End of an epoch: "wrap" (a batch runs on into the next epoch) or "drop" (what fills no batch is left out)."""
    on_bad_shard: str = "fail"
    """A damaged or missing shard: "fail", or "skip" (other windows stand in; logged and counted)."""
    allow_pipe: bool = False
    """Allow `pipe:` URLs in data.path, which run a shell command."""
    cache_dir: str = "~/.cache/dnabert_rm/shards"
    """Folder on a local disk for shards that come from URLs; runs may share it."""
    cache_gb: float = 50.0
    """Most gigabytes (10^9 bytes) that data.cache_dir may take; the least recently used shards go first."""
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
    """Share of the steps, at the end, in which schedule "wsd" decays."""
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
    """The run: where it writes, how long it is, its batches, checkpoints, resume and limits of time."""

    output: str = ""
    """Run folder: checkpoints, TensorBoard, metrics. Needed."""
    steps: int = 480_000
    """Optimizer steps; the phases and the learning rate are scaled to them."""
    stop_after: int = 0
    """End after this many steps, with a checkpoint, schedules unchanged; 0: after train.steps."""
    global_batch: int = 2048
    """Windows an optimizer step, over all ranks and accumulation steps."""
    micro_batch: int = 0
    """Windows that a rank computes at a time, until the global batch is complete. 0: all of its share at once, which
    takes much memory where the model is large."""
    batch_start: int = 0
    """First global batch of a batch-size warm-up, which grows to train.global_batch; 0: no warm-up."""
    batch_increment: int = 0
    """Windows by which the global batch grows at a time; 0: as many as train.batch_start."""
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
    """Keep the checkpoint of every so many steps for ever, a multiple of train.save_every; 0: none."""
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
class ValidationConfig:
    """Loss on held-out windows with masks that never change: what phases and arms can be compared by."""

    every: int = 1000
    """Steps between validations, where the data have the split; the last step has one too; 0: none."""
    split: str = "val"
    """The split to validate on."""
    windows: int = 256
    """Windows, the same each time; fewer where the split has fewer."""
    spans: tuple[int, ...] = ()
    """One curve a span; empty: k, k + 2 … k + 8, and single tokens where the tokens don't overlap."""


@dataclass(frozen=True)
class RunConfig:
    """All sections; `resolve.resolve` makes one from a preset, a file and flags."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

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
    "validation": ValidationConfig,
}
CHOICES = {
    "model.architecture": ARCHITECTURES,
    "model.attention": ATTENTIONS,
    "model.build": BUILDS,
    "data.strand": ("forward", "random", "both"),
    "data.lengths": ("full", "random"),
    "data.remainder": ("wrap", "drop"),
    "data.on_bad_shard": ("fail", "skip"),
    "optim.schedule": LR_SCHEDULES,
    "train.precision": PRECISIONS,
}
"""Fields that take one of a few words; the layers below check those of `[masking]`."""
AT_LEAST = {
    "model.num_layers": 1, "model.num_heads": 1, "data.window": 3, "data.num_streams": 1, "data.block_windows": 1,
    "data.num_workers": 0, "data.prefetch": 1, "train.steps": 1, "train.global_batch": 1, "train.micro_batch": 0,
    "train.save_every": 1, "train.log_every": 1, "train.keep_last": 0, "train.stop_after": 0, "train.seed": 0,
    "train.keep_every": 0, "validation.every": 0, "validation.windows": 1,
    "train.batch_start": 0, "train.batch_increment": 0, "train.batch_warmup_steps": 0,
}  # fmt: skip
"""Least values of whole numbers."""


def mistakes(config: RunConfig) -> Iterator[str]:
    """Lines for values that can't be right together or alone."""
    for name, allowed in CHOICES.items():
        if (value := _value(config, name)) not in allowed:
            yield f"{name}: {value!r} must be one of {', '.join(allowed)}"
    for name, least in AT_LEAST.items():
        if (value := _value(config, name)) < least:
            yield f"{name}: {value} must be at least {least}"
    model, data, optim, train = config.model, config.data, config.optim, config.train
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
    if config.validation.spans and min(config.validation.spans) < 1:
        yield f"validation.spans: {list(config.validation.spans)} must be at least 1"
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


def _value(config: RunConfig, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)
