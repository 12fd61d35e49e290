"""The index of the examples is true: it lists every program, and every program is."""

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
INDEX = (EXAMPLES / "README.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in INDEX.splitlines()
    if "`python -m examples." in line and line.startswith("|")
]


def programs():
    """Everything below examples/ that `python -m` runs, but for the data's own."""
    found = {path.parent for path in EXAMPLES.rglob("__main__.py")}
    for path in EXAMPLES.rglob("*.py"):
        if '__name__ == "__main__"' in path.read_text() and "data" not in path.parts:
            found.add(path.with_suffix(""))
    return {".".join(path.relative_to(EXAMPLES).parts) for path in found}


def test_the_index_lists_every_program_and_nothing_else():
    before = re.search(r"still run: (.*?)\n\n", INDEX, re.DOTALL)[1]
    listed = {re.search(r"examples\.([\w.]+)", row[2])[1] for row in ROWS}
    shorter = set(re.findall(r"examples\.(\w+)", before))
    assert listed | shorter == programs()
    assert not listed & shorter


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_links_to_its_program(row):
    name, target = re.fullmatch(r"\[([\w.]+)\]\(([\w./]+)\)", row[0]).groups()
    assert (EXAMPLES / target).exists()
    assert f"`python -m examples.{name}" in row[2]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", INDEX))))
def test_every_link_of_the_index_leads_somewhere(link):
    assert (EXAMPLES / link).exists()


def last_line(name):
    """What the index says that a one-screen example prints in the end."""
    (found,) = (row[4].strip("` |") for row in ROWS if row[0].startswith(f"[{name}]"))
    return found
