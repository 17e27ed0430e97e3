import functools
import inspect
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.explain import attribution, features, network3d, pair, sanity


class Network(nn.Module):
    """Not of the zoo; as few lines as can be written down again in numpy."""

    units: Sequence[int]

    @nn.compact
    def __call__(self, x, training: bool):
        x = nn.relu(nn.Conv(6, (3, 3), name="maps")(x)).mean((1, 2))
        for number, units in enumerate(self.units):
            x = nn.Dense(units, name=f"dense{number}", bias_init=nn.initializers.normal(0.5))(x)
            x = nn.relu(x) if number < len(self.units) - 1 else x
        return x


IMAGES = np.random.default_rng(0).normal(size=(3, 12, 10, 3)).astype(np.float32)


def make(units=(5, 4)):
    model = Network(units)
    return model, jax.tree.map(np.asarray, model.init(jax.random.key(3), IMAGES, training=False))


def by_hand(variables, classes):
    """(maps, gradients of the logits with respect to them, logits), in plain numpy."""
    params = variables["params"]
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    maps = np.einsum("nhwcij,ijco->nhwo", windows, params["maps"]["kernel"]) + params["maps"]["bias"]
    before = np.maximum(maps, 0).mean((1, 2)) @ params["dense0"]["kernel"] + params["dense0"]["bias"]
    logits = np.maximum(before, 0) @ params["dense1"]["kernel"] + params["dense1"]["bias"]
    classes = logits.argmax(-1) if classes is None else classes
    back = ((before > 0) * params["dense1"]["kernel"][:, classes].T) @ params["dense0"]["kernel"].T
    return maps, (maps > 0) * back[:, None, None, :] / (12 * 10), logits


@pytest.mark.parametrize("classes", [None, [2, 0, 3]])
def test_grad_cam_by_hand(classes):
    model, variables = make()
    maps, gradients, _ = by_hand(variables, classes)
    expected = np.maximum((gradients.mean((1, 2), keepdims=True) * maps).sum(-1), 0)
    given = None if classes is None else np.array(classes)
    np.testing.assert_allclose(
        attribution.grad_cam(model, variables, IMAGES, "maps", given), expected, rtol=1e-5, atol=1e-7
    )

    # Equations 10 to 12 and 19 of the paper, with loops.
    expected = np.zeros(maps.shape[:3])
    for n in range(len(maps)):
        for k in range(maps.shape[-1]):
            g, a = gradients[n, ..., k].astype(np.float64), maps[n, ..., k].astype(np.float64)
            below = 2 * g**2 + a.sum() * g**3
            alpha = np.divide(g**2, below, out=np.zeros_like(g), where=below != 0)
            expected[n] += (alpha * np.maximum(g, 0)).sum() * a
    found = attribution.grad_cam_plus_plus(model, variables, IMAGES, "maps", given)
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-3, atol=1e-5)


def test_occlusion_by_hand():
    model, variables = make()
    found = attribution.occlusion(model, variables, IMAGES, 1, size=5, stride=4, fill=0.5)
    assert found.shape == (3, 3, 3)
    whole = model.apply(variables, IMAGES, training=False)[:, 1]
    for row in range(3):
        for column in range(3):
            hidden = IMAGES.copy()
            # Five pixels around the centre of each cell of four, of which one side is longer by one.
            top, left = 4 * row + 2 - 2, 4 * column + 2 - 2
            hidden[:, max(0, top) : top + 5, max(0, left) : left + 5] = 0.5
            expected = whole - model.apply(variables, hidden, training=False)[:, 1]
            np.testing.assert_allclose(found[:, row, column], expected, atol=1e-5)


def test_saliency_is_a_finite_difference():
    model, variables = make()
    found = attribution.saliency(model, variables, IMAGES, 2)
    score = lambda x: model.apply(variables, x, training=False)[0, 2]  # noqa: E731
    slopes = []
    for channel in range(3):
        step = np.zeros_like(IMAGES[:1])
        step[0, 5, 4, channel] = 1e-2
        slopes.append(float(abs(score(IMAGES[:1] + step) - score(IMAGES[:1] - step))) / 2e-2)
    assert found.shape == (3, 12, 10) and found[0, 5, 4] == pytest.approx(max(slopes), rel=2e-2, abs=1e-4)
    still = attribution.smooth_grad(model, variables, IMAGES, 2, key=jax.random.key(0), noise=0.0, samples=2)
    np.testing.assert_allclose(still, found, atol=1e-6)


