"""The paired verdict on constructed evaluations: directions, intervals, corrections, domains, sharpness."""

from __future__ import annotations

import re

import numpy as np
import pytest

from evaluations import ONE, TRIAL, TWO, write_evaluation
from rectune.analysis.significance import compare_runs, sample_size
from rectune.errors import UserError
from rectune.evaluation.accuracy import verdict_matrix
from rectune.evaluation.statistics import holm, mean_interval, paired_difference

DOMAINS = {"gsm8k": "in", "svamp": "out"}


def random_answers(rng, rate, problems=150, n=4, difficulty=None):
    """Right with probability `rate`, times each problem's `difficulty`."""
    p = np.full(problems, rate) if difficulty is None else np.clip(rate * difficulty, 0, 1)
    return [[(ONE, bool(right)) for right in row] for row in rng.random((problems, n)) < p[:, None]]


@pytest.fixture
def three_seeds(tmp_path):
    """base (one evaluation), sft and dft (three seeds): dft is much better in s, the same in t; greedy and matched."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.5, 1.5, 150)

    def folders(label, kind, rates, seeds, **settings):
        return {
            seed: write_evaluation(
                tmp_path / label / f"{seed}" / kind,
                {name: random_answers(rng, rate, difficulty=hard) for name, rate in rates.items()}, **settings,
            )
            for seed in seeds
        }  # fmt: skip

    arms = {
        "sft": folders("sft", "plain", {"s": 0.3, "t": 0.4}, range(3), nats=0.8),
        "dft": folders("dft", "plain", {"s": 0.6, "t": 0.4}, range(3), nats=0.3),
        "base": folders("base", "plain", {"s": 0.1, "t": 0.1}, [0], nats=1.0),
    }
    greedy = {
        "sft": folders("sft", "greedy", {"s": 0.35, "t": 0.4}, range(3), temperature=0),
        "dft": folders("dft", "greedy", {"s": 0.6, "t": 0.4}, range(3), temperature=0),
    }
    matched = {"sft": folders("sft", "matched", {"s": 0.45, "t": 0.4}, range(3), temperature=0.6)}
    return arms, greedy, matched


def pair_of(verdict, benchmark, a, b):
    (pair,) = [p for p in verdict.benchmarks[benchmark].pairs if (p.a, p.b) == (a, b)]
    return pair


def test_the_trials_verdict_names_both_domains_and_the_shape(tmp_path):
    arms = {name: {0: write_evaluation(tmp_path / name, answers)} for name, answers in TRIAL.items()}
    verdict = compare_runs(arms, DOMAINS)
    won, lost = pair_of(verdict, "svamp", "dft", "sft"), pair_of(verdict, "gsm8k", "dft", "sft")
    assert won.difference == pytest.approx(0.165)
    assert lost.difference == pytest.approx(-0.12)
    assert won.shown and lost.shown
    assert won.sentence.startswith("dft beats sft by 16.5 points (95 % interval ")
    assert "400 problems, p < 0.001 after Holm's correction over 2 comparisons" in won.sentence
    assert won.sentence.endswith("one seed says nothing about other seeds")
    assert lost.sentence.startswith("sft beats dft by 12.0 points (95 % interval ")
    inside, _, outside, shape, contrast = verdict.sentences
    assert inside.startswith("In domain (gsm8k): sft 16.4 %, dft 4.4 %; sft beats dft by 12.0 points")
    assert outside.startswith("Out of domain (svamp): sft 7.0 %, dft 23.5 %; dft beats sft by 16.5 points")
    assert shape.startswith("Out of domain (svamp), the shape of the answers could explain it: 88 % of dft's")
    assert contrast == (
        "dft beats sft out of domain by 16.5 points and loses to it in domain by 12.0: "
        "neither figure is the verdict alone"
    )
    assert won.shape_shift == [shift.sentence for shift in won.shifts]
    assert verdict.warnings == []
    looks = verdict.benchmarks["svamp"].arms["dft"]
    assert looks.shape.categories["1 operation"] == pytest.approx(350 / 400)
    assert (looks.stopped, looks.pass_at["1"], looks.greedy) == (1, pytest.approx(0.235), None)


def test_without_the_problems_of_the_training_rows(three_seeds):
    arms, _, _ = three_seeds
    verdict = compare_runs(arms, {"s": "out", "t": "in"}, overlap=[f"s/{i}" for i in range(50)])
    plain = compare_runs(arms, {"s": "out", "t": "in"})
    assert list(verdict.without_overlap) == ["s"]
    (pair,) = (p for p in verdict.without_overlap["s"].pairs if (p.a, p.b) == ("dft", "sft"))
    x, y = ([correct(arms[label][seed], "s")[50:] for seed in range(3)] for label in ("dft", "sft"))
    by_hand = paired_difference(x, y)
    assert (pair.difference, pair.low) == pytest.approx((by_hand.mean, by_hand.low))
    (warning,) = verdict.warnings
    assert warning.startswith("50 of 150 problems of s occur in the training rows; without them base has ")
    assert f"dft minus sft is {100 * by_hand.mean:.1f} (" in warning
    assert verdict.benchmarks == plain.benchmarks
    every = compare_runs(arms, {}, overlap=[f"s/{i}" for i in range(150)])
    assert every.warnings == ["150 of 150 problems of s occur in the training rows"]
    assert not every.without_overlap


def test_seeds_and_problems_are_paired(three_seeds):
    arms, _, _ = three_seeds
    verdict = compare_runs(arms, {"s": "out", "t": "in"})
    pair = pair_of(verdict, "s", "dft", "sft")
    assert (pair.seeds, pair.problems) == (3, 150)
    x, y = ([correct(arms[label][seed], "s") for seed in range(3)] for label in ("dft", "sft"))
    by_hand = paired_difference(x, y)
    assert (pair.difference, pair.low, pair.p_value) == pytest.approx(
        (by_hand.mean, by_hand.low, by_hand.p_value)
    )
    pairs = [p for one in verdict.benchmarks.values() for p in one.pairs]
    assert verdict.comparisons == len(pairs) == 6
    assert [p.p_holm for p in pairs] == holm([p.p_value for p in pairs])
    assert pair_of(verdict, "s", "dft", "base").seeds == 3
    same = pair_of(verdict, "t", "dft", "sft")
    assert not same.shown
    assert re.search(r"; about \d+ problems would be needed to see 2(\.\d)? points", same.sentence)
    assert same.sentence.startswith(
        "no difference between dft and sft can be shown with 150 problems and 3 seeds"
    )
    assert any(s.startswith("dft beats sft out of domain by") and "in domain no difference" in s
               for s in verdict.sentences)  # fmt: skip
    looks = verdict.benchmarks["s"].arms["dft"]
    assert looks.mean == pytest.approx(np.mean(x))
    assert looks.entropy == pytest.approx(0.3)
    over_problems = mean_interval(np.hstack(x))
    assert looks.low <= over_problems.low + 1e-9 < looks.mean < over_problems.high <= looks.high + 1e-9
    assert looks.by_seed["1"] == pytest.approx(x[1].mean())


def correct(folder, benchmark):
    return verdict_matrix(folder, benchmark)[1].astype(float)


def test_seeds_that_differ_widen_the_interval(tmp_path):
    rng = np.random.default_rng(1)
    rates = {0: 0.2, 1: 0.5, 2: 0.8}
    arms = {
        "sft": {
            s: write_evaluation(tmp_path / str(s), {"b": random_answers(rng, r)}) for s, r in rates.items()
        }
    }
    looks = compare_runs(arms, {}).benchmarks["b"].arms["sft"]
    assert looks.high - looks.low > 0.6  # over problems alone it would be 0.08


def test_two_seeds_hide_what_problems_show_and_the_sentence_says_so(tmp_path):
    rng = np.random.default_rng(3)
    arms = {
        label: {
            seed: write_evaluation(tmp_path / f"{label}{seed}", {"b": random_answers(rng, rate)})
            for seed, rate in enumerate(rates)
        }
        for label, rates in {"sft": (0.2, 0.2), "dft": (0.5, 0.35)}.items()
    }
    pair = pair_of(compare_runs(arms, {}), "b", "dft", "sft")
    assert not pair.shown and pair.needed.enough
    assert pair.sentence.endswith(
        "; 2 seeds say little about how far seeds differ: one more would narrow this most"
    )


def test_what_is_left_of_a_gain_that_sharpness_gave(three_seeds):
    arms, greedy, matched = three_seeds
    verdict = compare_runs(arms, {"s": "out", "t": "in"}, greedy=greedy, matched=matched)
    block = pair_of(verdict, "s", "dft", "sft").sharpening
    matched_numbers = block.matched
    assert (matched_numbers.of, matched_numbers.as_) == ("sft", "dft")  # dft: lower entropy than base
    assert matched_numbers.temperature == pytest.approx(0.6)
    assert block.left == matched_numbers.difference == pytest.approx(0.15, abs=0.05)
    assert matched_numbers.low < block.left < matched_numbers.high
    assert block.greedy.difference == pytest.approx(block.greedy.a - block.greedy.b)
    assert block.pass_.k == 4
    gap = 100 * pair_of(verdict, "s", "dft", "sft").difference
    words = (
        f"of {gap:.1f} points of dft over sft {100 * block.left:.1f} are left when sft is sampled as sharply"
    )
    assert block.sentence.startswith(words)
    assert "(T = 0.60)" in block.sentence and "; greedy " in block.sentence
    assert any(block.sentence in sentence for sentence in verdict.sentences)
    assert pair_of(verdict, "s", "sft", "base").sharpening is None  # base was not sampled as sharply
    assert verdict.benchmarks["s"].arms["sft"].greedy == pytest.approx(0.35, abs=0.1)


def test_a_gain_that_was_only_sharpness(tmp_path):
    rng = np.random.default_rng(2)
    arms = {"sft": {0: write_evaluation(tmp_path / "sft", {"b": random_answers(rng, 0.3)})},
            "dft": {0: write_evaluation(tmp_path / "dft", {"b": random_answers(rng, 0.5)})}}  # fmt: skip
    cool = write_evaluation(tmp_path / "cool", {"b": random_answers(rng, 0.6)}, temperature=0.5)
    verdict = compare_runs(arms, {"b": "out"}, matched={"sft": {0: cool}})
    sentence = pair_of(verdict, "b", "dft", "sft").sharpening.sentence
    assert "none is (-" in sentence and "left when sft is sampled as sharply as dft (T = 0.50)" in sentence


def test_sharpness_over_fewer_seeds_says_so(three_seeds):
    arms, _, matched = three_seeds
    few = {"sft": {0: matched["sft"][0]}}
    for given, said in ((matched, False), (few, True)):
        sentence = pair_of(compare_runs(arms, {}, matched=given), "s", "dft", "sft").sharpening.sentence
        assert (", 1 of 3 seeds)" in sentence) == said


def test_arms_that_were_both_sampled_as_sharply_are_compared(three_seeds, tmp_path):
    arms, _, matched = three_seeds
    rng = np.random.default_rng(3)
    cool = write_evaluation(tmp_path / "cool", {"s": random_answers(rng, 0.2)}, temperature=0.4)
    verdict = compare_runs(arms, {}, matched={**matched, "base": {0: cool}}, matched_to="dft")
    block = pair_of(verdict, "s", "sft", "base").sharpening.matched
    assert block.temperatures == {"sft": pytest.approx(0.6), "base": pytest.approx(0.4)}
    assert block.difference == pytest.approx(0.25, abs=0.06)
    sentence = pair_of(verdict, "s", "sft", "base").sharpening.sentence
    assert "when sft and base are sampled as sharply as dft (T = 0.60 and 0.40)" in sentence


def test_damaged_and_missing_folders_are_left_out(tmp_path, three_seeds):
    arms, _, _ = three_seeds
    (arms["sft"][1] / "graded.jsonl").write_text('{"problem_id"')
    (arms["sft"][2] / "evaluation.json").write_text('{"benchmarks": [], "protocol": 3}')
    verdict = compare_runs({**arms, "iw": {0: tmp_path / "nowhere"}}, {})
    assert len(verdict.warnings) == 3
    assert all("is left out" in warning for warning in verdict.warnings)
    assert pair_of(verdict, "s", "dft", "sft").seeds == 1
    assert set(verdict.benchmarks["s"].arms) == {"base", "sft", "dft"}
    with pytest.raises(UserError, match="no evaluation can be read"):
        compare_runs({"iw": {0: tmp_path / "nowhere"}}, {})


def test_other_problems_and_protocols_are_said(tmp_path):
    rng = np.random.default_rng(4)
    a = write_evaluation(tmp_path / "a", {"b": random_answers(rng, 0.5, 40)})
    b = write_evaluation(tmp_path / "b", {"b": random_answers(rng, 0.5, 40, n=2)}, first=10)
    verdict = compare_runs({"sft": {0: a}, "dft": {0: b}}, {})
    assert pair_of(verdict, "b", "dft", "sft").problems == 30
    assert "sft, seed 0 and dft, seed 0: n differs: 4 and 2" in verdict.warnings
    assert "b, dft and sft: 30 of 40 problems are in all evaluations that belong together" in verdict.warnings
    c = write_evaluation(tmp_path / "c", {"b": random_answers(rng, 0.5, 40)}, first=100)
    verdict = compare_runs({"sft": {0: a}, "dft": {5: c}}, {})
    assert verdict.benchmarks["b"].pairs == []
    assert {
        "dft and sft have no seed in common: paired in order",
        "b: dft and sft have no problem in common",
    } <= set(verdict.warnings)
    assert compare_runs({"sft": {0: a}}, {"b": "in"}).sentences == ["In domain (b): sft " + percent(a) + " %"]


def percent(folder):
    return f"{100 * correct(folder, 'b').mean():.1f}"


def test_several_benchmarks_of_a_domain_are_pooled(three_seeds):
    arms, _, _ = three_seeds
    verdict = compare_runs(arms, {"s": "out", "t": "out"})
    whole = verdict.domains["out"]
    assert (whole.benchmarks, whole.problems) == (["s", "t"], 300)
    single = [pair_of(verdict, name, "dft", "sft").difference for name in ("s", "t")]
    (pooled,) = [p for p in whole.pairs if (p.a, p.b) == ("dft", "sft")]
    assert pooled.difference == pytest.approx(np.mean(single))
    assert verdict.comparisons == 9
    headline = [line.sentence for line in verdict.headline]
    assert verdict.sentences[: len(headline)] == headline
    assert all(sentence.endswith(" out of domain") for sentence in headline)
    assert verdict.sentences[len(headline)].startswith("Out of domain (s, t): base ")


def test_runs_with_nothing_in_common_are_not_pooled(tmp_path):
    rng = np.random.default_rng(7)
    a = write_evaluation(tmp_path / "a", {"s": random_answers(rng, 0.5, 40)})
    b = write_evaluation(tmp_path / "b", {"t": random_answers(rng, 0.5, 40)})
    c = write_evaluation(tmp_path / "c", {"s": random_answers(rng, 0.9, 40)}, first=40)
    verdict = compare_runs({"sft": {0: a, 1: c}, "dft": {0: b}}, {"s": "in", "t": "in"})
    assert verdict.domains == {} and verdict.comparisons == 0
    looks = verdict.benchmarks["s"].arms["sft"]
    assert (list(looks.by_seed), looks.mean) == (["0"], pytest.approx(correct(a, "s").mean()))
    assert "s, sft: only the first seed counts" in verdict.warnings
    assert [s[:13] for s in verdict.sentences] == ["In domain (s)", "In domain (t)"]


def judged_beside_base(tmp_path, rates):
    """One seed of each arm on gsm8k (in domain) and svamp (out of it), with shares of right answers."""
    rng = np.random.default_rng(5)
    folders = {
        name: {0: write_evaluation(
            tmp_path / name, {b: random_answers(rng, r) for b, r in zip(DOMAINS, both, strict=True)}
        )}
        for name, both in rates.items()
    }  # fmt: skip
    return compare_runs(folders, DOMAINS)


@pytest.mark.parametrize("inside", [-1, 0, 1])
@pytest.mark.parametrize("outside", [-1, 0, 1])
def test_worse_no_difference_and_better_are_three_sentences(tmp_path, inside, outside):
    rates = {"base": (0.5, 0.5), "sft": (0.5 + 0.3 * inside, 0.5 + 0.3 * outside)}
    verdict = judged_beside_base(tmp_path, rates)
    words = {-1: "worse", 0: "no difference", 1: "better"}
    found = {place: one.verdict for place, one in verdict.against_base["sft"].items()}
    assert found == {"in domain": words[inside], "out of domain": words[outside]}
    assert [p.verdict for one in verdict.benchmarks.values() for p in one.pairs if p.b == "base"] == list(
        found.values()
    )
    figure = r"[+-]\d+\.\d points \[[+-]\d+\.\d, [+-]\d+\.\d\]"
    both, inner, outer = (
        f"{figure} in domain, {figure} out of domain",
        f"{figure} in domain",
        f"{figure} out of domain",
    )
    unseen = "; no difference can be shown: "
    expected = {
        (-1, -1): f"sft made the model worse: {both}",
        (-1, 0): f"sft made the model worse in domain: {inner}{unseen}{outer}",
        (0, -1): f"sft made the model worse out of domain: {outer}{unseen}{inner}",
        (-1, 1): f"sft made the model worse in domain and better out of domain: {both}",
        (1, -1): f"sft made the model worse out of domain and better in domain: {outer}, {inner}",
        (0, 0): f"no difference between sft and the base model can be shown: {both}",
        (1, 0): f"sft made the model better in domain: {inner}{unseen}{outer}",
        (0, 1): f"sft made the model better out of domain: {outer}{unseen}{inner}",
        (1, 1): f"sft made the model better: {both}",
    }  # fmt: skip
    harm = -1 in (inside, outside) and 1 not in (inside, outside)
    partly = "" if inside == outside else " somewhere, and better nowhere"
    keep = [f"Keep the base model: sft is worse{partly}"] if harm else []
    sentences = verdict.sentences
    assert sentences[: len(keep)] == keep and ("Keep the base" in " ".join(sentences)) == harm
    assert re.fullmatch(expected[inside, outside], sentences[len(keep)])
    assert [line.sentence for line in verdict.headline] == sentences[: len(keep) + 1]


def test_the_headline_names_harm_first_and_keeps_the_base_model_where_all_are_worse(tmp_path):
    rates = {"base": (0.5, 0.5), "dft": (0.8, 0.5), "iw": (0.5, 0.5), "sft": (0.2, 0.2)}
    verdict = judged_beside_base(tmp_path / "one", rates)
    assert [line.verdict for line in verdict.headline] == ["worse", "better", "no difference"]
    assert verdict.sentences[0].startswith("sft made the model worse: -")
    assert "Keep the base model" not in " ".join(verdict.sentences)
    inside = verdict.sentences[3]
    assert inside.startswith("In domain (gsm8k): base 5") and "no difference can be shown for 0" not in inside
    verdict = judged_beside_base(tmp_path / "all", {"base": (0.7, 0.7), "sft": (0.2, 0.2), "dft": (0.4, 0.7)})
    assert verdict.sentences[0] == "Keep the base model: every arm is worse somewhere, and better nowhere"
    assert verdict.sentences[2].startswith("dft made the model worse in domain: -")


def test_harm_is_seen_wherever_the_base_model_stands(tmp_path):
    rates = {"sft": (0.2, 0.2), "dft": (0.8, 0.8), "base": (0.5, 0.5)}
    verdict = judged_beside_base(tmp_path, rates)
    places = verdict.against_base
    assert [places[label]["in domain"].verdict for label in ("sft", "dft")] == ["worse", "better"]
    one = places["sft"]["in domain"]
    assert one.low < one.difference < one.high < 0


def test_planning_for_problems_or_for_seeds():
    rng = np.random.default_rng(6)
    a, b = (rng.random((3, 100)) < 0.5).astype(float), (rng.random((3, 100)) < 0.5).astype(float)
    plan = sample_size(a, b, 0.001)
    assert plan.difference == 0.02
    assert plan.problems > 1000 and not plan.enough
    assert sample_size(a, b, -0.3).difference == 0.3
    far = np.array([0.1, 0.5, 0.9])[:, None] * np.ones((3, 100))
    plan = sample_size(far + 0.01 * rng.random((3, 100)), np.full((3, 100), 0.5), 0.0)
    assert plan.problems is None and plan.seeds > 1000
    alike, apart = (
        np.array([0.5, 0.5, 0.5]),
        np.array([0.485, 0.5, 0.515]),
    )  # seeds, of the same spread over problems
    noise = 0.2 * rng.standard_normal((1, 100)).clip(-2, 2)
    few, more = (sample_size(means[:, None] + noise, np.full((3, 100), 0.5), 0.0) for means in (alike, apart))
    # seeds spread by 1.5 points: of the variance that 2 points allow for, 1.5^2 / 3 are taken
    left = 0.02**2 - 0.015**2 / 3 * 2.8016**2
    assert (more.problems is None) == (left < 0)
    assert few.problems == pytest.approx((2.8016 * noise.std(ddof=1) / 0.02) ** 2 + 2, abs=1.5)
    closer = sample_size((0.5 + (apart - 0.5) / 2)[:, None] + noise, np.full((3, 100), 0.5), 0.0)
    left = 0.02**2 - 0.0075**2 / 3 * 2.8016**2
    assert closer.problems == pytest.approx((2.8016 * noise.std(ddof=1)) ** 2 / left + 2, abs=1.5)
    assert sample_size(np.ones((1, 10)), np.zeros((1, 10)), 1.0) is None
    exact = np.tile([0.5, 0.502], (1, 50))
    assert sample_size(exact, np.full((1, 100), 0.5), 0.001).enough


def test_a_difference_that_the_correction_takes_away(tmp_path):
    """p = 0.031 (6 problems, all one way), three comparisons."""
    base = [[(TWO, False)]] * 20
    better = [[(TWO, i < 6)] for i in range(20)]
    arms = {name: {0: write_evaluation(tmp_path / name, {"b": answers})}
            for name, answers in {"sft": base, "dft": better, "asft": base}.items()}  # fmt: skip
    pair = pair_of(compare_runs(arms, {}), "b", "dft", "sft")
    assert pair.p_value == pytest.approx(2 / 64)
    assert not pair.shown
    assert pair.sentence.startswith("dft is ahead of sft by 30.0 points")
    assert "but not after Holm's correction over 3 comparisons (p = 0.031, corrected 0.094)" in pair.sentence
