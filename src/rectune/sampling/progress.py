"""A bar with time left and tokens per second on stderr, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int, int], None]


@contextmanager
def reporter(hook: Report | None, done: int, total: int, label: str = "sampling") -> Iterator[Report]:
    """A function to call with (samples done, samples in all, tokens drawn so far) after every sample.

    It is `hook` where one is given, else it moves a bar that starts at `done` of `total`, else does nothing.
    """
    if hook is not None or not sys.stderr.isatty():
        yield hook or (lambda done, total, tokens: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=done, speed="")

        def report(done: int, total: int, tokens: int) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            speed = f"{tokens / elapsed:,.0f} tokens/s" if elapsed and tokens else ""
            bar.update(task, completed=done, total=total, speed=speed)

        yield report
