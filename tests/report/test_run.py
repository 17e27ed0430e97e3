"""A run opened for reading has the numbers of its evaluation and the images of its feed."""

import json

import numpy as np
import pytest
from PIL import Image
from runs_for_tests import train

from cnn_research.data import sources
from cnn_research.data.sources import open_source
from cnn_research.errors import UserError
from cnn_research.report.run import open_run
from cnn_research.training import loop


@pytest.fixture(scope="module")
def run(coloured):
    return open_run(coloured)


def test_predictions_are_those_of_the_evaluation(run, coloured):
    expected = loop.evaluate(coloured)
    assert run.right.mean() == pytest.approx(expected["accuracy"], abs=1e-9)
    own = run.probabilities[np.arange(len(run.labels)), run.labels]
    assert -np.log(own).mean() == pytest.approx(expected["loss"], rel=1e-5)
    assert len(run.labels) == expected["num_examples"] == 200 and run.step == expected["step"] == 40


def test_images_and_labels_are_the_split_s_own(run):
    source = open_source("shapes:24", "test[:200]")
    assert run.labels.tolist() == [source[index]["label"] for index in range(200)]
    assert np.array_equal(run.images([7, 3]), [source[7]["image"], source[3]["image"]])
    assert run.classes == source.classes and run.indices.tolist() == list(range(200))


def test_another_split(coloured):
    run = open_run(coloured, "train[:50]")
    assert run.split == "train[:50]" and run.labels.tolist() == [
        example["label"] for example in open_source("shapes:24", "train[:50]").__getitems__(range(50))
    ]


def test_history_and_results_are_the_files(run, coloured):
    lines = (coloured / "metrics.jsonl").read_text().splitlines()
    assert run.history == list(map(json.loads, lines)) and len(lines) > 8
    assert run.results == json.loads((coloured / "results.json").read_text())
    assert run.name == "coloured" and run.environment["devices"] == 8


@pytest.fixture(scope="module")
def partly_broken(tmp_path_factory):
    """A run on images of 20 x 16 pixels, resized and cropped, of which one can't be read, and that one's place."""
    root = tmp_path_factory.mktemp("images")
    values = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 16, 20, 3), dtype=np.uint8)
    for split, of_split in zip(("train", "test"), values, strict=True):
        for name, images in zip(("a", "b"), of_split, strict=True):
            (root / split / name).mkdir(parents=True)
            for number, image in enumerate(images):
                Image.fromarray(image).save(root / split / name / f"{number}.png")
    (root / "test" / "a" / "3.png").write_bytes(b"not an image")
    fields = {"dataset__name": f"folder:{root}", "dataset__on_error": "skip", "dataset__image_size": 16}
    fields |= {"evaluation__crop_size": 12, "augment": "random_crop(12)", "duration": "1st"}
    source = open_source(f"folder:{root}", "test")
    places = {sources.where(source, index): index for index in range(16)}
    return train(tmp_path_factory.mktemp("run"), **fields), source, places[str(root / "test" / "a" / "3.png")]


@pytest.mark.parametrize("feed", ["resident", "streaming"])
def test_what_cannot_be_read_stays_out(partly_broken, feed):
    workdir, source, broken = partly_broken
    config = json.loads((workdir / "config.json").read_text())
    config["dataset"]["feed"] = feed
    (workdir / "config.json").write_text(json.dumps(config))
    run = open_run(workdir)
    readable = [index for index in range(16) if index != broken]
    examples = source.__getitems__(readable)
    assert run.indices.tolist() == readable and run.labels.tolist() == [example["label"] for example in examples]
    image = Image.fromarray(examples[9]["image"]).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(run.images([9])[0], np.asarray(image))
    pixels, seen = run.central_views([9])
    assert np.array_equal(pixels[0], np.asarray(image)[2:14, 2:14])
    np.testing.assert_allclose(seen[0], pixels[0] / 255, atol=1e-6)


def test_mistakes(tmp_path, coloured):
    with pytest.raises(UserError, match="holds no run: there is no config.json"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text((coloured / "config.json").read_text())
    with pytest.raises(UserError, match="has no latest checkpoint yet: train it first"):
        open_run(tmp_path)
    with pytest.raises(UserError, match="validation"):
        open_run(coloured, "validation")
