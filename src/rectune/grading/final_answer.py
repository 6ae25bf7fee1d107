r"""Finding the answer in a model's words. Plain text, no sympy, linear time.

Every grader reads `final_part`: what stands behind the thinking and before a next question or turn of the model's
own. In it, `extract_answer` goes through named rules in a fixed order and takes the first that finds something:

| rule | finds |
|---|---|
| `tag` | the last `<answer>...</answer>` |
| `boxed` | the last complete `\boxed{}`, braces balanced; words such as "and" and commas join several |
| `hash` | what follows the last `####` on its line, unless that is a heading |
| `phrase` | what follows the last "the answer is", "answer:", on its line or below it |
| `number` | the last number, fraction or percentage, or the formula that it stands in |
| `choice` | the last letter that is called an option or correct (where the gold answer is a letter) |
| `whole` | all of the final part (only where `extract` names it) |

Whether two answers are the same is in `math.py`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from rectune.grading.normalization import UNIT

RULES = ("tag", "boxed", "hash", "phrase", "number")
"""The rules used by every benchmark that does not say otherwise, in their order."""
EXTRACTION = (*RULES, "choice", "whole")
"""All rules."""

_UNQUOTED = r"(?:(?<![\"'`])|(?<=\n```))(?:%s)(?![\"'`])"
"""In quotes a mark is only spoken of, as in a program that reads it; behind a closing fence it is one."""
_THOUGHT = r"(?:[\w▁:-]*(?:think|thought|reason|reflect|scratchpad|monologue|internal|analysis)[\w▁:-]*|cot)"
_ENDS = r"(?:/|end(?:_of)?[_▁]|\w+?_end(?=[|｜]))"
_OPEN = _UNQUOTED % (
    rf"(?<!\w)<{_THOUGHT}>|<[|｜](?!{_ENDS}){_THOUGHT}[|｜]>|<\|inner_prefix\|>|◁think▷|\[(?:BEGIN_OF_)?(?-i:THINK|THOUGHT)\]"
    r"|<\|channel\|>(?:analysis|commentary)\b|<\|channel>thought|<unused94>"
    r"|\Aanalysis(?=\S[\s\S]*?assistantfinal)|Here(?:'s| is) my thought process:"
)
_CLOSE = _UNQUOTED % (
    rf"</{_THOUGHT}>|<[|｜](?={_ENDS}){_THOUGHT[:-5]}|/{_THOUGHT})[|｜]>|<\|inner_suffix\|>|◁/think▷"
    r"|\[(?:/|END_OF_)(?-i:THINK|THOUGHT)\]|<\|channel\|>final(?:\s*<\|constrain\|>\w+)?<\|message\|>|<channel\|>|<unused95>"
    r"|assistantfinal(?=\S)|Here(?:'s| is) my response:|(?<![^\n])\#+[^\S\n]*final response[^\S\n]*(?=\n)"
)
_THINKING_STARTS = re.compile(r"<|\[|◁|a(?=nalysis|ssistantfinal)|Here|\n(?=#)")
_THINKING = re.compile(rf"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.IGNORECASE)
_TAGGED = re.compile(r"(?i:(?<![\"'`])<(?:final_?)?answer>)([\s\S]*?)(?i:</(?:final_?)?answer>|\Z)")
_TOKEN = _UNQUOTED % (
    r"<\|(?:im_start|im_end|endoftext|end_of_text|begin_of_text|eot_id|eom_id|eot|start_header_id|header_start|start"
    r"|end|return|call|user|system|assistant|end_of_turn|end_of_solution|start_of_role|END_OF_TURN_TOKEN"
    r"|START_OF_TURN_TOKEN|END_RESPONSE|turn)\|?>|<(?:start_of_turn|end_of_turn|eos|turn\|)>"
    r"|<｜(?:User|Assistant|end▁of▁sentence)｜>|\[INST\]|\[\|(?:user|endofturn)\|\]"
    r"|</s>(?=\s*(?:\Z|<s>|\[INST\]))"
)
_LABEL = (
    r"(?:user|human|assistant"
    r"|follow[- ]?up|(?:(?:new|next|another|follow[- ]?up|practice|similar)[^\S\n]+)?"
    r"(?:question|problem|exercise|q|instruction|prompt)(?:[^\S\n]*\#?\d+)?|(?:example|task)[^\S\n]+\d+"
    r"|(?:问题|题目|问|用户|例题|练习)[^\S\n]*\d*)"
)
_NUMBERED = r"(?:question|problem|exercise|example|q)[^\S\n]*\#?\d+(?:[.)](?!\d)|[^\S\n]*$)"
_MARK_STARTS = re.compile(r"\n|<|\[|(?<= )(?:try|do|solve|consider|look|move|on) |[Hh]ere(?='s | is )")
_MARK = re.compile(
    rf"(?P<fence>^[^\S\n]*(?:```|~~~)[^\n]*)|(?P<token>{_TOKEN})|^ {{0,3}}(?:{_LABEL}[^\S\n]*[:：]|{_NUMBERED}"
    rf"|(?:\#{{1,6}}[^\S\n]*[*_]{{0,2}}|[*_]{{2}}){_LABEL}[*_]{{0,2}}[^\S\n]*(?:[:：.][*_]{{0,2}}|$)"
    r"|Below is an instruction that describes a task)"
    r"|(?P<question>(?:\d+[.)]\s+)?(?:what|how|which|who|when|where|why|if|find|solve|calculate|compute|determine)\b"
    r"[^\n]*\?)"
    r"|(?P<another>(?:\b(?:try|do|solve|consider|look at|move on to|on to)|here(?:'s| is))"
    r"\s+(?:(?:another|a new|a similar"
    r"|a different|one more|the next)\s+(?:\w+\s+)?(?:problem|question|exercise|example|one)\b|this:))",
    re.IGNORECASE | re.MULTILINE,
)
_OWN = re.compile(r"[\s*_#]*(?:assistant|example|task)", re.IGNORECASE)
"""Labels that may stand in the answer's own text, where nothing was answered yet."""
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
    if "nswer>" not in text and "NSWER>" not in text:
        return ""
    return next((found for inside in reversed(_TAGGED.findall(text)) if (found := inside.strip())), "")


