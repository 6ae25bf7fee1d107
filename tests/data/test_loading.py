"""Sources of every kind give the same rows; what is unread is said, what is faulty listed, one split read."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rectune.config import DataConfig
from rectune.data.loading import count_duplicates, from_hub, read_rows, row_at
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
    [("mark", "field 'images' is not supported"), ("parts", r"content\[0\]' is not text but image")],
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
    with pytest.raises(UserError, match="the dataset has no configuration 'nosuch'"):
        rows(f"{tmp_path / 'd'}:nosuch", tmp_path)


def test_a_card_with_configurations(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    for split, record in zip(("train", "test"), SPLIT, strict=True):
        lines(folder / "main" / f"{split}-00000-of-00001.jsonl", record)
    lines(folder / "other" / "a.jsonl", {"prompt": "a", "completion": "other"})
    (folder / "README.md").write_text(CARD)
    with pytest.raises(
        UserError, match=r"the dataset has several configurations; choose one as .*d:NAME, known: main, other"
    ):
        rows(folder, tmp_path)
    assert completions(f"{folder}:main", tmp_path) == ["train"]
    assert completions(f"{folder}:main", tmp_path, split="test") == ["test"]
    assert completions(f"{folder}:other", tmp_path) == ["other"]
    with pytest.raises(UserError, match=r"has no split 'test'; choose with --split: train"):
        rows(f"{folder}:other", tmp_path, split="test")
    with pytest.raises(UserError, match=r"the dataset has no configuration 'mian'; known: main, other"):
        rows(f"{folder}:mian", tmp_path)
    (folder / "main" / "test-00000-of-00001.jsonl").unlink()
    with pytest.raises(UserError, match=r"the folder lacks the files of split 'test' \(main/test-\*\)"):
        rows(f"{folder}:main", tmp_path, split="test")
    (folder / "README.md").write_text(
        CARD.replace("- config_name: other", "  default: true\n- config_name: other")
    )
    assert completions(folder, tmp_path) == ["train"]


def test_a_saved_dict_of_splits(tmp_path: Path) -> None:
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

    def row(**arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        said = {"role": "assistant", "content": None, "tool_calls": [call], "weight": None}
        return {"messages": [{"role": "user", "content": "hi"}, said], "tools": None}

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row(city="x"), row(day=2)]), path)
    read = rows(path, tmp_path)
    arguments = [json.loads(r.turns[1].fields)["tool_calls"][0]["function"]["arguments"] for r in read]
    assert arguments == [{"city": "x"}, {"day": 2}]
    assert read[0].tools == ""


RECORDS = [{"prompt": f"é{i}\n", "completion": f'"{i}", yes'} for i in range(5)]


def jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in RECORDS), encoding="utf-8")


def gz(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in RECORDS).encode()))


def array(path: Path) -> None:
    path.write_text(json.dumps(RECORDS, indent=1, ensure_ascii=False), encoding="utf-8-sig")


def data_object(path: Path) -> None:
    path.write_text(json.dumps({"data": RECORDS}), encoding="utf-8")


def csv(path: Path, separator: str = ",") -> None:
    quoted = ('"' + value.replace('"', '""') + '"' for r in RECORDS for value in r.values())
    path.write_text(
        f"prompt{separator}completion\n"
        + "".join(f"{a}{separator}{b}\r\n" for a, b in zip(quoted, quoted, strict=True))
    )


def tabs(path: Path) -> None:
    csv(path, "\t")


def semicolons(path: Path) -> None:
    csv(path, ";")


def parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)


WRITERS: dict[str, tuple[Callable[[Path], None], list[int]]] = {
    "a.jsonl": (jsonl, [1, 2, 3, 4, 5]),
    "a.jsonl.gz": (gz, [1, 2, 3, 4, 5]),
    "array.json": (array, [2, 6, 10, 14, 18]),
    "object.json": (data_object, [1] * 5),
    "lines.json": (jsonl, [1, 2, 3, 4, 5]),
    "a.csv": (csv, [2, 4, 6, 8, 10]),
    "a.tsv": (tabs, [2, 4, 6, 8, 10]),
    "semicolons.csv": (semicolons, [2, 4, 6, 8, 10]),
    "a.parquet": (parquet, [1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write, lines = WRITERS[name]
    write(path)
    read = rows(path, tmp_path / "cache")
    assert [r.where for r in read] == [f"{path}:{line}" for line in lines]
    assert [r.turns for r in read] == [
        (Turn("user", r["prompt"]), Turn("assistant", r["completion"], True)) for r in RECORDS
    ]


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    jsonl(folder / "b.jsonl")
    parquet(folder / "deep" / "a.parquet")
    (folder / "notes.txt").write_text("not rows")
    assert [r.where.rpartition("/")[2] for r in rows(folder, tmp_path / "cache")] == [
        *(f"b.jsonl:{i}" for i in range(1, 6)), *(f"a.parquet:{i}" for i in range(1, 6))
    ]  # fmt: skip


def test_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set" / "train.jsonl")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    loaded = list(from_hub(str(tmp_path / "set"), split="train"))
    assert loaded == [(f"{tmp_path / 'set'}[{i}]", record) for i, record in enumerate(RECORDS)]
    with pytest.raises(UserError, match=r"cannot be loaded from the hub .*split"):
        from_hub(str(tmp_path / "set"), split="nosuch")


BAD: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b"", "a.jsonl: the file is empty"),
    ("a.jsonl", b"\n\n", "a.jsonl: the file is empty"),
    ("a.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": \n', r"a.jsonl:2: malformed JSON \("),
    ("a.jsonl", b'{"prompt": "a", "completion": "b"}\n[1]\n', "a.jsonl:2: the line is a JSON list, not an object"),
    ("a.jsonl", b"[" * 100_000, "a.jsonl:1: malformed JSON"),
    ("a.jsonl", '{"prompt": "é", "completion": "b"}'.encode("latin-1"), "a.jsonl:1: the text is not UTF-8"),
    ("a.jsonl", '{"prompt": "a", "completion": "b"}'.encode("utf-16"), "a.jsonl:1: the text is not UTF-8"),
    ("a.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', "a.jsonl:2: field 'completion' is missing"),
    ("a.jsonl", b'{"prompt": "a", "completion": 5}\n', "a.jsonl:1: field 'completion' is number, not text"),
    ("a.jsonl", b'{"prompt": "a", "completion": ""}\n', "a.jsonl:1: the completion is empty"),
    ("a.jsonl", b'{"prompt": "a", "completion": "\\ud800"}\n', "a.jsonl:1: a text contains half of a surrogate"),
    ("a.jsonl", b'{"prompt": "a", "completion": "b", "prompt": "c"}', "an object has the key 'prompt' twice"),
    ("a.json", b'[\n{"prompt": "a", "completion": "b", "prompt": "c"}]', "a.json:2: an object has the key 'prompt'"),
    ("a.jsonl", b'{"text": "a"}\n', "a.jsonl:1: no known row format has the fields text"),
    ("a.jsonl.gz", b"no gzip", "a.jsonl.gz: the gzip file is broken"),
    ("a.jsonl.gz", gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 99, mtime=0)[:-12], "gzip file is broken"),
    ("a.json", b"[]", "a.json: the file is empty"),
    ("a.json", b'{\n"train": [{"prompt": "a", "completion": "b"}]}', "a.json: is neither an array of objects, nor"),
    ("a.jsonl", b'[{"prompt": "a", "completion": "b"}]', "a JSON list, not an object; .* ends in .json"),
    ("a.json", b'[{"prompt": "a", "completion": "b"}]\n[]', r"a.json:1: has more behind its array of records \(\[\]\)"),
    ("a.json", b'{"data": [{"prompt": "a", "completion": "b"}], "x": [1]}', r'has more behind .* \(, "x": \[1\]\}\)'),
    ("a.json", b'{"data": [{"prompt": "a", "completion": "b"}]', r"a.json:1: ends before its last \}"),
    ("a.json", b'[{"prompt": "a", "completion": "b"},\n{"prompt": }]', "a.json:2: malformed .*; the rest of the file"),
    ("a.json", b'[{"prompt": "a", "completion": "b"},\n', "a.json:2: malformed JSON"),
    ("a.json", b'[{"prompt": "a", "completion": "b"},\n 5]', "a.json:2: the array contains items"),
    ("a.json", '[\n{"prompt": "é", "completion": "b"}]'.encode("latin-1"), "a.json:2: the text is not UTF-8"),
    ("a.json", b'{"version": 1}', "a.json:1: no known row format"),
    ("a.csv", b"", "a.csv: the file is empty"),
    ("a.csv", b"prompt,completion\n", "a.csv: the file is empty"),
    ("a.csv", b"prompt,completion,prompt\na,b,c\n", "a.csv:1: the table has two columns named 'prompt'"),
    ("a.csv", b"prompt,completion\na,b\na\n", "a.csv:3: has 1 fields, the header 2"),
    ("a.csv", b'prompt,completion\na,b\n"a,b\n', "a.csv:3: malformed CSV"),
    ("a.csv", b"prompt,completion\na,b\na,\n", "a.csv:3: the completion is empty"),
    ("a.parquet", b"no parquet", "a.parquet:1: the Parquet"),
    ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a.parquet: the file is a Git LFS"),
    ("a.txt", b"hello", "a.txt: this is not a file of rows; known: .jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_input_is_one_clear_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        rows(path, tmp_path / "cache")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message):  # and again: nothing half-done was kept
        rows(path, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("rows.arrow*"))


def test_no_such_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nosuch\.jsonl: no such file"):
        rows(tmp_path / "nosuch.jsonl", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no file of rows"):
        rows(tmp_path / "empty", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"prompt": "promt", "completion": "completion"}}, "a.jsonl:1: .*did you mean 'prompt'"),
        ({"columns": {"prompt": "prompt"}}, "columns.completion: "),
        (
            {"columns": {"promt": "prompt", "completion": "completion"}},
            "columns: unknown column 'promt'",
        ),
        ({"data_format": "mapping"}, "columns.prompt: "),
        ({"data_format": "alpacca"}, "did you mean 'alpaca'"),
        ({"data_format": "gsm8k", "columns": {"prompt": "prompt"}}, "columns: unknown column 'prompt'"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str, tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=message):
        rows(tmp_path / "a.jsonl", tmp_path / "cache", **options)


def test_what_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rectune")
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*RECORDS, RECORDS[0], RECORDS[0]]))
    for _ in range(2):  # read, and found in the cache
        caplog.clear()
        assert len(rows(path, tmp_path / "cache")) == 7
        assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
            ("INFO", f"{path}: 7 rows, format prompt_completion (inferred from its first rows)"),
            ("WARNING", f"{path}: 2 rows repeat an earlier one; kept"),
        ]


def test_left_out_rows_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = {"problem": "p", "generations": ["g"], "correctness_math_verify": [True]}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps({**record, "correctness_math_verify": [False]}))
    for _ in range(2):
        caplog.clear()
        assert len(rows(path, tmp_path / "cache")) == 1
        assert "1 rows without a generation marked correct; left out" in caplog.text


def test_the_cache_follows_content_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    jsonl(path)
    first = rows(path, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr("rectune.data.loading.to_row", lambda *a, **k: pytest.fail("was read again"))
        assert rows(path, tmp_path / "cache") == first
    assert rows(path, tmp_path / "cache", system_prompt="s") != first
    path.write_text(path.read_text().replace("yes", "no"))
    assert rows(path, tmp_path / "cache") != first


def test_rows_are_memory_mapped(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl")
    dataset = read_rows(str(tmp_path / "a.jsonl"), options=DataConfig(), cache_dir=tmp_path / "cache")
    assert dataset.cache_files
    assert count_duplicates(dataset) == 0
    assert count_duplicates(dataset.select([0, 1, 0])) == 1


def test_packaged_rows_are_named_by_their_data() -> None:
    rows = read_rows("gsm8k-calculations-test", options=DataConfig())
    assert row_at(rows, 1).where == "gsm8k-calculations-test:2"
