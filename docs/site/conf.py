"""How the site is built: `make docs`, from the pages of the repository into build/site.

The source folder is the repository's root, so that a link holds in the site as in a checkout.
Nothing comes from elsewhere: the theme has no fonts, and search is an index beside the pages, which
works from a folder too. tests/test_site.py builds the site and follows every link.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from generated import docstring, fill_in, write_example

import hilotoken

project = "hilotoken"
author = "The hilotoken contributors"
release = hilotoken.__version__
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
include_patterns = [
    "docs/**.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/context/README.md",
    "examples/README.md",
    "src/hilotoken/model/README.md",
]
exclude_patterns = [".*", "build", "dist", "out", "runs", "tests", "comfyui"]

smartquotes = False  # or "--compare" gets a dash
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block"]
default_role = "code"  # docstrings write code as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"hilotoken {release}"
html_static_path = ["static"]
html_extra_path = ["root"]  # index.html of the root leads to docs/
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_theme_options = {"source_repository": "", "top_of_page_buttons": []}


def setup(app):
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("build-finished", write_example)
