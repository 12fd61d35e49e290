"""Runs that differ in one setting, with losses that are made up."""

import pytest

from examples.convergence import by_setting

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
    before = tmp_path / "examples/results/convergence/sixteen/before.jsonl"
    before.write_text('{"test_loss": 6.0}\n')
    one = {SGD: [4.0, 5.0, 6.0], ADAM: [4.5, 5.5, 6.5], CLIPPED: [4.0, 4.0, 4.0]}
    add_run(tmp_path, "one", one, of="batch_size", batch_size=1, **SAME)
    add_run(tmp_path, "longer", one, batch_size=4, **SAME | {"steps": 200})
    return tmp_path / "examples/results/batch_size"


def test_the_run_that_differs_in_its_batch_alone_is_compared(folder):
    assert [run.settings["batch_size"] for run in by_setting.read(folder)] == [1, 16]


def test_differences_are_seed_by_seed_and_shares_those_of_the_mean(folder):
    report, figure = by_setting.main(folder)
    assert figure.is_file()
    differences, shares = report.read_text().split("## Adam's lead")
    assert cells(differences, "16") == [
        "5.000",
        "-2.000 [-2.000, -2.000]",
        "-1.000 [-1.500, -0.500]",
    ]
    assert cells(shares, "16") == ["6.000", "2.000", "2", "50%"]
    assert cells(shares, "1") == ["-", "0.000", "-", "-"]  # Adam does not lead there
    page = by_setting.figure(folder.parents[2], name="batch_size")
    assert "| 16 | 6.000 | 2.000 | 2 | 50% |" in page


def test_the_run_as_it_is_comes_before_those_with_other_weights(tmp_path):
    losses = {SGD: [4.0, 5.0, 6.0], ADAM: [2.0, 3.0, 4.0]}
    same = SAME | {"batch_size": 16}
    add_run(tmp_path, "as-it-is", losses, **same)
    values = {"scaled": "values", "scale": 4.0}
    of = "scale_of_weights"
    add_run(tmp_path, "a", losses | {SGD: [2.5, 3.5, 4.5]}, of=of, **same, **values)
    report, _ = by_setting.main(tmp_path / "examples/results" / of)
    shares = report.read_text().split("## Adam's lead")[1]
    assert cells(shares, "as it is") == ["-", "2.000", "-"]
    assert cells(shares, "values x 4") == ["-", "0.500", "-"]


def test_a_run_of_other_settings_in_the_folder_is_refused(folder):
    other = SAME | {"steps": 200}
    root = folder.parents[2]
    add_run(root, "other", {SGD: [1.0] * 3}, of="batch_size", batch_size=4, **other)
    with pytest.raises(ValueError, match=r"the settings of .* but for batch_size"):
        by_setting.read(folder)
    empty = folder.with_name("scale_of_weights")
    with pytest.raises(FileNotFoundError, match="no run of examples"):
        by_setting.read(empty)
    with pytest.raises(ValueError, match="a folder called batch_size or scale_of"):
        by_setting.read(folder / "one")
