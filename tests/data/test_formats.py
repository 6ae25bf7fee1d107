"""Each format's records become the right turns, and are told apart by their fields."""

from __future__ import annotations

from typing import Any

import pytest

from rectune.data.formats import detect_format, to_row
from rectune.data.rows import Row, Turn
from rectune.errors import UserError

HI = Turn("user", "hi")
YO = Turn("assistant", "yo", True)
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
R1 = {"problem": "hi", "solution": "no", "generations": ["a", "b", "yo"], "messages": CHAT, "source": "aime"}

RECORDS: list[tuple[str, dict[str, Any], tuple[Turn, ...]]] = [
    ("prompt_completion", {"prompt": "hi", "completion": "yo"}, (HI, YO)),
    ("prompt_completion", {"prompt": CHAT, "completion": CHAT[1:]}, (HI, Turn("assistant", "yo"), YO)),
    ("messages", {"messages": [*CHAT, *CHAT]}, (HI, YO, HI, YO)),
    ("messages", {"messages": [CHAT[0], {**CHAT[1], "train": False}, *CHAT]},
     (HI, Turn("assistant", "yo"), HI, YO)),
    ("messages", {"messages": [CHAT[0], {**CHAT[1], "weight": 0}, CHAT[0], {**CHAT[1], "weight": 1}]},
     (HI, Turn("assistant", "yo"), HI, YO)),
    ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}, (HI, YO)),
    ("sharegpt", {"system": "s", "conversations": [{"from": "gpt", "value": "yo"}]}, (Turn("system", "s"), YO)),
    ("alpaca", {"instruction": "hi", "input": "", "output": "yo"}, (HI, YO)),
    ("alpaca", {"instruction": "hi", "input": "you", "output": "yo"}, (Turn("user", "hi\n\nyou"), YO)),
    ("gsm8k", {"question": "hi", "answer": "2*3 = <<2*3=6>>6\n#### 6"},
     (HI, Turn("assistant", "2*3 = 6\n#### 6", True))),
    ("numina", {"problem": "hi", "solution": "yo", "messages": CHAT, "source": "cn_k12"}, (HI, YO)),
    ("openr1", {**R1, "correctness_math_verify": [False, None, True]}, (HI, YO)),
    ("openr1", {**R1, "correctness_math_verify": [False] * 3, "correctness_llama": [False, False, True]}, (HI, YO)),
    ("openr1", {**R1, "is_reasoning_complete": [False, False, True]}, (HI, YO)),
    ("openr1", R1, (HI, Turn("assistant", "a", True))),
]  # fmt: skip


def row(format: str, record: dict[str, Any], *, system: str | None = None, **columns: str) -> Row | None:
    return to_row(record, "f:1", format=format, columns=columns, system=system)


@pytest.mark.parametrize(("format", "record", "turns"), RECORDS)
def test_turns(format: str, record: dict[str, Any], turns: tuple[Turn, ...]) -> None:
    assert detect_format([record] * 3, "f") == format
    assert row(format, record) == Row(turns, "f:1", record.get("source", ""))


def test_openr1_without_a_correct_generation_has_no_row() -> None:
    assert row("openr1", {**R1, "correctness_math_verify": [False] * 3, "correctness_llama": None}) is None


def test_one_bad_record_does_not_change_the_format() -> None:
    good = {"prompt": "hi", "completion": "yo"}
    assert detect_format([{"prompt": "hi"}, good, good], "f") == "prompt_completion"
    with pytest.raises(UserError, match="fields text, label; say which is which"):
        detect_format([{"text": "hi", "label": "yo"}], "f")


def test_mapping() -> None:
    record = {"q": "hi", "a": "yo", "s": "sys"}
    assert row("mapping", record, prompt="q", completion="a") == Row((HI, YO), "f:1")
    with_system = row("mapping", record, prompt="q", completion="a", system_="s")
    assert with_system == Row((HI, YO), "f:1")
    mapped = to_row(
        record, "f:1", format="mapping", columns={"prompt": "q", "completion": "a", "system": "s"}, system="x"
    )
    assert mapped == Row((Turn("system", "sys"), HI, YO), "f:1")


def test_system_message_only_where_there_is_none() -> None:
    made = row("prompt_completion", {"prompt": "hi", "completion": "yo"}, system="be kind")
    assert made is not None
    assert made.turns[0] == Turn("system", "be kind")
    own = {"messages": [{"role": "system", "content": "own"}, *CHAT]}
    made = row("messages", own, system="be kind")
    assert made is not None
    assert [turn.content for turn in made.turns] == ["own", "hi", "yo"]


@pytest.mark.parametrize(
    ("format", "record", "message"),
    [
        ("prompt_completion", {"prompt": "hi"}, "field 'completion' is missing; has: prompt"),
        ("prompt_completion", {"prompt": 5, "completion": "yo"}, "field 'prompt' is number, not text"),
        ("prompt_completion", {"prompt": "hi", "completion": None}, "field 'completion' is null, not text"),
        ("prompt_completion", {"prompt": "hi", "completion": " \n"}, "the completion is empty"),
        ("messages", {"messages": "hi"}, "field 'messages' is text, not a list"),
        ("messages", {"messages": []}, "field 'messages' is empty"),
        ("messages", {"messages": ["hi"]}, r"field 'messages\[0\]' is text, not an object"),
        ("messages", {"messages": [{"role": "user"}]}, r"field 'messages\[0\].content' is missing, not text"),
        ("messages", {"messages": [{**CHAT[0], "role": "asistant"}]}, "did you mean 'assistant'"),
        ("messages", {"messages": [{**CHAT[1], "tool_calls": [1]}]}, "a tool call without a name"),
        ("messages", {"messages": CHAT[:1]}, "no assistant turn to learn from"),
        ("sharegpt", {"conversations": [{"from": "bot", "value": "yo"}]}, "unknown speaker 'bot'"),
        ("alpaca", {"instruction": "hi", "input": 3, "output": "yo"}, "field 'input' is number"),
        ("openr1", {**R1, "correctness_math_verify": [True]}, "not a list of 3 marks"),
        ("openr1", {**R1, "generations": [7]}, r"field 'generations\[0\]' is number"),
    ],
)
def test_what_is_wrong_is_said(format: str, record: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^f:1: .*{message}"):
        row(format, record)
