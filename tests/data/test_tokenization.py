"""The join of prompt and answer is what generation sees, for every assistant turn and kind of template."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerFast

from rectune.data.chat_template import choose_template
from rectune.data.packing import collate
from rectune.data.schema import Row, Turn
from rectune.data.tokenization import Encoded, _Tokens, encode_batch, encode_row, prompt_ids, stop_ids
from rectune.errors import UserError
from rectune.models.folder import converted_folder
from toys import CHATML, byte_tokenizer

EOS = 2
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # as Qwen3: thinking stays in the last turn only, which gets an empty one where it has none
    "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' %}"
    "{% set c = c.split('</think>')[-1].strip() %}"
    "{% if loop.last %}{% set t = m.content.split('</think>')[0].split('<think>')[-1].strip() "
    "if '</think>' in m.content else '' %}"
    "{% set c = '<think>\\n' + t + '\\n</think>\\n\\n' + c %}{% endif %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DROPS_THINKING = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
OPENS_THINKING = CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
NO_END = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


def row(*contents: str, system: str | None = None, supervised: tuple[int, ...] = (1, 3, 5)) -> Row:
    """A row of user and assistant turns by turns, of which those numbered in `supervised` are."""
    turns = [Turn("user" if i % 2 == 0 else "assistant", c, i in supervised) for i, c in enumerate(contents)]
    return Row((*([Turn("system", system)] if system else []), *turns), "f:1")


def targets(encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Text of each run of targets."""
    runs: list[list[int]] = [[]]
    for label in encoded.labels:
        if label != -100:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def assert_join(made: Row, tokenizer: PreTrainedTokenizerFast, template_name: str) -> Encoded:
    """Before each supervised turn stands exactly what generation would read; the labels are the ids."""
    template = choose_template(template_name, tokenizer)
    encoded = encode_row(made, tokenizer, template)
    for i, turn in enumerate(made.turns):
        if turn.supervised:
            prompt = prompt_ids(made.turns[:i], tokenizer, template)
            assert encoded.input_ids[: len(prompt)] == prompt
            assert encoded.labels[len(prompt)] == encoded.input_ids[len(prompt)]
            assert not prompt or encoded.labels[len(prompt) - 1] == -100
    assert all(label in (-100, i) for i, label in zip(encoded.input_ids, encoded.labels, strict=True))
    assert encoded.labels[-1] == EOS or not encoded.labels
    collate([encoded])
    return encoded


@pytest.mark.parametrize("template", ["auto", "none"])
@pytest.mark.parametrize("chat_template", [CHATML, None])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("prompt", "answer"), [("hi", "48"), ("hi ", "48"), ("a\n", "\n4"), ("the", "re")])
def test_join(template: str, chat_template: str | None, bos: bool, prompt: str, answer: str) -> None:
    tokenizer = byte_tokenizer(chat_template=chat_template, bos=bos)
    encoded = assert_join(row(prompt, answer), tokenizer, template)
    assert targets(encoded, tokenizer)[0].strip() == f"{answer.strip()}<|im_end|>"
    assert encoded.structural == [label == EOS for label in encoded.labels]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("4 8the\n:é", min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=6))
