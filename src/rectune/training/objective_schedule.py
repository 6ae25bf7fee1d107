"""Which objective a step trains with: one for the whole run, or several one after the other.

Users report that learning the format with SFT first makes DFT work; `phases` is for that.
"""

from __future__ import annotations

from dataclasses import dataclass

from rectune.config import ObjectiveConfig
from rectune.errors import UserError, unknown_name
from rectune.objectives import Objective, check_settings, column_names, resolve, setting_names, vanishes


@dataclass(frozen=True)
class Phase:
    """An objective with its settings, in force until `end` (a share of the steps)."""

    objective: Objective
    settings: dict[str, float]
    protect: float
    end: float

    @property
    def name(self) -> str:
        return self.objective.__name__

    @property
    def columns(self) -> tuple[str, ...]:
        return column_names(self.objective)


def make_phases(config: ObjectiveConfig) -> list[Phase]:
    """The phases of a run, ends ascending to 1.

    Raises:
        UserError: An unknown objective or setting, or shares that do not add up to 1.
    """
    shares = _parse(config.phases) if config.phases else [(config.name, 1.0)]
    known = {name for objective, _ in shares for name in setting_names(objective)}
    for setting in config.settings:
        if setting not in known:
            objectives = ", ".join(objective for objective, _ in shares)
            raise unknown_name(f"setting of {objectives}", setting, known, where=f"objective.{setting}")
    own = [
        check_settings(name, {k: v for k, v in config.settings.items() if k in setting_names(name)})
        for name, _ in shares
    ]
    protect = config.protect
    if protect is None:
        protect = float(
            any(vanishes(name, **settings) for (name, _), settings in zip(shares, own, strict=True))
        )
    phases, end = [], 0.0
    for (name, share), settings in zip(shares, own, strict=True):
        end += share
        phases.append(Phase(resolve(name), settings, protect, end))
    if len({"pair" in phase.columns for phase in phases}) > 1:
        raise UserError(
            "an objective over pairs and one over rows read different data",
            where="objective.phases",
            hint="train with one, then with the other from its model",
        )
    return phases


def phase_at(phases: list[Phase], step: int, steps: int) -> Phase:
    """The phase of `step` (from 0) of `steps`."""
    return next((phase for phase in phases if step < round(phase.end * steps)), phases[-1])


def _parse(text: str) -> list[tuple[str, float]]:
    shares = []
    for part in text.split(","):
        name, _, share = part.strip().partition(":")
        resolve(name)
        try:
            shares.append((name, float(share)))
        except ValueError:
            raise UserError(
                f"'{part.strip()}' is not of the form NAME:SHARE",
                where="objective.phases",
                hint="for example sft:0.3,dft:0.7",
            ) from None
    total = sum(share for _, share in shares)
    if abs(total - 1) > 1e-6 or any(share <= 0 for _, share in shares):
        raise UserError(
            f"the shares of {text} are to be positive and add up to 1, not {total:g}",
            where="objective.phases",
        )
    return shares
