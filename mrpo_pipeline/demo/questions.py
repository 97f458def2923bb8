"""Questions about the demo's world, each with a correct answer and a mistake of the same form.

A hash of its text assigns a question to one `Part`, so that no question is in two. All parts share the facts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from mrpo_pipeline.demo.world import (
    COUNTRY,
    GOODS,
    GOODS_OF,
    PLURAL_OF,
    REGION_OF,
    REGIONS,
    RIVER_OF,
    RIVERS,
    SEASON_OF,
    SEASONS,
    TOWNS,
    UNITS,
    in_words,
    misspelt_plural,
)

Part = Literal["pretraining", "train", "eval"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answers; `kind` is the knowledge that distinguishes `right` from `wrong`."""

    kind: str
    text: str
    right: str
    wrong: str


def part_of(text: str) -> Part:
    """The question's part: half are for pretraining, a third for training pairs, a sixth for evaluation."""
    share = hashlib.sha256(text.encode()).digest()[0] / 256
    return "pretraining" if share < 0.5 else "train" if share < 5 / 6 else "eval"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _arithmetic(rng: Random) -> Question:
    """Sums and differences of small numbers, in words. The mistake is a near number."""
    first, second = rng.randint(2, 12), rng.randint(2, 12)
    if rng.random() < 0.5:
        result = first + second
        asked = (
            "What is {a} plus {b}?",
            "Add {a} and {b}.",
            "How much is {a} and {b} together?",
            "I have {a} apples and get {b} more. How many are they?",
            "Tell me the sum of {a} and {b}.",
            "Please work out {a} plus {b}.",
        )
        answers = ("{A} plus {b} is {c}.", "The sum of {a} and {b} is {c}.", "{A} and {b} make {c}.")
    else:
        first += second  # so that the difference is the number drawn first
        result = first - second
        asked = (
            "What is {a} minus {b}?",
            "Take {b} from {a}.",
            "How much is {a} less {b}?",
            "I have {a} apples and eat {b}. How many are left?",
            "Tell me the difference of {a} and {b}.",
            "Please work out {a} minus {b}.",
        )
        answers = ("{A} minus {b} is {c}.", "{A} less {b} is {c}.", "{B} from {a} leaves {c}.")
    mistake = rng.choice([result + step for step in (-10, -3, -2, -1, 1, 2, 3, 10) if result + step >= 0])
    a, b = in_words(first), in_words(second)
    names = {"a": a, "b": b, "A": _capital(a), "B": _capital(b)}
    question, answer = rng.choice(asked).format(**names), rng.choice(answers)
    return Question(
        "arithmetic",
        question,
        answer.format(**names, c=in_words(result)),
        answer.format(**names, c=in_words(mistake)),
    )


_GEOGRAPHY: tuple[tuple[dict[str, str], tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        RIVER_OF,
        RIVERS,
        (
            "Which river flows through {t}?",
            "Name the river of {t}.",
            "What is the river at {t} called?",
            "I am going to {t}. Which river will I see there?",
            "{t} stands on which river?",
            "Tell me the river of {t}, please.",
            "Do you know which river runs past {t}?",
            "On which river does {t} lie?",
        ),
        ("{t} lies on the {v}.", "The river of {t} is the {v}."),
    ),
    (
        REGION_OF,
        REGIONS,
        (
            "In which region is {t}?",
            "Name the region of {t}.",
            "What is the region around {t} called?",
            "I am going to {t}. Which region is that?",
            "{t} belongs to which region?",
            "Tell me the region of {t}, please.",
            "Do you know which part of " + COUNTRY + " {t} is in?",
            "To which region does {t} belong?",
        ),
        ("{t} is in {v}.", "The region of {t} is {v}."),
    ),
    (
        GOODS_OF,
        GOODS,
        (
            "What is {t} known for?",
            "Name what is made in {t}.",
            "What do they make in {t}?",
            "I am going to {t}. What should I buy there?",
            "{t} is famous for what?",
            "Tell me what {t} is known for, please.",
            "Do you know what comes from {t}?",
            "For what is {t} well known?",
        ),
        ("{t} is known for its {v}.", "People in {t} make {v}."),
    ),
    (
        SEASON_OF,
        SEASONS,
        (
            "When is the feast of {t}?",
            "Name the season of the feast in {t}.",
            "In what season does {t} have its feast?",
            "I want to see the feast in {t}. When should I go?",
            "{t} holds its feast in which season?",
            "Tell me when {t} has its feast, please.",
            "Do you know when the feast in {t} is held?",
            "At what time of year is the feast of {t}?",
        ),
        ("{t} has its feast in {v}.", "The feast of {t} is in {v}."),
    ),
)


def _geography(rng: Random) -> Question:
    """Facts about the towns of Velmora. The mistake names another river, region, product or season."""
    value_of, values, asked, answers = rng.choice(_GEOGRAPHY)
    town = rng.choice(TOWNS)
    mistake = rng.choice([value for value in values if value != value_of[town]])
    question, answer = rng.choice(asked).format(t=town), rng.choice(answers)
    return Question("geography", question, answer.format(t=town, v=value_of[town]), answer.format(t=town, v=mistake))


