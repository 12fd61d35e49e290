"""The convergence experiment with a training that takes no time, and the factors."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from examples.convergence import experiment as convergence
from examples.convergence import report as convergence_report
from examples.factors import experiment as factors
from examples.factors import variants
from examples.lab import sweep
from examples.lab.log import Log
from examples.lab.winners import winners
from examples.models import huggingface, t5


@pytest.fixture
def trained(monkeypatch):
    """Trainings whose loss is best at a rate of 1, and what was trained."""
    calls = []

    def trainer(task, contender, steps):
        name, fraction = contender

        def train(rate, seed):
            calls.append((name, fraction, rate, seed))
            distance = abs(np.log10(rate))
            last = float("nan") if rate > 50 else distance + fraction + seed / 100
            return sweep.Trained([9.0, last], params=None)

        return train

    monkeypatch.setattr(sweep, "by_name", lambda *contender: contender)
    monkeypatch.setattr(sweep, "trainer", trainer)
    return calls


@pytest.fixture
def settings(micro_t5, tmp_path):
    return convergence.Settings(
        optimizer=("sgd", "clipped_sgd"),
        preset="tiny",
        init=str(micro_t5),
        run=tmp_path / "run",
    )


def _run(settings):
    convergence.main(settings, convergence.prepare(settings))
    path = settings.folder() / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_best_rate_of_each_runs_with_every_seed(settings, trained):
    runs = _run(settings)
    best = winners(runs)
    assert list(best) == [("sgd", 0.05), ("clipped_sgd", 0.05), ("clipped_sgd", 0.5)]
    for own in best.values():
        assert [run["learning_rate"] for run in own] == [1.0, 1.0]
        assert [run["seed"] for run in own] == [0, 1]
    report = (settings.folder() / "report.md").read_text()
    assert "| SGD, 50 % clipped | 1 |" in report


def test_an_interrupted_experiment_repeats_no_training(settings, trained):
    _run(settings)
    count, path = len(trained), settings.folder() / "runs.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while writing
    runs = _run(dataclasses.replace(settings, resume=True))
    assert len(trained) == count + 1
    assert [json.loads(line) for line in lines] == runs


def test_a_diverged_training_is_kept_and_shown(settings, trained, monkeypatch):
    monkeypatch.setattr(sweep, "start", lambda _: 2)
    runs = _run(settings)
    assert any(run["diverged"] == 1 and run["loss"] is None for run in runs)
    assert "diverged" in (settings.folder() / "report.md").read_text()


def test_the_report_is_made_again_from_the_files_alone(settings, trained):
    _run(settings)
    before = {p: p.read_bytes() for p in settings.folder().glob("report.*")}
    for path in before:
        path.unlink()
    convergence_report.main(settings.folder())
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optimizer": ("sdg",)}, "expected some of sgd, .* got sdg"),
        ({"fraction": 1.0}, r"--fraction must be in \[0, 1\); got 1.0"),
        ({"resume": True}, "holds no run to resume"),
    ],
)
def test_what_no_run_can_mean_is_refused(settings, changes, sentence):
    with pytest.raises((ValueError, OSError), match=sentence):
        convergence.prepare(dataclasses.replace(settings, **changes))
    assert not settings.folder().exists()


def test_a_log_does_each_piece_of_work_once(tmp_path):
    shown = []
    log = Log(tmp_path / "lines.jsonl", shown.append)
    for _ in range(2):
        line = log.once({"a": 1}, lambda: {"b": math.inf})
    assert line == {"a": 1, "b": None}
    assert shown == [line]
    log.once({"a": 2}, dict)
    again = Log(tmp_path / "lines.jsonl", shown.append)
    assert again.lines == [{"a": 1, "b": None}, {"a": 2}]


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_a_rescaled_embedding_changes_the_gradient_and_not_the_loss(micro_t5, scale):
    config, graphdef, params = huggingface.load(micro_t5)
    # A norm adds its epsilon to the mean square, which a smaller embedding notices.
    config = dataclasses.replace(config, layer_norm_epsilon=1e-12)
    graphdef, _ = t5.init(config, 0)
    loss = t5.make_loss(graphdef, config)
    ids = np.random.default_rng(0).integers(3, 400, (2, 2, 9)).astype(np.int32)
    batch = dict(zip(("source", "target"), ids, strict=True))
    scaled = factors.rescale(params, scale)
    value, grads = jax.value_and_grad(loss)(params, batch)
    other, other_grads = jax.value_and_grad(loss)(scaled, batch)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    kernel, other_kernel = (
        g["encoder"]["layers"][0]["feed_forward"]["output"]["kernel"]
        for g in (grads, other_grads)
    )
    np.testing.assert_allclose(other_kernel, kernel / scale, rtol=1e-3, atol=1e-6)


def test_every_factor_changes_one_thing_of_another_variant():
    base = dataclasses.asdict(variants.Variant())
    for name, own in variants.FACTORS.items():
        for variant in own:
            changed = {
                k for k, v in dataclasses.asdict(variant).items() if v != base[k]
            }
            allowed = {"start"} if "random" in name else set()
            if variant.source_length == 160:
                allowed = {"source_length"}
            assert len(changed - allowed) <= 1, (name, changed)


def test_an_unknown_factor_is_refused():
    with pytest.raises(ValueError, match="--factor: expected some of 'as it is'"):
        factors.Settings(factor=("weather",)).check()
