"""What rectune makes of a source of data: `rectune check`, without a model's weights.

Says which kind and format it is, what is read, left unread and refused, which rows are faulty, and how one of them is
written for a model. What a record means is in `data/`, what texts bring of tokens in `data/findings.py`.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, JsonValue

from rectune.config import DataConfig
from rectune.data.converters import FOR_THE_GRADER, PAIR, ProblemRecord, detect_format, fits, to_row
from rectune.data.fields import Notes
from rectune.data.loading import (
    Intake,
    count_duplicates,
    intake,
    open_source,
    problems_of,
    row_at,
    weights_of,
)
from rectune.data.schema import LISTED, Faults, Problem, RawRecord, Turn
from rectune.data.tokenization import IGNORED
from rectune.errors import UserError
from rectune.grading.pool import check_item
from rectune.records import Record, RowWeights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rectune.data.tokenization import Encoded

Kind = Literal["rows", "pairs", "problems"]
_LOOK = 20  # records that the kind is inferred from
_ENCODED = 2000  # rows that are encoded


class CheckedTurn(Record):
    """A message of the example; `fields` is what else the chat template reads of it."""

    role: str
    content: str
    supervised: bool
    fields: dict[str, JsonValue]
    weight: float = 1.0


class CheckedExample(Record):
    """A row, pair or problem of the source.

    Attributes:
        where: `file:line`.
        turns: The conversation; of a pair, with the better answer.
        tools: The tools that the chat template is given; rows only.
        rejected: The conversation with the worse answer; pairs only.
        answer, grader, extra: Of a problem.
    """

    where: str
    turns: list[CheckedTurn]
    tools: list[JsonValue] = Field(default_factory=list)
    rejected: list[CheckedTurn] = Field(default_factory=list)
    answer: str | list[str] = ""
    grader: str = ""
    extra: dict[str, object] | None = None


class TextPiece(Record):
    """A piece of the rendered example, and whether it is a target of training."""

    text: str
    target: bool


class CheckedTokens(Record):
    """What encoding makes of the first `of_rows` rows at `max_length`; the counts are those of `RowCounts`."""

    rows: int
    tokens: int
    supervised: int
    truncated: int
    dropped: int
    duplicates: int
    of_rows: int
    max_length: int


class CheckedFaults(Record):
    """How many records cannot be used, and what is wrong with the first ones."""

    count: int
    first: list[str]


class CheckResult(Record):
    """What there is to know about a source of data.

    Attributes:
        kind, also: What it is, and the other kinds that it can be used as.
        read, ignored, refused, said: Fields and remarks, each with the number of rows.
        graders: Problems by grader; problems only.
        errors: What training or sampling would stop at.
        example: None where nothing can be used.
        template, rendered: How a model's template writes the example; only with a model.
        weights: Of the answers of rows, where any is not 1.
        tokens, findings: Of rows, only with a model.
    """

    source: str
    kind: Kind
    also: list[Kind]
    format: str
    rows: int
    duplicates: int
    read: dict[str, int]
    ignored: dict[str, int]
    refused: dict[str, int]
    said: dict[str, int]
    faults: CheckedFaults
    errors: list[str]
    graders: dict[str, int] = Field(default_factory=dict)
    example: CheckedExample | None = None
    template: str = ""
    rendered: list[TextPiece] = Field(default_factory=list)
    weights: RowWeights | None = None
    tokens: CheckedTokens | None = None
    findings: list[str] = Field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The JSON object, without the fields that do not apply."""
        return self.model_dump(exclude_unset=True)


def check(
    source: str,
    *,
    kind: Kind | None = None,
    options: DataConfig | None = None,
    model: str | None = None,
    max_length: int = 2048,
) -> CheckResult:
    """What there is to know about rows, pairs or problems before they are used.

    Args:
        source: Anything that `rectune train` takes as data, or a file of problems.
        kind: What they are to be; None infers it from the fields.
        options: As for training.
        model: Whose tokenizer and template write the example; its weights are not read.
        max_length: As for training.

    Raises:
        UserError: The source cannot be read at all, or is of no known format.
    """
    options = options or DataConfig()
    if model is not None:
        from rectune.data.trained_prompt import as_trained

        options = as_trained(model, options)
    kinds = _kinds(source, options)
    chosen: Kind = kind or kinds[0]
    if chosen == "problems":
        result = _problems(source, options, model)
    else:
        formats = PAIR if chosen == "pairs" else (options.data_format,)
        result = _rows(source, chosen, formats, options, model, max_length)
    result.also = [name for name in kinds if name != chosen]
    return result


