"""The checker: starts the confined candidate, runs the tests here, and says whether they reached their end.

The tests run in this process and call the candidate's functions through pipes; the candidate's process holds
neither the tests nor the pipe that carries the verdict. So leaving early, printing, patching the checker or
returning objects that equal everything cannot pass. Reads one JSON object from standard input: `program`,
`prelude`, `tests`, `entry_point`, `cpu_seconds`, `memory`; writes `[verdict, protected]` to standard output.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import json
import os
import resource
import sys
from typing import Any, BinaryIO

from candidate import serve
from confine import confine
from wire import Closed, decode, encode, receive, send


class Remote:
    """Something of the candidate's that is not data: a function, a class, an instance."""

    __slots__ = ("_link", "_number")

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        link = self._link
        message = [self._number, link.encode(arguments), link.encode(keywords)]
        result, after = link.ask("call", message)
        for before, now in zip(arguments, after):  # noqa: B905  (whatever the candidate sends)
            _update(before, now)
        return result

    def __getattr__(self, name: str) -> Any:
        return self._link.ask("getattr", [self._number, name])

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("setattr", [self._number, name, self._link.encode(value)])


class Link:
    """The pipes to the candidate."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO) -> None:
        self._requests, self._replies = requests, replies

    def encode(self, value: Any) -> Any:
        return encode(value, _number)

    def ask(self, action: str, body: Any) -> Any:
        send(self._requests, [action, body])
        kind, answer = self.reply()
        if kind == "raised":
            error = getattr(builtins, str(answer), RuntimeError)
            if not (isinstance(error, type) and issubclass(error, Exception)):
                error = RuntimeError
            raise error("raised by the candidate") if error is not UnicodeDecodeError else RuntimeError()
        return decode(answer, lambda number: Remote(self, number))

    def reply(self) -> tuple[Any, Any]:
        reply = receive(self._replies)
        if not isinstance(reply, list) or len(reply) != 2:
            raise Closed
        return reply[0], reply[1]


def _update(before: Any, now: Any) -> None:
    """Do to the tests' own list, dict or set what the candidate did to its copy."""
    if type(before) is type(now) is list:
        before[:] = now
    elif type(before) is type(now) in (dict, set):
        before.clear()
        before.update(now)


def _number(value: Any) -> int:
    if isinstance(value, Remote):
        return object.__getattribute__(value, "_number")
    raise TypeError(f"a {type(value).__name__} cannot be sent to the candidate")


def main() -> None:
    """Fork the candidate before the tests are read, then judge."""
    _LIBC.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE off: no process of the same user can look into this one
    to_candidate, from_checker = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _candidate(to_candidate[0], from_checker[1])
    os.close(to_candidate[0])
    os.close(from_checker[1])
    job = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    with open(to_candidate[1], "wb") as requests, open(from_checker[0], "rb") as replies:
        send(requests, [job[name] for name in ("program", "cpu_seconds", "memory")])
        verdict = _judge(job, Link(requests, replies))
    sys.stdout.write(json.dumps(verdict))


def _judge(job: dict[str, Any], link: Link) -> list[Any]:
    try:
        kind, protected = link.reply()
        if kind != "confined":
            return ["error", str(protected)]
        confine(os.getcwd(), cpu_seconds=job["cpu_seconds"])  # tests come from a file too
        kind, _ = link.reply()
    except Closed:
        return ["wrong", protected] if "protected" in locals() else ["error", "the candidate did not start"]
    if kind != "ran":
        return ["unparsed" if kind == "syntax" else "wrong", protected]
    try:
        _run_tests(job, link)
    except (Exception, SystemExit):  # an assertion, a type that does not fit, a candidate that left: all fail
        return ["wrong", protected]
    return ["correct", protected]


def _run_tests(job: dict[str, Any], link: Link) -> None:
    """Run prelude and tests; names that they use without defining them are the candidate's."""
    sys.setrecursionlimit(10_000)
    names: dict[str, Any] = {"__name__": "tests"}
    exec(job["prelude"], names)
    if entry_point := job["entry_point"]:
        names[entry_point] = link.ask("get", entry_point)
    tree = ast.parse(job["tests"])
    used = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    wanted = used - set(names) - _defined(tree)
    # a candidate may stand in for a built-in only where that is the very function under test
    for name in sorted(wanted - set(dir(builtins)) or (set() if entry_point else wanted)):
        names[name] = link.ask("get", name)
    exec(compile(tree, "tests.py", "exec"), names)
    if entry_point and "check" in names:
        names["check"](names[entry_point])


def _defined(tree: ast.AST) -> set[str]:
    """Names that the tests bind themselves."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
    return found


def _candidate(requests: int, replies: int) -> None:
    """The child: keep the two pipes only, give everything up, then run the program. Does not return."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    inward, outward = os.fdopen(os.dup2(requests, 60), "rb"), os.fdopen(os.dup2(replies, 61), "wb")
    os.closerange(3, 60)
    program, cpu_seconds, memory = receive(inward)
    del sys.path[0]
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        protected = confine(os.getcwd(), cpu_seconds=cpu_seconds)
    except (OSError, ValueError) as error:
        send(outward, ["refused", str(error)])
        os._exit(1)
    send(outward, ["confined", protected])
    try:
        serve(program, inward, outward)
    finally:
        os._exit(0)


_LIBC = ctypes.CDLL(None)

if __name__ == "__main__":
    main()
