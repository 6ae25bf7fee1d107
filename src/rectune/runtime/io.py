"""Files: written whole or not at all, JSON read with one error line, locks, disk errors as one line,
and functions in a Python file of the user's.

A lock keeps a folder or a file for one process; the system gives it up when that process dies. Where a file system has
no locks, the log says so. Appending lines is in `data/readers.py`.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

from rectune.errors import UserError, unknown_name

FORMAT = 1
"""Of the files that this version writes; each says it as `format`. Without one they are from before, and the same."""
JsonObject: TypeAlias = dict[str, object]
"""The content of a JSON file whose fields are not known, such as a run's settings of another version."""

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


def unfinished(path: Path) -> Path:
    """Where `replace_file` and `replace_folder` write before they are done; a killed process leaves it behind."""
    return path.with_name(f".{path.name}.new")


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Write a folder as a whole: all of it or nothing, in place of what is there.

    Yields:
        The folder to write into. It is moved to `folder` at the end, or removed where an error comes.
    """
    aside = unfinished(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk needs the room
        raise
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


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


log = logging.getLogger("rectune")

_locked: set[str] = set()  # a lock of `lockf` does not keep out its own process


@contextmanager
def lock(folder: Path, doing: str) -> Iterator[None]:
    """Keep a folder for this process, by a lock on FOLDER/.lock.

    Args:
        folder: Made if it is missing, and removed again where an error comes before anything is written into it.
        doing: What the other process is said to do, such as "training".

    Raises:
        UserError: Another process has locked it, or it cannot be written.
    """
    made = [place for place in (folder / ".lock", folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not flock: a process forked by one that was killed would keep that one's lock.
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"the folder cannot be written ({error.strerror})", where=folder) from None
    name = os.path.realpath(folder)
    try:
        if name in _locked or not _take(handle, folder):
            pid = os.pread(handle, 20, 0).decode(errors="replace").strip()
            who = f" (process {pid})" if pid.isdecimal() else ""
            raise UserError(
                f"another process{who} is {doing} in this folder",
                where=folder,
                hint="wait for it, or give another --output-dir",
            )
        _locked.add(name)
        try:
            yield
        except BaseException:
            _remove_empty(made)
            raise
        finally:
            _locked.discard(name)
    finally:
        os.close(handle)


def _remove_empty(made: Sequence[Path]) -> None:
    """Remove the lock and the folders that were made, the innermost first, if there is nothing else in them."""
    with suppress(OSError):
        if made and [path.name for path in made[0].parent.iterdir()] == [".lock"]:
            made[0].unlink()
            for place in made[1:]:
                place.rmdir()


def _take(handle: int, folder: Path) -> bool:
    """Whether the lock is ours now."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        log.warning(
            "%s: the folder cannot be locked (%s); do not use it from two processes", folder, error.strerror
        )
        return True
    with suppress(OSError):  # a full disk: the number is for the message only
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return True


def lock_file(file: IO[bytes], path: Path) -> None:
    """Keep an open file for this process until it is closed.

    Raises:
        UserError: Another process has locked it.
    """
    try:
        # other handles of this process may read it meanwhile
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError("another process is writing to this file", where=path) from None


@contextmanager
def wait_for_lock(folder: Path, doing: str) -> Iterator[None]:
    """Be the only process at work in a folder of the cache, once the others are done.

    Args:
        folder: Made if it is missing; it gets a file `.lock`.
        doing: What another process is said to do, such as "encoding these rows".
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:  # not flock, as in `lock`
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            log.info("another process is %s; waiting for it", doing)
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def load_function(name: str, *, where: str) -> Callable[..., Any]:
    """The function that FILE.py:FUNCTION names; the file is run.

    Args:
        name: Path of a Python file, a colon and the name of a function in it.
        where: Setting that an error message names.

    Raises:
        UserError: Another form, no such file or function, or a file that cannot be run.
    """
    file, _, function = name.rpartition(":")
    path = Path(file).expanduser()
    if path.suffix != ".py" or not function:
        raise UserError(f"'{name}' is not of the form FILE.py:FUNCTION", where=where)
    if not path.is_file():
        raise UserError(f"no such file: {file}", where=where, hint="give FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"rectune_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"the file cannot be run ({type(error).__name__}: {error})", where=path) from None
    found = getattr(module, function, None)
    if not callable(found):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise unknown_name("function", function, known, where=path)
    return found  # type: ignore[no-any-return]
