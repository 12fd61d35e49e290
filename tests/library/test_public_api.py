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


@pytest.mark.parametrize("module", [optax_clip, diagnostics], ids=lambda m: m.__name__)
def test_all_lists_every_public_name_and_nothing_else(module):
    assert sorted(module.__all__) == sorted(
        name for name in vars(module) if not name.startswith("_")
    )


@pytest.mark.parametrize(
    "name", [n for n, x in PUBLIC.items() if inspect.isfunction(x)]
)
def test_help_shows_a_signature_that_a_person_can_read(name):
    """The names of types, and not the unions behind them."""
    signature = inspect.signature(PUBLIC[name])
    annotations = [x.annotation for x in signature.parameters.values()]
    for annotation in (*annotations, signature.return_annotation):
        assert isinstance(annotation, str)
        assert len(annotation) <= 64


def test_importing_the_package_needs_only_jax_and_optax():
    code = (
        "import sys, optax_clip; "
        "found = {'flax', 'matplotlib', 'orbax'} & set(sys.modules); "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
