"""The loss of frequent and of rare tokens, with losses that are made up."""

import pytest
from matplotlib.figure import Figure

from examples.convergence import by_frequency

SGD, ADAM = ("sgd", 0.05), ("adam", 0.05)


def runs(*losses):
    """One for each seed, with the loss of the first group and that of all others."""
    rest = by_frequency.GROUPS - 1
    return [
        {"seed": seed, "by_frequency": [first, *[others] * rest]}
        for seed, (first, others) in enumerate(losses)
    ]


def test_differences_are_seed_by_seed():
    best = {SGD: runs((3.0, 7.0), (4.0, 8.0)), ADAM: runs((2.5, 5.0), (3.0, 5.0))}
    found = by_frequency.differences_from_sgd(best)
    assert list(found) == [ADAM]
    assert found[ADAM][0] == [-0.5, -1.0]
    assert found[ADAM][-1] == [-2.0, -3.0]
    assert by_frequency.losses(best[SGD])[0] == [3.0, 4.0]
    by_frequency.draw(best, Figure())


@pytest.mark.parametrize(
    "line", [{"seed": 1}, {"seed": 1, "by_frequency": [None] * 10}]
)
def test_a_seed_without_losses_is_left_out(line):
    best = {SGD: runs((3.0, 7.0), (4.0, 8.0)), ADAM: [*runs((2.5, 5.0)), line]}
    assert by_frequency.differences_from_sgd(best)[ADAM][0] == [-0.5]
    assert by_frequency.differences_from_sgd({SGD: [line], ADAM: best[ADAM]}) == {}
