"""The first figure of a page: accuracy in domain against accuracy out of domain, a point for each model.

Labels stand next to their points. Each takes the place with the least overlap of some around its point; a label of a
point between two models is left out where there is no room (its tooltip is not).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, pairwise
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from rectune.analysis.summary_text import DOMAINS
from rectune.pages.format import points
from rectune.pages.plots import BASE_COLOUR, COLOURS, figure
from rectune.records import Decision
from rectune.reporting.page_model import Opening, Spot, SpotScore

Style = Mapping[str, Mapping[str, str]]

_WIDTH, _HEIGHT = 5.4, 4.1  # inches; text of 11 points stays legible at 360 pixels
_GOOD = "#0a0b01"  # stands for the page's own colour
_SIZES = {"base": 9.0, "arm": 9.0, "mean": 8.0, "other": 6.5, "between": 5.5}
_RADII = (8, 13, 20, 30, 42)  # points between a point and its label
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))


def draw_tradeoff(opening: Opening, looks: Style) -> tuple[Markup, str] | None:
    """The figure and its caption; None unless two models or more have both accuracies."""
    spots = [spot for spot in opening.spots if {"in", "out"} <= spot.scores.keys()]
    if len(spots) < 2:
        return None
    colours = _colours(spots, looks)
    decision = opening.decision
    reference = opening.find(decision.against) if decision else None
    chosen = decision.chosen if decision else None

    def draw(ax: Any) -> None:
        labels = _Labels(ax)
        for arm in dict.fromkeys(spot.arm for spot in spots if spot.kind == "between"):
            path = [spot for spot in spots if spot.arm == arm and spot.kind != "other"]
            _line(labels, [*filter(_is_start, spots), *path], colours[arm])
        for spot in spots:
            _mark(
                labels, spot, colours[spot.arm], chosen=spot.label == chosen, place=opening.spots.index(spot)
            )
        _limits(ax, spots)
        if decision and reference in spots:
            _shade(labels, reference, decision)
        ax.tick_params(labelsize=10.5)
        ax.set_xlabel("accuracy in domain, %", fontsize=11)
        ax.set_ylabel("accuracy out of domain, %", fontsize=11)
        labels.place()

    titles = {f"spot-{place}": describe(spot) for place, spot in enumerate(opening.spots)}
    said = "; ".join(describe(spot) for spot in spots)
    label = f"Accuracy in domain against accuracy out of domain. {said}"
    variables = {_GOOD: "--good"}
    drawn = figure(draw, label=label, width=_WIDTH, height=_HEIGHT, variables=variables, titles=titles)
    return drawn, _caption(opening, spots, shaded=reference in spots)


def _caption(opening: Opening, spots: Sequence[Spot], *, shaded: bool) -> str:
    """How to read the figure, without what it does not have."""
    several = any(len(spot.scores["in"].by_seed) > 1 for spot in spots)
    said = [
        "Lines through a point are its 95 % intervals" + (", small points its seeds." if several else ".")
    ]
    hollow = {spot.decoding for spot in spots if _is_hollow(spot)}
    if len(hollow) == 1:
        said.append("Hollow: at temperature 0." if hollow == {"greedy"} else "Filled: at temperature 0.")
    elif hollow:
        said.append("Filled: with the decoding that is best on validation problems.")
    if any(spot.kind == "between" for spot in spots):
        said.append("Numbers along a line: the share of the way from the base model to the trained one.")
    if opening.decision and opening.find(opening.decision.chosen) in spots:
        said.append("Ring: the model chosen.")
    if opening.decision and shaded:
        lost, gained = ("in", "out") if opening.decision.protected == "in" else ("out", "in")
        margin, against = points(opening.decision.margin), opening.decision.against
        said.append(
            f"Shaded: better than {against} {DOMAINS[gained]}, and {DOMAINS[lost]} at most {margin} points lower."
        )
    return " ".join(said)


def describe(spot: Spot) -> str:
    """A point in words."""
    said = [f"{DOMAINS[domain]} {_accuracy(score)}" for domain, score in spot.scores.items()]
    seeds = max(len(score.by_seed) for score in spot.scores.values())
    return f"{spot.label}: {', '.join(said)}" + (f", {seeds} seeds" if seeds > 1 else "")


def _accuracy(score: SpotScore) -> str:
    if score.low is None or score.high is None:
        return f"{points(score.mean)} %"
    return f"{points(score.mean)} % ({points(score.low)} to {points(score.high)})"


def _colours(spots: Sequence[Spot], looks: Style) -> dict[str, str]:
    """A colour for each arm: that of the other figures, else the next one."""
    taken = {look["color"] for look in looks.values()}
    free = cycle([colour for colour in COLOURS if colour not in taken] or COLOURS)
    found = {}
    for spot in spots:
        if spot.kind == "base":
            found[spot.arm] = BASE_COLOUR
        elif spot.kind == "arm" and spot.label in looks:
            found[spot.arm] = looks[spot.label]["color"]
        elif spot.arm not in found:
            found[spot.arm] = next(free)
    return found


def _is_start(spot: Spot) -> bool:
    """Whether it is the model that all others were trained from, as it is."""
    return spot.kind == "base" and spot.label == spot.arm


def _is_hollow(spot: Spot) -> bool:
    """Whether the model is there with another decoding, too, as its main point."""
    return spot.kind == "other" or (spot.kind == "base" and not _is_start(spot))


def _xy(spot: Spot) -> tuple[float, float]:
    return 100 * spot.scores["in"].mean, 100 * spot.scores["out"].mean


def _line(labels: _Labels, spots: Sequence[Spot], colour: str) -> None:
    """From the base model to the trained one."""
    path = sorted(spots, key=lambda spot: 0.0 if spot.kind == "base" else spot.at)
    x, y = zip(*map(_xy, path), strict=True)
    labels.ax.plot(x, y, color=colour, linewidth=1.4, alpha=0.85, zorder=2)
    labels.avoid_line(x, y)


def _mark(labels: _Labels, spot: Spot, colour: str, *, chosen: bool, place: int) -> None:
    """A point, with its interval and seeds where it stands for a trained model, and its label."""
    ax, (x, y), (inside, outside) = labels.ax, _xy(spot), (spot.scores["in"], spot.scores["out"])
    if spot.kind not in ("other", "between") or chosen:
        for score, across in ((inside, True), (outside, False)):
            if score.low is not None and score.high is not None:
                ends = [100 * score.low, 100 * score.high]
                cross = (ends, [y, y]) if across else ([x, x], ends)
                ax.plot(*cross, color=colour, linewidth=1.3, alpha=0.75, zorder=3)
                labels.avoid_line(*cross)
    shared = inside.by_seed.keys() & outside.by_seed.keys() if spot.kind == "arm" or chosen else ()
    for seed in sorted(shared) if len(shared) > 1 else ():
        of_seed = (100 * inside.by_seed[seed], 100 * outside.by_seed[seed])
        ax.plot(*of_seed, "o", color=colour, markersize=3, alpha=0.6, linewidth=0, zorder=4)
        labels.avoid_point(of_seed, 3)
    size = _SIZES[spot.kind]
    marker, fill = ("s" if spot.kind == "mean" else "o"), ("none" if _is_hollow(spot) else "full")
    look = {"color": colour, "markersize": size, "fillstyle": fill, "markeredgewidth": 1.6}
    ax.plot([x], [y], marker, zorder=5, gid=f"spot-{place}", **look)
    if chosen:
        ring = {"markersize": size + 8, "fillstyle": "none", "markeredgewidth": 1.8}
        ax.plot([x], [y], "o", color=ax.xaxis.label.get_color(), zorder=5, **ring)
    labels.avoid_point((x, y), size + (10 if chosen else 2))
    short = f"{spot.at:g}" if spot.kind == "between" and not chosen else spot.label
    rank = 0 if chosen else 1 if spot.kind in ("arm", "base") else 2 if spot.kind == "mean" else 3
    labels.wanted.append(_Label((x, y), short if len(short) <= 26 else short[:25] + "…", rank))


def _limits(ax: Any, spots: Sequence[Spot]) -> None:
    """Some room around all that is drawn; never far below 0 or above 100 %."""
    ax.margins(0.1)
    for get, put in ((ax.get_xlim, ax.set_xlim), (ax.get_ylim, ax.set_ylim)):
        low, high = get()
        put(max(low, -4 if high > 30 else -0.12 * high), min(high, 104))


def _shade(labels: _Labels, reference: Spot, decision: Decision) -> None:
    """What the margin allows: in one domain above the reference, in the other at most the margin below it."""
    ax, (x, y) = labels.ax, _xy(reference)
    if decision.protected == "in":
        x -= 100 * decision.margin
    else:
        y -= 100 * decision.margin
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    left, bottom = min(left, x - 0.04 * (right - left)), min(bottom, y - 0.04 * (top - bottom))
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.fill_between([x, right], y, top, color=_GOOD, alpha=0.12, linewidth=0, zorder=0)
    edge = ([x, x, right], [top, y, y])
    ax.plot(*edge, color=_GOOD, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    labels.avoid_line(*edge)


class _Label(NamedTuple):
    xy: tuple[float, float]
    text: str
    rank: int
    """The order of placing; those of rank 3 may be left out, the one of rank 0 is bold."""


class _Box(NamedTuple):
    """In points of the figure."""

    left: float
    bottom: float
    right: float
    top: float

    def shared(self, other: _Box) -> float:
        """The area that both cover."""
        across = min(self.right, other.right) - max(self.left, other.left)
        up = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, across) * max(0.0, up)


class _Labels:
    """Labels of points, and what they must not cover."""

    def __init__(self, ax: Any) -> None:
        self.ax = ax
        self.wanted: list[_Label] = []
        self._points: list[tuple[tuple[float, float], float]] = []
        self._lines: list[tuple[Sequence[float], Sequence[float]]] = []

    def avoid_point(self, xy: tuple[float, float], size: float) -> None:
        self._points.append((xy, size))

    def avoid_line(self, x: Sequence[float], y: Sequence[float]) -> None:
        self._lines.append((x, y))

    def place(self) -> None:
        """Write the labels, the most important first."""
        ax = self.ax
        ax.figure.set_dpi(72)  # of the SVG: a pixel is a point
        ax.figure.draw_without_rendering()
        frame = _Box(*ax.get_window_extent().extents)
        solid = [_around(ax.transData.transform(xy), size) for xy, size in self._points]
        thin = [_around(place, 2) for line in self._lines for place in self._along(*line)]
        for label in sorted(self.wanted, key=lambda label: label.rank):
            look = {
                "fontsize": 10 if label.rank == 3 else 11,
                "weight": "bold" if label.rank == 0 else "normal",
            }
            text = ax.annotate(label.text, label.xy, label.xy, in_layout=False, annotation_clip=False, **look)
            extent = text.get_window_extent()
            center = ax.transData.transform(label.xy)
            found = [
                (_cost(box, frame, solid, thin) + 0.6 * radius, number, radius, box)
                for number, (radius, box) in enumerate(_places(center, extent.width, extent.height))
            ]
            cost, _, radius, box = min(found)
            if label.rank == 3 and cost > 60:
                text.remove()
                continue
            solid.append(box)
            back = ax.transData.inverted().transform
            text.set_position(back((box.left, box.bottom)))
            if radius > _RADII[2]:  # too far to be seen as its label
                near = (min(max(center[0], box.left), box.right), min(max(center[1], box.bottom), box.top))
                ends = zip(back(center), back(near), strict=True)
                ax.plot(*ends, color=text.get_color(), linewidth=0.6, alpha=0.6, zorder=1)
            text.set(verticalalignment="bottom", horizontalalignment="left")

    def _along(self, x: Sequence[float], y: Sequence[float]) -> Iterator[Any]:
        """Places on a line, some points apart."""
        corners = self.ax.transData.transform(np.column_stack([x, y]))
        for start, end in pairwise(corners):
            count = max(1, int(np.hypot(*(end - start)) / 4))
            yield from (start + (end - start) * step / count for step in range(count + 1))


def _around(center: Any, size: float) -> _Box:
    x, y = center
    return _Box(x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def _places(center: Any, width: float, height: float) -> Iterator[tuple[float, _Box]]:
    """Where a label may stand: at some distances, on all sides of its point."""
    for radius in _RADII:
        for right, up in _SIDES:
            reach = radius * (0.75 if right and up else 1)
            left = center[0] + right * reach - (width if right < 0 else width / 2 if not right else 0)
            bottom = center[1] + up * reach - (height if up < 0 else height / 2 if not up else 0)
            yield radius, _Box(left, bottom, left + width, bottom + height)


def _cost(box: _Box, frame: _Box, solid: Sequence[_Box], thin: Sequence[_Box]) -> float:
    """How bad a place is: outside the axes, over a point or a label, across a line."""
    area = (box.right - box.left) * (box.top - box.bottom)
    outside = area - box.shared(frame)
    return 50 * outside + 20 * sum(map(box.shared, solid)) + 1.0 * sum(map(box.shared, thin))
