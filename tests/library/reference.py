"""Naive NumPy float64 twins of every algorithm, written from the papers.

A tree is a dict of name to array; an optimizer maps a list of gradient trees (one per
step) to the list of its updates, minus sign and learning rate included. Nothing here
is fast, jitted or clever: sort, loop and compare.
"""

import math
from fractions import Fraction

import numpy as np


def rank(fraction, size, eps=2.0**-53):
    """A-0's index m = floor(f N), at most N - 1.

    The product is exact. A float is a rounded number: where f N is below an integer by
    no more than f's own rounding `eps`, the integer is meant (0.29 of 100 is 29).
    """
    product = Fraction(float(fraction)) * size
    return min(math.floor(product * (1 + Fraction(eps))), size - 1)


def threshold(leaves, fraction, eps=2.0**-53):
    """The m-th entry (from 0) of all magnitudes sorted downwards; NaN counts as inf.

    Where that is 0, zeros do not count: m is that of the others, if there are any.
    """
    magnitudes = np.concatenate([np.abs(leaf).ravel() for leaf in leaves])
    magnitudes = np.where(np.isnan(magnitudes), np.inf, magnitudes)
    ordered = np.sort(magnitudes)[::-1]
    tau = ordered[rank(fraction, magnitudes.size, eps)]
    others = np.count_nonzero(magnitudes)
    return tau if tau or not others else ordered[rank(fraction, others, eps)]


def clip_leaf(g, tau):
    """sign(g) min(|g|, tau), where a NaN stays and a complex number keeps its phase."""
    if np.iscomplexobj(g):
        modulus = np.abs(g)
        return np.where(modulus > tau, g * tau / np.where(modulus > tau, modulus, 1), g)
    return np.where(np.abs(g) > tau, np.copysign(tau, g), g)


def clip(g, fraction, scope="global"):
    """A-0: Clip_k over the whole tree, or leaf by leaf."""
    if scope == "leaf":
        return {k: clip_leaf(v, threshold([v], fraction)) for k, v in g.items()}
    tau = threshold(list(g.values()), fraction)
    return {k: clip_leaf(v, tau) for k, v in g.items()}


def clip_scale(g, fraction):
    """min(1, tau / |g|): what a numerator-only clip multiplies an update with."""
    tau = threshold(list(g.values()), fraction)
    return {
        k: np.where(np.abs(v) > tau, tau / np.where(v == 0, 1, np.abs(v)), 1.0)
        for k, v in g.items()
    }


def ema(trees, beta):
    """Exponential moving average from zero, no bias correction."""
    m = {k: np.zeros_like(v) for k, v in trees[0].items()}
    for tree in trees:
        m = {k: beta * m[k] + (1 - beta) * v for k, v in tree.items()}
        yield m


def sgd(grads, lr, fraction=0.05, momentum=0.9, scope="global"):
    """A-1: the gradient is clipped before it enters the momentum."""
    moments = ema([clip(g, fraction, scope) for g in grads], momentum)
    return [{k: -lr * v for k, v in m.items()} for m in moments]


def rms(x):
    """Root mean square."""
    return np.linalg.norm(x) / np.sqrt(x.size)


def block_normalize(tree):
    """m / ||m|| sqrt(size) per tensor; a zero tensor stays zero."""
    return {k: v / (rms(v) or 1.0) for k, v in tree.items()}


def normalized_sgd(grads, lr, fraction=0.05, momentum=0.9, scope="global"):
    """A-2: each tensor's update has RMS 1 (times lr), after momentum."""
    moments = ema([clip(g, fraction, scope) for g in grads], momentum)
    return [{k: -lr * v for k, v in block_normalize(m).items()} for m in moments]


def adafactor(
    grads, params, lr=None, fraction=0.05, parameter_scale=True, scope="global"
):
    """A-3: R, C and V see the raw gradient, the numerator the clipped one."""
    eps1, eps2, updates = 1e-30, 1e-3, []
    r, c, v = {}, {}, {}
    for t, g in enumerate(grads, start=1):
        b, clipped, update = 1 - t**-0.8, clip(g, fraction, scope), {}
        for k, x in params.items():
            q = g[k] ** 2 + eps1
            if x.ndim == 2:
                r[k] = b * r.get(k, 0) + (1 - b) * q.sum(axis=1)
                c[k] = b * c.get(k, 0) + (1 - b) * q.sum(axis=0)
                second_moment = np.outer(r[k], c[k]) / r[k].sum()
            else:
                second_moment = v[k] = b * v.get(k, 0) + (1 - b) * q
            u = clipped[k] / np.sqrt(second_moment)
            u = u / max(1.0, rms(u))
            rho = min(1e-2, t**-0.5) if lr is None else lr
            update[k] = -u * rho * (max(eps2, rms(x)) if parameter_scale else 1.0)
        params = {k: x + update[k] for k, x in params.items()}
        updates.append(update)
    return updates


def adam(
    grads,
    lr,
    fraction=0.05,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    clipped="gradient",
    scope="global",
):
    """A-4: Clip_k on what enters the first moment, or on the finished direction."""
    first = [clip(g, fraction if clipped == "gradient" else 0, scope) for g in grads]
    moments = zip(
        ema(first, b1),
        ema([{k: x**2 for k, x in g.items()} for g in grads], b2),
        strict=True,
    )
    updates = []
    for t, (m, v) in enumerate(moments, start=1):
        u = {k: m[k] / (1 - b1**t) / (np.sqrt(v[k] / (1 - b2**t)) + eps) for k in m}
        u = clip(u, fraction, scope) if clipped == "update" else u
        updates.append({k: -lr * x for k, x in u.items()})
    return updates


def lion(grads, lr, fraction=0.5, b1=0.9, b2=0.99, scope="global"):
    """A-5: the interpolated momentum, clipped where Lion takes the sign."""
    m = {k: np.zeros_like(v) for k, v in grads[0].items()}
    updates = []
    for g in grads:
        c = {k: b1 * m[k] + (1 - b1) * g[k] for k in g}
        m = {k: b2 * m[k] + (1 - b2) * g[k] for k in g}
        updates.append({k: -lr * x for k, x in clip(c, fraction, scope).items()})
    return updates


def sign_sgd(grads, lr, momentum=0.9):
    """A-6: the sign of the moving average."""
    return [{k: -lr * np.sign(v) for k, v in m.items()} for m in ema(grads, momentum)]
