"""The diagnosis of a tiny model: figures against plain transformers, verdicts on both ends, risks with their rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rectune import OBJECTIVES
from rectune.cli.app import main
from rectune.config import DiagnoseConfig
from rectune.data.encoded_dataset import RowCounts
from rectune.data.packing import collate
from rectune.data.tokenization import Encoded, token_texts
from rectune.diagnosis.diagnose import diagnose
from rectune.diagnosis.effective_weights import DEFAULT, gradient_norms, learning_rate_factor, parse
from rectune.diagnosis.measure import Measured, standard_error
from rectune.diagnosis.recommendation import RACE, position, recommend
from rectune.diagnosis.risks import CHECKS, RiskInputs, find_risks
from rectune.diagnosis.token_classes import CLASSES, class_of, token_classes
from rectune.models.scorer import Scorer
from rectune.objective_spec import parse_objective
from rectune.records import Diagnosis, OverallFigures, Risk
from rectune.training.metrics import PROBABILITY_BINS
from toys import byte_tokenizer, save_toy, tiny_model


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_toy(tmp_path_factory.mktemp("model"))


def rows_file(path: Path, count: int = 30) -> str:
    rows = [
        {"prompt": f"{n} and {n % 7}?", "completion": f"{n + n % 7} is it, x = {n}", "source": "ab"[n % 2]}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def diagnosed(
    model: str, data: str, *, out: Path, problems: dict[str, str] | None = None, **settings: Any
) -> Diagnosis:
    config = DiagnoseConfig(model=model, data=data, output_dir=out, **settings)
    return diagnose(config, problems=problems)


@pytest.fixture(scope="module")
def diagnosis(model: str, tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    folder = tmp_path_factory.mktemp("diagnosis")
    data = rows_file(folder / "rows.jsonl")
    return diagnosed(model, data, out=folder / "out", rows=30, dtype="float32")


def test_figures_are_those_of_plain_transformers(model: str, diagnosis: Diagnosis) -> None:
    from transformers import AutoModelForCausalLM

    plain, logp = AutoModelForCausalLM.from_pretrained(model), []
    for example in diagnosis.examples:
        ids = torch.tensor([byte_tokenizer()("".join(example.tokens)).input_ids])
        with torch.no_grad():
            scores = plain(ids).logits[0].log_softmax(-1)
        expected = scores[:-1].gather(1, ids[0, 1:, None]).squeeze(1).exp()
        for place, p in enumerate(example.p):
            if p is not None:
                assert p == pytest.approx(float(expected[place - 1]), rel=1e-3)
                logp.append(math.log(p))
    assert len(diagnosis.examples) == 12 and len(logp) > 100


def test_groups_add_up(diagnosis: Diagnosis) -> None:
    overall = diagnosis.overall
    assert overall.targets == diagnosis.measured_targets == sum(overall.histogram)
    for groups in (diagnosis.by_class, diagnosis.by_position, diagnosis.by_source):
        assert sum(group.targets for group in groups) == overall.targets
        mean = sum(group.mean_p * group.targets for group in groups) / overall.targets
        assert mean == pytest.approx(overall.mean_p)
    assert {group.name for group in diagnosis.by_source} == {"a", "b"}
    assert {one.name for one in diagnosis.by_class} >= {"end and special", "digits", "words"}
    assert diagnosis.bins == list(PROBABILITY_BINS)


def test_shares_of_gradient_weight(diagnosis: Diagnosis) -> None:
    by_label = {one.label: one for one in diagnosis.objectives}
    for one in by_label.values():
        assert sum(one.share_by_bin) == pytest.approx(1)
        assert sum(one.share_by_class.values()) == pytest.approx(1)
        assert 0 < one.effective_sample_size <= 1 + 1e-9
        assert one.gradient_norm_ratio > 0
    assert by_label["sft"].effective_sample_size == pytest.approx(1)
    assert by_label["sft"].gradient_norm_ratio == 1 == by_label["sft"].mean_weight
    assert set(by_label) >= {"sft", "dft", "power alpha=0.5", "focal"}
    # Turn ends are protected: under DFT they keep weight 1 beside targets of p around 1/272.
    assert by_label["dft"].share_by_class["end and special"] > 0.9


def half(logp: torch.Tensor) -> torch.Tensor:
    return -0.5 * logp


def test_gradient_ratio_is_that_of_training(model: str, tmp_path: Path) -> None:
    """`mixture` with share 0 is SFT, with share 1 and an unprotected end DFT: the ratio follows the weights."""
    found = diagnosed(
        model, rows_file(tmp_path / "r.jsonl"), out=tmp_path / "o", rows=5, dtype="float32",
        objectives=["mixture:share=0", half],
    )  # fmt: skip
    by_label = {one.label: one for one in found.objectives}
    assert by_label["mixture share=0"].gradient_norm_ratio == pytest.approx(1, rel=1e-5)
    assert by_label["test_diagnose.py:half"].gradient_norm_ratio == pytest.approx(0.5, rel=1e-5)
    assert by_label["test_diagnose.py:half"].learning_rate_factor == pytest.approx(2, rel=1e-4)


def test_a_certain_model_and_a_clueless_one(model: str, tmp_path: Path) -> None:
    weak = diagnosed(model, rows_file(tmp_path / "r.jsonl"), out=tmp_path / "weak", rows=30, gradients=False)
    assert weak.verdict.position == "weak" and weak.verdict.name == "sft"
    assert "--objective sft" in weak.verdict.next[0]
    from rectune.config import load_config
    from rectune.training.trainer import train

    settings = {"model": model, "data": str(tmp_path / "r.jsonl"), "output_dir": tmp_path / "run", "eval_split_size": 0,
                "max_steps": 150, "learning_rate": 1e-2, "objective": "sft", "dtype": "float32"}  # fmt: skip
    train(load_config(None, settings))
    strong = diagnosed(str(tmp_path / "run"), str(tmp_path / "r.jsonl"), out=tmp_path / "strong", rows=30)
    assert strong.verdict.position == "strong"
    assert strong.overall.mean_p > 0.75 and strong.model.endswith("/model")


@pytest.mark.parametrize(
    ("mean_p", "error", "goal", "risks", "name", "confidence"),
    [
        (0.9, 0.001, "generalise", (), "dft", "high"),
        (0.9, 0.1, "generalise", (), "dft", "medium"),  # a mean that is not well known
        (0.9, None, "generalise", (), "dft", "medium"),
        (0.9, 0.001, None, (), "dft", "medium"),
        (0.9, 0.001, "fit", (), "sft", "medium"),
        (0.9, 0.001, "generalise", ("facts",), "sft", "low"),
        (0.77, 0.001, "generalise", (), "dft", "medium"),
        (0.4, 0.001, None, (), "power", "low"),
        (0.4, 0.001, "fit", (), "sft", "low"),
        (0.01, 0.001, "generalise", (), "sft", "high"),
    ],
)
def test_verdict(
    mean_p: float, error: float | None, goal: Any, risks: tuple[str, ...], name: str, confidence: str
) -> None:
    overall = OverallFigures(
        targets=9000, mean_p=mean_p, mean_p_error=error, nll=1.0, entropy=1.0, top1=0.5, histogram=[0] * 13
    )
    found = [
        Risk(name=risk, severity="high", evidence="e", remedy="r", value=1, threshold=0, source="s", rows=[])
        for risk in risks
    ]
    verdict = recommend(overall, found, goal, "m x", "d", " --chat-template none")
    assert (verdict.name, verdict.confidence) == (name, confidence)
    assert f"{mean_p:.2f}" in verdict.sentence and len(verdict.reasons) >= 1
    assert all("'m x'" in command and "--chat-template none" in command for command in verdict.next)
    assert position(mean_p) == verdict.position


def test_standard_error_is_that_of_sampled_rows() -> None:
    """Rows of one length: the mean over targets is the mean of the rows' means."""
    p = np.random.default_rng(0).uniform(0.1, 0.9, (50, 8))
    n, zero = p.size, np.zeros(p.size)
    row_N = np.repeat(np.arange(50), 8)
    made = Measured(
        np.log(p.ravel()), zero, zero, zero, zero, zero > 0, zero > 0, row_N, row_N, zero, row_N,
        list(range(50)), 1.0, n,
    )  # fmt: skip
    expected = p.mean(1).std(ddof=1) / math.sqrt(50)
    assert standard_error(made) == pytest.approx(expected)


