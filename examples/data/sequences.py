"""The task of a small language model: each id of a row follows from the one before."""

import numpy as np

IDS = 64


def batch_at(step: int, size: int = 16, length: int = 16) -> dict[str, np.ndarray]:
    """Rows `ids` and the ids that follow, the same ones for the same step."""
    rows = np.empty((size, length + 1), np.int32)
    rows[:, 0] = np.random.default_rng(step).integers(0, IDS, size)
    for i in range(length):
        rows[:, i + 1] = (5 * rows[:, i] + 3) % IDS
    return {"ids": rows[:, :-1], "labels": rows[:, 1:]}
