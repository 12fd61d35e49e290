"""Programs on the command line refuse what they cannot do in one sentence."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tyro

REFUSALS = (ValueError, OSError, ImportError, RuntimeError)


@contextlib.contextmanager
def refusals(name: str) -> Iterator[None]:
    """What is raised inside ends the program with `name` and the error's sentence."""
    try:
        yield
    except REFUSALS as error:
        raise SystemExit(f"{name}: {error}") from None


def run(
    name: str,
    settings: type,
    prepare: Callable[[Any], Any],
    main: Callable[[Any, Any], Any],
) -> None:
    """Runs an experiment; whatever can be refused, `prepare` refuses before any work.

    Args:
        name: the module after `python -m examples.`
        settings: a dataclass, the options of the command.
        prepare: what it returns for the settings is passed on.
        main: the work, with settings and what was prepared.
    """
    chosen = tyro.cli(settings, prog=f"python -m examples.{name}")
    with refusals(name):
        prepared = prepare(chosen)
    main(chosen, prepared)


def report(name: str, program: Callable[..., Any]) -> None:
    """Runs a program about finished runs, which has nothing to lose on the way."""
    with refusals(name):
        tyro.cli(program, prog=f"python -m examples.{name}")
