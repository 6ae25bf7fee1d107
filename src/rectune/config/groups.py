"""Groups of settings that the verbs share, with the names of TRL, transformers and vLLM.

Each group is a small frozen class, and the config of a verb inherits the groups it needs, so a function that reads one
group (`make_optimizer(masters, config: OptimConfig)`) takes the config of every verb. The docstring below a field is
its `--help` text; there is no second copy.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rectune.config.names import objective_text
from rectune.errors import UserError


class Settings(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def _as_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _as_objective(value: object) -> object:
    if isinstance(value, dict):  # as rectune 0.1 had it
        raise ValueError(f"is no table; give objective = '{objective_text(value)}'")
    if not callable(value):
        return value
    from rectune.objective_spec import text_of  # with torch: slow to import

    try:
        return text_of(value)
    except UserError as error:
        raise ValueError(error.what) from None


def split_names(value: object) -> object:
    return (
        tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value
    )


def _split_pairs(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",")]
    if not all(mark and key.strip() and field.strip() for key, mark, field in pairs):
        raise ValueError(f"'{value}' is not of the form prompt=FIELD,completion=FIELD")
    return {key.strip(): field.strip() for key, _, field in pairs}


PathOrName = Annotated[str, BeforeValidator(_as_text)]
"""Text; a `Path` in Python is accepted too."""

Names = Annotated[tuple[str, ...], BeforeValidator(split_names)]
"""Names; separated by commas on the command line."""

ObjectiveText = Annotated[str, BeforeValidator(_as_objective)]
"""An objective as text; a function in Python is accepted too."""

ObjectiveNames = Annotated[tuple[ObjectiveText, ...], BeforeValidator(split_names)]
"""Several objectives."""

Numbers = Annotated[tuple[float, ...], BeforeValidator(split_names)]
"""Numbers; separated by commas on the command line."""


def _rates(value: object) -> object:
    return {"auto": "auto", "none": ()}.get(value, split_names(value)) if isinstance(value, str) else value


Rates = Annotated[tuple[float, ...] | Literal["auto"], BeforeValidator(_rates)]
"""Learning rates to try, or whether to choose them; "none" tries none."""


def _listed(value: object) -> object:
    return (_as_text(value),) if isinstance(value, str | os.PathLike) else value


Several = Annotated[tuple[PathOrName, ...], BeforeValidator(_listed)]
"""Paths or names, whose flag may be repeated; a single one needs no list."""

StopTexts = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Texts that end an answer; a single one needs no list."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""numpy takes no negative seed; times 1,000,003, for the seed of a step, it still fits the int64 of torch."""


class ModelConfig(Settings):
    """Model"""

    model: PathOrName = "smollm2-135m"
    """Hub id, local folder, or the packaged smollm2-135m."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the weights; training in bfloat16 keeps master weights in float32. auto: bfloat16 where the hardware
    is fast at it."""


class MemoryConfig(Settings):
    """Memory"""

    tokens_per_micro_batch: int = Field(4096, gt=1)
    """Maximum tokens in one forward pass, at least the longest row; larger is faster until memory runs out."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    logits_memory_mb: int = Field(256, gt=0)
    """MiB for the logits of the language-model head, whatever the batch and vocabulary."""


class PromptConfig(Settings):
    """Prompt"""

    chat_template: PathOrName = "auto"
    """auto: the tokenizer's chat template, or a plain one if it has none. eos: the same, but answers end with the eos
    token, as in verl. none: no template. Or the name of one of the tokenizer's templates, or a Jinja file."""
    system_prompt: str | None = None
    """System message for rows and problems that have none."""


class RowConfig(PromptConfig):
    """Rows"""

    ignore_fields: Names = ()
    """Fields to ignore even if they change what a row means, separated by commas."""
    skip_bad_rows: bool = False
    """Skip and count rows that cannot be used, instead of stopping at them."""
    max_length: int = Field(2048, gt=1)
    """Maximum length of a row in tokens."""


