#!/usr/bin/env bash
# Pretraining under Open MPI's mpirun: its own words first, then --, then the flags of pretrain.sh.
#
#   launch_scripts/pretrain_mpi.sh -n 4 -- --preset base --data DIR --output RUN …                 this machine
#   launch_scripts/pretrain_mpi.sh -n 16 --hostfile hosts -- --preset base --data DIR …            several
#
# `hosts` has a line `NAME slots=GPUS` for each machine. mpirun starts the others over ssh, or through Slurm inside a
# job. The ranks agree on rank 0's address over MPI, for which mpi4py is needed: pip install 'dnabert_rm[mpi]'.
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
if ! command -v mpirun >/dev/null 2>&1; then
    PATH="$here/../.venv/bin:$PATH"
fi
words=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    words+=("$1")
    shift
done
if [ $# -eq 0 ]; then
    echo "pretrain_mpi.sh: error: no -- found; write mpirun's words, then --, then the flags of pretrain.sh" >&2
    exit 2
fi
shift
# A mistake in a flag is found here, in a second and in one line, before any rank starts.
python "$here/pretrain.sh" --check "$@"

# mpirun binds each rank to a core, or a part of the machine, if it is left alone; a rank has threads and loader
# processes that need several.
defaults=(--bind-to none)
# Ranks on other machines see nothing of this shell's variables but what is named here.
for name in $(compgen -e); do
    case "$name" in
        PATH | PYTHONPATH | LD_LIBRARY_PATH | VIRTUAL_ENV | HF_* | OMP_* | GOMP_* | MASTER_ADDR | MASTER_PORT | \
            DS_ACCELERATOR | DNABERT_RM_* | CUDA_* | NCCL_* | GLOO_* | TORCH_* | TOKENIZERS_PARALLELISM)
            defaults+=(-x "$name")
            ;;
    esac
done
# In a container the user is often root, which mpirun refuses unless told otherwise.
if [ "$(id -u)" -eq 0 ]; then
    defaults+=(--allow-run-as-root)
fi
exec mpirun "${defaults[@]}" "${words[@]}" python "$here/pretrain.sh" "$@"
