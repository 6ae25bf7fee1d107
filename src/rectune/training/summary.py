"""`summary.json`: what a finished run says; a folder with one is finished."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rectune.disk import FORMAT, check_format, load_json
from rectune.errors import UserError
from rectune.training.checkpoints import to_json, write_text


@dataclass(frozen=True)
class TrainResult:
    """What a finished run says in `summary.json`.

    Attributes:
        out: The run folder.
        steps: Optimizer steps.
        before, after: Figures on the hold-out rows (see `Monitor.figures`) of the model as it was and of the one
            saved; empty without hold-out rows.
        tokens_per_second: Tokens of the rows, prompts included, per second of training steps.
        peak_memory_mib: Of the process, or of the GPU where there is one.
        seconds: That passed from the command's start to its end: loading, steps, evaluations and saving. Of a run that
            went on from a checkpoint, those up to that checkpoint are in it.
        skipped: Steps without a finite loss or gradient, which changed nothing.
        step_seconds: Of training steps alone; None in summaries of older versions, whose `seconds` they are.
    """

    out: str
    steps: int
    before: dict[str, Any]
    after: dict[str, Any]
    tokens_per_second: float
    peak_memory_mib: float
    seconds: float
    step_seconds: float | None = None
    skipped: int = 0


def summarise(
    out: Path, steps: int, before: dict[str, Any], after: dict[str, Any], seconds: float
) -> TrainResult:
    """The result of the run in `out`, from its metrics and the seconds that it took."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    taken = [line for line in lines if line["kind"] == "train"]
    step_seconds = sum(line["seconds"] for line in taken)
    tokens = sum(line["tokens"] for line in taken)
    return TrainResult(
        out=str(out),
        steps=steps,
        before=before,
        after=after,
        tokens_per_second=tokens / step_seconds if step_seconds else 0.0,
        peak_memory_mib=max((line["peak_memory_mib"] for line in taken), default=0.0),
        seconds=round(seconds, 3),
        step_seconds=step_seconds,
        skipped=sum(line["grad_norm"] is None for line in taken),
    )


def write_result(result: TrainResult) -> None:
    text = to_json({"format": FORMAT, **asdict(result)}, indent=2)
    write_text(Path(result.out) / "summary.json", text + "\n")


def read_result(out: Path) -> TrainResult | None:
    """The result of a finished run; None where it has not finished.

    Raises:
        UserError: `summary.json` is damaged, or of another version.
    """
    path = out / "summary.json"
    if not path.is_file():
        return None
    try:
        content = load_json(path)
        check_format(content, path)
        older = {"step_seconds": None, "skipped": 0, **content}
        return TrainResult(**{name: older[name] for name in TrainResult.__dataclass_fields__})
    except (ValueError, KeyError, TypeError, AttributeError):
        hint = "remove it, and the run goes on from its last checkpoint"
        raise UserError("is not the summary of a run", where=path, hint=hint) from None
