"""`import rectune` is light and offers its names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rectune

HEAVY = ("torch", "transformers", "datasets", "matplotlib", "pydantic", "cyclopts", "numpy")


def loaded(statement: str) -> set[str]:
    """Which heavy packages a fresh Python has loaded after a statement."""
    code = f"import sys; {statement}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
    )


def test_importing_rectune_loads_nothing_heavy() -> None:
    assert loaded("import rectune; dir(rectune); rectune.UserError; rectune.Row") == set()


def test_the_top_level_help_loads_no_model_library_and_no_settings() -> None:
    assert loaded("from rectune.cli.app import app; app.assemble_argument_collection") == {"cyclopts"}


def test_the_first_page_of_help_loads_nothing_heavy() -> None:
    assert loaded("import rectune.__main__") == set()


def test_the_settings_and_the_loader_do_without_torch() -> None:
    assert loaded("from rectune import TrainConfig, load_model") == {"pydantic"}


@pytest.mark.parametrize("name", ["UserError", "Row", "Problem", "Sample", "TrainConfig", "load_model"])
def test_public_names_are_there(name: str) -> None:
    assert getattr(rectune, name).__module__ == rectune._HOME[name]
    assert name in dir(rectune)


def test_the_names_for_editors_are_those_at_run_time() -> None:
    import ast
    from pathlib import Path

    tree = ast.parse(Path(rectune.__file__).read_text("utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    seen = {(n.names[0].name, n.module) for n in block.body if isinstance(n, ast.ImportFrom)}
    assert seen == set(rectune._HOME.items())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rectune.nonsense
