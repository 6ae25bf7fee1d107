"""The page as Markdown for a pull request: the same sentences and tables, no figures.

Everything from data is escaped, so that an answer cannot break a table, start a heading or run as HTML.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rectune.reporting.sections import Section, Table
from rectune.runtime.escape import visible

_MEANS_SOMETHING = re.compile(r"([\\`*_{}\[\]<>|#~!$&])")
_VERDICTS = {"correct": "✓ correct", "wrong": "✗ wrong", "unparsed": "✗ no answer found"}


def render_markdown(data: Mapping[str, Any], parts: Sequence[Section], closing: Sequence[Section]) -> str:
    """The whole text, ending in a line end."""
    lines = [f"# {escape(data['title'])}", ""]
    about = [part for part in (data["model"], data["data"] and f"trained on {data['data']}") if part]
    lines += [escape(" ".join(about)), ""] if about else []
    lines += ["## Verdict", "", *(f"- {escape(sentence)}" for sentence in data["verdict"]["sentences"]), ""]
    for one in data["diagnoses"]:
        risks = f" Risks: {one['risks']}." if one["risks"] else ""
        lines += [f"> Diagnosis before training: {escape(one['sentence'] + risks)}", ""]
    if data["notes"]:
        lines += ["**Missing, damaged or not alike**", ""]
        lines += [f"- {code(note['where'])} {escape(note['what'])}" for note in data["notes"]] + [""]
    for section in parts:
        lines += _section(section)
    if data["answers"]:
        lines += _answers(data["answers"])
    for section in closing:
        lines += _section(section)
    lines += [f"rectune {data['rectune']}"]
    return visible("\n".join(lines)) + "\n"


def escape(text: str) -> str:
    """Text that stays text, on one line."""
    return _MEANS_SOMETHING.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """A code span, whatever backticks the text has; not for tables, where a bar would end the cell."""
    text = " ".join(text.split())
    mark = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{mark}{space}{text or ' '}{space}{mark}"


def fenced(text: str) -> list[str]:
    """A code block that no line of the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    mark = "`" * max(3, longest + 1)
    return [f"{mark}text", *(text or "(nothing)").splitlines(), mark]


def _summary(text: str) -> str:
    """In a block of HTML, where Markdown's own escapes do not count."""
    return f"<summary>{html.escape(' '.join(text.split()))}</summary>"


def _section(section: Section) -> list[str]:
    if not (section.text or section.tables):
        return []
    lines = [f"## {section.title}", ""]
    for text in section.text:
        lines += [escape(text), ""]
    for table in section.tables:
        lines += [*_table(table), ""]
    for caveat in section.caveats:
        lines += [f"<sub>{escape(caveat)}</sub>", ""]
    return lines


def _table(table: Table) -> list[str]:
    rule = ["---" if i < table.text else "---:" for i in range(len(table.header))]
    rows = [
        [f"**{cell}**" if i in table.bold and cell else cell for cell in map(escape, row)]
        for i, row in enumerate(table.rows)
    ]
    lines = ["| " + " | ".join(row) + " |" for row in ([escape(cell) for cell in table.header], rule, *rows)]
    if not table.folded:
        return lines
    return ["<details>", _summary(table.folded), "", *lines, "", "</details>"]


def _answers(found: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["## Answers to the same problems", ""]
    for one in found:
        counts = f"{one['problems']} problems: the models disagree on {one['disagree']}, all are right on {one['all']}"
        lines += [f"### {escape(one['benchmark'])}", "", f"{counts}, none on {one['none']}.", ""]
        for problem in one["shown"]:
            lines += ["<details>", _summary(problem["problem"]), ""]
            lines += [*fenced(problem["prompt"]), "", f"Expected: {code(problem['gold'])}", ""]
            for answer in problem["answers"]:
                verdict = _VERDICTS.get(answer["verdict"], f"? not judged ({escape(answer['verdict'])})")
                lines += [f"**{escape(answer['label'])}** {verdict}", "", *fenced(answer["text"]), ""]
            lines += ["</details>", ""]
    return lines
