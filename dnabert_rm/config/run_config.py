"""Configuration of a pretraining run. A field's docstring is its `--help` text and its row in docs/configuration.md."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Literal

from dnabert_rm.config.schema import Setting, find_problems, setting, settings_of

Architecture = Literal["bert", "modernbert"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]
ARCHITECTURES: tuple[str, ...] = typing.get_args(Architecture)
MIN_ROPE_PERIOD = 2
"""A shorter period can't be told from a longer one at whole positions."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and size of the model. A preset sets the sizes and the dropout."""

    architecture: Architecture = "bert"
    """"bert" (post-norm, learned positions; DNABERT's) or "modernbert" (pre-norm, rotary, GeGLU)."""
    hidden_size: int = setting(768, minimum=1)
    """Width of the residual stream."""
    num_layers: int = setting(12, minimum=1)
    """Number of transformer layers."""
    num_heads: int = setting(12, minimum=1)
    """Attention heads per layer. model.hidden_size must be a multiple of this number."""
    intermediate_size: int = setting(3072, minimum=1)
    """Width of the feed-forward layer."""
    max_positions: int = setting(512, minimum=3)
    """Largest sequence length in tokens, special tokens included."""
    rope_period: float = setting(0.0, minimum=0)
    """Shortest period of modernbert's rotary positions in tokens, 2 or more; 3: a codon. 0: transformers' (6.28)."""
    dropout: float = setting(0.0, minimum=0, maximum=1)
    """Dropout of hidden states in pretraining, and of attention unless that is set (DNABERT's is 0.1)."""
    attention_dropout: float = setting(-1.0, minimum=-1, maximum=1)
    """Dropout of attention weights; -1: as model.dropout. Without it, attention kernels do less on a GPU."""
    loss: Literal["token", "base", "both", "base-then-token"] = setting("token", flag="--loss")
    """Training loss: over k-mers ("token"), over single bases ("base"), the mean of "both", or "base-then-token"."""
    loss_switch: float = setting(0.5, above=0, below=1)
    """Share of the steps after which model.loss "base-then-token" changes from bases to tokens."""
    initial_weights: Literal["random", "structured"] = setting("random", free_on_resume=True)
    """Start with "random" weights, or "structured": k-mers as sums over bases. Ignored with BPE or init_from."""
    attention: Literal["auto", "sdpa", "cudnn", "flash", "math", "eager", "flash_attention_2"] = setting(
        "auto", free_on_resume=True
    )
    """Attention kernel of torch: "auto" (the first that can run of cuDNN, flash, memory-efficient, math), "sdpa"
    (torch's choice), "cudnn", "flash" or "math". Or "eager", or "flash_attention_2" (the package flash-attn)."""
    activation_checkpointing: bool = setting(False, free_on_resume=True)
    """Keep only each layer's input and recompute the rest in the backward pass. Less memory, a third more work."""
    compile: Literal["auto", "true", "false"] = setting("auto", free_on_resume=True)
    """Compile each layer with torch.compile: "true", "false", or "auto" (modernbert on a GPU). Not with ZeRO-3."""
    float8: bool = setting(False, free_on_resume=True)
    """Linear layers of the encoder in FP8, through torchao. For 1b and larger, compiled, on an H100 or newer."""
    init_from: str = setting("", flag="--init-from", free_on_resume=True)
    """Hugging Face folder with initial weights (an export, or DNABERT). It also sets the architecture and sizes."""
    build: Literal["auto", "whole", "partitioned"] = setting("auto", free_on_resume=True)
    """Build the model "whole" on every rank, "partitioned" (ZeRO-3), or "auto": partitioned above 10^9 parameters."""

    @property
    def dropout_of_attention(self) -> float:
        """Dropout of attention weights, with `attention_dropout` -1 resolved."""
        return self.dropout if self.attention_dropout < 0 else self.attention_dropout


