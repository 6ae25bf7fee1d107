"""Evaluation folders from constructed answers, written as `evaluate` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ONE, TWO = "2 + 4", "(2 + 4) * 3"


def write_evaluation(
    folder: Path,
    benchmarks: Mapping[str, Sequence[Sequence[tuple[str, bool]]]],
    *,
    temperature: float = 1.0,
    nats: float = 0.5,
    first: int = 0,
    **line: Any,
) -> Path:
    """A folder with the answers (text, whether correct) of each problem of each benchmark.

    Args:
        nats: -log p of every token.
        first: Number of the first problem.
        line: Further fields of every sample.
    """
    folder.mkdir(parents=True)
    lines, numbers = [], {}
    for name, problems in benchmarks.items():
        ids = [f"{name}/{first + i}" for i in range(len(problems))]
        numbers[name] = {"problem_ids": ids, "prompt": "{question}"}
        for problem_id, answers in zip(ids, problems, strict=True):
            for index, (text, right) in enumerate(answers):
                sample = {
                    "problem_id": problem_id, "sample_index": index, "text": text, "extracted": text,
                    "verdict": "correct" if right else "wrong", "grader": "expression", "fingerprint": "f",
                    "token_ids": list(text.encode()), "logprobs": [-nats] * len(text), "finish_reason": "stop",
                }  # fmt: skip
                lines.append(sample | line)
    n = len(next(iter(benchmarks.values()))[0])
    protocol = {"n": n, "temperature": temperature, "top_p": 1.0, "max_new_tokens": 64, "template": "auto"}
    evaluation = {"protocol": protocol | {"system": None}, "benchmarks": numbers, "fingerprint": "f"}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "graded.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


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
