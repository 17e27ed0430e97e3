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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cnn-research/cnn-research/blob/main/notebooks/04_why_did_it_say_that.ipynb)
#
# # Why did it say that?
#
# A network says "cross, 98 %". Which pixels made it say so? Eight methods answer that, and don't always agree; a sanity
# check tells which of them depend on what the network has learned at all. Then the same for a picture and for a network
# of yours.
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
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research.config import base_config
from cnn_research.data.sources import open_source
from cnn_research.explain import attribution, overlay, sanity
from cnn_research.explain.cards import draw_card
from cnn_research.explain.layers import list_layers
from cnn_research.explain.sample import boat
from cnn_research.inference import Predictor
from cnn_research.models.registry import init_variables
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
    RUN = tempfile.mkdtemp(prefix="why_")
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

dataset = load_config(Path(RUN)).dataset
predictor = Predictor.from_workdir(RUN, resizing=dataset.resize)  # so that it takes pictures of any size
test_set = open_source(dataset.name, dataset.test_split, dataset.data_dir)
model, variables, classes = predictor.model, predictor.variables, predictor.classes
print(predictor.name, "tells apart", ", ".join(classes))

# %%
examples = test_set.__getitems__(range(4))
predictions = predictor.predict([example["image"] for example in examples])
titles, correct = [], []
for example, prediction in zip(examples, predictions, strict=True):
    (name, confidence), truth = prediction.top(1)[0], classes[example["label"]]
    titles.append(f"{name} {confidence:.0%}" + ("" if name == truth else f" · true: {truth}"))
    correct.append(name == truth)
# What the network sees, and as its input: resized and cropped as the run does it, and normalised.
photos, images = predictor.central_views(np.stack([prediction.image for prediction in predictions]))

# %% [markdown]
# ## Where is the evidence?
#
# - **Grad-CAM** adds up the maps of a late layer, each weighted by how much the class's logit grows with it. Coarse,
#   but faithful.
# - **Saliency** is the gradient of the logit with respect to each pixel; **SmoothGrad** averages it over noisy copies.
# - **Integrated Gradients** add gradients up on the way from an empty image to this one. They are shares of the logit:
#   red speaks for the class, blue against it.
# - **Occlusion** hides a square here and there, and looks how much of the logit is lost.

# %%
smooth_grad = functools.partial(attribution.smooth_grad, key=jax.random.key(SEED))
methods = {
    "Grad-CAM": attribution.grad_cam,
    "Grad-CAM++": attribution.grad_cam_plus_plus,
    "saliency": attribution.saliency,
    "SmoothGrad": smooth_grad,
    "Integrated Gradients": attribution.integrated_gradients,
    "occlusion": attribution.occlusion,
}
maps = {name: method(model, variables, images) for name, method in methods.items()}
overlay.attributions(photos, maps, titles, correct)

# %% [markdown]
# Integrated Gradients can be checked: their sum has to be the difference between the logit of the image and that of the
# empty image. So far is it off, as a share:

# %%
attribution.completeness_error(model, variables, images, maps["Integrated Gradients"])

# %% [markdown]
# Two methods make pictures instead of maps: gradients go back only where they are positive.

# %%
pictures = {
    "guided backpropagation": attribution.guided_backpropagation(model, variables, images),
    "deconvnet": attribution.deconvnet(model, variables, images),
}
overlay.attributions(photos, pictures, titles, correct)

# %% [markdown]
# ## Why not another class?
#
# The same image, asked about each class: where is evidence for it, if there is any?

# %%
by_class = {
    name: attribution.grad_cam(model, variables, images, classes=index) for index, name in enumerate(classes[:5])
}
overlay.attributions(photos, by_class, titles, correct)

# %% [markdown]
# ## Layer by layer
#
# Early layers react to edges anywhere; later ones to what makes the class.

# %%
paths = [path for path, shape in list_layers(model, variables, images).items() if len(shape) == 3]
by_layer = {path: attribution.grad_cam(model, variables, images, layer=path) for path in paths[-6:]}
overlay.attributions(photos, by_layer, titles, correct)

# %% [markdown]
# ## Can these maps be trusted?
#
# If the weights are replaced by random ones, layer by layer from the last one on, a map that explains the network must
# change. The numbers are rank correlations with the map of the trained network: near 1 means that the map doesn't care
# what the network has learned (Adebayo et al. 2018).

# %%
for name, method in {"Grad-CAM": attribution.grad_cam, "guided": attribution.guided_backpropagation}.items():
    alike = sanity.randomisation_check(method, model, variables, images, key=jax.random.key(SEED + 1))
    print(f"{name:10}", "  ".join(f"{path} {value:.2f}" for path, value in alike.items()))

# %% [markdown]
# ## A picture of yours
#
# Any path will do: `predictor.predict("photo.jpg")`. Here is the boat of the convolution laboratory. A network of
# shapes knows no boats: what does it see? (One that was trained on dogs, cats, boats and birds knows better.)

# %%
mine = predictor.predict(boat(128))[0] if predictor.image_shape[2] == 3 else predictions[0]
draw_card(mine.image, mine.top(4))

# %%
mine_photo, mine_input = predictor.central_views(mine.image[None])
overlay.attributions(
    mine_photo,
    {name: attribution.grad_cam(model, variables, mine_input, classes=i) for i, name in enumerate(classes[:5])},
    ["Grad-CAM of each class"],
)


# %% [markdown]
# ## A network of yours
#
# Nothing above belongs to this package's networks. Any Flax module will do, here one that has learned nothing yet:


# %%
class Mine(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="edges")(x))
        x = nn.relu(nn.Conv(16, (3, 3), name="parts")(x))
        return nn.Dense(4, name="classes")(jnp.mean(x, axis=(1, 2)))


my_variables = init_variables(Mine(), jax.random.key(SEED), images.shape[1:])
mine_by_layer = {path: attribution.grad_cam(Mine(), my_variables, images, layer=path) for path in ("edges", "parts")}
overlay.attributions(photos, mine_by_layer)

# %% [markdown]
# ## Try it yourself
#
# 1. Find an image that is classified wrongly, and ask for the evidence of the right class and of the wrong one.
# 2. Give `occlusion` other squares: `functools.partial(attribution.occlusion, size=4)`.
# 3. Start Integrated Gradients from white, `baseline=2.0`, instead of from the mean colour. What changes, and why?
# 4. Train for `"1ep"` only. Do the maps get worse before the accuracy does?
# 5. Set `RUN` to a run of yours.
