"""What every measurement along directions shares: one checked, unit-free problem.

A public function checks its input once and then works on a `Problem`: a loss that is
known to be scalar, parameters restricted to those that matter, and unit directions by
name, of which only one is in memory at a time.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_clip._trees import path_name, tree_move, tree_norm, tree_unit
from optax_clip.diagnostics import _checks
from optax_clip.diagnostics._products import WITHOUT_JVP
from optax_clip.diagnostics._streaming import stream


class Problem(NamedTuple):
    """A loss, the parameters it is measured at and directions by name."""

    loss: Callable[..., jax.Array]
    params: Any
    directions: dict[Any, Any]
    norms: jax.Array  # shape=(len(directions),)
    single: bool

    def map(self, one: Callable[..., Any], *each: jax.Array) -> Any:
        """Stacks one(v, *[x[i] for x in each]) over the unit directions, in turn."""
        return _in_turn(
            lambda u, norm, *x: one(tree_unit(u, norm), *x),
            self.directions,
            self.norms,
            *each,
        )

    def unit(self) -> Any:
        """Returns the unit direction, where there is only one."""
        if not self.single:
            raise ValueError("expected one direction; got a mapping of several.")
        return self.units()[0]

    def units(self) -> list[Any]:
        """Returns all unit directions, for those who need them at the same time."""
        norms = [self.norms[i] for i in range(len(self.directions))]
        return [*map(tree_unit, self.directions.values(), norms)]

    def line(self, v: Any, args: tuple, microbatches: int | None, weight: Any) -> Any:
        """Returns the function s -> L(x + s v) of the whole batch."""

        def at(s):
            moved = tree_move(self.params, v, s)
            return stream(
                lambda *part: self.loss(moved, *part), args, microbatches, weight
            )

        return at

    def values(self, option: str, given: Any) -> jax.Array:
        """Returns one positive number per direction, from a number or by name."""
        if not isinstance(given, Mapping):
            given = dict.fromkeys(self.directions, given)
        if set(given) != set(self.directions):
            raise ValueError(f"{option} must have the names {list(self.directions)}.")
        for value in given.values():
            _checks.check_positive(option, value)
        ordered = [given[name] for name in self.directions]
        return jnp.stack([jnp.asarray(x, self.norms.dtype) for x in ordered])

    def by_name(self, stacked: Any) -> Any:
        """Returns {name: result}, or the only result where no name was given."""
        results = {
            name: jax.tree.map(lambda x, i=i: x[i], stacked)
            for i, name in enumerate(self.directions)
        }
        return next(iter(results.values())) if self.single else results


def state_problem(
    loss: Callable[..., Any],
    params: Any,
    direction: Any,
    where: _checks.Where | None = None,
) -> Problem:
    """Checks everything that can be checked before work and returns the problem."""
    params, loss = jax.tree.map(jnp.asarray, params), _checks.as_scalar(loss)
    _checks.check_params(params, where)
    single, directions = name_directions(params, direction)
    labels = {name: f"direction {name!r}" for name in directions}
    labels = {"direction": "direction"} if single else labels
    for name, u in directions.items():
        _checks.check_direction(params, u, where, labels[name])
        directions[name] = restrict(jax.tree.map(jnp.asarray, u), where)
    norms = _norms(directions)
    for name, norm in zip(directions, norms, strict=True):
        _checks.check_norm(directions[name], norm, labels[name])
    loss = on_subset(loss, params, where)
    return Problem(loss, restrict(params, where), directions, norms, single)


def _norms(directions: Mapping[Any, Any]) -> jax.Array:
    if _checks.is_concrete(directions):
        return jnp.stack([tree_norm(u) for u in directions.values()])
    return _in_turn(tree_norm, directions)


def _in_turn(
    one: Callable[..., Any], directions: Mapping[Any, Any], *each: jax.Array
) -> Any:
    """Stacks one(u, *[x[i] for x in each]) over the directions, compiled once."""
    branches = [lambda u=u: u for u in directions.values()]
    if len(branches) == 1:
        result = one(branches[0](), *(x[0] for x in each))
        return jax.tree.map(lambda x: x[None], result)

    # The switch copies one direction out; stacking would copy all of them.
    def at(i):
        return one(lax.switch(i, branches), *(x[i] for x in each))

    return lax.map(at, jnp.arange(len(branches)))


def name_directions(params: Any, direction: Any) -> tuple[bool, dict[Any, Any]]:
    """Returns whether this is one direction, and directions by name."""
    structure = jax.tree.structure(params)
    many = (
        isinstance(direction, Mapping)
        and jax.tree.structure(direction) != structure
        and any(jax.tree.structure(u) == structure for u in direction.values())
    )
    return not many, dict(direction) if many else {"direction": direction}


def restrict(tree: Any, where: _checks.Where | None) -> Any:
    """Returns the list of the selected leaves, or the tree itself if all are."""
    if where is None:
        return tree
    leaves = jax.tree.leaves_with_path(tree)
    return [leaf for path, leaf in leaves if where(path_name(path))]


def fill(subset: Any, tree: Any, where: _checks.Where | None) -> Any:
    """Returns the tree with its selected leaves replaced and zeros in the others."""
    if where is None:
        return subset
    zeros = jax.tree.map(jnp.zeros_like, tree)
    return on_subset(lambda filled: filled, zeros, where)(subset)


def on_subset(
    loss: Callable[..., Any], params: Any, where: _checks.Where | None
) -> Callable[..., Any]:
    """Returns the loss as a function of what `restrict` leaves of the parameters."""
    if where is None:
        return loss
    leaves, treedef = jax.tree.flatten(params)
    chosen = [where(path_name(p)) for p, _ in jax.tree.leaves_with_path(params)]

    def restricted(subset, *args):
        fresh = iter(subset)
        merged = [
            next(fresh) if new else old for new, old in zip(chosen, leaves, strict=True)
        ]
        return loss(jax.tree.unflatten(treedef, merged), *args)

    return restricted


def mean_gradient(
    loss: Callable[..., Any],
    params: Any,
    args: tuple,
    *,
    microbatches: int | None = None,
    weight: Any = None,
    where: _checks.Where | None = None,
    precision: str | None = "highest",
) -> Any:
    """Returns the gradient of the mean loss with respect to the selected leaves."""
    f = on_subset(_checks.as_scalar(loss), params, where)
    x = restrict(jax.tree.map(jnp.asarray, params), where)
    with matmul_precision(precision):
        return stream(lambda *part: jax.grad(f)(x, *part), args, microbatches, weight)


@contextlib.contextmanager
def measuring(
    precision: str | None, mode: str, loss: Callable, *args: Any
) -> Iterator[None]:
    """The context of everything that takes Hessian-vector products."""
    with matmul_precision(precision), explain_custom_vjp(mode, loss, *args):
        yield


def matmul_precision(precision: str | None) -> contextlib.AbstractContextManager:
    """Returns the context in which matrix products have this precision."""
    if precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


@contextlib.contextmanager
def explain_custom_vjp(mode: str, loss: Callable, *args: Any) -> Iterator[None]:
    """Replaces the error of `jax.jvp` at a `jax.custom_vjp` by one that helps."""
    try:
        yield
    except (TypeError, NotImplementedError) as error:
        # Below a jit, jax meets the function in its lowered form, "custom_lin".
        if "custom_vjp" not in str(error) and "custom_lin" not in str(error):
            raise
        names = sorted(set(_custom_vjps(jax.make_jaxpr(loss)(*args).jaxpr)))
        msg = (
            f"mode {mode!r} needs jax.jvp, which the jax.custom_vjp of "
            f"{', '.join(names) or 'a function in the loss'} does not have; "
            f"these modes work: {WITHOUT_JVP}."
        )
        raise TypeError(msg) from error


def _custom_vjps(jaxpr: Any) -> Iterator[str]:
    """Yields the names of functions with a custom_vjp in a jaxpr, at any depth."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name.startswith("custom_vjp"):
            inner = eqn.params.get("call_jaxpr") or eqn.params.get("fun_jaxpr")
            info = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
            yield getattr(info, "func_src_info", None) or "a function"
        for value in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _custom_vjps(getattr(value, "jaxpr", value))


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
