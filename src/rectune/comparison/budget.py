"""What a race may spend: optimizer steps over all runs, or time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rectune.errors import UserError

SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """So many steps over all runs, or so many seconds of training and validation."""

    amount: float
    in_steps: bool


def parse_budget(text: str) -> Budget:
    """`800steps`, `90s`, `30m` or `2h`.

    Raises:
        UserError: Anything else, or nothing to spend.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(steps|s|m|min|h)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise UserError(f"'{text}' is not a budget", where="--race", hint="such as 30m, 2h or 800steps")
    amount, unit = float(found[1]), found[2]
    return Budget(amount, True) if unit == "steps" else Budget(amount * SECONDS[unit], False)
