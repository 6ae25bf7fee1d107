"""The one exception a user is meant to see: what is wrong, where, and what to do about it.

Everything that the user can mend (a malformed row, an unknown objective, a folder that is not a model)
is raised as `UserError` and printed by the command line as one line with exit code 2. Nothing else is
caught anywhere: any other exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_PASSWORD = re.compile(r"(?<=://)[^\s/?#@]+@")  # in an address


class UserError(Exception):
    """A mistake that the user can mend.

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
