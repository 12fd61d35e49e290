"""Outside of jit: what compiles, what is kept, and what is let go."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_clip import diagnostics
from optax_clip.diagnostics import directional_sharpness

from ... import helpers
from . import problems
from .problems import waves

pytestmark = pytest.mark.usefixtures("strict")


class Task:
    """A loss as a method, the batch's weight as another."""

    def __init__(self, scale):
        self.scale = scale

    def loss(self, x, batch):
        return self.scale * waves(x, batch)

    def weight(self, batch):
        return jnp.sum(batch["mask"])


def test_methods_of_one_object_compile_once_and_live_with_it(rng):
    x, u, batch = problems.draw_waves(rng)
    one, two = Task(1.0), Task(2.0)

    def measure(task):
        options = {"microbatches": 2, "weight": task.weight}
        return directional_sharpness(task.loss, x, u, batch, **options)

    np.testing.assert_allclose(measure(two), 2 * measure(one), rtol=1e-5)
    with helpers.compilations() as compiled:
        measure(one)
        measure(two)
    assert compiled == []
    alive = weakref.ref(one)
    del one
    gc.collect()
    assert alive() is None


@pytest.mark.slow
def test_losses_made_anew_are_measured_anew_and_leave_no_memory(rng):
    x, u, batch = problems.draw_waves(rng)
    wanted = directional_sharpness(waves, x, u, batch)
    sizes = []
    for i in range(45):
        scale = float(i + 1)
        got = directional_sharpness(lambda x, b, s=scale: s * waves(x, b), x, u, batch)
        np.testing.assert_allclose(got, scale * wanted, rtol=1e-4)
        if i % 20 == 4:
            gc.collect()
            sizes.append(resident())
    assert sizes[-1] - sizes[0] < 20


def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) / 256  # MB


def test_many_calls_of_one_loss_leave_no_memory(rng):
    x, u, batch = problems.draw_waves(rng)
    directional_sharpness(waves, x, u, batch)
    start = resident()
    with helpers.compilations() as compiled:
        for _ in range(200):
            directional_sharpness(waves, x, u, batch)
    assert compiled == []
    assert resident() - start < 10


def test_other_weights_settings_and_arguments_are_other_programs(rng):
    x, u, batch = problems.draw_waves(rng)

    def loss(x, batch, power):
        assert isinstance(power, (int, float))
        return waves(x, batch) ** power

    def first(batch, power):
        return jnp.sum(batch["mask"])

    for power in (1, 1.0, 2):
        got = directional_sharpness(loss, x, u, batch, power)
        plain = functools.partial(loss, power=power)
        wanted = directional_sharpness(plain, x, u, batch)
        np.testing.assert_allclose(got, wanted, rtol=1e-4)
    streamed = functools.partial(directional_sharpness, loss, x, u, batch, 1)
    wanted = directional_sharpness(waves, x, u, batch)
    np.testing.assert_allclose(
        streamed(microbatches=4, weight=first), wanted, rtol=1e-4
    )
    even = directional_sharpness(waves, x, u, batch, microbatches=4)
    np.testing.assert_allclose(streamed(microbatches=4), even, rtol=1e-4)
    assert abs(even - wanted) > 1e-4 * abs(wanted)


def test_an_object_that_may_change_inside_is_asked_every_time(rng):
    x, u, batch = problems.draw_waves(rng)

    class Settings:
        scale = 1.0

    def loss(x, batch, settings):
        return settings.scale * waves(x, batch)

    settings = Settings()
    wanted = directional_sharpness(loss, x, u, batch, settings)
    settings.scale = 3.0
    got = directional_sharpness(loss, x, u, batch, settings)
    np.testing.assert_allclose(got, 3 * wanted, rtol=1e-5)


def test_a_loss_that_reads_its_batch_in_python_is_measured_all_the_same():
    def loss(x, lengths):
        longest = int(lengths.max())  # cannot be compiled
        return jnp.sum(x[:longest] ** 2)

    x = jnp.ones(4)
    got = directional_sharpness(loss, x, x, np.array([1, 3]))
    np.testing.assert_allclose(got, 2 * 3 / 4, rtol=1e-6)


def test_losses_without_identity_are_measured_all_the_same():
    class Slotted:
        __slots__ = ()

        def __call__(self, x):
            return jnp.sum(x**2)

    class Unhashable(Slotted):
        __hash__ = None

        def __eq__(self, other):
            return True

    for loss in (Slotted(), Unhashable(), jnp.sum, jax.jit(jnp.sum)):
        slope = diagnostics.directional_derivatives(
            loss, jnp.ones(4), jnp.ones(4)
        ).slope
        np.testing.assert_allclose(slope, 4 if isinstance(loss, Slotted) else 2)


def test_a_mean_over_batches_compiles_nothing_after_the_first(rng):
    x, u, batch = problems.draw_waves(rng)

    def measure(rows):
        return diagnostics.sharpness_table(
            waves, x, {"u": u}, batch | {"rows": rows}, baseline="u"
        )

    def mean(count):
        batches = jnp.asarray(rng.normal(size=(count, 8, 4)), jnp.float32)
        return diagnostics.mean_over_batches(measure, list(batches))

    mean(2)
    with helpers.compilations() as compiled:
        found = mean(2)
    assert compiled == []
    assert found.batches == 2