def test_integrated_gradients_are_complete():
    model, variables = make((16, 8, 4))
    # Biases at which the way from the baseline crosses many rectifiers' thresholds.
    variables["params"]["maps"]["bias"] = np.linspace(-1, 1, 6, dtype=np.float32)
    for baseline in (0.0, IMAGES[::-1]):
        found = attribution.integrated_gradients(model, variables, IMAGES, 1, baseline=baseline)
        logits = [model.apply(variables, x, training=False)[:, 1] for x in (IMAGES, 0 * IMAGES + baseline)]
        different = np.abs(logits[0] - logits[1]) > 1e-3  # the middle one of three turned round is its own baseline
        np.testing.assert_allclose(found.sum((1, 2))[different], (logits[0] - logits[1])[different], rtol=0.01)
        error = attribution.completeness_error(model, variables, IMAGES, found, 1, baseline=baseline)
        assert error[different].max() < 0.01
        half = attribution.completeness_error(model, variables, IMAGES, found / 2, 1, baseline=baseline)
        np.testing.assert_allclose(half[different], 0.5, atol=0.01)


METHODS = {
    "grad_cam": attribution.grad_cam,
    "grad_cam_plus_plus": attribution.grad_cam_plus_plus,
    "saliency": attribution.saliency,
    "smooth_grad": functools.partial(attribution.smooth_grad, key=jax.random.key(0), samples=4),
    "integrated_gradients": attribution.integrated_gradients,
    "occlusion": attribution.occlusion,
    "guided_backpropagation": attribution.guided_backpropagation,
    "deconvnet": attribution.deconvnet,
    "guided_backpropagation of a unit": functools.partial(attribution.guided_backpropagation, layer="maps", channel=2),
    "deconvnet of a unit": functools.partial(attribution.deconvnet, layer="dense0", channel=0),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_within_jit(method):
    model, variables = make()
    plain = method(model, variables, IMAGES)
    assert plain.shape[0] == 3 and np.isfinite(plain).all() and np.abs(plain).max() > 0
    compiled = jax.jit(functools.partial(method, model))(variables, IMAGES)
    np.testing.assert_allclose(compiled, plain, rtol=1e-3, atol=1e-6)


def test_a_module_that_cannot_be_hashed():
    model, variables = make()
    found = attribution.grad_cam(Network([5, 4]), variables, IMAGES)
    np.testing.assert_allclose(found, attribution.grad_cam(model, variables, IMAGES), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_no_evidence_is_a_map_of_zeros(method):
    model, variables = make()
    nothing = jax.tree.map(np.zeros_like, variables)
    assert (method(model, nothing, IMAGES) == 0).all()


def test_a_unit_is_seen_in_its_receptive_field_alone():
    model, variables = make()
    values = np.asarray(by_hand(variables, None)[0])[..., 2]
    found = np.abs(attribution.deconvnet(model, variables, IMAGES, layer="maps", channel=2)).sum(-1)
    for n in range(3):
        y, x = np.unravel_index(values[n].argmax(), values[n].shape)
        expected = np.zeros((12, 10), bool)
        expected[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
        np.testing.assert_array_equal(found[n] > 0, expected)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, v: attribution.grad_cam(m, v, IMAGES, "map"), "no layer 'map'. Did you mean 'maps'?"),
        (lambda m, v: attribution.grad_cam(m, v, IMAGES, "dense0"), "dense0 gives [5] and no maps [h, w, c]. Those"),
        (lambda m, v: attribution.saliency(m, v, IMAGES[0]), "images are float[N, H, W, C], preprocessed; got float32"),
        (lambda m, v: attribution.saliency(m, v, IMAGES.astype(np.uint8)), "preprocessed; got uint8[3, 12, 10, 3]"),
        (lambda m, v: attribution.saliency(m, v, IMAGES[..., :1]), "images of (12, 10, 1) don't fit the network's"),
        (lambda m, v: attribution.deconvnet(m, v, IMAGES, layer="maps", channel=6), "maps has channels 0 to 5, got"),
        (lambda m, v: attribution.deconvnet(m, v, IMAGES, layer="maps"), "layer and channel go together, got layer"),
        (lambda m, v: attribution.deconvnet(m, v, IMAGES, channel=2), "go together, got layer=None and channel=2"),
        (lambda m, v: attribution.occlusion(m, v, IMAGES, size=0), "at least 1 pixel, got 0 and"),
    ],
)
def test_mistakes_are_one_line(call, words):
    with pytest.raises(ValueError) as error:
        call(*make())
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("classes", [4, -1, [0, 3, 4], np.array([1, 2, 9])])
@pytest.mark.parametrize(
    "method", [method for name, method in METHODS.items() if not name.endswith("of a unit")] + [pair.xrai]
)
def test_a_class_that_is_not_there(method, classes):
    if method is pair.xrai:
        pytest.importorskip("saliency")
    for model in (Network((5, 4)), Network([5, 4])):  # the second can't be hashed
        with pytest.raises(ValueError, match=r"there is no class (4|-1|9): the network has 4, from 0 to 3"):
            method(model, make()[1], IMAGES, classes=classes)


