"""Rows as token ids on disk: written once, the same in several processes, whole after a kill."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rectune.config import DataConfig
from rectune.data import encoded_dataset
from rectune.data.chat_template import choose_template
from rectune.data.encoded_dataset import EncodedRows, encode_rows
from rectune.data.loading import read_rows
from rectune.data.schema import Row, Turn
from rectune.data.tokenization import Encoded, encode_row
from rectune.errors import UserError
from toys import CHATML, byte_tokenizer

COUNT = 30
Encode = Callable[..., EncodedRows]


def texts(i: int) -> tuple[str, str]:
    return f"{i}?", "the " * (1 + i % 3)


@pytest.fixture
def encode(tmp_path: Path) -> Encode:
    records = [dict(zip(("prompt", "completion"), texts(i), strict=True)) for i in range(COUNT)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = read_rows(str(tmp_path / "rows.jsonl"), options=DataConfig(), cache_dir=tmp_path)

    def run(
        cache: str = "cache",
        *,
        template: str = "auto",
        chat_template: str | None = CHATML,
        max_length: int = 50,
        num_proc: int | None = None,
    ) -> EncodedRows:
        tokenizer = byte_tokenizer(chat_template=chat_template)
        chosen = choose_template(template, tokenizer)
        cache_dir = tmp_path / cache
        return encode_rows(
            rows, tokenizer, chosen, max_length=max_length, cache_dir=cache_dir, num_proc=num_proc
        )

    return run


def test_rows_on_disk(encode: Encode, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rectune")
    encoded = encode(template="none", max_length=5)
    tokenizer = byte_tokenizer()
    template = choose_template("none", tokenizer)
    alone = [
        encode_row(Row((Turn("user", prompt), Turn("assistant", answer, True)), "f:1"), tokenizer, template)
        for prompt, answer in map(texts, range(COUNT))
    ]
    assert [encoded[i] for i in range(len(encoded))] == [
        Encoded(row.input_ids[:5], row.labels[:5], row.structural[:5]) for row in alone
    ]
    assert encoded.lengths.tolist() == [min(5, len(row)) for row in alone]
    counts = encoded.counts
    assert counts.tokens == sum(min(5, len(row)) for row in alone)
    assert counts.supervised == sum(sum(label >= 0 for label in row.labels[:5]) for row in alone)
    assert counts.truncated == sum(len(row) > 5 for row in alone) > 0
    assert (counts.rows, counts.dropped, counts.duplicates) == (30, 0, 0)
    assert (caplog.records[-1].levelname, caplog.messages[-1]) == ("WARNING", str(counts))


def test_rows_that_lose_all_targets_are_dropped_and_counted(encode: Encode) -> None:
    encoded = encode(template="none", max_length=3)
    assert (encoded.counts.rows, encoded.counts.dropped) == (10, 20)
    assert encoded.dataset["row"][:] == list(range(10))
    assert "10 truncated, 20 dropped" in str(encoded.counts)
    for processes in (1, 2):  # a process may have no row to write
        assert len(encode(f"cache{processes}", template="none", max_length=3, num_proc=processes)) == 10
    with pytest.raises(UserError, match="max_length: no row has a target within its first 2 tokens"):
        encode(template="none", max_length=2)


def test_second_time_is_read_from_disk(encode: Encode) -> None:
    first = encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded_dataset, "encode_batch", lambda *a: pytest.fail("was encoded again"))
        assert encode().dataset[:] == first.dataset[:]
    for changed in ({"template": "none"}, {"max_length": 23}, {"chat_template": None}):
        assert encode(**changed).dataset[:] != first.dataset[:]


def test_several_processes_encode_the_same(encode: Encode) -> None:
    one, two = encode("one"), encode("two", num_proc=2)
    assert one.dataset[:] == two.dataset[:]
    assert one.counts == two.counts


def test_what_a_killed_run_wrote_is_used_or_removed(encode: Encode, tmp_path: Path) -> None:
    whole = encode(num_proc=2)
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    part = folder.rename(folder.with_name(f"{folder.name}.part"))
    first, second = sorted(part.glob("*.arrow"))
    second.unlink()
    (part / "tmpx").write_bytes(b"half")
    before = first.stat().st_mtime_ns
    assert encode().dataset[:] == whole.dataset[:]
    assert sorted(path.name for path in folder.iterdir()) == [".lock", first.name, second.name]
    assert (folder / first.name).stat().st_mtime_ns == before


def test_one_call_waits_for_another(encode: Encode, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rectune")
    first = encode()
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    part = folder.rename(folder.with_name(f"{folder.name}.part"))
    holds = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True)"
    command = [sys.executable, "-c", f"{holds}; import time; time.sleep(1)", str(part / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert encode().dataset[:] == first.dataset[:]
        assert other.wait() == 0
    assert "another process is encoding these rows; waiting for it" in caplog.text


def test_a_folder_that_cannot_be_written(encode: Encode, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be written .*RECTUNE_CACHE"):
        encode()


def test_checksums_follow_ids_and_labels(encode: Encode) -> None:
    whole, cut = encode(), encode(max_length=24)
    same = whole.lengths[: len(cut)] == cut.lengths
    assert whole.checksums.tolist() == encode("elsewhere").checksums.tolist()
    assert (whole.checksums[: len(cut)] == cut.checksums).tolist() == same.tolist()
    assert not same.all()


@pytest.mark.parametrize("num_proc", [None, 2])
def test_rows_that_the_template_refuses_are_all_named_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_proc: int | None
) -> None:
    tools = {"tools": [{"name": "f"}]}  # which the template does not write
    records = [
        {"prompt": f"{n}?", "completion": "yo", **(tools if n % 5 == 1 or n >= 20 else {})} for n in range(25)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, records)))
    rows = read_rows(str(tmp_path / "rows.jsonl"), options=DataConfig(), cache_dir=tmp_path)
    tokenizer = byte_tokenizer()
    template = choose_template("auto", tokenizer)

    def encode(rows: object = rows, *, skip: bool) -> EncodedRows:
        return encode_rows(
            rows,
            tokenizer,
            template,
            max_length=50,
            cache_dir=tmp_path,
            num_proc=num_proc,
            skip_bad_rows=skip,
        )  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"9 of 25 rows cannot be used, the first: \S+rows.jsonl:2: .*tools"):
        encode(skip=False)
    named = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [int(line.split(": ")[0].rsplit(":", 1)[1]) for line in named] == [2, 7, 12, 17, *range(21, 26)]
    kept = encode(skip=True)
    assert kept.dataset["row"][:] == [n for n in range(20) if n % 5 != 1]
    assert kept.counts.dropped == 9
    with pytest.raises(UserError, match="2 of 2 rows cannot be used"):
        encode(rows.select([1, 6]), skip=True)
    with pytest.raises(
        UserError, match=r"rows\.jsonl:2: the tokenizer's chat template does not write the tools"
    ):
        encode(rows.select([1]), skip=False)
