"""Stop texts: a completion ends where the first of them begins, as with vLLM's `stop`; text and tokens are cut there.

A stop text may begin or end inside a token. The tokens that are kept are the fewest whose text holds the kept text, so
that only the last of them can reach into the stop text. A stop text that is a special token stops by its id, since
special tokens are not in a completion's text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from rectune.data.chat_template import Template, Writer
from rectune.data.schema import Turn
from rectune.errors import UserError
from rectune.sampling.types import Completion

MARKS = ("<answer of the probe>", "<question of the probe>")


def check_stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """The stop texts, each once. Raises `UserError` for one without a character."""
    stop = (stop,) if isinstance(stop, str) else stop
    if not all(isinstance(text, str) and text for text in stop):
        raise UserError("a stop text is empty", where="stop")
    return tuple(dict.fromkeys(stop))


def template_stops(tokenizer: PreTrainedTokenizerBase, template: Template) -> tuple[str, ...]:
    """What the template writes in front of the next user turn, where that is plain text, such as "\\nUser:".

    A model that was not trained to end its turn continues with it and answers questions of its own.
    """
    if template.text is None:
        return ()
    turns = (Turn("user", "probe"), Turn("assistant", MARKS[0]), Turn("user", MARKS[1]))
    try:
        text = Writer(template, tokenizer).text(turns, "rows.template")
    except UserError:  # the template takes one question only
        return ()
    mark = text.partition(MARKS[0])[2].partition(MARKS[1])[0].partition(template.closing)[2]
    special = (token.content for token in tokenizer.added_tokens_decoder.values())
    if not mark.strip() or any(token in mark for token in special):
        return ()
    line_end = "\n" if "\n" in mark[: len(mark) - len(mark.lstrip())] else ""
    return (line_end + mark.strip(),)


def special_stops(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> set[int]:
    """Ids of the stop texts that are special tokens."""
    return {
        i for i, token in tokenizer.added_tokens_decoder.items() if token.special and token.content in stop
    }


def stopped_by(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], stop: Sequence[str]) -> bool:
    """Whether the answer so far has a stop text in it; looks at its last tokens, so it has to be called for each."""
    if not stop:
        return False
    longest = max(len(text.encode()) for text in stop)  # a token is at least a byte, special ones aside
    tail = str(tokenizer.decode(token_ids[-longest - 4 :], skip_special_tokens=True))
    return _first(tail, stop) is not None and (
        len(token_ids) <= longest + 4
        or _first(str(tokenizer.decode(token_ids, skip_special_tokens=True)), stop) is not None
    )


def cut(completion: Completion, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> Completion:
    """The completion up to its first stop text, with the finish reason "stop"; itself where there is none in it."""
    end = _first(completion.text, stop)
    if end is None:
        return completion
    ids, text = completion.token_ids, completion.text[:end]

    def reach(count: int) -> int:
        return len(str(tokenizer.decode(ids[:count], skip_special_tokens=True)).rstrip("\ufffd"))

    kept = bisect_left(range(len(ids)), len(text.rstrip("\ufffd")), key=reach)
    return replace(
        completion, token_ids=ids[:kept], logprobs=completion.logprobs[:kept], text=text, finish_reason="stop"
    )


def _first(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop text in `text` begins."""
    return min((start for stop_text in stop if (start := text.find(stop_text)) >= 0), default=None)
