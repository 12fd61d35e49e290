"""The rules of a comparison of optimizers, kept by whoever trains through a `Contest`.

- A learning rate is chosen by the validation loss of trainings with `SELECTION_SEED`,
  whose batches come in an order of their own. No reported number is of such a training,
  or of the validation rows.
- The rate that wins has been tried with a worse one on both sides, on the same task.
- The winner trains with at least `LEAST_SEEDS` other seeds, and is reported by its loss
  on test rows, which are neither trained on nor used to choose.
- A training that diverges is a line of the log like every other, and is counted.

What a run folder's settings have of `recorded` tells a report that these rules held.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from examples.data.batching import Arrays
from examples.lab import held_out, sweep
from examples.lab.files import Line
from examples.lab.log import Log
from examples.lab.steps import Params
from examples.tasks.task import Task

SELECTION_SEED = 1000
LEAST_SEEDS = 3


def recorded(
    *, seeds: int, validation_rows: int, test_rows: int, tail: int
) -> dict[str, Any]:
    """What the settings of a run say of the rules; refuses too few seeds."""
    if not LEAST_SEEDS <= seeds <= SELECTION_SEED:
        raise ValueError(
            f"expected at least {LEAST_SEEDS} seeds to report and at most "
            f"{SELECTION_SEED}, got {seeds}."
        )
    return {
        "selection_seed": SELECTION_SEED,
        "seeds": seeds,
        "validation_rows": validation_rows,
        "test_rows": test_rows,
        "tail": tail,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Contest:
    """Trainings on one task under the rules.

    Args:
        task: what is trained on.
        rules: as `recorded` makes them.
        validation: batches to choose by, and
        test: batches to report, both from `examples.lab.held_out.split`.
        runs: the log that has a line for every training.
    """

    task: Task
    rules: Mapping[str, Any]
    validation: list[Arrays]
    test: list[Arrays]
    runs: Log

    @functools.cached_property
    def assess(self) -> Callable[[Params, list[Arrays]], float]:
        """The mean loss of batches, compiled once."""
        return held_out.assessor(self.task)

    def before(self) -> Line:
        """The losses of what every training begins with."""
        return {
            "validation_loss": self.assess(self.task.params, self.validation),
            "test_loss": self.assess(self.task.params, self.test),
        }

    def enter(
        self,
        known: Mapping[str, Any],
        train: Callable[[float, int], sweep.Trained],
        *,
        start: int,
        strides: tuple[int, ...] = sweep.STRIDES,
        also: Sequence[float] = (),
        more: Callable[[Params, list[Arrays]], Line] = lambda *_: {},
    ) -> float:
        """Chooses a learning rate, trains with each seed; returns the rate.

        Args:
            known: what the lines of this optimizer have in common.
            train: (learning rate, seed) -> training.
            start: the half-decade where the search begins.
            strides: those of the search.
            also: rates to try before it; it begins at the best of these and `start`.
            more: (parameters, test batches) -> what else is kept of a training.
        """

        def chosen_by(half: int) -> float:
            rate = sweep.rate(half)
            line = self._once(known, train, rate, self.rules["selection_seed"], more)
            loss = line["validation_loss"]
            return math.inf if loss is None else loss

        begin = min([start, *map(sweep.half_decade, also)], key=chosen_by)
        best = sweep.rate(sweep.search(chosen_by, begin, strides))
        for seed in range(self.rules["seeds"]):
            self._once(known, train, best, seed, more)
        return best

    def _once(
        self,
        known: Mapping[str, Any],
        train: Callable[[float, int], sweep.Trained],
        rate: float,
        seed: int,
        more: Callable[[Params, list[Arrays]], Line],
    ) -> Line:
        choosing = seed == self.rules["selection_seed"]
        name, rows = "test_loss", self.test
        if choosing:
            name, rows = "validation_loss", self.validation

        def work() -> Line:
            trained = train(rate, seed)
            line = sweep.outcome_with_curve(trained.losses, self.rules["tail"])
            diverged = line["loss"] is None
            loss = None if diverged else self.assess(trained.params, rows)
            return {**line, name: loss, **more(trained.params, rows)}

        return self.runs.once({**known, "learning_rate": rate, "seed": seed}, work)
