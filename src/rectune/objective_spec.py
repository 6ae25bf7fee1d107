"""Objectives by their text, the same everywhere: on the command line, in recipes, in Python, in a run's config.

    OBJECTIVE = PHASE [+ PHASE ...]                       phases follow one another
    PHASE     = FUNCTION [:SETTING=NUMBER ...] [:signal=base] [:shuffled] [@SHARE]
                                                          share of the steps; needed where there are several phases
    FUNCTION  = a name of `OBJECTIVES`, or FILE.py:NAME   a function of the user's own

such as `dft`, `power:alpha=0.5`, `dft:signal=base`, `sft@0.3+dft@0.7`, `my_losses.py:cautious:beta=0.5`.
`signal=base` takes the weights of a rule from the frozen base in place of the model in training, and `shuffled` gives
them to the targets of a step in a random order: both for rules whose loss is a detached weight times -log p. A function
of the user's own follows the contract of `objectives.py`: positional parameters name columns, keyword-only ones are
settings.

The losses are in `objectives.py`; what the columns mean is in `columns.py`. Here a text becomes functions with
settings, a function is applied to columns, and its effective weight -d loss / d logp is found by autograd.
"""

from __future__ import annotations

import inspect
import math
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rectune.columns import COLUMNS, STEP_COLUMNS
from rectune.errors import UserError, unknown_name
from rectune.objectives import BETWEEN, OBJECTIVES, Objective, mean_by, sum_by
from rectune.runtime.io import load_function

FORMS = "dft, power:alpha=0.5, dft:signal=base, dft:shuffled, sft@0.3+dft@0.7 or FILE.py:FUNCTION"
SIGNALS = ("model", "base")
"""Whose columns a rule's weights are computed from: the model in training, or the frozen base."""
SHUFFLED = "shuffled_weight"
"""The column of weights in a random order, which `Phase.over_step` gives; no objective may read it."""


