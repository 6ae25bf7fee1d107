"""Where the final part of a model's words begins and ends."""

from __future__ import annotations

import pytest

from rectune.grading.final_answer import final_part

RESTATED = "Let me restate the problem.\n\nProblem: find x.\n\nSolution: \\boxed{4}"
PROGRAM = "```python\nprint('''\nUser: 1\n''')\n```"


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
        ("### Problem\nAdd.\n### Solution\n42", "### Problem\nAdd.\n### Solution\n42"),
    ],
)  # fmt: skip
def test_final_part(text: str, part: str) -> None:
    assert final_part(text).strip() == part
