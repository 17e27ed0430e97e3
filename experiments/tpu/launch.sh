#!/usr/bin/env bash
# Starts a training on all hosts of a TPU: launch.sh [settings] -- --config=experiments/configs/resnet50_imagenet.py
#
# What stands after -- goes to experiments/train.py. Its --workdir is gs://BUCKET/runs/NAME unless it is given there.
# The training goes on when you log out. Launched again, it goes on from its last checkpoint; where it is still running
# it is left alone. logs.sh shows what it prints.

# shellcheck source=experiments/tpu/settings.sh
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_settings "$@"

[ ${#rest[@]} -gt 0 ] || fail "what is to be trained? launch.sh [settings] -- --config=FILE"
workdir=''
for argument in "${rest[@]}"; do
  case $argument in --workdir=*) workdir=${argument#*=} ;; esac
done
if [ -z "$workdir" ]; then
  [ -n "$bucket" ] || fail "--bucket=gs://... must be given, or a --workdir after --"
  rest+=("--workdir=$bucket/runs/$name")
fi
on_workers all "bash cnn-research/experiments/tpu/worker.sh start$(quoted "${rest[@]}")"
