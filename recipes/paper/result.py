"""OUT/reproduction.json: the paper's figures beside ours, and both as tables for the terminal and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rectune.analysis.summary_text import DOMAINS
from rectune.config import RLConfig
from rectune.experiments.curve import curve_folder, pauses
from rectune.experiments.evaluator import correct
from rectune.experiments.grid import Arm, Grid
from rectune.experiments.reproduce import Reproduction
from rectune.experiments.runner import COMPARISON
from rectune.objective_spec import parse_objective
from rectune.records import Comparison, PaperTables, write_record
from rectune.runtime.io import load_record, write_json

from .figures import Rows, compare_full, compare_mini, order, paper_table
from .histogram import measure_targets

Part = str | Rows
BINS = ("<1e-4", "<1e-3", "<0.01", "<0.1", *(f"<{edge / 10:.1f}" for edge in range(2, 10)), "to 1")


def write_result(work: Reproduction, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Write reproduction.json, and the paper's tables into each comparison.json for the report."""
    table, out = paper_table(work.path.stem), work.config.output_dir
    models = []
    for grid, comparison in zip(work.grids, comparisons, strict=True):
        model = _model(work, grid, comparison)
        paper = PaperTables(
            tables=_page_tables(model, work.recipe.against), notes=[*_sentences(model), *table.notes]
        )
        write_record(grid.out / COMPARISON, comparison.model_copy(update={"paper": paper}))
        models.append(model)
    result = {
        "format": 1, "rectune": version("rectune"), "recipe": work.path.stem, "title": table.title, "unit": table.unit,
        "against": work.recipe.against, "notes": list(table.notes), "models": models, "page": str(out / "report.html"),
    }  # fmt: skip
    write_json(out / "reproduction.json", result, indent=2)
    return result


def _model(work: Reproduction, grid: Grid, comparison: Comparison) -> dict[str, Any]:
    assert comparison.verdict is not None
    table, against, mini = paper_table(work.path.stem), work.recipe.against, work.config.scale == "mini"
    model = work.recipe.model[-1] if mini else grid.model
    orders: dict[str, dict[str, list[str]]] = {}
    if mini:
        rows = compare_mini(table, model, against, comparison.verdict)
        orders = {key: {domain: order(rows, domain, key) for domain in DOMAINS} for key in ("ours", "paper")}
    else:
        rows = compare_full(table, model, comparison.verdict)
    labels = [arm.label for arm in comparison.arms]
    arms = [arm for arm in grid.arms if arm.label in labels]
    return {
        "model": grid.model,
        "paper_model": model,
        "folder": str(grid.out),
        "beside": rows,
        "order": orders,
        "cost": [_cost(grid, arm, seed) for arm in arms for seed in grid.seeds],
        "rates": {arm.label: arm.learning_rate for arm in comparison.arms},
        "curves": _curves(grid),
        "histograms": measure_targets(grid) if work.recipe.histogram else {},
        "sentences": comparison.verdict.sentences,
    }


def _cost(grid: Grid, arm: Arm, seed: int) -> dict[str, Any]:
    """What a finished run took: answers and tokens trained on, answers sampled, seconds of both."""
    run = grid.run(arm, seed)
    lines = map(json.loads, (run.trained / "metrics.jsonl").read_text().splitlines())
    taken = [line for line in lines if line.get("kind") == "train"]
    rows = len(taken) * answers_per_step(arm)
    sampled: dict[str, Any] = {"answers": 0, "seconds": 0.0}
    if arm.method == "rl":
        sampled["answers"] = rows
    elif arm.method == "rft":
        sampled = load_record(grid.out / "samples" / f"seed-{seed}.json", "answers", "seconds")
    return {
        "arm": arm.label,
        "seed": seed,
        "steps": len(taken),
        "answers_trained": rows,
        "tokens_trained": sum(line.get("tokens", 0) for line in taken),
        "answers_drawn": sampled["answers"],
        "seconds": sum(line["seconds"] for line in taken) + sampled["seconds"],
        "peak_memory_mib": max((line.get("peak_memory_mib", 0) for line in taken), default=0),
    }


def answers_per_step(arm: Arm) -> int:
    """Answers that a step trains on; a batch of pairs has two for each."""
    if isinstance(arm.config, RLConfig):
        return arm.config.problems_per_step * arm.config.num_samples
    return arm.config.batch_size * (2 if "pair" in columns(arm) else 1)


def columns(arm: Arm) -> tuple[str, ...]:
    """What the objective of an arm reads."""
    return () if isinstance(arm.config, RLConfig) else parse_objective(arm.config.objective)[0].columns


def _curves(grid: Grid) -> Rows:
    """Accuracy over steps: a row for each arm, seed and step."""
    rows = []
    for arm, seed in ((arm, seed) for arm in grid.arms for seed in grid.seeds):
        run = grid.run(arm, seed)
        for step in pauses(grid, grid.steps(arm)):
            if not (folder := curve_folder(run, step) / "validation").is_dir():
                continue
            means = {name: float(correct(folder, [Path(name)]).mean()) for name in grid.domains}
            rows.append({"arm": arm.label, "seed": seed, "step": step, **means})
    return rows


