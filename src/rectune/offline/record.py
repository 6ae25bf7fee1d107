"""`OUT/offline.json`: the settings of an offline run and what became of each stage, so that it can go on.

A stage is done when the record says so and its file is as long as it was then. Once training has begun, nothing that
decides its rows may change. Before, `n` may grow, and what comes after sampling may change: then those stages are gone
through again, from the samples that are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rectune.data.rows import Problem
from rectune.disk import FORMAT, check_format, load_json
from rectune.errors import UserError
from rectune.offline.settings import OfflineConfig, SamplingConfig, SelectionConfig
from rectune.training.checkpoints import to_json, write_text
from rectune.training.run_folder import other_settings

LATER = ("timeout", "per_problem", "balance", "unjudged", "unfinished", "purpose")
"""Settings that only stages after sampling read."""
_FREE = {"workers", "server_url", "served_name", "batch_size", "benchmark_dir", "samples"}


class Record:
    """The record of the run in `config.out`.

    Args:
        paired: Whether the method learns from pairs.
        resume: Go on with what is there.

    Raises:
        UserError: The folder holds a run and `resume` is off, or one with settings that cannot change any more.
    """

    def __init__(
        self, config: OfflineConfig, problems: Sequence[Problem], *, paired: bool, resume: bool
    ) -> None:
        self.path, self.training = config.out / "offline.json", config.out / "train" / "config.json"
        self._content: dict[str, Any] = {
            "format": FORMAT,
            "config": config.model_dump(mode="json", exclude={"data"}),
            "settings": _settings(config, problems, paired=paired),
            "stages": {},
        }
        if self.path.exists():
            if not resume:
                hint = "go on with --resume, or give another --out"
                raise UserError("already holds a run", where=config.out, hint=hint)
            self._go_on(self._read())
        elif (config.out / "samples.jsonl").exists():
            hint = "give another --out, and this file as sampling.samples"
            raise UserError("holds samples of something else", where=config.out, hint=hint)
        self._write()

    def is_done(self, stage: str, file: Path) -> bool:
        done = self._content["stages"].get(stage)
        return done is not None and file.is_file() and file.stat().st_size == done["bytes"]

    def counts(self, stage: str) -> dict[str, Any]:
        counts: dict[str, Any] = self._content["stages"][stage]["counts"]
        return counts

    def done(self, stage: str, file: Path, counts: dict[str, Any]) -> None:
        self._content["stages"][stage] = {"bytes": file.stat().st_size, "counts": counts}
        self._write()

    def _read(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = load_json(self.path)
            check_format(content, self.path)
            if isinstance(content["settings"], dict) and isinstance(content["stages"], dict):
                return content
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise UserError("is no record of an offline run", where=self.path, hint="give another --out")

    def _go_on(self, before: dict[str, Any]) -> None:
        now = self._content["settings"]
        defaults = SamplingConfig().model_dump(mode="json") | SelectionConfig().model_dump(mode="json")
        then = {**defaults, **before["settings"]}  # an earlier version may not have had all
        changed = [name for name in now if then.get(name) != now[name]]
        fixed = [
            name
            for name in changed
            if self.training.exists() or not (name in LATER or (name == "n" and now["n"] > then.get("n", 0)))
        ]
        if fixed:
            hint = "; its sampling.samples can take these answers over"
            raise other_settings(fixed, then, now, self.path, hint)
        if "timeout" in changed:  # before the record says otherwise
            (self.path.parent / "graded.jsonl").unlink(missing_ok=True)
        if not changed:
            self._content["stages"] = before["stages"]

    def _write(self) -> None:
        write_text(self.path, to_json(self._content, indent=2) + "\n")


def _settings(config: OfflineConfig, problems: Sequence[Problem], *, paired: bool) -> dict[str, Any]:
    """What decides the rows: a change of one of these is a change of what is trained on."""
    content = json.dumps(
        [asdict(problem) | {"where": ""} for problem in problems], sort_keys=True, default=str
    )
    return {
        "model": config.model,
        "problems": f"{len(problems)} ({hashlib.blake2b(content.encode(), digest_size=8).hexdigest()})",
        "precision": config.precision,
        "rows.template": config.rows.template,
        **{k: v for k, v in config.sampling.model_dump(mode="json").items() if k not in _FREE},
        **config.selection.model_dump(mode="json"),
        "purpose": "pairs" if paired else "rows",
    }
