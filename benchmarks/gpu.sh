#!/usr/bin/env bash
# Everything worth measuring on one NVIDIA GPU, in under nine minutes:
#
#   bash benchmarks/gpu.sh [WHEELS] [--output FILE.json] [--seconds 520] [--only TEXT] [--rehearse]
#
# The machine needs Python 3.11 or later with PyTorch and transformers; no network, no compiler. What else is missing
# (deepspeed, hjson, webdataset, braceexpand, accelerate) is taken from WHEELS, a folder of wheels, or from the variable
# of that name. docs/benchmarks.md says how to fill it. PYTHON names another interpreter.
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
# DeepSpeed compiles none of its own kernels for what is measured here, and shall not try.
export DS_BUILD_OPS=0 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
"$python" "$here/benchmarks/gpu.py" "$@"
