"""Where records come from: JSONL, JSON, CSV, Parquet and Arrow files, folders of them, and hub datasets.

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

from rectune.data.folders import split_files
from rectune.data.jsonl import LONGEST, check_text, jsonl_records, open_bytes, text_lines, unique_keys
from rectune.errors import UserError

Record = dict[str, Any]
PACKAGED = {
    "gsm8k-calculations": "gsm8k_calculations_train.jsonl",
    "gsm8k-calculations-test": "gsm8k_calculations_test.jsonl",
}
"""Names of data that come with the package."""

_CHUNK = 1 << 20  # bytes read at a time
_POINTER = b"version https://git-lfs"
_GAP = re.compile(r"[\s,]*")  # between two records of an array


@dataclass(frozen=True)
class Records:
    """A source that can be gone through several times.

    Attributes:
        name: As the user wrote it.
        fingerprint: Changes when the content does.
        start: Begins a pass over (where, record), with the error in place of a record that cannot be read.
    """

    name: str
    fingerprint: str
    start: Callable[[], Iterator[tuple[str, Record | UserError]]]

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        """(where, record) of each; raises the first error."""
        for where, record in self.start():
            if isinstance(record, UserError):
                raise record
            yield where, record


def open_source(source: str, *, split: str = "train") -> Records:
    """The records of packaged data, a file, a folder or a hub dataset id.

    Args:
        source: As the user wrote it; a configuration of a folder or a hub dataset is put behind it, as in
            `openai/gsm8k:main`.
        split: Of a hub dataset, or of a folder that has splits; a file is read whole.

    Raises:
        UserError: It is none of them, or lacks the split or configuration.
    """
    if source in PACKAGED:
        return _files(source, [Path(str(files("rectune") / "assets" / PACKAGED[source]))])
    path, config = local_path(source)
    if path.is_dir():
        found = split_files(
            path, config=config, split=split, source=source, is_data=lambda p: _suffix(p) in READERS
        )
        return _files(source, found)
    if path.exists():
        if _suffix(path) not in READERS:
            raise UserError("is not a file of rows", where=source, hint=f"known: {', '.join(READERS)}")
        return _files(source, [path])
    if _suffix(path) in READERS or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", source):
        raise UserError("no such file or folder", where=source)
    return from_hub(source, split=split)


def local_path(source: str) -> tuple[Path, str]:
    """The path that a source names, which need not exist, and the configuration behind it; "" for none."""
    path = Path(source).expanduser()
    folder, _, config = source.rpartition(":")
    if folder and not path.exists() and (named := Path(folder).expanduser()).is_dir():
        return named, config
    return path, ""


def from_hub(source: str, *, split: str) -> Records:
    """The records of `datasets.load_dataset`; a config is put behind the id, as in `openai/gsm8k:main`."""
    name, _, config = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).splitlines()[:2]) or type(error).__name__
        raise UserError(
            f"is no file or folder, and cannot be loaded from the hub ({reason})",
            where=source,
            hint="a config of a hub dataset is given as owner/name:config",
        ) from None
    return Records(
        source,
        f"{name}:{config}:{split}:{dataset._fingerprint}",
        lambda: ((f"{source}[{i}]", _without_nulls(record)) for i, record in enumerate(dataset)),
    )


def _without_nulls(record: Record) -> Record:
    """A record of a columnar file, in which every object has the keys of all: without those that say nothing."""
    return {
        name: _pruned(value) if isinstance(value, dict | list) else value for name, value in record.items()
    }


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(inner) for key, inner in value.items() if inner is not None}
    return [_pruned(inner) for inner in value] if isinstance(value, list) else value


def _files(source: str, paths: list[Path]) -> Records:
    named = {path: source if source in PACKAGED else str(path) for path in paths}

    def start() -> Iterator[tuple[str, Record | UserError]]:
        for path in paths:
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise UserError("is a Git LFS pointer, not the data", where=path, hint="run git lfs pull")
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


def read_csv(path: Path) -> Iterator[tuple[int, Record | UserError]]:
    """Lines below a header line; every field is text."""
    csv.field_size_limit(LONGEST)
    reader = csv.reader((line for _, line in text_lines(path)), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if header is None:
                header = fields
                if twice := [name for name in header if header.count(name) > 1]:
                    raise UserError(f"has two columns named '{twice[0]}'", where=f"{path}:{line}")
            elif fields:
                if len(fields) == len(header):
                    yield line, dict(zip(header, fields, strict=True))
                else:
                    what = f"has {len(fields)} fields, the header {len(header)}"
                    yield line, UserError(what, where=f"{path}:{line}")
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
                    yield number, _without_nulls(record)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"is broken Parquet ({error})", where=f"{path}:{number + 1}") from None


def read_arrow(path: Path) -> Iterator[tuple[int, Record]]:
    """Rows of an Arrow stream (as the `datasets` library writes) or file, counted from 1."""
    number = 0
    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                batches: Any = pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                file = pyarrow.ipc.open_file(source)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
            for batch in batches:
                for record in batch.to_pylist():
                    number += 1
                    yield number, _without_nulls(record)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"is broken Arrow ({error})", where=f"{path}:{number + 1}") from None


def read_json(path: Path) -> Iterator[tuple[int, Record | UserError]]:
    """Objects of one array, or of the array `data` of one object; JSON Lines under this name is read too."""
    chunks = _text_chunks(path)
    text = next(chunks, "")
    opening = re.match(r'\s*(\[|\{\s*"data"\s*:\s*\[)', text)
    if opening is None:
        yield from jsonl_records(path)
        return
    at, line, decode = 0, 1, json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode
    between = opening.end()
    while True:
        between = _GAP.match(text, between).end()  # type: ignore[union-attr]  # matches always
        line += text.count("\n", at, between)
        at = between
        if text.startswith("]", at):
            _check_end(text[at + 1 :], chunks, opening[1] != "[", f"{path}:{line}")
            return
        try:
            record, between = decode(text, at)
        except UserError as error:
            raise UserError(error.what, where=f"{path}:{line}") from None
        except (ValueError, RecursionError) as error:
            if len(text) - at > LONGEST:
                raise UserError(
                    f"no record ends within {LONGEST >> 20} MiB", where=f"{path}:{line}"
                ) from None
            more = "".join(_some(chunks, len(text) - at))
            if not more:  # not cut off by the chunk, but wrong
                wrong_line = line + text.count("\n", at, getattr(error, "pos", at))
                reason = getattr(error, "msg", error)
                raise UserError(
                    f"malformed JSON ({reason}); nothing behind it in this file can be read",
                    where=f"{path}:{wrong_line}",
                    hint="mend the file, or write one object a line to a .jsonl file",
                ) from None
            text, at, between = text[at:] + more, 0, 0
            continue
        yield line, _object(record, text[at:between], f"{path}:{line}")


def _check_end(text: str, chunks: Iterator[str], in_object: bool, where: str) -> None:
    """UserError where something follows an array of records besides the end of the object that it is in."""
    rest = text.strip()
    for chunk in chunks:
        if len(rest) > 1:
            break
        rest = (rest + chunk).strip()
    if rest != "}" * in_object:
        shown = f"{rest[:40]}..." if len(rest) > 40 else rest
        what = f"has more behind its array of records ({shown})" if rest else "ends before its last }"
        raise UserError(what, where=where, hint="keep the array alone in the file")


def _object(record: object, text: str, where: str) -> Record | UserError:
    if not isinstance(record, dict):
        return UserError("the array holds something else than objects", where=where)
    try:
        check_text(text, record, where)
    except UserError as error:
        return error
    return record


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


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Record | UserError]]]] = {
    ".jsonl": jsonl_records,
    ".jsonl.gz": jsonl_records,
    ".json": read_json,
    ".json.gz": read_json,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
"""Which reader takes which file, by the end of its name."""
