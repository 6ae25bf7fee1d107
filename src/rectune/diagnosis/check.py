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
from typing import TYPE_CHECKING, Any, Literal

from rectune.config import DataConfig
from rectune.data.converters import FOR_THE_GRADER, PAIR, ProblemRecord, detect_format, fits, to_row
from rectune.data.fields import Notes, Record
from rectune.data.loading import Intake, count_duplicates, intake, open_source, problems_of, row_at
from rectune.data.schema import LISTED, Faults, Problem, Turn
from rectune.data.tokenization import IGNORED
from rectune.errors import UserError
from rectune.grading.pool import check_item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rectune.data.tokenization import Encoded

Kind = Literal["rows", "pairs", "problems"]
_LOOK = 20  # records that the kind is inferred from
_ENCODED = 2000  # rows that are encoded


def check(
    source: str,
    *,
    kind: Kind | None = None,
    options: DataConfig | None = None,
    model: str | None = None,
    max_length: int = 2048,
) -> dict[str, Any]:
    """What there is to know about rows, pairs or problems before they are used.

    Args:
        source: Anything that `rectune train` takes as data, or a file of problems.
        kind: What they are to be; None infers it from the fields.
        options: As for training.
        model: Whose tokenizer and template write the example; its weights are not read.
        max_length: As for training.

    Returns:
        `kind`, `also` (other kinds that it can be used as), `format`, `rows`, `duplicates`; `read`, `ignored`,
        `refused` and `said`, each with the number of rows; `faults` (`count`, and the `first` ones); `example`; with
        a model also `template`, `rendered` (pieces of text, and whether each is a target), `tokens` (counts) and
        `findings`; and `errors`: what training or sampling would stop at.

    Raises:
        UserError: The source cannot be read at all, or is of no known format.
    """
    options = options or DataConfig()
    if model is not None:
        from rectune.data.trained_prompt import as_trained

        options = as_trained(model, options)
    kinds = _kinds(source, options)
    chosen: Kind = kind or kinds[0]
    result: dict[str, Any] = {"source": source, "kind": chosen, "also": [k for k in kinds if k != chosen]}
    if chosen == "problems":
        return result | _problems(source, options, model)
    return result | _rows(
        source, PAIR if chosen == "pairs" else (options.data_format,), options, model, max_length
    )


def _rows(
    source: str, formats: Sequence[str], options: DataConfig, model: str | None, max_length: int
) -> dict[str, Any]:
    """What there is to know about rows, or about pairs, which are read in two formats."""
    read, *worse = (
        intake(source, options=options.model_copy(update={"data_format": format, "skip_bad_rows": True}))
        for format in formats
    )
    duplicates = 0 if read.dataset is None else count_duplicates(read.dataset)
    result: dict[str, Any] = {
        "format": "pairs" if worse else read.format,
        "rows": read.rows,
        "duplicates": duplicates,
    }
    result |= _noted(read.notes, read.faults)
    errors = result["errors"] = [] if options.skip_bad_rows else _settled(read.faults, read.rows)
    if read.dataset is None:
        errors += [] if errors else [f"{source}: has no row with a target"]
        return result
    if model is not None:
        try:
            result |= _written(read, options, model, max_length)
        except UserError as error:
            errors.append(str(error))
    index = result.pop("row", 0)
    row = row_at(read.dataset, index)
    example = result["example"] = {"where": row.where, "turns": _shown(row.turns)}
    if row.tools:
        example["tools"] = json.loads(row.tools)
    if worse and worse[0].dataset is not None:
        example["rejected"] = _shown(row_at(worse[0].dataset, index).turns)
    return result


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


def _is_problem(record: Record) -> bool:
    names = ProblemRecord.names()
    fields = {names[name] for name in record if name in names}
    asked, answered = fields & {"prompt", "messages"}, fields & {"answer", "answerKey"}
    return bool(asked and answered)


def _noted(notes: Notes, faults: Faults) -> dict[str, Any]:
    counts = {name: dict(sorted(counter.items())) for name, counter in vars(notes).items()}
    return counts | {"faults": {"count": faults.count, "first": faults.first}}


def _settled(faults: Faults, rows: int) -> list[str]:
    if not faults.count:
        return []
    return [f"{faults.count:,} of {faults.count + rows:,} rows cannot be used, the first: {faults.first[0]}"]


