"""Peak memory of `dnabert-rm export`, as a multiple of the model's weights in fp32.

    python benchmarks/export_memory.py [--preset 1b] [--stage 3] [--ranks 2] [--folder DIR]

The checkpoint has DeepSpeed's layout, but no model of that size is trained. A tiny run with the same stage and number
of ranks writes the files. Its weights are then replaced by those of a random model of the preset, its moments by zeros.
That takes twice the weights' memory and 16 bytes of disk per parameter. `--peer` also measures DeepSpeed's own
`get_fp32_state_dict_from_zero_checkpoint`, which does only the first step of an export and can't read stage 0.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import clean_environment, random_bases, run_ranks, write_prepared

TINY = shlex.split(
    "--preset tiny --model.architecture modernbert --model.num_layers 1 --steps 1 --global-batch 12 --window 66 "
    "--workers 0 --masking token"
)
DECODER, EMBEDDING = "model.decoder.weight", "model.model.embeddings.tok_embeddings.weight"
# ru_maxrss begins with the size of the process that started this one, so the command itself prints its peak.
PEAK = """
import atexit, re, sys
atexit.register(lambda: print("peak", re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]))
"""
EXPORT = """
from dnabert_rm.cli.main import main
sys.exit(main(["export", *sys.argv[1:]]))
"""
PEER = """
from dnabert_rm.patches.deepspeed_patches import safe_torch_load
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
with safe_torch_load():
    get_fp32_state_dict_from_zero_checkpoint(sys.argv[1], tag=sys.argv[2])
