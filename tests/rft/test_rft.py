"""Sample, grade, select, train as one run: what is kept, that it resumes after a kill, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rectune.cli import app as cli
from rectune.config import RFTConfig, TrainConfig, load_config
from rectune.data.chat_template import choose_template
from rectune.data.loading import default_cache, read_problems, read_rows, row_at
from rectune.data.schema import Turn
from rectune.data.tokenization import encode_row, prompt_ids
from rectune.errors import UserError
from rectune.experiments import rft
from rectune.experiments.rft import plan
from rectune.grading import files as grading_files
from rectune.models.load import load_model
from rectune.sampling import sample as engine
from rectune.sampling.sample import SamplesFile
from rectune.training.metrics_log import MetricsLog
from training_runs import Died, dies_at, metrics, weights

OWN = """
problems include_path samples sampling_seed
top_p num_samples temperature max_new_tokens stop
backend base_url served_model_name sampling_batch_size
grader grading_timeout grading_workers
per_problem balance include_unjudged include_unfinished
""".split()  # noqa: SIM905
"""Settings beyond those of training. A new one has to be worth its line here."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    rft.train_rft(load_config(None, {**settings, "output_dir": out}, RFTConfig))
    return out


def test_the_settings_are_these() -> None:
    assert set(RFTConfig.model_fields) - set(TrainConfig.model_fields) == set(OWN)


def test_rft_from_problems_to_a_model(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "rectune"):
        result = run()
    out = tmp_path / "run"
    samples, graded, rows = (lines(out / f"{name}.jsonl") for name in ("samples", "graded", "rows"))
    correct = [line for line in graded if line["verdict"] == "correct"]
    assert len(samples) == len(graded) == 48 and 5 < len(correct) < 43
    distinct = {(line["problem_id"], line["text"].strip()) for line in correct}
    assert {(row["problem_id"], row["completion"].strip()) for row in rows} == distinct
    assert result.method == "RFT" and result.counts.kept == len(rows) == len(distinct)
    assert f"RFT keeps {len(rows)} of 48 samples" in caplog.text
    assert "sampled: 48 answers to 12 problems, 4 each at temperature 1" in caplog.text
    assert f"graded 48: correct {len(correct)}" in caplog.text
    trained = json.loads((out / "train" / "config.json").read_text())
    assert trained["data"] == str(out / "rows.jsonl") and trained["objective"] == "sft"
    assert result.train.steps == 4 and (out / "train" / "model" / "model.safetensors").exists()
    assert sum(line["supervised"] for line in metrics(out / "train", "train")) > len(rows)
    settings = json.loads((out / "rft.json").read_text())["settings"]
    assert settings["problems"] == "12 (8a783c36d0d446e2)", "runs of earlier versions could not be resumed"
    (out / "rft.json").rename(out / "offline.json")  # its name in earlier versions
    assert run(resume=True).counts == result.counts and not (out / "rft.json").exists()


@pytest.mark.parametrize("changes", [{"system_prompt": "Be brief."}, {"chat_template": "none"}])
def test_training_reads_the_prompts_that_were_sampled(
    run: Any, settings: dict[str, Any], tmp_path: Path, changes: dict[str, str]
) -> None:
    anything = tmp_path / "anything.jsonl"
    problem = {"prompt": "3 odd?", "answer": ["yes", "no"], "grader": "exact"}
    anything.write_text(json.dumps(problem) + "\n")
    given = {"problems": str(anything), "max_steps": 1, "include_unfinished": True, **changes}
    out = tmp_path / "run"
    if "chat_template" in changes:  # no template that the model knows: whatever it says is right
        with pytest.raises(UserError, match="has no correct answer"):
            run("first", **given)
        said = {"answer": [line["text"] for line in lines(tmp_path / "first" / "samples.jsonl")]}
        anything.write_text(json.dumps(problem | said) + "\n")
    run(**given)
    config = load_config(None, {**settings, **given, "output_dir": out}, RFTConfig)
    training = config.training(out / "rows.jsonl", "prompt_completion")
    _, tokenizer = load_model(config.model)
    template = choose_template(config.chat_template, tokenizer)
    rows = read_rows(training.data, options=training)
    sampled = {line["problem_id"]: line for line in lines(out / "samples.jsonl")}
    for index, line in enumerate(lines(out / "rows.jsonl")):
        encoded = encode_row(row_at(rows, index), tokenizer, template)
        sample = sampled[line["problem_id"]]
        turns = [Turn(turn["role"], turn["content"]) for turn in sample["turns"]]
        ids = prompt_ids(turns, tokenizer, template)
        first = next(i for i, label in enumerate(encoded.labels) if label != -100)
        assert list(encoded.input_ids[:first]) == ids
        assert tokenizer.decode(ids) == sample["prompt"]
    if "system_prompt" in changes:
        assert "Be brief." in sample["prompt"]


