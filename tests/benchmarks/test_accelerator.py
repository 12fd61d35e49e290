"""The accelerator program loses nothing, whatever happens to it; no timing here."""

import json
import math
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import harness
from benchmarks.accelerator import (
    inputs,
    kernels,
    laws,
    notes,
    presets,
    problems,
    program,
    rows,
    worker,
)
from benchmarks.accelerator.record import Record

ROOT = Path(__file__).parents[2]
TINY, FULL = presets.PRESETS["tiny"], presets.PRESETS["full"]
NAMES = ["a", "b", "c"]
STARTED = {"platform": "cpu", "made_with": {"device": "CPU"}}
LATER = 1e9  # seconds


class Said:
    """A process that says this and then ends, or hangs."""

    def __init__(self, *messages, code=None):
        self.messages, self.code, self.process = [*messages], code, self

    def message(self, *_):
        if self.messages:
            return self.messages.pop(0)
        if self.code is None:
            raise queue.Empty
        return None

    def wait(self):
        return self.code


def row(name, status="measured", **facts):
    return [
        {"begins": name},
        {"row": name, "measured": facts},
        {"row": name, "status": status},
        {"ends": name, "seconds": 1.0},
    ]


@pytest.fixture
def record(tmp_path):
    return Record(NAMES, "tiny", "python", "abc", tmp_path / "found.json")


def saved(record):
    (found,) = json.loads(record.path.read_text()).values()
    return found["rows"]


def test_a_row_whose_process_dies_keeps_what_it_had_and_the_rest_waits(record):
    begun = [{"begins": "b"}, {"row": "b", "measured": {"x": [1.0]}}]
    program.follow(Said(STARTED, *row("a"), *begun, code=-9), record, LATER, 60)
    assert record.waiting() == ["c"]
    assert saved(record)["a"]["status"] == "measured"
    assert saved(record)["b"]["status"] == "cut off"
    assert saved(record)["b"]["measured"] == {"x": [1.0]}
    assert "ended with -9" in saved(record)["b"]["why"]


def test_a_row_that_hangs_is_given_up(record):
    program.follow(Said(STARTED, {"begins": "a"}), record, LATER, 60)
    assert record.waiting() == ["b", "c"]
    assert saved(record)["a"]["why"] == "It took more than 60 s."


def test_when_time_is_up_all_that_waits_is_skipped(record):
    program.follow(Said(STARTED, {"begins": "a"}), record, time.monotonic(), 60)
    record.close("There was no time left.")
    ended = {name: (x["status"], x["why"]) for name, x in saved(record).items()}
    late = ("skipped", "There was no time left.")
    assert ended == {"a": ("cut off", "The time was up."), "b": late, "c": late}


@pytest.mark.parametrize("code", [1, None])
def test_a_process_that_does_not_start_is_not_started_again(record, code):
    program.follow(Said(code=code), record, LATER, 60)
    assert record.waiting() == []
    assert "did not start" in saved(record)["a"]["why"]


def test_what_a_file_has_is_not_measured_again(record):
    messages = [STARTED, *row("a"), *row("b", "failed"), *row("c", "skipped")]
    program.follow(Said(*messages, code=0), record, LATER, 60)
    again = Record(NAMES, "tiny", "python", "abc", record.path)
    again.choose("a|b", resume=True)
    assert again.waiting() == ["b"]
    with pytest.raises(ValueError, match="the file is of CPU, and this is H100"):
        again.note(STARTED | {"made_with": {"device": "H100"}})


def test_a_name_of_no_row_is_refused(record):
    with pytest.raises(ValueError, match="--only: expected part of a name"):
        record.choose("nothing", resume=False)


def test_what_a_cpu_says_does_not_go_where_results_are():
    record = Record(NAMES, "full", "python")
    record.save = lambda: None
    record.note(STARTED)
    assert record.path == Path("runs/accelerator.json")


### rows


def test_the_rows_are_those_that_are_wanted_and_the_telling_ones_come_first():
    names = list(rows.every(FULL))
    for tree in FULL.coordinates:
        for dtype in ("float32", "bfloat16"):
            assert f"selection / {tree} / {dtype}" in names
    assert names[len(laws.LAWS)] == "selection / t5-small / float32"
    assert set(rows.every(TINY)) < set(names)


@pytest.mark.parametrize("tree", FULL.coordinates)
def test_a_tree_has_the_coordinates_that_its_name_says(tree):
    shapes = inputs.tree_shapes(tree, FULL)
    size = sum(map(math.prod, shapes))
    assert size == pytest.approx(FULL.coordinates[tree], rel=0.03)
    assert len(shapes) == {"one leaf": 1, "scanned": 26}.get(tree, 131)


@pytest.mark.parametrize("model", FULL.models)
def test_a_model_has_a_loss_in_bfloat16(model):
    small = presets.Preset(t5=presets.TINY_T5, llama=presets.TINY_LLAMA, length=8)
    problem = problems.make(model, small)
    params, batch = problem.params(), problem.batch(2)
    wide = jax.jit(problem.loss)(params, batch)
    half = jax.jit(problem.in_bfloat16)(params, batch)
    assert float(wide) == pytest.approx(math.log(64), rel=0.1)
    assert half.dtype == jnp.float32
    assert float(half) == pytest.approx(float(wide), rel=0.02)


