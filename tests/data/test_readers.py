"""JSON Lines: line numbers, torn ends, one clear error."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from rectune.data.readers import append_jsonl, read_jsonl
from rectune.errors import UserError


def test_line_numbers_blank_lines_bom_and_gzip(tmp_path: Path) -> None:
    text = '\ufeff{"a": 1}\n\n{"a": "é"}\r\n'.encode()
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text))
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert list(read_jsonl(tmp_path / name)) == [(1, {"a": 1}), (3, {"a": "é"})]


@pytest.mark.parametrize("torn", [b'{"a": 3, "b', '{"a": "é'.encode()[:-1], b"{"])
def test_a_torn_last_line_is_left_out_and_replaced(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "a.jsonl"
    append_jsonl(path, [{"a": 1}, {"a": 2}])
    with path.open("ab") as file:
        file.write(torn)
    with pytest.raises(UserError, match=r"a\.jsonl:3: "):
        list(read_jsonl(path))
    assert [record for _, record in read_jsonl(path, torn_last=True)] == [{"a": 1}, {"a": 2}]
    append_jsonl(path, [{"a": 4}])
    assert [record for _, record in read_jsonl(path)] == [{"a": 1}, {"a": 2}, {"a": 4}]


def test_a_broken_line_that_is_whole_is_never_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: malformed JSON"):
        list(read_jsonl(path, torn_last=True))


def test_append_gives_a_missing_line_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    append_jsonl(path, [])
    path.write_text('{"a": 1}')
    append_jsonl(path, [{"a": "é"}])
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n{"a": "é"}\n'


def test_append_cuts_a_long_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"b": "' + "x" * 200_000)
    append_jsonl(path, [{"a": 2}])
    assert [record for _, record in read_jsonl(path)] == [{"a": 1}, {"a": 2}]
