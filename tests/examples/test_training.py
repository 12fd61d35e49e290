"""The run folder and the training loop: what a stranger may do to them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.lab import log, provenance, run_folder, training

ROOT = Path(__file__).parents[2]
STEPS = 40


def loss(params, batch, key):
    noise = jax.random.normal(key, batch["x"].shape)
    residual = (batch["x"] + 0.1 * noise) @ params["w"] - batch["y"]
    return (residual**2).mean() + 0.01 * params["b"] ** 2


def batch_at(step):
    x = np.random.default_rng((0, step)).normal(size=(8, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(axis=1)}


def fresh():
    return {"w": jnp.zeros(3), "b": jnp.ones(())}


def train(folder, optimizer=None, **options):
    options = {"steps": STEPS, "seed": 0, "save_every": 10} | options
    optimizer = optimizer or optax.adam(0.05)
    return training.train(folder, loss, fresh(), optimizer, batch_at, **options)


def losses(folder):
    return [
        (line["step"], line["loss"])
        for line in log.read_metrics(folder)
        if "loss" in line
    ]


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


# The loop


def test_the_loop_makes_the_updates_that_a_plain_loop_makes(tmp_path):
    optimizer = optax.adam(0.05)
    params, opt_state, expected = fresh(), optimizer.init(fresh()), []
    step = jax.jit(jax.value_and_grad(loss))
    for n in range(STEPS):
        key = jax.random.fold_in(jax.random.key(0), n)
        value, grads = step(params, batch_at(n), key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        expected.append(float(value))
    state = train(tmp_path)
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-5)
    steps, found = zip(*losses(tmp_path), strict=True)
    assert steps == tuple(range(STEPS))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_callers_parameters_survive(tmp_path):
    params = fresh()
    for name in ("sgd", "again"):
        training.train(
            tmp_path / name,
            loss,
            params,
            optax.sgd(0.1),
            batch_at,
            steps=3,
            seed=0,
        )
    assert_same(params, fresh())
    assert losses(tmp_path / "sgd") == losses(tmp_path / "again")


def test_the_step_compiles_once(tmp_path):
    traces = []

    def counted(params, batch, key):
        traces.append(1)
        return loss(params, batch, key)

    training.train(
        tmp_path, counted, fresh(), optax.adam(0.1), batch_at, steps=5, seed=0
    )
    assert len(traces) == 1


def test_evaluations_and_observations_get_into_the_metrics(tmp_path):
    def evaluate(step, state):
        return {"norm": optax.tree.norm(state.params), "by": {"step": step}}

    train(
        tmp_path,
        optax.adam(0.05),
        steps=5,
        observe=lambda state: {"count": state[0].count},
        evaluate=evaluate,
        evaluate_every=2,
    )
    lines = log.read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [0, 0, 1, 2, 2, 3, 4, 4, 5]
    assert [line["count"] for line in lines if "count" in line] == [1, 2, 3, 4, 5]
    evaluations = [line for line in lines if "norm" in line]
    assert [line["by"]["step"] for line in evaluations] == [0, 2, 4, 5]
    assert evaluations[0]["norm"] == 1.0


@pytest.mark.parametrize("optimizer", [optax.sgd(1e30), optax.sgd(float("nan"))])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(
    tmp_path, optimizer
):
    with pytest.raises(training.DivergedError, match=r"the loss is (inf|nan) at step"):
        train(tmp_path, optimizer, save_every=1)
    *_, last = log.read_metrics(tmp_path)
    assert last["diverged"] in ("inf", "nan")
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert max(saved) <= last["step"]


def test_metrics_are_json_even_where_numbers_are_not_finite(tmp_path):
    with log.metrics(tmp_path, 0) as write:
        write(3, a=float("nan"), b={"c": np.float32("inf")}, d=jnp.asarray(2.5))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    values = json.loads(line, parse_constant=pytest.fail)
    assert (values["a"], values["b"], values["d"]) == (None, {"c": None}, 2.5)


# Going on


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    def evaluate(step, state):
        return {"w": state.params["w"][0]}

    first = train(tmp_path, evaluate=evaluate)
    before = numbers(tmp_path)
    assert_same(train(tmp_path, evaluate=evaluate), first)
    assert numbers(tmp_path) == before


def numbers(folder):
    lines = log.read_metrics(folder)
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_signal_saves_at_once_and_says_how_to_go_on(tmp_path):
    whole = train(tmp_path / "whole")

    def interrupting(number):
        def at(step):
            if step == 17:
                os.kill(os.getpid(), number)
            return batch_at(step)

        return at

    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path / str(number)
        handler = signal.getsignal(number)
        with pytest.raises(SystemExit, match=r"saved after 18 of 40 .*--resume"):
            training.train(
                folder,
                loss,
                fresh(),
                optax.adam(0.05),
                interrupting(number),
                steps=STEPS,
                seed=0,
                save_every=10,
            )
        assert signal.getsignal(number) == handler
        assert (folder / "checkpoints" / "18").is_dir()
        assert_same(train(folder), whole)
        assert numbers(folder) == numbers(tmp_path / "whole")


def test_lines_past_the_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    train(tmp_path, steps=10)
    before = numbers(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 5.0, "seconds": 9.0}\n{"step": 11, "lo')
    assert len(log.read_metrics(tmp_path)) == 11
    train(tmp_path, steps=20)
    assert numbers(tmp_path)[:10] == before
    assert [step for step, _ in losses(tmp_path)] == list(range(20))


@pytest.mark.slow
def test_a_run_killed_at_any_time_goes_on_bit_for_bit(tmp_path):
    def start(folder):
        code = (
            "import pathlib, sys; from tests.examples import test_training; "
            "test_training.train(pathlib.Path(sys.argv[1]), steps=200)"
        )
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], cwd=ROOT, env=environment
        )

    whole = start(tmp_path / "whole")
    killed = start(tmp_path / "killed")
    while killed.poll() is None and len(losses(tmp_path / "killed")) < 25:
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    assert len(losses(tmp_path / "killed")) < 200, "it was killed too late"
    assert start(tmp_path / "killed").wait() == whole.wait() == 0

    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    states = [
        training.train(
            tmp_path / name,
            loss,
            fresh(),
            optax.adam(0.05),
            batch_at,
            steps=200,
            seed=0,
        )
        for name in ("killed", "whole")
    ]
    assert_same(*states)


# The run folder


def test_a_folder_of_other_settings_is_refused_and_left_alone(tmp_path):
    run_folder.open_run(tmp_path / "run", {"steps": 3, "path": Path("a")}, resume=False)
    before = (tmp_path / "run" / "settings.json").read_bytes()
    for resume in (False, True):
        with pytest.raises(
            FileExistsError,
            match=re.escape(
                "other settings (new: nothing there, 1 here, steps: 3 there"
            ),
        ):
            run_folder.open_run(
                tmp_path / "run", {"steps": 4, "path": "a", "new": 1}, resume=resume
            )
    assert (tmp_path / "run" / "settings.json").read_bytes() == before


def test_a_folder_with_a_run_is_continued_only_when_asked(tmp_path):
    run_folder.open_run(tmp_path / "run", {"rates": (1, 2)}, resume=False)
    with pytest.raises(FileExistsError, match="continue it with --resume"):
        run_folder.open_run(tmp_path / "run", {"rates": (1, 2)}, resume=False)
    run_folder.open_run(tmp_path / "run", {"rates": (1, 2)}, resume=True)


def test_what_is_not_a_run_is_not_touched(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        run_folder.open_run(tmp_path / "none", {}, resume=True)
    (tmp_path / "thesis.tex").write_text("years of work")
    for folder in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(FileExistsError, match="is not a run folder"):
            run_folder.open_run(folder, {}, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_settings_tell_what_made_the_numbers_in_every_session(tmp_path):
    run_folder.open_run(tmp_path / "run", {}, resume=False)
    run_folder.open_run(tmp_path / "run", {}, resume=True)
    sessions = run_folder.read_settings(tmp_path / "run")["sessions"]
    assert len(sessions) == 2
    for session in sessions:
        assert session.keys() == {"command", "commit", "date", "made_with"}
        assert session["made_with"]["jax"] == jax.__version__
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", session["date"])


def test_recorded_arguments_leave_out_the_folders_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = {
        "--run": "--run",
        "runs/one": "runs/one",
        f"{tmp_path}/runs/one": "runs/one",
        f"--run={tmp_path}/runs/one": "--run=runs/one",
        "/somewhere/else/pairs.tsv": "pairs.tsv",
    }
    assert {word: provenance.portable(word) for word in words} == words


def test_a_run_of_before_sessions_says_which_commit_reads_it(tmp_path):
    (tmp_path / "settings.json").write_text('{"settings": {}, "made_with": {}}')
    with pytest.raises(ValueError, match="check out commit b6b5321 to read it"):
        run_folder.read_settings(tmp_path)
    (tmp_path / "summary.json").write_text('{"settings": {}}')
    with pytest.raises(ValueError, match="check out commit b6b5321 to read it"):
        run_folder.read_summary(tmp_path)
