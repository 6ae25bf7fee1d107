"""Values between tests and candidate: plain data as JSON lines, everything else as a reference.

Data is rebuilt on the other side from types of Python's own (and numpy's), so that no method of the sender's,
`__eq__` included, ever runs at the receiver. Lists, dicts and other containers that can change are numbered in
the order in which they occur in a request, on both sides alike: the reply says what they hold now, and refers to
them where it returns one of them. So aliases, cycles and changes in place cross as well.
"""

from __future__ import annotations

import builtins
import importlib
import json
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

MAX_LINE = 2**24
"""Bytes of the longest message."""


class Closed(BaseException):
    """The other side is gone, or does not keep to the protocol. No test can take it for the program's exception."""


def send(pipe: BinaryIO, message: Any) -> None:
    """Write one message that is already encoded."""
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def receive(pipe: BinaryIO, longest: int = MAX_LINE) -> Any:
    """Read one message, not yet decoded; Closed at the end."""
    line = pipe.readline(longest)
    if not line.endswith(b"\n"):
        raise Closed
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise Closed from None


class Encoder:
    """Makes JSON of values; `refer` makes it of what is not data. `shared` are the numbered containers."""

    def __init__(self, refer: Callable[[Any], Any], shared: Iterable[Any] = ()) -> None:
        self._refer, self.shared = refer, list(shared)
        self._index = {id(one): number for number, one in enumerate(self.shared)}

    def __call__(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (str, bool, float):
            return value
        if kind is int:
            return value if -(2**53) < value < 2**53 else ["i", format(value, "x")]
        if kind in _CONTAINERS or _is_array(value):
            if (known := self._index.get(id(value))) is not None:
                return ["=", known]
            self._index[id(value)] = len(self.shared)
            self.shared.append(value)
            return self.contents(value)
        if kind is tuple:
            return ["t", [self(one) for one in value]]
        if kind is frozenset:
            return ["z", [self(one) for one in value]]
        if kind in _SCALARS:
            name, parts = _SCALARS[kind]
            return [name, parts(value)]
        if kind in _VIEWS:
            return ["v" + _VIEWS[kind], [self(one) for one in value]]
        if kind.__module__ in _RICH:
            return _encode_rich(value) or self._refer(value)
        return self._refer(value)

    def contents(self, value: Any) -> Any:
        """What a container holds."""
        kind = type(value)
        name = _CONTAINERS.get(kind, "a")
        if name in "lsB":
            return [name, value.hex() if kind is bytearray else [self(one) for one in value]]
        if name in "dCO":
            return [name, [[self(key), self(one)] for key, one in value.items()]]
        if name == "q":
            return [name, [value.maxlen, [self(one) for one in value]]]
        if name == "e":
            return [name, [self(value.default_factory), [[self(k), self(v)] for k, v in value.items()]]]
        if value.dtype.kind not in _PLAIN_DTYPES:
            return self._refer(value)
        return [name, [value.dtype.str, list(value.shape), value.tobytes().hex()]]


class Decoder:
    """The way back: values of an encoded message; Closed where it is malformed."""

    def __init__(self, resolve: Callable[[str, Any], Any], shared: Iterable[Any] = ()) -> None:
        self._resolve, self.shared = resolve, list(shared)
        self.messages: list[Any] = []  # of the containers that it has made

    def __call__(self, message: Any) -> Any:
        if message is None or isinstance(message, (bool, str, int, float)):
            return message
        try:
            kind, body = message
            if kind == "=":
                return self.shared[body]
            if kind in _EMPTY:
                target = _EMPTY[kind](body)
                self.shared.append(target)
                self.messages.append(message)
                self.fill(target, message)
                return target
            if kind == "t":
                return tuple([self(one) for one in body])
            if kind == "z":
                return frozenset([self(one) for one in body])
            if kind in _READ:
                return _READ[kind](body)
            if kind[0] == "v":
                return _view(kind[1:], [self(one) for one in body])
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ImportError):
            raise Closed from None
        return self._resolve(kind, body)

    def fill(self, target: Any, message: Any) -> None:
        """Make a container hold what `message` says."""
        try:
            kind, body = message
            if kind == "a":
                target[...] = _array(body)
            elif kind == "B":
                target[:] = bytes.fromhex(body)
            elif kind in "dCOe":
                target.clear()
                for key, value in body[1] if kind == "e" else body:
                    target[self(key)] = self(value)
                if kind == "e":
                    target.default_factory = self(body[0])
            else:
                values = body[1] if kind == "q" else body
                target.clear()
                for one in values:
                    target.add(self(one)) if kind == "s" else target.append(self(one))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise Closed from None


_CONTAINERS: dict[type, str] = {list: "l", dict: "d", set: "s", bytearray: "B", deque: "q", Counter: "C",
                                OrderedDict: "O", defaultdict: "e"}  # fmt: skip
