"""Rows kept aside ask nothing that is trained on, whatever asks it several times."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rectune.config import load_config
from rectune.training.dataloader import TrainingData, load_data
from toys import byte_tokenizer

CASE = Path(__file__).resolve().parents[1] / "cases/34-holdout-shares-prompts/rows.jsonl"


def load(data: Path, out: Path, *, paired: bool = False, **settings: Any) -> TrainingData:
    named = {key.replace("__", "."): value for key, value in settings.items()}
    config = load_config(None, {"data": str(data), "output_dir": out, **named})
    return load_data(config, byte_tokenizer(), paired=paired)


def test_several_answers_to_a_question_stay_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenRLHF/OpenRLHF#1089: a random split of what `select` writes has every question on both sides."""
    caplog.set_level(logging.INFO, "rectune")
    data = load(CASE, tmp_path, eval_split_size=0.1)
    assert (len(data.train), len(data.holdout)) == (72, 8)
    assert not set(data.train.asked) & set(data.holdout.asked)
    assert "hold-out: 8 rows, 2 questions, none of them trained on" in caplog.messages


def test_the_question_is_all_before_the_first_supervised_turn_whatever_its_spaces(tmp_path: Path) -> None:
    turns = [("user", "a  b"), ("assistant", "c"), ("user", "d"), ("assistant", "e")]
    records = []
    for n in range(20):
        said = [{"role": role, "content": f"{content} {n}"} for role, content in turns]
        spaced = [{"role": m["role"], "content": m["content"].replace(" ", "\n ")} for m in said]
        said[1]["content"] = "other"
        records += [{"messages": said}, {"messages": spaced}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = load(path, tmp_path, eval_split_size=0.2)
    assert len(data.holdout) == 8
    assert not set(data.train.asked) & set(data.holdout.asked)
    for record in records:  # with the first answer as context, the question is longer, and another
        record["messages"][1]["train"] = False
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert len(set(load(path, tmp_path, eval_split_size=0.2).train.asked)) == 32


def test_pairs_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"{n // 3}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(30)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data = load(path, tmp_path, paired=True, eval_split_size=0.2)
    assert len(data.holdout) == 6
    assert not set(data.train.asked) & set(data.holdout.asked)


def test_a_holdout_file_that_asks_the_same_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "holdout.jsonl"
    lines = ['{"prompt": "What is  3 plus 3?", "completion": "x"}', '{"prompt": "new?", "completion": "x"}']
    path.write_text("\n".join(lines) + "\n")
    load(CASE, tmp_path, eval_data=str(path))
    assert (
        f"{path}: 1 of 2 rows have a question that training rows have; their metrics say little about new questions"
        in caplog.messages
    )
