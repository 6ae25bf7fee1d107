"""Links and anchors of the documentation exist, the site has every page, and every public name is on one."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

import rectune
from rectune.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def links(text: str) -> list[str]:
    """Targets of links and images, without those in code."""
    return _LINK.findall(_CODE.sub("", _FENCE.sub("", text)))


def anchors(text: str) -> set[str]:
    """Anchors of the headings that are the same on GitHub, which keeps each space as a hyphen, and on the site."""
    found = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", _FENCE.sub("", text), re.MULTILINE):
        github = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        if github == re.sub("-+", "-", github):
            found.add(github)
    return found


def broken(page: Path, text: str) -> list[str]:
    """Links of a page that lead nowhere; addresses on the network are not looked up."""
    found = []
    for link in links(text):
        path, _, anchor = link.partition("#")
        if re.match("[a-z]+:", link):
            continue
        target = page if not path else page.parent / path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            found.append(link)
    return found


def site() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    return loaded


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text("utf-8")) == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=name)
def test_links_of_the_site_stay_in_the_site(page: Path) -> None:
    docs = (ROOT / "docs").resolve()
    for link in links(page.read_text("utf-8")):
        if not re.match("[a-z]+:|#", link):
            assert (page.parent / link).resolve().is_relative_to(docs), f"{link} is not part of the site"


def test_a_broken_link_or_anchor_is_found(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# A heading: with `code`\n\n## Twice  spaced\n```\n# no heading\n```\n")
    text = (
        "[a](other.md) [b](other.md#a-heading-with-code) ![c](none.png) [d](other.md#no-heading) [e](#here) "
        "[f](https://example.org/none) `[g](none.md)` [h](other.md#twice--spaced)\n# Here\n```\n[i](none.md)\n```\n"
    )
    page.write_text(text)
    assert broken(page, text) == ["none.png", "other.md#no-heading", "other.md#twice--spaced"]


def test_the_site_has_every_page_once() -> None:
    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in pages(value)]

    docs = ROOT / "docs"
    assert sorted(pages(site()["nav"])) == sorted(p.relative_to(docs).as_posix() for p in docs.rglob("*.md"))


def test_the_first_page_names_every_verb() -> None:
    named = set(re.findall(r"`rectune (\w+)", (ROOT / "docs" / "index.md").read_text("utf-8")))
    assert named == {name for name in app if not name.startswith("-")}


def test_every_public_name_is_on_one_page() -> None:
    text = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = Counter(re.findall(r"^::: rectune\.(\w+)$", text, re.MULTILINE))
    assert dict(shown - Counter(["objectives"])) == dict.fromkeys(rectune.__all__, 1)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_the_text_names_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for path in re.findall(r"`((?:tests|scripts|benchmarks|examples|docs|src/rectune)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), f"{path} does not exist"
