"""The network of a run, or of a published file, on files and arrays."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs_for_tests import changed
from PIL import Image
from safetensors.numpy import save_file

from cnn_research.data.sources import open_source
from cnn_research.errors import UserError
from cnn_research.inference import Predictor, read_classes
from cnn_research.models import cpu, registry
from cnn_research.training import metrics
from cnn_research.training.benchmark_step import measure_inference
from cnn_research.training.checkpoints import Checkpoints
from cnn_research.training.feeds import open_feeds
from cnn_research.training.pretrained import read_run
from cnn_research.training.setup import Experiment

TINY = {
    "model__name": "convnet",
    "model__filters": (4, 8),
    "model__batch_norm": "after_conv",
    "model__dense": (),
    "dataset__name": "digits",
    "dataset__test_split": "test[:100]",
    "dataset__cache": "",
    "dataset__mean": (0.3,),
    "dataset__std": (0.4,),
    "eval_batch_size": 32,
    "compilation_cache": "",
}
# What may be between the images and the logits.
RECIPES = {
    "plain": {},
    "streaming": {"dataset__feed": "streaming"},
    "ten crops": {"augment": "random_crop(6)", "evaluation__crop_size": 6, "evaluation__crops": "ten"},
    "resized, flipped": {"dataset__image_size": 12, "evaluation__image_size": 14, "evaluation__flip": True},
    "bfloat16, averaged": {"precision": "bfloat16", "ema_decay": 0.9},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Writes the checkpoints of a run of a recipe, at steps 3 (the best) and 6; each once."""
    written = {}

    def run(recipe):
        if recipe not in written:
            written[recipe] = tmp_path_factory.mktemp("run")
            write_checkpoints(written[recipe], changed(**TINY | RECIPES[recipe]))
        return written[recipe]

    return run


def write_checkpoints(workdir, config):
    """Checkpoints of a network whose running statistics are other than a batch's, as training would leave them."""
    experiment = Experiment(config, open_feeds(config, (), "train[:50]")["train[:50]"])
    state = jax.tree.map(np.asarray, experiment.initial_state())
    rng = np.random.default_rng(0)

    def trained(tree):
        return jax.tree.map(lambda x: x + rng.uniform(0.1, 0.5, x.shape).astype(np.float32), tree)

    with Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints:
        for step, accuracy in ((3, 0.5), (6, 0.25)):
            averaged = trained(state.averaged) if state.averaged else state.averaged
            later = state.replace(
                step=np.int32(step),
                params=trained(state.params),
                batch_stats=trained(state.batch_stats),
                averaged=averaged,
            )
            scores = {"accuracy": accuracy, "top5": 1.0, "loss": 1.0, "num_examples": 100}
            checkpoints.save(later, experiment.about(), scores)


@pytest.fixture(scope="module")
def workdir(runs):
    return runs("plain")


@pytest.fixture
def predictor(workdir):
    return Predictor.from_workdir(workdir)


@pytest.fixture
def pictures(tmp_path):
    """Ten digits as PNG files, in two folders."""
    source = open_source("digits", "test")
    for index in range(10):
        path = tmp_path / "pictures" / ("odd" if index % 2 else "even/deep") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source[index]["image"][..., 0]).save(path)
    return tmp_path / "pictures"


# -------------------------------------------------------------------------------- the same logits as evaluation


def evaluations_logits(config, variables, monkeypatch):
    """The logits inside the compiled step of evaluation, on one device, and the images that it was given."""
    real = metrics.batch_sums
    monkeypatch.setattr(metrics, "batch_sums", lambda logits, *rest: real(logits, *rest) | {"logits": logits})
    feed = open_feeds(config, (config.dataset.test_split,))[config.dataset.test_split]
    p_eval_step = Experiment(config, feed).eval_step()
    one = lambda tree: jax.tree.map(lambda x: np.asarray(x)[None], tree)  # noqa: E731
    logits, images = [], []
    for batch in feed.eval_batches(config.eval_batch_size):
        sums = p_eval_step(one(variables), one(feed.arrays), one(batch))
        logits.append(np.asarray(sums["logits"])[0][batch["mask"]])
        images.append(np.asarray(feed.gather(feed.arrays, batch)["image"])[batch["mask"]])
    return np.concatenate(logits), np.concatenate(images)


