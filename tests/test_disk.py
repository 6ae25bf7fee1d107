"""Files that a run wrote, and that something else has changed since: one line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectune.errors import UserError
from rectune.runtime.io import load_json, load_record

BROKEN = [b"", b"{", b"\xff\xfe", b"[" * 100_000]


@pytest.mark.parametrize("content", BROKEN)
def test_what_is_no_json_is_a_value_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r".+"):
        load_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", [*BROKEN, b"[]", b"1", b"null", b'{"one": 1}'])
def test_a_damaged_record_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        load_record(tmp_path / "a.json", "one", "two")
    assert str(error.value).splitlines() == [
        f"{tmp_path / 'a.json'}: the file is damaged; remove it and run again: it is made anew"
    ]


def test_a_record_of_another_version_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"one": 1, "format": 9}')
    with pytest.raises(UserError, match="the file has format 9, this version reads 1"):
        load_record(tmp_path / "a.json", "one")


def test_a_record(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"one": 1, "two": [2]}')
    assert load_record(tmp_path / "a.json", "two") == {"one": 1, "two": [2]}
