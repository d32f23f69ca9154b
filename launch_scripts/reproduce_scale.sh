# shellcheck shell=bash disable=SC2034
# The sizes of a reproduction, read by the other reproduce_*.sh scripts (`. reproduce_scale.sh`). SCALE chooses:
#
#   tiny      31 to 41 minutes an arm on one busy CPU core
#   cpu       yeast on two cores, one to two hours an arm
#   gpu       one GPU, under 25 minutes an arm is the aim (untried)
#   cluster   the paper's setting: run this on the nodes, see docs/cluster.md
#
# SEED is that of the pretraining. DEVICE_FLAGS go to pretrain.sh as they are.
SCALE=${SCALE:-cpu}
SEED=${SEED:-42}
case "$SCALE" in
    tiny)
        pretraining="--preset tiny --model.architecture modernbert --steps 4000 --global-batch 32 --window 130 --lr 4e-3
            --precision fp32 --ds-config zero0 --save-every 500 --validation.every 100 --validation.windows 128"
        ranks=1
        ;;
    cpu)
        pretraining="--preset mini --model.architecture modernbert --steps 3000 --global-batch 16 --window 512 --lr 2e-3
            --precision fp32 --ds-config zero0 --save-every 500 --validation.every 100 --validation.windows 64"
        ranks=1
        ;;
    gpu)
        pretraining="--preset small --model.architecture modernbert --steps 10000 --global-batch 256 --window 512 --lr 1e-3
            --precision bf16 --ds-config zero1 --save-every 1000 --validation.every 250"
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
# A small model needs most of its steps to find that neighbouring k-mers overlap; the phases wait for it. At the
# paper's scale they end where the paper's do.
if [ "$SCALE" != cluster ]; then
    pretraining="$pretraining --phase-ends 0.4,0.55,0.7,0.85,1"
fi

# The arms, and what makes each of them (docs/randommask.md).
flags_of() {
    case "$1" in
        randommask | randommask-matched) echo "--masking $1" ;;
        fixed6) echo "--masking fixed --masking.fixed_span 6" ;;
        fixed14) echo "--masking fixed --masking.fixed_span 14" ;;
        token) echo "--masking token --data.overlap false" ;;
        *)
            echo "$1: no such arm; there are randommask randommask-matched fixed6 fixed14 token" >&2
            return 2
            ;;
    esac
}