@pytest.mark.parametrize("recipe", RECIPES)
def test_logits_are_those_of_evaluation_to_the_bit(runs, recipe, monkeypatch):
    workdir, config = runs(recipe), changed(**TINY | RECIPES[recipe])
    step, variables, _ = read_run(workdir, "latest")
    expected, images = evaluations_logits(config, variables, monkeypatch)
    predictor = Predictor.from_workdir(workdir)
    assert step == 6 and len(images) == 100 and predictor.batch_size == 32
    assert images.shape[1:] == predictor.image_shape
    np.testing.assert_array_equal(predictor.logits(images), expected)
    np.testing.assert_array_equal([p.logits for p in predictor.predict(images)], expected)


def test_on_a_cpu_all_take_the_faster_forms(workdir, monkeypatch):
    """Evaluation, what benchmarks measure of it, and prediction; each network once."""
    config, accelerated = changed(**TINY), []

    def accelerate(function):
        accelerated.append(function)
        return function

    monkeypatch.setattr(cpu, "accelerate", accelerate)
    evaluations_logits(config, read_run(workdir, "latest")[1], monkeypatch)
    assert len(accelerated) == 1
    measure_inference(config, repeats=1)
    assert len(accelerated) == 2
    predictor = Predictor.from_workdir(workdir)
    predictor.logits(np.zeros((1, *predictor.image_shape), np.uint8))
    assert len(accelerated) == 3


def test_files_are_read_as_evaluation_reads_them(runs, pictures):
    """From the source's 8x8 pixels to evaluation's 14x14, by Pillow."""
    predictor = Predictor.from_workdir(runs("resized, flipped"))
    assert predictor.image_shape == (14, 14, 1)
    path = pictures / "odd" / "3.png"
    expected = np.asarray(Image.open(path).resize((14, 14), Image.Resampling.BILINEAR))[..., None]
    np.testing.assert_array_equal(predictor.read(path), expected)
    (prediction,) = predictor.predict(path)
    np.testing.assert_array_equal(prediction.image, expected)
    np.testing.assert_allclose(prediction.logits, predictor.logits(expected[None])[0])
    array = open_source("digits", "test")[3]["image"]  # an array is resized likewise
    np.testing.assert_array_equal(predictor.predict(array)[0].logits, prediction.logits)


def test_views_are_averaged_and_preprocess_gives_the_central_one(runs):
    predictor = Predictor.from_workdir(runs("ten crops"))
    assert predictor.image_shape == (8, 8, 1)  # the images of the run, not the 6x6 that the network sees
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
    pixels, x = predictor.central_views(image)
    np.testing.assert_array_equal(pixels, image[:, 1:7, 1:7])
    np.testing.assert_array_equal(predictor.preprocess(image), x)
    np.testing.assert_allclose(x, (image[:, 1:7, 1:7] / 255 - 0.3) / 0.4, rtol=1e-5, atol=1e-6)
    crops = [image[:, t : t + 6, left : left + 6] for t, left in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))]
    crops += [crop[:, :, ::-1] for crop in crops]
    x = np.concatenate([(crop / 255 - 0.3) / 0.4 for crop in crops]).astype(np.float32)
    each = np.asarray(predictor.model.apply(predictor.variables, x, train=False), np.float64)
    mean = np.mean(np.exp(each) / np.exp(each).sum(axis=1, keepdims=True), axis=0)
    np.testing.assert_allclose(predictor.predict(image)[0].confidences, mean, rtol=1e-4)


