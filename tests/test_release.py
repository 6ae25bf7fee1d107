"""What a release needs: metadata that agrees, a typed package, a lock with all that is needed, working workflows."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import rectune

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
YAML = [*WORKFLOWS, *(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"), ROOT / ".pre-commit-config.yaml"]


def parse(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return loaded


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return table


def commands(workflow: Path) -> list[str]:
    """What its jobs run, line by line."""
    steps = [step for job in parse(workflow)["jobs"].values() for step in job["steps"]]
    return [line for step in steps for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_it_is_yaml(path: Path) -> None:
    assert isinstance(parse(path), dict)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_of_the_makefile(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = [m[1] for line in commands(path) if (m := re.match(r"make ([\w-]+)", line))]
    assert targets or path.name != "test.yml"
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"the Makefile has no target {target}"
        assert re.search(rf"^\.PHONY:.* {target}\b", makefile, re.MULTILINE), f"{target} is not phony"


def test_the_quick_tests_are_of_every_area() -> None:
    quick = re.search(
        r"^QUICK := \$\(addprefix tests/, (.*?)\)$", (ROOT / "Makefile").read_text("utf-8"), re.M | re.S
    )
    assert quick
    names = quick[1].replace("\\", "").split()
    files = [ROOT / "tests" / name.partition("::")[0] for name in names]
    assert [path for path in files if not path.is_file()] == []
    areas = {path.parent for path in (ROOT / "tests").glob("*/test_*.py")}
    assert areas - {path.parent for path in files} == set()


def test_every_workflow_is_there() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "lint", "publish", "test"]


def test_the_pythons_tested_are_those_promised() -> None:
    metadata = project()["project"]
    tested = parse(ROOT / ".github" / "workflows" / "test.yml")["jobs"]["test"]["strategy"]["matrix"][
        "python"
    ]
    promised = [c.rpartition(" ")[2] for c in metadata["classifiers"] if "Python :: 3." in c]
    allowed = SpecifierSet(metadata["requires-python"])
    assert tested == promised == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed]


def test_one_version() -> None:
    cited = parse(ROOT / "CITATION.cff")
    assert cited["version"] == project()["project"]["version"] == rectune.__version__
    assert cited["license"] == project()["project"]["license"]


def test_the_paper_is_cited() -> None:
    (paper,) = parse(ROOT / "CITATION.cff")["references"]
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2508.05629"}]
    names = [(author["family-names"], author["given-names"]) for author in paper["authors"]]
    assert len(set(names)) == len(names) == 10  # the format refuses an author twice
    assert parse(ROOT / "CITATION.cff")["cff-version"] == "1.2.0"


def test_the_package_says_that_it_is_typed() -> None:
    assert files("rectune").joinpath("py.typed").is_file()
    assert "py.typed" in project()["tool"]["setuptools"]["package-data"]["rectune"]


def pins(file: str = "constraints.txt") -> dict[str, str]:
    lines = (ROOT / file).read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in found
        if pin.marker is None or pin.marker.evaluate({"python_version": "3.11"})
    }


def test_the_constraints_for_vllm_are_within_what_the_package_allows() -> None:
    """That they install together is asked of pip by scripts/check_vllm.sh, which needs an index."""
    metadata, pinned = project()["project"], pins("constraints-vllm.txt")
    extras = metadata["optional-dependencies"]
    for line in (*metadata["dependencies"], *extras["vllm"], *extras["peft"]):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.11"}):
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


def test_what_docs_and_dist_install_is_pinned() -> None:
    pinned = pins()
    wanted = [Requirement(line) for line in project()["project"]["optional-dependencies"]["docs"]]
    for requirement in (*wanted, Requirement("build")):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_pre_commit_formats_as_lint_does() -> None:
    hooks = {
        repo["repo"].rpartition("/")[2]: repo for repo in parse(ROOT / ".pre-commit-config.yaml")["repos"]
    }
    assert hooks["ruff-pre-commit"]["rev"] == f"v{pins()['ruff']}"


def locked() -> dict[str, tuple[str, list[str]]]:
    """Version and sums by name."""
    text = (ROOT / "requirements.lock").read_text()
    entries = re.findall(
        r"^([a-z0-9-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE
    )
    assert text == text[: text.index("\n") + 1] + "".join(f"{n}=={v} \\\n{sums}" for n, v, sums in entries)
    return {name: (version, re.findall("sha256:([0-9a-f]+)", sums)) for name, version, sums in entries}


def test_the_lock_has_the_versions_of_the_constraints() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text(), "no address of an index"
    pinned = pins()
    for name, (version, sums) in locked().items():
        assert version == pinned.get(name), f"{name}: run python scripts/lock.py"
        assert sums


def test_the_lock_has_all_that_the_package_needs() -> None:
    metadata, found = project()["project"], locked()
    for line in (*metadata["dependencies"], *metadata["optional-dependencies"]["peft"]):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.11"}):
            assert requirement.specifier.contains(found[canonicalize_name(requirement.name)][0]), line