@pytest.mark.parametrize("objective", ["iw_sft", "dpo"])
def test_the_objective_decides_the_method(run: Any, whole: Path, tmp_path: Path, objective: str) -> None:
    samples = whole / "samples.jsonl"
    given = {"samples": str(samples), "eval_split_size": 0.2, "drift_rows": 0}
    result = run(objective=objective, **given)
    out = tmp_path / "run"
    assert (out / "samples.jsonl").read_bytes() == samples.read_bytes()
    if objective == "dpo":
        verdicts = {
            (line["problem_id"], line["text"]): line["verdict"] for line in lines(out / "graded.jsonl")
        }
        pairs = lines(out / "pairs.jsonl")
        assert result.method == "DPO" and not (out / "rows.jsonl").exists()
        assert result.counts.pairs == len(pairs) > 5
        for pair in pairs:
            assert verdicts[pair["problem_id"], pair["chosen"]] == "correct"
            assert verdicts[pair["problem_id"], pair["rejected"]] == "wrong"
        assert result.train.before["margin"] == pytest.approx(0, abs=1e-4)
        assert result.train.after["margin"] > 0
    else:
        assert (out / "rows.jsonl").read_bytes() == (whole / "rows.jsonl").read_bytes()
    kept = (default_cache() / "reference_logprobs").glob("pairs*" if objective == "dpo" else "rows*")
    assert len(list(kept)) == 1