def _shown(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    shown = [asdict(turn) for turn in turns]
    return [turn | {"fields": json.loads(turn["fields"]) if turn["fields"] else {}} for turn in shown]


def _problems(source: str, options: DataConfig, model: str | None) -> dict[str, Any]:
    notes, faults, problems = Notes(), Faults(source), list[Problem]()
    for found in problems_of(source, notes):
        try:
            if isinstance(found, UserError):
                raise found
            check_item(found.grader, found.extra, where=found.where)
            problems.append(found)
        except UserError as error:
            faults.add(error)
    asked = Counter(problem.prompt for problem in problems)
    result = {"format": "problems", "rows": len(problems), "duplicates": len(problems) - len(asked)}
    result |= _noted(notes, faults)
    errors = _settled(faults, len(problems))
    if not problems:
        return result | {"errors": errors or [f"{source}: has no problems"]}
    first = problems[0]
    graders = dict(Counter(problem.grader for problem in problems))
    answer = {"answer": first.answer, "grader": first.grader, "extra": first.extra}
    result |= {"graders": graders, "example": {"where": first.where, "turns": _shown(first.prompt), **answer}}
    if model is not None:
        try:
            result |= _asked(first, options, model)
        except UserError as error:
            errors.append(str(error))
    return result | {"errors": errors}


def _written(read: Intake, options: DataConfig, model: str, max_length: int) -> dict[str, Any]:
    """How a model's template writes the rows, and what becomes of them at `max_length`."""
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
    row = encoded.dataset[0]["row"]
    example = encode_row(row_at(some, row), tokenizer, template)
    result = {"row": row, "template": template.name, "rendered": _pieces(example, tokenizer)}
    findings = [str(finding) for finding in token_findings(some, tokenizer, template)]
    counts = {**asdict(encoded.counts), "of_rows": len(some), "max_length": max_length}
    return result | {"tokens": counts, "findings": findings}


def _asked(problem: Problem, options: DataConfig, model: str) -> dict[str, Any]:
    """How a model's template writes a problem's prompt."""
    from rectune.data.chat_template import choose_template
    from rectune.data.tokenization import prompt_ids
    from rectune.models.load import load_outline

    _, tokenizer = load_outline(model)
    template = choose_template(options.chat_template, tokenizer)
    text = tokenizer.decode(prompt_ids(problem.prompt, tokenizer, template))
    return {"template": template.name, "rendered": [{"text": text, "target": False}]}


def _pieces(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The row as text, in runs of tokens that are targets or not."""

    both = zip(encoded.input_ids, encoded.labels, strict=True)
    return [
        {"text": tokenizer.decode([i for i, _ in run]), "target": target}
        for target, run in itertools.groupby(both, key=lambda pair: pair[1] != IGNORED)
    ]


def summary(result: dict[str, Any]) -> list[str]:
    """The result of `check` for people, one line or block each."""
    also = f"; can be used as {' and '.join(result['also'])} too" if result["also"] else ""
    lines = [
        f"{result['source']}: {result['kind']}{also}",
        f"format: {result['format']}",
        f"rows: {result['rows']:,}, of which {result['duplicates']:,} repeat an earlier one",
    ]
    for name, title in (("read", "read"), ("ignored", "left unread"), ("refused", "refused")):
        fields = ", ".join(f"{field} ({count:,})" for field, count in result[name].items())
        lines.append(f"fields {title}: {fields or 'none'}")
    lines += [f"{count:,} {said}" for said, count in result["said"].items()]
    faults = result["faults"]
    lines.append(f"faulty rows: {faults['count']:,}")
    lines += [f"  {fault}" for fault in faults["first"]]
    if faults["count"] > LISTED:
        lines.append(f"  and {faults['count'] - LISTED:,} more")
    if "rendered" in result:
        text = "".join(
            f"«{piece['text']}»" if piece["target"] else piece["text"] for piece in result["rendered"]
        )
        lines += [
            "",
            f"{result['example']['where']}, written by {result['template']}; targets in «»:",
            text,
            "",
        ]
    elif "example" in result:
        lines.append(f"example, {result['example']['where']}:")
        lines += _conversation(result["example"]["turns"])
        if "rejected" in result["example"]:
            lines += ["  the worse answer:", *_conversation(result["example"]["rejected"][-1:])]
    if "tokens" in result:
        counts = result["tokens"]
        lines.append(
            f"the first {counts['of_rows']:,} rows: {counts['tokens']:,} tokens, {counts['supervised']:,} targets; "
            f"{counts['truncated']:,} rows cut at {counts['max_length']:,} tokens, {counts['dropped']:,} dropped"
        )
        lines += result["findings"]
    return lines


def _conversation(turns: Sequence[dict[str, Any]]) -> list[str]:
    """Turns, one a line, with what the template is given besides."""
    lines = []
    for turn in turns:
        fields = f" {json.dumps(turn['fields'], ensure_ascii=False)}" if turn["fields"] else ""
        lines.append(
            f"  {turn['role']}{' (target)' if turn['supervised'] else ''}: {turn['content']}{fields}"
        )
    return lines
