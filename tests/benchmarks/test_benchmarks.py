"""The benchmarks run, agree with one another and say what they did; no timing here."""

import dataclasses
import functools
import importlib.util
import json
import math
import os

import jax
import pytest

from benchmarks import contestants, curvature, diagnostics, selection
from examples.models import huggingface, t5

TINY = t5.T5Config(
    vocab_size=320, d_model=32, d_kv=8, d_ff=64, num_heads=2,
    num_layers=1, num_decoder_layers=1,
)  # fmt: skip
WITH_TORCH = importlib.util.find_spec("torch") is not None
SMALL = selection.Settings("one-leaf", coordinates=10_000, rounds=1)


def test_every_figure_is_measured_and_saved(tmp_path, capsys):
    settings = dataclasses.replace(SMALL, out=tmp_path / "new" / "selection.json")
    record = selection.main(settings, TINY)
    printed = capsys.readouterr().out
    for row, figure in zip(record["rows"], selection.figures(), strict=True):
        assert row["figure"] == figure.name
        assert figure.name in printed
        absent = figure.name.startswith("torch") and not WITH_TORCH
        assert math.isnan(row["median"]) == (row["met"] is None) == absent
        assert absent or 0 <= row["min"] <= row["median"] <= row["max"]
    assert ("torch is not installed" in printed) == (not WITH_TORCH)
    (saved,) = json.loads(settings.out.read_text()).values()
    assert saved.keys() == record.keys() >= {"command", "date", "made_with"}
    assert saved["load_average"].keys() == {"before", "after"}
    assert saved["made_with"].keys() >= {"jax", "optax", "numpy", "python", "device"}
    assert saved["command"].endswith(
        "selection --layout one-leaf --coordinates 10000 --rounds 1"
    )


def test_a_configuration_replaces_itself_and_nothing_else(tmp_path):
    path, device = tmp_path / "selection.json", {"device": "CPU"}
    record = {"layout": "one-leaf", "coordinates": 9, "made_with": device}
    for dtype, rows in (("float32", []), ("bfloat16", []), ("float32", [{}])):
        selection.save(path, {**record, "dtype": dtype, "rows": rows})
    saved = json.loads(path.read_text())
    assert {key: value["rows"] for key, value in saved.items()} == {
        "CPU / one-leaf / 9 / bfloat16": [],
        "CPU / one-leaf / 9 / float32": [{}],
    }


def test_bfloat16_gives_everybody_the_same_threshold(tmp_path):
    settings = dataclasses.replace(
        SMALL, dtype="bfloat16", slow=False, step=False, out=tmp_path / "s.json"
    )
    record = selection.main(settings)  # which compares the thresholds
    assert record["command"].endswith("bfloat16 --rounds 1 --no-slow --no-step")
    assert record["measured"]["bytes"] == [20_000]


def test_the_default_layout_is_t5_small():
    shapes = selection.leaf_shapes(selection.Settings(), selection.T5_SMALL)
    assert len(shapes) == 131
    assert sum(map(math.prod, shapes)) == 60_506_624


@pytest.mark.parametrize("coordinates", [1_000_000, 10**9])
def test_t5_small_is_scaled_leaf_by_leaf(coordinates):
    settings = selection.Settings(coordinates=coordinates)
    shapes = selection.leaf_shapes(settings, selection.T5_SMALL)
    assert len(shapes) == 131
    assert sum(map(math.prod, shapes)) == pytest.approx(coordinates, rel=0.03)


def test_a_scanned_t5_has_one_array_for_all_layers():
    settings = selection.Settings(layout="scanned")
    shapes = selection.leaf_shapes(settings, selection.T5_SMALL)
    assert sum(map(math.prod, shapes)) == 60_506_624
    assert len(shapes) < 30
    assert (6, 512, 512) in shapes


def test_no_two_rounds_have_the_same_gradients():
    first, second = (
        contestants.draw(seed, [(1000,)], "float32", peers=True) for seed in (1, 2)
    )
    assert contestants.partition(first) != contestants.partition(second)


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ValueError, match=r"--rounds: expected at least 1; got 0"):
        selection.Settings(rounds=0)
    with pytest.raises(ValueError, match=r"--coordinates: .* got 10"):
        selection.Settings(coordinates=10)


### diagnostics


MICRO = dict.fromkeys(("d_model", "d_ff", "d_kv", "num_heads"), 4) | {
    "vocab_size": 20, "num_layers": 1, "num_decoder_layers": 1,
}  # fmt: skip


@pytest.fixture
def quickly_compiled():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
def test_every_figure_of_the_diagnostics_is_measured(
    tmp_path, monkeypatch, capsys, quickly_compiled
):
    run, models = [], dict.fromkeys((diagnostics.EXAMPLE, diagnostics.SMALL), MICRO)

    def in_this_process(job, cores):
        run.append((job["section"], len(cores)))
        return cached(json.dumps(job | {"label": ""}))

    @functools.cache
    def cached(job):  # the wall section is the other one on other cores
        return curvature.run(json.loads(job))

    monkeypatch.setattr(diagnostics, "in_process", in_this_process)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 7})
    settings = diagnostics.Settings(rounds=1, out=tmp_path / "diagnostics.json")
    record = diagnostics.main(settings, models)
    printed = capsys.readouterr().out
    speed = [("speed", 1), ("speed", 2), ("memory", 1)]
    assert run == [*speed, ("spectrum", 1), *speed]
    for row in record["rows"]:
        absent = row["figure"].startswith("torch") and not WITH_TORCH
        assert math.isnan(row["median"]) == (row["met"] is None) == absent
        assert absent or 0 < row["min"] <= row["median"] <= row["max"]
    assert len(record["rows"]) == 2 * (len(diagnostics.SPEED) + 2) + 1
    assert printed.count("forward over reverse") == 2
    assert ("torch is not installed" in printed) == (not WITH_TORCH)
    (saved,) = json.loads(settings.out.read_text()).values()
    assert saved.keys() == record.keys() >= {"command", "date", "made_with"}
    assert saved["command"].endswith("benchmarks.diagnostics --rounds 1")


def test_a_section_has_a_process_and_a_core_for_itself(tmp_path):
    config = t5.T5Config(**MICRO)
    huggingface.save(tmp_path, config, t5.init(config, 0)[1])
    model = {"checkpoint": str(tmp_path)}
    job = {"section": "memory", "model": model, "microbatches": 4}
    cores = sorted(os.sched_getaffinity(0))
    measured = diagnostics.in_process(job | {"tokens": (8, 2)}, cores[-1:])
    (peak,), (temporary,) = measured.values()
    assert 50e6 < peak < 2e9  # an interpreter with jax in it, not this one
    assert temporary < 1e6
    assert sorted(os.sched_getaffinity(0)) == cores


def test_what_is_left_out_is_not_measured():
    settings = diagnostics.Settings(memory=False, spectrum=False, peers=False)
    jobs = diagnostics.jobs(settings, diagnostics.EXAMPLE)
    assert jobs.keys() == {"CPU time", "wall"}
    empty = {name: {} for name in jobs}
    rows = diagnostics.rows(diagnostics.EXAMPLE, empty)
    assert all(math.isnan(row["median"]) for row in rows)


def test_different_answers_end_the_benchmark():
    answers = {"one direction": 1.0, "seven directions": {"gradient": 1.0}}
    curvature.check(answers)
    with pytest.raises(RuntimeError, match="forward over forward differs"):
        curvature.check(answers | {"forward over forward": 1.1})
