"""From graded samples to the numbers of one benchmark: accuracy with intervals, and what the answers look
like.

Only counts and means; the statistics are in `statistics.py`. Reads the lines of `graded.jsonl`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rectune.data.readers import read_jsonl
from rectune.errors import UserError, unknown_name
from rectune.evaluation.statistics import (
    maj_at_k_by_problem,
    mean_interval,
    pass_at_k_by_problem,
)
from rectune.evaluation.voting import votes
from rectune.records import VERDICTS
from rectune.sampling.types import repetition

Line = Mapping[str, Any]
_OPERATION = re.compile(r"(?<=[\d)])\s*[-+*/]")
REPEATED = 0.5
"""Share of a sample's 4-grams that it already had, from which on the sample counts as repeating itself."""


def read_graded(path: Path, problem_ids: Sequence[str], n: int) -> dict[str, list[Line]]:
    """The first n graded samples of each problem, by problem id, in the order of the sample index.

    Raises:
        UserError: No such file, a line without a verdict, samples of two models, or a problem with fewer than
        n.
    """
    found: dict[str, dict[int, Line]] = {problem_id: {} for problem_id in problem_ids}
    models: dict[str, str] = {}
    for number, line in read_jsonl(path):
        where = f"{path}:{number}"
        kinds = {"problem_id": str, "sample_index": int, "verdict": str, "text": str}
        if not all(isinstance(line.get(name), kind) for name, kind in kinds.items()) or not _usable(line):
            raise UserError("is not a graded sample", where=where, hint="run rectune grade first")
        if line["verdict"] not in VERDICTS:
            raise unknown_name("verdict", str(line["verdict"]), VERDICTS, where=where)
        models.setdefault(str(line.get("fingerprint")), where)
        if len(models) > 1:
            raise UserError(
                f"holds samples of two models (see {next(iter(models.values()))})",
                where=where,
                hint="evaluate each model in a folder of its own",
            )
        if line["problem_id"] in found and 0 <= line["sample_index"] < n:
            found[line["problem_id"]][line["sample_index"]] = line
    for problem_id, lines in found.items():
        if len(lines) < n:
            raise UserError(
                f"{n - len(lines)} of {n} samples of problem {problem_id} are missing",
                where=path,
                hint="run the evaluation again, it goes on where it stopped",
            )
    return {problem_id: [lines[i] for i in range(n)] for problem_id, lines in found.items()}


def _usable(line: Line) -> bool:
    """Whether the fields that a line may lack are, if there, what the numbers are made of."""
    texts = all(isinstance(line.get(name, ""), str) for name in ("grader", "finish_reason"))
    ids, extracted = line.get("token_ids", []), line.get("extracted")
    return (
        texts
        and isinstance(ids, list)
        and all(isinstance(i, int) for i in ids)
        and (extracted is None or isinstance(extracted, str))
    )


def correct_matrix(samples: Mapping[str, Sequence[Line]]) -> np.ndarray:
    """1 where the verdict is correct: int8 of shape (P, N)."""
    return np.array([[line["verdict"] == "correct" for line in lines] for lines in samples.values()], np.int8)


def score(samples: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
    """The numbers of one benchmark, JSON-ready.

    `avg`, `pass_at` and `maj_at` (k = 1, 2, 4, ... and n) hold mean, low and high of a 95 % interval.
    `verdicts` counts all five, time-outs and errors apart from wrong. `stopped` is the share that ended by
    itself, `tokens` the mean length, `repeating` the share of samples of which at least half of the 4-grams
    of tokens had occurred in them before. `operations` (calculations only): how many samples calculate how
    much.
    """
    correct, every = correct_matrix(samples), [line for lines in samples.values() for line in lines]
    n = correct.shape[1]
    graders = {line.get("grader") for line in every}
    ks = sorted({1 << i for i in range(n.bit_length()) if 1 << i <= n} | {n})
    verdicts = Counter(line["verdict"] for line in every)
    numbers: dict[str, Any] = {
        "problems": len(samples),
        "samples": len(every),
        "avg": mean_interval(correct)._asdict(),
        "pass_at": {str(k): mean_interval(pass_at_k_by_problem(correct, k)[:, None])._asdict() for k in ks},
        "verdicts": {verdict: verdicts[verdict] for verdict in VERDICTS},
    }
    if "code" not in graders:  # programs do not vote
        answers = votes(samples)
        numbers["maj_at"] = {
            str(k): mean_interval(maj_at_k_by_problem(correct, answers, k)[:, None])._asdict() for k in ks
        }
    if all("token_ids" in line and "finish_reason" in line for line in every):
        numbers["stopped"] = float(np.mean([line["finish_reason"] == "stop" for line in every]))
        numbers["tokens"] = float(np.mean([len(line["token_ids"]) for line in every]))
        numbers["repeating"] = float(np.mean([repetition(line["token_ids"]) >= REPEATED for line in every]))
    if graders == {"expression"}:
        shape = Counter(
            "none" if line["verdict"] == "unparsed" else str(operations(line.get("extracted") or ""))
            for line in every
        )
        numbers["operations"] = dict(sorted(shape.items()))
    return numbers


def operations(expression: str) -> int:
    """How many of + - * / a calculation has; signs do not count."""
    return len(_OPERATION.findall(expression))
