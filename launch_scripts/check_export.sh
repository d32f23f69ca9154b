# shellcheck shell=bash
# Sourced by scripts that use an exported model again.

# Fail with a line if MODEL was exported from another checkpoint than the last one of RUN.
check_export() { # RUN MODEL
    local run=$1 model=$2 exported last
    exported="$(sed -n 's/^ "step": \([0-9]*\),*$/\1/p' "$model/pretraining.json" 2>/dev/null)"
    last="$(find "$run/checkpoints/" -maxdepth 1 -name 'step_*[0-9]' | sort | tail -n 1)"
    last="${last##*/step_}"
    if [ -n "$exported" ] && [ -n "$last" ] && [ "$exported" -ne "$((10#$last))" ]; then
        echo "$model: is the model after $exported steps, but the last checkpoint of $run is after" \
            "$((10#$last)) steps; remove $model and the results made with it, or choose another output" >&2
        return 2
    fi
}
