#!/usr/bin/env bash
# Training speed on one NVIDIA GPU in under nine minutes, with a prediction beside each figure:
#
#   bash benchmarks/gpu.sh [WHEELS] [--output FILE.json] [--seconds 520] [--only TEXT] [--rehearse]
#
# The machine needs Python 3.11 or later with PyTorch (2.13 or later), transformers (5.17 or later) and accelerate, but
# no network and no compiler. DeepSpeed and the other packages are installed from WHEELS, a folder of wheels. WHEELS can
# also be an environment variable. dev/benchmarks.md explains how to fill it. Set PYTHON to use another interpreter.
#
# The rows and their order are in gpu_rows.py. FILE.json is written after each row. If the GPU waits for the host, a
# trace of the host is written beside it (FILE.host_trace.json.gz).
set -eu
here="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-python3}"
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    WHEELS="$1"
    shift
fi
path="$here"
if [ -n "${WHEELS:-}" ]; then
    site="$(mktemp -d)"
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    path="$site:$here"
fi
export PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}"
# The benchmark needs no DeepSpeed kernels, so DeepSpeed must not compile any.
export DS_BUILD_OPS=0 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
"$python" "$here/benchmarks/gpu.py" "$@"