def _rows(
    source: str, kind: Kind, formats: Sequence[str], options: DataConfig, model: str | None, max_length: int
) -> CheckResult:
    """What there is to know about rows, or about pairs, which are read in two formats."""
    read, *worse = (
        intake(source, options=options.model_copy(update={"data_format": format, "skip_bad_rows": True}))
        for format in formats
    )
    duplicates = 0 if read.dataset is None else count_duplicates(read.dataset)
    result = _result(
        source, kind, "pairs" if worse else read.format, read.rows, duplicates, read.notes, read.faults
    )
    if options.skip_bad_rows:
        result.errors = []
    if read.dataset is None:
        result.errors = result.errors or [f"{source}: has no row with a target"]
        return result
    if weights := weights_of(read.dataset):
        result.weights = weights
    index = 0
    if model is not None:
        try:
            index = _add_encoding(result, read, options, model, max_length)
        except UserError as error:
            result.errors.append(str(error))
    row = row_at(read.dataset, index)
    result.example = CheckedExample(where=row.where, turns=_turns(row.turns))
    if row.tools:
        result.example.tools = json.loads(row.tools)
    if worse and worse[0].dataset is not None:
        result.example.rejected = _turns(row_at(worse[0].dataset, index).turns)
    return result


def _result(
    source: str, kind: Kind, format: str, rows: int, duplicates: int, notes: Notes, faults: Faults
) -> CheckResult:
    errors = []
    if faults.count:
        of = f"{faults.count:,} of {faults.count + rows:,} rows"
        errors = [f"{of} cannot be used, the first: {faults.first[0]}"]
    return CheckResult(
        source=source,
        kind=kind,
        also=[],
        format=format,
        rows=rows,
        duplicates=duplicates,
        read=dict(sorted(notes.read.items())),
        ignored=dict(sorted(notes.ignored.items())),
        refused=dict(sorted(notes.refused.items())),
        said=dict(sorted(notes.said.items())),
        faults=CheckedFaults(count=faults.count, first=faults.first),
        errors=errors,
    )


def _kinds(source: str, options: DataConfig) -> list[Kind]:
    """The kinds that the first records can be, the likeliest first."""
    if set(PAIR) <= options.columns.keys():
        return ["pairs"]
    look = [
        record
        for _, record in itertools.islice(open_source(source, split=options.split).start(), _LOOK)
        if not isinstance(record, UserError)
    ]
    pairs = 2 * sum(fits(PAIR[0], record) for record in look) >= len(look)
    problems = Path(source).suffix == ".jsonl" and 2 * sum(map(_is_problem, look)) >= len(look)
    graded = any(record.keys() & {"problem_id", "grader", "extra", *FOR_THE_GRADER} for record in look)
    found: list[Kind] = ["pairs"] if look and pairs else []
    found += ["problems"] if look and problems else []
    try:
        if options.data_format == "auto" and not options.columns:
            format = detect_format(look, source)
            if "pairs" in found:
                to_row(look[0], source, format, options)
    except UserError:
        return found or ["rows"]  # which then says what is wrong
    return [*found, "rows"] if graded and problems else ["rows", *found]


def _is_problem(record: RawRecord) -> bool:
    names = ProblemRecord.names()
    fields = {names[name] for name in record if name in names}
    return bool(fields & {"prompt", "messages"} and fields & {"answer", "answerKey"})


def _turns(turns: Sequence[Turn]) -> list[CheckedTurn]:
    return [
        CheckedTurn(
            role=turn.role,
            content=turn.content,
            supervised=turn.supervised,
            fields=json.loads(turn.fields) if turn.fields else {},
            **({"weight": turn.weight} if turn.weight != 1 else {}),
        )
        for turn in turns
    ]


def _problems(source: str, options: DataConfig, model: str | None) -> CheckResult:
    notes, faults, problems = Notes(), Faults(source), list[Problem]()
    for found in problems_of(source, notes):
        try:
            if isinstance(found, UserError):
                raise found
            check_item(found.grader, found.extra, where=found.where)
            problems.append(found)
        except UserError as error:
            faults.add(error)
    repeated = len(problems) - len({problem.prompt for problem in problems})
    result = _result(source, "problems", "problems", len(problems), repeated, notes, faults)
    if not problems:
        result.errors = result.errors or [f"{source}: has no problems"]
        return result
    first = problems[0]
    result.graders = dict(Counter(problem.grader for problem in problems))
    result.example = CheckedExample(
        where=first.where,
        turns=_turns(first.prompt),
        answer=first.answer,
        grader=first.grader,
        extra=first.extra,
    )
    if model is not None:
        try:
            _add_prompt(result, first, options, model)
        except UserError as error:
            result.errors.append(str(error))
    return result