def test_gradient_norm_is_that_of_all_parameters() -> None:
    """Tied embeddings count once, with both of their parts, and no gradient is left behind."""
    model = tiny_model()
    scorer = Scorer(model)
    batch = collate([Encoded([5, 6, 7, 8, 9, 10], [-100, -100, 7, 8, 9, 10], [False] * 6)])
    norm = gradient_norms(scorer, batch, parse(["sft"]))["sft"]
    assert all(p.grad is None for p in model.parameters())
    ids, labels = torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.tensor([[-100, -100, 7, 8, 9, 10]])
    model(ids, labels=labels).loss.backward()
    expected = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(float(expected), rel=1e-4)


def test_which_objectives_are_offered_exist() -> None:
    assert all(parse_objective(text)[0].name in OBJECTIVES for text in (*RACE, *DEFAULT))


@pytest.mark.parametrize(
    ("text", "name"),
    [(" 12", "digits"), ("3.5", "digits"), (" +", "operators and LaTeX"), ("\\frac", "operators and LaTeX"),
     (" the", "words"), ("é", "words"), ("\n", "whitespace"), ("!", "punctuation"), ("x=", "words")],
)  # fmt: skip
def test_classes_of_tokens(text: str, name: str) -> None:
    assert CLASSES[class_of(text)] == name