def _matches(
    pattern: re.Pattern[str], starts: re.Pattern[str], text: str, start: int, end: int
) -> Iterator[re.Match[str]]:
    """Matches of a slow pattern, tried at `start` and where a fast one says: there, or behind a line end."""
    for at in chain([start], (found.start() for found in starts.finditer(text, start, end))):
        if match := pattern.match(text, at + (text[at : at + 1] == "\n"), end):
            yield match


def _spoken(text: str) -> str:
    """What is said after thinking, up to the next turn."""
    start, thinking = 0, False
    for mark in _matches(_THINKING, _THINKING_STARTS, text, 0, len(text)):
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
    for mark in _matches(_MARK, _MARK_STARTS, text, start, end):
        if mark["fence"]:
            line = mark["fence"].strip()
            if not fence:
                fence = line[:3]
            elif set(line) == {fence[0]}:
                fence = ""
            continue
        before = text[max(start, mark.start() - 400) : mark.start()].strip()
        if mark["another"]:
            before = before[: max(before.rfind(end) for end in ".!?\n") + 1].strip()
        if not before or (fence and not mark["token"]):
            continue
        answered = given is not None and given.end() <= mark.start()
        opens = (
            not mark["question"]
            and not _PREAMBLE.search(before.rpartition("\n")[2])
            and not _OWN.match(mark.group())
        )
        if mark["token"] or answered or opens:
            return mark.start()
    return None


