"""The run folder: what is in it before, during and after training, and whether a run may start there."""

from __future__ import annotations

import copy
import json
import logging
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from rectune.columns import COLUMNS
from rectune.config import CheckpointConfig, Settings, TrainConfig, dump_config
from rectune.config.names import with_new_names
from rectune.data.chat_template import Template, choose_template
from rectune.data.tokenization import stop_ids
from rectune.data.trained_prompt import TEMPLATE
from rectune.errors import UserError
from rectune.models.load import choose_dtype, quiet_bars
from rectune.objective_spec import make_phases, source_files
from rectune.records import Environment, RunSummary, read_record
from rectune.runtime.distributed import default_device
from rectune.runtime.io import (
    FORMAT,
    JsonObject,
    check_format,
    check_writable,
    load_json,
    load_record,
    lock,
    replace_folder,
    translate_disk_errors,
    write_json,
    write_text,
)

log = logging.getLogger("rectune")

Summary = TypeVar("Summary", bound=RunSummary)

# Settings that may differ between a run and its continuation, since they do not change its result.
TRACKING = {"report_to", "project", "run_name", "logging_dir"}
SOURCES = "objective"
"""Folder of the run that keeps the files of the user's own objectives."""
FREE = TRACKING | {"save_steps", "save_total_limit", "drift_rows", "max_nonfinite_steps"}


@contextmanager
def enter_run(config: CheckpointConfig, *, resume: bool, main: bool = True) -> Iterator[None]:
    """Keep the run folder for this process, and check that the run may start or resume there.

    Args:
        main: Whether this is the first of several processes, which alone takes the lock.

    Raises:
        UserError: As `check_run`; another process uses the folder, or the disk is full.
    """
    out = config.output_dir
    held = lock(out, "training") if main else nullcontext()
    with held, translate_disk_errors(out, "run it again with --resume"):
        check_run(config, resume=resume)
        yield


def finished_run(config: CheckpointConfig, kind: type[Summary]) -> Summary | None:
    """The summary of the run in the folder, if it has finished; None otherwise.

    Raises:
        UserError: The run had other settings, or the summary is damaged.
    """
    path = config.output_dir / "summary.json"
    if not path.is_file():
        return None
    check_run(config, resume=True)
    log.info("%s: the run is finished", config.output_dir)
    return read_record(path, kind)


def check_run(config: CheckpointConfig, *, resume: bool) -> None:
    """Check that this run may start or go on in its folder, which is not made yet.

    Raises:
        UserError: The folder holds a run and `resume` is off, or a run with other settings (lists which), or it
            cannot be written.
    """
    path = config.output_dir / "config.json"
    check_writable(config.output_dir)
    begun = path.exists()
    if begun and not resume:
        raise UserError(
            "the folder already has a run",
            where=config.output_dir,
            hint="continue with --resume, or give another --output-dir",
        )
    if begun:
        _check_same(config, path)
        _check_sources(config)


