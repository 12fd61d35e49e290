"""Documents one after the other, in windows without padding: what pretraining reads.

    ... was great. [SEP] a dull film with good songs ...
    window    [CLS] great. [SEP] a dull film with [SEP]

Masks are always fresh, where those of `examples.language_task` never change.
"""

from collections.abc import Callable, Sequence

import numpy as np

from examples.data import masking
from examples.data.batching import Arrays, window_count, windows_at
from examples.data.subwords import Subwords


def stream(words: Subwords, documents: Sequence[str]) -> np.ndarray:
    """The tokens of all documents, each with a sep at its end."""
    rows = words.encode(documents)
    return np.concatenate([np.asarray(row[1:], np.int32) for row in rows])


def batches(
    stream_N: np.ndarray,
    words: Subwords,
    batch_size: int,
    length: int,
    seed: int,
    *,
    causal: bool = False,
) -> Callable[[int], Arrays]:
    """Step number to batch, of masked or of next tokens.

    Raises:
        ValueError: a window holds nothing, or the stream is shorter than a batch.
    """
    if length < 3:
        raise ValueError(f"expected a length of at least 3 tokens, got {length}.")
    ends = words.cls, words.sep

    def batch_at(step: int) -> Arrays:
        windows_BxN = windows_at(stream_N, length - 2, batch_size, seed, step)
        ids_BxL = np.pad(windows_BxN, ((0, 0), (1, 1)), constant_values=(ends, ends))
        if causal:
            return masking.causal_lm(ids_BxL, words.pad)
        noise_BxLx3 = np.random.default_rng((seed, step, 1)).random((*ids_BxL.shape, 3))
        return masking.masked_lm(ids_BxL, noise_BxLx3, words)

    batch_at(0)
    return batch_at


def sample(
    stream_N: np.ndarray,
    words: Subwords,
    batch_size: int,
    length: int,
    *,
    causal: bool = False,
    most: int = 32,
) -> list[Arrays]:
    """Some batches that never change, to measure on: at most an epoch."""
    batch_at = batches(stream_N, words, batch_size, length, seed=1, causal=causal)
    per_epoch = window_count(stream_N, length - 2) // batch_size
    return [batch_at(step) for step in range(min(per_epoch, most))]
