"""The recipes of the paper's tables and figures, and the settings of each arm at either scale.

    recipes/paper/NAME.toml    one table or figure: models, benchmarks, arms, and what its settings differ in
    recipes/paper/_main.toml   the paper's main set-up, which most of them share
    recipes/paper/_mini.toml   task, model, budget and sweep of the mini scale

What the paper found is in `paper.py`; carrying an arm out is left to `runs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from rectune.config import read_toml
from rectune.errors import UserError, unknown_name

Method = Literal["train", "rft", "rl"]
Scale = Literal["full", "mini"]
SCALES = ("full", "mini")


@dataclass(frozen=True)
class Arm:
    """One method of a table.

    Attributes:
        label: As the paper's row is called.
        method: train (on demonstrations), rft (on the model's own graded answers) or rl.
        settings, mini: What it differs in at full and at mini scale, by dotted name.
    """

    label: str
    method: Method
    settings: Mapping[str, Any]
    mini: Mapping[str, Any]

    @property
    def slug(self) -> str:
        """As its folder is named."""
        return self.label.lower().replace(" ", "-")


@dataclass(frozen=True)
class Recipe:
    """One table or figure of the paper.

    Attributes:
        name: Of the file and of the paper's figures.
        models: Hub ids at full scale; at mini scale there is one model of our own.
        arms: In the paper's order; the base model is always asked besides.
        against: Label of the arm that the others are compared with.
        benchmarks: At full scale.
        full: Tables settings, rates, draws, rft, rl and assumed of the full scale.
        curve: Steps between evaluations by scale, for an accuracy over steps.
        histogram: Whether target probabilities are measured under every model.
        sweep: Whether the mini scale tries learning rates; False where rates are what is looked at.
        no_mini: Why the mini scale cannot do it; "" where it can.
    """

    name: str
    title: str
    models: tuple[str, ...]
    arms: tuple[Arm, ...]
    against: str
    benchmarks: tuple[str, ...]
    full: dict[str, dict[str, Any]]
    curve: Mapping[str, int]
    histogram: bool
    sweep: bool
    no_mini: str


def recipe_folder() -> Path:
    return Path(str(files("rectune").joinpath("recipes", "paper")))


def recipe_names() -> list[str]:
    """Names of the paper's recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.toml") if not path.name.startswith("_"))


def load_recipe(name: str) -> Recipe:
    """A recipe by name, such as table2. Raises `UserError` for an unknown one; lists those there are."""
    if name not in recipe_names():
        raise unknown_name("recipe of the paper", name, recipe_names())
    own, main = read_toml(recipe_folder() / f"{name}.toml"), read_toml(recipe_folder() / "_main.toml")
    tables = ("settings", "rates", "draws", "rft", "rl", "assumed")
    shared_mini = own.get("mini", {})
    arms = tuple(_arm(arm, shared_mini) for arm in own["arms"])
    return Recipe(
        name=name,
        title=own["title"],
        models=tuple(own["model"]),
        arms=arms,
        against=own.get("against", arms[0].label),
        benchmarks=tuple(own.get("benchmarks", main["benchmarks"])),
        full={table: {**main[table], **own.get(table, {})} for table in tables},
        curve=own.get("curve", {}),
        histogram=own.get("histogram", False),
        sweep=own.get("sweep", True),
        no_mini=own.get("no_mini", ""),
    )


def _arm(record: Mapping[str, Any], mini: Mapping[str, Any]) -> Arm:
    settings = dict(record.get("settings", {}))
    settings |= {name: record[name] for name in ("objective", "algorithm") if name in record}
    return Arm(record["label"], record.get("method", "train"), settings, {**mini, **record.get("mini", {})})


def load_mini(budget: float = 1.0) -> dict[str, Any]:
    """The mini scale's settings; with a budget below 1 that share of its rows, problems and steps, to try it out.

    Raises:
        UserError: A budget that is not above 0 and at most 1.
    """
    if not 0 < budget <= 1:
        raise UserError(f"a budget of {budget:g}", where="--budget", hint="above 0 and at most 1")
    mini = read_toml(recipe_folder() / "_mini.toml")
    if budget == 1:
        return mini
    for table, names in (
        ("task", tuple(mini["task"])),
        ("base", ("rows", "steps")),
        ("settings", ("max_steps",)),
    ):
        for name in names:
            if name != "wrong":
                mini[table][name] = max(4, round(budget * mini[table][name]))
    return mini


def full_settings(recipe: Recipe, arm: Arm, model: str) -> dict[str, Any]:
    """An arm's settings at full scale, by dotted name, but for data, problems, out and seed."""
    tables, own = recipe.full, dict(arm.settings)
    if arm.method == "rl":
        return {"model": model, **tables["rl"], **own}
    given = {"model": model, **tables["settings"], **own}
    if "learning_rate" not in own and model in tables["rates"]:
        given["learning_rate"] = tables["rates"][model]
    if arm.method == "train":
        return given
    made = ("data", "data_format", "columns", "split", "max_train_samples")
    return {**{name: value for name, value in given.items() if name not in made}, **tables["rft"]}


def mini_settings(arm: Arm, mini: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's settings at mini scale, by dotted name, but for model, data, problems, out, seed and rate.

    Every arm reads as many answers: those of another batch size take more or fewer steps, DPO's batch counts pairs.
    """
    shared, own = dict(mini["settings"]), dict(arm.mini)
    own.pop("data", None)
    kept = {name: arm.settings[name] for name in ("objective", "algorithm") if name in arm.settings}
    steps, rows, draws = shared["max_steps"], shared["batch_size"], mini["draws"]
    if arm.method == "rl":
        n = arm.settings.get("num_samples", 4)
        return {
            **{
                name: shared[name]
                for name in (
                    "max_steps",
                    "dtype",
                    "tokens_per_micro_batch",
                    "logits_memory_mb",
                    "warmup_ratio",
                )
            },
            **{name: shared[name] for name in ("save_steps", "save_total_limit", "lr_scheduler_type")},
            "num_samples": n,
            "problems_per_step": rows // n,
            "max_new_tokens": draws["max_new_tokens"],
            "chat_template": "none",
            "save_rollout_steps": 0,
            **kept,
            **own,
        }
    if arm.method == "train":
        steps = round(steps * own.pop("num_train_epochs", 1) * rows / own.get("batch_size", rows))
    if kept.get("objective", "").startswith("dpo"):
        shared["batch_size"] = rows // 2
    given = {**shared, "min_eos_weight": 0, "chat_template": "none", **kept, **own, "max_steps": steps}
    if arm.method == "rft":
        given |= {
            "num_samples": 4,
            "temperature": 1.0,
            "max_new_tokens": draws["max_new_tokens"],
        }
    return given
