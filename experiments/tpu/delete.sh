#!/usr/bin/env bash
# Deletes a TPU, and the request for it: delete.sh --name=resnet --zone=us-central2-b --project=mine
#
# What is on its disks goes with it; what is in the bucket stays.

# shellcheck source=experiments/tpu/settings.sh
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_settings "$@"

run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
