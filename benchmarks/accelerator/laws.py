"""What must hold on every device, to the bit where nothing says otherwise.

The tests have all of this in depth, on CPU; here it is asked of the hardware.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_clip
from benchmarks.accelerator.notes import Notes
from benchmarks.accelerator.presets import Preset
from optax_clip import diagnostics

FRACTIONS = (0.001, 0.05, 0.3, 0.95)
Tree = list[np.ndarray]


def check(preset: Preset, name: str, notes: Notes) -> None:
    """Raises what does not hold."""
    LAWS[name](np.random.default_rng(20), preset.exact, notes)


def shapes(size: int) -> list[tuple[int, ...]]:
    """Of some sizes, most of it in matrices; one dimension is odd."""
    rows = max(size // 4096, 1)
    return [(rows, 1024), (rows, 3, 679), (rows, 1024), (1000,), (7, 5), ()]


def heavy(rng: np.random.Generator, size: int) -> Tree:
    return [rng.standard_cauchy(shape).astype(np.float32) for shape in shapes(size)]


def ties(rng: np.random.Generator, size: int) -> Tree:
    return [np.round(2 * leaf).clip(-40, 40) / 8 for leaf in heavy(rng, size)]


def zeros(rng: np.random.Generator, size: int) -> Tree:
    found = heavy(rng, size)
    return [leaf * (rng.random(leaf.shape) < 0.02).astype(leaf.dtype) for leaf in found]


def special(rng: np.random.Generator, size: int) -> Tree:
    found = heavy(rng, size)
    found[0].flat[:20], found[1].flat[:20] = np.inf, np.nan
    found[2].flat[:20], found[3][:20] = -np.inf, -0.0
    return found


def subnormal(rng: np.random.Generator, size: int) -> Tree:
    tiny = np.finfo(np.float32).smallest_subnormal
    return [
        (rng.integers(-50, 50, shape) * tiny).astype(np.float32)
        for shape in shapes(size)
    ]


def exact(dtype: str, rng: Any, size: int, notes: Notes) -> None:
    """Clips and thresholds are those of a sort on the host, whatever the numbers."""
    wrong = []
    for scope in ("global", "leaf"):
        clip = _clip(scope)
        for draw in (heavy, ties, zeros, special, subnormal):
            with np.errstate(over="ignore"):
                leaves = [leaf.astype(jnp.dtype(dtype)) for leaf in draw(rng, size)]
            for fraction in FRACTIONS:
                where = f"{draw.__name__}, {scope}, fraction {fraction}"
                notes.say(last=where)
                updates, state = jax.device_get(clip(jnp.float32(fraction), leaves))
                try:
                    _compare(leaves, updates, state.threshold, scope, fraction)
                except AssertionError as error:
                    wrong.append(f"{where}: {error}")
    if wrong:
        raise AssertionError(" ".join(wrong))


def _compare(
    leaves: Tree, updates: Tree, found: np.ndarray, scope: str, fraction: float
) -> None:
    groups = [leaves] if scope == "global" else [[leaf] for leaf in leaves]
    taus = [threshold(group, fraction) for group in groups]
    expected = np.asarray(taus, np.float32)
    same(np.ravel(found).astype(np.float32), expected, "threshold")
    for i, (leaf, update) in enumerate(zip(leaves, updates, strict=True)):
        tau = taus[i if scope == "leaf" else 0]
        same(update, clipped(leaf, tau), f"leaf {i}")


def _clip(scope: Literal["global", "leaf"]) -> Callable[..., Any]:
    @jax.jit
    def clip(fraction, leaves):
        tx = optax_clip.clip_top_k_coordinates(fraction, scope=scope)
        return tx.update(leaves, tx.init(leaves))

    return clip


def threshold(leaves: Tree, fraction: float) -> Any:
    """By a sort of bit patterns: those of magnitudes are in the order of magnitudes."""
    bits = np.dtype(f"u{leaves[0].itemsize}")
    sign = bits.type(1 << (8 * bits.itemsize - 1))
    keys = np.sort(np.concatenate([x.view(bits).ravel() & ~sign for x in leaves]))
    keys = np.minimum(keys, np.asarray(np.inf, leaves[0].dtype).view(bits))
    others = int(np.count_nonzero(keys))
    key = keys[keys.size - 1 - skipped(fraction, keys.size)]
    if key == 0 and others:
        key = keys[keys.size - 1 - skipped(fraction, others)]
    return key.view(leaves[0].dtype)


def skipped(fraction: float, size: int) -> int:
    """floor(f N), where a product a rounding of float32 below an integer is meant."""
    product = float(np.float32(fraction)) * size
    return min(math.floor(product + min(product / 2**24, 3 / 2**12)), size - 1)


def clipped(leaf: np.ndarray, tau: Any) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        above = np.abs(leaf.astype(np.float32)) > np.float32(tau)
    return np.where(above, np.copysign(tau, leaf).astype(leaf.dtype), leaf)


def same(actual: Any, expected: Any, where: str) -> None:
    """Equal bits; one NaN is as good as another."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    bits = np.dtype(f"u{expected.itemsize}")
    wrong = actual.view(bits) != expected.view(bits)
    wrong &= ~(np.isnan(actual) & np.isnan(expected))
    if wrong.any():
        i = np.flatnonzero(wrong)[0]
        got, wanted = actual.ravel()[i], expected.ravel()[i]
        raise AssertionError(
            f"{where}: {np.count_nonzero(wrong)} of {wrong.size} differ; "
            f"expected {wanted!r} at {i}, got {got!r}."
        )


