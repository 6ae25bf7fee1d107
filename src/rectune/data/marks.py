"""Tokens that the texts of a conversation bring along: an end or a beginning of their own, or control tokens as text.

An answer that ends with the token that ends a turn, and a conversation that begins with the tokenizer's own beginning,
get it once. Every other control token in a content (`<s>` in HTML, `<|im_end|>` in a question about chat templates) is
text: it is marked here, so that `tokenization.py` can tell it from those that the template writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rectune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START, END = "\ufdd0", "\ufdd1"
"""Stand around a control token that is text; Unicode keeps these two out of all texts."""

_ENDS = re.compile(
    r"<\|(?:im_end|eot_id|eom_id|end|endoftext|end_of_text|end_of_turn|return)\|>|<end_of_turn>|</s>|<eos>"
    "|<｜end▁of▁sentence｜>"
)  # which of a tokenizer's special tokens end a text or turn, besides its eos
_THINKING = re.compile("think|thought|reason", re.IGNORECASE)


@dataclass(frozen=True)
class Marks:
    """What a tokenizer and a template make of tokens in texts.

    Attributes:
        bos: The tokenizer's beginning-of-text token; "" for none.
        ends: Tokens that end a turn or a text.
        control: Tokens that are text in a content, the longest first: special ones, and those that the template
            writes, but marks of thinking. None for template none, whose texts are read as they are.
    """

    bos: str
    ends: tuple[str, ...]
    control: tuple[str, ...]

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, ends: Sequence[str], written: Sequence[str] | None
    ) -> Marks:
        """Those of a template with these `ends`, which writes these tokens; None for template none."""
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        bos = str(tokenizer.bos_token or "")
        if written is None:
            return cls(bos, tuple(ends), ())
        control = {*special, *map(str, tokenizer.all_special_tokens), *written}
        kept = (token for token in control if token.strip() and not _THINKING.search(token))
        longest_first = sorted(kept, key=lambda token: (-len(token), token))
        every_end = dict.fromkeys([*ends, *filter(_ENDS.fullmatch, sorted(special))])
        return cls(bos, tuple(every_end), tuple(longest_first))

    def without_start(self, text: str) -> str:
        """The text without the beginning-of-text token at its start; `<s>` that is closed later is HTML."""
        if not self.bos or not text.startswith(self.bos) or self.bos.replace("<", "</", 1) in text:
            return text
        return self.without_start(text.removeprefix(self.bos))

    def without_end(self, text: str) -> tuple[str, str]:
        """The text without the tokens that end it, and the first of them; `</s>` that closes an `<s>` is HTML."""
        bare, first = text.rstrip(), ""
        while end := next((end for end in self.ends if bare.endswith(end) and not _is_html(end, bare)), ""):
            text, first = bare.removesuffix(end), end
            bare = text.rstrip()
        return text, first

    def found(self, text: str) -> list[str]:
        """The control tokens in a text."""
        pattern = _any_of(self.control)
        return pattern.findall(text) if pattern else []

    def marked(self, value: Any, where: str) -> Any:
        """`value` with the control tokens in its texts marked, also in lists and values of dicts.

        Raises:
            UserError: A text holds one of the marks.
        """
        if isinstance(value, dict):
            return {key: self.marked(inner, where) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.marked(inner, where) for inner in value]
        if not isinstance(value, str):
            return value
        if START in value or END in value:
            raise UserError("holds U+FDD0 or U+FDD1, which are no characters", where=where)
        pattern = _any_of(self.control)
        return pattern.sub(rf"{START}\g<0>{END}", value) if pattern else value


@lru_cache
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, tokens))) if tokens else None


def _is_html(end: str, text: str) -> bool:
    """Whether a token such as `</s>` closes an element that the text opened."""
    return end.startswith("</") and text.count(end.replace("/", "", 1)) >= text.count(end)
