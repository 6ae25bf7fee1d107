"""What the chat template is given and what it leaves out; tokens in texts; named, broken and dated templates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rectune.data.chat_template import START, Writer, choose_template, fixed, reads_clock
from rectune.data.schema import Row, Turn
from rectune.data.tokenization import Encoded, encode_batch, encode_row, prompt_ids, stop_ids
from rectune.errors import UserError
from toys import CHATML, byte_tokenizer, stop_clock

CASES = Path(__file__).resolve().parents[1] / "cases"
EOS = 2

QWEN3 = (  # Qwen3's, shortened: tools, thinking in a field, tool calls, tool answers
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}"
    "{{- messages[0].content + '\\n\\n' }}{%- endif %}{{- '<tools>' }}{%- for tool in tools %}"
    "{{- '\\n' }}{{- tool | tojson }}{%- endfor %}{{- '\\n</tools><|im_end|>\\n' }}"
    "{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- set ns = namespace(last=messages|length - 1) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- elif m.role == 'assistant' %}{%- set content = m.content %}{%- set thinking = '' %}"
    "{%- if m.reasoning_content is defined and m.reasoning_content is not none %}"
    "{%- set thinking = m.reasoning_content %}{%- elif '</think>' in m.content %}"
    "{%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{%- set thinking = m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\\n' }}{%- if loop.index0 > ns.last and (loop.last or thinking) %}"
    "{{- '<think>\\n' + thinking.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{%- else %}{{- content }}{%- endif %}"
    "{%- for call in m.tool_calls or [] %}{%- set call = call.function or call %}"
    '{{- \'\\n<tool_call>\\n{"name": "\' + call.name + \'", "arguments": \' }}'
    "{%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}"
    "{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- elif m.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + m.content }}"
    "{{- '\\n</tool_response><|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
DATED = (  # as Llama 3.2's and gpt-oss's begin
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{{- 'Today: ' + date_string + '\n' }}"
) + CHATML
NO_TOOL_TURNS = CHATML.replace(
    "{{ '<|im_start|>'", "{% if message.role != 'tool' %}{{ '<|im_start|>'", 1
).replace("<|im_end|>\\n' }}", "<|im_end|>\\n' }}{% endif %}", 1)
DEPTH = json.dumps([{"type": "function", "function": {"name": "depth", "parameters": {"type": "object"}}}])


def case(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CASES / path).read_text("utf-8").splitlines()]


def pair(prompt: str, completion: str) -> Row:
    return Row((Turn("user", prompt), Turn("assistant", completion, True)), "f:1")


def answer(content: str, **fields: Any) -> Turn:
    return Turn("assistant", content, True, json.dumps(fields) if fields else "")


def conversation(record: dict[str, Any]) -> Row:
    """A record of `messages`, with what else they have in `fields`."""
    turns = []
    for message in record["messages"]:
        fields = {k: v for k, v in message.items() if k not in ("role", "content")}
        assistant = message["role"] == "assistant"
        turns.append(
            Turn(message["role"], message["content"], assistant, json.dumps(fields) if fields else "")
        )
    tools = record.get("tools")
    return Row(tuple(turns), "f:1", tools=json.dumps(tools) if tools else "")


def encoded(row: Row, tokenizer: PreTrainedTokenizerFast, name: str = "auto") -> Encoded:
    """The row encoded; what stands before each supervised turn is what sampling would read."""
    template = choose_template(name, tokenizer)
    made = encode_row(row, tokenizer, template)
    for i, turn in enumerate(row.turns):
        if turn.supervised:
            prompt = prompt_ids(row.turns[:i], tokenizer, template, tools=row.tools)
            assert made.input_ids[: len(prompt)] == prompt
            assert made.labels[len(prompt)] == made.input_ids[len(prompt)]
    return made


def target(made: Encoded, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode([label for label in made.labels if label != -100]))


def test_tools_go_to_the_template_or_are_refused() -> None:
    """huggingface/trl#6259: the `tools` column was never read."""
    row = conversation(case("02-tools-column/rows.jsonl")[0])
    tokenizer = byte_tokenizer(chat_template=QWEN3)
    assert '"name": "depth"' in tokenizer.decode(encoded(row, tokenizer).input_ids)
    for text in (CHATML, None):
        with pytest.raises(UserError, match=r"^f:1: .* does not write the tools \(depth\); give a template"):
            encoded(row, byte_tokenizer(chat_template=text))
    with pytest.raises(UserError, match=r"template none does not write the tools \(depth\)"):
        encoded(row, tokenizer, "none")