@pytest.mark.parametrize(("text", "expected"), [
    ("a ```x1``` b", {"x": "code", "1": "code", "a": "words", "b": "words"}),
    ("\\sum x a\\b", {"u": "operators and LaTeX", "x": "words", "a": "words", "b": "operators and LaTeX"}),
])  # fmt: skip
def test_classes_of_tokens_in_their_row(text: str, expected: dict[str, str]) -> None:
    """Code is what stands between fences; letters behind a backslash are LaTeX."""
    tokenizer = byte_tokenizer()
    ids = np.array(tokenizer(text).input_ids)
    classes = token_classes(ids, np.zeros(len(ids), bool), np.zeros(len(ids), int), tokenizer)
    found = {tokenizer.decode([i]): CLASSES[c] for i, c in zip(ids, classes, strict=True)}
    assert {token: found[token] for token in expected} == expected


def test_a_token_keeps_its_space_in_a_sentencepiece_vocabulary() -> None:
    words = Tokenizer(
        models.WordLevel({"\u2581two": 0, "\u2581words": 1, "s": 2, "<unk>": 3}, unk_token="<unk>")
    )
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert tokenizer.decode([1]) == "words"
    assert token_texts([1, 2, 0], tokenizer) == [" words", "s", " two"]


RISKY = {
    "truncation": [{"prompt": "q?", "completion": "word " * 60}] * 3
    + [{"prompt": "a", "completion": "b"}] * 3,
    "duplicates": [{"prompt": "q?", "completion": "yes"}] * 10,
    "markers": [{"prompt": f"{n}?", "completion": f"[INST] {n}"} for n in range(5)],
    "facts": [{"prompt": f"{n}?", "completion": f"word{n}"} for n in range(25)],
    "deterministic": [{"prompt": f"{n}?", "completion": "yes"} for n in range(25)],
    "end tokens": [{"prompt": f"{n}?", "completion": "yes"} for n in range(5)],
}


@pytest.mark.parametrize("name", RISKY)
def test_risks_are_found(model: str, tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in RISKY[name]))
    found = diagnosed(model, str(path), out=tmp_path / "out", rows=30, max_length=128, gradients=False)
    risk = next(one for one in found.risks if one.name == name)
    assert risk.evidence and risk.remedy and risk.severity in ("high", "medium", "low")
    if name in ("duplicates", "markers", "facts"):
        assert all(row.where.startswith(str(path)) for row in risk.rows) and risk.rows


def test_clean_rows_have_no_such_risks(diagnosis: Diagnosis) -> None:
    named = {risk.name for risk in diagnosis.risks}
    assert not named & {"truncation", "duplicates", "markers", "overlap", "odd rows"}
    assert len(CHECKS) == 9


def test_problems_that_occur_in_the_rows(model: str, tmp_path: Path) -> None:
    data = rows_file(tmp_path / "rows.jsonl")
    problems = {"here": "13 and 6?", "not": "what is the meaning of all this?"}
    found = diagnosed(model, data, out=tmp_path / "out", rows=3, problems=problems, gradients=False)
    risk = next(one for one in found.risks if one.name == "overlap")
    assert [row.note for row in risk.rows] == ["problem here"]
    assert risk.rows[0].where == f"{data}:14"


ROWS, EACH = 40, 50


def made_up(logp: np.ndarray, targets: np.ndarray) -> list[Risk]:
    """The risks of rows of equal length, all of whose targets are words."""
    row_N = np.repeat(np.arange(ROWS), EACH)
    measured = Measured(
        logp, np.full_like(logp, 0.5), logp * 0, logp * 0, logp * 0, logp > -1, row_N == -1, targets, row_N,
        row_N * 0.0, np.full_like(row_N, CLASSES.index("words")), list(range(ROWS)), 1.0, 1,
    )  # fmt: skip
    inputs = RiskInputs(
        measured=measured, max_length=99, counts=RowCounts(ROWS, len(logp), len(logp), 0, 0, 0),
        where=[f"f:{i}" for i in range(ROWS)], tokens=lambda ids: [f"t{i}" for i in ids],
    )  # fmt: skip
    return find_risks(inputs)


def test_a_row_that_looks_wrong_is_named() -> None:
    logp = np.log(np.random.default_rng(0).uniform(0.7, 0.99, ROWS * EACH))
    logp[7 * EACH : 8 * EACH] = math.log(0.01)
    odd = next(risk for risk in made_up(logp, np.arange(ROWS * EACH)) if risk.name == "odd rows")
    assert [row.where for row in odd.rows] == ["f:7"]
    assert odd.value > 5


