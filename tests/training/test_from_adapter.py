"""Training goes on from an adapter: its weights and settings are taken, and what would contradict them is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rectune.config import DiagnoseConfig, load_config
from rectune.diagnosis.diagnose import diagnose
from rectune.errors import UserError
from rectune.models.load import load_model
from rectune.training.dry_run import plan
from rectune.training.trainer import train
from training_runs import metrics, same_runs, weights

CASE = Path(__file__).parents[1] / "cases" / "21-train-on-adapter" / "rows.jsonl"
ADAPTER = "adapter/adapter_model.safetensors"
FIRST = {"lora_r": 4, "lora_alpha": 8.0, "lora_target_modules": "q_proj,down_proj", "learning_rate": 0.05}


@pytest.fixture
def adapter(run: Any) -> str:
    """An adapter that a first run has trained."""
    return str(Path(run("first", **FIRST).out) / "adapter")


def test_it_starts_at_the_adapter_and_trains_it_alone(run: Any, adapter: str, toy: Any) -> None:
    """huggingface/peft#282"""
    before = metrics(Path(adapter).parent, "holdout")[-1]["nll"]
    again = Path(run("again", model=adapter, learning_rate=0.02).out)
    assert metrics(again, "holdout")[0]["nll"] == pytest.approx(before, abs=1e-6)
    first, second = weights(Path(adapter).parent, ADAPTER), weights(again, ADAPTER)
    assert first.keys() == second.keys()
    assert all(not torch.equal(first[name], second[name]) for name in first)
    assert not (again / "model").exists()
    written = json.loads((again / "config.json").read_text())
    own = {"lora_r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0, "lora_target_modules": "down_proj,q_proj"}
    assert {name: written[name] for name in own} == own
    saved = json.loads((again / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == toy["model"] and saved["r"] == 4
    load_model(again / "adapter")


def test_the_files_of_a_run_from_an_adapter_load_and_merge(run: Any, adapter: str) -> None:
    again = Path(run("again", model=adapter, merge_adapter=True).out)
    ids = torch.tensor([[5, 9, 17]])
    with torch.no_grad():
        tuned, merged = (load_model(again / name)[0](input_ids=ids).logits for name in ("adapter", "model"))
    torch.testing.assert_close(tuned, merged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 4])
def test_it_resumes_to_the_same_bits(run: Any, adapter: str, toy: Any, tmp_path: Path, rank: int) -> None:
    settings = {"model": adapter, "lora_r": rank, "save_steps": 2}
    whole = Path(run("whole", **settings).out)
    names = {key.replace("__", "."): value for key, value in settings.items()}
    died = load_config(None, {**toy, **names, "output_dir": tmp_path / "died"})
    train(died, until=3)
    train(died, resume=True)
    same_runs(whole, died.output_dir)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_r": 8}, "lora_r: is 8, but the adapter .*/adapter has 4"),
        ({"lora_alpha": 32.0}, "lora_alpha: is 32.0, but the adapter .* has 8.0"),
        ({"lora_dropout": 0.1}, "lora_dropout: is 0.1, but the adapter .* has 0.0"),
        (
            {"lora_target_modules": "q_proj"},
            "lora_target_modules: is q_proj, but the adapter .* has down_proj,q_proj",
        ),
    ],
)
def test_settings_that_are_not_the_adapters_are_refused(
    run: Any, adapter: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run("again", model=adapter, **settings)
    same = {"lora_r": 4, "lora_alpha": 8.0, "lora_target_modules": "down_proj, q_proj"}
    run("same", model=adapter, **same, max_steps=1)


@pytest.mark.parametrize("objective", ["asft", "iw_sft", "psft"])
def test_the_reference_is_the_adapter_it_starts_from(run: Any, adapter: str, objective: str) -> None:
    """Not the model below it: at the first step nothing has moved, so the divergence is 0 and every ratio 1."""
    settings = {"model": adapter, "objective": objective, "max_steps": 1, "batch_size": 40}
    tuned = run("tuned", **settings)
    named = run("named", **settings, reference_model=adapter) if objective != "psft" else tuned
    one, other = (metrics(r.out, "train")[0] for r in (tuned, named))
    assert one["objective"] == pytest.approx(other["objective"], rel=1e-5)
    assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_a_dry_run_and_other_kinds_of_adapters(run: Any, adapter: str, toy: Any, tmp_path: Path) -> None:
    given = {**toy, "model": adapter, "output_dir": str(tmp_path / "out"), "objective": "asft"}
    planned = plan(load_config(None, given))
    assert planned["config"]["lora_r"] == 4
    assert not (tmp_path / "out").exists()
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    settings = json.loads((other / "adapter_config.json").read_text())
    del settings["r"]
    (other / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "IA3"}))
    with pytest.raises(UserError, match="is not a LoRA adapter"):
        train(load_config(None, given | {"model": str(other)}))


def test_an_adapter_is_diagnosed(adapter: str, toy: Any, tmp_path: Path) -> None:
    """Loading leaves it frozen, but its gradients are asked for: those of what would be trained."""
    found = diagnose(DiagnoseConfig(model=adapter, data=toy["data"], output_dir=tmp_path / "diagnosis"))
    ratios = [one.gradient_norm_ratio for one in found.objectives]
    assert len(ratios) > 3 and all(ratio is not None and ratio > 0 for ratio in ratios)


def test_the_case(run: Any, adapter: str) -> None:
    for name, settings in (("unset", {}), ("set", {"lora_r": 4})):
        assert run(name, model=adapter, data=str(CASE), eval_split_size=0, **settings).steps == 6
