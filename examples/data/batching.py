"""Batches as pure functions of a seed and a step number.

Everything is tokenised once and padded to one length, so that an epoch is a
permutation of rows and any step of any run can be recomputed from its number.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Batch = Mapping[str, Any]  # what a loss takes: arrays, or what jit makes of them

IGNORED = -100  # the label of a position where nothing is predicted


def rows_at(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The rows of batch number `step`: epochs are permutations, remainders dropped."""
    per_epoch = count // batch_size
    if per_epoch == 0:
        raise ValueError(
            f"expected at least one batch of {batch_size} rows, got {count} rows: "
            "lower the batch size or give more data."
        )
    epoch, index = divmod(step, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[index * batch_size : (index + 1) * batch_size]


def batch_at(arrays: Arrays, batch_size: int, seed: int, step: int) -> Arrays:
    """Batch number `step` of an endless stream, recomputed from the numbers alone."""
    rows = rows_at(count(arrays), batch_size, seed, step)
    return {name: array[rows] for name, array in arrays.items()}


def whole(arrays: Arrays, size: int, fill: Mapping[str, int]) -> list[Arrays]:
    """All rows in their order, as batches of one size; rows of `fill` end the last."""
    batches = -(-count(arrays) // size)
    missing = batches * size - count(arrays)
    parts = {
        name: np.split(
            np.pad(
                array,
                ((0, missing), *[(0, 0)] * (array.ndim - 1)),
                constant_values=fill[name],
            ),
            batches,
        )
        for name, array in arrays.items()
    }
    return [{name: part[i] for name, part in parts.items()} for i in range(batches)]


def windows_at(
    stream_N: np.ndarray, length: int, batch_size: int, seed: int, step: int
) -> np.ndarray:
    """The windows of batch number `step`; they start elsewhere in every epoch."""
    windows = window_count(stream_N, length)
    rows = rows_at(windows, batch_size, seed, step)
    epoch = step // (windows // batch_size)
    phase = np.random.default_rng((seed, epoch, 0)).integers(length)
    return stream_N[phase + rows[:, None] * length + np.arange(length)]


def window_count(stream_N: np.ndarray, length: int) -> int:
    """One window less than fits: its room is what the start of an epoch varies in."""
    return max(len(stream_N) // length - 1, 0)


def padded(rows: Sequence[Sequence[int]], length: int, pad: int) -> np.ndarray:
    """Rows of at most `length` tokens as one array."""
    ids_BxL = np.full((len(rows), length), pad, np.int32)
    for row, tokens in zip(ids_BxL, rows, strict=True):
        row[: len(tokens)] = tokens
    return ids_BxL


def count(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))
