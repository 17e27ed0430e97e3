"""Exported networks, in a process that has neither this package nor Flax."""

import io
import json
import re
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from cnn_research import export
from cnn_research.data import views
from cnn_research.inference import Predictor
from cnn_research.models import registry


def predictor(name="convnet", shape=(8, 8, 1), batch_size=32, num_classes=4, fields=None, **settings):
    """A network with arbitrary variables."""
    model = registry.create_model(name, num_classes, **fields or {})
    seen = jax.eval_shape(settings.get("make_views", views.make_views), np.zeros((1, *shape), np.float32)).shape[1:]
    images = jax.ShapeDtypeStruct(seen, jnp.float32)
    like = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def draw(leaf):
        return (rng.normal(0, 1, leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)

    variables = {"params": jax.tree.map(draw, like["params"])}
    if "batch_stats" in like:
        variables["batch_stats"] = jax.tree.map(lambda leaf: np.abs(draw(leaf)) + 0.5, like["batch_stats"])
    classes = [f"Ä{index}" for index in range(num_classes)]
    settings = {"mean": (0.4,), "std": (0.3,), "batch_size": batch_size} | settings
    return Predictor(name, model, variables, classes, image_shape=shape, **settings)


NETWORKS = {
    "grey": {"fields": {"filters": (4, 8), "batch_norm": "after_conv", "dense": (5,), "dropout_rate": 0.5}},
    "ten crops": {
        "fields": {"filters": (4, 8), "dense": ()},
        "shape": (9, 10, 3),
        "mean": (0.1, 0.2, 0.3),
        "make_views": lambda images: views.make_views(images, crop_size=8, crops="ten"),
        "resizing": {"how": "crop", "interpolation": "bicubic"},
    },
    "bfloat16, highest": {"fields": {"filters": (4,), "dense": (), "dtype": "bfloat16"}, "matmul_precision": "highest"},
}

# The loader as it is printed, then what a user would do; neither the package nor Flax can be imported.
PROGRAM = f"""
import sys
sys.modules["cnn_research"] = sys.modules["flax"] = None
{export.LOADER}
import numpy as np
about, network = load("network.zip")
outputs = {{}}
for count in (1, 32, 5):
    outputs[str(count)] = network(np.load("images.npy")[:count])["logits"]
    outputs[f"probabilities {{count}}"] = network(np.load("images.npy")[:count])["probabilities"]
np.savez("outputs.npz", **outputs)
print(json.dumps(about))
"""


@pytest.mark.parametrize("name", NETWORKS)
def test_loaded_where_this_package_is_not(name, tmp_path):
    many = predictor(**NETWORKS[name], batch_size=32)
    (tmp_path / "network.zip").write_bytes(export.export_stablehlo(many))
    images = np.random.default_rng(1).integers(0, 256, (32, *many.image_shape), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs, expected = np.load(tmp_path / "outputs.npz"), many.logits(images)
    assert np.ptp(expected, axis=0).max() > 0.1, "logits that can be told apart"
    with jax.default_matmul_precision(many.matmul_precision):
        for count in (1, 32):
            same = jax.jit(many.compute)(many.variables, images[:count])
            np.testing.assert_allclose(outputs[str(count)], same, rtol=1e-6, atol=1e-6)
    # Another number of images is rounded otherwise, and a CPU predicts with other forms (`models/cpu.py`).
    of_bits = 1e-5 if many.model.dtype == jnp.float32 else 0.02
    np.testing.assert_allclose(outputs["5"], expected[:5], rtol=of_bits, atol=of_bits)
    np.testing.assert_allclose(outputs["32"], expected, rtol=of_bits, atol=of_bits)
    softmax = np.exp(outputs["32"]) / np.exp(outputs["32"]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["probabilities 32"], softmax, rtol=1e-5)

    about = json.loads(done.stdout)
    assert about["classes"] == ["Ä0", "Ä1", "Ä2", "Ä3"] and about["image_shape"] == list(many.image_shape)
    assert about["resizing"] == NETWORKS[name].get("resizing") and about["versions"]["jax"] == jax.__version__
    assert about["format"].startswith("zip ") and about["mean"] == list(NETWORKS[name].get("mean", (0.4,)))


def test_the_loader_is_ten_lines_and_imports_jax_alone():
    lines = export.LOADER.splitlines()
    assert len(lines) <= 10
    imported = {word for line in lines if "import" in line for word in line.replace(",", " ").split()}
    assert imported == {"import", "from", "json", "zipfile", "jax", "export"}


def exported(made):
    with zipfile.ZipFile(io.BytesIO(export.export_stablehlo(made))) as archive:
        return jax_export.deserialize(bytearray(archive.read("network")))


def test_one_file_for_every_platform_and_number_of_images():
    network = exported(predictor(**NETWORKS["bfloat16, highest"]))
    assert network.platforms == ("cpu", "cuda", "tpu") and network.nr_devices == 1
    (images,) = network.in_avals
    assert images.dtype == np.uint8 and str(images.shape) == "(batch, 8, 8, 1)"
    assert [str(out.shape) for out in network.out_avals] == ["(batch, 4)", "(batch, 4)"]
    assert not network.ordered_effects and not network.unordered_effects
    text = network.mlir_module()
    # Nothing that belongs to one device, talks to others or to this process, or tells where its code lies. (Branches by
    # platform there are: JAX makes them for every convolution, all alike.)
    for word in ("reduce_precision", "all_reduce", "callback", ".py"):
        assert word not in text, word
    assert set(re.findall(r"custom_call @(\w+)", text)) <= {"shape_assertion"}
    assert "HIGHEST" in text


SMALL = {"resnet20": (32, 32, 3)}
LARGE = {
    "lenet5_paper": (32, 32, 1),
    "vgg11_bn_cifar": (32, 32, 3),
    "densenet_40_12": (32, 32, 3),
    "googlenet": (224, 224, 3),
    "googlenet_bn": (224, 224, 3),
    "resnet50": (224, 224, 3),
    "alexnet": (227, 227, 3),
    "zfnet": (224, 224, 3),
}


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.zoo) for name in LARGE)])
def test_families(name):
    made = predictor(name, (SMALL | LARGE)[name], batch_size=2)
    images = np.random.default_rng(1).integers(0, 256, (2, *made.image_shape), dtype=np.uint8)
    expected = made.logits(images)
    logits = jax.jit(exported(made).call)(images)["logits"]
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6 * max(1, np.abs(expected).max()))
