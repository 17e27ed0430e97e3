import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from configs_for_tests import changed

from cnn_research.config import CHOICES
from cnn_research.data.sources import open_source
from cnn_research.training.optimizers import create_optimizer
from cnn_research.training.schedules import create_schedule

MU, BETA1, BETA2, EPSILON, DECAY, TRUST = 0.8, 0.85, 0.95, 1e-3, 0.1, 0.02
HYPER = {"momentum": MU, "beta1": BETA1, "beta2": BETA2, "epsilon": EPSILON, "trust_coefficient": TRUST}
SHAPES = {
    "conv1": {"kernel": (2, 2, 1, 3), "bias": (3,)},  # more rows than columns
    "conv2": {"kernel": (1, 1, 3, 5)},  # fewer
    "norm": {"scale": (5,)},
    "head": {"kernel": (5, 2)},
}
NAMES = CHOICES["optimizer.name"]
# Which decay is each paper's own, and PyTorch's and optax's under that name.
COUPLED = {"sgd", "momentum", "nesterov", "adam", "rmsprop", "lars"}


def create(schedule=None, **fields):
    """The optimizer of config.optimizer with some fields; with a learning rate of 1 where no schedule is given."""
    config = changed(**{f"optimizer__{field}": value for field, value in fields.items()}).optimizer
    return create_optimizer(config, schedule or optax.constant_schedule(1.0))


def nested(flat):
    tree = {layer: {} for layer in SHAPES}
    for path, value in flat.items():
        layer, leaf = path.split("/")
        tree[layer][leaf] = jnp.asarray(value, jnp.float32)
    return tree


def flatten(tree):
    return {f"{layer}/{leaf}": np.asarray(value) for layer, of in tree.items() for leaf, value in of.items()}


def normal(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        f"{layer}/{leaf}": rng.normal(scale=scale, size=shape).astype(np.float32)
        for layer, of in SHAPES.items()
        for leaf, shape in of.items()
    }


# --------------------------------------------------------------------------------- against the papers, in numpy


def newton_schulz(kernel):
    """zeropower_via_newtonschulz5 of Jordan et al. 2024, and the factor of Liu et al. 2025, in float64."""
    x = kernel.reshape(-1, kernel.shape[-1])
    rows, columns = x.shape
    x = x / (np.sqrt((x**2).sum()) + 1e-7)
    if rows > columns:
        x = x.T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    if rows > columns:
        x = x.T
    return 0.2 * np.sqrt(max(rows, columns)) * x.reshape(kernel.shape)


def norm(x):
    return np.sqrt((x**2).sum())


def one_update(name, p, g, m, v, k, rate, coupled, decoupled, adapted):
    """Update k (from 0) of one array in float64: returns the new parameter and moments."""
    if name != "lars":
        g = g + coupled * p

    def adam(nesterov=False):
        nonlocal m, v
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g**2
        m_hat = m / (1 - BETA1 ** (k + 1))
        if nesterov:  # Dozat 2016, algorithm 2, with one momentum for all steps
            m_hat = BETA1 * m / (1 - BETA1 ** (k + 2)) + (1 - BETA1) * g / (1 - BETA1 ** (k + 1))
        return m_hat / (np.sqrt(v / (1 - BETA2 ** (k + 1))) + EPSILON)

    match name:
        case "sgd":
            step = g
        case "momentum":  # Sutskever et al. 2013 in the form of PyTorch: the rate stands outside the velocity
            m = MU * m + g
            step = m
        case "nesterov":
            m = MU * m + g
            step = g + MU * m
        case "adam" | "adamw":  # Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2
            step = adam()
        case "nadamw":
            step = adam(nesterov=True)
        case "rmsprop":  # Hinton 2012, slide 29, with PyTorch's epsilon and momentum
            v = BETA2 * v + (1 - BETA2) * g**2
            m = MU * m + g / (np.sqrt(v) + EPSILON)
            step = m
        case "lamb":  # You et al. 2020, algorithm 2
            step = adam() + decoupled * p
            if adapted:
                step = norm(p) / norm(step) * step
            decoupled = 0.0
        case "lars":  # You et al. 2017, equation 6 and algorithm 1
            local = TRUST * norm(p) / (norm(g) + coupled * norm(p)) if adapted else 1.0
            m = MU * m + local * (g + coupled * p)
            step = m
        case "lion":  # Chen et al. 2023, algorithm 2
            step = np.sign(BETA1 * m + (1 - BETA1) * g)
            m = BETA2 * m + (1 - BETA2) * g
        case "muon":
            if p.ndim > 1:
                m = MU * m + g
                step = newton_schulz(g + MU * m)
            else:
                step = adam()
    return p - rate * (step + decoupled * p), m, v