@dataclass(frozen=True)
class Phase:
    """An objective with its settings, in force until `end`.

    Attributes:
        function: The loss.
        name: As in the text: a name of `OBJECTIVES`, or FILE.py:NAME.
        settings: Keyword-only parameters, as far as they were given.
        end: Share of the steps at which the phase ends; that of the last phase is 1.
        min_eos_weight: Least effective weight of tokens that end a turn or are special.
        signal: Whose columns the weights are computed from, of `SIGNALS`.
        shuffled: Whether the weights of a step's targets are in a random order. Those that `min_eos_weight` protects
            keep theirs, so that the mean weight is that of the rule.
    """

    function: Objective
    name: str
    settings: dict[str, float]
    end: float = 1.0
    min_eos_weight: float = 0.0
    signal: str = "model"
    shuffled: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that the objective reads, with those that columns of the step are computed from."""
        return tuple(dict.fromkeys(("logp",) * self.is_fixed + self._read + self.step_inputs))

    @property
    def is_fixed(self) -> bool:
        """Whether its weights come from elsewhere than the model's columns of the token itself."""
        return self.signal == "base" or self.shuffled

    @property
    def step_columns(self) -> tuple[str, ...]:
        """The columns that depend on all targets of a step: `over_step` has to give them before `loss`."""
        return self._of_step + (SHUFFLED,) * self.shuffled

    @property
    def step_inputs(self) -> tuple[str, ...]:
        """Names of the columns that `over_step` reads besides `row` and `structural`."""
        others = [name for name in self._read if name not in ("row", *self._of_step)]
        return tuple(dict.fromkeys([*map(_logp_of, self._of_step), *others * self.shuffled]))

    @property
    def _read(self) -> tuple[str, ...]:
        return tuple(self._source(name) for name in column_names(self.function))

    @property
    def _of_step(self) -> tuple[str, ...]:
        return tuple(name for name in self._read if name in STEP_COLUMNS)

    def _source(self, name: str) -> str:
        """The column that a parameter of the function gets."""
        return f"ref_{name}" if self.signal == "base" and f"ref_{name}" in COLUMNS else name

    @property
    def label(self) -> str:
        """As it is shown: `power alpha=0.5`, `dft signal=base shuffled`."""
        shown = [f"{setting}={value:g}" for setting, value in self.settings.items()]
        shown += ["signal=base"] * (self.signal == "base") + ["shuffled"] * self.shuffled
        return " ".join([self.name.rpartition("/")[2], *shown])

    def loss(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Loss of each token, shape (N,): see `apply_objective`."""
        if self.is_fixed:
            return -self.weight(columns).to(columns["logp"].dtype) * columns["logp"]
        return apply_objective(self.function, columns, min_eos_weight=self.min_eos_weight, **self.settings)

    def weight(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Effective weight of each token, shape (N,): see `effective_weight`."""
        return columns[SHUFFLED] if self.shuffled else self._rule_weight(columns)

    def _rule_weight(self, columns: Mapping[str, Tensor]) -> Tensor:
        if self.signal == "base":
            read = {name: columns[self._source(name)] for name in column_names(self.function)}
            columns = {**columns, **read}
        return effective_weight(self.function, columns, min_eos_weight=self.min_eos_weight, **self.settings)

    def over_step(self, columns: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """The columns that depend on all targets of a step, each (N,).

        Args:
            columns: `step_inputs`, `row` and `structural` of all N targets of the step, in an order that does not
                depend on how it is cut into micro-batches; on the CPU and without gradient.
            seed: Of the order of shuffled weights.
        """
        step = {name: row_nll_z(columns[_logp_of(name)], columns["row"]) for name in self._of_step}
        if self.shuffled:
            weight = self._rule_weight({**columns, **step})
            free = ~columns["structural"] if self.min_eos_weight else torch.ones_like(columns["structural"])
            (places,) = free.nonzero(as_tuple=True)
            order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
            step[SHUFFLED] = weight.index_copy(0, places, weight[places[order]])
        return step

    def vanishes(self) -> bool:
        """See `weight_vanishes_at_zero`; that of the rule, so that a control protects what the rule does."""
        return weight_vanishes_at_zero(self.function, **self.settings)


def _logp_of(step_column: str) -> str:
    """The column that a column of the step is computed from."""
    return "ref_logp" if step_column.startswith("ref_") else "logp"


def row_nll_z(logp: Tensor, row: Tensor) -> Tensor:
    """The column of this name: mean NLL of each token's row, z-scored over all rows, (N,).

    Rows without a finite mean count for nothing, so that they alone get a value that is not finite.
    """
    nll = -mean_by(row, logp.double())
    known = nll[nll.isfinite() & (sum_by(row, torch.ones_like(logp)) > 0)]
    return ((nll - known.mean()) / (known.std(correction=0) + 1e-6))[row].to(logp.dtype)


class ObjectiveSettings(Protocol):
    """The settings of a run that say what it trains with: `ObjectiveConfig`."""

    @property
    def objective(self) -> str: ...
    @property
    def min_eos_weight(self) -> float | None: ...


def parse_objective(text: str) -> tuple[Phase, ...]:
    """The phases that a text such as `dft`, `power:alpha=0.5` or `sft@0.3+dft@0.7` stands for, ends ascending to 1.

    Raises:
        UserError: Another form, an unknown objective, column or setting (lists the known ones), shares that do not add
            up to 1, or a function of the user's own that does not follow the contract.
    """
    parts = _phase_texts(text)
    phases, end = [], 0.0
    for part in parts:
        name, settings, share = _split(part.strip(), text)
        if (share is None) != (len(parts) == 1):
            wrong = "a single objective takes no share" if share is not None else "each phase needs a share"
            raise UserError(f"'{text}': {wrong}", where="objective", hint="for example sft@0.3+dft@0.7")
        end += 1.0 if share is None else share
        phases.append(_phase(name, settings, end))
    if abs(end - 1) > 1e-6:
        raise UserError(f"'{text}': the shares add up to {end:g}, not to 1", where="objective")
    if len({"pair" in phase.columns for phase in phases}) > 1:
        raise UserError(
            f"'{text}': an objective over pairs and one over rows read different data",
            where="objective",
            hint="train with one, then with the other from its model",
        )
    return tuple(phases)


def _phase(name: str, settings: dict[str, str], end: float) -> Phase:
    """A phase with its settings, among them `signal` and `shuffled`.

    Raises:
        UserError: See `parse_objective`; also a rule that has no weights of which these make sense.
    """
    function = resolve(name)
    signal, shuffled = settings.pop("signal", "model"), settings.get("shuffled") == ""
    if shuffled:
        del settings["shuffled"]
    if signal not in SIGNALS:
        raise unknown_name(f"signal of {name}", signal, SIGNALS, where="objective")
    phase = Phase(function, name, check_settings(function, settings), end, signal=signal, shuffled=shuffled)
    if phase.is_fixed and (reason := _why_not_fixed(phase)):
        how = "take signal=base" if signal == "base" else "be shuffled"
        hint = "rules with weights are, for example, dft, power, floor, deft and eaft"
        raise UserError(f"{name} cannot {how}: {reason}", where="objective", hint=hint)
    return phase


def _why_not_fixed(phase: Phase) -> str | None:
    """Why the weights of a rule cannot come from the base, or be shuffled; None where they can."""
    read = column_names(phase.function)
    if "kl" in read:
        return "its loss has another term than a weighted -log p (kl)"
    others = [name for name in read if COLUMNS[name].source in ("reference", "old policy")]
    if phase.signal == "base" and others:
        return f"its weight compares the model with another one already ({others[0]})"
    columns = _example(read)
    weight = effective_weight(phase.function, columns, **phase.settings)
    if not torch.allclose(
        apply_objective(phase.function, columns, **phase.settings), -weight * columns["logp"]
    ):
        return "its loss is not a detached weight times -log p"
    if set(read) <= {"logp", "row"} and torch.allclose(weight, weight[:1]):
        return "it gives every token the same weight"
    return None


def make_phases(config: ObjectiveSettings) -> tuple[Phase, ...]:
    """The phases of a run: `parse_objective` with the least weight of turn ends decided.

    Where `min_eos_weight` is unset it is 1 if the loss of any phase vanishes with p, else 0.

    Raises:
        UserError: As `parse_objective`; also a column that training on demonstrations does not have.
    """
    phases = parse_objective(config.objective)
    for phase in phases:
        for name in phase.columns:
            if COLUMNS[name].source == "rollout":
                hint = "only rectune rl has it"
                raise UserError(f"{phase.name} reads the column '{name}'", where="objective", hint=hint)
        if phase.step_columns and "pair" in phase.columns:
            raise UserError(
                f"{phase.label} reads rows of a step and pairs, which have none", where="objective"
            )
    return protect_turn_ends(phases, config.min_eos_weight)


def protect_turn_ends(phases: Sequence[Phase], least: float | None) -> tuple[Phase, ...]:
    """The phases with this least weight of turn ends; None is 1 if the loss of any phase vanishes with p, else 0.

    Raises:
        UserError: A weight below 0, or no finite number.
    """
    if least is not None and not 0 <= least < math.inf:
        raise UserError(f"must be at least 0 (got {least:g})", where="min_eos_weight")
    if least is None:
        least = float(any(phase.vanishes() for phase in phases))
    return tuple(replace(phase, min_eos_weight=least) for phase in phases)


def phase_at(phases: Sequence[Phase], step: int, steps: int) -> Phase:
    """The phase of `step` (from 0) of `steps`."""
    return next((phase for phase in phases if step < round(phase.end * steps)), phases[-1])


def label_of(phases: Sequence[Phase]) -> str:
    """As an objective is shown: `power alpha=0.5`, `sft 0.3 then dft 0.7`."""
    if len(phases) == 1:
        return phases[0].label
    return " then ".join(
        f"{phase.label} {share:g}" for phase, share in zip(phases, _shares(phases), strict=True)
    )


def slug_of(phases: Sequence[Phase]) -> str:
    """As the folder of an objective is named: `power-alpha-0.5`, `sft-0.3-dft-0.7`."""
    return re.sub(r"[^\w.]+", "-", label_of(phases).replace(" then ", "-").replace(".py:", "-"))


def text_of(objective: str | Objective) -> str:
    """The text of an objective that is given as a function: its name, or FILE.py:NAME for one's own.

    Raises:
        UserError: A function that stands in no file, or inside another function.
    """
    if isinstance(objective, str):
        return objective
    name = objective.__name__
    if OBJECTIVES.get(name) is objective:
        return name
    file = inspect.getsourcefile(objective)
    if file is None or not Path(file).is_file() or objective.__qualname__ != name or name == "<lambda>":
        raise UserError(
            f"the function '{objective.__qualname__}' is not at the top of a Python file",
            where="objective",
            hint="write it to a file and give FILE.py:FUNCTION",
        )
    return f"{file}:{name}"


def resolve(objective: str | Objective) -> Objective:
    """The function behind a name of `OBJECTIVES` or FILE.py:NAME; a function passes through.

    Raises:
        UserError: No such name, file or function; or one's own function does not follow the contract.
    """
    if callable(objective):
        return objective
    if ":" in objective:
        function = load_function(objective, where="objective")
        _check_contract(function, objective)
        return function
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, OBJECTIVES, where="objective")
    return OBJECTIVES[objective]


def column_names(objective: str | Objective) -> tuple[str, ...]:
    """The columns that an objective reads: its positional parameters."""
    parameters = inspect.signature(resolve(objective)).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)