# ------------------------------------------------------------------------------------------------- predictions


def test_predictions(predictor, pictures):
    found = predictor.predict(pictures)
    assert [p.name for p in found] == [
        str(pictures / name)
        for name in (*(f"even/deep/{i}.png" for i in (0, 2, 4, 6, 8)), *(f"odd/{i}.png" for i in (1, 3, 5, 7, 9)))
    ]
    for prediction in found:
        exact = prediction.logits.astype(np.float64)
        softmax = np.exp(exact) / np.exp(exact).sum()
        np.testing.assert_allclose(prediction.confidences, softmax, rtol=1e-12)
        assert prediction.confidences.sum() == pytest.approx(1, abs=1e-12)
        order = sorted(range(10), key=lambda k: -softmax[k])
        top = prediction.top(3)
        assert [name for name, _ in top] == [str(k) for k in order[:3]]
        assert [share for _, share in top] == pytest.approx(softmax[order[:3]])
        assert len(prediction.top(99)) == 10


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 70])
def test_any_number_of_images(predictor, count):
    images = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    logits = predictor.logits(images)
    assert logits.shape == (count, 10) and logits.dtype == np.float32
    x = ((images / 255 - 0.3) / 0.4).astype(np.float32)
    expected = predictor.model.apply(predictor.variables, x, train=False) if count else np.zeros((0, 10))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert [p.name for p in predictor.predict(images)] == [f"image {i}" for i in range(count)]


@pytest.mark.parametrize(
    "given",
    [jnp.asarray, list, lambda images: map(jnp.asarray, images), lambda images: [images[0], images[1].repeat(3, 1)]],
    ids=["jax", "list", "iterator", "sizes"],
)
def test_whatever_is_like_an_array(workdir, given):
    """Stretching an image of one value, which is the second, changes nothing but its size."""
    predictor = Predictor.from_workdir(workdir, resizing="stretch")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    images[1] = 7
    found = predictor.predict(given(images))
    assert [each.name for each in found] == ["image 0", "image 1"]
    np.testing.assert_array_equal([each.image for each in found], images)
    np.testing.assert_array_equal([each.logits for each in found], predictor.logits(jnp.asarray(images)))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (
            np.zeros((8, 8), np.uint8),
            r"images are uint8\[8, 8\], but uint8\[N, H, W, C\] or uint8\[H, W, C\] is needed",
        ),
        (jnp.zeros((1, 1, 8, 8, 1), jnp.uint8), r"images are uint8\[1, 1, 8, 8, 1\], but"),
        ([np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8), np.uint8)], r"image 1: uint8\[8, 8\], but uint8\[H, W, 1\]"),
        ([np.zeros((8, 8, 1), np.uint8), "a.png"], r"image 1: <U5\[\], but uint8\[H, W, 1\]"),
    ],
)
def test_arrays_of_other_dimensions(predictor, images, expected):
    with pytest.raises(UserError, match=f"^{expected}[^\n]*$"):
        predictor.predict(images)


def test_a_broken_image_is_told_and_the_others_keep_their_logits(predictor, pictures):
    whole = {p.name: p.logits for p in predictor.predict(pictures)}
    broken = [pictures / "odd" / "3.png", pictures / "odd" / "text.png", pictures / "gone.png"]
    broken[0].write_bytes(broken[0].read_bytes()[:60])
    broken[1].write_text("no image")
    Image.new("L", (9, 7)).save(pictures / "large.png")
    told = []
    paths = [*whole, broken[1], pictures / "large.png", broken[2]]
    found = {p.name: p.logits for p in predictor.stream(paths, on_error=lambda error: told.append(str(error)))}
    assert found.keys() == whole.keys() - {str(broken[0])}
    for name, logits in found.items():
        np.testing.assert_array_equal(logits, whole[name])
    assert len(told) == 4 and not any("\n" in text or "dataset.on_error" in text for text in told)
    expected = {
        broken[0]: "truncated",
        broken[1]: "not an image",
        pictures / "large.png": "7x9",
        broken[2]: "No such file",
    }
    for text, (path, reason) in zip(told, expected.items(), strict=True):
        assert text.startswith(f"{path}: ") and reason in text
    assert "8x8" in told[2] and "stretch or crop" in told[2] and "--resize" in told[2] and "resizing=" in told[2]
    with pytest.raises(UserError, match="truncated"):
        predictor.predict(pictures / "odd")