def test_a_refusal_names_the_templates_that_the_tokenizer_has() -> None:
    row = Row((Turn("user", "a"), answer("b")), "f:1", tools=DEPTH)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": QWEN3}
    with pytest.raises(UserError, match="the tokenizer has default, tool_use"):
        encoded(row, tokenizer)
    assert "<tools>" in tokenizer.decode(encoded(row, tokenizer, "tool_use").input_ids)


def test_thinking_in_its_own_field_is_learnt() -> None:
    """jingyaogong/minimind#737: `reasoning_content` was dropped, and an empty thinking trained."""
    tokenizer = byte_tokenizer(chat_template=QWEN3)
    row = conversation(case("03-reasoning-content/rows.jsonl")[0])
    made = encoded(row, tokenizer)
    assert target(made, tokenizer) == "<think>\nTwice 0 is 0.\n</think>\n\n0<|im_end|>"
    for text in (CHATML, None):
        with pytest.raises(UserError, match=r"f:1: .* does not write the reasoning_content of turn 1"):
            encoded(row, byte_tokenizer(chat_template=text))
    plain = encoded(pair("0+0?", "0"), tokenizer)  # rows without it keep the template's empty one
    assert target(plain, tokenizer) == "<think>\n\n</think>\n\n0<|im_end|>"


@pytest.mark.parametrize("content", ["<think>\nR\n</think>\n\nA", "<think>R</think>A"])
def test_thinking_in_the_content_is_learnt(content: str) -> None:
    for special in (None, "additional"):  # marks of thinking stay tokens where they are special ones
        tokenizer = byte_tokenizer(chat_template=QWEN3)
        if special:
            tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
        made = encoded(pair("q", content), tokenizer)
        assert target(made, tokenizer) == "<think>\nR\n</think>\n\nA<|im_end|>"
        assert (tokenizer.convert_tokens_to_ids("</think>") in made.labels) is bool(special)


def test_earlier_thinking_is_context_that_the_template_may_drop() -> None:
    tokenizer = byte_tokenizer(chat_template=QWEN3)
    thought = json.dumps({"reasoning_content": "R"})
    turns = [Turn("user", "a"), Turn("assistant", "b", False, thought), Turn("user", "c")]
    made = encoded(Row((*turns, Turn("assistant", "d", True, thought)), "f:1"), tokenizer)
    assert tokenizer.decode(made.input_ids).count("R") == 1


OWN_CALL_END = CHATML.replace(  # as gpt-oss's and Gemma 4's: a call ends with another token than a turn
    "message['content'] + '<|im_end|>\\n' }}",
    "message['content'] }}{% for call in message.tool_calls or [] %}"
    "{{ call.function.name + (call.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|call|>' if message.tool_calls else '<|im_end|>\\n' }}",
)
TEXT_ARGUMENTS = OWN_CALL_END.replace("(call.function.arguments | tojson)", "call.function.arguments")
CALL = {"type": "function", "function": {"name": "depth", "arguments": '{"lake": 7, "unit": "m"}'}}
CALLED = 'depth{"lake": 7, "unit": "m"}<|call|>'
WRITTEN = '<tool_call>\n{"name": "depth", "arguments": {"lake": 7, "unit": "m"}}\n</tool_call><|im_end|>'
ASKED = (Turn("user", "a"), answer("", tool_calls=[CALL]))
ANSWERED = (*ASKED, Turn("tool", "3 m"), answer("3"))
WITH_TOOL = (Turn("user", "a"), Turn("assistant", "b"), Turn("tool", "secret"), answer("c"))


@pytest.mark.parametrize(
    ("text", "turns", "learnt"),
    [
        (OWN_CALL_END, ASKED, CALLED),
        (OWN_CALL_END, ANSWERED, f"{CALLED}3<|im_end|>"),
        (TEXT_ARGUMENTS, ASKED, CALLED),
        (QWEN3, ASKED, f"<think>\n\n</think>\n\n\n{WRITTEN}"),
        (
            QWEN3,
            ANSWERED,
            f"\n{WRITTEN}<think>\n\n</think>\n\n3<|im_end|>",
        ),  # an empty thinking is taken away
    ],
)
def test_how_a_template_writes_tool_calls(text: str, turns: tuple[Turn, ...], learnt: str) -> None:
    tokenizer = byte_tokenizer(chat_template=text)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|call|>"]})
    made = encoded(Row(turns, "f:1"), tokenizer)
    assert target(made, tokenizer) == learnt
    assert made.structural[-1]