def setting_names(objective: str | Objective) -> tuple[str, ...]:
    """The settings that an objective knows: its keyword-only parameters."""
    parameters = inspect.signature(resolve(objective)).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def check_settings(objective: Objective, settings: Mapping[str, Any]) -> dict[str, float]:
    """Settings as numbers. Raises `UserError` for one that is unknown, no number, or out of its range (`BETWEEN`)."""
    known = setting_names(objective)
    bounds = BETWEEN.get(objective.__name__, {}) if OBJECTIVES.get(objective.__name__) is objective else {}
    checked = {}
    for name, value in settings.items():
        if name not in known:
            raise unknown_name(f"setting of {objective.__name__}", name, known, where="objective")
        try:
            checked[name] = float(value)
        except (TypeError, ValueError):
            checked[name] = math.nan
        if not math.isfinite(checked[name]):
            raise UserError(f"{name} of {objective.__name__}: '{value}' is not a number", where="objective")
        low, high = bounds.get(name, (-math.inf, math.inf))
        if not low < checked[name] < high:
            allowed = f"above {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            what = f"{name} of {objective.__name__} must be {allowed} (got {checked[name]:g})"
            raise UserError(what, where="objective")
    return checked


def apply_objective(
    objective: str | Objective, columns: Mapping[str, Tensor], *, min_eos_weight: float = 0.0, **settings: Any
) -> Tensor:
    """Loss of each token under an objective, by name or as a function of your own.

    Args:
        objective: A name of `OBJECTIVES`, FILE.py:NAME, or any function that follows the contract of `objectives.py`.
        columns: Name to tensor of shape (N,); more columns than needed are fine.
        min_eos_weight: Least effective weight of tokens whose column `structural` is true. An end-of-turn token that
            the model never emits has p near 0, so DFT would never teach it to stop. 0 leaves the objective as it is.
        settings: Keyword-only parameters of the objective.

    Returns:
        Loss per token, shape (N,), dtype of `logp`, differentiable.

    Raises:
        UserError: An unknown objective or setting, or a column that `columns` lacks; lists the known ones.
    """
    function = resolve(objective)
    settings = check_settings(function, settings)
    read = column_names(function)
    for name in (*read, "structural") if min_eos_weight else read:
        if name not in columns:
            raise unknown_name(f"column for {function.__name__}", name, columns)
    loss = function(*(columns[name] for name in read), **settings)
    if not min_eos_weight:
        return loss
    missing = (min_eos_weight - effective_weight(function, columns, **settings)).clamp(min=0)
    return loss - (missing * columns["structural"]).detach() * columns["logp"]


