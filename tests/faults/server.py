"""A process that has imported everything and forks one command line after the other, each killed when told.

Importing takes seconds, a toy's run less than one: so fifty killed runs take minutes. Reads JSON lines with `argv`,
`log` (file for the output), `slow` (seconds that the disk takes to write a file through, so that kills fall into
checkpoints) and `kill_after` (seconds, or null); answers each with a line of the exit status.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def serve() -> None:
    from rectune.cli.app import main
    from rectune.training import checkpoint as checkpoints
    from rectune.training import drift

    drift.NEW_TOKENS = (8, 256)  # a toy's answers need no more
    write = checkpoints.fsync

    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid:
            print(ended(pid, asked["kill_after"]), flush=True)
            continue

        def slowly(path: Path, seconds: float = asked["slow"]) -> None:
            time.sleep(seconds)
            write(path)

        checkpoints.fsync = slowly
        code = 1
        try:
            log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for stream, target in ((0, nothing), (1, log), (2, log)):
                os.dup2(target, stream)
            code = main(asked["argv"])
        except BaseException:  # a forked child: nothing may carry it back into the server's loop
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def ended(pid: int, kill_after: float | None) -> int:
    """The exit status of a child, which is killed after so many seconds unless it has ended by then."""
    if kill_after is not None:
        until = time.monotonic() + kill_after
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(min(0.005, max(0.0, until - time.monotonic())))
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    serve()
