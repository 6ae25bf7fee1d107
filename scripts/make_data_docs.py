"""Write the tables of docs/data.md from the schemas; with --check only say whether they are up to date.

python scripts/make_data_docs.py [--check]
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from rectune.data.converters import FORMATS, PAIR, Demonstration, ProblemRecord, Single
from rectune.data.fields import Refusal, Schema, names_of
from rectune.data.messages import IN_MESSAGE, IN_RECORD, Message, Question

PAGE = Path(__file__).resolve().parent.parent / "docs" / "data.md"
BEGIN, END = "<!-- tables by scripts/make_data_docs.py -->\n", "<!-- end of tables -->\n"

SCHEMAS: dict[str, type[Schema]] = {
    **{name: schema for name, schema in FORMATS.items() if name not in PAIR},
    "pairs": FORMATS[PAIR[0]],
    "problems": ProblemRecord,
}


def tables() -> str:
    """Fields by format, then what each field means, then what is refused."""
    parts = ["### Fields by format\n", by_format()]
    sections: dict[str, type[Schema]] = {
        "Any row": Demonstration,
        "Any question": Question,
        "Any single question in rows": Single,
    }
    own = {f"`{name}`": schema for name, schema in SCHEMAS.items()}
    sections |= own | {"A message": Message}
    for title, schema in sections.items():
        parts += [part for part in (f"### {title}\n", f"{summary(schema)}\n", meanings(schema)) if part]
    refused = {**IN_RECORD, **{f"messages[].{name}": refusal for name, refusal in IN_MESSAGE.items()}}
    parts += ["### Refused where they are not read\n", hints(refused)]
    return "\n".join(parts)


def summary(schema: type[Schema]) -> str:
    return " ".join(inspect.getdoc(schema).split("\n\n")[0].split())  # type: ignore[union-attr]  # each has one


def by_format() -> str:
    """Which format reads (r), requires (R) or refuses (-) which field; others are refused or listed as unread."""
    names = dict.fromkeys(name for schema in SCHEMAS.values() for name in schema.names())
    every = [*names, *(name for name in IN_RECORD if name not in names)]
    lines = [f"| | {' | '.join(SCHEMAS)} |", "|---" * (len(SCHEMAS) + 1) + "|"]
    for name in sorted(every, key=str.lower):
        cells = [_cell(schema, name) for schema in SCHEMAS.values()]
        if {*cells} <= {"-", ""}:
            continue  # refused in the last table
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(schema: type[Schema], name: str) -> str:
    if any(name in names for names in schema.required()):
        return "R"
    return "r" if name in schema.names() else "-" if name in schema.refused else ""


def meanings(schema: type[Schema]) -> str:
    """The fields that a schema adds to those of its bases."""

    def rows() -> Iterator[str]:
        for key in filter(schema.model_fields.__contains__, inspect.get_annotations(schema)):
            info = schema.model_fields[key]
            usual, *others = names_of(key, info)
            required = "**required**; " if info.is_required() else ""
            what = f"{required}{' '.join((info.description or '').split())}"
            yield f"| `{usual}` | {', '.join(f'`{name}`' for name in others)} | {what} |"

    lines = list(rows())
    return "\n".join(["| field | also called | |", "|---|---|---|", *lines]) + "\n" if lines else ""


def hints(refused: dict[str, Refusal]) -> str:
    """The refused fields, those with the same advice in one line."""
    together: dict[str, list[str]] = {}
    for name, refusal in refused.items():
        together.setdefault(refusal.hint, []).append(f"`{name}`")
    rows = [f"| {', '.join(names)} | {hint} |" for hint, names in together.items()]
    return "\n".join(["| fields | what to do |", "|---|---|", *rows]) + "\n"


def written() -> str:
    """The page with its tables."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    if "--check" in sys.argv[1:]:
        if written() != PAGE.read_text("utf-8"):
            print("docs/data.md is out of date: run python scripts/make_data_docs.py")
            return 1
        return 0
    PAGE.write_text(written(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
