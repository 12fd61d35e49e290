"""The monitor: what it may take, what it writes, what it refuses; no real clock."""

import json
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from examples.lab.monitoring import Monitor
from optax_clip import diagnostics

STEP, COMPILING, COST = 1.0, 50.0, 3.0


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def diagnostic(self, cost=COST):
        """Compiles at its first call, like a jitted function."""
        seconds = [COMPILING, *[cost] * 1000][::-1]

        def measure(*args):
            self.now += seconds.pop()
            return args[0] if args else 0.0

        return measure


def run(folder, steps, costs, *, start=0, clock=None, **options):
    """Trains, and returns the lines of the log."""
    clock = clock or Clock()
    measured = {name: clock.diagnostic(cost) for name, cost in costs.items()}
    with Monitor(folder, measured, clock=clock, start=start, **options) as monitor:
        for step in range(start, steps):
            clock.now += STEP
            monitor(step, jnp.float32(step))
    return read(folder)


def read(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("budget", [0.02, 0.1, 1.0])
def test_measurements_take_their_budget_and_no_more(tmp_path, budget):
    lines = run(tmp_path, 1001, {"a": COST, "b": COST / 3}, every=10, budget=budget)
    took, overdrawn = 0.0, COST + COST / 3  # by the two calls of unknown cost
    for line in lines:
        took += line.get("took", 0.0)
        assert took <= budget * line["step"] * STEP + overdrawn
    affordable = budget * 1000 * STEP
    wanted = 100 * overdrawn
    assert min(affordable - COST, wanted) <= took <= affordable + overdrawn


def test_compiling_is_reported_apart_and_charged_to_nobody(tmp_path):
    first, second, *rest = run(tmp_path, 100, {"a": COST}, every=10, budget=0.5)
    assert (first["compiled_in"], first["step"]) == (COMPILING, 0)
    assert (second["took"], second["step"], second["due"]) == (COST, 10, 10)
    assert all("compiled_in" not in line for line in rest)
    assert [line["step"] for line in rest] == [20, 30, 40, 50, 60, 70, 80, 90]


def test_what_does_not_fit_stays_due_and_says_since_when(tmp_path):
    lines = run(tmp_path, 101, {"a": COST}, every=10, budget=0.1)
    # The call at step 10 shows the cost; from there on 30 steps pay for one.
    assert [(line["step"], line["due"]) for line in lines] == [
        (0, 0), (10, 10), (60, 20), (90, 70),
    ]  # fmt: skip


def test_nothing_overtakes_what_has_waited_longest(tmp_path):
    costs = {"expensive": 100.0, "cheap": 0.1}
    lines = run(tmp_path, 3000, costs, every=10, budget=0.1)
    names = [line["diagnostic"] for line in lines]
    assert names == list(costs) * (len(names) // 2)
    assert len(names) == 6


def test_the_first_step_of_the_training_compiles_and_pays_for_nothing(tmp_path):
    clock = Clock()
    clock.now += 1000.0
    lines = run(tmp_path, 60, {"a": COST}, every=10, budget=0.1, clock=clock)
    assert [line["step"] for line in lines] == [0, 10]


def test_a_line_is_on_the_disk_as_soon_as_it_is_written(tmp_path):
    with Monitor(tmp_path, {"a": lambda x: x}, every=2, budget=1.0) as monitor:
        monitor(1, 0.5)
        assert read(tmp_path) == []
        monitor(2, 0.5)
        (line,) = read(tmp_path)
    assert line["value"] == 0.5
    assert line.keys() == {
        "step", "diagnostic", "value", "due", "compiled_in", "seconds",
    }  # fmt: skip


def test_a_resumed_run_drops_the_lines_of_steps_that_come_again(tmp_path):
    options = {"every": 10, "budget": 1.0, "costs": {"a": COST}}
    run(tmp_path, 50, **options)
    lines = run(tmp_path, 60, start=30, **options)
    assert [line["step"] for line in lines] == [0, 10, 20, 30, 40, 50]
    assert [line["value"] for line in lines] == [0, 10, 20, 30, 40, 50]
    assert "compiled_in" in lines[3]


def measured(x):
    return {
        "norms": diagnostics.block_norms({"head": x, "body": jnp.ones(2)}),
        "histogram": diagnostics.coordinate_histogram(x, [0.1, 1.0, 10.0]),
        "pair": (jnp.float32(1), jnp.nan),
    }


X = jnp.array([0.0, 0.5, 3.0, -4.0, 1e9])


def test_whatever_a_diagnostic_returns_becomes_json(tmp_path):
    with Monitor(tmp_path, {"a": measured}, every=1, budget=1.0) as monitor:
        monitor(0, X[:4])
    (line,) = read(tmp_path)
    assert line["value"]["norms"]["body"]["l1"] == 2
    assert line["value"]["norms"]["head"] == {
        "l2": pytest.approx(25.25**0.5), "rms": pytest.approx(25.25**0.5 / 2),
        "l1": 7.5, "size": 4,
    }  # fmt: skip
    assert line["value"]["histogram"]["counts"] == [1, 2]
    assert line["value"]["histogram"]["below"] == 1
    assert line["value"]["pair"] == [1, None]  # JSON has no NaN


def events(folder):
    """{tag: (step, value)} from the records of the event files."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = {}
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            for value in event.summary.value:
                found[value.tag] = (event.step, value)
            data = data[16 + size :]
    return found


def test_tensorboard_shows_scalars_and_histograms(tmp_path):
    options = {"every": 1, "budget": 1.0, "tensorboard": True}
    with Monitor(tmp_path, {"a": measured, "b": jnp.sum}, **options) as monitor:
        monitor(7, X)
    found = events(tmp_path)
    assert found["a/norms/body/l1"][0] == 7
    assert found["a/norms/body/l1"][1].simple_value == 2
    assert found["a/pair/0"][1].simple_value == 1
    assert found["b"][1].simple_value == 1e9
    histogram = found["a/histogram"][1].histo
    # Powers of ten: one below 0.1, one and two in the bins, one above 10.
    np.testing.assert_allclose(histogram.bucket_limit, [-1, 0, 1, 2], atol=1e-6)
    assert list(histogram.bucket) == [1, 1, 2, 1]
    assert histogram.num == 5
    np.testing.assert_allclose(histogram.sum, -1.5 - 0.5 + 1 + 1.5, atol=1e-5)
    assert len(read(tmp_path)) == 2


def test_bad_input_is_named(tmp_path, monkeypatch):
    def refuses(match, error=ValueError, **options):
        options = {"every": 1, "budget": 0.1} | options
        with pytest.raises(error, match=match) as raised:
            Monitor(tmp_path, {}, **options)
        assert "\n" not in str(raised.value)

    refuses("every must be at least 1 step; got 0", every=0)
    refuses("budget must be positive, such as 0.05; got 0", budget=0)
    refuses("budget must be positive.*got nan", budget=float("nan"))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    refuses("optax_clip.monitor", ImportError, tensorboard=True)