def plain_at_zero(rng: Any, size: int, notes: Notes) -> None:
    """With a fraction of 0 every optimizer is the one of Optax that it extends."""
    ema = optax.ema(0.9, debias=False)
    factor = {"min_dim_size_to_factor": 0, "momentum": None}
    pairs = {
        "clip": (optax_clip.clip_top_k_coordinates(0), optax.identity()),
        "SGD": (
            optax_clip.clipped_sgd(0.1, fraction=0),
            optax.chain(ema, optax.scale_by_learning_rate(0.1)),
        ),
        "Adam": (optax_clip.clipped_adam(0.1, fraction=0), optax.adam(0.1)),
        "Adafactor": (
            optax_clip.clipped_adafactor(0.1, fraction=0),
            optax.adafactor(0.1, **factor),
        ),
    }
    grads = [heavy(rng, min(size, 300_000)) for _ in range(2)]
    for name, transformations in pairs.items():
        ours, theirs = (_second_update(tx, grads) for tx in transformations)
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, f"{name}, leaf {i}")
        notes.say(last=name)


def _second_update(tx: optax.GradientTransformation, grads: list[Tree]) -> Any:
    state, update = tx.init(grads[0]), jax.jit(tx.update)
    found = [None, state]
    for gradient in grads:
        found = update(gradient, found[1], grads[0])
    return jax.device_get(found[0])


def one_program(rng: Any, size: int, notes: Notes) -> None:
    """A step traces once, scans, has a state that stays, and never asks the host."""
    optimizer = optax_clip.clipped_sgd(0.1, fraction=0.05)
    params, traces = jax.device_put(heavy(rng, size)), []

    @jax.jit
    def step(params, state):
        traces.append(None)
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def scan(params, state):
        def body(carry, _):
            return step(*carry), None

        return jax.lax.scan(body, (params, state), length=3)[0]

    start = jax.jit(optimizer.init)(params)
    after = params, start
    for number in range(3):
        with jax.transfer_guard("disallow" if number else "allow"):
            after = jax.block_until_ready(step(*after))
    assert len(traces) == 1, f"A step was traced {len(traces)} times."
    types = [jax.tree.map(jax.typeof, state) for state in (start, after[1])]
    assert types[0] == types[1], f"The state's types changed: {types}."
    notes.say(last="scan")
    scanned = scan(params, start)
    for one, other in zip(*map(jax.tree.leaves, (after, scanned)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def by_rows(rng: Any, size: int, notes: Notes) -> None:
    """Under vmap every row is clipped by itself."""
    batch = rng.standard_cauchy((3, max(size // 8, 8))).astype(np.float32)
    tx = optax_clip.clip_top_k_coordinates(0.05)
    updates = jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(g))[0]))(batch)
    for i, row in enumerate(batch):
        same(updates[i], clipped(row, threshold([row], 0.05)), f"row {i}")
        notes.say(last=f"row {i}")


def bowl(rng: Any, size: int, notes: Notes) -> None:
    """The sharpness of a bowl is known, in every mode."""
    del size
    x, u, a = (rng.standard_normal(1000).astype(np.float32) for _ in range(3))
    expected = float(np.sum(a * u * u) / np.sum(u * u))
    for mode in (
        "forward_over_reverse",
        "forward_over_forward",
        "reverse_over_reverse",
        "finite_difference",
    ):
        found = diagnostics.directional_sharpness(
            lambda x: jnp.sum(a * x * x) / 2, x, u, mode=mode
        )
        tolerance = 1e-2 if mode == "finite_difference" else 1e-3
        np.testing.assert_allclose(found, expected, rtol=tolerance, err_msg=mode)
        notes.say(last=mode)


LAWS: Mapping[str, Callable[..., None]] = {
    "float32 as a sort says": functools.partial(exact, "float32"),
    "bfloat16 as a sort says": functools.partial(exact, "bfloat16"),
    "float16 as a sort says": functools.partial(exact, "float16"),
    "Optax at a fraction of 0": plain_at_zero,
    "one program": one_program,
    "rows under vmap": by_rows,
    "sharpness of a bowl": bowl,
}