_NUMBER = (
    r"(?:(?<![\w.)}\]\n])[-−][^\S\n]?|(?<=\n)[-−]|(?<!\S)–(?=[$\d.]))?[$€£¥]?[^\S\n]?(?:\\[dt]?frac\{[-\d.]+\}\{[-\d.]+\}"
    r"|\d+\s*/\s*\d+|\d{1,3}:\d{1,3}(?!\d)|\d{1,3}(?:(?:,\d{3})+|(?:[ \u00a0\u2009\u202f]\d{3})+)(?:\.\d+)?(?!\d)"
    r"|\d+(?:\.\d+)?[½⅓⅔¼¾]?|\.\d+|[½⅓⅔¼¾])(?:\s*\\?%)?"
)
_DIGITS = "0123456789½⅓⅔¼¾"
_WITH_UNIT = re.compile(
    rf"(?<![\^_A-Za-z])(?<!\^\{{)(?<!_\{{)(?:{_NUMBER}(?:[-–]|,?\s+or\s+(?:maybe\s+|perhaps\s+)?))*"
    rf"{_NUMBER}(?!\d)(?:\s*(?:{UNIT})(?![\w(]))?"
)
"""A number, or several to choose from, and a unit."""
_FIRST_NUMBER = re.compile(rf"\s*(?:about |approximately |\\)?({_NUMBER})(?![\w^({{\\*+])")
_VARIABLE = re.compile(r"(?:[xyzn]\b[^\s.,;:]*)?")
_NOUN = re.compile(
    r"\s+(?!(?:and|or|to|by|times|plus|minus|over|divided|squared|cubed|mod|choose|factorial|thousand|million|billion"
    r"|trillion|base)\b)[A-Za-z]{2,}(?!.*\b(?:and|or|to|by|plus|minus|times)\b.*[\d\\])"
)
_SECOND_NUMBER = re.compile(rf"\s+(?:{UNIT})\b.*\d")
_REASON = re.compile(r",?\s+(?:because|since|as|so|which|where|after|when|in|not|rather|instead)\b|\s+[—–]\s")
_PROSE = re.compile(
    r"(?<!\\)\b(?:that|the|they|she|he|it|is|are|has|have|will|there|must|should)\b", re.IGNORECASE
)
_PHRASE_STARTS = re.compile("nswer|NSWER|ption|hoice|案|espuesta|éponse|ntwort|твет|isposta|esposta")
"""What follows the first letter of the words that `_PHRASE` begins with: literals alone are found fast."""
_PHRASE = re.compile(
    r"\banswers?\b(?:(?:(?!not\b|n't\b)[^.:=\n]){0,60}?\s(?:is|are|be|equals)\b[^\S\n]*[:：]?|[^\S\n]*[*_]*[^\S\n]*[:：=]"
    r"|[^\S\n]+[-–—](?=\s))"
    r"|(?:(?<=correct )|(?<=right )|(?<=best ))(?:option|choice)[^\S\n]+is\b[^\S\n]*[:：]?"
    r"|答案(?:是|为)?[^\S\n]*[:：]?|\b(?:respuesta|réponse|antwort|ответ|risposta|resposta)(?:[*_]*[^\S\n]*[:：]|\s(?:[^.:\n]{0,30}?\s)?(?:es|est|ist|è|é)\b)",
    re.IGNORECASE,
)
_ANSWER_LINE = re.compile(r"[^\w\n$\\]*(?:the\s+)?(?:final\s+)?answers?[^\w\n$\\]*", re.IGNORECASE)
_LABEL_FIRST = re.compile(r"((?![AI]\s+(?!because|since|as|is)[a-z])\(?[A-Z]\)?)[.):]*\s")
_SENTENCE = re.compile(r"(?:[A-Za-z'’-]+,?\s+){2}|[A-Za-z'’-]{2,},?(?:\s+\S+){4}")
"""A whole sentence in place of an answer: its last number counts."""
_RESULT = re.compile(
    r"=\s*(?=[-−$€£]?[\d.])(?!.*(?:=|\b(?:is|are|so|was)\b|\\|\$\S*\\))(?=[^\n]*\s[A-Za-z]{2})"
)
"""The last equals sign of a calculation in words: what follows it is its result, as in `3 * 2 = 6 pens in 3 days`."""
_BECAUSE = re.compile(r"(?<=[\d$)}])\s*,?\s(?:because|since)\b(?:[^.\n]|\.(?=\S)){0,300}\.?\Z")
_SAYS = re.compile(r"(?:\b(?:is|are|be|equals?|get|have|obtain|gives?|to)|[:=])\s*$")
_FORMULA_LAST = re.compile(r"\s*(\\?%|percent\b)?[\s.!*]*")
_NAMED_AFTER = re.compile(r"([^\n.,;:]*)\s(?:is|are)\s+(?:the|our|my)\s+(?:(?:final|correct|right)\s+)*")
_ASIDE = re.compile(r"\s+\((?=[^()]*[A-Za-z]{2})[^()]*\)")
_AROUND = ' *_`"\t\r'
_BOLD = re.compile(r"(?<![\w)}\]])\*\*|\*\*(?![\w(\\{-])")
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!\b(?:Mr|Dr|St|Ms|No))(?<!\bMrs)\.\s|。|;\s(?=[A-Za-z]{2})")
_LINE = re.compile(r"[^\n]*")
_BELOW = re.compile(
    r"(?:[-=*_`>#~\s]*\n)*\s*(?:[>*+-]\s+|`+)?(?:\$\$(.+?)\$\$|\\\[(.+?)\\\]|([^\n]*[^\W_][^\n]*))", re.DOTALL
)
_MATH = re.compile(
    r"\$\$([^$]+)\$\$|\$(?=\s)([^$\n]+)(?<=\s)\$|\$(?!\s)([^$\n]+)(?<!\s)\$(?!\d)"
    r"|\$\s?(?=[^$\n\\]*\\|[-\d.,/]+\s\$)([^$\n]+)(?<=\s)\$(?!\d)|\\\((.+?)\\\)|\\\[([^\[]+?)\\\]"
)
_GLUE = re.compile(r"\b(?:and|or)\b|[\s,;.*]")
_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}\\]|[{}]")
_BARE_BOX = re.compile(r"\\boxed\s*([-\d./]+|[A-Za-z])")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.&]|\\[()\[\],;: ]|\\q?quad\b|\b(?:and|or|as well as)\b|\\text\s*\{\s*,?\s*(?:and|or)?\s*\}"
    r"|\b[A-Za-z](?:_\{?\w+\}?)?\s*=|\\text\s*\{\s*for part \([a-z]\),? and\s*\}|和|或)*"
)
_APPROXIMATED = re.compile(r"[\s$]*(?:\\approx|≈)[\s$]*")
_DENIED = re.compile(r"[\s$.)]*(?:is|was|would be)\s+(?:\w+\s+)?(?:wrong|incorrect|not|false|invalid|too)\b")
_FINALLY = re.compile(r"\b(?:final|correct|actual|corrected|right)[^\S\n]+answer\b", re.IGNORECASE)
_ROUGHLY = re.compile(r"\W*(?:about|around|approx|roughly|nearly|almost|≈|\\approx)", re.IGNORECASE)
_HASH = re.compile(r"(?<!\#)\#{4}(?!\#)[^\S\n]*([^\n]*)")
_HEADING = re.compile(
    r"[*_]*(?:(?:step|part|case|method|section|solution|problem|question|approach|explanation|verification"
    r"|conclusion|summary|analysis|given|setup|answer)\b|\d+[.)]\s+[A-Za-z*]|.*:\W*$)",
    re.IGNORECASE,
)


