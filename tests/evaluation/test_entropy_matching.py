"""Entropy of a model's own answers against its definition, and the temperature that matches another's."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

from evaluations import run_eval, write
from rectune.analysis.decomposition import sampled_entropy
from rectune.analysis.entropy_matching import (
    encoded_answers,
    entropy_function,
    entropy_of_answers,
    match,
    matched_temperature,
)
from rectune.analysis.significance import read_arms
from rectune.data.tokenization import Encoded
from rectune.errors import UserError
from rectune.grading.files import graded_lines
from rectune.models.scorer import Scorer
from toys import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A tiny model in a run folder's place, and the folder of its own answers at T = 1."""
    root = tmp_path_factory.mktemp("sharp")
    save(root / "run" / "model", seed=0)
    evaluate_folder(root, "own", root / "run" / "model")
    return root


def save(folder, *, seed, sharper=1.0):
    model = tiny_model(seed=seed, tie_word_embeddings=False, initializer_range=0.3)
    with torch.no_grad():
        model.lm_head.weight *= sharper
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def evaluate_folder(root, name, model):
    problems = ({"prompt": f"{i}?", "answer": "1", "grader": "exact"} for i in range(16))
    file = write(root / "problems.jsonl", *problems)
    run_eval(model, root / name, file, num_samples=8, max_new_tokens=16, dtype="float32")
    return root / name


def lines_of(folder):
    return [line for _, line in graded_lines(folder / "graded.jsonl")]


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_entropy_is_that_of_the_models_own_logits_over_the_temperature(arch):
    """Gemma 2 caps its logits before the temperature divides them."""
    model = tiny_model(arch, initializer_range=0.4)
    if arch == "gemma2":
        assert model.config.final_logit_softcapping is not None
        model.config.final_logit_softcapping = 2.0
    ids = [5, 9, 20, 33, 7, 8, 50]
    row = Encoded(ids, [-100] * 3 + ids[3:], [False] * len(ids))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, 2:-1].double()
    entropy_at, tokens = entropy_function(Scorer(model), [row, row])
    assert tokens == 8
    found = {temperature: entropy_at(temperature) for temperature in (0.3, 1.0, 1.7)}
    for temperature, entropy in found.items():
        logp = (logits / temperature).log_softmax(-1)
        assert entropy == pytest.approx(float(-(logp.exp() * logp).sum(-1).mean()), rel=1e-4)
    assert sorted(found.values()) == list(found.values())


def test_entropy_of_the_answers_agrees_with_their_sampled_surprisal(evaluated):
    """Mean of -log p over tokens drawn at T = 1 estimates the same entropy."""
    every = entropy_of_answers(evaluated / "run", evaluated / "own", tokens=10**6)
    arms, _ = read_arms({"a": {0: evaluated / "own"}}, [])
    answers = arms["problems"]["a"][0].answers
    surprisal = sampled_entropy(answers)
    tokens = answers.numbers["tokens"]
    error = (answers.numbers["surprisal"] / tokens).std() / math.sqrt(tokens.size)
    assert surprisal == pytest.approx(every, abs=4 * error)
    assert error < 0.1 < every
    some = entropy_of_answers(evaluated / "run", evaluated / "own", tokens=400, seed=1)
    assert some == pytest.approx(every, abs=0.15)
    assert some != every


def test_matching_finds_the_temperature_that_was_asked_for(evaluated):
    """A head of twice the logits is the same model at half the temperature."""
    save(evaluated / "sharp", seed=0, sharper=2.0)
    evaluate_folder(evaluated, "sharp-own", evaluated / "sharp")
    target = entropy_of_answers(evaluated / "sharp", evaluated / "sharp-own", tokens=10**6)
    found = match(evaluated / "run", evaluated / "own", target, tokens=10**6)
    assert found.reached
    assert found.entropy == pytest.approx(target, abs=2e-3)
    assert found.temperature == pytest.approx(0.5, abs=0.1)  # other states: at T = 1 and at T = 0.5
    assert found.tokens == sum(len(line.token_ids) for line in lines_of(evaluated / "own"))
    assert found.own > target


def test_matching_by_hand():
    calls = []

    def entropy_at(temperature):
        calls.append(temperature)
        return 3 * temperature**2 / (1 + temperature**2)

    for goal in (0.06, 0.31, 0.6, 0.9, 1.0, 1.3, 1.7):
        found = matched_temperature(entropy_at, entropy_at(goal), tolerance=1e-6)
        assert found.reached
        assert found.temperature == pytest.approx(goal, abs=1e-4)
        calls.clear()
        found = matched_temperature(entropy_at, 3 * goal**2 / (1 + goal**2))
        assert found.temperature == pytest.approx(goal, abs=0.01)
        assert len(calls) <= 7
    low, high = matched_temperature(entropy_at, 0.0), matched_temperature(entropy_at, 2.9)
    assert (low.temperature, low.reached) == (pytest.approx(0.05), False)
    assert (high.temperature, high.reached) == (pytest.approx(2.0), False)
    assert high.entropy == pytest.approx(2.4)
    steps = matched_temperature(lambda t: float(np.floor(4 * t)), 2.5)  # never there: says so
    assert not steps.reached


def test_out_of_reach_is_said(evaluated):
    found = match(evaluated / "run", evaluated / "own", 100.0)
    assert not found.reached
    assert "the target of 100.000 is out of reach between T = 0.05 and 2.0" in found.sentence


def test_mistakes_are_one_clear_line(evaluated):
    save(evaluated / "other", seed=3)
    with pytest.raises(UserError, match="this is not the model of the evaluation"):
        match(evaluated / "other", evaluated / "own", 1.0)
    warm = evaluated / "warm"
    shutil.copytree(evaluated / "own", warm)
    numbers = json.loads((warm / "evaluation.json").read_text())
    numbers["protocol"]["temperature"] = 0.7
    (warm / "evaluation.json").write_text(json.dumps(numbers))
    with pytest.raises(UserError, match="the answers were not sampled at temperature 1 and top-p 1"):
        match(evaluated / "run", warm, 1.0)
    lines = lines_of(evaluated / "own")
    with pytest.raises(UserError, match="made with another tokenizer or template"):
        encoded_answers(lines, byte_tokenizer(), "none")
    with pytest.raises(UserError, match="the sample has no turns or token_ids, so it cannot be scored"):
        encoded_answers([lines[0].model_copy(update={"turns": []})], byte_tokenizer())
    with pytest.raises(UserError, match="the answers have no tokens"):
        entropy_function(Scorer(tiny_model()), [])
