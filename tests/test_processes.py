"""The end of one of several processes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# Their exchanges may still be under way in a thread of gloo's when the last line is reached.
_MET = """
import atexit, sys
import torch, torch.distributed as distributed
from rectune.processes import leave
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
atexit.register(print, "tidied up")
sys.setswitchinterval(10)
for _ in range(500):
    distributed.all_gather([torch.empty(1)], torch.ones(1), async_op=True)
"""


def ended(last: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", _MET + last], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("code", [0, 2])
def test_a_process_that_met_others_ends_with_its_own_code(code: int) -> None:
    assert ended(f"leave({code}); print('not reached')") == (code, "tidied up\n")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="an interpreter that closes leaves its threads alone")
def test_without_it_a_thread_of_gloo_aborts_the_process() -> None:
    assert ended("")[0] == -signal.SIGABRT