def _add_encoding(result: CheckResult, read: Intake, options: DataConfig, model: str, max_length: int) -> int:
    """Add how a model's template writes a row, and what becomes of the rows at `max_length`; returns that row."""
    from rectune.data.chat_template import choose_template  # with transformers: slow to import
    from rectune.data.findings import token_findings
    from rectune.data.tokenization import encode_row
    from rectune.models.limits import encode_for
    from rectune.models.load import load_outline

    assert read.dataset is not None
    outline, tokenizer = load_outline(model)
    template = choose_template(options.chat_template, tokenizer)
    some = read.dataset.select(range(min(_ENCODED, read.rows)))
    encoded = encode_for(
        outline, some, tokenizer, template, max_length=max_length, skip_bad_rows=options.skip_bad_rows
    )
    row: int = encoded.dataset[0]["row"]
    example = encode_row(row_at(some, row), tokenizer, template)
    findings = [str(finding) for finding in token_findings(some, tokenizer, template)]
    result.template, result.rendered = template.name, _pieces(example, tokenizer)
    result.tokens = CheckedTokens(**asdict(encoded.counts), of_rows=len(some), max_length=max_length)
    result.findings = findings
    return row


def _add_prompt(result: CheckResult, problem: Problem, options: DataConfig, model: str) -> None:
    """Add how a model's template writes a problem's prompt."""
    from rectune.data.chat_template import choose_template
    from rectune.data.tokenization import prompt_ids
    from rectune.models.load import load_outline

    _, tokenizer = load_outline(model)
    template = choose_template(options.chat_template, tokenizer)
    text = str(tokenizer.decode(prompt_ids(problem.prompt, tokenizer, template)))
    result.template, result.rendered = template.name, [TextPiece(text=text, target=False)]


def _pieces(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[TextPiece]:
    """The row as text, in runs of tokens that are targets or not."""
    both = zip(encoded.input_ids, encoded.labels, strict=True)
    return [
        TextPiece(text=str(tokenizer.decode([i for i, _ in run])), target=target)
        for target, run in itertools.groupby(both, key=lambda pair: pair[1] != IGNORED)
    ]


def summary(result: CheckResult) -> list[str]:
    """The result of `check` for people, one line or block each."""
    also = f"; can be used as {' and '.join(result.also)} too" if result.also else ""
    lines = [
        f"{result.source}: {result.kind}{also}",
        f"format: {result.format}",
        f"rows: {result.rows:,}, of which {result.duplicates:,} repeat an earlier one",
    ]
    for title, counts in (
        ("read", result.read),
        ("left unread", result.ignored),
        ("refused", result.refused),
    ):
        fields = ", ".join(f"{field} ({count:,})" for field, count in counts.items())
        lines.append(f"fields {title}: {fields or 'none'}")
    lines += [f"{count:,} {said}" for said, count in result.said.items()]
    if result.weights is not None:
        lines.append(f"weights of the answers: {result.weights}")
    lines.append(f"faulty rows: {result.faults.count:,}")
    lines += [f"  {fault}" for fault in result.faults.first]
    if result.faults.count > LISTED:
        lines.append(f"  and {result.faults.count - LISTED:,} more")
    if result.example is not None:
        lines += _example_lines(result, result.example)
    if (tokens := result.tokens) is not None:
        lines.append(
            f"the first {tokens.of_rows:,} rows: {tokens.tokens:,} tokens, {tokens.supervised:,} targets; "
            f"{tokens.truncated:,} rows cut at {tokens.max_length:,} tokens, {tokens.dropped:,} dropped"
        )
        lines += result.findings
    return lines


def _example_lines(result: CheckResult, example: CheckedExample) -> list[str]:
    if result.rendered:
        text = "".join(f"«{piece.text}»" if piece.target else piece.text for piece in result.rendered)
        return ["", f"{example.where}, written by {result.template}; targets in «»:", text, ""]
    lines = [f"example, {example.where}:", *_conversation(example.turns)]
    if example.rejected:
        lines += ["  the worse answer:", *_conversation(example.rejected[-1:])]
    return lines


def _conversation(turns: Sequence[CheckedTurn]) -> list[str]:
    """Turns, one a line, with what the template is given besides."""
    lines = []
    for turn in turns:
        fields = f" {json.dumps(turn.fields, ensure_ascii=False)}" if turn.fields else ""
        target = f" (target, weight {turn.weight:g})" if turn.weight != 1 else " (target)"
        lines.append(f"  {turn.role}{target * turn.supervised}: {turn.content}{fields}")
    return lines
