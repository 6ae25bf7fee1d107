"""Every setting of a run as a flag of the command line: names, help and defaults come from `TrainConfig`.

What the values mean, and whether they are possible, is decided in `config/__init__.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic.fields import FieldInfo

from rectune.cli.parameters import texts
from rectune.config import Settings, StopTexts, TrainConfig, flag, settings_fields

Verb = Callable[..., None]

GROUPS = {
    table: Group(title, sort_key=position)
    for position, (table, title) in enumerate(
        {
            "": "Run", "sampling": "Sampling", "selection": "Selection", "rows": "Rows",
            "lora": "LoRA",
        }.items(), start=1
    )
}  # fmt: skip

SHORT = {"rows.skip_bad_rows": ["--skip-bad-rows"]}
"""Settings that may be given without their table."""


def settings_flags(
    only: Callable[[str], bool] = lambda name: True, kind: type[Settings] = TrainConfig
) -> Callable[[Verb], Verb]:
    """Give a verb one flag per setting in place of its `**overrides`, which gets those that were given.

    The verb's `overrides` is a dict of dotted name to value, as `load_config` takes it.

    Args:
        only: Which settings, by dotted name.
        kind: Whose settings; a table without a title in `GROUPS` needs one.
    """

    def decorate(verb: Verb) -> Verb:
        def command(*args: Any, **given: Any) -> None:
            overrides = {names[key]: given.pop(key) for key in list(given) if key in names}
            overrides = {name: value for name, value in overrides.items() if value is not None}
            verb(*args, **given, **overrides)

        fields = [(name, field) for name, field in settings_fields(kind) if only(name)]
        names = {name.replace(".", "_"): name for name, _ in fields}
        parameters = inspect.signature(verb, eval_str=True).parameters.values()
        own = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        flags = [_parameter(name, field) for name, field in fields]
        command.__name__, command.__doc__ = verb.__name__, verb.__doc__
        command.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    table = name.partition(".")[0] if "." in name else ""
    description = " ".join((field.description or "").split())
    default = _show(field)
    several = set(get_args(StopTexts)[1:]) <= set(field.metadata)
    parameter = Parameter(
        name=[flag(name), *SHORT.get(name, ())],
        help=f"{description} [default: {default}]" if default else description,
        group=GROUPS[table],
        negative=(),
        show_default=False,
        converter=texts if several else None,
    )
    kind = field.annotation if several else _flag_type(field.annotation)
    return _keyword(name.replace(".", "_"), kind | None, parameter)  # type: ignore[operator]


def _keyword(name: str, kind: Any, parameter: Parameter) -> inspect.Parameter:
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=None, annotation=Annotated[kind, parameter])


def _flag_type(annotation: Any) -> Any:
    """The type that the command line converts to; text where only `config/__init__.py` can tell."""
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
