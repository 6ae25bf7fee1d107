"""Where the final part of a model's words begins and ends."""

from __future__ import annotations

import time

import pytest

from rectune.grading.final_answer import EXTRACTION, final_part, found_answers
from rectune.grading.math import _without_names
from rectune.grading.normalization import normalize_answer, split_choice, split_unit

RESTATED = "Let me restate the problem.\n\nProblem: find x.\n\nSolution: \\boxed{4}"
PROGRAM = "```python\nprint('''\nUser: 1\n''')\n```"

DOCSTRING = 'def f(x):\n    """Twice x.\n\n    Example 1:\n        Input: 1\n    """\n    return 2 * x'


@pytest.mark.parametrize(
    ("text", "part"),
    [
        # behind the thinking
        ("<think>9?</think>12", "12"),
        ("9?</think>12", "12"),
        ("<think>a</think>9<think>b</think>12", "12"),
        ("<thinking>9?</thinking>12", "12"),
        ("<reasoning>9?</reasoning>12", "12"),
        ("<seed:think>9?</seed:think>12", "12"),
        ("[THINK]9?[/THINK]12", "12"),
        ("◁think▷9?◁/think▷12", "12"),
        ("<|begin_of_thought|>9?<|end_of_thought|>12", "12"),
        ("<|START_THINKING|>9?<|END_THINKING|>12", "12"),
        ("<|channel|>analysis<|message|>9?<|end|><|start|>assistant<|channel|>final<|message|>12", "12"),
        ("analysisIs it 9?assistantfinal12", "12"),
        ("Here is my thought process: 9? Here is my response: 12", "12"),
        # never came to an end
        ("<think>12?", ""),
        ("<think>9</think>10 <think>12?", ""),
        ("<|channel|>analysis<|message|>12?", ""),
        (r"<think>\boxed{12}</think>", ""),
        # marks that are spoken of
        ("text.split('</think>')[-1]", "text.split('</think>')[-1]"),
        # tags
        ("so <answer>42</answer> in 3 steps", "42"),
        ("so <answer>42", "42"),
        ("<answer></answer> 42", "<answer></answer> 42"),
        # the next turn
        ("The answer is 42.\nUser: more?\nAssistant: 13", "The answer is 42."),
        ("<think>a</think>The answer is 42.\nUser: b\nAssistant: <think>c</think>13", "The answer is 42."),
        ("The final answer is $42$. I hope it is correct.\n\nProblem:\nFind x.",
         "The final answer is $42$. I hope it is correct."),
        ("42<|im_end|>\n<|im_start|>user\nmore?", "42"),
        ("42\n\n### Instruction:\nmore", "42"),
        ("So 42.\n\n**Question 2:** more", "So 42."),
        ("Paris\n\nQ: And Italy?\nA: Rome", "Paris"),
        (f"{PROGRAM}\n\nUser: more", PROGRAM),
        # no next turn
        (r"Question: what is it?" "\n" r"\boxed{4}", r"Question: what is it?" "\n" r"\boxed{4}"),
        (RESTATED, RESTATED),
        (DOCSTRING, DOCSTRING.strip()),
        ("### Problem\nAdd.\n### Solution\n42", "### Problem\nAdd.\n### Solution\n42"),
    ],
)  # fmt: skip
def test_final_part(text: str, part: str) -> None:
    assert final_part(text).strip() == part


PIECES = [
    "answer ", "answer is ", "is the answer ", "<think>", "<answer>", r"\boxed{1} and ", "#### a\n", "$", "\n", "\n ",
    "**", "1,", "1/", "1:", "- ", "`", "B ", "(B) ", "B, ", "option B ", r"\text{a}", r"\frac{1}{", "sqrt(", "x=1,",
    "x<1",
    r"\cup ", "5 km, ", "and ", "for all ", "½", r"\ ", "~", r"\approx ", "12th", "\nQuestion:",
    "not a but ", "> ",
]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_time_grows_with_the_length_of_the_text(piece: str) -> None:
    """A pattern that backtracks over a repeated piece would take minutes."""
    text, answer = (piece * 20_000)[:20_000], normalize_answer((piece * 1000)[:1000])
    started = time.process_time()
    final_part(text)
    list(found_answers(text, EXTRACTION))
    normalize_answer(text)
    split_unit(answer)
    split_choice(answer)
    _without_names("x = 1", answer)
    assert time.process_time() - started < 5
