"""Tables as Markdown and on a terminal, and reports made of tables and figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from examples.lab.files import write_text


class Table(NamedTuple):
    """A table of text; the first column holds the names of the rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """For a report."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def titled(self) -> str:
        """For a page, under its title."""
        return f"{self.title}:\n\n{self.markdown()}"

    def text(self) -> str:
        """For a terminal, under its title."""
        return f"{self.title}\n" + tabulate(
            self.rows, self.header, disable_numparse=True
        )


def rounded(value: float) -> str:
    """A number in two digits, as people write it: 0.031, 31, 3,100."""
    return f"{float(f'{value:.2g}'):,.10g}"


def span(values: Sequence[float]) -> str:
    """The lowest and the highest of some numbers, of which there may be none."""
    if not values:
        return "-"
    return f"{rounded(min(values))} to {rounded(max(values))}"


def captioned(image: str, said: str, more: str = "") -> str:
    """A figure in Markdown with what it says in words, and links behind them.

    Who cannot see it hears the first sentence, and then reads all.
    """
    first = said.partition(". ")[0].removesuffix(".")
    return f"![{first}.]({image})\n\n*{' '.join(filter(None, [said, more]))}*"


class Figure(NamedTuple):
    """A figure of a report: its file, and what it says in words."""

    path: Path
    caption: str


class Report(NamedTuple):
    """What a report says, in this order."""

    title: str
    introduction: str
    figures: Sequence[Figure]
    tables: Sequence[Table]
    provenance: str

    def write(self, path: Path) -> Path:
        """Writes it as Markdown; figures lie beside it."""
        parts = [f"# {self.title}", self.introduction]
        parts += [captioned(f.path.name, f.caption) for f in self.figures]
        parts += _sections(self.tables)
        parts += ["## How it was made", self.provenance, _numbers(path.parent)]
        write_text(path, "\n\n".join(part for part in parts if part) + "\n")
        return path


class Made(NamedTuple):
    """A run that a verdict is about: what was run, and how."""

    name: str
    introduction: str
    provenance: str


class Verdict(NamedTuple):
    """What many runs say of a paper's claims, in this order."""

    title: str
    introduction: str
    tables: Sequence[Table]
    runs: Sequence[Made]

    def write(self, path: Path) -> Path:
        """Writes it as Markdown."""
        parts = [f"# {self.title}", self.introduction, *_sections(self.tables)]
        parts.append("## The runs")
        for run in self.runs:
            parts += [f"### {run.name}", run.introduction, run.provenance]
        write_text(path, "\n\n".join(parts) + "\n")
        return path


def _sections(found: Sequence[Table]) -> list[str]:
    return [part for t in found for part in (f"## {t.title}", t.markdown())]


def _numbers(folder: Path) -> str:
    """Links to the files that a report is made of: a summary, where there is one."""
    names = sorted(p.name for p in folder.iterdir() if p.suffix in _DATA)
    names = [name for name in names if name == "summary.json"] or names
    return f"Numbers: {', '.join(f'[{n}]({n})' for n in names)}." if names else ""


_DATA = ".json", ".jsonl", ".xz"
