"""A function of arrays that runs in their shards, on an automatic mesh.

There only the compiler knows how an array is split. So the function becomes a
primitive, which is lowered when the devices are known:

.. code-block:: text

  one device                    whole
  several                       in_shards(split), once the partitioner has chosen it
  several TPUs, or an export    by_compiler, which leaves all sums to the partitioner

XLA for TPU has no hook for the second (jax-ml/jax#38196), and nothing that is exported
can hold one. Nor can doubles: the partitioner asks where a `jax.enable_x64` around the
program does not hold.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    SdyShardingRule,
    custom_partitioning,
)
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_clip._threshold.shards import Axes


class Ways(NamedTuple):
    """The ways to compute one thing: a list of arrays that are the same everywhere.

    Attributes:
      whole: a function of all arrays, for one device.
      in_shards: returns a function of the shards of arrays that are split over these
        axes, which runs on every device.
      by_compiler: a function of all arrays that a partitioner can split well.
      types: what all of them return. To trace one of them for it would take as long as
        all the rest.
    """

    whole: Callable[..., Sequence[jax.Array]]
    in_shards: Callable[[Sequence[Axes]], Callable[..., Sequence[jax.Array]]]
    by_compiler: Callable[..., Sequence[jax.Array]]
    types: tuple[jax.ShapeDtypeStruct, ...]


def partitioned(ways: Ways, *operands: jax.Array) -> tuple[jax.Array, ...]:
    """Computes it where the arrays are."""
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
    # As a parameter, because JAX tells the devices only to a program that holds it.
    hook = jax.make_jaxpr(functools.partial(_with_hook, ways))(*like)
    found = _partitioned_p.bind(*operands, ways=ways, hook=hook)
    return tuple(found)


_partitioned_p = Primitive("partitioned")
_partitioned_p.multiple_results = True
_partitioned_p.def_impl(lambda *operands, ways, **_: list(ways.whole(*operands)))
_partitioned_p.def_abstract_eval(
    lambda *_, ways, **__: [jax.core.ShapedArray(x.shape, x.dtype) for x in ways.types]
)


def _lower(context: Any, *operands: Any, ways: Ways, hook: Any, **_: Any) -> Any:
    module = context.module_context
    where = module.axis_context
    devices = getattr(where, "num_devices", None)
    devices = where.mesh.size if devices is None else devices
    manual = set(getattr(where, "manual_axes", ()))
    whole = manual and manual == set(where.mesh.axis_names)  # of a jax.shard_map
    no_hook = "tpu" in module.platforms or module.lowering_parameters.for_export
    no_hook |= any(x.dtype == jnp.float64 for x in ways.types)
    if whole or devices == 1:
        run = ways.whole
    elif no_hook or manual:
        run = ways.by_compiler
    else:
        run = jaxpr_as_fun(hook)
    return mlir.lower_fun(run, multiple_results=True)(context, *operands)


mlir.register_lowering(_partitioned_p, _lower)


def _one_by_one(operands: Any, mapped: Any, *, ways: Ways, **_: Any) -> tuple:
    """Under `jax.vmap` they run in turn: loops may differ in length."""
    pairs = [*zip(operands, mapped, strict=True)]
    number = next(x.shape[axis] for x, axis in pairs if axis is not None)

    def one(i):
        taken = [
            x if axis is None else lax.dynamic_index_in_dim(x, i, axis, keepdims=False)
            for x, axis in pairs
        ]
        return partitioned(ways, *taken)

    results = lax.map(one, jnp.arange(number))
    return results, [0] * len(results)


batching.primitive_batchers[_partitioned_p] = _one_by_one


def _with_hook(ways: Ways, *operands: jax.Array) -> list:
    """Lets the partitioner ask for the code of a shard."""

    def partition(mesh, given, results):
        specs = [_divisible(x.shape, x.sharding.spec, mesh) for x in given]
        find = ways.in_shards([_axes(spec) for spec in specs])
        everywhere = [NamedSharding(mesh, P())] * len(results)
        shardings = tuple(NamedSharding(mesh, spec) for spec in specs)

        def find_in_shards(*shards):
            # The mesh of the program around would be written into that of a shard.
            with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
                return list(find(*shards))

        return mesh, find_in_shards, everywhere, shardings

    # Every dimension is a factor of its own: any split of any array will do.
    factors = (f"d{i}" for i in range(sum(x.ndim for x in (*operands, *ways.types))))

    def name(arrays):
        return tuple(ArrayMapping(*(next(factors) for _ in x.shape)) for x in arrays)

    inputs, outputs = name(operands), name(ways.types)
    rule = SdyShardingRule(operand_mappings=inputs, result_mappings=outputs)
    # Its own body, which must hold no constants, only tells the types: see `_lower`.
    hook = custom_partitioning(
        lambda *_: [jnp.zeros(x.shape, x.dtype) for x in ways.types]
    )
    hook.def_partition(partition=partition, sharding_rule=rule)
    return hook(*operands)


def _axes(spec: P) -> Axes:
    """Returns the mesh axes in a partition spec."""
    entries = [entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    return tuple(axis for entry in entries for axis in entry if axis is not None)


def _divisible(shape: tuple[int, ...], spec: P, mesh: Mesh) -> P:
    """Returns the spec without what does not divide its dimension: no padding."""

    def divides(size, entry):
        return size % math.prod(mesh.shape[axis] for axis in _axes(P(entry))) == 0

    entries = [*spec, *[None] * (len(shape) - len(spec))]
    pairs = zip(shape, entries, strict=True)
    return P(*(entry if divides(size, entry) else None for size, entry in pairs))
