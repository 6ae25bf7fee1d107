"""Training data from a model's own graded answers: rows for RFT/RAFT and offline DFT, or pairs for DPO.

Reads the lines of `rectune grade`; `sft` keeps correct answers, `dpo` puts a correct and a wrong one side by
side. The paper samples n = 4 answers per problem at T = 1 and keeps every correct one: hence at most 4 rows
of a problem by default. Rows hold the turns that were sampled from, so that training with the same template
reads the same prompt tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rectune.data.jsonl import read_jsonl
from rectune.errors import UserError, unknown_name
from rectune.grading.verdicts import VERDICTS
from rectune.runtime.locks import check_output

PURPOSES = ("sft", "dpo")
NEEDED = ("problem_id", "text", "verdict")
UNJUDGED = ("timeout", "error")
Line = Mapping[str, Any]


@dataclass
class _Answers:
    """The distinct answers to one problem, each with its text, in the order of the file."""

    prompt: Any
    correct: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


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
) -> dict[str, Any]:
    """Write rows or pairs to `out`, and the counts beside it, to `OUT.counts.json`; returns the counts.

    Answers to a problem that differ only in spacing count once. A row is `prompt` (the turns; the text as the
    model read it where the samples do not have them, for `rows.template = "none"`) and `completion`; a pair
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
    _check(graded, out, purpose, per_problem)
    answers, counts, temperature = _read(graded, unjudged=unjudged, unfinished=unfinished)
    chosen = {}
    for problem_id, one in answers.items():
        rng = random.Random(f"{seed} {problem_id}")  # of its own, so that other problems change nothing
        found = _rows(one) if purpose == "sft" else _pairs(one, rng)
        if per_problem is not None and len(found) > per_problem:
            found = [found[i] for i in sorted(rng.sample(range(len(found)), per_problem))]
        if found:
            chosen[problem_id] = [{"problem_id": problem_id, **record} for record in found]
    if not chosen:
        lacking = "correct answer" if purpose == "sft" else "problem with both a correct and a wrong answer"
        hint = "sample more, or easier problems"
        if counts["cut_off"]:
            hint = f"{counts['cut_off']} correct ones are cut at the token limit: raise it, or --unfinished"
        raise UserError(f"has no {lacking}", where=graded, hint=hint)
    counts["kept" if purpose == "sft" else "pairs"] = sum(map(len, chosen.values()))
    counts["used_problems"] = len(chosen)
    if balance:
        most = max(map(len, chosen.values()))
        chosen = {id: [some[i % len(some)] for i in range(most)] for id, some in chosen.items()}
    records = [record for some in chosen.values() for record in some]
    counts["written"] = len(records)
    settings: dict[str, Any] = {
        "graded": str(graded),
        "purpose": purpose,
        "per_problem": per_problem,
        "balance": balance,
    }
    settings |= {"temperature": temperature, "samples_per_problem": counts["samples"] / counts["problems"]}
    result: dict[str, Any] = {
        "format": 1,
        **counts,
        "settings": settings | {"unjudged": unjudged, "unfinished": unfinished, "seed": seed},
    }
    _write(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    _write(out.with_name(out.name + ".counts.json"), json.dumps(result, indent=2) + "\n")
    return result


def _check(graded: Path, out: Path, purpose: str, per_problem: int | None) -> None:
    if purpose not in PURPOSES:
        raise unknown_name("purpose", purpose, PURPOSES, where="--for")
    if per_problem is not None and per_problem < 1:
        raise UserError(f"{per_problem} is out of range", where="--per-problem", hint="must be at least 1")
    check_output(out)
    if graded.resolve() == out.resolve():
        raise UserError("would be written over", where=graded, hint="give another --out")


def _read(path: Path, *, unjudged: bool, unfinished: bool) -> tuple[dict[str, _Answers], dict[str, int], Any]:
    """The answers by problem, how many of what there are, and the temperature of the first."""
    answers: dict[str, _Answers] = {}
    counts = dict.fromkeys(("samples", *VERDICTS, "cut_off", "duplicates"), 0)
    model = temperature = None
    for number, line in read_jsonl(path):
        where = f"{path}:{number}"
        _check_line(line, where)
        if not counts["samples"]:
            model, temperature = line.get("fingerprint"), line.get("temperature")
        if line.get("fingerprint") != model:
            raise UserError("is a sample of a second model", where=where, hint="select from each model apart")
        one = answers.setdefault(line["problem_id"], _Answers(_prompt(line, where)))
        counts["samples"] += 1
        counts[line["verdict"]] += 1
        right = line["verdict"] == "correct"
        if right and line.get("finish_reason") == "length" and not unfinished:
            counts["cut_off"] += 1
        elif line["verdict"] not in UNJUDGED or unjudged:
            spelled = " ".join(line["text"].split())
            same = one.correct if right else one.wrong
            counts["duplicates"] += spelled in same
            if spelled:
                same.setdefault(spelled, line["text"])
    if not answers:
        raise UserError("holds no samples", where=path)
    counts["problems"] = len(answers)
    counts["without_correct"] = sum(not one.correct for one in answers.values())
    counts["without_wrong"] = sum(not one.wrong for one in answers.values())
    return answers, counts, temperature


def _check_line(line: Line, where: str) -> None:
    if missing := [name for name in NEEDED if not isinstance(line.get(name), str)]:
        raise UserError(
            f"is not a graded sample ({', '.join(missing)} missing)",
            where=where,
            hint="run rectune grade first",
        )
    if line["verdict"] not in VERDICTS:
        raise unknown_name("verdict", line["verdict"], VERDICTS, where=where)


def _prompt(line: Line, where: str) -> Any:
    """The turns as messages, or the prompt's text where the sample has no turns."""
    if turns := line.get("turns"):
        try:
            return [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in turns]
        except (KeyError, TypeError):
            raise UserError("field 'turns' is no list of messages", where=where) from None
    if not isinstance(line.get("prompt"), str):
        raise UserError("has no prompt to train with", where=where)
    return line["prompt"]


def _rows(one: _Answers) -> list[dict[str, Any]]:
    return [{"prompt": one.prompt, "completion": text} for text in one.correct.values()]


def _pairs(one: _Answers, rng: random.Random) -> list[dict[str, Any]]:
    """Correct answers with as many wrong ones, matched at random."""
    better, worse = list(one.correct.values()), list(one.wrong.values())
    rng.shuffle(better)
    rng.shuffle(worse)
    return [
        {"prompt": one.prompt, "chosen": chosen, "rejected": rejected}
        for chosen, rejected in zip(better, worse, strict=False)
    ]


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
