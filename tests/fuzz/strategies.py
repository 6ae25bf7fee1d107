"""Hostile values, records and files for hypothesis: right ones, damaged in values, structure and bytes."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

from hostile import TEXTS

texts = st.one_of(
    st.sampled_from(
        ("", " ", "a", "user", "assistant", "NaN", "../../x", "/etc/passwd", "\ud800", "x" * 3000, *TEXTS)
    ),
    st.text(max_size=40),
    st.text(alphabet="{}[]\\\"'`$#<>%^_0123456789.,eE+-*/()\n\r\t \x00\x1b", max_size=60),
)
numbers = st.one_of(
    st.sampled_from(
        (0, -1, 1, 2**31, -(2**63), 10**400, 1e308, -1e-308, float("nan"), float("inf"), True, False)
    ),
    st.integers(-5, 5),
    st.floats(),
)
scalars = st.one_of(st.none(), numbers, texts)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def spoilt(draw: st.DrawFn, whole: Any, times: int = 3) -> Any:
    """`whole` with some parts of it replaced, removed, doubled or renamed."""
    found = copy.deepcopy(whole)
    for _ in range(draw(st.integers(0, times))):
        part, deep = found, draw(st.integers(0, 5))
        while deep and (below := [one for one in _inner(part) if isinstance(one, (dict, list)) and one]):
            part, deep = draw(st.sampled_from(below)), deep - 1
        if isinstance(part, dict) and part:
            key = draw(st.sampled_from(sorted(part)))
            how = draw(st.integers(0, 3))
            old = part.pop(key)
            if how:
                part[key if how > 1 else draw(texts)] = old if how == 1 else draw(values)
        elif isinstance(part, list) and part:
            place = draw(st.integers(0, len(part) - 1))
            how = draw(st.integers(0, 2))
            if how == 0:
                del part[place]
            elif how == 1:
                part.insert(place, copy.deepcopy(part[place]))
            else:
                part[place] = draw(values)
        else:
            found = draw(values)
    return found


def _inner(part: Any) -> list[Any]:
    return list(part.values()) if isinstance(part, dict) else list(part) if isinstance(part, list) else []


JUNK = (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b'"', b"{", b"[" * 5000, b'{"a":' * 3000, b"1" * 5000,
        b"e999", b"NaN", b"\\ud800", b"\xed\xa0\x80", b",", b"]", b"}", b"\x1f\x8b")  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, times: int = 2) -> bytes:
    """Bytes with junk put in, bits flipped, an end cut off, or a stretch doubled; often none of it."""
    data = whole
    for _ in range(draw(st.integers(0, times))):
        place, how = draw(st.integers(0, max(0, len(data)))), draw(st.integers(0, 4))
        end = min(len(data), place + draw(st.integers(1, 40)))
        if how == 0:
            data = data[:place]
        elif how == 1:
            data = data[:place] + draw(st.sampled_from(JUNK)) + data[place:]
        elif how == 2:
            data = (
                data[:place]
                + bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in data[place : place + 1])
                + data[place + 1 :]
            )
        elif how == 3:
            data = data[:end] + data[place:end] + data[end:]
        else:
            data = data[:place] + draw(st.binary(max_size=8)) + data[end:]
    return data


def lines(*records: Any) -> bytes:
    """JSON Lines, also of what JSON has no words for (NaN)."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()
