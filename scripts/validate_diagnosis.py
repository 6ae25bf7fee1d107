"""Does the diagnosis come true? `make validate`: three or more pairs of data and model along the continuum, SFT and
DFT trained on each with several seeds, the verdict before training next to what happened. Two cores: under 30 minutes.

    python scripts/validate_diagnosis.py --out runs/validation [--seeds 3]

The pairs, SmolLM2-135M underneath all of them:
    own       the model was tuned on one-step word problems before; the rows are more of them, as it would write them,
              but one in four has a wrong calculation (noise that a confident model could ignore)
    gsm8k     the model as it comes, GSM8K calculations: neither likely nor unlikely to it
    facts     the model as it comes, invented facts: which code belongs to which name; nothing to generalise from

Everything is made from a seed; run again, it goes on. The table goes to OUT/validation.md and OUT/validation.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rectune.records import Comparison, Diagnosis

NAMES = (
    "Amy", "Ben", "Carla", "Dan", "Ella", "Finn", "Grace", "Hugo", "Ivy", "Jack", "Kim", "Leo", "Mia", "Noah",
)  # fmt: skip
THINGS = (
    "apples", "books", "coins", "pencils", "stamps", "shells", "cards", "marbles", "flowers", "stickers",
)  # fmt: skip
STORIES = {
    "+": (
        "{a} has {x} {thing}. {b} gives {a} {y} more. How many {thing} does {a} have now?",
        "There are {x} {thing} on a table and {y} {thing} in a box. How many {thing} are there altogether?",
    ),
    "-": (
        "{a} had {x} {thing} and lost {y} of them. How many {thing} are left?",
        "{a} has {x} {thing} and {b} has {y}. How many more {thing} does {a} have than {b}?",
    ),
    "*": (
        "There are {x} boxes with {y} {thing} in each of them. How many {thing} are there in all?",
        "{a} buys {x} {thing} for {y} dollars each. How many dollars does {a} pay?",
    ),
    "/": (
        "{a} shares {x} {thing} equally among {y} friends. How many {thing} does each of them get?",
        "{a} puts {x} {thing} into {y} bags, the same number in each. How many {thing} are in a bag?",
    ),
}
"""One-step word problems by their operation."""


def word_problems(count: int, rng: random.Random, *, noise: float = 0.0) -> Iterator[dict[str, Any]]:
    """Rows with their gold answer; a share `noise` of the demonstrations has another operation than the right one."""
    for number in range(count):
        operation = rng.choice("+-*/")
        x, y = sorted((rng.randint(2, 60), rng.randint(2, 20)), reverse=True)
        if operation == "/":
            x *= y
        story = rng.choice(STORIES[operation])
        a, b = rng.sample(NAMES, 2)
        question = story.format(a=a, b=b, x=x, y=y, thing=rng.choice(THINGS))
        written = rng.choice([o for o in "+-*/" if o != operation]) if rng.random() < noise else operation
        value = {"+": x + y, "-": x - y, "*": x * y, "/": x // y}[operation]
        yield {
            "problem_id": str(number),
            "prompt": f"Question: {question}\nCalculation: ",
            "completion": f"{x} {written} {y}",
            "answer": str(value),
            "grader": "expression",
        }


PHRASES = (
    "Which code belongs to {name}?",
    "What is the code of {name}?",
    "Look up {name} and give its code.",
    "{name} is filed under which code?",
)
"""The last one is asked; the others are trained on."""


def facts(count: int, rng: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows (each fact in three wordings) and problems (in a fourth)."""
    rows, problems = [], []
    for number in range(count):
        name = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3)).title()
        code = "".join(rng.choice("BCDFGHJKLMNPQRSTVWXZ") for _ in range(2)) + str(rng.randint(10, 99))
        for phrase in PHRASES[:-1]:
            rows.append({"prompt": f"Question: {phrase.format(name=name)}\nAnswer: ", "completion": code})
        problems.append(
            {
                "problem_id": str(number),
                "prompt": f"Question: {PHRASES[-1].format(name=name)}\nAnswer: ",
                "answer": code,
                "grader": "exact",
            }
        )
    rng.shuffle(rows)
    return rows, problems


SHARED = {
    "model": "smollm2-135m",
    "learning_rate": 1e-4,
    "batch_size": 8,
    "chat_template": "none",
    "eval_split_size": 0.05,
    "save_steps": 0,
    "drift_rows": 0,
}
"""Settings of every run."""


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def make_pairs(out: Path) -> dict[str, dict[str, Any]]:
    """Data, model and problems of every pair; makes the files."""
    rng, files = random.Random(0), out / "data"
    write(files / "clean.jsonl", list(word_problems(128, rng)))
    noisy = write(files / "own.jsonl", list(word_problems(96, rng, noise=0.25)))
    stories = write(files / "stories.jsonl", list(word_problems(100, rng)))
    fact_rows, fact_problems = facts(32, rng)
    learnt = write(files / "facts.jsonl", fact_rows)
    recall = write(files / "recall.jsonl", fact_problems)
    svamp = "svamp-calculations"
    return {
        "own": {"model": str(out / "tuned/model"), "data": str(noisy), "in": str(stories), "out": svamp,
                "limit": 40},
        "gsm8k": {"data": "gsm8k-calculations", "in": "gsm8k-calculations", "output_dir": svamp,
                  "max_train_samples": 96, "limit": 32},
        "facts": {"data": str(learnt), "in": str(recall), "out": None, "epochs": 3,
                  "limit": None},
    }  # fmt: skip


