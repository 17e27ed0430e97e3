"""experiments/describe.py, as people run it."""

import json

import pytest
from PIL import Image

from cnn_research.models import registry


@pytest.fixture(autouse=True)
def no_backend(request, monkeypatch):
    """With a platform that isn't there: describing a network must not start one, which would take a GPU's memory."""
    if "images" not in request.node.name:
        monkeypatch.setenv("JAX_PLATFORMS", "no_such_platform")


def test_table(script):
    out, _ = script.run("describe", "lenet5", "--image_size=32")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    # LeCun et al. 1998, figure 2 and section II-B.
    assert "C1 convolution 28x28x6 5x5 1 0 floor((32 + 2*0 - 5)/1) + 1 = 28 156 117,600 5 1" in lines
    assert "S4 max pool 5x5x16 2x2 2 0 floor((10 + 2*0 - 2)/2) + 1 = 5 16 4" in lines
    assert "F6 fully connected 84 10,164 10,080 all" in lines
    assert any(line.startswith("parameters 61,706 ") for line in lines)


def test_json(script):
    out, _ = script.run(
        "describe", "resnet18", "--image_size=32", "--num_classes=7", "--field=stem=cifar", "--channels=1", "--json"
    )
    described = json.loads(out)
    assert {"name", "input", "num_classes", "parameters", "macs", "layers"} <= described.keys()
    assert (described["name"], described["input"], described["num_classes"]) == ("resnet18", [32, 32, 1], 7)
    assert described["parameters"] == 11_173_962 - 3 * (512 + 1) - 2 * 64 * 9
    first = described["layers"][0]
    assert {"path", "kind", "output", "parameters", "macs", "receptive_field"} <= first.keys()
    assert (first["path"], first["output"], first["receptive_field"]) == ("conv1", [32, 32, 64], 3)


def test_list(script):
    out, _ = script.run("describe", "--list")
    header, *lines = out.splitlines()
    assert header.split()[:2] == ["name", "paper"]
    assert [line.split()[0] for line in lines] == registry.list_models()
    out, _ = script.run("describe", "--list", "vgg16*", "--json")
    assert json.loads(out).keys() == {"vgg16", "vgg16_bn", "vgg16_bn_cifar", "vgg16_c"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["googlenet", "--image_size=20"], ["googlenet", "aux1_pool", "floor((1 + 2*0 - 5)/3) + 1 = -1"]),
        (["resnet1"], ["resnet1", "did you mean", "resnet18"]),
        ([], ["which network", "--list"]),
        (["lenet5", "alexnet"], ["'alexnet'"]),
        (["--list", "nothing*"], ["nothing*"]),
        (["resnet18", "--field=stem=cifr"], ["stem", "did you mean 'cifar'"]),
        (["resnet18", "--field=stem"], ["--field=stem", "value"]),
        (["resnet18", "--field=norm=x"], ["no field 'norm'", "stem"]),
        (["resnet18", "--field=stochastic_depth_rate=abc"], ["stochastic_depth_rate=abc", "float"]),
        (["resnet18", "--field=squeeze_excitation=maybe"], ["squeeze_excitation=maybe", "bool"]),
        (["resnet18", "--image_size=0"], ["image_size"]),
    ],
)
def test_mistakes(script, flags, words):
    out, err = script.run("describe", *flags, code=2)
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ")
    for word in words:
        assert word in err


def test_images(script, tmp_path):
    output = tmp_path / "sheet.png"
    out, _ = script.run("describe", f"--augment={script.tiny[1]}", f"--output={output}")
    assert str(output) in out and "shift(1)|flip" in out
    with Image.open(output) as picture:
        assert picture.size == (8 * 100 + 4, 8 * 114 + 4)


@pytest.mark.parametrize("flags", [["--augment=nothing.py"], ["--augment={tiny}", "--output=/nowhere/sheet.png"]])
def test_images_that_cannot_be_drawn(script, flags):
    out, err = script.run("describe", *(flag.format(tiny=script.tiny[1]) for flag in flags), code=2)
    *warnings, line = err.splitlines()  # with an old jaxlib Grain has one
    assert out == "" and line.startswith("error: ")
    assert not any("error" in warning or "Traceback" in warning for warning in warnings)
