"""experiments/rivals/pytorch.py makes steps of the same networks as ours."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.models import registry

pytestmark = pytest.mark.parity

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RIVALS = EXPERIMENTS / "rivals"
OPTIMIZER = {
    "learning_rate": 0.01,
    "momentum": 0.9,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-8,
    "weight_decay": 1e-4,
}


@pytest.mark.parametrize(
    ("network", "shape"),
    [("lenet5", (28, 28, 1)), ("resnet20", (32, 32, 3)), ("resnet56", (32, 32, 3)), ("resnet50", (64, 64, 3))]
    + [("vgg11_bn", (32, 32, 3)), ("googlenet_bn", (64, 64, 3)), ("densenet121", (64, 64, 3))]
    + [("vgg16_bn_cifar", (32, 32, 3)), ("densenet_bc_100_12", (32, 32, 3))],
)
def test_networks_have_as_many_parameters(torch, torchvision, monkeypatch, network, shape):
    monkeypatch.syspath_prepend(RIVALS)
    import pytorch

    fields = {"googlenet_bn": {"auxiliary_heads": False}, "vgg16_bn_cifar": {"kernel_init": "he"}}.get(network, {})
    spec = {"network": network, "fields": fields, "num_classes": 10, "image_shape": shape, "train": True}
    theirs = pytorch.create(spec)
    model = registry.create_model(network, 10, **fields)
    # torchvision's VGG pools adaptively to 7 x 7, so that its size doesn't depend on the image's.
    size = (224, 224, 3) if network == "vgg11_bn" else shape
    ours = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size)))["params"]
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.size for p in jax.tree.leaves(ours))


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adamw"])
def test_steps(optimizer):
    """Of training, and of evaluation, as the protocol has it."""
    for train in (True, False):
        spec = {"network": "resnet20", "fields": {}, "num_classes": 10, "image_shape": [32, 32, 3], "batch_size": 4}
        spec |= {"precision": "float32", "train": train, "optimizer": {"name": optimizer, **OPTIMIZER}}
        command = [sys.executable, RIVALS / "pytorch.py"]
        result = subprocess.run(command, input=f"{json.dumps(spec)}\n2\n1\n", capture_output=True, text=True)
        about, *seconds = map(json.loads, result.stdout.splitlines())
        assert about["device"] == "cpu" and about["torch"]
        assert len(seconds) == 2 and min(seconds) > 0


def test_beside_each_other():
    """What `benchmark step --against=torch` says of both."""
    command = [sys.executable, EXPERIMENTS / "benchmark.py", "step", "--against=torch", "--repeats=1", "--json"]
    config = f"--config={EXPERIMENTS / 'configs/lenet5_digits.py'}"
    found = json.loads(subprocess.run([*command, config], capture_output=True, text=True, check=True).stdout)
    assert found["ratio"]["median"] == pytest.approx(found["step_ms"]["median"] / found["rival_ms"]["median"], rel=0.01)


def test_the_script_that_learns_mnist(torch, tmp_path):
    """On images that tell their class by one bright row, it ends when 99 of 100 are right and says after how long."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 2560), ("test", 500)):
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 64, (count, 28, 28), dtype=np.uint8)
        images[np.arange(count), 2 * labels + 4] = 255
        arrays |= {f"{split}_image": images, f"{split}_label": labels}
    np.savez(tmp_path / "mnist.npz", **arrays)
    command = [sys.executable, str(RIVALS / "pytorch_mnist.py"), str(tmp_path / "mnist.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    epoch, accuracy = re.fullmatch(r"epoch (\d+): (0\.99\d\d|1\.0000) after [\d.]+ s", last).groups()
    assert int(epoch) == len(done.stdout.splitlines()) <= 30 and float(accuracy) >= 0.99