def test_the_scanned_model_is_smollm2():
    found = problems.make("smollm2-135m", FULL).like
    assert sum(leaf.size for leaf in jax.tree.leaves(found)) == 134_515_008


def test_others_go_on_where_one_fails_and_turns_leave_it_out():
    told = []
    found = notes.Notes(told.append)

    def fail():
        raise ValueError("so\n it is")

    notes.take_turns(found, {"bad": fail, "good": lambda: jnp.zeros(1)}, 2, 0.0)
    assert found.failed == {"bad": "ValueError: so it is"}
    assert len(found.measured["good"]) == 2
    assert told[-1]["measured"].keys() == {"good"}
    found.conclude([harness.Figure("bad / good", "bad", "good", "<=", 1)])
    assert found.figures[0]["met"] is None


def test_a_smaller_batch_is_tried_where_there_is_no_room():
    def run(rows):
        if rows > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    found = notes.Notes()
    found.largest_batch((8, 4, 2, 1), run)
    assert found.facts == {"rows": 2, "too_large": 4}
    with pytest.raises(notes.SkippedError, match="Not even 4 rows"):
        found.largest_batch((8, 4), run)


def test_a_row_that_needs_more_than_there_is_is_skipped_in_a_sentence():
    def too_large(_):
        notes.need(1e18)

    status, why = worker.run(too_large, notes.Notes())
    assert status == "skipped"
    assert why.startswith("It needs some 1e+09 GB, and the device has ")


def test_a_law_says_which_bits_are_wrong():
    good = np.float32([1, np.nan, 3])
    laws.same(good, good.copy(), "here")
    with pytest.raises(AssertionError, match=r"here: 1 of 3 differ; .*2\.0.* at 2"):
        laws.same(good, np.float32([1, np.nan, 2]), "here")


def test_the_laws_notice_a_threshold_that_is_wrong(monkeypatch):
    monkeypatch.setattr(laws, "skipped", lambda _, size: size // 2)
    with pytest.raises(
        AssertionError, match=r"heavy, global, fraction 0\.05: threshold"
    ):
        laws.check(TINY, "float32 as a sort says", notes.Notes())


### profiles

TEXT = """
%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %double = f32[8]{0} add(%p, %p)
}
ENTRY %main (x: f32[100,8], y: bf16[8]) -> (f32[8], s32[]) {
  %x = f32[100,8]{1,0:T(8,128)} parameter(0)
  %y = bf16[8]{0} parameter(1)
  %loop = (f32[8]{0:T(256)}, s32[]) while(%init), body=%b, condition=%c
  ROOT %sum.1 = (f32[8]{0}, s32[]) fusion(%x, %y), kind=kLoop, calls=%fused
}
"""


def test_bytes_of_an_instruction_are_those_of_what_it_is_given_and_returns():
    known = kernels.instructions(TEXT)
    assert known["sum.1"] == ("fusion", 3200 + 16 + 32 + 4)
    assert known["loop"].kind == "while"


def test_a_profile_is_summed_by_kernel_and_says_who_waits():
    known = kernels.instructions(TEXT)
    events = [kernels.Event("sum.1", 2e-6)] * 4 + [kernels.Event("loop", 1.0)] * 2
    events += [kernels.Event("MemcpyD2H", 1e-6)] * 2
    found = kernels.summary(events, known, calls=2)
    assert found["microseconds_on_device"] == pytest.approx(5)
    assert found["copies_from_device"] == 1
    first = found["kernels"][0]
    assert (first["operation"], first["calls"]) == ("sum.1", 2)
    assert first["bandwidth_at_most"] == pytest.approx(3252 / 2e-6)


PROFILED = """
from benchmarks import contestants
from benchmarks.accelerator import kernels
name, shapes = "global clip", [(64,)]
clip = contestants.Clip(contestants.clips(slow=False)[name], shapes, "float32")
drawn = contestants.draw(0, shapes, "float32", peers=False)
events = kernels.profile(lambda: clip(drawn), 2)
known = kernels.instructions(clip.update.as_text())
assert {event.operation for event in events} & known.keys(), events
"""


def test_the_kernels_of_a_clip_are_found_in_a_profile():
    # In a process of its own: where libtpu was loaded, a CPU's profiler ends it.
    finished = subprocess.run(
        [sys.executable, "-c", PROFILED], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr


def test_a_profile_that_would_end_the_process_is_skipped(monkeypatch):
    monkeypatch.setattr(harness, "installed", lambda name: name == "libtpu")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    kernels.check_profiler()
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(notes.SkippedError, match="JAX_PLATFORMS=cpu"):
        kernels.check_profiler()


### all of it


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.accelerator", "--preset", "tiny", *words],
        cwd=ROOT,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_the_program_writes_what_it_has_when_it_is_told_to_end(tmp_path):
    out = tmp_path / "found.json"
    running = start("--only", "laws", "--out", str(out))
    while not (
        out.is_file() and "bowl" not in out.read_text() and "rows" in out.read_text()
    ):
        assert running.poll() is None, running.communicate()
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM, said
    (found,) = json.loads(out.read_text()).values()
    assert found["rows"]["laws / sharpness of a bowl"]["status"] == "skipped"
    assert found["made_with"].keys() >= {"device", "driver", "jax"}


@pytest.mark.slow
def test_neither_tyro_nor_torch_is_needed():
    code = (
        "import sys; sys.modules['tyro'] = sys.modules['torch'] = None\n"
        "from benchmarks.accelerator import program, worker\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
