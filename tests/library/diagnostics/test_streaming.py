"""Means over batches: what is cut, what is averaged, and how sure it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_clip import diagnostics
from optax_clip.diagnostics import directional_derivatives, directional_sharpness

from . import problems
from .everything import WITH_LOSS, close
from .problems import waves

pytestmark = pytest.mark.usefixtures("strict")


def test_a_mean_over_an_iterator_is_the_whole_batch_and_reports_progress(rng, x64):
    params, u, batch = problems.draw_waves(rng, jnp.float64)
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 3], batch) for i in (0, 3, 6)]
    seen = []

    @jax.jit
    def measure(params, u, part):
        return directional_derivatives(waves, params, u, part)

    found = diagnostics.mean_over_batches(
        lambda part: measure(params, u, part),
        iter(parts),
        weight=problems.tokens,
        progress=lambda done, mean: seen.append((done, float(mean.loss))),
    )
    wanted = jax.jit(functools.partial(directional_derivatives, waves))(
        params, u, batch
    )
    np.testing.assert_allclose(found.mean, wanted, rtol=1e-10)
    assert [done for done, _ in seen] == [1, 2, 3]
    np.testing.assert_allclose(seen[-1][1], wanted.loss)


def test_an_iterator_of_tuples_spreads_them_over_the_arguments():
    found = diagnostics.mean_over_batches(lambda a, b: a * b, [(2.0, 3.0), (4.0, 5.0)])
    assert found.mean == 13


@pytest.mark.parametrize("weight", [None, lambda _: 0.0])
def test_a_mean_over_nothing_is_refused(weight):
    batches = [] if weight is None else [1.0]
    with pytest.raises(ValueError, match="at least one batch"):
        diagnostics.mean_over_batches(lambda x: x, batches, weight=weight)


def test_standard_errors_are_those_of_the_formula(rng):
    q, w = rng.normal(size=(2, 7)), rng.integers(1, 5, size=7)
    q = np.asarray(1e3 + q, np.float32)  # far from zero, where digits are lost
    found = diagnostics.mean_over_batches(
        lambda i: {"a": q[0, i], "b": q[:, i]}, range(7), weight=lambda i: w[i]
    )
    mean = (w * q).sum(1) / w.sum()
    error = np.sqrt(7 / 6 * (w**2 * (q - mean[:, None]) ** 2).sum(1)) / w.sum()
    assert found.batches == 7
    np.testing.assert_allclose(found.mean["a"], mean[0], rtol=1e-6)
    np.testing.assert_allclose(found.mean["b"], mean, rtol=1e-6)
    np.testing.assert_allclose(found.standard_error["a"], error[0], rtol=1e-4)
    np.testing.assert_allclose(found.standard_error["b"], error, rtol=1e-4)


def test_the_standard_error_is_the_spread_of_means(rng):
    means, errors = [], []
    for _ in range(200):
        found = diagnostics.mean_over_batches(lambda x: x, rng.normal(size=9).tolist())
        means.append(found.mean)
        errors.append(found.standard_error)
    np.testing.assert_allclose(np.std(means), 1 / 3, rtol=0.15)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors))), 1 / 3, rtol=0.1)


def test_one_batch_has_no_standard_error_and_weight_zero_is_no_batch():
    found = diagnostics.mean_over_batches(
        lambda x: x, [jnp.float32(3), jnp.float32(5)], weight=lambda x: x == 3
    )
    assert found.mean == 3
    assert found.batches == 1
    assert np.isnan(found.standard_error)


def test_paired_directions_are_surer_than_the_difference_of_their_means(rng):
    levels, noise = 10 * rng.normal(size=9), rng.normal(size=9) / 10
    batches = [
        {"sgd": jnp.float32(a), "clipped": jnp.float32(a - 1 + b)}
        for a, b in zip(levels, noise, strict=True)
    ]
    alone = diagnostics.mean_over_batches(lambda x: x, batches)
    paired = diagnostics.mean_over_batches(
        lambda x: diagnostics.paired_differences(x, "sgd"), batches
    )
    difference = alone.mean["clipped"] - alone.mean["sgd"]
    np.testing.assert_allclose(paired.mean["clipped"], difference, rtol=1e-4)
    error = noise.std(ddof=1) / 3
    np.testing.assert_allclose(paired.standard_error["clipped"], error, rtol=1e-3)
    assert alone.standard_error["clipped"] > 20 * error
    with pytest.raises(ValueError, match="baseline must be one of 'sgd', 'clipped'"):
        diagnostics.paired_differences(batches[0], "adam")


def test_bad_batches_are_named():
    shapes = [jnp.ones(2), jnp.ones(3)]
    with pytest.raises(
        ValueError, match=r"like the first, \(2,\); number 2 gave \(3,\)"
    ):
        diagnostics.mean_over_batches(lambda x: x, shapes)
    with pytest.raises(ValueError, match=r"like the first, \(\); number 2 gave \(3,\)"):
        diagnostics.mean_over_batches(lambda x: x, [jnp.ones(()), jnp.ones(3)])
    with pytest.raises(TypeError, match="batches must be iterable; got a int"):
        diagnostics.mean_over_batches(lambda x: x, 3)


### what is cut


def weighted_classes(p, x, y, w):
    """A loss whose last argument is no batch."""
    log_p = jax.nn.log_softmax(x @ p)
    picked = jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]
    return -jnp.mean(w[y] * picked)


def classes(rng, rows=16):
    x = jnp.asarray(rng.normal(size=(rows, 4)), jnp.float32)
    p = jnp.asarray(rng.normal(size=(4, 8)), jnp.float32)
    return p, (x, jnp.asarray(rng.integers(0, 8, rows)), jnp.arange(1.0, 9.0))


def test_arrays_of_other_lengths_are_not_cut_without_being_asked(rng):
    p, args = classes(rng)
    wanted = directional_sharpness(weighted_classes, p, p, *args)
    with pytest.raises(ValueError, match=r"args\[0\] has 16 rows and args\[2\] has 8"):
        directional_sharpness(weighted_classes, p, p, *args, microbatches=4)
    got = directional_sharpness(
        weighted_classes, p, p, *args, microbatches=4, batch_argnums=(0, 1)
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", WITH_LOSS)
def test_every_diagnostic_cuts_what_is_the_batch(rng, name):
    x, u, batch = problems.draw_waves(rng)
    batch["mask"] = jnp.ones(8)

    def loss(x, scale, batch):
        return jnp.sum(scale) * waves(x, batch)

    measure = functools.partial(WITH_LOSS[name], loss, x, u, jnp.ones(2) / 2, batch)
    got = measure(microbatches=4, batch_argnums=1)
    close(got, measure(), 1e-2 if name == "minimum" else 1e-3)
    with pytest.raises(ValueError, match=r"args\[0\] has 2 rows and args\[1\]"):
        measure(microbatches=2)


def test_wrong_batch_argnums_are_named(rng):
    p, args = classes(rng)

    def refuses(match, error=ValueError, **options):
        with pytest.raises(error, match=match):
            directional_sharpness(weighted_classes, p, p, *args, **options)

    refuses("batch_argnums must be below 3", batch_argnums=3)
    refuses("batch_argnums must be ints", error=TypeError, batch_argnums="x")
    refuses("equal leading axes", microbatches=2)


def test_keys_in_a_batch_are_cut_like_rows():
    def loss(x, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, ()))(keys)
        return jnp.mean(noise) * jnp.sum(x**2)

    x, keys = jnp.ones(2), jax.random.split(jax.random.key(0), 6)
    got = directional_sharpness(loss, x, x, keys, microbatches=3)
    np.testing.assert_allclose(got, directional_sharpness(loss, x, x, keys), rtol=1e-5)


### batches of the host


def halves(batch):
    return [jax.tree.map(lambda a, i=i: np.asarray(a[i::2]), batch) for i in range(2)]


@pytest.mark.parametrize("name", WITH_LOSS)
def test_loaded_batches_are_one_big_batch_for_every_diagnostic(rng, name):
    x, u, batch = problems.draw_waves(rng)
    parts, loaded = halves(batch), []

    def load(i):
        loaded.append(i)
        return parts[i]

    fetch = diagnostics.batch_loader(load)

    def loss(x, number):
        return waves(x, fetch(number))

    def weight(number):
        return problems.tokens(fetch(number))

    options = {"microbatches": 2, "weight": weight}
    got = WITH_LOSS[name](loss, x, u, jnp.arange(2), **options)
    wanted = WITH_LOSS[name](waves, x, u, batch)
    close(got, wanted, 1e-2 if name == "minimum" else 1e-3)
    assert set(loaded) == {0, 1}


def test_a_batch_that_is_not_like_the_first_is_named():
    fetch = diagnostics.batch_loader(lambda i: np.ones(3 + i, np.float32))

    def loss(x, number):
        return jnp.sum(fetch(number)) * jnp.sum(x**2)

    with pytest.raises(
        jax.errors.JaxRuntimeError, match="every batch must be like batch 0"
    ):
        directional_sharpness(
            loss, jnp.ones(2), jnp.ones(2), jnp.arange(2), microbatches=2
        )
    with pytest.raises(TypeError, match="load must be a function"):
        diagnostics.batch_loader([1, 2])


@pytest.mark.parametrize("source", [list, iter])
def test_batches_that_end_early_are_named(source):
    batches = source([np.ones(3, np.float32)] * 2)  # an iterator's first is the sample
    load = batches.__getitem__ if source is list else lambda _: next(batches)
    fetch = diagnostics.batch_loader(load)

    def loss(x, number):
        return jnp.sum(fetch(number)) * jnp.sum(x**2)

    sentence = "as often as it is asked; number [12] raised (Index|StopIter)"
    with pytest.raises(jax.errors.JaxRuntimeError, match=sentence):
        directional_sharpness(
            loss, jnp.ones(2), jnp.ones(2), jnp.arange(3), microbatches=3
        )


def test_a_loader_without_any_batch_is_refused_at_once():
    with pytest.raises(ValueError, match="number 0 raised IndexError"):
        diagnostics.batch_loader([].__getitem__)
