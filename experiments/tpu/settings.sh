# shellcheck shell=bash
# What the scripts of this folder share: their settings, and commands that are shown before they run. Sourced, not run.
#
# NOT YET TRIED ON A REAL TPU. The commands follow Google's documentation of 2026, and the tests run them against a
# stand-in for gcloud. Look at --dry_run first, and tell us what is wrong.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

settings_help() {
  cat <<'HELP'
Settings, each a flag or a line of a file given by --env=FILE (by default tpu.env in this folder; see example.env):

  --name=NAME       TPU_NAME      of the TPU, and of the run's folder in the bucket
  --zone=ZONE       TPU_ZONE      such as us-central2-b, europe-west4-b
  --project=ID      TPU_PROJECT   of Google Cloud
  --type=TYPE       TPU_TYPE      accelerator type: v4-8, v5litepod-16, v6e-8, ...
  --version=NAME    TPU_VERSION   runtime version; by default the one that Google names for the type
  --spot            TPU_SPOT=yes  cheap capacity that may be taken away at any time (--on_demand: not)
  --bucket=gs://B   TPU_BUCKET    where runs are kept: a TPU's own disk goes when it goes
  --poll=SECONDS    TPU_POLL      between two looks at its state; 30 by default
  --dry_run                       print the commands and run none

Not yet tried on a real TPU. A TPU costs money from create.sh until delete.sh.
HELP
}

# The comment at the head of the script that was called is its help.
help() {
  sed -n '2,/^$/{/^#/s/^# \{0,1\}//p;}' "$0"
  echo
  settings_help
}

fail() {
  echo "error: $*" >&2
  exit 2
}

# Prints words with a space before each, quoted where a shell needs it.
quoted() {
  local word quote="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) printf " '%s'" "${word//\'/$quote}" ;;
      *) printf ' %s' "$word" ;;
    esac
  done
}

# Commands are printed before they run, so that they can be pasted into a shell; with --dry_run nothing runs.
run() {
  local line
  line=$(quoted "$@")
  if [ "$dry_run" = yes ]; then
    echo "${line# }"
  else
    echo "+$line" >&2
    "$@"
  fi
}

# Sets the variables from the environment file and the flags. What stands after -- is left in the array `rest`.
read_settings() {
  local env_file='' argument
  dry_run=no
  rest=()
  for argument in "$@"; do
    case $argument in
      --) break ;;
      --env=*) env_file=${argument#*=} ;;
      --help | -h)
        help
        exit 0
        ;;
    esac
  done
  if [ -n "$env_file" ]; then
    [ -f "$env_file" ] || fail "--env=$env_file: there is no such file"
  elif [ -f "$here/tpu.env" ]; then
    env_file=$here/tpu.env
  fi
  if [ -n "$env_file" ]; then
    case $env_file in */*) ;; *) env_file=./$env_file ;; esac # else the shell would look for it on PATH
    # shellcheck source=/dev/null
    . "$env_file"
  fi
  name=${TPU_NAME:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} type=${TPU_TYPE:-} version=${TPU_VERSION:-}
  spot=${TPU_SPOT:-no} bucket=${TPU_BUCKET:-} poll=${TPU_POLL:-30}
  while [ $# -gt 0 ]; do
    case $1 in
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --version=*) version=${1#*=} ;;
      --spot) spot=yes ;;
      --on_demand) spot=no ;;
      --bucket=*) bucket=${1#*=} ;;
      --poll=*) poll=${1#*=} ;;
      --env=*) ;;
      --dry_run) dry_run=yes ;;
      --)
        shift
        rest=("$@")
        break
        ;;
      *) fail "$1 is no setting; --help shows them. What belongs to train.py stands after --" ;;
    esac
    shift
  done
  bucket=${bucket%/}
  local missing=''
  [ -n "$name" ] || missing="$missing --name"
  [ -n "$zone" ] || missing="$missing --zone"
  [ -n "$project" ] || missing="$missing --project"
  [ -z "$missing" ] || fail "${missing# } must be given, or stand in an environment file; --help shows how"
  case $bucket in '' | gs://?*) ;; *) fail "--bucket=$bucket: must begin with gs://" ;; esac
  case $spot in yes | no) ;; *) fail "TPU_SPOT=$spot: must be yes or no" ;; esac
  [ "$dry_run" = yes ] || command -v gcloud >/dev/null || fail "there is no gcloud: install the Google Cloud CLI"
  where=("--zone=$zone" "--project=$project")
}

# The same settings, for another script of this folder.
same_settings() {
  same=("--name=$name" "--zone=$zone" "--project=$project" "--type=$type" "--version=$version" "--bucket=$bucket"
    "--poll=$poll")
  if [ "$spot" = yes ]; then same+=(--spot); else same+=(--on_demand); fi
  if [ "$dry_run" = yes ]; then same+=(--dry_run); fi
}

# The state of the request for a TPU, such as ACTIVE or SUSPENDED; NONE where there is no request of this name.
state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)' 2>/dev/null ||
    echo NONE
}

# Runs a command line on all hosts of the TPU, or on the one whose number is given.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}
