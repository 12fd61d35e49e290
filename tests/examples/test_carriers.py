"""Who carries the sharpness, from runs with shares that are made up."""

import json

import pytest

from examples.sharpness import carriers


def _run(within):
    """A run of two epochs; of the second the norm gains carry all."""

    def parts(gains):
        kinds = {"norm gains": gains, "attention": 1 - gains}
        return {
            kind: {"norm": share / 2, "within": 3 * share, "cross": share}
            for kind, share in kinds.items()
        }

    settings = {"task": "translation", "init": "t5", "trajectory": "sgd", "seed": 0}
    epochs = {"1": parts(within), "2": parts(1.0)}
    split = {e: dict.fromkeys(carriers.SHOWN, own) for e, own in epochs.items()}
    return {"settings": settings, "sessions": [], "split": split}


def test_shares_are_means_over_epochs_and_runs():
    found = carriers.shares([_run(0.0), _run(0.5), {"settings": {}}])
    ((who, _), by_kind), *_ = found.items()
    assert who == "translation, t5, SGD's trajectory"
    # 0, 1, 0.5 and 1 of the sharpness are the norm gains', half of that of the norm.
    assert by_kind["norm gains"] == pytest.approx((0.3125, 0.625))
    assert by_kind["attention"] == pytest.approx((0.1875, 0.375))


def test_the_figure_is_of_the_runs_that_have_shares(tmp_path):
    folder = tmp_path / "examples/results/sharpness"
    (folder / "a").mkdir(parents=True)
    (folder / "a/summary.json").write_text(json.dumps({"settings": {}, "sessions": []}))
    assert carriers.draw(folder) == []
    (folder / "a/summary.json").write_text(json.dumps(_run(0.5)))
    assert [path.name for path in carriers.draw(folder)] == [carriers.NAME]
    said = carriers.figure(tmp_path)
    assert "SGD, clipped norm gains 75% (38%)." in said
