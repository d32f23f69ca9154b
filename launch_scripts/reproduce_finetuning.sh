#!/usr/bin/env bash
# Reproduce observation 1 of the paper and its claim about epigenetic marks: fine-tune reproduce_masking.sh's models.
#
#   bash launch_scripts/reproduce_finetuning.sh OUT GUE [flags of dnabert-rm gue]
#   bash launch_scripts/reproduce_finetuning.sh OUT GUE --seeds 1,2,3 --sets EMP/H3,EMP/H3K14ac,EMP/H4
#
# Fine-tunes every arm in OUT/models from pretrained weights, with overlapping tokens. The arms of observation 1, fixed6
# and token, are also fine-tuned with non-overlapping tokens. Each arm gets a table in OUT/finetuned/ARM. The same
# command resumes a stopped run. If a set has no train.csv, dev.csv replaces it, and its score is not a GUE score.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: bash $0 OUT GUE [flags of dnabert-rm gue]" >&2
    exit 2
fi
out=$1 gue=$2
shift 2
for model in "$out"/models/*/; do
    if [ ! -d "$model" ]; then
        echo "$out/models: no models; run reproduce_masking.sh first" >&2
        exit 2
    fi
    arm=$(basename "$model")
    dnabert-rm gue --model "$model" --data "$gue" --output "$out/finetuned/$arm" --stand-in "$@"
    case "$arm" in
        fixed6 | token)
            dnabert-rm gue --model "$model" --data "$gue" --output "$out/finetuned/$arm" --stand-in \
                --non-overlapping "$@"
            ;;
    esac
done