def parts(result: dict[str, Any]) -> Iterator[Part]:
    """Tables and sentences of a reproduction, in the order in which they are printed."""
    yield f"{result['recipe']}: {result['title']} ({result['unit']})"
    for model in result["models"]:
        yield f"\n{model['model']}" + (
            f", beside the paper's {model['paper_model']}" if model["order"] else ""
        )
        if model["order"]:
            for domain, words in DOMAINS.items():
                yield f"\n{words}: ours with 95 % intervals, beside the paper's average"
                yield _mini_table(model["beside"], domain, result["against"])
            yield from _sentences(model)
        else:
            yield "noise: half of our 95 % interval and the paper's own run-to-run spread, added in squares"
            yield _full_table(model["beside"])
        for title, table in _measured(model):
            yield from (title, table)
        yield "\nCost of each run: answers and tokens trained on, answers sampled for training, seconds of both"
        yield _cost_table(model)
        yield "\n".join(["", *model["sentences"]])
    yield from notes(result)


def notes(result: dict[str, Any]) -> Iterator[str]:
    """What to know about the paper's figures."""
    if result["notes"]:
        yield "\nNotes on the paper's figures:"
        yield from (f"- {note}" for note in result["notes"])


def _sentences(model: dict[str, Any]) -> Iterator[str]:
    """At mini scale the orders, there and here, and what can be compared."""
    if not model["order"]:
        return
    for domain, words in DOMAINS.items():
        yield f"order {words}: " + " > ".join(model["order"]["ours"][domain])
    if model["order"]["paper"]["in"]:
        yield "order in the paper: " + " > ".join(model["order"]["paper"]["in"])
    yield "model, data and task are not the paper's: only directions can be compared"
    yield "within noise: the difference is not shown after Holm's correction over all pairs of arms"


def _page_tables(model: dict[str, Any], against: str) -> list[Rows]:
    """The tables of the page: figures beside the paper's, the cost of each run, curves and histograms."""
    beside = _full_table(model["beside"])
    if model["order"]:
        beside = [
            {"arm": row["arm"], "domain": words, **row}
            for domain, words in DOMAINS.items()
            for row in _mini_table(model["beside"], domain, against)
        ]
    return [beside, _cost_table(model), *(table for _, table in _measured(model))]


def _measured(model: dict[str, Any]) -> Iterator[tuple[str, Rows]]:
    """Title and table of curves and histograms, where there are some."""
    if model["curves"]:
        fixed = ("arm", "seed", "step")
        rows = [{k: v if k in fixed else f"{100 * v:.1f}" for k, v in row.items()} for row in model["curves"]]
        yield "\nAccuracy over steps, %", rows
    if models := model["histograms"]:
        rows = []
        for label, one in models.items():
            shares = (f"{100 * count / one['tokens']:.1f}" for count in one["histogram"])
            rows.append({"model": label, **dict(zip(BINS, shares, strict=True))})
        yield "\nShare of the training targets by their probability, %", rows
        lowest = {
            label: ", ".join(f"{token!r} {count}" for token, count in one["lowest"])
            for label, one in models.items()
        }
        yield "\nMost frequent targets below p = 0.01", [{"model": k, "tokens": v} for k, v in lowest.items()]


def _cost_table(model: dict[str, Any]) -> Rows:
    return [
        {
            "arm": one["arm"], "seed": one["seed"], "rate": f"{model['rates'][one['arm']]:g}", "steps": one["steps"],
            "answers": f"{one['answers_trained']:,}", "tokens": f"{one['tokens_trained']:,}",
            "drawn": f"{one['answers_drawn']:,}", "seconds": f"{one['seconds']:.0f}",
            "MiB": f"{one['peak_memory_mib']:.0f}",
        }
        for one in model["cost"]
    ]  # fmt: skip


def _full_table(rows: Rows) -> Rows:
    return [
        {
            "arm": row["arm"], "benchmark": row["benchmark"], "paper": _number(row["paper"]),
            "ours": f"{row['ours']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
            "difference": _number(row["difference"], "+.2f"), "noise": _number(row["noise"]),
            "within noise": _yes(row["within_noise"]),
        }
        for row in rows
        if "benchmark" in row
    ]  # fmt: skip


def _mini_table(rows: Rows, domain: str, against: str) -> Rows:
    table = []
    for row in (row for row in rows if row["domain"] == domain):
        gain = _number(row["gain"], "+.1f")
        if row["gain"] is not None:
            gain += f" [{row['gain_low']:+.1f}, {row['gain_high']:+.1f}]"
        table.append(
            {
                "arm": row["arm"], "ours": f"{row['ours']:.1f} [{row['low']:.1f}, {row['high']:.1f}]",
                "greedy": _number(row["greedy"], ".1f"), f"ours - {against}": gain,
                "within noise": _yes(row["within_noise"]), "paper": _number(row["paper"]),
                f"paper - {against}": _number(row["paper_gain"], "+.2f"), "same direction": _yes(row["agrees"]),
            }
        )  # fmt: skip
    return table


def _number(value: float | None, layout: str = ".2f") -> str:
    return "-" if value is None else format(value, layout)


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"
