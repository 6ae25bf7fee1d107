"""Weights for training rows from a model's graded answers: 1 minus the share that it solves (`rectune weigh`).

The weight of OSW-FT (arXiv:2609.00734, Algorithm 1): w = 1 - p, p the share of correct answers to the row's problem.
There it follows the model in training, with new answers before each batch; here it is that of one model, mostly the
base. What training does with weights is in `training/dataloader.py`.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rectune.config import WeighConfig
from rectune.data.converters import WEIGHT_NAMES, to_row
from rectune.data.fields import as_weight, holds
from rectune.data.loading import open_source, resolve_format
from rectune.data.schema import RawRecord, Turn
from rectune.data.trained_prompt import without_wrapping
from rectune.errors import UserError
from rectune.grading.files import UNJUDGED, graded_lines
from rectune.records import RowWeights, SampledTurn, WeighCounts, write_record
from rectune.runtime.io import check_output, write_jsonl

log = logging.getLogger("rectune")


@dataclass
class _Problem:
    """What a problem asks, and the verdicts on a model's answers to it."""

    question: str
    verdicts: Counter[str] = field(default_factory=Counter)

    def weight(self) -> float | None:
        """1 minus the share of judged answers that are correct; None where none was judged."""
        judged = sum(count for verdict, count in self.verdicts.items() if verdict not in UNJUDGED)
        return 1 - self.verdicts["correct"] / judged if judged else None


@dataclass
class _Row:
    """A record of the source, what it asks ("" where it has no target), and its weight."""

    where: str
    record: RawRecord
    question: str
    weight: object = None
    name: str = WEIGHT_NAMES[0]


def weigh(config: WeighConfig) -> WeighCounts:
    """Write the rows of `config.data` with weights to `config.output`, and the counts to OUTPUT.counts.json.

    A row's problem is the one whose question it has, spaces aside and without what stands around every question; else
    the one whose id is the row's `problem_id`. Rows of no problem with a judged answer keep no weight, which is 1 in
    training. All other fields stay as they are.

    Raises:
        UserError: Rows that training would refuse or that have weights already, a file that is not of graded samples of
            one model, no row of a graded problem, or no weight above 0.
    """
    out, graded = config.output, config.graded
    check_output(out)
    for source in (Path(config.data).expanduser(), graded):
        if source is not None and source.resolve() == out.resolve():
            raise UserError("the input would be overwritten", where=source, hint="give another --output")
    if graded is None and config.shuffle_weights is None:
        raise UserError("missing", where="--graded", hint="or --shuffle-weights, for rows that have weights")
    rows = list(_rows(config))
    counts = {} if graded is None else _weigh(rows, graded)
    weighted = [row for row in rows if row.weight is not None]
    if not weighted:
        what = f"is of a problem with judged answers in {graded}" if graded else "has a weight"
        raise UserError(f"no row {what}", where=config.data)
    if config.shuffle_weights is not None:
        _shuffle(weighted, config.shuffle_weights)
    values = [as_weight(row.weight) for row in weighted]
    if not any(values) and len(weighted) == len(rows):
        raise UserError("the weight of every row is 0", where=config.data, hint="harder problems are needed")
    weights = RowWeights(
        mean=sum(values) / len(values), min=min(values), max=max(values), zero=values.count(0) / len(values)
    )
    result = WeighCounts(
        data=config.data, graded=None if graded is None else str(graded), shuffle_weights=config.shuffle_weights,
        rows=len(rows), weighted=len(weighted), **counts, weights=weights,
    )  # fmt: skip
    write_jsonl(
        out, (row.record if row.weight is None else {**row.record, row.name: row.weight} for row in rows)
    )
    write_record(out.with_name(out.name + ".counts.json"), result)
    _say(result)
    return result


def _shuffle(rows: Sequence[_Row], seed: int) -> None:
    weights = [row.weight for row in rows]
    random.Random(seed).shuffle(weights)
    for row, weight in zip(rows, weights, strict=True):
        row.weight = weight


