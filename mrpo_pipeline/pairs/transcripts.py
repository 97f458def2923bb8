"""Conversations written as one string, with a marker before every turn.

Only plain-text markers are supported. Transcripts in control tokens of a chat template (`<|im_start|>assistant`) are not
split, because control tokens in data are text; such data must be given as messages.
"""

import os
import re
from typing import NamedTuple

from mrpo_pipeline.pairs.row_errors import BadRowError


class _Family(NamedTuple):
    """Markers of one transcript style."""

    assistant: re.Pattern[str]  # ends where the assistant's turn begins
    turn: re.Pattern[str]  # begins a further turn of either side


def _family(assistant: str, user: str) -> _Family:
    return _Family(re.compile(assistant), re.compile(f"{assistant}|{user}"))


# Transcripts mix blank lines and newlines before a marker.
_FAMILIES = (
    _family(r"(?:^|\n)Assistant:", r"(?:^|\n)(?:Human|User|System):"),
    _family(r"(?:^|[ \n])ASSISTANT:", r"(?:^|[ \n])(?:USER|HUMAN|SYSTEM):"),
    _family(r"(?:^|\n)### ?Assistant:", r"(?:^|\n)### ?(?:Human|User|System):"),
    _family(r"(?:^|\n)### ?Response:", r"(?:^|\n)### ?(?:Instruction|Input):"),
)
MARKERS = ("\\n\\nAssistant:", "\\nAssistant:", " ASSISTANT:", "### Assistant:", "### Response:")
"""Assistant markers, for messages."""

_CONTROL = re.compile(r"<\|[a-z_]+\|>|\[/INST\]|<start_of_turn>")


def ends_in_marker(prompt: str) -> bool:
    """Whether a raw prompt ends with an assistant marker, white space ignored."""
    bare = prompt.rstrip()
    return any(match.end() == len(bare) for family in _FAMILIES for match in family.assistant.finditer(bare))


def contains_marker(text: str) -> bool:
    """Whether the text contains an assistant marker."""
    return any(family.assistant.search(text) for family in _FAMILIES)


def common_prompt(chosen: str, rejected: str) -> str:
    """Common prefix of two transcripts, up to and including its last assistant marker.

    Text after the marker, a space included, belongs to the completion (Anthropic HH, as in TRL). The common prefix
    without a marker is not a prompt: it would include words that both completions begin with.
    Raises BadRowError: no marker in the common prefix, or several turns after it.
    """
    shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 (compares characters, as intended)
    spoken = [family for family in _FAMILIES if family.assistant.search(shared)]
    # With several marker styles, the first one is the transcript's style; the others are content.
    family = min(spoken, key=lambda one: _first(one.turn, shared), default=None)
    if family is None:
        if _CONTROL.search(shared):
            hint = "they seem to be rendered by a chat template: use messages instead"
        else:
            hint = f"expected one of {', '.join(MARKERS)}, or a `prompt` column"
        raise BadRowError(
            "no prompt",
            f"no `prompt`, and the common beginning of `chosen` and `rejected` has no assistant marker; {hint}",
        )
    end = max(match.end() for match in family.assistant.finditer(shared))
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        further = family.turn.search(side, end)
        if further is not None:
            raise BadRowError(
                "several turns",
                f"`{name}` holds another turn ({further.group().strip()!r} at character {further.start()}) after the shared "
                "prompt; expected exactly one assistant message",
            )
    return shared[:end]


def _first(marker: re.Pattern[str], text: str) -> int:
    match = marker.search(text)
    return len(text) if match is None else match.start()