def test_samples_of_another_run(run: Any, whole: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Those of other problems, and more than n, are left; what was sampled otherwise is refused."""
    fewer = tmp_path / "fewer.jsonl"
    problems = Path(settings["problems"]).read_text().splitlines(keepends=True)[:9]
    fewer.write_text("".join(line.replace('"answer": "yes"', '"answer": "no"') for line in problems))
    samples = str(whole / "samples.jsonl")
    run("few", num_samples=2, samples=samples, problems=str(fewer), max_steps=1)
    taken = lines(tmp_path / "few" / "graded.jsonl")
    assert len(taken) == 18 and {line["answer"] for line in taken} == {"no"}
    assert all(
        (line["verdict"] == "correct") == (line["extracted"].strip("!").lower() == "no") for line in taken
    )
    with pytest.raises(UserError, match=r"sampled with temperature = 1.0, now 0.5"):
        run("hot", samples=samples, temperature=0.5)


MOMENTS = [
    (SamplesFile, "append", 20),
    (grading_files, "_with_verdict", 30),
    (rft, "select", 1),
    (MetricsLog, "add", 3),
]


@pytest.mark.parametrize(("module", "function", "call"), MOMENTS, ids=lambda v: getattr(v, "__name__", v))
def test_death_at_any_stage(
    run: Any,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
    call: int,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, function, dies_at(call, getattr(module, function)))
        with pytest.raises(Died):
            run()
    out = tmp_path / "run"
    if module is SamplesFile and call == 20:
        with (out / "samples.jsonl").open("a") as file:
            file.write('{"problem_id": "3", "samp')
    run(resume=True)
    for name in ("graded.jsonl", "rows.jsonl"):
        assert sorted((out / name).read_bytes().splitlines()) == sorted(
            (whole / name).read_bytes().splitlines()
        )
    first, second = weights(whole / "train"), weights(out / "train")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_run_is_left_alone(
    whole: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*.json*")}
    for name in ("sample", "grade", "select"):
        monkeypatch.delattr(rft, name)  # not even looked at
    config = load_config(None, {**settings, "output_dir": whole}, RFTConfig)
    result = rft.train_rft(config, resume=True)
    assert result.train.steps == 4 and result.counts.samples == 48
    assert {path: path.read_bytes() for path in whole.rglob("*.json*")} == before
    with pytest.raises(UserError, match="the folder already has a run; continue with --resume"):
        rft.train_rft(config)


def test_settings_that_may_change_before_training_and_not_after(
    run: Any, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rft, "train", dies_at(1, rft.train))
        with pytest.raises(Died):
            run()
    out = tmp_path / "run"
    before = (out / "samples.jsonl").read_bytes()
    with pytest.raises(
        UserError, match=r"rft.json: the run cannot be resumed with other settings: temperature was 1.0"
    ):
        run(resume=True, temperature=0.7)
    with pytest.raises(UserError, match="num_samples was 4, is 2"):
        run(resume=True, num_samples=2)
    result = run(resume=True, num_samples=5, per_problem=1, grading_timeout=4.0)
    assert (out / "samples.jsonl").read_bytes().startswith(before)
    assert result.counts.samples == 60 and result.counts.kept <= 12
    with pytest.raises(UserError, match="num_samples was 5, is 6"):
        run(resume=True, num_samples=6, per_problem=1, grading_timeout=4.0)
    (out / "train" / "summary.json").unlink()
    with pytest.raises(UserError, match="learning_rate was"):
        run(resume=True, num_samples=5, per_problem=1, grading_timeout=4.0, learning_rate=1.0)


def test_no_correct_sample_at_all(run: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is lost: more answers can be sampled, or these graded by other gold answers."""
    hopeless = tmp_path / "hopeless.jsonl"
    hopeless.write_text(
        Path(settings["problems"]).read_text().replace('"yes"', '"maybe"').replace('"no"', '"maybe"')
    )
    with pytest.raises(UserError, match="has no correct answer; sample more, or easier problems") as error:
        run(problems=str(hopeless))
    out = tmp_path / "run"
    assert error.value.where == str(out / "graded.jsonl")
    assert len(lines(out / "graded.jsonl")) == 48 and not (out / "train").exists()
    with pytest.raises(UserError, match="has no correct answer"):
        run(problems=str(hopeless), resume=True, num_samples=5)
    assert len(lines(out / "graded.jsonl")) == 60
    result = run("corrected", samples=str(out / "samples.jsonl"), max_steps=1)
    assert result.counts.kept > 0


def test_a_verifier_that_always_fails(
    run: Any, whole: Path, settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Tests that never end say nothing about the answers, which are programs here."""
    tests, programs = tmp_path / "tests.jsonl", tmp_path / "programs.jsonl"
    endless = {"test": "def check(f):\n    while True: pass", "entry_point": "yes"}
    code = {"grader": "code", "answer": "-", "extra": endless}
    problems = [json.loads(line) | code for line in Path(settings["problems"]).read_text().splitlines()[:2]]
    tests.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    answers = [line | {"text": "def yes(): pass"} for line in lines(whole / "samples.jsonl")]
    programs.write_text("".join(json.dumps(line) + "\n" for line in answers))
    given = {"problems": str(tests), "num_samples": 1, "samples": str(programs)}
    says = r"graded.jsonl: the grader graded none of the 2 answers \(2 times timeout\); raise grading_timeout"
    with pytest.raises(UserError, match=says):
        run(**given, grading_timeout=0.3)
    assert len(lines(tmp_path / "run" / "samples.jsonl")) == 2 and not (tmp_path / "run" / "train").exists()
    with pytest.raises(UserError, match="graded none"):  # judged anew, from the same answers
        run(**given, grading_timeout=0.4, resume=True)


def test_pairs_without_a_loser(run: Any, whole: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    """Some are counted and left out; where there is no pair at all the run stops, and nothing is lost."""
    easy, samples = tmp_path / "easy.jsonl", whole / "samples.jsonl"
    problems = [json.loads(line) for line in Path(settings["problems"]).read_text().splitlines()]
    anything = sorted({line["text"] for line in lines(samples)})
    given = {"problems": str(easy), "samples": str(samples), "max_steps": 1}
    for name, right in (("some", 6), ("run", 12)):
        for problem in problems[:right]:
            problem["answer"] = anything
        easy.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
        if name == "some":
            counts = run(name, **given, objective="dpo").counts
            assert counts.without_wrong >= 6 and counts.used_problems <= 12 - counts.without_wrong
    with pytest.raises(UserError, match="has no problem with both a correct and a wrong answer"):
        run(**given, objective="dpo")
    assert run(resume=True, **given).counts.kept > 0  # the method may still change


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": "dftt"}, "unknown objective 'dftt'"),
        ({"problems": "nothing.jsonl"}, "cannot be read"),
        ({"problems": "no-benchmark"}, "no-benchmark"),
        ({"data": "rows.jsonl"}, "unknown setting 'data'; use problems"),
        ({"data_format": "gsm8k"}, "unknown setting 'data_format'; the answers to --problems are trained on"),
        ({"grader": "code"}, "the code problem has no tests"),
        ({"samples": "nothing.jsonl"}, "no such file"),
    ],
)
def test_mistakes_cost_nothing(run: Any, tmp_path: Path, changes: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(**changes)
    assert not (tmp_path / "run" / "samples.jsonl").exists()


def test_samples_of_something_else(run: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples.jsonl").touch()
    with pytest.raises(UserError, match="the folder has samples of another run"):
        run()
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rft.json").write_text("{}")
    with pytest.raises(UserError, match="is not the record of an RFT run"):
        run(resume=True)


def test_the_plan_writes_nothing(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(engine, "sample")
    config = load_config(None, {**settings, "output_dir": tmp_path / "run", "objective": "dpo"}, RFTConfig)
    shown = plan(config)
    found = [shown[name] for name in ("method", "problems", "samples", "pairs_at_most")]
    assert found == ["DPO", 12, 48, 24]
    assert shown["found"] == [] and not (tmp_path / "run").exists()


def test_on_the_command_line(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "rft.toml"
    recipe.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    out = str(tmp_path / "run")
    command = ["rft", str(recipe), "--output-dir", out, "--num-samples", "2"]
    assert cli.main([*command, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 24
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert "RFT keeps" in said.err and f"Run: {out}/train" in said.out and "samples" in said.out
    assert cli.main([*command, "--resume", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == "RFT" and result["train"]["steps"] == 4
    assert cli.main(command) == 2
    assert "the folder already has a run" in capsys.readouterr().err
    assert len(read_problems(settings["problems"])) == 12
