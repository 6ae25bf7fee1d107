"""An adapter fits its base model whole, or is refused by name: the base never answers in its place."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from rectune.config import load_config
from rectune.data.loading import read_problems
from rectune.errors import UserError
from rectune.models import load as loading
from rectune.models.load import load_model, load_tokenizer
from rectune.sampling.sample import sample
from rectune.sampling.types import EngineSpec, SamplingParams
from rectune.training.trainer import train
from toys import byte_tokenizer, save_toy, tiny_model, tiny_vision_model

SHORT = SamplingParams(max_new_tokens=4)

CASES = Path(__file__).parents[1] / "cases"
IDS = torch.tensor([[5, 9, 17, 30, 2]])
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_toy(tmp_path_factory.mktemp("base"), tie_word_embeddings=False))


Make = Callable[..., Path]


@pytest.fixture
def make(base: Path, tmp_path: Path) -> Make:
    """An adapter of the base model, or of `of` with the base's name written into its config."""

    def made(of: Any = None, kind: Any = peft.LoraConfig, **settings: Any) -> Path:
        model = of or tiny_model(tie_word_embeddings=False)
        # peft compares vocabularies when it saves
        model.config._name_or_path = model.name_or_path = str(base)
        if kind is peft.LoraConfig:
            settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], **settings}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = peft.get_peft_model(model, kind(**{"task_type": "CAUSAL_LM", **settings}))
            for name, weight in tuned.named_parameters():
                if "lora_B" in name or "lora_embedding_B" in name:
                    torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))
            tuned.save_pretrained(tmp_path / "adapter")
        tuned.eval()
        change(tmp_path / "adapter", base_model_name_or_path=str(base))
        with torch.no_grad():
            torch.save(tuned(input_ids=IDS).logits, tmp_path / "logits")
        return tmp_path / "adapter"

    return made


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rename(folder: Path, name: Callable[[str], str | None]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    save_file({new: tensor for old, tensor in tensors.items() if (new := name(old))}, folder / WEIGHTS)
    return folder


def assert_same_logits(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model, _ = load_model(folder)
    with torch.no_grad():
        found = model(input_ids=IDS).logits
        plain = tiny_model(tie_word_embeddings=False)(input_ids=IDS).logits
    expected = torch.load(folder.parent / "logits", weights_only=True)
    torch.testing.assert_close(found, expected)
    assert (found - plain).abs().max() > 1e-3, "the base model answered"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": "all-linear"},
        {"use_dora": True},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 9}},
        {"layers_to_transform": [1]},
        {"bias": "lora_only"},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"trainable_token_indices": [1, 5]},
        {"task_type": None},
    ],
    ids=str,
)
def test_adapters_of_every_make_load(make: Make, settings: dict[str, Any]) -> None:
    assert_same_logits(make(**settings))


def test_names_with_the_adapters_own_name_in_them_load(make: Make) -> None:
    """As `torch.save(model.state_dict())` leaves them."""
    folder = rename(make(), lambda name: name.replace(".weight", ".default.weight"))
    assert_same_logits(folder)


