"""What every measurement shares: one checked problem, and a program made once for it.

A public function checks its input once and states a `Problem`: a loss, the parameters
restricted to those that matter, and directions by name, of which only one at a time is
in memory as a unit vector. `Problem.run` then calls the function that measures: as it
is where values are traced, and compiled where they are known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._trees import accumulator, tree_move, tree_norm, tree_unit
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._modes import MODES, custom_vjps
from optax_clip.diagnostics._programs import program
from optax_clip.diagnostics._streaming import Parts, Weight, plan_parts, stream
from optax_clip.diagnostics._subset import (
    Selection,
    Where,
    all_known,
    freeze,
    pure,
    select,
    thaw,
)


class ForwardOptions(TypedDict, total=False):
    """The keywords that every measurement of a loss takes.

    Attributes:
      microbatches: cuts the batch into that many parts and averages over them, so that
        memory holds one part. None: the whole batch at once.
      batch_argnums: which of the arguments behind the direction are the batch, counted
        from 0; the others are passed on whole. None: all of them, and their arrays must
        have leading axes of one length (arrays without axes are passed on whole).
      weight: ``weight(*part)`` returns the scalar weight of a part, for example its
        number of tokens if the loss is a mean over tokens; the result is then that of
        the whole batch. Equal weights by default; unused without `microbatches`.
      where: ``where(path)`` selects leaves by their path, for example
        ``"encoder/0/kernel"``: the direction is taken to be zero in all others, which
        may be anything, integers and random keys included.
      precision: of matrix products, see ``jax.default_matmul_precision``; None keeps
        that of the caller. ``"highest"`` by default.

    Examples:
      Two parts of two rows, whose means are averaged.

      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> options = diagnostics.ForwardOptions(microbatches=2)
      >>> diagnostics.loss_along(
      ...     lambda x, rows: jnp.mean(rows) * x, jnp.array(1.0), jnp.array(1.0),
      ...     jnp.array([1.0, 2.0, 3.0, 6.0]), steps=[0.0, 1.0], **options).tolist()
      [3.0, 6.0]
    """

    microbatches: int | None
    batch_argnums: int | Sequence[int] | None
    weight: Weight | None
    where: Where | None
    precision: str | None


class Options(ForwardOptions, total=False):
    """The keywords that every measurement of second derivatives takes.

    They are those of :class:`ForwardOptions`, and

    ========================  =======================================================
    mode                      how
    ========================  =======================================================
    ``forward_over_reverse``  ``jax.jvp`` of ``jax.value_and_grad``; the default
    ``forward_over_forward``  two nested ``jax.jvp``: faster, and no gradient in
                              memory; only for derivatives along one vector
    ``reverse_over_reverse``  gradient of <g, v>: works where ``jax.jvp`` does not, as
                              in functions with a ``jax.custom_vjp``
    ``finite_difference``     central difference of two gradients: works wherever
                              ``jax.grad`` does; truncation error of order step^2
    ========================  =======================================================

    Attributes:
      mode: how second derivatives are taken.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_clip import diagnostics
      >>> options = diagnostics.Options(mode="reverse_over_reverse", precision=None)
      >>> x = jnp.array([1.0, 2.0])
      >>> float(diagnostics.directional_sharpness(
      ...     lambda x: jnp.sum(x**2), x, jnp.array([0.0, 1.0]), **options))
      2.0
    """

    mode: str


Loss = Callable[..., Any]


class Settings(NamedTuple):
    """The options, checked, as far as they are the same for all arguments."""

    mode: str
    parts: Parts | None
    precision: str | None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "others", "args", "directions", "norms"],
    meta_fields=["loss", "weight", "selection", "names", "settings", "dtypes"],
)
@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss, the leaves of the parameters it is measured at, and directions."""

    params: list[jax.Array]
    others: list[Any]  # leaves that are not measured, frozen
    args: tuple  # frozen
    directions: list[list[jax.Array]]
    norms: Any  # array of shape (len(directions),)
    loss: Loss
    weight: Weight | None
    selection: Selection
    names: tuple | None  # of the directions; None where there is only one
    settings: Settings
    dtypes: tuple | None = None  # what the loss takes, if not the dtypes of params

    def value(self, x: Sequence[jax.Array], *part: Any) -> jax.Array:
        """Returns the loss of one part of the batch at other values of `params`."""
        if self.dtypes is not None:
            x = [leaf.astype(dtype) for leaf, dtype in zip(x, self.dtypes, strict=True)]
        params = self.selection.merge(x, thaw(self.others))
        return _checks.as_loss(self.loss(params, *part))

    def stream(self, measure: Callable[..., Any]) -> Any:
        """Returns the mean of measure(*part) over the batch."""
        return stream(measure, self.args, self.settings.parts, self.weight)

    def line(self, v: Any) -> Callable[[Any], jax.Array]:
        """Returns the function s -> L(x + s v) of the whole batch."""

        def at(s):
            moved = tree_move(self.params, v, s)
            return self.stream(lambda *part: self.value(moved, *part))

        return at

    def map(self, one: Callable[..., Any], *each: jax.Array) -> Any:
        """Stacks one(v, *[x[i] for x in each]) over the unit directions, in turn."""

        def of_unit(u, norm, *each):
            return one(tree_unit(u, norm), *each)

        return _in_turn(of_unit, self.directions, self.norms, *each)

    def unit(self, i: int = 0) -> Any:
        """Returns one unit direction."""
        return tree_unit(self.directions[i], self.norms[i])

    def results(self, stacked: Any) -> list[Any]:
        """Returns the results of the directions one by one."""
        count = len(self.directions)
        return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)]

    def by_name(self, results: Sequence[Any]) -> Any:
        """Returns {name: result}, or the only result where no name was given."""
        if self.names is None:
            return results[0]
        return dict(zip(self.names, results, strict=True))

    def widened(self) -> Problem:
        """Returns the problem with parameters in the type of sums.

        A loss that cannot take them so gets them rounded back.
        """
        wide = [x.astype(accumulator(x)) for x in self.params]
        if all(x.dtype == w.dtype for x, w in zip(self.params, wide, strict=True)):
            return self
        problem = dataclasses.replace(self, params=wide)
        if _lowers(_loss, problem):
            return problem
        return dataclasses.replace(problem, dtypes=tuple(x.dtype for x in self.params))

    def run(self, measure: Callable[..., Any], *inputs: Any, **static: Any) -> Any:
        """Returns the result of a function that also returns the loss, checked.

        ``measure(self, *inputs, **static)`` is compiled where values are known.
        """
        measure_ = functools.partial(measure, **static)
        known = _checks.is_concrete((self, inputs))
        if known and all_known((self.args, self.others)):
            measure_ = program(measure, self.loss, self.weight, static) or measure_
        precision = self.settings.precision
        at_precision = jax.default_matmul_precision(precision)
        with contextlib.nullcontext() if precision is None else at_precision:
            try:
                value, found = measure_(self, *inputs)
            except Exception as error:
                explained = self._explain(functools.partial(measure, **static), inputs)
                if explained is None:
                    raise
                raise explained from error
        _checks.check_finite_loss(value)
        return found

    def _explain(self, measure: Callable, inputs: tuple) -> Exception | None:
        """Returns an error that names the modes that work where this one does not."""
        settings = {mode: self.settings._replace(mode=mode) for mode in MODES}

        def works(mode):
            problem = dataclasses.replace(self, settings=settings[mode])
            return _lowers(measure, problem, *inputs)

        mode = self.settings.mode
        working = [] if not mode or works(mode) else [m for m in MODES if works(m)]
        if not working:
            return None
        cause = "cannot differentiate the loss as often as it has to"
        names = sorted(set(custom_vjps(jax.make_jaxpr(_loss)(self).jaxpr)))
        if mode.startswith("forward") and names:
            of = ", ".join(names)
            cause = f"needs jax.jvp, which the jax.custom_vjp of {of} does not have"
        these = ", ".join(map(repr, working))
        return TypeError(f"mode {mode!r} {cause}; these modes work: {these}.")


