"""Grading speed: the pool on all cores against math-verify in one process, on the same answers.

    python benchmarks/grading.py [--data FOLDER] [--answers 10000] [--repeats 3]

The answers are the gold answers of Math500, OlympiadBench and GSM8K in three forms: as printed, spelled
otherwise, and wrong by one digit. Both sides start warm and get the same texts. In each round the pool grades
all of them, math-verify the next part, so that over all rounds it has graded all of them too. The target is a
ratio of 0.9 per core.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

from common import entry, save
from math_verify import parse, verify

from rectune.grading import Grader

SPELLINGS = [(r"\frac", r"\dfrac"), (r"\left", ""), (r"\right", ""), (r"\sqrt", r" \sqrt"), ("+", " + ")]


def read_golds(data: Path) -> list[str]:
    """Gold answers without the dollar signs that some data sets put around them."""
    golds = []
    for name, field in [("math500", "answer"), ("olympiadbench", "final_answer"), ("gsm8k", "answer")]:
        for line in (data / name / "test.jsonl").read_text().splitlines():
            answer = json.loads(line)[field]
            answer = answer[0] if isinstance(answer, list) else answer
            golds.append(answer.rpartition("#### ")[2].strip("$"))
    return golds


def make_pairs(golds: list[str], count: int) -> list[tuple[str, str]]:
    """`count` pairs of a gold answer and the words of a model."""
    pairs = []
    for i in range(count):
        gold, form = golds[i % len(golds)], (i // len(golds) + i) % 3
        answer = gold
        if form == 1:
            for old, new in SPELLINGS:
                answer = answer.replace(old, new)
        if form == 2:
            answer = re.sub(r"\d(?!.*\d)", lambda match: str((int(match[0]) + 1) % 10), answer)
        pairs.append((gold, rf"Adding everything up, we find that the result is $\boxed{{{answer}}}$."))
    return pairs


def by_math_verify(pairs: list[tuple[str, str]]) -> list[bool]:
    return [verify(parse(f"${gold}$"), parse(text)) for gold, text in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"no data sets in {options.data}; give --data")
    logging.disable(logging.WARNING)
    pairs = make_pairs(read_golds(options.data), options.answers)
    items = [(gold, text, "math", None) for gold, text in pairs]
    cores = len(os.sched_getaffinity(0))
    alone, pooled = [], []
    theirs = [False] * len(pairs)
    with Grader() as grader:
        grader.grade(items[:200])
        by_math_verify(pairs[:200])
        for part in (slice(i, None, options.repeats) for i in range(options.repeats)):
            started = time.perf_counter()
            theirs[part] = by_math_verify(pairs[part])
            alone.append(len(pairs[part]) / (time.perf_counter() - started))
            started = time.perf_counter()
            ours = grader.grade(items)
            pooled.append(len(pairs) / (time.perf_counter() - started))
    for name, speeds in [("math-verify, one process", alone), (f"rectune, {cores} cores", pooled)]:
        print(f"{name}: {statistics.median(speeds):.0f} answers/s ({min(speeds):.0f} to {max(speeds):.0f})")
    one, all_cores = statistics.median(alone), statistics.median(pooled)
    line = entry(
        "grading, answers/s", all_cores, limit=one * cores, other=one, ratio=all_cores / one / cores,
        to="limit", target=0.9,
    )  # fmt: skip
    print(f"ratio per core: {all_cores / one / cores:.2f}")
    save("grading", {"math-verify, one process": alone, "rectune": pooled, "cores": cores}, [line])
    print("verdicts:", dict(Counter(one.verdict for one in ours)))
    same = sum((one.verdict == "correct") == right for one, right in zip(ours, theirs, strict=True))
    print(f"agreement with math-verify: {same / len(pairs):.1%}")
    differing = [(*pair, one) for pair, one, right in zip(pairs, ours, theirs, strict=True)
                 if (one.verdict == "correct") != right]  # fmt: skip
    for gold, _, graded in list(dict.fromkeys(differing))[:20]:
        print(f"  gold {gold!r}, answer {graded.extracted!r}: {graded.verdict} here")


if __name__ == "__main__":
    main()
