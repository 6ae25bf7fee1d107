"""A path that leads nowhere is found before any weights are loaded, and leaves no folder behind, in every verb."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from rectune.cli.app import main
from reported import write_lines
from toys import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, pairs, problems and graded answers that are all right."""
    folder = tmp_path_factory.mktemp("given")
    tiny_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
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
    "train": f"train {TRAIN} --out OUT",
    "plan": f"train {TRAIN} --out OUT --dry-run",
    "dpo": "train --model {g}/model --data {g}/pairs.jsonl --objective dpo --out OUT",
    "diagnose": f"diagnose {TRAIN} --out OUT",
    "compare": f"compare {TRAIN} --benchmarks-in {{g}}/problems.jsonl --out OUT",
    "compare plan": f"compare {TRAIN} --benchmarks-in {{g}}/problems.jsonl --out OUT --dry-run",
    "sample": f"sample {ASK} --out OUT/s.jsonl",
    "eval": "eval --model {g}/model --benchmarks {g}/problems.jsonl --out OUT",
    "online": f"online {ASK} --out OUT",
    "online plan": f"online {ASK} --out OUT --dry-run",
    "offline": f"offline {ASK} --out OUT",
    "offline plan": f"offline {ASK} --out OUT --dry-run",
    "grade": "grade {g}/answers.jsonl --out OUT/g.jsonl",
    "select": "select {g}/answers.jsonl --for sft --out OUT/r.jsonl",
    "report": "report {g} --out OUT/r.html",
    "reproduce": "reproduce table1 --scale full --out OUT",
    "eval by name": "eval --model {g}/model --benchmarks math500 --out OUT",
}
SOME = ("train", "plan", "diagnose", "compare", "compare plan")
WRONG = [
    *((verb, "--data", "{g}/nope.jsonl", "nope.jsonl: no such file") for verb in (*SOME, "dpo")),
    *((verb, "--data", "{g}/empty", "empty: has no file of rows") for verb in SOME),
    *((verb, "--rows.template", "{g}/nope.jinja", "nope.jinja: no such template") for verb in (*SOME, "offline")),
    *((verb, "--model", "{g}/nope", "nope: no such folder") for verb in VERBS
      if verb not in ("grade", "select", "report", "reproduce", "eval by name")),
    *((verb, "--model", "{g}/empty", "empty: no config.json") for verb in VERBS
      if verb not in ("grade", "select", "report", "reproduce", "eval by name")),
    *((verb, "--out", "{g}/file/x", "file/x: cannot be written (Not a directory)")
      for verb in VERBS if verb not in ("sample", "grade", "select", "report", "eval by name")),
    ("sample", "--out", "{g}/file/s.jsonl", "cannot be written"),
    ("grade", "--out", "{g}/file/s.jsonl", "cannot be written"),
    ("select", "--out", "{g}/file/s.jsonl", "cannot be written"),
    ("report", "--out", "{g}/file/s.html", "cannot be written"),
    *((verb, "--out", "{g}/empty", "empty: cannot be written (Is a directory)")
      for verb in ("sample", "grade", "select", "report")),
    *((verb, "--rows.holdout", "{g}/nope.jsonl", "rows.holdout: no such file")
      for verb in ("train", "plan", "dpo", "compare", "compare plan", "offline", "offline plan")),
    *((verb, "--reference", "{g}/nope", "no such folder") for verb in ("train", "plan", "dpo", "compare", "offline")),
    *((verb, "--reference", "{g}/nope.safetensors", "reference: no such file") for verb in ("train", "plan", "dpo")),
    *((verb, "--problems", "{g}/nope.jsonl", "nope.jsonl")
      for verb in ("sample", "online", "online plan", "offline", "offline plan")),
    *((verb, "--holdout", "{g}/nope.jsonl", "nope.jsonl") for verb in ("online", "online plan")),
    ("online", "--template", "{g}/nope.jinja", "no such template"),
    *((verb, "--template", "{g}/nope.jinja", "no such template") for verb in ("sample", "eval")),
    ("offline", "--sampling.samples", "{g}/nope.jsonl", "sampling.samples: no such file"),
    ("offline plan", "--sampling.samples", "{g}/nope.jsonl", "sampling.samples: no such file"),
    ("eval", "--benchmarks", "{g}/nope.jsonl", "nope.jsonl"),
    ("eval", "--benchmark-file", "{g}/nope.jsonl", "nope.jsonl"),
    ("eval", "--check-overlap", "{g}/nope.jsonl", "nope.jsonl"),
    *((verb, "--benchmarks-in", "{g}/nope.jsonl", "nope.jsonl") for verb in ("compare", "compare plan")),
    ("compare", "--benchmarks-out", "{g}/nope.jsonl", "nope.jsonl"),
    ("compare", "--validation", "{g}/nope.jsonl --race 8steps", "nope.jsonl"),
    *((verb, "--benchmark-dir", "{g}/nope" + more, "no such folder") for verb, more in (
        ("compare", " --benchmarks math500"),
        ("diagnose", " --check-overlap math500"), ("reproduce", ""))),
    ("eval by name", "--benchmark-dir", "{g}/nope", "no such folder"),
    ("diagnose", "--check-overlap", "{g}/nope.jsonl", "nope"),
    ("grade", "grade", "{g}/nope.jsonl", "nope.jsonl"),
    ("select", "select", "{g}/nope.jsonl", "nope.jsonl"),
    ("report", "report", "{g}/nope", "no such folder"),
    *((verb, verb.split()[0], "{g}/nope.toml", "nope.toml: no such recipe")
      for verb in ("train", "compare", "diagnose", "online", "offline")),
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
