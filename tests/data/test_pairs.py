"""Pairs in their usual layouts give the same prompt and answers, and what is wrong with a line is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rectune.config import DataConfig
from rectune.data.loading import read_rows, row_at
from rectune.data.schema import Turn
from rectune.errors import UserError
from rectune.grading.files import select

CASES = Path(__file__).parents[1] / "cases"
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
ASKED = (Turn("system", "Be brief."), Turn("user", "How many?"))
Q = {"role": "user", "content": "q"}


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def graded(index: int, verdict: str, text: str, **more: object) -> dict[str, object]:
    line = {"problem_id": "a", "sample_index": index, "prompt": "<read>", "turns": TURNS, "verdict": verdict}
    return {**line, "text": text, "fingerprint": "f", "finish_reason": "stop", "temperature": 1.0, **more}


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def sides(path: Path, cache: Path) -> list[tuple[Turn, ...]]:
    """The turns of the first better and the first worse answer, prompts included."""
    found = []
    for format in ("chosen", "rejected"):
        dataset = read_rows(str(path), options=DataConfig(data_format=format), cache_dir=cache)
        found.append(row_at(dataset, 0).turns)
    return found


@pytest.mark.parametrize(("turns", "prompt"), [(TURNS, ASKED), ([], (Turn("user", "<read>"),))])
def test_what_select_writes(tmp_path: Path, turns: list[dict[str, str]], prompt: tuple[Turn, ...]) -> None:
    samples = [graded(0, "correct", "4", turns=turns), graded(1, "wrong", "5", turns=turns)]
    select(lines(tmp_path / "graded.jsonl", *samples), tmp_path / "pairs.jsonl", purpose="dpo")
    assert sides(tmp_path / "pairs.jsonl", tmp_path) == [
        (*prompt, Turn("assistant", "4", True)),
        (*prompt, Turn("assistant", "5", True)),
    ]


@pytest.mark.parametrize("record", [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"question": "q", "chosen": "a", "rejected": "b", "score_chosen": 9.0},
    {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
    {"prompt": [Q], "chosen": [said("a")], "rejected": [said("b")]},
    {"prompt": "q", "chosen": [Q, said("a")], "rejected": [Q, said("b")]},
    {"prompt": "q\n", "chosen": [Q, said("a")], "rejected": [Q, said("b")], "messages": [Q, said("a")]},
    {"chosen": [Q, said("a")], "rejected": [Q, said("b")]},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
     "rejected": {"from": "gpt", "value": "b"}},
    {"prompt": "q", "chosen": json.dumps([Q, said("a")]), "rejected": json.dumps([Q, said("b")])},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"},
    {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "\n\nHuman: q\n\nAssistant: a",
     "rejected": "\n\nHuman: q\n\nAssistant: b"},
])  # fmt: skip
def test_layouts(record: dict[str, Any], tmp_path: Path) -> None:
    better, worse = sides(lines(tmp_path / "p.jsonl", record), tmp_path)
    assert better[:-1] == worse[:-1] == (Turn("user", "q"),)
    assert [side[-1].content.strip() for side in (better, worse)] == ["a", "b"]
    assert better[-1].supervised
    assert worse[-1].supervised


def test_the_prompt_is_what_both_begin_with(tmp_path: Path) -> None:
    """Longer than `prompt`, which is the first question only, and with a system message in front."""
    start = [*TURNS, said("4?"), Q]
    record = {"prompt": "How many?", "chosen": [*start, said("a")], "rejected": [*start, said("b")]}
    better, worse = sides(lines(tmp_path / "p.jsonl", record), tmp_path)
    prompt = (*ASKED, Turn("assistant", "4?"), Turn("user", "q"))
    assert better == (*prompt, Turn("assistant", "a", True))
    assert worse == (*prompt, Turn("assistant", "b", True))


def test_the_question_is_not_doubled(tmp_path: Path) -> None:
    better, worse = sides(CASES / "01-pair-question-inside" / "pairs.jsonl", tmp_path)
    assert better == (Turn("user", "Name river number 0."), Turn("assistant", "River 0.", True))
    assert worse == (Turn("user", "Name river number 0."), Turn("assistant", "Bread.", True))


def test_what_stands_beside(tmp_path: Path) -> None:
    record = {"prompt": "q", "system": "s", "history": [["u", "v"]], "context": "c", "tools": [{"name": "t"}],
              "chosen": [said("a", reasoning_content="r")], "rejected": "b"}  # fmt: skip
    path = lines(tmp_path / "p.jsonl", record)
    better, _ = sides(path, tmp_path)
    assert better == (Turn("system", "s"), Turn("user", "u"), Turn("assistant", "v"), Turn("user", "c\n\nq"),
                      Turn("assistant", "a", True, '{"reasoning_content": "r"}'))  # fmt: skip
    dataset = read_rows(str(path), options=DataConfig(data_format="rejected"), cache_dir=tmp_path)
    assert row_at(dataset, 0).tools == '[{"type": "function", "function": {"name": "t"}}]'


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
        ({**GOOD, "prompt": [*TURNS, said("4")]}, "p.jsonl:2: field 'prompt' does not end"),
        ({**GOOD, "prompt": [{"role": "usr", "content": "q"}]}, "p.jsonl:2: unknown role 'usr'"),
        ({**GOOD, "images": ["a.png"]}, "p.jsonl:2: field 'images' is not supported"),
        (
            {"prompt": "z", "chosen": [Q, said("a")], "rejected": [Q, said("b")]},
            "p.jsonl:2: field 'prompt' is not",
        ),
        (
            {"chosen": [Q, said("a")], "rejected": [{**Q, "content": "z"}, said("b")]},
            "p.jsonl:2: 'chosen' does not begin with an answer",
        ),
        ([1], "p.jsonl:2: the line is a JSON list, not an object"),
    ],
)
@pytest.mark.parametrize("format", ["chosen", "rejected"])
def test_a_bad_pair_is_named(tmp_path: Path, record: object, line: str, format: str) -> None:
    path = lines(tmp_path / "p.jsonl", GOOD, record)
    with pytest.raises(UserError) as caught:
        read_rows(str(path), options=DataConfig(data_format=format), cache_dir=tmp_path)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fields_of_other_names(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"q": "q", "good": "a", "bad": "b", "system": "s"})
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    for format, answer in (("chosen", "a"), ("rejected", "b")):
        options = DataConfig(data_format=format, columns=columns)
        row = row_at(read_rows(str(path), options=options, cache_dir=tmp_path), 0)
        assert row.turns == (Turn("system", "s"), Turn("user", "q"), Turn("assistant", answer, True))
    with pytest.raises(UserError, match=r"columns: unknown column 'completion'"):
        read_rows(
            str(path),
            options=DataConfig(data_format="chosen", columns={"completion": "good"}),
            cache_dir=tmp_path,
        )


def test_both_sides_lose_the_same_pairs(tmp_path: Path) -> None:
    """Else a better answer would be paired with the worse one to another prompt."""
    bad = {"prompt": "q", "chosen": "a", "rejected": [said(""), said("b")]}
    path = lines(tmp_path / "p.jsonl", bad, GOOD, {**GOOD, "chosen": ""})
    for format in ("chosen", "rejected"):
        options = DataConfig(data_format=format, skip_bad_rows=True)
        dataset = read_rows(str(path), options=options, cache_dir=tmp_path)
        assert dataset["where"][:] == [f"{path}:2"]


def test_pairs_are_not_rows(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", GOOD)
    with pytest.raises(UserError, match=r"--objective dpo, or on the better answers"):
        read_rows(str(path), options=DataConfig(), cache_dir=tmp_path)


def test_input_alone_is_the_prompt(tmp_path: Path) -> None:
    record = {"system": "s", "input": "q", "chosen": "a", "rejected": "b"}  # distilabel-intel-orca-dpo-pairs
    path = lines(tmp_path / "p.jsonl", record)
    rows = read_rows(str(path), options=DataConfig(data_format="chosen"), cache_dir=tmp_path)
    turns = row_at(rows, 0).turns
    assert [(t.role, t.content, t.supervised) for t in turns] == [
        ("system", "s", False), ("user", "q", False), ("assistant", "a", True)
    ]  # fmt: skip
