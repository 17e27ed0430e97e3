# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cnn-research/cnn-research/blob/main/notebooks/06_where_it_fails.ipynb)
#
# # Where it fails
#
# An accuracy is one number. Which classes are confused, which images are wrong and how surely, can the confidences be
# trusted, which images are alike to the network, and which labels are probably wrong?
#
# Takes about a minute on two CPU cores.

# %% [markdown]
# ## Set-up
#
# Installs the package where it is missing, such as on Colab, and changes nothing else.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("cnn_research") is None:
    source = "cnn-research @ git+https://github.com/cnn-research/cnn-research"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import jax
import numpy as np

from cnn_research.config import base_config
from cnn_research.data.sources import open_source
from cnn_research.explain import embedding, figures, metrics
from cnn_research.explain.embedding_map import embedding_map
from cnn_research.explain.gallery import Caption, captions, gallery
from cnn_research.inference import Predictor
from cnn_research.training.loop import train
from cnn_research.training.workdir import load_config
from cnn_research.training.writers import read_metrics

print("jax", jax.__version__, "on", jax.default_backend())

# %% tags=["parameters"]
RUN = ""  # folder of a finished run of yours; "" to train a small network on drawn shapes, in half a minute
SEED = 0

# %% [markdown]
# ## A network

# %%
if not RUN:
    RUN = tempfile.mkdtemp(prefix="where_")
    config = base_config()
    config.seed = SEED
    config.model.name = "convnet"
    config.model.filters = (16, 32, 32)
    config.model.batch_norm = "after_conv"
    config.model.dense = (64,)
    config.dataset.name = "shapes"
    config.dataset.train_split = "train[:2500]"
    config.dataset.eval_split = config.dataset.test_split = "test[:1000]"
    config.dataset.mean, config.dataset.std = (0.47,), (0.25,)
    config.batch_size = 64
    config.duration = "5ep"
    config.schedule.warmup = "10%"
    train(config, RUN)

figures.learning_curves({"run": read_metrics(Path(RUN, "metrics.jsonl"))})

# %%
predictor = Predictor.from_workdir(RUN)
dataset, classes = load_config(Path(RUN)).dataset, predictor.classes
test_set = open_source(dataset.name, dataset.test_split, dataset.data_dir)
examples = test_set.__getitems__(range(min(1000, len(test_set))))
labels = np.array([example["label"] for example in examples])
predictions = predictor.predict([example["image"] for example in examples])
probabilities = np.array([prediction.confidences for prediction in predictions])
# What the network sees, and as its input: resized and cropped as the run does it, and normalised.
photos, images = predictor.central_views(np.stack([prediction.image for prediction in predictions]))


def show(indices, title):
    """Some of the test images, with what they are taken for."""
    indices = list(indices)
    if not indices:
        return print(title + ": none")
    chosen = captions(probabilities[indices], labels[indices], classes)
    return gallery(photos[indices], chosen, title=title)


accuracy = metrics.accuracy(probabilities, labels)
print(f"{accuracy.right} of {accuracy.total} right: {accuracy.value:.1%}")
print(f"on endless images of this kind, with 95 % confidence: {accuracy.low:.1%} to {accuracy.high:.1%}")

# %% [markdown]
# ## Which classes?
#
# *Precision*: of those that were called a cross, how many are one? *Recall*: of the crosses, how many were called one?

# %%
figures.class_scores(metrics.per_class(probabilities, labels, classes))

# %%
matrix = metrics.confusion_matrix(probabilities, labels)
figures.confusion(matrix, classes)

# %%
figures.confused_pairs(metrics.most_confused(matrix), classes)

# %% [markdown]
# ## Which images?
#
# The largest losses are those where the right class got the least. Mistakes that the network is sure of are the most
# worth looking at: often it is the label that is wrong, or something in the picture that no one had thought of.

# %%
show(metrics.top_losses(probabilities, labels, 16), "Largest losses")

# %%
show(metrics.confident_mistakes(probabilities, labels, 8), "Surest mistakes")

# %% [markdown]
# ## Can its confidence be trusted?
#
# Of all answers with a confidence of about 80 %, about 80 % should be right: then the bars end at the diagonal.

# %%
figures.reliability(metrics.calibration(probabilities, labels), accuracy)

# %% [markdown]
# ## Which images are alike?
#
# Before its last layer, a network describes an image by some dozens of numbers. Images with similar ones are alike to
# it. In the plane (t-SNE), classes are islands, and what lies between two islands is hard to tell.

# %%
features = embedding.features(predictor.model, predictor.variables, np.asarray(images))
few = slice(0, 400)
embedding_map(embedding.project(features[few], "tsne", seed=SEED), labels[few], classes, photos[few])

# %% [markdown]
# The nearest neighbours of a mistake (or of the first image, where there is none):

# %%
mistakes = metrics.top_losses(probabilities, labels, 1)
query = int(mistakes[0]) if len(mistakes) else 0
nearest, distances = embedding.neighbours(features, 7)
names = [Caption(f"this one: {classes[labels[query]]}")]
names += [Caption(f"{classes[labels[i]]}, {d:.2f}") for i, d in zip(nearest[query], distances[query], strict=True)]
gallery(photos[[query, *nearest[query]]], names)

# %% [markdown]
# Grouped by k-means, without looking at the labels: how pure are the groups? And which images are like no other?

# %%
groups = embedding.clusters(features, labels, seed=SEED)
for size, label, share in zip(groups.sizes, groups.labels, groups.shares, strict=True):
    print(f"{size:5} images, {share:.0%} of them {classes[label]}")
print(f"purity {groups.purity:.1%}")

# %%
show(np.argsort(-embedding.outliers(features))[:8], "Like no other")

# %% [markdown]
# ## Which labels are wrong?
#
# Drawn shapes have no wrong labels, so let us make some: 20 test images get another class. The network wasn't trained
# on them, so that its opinion counts. How many of the 20 are among the suspects?

# %%
generator = np.random.default_rng(SEED)
wrong = generator.choice(len(labels), 20, replace=False)
damaged = labels.copy()
damaged[wrong] = (damaged[wrong] + generator.integers(1, len(classes), 20)) % len(classes)
suspects, seems = embedding.label_errors(probabilities, damaged)
print(f"{len(suspects)} suspects; {len(set(suspects) & set(wrong))} of the 20 are among them")

# %%
shown = suspects[:16]
names = [
    Caption(f"label: {classes[damaged[i]]}\nrather {classes[k]}", bool(i in wrong))
    for i, k in zip(shown, seems[:16], strict=True)
]
gallery(photos[shown], names, title="Suspect labels (green: indeed wrong)") if len(shown) else None

# %% [markdown]
# ## Try it yourself
#
# 1. Look at all mistakes with one pair of classes: `np.flatnonzero((labels == 1) & (probabilities.argmax(1) == 0))`.
# 2. Train with `config.loss.label_smoothing = 0.2`. What happens to the reliability diagram?
# 3. Map the pixels themselves instead of the features: `embedding.project(photos.reshape(len(photos), -1) / 255)`.
# 4. Make 200 labels wrong instead of 20. Are they still found?
# 5. Set `RUN` to a run of yours, such as one of CIFAR-10.
