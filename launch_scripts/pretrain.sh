#!/usr/bin/env bash
''':'
# Pretraining. Start it in any of these ways:
#
#   deepspeed launch_scripts/pretrain.sh --preset base --data DIR --output RUN …
#   bash launch_scripts/pretrain.sh --preset base --data DIR --output RUN …
#   srun launch_scripts/pretrain.sh --preset base --data DIR --output RUN …        (also mpirun; docs/cluster.md)
#
# This file is both a shell and a Python script. Bash runs the shell lines, and they start DeepSpeed's launcher. The
# launcher runs the file with Python on every rank; for Python the shell lines are one string. Pass the launcher's flags
# before the script's name (`deepspeed --num_gpus 2 launch_scripts/pretrain.sh …`), or with bash in DEEPSPEED_ARGS.
here="$(cd "$(dirname "$0")" && pwd)"
if ! command -v deepspeed >/dev/null 2>&1; then
    PATH="$here/../.venv/bin:$PATH"
fi
# mpirun and srun usually start one process per rank, so this process becomes the rank. If srun starts one launcher per
# node instead, DEEPSPEED_ARGS contains the launchers' rendezvous.
if [ -z "${DEEPSPEED_ARGS:-}" ] &&
    { [ -n "${RANK:-}${OMPI_COMM_WORLD_RANK:-}${PMI_RANK:-}" ] || [ "${SLURM_STEP_NUM_TASKS:-1}" -gt 1 ]; }; then
    exec python "$here/$(basename "$0")" "$@"
fi
# Report a mistake in a flag in one line, within a second, before any rank starts.
python "$here/$(basename "$0")" --check "$@" || exit

# DeepSpeed's launcher ignores MASTER_PORT and uses port 29500, so a second run on this machine would fail. On one node,
# choose a free port. With a host file, launchers on several nodes may have to agree, so the default stays. DeepSpeed
# reads /job/hostfile if it exists.
port="${MASTER_PORT:-}"
several=
for word in ${DEEPSPEED_ARGS:-}; do
    case "$word" in -H* | --ho*) several=yes ;; esac
done
if [ -z "$port$several" ] && [ ! -f /job/hostfile ]; then
    port="$(python -c 'from dnabert_rm.distributed.launchers import free_port; print(free_port())')" || exit
fi
case "$port" in
    *[!0-9]*)
        echo "pretrain.sh: error: MASTER_PORT is '$port', but must be a number; correct or unset the variable" >&2
        exit 2
        ;;
esac

# At a signal, DeepSpeed's launcher either kills the ranks, or dies and leaves them running. So this shell handles the
# signals. It creates a stop file at SIGTERM, SIGUSR1 (Slurm's warning), SIGHUP and Ctrl-C. The ranks then finish the
# step, save, and exit with code 75. A second Ctrl-C kills them at once. docs/training.md has the complete table.
folder="$(mktemp -d)" || exit
export DNABERT_RM_STOP_FILE="$folder/stop"
trap 'rm -rf "$folder"' EXIT
# With a host file, the launcher passes only a few variables to the ranks, and those in this file. The user's files of
# this kind, which it would otherwise read, are copied.
for file in ~ .; do
    case "${DS_ENV_FILE:=.deepspeed_env}" in
        /*) file="$DS_ENV_FILE" ;;
        *) file="$file/$DS_ENV_FILE" ;;
    esac
    if [ -f "$file" ]; then
        grep "" "$file"
    fi
done >"$folder/environment"
echo "DNABERT_RM_STOP_FILE=$DNABERT_RM_STOP_FILE" >>"$folder/environment"
export DS_ENV_FILE="$folder/environment"
# shellcheck disable=SC2329  # called by the traps below
stop() {
    if [ "$1" = INT ] && [ -e "$DNABERT_RM_STOP_FILE" ]; then
        [ -z "$launcher" ] || kill -KILL -- "-$launcher"
        exit 130
    fi
    : >"$DNABERT_RM_STOP_FILE"
    # In a subshell: Ctrl-C may have ended the reader of the output (`… | tee log`), and SIGPIPE would end this shell.
    (echo "$1: finishing the step and saving; press Ctrl-C (again) to end at once" >&2) || :
}
launcher=
for name in TERM USR1 HUP INT; do
    # shellcheck disable=SC2064  # expand $name now
    trap "stop $name" "$name"
done
# Job control puts the launcher and all ranks into a separate process group, which Ctrl-C does not reach.
set -m
# Show only warnings and errors. Otherwise the launcher logs ten lines at the start.
# The launcher uses the last --master_port, so DEEPSPEED_ARGS takes precedence.
# shellcheck disable=SC2086  # DEEPSPEED_ARGS holds several words
deepspeed --log_level warning ${port:+--master_port $port} ${DEEPSPEED_ARGS:-} "$here/$(basename "$0")" "$@" </dev/null &
launcher=$!
# A signal interrupts `wait`, so wait until the launcher has ended. The last `wait` returns its exit code.
while kill -0 "$launcher" 2>/dev/null; do
    wait "$launcher"
    sleep 0.1 # a suspended launcher (SIGSTOP) ends each wait at once
done
wait "$launcher"
exit
'''
import sys

from dnabert_rm.cli.main import run_one

sys.exit(run_one("pretrain", "pretrain.sh", sys.argv[1:]))
