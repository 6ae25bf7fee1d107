"""The mini scale's files: a tokenizer and an untrained model, rows, problems, and the base model trained on them here.

    CACHE/mini-<key>/untrained/          the tokenizer and a model with random weights
    CACHE/mini-<key>/base.jsonl          what the base model reads
    CACHE/mini-<key>/base/               the run that makes it
    CACHE/mini-<key>/demonstrations.jsonl, clean.jsonl, holdout.jsonl
    CACHE/mini-<key>/problems.jsonl, validation.jsonl, in_domain.jsonl, other_stories.jsonl, more_steps.jsonl

<key> is a digest of the settings: the same settings give the same bits on one machine. The
problems that are judged are in none of the rows. What a story is, is in `stories.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectune.config import load_config
from rectune.data.load import default_cache
from rectune.models.load import quiet_bars
from rectune.reproduction.stories import Story, answered, spoil, stories, vocabulary
from rectune.runtime.io import write_json, write_jsonl
from rectune.runtime.locks import wait_for_lock
from rectune.training.trainer import train

DEMONSTRATED = ("hands",)
OTHERS = ("bus", "shelf")
EVERY = (*DEMONSTRATED, *OTHERS)
DOMAINS = {"in_domain": "in", "other_stories": "out", "more_steps": "out"}
"""Benchmarks of the mini scale: as the demonstrations, other stories, three steps in place of two."""
BASE_SEED = 0
_VERSION = 1  # raise it when the same settings would write other files


@dataclass(frozen=True)
class Task:
    """Where the mini scale's files lie.

    Attributes:
        folder: All of them.
        settings: The content of `recipes/paper/mini.toml`, shrunk by the budget.
    """

    folder: Path
    settings: dict[str, Any]

    @property
    def base(self) -> Path:
        """The base model, once `make_base` has trained it."""
        return self.folder / "base" / "model"

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"


def make_task(settings: dict[str, Any], cache: Path | None = None) -> Task:
    """Write all files that are not there yet; the base model is left to `make_base`."""
    key = hashlib.sha256(
        json.dumps(
            [_VERSION, *(settings[name] for name in ("model", "base", "task"))], sort_keys=True
        ).encode()
    ).hexdigest()[:12]
    task = Task((cache or default_cache()) / f"mini-{key}", settings)
    with wait_for_lock(task.folder, "making this task"):
        if not (task.folder / "task.json").is_file():
            for name, records in _files(settings):
                write_jsonl(task.file(name), records)
            _write_untrained(task.folder / "untrained", settings["model"])
            write_json(task.folder / "task.json", {"format": 1, **settings}, indent=2)
    return task


def make_base(task: Task) -> Path:
    """Train the base model where that is not done yet; goes on after a stop. Returns its folder."""
    with wait_for_lock(task.folder, "making this task"):
        if not (task.folder / "base" / "summary.json").is_file():
            train(base_config(task), resume=True)
    return task.base


def base_config(task: Task) -> Any:
    """Settings of the base model's own training: SFT on the mixture of ways to answer."""
    base, own = task.settings["base"], task.settings["settings"]
    return load_config(
        None,
        {
            "model": task.folder / "untrained",
            "data": task.file("base"),
            "output_dir": task.folder / "base",
            "seed": BASE_SEED,
            "objective": "sft",
            "chat_template": "none",
            "eval_split_size": 0.01,
            "drift_rows": 0,
            "max_steps": base["steps"],
            **{name: base[name] for name in ("batch_size", "learning_rate")},
            **{name: own[name] for name in ("max_length", "dtype", "logits_memory_mb")},
            "tokens_per_micro_batch": 2 * own["tokens_per_micro_batch"],
            "save_steps": 200,
        },
    )


def _files(settings: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
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
        yield name, [_problem(story) for story in take(name, kinds, steps, task[name])]
    shown = take("demonstrations", DEMONSTRATED, (2,), task["demonstrations"])
    rng = random.Random("wrong demonstrations")
    wrong = [spoil(rng, story) if rng.random() < task["wrong"] else story for story in shown]
    yield "demonstrations", [_row(story, "told") for story in wrong]
    yield "clean", [_row(story, "told") for story in shown]
    yield "problems", [_problem(story) for story in shown[: task["problems"]]]
    aside = take("holdout", DEMONSTRATED, (2,), task["holdout"])
    yield "holdout", [_row(story, "told") for story in aside]
    yield "base", list(_base_rows(take("base", EVERY, (1, 2, 2, 3), base["rows"]), base))


def _base_rows(every: Sequence[Story], base: dict[str, Any]) -> Iterator[dict[str, str]]:
    rng = random.Random("base")
    shares = (base["written"], base["told"], 1 - base["written"] - base["told"])
    for story in every:
        way = rng.choices(("written", "told", "short"), shares)[0]
        yield _row(spoil(rng, story) if rng.random() < base["wrong"] else story, way)


def _row(story: Story, way: str) -> dict[str, str]:
    return {"prompt": story.text, "completion": answered(story, way)}


def _problem(story: Story) -> dict[str, str]:
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
        tokenizer_object=words_to_ids,
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=shape["width"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(BASE_SEED)
        model = LlamaForCausalLM(config)
    with quiet_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
