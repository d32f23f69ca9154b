#!/usr/bin/env bash
# From a pretraining run or an exported model to a GUE table: export if necessary, then fine-tune on every data set.
#
#   bash launch_scripts/finetune_gue.sh RUN_OR_HFDIR GUE_DIR OUTPUT [flags of dnabert-rm gue]
#   bash launch_scripts/finetune_gue.sh runs/base GUE results/base --seeds 1,2,3 --arms pretrained,scratch
#
# Each GPU trains one data set at a time. Choose GPUs with CUDA_VISIBLE_DEVICES. The same command resumes a stopped run.
# If the first argument is a run folder, its last checkpoint is exported, once, to OUTPUT/model. If the run has a later
# checkpoint by then, the script ends with an error. To use the old export, pass OUTPUT/model instead of the run.
set -eu
if [ $# -lt 3 ]; then
    echo "usage: bash $0 RUN_OR_HFDIR GUE_DIR OUTPUT [flags of dnabert-rm gue]" >&2
    exit 2
fi
model=$1 data=$2 output=$3
shift 3
# shellcheck source=launch_scripts/check_export.sh
. "$(dirname "$0")/check_export.sh"
if [ -d "$model/checkpoints" ]; then
    if [ -f "$output/model/config.json" ]; then
        check_export "$model" "$output/model" || exit
        echo "$output/model exists already and is used" >&2
    else
        dnabert-rm export "$model" --output "$output/model" >&2
    fi
    model=$output/model
fi
exec dnabert-rm gue --model "$model" --data "$data" --output "$output" "$@"
