"""`rectune` and `python -m rectune`: the command line of `cli/app.py`.

Its first page is kept as text (by `scripts/make_cli_docs.py`), since to build it takes a quarter of a second of
imports. Terminals that the kept page does not suit get the built one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from shutil import get_terminal_size

PAGE = Path(__file__).parent / "assets" / "help.txt"
WIDTH = 80  # columns of the kept page
_BOLD, _CYAN, _PLAIN = "\x1b[1m", "\x1b[36m", "\x1b[0m"


def main() -> int:
    """Run this process's command line and return its exit code, as `cli.main` does."""
    if sys.argv[1:] in ([], ["--help"], ["-h"]) and _suits():
        page = PAGE.read_text("utf-8")
        if not _coloured():
            for style in (_BOLD, _CYAN, _PLAIN):
                page = page.replace(style, "")
        sys.stdout.write(page)  # its colours are meant: nothing in it comes from data
        return 0
    from rectune.cli.app import main as run

    return run()


def _suits() -> bool:
    """Whether stdout can show the kept page: wide enough, and with lines to draw a frame."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    return encoding == "utf8" and get_terminal_size().columns >= WIDTH and PAGE.is_file()


def _coloured() -> bool:
    """Whether colours are shown: on a terminal that knows them or by FORCE_COLOR, and never with NO_COLOR."""
    forced = os.environ.get("FORCE_COLOR")
    terminal = os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")
    shown = sys.stdout.isatty() and terminal if forced is None else forced != ""
    return shown and not os.environ.get("NO_COLOR")


if __name__ == "__main__":
    sys.exit(main())
