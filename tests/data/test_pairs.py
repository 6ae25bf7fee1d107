"""Pairs are read back as they were written, and what is wrong with a line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rectune.data.pairs import read_pairs
from rectune.data.rows import Pair, Turn
from rectune.errors import UserError
from rectune.selection import select

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]


def graded(index: int, verdict: str, text: str, **more: object) -> dict[str, object]:
    line = {"problem_id": "a", "sample_index": index, "prompt": "<read>", "turns": TURNS, "verdict": verdict}
    return {**line, "text": text, "fingerprint": "f", "finish_reason": "stop", "temperature": 1.0, **more}


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("turns", "prompt"),
    [
        (TURNS, (Turn("system", "Be brief."), Turn("user", "How many?"))),
        ([], (Turn("user", "<read>"),)),
    ],
)
def test_what_select_writes(tmp_path: Path, turns: list[dict[str, str]], prompt: tuple[Turn, ...]) -> None:
    samples = [graded(0, "correct", "4", turns=turns), graded(1, "wrong", "5", turns=turns)]
    select(lines(tmp_path / "graded.jsonl", *samples), tmp_path / "pairs.jsonl", purpose="dpo")
    path = tmp_path / "pairs.jsonl"
    assert read_pairs(path) == [Pair(prompt, "4", "5", f"{path}:1")]


GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"prompt": "q", "chosen": "a"}, "p.jsonl:2: field 'rejected' is missing; has: prompt, chosen"),
        ({"chosen": "a", "rejected": "b"}, "p.jsonl:2: field 'prompt' is missing"),
        ({**GOOD, "chosen": 3}, "p.jsonl:2: field 'chosen' is number, not text"),
        ({**GOOD, "rejected": " \n"}, "p.jsonl:2: field 'rejected' is empty"),
        ({**GOOD, "rejected": "a"}, "p.jsonl:2: chosen and rejected are the same answer"),
        ({**GOOD, "prompt": []}, "p.jsonl:2: field 'prompt' does not end with a turn to answer"),
        ({**GOOD, "prompt": 3}, "p.jsonl:2: field 'prompt' is number, not text"),
        (
            {**GOOD, "prompt": [*TURNS, {"role": "assistant", "content": "4"}]},
            "p.jsonl:2: field 'prompt' does not end",
        ),
        ({**GOOD, "prompt": [{"role": "usr", "content": "q"}]}, "p.jsonl:2: unknown role 'usr'"),
        ([1], "p.jsonl:2: is a JSON list, not an object"),
    ],
)
def test_a_bad_pair_is_named(tmp_path: Path, record: object, line: str) -> None:
    with pytest.raises(UserError) as caught:
        read_pairs(lines(tmp_path / "p.jsonl", GOOD, record))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p.jsonl: has no pairs"):
        read_pairs(lines(tmp_path / "p.jsonl"))
    with pytest.raises(UserError, match=r"missing.jsonl: cannot be read"):
        read_pairs(tmp_path / "missing.jsonl")
