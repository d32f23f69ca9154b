#!/usr/bin/env bash
# Demo: from a genome to a fine-tuned model on two CPU cores, with the usual commands.
#
#   make demo                        simulate a genome, pretrain, export, fine-tune with and without pretraining
#   make demo GENOME=my.fa.gz        pretrain and export on your own FASTA
#
# Needs the environment that `make install` creates. Results are in demo/; the next call overwrites them.
set -eu
dir=${1:-demo}
genome=${2:-}
scripts="$(cd "$(dirname "$0")" && pwd)"
# Use two CPU ranks even if there is a GPU, so that the demo is the same everywhere.
export DS_ACCELERATOR=cpu
export DEEPSPEED_ARGS="--quiet --num_gpus 2"

say() { printf '\n== %s\n' "$*" >&2; }

if [ -n "$genome" ]; then
    dir="$dir/own"
fi
rm -rf "$dir/data" "$dir/simulated" "$dir/run" "$dir/model" "$dir/pretrained" "$dir/scratch"
mkdir -p "$dir"

if [ -z "$genome" ]; then
    say "1/5 a simulated genome: repeats, N runs, lower case, planted motifs"
    python -m data_prep simulate --out "$dir/simulated" --rows 500
    genome="$dir/simulated/genome.fa"
fi

say "2/5 shards"
python -m data_prep build "$genome" --out "$dir/data" --k 3

say "3/5 pretraining: 2 ranks, ZeRO-3, five RandomMask phases"
# With rotary positions, 3-mers and phases of nearly equal length, the curve shows the effect of RandomMask after two
# minutes on two cores. By default the phases end where the paper's do.
bash "$scripts/pretrain.sh" --preset tiny --model.architecture modernbert --model.intermediate_size 192 \
    --data "$dir/data" --output "$dir/run" --steps 1000 --global-batch 32 --window 120 --lr 4e-3 \
    --phase-ends 0.4,0.55,0.7,0.85,1 --save-every 500 --log-every 5

say "4/5 export"
dnabert-rm export "$dir/run" --output "$dir/model"

if [ -d "$dir/simulated" ]; then
    say "5/5 fine-tuning, once from the pretrained weights and once from scratch"
    for start in pretrained scratch; do
        flags=()
        if [ $start = scratch ]; then
            flags=(--from-scratch)
        fi
        dnabert-rm finetune --model "$dir/model" --train "$dir/simulated/train.csv" --dev "$dir/simulated/dev.csv" \
            --test "$dir/simulated/test.csv" --output "$dir/$start" --epochs 6 --learning-rate 1e-3 --dropout 0 \
            "${flags[@]}" >/dev/null
    done
fi

python "$scripts/demo_summary.py" "$dir"
