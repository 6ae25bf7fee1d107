"""What a user sees of long work on stderr: a bar with the time left on a terminal, a few lines in the log elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

log = logging.getLogger("rectune")

Report = Callable[[int, int, int], None]
"""Called with (units done, units in all, tokens so far)."""


@contextmanager
def progress(
    total: int, done: int = 0, *, label: str = "", shown: bool = True, lines: int = 0
) -> Iterator[Callable[..., None]]:
    """A bar on a terminal; elsewhere about `lines` lines in the log.

    Args:
        total, done: Units of work, and how many of them are finished.
        label: Of the bar, and what a unit is called in the log.
        shown: False shows nothing.

    Yields:
        `report(done, text="", total=None)`, to be called after every unit.
    """
    if not shown or not (lines or sys.stderr.isatty()):
        yield lambda done, text="", total=None: None
        return
    if not sys.stderr.isatty():
        every = max(1, total // lines)

        def say(done: int, text: str = "", total: int = total) -> None:
            if done % every == 0 or done == total:
                log.info("%s %d of %d: %s", label, done, total, text)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    with Progress(TextColumn(label), *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=done, text="")

        def show(done: int, text: str = "", total: int = total) -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield show


@contextmanager
def reporter(hook: Report | None, done: int, total: int, label: str = "sampling") -> Iterator[Report]:
    """`hook` where one is given, else a bar with tokens per second where stderr is a terminal."""
    if hook is not None:
        yield hook
        return
    began = time.perf_counter()
    with progress(total, done, label=label) as show:

        def report(done: int, total: int, tokens: int) -> None:
            seconds = time.perf_counter() - began
            show(done, f"{tokens / seconds:,.0f} tokens/s" if seconds and tokens else "", total)

        yield report


class TaskTimer:
    """Counts and measures tasks of several kinds; says in the log which one begins and about how long the rest takes.

    Args:
        name: Of what the tasks are part of.
        tasks: How many of each kind there are to do.
    """

    def __init__(self, name: str, tasks: Mapping[str, int]) -> None:
        self.name, self.left, self.total, self.done = name, Counter(tasks), sum(tasks.values()), 0
        self._seconds: dict[str, list[float]] = {}

    @contextmanager
    def task(self, kind: str, what: str) -> Iterator[None]:
        """Say that a task begins, and measure it."""
        self.done += 1
        log.info("%s, %d of %d: %s%s", self.name, self.done, self.total, what, self._rest())
        began = time.perf_counter()
        yield
        self._seconds.setdefault(kind, []).append(time.perf_counter() - began)
        self.left[kind] -= 1

    def _rest(self) -> str:
        known = {kind: sum(s) / len(s) for kind, s in self._seconds.items()}
        if not known:
            return ""
        seconds = sum(known[kind] * left for kind, left in self.left.items() if kind in known)
        more = any(left > 0 for kind, left in self.left.items() if kind not in known)
        return f" ({'more than' if more else 'about'} {duration(seconds)} left)"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
