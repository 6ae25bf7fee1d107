"""Read a TOML recipe and command-line overrides into one frozen config."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rectune.config.groups import Settings
from rectune.config.names import advice
from rectune.config.verbs import TrainConfig
from rectune.errors import UserError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

Config = TypeVar("Config", bound=Settings)

_NUMBERS = (int, float, int | None, float | None)


@overload
def load_config(recipe: Path | None = None, overrides: Mapping[str, Any] | None = None) -> TrainConfig: ...
@overload
def load_config(
    recipe: Path | None,
    overrides: Mapping[str, Any] | None,
    kind: type[Config],
    written_for: type[Settings] | None = None,
) -> Config: ...
def load_config(
    recipe: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    kind: type[Any] = TrainConfig,
    written_for: type[Settings] | None = None,
) -> Any:
    """The config of a run: the recipe's settings, with `overrides` in place of them.

    Args:
        recipe: TOML file with the fields of `kind`.
        overrides: Name to value, as `{"objective": "dft", "batch_size": 8}`; text is converted.
        kind: `TrainConfig`, or the config of another verb.
        written_for: The config that the recipe is of, where that is another; what `kind` does not have is left aside.

    Raises:
        UserError: No such file, no TOML, an unknown key, a missing or impossible value; says which and where.
    """
    overrides = overrides or {}
    read = {} if recipe is None else read_toml(recipe)
    aside = set(written_for.model_fields if written_for else ()) - set(kind.model_fields)
    given = {key: value for key, value in read.items() if key not in aside} | dict(overrides)
    origin = {key: flag(key) if key in overrides else f"{recipe}: {key}" for key in given}
    if "eval_split_size" in overrides and "eval_data" not in overrides:
        given.pop("eval_data", None)  # of the recipe: a flag wins
    for key, value in given.items():
        if key not in kind.model_fields:
            raise _unknown(key, value, kind, origin[key])
        if (
            isinstance(value, bool) and kind.model_fields[key].annotation in _NUMBERS
        ):  # pydantic takes true for 1
            raise UserError(f"must be a number (got {value})", where=origin[key])
        try:
            json.dumps([key, value], ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:  # a file's name of other bytes, for one: no config.json could hold it
            raise UserError("the name is not Unicode", where=origin[key], hint="use another name") from None
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _explain(error, origin) from None


def _unknown(key: str, value: object, kind: type[Settings], where: str) -> UserError:
    if isinstance(value, dict):  # a table of rectune 0.1
        inner = [f"{name}: {advice(f'{key}.{name}', kind.model_fields) or 'unknown'}" for name in value]
        return UserError("settings are not in tables", where=where, hint="; ".join(inner) or None)
    if hint := advice(key, kind.model_fields):
        return UserError(f"unknown setting '{key}'", where=where, hint=hint)
    return unknown_name("setting", key, kind.model_fields, where=where)


def dump_config(config: Settings) -> str:
    """The whole config as JSON, defaults included; `TrainConfig.model_validate_json` reads it back."""
    return config.model_dump_json(indent=2) + "\n"


def flag(key: str) -> str:
    """The command line's name of a setting: `batch_size` is `--batch-size`."""
    return "--" + key.replace("_", "-")


def typed(value: object) -> str:
    """A setting's value as it is typed on the command line."""
    if isinstance(value, dict):
        value = tuple(f"{key}={inner}" for key, inner in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_flags(config: Settings, names: Iterable[str]) -> list[str]:
    """Some settings of a config as words of a command line: `--batch-size 8 --balance --no-logprobs`.

    A switch that is as it is by default has no flag.
    """
    words = []
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool):
            if value != type(config).model_fields[name].default:
                words.append(flag(name) if value else f"--no-{flag(name)[2:]}")
        else:
            words += [flag(name), typed(value)]
    return words


def settings_by_group(kind: type[Settings]) -> dict[str, list[str]]:
    """Names of the settings by the title of their group (the docstring of the class that declares them first).

    The verb's own settings come first, then the groups in the order in which the verb inherits them.
    """
    groups = [group for group in kind.__mro__ if issubclass(group, Settings) and group is not Settings]
    group_of = {name: group for group in groups for name in group.__annotations__}
    titles: dict[str, list[str]] = {}
    for group in groups:
        names = [name for name in group.__annotations__ if group_of[name] is group]
        titles.setdefault((group.__doc__ or "").strip(), []).extend(names)
    return {title: names for title, names in titles.items() if names}


def read_toml(recipe: Path) -> dict[str, Any]:
    try:
        if not recipe.is_file():
            raise UserError("no such recipe", where=recipe)
        return tomllib.loads(recipe.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"the recipe cannot be read ({error.strerror})", where=recipe) from None
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        what = re.sub(r" \(at .*\)$", "", str(error))
        raise UserError(f"not TOML: {what}", where=f"{recipe}:{line[1]}" if line else recipe) from None
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text", where=recipe) from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond reason
        raise UserError(f"not TOML: {error}", where=recipe) from None


def _explain(error: ValidationError, origin: Mapping[str, str]) -> UserError:
    """The first complaint of pydantic as one line that names the key and where it was given."""
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        return UserError("missing", where=key, hint=f"give {flag(key)} or {key} = ... in the recipe")
    return UserError(_complaint(first), where=origin.get(key))


def _complaint(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if isinstance(context.get("gt"), int):  # of a whole number
        return f"must be at least {context['gt'] + 1} (got {error['input']})"
    context = {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in context.items()}
    if kind == "value_error":
        return error["msg"].removeprefix("Value error, ")
    rules = {
        "greater_than": "above {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "below {lt}",
        "less_than_equal": "at most {le}",
        "literal_error": "{expected}",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "float_parsing": "a number",
        "finite_number": "a finite number",
        "bool_parsing": "true or false",
    }
    if kind in rules:
        return f"must be {rules[kind].format(**context)} (got {error['input']!r})"
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, got {error['input']!r}"
