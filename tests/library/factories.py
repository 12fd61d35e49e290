"""Every public factory, for the contract and for the sharding tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_clip


@dataclass(frozen=True)
class Row:
    """A public factory with arguments, and what a test must know about it."""

    factory: Callable[..., Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    # The Optax transformation that fraction=0 must equal bit for bit.
    plain: Callable[[], Any] | None = None
    # Changes to the arguments that make it reach a minimum; None if it cannot.
    converging: dict[str, Any] | None = None
    needs_params: bool = False
    # One infinite gradient coordinate still gives a finite first update.
    survives_inf: bool = True
    # No norms: a NaN in a coordinate is in no other coordinate's update.
    elementwise: bool = True

    def __call__(self, **changes):
        """The transformation, with some arguments changed."""
        return self.factory(**{**self.kwargs, **changes})


def numerator_of_rms(fraction=0.05, *, scope="global"):
    """RMSProp with a clipped numerator."""
    inner = optax.scale_by_rms(0.99)
    return optax_clip.clip_numerator(inner, fraction, scope=scope)


def numerator_of_factored_rms(fraction=0.05, *, scope="global"):
    """Adafactor's scaling with a clipped numerator."""
    inner = optax.scale_by_factored_rms(min_dim_size_to_factor=0)
    return optax_clip.clip_numerator(inner, fraction, scope=scope)


def pseudo_updates_of_two(learning_rate=0.1):
    """Two shadow optimizers."""
    shadows = {
        "Adam": optax.adam(learning_rate),
        "SGD, 30 % clipped": optax_clip.clipped_sgd(learning_rate, fraction=0.3),
    }
    return optax_clip.pseudo_updates(shadows)


def ema_sgd(learning_rate, *more):
    """Plain SGD with the papers' momentum."""
    ema = optax.ema(0.9, debias=False)
    return optax.chain(ema, *more, optax.scale_by_learning_rate(learning_rate))


def nesterov_sgd(learning_rate, decay=0.9):
    """Plain SGD along the average after one more step with the same gradient."""
    ema = optax.ema(decay, debias=False)

    def update(updates, state, params=None):
        del params
        average, state = ema.update(updates, state)
        ahead = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, average, updates)
        return ahead, state

    average = optax.GradientTransformation(ema.init, update)
    return optax.chain(average, optax.scale_by_learning_rate(learning_rate))


def update_clipped_adam(learning_rate, fraction=0.05, *, scope="global"):
    """Adam whose update is clipped: a chain, as the docs say."""
    return optax.chain(
        optax.scale_by_adam(),
        optax_clip.clip_top_k_coordinates(fraction, scope=scope),
        optax.scale_by_learning_rate(learning_rate),
    )


def relative_step(count):
    """Adafactor's learning rate of its own, with Optax's count from zero."""
    return jnp.minimum(1e-2, 1 / jnp.sqrt(jnp.asarray(count, float) + 1))


def signless_lion(learning_rate, b1=0.9, b2=0.99):
    """Lion without its sign."""

    def update(updates, mu, params=None):
        del params
        direction = jax.tree.map(lambda g, m: (1.0 - b1) * g + b1 * m, updates, mu)
        return direction, optax.tree.update_moment(updates, mu, b2, 1)

    scale = optax.GradientTransformation(optax.tree.zeros_like, update)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))


def decaying(peak, steps=3000):
    """A learning rate that ends at zero, as signs and unit steps need one to settle."""
    return optax.cosine_decay_schedule(peak, steps)


ADAFACTOR = {"min_dim_size_to_factor": 0, "momentum": None}

