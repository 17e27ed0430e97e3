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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cnn-research/cnn-research/blob/main/notebooks/02_train_your_first_cnn.ipynb)
#
# # Train your first CNN
#
# First the training of the tutorials, step by step and by hand: random filters, a forward pass, the squared error, its
# gradients, an update, and again. Then the same for thousands of images by the package, and what the *head* of a
# network has to do with it: softmax, logistic regression or a support vector machine.
#
# The classes are dog, cat, boat and bird where you have CIFAR-10 (say where in `DATA_DIR`), and otherwise four drawn
# shapes, so that nothing needs to be downloaded.
#
# Takes about a minute and a half on two CPU cores.

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
from PIL import Image

from cnn_research.config import base_config
from cnn_research.data.sources import open_source
from cnn_research.explain import figures, metrics
from cnn_research.explain.gallery import Caption, captions, gallery
from cnn_research.inference import Predictor
from cnn_research.models.registry import create_model, init_variables
from cnn_research.training.loop import train
from cnn_research.training.losses import squared_error
from cnn_research.training.step import normalise
from cnn_research.training.writers import read_metrics

print("jax", jax.__version__, "on", jax.default_backend())

# %% tags=["parameters"]
DATA_DIR = ""  # folder of TFDS datasets with cifar10 prepared; "" for the drawn shapes
EPOCHS = 5  # of each of the four trainings below
SEED = 0
WORKDIR = tempfile.mkdtemp(prefix="first_cnn_")  # the folder for the runs; one of your own is kept

# %% [markdown]
# ## The images
#
# Of CIFAR-10, four classes are copied into a folder for each: that is all it takes to train on images of your own. In
# CIFAR-10 a boat is called a ship.