class DataConfig(RowConfig):
    """Data"""

    data_format: str = "auto"
    """Row format: auto, mapping, or one of docs/data.md, such as messages, sharegpt, alpaca or question_answer."""
    columns: Annotated[dict[str, str], BeforeValidator(_split_pairs)] = Field(default_factory=dict)
    """Names of the fields in any other layout: prompt=FIELD,completion=FIELD; for pairs chosen=FIELD,rejected=FIELD."""
    split: str = "train"
    """Split of a hub dataset, or of a folder that has splits."""


class SplitConfig(Settings):
    """Training and evaluation rows"""

    eval_split_size: float = Field(0.05, ge=0, lt=1)
    """Share of the rows held out for evaluation, split by question; ignored if eval_data is given."""
    eval_data: PathOrName | None = None
    """File or hub dataset of rows to evaluate on, instead of holding rows out."""
    max_train_samples: int | None = Field(None, gt=0)
    """Use only this many rows, sampled at random with the seed."""
    too_long: Literal["cut", "drop"] = "cut"
    """Rows of more than max_length tokens: cut at the end, or dropped. Both are counted."""


class ObjectiveConfig(Settings):
    """Objective"""

    objective: ObjectiveText = "dft"
    """Loss: a name of `rectune list objectives` (dft, power:alpha=0.5), with weights of the frozen base
    (dft:signal=base) or in a random order (dft:shuffled), phases by share of the steps (sft@0.3+dft@0.7), or a function
    of your own (FILE.py:FUNCTION:beta=0.5)."""
    min_eos_weight: float | None = Field(None, ge=0)
    """Minimum weight of turn-ending and special tokens. 0 is the paper's Eq. 9 exactly. Unset: 1 if the loss vanishes
    with p, as that of dft (else the model could not learn to stop), otherwise 0."""
    old_policy_interval: int = Field(8, gt=0)
    """Steps between updates of the old policy of psft."""
    reference_model: PathOrName | None = None
    """Reference of iw_sft, dpo and asft, and the base of signal=base: a model, or a file of its columns; unset: the
    initial weights."""


class OptimConfig(Settings):
    """Optimizer and learning rate"""

    learning_rate: float = Field(5e-5, gt=0)
    """Peak learning rate. The paper uses 5e-5 for full fine-tuning."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after warm-up; cosine and linear end at zero."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps during which the learning rate rises from zero."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay, on matrices only."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Maximum gradient norm; 0 disables clipping."""


class StepConfig(Settings):
    """Steps and batches"""

    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the rows; ignored if max_steps is given."""
    max_steps: int | None = Field(None, gt=0)
    """Optimizer steps; overrides num_train_epochs."""
    batch_size: int = Field(16, gt=0)
    """Rows per optimizer step over all devices, packed automatically."""
    per_device_train_batch_size: int = Field(4, gt=0)
    """Rows of a micro-batch with normalization micro-batch. The paper's script has 4."""
    normalization: Literal["tokens", "micro-batch"] = "tokens"
    """tokens: sum over the tokens of the step / their number. micro-batch: sum of means, as in the paper's code."""
    max_nonfinite_steps: int = Field(10, gt=0)
    """Stop after this many consecutive steps whose loss or gradient is not finite; each of them is skipped."""


