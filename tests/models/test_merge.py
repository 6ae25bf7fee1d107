"""base + t (tuned - base): what is written, what it computes, what is refused, and how much is held in memory."""

from __future__ import annotations

import errno
import gc
import json
import shutil
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rectune.cli.app import main
from rectune.config import MergeConfig
from rectune.errors import UserError
from rectune.models import merge as merging
from rectune.models.load import load_model
from rectune.models.merge import StoredModel, merge
from toys import byte_tokenizer, tiny_model

IDS = torch.tensor([[5, 9, 17, 30, 2]])
Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make("base", seed=1, dtype=..., **settings of tiny_model)`: a model's folder."""

    def made(name: str, *, dtype: torch.dtype = torch.float32, shard: str = "5GB", **settings: Any) -> str:
        tiny_model(**settings).to(dtype).save_pretrained(tmp_path / name, max_shard_size=shard)
        byte_tokenizer().save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return made


@pytest.fixture
def make_adapter(tmp_path: Path) -> Make:
    """`make_adapter("a", base, seed=1, **settings of LoraConfig)`: the folder of a random adapter."""

    def made(name: str, base: str, *, seed: int = 1, **settings: Any) -> str:
        model, _ = load_model(base)
        given = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **given))
            generator = torch.Generator().manual_seed(seed)
            for key, weight in tuned.named_parameters():
                if "lora_" in key:
                    torch.nn.init.normal_(weight, std=0.3, generator=generator)
            tuned.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return made


def merged(tmp_path: Path, base: str | None, *tuned: str, at: float = 0.5, **settings: Any) -> Path:
    (folder,) = merge(MergeConfig(base=base, tuned=tuned, at=(at,), output_dir=tmp_path / "out", **settings))
    return folder


def tensors(folder: str | Path) -> dict[str, Tensor]:
    return {
        key: value
        for file in sorted(Path(folder).glob("model*.safetensors"))
        for key, value in load_file(file).items()
    }


def logits(folder: str | Path) -> Tensor:
    with torch.no_grad():
        return load_model(folder)[0](input_ids=IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize(("dtype", "block"), [(torch.float32, 100), (torch.bfloat16, merging.BLOCK)])
def test_what_is_written(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, block: int
) -> None:
    monkeypatch.setattr(merging, "BLOCK", block)
    base, tuned = make("base", dtype=dtype), make("tuned", dtype=dtype, seed=1)
    folders = merge(MergeConfig(base=base, tuned=(tuned,), at=(0, 0.3, 1), output_dir=tmp_path / "out"))
    assert [folder.name for folder in folders] == ["at-0", "at-0.3", "at-1"]
    zero, some, one = map(tensors, folders)
    a, b = tensors(base), tensors(tuned)
    assert a.keys() == some.keys()
    for key, tensor in some.items():
        assert torch.equal(zero[key], a[key]) and torch.equal(one[key], b[key])
        expected = a[key].double() + 0.3 * (b[key].double() - a[key].double())
        assert tensor.dtype == dtype
        error = {torch.float32: 2e-7, torch.bfloat16: 2**-8}[dtype]  # of one rounding
        assert torch.allclose(tensor.double(), expected, rtol=error, atol=1e-7)
    assert torch.equal(logits(folders[0]), logits(base))
    assert torch.equal(logits(folders[2]), logits(tuned))
    left_out = {"model.safetensors"}
    names = {file.name for file in Path(tuned).iterdir()} - left_out
    assert {file.name for file in folders[1].iterdir()} - left_out == names | {"merge.json"}
    for name in names:
        assert (folders[1] / name).read_bytes() == (Path(tuned) / name).read_bytes()
    record = json.loads((folders[1] / "merge.json").read_text())
    assert (record["base"], record["tuned"], record["weights"], record["at"]) == (base, [tuned], [1.0], 0.3)


def test_a_wider_dtype_wins(make: Make, tmp_path: Path) -> None:
    base, tuned = make("base", dtype=torch.bfloat16), make("tuned", seed=1)
    folder = merged(tmp_path, base, tuned, at=0)
    assert {tensor.dtype for tensor in tensors(folder).values()} == {torch.float32}
    assert torch.equal(logits(folder), load_model(base, dtype=torch.float32)[0](input_ids=IDS).logits)
    back = merged(tmp_path, tuned, base, at=1)
    assert json.loads((back / "config.json").read_text())["dtype"] == "float32"


def test_shards(make: Make, tmp_path: Path) -> None:
    base, tuned = make("base"), make("tuned", seed=1, shard="40KB")
    files = {file.name for file in Path(tuned).glob("*.safetensors*")}
    assert len(files) > 3
    folder = merged(tmp_path, base, tuned)
    assert {file.name for file in folder.glob("*.safetensors*")} == files
    whole = merged(tmp_path, tuned, base, at=0.499999999)  # the other way round, so in one file
    assert {file.name for file in whole.glob("*.safetensors*")} == {"model.safetensors"}
    assert all(
        torch.allclose(tensors(whole)[key], value, atol=1e-6) for key, value in tensors(folder).items()
    )
    assert load_model(folder)[0].num_parameters() == load_model(base)[0].num_parameters()
    single = Path(make("single", seed=1))  # one file, which an index names
    index = {"weight_map": dict.fromkeys(tensors(single), "model-1.safetensors"), "metadata": {}}
    (single / "model.safetensors").rename(single / "model-1.safetensors")
    (single / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(logits(merged(tmp_path, base, str(single), at=1)), logits(single))


@pytest.mark.parametrize("stored", ["base", "tuned"])
def test_a_tied_head_that_one_model_stores_apart(make: Make, tmp_path: Path, stored: str) -> None:
    folders = {
        name: make(name, seed=seed, tie_word_embeddings=True) for seed, name in enumerate(("base", "tuned"))
    }
    path = Path(folders[stored]) / "model.safetensors"
    content = load_file(path)
    save_file(
        {**content, "lm_head.weight": content["model.embed_tokens.weight"].clone()}, path, {"format": "pt"}
    )
    folder = merged(tmp_path, folders["base"], folders["tuned"])
    mean = (
        tensors(folders["base"])["model.embed_tokens.weight"]
        + tensors(folders["tuned"])["model.embed_tokens.weight"]
    ) / 2
    assert torch.allclose(tensors(folder)["model.embed_tokens.weight"], mean)
    assert torch.allclose(load_model(folder)[0].lm_head.weight, mean)


def test_buffers(make: Make, tmp_path: Path) -> None:
    """Of whole numbers they stay; what is not of the model and in one folder only is left out."""
    base, tuned = make("base"), make("tuned", seed=1)
    for folder, added in (
        (base, {"model.rotary.inv_freq": torch.ones(4)}),
        (tuned, {"model.old": torch.ones(1)}),
    ):
        path = Path(folder) / "model.safetensors"
        save_file({**load_file(path), "model.steps": torch.tensor([3]), **added}, path, {"format": "pt"})
    found = tensors(merged(tmp_path, base, tuned))
    assert found["model.steps"].tolist() == [3]
    assert not {"model.rotary.inv_freq", "model.old"} & found.keys()
    save_file({**load_file(path), "model.steps": torch.tensor([4])}, path, {"format": "pt"})
    with pytest.raises(
        UserError, match=r"model.steps has whole numbers, which cannot be merged, and others than"
    ):
        merged(tmp_path, base, tuned, at=0.25)
    assert not list((tmp_path / "out").glob("*0.25*"))


def test_the_mean_of_several(make: Make, tmp_path: Path) -> None:
    base, first, second = (make(name, seed=seed) for seed, name in enumerate(("base", "first", "second")))
    found = tensors(merged(tmp_path, base, first, second, at=1))
    a, b, c = map(tensors, (base, first, second))
    assert all(torch.allclose(found[key], (b[key] + c[key]) / 2, atol=1e-7) for key in a)
    shutil.rmtree(tmp_path / "out")
    found = tensors(merged(tmp_path, base, first, second, weights=(3, 1)))
    assert all(
        torch.allclose(found[key], (a[key] + 0.75 * b[key] + 0.25 * c[key]) / 2, atol=1e-7) for key in a
    )
    shutil.rmtree(tmp_path / "out")
    same = tensors(merged(tmp_path, base, first, first, first, at=1))
    assert all(torch.equal(same[key], b[key]) for key in b)


def delta(base: str, adapter: str | Path) -> dict[str, Tensor]:
    """What an adapter adds to the weights of its base model, in float64."""
    model, whole = load_model(adapter)[0].double().merge_and_unload(), load_model(base)[0].double()
    before = whole.state_dict()
    return {key: value - before[key] for key, value in model.state_dict().items()}


def test_an_adapter_is_scaled(make: Make, make_adapter: Make, tmp_path: Path) -> None:
    base = make("base")
    adapter = make_adapter("adapter", base, alpha_pattern={"down_proj": 5}, use_rslora=True)
    folder = merged(tmp_path, None, adapter, at=0.3)
    scaled, full = delta(base, folder), delta(base, adapter)
    assert all(torch.allclose(scaled[key], 0.3 * full[key], rtol=1e-9, atol=1e-12) for key in full)
    assert any(value.abs().max() > 0.1 for value in full.values())
    assert (folder / "adapter_model.safetensors").read_bytes() == (
        Path(adapter) / "adapter_model.safetensors"
    ).read_bytes()
    assert torch.equal(logits(merged(tmp_path, None, adapter, at=0)), logits(base))
    assert torch.equal(logits(merged(tmp_path, None, adapter, at=1)), logits(adapter))


def test_an_adapter_and_its_merged_model_give_the_same(
    make: Make, make_adapter: Make, tmp_path: Path
) -> None:
    base = make("base")
    adapter = make_adapter("adapter", base)
    load_model(adapter)[0].merge_and_unload().save_pretrained(tmp_path / "whole")
    byte_tokenizer().save_pretrained(tmp_path / "whole")
    scaled = load_model(merged(tmp_path, base, adapter, at=0.3))[0].merge_and_unload().state_dict()
    whole = tensors(merged(tmp_path / "of-whole", base, str(tmp_path / "whole"), at=0.3))
    assert all(torch.allclose(whole[key], scaled[key], atol=1e-6) for key in whole)


def test_the_mean_of_adapters_is_an_adapter(make: Make, make_adapter: Make, tmp_path: Path) -> None:
    base = make("base")
    adapters = [make_adapter(f"adapter{seed}", base, seed=seed, r=1 + seed) for seed in (1, 2)]
    found = delta(base, merged(tmp_path, base, *adapters, at=0.5, weights=(1, 3)))
    one, two = (delta(base, adapter) for adapter in adapters)
    assert all(
        torch.allclose(found[key], 0.5 * (0.25 * one[key] + 0.75 * two[key]), atol=1e-6) for key in found
    )


def test_what_is_there_stays_and_is_never_taken_for_another(make: Make, tmp_path: Path) -> None:
    base, tuned, other = make("base"), make("tuned", seed=1), make("other", seed=2)
    folder = merged(tmp_path, base, tuned)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    added = merge(MergeConfig(base=base, tuned=(tuned,), at=(0.5, 0.75), output_dir=tmp_path / "out"))
    assert [folder.name for folder in added] == ["at-0.5", "at-0.75"]
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(
        UserError, match=r"at-0.5: the folder has another merged model \(of .*tuned at 0.5\); remove it"
    ):
        merged(tmp_path, base, other)
    (folder / "merge.json").unlink()
    with pytest.raises(
        UserError, match=r"at-0.5: the folder has other content; remove it, or give another --output-"
    ):
        merged(tmp_path, base, tuned)


@pytest.mark.parametrize("space", ["before", "within"])
def test_a_full_disk(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str) -> None:
    base, tuned = make("base"), make("tuned", seed=1)
    if space == "before":
        monkeypatch.setattr(merging.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 9, 9))
    else:

        def full(path: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(merging, "fsync", full)
    with pytest.raises(UserError) as caught:
        merged(tmp_path, base, tuned)
    assert ("not enough space" if space == "before" else "No space left on device") in str(caught.value)
    assert not list((tmp_path / "out").glob("*at-*")) + list((tmp_path / "out").glob(".at-*"))


def test_the_memory_is_that_of_a_block_of_each_model(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [make(name, seed=seed) for seed, name in enumerate(("base", "first", "second"))]
    read, alive, most, largest = StoredModel.read, weakref.WeakSet[Any](), 0, 0

    def counted(model: StoredModel, key: str, rows: slice) -> Tensor:
        nonlocal most, largest
        tensor = read(model, key, rows)
        alive.add(tensor)
        gc.collect()
        most, largest = max(most, len(alive)), max(largest, tensor.numel())
        return tensor

    monkeypatch.setattr(StoredModel, "read", counted)
    monkeypatch.setattr(merging, "BLOCK", 512)
    merged(tmp_path, names[0], *names[1:])
    assert 1 < most <= 3
    assert 256 < largest <= 512


def broken(folder: str, name: str, content: bytes | None) -> str:
    path = Path(folder) / name
    path.unlink() if content is None else path.write_bytes(content)
    return folder


def rewritten(folder: str, change: Callable[[dict[str, Tensor]], Any]) -> str:
    path = Path(folder) / "model.safetensors"
    content = load_file(path)
    change(content)
    save_file(content, path, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda make: make("tuned", hidden_size=64), "is another model than BASE: "),
        (lambda make: make("tuned", "qwen2"), "is another model than BASE: model_type is 'qwen2', not 'llama'"),
        (lambda make: make("tuned", num_hidden_layers=3), "num_hidden_layers is 3, not 2"),
        (lambda make: make("tuned", rope_theta=5e5), "is another model than BASE: rope_"),
        (lambda make: make("tuned", vocab_size=288), "vocab_size is 288, not 272"),
        (
            lambda make: rewritten(make("tuned"), lambda t: t.pop("model.norm.weight")),
            "the weights lack model.norm.weight, which",
        ),
        (
            lambda make: rewritten(make("tuned"), lambda t: t.update({"model.norm.weight": torch.ones(31)})),
            "BASE: model.norm.weight is [32], but [31] in",
        ),
        (lambda make: make("tuned", tie_word_embeddings=True), "lm_head.weight"),
        (
            lambda make: broken(make("tuned"), "model.safetensors", b"\0" * 100),
            "model.safetensors: the file is damaged or incomplete",
        ),
        (lambda make: broken(make("tuned"), "config.json", b"{"), "tuned"),
        (lambda make: broken(make("tuned"), "config.json", None), "no config.json"),
        (
            lambda make: rewritten(make("tuned"), lambda t: t.update({"a.weight": torch.ones(2, dtype=torch.int8)})),
            "the model is quantised (a.weight is I8), which is not supported",
        ),
        (lambda make: "nothing/at/all", "no such folder"),
    ],
)  # fmt: skip
def test_models_that_are_refused(make: Make, tmp_path: Path, spoil: Callable[[Any], str], line: str) -> None:
    base = make("base", tie_word_embeddings=False)

    def of(name: str, arch: str = "llama", **settings: Any) -> str:
        return make(name, arch=arch, **{"seed": 1, "tie_word_embeddings": False, **settings})

    with pytest.raises(UserError) as caught:
        merged(tmp_path, base, spoil(of))
    assert line.replace("BASE", base) in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))


def test_other_vocabularies_and_templates(make: Make, tmp_path: Path) -> None:
    base, tuned, other = make("base"), make("tuned", seed=1), make("other", seed=2)
    byte_tokenizer(chat_template="{{ messages[0]['content'] }}").save_pretrained(other)
    merged(tmp_path, base, other)  # the tuned model's template counts
    with pytest.raises(
        UserError, match=r"other: has another chat template than .*tuned, so that their mean has none"
    ):
        merged(tmp_path, base, tuned, other, at=0.25)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tuned)
    with pytest.raises(
        UserError, match=r"tuned: has another vocabulary than .*base: '<new>' is 266, not None"
    ):
        merged(tmp_path, base, tuned, at=0.25)


def test_adapters_that_are_refused(make: Make, make_adapter: Make, tmp_path: Path) -> None:
    base = make("base")
    one, two = make_adapter("one", base), make_adapter("two", base, target_modules=["q_proj"])
    dora, ranks = (
        make_adapter("dora", base, use_dora=True),
        make_adapter("ranks", base, rank_pattern={"q_proj": 1}),
    )
    for tuned, line in (
        ((one, base), "base: is a whole model, the others are adapters"),
        (
            (one, two),
            r"two: is an adapter on other modules than .*one: one of them lacks .*down_proj.lora_A.weight; merge each",
        ),
        ((dora,), "dora: the adapter cannot be scaled: it has use_dora = True; merge it into its base"),
        ((one, ranks), r"ranks: the adapter cannot be scaled: it has rank_pattern = \{'q_proj': 1\}"),
    ):
        with pytest.raises(UserError, match=line):
            merged(tmp_path, base, *tuned)
    with pytest.raises(UserError, match=r"--base .*one: is an adapter"):
        merged(tmp_path, one, base)
    with pytest.raises(UserError, match=r"the adapter does not match|of the adapter's"):
        merged(tmp_path, make("other", arch="llama", hidden_size=64), one)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--at 1.5", "--at: must be from 0 to 1 (got 1.5); 0 is the base model, 1 the tuned one"),
        ("--at=-0.1", "--at: must be from 0 to 1 (got -0.1)"),
        ("--at half", "--at"),
        ("--at ,", "--at: nothing to write"),
        ("--weights 1,2", "--weights: needs a positive number for each of 1 tuned models"),
        ("", "--base: missing; the base model is known of runs and adapters only"),
    ],
)
def test_flags_that_are_refused(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, line: str
) -> None:
    tuned = make("tuned")
    capsys.readouterr()  # transformers' bar
    assert main(["merge", "--tuned", tuned, "--output-dir", str(tmp_path / "out"), *flags.split()]) == 2
    said = capsys.readouterr().err.strip()
    assert line in said
    assert "\n" not in said


def test_the_command(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, first, second = (make(name, seed=seed) for seed, name in enumerate(("base", "first", "second")))
    out = str(tmp_path / "out")
    assert (
        main(
            [
                "merge",
                "--base",
                base,
                "--tuned",
                first,
                "--tuned",
                second,
                "--output-dir",
                out,
                "--at",
                "0.5,1",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.splitlines() == [f"{out}/at-0.5", f"{out}/at-1"]
