"""Folders, adapters and hub ids become models; what is incomplete or unsafe is refused by name."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rectune.config import LoraConfig
from rectune.errors import UserError
from rectune.models.folder import model_sources
from rectune.models.load import choose_dtype, fingerprint, load_model
from rectune.models.lora import add_lora, merge_lora
from toys import byte_tokenizer, save_toy, tiny_model

IDS = torch.tensor([[5, 9, 17, 30, 2]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as `save_pretrained` leaves it."""
    return Path(save_toy(tmp_path / "model"))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_folder_gives_the_saved_model_and_tokenizer(folder: Path) -> None:
    model, tokenizer = load_model(folder)
    assert torch.equal(logits(model), logits(tiny_model()))
    assert not model.training
    assert tokenizer("48")["input_ids"] == byte_tokenizer()("48")["input_ids"]
    assert tokenizer.chat_template == byte_tokenizer().chat_template


def edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rewrite(
    folder: Path, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]], **more: torch.Tensor
) -> None:
    tensors = dict(change(*item) for item in load_file(folder / "model.safetensors").items())
    save_file(tensors | more, folder / "model.safetensors", metadata={"format": "pt"})


def remove(folder: Path, pattern: str) -> None:
    for file in folder.glob(pattern):
        file.unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def pointer(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n")


def saved(folder: Path, config: Any) -> None:
    config.save_pretrained(folder)


PROJECTION = "model.layers.0.self_attn.q_proj."
LORA = {f"{PROJECTION}lora_A.weight": torch.zeros(2, 32)}
CODES = (torch.uint8, torch.int8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2)
FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (lambda f: remove(f, "config.json"), "no config.json"),
    (lambda f: remove(f, "model.safetensors"), "no weights"),
    (lambda f: remove(f, "tokenizer*"), "no tokenizer"),
    (pickled, r"only pickle weights \(pytorch_model.bin\)"),
    # the body alone: a random head otherwise
    (lambda f: tiny_model(tie_word_embeddings=False).model.save_pretrained(f),
     "the weights lack 1 tensors of the model: lm_head.weight"),
    (lambda f: saved(f, transformers.T5Config(architectures=["T5ForConditionalGeneration"])),
     "T5ForConditionalGeneration is not a causal language model"),
    (lambda f: saved(f, transformers.BertConfig(architectures=["BertForMaskedLM"])),
     "BertForMaskedLM is not a causal language model"),
    # of these the body alone would load, and with tied embeddings nothing would be missing
    *((lambda f, kind=kind: edit(f, architectures=[f"Llama{kind}"]), f"Llama{kind} is not a causal language model")
      for kind in ("ForSequenceClassification", "ForTokenClassification", "ForRewardModel")),
    # quantised weights of which the config says so under other names, or not at all
    *((lambda f, key=key: edit(f, **{key: {"group_size": 64, "bits": 4}}), r"is quantised \(.*4 bits\)")
      for key in ("quantization", "compression_config")),
    *((lambda f, dtype=dtype: rewrite(f, lambda k, t: (k, t.to(dtype) if "q_proj" in k else t)),
       rf"model.safetensors: the model is quantised \({PROJECTION}weight is") for dtype in CODES),
    (lambda f: rewrite(f, lambda k, t: (k.replace("q_proj.w", "q_proj.qw"), t.int() if "q_proj" in k else t)),
     rf"is quantised \({PROJECTION}qweight is I32\)"),
    # not whole, or not merged
    (lambda f: rewrite(f, lambda k, t: (k, t), **LORA), "contain an unmerged adapter"),
    (lambda f: rewrite(f, lambda k, t: (k.replace(PROJECTION, f"{PROJECTION}base_layer."), t)),
     "contain an unmerged adapter"),
    (lambda f: rewrite(f, lambda k, t: (k, t.new_zeros(0))), r"is \[0\], not .*the weights are empty: .*ZeRO-3"),
    *((lambda f, name=name: pointer(f, name), f"{name}: this is a Git LFS pointer, .*git lfs pull")
      for name in ("model.safetensors", "tokenizer.json")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"), FAULTS, ids=[f"{i} {m[:40]}" for i, (_, m) in enumerate(FAULTS)]
)
def test_what_is_wrong_with_a_folder_is_named(
    folder: Path, change: Callable[[Path], None], message: str
) -> None:
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


def test_dtype_is_the_stored_one_unless_asked(folder: Path) -> None:
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    assert load_model(str(folder))[0].dtype == torch.bfloat16
    assert load_model(str(folder), dtype="float32")[0].dtype == torch.float32


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
    tuned = add_lora(base, LoraConfig(lora_r=2, lora_target_modules="q_proj,down_proj"), seed=1)
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


# --- Quantised weights are codes ------------------------------------------------------------------------

QUANTISED: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
    "its first form": ({"load_in_8bit": True}, "bitsandbytes, 8 bits"),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits"),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq, 4 bits"),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    "mxfp4": ({"quant_method": "mxfp4"}, "mxfp4"),
    "compressed": ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
    "modelopt": ({"quant_algo": "NVFP4"}, "NVFP4"),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_models_are_refused_from_their_config(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, named = QUANTISED[kind]
    edit(folder, quantization_config=given)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)  # weights are not read
    with pytest.raises(UserError, match=rf"the model is quantised \({named}\), which is not supported"):
        load_model(folder)


