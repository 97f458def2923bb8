"""Reasons for which pairs are dropped between reading and training, and the remedy for each."""

from __future__ import annotations

from collections.abc import Mapping

PROMPT_TOO_LONG = "prompt does not fit max_prompt_length"
NO_ROOM = "prompt leaves no room within max_length"
EMPTY = "a side is empty after the cut"
EQUAL = "the sides are equal after the cut"
RENDERED = "rendered by the policy's chat template"
UNWRITTEN = "the policy's template does not write it"
# Followed by a reference's name.
TOO_LONG_FOR = "do not fit the context of"
UNWRITTEN_BY = "are not written by the template of"

_LONGER = "Raise limits.max_length (--max-length)"
_KNOWN = "Give pairs of which one side is known to be better"
_ADVICE = {
    PROMPT_TOO_LONG: "Raise limits.max_prompt_length (--max-prompt-length)",
    NO_ROOM: _LONGER,
    EMPTY: _LONGER,
    EQUAL: f"{_LONGER}: the sides differ only after the cut",
    RENDERED: "Give the original messages, or set pairs.serialized: text if the prompts are content",
    UNWRITTEN: "Give the policy another template (policy.template): this one leaves completions out, or changes them",
    TOO_LONG_FOR: "Lower limits.max_length (--max-length), so that longer texts are cut to fit each model",
    # Reasons for skipped rows, from the pairs readers.
    "tie": _KNOWN,
    "no label": _KNOWN,
    UNWRITTEN_BY: "Give that reference another template (references.{name}.template): this one leaves completions out, or changes them",
}


def advice(dropped: Mapping[str, int], rows: Mapping[str, int]) -> str:
    """The remedy for the most frequent reason for dropped pairs or skipped rows."""
    reason = max((one for one in {**rows, **dropped}.items() if one[1]), key=lambda one: one[1], default=("", 0))[0]
    for start, text in _ADVICE.items():
        if reason.startswith(start):
            return text.format(name=reason.rsplit(" ", 1)[-1])
    if not reason:
        return "Name files that hold pairs"
    return "Correct these rows, or pairs.columns and pairs.strings, which define how rows are read"
