"""Verdicts that people gave: each line of these files is graded as `want` says, by the processes that grade files.

`by_hand.jsonl` is by kind of answer, `public_pairs.jsonl` by the report of a grader that judged it wrong,
`published_tests.jsonl` by the grader whose tests it comes from; `tests/cases` are whole situations. A changed verdict
needs a reason in mathematics, not in what the code gives.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rectune.grading import Grader

HERE = Path(__file__).parent
TABLES = [HERE / f"{name}.jsonl" for name in ("by_hand", "public_pairs", "published_tests")]
SITUATIONS = [
    next((HERE.parent / "cases").glob(f"{n}-*")) / "in.jsonl" for n in ("26", "29", "30", "38", "42", "43")
]
ROWS = [json.loads(line) for path in [*TABLES, *SITUATIONS] for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1, timeout=20.0) as grader:
        yield grader


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['answer']} | {row['text']}"[:70])
def test_verdict_is_the_one_that_people_gave(row: dict, grader: Grader) -> None:
    item = (row["answer"], row["text"], row.get("grader", "math"), row.get("extra"))
    (graded,) = grader.grade([item])
    assert graded.verdict == row["want"], (row.get("source"), graded)


def test_there_are_many_rows_of_all_verdicts() -> None:
    verdicts = Counter(row["want"] for row in ROWS)
    assert min(verdicts[name] for name in ("correct", "wrong", "unparsed")) > 30 and len(ROWS) > 2000
