"""Settings of a training run: a TOML recipe plus command-line overrides become one frozen config.

The docstring below each field is its `--help` text and its documentation; there is no second copy.
What the settings do is in `training/trainer.py`; which objectives exist is in `objectives.py`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from rectune.errors import UserError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""numpy takes none below 0; times 1,000,003, for a step's own seed, it is still an int64, which torch asks for."""


class Settings(BaseModel):
    """A frozen table of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _as_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _as_objective(value: object) -> object:
    if not callable(value):
        return value
    from rectune.objective_spec import text_of  # with torch: slow to import

    try:
        return text_of(value)
    except UserError as error:
        raise ValueError(error.what) from None


PathOrName = Annotated[str, BeforeValidator(_as_text)]
"""Text, for which Python may give a `Path`."""


StopTexts = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]
"""Texts at which an answer ends; a single one may be given as such."""


class ObjectiveConfig(Settings):
    """Which loss a token gets."""

    objective: Annotated[str, BeforeValidator(_as_objective)] = "dft"
    """Loss: a name of `rectune list objectives` (dft, power:alpha=0.5), phases by share of the steps (sft@0.3+dft@0.7),
    or a function of your own (FILE.py:FUNCTION:beta=0.5)."""
    min_eos_weight: float | None = Field(None, ge=0)
    """Minimum weight of tokens that end a turn or are special. 0 is the paper's Eq. 9 to the letter. Unset: 1 if the
    loss vanishes with p, as dft's does (the model could not learn to stop), else 0."""
    old_policy_interval: int = Field(8, gt=0)
    """Steps between refreshes of the old policy that psft refers to."""


class LoraConfig(Settings):
    """Low-rank adapters instead of full fine-tuning."""

    rank: int = Field(0, ge=0)
    """Rank of the adapters; 0 tunes all weights, or an adapter that model names. The paper's appendix uses 8."""
    alpha: float = Field(16.0, gt=0)
    """Scale of the adapters is alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    targets: str = "all-linear"
    """Modules that get an adapter: all-linear, or names separated by commas."""
    merge: bool = False
    """Also save the model with the adapter merged into its weights."""


class DataConfig(Settings):
    """How the data become rows, and which of them are kept aside."""

    format: str = "auto"
    """Row format: auto, mapping, or one of docs/data.md, such as messages, sharegpt, alpaca or question_answer."""
    columns: dict[str, str] = Field(default_factory=dict)
    """For any other layout, which field is what: prompt=FIELD,completion=FIELD; for pairs chosen, rejected."""
    ignore: tuple[str, ...] = ()
    """Fields to leave unread even if they change what a row means, separated by commas."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be used, and count them, instead of stopping at them."""
    template: PathOrName = "auto"
    """auto: the tokenizer's chat template, else a plain one; eos: the same, but answers end with the eos token, as verl
    has it; none: no template; the name of one of its; or a file."""
    system: str | None = None
    """System message put before rows that have none."""
    split: str = "train"
    """Split of a hub dataset, or of a folder that has splits."""
    too_long: Literal["cut", "drop"] = "cut"
    """Rows of more than max_length tokens: cut at the end, or left out."""
    holdout: float | str = 0.05
    """Rows kept aside for evaluation: a share of the data, split by question, or a file of rows."""
    limit: int | None = Field(None, gt=0)
    """Use only this many rows, drawn at random with the seed."""

    @field_validator("ignore", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(n.strip() for n in value.split(",") if n.strip()) if isinstance(value, str) else value

    @field_validator("columns", mode="before")
    @classmethod
    def _split_pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",")]
        if not all(mark and key.strip() and field.strip() for key, mark, field in pairs):
            raise ValueError(f"'{value}' is not of the form prompt=FIELD,completion=FIELD")
        return {key.strip(): field.strip() for key, _, field in pairs}

    @field_validator("holdout", mode="before")
    @classmethod
    def _share_or_file(cls, value: object) -> object:
        value = _as_text(value)
        with suppress(TypeError, ValueError):
            value = float(value)  # type: ignore[arg-type]
        if isinstance(value, float) and not 0 <= value < 1:
            raise ValueError("a share of the rows is at least 0 and below 1")
        return value


