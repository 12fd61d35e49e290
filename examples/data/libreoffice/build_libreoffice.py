#!/usr/bin/env python3
"""Builds English-French pairs from LibreOffice's help, as Debian packages it.

usage: python -m examples.data.libreoffice.build_libreoffice OUT_FOLDER [ROOT]

Downloads libreoffice-help-en-us and libreoffice-help-fr with apt-get and unpacks them
with dpkg-deb, which needs Debian or Ubuntu but neither root nor LibreOffice; or reads
them in ROOT, where they have been unpacked before. Writes libreoffice.tsv.xz
(English<TAB>French, UTF-8, one pair a line) and libreoffice.sources.txt.xz (the page
that each line is from).
"""

import collections
import hashlib
import html.parser
import lzma
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from examples.data.en_fr.build_en_fr import collect, squash

PACKAGES = ("libreoffice-help-en-us", "libreoffice-help-fr")
KNOWN = Path(__file__).with_name("README.md")  # has their SHA-256
HELP = Path("usr/share/libreoffice/help")
BLOCKS = {"p", "h1", "h2", "h3", "h4", "h5", "h6"}


class Paragraphs(html.parser.HTMLParser):
    """The texts of a page under the ids that both languages share.

    Notes and tips have no id and count as one. Where the words depend on the system,
    those for macOS come first and are left out. The footer is for developers.
    """

    def __init__(self):
        super().__init__()
        self.found = collections.defaultdict(list)
        self.block, self.texts, self.spans, self.ended = None, [], [], False

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ended |= tag == "footer"
        if tag in BLOCKS and not self.ended:
            self.block, self.texts, self.spans = attributes.get("id", ""), [], []
        elif tag == "span":
            hidden = "hidden" in attributes and attributes.get("class")
            self.spans.append(bool(hidden))
        elif tag == "br":
            self.texts.append("\n")

    def handle_endtag(self, tag):
        if tag in BLOCKS and self.block is not None:
            self.found[self.block].append(squash("".join(self.texts)))
            self.block = None
        elif tag == "span" and self.spans:
            self.spans.pop()

    def handle_data(self, data):
        if not any(self.spans):
            self.texts.append(data)


def paragraphs(path):
    parser = Paragraphs()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    return parser.found


def messages(root):
    """English, French and the page, where a page has an id as often in both."""
    english = root / HELP / "en-US" / "text"
    french = root / HELP / "fr" / "text"
    for path in sorted(english.rglob("*.html")):
        page = path.relative_to(english)
        if not (french / page).is_file():
            continue
        ours, theirs = paragraphs(path), paragraphs(french / page)
        for key, texts in ours.items():
            if len(texts) == len(theirs.get(key, ())):
                for a, b in zip(texts, theirs[key], strict=True):
                    yield a, b, page.with_suffix("").as_posix()


def unpack(root):
    missing = [tool for tool in ("apt-get", "dpkg-deb") if not shutil.which(tool)]
    if missing:
        raise SystemExit(
            "expected Debian's apt-get and dpkg-deb, found no "
            f"{' and no '.join(missing)}: unpack {' and '.join(PACKAGES)} elsewhere, "
            "and give their ROOT."
        )
    try:
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=root, check=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"apt-get could not download {' and '.join(PACKAGES)}: see its complaint "
            "above; unpack them elsewhere, and give their ROOT."
        ) from error
    for package in sorted(root.glob("*.deb")):
        if hashlib.sha256(package.read_bytes()).hexdigest() not in KNOWN.read_text():
            print(f"{package.name} is not the one in {KNOWN}: expect other pairs.")
    for package in sorted(root.glob("*.deb")):
        print(package.name)
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)


def main(out, root):
    if not (root / HELP).is_dir():
        raise SystemExit(f"{root / HELP}: expected the unpacked help, found no folder.")
    rows, why = collect(messages(root))
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in (
        ("libreoffice.tsv.xz", [f"{a}\t{b}" for a, b, _ in rows]),
        ("libreoffice.sources.txt.xz", [page for *_, page in rows]),
    ):
        data = "".join(f"{line}\n" for line in lines).encode()
        (out / name).write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
        print(f"{name}: {(out / name).stat().st_size:,} bytes")
    print(dict(why), len({page for *_, page in rows}), "pages")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    elif len(sys.argv) == 2:
        with tempfile.TemporaryDirectory() as folder:
            unpack(Path(folder))
            main(Path(sys.argv[1]), Path(folder))
    else:
        raise SystemExit(__doc__)