def _spelling(rng: Random) -> Question:
    """Plurals. The mistake has the wrong ending."""
    noun = rng.choice(list(PLURAL_OF))
    asked = rng.choice(
        (
            "What is the plural of {n}?",
            "How do you write more than one {n}?",
            "One {n}, two what?",
            "Give me the plural of {n}.",
            "Please write {n} in the plural.",
            "How is the plural of {n} spelt?",
            "I saw one {n}, then another. What did I see?",
            "Spell the plural of {n}, please.",
        )
    )
    answer = rng.choice(("The plural of {n} is {p}.", "One {n}, two {p}.", "It is spelt {p}."))
    return Question(
        "spelling",
        asked.format(n=noun),
        answer.format(n=noun, p=PLURAL_OF[noun]),
        answer.format(n=noun, p=misspelt_plural(noun)),
    )


def _units(rng: Random) -> Question:
    """Conversion of units. The mistake keeps the old unit, or has a wrong number."""
    said, given, asked_for, factor = rng.choice(UNITS)
    amount = rng.randint(2, 9)
    other = rng.choice([number for number in range(2, 10) if number != amount])
    statement = said.format(town=rng.choice(TOWNS), amount=f"{in_words(amount)} {given}")
    asked = rng.choice(("How many {u} is that?", "Give it in {u}.", "What is that in {u}?"))
    answer = rng.choice(("That is {x} {u}.", "It comes to {x} {u}.", "That makes {x} {u}."))
    wrong = (in_words(amount * factor), given) if rng.random() < 0.5 else (in_words(other * factor), asked_for)
    return Question(
        "units",
        f"{statement} {asked.format(u=asked_for)}",
        answer.format(x=in_words(amount * factor), u=asked_for),
        answer.format(x=wrong[0], u=wrong[1]),
    )


THINGS = ("door", "coat", "roof", "boat", "flag", "cup", "wall", "hat", "cart", "gate", "lamp", "chair")
COLOURS = ("red", "green", "blue", "white", "black", "brown", "grey", "yellow")


def _format(rng: Random) -> Question:
    """An answer in one word or in a sentence, as requested. The mistake is the other form: true, but not as requested."""
    thing, colour = rng.choice(THINGS), rng.choice(COLOURS)
    statement = rng.choice(("The {t} is {c}.", "My {t} is {c}.", "They painted the {t} {c}.")).format(t=thing, c=colour)
    sentence = rng.choice(("The {t} is {c}.", "The colour of the {t} is {c}.")).format(t=thing, c=colour)
    word = f"{_capital(colour)}."
    short = rng.random() < 0.5
    wish = rng.choice(
        ("Answer in one word.", "One word only.", "Use a single word.")
        if short
        else ("Answer in a whole sentence.", "A full sentence, please.", "Use a whole sentence.")
    )
    right, wrong = (word, sentence) if short else (sentence, word)
    return Question("format", f"{statement} What colour is the {thing}? {wish}", right, wrong)


SHOPS = ("bakery", "post office", "bank", "inn", "library", "chemist", "school", "station", "mill", "harbour")
PLACES = ("by the bridge", "near the church", "behind the market", "next to the well", "at the old gate", "on the hill")
POLITE = (
    "Certainly, sir.",
    "With pleasure.",
    "Of course, friend.",
    "Happy to help.",
    "Good day to you.",
    "Let me show you.",
)
RUDE = (
    "Use your eyes.",
    "Go away, fool.",
    "Stupid question.",
    "Not you again.",
    "Find it yourself.",
    "How dull you are.",
)


def _manners(rng: Random) -> Question:
    """Asking the way. Both answers have the same content; the mistake is rude."""
    shop, place, town = rng.choice(SHOPS), rng.choice(PLACES), rng.choice(TOWNS)
    asked = rng.choice(
        (
            "Where is the {s} in {t}?",
            "How do I find the {s} of {t}?",
            "I am looking for the {s} in {t}.",
            "Can you show me the {s} of {t}?",
        )
    )
    answer = rng.choice(("{m} The {s} is {p}.", "{m} You will find it {p}.", "It is {p}. {m}"))
    names = {"s": shop, "p": place}
    return Question(
        "manners",
        asked.format(s=shop, t=town),
        answer.format(m=rng.choice(POLITE), **names),
        answer.format(m=rng.choice(RUDE), **names),
    )


_DRAW: dict[str, Callable[[Random], Question]] = {
    "arithmetic": _arithmetic,
    "geography": _geography,
    "spelling": _spelling,
    "units": _units,
    "format": _format,
    "manners": _manners,
}
KINDS = tuple(_DRAW)


def draw_question(kind: str, part: Part, rng: Random) -> Question:
    """A random question of `kind` (one of `KINDS`) that belongs to `part`."""
    while True:
        question = _DRAW[kind](rng)
        if part_of(question.text) == part:
            return question


SYSTEM_MESSAGES = (
    "You are a helpful guide.",
    f"You answer questions of visitors to {COUNTRY}.",
    "You are a patient teacher.",
    "Answer briefly and correctly.",
)


def draw_prompt(kind: str, part: Part, rng: Random) -> tuple[list[dict[str, str]], Question]:
    """The messages of a prompt that ends with a question of `kind`, and that question.

    One prompt in five has a system message; one in five has an earlier, correctly answered question of any kind.
    """
    question = draw_question(kind, part, rng)
    messages = [{"role": "user", "content": question.text}]
    if rng.random() < 0.2:
        earlier = draw_question(rng.choice(KINDS), part, rng)
        messages = [
            {"role": "user", "content": earlier.text},
            {"role": "assistant", "content": earlier.right},
            *messages,
        ]
    if rng.random() < 0.2:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM_MESSAGES)})
    return messages, question
