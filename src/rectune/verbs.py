"""The verbs that have a flag for every setting of a run; the other verbs are in `cli.py`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from rectune.config import load_config
from rectune.flags import settings_flags

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]


@settings_flags
def train(
    recipe: Path | None = None,
    /,
    *,
    resume: Switch = False,
    dry_run: Switch = False,
    **overrides: Any,
) -> None:
    """Fine-tune a model on demonstrations.

    Settings come from a TOML recipe, from flags, or from both; a flag wins.

    Args:
        recipe: TOML file with the settings below; --rows.format is `format` in its table [rows].
        resume: Go on from the last checkpoint in the run folder, if there is one.
        dry_run: Print the settings, rows, tokens, steps and memory estimate, and stop.
    """
    config = load_config(recipe, overrides)
    if dry_run:
        from rectune.training.plan import plan

        print(json.dumps(plan(config), indent=2))
        return
    from rectune.training.checkpoints import to_json
    from rectune.training.loop import train

    result = train(config, resume=resume)
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print(to_json(asdict(result), indent=2))