def extract_answer(text: str, rules: Iterable[str] = RULES) -> str:
    """The answer in the final part of `text` by the first of `rules` that finds one, else "". Not normalised."""
    return next(found_answers(text, rules), "")


def found_answers(text: str, rules: Iterable[str] = RULES) -> Iterator[str]:
    """What each of `rules` finds in the final part of `text`, in their order, without those that find nothing."""
    spoken = _spoken(text)
    for rule in rules:
        if found := _RULES[rule](spoken).strip():
            yield found


def phrase_text(text: str) -> str:
    """What follows the last "the answer is" up to the end of its sentence, on its line or else below; else ""."""
    for start in reversed(list(_PHRASE_STARTS.finditer(text))):
        if (end := _phrase_end(text, start.start() - 1)) is None:
            if answer := _said_before(text, start.start() - 1):
                return answer
            continue
        line = _LINE.match(text, end)
        answer = line.group().strip(_AROUND) if line else ""
        if (
            re.fullmatch(r"\W*|[^\d\\$]{0,40}[:：]", answer)
            and line
            and (below := _BELOW.match(text, line.end()))
        ):
            answer = next(group for group in below.groups() if group)
        answer = _SENTENCE_END.split(_BOLD.sub("", answer).strip())[0].strip(_AROUND).rstrip(".")
        if re.search(r"\w|[^\x00-\x7f]|\\", answer):
            return re.sub(r"(?<=\d)[!?]+$", "", answer)
    return ""


def _said_before(text: str, end: int) -> str:
    """The number or letter in "42 is the answer", whose "answer" is at `end`."""
    line = text[max(text.rfind("\n", 0, max(end, 0)) + 1, end - 200) : max(end, 0)]
    if not (named := _NAMED_AFTER.fullmatch(line[line.rfind(". ") + 1 :].lstrip())):
        return ""
    return _number(named[1]) or next(iter(re.findall(r"\(?\b[A-J]\b\)?$", named[1])), "")


