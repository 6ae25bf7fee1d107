"""What kind of token a target is: told from its text alone, once for each id of the vocabulary.

Three things need more than a token: the turn's end comes from the `structural` column, code is what stands between
``` fences, and letters that follow a backslash are the rest of a LaTeX command.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from rectune.data.tokenization import token_texts

CLASSES = ("end and special", "digits", "operators and LaTeX", "words", "code", "whitespace", "punctuation")
_END, _DIGITS, _OPERATORS, _WORDS, _CODE, _SPACE, _OTHER = range(len(CLASSES))

_COMMAND = re.compile(r"\\[A-Za-z]*$")
_PIECES = 4  # tokens that the name of a LaTeX command is at most followed into
_OPERATOR = re.compile(r"\\[A-Za-z]*|[-+*/=<>^_{}\\|%$()\[\]×÷·≤≥≠±√]+")


def class_of(text: str) -> int:
    """Index in `CLASSES` of a token's text, without its surroundings."""
    bare = text.strip()
    if not bare:
        return _SPACE
    if re.fullmatch(r"[\d.,]*\d[\d.,]*", bare):
        return _DIGITS
    if _OPERATOR.fullmatch(bare):
        return _OPERATORS
    return _WORDS if any(char.isalpha() for char in bare) else _OTHER


def token_classes(
    targets_N: np.ndarray, structural_N: np.ndarray, row_N: np.ndarray, tokenizer: PreTrainedTokenizerBase
) -> np.ndarray:
    """Index in `CLASSES` of each target: (N,) int8.

    Args:
        targets_N: Ids.
        structural_N: Whether a target ends a turn or is special.
        row_N: Which row it belongs to; the targets of a row stand one behind the other.
    """
    unique, inverse = np.unique(targets_N, return_inverse=True)
    texts = token_texts(unique, tokenizer)
    classes = np.array([class_of(text) for text in texts], np.int8)[inverse]
    same_row = np.r_[False, row_N[1:] == row_N[:-1]][: len(row_N)]
    command = np.array([bool(_COMMAND.search(text)) for text in texts])[inverse]
    letters = np.array([text.isalpha() for text in texts])[inverse]  # without a space in front
    for _ in range(_PIECES):
        command |= letters & same_row & np.roll(command, 1)
    classes[command & letters] = _OPERATORS
    fences = np.array(["`" in text for text in texts])[inverse]
    for row in np.unique(row_N[fences]):
        places = np.flatnonzero(row_N == row)
        classes[places[_inside_fences([texts[i] for i in inverse[places]])]] = _CODE
    classes[structural_N] = _END
    return classes


def _inside_fences(texts: Sequence[str]) -> np.ndarray:
    """Which tokens lie between a line that opens with ``` and the next such line."""
    joined, inside = "".join(texts), []
    marks = [match.start() for match in re.finditer("```", joined)]
    place = 0
    for text in texts:
        inside.append(sum(mark < place for mark in marks) % 2 == 1 and "```" not in text)
        place += len(text)
    return np.array(inside, dtype=bool)
