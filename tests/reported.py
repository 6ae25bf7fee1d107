"""Folders to report on: changing files of runs, and making a comparison folder of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def mark_correct(folder: Path, right: tuple[int, ...]) -> None:
    """Give the answers to these problems the verdict "correct"."""
    lines = read_lines(folder / "graded.jsonl")
    for line in lines:
        if int(line["problem_id"].rpartition("/")[2]) in right:
            line["verdict"] = "correct"
    write_lines(folder / "graded.jsonl", lines)


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit(path: Path, **changes: Any) -> None:
    """Change some keys of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def comparison_record(arms: dict[str, str], seeds: tuple[int, ...] = (0,), **changes: Any) -> dict[str, Any]:
    """A comparison.json of arms (slug to label), without a verdict unless it is given."""
    compared = [
        {"objective": slug, "label": label, "slug": slug, "learning_rate": 3e-3, "dropped": None,
         "runs": {str(seed): f"runs/{slug}/seed-{seed}" for seed in seeds}}
        for slug, label in arms.items()
    ]  # fmt: skip
    return {
        "format": 1, "rectune": "0", "model": "m", "data": "d", "seeds": list(seeds), "arms": compared,
        "base": "runs/base", "benchmarks": {"sums": "out"}, "problems": {}, "validation": {}, "settings": {},
        "verdict": None, **changes,
    }  # fmt: skip


def score(mean: float, half: float = 0.05, seeds: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    """Accuracy of a point, all seeds alike."""
    return {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "by_seed": {str(seed): mean for seed in seeds},
    }


def point(arm: str, label: str, inside: float, outside: float, **changes: Any) -> dict[str, Any]:
    """A point of a comparison."""
    return {"arm": arm, "label": label, "scores": {"in": score(inside), "out": score(outside)}, **changes}


def trade(text: str = "", steps: tuple[int, ...] = ()) -> dict[str, Any]:
    """`points` and `decision` of base, sft, dft and what lies between; `text` stands in every label and sentence."""
    greedy = {"in": score(0.15), "out": score(0.3)}
    start = {"validation": {"in": score(0.1), "out": score(0.2)}}
    points = [
        point("base", "base", 0.1, 0.2, at=0.0, greedy=greedy, **start),
        point("dft", f"the dft{text}", 0.3, 0.8),
        point("sft", f"the sft{text}", 0.6, 0.3, greedy={"in": score(0.7), "out": score(0.35)}),
        point("dft", f"the dft{text} at 0.25", 0.2, 0.4, at=0.25),
        point(
            "dft", f"the dft{text} at 0.5", 0.58, 0.7, at=0.5, greedy={"in": score(0.5), "out": score(0.6)}
        ),
        point("dft+sft", f"mean{text} of dft and sft", 0.56, 0.6),
    ]
    for step in steps:
        during = {"in": score(0.2), "out": score(step / 100)}
        points.append({"arm": "dft", "label": f"the dft{text}", "step": step, "validation": during})
    decision = {
        "margin": 0.05, "against": f"the sft{text}", "outcome": "ship", "ship": f"the dft{text} at 0.5",
        "chosen": f"the dft{text} at 0.5",
        "sentence": f"ship the dft{text} at 0.5: +40.0 (30.0 to 50.0) out of domain, in domain -2.0 (-4.0 to 1.0)",
        "inside": {"difference": -0.02, "low": -0.04, "high": 0.01},
        "outside": {"difference": 0.4, "low": 0.3, "high": 0.5}, "non_inferior": True, "superior": True,
        "validation": {"in": 4, "out": 4}, "base_temperature": 0.0, "power": [
            {"domain": domain, "problems": 6, "seeds": 2, "difference": difference, "chance": 0.8, "shown": 0.05}
            for domain, difference in (("in", 0.0), ("out", 0.05))
        ],
    }  # fmt: skip
    return {"points": points, "decision": decision}


def dropped(reason: str) -> dict[str, Any]:
    """Why an arm left a race."""
    numbers = dict.fromkeys(
        ("difference", "low", "high", "p_value", "p_holm", "accuracy", "leader_accuracy"), 0.5
    )
    return {"step": 2, "reason": reason, "leader": "the dft", **numbers}


def race(reason: str) -> dict[str, Any]:
    return {
        "budget": "2h",
        "rungs": [],
        "ended": "one left",
        "survivors": [],
        "dropped": {"sft": dropped(reason)},
    }


def sweep(label: str) -> dict[str, Any]:
    """A sweep of one learning rate, the best of which lies at the edge."""
    trial = {
        "learning_rate": 0.01,
        "accuracy": {"mean": 0.5, "low": 0.1, "high": 0.9},
        "run": "sweep/dft/lr-0.01",
    }
    arm = {"label": label, "learning_rate": 0.01, "edge": True, "trials": [trial]}
    return {"steps": 2, "seed": 0, "problems": 9, "arms": {"dft": arm}}


def comparison(folder: Path, runs: Path, **changes: Any) -> Path:
    """A comparison folder of the runs."""
    for arm in ("sft", "dft", "base"):
        ignored = shutil.ignore_patterns("model", "checkpoints")
        shutil.copytree(runs / arm, folder / "runs" / arm, ignore=ignored)
    record = comparison_record({"dft": "the dft", "sft": "the sft"}, (0, 1), **changes)
    (folder / "comparison.json").write_text(json.dumps(record))
    return folder
