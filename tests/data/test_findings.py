"""What texts bring along of tokens and templates is found, counted and said with what to do."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from rectune.config import DataConfig
from rectune.data.chat_template import choose_template
from rectune.data.encoded_dataset import encode_rows
from rectune.data.findings import Finding, findings_in, token_findings
from rectune.data.loading import read_rows
from rectune.data.schema import Row, Turn
from toys import CHATML, byte_tokenizer

CASES = Path(__file__).resolve().parents[1] / "cases"


def found(
    source: Path, tmp_path: Path, *, name: str = "auto", text: str | None = CHATML, bos: bool = False
) -> dict[str, Finding]:
    tokenizer = byte_tokenizer(chat_template=text, bos=bos)
    rows = read_rows(str(source), options=DataConfig(), cache_dir=tmp_path)
    findings = token_findings(rows, tokenizer, choose_template(name, tokenizer))
    return {finding.name: finding for finding in findings}


def written(tmp_path: Path, prompt: str, completion: str) -> Path:
    path = tmp_path / "rows.jsonl"
    records = [{"prompt": "a", "completion": "b"}, {"prompt": prompt, "completion": completion}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_an_own_end_is_counted_and_said(tmp_path: Path) -> None:
    path = CASES / "12-own-eos-preformatted/eos.jsonl"
    for name in ("auto", "none"):
        finding = found(path, tmp_path, name=name)
        assert list(finding) == ["own end"]
        assert str(finding["own end"]) == (
            "4 of 4 rows end an answer with an end token of their own ('<|im_end|>'), "
            f"the first {path}:1; it stands there once"
        )


def test_an_own_beginning_is_counted(tmp_path: Path) -> None:
    finding = found(CASES / "12-own-eos-preformatted/bos.jsonl", tmp_path, text=None, bos=True)
    assert list(finding) == ["own start"]
    assert finding["own start"].rows == 4


def test_texts_that_bring_their_template(tmp_path: Path) -> None:
    path = CASES / "12-own-eos-preformatted/pre.jsonl"
    for text in (CHATML, None):
        finding = found(path, tmp_path, text=text, bos=text is None)
        assert list(finding) == ["template in text"]
        assert "chat_template = none if each text is a whole prompt" in str(finding["template in text"])
    assert list(found(path, tmp_path, name="none")) == ["own end"]


@pytest.mark.parametrize(
    "prompt",
    [
        "[INST] Hi [/INST]", "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<|user|>\nHi<|end|>",
        "<start_of_turn>user\nHi<end_of_turn>", "<｜User｜>Hi<｜Assistant｜>", "\n\nHuman: Hi\n\nAssistant:",
        "Hi<|eot_id|>", "<<SYS>>\nbe\n<</SYS>>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ],
)  # fmt: skip
def test_templates_of_others(prompt: str, tmp_path: Path) -> None:
    for text in (CHATML, None):
        finding = found(written(tmp_path, prompt, "Hello"), tmp_path, text=text)
        assert list(finding) == ["template in text"]
        assert finding["template in text"].where == [f"{tmp_path}/rows.jsonl:2"]


@pytest.mark.parametrize(
    "prompt",
    [
        "### Instruction:\nHi",
        "a <s>b</s>",
        "<|something|>",
        "array[INSTANCE]",
        "User: x says\nAssistant: no one",
    ],
)
def test_ordinary_texts_are_none(prompt: str, tmp_path: Path) -> None:
    assert found(written(tmp_path, prompt, prompt), tmp_path) == {}


def test_special_tokens_in_texts(tmp_path: Path) -> None:
    path = written(tmp_path, "What does <|im_end|> mean?", "It is like <pad>.")
    finding = found(path, tmp_path)
    assert list(finding) == ["special tokens"]
    assert set(finding["special tokens"].tokens) == {"<|im_end|>", "<pad>"}
    assert "they are text there, not control tokens" in str(finding["special tokens"])
    finding = found(path, tmp_path, name="none")
    assert list(finding) == ["control tokens"]
    assert "with template none they are control tokens" in str(finding["control tokens"])


def test_spaces_that_the_template_trims(tmp_path: Path) -> None:
    path = written(tmp_path, "Complete:\n", "    return 4\n")
    assert found(path, tmp_path) == {}
    trims = CHATML.replace("['content']", "['content'].strip()")
    finding = found(path, tmp_path, text=trims)
    assert list(finding) == ["spaces"]
    assert finding["spaces"].where == [f"{tmp_path}/rows.jsonl:2"]


def test_names_that_the_template_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    named = {"role": "user", "content": "a", "name": "Ada"}
    rows = [
        {"messages": [first, {"role": "assistant", "content": "b"}]}
        for first in (named, {**named, "name": ""})
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    finding = found(path, tmp_path)
    assert (list(finding), finding["names"].rows) == (["names"], 1)
    writes = CHATML.replace("message['role']", "(message.name or message['role'])")
    assert found(path, tmp_path, text=writes) == {}


def test_todays_date(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%Y') }}" + CHATML
    finding = found(CASES / "23-date-template/rows.jsonl", tmp_path, text=dated)
    assert list(finding) == ["today's date"]
    assert finding["today's date"].rows == 24


def test_questions_that_bring_their_template() -> None:
    tokenizer = byte_tokenizer()
    asked = [Row((Turn("user", text),), "f:1") for text in ("[INST] Hi [/INST]", "Hi", "a <pad>")]
    findings = findings_in(asked, 3, tokenizer, choose_template("auto", tokenizer), unit="problems")
    assert [str(finding).split(" (")[0] for finding in findings] == [
        "1 of 3 problems hold what a chat template writes around turns",
        "1 of 3 problems have special tokens in their texts",
    ]


def test_encoding_says_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "rectune")
    path = CASES / "12-own-eos-preformatted/pre.jsonl"
    rows = read_rows(str(path), options=DataConfig(), cache_dir=tmp_path)
    tokenizer = byte_tokenizer()
    encode_rows(rows, tokenizer, choose_template("auto", tokenizer), max_length=200, cache_dir=tmp_path)
    assert caplog.messages == [
        "4 of 4 rows hold what a chat template writes around turns ('<|im_start|>user', '<|im_start|>assistant'), "
        f"the first {path}:1; they would be written inside a template a second time: give the turns as messages, "
        "or chat_template = none if each text is a whole prompt"
    ]
