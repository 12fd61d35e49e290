"""T5's span corruption (Raffel et al. 2020), in NumPy, on packed windows of text.

    text      Thank you for inviting me to your party last week .
    noise               ^^^^^^^^^^^^                ^^^^^
    source    Thank you <0> me to your party <1> week . </s>
    target    <0> for inviting <1> last </s>

A window has as many tokens as fill the source exactly, and the number of noise
tokens and spans depends on its length alone: nothing is padded, every batch has
the same shapes.
"""

from collections.abc import Sequence

import numpy as np

from examples.data.batching import Arrays, windows_at
from examples.data.vocabulary import EOS, Vocabulary

NOISE_DENSITY = 0.15
MEAN_SPAN_LENGTH = 3.0


def noise_counts(length: int) -> tuple[int, int]:
    """Noise tokens and noise spans in a window of `length` tokens."""
    tokens = min(max(round(length * NOISE_DENSITY), 1), length - 1)
    spans = max(round(tokens / MEAN_SPAN_LENGTH), 1)
    return tokens, min(spans, length - tokens)


def window_length(source_length: int) -> int:
    """The longest window whose corrupted source, eos included, fits."""

    def corrupted(length: int) -> int:
        tokens, spans = noise_counts(length)
        return length - tokens + spans + 1

    length = 2
    while corrupted(length + 1) <= source_length:
        length += 1
    return length


def noise_mask(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    """True where a token is noise: kept and noise spans alternate, kept ones first."""
    tokens, spans = noise_counts(length)
    kept_RxS = _segment_lengths(rng, rows, length - tokens, spans)
    noise_RxS = _segment_lengths(rng, rows, tokens, spans)
    lengths_RxSx2 = np.stack([kept_RxS, noise_RxS], axis=2)
    ends_Rx2S = np.cumsum(lengths_RxSx2.reshape(rows, -1), axis=1)
    # Position t lies in the noise if an odd number of spans has ended before it.
    ended_RxL = (ends_Rx2S[:, :, None] <= np.arange(length)).sum(axis=1)
    return ended_RxL % 2 == 1


def corrupt(windows_BxL: np.ndarray, mask_BxL: np.ndarray, sentinel: int) -> Arrays:
    """Source and target; `sentinel` is the first one's id, they count down."""
    before_BxL = np.roll(mask_BxL, 1, axis=1)
    before_BxL[:, 0] = True  # the first kept span starts there
    return {
        "source": _spans_to_sentinels(
            windows_BxL, mask_BxL, mask_BxL & ~before_BxL, sentinel
        ),
        "target": _spans_to_sentinels(
            windows_BxL, ~mask_BxL, ~mask_BxL & before_BxL, sentinel
        ),
    }


def stream(texts: Sequence[Sequence[str]], vocabulary: Vocabulary) -> np.ndarray:
    """All tokens in the order of the text, one language after the other."""
    return np.concatenate(
        [
            np.asarray(tokens, np.int32)
            for language in texts
            for tokens in vocabulary.encode(language, add_eos=False)
        ]
    )


def batch_at(
    stream: np.ndarray,
    vocabulary: Vocabulary,
    batch_size: int,
    source_length: int,
    seed: int,
    step: int,
) -> Arrays:
    """Batch number `step`, recomputed from the numbers alone.

    Windows start at another place in every epoch, and their masks are always fresh.
    """
    length = window_length(source_length)
    windows_BxL = windows_at(stream, length, batch_size, seed, step)
    rng = np.random.default_rng((seed, step, 1))
    mask_BxL = noise_mask(rng, batch_size, length)
    return corrupt(windows_BxL, mask_BxL, vocabulary.sentinel(0))


def _segment_lengths(
    rng: np.random.Generator, rows: int, items: int, segments: int
) -> np.ndarray:
    """Cuts `items` into non-empty segments, every way equally likely."""
    cuts = np.arange(items - 1) < segments - 1
    cuts_RxI = rng.permuted(np.tile(cuts, (rows, 1)), axis=1)
    ends = [np.append(np.flatnonzero(row), items - 1) for row in cuts_RxI]
    return np.diff(np.stack(ends), prepend=-1, axis=1)


def _spans_to_sentinels(
    tokens_BxL: np.ndarray, span_BxL: np.ndarray, start_BxL: np.ndarray, sentinel: int
) -> np.ndarray:
    """Each span becomes one sentinel, counted down; eos at the end of each row."""
    sentinel_BxL = sentinel + 1 - np.cumsum(start_BxL, axis=1)
    replaced_BxL = np.where(start_BxL, sentinel_BxL, tokens_BxL)
    kept = replaced_BxL[~span_BxL | start_BxL].reshape(len(tokens_BxL), -1)
    return np.pad(kept, ((0, 0), (0, 1)), constant_values=EOS).astype(np.int32)
