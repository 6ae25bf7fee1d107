"""One row becomes token ids, with the join between prompt and answer exactly as generation will see it.

A prompt and the answer behind it are tokenized so that the prompt's ids stay what they are alone: where a
token would span the join, the answer is tokenized by itself. Text is cut at the special token before each
answer and equal parts are tokenized once: what all rows have in common, and what precedes every answer. Labels
are not shifted (that is done once, in `logprobs/__init__.py`); the text is made in `chat_template.py`, and
whole datasets are encoded in `encoded_dataset.py`. A control token that a content holds as text is encoded by a
twin of the tokenizer in which control tokens have other names.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rectune.data.chat_template import END, START, Piece, Template, Writer
from rectune.data.schema import Row, Turn
from rectune.errors import UserError

IGNORED = -100
"""Label of a position that is not a target."""


@dataclass(frozen=True)
class Encoded:
    """One row as token ids; all have one entry per token.

    Attributes:
        input_ids: Ids, the prompt's first.
        labels: The id itself at targets, -100 elsewhere; not shifted. The first position never is a target.
        structural: True at targets that end a turn or are special tokens.
        weight: What the loss of a target is multiplied with; empty where all are 1.
    """

    input_ids: list[int]
    labels: list[int]
    structural: list[bool]
    weight: Sequence[float] = ()

    def __len__(self) -> int:
        return len(self.input_ids)


def encode_row(row: Row, tokenizer: PreTrainedTokenizerBase, template: Template) -> Encoded:
    """Token ids and labels of one row, up to the end of its last supervised turn; never cut.

    `input_ids` starts with `prompt_ids` of the turns before any supervised turn.

    Raises:
        UserError: The template cannot write this row as generation would; `where` is the row's.
    """
    return encode_batch([row], tokenizer, template)[0]


@dataclass(frozen=True)
class EncodedBatch:
    """Several rows as token ids, one behind the other; its items are `Encoded`.

    Attributes:
        input_ids, labels: int32, one entry per token.
        structural: bool, one entry per token.
        weight: float64, one entry per token.
        ends: int64, one entry per row: where it ends in the others.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    structural: np.ndarray
    weight: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> Encoded:
        part = slice(self.ends[row - 1] if row else 0, self.ends[row])
        weight = self.weight[part]
        return Encoded(
            self.input_ids[part].tolist(),
            self.labels[part].tolist(),
            self.structural[part].tolist(),
            weight.tolist() if (weight != 1).any() else (),
        )


def prompt_ids(
    turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, template: Template, *, tools: str = ""
) -> list[int]:
    """What a model reads before it writes the next assistant turn of a conversation.

    Raises:
        UserError: The template refuses the conversation, or drops a part of it.
    """
    found, before = Writer(template, tokenizer).prompt(turns, "prompt", tools=tools)
    tokens = _Tokens(tokenizer, template)
    tokens.check([*(piece.before + piece.target for piece in found), before], "prompt")
    turns_before = _joined(tokens, [found]).input_ids.tolist() if found else []
    return [*turns_before, *tokens.after([(before, bool(found))])[0]]