def test_resizing_what_the_run_does_not(workdir, pictures):
    predictor = Predictor.from_workdir(workdir, resizing="crop")
    Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (16, 1))).save(pictures / "wide.png")
    expected = Image.open(pictures / "wide.png").resize((16, 8), Image.Resampling.BILINEAR).crop((4, 0, 12, 8))
    np.testing.assert_array_equal(predictor.read(pictures / "wide.png")[..., 0], np.asarray(expected))


def test_checkpoints_of_a_run(workdir, tmp_path):
    """Latest, best and a step; the folder needs nothing but the checkpoints."""
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    images = np.zeros((1, 8, 8, 1), np.uint8)
    logits = {which: Predictor.from_workdir(tmp_path, which).logits(images) for which in (3, 6, "latest", "best")}
    assert not np.array_equal(logits[3], logits[6])
    np.testing.assert_array_equal(logits["latest"], logits[6])
    np.testing.assert_array_equal(logits["best"], logits[3])
    predictor = Predictor.from_workdir(tmp_path)
    assert predictor.name == f"convnet of {tmp_path.name} at step 6" and predictor.classes == tuple("0123456789")


# ------------------------------------------------------------------------------------------------- files


MISTAKES = {
    "no run": (lambda p: Predictor.from_workdir(p / "gone"), ["workdir {tmp}/gone: there is no such folder"]),
    "no checkpoint": (lambda p: Predictor.from_workdir(p / "run"), ["workdir {tmp}/run", "no latest checkpoint"]),
    "unknown network": (lambda p: Predictor.from_zoo("resnet_50", p / "x"), ["resnet_50", "did you mean 'resnet50'"]),
    "missing weights": (lambda p: Predictor.from_zoo("resnet18", p / "x.pth"), ["{tmp}/x.pth", "No such file"]),
    "weights that are none": (lambda p: Predictor.from_zoo("resnet18", p / "run/log.txt"), ["{tmp}/run/log.txt"]),
    "no classes": (lambda p: read_classes(p / "x.txt"), ["{tmp}/x.txt", "No such file"]),
    "a class without a name": (lambda p: read_classes(p / "gap.txt"), ["gap.txt, line 2"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("nothing")
    (tmp_path / "gap.txt").write_text("cat\n\ndog\n")
    act, expected = MISTAKES[name]
    with pytest.raises(UserError) as error:
        act(tmp_path)
    assert "\n" not in str(error.value)
    for text in expected:
        assert text.format(tmp=tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), ["float32[2, 8, 8, 1]", "uint8[N, 8, 8, 1]"]),
        (np.zeros((2, 9, 8, 1), np.uint8), ["uint8[2, 9, 8, 1]", "uint8[N, 8, 8, 1]"]),
        (np.zeros((8, 8, 3), np.uint8), ["uint8[8, 8, 3]", "8, 1]"]),
    ],
)
def test_arrays_that_are_no_images(predictor, images, expected):
    for act in (predictor.logits, predictor.preprocess):
        with pytest.raises(UserError) as error:
            act(images)
        assert all(text in str(error.value) for text in expected)
    with pytest.raises(UserError):
        predictor.predict(images)


def test_unknown_step_names_those_there_are(workdir):
    with pytest.raises(UserError, match=r"no 7 checkpoint .* latest, best, 3, 6$"):
        Predictor.from_workdir(workdir, 7)


