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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cnn-research/cnn-research/blob/main/notebooks/05_architecture_zoo.ipynb)
#
# # The zoo of architectures
#
# From LeNet (1998) to DenseNet (2017) in one place: what each paper added, what its network costs, how accurate it is
# said to be, and what four of the families make of one budget: the same 960 images with the same recipe.
#
# Takes about a minute and a half on two CPU cores, most of it DenseNet's.

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

import jax

from cnn_research.config import base_config
from cnn_research.explain import zoo
from cnn_research.inference import Predictor
from cnn_research.models.layer_table import layer_table
from cnn_research.models.registry import create_model, list_models, model_facts
from cnn_research.training.loop import train

print("jax", jax.__version__, "on", jax.default_backend())

# %% tags=["parameters"]
# Title: name in the registry, and the fields that differ from its defaults. Of VGG's idea, stacks of 3x3 filters, there
# is no network as small as these images, so a ConvNet stands for it.
NETWORKS = {
    "LeNet-5": ("lenet5", {}),
    "VGG in small": ("convnet", {"filters": (16, 16, 32, 32), "pool": ("none", "max", "none", "max")}),
    "ResNet-20": ("resnet20", {}),
    "DenseNet-40": ("densenet_40_12", {}),
}
DATASET = "digits"  # or "shapes", or any other of the package
IMAGE_SIZE = 16  # pixels; with 64, there is room for "alexnet_owt", "vgg11_bn" and "googlenet_bn": on a GPU
DURATION = "30st"  # the budget of each: steps of 32 images, or epochs, such as "1ep"
SEED = 0
WORKDIR = tempfile.mkdtemp(prefix="zoo_")  # the folder for the runs; one of your own is kept

# %% [markdown]
# ## Twenty years in one table
#
# | network | what was new |
# |---|---|
# | LeNet-5 | convolution, subsampling, and all of it trained together |
# | AlexNet | ReLU, dropout, overlapping pooling, and two GPUs: a thousand classes of photographs |
# | ZFNet | smaller first filters and stride, after a look at what the layers see |
# | VGG | nothing but 3×3 filters, and twice as many layers: two of them see 5×5 pixels for 18/25 of the weights |
# | GoogLeNet | modules with several filter sizes side by side, and 1×1 convolutions that keep them cheap |
# | ResNet | shortcuts around every two or three layers: a hundred layers can be trained |
# | DenseNet | every layer sees the results of all layers before it, and adds only a few of its own |
#
# The figures that their papers or torchvision give:

# %%
print(f"{'network':12} {'input':>7} {'parameters':>12} {'10⁹ mult-adds':>14} {'top-1 error':>12} {'top-5':>7}  paper")
for name in ("lenet5", "alexnet", "zfnet", "vgg16", "googlenet", "resnet50", "densenet121"):
    facts = model_facts(name)
    size = "×".join(map(str, facts.image_shape[:2]))
    errors = [f"{error:.1f} %" if error else "–" for error in facts.error]
    print(
        f"{name:12} {size:>7} {facts.parameters:12,} {facts.gmacs:14.3f} {errors[0]:>12} {errors[1]:>7}  {facts.paper}"
    )

# %% [markdown]
# Accuracy over cost, for all networks of the zoo with a published error on ImageNet. (Protocols differ: some papers
# average ten crops of each image.) A larger disc has more parameters: VGG's are mostly in its first fully-connected
# layer, which ResNet and DenseNet replaced by an average.

# %%
zoo.chart(
    zoo.published(list_models(exclude=["*_bn", "vgg13", "*_wide"])), "ImageNet: published accuracy, and what it costs"
)

# %% [markdown]
# ## Layer by layer
#
# A layer table is read off the network itself. `field` is the side of the square of pixels that one output sees.


# %%
def build(title, num_classes):
    name, fields = NETWORKS[title]
    return create_model(name, num_classes, **fields)


def show_layers(model, image_shape):
    table = layer_table(model, image_shape)
    print(f"{'layer':22} {'kind':22} {'output':>11} {'parameters':>11} {'mult-adds':>11} {'field':>6}")
    for row in table.layers:
        output, field = "×".join(map(str, row.output)), row.receptive_field or ""
        print(f"{row.path:22} {row.kind:22} {output:>11} {row.parameters:11,} {row.macs:11,} {field:>6}")


show_layers(build("VGG in small", 10), (IMAGE_SIZE, IMAGE_SIZE, 1))

# %% [markdown]
# ## One budget
#
# Each network now sees the same images in the same order, with the same optimizer and learning rate. (The best settings
# of each would be other ones, and longer training would change the ranking.)


# %%
def experiment(title):
    name, fields = NETWORKS[title]
    config = base_config()
    config.seed = SEED
    config.model.name = name
    config.model.update(fields)
    config.dataset.name = DATASET
    config.dataset.image_size = IMAGE_SIZE
    config.dataset.mean, config.dataset.std = (0.3,), (0.35,)
    config.batch_size = 32
    config.eval_batch_size = 120
    config.duration = DURATION
    config.schedule.warmup = "10%"
    config.log_every = "10st"
    return config


discs = []
print(f"{'network':14} {'accuracy':>9} {'parameters':>11} {'mult-adds':>12} {'images/s':>9} {'seconds':>8}")
for title in NETWORKS:
    results = train(experiment(title), f"{WORKDIR}/{title}")
    trained = Predictor.from_workdir(f"{WORKDIR}/{title}")
    table = layer_table(trained.model, trained.image_shape)
    accuracy, speed, seconds = results["test"]["accuracy"], results["examples_per_second"], results["train_seconds"]
    print(f"{title:14} {accuracy:9.3f} {table.parameters:11,} {table.macs:12,} {speed:9,.0f} {seconds:8.1f}")
    discs.append(zoo.Network(title, title, accuracy, table.macs / 1e9, table.parameters))

# %% [markdown]
# Multiply-adds aren't seconds: DenseNet's are many small convolutions, which a CPU is bad at. And the seconds hold the
# compilation, which deeper networks need more of.

# %%
zoo.chart(discs, f"{DATASET}: accuracy after {results['steps']} steps, and what an image costs")

# %% [markdown]
# ## Try it yourself
#
# 1. Give all of them more: `DURATION = "3ep"`. Who gains most?
# 2. Set `DATASET = "shapes"`: coloured images, four classes, 10,000 of them. (Restrict them by
#    `config.dataset.train_split = "train[:2000]"`, or be patient.)
# 3. Give the small VGG batch normalisation, by the field `"batch_norm": "after_conv"`. Try with and without a learning
#    rate ten times as high.
# 4. `show_layers` of `resnet20`: where are the shortcuts that change the shape? Look for kernels of 1×1 in
#    `create_model("resnet20", 10, shortcut="B")`.
# 5. On a GPU, take 64 pixels and the networks of ImageNet, as the comment among the parameters says.