@dataclass(frozen=True)
class DataConfig:
    """The data, and how to cut windows from them."""

    path: tuple[str, ...] = setting((), flag="--data", free_on_resume=True)
    """Prepared folders (from `python -m data_prep build`) or their URLs, mixed by data.weights. Required."""
    weights: tuple[float, ...] = ()
    """Share of the samples from each folder; empty: equal shares."""
    split: str = "train"
    """The split to train on."""
    window: int = setting(512, flag="--window", minimum=3)
    """Tokens per training sequence, [CLS] and [SEP] included."""
    lengths: Literal["full", "random"] = "full"
    """"full" windows, or "random" (as in DNABERT: full in half of the steps, else uniform from 5 tokens)."""
    overlap: bool = True
    """Overlapping k-mers (stride 1); false: non-overlapping k-mers at a random offset."""
    strand: Literal["forward", "random", "both"] = setting("forward", flag="--strand")
    """"forward", "random" (half of the windows reverse-complemented) or "both" (each window twice per epoch)."""
    repeat_weight: float = setting(1.0, minimum=0, maximum=1)
    """Weight of lower-case (soft-masked) bases in the loss. Below 1, build the data with `--record-soft-mask`."""
    num_streams: int = setting(64, minimum=1)
    """Number of streams of windows in an epoch. A rank reads only its own streams, so it opens few shards."""
    block_windows: int = setting(65536, minimum=1)
    """Windows of a stream that are shuffled together. With fewer windows, reads from a shard are closer together."""
    remainder: Literal["wrap", "drop"] = "wrap"
    """End of an epoch: "wrap" (a batch continues in the next epoch) or "drop" (an incomplete batch is left out)."""
    on_bad_shard: Literal["fail", "skip"] = setting("fail", flag="--on-bad-shard", free_on_resume=True)
    """If a shard is damaged or missing: "fail", or "skip" (use replacement samples, logged and counted)."""
    cache_dir: str = setting("~/.cache/dnabert_rm/shards", free_on_resume=True)
    """Folder on a local disk for shards read from URLs; runs may share it."""
    cache_gb: float = setting(50.0, minimum=0, may_be_infinite=True, free_on_resume=True)
    """Largest size of data.cache_dir in gigabytes (10^9 bytes); the least recently used shards are deleted first."""
    num_workers: int = setting(1, flag="--workers", minimum=0, free_on_resume=True)
    """Loader processes per rank; 0 loads in the training process."""
    prefetch: int = setting(4, minimum=1, free_on_resume=True)
    """Batches that each worker prepares ahead."""


@dataclass(frozen=True)
class MaskingConfig:
    """RandomMask and the masking policies to compare it with (docs/randommask.md)."""

    policy: Literal["randommask", "randommask-matched", "fixed", "token"] = setting("randommask", flag="--masking")
    """"randommask", "randommask-matched" (same masked fraction in every phase), "fixed" (one span) or "token"."""
    phase_ends: tuple[float, ...] = setting((), flag="--phase-ends")
    """Ends of the phases, as steps or as fractions of the run up to 1. Empty: the paper's five, scaled to the run."""
    phase_spans: tuple[int, ...] = setting((), flag="--phase-spans")
    """Upper limit of the spans of each phase; empty: k, k + 2, k + 4 …"""
    centre_rate: float = 0.025
    """Probability p that a token is the centre of a span."""
    draw: Literal["uniform", "max"] = "uniform"
    """Span of a window: "uniform" (random from k, k + 2 … up to the phase's limit) or "max" (the limit)."""
    replacement: Literal["token", "span", "mask"] = "token"
    """80/10/10 replacement per "token" or per "span" (touching spans are merged). "mask": always [MASK]."""
    fixed_span: int = setting(0, minimum=0)
    """Span of policy "fixed"; 0: k, as in DNABERT."""
    token_rate: float = 0.15
    """Masked fraction of policy "token"."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and the learning-rate schedule. The defaults are DNABERT's."""

    lr: float = setting(4e-4, flag="--lr", above=0)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    """After the warm-up: "linear" or "cosine" decay to 0, "wsd" (stable, then linear decay to 0), or "constant"."""
    decay_share: float = setting(0.1, above=0, maximum=1)
    """Share of the steps, at the end of the run, in which schedule "wsd" decays."""
    warmup_steps: int = setting(-1, minimum=-1)
    """Steps of linear warm-up; -1: 10,000 of 480,000 steps, scaled to the run."""
    beta1: float = setting(0.9, minimum=0, below=1)
    """AdamW's first decay rate."""
    beta2: float = setting(0.98, minimum=0, below=1)
    """AdamW's second decay rate."""
    eps: float = setting(1e-6, minimum=0)
    """AdamW's epsilon."""
    weight_decay: float = setting(0.01, minimum=0)
    """Decoupled weight decay; not applied to biases and norms."""
    clip: float = setting(1.0, minimum=0, may_be_infinite=True)
    """Largest global gradient norm; 0: no clipping."""


