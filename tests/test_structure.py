"""`make structure` finds fragments, names used twice and circles, and its table is the one in CONTRIBUTING.md."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure", ROOT / "scripts" / "structure.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Two rooms: a circle of three modules, a module for one other, one that only a string names, names used twice."""
    text = {
        "__init__.py": "",
        "first/__init__.py": "",
        "first/loop.py": "from rectune.first import small\nfrom rectune.second import loop\nclass Arm: ...\n",
        "first/small.py": "X = 1\n",
        "first/large.py": "X = 1\n" * 60,
        "second/__init__.py": "",
        "second/loop.py": "import rectune.second.far\nCOMMAND = 'rectune.second.lazy:run'\nclass Arm: ...\n",
        "second/far.py": "def f():\n    import rectune.first.loop\n    from rectune.first.large import X\n",
        "second/lazy.py": "def run(): ...\n",
    }
    for name, content in text.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return tmp_path


def test_it_finds_what_makes_a_house_hard_to_see(structure: ModuleType, house: Path) -> None:
    files = structure.modules(house)
    graph = structure.import_graph(files)
    assert graph["first.loop"] == {"first.small", "second.loop"}
    assert structure.fragments(files, graph) == [
        "first.loop",
        "first.small",
        "second.far",
        "second.lazy",
        "second.loop",
    ]
    assert structure.circles(graph) == [["first.loop", "second.far", "second.loop"]]
    assert structure.modules_named_twice(files) == {"loop": ["first.loop", "second.loop"]}
    assert structure.classes_named_twice(files) == {"Arm": ["first.loop", "second.loop"]}
    assert structure.longest_functions(files)[0] == (3, "second.far.f")


def test_no_fragment_no_name_used_twice_no_circle(structure: ModuleType) -> None:
    files = structure.modules()
    assert list(structure.violations(files, structure.import_graph(files))) == []


def test_the_table_in_contributing_has_its_measures(structure: ModuleType) -> None:
    """The figures move with every change, so only what is measured and the targets are compared."""

    def frame(table: str) -> list[tuple[str, str]]:
        cells = [line.split("|") for line in table.splitlines()]
        return [(cell[1].strip(), cell[3].strip()) for cell in cells]

    files = structure.modules()
    written = structure.PAGE.read_text("utf-8").partition(structure.BEGIN)[2].partition(structure.END)[0]
    assert frame(written) == frame(structure.table(files, structure.import_graph(files)))
