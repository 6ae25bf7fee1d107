"""Recipes and flags become one frozen config; what is wrong is one line that says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectune.config import (
    CheckConfig,
    CompareConfig,
    DiagnoseConfig,
    EvalConfig,
    ReproduceConfig,
    RFTConfig,
    RLConfig,
    SampleConfig,
    TrainConfig,
    as_flags,
    dump_config,
    load_config,
    settings_by_group,
)
from rectune.config.names import HINTS, OTHER_NAMES, RENAMED, RENAMED_RL, with_new_names
from rectune.errors import UserError

SETTINGS = """
data data_format columns split
output_dir seed save_steps save_total_limit
model dtype
tokens_per_micro_batch gradient_checkpointing logits_memory_mb
ignore_fields skip_bad_rows max_length
chat_template system_prompt
eval_split_size eval_data max_train_samples too_long
objective min_eos_weight old_policy_interval reference_model
learning_rate lr_scheduler_type warmup_ratio weight_decay adam_beta1 adam_beta2 max_grad_norm
num_train_epochs max_steps batch_size per_device_train_batch_size normalization max_nonfinite_steps
lora_r lora_alpha lora_dropout lora_target_modules merge_adapter
eval_steps drift_rows metric_for_best_model report_to project run_name logging_dir
""".split()  # noqa: SIM905
"""All settings there are. A new one has to be worth its line here; 52 is the most there may be."""

NEEDED = {"data": "rows.jsonl", "output_dir": "run"}


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_settings_are_these() -> None:
    assert [name for names in settings_by_group(TrainConfig).values() for name in names] == SETTINGS
    assert set(SETTINGS) == set(TrainConfig.model_fields)
    assert len(SETTINGS) <= 52


def test_every_setting_says_what_it_does() -> None:
    for kind in (TrainConfig, RFTConfig, RLConfig):
        assert [name for name, field in kind.model_fields.items() if not field.description] == []


def test_flags_win_over_the_recipe(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        'data = "a.jsonl"\noutput_dir = "run"\nbatch_size = 4\neval_data = "test.jsonl"\n'
        'columns = { prompt = "q", completion = "a" }\nobjective = "power:alpha=0.5"\n',
    )
    config = load_config(path, {"batch_size": "8", "objective": "dft", "adam_beta2": "0.99"})
    assert (config.data, config.batch_size, config.adam_beta2) == ("a.jsonl", 8, 0.99)
    assert config.objective == "dft"
    assert config.columns == {"prompt": "q", "completion": "a"}
    assert config.eval_data == "test.jsonl"


def test_text_from_flags_is_converted() -> None:
    config = load_config(
        None,
        {
            **NEEDED,
            "eval_split_size": "0.1",
            "columns": "prompt=q, completion=a",
            "report_to": "wandb, trackio",
        },
    )
    assert config.eval_split_size == 0.1
    assert config.columns == {"prompt": "q", "completion": "a"}
    assert config.report_to == ("wandb", "trackio")


def test_the_dumped_config_is_whole_and_reads_back() -> None:
    config = load_config(None, {**NEEDED, "objective": "power:alpha=0.5", "lora_r": 8})
    text = dump_config(config)
    assert TrainConfig.model_validate_json(text) == config
    assert '"logits_memory_mb": 256' in text
    assert '"objective": "power:alpha=0.5"' in text


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(None, NEEDED).batch_size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('data = "a"\nout = = "b"\n', "recipe.toml:2: not TOML: Invalid value"),
        (
            "bach_size = 3\n",
            "recipe.toml: bach_size: unknown setting 'bach_size'; did you mean 'batch_size'?",
        ),
        (
            'data_formt = "x"\n',
            "recipe.toml: data_formt: unknown setting 'data_formt'; did you mean 'data_format'?",
        ),
        (
            'data = "a"\noutput_dir = "b"\nbatch_size = "x"\n',
            "recipe.toml: batch_size: must be a whole number (got 'x')",
        ),
        (
            'data = "a"\noutput_dir = "b"\nbatch_size = 0\n',
            "recipe.toml: batch_size: must be at least 1 (got 0)",
        ),
        (
            'data = "a"\noutput_dir = "b"\nadam_beta2 = 1.5\n',
            "recipe.toml: adam_beta2: must be below 1 (got 1.5)",
        ),
        ('data = "a"\noutput_dir = "b"\nrows = 3\n', "recipe.toml: rows: unknown setting 'rows'"),
        (
            "[rows]\ntemplate = 'none'\n",
            "recipe.toml: rows: settings are not in tables; template: use chat_template",
        ),
        ("lr = 1e-4\n", "recipe.toml: lr: unknown setting 'lr'; use learning_rate"),
        ("micro_batch_tokens = 1\n", "unknown setting 'micro_batch_tokens'; use tokens_per_micro_batch"),
        ("gradient_accumulation_steps = 2\n", "batch_size is the number of rows per step"),
        (
            'data = "a"\noutput_dir = "b"\neval_split_size = 1.5\n',
            "recipe.toml: eval_split_size: must be below 1 (got 1.5)",
        ),
        ('data = "a"\n', "output_dir: missing; give --output-dir or output_dir = ... in the recipe"),
        ('data = "a"\noutput_dir = "b"\nmetric_for_best_model = "nll"\n', "needs eval_steps > 0"),
    ],
)
def test_a_bad_recipe_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(recipe(tmp_path, text))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"lora_r": "x"}, "--lora-r: must be a whole number (got 'x')"),
        (
            {"lr_scheduler_type": "cosin"},
            "--lr-scheduler-type: must be 'cosine', 'linear' or 'constant' (got 'cosin')",
        ),
        ({"columns": "prompt"}, "--columns: 'prompt' is not of the form prompt=FIELD"),
        ({"report_to": "tensorbord"}, "--report-to: must be 'tensorboard', 'wandb' or 'trackio'"),
        ({"max_length": 1}, "--max-length: must be at least 2 (got 1)"),
        ({"learning_rate": True}, "--learning-rate: must be a number (got True)"),
        ({"max_steps": True}, "--max-steps: must be a number (got True)"),
        (
            {"objective": {"name": "power", "alpha": 0.3}},
            "--objective: is no table; give objective = 'power:alpha=0.3'",
        ),
        ({"seed": -1}, "--seed: must be at least 0 (got -1)"),
        ({"seed": 2**63}, "--seed: must be below 4294967296"),
        ({"output_dir": "runs/\udcff"}, "--output-dir: the name is not Unicode"),
        ({"columns": {"prompt": "\udcff"}}, "--columns: the name is not Unicode"),
    ],
)
def test_a_bad_flag_is_one_line(overrides: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, {**NEEDED, **overrides})
    assert str(caught.value).startswith(line)


def test_a_missing_or_binary_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such recipe"):
        load_config(tmp_path / "nothing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(tmp_path / "binary.toml")


def test_paths_are_taken_for_text() -> None:
    """From Python a file is often a `Path`."""
    config = TrainConfig(
        model=Path("models/a"),  # type: ignore[arg-type]
        data=Path("rows.jsonl"),  # type: ignore[arg-type]
        output_dir="run",  # type: ignore[arg-type]
        eval_data=Path("kept.jsonl"),  # type: ignore[arg-type]
        chat_template=Path("chat.jinja"),  # type: ignore[arg-type]
    )
    assert (config.model, config.data, config.output_dir) == ("models/a", "rows.jsonl", Path("run"))
    assert (config.eval_data, config.chat_template) == ("kept.jsonl", "chat.jinja")
    assert load_config(None, {**NEEDED, "data": Path("rows.jsonl")}).data == "rows.jsonl"
    with pytest.raises(UserError, match="--data: input should be a valid string, got 3"):
        load_config(None, {**NEEDED, "data": 3})


def test_the_config_of_a_run_of_version_0_1_is_read() -> None:
    old = {
        "model": "m", "data": "d", "out": "run", "steps": 5, "precision": "bf16", "betas": [0.9, 0.95],
        "rows": {"template": "none", "system": "Be brief.", "holdout": "kept.jsonl"}, "lora": {"rank": 8},
        "objective": {"name": "power", "phases": None, "protect": 1.0, "refresh": 4, "alpha": "0.3"},
    }  # fmt: skip
    new = with_new_names(old)
    assert new == {
        "model": "m", "data": "d", "output_dir": "run", "max_steps": 5, "dtype": "bfloat16", "adam_beta1": 0.9,
        "adam_beta2": 0.95, "chat_template": "none", "system_prompt": "Be brief.", "eval_data": "kept.jsonl",
        "lora_r": 8, "objective": "power:alpha=0.3", "min_eos_weight": 1.0, "old_policy_interval": 4,
    }  # fmt: skip
    assert with_new_names(new) == new
    phases = {"name": "dft", "phases": "sft:0.3,dft:0.7", "protect": None, "refresh": 8}
    assert with_new_names({**old, "objective": phases})["objective"] == "sft@0.3+dft@0.7"
    rl = with_new_names({"algorithm": "grpo", "out": "run", "n": 4, "engine": "local", "kl": "plain"})
    assert (rl["num_samples"], rl["backend"], rl["use_bias_correction_kl"]) == (4, "hf", False)


def test_every_name_elsewhere_leads_to_a_setting() -> None:
    kinds = [
        CheckConfig,
        CompareConfig,
        DiagnoseConfig,
        EvalConfig,
        ReproduceConfig,
        RFTConfig,
        RLConfig,
        SampleConfig,
    ]
    known = {name for kind in [TrainConfig, *kinds] for name in kind.model_fields}
    flags = {"no_logprobs", "no_gradients", "no_match_entropy", "include_unjudged", "output"}
    assert {*RENAMED.values(), *RENAMED_RL.values(), *OTHER_NAMES.values()} <= known | flags
    elsewhere = {"objective", "data", "data_format"}  # of verbs that have other settings in their place
    assert not (set(OTHER_NAMES) | set(HINTS)) & set(TrainConfig.model_fields) - elsewhere


def test_flags_are_typed_as_they_are_read() -> None:
    config = load_config(None, {**NEEDED, "columns": "prompt=q", "report_to": "wandb", "merge_adapter": True})
    words = as_flags(config, ["columns", "report_to", "merge_adapter", "skip_bad_rows"])
    assert words == ["--columns", "prompt=q", "--report-to", "wandb", "--merge-adapter"]
