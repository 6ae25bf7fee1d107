"""Every target of `targets.py` for a moment, with the same examples each time; `make fuzz` runs them for longer."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS

EXAMPLES = {"rows": 15, "pairs_and_problems": 50, "recipe": 60, "run_folder": 8, "samples": 40, "answers": 15,
            "programs": 30, "diagnosis_page": 3}  # fmt: skip
"""About a second of each."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_a_clear_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    @settings(max_examples=EXAMPLES[name], derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def run(data: st.DataObject) -> None:
        TARGETS[name](data.draw)

    run()
    assert "Traceback" not in capfd.readouterr().err  # of a worker process