@pytest.mark.parametrize(
    ("decay", "kind", "which"),
    [(DECAY, "coupled", "kernels"), (DECAY, "decoupled", "kernels"), (DECAY, "auto", "all")],
)
@pytest.mark.parametrize("name", NAMES)
def test_optimizer(name, decay, kind, which):
    steps, learning_rates = 5, [0.15, 0.3, 0.3, 0.2, 0.1]
    schedule = create_schedule("linear", 0.3, total_steps=steps, warmup_steps=2)
    optimizer = create(schedule, name=name, weight_decay=decay, decay_kind=kind, decay=which, **HYPER)

    flat, gradients = normal(0), [normal(1 + k) for k in range(steps)]
    params = nested(flat)
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(nested(gradient), state, params, learning_rate_scale=np.float32(1))
        params = optax.apply_updates(params, updates)

    coupled = kind == "coupled" or (kind == "auto" and name in COUPLED)
    for path, p in flat.items():
        p = p.astype(np.float64)
        chosen = which == "all" or path.endswith("kernel")
        added, shrunk = (decay * chosen * coupled, decay * chosen * (not coupled))
        m = v = np.zeros_like(p)
        for k, (gradient, rate) in enumerate(zip(gradients, learning_rates, strict=True)):
            g = gradient[path].astype(np.float64)
            p, m, v = one_update(name, p, g, m, v, k, rate, added, shrunk, chosen)
        layer, leaf = path.split("/")
        np.testing.assert_allclose(params[layer][leaf], p, rtol=2e-5, atol=2e-6, err_msg=path)

    # Exactly half as far from here, decay included, and no other state.
    whole, after = update(nested(gradients[0]), state, params, learning_rate_scale=np.float32(1))
    half, after_half = update(nested(gradients[0]), state, params, learning_rate_scale=np.float32(0.5))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b / 2), half, whole)
    jax.tree.map(np.testing.assert_array_equal, after_half, after)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_trust_ratio_where_a_norm_is_zero(name):
    """A kernel that starts at zero must leave it, and one without a gradient must stay a number."""
    optimizer = create(name=name)
    params = {"zero": jnp.zeros((2, 2)), "one": jnp.ones((2, 2))}
    grads = {"zero": jnp.ones((2, 2)), "one": jnp.zeros((2, 2))}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["zero"], -1.0, rtol=1e-5)
    np.testing.assert_array_equal(updates["one"], 0.0)


def test_muon_makes_kernels_orthogonal():
    """Singular values near 1 (times the factor), whatever the gradient's were, and no update from no gradient."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 6)))[0] for n in (18, 6))
    gradient = (u * [100, 50, 30, 20, 15, 10] @ v.T).reshape(3, 3, 2, 6).astype(np.float32)
    optimizer = create(name="muon", momentum=0.0)
    params = {"kernel": np.zeros((3, 3, 2, 6), np.float32)}
    updates, state = optimizer.update({"kernel": gradient}, optimizer.init(params), params)
    singular = np.linalg.svd(np.reshape(updates["kernel"], (18, 6)), compute_uv=False) / (0.2 * np.sqrt(18))
    assert (singular > 0.6).all() and (singular < 1.3).all()
    assert np.sqrt(np.mean(np.square(updates["kernel"]))) == pytest.approx(0.2, rel=0.2)
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), state, params)
    np.testing.assert_array_equal(updates["kernel"], 0.0)


@pytest.mark.parametrize("layer", ["output", "aux1/fc2"])
def test_muon_leaves_the_layers_of_the_classes_to_adam(layer):
    """Jordan et al. 2024: "Muon should only be used for hidden weight layers". Adam's first step is all signs."""
    optimizer = create(name="muon", epsilon=1e-12)
    gradient = normal(0)["conv1/kernel"]
    tree = functools.reduce(lambda tree, name: {name: tree}, reversed([*layer.split("/"), "kernel"]), gradient)
    params = {"hidden": {"kernel": gradient}} | tree
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    (last,) = jax.tree.leaves({name: of for name, of in updates.items() if name != "hidden"})
    np.testing.assert_allclose(last, -np.sign(gradient), rtol=1e-5)
    np.testing.assert_allclose(updates["hidden"]["kernel"], -newton_schulz(1.0 * gradient), rtol=1e-4, atol=1e-5)


def test_what_learns_beside_muon_may_be_nesterov():
    optimizer = create(name="muon", rest="nesterov", **HYPER)
    flat, velocity = normal(0), {}
    params, gradients = nested(flat), [normal(1), normal(2)]
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(nested(gradient), state, params)
        for path in ("conv1/bias", "norm/scale"):
            velocity[path] = BETA1 * velocity.get(path, 0) + gradient[path]
            np.testing.assert_allclose(flatten(updates)[path], -(gradient[path] + BETA1 * velocity[path]), rtol=1e-5)


