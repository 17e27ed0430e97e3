"""A set of images as a network sees them: each is a point, and alike ones are close together.

The point is what the network's last layer sees of the image. Maps show points in the plane; neighbours, clusters and
outliers are found among them, and wrong labels from what the network says.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from cnn_research.explain import layers, metrics

METHODS = ("pca", "tsne", "umap")
_TSNE_INPUT = 50  # dimensions: distances mean little among more, and take longer to compute


def last_input(model: nn.Module, variables: layers.Variables, images: jax.Array) -> str:
    """The path, for `layers.activations`, of what the last fully-connected layer is given.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C], or a `jax.ShapeDtypeStruct` of the kind: nothing is computed.

    Raises:
        ValueError: the network has no layer with a matrix for a kernel.
    """
    paths = layers.list_layers(model, variables, images)
    for path in reversed(paths):
        parameters = variables["params"]
        for name in path.partition("#")[0].split("/"):
            parameters = parameters.get(name, {})
        if "kernel" in parameters and parameters["kernel"].ndim == 2:
            return f"{path}:input"
    raise ValueError(f"no fully-connected layer, so name one of the layers: {', '.join(paths)}")


def features(
    model: nn.Module,
    variables: layers.Variables,
    images: np.ndarray,
    layer: str | None = None,
    batch_size: int = 256,
) -> np.ndarray:
    """What a layer says of each image, as a direction: float32[N, D], rows of length 1, maps averaged over pixels.

    The length of what a layer says tells how surely it says it; without it, neighbours are of one class more often.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C], preprocessed.
        layer: a path as in `layers.activations`; by default what the last fully-connected layer is given.
        batch_size: images at once.

    Raises:
        ValueError: no images, or the network has no such layer.
    """
    if not len(images):
        raise ValueError("there are no images to compute features of")
    path = layer or last_input(model, variables, jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32))

    @jax.jit
    def compute(variables: layers.Variables, batch: jax.Array) -> jax.Array:
        value = layers.activations(model, variables, batch, [path])[path]
        if value.ndim == 4:
            value = value.mean(axis=(1, 2))
        return value.reshape(len(batch), -1).astype(jnp.float32)

    batch_size = min(batch_size, len(images))
    parts = []
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size], np.float32)
        # The last batch is filled up, as another size would be compiled anew.
        missing = batch_size - len(batch)
        filled = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.float32)])
        parts.append(np.asarray(compute(variables, filled))[: len(batch)])
    found = np.concatenate(parts)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def project(features: np.ndarray, method: str = "pca", seed: int = 0) -> np.ndarray:
    """Lays points out in the plane: float32[N, 2].

    PCA keeps distances as far as two dimensions can. t-SNE (van der Maaten & Hinton 2008) and UMAP (McInnes et al.
    2018) keep neighbours together; how far apart groups are, and how large, means little. t-SNE of 1,000 points takes
    about ten seconds, and more than in proportion for more.

    Args:
        features: float[N, D], N >= 4.
        method: "pca", "tsne" or "umap", which the extra `explain` brings.
        seed: of what is random in the method.

    Raises:
        ValueError: an unknown method, too few points, or UMAP isn't installed.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if len(features) < 4:
        raise ValueError(f"a map takes at least 4 points, got {len(features)}")
    if method == "umap":
        try:
            import umap
        except ImportError:
            raise ValueError('UMAP is not installed: pip install umap-learn, or choose "pca" or "tsne"') from None
        # With a seed it runs in one thread, and would warn of that.
        points = umap.UMAP(n_neighbors=min(15, len(features) - 1), random_state=seed, n_jobs=1).fit_transform(features)
    else:
        wanted = 2 if method == "pca" else min(_TSNE_INPUT, *features.shape)
        points = PCA(wanted, random_state=seed).fit_transform(features)
        if method == "tsne":
            perplexity = min(30, (len(features) - 1) / 3)
            # After 500 steps neighbours are as faithful as after sklearn's 1,000.
            points = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=seed).fit_transform(points)
    return points.astype(np.float32)


