"""Files of answers: `grade` adds a verdict to each line, `select` makes training data of the graded ones.

A graded file has the lines of the samples in the same order; grading is resumable after any kill. Of graded answers
`select` makes rows for RFT/RAFT and offline DFT (`sft` keeps correct answers), or pairs for DPO (a correct answer with
a wrong one). The paper samples n = 4 answers per problem at T = 1 and keeps every correct one: hence at most 4 rows of
a problem by default. Rows hold the turns that were sampled from, so that training with the same template reads the
same prompt tokens.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import field_validator

from rectune.data.readers import read_jsonl
from rectune.errors import UserError, unknown_name
from rectune.grading.pool import Grader, Item, check_item
from rectune.records import (
    ADDED,
    VERDICTS,
    Grade,
    Graded,
    Record,
    SelectionCounts,
    SelectionSettings,
    parse_line,
    write_record,
)
from rectune.runtime.io import check_output, lock_file, translate_disk_errors, write_jsonl
from rectune.runtime.signals import on_interrupt

PURPOSES = ("sft", "dpo")
UNJUDGED = ("timeout", "error")
Prompt = str | list[dict[str, str]]
"""The turns as messages, or the prompt's text where the sample has no turns."""
_OTHER = "it belongs to other samples: choose another output or start anew without resuming"


