"""The paper's own tables must pass the verdict; changed ones must not."""

import json

import pytest

from examples.lab import paper
from examples.lab.optimizers import LONG_VERSION, PAPER
from examples.sharpness import verdict


def _direction(ratio, steepness):
    return {
        "ratio": ratio,
        "ratios": [ratio],
        "sharpness": [10 * ratio],
        "slope": [-steepness],
        "decrease": 1 / steepness,
        "lowest_step": 1.0,
        "rho": 1.0,
    }


def _summary(task, trajectory, table, seed=0):
    epochs = {}
    for epoch, ratios in table.items():
        names = {"sgd": 1.0, **ratios, **dict.fromkeys(LONG_VERSION, 0.01)}
        directions = {
            # SGD's is the steepest, and clipped ones are less steep.
            name: _direction(ratio, 9 if name == "sgd" else 5 - name.count("clipped"))
            for name, ratio in names.items()
        }
        epochs[str(epoch)] = {"batches": [1], "loss": 4.0, "directions": directions}
    return {
        "settings": {
            "task": task,
            "trajectory": trajectory,
            "preset": "laptop",
            "seed": seed,
            "init": "somewhere",
            "dataset": "en_fr",
            "rate_from": "given",
            "measured_on": "held-out rows",
            "learning_rate": 0.1,
            "adapting_steps": 0,
            "batches_per_epoch": 10,
            "batch_size": 128,
            "test_size": 128,
            "fraction": 0.05,
            "fractions": dict.fromkeys((*PAPER, *LONG_VERSION), 0.05),
        },
        "sessions": [
            {
                "command": "python -m examples.sharpness",
                "commit": "abc",
                "date": "2022-11-25",
                "made_with": dict.fromkeys(("device", "python", "jax"), "?"),
            }
        ],
        "seconds": 60.0,
        "diverged": None,
        "epochs": epochs,
        "correlation": {"spearman": 0.5, "spearman_interval": [0.4, 0.6]},
    }


@pytest.fixture
def judge(tmp_path):
    def judge(*summaries):
        for i, summary in enumerate(summaries):
            folder = tmp_path / str(i)
            folder.mkdir()
            (folder / "summary.json").write_text(json.dumps(summary))
        return verdict.main(tmp_path).read_text()

    return judge


def test_the_papers_own_numbers_give_its_own_claims(judge):
    text = judge(*(_summary(*pair, table) for pair, table in paper.RATIOS.items()))
    assert text.count("| 4 of 4 | 16 of 16 | 16 of 16 | none |") == 8
    assert "| all together |  | 128 of 128 | 128 of 128 |" in text
    assert "14 of 16 cells | 14 of 16 cells" in text
    assert text.count("8 of 8 cells | 8 of 8 cells") == 2
    assert "0.0034 to 0.44 | 0.0034 to 0.44" in text
    assert text.count("said, no numbers | 16 of 16 cells") == 2
    assert text.count("0.50 (0.40 to 0.60)") == 4
    assert text.count("| 1 to 1 | 1 to 1 | 1 to 1 | 1 to 1 | 1 to 1 | 1 to 1 |") == 4
    assert "| 22 of 24; SGD's / Adam's 0.43 to 310 |" in text
    assert text.count("change up to 76-fold in a table | SGD's largest / smal") == 4


def test_what_does_not_hold_is_said_and_counted(judge):
    table = {2: dict(paper.RATIOS["translation", "sgd"][2]) | {"clipped_sgd": 1.5}}
    text = judge(_summary("translation", "sgd", table, seed=3))
    exception = "translation, somewhere, SGD's trajectory, seed 3: epoch 2"
    assert text.count(f"| 0 of 1 | 0 of 1 | 0 of 1 | {exception} |") == 2
    assert "| all together |  | 6 of 8 | 6 of 8 |" in text


def test_ratios_of_several_seeds_have_an_interval(judge):
    tables = [{2: dict.fromkeys(paper.COLUMNS, ratio)} for ratio in (0.1, 0.2, 0.6)]
    runs = [_summary("masked_lm", "sgd", t, seed=i) for i, t in enumerate(tables)]
    alone = _summary("masked_lm", "adam", {5: dict.fromkeys(paper.COLUMNS, 0.25)})
    text = judge(*runs, alone)
    who = "masked language model"
    assert (
        f"| {who}, somewhere, SGD's trajectory | 2 | 3 | 0.3 [0.1, 0.6] | 0.3 [" in text
    )
    assert f"| {who}, somewhere, Adam's trajectory | 5 | 1 | 0.25 | 0.25 | " in text


def test_a_measurement_that_was_not_finite_counts_against_every_claim(judge):
    runs = [
        _summary("translation", trajectory, {2: dict.fromkeys(paper.COLUMNS, 0.1)})
        for trajectory in ("sgd", "adam")
    ]
    for run in runs:
        for direction in run["epochs"]["2"]["directions"].values():
            direction |= {"ratio": None, "ratios": [None], "sharpness": [None]}
    text = judge(*runs)
    assert text.count("| 0 of 2 | 0 of 2 | 0 of 2 |") == 8
    assert "| 14 of 16 cells | 0 of 2 cells |" in text


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run with a summary"):
        verdict.main(tmp_path)
