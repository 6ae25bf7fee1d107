"""Objectives against their closed forms: value, gradient, protection, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rectune import objectives
from rectune.errors import UserError
from rectune.objective_spec import (
    apply_objective,
    column_names,
    effective_weight,
    label_of,
    parse_objective,
    row_nll_z,
    setting_names,
    slug_of,
)
from rectune.objective_spec import weight_vanishes_at_zero as vanishes
from rectune.objectives import OBJECTIVES

Columns = dict[str, Tensor]
Closed = Callable[[Columns], Tensor]


def columns(dtype: torch.dtype = torch.float64, *, seed: int = 0) -> Columns:
    """Twelve tokens of three interleaved rows, with p from 1e-6 to 0.97."""
    g = torch.Generator().manual_seed(seed)
    p = torch.tensor(
        [1e-6, 1e-3, 0.05, 0.15, 0.21, 0.3, 0.42, 0.55, 0.7, 0.81, 0.9, 0.97], dtype=torch.float64
    )
    logp = p[torch.randperm(12, generator=g)].log()

    def noise() -> Tensor:
        return torch.randn(12, generator=g, dtype=torch.float64)

    floats = {
        "logp": logp,
        "ref_logp": logp + 0.6 * noise(),
        "old_logp": logp + 0.3 * noise(),
        "entropy20": 3 * torch.rand(12, generator=g, dtype=torch.float64),
        "entropy": 4 * torch.rand(12, generator=g, dtype=torch.float64),
        "log_sum_p2": torch.rand(12, generator=g, dtype=torch.float64).log(),
        "lower_mass": torch.rand(12, generator=g, dtype=torch.float64),
        "row_nll_z": noise(),
        "kl": torch.rand(12, generator=g, dtype=torch.float64),
    }
    return {
        **{name: value.to(dtype) for name, value in floats.items()},
        "row": torch.tensor([0, 1, 2, 0, 1, 2, 2, 0, 0, 1, 2, 2]),
        "structural": torch.tensor([False, True] * 6),
        "pair": torch.tensor([0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1]),
        "sign": torch.tensor([1, -1, 1, 1, -1, -1, 1, 1, 1, -1, 1, -1]),
    }


def by_row(c: Columns, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """`reduce` of each row's values, at every token of the row, by a plain loop."""
    return torch.stack([reduce(c["row"] == r) for r in c["row"]])


def ratio(c: Columns, to: str) -> Tensor:
    return (c["logp"] - c[to]).exp()


def margin(c: Columns) -> Tensor:
    """0.1 times the pair's margin, at every token, by a plain loop."""
    log_ratio = c["sign"] * (c["logp"] - c["ref_logp"])
    return 0.1 * torch.stack([log_ratio[c["pair"] == pair].sum() for pair in c["pair"]])


def logit(p: float | Tensor) -> Tensor:
    return torch.as_tensor(p, dtype=torch.float64).logit()


