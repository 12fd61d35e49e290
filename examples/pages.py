"""Reports of experiments: tables and pictures as Markdown, and as one HTML file."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from examples import run_folder


class Table(NamedTuple):
    """A table of text; the first column holds the names of the rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Content(NamedTuple):
    """What a report says. Text may have `code`, cells may be **bold**."""

    title: str
    provenance: str
    tables: Sequence[Table]
    pictures: Sequence[Path]


def write(folder: Path, content: Content) -> list[Path]:
    """Writes report.md, which names the pictures, and report.html, which has them."""
    texts = {"report.md": _markdown(content), "report.html": _page(content)}
    for name, text in texts.items():
        run_folder.write_text(folder / name, text)
    return [folder / name for name in texts]


def as_markdown(table: Table) -> str:
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown(content: Content) -> str:
    parts = [f"# {content.title}", content.provenance]
    for table in content.tables:
        parts += [f"## {table.title}", as_markdown(table)]
    parts += [f"![{path.stem}]({path.name})" for path in content.pictures]
    return "\n\n".join(parts) + "\n"


def _page(content: Content) -> str:
    title = html.escape(content.title)
    parts = [f"<h1>{title}</h1>", f"<p>{_inline(content.provenance)}</p>"]
    for path in content.pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<img alt="{path.stem}" src="data:image/png;base64,{data}">')
    for table in content.tables:
        rows = [_row("th", table.header), *(_row("td", row) for row in table.rows)]
        parts.append(f"<h2>{html.escape(table.title)}</h2>")
        parts.append("<table>" + "\n".join(rows) + "</table>")
    return _HTML.format(title=title, body="\n".join(parts))


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_inline(x)}</{tag}>" for x in cells) + "</tr>"


def _inline(text: str) -> str:
    escaped = html.escape(text)
    for mark, tag in (("**", "b"), ("`", "code")):
        pieces = escaped.split(mark)
        escaped = "".join(
            f"<{tag}>{piece}</{tag}>" if i % 2 else piece
            for i, piece in enumerate(pieces)
        )
    return escaped


_HTML = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; }}
th, td {{ border: 1px solid #ccc; padding: .25em .6em; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }}
</style>
<body>
{body}
</body></html>
"""
