"""Which of a comparison's tasks is under way, and about how long the rest will take; on stderr."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

log = logging.getLogger("rectune")


class Clock:
    """Counts tasks of several kinds and measures them.

    Args:
        name: Of the part of the comparison that these tasks are.
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