# %%
if DATA_DIR:
    DATASET = f"folder:{WORKDIR}/images"
    names = {"dog": "dog", "cat": "cat", "ship": "boat", "bird": "bird"}
    for split in ("train[:10000]", "test[:2500]"):
        source = open_source("cifar10", split, DATA_DIR)
        for number in range(len(source)):
            example = source[number]
            name = names.get(source.classes[example["label"]])
            if name:
                path = Path(WORKDIR, "images", split.split("[")[0], name, f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(example["image"]).save(path)
    train_split, test_split = "train", "test"
else:
    DATASET = "shapes"
    train_split, test_split = "train[:4000]", "test[:1000]"

training_set, test_set = (open_source(DATASET, split) for split in (train_split, test_split))
classes = training_set.classes
print(len(training_set), "images for training,", len(test_set), "for testing:", ", ".join(classes))

# %%
# In folders the images come class by class: take some from everywhere.
examples = [training_set[number] for number in np.random.default_rng(SEED).integers(0, len(training_set), 16)]
gallery([example["image"] for example in examples], [Caption(classes[example["label"]]) for example in examples])

# %% [markdown]
# ## Training, step by step
#
# **Step 1: random weights.** LeNet-5 has two layers of filters and three fully-connected ones. All of its weights start
# as random numbers.

# %%
MEAN, STD = (0.47,), (0.25,)  # pixels are scaled to [0, 1], and then to a mean of about 0 and a deviation of about 1
model = create_model("lenet5", num_classes=len(classes))
variables = init_variables(model, jax.random.key(SEED), (32, 32, 3))
print(sum(leaf.size for leaf in jax.tree.leaves(variables)), "weights")

# %% [markdown]
# **Step 2: forward.** An image goes through convolution, ReLU, pooling and the fully-connected layers. Out comes
# a probability for each class. Since the weights are random, so are the probabilities.

# %%
one = examples[0]
image = normalise(one["image"][None], MEAN, STD)
label = np.array([one["label"]])


def show(params):
    """Prints target and output for the one image, and the error between them."""
    logits = model.apply({"params": params}, image)
    for name, target, output in zip(classes, np.eye(len(classes))[label[0]], jax.nn.softmax(logits)[0], strict=True):
        print(f"{name:10} target {target:.0f}   output {output:.2f}")
    print(f"error      {squared_error(logits, label)[0]:.4f}")


show(variables["params"])

# %% [markdown]
# **Step 3: the error.** It is the sum over the classes of ½ (target − output)², as printed above: 0 for a perfect
# answer.
#
# **Step 4: gradients and update.** Backpropagation tells for each weight whether the error grows or shrinks with it.
# Each takes a small step downhill. After one step, the same image gives a slightly better output:


# %%
@jax.jit
def step(params, rate):
    def error(params):
        return squared_error(model.apply({"params": params}, image), label).mean()

    value, gradients = jax.value_and_grad(error)(params)
    return jax.tree.map(lambda weight, gradient: weight - rate * gradient, params, gradients), value


params, _ = step(variables["params"], 0.001)
show(params)

# %% [markdown]
# **Step 5: again.** After some more steps the network is sure of this one image:

# %%
for number in range(1, 61):
    params, value = step(params, 0.001)
    if number % 10 == 0:
        print(f"after {number} steps: error {value:.4f}")
show(params)

# %% [markdown]
# It has learned a single image by heart, and probably calls everything like that now. To learn what a class looks like
# it needs many images, a few at a time in a new order in each *epoch*.

# %% [markdown]
# ## Training on all images
#
# The same five steps, by the package: an experiment is a config, and `train` does the rest. What differs from one run
# to the next is the loss, and with it what the four numbers at the end of the network mean:
#
# | `config.loss.name` | the head is | it asks |
# |---|---|---|
# | `softmax_cross_entropy` | softmax | which of the classes? The probabilities add up to 1 |
# | `sigmoid` | a logistic regression for each class | is it this class or not? |
# | `hinge` | a multiclass support vector machine | is the right class ahead of the others by a margin of 1? |
# | `squared_error` | softmax, with the error from above | how far are the probabilities from the target? |


# %%
def experiment(loss, learning_rate):
    config = base_config()
    config.seed = SEED
    config.model.name = "lenet5"
    config.dataset.name = DATASET
    config.dataset.train_split = train_split
    config.dataset.eval_split = config.dataset.test_split = test_split
    config.dataset.mean, config.dataset.std = MEAN, STD
    config.augment = "flip"
    config.batch_size = 64
    config.duration = f"{EPOCHS}ep"
    config.schedule.warmup = "10%"
    config.loss.name = loss
    config.optimizer.learning_rate = learning_rate
    return config


# Gradients of these losses differ in size, and so do the learning rates that suit them.
learning_rates = {"softmax_cross_entropy": 0.05, "sigmoid": 0.2, "hinge": 0.05, "squared_error": 0.2}
for loss, learning_rate in learning_rates.items():
    results = train(experiment(loss, learning_rate), f"{WORKDIR}/{loss}")
    print(f"{loss:22} test accuracy {results['test']['accuracy']:.3f}, {results['train_seconds']:.0f} s")

# %% [markdown]
# The curves tell how it went (dashed: in training, solid: on the test images). The training loss is each run's own; the
# loss on the test images is the cross-entropy for all four, so that it can be compared. It judges probabilities, which
# logistic regressions and support vector machines don't aim at: theirs may be higher at the same accuracy.

# %%
figures.learning_curves({loss: read_metrics(Path(WORKDIR, loss, "metrics.jsonl")) for loss in learning_rates})

# %% [markdown]
# ## What has it learned?
#
# The folder of a run holds all that is needed to use the network. Its answers to test images, with how sure it is:

# %%
predictor = Predictor.from_workdir(f"{WORKDIR}/softmax_cross_entropy")
tests = [test_set[number] for number in np.random.default_rng(SEED).permutation(len(test_set))[:1000]]
labels = np.array([example["label"] for example in tests])
predictions = predictor.predict(np.stack([example["image"] for example in tests]))
probabilities = np.stack([prediction.confidences for prediction in predictions])
gallery([example["image"] for example in tests[:24]], captions(probabilities[:24], labels[:24], classes))

# %% [markdown]
# How often is it right, and how sure can one be of that, with so many images?

# %%
accuracy = metrics.accuracy(probabilities, labels)
print(f"{accuracy.value:.1%} right; the interval of 95 % is {accuracy.low:.1%} to {accuracy.high:.1%}")
figures.confusion(metrics.confusion_matrix(probabilities, labels), classes)

# %% [markdown]
# ## Try it yourself
#
# 1. Train longer (`EPOCHS = 20`). Does the gap between the losses of training and test grow?
# 2. Which of the four heads is best with another `SEED`? Is the difference larger than the interval above?
# 3. Train on 400 images instead of 4000, by `train_split = "train[:400]"`. How does the squared error do?
# 4. Put pictures of your own into a folder for each class and set `DATASET = "folder:PATH"`; with
#    `config.dataset.image_size = 32` they may have any size.
# 5. Make the network a `convnet`, and set `config.model.filters = (16, 32, 64)`.
