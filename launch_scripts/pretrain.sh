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

# DeepSpeed's launcher has no use for a signal but to kill the ranks, or to die and leave them. So this shell stays,
# and turns SIGTERM, SIGUSR1 (Slurm's warning), SIGHUP and Ctrl-C into a stop file, at which the ranks finish the step,
# save, and end with code 75. A second Ctrl-C kills them at once. docs/stopping.md has the whole table.
folder="$(mktemp -d)" || exit
export DNABERT_RM_STOP_FILE="$folder/stop"
trap 'rm -rf "$folder"' EXIT
# shellcheck disable=SC2329  # the traps below call it
stop() {
    if [ "$1" = INT ] && [ -e "$DNABERT_RM_STOP_FILE" ]; then
        [ -z "$launcher" ] || kill -KILL -- "-$launcher"
        exit 130
    fi
    : >"$DNABERT_RM_STOP_FILE"
    # In a shell of its own: Ctrl-C may have ended who reads this (`… | tee log`), and SIGPIPE would end this one.
    (echo "$1: finishing the step, then saving; Ctrl-C (again) ends at once" >&2) || :
}
launcher=
for name in TERM USR1 HUP INT; do
    # shellcheck disable=SC2064  # the name is to be put in now
    trap "stop $name" "$name"
done
# With job control the launcher and all ranks are a process group of their own, which Ctrl-C does not reach.
set -m
# The launcher's own account of what it starts is ten lines; its warnings and errors stay.
# shellcheck disable=SC2086  # several words
deepspeed --log_level warning ${DEEPSPEED_ARGS:-} "$here/$(basename "$0")" "$@" </dev/null &
launcher=$!
# A signal ends a wait; the code that counts is that of the wait which finds the launcher ended.
while kill -0 "$launcher" 2>/dev/null; do
    wait "$launcher"
    sleep 0.1 # a launcher that was halted (SIGSTOP) ends each wait at once
done
wait "$launcher"
exit
'''
import sys

from dnabert_rm.cli.main import run_one

sys.exit(run_one("pretrain", "pretrain.sh", sys.argv[1:]))