WEIGHTS: dict[str, Closed] = {
    "rectified": lambda c: torch.where(c["logp"].exp() < 0.1, c["logp"].exp(), 1.0),
    "infosft": lambda c: (
        c["logp"].exp() * (1 - logit(c["logp"].exp()) / logit(0.93)).clamp(min=0).to(c["logp"].dtype)
    ),
    "deft": lambda c: c["logp"].exp() ** c["log_sum_p2"].exp(),
    "idft": lambda c: c["logp"].exp() ** (-(c["logp"] + c["entropy"])).exp().clamp(0.1, 2),
    "cadft": lambda c: c["logp"].exp() * torch.minimum(torch.ones_like(c["logp"]), (-c["row_nll_z"]).exp()),
    "lower_mass": lambda c: (c["lower_mass"] >= 0.5).to(c["logp"].dtype),
    "dpo": lambda c: c["sign"] * 0.1 * (-margin(c)).sigmoid(),
    "sft": lambda c: torch.ones_like(c["logp"]),
    "dft": lambda c: c["logp"].exp(),
    "power": lambda c: c["logp"].exp() ** 0.5,
    "threshold": lambda c: (c["logp"].exp() >= 0.2).to(c["logp"].dtype),
    "floor": lambda c: c["logp"].exp().clamp(min=0.1),
    "mixture": lambda c: 0.5 * c["logp"].exp() + 0.5,
    "uncertain": lambda c: c["logp"].exp() * (1 - c["logp"].exp()),
    "sequence_dft": lambda c: by_row(c, lambda own: c["logp"].exp()[own].prod()),
    "geometric_dft": lambda c: by_row(c, lambda own: c["logp"].exp()[own].prod() ** (1 / own.sum())),
    "eaft": lambda c: c["entropy20"] / math.log(20),
    "iw_sft": lambda c: ratio(c, "ref_logp").clamp(0.2, 1.8),
    "iw_sft_sequence": lambda c: by_row(
        c, lambda own: ((c["logp"] - c["ref_logp"])[own].mean()).exp().clamp(max=16)
    ),
    "psft": lambda c: ratio(c, "old_logp") * (ratio(c, "old_logp") <= 1.28),
    "asft": lambda c: c["logp"].exp(),
    "focal": lambda c: (1 - c["logp"].exp()) ** 2 - 2 * (1 - c["logp"].exp()) * c["logp"].exp() * c["logp"],
}
"""The effective weight -d loss / d logp of every objective with its default settings."""

VALUES: dict[str, Closed] = {
    **{name: lambda c, w=weight: -w(c) * c["logp"] for name, weight in WEIGHTS.items()},  # type: ignore[misc]
    "dpo": lambda c: (
        -margin(c).sigmoid().log() / torch.stack([(c["pair"] == pair).sum() for pair in c["pair"]])
    ),
    "psft": lambda c: -ratio(c, "old_logp").clamp(max=1.28),
    "asft": lambda c: -c["logp"].exp() * c["logp"] + 0.05 * c["kl"],
    "focal": lambda c: -((1 - c["logp"].exp()) ** 2) * c["logp"],
}
"""The loss per token: -weight * logp, but where the gradient passes through more than logp."""

NAMES = sorted(OBJECTIVES)


def check_gradient(function: Callable[..., Tensor], name: str, dtype: torch.dtype = torch.float64) -> None:
    """The gradient through autograd is minus the closed-form weight, for an upstream of ones and for another."""
    c = columns(dtype)
    read = column_names(function)
    upstreams = (torch.ones(12, dtype=dtype), torch.linspace(-1, 2, 12, dtype=dtype))
    for upstream in upstreams[
        : 1 if name == "dpo" else 2
    ]:  # which of a pair's tokens bears its loss does not matter
        logp = c["logp"].clone().requires_grad_()
        loss = function(*({**c, "logp": logp}[n] for n in read))
        (gradient,) = torch.autograd.grad(loss, logp, upstream)
        expected = WEIGHTS[name](c)
        torch.testing.assert_close(gradient, -expected * upstream)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_weight(name: str, dtype: torch.dtype) -> None:
    c = columns(dtype)
    loss = apply_objective(name, c)
    assert loss.dtype == dtype and loss.shape == (12,)
    torch.testing.assert_close(loss, VALUES[name](c))
    check_gradient(OBJECTIVES[name], name, dtype)
    with torch.no_grad():
        weight = effective_weight(name, c)
    assert weight.dtype == dtype and not weight.requires_grad
    torch.testing.assert_close(weight, WEIGHTS[name](c))


def test_every_objective_has_a_closed_form() -> None:
    assert set(WEIGHTS) == set(VALUES) == set(OBJECTIVES)


