"""The project's site: `make docs` builds it into docs/_build, from the repository's root."""

import re

from sphinx.application import Sphinx

from crelu_data.__main__ import _parser as data_parser
from crelu_models.__main__ import parser as models_parser
from docs.parser_tables import directive
from sweeps.__main__ import parser as verb_parser
from sweeps.analysis import invariance, outgoing, pairing, reconstruction, theory
from sweeps.cli.options import parser as page_parser

# What commands.md shows, by the name that it calls each parser.
PARSERS = {
    "sweep": lambda: page_parser("NAME", "", ("crossed",)),
    "verbs": verb_parser,
    "data": data_parser,
    "models": models_parser,
    "pairing": pairing.arguments,
    "invariance": invariance.arguments,
    "reconstruction": reconstruction.arguments,
    "outgoing": outgoing.arguments,
    "theory": theory.arguments,
}

project = "CReLU sweeps"
author = "the authors of CReLU sweeps"
html_title = project
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
highlight_language = "text"
smartquotes = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}


def plain(_app: Sphinx, _what: str, _name: str, _subject: object, _options: object, lines: list[str]) -> None:
    """Take a docstring for plain text: no markup in it, and a paragraph of aligned columns stays as it is typed."""
    paragraphs = "\n".join(lines).strip().split("\n\n")
    shown: list[str] = []
    for paragraph in paragraphs:
        rows = paragraph.split("\n")
        if all(re.match(r"\S+ +\S", row) for row in rows) and any("  " in row.strip() for row in rows):
            shown += ["::", "", *(f"    {row}" for row in rows), ""]
        else:
            shown += [re.sub(r"`([^`]+)`|([|*\\_])", _literal, row) for row in rows] + [""]
    lines[:] = shown


def _literal(match: re.Match[str]) -> str:
    return f"``{match[1]}``" if match[1] else f"\\{match[2]}"


def setup(app: Sphinx) -> None:
    """Add the directive that shows a parser, and take docstrings for plain text."""
    app.add_directive("options", directive(PARSERS))
    app.connect("autodoc-process-docstring", plain)
