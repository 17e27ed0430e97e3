"""Measurements of the compiled steps: compilation, time, operations, memory; beside PyTorch; and of a run's start."""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from cnn_research import config as configs
from cnn_research.errors import UserError
from cnn_research.models import registry
from cnn_research.models.layer_table import layer_table
from cnn_research.training import parallel
from cnn_research.training.benchmark import spread, step_arguments
from cnn_research.training.feeds import Feed, open_feeds
from cnn_research.training.setup import Experiment, evaluation_views
from cnn_research.training.step import predict
from cnn_research.validation import validate

_SECONDS = 1.0  # about how long each measurement takes at least

Run = Callable[[int], float]  # makes that many steps; the seconds of one


def measure_step(config: ConfigDict, repeats: int, rival: Sequence[str] = ()) -> dict[str, Any]:
    """Measures the training step of an experiment on one batch that is on the devices already.

    The step has everything that it has in training: gathering and augmentation, gradient, optimizer, metrics. Nothing
    is compiled before, and nothing read from the persistent cache.

    Args:
        config: of the experiment.
        repeats: how often it is measured, alternating with the rival's.
        rival: command line of a process that makes the same steps; see experiments/rivals/pytorch.py. It is given
            images ready for the network, and neither augments nor counts anything.

    Returns:
        {"batch_size", "devices", "device", "trace_seconds", "compile_seconds", "step_ms", "images_per_second",
        "flops_per_image", "tflops", "fraction_of_peak" (None where the device's peak isn't known), "memory_bytes"};
        with a rival also {"rival": what it says of itself, "rival_ms", "ratio"}. Spreads are {"median", "least",
        "most"}; a ratio is of neighbours in time, ours to the rival's.

    Raises:
        UserError: the config or the dataset is not right, or the rival can't do the same.
    """
    experiment, feed = _open(config)
    state, arrays, batch, key = step_arguments(experiment, feed, config)
    compiled, took = _compile(experiment.train_step(), state, arrays, batch, key)

    def run(count: int) -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(count):
            state, _ = compiled(state, arrays, batch, key)
        jax.block_until_ready(state)
        return (time.perf_counter() - began) / count

    spec = _spec(config, experiment, experiment.input_shape, config.batch_size, train=True)
    found = _compare(run, repeats, rival, spec)
    devices, operations = parallel.device_count(), experiment.flops_per_image
    return _describe(found, config, config.batch_size, operations, compiled, devices) | took


def measure_inference(config: ConfigDict, repeats: int, rival: Sequence[str] = ()) -> dict[str, Any]:
    """Measures what an experiment's evaluation computes of one batch of `config.eval_batch_size` images on one device.

    Args:
        config, repeats, rival: as of `measure_step`.

    Returns:
        As `measure_step`. Operations are those of all views of an image.

    Raises:
        UserError: as `measure_step`; or there is a rival, which sees images once, and the protocol has several views.
    """
    experiment, feed = _open(config, config.dataset.test_split)
    variables, batch_size = experiment.initial_state().network, config.eval_batch_size
    make_views = evaluation_views(config.evaluation)
    pixels = np.random.default_rng(config.seed).integers(0, 256, (batch_size, *feed.image_shape))
    images = jnp.asarray(pixels, jnp.uint8)
    views, _, *shape = jax.eval_shape(make_views, images).shape
    if rival and views > 1:
        raise UserError(f"config.evaluation has {views} views of an image; the other side sees each once")
    step = functools.partial(
        predict,
        mean=config.dataset.mean,
        std=config.dataset.std,
        model=experiment.model,
        make_views=make_views,
        accelerate=parallel.accelerate,
    )
    compiled, took = _compile(jax.jit(step), variables, images)
    jax.block_until_ready(compiled(variables, images))

    def run(count: int) -> float:
        began = time.perf_counter()
        results = [compiled(variables, images) for _ in range(count)]
        jax.block_until_ready(results)
        return (time.perf_counter() - began) / count

    spec = _spec(config, experiment, shape, batch_size, train=False)
    found = _compare(run, repeats, rival, spec)
    operations = 2 * views * layer_table(experiment.model, shape).macs
    return _describe(found, config, batch_size, operations, compiled, devices=1) | took


def measure_startup(config: ConfigDict, repeats: int) -> dict[str, Any]:
    """Measures a run's start up to its first step, in processes of their own.

    Args:
        config: of the experiment.
        repeats: how often, each time without a compilation cache and then with the one just made.

    Returns:
        {"cold", "warm": {stage: {"median", "least", "most"} seconds}}, with the stages import (of the program, from the
        start of its process), data (the feeds are open), init (parameters and optimizer state), step (traced, compiled
        or read from the cache, and made once) and all of them together.

    Raises:
        UserError: the config or the dataset is not right.
    """
    # Without asking JAX for its devices: what this process held, the others could not have.
    seconds: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for number in range(repeats):
        logging.info(f"{number + 1} of {repeats}")
        with tempfile.TemporaryDirectory() as folder:
            config = config.copy_and_resolve_references()
            config.compilation_cache = f"{folder}/xla"
            epath.Path(f"{folder}/config.json").write_text(configs.to_json(config))
            for which in seconds:
                # The process is told when it was started: it can't know what passed before its first line.
                command = [sys.executable, "-c", _START, f"{folder}/config.json", repr(time.time())]
                result = subprocess.run(command, capture_output=True, text=True, check=False)
                if result.returncode:
                    raise UserError(f"a process could not make its first step: {result.stderr.strip()[-500:]}")
                seconds[which].append(json.loads(result.stdout.splitlines()[-1]))
    return {which: {name: spread([t[name] for t in times], 2) for name in times[0]} for which, times in seconds.items()}