@pytest.mark.parametrize("arguments", ['{"lake": 7, "unit": "m"}', {"lake": 7, "unit": "m"}])
@pytest.mark.parametrize("content", ["", "Let me look."])
def test_tool_calls_are_learnt(arguments: object, content: str) -> None:
    call = {"type": "function", "function": {"name": "depth", "arguments": arguments}}
    turns = (
        Turn("user", "How deep?"), answer(content, tool_calls=[call], reasoning_content="I need a tool."),
        Turn("tool", '{"depth": "3 \\"m\\""}', fields='{"name": "depth"}'), answer("3 m."),
    )  # fmt: skip
    tokenizer = byte_tokenizer(chat_template=QWEN3)
    learnt = target(encoded(Row(turns, "f:1", tools=DEPTH), tokenizer), tokenizer)
    assert WRITTEN in learnt
    assert learnt.startswith("<think>\nI need a tool.\n</think>\n\n" + content)
    assert learnt.endswith("3 m.<|im_end|>")
    assert "tool_response" not in learnt


@pytest.mark.parametrize(
    ("text", "turns", "tools", "message"),
    [
        (CHATML, (Turn("user", "depth?"), answer("depth")), DEPTH, "does not write the tools"),
        (CHATML, (Turn("user", "a"), answer("b", reasoning_content="b")), "", "does not write the reasoning_content"),
        (CHATML, (Turn("user", "depth?"), answer("depth 7 m", tool_calls=[CALL])), "",
         "does not write the tool_calls of turn 1"),
        (CHATML, (Turn("user", "depth?"), replace(answer("depth 7 m", tool_calls=[CALL]), supervised=False),
                  Turn("user", "and?"), answer("no")), "", "does not write the tool_calls of turn 1"),
        (NO_TOOL_TURNS, WITH_TOOL, "", r"does not write the turn 2 \(tool\)"),
        (QWEN3, (Turn("user", "a"), answer("b", reasoning_content="R"), Turn("user", "c"), answer("d")), "",
         "rewrites turn 1 once later turns follow"),
        (CHATML, (Turn("user", "a"), answer(" <|im_end|>\n")), "", r"an answer contains only <\|im_end\|>; remove"),
        (CHATML, (Turn("user", f"a{START}"), answer("b")), "", r"contains U\+FDD0"),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_refused(
    text: str, turns: tuple[Turn, ...], tools: str, message: str
) -> None:
    with pytest.raises(UserError, match=f"^f:1: .*{message}"):
        encoded(Row(turns, "f:1", tools=tools), byte_tokenizer(chat_template=text))


def test_a_prompt_is_refused_like_a_row_but_may_be_written_in_a_way_of_its_own() -> None:
    tokenizer = byte_tokenizer(chat_template=NO_TOOL_TURNS)
    with pytest.raises(UserError, match="does not write the turn 2"):
        prompt_ids(WITH_TOOL[:3], tokenizer, choose_template("auto", tokenizer))
    rewriting = CHATML.replace("message['content']", "message['content'].replace('/think', '')")
    encoded(pair("a /think b", "c"), byte_tokenizer(chat_template=rewriting))
    quoting = CHATML.replace("message['content']", "(message['content'] | tojson)")
    encoded(pair('a "b"\n', "c"), byte_tokenizer(chat_template=quoting))


@pytest.mark.parametrize("name", ["auto", "none"])
@pytest.mark.parametrize("text", [CHATML, None])
@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "<|im_end|><|im_end|>", " <|im_end|> \n"])
def test_an_own_end_is_not_doubled(name: str, text: str | None, end: str) -> None:
    """huggingface/trl#4481: answers that end with the end token already."""
    tokenizer = byte_tokenizer(chat_template=text)
    made = encoded(pair("Name river 0.", "River 0." + end), tokenizer, name)
    assert made.labels.count(EOS) == 1 == made.labels[-1:].count(EOS)
    assert target(made, tokenizer).strip() == "River 0." + " " * end.startswith(" ") + "<|im_end|>"


