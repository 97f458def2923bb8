"""Token that ends an answer, from the template's output after it and the model's stop tokens."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import Message
from mrpo_pipeline.rendering.chat_template import ChatTemplate
from mrpo_pipeline.rendering.escaped_tokenizer import EscapedTokenizer
from mrpo_pipeline.rendering.message_formats import call_probe


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The end of an answer.

    Attributes:
        control: control token that the template writes at the end of an answer, or None.
        token: token that ends an answer, written by the template or not; None if unknown.
        notice: notice for the user; empty if the template writes a stop token of the model.
    """

    control: str | None
    token: str | None
    notice: str = ""


def find_turn_end(
    template: ChatTemplate, escaped: EscapedTokenizer, stops: Collection[str], eos: str | None
) -> TurnEnd:
    """Find the token that ends an answer.

    It is the first stop token among the control tokens that the template writes after every answer, or else the first one
    that is not the header of the next turn. Without such a token, it is the first token after an earlier answer if that is
    a stop token (GLM's `<|user|>`), or else EOS.

    Args:
        template: of the model.
        escaped: escaped tokenizer.
        stops: stop tokens of the generation configuration; may be empty.
        eos: EOS of the tokenizer.
    """
    names = {character: control for control, character in escaped.names.items()}
    frame = template.frame([{"role": "user", "content": "question"}])
    before, last = escaped.rename(frame.prefix), escaped.rename(frame.suffix)
    earlier = template.after_earlier_answer()
    earlier = None if earlier is None else escaped.rename(earlier)
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
    source = "a stop token of the generation configuration" if added in stops else "the tokenizer's eos_token"
    return TurnEnd(None, added, f"{template.name} writes no end-of-turn token: {added} is used, {source}.")


def find_calls_end(template: ChatTemplate, escaped: EscapedTokenizer, ends: Collection[str]) -> str | None:
    """Find the token that ends a message of tool calls, or None.

    It is the first stop token among the control tokens that always follow such a message, or else the one that also ends a
    user message, or else the last one before the header of the next turn. Without such a token, it is the next one if that
    is a stop token (GLM's `<|observation|>`).

    Args:
        ends: stop tokens, and the token that ends an answer.
    """
    names = {character: control for control, character in escaped.names.items()}
    question, call, result = (
        {"role": "user", "content": "question"},
        call_probe(),
        {"role": "tool", "content": "qZresultX9"},
    )

    def controls(text: str) -> list[str]:
        return [names[char] for char in text if char in names]

    def written(messages: list[Message]) -> tuple[str, str]:
        """Text up to the last text of the call, and from there to the result."""
        try:
            before, after = escaped.rename(template.render(messages)).rsplit("qZvalueX9", 1)
        except (UserError, ValueError):
            return "", ""
        return before, after.split("qZresultX9")[0]

    before, last = written([question, call])
    _, followed = written([question, call, result])
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
        f"{template.name} ends an answer with {written}, which is not a stop token of the model ({', '.join(sorted(stops))}): the "
        "model may continue after its answer."
    )


def _shared_start(one: str, other: str) -> str:
    return os.path.commonprefix([one, other])  # noqa: RUF071 (compares characters, as intended)


def no_end_token(template: str) -> str:
    """Message for a template and a tokenizer without an end of an answer."""
    return (
        f"{template} writes no control token after an answer, and the tokenizer has no `eos_token`. Set a tokenizer that has one "
        "(`tokenizer:`), or another template (`template:`)."
    )
