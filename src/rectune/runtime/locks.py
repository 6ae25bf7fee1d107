"""What the disk may do to a run: be full or read-only, be used by two processes, hold what another version wrote.

Each becomes one line that says what to do. Writing whole files or none is in `training/checkpoint.py`, appending
lines in `data/jsonl.py`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rectune.errors import UserError

log = logging.getLogger("rectune")

FORMAT = 1
"""Of the files that this version writes; each says it as `format`. Without one they are from before, and the same."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_held: set[str] = set()


def load_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: It is no JSON or no text, or nested beyond reason.
        OSError: It cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deep") from None


def load_record(path: Path, *names: str) -> dict[str, Any]:
    """A JSON object that a run wrote and makes again where it is missing, with at least the fields `names`.

    Raises:
        UserError: It is something else, or of another version.
    """
    try:
        content = load_json(path)
    except (ValueError, OSError):
        content = None
    if not isinstance(content, dict) or not set(names) <= set(content):
        raise UserError("is damaged", where=path, hint="remove it and run again: it is made anew")
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
        f"is of format {str(found)[:20]}, this version reads {reads}",
        where=path,
        hint=f"use the {'later ' if later else ''}rectune version that wrote it, or give another --out",
    )


def check_writable(folder: Path) -> None:
    """Look whether a folder can be made, or written into where it is there; makes nothing.

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
        raise UserError(f"cannot be written ({os.strerror(number)})", where=folder)


def check_output(path: Path) -> None:
    """The same for a file. Raises `UserError` where it cannot be written."""
    if path.is_dir():
        raise UserError("cannot be written (Is a directory)", where=path)
    check_writable(path.parent)


@contextmanager
def hold(folder: Path, doing: str) -> Iterator[None]:
    """Keep a folder for this process, by a lock on FOLDER/.lock that the system gives up when the process dies.

    Args:
        folder: Made if it is missing, and removed again where an error comes before anything is written into it.
        doing: What the other process is said to do, such as "training".

    Raises:
        UserError: Another process holds it, or it cannot be written.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not flock: a process forked by one that was killed would keep that one's lock.
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=folder) from None
    name = os.path.realpath(folder)
    try:
        if name in _held or not _lock(handle, folder):
            pid = os.pread(handle, 20, 0).decode(errors="replace").strip()
            who = f" (process {pid})" if pid.isdecimal() else ""
            raise UserError(
                f"another process{who} is {doing} in this folder",
                where=folder,
                hint="wait for it, or give another --out",
            )
        _held.add(name)
        try:
            yield
        except BaseException:
            _leave_nothing(made)
            raise
        finally:
            _held.discard(name)
    finally:
        os.close(handle)


def _leave_nothing(made: Sequence[Path]) -> None:
    """Remove the folders that were made, the innermost first, if there is nothing in them but the lock."""
    with suppress(OSError):
        if made and [path.name for path in made[0].iterdir()] == [".lock"]:
            (made[0] / ".lock").unlink()
            for place in made:
                place.rmdir()


def _lock(handle: int, folder: Path) -> bool:
    """Whether the lock is ours now; a file system that has no locks is said in the log."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        log.warning("%s: cannot be locked (%s); do not use it from two processes", folder, error.strerror)
        return True
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    except OSError:  # a full disk: the number is for the message only
        pass
    return True


@contextmanager
def writing(where: Path | str, hint: str) -> Iterator[None]:
    """Turn a full or read-only disk into one line; `hint` says how to go on once it is mended.

    Libraries written in Rust report the system's errors as exceptions of their own, with the number in the text.

    Raises:
        UserError: As said.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL + _CLOSED:
            raise
        raise _unwritable(error.errno, error.filename or where, hint) from None
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None or isinstance(error, UserError) or int(number[1]) not in _FULL + _CLOSED:
            raise
        raise _unwritable(int(number[1]), where, hint) from None


def _unwritable(number: int, where: object, hint: str) -> UserError:
    first = "free some space" if number in _FULL else "make it writable"
    return UserError(f"cannot be written ({os.strerror(number)})", where=where, hint=f"{first}, then {hint}")