def _loss(problem: Problem) -> jax.Array:
    return problem.stream(lambda *part: problem.value(problem.params, *part))


def _lowers(function: Callable, *args: Any) -> bool:
    """Returns whether jax can lower a function; some derivatives fail only then."""
    # Bare leaves for a function made here: jax forgets them with the function.
    leaves, treedef = jax.tree.flatten(args)
    try:
        jax.jit(lambda leaves: function(*treedef.unflatten(leaves))).lower(leaves)
    except Exception:  # whatever the loss raises
        return False
    return True


def state_problem(
    loss: Loss, params: Any, args: tuple, options: Mapping[str, Any],
    direction: Any = None, modes: Mapping[str, Any] | None = None, several: bool = True,
) -> Problem:  # fmt: skip
    """Checks everything that can be checked before work and returns the problem.

    Args:
      loss: what the public function was given.
      params: likewise.
      args: likewise.
      options: likewise, its keywords that others share.
      direction: likewise; None if it takes no direction.
      modes: the modes it may use; None if it takes no derivatives.
      several: whether it takes a mapping of directions.
    """
    known = (Options if modes else ForwardOptions).__annotations__
    if unknown := [name for name in options if name not in known]:
        raise TypeError(f"got an unexpected keyword argument {unknown[0]!r}.")
    mode = options.get("mode", "forward_over_reverse") if modes else ""
    if modes:
        _checks.check_choice("mode", mode, modes)
    weight, args = options.get("weight"), freeze(args)
    _checks.check_function("the loss", loss)
    _checks.check_function("weight", weight or _loss)
    parts = plan_parts(args, options.get("microbatches"), options.get("batch_argnums"))
    selection, leaves = select(params, options.get("where"))
    _checks.check_params(selection, leaves)
    problem = Problem(
        params=[jnp.asarray(x) for x in selection.take(leaves)],
        others=freeze(selection.leave(leaves)),
        args=args,
        directions=[],
        norms=None,
        loss=loss,
        weight=weight,
        selection=selection,
        names=None,
        settings=Settings(mode, parts, options.get("precision", "highest")),
    )
    if direction is None:
        return problem
    names, directions = name_directions(params, direction)
    if names is not None and not several:
        raise ValueError("expected one direction; got a mapping of several.")
    labels = ["direction"] if names is None else [f"direction {n!r}" for n in names]
    found = [
        _checks.tangent_leaves(params, selection, leaves, tree, label)
        for tree, label in zip(directions, labels, strict=True)
    ]
    norms = _norms(found) if _checks.is_concrete(found) else _in_turn(tree_norm, found)
    for label, u, norm in zip(labels, found, norms, strict=True):
        _checks.check_norm(norm, label, selection.take(selection.keys), u)
    return dataclasses.replace(problem, names=names, directions=found, norms=norms)


