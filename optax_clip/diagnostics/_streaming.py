r"""Means over batches that do not fit into memory at once.

Whatever is linear in the loss (the loss, a slope, u^T H u, a gradient) is the weighted
mean of itself over the parts of a batch:

    L = sum_j w_j L_j / sum_j w_j   =>   u^T H u = sum_j w_j u^T H_j u / sum_j w_j

`stream` takes that mean on the device over slices of one batch. (`optax.microbatching`
has no weights, and in 0.2.8 cannot cut a batch that is explicitly sharded.)
`mean_over_batches` takes it on the host over an iterator of batches:

>>> from optax_clip import diagnostics
>>> found = diagnostics.mean_over_batches(lambda x: 2.0 * x, [1.0, 2.0, 6.0])
>>> float(found.mean)
6.0
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._subset import thaw

Weight = Callable[..., jax.typing.ArrayLike]


class Parts(NamedTuple):
    """How a batch is cut: into how many parts, and which leaves of the arguments."""

    count: int
    cut: tuple[bool, ...]


def plan_parts(
    args: tuple, microbatches: int | None, batch_argnums: int | Sequence[int] | None
) -> Parts | None:
    """Returns how to cut the arguments, refused if it is not clear what is a batch."""
    numbers = range(len(args))
    if batch_argnums is not None:
        numbers = np.atleast_1d(np.asarray(batch_argnums)).tolist()
        if not all(isinstance(i, int) for i in numbers):
            raise TypeError(f"batch_argnums must be ints; got {batch_argnums!r}.")
        if not all(0 <= i < len(args) for i in numbers):
            msg = f"batch_argnums must be below {len(args)}, the number of arguments; "
            raise ValueError(f"{msg}got {batch_argnums!r}.")
    if microbatches is None:
        return None
    _checks.check_count("microbatches", microbatches)
    leaves = jax.tree.leaves_with_path(args)
    cut = tuple(path[0].idx in numbers and jnp.ndim(x) > 0 for path, x in leaves)
    sizes = {
        f"args{jax.tree_util.keystr(path)}": jnp.shape(x)[0]
        for (path, x), chosen in zip(leaves, cut, strict=True)
        if chosen
    }
    if not sizes:
        raise ValueError(
            "microbatches needs an array in *args to split; there is none."
        )
    first, rows = next(iter(sizes.items()))
    for name, size in sizes.items():
        if size != rows:
            msg = f"{first} has {rows} rows and {name} has {size}."
            which = "Say with batch_argnums which are the batch."
            raise ValueError(f"microbatches cuts equal leading axes; {msg} {which}")
    if rows % microbatches:
        msg = f"which {microbatches} microbatches do not divide."
        raise ValueError(f"{first} has {rows} rows, {msg}")
    return Parts(microbatches, cut)


def stream(
    measure: Callable[..., Any], args: tuple, parts: Parts | None, weight: Weight | None
) -> Any:
    """Returns the weighted mean of measure(*part) over equal parts of args."""
    if parts is None:
        return measure(*thaw(args))
    count, cuts = parts
    leaves, treedef = jax.tree.flatten(args)

    # Part i takes rows i, i + m, i + 2 m, ...: of a batch that is sharded over devices
    # every part then holds rows of every device, and nothing moves between them.
    def take(x, cut, i):
        if not cut:
            return x
        folded = jnp.reshape(x, (-1, count, *x.shape[1:]))
        return lax.dynamic_index_in_dim(folded, i, 1, keepdims=False)

    def part(i):
        taken = [take(x, cut, i) for x, cut in zip(leaves, cuts, strict=True)]
        return thaw(treedef.unflatten(taken))

    def weighted(i):
        w = jnp.ones([]) if weight is None else jnp.asarray(weight(*part(i)), float)

        # A weight of zero silences even a nan: the mean over 0 of 0 tokens.
        def silence(x):
            return jnp.where(w == 0, 0, w.astype(x.dtype) * x)

        return w, jax.tree.map(silence, measure(*part(i)))

    def add(sums, i):
        return jax.tree.map(jnp.add, sums, weighted(i)), None

    shapes = jax.eval_shape(weighted, 0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (total, sums), _ = lax.scan(add, zeros, jnp.arange(count))
    return jax.tree.map(lambda x: x / total.astype(x.dtype), sums)


def batch_loader(load: Callable[[int], Any]) -> Callable[[jax.Array], Any]:
    """Returns a function that loads a batch from the host in the middle of a loss.

    What is not linear in the loss (an eigenvalue, the lowest step along a line, a ratio
    at the big batch) is no mean over batches. With the numbers of batches as the
    arguments that ``microbatches`` cuts, every diagnostic measures batches that do not
    fit on the device, one in memory at a time. A line search or Lanczos loads all of
    them in every iteration.

    Args:
      load: ``load(i)`` returns batch i, a pytree of arrays of the same shapes and types
        for every i. It is called in the order of the loop, so it can report progress.

    Returns:
      A function of an array of one number that returns the batch, to be called inside
      of a loss or of a weight.

    Raises:
      ValueError: while the loop runs, if a batch is not like batch 0 or there is none
        of that number. jax reports it as an error of its own.

    Examples:
      The Hessian of the mean over three batches has the top eigenvalue 3, the mean of
      their eigenvalues would be 6.

      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from optax_clip import diagnostics
      >>> files = np.float32([[9, 0, 0], [0, 9, 0], [0, 0, 6]])
      >>> batch = diagnostics.batch_loader(lambda i: files[i])
      >>> loss = lambda x, number: 0.5 * jnp.sum(batch(number) * x**2)
      >>> found = diagnostics.block_eigenvalues(
      ...     loss, jnp.ones(3), jnp.arange(3), microbatches=3, key=jax.random.key(0))
      >>> round(float(found[""].top), 3)
      3.0
    """
    _checks.check_function("load", load)

    def shapes_of(batch):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)

    def loaded(i):
        try:
            batch = load(i)
        except (LookupError, StopIteration) as error:
            msg = "load must return every batch that is measured, as often as it is "
            raise ValueError(f"{msg}asked; number {i} raised {error!r}.") from error
        return jax.tree.map(np.asarray, batch)

    shapes = shapes_of(loaded(0))

    def checked(i):
        batch = loaded(int(i))
        found = shapes_of(batch)
        if found != shapes:
            msg = f"every batch must be like batch 0, {shapes}; "
            raise ValueError(f"{msg}number {int(i)} is {found}.")
        return batch

    def batch(number):
        return jax.pure_callback(checked, shapes, jnp.reshape(number, ()))

    return batch


class BatchMean(NamedTuple):
    """A mean over batches, and how sure it is.

    Attributes:
      mean: like what was measured on one batch.
      standard_error: of the mean, likewise; nan if there was only one batch.
      batches: how many batches of non-zero weight there were.

    Examples:
      1 and 3 deviate by 1 from their mean, whose standard error is 1, too.

      >>> from optax_clip import diagnostics
      >>> found = diagnostics.mean_over_batches(lambda x: x, [1.0, 3.0])
      >>> float(found.mean), float(found.standard_error), found.batches
      (2.0, 1.0, 2)
    """

    mean: Any
    standard_error: Any
    batches: int


def mean_over_batches(
    measure: Callable[..., Any], batches: Iterable[Any], *,
    weight: Weight | None = None, progress: Callable[[int, Any], None] | None = None,
) -> BatchMean:  # fmt: skip
    r"""Averages a measurement over a host iterator of batches.

    .. math::
      \bar q = \frac{\sum_j w_j q_j}{\sum_j w_j}, \quad
      \mathrm{SE}^2 = \frac{n}{n - 1}
      \frac{\sum_j w_j^2 (q_j - \bar q)^2}{(\sum_j w_j)^2}

    The mean is exact for everything linear in the loss: losses, slopes, sharpness,
    gradients. One batch is in flight at a time. Batches of weight zero are skipped.
    Two directions are compared batch by batch, see :func:`paired_differences`, which
    is much surer than the difference of two means.

    Args:
      measure: called as ``measure(*batch)``, or ``measure(batch)`` where a batch is not
        a tuple; returns a pytree of arrays.
      batches: the batches; consumed once.
      weight: called like `measure`, returns the scalar weight of a batch, for example
        its number of tokens. Equal weights by default.
      progress: called after every batch with the number of batches done and the mean
        so far.

    Returns:
      A :class:`BatchMean`.

    Raises:
      TypeError: if `batches` cannot be iterated over.
      ValueError: if there are no batches, if their weights sum to zero, or if a batch
        gives a result of another structure or shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> loss = lambda x, scale: 0.5 * scale * jnp.sum(x**2)
      >>> x, u = jnp.ones(2), jnp.array([1.0, 0.0])
      >>> scales = [jnp.array(scale) for scale in (1.0, 2.0, 6.0)]
      >>> found = diagnostics.mean_over_batches(
      ...     lambda a: diagnostics.directional_sharpness(loss, x, u, a), scales)
      >>> print(f"{found.mean:.1f} +- {found.standard_error:.1f}")
      3.0 +- 1.5
    """
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be iterable; got a {type(batches).__name__}.")
    n, state, shapes = 0, None, None
    for done, batch in enumerate(batches, 1):
        batch = batch if isinstance(batch, tuple) else (batch,)
        w = 1.0 if weight is None else float(np.asarray(weight(*batch)))
        if w:
            value = jax.tree.map(_inexact, measure(*batch))
            shape = jax.tree.map(jnp.shape, value)
            if state is None:
                state, shapes = _start(value), shape
            if shape != shapes:
                msg = f"every batch must give a result like the first, {shapes}; "
                raise ValueError(f"{msg}number {done} gave {shape}.")
            n, state = n + 1, _add(state, value, w)
        # Waiting here keeps one batch on the device instead of the whole iterator.
        jax.block_until_ready(state)
        if progress is not None and n:
            progress(done, _summary(state, n)[0])
    if not n:
        raise ValueError("batches must hold at least one batch of non-zero weight.")
    mean, error = _summary(state, n)
    if n == 1:
        error = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), mean)
    return BatchMean(mean, error, n)


def paired_differences(results: Mapping[Any, Any], baseline: Any) -> dict[Any, Any]:
    """Subtracts the result of one direction from those of the others.

    On one batch. Averaged by :func:`mean_over_batches`, the differences have their own
    standard error, without what all directions share on a batch.

    Args:
      results: what a diagnostic returned for a mapping of directions.
      baseline: the name of the direction to subtract.

    Returns:
      {name: result - result of the baseline} for all other names.

    Raises:
      ValueError: if the baseline is not among the results.

    Examples:
      Of three batches each has its own level, and the second direction is below the
      first one by about 1 on every one of them.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> batches = [{"a": x, "b": x - d} for x, d in ((5, 1.0), (9, 1.1), (1, 0.9))]
      >>> found = diagnostics.mean_over_batches(
      ...     lambda results: diagnostics.paired_differences(results, "a"), batches)
      >>> print(f"{found.mean['b']:.2f} +- {found.standard_error['b']:.2f}")
      -1.00 +- 0.06
    """
    _checks.check_choice("baseline", baseline, results)
    return {
        name: jax.tree.map(lambda x, y: x - y, result, results[baseline])
        for name, result in results.items()
        if name != baseline
    }


def _inexact(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)


def _start(value: Any) -> tuple:
    sums = [jax.tree.map(jnp.zeros_like, value) for _ in range(3)]
    return value, jnp.zeros(2), sums


@jax.jit
def _add(state: tuple, value: Any, w: jax.Array) -> tuple:
    """Adds w and w^2, and w d, w^2 d and w^2 d^2 for the distance d to the first value.

    Distances lose fewer digits than the values themselves.
    """
    first, weights, sums = state
    d = jax.tree.map(jnp.subtract, value, first)

    def plus(total, factor, power):
        return jax.tree.map(
            lambda t, d: t + factor.astype(d.dtype) * d**power, total, d
        )

    wd, w2d, w2d2 = sums
    sums = [plus(wd, w, 1), plus(w2d, w**2, 1), plus(w2d2, w**2, 2)]
    return first, weights + jnp.stack([w, w**2]), sums


@jax.jit
def _summary(state: tuple, n: jax.typing.ArrayLike) -> tuple[Any, Any]:
    """Returns the mean, and the standard error (of a single batch: 0)."""
    first, weights, sums = state
    mean = jax.tree.map(
        lambda x, wd: x + wd / weights[0].astype(x.dtype), first, sums[0]
    )

    def error(wd, w2d, w2d2):
        w, w2, count = (jnp.asarray(x, wd.dtype) for x in (*weights, n))
        m = wd / w  # the mean of d: expand the sum of w^2 (d - m)^2
        squares = jnp.maximum(w2d2 - 2 * m * w2d + m**2 * w2, 0)
        return jnp.sqrt(squares * count / jnp.maximum(count - 1, 1)) / w

    return mean, jax.tree.map(error, *sums)
