"""Losses by the clock, of trainings that are made up."""

import json

import pytest

from examples.convergence import wall_time

from .test_what_to_try import add_run, cells


@pytest.fixture
def folder(tmp_path):
    """Clipped SGD falls twice as fast in steps that take twice as long."""

    def training(name, seconds, losses):
        along = [[10 * i, seconds * i, loss] for i, loss in enumerate(losses)]
        known = {"fraction": 0.05, "learning_rate": 1.0, "state_bytes": 2_000_000}
        return {"name": name, "along": along, **known}

    runs = [
        {
            "seed": seed,
            "trainings": [
                training("sgd", 1.0, [4.0, 3.0, 2.0 + seed]),
                training("clipped_sgd", 2.0, [4.0, 2.0, 1.0 + seed]),
            ],
        }
        for seed in range(3)
    ]
    path = tmp_path / "run"
    path.mkdir()
    settings = {"task": "translation", "init": "t5", "of": "a", "steps": 20}
    content = {"settings": settings | {"batch_size": 2}, "sessions": []}
    (path / "settings.json").write_text(json.dumps(content))
    text = "".join(json.dumps(run) + "\n" for run in runs)
    (path / "runs.jsonl").write_text(text)
    return path


def test_a_loss_after_the_same_seconds_is_that_of_fewer_steps(folder):
    report, figure = wall_time.write(folder)
    assert figure.is_file()
    text = report.read_text()
    assert cells(text, "SGD")[:3] == ["2.0 MB", "0.100", "1.000 (1.000 to 1.000)"]
    assert cells(text, "SGD, 5 % clipped") == [
        "2.0 MB",
        "0.200",
        "2.000 (2.000 to 2.000)",
        "-1.000 [-1.000, -1.000]",
        "-1.000 [-2.000, +0.000]",
    ]


def test_a_run_without_sgd_is_refused(tmp_path):
    add_run(tmp_path, "old", {("adam", 0.05): [1.0] * 3})
    old = tmp_path / "examples/results/convergence/old"
    settings = wall_time.Settings(old, run=tmp_path / "run")
    with pytest.raises(ValueError, match="convergence with SGD in it"):
        wall_time.prepare(settings)
    assert not settings.run.exists()
