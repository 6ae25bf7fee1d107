"""Self-contained HTML pages: one file, no network, nothing that data could inject.

A template extends `pages/base.html` and is named by its place in the package, such as "diagnosis/page.html". Every
value is escaped unless it is `Markup`, and what would act unseen (control characters, turned direction) is made
visible; a content security policy allows only the scripts that the page was made with, so that markup in a row or an
answer stays text. What is on a page is decided by its room; figures are in `plots.py`.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rectune.runtime.escape import visible
from rectune.runtime.io import translate_disk_errors, write_text


def render(template: str, *, title: str, script: str = "", **values: Any) -> str:
    """The page of a template.

    Args:
        template: Place in the package, such as "diagnosis/page.html"; it extends "pages/base.html".
        title: Of the page.
        script: Place in the package of a JavaScript file that the page runs; "" for none.
        values: What the template names; a name that is missing is an error.
    """
    code = _read(script) if script else ""
    if "</script" in code.lower():
        raise ValueError("a script cannot contain its own end tag")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return (
        _templates()
        .get_template(template)
        .render(
            title=title,
            style=Markup(_read("pages/style.css")),
            script=Markup(code),
            script_source=f"'sha256-{digest}'" if code else "'none'",
            **values,
        )
    )


def write_page(path: Path, page: str) -> Path:
    """Write a page whole or not at all. Raises `UserError` where that is not possible."""
    with translate_disk_errors(path):
        write_text(path, page, errors="replace")  # half a surrogate pair in a row is not worth a page
    return path


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    templates.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f} %"
    templates.filters["thousands"] = lambda number: f"{number:,}"
    return templates


@lru_cache(maxsize=16)
def _read(name: str) -> str:
    return (files("rectune") / name).read_text("utf-8")
