"""Which command, commit, software and device made numbers, and when.

A run folder's settings.json has a list of sessions, one for every process that wrote
into the folder; reports quote them, and never the date of a file.
"""

import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import optax_clip

Session = dict[str, Any]

# Runs from before sessions were recorded; this commit wrote and can read them.
LAST_COMMIT_WITHOUT_SESSIONS = "b6b5321"


def session() -> Session:
    """This process, for a run folder."""
    return {
        "command": shlex.join(["python", *map(portable, sys.orig_argv[1:])]),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "made_with": made_with(),
    }


def portable(word: str) -> str:
    """An argument without the folders of this machine, which mean nothing elsewhere.

    A path below the working directory becomes a relative one, any other absolute path
    its last part.
    """
    option, equals, value = word.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return word
    below = path.is_relative_to(Path.cwd())
    short = path.relative_to(Path.cwd()) if below else path.name
    return f"{option}{equals}{short}"


@functools.cache
def commit() -> str | None:
    """The commit of the checkout, "+" for changes on top; None outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        found = subprocess.run(
            [*git, "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def made_with() -> dict[str, str]:
    """The software and hardware of this process."""
    kind = jax.devices()[0].device_kind
    device = f"{jax.device_count()} x {kind}" if kind != "cpu" else "CPU"
    packages = ("jax", "flax", "optax")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "optax_clip": optax_clip.__version__,  # of this checkout, installed or not
        "device": f"{device}, {os.cpu_count()} cores, {platform.machine()}",
    }


def commands(sessions: Sequence[Mapping[str, Any]]) -> str:
    """Every command of a run once, in Markdown."""
    return ", ".join(dict.fromkeys(f"`{one['command']}`" for one in sessions))


def described(sessions: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: device and software, below them a list of dates, commits, commands."""
    lists: dict[str, list[str]] = {}
    for one in sessions:
        found = one["made_with"]
        packages = ("jax", "flax", "optax", "optax_clip")
        software = ", ".join(f"{p} {found[p]}" for p in packages if p in found)
        # Runs of before have no record of their command: theirs follows from settings.
        commit = one["commit"] or "not kept, and the command is what its settings say"
        lists.setdefault(
            f"{found['device']}; Python {found['python']}, {software}:", []
        ).append(f"- {one['date']}, commit {commit}: `{one['command']}`")
    parts = [
        f"{software}\n\n" + "\n".join(dict.fromkeys(lines))
        for software, lines in lists.items()
    ]
    if any((one["commit"] or "").endswith("+") for one in sessions):
        parts.append("A + is for changes on top of that commit.")
    return "\n\n".join(parts)
