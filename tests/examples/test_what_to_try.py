"""The table of "What should I try?", from runs with losses that are made up."""

import inspect
import json

import pytest

import optax_clip
from examples.convergence import experiment
from examples.lab.optimizers import OPTIMIZERS
from examples.redraw import blocks, everything, what_to_try
from examples.redraw.what_to_try import PAIRS, TRIED

SGD, CLIPPED, NORM = ("sgd", 0.05), ("clipped_sgd", 0.2), ("norm_clipped_sgd", 0.05)


def add_run(root, folder, losses, *, of="convergence", **settings):
    """A run that kept the rules: a test loss of each seed, by optimizer."""
    lines = []
    for (name, fraction), own in losses.items():
        known = {"name": name, "fraction": fraction, "state_bytes": 100}
        rate = 10.0 if name == "clipped_sgd" else 1.0
        for times, loss in ((0.1, 9.0), (1.0, 1.0), (10.0, None)):
            line = {"seed": 1000, "loss": loss, "validation_loss": loss}
            lines.append(known | {"learning_rate": rate * times} | line)
        for seed, loss in enumerate(own):
            line = {"seed": seed, "loss": loss, "test_loss": loss}
            lines.append(known | {"learning_rate": rate} | line)
    path = root / "examples/results" / of / folder
    path.mkdir(parents=True)
    sizes = {"steps": 100, "batch_size": 16, "test_rows": 64}
    content = {
        "selection_seed": 1000,
        "seeds": 3,
        "fraction": 0.05,
        **sizes,
        **settings,
    }
    text = json.dumps({"settings": content, "sessions": []})
    (path / "settings.json").write_text(text)
    (path / "runs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


@pytest.fixture
def root(tmp_path):
    scratch = {SGD: [4.0, 5.0, 6.0], CLIPPED: [3.5, 4.5, 5.5], NORM: [3.0, 4.0, 6.0]}
    add_run(tmp_path, "a", scratch, task="causal_lm", init="scratch")
    smollm2 = {
        SGD: [4.0, 5.0, 6.0],
        CLIPPED: [4.5, None, 6.5],
        ("muon", 0.05): [1.0] * 3,
    }
    add_run(tmp_path, "b", smollm2, task="causal_lm", init="smollm2")
    return tmp_path


def cells(text, name):
    """Those of a row, without its name."""
    (line,) = [x for x in text.splitlines() if x.startswith(f"| {name} |")][:1]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_a_cell_is_the_difference_from_sgd_seed_by_seed(root):
    text = what_to_try.page(root)
    assert cells(text, "SGD") == [
        "5.000 (4.000 to 6.000)",
        "5.000 (4.000 to 6.000)",
        "-",
        "1.0",
    ]
    assert cells(text, "SGD, 20 % clipped") == [
        "-0.500 [-0.500, -0.500]",
        "+0.500 [+0.500, +0.500]; 1 of 3 diverged",
        "lower 1 of 2, higher 1 of 2",
        "1.0",
    ]
    norm = cells(text, "SGD, norm clipped to 1")
    assert norm == ["**-0.667 [-1.000, +0.000]**", "-", "either 1 of 1", "1.0"]


def test_what_was_run_besides_stands_below_and_what_is_missing_is_named(root):
    text = what_to_try.page(root)
    rows = [line.split(" | ")[0] for line in text.splitlines()]
    assert rows.index("| Muon") > rows.index("| SGD, norm clipped to 1")
    missing = text.split("## What is missing")[1]
    assert "- T5: the whole task." in missing
    assert "- language model, SmolLM2-135M: SGD, 1 % clipped;" in missing
    assert "20 % clipped; SGD, 50" not in missing.splitlines()[2]


def test_the_rival_is_met_seed_by_seed(root):
    text = what_to_try.page(root).split("## Head to head")[1]
    found = cells(text, "SGD, 20 % clipped / SGD, norm clipped to 1")
    assert found[:2] == ["+0.167 [-0.500, +0.500]", "-"]
    rates = text.split("## How much larger")[1]
    assert cells(rates, "SGD, 20 % clipped") == ["10", "10"]


def test_failures_and_comparisons_are_counted(root):
    text = what_to_try.page(root)
    assert "These are 4 comparisons with SGD" in text
    assert "Of 36 trainings 7 diverged, 6 of them in the search" in text


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ((0.2, 0.2, 0.2, 0.2), "they agree"),
        ((0.2, 0.5, 0.2), "they do not agree"),
        ((0.2, 0.2), "only 2 of the 4 tasks are there"),
    ],
)
def test_a_default_changes_only_if_all_tasks_agree(tmp_path, best, said):
    kinds = [("causal_lm", "scratch"), ("causal_lm", "smollm2")]
    kinds += [("translation", "t5"), ("masked_lm", "bert")]
    for fraction, (task, init) in zip(best, kinds, strict=False):
        losses = {("clipped_sgd", f): [3.0 + abs(f - fraction)] * 3 for f in (0.2, 0.5)}
        add_run(tmp_path, init, losses | {SGD: [4.0] * 3}, task=task, init=init)
    assert said in what_to_try.page(tmp_path)


def test_a_run_without_sgd_is_no_column(tmp_path):
    add_run(tmp_path, "a", {CLIPPED: [4.0] * 3}, task="translation", init="x")
    assert what_to_try.page(tmp_path) == "Nothing has been run yet."


def test_what_is_compared_can_be_run():
    assert {name for name, _ in TRIED} <= set(OPTIMIZERS)
    assert {key for pair in PAIRS for key in pair} <= set(TRIED)
    from_scratch = set(experiment._STARTS["scratch"])
    assert from_scratch == set(TRIED)


def test_the_page_has_the_table_and_the_packages_default():
    file, make = blocks.BLOCKS["what_to_try"]
    assert make is what_to_try.page
    text = (everything.ROOT / file).read_text()
    assert "<!-- what_to_try: python -m examples.redraw -->" in text
    parameters = inspect.signature(optax_clip.clipped_sgd).parameters
    assert parameters["fraction"].default == what_to_try.DEFAULT
    assert f"The default is {100 * what_to_try.DEFAULT:g} %." in text