def neighbours(features: np.ndarray, k: int = 8, queries: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The k points nearest to each query, nearest first.

    Args:
        features: float[N, D].
        k: at most N, without `queries` N - 1.
        queries: float[M, D]; by default the points themselves, each of which is then no neighbour of its own.

    Returns:
        Their indices, int[M, k], and Euclidean distances, float[M, k].

    Raises:
        ValueError: there are no k neighbours.
    """
    most = len(features) - (queries is None)
    if not 0 < k <= most:
        raise ValueError(f"k must be between 1 and the number of other points, {most}, got {k}")
    distances, indices = NearestNeighbors(n_neighbors=k).fit(features).kneighbors(queries)
    return indices, distances


def outliers(features: np.ndarray, k: int = 10) -> np.ndarray:
    """How far each point is from the others, as the mean distance to its k nearest: float[N].

    The largest are images like no other, broken ones among them.

    Args:
        features: float[N, D].
        k: neighbours; smaller than N.

    Raises:
        ValueError: there are no k neighbours.
    """
    return neighbours(features, k)[1].mean(axis=1)


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Groups of points that k-means finds without their labels, and what the labels say of them.

    Attributes:
        assignment: int[N], the cluster of each point, from the largest cluster to the smallest.
        sizes: int[k].
        labels: int[k], the most frequent label in each.
        shares: float[k], of that label in it.
        purity: share of all points that have the most frequent label of their cluster (Manning et al. 2008,
            Introduction to information retrieval, section 16.3): 1 if each cluster holds a single class.
    """

    assignment: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    shares: np.ndarray
    purity: float


def clusters(features: np.ndarray, labels: np.ndarray, k: int | None = None, seed: int = 0) -> Clusters:
    """Groups points by k-means and compares the groups with the labels.

    Args:
        features: float[N, D].
        labels: int[N], from 0.
        k: clusters; by default as many as there are different labels.
        seed: of the first centres.

    Raises:
        ValueError: k isn't between 1 and N.
    """
    k = len(np.unique(labels)) if k is None else k
    if not 1 <= k <= len(features):
        raise ValueError(f"k must be between 1 and the number of points, {len(features)}, got {k}")
    found = KMeans(k, n_init=10, random_state=seed).fit_predict(features)
    counts = np.zeros((k, labels.max() + 1), int)
    np.add.at(counts, (found, labels), 1)
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    counts = counts[order]
    sizes, frequent = counts.sum(axis=1), counts.max(axis=1)
    return Clusters(
        np.argsort(order)[found], sizes, counts.argmax(axis=1), frequent / sizes, float(frequent.sum() / len(labels))
    )


def label_errors(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Examples whose label is probably wrong, by confident learning, the likeliest first.

    Northcutt, Jiang & Chuang 2021, Confident learning: estimating uncertainty in dataset labels. First it counts how
    often what is labelled i is confidently of class j, that is with at least the mean probability of j among the
    examples labelled j (of several such classes the most probable one counts). Scaled to all examples labelled i,
    those, too, of which nothing is said with confidence, that is how many labels i should be j (section 3.1, equation
    3); and so many with the largest margin between the two probabilities are suspect (section 3.2, prune by noise
    rate).

    Args:
        probabilities: float[N, K] of a network that wasn't trained on these examples: one that was repeats their
            errors with confidence.
        labels: int[N].

    Returns:
        Indices of the suspects, int[S], and the classes that they seem to be of, int[S].

    Raises:
        ValueError: the arrays aren't probabilities and labels.
    """
    metrics.check(probabilities, labels)
    size = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=size)
    # Nothing is confidently of a class that no label names.
    sums = np.bincount(labels, weights=own, minlength=size)
    thresholds = np.where(counts, sums / np.maximum(counts, 1), np.inf)
    # The mean of equal numbers may be rounded to a little more than they are.
    confident = np.where(probabilities >= thresholds - 1e-9, probabilities, -1)
    sure = confident.max(axis=1) >= 0
    joint = np.zeros((size, size))
    np.add.at(joint, (labels[sure], confident[sure].argmax(axis=1)), 1)
    wrong = np.rint(joint / np.maximum(joint.sum(axis=1, keepdims=True), 1) * counts[:, None]).astype(int)

    margins = probabilities.max(axis=1) - own
    suspects: set[int] = set()
    for label, other in zip(*np.nonzero(wrong * ~np.eye(size, dtype=bool)), strict=True):
        here = np.flatnonzero(labels == label)
        order = np.argsort(own[here] - probabilities[here, other], kind="stable")
        suspects.update(here[order[: wrong[label, other]]].tolist())
    # What is predicted as it is labelled is no suspect, whatever the numbers say.
    ranked = np.array(sorted((i for i in suspects if margins[i] > 0), key=lambda i: (-margins[i], i)), int)
    return ranked, probabilities[ranked].argmax(axis=1)