# --------------------------------------------------------------------------------------------------- the zoo


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of torchvision's ResNet-18 with random weights and 7 classes, and the same in Flax."""
    model = registry.create_model("resnet18", 7)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    rng, tensors = np.random.default_rng(0), {}

    def draw(path, leaf):
        *_, layer, kind = (key.key for key in path)
        value = rng.uniform(0.5, 1.5, leaf.shape) if kind in ("scale", "var") else rng.normal(0, 0.05, leaf.shape)
        value = value.astype(np.float32)
        name = layer.replace("downsample_conv", "downsample.0").replace("downsample_norm", "downsample.1")
        path = [key.key for key in path][1:-2] + [name]
        name = ".".join(path).replace("norm", "bn").replace("output", "fc")
        for stage in "1234":
            name = name.replace(f"layer{stage}_", f"layer{stage}.")
        kinds = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
        torch = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T if value.ndim == 2 else value
        tensors[f"{name}.{kinds.get(kind, kind)}"] = np.ascontiguousarray(torch)
        return value

    variables = jax.tree_util.tree_map_with_path(draw, variables)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(tensors, path)
    return path, model, variables


def test_zoo(weights, tmp_path):
    path, model, variables = weights
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    predictor = Predictor.from_zoo("resnet18", path, batch_size=1)
    assert predictor.name == "resnet18 with the weights resnet18.safetensors"
    (prediction,) = predictor.predict(tmp_path / "photo.png")
    # torchvision's protocol by hand: 400x300 -> 341x256, the central 224.
    photo = Image.open(tmp_path / "photo.png").resize((341, 256), Image.Resampling.BILINEAR)
    left, top = 42 + 16, 16  # (341 - 256) / 2 = 42.5, to even
    x = np.asarray(photo.crop((left, top, left + 224, top + 224))) / 255
    x = (x - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    expected = model.apply(variables, x[None].astype(np.float32), train=False)[0]
    np.testing.assert_allclose(prediction.logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert set(predictor.classes) == {f"class {index}" for index in range(7)}
    pixels, inputs = predictor.central_views(prediction.image[None])
    assert prediction.image.shape == (256, 256, 3) and inputs.shape == (1, 224, 224, 3)
    np.testing.assert_allclose(pixels[0], photo.crop((left, top, left + 224, top + 224)))
    np.testing.assert_allclose(inputs[0], x, rtol=1e-4, atol=1e-5)


def test_zoo_with_names_of_classes(weights, tmp_path):
    path, *_ = weights
    (tmp_path / "names.txt").write_text("tench, Tinca\n" * 3 + "ä\nb\nc\nd\n", encoding="utf-8")
    names = read_classes(tmp_path / "names.txt")
    assert Predictor.from_zoo("resnet18", path, names).classes == ("tench, Tinca",) * 3 + ("ä", "b", "c", "d")
    with pytest.raises(UserError, match=r"6 names of classes .* has 7 classes"):
        Predictor.from_zoo("resnet18", path, names[:6])
    assert Predictor.from_zoo("resnet18", path).batch_size == 2**20 // 256**2 == 16
    with pytest.raises(UserError, match="'crob'.*Did you mean 'crop'"):
        Predictor.from_zoo("resnet18", path, resizing="crob")
    with pytest.raises(UserError, match="resnet34 with the weights .*is missing"):
        Predictor.from_zoo("resnet34", path)


def test_matmul_precision_is_the_runs_and_no_one_elses(tmp_path):
    write_checkpoints(tmp_path, changed(**TINY | {"matmul_precision": "highest"}))
    predictor = Predictor.from_workdir(tmp_path)
    images = np.zeros((1, 8, 8, 1), np.uint8)
    with jax.default_matmul_precision(predictor.matmul_precision):
        text = predictor._logits.lower(predictor.variables, images).as_text()
    assert "HIGHEST" in text
    predictor.logits(images)
    assert jax.config.jax_default_matmul_precision is None
