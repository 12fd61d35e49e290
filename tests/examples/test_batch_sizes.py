"""Runs at several batch sizes, with losses that are made up."""

import pytest

from examples.convergence import batch_sizes

from .test_what_to_try import add_run, cells

SGD, CLIPPED, ADAM = ("sgd", 0.05), ("clipped_sgd", 0.2), ("adam", 0.05)
SAME = {
    "task": "translation",
    "init": "t5",
    "dataset": "pairs",
    "steps": 100,
    "test_rows": 4,
}


@pytest.fixture
def folder(tmp_path):
    sixteen = {SGD: [4.0, 5.0, 6.0], ADAM: [2.0, 3.0, 4.0], CLIPPED: [3.0, 3.5, 5.5]}
    add_run(tmp_path, "sixteen", sixteen, batch_size=16, **SAME)
    one = {SGD: [4.0, 5.0, 6.0], ADAM: [4.5, 5.5, 6.5], CLIPPED: [4.0, 4.0, 4.0]}
    add_run(tmp_path, "one", one, of="batch_size", batch_size=1, **SAME)
    add_run(tmp_path, "longer", one, batch_size=4, **SAME | {"steps": 200})
    return tmp_path / "examples/results/batch_size"


def test_the_run_that_differs_in_its_batch_alone_is_compared(folder):
    assert [run.settings["batch_size"] for run in batch_sizes.read(folder)] == [1, 16]


def test_differences_are_seed_by_seed_and_shares_those_of_the_mean(folder):
    report, figure = batch_sizes.main(folder)
    assert figure.is_file()
    differences, shares = report.read_text().split("## Of Adam's lead")
    assert cells(differences, "16") == [
        "5.000",
        "-2.000 [-2.000, -2.000]",
        "-1.000 [-1.500, -0.500]",
    ]
    assert cells(shares, "16") == ["2.000", "50%"]
    assert cells(shares, "1") == ["0.000", "-"]  # Adam does not lead there
    assert "2.000 (16)" in batch_sizes.said(batch_sizes.read(folder))


def test_a_run_of_other_settings_in_the_folder_is_refused(folder):
    other = SAME | {"steps": 200}
    root = folder.parents[2]
    add_run(root, "other", {SGD: [1.0] * 3}, of="batch_size", batch_size=4, **other)
    with pytest.raises(ValueError, match=r"expected the settings of .* but for the"):
        batch_sizes.read(folder)
    with pytest.raises(FileNotFoundError, match="no run of examples"):
        batch_sizes.read(folder / "one")