class LoraConfig(Settings):
    """LoRA"""

    lora_r: int = Field(0, ge=0)
    """Rank of the adapters; 0 trains all weights, or the adapter given as model. The paper's appendix uses 8."""
    lora_alpha: float = Field(16.0, gt=0)
    """Adapters are scaled by lora_alpha / lora_r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    lora_target_modules: str = "all-linear"
    """Modules that get an adapter: all-linear, or names separated by commas."""
    merge_adapter: bool = False
    """Also save the model with the adapter merged into its weights."""


class CheckpointConfig(Settings):
    """Run folder"""

    output_dir: Path
    """Run folder; created if missing."""
    seed: Seed = 0
    """Random seed of row order, held-out rows, initial adapters and dropout."""
    save_steps: int = Field(50, ge=0)
    """Steps between checkpoints for --resume; 0 writes none."""
    save_total_limit: int = Field(2, gt=0)
    """Maximum number of checkpoints; older ones are removed."""


class LoggingConfig(Settings):
    """Evaluation and logging"""

    eval_steps: int = Field(0, ge=0)
    """Steps between evaluations on the held-out rows; 0: at the start and the end only."""
    drift_rows: int = Field(16, ge=0)
    """Held-out rows on which drift from the base model is measured at each evaluation; 0 measures none."""
    metric_for_best_model: Literal["last", "nll", "mean_p"] = "last"
    """Weights to save: the last, or the best by held-out NLL or mean p (weighted where rows have weights); never by
    the loss."""
    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio"], ...], BeforeValidator(split_names)
    ] = ()
    """Trackers to log to, through accelerate; each must be installed."""
    project: str = "rectune"
    """Project of the run in the trackers."""
    run_name: str | None = None
    """Name of the run in the trackers; unset: the name of the run folder."""
    logging_dir: Path | None = None
    """Folder of the trackers' files; tensorboard writes to PROJECT/RUN_NAME in it. Unset: the run folder."""


class SamplingConfig(Settings):
    """Sampling"""

    num_samples: int = Field(16, gt=0)
    """Answers to each problem."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 takes the most probable token."""
    max_new_tokens: int = Field(4096, gt=0)
    """Maximum length of an answer in tokens."""
    stop: StopTexts = ()
    r"""Text that ends an answer, in addition to the template's end of turn, such as \nQuestion: (\n is a line end); may
    be repeated."""


class NucleusConfig(SamplingConfig):
    """Sampling"""

    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: smallest set of tokens with cumulative probability >= TOP_P."""


class BackendConfig(Settings):
    """Backend"""

    backend: Literal["hf", "openai", "vllm"] = "hf"
    """hf: transformers in this process. vllm: a vLLM engine in this process. openai: an OpenAI-compatible server."""
    base_url: str | None = None
    """Address of the openai backend's server, such as http://127.0.0.1:8000/v1."""
    served_model_name: str | None = None
    """Name of the model on the server; unset: model."""
    sampling_batch_size: int | None = Field(None, gt=0)
    """Maximum number of sequences generated concurrently."""

    @model_validator(mode="after")
    def _address_is_used(self) -> BackendConfig:
        if self.base_url is not None and self.backend != "openai":
            raise ValueError(
                f"backend = '{self.backend}' uses no server; leave base_url out, or give backend openai"
            )
        return self


class TaskConfig(Settings):
    """Tasks"""

    tasks: Names = ()
    """Benchmarks, see `rectune list tasks`, or JSONL files of your own problems, separated by commas."""
    include_path: Path | None = None
    """Folder with the benchmarks' files; unset: packaged, or loaded from the hub."""
    limit: int | None = Field(None, gt=0)
    """Maximum number of problems of each benchmark."""


class GradingConfig(Settings):
    """Grading"""

    grader: Literal["math", "expression", "exact", "code"] | None = None
    """Grader to use instead of each problem's own."""
    grading_timeout: float = Field(5.0, gt=0)
    """Seconds that grading one answer may take."""
    grading_workers: int | None = Field(None, gt=0)
    """Processes that grade answers; unset: one for each core."""


class SelectionConfig(Settings):
    """Selection"""

    per_problem: int | None = Field(None, gt=0)
    """Maximum number of rows or pairs per problem, sampled at random; unset: all distinct ones, as in the paper."""
    balance: bool = False
    """Repeat rows until every problem has as many as the one with the most."""
    include_unjudged: bool = False
    """For pairs, count answers whose grading timed out or failed as wrong."""
    include_unfinished: bool = False
    """Also use correct answers that reached max_new_tokens."""