def run_template(out: Path, name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that the run in `out` began with, its date included; of a new run, the one of that name."""
    kept = out / TEMPLATE
    if name == "none" or not ((out / "config.json").is_file() and kept.is_file()):
        return choose_template(name, tokenizer)
    return choose_template(str(kept), tokenizer)


def open_run(config: CheckpointConfig, template: Template, steps: int, **decided: int) -> None:
    """Write the template, `config.json` and `environment.json`: from now on the folder holds this run.

    `decided` are further figures that the settings left open, such as the length at which rows are cut.
    """
    with translate_disk_errors(config.output_dir):
        for file in source_files(config.objective) if isinstance(config, TrainConfig) else ():
            (config.output_dir / SOURCES).mkdir(exist_ok=True)
            write_text(config.output_dir / SOURCES / file.name, file.read_text("utf-8"))
        if template.text is not None and not (config.output_dir / "config.json").exists():
            write_text(config.output_dir / TEMPLATE, template.kept())
        found = {"template": template.name, "turn_end": template.closing, "steps": steps, **decided}
        write_json(config.output_dir / "environment.json", environment().to_dict(), indent=2)
        content = {"format": FORMAT, **settled(config), "decided": found}
        write_json(config.output_dir / "config.json", content, indent=2)


def settled(config: Settings) -> JsonObject:
    """The settings in force, JSON-ready: those that the config leaves open are decided, as far as they play a part."""
    found: JsonObject = json.loads(dump_config(config))
    dtype, _ = choose_dtype(str(found["dtype"]), default_device())
    found["dtype"] = str(dtype).removeprefix("torch.")
    if isinstance(config, TrainConfig):
        phases = make_phases(config)
        found["min_eos_weight"] = phases[0].min_eos_weight
        read = {name for phase in phases for name in phase.columns}
        if "kl" in read or any(COLUMNS[name].source == "reference" for name in read):
            found["reference_model"] = found["reference_model"] or found["model"]
    elif "epsilon_high" in found:
        found["epsilon_high"] = found["epsilon_high"] or found["epsilon"]
    return found


def _check_sources(config: CheckpointConfig) -> None:
    """Raise `UserError` where the file of an objective of the user's own is not what the run began with."""
    for file in source_files(config.objective) if isinstance(config, TrainConfig) else ():
        kept = config.output_dir / SOURCES / file.name
        if kept.is_file() and file.read_text("utf-8") != kept.read_text("utf-8"):
            hint = f"the run began with {kept}: restore that, or give another --output-dir"
            raise UserError("the file has changed since the run began", where=file, hint=hint)


def keep_limit(out: Path, process: int, tokens: int) -> None:
    """Remember for when the run resumes that more tokens at once did not fit into this process's memory."""
    path = out / f"micro_batch_limit-{process}.json"  # one each, since memory may run out in several at once
    with translate_disk_errors(out):
        write_json(path, {"format": FORMAT, "micro_batch_tokens": tokens})


def kept_limit(out: Path) -> int | None:
    """The least of all `keep_limit`; None where there is none.

    Raises:
        UserError: One is damaged.
    """
    limits = []
    for path in (
        *out.glob("micro_batch_limit-*.json"),
        *out.glob("memory-*.json"),
    ):  # the latter of version 0.1
        limit = load_record(path, "micro_batch_tokens")["micro_batch_tokens"]
        if not isinstance(limit, int) or limit < 1:
            raise UserError(
                "the file is damaged",
                where=path,
                hint="remove it; the size that fits is then determined again",
            )
        limits.append(limit)
    return min(limits, default=None)


def _check_same(config: CheckpointConfig, path: Path) -> None:
    try:
        before: JsonObject = load_json(path)
    except ValueError:
        raise UserError("the file is not JSON", where=path, hint="give another --output-dir") from None
    check_format(before, path)
    defaults: Any = type(config).model_construct  # without the settings that have none
    now = settled(config)
    before = filled(with_new_names(before), defaults().model_dump(mode="json"), now)
    free = FREE | {"output_dir"}  # a moved folder is the same run
    if differing := [
        key for key in before.keys() | now.keys() if key not in free and before.get(key) != now.get(key)
    ]:
        raise other_settings(differing, before, now, path)


def other_settings(
    names: Iterable[str], before: Mapping[str, object], now: Mapping[str, object], where: Path, hint: str = ""
) -> UserError:
    """The error for settings that are not those with which the folder was begun."""
    changes = ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in sorted(names))
    hint = "restore them, or give another --output-dir" + hint
    return UserError(f"the run cannot be resumed with other settings: {changes}", where=where, hint=hint)


def filled(
    before: Mapping[str, object], defaults: Mapping[str, object], now: Mapping[str, object]
) -> JsonObject:
    """The settings of an earlier version: those that it did not have yet, or left open, are at their default."""
    kept = {key: value for key, value in before.items() if key not in ("format", "decided")}
    settings: JsonObject = {**defaults, **kept}
    for key, value in defaults.items():
        if isinstance(value, dict) and isinstance(given := settings[key], dict):
            settings[key] = {**value, **given}
    if settings.get("epsilon_high", 0) is None:
        settings["epsilon_high"] = settings["epsilon"]
    if settings.get("dtype") == "auto":
        settings["dtype"] = now["dtype"]
    if settings.get("min_eos_weight", 0) is None:
        settings["min_eos_weight"] = now["min_eos_weight"]
        settings["reference_model"] = settings["reference_model"] or now["reference_model"]
    return settings


def environment() -> Environment:
    """The environment of this process."""
    packages = ("rectune", "transformers", "accelerate", "datasets", "safetensors")
    return Environment(
        python=sys.version.split()[0],
        platform=platform.platform(terse=True),
        processor=torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        # torch's version with the build, which the installed package's version does not have
        packages={"torch": str(torch.__version__), **{name: version(name) for name in packages}},
    )


def save_model(folder: Path, model: Any, tokenizer: Any, template: Template) -> None:
    """Write model and tokenizer as one folder that plain `from_pretrained` loads; all of it or nothing.

    The tokenizer gets the chat template that was trained with, and the model its turn end beside the tokens at which
    generation stops, so that every program asks and stops as training did.
    """
    if (generation := getattr(model, "generation_config", None)) is not None:
        ends = generation.eos_token_id
        ends = ends if isinstance(ends, list) else [ends] * (ends is not None)
        if not set(stops := stop_ids(tokenizer, template)) <= set(ends):
            generation.eos_token_id = [*ends, *(i for i in stops if i not in ends)]
    tokenizer = copy.copy(tokenizer)
    known = tokenizer.chat_template
    tokenizer.chat_template = (
        known | {"default": template.saved()} if isinstance(known, dict) else template.saved()
    )
    with replace_folder(folder) as aside:
        with quiet_bars():
            model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
