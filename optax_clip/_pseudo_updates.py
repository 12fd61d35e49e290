"""The updates that many optimizers would make on one trajectory.

They belong to the point where they were made, which is that before the step:

.. code-block:: text

  pseudo_updates      a transformation: records them along a trajectory
  pseudo_updates_at   those of a gradient and parameters, without a step
  pseudo_updates_of   those that a state has recorded, of the parameters before its step
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_clip._trees import pure


class PseudoUpdatesState(NamedTuple):
    """State of :func:`pseudo_updates`.

    Attributes:
      states: the state of each optimizer, by name.
      updates: the update that each would have made last, by name, in the types of the
        parameters; zeros at first. They belong to the parameters that this update was
        given, and not to those after its step.

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

    What was recorded belongs to the parameters *before* the step. Measure it there: in
    the training step, before the parameters move (:func:`pseudo_updates_of`), or
    between two steps by :func:`pseudo_updates_at`, which makes no step.

    Args:
      optimizers: names, free text, and transformations.

    Returns:
      A transformation with a :class:`PseudoUpdatesState`. Its `states` may be those of
      a checkpoint: ``pseudo.init(params)._replace(states={"Adam": restored, ...})``.

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


def pseudo_updates_at(
    optimizer: optax.GradientTransformation,
    gradient: optax.Updates,
    opt_state: optax.OptState,
    params: optax.Params,
    **extra_args: Any,
) -> dict[str, optax.Updates]:
    """Returns the pseudo-updates of a gradient at the current parameters.

    Nothing moves: neither the parameters nor the states. Under :func:`jax.jit` only the
    optimizers that are watched are computed, and not the one that makes the trajectory.

    Args:
      optimizer: :func:`pseudo_updates`, alone or in a chain.
      gradient: at `params`, of the batch that the next step would take.
      opt_state: the state of `optimizer`, from a run or its `init`.
      params: the current parameters, like all of these of plain arrays or of Flax NNX.
      **extra_args: what `update` takes besides.

    Returns:
      {name: update}, to be measured at `params`.

    Raises:
      ValueError: see :func:`pseudo_updates_of`.

    Examples:
      Adam starts from the state that it has in a checkpoint, here after two steps:

      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_clip
      >>> params, gradient = jnp.array([0.0, 0.0]), jnp.array([4.0, -1.0])
      >>> adam = optax.adam(1.0)
      >>> restored = adam.init(params)
      >>> for _ in range(2):
      ...     _, restored = adam.update(jnp.array([-4.0, -1.0]), restored)
      >>> pseudo = optax_clip.pseudo_updates({"SGD": optax.sgd(1.0), "Adam": adam})
      >>> state = pseudo.init(params)
      >>> state = state._replace(states=state.states | {"Adam": restored})
      >>> found = optax_clip.pseudo_updates_at(pseudo, gradient, state, params)
      >>> found["SGD"], found["Adam"].round(2)
      (Array([-4.,  1.], dtype=float32), Array([0.26, 1.  ], dtype=float32))
    """
    update = optax.with_extra_args_support(optimizer).update
    arguments = (pure(x) for x in (gradient, opt_state, params))
    return pseudo_updates_of(update(*arguments, **extra_args)[1])


def pseudo_updates_of(opt_state: optax.OptState) -> dict[str, optax.Updates]:
    """Returns the last pseudo-updates, wherever they are in a state.

    They belong to the parameters that the last update was given: measure them before
    these move, or see :func:`pseudo_updates_at`.

    Args:
      opt_state: the state of any optimizer, under any wrapper of Optax; that of a Flax
        ``nnx.Optimizer``; one that was restored as nested dictionaries.

    Returns:
      {name: update}.

    Raises:
      ValueError: if nothing in the state makes pseudo-updates, or two of several that
        do have the same name.

    Examples:
      Donated buffers are no hindrance where the step itself measures:

      >>> import functools
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_clip
      >>> from optax_clip import diagnostics
      >>> pseudo = optax_clip.pseudo_updates({"Adam": optax.adam(1.0)})
      >>> optimizer = optax.chain(pseudo, optax.sgd(0.1))
      >>> loss = lambda x: x[0] ** 2 + 2 * x[1] ** 2
      >>> @functools.partial(jax.jit, donate_argnums=(0, 1))
      ... def train_step(params, opt_state):
      ...     gradient = jax.grad(loss)(params)
      ...     updates, opt_state = optimizer.update(gradient, opt_state, params)
      ...     measured = diagnostics.directional_sharpness(
      ...         loss, params, optax_clip.pseudo_updates_of(opt_state))
      ...     return optax.apply_updates(params, updates), opt_state, measured
      >>> params = jnp.ones(2)
      >>> params, opt_state, measured = train_step(params, optimizer.init(params))
      >>> round(float(measured["Adam"]), 3)
      3.0
    """
    leaves = jax.tree.leaves(pure(opt_state), is_leaf=_is_state)
    found: dict[str, optax.Updates] = {}
    for state in filter(_is_state, leaves):
        updates = state["updates"] if isinstance(state, Mapping) else state.updates
        if twice := found.keys() & updates.keys():
            raise ValueError(
                f"pseudo_updates_of: expected every name once in the state; {twice} "
                "are there twice."
            )
        found |= updates
    if not found:
        raise ValueError(
            "pseudo_updates_of: expected an optimizer state with pseudo_updates in it; "
            "there are none."
        )
    return found


def _is_state(node: Any) -> bool:
    """Returns whether this is a state of `pseudo_updates`, or such a mapping.

    A mapping may have lost the states of optimizers that have none.
    """
    if not isinstance(node, Mapping):
        return isinstance(node, PseudoUpdatesState)
    return {"updates"} <= set(node) <= set(PseudoUpdatesState._fields)


def _like(last: jax.Array, update: jax.Array) -> jax.Array:
    """Returns an update in the type of the last one; zero where there is none."""
    if update.dtype == jax.dtypes.float0:
        return jnp.zeros_like(last)
    return jnp.asarray(update, last.dtype)
