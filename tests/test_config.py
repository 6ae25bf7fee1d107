"""Recipes and flags become one frozen config; what is wrong is one line that says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectune.config import TrainConfig, dump_config, load_config, settings_fields
from rectune.errors import UserError

SETTINGS = """
objective min_eos_weight old_policy_interval
model reference data out seed epochs steps batch_size max_length micro_batch_tokens
learning_rate schedule warmup weight_decay betas clip normalization micro_batch_rows precision
gradient_checkpointing memory_budget
rows.format rows.columns rows.ignore rows.skip_bad_rows rows.template rows.system rows.split rows.too_long
rows.holdout rows.limit
lora.rank lora.alpha lora.dropout lora.targets lora.merge
evaluate_every probe checkpoint_every keep_checkpoints give_up_after choose trackers
project run_name logging_dir
""".split()  # noqa: SIM905
"""All settings there are. A new one has to be worth its line here; 50 is the most there may be."""

NEEDED = {"data": "rows.jsonl", "out": "run"}


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_settings_are_these() -> None:
    assert [name for name, _ in settings_fields()] == SETTINGS
    assert len(SETTINGS) <= 50


def test_every_setting_says_what_it_does() -> None:
    assert [name for name, field in settings_fields() if not field.description] == []


def test_flags_win_over_the_recipe(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        'data = "a.jsonl"\nout = "run"\nbatch_size = 4\nobjective = "power:alpha=0.5"\n'
        '[rows]\ncolumns = { prompt = "q", completion = "a" }\nholdout = "test.jsonl"\n',
    )
    config = load_config(path, {"batch_size": "8", "objective": "dft", "betas": "0.9,0.99"})
    assert (config.data, config.batch_size, config.betas) == ("a.jsonl", 8, (0.9, 0.99))
    assert config.objective == "dft"
    assert config.rows.columns == {"prompt": "q", "completion": "a"}
    assert config.rows.holdout == "test.jsonl"


def test_text_from_flags_is_converted() -> None:
    config = load_config(
        None,
        {
            **NEEDED,
            "rows.holdout": "0.1",
            "rows.columns": "prompt=q, completion=a",
            "trackers": "wandb, trackio",
        },
    )
    assert config.rows.holdout == 0.1
    assert config.rows.columns == {"prompt": "q", "completion": "a"}
    assert config.trackers == ("wandb", "trackio")


def test_the_dumped_config_is_whole_and_reads_back() -> None:
    config = load_config(None, {**NEEDED, "objective": "power:alpha=0.5", "lora.rank": 8})
    text = dump_config(config)
    assert TrainConfig.model_validate_json(text) == config
    assert '"memory_budget": 256' in text
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
            '[rows]\nformt = "x"\n',
            "recipe.toml: rows.formt: unknown setting 'rows.formt'; did you mean 'rows.format'?",
        ),
        (
            'data = "a"\nout = "b"\nbatch_size = "x"\n',
            "recipe.toml: batch_size: input should be a valid integer",
        ),
        (
            'data = "a"\nout = "b"\nbatch_size = 0\n',
            "recipe.toml: batch_size: input should be greater than 0, got 0",
        ),
        ('data = "a"\nout = "b"\nbetas = [0.9, 1.5]\n', "recipe.toml: betas: each is at least 0 and below 1"),
        ('data = "a"\nout = "b"\nrows = 3\n', "recipe.toml: rows: unknown setting 'rows'"),
        (
            'data = "a"\nout = "b"\n[rows]\nholdout = 1.5\n',
            "recipe.toml: rows.holdout: a share of the rows is",
        ),
        ('data = "a"\n', "out: missing; give --out or out = ... in the recipe"),
        ('data = "a"\nout = "b"\nchoose = "nll"\n', "choose = 'nll' needs evaluate_every > 0"),
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
        ({"lora.rank": "x"}, "--lora.rank: input should be a valid integer"),
        ({"schedule": "cosin"}, "--schedule: input should be 'cosine', 'linear' or 'constant', got 'cosin'"),
        ({"rows.columns": "prompt"}, "--rows.columns: 'prompt' is not of the form prompt=FIELD"),
        ({"trackers": "tensorbord"}, "--trackers: input should be 'tensorboard', 'wandb' or 'trackio'"),
        ({"max_length": 1}, "--max-length: input should be greater than 1, got 1"),
        ({"seed": -1}, "--seed: input should be greater than or equal to 0, got -1"),
        ({"seed": 2**63}, "--seed: input should be less than 4294967296"),
        ({"out": "runs/\udcff"}, "--out: is not Unicode"),
        ({"rows.columns": {"prompt": "\udcff"}}, "--rows.columns: is not Unicode"),
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
        out="run",  # type: ignore[arg-type]
        rows={"holdout": Path("kept.jsonl"), "template": Path("chat.jinja")},  # type: ignore[arg-type]
    )
    assert (config.model, config.data, config.out) == ("models/a", "rows.jsonl", Path("run"))
    assert (config.rows.holdout, config.rows.template) == ("kept.jsonl", "chat.jinja")
    assert load_config(None, {**NEEDED, "data": Path("rows.jsonl")}).data == "rows.jsonl"
    with pytest.raises(UserError, match="--data: input should be a valid string, got 3"):
        load_config(None, {**NEEDED, "data": 3})