@pytest.mark.parametrize(
    ("name", "settings", "weight"),
    [
        ("power", {"alpha": 0.0}, lambda p: torch.ones_like(p)),
        ("power", {"alpha": "1"}, lambda p: p),
        ("power", {"alpha": "0.25"}, lambda p: p**0.25),
        ("threshold", {"q": "0.5"}, lambda p: (p >= 0.5).double()),
        ("threshold", {"q": 0}, lambda p: torch.ones_like(p)),
        ("floor", {"minimum": 0.3}, lambda p: p.clamp(min=0.3)),
        ("mixture", {"share": 0.9}, lambda p: 0.9 * p + 0.1),
        ("focal", {"gamma": 0}, lambda p: torch.ones_like(p)),
        ("rectified", {"tau": "0.5"}, lambda p: torch.where(p < 0.5, p, 1.0)),
        ("infosft", {"ceiling": 0.75}, lambda p: (p * (1 - logit(p) / math.log(3))).clamp(min=0)),
    ],
)
def test_settings_as_numbers_and_strings(name: str, settings: dict[str, object], weight: Closed) -> None:
    c = columns()
    torch.testing.assert_close(effective_weight(name, c, **settings), weight(c["logp"].exp()))  # type: ignore[arg-type]


def test_a_dft_without_stop_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient check passes for dft and fails for the mutant, whose values are the same."""
    check_gradient(objectives.dft, "dft")

    def mutant(logp: Tensor) -> Tensor:
        return -logp.exp() * logp

    torch.testing.assert_close(mutant(columns()["logp"]), VALUES["dft"](columns()))
    with pytest.raises(AssertionError):
        check_gradient(mutant, "dft")
    monkeypatch.setattr(objectives, "sg", lambda tensor: tensor)
    for name in (
        "dft", "power", "floor", "mixture", "uncertain", "sequence_dft", "geometric_dft", "asft", "rectified",
        "infosft", "deft", "idft", "cadft",
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            test_value_and_weight(name, torch.float64)
    test_value_and_weight("sft", torch.float64)  # has no weight to stop


def test_focal_gradient_passes_through_the_weight() -> None:
    logp = columns()["logp"].requires_grad_()
    for gamma in (0.5, 1.0, 2.0, 5.0):
        assert torch.autograd.gradcheck(lambda x, g=gamma: objectives.focal(x, gamma=g), logp)
    sure = torch.zeros(2, dtype=torch.float32, requires_grad=True)  # p = 1
    objectives.focal(sure, gamma=0.5).sum().backward()
    assert sure.grad is not None and sure.grad.isfinite().all()


def test_deft_and_infosft_at_some_probabilities() -> None:
    """DEFT near SFT where the distribution is flat and near DFT where it is peaked; InfoSFT's peak in the middle."""
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    info = effective_weight("infosft", {"logp": p.log()})
    assert float(p[info.argmax()]) == pytest.approx(0.57)
    assert [float(info[i]) for i in (0, 56, 59)] == pytest.approx([0.028, 0.508, 0.506], abs=5e-4)
    assert (info[p > 0.93] == 0).all()
    rare = torch.full((2,), 0.001, dtype=torch.float64).log()
    spread = torch.tensor([0.05, 0.9], dtype=torch.float64).log()
    deft = effective_weight("deft", {"logp": rare, "log_sum_p2": spread})
    torch.testing.assert_close(deft, torch.tensor([0.71, 0.002], dtype=torch.float64), rtol=0.01, atol=1e-4)


def test_idft_without_its_stop_gradient_can_push_a_target_down() -> None:
    """p^g as losses.py of its released code has it, with a gradient: the true weight is p^g (1 + g log p)."""
    logp, entropy = torch.tensor([0.3]).double().log(), torch.tensor([0.2]).double()

    def released(logp: Tensor, entropy: Tensor) -> Tensor:
        g = (-(logp + entropy) / 2).exp().clamp(0.1, 2).detach()
        return -(g * logp).exp() * logp

    c, g = {"logp": logp, "entropy": entropy}, math.exp(-(math.log(0.3) + 0.2) / 2)
    weight = float(effective_weight(released, c))
    assert weight == pytest.approx(0.3**g * (1 + g * math.log(0.3))) == pytest.approx(-0.135, abs=5e-4)
    assert float(effective_weight("idft", c, beta=2)) == pytest.approx(0.3**g)


