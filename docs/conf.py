"""Configuration of the documentation site, which `bash scripts/docs.sh` builds."""

import os
import re
from pathlib import Path

from pygments.lexer import RegexLexer, words
from pygments.lexers.special import TextLexer
from pygments.token import Comment, Keyword, Number, Operator, String, Text
from sphinx.application import Sphinx

import accmt

os.environ.setdefault("KERAS_BACKEND", "torch")

project = "accmt"
author = "the authors of accmt"
version = release = accmt.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings write code in single backticks

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "accmt"
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

DOCS = Path(__file__).parent
ROOT = DOCS.parent
OUTSIDE = {
    "README.md": "index.md",
    "grammar/README.md": "reference/language.md",
    "benchmarks/README.md": "explanation/benchmarks.md",
    "CONTRIBUTING.md": "explanation/contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files outside of this folder that are pages of the site. The page itself begins with an `include` of the file."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_INCLUDE = re.compile(r"```\{include\} (\S+)\n```\s*")


WORDS = ("if", "by", "keep", "after", "then", "and", "or", "not", "is", "nan", "every")


class RuleLexer(RegexLexer):
    """Highlights the rule language."""

    tokens = {  # noqa: RUF012  (the name and form that Pygments asks for)
        "root": [
            (r"(#|   ).*$", Comment),
            (
                words(WORDS, r"\b", r"\b"),
                Keyword,
            ),
            (r"\"[^\"\n]*\"|'[^'\n]*'", String),
            (r"\b\d+(\.\d+)?\b%?", Number),
            (r"[@/<>=!+*-]", Operator),
            (r"[\w.-]+?(?=[\s@/(),<>=!+*\"']|$)|\s+|.", Text),
        ]
    }


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    """Fill in pages that are files outside of this folder, and point links at pages instead of files."""
    here = DOCS / f"{page}.md"
    text, folder = source[0], here.parent
    if included := _INCLUDE.match(text):
        file = (folder / included[1]).resolve()
        text, folder = f"{file.read_text()}\n{text[included.end() :]}", file.parent

    def linked(link: re.Match[str]) -> str:
        mark, words_, target, anchor = link.groups()
        if re.match(r"[a-z]+:", target):
            return link[0]
        file = (folder / target).resolve()
        within = OUTSIDE.get(os.path.relpath(file, ROOT))
        if within is not None:
            file = DOCS / within
        elif file.is_dir() or not file.is_relative_to(DOCS):
            return words_ if words_.startswith("`") else f"`{os.path.relpath(file, ROOT)}`"
        return f"{mark}[{words_}]({os.path.relpath(file, here.parent)}{anchor or ''})"

    source[0] = _LINK.sub(linked, text)


def setup(app: Sphinx) -> None:
    app.connect("source-read", _read)
    for name in ("rule", "condition", "cadence"):
        app.add_lexer(name, RuleLexer)
    for name in ("mistake", "csv"):
        app.add_lexer(name, TextLexer)
