"""ViT, the vision transformer of Dosovitskiy et al. (2021), with one linear head.

    graphdef, params = init(config, classes=10, seed=0)
    logits = functional.logits(graphdef, "images")
    logits_BxC = logits(params, {"images": images_BxHxWxC})

The layers are those of `encoder`. ViT is Pre-LN; "post" is for comparison, from
scratch only, and lacks the norm behind the last layer.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from examples.models import functional
from examples.models.encoder import Layer, layer_norm, linear
from examples.models.functional import Array, Params, Rngs


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes and switches, named as on Hugging Face; the defaults are ViT-B/16."""

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    norm_placement: Literal["post", "pre"] = "pre"

    def __post_init__(self):
        for whole, part in (
            ("image_size", "patch_size"),
            ("hidden_size", "num_attention_heads"),
        ):
            sizes = getattr(self, whole), getattr(self, part)
            if min(sizes) < 1 or sizes[0] % sizes[1]:
                raise ValueError(
                    f"ViTConfig: {whole} must be a multiple of {part}={sizes[1]}, "
                    f"got {sizes[0]}."
                )

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def init(
    config: ViTConfig, classes: int, seed: int | Array
) -> tuple[nnx.GraphDef, Params]:
    """Fresh float32 weights; `seed` may be traced."""
    return functional.split(ViT(config, classes, functional.rngs(seed)))


class ViT(nnx.Module):
    """Patches as tokens behind a learned one, which the head reads."""

    def __init__(self, config: ViTConfig, classes: int, rngs: nnx.Rngs):
        self.config = config
        D, patch = config.hidden_size, config.patch_size
        normal = nnx.initializers.normal(0.02)
        self.patch_embed = nnx.Conv(
            config.num_channels,
            D,
            (patch, patch),
            strides=patch,
            padding="VALID",
            kernel_init=normal,
            rngs=rngs,
        )
        self.cls_embed = nnx.Param(normal(rngs.params(), (1, 1, D)))
        positions = 1, config.patches + 1, D
        self.position_embed = nnx.Param(normal(rngs.params(), positions))
        depth = config.num_hidden_layers
        self.layers = nnx.List(Layer(config, rngs) for _ in range(depth))
        if config.norm_placement == "pre":
            self.norm = layer_norm(config, rngs)
        self.head = linear(D, classes, rngs)

    def __call__(self, images_BxHxWxC: Array, rngs: Rngs = None) -> Array:
        """Logits_BxC."""
        size, channels = self.config.image_size, self.config.num_channels
        if images_BxHxWxC.shape[1:] != (size, size, channels):
            raise ValueError(
                f"ViT: expected images of shape {(size, size, channels)}, got "
                f"{images_BxHxWxC.shape[1:]}."
            )
        dtype = self.patch_embed.kernel[...].dtype
        y_BxHxWxD = self.patch_embed(images_BxHxWxC.astype(dtype))
        B, D = len(y_BxHxWxD), y_BxHxWxD.shape[-1]
        cls_Bx1xD = jnp.broadcast_to(self.cls_embed[...], (B, 1, D))
        y_BxLxD = jnp.concatenate([cls_Bx1xD, y_BxHxWxD.reshape(B, -1, D)], axis=1)
        y_BxLxD += self.position_embed[...]
        everything = jnp.ones((1, 1, 1, 1), bool)
        for layer in self.layers:
            y_BxLxD = layer(y_BxLxD, everything, rngs)
        y_BxD = y_BxLxD[:, 0]
        pre = self.config.norm_placement == "pre"
        return self.head(self.norm(y_BxD) if pre else y_BxD)