"""


def main() -> int:
    """Print the peak memory of an export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="1b")
    parser.add_argument("--stage", type=int, default=3, choices=range(4))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--peer", action="store_true", help="also measure DeepSpeed's merging")
    parser.add_argument("--folder", help="folder for the run and the model (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_prepared(folder / "data", [[random_bases(np.random.default_rng(0), 4000)]])
        words = [*TINY, "--data", folder / "data", "--output", folder / "run", "--ds-config", f"zero{args.stage}"]
        run_ranks(args.ranks, *words)
        # In a separate process, so that its memory does not count for this one.
        maker = multiprocessing.get_context("spawn").Process(target=enlarge, args=(folder, args.preset))
        maker.start()
        maker.join()
        if maker.exitcode:
            return 1
        measure(folder, args)
    return 0


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Run the export, and the peer if requested, and print their peak memory."""
    size = 4 * json.loads((folder / "size.json").read_text(encoding="utf-8"))
    cli = [sys.executable, "-c", PEAK + EXPORT]
    commands = {"dnabert-rm export": [*cli, str(folder / "run"), "--output", str(folder / "model")]}
    checkpoint = next((folder / "run" / "checkpoints").glob("step_*"))
    if args.peer:
        merging = [sys.executable, "-c", PEAK + PEER]
        commands["DeepSpeed's merging alone"] = [*merging, str(checkpoint.parent), checkpoint.name]
    for name, command in commands.items():
        start = time.monotonic()
        peak, printed = peak_bytes(command)
        print(
            f"{name}: ZeRO-{args.stage}, {args.ranks} ranks, {size / 4e6:.0f} M parameters, {size / 1e9:.2f} GB; "
            f"peak {peak / 1e9:.2f} GB = {peak / size:.2f} x the weights; {time.monotonic() - start:.0f} s",
            flush=True,
        )
        print(f"    {printed.strip().splitlines()[-1][:200] if printed.strip() else ''}", flush=True)
    print("    files:", ", ".join(sorted(path.name for path in (folder / "model").glob("*.safetensors"))))


def peak_bytes(command: list[str]) -> tuple[int, str]:
    """Run a command and return its peak resident memory in bytes (shared and mapped pages included) and its output.

    The command has `PEAK` at its beginning.
    """
    environment = {**clean_environment(), "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command}: {done.stdout}")
    printed, _, kilobytes = done.stdout.rpartition("peak ")
    return int(kilobytes.split()[0]) * 1024, printed


def enlarge(folder: Path, preset: str) -> None:
    """Replace the tiny model in the checkpoint of `folder / "run"` by a random model of a preset."""
    import tomllib

    import torch

    from dnabert_rm.checkpoint.reference_output import load_reference_output, save_reference_output
    from dnabert_rm.config import load_preset, resolve
    from dnabert_rm.model.build import architecture_of

    checkpoint = next((folder / "run" / "checkpoints").glob("step_*"))
    kept = tomllib.loads((checkpoint / "config.toml").read_text(encoding="utf-8"))
    config = resolve(kept, {"model": load_preset(preset, "modernbert")["model"] | {"architecture": "modernbert"}})
    tokens = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["vocab_size"]
    architecture = architecture_of(config.model, tokens)
    model = random_model(architecture)
    reference = load_reference_output(checkpoint / "probe.npz")
    with torch.no_grad():
        inputs = torch.from_numpy(reference.input_ids), torch.from_numpy(reference.positions)
        reference.logits[:] = model(*inputs).numpy()
    save_reference_output(checkpoint / "probe.npz", reference)
    (checkpoint / "config.toml").write_text(config.to_toml())
    architecture.save_pretrained(checkpoint)
    (folder / "size.json").write_text(str(sum(weight.numel() for weight in model.parameters())))
    write_weights(checkpoint, dict(model.named_parameters()))


def random_model(architecture: Any) -> Any:
    """Return a training model with random weights. transformers' own initialization takes minutes at 1e9 parameters."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForMaskedLM

    from dnabert_rm.model.mlm import MaskedLM

    with init_empty_weights():
        network = AutoModelForMaskedLM.from_config(architecture, dtype=torch.float32)
    weights = {name: torch.empty(weight.shape) for name, weight in network.named_parameters()}
    for weight in weights.values():
        weight.uniform_(-0.03, 0.03) if weight.ndim > 1 else weight.fill_(1)
    network.load_state_dict(weights, strict=False, assign=True)
    network.tie_weights()
    return MaskedLM(network).eval()


def write_weights(checkpoint: Path, weights: dict[str, Any]) -> None:
    """Write weights into a checkpoint's files in their existing layout, and update the checkpoint manifest."""
    import torch
    from support import rewrite_manifest

    from dnabert_rm.patches.deepspeed_patches import safe_torch_load

    with safe_torch_load():
        models = {path: torch.load(path) for path in sorted(checkpoint.glob("*model_states.pt"))}
        optims = {path: torch.load(path) for path in sorted(checkpoint.glob("*optim_states.pt"))}
    # DeepSpeed has two parameter groups, because only matrices have weight decay.
    groups = [{n: w for n, w in weights.items() if (w.ndim > 1) == decayed} for decayed in (True, False)]
    stage = json.loads((checkpoint / "complete.json").read_text(encoding="utf-8"))["zero_stage"]
    for path, content in models.items():
        content["module"] = {name: torch.empty(0) if stage == 3 else w.data for name, w in weights.items()}
        if not stage:
            content["module"][DECODER] = weights[EMBEDDING].data
        else:
            content["param_shapes"] = [{name: weight.shape for name, weight in group.items()} for group in groups]
        torch.save(content, path)
    for rank, (path, content) in enumerate(optims.items()):
        state = content["optimizer_state_dict"]
        flat = [_share(list(group.values()), rank, len(optims), stage) for group in groups]
        state["fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"] = flat
        state["param_alignment_paddings"] = None
        moments = {i: {key: torch.zeros_like(part) for key in ("exp_avg", "exp_avg_sq")} for i, part in enumerate(flat)}
        state["moments"] = moments
        torch.save(content, path)
    rewrite_manifest(checkpoint)


def _share(weights: list[Any], rank: int, num_ranks: int, stage: int) -> Any:
    """Return a rank's flat part of a parameter group. Stage 3 divides each weight, other stages all weights joined."""
    import torch

    if stage == 3:
        return torch.cat([_padded(weight.data.flatten(), num_ranks).chunk(num_ranks)[rank] for weight in weights])
    return _padded(torch.cat([weight.data.flatten() for weight in weights]), num_ranks).chunk(num_ranks)[rank].clone()


def _padded(flat: Any, num_ranks: int) -> Any:
    import torch

    return torch.nn.functional.pad(flat, (0, -len(flat) % num_ranks))


if __name__ == "__main__":
    sys.exit(main())
