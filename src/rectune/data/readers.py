"""One reader for each type of file: JSON Lines, JSON, CSV, Parquet and Arrow, with line numbers and one clear error.

A reader gives (line, record), with the error in place of a record that cannot be read, so that reading can continue.
JSON Lines is also what every stage of rectune appends to, so that a killed run can resume. Which files make up a source
is in `loading.py`.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rectune.data.schema import RawRecord
from rectune.errors import UserError

if TYPE_CHECKING:
    import pyarrow

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
            raise UserError(
                "this is not a regular file", where=path, hint="pipes and devices can be read only once"
            )
        with cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"the gzip file is broken ({error})", where=path) from None
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror or error})", where=path) from None


def byte_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with its number from 1, line end kept; UserError for one longer than `LONGEST`, or see `open_bytes`."""
    with open_bytes(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
            if len(line) == LONGEST:
                raise UserError(f"the line is longer than {LONGEST >> 20} MiB", where=f"{path}:{number}")
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
            "the text is not UTF-8", where=f"{path}:{number}", hint="convert the file, for example with iconv"
        ) from None


def parse_object(text: str, where: str) -> RawRecord:
    """One JSON object from one line; UserError at `where` for anything else."""
    try:
        value = _DECODER.decode(text)
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
        raise UserError(f"the line is a JSON {json_type(value)}, not an object", where=where, hint=hint)
    check_text(text, value, where)
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> RawRecord:
    """A JSON object; UserError (without a place) where a key stands in it twice, of which Python keeps the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"an object has the key '{twice}' twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def check_text(text: str, value: object, where: str) -> None:
    """UserError where `value`, which `text` stands for, holds half of a surrogate pair: no file can keep that."""
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError("a text contains half of a surrogate pair", where=where) from None


def json_type(value: object) -> str:
    """How JSON calls the type of `value`: text, number, list, object, true/false or null."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true/false"
    names = {str: "text", int: "number", float: "number", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)


def read_jsonl(path: Path | str, *, torn_last: bool = False) -> Iterator[tuple[int, RawRecord]]:
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
) -> Iterator[tuple[int, RawRecord | UserError]]:
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


CHUNK = 1 << 20  # bytes read at a time
_GAP = re.compile(r"[\s,]*")  # between two records of an array
_LINE_END = b"\n"


def without_nulls(record: RawRecord) -> RawRecord:
    """A record of a columnar file, in which every object has the keys of all: without those that say nothing."""
    return {
        name: _pruned(value) if isinstance(value, dict | list) else value for name, value in record.items()
    }


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(inner) for key, inner in value.items() if inner is not None}
    return [_pruned(inner) for inner in value] if isinstance(value, list) else value


