"""The house of the examples: which room may enter which."""

import ast

import pytest

from .test_index import EXAMPLES

EXPERIMENTS = {
    "finetune_t5",
    "sharpness",
    "convergence",
    "factors",
    "stability",
    "heterogeneity",
}
# Room -> the rooms that its modules may import; an experiment and what pretrains may
# import all of these, and each other never.
MAY_IMPORT = {
    "data": set(),
    "models": {"data"},
    "tasks": {"data", "models"},
    "lab": {"data", "models", "tasks"},
}
SHARED = set(MAY_IMPORT)
ROOMS = {path.parent.name for path in EXAMPLES.glob("*/*.py")}


def imports(room):
    """The other rooms that a room's modules import."""
    found = set()
    for path in (EXAMPLES / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                first, *rest = node.module.split(".")
                if first == "examples":
                    found |= {rest[0]} if rest else {name.name for name in node.names}
    return found - {room}


@pytest.mark.parametrize("room", sorted(ROOMS - {"redraw"}))
def test_imports_run_one_way_and_no_experiment_imports_another(room):
    assert imports(room) <= MAY_IMPORT.get(room, SHARED)


def test_every_experiment_is_a_package_with_an_entry_of_three_lines():
    for room in EXPERIMENTS | {"pretrain", "redraw"}:
        assert (EXAMPLES / room / "__main__.py").read_text().count("\n") == 3


def test_few_modules_stand_at_the_top():
    modules = [p for p in EXAMPLES.glob("*.py") if p.name != "__init__.py"]
    assert len(modules) <= 16
