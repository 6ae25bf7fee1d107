"""The page of a diagnosis shows real rows to everyone (keyboard, phone, dark mode), and runs nothing it is given."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diagnosed import diagnosis
from rectune.diagnosis.page import render_page
from rectune.pages.render import write_page
from rectune.records import Diagnosis
from rectune.training.metrics import PROBABILITY_BINS

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{ 7*7 }}"
)
LUMINANCE = """colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b }"""

Open = Callable[..., Any]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a diagnosis; at the end, nothing was asked from elsewhere and the console is empty."""
    tabs: list[Any] = []
    asked: list[str] = []
    said: list[str] = []

    def open_page(found: Any, *, width: int = 1000, scheme: str = "light", script: bool = True) -> Any:
        tab = browser.new_page(
            color_scheme=scheme, viewport={"width": width, "height": 700}, java_script_enabled=script
        )
        tabs.append(tab)
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(write_page(tmp_path / "page.html", render_page(Diagnosis.model_validate(found))).as_uri())
        return tab

    yield open_page
    for tab in tabs:
        tab.close()
    assert set(asked) <= {(tmp_path / "page.html").as_uri()}
    assert not said


def grounds(tab: Any, row: int = 1) -> list[str]:
    """Colour behind each target of a row."""
    found: list[str] = tab.eval_on_selector_all(
        f"#row-{row} .t", "tokens => tokens.map(token => getComputedStyle(token).backgroundColor)"
    )
    return found


def choose(tab: Any, name: str) -> None:
    """Pick a colouring with the keyboard alone."""
    tab.focus("input[name=colour]:checked")
    for _ in range(20):
        if (
            tab.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.value")
            == name
        ):
            return
        tab.keyboard.press("ArrowRight")
    raise AssertionError(f"no colouring {name}")


def test_the_page_shows_what_the_file_holds(show: Open) -> None:
    found = diagnosis()
    text = show(found).inner_text("body")
    verdict = found["verdict"]
    for said in (
        verdict["sentence"],
        verdict["confidence"],
        *verdict["next"],
        verdict["reasons"][0]["source"],
    ):
        assert said in text
    for risk in found["risks"]:
        assert risk["remedy"] in text
    for name in ("operators and LaTeX", "10% to 25%", "web", *(one["label"] for one in found["objectives"])):
        assert name in text
    assert f"{found['overall']['mean_p']:.3f}" in text and "3e-19" in text


def test_the_continuum_marks_the_mean_probability(show: Open) -> None:
    found = diagnosis()
    found["overall"]["mean_p"] = 0.82
    found["verdict"]["position"] = "strong"
    tab = show(found)
    left, right, at = tab.evaluate(
        """(() => { const strip = document.querySelector('.strip').getBoundingClientRect();
        const mark = document.querySelector('.marker').getBoundingClientRect();
        return [strip.left, strip.right, (mark.left + mark.right) / 2] })()"""
    )
    assert (at - left) / (right - left) == pytest.approx(0.82, abs=0.005)
    zone = tab.locator(".here").bounding_box()
    assert zone["x"] < at < zone["x"] + zone["width"]
    assert "0.820" in tab.get_attribute(".continuum", "aria-label")


def test_tokens_keep_their_text(show: Open) -> None:
    found = diagnosis(rows=2)
    tab = show(found)
    for number, one in enumerate(found["examples"], 1):
        shown = tab.eval_on_selector(f"#row-{number} .tokens", "row => row.textContent")
        assert shown.replace("↵", "") == "".join(one["tokens"])
        assert shown.count("↵") == sum(
            text.count("\n")
            for text, is_target in zip(one["tokens"], one["supervised"], strict=True)
            if is_target
        )
    assert tab.eval_on_selector(".tokens", "row => getComputedStyle(row).whiteSpaceCollapse") == "preserve"


