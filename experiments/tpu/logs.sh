#!/usr/bin/env bash
# Follows what a training prints, on the first host or on another: logs.sh [settings] [-- NUMBER]
#
# Ctrl-C stops looking, not the training.

# shellcheck source=experiments/tpu/settings.sh
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_settings "$@"

on_workers "${rest[0]:-0}" 'tail -n 100 -F train.log'
