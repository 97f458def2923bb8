"""Which token ends an answer: what the template writes after it, held against what the model stops with."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import Message
from mrpo_pipeline.rendering.escaped_tokenizer import PrivateClone
from mrpo_pipeline.rendering.templates import ChatTemplate
from mrpo_pipeline.rendering.tool_forms import call_probe


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The end of an answer.

    Attributes:
        control: control token that the template writes to end an answer; None where it writes none.
        token: the token that ends an answer, written or not; None where nothing names one.
        notice: what a user should know of it; empty where the template writes what the model stops with.
    """

    control: str | None
    token: str | None
    notice: str = ""


def find_turn_end(template: ChatTemplate, clone: PrivateClone, stops: Collection[str], eos: str | None) -> TurnEnd:
    """How an answer ends.

    Of the control tokens that the template writes after every answer, an earlier one as well as the last, it is the first that
    the model stops with, or else the first that is not the header of the next turn. Where there is none it is what the
    template writes next after an earlier answer, if the model stops with that (GLM's `<|user|>`), or else the end of text.

    Args:
        template: the model's.
        clone: renames control strings.
        stops: tokens that the model stops with, by its generation configuration; may be empty.
        eos: the tokenizer's end of text.
    """
    names = {character: control for control, character in clone.names.items()}
    frame = template.frame([{"role": "user", "content": "question"}])
    before, last = clone.rename(frame.prefix), clone.rename(frame.suffix)
    earlier = template.after_earlier_answer()
    earlier = None if earlier is None else clone.rename(earlier)
    after_user = before.split("question")[-1]
    shared = last if earlier is None else _shared_start(last, earlier)

    found = [names[char] for char in shared if char in names]
    ends = {*stops, *([eos] if eos else [])}
    written = next((control for control in found if control in ends), None)
    if written is None:
        first = next((char for char in last if char in names), None)
        closes_both = first is not None and first in _shared_start(after_user, last if earlier is None else earlier)
        if first is not None and (names[first] in ends or closes_both or first not in before):
            written = names[first]
    if written is not None:
        return TurnEnd(written, written, _unknown_stop(template, written, stops, ends))
    follows = next((names[char] for char in earlier or "" if char in names), None)
    added = follows if follows is not None and follows in stops else eos or next(iter(stops), None)
    if added is None:
        return TurnEnd(None, None)
    source = (
        "what the model stops with by its generation configuration" if added in stops else "the tokenizer's eos_token"
    )
    return TurnEnd(None, added, f"{template.name} writes no end of an answer: {added} ends it, {source}.")


def find_calls_end(template: ChatTemplate, clone: PrivateClone, ends: Collection[str]) -> str | None:
    """The token behind a message of tool calls; None where there is none.

    Of the control tokens that are written behind it whatever follows, it is the first that the model stops with, or else what
    closes a user's message too, or else the last but for the next turn's header. Where there is none, it is what is written next
    if the model stops with that (GLM's `<|observation|>`).

    Args:
        ends: tokens that the model stops with, and the one that ends an answer.
    """
    names = {character: control for control, character in clone.names.items()}
    asked, call, result = (
        {"role": "user", "content": "question"},
        call_probe(),
        {"role": "tool", "content": "qZresultX9"},
    )

    def controls(text: str) -> list[str]:
        return [names[char] for char in text if char in names]

    def written(messages: list[Message]) -> tuple[str, str]:
        """Up to the call's last text, and from there to the result."""
        try:
            before, behind = clone.rename(template.whole(messages)).rsplit("qZvalueX9", 1)
        except (UserError, ValueError):
            return "", ""
        return before, behind.split("qZresultX9")[0]

    before, last = written([asked, call])
    _, followed = written([asked, call, result])
    shared = controls(_shared_start(last, followed) if last and followed else last or followed)
    known = next((control for control in shared if control in ends), None)
    if known is not None:
        return known
    opening, _, closing = before.rpartition("question")
    closes = next(iter(controls(closing)), None)
    if closes in shared:
        return closes
    while len(shared) > 1 and len(controls(last)) > len(shared) and shared[-1] in controls(opening):
        shared.pop()
    return shared[-1] if shared else next((control for control in controls(followed) if control in ends), None)


def _unknown_stop(template: ChatTemplate, written: str, stops: Collection[str], ends: Collection[str]) -> str:
    if not stops or written in ends:
        return ""
    return (
        f"{template.name} ends an answer with {written}, which is not among the tokens that the model stops with "
        f"({', '.join(sorted(stops))}): such a model goes on after its answer."
    )


def _shared_start(one: str, other: str) -> str:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(char for char, _ in same)