def test_a_format_that_the_model_never_writes_is_named() -> None:
    """Token 3 stands in every row with p 0.001; token 4 is as unlikely, but stands in few."""
    rng = np.random.default_rng(0)
    logp, targets = np.log(rng.uniform(0.7, 0.99, ROWS * EACH)), np.arange(100, 100 + ROWS * EACH)
    for token, places in ((3, np.arange(ROWS) * EACH + 20), (4, np.arange(5) * EACH + 30)):
        targets[places], logp[places] = token, math.log(0.001)
    risk = next(risk for risk in made_up(logp, targets) if risk.name == "format tokens")
    assert "'t3' (p 0.001)" in risk.evidence and "t4" not in risk.evidence
    assert risk.rows[0].where == "f:0" and "'t3' p 0.001" in risk.rows[0].note
    assert "format tokens" not in {risk.name for risk in made_up(np.log(np.full(ROWS * EACH, 0.8)), targets)}


def test_an_unexpected_start_is_said_once() -> None:
    logp = np.log(np.random.default_rng(0).uniform(0.7, 0.99, ROWS * EACH))
    targets, starts = np.arange(100, 100 + ROWS * EACH), np.arange(ROWS) * EACH
    targets[starts], logp[starts] = 3, math.log(0.001)
    found = {risk.name for risk in made_up(logp, targets)}
    assert found == {"first token", "no end"}  # made-up rows have no end


def test_the_next_commands_read_the_same_rows(model: str, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"q": "a?", "a": "b"}\n' * 3)
    found = diagnosed(
        model, str(tmp_path / "r.jsonl"), out=tmp_path / "o", gradients=False, max_length=64,
        columns={"prompt": "q", "completion": "a"}, system_prompt="Be brief.",
    )  # fmt: skip
    for command in found.verdict.next:
        assert "--max-length 64" in command
        assert "--columns prompt=q,completion=a" in command and "--system-prompt 'Be brief.'" in command
        assert "--model" in command and command.count("--data ") == 1


def test_the_time_is_kept_and_the_sample_is_random(model: str, tmp_path: Path) -> None:
    data = rows_file(tmp_path / "rows.jsonl", 4000)
    found = diagnosed(model, data, out=tmp_path / "out", seconds=1e-3, gradients=False)
    assert 1 <= found.measured_rows < 4000 and found.rows == 4000
    again = diagnosed(model, data, out=tmp_path / "out", rows=7, gradients=False, seed=1)
    assert again.measured_rows == 7


def test_factor_is_bounded() -> None:
    assert learning_rate_factor(0.2) == 5
    assert learning_rate_factor(1e-6) == 10 == learning_rate_factor(0)
    assert learning_rate_factor(100) == 0.5


def test_as_a_user(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = rows_file(tmp_path / "rows.jsonl"), str(tmp_path / "out")
    given = ["diagnose", "--model", model, "--data", data, "--output-dir", out, "--rows", "9"]
    assert main(given) == 0
    shown = capsys.readouterr().out
    for words in ("Mean target probability", "power alpha=0.5", "end tokens", "Next", "diagnosis.html"):
        assert words in shown
    assert main([*given, "--json", "--objectives", "dft,power:alpha=0.25"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [one["label"] for one in printed["objectives"]] == ["sft", "dft", "power alpha=0.25"]
    assert printed == json.loads((tmp_path / "out/diagnosis.json").read_text())
    assert (tmp_path / "out/diagnosis.html").stat().st_size > 1000
    assert main([*given[:-3], model, *given[-2:]]) == 2
    assert f"{model}: the folder is that of a run or a model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--objectives", "dtf"], "dft"),
        (["--objectives", "power:beta=1"], "alpha"),
        (["--objectives", "sft@0.3+dft@0.7"], "one by one: sft, dft"),
        (["--goal", "win"], "generalise"),
        (["--rows", "0"], "--rows: must be at least 1 (got 0)"),
        (["--check-overlap", "gsm9k"], "gsm8k"),
        (["--data", "nowhere.jsonl"], "no such file"),
        (["--output-dir", "/dev/null/x"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    data = rows_file(tmp_path / "rows.jsonl")
    given = {"--model": model, "--data": data, "--output-dir": str(tmp_path / "out")} | {more[0]: more[1]}
    assert main(["diagnose", *(part for pair in given.items() for part in pair)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("rectune") or "Error" not in error
    assert says in error


def test_a_model_without_chat_template(tmp_path: Path) -> None:
    model = save_toy(tmp_path / "m", tokenizer=byte_tokenizer(chat_template=None))
    how = {"rows": 3, "gradients": False, "chat_template": "none"}
    assert diagnosed(model, rows_file(tmp_path / "rows.jsonl"), out=tmp_path / "o", **how).measured_rows == 3