@dataclass
class Summary:
    """How many lines got which verdict, those of earlier runs included.

    Attributes:
        counts: Every verdict, also those that did not occur.
        resumed: Lines that an earlier run had already graded.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    resumed: int = 0

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        kept = f" ({self.resumed} of them by an earlier run)" if self.resumed else ""
        shares = (f"{name} {n} ({n / max(self.total, 1):.1%})" for name, n in self.counts.items())
        return f"graded {self.total}{kept}: {', '.join(shares)}"


class Ungraded(Record):
    """What grading reads of a line."""

    answer: str | list[str]
    text: str
    grader: str = "math"
    extra: dict[str, object] | None = None

    @field_validator("answer", mode="before")
    @classmethod
    def _number_as_text(cls, answer: object) -> object:
        is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
        return str(answer) if is_number else answer


def grade(
    samples: Path,
    out: Path,
    *,
    grading_workers: int | None = None,
    grading_timeout: float = 5.0,
    grader: Grader | None = None,
    resume: bool = True,
    progress: Callable[[int], None] = lambda _: None,
) -> Summary:
    """Grade every line of `samples` and write it to `out` with `verdict` and `extracted` added.

    An `error` has its `verdict_reason`, too. A line needs `answer` (gold) and `text` (the model's words); `grader` is
    "math" where it is missing, `extra` is for the grader, and other fields pass through as they are written. A run that
    was killed resumes where it stopped, and so does one whose `samples` has grown.

    Args:
        grading_workers: Answers graded at once; all cores if None.
        grading_timeout: Seconds for one answer.
        grader: Processes that are kept for further calls, in place of new ones of these two settings.
        resume: False starts `out` anew.
        progress: Called with the number of lines done, after each.

    Raises:
        UserError: A line that cannot be graded (lines before it are kept), or `out` is of other samples.
    """
    samples, out = Path(samples), Path(out)
    if not samples.is_file():
        raise UserError("no such file", where=samples)
    check_output(out)
    if not 0 < grading_timeout < math.inf:
        raise UserError(f"must be above 0 (got {grading_timeout})", where="--grading-timeout")
    if grading_workers is not None and grading_workers < 1:
        raise UserError(f"must be at least 1 (got {grading_workers})", where="--grading-workers")
    existed = out.exists()
    if existed and samples.samefile(out):
        raise UserError("input and output are the same file", where=out)
    summary = Summary()
    words = "lines are graded; run it again, it resumes"
    with translate_disk_errors(out), open(samples, "rb") as source, _opened(out, anew=not resume) as graded:
        number = _skip_graded(samples, source, out, graded, summary)
        lines, ahead = tee(_lines(samples, source, number))
        pool = nullcontext(grader) if grader else Grader(grading_workers, grading_timeout)
        with on_interrupt(lambda: f"{out}: {summary.total} {words}"), pool as processes:
            try:
                for verdict in processes.stream(item for _, item in ahead):
                    graded.write(_with_verdict(next(lines)[0], verdict))
                    graded.flush()
                    summary.counts[verdict.verdict] += 1
                    progress(summary.total)
                if not summary.total:
                    raise UserError("the file has no samples", where=samples)
            except UserError:
                if not existed and not summary.total:
                    out.unlink()
                raise
    return summary


def graded_lines(path: Path) -> Iterator[tuple[str, Graded]]:
    """Place and content of each line of a graded file.

    Raises:
        UserError: A line is something else.
    """
    for number, content in read_jsonl(path):
        where = f"{path}:{number}"
        yield where, parse_line(Graded, content, "a graded sample", where, "run rectune grade first")


@contextmanager
def _opened(out: Path, *, anew: bool) -> Iterator[BinaryIO]:
    """The output, made if it is missing, for this process alone."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(out, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as graded:
        lock_file(graded, out)
        if anew:
            graded.truncate()
        yield graded


def _lines(path: Path, source: BinaryIO, number: int) -> Iterator[tuple[bytes, Item]]:
    """The lines behind line `number`, as they stand in the file, and what is to be graded of them."""
    for at, line in enumerate(source, number + 1):
        if not line.strip():
            continue
        where = f"{path}:{at}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = "a torn last line can be deleted"
            raise UserError(f"not JSON ({error})", where=where, hint=hint) from None
        sample = parse_line(Ungraded, content, "a sample to grade", where, "a line needs 'answer' and 'text'")
        check_item(sample.grader, sample.extra, where=where)
        yield line, (sample.answer, sample.text, sample.grader, sample.extra)


def _with_verdict(line: bytes, grade: Grade) -> bytes:
    """`line` with the verdict put behind its fields, which stay byte for byte, unless it had a verdict."""
    fields = json.loads(line)
    if fields.keys() & ADDED:
        return json.dumps({**_ungraded(fields), **grade.fields()}).encode() + b"\n"
    return line.strip()[:-1].rstrip() + b", " + json.dumps(grade.fields()).encode()[1:] + b"\n"


def _ungraded(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name not in ADDED}


def _skip_graded(samples: Path, source: BinaryIO, out: Path, graded: BinaryIO, summary: Summary) -> int:
    """Pass over what `out` already holds, cut off its torn last line; the number of the last line read."""
    number = end = 0
    for line in iter(graded.readline, b""):
        if not line.endswith(b"\n"):
            break
        original = b""
        while not original.strip():
            original, number = source.readline(), number + 1
            if not original:
                raise UserError("the output has more lines than the samples", where=out, hint=_OTHER)
        try:
            before, after = json.loads(original), json.loads(line)
            same, verdict = _ungraded(before) == _ungraded(after), after.get("verdict")
        except (ValueError, AttributeError, RecursionError):
            same, verdict = False, None
        if not same or verdict not in VERDICTS:
            what = "is not the graded form of this line of the samples"
            raise UserError(what, where=f"{out}:{number}", hint=_OTHER)
        summary.counts[verdict] += 1
        summary.resumed += 1
        end += len(line)
    graded.seek(end)
    graded.truncate()
    return number


@dataclass
class _Answers:
    """The distinct answers to one problem, each with its text, in the order of the file."""

    prompt: Prompt
    correct: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    def rows(self) -> list[dict[str, object]]:
        return [{"prompt": self.prompt, "completion": text} for text in self.correct.values()]

    def pairs(self, rng: random.Random) -> list[dict[str, object]]:
        """Correct answers with as many wrong ones, matched at random."""
        better, worse = list(self.correct.values()), list(self.wrong.values())
        rng.shuffle(better)
        rng.shuffle(worse)
        return [
            {"prompt": self.prompt, "chosen": chosen, "rejected": rejected}
            for chosen, rejected in zip(better, worse, strict=False)
        ]


def select(
    graded: Path,
    out: Path,
    *,
    purpose: Literal["sft", "dpo"],
    per_problem: int | None = 4,
    balance: bool = False,
    include_unjudged: bool = False,
    include_unfinished: bool = False,
    seed: int = 0,
) -> SelectionCounts:
    """Write rows or pairs to `out`, and the counts to `OUT.counts.json`; returns the counts.

    Answers to a problem that differ only in spacing count once. A row is `prompt` (the turns; the text as the
    model read it where the samples do not have them, for `chat_template = "none"`) and `completion`; a pair
    is `prompt`, `chosen` and `rejected`, every answer in at most one pair.

    Args:
        graded: Graded samples of one model.
        per_problem: Maximum number of rows or pairs of a problem, chosen with the seed; None keeps all.
        balance: Repeat rows or pairs until every problem has as many as the one with most.
        include_unjudged: Also take answers whose grading timed out or broke as the rejected ones of pairs.
        include_unfinished: Also take answers that were cut at the token limit as correct ones; training on such a
            row teaches to stop there.

    Raises:
        UserError: A line that is not a graded sample, samples of two models, nothing to keep, or impossible
        settings.
    """
    graded, out = Path(graded), Path(out)
    if purpose not in PURPOSES:
        raise unknown_name("purpose", purpose, PURPOSES, where="--for")
    if per_problem is not None and per_problem < 1:
        raise UserError(f"must be at least 1 (got {per_problem})", where="--per-problem")
    check_output(out)
    if graded.resolve() == out.resolve():
        raise UserError("the input would be overwritten", where=graded, hint="give another --output")
    answers, counts, temperature = _read_answers(graded, include_unjudged, include_unfinished)
    chosen = {}
    for problem_id, distinct in answers.items():
        rng = random.Random(f"{seed} {problem_id}")  # of its own, so that other problems change nothing
        found = distinct.rows() if purpose == "sft" else distinct.pairs(rng)
        if per_problem is not None and len(found) > per_problem:
            found = [found[i] for i in sorted(rng.sample(range(len(found)), per_problem))]
        if found:
            chosen[problem_id] = [{"problem_id": problem_id, **record} for record in found]
    if not chosen:
        lacking = "correct answer" if purpose == "sft" else "problem with both a correct and a wrong answer"
        hint = "sample more, or easier problems"
        if counts["cut_off"]:
            hint = f"{counts['cut_off']} correct ones are cut at the token limit: raise it, or --include-unfinished"
        raise UserError(f"the file has no {lacking}", where=graded, hint=hint)
    selected, used = sum(map(len, chosen.values())), len(chosen)
    if balance:
        most = max(map(len, chosen.values()))
        chosen = {id: [records[i % len(records)] for i in range(most)] for id, records in chosen.items()}
    written = [record for records in chosen.values() for record in records]
    settings = SelectionSettings(
        graded=str(graded), purpose=purpose, per_problem=per_problem, balance=balance,
        temperature=temperature, samples_per_problem=counts["samples"] / counts["problems"],
        unjudged=include_unjudged, unfinished=include_unfinished, seed=seed,
    )  # fmt: skip
    result = SelectionCounts.model_validate(
        {
            **counts,
            "kept" if purpose == "sft" else "pairs": selected,
            "used_problems": used,
            "written": len(written),
            "settings": settings,
        }
    )
    write_jsonl(out, written)
    write_record(out.with_name(out.name + ".counts.json"), result)
    return result


def _read_answers(
    path: Path, unjudged: bool, unfinished: bool
) -> tuple[dict[str, _Answers], Counter[str], float | None]:
    """The answers by problem, how many of what there are, and the temperature of the first."""
    answers: dict[str, _Answers] = {}
    counts = Counter(dict.fromkeys(("samples", *VERDICTS, "cut_off", "duplicates"), 0))
    first: Graded | None = None
    for where, sample in graded_lines(path):
        first = first or sample
        if sample.fingerprint != first.fingerprint:
            raise UserError(
                "the file has samples of two models", where=where, hint="select from each model separately"
            )
        distinct = answers.setdefault(sample.problem_id, _Answers(_prompt_of(sample, where)))
        counts["samples"] += 1
        counts[sample.verdict] += 1
        correct = sample.verdict == "correct"
        if correct and sample.finish_reason == "length" and not unfinished:
            counts["cut_off"] += 1
        elif sample.verdict not in UNJUDGED or unjudged:
            spelled = " ".join(sample.text.split())
            same = distinct.correct if correct else distinct.wrong
            counts["duplicates"] += spelled in same
            if spelled:
                same.setdefault(spelled, sample.text)
    if first is None:
        raise UserError("the file has no samples", where=path)
    counts["problems"] = len(answers)
    counts["without_correct"] = sum(not distinct.correct for distinct in answers.values())
    counts["without_wrong"] = sum(not distinct.wrong for distinct in answers.values())
    return answers, counts, first.temperature


def _prompt_of(sample: Graded, where: str) -> Prompt:
    if sample.turns:
        return [{"role": turn.role, "content": turn.content} for turn in sample.turns]
    if sample.prompt is None:
        raise UserError("the sample has no prompt to train with", where=where)
    return sample.prompt
