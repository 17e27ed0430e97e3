"""Measurements: how fast the parts of an experiment are on this machine, each alone and all together."""

import collections
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from cnn_research.data import order, sources
from cnn_research.data.resize import resize
from cnn_research.training import parallel
from cnn_research.training.feeds import Feed, open_feed, open_feeds
from cnn_research.training.loop import train
from cnn_research.training.setup import Experiment
from cnn_research.validation import validate

_SAMPLE = 256  # images that are read or decoded again and again


def measure_data(config: ConfigDict, repeats: int = 5, seconds: float = 1.0) -> dict[str, Any]:
    """Measures where the images of an experiment's training come from, in images a second.

    What is measured alternates, so that a machine that slows down slows all of it.

    Args:
        config: of the experiment.
        repeats: how often everything is measured.
        seconds: about how long each time.

    Returns:
        {"feed", "workers", "cores", "devices", "batch_size", "rates": {what: {"median", "least", "most"}}}, in images a
        second. What there is to measure depends on dataset and feed:

        read: the files, in one thread, from the file system or its cache
        decode_limit: Pillow's bare decoding of these files, from memory to pixels, in one thread
        source: reading, decoding, converting and turning upright, in one thread
        pillow_limit: reading, and Pillow's decoding and resizing alone, in as many threads as the feed has workers
        host_1_thread: source, resizing and cropping, and batches made of it, in one thread
        feed: what the config's feed delivers, with its workers; from a resident feed come indices alone
        transfer: one batch again and again from the host's memory to the devices
        augment: gathering, augmentation, normalisation and mixing on the devices, of batches that are there
        together: feed, transfer and augmentation as training has them, without a network

    Raises:
        UserError: the config or the dataset is not right.
    """
    validate(config, parallel.device_count())
    split, batch_size = config.dataset.train_split, config.batch_size
    feed = open_feeds(config, (), split)[split]
    source = sources.open_source(config.dataset.name, split, config.dataset.data_dir)
    indices = order.example_indices(config.seed, 0, min(_SAMPLE, len(source)), len(source)).tolist()
    share = parallel.share(batch_size)
    experiment = Experiment(config, feed)

    with ExitStack() as stack:
        work: dict[str, Callable[[], int]] = {}  # each does a little and returns of how many images it was
        files = itertools.cycle(sources.read_bytes(source, indices))
        if sources.read_bytes(source, indices[:1]):
            work["read"] = _one_by_one(lambda index: sources.read_bytes(source, [index]), indices)
            work["decode_limit"] = lambda: _decode(next(files))
        work["source"] = _one_by_one(lambda index: sources.read_images(source, [index]), indices)
        if not feed.arrays:
            alone = open_feed(_with_workers(config, 0), "streaming", source, config.dataset.image_size)
            if "read" in work:
                work["pillow_limit"] = _pillow(stack, config, source, indices, feed.workers)
            work["host_1_thread"] = _next_batch(stack.enter_context(closing(alone.train_batches(0, batch_size))))
        batches = stack.enter_context(closing(feed.train_batches(0, batch_size, share)))
        work["feed"] = _next_batch(batches)
        batch = next(batches)
        work["transfer"] = lambda: _transfer(batch)

        p_input = parallel.pmap_step(_sum_of(experiment), donate_state=False)
        arrays, key = parallel.replicate(feed.arrays), parallel.replicate(jax.random.key(config.seed))
        on_devices = next(parallel.prefetch(iter([batch]), 1))

        def augment() -> int:
            jax.block_until_ready(p_input(arrays, on_devices, key))
            return batch_size

        work["augment"] = augment
        work["together"] = _together(stack, feed, p_input, arrays, key, batch_size)
        rates = _alternate(work, repeats, seconds)
    return {
        "feed": "resident" if feed.arrays else "streaming",
        "workers": 0 if feed.arrays else feed.workers,
        "cores": sources.count_cores(),
        "devices": parallel.device_count(),
        "batch_size": batch_size,
        "rates": rates,
    }


def measure_loop(config: ConfigDict, repeats: int = 10, steps: int = 50) -> dict[str, Any]:
    """Measures what the whole training loop costs beyond the compiled steps: feeding, logging, saving.

    One run is trained, and stopped again and again for as many bare steps: neighbours in time are compared, so that a
    machine whose speed changes from second to second slows both. Evaluations are left out: the loop makes none between
    the steps that are counted.

    Args:
        config: of the experiment. Its intervals of logging and saving are kept, its duration is not, and each call is
            one step, whatever its steps_per_call.
        repeats: how often both are measured.
        steps: how many of each at a time; rounded up to a multiple of the interval of logging, where the loop waits for
            the devices.

    Returns:
        {"loop_ms", "step_ms": {"median", "least", "most"} of a step, "overhead": {"median", "least", "most"}: of the
        ratios of each loop to the bare steps right after it, less 1, "steps": at a time}.

    Raises:
        UserError: the config or the dataset is not right.
    """
    config = config.copy_and_resolve_references()
    config.steps_per_call = 1
    validate(config, parallel.device_count())
    split = config.dataset.train_split
    feed = open_feeds(config, (), split)[split]
    log_every = Experiment(config, feed).log_every
    steps = -(-steps // log_every) * log_every
    config.duration = config.eval_every = f"{(repeats + 1) * steps + 1}st"  # the first of them warm up
    experiment = Experiment(config, feed)
    bare = bare_steps(experiment, feed, config)
    bare(3)
    loop_seconds, step_seconds = [], []

    def interrupted(p_train_step: Callable) -> Callable:
        """The compiled step, before which the loop stands still every `steps` times."""
        began, calls = 0.0, 0

        def step(*args: Any) -> Any:
            nonlocal began, calls
            if calls and calls % steps == 0:
                jax.block_until_ready(args)
                loop_seconds.append((time.perf_counter() - began) / steps)
                step_seconds.append(bare(steps))
                logging.info(f"{len(step_seconds) - 1} of {repeats}")
            if calls % steps == 0:
                began = time.perf_counter()
            calls += 1
            return p_train_step(*args)

        return step

    compiled = Experiment.train_step
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Experiment, "train_step", lambda self: interrupted(compiled(self))),
    ):
        train(config, folder)
    ratios = [loop / step - 1 for loop, step in zip(loop_seconds, step_seconds, strict=True)]
    loop_ms, step_ms = (spread([1e3 * t for t in times[1:]], 3) for times in (loop_seconds, step_seconds))
    return {"steps": steps, "loop_ms": loop_ms, "step_ms": step_ms, "overhead": spread(ratios[1:], 4)}


