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

NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
# {loss: {weight: {(what is measured, its settings): program}}}
_PROGRAMS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def program(
    measure: Callable, loss: Callable, weight: Callable | None, static: dict[str, Any]
) -> Callable | None:
    """Returns the compiled measure of a problem that lacks its loss and weight.

    None for functions that cannot be recognised when they come again.
    """
    functions = (loss, _unweighted if weight is None else weight)
    methods = (f.__func__ if inspect.ismethod(f) else None for f in functions)
    key = (measure, *methods, *sorted(static.items()))
    # A bound method is made anew whenever it is asked for; its object stays.
    of_loss, of_weight = (f.__self__ if inspect.ismethod(f) else f for f in functions)
    try:
        by_weight = _PROGRAMS.setdefault(of_loss, weakref.WeakKeyDictionary())
        programs = by_weight.setdefault(of_weight, {})
        if key in programs:
            return programs[key]
    except TypeError:  # it cannot be hashed, or not be referred to weakly
        return None
    weighted = weight is not None
    weak = [
        (weakref.WeakMethod if inspect.ismethod(f) else weakref.ref)(f)
        for f in functions
    ]

    def run(problem, *inputs):
        again = {"loss": weak[0](), "weight": weak[1]() if weighted else None}
        return measure(dataclasses.replace(problem, **again), *inputs, **static)

    return programs.setdefault(key, jax.jit(run))


def _unweighted() -> None:
    """Stands for no weight among weights."""