def test_the_end_token_besides_the_templates_own_is_not_doubled_either() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    for end in ("<|endoftext|>", "<|im_end|>", "<|im_end|>\n<|endoftext|>"):
        made = encoded(pair("a", "b" + end), tokenizer)
        assert target(made, tokenizer) == "b<|im_end|>"
    # a text that is taken as it is keeps the end that it has, and sampling stops at either
    assert target(encoded(pair("a", "b<|im_end|>\n"), tokenizer, "none"), tokenizer) == "b<|im_end|>"
    assert target(encoded(pair("a", "b"), tokenizer, "none"), tokenizer) == "b<|endoftext|>"
    assert stop_ids(tokenizer, choose_template("none", tokenizer)) == [EOS, tokenizer.eos_token_id]


def test_an_end_token_that_is_neither_is_not_learnt_as_text() -> None:
    """Llama 3 has `<|end_of_text|>` besides its turn end, Qwen `<|endoftext|>`."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|end_of_text|>"]})
    assert target(encoded(pair("a", "b<|end_of_text|>"), tokenizer), tokenizer) == "b<|im_end|>"


def test_an_own_end_in_an_earlier_answer_is_not_doubled() -> None:
    turns = (
        Turn("user", "a"),
        Turn("assistant", "b<|im_end|>", True),
        Turn("user", "c"),
        Turn("assistant", "d", True),
    )
    made = encoded(Row(turns, "f:1"), byte_tokenizer())
    assert made.labels.count(EOS) == 2
    assert made.input_ids.count(EOS) == 4


def sentencepiece(scheme: str, template: str | None) -> PreTrainedTokenizerFast:
    """As Llama 2's: <s> begins, </s> ends; `scheme` says who gets a space in front."""
    letters = [chr(i) for i in range(33, 127)]
    pieces = ["<unk>", "<s>", "</s>", "▁", "\n", *letters, "s>", "</", "▁<"]
    merges = [("s", ">"), ("<", "/"), ("▁", "<")]
    bpe = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>"))
    if scheme == "legacy":
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    return tokenizer


LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("scheme", ["first", "always", "never", "legacy"])
@pytest.mark.parametrize("template", [LLAMA2, None])
def test_html_is_text_not_control_tokens(scheme: str, template: str | None) -> None:
    """FranxYao/Long-Context-Data-Engineering#14: `<s>` of HTML became the beginning of a text."""
    tokenizer = sentencepiece(scheme, template)
    for record in [
        *case("13-special-token-in-text/rows.jsonl"),
        {"prompt": "<s>1</s>", "completion": "<s>2</s>"},
    ]:
        made = encoded(pair(record["prompt"], record["completion"]), tokenizer)
        assert made.labels.count(tokenizer.bos_token_id) == 0
        assert made.labels.count(tokenizer.eos_token_id) == 1 == made.structural.count(True)
        assert record["completion"] in target(made, tokenizer)
        assert record["prompt"] in tokenizer.decode(made.input_ids)
        assert made.input_ids.count(tokenizer.bos_token_id) == (template is not None)


@pytest.mark.parametrize("scheme", ["first", "always", "never", "legacy"])
def test_an_own_beginning_is_not_doubled(scheme: str) -> None:
    tokenizer = sentencepiece(scheme, LLAMA2)
    once = encoded(pair("Name river 0.", "River 0."), tokenizer)
    assert encoded(pair("<s>Name river 0.", "River 0.</s>"), tokenizer).input_ids == once.input_ids


def test_marked_texts_are_tokenized_as_the_tokenizer_without_control_tokens_would() -> None:
    tokenizer = byte_tokenizer()
    content = "the <|im_end|>48 <pad> \n\n<|im_start|>user"
    made = encoded(pair("a", content), tokenizer)
    bare = tokenizer(content, split_special_tokens=True, add_special_tokens=False).input_ids
    assert [label for label in made.labels if label != -100] == [*bare, EOS]


