"""Values between checker and candidate: plain data as JSON lines, everything else as a numbered handle.

Data is rebuilt on the other side from built-in types, so that no method of the candidate, `__eq__` included,
ever runs in the checker. Subclasses (Counter, namedtuple, IntEnum) arrive as the built-in type they extend.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from typing import Any, BinaryIO

MAX_LINE = 2**24
"""Bytes of the longest message."""


class Closed(Exception):
    """The other side is gone, or does not keep to the protocol."""


def send(pipe: BinaryIO, message: Any) -> None:
    """Write one message that is already encoded."""
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """Read one message, not yet decoded; Closed at the end."""
    line = pipe.readline(MAX_LINE)
    if not line.endswith(b"\n"):
        raise Closed
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise Closed from None


def encode(value: Any, handle: Callable[[Any], int]) -> Any:
    """JSON for `value`; `handle` numbers what is not data."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return ["i", int.__format__(value, "x")]  # decimal digits would be limited, and slow
    if isinstance(value, float):
        return ["f", float.__repr__(value)]
    kind: Any
    for kind, name in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z")):
        if isinstance(value, kind):
            return [name, [encode(one, handle) for one in kind.__iter__(value)]]
    if isinstance(value, dict):
        return ["d", [[encode(k, handle), encode(v, handle)] for k, v in dict.items(value)]]
    if isinstance(value, (bytes, bytearray)):
        return ["b", bytes(value).hex()]
    if isinstance(value, complex):
        return ["c", [repr(value.real), repr(value.imag)]]
    if type(value) is range:
        return ["r", [value.start, value.stop, value.step]]
    if isinstance(value, _ITERATORS):
        return ["it", [encode(one, handle) for one in value]]
    if isinstance(value, _VIEWS):
        return ["v", [encode(one, handle) for one in value]]
    if type(value) is type and vars(builtins).get(type.__repr__(value)[8:-2]) is value:
        return ["y", type.__repr__(value)[8:-2]]
    return ["h", handle(value)]


_ITERATORS: Any = (map, filter, zip, enumerate, reversed, type(_ for _ in ()), type(iter([])))
_VIEWS: Any = (type({}.keys()), type({}.items()))


def decode(message: Any, handle: Callable[[int], Any]) -> Any:
    """The value of an encoded message; Closed where it is malformed."""
    if message is None or isinstance(message, (bool, str)):
        return message
    try:
        kind, body = message
        if kind in _SCALARS:
            return _SCALARS[kind](body)
        if kind == "y" and isinstance(named := vars(builtins)[body], type):
            return named
        if kind == "h":
            return handle(int(body))
        if kind == "d":
            return {decode(k, handle): decode(v, handle) for k, v in body}
        return _CONTAINERS[kind]([decode(one, handle) for one in body])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise Closed from None


_SCALARS: dict[str, Callable[[Any], Any]] = {
    "i": lambda digits: int(digits, 16),
    "f": float,
    "b": bytes.fromhex,
    "c": lambda parts: complex(float(parts[0]), float(parts[1])),
    "r": lambda parts: range(*parts),
}
_CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "l": list, "t": tuple, "s": set, "z": frozenset, "it": iter, "v": dict.fromkeys}  # fmt: skip