def test_probability_is_coloured_without_a_script(show: Open) -> None:
    found = diagnosis(rows=1)
    tab = show(found, script=False)
    p = [x for x in found["examples"][0]["p"] if x is not None]
    classes = re.findall(r'class="t p(\d+)"', tab.content())
    assert [int(number) for number in classes] == [
        max(i for i, edge in enumerate(PROBABILITY_BINS[:-1]) if edge <= x) for x in p
    ]
    assert not tab.is_visible("#switch")


def test_the_keyboard_switches_the_colouring(show: Open) -> None:
    found = diagnosis()
    tab = show(found)
    by_p = grounds(tab)
    seen = {tuple(by_p)}
    for name in ("e", "weight of sft", "weight of dft", "weight of focal gamma=2"):
        choose(tab, name)
        seen.add(tuple(grounds(tab)))
    assert len(seen) == 5
    choose(tab, "weight of sft")
    assert len(set(grounds(tab))) == 1  # every target has weight 1
    choose(tab, "weight of sequence_dft")
    assert tab.inner_text("#legend .end") == "3.0e-19"  # its own scale, and the legend says so
    choose(tab, "p")
    assert grounds(tab) == by_p


def test_what_stands_out_is_improbable_and_what_is_heavy(show: Open) -> None:
    """Contrast with the page's ground is monotone: in p downwards, in weight upwards."""
    for scheme in ("light", "dark"):
        tab = show(diagnosis(), scheme=scheme)
        ground = tab.evaluate(f"({LUMINANCE})(getComputedStyle(document.documentElement).backgroundColor)")
        for ramp in "pew":
            steps = tab.evaluate(
                f"""(() => {{ const probe = document.createElement('i'); document.body.append(probe);
                return [...Array(13).keys()].map(k => {{ probe.className = '{ramp}' + k;
                return ({LUMINANCE})(getComputedStyle(probe).backgroundColor) }}) }})()"""
            )
            away = [abs(step - ground) for step in steps]
            assert away == sorted(away, reverse=ramp == "p"), (scheme, ramp)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_keeps_its_text_readable(show: Open, scheme: str) -> None:
    tab = show(diagnosis(), scheme=scheme)
    contrasts = tab.evaluate(
        f"""(() => {{ const luminance = {LUMINANCE}, found = {{}};
        const probe = document.createElement('span'); document.querySelector('.tokens').append(probe);
        for (const ramp of 'pew') for (let k = 0; k < 13; k++) {{
            probe.className = 't ' + ramp + k; const style = getComputedStyle(probe);
            const [low, high] = [luminance(style.color), luminance(style.backgroundColor)].sort((a, b) => a - b);
            found[ramp + k] = (high + 0.05) / (low + 0.05) }}
        const soft = getComputedStyle(document.querySelector('.prompt')).color;
        const ground = getComputedStyle(document.documentElement).backgroundColor;
        const [low, high] = [luminance(soft), luminance(ground)].sort((a, b) => a - b);
        found.prompt = (high + 0.05) / (low + 0.05); return found }})()"""
    )
    assert len(contrasts) == 40
    assert min(contrasts.values()) >= 4.5, contrasts


def test_a_token_tells_its_figures_to_the_keyboard(show: Open) -> None:
    found = diagnosis(rows=2)
    found["examples"][0]["p"][-2] = 0.0123
    found["examples"][0]["top"][-2] = " other\n"
    tab = show(found)
    assert tab.is_hidden("#detail")
    assert tab.get_attribute("#said", "aria-live") == "polite"
    choose(tab, "weight of dft")
    tab.keyboard.press("Tab")  # one stop a row
    assert tab.evaluate("document.activeElement === document.querySelector('#row-1 .t')")
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowLeft")
    said = tab.text_content("#said")
    for part in ("p 0.0123", "first choice is  other↵", "entropy", "punctuation", "weight of dft"):
        assert part in said
    assert tab.locator("#weights li").count() == 6
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")  # on into the next row
    assert tab.evaluate("document.activeElement === document.querySelector('#row-2 .t')")
    tab.keyboard.press("ArrowDown")
    first, second = tab.evaluate(
        "[document.querySelector('#row-2 .t'), document.activeElement].map(token => token.getBoundingClientRect().top)"
    )
    assert second > first
    assert tab.locator("#row-2 [tabindex='0']").count() == 1
    assert tab.evaluate(
        """(() => { const token = document.activeElement.getBoundingClientRect();
        return token.top >= document.querySelector('#switch').getBoundingClientRect().bottom - 1
            && token.bottom <= document.querySelector('#detail').getBoundingClientRect().top + 1 })()"""
    )


