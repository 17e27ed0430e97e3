"""Several steps in one call of the compiled function: the same steps, with nothing forgotten in between."""

import functools

import jax
import numpy as np
import pytest
from configs_for_tests import changed
from step_run import ARRAYS, BATCH, DEVICES, Run, assert_close, convnet, jax_tree_copies, train_batch

from cnn_research.data.resident import ResidentFeed
from cnn_research.data.sources import open_source
from cnn_research.data.streaming import StreamingFeed
from cnn_research.training import benchmark, loop, metrics, parallel, writers
from cnn_research.training.setup import Experiment
from cnn_research.training.step import train_steps


def test_one_call_makes_the_steps_of_several():
    run = Run(convnet(), augmentation="pad_and_crop(1)|flip")
    batches = [train_batch(step * BATCH) for step in range(3)]
    state, told = None, []
    for batch in batches:
        state, sums = run.devices(batch, state)
        state = parallel.to_host(state)
        told.append(sums)

    step = parallel.pmap_step(functools.partial(train_steps, one=run.step), donate_state=False)
    arguments = parallel.replicate(ARRAYS), parallel.replicate(jax.random.key(0))
    (three,) = parallel.prefetch(iter(batches), 0, [3])
    assert three["index"].shape == (DEVICES, 3, BATCH // DEVICES)
    after, sums = step(jax_tree_copies(run.initial, DEVICES), arguments[0], three, arguments[1])
    assert_close(parallel.to_host(after), state, rtol=1e-5, atol=1e-6)
    apart = metrics.by_step([parallel.to_host(sums)])
    assert_close(apart, told, rtol=1e-5, atol=1e-6)

    (first, *_) = parallel.prefetch(iter(batches), 0, [1, 2])
    after, sums = step(jax_tree_copies(run.initial, DEVICES), arguments[0], first, arguments[1])
    assert metrics.by_step([parallel.to_host(sums)])[0]["loss"] == pytest.approx(told[0]["loss"])


def experiment(feed=None, **fields):
    fields = {"batch_size": 10, "duration": "30st", "eval_every": "30st", "checkpoint__every": "30st"} | fields
    return Experiment(changed(**fields), feed or ResidentFeed(open_source("digits", "test[:100]")))


# By hand: as many as fit before what comes next, or one.
@pytest.mark.parametrize(
    ("first", "fields", "expected"),
    [
        (0, {"steps_per_call": 10, "log_every": "10st"}, [10, 10, 10]),
        (20, {"steps_per_call": 10, "log_every": "10st"}, [10]),
        (0, {"steps_per_call": 10, "log_every": "15st"}, [10, 1, 1, 1, 1, 1] * 2),
        (0, {"steps_per_call": 30, "log_every": "30st", "profile": "2st:5st"}, [1] * 30),
        (0, {"steps_per_call": 3, "log_every": "30st", "profile": "3st:9st"}, [3] * 10),
        (0, {"steps_per_call": 8, "log_every": "30st", "eval_every": "8st"}, [8, 8, 8, *[1] * 6]),
        (27, {"steps_per_call": 4, "log_every": "30st"}, [1, 1, 1]),
        (0, {"log_every": "30st"}, [1] * 30),
    ],
)
def test_calls_end_where_something_is_to_be_done(first, fields, expected, monkeypatch):
    monkeypatch.setattr(parallel, "on_cpu", lambda: False)
    assert list(experiment(**fields).calls(first)) == expected


def test_on_a_cpu_and_for_streamed_images_each_call_is_one_step(monkeypatch):
    fields = {"steps_per_call": 10, "log_every": "10st", "duration": "10st"}
    assert list(experiment(**fields).calls(0)) == [1] * 10
    monkeypatch.setattr(parallel, "on_cpu", lambda: False)
    assert list(experiment(**fields).calls(0)) == [10]
    assert list(experiment(StreamingFeed(open_source("digits", "test[:100]")), **fields).calls(0)) == [1] * 10


def test_a_run_tells_the_same_whatever_its_calls(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "on_cpu", lambda: False)
    compiled, counted = parallel.pmap_step, []

    def counting(step, *, donate_state):
        function = compiled(step, donate_state=donate_state)
        if not donate_state:
            return function
        return lambda state, arrays, batch, key: (
            counted.append(batch["position"].shape) or function(state, arrays, batch, key)
        )

    monkeypatch.setattr(parallel, "pmap_step", counting)
    fields = {
        **{"model__name": "convnet", "model__filters": (2,), "model__dense": (), "batch_size": 16, "duration": "10st"},
        **{"log_every": "4st", "eval_every": "10st", "checkpoint__every": "7st", "compilation_cache": ""},
        **{"dataset__cache": "", "dataset__eval_split": "test[:40]", "dataset__test_split": "test[:40]"},
    }
    rows = {}
    for steps in (1, 3):
        counted.clear()
        results = loop.train(changed(**fields, steps_per_call=steps), tmp_path / str(steps))
        assert results["steps"] == 10
        timing = ("examples_per_second", "seconds", "fraction_of_peak")
        rows[steps] = [
            {name: value for name, value in row.items() if name not in timing}
            for row in writers.read_metrics(tmp_path / str(steps) / "metrics.jsonl")
        ]
        if steps == 3:  # 3, 1 until 4; 3 until 7; 1 until 8; 2 more
            assert [len(shape) for shape in counted] == [3, 2, 3, 2, 2, 2]
    for one, three in zip(rows[1], rows[3], strict=True):
        assert one.keys() == three.keys() and one["step"] == three["step"]
        numbers = [name for name, value in one.items() if isinstance(value, float)]
        np.testing.assert_allclose([three[n] for n in numbers], [one[n] for n in numbers], rtol=1e-4, atol=1e-6)


# Whatever the state holds has to come out of a step in the type in which it went in, or no loop can carry it.
@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer__name": "muon", "optimizer__renormalise": True, "optimizer__lookahead_steps": 2},
        {"optimizer__name": "muon", "optimizer__rest": "nesterov", "ema_decay": 0.9, "precision": "float16"},
        {"optimizer__name": "lamb", "optimizer__freeze": ("^conv1/",), "accumulation": 2, "precision": "bfloat16"},
        {"optimizer__name": "nadamw", "optimizer__clip": "adaptive", "mix": "mixup(0.4)"},
        *({"optimizer__name": name} for name in ("rmsprop", "lion", "lars", "adam")),
    ],
    ids=lambda fields: fields["optimizer__name"],
)
def test_any_state_can_be_carried(fields, monkeypatch):
    """By shapes alone."""
    monkeypatch.setattr(parallel, "on_cpu", lambda: False)
    made = experiment(
        model__name="convnet", model__filters=(2,), model__batch_norm="after_conv", batch_size=32, **fields
    )
    state = parallel.replicate(made.initial_state())
    arrays, key = parallel.replicate(made._feed.arrays), parallel.replicate(jax.random.key(0))
    batches = made._feed.train_batches(0, 32)
    (three,) = parallel.prefetch(batches, 0, [3])
    after, sums = jax.eval_shape(made.train_step(), state, arrays, three, key)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert sums["count"].shape == (DEVICES, 3)


def test_the_loop_is_measured_step_by_step(monkeypatch):
    monkeypatch.setattr(parallel, "on_cpu", lambda: False)
    config = changed(
        **{"model__name": "convnet", "model__filters": (2,), "model__dense": (), "batch_size": 16, "log_every": "2st"},
        **{"steps_per_call": 2, "compilation_cache": "", "dataset__cache": ""},
    )
    found = benchmark.measure_loop(config, repeats=2, steps=4)
    assert found["steps"] == 4 and found["loop_ms"]["median"] > 0
