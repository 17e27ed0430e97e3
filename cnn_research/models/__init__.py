"""Convolutional image classifiers as Flax Linen modules. The contract of every one of them:

    logits = model.apply(variables, x, train=False)          # x: float[N, H, W, C] -> logits: float32[N, num_classes]

`dtype` is the compute type (float32 or bfloat16); parameters, normalisation statistics and logits are always float32.
With `train=True` normalisation layers use the batch's own statistics (pass `mutable=["batch_stats"]`) and dropout draws
from the rng stream "dropout". Auxiliary heads, where a network has them, `sow` their logits into the collection
"auxiliary", with `train=True` only and if it is among `mutable`.

Start at `registry.create_model`; this package imports jax, flax, numpy, safetensors and nothing else of cnn_research.
"""
