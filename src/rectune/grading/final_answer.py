r"""The final part of what a model wrote: behind its thinking, before a next question or turn of its own.

Every grader reads this part alone. Plain text, no sympy, linear time.
"""

from __future__ import annotations

import re

_UNQUOTED = (
    r"(?<![\"'`])(?:%s)(?![\"'`])"  # in quotes a mark is only spoken of, as in a program that reads it
)
_TAG = r"(?:\w+[:_])?(?:think|thinking|thoughts?|reason|reasoning|reflection|scratchpad)"
_OPEN = _UNQUOTED % (
    rf"<{_TAG}>|\[THINK\]|<\|(?:begin_of_thought|START_THINKING|inner_prefix|begin_think|think)\|>|◁think▷"
    r"|<\|channel\|>(?:analysis|commentary)\b|<\|channel>thought|<unused94>"
    r"|\Aanalysis(?=\S[\s\S]*?assistantfinal)|\A\s*Here(?:'s| is) my thought process:"
)
_CLOSE = _UNQUOTED % (
    rf"</{_TAG}>|\[/THINK\]|<\|(?:end_of_thought|END_THINKING|inner_suffix|end_think|/think)\|>|◁/think▷"
    r"|<\|channel\|>final(?:\s*<\|constrain\|>\w+)?<\|message\|>|<channel\|>|<unused95>"
    r"|assistantfinal(?=\S)|Here(?:'s| is) my response:"
)
_THINKING = re.compile(rf"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.IGNORECASE)
_TAGGED = re.compile(_UNQUOTED % "<answer>" + r"([\s\S]*?)(?:</answer>|\Z)", re.IGNORECASE)
_TOKEN = _UNQUOTED % (
    r"<\|(?:im_start|im_end|endoftext|end_of_text|begin_of_text|eot_id|eom_id|eot|start_header_id|header_start|start"
    r"|end|return|call|user|system|assistant|end_of_turn|end_of_solution|start_of_role|END_OF_TURN_TOKEN"
    r"|START_OF_TURN_TOKEN|END_RESPONSE|turn)\|?>|<(?:start_of_turn|end_of_turn|eos|turn\|)>"
    r"|<｜(?:User|Assistant|end▁of▁sentence)｜>|\[INST\]|\[\|(?:user|endofturn)\|\]"
    r"|</s>(?=\s*(?:\Z|<s>|\[INST\]))"
)
_LABEL = (
    r"(?:user|human|assistant"
    r"|(?:(?:new|next|another|follow[- ]?up|practice|similar)[^\S\n]+)?"
    r"(?:question|problem|exercise|q|instruction|prompt)(?:[^\S\n]*\#?\d+)?|(?:example|task)[^\S\n]+\d+"
    r"|(?:问题|题目|问|用户|例题|练习)[^\S\n]*\d*)"
)
_MARK = re.compile(
    rf"(?P<fence>^[^\S\n]*(?:```|~~~)[^\n]*)|(?P<token>{_TOKEN})|^[^\S\n]*(?:{_LABEL}[^\S\n]*[:：]"
    rf"|(?:\#{{1,6}}[^\S\n]*[*_]{{0,2}}|[*_]{{2}}){_LABEL}[*_]{{0,2}}[^\S\n]*(?:[:：.][*_]{{0,2}}|$)"
    r"|Below is an instruction that describes a task)",
    re.IGNORECASE | re.MULTILINE,
)
_GIVEN = re.compile(
    r"\\(?:boxed|fbox)\b|^\#\#\#\#[^\S\n]*[-$\d\\]|</answer>|\banswer\b[^.\n]{0,60}?(?:\bis\b|[:=：])|答案",
    re.IGNORECASE | re.MULTILINE,
)
_PREAMBLE = re.compile(
    r"[:：]\W*$|^\W*\#|\b(?:restat|rephras|repeat|read|understand|analy|solv|solution|consider|tackle|break|problem"
    r"|question|exercise|task|given|let's|let us|let me|need to|want to|have to|sure|okay|certainly|of course|here)",
    re.IGNORECASE,
)


def final_part(text: str) -> str:
    r"""The part of `text` that holds the model's final answer, "" where it never came to one.

    That is what stands behind the last closing thinking mark (`</think>`, `[/THINK]`, the final channel of
    gpt-oss and others) and before the model's own next question or turn; within `<answer>` tags where it has
    them. Thinking that is never closed has no final part: what a model tries out is not its answer.

    A line such as "Question:" or "User:" begins a next turn only where an answer was given before it, so that
    a solution may restate its problem. Nothing inside a fenced block of code begins a turn.
    """
    spoken = _spoken(text)
    return tagged(spoken) or spoken


def tagged(text: str) -> str:
    """What the last `<answer>` tags with anything in them hold, else ""."""
    return next((found for one in reversed(_TAGGED.findall(text)) if (found := one.strip())), "")


def _spoken(text: str) -> str:
    """What is said after thinking, up to the next turn."""
    start, thinking = 0, False
    for mark in _THINKING.finditer(text):
        # what stands before the first closing mark is thinking, too, where the prompt has opened it
        shown = not thinking and (start > 0 or mark["open"] is not None)
        if shown and (turn := _next_turn(text, start, mark.start())) is not None:
            return text[start:turn]
        thinking = mark["open"] is not None
        start = mark.end()
    return "" if thinking else text[start : _next_turn(text, start, len(text))]


def _next_turn(text: str, start: int, end: int) -> int | None:
    """Where the first turn in text[start:end] begins that is not the answer's own; None where none does."""
    given, fence = _GIVEN.search(text, start, end), ""
    for mark in _MARK.finditer(text, start, end):
        if mark["fence"]:
            line = mark["fence"].strip()
            if not fence:
                fence = line[:3]
            elif set(line) == {fence[0]}:
                fence = ""
            continue
        before = text[max(start, mark.start() - 400) : mark.start()].strip()
        if not before or (fence and not mark["token"]):
            continue
        answered = given is not None and given.end() <= mark.start()
        if mark["token"] or answered or not _PREAMBLE.search(before.rpartition("\n")[2]):
            return mark.start()
    return None
