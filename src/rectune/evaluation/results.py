"""Reading an evaluation folder that `evaluate.py` wrote: its protocol, problem ids and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rectune.errors import UserError
from rectune.evaluation.accuracy import correct_matrix, read_graded
from rectune.runtime.io import check_format, load_json

PROTOCOL = ("n", "temperature", "top_p", "max_new_tokens", "stop", "template", "date", "system")
"""Settings whose difference makes two evaluations hard to compare."""


def verdict_matrix(folder: Path, benchmark: str) -> tuple[list[str], np.ndarray]:
    """Problem ids and which samples are correct, int8 of shape (P, N), of one benchmark of an evaluation.

    Raises:
        UserError: No evaluation there, or not of this benchmark.
    """
    evaluation = read_evaluation(folder)
    if benchmark not in evaluation["benchmarks"]:
        raise UserError(f"holds no evaluation on {benchmark}", where=folder)
    ids = evaluation["benchmarks"][benchmark]["problem_ids"]
    lines = read_graded(Path(folder) / "graded.jsonl", ids, evaluation["protocol"]["n"])
    return ids, correct_matrix(lines)


def read_evaluation(folder: Path) -> dict[str, Any]:
    """OUT/evaluation.json of a folder that `evaluate` wrote.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    path = Path(folder) / "evaluation.json"
    if not path.is_file():
        raise UserError("no evaluation.json in this folder", where=folder, hint="run rectune eval first")
    try:
        evaluation = load_json(path)
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", where=path) from None
    if not isinstance(evaluation, dict) or not {"benchmarks", "protocol"} <= set(evaluation):
        raise UserError("is not an evaluation", where=path)
    check_format(evaluation, path)
    if not _usable(evaluation["protocol"], evaluation["benchmarks"]):
        raise UserError("is damaged", where=path, hint="remove it and run the evaluation again, it goes on")
    evaluation["protocol"].setdefault("stop", [])
    return evaluation


def _usable(protocol: Any, benchmarks: Any) -> bool:
    """Whether they say how often at which temperature which problems were asked, each named once."""
    if not isinstance(protocol, dict) or not isinstance(benchmarks, dict):
        return False
    n, temperature = protocol.get("n"), protocol.get("temperature")
    drawn = isinstance(n, int) and n > 0 and isinstance(temperature, (int, float))
    ids = [one.get("problem_ids") if isinstance(one, dict) else None for one in benchmarks.values()]
    return drawn and all(
        isinstance(some, list) and all(isinstance(i, str) for i in some) and len(some) == len(set(some))
        for some in ids
    )


def protocol_differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What two evaluations did not do alike, as sentences."""
    found = [
        f"{key} differs: {a['protocol'].get(key)!r} and {b['protocol'].get(key)!r}"
        for key in PROTOCOL
        if a["protocol"].get(key) != b["protocol"].get(key)
    ]
    refused = [
        sorted(one["protocol"].get("not_taken") or []) for one in (a, b)
    ]  # of servers; earlier files have none
    if refused[0] != refused[1]:
        found.append(f"the servers refused other settings: {refused[0]} and {refused[1]}")
    for name in a["benchmarks"].keys() & b["benchmarks"].keys():
        asked = a["benchmarks"][name].get("prompt"), b["benchmarks"][name].get("prompt")
        if asked[0] != asked[1]:
            found.append(f"{name} is asked as {asked[0]!r} and as {asked[1]!r}")
    return found
