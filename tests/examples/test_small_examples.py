"""The one-screen examples do what they say; found by their `main` without arguments."""

import importlib
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import optax_clip

from .test_index import last_line

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = sorted(
    path.stem
    for path in EXAMPLES.glob("*.py")
    if re.search(r"^def main\(\) ->", path.read_text(), re.MULTILINE)
)
# A mesh, its shardings and a checkpoint take more than a screen.
LINES = {"sharded_loop": 100}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """What an example writes goes to a temporary folder."""
    monkeypatch.chdir(tmp_path)


def main(name):
    return importlib.import_module(f"examples.{name}").main()


@pytest.mark.parametrize("name", SMALL)
def test_an_example_fits_a_screen_and_names_its_command(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert text.count("\n") <= LINES.get(name, 62)
    assert f"`python -m examples.{name}`" in text.splitlines()[0]


@pytest.mark.slow
@pytest.mark.optimised  # their many steps take longer than to compile one
@pytest.mark.parametrize("name", SMALL)
def test_the_printed_losses_fall_and_the_last_line_is_that_of_the_index(
    name, capsys, monkeypatch
):
    if name == "equinox_loop":
        pytest.importorskip("equinox")
    fetched, fetch = [], jax.device_get

    def counted(x):
        fetched.append(len(x) if isinstance(x, list) else 1)
        return fetch(x)

    monkeypatch.setattr(jax, "device_get", counted)
    result = main(name)
    printed = capsys.readouterr().out
    losses = re.findall(r"loss ([\d.]+) -> ([\d.]+)", printed)
    assert losses, printed
    for before, after in losses:
        assert float(after) < float(before) / 20
    assert_like(printed.strip().splitlines()[-1], last_line(name))
    if check := CHECKS.get(name):
        check(result)
    if name == "log_clip_metrics":  # it waits for the device once in twenty updates
        assert fetched == [20] * 5


def assert_like(ours, theirs, number=r"\d+\.\d+"):
    """The same words, and numbers within a factor of two, as machines round."""
    assert re.sub(number, "#", ours) == re.sub(number, "#", theirs)
    pairs = zip(re.findall(number, ours), re.findall(number, theirs), strict=True)
    assert all(0.5 < float(a) / float(b) < 2 for a, b in pairs)


def test_without_equinox_its_example_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "equinox", None)
    main("equinox_loop")
    assert (
        capsys.readouterr().out == "This example needs Equinox: pip install equinox.\n"
    )


def check_measure_sharpness(sharpness):
    assert sharpness["Adam"] < sharpness["SGD, 5 % clipped"] < sharpness["SGD"]


def check_sharded_loop(found):
    (one, expected), *sharded = found.values()
    for state, losses in sharded:  # the second was saved and restored halfway
        np.testing.assert_allclose(losses, expected, rtol=2e-4)
        assert jax.tree.structure(state) == jax.tree.structure(one)
        for leaf in jax.tree.leaves(state):
            assert len(leaf.addressable_shards) == 8
            split = 8 if leaf.ndim == 2 else 1  # of parameters and of momentum
            assert leaf.addressable_shards[0].data.size == leaf.size // split
        metrics = optax_clip.clip_metrics(state[1])
        assert metrics["clipped_fraction"] == pytest.approx(0.05, abs=1e-3)
    explicit, restored = (state[0]["embed"]["embedding"] for state, _ in sharded)
    assert explicit.addressable_shards[0].data.shape == (16, 16)
    assert restored.addressable_shards[0].data.shape == (32, 8)


def check_sweep_in_one_jit(result):
    rates, losses = result
    assert float(rates[np.nanargmin(losses)]) == pytest.approx(1.0)


def check_muon_partition(metrics):
    assert metrics["clipped/clipped_fraction"] == pytest.approx(0.05, abs=1e-3)


def check_nnx_loop(losses):
    assert losses["SGD, 5 % clipped"] < losses["SGD"]


def check_fraction_schedule(result):
    fractions, clipped, compilations = result
    assert compilations == 1
    expected = np.maximum(0.2 * (1 - np.arange(len(fractions)) / 100), 0)
    np.testing.assert_allclose(fractions, expected, atol=1e-6)
    # Of 256 coordinates, at most the asked share, and less only by ties or rounding.
    assert np.all(np.asarray(clipped) <= expected + 1e-6)
    assert np.all(np.asarray(clipped) > expected - 2 / 256)


def check_partition_groups(result):
    inside, outside = jax.device_get(result)
    assert inside["matrix/clipped_fraction"] == pytest.approx(0.05, abs=1e-4)
    assert inside["vector/clipped_fraction"] == 0.25
    assert inside["matrix/threshold"] != inside["vector/threshold"]
    assert outside.keys() == {"threshold", "clipped_fraction"}
    assert outside["clipped_fraction"] == pytest.approx(0.05, abs=1e-4)


def check_log_clip_metrics(_):
    lines = Path("runs/log_clip_metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert [line["update"] for line in lines] == list(range(1, 101))
    # One of two coordinates less where words of equal count tie at the threshold.
    assert all(0.03 < line["clipped_fraction"] <= 13 / 256 for line in lines)
    assert len({line["threshold"] for line in lines}) == len(lines)


def check_monitor(_):
    lines = Path("runs/monitor/metrics.jsonl").read_text().splitlines()
    first = [json.loads(line) for line in lines[:3]]
    assert [line["diagnostic"] for line in first] == ["sharpness", "norm", "update"]
    assert all("compiled_in" in line for line in first)
    assert first[1]["value"].keys() == {"hidden", "head"}
    assert sum(first[2]["value"]["counts"]) + first[2]["value"]["below"] == 257 * 64


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


def test_every_check_has_an_example():
    assert CHECKS.keys() <= set(SMALL)
