import json
import time
import types
from contextlib import suppress

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cnn_research.errors import UserError
from cnn_research.training import parallel, writers
from cnn_research.training.writers import Progress, Writer, duration, read_metrics


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Each start of a run is a second later, as it is outside of tests: event files are named by the second."""
    now = [1_700_000_000.0]
    fake = types.SimpleNamespace(**vars(time) | {"time": lambda: now[0]})
    monkeypatch.setattr("tensorboardX.event_file_writer.time", fake)
    return now


def values(step, **more):
    return {"loss": 1 / step, "accuracy": 0.1 * step, "top5": 1.0, "num_examples": 10} | more


def run(workdir, clock, first_step, steps, *, split="train", tell=values):
    clock[0] += 1
    with Writer(workdir, first_step, steps_per_epoch=4) as writer:
        for step in steps:
            writer.write(step, split, tell(step))


def tensorboard(workdir):
    """{tag: [(step, value), ...]} as TensorBoard shows it."""
    events = EventAccumulator(str(workdir)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_shown(workdir, expected):
    """Both files hold one row for each of the steps, with these values."""
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(expected)
    shown = tensorboard(workdir)
    for name in ("loss", "accuracy", "top5", "num_examples"):
        assert [(row["step"], row[name]) for row in rows] == [(step, v[name]) for step, v in expected.items()]
        assert shown[f"train/{name}"] == [(step, pytest.approx(v[name], rel=1e-6)) for step, v in expected.items()]


def test_rows(tmp_path, clock):
    run(tmp_path, clock, 0, [1, 6], tell=lambda step: values(step, learning_rate=0.1 + 0.2, note=float("nan")))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [list(json.loads(line)) for line in lines] == [
        ["step", "epoch", "split", *values(1), "learning_rate", "note"]
    ] * 2
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0] == rows[0] | {"step": 1, "epoch": 0.25, "split": "train", "learning_rate": 0.1 + 0.2}
    assert rows[1]["epoch"] == 1.5 and rows[1]["loss"] == 1 / 6


def test_tensorboard_shows_the_same(tmp_path, clock):
    run(tmp_path, clock, 0, [2, 4, 6])
    assert_shown(tmp_path, {step: values(step) for step in (2, 4, 6)})


def test_rows_can_be_read_while_the_run_goes_on(tmp_path):
    with Writer(tmp_path, 0, steps_per_epoch=4) as writer:
        writer.write(1, "train", values(1))
        assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def worse(step):
    return values(step, loss=99.0)


# The first run got as far as `seen`, its last checkpoint was at `resumed`; the second one says other numbers.
@pytest.mark.parametrize(
    ("seen", "resumed"),
    [
        ([1, 2, 3, 4], 2),
        ([1, 2, 3, 4], 4),
        ([1, 2, 3, 4], 3),
        ([2, 4], 3),
        ([1, 2], 0),  # killed before its first checkpoint: everything starts anew
        ([], 0),
    ],
)
def test_rows_after_the_restored_step_are_taken_back(tmp_path, clock, seen, resumed):
    run(tmp_path, clock, 0, seen, tell=worse)
    run(tmp_path, clock, resumed, range(resumed + 1, 7))
    assert_shown(
        tmp_path,
        {
            s: worse(s) if s <= resumed else values(s)
            for s in [*(s for s in seen if s <= resumed), *range(resumed + 1, 7)]
        },
    )


def test_many_restarts(tmp_path, clock):
    for start in (0, 0, 2, 2, 3, 5):
        run(tmp_path, clock, start, range(start + 1, start + 5))
    assert_shown(tmp_path, {step: values(step) for step in range(1, 10)})


def test_other_splits_are_taken_back_too(tmp_path, clock):
    for first_step in (0, 2):
        clock[0] += 1
        with Writer(tmp_path, first_step, steps_per_epoch=4) as writer:
            for step in range(first_step + 1, 5):
                writer.write(step, "train", values(step))
                writer.write(step, "test", values(step))
    rows = [(row["step"], row["split"]) for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert rows == [(step, split) for step in range(1, 5) for split in ("train", "test")]
    assert [step for step, _ in tensorboard(tmp_path)["test/loss"]] == [1, 2, 3, 4]


def test_a_row_that_is_there_is_not_written_again(tmp_path, clock):
    """A finished run that is started again evaluates at its last step once more."""
    run(tmp_path, clock, 0, [1, 2])
    run(tmp_path, clock, 2, [2], tell=worse)
    assert_shown(tmp_path, {1: values(1), 2: values(2)})
    run(tmp_path, clock, 2, [2], split="test")
    assert [(row["step"], row["split"]) for row in read_metrics(tmp_path / "metrics.jsonl")][2:] == [(2, "test")]


@pytest.mark.parametrize("cut", [1, 5, 40, "newline"])
def test_half_a_last_line_is_dropped(tmp_path, clock, cut):
    run(tmp_path, clock, 0, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    text = path.read_text()
    last = text.splitlines()[-1]
    path.write_text(text[:-1] if cut == "newline" else text[: -len(last) - 1] + last[:cut])
    complete = [1, 2, 3] if cut == "newline" else [1, 2]
    assert [row["step"] for row in read_metrics(path)] == complete
    run(tmp_path, clock, 3, [4])
    assert [row["step"] for row in read_metrics(path)] == [*complete, 4]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*complete, 4]


def test_tags_tell_sub_splits_apart(tmp_path):
    splits = ["train", "train[:90%]", "train[90%:]", "train[:90]", "train[500:]", "test[10%:20%]", "my_split"]
    with Writer(tmp_path, 0, steps_per_epoch=4) as writer:
        for number, split in enumerate(splits, start=1):
            writer.write(number, split, {"loss": float(number)})
    shown = tensorboard(tmp_path)
    assert sorted(shown.values()) == [[(number, float(number))] for number in range(1, len(splits) + 1)]
    assert shown["train/loss"] == [(1, 1.0)] and shown["my_split/loss"] == [(7, 7.0)]
    # TensorBoard makes a card group of what stands before the slash.
    assert all(tag.count("/") == 1 and tag.endswith("/loss") for tag in shown)
    assert [row["split"] for row in read_metrics(tmp_path / "metrics.jsonl")] == splits


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "is_main", lambda: False)
    with Writer(tmp_path, 0, steps_per_epoch=4) as writer:
        writer.write(1, "train", values(1))
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- progress


def took(seconds, rate, devices=8):
    return {"seconds": seconds, "device_seconds": seconds * devices, "examples_per_second": rate}


NOTHING = took(0.0, None)


@pytest.fixture
def counter(monkeypatch):
    """Seconds that only the test lets pass."""
    now = [1000.0]
    monkeypatch.setattr(writers.time, "perf_counter", lambda: now[0])
    return now


def test_progress_counts_training_steps_alone(counter):
    with Progress(0, 100, batch_size=32, before=NOTHING) as progress:
        assert progress.totals() == NOTHING
        counter[0] += 20  # compiles
        assert progress.trained(10, loss=1.0)["examples_per_second"] == 16.0  # 320 images in 20 s
        assert progress.totals() == took(20.0, None)
        counter[0] += 5  # evaluates
        progress.resume()
        counter[0] += 2
        assert progress.trained(20, loss=1.0)["examples_per_second"] == 160.0
        progress.resume()
        counter[0] += 8
        assert progress.trained(30, loss=1.0)["examples_per_second"] == 40.0
        counter[0] += 3  # saves
        assert progress.totals() == took(38.0, 64.0)  # 640 images in 10 s


def test_progress_goes_on_after_a_restart(counter):
    before = took(38.0, 64.0) | {"version": "0.0"}
    with Progress(30, 100, batch_size=32, before=before) as progress:
        assert progress.totals() == took(38.0, 64.0)
        counter[0] += 10
        assert progress.trained(31, loss=1.0)["examples_per_second"] == 3.2
        progress.resume()
        assert progress.totals() == took(48.0, 64.0)  # the old rate until there is a new
        counter[0] += 4
        assert progress.trained(41, loss=1.0)["examples_per_second"] == 80.0
        assert progress.totals() == took(52.0, 80.0)


def test_progress_says_how_it_goes(counter, caplog):
    with Progress(0, 1000, batch_size=10, before=NOTHING) as progress, caplog.at_level("INFO"):
        progress.evaluated(1, "test", {"accuracy": 0.25, "loss": 1.5})
        counter[0] += 1
        progress.trained(100, loss=1.0)
        progress.resume()
        counter[0] += 2
        progress.trained(500, loss=1.0)  # 2,000 images a second, 5,000 are left
        progress.evaluated(500, "test", {"accuracy": 0.5, "loss": 1.25})
        progress.evaluated(1000, "test", {"accuracy": 0.5, "loss": 1.25})
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first == "step    1/1000  test: accuracy 0.2500, loss 1.5000"
    assert second == "step  500/1000  test: accuracy 0.5000, loss 1.2500, 2 s left"
    assert "1000/1000" in third and "left" not in third


# ------------------------------------------------------------------------------------------------- object stores


@pytest.fixture
def local_events(monkeypatch, tmp_path):
    """TensorBoard's file goes here: tensorboardX writes to a bucket by Google's own package alone."""
    events = writers.EventsWriter
    monkeypatch.setattr(writers, "EventsWriter", lambda prefix: events(str(tmp_path / "events")))
    return tmp_path


def test_rows_in_a_bucket(bucket, local_events, counter, monkeypatch):
    """Nothing can be appended there: the file is written anew, though not for each row."""
    now = [0.0]
    monkeypatch.setattr(writers.time, "monotonic", lambda: now[0])
    path = bucket / "run" / "metrics.jsonl"

    def seen():
        return [row["step"] for row in read_metrics(path)] if path.exists() else []

    with Writer(bucket / "run", 0, steps_per_epoch=4) as writer:
        for step in (1, 2, 3):
            writer.write(step, "train", values(step))
            now[0] += 1
        assert seen() == []
        writer.flush()  # before a checkpoint is saved
        assert seen() == [1, 2, 3]
        writer.write(4, "train", values(4))
        assert seen() == [1, 2, 3]
        now[0] += 61
        writer.write(5, "train", values(5))
        assert seen() == [1, 2, 3, 4, 5]
        writer.write(6, "train", values(6))
    assert seen() == [1, 2, 3, 4, 5, 6]
    with Writer(bucket / "run", 3, steps_per_epoch=4) as writer:
        assert seen() == [1, 2, 3]
        writer.write(4, "train", values(4))
    assert seen() == [1, 2, 3, 4]


def test_a_bucket_without_the_package_for_it(bucket, monkeypatch):
    def missing(prefix):
        raise ImportError("`google-cloud-storage` must be installed")

    monkeypatch.setattr(writers, "EventsWriter", missing)
    with pytest.raises(UserError, match="gs://bucket/run: `google-cloud-storage` must be installed"):
        Writer(bucket / "run", 0, steps_per_epoch=4)


# --------------------------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize("file", ["metrics.jsonl", "events"])
def test_a_full_disk_is_no_secret(tmp_path, monkeypatch, file):
    """Not even that of TensorBoard's file alone, however many rows there are."""
    with open("/dev/full", "wb" if file == "events" else "w") as full:
        with pytest.raises(OSError, match="No space left on device"), Writer(tmp_path, 0, steps_per_epoch=4) as writer:
            if file == "events":
                monkeypatch.setattr(writer._events._writer._py_recordio_writer, "_writer", full)
            else:
                monkeypatch.setattr(writer._rows, "_file", full)
            for step in range(1, 10_000):
                writer.write(step, "train", values(step))
        with suppress(OSError):  # what is left in its buffer
            full.close()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (245, "4 min 05 s"), (12_000, "3 h 20 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
