"""Measures rows, and says all that it knows in lines of JSON: see program.py.

python -m benchmarks.accelerator.worker PRESET ROW [ROW ...]
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks import harness
from benchmarks.accelerator import presets, rows
from benchmarks.accelerator.notes import (
    Notes,
    SkippedError,
    device_memory,
    no_room,
    sentence,
)
from examples.lab import files, provenance

Send = Callable[..., None]


def main(preset: presets.Preset, names: Sequence[str], send: Send) -> None:
    send(platform=jax.default_backend(), made_with=made_with())
    every = rows.every(preset)
    for name in names:
        send(begins=name)
        start = time.monotonic()
        notes = Notes(lambda found, name=name: send(row=name, **found))
        status, why = run(every[name], notes)
        memory = {k: v for k, v in device_memory().items() if "bytes" in k}
        send(row=name, status=status, why=why, memory_of_process=memory)
        send(ends=name, seconds=time.monotonic() - start)
        gc.collect()  # arrays in what was raised
        jax.clear_caches()


def run(row: rows.Row, notes: Notes) -> tuple[str, str | None]:
    """How it ended, and why not well."""
    try:
        row(notes)
    except SkippedError as why:
        return "skipped", str(why)
    except Exception as error:
        skipped = no_room(error)
        return ("skipped" if skipped else "failed"), sentence(error)
    return ("failed in part" if notes.failed else "measured"), None


def made_with() -> dict[str, Any]:
    """Software, hardware and driver of this process."""
    device = jax.devices()[0]
    found: dict[str, Any] = provenance.made_with() | harness.peer_versions()
    found["platform_version"] = " ".join(device.client.platform_version.split())
    found |= {"device_kind": device.device_kind, "memory": device_memory()}
    query = "name,driver_version,memory.total,clocks.max.mem,power.limit"
    try:
        found["driver"] = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found["driver"] = None
    return found


if __name__ == "__main__":
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed must not stand between the lines

    def send(**message: Any) -> None:
        print(json.dumps(files.jsonable(message)), file=lines, flush=True)

    main(presets.PRESETS[sys.argv[1]], sys.argv[2:], send)
