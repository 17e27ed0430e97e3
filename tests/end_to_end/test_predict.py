"""experiments/predict.py and experiments/export.py, as people run them."""

import csv
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_research.data.sources import open_source


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The digits' 360 test images as PNG files named by number and label."""
    folder = tmp_path_factory.mktemp("images")
    source = open_source("digits", "test")
    for index in range(len(source)):
        example = source[index]
        Image.fromarray(example["image"][..., 0]).save(folder / f"{index:03}_{example['label']}.png")
    return folder


def test_says_what_evaluate_says(script, reference, results, images):
    out, err = script.run("predict", f"--workdir={reference}", f"{images}/*.png", "--top=10", "--json")
    found = json.loads(out)
    assert found["network"] == f"convnet of {reference.name} at step 120" and found["left_out"] == []
    assert "360 of 360 images" in err
    losses, right = [], []
    for index, each in enumerate(found["images"]):
        label = each["image"].removesuffix(".png")[-1]
        assert each["image"] == f"{images}/{index:03}_{label}.png"
        confidences = {entry["class"]: entry["confidence"] for entry in each["top"]}
        assert sum(confidences.values()) == pytest.approx(1, abs=1e-12) and each["rest"] == 0
        assert list(confidences.values()) == sorted(confidences.values(), reverse=True)
        losses.append(-np.log(confidences[label]))
        right.append(each["top"][0]["class"] == label)
    test = results(reference)["test"]
    assert np.mean(right) == pytest.approx(test["accuracy"], abs=1e-9)
    assert np.mean(losses) == pytest.approx(test["loss"], rel=1e-6)


def test_table_csv_and_cards(script, reference, images, tmp_path):
    few = [str(images / f"{name}.png") for name in sorted(path.stem for path in images.iterdir())[:3]]
    out, _ = script.run("predict", f"--workdir={reference}", *few, "--top=2", "--csv")
    header, *rows = csv.reader(io.StringIO(out))
    assert header == ["image", "class_1", "confidence_1", "class_2", "confidence_2", "rest"]
    assert [row[0] for row in rows] == few
    for row in rows:
        assert sum(map(float, row[2::2])) + float(row[-1]) == pytest.approx(1)

    out, _ = script.run("predict", f"--workdir={reference}", *few, "--top=2", f"--cards={tmp_path / 'cards'}")
    for line, row in zip(out.splitlines(), rows, strict=True):
        shares = [f"{100 * float(row[2]):.1f} % {row[1]}", f"{100 * float(row[4]):.1f} % {row[3]}"]
        assert line.startswith(row[0]) and all(share in line for share in shares) and line.endswith(" others")
    cards = sorted((tmp_path / "cards").iterdir())
    assert [card.name for card in cards] == [f"{n}_{path.rpartition('/')[2]}" for n, path in enumerate(few, start=1)]
    assert all(Image.open(card).width > 400 for card in cards)


def test_what_cannot_be_used_is_told_and_the_rest_goes_on(script, reference, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    Image.new("L", (300, 200)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    out, err = script.run("predict", f"--workdir={reference}", str(tmp_path), "--json", code=2)
    found = json.loads(out)
    assert [each["image"] for each in found["images"]] == [f"{tmp_path}/a.png"]
    assert [text.partition(": ")[0] for text in found["left_out"]] == [f"{tmp_path}/b.png", f"{tmp_path}/c.png"]
    lines = err.splitlines()
    for text in found["left_out"]:
        assert text in lines
    assert "200x300" in found["left_out"][0] and "8x8" in found["left_out"][0]
    assert lines[-1] == "error: 2 of 3 images could not be used" and "Traceback" not in err
    out, _ = script.run("predict", f"--workdir={reference}", str(tmp_path / "b.png"), "--resize=stretch")
    assert "b.png" in out


MISTAKES = {
    "no network": (["{tmp}"], ["--workdir", "--model"]),
    "empty folder": (["{tmp}/empty", "--workdir={reference}"], ["no images in the folder {tmp}/empty"]),
    "workdir without a checkpoint": (
        ["{tmp}", "--workdir={tmp}/empty"],
        ["workdir {tmp}/empty", "no latest checkpoint"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(script, reference, tmp_path, name):
    (tmp_path / "empty").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    places = {"tmp": tmp_path, "reference": reference}
    flags, expected = MISTAKES[name]
    out, err = script.run("predict", *(flag.format(**places) for flag in flags), code=2)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and not out and "Traceback" not in err, err
    for text in expected:
        assert text.format(**places) in errors[0]


def test_what_export_prints_runs(script, reference, images, tmp_path):
    """The printed lines, as a program of their own, give predict's confidences."""
    out, _ = script.run("export", f"--workdir={reference}", f"--output={tmp_path / 'network.zip'}")
    with zipfile.ZipFile(tmp_path / "network.zip") as archive:  # it may go anywhere, without where it comes from
        parts = b"".join(map(archive.read, archive.namelist()))
    assert f'"name": "convnet of {reference.name} at step 120"'.encode() in parts
    assert not [place for place in (reference.parent, Path(__file__).parents[2]) if str(place).encode() in parts]
    picture = next(images.glob("000_*.png"))
    program = f"""
import sys
sys.modules["cnn_research"] = None
import numpy as np
from PIL import Image
images = np.asarray(Image.open({str(picture)!r}))[None, :, :, None]
{out.replace("network(images)", "answer = network(images)")}
print(answer[0].argmax(), float(answer[0].max()), about["classes"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(script.run("predict", f"--workdir={reference}", str(picture), "--json")[0])["images"]
    best, confidence, classes = done.stdout.split(maxsplit=2)
    assert best == found["top"][0]["class"] and eval(classes) == list("0123456789")
    assert float(confidence) == pytest.approx(found["top"][0]["confidence"], rel=1e-4)

    _, err = script.run("export", f"--workdir={reference}", f"--output={tmp_path}/gone/network.zip", code=2)
    assert f"{tmp_path}/gone/network.zip" in err and "No such file" in err