@pytest.mark.parametrize("names", ["now", "of transformers 4"])
def test_an_adapter_of_a_model_of_text_and_images(tmp_path: Path, names: str) -> None:
    """peft converts the names of earlier versions; they fit."""
    model = tiny_vision_model()
    save_toy(tmp_path / "base", model)
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    ).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    change(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    if names != "now":
        now, before = "model.model.language_model.", "model.language_model.model."
        rename(tmp_path / "adapter", lambda name: name.replace(now, before))
    with torch.no_grad():
        found, expected = (m(input_ids=IDS).logits for m in (load_model(tmp_path / "adapter")[0], tuned))
    torch.testing.assert_close(found, expected)


def expect(folder: Path, base: Path, *words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserError) as caught:
            load_model(folder)
    for word in (str(folder), *words):
        assert word.replace("BASE", str(base)) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800


NAMES: dict[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    "missing": (
        lambda name: name.removeprefix("base_model.model."),
        ("8 tensors match nothing of the base model BASE: model.layers.0.", "'base_model.model.' is missing"),
    ),
    "doubled": (lambda name: f"base_model.model.{name}", ("'base_model.model.' is too much",)),
    "language model": (
        lambda name: name.replace("model.layers", "model.language_model.layers"),
        ("'base_model.model.model.language_model.' where 'base_model.model.model.' is expected",
         "'language_model.' is too much"),
    ),
    "wrapped": (lambda name: f"module.{name}", ("'module.' is too much",)),
    "compiled": (lambda name: name.replace("model.model.", "model._orig_mod.model."), ("'_orig_mod.' is too",)),
    "partly": (
        lambda name: name if "layers.0" in name else name.removeprefix("base_model.model."),
        ("4 of the adapter's 8 tensors match nothing", "model.layers.1.mlp.down_proj.lora_A.weight", "is missing"),
    ),
    "other module": (
        lambda name: name.replace("q_proj", "Wqkv"),
        ("4 of the adapter's 8 tensors match nothing", "no such module: is it another architecture?"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_names_that_fit_nothing(make: Make, base: Path, kind: str) -> None:
    """huggingface/peft#2699, #1579, #1932"""
    name, words = NAMES[kind]
    expect(rename(make(), name), base, *words)


SIZES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "more layers": (
        {"num_hidden_layers": 4},
        ("8 of the adapter's 16 tensors match nothing", "layers.2.", "for 4 layers, the base has 2: another size"),
    ),
    "fewer layers": ({"num_hidden_layers": 1}, ("lacks 4 of the 8 tensors", "layers.1.", "fewer modules")),
    "wider": (
        {"hidden_size": 64},
        ("6 of the adapter's 8 tensors have another shape", "lora_A.weight is [4, 64], not [4, 32]", "another size"),
    ),
    "wider inside": ({"intermediate_size": 96}, ("2 of the adapter's 8 tensors have", "[4, 96], not [4, 64]")),
}  # fmt: skip


@pytest.mark.parametrize("kind", SIZES)
def test_another_size_of_the_base(make: Make, base: Path, kind: str) -> None:
    settings, words = SIZES[kind]
    expect(make(tiny_model(tie_word_embeddings=False, **settings)), base, *words)


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}], ids=str)
def test_a_vocabulary_that_was_resized(make: Make, base: Path, settings: dict[str, Any]) -> None:
    model = tiny_model(tie_word_embeddings=False)
    model.resize_token_embeddings(280, mean_resizing=False)
    words = "embed_tokens", "is [280, 32], not [272, 32]", "the vocabulary was resized to 280 for training"
    expect(make(model, **settings), base, *words)


def test_a_config_that_is_not_the_weights(make: Make, base: Path) -> None:
    folder = make()
    change(folder, r=8)
    expect(folder, base, "is [4, 32], not [8, 32]", "adapter_config.json says r = 8, the tensors have rank 4")
    change(folder, r=4, target_modules=["q_proj"])
    expect(folder, base, "does not have down_proj of this layer among its target_modules")
    change(folder, target_modules=["q_proj", "down_proj"], layers_to_transform=[1])
    expect(folder, base, "layers.0.", "of this layer among its target_modules")
    change(folder, layers_to_transform=None)
    change(folder, target_modules=["Wqkv"])
    expect(folder, base, "the adapter does not match its base model BASE: Target modules {'Wqkv'} not found")
    change(folder, target_modules=["q_proj", "down_proj"], modules_to_save=["embed_tokens"])
    expect(
        folder, base, "lacks 1 of the 9 tensors", "embed_tokens.weight", "modules_to_save are not in the file"
    )
    change(folder, modules_to_save=None, task_type="SEQ_CLS")
    expect(folder, base, "this adapter is for SEQ_CLS")
    change(folder, task_type="CAUSAL_LM", peft_type="NEW")
    expect(folder, base, "the adapter cannot be read by the installed peft")


def test_files_that_are_not_whole(make: Make, base: Path) -> None:
    folder = make()
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-50])
    expect(folder, base, "is damaged or incomplete")
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n")
    expect(folder, base, "this is a Git LFS pointer, not the file itself; git lfs pull")
    save_file({}, folder / WEIGHTS)
    expect(folder, base, "lacks 8 of the 8 tensors")
    shutil.copy(folder / WEIGHTS, folder / "adapters.safetensors")
    (folder / WEIGHTS).rename(folder / "other")
    expect(folder, base, "no adapter_model.safetensors", "adapters.safetensors is MLX's")
    (folder / "other").rename(folder / "adapter_model.bin")
    expect(folder, base, "no adapter_model.safetensors", "adapter_model.bin is pickle")


