"""Means over batches that do not fit into memory at once.

Whatever is linear in the loss (the loss, a slope, u^T H u, a gradient) is the weighted
mean of itself over the parts of a batch:

    L = sum_j w_j L_j / sum_j w_j   =>   u^T H u = sum_j w_j u^T H_j u / sum_j w_j

`stream` takes that mean on the device over slices of one batch, `mean_over_batches`
on the host over an iterator of batches.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Weight = Callable[..., jax.typing.ArrayLike]


def stream(
    measure: Callable[..., Any],
    args: tuple,
    microbatches: int | None,
    weight: Weight | None,
) -> Any:
    """Returns the weighted mean of measure(*part) over equal parts of args."""
    if microbatches is None:
        return measure(*args)
    part = _parts(args, microbatches)

    def add(totals, i):
        chunk = part(i)
        w = jnp.ones([]) if weight is None else jnp.asarray(weight(*chunk))
        return jax.tree.map(_accumulate(w), totals, (jnp.ones([]), measure(*chunk))), ()

    shapes = jax.eval_shape(lambda: (jnp.ones([]), measure(*part(0))))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (total, sums), _ = lax.scan(add, zeros, jnp.arange(microbatches))
    return jax.tree.map(lambda x: x / total.astype(x.dtype), sums)


def mean_over_batches(
    measure: Callable[..., Any],
    batches: Iterable[Any],
    *,
    weight: Weight | None = None,
    progress: Callable[[int, Any], None] | None = None,
) -> Any:
    r"""Averages a measurement over a host iterator of batches.

    .. math::
      \bar q = \frac{\sum_j w_j\, q(\text{batch}_j)}{\sum_j w_j}

    Exact for everything linear in the loss: losses, slopes, curvatures, gradients. One
    batch is in flight at a time. Batches of weight zero are skipped.

    Args:
      measure: called as ``measure(*batch)``, or ``measure(batch)`` where a batch is not
        a tuple; returns a pytree of arrays. It is called as it is: jit it, with the
        parameters as arguments of the jitted function.
      batches: the batches; consumed once.
      weight: called like `measure`, returns the scalar weight of a batch, for example
        its number of tokens. Equal weights by default.
      progress: called after every batch with the number of batches done and the mean
        so far.

    Returns:
      The mean, a pytree like that of `measure`.

    Raises:
      ValueError: if there are no batches, or if their weights sum to zero.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x, scale: 0.5 * scale * jnp.sum(x**2)
      >>> measure = jax.jit(lambda x, u, scale:
      ...     diagnostics.directional_sharpness(loss, x, u, scale))
      >>> x, u = jnp.ones(2), jnp.array([1.0, 0.0])
      >>> float(diagnostics.mean_over_batches(
      ...     lambda scale: measure(x, u, scale), [1.0, 2.0, 6.0]))
      3.0
    """
    total, sums = 0.0, None
    for done, batch in enumerate(batches, 1):
        batch = batch if isinstance(batch, tuple) else (batch,)
        w = 1.0 if weight is None else float(jnp.asarray(weight(*batch)))
        if w:
            scaled = jax.tree.map(lambda x, w=w: w * x, measure(*batch))
            sums = scaled if sums is None else jax.tree.map(operator.add, sums, scaled)
            total += w
        # Waiting here keeps one batch on the device instead of the whole iterator.
        jax.block_until_ready(sums)
        if progress is not None and total:
            progress(done, _divide(sums, total))
    if not total:
        raise ValueError("batches must hold at least one batch of non-zero weight.")
    return _divide(sums, total)


def _divide(sums: Any, total: float) -> Any:
    return jax.tree.map(lambda x: x / total, sums)


def _accumulate(w: jax.Array) -> Callable:
    """Returns t + w v, where a weight of zero silences even a nan (0 of 0 tokens)."""

    def add(total, value):
        return total + jnp.where(w == 0, 0, w.astype(total.dtype) * value)

    return add


def _parts(args: tuple, microbatches: int) -> Callable[[jax.Array | int], tuple]:
    """Returns a function from i to the i-th of equal parts of every array in args."""
    if not isinstance(microbatches, int) or microbatches < 1:
        msg = f"microbatches must be a positive int; got {microbatches!r}."
        raise ValueError(msg)
    if not any(jnp.ndim(leaf) for leaf in jax.tree.leaves(args)):
        raise ValueError(
            "microbatches needs an array in *args to split; there is none."
        )

    # Part i takes rows i, i + m, i + 2 m, ...: of a batch that is sharded over devices
    # every part then holds rows of every device, and nothing moves between them.
    def fold(path, x):
        x = jnp.asarray(x)
        if x.ndim and x.shape[0] % microbatches:
            msg = (
                f"args{jax.tree_util.keystr(path)} has {x.shape[0]} rows, which "
                f"{microbatches} microbatches do not divide."
            )
            raise ValueError(msg)
        return x.reshape(-1, microbatches, *x.shape[1:]) if x.ndim else x

    folded = jax.tree_util.tree_map_with_path(fold, args)

    def part(i):
        def take(x):
            return lax.dynamic_index_in_dim(x, i, 1, keepdims=False) if x.ndim else x

        return jax.tree.map(take, folded)

    return part
