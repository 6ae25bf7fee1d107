"""The config of each verb: the groups it takes, and what is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from rectune.config.groups import (
    BackendConfig,
    CheckpointConfig,
    DataConfig,
    GradingConfig,
    LoggingConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    Names,
    NucleusConfig,
    ObjectiveConfig,
    ObjectiveNames,
    OptimConfig,
    PathOrName,
    PromptConfig,
    RowConfig,
    SamplingConfig,
    Seed,
    SelectionConfig,
    Settings,
    SplitConfig,
    StepConfig,
    TaskConfig,
    split_names,
)


class TrainerConfig(
    CheckpointConfig, ModelConfig, MemoryConfig, RowConfig, SplitConfig, ObjectiveConfig, OptimConfig, StepConfig,
    LoraConfig, LoggingConfig,
):  # fmt: skip
    """What every training by gradient on rows has."""

    @model_validator(mode="after")
    def _best_needs_evaluations(self) -> TrainerConfig:
        if self.metric_for_best_model != "last" and self.eval_steps == 0:
            raise ValueError(f"metric_for_best_model = '{self.metric_for_best_model}' needs eval_steps > 0")
        return self


class TrainConfig(TrainerConfig, DataConfig):
    """Data"""

    data: PathOrName
    """Rows to train on: JSONL, JSON, CSV or Parquet, a folder of them, a hub id, or gsm8k-calculations (packaged)."""


class RFTConfig(TrainerConfig, NucleusConfig, BackendConfig, GradingConfig, SelectionConfig):
    """Problems"""

    problems: PathOrName
    """Problems with gold answers: a JSONL file, or the name of a benchmark."""
    include_path: Path | None = None
    """Folder with the benchmark's file, where problems is the name of a benchmark."""
    samples: PathOrName | None = None
    """samples.jsonl of an earlier run to start from; missing answers are sampled."""
    num_samples: int = Field(4, gt=0)
    """Answers to each problem. The paper samples 4."""
    max_new_tokens: int = Field(1024, gt=0)
    """Maximum length of an answer in tokens; together with the problem it should fit into max_length."""
    sampling_seed: Seed = 0
    """Random seed for sampling and selection; seed is for training alone, so that runs can share answers."""

    def training(self, data: Path, data_format: str) -> TrainConfig:
        """The settings of the last stage, which trains on `data` in `output_dir/train`."""
        shared = {name: getattr(self, name) for name in TrainerConfig.model_fields}
        own = {"data": data, "data_format": data_format, "output_dir": self.output_dir / "train"}
        return TrainConfig.model_validate(
            {**shared, **own, "run_name": self.run_name or self.output_dir.name}
        )


