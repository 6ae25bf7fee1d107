#!/usr/bin/env bash
# Whether pip can install rectune[vllm] with constraints-vllm.txt into an empty environment; nothing is installed.
#
#     scripts/check_vllm.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
"${1:-python}" -m pip install --dry-run --ignore-installed --quiet --quiet -c constraints-vllm.txt '.[vllm,peft]'
echo "rectune[vllm,peft] can be installed with constraints-vllm.txt"
