"""What a run would cost: its size, its memory and, from a few timed steps, how long it would take."""

import statistics
import time
from contextlib import closing
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cnn_research.training import parallel
from cnn_research.training.feeds import open_feeds
from cnn_research.training.setup import Experiment
from cnn_research.training.state import count_parameters
from cnn_research.validation import validate

_STEPS = 5  # timed, after one that warms up


def preview(config: ConfigDict) -> dict[str, Any]:
    """Compiles an experiment, makes a few steps of training and of evaluation, and leaves nothing behind.

    Args:
        config: of the experiment.

    Returns:
        {"model", "parameters", "flops_per_step": of the network's multiplications and additions, forward and backward,
        "compiled_flops_per_step": what XLA counts in the compiled program of all devices, "memory_bytes": see
        `parallel.compiled_memory`, "checkpoint_bytes", "steps", "epochs", "devices", "device_kind",
        "step_seconds", "examples_per_second", "fraction_of_peak" (None where the device's peak is not known),
        "steps_per_call": of the run, but steps are timed one by one; "evaluations", "evaluation_seconds" each,
        "total_seconds", "device_seconds"}. The times leave out compiling, reading the data for the first time, and
        saving.

    Raises:
        UserError: a mistake in the config or the data.
    """
    parallel.set_matmul_precision(config.matmul_precision)
    validate(config, parallel.device_count())
    split, eval_split = config.dataset.train_split, config.dataset.eval_split
    feeds = open_feeds(config, (eval_split,), split)
    feed, eval_feed = feeds[split], feeds[eval_split]
    experiment = Experiment(config, feed)
    state, total_steps = experiment.initial_state(), experiment.total_steps
    parameters = count_parameters(state.params)
    saved = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves((state.network, state.training)))

    key = parallel.replicate(jax.random.key(config.seed))
    arrays, state = parallel.replicate(feed.arrays), parallel.replicate(state)
    share = parallel.share(config.batch_size)
    with closing(feed.train_batches(0, config.batch_size, share)) as batches:
        on_devices = parallel.prefetch(batches, feed.prefetch)
        batch = next(on_devices)
        compiled = experiment.train_step().lower(state, arrays, batch, key).compile()
        times = []
        for _ in range(1 + _STEPS):
            began = time.perf_counter()
            state, _ = compiled(state, arrays, batch, key)
            jax.block_until_ready(state)
            batch = next(on_devices)  # a feed that can't keep up costs time too
            times.append(time.perf_counter() - began)
    step_seconds = statistics.median(times[1:])
    evaluation_seconds = _evaluation_seconds(config, experiment, eval_feed, state)
    evaluations = -(-total_steps // experiment.eval_every)
    total = total_steps * step_seconds + evaluations * evaluation_seconds
    flops = experiment.flops_per_image * config.batch_size
    peak = parallel.peak_flops()
    return {
        "model": config.model.name,
        "parameters": parameters,
        "flops_per_step": flops,
        "compiled_flops_per_step": round((compiled.cost_analysis() or {}).get("flops", 0) * parallel.device_count()),
        "memory_bytes": parallel.compiled_memory(compiled),
        "checkpoint_bytes": saved,
        "steps": total_steps,
        "epochs": round(total_steps * config.batch_size / feed.num_examples, 2),
        "devices": parallel.device_count(),
        "device_kind": jax.devices()[0].device_kind,
        "step_seconds": step_seconds,
        "examples_per_second": config.batch_size / step_seconds,
        "fraction_of_peak": flops / step_seconds / peak / parallel.device_count() if peak else None,
        "steps_per_call": experiment.steps_per_call,
        "evaluations": evaluations,
        "evaluation_seconds": evaluation_seconds,
        "total_seconds": total,
        "device_seconds": total * parallel.device_count(),
    }


def _evaluation_seconds(config: ConfigDict, experiment: Experiment, feed: Any, state: Any) -> float:
    """The time of one evaluation, from two batches of it."""
    batch_size = parallel.round_up(config.eval_batch_size)
    p_eval_step, arrays = experiment.eval_step(), parallel.replicate(feed.arrays)
    seconds = []
    with closing(feed.eval_batches(batch_size, parallel.share(batch_size))) as batches:
        batch = parallel.shard(next(batches))
        for _ in range(2):  # the first one compiles
            began = time.perf_counter()
            jax.block_until_ready(p_eval_step(state.network, arrays, batch))
            seconds.append(time.perf_counter() - began)
    return seconds[-1] * -(-feed.num_examples // batch_size)
