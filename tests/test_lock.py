"""requirements.lock pins what constraints.txt pins, every archive with its SHA-256, and all that the package needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib")  # of Python 3.11

ROOT = Path(__file__).parents[1]


def locked() -> dict[str, tuple[str, list[str]]]:
    """Version and sums by name."""
    text = (ROOT / "requirements.lock").read_text()
    entries = re.findall(
        r"^([a-z0-9-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE
    )
    assert text == text[: text.index("\n") + 1] + "".join(f"{n}=={v} \\\n{sums}" for n, v, sums in entries)
    return {name: (version, re.findall("sha256:([0-9a-f]+)", sums)) for name, version, sums in entries}


def test_the_lock_has_the_versions_of_the_constraints() -> None:
    pinned: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.11"}):
                pinned[canonicalize_name(requirement.name)] = {one.version for one in requirement.specifier}
    for name, (version, sums) in locked().items():
        assert {version} == pinned.get(name), f"{name}: run python scripts/lock.py"
        assert sums


def test_the_lock_has_all_that_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = locked()
    for line in (*project["dependencies"], *project["optional-dependencies"]["peft"]):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.11"}):
            assert requirement.specifier.contains(found[canonicalize_name(requirement.name)][0]), line


def test_no_address_of_an_index() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()