def _rows(config: WeighConfig) -> Iterator[_Row]:
    """The rows of the source with the weights that they bring."""
    records = open_source(config.data, split=config.split)
    format = resolve_format(records, config)
    for where, record in records:
        row = to_row(record, where, format, config)
        turns = () if row is None else row.turns
        first = next((i for i, turn in enumerate(turns) if turn.supervised), 0)
        question = _question_of(turns[:first])
        names = [
            name for name in WEIGHT_NAMES if holds(record.get(name)) and name not in config.ignore_fields
        ]
        if not names:
            yield _Row(where, record, question)
        elif config.graded is None:
            yield _Row(where, record, question, record[names[0]], names[0])
        else:
            raise UserError(
                f"the row has a weight already ('{names[0]}')", where=where, hint="remove the field"
            )


def _question_of(turns: Iterable[Turn | SampledTurn]) -> str:
    return "\n".join(turn.content for turn in turns if turn.role == "user")


def _weigh(rows: Sequence[_Row], graded: Path) -> dict[str, int]:
    """Give each row the weight of its problem; returns how many were found how, and how many were not."""
    by_id, samples, correct = _problems(graded)
    by_question = dict[str, _Problem]()
    for keys, problem in zip(_keys([p.question for p in by_id.values()]), by_id.values(), strict=True):
        for key in keys:
            by_question.setdefault(key, problem)
    counts = dict.fromkeys(("by_question", "by_problem_id", "unmatched", "unjudged"), 0)
    for row, keys in zip(rows, _keys([row.question for row in rows]), strict=True):
        matched = next((by_question[key] for key in keys if key in by_question), None)
        how = "by_problem_id" if matched is None else "by_question"
        found = matched or by_id.get(str(row.record.get("problem_id")))
        if found is None or not row.question:
            counts["unmatched"] += 1
            continue
        row.weight = found.weight()
        counts["unjudged" if row.weight is None else how] += 1
    return {**counts, "problems": len(by_id), "samples": samples, "correct": correct}


def _keys(questions: Sequence[str]) -> Iterator[list[str]]:
    """By what each question is found: as it is, and without what stands around all of them, spaces aside."""
    for forms in zip(questions, without_wrapping(questions), strict=True):
        yield [key for form in forms if (key := " ".join(form.split()))]


def _problems(graded: Path) -> tuple[dict[str, _Problem], int, int]:
    """The problems by id, those that ask the same as one; how many samples there are, and how many are correct."""
    path = graded / "graded.jsonl" if graded.is_dir() else graded
    by_id, by_question = dict[str, _Problem](), dict[str, _Problem]()
    fingerprint, samples, correct = None, 0, 0
    for where, sample in graded_lines(path):
        fingerprint = sample.fingerprint if not samples else fingerprint
        if sample.fingerprint != fingerprint:
            hint = "weigh by one model's answers"
            raise UserError("the file has samples of two models", where=where, hint=hint)
        if sample.problem_id not in by_id:
            question = _question_of(sample.turns or ())
            problem = by_question.setdefault(question, _Problem(question)) if question else _Problem("")
            by_id[sample.problem_id] = problem
        by_id[sample.problem_id].verdicts[sample.verdict] += 1
        samples, correct = samples + 1, correct + (sample.verdict == "correct")
    if not samples:
        raise UserError("the file has no samples", where=path)
    return by_id, samples, correct


def _say(counts: WeighCounts) -> None:
    log.info("weights of %s of %s rows: %s", f"{counts.weighted:,}", f"{counts.rows:,}", counts.weights)
    if counts.by_problem_id:
        log.warning("%s rows are of a problem by their problem_id alone", f"{counts.by_problem_id:,}")
    for number, what in (
        (counts.unmatched, "match no graded problem"),
        (counts.unjudged, "are of problems without a judged answer"),
    ):
        if number:
            log.warning("%s rows %s: they get no weight, which training reads as 1", f"{number:,}", what)
