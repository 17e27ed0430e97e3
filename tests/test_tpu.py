"""experiments/tpu with a stand-in for gcloud, whose TPU is a folder: nothing here touches a cloud."""

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ["create", "setup", "launch", "logs", "resume", "delete"]
SETTINGS = ["--name=net", "--zone=us-central2-b", "--project=mine", "--bucket=gs://runs/", "--poll=0.05"]
WHERE = ["--zone=us-central2-b", "--project=mine"]
TPU = ["gcloud", "compute", "tpus"]
TRAIN = ["--config=a.py", "--config.augment=shift(1)|it's", "--config.loss.label_smoothing=0.1"]

# Keeps its state in $CLOUD: "state" (of the queued resource), "bucket" and "vm", the home of the TPU's only host.
GCLOUD = """#!/bin/bash
{ printf '%s\\037' "$@"; echo; } >>"$CLOUD/calls"
case "$*" in
  *"queued-resources create"*)
    if [ -e "$CLOUD/refuses" ]; then exit 1; fi
    mkdir "$CLOUD/vm" && echo WAITING_FOR_RESOURCES >"$CLOUD/state" ;;
  *"queued-resources describe"*)
    [ -e "$CLOUD/state" ] || { echo "NOT_FOUND" >&2; exit 1; }
    cat "$CLOUD/state"
    if grep -q WAITING "$CLOUD/state"; then echo ACTIVE >"$CLOUD/state"; fi ;;
  *"queued-resources delete"*) rm -rf "$CLOUD/vm" "$CLOUD/state" ;;
  *"tpu-vm scp"*) cp "$5" "$CLOUD/vm/${6#*:}" ;;
  *"tpu-vm ssh"*)
    case $* in *"worker.sh status") trap 'touch "$CLOUD/asked"' EXIT ;; esac
    command=${!#}
    cd "$CLOUD/vm" && HOME=$CLOUD/vm PATH=$CLOUD/vm/bin:$PATH bash -c "${command#--command=}" ;;
  *"storage ls"*) [ -e "$CLOUD/bucket/${4#gs://}" ] ;;
  *) exit 9 ;;
esac
"""
# On the host: pip brings uv, uv brings a Python whose training does what "$CLOUD/training" says.
PIP = """#!/bin/bash
if [ "$1" != -m ]; then exec %s "$@"; fi
[ "$*" = "-m pip install --quiet --user uv" ] || exit 8
mkdir -p ~/.local/bin && cp "$CLOUD/uv" ~/.local/bin/uv
"""
UV = """#!/bin/bash
echo "uv $*" >>"$CLOUD/installed"
if [ "$1" = venv ]; then mkdir -p .venv/bin && cp "$CLOUD/python" .venv/bin/python; fi
"""
PYTHON = """#!/bin/bash
if [ "$1" = -c ]; then echo 8 devices; exit; fi
printf '%s\\n' "$@" >>"$CLOUD/trained"; echo . >>"$CLOUD/starts"
. "$CLOUD/training"
"""


