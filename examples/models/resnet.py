"""ResNet of basic blocks (He et al., 2016), with one linear head.

    graphdef, params = init(config, classes=10, seed=0)
    logits = functional.logits(graphdef, "images")
    logits_BxC = logits(params, {"images": images_BxHxWxC})

From scratch it has GroupNorm: batch statistics would make the loss of one row depend on
the others, and need a state. The BatchNorm of a pretrained one is frozen: with its
running statistics it is an affine map, whose scale and shift are trained.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from examples.models import functional
from examples.models.encoder import linear
from examples.models.functional import Array, Params


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes, named as on Hugging Face; the defaults are ResNet-18."""

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    stem: Literal["imagenet", "small"] = "imagenet"  # 7x7 and pooling, or 3x3
    norm: Literal["group", "frozen"] = "frozen"
    groups: int = 8

    def __post_init__(self):
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                "ResNetConfig: expected a depth for each of hidden_sizes="
                f"{self.hidden_sizes}, got depths={self.depths}."
            )


def init(
    config: ResNetConfig, classes: int, seed: int | Array
) -> tuple[nnx.GraphDef, Params]:
    """Fresh float32 weights; frozen statistics are 0 and 1."""
    graphdef, params, _ = split(ResNet(config, classes, functional.rngs(seed)))
    return graphdef, params


def split(model: "ResNet") -> tuple[nnx.GraphDef, Params, Any]:
    """Graphdef, what is trained, and the frozen statistics."""
    graphdef, params, statistics = nnx.split(model, nnx.Param, Frozen)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)


class Frozen(nnx.Variable):
    """Statistics that are part of the model and never trained."""


class ResNet(nnx.Module):
    """Stem, stages of basic blocks, mean over the image, head."""

    def __init__(self, config: ResNetConfig, classes: int, rngs: nnx.Rngs):
        self.config = config
        size, stride = (7, 2) if config.stem == "imagenet" else (3, 1)
        inputs = config.embedding_size
        self.stem = Convolution(config, config.num_channels, inputs, size, stride, rngs)
        blocks = []
        for i, (width, depth) in enumerate(
            zip(config.hidden_sizes, config.depths, strict=True)
        ):
            for j in range(depth):
                stride = 2 if i and not j else 1
                blocks.append(Block(config, inputs, width, stride, rngs))
                inputs = width
        self.blocks = nnx.List(blocks)
        self.head = linear(inputs, classes, rngs)

    def __call__(self, images_BxHxWxC: Array, rngs: Any = None) -> Array:
        """Logits_BxC; `rngs` is there because other models have dropout."""
        del rngs
        y_BxHxWxC = self.stem(images_BxHxWxC.astype(self.stem.kernel_dtype))
        y_BxHxWxC = jax.nn.relu(y_BxHxWxC)
        if self.config.stem == "imagenet":
            padding = ((1, 1), (1, 1))
            y_BxHxWxC = nnx.max_pool(y_BxHxWxC, (3, 3), (2, 2), padding)
        for block in self.blocks:
            y_BxHxWxC = block(y_BxHxWxC)
        return self.head(y_BxHxWxC.mean((1, 2)))


class Block(nnx.Module):
    """Two convolutions and a residual, which is projected where its shape changes."""

    def __init__(
        self, config: ResNetConfig, inputs: int, width: int, stride: int, rngs: nnx.Rngs
    ):
        self.first = Convolution(config, inputs, width, 3, stride, rngs)
        self.second = Convolution(config, width, width, 3, 1, rngs)
        self.projected = inputs != width or stride > 1
        if self.projected:
            self.shortcut = Convolution(config, inputs, width, 1, stride, rngs)

    def __call__(self, y_BxHxWxC: Array) -> Array:
        residual = self.shortcut(y_BxHxWxC) if self.projected else y_BxHxWxC
        y_BxHxWxC = self.second(jax.nn.relu(self.first(y_BxHxWxC)))
        return jax.nn.relu(y_BxHxWxC + residual)


class Convolution(nnx.Module):
    """A convolution without bias, and a norm."""

    def __init__(
        self,
        config: ResNetConfig,
        inputs: int,
        width: int,
        size: int,
        stride: int,
        rngs: nnx.Rngs,
    ):
        half = size // 2
        self.conv = nnx.Conv(
            inputs,
            width,
            (size, size),
            strides=stride,
            padding=((half, half), (half, half)),
            use_bias=False,
            kernel_init=nnx.initializers.he_normal(),
            rngs=rngs,
        )
        self.norm = (
            nnx.GroupNorm(width, num_groups=config.groups, rngs=rngs)
            if config.norm == "group"
            else FrozenNorm(width)
        )

    @property
    def kernel_dtype(self) -> Any:
        return self.conv.kernel[...].dtype

    def __call__(self, y_BxHxWxC: Array) -> Array:
        return self.norm(self.conv(y_BxHxWxC))


class FrozenNorm(nnx.Module):
    """BatchNorm with its running statistics; PyTorch's epsilon."""

    def __init__(self, width: int):
        self.scale, self.bias = (nnx.Param(f(width)) for f in (jnp.ones, jnp.zeros))
        self.mean, self.var = (Frozen(f(width)) for f in (jnp.zeros, jnp.ones))

    def __call__(self, y_BxHxWxC: Array) -> Array:
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + 1e-5)
        return (y_BxHxWxC - self.mean[...]) * factor + self.bias[...]
