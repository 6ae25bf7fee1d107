"""Answers side by side: the same problems, every arm's first answer, chosen by a rule and not by taste."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

from rectune.reporting.grouping import ReportArm
from rectune.reporting.load_runs import EvaluationFolder, NoteList, read_lines
from rectune.reporting.page_model import AnswerTable, ShownAnswer, ShownProblem
from rectune.runtime.io import JsonObject

PROBLEMS, ARMS = 12, 6
"""Most problems and arms that are shown."""
UNSOLVED = 2
"""Most problems of a benchmark that are shown though no arm solves them."""
LONGEST, LONGEST_PROMPT = 4000, 1500
"""Characters of an answer and of a problem; what is beyond is cut, and its length said."""


@dataclass
class FirstAnswer:
    """The answer with index 0 to a problem, as graded.jsonl has it."""

    prompt: str
    gold: str
    text: str
    extracted: str | None
    verdict: str
    finished: bool


def answer_tables(arms: Sequence[ReportArm], notes: NoteList) -> list[AnswerTable]:
    """One table for each benchmark.

    First come problems on which the arms disagree, taking turns over who solves them, then those that all solve, then
    those that none does; within each in the order of the benchmark.
    """
    first = {arm.label: folders for arm in arms if (folders := _first_seed(arm))}
    if len(first) > ARMS:
        notes.add("answers", f"of {len(first)} arms the first {ARMS} are shown side by side")
        first = dict(islice(first.items(), ARMS))
    answers = {label: _first_answers(folders, notes) for label, folders in first.items()}
    names = list(dict.fromkeys(chain.from_iterable(answers.values())))
    most = max(1, PROBLEMS // max(1, len(names)))
    tables = (
        _table(name, {label: of_arm[name] for label, of_arm in answers.items() if name in of_arm}, most)
        for name in names[:PROBLEMS]
    )
    return [table for table in tables if table.shown]


def _first_seed(arm: ReportArm) -> list[EvaluationFolder]:
    """The evaluations of an arm's first seed, one for each set of benchmarks."""
    return [by_seed[min(by_seed)] for by_seed in arm.evaluations.get("main", {}).values() if by_seed]


def _first_answers(folders: Iterable[EvaluationFolder], notes: NoteList) -> dict[str, dict[str, FirstAnswer]]:
    """Benchmark to problem to answer."""
    found: dict[str, dict[str, FirstAnswer]] = {}
    for folder in folders:
        answers: dict[str, FirstAnswer] = {}
        for line in read_lines(folder.path / "graded.jsonl", notes):
            if line.get("sample_index") == 0 and isinstance(problem := line.get("problem_id"), str):
                answers.setdefault(problem, _answer(line))
        for name, task in folder.result.benchmarks.items():
            found[name] = {problem: answers[problem] for problem in task.problem_ids if problem in answers}
    return found


def _answer(line: JsonObject) -> FirstAnswer:
    gold, extracted = line.get("answer"), line.get("extracted")
    return FirstAnswer(
        prompt=cut(_question(line), LONGEST_PROMPT),
        gold=cut(" or ".join(map(str, gold)) if isinstance(gold, list) else str(gold), 300),
        text=cut(str(line.get("text", "")), LONGEST),
        extracted=None if extracted is None else cut(str(extracted), 200),
        verdict=str(line.get("verdict", "unknown"))[:20],
        finished=line.get("finish_reason") != "length",
    )


def _question(line: JsonObject) -> str:
    """What the user asked, without the chat template around it where the turns are known."""
    turns = line.get("turns")
    users = (
        [t for t in turns if isinstance(t, dict) and t.get("role") == "user"]
        if isinstance(turns, list)
        else []
    )
    content = users[-1].get("content") if users else None
    return content if isinstance(content, str) else str(line.get("prompt", ""))


def cut(text: str, longest: int) -> str:
    """The first `longest` characters, and how many more there are."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]} … ({len(text) - longest:,} more characters)"


def _table(name: str, answers: Mapping[str, Mapping[str, FirstAnswer]], most: int) -> AnswerTable:
    labels = list(answers)
    common = [
        problem for problem in answers[labels[0]] if all(problem in of_arm for of_arm in answers.values())
    ]
    patterns: dict[tuple[bool, ...], list[str]] = {}  # who solves it -> problems
    for problem in common:
        solved = tuple(answers[label][problem].verdict == "correct" for label in labels)
        patterns.setdefault(solved, []).append(problem)
    everyone, nobody = patterns.pop((True,) * len(labels), []), patterns.pop((False,) * len(labels), [])
    mixed = [patterns[solved] for solved in sorted(patterns)]
    in_turns = (problem for turn in zip_longest(*mixed) for problem in turn if problem is not None)
    chosen = list(islice(in_turns, most))
    chosen += everyone[: most - len(chosen)]
    chosen += nobody[: min(UNSOLVED, most - len(chosen))]
    shown = [_shown(problem, {label: answers[label][problem] for label in labels}) for problem in chosen]
    disagree = sum(map(len, mixed))
    return AnswerTable(name, labels, len(common), disagree, len(everyone), len(nobody), shown)


def _shown(problem: str, answers: Mapping[str, FirstAnswer]) -> ShownProblem:
    first = next(iter(answers.values()))
    shown = [ShownAnswer(label, a.text, a.extracted, a.verdict, a.finished) for label, a in answers.items()]
    return ShownProblem(cut(problem, 100), first.prompt, first.gold, shown)