# --- Rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_long_rows_stay_in_log_space(dtype: torch.dtype) -> None:
    """p of 5000 tokens of 1e-3 is below every float, its 5000th root is 1e-3."""
    logp = torch.full((5001,), math.log(1e-3), dtype=dtype)
    c = {"logp": logp, "row": torch.tensor([0] * 5000 + [1]), "ref_logp": logp - 1}
    for name in ("sequence_dft", "geometric_dft", "iw_sft_sequence"):
        assert apply_objective(name, c).isfinite().all() and effective_weight(name, c).isfinite().all()
    whole = effective_weight("sequence_dft", c)
    assert whole[0] == 0
    torch.testing.assert_close(whole[-1], torch.tensor(1e-3, dtype=dtype))
    geometric = effective_weight("geometric_dft", c)
    torch.testing.assert_close(geometric, torch.full_like(geometric, 1e-3), rtol=1e-3, atol=0)
    torch.testing.assert_close(effective_weight("iw_sft_sequence", c), torch.full_like(logp, math.e))
    twice = effective_weight(
        "iw_sft_sequence", c, temperature=2
    )  # the default of the published loss function
    torch.testing.assert_close(twice, torch.full_like(logp, math.exp(2)))
    far = {**c, "ref_logp": logp - 1000}
    assert (effective_weight("iw_sft_sequence", far) == 16).all()


@pytest.mark.parametrize("name", NAMES)
def test_order_within_a_pack_does_not_matter(name: str) -> None:
    c = columns()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    renamed = torch.tensor([5, 0, 2])  # rows are numbered anew, with gaps
    shuffled = {n: v[order] for n, v in c.items()} | {"row": renamed[c["row"]][order]}
    torch.testing.assert_close(apply_objective(name, shuffled), apply_objective(name, c)[order])
    torch.testing.assert_close(effective_weight(name, shuffled), effective_weight(name, c)[order])


