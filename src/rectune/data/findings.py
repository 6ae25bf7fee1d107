"""What the texts of a dataset bring along of tokens and templates: how many rows, which, and what to do about it.

What is done about it is in `chat_template.py`; nothing here changes a row.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
from transformers import PreTrainedTokenizerBase

from rectune.data.chat_template import Marks, Template, Writer
from rectune.data.schema import Problem, Row, Turn
from rectune.errors import UserError

log = logging.getLogger("rectune")

ROLES = (
    r"<\|(?:im_start|start_header_id|header_start|start_of_role|start)\|>\s*"
    r"(?:system|developer|user|human|assistant|model|tool|ipython)|<start_of_turn>\s*(?:system|user|model)"
    r"|<\|turn>\s*(?:system|user|model)|<\|(?:START_OF_TURN_TOKEN|im_user|im_assistant|im_system)\|>"
    r"|<\|(?:system|user|assistant|User|Assistant)\|>|<｜(?:User|Assistant)｜>|\[\|(?:system|user|assistant)\|\]"
    r"|\[/?INST\]|<</?SYS>>|<extra_id_1>\s*(?:User|Assistant)|\n(?:Assistant|ASSISTANT|AI):\s*\z"
    r"|(?:<\|(?:im_end|eot_id|eom_id|end|end_of_turn|endoftext|end_of_text|endofturn)\|>|<end_of_turn>|</s>"
    r"|<｜end▁of▁sentence｜>)\s*\z"
)
"""What chat templates write before turns, and behind the last (RE2 and, but for the end of a text, Python)."""

_ROLES = re.compile(ROLES.replace(r"\z", r"\Z"))
_EXAMPLES = 10


@dataclass
class Finding:
    """One kind of thing that rows bring along.

    Attributes:
        name: One of those in `_kinds`.
        what: Sentence behind "N of M rows", with the tokens in it.
        remedy: What to do, or what was done.
        rows, of: How many rows have it, of how many.
        where: `file:line` of some of them.
        tokens: Which tokens or marks, and in how many rows.
        unit: What rows are called.
    """

    name: str
    what: str
    remedy: str
    rows: int = 0
    of: int = 0
    where: list[str] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)
    unit: str = "rows"

    def add(self, where: str) -> None:
        """Count a row."""
        self.rows += 1
        self.where += [where] * (len(self.where) < _EXAMPLES)

    def __str__(self) -> str:
        tokens = ", ".join(repr(token) for token, _ in self.tokens.most_common(3))
        named = f" ({tokens})" if tokens else ""
        first = f", the first {self.where[0]}" if self.where else ""
        return f"{self.rows:,} of {self.of:,} {self.unit} {self.what}{named}{first}; {self.remedy}"


def _kinds() -> dict[str, Finding]:
    return {
        finding.name: finding
        for finding in (
            Finding(
                "template in text", "hold what a chat template writes around turns",
                "they would be written inside a template a second time: give the turns as messages, "
                "or chat_template = none if each text is a whole prompt",
            ),
            Finding("own end", "end an answer with an end token of their own", "it stands there once"),
            Finding("own start", "begin with the beginning-of-text token", "it stands there once"),
            Finding(
                "special tokens", "have special tokens in their texts",
                "they are text there, not control tokens; if they are meant as tokens, "
                "add them to the tokenizer as ordinary ones (special=False)",
            ),
            Finding(
                "control tokens", "have special tokens in their texts",
                "with template none they are control tokens; a chat template writes them as text",
            ),
            Finding(
                "spaces", "have spaces or line ends around an answer",
                "the template trims them; one of your own can keep them",
            ),
            Finding(
                "names", "have names of speakers",
                "the template does not write them; one of your own can, or put them into the contents",
            ),
            Finding(
                "today's date", "are written with today's date",
                "the template reads the clock; a training run keeps the day that it began",
            ),
        )
    }  # fmt: skip


def token_findings(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, template: Template
) -> list[Finding]:
    """What rows of a `read_rows` dataset bring along under this tokenizer and template, as far as there is any."""
    return findings_in(_candidates(dataset, tokenizer, template), len(dataset), tokenizer, template)


def findings_in(
    rows: Iterable[Row],
    of: int,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    unit: str = "rows",
) -> list[Finding]:
    """What some rows bring along, of `of` in all: questions too, which have no answer yet."""
    marks, trims = _marks(tokenizer, template), _trims(tokenizer, template)
    writer, found = Writer(template, tokenizer), _kinds()
    names: bool | None = None  # whether the template writes them, inferred from the first row that has any
    for row in rows:
        _note(row, marks, template, found)
        if names is not True and any(map(_named, row.turns)):
            names = _writes_names(row, writer) if names is None else names
            if not names:
                found["names"].add(row.where)
        if trims and any(turn.supervised and turn.content != turn.content.strip() for turn in row.turns):
            found["spaces"].add(row.where)
    if template.today:
        found["today's date"].rows = of
    for finding in found.values():
        finding.of, finding.unit = of, unit
    return [finding for finding in found.values() if finding.rows]


def say_findings(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Warn of what problems bring along, as `token_findings` of rows."""
    rows = (Row(problem.prompt, problem.where or problem.problem_id) for problem in problems)
    for finding in findings_in(rows, len(problems), tokenizer, template, unit="problems"):
        log.warning("%s", finding)


