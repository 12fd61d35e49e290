"""The order statistic behind top-k clipping: exact, and found by counting.

The threshold of a group of arrays is its ``(m+1)``-th largest magnitude. Sorting
would find it, but needs the arrays flat, together and several times over; counting
needs neither. Magnitudes are compared as integer keys (``_keys``), and the threshold is
the largest key ``t`` with

.. code-block:: text

  #{i : key_i >= t}  >=  m + 1

which a search (``_search``) brackets by counting at a few keys per pass over the data.
A sample says where to begin, and the last pass brings home the few keys that are left:
two passes in all, mostly (``_one_device``). Counting is a sum, so sharded arrays stay
where they are: every device counts its parts, and a pass needs nothing but the
all-reduce of a few integers (``_shards``). Where only the compiler knows what is a
part, it places the sums, and there is no sample.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from optax_clip import _one_device
from optax_clip._keys import (
    common_dtype,
    infinity_key,
    key_dtype,
    magnitude_key,
    unsigned,
)
from optax_clip._ranks import Count, rank, stack
from optax_clip._search import Bracket, search
from optax_clip._shards import AxisName, Shards


class Threshold(NamedTuple):
    """The order statistic of every group.

    Attributes:
      value: magnitudes of shape ``(groups,)``, in the common float type of the arrays.
      clipped_fraction: share of coordinates strictly above, shape ``(groups,)``.
    """

    value: jax.Array
    clipped_fraction: jax.Array


def threshold(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    fraction: jax.Array | float,
    tolerance: ArrayLike = 0.0,
    axis_name: AxisName | None = None,
) -> Threshold:
    """The ``(floor(fraction * size) + 1)``-th largest magnitude of every group.

    Args:
      arrays: real floating-point arrays of any shapes and types, at least one.
      groups: the group of each array, numbered from 0 without gaps.
      fraction: share of the coordinates to exceed the threshold, in ``[0, 1)``; a
        Python number, or a scalar array (then clamped to the range).
      tolerance: a share of the coordinates. Any magnitude will do that at most
        ``floor(fraction * size)`` exceed, and at most ``tolerance * size`` fewer; the
        search stops at the first that it has counted. 0 for the order statistic.
      axis_name: mapped axes that the arrays are split over, where types do not say.

    Returns:
      A :class:`Threshold`. NaN counts as infinitely large and is never a threshold. A
      group without coordinates has threshold 0.
    """
    dtype = common_dtype(arrays)
    arrays = [lax.stop_gradient(array) for array in arrays]
    shards = Shards.of(arrays, axis_name)
    sizes = [0] * (max(groups) + 1)
    for array, group in zip(arrays, groups, strict=True):
        sizes[group] += array.size * shards.number(array)
    if not any(sizes):
        return Threshold(jnp.zeros(len(sizes), dtype), jnp.zeros(len(sizes)))
    skipped = stack([rank(fraction, size) for size in sizes])

    def find(arrays, skipped, tolerance):
        bracket = Bracket.around_all(stack([*map(Count.exactly, sizes)]), dtype)
        slack = tolerance * jnp.asarray(sizes, jnp.float32)

        def unfinished(bracket):
            missing = skipped.minus(bracket.reach_high).as_float()
            return bracket.open() & ((tolerance == 0) | (missing > slack))

        shards = Shards.of(arrays, axis_name)
        if _are_whole(arrays):
            return _one_device.search(
                arrays, groups, sizes, skipped, bracket, dtype, unfinished, shards
            )
        return search(
            lambda probes: _group_counts(arrays, groups, probes, dtype, shards),
            skipped,
            bracket,
            unfinished,
        )

    last = _on_every_device(find, arrays)(arrays, skipped, tolerance)
    above = last.reach_high.as_float()
    share = above / jnp.asarray([max(size, 1) for size in sizes], jnp.float32)
    # What exceeds this key is what reaches `high`. In a closed bracket it is `low`,
    # and in that of an empty group, which no key reaches, only `low` means anything.
    key = jnp.maximum(last.high - 1, last.low).astype(unsigned(dtype))
    return Threshold(lax.bitcast_convert_type(key, dtype), share)


def largest(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    axis_name: AxisName | None = None,
) -> Threshold:
    """The threshold for a fraction of 0, at the price of one reduction."""
    dtype = common_dtype(arrays)

    def find(arrays):
        top = jnp.zeros(max(groups) + 1, key_dtype(dtype))
        for array, group in zip(arrays, groups, strict=True):
            key = magnitude_key(lax.stop_gradient(array), dtype)
            key = jnp.minimum(jnp.max(key, initial=0), infinity_key(dtype))
            top = top.at[group].max(key)
        return Shards.of(arrays, axis_name).largest(top)

    top = _on_every_device(find, arrays)(arrays)
    value = lax.bitcast_convert_type(top.astype(unsigned(dtype)), dtype)
    return Threshold(value, jnp.zeros(top.shape, jnp.float32))


# Where the arrays are.


def _on_every_device(
    find: Callable[..., Any], arrays: Sequence[jax.Array]
) -> Callable[..., Any]:
    """`find`, of arrays and then numbers, where types tell the parts: in the parts.

    They do on a mesh whose axes are all explicit.
    """
    meshes = _meshes(arrays)
    if _axis_types(meshes) != {AxisType.Explicit}:
        return find

    def find_in_parts(arrays, *numbers):
        specs = [jax.typeof(array).sharding.spec for array in arrays]
        in_specs = specs, *[P()] * len(numbers)
        mapped = jax.shard_map(find, mesh=meshes[0], in_specs=in_specs, out_specs=P())
        return jax.jit(mapped)(arrays, *numbers)

    return find_in_parts


def _are_whole(arrays: Sequence[jax.Array]) -> bool:
    """Whether no array can have several devices under it, or a type that says so."""
    meshes = _meshes(arrays)
    types = _axis_types(meshes)
    # Programs are also compiled for machines that are elsewhere, and have a mesh.
    devices = max([jax.device_count(), *(mesh.size for mesh in meshes)])
    one_device = AxisType.Explicit not in types and devices == 1
    return one_device or types == {AxisType.Manual}


def _axis_types(meshes: Sequence[AbstractMesh]) -> set[AxisType]:
    return {axis_type for mesh in meshes for axis_type in mesh.axis_types}


def _meshes(arrays: Sequence[jax.Array]) -> list[AbstractMesh]:
    """The mesh of each array that is on one: the same for all."""
    meshes = [jax.typeof(array).sharding.mesh for array in arrays]
    meshes = [mesh for mesh in meshes if not mesh.empty]
    shapes = {str(dict(mesh.shape)): None for mesh in meshes}
    if len(shapes) > 1:
        raise ValueError(
            "clipping: expected all leaves on one mesh; got leaves on meshes of "
            f"{' and '.join(shapes)} devices. Move them with jax.device_put."
        )
    return meshes


def _group_counts(
    arrays: Sequence[jax.Array],
    groups: Sequence[int],
    probes: jax.Array,
    dtype: jnp.dtype,
    shards: Shards,
) -> Count:
    """How many magnitudes of each group reach each of its probes."""
    # Or XLA would compute the keys before the loop, and store them.
    held, probes = lax.optimization_barrier((arrays, probes))
    # What is likely to be split alike comes together: such arrays XLA for GPU and TPU
    # may add up before it adds up devices, so that less crosses.
    kinds = [(-array.ndim, -array.size) for array in arrays]
    sums: list[list[jax.Array]] = []
    members: list[int] = []
    latest: dict[int, tuple[int, int]] = {}  # the sum of a group, and what fits in yet
    for i in sorted(range(len(arrays)), key=kinds.__getitem__):
        group = groups[i]
        counts = _count(magnitude_key(held[i], dtype), probes[group])
        counts = [shards.once(arrays[i], count, 0) for count in counts]
        place, room = latest.get(group, (0, -1))
        if arrays[i].size <= room:
            sums[place] = [a + b for a, b in zip(sums[place], counts, strict=True)]
        else:
            place, room = len(sums), 2**32 - 1
            sums.append(counts)
            members.append(group)
        latest[group] = place, room - arrays[i].size
    total = Count.of(jnp.stack([*map(jnp.stack, sums)]))
    return shards.total(total.total(members, len(probes)))


def _count(keys: jax.Array, probes: jax.Array) -> list[jax.Array]:
    """A reduction for each probe, which XLA for GPU and TPU makes one of.

    A partitioner would gather the partial results of one with several operands, and
    may move a whole array for one along an axis of probes.
    """
    return [jnp.sum(keys >= probe, dtype=jnp.uint32) for probe in probes]
