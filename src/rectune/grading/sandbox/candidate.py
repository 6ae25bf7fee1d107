"""The confined half: runs the candidate's program once, then answers the checker's requests about it.

It never sees the tests, only the arguments of each call. What it does to its own interpreter, to
`assert`, to the built-ins or to this loop changes its own answers at most.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from wire import Closed, decode, encode, receive, send


def serve(program: str, requests: BinaryIO, replies: BinaryIO) -> None:
    """Run `program`, reply `ran` (or what went wrong), then serve requests until they end."""
    names: dict[str, Any] = {"__name__": "candidate"}
    objects: list[Any] = []

    def handle(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    def value_of(message: Any) -> Any:
        return decode(message, objects.__getitem__)

    try:
        code = compile(program, "candidate.py", "exec")
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
        send(replies, ["syntax", None])
        return
    exec(code, names)
    send(replies, ["ran", None])
    while True:
        try:
            action, body = receive(requests)
        except Closed:
            return
        try:
            if action == "get":
                result = names[body]
            elif action == "getattr":
                result = getattr(objects[body[0]], body[1])
            elif action == "setattr":
                setattr(objects[body[0]], body[1], value_of(body[2]))
                result = None
            else:
                arguments, keywords = value_of(body[1]), value_of(body[2])
                result = objects[body[0]](*arguments, **keywords)
                result = (result, arguments)  # which it may have changed in place
            send(replies, ["value", encode(result, handle)])
        except Exception as error:  # whatever the candidate raises is an answer to the checker
            send(replies, ["raised", type(error).__name__])
