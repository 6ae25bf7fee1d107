"""Write docs/cli.md and the kept first page from what `--help` prints; with --check only say whether they are true.

python scripts/make_cli_docs.py [--check]
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from rectune.__main__ import PAGE as FIRST_PAGE
from rectune.__main__ import WIDTH
from rectune.cli.app import app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
INTRODUCTION = """\
# Command line

What `--help` prints, by `scripts/make_cli_docs.py`. Results go to stdout, progress to stderr. Exit code 0:
done, 2: a mistake in the input (one line says which), 130: interrupted, 1: a defect of rectune.
"""


def sections() -> Iterator[str]:
    """The help of the program and of each of its verbs."""
    yield INTRODUCTION
    verbs = [name for name in app if not name.startswith("-")]
    for tokens in ([], *([verb] for verb in verbs)):
        page = io.StringIO()
        app.help_print(tokens, console=Console(file=page, width=110, color_system=None, force_terminal=False))
        text = "\n".join(line.rstrip() for line in page.getvalue().strip().splitlines())
        yield f"## {' '.join(['rectune', *tokens])}\n\n```\n{text}\n```\n"


def first_page() -> str:
    """What `rectune --help` prints in a terminal with colours."""
    page = io.StringIO()
    app.help_print([], console=Console(file=page, width=WIDTH, color_system="standard", force_terminal=True))
    return page.getvalue()


def main() -> int:
    pages = {PAGE: "\n".join(sections()), FIRST_PAGE: first_page()}
    if "--check" not in sys.argv[1:]:
        for path, text in pages.items():
            path.write_text(text, "utf-8")
        return 0
    for path, text in pages.items():
        if not path.is_file() or path.read_text("utf-8") != text:
            print(
                f"{path.name} is not what --help prints; run python scripts/make_cli_docs.py", file=sys.stderr
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
