"""A diagnosis with everything in it, made of text and arithmetic alone: what the page's tests show."""

from __future__ import annotations

import random
import re
from typing import Any

from rectune.training.metrics import PROBABILITY_BINS, histogram

CLASSES = ("end and special", "digits", "operators and LaTeX", "words", "code", "whitespace", "punctuation")
WEIGHTS = {
    "sft": lambda p: 1.0,
    "dft": lambda p: p,
    "power alpha=0.5": lambda p: p**0.5,
    "floor low=0.1": lambda p: max(p, 0.1),
    "focal gamma=2": lambda p: (1 - p) ** 2,
    "sequence_dft": lambda p: 3e-19,
}
PROMPT = (
    "<|im_start|>user\nNatalia sold clips to 48 of her friends in April, and then half as many in May. "
    "How many altogether?<|im_end|>\n<|im_start|>assistant\n"
)
ANSWERS = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72<|im_end|>",
    "We have $\\frac{1}{2} \\cdot 48 = 24$, so the sum is\n\\[ 48 + 24 = \\boxed{72}. \\]\n\n"
    "```python\nprint(48 + 48 // 2)\n```\n"
    "That is all there is to it, and it is worth saying slowly: an answer is a number, and a number is 72.<|im_end|>",
)


def diagnosis(rows: int = 6, repeat: int = 1, seed: int = 0) -> dict[str, Any]:
    """A diagnosis.json of so many shown rows, each answer `repeat` times as long."""
    draw = random.Random(seed)
    examples = [_example(draw, number, repeat) for number in range(rows)]
    p = [x for one in examples for x in one["p"] if x is not None]
    groups = [{"name": name, **_figures(draw.sample(p, len(p) // (i + 2)))} for i, name in enumerate(CLASSES)]
    return {
        "format": 1, "rectune": "0.4", "model": "smollm2-135m", "fingerprint": "sha256:0123abcd",
        "data": "gsm8k", "template": "chat template of the tokenizer", "goal": None, "rows": 7473, "measured_rows": 240,
        "measured_targets": len(p), "seconds": 131.0, "seconds_measuring": 118.0,
        "tokens_per_second": 913.2, "bins": list(PROBABILITY_BINS),
        "overall": {**_figures(p), "mean_p_error": 0.01}, "by_class": groups,
        "by_position": [{"name": name, **_figures(p)} for name in ("0% to 10%", "10% to 25%", "90% to 100%")],
        "by_source": [{"name": "web", **_figures(p)}],
        "objectives": [_objective(label, p) for label in WEIGHTS],
        "verdict": {
            "position": "intermediate", "objective": "power:alpha=0.5",
            "label": "power alpha=0.5", "name": "power", "settings": {"alpha": 0.5},
            "alternatives": ["sft", "dft", "floor", "asft"], "confidence": "low",
            "sentence": "Mean target probability 0.62: the model is intermediate on this data. The evidence is open "
            "here: power alpha=0.5 is the middle, a race decides.",
            "reasons": [
                {"text": "mean p 0.620 is between 0.1 and 0.75, where neither wins for sure", "value": 0.62,
                 "threshold": 0.5, "source": "arXiv:2510.00526: at mean p of about 0.5 (medicine) SFT and -p tie"},
                {"text": "to fit this distribution, unexpected tokens have to be learnt", "value": 0.62,
                 "threshold": None, "source": "the paper, Eq. 9: weight p"},
            ],
            "next": ["rectune compare --model smollm2-135m --data gsm8k --objectives sft,dft --race 2h --output-dir r"],
        },
        "risks": [
            {"name": "end tokens", "severity": "high",
             "evidence": "the median probability of tokens that end a turn is 0.003",
             "remedy": "keep min_eos_weight at its default", "value": 0.003, "threshold": 0.05,
             "source": "our choice", "rows": []},
            {"name": "odd rows", "severity": "low", "evidence": "2 rows are far less likely than the rest",
             "remedy": "read them: a wrong answer looks like this", "value": 7.1, "threshold": 5.0, "source": "ours",
             "rows": [{"where": "rows.jsonl:1", "note": "' sold' p 0.002"},
                      {"where": "rows.jsonl:99", "note": "' x' p 0.001"}]},
        ],
        "examples": examples,
    }  # fmt: skip


def _example(draw: random.Random, number: int, repeat: int) -> dict[str, Any]:
    pieces = re.compile(r"<\|\w+\|>|\n| ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]| ")
    prompt = pieces.findall(PROMPT)
    answer = pieces.findall(ANSWERS[number % len(ANSWERS)]) * repeat
    gap = [None] * len(prompt)
    p = [draw.choice((draw.random(), 1 - draw.random() ** 4, draw.random() ** 6)) for _ in answer]
    return {
        "where": f"rows.jsonl:{number + 1}",
        "source": "web" if number % 2 else "",
        "tokens": prompt + answer,
        "supervised": [False] * len(prompt) + [True] * len(answer),
        "p": gap + p,
        "class": gap + [CLASSES[3] if text.strip().isalpha() else CLASSES[6] for text in answer],
        "entropy": gap + [-4 * x * (x - 1) * 2.5 for x in p],
        "top": gap + [text if x > 0.5 else " the" for text, x in zip(answer, p, strict=True)],
        "weights": {label: gap + [float(weight(x)) for x in p] for label, weight in WEIGHTS.items()},
    }


def _figures(p: list[float]) -> dict[str, Any]:
    return {
        "targets": len(p),
        "mean_p": sum(p) / len(p),
        "nll": 0.98,
        "entropy": 1.2,
        "top1": 0.71,
        "histogram": histogram(p),
    }


def _objective(label: str, p: list[float]) -> dict[str, Any]:
    weights = [float(WEIGHTS[label](x)) for x in p]
    sizes = [w * (1 - x) for w, x in zip(weights, p, strict=True)]
    by_bin = [0.0] * 13
    for x, size in zip(p, sizes, strict=True):
        by_bin[histogram([x]).index(1)] += size / sum(sizes)
    return {
        "label": label,
        "name": label.split()[0],
        "settings": {},
        "mean_weight": sum(weights) / len(p),
        "share_by_bin": by_bin,
        "share_by_class": {name: (i + 1) / 28 for i, name in enumerate(CLASSES)},
        "effective_sample_size": sum(weights) ** 2 / (len(p) * sum(w * w for w in weights)),
        "gradient_norm_ratio": 0.31,
        "learning_rate_factor": 3.2,
    }
