"""Which search runs where the arrays are.

.. code-block:: text

  one device, or jax.shard_map    `passes.find`, with the axes that the types tell
  an explicit mesh                the same, in a jax.shard_map over the whole mesh
  an automatic mesh               the same in every shard, where there is a hook for it
  else                            `counts.count_arrays`: more passes, no sample, and a
                                  compiler that places the sums

`partitioner` chooses between the last two.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from optax_clip._threshold import passes
from optax_clip._threshold.bracket import Bracket, bets, search
from optax_clip._threshold.counts import count_arrays, rank, wide
from optax_clip._threshold.keys import (
    common_dtype,
    infinity_key,
    key_dtype,
    magnitude_key,
    unsigned,
)
from optax_clip._threshold.partitioner import Ways, partitioned
from optax_clip._threshold.shards import Axes, AxisName, Shards, number_of_shards


class Threshold(NamedTuple):
    """The order statistic of every group.

    Attributes:
      value: magnitudes of shape ``(groups,)``, in the common float type of the arrays.
      clipped_fraction: fraction of the coordinates strictly above, shape ``(groups,)``.
    """

    value: jax.Array
    clipped_fraction: jax.Array


def threshold(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    fraction: jax.Array | float,
    axis_name: AxisName | None = None,
) -> Threshold:
    """Returns the ``(floor(fraction * size) + 1)``-th largest magnitude of every group.

    Where that is 0, and not all of the group is, ``size`` is the number of coordinates
    that are not exactly 0.

    Args:
      arrays: real floating-point arrays of any shapes and types, at least one.
      groups: the group of each array, numbered from 0 without gaps.
      fraction: fraction of the coordinates to exceed the threshold, in ``[0, 1)``; a
        Python number, or a scalar array (then clamped to the range).
      axis_name: mapped axes that the arrays are split over, where types do not say.

    Returns:
      A :class:`Threshold`. NaN counts as infinitely large and is never a threshold. A
      group without coordinates has threshold 0. Its derivative is that of the
      coordinates with that magnitude, or their mean.
    """
    traced = isinstance(fraction, jax.Array)
    problem = _Problem(tuple(groups), None if traced else fraction, axis_name)
    given = fraction if traced else jnp.zeros((), jnp.float32)
    return Threshold(*_compiled(problem, list(arrays), given))


def largest(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    axis_name: AxisName | None = None,
) -> Threshold:
    """Returns the threshold for a fraction of 0, at the price of one reduction."""
    dtype = common_dtype(arrays)

    def find(*arrays):
        top = jnp.zeros(max(groups) + 1, key_dtype(dtype))
        for array, group in zip(arrays, groups, strict=True):
            key = magnitude_key(lax.stop_gradient(array), dtype)
            key = jnp.minimum(jnp.max(key, initial=0), infinity_key(dtype))
            top = top.at[group].max(key)
        return Shards.of(arrays, axis_name).largest(top)

    meshes = _meshes(arrays)
    explicit = _axis_types(meshes) == {AxisType.Explicit}
    find = _in_shards(find, meshes[0], arrays) if explicit else find
    top = find(*arrays)
    value = lax.bitcast_convert_type(top.astype(unsigned(dtype)), dtype)
    return Threshold(value, jnp.zeros(top.shape, jnp.float32))


class _Problem(NamedTuple):
    """What is known of a search before there are arrays."""

    groups: tuple[int, ...]
    fraction: float | None  # None if it is the last operand
    axis_name: AxisName | None


# Compiled, so that an eager caller pays once for a function and its shapes.
@functools.partial(jax.jit, static_argnums=0)
def _compiled(problem: _Problem, arrays: list, fraction: jax.Array) -> tuple:
    return _differentiable(problem, arrays, fraction)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _differentiable(problem: _Problem, arrays: list, fraction: jax.Array) -> tuple:
    return _dispatch(problem, arrays, fraction)


@_differentiable.defjvp
def _derivative(problem: _Problem, primals: tuple, tangents: tuple) -> tuple:
    (arrays, fraction), (moves, _) = primals, tangents
    value, above = _differentiable(problem, arrays, fraction)
    dtype = value.dtype
    shards = Shards.of(arrays, problem.axis_name)
    moved, number = jnp.zeros_like(value), jnp.zeros_like(value)
    for i, (x, move) in enumerate(zip(arrays, moves, strict=True)):
        group, split = problem.groups[i], shards.split[i]
        tied = magnitude_key(x, dtype) == magnitude_key(value[group], dtype)
        follows = jnp.where(tied, jnp.sign(x) * move, 0)
        moved = moved.at[group].add(
            shards.once(split, jnp.sum(follows, dtype=dtype), 0)
        )
        tied = shards.once(split, jnp.sum(tied, dtype=dtype), 0)
        number = number.at[group].add(tied)
    mean = shards.sum(moved) / jnp.maximum(shards.sum(number), 1)
    return (value, above), (mean, jnp.zeros_like(above))


def _dispatch(problem: _Problem, arrays: list, fraction: jax.Array) -> tuple:
    operands = [lax.stop_gradient(x) for x in (*arrays, fraction)]
    meshes = _meshes(arrays)
    kinds = _axis_types(meshes)
    whole = functools.partial(_find, problem)
    by_compiler = functools.partial(_find, problem, by_compiler=True)
    run: Callable[..., Any]
    if kinds == {AxisType.Explicit}:
        run = _in_shards(whole, meshes[0], operands)
    elif AxisType.Manual in kinds or problem.axis_name is not None:
        run = by_compiler if AxisType.Auto in kinds else whole
    else:

        def in_shards(split):
            return functools.partial(whole, split=split)

        shape, dtype = (max(problem.groups) + 1,), common_dtype(arrays)
        types = [jax.ShapeDtypeStruct(shape, d) for d in (dtype, jnp.float32)]
        ways = Ways(whole, in_shards, by_compiler, tuple(types))
        run = functools.partial(partitioned, ways)
        if AxisType.Explicit in kinds:  # of some axes
            kind_of = dict(zip(meshes[0].axis_names, meshes[0].axis_types, strict=True))
            axes = tuple(a for a, kind in kind_of.items() if kind == AxisType.Explicit)
            run = jax.sharding.auto_axes(run, axes=axes, out_sharding=(P(), P()))
    found: Any = run(*operands)
    return tuple(found)


def _find(
    problem: _Problem,
    *operands: jax.Array,
    split: Sequence[Axes] | None = None,
    by_compiler: bool = False,
) -> list[jax.Array]:
    """Returns values and fractions.

    Args:
      problem: what to find.
      *operands: the arrays, or this device's shards of them, and a traced fraction.
      split: the axes that each array is split over; None if types tell them.
      by_compiler: whether arrays are split in ways that only the compiler knows.
    """
    *arrays, fraction = operands
    fraction = fraction if problem.fraction is None else problem.fraction
    groups, dtype = problem.groups, common_dtype(arrays)
    known = split is not None
    shards = Shards.along(split[:-1]) if known else Shards.of(arrays, problem.axis_name)
    sizes = [0] * (max(groups) + 1)
    for array, group, axes in zip(arrays, groups, shards.split, strict=True):
        sizes[group] += array.size * number_of_shards(axes)
    if not any(sizes):
        return [jnp.zeros(len(sizes), dtype), jnp.zeros(len(sizes), jnp.float32)]

    with wide():
        restart = functools.partial(
            Bracket.without_zeros, fraction=fraction, dtype=dtype
        )
        number = jnp.asarray(sizes, jnp.int64)
        if problem.fraction is None:
            skipped = rank(fraction, number)
        else:
            skipped = [rank(fraction, n) for n in sizes]
        start = Bracket.around_all(number, jnp.asarray(skipped, jnp.int64), dtype)
        if by_compiler:
            count = functools.partial(
                count_arrays, arrays, groups, dtype=dtype, shards=shards
            )
            last = search(count, start, restart=restart, choose=bets)
        else:
            last = passes.find(arrays, groups, sizes, start, dtype, restart, shards)
        # What exceeds `low` is what reaches `high`; nothing reaches the key of an
        # empty group, of which only `low` means anything.
        value = lax.bitcast_convert_type(last.low.astype(unsigned(dtype)), dtype)
        size = jnp.asarray([max(n, 1) for n in sizes], jnp.float32)
        return [value, last.reach_high.astype(jnp.float32) / size]


def _in_shards(
    find: Callable[..., Any], mesh: AbstractMesh, operands: Sequence[jax.Array]
) -> Callable[..., Any]:
    """Runs a function on every device of an explicit mesh: types tell the shards."""
    specs = tuple(jax.typeof(x).sharding.spec for x in operands)
    return jax.jit(jax.shard_map(find, mesh=mesh, in_specs=specs, out_specs=P()))


def _axis_types(meshes: Sequence[AbstractMesh]) -> set[AxisType]:
    return {axis_type for mesh in meshes for axis_type in mesh.axis_types}


def _meshes(arrays: Sequence[jax.Array]) -> list[AbstractMesh]:
    """Returns the mesh of each array that is on one: the same for all."""
    meshes = [jax.typeof(array).sharding.mesh for array in arrays]
    meshes = [mesh for mesh in meshes if not mesh.empty]
    shapes = {str(dict(mesh.shape)): None for mesh in meshes}
    if len(shapes) > 1:
        raise ValueError(
            "clipping: expected all leaves on one mesh; got leaves on meshes of "
            f"{' and '.join(shapes)} devices. Move them with jax.device_put."
        )
    return meshes