def test_join_of_any_conversation(contents: list[str]) -> None:
    made = row(*contents[: len(contents) // 2 * 2])
    tokenizer = byte_tokenizer()
    encoded = assert_join(made, tokenizer, "auto")
    assert targets(encoded, tokenizer) == [f"{t.content}<|im_end|>" for t in made.turns if t.supervised]


def test_a_token_that_would_span_the_join_is_split() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer("\n\n").input_ids == [tokenizer.convert_tokens_to_ids("ĊĊ")]
    encoded = assert_join(row("hi", "\nyo"), tokenizer, "auto")
    assert tokenizer.convert_tokens_to_ids("ĊĊ") not in encoded.input_ids
    assert targets(encoded, tokenizer) == ["\nyo<|im_end|>"]


SPECIALS = st.sampled_from(["<|im_start|>", "<|im_end|>", "<|im_", "start|>", "<pad>"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(SPECIALS, st.text("4 8the\n:é", min_size=1, max_size=4)), min_size=1, max_size=4)
        .map("".join)
        .filter(str.strip),
        min_size=2, max_size=6,
    ),
    st.booleans(),
)  # fmt: skip
def test_cut_texts_have_the_ids_of_whole_ones(contents: list[str], bos: bool) -> None:
    """Also where special tokens, and halves of them, stand in the words of either side."""
    tokenizer = byte_tokenizer(bos=bos)
    template = choose_template("auto", tokenizer)
    made = row(*contents[: len(contents) // 2 * 2])
    try:
        encoded = list(encode_batch([made, made], tokenizer, template))
    except UserError:  # words that the template moves
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Tokens, "cut", lambda *_: "")
        assert encoded == list(encode_batch([made, made], tokenizer, template))


def test_where_a_text_can_be_cut() -> None:
    """Only at tokens that are found whatever stands around them."""
    tokenizer = byte_tokenizer()
    template = choose_template("auto", tokenizer)
    assert _Tokens(tokenizer, template).cut("a<|im_end|>\n<|im_start|>b") == "<|im_start|>"
    assert _Tokens(tokenizer, template).cut("nothing <|im_st") == ""
    eager = [
        AddedToken("<l>", lstrip=True), AddedToken("<r>", rstrip=True), AddedToken("<w>", single_word=True),
        AddedToken("<n>", normalized=True), AddedToken("x<in>y"), AddedToken("<in>"),
        AddedToken("<a"), AddedToken("ab"), AddedToken("<clean>", normalized=False),
    ]  # fmt: skip
    tokenizer.add_tokens(eager)
    tokens = _Tokens(tokenizer, template)
    for text in ("<l>", "<r>", "<w>", "<n>", "<in>", "ab"):
        assert tokens.cut(f"1 {text} 2") == "", text
    assert tokens.cut("1 <clean> 2 <l>") == "<clean>"
    tokenizer.split_special_tokens = True
    assert tokens.cut("1 <clean> 2") == ""


def test_only_supervised_turns_are_targets() -> None:
    tokenizer = byte_tokenizer()
    encoded = assert_join(row("a", "b", "c", "d", "e", supervised=(3,)), tokenizer, "auto")
    assert targets(encoded, tokenizer) == ["d<|im_end|>"]
    assert tokenizer.decode(encoded.input_ids).endswith("d<|im_end|>")


def test_no_second_bos() -> None:
    tokenizer = byte_tokenizer(bos=True, chat_template=None)
    for name in ("auto", "none"):
        for prompt in ("hi", "<|im_start|>hi"):
            template = choose_template(name, tokenizer)
            count = encode_row(row(prompt, "yo"), tokenizer, template).input_ids.count(tokenizer.bos_token_id)
            assert count == 1
    chat = byte_tokenizer(bos=True)  # its template writes the bos token by itself
    ids = encode_row(row("hi", "yo"), chat, choose_template("auto", chat)).input_ids
    assert ids[0] == chat.bos_token_id
    assert ids[1] != chat.bos_token_id


def test_none_is_the_texts_as_they_are() -> None:
    tokenizer = byte_tokenizer()
    encoded = assert_join(row("2+2=", "4"), tokenizer, "none")
    assert tokenizer.decode(encoded.input_ids) == "2+2=4<|im_end|>"
    with pytest.raises(UserError, match="f:1: template none takes one prompt and one completion"):
        assert_join(row("a", "b", "c", "d"), tokenizer, "none")
    first = encode_row(row("", "yo"), tokenizer, choose_template("none", tokenizer))
    assert first.labels[0] == -100  # it has no preceding token
    collate([first])


def test_plain_template_reads_as_documented() -> None:
    tokenizer = byte_tokenizer(chat_template=None)
    encoded = assert_join(row("hi", "yo", "and", "so", system="be kind"), tokenizer, "auto")
    text = "be kind\n\nUser: hi\n\nAssistant: yo<|im_end|>\n\nUser: and\n\nAssistant: so<|im_end|>"
    assert tokenizer.decode(encoded.input_ids) == text
    assert targets(encoded, tokenizer) == [" yo<|im_end|>", " so<|im_end|>"]


def test_template_with_a_space_before_the_turn_end() -> None:
    tokenizer = byte_tokenizer(chat_template=LLAMA2, bos=True)
    encoded = assert_join(row("hi", "yo", "and", "so"), tokenizer, "auto")
    assert targets(encoded, tokenizer) == [" yo <|im_end|>", " so <|im_end|>"]


def test_template_that_trims() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML.replace("['content']", "['content'].strip()"))
    encoded = assert_join(row("hi", " yo\n", "and", "\nso "), tokenizer, "auto")
    assert targets(encoded, tokenizer) == ["yo<|im_end|>", "so<|im_end|>"]


def test_template_that_keeps_only_the_last_thinking() -> None:
    tokenizer = byte_tokenizer(chat_template=THINKING)
    made = assert_join(row("a", "<think>x</think>b"), tokenizer, "auto")
    assert targets(made, tokenizer) == ["<think>\nx\n</think>\n\nb<|im_end|>"]
    made = assert_join(
        row("a", "<think>x</think>b", "c", "<think>y</think>d", supervised=(3,)), tokenizer, "auto"
    )
    assert "x" not in tokenizer.decode(made.input_ids)
    with pytest.raises(UserError, match=r"f:1: .* rewrites turn 1 once later turns follow"):
        assert_join(row("a", "<think>x</think>b", "c", "d"), tokenizer, "auto")


@pytest.mark.parametrize(
    ("chat_template", "made", "message"),
    [
        (LLAMA2, row("hi", "yo", system="s"), r"refuses this conversation \(System role not supported\)"),
        (LLAMA2, Row((*row("hi").turns, *row("hi", "yo").turns), "f:1"), "roles must alternate"),
        (
            CHATML,
            Row((Turn("assistant", "yo", True),), "f:1"),
            "the conversation begins with the assistant's turn",
        ),
        (DROPS_THINKING, row("hi", "<think>x</think>yo"), "drops or moves a part"),
        (OPENS_THINKING, row("hi", "yo"), "drops or moves a part"),
        (NO_END, row("hi", "yo"), "without a token of its own"),
        ("{% for %}", row("hi", "yo"), r"is not a Jinja template \(line 1: Expected an expression"),
    ],
)
def test_templates_that_cannot_be_right_are_refused(chat_template: str, made: Row, message: str) -> None:
    with pytest.raises(UserError, match=message):
        assert_join(made, byte_tokenizer(chat_template=chat_template, bos=True), "auto")


def test_thinking_that_the_prompt_opens() -> None:
    tokenizer = byte_tokenizer(chat_template=OPENS_THINKING)
    encoded = assert_join(row("hi", "<think>\nx</think>yo"), tokenizer, "auto")
    assert targets(encoded, tokenizer) == ["x</think>yo<|im_end|>"]


def test_template_file(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(CHATML.replace("<|im_start|>", "## "))
    tokenizer = byte_tokenizer(chat_template=None)
    encoded = assert_join(row("hi", "yo"), tokenizer, str(tmp_path / "t.jinja"))
    assert tokenizer.decode(encoded.input_ids).startswith("## user\nhi")
    with pytest.raises(UserError, match="nosuch: the template cannot be read"):
        choose_template("nosuch", tokenizer)


def test_stop_ids() -> None:
    tokenizer = byte_tokenizer()
    assert stop_ids(tokenizer, choose_template("auto", tokenizer)) == [EOS]
    tokenizer.eos_token = "<pad>"
    assert stop_ids(tokenizer, choose_template("auto", tokenizer)) == [0, EOS]


@given(st.lists(st.one_of(SPECIALS, st.text(max_size=8)), max_size=4))
def test_ids_are_those_of_the_tokenizer_called_as_usual(texts: list[str]) -> None:
    """Which are not asked for by its library's own call, however that was left; a class of its own is called."""

    class Shouting(PreTrainedTokenizerFast):
        def _encode_plus(self, text: list[str], **settings: object) -> BatchEncoding:
            return super()._encode_plus(text=[t.upper() for t in text], **settings)

    tokenizer = byte_tokenizer(bos=True)
    own = Shouting(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    own.chat_template = tokenizer.chat_template
    for one, direct in ((tokenizer, True), (own, False)):
        template = choose_template("auto", one)
        whole = one(texts, add_special_tokens=False).input_ids if texts else []
        one.backend_tokenizer.enable_truncation(3)
        one.backend_tokenizer.enable_padding(length=5)
        tokens = _Tokens(one, template)
        assert tokens.direct is direct
        assert tokens.plain(texts) == whole


@pytest.mark.parametrize("scheme", ["first", "always", "never", "legacy"])
def test_sentencepiece_like_tokenizers(scheme: str) -> None:
    """Tokenizers that put a space in front of a text, as Llama 2 does, do so at most where a text begins."""
    pieces = ["<pad>", "<s>", "<|im_end|>", "<unk>", "▁", *"abhioyINST[/]x\n", "▁y", "▁yo", "▁hi", "▁["]
    bpe = Tokenizer(
        models.BPE(
            {p: i for i, p in enumerate(pieces)}, [("▁", "y"), ("▁y", "o"), ("▁", "[")], unk_token="<unk>"
        )
    )
    if scheme == "legacy":
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = LLAMA2
    made = row("hi", "yo", "a", "b")
    encoded = assert_join(made, tokenizer, "auto")
    whole = tokenizer.apply_chat_template(
        [{"role": t.role, "content": t.content} for t in made.turns], tokenize=False
    )
    assert encoded.input_ids == tokenizer(whole, add_special_tokens=False).input_ids


@pytest.fixture
def smollm2() -> PreTrainedTokenizerFast:
    folder = converted_folder("smollm2-135m")
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the packaged model was not converted yet (any command that uses it does)")
    return AutoTokenizer.from_pretrained(folder)


def test_join_with_smollm2(smollm2: PreTrainedTokenizerFast) -> None:
    for prompt, answer in [("Question: 2?\nCalculation: ", "48 / 2"), ("hi\n", "\n\nyo"), ("a", " b")]:
        for name in ("auto", "none"):
            encoded = assert_join(row(prompt, answer), smollm2, name)
            assert targets(encoded, smollm2) == [f"{answer}<|im_end|>"]
    assert_join(row("a", "b", "c", "d", system="s"), smollm2, "auto")
