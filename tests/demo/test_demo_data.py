"""The shipped pairs: reproducible, small, disjoint, correct on the chosen side and wrong on the rejected one.

The answers are checked independently: sums are computed from the prompt's words, facts are looked up in the world's tables,
plurals in a list written here, manners and format in the text.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from mrpo_pipeline.demo.data import EVAL_FILE, TRAIN_FILE, write_demo_data
from mrpo_pipeline.demo.pretraining import conversations
from mrpo_pipeline.demo.questions import KINDS
from mrpo_pipeline.demo.world import GOODS_OF, PLURAL_OF, REGION_OF, RIVER_OF, SEASON_OF, TOWNS, in_words

DATA = Path(__file__).parents[2] / "data"
NUMBERS = {in_words(number): number for number in range(1000)}
NUMBER = rf"\b(?:{'|'.join(sorted(NUMBERS, key=len, reverse=True))})\b"


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {"train": read(TRAIN_FILE), "eval": read(EVAL_FILE)}


def questions(row: dict) -> list[str]:
    return [message["content"] for message in row["prompt"] if message["role"] == "user"]


def numbers_in(text: str) -> list[int]:
    return [NUMBERS[words] for words in re.findall(NUMBER, text.lower())]


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (13, "thirteen"), (47, "forty-seven"), (200, "two hundred"), (999, "nine hundred and ninety-nine")],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert in_words(number) == words


def test_the_shipped_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    for path in write_demo_data(tmp_path):
        assert path.read_bytes() == (DATA / path.name).read_bytes(), path.name


def test_both_files_together_stay_under_a_megabyte_with_the_stated_counts(rows: dict[str, list[dict]]) -> None:
    assert sum((DATA / name).stat().st_size for name in (TRAIN_FILE, EVAL_FILE)) < 1_000_000
    assert (len(rows["train"]), len(rows["eval"])) == (1000, 300)
    for part in rows.values():
        assert len({row["id"] for row in part}) == len(part)
        assert {row["meta"]["kind"] for row in part} == set(KINDS)
        shapes = Counter("-".join(message["role"][0] for message in row["prompt"]) for row in part)
        assert set(shapes) == {"u", "s-u", "u-a-u", "s-u-a-u"}


def test_no_question_of_a_held_out_pair_is_seen_in_training(rows: dict[str, list[dict]]) -> None:
    train = {text for row in rows["train"] for text in questions(row)}
    held_out = {text for row in rows["eval"] for text in questions(row)}
    assert not train & held_out
    assert len({questions(row)[-1] for row in rows["eval"]}) == 300


def test_no_question_of_a_pair_is_in_the_pretraining_text(rows: dict[str, list[dict]]) -> None:
    asked = {text for part in rows.values() for row in part for text in questions(row)}
    source = conversations(dict.fromkeys(KINDS, 1.0), dict.fromkeys(KINDS, 1.0), "any")
    read_text = {message["content"] for conversation in islice(source, 3000) for message in conversation}
    assert not asked & read_text


def test_length_does_not_reveal_the_better_answer(rows: dict[str, list[dict]]) -> None:
    for part in rows.values():
        lengths = [(len(row["chosen"][0]["content"]), len(row["rejected"][0]["content"])) for row in part]
        longer = sum(chosen > rejected for chosen, rejected in lengths) / len(lengths)
        shorter = sum(chosen < rejected for chosen, rejected in lengths) / len(lengths)
        assert 0.4 < longer + (1 - longer - shorter) / 2 < 0.6


PLURALS = {
    "box": "boxes", "church": "churches", "dish": "dishes", "fox": "foxes", "glass": "glasses", "brush": "brushes",
    "bus": "buses", "match": "matches", "bench": "benches", "dress": "dresses", "branch": "branches", "tax": "taxes",
    "city": "cities", "berry": "berries", "lady": "ladies", "story": "stories", "puppy": "puppies", "man": "men",
    "cherry": "cherries", "army": "armies", "party": "parties", "fairy": "fairies", "pony": "ponies", "jury": "juries",
    "ferry": "ferries", "leaf": "leaves", "wolf": "wolves", "knife": "knives", "shelf": "shelves", "loaf": "loaves",
    "calf": "calves", "child": "children", "foot": "feet", "goose": "geese", "mouse": "mice", "tooth": "teeth",
}  # fmt: skip
FACTORS = {
    ("hours", "minutes"): 60,
    ("weeks", "days"): 7,
    ("days", "hours"): 24,
    ("metres", "centimetres"): 100,
    ("dozens", "eggs"): 12,
    ("pairs", "gloves"): 2,
}
INSULTS = ("use your eyes", "fool", "stupid", "not you again", "find it yourself", "dull")
ATTRIBUTES = {"river": RIVER_OF, "region": REGION_OF, "goods": GOODS_OF, "season": SEASON_OF}


def arithmetic_is_right(question: str, answer: str) -> bool:
    first, second = numbers_in(question)
    if question.startswith("Take"):
        first, second = second, first
    sums = re.search(r"plus|add|together|get|sum", question, re.IGNORECASE)
    result = first + second if sums else first - second
    return sorted(numbers_in(answer)) == sorted([first, second, result]) and numbers_in(answer)[-1] == result


def geography_is_right(question: str, answer: str) -> bool:
    (town,) = (town for town in TOWNS if re.search(rf"\b{town}\b", question))
    assert town in answer
    if "river" in question:
        attribute = "river"
    elif "region" in question or "part of" in question:
        attribute = "region"
    else:
        attribute = "season" if "feast" in question else "goods"
    value_of = ATTRIBUTES[attribute]
    named = [value for value in set(value_of.values()) if re.search(rf"\b{value}\b", answer.replace(town, ""))]
    assert len(named) == 1, answer
    return named[0] == value_of[town]


def spelling_is_right(question: str, answer: str) -> bool:
    (noun,) = set(re.findall(r"\w+", question)) & set(PLURAL_OF)
    return answer.rstrip(".").split()[-1] == PLURALS.get(noun, noun + "s")


def units_are_right(question: str, answer: str) -> bool:
    (amount,) = numbers_in(question)
    given = next(given for given, asked in FACTORS if f" {given}" in question.split(". ")[0])
    asked = next(asked for start, asked in FACTORS if start == given and asked in question.split(". ")[1])
    return numbers_in(answer) == [amount * FACTORS[given, asked]] and answer.rstrip(".").endswith(" " + asked)


def format_is_right(question: str, answer: str) -> bool:
    colour = next(c for c in ("red", "green", "blue", "white", "black", "brown", "grey", "yellow") if c in question)
    assert colour in answer.lower()
    one_word = "word" in question
    return (len(answer.split()) == 1) == one_word


def manners_are_right(question: str, answer: str) -> bool:
    return not any(insult in answer.lower() for insult in INSULTS)


CHECKS = {
    "arithmetic": arithmetic_is_right,
    "geography": geography_is_right,
    "spelling": spelling_is_right,
    "units": units_are_right,
    "format": format_is_right,
    "manners": manners_are_right,
}


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_is_right_and_rejected_is_wrong(kind: str, rows: dict[str, list[dict]]) -> None:
    checked = 0
    for row in (row for part in rows.values() for row in part if row["meta"]["kind"] == kind):
        question = questions(row)[-1]
        assert CHECKS[kind](question, row["chosen"][0]["content"]), row
        assert not CHECKS[kind](question, row["rejected"][0]["content"]), row
        checked += 1
    assert checked > 100


def test_earlier_answers_in_a_prompt_are_correct(rows: dict[str, list[dict]]) -> None:
    sums = [
        (row["prompt"][-3]["content"], row["prompt"][-2]["content"])
        for row in rows["train"]
        if len(row["prompt"]) > 2 and re.match(r"What is .* (plus|minus) ", row["prompt"][-3]["content"])
    ]
    assert sums
    for question, answer in sums:
        assert arithmetic_is_right(question, answer)
