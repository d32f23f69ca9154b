#!/usr/bin/env bash
# Reproduce observations 2 and 3 of the paper, and RandomMask's effect: pretrain the same model with several arms.
#
#   SCALE=cpu bash launch_scripts/reproduce_masking.sh GENOME.fa.gz OUT [ARM …]
#
# Arms: randommask randommask-matched fixed6 fixed14 token (single non-overlapping k-mers); by default all of them.
# Writes OUT/data, OUT/runs/ARM, OUT/models/ARM and OUT/figures. The figures are curves of the training loss and of the
# held-out loss at fixed spans, embeddings with their silhouette, attention by layer, and a report. The same command
# resumes a stopped run. The contigs in VAL_CONTIGS (words; default: chrXIV of yeast) are held out. dev/reproduce.md
# explains the results.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: SCALE=tiny|cpu|gpu|cluster bash $0 GENOME.fa.gz OUT [ARM …]" >&2
    exit 2
fi
here="$(cd "$(dirname "$0")" && pwd)"
# shellcheck source=launch_scripts/reproduce_scale.sh
. "$here/reproduce_scale.sh"
# shellcheck source=launch_scripts/check_export.sh
. "$here/check_export.sh"
genome=$1 out=$2
shift 2
[ $# -gt 0 ] || set -- randommask randommask-matched fixed6 fixed14 token
for arm in "$@"; do flags_of "$arm" >/dev/null; done

# shellcheck disable=SC2086  # VAL_CONTIGS holds several words
python -m data_prep build "$genome" --out "$out/data" --k 6 --val-contigs ${VAL_CONTIGS:-chrXIV} >&2
for arm in "$@"; do
    # shellcheck disable=SC2086  # print on one line
    echo "== $arm:" $pretraining "$(flags_of "$arm")" >&2
    # shellcheck disable=SC2046,SC2086  # split into words
    DEEPSPEED_ARGS="--quiet --num_gpus $ranks ${DEEPSPEED_ARGS:-}" bash "$here/pretrain.sh" $pretraining \
        $(flags_of "$arm") --data "$out/data" --output "$out/runs/$arm" --strand random --seed "$SEED" --log-every 10 \
        --train.keep_last 0 ${DEVICE_FLAGS:-}
    if [ -d "$out/models/$arm" ]; then
        # Also for the analyses below, which exist already if the model does.
        check_export "$out/runs/$arm" "$out/models/$arm" || exit
    else
        dnabert-rm export "$out/runs/$arm" --output "$out/models/$arm"
    fi
    [ -f "$out/runs/$arm/analysis/embeddings.json" ] || dnabert-rm analyze embeddings "$out/runs/$arm"
    [ -f "$out/runs/$arm/analysis/attention.json" ] || dnabert-rm analyze attention "$out/runs/$arm" --data "$out/data"
done
runs=("$@")
runs=("${runs[@]/#/$out/runs/}")
mkdir -p "$out/figures"
dnabert-rm analyze curves "${runs[@]}" --output "$out/figures/curves.png"
dnabert-rm analyze compare "${runs[@]}" --output "$out/figures/compare.png"
dnabert-rm analyze report "${runs[@]}" --output "$out/figures/report.html"
