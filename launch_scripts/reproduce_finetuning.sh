#!/usr/bin/env bash
# Observation 1 of the paper, and its claim, on the epigenetic marks: the models of reproduce_masking.sh fine-tuned.
#
#   bash launch_scripts/reproduce_finetuning.sh OUT GUE [flags of dnabert-rm gue]
#   bash launch_scripts/reproduce_finetuning.sh OUT GUE --seeds 1,2,3 --sets EMP/H3,EMP/H3K14ac,EMP/H4
#
# Every arm in OUT/models is fine-tuned, from pretrained weights, with overlapping tokens; fixed6 and token, the two that
# observation 1 is about, with non-overlapping ones as well. One table an arm in OUT/finetuned/ARM. The same command goes
# on where it was stopped. Where a set has no train.csv, dev stands in for it, which is no GUE number.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: bash $0 OUT GUE [flags of dnabert-rm gue]" >&2
    exit 2
fi
out=$1 gue=$2
shift 2
for model in "$out"/models/*/; do
    arm=$(basename "$model")
    dnabert-rm gue --model "$model" --data "$gue" --output "$out/finetuned/$arm" --stand-in "$@"
    case "$arm" in
        fixed6 | token)
            dnabert-rm gue --model "$model" --data "$gue" --output "$out/finetuned/$arm" --stand-in --non-overlapping "$@"
            ;;
    esac
done
