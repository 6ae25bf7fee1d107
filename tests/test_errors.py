"""The one exception that a user sees is one helpful line."""

from __future__ import annotations

from rectune.errors import UserError, unknown_name


def test_where_comes_first_and_the_hint_last() -> None:
    error = UserError("the field\n'answer' is missing", where="rows.jsonl:3", hint="known: question")
    assert str(error) == "rows.jsonl:3: the field 'answer' is missing; known: question"
    assert (error.where, error.hint) == ("rows.jsonl:3", "known: question")


def test_only_what_is_wrong_is_needed() -> None:
    assert str(UserError("no rows")) == "no rows"


def test_an_unknown_name_gets_the_nearest_and_all_known_ones() -> None:
    error = unknown_name("objective", "dtf", ["sft", "dft"], where="objective")
    assert str(error) == ("objective: unknown objective 'dtf'; did you mean 'dft'? known: dft, sft")
    assert "did you mean" not in str(unknown_name("objective", "xyzzy", ["sft"]))
    assert str(unknown_name("column", "x", [])).endswith("known: none")