def stop_ids(tokenizer: PreTrainedTokenizerBase, template: Template) -> list[int]:
    """The tokens at which generation has to stop: what ends a turn in the template, and eos."""
    ends = map(tokenizer.convert_tokens_to_ids, template.ends)
    ids = {_Tokens(tokenizer, template).closing_id, tokenizer.eos_token_id, *ends}
    return sorted(i for i in ids if i is not None)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that are special wherever they are targets: they end turns, or are part of the template."""
    special = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return [*{*special, *tokenizer.all_special_ids}]


class _Tokens:
    """A tokenizer that adds nothing of its own, for texts that begin a conversation or follow a turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        self.tokenizer = tokenizer
        self.direct = False  # until the first call has told the library's own tokenizer how to work
        self.closing_id: int = self.plain([template.closing])[0][-1]
        self.closing = str(tokenizer.convert_ids_to_tokens(self.closing_id))
        self.special = special_ids(tokenizer)
        kind = type(tokenizer)
        self.direct = isinstance(tokenizer, PreTrainedTokenizerFast) and (
            (kind.__call__, kind._encode_plus)
            == (PreTrainedTokenizerFast.__call__, PreTrainedTokenizerFast._encode_plus)
        )
        self.control = template.marks(tokenizer).control

    def cut(self, text: str) -> str:
        """The last token in `text` at which it can be cut: the ids of both sides are the same apart; "" for none.

        Added tokens are taken out of a text before all else, so they separate, unless they look at what stands
        around them, are found only in normalized text, or might be a part of another one.
        """
        if not self.tokenizer.is_fast or getattr(self.tokenizer, "split_special_tokens", False):
            return ""
        added = list(self.tokenizer.added_tokens_decoder.values())
        found = [
            (text.rfind(token.content), token.content)
            for token in added
            if token.content in text
            and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
            and not any(_overlap(token.content, other.content) for other in added)
        ]
        return max(found, default=(0, ""))[1]

    def plain(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        if marked := [i for i, text in enumerate(texts) if START in text]:
            rest = self.plain([text if START not in text else "" for text in texts])
            for i, found in zip(marked, self._as_text([texts[i] for i in marked]), strict=True):
                rest[i] = found
            return rest
        if self.direct:  # the same ids, without what else the call finds out about each token
            found = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in found]
        encoded = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def check(self, texts: Sequence[str], where: str) -> None:
        """Raise `UserError` for control tokens as text, where the tokenizer is not the library's own."""
        for text in texts if not self.direct else ():
            if found := re.search(f"{START}(.*?){END}", text, re.DOTALL):
                what = f"this tokenizer cannot write {found[1]} as text"
                raise UserError(what, where=where, hint="remove it, or give chat_template = none")

    def _as_text(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts in which control tokens are marked that are text."""
        twins = _twins.setdefault(self.tokenizer, {})
        if self.control not in twins:
            twins[self.control] = _twin(self.tokenizer, self.control)
        others = "|".join(map(re.escape, self.control))
        pattern = re.compile(f"{START}(?P<text>.*?){END}|[{START}{END}]|(?P<token>{others})", re.DOTALL)

        def renamed(match: re.Match[str]) -> str:
            return _name(match["token"], self.control) if match["token"] else match["text"] or ""

        written = [pattern.sub(renamed, text) for text in texts]
        encodings = twins[self.control].encode_batch_fast(written, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def after(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Ids of each text; where its flag is True as it reads behind a turn's end, not at the beginning of all."""
        ids = self.plain([self.closing * behind + text for text, behind in texts])
        return [row[int(behind) :] for row, (_, behind) in zip(ids, texts, strict=True)]


_twins: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, ...], Tokenizer]] = WeakKeyDictionary()


def _name(token: str, control: tuple[str, ...]) -> str:
    return f"{START}{control.index(token)}{END}"


def _twin(tokenizer: PreTrainedTokenizerBase, control: tuple[str, ...]) -> Tokenizer:
    """The tokenizer with other names for its control tokens, so that what they are called is text like any other."""
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {token: _name(token, control) for token in control}
    model = made["model"]
    for token in made["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    else:  # Unigram: pieces with scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    made |= {"post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(made))


def encode_batch(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, template: Template) -> EncodedBatch:
    """`encode_row` of several rows at once, which is several times faster."""
    writer, tokens = Writer(template, tokenizer), _Tokens(tokenizer, template)
    written = [writer.row(row) for row in rows]
    for row, pieces in zip(rows, written, strict=True):
        tokens.check([piece.before + piece.target for piece in pieces], row.where)
    return _joined(tokens, written)


