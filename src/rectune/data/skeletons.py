"""Conversations written without running the chat template's program for each of them.

Most templates decide by roles and places alone what stands around the contents, and write those as they are, or
trimmed. Where a look at the program shows so, one conversation of each kind (its roles, and which contents are empty)
is written with marks in place of contents, and all others of that kind are filled in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateError, nodes

from rectune.data.rows import Turn

_EDGE = "\u2003"  # a space: gone where the template trims
_MARK = "\ue000{}\ue001"  # stands for a content
_FOUND = re.compile(f"({_EDGE}?){_MARK.format('([0-9]+)')}({_EDGE}?)")
_GENERATION = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")  # transformers' own, which write nothing
_MANY = 10_000  # kinds of conversation that are kept

REFUSALS = (
    TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError,
)  # fmt: skip
"""What a template raises over a conversation that it does not take; the last six by an expression."""

Write = Callable[[list[dict[str, str]]], str]
Fill = Callable[[Sequence[Turn]], str]


class Skeletons:
    """What stands around the contents in conversations of one template and one way to run it."""

    def __init__(self, template: str) -> None:
        self._known = dict[tuple[tuple[str, bool], ...], Fill | None]()
        self._usable = not {_EDGE, _MARK[0]} & set(template) and only_writes_contents(template)

    def written(self, turns: Sequence[Turn], write: Write) -> str | None:
        """The conversation, or None where the template has to be run for it.

        Args:
            write: Runs the template over messages; the same for all calls.
        """
        if not self._usable or any(turn.content.isspace() for turn in turns):
            return None  # whether it is empty may be asked before or after it is trimmed
        kind = tuple((turn.role, bool(turn.content)) for turn in turns)
        if kind not in self._known:
            if len(self._known) >= _MANY:
                self._known.clear()
            self._known[kind] = _learn(turns, write)
        fill = self._known[kind]
        return None if fill is None else fill(turns)


def _learn(turns: Sequence[Turn], write: Write) -> Fill | None:
    """How to write all conversations of the kind of this one; None where the template refuses it."""
    marks = [f"{_EDGE}{_MARK.format(i)}{_EDGE}" if turn.content else "" for i, turn in enumerate(turns)]
    try:
        text = write([{"role": t.role, "content": mark} for t, mark in zip(turns, marks, strict=True)])
    except REFUSALS:  # run for the conversation itself it says why
        return None
    around, holes, end = [], [], 0
    for found in _FOUND.finditer(text):
        around.append(text[end : found.start()])
        holes.append((int(found[2]), not found[1], not found[3]))
        end = found.end()
    around.append(text[end:])

    def fill(turns: Sequence[Turn]) -> str:
        parts = [around[0]]
        for (turn, left, right), behind in zip(holes, around[1:], strict=True):
            content = turns[turn].content
            content = content.lstrip() if left else content
            parts += (content.rstrip() if right else content, behind)
        return "".join(parts)

    return fill


@lru_cache(maxsize=64)
def only_writes_contents(template: str) -> bool:
    """Whether a chat template surely does no more with contents than write them, trim them, and ask if they are empty.

    Then what it writes is a function of the roles and of which contents are empty, but for the contents themselves.
    """
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", template))
        look = _Look()
        while True:  # a name that takes a content anywhere counts as one everywhere
            before = dict(look.names)
            look.all(tree.body)
            if look.names == before:
                return True
    except (TemplateError, RecursionError, _Unknown):
        return False


class _Unknown(Exception):
    """Something that may depend on a content in another way."""


_CLEAN, _TEXT, _MESSAGE, _MESSAGES = "clean", "text", "message", "messages"
_SAME_FOR_ALL_TEXTS = {"defined", "undefined", "none", "string", "mapping", "iterable", "sequence"}


class _Look:
    """Kinds of expressions: without contents, text with contents in it, a message, a list of messages."""

    def __init__(self) -> None:
        self.names = {"messages": _MESSAGES}

    def all(self, statements: Iterable[nodes.Node]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.Output():
                for part in node.nodes:
                    self.need(self.kind(part) in (_CLEAN, _TEXT))
            case nodes.If():
                self.condition(node.test)
                self.all([*node.body, *node.elif_, *node.else_])
            case nodes.For(target=nodes.Name(name=name)):
                kind = self.kind(node.iter)
                self.need(kind in (_CLEAN, _MESSAGES) and not node.recursive)
                self.bind(name, _MESSAGE if kind == _MESSAGES else _CLEAN)
                if node.test is not None:
                    self.condition(node.test)
                self.all([*node.body, *node.else_])
            case nodes.For():
                self.clean(node.iter)
                self.need(node.test is None and not node.recursive)
                for one in node.target.find_all(nodes.Name):
                    self.bind(one.name, _CLEAN)
                self.all([*node.body, *node.else_])
            case nodes.Assign(target=nodes.Name(name=name)):
                self.bind(name, self.kind(node.node))
            case nodes.Assign(target=nodes.NSRef()):
                self.clean(node.node)
            case nodes.AssignBlock(target=nodes.Name(name=name), filter=None):
                self.all(node.body)
                self.bind(name, _TEXT)
            case nodes.Break() | nodes.Continue():
                pass
            case _:
                raise _Unknown

    def bind(self, name: str, kind: str) -> None:
        known = self.names.get(name, kind)
        self.need(known == kind or {known, kind} == {_CLEAN, _TEXT})
        self.names[name] = kind if known == kind else _TEXT

    def condition(self, node: nodes.Node | None) -> None:
        """An expression of which only the truth is asked; that of a text is known from which contents are empty."""
        if isinstance(node, (nodes.And, nodes.Or)):
            self.condition(node.left)
            self.condition(node.right)
        else:
            self.kind(node)

    def kind(self, node: Any) -> str:
        match node:
            case None | nodes.Const() | nodes.TemplateData():
                return _CLEAN
            case nodes.Name(name=name):
                return self.names.get(name, _CLEAN)
            case nodes.Getattr(node=nodes.Name(name="loop"), attr="previtem" | "nextitem"):
                return _MESSAGE
            case (
                nodes.Getattr(node=base, attr=name)
                | nodes.Getitem(node=base, arg=nodes.Const(value=str(name)))
            ):
                return self.attribute(self.kind(base), name)
            case nodes.Getitem(node=base, arg=place):
                kind = self.kind(base)
                self.clean(place)
                self.need(kind in (_CLEAN, _MESSAGES))
                return _MESSAGE if kind == _MESSAGES and not isinstance(place, nodes.Slice) else kind
            case nodes.Call(
                node=nodes.Getattr(node=base, attr="strip" | "lstrip" | "rstrip"), args=[], kwargs=[]
            ):
                self.need(
                    self.kind(base) in (_CLEAN, _TEXT) and node.dyn_args is None and node.dyn_kwargs is None
                )
                return self.kind(base)
            case nodes.Filter(name="trim", args=[], kwargs=[], dyn_args=None, dyn_kwargs=None):
                self.need(self.kind(node.node) in (_CLEAN, _TEXT))
                return self.kind(node.node)
            case nodes.Filter(name="length" | "count" | "first" | "last") if (
                self.kind(node.node) == _MESSAGES
            ):
                self.need(not node.args)
                return _CLEAN if node.name in ("length", "count") else _MESSAGE
            case nodes.Test(node=base, name=name) if name in _SAME_FOR_ALL_TEXTS:
                self.kind(base)
                return _CLEAN
            case nodes.Compare(
                expr=expr, ops=[nodes.Operand(op="eq" | "ne", expr=nodes.Const(value="" | None))]
            ):
                self.need(self.kind(expr) in (_CLEAN, _TEXT))
                return _CLEAN
            case nodes.CondExpr():
                self.condition(node.test)
                return self.either(node.expr1, node.expr2)
            case nodes.Add():
                return self.either(node.left, node.right)
            case nodes.Concat():
                return self.either(*node.nodes)
            case nodes.Not():
                self.condition(node.node)
                return _CLEAN
            case nodes.Filter(name="random"):
                raise _Unknown
            case nodes.Expr() | nodes.Operand() | nodes.Keyword() | nodes.Pair() | nodes.Slice():
                for part in node.iter_child_nodes():
                    self.clean(part)
                return _CLEAN
            case _:
                raise _Unknown

    def attribute(self, kind: str, name: str) -> str:
        if kind == _CLEAN:
            return _CLEAN
        self.need(kind == _MESSAGE and not hasattr(dict, name))
        return _TEXT if name == "content" else _CLEAN

    def either(self, *parts: Any) -> str:
        kinds = {self.kind(part) for part in parts}
        self.need(kinds <= {_CLEAN, _TEXT})
        return _TEXT if _TEXT in kinds else _CLEAN

    def clean(self, node: Any) -> None:
        self.need(self.kind(node) == _CLEAN)

    def need(self, holds: bool) -> None:
        if not holds:
            raise _Unknown
