"""Configuration of the documentation: `python -m sphinx -W -n docs site`.

Everything builds offline: inventories of other projects are committed, tutorials run on
data that they make, and reports are copied from `examples/results`.
"""

import importlib.metadata
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent

# The code of this tree is what is documented, and what the tutorials run.
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tutorials take longer to compile than to run, and twice as long with the newer
# kernels for CPU; jaxlib 0.10 is the last that has others.
flags = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(flags))

project = "optax_clip"
author = "The optax_clip authors"
copyright = author  # noqa: A001 (the name is Sphinx's)
settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
package = (ROOT / "optax_clip" / "__init__.py").read_text()
release = version = package.split('__version__ = "')[1].split('"')[0]
repository = settings.get("urls", {}).get("Repository")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "inventories",
    "tutorials",  # sphinx-gallery makes pages of them in generated/
    "**/*.ipynb",
]
nitpicky = True
default_role = "literal"  # our docstrings write names as `name`
show_warning_types = True

# Markdown
myst_enable_extensions = [
    "amsmath",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
]
myst_heading_anchors = 3

# Docstrings
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the docstrings say it in words
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_use_rtype = False

# Other projects
intersphinx_mapping = {
    name: (address, str(DOCS / "inventories" / f"{name}.inv"))
    for name, address in {
        "python": "https://docs.python.org/3",
        "jax": "https://docs.jax.dev/en/latest",
        "optax": "https://optax.readthedocs.io/en/stable",
        "flax": "https://flax.readthedocs.io/en/latest",
        "numpy": "https://numpy.org/doc/stable",
    }.items()
}
intersphinx_disabled_reftypes = ["std:doc"]

# Tutorials
sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "generated/tutorials",
    "filename_pattern": r"[\\/]\d\d_",  # all of them are run
    "ignore_pattern": r"tiny_model",  # what they import
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "capture_repr": (),
    "doc_module": ("optax_clip",),
    "reference_url": {"optax_clip": None},
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "image_srcset": ["2x"],
    "plot_gallery": True,
}

# Appearance
html_theme = "furo"
html_title = f"optax_clip {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_theme_options = {
    "navigation_with_keys": True,
    **(
        {
            "source_repository": repository,
            "source_branch": "main",
            "source_directory": "docs/",
        }
        if repository
        else {}
    ),
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


# What is written elsewhere, and where the site has it.
ELSEWHERE = {
    ROOT / "examples" / "results": DOCS / "generated" / "results",
    ROOT / "benchmarks" / "README.md": DOCS / "generated" / "benchmarks.md",
    ROOT / "CHANGELOG.md": DOCS / "generated" / "changelog.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def copy_pages(app):
    """Copies the pages from elsewhere, with their figures and with links that work."""
    for source, target in ELSEWHERE.items():
        shutil.rmtree(target, ignore_errors=True)
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            copy = target / path.relative_to(source)
            if path.suffix in {".md", ".png", ".svg"}:
                copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".md":
                copy.write_text(with_links_of_the_site(path.read_text(), path))
            elif path.suffix in {".png", ".svg"}:
                shutil.copyfile(path, copy)


def fit_to_site(app, name, source):
    """Lets a page, which is written for the repository and doctest, fit the site."""
    page = Path(app.env.doc2path(name))
    if page.suffix == ".md" and not name.startswith("generated/"):
        text = with_links_of_the_site(source[0], page)
        source[0] = text.replace("\n\n```\n", "\n```\n")  # that ends an output


def with_links_of_the_site(text, page):
    """Returns the text of a page with links to pages of the site, or without links."""

    def relink(match):
        label, address = match.groups()
        file, hash_sign, anchor = address.partition("#")
        if "://" in address or not file:
            return match.group()
        place = place_on_site((page.parent / file).resolve())
        return f"[{label}]({place}{hash_sign}{anchor})" if place else label

    return LINK.sub(relink, text)


def place_on_site(file):
    """Returns the address of a file from the root of the documentation, or None."""
    for source, copy in ELSEWHERE.items():
        if file.is_relative_to(source) and file.suffix == ".md":
            file = copy / file.relative_to(source)
    if file.parent == DOCS / "tutorials" and file.suffix == ".py":
        file = DOCS / "generated" / "tutorials" / f"{file.stem}.rst"
    if file.is_relative_to(DOCS):
        return f"/{file.relative_to(DOCS)}"
    if repository:
        return f"{repository}/blob/main/{file.relative_to(ROOT)}"
    return None


def skip_fields(app, what, name, obj, skip, options):
    """Leaves out the fields of a NamedTuple, which its docstring describes."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def names_of_fields(app, what, name, obj, options, signature, returned):
    """Leaves out the types in the signature of a NamedTuple."""
    if what == "class" and hasattr(obj, "_fields"):
        return f"({', '.join(obj._fields)})", returned
    return None


def setup(app):
    """Connects the functions above to Sphinx."""
    app.connect("builder-inited", copy_pages, priority=100)
    app.connect("source-read", fit_to_site)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-signature", names_of_fields)
