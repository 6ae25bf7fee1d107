"""Folders, adapters and hub ids become models; what is incomplete or unsafe is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from rectune.config import LoraConfig
from rectune.errors import UserError
from rectune.models.loading import fingerprint, load_model, model_sources
from rectune.models.lora import add_lora, merge_lora
from toys import byte_tokenizer, tiny_model

IDS = torch.tensor([[5, 9, 17, 30, 2]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as `save_pretrained` leaves it."""
    path = tmp_path / "model"
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_folder_gives_the_saved_model_and_tokenizer(folder: Path) -> None:
    model, tokenizer = load_model(folder)
    assert torch.equal(logits(model), logits(tiny_model()))
    assert not model.training
    assert tokenizer("48")["input_ids"] == byte_tokenizer()("48")["input_ids"]
    assert tokenizer.chat_template == byte_tokenizer().chat_template


def test_dtype_is_the_stored_one_unless_asked(folder: Path) -> None:
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    assert load_model(str(folder))[0].dtype == torch.bfloat16
    assert load_model(str(folder), dtype="float32")[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer*", "no tokenizer"),
    ],
)
def test_a_folder_that_lacks_something(folder: Path, gone: str, message: str) -> None:
    for file in folder.glob(gone):
        file.unlink()
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


def test_pickle_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickle weights \(pytorch_model.bin\)"):
        load_model(folder)


def test_weights_without_a_head_are_refused(folder: Path) -> None:
    tiny_model(tie_word_embeddings=False).model.save_pretrained(
        folder
    )  # the body alone: a random head otherwise
    with pytest.raises(UserError, match=r"the weights lack 1 tensors of the model: lm_head.weight"):
        load_model(folder)


def test_no_causal_language_model(folder: Path) -> None:
    transformers.T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(folder)
    with pytest.raises(UserError, match="T5ForConditionalGeneration is not a causal language model"):
        load_model(folder)
    transformers.BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(folder)
    with pytest.raises(UserError, match="BertForMaskedLM is not a causal language model"):
        load_model(folder)


def test_remote_code_is_not_run_unasked(folder: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(UserError, match="comes with code of its own; read it"):
        load_model(folder)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "a/b/c"])
def test_a_path_that_is_no_folder(name: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_model(name)


def test_a_hub_id_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="neither a local folder nor one of the packaged models") as caught:
        load_model("rectune/no-such-model")
    assert "\n" not in str(caught.value)


def test_an_adapter_folder_brings_its_base(folder: Path, tmp_path: Path) -> None:
    base, _ = load_model(folder)
    tuned = add_lora(base, LoraConfig(rank=2, targets="q_proj,down_proj"), seed=1)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    loaded, tokenizer = load_model(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(tuned.eval()))
    assert not torch.equal(logits(loaded), logits(tiny_model()))
    assert tokenizer.chat_template == byte_tokenizer().chat_template
    merged = merge_lora(loaded)
    assert type(merged) is type(tiny_model())
    torch.testing.assert_close(logits(merged), logits(tuned))


def test_an_adapter_without_weights_or_base(folder: Path, tmp_path: Path) -> None:
    add_lora(load_model(folder)[0], LoraConfig(rank=2), seed=0).save_pretrained(tmp_path / "adapter")
    shutil.copytree(tmp_path / "adapter", tmp_path / "empty")
    (tmp_path / "empty" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no adapter_model.safetensors"):
        load_model(tmp_path / "empty")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": None})
    )
    with pytest.raises(UserError, match="does not say which model"):
        load_model(tmp_path / "adapter")


def test_the_fingerprint_follows_weights_and_config(folder: Path) -> None:
    first = fingerprint(tiny_model())
    assert first == fingerprint(tiny_model()) == fingerprint(load_model(folder)[0])
    assert len({first, fingerprint(tiny_model(seed=1)), fingerprint(tiny_model(rope_theta=5e5))}) == 3
    changed = tiny_model()
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    assert fingerprint(changed) != first


def test_the_models_to_choose_from() -> None:
    assert [row["model"] for row in model_sources()] == ["smollm2-135m", "FOLDER", "ORG/NAME"]
