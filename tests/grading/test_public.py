"""Verdicts on answers from public reports of graders that judged them wrong, and on variants of them by kind.

`public_pairs.jsonl` names the report of each pair, `published_tests.jsonl` the graders' tests that others come
from. All go through `grade_answers`, as files do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grading.variants import BOXED, TEXTS
from rectune.grading import Grader

HERE = Path(__file__).parent
FILES = [
    HERE / "public_pairs.jsonl",
    HERE / "published_tests.jsonl",
    *(next((HERE.parent / "cases").glob(f"{number}-*")) / "in.jsonl" for number in (26, 29, 30, 38, 42, 43)),
]


def rows() -> Iterator[tuple[str, str, str, str, dict[str, Any] | None]]:
    """Gold, text, wanted verdict, grader, extra."""
    for path in FILES:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            yield row["answer"], row["text"], row["want"], row.get("grader", "math"), row.get("extra")
    for gold, content, want, *extra in BOXED:
        yield gold, rf"Thus the answer is $\boxed{{{content}}}$.", want, "math", *(extra or [None])
    for gold, text, want, *extra in TEXTS:
        yield gold, text, want, "math", *(extra or [None])


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1, timeout=20.0) as grader:
        yield grader


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: f"{row[0]} | {row[1]}"[:70])
def test_verdict_is_the_right_one(row: tuple, grader: Grader) -> None:
    gold, text, want, name, extra = row
    (graded,) = grader.grade([(gold, text, name, extra)])
    assert graded.verdict == want, graded


def test_there_are_many_variants_of_all_verdicts() -> None:
    assert len(BOXED) + len(TEXTS) > 450
    assert {row[2] for row in (*BOXED, *TEXTS)} == {"correct", "wrong", "unparsed"}
