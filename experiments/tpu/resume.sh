#!/usr/bin/env bash
# Keeps a training going until it is finished: resume.sh --spot [settings] -- --config=FILE [flags of train.py]
#
# Watches the TPU. When it has been taken away, requests another, sets it up and launches the training again, which goes
# on from its last checkpoint in the bucket. Ends with 0 when the run has results, and with 1 when it diverged, was
# mistaken, or failed three times in a row. It starts from nothing too: then it creates the TPU. Let it run where it is
# not interrupted (in tmux, on a machine that stays awake); interrupted, start it again. It does not delete the TPU at
# the end: delete.sh does, and until then it costs money.

# shellcheck source=experiments/tpu/settings.sh
. "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_settings "$@"
same_settings

[ ${#rest[@]} -gt 0 ] || fail "what is to be trained? resume.sh [settings] -- --config=FILE"
workdir=$bucket/runs/$name
for argument in "${rest[@]}"; do
  case $argument in --workdir=*) workdir=${argument#*=} ;; esac
done
case $workdir in
  gs://?*) ;;
  *) fail "the workdir must be on gs://, by --bucket or by --workdir after --: a TPU's own disk goes when it goes" ;;
esac

again() {
  "$here/delete.sh" "${same[@]}" && request
}
request() {
  "$here/create.sh" "${same[@]}" && start
}
start() {
  "$here/setup.sh" "${same[@]}" && "$here/launch.sh" "${same[@]}" -- "${rest[@]}"
}
is_finished() {
  gcloud storage ls "$workdir/results.json" >/dev/null 2>&1
}

status='[ ! -d cnn-research ] && echo none || bash cnn-research/experiments/tpu/worker.sh status'

if [ "$dry_run" = yes ]; then
  echo "# every $poll seconds:"
  run gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)'
  run gcloud storage ls "$workdir/results.json"
  on_workers 0 "$status"
  echo "# after a preemption:"
  again
  exit
fi

failures=0
failed() {
  failures=$((failures + 1))
  if [ "$failures" -ge 3 ]; then
    echo "error: failed three times in a row; see above, and logs.sh" >&2
    exit 1
  fi
}

while true; do
  if is_finished; then
    echo "$name: finished, results in $workdir. It costs money until: $here/delete.sh ${same[*]}"
    exit 0
  fi
  now=$(state)
  case $now in
    ACTIVE)
      # "running", "none", or "exit" and its status; nothing when the host does not answer.
      training=$(on_workers 0 "$status" 2>/dev/null | tail -n 1) || training=''
      echo "$name: $now, training: ${training:-the host does not answer}"
      case $training in
        running) failures=0 ;;
        none) start || failed ;;
        # Finished since we looked, or asked to leave: then it has saved.
        'exit 0') is_finished || start || failed ;;
        'exit 2' | 'exit 3')
          echo "error: mistaken (2) or diverged (3), which another start would not mend; logs.sh shows why" >&2
          exit 1
          ;;
        exit*)
          failed
          start || failed
          ;;
      esac
      ;;
    NONE)
      echo "$name: there is none, requesting it"
      request || failed
      ;;
    SUSPENDED | FAILED)
      echo "$name: $now, requesting another"
      again || failed
      ;;
    *) echo "$name: $now" ;;
  esac
  sleep "$poll"
done