@pytest.fixture
def cloud(tmp_path):
    """A folder that stands for the cloud, and a checkout with a few files."""
    folder = tmp_path / "cloud"
    (folder / "bin").mkdir(parents=True)
    system = shutil.which("python3")
    for path, text in {"bin/gcloud": GCLOUD, "bin/python3": PIP % system, "uv": UV, "python": PYTHON}.items():
        (folder / path).write_text(text)
        (folder / path).chmod(0o755)
    (folder / "training").write_text("sleep 60")
    checkout = tmp_path / "checkout"
    mine = shutil.ignore_patterns("tpu.env")
    shutil.copytree(ROOT / "experiments" / "tpu", checkout / "experiments" / "tpu", ignore=mine)
    (checkout / "experiments" / "train.py").write_text("old")
    (checkout / "gone.py").write_text("")
    (checkout / ".gitignore").write_text("runs/\n")
    for arguments in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *arguments], cwd=checkout, check=True)
    yield folder
    for path in folder.glob("vm/train.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(path.read_text()), 9)


def run(cloud, name, *arguments, code=0):
    done = subprocess.run(
        ["bash", str(cloud.parent / "checkout" / "experiments" / "tpu" / f"{name}.sh"), *arguments],
        env={**os.environ, "CLOUD": str(cloud), "PATH": f"{cloud}/bin:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def calls(cloud):
    """What gcloud was called with, but for the questions after the state of things."""
    path = cloud / "calls"
    made = [["gcloud", *line.split("\037")[:-1]] for line in path.read_text().split("\n")[:-1]] if path.exists() else []
    return [call for call in made if "describe" not in call and "ls" not in call and not call[-1].endswith("status")]


def wait_for(path):
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


REQUEST = [
    *TPU, "queued-resources", "create", "net", "--async", "--node-id=net", *WHERE, "--accelerator-type=v4-8",
    "--runtime-version=tpu-ubuntu2204-base", "--scopes=https://www.googleapis.com/auth/cloud-platform",
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--type=v4-8"], REQUEST),
        (["--type=v4-8", "--spot"], [*REQUEST, "--spot"]),
        (["--type=v4-8", "--version=mine"], [flag.replace("tpu-ubuntu2204-base", "mine") for flag in REQUEST]),
    ],
)
def test_create_requests_and_waits(cloud, flags, expected):
    out, _ = run(cloud, "create", *SETTINGS, *flags)
    assert calls(cloud) == [expected]
    assert out.split("\n")[:2] == ["net: WAITING_FOR_RESOURCES", "net: ACTIVE"]
    run(cloud, "create", *SETTINGS, *flags)
    assert calls(cloud) == [expected], "what is there is not requested again"


# Of Google's page on TPU software versions.
@pytest.mark.parametrize(
    ("kind", "version"),
    [("v6e-8", "v2-alpha-tpuv6e"), ("v5p-8", "v2-alpha-tpuv5"), ("v5litepod-16", "v2-alpha-tpuv5-lite"),
     ("v3-8", "tpu-ubuntu2204-base")],
)  # fmt: skip
def test_runtime_version_of_a_type(cloud, kind, version):
    out, _ = run(cloud, "create", *SETTINGS, f"--type={kind}", "--dry_run")
    assert f"--runtime-version={version}" in shlex.split(out.splitlines()[0])


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_says_what_has_become_of_a_request(cloud, state):
    (cloud / "state").write_text(state)
    _, err = run(cloud, "create", *SETTINGS, "--type=v4-8", code=1)
    assert f"net is {state}" in err and not calls(cloud)


def test_setup_copies_the_checkout_as_it_is(cloud):
    checkout = cloud.parent / "checkout"
    (checkout / "experiments" / "train.py").write_text("changed")
    (checkout / "experiments" / "my config.py").write_text("new")
    (checkout / "runs").mkdir()
    (checkout / "runs" / "large").write_text("ignored")
    (checkout / "gone.py").unlink()
    run(cloud, "create", *SETTINGS, "--type=v4-8")
    out, _ = run(cloud, "setup", *SETTINGS)
    copy = cloud / "vm" / "cnn-research"
    assert (copy / "experiments" / "train.py").read_text() == "changed"
    assert (copy / "experiments" / "my config.py").read_text() == "new"
    assert not (copy / "runs").exists() and "8 devices" in out
    assert (cloud / "installed").read_text().splitlines() == [
        "uv venv --quiet --python 3.12 .venv",
        "uv pip install --quiet --python .venv/bin/python --editable .[tpu] gcsfs",
    ]
    (scp, ssh) = calls(cloud)[1:]
    assert scp[:5] == [*TPU, "tpu-vm", "scp"] and scp[6:] == ["net:cnn-research.tar.gz", *WHERE, "--worker=all"]
    assert ssh[:9] == [*TPU, "tpu-vm", "ssh", "net", *WHERE, "--worker=all"]
    assert not Path(scp[5]).exists(), "the archive is removed"
    run(cloud, "setup", *SETTINGS)
    assert (cloud / "installed").read_text().count("uv venv") == 1


@pytest.fixture
def ready(cloud):
    """A TPU that is set up."""
    run(cloud, "create", *SETTINGS, "--type=v4-8")
    run(cloud, "setup", *SETTINGS)
    return cloud


def test_launch_starts_once_and_again_when_it_has_ended(ready):
    out, _ = run(ready, "launch", *SETTINGS, "--", *TRAIN)
    assert out == "started\n"
    wait_for(ready / "trained")
    script, *flags = (ready / "trained").read_text().splitlines()
    assert script == "experiments/train.py" and flags == [*TRAIN, "--workdir=gs://runs/runs/net"]
    out, _ = run(ready, "launch", *SETTINGS, "--", *TRAIN)
    assert out == "already running\n"
    os.killpg(int((ready / "vm" / "train.pid").read_text()), 9)
    out, _ = run(ready, "launch", *SETTINGS, "--", *TRAIN, "--workdir=gs://elsewhere/net")
    assert out == "started\n"
    deadline = time.monotonic() + 20
    while (ready / "starts").read_text() != ".\n.\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (ready / "trained").read_text().splitlines()[-1] == "--workdir=gs://elsewhere/net"


def test_logs_follow(cloud):
    out, _ = run(cloud, "logs", *SETTINGS, "--dry_run")
    assert shlex.split(out) == [
        *TPU, "tpu-vm", "ssh", "net", *WHERE, "--worker=0", "--command=tail -n 100 -F train.log",
    ]  # fmt: skip
    assert "--worker=3" in run(cloud, "logs", *SETTINGS, "--dry_run", "--", "3")[0]


def test_delete(ready):
    run(ready, "delete", *SETTINGS)
    assert calls(ready)[-1] == [*TPU, "queued-resources", "delete", "net", *WHERE, "--force", "--quiet"]
    assert not (ready / "state").exists()


def finish_after(cloud, preemptions):
    """A training that is preempted as often, and then has results."""
    (cloud / "training").write_text(
        f"""if [ "$(wc -l <"$CLOUD/starts")" -le {preemptions} ]; then echo SUSPENDED >"$CLOUD/state"; exit 0; fi
        mkdir -p "$CLOUD/bucket/runs/runs/net" && touch "$CLOUD/bucket/runs/runs/net/results.json"
        """
    )


@pytest.mark.parametrize("preemptions", [0, 2])
def test_resume_brings_a_training_to_its_end(cloud, preemptions):
    """From nothing: it requests, sets up, launches, and does so again after each preemption."""
    finish_after(cloud, preemptions)
    out, _ = run(cloud, "resume", *SETTINGS, "--type=v4-8", "--spot", "--", *TRAIN)
    assert "net: finished, results in gs://runs/runs/net" in out and "delete.sh" in out
    assert (cloud / "starts").read_text().count(".") == preemptions + 1
    words = ("create", "delete", "scp", "setup", "start")
    steps = [next(word for word in words if word in " ".join(call)) for call in calls(cloud)]
    cycle = ["create", "scp", "setup", "start"]
    assert steps == cycle + ["delete", *cycle] * preemptions
    assert all("--spot" in call for call in calls(cloud) if "create" in call)
    assert (cloud / "state").read_text() == "ACTIVE\n", "it deletes nothing at the end"


@pytest.mark.parametrize(("status", "starts"), [(2, 1), (3, 1), (1, 3)])
def test_resume_gives_up_what_another_start_does_not_mend(ready, status, starts):
    (ready / "training").write_text(f"exit {status}")
    _, err = run(ready, "resume", *SETTINGS, "--type=v4-8", "--", *TRAIN, code=1)
    assert (ready / "starts").read_text().count(".") == starts
    assert ("diverged" if status != 1 else "failed three times") in err


def test_resume_gives_up_when_nothing_can_be_requested(cloud):
    (cloud / "refuses").write_text("")
    _, err = run(cloud, "resume", *SETTINGS, "--type=v4-8", "--", *TRAIN, code=1)
    assert "failed three times" in err and len(calls(cloud)) == 3


def test_resume_leaves_a_running_training_alone(ready):
    (ready / "training").write_text(
        'until [ -e "$CLOUD/asked" ]; do sleep 0.05; done; results=$CLOUD/bucket/runs/runs/net; mkdir -p "$results"\n'
        'touch "$results/results.json"'
    )
    run(ready, "launch", *SETTINGS, "--", *TRAIN)
    before = calls(ready)
    out, _ = run(ready, "resume", *SETTINGS, "--type=v4-8", "--", *TRAIN)
    assert "training: running" in out and calls(ready) == before


@pytest.mark.parametrize("name", SCRIPTS)
def test_dry_run_calls_nothing_and_help_is_honest(cloud, name):
    given = ["--", *TRAIN] if name in ("launch", "resume") else []
    out, err = run(cloud, name, *SETTINGS, "--type=v4-8", "--dry_run", *given)
    commands = [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]
    assert commands and all(command[0] == "gcloud" for command in commands) and err == ""
    assert not (cloud / "calls").exists()
    if given:
        command = next(command[-1] for command in commands if "start" in command[-1])
        assert shlex.split(command)[-4:] == [*TRAIN, "--workdir=gs://runs/runs/net"]
    out, _ = run(cloud, name, "--help")
    assert f"{name}.sh" in out and "Not yet tried on a real TPU" in out and "--zone=ZONE" in out


def test_settings_from_a_file_and_flags_that_override_them(cloud):
    example = ROOT / "experiments" / "tpu" / "example.env"
    out, _ = run(cloud, "create", f"--env={example}", "--name=other", "--on_demand", "--dry_run")
    request = shlex.split(out.splitlines()[0])
    assert request[5] == "other" and "--spot" not in request and "--project=my-project" in request
    shutil.copy(example, cloud.parent / "checkout" / "experiments" / "tpu" / "tpu.env")
    assert "--spot" in run(cloud, "create", "--dry_run")[0]


MISTAKES = {
    "nothing": ("create", [], "--name --zone --project must be given"),
    "no type": ("create", SETTINGS, "--type must be given"),
    "unknown type": ("create", [*SETTINGS, "--type=v9-8"], "--type=v9-8: no runtime version"),
    "unknown setting": ("setup", [*SETTINGS, "--nam=x"], "--nam=x is no setting"),
    "no experiment": ("launch", SETTINGS, "what is to be trained?"),
    "no bucket": ("launch", [*SETTINGS, "--bucket=", "--", *TRAIN], "--bucket=gs://... must be given"),
    "bucket elsewhere": ("launch", [*SETTINGS, "--bucket=s3://b", "--", *TRAIN], "must begin with gs://"),
    "local workdir": ("resume", [*SETTINGS, "--", *TRAIN, "--workdir=runs/a"], "must be on gs://"),
    "no such file": ("setup", ["--env=none.env"], "there is no such file"),
    "flags of train.py": ("launch", [*SETTINGS, *TRAIN], "What belongs to train.py stands after --"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(cloud, name):
    script, arguments, expected = MISTAKES[name]
    _, err = run(cloud, script, *arguments, code=2)
    assert err.startswith("error: ") and expected in err and err.count("\n") == 1
    assert not (cloud / "calls").exists()