def test_a_quantised_base_of_an_adapter(folder: Path, tmp_path: Path) -> None:
    add_lora(load_model(folder)[0], LoraConfig(lora_r=2), seed=0).save_pretrained(tmp_path / "adapter")
    edit(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    words = r"the base model of the adapter cannot be loaded .*is quantised \(bitsandbytes, 4 bits\)"
    with pytest.raises(UserError, match=words):
        load_model(tmp_path / "adapter")


# --- Folders that are not whole, or not of one piece ----------------------------------------------------


def test_weights_and_config_of_different_models(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(folder, hidden_size=64)
    with pytest.raises(
        UserError, match=r"tensors are not of the shape in config.json: .* is \[.*32\], not \[.*64\]"
    ):
        load_model(folder)
    edit(folder, hidden_size=32, num_hidden_layers=1)
    with caplog.at_level(logging.WARNING, "rectune"):
        load_model(folder)
    assert "9 tensors of the weights are unknown to the model of config.json: model.layers.1" in (caplog.text)


def test_shards_that_are_absent(folder: Path) -> None:
    names = sorted(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        load_model(folder)
    files = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": files | {names[-1]: "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="1 of 2 files of weights are not there: model-00002-of-00002"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    pickles = {"metadata": {}, "weight_map": dict.fromkeys(names, "pytorch_model-00001-of-00002.bin")}
    # as repositories with both have it
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(pickles))
    load_model(folder)


def test_a_file_in_place_of_a_folder_and_gguf(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"this is a file, not the folder of a model; give the folder it is in"
    ):
        load_model(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "m.gguf")
    with pytest.raises(UserError, match=r"no weights .*m.gguf is for llama.cpp"):
        load_model(folder)
    with pytest.raises(UserError, match=r"convert it to safetensors first"):
        load_model(folder / "m.gguf")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config.json.*m.gguf is for llama.cpp"):
        load_model(folder)


def test_folders_of_something_else(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"adapter_model.safetensors belongs to .* adapter_config.json is missing"
        ):
            load_model(folder)
        (folder / "config.json").unlink(missing_ok=True)
    for name in ("adapter", "model"):
        (tmp_path / "run" / name).mkdir(parents=True)
        with pytest.raises(UserError, match=f"{name} is the {name} of this run: give that folder"):
            load_model(tmp_path / "run")


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("fast", [True, False])
def test_auto_takes_bfloat16_where_the_hardware_multiplies_it(
    kind: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
    dtype, why = choose_dtype("auto", torch.device(kind))
    assert dtype == (torch.bfloat16 if fast else torch.float32)
    assert f"the {kind}" in why
    assert choose_dtype("bfloat16", torch.device(kind))[0] == torch.bfloat16
    with pytest.raises(UserError, match="unknown dtype 'fp8'"):
        choose_dtype("fp8", torch.device(kind))
