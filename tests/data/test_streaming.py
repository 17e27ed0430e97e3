import math
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_research.data import order
from cnn_research.data.decode import BrokenImage
from cnn_research.data.resident import ResidentFeed
from cnn_research.data.sources import open_source
from cnn_research.data.streaming import StreamingFeed, random_resized_crop
from cnn_research.errors import UserError


def take(batches, count):
    with closing(batches):
        return [next(batches) for _ in range(count)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert {k: (a.dtype, a.shape) for k, a in one.items()} == {k: (a.dtype, a.shape) for k, a in other.items()}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def photograph(seed, width, height):
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """105 JPEGs of many sizes in three classes."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(105):
        path = root / "abc"[number % 3] / f"{number:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        photograph(number, *rng.integers(20, 90, 2)).save(path)
    return root


@pytest.fixture
def source(folder):
    return open_source(f"folder:{folder}", "train")  # 84 of them


def as_resident(feed, batches):
    """What a resident feed's batches of indices stand for."""
    found = []
    for batch in batches:
        values = {name: array[batch["index"]] for name, array in feed.arrays.items()}
        found.append(values | {name: array for name, array in batch.items() if name != "index" or "mask" not in batch})
    return found


@pytest.mark.parametrize("options", [{"how": "crop"}, {"interpolation": "nearest"}, {"how": "crop", "image_size": 33}])
def test_the_batches_are_those_of_the_resident_feed(source, options):
    options = {"image_size": 24, "seed": 5} | options
    resident, streaming = ResidentFeed(source, **options), StreamingFeed(source, workers=2, **options)
    assert streaming.arrays == {} and streaming.skipped == []
    for what in ("num_examples", "image_shape", "classes"):
        assert getattr(streaming, what) == getattr(resident, what)
    found = take(streaming.train_batches(3, 48), 6)  # over the end of an epoch
    assert_same(found, as_resident(resident, take(resident.train_batches(3, 48), 6)))
    found, expected = list(streaming.eval_batches(48)), as_resident(resident, resident.eval_batches(48))
    for batch in (*found, *expected):
        batch["image"] = batch["image"] * batch["mask"][:, None, None, None]  # what is masked out may be anything
        batch["label"] = batch["label"] * batch["mask"]
    assert_same(found, expected)


def test_small_images_keep_their_size(tiny_tfds):
    for name in ("tiny_digits", "digits"):
        source = open_source(name, "train", tiny_tfds)
        resident, streaming = ResidentFeed(source, seed=1), StreamingFeed(source, seed=1, workers=1)
        assert_same(
            take(streaming.train_batches(2, 80), 3), as_resident(resident, take(resident.train_batches(2, 80), 3))
        )


@pytest.mark.parametrize("batch_size", [1, 31, 32, 33, 70, 200])
def test_every_example_once_an_epoch(source, batch_size):
    feed = StreamingFeed(source, image_size=4, workers=2)
    batches = take(feed.train_batches(0, batch_size), -(-168 // batch_size))
    positions = np.concatenate([batch["position"] for batch in batches])
    np.testing.assert_array_equal(positions, np.arange(len(positions)))
    stream = order.example_indices(0, 0, 168, 84)
    labels = np.concatenate([batch["label"] for batch in batches])[:168]
    np.testing.assert_array_equal(labels, source.labels[stream])
    assert sorted(stream[:84]) == sorted(stream[84:]) == list(range(84))
    counted = [batch["mask"].sum() for batch in feed.eval_batches(batch_size)]
    assert sum(counted) == 84 and all(count == batch_size for count in counted[:-1])


@pytest.mark.parametrize(("workers", "kind"), [(2, "threads"), (4, "threads"), (2, "processes")])
def test_workers_change_nothing(source, workers, kind):
    options = {"seed": 3, "image_size": 24, "crop": "random_resized_crop"}
    alone = take(StreamingFeed(source, workers=0, **options).train_batches(0, 50), 7)
    many = StreamingFeed(source, workers=workers, worker_kind=kind, **options)
    assert_same(take(many.train_batches(0, 50), 7), alone)
    if kind == "threads":  # processes take long to start
        assert_same(take(many.train_batches(5, 50), 2), alone[5:])  # started at step 5
    assert_same(list(many.eval_batches(50)), list(StreamingFeed(source, workers=0, **options).eval_batches(50)))


def test_shares_make_up_the_batch(source):
    feed = StreamingFeed(source, image_size=8, workers=2, crop="random_resized_crop")
    for make in (
        lambda share: take(feed.train_batches(1, 96, share), 2),
        lambda share: list(feed.eval_batches(96, share)),
    ):
        whole = make(slice(None))
        parts = [make(slice(start, start + 24)) for start in range(0, 96, 24)]  # as four processes would
        for k, batch in enumerate(whole):
            assert_same([{name: np.concatenate([part[k][name] for part in parts]) for name in batch}], [batch])


def test_positions_wrap_around(source):
    feed = StreamingFeed(source, image_size=4, workers=0)
    (batch,) = take(feed.train_batches(2**32 // 16 - 1, 16), 1)
    np.testing.assert_array_equal(batch["position"], np.arange(2**32 - 16, 2**32, dtype=np.uint32))
    (batch,) = take(feed.train_batches(2**32 // 16, 16), 1)
    np.testing.assert_array_equal(batch["position"], np.arange(16))


# Random crops ---------------------------------------------------------------------------------------------------------


def test_crops_are_those_that_are_promised():
    boxes = [random_resized_crop((400, 300), 1, position) for position in range(4000)]
    widths, heights = (np.array([b[2] - b[0] for b in boxes]), np.array([b[3] - b[1] for b in boxes]))
    assert all(0 <= left < right <= 400 and 0 <= top < bottom <= 300 for left, top, right, bottom in boxes)
    areas, ratios = widths * heights / 120000, widths / heights
    assert 0.078 < areas.min() < 0.09 and 0.95 < areas.max() <= 1  # rounding to pixels moves it a little
    assert 0.74 < ratios.min() < 0.76 and 1.32 < ratios.max() < 1.35
    # Below an area that always fits, the area is uniform and the ratio log-uniform: the mean is 0, and as many are
    # above 1 as below, to within 5 sd.
    small = areas < 0.5
    assert abs(np.mean(areas[small]) - 0.29) < 5 * 0.42 / math.sqrt(12 * small.sum())
    assert abs(np.mean(np.log(ratios[small]))) < 5 * math.log(16 / 9) / math.sqrt(12 * small.sum())
    # The place is uniform over what is free: its mean is the middle.
    left = np.array([b[0] for b in boxes])
    assert abs(np.mean((left / np.maximum(400 - widths, 1))[widths < 350]) - 0.5) < 5 / math.sqrt(12 * 3000)
    assert random_resized_crop((400, 300), 1, 7) == boxes[7]
    assert random_resized_crop((400, 300), 2, 7) != boxes[7]


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1000, 10), (493, 0, 506, 10)),  # the largest central crop of ratio 4/3
        ((10, 1000), (0, 493, 10, 506)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_where_no_crop_fits(size, box):
    boxes = {random_resized_crop(size, 0, position) for position in range(50)}
    assert box in boxes
    assert all(0 <= b[0] < b[2] <= size[0] and 0 <= b[1] < b[3] <= size[1] for b in boxes)


def test_a_crop_is_cut_and_resized_by_pillow(source):
    feed = StreamingFeed(source, seed=9, image_size=16, crop="random_resized_crop", workers=0)
    (batch,) = take(feed.train_batches(4, 8), 1)
    for image, position, index in zip(batch["image"], range(32, 40), order.example_indices(9, 32, 8, 84), strict=True):
        photo = Image.open(source.where(index))
        box = random_resized_crop(photo.size, 9, position)
        np.testing.assert_array_equal(image, photo.crop(box).resize((16, 16), Image.Resampling.BILINEAR))


def test_evaluation_is_not_cropped_at_random(source):
    crop, none = (StreamingFeed(source, image_size=16, crop=c, workers=0) for c in ("random_resized_crop", "none"))
    assert_same(list(crop.eval_batches(40)), list(none.eval_batches(40)))


# Faults ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_broken(tmp_path):
    for number in range(50):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    source = open_source(f"folder:{tmp_path}", "train")
    for index in (7, 8, 39):
        Path(source.where(index)).write_text("no image")
    return source


@pytest.mark.parametrize(("workers", "kind"), [(0, "threads"), (2, "threads"), (1, "processes")])
def test_a_broken_image_is_named(with_broken, workers, kind):
    feed = StreamingFeed(with_broken, image_size=4, workers=workers, worker_kind=kind)
    with pytest.raises(BrokenImage) as error, closing(feed.train_batches(0, 40)) as batches:
        next(batches)
    assert error.value.where in [with_broken.where(index) for index in (7, 8, 39)] and "\n" not in str(error.value)


@pytest.mark.parametrize(("workers", "kind"), [(0, "threads"), (2, "threads"), (1, "processes")])
def test_a_broken_image_is_skipped_and_nothing_else_moves(with_broken, workers, kind, caplog):
    options = {"seed": 2, "on_error": "skip"}
    resident = ResidentFeed(with_broken, **options)
    feed = StreamingFeed(with_broken, workers=workers, worker_kind=kind, **options)
    assert feed.skipped == []
    found = take(feed.train_batches(0, 20), 4)
    assert_same(found, as_resident(resident, take(resident.train_batches(0, 20), 4)))
    assert feed.skipped == resident.skipped == [with_broken.where(index) for index in (7, 8, 39)]
    assert all(caplog.text.count(path) >= 1 for path in feed.skipped)
    other = StreamingFeed(with_broken, workers=workers, **options)
    masks = np.concatenate([batch["mask"] for batch in other.eval_batches(16)])
    assert np.flatnonzero(~masks).tolist() == [7, 8, 39, *range(40, 48)]
    assert other.skipped == feed.skipped


def test_mixed_sizes_are_named(source, tmp_path):
    says = r"differ in size: the first has \d+x\d+ pixels, example \d+ .*image_size"
    with pytest.raises(UserError, match=says):  # before training
        StreamingFeed(source, workers=2)
    for number in range(200):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    source = open_source(f"folder:{tmp_path}", "train")
    Image.new("RGB", (5, 4)).save(source.where(150))
    feed = StreamingFeed(source, workers=2)
    with pytest.raises(UserError, match="example 150 4x5"):
        take(feed.train_batches(0, 160), 1)


def test_a_label_without_a_class_is_named_at_once(prepare_tfds, tmp_path):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(4, 4, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    example = {"image": Image.new("L", (4, 4)), "label": -1}
    prepare_tfds(str(tmp_path), "unlabelled", {"test": [example]}, features)
    with pytest.raises(UserError, match="Example 0 of 'unlabelled' test has the label -1"):
        StreamingFeed(open_source("unlabelled", "test", str(tmp_path)))


def test_a_crop_needs_a_size(source):
    with pytest.raises(UserError, match="random_resized_crop.*image_size"):
        StreamingFeed(source, crop="random_resized_crop")


# Processes ------------------------------------------------------------------------------------------------------------


def marked(mark):
    """The processes with a mark in their environment, which whatever they start inherits."""
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if f"STREAMING_TEST={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.add(int(process.name))
            except OSError:
                continue
    return found


def shared_memory():
    return set(os.listdir("/dev/shm"))


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


PROGRAM = """
import os, sys, time
from contextlib import closing
from cnn_research.data.sources import open_source
from cnn_research.data.streaming import StreamingFeed

if __name__ == "__main__":
    feed = StreamingFeed(open_source(sys.argv[1], "train"), image_size=96, workers=2, worker_kind="processes")
    with closing(feed.train_batches(0, 64)) as batches:
        for _ in range(3):
            next(batches)
        print("ready", flush=True)
        time.sleep(float(sys.argv[2]))
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes as Linux shows them")
@pytest.mark.parametrize("killed", [False, True])
def test_nothing_is_left_of_the_workers(folder, tmp_path, killed):
    (tmp_path / "program.py").write_text(PROGRAM)
    memory = shared_memory()
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "STREAMING_TEST": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "program.py"), f"folder:{folder}", "60" if killed else "0"]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert program.stdout.readline() == "ready\n"
    if killed:
        assert len(marked(tmp_path)) >= 1 + 2
        program.kill()
    program.communicate(timeout=180)
    assert program.returncode == (-9 if killed else 0)
    assert wait_until(lambda: not marked(tmp_path)), "workers are left"
    assert wait_until(lambda: not shared_memory() - memory), "shared memory is left"
