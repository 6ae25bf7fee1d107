"""Contamination: what counts as a problem's text in a training row."""

from __future__ import annotations

import json

import pytest

from rectune.config import DataConfig
from rectune.data.contamination import find_overlap, row_turns, words

LONG = "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May. How many?"


def found(question: str, *turns: str) -> bool:
    return bool(find_overlap({"p": question}, [(f"r:{i}", turn) for i, turn in enumerate(turns, 1)]))


def test_words_are_compared_without_case_and_punctuation():
    assert words("It's $1,250.5 -- ON time!") == ("it", "s", "1,250.5", "on", "time")


@pytest.mark.parametrize(
    ("question", "turn", "expected"),
    [
        (LONG, LONG, True),
        (LONG, f"Question: {LONG.upper()}\nThink step by step.", True),
        (LONG, "x " + " ".join(LONG.split()[2:15]) + " y", True),  # 13 words in a row
        (LONG, "x " + " ".join(LONG.split()[2:14]) + " y", False),  # 12
        (LONG, LONG.replace("48", "49").replace("half", "twice"), False),  # other numbers
        ("What is the sum of 3 and 4?", "Tell me: what is the sum of 3 and 4", True),
        ("What is the sum of 3 and 4?", "what is the sum of 3 and 45", False),
        ("What is 7?", "I wonder what is 7 about", False),  # short: may be chance
        ("What is 7?", "what is 7", True),
        ("", "", False),
    ],
)
def test_what_counts(question, turn, expected):
    assert found(question, "something else entirely", turn) is expected


def test_first_row_is_named_and_order_is_that_of_the_problems():
    turns = [("rows:1", "unrelated words"), ("rows:2", LONG), ("rows:3", LONG)]
    overlaps = find_overlap({"z": LONG, "none": "Is this one here at all, or is it not?", "a": LONG}, turns)
    assert [(o.problem_id, o.where) for o in overlaps] == [("z", "rows:2"), ("a", "rows:2")]
    assert overlaps[0].text.split()[:3] == ["natalia", "sold", "clips"]


def test_rows_of_any_format_are_searched_in_all_turns(tmp_path, monkeypatch):
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    rows = [{"question": "Who?", "answer": f"{LONG}\n#### 72"}, {"question": "What?", "answer": "#### 1"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    turns = list(row_turns(str(path), DataConfig()))
    assert len(turns) == 4
    (overlap,) = find_overlap({"p": LONG}, turns)
    assert overlap.where == f"{path}:1"
