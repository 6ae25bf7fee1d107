"""Figures as inline SVG, by matplotlib: they take the page's text colour, so they are readable in light and dark.

The rooms that have pages decide what is drawn.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup, escape

from rectune.errors import visible

COLOURS = (
    "#0b7bc1", "#d95f02", "#1b9e77", "#cc79a7", "#b8860b", "#7570b3", "#56b4e9", "#e6503c", "#66a61e", "#a6761d",
)  # fmt: skip
"""Distinguishable with any colour vision, on light and dark ground; line styles help where there are more."""
BASE_COLOUR = "#888888"
"""The base model's, on every figure."""

_INK = "#010203"  # what matplotlib writes where the page's text colour belongs
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "rectune", "font.family": "sans-serif", "font.size": 10,
    "text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#999999", "grid.alpha": 0.25, "axes.axisbelow": True,
    "text.parse_math": False, "lines.linewidth": 1.8,
}  # fmt: skip


def figure(
    draw: Callable[[Any], None],
    *,
    label: str,
    width: float = 6.4,
    height: float = 3.0,
    variables: Mapping[str, str] | None = None,
    titles: Mapping[str, str] | None = None,
) -> Markup:
    """What `draw` paints, as an SVG element.

    Args:
        draw: Gets the axes.
        label: What the figure shows, in a sentence, for those who do not see it.
        width, height: Inches at 72 points.
        variables: CSS variable for a colour: what is drawn in that "#rrggbb" (lower case) takes the variable's.
        titles: What is shown over an artist, by its `gid`.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that its own font lacks: the browser has it
        canvas = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(canvas)
        draw(canvas.subplots())
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # matplotlib repeats each text in a comment, where it is not escaped (but "--" is, so the end is the end).
    drawn = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    drawn = drawn.replace(_INK, "currentColor")
    for colour, variable in (variables or {}).items():
        drawn = drawn.replace(colour, f"var({variable})")
    for gid, title in (titles or {}).items():
        group = f'<g id="{gid}">'
        drawn = drawn.replace(group, f"{group}<title>{escape(visible(title))}</title>")
    head = f'<svg role="img" aria-label="{escape(visible(label))}"'
    return Markup(head + drawn[len("<svg") :])