class TrainConfig(ObjectiveConfig):
    """Everything that decides a training run. Frozen, and written whole to `config.json`."""

    model: PathOrName = "smollm2-135m"
    """Hub id, local folder, or the packaged smollm2-135m."""
    reference: PathOrName | None = None
    """Model that iw_sft, dpo and asft refer to, or a file of its ref_logp; unset: the weights training starts from."""
    data: PathOrName
    """Rows to train on: JSONL, JSON, CSV or Parquet, a folder of them, a hub id, or gsm8k-calculations (packaged)."""
    out: Path
    """Run folder; made if it is missing."""
    seed: Seed = 0
    """Seed of row order, hold-out split, initial adapters and dropout."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the rows; ignored where steps is given."""
    steps: int | None = Field(None, gt=0)
    """Optimizer steps; overrides epochs."""
    batch_size: int = Field(16, gt=0)
    """Rows per optimizer step, packed automatically."""
    max_length: int = Field(2048, gt=1)
    """Longest row in tokens; longer ones are cut at the end, and counted."""
    micro_batch_tokens: int = Field(4096, gt=1)
    """Tokens in one forward pass, or max_length if that is more; more is faster until memory runs out."""
    learning_rate: float = Field(5e-5, gt=0)
    """Peak learning rate. The paper uses 5e-5 for full fine-tuning."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after warm-up: cosine and linear end at zero."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps during which the learning rate rises from zero."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decays."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of the step's gradient; 0 does not clip."""
    normalization: Literal["tokens", "micro-batch"] = "tokens"
    """tokens: sum over the step's tokens / their number. micro-batch: means added up, as the paper's code."""
    micro_batch_rows: int = Field(4, gt=0)
    """Rows of a micro-batch where normalization is micro-batch. The paper's script has 4."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16: working weights in bfloat16, masters in float32. auto: bf16 where the machine is fast at it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    memory_budget: int = Field(256, gt=0)
    """MiB for the logits of the language-model head, whatever the batch and vocabulary."""
    rows: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    evaluate_every: int = Field(0, ge=0)
    """Steps between evaluations on the hold-out rows; 0: at the start and the end only."""
    probe: int = Field(16, ge=0)
    """Hold-out rows watched for drift from the base model at each evaluation; 0 watches none."""
    checkpoint_every: int = Field(50, ge=0)
    """Steps between checkpoints that --resume can go on from; 0 writes none."""
    keep_checkpoints: int = Field(2, gt=0)
    """Checkpoints kept; older ones are removed."""
    give_up_after: int = Field(10, gt=0)
    """Steps in a row with a loss or gradient that is not finite, all skipped, after which the run stops."""
    choose: Literal["last", "nll", "mean_p"] = "last"
    """Weights saved as OUT/model: the last, or the best by hold-out NLL or mean p; never by the loss."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Also log to these, through accelerate; each has to be installed."""
    project: str = "rectune"
    """Project that the trackers file the run under."""
    run_name: str | None = None
    """Name of the run in the trackers; unset: that of its folder."""
    logging_dir: Path | None = None
    """Folder of the trackers' files: tensorboard's in PROJECT/RUN_NAME below it. Unset: the run folder."""

    @field_validator("trackers", "betas", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(n.strip() for n in value.split(",") if n.strip()) if isinstance(value, str) else value

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("each is at least 0 and below 1")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.choose != "last" and self.evaluate_every == 0:
            raise ValueError(f"choose = '{self.choose}' needs evaluate_every > 0")
        return self


Config = TypeVar("Config", bound=Settings)


@overload
def load_config(recipe: Path | None = None, overrides: Mapping[str, Any] | None = None) -> TrainConfig: ...
@overload
def load_config(recipe: Path | None, overrides: Mapping[str, Any] | None, kind: type[Config]) -> Config: ...
def load_config(
    recipe: Path | None = None, overrides: Mapping[str, Any] | None = None, kind: type[Any] = TrainConfig
) -> Any:
    """The config of a run: the recipe's settings, with `overrides` in place of them.

    Args:
        recipe: TOML file with the fields of `kind`; those that are settings themselves are its tables, such as
            `[rows]` and `[lora]`.
        overrides: Dotted name to value, as `{"objective": "dft", "rows.limit": 8}`; text is converted.
        kind: `TrainConfig`, or settings of another kind of run.

    Raises:
        UserError: No such file, no TOML, an unknown key, a missing or impossible value; says which and where.
    """
    given = {} if recipe is None else dict(_flatten(read_toml(recipe), kind))
    origin: dict[str, str] = {key: f"{recipe}: {key}" for key in given}
    for key, value in (overrides or {}).items():
        given[key] = value
        origin[key] = flag(key)
    known = [name for name, _ in settings_fields(kind)]
    for key in given:
        if key not in known:
            raise unknown_name("setting", key, known, where=origin[key])
    for key, value in given.items():
        try:
            json.dumps([key, value], ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:  # a file's name of other bytes, for one: no config.json could hold it
            raise UserError("is not Unicode", where=origin[key], hint="use another name") from None
    try:
        return kind.model_validate(_nest(given))
    except ValidationError as error:
        raise _explain(error, origin) from None


def dump_config(config: Settings) -> str:
    """The whole config as JSON, defaults included; `TrainConfig.model_validate_json` reads it back."""
    return config.model_dump_json(indent=2) + "\n"


def flag(key: str) -> str:
    """The command line's name of a setting: `rows.limit` is `--rows.limit`, `n` is `-n`."""
    return "-" * min(2, len(key)) + key.replace("_", "-")


def settings_fields(
    model: type[BaseModel] = TrainConfig, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Dotted name and field of every setting, tables opened up; in the order of their definition."""
    for name, field in model.model_fields.items():
        if _is_table(field):
            yield from settings_fields(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, field


def _is_table(field: FieldInfo) -> bool:
    """Whether a setting is a table of its own in a recipe."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def read_toml(recipe: Path) -> dict[str, Any]:
    try:
        if not recipe.is_file():
            raise UserError("no such recipe", where=recipe)
        return tomllib.loads(recipe.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=recipe) from None
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        what = re.sub(r" \(at .*\)$", "", str(error))
        raise UserError(f"not TOML: {what}", where=f"{recipe}:{line[1]}" if line else recipe) from None
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text", where=recipe) from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond reason
        raise UserError(f"not TOML: {error}", where=recipe) from None


def _flatten(table: Mapping[str, Any], kind: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Dotted names of a recipe's keys. The tables are those of `kind`; any other dict is a value."""
    tables = {name for name, field in kind.model_fields.items() if _is_table(field)}
    for name, value in table.items():
        if isinstance(value, dict) and name in tables:
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def _nest(given: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in given.items():
        table, _, name = key.rpartition(".")
        (nested.setdefault(table, {}) if table else nested)[name] = value
    return nested


def _explain(error: ValidationError, origin: Mapping[str, str]) -> UserError:
    """The first complaint of pydantic as one line that names the key and where it was given."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"][:2] if str(part) not in ("float", "str"))
    if first["type"] == "missing":
        return UserError("missing", where=key, hint=f"give {flag(key)} or {key} = ... in the recipe")
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] != "value_error":
        what = f"{what[:1].lower()}{what[1:]}, got {first['input']!r}"
    while key and key not in origin:  # an element of a tuple or dict has the key of the whole
        key = key.rpartition(".")[0]
    return UserError(what, where=origin.get(key))
