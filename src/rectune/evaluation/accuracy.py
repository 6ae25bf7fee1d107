"""From graded samples to the numbers of one task: accuracy with intervals, votes, and what the answers look like.

Reads the two files of an evaluation folder, `graded.jsonl` and `evaluation.json`; the intervals are computed in
`statistics.py`.

**Votes** (maj@k): two answers vote together if the grader finds them equal, wrong ones too. Answers with the same
spelling or the same number are one group at once; the grader's own processes, which bound the time of each comparison,
compare the rest. An answer is compared with the first answer of the `MAX_COMPARED` most frequent groups of its problem
at most, so that the work grows with the number of samples and not with its square.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from rectune.errors import UserError
from rectune.evaluation.statistics import Matrix, maj_at_k_by_problem, mean_interval, pass_at_k_by_problem
from rectune.grading.exact import evaluate_expression, plain_words
from rectune.grading.files import graded_lines
from rectune.grading.normalization import normalize_answer, read_number
from rectune.grading.pool import Grader
from rectune.records import MAX_EXTRACTED, VERDICTS, Accuracy, Evaluation, Graded, TaskScore, read_record
from rectune.sampling.types import repetition

_OPERATION = re.compile(r"(?<=[\d)])\s*[-+*/]")
REPEATED = 0.5
"""Share of a sample's 4-grams that it already had, from which on the sample counts as repeating itself."""
MAX_COMPARED = 16
"""Groups of one problem that an answer is compared with."""


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation.json of a folder that `evaluate` wrote.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    path = Path(folder) / "evaluation.json"
    if not path.is_file():
        raise UserError("no evaluation.json in this folder", where=folder, hint="run rectune eval first")
    return read_record(path, Evaluation)


def read_graded(path: Path, problem_ids: Sequence[str], n: int) -> dict[str, list[Graded]]:
    """The first n graded samples of each problem, by problem id, in the order of the sample index.

    Raises:
        UserError: No such file, a line without a verdict, samples of two models, or a problem with fewer than n.
    """
    samples: dict[str, dict[int, Graded]] = {problem_id: {} for problem_id in problem_ids}
    models: dict[str | None, str] = {}
    for where, line in graded_lines(path):
        models.setdefault(line.fingerprint, where)
        if len(models) > 1:
            raise UserError(
                f"the folder has samples of two models (see {next(iter(models.values()))})",
                where=where,
                hint="evaluate each model in its own folder",
            )
        if line.problem_id in samples and 0 <= line.sample_index < n:
            samples[line.problem_id][line.sample_index] = line
    for problem_id, by_index in samples.items():
        if len(by_index) < n:
            raise UserError(
                f"{n - len(by_index)} of {n} samples of problem {problem_id} are missing",
                where=path,
                hint="run the evaluation again: it resumes",
            )
    return {problem_id: [by_index[i] for i in range(n)] for problem_id, by_index in samples.items()}


def read_answers(folder: Path) -> tuple[Evaluation, dict[str, dict[str, list[Graded]]]]:
    """The evaluation of a folder, and its graded samples by task and problem id, in the evaluation's order.

    Raises:
        UserError: As `read_evaluation` and `read_graded`.
    """
    evaluation = read_evaluation(folder)
    ids = {task: result.problem_ids for task, result in evaluation.benchmarks.items()}
    every = [problem_id for of_task in ids.values() for problem_id in of_task]
    lines = read_graded(Path(folder) / "graded.jsonl", every, evaluation.protocol.n)
    return evaluation, {task: {i: lines[i] for i in of_task} for task, of_task in ids.items()}


def verdict_matrix(folder: Path, task: str) -> tuple[list[str], np.ndarray]:
    """Problem ids and which samples are correct, int8 of shape (P, N), of one task of an evaluation.

    Raises:
        UserError: No evaluation there, or not of this task.
    """
    evaluation = read_evaluation(folder)
    if task not in evaluation.benchmarks:
        raise UserError(f"the folder has no evaluation on {task}", where=folder)
    ids = evaluation.benchmarks[task].problem_ids
    return ids, correct_matrix(read_graded(Path(folder) / "graded.jsonl", ids, evaluation.protocol.n))


