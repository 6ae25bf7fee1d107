"""What a record may hold, declared: a pydantic model of its fields, from which reading, refusing and the docs come.

A field of the record is read by a schema, refused by name because it would change what the record means, or noted as
unread. Which formats there are is in `converters.py`, what a message of a conversation is in `messages.py`.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, PlainValidator, Strict, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo

from rectune.data.readers import json_type
from rectune.errors import UserError

log = logging.getLogger("rectune")


@dataclass
class Notes:
    """What is worth saying about the rows of a source, each with the number of rows that it holds for.

    Attributes:
        read: Fields that were read; a field of a message is `messages[].name`.
        ignored: Fields that were not, though they hold something.
        refused: Fields that are not supported; their rows are faulty.
        said: Whatever else was decided, as the end of a sentence that begins with the number.
    """

    read: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)

    def add(self, place: Place) -> None:
        """Count what one record gave."""
        for counts, found in (
            (self.read, place.read), (self.ignored, place.ignored), (self.said, place.said)
        ):  # fmt: skip
            for one in found:
                counts[one] += 1

    def say(self, source: str) -> None:
        """Put what was left unread or decided into the log."""
        for said, rows in sorted(self.said.items()):
            log.warning("%s: %s %s", source, f"{rows:,}", said)
        if self.ignored:
            fields = ", ".join(f"{name} ({rows:,} rows)" for name, rows in sorted(self.ignored.items()))
            log.info("%s: fields left unread: %s", source, fields)


@dataclass(slots=True)
class Place:
    """Where a value stands, and what is noted about the record it belongs to.

    Attributes:
        where: `file:line`.
        path: In front of a field's name, such as `messages[2].`.
        names: For each field of the schema, its name in the record.
    """

    where: str
    path: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    said: set[str] = field(default_factory=set)

    def inside(self, path: str) -> Place:
        """A place within this one, with the same notes."""
        return Place(self.where, path, {}, self.read, self.ignored, self.refused, self.said)

    def name(self, info: ValidationInfo) -> str:
        """How the record calls the field that is validated."""
        return f"'{self.path}{self.names.get(str(info.field_name), info.field_name)}'"

    def mark(self, names: set[str], name: str) -> None:
        """Add a field to one of the sets, elements of a list as one."""
        names.add(_unnumbered(self.path) + name if self.path else name)

    def error(self, what: str, hint: str | None = None) -> UserError:
        """The error for something that is wrong with the record."""
        return UserError(what, where=self.where, hint=hint)

    def wrong(self, info: ValidationInfo, value: object, expected: str) -> UserError:
        """The error for a value of another type."""
        return self.error(f"field {self.name(info)} is {json_type(value)}, not {expected}")


@dataclass(frozen=True)
class Names:
    """The names that a field may have in a record, the usual one first; several are the same field."""

    usual: tuple[str, ...]

    def __init__(self, *usual: str) -> None:
        object.__setattr__(self, "usual", usual)


def place_of(info: ValidationInfo) -> Place:
    assert isinstance(info.context, Place)
    return info.context


def text(value: object, info: ValidationInfo) -> str:
    """A text as it is; UserError for anything else."""
    if not isinstance(value, str):
        raise place_of(info).wrong(info, value, "text")
    return value


def json_list(value: object, info: ValidationInfo) -> list[Any]:
    """A list, also one that is written as JSON text (an object is a list of one); "" and "[]" are empty."""
    listed = value
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            listed = json.loads(value) if value.strip() else []
    if isinstance(listed, Mapping):
        return [listed]
    if not isinstance(listed, list):
        raise place_of(info).wrong(info, value, "a list")
    return listed


Text = Annotated[str, Strict()]
JsonList = Annotated[Sequence[Any], PlainValidator(json_list)]

Kind = TypeVar("Kind", bound="Schema")


class Refusal(NamedTuple):
    """A field that changes what a record means, where no schema reads it: what to do, and which values say anything."""

    hint: str
    when: Callable[[object], bool] = lambda value: True


class Schema(BaseModel):
    """One kind of record. A field's docstring is its line in the documentation; null is as good as missing."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    refused: ClassVar[Mapping[str, Refusal]] = {}
    """Names that would change what the record means; those that the schema does not read are refused."""

    @classmethod
    def names(cls) -> dict[str, str]:
        """For each name that a record may use, the field of the schema."""
        return _names(cls)

    @classmethod
    def required(cls) -> list[tuple[str, ...]]:
        """The names of each field that a record must have."""
        return [names_of(name, info) for name, info in cls.model_fields.items() if info.is_required()]

    @classmethod
    def read(
        cls: type[Kind],
        record: Mapping[str, object],
        place: Place,
        mapped: Mapping[str, str] = MappingProxyType({}),
    ) -> Kind:
        """The record as this schema, its unread fields noted in `place`.

        Args:
            record: Decoded JSON object, CSV line or Parquet row.
            place: Where it stands.
            mapped: For names of the record that the user has mapped, the field of the schema.

        Raises:
            UserError: A field is missing, mistyped, refused, or given under two names with two values.
        """
        known, others = _told_apart(cls, tuple(record), tuple(mapped.items()))
        for name in others:
            if holds(value := record[name]):
                _refuse(name, value, place, cls.refused)
                place.mark(place.ignored, name)
        given, names = dict[str, object](), dict[str, str]()
        for name, key in known:
            if (value := record[name]) is not None:
                if key in given and given[key] != value:
                    pair = f"fields '{place.path}{names[key]}' and '{place.path}{name}'"
                    raise place.error(f"{pair} differ and mean the same", "keep one")
                given[key], names[key] = value, name
                place.mark(place.read, name)
        place.names = names
        try:
            return cls.__pydantic_validator__.validate_python(given, context=place)  # type: ignore[no-any-return]
        except ValidationError as error:  # validators in Python raise UserErrors of their own
            key = str(error.errors(include_url=False)[0]["loc"][0])
            if key in given:
                what = f"field '{place.path}{names[key]}' is {json_type(given[key])}, not text"
                raise place.error(what) from None
            missing = next((name for name, field in mapped.items() if field == key), None)
            raise _missing(missing or names_of(key, cls.model_fields[key])[0], record, place) from None


