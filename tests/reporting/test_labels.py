"""How a run's objective is named on a page, from the folder's config alone."""

from __future__ import annotations

from pathlib import Path

from rectune.reporting.grouping import objective_label


def test_a_label_runs_no_file_that_a_folder_names(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n\n\ndef f(logp):\n    return -logp\n"
    (tmp_path / "mine.py").write_text(code)
    objective = f"{tmp_path}/mine.py:f"
    assert objective_label({"objective": objective, "min_eos_weight": 0.0}).startswith(objective[:8])
    assert not (tmp_path / "ran").exists()