FACTORIES = {
    "clip": Row(
        optax_clip.clip_top_k_coordinates, {"fraction": 0.3}, plain=optax.identity
    ),
    "clip per leaf": Row(
        optax_clip.clip_top_k_coordinates,
        {"fraction": 0.3, "scope": "leaf"},
        plain=optax.identity,
    ),
    "numerator of RMSProp": Row(
        numerator_of_rms,
        {"fraction": 0.3},
        plain=lambda: optax.scale_by_rms(0.99),
        survives_inf=False,
    ),
    "numerator of Adafactor": Row(
        numerator_of_factored_rms,
        {"fraction": 0.3},
        plain=lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=0),
        needs_params=True,
        survives_inf=False,
        elementwise=False,
    ),
    "normalize": Row(
        optax_clip.normalize_by_block_rms, survives_inf=False, elementwise=False
    ),
    "pseudo-updates": Row(pseudo_updates_of_two, survives_inf=False),
    "clipped SGD": Row(
        optax_clip.clipped_sgd,
        {"learning_rate": 0.1, "fraction": 0.3},
        plain=lambda: ema_sgd(0.1),
        converging={"learning_rate": 5e-3},
    ),
    "clipped SGD without momentum": Row(
        optax_clip.clipped_sgd,
        {"learning_rate": 0.1, "fraction": 0.3, "decay": None},
        plain=lambda: optax.sgd(0.1),
        converging={"learning_rate": 5e-3},
    ),
    "clipped SGD with Nesterov's momentum": Row(
        optax_clip.clipped_sgd,
        {"learning_rate": 0.1, "fraction": 0.3, "nesterov": True},
        plain=lambda: nesterov_sgd(0.1),
        converging={"learning_rate": 5e-3},
    ),
    "clipped SGD with weight decay per leaf": Row(
        optax_clip.clipped_sgd,
        {
            "learning_rate": 0.1,
            "fraction": 0.3,
            "scope": "leaf",
            "weight_decay": 0.01,
        },
        plain=lambda: ema_sgd(0.1, optax.add_decayed_weights(0.01)),
        needs_params=True,
    ),
    "clipped normalized SGD": Row(
        optax_clip.clipped_normalized_sgd,
        {"learning_rate": 0.1, "fraction": 0.3},
        plain=lambda: ema_sgd(0.1, optax_clip.normalize_by_block_rms()),
        converging={"learning_rate": decaying(0.03)},
        elementwise=False,
    ),
    "clipped Adafactor": Row(
        optax_clip.clipped_adafactor,
        {"fraction": 0.3},
        plain=lambda: optax.adafactor(relative_step, **ADAFACTOR),
        needs_params=True,
        survives_inf=False,
        elementwise=False,
    ),
    "clipped Adafactor with a learning rate": Row(
        optax_clip.clipped_adafactor,
        {
            "learning_rate": 0.1,
            "fraction": 0.3,
            "multiply_by_parameter_scale": False,
        },
        plain=lambda: optax.adafactor(
            0.1, multiply_by_parameter_scale=False, **ADAFACTOR
        ),
        converging={"learning_rate": decaying(0.03)},
        needs_params=True,
        survives_inf=False,
        elementwise=False,
    ),
    "gradient-clipped Adam": Row(
        optax_clip.clipped_adam,
        {"learning_rate": 0.1, "fraction": 0.3},
        plain=lambda: optax.adam(0.1),
        converging={"learning_rate": decaying(0.1)},
    ),
    "update-clipped Adam": Row(
        update_clipped_adam,
        {"learning_rate": 0.1, "fraction": 0.3},
        plain=lambda: optax.adam(0.1),
        converging={"learning_rate": decaying(0.1)},
        survives_inf=False,
    ),
    "Adam's scaling": Row(
        optax_clip.scale_by_clipped_adam,
        {"fraction": 0.3},
        plain=optax.scale_by_adam,
    ),
    "clipped NAdam": Row(
        optax_clip.clipped_adam,
        {"learning_rate": 0.1, "fraction": 0.3, "nesterov": True},
        plain=lambda: optax.nadam(0.1),
        converging={"learning_rate": decaying(0.1)},
    ),
    "clipped AdamW": Row(
        optax_clip.clipped_adam,
        {"learning_rate": 0.1, "fraction": 0.3, "weight_decay": 0.01},
        plain=lambda: optax.adamw(0.1, weight_decay=0.01),
        needs_params=True,
    ),
    "clipped Lion": Row(
        optax_clip.clipped_lion,
        {"learning_rate": 0.1},
        plain=lambda: signless_lion(0.1),
        converging={"learning_rate": 5e-3},
    ),
}
# Enough of them where a law depends on the transformation and not on its arguments.
CORE = [
    "clip",
    "clip per leaf",
    "numerator of Adafactor",
    "normalize",
    "pseudo-updates",
    "clipped SGD",
    "clipped normalized SGD",
    "clipped Adafactor",
    "gradient-clipped Adam",
    "clipped Lion",
]
CLIPPING = [name for name, row in FACTORIES.items() if row.plain is not None]
OPTIMIZERS = [name for name, row in FACTORIES.items() if row.converging is not None]
