"""Runs in processes of their own: which devices each gets, how they are started, watched and asked to leave."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from absl import logging
from etils import epath

from cnn_research.errors import UserError
from cnn_research.sweep.runs import LOG, OUTCOME, Run, Status, status
from cnn_research.training import workdir as files
from cnn_research.training.preemption import Preemption

# What JAX would see, asked in a process that ends: a GPU or TPU belongs to the process that has looked at it.
_PROBE = """
import json, jax
devices = jax.local_devices()
chips = {getattr(device, "coords", device.id) for device in devices}
print(json.dumps({"platform": devices[0].platform, "devices": len(devices), "chips": len({str(c) for c in chips})}))
"""
# Chips side by side on a host, by their number: how libtpu wants to be told of a part of them.
_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of this machine: "cpu", "gpu" or "tpu", how many, on how many chips (some TPU chips are two)."""

    platform: str
    devices: int
    chips: int


def local_devices() -> Devices:
    """Asks JAX, in a process of its own, for the devices of this machine.

    Raises:
        UserError: JAX finds none.
    """
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"JAX finds no devices here: {reason}")
    return Devices(**json.loads(probe.stdout.splitlines()[-1]))


def slots(here: Devices, parallel: int, environ: Mapping[str, str]) -> tuple[list[dict[str, str]], int]:
    """Divides the devices among runs at a time.

    Args:
        here: this machine's devices.
        parallel: how many runs at a time.
        environ: of this process; what it says of visible devices is divided.

    Returns:
        For each run at a time the environment variables to set, and how many devices it sees. CPU devices are not
        divided. Several runs may share a GPU, each with its part of the memory; what doesn't divide evenly is idle.

    Raises:
        UserError: there are more runs than TPU chips.
    """
    if parallel == 1 or here.platform == "cpu":
        return [{}] * parallel, here.devices
    if here.platform == "tpu":
        if parallel > here.chips:
            raise UserError(f"--parallel={parallel}: a TPU chip takes one run at a time, there are {here.chips}")
        each = max(size for size in _BOUNDS if size * parallel <= here.chips)
        visible = _visible(environ, "TPU_VISIBLE_CHIPS", here.chips)
        same = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": _BOUNDS[each]}
        parts = [{"TPU_VISIBLE_CHIPS": ",".join(visible[i * each : (i + 1) * each])} | same for i in range(parallel)]
        return parts, here.devices // here.chips * each
    visible = _visible(environ, "CUDA_VISIBLE_DEVICES", here.devices)
    each, sharing = max(1, here.devices // parallel), -(-parallel // here.devices)
    # JAX takes three quarters of a GPU's memory by default, which only one process can.
    memory = {} if sharing == 1 else {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharing:.3f}"}
    parts = []
    for i in range(parallel):
        first = i % here.devices if sharing > 1 else i * each
        parts.append({"CUDA_VISIBLE_DEVICES": ",".join(visible[first : first + each])} | memory)
    return parts, each


def _visible(environ: Mapping[str, str], name: str, count: int) -> list[str]:
    return environ[name].split(",") if environ.get(name) else list(map(str, range(count)))


def run_all(
    runs: Sequence[Run],
    command: Callable[[Run], list[str]],
    environments: Sequence[Mapping[str, str]],
    preemption: Preemption,
    watch: Callable[[Sequence[Run], Mapping[str, Status]], None],
) -> dict[str, Status]:
    """Runs all, as many at a time as there are environments, and keeps in each folder what it printed.

    A run that diverges or fails stops no other. When this process is asked to leave, the runs are asked to, once, and
    waited for while they save.

    Args:
        runs: in this order.
        command: line of a run.
        environments: variables to set for each of the runs at a time.
        preemption: says when to leave.
        watch: called several times a second with the runs under way, and with what has become of the others.

    Returns:
        The statuses of those that have ended, by name.
    """
    waiting, free, ended = deque(runs), deque(environments), {}
    running: dict[str, tuple[Run, subprocess.Popen, Mapping[str, str], int]] = {}
    asked = False
    try:
        while running or (waiting and not preemption.requested):
            while waiting and free and not preemption.requested:
                run, environment = waiting.popleft(), free.popleft()
                running[run.name] = (run, *_start(run, command(run), environment), environment)
            if preemption.requested and not asked:
                asked = True
                logging.info("asked to leave: waiting for %d run(s) to save", len(running))
                for _, process, *_ in running.values():
                    process.send_signal(signal.SIGTERM)
            for name, (run, process, start, environment) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                free.append(environment)
                ended[name] = _conclude(run, process.returncode, start, preemption.requested)
                logging.info("%s: %s", name, _describe(ended[name]))
            watch([run for run, *_ in running.values()], ended)
            time.sleep(0.2)
    finally:  # of a second Ctrl-C, and of what should not happen: no run may go on without us
        for _, process, *_ in running.values():
            process.kill()
            process.wait()
    return ended


def _start(run: Run, command: list[str], environment: Mapping[str, str]) -> tuple[subprocess.Popen, int]:
    """Starts a run; also says where in its log its own lines will begin.

    It stays in our process group: a Ctrl-C of the terminal reaches it directly, and a second one ends it at once.
    """
    run.workdir.mkdir(parents=True, exist_ok=True)
    (run.workdir / OUTCOME).unlink(missing_ok=True)
    with open(run.workdir / LOG, "ab") as log:
        start = log.tell()  # now: the position is shared with the process that will write
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
        )
        return process, start


def _conclude(run: Run, code: int, start: int, asked: bool) -> Status:
    """Reads how a run has ended, and notes it in its folder unless it has results or may simply go on."""
    now = status(run)
    if code == 0 or code == -signal.SIGTERM or (asked and code in (-signal.SIGINT, 130)):
        return now  # finished, or unfinished: it was asked to leave
    with open(run.workdir / LOG, "rb") as log:
        log.seek(start)
        lines = log.read().decode(errors="replace").split("\n")
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = [line.strip() for line in lines if line.strip()]
    if code < 0:
        message = f"killed by {signal.Signals(-code).name}" + (": out of memory?" if code == -signal.SIGKILL else "")
    else:
        message = "; ".join(told) or (last[-1] if last else f"exit {code}")
    state = "diverged" if code == 3 else "failed"
    message = message.removeprefix(f"{state}: ")
    files.write_json(epath.Path(run.workdir) / OUTCOME, {"state": state, "exit_code": code, "message": message})
    return dataclasses.replace(now, state=state, message=message, results=None)


def _describe(now: Status) -> str:
    if now.results:
        return f"finished: best {now.results['best']['accuracy']:.4f}, test {now.results['test']['accuracy']:.4f}"
    step = f" at step {now.step}" if now.step else ""
    return f"{now.state}{step}{': ' * bool(now.message)}{now.message}"
