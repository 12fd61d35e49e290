"""Asserts what the installed wheel is: the package alone, typed, licensed, light."""

import importlib.metadata
import pathlib
import sys

import optax_clip

distribution = importlib.metadata.distribution("optax_clip")
files = {str(path) for path in distribution.files or ()}
folders = {pathlib.PurePath(name).parts[0] for name in files}
version = distribution.version

assert folders == {"optax_clip", f"optax_clip-{version}.dist-info"}, folders
assert "optax_clip/py.typed" in files
assert f"optax_clip-{version}.dist-info/licenses/LICENSE" in files
assert distribution.metadata["License-Expression"] == "Apache-2.0"
assert pathlib.Path(optax_clip.__file__).is_relative_to(sys.prefix), optax_clip
assert not {"flax", "matplotlib"} & sys.modules.keys()
print(f"optax_clip {version}: {len(files)} files, imported on its own")
