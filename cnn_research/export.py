"""Networks as files that need neither this package nor Flax: StableHLO, written by `jax.export`.

A file is a zip archive of two parts: "network", the function as JAX has serialised it, and "about.json": what it was
made of, the classes, and the size and resizing of the images. Given uint8 images of that size, the network computes
logits and probabilities; normalisation and evaluation's views are inside. One file serves any number of images, on a
CPU, a GPU of NVIDIA's or a TPU; so a CPU computes it as it is written, while `Predictor` has forms that are up to
several times as fast there (`models/cpu.py`). To load it, `LOADER` is all that is needed, and jax.

JAX promises to read what a version up to six months older, or three weeks newer, has written (docs.jax.dev, "Exporting
and serializing staged-out computations"). For longer, keep the checkpoint.

ONNX needs an environment of its own: jax2onnx, the converter that is kept up, wants an older orbax-checkpoint than this
package does, and fails on JAX 0.12. These versions work together (tried with Python 3.13):

    pip install jax2onnx==0.17.1 "jax<0.11" absl-py grain importlib_resources ml_collections pillow safetensors \\
        scikit-learn tensorboardX tqdm
    pip install --no-deps .                             # at the root of a checkout; or the path of a wheel

    predictor = Predictor.from_workdir("runs/lenet5_digits")
    images = jax.ShapeDtypeStruct(("batch", *predictor.image_shape), jnp.uint8)
    jax2onnx.to_onnx(export.answer(predictor), [images], return_mode="file", output_path="lenet5.onnx")

Its outputs are logits and probabilities, in this order. In onnxruntime they are JAX's but for the rounding of float32,
as tried with LeNet-5, the convnet, a VGG and a ResNet; torchvision's GoogLeNet could not be converted.
"""

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

import cnn_research
from cnn_research.errors import UserError
from cnn_research.inference import Predictor

PLATFORMS = ("cpu", "cuda", "tpu")

# What users copy: the command prints it, and tests/test_export.py runs it as it is, where this package is not.
LOADER = '''\
import json, zipfile
import jax
from jax import export

def load(path):
    """Returns what is known of a network, and the network: uint8[N, H, W, C] -> {"logits", "probabilities"}."""
    with zipfile.ZipFile(path) as file:
        network = export.deserialize(bytearray(file.read("network")))
        return json.loads(file.read("about.json")), jax.jit(network.call)
'''


def export_stablehlo(predictor: Predictor) -> bytes:
    """Makes the file of a network.

    Args:
        predictor: whose weights, normalisation, views and matmul precision go into it.

    Returns:
        The content of the file, see the head of this module.

    Raises:
        UserError: the network can't be written for images of any number.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *predictor.image_shape), jnp.uint8)
    try:
        with jax.default_matmul_precision(predictor.matmul_precision), _without_paths():
            exported = export.export(jax.jit(answer(predictor)), platforms=PLATFORMS)(images)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{predictor.name} can't be exported for any number of images: {reason}") from error
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # stored as it is: weights don't shrink
        archive.writestr("network", exported.serialize())
        archive.writestr("about.json", json.dumps(about(predictor), indent=2, ensure_ascii=False))
    return file.getvalue()


def answer(predictor: Predictor) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """The function that is exported: uint8[N, H, W, C] -> {"logits": float32[N, K], "probabilities": float32[N, K]}."""

    def network(images: jax.Array) -> dict[str, jax.Array]:
        logits = predictor.compute(predictor.variables, images)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    return network


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Within it, what JAX writes doesn't tell which lines of which files on this machine an operation comes from."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def about(predictor: Predictor) -> dict[str, Any]:
    """What a file says of itself: format, name, classes, image_shape, how images are brought to it, versions."""
    return {
        "format": "zip of a function serialised by jax.export (StableHLO) and this JSON, version 1",
        "name": predictor.name,
        "classes": list(predictor.classes),
        "image_shape": list(predictor.image_shape),  # H, W, C: uint8, grey or RGB, not normalised
        "resizing": predictor.resizing,
        "mean": list(predictor.mean),  # of what is done inside
        "std": list(predictor.std),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(predictor.variables["params"])),
        "versions": {"cnn_research": cnn_research.__version__, "jax": jax.__version__},
    }
