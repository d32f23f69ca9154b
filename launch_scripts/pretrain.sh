#!/usr/bin/env bash
''':'
# Pretraining, started either way:
#
#   deepspeed launch_scripts/pretrain.sh --preset base --data DIR --output RUN …
#   bash launch_scripts/pretrain.sh --preset base --data DIR --output RUN …
#   srun launch_scripts/pretrain.sh --preset base --data DIR --output RUN …        (also mpirun; docs/cluster.md)
#
# This file is shell and Python at once. DeepSpeed's launcher runs it with Python on every rank, to which these
# lines are a string; bash runs them, and they hand over to the launcher. Give the launcher its own flags before
# the script's name (`deepspeed --num_gpus 2 launch_scripts/pretrain.sh …`), or to bash in DEEPSPEED_ARGS.
here="$(cd "$(dirname "$0")" && pwd)"
if ! command -v deepspeed >/dev/null 2>&1; then
    PATH="$here/../.venv/bin:$PATH"
fi
# Started once a rank, by mpirun or srun, this process is the rank. Where srun starts one launcher a node,
# DEEPSPEED_ARGS says how the launchers find each other.
if [ -z "${DEEPSPEED_ARGS:-}" ] &&
    { [ -n "${RANK:-}${OMPI_COMM_WORLD_RANK:-}${PMI_RANK:-}" ] || [ "${SLURM_STEP_NUM_TASKS:-1}" -gt 1 ]; }; then
    exec python "$here/$(basename "$0")" "$@"
fi
# A mistake in a flag is found here, in a second and in one line, before any rank starts.
python "$here/$(basename "$0")" --check "$@" || exit
exec deepspeed ${DEEPSPEED_ARGS:-} "$here/$(basename "$0")" "$@"
'''
import sys

from dnabert_rm.cli.main import run_one

sys.exit(run_one("pretrain", "pretrain.sh", sys.argv[1:]))