@pytest.mark.parametrize("protect", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_give_a_connected_zero(name: str, protect: float) -> None:
    parameter = torch.ones(3, dtype=torch.float64, requires_grad=True)
    c = {n: v[:0] for n, v in columns().items()}
    c |= {"logp": parameter[:0] * 2, "kl": parameter[:0] * 3}
    loss = apply_objective(name, c, min_eos_weight=protect).sum()
    assert loss == 0
    loss.backward()
    assert parameter.grad is not None and (parameter.grad == 0).all()
    assert effective_weight(name, c, min_eos_weight=protect).shape == (0,)


def test_clips() -> None:
    logp = torch.log(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    c = {"logp": logp, "ref_logp": logp + torch.tensor([3.0, 0.1, -3.0], dtype=torch.float64)}
    weight = effective_weight("iw_sft", c)
    torch.testing.assert_close(weight, torch.tensor([0.2, math.exp(-0.1), 1.8], dtype=torch.float64))
    weight = effective_weight("iw_sft", c, low="0.5", high=1.1)
    torch.testing.assert_close(weight, torch.tensor([0.5, math.exp(-0.1), 1.1], dtype=torch.float64))
    ratios = torch.tensor([1.27, 1.29, 0.3], dtype=torch.float64)
    weight = effective_weight("psft", {"logp": logp, "old_logp": logp - ratios.log()})
    torch.testing.assert_close(weight, torch.tensor([1.27, 0, 0.3], dtype=torch.float64))


def test_asft_anchors_through_its_kl_column() -> None:
    c = columns()
    kl = c["kl"].clone().requires_grad_()
    apply_objective("asft", {**c, "kl": kl}, anchor=0.3).sum().backward()
    torch.testing.assert_close(kl.grad, torch.full_like(kl, 0.3))
    torch.testing.assert_close(apply_objective("asft", c, anchor=0), apply_objective("dft", c))


# --- Protection -----------------------------------------------------------------------------------------


def own_square(logp: Tensor, *, factor: float = 1.0) -> Tensor:
    """An objective of a user: weight factor * p^2."""
    return -factor * (2 * logp).exp().detach() * logp


@pytest.mark.parametrize("least", [0.7, 1.0])
@pytest.mark.parametrize("objective", ["dft", "focal", "eaft", "psft", "sequence_dft", own_square])
def test_protect_gives_structural_tokens_a_least_weight(
    objective: str | Callable[..., Tensor], least: float
) -> None:
    c = columns()
    plain = effective_weight(objective, c)
    structural = c["structural"]
    assert (plain[structural] < least).any() and (plain[~structural] < least).any()
    expected = torch.where(structural, plain.clamp(min=least), plain)
    torch.testing.assert_close(effective_weight(objective, c, min_eos_weight=least), expected)
    logp = c["logp"].clone().requires_grad_()
    loss = apply_objective(objective, {**c, "logp": logp}, min_eos_weight=least)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(gradient, -expected)
    torch.testing.assert_close(loss[~structural], apply_objective(objective, c)[~structural])


VANISHES = {
    "rectified": True, "infosft": True, "deft": True, "idft": True, "lower_mass": True, "cadft": True,
    "sft": False, "dft": True, "power": True, "threshold": True, "floor": False, "mixture": False,
    "uncertain": True, "focal": False, "sequence_dft": True, "geometric_dft": True, "eaft": False, "iw_sft": False,
    "iw_sft_sequence": False, "psft": False, "asft": True, "dpo": False,
}  # fmt: skip


def test_which_objectives_vanish_with_p() -> None:
    assert {name: vanishes(name) for name in NAMES} == VANISHES
    assert not vanishes("power", alpha=0) and not vanishes("floor", minimum="0.5")
    assert vanishes("mixture", share=1) and vanishes("floor", minimum=0) and not vanishes("threshold", q=0)
    assert vanishes(own_square)


# --- Weights of a step, and from elsewhere --------------------------------------------------------------


def step(seed: int = 0) -> Columns:
    """The columns of a step and the base's, with rows in order."""
    c, base = columns(seed=seed), columns(seed=seed + 1)
    order = c["row"].argsort(stable=True)
    return {name: column[order] for name, column in {**{f"ref_{n}": v for n, v in base.items()}, **c}.items()}


def test_row_nll_z_is_the_score_of_the_rows_mean() -> None:
    """Each row counts once, however long it is; rows of the same mean have 0, a broken row breaks itself alone."""
    logp, row = -torch.tensor([1.0, 3.0, 4.0, 4.0, 4.0, 9.0]).double(), torch.tensor([0, 0, 1, 1, 1, 3])
    scores = torch.tensor([2.0, 4.0, 9.0]).double()
    scores = (scores - 5) / (scores.std(correction=0) + 1e-6)
    torch.testing.assert_close(row_nll_z(logp, row), scores[torch.tensor([0, 0, 1, 1, 1, 2])])
    assert (row_nll_z(torch.full((4,), -2.0), torch.tensor([0, 1, 1, 2])) == 0).all()
    broken = row_nll_z(logp.index_fill(0, torch.tensor([1]), math.nan), row)
    assert broken[:2].isnan().all() and broken[2:].isfinite().all()


@pytest.mark.parametrize(
    "text", ["dft", "power:alpha=0.5", "deft", "eaft", "sequence_dft", "lower_mass", "cadft"]
)
def test_signal_base_is_the_weight_under_the_base(text: str) -> None:
    (phase,), (model,) = parse_objective(f"{text}:signal=base"), parse_objective(text)
    c = step()
    c |= phase.over_step(c, 0)
    under_base = {name: c[f"ref_{name}"] for name in model.columns if f"ref_{name}" in c} | {"row": c["row"]}
    expected = model.weight({**under_base, **model.over_step(under_base, 0)})
    assert set(phase.columns) <= set(c) and not torch.equal(
        expected, model.weight({**c, **model.over_step(c, 0)})
    )
    torch.testing.assert_close(phase.weight(c), expected)
    logp = c["logp"].clone().requires_grad_()
    loss = phase.loss({**c, "logp": logp})
    torch.testing.assert_close(loss, -expected * c["logp"])
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(gradient, -expected)


@pytest.mark.parametrize("least", [0.0, 1.0])
@pytest.mark.parametrize("text", ["dft", "deft:signal=base", "cadft", "iw_sft"])
def test_shuffled_weights_are_those_of_the_rule_in_another_order(text: str, least: float) -> None:
    """Of tokens that are not protected: those keep theirs, so that the mean weight is that of the rule."""
    shuffled, rule = (
        replace(parse_objective(each)[0], min_eos_weight=least) for each in (f"{text}:shuffled", text)
    )
    c = step()
    weight = rule.weight({**c, **rule.over_step(c, 0)})
    orders = [shuffled.weight({**c, **shuffled.over_step(c, seed)}) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    for order in orders:
        assert not torch.equal(order, weight)
        torch.testing.assert_close(order.sort().values, weight.sort().values)
        if least:
            assert torch.equal(order[c["structural"]], weight[c["structural"]])
    logp = c["logp"].clone().requires_grad_()
    loss = shuffled.loss({**c, "logp": logp, **shuffled.over_step(c, 1)})
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(gradient, -orders[2])


def test_a_control_protects_what_its_rule_does() -> None:
    for text in ("dft", "dft:shuffled", "dft:signal=base"):
        assert parse_objective(text)[0].vanishes()
    assert not parse_objective("floor:shuffled")[0].vanishes()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sft:signal=base", "sft cannot take signal=base: it gives every token the same weight"),
        ("sft:shuffled", "sft cannot be shuffled: it gives every token the same weight"),
        ("power:alpha=0:shuffled", "power cannot be shuffled"),
        ("iw_sft:signal=base", r"compares the model with another one already \(ref_logp\)"),
        ("asft:signal=base", r"another term than a weighted -log p \(kl\)"),
        ("focal:signal=base", "its loss is not a detached weight"),
        ("psft:shuffled", "its loss is not a detached weight"),
        ("dpo:shuffled", "its loss is not a detached weight"),
        ("dft:signal=bsae", "unknown signal of dft 'bsae'; did you mean 'base'"),
        ("dft:shuffled=1", "unknown setting of dft 'shuffled'"),
        ("dft:shufled", "is not an objective"),
        ("dft:signal", "is not an objective"),
    ],
)
def test_what_has_no_such_weights_is_refused_with_its_reason(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_objective(text)


# --- Names ----------------------------------------------------------------------------------------------


def test_an_objective_of_ones_own() -> None:
    def mine(logp: Tensor, entropy20: Tensor, *, scale: float = 2.0) -> Tensor:
        return -scale * entropy20 * logp

    c = columns()
    torch.testing.assert_close(apply_objective(mine, c, scale="3"), -3 * c["entropy20"] * c["logp"])
    torch.testing.assert_close(effective_weight(mine, c), 2 * c["entropy20"])
    assert column_names(mine) == ("logp", "entropy20")
    assert setting_names(mine) == ("scale",)

    def without_logp(kl: Tensor) -> Tensor:
        return kl

    assert (effective_weight(without_logp, c) == 0).all()


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    c = columns()
    with pytest.raises(UserError) as error:
        apply_objective("dtf", c)
    assert "'dft'" in str(error.value) and all(name in str(error.value) for name in OBJECTIVES)
    with pytest.raises(UserError) as error:
        apply_objective("power", c, alfa=1)
    assert "setting of power 'alfa'" in str(error.value) and "alpha" in str(error.value)
    with pytest.raises(UserError, match="known: none"):
        apply_objective("dft", c, alpha=1)
    for text, allowed in (
        ("rectified:tau=1", "tau of rectified must be between 0 and 1 .got 1."),
        ("infosft:ceiling=0.5", "ceiling of infosft must be between 0.5 and 1 .got 0.5."),
        ("idft:beta=0", "beta of idft must be above 0 .got 0."),
        ("cadft:beta=-1", "beta of cadft must be above 0 .got -1."),
        ("lower_mass:q=-1", "between 0 and 1"),
        ("rectified:tau=nan", "'nan' is not a number"),
    ):
        with pytest.raises(UserError, match=allowed):
            parse_objective(text)
    with pytest.raises(UserError, match="'much' is not a number"):
        apply_objective("power", c, alpha="much")
    with pytest.raises(UserError) as error:
        apply_objective("asft", {"logp": c["logp"], "row": c["row"]})
    assert "column for asft 'kl'" in str(error.value) and "known: logp, row" in str(error.value)
    with pytest.raises(UserError, match="structural"):
        apply_objective("dft", {"logp": c["logp"]}, min_eos_weight=1.0)


@pytest.mark.parametrize(
    ("text", "label", "slug", "ends"),
    [
        ("dft", "dft", "dft", [1]),
        (" power:alpha=0.5", "power alpha=0.5", "power-alpha-0.5", [1]),
        ("iw_sft:low=.1:high=2e+0", "iw_sft low=0.1 high=2", "iw_sft-low-0.1-high-2", [1]),
        ("dft:signal=model", "dft", "dft", [1]),
        ("dft:signal=base", "dft signal=base", "dft-signal-base", [1]),
        ("dft:shuffled", "dft shuffled", "dft-shuffled", [1]),
        (
            "sft@.5+power:shuffled:alpha=.3:signal=base@.5",
            "sft 0.5 then power alpha=0.3 signal=base shuffled 0.5",
            "sft-0.5-power-alpha-0.3-signal-base-shuffled-0.5",
            [0.5, 1],
        ),
        ("sft@0.3+dft@0.7", "sft 0.3 then dft 0.7", "sft-0.3-dft-0.7", [0.3, 1]),
        ("sft@.5+power@.5:alpha=2", "sft 0.5 then power alpha=2 0.5", "sft-0.5-power-alpha-2-0.5", [0.5, 1]),
        (
            "sft@.5 + power:alpha=2@.5",
            "sft 0.5 then power alpha=2 0.5",
            "sft-0.5-power-alpha-2-0.5",
            [0.5, 1],
        ),
    ],
)
def test_an_objective_in_one_word(text: str, label: str, slug: str, ends: list[float]) -> None:
    phases = parse_objective(text)
    assert (label_of(phases), slug_of(phases), [phase.end for phase in phases]) == (label, slug, ends)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dtf", "dft"),
        ("dft:alpha=1", "alpha"),
        ("power:alpha", "is not an objective"),
        ("power:beta=1", "alpha"),
        ("power:alpha=x", "not a number"),
        ("sft+dft", "each phase needs a share"),
        ("sft@0.3", "takes no share"),
        ("sft@+dft@1", "is not an objective"),
        ("sft@0.3+dft@0.6", "add up to 0.9"),
        ("sft@0+dft@1", "is not an objective"),
        ("sft@0.5+dpo@0.5", "over pairs"),
        ("", "is not an objective"),
    ],
)
def test_what_is_no_objective_says_why(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_objective(text)


def test_dpo_with_smoothed_labels() -> None:
    """A share of the pairs is taken for turned around: the weight changes sign where the margin is sure enough."""
    c = columns()
    pull = (1 - 0.2) * (-margin(c)).sigmoid() - 0.2 * margin(c).sigmoid()
    weight = effective_weight("dpo", c, label_smoothing=0.2)
    torch.testing.assert_close(weight, c["sign"] * 0.1 * pull)
    torch.testing.assert_close(
        effective_weight("dpo", c, label_smoothing=0.5), -c["sign"] * 0.1 * (margin(c).sigmoid() - 0.5)
    )