def test_a_token_tells_its_figures_to_the_mouse_and_to_a_finger(show: Open) -> None:
    tab = show(diagnosis(rows=2))
    tab.hover("#row-1 .t >> nth=3")
    pointed = tab.inner_text("#said")
    tab.click("#row-1 .t >> nth=5")
    held = tab.inner_text("#said")
    assert pointed != held
    tab.hover("#row-1 .t >> nth=3")
    assert tab.inner_text("#said") == pointed
    tab.hover("h2#rows")
    assert tab.inner_text("#said") == held


def test_risks_lead_to_the_rows_that_are_shown(show: Open) -> None:
    tab = show(diagnosis())
    assert tab.locator(".risk a").count() == 1  # the other row is not among the shown
    tab.click(".risk a")
    tab.wait_for_function("location.hash === '#row-1'")
    top = tab.evaluate("document.querySelector('#row-1').getBoundingClientRect().top")
    assert 0 <= top < 350


@pytest.mark.parametrize("width", [360, 1000])
def test_the_page_never_scrolls_sideways(show: Open, width: int) -> None:
    found = diagnosis(rows=2)
    long = "x" * 400
    found["examples"][0]["where"] = found["model"] = found["verdict"]["next"][0] = long
    found["examples"][0]["tokens"][-2] = long
    found["by_source"][0]["name"] = found["risks"][0]["evidence"] = long
    tab = show(found, width=width)
    tab.click("#row-1 .t >> nth=-2")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_in_the_data_runs(show: Open) -> None:
    """Every text of the file is replaced by markup; it is shown as text wherever it is shown."""

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            # Labels of objectives and classes are keys, too.
            names = {key: HOSTILE + key if key in LABELS else key for key in value}
            return {names[key]: inner if key in FIXED else poison(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [poison(inner) for inner in value]
        return HOSTILE + value if isinstance(value, str) else value

    found = diagnosis(rows=2)
    FIXED = ("severity", "position", "confidence")
    LABELS = {*found["examples"][0]["weights"], *found["objectives"][0]["share_by_class"]}
    poisoned = poison(found)
    tab = show(poisoned)
    choose(tab, "weight of " + HOSTILE + "dft")
    tab.click("#row-1 .t >> nth=0")
    tab.wait_for_timeout(50)
    assert "owned" in tab.title() and tab.title() != "owned"  # the text of it
    assert tab.locator("img").count() == 0
    assert tab.locator("script").count() == 2  # the data and the page's own
    text = tab.evaluate("document.body.textContent")
    assert text.count(HOSTILE) > 100 and "49" not in tab.inner_text(".verdict .sentence").replace("7*7", "")
    assert HOSTILE in tab.text_content("#said") and HOSTILE in tab.text_content("#weights")


def test_the_data_survives_as_json_and_the_page_is_small() -> None:
    found = diagnosis(rows=12, repeat=5)
    tokens = sum(len(one["tokens"]) for one in found["examples"])
    assert tokens > 12 * 300
    page = render_page(Diagnosis.model_validate(found))
    assert page == render_page(Diagnosis.model_validate(found))
    assert len(page.encode()) < 1_500_000
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    rows = json.loads(data[1])["rows"]
    assert [x for one in rows for x in one["p"]] == [
        x for one in found["examples"] for x in one["p"] if x is not None
    ]
