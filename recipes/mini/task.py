"""The mini scale: a tokenizer and an untrained model, rows, problems, and the base model that is trained on them here.

    CACHE/mini-<key>/untrained/          the tokenizer and a model with random weights
    CACHE/mini-<key>/base.jsonl          rows of the base model
    CACHE/mini-<key>/base/               the run that makes it
    CACHE/mini-<key>/demonstrations.jsonl, clean.jsonl, holdout.jsonl
    CACHE/mini-<key>/problems.jsonl, validation.jsonl, in_domain.jsonl, other_stories.jsonl, more_steps.jsonl

<key> is a digest of the settings: the same settings give the same bits on one machine. The problems of the verdict are
in none of the rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from rectune.config import TaskConfig, load_config, read_toml
from rectune.data.loading import default_cache
from rectune.errors import UserError
from rectune.evaluation.prompts import build_prompts
from rectune.experiments.evaluator import EvalSettings
from rectune.experiments.grid import Arm, Grid, SweepSettings
from rectune.experiments.reproduce import Recipe, RecipeArm, make_config
from rectune.models.load import quiet_bars
from rectune.runtime.io import load_record, wait_for_lock, write_json, write_jsonl
from rectune.training.trainer import train

from .stories import Story, answered, spoil, stories, vocabulary

DEMONSTRATED = ("hands",)
OTHERS = ("bus", "shelf")
DOMAINS = {"in_domain": "in", "other_stories": "out", "more_steps": "out"}
"""Benchmarks: as the demonstrations, other stories, three steps instead of two."""
BASE_SEED = 0
CURVE_SAMPLES = 4
_VERSION = 1  # raise it when the same settings would write other files

Settings = dict[str, dict[str, Any]]


def load_mini(budget: float = 1.0) -> Settings:
    """The content of mini.toml; with a budget below 1 that share of its rows, problems and steps, to try it out."""
    if not 0 < budget <= 1:
        raise UserError(f"must be above 0 and at most 1 (got {budget:g})", where="--budget")
    mini = read_toml(Path(__file__).with_name("mini.toml"))
    if budget < 1:
        scaled = {"task": tuple(mini["task"]), "base": ("rows", "steps"), "settings": ("max_steps",)}
        for table, name in ((table, name) for table, names in scaled.items() for name in names):
            if name != "wrong":
                mini[table][name] = max(4, round(budget * mini[table][name]))
    return mini


def make_grid(recipe: Recipe, out: Path, budget: float) -> Grid:
    """The grid of a recipe at mini scale, for one seed; writes the files of the task that are not there yet."""
    mini = load_mini(budget)
    folder = make_task(mini)
    tasks = TaskConfig(tasks=[str(folder / f"{name}.jsonl") for name in (*DOMAINS, "validation")])
    problems = {name: task.problems for name, task in build_prompts(tasks).items()}
    draws, tried = mini["draws"], mini["sweep"]
    sweep = SweepSettings(tuple(tried["rates"]), share=tried["share"], num_samples=tried["n"])
    return Grid(
        out=out,
        model=str(folder / "base" / "model"),
        data=str(folder / "demonstrations.jsonl"),
        arms=tuple(_arm(arm, recipe, mini, folder, out) for arm in recipe.arms),
        seeds=(0,),
        domains=DOMAINS,
        evaluation=EvalSettings(
            draws["n"], draws["temperature"], draws["max_new_tokens"], chat_template="none",
            dtype=mini["settings"]["dtype"],
        ),
        problems={name: problems[name] for name in DOMAINS},
        validation={"validation": problems["validation"]},
        settings={},
        sweep=sweep if recipe.sweep else None,
        curve_steps=recipe.curve.get("mini", 0),
        curve_samples=CURVE_SAMPLES,
    )  # fmt: skip


def _arm(arm: RecipeArm, recipe: Recipe, mini: Settings, folder: Path, out: Path) -> Arm:
    """Every arm reads as many answers: with another batch size in more or fewer steps; DPO's batch counts pairs."""
    shared, own = mini["settings"], {**recipe.mini, **arm.mini}
    rows, data = shared["batch_size"], own.pop("data", "demonstrations")
    settings = {
        **shared,
        **arm.way,
        "chat_template": "none",
        "model": folder / "base" / "model",
        "output_dir": out,
    }
    settings["problems"] = folder / "problems.jsonl"
    if arm.method == "rl":
        for name in ("batch_size", "max_length", "drift_rows"):
            del settings[name]
        n = arm.settings.get("num_samples", 4)
        settings |= {"num_samples": n, "problems_per_step": rows // n, "save_rollout_steps": 0}
        settings["max_new_tokens"] = mini["draws"]["max_new_tokens"]
    else:
        settings["min_eos_weight"] = 0
        if (arm.objective or "").startswith("dpo"):
            settings["batch_size"] = rows // 2
    if arm.method == "train":
        epochs = own.pop("num_train_epochs", 1)
        own["max_steps"] = round(shared["max_steps"] * epochs * rows / own.get("batch_size", rows))
        settings |= {"data": folder / f"{data}.jsonl", "eval_data": str(folder / "holdout.jsonl")}
    elif arm.method == "rft":
        settings |= {"num_samples": 4, "temperature": 1.0, "eval_split_size": 0.02}
        settings["max_new_tokens"] = mini["draws"]["max_new_tokens"]
    return Arm(
        arm.label, arm.slug, make_config(arm.method, {**settings, **own}), sweep="learning_rate" not in own
    )


def make_task(settings: Settings) -> Path:
    """Write all files that are not there yet, but for the base model; returns their folder."""
    decides = [_VERSION, *(settings[name] for name in ("model", "base", "task"))]
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    folder = default_cache() / f"mini-{key}"
    with wait_for_lock(folder, "making this task"):
        if not (folder / "task.json").is_file():
            for name, records in _files(settings):
                write_jsonl(folder / f"{name}.jsonl", records)
            _write_untrained(folder / "untrained", settings["model"])
            write_json(folder / "task.json", {"format": 1, **settings}, indent=2)
    return folder


def make_base(model: Path) -> None:
    """Train the base model of a task, FOLDER/base/model, unless it is there: SFT on the mixture of ways to answer."""
    folder = model.parents[1]
    with wait_for_lock(folder, "making this task"):
        if not (folder / "base" / "summary.json").is_file():
            train(load_config(None, _base_settings(folder)), resume=True)


def _base_settings(folder: Path) -> dict[str, Any]:
    task = load_record(folder / "task.json", "base", "settings")
    base, shared = cast(dict[str, Any], task["base"]), cast(dict[str, Any], task["settings"])
    return {
        "model": folder / "untrained", "data": folder / "base.jsonl", "output_dir": folder / "base",
        "seed": BASE_SEED, "objective": "sft", "chat_template": "none", "eval_split_size": 0.01, "drift_rows": 0,
        "max_steps": base["steps"], "batch_size": base["batch_size"], "learning_rate": base["learning_rate"],
        **{name: shared[name] for name in ("max_length", "dtype", "logits_memory_mb")},
        "tokens_per_micro_batch": 2 * shared["tokens_per_micro_batch"], "save_steps": 200,
    }  # fmt: skip


def _files(settings: Settings) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Name and records of every file; what is judged comes first, so that no row repeats it."""
    task, base, seen = settings["task"], settings["base"], set[str]()

    def take(name: str, kinds: tuple[str, ...], steps: tuple[int, ...], count: int) -> list[Story]:
        return list(itertools.islice(stories(name, kinds, steps, seen), count))

    for name, kinds, steps in (
        ("in_domain", DEMONSTRATED, (2,)),
        ("other_stories", OTHERS, (2,)),
        ("more_steps", DEMONSTRATED, (3,)),
        ("validation", DEMONSTRATED, (2,)),
    ):
        yield name, [problem_of(story) for story in take(name, kinds, steps, task[name])]
    shown = take("demonstrations", DEMONSTRATED, (2,), task["demonstrations"])
    rng = random.Random("wrong demonstrations")
    wrong = [spoil(rng, story) if rng.random() < task["wrong"] else story for story in shown]
    yield "demonstrations", [row_of(story, "told") for story in wrong]
    yield "clean", [row_of(story, "told") for story in shown]
    yield "problems", [problem_of(story) for story in shown[: task["problems"]]]
    yield "holdout", [row_of(story, "told") for story in take("holdout", DEMONSTRATED, (2,), task["holdout"])]
    yield "base", list(_base_rows(take("base", (*DEMONSTRATED, *OTHERS), (1, 2, 2, 3), base["rows"]), base))


def _base_rows(every: Sequence[Story], base: dict[str, Any]) -> Iterator[dict[str, str]]:
    rng = random.Random("base")
    shares = (base["written"], base["told"], 1 - base["written"] - base["told"])
    for story in every:
        way = rng.choices(("written", "told", "short"), shares)[0]
        yield row_of(spoil(rng, story) if rng.random() < base["wrong"] else story, way)


def row_of(story: Story, way: str) -> dict[str, str]:
    """A row to train on: the story, answered in one of `EVERY_WAY`."""
    return {"prompt": story.text, "completion": answered(story, way)}


def problem_of(story: Story) -> dict[str, str]:
    """A problem to evaluate on."""
    return {"prompt": story.text, "answer": str(story.answer), "grader": "exact"}


def _write_untrained(folder: Path, shape: dict[str, int]) -> None:
    """A small Llama with random weights, and a tokenizer that knows the stories' words."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<eos>", *vocabulary()]
    words_to_ids = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    words_to_ids.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^ .,?]+|[.,?]"), "isolated")
    words_to_ids.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_to_ids, eos_token="<eos>", unk_token="<unk>", pad_token="<eos>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=shape["width"], intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["heads"],
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(BASE_SEED)
        model = LlamaForCausalLM(config)
    with quiet_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
