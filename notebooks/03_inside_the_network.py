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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cnn-research/cnn-research/blob/main/notebooks/03_inside_the_network.ipynb)
#
# # Inside the network
#
# What do the layers of a trained network compute? Its filters, the maps that they make of an image, what a unit sees of
# it and what excites it most, which units are silent, and the whole network in 3D.
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
from IPython.display import HTML

from cnn_research.config import base_config
from cnn_research.data.sources import open_source
from cnn_research.explain import feature_figures, features
from cnn_research.explain.cards import draw_card
from cnn_research.explain.layers import activations, list_layers
from cnn_research.explain.network3d import network3d
from cnn_research.explain.visualise import visualise
from cnn_research.inference import Predictor
from cnn_research.models.layer_table import layer_table
from cnn_research.training.loop import train
from cnn_research.training.workdir import load_config

print("jax", jax.__version__, "on", jax.default_backend())

# %% tags=["parameters"]
RUN = ""  # folder of a finished run of yours; "" to train a small network on drawn shapes, in half a minute
SEED = 0

# %% [markdown]
# ## A network

# %%
if not RUN:
    RUN = tempfile.mkdtemp(prefix="inside_")
    config = base_config()
    config.seed = SEED
    config.model.name = "convnet"
    config.model.filters = (16, 32, 32)
    config.model.batch_norm = "after_conv"
    config.model.dense = (64,)
    config.dataset.name = "shapes"
    config.dataset.train_split = "train[:4000]"
    config.dataset.eval_split = config.dataset.test_split = "test[:1000]"
    config.dataset.mean, config.dataset.std = (0.47,), (0.25,)
    config.batch_size = 64
    config.duration = "5ep"
    config.schedule.warmup = "10%"
    train(config, RUN)

predictor = Predictor.from_workdir(RUN)
dataset = load_config(Path(RUN)).dataset
test_set = open_source(dataset.name, dataset.test_split, dataset.data_dir)
examples = test_set.__getitems__(range(min(256, len(test_set))))
predictions = predictor.predict([example["image"] for example in examples])
labels = np.array([example["label"] for example in examples])
model, variables = predictor.model, predictor.variables
# What the network sees, and as its input: resized and cropped as the run does it, and normalised.
photos, images = predictor.central_views(np.stack([prediction.image for prediction in predictions]))
print(predictor.name, "tells apart", ", ".join(predictor.classes))

# %%
draw_card(predictions[0].image, predictions[0].top(4), predictor.classes[labels[0]])

# %% [markdown]
# ## Its layers
#
# Every function here takes any Flax module, its variables and the path of a layer. Those are the paths, with the shape
# of what each layer makes of an image:

# %%
list_layers(model, variables, images)

# %%
table = layer_table(model, images.shape[1:])
for row in table.layers:
    print(f"{row.path:10} {row.kind:18} {'×'.join(map(str, row.output)):>10} {row.parameters:10,} {row.size_formula}")

# %% [markdown]
# ## Filters
#
# The first layer's filters see colours, so they can be drawn in colour. Deeper ones see the maps of the layer before.

# %%
CONVOLUTIONS = [row.path for row in table.layers if row.kind == "convolution"]
feature_figures.filters(features.filters(variables, CONVOLUTIONS[0]), CONVOLUTIONS[0])

# %%
feature_figures.filters(features.filters(variables, CONVOLUTIONS[1]), CONVOLUTIONS[1])

# %% [markdown]
# ## Feature maps
#
# What the filters make of one image: red is positive, blue negative. In the network trained above, batch
# normalisation next scales and shifts each map by numbers of its own; the ReLU after it keeps what is then positive.

# %%
maps = activations(model, variables, images[:1], CONVOLUTIONS)
feature_figures.feature_maps(maps[CONVOLUTIONS[0]][0], CONVOLUTIONS[0])

# %%
feature_figures.feature_maps(maps[CONVOLUTIONS[-1]][0], CONVOLUTIONS[-1])

# %% [markdown]
# ## What a unit sees, and what excites it
#
# A unit in the middle of each layer sees a square of the image, its *receptive field*: larger in deeper layers.

# %%
middle = {}
for path in CONVOLUTIONS:
    view = features.receptive_field(model, variables, images, path)
    centre = [side // 2 for side in maps[path].shape[1:3]]
    middle[path] = features.seen_box(view, centre, images.shape[1:3])
feature_figures.receptive_fields(photos[0], middle)

# %% [markdown]
# For some channels of the last convolution, the parts of the test images on which they are largest:

# %%
found = features.most_exciting(model, variables, images, CONVOLUTIONS[-1])
feature_figures.exciting(photos, found, CONVOLUTIONS[-1])

# %% [markdown]
# And the other way round: from noise, an image is changed until a class's logit is as large as possible. What it shows
# isn't a picture of the class, but what the network takes for evidence of it.

# %%
output = list(list_layers(model, variables, images))[-1]
wanted = range(min(4, len(predictor.classes)))
dreams = visualise(
    model,
    variables,
    output,
    wanted,
    images.shape[1:],
    key=jax.random.key(SEED),
    mean=np.array(predictor.mean),
    std=np.array(predictor.std),
)
feature_figures.pictures(dreams, [predictor.classes[index] for index in wanted])

# %% [markdown]
# ## Is it healthy?
#
# Activations and gradients shouldn't vanish from one layer to the next, and few units should be silent on all images.

# %%
pairs = features.values_and_gradients(model, variables, images[:64], labels[:64], tuple(CONVOLUTIONS))
feature_figures.histograms({path: values for path, (values, _) in pairs.items()}, "activations")

# %%
feature_figures.histograms({path: gradients for path, (_, gradients) in pairs.items()}, "gradients")

# %%
NORMS = [path for path in list_layers(model, variables, images) if "norm" in path] or CONVOLUTIONS
feature_figures.silence(features.silence(model, variables, images, NORMS), "How often units don't fire")

# %% [markdown]
# ## All of it at once
#
# Turn it with the mouse. (Drawing it takes plotly.js from the web.)

# %%
drawn = network3d(model, variables, images[0], classes=predictor.classes, picture=photos[0])
HTML(drawn.to_html(include_plotlyjs="cdn", full_html=False))

# %% [markdown]
# ## Try it yourself
#
# 1. Set `RUN` to the folder of a run of yours, such as `runs/lenet5_digits`, and run everything again.
# 2. Which channel of the first layer finds vertical edges? Compare its maps with `sobel_x` of the convolution
#    laboratory.
# 3. Take another image: `images[1:2]`. Are the same channels the strongest?
# 4. Visualise channels of a convolution instead of classes: `CONVOLUTIONS[1]` and `range(8)`.
# 5. Train without `batch_norm`. How do the histograms change, and how many units are silent?
