"""The figures in docs/scaling.md are those of its formula, and the formula counts what models really have."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from rectune.config import load_config
from rectune.training.dry_run import memory_estimate
from toys import tiny_model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "scripts" / "make_scaling_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(scaling: Any) -> None:
    assert scaling.page() == scaling.PAGE.read_text("utf-8")


@pytest.mark.parametrize(("arch", "bias"), [("llama", False), ("qwen2", True)])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_models(scaling: Any, arch: str, bias: bool, tied: bool) -> None:
    model = tiny_model(arch, tie_word_embeddings=tied)
    shape = scaling.Shape(2, 32, 64, 16, 272, tied=tied, attention_bias=bias)
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_one_gpu_is_estimated_as_by_the_dry_run(scaling: Any, tmp_path: Path) -> None:
    import torch

    settings = {"data": "unused", "output_dir": tmp_path, "gradient_checkpointing": True, "drift_rows": 0}
    config = load_config(None, settings)
    width = {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 8192, "num_hidden_layers": 4}
    mib = memory_estimate(tiny_model(**width), config, torch.bfloat16, tokens=8192)
    shape = scaling.Shape(4, 256, 1024, 128, 8192, tied=True)
    one = scaling.estimate(shape, 1)
    states = mib["masters"] + mib["gradients"] + mib["moments"]
    assert one.states / 2**20 == pytest.approx(states, abs=3)
    assert one.gathered / 2**20 == pytest.approx(mib["weights"], abs=1)
    assert one.activations / 2**20 == pytest.approx(mib["activations"], abs=1)


def test_published_sizes(scaling: Any) -> None:
    sizes = {name: shape.parameters / 1e9 for name, shape in scaling.SHAPES.items()}
    assert sizes == pytest.approx({"1.5B": 1.54, "7B": 7.62, "70B": 70.6}, rel=0.005)


def test_sharding_divides_states_and_nothing_else(scaling: Any) -> None:
    shape = scaling.SHAPES["7B"]
    few, many, groups = (scaling.estimate(shape, *gpus) for gpus in ((8, 1), (64, 1), (64, 8)))
    assert few.states == pytest.approx(8 * many.states) == pytest.approx(groups.states)
    assert (few.gathered, few.activations, few.head) == (many.gathered, many.activations, many.head)
    assert many.communication > few.communication > 0


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "hsdp"])
def test_launch_files_are_accelerates(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = ROOT / "examples" / "launch" / f"{name}.yaml"
    loaded = load_config_from_file(str(path))
    given = yaml.safe_load(path.read_text())
    assert loaded.num_processes == given["num_processes"]
    assert loaded.fsdp_config == given.get("fsdp_config", {})
