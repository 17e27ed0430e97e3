#!/usr/bin/env bash
# Copies this checkout to all hosts of a TPU and installs it there: setup.sh --name=resnet --zone=... --project=...
#
# The files are those that git knows or would add, as they are now, uncommitted changes included. Run it again after a
# change; what is installed already is kept.

# shellcheck source=experiments/tpu/settings.sh
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_settings "$@"

root=$(cd "$here/../.." && pwd)
archive=$(mktemp -d)/cnn-research.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT

if [ "$dry_run" = no ]; then
  # Files that were deleted but not committed are still listed.
  git -C "$root" ls-files -z --cached --others --exclude-standard | (
    cd "$root"
    while IFS= read -r -d '' file; do
      if [ -e "$file" ]; then printf '%s\0' "$file"; fi
    done
  ) | tar -czf "$archive" -C "$root" --null -T -
fi
run gcloud compute tpus tpu-vm scp "$archive" "$name:cnn-research.tar.gz" "${where[@]}" --worker=all
on_workers all "mkdir -p cnn-research && tar -xzf cnn-research.tar.gz -C cnn-research && bash cnn-research/experiments/tpu/worker.sh setup"