def name_directions(params: Any, direction: Any) -> tuple[tuple | None, list[Any]]:
    """Returns the names and the directions; no names if this is one direction.

    A tree of the structure of params is one direction, whatever its type; anything else
    must be a mapping from names to such trees.
    """
    structure, given = jax.tree.structure(pure(params)), pure(direction)
    several = isinstance(given, Mapping) and jax.tree.structure(given) != structure
    # A mapping of which nothing fits is reported as one direction that does not.
    if several and any(jax.tree.structure(t) == structure for t in given.values()):
        return tuple(given), list(given.values())
    return None, [given]


@jax.jit
def _norms(directions: Sequence[Any]) -> jax.Array:
    return jnp.stack([tree_norm(u) for u in directions])


def _in_turn(one: Callable[..., Any], directions: Sequence[Any], *each: Any) -> Any:
    """Stacks one(u, *[x[i] for x in each]) over the directions, compiled once."""
    if len(directions) == 1:
        result = one(directions[0], *(x[0] for x in each))
        return jax.tree.map(lambda x: x[None], result)
    branches = [lambda u=u: u for u in directions]

    # The switch copies one direction out; stacking would copy all of them.
    def at(i):
        return one(lax.switch(i, branches), *(x[i] for x in each))

    return lax.map(at, jnp.arange(len(directions)))


class Hessian(NamedTuple):
    """The Hessian at one point as a linear map, with the gradient there."""

    loss: jax.Array
    gradient: Any
    matvec: Callable[[Any], Any]


def hessian(problem: Problem) -> Hessian:
    """Returns the Hessian of the mean loss over the batch."""
    settings, x = problem.settings, problem.params

    def evaluate(x, *part):
        return jax.value_and_grad(lambda x: problem.value(x, *part))(x)

    if settings.parts is None and settings.mode == "forward_over_reverse":
        # Linearized once, the gradient is shared by all products.
        (value, gradient), tangent = jax.linearize(
            lambda x: problem.stream(functools.partial(evaluate, x)), x
        )
        return Hessian(value, gradient, lambda v: tangent(v)[1])
    product: Any = MODES[settings.mode].product

    def matvec(v):
        return problem.stream(
            lambda *part: product(lambda x: problem.value(x, *part), x, v)[2]
        )

    value, gradient = problem.stream(functools.partial(evaluate, x))
    return Hessian(value, gradient, matvec)
