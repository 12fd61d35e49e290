"""Intervals for a few numbers, one for each seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean, and where resampling puts it 95 times of 100."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def bootstrap(values: Sequence[float]) -> Interval:
    """The percentile bootstrap of a mean over seeds; it draws the same every time.

    With three seeds the ends are the lowest and the highest of them, or nearly: such an
    interval is too narrow, and reports say so.
    """
    if not len(values):
        raise ValueError("bootstrap: expected at least one value, got none.")
    found = np.asarray(values, float)
    drawn = np.random.default_rng(0).integers(len(found), size=(RESAMPLES, len(found)))
    low, high = np.quantile(found[drawn].mean(1), [0.025, 0.975])
    return Interval(float(found.mean()), float(low), float(high))
