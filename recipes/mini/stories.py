"""The mini scale's task: word problems about a number that changes, and how they are answered.

A problem has a story (who owns what), a first number and one to three changes. It can be answered in five ways:

    told    " Start with 12. Adding 5 makes 17. Taking 3 leaves 14. The answer is 14."    the demonstrations
    written " 12 + 5 = 17, 17 - 3 = 14. The answer is 14."                               the base model's habit
    short   " The answer is 14."                                                         its other habit
    mixed   " Start with 12. 12 + 5 makes 17. 17 - 3 makes 14. The answer is 14."        unknown to it
    postfix " 12 5 + = 17, 17 3 - = 14. The answer is 14."                               unknown to it

A wrong answer has one step with a wrong change or a wrong sum, and goes on from it. Everything is a function of a
seed. How rows and problems become files is in `task.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

NAMES = ("Tom", "Mia", "Sam", "Ann", "Ben", "Eva", "Leo", "Zoe")
ITEMS = ("apples", "books", "coins", "cards", "shells", "stamps")
LARGEST = 99
EVERY_WAY = ("told", "written", "short", "mixed", "postfix")
SIGNS = {"+": 4, "-": 4, "*": 1}
"""How frequent each change is. The base model has never seen "++", which adds a number twice."""

KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "hands": {
        "start": ("{name} has {n} {items}.",),
        "+": ("{name} buys {n} more.", "{name} finds {n}."),
        "++": ("{name} buys {n} more 2 times.", "{name} finds {n} 2 times."),
        "-": ("{name} gives away {n}.", "{name} loses {n}."),
        "*": ("Then {name} has {n} times as many.",),
        "ask": ("How many {items} does {name} have?",),
    },
    "bus": {
        "start": ("There are {n} people on a bus.",),
        "+": ("{n} people get on.", "{n} more come in."),
        "-": ("{n} people get off.", "{n} of them walk."),
        "*": ("Then the bus holds {n} times as many.",),
        "ask": ("How many people are on the bus?",),
    },
    "shelf": {
        "start": ("A shelf holds {n} {items}.",),
        "+": ("A clerk puts in {n}.", "{name} brings {n}."),
        "-": ("A clerk sells {n}.", "{name} takes {n}."),
        "*": ("Then the shelf holds {n} times as many.",),
        "ask": ("How many {items} are on the shelf?",),
    },
}
"""Stories: how each of them begins, changes and asks. The demonstrations are all of the first kind."""

TOLD = {
    "+": " Adding {n} makes {to}.",
    "++": " Adding {n} 2 times makes {to}.",
    "-": " Taking {n} leaves {to}.",
    "*": " Times {n} makes {to}.",
}
SUMS = {
    "written": " {a} {sign} {n} = {to},",
    "mixed": " {a} {sign} {n} makes {to}.",
    "postfix": " {a} {n} {sign} = {to},",
}


@dataclass(frozen=True)
class Story:
    """One problem: its text, and the steps (sign, number, what comes of it) that solve it."""

    text: str
    start: int
    steps: tuple[tuple[str, int, int], ...]

    @property
    def answer(self) -> int:
        return self.steps[-1][2]


def apply(sign: str, value: int, n: int) -> int:
    """What one change makes of a number."""
    return {"+": value + n, "++": value + 2 * n, "-": value - n, "*": value * n}[sign]


def make_story(
    rng: random.Random, kinds: tuple[str, ...], steps: int, signs: Mapping[str, int] = SIGNS
) -> Story:
    """A story of one of `kinds` whose number stays between 1 and `LARGEST`."""
    kind = KINDS[rng.choice(kinds)]
    words = {"name": rng.choice(NAMES), "items": rng.choice(ITEMS)}
    value = start = rng.randint(3, 25)
    said, done = [rng.choice(kind["start"]).format(n=start, **words)], []
    for _ in range(steps):
        sign, n = _change(rng, value, signs)
        value = apply(sign, value, n)
        said.append(rng.choice(kind[sign]).format(n=n, **words))
        done.append((sign, n, value))
    said.append(rng.choice(kind["ask"]).format(**words))
    return Story(" ".join(said), start, tuple(done))


def _change(rng: random.Random, value: int, signs: Mapping[str, int]) -> tuple[str, int]:
    while True:
        sign = rng.choices(list(signs), list(signs.values()))[0]
        n = rng.randint(2, 3) if sign == "*" else rng.randint(2, 12)
        if 1 <= apply(sign, value, n) <= LARGEST:
            return sign, n


def spoil(rng: random.Random, story: Story) -> Story:
    """The same text, solved wrongly: one step has another change or a sum that is a little off."""
    at = rng.randrange(len(story.steps))
    while True:
        value, steps = story.start, []
        for place, (sign, n, _) in enumerate(story.steps):
            if place == at and rng.random() < 0.5:
                sign = rng.choice([other for other in "+-" if other != sign])
                value = apply(sign, value, n)
            elif place == at:
                value = apply(sign, value, n) + rng.choice((-3, -2, -1, 1, 2, 3))
            else:
                value = apply(sign, value, n)
            steps.append((sign, n, value))
        if all(0 <= to <= LARGEST for _, _, to in steps) and value != story.answer:
            return Story(story.text, story.start, tuple(steps))


def answered(story: Story, way: str) -> str:
    """An answer in one of `EVERY_WAY`; it begins with the space that stands behind the question."""
    end = f" The answer is {story.answer}."
    if way == "short":
        return end
    values = [story.start, *(to for _, _, to in story.steps)]
    text = f" Start with {story.start}." if way in ("told", "mixed") else ""
    for a, (sign, n, to) in zip(values, story.steps, strict=False):
        text += (TOLD[sign] if way == "told" else SUMS[way]).format(a=a, sign=sign, n=n, to=to)
    return text.rstrip(",.") + "." + end


def stories(
    seed: str,
    kinds: tuple[str, ...],
    steps: tuple[int, ...],
    without: set[str],
    signs: Mapping[str, int] = SIGNS,
) -> Iterator[Story]:
    """Stories without end, none twice, and none whose text is in `without`; that grows by those given."""
    rng = random.Random(seed)
    while True:
        story = make_story(rng, kinds, rng.choice(steps), signs)
        if story.text not in without:
            without.add(story.text)
            yield story


def vocabulary() -> list[str]:
    """Every word and mark that a story or an answer can have, as the tokenizer cuts them, in a fixed order."""
    texts = [text for kind in KINDS.values() for group in kind.values() for text in group]
    words = {word for text in texts for word in text.replace(".", "").replace("?", "").split()}
    words |= {word for text in TOLD.values() for word in text.replace(".", "").split()}
    words |= {*NAMES, *ITEMS, *["Start", "with", "The", "answer", "is", "+", "-", "*", "="]}
    words = {word for word in words if "{" not in word and not word.isdecimal()}
    numbers = [str(number) for number in range(LARGEST + 1)]
    return [*".,?", *(f"{space}{word}" for word in [*sorted(words), *numbers] for space in ("", " "))]