class RLConfig(
    CheckpointConfig,
    ModelConfig,
    MemoryConfig,
    PromptConfig,
    SamplingConfig,
    BackendConfig,
    OptimConfig,
    LoraConfig,
):
    """Reinforcement learning"""

    problems: PathOrName
    """Problems to learn on: a JSONL file with prompt and answer, or the name of a benchmark."""
    algorithm: Literal["grpo", "ppo"] = "grpo"
    """grpo: advantages within the group of answers to a problem. ppo: a value head and GAE."""
    reward: str = "grader"
    """grader: 1 if the problem's grader says correct, else 0. Else another grader's name, or FILE.py:FUNCTION."""
    grading_timeout: float = Field(5.0, gt=0)
    """Seconds that grading one answer may take; an answer that takes longer is left out of the loss, and counted."""
    problems_per_step: int = Field(8, gt=0)
    """Problems of a rollout."""
    num_iterations: int = Field(1, gt=0)
    """Passes over a rollout."""
    num_mini_batches: int = Field(1, gt=0)
    """Updates in a pass over a rollout, each on a random part of the answers."""
    epsilon: float = Field(0.2, gt=0, lt=1)
    """Clip of the ratio p / p_old, from 1 - epsilon to 1 + epsilon."""
    epsilon_high: float | None = Field(None, gt=0)
    """Upper clip, where it is not epsilon (DAPO: 0.28)."""
    beta: float = Field(0.0, ge=0)
    """KL coefficient against the initial model: in the loss (grpo, k3), or per token in the reward (ppo)."""
    use_bias_correction_kl: bool = True
    """grpo: k3 times p / p_old, whose gradient is that of the KL; otherwise k3 alone, as in the GRPO paper."""
    scale_rewards: Literal["group", "none", "leave-one-out"] = "group"
    """grpo: (reward - mean) / std of the group; none: without the std; leave-one-out: minus the mean of the others."""
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """dapo: mean over tokens. grpo: over the answers' means. dr_grpo: sum / (answers x max_new_tokens)."""
    gamma: float = Field(1.0, gt=0, le=1)
    """ppo: discount per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """ppo: lambda of generalised advantage estimation."""
    value_learning_rate: float = Field(1e-4, gt=0)
    """ppo: peak learning rate of the value head; the body has learning_rate."""
    vf_coef: float = Field(0.1, ge=0)
    """ppo: weight of the value loss."""
    cliprange_value: float = Field(0.2, ge=0)
    """ppo: largest change of a value that counts per rollout; 0 does not clip."""
    entropy_coef: float = Field(0.0, ge=0)
    """ppo: weight of the mean entropy per token, which is maximised."""
    whiten_advantages: bool = True
    """ppo: advantages to mean 0 and standard deviation 1 over the rollout's tokens."""

    eval_problems: PathOrName | None = None
    """Held-out problems, on which accuracy is measured during the run: a JSONL file, or a benchmark."""
    eval_num_samples: int = Field(1, gt=0)
    """Answers to each held-out problem, at the same temperature."""
    eval_steps: int = Field(0, ge=0)
    """Steps between measurements on the held-out problems; 0: at the start and the end only."""
    save_rollout_steps: int = Field(10, ge=0)
    """Steps between rollouts that are kept in the run folder's rollouts; 0 keeps none."""

    save_steps: int = Field(10, ge=0)
    """Steps between checkpoints that --resume continues from; 0 writes none."""
    num_samples: int = Field(4, gt=0)
    """Answers to each problem: the size of a group (TRL's num_generations)."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; log-probabilities in the loss are those of the tempered model."""
    max_new_tokens: int = Field(1024, gt=0)
    """Maximum length of an answer in tokens."""
    backend: Literal["hf", "openai"] = "hf"
    """hf samples from the weights in training. openai: SGLang or vLLM, which reloads them after each step."""
    base_url: str | None = None
    """Address of the openai backend's server, such as http://127.0.0.1:30000/v1."""
    sampling_batch_size: int = Field(128, gt=0)
    """Maximum number of sequences generated concurrently (hf), or of requests in flight (openai)."""
    max_steps: int = Field(100, gt=0)
    """Rollouts; each is followed by num_iterations passes of updates."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate. The paper uses 1e-6 for PPO and GRPO."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "constant"
    """Learning-rate schedule after warm-up; cosine and linear end at zero."""

    @model_validator(mode="after")
    def _consistent(self) -> RLConfig:
        if self.algorithm == "grpo" and self.num_samples < 2:
            raise ValueError("grpo compares answers to one problem: num_samples must be at least 2")
        if self.backend == "openai" and self.base_url is None:
            raise ValueError("backend = 'openai' needs base_url")
        if self.backend == "openai" and self.lora_r:
            raise ValueError("backend = 'openai' reloads whole models and cannot be used with lora_r")
        if self.num_mini_batches > self.problems_per_step * self.num_samples:
            raise ValueError("more num_mini_batches than answers in a rollout")
        return self


class AnswerConfig(ModelConfig, PromptConfig, NucleusConfig, BackendConfig):
    """Model"""

    model: PathOrName
    """Hub id, folder, packaged model, or the folder of a training run, whose prompt is then used. The openai backend
    reads its tokenizer only."""
    seed: Seed = 0
    """Random seed for sampling; answers do not depend on batch size and order."""
    logprobs: bool = True
    """Without, servers that return no log-probabilities are accepted; samples are saved without them."""


class SampleConfig(AnswerConfig):
    """Problems"""

    problems: PathOrName
    """JSONL file of problems, or the name of a benchmark."""
    include_path: Path | None = None
    """Folder with the benchmark's file."""
    output: Path
    """JSONL file of samples; answers that it lacks are appended."""


