"""The convergence experiment with a training that takes no time."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from examples.convergence import experiment as convergence
from examples.convergence import report as convergence_report
from examples.lab import contest, held_out, sweep
from examples.lab.log import Log
from examples.lab.optimizers import OPTIMIZERS
from examples.lab.run_folder import read_settings
from examples.lab.statistics import bootstrap
from examples.lab.winners import Rules, winners
from examples.tasks import by_name


@pytest.fixture
def trained(monkeypatch):
    """Trainings whose loss is best at a rate of 1, and what was trained.

    What they leave as parameters is what they would be assessed by.
    """
    calls = []

    def trainer(task, contender, steps):
        name, fraction = contender

        def train(rate, seed):
            calls.append((name, fraction, rate, seed))
            distance = abs(np.log10(rate))
            last = float("nan") if rate > 50 else distance + fraction + seed / 1e5
            return sweep.Trained([9.0, last], params=last)

        return train

    assessed = []

    def assessor(task):
        def assess(params, batches):
            assessed.append([{k: v.tolist() for k, v in b.items()} for b in batches])
            return params if isinstance(params, float) else 9.0

        return assess

    monkeypatch.setattr(sweep, "by_name", lambda *one: FakeOptimizer(one))
    monkeypatch.setattr(sweep, "trainer", trainer)
    monkeypatch.setattr(held_out, "assessor", assessor)
    return calls, assessed


class FakeOptimizer(tuple):
    """A contender that also makes optimizers, for the size of their state."""

    def __call__(self, rate):
        return OPTIMIZERS[self[0]](rate, self[1])


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
    best = winners(runs, read_settings(settings.folder())["settings"])
    assert list(best) == [("sgd", 0.05), ("clipped_sgd", 0.05), ("clipped_sgd", 0.5)]
    for own in best.values():
        assert [run["learning_rate"] for run in own] == [1.0] * 3
        assert [run["seed"] for run in own] == [0, 1, 2]
    report = (settings.folder() / "report.md").read_text()
    assert "| SGD, 50 % clipped | 1 |" in report
    assert "The number of comparisons with SGD is 2" in report
    assert "Not there: Adam, normalized SGD" in report


def test_every_optimizer_that_clips_can_have_several_fractions(settings, trained):
    before = settings.decisive()
    settings = dataclasses.replace(
        settings,
        optimizer=("sgd", "clipped_nesterov_sgd"),
        fractions=(0.01, 0.2),
    )
    assert settings.decisive() == before
    runs = _run(settings)
    best = winners(runs, read_settings(settings.folder())["settings"])
    names = [("sgd", 0.05)] + [("clipped_nesterov_sgd", f) for f in (0.01, 0.2)]
    assert list(best) == names
    report = (settings.folder() / "report.md").read_text()
    assert "| Nesterov SGD, 20 % clipped | 1 |" in report


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_clip_of_nothing_is_the_optimizer_without_it(nesterov):
    name = "nesterov_sgd" if nesterov else "sgd"
    gradients = [np.float32([3.0, -4.0]), np.float32([1.0, 1.0])]
    found = []
    for optimizer in (
        OPTIMIZERS[name](1.0, 0.5),
        OPTIMIZERS[f"clipped_{name}"](1.0, 0),
    ):
        state, own = optimizer.init(gradients[0]), []
        for gradient in gradients:
            update, state = optimizer.update(gradient, state, gradient)
            own.append(update)
        found.append(own)
    np.testing.assert_array_equal(*found)
    first = -(0.19 if nesterov else 0.1) * gradients[0]
    np.testing.assert_allclose(found[0][0], first, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("norm_clipped_sgd", 0.1),
        ("norm_clipped_sgd_0.1", 0.01),
        ("norm_clipped_nesterov_sgd", 0.19),
    ],
)
def test_a_long_gradient_is_shortened_to_the_norm_in_the_name(name, norm):
    optimizer, gradient = OPTIMIZERS[name](1.0, 0.5), np.float32([30.0, -40.0])
    update, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose(update, -norm * gradient / 50, rtol=1e-5)


def test_what_chooses_a_rate_is_in_no_reported_number(settings, trained):
    runs = _run(settings)
    for run in runs:
        choosing = run["seed"] == contest.SELECTION_SEED
        assert ("validation_loss" in run, "test_loss" in run) == (
            choosing,
            not choosing,
        )
    best = winners(runs, read_settings(settings.folder())["settings"])
    assert all("validation_loss" not in run for own in best.values() for run in own)
    _, assessed = trained
    validation, test, *rest = assessed  # before training, both
    assert all(rows in (validation, test) for rows in rest)
    sources = [{tuple(r) for b in part for r in b["source"]} for part in assessed[:2]]
    assert not sources[0] & sources[1]


def test_a_winner_at_an_edge_of_what_was_tried_is_none(settings, trained):
    runs = _run(settings)
    content = read_settings(settings.folder())["settings"]
    lower = [run for run in runs if run["learning_rate"] <= 1]
    assert winners(runs, content)
    assert not winners(lower, content)


def test_settings_without_a_selection_seed_say_that_a_reported_seed_chose():
    runs = [
        {"name": "sgd", "fraction": 0.05, "learning_rate": r, "seed": s, "loss": r + s}
        for r, s in [(0.1, 0), (1.0, 0), (0.1, 1)]
    ]
    (own,) = winners(runs, {"seeds": 2}).values()
    assert [run["seed"] for run in own] == [0, 1]
    assert "one of the seeds in the means" in Rules.of({"seeds": 2}).said()


def test_a_search_on_a_plateau_finds_what_it_was_told_to_try_too(tmp_path):
    losses = {1.0: 0.99, 31.6: 0.9, 100.0: 0.2, 316.0: 1.5}
    rules = contest.recorded(seeds=3, validation_rows=1, test_rows=1, tail=1)

    def train(rate, seed):
        return sweep.Trained([1.0 + seed], rate)

    for name, also, best in (("without", (), 1.0), ("with", (31.6,), 100.0)):
        runs = Log(tmp_path / name)
        made = contest.Contest(None, rules, [], [], runs)
        # The parameters of a training are its rate.
        vars(made)["assess"] = lambda rate, _: losses.get(rate, 1.0)
        assert made.enter({"name": "sgd"}, train, start=0, also=also) == best
        rates = [run["learning_rate"] for run in runs.lines]
        assert (31.6 in rates) == bool(also)


@pytest.mark.parametrize("seeds", [2, contest.SELECTION_SEED + 1])
def test_too_few_seeds_or_the_one_that_chooses_are_refused(seeds):
    with pytest.raises(ValueError, match="expected at least 3 seeds to report"):
        contest.recorded(seeds=seeds, validation_rows=2, test_rows=2, tail=1)


def test_held_out_rows_are_not_trained_on_nor_twice_there(micro_t5):
    choice = by_name.Choice("translation", str(micro_t5))
    task = by_name.load(choice, max_length=20, batch_size=2, seed=0, held_out=12)
    rows = task.held_out_arrays
    repeated = {name: a[[0, 1, 1, 2, *range(3, 9)]] for name, a in rows.items()}
    trained_on = {
        name: np.concatenate([task.train[name], a[:1]]) for name, a in rows.items()
    }
    task = dataclasses.replace(task, held_out_arrays=repeated, train=trained_on)
    validation, test = held_out.split(task, validation_rows=2, test_rows=6)
    found = np.concatenate([batch["source"] for batch in [*validation, *test]])
    assert {*map(tuple, found)} == {*map(tuple, rows["source"][1:9])}
    with pytest.raises(ValueError, match=r"at least 10 held-out rows .* got 8"):
        held_out.split(task, validation_rows=2, test_rows=8)


def test_batches_are_assessed_by_their_labels(micro_t5):
    choice = by_name.Choice("translation", str(micro_t5))
    task = by_name.load(choice, max_length=20, batch_size=2, seed=0, held_out=4)
    batches = task.held_out_batches()
    both = {n: np.concatenate([b[n] for b in batches]) for n in batches[0]}
    assess = held_out.assessor(task)
    whole = float(task.eval_loss(task.params, both))
    assert assess(task.params, batches) == pytest.approx(whole, rel=1e-5)


def test_the_way_to_adam_is_told_of_the_means_and_by_seed():
    rules = Rules.of({"selection_seed": 1000, "seeds": 2})
    sgd, own, adam = (
        [{"seed": seed, "test_loss": loss} for seed, loss in enumerate(losses)]
        for losses in ([4.0, 4.0], [3.0, 3.9], [2.0, 3.0])
    )
    way = convergence_report._of_lead
    assert way(own, sgd, adam, rules) == "37% (10% to 50%)"
    assert way(adam, sgd, adam, rules) == "100%"
    assert way(sgd, sgd, adam, rules) == "-"
    assert way(own, adam, sgd, rules) == "-"  # there is no lead


def test_a_bootstrap_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(1)
    found = [bootstrap(random.normal(size=40)) for _ in range(300)]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.90 < covered < 0.98
    one = bootstrap([1.0, 2.0, 4.0])
    assert (one.low, one.high) == (1.0, 4.0)
    assert not one.is_above_zero  # by Student's, which is 2.33 - 3.80 to 2.33 + 3.80
    assert bootstrap([1.0, 1.1, 1.2]).is_above_zero
    assert bootstrap([-1.0, -1.1, -1.2]).is_below_zero
    assert bootstrap([1.0, 2.0, 4.0]) == one


def test_the_columns_of_scale_have_norm_one():
    params = {"embed": {"embedding": np.ones((5, 3))}, "norm": np.ones(3)}
    params["layer"] = {"kernel": np.arange(6.0).reshape(2, 3)}
    optimizer = OPTIMIZERS["scale"](1.0, 0.0)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    kernel = updates["layer"]["kernel"]
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=1), 1, rtol=1e-6)
    table = updates["embed"]["embedding"]  # tied: its columns go over the words
    np.testing.assert_allclose(np.linalg.norm(table, axis=0), 1, rtol=1e-6)
    sizes = sorted(x.size for x in jax.tree.leaves(state) if x.ndim)
    assert sizes == [3, 3, 15]  # Adam of the vector, momentum of the output alone


def test_an_interrupted_experiment_repeats_no_training(settings, trained):
    _run(settings)
    (calls, _), path = trained, settings.folder() / "runs.jsonl"
    count = len(calls)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while writing
    runs = _run(dataclasses.replace(settings, resume=True))
    assert len(calls) == count + 1
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
        ({"fractions": (0.1, 1.0)}, r"--fraction must be in \[0, 1\); got 1.0"),
        ({"batch_size": 0}, "--batch-size must be at least 1; got 0"),
        ({"scaled": "values"}, "--scaled and --scale go together.* values and 1"),
        ({"scale": 2.0}, "--scaled and --scale go together.* None and 2"),
        ({"scaled": "values", "scale": 0.0}, "positive factor"),
        ({"scaled": "values", "scale": 2.0, "task": "masked_lm"}, "the T5 of"),
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
