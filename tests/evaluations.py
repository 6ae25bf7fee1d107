"""Evaluation folders from constructed answers, written as `evaluate` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rectune.config import EvalConfig
from rectune.evaluation.accuracy import score
from rectune.evaluation.evaluate import evaluate
from rectune.records import (
    Accuracy,
    EvalProtocol,
    Evaluation,
    Graded,
    TaskResult,
    TaskScore,
    write_record,
)
from rectune.sampling.types import Engine

ONE, TWO = "2 + 4", "(2 + 4) * 3"
UNSCORED = TaskScore(
    problems=0, samples=0, avg=Accuracy(mean=0.0, low=0.0, high=1.0), pass_at={}, verdicts={}
)


def write_evaluation(
    folder: Path,
    benchmarks: Mapping[str, Sequence[Sequence[tuple[str, bool]]]],
    *,
    temperature: float = 1.0,
    nats: float = 0.5,
    first: int = 0,
    scored: bool = True,
    **line: Any,
) -> Path:
    """A folder with the answers (text, whether correct) of each problem of each benchmark.

    Args:
        nats: -log p of every token.
        first: Number of the first problem.
        scored: Whether evaluation.json has the numbers, which take time; what reads the answers alone needs none.
        line: Further fields of every sample.
    """
    folder.mkdir(parents=True)
    tasks, every = {}, []
    for name, problems in benchmarks.items():
        samples = {
            f"{name}/{first + i}": [
                Graded(
                    problem_id=f"{name}/{first + i}", sample_index=index, text=text, extracted=text,
                    verdict="correct" if right else "wrong", grader="expression", fingerprint="f",
                    token_ids=list(text.encode()), logprobs=[-nats] * len(text), finish_reason="stop", **line,
                )
                for index, (text, right) in enumerate(answers)
            ]
            for i, answers in enumerate(problems)
        }  # fmt: skip
        numbers = score(samples) if scored else UNSCORED
        tasks[name] = TaskResult(**dict(numbers), prompt="{question}", problem_ids=list(samples))
        every += [sample for lines in samples.values() for sample in lines]
    n = len(next(iter(benchmarks.values()))[0])
    protocol = EvalProtocol(n=n, temperature=temperature, max_new_tokens=64)
    write_record(folder / "evaluation.json", Evaluation(fingerprint="f", protocol=protocol, benchmarks=tasks))
    (folder / "graded.jsonl").write_text("".join(json.dumps(sample.to_dict()) + "\n" for sample in every))
    return folder


def run_eval(
    model: object, out: Path, *tasks: object, engine: Engine | None = None, **settings: Any
) -> Evaluation:
    """Evaluate a model on tasks or files of problems."""
    names = [str(task) for task in tasks]
    return evaluate(EvalConfig(model=str(model), output_dir=out, tasks=names, **settings), engine=engine)


def write(path: Path, *records: dict[str, Any]) -> Path:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def calculations(*parts: tuple[str, int, int], seed: int = 0) -> list[list[tuple[str, bool]]]:
    """One answer each to as many problems, in random order; a part is (text, answers, of them right)."""
    answers = [(text, i < right) for text, count, right in parts for i in range(count)]
    return [[answers[i]] for i in np.random.default_rng(seed).permutation(len(answers))]


# What small trials with SmolLM2-135M showed: DFT keeps to one operation, which SVAMP asks for and GSM8K does not.
TRIAL = {
    "sft": {
        "svamp": calculations((ONE, 28, 7), (TWO, 372, 21)),
        "gsm8k": calculations((ONE, 40, 5), (TWO, 210, 36)),
    },
    "dft": {
        "svamp": calculations((ONE, 350, 91), (TWO, 50, 3), seed=1),
        "gsm8k": calculations((ONE, 196, 5), (TWO, 54, 6), seed=1),
    },
}
