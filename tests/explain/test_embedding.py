"""Images as points: on networks of the test's own, groups that are planted, and label errors that are."""

import sys

import jax
import numpy as np
import pytest
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from cnn_research.explain import embedding
from cnn_research.models import registry


class Users(nn.Module):
    """Not of the zoo: two fully-connected layers, of which the last is called before something without a kernel."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3), name="eyes")(x))
        x = nn.relu(nn.Dense(6, name="thoughts")(x.mean(axis=(1, 2))))
        return nn.LayerNorm(name="calm")(nn.Dense(3, name="mouth")(x))


class WithoutDense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(3, (3, 3), name="eyes")(x).mean(axis=(1, 2))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(7, 8, 8, 1)).astype(np.float32)


def blobs(k=3, n=15, dimensions=20, distance=12.0):
    """Groups of normally distributed points around far centres."""
    rng = np.random.default_rng(0)
    labels = np.arange(k * n) % k
    return distance * np.eye(k, dimensions)[labels] + rng.normal(size=(k * n, dimensions)), labels


def test_features_are_what_the_last_layer_is_given(images):
    model = Users()
    variables = model.init(jax.random.key(0), images)
    assert embedding.last_input(model, variables, images) == "mouth:input"
    # By hand: the layers before the last one, applied alone.
    params = variables["params"]
    maps = nn.relu(nn.Conv(5, (3, 3)).apply({"params": params["eyes"]}, images))
    expected = np.asarray(nn.relu(nn.Dense(6).apply({"params": params["thoughts"]}, maps.mean(axis=(1, 2)))))
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    found = embedding.features(model, variables, images, batch_size=3)  # the last batch has one image
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_features_of_a_named_layer_are_averaged_over_its_maps(images):
    model = WithoutDense()
    variables = model.init(jax.random.key(0), images)
    found = embedding.features(model, variables, images, layer="eyes")
    expected = np.asarray(model.apply(variables, images))
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ValueError, match="no fully-connected layer, so name one of the layers: eyes"):
        embedding.features(model, variables, images)
    with pytest.raises(ValueError, match="no layer 'ears'"):
        embedding.features(model, variables, images, layer="ears")


@pytest.mark.parametrize(
    ("name", "shape", "width"),
    # LeNet-5's F6 has 84 units; the last maps of a CIFAR ResNet have 64 channels.
    [("lenet5", (28, 28, 1), 84), ("resnet20", (32, 32, 3), 64)],
)
def test_features_of_the_zoo(name, shape, width):
    model = registry.create_model(name, num_classes=10)
    x = jax.ShapeDtypeStruct((2, *shape), np.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    assert embedding.features(model, zeros, np.zeros(x.shape, np.float32)).shape == (2, width)


def test_features_need_images(images):
    with pytest.raises(ValueError, match="no images"):
        embedding.features(Users(), {}, images[:0])


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_groups_stay_together_on_a_map(method):
    points, labels = blobs()
    found = embedding.project(points, method)
    assert (found.shape, found.dtype) == ((45, 2), np.float32)
    nearest, _ = embedding.neighbours(found, 5)
    assert (labels[nearest] == labels[:, None]).all()
    np.testing.assert_array_equal(found, embedding.project(points, method))


@pytest.mark.full
def test_groups_stay_together_on_a_map_of_umap():
    pytest.importorskip("umap")
    points, labels = blobs()
    nearest, _ = embedding.neighbours(embedding.project(points, "umap"), 5)
    assert (labels[nearest] == labels[:, None]).all()


def test_pca_keeps_the_distances_of_a_plane():
    plane = np.random.default_rng(0).normal(size=(20, 2))
    turned = plane @ np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0][:2]
    found = embedding.project(turned)
    distances = [np.linalg.norm(p[:, None] - p, axis=-1) for p in (plane, found)]
    np.testing.assert_allclose(*distances, atol=1e-5)


def test_umap_is_missed_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match='pip install umap-learn, or choose "pca" or "tsne"'):
        embedding.project(blobs()[0], "umap")


@pytest.mark.parametrize(
    ("points", "method", "message"),
    [(np.zeros((9, 2)), "mds", "one of pca, tsne, umap, got 'mds'"), (np.zeros((3, 2)), "pca", "at least 4 points")],
)
def test_no_map(points, method, message):
    with pytest.raises(ValueError, match=message):
        embedding.project(points, method)


def test_neighbours_are_the_nearest():
    rng = np.random.default_rng(0)
    points, queries = rng.normal(size=(40, 5)), rng.normal(size=(6, 5))
    distances = np.linalg.norm(queries[:, None] - points, axis=-1)
    indices, found = embedding.neighbours(points, 3, queries)
    np.testing.assert_array_equal(indices, np.argsort(distances, axis=1)[:, :3])
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :3])


def test_a_point_is_no_neighbour_of_its_own():
    points = np.array([[0.0], [1.0], [3.0]])
    indices, distances = embedding.neighbours(points, 2)
    assert indices.tolist() == [[1, 2], [0, 2], [1, 0]]
    assert distances.tolist() == [[1, 3], [1, 2], [2, 3]]


@pytest.mark.parametrize(("k", "queries", "most"), [(3, None, 2), (0, None, 2), (4, np.zeros((1, 1)), 3)])
def test_there_must_be_neighbours(k, queries, most):
    with pytest.raises(ValueError, match=f"number of other points, {most}, got {k}"):
        embedding.neighbours(np.zeros((3, 1)), k, queries)


def test_outliers():
    # The mean distances to the two nearest: (1 + 2) / 2, (1 + 1) / 2, (1 + 2) / 2 and (8 + 9) / 2.
    assert embedding.outliers(np.array([[0.0], [1.0], [2.0], [10.0]]), k=2).tolist() == [1.5, 1, 1.5, 8.5]


def test_clusters_find_groups():
    points, labels = blobs()
    found = embedding.clusters(points, labels)
    assert (found.purity, found.sizes.tolist(), found.shares.tolist()) == (1, [15] * 3, [1] * 3)
    np.testing.assert_array_equal(found.labels[found.assignment], labels)


def test_purity_of_the_textbook():
    # Manning et al. 2008, figure 16.1: clusters of 5 x and 1 o, of 1 x, 4 o and 1 d, of 2 x and 3 d: (5 + 4 + 3) / 17.
    labels = np.array([0] * 5 + [1] + [0] + [1] * 4 + [2] + [0] * 2 + [2] * 3)
    places = np.repeat([0.0, 100.0, 200.0], [6, 6, 5])[:, None]
    found = embedding.clusters(places + np.random.default_rng(0).normal(size=(17, 1)), labels)
    assert found.purity == pytest.approx(12 / 17)
    assert found.sizes.tolist() == [6, 6, 5]  # in falling order
    assert sorted(found.shares.tolist()) == pytest.approx([3 / 5, 4 / 6, 5 / 6])
    assert [found.labels[found.assignment[i]] for i in (0, 6, 12)] == [0, 1, 2]


def test_clusters_come_from_the_largest_to_the_smallest():
    labels = np.repeat(np.arange(6), [3, 8, 5, 4, 7, 6])
    points = 50 * np.eye(6)[labels] + np.random.default_rng(0).normal(size=(33, 6))
    found = embedding.clusters(points, labels)
    assert found.sizes.tolist() == np.bincount(found.assignment).tolist() == [8, 7, 6, 5, 4, 3]
    assert found.labels.tolist() == [1, 4, 5, 2, 3, 0]
    np.testing.assert_array_equal(found.labels[found.assignment], labels)


def test_clusters_refuse_more_than_points():
    with pytest.raises(ValueError, match="number of points, 3, got 4"):
        embedding.clusters(np.zeros((3, 1)), np.array([0, 1, 1]), k=4)


def test_label_errors_by_hand():
    probabilities = np.array(
        [
            [0.9, 0.1],  # labelled 0, with .578 of it on average
            [0.9, 0.1],
            [0.2, 0.8],  # confidently 1
            [0.45, 0.55],  # of these three nothing is said with confidence
            [0.5, 0.5],
            [0.52, 0.48],
            [0.3, 0.7],  # labelled 1, with .725 of it on average
            [0.25, 0.75],
        ]
    )
    indices, classes = embedding.label_errors(probabilities, np.array([0] * 6 + [1, 1]))
    # Of three confident ones labelled 0 one is of class 1, so of all six 2 are: those with the largest margins.
    assert (indices.tolist(), classes.tolist()) == ([2, 3], [1, 1])


def test_planted_label_errors_are_found():
    images, truth = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    planted = rng.choice(len(truth), 90, replace=False)
    labels = truth.copy()
    labels[planted] = (truth[planted] + 1) % 10  # classes are taken for certain others, as the method supposes
    # Predicted by models that haven't seen the example; they are right about 98.7 % of digits.
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    probabilities = cross_val_predict(KNeighborsClassifier(8), images, labels, cv=folds, method="predict_proba")
    indices, classes = embedding.label_errors(probabilities, labels)
    right = np.isin(indices, planted)
    assert right.sum() >= 0.8 * len(planted)
    assert right.mean() >= 0.9
    assert right[:40].all()  # the likeliest come first
    assert (classes == truth[indices])[right].mean() > 0.95


def test_no_label_errors():
    indices, classes = embedding.label_errors(np.eye(3), np.arange(3))
    assert indices.size == classes.size == 0