def file_type(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def read_csv(path: Path) -> Iterator[tuple[int, RawRecord | UserError]]:
    """Lines below a header line, which says whether commas, tabs or semicolons separate; every field is text."""
    csv.field_size_limit(LONGEST)
    lines = (line for _, line in text_lines(path))
    first = next(lines, "")
    separator = next((mark for mark in ",\t;" if mark in first), ",")
    reader = csv.reader(itertools.chain([first], lines), strict=True, delimiter=separator)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if header is None:
                header = fields
                if twice := [name for name in header if header.count(name) > 1]:
                    raise UserError(f"the table has two columns named '{twice[0]}'", where=f"{path}:{line}")
            elif fields:
                if len(fields) == len(header):
                    yield line, dict(zip(header, fields, strict=True))
                else:
                    what = f"has {len(fields)} fields, the header {len(header)}"
                    yield line, UserError(what, where=f"{path}:{line}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"malformed CSV ({error})", where=f"{path}:{line}") from None


def read_parquet(path: Path) -> Iterator[tuple[int, RawRecord]]:
    """Rows, counted from 1."""
    import pyarrow.parquet

    def batches() -> Iterator[pyarrow.RecordBatch]:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=1000)

    return _numbered(batches(), "Parquet", path)


def read_arrow(path: Path) -> Iterator[tuple[int, RawRecord]]:
    """Rows of an Arrow stream (as the `datasets` library writes) or file, counted from 1."""
    import pyarrow

    def batches() -> Iterator[pyarrow.RecordBatch]:
        with pyarrow.memory_map(str(path)) as source:
            try:
                yield from pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                file = pyarrow.ipc.open_file(source)
                yield from (file.get_batch(i) for i in range(file.num_record_batches))

    return _numbered(batches(), "Arrow", path)


def _numbered(
    batches: Iterator[pyarrow.RecordBatch], kind: str, path: Path
) -> Iterator[tuple[int, RawRecord]]:
    from pyarrow import ArrowException

    number = 0
    try:
        for batch in batches:
            for record in batch.to_pylist():
                number += 1
                yield number, without_nulls(record)
    except (ArrowException, OSError) as error:
        raise UserError(f"the {kind} file is broken ({error})", where=f"{path}:{number + 1}") from None


def read_json(path: Path) -> Iterator[tuple[int, RawRecord | UserError]]:
    """Objects of one array, or of the array `data` of one object; JSON Lines under this name is read too.

    The text of an array is in memory as a whole, its records one at a time.
    """
    with open_bytes(path) as file:
        start = file.read(CHUNK)
        opening = re.match(rb'(?:\xef\xbb\xbf)?\s*(\[|\{\s*"data"\s*:\s*\[)', start)
        content = start + file.read() if opening else start
    if opening is None:
        for number, found in jsonl_records(path):
            if isinstance(found, UserError) and re.search(rb"^\s*\{\s*$", start.partition(b"\n")[0]):
                what = 'is neither an array of objects, nor {"data": [...]}, nor one object a line'
                raise UserError(what, where=path, hint="write the rows as one array")
            yield number, found
        return
    try:
        text, begins = content.decode(), len(content[: opening.end()].decode())
    except UnicodeDecodeError as error:
        where = f"{path}:{content.count(_LINE_END, 0, error.start) + 1}"
        raise UserError("the text is not UTF-8", where=where, hint="convert the file") from None
    yield from _array(text, begins, path, in_object=opening[1] != b"[")


def _array(text: str, at: int, path: Path, *, in_object: bool) -> Iterator[tuple[int, RawRecord | UserError]]:
    """The records of the array that begins at `at`, with their lines; UserError where it is no JSON, or not all."""
    line, done, decode = 1, 0, json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode
    while True:
        at = _GAP.match(text, at).end()  # type: ignore[union-attr]  # matches always
        line += text.count("\n", done, at)
        done, where = at, f"{path}:{line}"
        if text.startswith("]", at):
            break
        try:
            record, at = decode(text, at)
        except UserError as error:
            raise UserError(error.what, where=where) from None
        except (ValueError, RecursionError) as error:
            wrong_line = line + text.count("\n", at, getattr(error, "pos", at))
            raise UserError(
                f"malformed JSON ({getattr(error, 'msg', error)}); the rest of the file cannot be read",
                where=f"{path}:{wrong_line}",
                hint="fix the file, or write one object a line to a .jsonl file",
            ) from None
        yield line, _object(record, text[done:at], where)
        line += text.count("\n", done, at)
        done = at
    rest = text[at + 1 :].strip()
    if rest != "}" * in_object:
        shown = f"{rest[:40]}..." if len(rest) > 40 else rest
        what = f"has more behind its array of records ({shown})" if rest else "ends before its last }"
        raise UserError(what, where=where, hint="keep the array alone in the file")


def _object(record: object, text: str, where: str) -> RawRecord | UserError:
    if not isinstance(record, dict):
        return UserError("the array contains items that are not objects", where=where)
    try:
        check_text(text, record, where)
    except UserError as error:
        return error
    return record


READERS: dict[str, Callable[[Path], Iterator[tuple[int, RawRecord | UserError]]]] = {
    ".jsonl": jsonl_records,
    ".jsonl.gz": jsonl_records,
    ".json": read_json,
    ".json.gz": read_json,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".tsv": read_csv,
    ".tsv.gz": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
"""Which reader takes which file, by the end of its name."""