@dataclass(frozen=True)
class TrainConfig:
    """The run: output, length, batches, checkpoints, resume and time limits."""

    output: str = setting("", flag="--output", free_on_resume=True)
    """Run folder: checkpoints, TensorBoard, metrics. Required."""
    steps: int = setting(480_000, flag="--steps", minimum=1)
    """Number of optimizer steps. The phases and the learning-rate schedule are scaled to it."""
    stop_after: int = setting(0, flag="--stop-after", minimum=0, free_on_resume=True)
    """End after this many steps, with a checkpoint and unchanged schedules; 0: after train.steps."""
    global_batch: int = setting(2048, flag="--global-batch", minimum=1, free_on_resume=True)
    """Windows per optimizer step, over all ranks and accumulation steps."""
    micro_batch: int = setting(0, flag="--micro-batch", minimum=0, free_on_resume=True)
    """Windows per forward pass of a rank; gradients are accumulated. 0: the rank's whole share of the global batch, of
    the smallest one if its size changes."""
    batch_start: int = setting(0, minimum=0)
    """Initial global batch of a batch-size warm-up, which ends at train.global_batch; 0: no warm-up."""
    batch_increment: int = setting(0, minimum=0)
    """Windows added to the global batch at each increase of the warm-up; 0: as many as train.batch_start."""
    batch_warmup_steps: int = setting(0, minimum=0)
    """Steps of the batch-size warm-up."""
    precision: Precision = setting("auto", flag="--precision")
    """"fp32", "bf16", "fp16"; "auto": bf16 on a GPU that supports it, else fp32; fp32 at ZeRO stage 0."""
    seed: int = setting(42, flag="--seed", minimum=0)
    """Seed of all random choices: order, masks, weights, dropout."""
    save_every: int = setting(1000, flag="--save-every", minimum=1, free_on_resume=True)
    """Steps between checkpoints; the last step always has one."""
    save_in_background: bool = setting(True, free_on_resume=True)
    """Write checkpoints beside the training, from a copy in host memory. false: wait until they are written."""
    keep_last: int = setting(2, minimum=0, free_on_resume=True)
    """Number of newest checkpoints to keep; 0: all."""
    keep_every: int = setting(0, minimum=0, free_on_resume=True)
    """Steps between checkpoints that are never deleted, a multiple of train.save_every. 0: none."""
    log_every: int = setting(10, flag="--log-every", minimum=1, free_on_resume=True)
    """Steps between entries in metrics.jsonl and the trackers."""
    trackers: tuple[TrackerName, ...] = setting(("tensorboard",), separator=",", free_on_resume=True)
    """Where metrics also go: "tensorboard", "wandb", "mlflow", separated by commas. Empty: only metrics.jsonl."""
    ds_config: str = setting("zero3", flag="--ds-config", free_on_resume=True)
    """DeepSpeed configuration: a file, or the name of one in ds_configs/."""
    offload_dir: str = setting("", free_on_resume=True)
    """Folder on a node's own NVMe disk, for a DeepSpeed configuration that offloads to it (zero3_nvme)."""
    resume: str = setting("auto", flag="--resume", free_on_resume=True)
    """"auto" (continue if the run folder has a checkpoint), "never", or a run or step_… folder to start from."""
    allow_changes: bool = setting(False, flag="--allow-changes", free_on_resume=True)
    """Resume even if settings or data that affect the result differ; never with another tokenizer or model shape."""
    allow_oversize: bool = setting(False, free_on_resume=True)
    """Run even if the model does not fit in memory by the estimate of `dnabert-rm plan`, or if a step would take more
    than five minutes on a CPU."""
    deterministic: bool = setting(False, free_on_resume=True)
    """Use deterministic kernels only, so that a resume on GPUs repeats every bit. Slower; cuDNN's attention is left
    out."""
    threads_per_rank: int = setting(0, minimum=0, free_on_resume=True)
    """CPU threads per rank; 0: the machine's cores divided by its ranks."""
    start_timeout_seconds: float = setting(600.0, above=0, may_be_infinite=True, free_on_resume=True)
    """Longest wait for all ranks to start and join the rendezvous."""
    hang_timeout_seconds: float = setting(1800.0, minimum=0, may_be_infinite=True, free_on_resume=True)
    """Longest wait for a batch, step or save before the run ends and writes all ranks' stack traces; 0: no limit."""


@dataclass(frozen=True)
class ValidationConfig:
    """Loss and bits per base on held-out data. The masks never change, so phases and policies can be compared."""

    every: int = setting(1000, minimum=0, free_on_resume=True)
    """Steps between validations; if not set, an eighth of the run, at least 50 and at most 1,000. The last step is also
    validated. 0, or data without the split: none."""
    split: str = setting("val", free_on_resume=True)
    """The split to validate on."""
    windows: int = setting(256, minimum=1, free_on_resume=True)
    """Number of windows, the same ones each time; fewer if the split is smaller."""
    spans: tuple[int, ...] = setting((), minimum=1, free_on_resume=True)
    """Spans to validate, with one curve each. Empty: k, k + 2 … k + 8, or single tokens if tokens don't overlap."""
    regions: int = setting(16, minimum=0, free_on_resume=True)
    """Number of held-out regions of up to 4,096 bases for bits per base, the same ones each time. 0: none."""
    hidden_bases: tuple[int, ...] = setting((1, 3, 5, 9), separator=",", minimum=1, maximum=9, free_on_resume=True)
    """Lengths in bases of the hidden stretches, with one curve of bits per base each."""


