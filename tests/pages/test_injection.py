"""Pages over hostile data, in a browser: nothing runs, nothing is asked for, and every text stands there as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hostile import ALL, TEXTS, check_inert, comparison, hostile_diagnosis
from rectune.diagnosis.page import render_page
from rectune.errors import visible
from rectune.pages.render import render_html, write_page
from rectune.records import Diagnosis
from rectune.reporting.report import report

NAME = "<img src=x onerror=owned=1>\u202e\x1b[31m"
"""Of folders and benchmarks: without a slash, which no name can have."""


def a_report(tmp_path: Path) -> Path:
    report([comparison(tmp_path / NAME / "c", name=NAME)], out=tmp_path / "page.html")
    return tmp_path / "page.html"


def a_diagnosis(tmp_path: Path) -> Path:
    return write_page(tmp_path / "page.html", render_page(Diagnosis.model_validate(hostile_diagnosis())))


def bare(tmp_path: Path) -> Path:
    return write_page(tmp_path / "page.html", render_html("pages/base.html", title=ALL, body=""))


PAGES = {"report": (a_report, 0), "diagnosis": (a_diagnosis, 2), "base": (bare, 0)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, (make, _) in PAGES.items()}


@pytest.mark.parametrize("name", PAGES)
def test_the_source_of_a_page_has_only_our_own_tags(name: str, pages: dict[str, Path]) -> None:
    check_inert(pages[name].read_text("utf-8"), scripts=PAGES[name][1])


def test_a_tag_that_is_not_ours_is_seen() -> None:
    for text in TEXTS[:3] + TEXTS[3:4] + TEXTS[5:7] + TEXTS[9:11]:
        with pytest.raises(AssertionError):
            check_inert(f"<p>{text}</p>", 0)


@pytest.mark.parametrize("name", PAGES)
def test_in_a_browser_nothing_acts(browser: Any, name: str, pages: dict[str, Path]) -> None:
    path = pages[name]
    asked: list[str] = []
    acted: list[str] = []
    tab = browser.new_page()
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("dialog", lambda dialog: (acted.append(dialog.message), dialog.dismiss()))
    tab.on("pageerror", lambda error: acted.append(str(error)))
    tab.on("console", lambda message: acted.append(message.text) if message.type == "error" else None)
    tab.goto(path.as_uri())
    for element in tab.query_selector_all("details"):
        element.evaluate("e => e.open = true")
    for element in tab.query_selector_all(".t")[-4:]:  # the script shows what is known of a token
        element.evaluate("e => { e.click(); e.dispatchEvent(new MouseEvent('mouseover', {bubbles: true})); }")
    for element in tab.query_selector_all("input[type=radio]"):
        element.evaluate("e => e.click()")
    tab.wait_for_timeout(200)
    assert asked == [path.as_uri()]
    assert acted == []
    assert tab.evaluate("window.owned === undefined && document.title !== 'owned'")
    assert (
        tab.evaluate("document.querySelectorAll('img, iframe, base, object, embed, form, link').length") == 0
    )
    assert tab.evaluate("getComputedStyle(document.body).display") != "none"
    seen = " ".join(tab.evaluate("document.body.textContent").split())
    for text in TEXTS:
        assert " ".join(visible(text).split()) in seen, text
    assert not set(seen) & set("\x00\x07\x08\x1b\x7f\x85\x9b\u202a\u202e\u2066\u200f\ufffd")
    tab.close()


def test_markdown_over_hostile_data(tmp_path: Path) -> None:
    report([comparison(tmp_path / "c", name=NAME)], out=tmp_path / "page.md", format="markdown")
    text = (tmp_path / "page.md").read_text("utf-8")
    mark, outside = "", []  # of the code block that a line is in
    for line in text.splitlines():
        if mark:
            mark = "" if line == mark else mark
        elif opened := re.match("(`{3,})text$", line):
            mark = opened[1]
        else:
            outside.append(line)
    said = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", "\n".join(outside))  # without code spans
    for tag in ("<script", "<img", "<svg", "<style", "<iframe", "<a ", "<meta"):
        assert tag not in said.replace("\\<", "").lower(), tag
    assert not set(text) & set("\x00\x07\x1b\x9b\u202e")