def test_muon_renormalises_its_kernels():
    """Each kernel becomes one of root mean square 0.2, from which the update is taken away; nothing else does."""
    fields = {"name": "muon", "momentum": 0.5}
    plain, renormalising = create(**fields), create(**fields, renormalise=True)
    flat, gradient = normal(0, scale=3.0), nested(normal(1))
    flat["conv2/kernel"][:] = 0.0  # has no size to scale
    params = nested(flat)
    updates, _ = plain.update(gradient, plain.init(params), params, learning_rate_scale=np.float32(0.3))
    after, _ = renormalising.update(gradient, renormalising.init(params), params, learning_rate_scale=np.float32(0.3))
    for path, update in flatten(updates).items():
        kernel = flat[path].astype(np.float64)
        if path in ("conv1/kernel", "head/kernel"):
            kernel = 0.2 * kernel / np.sqrt(np.mean(kernel**2))
        np.testing.assert_allclose(flat[path] + flatten(after)[path], kernel + update, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ clipping


def unit_norms(x):
    """Brock et al. 2021, section 4: of each output unit; a vector is one unit, as in the authors' code."""
    axes = tuple(range(x.ndim - 1)) if x.ndim > 1 else None
    return np.sqrt((x**2).sum(axes, keepdims=True))


def clipped(kind, threshold, grads, params):
    match kind:
        case "global_norm":  # Pascanu et al. 2013, algorithm 1
            total = np.sqrt(sum((g**2).sum() for g in grads.values()))
            return {path: g * min(1, threshold / total) for path, g in grads.items()}
        case "value":
            return {path: np.clip(g, -threshold, threshold) for path, g in grads.items()}
        case "adaptive":
            largest = {path: threshold * np.maximum(unit_norms(p), 1e-3) for path, p in params.items()}
            return {path: g * np.minimum(1, largest[path] / unit_norms(g)) for path, g in grads.items()}


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("kind", "threshold"), [("global_norm", 2.0), ("value", 0.5), ("adaptive", 0.1)])
def test_clipping(kind, threshold, scale):
    params, grads = normal(0), normal(1, scale)
    params["norm/scale"][:] = 0
    # A coupled decay is added to what has been clipped.
    optimizer = create(name="sgd", clip=kind, clip_threshold=threshold, weight_decay=DECAY)
    updates, _ = jax.jit(optimizer.update)(nested(grads), optimizer.init(nested(params)), nested(params))
    expected = clipped(kind, threshold, grads, params)
    for path, update in flatten(updates).items():
        decay = DECAY * params[path] * path.endswith("kernel")
        np.testing.assert_allclose(-update, expected[path] + decay, rtol=1e-5, atol=1e-7, err_msg=path)


# ------------------------------------------------------------------------------- freezing, multipliers, lookahead