def bare_steps(experiment: Experiment, feed: Feed, config: ConfigDict) -> Callable[[int], float]:
    """Compiles the training step and returns what makes some on one batch that is on the devices already.

    Returns:
        A function of the number of steps, to the seconds of one.
    """
    state, arrays, batch, key = step_arguments(experiment, feed, config)
    p_train_step = experiment.train_step()

    def run(count: int) -> float:
        nonlocal state
        jax.block_until_ready(state)
        began = time.perf_counter()
        for _ in range(count):
            state, _ = p_train_step(state, arrays, batch, key)
        jax.block_until_ready(state)
        return (time.perf_counter() - began) / count

    return run


def step_arguments(experiment: Experiment, feed: Feed, config: ConfigDict) -> tuple[Any, Any, Any, Any]:
    """What the first training step is given, on the devices: state, arrays, batch, key."""
    with closing(feed.train_batches(0, config.batch_size, parallel.share(config.batch_size))) as batches:
        batch = next(parallel.prefetch(iter([next(batches)]), 1))
    state = parallel.replicate(experiment.initial_state())
    return state, parallel.replicate(feed.arrays), batch, parallel.replicate(jax.random.key(config.seed))


def _with_workers(config: ConfigDict, workers: int) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.dataset.workers = workers
    return config


def _one_by_one(read: Callable[[int], Any], indices: list[int]) -> Callable[[], int]:
    endless = itertools.cycle(indices)
    return lambda: len([read(next(endless))])


def _decode(data: bytes) -> int:
    Image.open(io.BytesIO(data)).load()
    return 1


def _pillow(
    stack: ExitStack, config: ConfigDict, source: sources.Source, indices: list[int], threads: int
) -> Callable[[], int]:
    dataset, pool = config.dataset, stack.enter_context(ThreadPoolExecutor(max(1, threads)))
    mode = "L" if source.image_shape[-1] == 1 else "RGB"

    def one(index: int) -> None:
        image = Image.open(io.BytesIO(sources.read_bytes(source, [index])[0])).convert(mode)
        if dataset.image_size:
            resize(image, dataset.image_size, dataset.resize, dataset.interpolation)

    return lambda: len(list(pool.map(one, indices)))


def _next_batch(batches: Iterator[Any]) -> Callable[[], int]:
    return lambda: len(next(batches)["position"])


def _transfer(batch: dict[str, Any]) -> int:
    jax.block_until_ready(next(parallel.prefetch(iter([batch]), 1)))
    return len(batch["position"])


def _sum_of(experiment: Experiment) -> Callable[..., Any]:
    """The input of the network summed up, so that all of it is computed and nothing returned."""

    def step(arrays: Any, batch: Any, key: jax.Array) -> Any:
        images, targets, _ = experiment.make_input(arrays, batch, key)
        return jnp.sum(images), jnp.sum(targets)

    return step


def _together(
    stack: ExitStack, feed: Feed, p_input: Callable, arrays: Any, key: Any, batch_size: int
) -> Callable[[], int]:
    batches = stack.enter_context(closing(feed.train_batches(0, batch_size, parallel.share(batch_size))))
    on_devices = parallel.prefetch(batches, feed.prefetch)
    results = collections.deque(maxlen=3)

    def step() -> int:
        results.append(p_input(arrays, next(on_devices), key))
        parallel.limit_ahead(results, 2)
        return batch_size

    return step


def _alternate(work: dict[str, Callable[[], int]], repeats: int, seconds: float) -> dict[str, dict[str, float]]:
    """Does each piece of work for some seconds, again and again in turn. Returns the rates."""
    for do in work.values():  # compiles, fills caches, starts workers
        do()
    rates: dict[str, list[float]] = {name: [] for name in work}
    for number in range(repeats):
        logging.info(f"{number + 1} of {repeats}")
        for name, do in work.items():
            _until(do, min(seconds, 0.3))  # uses up what a feed has read ahead while others were measured
            rates[name].append(_until(do, seconds))
    return {name: spread(values, 1) for name, values in rates.items()}


def _until(do: Callable[[], int], seconds: float) -> float:
    """Does something until some seconds are over; returns its images a second."""
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        count += do()
    return count / took


def spread(values: list[float], digits: int) -> dict[str, float]:
    """Returns {"median", "least", "most"} of some values, rounded."""
    numbers = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) for name, value in numbers.items()}