def _candidates(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, template: Template
) -> Iterator[Row]:
    """The rows of which a text has anything of what is looked for; found without making texts of all."""
    from rectune.data.loading import row_of

    marks = _marks(tokenizer, template)
    tokens = [re.escape(token) for token in {*marks.control, *marks.ends}]
    pattern = "|".join([*tokens, ROLES, *[r"\A\s", r"\s\z"] * _trims(tokenizer, template)])
    for batch in dataset.with_format("arrow").iter(1000):
        contents = batch["turns"].combine_chunks()
        texts, fields = (contents.flatten().field(name) for name in ("content", "fields"))
        holds = pyarrow.compute.or_(
            pyarrow.compute.match_substring_regex(texts, pattern),
            pyarrow.compute.match_substring(fields, '"name":'),
        )
        parents = pyarrow.compute.list_parent_indices(contents)
        some = np.unique(parents.filter(holds).to_numpy(zero_copy_only=False))
        yield from map(row_of, batch.take(pyarrow.array(some)).to_pylist())


def _marks(tokenizer: PreTrainedTokenizerBase, template: Template) -> Marks:
    """The marks of the template; of template none also the control tokens."""
    control = replace(template, text=template.text or "").marks(tokenizer).control
    return replace(template.marks(tokenizer), control=control)


def _trims(tokenizer: PreTrainedTokenizerBase, template: Template) -> bool:
    """Whether the template leaves out spaces around an answer."""
    turns = (Turn("user", "probe"), Turn("assistant", "\n  answer \n", True))
    return turns[1].content not in Writer(template, tokenizer).text(turns, "chat_template")


def _named(turn: Turn) -> bool:
    return turn.role != "tool" and '"name":' in turn.fields and "name" in json.loads(turn.fields)


def _writes_names(row: Row, writer: Writer) -> bool:
    """Whether the template writes the names of a row's speakers, or refuses the row, which is said elsewhere."""
    nameless = []
    for turn in row.turns:
        fields = json.loads(turn.fields) if _named(turn) else {}
        fields.pop("name", None)
        nameless.append(replace(turn, fields=json.dumps(fields)) if _named(turn) else turn)
    try:
        given, without = (writer.text(turns, row.where, tools=row.tools) for turns in (row.turns, nameless))
    except UserError:
        return True
    return given != without


def _note(row: Row, marks: Marks, template: Template, found: dict[str, Finding]) -> None:
    noted: dict[str, dict[str, None]] = {}  # in the order of the text
    for name, token in _in_row(row, marks, template):
        noted.setdefault(name, {})[token] = None
    if "template in text" in noted:  # which says it all; with template none it is as it should be
        apart = {"special tokens", "control tokens", "own start"}
        apart |= {"template in text"} if template.text is None else {"own end"}
        noted = {name: tokens for name, tokens in noted.items() if name not in apart}
    for name, tokens in noted.items():
        found[name].add(row.where)
        found[name].tokens.update(tokens.keys())


def _in_row(row: Row, marks: Marks, template: Template) -> Iterator[tuple[str, str]]:
    """Names of findings in a row, each with the token or mark."""
    bare = template.text is None
    for i, turn in enumerate(row.turns):
        text, end = marks.without_end(turn.content) if turn.role == "assistant" else (turn.content, "")
        if end:
            yield "own end", end
        for mark in _ROLES.finditer(text):
            if mark[0].strip() != "</s>" or "<s>" not in text:
                yield "template in text", mark[0].strip()
        rest = marks.without_start(text) if i == 0 else text
        if rest != text:
            yield "own start", marks.bos
        for token in marks.found(rest):
            yield "control tokens" if bare else "special tokens", token
