"""OUT/comparison.json: what a comparison is, what was chosen, and its verdict.

It is written when the base model has answered, so that from then on the folder holds this comparison, and again
after every choice and at the end. What its fields mean is in docs/comparison.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectune.errors import UserError
from rectune.experiments.variants import BASE, Arm, run_folder
from rectune.runtime.io import FORMAT, check_format, load_json, to_json, write_json
from rectune.training.run_dir import filled, other_settings

if TYPE_CHECKING:
    from rectune.experiments.grid import Matrix

FILE = "comparison.json"


def read_record(out: Path) -> dict[str, Any] | None:
    """OUT/comparison.json; None where there is none.

    Raises:
        UserError: It cannot be read, or is from another version.
    """
    path = out / FILE
    if not path.is_file():
        return None
    try:
        found = load_json(path)
    except (ValueError, OSError):
        found = None
    if not isinstance(found, dict) or not {"format", "settings", "arms", "seeds"} <= set(found):
        raise UserError("is not a comparison", where=path, hint="give another --output-dir")
    check_format(found, path)
    return found


def write_record(matrix: Matrix, arms: Sequence[Arm], **results: Any) -> dict[str, Any]:
    """Write OUT/comparison.json and return its content.

    Args:
        matrix: What was asked for.
        arms: With the learning rates that were chosen.
        results: `sweep`, `race`, `matched_to` and `verdict`, as far as there are any; `dropped` by slug.
    """
    dropped = results.pop("dropped", None) or {}
    record = {
        "format": FORMAT,
        "rectune": version("rectune"),
        "model": matrix.config.model,
        "data": matrix.config.data,
        "seeds": list(matrix.seeds),
        "arms": [_arm(matrix, arm, dropped.get(arm.slug)) for arm in arms],
        "base": f"runs/{BASE}",
        "benchmarks": matrix.domains,
        "problems": {name: len(asked) for name, asked in matrix.problems.items()},
        "validation": {name: len(asked) for name, asked in matrix.validation.items()},
        "settings": matrix.settings,
        **{"sweep": None, "race": None, "matched_to": None, "verdict": None, **results},
    }
    matrix.out.mkdir(parents=True, exist_ok=True)
    write_json(matrix.out / FILE, record, indent=2)
    return record


def _arm(matrix: Matrix, arm: Arm, dropped: dict[str, Any] | None) -> dict[str, Any]:
    runs = {str(seed): run_folder(Path(), arm, seed).as_posix() for seed in matrix.seeds}
    return {
        "objective": arm.objective,
        "label": arm.label,
        "slug": arm.slug,
        "learning_rate": arm.learning_rate,
        "runs": runs,
        "dropped": dropped,
    }


def check_same(found: dict[str, Any], settings: dict[str, Any], defaults: dict[str, Any], path: Path) -> None:
    """Raise `UserError` where a comparison that is there has other settings; says which.

    Settings that the version which began it did not have yet are at their `defaults`.
    """
    now = json.loads(to_json(settings))
    before = filled(found["settings"], json.loads(to_json(defaults)), now)
    if differing := [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]:
        raise other_settings(differing, before, now, path)
