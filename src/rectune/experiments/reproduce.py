"""`rectune reproduce`: carries out a recipe, such as a table of the paper, at full or at mini scale.

    OUT/comparison.json, report.html    arms, sweep and verdict, as of `rectune compare`
    OUT/reproduction.json               what recipes/paper makes of it: the paper's figures beside ours

A recipe is a TOML file with models, benchmarks and arms; each model becomes a grid, in a folder of its own if there are
several. The mini scale, estimates and tables of the paper are in the repository's recipes/ folder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue

from rectune.config import (
    ReproduceConfig,
    RFTConfig,
    RLConfig,
    Settings,
    TaskConfig,
    TrainConfig,
    load_config,
    read_toml,
)
from rectune.errors import UserError, unknown_name
from rectune.evaluation.prompts import build_prompts
from rectune.experiments.evaluator import EvalSettings
from rectune.experiments.grid import Arm, Grid, RunConfig
from rectune.experiments.runner import COMPARISON, read_comparison, run_grid
from rectune.recipes import find_recipe, load_code
from rectune.runtime.io import check_writable, lock
from rectune.training.run_dir import other_settings

KINDS: dict[str, type[Settings]] = {"train": TrainConfig, "rft": RFTConfig, "rl": RLConfig}
TABLES = ("settings", "rates", "draws", "rft", "rl", "assumed")


class RecipeArm(Settings):
    """One method of a recipe: its settings at full scale, and what differs at mini scale."""

    label: str
    method: Literal["train", "rft", "rl"] = "train"
    objective: str | None = None
    algorithm: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    mini: dict[str, Any] = Field(default_factory=dict)

    @property
    def slug(self) -> str:
        return self.label.lower().replace(" ", "-")

    @property
    def way(self) -> dict[str, str]:
        """What is learnt: the objective, or the algorithm of reinforcement learning."""
        given = {"objective": self.objective, "algorithm": self.algorithm}
        return {name: value for name, value in given.items() if value}


class Recipe(Settings):
    """A recipe. Tables that are not given are those of _main.toml in the same folder."""

    title: str
    model: tuple[str, ...]
    arms: tuple[RecipeArm, ...]
    against: str = ""
    """Label of the arm that the others are compared with."""
    benchmarks: tuple[str, ...]
    settings: dict[str, Any] = Field(default_factory=dict)
    rates: dict[str, float] = Field(default_factory=dict)
    """Learning rates of single models."""
    draws: dict[str, Any] = Field(default_factory=dict)
    """How answers to the benchmarks are sampled."""
    rft: dict[str, Any] = Field(default_factory=dict)
    rl: dict[str, Any] = Field(default_factory=dict)
    assumed: dict[str, float] = Field(default_factory=dict)
    """Lengths in tokens, for the estimate."""
    curve: dict[str, int] = Field(default_factory=dict)
    """Scale to steps between evaluations during training."""
    histogram: bool = False
    sweep: bool = True
    mini: dict[str, Any] = Field(default_factory=dict)
    no_mini: str = ""
    """Why the recipe cannot be carried out at mini scale."""


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises `UserError` for an unknown key or a value of another type."""
    main = path.with_name("_main.toml")
    shared, own = read_toml(main) if main.is_file() else {}, read_toml(path)
    tables = {name: {**shared[name], **own.get(name, {})} for name in TABLES if name in shared}
    if "benchmarks" in shared and "benchmarks" not in own:
        tables["benchmarks"] = shared["benchmarks"]
    recipe = load_config(path, tables, Recipe)
    return recipe.model_copy(update={"against": recipe.against or recipe.arms[0].label})


@dataclass(frozen=True)
class Reproduction:
    """A recipe that is ready to run: its grids, and the code that belongs to it."""

    config: ReproduceConfig
    path: Path
    recipe: Recipe
    grids: tuple[Grid, ...]

    def code(self, module: str) -> Any:
        """A module of recipes/; raises `UserError` for a recipe that lies elsewhere."""
        found = load_code(self.path, module)
        if found is None:
            where = f"recipes/{module.replace('.', '/')}"
            hint = "put the recipe into recipes/paper of a checkout of the repository"
            raise UserError(f"needs {where}, which is not next to the recipe", where=self.path, hint=hint)
        return found


def reproduce(config: ReproduceConfig) -> dict[str, Any]:
    """Carry out a recipe, and return the content of OUT/reproduction.json.

    Raises:
        UserError: An unknown recipe, scale or arm, a recipe that cannot be done at mini scale (says why), and all
            that training, sampling and evaluation raise.
    """
    work = prepare(config)
    with lock(config.output_dir, "at work"):
        if config.scale == "mini":
            work.code("mini.task").make_base(Path(work.grids[0].model))
        else:
            work.code("paper.data").write_files(work)
        comparisons = []
        for grid in work.grids:
            asked = grid if grid.problems else replace(grid, problems=_problems(work.recipe, config))
            comparisons.append(run_grid(asked))
        result: dict[str, Any] = work.code("paper.result").write_result(work, comparisons)
        from rectune.reporting.report import report

        report([config.output_dir], out=config.output_dir / "report.html")
    return result


