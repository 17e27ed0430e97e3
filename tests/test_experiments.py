"""What every file in experiments/configs promises. Its smoke run is in end_to_end/test_configs.py."""

import ast
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from cnn_research import config as configs
from cnn_research.config import base_config, differences, from_json, to_json
from cnn_research.data import augment
from cnn_research.errors import UserError
from cnn_research.training.setup import Experiment
from cnn_research.validation import validate

FOLDER = Path(__file__).parents[1] / "experiments" / "configs"
EXPERIMENTS = sorted(FOLDER.glob("*.py"))

# Training images, classes and the shape of an image, None where images differ; of the datasets' own papers and pages.
DATASETS = {
    "digits": (1_437, 10, (8, 8, 1)),
    "mnist": (60_000, 10, (28, 28, 1)),
    "cifar10": (50_000, 10, (32, 32, 3)),
    "imagenet2012": (1_281_167, 1_000, (None, None, 3)),
    "folder:images": (500, 5, (None, None, 3)),  # one's own
}


def load(path, *mode):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*mode)


def feed(config, image_size):
    count, classes, (height, width, channels) = DATASETS[config.dataset.name]
    return SimpleNamespace(
        num_examples=count,
        classes=("",) * classes,
        image_shape=(image_size or height, image_size or width, channels),
        gather=None,
    )


def test_there_are_experiments():
    assert len(EXPERIMENTS) >= 15


@pytest.mark.parametrize("mode", [(), ("smoke",)], ids=["plain", "smoke"])
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_is_valid(path, mode):
    config = load(path, *mode)
    validate(config, num_devices=8)
    assert config.is_locked and config.model.is_locked
    assert set(configs.flatten(config.to_dict())) == set(configs.flatten(base_config().to_dict()))
    assert from_json(to_json(config)).to_dict() == config.to_dict()
    # A line that repeats the default says something that isn't so: that the experiment differs in it.
    assert differences(base_config(), config)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_docstring_names_the_command_and_the_paper(path):
    text = " ".join(ast.get_docstring(ast.parse(path.read_text())).replace("\\", " ").split())
    command = re.search(r"python experiments/train\.py --config=(\S+) --workdir=(\S+)", text)
    assert command.groups() == (f"experiments/configs/{path.stem}.py", f"runs/{path.stem}")
    paper = r"(et al\.| & \w+),? .*?\b(19|20)\d\d\b|\b[A-Z]\w+ (19|20)\d\d, \""
    assert re.search(paper, text) or "No published figure" in text


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_network_fits_its_training_and_its_evaluation_images(path):
    """At full size, by shapes alone."""
    config = load(path)
    size = config.dataset.image_size
    made = Experiment(config, feed(config, size))
    model = made.model
    image = jax.ShapeDtypeStruct((1, *made.input_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    made.check_evaluation(variables, feed(config, config.evaluation.image_size or size), made.input_shape)
    views = jax.eval_shape(made._make_views, jax.ShapeDtypeStruct((1, *made._feed.image_shape), jnp.uint8))
    if config.dataset.name == "imagenet2012":
        assert made.input_shape == views.shape[2:] == (224, 224, 3)
    protocol = config.evaluation
    count = {("ten", False): 10, ("centre", True): 2}.get((protocol.crops, protocol.flip), 1)
    assert len(views) == count * (3 if protocol.shift else 1)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_durations_are_steps(path):
    config = load(path)
    made = Experiment(config, feed(config, config.dataset.image_size))
    rates = [float(made._schedule(step)) for step in (0, made.total_steps // 2, made.total_steps - 1)]
    assert max(rates) <= config.optimizer.learning_rate * (1 + 1e-6) and rates[-1] < rates[1]
    assert min(made.log_every, made.eval_every, made.save_every) >= 1
    assert max(made.log_every, made.eval_every, made.save_every) <= made.total_steps


# Steps and learning rates that the papers and their code print, by hand: (step, rate) pairs.
RECIPES = {
    "resnet20_cifar10": (64_000, [(31_999, 0.1), (32_000, 0.01), (48_000, 0.001)]),
    "densenet_bc_100_12_cifar10": (234_375, [(117_187, 0.1), (117_188, 0.01), (175_782, 0.001)]),
    "resnet50_imagenet": (450_410, [(150_136, 0.1), (150_138, 0.01), (300_275, 0.001)]),
    # Caffe's bvlc_googlenet: 4 % less every 320,000 steps of 32 images, 8 epochs of 1.28 million.
    "googlenet_imagenet": (10_009_117, [(320_000, 0.01), (321_000, 0.0096), (9_990_000, 0.01 * 0.96**31)]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_schedule_of_the_paper(name):
    config = load(FOLDER / f"{name}.py")
    total, rates = RECIPES[name]
    made = Experiment(config, feed(config, config.dataset.image_size))
    assert made.total_steps == total
    for step, rate in rates:
        assert float(made._schedule(step)) == pytest.approx(rate, rel=1e-4), step


# ------------------------------------------------------------------------------------------------ smoke runs


# What a smoke run may change: data, sizes and lengths.
SHRUNK = {
    *(f"dataset.{name}" for name in ("name", "image_size", "train_split", "eval_split", "test_split")),
    *("evaluation.image_size", "evaluation.crop_size", "batch_size", "eval_batch_size", "schedule.boundaries"),
    *("duration", "log_every", "eval_every", "checkpoint.every", "augment", "init.weights"),
}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_smoke_takes_the_same_path(path):
    plain, smoke = (configs.flatten(load(path, mode).to_dict()) for mode in ("", "smoke"))
    assert {field for field in plain if plain[field] != smoke[field]} <= SHRUNK
    operations = [re.findall(r"[a-z_]+", config["augment"]) for config in (plain, smoke)]
    assert operations[0] == operations[1]
    for field in ("dataset.image_size", "evaluation.crop_size"):
        assert (plain[field] > 0) == (smoke[field] > 0) and plain[field] >= smoke[field]
    assert smoke["dataset.name"].startswith("shapes:") and smoke["duration"] == "2st"
    if smoke["evaluation.crop_size"]:  # training and evaluation see the same size, and really crop
        side, crop = smoke["dataset.image_size"], smoke["evaluation.crop_size"]
        assert augment.output_shape(augment.parse(smoke["augment"]), (side, side, 3)) == (crop, crop, 3)
        assert crop < side


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_unknown_mode(path):
    with pytest.raises(UserError, match=r"no mode 'smok' .*Did you mean 'smoke'\?") as error:
        load(path, "smok")
    assert "\n" not in str(error.value)