def test_classes_within_jit():
    model, variables = make()
    expected = attribution.saliency(model, variables, IMAGES, 3)
    inside = lambda x, given: attribution.saliency(model, variables, x, given)  # noqa: E731
    for given in (3, [3, 3, 3]):
        np.testing.assert_allclose(jax.jit(inside)(IMAGES, given), expected, atol=1e-6)
        np.testing.assert_allclose(jax.jit(lambda x, given=given: inside(x, given))(IMAGES), expected, atol=1e-6)
    with pytest.raises(ValueError, match="there is no class 4"):
        jax.jit(lambda x: inside(x, 4))(IMAGES)


@pytest.mark.parametrize("method", [attribution.guided_backpropagation, attribution.deconvnet])
def test_a_network_without_rectifiers(method):
    model = nn.Sequential((nn.Conv(4, (3, 3)), nn.gelu, lambda x: x.mean((1, 2))))
    with pytest.raises(ValueError, match="Sequential has no rectifiers, max"):
        method(model, model.init(jax.random.key(0), IMAGES), IMAGES)


class Several(nn.Module):
    """A network with another result beside its logits."""

    @nn.compact
    def __call__(self, x):
        maps = nn.Conv(4, (3, 3), name="maps")(x)
        return maps.mean((1, 2)), maps


@pytest.mark.parametrize(
    "call",
    [
        *(method for name, method in METHODS.items() if not name.endswith("of a unit")),
        functools.partial(sanity.randomisation_check, attribution.saliency, key=jax.random.key(0)),
        functools.partial(features.values_and_gradients, labels=np.zeros(3, int), paths=["maps"]),
        lambda model, variables, images: network3d.network3d(model, variables, images[0]),
    ],
)
def test_a_network_that_returns_no_logits(call):
    variables = Several().init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match=r"returns a tuple; wrap it in a module that returns logits \[N, K\]"):
        call(Several(), variables, IMAGES)


def test_pair_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "saliency", None)
    with pytest.raises(ModuleNotFoundError, match="pip install saliency"):
        pair.xrai(*make(), IMAGES)


@pytest.mark.parametrize("method", ["xrai", "guided_ig", "blur_ig"])
def test_pair_methods(method):
    pytest.importorskip("saliency")
    model, variables = make()
    if method == "guided_ig" and "interpolation" not in inspect.signature(np.quantile).parameters:
        with pytest.raises(NotImplementedError, match="take xrai or blur_ig"):
            pair.guided_ig(model, variables, IMAGES)
        return
    found = getattr(pair, method)(model, variables, IMAGES, np.array([1, 1, 2]))
    assert found.shape == (3, 12, 10) and found.dtype == np.float32 and np.isfinite(found).all()
    alone = getattr(pair, method)(model, variables, IMAGES[2:], 2)
    np.testing.assert_allclose(alone[0], found[2], atol=1e-6)


