"""Questions with choices: how they are put, and which choice a record calls right.

Layouts read: a list of texts (MMLU), `{"text": [...], "label": [...]}` (ARC, CommonsenseQA, OpenBookQA), a list of
`{"text", "label"}`, and `{"A": text, ...}` (MedQA). The right one is given by its letter, its
number from 0, or its text.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import PlainValidator, ValidationInfo

from rectune.data.jsonl import json_type
from rectune.data.schema import is_number, json_list, place_of
from rectune.errors import UserError


class Options(NamedTuple):
    """The choices of one question, with the label that each has in the record."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]

    def ask(self, question: str) -> str:
        """The question with its choices below it, a capital letter before each."""
        lines = (
            f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, self.texts, strict=False)
        )
        return "\n".join([question, "", *lines])

    def letter(self, index: int) -> str:
        return string.ascii_uppercase[index]


def _options(value: object, info: ValidationInfo) -> Options:
    place = place_of(info)
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        texts, labels = value["text"], value.get("label") or value.get("labels")
    elif isinstance(value, Mapping):
        texts, labels = list(value.values()), list(value)
    else:
        texts, labels = list(json_list(value, info)), None
        if texts and all(isinstance(item, Mapping) for item in texts):
            labels = [item.get("label", item.get("key")) for item in texts]
            texts = [item.get("text", item.get("value")) for item in texts]
    labels = labels or list(string.ascii_uppercase[: len(texts)])
    if not 2 <= len(texts) <= 26 or len(labels) != len(texts):
        raise UserError(f"field {place.name(info)} does not hold 2 to 26 choices", where=place.where)
    for text in texts:
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise UserError(
                f"field {place.name(info)} holds a choice that is {json_type(text)}, not text",
                where=place.where,
            )
    return Options(tuple(map(str, labels)), tuple(map(_unlettered, map(str, texts), string.ascii_uppercase)))


def _unlettered(text: str, letter: str) -> str:
    """A choice without its own letter in front, as in `A) 21`."""
    return re.sub(rf"^\(?{letter}[).:]\s*", "", text)


Choices = Annotated[Options, PlainValidator(_options)]


def right_choice(options: Options, answers: Mapping[str, Any], where: str) -> int | None:
    """The index of the right choice; None where the record leaves it open (a hidden test split).

    Args:
        options: The choices.
        answers: Field names and values that say which is right, for example `answer` and `answerKey`.

    Raises:
        UserError: No field says it, one names no choice or two of them, or two fields disagree.
    """
    found = {
        name: _index(options, value, name, where) for name, value in answers.items() if value is not None
    }
    indices = {index for index in found.values() if index is not None}
    if len(indices) > 1:
        raise UserError(f"{' and '.join(found)} name different choices", where=where)
    if not found:
        raise UserError(
            "does not say which choice is right", where=where, hint="expected answer or answerKey"
        )
    return indices.pop() if indices else None


def _index(options: Options, value: object, name: str, where: str) -> int | None:
    if value in ("", -1, "-1"):
        return None
    texts = [text.strip() for text in options.texts]
    indices = set[int]()
    if is_number(value) and not isinstance(value, str):
        indices = {i for i in range(len(texts)) if i == value}
    elif isinstance(value, str):
        word = value.strip()
        label = re.fullmatch(r"\(?([A-Za-z]|\d+)\)?[.:]?", word)
        indices |= {i for i, text in enumerate(texts) if text == word}
        if label:
            named = {i for i, own in enumerate(options.labels) if own.strip() == label[1]}
            named |= {i for i, own in enumerate(options.labels) if own.strip() == label[1].upper()}
            if not named and label[1].isdecimal() and int(label[1]) < len(texts):
                named = {int(label[1])}
            indices |= named
        elif not indices:  # `B. Paris`
            indices = {i for i, text in enumerate(texts) if _unlettered(word, options.labels[i]) == text}
    if len(indices) != 1:
        several = "several choices" if indices else "none of the choices"
        raise UserError(f"field '{name}' ({str(value)[:40]}) is {several}", where=where)
    return indices.pop()
