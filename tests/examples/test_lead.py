"""The figure of Adam's lead, from runs with losses that are made up."""

import pytest

from examples.lab import looks
from examples.redraw import lead

from .test_what_to_try import add_run

SGD, CLIPPED, ADAM = ("sgd", 0.05), ("clipped_sgd", 0.05), ("adam", 0.05)


@pytest.fixture
def results(tmp_path):
    losses = {SGD: [4.0, 5.0, 6.0], ADAM: [2.0, 3.0, 4.0], CLIPPED: [3.0, 3.0, 6.0]}
    add_run(tmp_path, "a", losses, task="causal_lm", init="scratch")
    behind = {SGD: [4.0, 5.0, 6.0], ADAM: [5.0, 6.0, 7.0], CLIPPED: [4.0, 5.0, 6.0]}
    add_run(tmp_path, "b", behind, task="causal_lm", init="smollm2")
    return tmp_path / "examples/results"


def test_the_lead_is_covered_seed_by_seed_where_adam_has_one(results):
    (task,) = lead.tasks(results)
    assert task.lead == 2
    assert task.covered[CLIPPED].mean == 0.5
    assert task.covered[CLIPPED].of_mean_lead == [0.5, 1.0, 0.0]
    (row,) = lead.means([task]).rows
    assert row[1:] == ["2.000", "-", "50%", "-", "-"]


def test_seeds_that_diverged_with_adam_are_in_no_share(tmp_path):
    losses = {SGD: [4.0, 5.0, 6.0], ADAM: [2.0, 3.0, None], CLIPPED: [3.0, 5.0, 0.0]}
    add_run(tmp_path, "a", losses, task="causal_lm", init="scratch")
    (task,) = lead.tasks(tmp_path / "examples/results")
    assert task.covered[CLIPPED] == ([1.0, 0.0], [2.0, 2.0])


def test_the_figure_changes_with_the_losses_and_is_none_without_runs(results, tmp_path):
    (path,) = lead.draw(results)
    before = looks.drawn(path)
    assert lead.draw(results) == [path]
    assert looks.drawn(path) == before
    runs = results / "convergence/a/runs.jsonl"
    runs.write_text(runs.read_text().replace('"test_loss": 3.0', '"test_loss": 2.5'))
    lead.draw(results)
    assert looks.drawn(path) != before
    assert lead.draw(tmp_path / "nothing") == []