class EvalConfig(AnswerConfig, TaskConfig):
    """Evaluation"""

    output_dir: Path
    """Folder of the evaluation; run again, it resumes."""
    prompt: str | None = None
    """The user's turn with {question} in it, instead of the run's or the benchmark's."""
    check_overlap: str | None = None
    """Training rows in which to look for the problems' texts."""


class CompareConfig(SamplingConfig, TaskConfig, TrainConfig):
    """Comparison"""

    objectives: ObjectiveNames = ("sft", "dft")
    """Objectives separated by commas, each as --objective of `rectune train` takes it; a pair is judged as later minus
    earlier."""
    seeds: int = Field(1, gt=0)
    """Runs of each objective; seed is the first one."""
    tasks_in: Names = ()
    """Benchmarks, or JSONL files of problems, of the training rows' domain, separated by commas."""
    tasks_out: Names = ()
    """The same, of other domains."""
    sweep: Annotated[tuple[float, ...], BeforeValidator(split_names)] = ()
    """Learning rates to try each objective with, separated by commas; the best on validation is taken."""
    sweep_steps: int | None = Field(None, gt=0)
    """Steps of each trial; unset: a quarter of a run's."""
    race: str | None = None
    """Stop objectives early that are clearly worse on validation. The budget of all: 30m, 2h or 800steps."""
    validation: PathOrName | None = None
    """Benchmark or file for sweep and race; unset: a quarter of the problems in domain."""
    match_entropy: bool = True
    """Also sample every model as sharply as dft, or, where that is not compared, as the sharpest objective."""

    @property
    def training(self) -> TrainConfig:
        """The settings that all runs share."""
        return TrainConfig.model_validate(
            {name: getattr(self, name) for name in self.model_fields_set & {*TrainConfig.model_fields}}
        )


class CheckConfig(DataConfig):
    """Data"""

    data: PathOrName
    """Rows or pairs as `rectune train` takes them, or a file of problems."""
    model: PathOrName | None = None
    """Also write a row with this model's template, its targets marked; the weights are not loaded."""
    kind: Literal["rows", "pairs", "problems"] | None = None
    """What the data are, where their fields do not tell."""


class DiagnoseConfig(ModelConfig, DataConfig):
    """Diagnosis"""

    data: PathOrName
    """Rows to diagnose, as `rectune train` takes them."""
    output_dir: Path
    """Folder of the diagnosis."""
    goal: Literal["generalise", "fit"] | None = None
    """What you want of the data: to generalise from it, or to fit its distribution."""
    rows: int | None = Field(None, gt=0)
    """Number of rows to measure; unset: as many as fit into `seconds`."""
    seconds: float = Field(90.0, gt=0)
    """Time for the pass over rows."""
    objectives: ObjectiveNames = ()
    """Objectives to show, separated by commas, such as sft,dft,power:alpha=0.3; unset: the usual ones."""
    check_overlap: Names = ()
    """Benchmarks whose problems to look for in the rows, separated by commas."""
    include_path: Path | None = None
    """Folder with the benchmarks' files."""
    gradients: bool = True
    """Measure gradient norms, which takes a backward pass for each objective."""
    seed: Seed = 0
    """Random seed of the choice of rows."""
    logits_memory_mb: int = Field(256, gt=0)
    """MiB for the logits of the language-model head, whatever the batch and vocabulary."""


class ReproduceConfig(Settings):
    """Reproduction"""

    recipe: PathOrName
    """Name, such as table2, see `rectune list recipes`, or the path of a recipe."""
    output_dir: Path
    """Folder of the runs and the page; run again, it resumes."""
    scale: Literal["full", "mini"] = "mini"
    """mini trains a small model of our own on two cores, full is the paper's models and data."""
    seeds: int | None = Field(None, gt=0)
    """Runs of each method; unset: 3 at mini scale, 1 at full scale."""
    arms: Names = ()
    """Only these methods, separated by commas, such as SFT,DFT; later calls in the same folder add others."""
    budget: float = Field(1.0, gt=0, le=1)
    """Share of rows, problems and steps at mini scale, to try it out."""
    include_path: Path | None = None
    """Folder with the benchmarks' files, at full scale."""
    backend: Literal["hf", "vllm"] = "hf"
    """Samples answers at full scale."""
    gpus: int = Field(8, gt=0)
    """For the estimate and the launch lines, at full scale."""
