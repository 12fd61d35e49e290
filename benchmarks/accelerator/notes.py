"""What a row writes down, and how it takes the time."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from benchmarks.harness import Figure, Measured, Row


class SkippedError(Exception):
    """A row that this device has no room for, said in a sentence."""


class Notes:
    """Sends all that a row knows whenever it knows more."""

    def __init__(self, send: Callable[[Row], None] = lambda _: None):
        self.measured: Measured = {}
        self.failed: dict[str, str] = {}
        self.facts: Row = {}
        self.figures: list[Row] = []
        self._send = send

    def add(self, name: str, *numbers: float) -> None:
        """Notes seconds, or bytes where the name says so."""
        self.measured.setdefault(name, []).extend(numbers)
        self.tell()

    def say(self, **facts: Any) -> None:
        self.facts |= facts
        self.tell()

    def conclude(self, figures: Sequence[Figure]) -> None:
        """Ratios within a round; none to nothing."""
        known = {
            name: [number or math.nan for number in numbers]
            for name, numbers in self.measured.items()
        }
        self.figures = [figure.row(known) for figure in figures]
        self.tell()

    def tell(self) -> None:
        self._send(
            {
                "facts": self.facts,
                "measured": self.measured,
                "failed": self.failed,
                "figures": self.figures,
            }
        )

    @contextlib.contextmanager
    def trying(self, name: str, *, need_room: bool = False) -> Iterator[None]:
        """Lets the others go on when this one fails; why is noted.

        With `need_room` a want of memory is passed on: all of the row must be smaller.
        """
        try:
            yield
        except Exception as error:
            if need_room and no_room(error):
                raise
            self.failed[name] = sentence(error)
            self.tell()

    def largest_batch(self, batches: Sequence[int], run: Callable[[int], None]) -> None:
        """Runs with as many rows in a batch as there is room for."""
        for rows in batches:
            self.say(rows=rows)
            try:
                run(rows)
            except Exception as error:
                if not no_room(error):
                    raise
                self.say(too_large=rows)
                self.measured.clear()
            else:
                return
        raise SkippedError(f"Not even {batches[-1]} rows of a batch had room.")


def sentence(error: Exception) -> str:
    """The beginning of what an error says."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}"


def no_room(error: Exception) -> bool:
    """Whether memory is what was missing."""
    words = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
    return isinstance(error, MemoryError) or any(w in str(error) for w in words)


def need(size: float) -> None:
    """Refuses a row that needs more bytes than there are."""
    if (room := memory()) is not None and size > room:
        raise SkippedError(
            f"It needs some {size / 1e9:.3g} GB, and the device has {room / 1e9:.3g}."
        )


def memory() -> float | None:
    """Bytes of the device, or what a host has left; None if nobody says."""
    stats = device_memory()
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if jax.default_backend() == "cpu":
        with contextlib.suppress(ValueError, OSError):
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def device_memory() -> dict[str, int]:
    """What the allocator tells, where there is one."""
    return jax.local_devices()[0].memory_stats() or {}


def compiled(notes: Notes, name: str, f: Callable, *args: Any, **options: Any) -> Any:
    """The program of f(*args); notes the seconds, and the bytes that it needs."""
    jax.clear_caches()  # nobody profits from what another one traced
    start = time.perf_counter()
    program = jax.jit(f, **options).lower(*args).compile()
    notes.add(f"compile {name}", time.perf_counter() - start)
    note_bytes(notes, name, program)
    return program


def note_bytes(notes: Notes, name: str, program: Any) -> None:
    """Notes what is beyond arguments and results, and all of it together."""
    found = program.memory_analysis()
    if found is not None:
        parts = found.argument_size_in_bytes + found.output_size_in_bytes
        parts += found.temp_size_in_bytes - found.alias_size_in_bytes
        notes.add(f"temporary bytes {name}", found.temp_size_in_bytes)
        notes.add(f"all bytes {name}", parts)


def take_turns(
    notes: Notes, runs: Mapping[str, Callable[[], Any]], rounds: int, turn: float
) -> None:
    """Seconds of a call of each, by turns; calls of a turn are queued, as in training.

    The first call of each is not counted.
    """
    calls: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, run in runs.items():
            if name in notes.failed:
                continue
            with notes.trying(name):
                if number == 0:
                    _seconds(run, 1)
                    once = _seconds(run, 1)
                    calls[name] = min(max(math.ceil(turn / max(once, 1e-6)), 1), 200)
                else:
                    notes.add(name, _seconds(run, calls[name]))


def _seconds(run: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    result = run()
    for _ in range(calls - 1):
        result = run()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls
