"""Kinds of command-line parameters that several verbs share. Settings of a run are in `options.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token


def texts(_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    r"""Each flag's text, in which `\n` is a line end and `\t` a tab, since a shell does not write them."""
    return tuple(token.value.replace("\\n", "\n").replace("\\t", "\t") for token in tokens)


Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Count = Annotated[int, Parameter(name=["--num-samples", "-n"])]
Texts = Annotated[tuple[str, ...], Parameter(converter=texts, negative=(), show_default=False)]
