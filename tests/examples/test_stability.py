"""Predicted and found learning rates: on quadratics, and the smallest experiment."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from examples.stability import experiment as stability
from examples.stability import report as stability_report
from examples.stability.prediction import (
    ends_below_its_start,
    largest_stable,
    predictor,
)


def quadratic(params, batch):
    return 0.5 * jnp.sum(batch["curvature"] * params**2)


def test_on_a_quadratic_the_prediction_is_the_largest_stable_rate():
    batch = {"curvature": jnp.array([1.0, 100.0])}
    start = jnp.array([0.0, 1.0])  # along the sharp axis it is 2 / 100
    predicted = predictor(quadratic, lambda g: g)(start, [batch])
    assert predicted == pytest.approx(0.02, rel=1e-5)

    def stable(rate):
        losses = [
            float(quadratic(start * (1 - rate * 100) ** t, batch)) for t in (0, 9)
        ]
        return ends_below_its_start(losses[1:], losses[:1])

    found = largest_stable(stable, 1.0, resolution=1.01)
    assert found == pytest.approx(predicted, rel=0.01)


def test_the_prediction_is_that_of_the_direction_and_the_mean_over_batches():
    batches = [{"curvature": jnp.array([1.0, x])} for x in (4.0, 16.0)]
    start = jnp.ones(2)
    found = predictor(quadratic, jnp.sign)(start, batches)
    slope, curvature = (1 + 4 + 1 + 16) / 2, (1 + 4 + 1 + 16) / 2
    assert found == pytest.approx(2 * slope / curvature, rel=1e-5)
    down = predictor(lambda x, b: -quadratic(x, b), lambda g: g)(start, batches)
    assert down == float("inf")


@pytest.mark.parametrize("guess", [1e-6, 0.02, 300.0])
def test_the_search_brackets_from_anywhere(guess):
    found = largest_stable(lambda rate: rate <= 0.3, guess, resolution=1.1)
    assert 0.3 / 1.1 <= found <= 0.3
    with pytest.raises(ValueError, match="no largest stable learning rate"):
        largest_stable(lambda _: True, guess, resolution=1.1)


def test_a_training_is_stable_if_it_ends_below_its_start():
    assert ends_below_its_start([3.0, 9.0, 2.0, 2.0], [2.0, 3.0])
    assert not ends_below_its_start([3.0, 9.0, 5.0, 4.0], [3.0, 3.0])
    assert not ends_below_its_start([3.0, np.nan], [3.0])
    assert not ends_below_its_start([np.inf, 2.0], [3.0])


@pytest.mark.slow
def test_a_run_predicts_and_finds_with_each_fraction_and_seed(micro_t5, tmp_path):
    settings = stability.Settings(
        preset="tiny", init=str(micro_t5), dataset="en_fr", run=tmp_path / "run"
    )
    stability.main(settings, stability.prepare(settings))
    path = settings.folder() / "runs.jsonl"
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["fraction"], r["seed"]) for r in runs] == [
        (fraction, seed) for fraction in (0.0, 0.5) for seed in range(3)
    ]
    for run in runs:
        stable = [rate for rate, held in run["tried"] if held]
        assert run["found"] in stable
        assert [step for step, _ in run["along"]] == [0, 2, 4]
    report = (settings.folder() / "report.md").read_text()
    assert "| SGD, 50 % clipped |" in report
    before = path.read_text()
    again = dataclasses.replace(settings, resume=True)
    stability.main(again, stability.prepare(again))
    assert path.read_text() == before
    (settings.folder() / "report.md").unlink()
    stability_report.main(settings.folder())
    assert (settings.folder() / "report.md").read_text() == report
