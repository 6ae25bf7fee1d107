"""The command line. This module has what `rectune --help` prints, and imports nothing: so that it is fast."""

VERBS = {
    "check": "Check how a file of rows or problems is read.",
    "diagnose": "Suggest an objective for the data, before any training.",
    "train": "Fine-tune a model on demonstrations.",
    "sample": "Sample answers to problems from a model.",
    "grade": "Add a verdict to every answer of a JSONL file.",
    "eval": "Measure accuracy on benchmarks, with confidence intervals.",
    "select": "Turn graded answers into training rows, or into pairs.",
    "weigh": "Weigh training rows by how often a model fails at them.",
    "compare": "Train with several objectives and compare them in pairs.",
    "merge": "Interpolate between a base model and tuned ones, without training.",
    "report": "Show runs on one self-contained page.",
    "rft": "Train a model on its own graded answers: sample, grade, select, train.",
    "rl": "Train a model with rewards: GRPO or PPO.",
    "reproduce": "Reproduce a table or figure of the paper.",
    "list": "List objectives, columns, tasks, models and recipes.",
}
"""What each verb does, in the order of a user's work. The functions are in `commands.py`."""


def first_page() -> str:
    """What `rectune --help` prints."""
    lines = [f"  {name:<11}{text}" for name, text in VERBS.items()]
    return "\n".join(
        [
            "Usage: rectune COMMAND",
            "",
            "Fine-tune language models on demonstrations so that they generalise.",
            "",
            "Commands:",
            *lines,
            "",
            "rectune COMMAND --help lists the flags of a command, rectune --version prints the version.",
        ]
    )
