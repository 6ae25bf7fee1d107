"""Token ids in parts: what a kill left is kept, further processes write the same, and one call waits for another."""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rectune.config import DataConfig
from rectune.data import encoded_dataset as parts
from rectune.data.chat_template import choose_template
from rectune.data.encoded_dataset import EncodedRows, encode_rows
from rectune.data.load import read_rows
from rectune.errors import UserError
from toys import byte_tokenizer

Encode = Callable[..., EncodedRows]


@pytest.fixture
def encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Encode:
    """Encodes 25 rows by parts of 10, the first batch of 4."""
    monkeypatch.setattr(parts, "PART", 10)
    monkeypatch.setattr(parts, "_BATCH", 4)
    lines = [json.dumps({"prompt": f"{n}?", "completion": "the " * (1 + n % 3)}) for n in range(25)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    rows = read_rows(str(tmp_path / "rows.jsonl"), options=DataConfig(), cache_dir=tmp_path)
    tokenizer = byte_tokenizer()

    def run(cache: str = "cache", **settings: int) -> EncodedRows:
        template = choose_template("auto", tokenizer)
        settings = {"max_length": 50, **settings}
        return encode_rows(rows, tokenizer, template, cache_dir=tmp_path / cache, **settings)  # type: ignore[arg-type]

    return run


def test_missing_parts_alone_are_written(
    encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encode()
    written = sorted((tmp_path / "cache").rglob("part-*.arrow"))
    assert [path.name for path in written] == [f"part-{n:05d}.arrow" for n in range(3)]
    assert whole.dataset["row"][:] == list(range(25))
    before = whole.dataset[:]
    written[1].unlink()
    seen = []
    table = parts._table
    monkeypatch.setattr(parts, "_table", lambda job, *rows: (seen.append(rows), table(job, *rows))[1])
    assert encode().dataset[:] == before
    assert seen == [(10, 14), (14, 18), (18, 20)]
    assert not list((tmp_path / "cache").rglob(".part*"))


def test_garbage_collection_comes_back_whatever_happens(
    encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        assert not gc.isenabled()
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "_table", fails)
    with pytest.raises(KeyboardInterrupt):
        encode()
    assert gc.isenabled()


def test_a_part_without_targets_and_a_file_without_any(encode: Encode) -> None:
    assert len(encode(max_length=21)) == 10  # prompts of two digits fill it
    with pytest.raises(UserError, match="no row has a target within its first 3 tokens"):
        encode(max_length=3)


def test_one_call_waits_for_another(encode: Encode, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rectune")
    first = encode()
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    (folder / "part-00002.arrow").unlink()
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found: list[EncodedRows] = []
        other = threading.Thread(target=lambda: found.append(encode()))
        other.start()
        other.join(0.5)
        assert not found
    other.join(60)
    assert found[0].dataset[:] == first.dataset[:]
    assert "another process is encoding these rows; waiting for it" in caplog.text


def test_a_folder_that_cannot_be_written(encode: Encode, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be written .*RECTUNE_CACHE"):
        encode()


def test_checksums_follow_ids_and_labels(encode: Encode) -> None:
    one, cut = encode(), encode(max_length=24)
    same = one.lengths[: len(cut)] == cut.lengths
    assert one.checksums.tolist() == encode("elsewhere").checksums.tolist()
    assert (one.checksums[: len(cut)] == cut.checksums).tolist() == same.tolist()
    assert not same.all()


def test_rows_that_the_template_refuses_are_all_named_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parts, "PART", 10)
    tools = {"tools": [{"name": "f"}]}  # which the template does not write
    lines = [
        json.dumps({"prompt": f"{n}?", "completion": "yo", **(tools if n % 5 == 1 or n >= 20 else {})})
        for n in range(25)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    rows = read_rows(str(tmp_path / "rows.jsonl"), options=DataConfig(), cache_dir=tmp_path)
    tokenizer = byte_tokenizer()
    template = choose_template("auto", tokenizer)
    with pytest.raises(UserError, match=r"9 of 25 rows cannot be used, the first: \S+rows.jsonl:2: .*tools"):
        encode_rows(rows, tokenizer, template, max_length=50, cache_dir=tmp_path)
    named = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [int(line.split(": ")[0].rsplit(":", 1)[1]) for line in named] == [2, 7, 12, 17, *range(21, 26)]
    kept = encode_rows(rows, tokenizer, template, max_length=50, cache_dir=tmp_path, skip_bad_rows=True)
    assert kept.dataset["row"][:] == [n for n in range(20) if n % 5 != 1]
    assert kept.counts.dropped == 9
    refused = rows.select([1, 6])
    with pytest.raises(UserError, match="2 of 2 rows cannot be used"):
        encode_rows(refused, tokenizer, template, max_length=50, cache_dir=tmp_path, skip_bad_rows=True)
