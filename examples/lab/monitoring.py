"""Measurements in a training loop that may take a given fraction of its time.

    with Monitor(folder, {"sharpness": measure}, every=50, budget=0.05) as monitor:
        for step in range(start, steps):
            params, opt_state, updates = train_step(params, opt_state, batch)
            monitor(step, params, updates, batch)  # passed on to every diagnostic

What comes out goes to the folder: a line of metrics.jsonl for each measurement, flushed
as it is written, and with `tensorboard=True` an event file beside it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from examples.lab import log
from optax_clip.diagnostics import CoordinateHistogram

Diagnostic = Callable[..., Any]
Write = Callable[[int, str, Any], None]


class Budget:
    """Seconds that measurements have taken, and whether one more fits.

    All else that the clock shows is training, except compilation.
    """

    def __init__(self, fraction: float, clock: Callable[[], float]) -> None:
        self.fraction, self.clock = fraction, clock
        self.spent = 0.0
        self.costs: dict[str, float] = {}  # of the last measurement
        self.restart()

    def restart(self) -> None:
        """Forgets the training so far."""
        self.begin = self.clock()

    def fits(self, name: str) -> bool:
        """A first call always fits, as nobody knows what it costs."""
        if name not in self.costs:
            return True
        training = self.clock() - self.begin - self.spent
        return self.spent + self.costs[name] <= self.fraction * training

    def charge(self, name: str, seconds: float) -> None:
        """Books a measurement; a first call compiles, and costs nothing."""
        if name in self.costs:
            self.costs[name] = seconds
            self.spent += seconds
        else:
            self.costs[name] = 0.0
            self.begin += seconds


class Monitor:
    """Takes each diagnostic every so many steps, or later, when there is time for it.

    A diagnostic takes what the loop passes on and returns a pytree of numbers and of
    `CoordinateHistogram`s. It is best compiled: its first call, which compiles, is
    logged as `compiled_in` and not charged. All others together may take `budget` times
    as long as the training. What does not fit stays due, and nothing overtakes it, so
    that an expensive diagnostic is taken as often as a cheap one. Only a second call,
    whose cost nobody knows yet, can overdraw; those after it wait until it is repaid.

    Args:
        folder: where to write; it is made if it is missing.
        diagnostics: {name: function of what the loop passes on}.
        every: diagnostics fall due at the steps that this divides.
        budget: what they may take, relative to the training alone; 0.05 is 5 %.
        start: the step that a resumed run begins with; lines from there on are dropped.
        tensorboard: write scalars and histograms for TensorBoard, too.
        clock: returns seconds; tests have their own.

    Raises:
        ValueError: a number is out of its range.
        ImportError: files for TensorBoard are asked for, and tensorboardX is missing.
    """

    def __init__(
        self,
        folder: Path,
        diagnostics: Mapping[str, Diagnostic],
        *,
        every: int,
        budget: float,
        start: int = 0,
        tensorboard: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step; got {every}.")
        if not 0 < budget < float("inf"):
            raise ValueError(f"budget must be positive, such as 0.05; got {budget}.")
        self._diagnostics, self._every = dict(diagnostics), every
        self._due: dict[str, int] = {}  # {name: step since when}, the first one first
        self._budget = Budget(budget, clock)
        self._stack = contextlib.ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        self._writes: list[Write] = []
        if tensorboard:
            self._writes.append(self._stack.enter_context(_event_file(folder, start)))
        self._log = self._stack.enter_context(log.metrics(folder, start))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, step: int, *args: Any) -> None:
        """Measures what is due and fits; returns at once if that is nothing."""
        if not self._budget.costs:
            self._budget.restart()  # until here the training has compiled its step
        if step % self._every == 0:
            for name in self._diagnostics:
                self._due.setdefault(name, step)
        if self._next():
            jax.block_until_ready(args)  # the end of the step is still training
        while name := self._next():
            self._measure(name, step, args)

    def _next(self) -> str | None:
        name = next(iter(self._due), None)
        return name if name is not None and self._budget.fits(name) else None

    def _measure(self, name: str, step: int, args: tuple) -> None:
        budget, due = self._budget, self._due.pop(name)
        what = "took" if name in budget.costs else "compiled_in"
        begin = budget.clock()
        value = jax.device_get(self._diagnostics[name](*args))
        times = {"due": due, what: round(budget.clock() - begin, 6)}
        self._log(step, diagnostic=name, value=_plain(value), **times)
        for write in self._writes:
            write(step, name, value)
        budget.charge(name, budget.clock() - begin)


def _plain(value: Any) -> Any:
    """Python's own containers, and lists for arrays."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None else np.asarray(value).tolist()


@contextlib.contextmanager
def _event_file(folder: Path, start: int) -> Iterator[Write]:
    """`write(step, tag, value)` adds scalars and histograms to an event file."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard=True needs tensorboardX: pip install 'optax_clip[monitor]'."
        ) from error
    # TensorBoard hides what an interrupted run wrote from `start` on.
    events = SummaryWriter(str(folder), purge_step=start, flush_secs=0)

    def write(step: int, tag: str, value: Any) -> None:
        leaves = jax.tree.leaves_with_path(value, is_leaf=_is_histogram)
        for path, leaf in leaves:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            name = f"{tag}/{name}" if name else tag
            if _is_histogram(leaf):
                events.add_histogram_raw(name, **_decades(leaf), global_step=step)
            else:
                events.add_scalar(name, np.asarray(leaf, float).item(), step)

    with contextlib.closing(events):
        yield write


def _is_histogram(value: Any) -> bool:
    return isinstance(value, CoordinateHistogram)


def _decades(h: CoordinateHistogram) -> dict[str, Any]:
    """A histogram of log10 |x|: on TensorBoard's linear axis |x| would be one bar.

    The bins below and above the edges, zeros and infinities among them, are drawn one
    decade wide. Sums are those of the middles of the bins.
    """
    inner = np.log10(h.edges)
    edges = np.array([inner[0] - 1, *inner, inner[-1] + 1])
    counts = np.array([h.below, *h.counts, h.above], float)
    middles = (edges[1:] + edges[:-1]) / 2
    return {
        "min": edges[0],
        "max": edges[-1],
        "num": counts.sum(),
        "sum": counts @ middles,
        "sum_squares": counts @ middles**2,
        "bucket_limits": edges[1:].tolist(),
        "bucket_counts": counts.tolist(),
    }
