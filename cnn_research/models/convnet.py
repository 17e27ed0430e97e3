"""The network of the tutorials: stages of convolution, activation and pooling, then fully-connected layers.

With its defaults it has 421,642 parameters at 28x28x1 and 10 classes:
conv1 320, conv2 18,496, dense1 401,536 (7 x 7 x 64 inputs), output 1,290.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cnn_research.models import layers


class ConvNet(nn.Module):
    """Stages of convolution -> [norm] -> activation -> pool -> [norm]; then hidden fully-connected layers; the output.

    The fields are flat, so that a config or a command line sets each of them. Those of the stages are tuples: one value
    for all the stages, or one per stage; `filters` decides how many there are. Layers are named conv1, norm1, conv2,
    ..., dense1, ..., output.

    Attributes:
        num_classes: K, the number of logits.
        filters: channels of each convolution; empty for a plain perceptron.
        kernel_size: side of each (square) kernel, pixels.
        stride: of each convolution, pixels.
        padding: of each convolution: a number (zeros on every side), "same" or "valid"; "1" counts as 1. See
            `layers.conv`.
        activation: one of `layers.ACTIVATIONS`, after every convolution and every hidden fully-connected layer.
        pool: "max", "average", "sum" or "none".
        pool_size: side of the pooling window, pixels.
        pool_stride: of the pooling, pixels.
        batch_norm: "none"; "after_conv": between convolution and activation (Ioffe & Szegedy 2015), where most networks
            have it and the convolution needs no bias; "after_pool": at the end of the stage, as tutorials often write
            it.
        dense: units of each hidden fully-connected layer; may be empty.
        dropout_rate: share of units dropped after each hidden fully-connected layer, in training.
        kernel_init: of all kernels, one of `layers.INITIALIZERS`; biases start at 0.
        dtype: compute type.
        conv: convolution module, of `nn.Conv`'s signature.
        norm: normalisation module, of `nn.BatchNorm`'s signature.
    """

    num_classes: int
    filters: tuple[int, ...] = (32, 64)
    kernel_size: tuple[int, ...] = (3,)
    stride: tuple[int, ...] = (1,)
    padding: tuple[int | str, ...] = ("same",)
    activation: str = "relu"
    pool: tuple[str, ...] = ("max",)
    pool_size: tuple[int, ...] = (2,)
    pool_stride: tuple[int, ...] = (2,)
    batch_norm: str = "none"
    dense: tuple[int, ...] = (128,)
    dropout_rate: float = 0.0
    kernel_init: str = "he"
    dtype: layers.Dtype = jnp.float32
    conv: layers.ModuleDef = nn.Conv
    norm: layers.ModuleDef = layers.BatchNorm

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: a field is not one of its allowed values or has the wrong length, or the input is too small for
                a layer.
        """
        layers.check_choice("batch_norm", self.batch_norm, ("none", "after_conv", "after_pool"))
        layers.check_choice("kernel_init", self.kernel_init, layers.INITIALIZERS)
        kernel_init = layers.INITIALIZERS[self.kernel_init]

        def norm(x: layers.Array, stage: int) -> layers.Array:
            return self.norm(use_running_average=not train, dtype=self.dtype, name=f"norm{stage}")(x)

        x = jnp.asarray(x, self.dtype)
        for stage, fields in enumerate(self._stages(), start=1):
            x = layers.conv(
                x,
                fields["filters"],
                fields["kernel_size"],
                name=f"conv{stage}",
                stride=fields["stride"],
                padding=fields["padding"],
                module=self.conv,
                use_bias=self.batch_norm != "after_conv",  # the normalisation would subtract the bias again
                kernel_init=kernel_init,
                dtype=self.dtype,
            )
            if self.batch_norm == "after_conv":
                x = norm(x, stage)
            x = layers.activate(x, self.activation, name=f"conv{stage}")
            layers.check_choice("pool", fields["pool"], (*layers.POOLS, "none"))
            if fields["pool"] != "none":
                x = layers.pool(
                    x, fields["pool"], fields["pool_size"], name=f"pool{stage}", stride=fields["pool_stride"]
                )
            if self.batch_norm == "after_pool":
                x = norm(x, stage)

        x = layers.flatten(x)
        dense = self.dense if isinstance(self.dense, tuple) else (self.dense,)
        for number, units in enumerate(dense, start=1):
            x = layers.hidden_dense(
                x,
                units,
                name=f"dense{number}",
                activation=self.activation,
                dropout_rate=self.dropout_rate,
                train=train,
                kernel_init=kernel_init,
                dtype=self.dtype,
            )
        return layers.output_dense(x, self.num_classes, kernel_init=kernel_init)

    def _stages(self) -> list[dict[str, Any]]:
        """The fields of each stage, one dict per stage."""
        filters = self.filters if isinstance(self.filters, tuple) else (self.filters,)
        fields = ("kernel_size", "stride", "padding", "pool", "pool_size", "pool_stride")
        columns = {field: layers.per_stage(field, getattr(self, field), len(filters)) for field in fields}
        columns["filters"] = filters
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
