"""The confined half: runs the candidate's program, and never sees the tests or the outputs that they expect.

A program that defines things runs once and then serves the calls of the tests: it sees the arguments of each call.
What it does to its own interpreter, to `assert`, to the built-ins or to this loop changes its own answers at most. A
program that reads standard input runs in a process of its own for each input.
"""

from __future__ import annotations

import atexit
import builtins
import io
import os
import re
import signal
import sys
import types
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from peer import Closed, Peer, receive, send

MAX_PRINTED = 2**20
"""Characters of one call's output that reach the tests."""
_NO_PROGRAM = (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError)


def compile_program(program: str) -> types.CodeType:
    return compile(program, "solution.py", "exec", dont_inherit=True)


def new_module(name: str) -> types.ModuleType:
    """An empty module that can be imported by its name."""
    sys.modules[name] = module = types.ModuleType(name)
    return module


def look_up(module: types.ModuleType, path: str) -> Any:
    """The function that `path` names: `f`, `Solution.f`, `Solution().f`; `f` of a lone `class Solution`, too.

    Raises:
        NameError: `module` has no such thing.
    """
    names = vars(module)
    parts = re.findall(r"(\w+)(\(\))?", path)
    if parts and parts[0][0] not in names and hasattr(names.get("Solution"), parts[0][0]):
        parts = [("Solution", "()"), *parts]
    try:
        found = module
        for name, call in parts:
            found = names[name] if found is module else getattr(found, name)
            found = found() if call else found
    except (KeyError, AttributeError):
        raise NameError(f"name '{path}' is not defined", name=path) from None
    return found


def serve_calls(program: str, inward: BinaryIO, outward: BinaryIO) -> None:
    """Run `program`, send `ran` (or what went wrong), then serve requests until they end."""
    try:
        code = compile_program(program)
    except _NO_PROGRAM:
        send(outward, ["syntax", ""])
        return
    solution = new_module("solution")
    try:
        exec(code, vars(solution))
    except BaseException as error:
        send(outward, ["failed", f"{type(error).__name__}: {error}"[:500]])
        return
    send(outward, ["ran", ""])
    sys.stdout = io.StringIO()
    peer = Peer(inward, outward, lambda _, name, __: look_up(solution, name), printed=_take_printed)
    sys.stdin = _Stdin(peer)
    builtins.input = lambda prompt="": peer.ask("input", "input", str(prompt))
    peer.serve()


def _take_printed() -> str:
    output = sys.stdout
    if not isinstance(output, io.StringIO) or not output.tell():
        return ""
    printed = output.getvalue()[:MAX_PRINTED]
    output.seek(0)
    output.truncate()
    return printed


class _Stdin(io.TextIOBase):
    """What the tests give as standard input."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        return str(self._peer.ask("input", "readline"))

    def read(self, size: int | None = -1) -> str:
        return str(self._peer.ask("input", "read"))


def serve_inputs(inward: BinaryIO, outward: BinaryIO, limit: Callable[[], bool]) -> None:
    """Run the programs that are sent, each with its input, confined by `limit` in a process of its own.

    Whether a process can be confined here, the first one tries and reports before any program is read.
    """

    def try_limit() -> int:
        try:
            print(limit())
        except (OSError, ValueError) as error:
            print(error)
            return 1
        return 0

    status, report = _in_child(try_limit)
    send(outward, ["confined", report.strip() == "True"] if status == 0 else ["refused", report.strip()])
    while True:
        try:
            program, given = receive(inward)
        except Closed:
            return
        try:
            code = compile_program(program)
        except _NO_PROGRAM:
            send(outward, ["syntax", ""])
            continue
        status, printed = _in_child(lambda code=code: _run(code, limit), given)  # type: ignore[misc]
        over_time = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
        send(outward, ["timeout" if over_time else "failed" if status else "ran", printed])


def _run(code: types.CodeType, limit: Callable[[], bool]) -> int:
    """The exit status of a program."""
    limit()
    status = 0
    try:
        exec(code, vars(new_module("__main__")))
    except SystemExit as end:
        status = 0 if end.code in (None, 0, False) else 1
    except BaseException:
        status = 1
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()  # contest programs flush their output there
    return status


def _in_child(action: Callable[[], int], given: str = "") -> tuple[int, str]:
    """Exit status and output of a new process whose standard input is `given`."""
    files = [os.memfd_create(name) for name in ("input", "output")]
    os.write(files[0], given.encode())  # a file in memory takes all at once
    os.lseek(files[0], 0, os.SEEK_SET)
    if (pid := os.fork()) == 0:
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
