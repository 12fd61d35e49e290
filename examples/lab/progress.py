"""A progress bar on a terminal, and a line per evaluation everywhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from examples.lab.files import Line


@contextlib.contextmanager
def progress(label: str, steps: int) -> Iterator[Callable[..., None]]:
    """A bar with loss and rate on a terminal; a line per evaluation everywhere."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=steps, loss="", rate="")

        def show(line: Line, *, aloud: bool = False) -> None:
            bar.update(task, completed=line["step"] + ("loss" in line))
            if "loss" in line:
                speed = bar.tasks[task].speed or 0.0
                bar.update(
                    task, loss=f"loss {line['loss']:.3f}", rate=f"{speed:.1f} steps/s"
                )
            if aloud:
                numbers = ", ".join(
                    f"{name} {value:.4g}"
                    for name, value in line.items()
                    if isinstance(value, int | float)
                )
                console.print(f"{label}: {numbers}", highlight=False)

        yield show
