"""Makes the inventories of jax, optax, flax and numpy: `python make_inventories.py`.

An inventory tells Sphinx at which address another project documents a name. Those of
the projects themselves are behind a network connection, which the build must not need,
so these hold only the names that our pages refer to, from `names.toml`. The format is
Sphinx's: four lines of text, then a line for every name, compressed.
"""

import tomllib
import zlib
from pathlib import Path

FOLDER = Path(__file__).parent
HEADER = """# Sphinx inventory version 2
# Project: {project}
# Version: {version}
# The remainder of this file is compressed using zlib.
"""


def lines(pages: dict[str, list[str]]) -> list[str]:
    """Returns the lines of an inventory, sorted by name."""
    entries = []
    for page, names in pages.items():
        for entry in names:
            kind, name = entry.split(":")
            name, _, anchor = name.partition("=")
            address = f"{page.replace('$', name)}#{anchor or '$'}"  # $: the name
            entries.append(f"{name} py:{kind} 1 {address} -\n")
    return sorted(entries)


def main() -> None:
    """Writes an inventory for every project of `names.toml`."""
    for project, found in tomllib.loads((FOLDER / "names.toml").read_text()).items():
        header = HEADER.format(project=project, version=found["version"])
        body = zlib.compress("".join(lines(found["pages"])).encode(), level=9)
        (FOLDER / f"{project}.inv").write_bytes(header.encode() + body)


if __name__ == "__main__":
    main()
