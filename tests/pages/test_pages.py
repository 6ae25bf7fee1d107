"""Pages hold what they are given as text, load nothing, and can be read in the dark and on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

from rectune.errors import UserError
from rectune.pages.plots import figure
from rectune.pages.render import render_html, write_page

HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"


def page(tmp_path: Path, body: Any) -> Path:
    return write_page(tmp_path / "page.html", render_html("pages/base.html", title=HOSTILE, body=body))


def test_values_are_text_and_a_figure_is_a_figure() -> None:
    shown = render_html("pages/base.html", title=HOSTILE)
    assert "<script>document" not in shown and "&lt;script&gt;" in shown
    drawn = figure(lambda ax: (ax.plot([1, 2], label=HOSTILE + " $x_"), ax.legend()), label=HOSTILE)
    assert isinstance(drawn, Markup) and "<script>document" not in drawn and "<img" not in drawn
    assert "currentColor" in drawn and "#010203" not in drawn
    assert drawn == figure(lambda ax: (ax.plot([1, 2], label=HOSTILE + " $x_"), ax.legend()), label=HOSTILE)


def test_a_figure_can_follow_the_colours_of_the_page() -> None:
    drawn = figure(lambda ax: ax.bar(0, 1, color="#0a0b00"), label="x", variables={"#0a0b00": "--p0"})
    assert "fill: var(--p0)" in drawn and "#0a0b00" not in drawn


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_page(tmp_path / "file" / "page.html", "")


def test_half_a_character_does_not_stop_a_page(tmp_path: Path) -> None:
    assert "?" in write_page(tmp_path / "page.html", "a \ud800 b").read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_nothing_runs_and_text_can_be_read(browser: Any, tmp_path: Path, scheme: str) -> None:
    tab = browser.new_page(color_scheme=scheme, viewport={"width": 360, "height": 640})
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    path = page(tmp_path, "")
    tab.goto(path.as_uri())
    assert tab.title() == HOSTILE
    assert tab.inner_text("h1") == HOSTILE
    assert asked == [path.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ink, ground = tab.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.documentElement).backgroundColor]"
    )
    dark_ink = sum(map(int, ink[4:-1].split(","))) < 384
    assert dark_ink == (scheme == "light")
    assert dark_ink != (sum(map(int, ground[4:-1].split(","))) < 384)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.close()


def test_markup_that_slips_through_still_does_not_run(browser: Any, tmp_path: Path) -> None:
    """The policy is a second wall: a page into which markup was put by mistake runs nothing."""
    text = render_html("pages/base.html", title="x").replace("<footer>", f"<footer>{HOSTILE}")
    tab = browser.new_page()
    tab.goto(write_page(tmp_path / "page.html", text).as_uri())
    tab.wait_for_timeout(100)
    assert tab.title() == "x"
    tab.close()
