"""T5's mixture: spans to fill in and sentences to translate, in one batch.

    buckets = bucketed(pairs, vocabulary)
    batch = {"spans": span_corruption.batch_at(...),
             "translation": batch_at(buckets, tokens, seed, step)}
    loss = joint_loss(t5.make_loss(...), t5.token_count)  # of such a batch

Sentences are sorted into a few shapes, so that little of a batch is padding, and every
shape has batches of about as many target tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.data import translation
from examples.data.batching import Arrays, Batch, count, padded
from examples.data.batching import batch_at as rows_of_one_shape
from examples.data.vocabulary import PAD, Vocabulary

# Tokens of source and target. The prefix is 12 tokens of a source; nine in ten of the
# pairs of LibreOffice's help fit.
SHAPES = (32, 24), (40, 36), (52, 48)


def bucketed(
    pairs: Sequence[translation.Pair],
    vocabulary: Vocabulary,
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> list[Arrays]:
    """The pairs in tokens, each in the first shape that it fits; others are dropped."""
    source = vocabulary.encode([translation.PREFIX + pair.english for pair in pairs])
    target = vocabulary.encode([pair.french for pair in pairs])
    rows: list[list[tuple[list[int], list[int]]]] = [[] for _ in shapes]
    for row in zip(source, target, strict=True):
        fits = [len(row[0]) <= s and len(row[1]) <= t for s, t in shapes]
        if any(fits):
            rows[fits.index(True)].append(row)
    return [
        {
            "source": padded([row[0] for row in own], shape[0], PAD),
            "target": padded([row[1] for row in own], shape[1], PAD),
        }
        for own, shape in zip(rows, shapes, strict=True)
        if own
    ]


def batches_per_epoch(buckets: Sequence[Arrays], tokens: int) -> list[int]:
    """How many batches each bucket has, of rows for that many target tokens."""
    return [count(bucket) // _rows(bucket, tokens) for bucket in buckets]


def batch_at(buckets: Sequence[Arrays], tokens: int, seed: int, step: int) -> Arrays:
    """Batch number `step`, recomputed from the numbers alone.

    An epoch is a permutation of all the batches, and in each bucket one of its rows.
    """
    sizes = batches_per_epoch(buckets, tokens)
    if not sum(sizes):
        raise ValueError(
            f"expected pairs for at least one batch of {tokens} target tokens, got "
            f"{sum(map(count, buckets))} pairs: give more data or fewer tokens."
        )
    epoch, index = divmod(step, sum(sizes))
    order = np.random.default_rng((seed, epoch, 2)).permutation(sum(sizes))
    which = np.repeat(np.arange(len(sizes)), sizes)[order[index]]
    within = order[index] - sum(sizes[:which])
    bucket = buckets[which]
    return rows_of_one_shape(
        bucket, _rows(bucket, tokens), seed, epoch * sizes[which] + within
    )


def joint_loss(
    loss: Callable[..., jax.Array], weight: Callable[[Batch], jax.Array]
) -> Callable[..., jax.Array]:
    """The mean of `loss` over the tokens of all the parts of a batch."""

    def joint(
        params: Any, batch: Mapping[str, Batch], key: jax.Array | None = None
    ) -> jax.Array:
        weights = {name: weight(part) for name, part in batch.items()}
        losses = (
            weights[name] * loss(params, part, key) for name, part in batch.items()
        )
        zero = jnp.zeros(())
        return sum(losses, zero) / sum(weights.values(), zero)

    return joint


def _rows(bucket: Arrays, tokens: int) -> int:
    return max(1, tokens // bucket["target"].shape[1])
