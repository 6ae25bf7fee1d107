"""Functions of the user's own, named as FILE.py:FUNCTION: objectives and rewards."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rectune.errors import UserError, unknown_name


def load_function(name: str, *, where: str) -> Callable[..., Any]:
    """The function that FILE.py:FUNCTION names; the file is run.

    Args:
        name: Path of a Python file, a colon and the name of a function in it.
        where: Setting that an error message names.

    Raises:
        UserError: Another form, no such file or function, or a file that cannot be run.
    """
    file, _, function = name.rpartition(":")
    path = Path(file).expanduser()
    if path.suffix != ".py" or not function:
        raise UserError(f"'{name}' is not of the form FILE.py:FUNCTION", where=where)
    if not path.is_file():
        raise UserError(f"no such file: {file}", where=where, hint="give FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(f"rectune_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"the file cannot be run ({type(error).__name__}: {error})", where=path) from None
    found = getattr(module, function, None)
    if not callable(found):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise unknown_name("function", function, known, where=path)
    return found  # type: ignore[no-any-return]
