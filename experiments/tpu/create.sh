#!/usr/bin/env bash
# Requests a TPU and waits until it is there: create.sh --name=resnet --zone=us-central2-b --project=mine --type=v4-8
#
# It is a queued resource, of one host or many. Waiting for capacity may take minutes or days: interrupt the script at
# will, the request stays, and the same command waits again. delete.sh takes it back. Queued resources belong to the
# Cloud TPU API, which knows TPUs up to v6e; later ones are to be had by GKE and Compute Engine alone.

# shellcheck source=experiments/tpu/settings.sh
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_settings "$@"

[ -n "$type" ] || fail "--type must be given, such as v4-8; gcloud compute tpus accelerator-types list --zone=$zone lists them"
if [ -z "$version" ]; then
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-* | v5e-*) version=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    *) fail "--type=$type: no runtime version is known for it; --version names one" ;;
  esac
fi
request=(--async --node-id="$name" "${where[@]}" --accelerator-type="$type" --runtime-version="$version")
# So that the hosts may write to the bucket; their service account needs the right to it besides.
request+=(--scopes=https://www.googleapis.com/auth/cloud-platform)
if [ "$spot" = yes ]; then request+=(--spot); fi

if [ "$dry_run" = yes ]; then
  run gcloud compute tpus queued-resources create "$name" "${request[@]}"
  run gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)'
  exit
fi
now=$(state)
if [ "$now" = NONE ]; then
  run gcloud compute tpus queued-resources create "$name" "${request[@]}"
fi
seen=''
while true; do
  now=$(state)
  [ "$now" = "$seen" ] || echo "$name: $now"
  seen=$now
  case $now in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      echo "error: $name is $now; delete.sh, then create.sh requests another. Why, says:" >&2
      echo "  gcloud compute tpus queued-resources describe $name ${where[*]}" >&2
      exit 1
      ;;
  esac
  sleep "$poll"
done
