"""What a person reads: links that lead somewhere, promises of the README, versions."""

import re
from pathlib import Path

import pytest

import optax_clip

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PAGES = [
    page.relative_to(ROOT)
    for page in (
        *ROOT.glob("*.md"),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("docs/**/*.md"),
    )
    if "generated" not in page.parts
]
PROMISES = [
    "python -m pip install -e '.[examples]' && python -m examples.finetune_t5",
    "python -m pip install -e '.[test]' && python -m pytest",
]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_links_to_files_that_exist(page):
    links = LINK.findall((ROOT / page).read_text())
    files = [link.split("#")[0] for link in links if "://" not in link]
    missing = [file for file in files if not (ROOT / page.parent / file).exists()]
    assert not missing


def test_the_readme_is_one_screen_and_has_both_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert set(PROMISES) <= set(lines)


def test_the_citation_and_the_changelog_know_the_version():
    version = re.escape(optax_clip.__version__)
    assert re.search(
        rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.M
    )
    assert re.search(rf"^## {version}", (ROOT / "CHANGELOG.md").read_text(), re.M)
