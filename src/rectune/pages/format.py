"""Numbers as text, the same on every page, in every table and sentence; a dash stands for what is not known."""

from __future__ import annotations

UNKNOWN = "-"


def number(value: float | None, digits: int = 3) -> str:
    """With `digits` decimals: `1,234.500`."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def significant(value: float | None) -> str:
    """To three figures: `0.0123`, `1,234`, `3e-19`."""
    return UNKNOWN if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as `58.3 %`."""
    return UNKNOWN if share is None else f"{100 * share:.{digits}f} %"


def points(share: float) -> str:
    """Hundredths with one decimal, and no negative zero: `58.3`."""
    return f"{round(100 * share, 1) + 0.0:.1f}"


def interval(mean: float, low: float, high: float) -> str:
    """An estimate and its interval in hundredths: `58.3 [41.0, 75.2]`."""
    return f"{points(mean)} [{points(low)}, {points(high)}]"


def p_value(p: float | None) -> str:
    """`0.031`, or `< 0.001`."""
    return UNKNOWN if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float | None) -> str:
    """In the unit that fits: `12.3 s`, `4.5 min`, `6.7 h`."""
    if not seconds:
        return UNKNOWN
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


FORMATS = (number, significant, percent, points, interval, p_value, duration)
"""Filters of every template, by their names."""
