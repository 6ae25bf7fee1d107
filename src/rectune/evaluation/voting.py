"""Which answers to a problem vote together: those that the grader finds equal, wrong ones too.

Answers of one spelling or one number are one group at once; what is left is asked of the grader's own processes, which
bound the time of each comparison. A group is compared by its first answer, and each answer with the `COMPARED` most
frequent groups of its problem at most, so that the work grows with the number of samples and not with its square.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rectune.grading.exact import evaluate_expression, plain_words
from rectune.grading.normalization import normalize_answer, read_number
from rectune.grading.pool import Grader
from rectune.records import MAX_EXTRACTED

COMPARED = 16
"""Groups of one problem that an answer is compared with."""
Line = Mapping[str, Any]


def votes(samples: Mapping[str, Sequence[Line]]) -> list[list[object]]:
    """What each sample of each problem votes for, equal for equal answers; None where it answers nothing."""
    spelled = {name: [_spelling(line) for line in lines] for name, lines in samples.items()}
    compared = {
        name: _Problem(lines, spelled[name])
        for name, lines in samples.items()
        if lines[0].get("grader", "math") == "math"
    }
    _group([problem for problem in compared.values() if problem.pending])
    return [compared[name].named(keys) if name in compared else keys for name, keys in spelled.items()]


def _spelling(line: Line) -> object:
    """A key that only equal answers share: a number's value, a calculation's, or the text in one spelling."""
    if line["verdict"] == "unparsed" or not line.get("extracted"):
        return None
    extracted, grader = str(line["extracted"]), line.get("grader", "math")
    if grader == "expression":
        value = evaluate_expression(extracted)
        return extracted if value is None else value
    if grader == "exact":
        return plain_words(extracted)
    if line["verdict"] == "correct":
        return "correct"
    text = normalize_answer(extracted)
    number = None if text.endswith("%") else read_number(text)
    return text.replace(" ", "") if number is None else number.value


class _Problem:
    """The wrong answers to one problem that have to be compared."""

    def __init__(self, lines: Sequence[Line], keys: Sequence[object]) -> None:
        wrong = [(key, line) for key, line in zip(keys, lines, strict=True) if key not in (None, "correct")]
        self.texts = {key: str(line["extracted"]) for key, line in reversed(wrong)}
        self.pending = [key for key, _ in Counter(key for key, _ in wrong).most_common()]
        self.group: dict[object, object] = {}
        self.firsts: list[object] = []
        extra = lines[0].get("extra") or {}
        kept = ("tolerance", "error", "multiple", "is_multiple_answer")
        self.extra = {name: extra[name] for name in kept if name in extra} | {"extract": ["whole"]}

    def rivals(self) -> list[object]:
        """The groups that the next answer may belong to."""
        return [first for first in self.firsts[:COMPARED] if self._may_equal(first, self.pending[0])]

    def _may_equal(self, one: object, other: object) -> bool:
        texts = [self.texts[key] for key in (one, other)]
        if any(len(text) >= MAX_EXTRACTED for text in texts):  # cut off
            return False
        exact = [read_number(normalize_answer(text)) for text in texts]
        return not all(number and not number.step for number in exact) or any("%" in text for text in texts)

    def join(self, first: object | None) -> None:
        """Put the next answer into a group, or begin its own."""
        key = self.pending.pop(0)
        self.group[key] = key if first is None else first
        if first is None:
            self.firsts.append(key)

    def named(self, keys: Sequence[object]) -> list[object]:
        return [self.group.get(key, key) for key in keys]


def _group(problems: list[_Problem]) -> None:
    """Group the answers of all problems, one of each at a time, so that comparisons of many run side by side."""
    grader: Grader | None = None
    try:
        while problems:
            rivals = [problem.rivals() for problem in problems]
            items = [
                (problem.texts[first], problem.texts[problem.pending[0]], "math", problem.extra)
                for problem, firsts in zip(problems, rivals, strict=True)
                for first in firsts
            ]
            if items and grader is None:
                grader = Grader()
            same = iter([one.verdict == "correct" for one in grader.grade(items)] if grader and items else [])
            for problem, firsts in zip(problems, rivals, strict=True):
                equal = [first for first in firsts if next(same)]
                problem.join(equal[0] if equal else None)
            problems = [problem for problem in problems if problem.pending]
    finally:
        if grader is not None:
            grader.close()
