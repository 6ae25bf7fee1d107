"""Settings of an offline run: those of training, and how answers are drawn, judged and chosen.

As in `config/__init__.py`, the docstring below each field is its `--help` text and its documentation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from rectune.config import DataConfig, PathOrName, Seed, Settings, StopTexts, TrainConfig


class SamplingConfig(Settings):
    """How the model's answers are drawn and judged."""

    n: int = Field(4, gt=0)
    """Answers to each problem. The paper draws 4."""
    temperature: float = Field(1.0, ge=0)
    """Of the draws; 0 takes the most probable token, so that all answers to a problem are the same."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the most probable tokens that make up this share."""
    max_new_tokens: int = Field(1024, gt=0)
    """Longest answer; together with the problem it should fit into max_length."""
    stop: StopTexts = ()
    """Text at which an answer ends, besides the template's own mark of the next turn; may be given several times."""
    seed: Seed = 0
    """Of the draws and of the choice among answers; seed is for training alone, so that runs can share answers."""
    samples: PathOrName | None = None
    """samples.jsonl of an earlier run to begin with; what it lacks is drawn."""
    grader: Literal["math", "expression", "exact", "code"] | None = None
    """Verifier, in place of the one that the problems name."""
    timeout: float = Field(5.0, gt=0)
    """Seconds that judging one answer may take."""
    workers: int | None = Field(None, gt=0)
    """Processes that judge answers; by default one for each core."""
    engine: Literal["local", "server", "vllm"] = "local"
    """local runs the model here, server asks an OpenAI-compatible endpoint that serves it."""
    server_url: str | None = None
    """Address of the endpoint, such as http://127.0.0.1:8000/v1."""
    served_name: str | None = None
    """What the server calls the model, where that is not model."""
    batch_size: int | None = Field(None, gt=0)
    """Answers in work at once."""
    benchmark_dir: Path | None = None
    """Folder that has the benchmark's file, where problems is the name of a benchmark."""


class SelectionConfig(Settings):
    """Which of the judged answers are trained on."""

    per_problem: int | None = Field(None, gt=0)
    """Most rows or pairs of one problem, drawn at random; all distinct ones if unset, as in the paper."""
    balance: bool = False
    """Repeat rows until every problem has as many as the one with the most."""
    unjudged: bool = False
    """For pairs, let answers whose judging timed out or failed count as wrong."""
    unfinished: bool = False
    """Let correct answers count that reached max_new_tokens."""


class OfflineConfig(TrainConfig):
    """Everything that decides an offline run: `TrainConfig`, whose `data` the run makes, and where it comes from."""

    data: PathOrName = ""
    """Made by the run."""
    problems: PathOrName
    """Problems with gold answers: a JSONL file, or the name of a benchmark."""
    sampling: SamplingConfig = SamplingConfig()
    selection: SelectionConfig = SelectionConfig()

    @field_validator("data")
    @classmethod
    def _made(cls, value: str) -> str:
        raise ValueError("is made of the model's own answers; leave it out")

    @field_validator("rows")
    @classmethod
    def _written_here(cls, value: DataConfig) -> DataConfig:
        for name in MADE:
            given = getattr(value, name.removeprefix("rows."))
            if given != DataConfig.model_fields[name.removeprefix("rows.")].get_default(
                call_default_factory=True
            ):
                raise ValueError(f"{name} is for data of your own, the rows here are the model's answers")
        return value

    def training(self, data: Path, format: str) -> TrainConfig:
        """The settings of the last stage, which trains on `data` in `out/train`."""
        own: dict[str, Any] = {n: getattr(self, n) for n in TrainConfig.model_fields}
        rows = self.rows.model_copy(update={"format": format})
        own |= {"data": data, "out": self.out / "train", "rows": rows}
        return TrainConfig.model_validate({**own, "run_name": self.run_name or self.out.name})


MADE = ("rows.format", "rows.columns", "rows.split")
"""Settings of training that an offline run decides itself, besides `data`."""


def is_setting(name: str) -> bool:
    """Whether a setting, by dotted name, is one of an offline run."""
    return name not in ("data", *MADE)
