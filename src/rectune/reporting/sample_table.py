"""Answers side by side: the same problems, every arm's first answer, chosen by a rule and not by taste.

Verdicts are those of `graded.jsonl`; which arms there are is told in `grouping.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from rectune.reporting.grouping import Arm
from rectune.reporting.load_runs import Evaluation, Notes, Record, read_lines

PROBLEMS, ARMS = 12, 6
"""Most problems and arms that are shown."""
UNSOLVED = 2
"""Most problems of a benchmark that are shown though no arm has them right."""
LONGEST, LONGEST_PROMPT = 4000, 1500
"""Characters of an answer and of a problem; what is beyond is cut, and its length said."""


def side_by_side(arms: Sequence[Arm], notes: Notes) -> list[dict[str, Any]]:
    """By benchmark: `problems` in all shown arms, `disagree`, `all`, `none` (how many are right where), and `shown`.

    First come problems on which the arms disagree, taking turns over who is right, then those that all have right, then
    those that none has; within each in the order of the benchmark.
    """
    first = {arm.label: e for arm in arms if (e := _first_seed(arm))}
    if len(first) > ARMS:
        notes.add("answers", f"of {len(first)} arms the first {ARMS} are shown side by side")
        first = dict(list(first.items())[:ARMS])
    if not first:
        return []
    read = {label: _first_answers(evaluations, notes) for label, evaluations in first.items()}
    names = list(dict.fromkeys(name for held in read.values() for name in held))
    share = max(1, PROBLEMS // max(1, len(names)))
    tables = (_benchmark(name, {label: held[name] for label, held in read.items() if name in held}, share)
              for name in names[:PROBLEMS])  # fmt: skip
    return [table for table in tables if table["shown"]]


def _first_seed(arm: Arm) -> list[Evaluation]:
    """The evaluations of an arm's first seed, one for each set of benchmarks."""
    return [by_seed[min(by_seed)] for by_seed in arm.evaluations.get("main", {}).values() if by_seed]


def _first_answers(evaluations: Sequence[Evaluation], notes: Notes) -> dict[str, dict[str, Record]]:
    """Benchmark to problem to the answer with index 0."""
    found: dict[str, dict[str, Record]] = {}
    for evaluation in evaluations:
        of = {i: name for name, one in evaluation.result["benchmarks"].items() for i in one["problem_ids"]}
        for name in evaluation.result["benchmarks"]:
            found.setdefault(name, {})
        for line in read_lines(evaluation.path / "graded.jsonl", notes):
            problem = line.get("problem_id")
            if line.get("sample_index") == 0 and isinstance(problem, str) and problem in of:
                found[of[problem]].setdefault(problem, _answer(line))
        order = {i: place for place, i in enumerate(of)}
        for name in evaluation.result["benchmarks"]:
            found[name] = dict(sorted(found[name].items(), key=lambda one: order[one[0]]))
    return found


def _answer(line: Record) -> Record:
    gold = line.get("answer")
    return {
        "prompt": cut(_question(line), LONGEST_PROMPT),
        "gold": cut(" or ".join(map(str, gold)) if isinstance(gold, list) else str(gold), 300),
        "text": cut(str(line.get("text", "")), LONGEST),
        "extracted": None if line.get("extracted") is None else cut(str(line["extracted"]), 200),
        "verdict": str(line.get("verdict", "unknown"))[:20],
        "finished": line.get("finish_reason") != "length",
    }


def _question(line: Record) -> str:
    """What the user asked, without the chat template around it where the turns are known."""
    turns = line.get("turns")
    if isinstance(turns, list):
        said = [t.get("content") for t in turns if isinstance(t, dict) and t.get("role") == "user"]
        if said and isinstance(said[-1], str):
            return said[-1]
    return str(line.get("prompt", ""))


def cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[:longest]} … ({len(text) - longest:,} more characters)"


def _benchmark(name: str, held: Mapping[str, Mapping[str, Record]], most: int) -> dict[str, Any]:
    labels = list(held)
    common = [i for i in held[labels[0]] if all(i in answers for answers in held.values())]
    patterns: dict[tuple[bool, ...], list[str]] = {}
    for problem in common:
        right = tuple(held[label][problem]["verdict"] == "correct" for label in labels)
        patterns.setdefault(right, []).append(problem)
    everyone, nobody = (True,) * len(labels), (False,) * len(labels)
    mixed = [p for p in patterns if p not in (everyone, nobody)] if len(labels) > 1 else []
    chosen = _in_turns([patterns[p] for p in sorted(mixed)], most)
    chosen += patterns.get(everyone, [])[: most - len(chosen)]
    chosen += patterns.get(nobody, [])[: min(UNSOLVED, most - len(chosen))]
    return {
        "benchmark": name,
        "labels": labels,
        "problems": len(common),
        "disagree": sum(len(patterns[p]) for p in mixed),
        "all": len(patterns.get(everyone, [])),
        "none": len(patterns.get(nobody, [])),
        "shown": [_shown(problem, labels, held) for problem in chosen],
    }


def _in_turns(lists: Sequence[Sequence[str]], most: int) -> list[str]:
    """One from each list in turn, until there are `most`."""
    total = min(most, sum(map(len, lists)))
    taken: list[str] = []
    waiting = [iter(one) for one in lists]
    for one in cycle(waiting):
        if len(taken) == total:
            break
        taken += [problem] if (problem := next(one, None)) is not None else []
    return taken


def _shown(problem: str, labels: Sequence[str], held: Mapping[str, Mapping[str, Record]]) -> dict[str, Any]:
    first = held[labels[0]][problem]
    answers = [
        {"label": label, **{k: v for k, v in held[label][problem].items() if k not in ("prompt", "gold")}}
        for label in labels
    ]
    return {
        "problem": cut(problem, 100),
        "prompt": first["prompt"],
        "gold": first["gold"],
        "answers": answers,
    }