def correct_matrix(samples: Mapping[str, Sequence[Graded]]) -> np.ndarray:
    """1 where the verdict is correct, int8 of shape (P, N); float64 where answers have scores between 0 and 1."""
    values = np.array([[line.value for line in lines] for lines in samples.values()])
    return values if np.any(values % 1) else values.astype(np.int8)


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... below n, and n: the k of pass@k and maj@k."""
    return sorted({1 << i for i in range(n.bit_length()) if 1 << i <= n} | {n})


def score(samples: Mapping[str, Sequence[Graded]], grader: Grader | None = None) -> TaskScore:
    """The numbers of one task from n samples of each problem, with 95 % intervals over problems.

    A time-out or error is counted apart from wrong. Programs do not vote, so they have no `maj_at`; samples of other
    tools may have no tokens, so no lengths; only calculations have `operations`. `grader` as in `group_votes`.
    """
    correct, every = correct_matrix(samples), [line for lines in samples.values() for line in lines]
    ks, graders = powers_of_two(correct.shape[1]), {line.grader for line in every}
    counts = Counter(line.verdict for line in every)
    scores = TaskScore(
        problems=len(samples),
        samples=len(every),
        avg=_accuracy(correct),
        pass_at={str(k): _accuracy(pass_at_k_by_problem(correct, k)[:, None]) for k in ks},
        verdicts={verdict: counts[verdict] for verdict in VERDICTS},
    )
    if "code" not in graders:
        answers = group_votes(samples, grader)
        scores.maj_at = {str(k): _accuracy(maj_at_k_by_problem(correct, answers, k)[:, None]) for k in ks}
    tokens = [line.token_ids for line in every if line.token_ids is not None]
    if len(tokens) == len(every) and all(line.finish_reason is not None for line in every):
        scores.stopped = float(np.mean([line.finish_reason == "stop" for line in every]))
        scores.tokens = float(np.mean([len(ids) for ids in tokens]))
        scores.repeating = float(np.mean([repetition(ids) >= REPEATED for ids in tokens]))
    if graders == {"expression"}:
        by_count = Counter(
            "none" if line.verdict == "unparsed" else str(count_operations(line.extracted or ""))
            for line in every
        )
        scores.operations = dict(sorted(by_count.items()))
    return scores


def _accuracy(values_PxN: Matrix) -> Accuracy:
    return Accuracy(**mean_interval(values_PxN)._asdict())


def count_operations(expression: str) -> int:
    """How many of + - * / a calculation has; signs do not count."""
    return len(_OPERATION.findall(expression))


def group_votes(samples: Mapping[str, Sequence[Graded]], grader: Grader | None = None) -> list[list[object]]:
    """What each sample of each problem votes for: equal for equal answers, None where it has no answer.

    Answers are compared in the processes of `grader`; in new ones if it is None.
    """
    spellings = {name: [_spelling(line) for line in lines] for name, lines in samples.items()}
    groups = {
        name: _AnswerGroups(lines, spellings[name])
        for name, lines in samples.items()
        if lines[0].grader == "math"
    }
    with nullcontext(grader) if grader else Grader() as processes:
        _compare_answers([problem for problem in groups.values() if problem.pending], processes)
    return [groups[name].of(keys) if name in groups else keys for name, keys in spellings.items()]


def _spelling(line: Graded) -> object:
    """A key that only equal answers share: a number's value, a calculation's, or the normalized text."""
    if line.verdict == "unparsed" or not line.extracted:
        return None
    if line.grader == "expression":
        value = evaluate_expression(line.extracted)
        return line.extracted if value is None else value
    if line.grader == "exact":
        return plain_words(line.extracted)
    if line.verdict == "correct":
        return "correct"
    text = normalize_answer(line.extracted)
    number = None if text.endswith("%") else read_number(text)
    return text.replace(" ", "") if number is None else number.value


class _AnswerGroups:
    """The wrong answers to one problem, and the groups that those compared so far belong to."""

    def __init__(self, lines: Sequence[Graded], keys: Sequence[object]) -> None:
        wrong = [(key, line) for key, line in zip(keys, lines, strict=True) if key not in (None, "correct")]
        self.texts = {key: str(line.extracted) for key, line in reversed(wrong)}
        self.pending = [key for key, _ in Counter(key for key, _ in wrong).most_common()]
        self.group: dict[object, object] = {}
        self.first_answers: list[object] = []
        extra = lines[0].extra or {}
        kept = ("tolerance", "error", "multiple", "is_multiple_answer")
        self.extra = {name: extra[name] for name in kept if name in extra} | {"extract": ["whole"]}

    def candidates(self) -> list[object]:
        """First answers of the groups that the next answer may belong to."""
        return [key for key in self.first_answers[:MAX_COMPARED] if self._may_equal(key, self.pending[0])]

    def _may_equal(self, key: object, other: object) -> bool:
        texts = self.texts[key], self.texts[other]
        if any(len(text) >= MAX_EXTRACTED for text in texts):  # cut off
            return False
        numbers = [read_number(normalize_answer(text)) for text in texts]
        return not all(number and not number.step for number in numbers) or any("%" in text for text in texts)

    def join(self, first_answer: object | None) -> None:
        """Put the next answer into a group, or into one of its own."""
        key = self.pending.pop(0)
        self.group[key] = key if first_answer is None else first_answer
        if first_answer is None:
            self.first_answers.append(key)

    def of(self, keys: Sequence[object]) -> list[object]:
        return [self.group.get(key, key) for key in keys]


def _compare_answers(problems: list[_AnswerGroups], grader: Grader) -> None:
    """Group the answers of all problems, one of each at a time, so that comparisons of many run at once."""
    while problems:
        candidates = [problem.candidates() for problem in problems]
        items = [
            (problem.texts[key], problem.texts[problem.pending[0]], "math", problem.extra)
            for problem, keys in zip(problems, candidates, strict=True)
            for key in keys
        ]
        grades = iter(grader.grade(items) if items else [])
        for problem, keys in zip(problems, candidates, strict=True):
            equal = [key for key in keys if next(grades).verdict == "correct"]
            problem.join(equal[0] if equal else None)
        problems = [problem for problem in problems if problem.pending]