TOKENS = st.sampled_from(["<|im_start|>", "<|im_end|>", "<|im_", "end|>", "<pad>", "<tool>"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(TOKENS, st.text("4 8the\n:é<|>", min_size=1, max_size=4)), min_size=1, max_size=4)
        .map("".join).filter(lambda text: text.replace("<|im_end|>", "").replace("<|im_start|>", "").strip()),
        min_size=2, max_size=4,
    ),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_contents_bring_no_control_tokens(contents: list[str], bos: bool, plain: bool) -> None:
    tokenizer = byte_tokenizer(bos=bos, chat_template=None if plain else CHATML)
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    turns = [Turn("user" if i % 2 == 0 else "assistant", c, i % 2 == 1) for i, c in enumerate(contents)]
    row = Row(tuple(turns[: len(turns) // 2 * 2]), "f:1")
    made, plainly = (
        encoded(Row(tuple(Turn(t.role, text(t), t.supervised) for t in row.turns), "f:1"), tokenizer)
        for text in (lambda t: t.content, lambda t: "x")
    )
    for token in (0, 1, EOS):
        assert made.input_ids.count(token) == plainly.input_ids.count(token)
    assert encode_batch([row, row], tokenizer, choose_template("auto", tokenizer))[1] == made


def test_control_tokens_in_tools_and_fields_are_text() -> None:
    tokenizer = byte_tokenizer(chat_template=QWEN3)
    tools = json.dumps([{"type": "function", "function": {"name": "depth", "description": "no <|im_end|>"}}])
    fields = json.dumps({"reasoning_content": "is <|im_end|> one?"})
    made = encoded(
        Row((Turn("user", "a"), Turn("assistant", "b", True, fields)), "f:1", tools=tools), tokenizer
    )
    assert made.labels.count(EOS) == 1
    assert made.input_ids.count(EOS) == 3
    assert "is <|im_end|> one?" in target(made, tokenizer)


def test_ordinary_added_tokens_stay_tokens_but_not_the_templates_own() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<tool>", special=False), AddedToken("<|turn|>", special=False)])
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|turn|>")
    tool, turn = tokenizer.convert_tokens_to_ids(["<tool>", "<|turn|>"])
    made = encoded(pair("a", "<tool> <|turn|> b"), tokenizer)
    assert made.labels.count(tool) == 1
    assert made.labels.count(turn) == 1
    assert target(made, tokenizer) == "<tool> <|turn|> b<|turn|>"


def test_template_none_takes_control_tokens_as_they_are() -> None:
    record = case("12-own-eos-preformatted/pre.jsonl")[0]
    made = encoded(pair(record["prompt"], record["completion"]), byte_tokenizer(), "none")
    assert made.input_ids.count(1) == 2
    assert made.labels.count(EOS) == 1


def test_a_tokenizer_that_cannot_write_them_as_text_says_so() -> None:
    class Own(PreTrainedTokenizerFast):
        def _encode_plus(self, text: list[str], **settings: Any) -> Any:
            return super()._encode_plus(text=text, **settings)

    toy = byte_tokenizer()
    tokenizer = Own(tokenizer_object=toy.backend_tokenizer, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    with pytest.raises(UserError, match=r"f:1: this tokenizer cannot write <\|im_end\|> as text"):
        encode_batch(
            [pair("a", "b"), pair("<|im_end|>?", "c")], tokenizer, choose_template("auto", tokenizer)
        )


def test_named_templates() -> None:
    """huggingface/transformers#31429: several templates and none is the default."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML.replace("<|im_start|>", "## ")}
    record = case("22-named-templates/rows.jsonl")[0]
    row = pair(record["prompt"], record["completion"])
    with pytest.raises(UserError) as raised:
        encoded(row, tokenizer)
    assert str(raised.value) == (
        "chat_template: the tokenizer has several chat templates and none is the default: rag, tool_use; "
        "choose one by its name, as in --chat-template rag"
    )
    assert tokenizer.decode(encoded(row, tokenizer, "tool_use").input_ids).startswith("## user\n")
    with pytest.raises(UserError, match=r"nosuch: .* one of the tokenizer's: rag, tool_use"):
        choose_template("nosuch", tokenizer)
    tokenizer.chat_template = {"default": CHATML, "rag": "{{ nothing }}"}
    assert choose_template("auto", tokenizer).name == "the tokenizer's chat template"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}{{ m.content }}", "is not a Jinja template \\(line 1"),
        ("{{ messages | nosuch }}", "is not a Jinja template \\(line 1: No filter named 'nosuch'"),
        ("{{ messages[7].content }}", "refuses this conversation"),
        ({"default": 3}, "is not text"),
        (
            "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}<|im_end|>{% endfor %}",
            "does not write contents that are plain text",
        ),
        ("<|im_end|>", "does not write contents that are plain text"),
        ("{{ messages[0].content }}", "ends the assistant's turn without a token of its own"),
    ],
)
def test_broken_templates_are_one_line(text: Any, message: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = text
    with pytest.raises(UserError, match=f"^chat_template: the tokenizer's chat template {message}") as raised:
        choose_template("auto", tokenizer)
    assert "\n" not in str(raised.value)


@pytest.fixture
def january(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    stop_clock(monkeypatch, date(2027, 1, 5))
    return


@pytest.mark.usefixtures("january")
def test_the_clock_stands_still() -> None:
    """sgl-project/sglang#3296: the template writes the day on which it runs."""
    tokenizer = byte_tokenizer(chat_template=DATED)
    template = choose_template("auto", tokenizer)
    assert template.today
    assert reads_clock(DATED)
    text = Writer(template, tokenizer).text((Turn("user", "a"),), "here")
    assert text.startswith("Today: 05 Jan 2027\n")
    assert not reads_clock(template.text)
    assert template.saved() == DATED


@pytest.mark.parametrize(
    ("format", "said"),
    [
        ("%Y-%m-%d", "2027-01-05"), ("%d %B %Y", "05 January 2027"), ("%A, %-d %b %y", "Tuesday, 5 Jan 27"),
        ("%F", "2027-01-05"), ("%D at %H:%M", "01/05/27 at 00:00"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("line", ["", "\n", "  "])
def test_a_fixed_clock_writes_any_format(format: str, said: str, line: str) -> None:
    text = line + "{% macro at() %}{{ strftime_now('" + format + "') }}{% endmacro %}{{ at() }}"
    tokenizer = byte_tokenizer()
    message = [{"role": "user", "content": "a"}]

    def render(template: str) -> str:
        return str(tokenizer.apply_chat_template(message, chat_template=template, tokenize=False))

    stopped = fixed(text, date(2027, 1, 5))
    assert render(stopped).strip() == said
    assert re.sub(r"\S.*", "", render(stopped)) == re.sub(r"\S.*", "", render(text))


def test_template_eos_is_the_chat_template_whose_answers_end_with_the_eos_token() -> None:
    """As verl's SFT data set has it, which the paper's code uses: the turn end of the template is not trained."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    usual, by_eos = (choose_template(name, tokenizer) for name in ("auto", "eos"))
    row = Row((Turn("user", "1+1?"), Turn("assistant", "2", True)), "f:1")
    (piece,) = Writer(by_eos, tokenizer).row(row)
    assert (piece.before, piece.target) == (Writer(usual, tokenizer).row(row)[0].before, "2<|endoftext|>")
    assert set(stop_ids(tokenizer, by_eos)) == set(stop_ids(tokenizer, usual))  # answers stop at either
    more = Row(
        (*row.turns[:1], Turn("assistant", "2"), Turn("user", "2+2?"), Turn("assistant", "4", True)), "f:1"
    )
    (piece,) = Writer(by_eos, tokenizer).row(more)
    assert piece.before == Writer(usual, tokenizer).row(more)[-1].before or "2<|im_end|>" in piece.before
    assert piece.target == "4<|endoftext|>"
    plain = byte_tokenizer(chat_template=None)
    assert choose_template("eos", plain) == choose_template("auto", plain)


def published() -> list[Path]:
    """The chat templates of models that TRL brings."""
    found = find_spec("trl")
    return sorted(Path(str(found.origin)).parent.glob("chat_templates/*.jinja")) if found else []


@pytest.mark.parametrize("path", published(), ids=lambda path: path.stem)
def test_published_templates_are_right_or_refused(path: Path) -> None:
    """Prompts are what sampling reads, and all that a row says is in its text."""
    text = path.read_text("utf-8")
    tokenizer = byte_tokenizer(chat_template=text)
    marks = re.findall(
        r"<\|[^|\s]{1,30}\|>|<｜[^｜\s]{1,30}｜>|</?s>|<(?:start|end)_of_turn>|<\|?turn\|?>", text
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *sorted(set(marks))]})
    thought, call = json.dumps({"reasoning_content": "hm, so"}), json.dumps({"tool_calls": [CALL]})
    turns = {
        "plain": (Turn("user", "is <|im_end|> one?"), Turn("assistant", "yes", True)),
        "thought": (Turn("user", "a"), Turn("assistant", "yes", True, thought)),
        "call": (
            Turn("user", "a"), Turn("assistant", "", True, call), Turn("tool", "3 m"), Turn("assistant", "yes", True),
        ),
    }  # fmt: skip
    for name, said in turns.items():
        try:
            made = encoded(Row(said, "f:1", tools=DEPTH if name == "call" else ""), tokenizer)
        except UserError:
            continue
        learnt = target(made, tokenizer)
        assert "yes" in learnt
        assert made.structural[-1]
        assert ("hm, so" in learnt) is (name == "thought")
        assert ("depth" in learnt and "3 m" not in learnt) is (name == "call")
