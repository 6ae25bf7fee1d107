"""`ref_logp`: computed once, kept in the cache, found again, and refused where it belongs to others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from rectune.columns import HEAD_COLUMNS
from rectune.config import load_config
from rectune.errors import UserError
from rectune.models.load import fingerprint, load_model
from rectune.models.scorer import Scorer
from rectune.training import reference
from rectune.training import trainer as loop
from rectune.training.dataloader import TrainingData, load_data
from toys import byte_tokenizer, tiny_model
from training_runs import metrics, weights


@pytest.fixture
def data(toy: dict[str, Any], tmp_path: Path) -> Path:
    """The toy's rows in a folder of this test, so that what is kept beside them is, too."""
    (tmp_path / "data").mkdir()
    return Path(shutil.copy(toy["data"], tmp_path / "data" / "rows.jsonl"))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n}?", "chosen": f"{n}{'!' * (n % 5)}", "rejected": f"no, {n}"} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model with the toy's tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    tiny_model(seed=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))


def kept(data: Path) -> list[Path]:
    """The files of log-probs of these rows in the cache."""
    folder = Path(os.environ["RECTUNE_CACHE"]) / "reference_logprobs"
    return sorted(folder.glob(f"{data.name}-*.safetensors"))


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("this was not to happen")


def equal(one: str, other: str) -> bool:
    """Whether two runs came to the same bits."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


Logprobs = Callable[..., tuple[reference.ReferenceColumns, TrainingData, Scorer]]


@pytest.fixture
def logprobs(toy: dict[str, Any]) -> Logprobs:
    """What a run of the toy would find or compute before its first step, its data, and its model."""

    def start(data: Path, *names: list[str], paired: bool = False, **settings: Any) -> Any:
        config = load_config(None, {**toy, "data": str(data), "output_dir": "unused", **dotted(settings)})
        model, tokenizer = load_model(config.model, dtype=torch.float32)
        rows, scorer = load_data(config, tokenizer, paired=paired), Scorer(model)
        given = (config, rows, scorer, tokenizer, fingerprint(model), Accelerator(cpu=True))
        return reference.reference_columns(*given, *names), rows, scorer

    return start


def dotted(settings: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in settings.items()}


@pytest.mark.parametrize("paired", [False, True])
def test_it_is_the_column_of_the_reference(
    logprobs: Logprobs, data: Path, pairs: Path, other: str, paired: bool
) -> None:
    """In any batch, of rows to train on and of those kept aside, whatever order they are asked for in."""
    found, rows, scorer = logprobs(pairs if paired else data, paired=paired, reference_model=other)
    truth = Scorer(load_model(other, dtype=torch.float32)[0])
    for split, chosen in ((rows.train, [5, 2, 9]), (rows.train, []), (rows.holdout, [3, 0])):
        columns = scorer.columns(split.batch(chosen), ("logp", "ref_logp"), reference=truth)
        column = found.of(split, chosen)["ref_logp"]
        torch.testing.assert_close(column, columns["ref_logp"], rtol=1e-4, atol=1e-5)
        assert not len(chosen) or (column - columns["logp"]).abs().max() > 0.1


def test_it_holds_every_column_of_the_head(logprobs: Logprobs, data: Path, other: str) -> None:
    """Under a name that tells them from `ref_logp` alone, whose file keeps its name."""
    alone, _, _ = logprobs(data, reference_model=other)
    of_head = [name for name in HEAD_COLUMNS if name != "kl"]
    found, rows, _ = logprobs(data, [f"ref_{name}" for name in of_head], reference_model=other)
    assert found.path != alone.path and len(kept(data)) == 2
    truth = Scorer(load_model(other, dtype=torch.float32)[0])
    columns = truth.columns(rows.train.batch([5, 2]), of_head)
    ours = found.of(rows.train, [5, 2])
    for name in of_head:
        torch.testing.assert_close(ours[f"ref_{name}"], columns[name].detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="the file has no ref_entropy20") as error:
        logprobs(data, ["ref_logp", "ref_entropy20"], reference_model=str(alone.path))
    assert error.value.where == str(alone.path)


def test_holdout_pairs_of_another_file(logprobs: Logprobs, pairs: Path, tmp_path: Path, other: str) -> None:
    aside = tmp_path / "aside.jsonl"
    aside.write_text("".join(reversed(pairs.read_text().splitlines(keepends=True)[:5])))
    found, rows, scorer = logprobs(pairs, paired=True, reference_model=other, eval_data=str(aside))
    truth = Scorer(load_model(other, dtype=torch.float32)[0])
    columns = scorer.columns(rows.holdout.batch([4, 1]), ("ref_logp",), reference=truth)
    ours = found.of(rows.holdout, [4, 1])["ref_logp"]
    torch.testing.assert_close(ours, columns["ref_logp"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", ["iw_sft", "dpo"])
def test_it_is_computed_once_and_needs_no_second_model(
    run: Any, data: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    source = pairs if objective == "dpo" else data
    settings = {"data": str(source), "objective": objective, "max_steps": 2, "drift_rows": 0}
    monkeypatch.setattr(Scorer, "frozen", never)
    first = run("first", **settings, seed=1)
    (path,) = kept(source)
    monkeypatch.setattr(reference, "_compute", never)
    again = run("again", **settings, seed=1)
    assert equal(first.out, again.out)
    run("other seed", **settings, seed=2)  # another split and order of the same rows
    if objective == "iw_sft":
        run("adapter", **settings, seed=2, lora_r=2)  # whose base is the same model
    assert kept(source) == [path]


def test_a_named_reference(run: Any, toy: dict[str, Any], pairs: Path, other: str) -> None:
    """The model itself by name is the default; another one gives margins from the start."""
    settings = {"data": str(pairs), "objective": "dpo", "max_steps": 1, "drift_rows": 0}
    default = run("default", **settings)
    named = run("named", **settings, reference_model=toy["model"])
    assert len(kept(pairs)) == 1 and equal(default.out, named.out)
    assert default.before["margin"] == pytest.approx(0, abs=1e-4)
    far = run("far", **settings, reference_model=other)
    assert len(kept(pairs)) == 2 and abs(far.before["margin"]) > 0.1


def test_the_kl_to_a_named_reference(run: Any, toy: dict[str, Any], other: str) -> None:
    settings = {"objective": "asft:anchor=1.0", "max_steps": 1, "drift_rows": 0}
    named = [
        run(str(i), **settings, reference_model=name) for i, name in enumerate((None, toy["model"], other))
    ]
    near, same, far = (metrics(result.out, "train")[0]["objective"] for result in named)
    assert near == pytest.approx(same, abs=1e-6) and far > near + 0.1


def test_other_rows_get_a_file_of_their_own(logprobs: Logprobs, data: Path) -> None:
    logprobs(data)
    logprobs(data, max_train_samples=20)
    data.write_text(data.read_text().replace("7 and 0?", "7 and 9?"))
    logprobs(data)
    assert len(kept(data)) == 3


@pytest.mark.parametrize("whose", ["rows", "model"])
def test_a_file_of_others_under_this_name(logprobs: Logprobs, data: Path, other: str, whose: str) -> None:
    found, _, _ = logprobs(data)
    foreign, _, _ = logprobs(
        data, **({"max_train_samples": 20} if whose == "rows" else {"reference_model": other})
    )
    shutil.copy(foreign.path, found.path)
    with pytest.raises(UserError, match=f"belongs to (other|another) {whose}") as error:
        logprobs(data)
    assert error.value.where == str(found.path)


def test_a_file_handed_over(logprobs: Logprobs, run: Any, data: Path, other: str, tmp_path: Path) -> None:
    first, rows, _ = logprobs(data, reference_model=other)
    path = shutil.move(first.path, tmp_path / "from elsewhere.safetensors")
    handed, again, _ = logprobs(data, reference_model=str(path))
    assert handed.identity == first.identity and not kept(data)
    ours, theirs = handed.of(again.train, [3, 1]), first.of(rows.train, [3, 1])
    assert torch.equal(ours["ref_logp"], theirs["ref_logp"])
    with pytest.raises(UserError, match="belongs to other rows: 40 rows with") as error:
        logprobs(data, reference_model=str(path), max_train_samples=20)
    assert error.value.where == str(path)
    with pytest.raises(UserError, match="needs the model itself"):
        run("kl", data=str(data), objective="asft", reference_model=str(path))
    with pytest.raises(UserError, match="cannot be read"):
        logprobs(data, reference_model="nothing.safetensors")
    with pytest.raises(UserError, match="the file has no ref_logp"):
        logprobs(data, reference_model=f"{other}/model.safetensors")


def test_another_tokenizer(run: Any, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    tiny_model(vocab_size=280).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["sum"])
    tokenizer.save_pretrained(folder)
    for objective in ("iw_sft", "asft"):
        with pytest.raises(UserError, match="has another tokenizer than the model") as error:
            run(data=str(data), objective=objective, reference_model=str(folder))
        assert error.value.where == "reference_model"
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_damaged_file_is_computed_anew(
    logprobs: Logprobs, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = logprobs(data)[0].path
    content, (columns, header) = path.read_bytes(), reference.read(path, {})
    column = columns["ref_logp"].clone()  # the file is mapped into memory
    for damaged in (content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], content[:50], b""):
        path.unlink()
        path.write_bytes(damaged)
        logprobs(data)
        assert "it is computed again" in caplog.text
        mended = reference.read(path, {})
        assert torch.equal(mended[0]["ref_logp"], column) and mended[1] == header
        caplog.clear()


def test_a_run_goes_on_bit_for_bit(run: Any, data: Path, toy: dict[str, Any], tmp_path: Path) -> None:
    """Also where the file is gone by then: it does not depend on what has been trained."""
    settings = {"data": str(data), "objective": "iw_sft", "save_steps": 2, "drift_rows": 0}
    whole = run("whole", **settings)
    loop.train(load_config(None, {**toy, "output_dir": tmp_path / "run", **dotted(settings)}), until=4)
    kept(data)[0].unlink()
    assert equal(whole.out, run(resume=True, **settings).out)


def test_another_reference_when_going_on(run: Any, data: Path, toy: dict[str, Any], tmp_path: Path) -> None:
    """Its name is a setting; what is behind the name may change, too."""
    folder = tmp_path / "reference"
    tiny_model(seed=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    settings = {"data": str(data), "objective": "iw_sft", "reference_model": str(folder), "drift_rows": 0}
    loop.train(load_config(None, {**toy, "output_dir": tmp_path / "run", **dotted(settings)}), until=1)
    tiny_model(seed=2).save_pretrained(folder)
    with pytest.raises(UserError, match="the reference has changed since the run began") as error:
        run(resume=True, **settings)
    assert error.value.where == "reference_model"
