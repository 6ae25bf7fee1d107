"""Write docs/cli.md from what `--help` prints; with --check only say whether it is true.

python scripts/make_cli_docs.py [--check]
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from rectune.cli import VERBS, first_page
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
    yield f"## rectune\n\n```\n{first_page()}\n```\n"
    for verb in VERBS:
        page = io.StringIO()
        app.help_print([verb], console=Console(file=page, width=110, color_system=None, force_terminal=False))
        text = "\n".join(line.rstrip() for line in page.getvalue().strip().splitlines())
        yield f"## rectune {verb}\n\n```\n{text}\n```\n"


def main() -> int:
    text = "\n".join(sections())
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, "utf-8")
    elif PAGE.read_text("utf-8") != text:
        print(f"{PAGE.name} is not what --help prints; run python scripts/make_cli_docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
