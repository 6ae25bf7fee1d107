"""The command line: one verb, one function of the same name, which imports what it needs when it is called.

Results go to stdout, progress and messages to stderr. Exit code 0: done, 2: a mistake of the user (one line,
no traceback), 130: interrupted, 1: a defect of ours. Verbs with a flag for every setting are in `verbs.py`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

import rectune
from rectune.errors import UserError

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]

app = App(
    name="rectune",
    help="Fine-tune language models on demonstrations so that they generalise.",
    version=rectune.__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


# By its path, because its flags need pydantic: `rectune --help` would take twice as long.
app.command("rectune.verbs:train", name="train", help="Fine-tune a model on demonstrations.")


@app.command(name="list")
def list_(
    what: Literal["objectives", "benchmarks", "models", "recipes"],
    /,
    *,
    json: Switch = False,
) -> None:
    """Print what there is to choose from.

    Args:
        what: Which list.
        json: Print JSON instead of a table.
    """
    from rectune.listing import LISTS

    print_table(list(LISTS[what]()), as_json=json)


def print_table(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print rows with the same keys on stdout: as JSON, or as a table that is cut nowhere."""
    if as_json:
        import json

        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    width = None if sys.stdout.isatty() else 1000  # a file or a pipe gets one line a row
    Console(width=width, markup=False, highlight=False).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("rectune")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        app(arguments, exit_on_error=False, print_error=False, verbose=False, result_action="return_value")
    except (UserError, CycloptsError) as error:
        print("rectune:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rectune: interrupted", file=sys.stderr)
        return 130
    finally:
        log.removeHandler(handler)
    return 0


if __name__ == "__main__":
    sys.exit(main())
