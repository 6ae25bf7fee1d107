"""Trackers: what TensorBoard's file holds, where it lies, and what happens where one is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import transformers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from rectune.config import RFTConfig, TrainConfig, load_config
from rectune.errors import UserError
from rectune.training.dry_run import plan
from training_runs import metrics


def events(folder: Path) -> EventAccumulator:
    """All events of the one run in a folder (hyperparameters are a run of their own below it)."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return found


def hyperparameters(folder: Path) -> dict[str, Any]:
    (place,) = [path.parent for path in folder.rglob("events.out.tfevents.*") if path.parent != folder]
    content = events(place).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_tensorboard_has_the_figures_and_the_settings(run: Any, tmp_path: Path) -> None:
    shared = tmp_path / "boards" / "all"
    result = run(report_to="tensorboard", project="sums", run_name="first", logging_dir=str(shared))
    assert [path.name for path in shared.iterdir()] == ["sums"]
    found = events(shared / "sums" / "first")
    points = [(event.step, event.value) for event in found.Scalars("train/nll")]
    assert points == [(line["step"], pytest.approx(line["nll"])) for line in metrics(result.out, "train")]
    values = hyperparameters(shared / "sums" / "first")
    assert (values["learning_rate"], values["batch_size"], values["objective"]) == (3e-3, 7, "dft")
    assert (values["gradient_checkpointing"], values["eval_split_size"], values["adam_beta2"]) == (
        False,
        0.2,
        0.95,
    )
    assert (values["reference_model"], values["columns"]) == ("None", "")
    assert set(values) == set(TrainConfig.model_fields)


def test_without_a_folder_it_is_the_runs(run: Any) -> None:
    out = Path(run("mine", report_to="tensorboard").out)
    assert events(out / "rectune" / "mine").Scalars("holdout/nll")


def test_going_on_takes_back_what_comes_again(run: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rectune.training.trainer.totals", lambda *_: 1 / 0)
        with pytest.raises(
            ZeroDivisionError
        ):  # killed behind the last step; the last checkpoint is of step 4
            run(report_to="tensorboard", save_steps=2)
    result = run(report_to="tensorboard", save_steps=2, resume=True)
    found = events(Path(result.out) / "rectune" / "run")
    assert [event.step for event in found.Scalars("train/nll")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_one_that_is_not_installed_is_an_error_at_once(
    run: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "rectune.training.metrics_log.find_spec", lambda n, *rest: None if n == name else real(n, *rest)
    )
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: 1 / 0)
    line = f"report_to: {name} is not installed; pip install {name}"
    with pytest.raises(UserError, match=line):
        run(report_to=f"tensorboard,{name}")
    with pytest.raises(UserError, match=line):
        plan(load_config(None, {**toy, "output_dir": tmp_path / "run", "report_to": name}))
    assert not (tmp_path / "run").exists()


def test_an_offline_runs_training_is_named_by_its_folder(tmp_path: Path) -> None:
    config = load_config(None, {"problems": "p.jsonl", "output_dir": tmp_path / "rft"}, RFTConfig)
    assert config.training(tmp_path / "rows.jsonl", "auto").run_name == "rft"
