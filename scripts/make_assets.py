"""Make the packaged demo data from the published files: `python scripts/make_assets.py --data DIR`.

DIR holds `gsm8k/train.jsonl`, `gsm8k/test.jsonl` (openai/grade-school-math) and `svamp/SVAMP.json`
(arkilpatel/SVAMP). What is kept and why is told in `src/rectune/assets/README.md`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from rectune.data.readers import read_jsonl
from rectune.grading.exact import evaluate_expression

ASSETS = Path(__file__).parents[1] / "src" / "rectune" / "assets"
PROMPT = "Question: {question}\nCalculation: "
MOST_STEPS, LONGEST_EXPRESSION, LONGEST_QUESTION = 2, 40, 330
SVAMP_PROBLEMS = 400


def fold(answer: str) -> tuple[str, int] | None:
    """The calculator marks of a GSM8K answer as one expression, and the number of its marks.

    Each number that an earlier mark gave is replaced by the expression that gave it:
    `<<48/2=24>> ... <<48+24=72>>` becomes `48 + (48 / 2)`. None where a mark is no plain arithmetic, or
    where nothing is calculated.
    """
    folded: dict[Fraction, str] = {}
    expression, marks = "", re.findall(r"<<([^<>=]*)=[^<>]*>>", answer)
    for mark in marks:
        value = evaluate_expression(mark)
        if value is None:
            return None
        parts = re.findall(r"\d*\.?\d+|\d+\.|[-+*/()]", mark)
        inner = [folded.get(Fraction(part), part) if part[-1].isdigit() else part for part in parts]
        expression = spaced(inner)
        folded[value] = f"({expression})" if len(parts) > 1 else expression
    return (expression, len(marks)) if re.search(r"[\d)] [-+*/] ", expression) else None


def spaced(parts: list[str]) -> str:
    """Parts of an expression with a space on both sides of each two-sided operator."""
    text = ""
    for i, part in enumerate(parts):
        two_sided = part in "+-*/" and i > 0 and parts[i - 1] not in ("+", "-", "*", "/", "(")
        text += f" {part} " if two_sided else part
    return text


def gsm8k(path: Path, split: str) -> Iterator[dict[str, Any]]:
    """The calculation rows of one GSM8K file."""
    for number, record in read_jsonl(path):
        question, answer = str(record["question"]).strip(), str(record["answer"])
        gold = answer.rpartition("####")[2].strip().replace(",", "")
        folded = fold(answer)
        if folded is None or folded[1] > MOST_STEPS:
            continue
        expression = folded[0]
        if len(expression) >= LONGEST_EXPRESSION or len(question) >= LONGEST_QUESTION:
            continue
        if evaluate_expression(expression) != Fraction(gold):
            continue
        yield {
            "problem_id": f"gsm8k-{split}-{number}",
            "prompt": PROMPT.format(question=question),
            "completion": expression,
            "answer": gold,
            "grader": "expression",
        }


def svamp(path: Path) -> Iterator[dict[str, Any]]:
    """The first SVAMP problems in the order of the published file."""
    for record in json.loads(path.read_text(encoding="utf-8"))[:SVAMP_PROBLEMS]:
        question = f"{record['Body'].strip()} {record['Question'].strip()}"
        yield {
            "problem_id": f"svamp-{record['ID']}",
            "prompt": PROMPT.format(question=question),
            "answer": str(Fraction(str(record["Answer"]))),
            "grader": "expression",
        }


def write(name: str, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, in the order given."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (ASSETS / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {len(lines):,} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k/ and svamp/")
    data = parser.parse_args().data
    write("gsm8k_calculations_train.jsonl", gsm8k(data / "gsm8k" / "train.jsonl", "train"))
    write("gsm8k_calculations_test.jsonl", gsm8k(data / "gsm8k" / "test.jsonl", "test"))
    write("svamp_excerpt.jsonl", svamp(data / "svamp" / "SVAMP.json"))


if __name__ == "__main__":
    main()