def plan(config: ReproduceConfig) -> dict[str, Any]:
    """Runs, steps, tokens and expected cost; writes nothing but the rows of the mini scale."""
    work = prepare(config)
    result: dict[str, Any] = work.code("paper.estimate").plan(work)
    return result


def prepare(config: ReproduceConfig) -> Reproduction:
    """Check everything and make the grids.

    Arms and seeds that the folder already has stay in it.
    """
    path = find_recipe(config.recipe)
    recipe = load_recipe(path)
    if config.scale == "mini" and recipe.no_mini:
        hint = "--scale full, or --dry-run with it"
        raise UserError(f"this recipe has no mini scale: {recipe.no_mini}", where=config.recipe, hint=hint)
    seeds = config.seeds if config.seeds is not None else 3 if config.scale == "mini" else 1
    labels = [arm.label for arm in recipe.arms]
    for label in config.arms:
        if label not in labels:
            raise unknown_name("arm", label, labels, where="--arms")
    check_writable(config.output_dir)
    if config.include_path is not None and not config.include_path.is_dir():
        raise UserError("no such folder", where=f"--include-path {config.include_path}")
    work = Reproduction(config, path, recipe, ())
    if config.scale == "mini":
        grids = [work.code("mini.task").make_grid(recipe, config.output_dir, config.budget)]
    else:
        grids = [full_grid(recipe, model, config) for model in recipe.model]
    return replace(work, grids=tuple(_begun(grid, config, seeds) for grid in grids))


def _begun(grid: Grid, config: ReproduceConfig, seeds: int) -> Grid:
    """The grid with the arms and seeds that are wanted, and those that its folder already has."""
    samples = grid.evaluation.num_samples
    settings: dict[str, JsonValue] = {"recipe": Path(config.recipe).stem, "scale": config.scale, "n": samples}
    wanted = set(config.arms) or {arm.label for arm in grid.arms}
    if begun := read_comparison(grid.out):
        if begun.settings != settings:
            names = [name for name in settings if begun.settings.get(name) != settings[name]]
            raise other_settings(names, begun.settings, settings, grid.out / COMPARISON)
        wanted |= {arm.label for arm in begun.arms}
        seeds = max(seeds, len(begun.seeds))
    arms = tuple(arm for arm in grid.arms if arm.label in wanted)
    return replace(grid, arms=arms, seeds=tuple(range(seeds)), settings=settings)


def full_grid(recipe: Recipe, model: str, config: ReproduceConfig) -> Grid:
    """The grid of a model at full scale; its problems are loaded when they are needed."""
    several = len(recipe.model) > 1
    out = config.output_dir / model.rpartition("/")[2] if several else config.output_dir
    data = recipe.settings["data"]
    if data == "natural_questions":
        data = str(config.output_dir / "data" / "natural_questions.jsonl")
    draws = recipe.draws
    evaluation = EvalSettings(
        draws["n"],
        draws["temperature"],
        draws["max_new_tokens"],
        chat_template=recipe.settings.get("chat_template", "auto"),
        system_prompt=draws["system"] or None,
        backend=config.backend,
    )
    given = {
        "model": model,
        "output_dir": out,
        "data": data,
        "problems": config.output_dir / "data" / "problems.jsonl",
    }
    arms = [Arm(arm.label, arm.slug, _full_config(recipe, arm, given, config.backend)) for arm in recipe.arms]
    return Grid(
        out=out,
        model=model,
        data=data,
        arms=tuple(arms),
        seeds=(0,),
        domains=dict.fromkeys(recipe.benchmarks, ""),
        evaluation=evaluation,
        problems={},
        validation={},
        settings={},
        curve_steps=recipe.curve.get("full", 0),
    )


def _full_config(recipe: Recipe, arm: RecipeArm, given: dict[str, Any], backend: str) -> RunConfig:
    """The settings of an arm at full scale, without those of a single run."""
    settings = {**(recipe.rl if arm.method == "rl" else recipe.settings), **arm.way, **arm.settings, **given}
    if arm.method != "rl" and "learning_rate" not in arm.settings:
        settings["learning_rate"] = recipe.rates.get(given["model"], settings["learning_rate"])
    if arm.method == "rft":
        settings = {**settings, **recipe.rft, "backend": backend, "max_train_samples": None}
    return make_config(arm.method, settings)


def make_config(method: str, settings: dict[str, Any]) -> RunConfig:
    """The config of a verb; settings of rows and problems that the verb does not have are left out."""
    kind = KINDS[method]
    sources = {"data", "data_format", "columns", "split", "problems"}
    known = {
        name: value for name, value in settings.items() if name in kind.model_fields or name not in sources
    }
    config: Any = load_config(None, known, kind)
    return config  # type: ignore[no-any-return]


def _problems(recipe: Recipe, config: ReproduceConfig) -> Any:
    prompt, system = recipe.draws["prompt"] or None, recipe.draws["system"] or None
    tasks = TaskConfig(tasks=recipe.benchmarks, include_path=config.include_path)
    prompts = build_prompts(tasks, prompt=prompt, system=system)
    return {name: task.problems for name, task in prompts.items()}
