"""One training step, and the one loop over steps that every program here has.

    step_function = train_step(loss, optimizer)
    for step, state, metrics in updates(step_function, state, batch_at, seed, 0, 100):
        ...  # `state` is after `step` updates, `metrics` are those of the last one

Batch and dropout key of a step derive from (seed, step) alone.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from examples.data.batching import Batch

Params = Any
Metrics = Mapping[str, Any]
Loss = Callable[..., jax.Array]  # of parameters, batch and dropout key


class TrainState(NamedTuple):
    params: Params
    opt_state: optax.OptState


class Microbatches(NamedTuple):
    """How to take the gradient of a batch that does not fit into memory at once."""

    count: int
    weight: Callable[[Batch], jax.Array]  # of one in the mean, such as its tokens


Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


def train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    observe: Callable[[optax.OptState], Metrics] | None = None,
    microbatches: Microbatches | None = None,
) -> Step:
    """(state, batch, key) -> (state, metrics), jitted; the old state is given away."""
    value_and_grad = gradient_of(loss, microbatches)

    def step(
        state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        value, grads = value_and_grad(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(grads)}
        metrics |= observe(opt_state) if observe else {}
        return TrainState(params, opt_state), metrics

    return jax.jit(step, donate_argnums=0)


def gradient_of(loss: Loss, microbatches: Microbatches | None = None) -> Callable:
    """(parameters, batch, key) -> loss and gradient, in microbatches if need be."""
    if microbatches:
        return _accumulated(loss, microbatches)
    return jax.value_and_grad(loss)


def updates(
    step_function: Step,
    state: TrainState,
    batch_at: Callable[[int], Batch],
    seed: int,
    start: int,
    steps: int,
) -> Iterator[tuple[int, TrainState, Metrics | None]]:
    """Yields the state after `start` updates, after the next one, up to `steps`.

    With each comes the number of updates that were made and what the last one of them
    returned, None before the first. The state that was yielded before is given away.
    """
    key, metrics = jax.random.key(seed), None
    for step in range(start, steps + 1):
        yield step, state, metrics
        if step < steps:
            state, metrics = step_function(
                state, batch_at(step), jax.random.fold_in(key, step)
            )


def without_dropout(loss: Loss) -> Loss:
    """The same loss for a caller that always passes a dropout key."""

    def deterministic(
        params: Params, batch: Batch, key: jax.Array | None = None
    ) -> jax.Array:
        del key
        return loss(params, batch)

    return deterministic


def _accumulated(loss: Loss, microbatches: Microbatches) -> Callable:
    """`jax.value_and_grad(loss)`, one microbatch of the batch after the other."""
    value_and_grad = jax.value_and_grad(loss)

    def mean(params: Params, batch: Batch, key: jax.Array) -> Any:
        def weighted(microbatch: Batch, key: jax.Array) -> Any:
            weight = microbatches.weight(microbatch).astype(jnp.float32)
            found = (jnp.ones([]), value_and_grad(params, microbatch, key))
            return jax.tree.map(lambda x: x * weight.astype(x.dtype), found)

        def add(sums: Any, microbatch: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, weighted(*microbatch)), None

        split = jax.tree.map(
            lambda x: jnp.reshape(x, (microbatches.count, -1, *x.shape[1:])), batch
        )
        keys = jax.random.split(key, microbatches.count)
        shapes = jax.eval_shape(weighted, jax.tree.map(lambda x: x[0], split), key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (total, sums), _ = jax.lax.scan(add, zeros, (split, keys))
        return jax.tree.map(lambda x: x / total.astype(x.dtype), sums)

    return mean