@dataclass(frozen=True)
class RunConfig:
    """All sections of a configuration. `layers.resolve` makes a `RunConfig` from a preset, a file and flags."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the sections as plain dictionaries. Tuples become lists."""
        return json.loads(json.dumps(asdict(self)))

    def to_toml(self) -> str:
        """Return the configuration as TOML text that `--config` can read."""
        lines = []
        for section, values in self.to_dict().items():
            lines += [f"[{section}]", *(f"{name} = {_toml_value(value)}" for name, value in values.items()), ""]
        return "\n".join(lines)


def _toml_value(value: str | float | bool | list[Any]) -> str:
    """Return the TOML text of a value. JSON differs in infinite numbers, and in characters beyond 16 bits."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "masking": MaskingConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "validation": ValidationConfig,
}


@cache
def run_settings() -> dict[str, Setting]:
    """Return all fields, keyed by dotted name such as "train.steps"."""
    return {
        f"{section}.{item.name}": dataclasses.replace(item, name=f"{section}.{item.name}")
        for section, cls in SECTIONS.items()
        for item in settings_of(cls).values()
    }


@cache
def free_on_resume() -> frozenset[str]:
    """Return the dotted names of the fields that may change on resume.

    The field data.path may change, since a resume compares the fingerprint of the data instead.
    """
    return frozenset(name for name, item in run_settings().items() if item.metadata.get("free_on_resume"))


def run_config_problems(config: RunConfig) -> Iterator[str]:
    """Yield an error message for each wrong value and each conflict between values. The data are not read."""
    for name, item in run_settings().items():
        section, key = name.split(".")
        value = getattr(getattr(config, section), key)
        yield from find_problems(item, value, name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and text.encode(errors="replace") != text.encode(errors="surrogatepass"):
                yield f"{name} {text!r}: is not UTF-8; rename the file or folder"
    model, data, train = config.model, config.data, config.train
    if model.num_heads > 0 and model.hidden_size % model.num_heads:
        yield f"model.hidden_size {model.hidden_size}: must be a multiple of model.num_heads ({model.num_heads})"
    if model.rope_period and model.architecture != "modernbert":
        yield f"model.rope_period {model.rope_period:g}: a {model.architecture} has no rotary positions; set it to 0"
    if 0 < model.rope_period < MIN_ROPE_PERIOD:
        yield f"model.rope_period {model.rope_period:g}: must be 0, or at least {MIN_ROPE_PERIOD}"
    if model.attention == "cudnn" and train.deterministic:
        yield "model.attention cudnn: is not deterministic; choose auto or flash, or turn train.deterministic off"
    if data.window > model.max_positions:
        yield f"data.window {data.window}: is more than model.max_positions ({model.max_positions}); change one of them"
    if train.keep_every > 0 and train.keep_every % max(1, train.save_every):
        yield f"train.keep_every {train.keep_every}: must be a multiple of train.save_every ({train.save_every})"
    if not train.resume:
        yield "train.resume: is empty; choose 'auto', 'never' or a folder"
    if train.batch_start and data.remainder == "drop":
        yield "data.remainder drop: not possible with a batch-size warm-up (train.batch_start); change one of them"
    if not data.path:
        yield "data.path: no prepared folder; pass --data DIR (made by `python -m data_prep build`)"
    if not train.output:
        yield "train.output: no run folder; pass --output DIR"


def ignored_settings(config: RunConfig) -> Iterator[str]:
    """Yield a message for each setting that was changed although another setting makes it ineffective."""
    model, data, masking, optim, train = config.model, config.data, config.masking, config.optim, config.train
    phases = masking.policy in ("randommask", "randommask-matched"), "masking.policy randommask or randommask-matched"
    conditions = {
        "model.loss_switch": (model.loss == "base-then-token", "model.loss base-then-token"),
        "data.weights": (len(data.path) > 1, "several data sets"),
        "masking.phase_ends": phases,
        "masking.phase_spans": phases,
        "masking.draw": phases,
        "masking.centre_rate": (masking.policy != "token", "spans (masking.token_rate is that of policy token)"),
        "masking.fixed_span": (masking.policy == "fixed", "masking.policy fixed"),
        "masking.token_rate": (masking.policy == "token", "masking.policy token"),
        "optim.decay_share": (optim.schedule == "wsd", "optim.schedule wsd"),
        "train.batch_increment": (train.batch_start > 0, "train.batch_start"),
        "train.batch_warmup_steps": (train.batch_start > 0, "train.batch_start"),
    }
    for name, (is_used, needed) in conditions.items():
        section, key = name.split(".")
        if not is_used and getattr(getattr(config, section), key) != run_settings()[name].default:
            yield f"{name} has no effect without {needed}"
