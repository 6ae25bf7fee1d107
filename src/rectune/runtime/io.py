"""Files: written whole or not at all, JSON read with one error line, and what the disk refuses as one line.

Appending lines is in `data/jsonl.py`, locks are in `locks.py`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from rectune.errors import UserError

FORMAT = 1
JsonObject: TypeAlias = dict[str, object]
"""The content of a JSON file whose fields are not known, such as a run's settings of another version."""
"""Of the files that this version writes; each says it as `format`. Without one they are from before, and the same."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_MISPLACED = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


@contextmanager
def replace_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Write a file as a whole: after a crash `path` has its old content or the new one.

    Args:
        path: Its folder is made if it is missing.
        shared: Several processes may write it at a time; the last one stays.

    Yields:
        The path to write to. The file is moved to `path` at the end, or removed where an error comes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid() if shared else 'new'}")
    try:
        yield aside
        fsync(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)  # a full disk needs the room
        raise


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Replace a file as a whole by UTF-8 text; `errors` as in `open`."""
    with replace_file(path) as aside:
        aside.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, content: Mapping[str, Any], **layout: Any) -> None:
    """Replace a file as a whole by one JSON object; `layout` as in `json.dumps`."""
    write_text(path, to_json(content, **layout) + "\n")


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file as a whole by one JSON object a line."""
    write_text(path, "".join(to_json(record, ensure_ascii=False) + "\n" for record in records))


def to_json(value: Any, **layout: Any) -> str:
    """JSON of nested dicts and lists; numbers that are not finite become null, since JSON has none."""

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: finite(inner) for name, inner in part.items()}
        if isinstance(part, (list, tuple)):
            return [finite(inner) for inner in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), **layout)


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: It is not JSON or not text, or nested beyond reason.
        OSError: It cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deep") from None


def load_record(
    path: Path, *names: str, hint: str = "remove it and run again: it is made anew"
) -> JsonObject:
    """A JSON object that this program wrote, with at least the fields `names`.

    Args:
        hint: What to do about a damaged one.

    Raises:
        UserError: It is something else, or of another version.
    """
    try:
        content = load_json(path)
    except (ValueError, OSError):
        content = None
    if not isinstance(content, dict) or not set(names) <= set(content):
        raise UserError("the file is damaged", where=path, hint=hint)
    check_format(content, path)
    return content


def check_format(content: Mapping[str, Any], path: Path | str, reads: int = FORMAT) -> None:
    """Refuse, by name, what another version wrote.

    Raises:
        UserError: `content` has a `format` that is not `reads`.
    """
    found = content.get("format", FORMAT)
    if found == reads and not isinstance(found, bool):
        return
    later = isinstance(found, int) and found > reads
    raise UserError(
        f"the file has format {str(found)[:20]}, this version reads {reads}",
        where=path,
        hint=f"use the {'later ' if later else ''}rectune version that wrote it, or give another --output-dir",
    )


def check_writable(folder: Path) -> None:
    """Check that a folder can be made, or written into where it exists; makes nothing.

    Raises:
        UserError: It cannot.
    """
    place, number = Path(folder), 0
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            number = errno.EEXIST if place == Path(folder) else errno.ENOTDIR
        elif not os.access(place, os.W_OK | os.X_OK):
            number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
    except OSError as error:
        number = error.errno or errno.EIO
    if number:
        raise UserError(f"the folder cannot be written ({os.strerror(number)})", where=folder)


def check_output(path: Path) -> None:
    """Check that a file can be written, as `check_writable` does for a folder."""
    if path.is_dir():
        raise UserError("the file cannot be written (Is a directory)", where=path)
    check_writable(path.parent)


@contextmanager
def translate_disk_errors(where: Path | str, hint: str = "run it again") -> Iterator[None]:
    """Turn a full or read-only disk, or a path in the way, into one line; `hint` says how to resume afterwards.

    Libraries written in Rust report the system's errors as exceptions of their own, with the number in the text.

    Raises:
        UserError: As said.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL + _CLOSED + _MISPLACED:
            raise
        raise _unwritable(error.errno, error.filename or where, hint) from None
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None or isinstance(error, UserError) or int(number[1]) not in _FULL + _CLOSED:
            raise
        raise _unwritable(int(number[1]), where, hint) from None


def _unwritable(number: int, where: object, hint: str) -> UserError:
    first = "free some space" if number in _FULL else "make it writable"
    first = "give another path" if number in _MISPLACED else first
    return UserError(
        f"the file cannot be written ({os.strerror(number)})", where=where, hint=f"{first}, then {hint}"
    )
