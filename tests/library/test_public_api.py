"""What a reader of the public names can count on."""

import inspect
import subprocess
import sys

import pytest

import optax_clip
from optax_clip import diagnostics

PUBLIC = {
    f"{module.__name__}.{name}": value
    for module in (optax_clip, diagnostics)
    for name, value in vars(module).items()
    if not name.startswith("_") and not inspect.ismodule(value)
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_shows_an_example(name):
    # Not inspect.getdoc, which would fall back to the docstring of a base class.
    assert ">>>" in (PUBLIC[name].__doc__ or "")


def test_importing_the_package_needs_only_jax_and_optax():
    code = (
        "import sys, optax_clip; "
        "found = {'flax', 'matplotlib', 'orbax'} & set(sys.modules); "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
