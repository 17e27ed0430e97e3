#!/usr/bin/env bash
# What setup.sh, launch.sh and resume.sh run on each host of a TPU; not meant to be called by hand.
#
#   setup           installs cnn-research into .venv
#   start FLAGS     starts experiments/train.py in the background, unless it is running
#   status          prints "running", "none", or "exit" and the status with which it ended
#
# What it prints goes to ~/train.log.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

is_running() {
  local process
  process=$(cat ~/train.pid 2>/dev/null) || return 1
  # After a restart of the host another process may have its number.
  kill -0 "$process" 2>/dev/null && tr '\0' ' ' <"/proc/$process/cmdline" | grep -q experiments/train.py
}

case ${1:-} in
  setup)
    # The hosts' own Python may be older than 3.11; uv brings one that is not.
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    [ -x .venv/bin/python ] || ~/.local/bin/uv venv --quiet --python 3.12 .venv
    ~/.local/bin/uv pip install --quiet --python .venv/bin/python --editable '.[tpu]' gcsfs # which reads and writes gs://
    # On several hosts this returns when all of them have come so far.
    .venv/bin/python -c 'import jax; print(jax.device_count(), "devices:", jax.devices()[0].device_kind)'
    ;;
  start)
    shift
    if is_running; then
      echo "already running"
      exit
    fi
    rm -f ~/train.exit
    # shellcheck disable=SC2016 # expanded by the inner shell
    setsid nohup bash -c '.venv/bin/python experiments/train.py "$@"; echo $? >~/train.exit' train "$@" \
      >>~/train.log 2>&1 </dev/null &
    echo $! >~/train.pid
    echo "started"
    ;;
  status)
    if is_running; then
      echo running
    elif [ -f ~/train.exit ]; then
      echo "exit $(cat ~/train.exit)"
    else
      echo none
    fi
    ;;
  *)
    echo "error: setup, start or status?" >&2
    exit 2
    ;;
esac
