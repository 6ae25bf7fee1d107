"""Programs that read standard input and print: each input in a process of its own, its output compared line by line.

The process that starts them is forked before the expected outputs are read, so no program can find them.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

import candidate
from wire import Closed, receive, send

MAX_OUTPUT = 2**27
"""Bytes of the longest output in a message: no file is larger than 16 MiB, and escapes take six times that."""
TOLERANCE = "1e-5"
"""Relative or absolute, of numbers with a decimal point or an exponent, where the form of the tests allows any."""


def judge(job: dict[str, Any], requests: BinaryIO, replies: BinaryIO) -> tuple[str, str]:
    """The verdict over all `cases` of a job: `[input, output]` each; the first that fails decides."""
    for given, wanted in job["cases"]:
        send(requests, [job["program"], given])
        kind, printed = receive(replies, MAX_OUTPUT)
        if kind == "timeout":
            return kind, ""
        if kind == "syntax":
            return "unparsed", ""
        if kind != "ran" or not same_output(str(printed), wanted, lenient=job["lenient"]):
            return "wrong", ""
    return "correct", ""


def same_output(printed: str, wanted: str, *, lenient: bool) -> bool:
    """Equal lines, up to blanks around them and up to how a number is written.

    Args:
        lenient: Blank lines do not count, and inexact numbers may differ by `TOLERANCE`.
    """
    ours, theirs = ([line.split() for line in text.strip().splitlines()] for text in (printed, wanted))
    if lenient:
        ours, theirs = [line for line in ours if line], [line for line in theirs if line]
    return len(ours) == len(theirs) and all(
        len(a) == len(b) and all(_same_word(x, y, lenient) for x, y in zip(a, b))  # noqa: B905
        for a, b in zip(ours, theirs)  # noqa: B905
    )


def _same_word(ours: str, theirs: str, lenient: bool) -> bool:
    if ours == theirs:
        return True
    from decimal import Decimal, InvalidOperation  # slow to import, seldom needed

    try:
        a, b = Decimal(ours), Decimal(theirs)
        if a == b:
            return True
        exact = not lenient or not any(mark in theirs.lower() for mark in ".e")
        return not exact and abs(a - b) <= Decimal(TOLERANCE) * max(Decimal(1), abs(b))
    except InvalidOperation:
        return False


def serve(inward: BinaryIO, outward: BinaryIO, limit: Callable[[], bool]) -> None:
    """Run the programs that are asked for, each confined by `limit` in a process of its own.

    Whether a process can be confined here, the first one tries and tells before any program is read.
    """
    status, told = _in_child(lambda: _try(limit))
    send(outward, ["confined", told.strip() == "True"] if status == 0 else ["refused", told.strip()])
    while True:
        try:
            program, given = receive(inward)
        except Closed:
            return
        try:
            code = candidate.compile_program(program)
        except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
            send(outward, ["syntax", ""])
            continue
        status, printed = _in_child(lambda code=code: _run(code, limit), given)  # type: ignore[misc]
        over_time = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
        send(outward, ["timeout" if over_time else "failed" if status else "ran", printed])


def _try(limit: Callable[[], bool]) -> int:
    try:
        print(limit())
    except (OSError, ValueError) as error:
        print(error)
        return 1
    return 0


def _run(code: Any, limit: Callable[[], bool]) -> int:
    limit()
    main = candidate.new_module("__main__")
    status = 0
    try:
        exec(code, vars(main))
    except SystemExit as end:
        status = 0 if end.code in (None, 0, False) else 1
    except BaseException:
        status = 1
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()  # contest programs flush their output there
    return status


def _in_child(action: Callable[[], int], given: str = "") -> tuple[int, str]:
    """Exit status and output of a new process whose standard input is `given`."""
    files = [os.memfd_create(name) for name in ("input", "output")]
    os.write(files[0], given.encode())  # a file in memory takes all at once
    os.lseek(files[0], 0, os.SEEK_SET)
    pid = os.fork()
    if pid == 0:
        _become(files, action)
    _, status = os.waitpid(pid, 0)
    with open(files[1], "rb") as output:
        output.seek(0)
        printed = output.read().decode(errors="replace")
    os.close(files[0])
    return status, printed


def _become(files: list[int], action: Callable[[], int]) -> NoReturn:
    status = 1
    try:
        for number, file in enumerate((*files, files[1])):
            os.dup2(file, number)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.closerange(3, 64)
        sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        status = action()
        sys.stdout.flush()
    finally:
        os._exit(status)
