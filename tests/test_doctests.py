"""The examples in docstrings compute what they show."""

from __future__ import annotations

import doctest
import inspect
from types import ModuleType

import pytest

from rectune import logprobs, objectives
from rectune.objective_spec import effective_weight


@pytest.mark.parametrize("module", [objectives, logprobs], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: ModuleType) -> None:
    failed, attempted = doctest.testmod(module, extraglobs={"effective_weight": effective_weight})
    assert attempted > 0 and not failed


@pytest.mark.parametrize("name", [*objectives.OBJECTIVES, "grpo", "k3"])
def test_each_loss_documents_its_columns_and_settings(name: str) -> None:
    loss = getattr(objectives, name)
    text = inspect.getdoc(loss) or ""
    for parameter in inspect.signature(loss).parameters:
        assert f"\n    {parameter}: " in text, f"{name} does not document {parameter}"
    for part in ("Returns:", "Source:", "Example:\n    >>> "):
        assert f"\n{part}" in text, f"{name} has no {part!r}"
