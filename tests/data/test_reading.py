"""Sources of every kind give the same rows; what is broken is one line with file and line number."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rectune.config import DataConfig
from rectune.data.load import count_duplicates, from_hub, read_rows, row_at
from rectune.data.schema import Row, Turn
from rectune.errors import UserError

RECORDS = [{"prompt": f"é{i}\n", "completion": f'"{i}", yes'} for i in range(5)]


def rows(source: Path | str, cache: Path, **options: object) -> list[Row]:
    dataset = read_rows(str(source), options=DataConfig.model_validate(options), cache_dir=cache)
    return [row_at(dataset, i) for i in range(len(dataset))]


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
    ("a.jsonl", b"", "a.jsonl: is empty"),
    ("a.jsonl", b"\n\n", "a.jsonl: is empty"),
    ("a.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": \n', r"a.jsonl:2: malformed JSON \("),
    ("a.jsonl", b'{"prompt": "a", "completion": "b"}\n[1]\n', "a.jsonl:2: is a JSON list, not an object"),
    ("a.jsonl", b"[" * 100_000, "a.jsonl:1: malformed JSON"),
    ("a.jsonl", '{"prompt": "é", "completion": "b"}'.encode("latin-1"), "a.jsonl:1: is not UTF-8"),
    ("a.jsonl", '{"prompt": "a", "completion": "b"}'.encode("utf-16"), "a.jsonl:1: is not UTF-8"),
    ("a.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', "a.jsonl:2: field 'completion' is missing"),
    ("a.jsonl", b'{"prompt": "a", "completion": 5}\n', "a.jsonl:1: field 'completion' is number, not text"),
    ("a.jsonl", b'{"prompt": "a", "completion": ""}\n', "a.jsonl:1: the completion is empty"),
    ("a.jsonl", b'{"prompt": "a", "completion": "\\ud800"}\n', "a.jsonl:1: a text holds half of a surrogate"),
    ("a.jsonl", b'{"prompt": "a", "completion": "b", "prompt": "c"}', "an object has the key 'prompt' twice"),
    ("a.json", b'[\n{"prompt": "a", "completion": "b", "prompt": "c"}]', "a.json:2: an object has the key 'prompt'"),
    ("a.jsonl", b'{"text": "a"}\n', "a.jsonl:1: no known row format has the fields text"),
    ("a.jsonl.gz", b"no gzip", "a.jsonl.gz: is a broken gzip file"),
    ("a.jsonl.gz", gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 99, mtime=0)[:-12], "is a broken gzip file"),
    ("a.json", b"[]", "a.json: is empty"),
    ("a.json", b'{\n"train": [{"prompt": "a", "completion": "b"}]}', "a.json: is neither an array of objects, nor"),
    ("a.jsonl", b'[{"prompt": "a", "completion": "b"}]', "a JSON list, not an object; .* ends in .json"),
    ("a.json", b'[{"prompt": "a", "completion": "b"}]\n[]', r"a.json:1: has more behind its array of records \(\[\]\)"),
    ("a.json", b'{"data": [{"prompt": "a", "completion": "b"}], "x": [1]}', r'has more behind .* \(, "x": \[1\]\}\)'),
    ("a.json", b'{"data": [{"prompt": "a", "completion": "b"}]', r"a.json:1: ends before its last \}"),
    ("a.json", b'[{"prompt": "a", "completion": "b"},\n{"prompt": }]', "a.json:2: malformed .*; nothing behind it"),
    ("a.json", b'[{"prompt": "a", "completion": "b"},\n', "a.json:2: malformed JSON"),
    ("a.json", b'[{"prompt": "a", "completion": "b"},\n 5]', "a.json:2: the array holds something else"),
    ("a.json", '[\n{"prompt": "é", "completion": "b"}]'.encode("latin-1"), "a.json:2: is not UTF-8"),
    ("a.json", b'{"version": 1}', "a.json:1: no known row format"),
    ("a.csv", b"", "a.csv: is empty"),
    ("a.csv", b"prompt,completion\n", "a.csv: is empty"),
    ("a.csv", b"prompt,completion,prompt\na,b,c\n", "a.csv:1: has two columns named 'prompt'"),
    ("a.csv", b"prompt,completion\na,b\na\n", "a.csv:3: has 1 fields, the header 2"),
    ("a.csv", b'prompt,completion\na,b\n"a,b\n', "a.csv:3: malformed CSV"),
    ("a.csv", b"prompt,completion\na,b\na,\n", "a.csv:3: the completion is empty"),
    ("a.parquet", b"no parquet", "a.parquet:1: is broken Parquet"),
    ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a.parquet: is a Git LFS pointer"),
    ("a.txt", b"hello", "a.txt: is not a file of rows; known: .jsonl"),
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
        patch.setattr("rectune.data.load.to_row", lambda *a, **k: pytest.fail("was read again"))
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
