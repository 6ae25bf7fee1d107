"""Text from data, models and servers as it may be shown: what a terminal or a browser would obey becomes visible.

Control characters (a terminal's escape sequences begin with one), marks that turn the direction of text around, and
halves of surrogate pairs are written as `\\u001b`: as in JSON, so that JSON text stays the same JSON. Line ends and
tabs stay. Markup is left to the pages' own escaping.
"""

from __future__ import annotations

_LEFT = {ord("\n"), ord("\t")}
_HIDDEN = {
    code: f"\\u{code:04x}"
    for part in (
        range(0x20),  # C0 controls
        range(0x7F, 0xA0),  # delete and C1 controls
        (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),  # direction
        (0xFEFF,),  # byte-order mark
        range(0xD800, 0xE000),  # surrogates
    )
    for code in part
    if code not in _LEFT
}


def visible(text: object) -> str:
    """`text` with nothing in it that acts: safe for a terminal, and to be encoded as UTF-8."""
    shown = str(text)
    return shown if shown.isascii() and shown.isprintable() else shown.translate(_HIDDEN)
