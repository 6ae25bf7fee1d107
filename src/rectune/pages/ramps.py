"""Colours for ordered quantities, light and dark: lightness alone tells the order, so that any colour vision can.

Class `p0` ... `p12` colours by the 13 probability bins (p0, the least probable, stands out), `e0` ... `e12` and
`w0` ... `w12` by entropy and weight (12 stands out). Each sets a ground and a text colour of contrast 4.5 or more.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from markupsafe import Markup

STEPS = 13

# From the ground of the page to what stands out, even steps in OKLab.
_RAMPS = {
    "p": (
        "f9f8e5 f7f3d2 f7eebf f8e8ab f8db94 f9cd7d fabe67 f9a954 f79447 f3743f cf3836 a11845 68154c",
        "23202a 2d2336 392640 472849 58294f 6a2a51 7c2b50 8f2d4d a23047 b4343b ed7d35 f7b545 f6ec8a",
    ),
    "e": (
        "eafaf0 ddf5e7 cff0dd c1ebd4 b2e6cb a3e1c2 94dcba 84d7b1 72d2a9 5fcca1 50c399 40ba91 2eb189",
        "1b2420 1c2c26 1d352c 1d3d32 1c4639 1b4f3f 185846 13614c 0b6a53 37a885 4aba90 5ccc9c 6fdea7",
    ),
    "w": (
        "f1f8ff e4f1ff d8ebff cbe5fe bedefe b1d8fd a4d1fd 96cbfc 88c5fb 7abefa 6cb5f5 5dabf0 4fa1ea",
        "1b222b 1e2a39 203147 223956 244165 254874 265084 275894 2860a5 4c9be1 5dadeb 6fc0f5 85d2fe",
    ),
}
_INKS = ("1d1f21", "ffffff")


@lru_cache(maxsize=1)
def ramp_css() -> Markup:
    """Variables (`--p0` the ground, `--on-p0` the text on it) for both schemes, and a class for each step."""
    classes = "".join(
        f".{name}{step}{{background:var(--{name}{step});color:var(--on-{name}{step})}}"
        for name in _RAMPS
        for step in range(STEPS)
    )
    light, dark = ("".join(_variables(scheme)) for scheme in (0, 1))
    return Markup(f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{classes}")


def _variables(scheme: int) -> Iterator[str]:
    for name, schemes in _RAMPS.items():
        colours = schemes[scheme].split()
        for step, colour in enumerate(reversed(colours) if name == "p" else colours):
            ink = max(_INKS, key=lambda ink: _contrast(ink, colour))
            yield f"--{name}{step}:#{colour};--on-{name}{step}:#{ink};"


def _contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
