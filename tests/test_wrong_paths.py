"""A path that leads nowhere is found before any weights are loaded, and leaves no folder behind, in every verb."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from rectune.cli.app import main
from reported import write_lines
from toys import save_toy


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, pairs, problems and graded answers that are all right."""
    folder = tmp_path_factory.mktemp("given")
    save_toy(folder / "model")
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    rows = [{"prompt": f"{n} and 1?", "completion": str(n + 1)} for n in range(20)]
    write_lines(folder / "rows.jsonl", rows)
    write_lines(folder / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 8)
    write_lines(folder / "problems.jsonl", [{"prompt": "1 and 1?", "answer": "2"}])
    write_lines(
        folder / "answers.jsonl", [{"answer": "2", "text": "2", "problem_id": "1", "sample_index": 0}]
    )
    return folder


TRAIN = "--model {g}/model --data {g}/rows.jsonl"
ASK = "--model {g}/model --problems {g}/problems.jsonl"
VERBS = {
    "train": f"train {TRAIN} --output-dir OUT",
    "plan": f"train {TRAIN} --output-dir OUT --dry-run",
    "dpo": "train --model {g}/model --data {g}/pairs.jsonl --objective dpo --output-dir OUT",
    "diagnose": f"diagnose {TRAIN} --output-dir OUT",
    "compare": f"compare {TRAIN} --tasks-in {{g}}/problems.jsonl --output-dir OUT",
    "compare plan": f"compare {TRAIN} --tasks-in {{g}}/problems.jsonl --output-dir OUT --dry-run",
    "sample": f"sample {ASK} --output OUT/s.jsonl",
    "eval": "eval --model {g}/model --tasks {g}/problems.jsonl --output-dir OUT",
    "rl": f"rl {ASK} --output-dir OUT",
    "rl plan": f"rl {ASK} --output-dir OUT --dry-run",
    "rft": f"rft {ASK} --output-dir OUT",
    "rft plan": f"rft {ASK} --output-dir OUT --dry-run",
    "grade": "grade {g}/answers.jsonl --output OUT/g.jsonl",
    "select": "select {g}/answers.jsonl --for sft --output OUT/r.jsonl",
    "report": "report {g} --output OUT/r.html",
    "reproduce": "reproduce table1 --scale full --output-dir OUT",
    "eval by name": "eval --model {g}/model --tasks math500 --output-dir OUT",
}
SOME = ("train", "plan", "diagnose", "compare", "compare plan")
WRONG = [
    *((verb, "--data", "{g}/nope.jsonl", "nope.jsonl: no such file") for verb in (*SOME, "dpo")),
    *((verb, "--data", "{g}/empty", "empty: the folder has no file of rows") for verb in SOME),
    *((verb, "--chat-template", "{g}/nope.jinja", "nope.jinja: no such template") for verb in (*SOME, "rft")),
    *((verb, "--model", "{g}/nope", "nope: no such folder") for verb in VERBS
      if verb not in ("grade", "select", "report", "reproduce", "eval by name")),
    *((verb, "--model", "{g}/empty", "empty: no config.json") for verb in VERBS
      if verb not in ("grade", "select", "report", "reproduce", "eval by name")),
    *((verb, "--output-dir", "{g}/file/x", "file/x: the folder cannot be written (Not a directory)")
      for verb in VERBS if verb not in ("sample", "grade", "select", "report", "eval by name")),
    ("sample", "--output", "{g}/file/s.jsonl", "cannot be written"),
    ("grade", "--output", "{g}/file/s.jsonl", "cannot be written"),
    ("select", "--output", "{g}/file/s.jsonl", "cannot be written"),
    ("report", "--output", "{g}/file/s.html", "cannot be written"),
    *((verb, "--output", "{g}/empty", "empty: the file cannot be written (Is a directory)")
      for verb in ("sample", "grade", "select", "report")),
    *((verb, "--eval-data", "{g}/nope.jsonl", "eval_data: no such file")
      for verb in ("train", "plan", "dpo", "compare", "compare plan", "rft", "rft plan")),
    *((verb, "--reference-model", "{g}/nope", "no such folder")
      for verb in ("train", "plan", "dpo", "compare", "rft")),
    *((verb, "--reference-model", "{g}/nope.safetensors", "reference_model: no such file")
      for verb in ("train", "plan", "dpo")),
    *((verb, "--problems", "{g}/nope.jsonl", "nope.jsonl")
      for verb in ("sample", "rl", "rl plan", "rft", "rft plan")),
    *((verb, "--eval-problems", "{g}/nope.jsonl", "nope.jsonl") for verb in ("rl", "rl plan")),
    ("rl", "--chat-template", "{g}/nope.jinja", "no such template"),
    *((verb, "--chat-template", "{g}/nope.jinja", "no such template") for verb in ("sample", "eval")),
    ("rft", "--samples", "{g}/nope.jsonl", "samples: no such file"),
    ("rft plan", "--samples", "{g}/nope.jsonl", "samples: no such file"),
    ("eval", "--tasks", "{g}/nope.jsonl", "nope.jsonl"),
    ("eval", "--tasks", "{g}/nope.jsonl", "nope.jsonl"),
    ("eval", "--check-overlap", "{g}/nope.jsonl", "nope.jsonl"),
    *((verb, "--tasks-in", "{g}/nope.jsonl", "nope.jsonl") for verb in ("compare", "compare plan")),
    ("compare", "--tasks-out", "{g}/nope.jsonl", "nope.jsonl"),
    ("compare", "--validation", "{g}/nope.jsonl --race 8steps", "nope.jsonl"),
    *((verb, "--include-path", "{g}/nope" + more, "no such folder") for verb, more in (
        ("compare", " --tasks math500"),
        ("diagnose", " --check-overlap math500"), ("reproduce", ""))),
    ("eval by name", "--include-path", "{g}/nope", "no such folder"),
    ("diagnose", "--check-overlap", "{g}/nope.jsonl", "nope"),
    ("grade", "grade", "{g}/nope.jsonl", "nope.jsonl"),
    ("select", "select", "{g}/nope.jsonl", "nope.jsonl"),
    ("report", "report", "{g}/nope", "no such folder"),
    *((verb, verb.split()[0], "{g}/nope.toml", "nope.toml: no such recipe")
      for verb in ("train", "compare", "diagnose", "rl", "rft")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "flag", "value", "line"), WRONG, ids=lambda text: str(text).replace(" ", "_")
)
def test_a_wrong_path_is_one_line_before_weights(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    verb: str, flag: str, value: str, line: str,
) -> None:  # fmt: skip
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setenv("RECTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loaded)
    before = sorted(given.iterdir())
    out = tmp_path / "runs" / "x"
    words = VERBS[verb].format(g=given).replace("OUT", str(out)).split()
    wrong = value.format(g=given).split()
    if flag in words:
        at = words.index(flag)
        words[at + 1 : at + 2] = wrong if flag.startswith("-") or verb in ("grade", "select", "report") else [
            wrong[0], words[at + 1]]  # fmt: skip
    else:
        words += [flag, *wrong]
    assert main(words) == 2
    shown = capsys.readouterr()
    said = [one for one in shown.err.splitlines() if one.startswith("rectune: ")]
    assert len(said) == 1 and line in said[0] and "nope" in said[0] + "nope" * (value.count("nope") == 0)
    assert not out.parent.exists()
    assert sorted(given.iterdir()) == before
