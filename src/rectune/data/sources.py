"""Where records come from: JSONL, JSON, CSV and Parquet files, folders of them, and hub datasets.

Gives (where, record) one at a time, where `where` is `file:line`, and names what is broken. What a record
means is left to `formats.py`.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from rectune.data.jsonl import LONGEST, check_text, open_bytes, read_jsonl, text_lines
from rectune.errors import UserError

Record = dict[str, Any]
PACKAGED = {
    "gsm8k-calculations": "gsm8k_calculations_train.jsonl",
    "gsm8k-calculations-test": "gsm8k_calculations_test.jsonl",
}
"""Names of data that come with the package."""

_CHUNK = 1 << 20  # bytes read at a time
_GAP = re.compile(r"[\s,]*")  # between two records of an array


@dataclass(frozen=True)
class Records:
    """A source that can be gone through several times.

    Attributes:
        name: As the user wrote it.
        fingerprint: Changes when the content does.
        start: Begins a pass over (where, record).
    """

    name: str
    fingerprint: str
    start: Callable[[], Iterator[tuple[str, Record]]]

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        return self.start()


def open_source(source: str, *, split: str = "train") -> Records:
    """The records of packaged data, a file, a folder or a hub dataset id; UserError where it is none of them."""
    if source in PACKAGED:
        return _files(source, [Path(str(files("rectune") / "assets" / PACKAGED[source]))])
    path = Path(source).expanduser()
    if path.is_dir():
        found = [p for p in sorted(path.rglob("[!.]*")) if p.is_file() and _suffix(p) in READERS]
        if not found:
            raise UserError("has no file of rows", where=source, hint=f"looked for {', '.join(READERS)}")
        return _files(source, found)
    if path.exists():
        if _suffix(path) not in READERS:
            raise UserError("is not a file of rows", where=source, hint=f"known: {', '.join(READERS)}")
        return _files(source, [path])
    if _suffix(path) in READERS or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", source):
        raise UserError("no such file or folder", where=source)
    return from_hub(source, split=split)


def from_hub(source: str, *, split: str) -> Records:
    """The records of `datasets.load_dataset`; a config is put behind the id, as in `openai/gsm8k:main`."""
    name, _, config = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"is no file or folder, and cannot be loaded from the hub ({reason})",
            where=source,
            hint="a config of a hub dataset is given as owner/name:config",
        ) from None
    return Records(
        source,
        f"{name}:{config}:{split}:{dataset._fingerprint}",
        lambda: ((f"{source}[{i}]", record) for i, record in enumerate(dataset)),
    )


def _files(source: str, paths: list[Path]) -> Records:
    named = {path: source if source in PACKAGED else str(path) for path in paths}

    def start() -> Iterator[tuple[str, Record]]:
        for path in paths:
            empty = True
            for line, record in READERS[_suffix(path)](path):
                empty = False
                yield f"{named[path]}:{line}", record
            if empty:
                raise UserError("is empty", where=path)

    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(f"\n{named[path]}\n".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return Records(source, digest.hexdigest(), start)


def _suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def read_csv(path: Path) -> Iterator[tuple[int, Record]]:
    """Lines below a header line; every field is text."""
    csv.field_size_limit(LONGEST)
    reader = csv.reader((line for _, line in text_lines(path)), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if header is None:
                header = fields
            elif fields:
                if len(fields) != len(header):
                    raise UserError(
                        f"has {len(fields)} fields, the header {len(header)}", where=f"{path}:{line}"
                    )
                yield line, dict(zip(header, fields, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"malformed CSV ({error})", where=f"{path}:{line}") from None


def read_parquet(path: Path) -> Iterator[tuple[int, Record]]:
    """Rows, counted from 1."""
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"is broken Parquet ({error})", where=f"{path}:{number + 1}") from None


def read_json(path: Path) -> Iterator[tuple[int, Record]]:
    """Objects of one array, or of the array `data` of one object; JSON Lines under this name is read too."""
    chunks = _text_chunks(path)
    text = next(chunks, "")
    opening = re.match(r'\s*(\[|\{\s*"data"\s*:\s*\[)', text)
    if opening is None:
        yield from read_jsonl(path)
        return
    at, line, decode = 0, 1, json.JSONDecoder().raw_decode
    between = opening.end()
    while True:
        between = _GAP.match(text, between).end()  # type: ignore[union-attr]  # matches always
        line += text.count("\n", at, between)
        at = between
        if text.startswith("]", at):
            return
        try:
            record, between = decode(text, at)
        except (ValueError, RecursionError) as error:
            if len(text) - at > LONGEST:
                raise UserError(
                    f"no record ends within {LONGEST >> 20} MiB", where=f"{path}:{line}"
                ) from None
            more = "".join(_some(chunks, len(text) - at))
            if not more:  # not cut off by the chunk, but wrong
                wrong_line = line + text.count("\n", at, getattr(error, "pos", at))
                reason = getattr(error, "msg", error)
                raise UserError(f"malformed JSON ({reason})", where=f"{path}:{wrong_line}") from None
            text, at, between = text[at:] + more, 0, 0
            continue
        if not isinstance(record, dict):
            raise UserError("the array holds something else than objects", where=f"{path}:{line}")
        check_text(text[at:between], record, f"{path}:{line}")
        yield line, record


def _some(chunks: Iterator[str], size: int) -> Iterator[str]:
    """Chunks of at least `size` characters in all, so that a long record is decoded few times over."""
    got = 0
    for chunk in chunks:
        got += len(chunk)
        yield chunk
        if got >= size:
            return


def _text_chunks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    with open_bytes(path) as file:
        while True:
            chunk = file.read(_CHUNK)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise UserError("is not UTF-8", where=f"{path}:{line}", hint="convert the file") from None
            line += text.count("\n")
            yield text
            if not chunk:
                return


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Record]]]] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".json": read_json,
    ".json.gz": read_json,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".parquet": read_parquet,
}
"""Which reader takes which file, by the end of its name."""
