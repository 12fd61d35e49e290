"""What encoders learn to predict: masked tokens (Devlin et al. 2019), or the next one.

    ids            [CLS] a    dull film  with  good music [SEP] [PAD]
    masked_lm      [CLS] a   [MASK] film with  good songs [SEP] [PAD]
                               |                      |
                    positions  2                      6
                    labels     dull                   music
    causal_lm      labels of each position: the token after it, up to [SEP]

A token is chosen with probability 0.15, unless it is special; of the chosen ones 80 %
become [MASK], 10 % any token of the vocabulary, and 10 % stay. That is what the default
collator of Hugging Face does, which the papers' code uses.
"""

import numpy as np
import scipy.special

from examples.data.batching import IGNORED, Arrays
from examples.data.subwords import Subwords

PROBABILITY = 0.15
_MASKED, _REPLACED = 0.8, 0.1  # the rest stays as it is
_TAIL = 1e-5


def masked_lm(ids_BxL: np.ndarray, noise_BxLx3: np.ndarray, words: Subwords) -> Arrays:
    """The batch that uniform noise in [0, 1) makes: ids BxL, positions and labels BxM.

    A row with more than M = `most_masks(L)` chosen tokens keeps the first M; one with
    fewer has labels IGNORED at the end.
    """
    chance_BxL, fate_BxL, other_BxL = np.moveaxis(noise_BxLx3, 2, 0)
    M = most_masks(ids_BxL.shape[1])
    chosen_BxL = ~np.isin(ids_BxL, words.special) & (chance_BxL < PROBABILITY)
    chosen_BxL &= np.cumsum(chosen_BxL, axis=1) <= M
    hidden_BxL = chosen_BxL & (fate_BxL < _MASKED)
    replaced_BxL = chosen_BxL & ~hidden_BxL & (fate_BxL < _MASKED + _REPLACED)
    corrupted_BxL = np.where(hidden_BxL, words.mask, ids_BxL)
    other_BxL = (other_BxL * words.size).astype(np.int32)
    corrupted_BxL = np.where(replaced_BxL, other_BxL, corrupted_BxL)
    positions_BxM = np.argsort(~chosen_BxL, axis=1, kind="stable")[:, :M]
    real_BxM = np.take_along_axis(chosen_BxL, positions_BxM, axis=1)
    labels_BxM = np.take_along_axis(ids_BxL, positions_BxM, axis=1)
    return {
        "ids": corrupted_BxL.astype(np.int32),
        "positions": np.where(real_BxM, positions_BxM, 0).astype(np.int32),
        "labels": np.where(real_BxM, labels_BxM, IGNORED).astype(np.int32),
    }


def causal_lm(ids_BxL: np.ndarray, pad: int) -> Arrays:
    """Ids BxL and the token after each; padding is neither asked for nor answered."""
    next_BxL = np.pad(ids_BxL[:, 1:], ((0, 0), (0, 1)), constant_values=pad)
    return {
        "ids": ids_BxL,
        "labels": np.where(next_BxL == pad, IGNORED, next_BxL).astype(np.int32),
    }


def fixed_noise(rows: int, length: int, seed: int) -> np.ndarray:
    """Noise of each row from (seed, row) alone: the same masks in every epoch.

    A longer row begins with the noise of a shorter one.
    """
    return np.stack(
        [np.random.default_rng((seed, row)).random((length, 3)) for row in range(rows)]
    )


def most_masks(length: int) -> int:
    """So many that one full row in 100,000 has more."""
    maskable = length - 2
    more_M = scipy.special.bdtrc(np.arange(maskable + 1), maskable, PROBABILITY)
    return max(1, int(np.argmax(more_M < _TAIL)))
