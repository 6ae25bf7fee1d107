"""The end of one of several processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Their exchanges may still be under way in a thread of gloo's when the last line is reached.
_MET = """
import atexit, sys
import torch, torch.distributed as distributed
from rectune.runtime.distributed import exit_process
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
atexit.register(print, "tidied up")
sys.setswitchinterval(10)
for _ in range(500):
    distributed.all_gather([torch.empty(1)], torch.ones(1), async_op=True)
"""


@pytest.mark.parametrize("code", [0, 2])
def test_a_process_that_met_others_ends_with_its_own_code(code: int) -> None:
    """Without `exit_process` most of them are aborted, by the thread that frees what was exchanged."""
    done = subprocess.run(
        [sys.executable, "-c", f"{_MET}exit_process({code}); print('not reached')"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "tidied up\n")
