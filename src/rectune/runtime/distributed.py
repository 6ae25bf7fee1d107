"""Several processes of one command, as torchrun or accelerate start them: shares, waiting, and one that is lost.

A killed process closes its connections, which the others notice in the middle of what they wait for; one that hangs is
given up after half an hour, since the first process may take that long to write a large checkpoint. `torchrun` then
ends what is left, and with `--max-restarts` starts all anew. What is exchanged is left to torch.distributed.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from rectune.errors import UserError

if TYPE_CHECKING:
    import torch

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others within training."""

_FOREVER = timedelta(days=30)  # shares of independent work may differ by hours
_LOST = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe", re.IGNORECASE)


def share() -> tuple[int, int]:
    """This process's number, from 0, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def take_device() -> None:
    """Let each of several processes on a machine use an accelerator of its own, where there are some."""
    if share()[1] > 1:
        import torch

        if torch.accelerator.is_available():
            number = int(os.environ.get("LOCAL_RANK", "0"))
            torch.accelerator.set_device_index(number % torch.accelerator.device_count())


def default_device() -> torch.device:
    """The machine's accelerator where there is one, which torch built for one does not say; else the CPU."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def on_cpu() -> bool:
    """Whether this is one of several processes that have to meet on the CPU; accelerate needs to know it."""
    if share()[1] == 1:
        return False
    import torch

    return not torch.accelerator.is_available()


def wait_for_all() -> None:
    """Wait until every process has come here, however long that takes.

    Raises:
        UserError: Another process has ended instead.
    """
    if share()[1] > 1:
        with translate_peer_failure():
            import torch.distributed

            torch.distributed.barrier(_patient_group())


def exit_process(code: int) -> None:
    """End this process at once where it is one of several that have met; return where it is not.

    A thread of torch's gloo may still free the last thing exchanged. Were the interpreter closed meanwhile, that thread
    would abort the process (Python before 3.14), and torchrun would take a finished run for a failed one.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    if code == 0:
        distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@cache
def _patient_group() -> Any:
    import torch.distributed
    from accelerate import PartialState

    PartialState(cpu=on_cpu(), timeout=TIMEOUT)  # joins the others, and takes this process's GPU
    return torch.distributed.new_group(backend="gloo", timeout=_FOREVER)


@contextmanager
def translate_peer_failure() -> Iterator[None]:
    """Turn the failure of an exchange among several processes into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        if share()[1] == 1 or not _LOST.search(f"{type(error).__name__} {error}"):
            raise
        words = " ".join(str(error).split())[:200]
        raise UserError(
            f"another process of this command has ended or does not answer ({words})",
            hint="see its own message above; start all processes again (train: with --resume)",
        ) from error