_EMPTY: dict[str, Callable[[Any], Any]] = {
    "l": lambda _: [], "d": lambda _: {}, "s": lambda _: set(), "B": lambda _: bytearray(),
    "q": lambda body: deque(maxlen=body[0]), "C": lambda _: Counter(), "O": lambda _: OrderedDict(),
    "e": lambda _: defaultdict(), "a": lambda body: _array(body)}  # fmt: skip
_SCALARS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bytes: ("b", bytes.hex),
    complex: ("c", lambda value: [value.real, value.imag]),
    range: ("r", lambda value: [value.start, value.stop, value.step]),
    slice: ("sl", lambda value: [value.start, value.stop, value.step]),
    type(NotImplemented): ("N", lambda _: None),
    type(...): ("E", lambda _: None),
}
_RICH = ("fractions", "decimal", "datetime", "numpy", "pathlib", "pathlib._local")
_VIEWS: dict[type, str] = {type({}.keys()): "k", type({}.values()): "v", type({}.items()): "i"}
_PLAIN_DTYPES = "biufcSUmM"


def is_data(value: Any) -> bool:
    """Whether a value crosses as a copy; what a container holds is not looked at."""
    kind = type(value)
    plain = kind in (int, float, str, bool, type(None), tuple, frozenset)
    return plain or kind in _CONTAINERS or kind in _SCALARS or kind in _VIEWS or kind.__module__ in _RICH


def _is_array(value: Any) -> bool:
    kind = type(value)
    return kind.__module__ == "numpy" and kind.__name__ == "ndarray" and value.dtype.kind in _PLAIN_DTYPES


def _array(body: Any) -> Any:
    dtype, shape, digits = body
    numpy = importlib.import_module("numpy")
    if numpy.dtype(dtype).kind not in _PLAIN_DTYPES:
        raise ValueError(dtype)
    return numpy.frombuffer(bytes.fromhex(digits), dtype).reshape(shape).copy()


def _view(kind: str, values: list[Any]) -> Any:
    if kind == "k":
        return dict.fromkeys(values).keys()
    return dict(values).items() if kind == "i" else dict(enumerate(values)).values()


def _encode_rich(value: Any) -> Any:
    """Fractions, decimals, dates and numpy's scalars; None for what is none of them."""
    name = type(value).__name__
    if name == "Fraction":
        return [name, [format(value.numerator, "x"), format(value.denominator, "x")]]
    if name == "Decimal":
        return [name, str(value)]
    if name == "timedelta":
        return [name, [value.days, value.seconds, value.microseconds]]
    if name in ("date", "time", "datetime"):
        zone = getattr(value, "tzinfo", None)
        if type(zone).__name__ in ("NoneType", "timezone"):  # other zones are more than an offset
            return [name, value.isoformat()]
    if name in ("PosixPath", "PurePosixPath"):
        return [name, str(value)]
    dtype = getattr(value, "dtype", None)
    if dtype is not None and value.shape == () and dtype.kind in _PLAIN_DTYPES:
        return ["numpy", [dtype.str, [], value.tobytes().hex()]]
    return None


def _from_module(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


_READ: dict[str, Callable[[Any], Any]] = {
    "i": lambda digits: int(digits, 16),
    "b": bytes.fromhex,
    "c": lambda parts: complex(float(parts[0]), float(parts[1])),
    "r": lambda parts: range(*parts),
    "sl": lambda parts: slice(*[None if one is None else int(one) for one in parts]),
    "N": lambda _: NotImplemented,
    "E": lambda _: ...,
    "Fraction": lambda parts: _from_module("fractions", "Fraction")(int(parts[0], 16), int(parts[1], 16)),
    "Decimal": lambda digits: _from_module("decimal", "Decimal")(digits),
    "timedelta": lambda parts: _from_module("datetime", "timedelta")(*parts),
    "date": lambda text: _from_module("datetime", "date").fromisoformat(text),
    "time": lambda text: _from_module("datetime", "time").fromisoformat(text),
    "datetime": lambda text: _from_module("datetime", "datetime").fromisoformat(text),
    "PosixPath": lambda text: _from_module("pathlib", "PosixPath")(text),
    "PurePosixPath": lambda text: _from_module("pathlib", "PurePosixPath")(text),
    "numpy": lambda body: _array(body)[()],
}

_NAMED = {("fractions", "Fraction"), ("decimal", "Decimal"), *(("datetime", name) for name in (
    "date", "time", "datetime", "timedelta", "timezone")), *(("collections", name) for name in (
    "deque", "Counter", "OrderedDict", "defaultdict"))}  # fmt: skip


def named_type(module: str, name: str) -> type | None:
    """A type that both sides have and whose instances cross as data, or a built-in one; None for any other."""
    found: Any = None
    if module == "builtins":
        found = vars(builtins).get(name)
    elif (module, name) in _NAMED or (module == "numpy" and "numpy" in sys.modules):
        found = getattr(importlib.import_module(module), name, None)
    return found if isinstance(found, type) else None
