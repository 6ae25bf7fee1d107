"""Every setting of a run as a flag of the command line: names, help and defaults come from its config.

What the values mean, and whether they are possible, is decided in `config/`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic.fields import FieldInfo

from rectune.cli.parameters import texts
from rectune.config import Settings, StopTexts, TrainConfig, flag, settings_by_group

Verb = Callable[..., None]

SHORT = {"num_samples": ["-n"]}


def settings_flags(
    only: Callable[[str], bool] = lambda name: True, kind: type[Settings] = TrainConfig
) -> Callable[[Verb], Verb]:
    """Give a verb one flag per setting in place of its `**overrides`, which gets those that were given.

    The verb's `overrides` is a dict of name to value, as `load_config` takes it.

    Args:
        only: Which settings, by name.
        kind: Whose settings.
    """

    def decorate(verb: Verb) -> Verb:
        def command(*args: Any, **given: Any) -> None:
            unset = [name for name in given if name in names and given[name] is None]
            verb(*args, **{name: value for name, value in given.items() if name not in unset})

        parameters = inspect.signature(verb, eval_str=True).parameters.values()
        own = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        groups = settings_by_group(kind)
        flags = [
            _parameter(name, kind.model_fields[name], Group(title, sort_key=at))
            for at, (title, members) in enumerate(groups.items(), start=1)
            for name in filter(only, members)
        ]
        names = {flag.name for flag in flags}
        command.__name__, command.__doc__ = verb.__name__, verb.__doc__
        command.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(name: str, field: FieldInfo, group: Group) -> inspect.Parameter:
    description = " ".join((field.description or "").split())
    default = _show(field)
    several = set(get_args(StopTexts)[1:]) <= set(field.metadata)
    parameter = Parameter(
        name=[flag(name), *SHORT.get(name, ())],
        help=f"{description} [default: {default}]" if default else description,
        group=group,
        negative=(),
        show_default=False,
        converter=texts if several else None,
    )
    kind = field.annotation if several else _flag_type(field.annotation)
    annotation: Any = Annotated[kind | None, parameter]  # type: ignore[operator]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


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
    if field.is_required() or default is None or default is False or default in ((), {}):
        return ""
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
