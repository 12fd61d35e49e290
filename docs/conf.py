"""Configuration of the documentation: `python -m sphinx -W -n docs site`.

Everything builds offline: inventories of other projects are committed, tutorials run on
data that they make, and reports are copied from `examples/results`.
"""

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

project = "optax_clip"
author = "The optax_clip authors"
copyright = author  # noqa: A001 (the name is Sphinx's)
settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
release = version = settings.get("version") or re.search(
    r'__version__ = "(.+)"', (ROOT / "optax_clip" / "__init__.py").read_text()
).group(1)
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


# Pages that are written elsewhere, and where the site has them.
ELSEWHERE = {
    ROOT / "examples" / "results": DOCS / "generated" / "results",
    ROOT / "benchmarks" / "README.md": DOCS / "generated" / "benchmarks.md",
    ROOT / "CHANGELOG.md": DOCS / "generated" / "changelog.md",
}


def copy_pages(app):
    """Copies the pages from elsewhere, with their figures and with links that work."""
    for source, target in ELSEWHERE.items():
        shutil.rmtree(target, ignore_errors=True)
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            copy = target / path.relative_to(source)
            if path.suffix in {".md", ".png", ".svg"}:
                copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".md":
                copy.write_text(with_links_of_the_site(path))
            elif path.suffix in {".png", ".svg"}:
                shutil.copyfile(path, copy)


def with_links_of_the_site(page):
    """Returns a page with links to pages of the site, and to no other local file."""

    def link(match):
        text, address = match.groups()
        if "://" in address or address.startswith("#"):
            return match.group()
        target = (page.parent / address.split("#")[0]).resolve()
        for source, copy in ELSEWHERE.items():
            if target.is_relative_to(source) and target.suffix == ".md":
                target = copy / target.relative_to(source)
        if target.is_relative_to(DOCS):
            return f"[{text}](/{target.relative_to(DOCS)})"
        if repository:
            return f"[{text}]({repository}/blob/main/{target.relative_to(ROOT)})"
        return text

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)]+)\)", link, page.read_text())


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
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-signature", names_of_fields)
