#!/usr/bin/env bash
# One machine: examples/launch/torchrun.sh recipe.toml [flags of rectune train]. Not run on GPUs.
# Lost processes start all again, up to three times, from the last checkpoint. SHARD=1 shards with FSDP2.
set -euo pipefail
if [ "${SHARD:-0}" = 1 ]; then
  export ACCELERATE_USE_FSDP=true FSDP_VERSION=2
fi
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else torchrun 2.13 restarts with the addresses of the dead
exec torchrun --standalone --nproc-per-node "${GPUS:-gpu}" --max-restarts 3 -m rectune.cli.app train "$@" --resume
