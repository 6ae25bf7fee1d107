"""Flags from config classes: a verb that takes a config gets a flag for each of its settings.

Names, groups, help texts and defaults are those of the class; what values mean, and whether they are possible, is
decided in `config/`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter, Token
from pydantic.fields import FieldInfo

from rectune.config import Settings, Several, flag, load_config, settings_by_group, typed
from rectune.errors import UserError

Verb = Callable[..., None]
Switch = Annotated[bool, Parameter(negative=(), show_default=False)]

SHORT = {"num_samples": ["-n"]}


def takes(
    kind: type[Settings],
    *positional: str,
    without: Collection[str] = (),
    recipe: type[Settings] | None = None,
) -> Callable[[Verb], Verb]:
    """Make `verb(config, *, ...)` a command that has a flag for each setting of the config in place of `config`.

    Args:
        kind: Class of the config.
        positional: Settings that may also be given by position, in this order. A `.toml` file among them is a recipe.
        without: Settings that get no flag.
        recipe: Whose recipes are read; what `kind` does not have of it is left aside. By default `kind`.
    """

    takes_toml = "recipe" not in positional  # else the recipe is of another kind

    def decorate(verb: Verb) -> Verb:
        def command(*values: str | None, **given: Any) -> None:
            settings = {name: value for name in names if (value := given.pop(name, None)) is not None}
            path = None
            free = iter(positional)
            for value in filter(None, values):
                if takes_toml and value.endswith(".toml") and path is None:
                    path = Path(value)
                    continue
                name = next(free, None)
                if name is None:
                    raise UserError("not a TOML recipe", where=value, hint="give settings as flags")
                if name in settings:
                    raise UserError("given both by position and as a flag", where=flag(name))
                settings[name] = value
            verb(load_config(path, settings, kind, recipe or kind), **given)

        flags = [
            _parameter(name, kind.model_fields[name], Group(title, sort_key=at))
            for at, (title, members) in enumerate(settings_by_group(kind).items(), start=1)
            for name in members
            if name not in without
        ]
        names = [parameter.name for parameter in flags]
        by_position = [_positional(name, f"The same as {flag(name)}.") for name in positional]
        if takes_toml:
            text = "TOML file with the settings below; flags override it."
            by_position.insert(0, _positional("recipe", text))
        of_verb = list(inspect.signature(verb, eval_str=True).parameters.values())[1:]  # without the config
        command.__doc__ = verb.__doc__
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*by_position, *of_verb, *flags]
        )
        return command

    return decorate


def _positional(name: str, text: str) -> inspect.Parameter:
    return inspect.Parameter(
        f"{name}_",
        inspect.Parameter.POSITIONAL_ONLY,
        default=None,
        annotation=Annotated[str | None, Parameter(name=name.upper(), help=text, show_default=False)],
    )


def _parameter(name: str, field: FieldInfo, group: Group) -> inspect.Parameter:
    description = " ".join((field.description or "").split())
    default = _show(field)
    several = set(get_args(Several)[1:]) <= set(field.metadata)
    on = field.default is True
    kind = tuple[str, ...] if several else _flag_type(field.annotation)
    parameter = Parameter(
        name=[flag(name), *SHORT.get(name, ())],
        help=f"{description} [default: {default}]" if default else description,
        group=group,
        negative=f"--no-{flag(name)[2:]}" if on else (),
        show_default=False,
        converter=_texts if name == "stop" else _whole if kind is int else None,
    )
    annotation: Any = Annotated[kind | None, parameter]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    """A whole number; cyclopts would take 2.5 for 2."""
    try:
        return int(tokens[-1].value)
    except ValueError:
        raise ValueError(f"must be a whole number (got {tokens[-1].value!r})") from None


def _texts(_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    r"""Each flag's text, in which `\n` is a line end and `\t` a tab, since a shell does not write them."""
    return tuple(token.value.replace("\\n", "\n").replace("\\t", "\t") for token in tokens)


def _flag_type(annotation: Any) -> Any:
    """The type that the command line converts to; text where only the config can tell."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) is not Literal and len(kinds) == 1:
        annotation = kinds[0]
    simple = annotation in (bool, int, float, Path) or get_origin(annotation) is Literal
    return annotation if simple else str


def _show(field: FieldInfo) -> str:
    """The default as it would be typed; empty where there is none."""
    default = field.get_default(call_default_factory=True)
    if field.is_required() or default is None or isinstance(default, bool) or default in ((), {}):
        return ""
    return typed(default)


Whole = Annotated[int, Parameter(converter=_whole)]
"""A whole number, for flags that no config has."""
