"""Intervals for a few numbers, one for each seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean over seeds, and how sure it is.

    Attributes:
        mean: of the values.
        low, high: where resampling puts the mean 95 times of 100; with three seeds
            about the lowest and the highest of them, which is too narrow.
        margin: on both sides of the mean, Student's 95 % interval; inf of one value.
    """

    mean: float
    low: float
    high: float
    margin: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def is_below_zero(self) -> bool:
        """Whether all of Student's interval is."""
        return self.mean + self.margin < 0

    @property
    def is_above_zero(self) -> bool:
        """Whether all of Student's interval is."""
        return self.mean - self.margin > 0


def bootstrap(values: Sequence[float]) -> Interval:
    """The percentile bootstrap of a mean, which draws the same every time.

    What is called clear is decided by Student's interval beside it: of three seeds
    that have one sign the bootstrap's leaves zero out whatever their sizes.
    """
    if not len(values):
        raise ValueError("bootstrap: expected at least one value, got none.")
    found = np.asarray(values, float)
    count = len(found)
    drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    low, high = np.quantile(found[drawn].mean(1), [0.025, 0.975])
    margin = np.inf
    if count > 1:
        margin = stdtrit(count - 1, 0.975) * found.std(ddof=1) / np.sqrt(count)
    return Interval(float(found.mean()), float(low), float(high), float(margin))
