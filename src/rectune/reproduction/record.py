"""What a reproduction comes to: comparison.json for the page, and what reproduction.json says of one model.

The verdict is `analysis/significance.py`'s, the figures beside the paper's are `beside.py`'s.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rectune.analysis.significance import compare_runs
from rectune.experiments.evaluator import correct
from rectune.reproduction.beside import beside_full, beside_mini, order
from rectune.reproduction.job import BASE, Job, trained_folder
from rectune.reproduction.paper import paper_table
from rectune.reproduction.recipe import Arm
from rectune.reproduction.runs import kinds_of, run_cost
from rectune.reproduction.tables import page_tables, sentences
from rectune.runtime.io import load_record, write_json


def record(job: Job, swept: dict[str, Any] | None) -> dict[str, Any]:
    """Judge all arms, write comparison.json for the report, and return what reproduction.json says of this model."""
    runs = {
        arm.label: {seed: trained_folder(arm, job.folder(arm, seed)) for seed in job.seeds}
        for arm in job.arms
    }
    base = {BASE: {job.seeds[0]: job.out / "runs" / BASE}}

    def folders(kind: str) -> dict[str, dict[int, Path]]:
        return {label: {s: at / kind for s, at in by.items()} for label, by in {**base, **runs}.items()}

    greedy = folders("greedy") if "greedy" in kinds_of(job.asking, 0) else None
    verdict = compare_runs(folders("evaluation"), job.asking.benchmarks, greedy=greedy).to_dict()
    arms = [_arm(job, arm, runs[arm.label]) for arm in job.arms]
    comparison: dict[str, Any] = {
        "format": 1,
        "rectune": version("rectune"),
        "model": job.model,
        "data": str(job.data["demonstrations"]),
        "seeds": list(job.seeds),
        "arms": arms,
        "base": f"runs/{BASE}",
        "benchmarks": job.asking.benchmarks,
        "problems": {name: one["problems"] for name, one in verdict["benchmarks"].items()},
        "validation": {},
        "settings": {"recipe": job.recipe.name, "scale": job.scale, "n": job.asking.draws.num_samples},
        "sweep": swept,
        "race": None,
        "matched_to": None,
        "verdict": verdict,
    }
    table = paper_table(job.recipe.name)
    model = job.recipe.models[-1] if job.task else job.model
    orders: dict[str, dict[str, list[str]]] = {}
    if job.task:
        rows = beside_mini(table, model, job.recipe.against, verdict)
        orders = {key: {at: order(rows, at, key) for at in ("in", "out")} for key in ("ours", "paper")}
    else:
        rows = beside_full(table, model, verdict)
    costs = [{"arm": a.label, "seed": s, **run_cost(job, a, s)} for a in job.arms for s in job.seeds]
    result = {
        "model": job.model,
        "paper_model": model,
        "folder": str(job.out),
        "beside": rows,
        "order": orders,
        "cost": costs,
        "rates": {arm["label"]: arm["learning_rate"] for arm in arms},
        "sweep": swept,
        "verdict": verdict,
        "curves": _curves(job),
        "histograms": _histograms(job),
    }
    comparison["paper"] = {
        "tables": list(page_tables(result, job.recipe.against)),
        "notes": [*sentences(result), *table.notes],
    }
    write_json(job.out / "comparison.json", comparison, indent=2)
    return result


def _arm(job: Job, arm: Arm, runs: dict[int, Path]) -> dict[str, Any]:
    config = json.loads((next(iter(runs.values())) / "config.json").read_text())
    return {
        "objective": arm.settings.get("objective", arm.settings.get("algorithm", "")),
        "label": arm.label,
        "slug": arm.slug,
        "learning_rate": config["learning_rate"],
        "runs": {str(seed): path.relative_to(job.out).as_posix() for seed, path in runs.items()},
        "dropped": None,
    }


def _curves(job: Job) -> list[dict[str, Any]]:
    """Accuracy over steps, a line for each arm, seed and step that was asked."""
    found = []
    for arm, seed in ((arm, seed) for arm in job.arms for seed in job.seeds):
        for folder in sorted(job.folder(arm, seed).glob("validation-step-*")):
            means = {name: float(correct(folder, [Path(name)]).mean()) for name in job.asking.benchmarks}
            found.append({"arm": arm.label, "seed": seed, "step": int(folder.name[-4:]), **means})
    return found


def _histograms(job: Job) -> dict[str, Any]:
    path = job.out / "histograms.json"
    return load_record(path) if path.is_file() else {}
