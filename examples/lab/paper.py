"""What Pan and Li (2022) report: the numbers to stand beside ours.

`RATIOS` are tables 3 to 6, directional sharpness over that of SGD's direction; the
batches are those of figures 5 to 8.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Ratios = Mapping[str, float]

# The columns of the tables, in their order, and in that of their text.
COLUMNS = (
    "clipped_sgd",
    "adam",
    "adafactor",
    "clipped_adafactor",
    "normalized_sgd",
    "clipped_normalized_sgd",
)
EPOCHS = (2, 5, 10, 20)


def _table(*rows: tuple[float, ...]) -> dict[int, Ratios]:
    return {
        epoch: dict(zip(COLUMNS, row, strict=True))
        for epoch, row in zip(EPOCHS, rows, strict=True)
    }


# (task, optimizer of the trajectory) -> epoch -> optimizer -> ratio.
RATIOS: Mapping[tuple[str, str], Mapping[int, Ratios]] = {
    ("translation", "sgd"): _table(
        (0.43546787, 0.04595183, 1.6432e-5, 9.9343e-6, 0.20991666, 0.06885640),
        (0.02766145, 0.00250487, 6.0198e-7, 4.7015e-7, 0.01427107, 0.00610456),
        (0.06981113, 0.00546100, 1.5864e-6, 1.2210e-6, 0.03849150, 0.01631434),
        (0.11132615, 0.00914083, 2.4767e-6, 1.9563e-6, 0.06279230, 0.02604086),
    ),
    ("masked_lm", "sgd"): _table(
        (0.10431360, 0.03353230, 0.00282802, 0.00196985, 0.28767978, 0.05043281),
        (0.12449840, 0.02682579, 0.00191930, 0.00123799, 0.26880846, 0.05914444),
        (0.11993282, 0.01577251, 0.00441034, 0.00278653, 0.30607491, 0.05791050),
        (0.09336649, 0.01320078, 0.00893414, 0.00542521, 0.28826713, 0.04681089),
    ),
    ("translation", "adam"): _table(
        (0.01189776, 0.00014977, 6.2772e-7, 4.5537e-7, 0.00938728, 0.00334502),
        (0.00341957, 0.00014246, 4.4903e-8, 3.8484e-8, 0.00173206, 0.00085046),
        (0.01228746, 0.00064037, 3.4227e-6, 2.8321e-6, 0.00975973, 0.00412512),
        (0.01194036, 0.00034823, 4.0147e-7, 3.2190e-7, 0.00983759, 0.00338311),
    ),
    ("masked_lm", "adam"): _table(
        (0.05873187, 0.00206153, 0.00144918, 0.00088563, 0.25169848, 0.02890596),
        (0.02350328, 0.00143950, 0.00240724, 0.00141641, 0.21113349, 0.01096425),
        (0.02781447, 0.00266029, 0.00387052, 0.00222226, 0.20546310, 0.01329525),
        (0.07415355, 0.02341449, 0.02283569, 0.01298895, 0.22893490, 0.03024933),
    ),
}

# The batch of each measured epoch whose landscape the figures show, counted from 1.
FIGURE_BATCHES: Mapping[tuple[str, str], Mapping[int, int]] = {
    ("translation", "sgd"): {2: 10, 5: 4, 10: 3, 20: 3},
    ("masked_lm", "sgd"): {2: 10, 5: 5, 10: 1, 20: 7},
    ("translation", "adam"): {2: 5, 5: 10, 10: 4, 20: 5},
    ("masked_lm", "adam"): {2: 5, 5: 7, 10: 9, 20: 6},
}

# Table 2: learning rates of the convergence experiment; None is Adafactor's own.
LEARNING_RATES: Mapping[str, Mapping[str, float | None]] = {
    "translation": {
        "adam": 2e-3,
        "clipped_adafactor": None,
        "adafactor": None,
        "clipped_normalized_sgd": 5e-4,
        "normalized_sgd": 5e-4,
        "clipped_sgd": 0.8,
        "sgd": 1e-3,
    },
    "masked_lm": {
        "adam": 2e-3,
        "clipped_adafactor": 1e-2,
        "adafactor": 1e-2,
        "clipped_normalized_sgd": 5e-5,
        "normalized_sgd": 5e-5,
        "clipped_sgd": 0.8,
        "sgd": 1e-2,
    },
}

# Appendix A.3: what drives the trajectories.
TRAJECTORY_RATES: Mapping[str, float] = {"sgd": 1e-3, "adam": 1e-4}


def reported(settings: Mapping[str, Any]) -> Mapping[int, Ratios]:
    """The ratios by epoch, where the paper's epochs and a run's can be compared."""
    if settings["preset"] == "tiny":
        return {}
    return RATIOS.get((settings["task"], settings["trajectory"]), {})


class Invariant(NamedTuple):
    """Something that holds in every cell of the paper's tables."""

    claim: str
    holds: Callable[[Ratios], bool]


def _below(a: str, b: str) -> Callable[[Ratios], bool]:
    return lambda ratios: ratios[a] < ratios[b]


INVARIANTS = (
    Invariant(
        "every direction is less sharp than SGD's",
        lambda ratios: max(ratios.values()) < 1,
    ),
    Invariant(
        "clipping lowers SGD's sharpness", lambda ratios: ratios["clipped_sgd"] < 1
    ),
    Invariant(
        "clipping lowers normalized SGD's",
        _below("clipped_normalized_sgd", "normalized_sgd"),
    ),
    Invariant("clipping lowers Adafactor's", _below("clipped_adafactor", "adafactor")),
    Invariant(
        "clipped Adafactor is the least sharp",
        lambda ratios: (
            min(ratios, key=lambda name: ratios[name]) == "clipped_adafactor"
        ),
    ),
    Invariant(
        "Adafactor is below clipped normalized SGD",
        _below("adafactor", "clipped_normalized_sgd"),
    ),
    Invariant(
        "Adam is below clipped normalized SGD",
        _below("adam", "clipped_normalized_sgd"),
    ),
    Invariant(
        "clipped normalized SGD is below clipped SGD",
        _below("clipped_normalized_sgd", "clipped_sgd"),
    ),
)
