"""Stopping on Ctrl-C (SIGINT) and SIGTERM without losing anything: at once where all is on the disk, else a bit later.

`defer_signals` notes the first signal, for a loop that acts on it between two steps; a second Ctrl-C stops at once. The
command line turns a `Stopped` into its one line and the exit code 128 + signal, which shells and schedulers expect.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Stopped by a signal.

    Args:
        words: One line: what is on the disk, and how to resume.
        number: The signal.
    """

    def __init__(self, words: str, number: int = signal.SIGINT) -> None:
        super().__init__(words)
        self.number = number


def stopped_by(error: KeyboardInterrupt) -> int:
    """The number of the signal behind a KeyboardInterrupt."""
    return int(getattr(error, "number", signal.SIGINT))


@contextmanager
def on_interrupt(words: Callable[[], str]) -> Iterator[None]:
    """Where this is interrupted, say these words: what is on the disk, and how to resume."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Stopped(words(), stopped_by(error)) from None


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does, so that files are closed and what is started is ended."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("terminated", number)

    with _handling({signal.SIGTERM: stop}):
        yield


@contextmanager
def defer_signals() -> Iterator[Callable[[], int]]:
    """Put the first signal off; gives a function that returns its number, 0 for none. A second Ctrl-C interrupts."""
    first = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first and number == signal.SIGINT:
            raise Stopped("interrupted at once; what was done since the last checkpoint is lost", number)
        if not first:
            first = number
            # Not the log: a handler runs between any two instructions, and might find its stream in use.
            os.write(2, b"\nfinishing this step, then a checkpoint; Ctrl-C stops at once\n")

    with _handling(dict.fromkeys(SIGNALS, note)):
        yield lambda: first


@contextmanager
def _handling(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    """These handlers for a while. Only the main thread may set them; in any other, signals stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
