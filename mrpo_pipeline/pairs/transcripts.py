"""Conversations written as one string, with a marker before every turn.

Only plain-text markers are known. A transcript in a chat template's control tokens (`<|im_start|>assistant`) is not
split: those tokens would be read as text (control tokens written in the data are text), so such data must come as
messages.
"""

import os
import re
from typing import NamedTuple

from mrpo_pipeline.pairs.bad_row import BadRowError


class _Family(NamedTuple):
    """One way of writing transcripts."""

    assistant: re.Pattern[str]  # ends where the assistant's turn begins
    turn: re.Pattern[str]  # begins a further turn of either side


def _family(assistant: str, user: str) -> _Family:
    return _Family(re.compile(assistant), re.compile(f"{assistant}|{user}"))


# A blank line and a newline are one family: transcripts mix them.
_FAMILIES = (
    _family(r"(?:^|\n)Assistant:", r"(?:^|\n)(?:Human|User|System):"),
    _family(r"(?:^|[ \n])ASSISTANT:", r"(?:^|[ \n])(?:USER|HUMAN|SYSTEM):"),
    _family(r"(?:^|\n)### ?Assistant:", r"(?:^|\n)### ?(?:Human|User|System):"),
    _family(r"(?:^|\n)### ?Response:", r"(?:^|\n)### ?(?:Instruction|Input):"),
)
MARKERS = ("\\n\\nAssistant:", "\\nAssistant:", " ASSISTANT:", "### Assistant:", "### Response:")
"""The assistant markers as a person would write them, for messages."""

_CONTROL = re.compile(r"<\|[a-z_]+\|>|\[/INST\]|<start_of_turn>")


def ends_in_marker(prompt: str) -> bool:
    """Whether a raw prompt ends where the assistant speaks: an assistant marker, then white space at most."""
    bare = prompt.rstrip()
    return any(match.end() == len(bare) for family in _FAMILIES for match in family.assistant.finditer(bare))


def holds_marker(text: str) -> bool:
    """Whether an assistant marker stands anywhere in the text."""
    return any(family.assistant.search(text) for family in _FAMILIES)


def common_prompt(chosen: str, rejected: str) -> str:
    """The prompt that two transcripts share: their common prefix up to and including its last assistant marker.

    What follows the marker, a space included, belongs to the completion (Anthropic's HH convention, as TRL reads it).
    A bare common prefix is never taken: it would eat the words that both completions open with.
    Raises BadRowError: no marker in the common prefix, or several turns behind it.
    """
    shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 (character by character is what is meant)
    spoken = [family for family in _FAMILIES if family.assistant.search(shared)]
    # Where several kinds of marker stand, the one that opens the conversation is how it is written; others are content.
    family = min(spoken, key=lambda one: _first(one.turn, shared), default=None)
    if family is None:
        if _CONTROL.search(shared):
            hint = "they look rendered by a chat template: give messages instead"
        else:
            hint = f"expected one of {', '.join(MARKERS)}, or a `prompt` column"
        raise BadRowError(
            "no prompt",
            f"no `prompt`, and `chosen` and `rejected` share no text that ends in an assistant marker; {hint}",
        )
    end = max(match.end() for match in family.assistant.finditer(shared))
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        further = family.turn.search(side, end)
        if further is not None:
            raise BadRowError(
                "several turns",
                f"`{name}` holds a further turn ({further.group().strip()!r} at character {further.start()}) after the "
                "shared prompt; a completion is exactly one assistant message",
            )
    return shared[:end]


def _first(marker: re.Pattern[str], text: str) -> int:
    match = marker.search(text)
    return len(text) if match is None else match.start()
