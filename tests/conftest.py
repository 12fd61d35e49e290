"""Eight CPU devices, seeded randomness and strict numerics for the tests that ask."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]

# Programs, and they need torch.
collect_ignore_glob = ["golden_makers/*"]

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
settings.register_profile("few", settings.get_profile("default"), max_examples=8)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def fast_compilation(request):
    """Leaves out most of XLA's optimisations, which take longer than they save."""
    optimised = request.node.get_closest_marker("optimised") is not None
    jax.config.update("jax_disable_most_optimizations", not optimised)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# For all tests, as a user may set it; not inside of one.
STRICT = jax.config.jax_numpy_dtype_promotion == "strict"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call):
    """Under strict promotion, what Optax and Flax promote themselves is expected."""
    report = yield
    error = call.excinfo and call.excinfo.value
    if STRICT and isinstance(error, jax.dtypes.TypePromotionError):
        frames = [frame.path.parts for frame in call.excinfo.traceback]
        ours = [parts for parts in frames if "jax" not in parts]
        if {"optax", "flax"} & {*ours[-1]}:
            report.outcome, report.wasxfail = "skipped", "another library promotes"
    return report


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
def makes_nan():
    """NaN and infinity are made on purpose, whatever the flags."""
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


@pytest.fixture
def x64():
    """Double precision inside one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def micro_t5(tmp_path_factory):
    """A random checkpoint, with dropout, of the committed vocabulary."""
    from examples.data import vocabulary
    from examples.models import huggingface, t5

    config = t5.T5Config(
        vocab_size=vocabulary.load().size,
        d_model=8,
        d_kv=4,
        d_ff=16,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    huggingface.save(folder, config, t5.init(config, 0)[1])
    return folder


@pytest.fixture(scope="session")
def start_program(tmp_path_factory):
    """Starts a program; later processes find what the first one compiled."""
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    environment = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # most of the time is compiling
        "JAX_COMPILATION_CACHE_DIR": compiled or str(tmp_path_factory.mktemp("jit")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }

    def start(module: str, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start
