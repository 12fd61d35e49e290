"""The updates that many optimizers would make on one trajectory."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class PseudoUpdatesState(NamedTuple):
    """State of :func:`pseudo_updates`.

    Attributes:
      states: the state of each optimizer, by name.
      updates: the update that each would have made last, by name, in the types of the
        parameters; zeros at first.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_clip
      >>> pseudo = optax_clip.pseudo_updates({"SGD": optax.sgd(1.0)})
      >>> pseudo.init(jnp.array([3.0, 4.0])).updates
      {'SGD': Array([0., 0.], dtype=float32)}
    """

    states: dict[str, optax.OptState]
    updates: dict[str, optax.Updates]


def pseudo_updates(
    optimizers: Mapping[str, optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """Record what several optimizers would do with one stream of gradients.

    Every optimizer sees the same gradients and parameters, and keeps its own state;
    none of them moves the parameters. The incoming updates leave unchanged, so this
    can stand first in a chain whose rest drives the trajectory. It holds the state of
    every optimizer, and one update of the size of the parameters for each.

    Args:
      optimizers: names, free text, and transformations.

    Returns:
      A transformation with a :class:`PseudoUpdatesState`.

    Raises:
      ValueError: for an empty mapping.
      TypeError: for something that is no transformation.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_clip
      >>> pseudo = optax_clip.pseudo_updates(
      ...     {"SGD": optax.sgd(1.0), "sign": optax.sign_sgd(1.0)}
      ... )
      >>> params = jnp.array([0.0, 0.0])
      >>> gradient = jnp.array([4.0, -1.0])
      >>> _, state = pseudo.update(gradient, pseudo.init(params), params)
      >>> state.updates["SGD"], state.updates["sign"]
      (Array([-4.,  1.], dtype=float32), Array([-1.,  1.], dtype=float32))

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for
      Transformers <https://arxiv.org/abs/2306.00204>`_, 2022, appendix A.3.
    """
    if not optimizers:
        raise ValueError(
            "pseudo_updates: expected a mapping of names to optimizers; got an empty "
            "one."
        )
    for name, optimizer in optimizers.items():
        if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
            raise TypeError(
                "pseudo_updates: expected an optax.GradientTransformation for "
                f"{name!r}; got {type(optimizer).__name__}."
            )
    optimizers = {
        name: optax.with_extra_args_support(optimizer)
        for name, optimizer in optimizers.items()
    }

    def init_fn(params):
        return PseudoUpdatesState(
            states={name: tx.init(params) for name, tx in optimizers.items()},
            updates={name: optax.tree.zeros_like(params) for name in optimizers},
        )

    def update_fn(updates, state, params=None, **extra_args):
        results = {
            name: tx.update(updates, state.states[name], params, **extra_args)
            for name, tx in optimizers.items()
        }
        return updates, PseudoUpdatesState(
            states={name: new for name, (_, new) in results.items()},
            updates={
                name: jax.tree.map(_like, state.updates[name], update)
                for name, (update, _) in results.items()
            },
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _like(last: jax.Array, update: jax.Array) -> jax.Array:
    """Returns an update in the type of the last one; zero where there is none."""
    if update.dtype == jax.dtypes.float0:
        return jnp.zeros_like(last)
    return jnp.asarray(update, last.dtype)