def test_pair_integrated_gradients_are_ours():
    core = pytest.importorskip("saliency.core")
    model, variables = make()
    call = pair.call_model(model, variables)
    ours = attribution.integrated_gradients(model, variables, IMAGES[:1], 1, steps=256)
    theirs = core.IntegratedGradients().GetMask(IMAGES[0], call, {"class": 1}, x_steps=256, batch_size=64)
    np.testing.assert_allclose(theirs.sum(-1), ours[0], atol=0.02 * np.abs(ours).max())


def test_rank_correlation_by_hand():
    # Ranks 1 2.5 2.5 4 of the one, 4 1 3 2 of the other: of absolute values.
    found = sanity.rank_correlation(jnp.array([[1.0, -2.0, 2.0, 5.0]]), jnp.array([[9.0, 0.0, -3.0, 2.0]]))
    assert found == pytest.approx(-3 / np.sqrt(4.5 * 5))
    assert np.isnan(sanity.rank_correlation(jnp.zeros((1, 4)), jnp.ones((1, 4))))


def test_energy_inside_by_hand():
    maps = np.zeros((2, 4, 5), np.float32)
    maps[0, 1, 2], maps[0, 3, 4], maps[0, 0, 0], maps[1, 2, 2] = 3, 1, -7, 2
    boxes = [[1, 2, 2, 3], [0, 0, 2, 5]]
    np.testing.assert_allclose(sanity.energy_inside(maps, boxes, (4, 5)), [0.75, 0])


def test_cascade_randomises_from_the_end():
    model, variables = make()
    steps = sanity.cascade(model, variables, IMAGES, key=jax.random.key(9))
    assert [path for path, _ in steps] == ["dense1", "dense0", "maps"]
    for number, (_, randomised) in enumerate(steps):
        changed = {
            name
            for name in variables["params"]
            if not np.array_equal(randomised["params"][name]["kernel"], variables["params"][name]["kernel"])
        }
        assert changed == {"dense1", "dense0", "maps"} - {"dense0" if number < 1 else "", "maps" if number < 2 else ""}


class Rooted(nn.Module):
    """A network with parameters of its own, and with statistics of a layer that has no parameters."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        self.sow("intermediates", "seen", x)  # no part of the network
        x = nn.BatchNorm(not train, use_bias=False, use_scale=False, name="norm")(x)
        return nn.Dense(4, name="dense")(x.mean((1, 2))) * self.param("scale", nn.initializers.normal(), (4,))


def test_cascade_randomises_what_is_in_no_layer():
    variables = Rooted().init(jax.random.key(0), IMAGES)
    variables["batch_stats"]["norm"]["mean"] += 7
    (first, dense), (second, everything) = sanity.cascade(Rooted(), variables, IMAGES, key=jax.random.key(0))
    assert (first, second) == ("dense", "the rest")
    assert (dense["params"]["scale"] == variables["params"]["scale"]).all()
    assert (everything["params"]["scale"] != variables["params"]["scale"]).all()
    assert (everything["batch_stats"]["norm"]["mean"] == 0).all() and set(everything) == {"params", "batch_stats"}


def test_cascade_gives_other_weights_than_the_first_ones():
    """A network is trained from those of key(seed), and key(0) is the first key that comes to mind."""
    model, variables = make()
    _, last = sanity.cascade(model, variables, IMAGES, key=jax.random.key(3))[-1]
    for name, layer in variables["params"].items():
        assert (last["params"][name]["kernel"] != layer["kernel"]).any()


def test_randomisation_check():
    model, variables = make()
    check = functools.partial(
        sanity.randomisation_check, model=model, variables=variables, images=IMAGES, key=jax.random.key(1)
    )
    alike = check(attribution.saliency, most=2)
    assert list(alike) == ["dense1", "maps"] and alike["maps"] < 0.9
    edges = lambda model, variables, images, classes: np.diff(images, axis=1)  # noqa: E731
    assert check(edges) == pytest.approx({"dense1": 1, "dense0": 1, "maps": 1})  # shows the image alone
