"""Labels that say which of two answers is better.

Each rule follows the documentation of its data set. Any other value is an error, because a wrong guess inverts every
preference.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mrpo_pipeline.pairs.row_errors import BadRowError, NoPreferenceError, describe

Get = Callable[[str], Any]


@dataclass(frozen=True)
class NamedLabel:
    """A label whose value names the better answer."""

    column: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    tie: tuple[str, ...] = ()

    def first_wins(self, get: Get) -> bool:
        value = _plain(get(self.column), self.column)
        if value in self.first:
            return True
        if value in self.second:
            return False
        if value in self.tie:
            raise NoPreferenceError("tie", f"`{self.column}` is {value}")
        raise _unknown(self.column, get(self.column), ", ".join((*self.first, *self.second, *self.tie)))

    def describe(self, first: str, second: str) -> str:
        return f"`{self.column}` ({'/'.join(self.first)}: `{first}`, {'/'.join(self.second)}: `{second}`)"


@dataclass(frozen=True)
class SignedLabel:
    """A number in [-bound, bound]: below 0 the first answer is better, above 0 the second, 0 is a tie."""

    column: str
    bound: float = 3

    def first_wins(self, get: Get) -> bool:
        value = _number(get(self.column), self.column)
        if abs(value) > self.bound:
            raise _unknown(self.column, get(self.column), f"a number from {-self.bound:g} to {self.bound:g}")
        if value == 0:
            raise NoPreferenceError("tie", f"`{self.column}` is 0")
        return value < 0

    def describe(self, first: str, second: str) -> str:
        return f"`{self.column}` (below 0: `{first}`, above 0: `{second}`)"


@dataclass(frozen=True)
class HigherScore:
    """A score for each answer; higher is better."""

    first: str
    second: str

    def first_wins(self, get: Get) -> bool:
        one, other = (_number(get(name), name) for name in (self.first, self.second))
        if one == other:
            raise NoPreferenceError("tie", f"`{self.first}` and `{self.second}` are both {one:g}")
        return one > other

    def describe(self, first: str, second: str) -> str:
        return f"`{self.first}` and `{self.second}` (higher is better)"


@dataclass(frozen=True)
class OneHotLabel:
    """One column per outcome, exactly one of which is 1."""

    first: str
    second: str
    tie: str

    def first_wins(self, get: Get) -> bool:
        marks = [_number(get(name), name) for name in (self.first, self.second, self.tie)]
        if sorted(marks) != [0, 0, 1]:
            names = f"{self.first}, {self.second}, {self.tie}"
            raise BadRowError("unknown label", f"{names} are {marks}; expected one 1 and two 0")
        if marks[2] == 1:
            raise NoPreferenceError("tie", f"`{self.tie}` is 1")
        return marks[0] == 1

    def describe(self, first: str, second: str) -> str:
        return f"`{self.first}` (1: `{first}`) and `{self.second}` (1: `{second}`)"


Label = NamedLabel | SignedLabel | HigherScore | OneHotLabel


def _unlabelled(value: Any, column: str) -> None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise NoPreferenceError("no label", f"`{column}` is {'null' if value is None else 'empty'}")


def _plain(value: Any, column: str) -> str:
    """Label value as text: 1, 1.0, true and "1" are equal."""
    _unlabelled(value, column)
    if isinstance(value, bool):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        text = value.strip()
        return text[:-2] if text.endswith(".0") and text[:-2].lstrip("-").isdigit() else text
    return str(value)


def _number(value: Any, column: str) -> float:
    _unlabelled(value, column)
    try:
        if isinstance(value, list | dict):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise _unknown(column, value, "a number") from None
    if not math.isfinite(number):
        raise _unknown(column, value, "a finite number")
    return number


def _unknown(column: str, value: Any, expected: str) -> BadRowError:
    return BadRowError("unknown label", f"`{column}` is {describe(value)}; expected {expected}")
