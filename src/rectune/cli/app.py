"""The program: one verb, one function of the same name in `commands.py`, and what is said where it fails.

Results go to stdout, progress and messages to stderr. Exit code 0: done, 2: a mistake of the user (one line,
no traceback), 3: a gate does not hold (`rectune compare --require`), 130 or 143: stopped by Ctrl-C or SIGTERM, 1: a
defect of ours.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import get_args

from cyclopts import App, CoercionError, CycloptsError, UnknownCommandError, UnknownOptionError

import rectune
from rectune.cli import VERBS
from rectune.cli.console import messages
from rectune.errors import GateError, UserError, visible
from rectune.runtime.distributed import exit_process
from rectune.runtime.signals import interruptible, stopped_by

app = App(
    name="rectune",
    help="Fine-tune language models on demonstrations so that they generalise.",
    version=rectune.__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
for verb in VERBS:  # by path: `--version` needs none of what they import
    app.command(f"rectune.cli.commands:{verb}_", name=verb)


def run(command: Callable[[], object]) -> int:
    """Run a command with messages on stderr, and return the exit code that the module's docstring names."""
    handler = messages()
    log = logging.getLogger("rectune")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with interruptible():
            command()
    except (UserError, CycloptsError) as error:
        print("rectune:", visible(" ".join(_line(error).split())), file=sys.stderr)
        return 2
    except GateError as error:
        print("rectune:", visible(str(error)), file=sys.stderr)
        return 3
    except BrokenPipeError:  # of `rectune list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:
        print("rectune:", visible(str(error) or "interrupted"), file=sys.stderr)
        return 128 + stopped_by(error)
    except (MemoryError, RuntimeError) as error:
        from rectune.runtime.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        less = "lower a batch size or length, or take a smaller model"
        print(f"rectune: out of memory; what is written so far is kept; {less}", file=sys.stderr)
        return 2
    finally:
        log.removeHandler(handler)
    return 0


def _line(error: Exception) -> str:
    """The error as one line; a flag or verb that other programs call so is answered with ours."""
    from rectune.config.names import OTHER_VALUES, OTHER_VERBS, advice

    if isinstance(error, UnknownOptionError) and error.argument_collection is not None:
        typed = (error.token.keyword or error.token.value).partition("=")[0]
        flags = [name.lstrip("-") for argument in error.argument_collection for name in argument.names]
        if hint := advice(typed, [name.replace("-", "_") for name in flags]):
            return f"unknown option {typed}; {hint}"
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        typed = error.unused_tokens[0]
        if verb := OTHER_VERBS.get(typed):
            return f"unknown command {typed}; use rectune {verb}"
    if isinstance(error, CoercionError) and error.token is not None:
        value = OTHER_VALUES.get(error.token.value)
        if value in get_args(error.target_type):
            return f"{error} Use {value}."
    return str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code."""
    code = run(
        lambda: app(
            arguments, exit_on_error=False, print_error=False, verbose=False, result_action="return_value"
        )
    )
    if arguments is None:
        exit_process(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