def effective_weight(
    objective: str | Objective, columns: Mapping[str, Tensor], *, min_eos_weight: float = 0.0, **settings: Any
) -> Tensor:
    """-d loss / d logp of every token, shape (N,), by autograd: exact for any objective, also for your own.

    Terms that depend on the model through another column, such as asft's KL, are not part of it.
    """
    with torch.enable_grad():
        fixed = {name: column.detach() for name, column in columns.items()}
        logp = fixed["logp"].clone().requires_grad_()
        loss = apply_objective(objective, {**fixed, "logp": logp}, min_eos_weight=min_eos_weight, **settings)
        # The empty sum is for a loss that does not depend on logp: its weight is 0.
        (gradient,) = torch.autograd.grad(loss.sum() + logp[:0].sum(), logp)
    return -gradient


def weight_vanishes_at_zero(objective: str | Objective, **settings: Any) -> bool:
    """Whether a token with p near 0 gets almost no weight, so that what the model never says cannot be taught."""
    weight = effective_weight(objective, _example(column_names(objective)), **settings).abs()
    return bool(weight[0] < 0.05 * weight.max())


def source_files(text: str) -> list[Path]:
    """The files of the user's own functions that an objective's text names; none of them is run."""
    names = [_split(part.strip(), text)[0] for part in _phase_texts(text)]
    return [Path(name.rpartition(":")[0]).expanduser() for name in names if ":" in name]


