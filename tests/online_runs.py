"""Settings and reward functions of short online runs in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rectune.config import RLConfig, load_config

REWARDS = '''
"""Rewards for tests."""

import math


def length(prompt, text, answer, extra):
    return -abs(len(text) - int(answer)) / 10


def even(prompt, text, answer, extra):
    """1 for an even number of characters: neither always nor never earned by a model that has learnt nothing."""
    return len(text) % 2 == 0


def same(prompt, text, answer, extra):
    return 1


def raises(prompt, text, answer, extra):
    raise KeyError("no such thing")


def nan(prompt, text, answer, extra):
    return math.nan


def none(prompt, text, answer, extra):
    return None


def infinite(prompt, text, answer, extra):
    return math.inf


def several(prompt, text, answer, extra):
    return [1.0, 2.0]


def words(prompt, text, answer, extra):
    return "1.0"


def from_third(prompt, text, answer, extra, _calls=[]):
    """Fails at its 17th call: the third step of eight answers."""
    _calls.append(text)
    if len(_calls) == 17:
        raise ValueError("the service is gone")
    return len(text) % 2


not_a_function = 3
'''


def config_of(toy: dict[str, Any], out: Path, **settings: Any) -> RLConfig:
    """`reward` may be the name of a function in `REWARDS`; dots in names are written as two underscores."""
    if f"def {settings.get('reward')}(" in REWARDS:
        settings["reward"] = toy["reward"].replace("even", settings["reward"])
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return load_config(None, {**toy, "output_dir": out, **named}, RLConfig)