def _phrase_end(text: str, start: int) -> int | None:
    """Where what is said begins, behind a phrase at `start` or a line that holds "Final answer" alone."""
    if start < 0:
        return None
    if phrase := _PHRASE.match(text, start):
        return phrase.end()
    first, last = text.rfind("\n", 0, start) + 1, text.find("\n", start)
    last = len(text) if last < 0 else last
    return last if last - first < 100 and _ANSWER_LINE.fullmatch(text, first, last) else None


def _tag(text: str) -> str:
    inside = tagged(text)
    return _boxed(inside) or _phrase(inside) or inside


def _boxed(text: str) -> str:
    if r"\boxed" not in text and r"\fbox" not in text:
        return ""
    boxes: list[tuple[int, int, int]] = []  # start of the command, start and end of its content
    open_braces: list[tuple[int, int] | None] = []
    for token in _BOX_TOKEN.finditer(text):
        word = token.group()
        if word.endswith("{") and word != r"\{":
            open_braces.append((token.start(), token.end()) if len(word) > 1 else None)
        elif word == "}" and open_braces and (start := open_braces.pop()):
            while boxes and boxes[-1][0] > start[0]:
                boxes.pop()
            boxes.append((*start, token.start()))
    if not boxes:
        return bare[-1] if (bare := _BARE_BOX.findall(text)) else ""
    end = boxes[-1][2] + 1
    if any(start and start[0] > end for start in open_braces):
        return ""  # the box that counts is cut off
    if _DENIED.match(text, end) or _corrected(text[end:]):
        return ""
    found = _joined(text, boxes)
    return phrase_text(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", found)) or found


def _joined(text: str, boxes: list[tuple[int, int, int]]) -> str:
    """The last box, with those before it that only words such as "and" part from it."""
    contents = [text[boxes[-1][1] : boxes[-1][2]]]
    if len(boxes) > 1 and _APPROXIMATED.fullmatch(text, boxes[-2][2] + 1, boxes[-1][0]):
        return text[boxes[-2][1] : boxes[-2][2]]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        between = text[before[2] + 1 : after[0]]
        if len(between) > 60 or not _BETWEEN_BOXES.fullmatch(between):
            break
        contents.append(text[before[1] : before[2]])
    return ", ".join(dict.fromkeys(content for content in reversed(contents) if content.strip()))


def _corrected(text: str) -> bool:
    """Whether what follows the last box names a final answer of its own, exactly."""
    if not (match := _FINALLY.search(text)):
        return False
    found = phrase_text(text[match.start() :])
    return bool(re.match(r"\W*[\d$\\(]", found)) and not _ROUGHLY.match(found)


def _hash(text: str) -> str:
    for mark in reversed(list(_HASH.finditer(text) if "####" in text else [])):
        found = re.sub(
            r"^(?:[A-Za-z]{2}[A-Za-z ]*:\s+|=\s*)(?=\S)", "", _BOLD.sub("", mark[1]).strip(" *#\r")
        )
        if not found or _HEADING.match(found):
            if "answer" in mark[1].lower():
                return _phrase(text[mark.start() :])
            continue
        if re.search(r"\d|\\|^[A-Z]$", found) or not text[mark.end() :].strip():
            return _clause(found)
    return ""


def _phrase(text: str) -> str:
    found = phrase_text(text)
    if math := _MATH.search(found):
        if not _GLUE.sub("", _MATH.sub("", found)):
            return found
        if not re.match(r"\(?[A-J][).:]", found) and not _SENTENCE.match(found):
            return _inside(math)  # a choice with its formula stays whole
    return _clause(found)


def _clause(found: str) -> str:
    """The answer at the start of a clause, without its reasons and its nouns."""
    if (label := _LABEL_FIRST.match(found)) and _PROSE.search(found, label.end()):
        return label[1]
    is_sentence = _SENTENCE.match(found) or _RESULT.search(found, max(0, len(found) - 300))
    if is_sentence and (result := _number(found)):
        return result
    found = re.sub(r"^not\b.*?\bbut\s+(?:rather\s+)?", "", found, flags=re.IGNORECASE)
    found = _REASON.split(found)[0]
    if _FIRST_NUMBER.match(found):
        found = _ASIDE.sub("", found)
    number = _FIRST_NUMBER.match(found)
    if number and re.match(r"\s+(?:is|are|was)\b", found[number.end() :]):
        return number.group(1)
    if number and _NOUN.match(found, number.end()):
        if _SECOND_NUMBER.match(found, number.end()):
            return found
        unit = _WITH_UNIT.match(found, number.start(1))
        return unit.group() if unit else number.group(1)
    return _number(found) if _PROSE.search(found) else found.replace(r"\boxed{", "")


def _number(text: str) -> str:
    """The formula that ends the text, the result of a last calculation in words, the last number; a lone word."""
    text = _BECAUSE.sub("", text.rstrip())
    if found := _last_formula(text):
        return found
    last_digit = max(text.rfind(digit) for digit in _DIGITS)
    begin = max(text.rfind(space, 0, max(0, last_digit - 200)) for space in " \n") + 1
    if last_digit < 0 or not (numbers := deque(_WITH_UNIT.finditer(text, begin), maxlen=1)):
        return text if re.fullmatch(r"\W*[A-Za-z]?[a-z]*\W*", text) else ""
    last = numbers[0]
    line = max(text.rfind("\n", 0, last.start()), last.start() - 300, 0)
    equals = _RESULT.search(text, line)
    if equals and not _SENTENCE_END.search(text, equals.end(), last.start()):
        last = _WITH_UNIT.match(text, equals.end()) or last
    for formula in _MATH.finditer(text, text.rfind("\n\n", 0, last.start()) + 1):
        if formula.start() <= last.start() < formula.end():
            return _inside(formula)
    token = re.compile(r"\S*").match(text, max(text.rfind(space, 0, last.start()) for space in " \n") + 1)
    if token and re.search(r"\\(?!boxed|fbox)[a-zA-Z]", token.group()):  # LaTeX outside of a formula
        return token.group()
    return last.group() + _VARIABLE.match(text, last.end()).group()  # type: ignore[union-attr]


def _last_formula(text: str) -> str:
    """The formula that ends the text, if a sentence comes to it and it is not only what a number is about."""
    for formula in deque(_MATH.finditer(text, max(text.rfind("\n\n"), len(text) - 2000, 0)), maxlen=1):
        line = text[max(0, formula.start() - 300) : formula.start()].rpartition("\n")[2]
        sentence = _SENTENCE_END.split(line)[-1]
        about = re.search(r"\d", sentence) and not re.search(r"\d", formula.group())
        if (end := _FORMULA_LAST.fullmatch(text, formula.end())) and (_SAYS.search(sentence) or not about):
            return _inside(formula) + ("%" if end[1] else "")
    return ""


def _inside(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group)


_CHOICE = re.compile(
    r"\b(?:option|choice|choose|select|pick|answer|be|is|[Ii]t's)\b[\s:*$]*(\(?[A-J]\)?|\([a-j]\))(?![\w'’(])(?!\s*[=+*/^-])"
    r"|(?::|\b(?:[Ss]o|[Tt]herefore|[Tt]hus|[Hh]ence),?)[\s*$]*(\(?[A-J]\)?)(?=[^\w(]{0,9}\Z)"
    r"|(?<!\w)(\(?[A-J]\)?)[\s*$]*\bis\b[^.,;\n]{0,20}?\b(?:correct|right|answer)\b"
)
_CHOICE_LAST = re.compile(r"\([A-J]\)(?=[^\w(]{0,9}\Z)")
_CHOICE_LINE = re.compile(r"^[^\w\n]*((?:[A-J]|\A[a-j](?=[.)]\s))(?:[*]*[).:]|[^\w\n]*$).*)$", re.MULTILINE)


def _choice(text: str) -> str:
    """The last letter that is called an option or correct, else the last line that is a choice."""
    named = [next(group for group in match.groups() if group) for match in _CHOICE.finditer(text)]
    return (
        named
        or [_BOLD.sub("", line).strip(" *$") for line in _CHOICE_LINE.findall(text)]
        or _CHOICE_LAST.findall(text)
        or [""]
    )[-1]


_RULES: dict[str, Callable[[str], str]] = {
    "tag": _tag,
    "boxed": _boxed,
    "hash": _hash,
    "phrase": _phrase,
    "number": _number,
    "choice": _choice,
    "whole": str.strip,
}
