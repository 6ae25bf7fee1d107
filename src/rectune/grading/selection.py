"""Training data from a model's own graded answers: rows for RFT/RAFT and offline DFT, or pairs for DPO.

`sft` keeps correct answers, `dpo` pairs a correct answer with a wrong one. The paper samples n = 4 answers per problem
at T = 1 and keeps every correct one: hence at most 4 rows of a problem by default. Rows hold the turns that were
sampled from, so that training with the same template reads the same prompt tokens.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rectune.errors import UserError, unknown_name
from rectune.grading.files import graded_lines
from rectune.records import VERDICTS, Graded, SelectionCounts, SelectionSettings, write_record
from rectune.runtime.io import check_output, write_jsonl

PURPOSES = ("sft", "dpo")
UNJUDGED = ("timeout", "error")
Prompt = str | list[dict[str, str]]
"""The turns as messages, or the prompt's text where the sample has no turns."""


@dataclass
class _Answers:
    """The distinct answers to one problem, each with its text, in the order of the file."""

    prompt: Prompt
    correct: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    def rows(self) -> list[dict[str, object]]:
        return [{"prompt": self.prompt, "completion": text} for text in self.correct.values()]

    def pairs(self, rng: random.Random) -> list[dict[str, object]]:
        """Correct answers with as many wrong ones, matched at random."""
        better, worse = list(self.correct.values()), list(self.wrong.values())
        rng.shuffle(better)
        rng.shuffle(worse)
        return [
            {"prompt": self.prompt, "chosen": chosen, "rejected": rejected}
            for chosen, rejected in zip(better, worse, strict=False)
        ]


def select(
    graded: Path,
    out: Path,
    *,
    purpose: Literal["sft", "dpo"],
    per_problem: int | None = 4,
    balance: bool = False,
    unjudged: bool = False,
    unfinished: bool = False,
    seed: int = 0,
) -> SelectionCounts:
    """Write rows or pairs to `out`, and the counts beside it, to `OUT.counts.json`; returns the counts.

    Answers to a problem that differ only in spacing count once. A row is `prompt` (the turns; the text as the
    model read it where the samples do not have them, for `chat_template = "none"`) and `completion`; a pair
    is `prompt`, `chosen` and `rejected`, every answer in at most one pair.

    Args:
        graded: Graded samples of one model.
        per_problem: At most so many rows or pairs of a problem, drawn with the seed; None keeps all.
        balance: Repeat rows or pairs until every problem has as many as the one with most.
        unjudged: Also take answers whose grading timed out or broke as the rejected ones of pairs.
        unfinished: Also take answers that were cut at the token limit as correct ones; training on such a row
            teaches to stop there.

    Raises:
        UserError: A line that is not a graded sample, samples of two models, nothing to keep, or impossible
        settings.
    """
    graded, out = Path(graded), Path(out)
    if purpose not in PURPOSES:
        raise unknown_name("purpose", purpose, PURPOSES, where="--for")
    if per_problem is not None and per_problem < 1:
        raise UserError(f"must be at least 1 (got {per_problem})", where="--per-problem")
    check_output(out)
    if graded.resolve() == out.resolve():
        raise UserError("the input would be overwritten", where=graded, hint="give another --output")
    answers, counts, temperature = _read(graded, unjudged=unjudged, unfinished=unfinished)
    chosen = {}
    for problem_id, distinct in answers.items():
        rng = random.Random(f"{seed} {problem_id}")  # of its own, so that other problems change nothing
        found = distinct.rows() if purpose == "sft" else distinct.pairs(rng)
        if per_problem is not None and len(found) > per_problem:
            found = [found[i] for i in sorted(rng.sample(range(len(found)), per_problem))]
        if found:
            chosen[problem_id] = [{"problem_id": problem_id, **record} for record in found]
    if not chosen:
        lacking = "correct answer" if purpose == "sft" else "problem with both a correct and a wrong answer"
        hint = "sample more, or easier problems"
        if counts["cut_off"]:
            hint = f"{counts['cut_off']} correct ones are cut at the token limit: raise it, or --include-unfinished"
        raise UserError(f"the file has no {lacking}", where=graded, hint=hint)
    selected, used = sum(map(len, chosen.values())), len(chosen)
    if balance:
        most = max(map(len, chosen.values()))
        chosen = {id: [records[i % len(records)] for i in range(most)] for id, records in chosen.items()}
    written = [record for records in chosen.values() for record in records]
    settings = SelectionSettings(
        graded=str(graded), purpose=purpose, per_problem=per_problem, balance=balance,
        temperature=temperature, samples_per_problem=counts["samples"] / counts["problems"],
        unjudged=unjudged, unfinished=unfinished, seed=seed,
    )  # fmt: skip
    result = SelectionCounts.model_validate(
        {
            **counts,
            "kept" if purpose == "sft" else "pairs": selected,
            "used_problems": used,
            "written": len(written),
            "settings": settings,
        }
    )
    write_jsonl(out, written)
    write_record(out.with_name(out.name + ".counts.json"), result)
    return result


def _read(
    path: Path, *, unjudged: bool, unfinished: bool
) -> tuple[dict[str, _Answers], Counter[str], float | None]:
    """The answers by problem, how many of what there are, and the temperature of the first."""
    answers: dict[str, _Answers] = {}
    counts = Counter(dict.fromkeys(("samples", *VERDICTS, "cut_off", "duplicates"), 0))
    first: Graded | None = None
    for where, sample in graded_lines(path):
        first = first or sample
        if sample.fingerprint != first.fingerprint:
            raise UserError(
                "the file has samples of two models", where=where, hint="select from each model separately"
            )
        distinct = answers.setdefault(sample.problem_id, _Answers(_prompt(sample, where)))
        counts["samples"] += 1
        counts[sample.verdict] += 1
        correct = sample.verdict == "correct"
        if correct and sample.finish_reason == "length" and not unfinished:
            counts["cut_off"] += 1
        elif sample.verdict not in UNJUDGED or unjudged:
            spelled = " ".join(sample.text.split())
            same = distinct.correct if correct else distinct.wrong
            counts["duplicates"] += spelled in same
            if spelled:
                same.setdefault(spelled, sample.text)
    if first is None:
        raise UserError("the file has no samples", where=path)
    counts["problems"] = len(answers)
    counts["without_correct"] = sum(not distinct.correct for distinct in answers.values())
    counts["without_wrong"] = sum(not distinct.wrong for distinct in answers.values())
    return answers, counts, first.temperature


def _prompt(sample: Graded, where: str) -> Prompt:
    if sample.turns:
        return [{"role": turn.role, "content": turn.content} for turn in sample.turns]
    if sample.prompt is None:
        raise UserError("the sample has no prompt to train with", where=where)
    return sample.prompt
