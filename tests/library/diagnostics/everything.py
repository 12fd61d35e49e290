"""Every diagnostic as a function of (loss, x, u, *args, **options)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from optax_clip import diagnostics

KEY = jax.random.key(0)


def split_layers(path):
    return diagnostics.Stacked(path) if path == "w" else path


def table(loss, x, u, *args, **options):
    updates = {"u": u, "2u": jax.tree.map(twice, u)}
    return diagnostics.sharpness_table(loss, x, updates, *args, baseline="u", **options)


def twice(leaf):
    real = jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating)
    return 2 * leaf if real else leaf


def several(loss, x, u, *args, **options):
    updates = {"u": u, "2u": jax.tree.map(twice, u)}
    return diagnostics.directional_derivatives(loss, x, updates, *args, **options)


def masked(loss, x, u, *args, **options):
    top = jax.tree.map(is_large, u)
    return diagnostics.masked_sharpness(loss, x, u, *args, mask=top, **options)


def is_large(leaf):
    real = jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating)
    return jnp.abs(leaf) > 1 if real else leaf


def chosen_diagonal(loss, x, u, *args, **options):
    where = options.get("where")
    some = diagnostics.sample_coordinates(x, 5, key=KEY, where=where)
    found = diagnostics.hessian_diagonal_at(loss, x, *args, coordinates=some, **options)
    return found, diagnostics.take_coordinates(x, some)


def correlation(loss, x, u, *args, **options):
    found = diagnostics.gradient_hessian_correlation(
        loss, x, *args, key=KEY, coordinates=20, resamples=10, **options
    )
    return found.pearson, found.spearman


def eigenvalues(loss, x, u, *args, **options):
    found = diagnostics.block_eigenvalues(loss, x, *args, key=KEY, **options)
    return {name: block[:2] for name, block in found.items()}


def diagonal(loss, x, u, *args, **options):
    found = diagnostics.hessian_diagonal(loss, x, *args, key=KEY, **options)
    leaves = jax.tree.leaves(found)
    return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]


def minimum(loss, x, u, *args, **options):
    return diagnostics.minimize_along(loss, x, u, *args, **options).decrease


def along(loss, x, u, *args, **options):
    return diagnostics.loss_along(loss, x, u, *args, steps=[0.0, 0.5], **options)


def scan(loss, x, u, *args, **options):
    found = diagnostics.line_scan(loss, x, u, *args, spacing=0.1, **options)
    return found.losses[:4], found.lowest_step, found.decrease


def critical(loss, x, u, *args, **options):
    found = diagnostics.critical_sharpness(
        loss, x, u, *args, tolerance=1e-3, max_evaluations=20, **options
    )
    return found.lower, found.upper


WITH_HESSIAN = {
    "sharpness": diagnostics.directional_sharpness,
    "split": diagnostics.split_sharpness,
    "split layers": functools.partial(diagnostics.split_sharpness, blocks=split_layers),
    "masked": masked,
    "eigenvalues": eigenvalues,
    "diagonal": diagonal,
    "chosen diagonal": chosen_diagonal,
    "correlation": correlation,
}
WITH_LOSS = WITH_HESSIAN | {
    "several": several,
    "table": table,
    "minimum": minimum,
    "along": along,
    "scan": scan,
    "critical": critical,
}


def norms(loss, x, u, *args):
    return [*diagnostics.block_norms(x, blocks=split_layers).values()]


def histogram(loss, x, u, *args):
    return diagnostics.coordinate_histogram(u, [0.1, 1.0, 10.0])


def quantiles(loss, x, u, *args):
    return diagnostics.coordinate_quantiles(u, [0.5, 0.9])


def persistence(loss, x, u, *args):
    old, new = (diagnostics.top_coordinates(tree, 0.2) for tree in (u, x))
    return diagnostics.mask_persistence(old, new)


def complexity(loss, x, u, *args):
    curvatures = {"w": 1.0, "b": 2.0}
    bound = diagnostics.sharpness_bound(x, curvatures)
    return diagnostics.hessian_complexity(u, curvatures), bound


def unequal(loss, x, u, *args):
    return diagnostics.heterogeneity(diagnostics.block_norms(x))


def magnitudes(loss, x, u, *args):
    found = diagnostics.magnitude_correlation(x["b"], u["b"], key=KEY, resamples=10)
    return found.pearson, found.spearman


def drawn(loss, x, u, *args):
    some = diagnostics.sample_coordinates(x, 5, key=KEY)
    return diagnostics.take_coordinates(x, some)


WITHOUT_LOSS = {
    "norms": norms,
    "histogram": histogram,
    "quantiles": quantiles,
    "persistence": persistence,
    "complexity": complexity,
    "unequal": unequal,
    "magnitudes": magnitudes,
    "drawn": drawn,
}
ALL = WITH_LOSS | WITHOUT_LOSS


def close(got, wanted, tolerance):
    """Relative to the largest number of the answer; nan is equal to nan."""
    got, wanted = (
        np.concatenate([np.ravel(np.asarray(x, float)) for x in jax.tree.leaves(tree)])
        for tree in (got, wanted)
    )
    atol = tolerance * np.nanmax(np.abs(wanted))
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=atol)
