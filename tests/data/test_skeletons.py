"""Conversations filled in equal those that the template's program writes; templates that look into contents are run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rectune.data.rows import Turn
from rectune.data.skeletons import Skeletons, only_writes_contents
from toys import CHATML, byte_tokenizer

QWEN = (  # Qwen 2.5's, its tool calls shortened
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0]['role'] == 'system' %}"
    "{{- messages[0]['content'] }}{%- endif %}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}"
    "{%- else %}{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif %}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or "
    "(message.role == 'assistant' and not message.tool_calls) %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>' + message.role }}"
    "{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}"
    "{%- for tool_call in message.tool_calls %}{{- tool_call.name }}{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != 'tool') %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}"
    "{%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}"
    "{%- else -%}{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}"
    "{%- for message in loop_messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate') }}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{%- set role = 'model' -%}"
    "{%- else -%}{%- set role = message['role'] -%}{%- endif -%}"
    "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}{{ '?' }}{%- endif -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
LLAMA = (  # Llama 3's
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}"
    "{%- for message in rest %}{%- if message['role'] == 'user' %}"
    "{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\\n\\n' + message['content'] + ' [/INST]' }}"
    "{%- else %}{{- '[INST] ' ~ message['content'] ~ ' [/INST]' }}{%- endif %}"
    "{%- elif message['role'] == 'assistant' %}{% generation %}{{- ' ' + message.content.strip() + eos_token }}"
    "{% endgeneration %}{%- else %}{{- raise_exception('no such role') }}{%- endif %}{%- endfor %}"
)
PLAYFUL = (
    "{% set ns = namespace(seen=0) %}{% for m in messages if m.content %}{% set ns.seen = ns.seen + 1 %}"
    "{{ ns.seen }}{{ (' x ' ~ m.content ~ loop.previtem.content) | trim }}|{{ m.content.rstrip() }}|"
    "{{ 'none' if m.content == '' else m.content.lstrip() }}{% if loop.length > 3 %}{% break %}{% endif %}"
    "{% endfor %}{{ messages | length }}{{ (messages | last).role }}{% set all %}a{{ messages[-1].content }}"
    "{% endset %}{{ all }}{{ '' if not messages[0].content or messages[-1].content else 'b' }}"
)
SIMPLE = {
    "chatml": CHATML, "qwen": QWEN, "gemma": GEMMA, "llama": LLAMA, "mistral": MISTRAL, "playful": PLAYFUL,
}  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(["", " ", "\n", " a ", "\u2003b\u2003", "\ue0000\ue001", "\u2003\ue0001\ue001", "{{ x }}"]),
    st.text(max_size=6),
)  # fmt: skip
CONVERSATIONS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXTS), min_size=1, max_size=5
)


def outcome(function: Any) -> str:
    try:
        return "written: " + function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("name", SIMPLE)
@settings(max_examples=150, deadline=None)
@given(CONVERSATIONS, st.booleans())
def test_what_is_filled_in_is_what_the_template_writes(
    name: str, conversation: list[tuple[str, str]], generation: bool
) -> None:
    assert only_writes_contents(SIMPLE[name])
    tokenizer, runs = byte_tokenizer(bos=True), 0

    def run(messages: list[dict[str, str]]) -> str:
        nonlocal runs
        runs += 1
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation, chat_template=SIMPLE[name]
            )
        )

    skeletons = Skeletons(SIMPLE[name])
    turns = [Turn(role, content) for role, content in conversation]
    filled = skeletons.written(turns, run)
    expected = outcome(lambda: run([{"role": t.role, "content": t.content} for t in turns]))
    if filled is None:
        assert not expected.startswith("written") or any(t.content.isspace() for t in turns)
        return
    assert "written: " + filled == expected
    runs = 0
    others = [Turn(t.role, t.content and f" {t.content}{i} ") for i, t in enumerate(turns)]
    assert skeletons.written(others, run) is not None and runs == 0


NAMES = [
    "m.content",
    "m['content']",
    "m.role",
    "messages[0].content",
    "messages[-1].role",
    "loop.index",
    "'x'",
    "' '",
]
NAMES += ["n", "messages", "m", "loop.previtem.content", "messages[1:]", "ns.a", "none", "''"]
ONE = (
    "{0} | trim",
    "{0} | length",
    "{0} | upper",
    "{0}[0]",
    "not {0}",
    "{0} == ''",
    "{0} is string",
    "[{0}]",
    "{0}.strip()",
)
TWO = "{0} ~ {1}", "{0} + {1}", "{0} and {1}", "{0} or {1}", "{0} == {1}", "{0} in {1}", "{0} if {1} else {0}"
EXPRESSIONS = st.recursive(
    st.sampled_from(NAMES),
    lambda inner: st.builds(
        lambda form, a, b: f"({form.format(a, b)})", st.sampled_from(ONE + TWO), inner, inner
    ),
    max_leaves=4,
)
BLOCKS = "{{% if {0} %}}{1}{{% else %}}{2}{{% endif %}}", "{{% for m in messages %}}{1}{{% endfor %}}{2}"
BLOCKS += "{{% for k in [1, 2] %}}{1}{{% endfor %}}{2}", "{{% set n %}}{1}{{% endset %}}{2}"
PROGRAMS = st.recursive(
    st.builds(
        str.format,
        st.sampled_from(["{{{{ {0} }}}}", "a ", "{{% set n = {0} %}}", "{{% set ns.a = {0} %}}"]),
        EXPRESSIONS,
    ),
    lambda inner: st.one_of(
        st.builds(str.format, st.sampled_from(BLOCKS), EXPRESSIONS, inner, inner),
        st.builds(str.__add__, inner, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(PROGRAMS, CONVERSATIONS)
def test_no_program_that_counts_as_simple_looks_into_contents(
    program: str, conversation: list[tuple[str, str]]
) -> None:
    run = compiled("{% set ns = namespace() %}{% for m in messages %}" + program + "{% endfor %}")
    turns = [Turn(role, content) for role, content in conversation]
    skeletons = Skeletons("{% set ns = namespace() %}{% for m in messages %}" + program + "{% endfor %}")
    filled = skeletons.written(turns, run)
    event("filled in" if filled is not None else "run")
    if filled is not None:
        assert (
            outcome(lambda: run([{"role": t.role, "content": t.content} for t in turns]))
            == "written: " + filled
        )


def compiled(template: str) -> Any:
    ready = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    return lambda messages: ready.render(messages=messages)


LOOKS = [
    "{{ m.content | upper }}",
    "{{ m.content | length }}",
    "{{ m.content[0] }}",
    "{{ m.content.split('x')[-1] }}",
    "{% if 'x' in m.content %}a{% endif %}",
    "{% if m.content == 'x' %}a{% endif %}",
    "{{ m }}",
    "{{ m | tojson }}",
    "{{ m.get('content') }}",
    "{{ m.items() }}",
    "{{ messages }}",
    "{{ messages | map(attribute='content') | join }}",
    "{% for c in m.content %}{{ c }}{% endfor %}",
    "{% set n = m.content %}{{ n | upper }}",
    "{% set ns = namespace(a=m.content) %}{{ ns.a }}",
    "{% set ns = namespace() %}{% set ns.a = m.content %}",
    "{{ '%s' % m.content }}",
    "{{ '%s' | format(m.content) }}",
    "{{ m.content * 2 }}",
    "{{ [m.content] }}",
    "{{ {'a': m.content}.a }}",
    "{{ m.content or 'x' }}",
    "{{ m.content | trim('x') }}",
    "{{ m.content.strip('x') }}",
    "{% if m == messages[-1] %}a{% endif %}",
    "{{ loop.changed(m.content) }}",
    "{{ loop.previtem.content[0] }}",
    "{% macro w(x) %}{{ x }}{% endmacro %}{{ w(m.content) }}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{% set x %}{{ m.content }}{% endset %}{{ x | upper }}",
    "{{ m[m.role] }}",
    "{{ m.content ~ messages }}",
    "{% if m.content > 'a' %}a{% endif %}",
    "{% if m.content.startswith('a') %}a{% endif %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list }}",
    "{{ (m.content, 1)[0] }}",
    "{{ [1, 2] | random }}",
    "{{ n | upper }}{% set n = m.content %}",
    "{% set m = 1 %}",
    "{{ messages[0:m.content] }}",
    "{{ 'x' if m.content[0] }}",
    "{% for a, b in m.items() %}{{ b }}{% endfor %}",
    "{% include m.content %}",
    "{% do m.update({'a': 1}) %}",
    "{% if %}",
]


@pytest.mark.parametrize("inside", LOOKS)
def test_a_template_that_may_look_into_contents_is_run(inside: str) -> None:
    template = "{% for m in messages %}" + inside + "{% endfor %}"
    assert not only_writes_contents(template)
    assert Skeletons(template).written([Turn("user", "a")], lambda messages: "?") is None


def test_marks_of_the_template_itself_are_not_mistaken() -> None:
    for mark in ("\ue000", "\u2003"):
        template = f"{mark}{{{{ messages[0].content }}}}"
        assert only_writes_contents(template)
        assert Skeletons(template).written([Turn("user", "a")], lambda messages: "?") is None