def _overlap(token: str, other: str) -> bool:
    """Whether finding `other` in a text could take characters of a `token` that begins no later."""
    ends = any(other.endswith(token[:size]) for size in range(1, len(token)))
    return ends or (token in other and token != other)


def _joined(tokens: _Tokens, rows: list[list[Piece]]) -> EncodedBatch:
    """Token ids of the pieces of each row, all rows in few calls of the tokenizer and each text once."""
    flat = [(piece, i > 0) for row in rows for i, piece in enumerate(row)]
    cut = tokens.cut(flat[0][0].before) if flat else ""
    parts = [_parts(piece.before, behind, cut) for piece, behind in flat]
    unique = list(dict.fromkeys(itertools.chain(*parts)))
    known = dict(zip(unique, tokens.after(unique), strict=True))
    befores = [[known[part] for part in before] for before in parts]
    wholes = tokens.after(
        [
            (before[-1][0] + piece.target, before[-1][1])
            for (piece, _), before in zip(flat, parts, strict=True)
        ]
    )
    apart = [i for i, (*_, last) in enumerate(befores) if wholes[i][: len(last)] != last]
    alone = tokens.after([(flat[i][0].target, True) for i in apart])
    for i, target in zip(apart, alone, strict=True):
        wholes[i] = befores[i][-1] + target
    return _columns(rows, befores, wholes, tokens.special)


def _parts(text: str, behind: bool, cut: str) -> list[tuple[str, bool]]:
    """`text` cut before each `cut`; with each part, whether it has to be read as behind a turn's end."""
    first, *others = text.split(cut) if cut and START not in text else [text]
    return [(first, behind), *((cut + other, False) for other in others)]


def _columns(
    rows: list[list[Piece]], befores: list[list[list[int]]], wholes: list[list[int]], special: list[int]
) -> EncodedBatch:
    """The columns of `rows`, from each piece's ids: those of the parts before it, and of the last part and it."""
    lists = [ids for before, whole in zip(befores, wholes, strict=True) for ids in (*before[:-1], whole)]
    ids = np.fromiter(itertools.chain.from_iterable(lists), np.int32, sum(map(len, lists)))
    ahead = np.array([sum(map(len, before)) for before in befores], np.int64)
    targets = np.array([len(w) - len(b[-1]) for b, w in zip(befores, wholes, strict=True)], np.int64)
    supervised = np.array([piece.supervised for row in rows for piece in row], np.bool_)
    target = _by_turns(np.zeros_like(supervised), supervised).repeat(_by_turns(ahead, targets))
    structural = target & np.isin(ids, special)
    piece_ends = np.cumsum(ahead + targets)
    structural[piece_ends[supervised] - 1] = True
    ends = piece_ends[np.cumsum([len(row) for row in rows], dtype=np.int64) - 1]
    first = ends - np.diff(ends, prepend=0)
    target[first] = structural[first] = False  # nothing stands before it, so it cannot be predicted
    weights = np.array([piece.weight for row in rows for piece in row], np.float64)
    weight = _by_turns(np.ones_like(weights), weights).repeat(_by_turns(ahead, targets))
    return EncodedBatch(
        ids, np.where(target, ids, np.int32(IGNORED)), structural, np.where(target, weight, 1.0), ends
    )


def _by_turns(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.stack([one, other], axis=1).reshape(-1)


def token_texts(ids: Sequence[int] | np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each id as it stands behind others; half a character is shown as U+FFFD."""
    unique, inverse = np.unique(np.asarray(ids, dtype=np.int64), return_inverse=True)
    # Behind itself, since SentencePiece tokenizers drop the space before the first token of what they decode.
    once = tokenizer.batch_decode([[one] for one in unique.tolist()])
    twice = tokenizer.batch_decode([[one, one] for one in unique.tolist()])
    texts = [both[len(alone) :] for alone, both in zip(once, twice, strict=True)]
    return [texts[i] for i in inverse]
