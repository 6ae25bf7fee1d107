"""The page in a browser: hostile names and answers stay text, it can be read on a phone, in the dark, and without a
mouse; and Markdown's tables hold whatever is put into them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import combinations, takewhile
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from diagnosed import diagnosis
from rectune.pages.render import code_block, code_span, escape_markdown, write_page
from rectune.reporting.page_model import Report
from rectune.reporting.report import markdown, page, report
from reported import comparison, dropped, edit, race, read_lines, trade, write_lines

SCRIPT = "document.title = 'owned'"
HOSTILE = f'<script>{SCRIPT}</script><img src=x onerror="{SCRIPT}"></pre></td>| `` ``` \n\n# x $\\frac$ {{{{ 7 * 7 }}}}'


@pytest.fixture
def hostile(runs: Path, tmp_path: Path) -> Report:
    """A report in which every text that comes from data is hostile."""
    folder = comparison(
        tmp_path / "<img src=x onerror=alert(1)>", runs, matched_to=HOSTILE, **trade(HOSTILE, steps=(1, 2))
    )
    record = json.loads((folder / "comparison.json").read_text())
    record["arms"][0] |= {"label": HOSTILE, "dropped": dropped(HOSTILE)}
    edit(folder / "comparison.json", **record, race=race(HOSTILE))
    said = diagnosis(rows=1)
    said["verdict"]["sentence"] = said["risks"][0]["name"] = HOSTILE
    (folder / "diagnosis.json").write_text(json.dumps(said))
    for run in folder.glob("runs/*/seed-*"):
        edit(run / "config.json", data=HOSTILE, model=HOSTILE)
        edit(run / "environment.json", platform=HOSTILE)
        edit(run / "environment.json", packages={HOSTILE: HOSTILE})
        probe = json.loads((run / "token_logprobs.json").read_text())
        for row in probe["rows"]:
            row["tokens"] = [HOSTILE] * len(row["tokens"])
        edit(run / "token_logprobs.json", **probe)
        drift = [{**line, "warnings": [HOSTILE]} for line in read_lines(run / "metrics.jsonl")]
        write_lines(run / "metrics.jsonl", drift)
    for evaluation in folder.glob("runs/**/evaluation"):
        of = json.loads((evaluation / "evaluation.json").read_text())
        ids = of["benchmarks"]["sums"]["problem_ids"]
        numbers = {**of["benchmarks"]["sums"], "problem_ids": [HOSTILE + one for one in ids]}
        edit(evaluation / "evaluation.json", benchmarks={HOSTILE: numbers}, warnings=[HOSTILE])
        lines = [
            {**line, "problem_id": HOSTILE + line["problem_id"], "text": HOSTILE, "answer": HOSTILE,
             "turns": [{"role": "user", "content": HOSTILE}], "extracted": HOSTILE}
            for line in read_lines(evaluation / "graded.jsonl")
        ]  # fmt: skip
        write_lines(evaluation / "graded.jsonl", lines)
    return report([folder])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_hostile_data_stays_text(
    browser: Any, hostile: Report, tmp_path: Path, scheme: str, width: int
) -> None:
    html = page(hostile)
    assert (
        "<script" not in html and "<img" not in html and "49" not in re.findall(r"# x \$\\frac\$ (\S+)", html)
    )
    tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    asked: list[str] = []
    wrong: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: wrong.append(message.text))
    path = write_page(tmp_path / "page.html", html)
    tab.goto(path.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    tab.wait_for_timeout(50)
    assert tab.title() != "owned" and asked == [path.as_uri()] and wrong == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert SCRIPT in tab.inner_text(".answer pre >> nth=0")
    shown = tab.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)")
    assert len(shown) >= 12 and all(150 < one <= width for one in shown)
    tab.close()


def test_it_can_be_read_without_a_mouse_and_on_paper(browser: Any, runs: Path, tmp_path: Path) -> None:
    tab = browser.new_page()
    tab.goto(write_page(tmp_path / "page.html", page(report([runs]))).as_uri())
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.tagName") in ("SUMMARY", "DIV")
    tab.evaluate("location.hash = '#cost'")
    assert tab.is_visible("#cost table")  # a link opens the part that it is to
    tab.focus("details summary")
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.parentElement.open")
    assert tab.evaluate("[...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label'))")
    assert tab.evaluate("[...document.querySelectorAll('h1')].length") == 1
    marks = tab.eval_on_selector_all(".answer .by", "all => all.map(one => one.textContent)")
    assert any("✓ correct" in mark for mark in marks) and any(
        "✗" in mark for mark in marks
    )  # not by colour alone
    assert not tab.is_visible("#settings table")
    tab.emulate_media(media="print")
    assert tab.is_visible("#settings table")
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(400, 850), (1200, 900)])
def test_it_opens_with_one_sentence_and_one_figure(
    browser: Any, runs: Path, tmp_path: Path, scheme: str, width: int, height: int
) -> None:
    folder = comparison(tmp_path / "c", runs, **trade(steps=(1, 2, 3)))
    tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
    tab.goto(write_page(tmp_path / "page.html", page(report([folder]))).as_uri())
    assert tab.inner_text(".sentence").startswith("Ship the dft at 0.5: +40.0 (30.0 to 50.0) out of domain")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = "s => document.querySelector(s).getBoundingClientRect()"
    sentence, drawn = (
        tab.evaluate(f"({boxes})('{place}').toJSON()") for place in (".sentence", ".tradeoff svg")
    )
    assert sentence["bottom"] <= drawn["top"] and drawn["bottom"] <= height
    texts = tab.eval_on_selector_all(".tradeoff svg text", TEXTS)
    labels = [text for text in texts if re.search("[a-z]", text["text"])]
    names = {"base", "base, greedy", "the sft", "the dft", "the dft at 0.5", "mean of dft and sft"}
    assert names <= {label["text"] for label in labels}
    assert min(text["size"] for text in texts) >= 9
    for one, other in combinations(texts, 2):
        across = min(one["right"], other["right"]) - max(one["left"], other["left"])
        up = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
        assert across <= 1 or up <= 4, (
            one["text"],
            other["text"],
        )  # lines of text have some room above and below
    ink, ground = tab.evaluate(
        "['.tradeoff svg text', 'html'].map((s, i) => getComputedStyle(document.querySelector(s))"
        "[['fill', 'backgroundColor'][i]])"
    )
    light, dark = sorted(
        (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, ground)), reverse=True
    )
    assert light - dark > 500
    titles = tab.eval_on_selector_all(".tradeoff svg title", "all => all.map(one => one.textContent)")
    assert (
        "the dft at 0.5: in domain 58.0 % (53.0 to 63.0), out of domain 70.0 % (65.0 to 75.0), 2 seeds"
        in titles
    )
    tab.close()


TEXTS = """all => all.map(one => {
    const scale = one.getScreenCTM(), size = parseFloat(getComputedStyle(one).fontSize) * Math.hypot(scale.a, scale.b);
    return {text: one.textContent, size, ...one.getBoundingClientRect().toJSON()};
})"""
"""What the texts of a figure say, where they stand and how large they are on the screen."""


class Tags(HTMLParser):
    """Collects the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.add(tag)


def test_markdown_is_text_and_its_tables_hold(hostile: Report) -> None:
    text = markdown(hostile)
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    allowed = "h1 h2 h3 ul li p code pre sub strong blockquote details summary table thead tbody tr th td"
    assert Tags(rendered).found <= set(allowed.split())
    assert rendered.count("<h1>") == 1
    lines = text.splitlines()
    ruled = [n for n, line in enumerate(lines) if line.startswith("| ---")]
    assert len(ruled) == rendered.count("<table>") >= 8
    for n in ruled:
        rows = [lines[n - 1], *takewhile(lambda line: line.startswith("|"), lines[n:])]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
        assert not lines[n + len(rows) - 1]  # nothing spilled out of the table


def test_escaping() -> None:
    assert escape_markdown("a|b\n# <i> `x` _y_") == "a\\|b \\# \\<i\\> \\`x\\` \\_y\\_"
    assert code_span("a`b|c") == "``a`b|c``"
    assert code_span("`") == "`` ` ``"
    assert code_block("```\nx").splitlines()[0] == "````text"
    assert code_block("").splitlines()[1] == "(nothing)"