def _phase_texts(text: str) -> list[str]:
    return re.split(r"\+(?![\d.])", text.strip())


def _split(part: str, text: str) -> tuple[str, dict[str, str], float | None]:
    """Function, settings and share of one phase; the share may stand behind the name or at the end."""
    part, at, share = part.partition("@")
    if at and (colon := share.find(":")) >= 0:  # NAME@SHARE:SETTING=NUMBER
        part, share = part + share[colon:], share[:colon]
    found = re.fullmatch(r"((?:[^:=]*\.py:)?[^:=/]+)((?::(?:\w+=[^:=]+|shuffled))*)", part)
    portion = _number(share) if at else None
    if found is None or (portion is not None and not portion > 0):
        raise UserError(f"'{text}' is not an objective", where="objective", hint=f"give it as {FORMS}")
    settings = {name: value for name, _, value in (given.partition("=") for given in found[2].split(":")[1:])}
    return found[1], settings, portion


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _shares(phases: Sequence[Phase]) -> list[float]:
    ends = [0.0, *(phase.end for phase in phases)]
    return [round(end - start, 6) for start, end in pairwise(ends)]


def _example(names: Iterable[str]) -> dict[str, Tensor]:
    """Columns of four tokens, one in each row, with p from 1e-6 to 0.9 and everything else neutral; float64."""
    logp = torch.tensor([1e-6, 0.1, 0.5, 0.9], dtype=torch.float64).log()
    places, zeros, ones = torch.arange(len(logp)), torch.zeros_like(logp), torch.ones_like(logp)
    special = {
        "old_logp": logp, **dict.fromkeys(("row", "pair"), places),
        "entropy20": ones * math.log(20), "lower_mass": logp.exp(), "sign": ones, "logp": logp,
    }  # fmt: skip
    return {"logp": logp, **{name: special.get(name.removeprefix("ref_"), zeros) for name in names}}


def _check_contract(function: Objective, name: str) -> None:
    """Raise `UserError` unless a function of the user's own reads known columns and returns a loss per token."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise UserError(f"{name} is not a function", where="objective") from None
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            what = f"{name} takes *{parameter.name}; positional parameters name columns, keyword-only ones are settings"
            raise UserError(what, where="objective")
        if parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.name in ("signal", "shuffled"):
                what = f"setting '{parameter.name}' of {name} has a name that every objective has already"
                raise UserError(what, where="objective", hint="rename it")
            if not isinstance(parameter.default, (int, float)):
                raise UserError(
                    f"setting '{parameter.name}' of {name} needs a number as default", where="objective"
                )
        elif parameter.name not in COLUMNS:
            raise unknown_name(f"column of {name}", parameter.name, COLUMNS, where="objective")
    columns = _example(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
    for differentiable in {"logp", "kl"} & columns.keys():
        columns[differentiable].requires_grad_()
    read = [columns[p.name] for p in parameters if p.kind is not p.KEYWORD_ONLY]
    try:
        loss = function(*read)
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        what = f"{name} raised {type(error).__name__} on four tokens: {error}"
        raise UserError(what, where=f"{name.rpartition(':')[0]}:{line}") from None
    if not isinstance(loss, Tensor) or loss.shape != (4,):
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        what = f"{name} returned {got} for 4 tokens; return a loss for each token, shape (N,), not yet summed"
        raise UserError(what, where="objective")
    if not loss.requires_grad:
        raise UserError(
            f"the loss of {name} has no gradient; it must depend on logp or kl", where="objective"
        )