@pytest.mark.parametrize("name", ["momentum", "lamb", "lars", "muon"])  # each with another kind of state or mask
def test_frozen_parameters_are_as_if_there_were_none(name):
    frozen = {"conv1/kernel", "conv1/bias", "norm/scale"}
    fields = {"name": name, "weight_decay": DECAY, "decay": "all", "clip": "global_norm", "lookahead_steps": 2}
    optimizer = create(freeze=("^conv1/", "scale$"), **fields)
    alone = create(**fields)
    flat, gradients = normal(0), [normal(k, scale=0.2) for k in range(1, 4)]
    flat["conv1/bias"][:] = -0.0
    params, rest = nested(flat), {path: value for path, value in flat.items() if path not in frozen}
    state, alone_state = jax.jit(optimizer.init)(params), jax.jit(alone.init)(rest)
    assert sum(x.size for x in jax.tree.leaves(state)) == sum(x.size for x in jax.tree.leaves(alone_state))
    update, alone_update = jax.jit(optimizer.update), jax.jit(alone.update)
    for gradient in gradients:
        updates, state = update(nested(gradient), state, params)
        params = optax.apply_updates(params, updates)
        updates, alone_state = alone_update({path: gradient[path] for path in rest}, alone_state, rest)
        rest = optax.apply_updates(rest, updates)
    for path, value in flatten(params).items():
        if path in frozen:
            assert value.tobytes() == flat[path].tobytes(), path  # minus zeros too
        else:
            np.testing.assert_allclose(value, rest[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_learning_rate_multipliers():
    """Of the first pattern that is found; of decoupled decay too."""
    multipliers = ("^head=10", "kernel$=0.5", "conv1|head=3")
    expected = {"conv1/kernel": 0.5, "conv1/bias": 3, "conv2/kernel": 0.5, "norm/scale": 1, "head/kernel": 10}
    fields = {"name": "adamw", "weight_decay": DECAY, "decay": "all"}
    params, grads = nested(normal(0)), nested(normal(1))
    updates = []
    for optimizer in (create(**fields), create(**fields, learning_rate_multipliers=multipliers)):
        updates.append(flatten(jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0]))
    plain, multiplied = updates
    for path, factor in expected.items():
        np.testing.assert_allclose(multiplied[path], factor * plain[path], rtol=1e-6, err_msg=path)


def test_lookahead():
    """Zhang et al. 2019, algorithm 1, around gradient descent with momentum, whose velocity goes on."""
    steps, alpha, rate = 3, 0.4, 0.1
    optimizer = create(
        optax.constant_schedule(rate), name="momentum", momentum=MU, lookahead_steps=steps, lookahead_alpha=alpha
    )
    flat = normal(0)
    params, update = nested(flat), jax.jit(optimizer.update)
    state = jax.jit(optimizer.init)(params)
    fast = {path: p.astype(np.float64) for path, p in flat.items()}
    slow, velocity = dict(fast), dict.fromkeys(flat, 0.0)
    for k in range(1, 9):
        gradient, scale = normal(k), 0.5 if k > 4 else 1.0
        updates, state = update(nested(gradient), state, params, learning_rate_scale=np.float32(scale))
        params = optax.apply_updates(params, updates)
        for path in fast:
            velocity[path] = MU * velocity[path] + gradient[path]
            fast[path] = fast[path] - rate * scale * velocity[path]
            if k % steps == 0:
                slow[path] = slow[path] + alpha * (fast[path] - slow[path])
                fast[path] = slow[path]
        for path, value in flatten(params).items():
            np.testing.assert_allclose(value, fast[path], rtol=1e-5, atol=1e-6, err_msg=f"{path} after {k}")


# ------------------------------------------------------------------ every optimizer with every schedule learns

# The peak for the network below; what Adam and its kin are given is about a tenth of what gradient descent is.
PEAKS = {
    **{"sgd": 0.5, "momentum": 0.1, "nesterov": 0.1, "rmsprop": 0.001, "lars": 0.2, "lion": 0.003},
    **{"adam": 0.02, "adamw": 0.02, "nadamw": 0.02, "lamb": 0.05, "muon": 0.02},
}
STEPS = 120


@functools.cache
def digits():
    """32 digits as the 3x3 patches that a convolution sees of them, [32, 6, 6, 3, 3, 1], and their labels."""
    examples = open_source("digits", "train").__getitems__(range(32))
    images = np.stack([example["image"] for example in examples]).astype(np.float32) / 255 - 0.3
    patches = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
    return np.moveaxis(patches, 3, -1), np.array([example["label"] for example in examples])


def logits(params, patches):
    """A convolution, written as a product because a loop's convolutions are slow on a CPU, and a dense layer."""
    x = jnp.einsum("nhwijc,ijcf->nhwf", patches, params["conv"]["kernel"]) + params["conv"]["bias"]
    x = jax.nn.relu(x).reshape(len(patches), -1)
    return x @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize("name", NAMES)
def test_overfits_one_batch_with_every_schedule(name):
    lengths = {"total_steps": STEPS, "warmup_steps": 10, "boundaries": (60, 90), "multipliers": (0.5, 0.1)}
    fields = {"period": 40, "power": 2.0, "factor": 0.3}
    schedules = [create_schedule(s, PEAKS[name], **lengths, **fields) for s in CHOICES["schedule.name"]]
    table = np.stack([jax.vmap(schedule)(np.arange(STEPS)) for schedule in schedules])
    patches, labels = digits()
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": rng.normal(scale=0.5, size=(3, 3, 1, 8)), "bias": np.zeros(8)},
        "head": {"kernel": rng.normal(scale=0.06, size=(288, 10)), "bias": np.zeros(10)},
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, patches), labels).mean()

    @jax.jit
    @jax.vmap  # all schedules at once, as rows of a table
    def train(rates):
        # The default coefficient is for rates of 10 and more, with which only normalised networks' biases could live.
        optimizer = create(lambda count: rates[count], name=name, weight_decay=1e-4, trust_coefficient=0.05)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (trained, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)
        return loss(trained), jnp.mean(jnp.argmax(logits(trained, patches), -1) == labels)

    losses, accuracies = train(table)
    told = dict(zip(CHOICES["schedule.name"], np.round(losses, 4).tolist(), strict=True))
    assert (accuracies == 1).all() and (losses < 0.1).all(), told
