"""What may happen over hostile input: an answer or a `UserError`, within 10 s and 1 GiB, inside one folder."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rectune.errors import UserError, visible

SECONDS, WAITING = 10, 60
"""Of the processor; and of waiting besides (for a pipe, a lock), where a busy machine counts, too."""
MEMORY = 1 << 30

_allowed: list[str] = []
_outside: list[str] = []
_WRITES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2,
           "os.truncate": 1, "os.chmod": 1, "shutil.rmtree": 1}  # fmt: skip
"""Events of Python's audit that change files, and how many paths they begin with."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    paths: tuple[Any, ...] = ()
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        paths = arguments[:1] if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else ()
    elif event in _WRITES:
        paths = arguments[: _WRITES[event]]
    elif event == "socket.connect":
        _outside.append(f"{event} {arguments[1:]!r}")
    for path in paths:
        if isinstance(path, (str, bytes)):
            whole = os.path.realpath(os.fsdecode(path))
            if not whole.startswith(tuple(_allowed)):
                _outside.append(f"{event} {whole}")


sys.addaudithook(_audit)


def _late(number: int, frame: Any) -> None:
    raise TimeoutError(f"longer than {SECONDS} s of work or {WAITING} s in all")


@contextmanager
def bounded() -> Iterator[Path]:
    """A folder to work in; fails for another exception than `UserError`, for writing elsewhere, for time and memory."""
    said = ""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        previous = {number: signal.signal(number, _late) for number in (signal.SIGALRM, signal.SIGPROF)}
        _outside.clear()
        _allowed.extend((os.path.realpath(folder) + os.sep, os.path.realpath(folder), "/dev/null"))
        signal.alarm(WAITING)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            yield Path(folder)
        except UserError as error:
            said = str(error)
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            for number, handler in previous.items():
                signal.signal(number, handler)
            _allowed.clear()
    assert "\n" not in said
    visible(said).encode()
    assert not _outside, _outside[:3]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MEMORY, f"{grown >> 20} MiB"
