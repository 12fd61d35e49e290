"""A run folder: what was asked for, who asked, and what came out.

    runs/<name>/settings.json     the settings, and a session for each process
                metrics.jsonl     one line per step and per evaluation
                checkpoints/<n>/  the state after n updates (`examples.lab.training`)

A run of several trainings has one settings.json and a sub-folder for each training.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from examples.lab import provenance
from examples.lab.files import write_json


def open_run(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Claims a folder for these settings, or says in one sentence why it cannot.

    This process becomes one of the folder's sessions.
    """
    path = folder / "settings.json"
    wanted = json.loads(json.dumps(dict(settings), default=str))
    sessions: list[provenance.Session] = []
    if path.is_file():
        found = read_settings(folder)
        if found["settings"] != wanted:
            raise FileExistsError(
                f"{folder} belongs to a run with other settings "
                f"({_differences(found['settings'], wanted)}): name another run folder."
            )
        if not resume:
            raise FileExistsError(
                f"{folder} already holds a run with these settings: continue it with "
                "--resume or name another run folder."
            )
        sessions = found["sessions"]
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not a run folder: name another one.")
    elif resume:
        raise FileNotFoundError(f"{folder} holds no run to resume: leave out --resume.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
    sessions = [*sessions, provenance.session()]
    write_json(path, {"settings": wanted, "sessions": sessions})


class Experiment(Protocol):
    """The settings of an experiment that has a run folder."""

    @property
    def resume(self) -> bool: ...
    def folder(self) -> Path: ...
    def decisive(self) -> dict[str, Any]: ...


def claim(settings: Experiment, files: Iterable[Path], **more: Any) -> None:
    """Claims the folder of an experiment for what decides its numbers."""
    identity = {**settings.decisive(), **more, "files": fingerprint(*files)}
    open_run(settings.folder(), identity, resume=settings.resume)


def read_settings(folder: Path) -> dict[str, Any]:
    """What a run folder was claimed for (settings), and by whom (sessions)."""
    path = folder / "settings.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: no {path.name}.")
    try:
        found = json.loads(path.read_text())
        settings = found["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the settings of a run ({error!r}): remove the folder, "
            "or name another one."
        ) from error
    if "sessions" not in found:
        raise ValueError(
            f"{folder} was written before runs kept their sessions: check out commit "
            f"{provenance.LAST_COMMIT_WITHOUT_SESSIONS} to read it."
        )
    return {"settings": settings, "sessions": found["sessions"]}


def fingerprint(*paths: Path) -> str:
    """A hash of the contents of some files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_counts(settings: Any, prefix: str = "--") -> None:
    """Refuses integers below 1, a seed below 0, by the name of their option."""
    for field in dataclasses.fields(settings):
        value, least = getattr(settings, field.name), 0 if field.name == "seed" else 1
        if field.type in (int, int | None) and value is not None and value < least:
            flag = prefix + field.name.replace("_", "-")
            raise ValueError(f"{flag} must be at least {least}; got {value}.")


def read_summary(folder: Path) -> dict[str, Any]:
    """What a finished run left of itself."""
    path = folder / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no finished run: no {path.name}.")
    summary = json.loads(path.read_text())
    if "sessions" not in summary:
        raise ValueError(
            f"{path} was written before runs kept their sessions: check out commit "
            f"{provenance.LAST_COMMIT_WITHOUT_SESSIONS} to read it."
        )
    return summary


def read_summaries(folder: Path) -> list[dict[str, Any]]:
    """What every finished run below a folder left."""
    found = [read_summary(path.parent) for path in folder.glob("*/summary.json")]
    if not found:
        raise FileNotFoundError(f"{folder}: no run with a summary.json below it.")
    return found


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    missing = "nothing"
    return ", ".join(
        f"{name}: {found.get(name, missing)} there, {wanted.get(name, missing)} here"
        for name in sorted({*found, *wanted})
        if found.get(name, missing) != wanted.get(name, missing)
    )