def test_weights_that_were_not_gathered(make: Make, base: Path) -> None:
    """huggingface/peft#2699: saved from shards, tensors have no elements."""
    folder = make()
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor.new_zeros(0) for name, tensor in tensors.items()}, folder / WEIGHTS)
    words = (
        "8 of the adapter's 8 tensors have another shape",
        "is [0], not",
        "(ZeRO-3, FSDP) that were not gathered",
    )
    expect(folder, base, *words)
    save_file(tensors, folder / WEIGHTS)
    rename(folder, lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module."))
    expect(folder, base, "4 of the adapter's 8 tensors match nothing", "'_fsdp_wrapped_module.' is too much")


def test_trained_tokens_that_the_base_does_not_have(make: Make, base: Path) -> None:
    """huggingface/peft#2898"""
    model = tiny_model(tie_word_embeddings=False)
    model.resize_token_embeddings(300, mean_resizing=False)
    folder = make(model, trainable_token_indices=[5, 290])
    expect(folder, base, "vocabulary")


def test_an_adapter_of_the_prompt(make: Make, base: Path) -> None:
    """Its virtual tokens would be left out where the model's body is run."""
    folder = make(kind=peft.PromptTuningConfig, num_virtual_tokens=4)
    expect(folder, base, "is a PROMPT_TUNING adapter")


@pytest.mark.parametrize("name", ["/nowhere/llama", "nobody/no-such-model"])
def test_a_base_that_is_not_here(make: Make, base: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = make()
    change(folder, base_model_name_or_path=name)
    expect(
        folder, base, f"the base model of the adapter cannot be loaded ({name}", "set base_model_name_or_path"
    )
    change(folder, base_model_name_or_path=str(folder))
    expect(folder, base, "names itself as its base model")
    change(folder, base_model_name_or_path=None)
    expect(folder, base, "does not name its base model")


def test_it_is_refused_before_the_bases_weights_are_read(
    make: Make, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_load_whole", None)
    expect(rename(make(), lambda name: f"base_model.model.{name}"), base, "is too much")


# --- Folders that hold more than an adapter -------------------------------------------------------------


def test_a_config_beside_it_changes_nothing(make: Make, base: Path, tmp_path: Path) -> None:
    """As axolotl leaves its output folder."""
    folder = make()
    shutil.copy(base / "config.json", folder)
    assert_same_logits(folder)
    problems = read_problems(CASES / "46-adapter-beside-config" / "p.jsonl")
    lines = sample(str(folder), problems, out=tmp_path / "s.jsonl", num_samples=1, params=SHORT).read_text()
    plain = sample(str(base), problems, out=tmp_path / "b.jsonl", num_samples=1, params=SHORT).read_text()
    assert json.loads(lines)["fingerprint"] != json.loads(plain)["fingerprint"]


def test_whole_weights_beside_it_are_not_taken_and_that_is_said(
    make: Make, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(base / name, folder)
    with caplog.at_level(logging.WARNING, "rectune"):
        assert_same_logits(folder)
    assert "has an adapter and whole weights (model.safetensors); the adapter is used" in caplog.text
    (folder / WEIGHTS).unlink()
    expect(folder, base, "to use the weights in this folder (model.safetensors), remove adapter_config.json")


def test_sampling_says_so_too(make: Make, base: Path, tmp_path: Path) -> None:
    problems = read_problems(CASES / "20-adapter-keys-mismatch" / "p.jsonl")
    folder = rename(make(), lambda name: name.removeprefix("base_model.model."))
    with pytest.raises(UserError, match="match nothing of the base model"):
        sample(str(folder), problems, out=tmp_path / "s.jsonl")
    assert not (tmp_path / "s.jsonl").exists()


def test_an_adapter_of_the_hub(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id that stands for an adapter, found where the hub's files are kept."""
    import huggingface_hub
    import transformers.utils.peft_utils

    folder = make()
    asked: list[str] = []

    def find(name: str) -> str | None:
        asked.append(name)
        return str(folder / "adapter_config.json") if name == "someone/adapter" else None

    monkeypatch.setattr(transformers.utils.peft_utils, "find_adapter_config_file", find)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
    model, _ = load_model("someone/adapter")
    assert hasattr(model, "peft_config") and asked == ["someone/adapter"]


def test_the_log_names_the_adapter_beside_its_base(
    make: Make, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make()
    with caplog.at_level(logging.INFO, "rectune"):
        load_model(folder)
    assert [r.message for r in caplog.records] == [f"loading {base}", f"with the adapter {folder}"]


def test_engines_that_take_an_adapters_folder(make: Make, base: Path, tmp_path: Path) -> None:
    folder = make()
    problems = read_problems(CASES / "46-adapter-beside-config" / "p.jsonl")
    with pytest.raises(UserError, match="this is an adapter, and the vllm backend takes whole models"):
        sample(str(folder), problems, out=tmp_path / "s.jsonl", engine=EngineSpec("vllm"))
    assert load_tokenizer(str(folder)).get_vocab() == byte_tokenizer().get_vocab()  # that of its base


def test_a_model_that_cannot_be_trained_leaves_no_folder(make: Make, base: Path, tmp_path: Path) -> None:
    folder = rename(make(), lambda name: f"module.{name}")
    rows = CASES / "21-train-on-adapter" / "rows.jsonl"
    settings = {"model": str(folder), "data": str(rows), "output_dir": str(tmp_path / "run"), "max_steps": 1}
    with pytest.raises(UserError, match=r"'module.' is too much"):
        train(load_config(None, settings))
    whole = Path(shutil.copytree(base, tmp_path / "whole"))
    config = json.loads((whole / "config.json").read_text())
    quantised = config | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (whole / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(UserError, match=r"is quantised \(awq, 4 bits\)"):
        train(load_config(None, settings | {"model": str(whole)}))
    assert not (tmp_path / "run").exists()
