"""One process at a time in a folder, on a file, or at work that others would only repeat.

The system gives a lock up when its process dies. Where a file system has no locks, the log says so.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rectune.errors import UserError

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
        fcntl.flock(
            file, fcntl.LOCK_EX | fcntl.LOCK_NB
        )  # other handles of this process may read it meanwhile
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
        try:  # not flock, as in `hold`
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            log.info("another process is %s; waiting for it", doing)
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield
