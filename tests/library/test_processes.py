"""Two processes that share their devices do what one does, as on several hosts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from . import two_processes

PROGRAM = Path(two_processes.__file__)


@pytest.fixture(scope="module")
def answers():
    """What each of two processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(PROGRAM.parents[2]),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # most of the time is compiling
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(i), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_both_processes_found_the_same(answers):
    assert answers[0] == answers[1]


def test_the_threshold_is_that_of_all_coordinates(answers):
    magnitudes = np.sort(np.abs(two_processes.normal(7, 64, 32)), axis=None)[::-1]
    assert np.float32(answers[0]["clip"]) == magnitudes[int(0.05 * magnitudes.size)]


@pytest.mark.parametrize("name", two_processes.OPTIMIZERS)
def test_two_processes_train_as_one(answers, name):
    alone = two_processes.train(name, two_processes.make_mesh(jax.devices()[:1]))
    assert alone["losses"][-1] < alone["losses"][0]
    for what, expected in alone.items():
        np.testing.assert_allclose(answers[0][name][what], expected, rtol=1e-4)
