"""Self-contained pages from templates: one HTML file, no network, nothing that data could inject; or Markdown.

A template is named by its place in the package, such as "diagnosis/page.html". Every text is escaped unless it is
`Markup`, and what would act unseen (control characters, turned direction) is made visible. A content security policy
allows only the script that the page was made with, so that markup in a row or an answer stays text.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from rectune.errors import visible
from rectune.pages.format import FORMATS
from rectune.runtime.io import translate_disk_errors, write_text

_SPACES = str.maketrans({"\n": "⏎", "\t": "⇥"})
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~!$&])")


def render_html(template: str, *, title: str, script: str = "", **values: object) -> str:
    """The page of a template that extends "pages/base.html".

    Args:
        template: Place in the package, such as "diagnosis/page.html".
        title: Of the page.
        script: Place in the package of a JavaScript file that the page runs; "" for none.
        values: What the template names; a name that is missing is an error.
    """
    code = _read(script) if script else ""
    if "</script" in code.lower():
        raise ValueError("a script cannot contain its own end tag")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    values |= {"script": Markup(code), "script_source": f"'sha256-{digest}'" if code else "'none'"}
    return _templates(visible).get_template(template).render(title=title, **values)


def render_markdown(template: str, **values: object) -> str:
    """The Markdown of a template; a text in it stays text, on one line."""
    return _templates(escape_markdown).get_template(template).render(**values)


def escape_markdown(text: str) -> Markup:
    """Text that stays text, on one line: it cannot break a table, start a heading or run as HTML."""
    return Markup(_MARKDOWN.sub(r"\\\1", " ".join(visible(text).split())))


def code_span(text: str) -> Markup:
    """A Markdown code span, whatever backticks the text has; not for tables, where a bar would end the cell."""
    text = " ".join(visible(text).split())
    mark = "`" * (1 + _longest_run(text))
    space = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return Markup(f"{mark}{space}{text or ' '}{space}{mark}")


def code_block(text: str) -> Markup:
    """A Markdown code block that no line of the text can end."""
    mark = "`" * max(3, _longest_run(text) + 1)
    return Markup("\n".join([f"{mark}text", *(visible(text) or "(nothing)").splitlines(), mark]))


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def write_page(path: Path, page: str) -> Path:
    """Write a page whole or not at all. Raises `UserError` where that is not possible."""
    with translate_disk_errors(path):
        write_text(path, page, errors="replace")  # half a surrogate pair in a row is not worth a page
    return path


@lru_cache(maxsize=2)
def _templates(clean: Callable[[str], str]) -> jinja2.Environment:
    """The templates; `clean` is what becomes of each text that is not `Markup`, before HTML's own escaping."""
    templates = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
        extensions=["jinja2.ext.do"],
    )
    templates.filters |= {function.__name__: function for function in (*FORMATS, code_span, code_block)}
    templates.filters |= {
        "one_blank_line": lambda text: Markup(re.sub(r"\n{3,}", "\n\n", text)),
        "html_line": lambda text: escape(" ".join(visible(text).split())),
        "spaces": lambda text: (
            text.translate(_SPACES) if text.strip() else text.translate(_SPACES).replace(" ", "␣")
        ),
    }
    templates.globals["style"] = Markup(_read("pages/style.css"))
    templates.globals["ramps"] = Markup(_read("pages/ramps.css"))
    return templates


@lru_cache(maxsize=16)
def _read(name: str) -> str:
    return (files("rectune") / name).read_text("utf-8")
