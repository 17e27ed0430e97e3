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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cnn-research/cnn-research/blob/main/notebooks/01_convolution_lab.ipynb)
#
# # The convolution laboratory
#
# What does a convolution do to an image? Here it is done by hand, one window at a time, and then with the classical
# filters to a whole picture. Then come the other parts that a convolutional network is made of: stride and padding,
# pooling, and activation functions. Nothing is trained; that is for the next notebook.
#
# Takes about half a minute on a laptop.

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
import jax
import numpy as np
from PIL import Image

from cnn_research.explain import kernels, lab
from cnn_research.explain.sample import boat
from cnn_research.models import layers

print("jax", jax.__version__, "on", jax.default_backend())

# %% tags=["parameters"]
PICTURE = ""  # path of a picture of yours; "" for the boat that the package draws
SIZE = 128  # pixels of each side

# %%
if PICTURE:
    picture = np.asarray(Image.open(PICTURE).convert("RGB").resize((SIZE, SIZE)))
else:
    picture = boat(SIZE)

# %% [markdown]
# ## One window at a time
#
# A *kernel* is a small square of weights. Lay it on a window of the image, multiply each pixel by the weight above it,
# add up the products: that is one pixel of the output. Then move the window by one, and so on.
#
# The image below has 5×5 pixels, the kernel 3×3 weights, and there are 3×3 places to lay it. ▶ plays, › goes on by one.

# %%
image = np.array(
    [
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 0],
        [0, 1, 1, 0, 0],
    ]
)
kernel = np.array(
    [
        [1, 0, 1],
        [0, 1, 0],
        [1, 0, 1],
    ]
)
lab.animate_convolution(image, kernel)

# %% [markdown]
# The same in code: `walk_through` is the double loop, with all of its numbers. `filter_image` computes the output at
# once, as networks do.

# %%
walk = kernels.walk_through(image, kernel)
first = walk.steps[0]
print("window\n", first.window, "\nproducts\n", first.products, "\nsum", first.total)
print("all sums\n", walk.output)
np.testing.assert_allclose(kernels.filter_image(image, kernel, padding="valid"), walk.output)

# %% [markdown]
# One step of it on real brightnesses, with a kernel that looks for vertical edges, and with zeros around the image so
# that the output is as large as the image:

# %%
lab.convolution_step(kernels.to_grey(picture)[:: SIZE // 8, :: SIZE // 8], "sobel_x", 20, padding=1)

# %% [markdown]
# ## The classical filters
#
# Beside each picture stand its weights. Two kinds are easily told apart:
#
# - weights that add up to **1** keep the brightness: blurs take the mean of neighbours, sharpening exaggerates what
#   differs from that mean;
# - weights that add up to **0** give 0 wherever the image is even: what is left are edges. They are positive (red) on
#   one side and negative (blue) on the other.
#
# A convolutional network starts with random weights and *learns* which filters it needs. In its first layer, many turn
# out to be such edge detectors.

# %%
lab.filter_gallery(picture)

# %% [markdown]
# ## Convolution or cross-correlation?
#
# In mathematics, a convolution turns the kernel by 180° before it is laid on the image. Networks don't, and what they
# call convolution is *cross-correlation*. For symmetrical kernels there is no difference. Turned by 180°, Sobel's is
# its own negative: red and blue change places. A network doesn't care: it would learn the turned weights.

# %%
lab.correlation_and_convolution(picture, "sobel_x")

# %% [markdown]
# ## Stride and padding
#
# With *stride* $s$ the window moves by $s$ pixels at a time, and with *padding* $p$ there are $p$ zeros on every side
# of the image. The output's side is
#
# $$\left\lfloor \frac{n + 2p - k}{s} \right\rfloor + 1$$
#
# for an image of $n$ and a kernel of $k$ pixels. Where the division doesn't come out even, the last pixels aren't seen
# at all: they are pale below.

# %%
lab.animate_size(7, 3)

# %%
lab.animate_size(8, 3, stride=2, padding=1)

# %% [markdown]
# Does JAX agree with the formula?

# %%
print(" n  k  s  p  formula  JAX")
for n, k, s, p in [(5, 3, 1, 0), (7, 3, 1, 1), (32, 5, 1, 0), (28, 5, 1, 2), (227, 11, 4, 0), (224, 7, 2, 3)]:
    print(f"{n:3} {k:2} {s:2} {p:2} {layers.output_size(n, k, s, p):8} {kernels.jax_output_size(n, k, s, p):4}")

# %% [markdown]
# ## Pooling
#
# Pooling makes maps smaller, and has no weights: of each window it keeps the largest pixel, the mean or the sum.

# %%
lab.animate_pooling(np.random.default_rng(0).integers(0, 10, (6, 6)))

# %%
lab.pooled_pictures(picture)

# %% [markdown]
# The maximum keeps what is bright, wherever in its window it is: move the image by a pixel, and much of the result
# stays the same. That is why networks like it *after* a filter, when bright means "here is an edge".

# %% [markdown]
# ## Activation functions
#
# Convolutions are sums of products, and a chain of them would be one large convolution. What makes depth worthwhile is
# a function between them that isn't linear. In training, gradients are multiplied by its derivative on the way back:
# where that is nearly 0, as at both ends of the sigmoid, little is learned.

# %%
lab.activation_functions()

# %% [markdown]
# ## All together
#
# Convolution, ReLU, pooling: this is what the first layer of a network does, with one of its filters.

# %%
lab.convolution_relu_pool(picture, "sobel_x")

# %% [markdown]
# ## Try it yourself
#
# 1. Change the weights below. What do they have to add up to, so that the sky stays as bright as it is?
# 2. Make a kernel that finds edges from the bottom left to the top right only.
# 3. Blur twice with `gaussian_blur` by `filter_image(filter_image(picture, ...), ...)`. Which 5×5 kernel does the same
#    at once?
# 4. Which stride and padding make 8 of 16 pixels with a kernel of 3? Of 4? Check it with `lab.animate_size`.
# 5. Put the path of a photo of yours into `PICTURE` above, and run everything again.

# %%
my_kernel = np.array(
    [
        [0, 0, 1],
        [0, 0, 0],
        [-1, 0, 0],
    ]
)
lab.filter_gallery(picture, {"my kernel": my_kernel, "turned": my_kernel[::-1, ::-1]}, columns=2)
