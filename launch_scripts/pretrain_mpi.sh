#!/usr/bin/env bash
# Pretraining under Open MPI's mpirun. Pass mpirun's arguments first, then --, then the flags of pretrain.sh.
#
#   launch_scripts/pretrain_mpi.sh -n 4 -- --preset base --data DIR --output RUN …                 one machine
#   launch_scripts/pretrain_mpi.sh -n 16 --hostfile hosts -- --preset base --data DIR …            several machines
#
# `hosts` has a line `NAME slots=GPUS` for each machine. mpirun starts processes on other machines over ssh, or through
# Slurm inside a job. Rank 0 sends its address to the other ranks over MPI, which needs mpi4py:
# pip install 'dnabert_rm[mpi]'.
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
if ! command -v mpirun >/dev/null 2>&1; then
    PATH="$here/../.venv/bin:$PATH"
fi
mpirun_args=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    mpirun_args+=("$1")
    shift
done
if [ $# -eq 0 ]; then
    echo "pretrain_mpi.sh: error: no -- found; pass mpirun's arguments, then --, then the flags of pretrain.sh" >&2
    exit 2
fi
shift
# Report a mistake in a flag in one line, within a second, before any rank starts.
python "$here/pretrain.sh" --check "$@"

# By default mpirun binds each rank to one core or part of the machine. A rank has threads and loader processes that
# need several cores.
defaults=(--bind-to none)
# Ranks on other machines get only the environment variables that are passed with -x.
for name in $(compgen -e); do
    case "$name" in
        PATH | PYTHONPATH | LD_LIBRARY_PATH | VIRTUAL_ENV | HF_* | OMP_* | GOMP_* | MASTER_ADDR | MASTER_PORT | \
            DS_ACCELERATOR | DNABERT_RM_* | CUDA_* | NCCL_* | GLOO_* | UCX_* | TORCH_* | TOKENIZERS_PARALLELISM | \
            AWS_* | GOOGLE_* | FSSPEC_* | WANDB_* | MLFLOW_* | *_PROXY | *_proxy)
            defaults+=(-x "$name")
            ;;
    esac
done
# In a container the user is often root, which mpirun rejects without this flag.
if [ "$(id -u)" -eq 0 ]; then
    defaults+=(--allow-run-as-root)
fi
exec mpirun "${defaults[@]}" "${mpirun_args[@]}" python "$here/pretrain.sh" "$@"
