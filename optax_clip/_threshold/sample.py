"""Where the search begins: at the order statistic of a sample of the keys.

In a sample of ``n`` the rank of the answer has a standard deviation of about
``sqrt(n p (1 - p))``, with ``p`` the fraction above it. A sample of everything has
none: it holds the answer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._threshold.bracket import Bracket, search
from optax_clip._threshold.counts import total
from optax_clip._threshold.keys import infinity_key
from optax_clip._threshold.rows import ROW, Rows, Stack, as_keys, row_sums, whole_rows
from optax_clip._threshold.shards import Shards

SAMPLE = 2**16
"""About so many keys are in the sample, all groups together..."""

SAMPLE_OF_GROUP = 2**12
"""...but as many as this of a group, if it has them..."""

STRIDE = 64
"""...so many keys apart. Nearer ones would cost the time of reading all."""


def strides(sizes: Sequence[int]) -> list[int]:
    """Returns how far apart the keys are in the sample, for every group."""

    def stride(size):
        own = min(SAMPLE_OF_GROUP, size // STRIDE)
        return max(size // max(SAMPLE // len(sizes), own), 1)

    return [stride(size) for size in sizes]


def draw(
    stacks: Sequence[Stack], apart: Sequence[int], dtype: jnp.dtype, shards: Shards
) -> Rows:
    """Returns evenly spread keys of every group; all of them where `apart` is 1."""
    alone = len(apart) == 1  # then one row: compilers take time for every operand
    alike: dict[Any, tuple[list[jax.Array], list[int]]] = {}
    for stack in stacks:
        stride = min(apart[group] for group in stack.groups)
        spread = [_spread(x, stack.groups_of_each(), stride) for x in stack.vectors]
        width = spread[0].size // stack.groups_of_each()
        kind = spread[0].dtype, stack.split, 1 if alone else width
        pieces, groups = alike.setdefault(kind, ([], []))
        pieces += [x.reshape(-1) for x in spread]
        groups += stack.groups
    rows = [
        shards.once(split, as_keys(jnp.concatenate(pieces), dtype), -1)
        for (_, split, _), (pieces, _) in alike.items()
    ]
    if alone:
        return Rows(jnp.concatenate(rows).reshape(1, -1), [0])
    rows = [x.reshape(-1, kind[-1]) for x, kind in zip(rows, alike, strict=True)]
    width = max(keys.shape[1] for keys in rows)
    rows = [
        jnp.pad(keys, ((0, 0), (0, width - keys.shape[1])), constant_values=-1)
        for keys in rows
    ]
    groups = [group for _, groups in alike.values() for group in groups]
    return Rows(jnp.concatenate(rows), groups)


def counter(rows: Sequence[Rows], shards: Shards) -> Callable[[jax.Array], jax.Array]:
    """Returns a function from the probes of each group to how many keys reach them."""
    groups = [group for _, members in rows for group in members]

    def count(probes):
        counts = []
        for keys, members in rows:
            of_rows = probes.astype(keys.dtype)[jnp.asarray(members)]
            counts.append(row_sums(*(keys >= probe[:, None] for probe in of_rows.T)))
        return shards.sum(total(jnp.concatenate(counts), groups, len(probes)))

    return count


def first_probes(
    sample: Rows,
    apart: Sequence[int],
    sizes: Sequence[int],
    skipped: jax.Array,
    dtype: jnp.dtype,
    shards: Shards,
) -> jax.Array:
    """Returns four probes: one deviation around the sample's answer, and five.

    Where all keys are in the sample, the middle two are the answer and the next key.
    """
    number = len(sizes)
    # 1. The ranks one deviation above and below that of the answer, in the sample.
    given = jnp.sum(sample.keys >= 0, axis=1, dtype=jnp.float32)
    n = jnp.zeros(number, jnp.float32).at[jnp.asarray(sample.groups)].add(given)
    n = shards.sum(n)
    size = jnp.maximum(jnp.asarray(sizes, jnp.float32), 1)
    p = (skipped.astype(jnp.float32) + 0.5) / size
    whole = jnp.asarray(apart) == 1
    deviation = jnp.where(whole, 0, jnp.sqrt(n * p * (1 - p)) + 0.5)
    ranks = jnp.concatenate([n * p + deviation, n * p - deviation])
    n, deviation = (jnp.concatenate([x, x]) for x in (n, deviation))
    ranks = jnp.clip(ranks, 0, jnp.maximum(n - 1, 0)).astype(jnp.int64)
    # 2. Their keys, found side by side as if there were twice as many groups.
    twin = Rows(sample.keys, [group + number for group in sample.groups])
    ends = search(
        counter([sample, twin], shards),
        Bracket.around_all(n.astype(jnp.int64), ranks, dtype),
        lambda bracket: bracket.open() & (bracket.inside() > deviation / 4),
    )
    second, third = ends.low[:number], ends.high[number:]
    # 3. Twice the distance between them on either side.
    most = infinity_key(dtype) + 1
    outer = jnp.minimum(third - second, most // 4) * 2  # must not overflow
    first = jnp.maximum(second - outer, 0)
    fourth = third + jnp.minimum(outer, most - third)
    return jnp.stack([first, second, third, fourth], axis=1)


def _spread(vector: jax.Array, groups: int, stride: int) -> jax.Array:
    """Returns about every so-many-th number of each group; every one if that is 1.

    Rows first: on TPU all rows that are left are copied into another layout.
    """
    rows_apart = min(max(stride // STRIDE, 1), 16)
    # Odd, or it would be the same columns of every row.
    stride = stride // rows_apart | 1
    rows = whole_rows(vector)
    if groups == 1:  # a vector, or XLA for TPU may run out of memory
        if rows_apart > 1:
            rows = lax.slice_in_dim(rows.reshape(-1, ROW), 0, None, rows_apart)
        return lax.slice_in_dim(rows.reshape(-1), 0, None, stride)
    rows = lax.slice_in_dim(rows.reshape(groups, -1, ROW), 0, None, rows_apart, axis=1)
    return lax.slice_in_dim(rows.reshape(groups, -1), 0, None, stride, axis=1)
