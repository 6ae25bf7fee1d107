"""Data as people have them: what is unread is said, what is faulty is listed, and only the asked split is read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rectune.config import DataConfig
from rectune.data.load import read_rows, row_at
from rectune.data.schema import Row, Turn
from rectune.errors import UserError

CASES = Path(__file__).parents[1] / "cases"


def rows(source: Path | str, cache: Path, **options: object) -> list[Row]:
    dataset = read_rows(str(source), options=DataConfig.model_validate(options), cache_dir=cache)
    return [row_at(dataset, i) for i in range(len(dataset))]


def lines(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_tools(tmp_path: Path) -> None:
    """huggingface/trl#6259, hiyouga/LlamaFactory#4152"""
    first = rows(CASES / "02-tools-column" / "rows.jsonl", tmp_path)[0]
    assert json.loads(first.tools)[0]["function"]["name"] == "depth"


def test_thinking(tmp_path: Path) -> None:
    """NVIDIA-NeMo/Automodel#2348"""
    first = rows(CASES / "03-reasoning-content" / "rows.jsonl", tmp_path)[0]
    assert json.loads(first.turns[1].fields) == {"reasoning_content": "Twice 0 is 0."}


def test_system_and_history(tmp_path: Path) -> None:
    """axolotl-ai-cloud/axolotl#222"""
    first = rows(CASES / "05-alpaca-system-history" / "rows.jsonl", tmp_path)[0]
    assert first.turns == (
        Turn("system", "Answer like a pirate."), Turn("user", "Do you know lands?"), Turn("assistant", "Aye."),
        Turn("user", "And the capital of land 0?"), Turn("assistant", "Town 0.", True),
    )  # fmt: skip


