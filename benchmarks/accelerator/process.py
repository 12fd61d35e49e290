"""The process that measures, and what it says."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Row


class Process:
    """Messages of `worker.py`, which is killed in the end."""

    def __init__(self, preset: str, names: Sequence[str]):
        words = [sys.executable, "-m", "benchmarks.accelerator.worker", preset, *names]
        environment = dict(os.environ)
        if harness.installed("torch"):  # which needs room on the same device
            environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            words, cwd=root, env=environment, stdout=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def message(self, seconds: float) -> Row | None:
        """The next one, or None at the end; `queue.Empty` if none comes in time."""
        line = self._lines.get(timeout=max(seconds, 0.0))
        return None if line is None else json.loads(line)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
