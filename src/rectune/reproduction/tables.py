"""A reproduction, or its plan, as tables for the terminal. What is in them is `runner.py`'s and `plan.py`'s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rectune.reproduction.beside import printable_full, printable_mini

Part = str | list[dict[str, Any]]

DOMAINS = {"in": "in domain", "out": "out of domain"}
BINS = ("<1e-4", "<1e-3", "<0.01", "<0.1", *(f"<{edge / 10:.1f}" for edge in range(2, 10)), "to 1")


def result_parts(result: dict[str, Any]) -> Iterator[Part]:
    """Tables and sentences of a reproduction, in the order in which they are printed."""
    yield f"{result['recipe']}: {result['title']} ({result['unit']})"
    for model in result["models"]:
        yield f"\n{model['model']}" + (
            f", beside the paper's {model['paper_model']}" if model["order"] else ""
        )
        yield from _beside(model, result["against"])
        yield from _curves(model)
        yield from _histograms(model)
        yield "\nWhat each run took: answers and tokens trained on, answers drawn for training, seconds of both"
        yield [_cost(one, model["rates"]) for one in model["cost"]]
        yield "\n".join(["", *model["verdict"]["sentences"]])
    yield from _notes(result)


def _beside(model: dict[str, Any], against: str) -> Iterator[Part]:
    if not model["order"]:
        yield "noise: half of our 95 % interval and the paper's own run-to-run spread, added in squares"
        yield printable_full(model["beside"])
        return
    for where, words in DOMAINS.items():
        yield f"\n{words}: ours with 95 % intervals, beside the paper's average"
        yield printable_mini(model["beside"], where, against)
    yield from sentences(model)


def sentences(model: dict[str, Any]) -> Iterator[str]:
    """At mini scale the orders, there and here, and what can be compared."""
    if not model["order"]:
        return
    for where, words in DOMAINS.items():
        yield f"order {words}: " + " > ".join(model["order"]["ours"][where])
    if model["order"]["paper"]["in"]:
        yield "order in the paper: " + " > ".join(model["order"]["paper"]["in"])
    yield "model, data and task are not the paper's: only directions can be compared"
    yield "within noise: the difference is not shown after Holm's correction over all pairs of arms"


def page_tables(model: dict[str, Any], against: str) -> Iterator[list[dict[str, Any]]]:
    """The tables of the page: figures beside the paper's, what each run took, curves and histograms."""
    if model["order"]:
        rows = [
            {"arm": row["arm"], "domain": words, **row}
            for where, words in DOMAINS.items()
            for row in printable_mini(model["beside"], where, against)
        ]
        yield rows
    else:
        yield printable_full(model["beside"])
    yield [_cost(one, model["rates"]) for one in model["cost"]]
    yield from (part for part in [*_curves(model), *_histograms(model)] if not isinstance(part, str))


def _curves(model: dict[str, Any]) -> Iterator[Part]:
    if model["curves"]:
        yield "\nAccuracy over steps, %"
        shown = ("arm", "seed", "step")
        yield [
            {key: value if key in shown else f"{100 * value:.1f}" for key, value in one.items()}
            for one in model["curves"]
        ]


def _histograms(model: dict[str, Any]) -> Iterator[Part]:
    found = model["histograms"].get("models", {})
    if found:
        yield "\nShare of the training targets by their probability, %"
        yield [
            {"model": label}
            | {
                name: f"{100 * count / one['tokens']:.1f}"
                for name, count in zip(BINS, one["histogram"], strict=True)
            }
            for label, one in found.items()
        ]
        for label, one in found.items():
            words = ", ".join(f"{token.strip() or token!r} {count}" for token, count in one["lowest"][:8])
            yield f"most frequent below 0.01 under {label}: {words or 'none'}"


def _cost(one: dict[str, Any], rates: dict[str, float]) -> dict[str, Any]:
    return {
        "arm": one["arm"],
        "seed": one["seed"],
        "rate": f"{rates[one['arm']]:g}",
        "steps": one["steps"],
        "answers": f"{one['answers_trained']:,}",
        "tokens": f"{one['tokens_trained']:,}",
        "drawn": f"{one['answers_drawn']:,}",
        "seconds": f"{one['seconds']:.0f}",
        "MiB": f"{one['peak_memory_mib']:.0f}",
    }


def _notes(result: dict[str, Any]) -> Iterator[Part]:
    if result["notes"]:
        yield "\nTo know about the paper's figures:"
        yield from (f"- {note}" for note in result["notes"])


def plan_parts(plan: dict[str, Any]) -> Iterator[Part]:
    """Tables and sentences of a plan."""
    yield f"{plan['recipe']}: {plan['title']}, {plan['scale']} scale, seeds {', '.join(map(str, plan['seeds']))}"
    draws = plan["draws"]
    yield (
        f"sampled: {', '.join(plan['benchmarks'])}; {draws['num_samples']} each at T = {draws['temperature']:g}, "
        f"at most {draws['max_new_tokens']} tokens"
    )
    for model in plan["models"]:
        yield f"\n{model['model']}"
        yield [_planned(run) for run in model["runs"]]
        if "data" in model:
            yield "rows and problems: " + ", ".join(
                f"{name} {count:,}" for name, count in model["data"].items()
            )
            yield "minutes: " + ", ".join(f"{name} {value:.1f}" for name, value in model["minutes"].items())
        lines = [run["launch"] for run in model["runs"] if run.get("launch")]
        yield from (["on several GPUs, each run by itself:", *lines] if lines else [])
    if plan["scale"] == "mini":
        rates = ", ".join(f"{rate:g}" for rate in plan["rates_tried"]) or "none"
        yield f"by the speeds of _mini.toml: {_figures(plan['speed'])}; rates tried: {rates}"
    else:
        yield f"\nin all {plan['gpu_hours']:.0f} GPU hours. {plan['formula']}. Assumed: {_figures(plan['assumed'])}"
    yield from _notes(plan)


def _figures(named: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in named.items())


def _planned(run: dict[str, Any]) -> dict[str, Any]:
    row = {
        "arm": run["arm"],
        "method": run["method"],
        "rate": run["rate"] if isinstance(run["rate"], str) else f"{run['rate']:g}",
        "steps": f"{run['steps']:,}",
        "answers": f"{run['answers_trained']:,}",
        "tokens": f"{run['tokens_trained']:,}",
        "drawn": f"{run['answers_drawn']:,}",
        "evaluated": f"{run['answers_evaluated']:,}",
    }
    if "gpu_hours" in run:
        hours = f"{run['gpu_hours_training']:.1f} + {run['gpu_hours_answers']:.1f}"
        return row | {"GPU hours": hours, "GiB": f"{run['memory_gib']['total']:.0f}"}
    return row | {"seconds": f"{run['seconds_training']:.0f} + {run['seconds_answers']:.0f}"}
