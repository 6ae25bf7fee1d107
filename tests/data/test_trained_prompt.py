"""The prompt of a training run is found again in its folder."""

from __future__ import annotations

import json

import pytest

from rectune.config import DataConfig
from rectune.data.trained_prompt import as_trained, run_prompt, shared_wrapping
from rectune.errors import UserError
from rectune.models.folder import find_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))


def make_run(folder, rows=None, *, count=30, prompt="Question: {i} apples?\nCalculation: "):
    data = folder / "data.jsonl"
    (folder / "run" / "model").mkdir(parents=True)
    data.write_text(
        "".join(
            json.dumps({"prompt": prompt.replace("{i}", f"{i} or {i * i}"), "completion": "1"}) + "\n"
            for i in range(count)
        )
    )
    config = {"model": "m", "data": str(data), "objective": "dft", "rows": rows or {}}
    (folder / "run" / "config.json").write_text(json.dumps(config))
    return folder / "run"


@pytest.mark.parametrize("inside", ["", "model", "adapter", "checkpoints/step-000002"])
def test_template_system_and_wrapping_are_those_of_the_run(tmp_path, inside):
    run = make_run(tmp_path, {"template": "none", "system": "Be brief."})
    for name in {"model", inside} - {""}:
        (run / name).mkdir(parents=True, exist_ok=True)
        (run / name / "adapter_config.json").write_text("{}")
    found = run_prompt(str(run / inside))
    assert (found.rows.chat_template, found.rows.system_prompt) == ("none", "Be brief.")
    assert found.model == run / (inside or "model")
    assert found.run.samefile(run)
    assert found.wrapping == "Question: {question}\nCalculation: "


def test_a_merged_model_is_prompted_as_the_first_tuned_one(tmp_path, caplog):
    run = make_run(tmp_path, {"system": "Be brief."})
    (run / "model" / "adapter_config.json").write_text("{}")
    for name, tuned in (
        ("a", run),
        ("b", tmp_path / "a"),
        ("itself", tmp_path / "itself"),
        ("lost", "/no/run"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        content = {"rectune": "0", "base": "m", "tuned": [str(tuned)], "weights": [1.0], "at": 0.5}
        (tmp_path / name / "merge.json").write_text(json.dumps(content))
    for name in ("a", "b"):
        found = run_prompt(str(tmp_path / name))
        assert (found.run, found.model, found.base) == (run, tmp_path / name, "m")
        assert found.rows.system_prompt == "Be brief."
    assert not caplog.messages
    for name in ("itself", "lost"):
        assert run_prompt(str(tmp_path / name)) is None
    assert "/no/run is no folder, so the prompt of training is not known" in caplog.text
    (tmp_path / "a" / "merge.json").write_text('{"tuned": []}')
    with pytest.raises(
        UserError, match=r"merge.json: is not the record of a merged model \(no field 'rectune'\)"
    ):
        run_prompt(str(tmp_path / "a"))


def test_a_link_to_the_model_of_a_run_is_the_runs(tmp_path):
    run = make_run(tmp_path, {"system": "Be brief."})
    (run / "model" / "config.json").write_text("{}")
    (tmp_path / "best").symlink_to(run / "model")
    assert run_prompt(str(tmp_path / "best")).rows.system_prompt == "Be brief."


def test_a_run_without_a_merged_model_is_its_adapter(tmp_path):
    run = make_run(tmp_path)
    (run / "model").rmdir()
    (run / "adapter").mkdir()
    assert run_prompt(str(run)).model == run / "adapter"
    assert find_folder(str(run)) == run / "adapter"


@pytest.mark.parametrize("record", ["rft.json", "offline.json"])  # the second of earlier versions
def test_an_rft_run_is_the_run_in_it(tmp_path, record):
    (tmp_path / record).write_text("{}")
    with pytest.raises(UserError, match="the run has no model yet"):
        find_folder(str(tmp_path))
    make_run(tmp_path).rename(tmp_path / "train")
    assert run_prompt(str(tmp_path)).model == tmp_path / "train" / "model"


def test_names_from_within_the_run(tmp_path, monkeypatch):
    run = make_run(tmp_path, {"system": "Be brief."})
    (run / "model" / "config.json").write_text("{}")
    for here, name in ((run, "model"), (run, "."), (run / "model", ".")):
        monkeypatch.chdir(here)
        assert run_prompt(name).rows.system_prompt == "Be brief."


def test_the_template_that_the_run_kept_is_asked_with(tmp_path):
    run = make_run(tmp_path, {"template": "gone.jinja"})
    assert run_prompt(str(run)).template == "gone.jinja"
    (run / "template.jinja").write_text("x")
    assert run_prompt(str(run)).template == str(run / "template.jinja")
    run = make_run(tmp_path / "none", {"template": "none"})
    (run / "template.jinja").write_text("x")
    assert run_prompt(str(run)).template == "none"


def test_settings_that_were_not_given_are_those_of_the_run(tmp_path):
    run = make_run(tmp_path, {"template": "none", "system": "Be brief."})
    for model in (run, run / "model"):
        (run / "model" / "config.json").write_text("{}")
        rows = as_trained(str(model), DataConfig())
        assert (rows.chat_template, rows.system_prompt) == ("none", "Be brief.")
        assert as_trained(str(model), rows) == rows
    rows = as_trained(str(run), DataConfig(chat_template="auto", system_prompt="Other."))
    assert (rows.chat_template, rows.system_prompt) == ("auto", "Other.")
    assert as_trained("owner/name", DataConfig()) == DataConfig()


def test_parts_of_a_run_are_no_models(tmp_path):
    run = make_run(tmp_path)
    (run / "checkpoints" / "step-000002").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"step-000002: this is a part of a run, not a model; give the run itself: .*run$"
    ):
        run_prompt(str(run / "checkpoints" / "step-000002"))


def test_the_wrapping_is_told_from_pairs(tmp_path):
    run = make_run(tmp_path)
    data = tmp_path / "data.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    pairs = [{"prompt": row["prompt"], "chosen": "1", "rejected": "2"} for row in rows]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert run_prompt(str(run)).wrapping == "Question: {question}\nCalculation: "


def test_other_models_have_no_run(tmp_path):
    assert run_prompt("smollm2-135m") is None
    assert run_prompt("owner/name") is None
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert run_prompt(str(tmp_path)) is None


def test_rows_that_are_gone_or_few_leave_the_wrapping_open(tmp_path):
    run = make_run(tmp_path / "few", count=3)
    assert run_prompt(str(run)).wrapping is None
    run = make_run(tmp_path / "gone")
    (tmp_path / "gone" / "data.jsonl").unlink()
    assert run_prompt(str(run)).wrapping is None


def test_broken_runs_are_named(tmp_path):
    run = make_run(tmp_path, {"template": "none", "columns": 1})
    with pytest.raises(UserError, match=r"config.json: the settings are of another version"):
        run_prompt(str(run))
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: the file cannot be read"):
        run_prompt(str(run))
    run = make_run(tmp_path / "b")
    (run / "model").rmdir()
    with pytest.raises(UserError, match="has no model yet"):
        run_prompt(str(run))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("How many are {i}?", "{question}"),  # questions that begin and end alike
        ("{i}?\nPlease reason step by step.", "{question}\nPlease reason step by step."),
        ("Problem: {i}? Answer:", "Problem: {question} Answer:"),
        ("{i}", "{question}"),
    ],
)
def test_what_questions_share_by_chance_is_not_wrapping(prompt, expected):
    assert shared_wrapping([prompt.replace("{i}", str(7 * i)) for i in range(40)]) == expected
