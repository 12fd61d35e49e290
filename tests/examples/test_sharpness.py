"""The first paper's experiment at its smallest, and the paper's own numbers."""

import dataclasses
import json
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.data.batching import count
from examples.lab import held_out, log, paper, steps
from examples.lab.directions import with_pseudo_updates
from examples.lab.optimizers import LONG_VERSION, PAPER
from examples.sharpness import correlation, kinds, step_curvature
from examples.sharpness import experiment as sharpness
from examples.sharpness import one_at_a_time as walks
from examples.sharpness import report as sharpness_report
from examples.sharpness import settings as settings_module
from examples.sharpness.claims import holding
from examples.sharpness.instruments import Instruments
from examples.sharpness.prediction import predict
from examples.sharpness.settings import Settings, moments
from optax_clip import diagnostics

FILES = {
    "settings.json",
    "metrics.jsonl",
    "summary.json",
    "report.md",
    "ratios.png",
    "landscape.png",
    "reductions.png",
    "step_curvature.png",
    "momentum.png",
}


@pytest.fixture(scope="module")
def killed(micro_t5, start_program, tmp_path_factory):
    """A run that was killed after its first measurement and went on: its folder, and
    what it had measured before.
    """
    run = tmp_path_factory.mktemp("killed") / "run"
    words = f"--preset=tiny --init={micro_t5} --run={run} --save-every=1".split()
    process = start_program("examples.sharpness", *words)
    while not (before := _measured(run)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = start_program("examples.sharpness", *words, "--resume")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return run, before


@pytest.fixture(scope="module")
def finished(killed):
    return killed[0]


def _measured(run):
    return [x for x in log.read_metrics(run) if "sharpness" in x]


@pytest.mark.slow
def test_a_run_leaves_tables_and_figures(finished):
    assert {path.name for path in finished.iterdir()} >= FILES
    page = (finished / "report.md").read_text()
    assert page.count("![") == 5
    for text in ("Adam's update, 50 % clipped", "Spearman", "epoch 2"):
        assert text in page


@pytest.mark.slow
def test_every_direction_is_measured_at_the_moments_of_the_protocol(finished):
    lines = _measured(finished)
    assert [x["epoch"] for x in lines] == [1, 2]
    for line in lines:
        assert set(line["sharpness"]) == {*PAPER, *LONG_VERSION}
        assert set(line["landscape"]) == {*PAPER, *LONG_VERSION}
        assert line["step"] == (line["epoch"] - 1) * 2 + line["batch"]
    assert "correlation" in lines[-1]


@pytest.mark.slow
def test_the_summary_averages_ratios_and_not_sharpnesses(finished):
    summary = json.loads((finished / "summary.json").read_text())
    for line in _measured(finished):
        cell = summary["epochs"][str(line["epoch"])]["directions"]
        of_sgd = abs(line["sharpness"]["sgd"]["sharpness"])
        for name, row in cell.items():
            expected = line["sharpness"][name]["sharpness"] / of_sgd
            assert row["ratio"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_the_report_is_made_again_from_the_files_alone(finished):
    names = ("summary.json", "report.md")
    before = {finished / name: (finished / name).read_bytes() for name in names}
    for path in before:
        path.unlink()
    sharpness_report.main(finished)
    assert {path: path.read_bytes() for path in before} == before


def test_the_fixed_batch_has_no_row_that_is_trained_on(micro_t5):
    settings = Settings(preset="tiny", init=str(micro_t5))
    task = sharpness.load(settings)
    batch = held_out.batch(task, settings.sizes().test_size)
    assert count(batch) == settings.sizes().test_size
    trained_on = {tuple(row) for row in task.train["target"]}
    assert not trained_on & {tuple(row) for row in batch["target"]}


def test_trajectories_take_rates_that_were_swept_on_their_task():
    swept = "results/convergence/translation-t5-enfr-mixture"
    assert Settings().rate_of("sgd") == (0.0316, swept)
    masked = Settings(task="masked_lm")
    assert masked.rate_of("sgd") == (0.01, "results/convergence/masked_lm")
    assert masked.rate_of("adam").rate == 1e-4
    assert dataclasses.replace(masked, learning_rate=1.0).rate() == 1.0
    with pytest.raises(ValueError, match="no learning rate of sgd was swept on this"):
        dataclasses.replace(masked, dataset="libreoffice").rate_of("sgd")


@pytest.mark.slow
def test_one_direction_at_a_time_measures_the_same(micro_t5, tmp_path, monkeypatch):
    found = {}
    few = {"sgd": 0.05, "adam": 0.05, "sign_sgd": 0.5}
    monkeypatch.setattr(Settings, "fractions", lambda _: few)
    for module in (sharpness, walks):
        monkeypatch.setattr(module, "SPLIT", ("sgd", "adam"))

    def correlations(_, params):  # the others take a third of the time to compile
        return {"correlation": float(optax.tree.norm(params))}

    monkeypatch.setattr(Instruments, "correlations", correlations)
    for one_at_a_time in (False, True):
        sizes = settings_module.PRESETS["tiny"]._replace(one_at_a_time=one_at_a_time)
        monkeypatch.setattr(Settings, "sizes", lambda _, sizes=sizes: sizes)
        run = tmp_path / str(one_at_a_time)
        settings = Settings(preset="tiny", init=str(micro_t5), run=run)
        task = sharpness.prepare(settings)
        task, at = sharpness.one_epoch(settings, task), moments(settings)
        if one_at_a_time:
            walks.measure(settings, task, at)
            walks.measure(settings, task, at)  # nothing is left to do
        else:
            sharpness.all_at_once(settings, task, at)
        found[one_at_a_time] = log.read_metrics(run)
    together, apart = (
        [line for line in lines if "sharpness" in line] for lines in found.values()
    )
    assert [line["step"] for line in together] == [line["step"] for line in apart]
    for one, other in zip(together, apart, strict=True):
        assert set(one) - {"seconds"} == set(other) - {"seconds"}
        for part in ("sharpness", "split"):
            ours, theirs = (jax.tree.leaves(x[part]) for x in (one, other))
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)
    ours, theirs = (lines[-1]["correlation"] for lines in (together, apart))
    assert ours == pytest.approx(theirs, rel=1e-5)
    losses = [
        [line["loss"] for line in lines if "loss" in line] for lines in found.values()
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_the_parts_of_a_split_are_those_of_the_whole(finished):
    summary = json.loads((finished / "summary.json").read_text())
    for epoch, directions in summary["split"].items():
        cell = summary["epochs"][epoch]
        shown = cell["batches"].index(cell["in_figure"])
        for name, parts in directions.items():
            assert set(parts) <= {*kinds.KINDS}
            total = sum(part["within"] + part["cross"] for part in parts.values())
            expected = cell["directions"][name]["sharpness"][shown]
            assert total == pytest.approx(expected, rel=1e-3, abs=1e-5)
            assert sum(p["norm"] for p in parts.values()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("layers/3/attention_norm/scale", "norm gains"),
        ("norm/scale", "norm gains"),
        ("embed/embedding", "embedding"),
        ("position_embed/embedding", "embedding"),
        ("decoder/layers/0/cross_attention/key/kernel", "attention"),
        ("layers/0/feed_forward/gate/kernel", "feed-forward"),
        ("head/dense/kernel", "others"),
    ],
)
def test_tensors_have_kinds(path, kind):
    assert kinds.kind(path) == kind


def test_scales_of_tensors_alone_make_no_correlation_within_them(rng):
    leaf_N = np.repeat(np.arange(20), 10)
    scale_N = 10.0 ** rng.uniform(-4, 4, 20)[leaf_N]
    slopes_N, curvatures_N = (scale_N * np.exp(rng.normal(size=200)) for _ in "ab")
    found = correlation.within_tensors(slopes_N, curvatures_N, leaf_N, seed=0)
    assert abs(found["spearman"]) < 0.25
    assert found["tensors"] == 20
    same = correlation.within_tensors(slopes_N, slopes_N**2, leaf_N, seed=0)
    assert same["spearman"] == pytest.approx(1)
    absent = np.where(leaf_N < 19, 0.0, slopes_N)
    left = correlation.within_tensors(absent, curvatures_N, leaf_N, seed=0)
    assert (left["coordinates"], left["tensors"]) == (10, 1)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers_and_repeats_no_step(killed):
    run, before = killed
    steps = [line["step"] for line in log.read_metrics(run) if "loss" in line]
    assert steps == sorted(set(steps))
    first, _ = _measured(run)
    for part in ("sharpness", "momentum", "landscape"):
        assert first[part] == before[0][part]


@pytest.mark.slow
def test_a_diverged_run_is_recorded_and_keeps_what_it_measured(finished, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lines = log.read_metrics(finished)
    until = next(i for i, line in enumerate(lines) if "sharpness" in line) + 1
    lines = [*lines[:until], {"step": 2, "diverged": "nan", "seconds": 9.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text)
    (run / "settings.json").write_bytes((finished / "settings.json").read_bytes())
    sharpness_report.main(run)
    assert "The run diverged at step 2" in (run / "report.md").read_text()
    assert list(json.loads((run / "summary.json").read_text())["epochs"]) == ["1"]


def test_memory_and_time_are_predicted_from_shapes(micro_t5):
    settings = Settings(preset="tiny", init=str(micro_t5))
    task = sharpness.load(settings)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(task.params))
    found = predict(settings, task)
    # The parameters, 12 updates, 13 moments (Adam's in pairs), SGD's own, and the rows
    # and columns of both Adafactors and a few numbers, which are small.
    assert 27 * 4 * parameters < found.state_bytes < 28 * 4 * parameters
    gradients = 4 * 4  # rows: 4 updates
    directions = 12 * 4 * 2  # rows: at two moments
    scans, products = directions * 17, (8 + 2 * 4) * 4  # both correlations
    splits = 5 * 4 * 4 * 2  # kinds of blocks, directions, rows, moments
    rows = 6 * gradients + 12 * (directions + splits + products) + 2 * scans
    assert found.flops == rows * 40 * parameters


def test_the_papers_own_sizes_are_those_of_a_program(micro_t5):
    """A step, its gradient in parts, and a measurement, in shapes alone."""
    settings = Settings(preset="paper", init=str(micro_t5))
    sizes = settings.sizes()
    task = sharpness.load(dataclasses.replace(settings, preset="tiny"))
    optimizer = with_pseudo_updates("sgd", 1e-3, settings.fractions())
    shape = jax.ShapeDtypeStruct((sizes.batch_size, sizes.max_length), jnp.int32)
    batch = {"source": shape, "target": shape}
    state = jax.eval_shape(
        lambda p: steps.TrainState(p, optimizer.init(p)), task.params
    )
    microbatches = steps.Microbatches(sizes.batch_size // sizes.part, task.weight)
    step = steps.train_step(task.train_loss, optimizer, microbatches=microbatches)
    after, metrics = jax.eval_shape(step, state, batch, jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert metrics["loss"].shape == ()
    derived = jax.eval_shape(
        lambda p, u, b: diagnostics.directional_derivatives(
            task.eval_loss, p, u, b, microbatches=64, weight=task.weight
        ),
        state.params,
        after.opt_state["pseudo"].updates,
        batch,
    )
    assert set(derived) == {*PAPER, *LONG_VERSION}


def test_the_curvature_of_a_step_is_that_of_the_losses():
    # A cubic: L(t) = 3 - t + t^2 / 2 + t^3, with its Newton step at 1.
    steps = [0.0, 0.5, 1.0]
    curve = {"steps": steps, "losses": [3 - t + t**2 / 2 + t**3 for t in steps]}
    measured = {"slope": -1.0, "newton_step": 1.0}
    found = step_curvature.ratios(curve, measured)
    assert found == [[0.5, 2.0], [1.0, 3.0]]
    assert step_curvature.at(found, 0.5) == 2.0
    assert step_curvature.at(found, 0.125) is None


@pytest.mark.parametrize(("slope", "newton_step"), [(1.0, 1.0), (-1.0, -2.0)])
def test_a_line_without_a_newton_step_has_no_curvature_of_it(slope, newton_step):
    curve = {"steps": [0.0, 1e-6], "losses": [3.0, 3.0]}
    measured = {"slope": slope, "newton_step": newton_step}
    assert step_curvature.ratios(curve, measured) is None


@pytest.mark.parametrize("task", ["translation", "masked_lm"])
@pytest.mark.parametrize("trajectory", ["sgd", "adam"])
def test_five_batches_of_each_epoch_are_measured_that_of_the_figure_among_them(
    task, trajectory
):
    settings = Settings(task=task, trajectory=trajectory)
    found = moments(settings)
    for epoch, batch in paper.FIGURE_BATCHES[task, trajectory].items():
        own = [m for m in found.values() if m.epoch == epoch]
        assert len({m.batch for m in own}) == 5
        assert [m.batch for m in own if m.in_figure] == [batch]
    assert all(step == 10 * (m.epoch - 1) + m.batch for step, m in found.items())
    assert found != moments(dataclasses.replace(settings, seed=1))


def test_the_papers_tables_obey_what_is_said_to_hold_in_all_of_them():
    for table in paper.RATIOS.values():
        assert tuple(table) == paper.EPOCHS
        for ratios in table.values():
            assert len(paper.INVARIANTS) == 8
            assert all(one.holds(ratios) for one in paper.INVARIANTS)


def test_an_invariant_fails_where_the_order_is_another():
    ratios = dict(paper.RATIOS["translation", "sgd"][2])
    swapped = ratios | {"adam": ratios["sgd" if "sgd" in ratios else "clipped_sgd"]}
    failing = [one.claim for one in paper.INVARIANTS if not one.holds(swapped)]
    assert failing == ["Adam is below clipped normalized SGD"]


def test_what_is_not_finite_holds_nowhere():
    directions = {name: {"ratio": 0.1, "ratios": [0.1, None]} for name in paper.COLUMNS}
    found = holding({"batches": [1, 2], "directions": directions})
    assert [batches[1] for _, batches in found] == [False] * 8


def test_a_gradient_in_microbatches_is_that_of_the_whole_batch(rng):
    params = {"w": jnp.asarray(rng.normal(size=3), jnp.float32)}
    batch = {"x": rng.normal(size=(6, 3)), "n": np.array([1, 2, 3, 1, 4, 1])}

    def loss(params, batch, key):
        del key
        each = jnp.tanh(batch["x"] @ params["w"]) ** 2
        return jnp.sum(each * batch["n"]) / jnp.sum(batch["n"])

    microbatches = steps.Microbatches(3, lambda batch: jnp.sum(batch["n"]))
    key = jax.random.key(0)
    whole = jax.value_and_grad(loss)(params, batch, key)
    ours = steps._accumulated(loss, microbatches)(params, batch, key)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        # Roundings of the largest entry, as the parts of a small one cancel.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * float(jnp.max(abs(b))))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fraction": 1.0}, r"--fraction must be in \[0, 1\); got 1.0"),
        (
            {"learning_rate": -1.0},
            "--learning-rate must be positive and finite; got -1.0",
        ),
        ({"batch_size": 3}, "--batch-size must be a multiple of 2, .* got 3"),
        ({"batch_size": 0}, "--batch-size must be at least 1; got 0"),
        (
            {"batch_size": 4_000, "dataset": "en_fr"},
            "expected at least 8,000 training examples",
        ),
        ({"preset": "laptop"}, "no learning rate of sgd was swept on this task"),
        ({"task": "masked_lm", "pairs": "x.tsv"}, "--pairs and --dataset with pairs"),
        ({"documents": "x.txt"}, "--documents is for language models"),
        ({"init": "nowhere/at/all"}, "expected a folder with config.json"),
        ({"resume": True}, "holds no run to resume"),
    ],
)
def test_what_no_run_can_mean_is_refused_before_any_work(
    micro_t5, tmp_path, changes, sentence
):
    settings = Settings(preset="tiny", init=str(micro_t5), run=tmp_path / "run")
    with pytest.raises((ValueError, OSError), match=sentence):
        sharpness.prepare(dataclasses.replace(settings, **changes))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_settings_is_refused(micro_t5, tmp_path):
    settings = Settings(preset="tiny", init=str(micro_t5), run=tmp_path / "run")
    sharpness.prepare(settings)
    with pytest.raises(FileExistsError, match="seed: 0 there, 1 here"):
        sharpness.prepare(dataclasses.replace(settings, seed=1, resume=True))
