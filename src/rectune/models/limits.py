"""Token ids and positions that a model has, and rows that ask for others: cut with a count, or refused.

A tokenizer may have more tokens than its model has embeddings, and rows may be longer than a model's positions. This
is looked at where encoded rows and the model first meet, before anything is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import datasets
import numpy as np
import pyarrow.compute
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rectune.data.chat_template import Template
from rectune.data.encoded_dataset import EncodedRows, encode_rows
from rectune.errors import UserError

log = logging.getLogger("rectune")


def encode_for(
    model: PreTrainedModel | None,
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    max_length: int,
    skip_bad_rows: bool = False,
) -> EncodedRows:
    """`encode_rows`, cut at the model's positions where those are fewer than `max_length`. None bounds nothing.

    Raises:
        UserError: As `encode_rows`, or a row has a token that the model has no embedding for.
    """
    longest = longest_row(model, max_length)
    try:
        encoded = encode_rows(dataset, tokenizer, template, max_length=longest, skip_bad_rows=skip_bad_rows)
    except UserError as error:
        if error.where != "max_length" or longest == max_length:
            raise
        what = f"no row has a target within the {longest:,} positions of the model (max_position_embeddings)"
        raise UserError(what, where="model", hint="shorten the prompts, or take a model with more") from None
    cut = encoded.counts.truncated + encoded.counts.dropped
    if longest < max_length and cut:
        what = "%s rows are cut at the model's %s positions (max_position_embeddings), below max_length = %s"
        log.warning(what, f"{cut:,}", f"{longest:,}", f"{max_length:,}")
    if model is not None:
        check_tokens(encoded, dataset, tokenizer, model)
    return encoded


def longest_row(model: PreTrainedModel | None, max_length: int) -> int:
    """Tokens at which rows are cut: `max_length`, or the model's positions where those are fewer."""
    return min(max_length, (positions(model) if model is not None else None) or max_length)


def positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that a model was made for, in tokens; None where its config does not say."""
    config = model.config.get_text_config()
    places = getattr(config, "max_position_embeddings", None)
    if not isinstance(places, int) or places < 1:
        return None
    factors = [kind.get("factor", 1.0) for kind in rope_kinds(config) if "dynamic" in kind["rope_type"]]
    return int(places * max(factors, default=1.0))  # dynamic scaling is written down as what it scales from


def rope_kinds(config: Any) -> list[dict[str, Any]]:
    """The rotary parameters of a config, one for each type of layer; none for other kinds of positions."""
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given, *(kind for kind in given.values() if isinstance(kind, dict))]
    return [kind for kind in kinds if isinstance(kind.get("rope_type"), str)]


def embeddings(model: PreTrainedModel) -> int:
    """How many token ids a model knows: rows of its embedding, or of its head if those are fewer."""
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    return min(int(layer.weight.shape[0]) for layer in layers if layer is not None)


def beyond(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> dict[int, str]:
    """The tokens that a model has no embedding for, by id."""
    known = embeddings(model)
    words = ((i, word) for word, i in tokenizer.get_vocab().items() if i >= known)
    return dict(sorted(words))


def say_beyond(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Warn of tokens without an embedding; a row that has one is refused."""
    if unknown := beyond(tokenizer, model):
        log.warning(
            "the tokenizer has %s tokens, the model %s embeddings: rows and prompts with %s are refused",
            f"{len(tokenizer):,}", f"{embeddings(model):,}", listed(unknown.values()),
        )  # fmt: skip


def listed(words: Collection[str]) -> str:
    """The first three words, and how many follow."""
    more = f" and {len(words) - 3:,} more" if len(words) > 3 else ""
    return ", ".join(repr(word) for word in list(words)[:3]) + more


def no_embedding(
    token: int, known: int, tokenizer: PreTrainedTokenizerBase | None = None, where: str | None = None
) -> UserError:
    """The error for a text with a token id that is not among the `known` embeddings of the model."""
    what = f"token id {token} has no embedding: the model has {known}"
    if tokenizer is not None:
        word = tokenizer.convert_ids_to_tokens(token)
        numbers = f"the tokenizer has {len(tokenizer)} tokens, the model {known}"
        what = f"token id {token} ({word!r}) has no embedding: {numbers}"
    hint = "use the model's own tokenizer, or resize_token_embeddings and save the model"
    return UserError(what, where=where or None, hint=hint)


def check_tokens(
    encoded: EncodedRows,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
) -> None:
    """Raise `UserError` for the first row with a token id beyond the model's embeddings."""
    if not beyond(tokenizer, model):  # the usual case: no row needs to be read
        return
    known, done = embeddings(model), 0
    for part in encoded.dataset.with_format("arrow").iter(batch_size=1000):
        ids = part["input_ids"].combine_chunks()
        if pyarrow.compute.max(ids.flatten()).as_py() >= known:
            numbers = np.asarray(ids.flatten())
            place = int(np.flatnonzero(numbers >= known)[0])
            row = (
                int(np.searchsorted(np.asarray(ids.offsets) - ids.offsets[0].as_py(), place, side="right"))
                - 1
            )
            token = int(numbers[place])
            where = rows[encoded.dataset[done + row]["row"]]["where"]
            raise no_embedding(token, known, tokenizer, str(where))
        done += len(part)
