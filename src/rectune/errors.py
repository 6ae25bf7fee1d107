"""The exceptions a user is meant to see: what is wrong, where, what to do about it; and text safe to show.

Everything that the user can correct (a malformed row, an unknown objective, a folder that is not a model)
is raised as `UserError` and printed by the command line as one line with exit code 2, a gate that does not hold as
`GateError`. Nothing else is caught anywhere: any other exception is a defect of ours and keeps its traceback.

`visible` makes text from data, models and servers safe for a terminal or a browser: control characters (a terminal's
escape sequences begin with one), marks that turn the direction of text around, and halves of surrogate pairs are
written as `\\u001b`, as in JSON, so that JSON text stays the same JSON. Line ends and tabs stay. Markup is left to the
pages' own escaping.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_PASSWORD = re.compile(r"(?<=://)[^\s/?#@]+@")  # in an address


class UserError(Exception):
    """A mistake that the user can correct.

    Args:
        what: What is wrong, as one sentence without a full stop.
        where: `file:line`, a config key or a flag; put in front of the message.
        hint: What to do about it; put behind the message.
    """

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, None if where is None else str(where), hint
        line = what if where is None else f"{where}: {what}"
        line = " ".join((line if hint is None else f"{line}; {hint}").split())
        super().__init__(_PASSWORD.sub("***@", line))


class GateError(Exception):
    """What a gate requires is not shown: one line, and exit code 3, which no mistake and no signal has."""


def unknown_name(kind: str, name: str, known: Iterable[str], *, where: object = None) -> UserError:
    """The error for a name that is not one of `known`: says the nearest one, and lists them all."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    guess = f"did you mean '{near[0]}'? " if near else ""
    return UserError(
        f"unknown {kind} '{name}'",
        where=where,
        hint=f"{guess}known: {', '.join(names) or 'none'}",
    )


_LEFT = {ord("\n"), ord("\t")}
_HIDDEN = {
    code: f"\\u{code:04x}"
    for part in (
        range(0x20),  # C0 controls
        range(0x7F, 0xA0),  # delete and C1 controls
        (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),  # direction
        (0xFEFF,),  # byte-order mark
        range(0xD800, 0xE000),  # surrogates
    )
    for code in part
    if code not in _LEFT
}


def visible(text: object) -> str:
    """`text` with nothing in it that acts: safe for a terminal, and to be encoded as UTF-8."""
    shown = str(text)
    return shown if shown.isascii() and shown.isprintable() else shown.translate(_HIDDEN)
