import logging
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image

from cnn_research.data import cache, sources
from cnn_research.data.resident import ResidentFeed

ARRAYS = {
    "image": np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8),
    "label": np.arange(50, dtype=np.int32),
    "broken": np.zeros(0, np.int64),
}


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and not (found[name].size and found[name].flags.writeable)
        np.testing.assert_array_equal(found[name], array)


def test_saves_and_loads(tmp_path):
    path = cache.entry(str(tmp_path / "new"), "folder:/my pets-train[:90%]", {"size": 1})
    assert cache.load(path) is None
    cache.save(path, ARRAYS)
    assert path.name.startswith("folder-my-pets-train-90")
    assert_equal(cache.load(path), ARRAYS)
    assert isinstance(cache.load(path)["image"], np.memmap)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_key_decides():
    keys = [{"size": 1}, {"size": 2}, {"size": 1, "how": "crop"}, [1], None]
    assert len({cache.entry("/c", "x", key) for key in keys}) == len(keys)
    assert cache.entry("/c", "x", {"a": 1, "b": 2}) == cache.entry("/c", "x", {"b": 2, "a": 1})


@pytest.mark.parametrize("damage", [lambda d: d[:-900], lambda d: d[:70], lambda d: b"", lambda d: b"?" * len(d)])
def test_what_is_not_whole_is_not_there(tmp_path, damage, caplog):
    path = cache.entry(str(tmp_path), "x", 0)
    cache.save(path, ARRAYS)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.load(path) is None
    assert str(path) in caplog.text
    cache.save(path, ARRAYS)
    assert_equal(cache.load(path), ARRAYS)


def test_the_oldest_go(tmp_path, monkeypatch):
    size = sum(array.nbytes for array in ARRAYS.values())
    monkeypatch.setattr(cache, "LIMIT", 4 * size)
    paths = [cache.entry(str(tmp_path), "x", number) for number in range(5)]
    for number, path in enumerate(paths):
        if number == 3:
            kept = cache.load(paths[0])  # used just now
        cache.save(path, ARRAYS)
        if path.exists():
            os.utime(path, (number, number))
        if number == 2:
            (tmp_path / "writing-old.tmp").write_text("")
            os.utime(tmp_path / "writing-old.tmp", (1, 1))
    assert [path.exists() for path in paths] == [True, False, False, True, True]
    assert not (tmp_path / "writing-old.tmp").exists()
    assert_equal(kept, ARRAYS)
    monkeypatch.setattr(cache, "LARGEST", size - 1)
    cache.save(cache.entry(str(tmp_path), "x", "large"), ARRAYS)
    assert not cache.entry(str(tmp_path), "x", "large").exists()


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    path = cache.entry(str(tmp_path / "file" / "cache"), "x", 0)
    assert cache.load(path) is None
    cache.save(path, ARRAYS)
    assert "can't be written" in caplog.text and str(path.parent) in caplog.text


def test_a_full_disk_costs_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    path = cache.entry(str(tmp_path), "x", 0)
    cache.save(path, ARRAYS)
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


def write_again_and_again(path):
    while True:
        cache.save(path, ARRAYS)


def test_kills_and_writers_at_the_same_time_leave_nothing_torn(tmp_path):
    path = cache.entry(str(tmp_path), "x", 0)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_again_and_again, args=(path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(300):
        assert_equal(cache.load(path), ARRAYS)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    assert_equal(cache.load(path), ARRAYS)


# In the resident feed -------------------------------------------------------------------------------------------------


def load(data_dir, folder, split="train", **options):
    return ResidentFeed(sources.open_source("tiny_digits", split, data_dir), cache=str(folder), **options)


def test_the_second_start_decodes_nothing(tiny_tfds, tmp_path, monkeypatch, caplog):
    options = [{}, {"image_size": 20}, {"image_size": 20, "interpolation": "nearest"}, {"split": "train[:50%]"}]
    options += [{"split": "test"}]
    first = [load(tiny_tfds, tmp_path, **o) for o in options]
    assert len(list(tmp_path.iterdir())) == len(options)
    monkeypatch.setattr("cnn_research.data.decode.open_image", lambda *_: pytest.fail("decoded again"))
    for feed, o in zip(first, options, strict=True):
        with caplog.at_level(logging.INFO, logger="absl"):
            again = load(tiny_tfds, tmp_path, **o)
        assert "decoded before" in caplog.text
        for name in ("image", "label"):
            np.testing.assert_array_equal(again.arrays[name], feed.arrays[name])
        assert (again.image_shape, again.num_examples, again.skipped) == (feed.image_shape, feed.num_examples, [])


def test_a_dataset_that_was_prepared_anew_is_decoded_anew(prepare_tfds, tmp_path):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(4, 4, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    for value in (10, 20):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        examples = [{"image": Image.new("L", (4, 4), value), "label": 1}]
        prepare_tfds(str(tmp_path / "data"), "plain", {"train": examples}, features)
        source = sources.open_source("plain", "train", str(tmp_path / "data"))
        assert (ResidentFeed(source, cache=str(tmp_path / "cache")).arrays["image"] == value).all()


def test_no_cache_and_nothing_to_cache(tiny_tfds, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ResidentFeed(sources.open_source("tiny_digits", "test", tiny_tfds))
    ResidentFeed(sources.open_source("digits", "test"), cache="~/cache")
    assert list(tmp_path.iterdir()) == []
