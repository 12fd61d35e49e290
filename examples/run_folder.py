"""A run folder: what was asked for, and what came out.

    runs/<name>/settings.json     the settings, and the software that ran them
                metrics.jsonl     one line per step and per evaluation
                checkpoints/<n>/  the state after n updates (`examples.training`)

A run of several trainings has one settings.json and a sub-folder for each training.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import tyro

Line = dict[str, Any]


def open_run(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Claims a folder for these settings, or says in one sentence why it cannot."""
    path = folder / "settings.json"
    wanted = json.loads(json.dumps(dict(settings), default=str))
    if path.is_file():
        found = read_settings(path)
        if found != wanted:
            raise FileExistsError(
                f"{folder} belongs to a run with other settings "
                f"({_differences(found, wanted)}): name another run folder."
            )
        if not resume:
            raise FileExistsError(
                f"{folder} already holds a run with these settings: continue it with "
                "--resume or name another run folder."
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not a run folder: name another one.")
    elif resume:
        raise FileNotFoundError(f"{folder} holds no run to resume: leave out --resume.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        content = {"settings": wanted, "made_with": provenance()}
        write_text(path, json.dumps(content, indent=2) + "\n")


def claim(settings: "Experiment", files: Iterable[Path], **more: Any) -> None:
    """Claims the folder of an experiment for what decides its numbers."""
    identity = {**settings.decisive(), **more, "files": fingerprint(*files)}
    open_run(settings.folder(), identity, resume=settings.resume)


class Experiment(Protocol):
    """The settings of an experiment that has a run folder."""

    @property
    def resume(self) -> bool: ...
    def folder(self) -> Path: ...
    def decisive(self) -> dict[str, Any]: ...


def read_settings(path: Path) -> dict[str, Any]:
    """What a run folder was claimed for."""
    try:
        return json.loads(path.read_text())["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the settings of a run ({error!r}): remove the folder, "
            "or name another one."
        ) from error


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
        if field.type is int and value < least:
            flag = prefix + field.name.replace("_", "-")
            raise ValueError(f"{flag} must be at least {least}; got {value}.")


def provenance() -> dict[str, str]:
    """The software and hardware that numbers were made with."""
    kind = jax.devices()[0].device_kind
    device = f"{jax.device_count()} x {kind}" if kind != "cpu" else "CPU"
    packages = ("jax", "flax", "optax")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "device": f"{device}, {os.cpu_count()} cores, {platform.machine()}",
    }


def made_with(found: Mapping[str, str]) -> str:
    """What `provenance` found, for people."""
    software = ", ".join(f"{k} {found[k]}" for k in ("jax", "flax", "optax"))
    return f"{found['device']}; Python {found['python']}, {software}"


def day(path: Path) -> str:
    """When a file was last written."""
    return datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()


def read_summary(folder: Path) -> dict[str, Any]:
    """What a finished run left of itself."""
    path = folder / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no finished run: no {path.name}.")
    return json.loads(path.read_text())


def read_summaries(folder: Path) -> list[dict[str, Any]]:
    """What every finished run below a folder left."""
    found = [read_summary(path.parent) for path in folder.glob("*/summary.json")]
    if not found:
        raise FileNotFoundError(f"{folder}: no run with a summary.json below it.")
    return found


def cli(program: Callable[[Path], Any]) -> None:
    """Runs a program about one finished run from the command line."""
    try:
        tyro.cli(program)
    except OSError as error:
        raise SystemExit(str(error)) from None


def experiment(
    name: str,
    settings: type,
    prepare: Callable[[Any], Any],
    main: Callable[[Any, Any], None],
) -> None:
    """Runs an experiment from the command line, or says what `prepare` refuses."""
    chosen = tyro.cli(settings, prog=f"python -m examples.{name}")
    try:
        task = prepare(chosen)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        raise SystemExit(f"{name}: {error}") from None
    main(chosen, task)


def read_metrics(folder: Path) -> list[Line]:
    """The lines of metrics.jsonl, without one that a kill cut in two."""
    return read_lines(folder / "metrics.jsonl")


def read_lines(path: Path) -> list[Line]:
    """A file of one JSON object a line; none where there is no file."""
    text = path.read_text() if path.is_file() else ""
    # One that a kill cut in two has no end.
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole]


@contextlib.contextmanager
def metrics_log(folder: Path, start: int) -> Iterator[Callable[..., Line]]:
    """`log(step, **values)` appends; lines of steps to be run again are dropped."""
    kept = [line for line in read_metrics(folder) if line["step"] < start]
    path = folder / "metrics.jsonl"
    write_lines(path, kept)
    begin = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)

    with path.open("a", buffering=1) as file:

        def log(step: int, **values: Any) -> Line:
            seconds = round(time.monotonic() - begin, 3)
            line = {"step": step, **_jsonable(values), "seconds": seconds}
            file.write(json.dumps(line) + "\n")
            return line

        yield log


class Ledger:
    """Finished pieces of work, each done once and written down when it ends."""

    def __init__(self, path: Path, show: Callable[[Line], Any]) -> None:
        self.path, self.show, self.lines = path, show, read_lines(path)
        # A line that a kill cut in two goes, or the next one would be glued to it.
        write_lines(path, self.lines)

    def once(self, wanted: Mapping[str, Any], work: Callable[[], Line]) -> Line:
        """The line that has what is wanted; if there is none, what `work` returns."""
        if (line := self.find(wanted)) is not None:
            return line
        self.lines.append(_jsonable(wanted) | _jsonable(work()))
        with self.path.open("a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")
        self.show(self.lines[-1])
        return self.lines[-1]

    def find(self, wanted: Mapping[str, Any]) -> Line | None:
        """The line that has what is wanted."""
        items = _jsonable(wanted).items()
        return next((line for line in self.lines if items <= line.items()), None)


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def write_json(path: Path, value: Any) -> None:
    """Writes a file of a run, whole or not at all."""
    write_text(path, json.dumps(_jsonable(value), indent=2, ensure_ascii=False) + "\n")


def _jsonable(value: Any) -> Any:
    """Python numbers; JSON has no NaN and no infinity, they become null."""
    if isinstance(value, Mapping):  # not jax.tree.map, which sorts the names
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    number = value.item() if hasattr(value, "item") else value
    finite = not isinstance(number, float) or math.isfinite(number)
    return number if finite else None


def write_text(path: Path, text: str) -> None:
    """All or nothing, whenever the process is killed."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    partial.replace(path)


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    missing = "nothing"
    return ", ".join(
        f"{name}: {found.get(name, missing)} there, {wanted.get(name, missing)} here"
        for name in sorted({*found, *wanted})
        if found.get(name, missing) != wanted.get(name, missing)
    )
