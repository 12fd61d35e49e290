"""Whether the reference of the documentation has every public name, and no other."""

import re
import types
from pathlib import Path

import pytest

import optax_clip
from optax_clip import diagnostics

PAGES = Path(__file__).parents[2] / "docs" / "reference"
ENTRY = re.compile(r"^\.\. (currentmodule|autofunction|autoclass):: (\S+)$", re.M)


def documented_names(module: str) -> list[str]:
    names = []
    for page in sorted(PAGES.glob("*.rst")):
        current = None
        for directive, name in ENTRY.findall(page.read_text()):
            if directive == "currentmodule":
                current = name
            elif current == module:
                names.append(name)
    return names


@pytest.mark.parametrize("module", [optax_clip, diagnostics])
def test_the_reference_has_every_public_name_once(module):
    public = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    ]
    assert sorted(documented_names(module.__name__)) == sorted(public)
