# shellcheck shell=bash disable=SC2034
# Sizes of a reproduction, sourced by the other reproduce_*.sh scripts. Choose one with SCALE:
#
#   tiny      31 to 41 minutes per arm on one busy CPU core
#   cpu       yeast on two cores, one to two hours per arm
#   gpu       one GPU; aims at less than 25 minutes per arm (untested)
#   cluster   the paper's setting; run it on the nodes, see docs/cluster.md
#
# SEED is the seed of pretraining. DEVICE_FLAGS are passed on to pretrain.sh.
SCALE=${SCALE:-cpu}
SEED=${SEED:-42}
case "$SCALE" in
    tiny)
        pretraining="--preset tiny --model.architecture modernbert --model.rope_period 0 --model.num_heads 2
            --steps 4000 --global-batch 32 --window 130 --lr 4e-3 --precision fp32
            --ds-config zero0 --save-every 500 --validation.every 100 --validation.windows 128"
        ranks=1
        ;;
    cpu)
        pretraining="--preset mini --model.architecture modernbert --model.rope_period 0
            --steps 3000 --global-batch 16 --window 512 --lr 2e-3 --precision fp32
            --ds-config zero0 --save-every 500 --validation.every 100 --validation.windows 64"
        ranks=1
        ;;
    gpu)
        pretraining="--preset small --model.architecture modernbert --steps 10000 --global-batch 256 --window 512
            --lr 1e-3 --precision bf16 --ds-config zero1 --save-every 1000 --validation.every 250"
        ranks=${RANKS:-1}
        ;;
    cluster)
        pretraining="--preset base --steps 480000 --global-batch 2048 --window 512 --lr 4e-4 --save-every 10000"
        ranks=${RANKS:-8}
        ;;
    *)
        echo "SCALE=$SCALE: choose tiny, cpu, gpu or cluster" >&2
        exit 2
        ;;
esac
# From random weights, as in the paper, a small model needs most of its steps to learn that neighbouring k-mers overlap.
# So its phases end later. At the paper's scale they end where the paper's do.
if [ "$SCALE" != cluster ]; then
    pretraining="$pretraining --model.initial_weights random --phase-ends 0.4,0.55,0.7,0.85,1"
fi

# Print the flags of an arm (docs/randommask.md).
flags_of() {
    case "$1" in
        randommask | randommask-matched) echo "--masking $1" ;;
        fixed6) echo "--masking fixed --masking.fixed_span 6" ;;
        fixed14) echo "--masking fixed --masking.fixed_span 14" ;;
        token) echo "--masking token --data.overlap false" ;;
        *)
            echo "$1: no such arm; choose randommask, randommask-matched, fixed6, fixed14 or token" >&2
            return 2
            ;;
    esac
}
