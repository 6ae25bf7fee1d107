"""Pairs of a better and a worse answer, read from JSON Lines as `rectune select --for dpo` writes them.

Making pairs is left to `selection.py`, rows to `reading.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rectune.data.formats import prompt_completion, text_field
from rectune.data.jsonl import read_jsonl
from rectune.data.rows import Pair
from rectune.errors import UserError


def read_pairs(path: Path | str) -> list[Pair]:
    """The pairs of a `.jsonl` file, one object a line.

    Fields: `prompt`, a text or messages up to the assistant's turn; `chosen` and `rejected`, texts.

    Raises:
        UserError: A line is malformed, lacks a field, or prefers an answer to itself; or the file has no pair. `where`
            is `file:line`.
    """
    pairs = [_pair(record, f"{path}:{number}") for number, record in read_jsonl(path)]
    if not pairs:
        raise UserError("has no pairs", where=path)
    return pairs


def _pair(record: Mapping[str, Any], where: str) -> Pair:
    chosen, rejected = (text_field(record, name, where) for name in ("chosen", "rejected"))
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise UserError(f"field '{name}' is empty", where=where)
    if chosen == rejected:
        raise UserError("chosen and rejected are the same answer", where=where, hint="remove the line")
    if "prompt" not in record:
        raise UserError("field 'prompt' is missing", where=where, hint=f"has: {', '.join(record)}")
    *prompt, _ = prompt_completion({"prompt": record["prompt"], "completion": chosen}, where)
    if not prompt or prompt[-1].role == "assistant":
        raise UserError("field 'prompt' does not end with a turn to answer", where=where)
    return Pair(tuple(prompt), chosen, rejected, where)
