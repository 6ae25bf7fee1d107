"""Each format's records become the right turns, and are told apart by their fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rectune.config import DataConfig
from rectune.data.converters import detect_format, to_row
from rectune.data.fields import Notes
from rectune.data.schema import Row, Turn
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
    ("gsm8k", {"question": "hi", "answer": "f<<<4, 64>>>(x) <<interface>> <<1+1=2>>2\n#### 2"},
     (HI, Turn("assistant", "f<<<4, 64>>>(x) <<interface>> 2\n#### 2", True))),
    ("question_answer", {"question": "hi", "answer": "2*3 = <<2*3=6>>6"},
     (HI, Turn("assistant", "2*3 = <<2*3=6>>6", True))),
    ("question_answer", {"question": "hi", "answer": 6}, (HI, Turn("assistant", "6", True))),
    ("question_answer", {"question": "hi", "passage": "so", "answer": True},
     (Turn("user", "so\n\nhi"), Turn("assistant", "yes", True))),
    ("question_answer", {"question": "hi", "answer": ["yo", "ho"]}, (HI, YO)),
    ("question_answer", {"question": "so?\nhi", "context": "so?", "answer": "yo"}, (Turn("user", "so?\nhi"), YO)),
    ("question_answer", {"question": "so? hi", "context": "so", "answer": "yo"}, (Turn("user", "so\n\nso? hi"), YO)),
    ("reading_comprehension", {"question": "hi", "context": "so", "answers": {"text": ["yo"], "answer_start": [0]}},
     (Turn("user", "so\n\nhi"), YO)),
    ("alpaca", {"instruction": "hi", "context": "so", "response": "yo", "category": "x"},
     (Turn("user", "so\n\nhi"), YO)),
    ("alpaca", {"instruction": "hi", "output": "yo", "system": "s", "history": [["a", "b"]]},
     (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"), HI, YO)),
    ("prompt_completion", {"prompt": "hi", "completion": "yo", "history": CHAT, "reasoning": "r"},
     (HI, Turn("assistant", "yo"), HI, Turn("assistant", "yo", True, '{"reasoning_content": "r"}'))),
    ("prompt_completion", {"prompt": [{"role": "system", "content": "s"}, *CHAT[:1]], "completion": "yo",
                           "system": "s"}, (Turn("system", "s"), HI, YO)),
    ("messages", {"messages": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}], "system": "s"},
     (Turn("system", "s"), HI, YO)),
    ("sharegpt", {"conversations": CHAT}, (HI, YO)),
    ("sharegpt", {"conversation": CHAT}, (HI, YO)),
    ("sharegpt", {"conversations": {"from": ["human", "gpt"], "value": ["hi", "yo"]}}, (HI, YO)),
    ("messages", {"messages": json.dumps(CHAT)}, (HI, YO)),
    ("numina", {"problem": "hi", "solution": "yo", "messages": CHAT, "source": "cn_k12"}, (HI, YO)),
    ("openr1", {**R1, "correctness_math_verify": [False, None, True]}, (HI, YO)),
    ("openr1", {**R1, "correctness_math_verify": None, "correctness_llama": [False, False, True]}, (HI, YO)),
    ("openr1", {**R1, "is_reasoning_complete": [False, False, True]}, (HI, YO)),
    ("openr1", {**R1, "correctness_math_verify": [None] * 3, "correctness_llama": [False, False, True]}, (HI, YO)),
    ("openr1", R1, (HI, Turn("assistant", "a", True))),
]  # fmt: skip


ASKED = Turn("user", "hi\n\nA. x\nB. yo\nC. z")
TARGET = Turn("assistant", "B. yo", True)


@pytest.mark.parametrize("record", [
    {"question": "hi", "subject": "s", "choices": ["x", "yo", "z"], "answer": 1},
    {"question": "hi", "choices": ["x", "yo", "z"], "answer": 1.0},
    {"question": "hi", "options": ["x", "yo", "z"], "answer": "B", "answer_index": 1},
    {"question": "hi", "options": ["x", "yo", "z"], "answer": "yo"},
    {"question": "hi", "options": ["A) x", "B) yo", "C) z"], "correct": "B"},
    {"question": "hi", "options": {"A": "x", "B": "yo", "C": "z"}, "answer": "yo", "answer_idx": "B"},
    {"question": "hi", "choices": {"text": ["x", "yo", "z"], "label": ["A", "B", "C"]}, "answerKey": "B"},
    {"question": "hi", "choices": {"text": ["x", "yo", "z"], "label": ["1", "2", "3"]}, "answerKey": "2"},
    {"question_stem": "hi", "choices": {"text": ["x", "yo", "z"], "label": ["A", "B", "C"]}, "answerKey": "B"},
    {"question": "hi", "choices": [{"label": k, "text": t} for k, t in zip("ABC", ("x", "yo", "z"), strict=True)],
     "answerKey": "(B)"},
    {"question": "hi", "choices": '["x", "yo", "z"]', "answer": "B. yo"},
    {"question": "hi", "choices": ["x", "yo", "z"], "label": 1},
])  # fmt: skip
def test_multiple_choice(record: dict[str, Any]) -> None:
    assert detect_format([record], "f") == "multiple_choice"
    made = row("multiple_choice", record)
    assert made is not None
    assert made.turns == (ASKED, TARGET)


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        (["x", "y"], {"answer": 2}, r"field 'answer' \(2\) is none of the choices"),
        (["x", "y"], {"answer": "C"}, r"field 'answer' \(C\) is none of the choices"),
        (["B", "A"], {"answer": "A"}, r"field 'answer' \(A\) is several choices"),
        (["3", "4", "5", "6"], {"answer": "3"}, "is several choices"),
        (["x", "y"], {"answer": "x", "answerKey": "B"}, "answer and answerKey name different choices"),
        (["x", "y"], {}, "the right choice is missing"),
        (["x"], {"answer": 0}, "does not hold 2 to 26 choices"),
        (["x", None], {"answer": 0}, "holds a choice that is null"),
        ("x, y", {"answer": 0}, "is text, not a list"),
    ],
)
def test_a_choice_is_never_guessed(choices: object, answer: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^f:1: .*{message}"):
        row("multiple_choice", {"question": "hi", "choices": choices, **answer})


def noted(format: str, *records: dict[str, Any], **options: Any) -> tuple[list[Row], Notes]:
    notes = Notes()
    made = [to_row(record, "f:1", format, DataConfig(**options), notes) for record in records]
    return [row for row in made if row is not None], notes


@pytest.mark.parametrize("name", ["label", "kto_tag", "is_correct", "accepted"])
@pytest.mark.parametrize(("good", "bad"), [
    (True, False), (1, 0), (1.0, 0.0), (1, -1), ("true", "false"), ("True", "False"), ("1", "0"),
    ("desirable", "undesirable"), ("chosen", "rejected"),
])  # fmt: skip
def test_bad_answers_are_left_out(name: str, good: object, bad: object) -> None:
    record = {"prompt": "hi", "completion": "yo"}
    made, notes = noted("prompt_completion", {**record, name: good}, {**record, name: bad})
    assert [one.turns for one in made] == [(HI, YO)]
    assert notes.said == {"rows are marked as bad answers; left out": 1}
    chat, _ = noted("messages", {"messages": CHAT, name: good}, {"messages": CHAT, name: bad})
    assert len(chat) == 1


def test_a_label_that_is_no_verdict() -> None:
    record = {"prompt": "hi", "completion": "yo"}
    made, notes = noted("prompt_completion", {**record, "label": "algebra"})
    assert len(made) == 1
    assert notes.ignored == {"label": 1}
    with pytest.raises(UserError, match="field 'label' is 3: neither a good answer"):
        noted("prompt_completion", {**record, "label": 3})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([{"type": "function", "function": {"name": "f"}}], [{"type": "function", "function": {"name": "f"}}]),
        ([{"name": "f"}], [{"type": "function", "function": {"name": "f"}}]),
        ('[{"name": "f"}]', [{"type": "function", "function": {"name": "f"}}]),
        (['{"name": "f"}'], [{"type": "function", "function": {"name": "f"}}]),
        ({"name": "f"}, [{"type": "function", "function": {"name": "f"}}]),
        ([], None), ("[]", None), ("", None), (None, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["tools", "functions"])
def test_tools(name: str, given: object, kept: object) -> None:
    made = row("messages", {"messages": CHAT, name: given})
    assert made is not None
    assert (json.loads(made.tools) if made.tools else None) == kept


def test_source_is_a_text() -> None:
    assert noted("messages", {"messages": CHAT, "source": "web"})[0][0].source == "web"
    made, notes = noted("messages", {"messages": CHAT, "source": {"url": "x"}})
    assert (made[0].source, notes.ignored) == ("", {"source": 1})


def test_messages_as_json_text() -> None:
    record = {"prompt": json.dumps(CHAT[:1]), "completion": json.dumps(CHAT[1:])}
    made, notes = noted("prompt_completion", record)
    assert made[0].turns == (HI, YO)
    assert notes.said == {f"rows have messages as JSON text in '{n}'; read as messages": 1 for n in record}
    plain = {"prompt": "hi", "completion": '[{"city": "x"}]'}
    assert noted("prompt_completion", plain)[0][0].turns[1].content == plain["completion"]


@pytest.mark.parametrize(
    ("format", "more", "name"),
    [
        ("messages", {"images": ["a.png"]}, "images"),
        ("messages", {"history": [["a", "b"]]}, "history"),
        ("messages", {"context": "so"}, "context"),
        ("messages", {"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ("messages", {"documents": [{"text": "so"}]}, "documents"),
        ("messages", {"reasoning_content": "r"}, "reasoning_content"),
        ("messages", {"function_call": {"name": "f"}}, "function_call"),
        ("prompt_completion", {"tool_calls": [{"name": "f"}]}, "tool_calls"),
        ("prompt_completion", {"video": "a.mp4"}, "video"),
        ("prompt_completion", {"choices": ["a", "b"]}, "choices"),
        ("prompt_completion", {"score": 0.25}, "score"),
        ("prompt_completion", {"rating": "2"}, "rating"),
        ("prompt_completion", {"train": False}, "train"),
    ],
)
def test_what_changes_the_meaning_is_refused(format: str, more: dict[str, Any], name: str) -> None:
    record = {"prompt": "hi", "completion": "yo"} if format == "prompt_completion" else {"messages": CHAT}
    with pytest.raises(UserError, match=f"^f:1: field '{name}' is not supported; "):
        noted(format, {**record, **more})
    made, notes = noted(format, {**record, **more}, ignore_fields=(name,))
    assert made[0].turns == (HI, YO)
    assert notes.ignored == {name: 1}
    for nothing in (None, "", [], [None], [{"path": None, "bytes": ""}]):
        assert noted(format, {**record, name: nothing})[1].ignored == {}


def test_other_fields_are_noted_once() -> None:
    record = {
        "messages": [{**CHAT[0], "id": 1}, {**CHAT[1], "id": 2}],
        "topic": "x",
        "empty": "",
        "unit": "m",
    }
    _, notes = noted("messages", record, {"messages": CHAT, "topic": "y"})
    assert notes.ignored == {"topic": 2, "messages[].id": 1, "unit": 1}
    assert notes.read == {"messages": 2, "messages[].role": 2, "messages[].content": 2}


@pytest.mark.parametrize(
    ("format", "record", "message"),
    [
        (
            "prompt_completion",
            {"prompt": CHAT[:1], "completion": "yo", "context": "so"},
            "'context' cannot be added",
        ),
        (
            "prompt_completion",
            {"prompt": "hi", "completion": CHAT[1:], "reasoning": "r"},
            "put the thinking into the messages",
        ),
        (
            "prompt_completion",
            {"prompt": [{"role": "system", "content": "s"}, *CHAT[:1]], "completion": "yo", "system": "t"},
            "two different system messages",
        ),
        (
            "prompt_completion",
            {"prompt": "hi", "completion": "yo", "history": ["a"]},
            r"'history\[0\]' is neither",
        ),
        (
            "prompt_completion",
            {"prompt": "hi", "completion": "yo", "tools": "calc"},
            "'tools' is text, not a list",
        ),
        ("alpaca", {"instruction": "hi", "output": "yo", "response": "ho"}, "'output' and 'response' differ"),
    ],
)
def test_what_does_not_go_together(format: str, record: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^f:1: .*{message}"):
        row(format, record)


def row(format: str, record: dict[str, Any], **options: Any) -> Row | None:
    return to_row(record, "f:1", format, DataConfig(**options))


@pytest.mark.parametrize(("format", "record", "turns"), RECORDS)
def test_turns(format: str, record: dict[str, Any], turns: tuple[Turn, ...]) -> None:
    assert detect_format([record] * 3, "f") == format
    assert row(format, record) == Row(turns, "f:1", record.get("source", ""))


def test_openr1_without_a_correct_generation_has_no_row() -> None:
    assert row("openr1", {**R1, "correctness_math_verify": [False] * 3, "correctness_llama": None}) is None


def test_an_answer_that_the_judge_alone_accepts_is_taken_where_that_is_wanted() -> None:
    record = {**R1, "correctness_math_verify": [False] * 3, "correctness_llama": [False, False, True]}
    assert row("openr1", record) is None
    assert row("openr1_judged", record) == Row((HI, YO), "f:1", "aime")
    assert detect_format([record], "f") == "openr1"


def test_one_bad_record_does_not_change_the_format() -> None:
    good = {"prompt": "hi", "completion": "yo"}
    assert detect_format([{"prompt": "hi"}, good, good], "f") == "prompt_completion"
    with pytest.raises(UserError, match="fields text, label; name its fields"):
        detect_format([{"text": "hi", "label": "yo"}], "f")


def test_mapping() -> None:
    record = {"q": "hi", "a": "yo", "s": "sys"}
    columns = {"prompt": "q", "completion": "a"}
    assert row("mapping", record, columns=columns) == Row((HI, YO), "f:1")
    mapped = row("mapping", record, columns={**columns, "system": "s"}, system_prompt="x")
    assert mapped == Row((Turn("system", "sys"), HI, YO), "f:1")


def test_system_message_only_where_there_is_none() -> None:
    made = row("prompt_completion", {"prompt": "hi", "completion": "yo"}, system_prompt="be kind")
    assert made is not None
    assert made.turns[0] == Turn("system", "be kind")
    own = {"messages": [{"role": "system", "content": "own"}, *CHAT]}
    made = row("messages", own, system_prompt="be kind")
    assert made is not None
    assert [turn.content for turn in made.turns] == ["own", "hi", "yo"]


@pytest.mark.parametrize(
    ("format", "record", "message"),
    [
        ("prompt_completion", {"prompt": "hi"}, "field 'completion' is missing; has: prompt"),
        ("prompt_completion", {"prompt": 5, "completion": "yo"}, "field 'prompt' is number, not text"),
        ("prompt_completion", {"prompt": "hi", "completion": None}, "field 'completion' is null"),
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


@pytest.mark.parametrize(
    ("format", "record", "asked", "answered"),
    [
        ("query_response", {"system_prompt": "", "question": "q", "response": "a"}, "q", "a"),  # OpenOrca
        ("query_response", {"query": "q", "original_question": "o", "response": "a"}, "q", "a"),  # MetaMath
        ("query_response", {"prompt": "q", "response": "a", "helpfulness": 3}, "q", "a"),  # HelpSteer2
        ("query_response", {"kind": "NLI", "input": "q", "target": "a"}, "q", "a"),  # firefly
        ("query_response", {"inputs": "q", "targets": "a"}, "q", "a"),  # Aya, FLAN
        ("query_response", {"input": CHAT[:1], "output": "yo", "reasoning": "on"}, "hi", "yo"),  # Nemotron
        ("numina", {"question": "q", "solution": "long", "answer": "4"}, "q", "long"),  # LIMO
        ("sharegpt", {"conversations": ["q", "a"], "source": "x"}, "q", "a"),  # LIMA
        ("sharegpt", {"conversation": [{"input": "q", "output": "a"}]}, "q", "a"),  # Capybara
        (
            "multiple_choice",
            {"question": "q", "choices": ["a", "b"], "answer": 0, "solution": "s"},
            None,
            "A. a",
        ),
    ],
)
def test_public_layouts(format: str, record: dict[str, Any], asked: str | None, answered: str) -> None:
    assert detect_format([record], "f") == format
    made = row(format, record)
    assert made is not None
    first, last = made.turns
    assert asked in (None, first.content)
    assert last == Turn("assistant", answered, True)


def test_two_questions_are_not_one() -> None:
    with pytest.raises(UserError, match="fields 'query' and 'input' differ and mean the same; keep one"):
        row("query_response", {"query": "q", "input": "text", "response": "a"})


def test_an_empty_question_is_counted() -> None:
    notes = noted("prompt_completion", {"prompt": " ", "completion": "a"})[1]
    assert notes.said == {"rows have an empty question; kept": 1}


@pytest.mark.parametrize(
    "record", [{"story": "p"}, {"contexts": ["p"]}, {"option_a": "x", "option_b": "y"}, {"A": "x", "B": "y"}]
)
def test_a_question_does_not_lose_a_part(record: dict[str, Any]) -> None:
    name = next(iter(record))
    with pytest.raises(UserError, match=f"field '{name}' is not supported; .*'(context|choices)'"):
        row("question_answer", {"question": "q", "answer": "A", **record})
    columns = {"prompt": "Q", "completion": "A"}
    assert row("mapping", {"Q": "q", "A": "x"}, columns=columns) is not None


def test_a_system_message_by_any_usual_name() -> None:
    for name in ("system", "system_prompt", "system_message", "system_instruction"):
        made = row("messages", {"messages": CHAT, name: "s"})
        assert made is not None
        assert made.turns[0] == Turn("system", "s")
