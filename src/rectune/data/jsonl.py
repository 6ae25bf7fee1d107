"""JSON Lines: read with line numbers and one clear error, append so that a killed run can go on.

Shared by every stage that keeps a file of rows, problems or samples.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from rectune.errors import UserError

LONGEST = 1 << 25
"""Bytes of a record: JSON of that size takes up to 1 GiB in memory when every value of it is an empty list."""


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where its name ends in `.gz`.

    Raises:
        UserError: The file cannot be read, is a pipe or a device, or is a broken gzip file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise UserError("is no ordinary file", where=path, hint="a pipe or a device can be read but once")
        with cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"is a broken gzip file ({error})", where=path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path) from None


def byte_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with its number from 1, line end kept; UserError for one longer than `LONGEST`, or see `open_bytes`."""
    with open_bytes(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
            if len(line) == LONGEST:
                raise UserError(f"is longer than {LONGEST >> 20} MiB", where=f"{path}:{number}")
            yield number, line


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Each line with its number from 1, line end kept, UTF-8 with or without a byte-order mark.

    Raises:
        UserError: A line is not UTF-8, or see `byte_lines`.
    """
    for number, line in byte_lines(path):
        yield number, _decoded(line, number, path)


def _decoded(line: bytes, number: int, path: Path) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise UserError(
            "is not UTF-8", where=f"{path}:{number}", hint="convert the file, for example with iconv"
        ) from None


def parse_object(text: str, where: str) -> dict[str, Any]:
    """One JSON object from one line; UserError at `where` for anything else."""
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
    except UserError as error:
        raise UserError(error.what, where=where) from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise UserError(
            f"malformed JSON ({reason})", where=where, hint="expected one object a line"
        ) from None
    if not isinstance(value, dict):
        hint = (
            "an array of records is read from a file whose name ends in .json"
            if isinstance(value, list)
            else ""
        )
        raise UserError(f"is a JSON {json_type(value)}, not an object", where=where, hint=hint)
    check_text(text, value, where)
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; UserError (without a place) where a key stands in it twice, of which Python keeps the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"an object has the key '{twice}' twice")
    return found


def check_text(text: str, value: object, where: str) -> None:
    """UserError where `value`, which `text` stands for, holds half of a surrogate pair: no file can keep that."""
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError("a text holds half of a surrogate pair", where=where) from None


def json_type(value: object) -> str:
    """How JSON calls the type of `value`: text, number, list, object, true/false or null."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true/false"
    names = {str: "text", int: "number", float: "number", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)


def read_jsonl(path: Path | str, *, torn_last: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank.

    Args:
        path: The file; `.gz` is unpacked.
        torn_last: Leave out a last line that was cut off while it was written (it has no line end).

    Raises:
        UserError: A line is not one JSON object; `where` is `file:line`.
    """
    for number, record in jsonl_records(path, torn_last=torn_last):
        if isinstance(record, UserError):
            raise record
        yield number, record


def jsonl_records(
    path: Path | str, *, torn_last: bool = False
) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """As `read_jsonl`, with the error in place of a line that is no object, so that reading can continue."""
    path = Path(path)
    for number, line in byte_lines(path):
        try:
            text = _decoded(line, number, path)
            if text.strip():
                yield number, parse_object(text, f"{path}:{number}")
        except UserError as error:
            if torn_last and not line.endswith(b"\n"):
                return
            yield number, error


def append_jsonl(path: Path | str, records: Iterable[Mapping[str, Any]]) -> None:
    """Append one line per record, on the disk before returning; a torn last line is cut off first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _mend_end(file)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def _mend_end(file: IO[bytes]) -> None:
    """Give the last line its line end, or remove it where it is not whole."""
    end = file.seek(0, os.SEEK_END)
    start, tail = end, b""
    while start > 0 and b"\n" not in tail:
        start = max(0, start - 65536)
        file.seek(start)
        tail = file.read(end - start)
    last = tail.rpartition(b"\n")[2]
    if not last:
        return
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        file.truncate(end - len(last))
    else:
        file.write(b"\n")
