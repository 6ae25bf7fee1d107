"""`rectune` and `python -m rectune`: the command line of `cli/app.py`."""

from __future__ import annotations

import sys

from rectune.cli import first_page


def main() -> int:
    """Run this process's command line and return its exit code, as `cli.app.main` does."""
    if sys.argv[1:] in ([], ["--help"], ["-h"]):  # without the imports of the others
        sys.stdout.write(first_page() + "\n")
        return 0
    from rectune.cli.app import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
