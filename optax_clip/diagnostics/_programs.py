"""Programs that are compiled once for a loss, and live as long as it does.

`jax.jit` keeps what it compiled for every static argument it ever saw. A notebook that
defines its loss anew in every cell would fill the memory, so the loss is not a static
argument here: it is the weak key under which its programs are kept.
"""

import dataclasses
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import jax

_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
# {loss: {weight: {(what is measured, its settings): program}}}
_PROGRAMS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def program(
    measure: Callable, loss: Callable, weight: Callable | None, static: dict[str, Any]
) -> Callable | None:
    """Returns the compiled measurement of a loss as a function of a problem.

    None for functions that cannot be recognised when they come again.
    """
    functions = (loss, _unweighted if weight is None else weight)
    methods = [f.__func__ if inspect.ismethod(f) else None for f in functions]
    # A bound method is made anew whenever it is asked for; its object stays.
    owners = [f.__self__ if inspect.ismethod(f) else f for f in functions]
    key = (measure, *methods, *sorted(static.items()))
    try:
        by_weight = _PROGRAMS.setdefault(owners[0], weakref.WeakKeyDictionary())
        programs = by_weight.setdefault(owners[1], {})
        if key in programs:
            return programs[key]
    except TypeError:  # it cannot be hashed, or not be referred to weakly
        return None
    weak = [
        (weakref.WeakMethod if m else weakref.ref)(f)
        for m, f in zip(methods, functions, strict=True)
    ]

    @jax.jit
    def compiled(problem, *inputs):
        found, weigh = (reference() for reference in weak)
        functions = {"loss": found, "weight": None if weigh is _unweighted else weigh}
        return measure(dataclasses.replace(problem, **functions), *inputs, **static)

    def run(problem, *inputs):
        bare = dataclasses.replace(problem, loss=None, weight=None)
        try:
            return compiled(bare, *inputs)
        except _NEEDS_VALUES:  # the loss reads values of the batch: it runs as it is
            return measure(problem, *inputs, **static)

    return programs.setdefault(key, run)


def _unweighted() -> None:
    """Stands for no weight among weights."""
