"""The confined half: runs the candidate's program once, then does what the tests ask of it.

It never sees the tests, only the arguments of each call. What it does to its own interpreter, to
`assert`, to the built-ins or to this loop changes its own answers at most.
"""

from __future__ import annotations

import builtins
import io
import re
import sys
import types
from typing import Any, BinaryIO

from peer import Peer
from wire import send

MAX_PRINTED = 2**20
"""Characters of one call's output that reach the tests."""


def serve(program: str, inward: BinaryIO, outward: BinaryIO) -> None:
    """Run `program`, send `ran` (or what went wrong), then serve requests until they end."""
    try:
        code = compile_program(program)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
        send(outward, ["syntax", ""])
        return
    solution = new_module("solution")
    try:
        exec(code, vars(solution))
    except BaseException as error:
        send(outward, ["failed", f"{type(error).__name__}: {error}"[:500]])
        return
    send(outward, ["ran", ""])
    _peer(solution, inward, outward).serve()


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


def _peer(solution: types.ModuleType, inward: BinaryIO, outward: BinaryIO) -> Peer:
    """The end of the pipes that has the program; its output and input go through them from now on."""

    def give(action: str, target: str, arguments: list[Any]) -> Any:
        return look_up(solution, target)

    sys.stdout = io.StringIO()
    peer = Peer(inward, outward, give, guarded=False, printed=_take_printed)
    sys.stdin = _Stdin(peer)
    builtins.input = lambda prompt="": peer.ask("input", "input", str(prompt))
    return peer


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
