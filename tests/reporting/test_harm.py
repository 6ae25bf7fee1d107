"""Worse, no difference and better on the page: an arm that is worse than the untouched model is named first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluations import ONE, write_evaluation
from rectune.cli.app import main
from rectune.reporting.report import report
from reported import edit


def evaluations(folder: Path, **rates: tuple[float, float]) -> list[str]:
    """One evaluation of each arm on two benchmarks, with such shares of right answers."""
    rng = np.random.default_rng(0)
    for name, both in rates.items():
        answers = {
            benchmark: [[(ONE, bool(x)) for x in row] for row in rng.random((150, 4)) < rate]
            for benchmark, rate in zip(("sums", "words"), both, strict=True)
        }
        write_evaluation(folder / name, answers)
        edit(folder / name / "evaluation.json", model=name)
    return [str(folder / name) for name in rates]


DOMAINS = ["--tasks-in", "sums", "--tasks-out", "words"]


def test_every_form_names_the_harm_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = evaluations(tmp_path, base=(0.6, 0.6), sft=(0.3, 0.2), dft=(0.6, 0.4))
    html, text = tmp_path / "r.html", tmp_path / "r.md"
    assert main(["report", *folders, *DOMAINS, "--output", str(html)]) == 0
    first, second, third = capsys.readouterr().out.splitlines()[:3]
    keep = "every arm is worse somewhere, and better nowhere."
    assert first == f"Keep the base model: {keep}"
    assert second.startswith("sft made the model worse: -") and " out of domain" in second
    assert third.startswith("dft made the model worse out of domain: -")
    assert f'<p class="bad"><strong>Keep the base model:</strong> {keep}</p>' in html.read_text()
    assert '<p class="bad"><strong>sft made the model worse:</strong> -' in html.read_text()
    assert main(["report", *folders, *DOMAINS, "--format", "markdown", "--output", str(text)]) == 0
    assert f"- Keep the base model: {keep}\n- sft made the model worse: " in text.read_text()
    data = report([Path(one) for one in folders], benchmarks_in=["sums"], benchmarks_out=["words"])
    assert data["verdict"]["judged"]["against_base"]["sft"]["out of domain"]["verdict"] == "worse"
    assert "| **sft - base** | **sft is worse** |" in text.read_text()


def test_good_is_marked_and_no_difference_is_not(tmp_path: Path) -> None:
    folders = evaluations(tmp_path, base=(0.3, 0.3), sft=(0.3, 0.3), dft=(0.6, 0.6))
    page = tmp_path / "r.html"
    assert main(["report", *folders, *DOMAINS, "--output", str(page)]) == 0
    html = page.read_text()
    assert '<p class="good"><strong>dft made the model better:</strong> +' in html
    assert "<p><strong>no difference between sft and the base model can be shown:</strong>" in html
    assert "Keep the base" not in html and 'class="bad"><strong>' not in html


def test_what_is_judged_apart_has_one_headline(tmp_path: Path) -> None:
    """Evaluations on other sets of benchmarks: the base model is kept only if no arm is better on any."""
    inside = evaluations(tmp_path / "a", base=(0.6, 0.6), sft=(0.3, 0.3))
    rng = np.random.default_rng(1)
    for name, rate in {"base": 0.2, "sft": 0.7}.items():
        rows = [[(ONE, bool(x)) for x in row] for row in rng.random((150, 4)) < rate]
        folder = write_evaluation(tmp_path / "b" / name, {"lists": rows})
        edit(folder / "evaluation.json", model=name)
        inside.append(str(folder))
    verdict = report([Path(one) for one in inside])["verdict"]
    assert not any("Keep the base model" in sentence for sentence in verdict["sentences"])
    assert verdict["sentences"][0].startswith(
        "sft made the model worse on sums and on words and better on lists: "
    )
