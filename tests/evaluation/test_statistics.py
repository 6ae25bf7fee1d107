"""Statistics against closed forms, scipy and simulation."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from rectune.errors import UserError
from rectune.evaluation import statistics
from rectune.evaluation.statistics import (
    holm,
    maj_at_k_by_problem,
    mean_interval,
    paired_difference,
    pass_at_k_by_problem,
    problems_needed,
)


def draw(rng, P, N, mean, concentration=2.0):
    """Accuracies Beta-distributed over problems, N samples each."""
    p_P = rng.beta(mean * concentration, (1 - mean) * concentration, size=P)
    return (rng.random((P, N)) < p_P[:, None]).astype(int)


def coverage(mean, P, N, runs=400, concentration=2.0):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(runs):
        _, low, high = mean_interval(draw(rng, P, N, mean, concentration))
        hits += low <= mean <= high
    return hits / runs


# 400 runs have a standard error of 1.1 points; the long run is in docs/statistics.md.
@pytest.mark.parametrize(("mean", "concentration"), [(0.05, 0.5), (0.05, 2), (0.2, 10), (0.5, 2), (0.9, 2)])
def test_mean_interval_covers_with_30_problems(mean, concentration):
    assert 0.93 <= coverage(mean, P=30, N=16, concentration=concentration) <= 0.975


def test_mean_interval_covers_with_many_problems():
    assert 0.93 <= coverage(0.3, P=200, N=4) <= 0.97


def test_mean_interval_stays_at_the_mean_when_accuracies_are_far_from_beta():
    rng, hits, runs = np.random.default_rng(9), 0, 200
    for _ in range(runs):  # six problems in ten are hopeless, the others solved in half of all samples
        chance_P = np.where(rng.random(300) < 0.6, 0.0, 0.5)
        _, low, high = mean_interval((rng.random((300, 16)) < chance_P[:, None]).astype(int))
        hits += low <= 0.2 <= high
    assert 0.93 <= hits / runs <= 0.995


def test_samples_of_one_problem_are_one_cluster():
    column = np.array([1] * 10 + [0] * 20)[:, None]
    once, often = mean_interval(column), mean_interval(np.repeat(column, 16, axis=1))
    assert once == pytest.approx(often, abs=0.005)  # sixteen identical samples tell no more than one


def test_mean_interval_is_near_t_and_bca_when_all_is_regular():
    correct = draw(np.random.default_rng(0), 300, 16, 0.5)
    per_problem = correct.mean(1)
    mean, low, high = mean_interval(correct)
    reference = stats.bootstrap((per_problem,), np.mean, method="BCa", rng=1).confidence_interval
    t_low, t_high = stats.t.interval(0.95, 299, per_problem.mean(), stats.sem(per_problem))
    assert mean == pytest.approx(per_problem.mean())
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.004)
    assert (low, high) == pytest.approx((t_low, t_high), abs=0.004)


def test_level_widens_the_interval():
    correct = draw(np.random.default_rng(0), 50, 4, 0.3)
    narrow, wide = mean_interval(correct, level=0.8), mean_interval(correct, level=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


@pytest.mark.parametrize("value", [0, 1])
def test_unanimous_problems_do_not_prove_certainty(value):
    mean, low, high = mean_interval(np.full((30, 16), value))
    assert mean == value
    assert high - low == pytest.approx(0.1224, abs=1e-3)  # t^2 / (P + t^2)
    assert (low, high)[value] == value
    exact = stats.beta.ppf([0.025, 0.975], 30 * value + (1 - value), 30 * (1 - value) + value)
    assert abs(high - low - (exact[1] if value == 0 else 1 - exact[0])) < 0.01  # Clopper-Pearson: 0.116


def test_interval_stays_inside_zero_and_one_and_holds_the_mean():
    rng = np.random.default_rng(3)
    for P in (1, 2, 3, 5, 30):
        for mean in (0.01, 0.5, 0.99):
            m, low, high = mean_interval(draw(rng, P, 2, mean))
            assert 0 <= low <= m <= high <= 1
    assert mean_interval([[1]]) == (1.0, 0.0, 1.0)


def test_right_and_wrong_mirror_each_other():
    correct = draw(np.random.default_rng(8), 30, 16, 0.05)
    mean, low, high = mean_interval(correct)
    assert mean_interval(1 - correct) == pytest.approx((1 - mean, 1 - high, 1 - low), abs=1e-6)


def test_few_successes_do_not_prove_that_problems_are_alike():
    spread, lump = np.zeros((30, 16)), np.zeros((30, 16))
    spread[:16, 0], lump[0] = 1, 1
    assert mean_interval(lump).high > 1.5 * mean_interval(spread).high
    spread[1:] = 0
    assert 0.03 < mean_interval(spread).high < 0.1  # one of 480: independent samples would say 0.012


def test_shares_are_judged_like_the_samples_they_come_from():
    correct = draw(np.random.default_rng(8), 60, 64, 0.3)
    assert mean_interval(correct.mean(1)[:, None]) == pytest.approx(mean_interval(correct), abs=0.003)


def test_ragged_samples_count_each_problem_once():
    assert mean_interval([[1, 1, 1, 1], [0]]).mean == 0.5


def test_pass_at_k_equals_enumeration():
    correct = draw(np.random.default_rng(1), 12, 7, 0.4)
    for k in (1, 2, 4, 7):
        brute = [np.mean([any(row[list(s)]) for s in combinations(range(7), k)]) for row in correct]
        assert pass_at_k_by_problem(correct, k) == pytest.approx(np.array(brute))
    assert pass_at_k_by_problem(correct, 1) == pytest.approx(correct.mean(1))
    assert pass_at_k_by_problem([[1] + [0] * 999], 10) == pytest.approx(
        1 - math.comb(999, 10) / math.comb(1000, 10)
    )


def test_maj_at_k_votes_breaks_ties_and_ignores_blanks():
    assert maj_at_k_by_problem([[1, 0, 0]], [["2", "3", "3"]], 3) == 0
    assert maj_at_k_by_problem([[1, 0]], [["2", "3"]], 2) == 0.5
    assert maj_at_k_by_problem([[1, 0, 0]], [["2", None, None]], 3) == 1
    assert maj_at_k_by_problem([[0, 0]], [[None, None]], 2) == 0
    assert (
        maj_at_k_by_problem([[1, 1, 0, 0]], [["1/2", "0.5", "3", "4"]], 4) == 1
    )  # correct ones vote together
    answers = [["2", "3", "3"]]
    assert maj_at_k_by_problem([[1, 0, 0]], answers, 1) == pytest.approx(1 / 3, abs=0.1)


def test_paired_difference_agrees_with_scipy():
    rng = np.random.default_rng(5)
    a, b = draw(rng, 150, 8, 0.4), draw(rng, 150, 8, 0.5)
    mean, low, high, p = paired_difference(a, b)
    d = a.mean(1) - b.mean(1)
    t_low, t_high = stats.ttest_1samp(d, 0).confidence_interval()
    reference = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=20_000, vectorized=True, rng=0
    )
    assert mean == pytest.approx(d.mean())
    assert (low, high) == pytest.approx((t_low, t_high), abs=0.01)
    assert p == pytest.approx(reference.pvalue, abs=0.01)
    assert p == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)


def test_sign_flips_of_few_problems_are_exact():
    a, b = np.zeros((8, 1)), np.ones((8, 1))
    assert paired_difference(a, b).p_value == 2 / 2**8
    d = np.array([0.5, -0.25, 1, 0.75, 0, 0.25])
    reference = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert statistics.sign_flip(d) == pytest.approx(reference.pvalue)


def test_p_value_is_never_zero_and_the_order_only_turns_the_sign():
    rng = np.random.default_rng(5)
    a, b = draw(rng, 60, 4, 0.1), draw(rng, 60, 4, 0.9)
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert 0 < forth.p_value < 1e-3
    assert back.mean == pytest.approx(-forth.mean)
    assert back.p_value == forth.p_value


def test_equal_runs_differ_by_nothing_within_a_bound():
    a = draw(np.random.default_rng(5), 30, 4, 0.4)
    mean, low, high, p = paired_difference(a, a)
    assert (mean, p) == (0, 1)
    assert low == pytest.approx(-high)
    assert 0.1 < high < 0.13  # neither gains nor losses in 30 problems


def test_gains_that_few_problems_show_are_covered():
    rng, hits, runs = np.random.default_rng(12), 0, 600
    for _ in range(runs):
        a_P = rng.beta(0.1, 1.9, size=30)
        b_P = np.where(rng.random(30) < 0.5, a_P, rng.beta(0.3, 1.7, size=30))
        a, b = ((rng.random((30, 16)) < p[:, None]).astype(int) for p in (a_P, b_P))
        _, low, high, _ = paired_difference(b, a)
        hits += low <= 0.05 <= high
    assert 0.935 <= hits / runs <= 0.97  # Student's t: 0.92


def test_paired_limits_are_tangos_for_single_samples():
    a, b = np.zeros((40, 1)), np.zeros((40, 1))
    a[:9], b[5:12] = 1, 1  # 5 gains, 3 losses
    mean, low, high, _ = paired_difference(a, b)
    for limit in (low, high):
        # The score test of McNemar's table, its likelihood maximized by force.
        loss = np.linspace(max(0, -limit), (1 - limit) / 2, 200_001)[1:-1]
        likelihood = 5 * np.log(loss + limit) + 3 * np.log(loss) + 32 * np.log(1 - limit - 2 * loss)
        at_best = loss[likelihood.argmax()]
        z = (mean - limit) / math.sqrt((2 * at_best + limit - limit**2) / 40)
        assert abs(z) == pytest.approx(stats.t.ppf(0.975, 39), rel=1e-3)


def test_paired_difference_covers_and_rejects_at_its_level():
    rng, hits, rejected, runs = np.random.default_rng(11), 0, 0, 300
    for _ in range(runs):
        level_P = rng.beta(1, 2, size=40)
        a, b = ((rng.random((40, 8)) < level_P[:, None]).astype(int) for _ in range(2))
        _, low, high, p = paired_difference(a, b)
        hits += low <= 0 <= high
        rejected += p < 0.05
    assert 0.93 <= hits / runs <= 0.97
    assert 0.02 <= rejected / runs <= 0.08


def test_seeds_are_a_cluster_of_their_own():
    rng = np.random.default_rng(2)
    level_P = rng.beta(2, 2, size=200)
    a = (rng.random((4, 200, 4)) < level_P[:, None]).astype(int)
    shift_S = np.array([0.15, -0.15, 0.1, -0.1])  # seeds that differ far more than problems do
    chance = np.clip(level_P[None] + shift_S[:, None], 0, 1)[..., None]
    b = (rng.random((4, 200, 4)) < chance).astype(int)
    over_seeds = paired_difference(a, b)
    assert over_seeds == paired_difference(list(a), list(b))
    pooled = paired_difference(a.transpose(1, 0, 2).reshape(200, -1), b.transpose(1, 0, 2).reshape(200, -1))
    assert over_seeds.mean == pytest.approx(pooled.mean)
    assert over_seeds.high - over_seeds.low > 3 * (pooled.high - pooled.low)
    per_seed = (a.mean(2) - b.mean(2)).mean(1)
    assert over_seeds.p_value == pytest.approx(stats.ttest_1samp(per_seed, 0).pvalue, abs=0.1)


@pytest.mark.parametrize("seed", [0.0, 0.05])
def test_seeds_intervals_cover(seed):
    rng, hits, longer, runs = np.random.default_rng(3), np.zeros(2), [], 200
    for _ in range(runs):
        easy_P, seed_S = rng.uniform(0.3, 0.7, 60), rng.normal(0, seed, 3)
        chance = easy_P + seed_S[:, None] + rng.normal(0, 0.05, (3, 60))
        a = (rng.random((3, 60, 8)) < easy_P[None, :, None]).astype(int)
        b = (rng.random((3, 60, 8)) < chance[..., None]).astype(int)
        _, low, high, _ = paired_difference(a, b)
        pooled = paired_difference(*(x.transpose(1, 0, 2).reshape(60, -1) for x in (a, b)))
        longer.append((high - low) / (pooled.high - pooled.low))
        _, low_b, high_b = mean_interval(b)
        hits += [low <= 0 <= high, low_b <= 0.5 <= high_b]
    assert np.all(hits / runs >= 0.92)
    if seed:
        assert np.all(hits / runs <= 0.99)
    else:  # 98.5 %, docs/statistics.md
        assert 1 < np.median(longer) < 2


@pytest.mark.parametrize(("S", "at_most"), [(2, 0.05), (3, 0.06), (5, 0.06)])
def test_arms_whose_seeds_differ_by_4_points_are_rarely_called_different(S, at_most):
    """Two equal arms on 400 problems; two seeds at the 5 % level were wrong in 9 % of cases once."""
    rng, P, runs = np.random.default_rng(0), 400, 600
    found = 0
    for _ in range(runs):
        seed_Sx1, problem_P = rng.normal(0, 0.04 * 2**0.5, (S, 1)), rng.normal(0, 0.25, P)
        _, p_value = statistics.seed_spread(seed_Sx1 + problem_P + rng.normal(0, 0.3, (S, P)), 0.95)
        found += p_value < 0.05
    assert found / runs <= at_most


def test_two_seeds_that_agree_prove_nothing_about_seeds():
    rng = np.random.default_rng(4)
    easy_P = rng.uniform(0.2, 0.6, 200)
    a, b = ((rng.random((2, 200, 8)) < (easy_P + gain)[:, None]).astype(int) for gain in (0.1, 0.0))
    two = paired_difference(a, b)
    assert two.p_value > 0.05 > paired_difference(a[0], b[0]).p_value
    assert two.low < 0 < two.high


def test_accuracy_over_seeds_knows_both_sources_of_chance():
    rng = np.random.default_rng(6)
    same = draw(rng, 100, 8, 0.4)
    apart = np.stack([draw(rng, 100, 8, mean, 50) for mean in (0.3, 0.4, 0.5)])
    one, thrice = mean_interval(same), mean_interval(np.stack([same] * 3))
    assert thrice.high - thrice.low == pytest.approx(one.high - one.low, rel=0.1)  # no seed differs
    assert mean_interval(apart) == mean_interval(list(apart))
    assert mean_interval(apart).mean == pytest.approx(apart.mean())
    assert mean_interval(apart).high - mean_interval(apart).low > 0.3  # three seeds 10 points apart
    assert mean_interval(same[None]) == one
    assert mean_interval(np.ones((2, 1, 4))) == (1.0, 0.0, 1.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_problems_needed_gives_the_power_it_promises():
    rng = np.random.default_rng(4)
    a, b = draw(rng, 4000, 4, 0.4), draw(rng, 4000, 4, 0.4)
    needed = problems_needed(0.1, a, b)
    d = (a.mean(1) - b.mean(1)) - (a.mean() - b.mean()) + 0.1
    runs = rng.choice(d, size=(2000, needed))
    power = np.mean(stats.ttest_1samp(runs, 0, axis=1).pvalue < 0.05)
    assert 0.77 <= power <= 0.83
    assert problems_needed(0.05, a, b) == pytest.approx(4 * needed, rel=0.05)


def test_student_t_is_scipys():
    for freedom in (1, 2.5, 29, 5000):
        assert statistics.t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-12)
        assert statistics.t_two_sided(2.5, freedom) == pytest.approx(2 * stats.t.sf(2.5, freedom), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mean_interval([]), "no problems"),
        (lambda: mean_interval(np.zeros(5)), "problems x samples"),
        (lambda: mean_interval(np.zeros((2, 3, 4, 5))), "problems x samples"),
        (lambda: mean_interval([np.ones((2, 1)), np.ones((3, 1))]), "different numbers of problems"),
        (lambda: mean_interval([[1], []]), "problem 1: no samples"),
        (lambda: mean_interval([[0.5, float("nan")]]), "NaN"),
        (lambda: mean_interval([[2]]), r"\[0, 1\]"),
        (lambda: mean_interval([["a"]]), "not a matrix"),
        (lambda: mean_interval([[1]], level=95), "level 95"),
        (lambda: pass_at_k_by_problem([[1, 0], [1]], 2), "k = 2 with 1 samples"),
        (lambda: pass_at_k_by_problem([[1, 0]], 0), "k = 0"),
        (lambda: pass_at_k_by_problem([[0.5]], 1), "0 or 1"),
        (lambda: maj_at_k_by_problem([[1, 0]], [["2"]], 1), "differ in shape"),
        (lambda: paired_difference([[1]], [[1], [0]]), "a has 1 problems and b has 2"),
        (lambda: paired_difference(np.zeros((1, 3, 2)), np.zeros((1, 3, 2))), "two or more"),
        (lambda: problems_needed(0, [[1]], [[0]]), "difference of 0"),
        (lambda: problems_needed(0.1, [[1], [1]], [[0], [0]]), "no spread"),
        (lambda: holm([2.0]), "p-values"),
    ],
)
def test_bad_input_is_one_clear_line(call, said):
    with pytest.raises(UserError, match=said):
        call()


def test_p_values_over_seeds_stay_in_range() -> None:
    """Seeds that differ oppositely have a mean of exactly 0, where the weights' sum decides: it may round above 1."""
    for P in range(2, 40):
        a = np.zeros((2, P, 1))
        a[0, 0], a[1, 1] = 1, 1
        b = a[::-1].copy()
        found = paired_difference(list(a), list(b))
        assert 0 <= found.p_value <= 1 and holm([found.p_value])
