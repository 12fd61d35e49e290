"""The main job at its smallest: what it writes, what it survives, what it refuses."""

import dataclasses
import json
import signal
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.data import translation, vocabulary
from examples.finetune_t5 import experiment as finetune_t5
from examples.finetune_t5 import progress, report, seeds
from examples.finetune_t5 import sweep as program
from examples.lab import directions, files, log, optimizers, sweep
from examples.lab.steps import TrainState
from examples.models import huggingface, t5

ROOT = Path(__file__).parents[2]
MICRO = {
    "steps": 6,
    "batch_size": 4,
    "max_length": 20,
    "evaluations": 2,
    "measurements": 2,
    "held_out": 8,
    "save_every": 2,
}
FILES = {
    "start.json",
    "settings.json",
    "summary.json",
    "sharpness.jsonl",
    "landscape.json",
    "histogram.json",
    "loss_curves.png",
    "landscape.png",
    "momentum.png",
    "report.md",
    "sharpness.png",
}


@pytest.fixture(scope="module")
def init(micro_t5):
    return micro_t5


@pytest.fixture(scope="module")
def start(init, start_program):
    """Starts the program at its smallest."""

    def start(run: Path, *flags: str) -> subprocess.Popen:
        options = {"init": init, **MICRO, "run": run}
        words = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
        return start_program("examples.finetune_t5", *words, *flags)

    return start


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """An uninterrupted run: its folder and what it printed."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    process = start(run)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return run, output


@pytest.mark.slow
def test_the_main_job_writes_every_file_and_prints_every_table(finished):
    run, output = finished
    assert {path.name for path in run.iterdir()} >= FILES
    for name in ("sgd", "clipped_sgd", "adam"):
        config, _, params = huggingface.load(run / name / "model")
        assert config.d_model == 8
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
        assert len(log.read_metrics(run / name)) == MICRO["steps"] + 3
    for text in ("Adam", "SGD, 5 % clipped", "normalized SGD", "chrF", "reference"):
        assert text in output


@pytest.mark.slow
def test_the_summary_holds_the_numbers_of_the_tables(finished):
    run, _ = finished
    summary = json.loads((run / "summary.json").read_text())
    rows = summary["optimizers"]
    parameters = sum(
        leaf.size
        for leaf in jax.tree.leaves(huggingface.load(run / "sgd" / "model")[2])
    )
    assert rows["sgd"]["state_bytes"] == 4 * parameters + 8
    assert rows["adam"]["state_bytes"] >= 8 * parameters
    assert rows["clipped_sgd"]["clipped_fraction"] == pytest.approx(0.05, abs=1e-3)
    assert 0 <= rows["adam"]["chrf"] <= 100
    assert 0 <= summary["start"]["chrf"] <= 100
    shown = [summary["start"], *rows.values()]
    sources = [[one["english"] for one in row["translations"]] for row in shown]
    assert len(set(sources[0])) == 6
    assert all(own == sources[0] for own in sources)
    assert list(summary["sharpness"]) == list(optimizers.PAPER)
    assert {abs(ratio) for ratio in summary["sharpness"]["sgd"]["ratios"]} == {1.0}
    assert len(summary["sharpness"]["adam"]["ratios"]) == MICRO["measurements"]


@pytest.mark.slow
def test_every_coordinate_of_the_momentum_is_in_the_histogram(finished):
    run, _ = finished
    counted = json.loads((run / "histogram.json").read_text())
    params = huggingface.load(run / "sgd" / "model")[2]
    total = sum(counted["counts"]) + counted["below"] + counted["above"]
    assert total == sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_the_report_is_made_again_from_the_summary_alone(finished, tmp_path):
    run, _ = finished
    (tmp_path / "summary.json").write_bytes((run / "summary.json").read_bytes())
    written = report.write(tmp_path)
    assert {path.name for path in written} == {
        name for name in FILES if name.endswith((".png", ".md"))
    }
    for path in written:
        _assert_same(path, run / path.name)


@pytest.mark.slow
def test_every_session_is_recorded_with_its_command(finished):
    (session,) = json.loads((finished[0] / "settings.json").read_text())["sessions"]
    assert session["command"].startswith("python -m examples.finetune_t5 --init=")
    assert session["date"][:2] == "20"
    assert session["command"] in (finished[0] / "report.md").read_text()


@pytest.mark.slow
def test_the_landscapes_begin_at_one_loss_that_the_sharpness_saw_too(finished):
    run, _ = finished
    landscape = json.loads((run / "landscape.json").read_text())
    starts = [losses[0] for losses in landscape["losses"].values()]
    summary = json.loads((run / "summary.json").read_text())
    np.testing.assert_allclose(starts, summary["sharpness"]["sgd"]["loss"], rtol=1e-5)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_numbers_bit_for_bit(
    start, finished, tmp_path
):
    run = tmp_path / "run"
    process = start(run)
    # Step 3 is after the checkpoint of step 2 and after the first measurement.
    while not any(x["step"] >= 3 for x in log.read_metrics(run / "sgd")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = start(run, "--resume")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    for name in ("sgd", "clipped_sgd", "adam"):
        assert _untimed(run / name) == _untimed(finished[0] / name)
        for file in ("translations.json", "model/model.safetensors"):
            _assert_same(run / name / file, finished[0] / name / file)
    for file in ("sharpness.jsonl", "histogram.json"):
        _assert_same(run / file, finished[0] / file)
    # Far out, where the loss is steep, the scan has differed in the last bit.
    for ours, theirs in zip(_landscape(run), _landscape(finished[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def _landscape(run):
    scan = json.loads((run / "landscape.json").read_text())
    return [scan["steps"], *scan["losses"].values()]


def _untimed(folder):
    lines = log.read_metrics(folder)
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def _assert_same(path, other):
    assert path.read_bytes() == other.read_bytes(), path


def test_a_diverged_run_is_recorded_and_stays_in_the_table(init, tmp_path, capsys):
    settings = _settings(
        init, tmp_path / "run", optimizer=("adam",), learning_rate=1e38
    )
    finetune_t5.main(settings, *finetune_t5.prepare(settings))
    summary = json.loads((settings.run / "summary.json").read_text())
    step = summary["optimizers"]["adam"]["diverged"]
    assert step is not None
    assert f"its loss was not finite at step {step}" in capsys.readouterr().out
    assert (settings.run / "loss_curves.png").is_file()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optimizer": ("sdg",)}, "expected some of sgd, .* got sdg"),
        ({"optimizer": ()}, "got none"),
        ({"optimizer": ("sgd", "sgd")}, "only once"),
        ({"fraction": 1.0}, r"--fraction must be in \[0, 1\); got 1.0"),
        ({"fraction": -0.1}, "--fraction"),
        ({"fraction": float("nan")}, "--fraction"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        (
            {"learning_rate": 1.0},
            "for one optimizer; got sgd, norm_clipped_sgd, clip",
        ),
        ({"optimizer": ("lion",)}, "no learning rate is known for lion.*give --learn"),
        ({"steps": 0}, "--steps must be at least 1; got 0"),
        ({"batch_size": 10**6}, "1,000,000 training pairs, which are used at"),
        ({"max_length": 3}, "raise the maximal length"),
        ({"pairs": Path("no.tsv"), "dataset": "opus_books"}, "exclude each other"),
        ({"pairs": Path("no.tsv")}, "no.tsv: expected a file"),
        ({"init": "no/such/folder"}, "no/such/folder: expected a folder"),
    ],
)
def test_what_no_run_can_mean_is_refused_before_any_file(
    init, tmp_path, changes, sentence
):
    settings = dataclasses.replace(_settings(init, tmp_path / "run"), **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        finetune_t5.prepare(settings)
    assert not settings.run.exists()


def test_a_vocabulary_that_does_not_fit_the_checkpoint_is_refused(tmp_path):
    config = t5.T5Config(
        vocab_size=500, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_decoder_layers=1
    )
    huggingface.save(tmp_path / "init", config, t5.init(config, 0)[1])
    settings = _settings(tmp_path / "init", tmp_path / "run")
    with pytest.raises(ValueError, match=r"8,192 ids does not fit .* 500 rows"):
        finetune_t5.prepare(settings)


def test_a_run_folder_of_other_settings_is_refused_and_left_as_it_is(init, tmp_path):
    settings = _settings(init, tmp_path / "run")
    finetune_t5.prepare(settings)
    before = {path: path.read_bytes() for path in settings.run.iterdir()}
    other = dataclasses.replace(settings, seed=1, resume=True)
    with pytest.raises(FileExistsError, match="seed: 0 there, 1 here"):
        finetune_t5.prepare(other)
    with pytest.raises(FileExistsError, match="--resume"):
        finetune_t5.prepare(settings)
    assert {path: path.read_bytes() for path in settings.run.iterdir()} == before


@pytest.mark.slow
def test_a_file_of_pairs_ends_in_a_report_that_counts_its_blank_lines(
    init, tmp_path, capsys
):
    lines = [f"The cat {i} sleeps.\tLe chat {i} dort.\n" for i in range(40)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    settings = _settings(
        init,
        tmp_path / "run",
        optimizer=("clipped_sgd",),
        learning_rate=0.1,
        pairs=tmp_path / "pairs.tsv",
    )
    json.dumps([settings.decisive(), settings.training()])
    finetune_t5.main(settings, *finetune_t5.prepare(settings))
    assert f"39 blank lines of {settings.pairs} skipped" in capsys.readouterr().out
    report_text = (settings.run / "report.md").read_text()
    assert "39 blank lines were skipped." in report_text
    resumed = dataclasses.replace(settings, resume=True)
    finetune_t5.main(resumed, *finetune_t5.prepare(resumed))
    assert (settings.run / "report.md").read_text() == report_text


def test_the_committed_checkpoint_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = finetune_t5.Settings(run=tmp_path / "run")
    task, _ = finetune_t5.prepare(settings)
    assert task.files[0].is_file()
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        finetune_t5.prepare(dataclasses.replace(settings, init="examples/checkpoints"))


def test_the_pairs_that_no_pretraining_translated_are_a_dataset(init, tmp_path):
    settings = _settings(init, tmp_path / "run", dataset="libreoffice_untranslated")
    task, _ = finetune_t5.prepare(dataclasses.replace(settings, max_length=40))
    parts = translation.libreoffice_parts()
    assert task.rows + task.dropped == len(parts.untranslated)
    assert set(task.held_out) <= set(parts.valid)


def test_rates_are_chosen_by_held_out_pairs_that_are_not_reported(init, tmp_path):
    task, _ = finetune_t5.prepare(_settings(init, tmp_path / "run"))
    assert len(task.held_out) == len(task.tuning) == MICRO["held_out"]
    assert not set(task.held_out) & set(task.tuning)
    (rows,) = {len(batch["source"]) for batch in task.tuning_batches()}
    assert rows == MICRO["batch_size"]
    with pytest.raises(ValueError, match=r"more than the 8 held-out .*--held-out"):
        dataclasses.replace(task, tuning=[]).tuning_batches()


def test_the_rate_falls_to_nothing_along_a_line_or_stays():
    settings = finetune_t5.Settings(steps=4)
    rates = settings.scheduled(0.8)
    np.testing.assert_allclose(
        [rates(step) for step in range(5)], [0.8, 0.6, 0.4, 0.2, 0], atol=1e-7
    )
    assert settings.scheduled(None) is None  # Adafactor's relative step
    assert dataclasses.replace(settings, schedule="constant").scheduled(0.8) == 0.8


def test_steps_to_a_loss_are_interpolated():
    curve = [(0, 4.0), (10, 2.0), (20, None), (30, 1.0)]
    assert progress.steps_to(curve, 4.0) == 0
    assert progress.steps_to(curve, 3.0) == 5
    assert progress.steps_to(curve, 1.5) == 20
    assert progress.steps_to(curve, 0.5) is None


def test_the_way_from_sgd_to_adam_is_counted_in_steps():
    curves = {
        "sgd": [(0, 4.0), (40, 2.0)],
        "clipped_sgd": [(0, 4.0), (20, 2.0)],
        "adam": [(0, 4.0), (10, 2.0), (20, 1.0)],
        "lion": [(0, 4.0), (40, 3.0)],
    }
    steps = progress.to_the_end_of_sgd(curves)
    assert steps == {"sgd": 40, "clipped_sgd": 20, "adam": 10, "lion": None}
    found = [progress.covered(steps, name) for name in curves]
    assert found == [0, pytest.approx(2 / 3), 1, None]
    assert progress.to_the_end_of_sgd({"adam": curves["adam"]}) == {}


@pytest.mark.slow
def test_several_seeds_join_the_report_and_resume(init, tmp_path, monkeypatch):
    settings = _settings(
        init, tmp_path / "run", optimizer=("clipped_sgd",), learning_rate=0.1
    )
    finetune_t5.main(settings, *finetune_t5.prepare(settings))
    others = dataclasses.replace(settings, run=tmp_path / "seeds")
    seeds.main(others, seeds=(0, 1))
    lines = files.read_lines(others.run / "seeds.jsonl")
    assert [line["seed"] for line in lines] == [0, 1]
    assert [step for step, _ in lines[0]["valid_losses"]] == [0, 3, 6]
    assert lines[0]["valid_losses"][-1] != lines[1]["valid_losses"][-1]
    # The same training as the main job's, but for the program that it is compiled in.
    summary = json.loads((settings.run / "summary.json").read_text())
    for kind in ("losses", "valid_losses"):
        expected = summary["optimizers"]["clipped_sgd"][kind]
        np.testing.assert_allclose(lines[0][kind], expected, rtol=1e-4)
    monkeypatch.setattr(seeds, "training", lambda *_: pytest.fail)
    seeds.main(dataclasses.replace(others, resume=True), seeds=(0, 1))
    others.run.rename(settings.run / "seeds")
    report.write(settings.run)
    text = (settings.run / "report.md").read_text()
    assert "## Seeds 0, 1" in text
    assert len(report.read(settings.run)["sessions"]) == 3


def test_ones_own_pairs_and_own_vocabulary_are_used(init, tmp_path):
    (tmp_path / "pairs.tsv").write_text("Good morning.\tBonjour.\n" * 40)
    huggingface.save(tmp_path / "own", *_config_and_params(init))
    words = vocabulary.COMMITTED.read_bytes()
    (tmp_path / "own" / "spiece.model").write_bytes(words)
    settings = _settings(
        tmp_path / "own", tmp_path / "run", pairs=tmp_path / "pairs.tsv"
    )
    task, _ = finetune_t5.prepare(settings)
    assert task.spiece == tmp_path / "own" / "spiece.model"
    assert task.counts()["train"] + len(task.held_out) == 40
    assert task.held_out[0].french == "Bonjour."


@pytest.mark.parametrize("name", ["sgd", "normalized_sgd"])
def test_the_plain_optimizers_are_the_clipped_ones_with_fraction_zero(name, rng):
    plain = optimizers.OPTIMIZERS[name](0.3, 0.05)
    clipped = optimizers.OPTIMIZERS[f"clipped_{name}"](0.3, 0.0)
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones(2)}
    states = [plain.init(params), clipped.init(params)]
    for _ in range(3):
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
        ours, states[0] = plain.update(grads, states[0], params)
        theirs, states[1] = clipped.update(grads, states[1], params)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_pseudo_updates_are_measured_where_their_gradient_was_taken():
    params = {"w": jnp.array([3.0, -2.0, 0.5, 1.0])}
    fractions = dict.fromkeys(optimizers.PAPER, 0.25)
    optimizer = directions.with_pseudo_updates("sgd", 0.5, fractions)
    updates, opt_state = optimizer.update(params, optimizer.init(params), params)
    state = TrainState(optax.apply_updates(params, updates), opt_state)
    before = directions.before_last_step(state, "sgd")
    np.testing.assert_allclose(before["w"], params["w"], rtol=1e-6)
    clipped = directions.pseudo_directions(state)["clipped_sgd"]["w"]
    assert abs(clipped[0]) == abs(clipped[1])


@pytest.mark.parametrize("optimum", [-9, -2, -1, 0, 1, 2, 3, 8])
@pytest.mark.parametrize("diverges_above", [0, 1, 20])
def test_the_search_ends_at_a_rate_that_is_better_than_both_neighbours(
    optimum, diverges_above
):
    tried = {}

    def loss(half):
        value = abs(half - optimum) if half <= diverges_above else float("inf")
        return tried.setdefault(half, value)

    best = sweep.search(loss, start=1)
    assert best == min(optimum, diverges_above)
    assert tried[best] < tried[best - 1]
    assert tried[best] < tried[best + 1]


def test_the_search_gives_up_when_everything_diverges_or_nothing_is_best():
    with pytest.raises(ValueError, match="no best learning rate"):
        sweep.search(lambda _: float("inf"), start=0)
    with pytest.raises(ValueError, match="no best learning rate"):
        sweep.search(lambda half: -half, start=0)


def test_rates_are_half_decades_as_people_write_them():
    assert [sweep.rate(half) for half in (-3, -2, -1, 0, 1)] == [
        0.0316,
        0.1,
        0.316,
        1.0,
        3.16,
    ]


def test_a_sweep_resumes_without_repeating_a_run_and_keeps_other_optimizers(
    init, tmp_path, monkeypatch
):
    trained = []

    def trainer(task, factory, steps):
        def train(rate):
            trained.append(rate)
            losses = [9.0, float("nan") if rate > 5 else 1.0]
            return sweep.Trained(losses, params=rate)

        return train

    def assessor(task):
        return lambda rate, _: abs(np.log10(rate))

    monkeypatch.setattr(program, "trainer", trainer)
    monkeypatch.setattr(program.held_out, "assessor", assessor)
    out = tmp_path / "rates.json"
    settings = _settings(init, tmp_path / "sweep", optimizer=("sgd", "clipped_sgd"))
    program.main(settings, out)
    first = json.loads(out.read_text())
    assert first["chosen"] == {"sgd": 1.0, "clipped_sgd": 1.0}
    assert {run["diverged"] for run in first["runs"]} == {None, 1}
    count = len(trained)
    program.main(dataclasses.replace(settings, resume=True), out)
    assert len(trained) == count
    adam = dataclasses.replace(settings, optimizer=("adam",), run=tmp_path / "more")
    program.main(adam, out)
    second = json.loads(out.read_text())
    assert second["runs"][: len(first["runs"])] == first["runs"]
    assert list(second["chosen"]) == ["sgd", "clipped_sgd", "adam"]
    with pytest.raises(ValueError, match="swept with other settings"):
        program.main(dataclasses.replace(adam, fraction=0.1), out)


def test_the_committed_sweep_chose_the_best_of_its_own_runs_in_the_interior():
    result = json.loads(optimizers.LEARNING_RATES.read_text())
    assert set(result["chosen"]) >= {"sgd", "clipped_sgd", "adam"}
    for name, chosen in result["chosen"].items():
        runs = [run for run in result["runs"] if run["optimizer"] == name]
        finite = [run for run in runs if run["tuning_loss"] is not None]
        best = min(finite, key=lambda run: run["tuning_loss"])
        assert best["learning_rate"] == chosen
        rates = sorted(run["learning_rate"] for run in runs)
        assert rates[0] < chosen < rates[-1]


def test_the_defaults_are_those_of_the_committed_sweep():
    assert optimizers.tuning_note(finetune_t5.Settings().training()) == ""
    changed = finetune_t5.Settings(fraction=0.1).training()
    assert "fraction 0.05, here 0.1" in optimizers.tuning_note(changed)


def test_the_training_loss_of_a_run_is_the_mean_of_its_tail():
    assert sweep.train_loss([9.0] * 50 + [1.0] * sweep.TAIL) == 1.0


def _settings(init, run, **changes):
    return finetune_t5.Settings(init=str(init), run=run, **MICRO, **changes)


def _config_and_params(folder):
    config, _, params = huggingface.load(folder)
    return config, params