@lru_cache(maxsize=1024)
def _unnumbered(path: str) -> str:
    return re.sub(r"\[\d+\]", "[]", path)


@lru_cache(maxsize=1024)
def _told_apart(
    cls: type[Schema], names: tuple[str, ...], mapped: tuple[tuple[str, str], ...]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Of a record's names, those that a schema reads, each with its field, and the others."""
    taken = {key for _, key in mapped}
    keys = {name: key for name, key in cls.names().items() if key not in taken} | dict(mapped)
    return [(n, keys[n]) for n in names if n in keys], [n for n in names if n not in keys]


@cache
def _names(cls: type[Schema]) -> dict[str, str]:
    return {name: key for key, info in cls.model_fields.items() for name in names_of(key, info)}


def names_of(key: str, info: FieldInfo) -> tuple[str, ...]:
    """The names in a record of one field of a schema."""
    return next((mark.usual for mark in info.metadata if isinstance(mark, Names)), (key,))


def holds(value: object) -> bool:
    """Whether a field says anything: null, an empty text, and lists and objects of nothing else do not."""
    if isinstance(value, Mapping):
        return any(map(holds, value.values()))
    return any(map(holds, value)) if isinstance(value, list) else value is not None and value != ""


def truth(value: object) -> bool | None:
    """True or false in its usual spellings (1, 0.0, "false"); None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    return None


MAX_WEIGHT = 1e30
"""Of a row or a turn: so that no sum of weights overflows."""


def loss_weight(value: object, info: ValidationInfo) -> float:
    """A factor of a loss: a number from 0 on, also as text, true or false; UserError for anything else."""
    place, weight = place_of(info), as_weight(value)
    if not 0 <= weight <= MAX_WEIGHT:
        said = json_type(value) if isinstance(value, list | dict) else value
        what = f"field {place.name(info)} is {said}; a weight is a number from 0 to {MAX_WEIGHT:g}"
        raise place.error(what, "fix it, or leave the field unread with --ignore-fields")
    return weight


def as_weight(value: object) -> float:
    """The number in a field of a weight, 1 where it is empty; NaN where it is none."""
    known = truth(value) if holds(value) else True
    return float(known if known is not None else str(value) if is_number(value) else math.nan)


def is_number(value: object) -> bool:
    """Whether a value is a number, or a text that is one (of a CSV file)."""
    if isinstance(value, str):
        return re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse(name: str, value: object, place: Place, refused: Mapping[str, Refusal]) -> None:
    refusal = refused.get(name)
    if refusal is not None and refusal.when(value):
        place.mark(place.refused, name)
        raise place.error(f"field '{place.path}{name}' is not supported", refusal.hint)


def _missing(name: str, record: Mapping[str, object], place: Place) -> UserError:
    if name in record:
        return place.error(f"field '{place.path}{name}' is null")
    has = ", ".join(map(str, record))
    return place.error(f"field '{place.path}{name}' is missing", f"has: {has}")