def test_unpaired_preferences(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """huggingface/alignment-handbook#142"""
    read = rows(CASES / "06-kto-label" / "rows.jsonl", tmp_path)
    assert [row.turns[1].content for row in read] == ["yes", "no", "yes"]
    assert "3 rows are marked as bad answers; left out" in caplog.text


def test_chevrons(tmp_path: Path) -> None:
    """Answers that hold `<<`: only the mark of the one that ends as GSM8K's answers do is cut."""
    path = CASES / "07-chevrons-in-answers" / "rows.jsonl"
    *others, last = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    assert last == "<<1+1=2>>2\n#### 2"
    assert [row.turns[1].content for row in rows(path, tmp_path)] == [*others, "2\n#### 2"]


def test_calculator_marks_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = ["<<1+1=2>>2\n#### 2", "two\n#### 2"]
    path = lines(tmp_path / "a.jsonl", *({"question": "1+1?", "answer": answer} for answer in answers))
    read = rows(path, tmp_path)
    assert [row.turns[1].content for row in read] == ["2\n#### 2", "two\n#### 2"]
    assert "1 rows had calculator marks such as <<48/2=24>>; removed" in caplog.text


@pytest.mark.parametrize(("split", "count", "first"), [("train", 4, "train 0"), ("test", 2, "SECRET TEST 0")])
def test_a_cloned_repository(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str, count: int, first: str
) -> None:
    """marin-community/marin#2381"""
    caplog.set_level(logging.INFO, "rectune")
    read = rows(CASES / "08-hub-clone-splits" / "clone", tmp_path, split=split)
    assert f"split {split} ({split}-00000-of-00001.parquet); other splits, not read: " in caplog.text
    assert len(read) == count
    assert read[0].turns[0].content == first


def test_save_to_disk(tmp_path: Path) -> None:
    """huggingface/datasets#3700"""
    read = rows(CASES / "09-save-to-disk" / "saved", tmp_path)
    assert len(read) == 4
    assert read[0].where.endswith("saved/data-00000-of-00001.arrow:1")


def test_tool_calls(tmp_path: Path) -> None:
    """hiyouga/LlamaFactory#4152: null content, columns of nulls, and the older key."""
    folder = CASES / "10-tool-call-turns"
    call = {"type": "function", "function": {"name": "sky", "arguments": {}}}
    null = rows(folder / "null.jsonl", tmp_path)[0]
    assert json.loads(null.turns[1].fields) == {"tool_calls": [{**call, "id": "1"}]}
    assert null.turns[2].role == "tool"
    old = rows(folder / "old.jsonl", tmp_path)[0]
    assert (old.turns[1].content, json.loads(old.turns[1].fields)) == ("Let me look.", {"tool_calls": [call]})
    nested = rows(folder / "nested.parquet", tmp_path)
    assert nested[0].turns == (Turn("user", "hi"), Turn("assistant", "ho", True))


def test_sharegpt_speakers(tmp_path: Path) -> None:
    """NVIDIA-NeMo/Automodel#2375"""
    folder = CASES / "11-sharegpt-function-call"
    with pytest.raises(UserError, match="has a tool call without a name"):
        rows(folder / "a.jsonl", tmp_path)  # its call is {}
    text = (folder / "a.jsonl").read_text().replace('"{}"', json.dumps('{"name": "sky", "arguments": {}}'))
    (tmp_path / "a.jsonl").write_text(text)
    read = rows(tmp_path / "a.jsonl", tmp_path)[0]
    assert [turn.role for turn in read.turns] == ["user", "assistant", "tool", "assistant"]
    assert rows(folder / "b.jsonl", tmp_path)[0].turns == (
        Turn("user", "Rain?"),
        Turn("assistant", "Yes.", True),
    )


@pytest.mark.parametrize(
    ("name", "what"),
    [("mark", "field 'images' is not supported"), ("parts", r"content\[0\]' is no text but image")],
)
def test_pictures(tmp_path: Path, name: str, what: str) -> None:
    """TIGER-AI-Lab/VLM2Vec#65"""
    with pytest.raises(UserError, match=what):
        rows(CASES / "14-image-column" / f"{name}.jsonl", tmp_path)


GOOD = {"prompt": "a", "completion": "b"}


def test_all_faulty_rows_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = lines(tmp_path / "a.jsonl", *[GOOD] * 3, *[{"prompt": "a"}] * 23)
    with path.open("ab") as file:
        file.write(b'{"prompt": \n\xff\n[1]\n' + json.dumps(GOOD).encode())
    what = r"a.jsonl: 26 of 30 rows cannot be used, the first: .*a.jsonl:4: field 'completion' is missing"
    with pytest.raises(UserError, match=what + ".*--skip-bad-rows"):
        rows(path, tmp_path)
    assert [r.getMessage().partition(": ")[0] for r in caplog.records] == [
        *(f"{path}:{number}" for number in range(4, 24)), "and 6 more"
    ]  # fmt: skip
    for _ in range(2):  # read, and found in the cache
        caplog.clear()
        assert len(rows(path, tmp_path, skip_bad_rows=True)) == 4
        assert f"{path}: 26 of 30 rows cannot be used; left out" in caplog.messages
    with pytest.raises(UserError, match="26 of 30 rows"):
        rows(path, tmp_path)


def test_unread_fields_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rectune")
    path = lines(
        tmp_path / "a.jsonl", {**GOOD, "id": 1}, {**GOOD, "id": 2, "topic": "x"}, {**GOOD, "id": None}
    )
    for _ in range(2):
        caplog.clear()
        rows(path, tmp_path)
        assert f"{path}: fields left unread: id (2 rows), topic (1 rows)" in caplog.messages


SPLIT = {"prompt": "a", "completion": "train"}, {"prompt": "a", "completion": "test"}
CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: other
  data_files: "other/*.jsonl"
---
# A data set
"""


def completions(*args: Any, **options: Any) -> list[str]:
    return [row.turns[-1].content for row in rows(*args, **options)]


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"),
        ("train/a.jsonl", "test/a.jsonl"),
        ("my_train_v2.jsonl", "my_eval.jsonl"),
        ("training.jsonl", "dev.jsonl"),
        ("gsm.train.jsonl", "gsm.test.jsonl"),
        ("TrainData.jsonl", "TestData.jsonl"),
        ("trainset.jsonl", "testset.jsonl"),
    ],
)
def test_files_named_by_their_split(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, record in zip(names, SPLIT, strict=True):
        lines(tmp_path / "d" / name, record)
    assert completions(tmp_path / "d", tmp_path) == ["train"]
    with pytest.raises(UserError, match=r"has no split 'nosuch'; choose with --split: "):
        rows(tmp_path / "d", tmp_path, split="nosuch")


def test_a_split_by_its_other_name(tmp_path: Path) -> None:
    lines(tmp_path / "d" / "val.jsonl", SPLIT[1])
    for name in ("val", "dev", "validation"):
        assert completions(tmp_path / "d", tmp_path, split=name) == ["test"]


@pytest.mark.parametrize("digest", ["", "-a09b74b3ef9c3b56"])
def test_splits_that_have_names_of_their_own(tmp_path: Path, digest: str) -> None:
    for name in ("train_sft", "test_sft"):
        path = tmp_path / "d" / "data" / f"{name}-00000-of-00001{digest}.jsonl"
        lines(path, {"prompt": "a", "completion": name})
    with pytest.raises(UserError, match=r"has no split 'train'; .*: test_sft, train_sft"):
        rows(tmp_path / "d", tmp_path)
    assert completions(tmp_path / "d", tmp_path, split="train_sft") == ["train_sft"]


def test_names_that_only_look_like_splits(tmp_path: Path) -> None:
    lines(tmp_path / "d" / "latest.jsonl", GOOD)
    lines(tmp_path / "d" / "trained_models.jsonl", GOOD)
    assert len(rows(tmp_path / "d", tmp_path)) == 2


def test_a_file_of_no_split_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines(tmp_path / "d" / "train.jsonl", SPLIT[0])
    lines(tmp_path / "d" / "more.jsonl", SPLIT[1])
    assert completions(tmp_path / "d", tmp_path) == ["train"]
    assert "files of no split, left out: more.jsonl" in caplog.text


def test_a_folder_for_each_configuration(tmp_path: Path) -> None:
    for name in ("main", "socratic"):
        lines(tmp_path / "d" / name / "train-00000-of-00001.jsonl", {"prompt": "a", "completion": name})
    with pytest.raises(UserError, match=r"in several folders \(main, socratic\); choose one as .*d:NAME"):
        rows(tmp_path / "d", tmp_path)
    assert completions(f"{tmp_path / 'd'}:socratic", tmp_path) == ["socratic"]
    with pytest.raises(UserError, match="has no configuration 'nosuch'"):
        rows(f"{tmp_path / 'd'}:nosuch", tmp_path)


def test_a_card_with_configurations(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    for split, record in zip(("train", "test"), SPLIT, strict=True):
        lines(folder / "main" / f"{split}-00000-of-00001.jsonl", record)
    lines(folder / "other" / "a.jsonl", {"prompt": "a", "completion": "other"})
    (folder / "README.md").write_text(CARD)
    with pytest.raises(
        UserError, match=r"has several configurations; choose one as .*d:NAME, known: main, other"
    ):
        rows(folder, tmp_path)
    assert completions(f"{folder}:main", tmp_path) == ["train"]
    assert completions(f"{folder}:main", tmp_path, split="test") == ["test"]
    assert completions(f"{folder}:other", tmp_path) == ["other"]
    with pytest.raises(UserError, match=r"has no split 'test'; choose with --split: train"):
        rows(f"{folder}:other", tmp_path, split="test")
    with pytest.raises(UserError, match=r"has no configuration 'mian'; known: main, other"):
        rows(f"{folder}:mian", tmp_path)
    (folder / "main" / "test-00000-of-00001.jsonl").unlink()
    with pytest.raises(UserError, match=r"lacks the files of its split 'test' \(main/test-\*\)"):
        rows(f"{folder}:main", tmp_path, split="test")
    (folder / "README.md").write_text(
        CARD.replace("- config_name: other", "  default: true\n- config_name: other")
    )
    assert completions(folder, tmp_path) == ["train"]


def test_a_saved_dict_of_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    splits = {
        name: datasets.Dataset.from_list([record])
        for name, record in zip(("train", "test"), SPLIT, strict=True)
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "d"))
    assert completions(tmp_path / "d", tmp_path) == ["train"]
    assert completions(tmp_path / "d", tmp_path, split="test") == ["test"]
    assert completions(tmp_path / "d" / "test", tmp_path) == ["test"]
    with pytest.raises(UserError, match=r"has no split 'dev'; choose with --split: test, train"):
        rows(tmp_path / "d", tmp_path, split="dev")


def test_nulls_of_other_rows(tmp_path: Path) -> None:
    """In Parquet every object has the keys of all: those of other rows are no arguments of this one's call."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    def row(**arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        said = {"role": "assistant", "content": None, "tool_calls": [call], "weight": None}
        return {"messages": [{"role": "user", "content": "hi"}, said], "tools": None}

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([row(city="x"), row(day=2)]), path)
    read = rows(path, tmp_path)
    arguments = [json.loads(r.turns[1].fields)["tool_calls"][0]["function"]["arguments"] for r in read]
    assert arguments == [{"city": "x"}, {"day": 2}]
    assert read[0].tools == ""
