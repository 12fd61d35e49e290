"""Eight CPU devices, seeded randomness and strict numerics for the tests that ask."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Programs, and they need torch.
collect_ignore = ["make_t5_goldens.py", "make_encoder_goldens.py"]

# The option and not XLA_FLAGS: subprocesses started by a test keep one device.
jax.config.update("jax_num_cpu_devices", 8)

# The first example of a layout compiles, the same example later does not: no deadline.
settings.register_profile(
    "default",
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
settings.load_profile("default")


@pytest.fixture
def rng():
    """A fresh generator with the same seed for every test."""
    return np.random.default_rng(20221125)


@pytest.fixture
def strict():
    """Broadcasting between ranks is an error, as it hides most shape mistakes."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """Double precision inside one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["one device", "many devices"])
def devices(request):
    """The code paths of a process with one device and with several."""
    return request.param


@pytest.fixture(autouse=True)
def device_count(request, monkeypatch):
    """One device for all but the tests of several: that is what most users run."""
    several = request.module.__name__.endswith("test_sharding")
    if "devices" in request.fixturenames:
        several = request.getfixturevalue("devices") == "many devices"
    if not several:
        monkeypatch.setattr(jax, "device_count", lambda *_: 1)