_START = "from cnn_research.training.benchmark_step import start; start()"


def start() -> None:
    """What `measure_startup`'s processes do: as `train` until its first step is done. Writes the seconds as JSON."""
    path, began = sys.argv[1], float(sys.argv[2])
    times = [began, time.time()]
    config = configs.from_json(epath.Path(path).read_text())
    parallel.initialise(config.compilation_cache, config.deterministic)
    experiment, feed = _open(config)
    times.append(time.time())
    state = parallel.replicate(experiment.initial_state())
    arrays, key = parallel.replicate(feed.arrays), parallel.replicate(jax.random.key(config.seed))
    jax.block_until_ready((state, arrays))
    times.append(time.time())
    with closing(feed.train_batches(0, config.batch_size, parallel.share(config.batch_size))) as host_batches:
        batch = next(parallel.prefetch(host_batches, feed.prefetch))
        jax.block_until_ready(experiment.train_step()(state, arrays, batch, key))
    times.append(time.time())
    stages = dict(zip(("import", "data", "init", "step"), np.diff(times).tolist(), strict=True))
    sys.stdout.write(json.dumps(stages | {"all": times[-1] - times[0]}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # without taking everything down in order, which isn't part of the start


def _open(config: ConfigDict, split: str = "") -> tuple[Experiment, Feed]:
    """The experiment with the feed that it trains on, or with that of a split to evaluate."""
    validate(config, parallel.device_count())
    train_split = config.dataset.train_split
    feed = open_feeds(config, (split,))[split] if split else open_feeds(config, (), train_split)[train_split]
    return Experiment(config, feed), feed


def _compile(function: Any, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """Compiles a function of `jax.jit` or `jax.pmap` anew, and says how long it took."""
    with _without_cache():
        began = time.perf_counter()
        lowered = function.lower(*arguments)
        traced = time.perf_counter()
        compiled = lowered.compile()
        seconds = {"trace_seconds": traced - began, "compile_seconds": time.perf_counter() - traced}
    return compiled, {name: round(value, 2) for name, value in seconds.items()}


@contextmanager
def _without_cache() -> Iterator[None]:
    """Nothing is read from the persistent cache or written to it."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX looks at the setting once, when it first compiles something
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _describe(
    found: dict[str, Any], config: ConfigDict, batch_size: int, flops: int, compiled: Any, devices: int
) -> dict[str, Any]:
    peak, rate = parallel.peak_flops(), batch_size / found["step_ms"]["median"] * 1e3
    return {
        "batch_size": batch_size,
        "precision": config.precision,
        "devices": devices,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "images_per_second": round(rate, 1),
        "flops_per_image": flops,
        "tflops": round(flops * rate / 1e12, 4),
        "fraction_of_peak": round(flops * rate / peak / devices, 4) if peak else None,
        "memory_bytes": parallel.compiled_memory(compiled),
        **found,
    }


def _spec(
    config: ConfigDict, experiment: Experiment, image_shape: Sequence[int], batch_size: int, *, train: bool
) -> dict[str, Any]:
    """What a rival is told of the steps that it shall make."""
    optimizer, defaults = config.optimizer, registry.model_fields(config.model.name)
    names = ("name", "learning_rate", "momentum", "beta1", "beta2", "epsilon", "weight_decay")
    return {
        "network": config.model.name,
        "fields": {k: v for k, v in configs.model_fields(config).items() if v != defaults[k]},
        "num_classes": experiment.model.num_classes,
        "image_shape": list(image_shape),
        "batch_size": batch_size,
        "precision": config.precision,
        "train": train,
        "optimizer": {name: optimizer[name] for name in names},
    }


def _compare(run: Run, repeats: int, rival: Sequence[str], spec: dict[str, Any]) -> dict[str, Any]:
    """Makes steps again and again, in turn with a rival's."""
    steps = max(1, round(_SECONDS / run(2)))
    if not rival:
        return {"steps": steps, "step_ms": spread([1e3 * _noted(n, repeats, run, steps) for n in range(repeats)], 3)}
    ours, theirs = [], []
    with _process(rival) as ask:
        about = ask(json.dumps(spec))
        for number in range(repeats):
            ours.append(_noted(number, repeats, run, steps))
            theirs.append(ask(str(steps)))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    milliseconds = {
        name: spread([1e3 * t for t in times], 3) for name, times in (("step_ms", ours), ("rival_ms", theirs))
    }
    return {"steps": steps, **milliseconds, "ratio": spread(ratios, 3), "rival": about}


@contextmanager
def _process(command: Sequence[str]) -> Iterator[Callable[[str], Any]]:
    """Starts a process that answers each line with one of JSON; gives what asks it. It ends with the context."""
    with tempfile.TemporaryFile("w+") as said:  # a pipe that no one reads would fill up and stop the process
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True)
        except OSError as error:
            raise UserError(f"{command[0]} can't be started: {error.strerror}") from None

        def ask(line: str) -> Any:
            try:
                process.stdin.write(line + "\n")
                process.stdin.flush()
                return json.loads(process.stdout.readline())
            except (BrokenPipeError, json.JSONDecodeError):
                process.kill()
                process.wait()
                said.seek(0)
                last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
                raise UserError(f"{' '.join(command)} ended: {last}") from None

        try:
            yield ask
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    pipe.close()


def _noted(number: int, repeats: int, run: Run, steps: int) -> float:
    logging.info(f"{number + 1} of {repeats}")
    return run(steps)
