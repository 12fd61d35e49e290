"""Which search runs where the arrays are.

.. code-block:: text

  one device, or jax.shard_map    `passes.find`, with the axes that the types tell
  an explicit mesh                the same, in a jax.shard_map over the whole mesh
  an automatic mesh               the same, in every shard, placed by the partitioner
  an automatic mesh on TPU, in    `counts.count_arrays`: a compiler that places the
  an export, in shard_map(...,    sums itself; more passes, no sample
  axis_names=some)

On an automatic mesh only the compiler knows how an array is split, so the search is a
primitive of its own, `order_statistic_p`: it is lowered through
`jax.experimental.custom_partitioning`, which asks for the code of a shard once the
splits are known. XLA for TPU has no such hook (jax-ml/jax#38196), and what is exported
cannot hold one.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import SdyShardingRule, custom_partitioning
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_clip._threshold import passes
from optax_clip._threshold.bracket import Bracket, search
from optax_clip._threshold.counts import count_arrays, rank, wide
from optax_clip._threshold.keys import (
    common_dtype,
    infinity_key,
    key_dtype,
    magnitude_key,
    unsigned,
)
from optax_clip._threshold.shards import AxisName, Shards, number_of_shards


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

    def find(arrays):
        top = jnp.zeros(max(groups) + 1, key_dtype(dtype))
        for array, group in zip(arrays, groups, strict=True):
            key = magnitude_key(lax.stop_gradient(array), dtype)
            key = jnp.minimum(jnp.max(key, initial=0), infinity_key(dtype))
            top = top.at[group].max(key)
        return Shards.of(arrays, axis_name).largest(top)

    meshes = _meshes(arrays)
    explicit = _axis_types(meshes) == {AxisType.Explicit}
    top = (_in_shards(find, meshes[0], arrays) if explicit else find)(arrays)
    value = lax.bitcast_convert_type(top.astype(unsigned(dtype)), dtype)
    return Threshold(value, jnp.zeros(top.shape, jnp.float32))


class _Problem(NamedTuple):
    """What is known of a search before there are arrays."""

    groups: tuple[int, ...]
    fraction: float | None  # None if it is traced
    axis_name: AxisName | None

    def sizes(self, arrays: Sequence[Any], split: Sequence[Any]) -> list[int]:
        """Returns the number of coordinates of each group, in all shards together."""
        sizes = [0] * (max(self.groups) + 1)
        for array, group, axes in zip(arrays, self.groups, split, strict=True):
            sizes[group] += math.prod(array.shape) * number_of_shards(axes)
        return sizes


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
    arrays = [lax.stop_gradient(array) for array in arrays]
    fraction = lax.stop_gradient(fraction)
    meshes = _meshes(arrays)
    kinds = _axis_types(meshes)
    whole = functools.partial(_on_each_device, problem)
    if kinds == {AxisType.Explicit}:
        return _in_shards(whole, meshes[0], arrays)(arrays, fraction)
    if AxisType.Manual in kinds or problem.axis_name is not None:
        partly = AxisType.Auto in kinds
        return (functools.partial(_by_compiler, problem) if partly else whole)(
            arrays, fraction
        )
    bind = functools.partial(_bind, problem)
    if AxisType.Explicit in kinds:  # some axes are, some are not
        mesh = meshes[0]
        axes = {
            name
            for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
            if kind == AxisType.Explicit
        }
        bind = jax.sharding.auto_axes(bind, axes=axes, out_sharding=(P(), P()))
    return bind(arrays, fraction)


# 1. On one device, or in every shard.


def _on_each_device(problem: _Problem, arrays: list, fraction: jax.Array) -> tuple:
    shards = Shards.of(arrays, problem.axis_name)
    return _find(problem, arrays, fraction, shards, problem.sizes(arrays, shards.split))


def _find(
    problem: _Problem,
    arrays: list,
    fraction: jax.Array,
    shards: Shards,
    sizes: list[int],
    by_compiler: bool = False,
) -> tuple:
    """Returns values and fractions; everything is counted in 64-bit integers."""
    dtype = common_dtype(arrays)
    if not any(sizes):
        return jnp.zeros(len(sizes), dtype), jnp.zeros(len(sizes), jnp.float32)
    given = fraction if problem.fraction is None else problem.fraction
    with wide():
        ranks = [jnp.asarray(rank(given, size), jnp.int64) for size in sizes]
        skipped = jnp.stack(ranks)

        def restart(bracket, skipped):
            return bracket.without_zeros(skipped, given, dtype)

        if by_compiler:
            last = search(
                lambda probes: count_arrays(
                    arrays, problem.groups, probes, dtype, shards
                ),
                skipped,
                Bracket.around_all(jnp.asarray(sizes, jnp.int64), dtype),
                restart=restart,
            )
        else:
            last = passes.find(
                arrays, problem.groups, sizes, skipped, dtype, restart, shards
            )
        size = jnp.asarray([max(size, 1) for size in sizes], jnp.float32)
        # What exceeds `low` is what reaches `high`; nothing reaches the key of an
        # empty group, of which only `low` means anything.
        value = lax.bitcast_convert_type(last.low.astype(unsigned(dtype)), dtype)
        return value, last.reach_high.astype(jnp.float32) / size


def _by_compiler(problem: _Problem, arrays: list, fraction: jax.Array) -> tuple:
    """Where only the compiler knows what is split, it places the sums."""
    shards = Shards.of(arrays, problem.axis_name)
    sizes = problem.sizes(arrays, shards.split)
    return _find(problem, arrays, fraction, shards, sizes, by_compiler=True)


# 2. On an explicit mesh, whose types tell the shards.


def _in_shards(find: Any, mesh: AbstractMesh, arrays: list) -> Any:
    specs = [jax.typeof(array).sharding.spec for array in arrays]

    def find_in_shards(arrays, *numbers):
        in_specs = specs, *[P()] * len(numbers)
        mapped = jax.shard_map(find, mesh=mesh, in_specs=in_specs, out_specs=P())
        return jax.jit(mapped)(arrays, *numbers)

    return find_in_shards


# 3. On an automatic mesh, whose partitioner tells them.

order_statistic_p = Primitive("order_statistic")
order_statistic_p.multiple_results = True


def _bind(problem: _Problem, arrays: list, fraction: jax.Array) -> tuple:
    operands = [*arrays, fraction]
    types = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
    # As a parameter, because JAX tells the devices only to a program that holds it.
    partitioned = jax.make_jaxpr(functools.partial(_partitioned, problem))(*types)
    return tuple(
        order_statistic_p.bind(*operands, problem=problem, partitioned=partitioned)
    )


def _evaluate(
    search_in: Any, *operands: jax.Array, problem: _Problem, **unused: Any
) -> list:
    del unused
    *arrays, fraction = operands
    return list(search_in(problem, arrays, fraction))


@order_statistic_p.def_abstract_eval
def _types(*operands: Any, problem: _Problem, **unused: Any) -> list:
    del unused
    shape = (max(problem.groups) + 1,)
    dtype = common_dtype(operands[:-1])
    return [
        jax.core.ShapedArray(shape, dtype),
        jax.core.ShapedArray(shape, jnp.float32),
    ]


order_statistic_p.def_impl(functools.partial(_evaluate, _on_each_device))


def _one_by_one(
    operands: Any, mapped: Any, *, problem: _Problem, **unused: Any
) -> tuple:
    """Under `jax.vmap` the searches run in turn: their loops differ in length."""
    del unused
    number = next(
        x.shape[axis]
        for x, axis in zip(operands, mapped, strict=True)
        if axis is not None
    )

    def one(i):
        taken = [
            x if axis is None else lax.dynamic_index_in_dim(x, i, axis, keepdims=False)
            for x, axis in zip(operands, mapped, strict=True)
        ]
        *arrays, fraction = taken
        return _bind(problem, arrays, fraction)

    return lax.map(one, jnp.arange(number)), [0, 0]


batching.primitive_batchers[order_statistic_p] = _one_by_one


def _partitioned(problem: _Problem, *operands: jax.Array) -> list:
    """Lets the partitioner ask for the search in the shards that it has chosen."""
    *arrays, _ = operands
    sizes = problem.sizes(arrays, [()] * len(arrays))

    def partition(mesh, given, results):
        del results
        *of_arrays, of_fraction = given
        specs = [_divisible(x.shape, x.sharding.spec, mesh) for x in of_arrays]
        shards = Shards.along([_axes(spec) for spec in specs])

        def find(*operands):
            *arrays, fraction = operands
            return list(_find(problem, arrays, fraction, shards, sizes))

        shardings = [NamedSharding(mesh, spec) for spec in specs]
        everywhere = NamedSharding(mesh, P())
        del of_fraction
        return mesh, find, [everywhere] * 2, (*shardings, everywhere)

    # Every dimension is a factor of its own: any split of any array will do.
    dimensions = iter(f"d{i}" for i in range(sum(x.ndim for x in operands)))
    rule = SdyShardingRule(
        operand_mappings=tuple(
            tuple(next(dimensions) for _ in x.shape) for x in operands
        ),
        result_mappings=(("group",), ("group",)),
    )
    types = _types(*operands, problem=problem)

    def unpartitioned(*_):  # only its types are asked for: see `_lower`
        return [jnp.zeros(x.shape, x.dtype) for x in types]

    custom = custom_partitioning(unpartitioned)
    custom.def_partition(partition=partition, sharding_rule=rule)
    return custom(*operands)


def _lower(context: Any, *operands: Any, problem: _Problem, partitioned: Any) -> Any:
    module = context.module_context
    where = module.axis_context
    manual = set(getattr(where, "manual_axes", ()))
    whole = manual and manual == set(where.mesh.axis_names)
    no_hook = "tpu" in module.platforms or module.lowering_parameters.for_export
    if whole or _devices(where) == 1:
        run = functools.partial(_evaluate, _on_each_device, problem=problem)
    elif no_hook or manual:
        run = functools.partial(_evaluate, _by_compiler, problem=problem)
    else:
        run = jaxpr_as_fun(partitioned)
    return mlir.lower_fun(run, multiple_results=True)(context, *operands)


mlir.register_lowering(order_statistic_p, _lower)


def _devices(axis_context: Any) -> int:
    """Returns how many devices a program is compiled for."""
    number = getattr(axis_context, "num_devices", None)
    return axis_context.mesh.size if number is None else number


def _axes(spec: P) -> tuple:
    """Returns the mesh axes in a partition spec."""
    entries = (
        entry if isinstance(entry, tuple) else (entry,)
        for entry in spec
        if entry is not None
    )
    return tuple(axis for entry in entries for axis in entry)


def _divisible(shape: tuple[int, ...], spec: P, mesh: Any) -> P:
    """Returns the spec without what does not divide its dimension: no padding."""
    entries = [*spec, *[None] * (len(shape) - len(spec))]
    return P(
        *(
            entry
            if size % math.prod(mesh.shape[a] for a in _axes(P(entry))) == 0
            else None
            for size, entry in zip(shape, entries, strict=True)
        )
    )


# Where the arrays are.


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