def tune(out: Path) -> None:
    """The model of "own": SFT on word problems without noise."""
    from rectune.config import load_config
    from rectune.training.trainer import train

    settings = {"data": str(out / "data/clean.jsonl"), "out": out / "tuned", "objective": "sft"}
    train(load_config(None, {**SHARED, **settings}), resume=True)


def judge_pair(name: str, pair: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Diagnose, then train and compare; what was said and what came."""
    from rectune.config import CompareConfig, DiagnoseConfig, load_config
    from rectune.diagnosis.diagnose import diagnose
    from rectune.experiments.compare import compare

    folder = options.out / name
    settings = {key: value for key, value in pair.items() if key not in ("in", "out", "limit")}
    compared = {
        "objectives": ("sft", "dft"), "seeds": options.seeds, "tasks_in": [pair["in"]],
        "tasks_out": [pair["out"]] if pair["out"] else [], "num_samples": 4, "max_new_tokens": 24,
        "limit": pair["limit"], "match_entropy": False,
    }  # fmt: skip
    config = load_config(None, {**SHARED, **settings, **compared, "output_dir": folder}, CompareConfig)
    settings = {
        name: getattr(config, name)
        for name in DiagnoseConfig.model_fields
        if name in CompareConfig.model_fields
    }
    own = {"output_dir": folder / "diagnosis", "rows": 200, "objectives": (), "gradients": False}
    said = diagnose(DiagnoseConfig.model_validate(settings | own))
    came = compare(config)
    return outcome(name, said, came)


def outcome(name: str, said: Diagnosis, came: Comparison) -> dict[str, Any]:
    """One line of the table. A verdict comes true where the interval of dft minus sft lies on its side of 0."""
    assert came.verdict is not None
    domains: dict[str, dict[str, Any]] = {}
    for benchmark, task in came.verdict.benchmarks.items():
        pair = next(pair for pair in task.pairs if {pair.a, pair.b} == {"sft", "dft"})
        sign = 1 if pair.a == "dft" else -1
        low, high = sorted((sign * pair.low, sign * pair.high))
        arms = {
            label: {"mean": arm.mean, "greedy": arm.greedy, "stopped": arm.stopped}
            for label, arm in task.arms.items()
        }
        domains[task.domain] = {
            "benchmark": benchmark, "arms": arms, "difference": sign * pair.difference, "low": low, "high": high,
            "problems": pair.problems, "seeds": pair.seeds,
        }  # fmt: skip
    winners = {
        d: "dft" if one["low"] > 0 else "sft" if one["high"] < 0 else "open" for d, one in domains.items()
    }
    position, verdict = said.verdict.position, said.verdict.label
    if verdict not in ("sft", "dft"):  # the diagnosis called it open
        true = "yes" if len(set(winners.values())) > 1 or set(winners.values()) == {"open"} else "no"
    elif winners["in"] == "open":
        true = "not shown"
    else:
        true = "yes" if winners["in"] == verdict else "no"
    return {
        "pair": name, "mean_p": said.overall.mean_p, "position": position, "verdict": verdict,
        "confidence": said.verdict.confidence, "risks": [risk.name for risk in said.risks],
        "domains": domains, "winners": winners, "came_true": true,
    }  # fmt: skip


def table(lines: list[dict[str, Any]]) -> str:
    """The outcome in Markdown."""
    head = "| pair | mean p | verdict | domain | base | SFT | DFT | DFT - SFT | greedy SFT, DFT | came true |"
    rows = [head, "|---" * 10 + "|"]
    for line in lines:
        said = f"{line['position']}: {line['verdict']} ({line['confidence']})"
        for domain, one in line["domains"].items():
            mean = {label: f"{100 * arm['mean']:.1f}" for label, arm in one["arms"].items()}
            greedy = ", ".join(f"{100 * one['arms'][label]['greedy']:.1f}" for label in ("sft", "dft"))
            gain = f"{100 * one['difference']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
            first = domain == "in"
            cells = (
                line["pair"] if first else "", f"{line['mean_p']:.2f}" if first else "", said if first else "",
                f"{domain}: {one['benchmark']}", mean["base"], mean["sft"], mean["dft"], gain, greedy,
                line["came_true"] if first else "",
            )  # fmt: skip
            rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/validation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", nargs="+", default=["own", "gsm8k", "facts"])
    options = parser.parse_args()
    pairs, lines = make_pairs(options.out), []
    for name in options.pairs:
        if name == "own":
            tune(options.out)
        lines.append(judge_pair(name, pairs[name], options))
        print(table(lines), flush=True)
        (options.out / "validation.json").write_text(json.dumps(lines, indent=2) + "\n")
        (options.out / "validation.md").write_text(table(lines))


if __name__ == "__main__":
    from rectune.cli.app import run

    sys.exit(run(main))
