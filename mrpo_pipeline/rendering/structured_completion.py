"""Locate a completion with reasoning, tool calls or several messages in the output of a template.

The conversation is rendered twice: unchanged, and with each text replaced by a placeholder. The second rendering gives the template's
own output, which must equal the first one with the texts filled in. So a text is never matched by coincidence.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import Message
from mrpo_pipeline.rendering.chat_template import ChatTemplate, UnboundedTemplateError
from mrpo_pipeline.rendering.message_formats import cannot_write
from mrpo_pipeline.rendering.placeholders import (
    Piece,
    Slot,
    SlotKind,
    filled,
    make_placeholders,
    slots_of,
    split_pieces,
    with_placeholders,
)
from mrpo_pipeline.rendering.prompt_rendering import (
    dropped_reasoning,
    find_dropped,
    holds_call,
    place_in,
    replaced_head,
)

_KINDS: dict[SlotKind, str] = {
    "reasoning": "reasoning",
    "content": "content beside reasoning or tool calls",
    "name": "tool calls",
    "result": "tool results",
}


@dataclass(frozen=True, slots=True)
class WrittenConversation:
    """A rendered conversation in pieces.

    Attributes:
        pieces: concatenated, they are the rendering.
        starts: char index of the beginning of each assistant message of the completion.
        closed: for each one except the last, upper bound of its end, for messages without an end token; None if unknown.
        from_generation_prompt: whether the rendering's beginning is taken from a generation prompt.
    """

    pieces: list[Piece]
    starts: list[int]
    closed: list[int | None]
    from_generation_prompt: bool


def write(template: ChatTemplate, prompt: list[Message], completion: list[Message]) -> WrittenConversation:
    """Render a conversation and locate its completion.

    Args:
        template: with the settings of the prompt.
        prompt: canonical messages as passed to the template (a system message may be merged).
        completion: canonical messages that begin and end with the assistant's.
    Raises:
        UserError: the template drops or changes a text.
    """
    messages = [*prompt, *completion]
    slots = slots_of(messages, len(prompt))
    marks = make_placeholders(slots, messages)
    head, pieces = _aligned(template, messages, len(prompt), slots, marks)
    _check_calls(template, messages, len(prompt), pieces)
    indices = [i for i in range(len(prompt), len(messages)) if messages[i]["role"] == "assistant"]
    text = "".join(piece.text for piece in pieces)
    starts = [_start(template, messages, index, text, pieces) for index in indices]
    if any(b <= a for a, b in itertools.pairwise(starts)):
        raise UserError(_not_as_given(template, "several messages"))
    closed = [_closed(template, messages[: index + 1], text) for index in indices[:-1]]
    return WrittenConversation(pieces, starts, closed, bool(head))


def _aligned(
    template: ChatTemplate, messages: list[Message], first: int, slots: list[Slot], marks: list[str]
) -> tuple[int, list[Piece]]:
    """(index of the message whose generation prompt is the beginning, or 0; pieces)."""
    head, scaffold = _complete(template, with_placeholders(messages, slots, marks), first, slots, marks)
    full = _with_head(template, messages, head)
    found = split_pieces(scaffold, slots, marks)
    pieces = filled(full, found) if len(found) == 2 * len(slots) + 1 else None
    if pieces is None:
        raise UserError(_not_as_given(template, _kinds(slots)))
    return head, pieces


def _complete(
    template: ChatTemplate, marked: list[Message], first: int, slots: Sequence[Slot], marks: Sequence[str]
) -> tuple[int, str]:
    """(index, rendering) that contains all texts: the full rendering (index 0), or one that begins with a generation prompt."""
    text, prompt = template.render(marked), marked[:first]
    complete, dropped = _holds(text, prompt, marks), dropped_reasoning(text, prompt)
    if complete and not dropped and not template.tool_names:
        return 0, text
    for index in range(len(marked) - 1, first - 1, -1):
        if marked[index]["role"] == "assistant":
            made = _headed(template, marked, index, text)
            if made is None:
                continue
            more = any(thought in made for thought in dropped) or (bool(template.tool_names) and made != text)
            if (more or not complete) and _holds(made, prompt, marks):
                return index, made
    if complete:
        return 0, text
    missing = next((slot for slot, mark in zip(slots, marks, strict=True) if mark not in text), None)
    if missing is not None:
        raise UserError(cannot_write(template.name, _KINDS[missing.kind]))
    out = find_dropped(text, prompt)
    what = "the order of such messages" if out is None else f"a message of the prompt ({out['role']})"
    raise UserError(cannot_write(template.name, what))


def _holds(text: str, prompt: Sequence[Message], marks: Sequence[str]) -> bool:
    at = 0
    for mark in marks:
        at = text.find(mark, at)
        if at < 0:
            return False
    return find_dropped(text, prompt) is None


def _with_head(template: ChatTemplate, messages: list[Message], index: int) -> str:
    text = template.render(messages)
    made = _headed(template, messages, index, text) if index else text
    if made is None:
        raise UserError(_not_as_given(template, "several messages"))
    return made


def _headed(template: ChatTemplate, messages: list[Message], index: int, text: str) -> str | None:
    """The rendering with its beginning replaced by the generation prompt before message `index`."""
    prompt_text = _generation_prompt(template, messages[:index])
    head = replaced_head(prompt_text, text, messages[index - 1]) if prompt_text else None
    return None if head is None else head[1] + text[head[0] :]


def _generation_prompt(template: ChatTemplate, messages: list[Message]) -> str:
    try:
        return template.generation_prompt(messages)
    except UnboundedTemplateError:
        raise
    except UserError:  # the template has no generation prompt
        return ""


def _check_calls(template: ChatTemplate, messages: list[Message], first: int, pieces: list[Piece]) -> None:
    """Raise UserError if a value of a call is missing from its message."""
    for index in range(first, len(messages)):
        calls = messages[index].get("tool_calls", ())
        if not calls:
            continue
        at = [(i, piece.slot) for i, piece in enumerate(pieces) if piece.slot is not None]
        before = [i for i, slot in at if slot.message < index or (slot.message == index and slot.kind != "name")]
        later = [i for i, slot in at if slot.message > index]
        begin, end = before[-1] + 1 if before else 0, later[0] if later else len(pieces)
        text = "".join(piece.text for piece in pieces[begin:end])
        if not all(holds_call(text, call) for call in calls):
            raise UserError(cannot_write(template.name, "tool calls"))


def _start(template: ChatTemplate, messages: list[Message], index: int, text: str, pieces: Sequence[Piece]) -> int:
    """Start of a message: after its generation prompt if the rendering contains that, else at the first text of the message."""
    before, first, at = 0, None, 0  # end of the last text before the message, start of its first text
    for piece in pieces:
        if piece.slot is not None and piece.slot.message < index:
            before = at + len(piece.text)
        elif piece.slot is not None and piece.slot.message == index and first is None:
            first = at
        at += len(piece.text)
    limit = len(text) if first is None else first
    prompt_text = _generation_prompt(template, messages[:index])
    if prompt_text and text.startswith(prompt_text) and before <= len(prompt_text) <= limit:
        return len(prompt_text)
    last = messages[index - 1]
    given = place_in(prompt_text, last, last=True) if prompt_text and last["content"].strip() else None
    if not before:
        found = place_in(text[:limit], last, last=True)
        before = found[1] if found else 0
    if given is not None:
        tail = prompt_text[given[1] :]
        if text.startswith(tail, before) and before + len(tail) <= limit:
            return before + len(tail)
    is_text = any(p.slot and p.slot.message == index and p.slot.kind in ("reasoning", "content") for p in pieces)
    if is_text and first is not None:
        return first
    tail = prompt_text[given[1] :] if given is not None else ""
    same = next((i for i, (a, b) in enumerate(zip(tail, text[before:], strict=False)) if a != b), len(tail))
    same = max((text.rfind(edge, before, before + same) for edge in "\n>])"), default=before - 1) + 1
    return min(max(same, before), limit)


def _closed(template: ChatTemplate, messages: list[Message], text: str) -> int | None:
    """Length of the conversation's rendering, if the complete text begins with it."""
    try:
        closed = template.render(messages).rstrip()
    except UnboundedTemplateError:
        raise
    except UserError:
        return None
    return len(closed) if text.startswith(closed) else None


def _kinds(slots: Sequence[Slot]) -> str:
    kinds = list(dict.fromkeys(_KINDS[slot.kind] for slot in slots))
    return ", ".join(kinds) or "the completion"


def _not_as_given(template: ChatTemplate, what: str) -> str:
    return (
        f"{template.name} changes {what} of a completion by more than white space at the ends, so its tokens cannot be located. Set "
        "another template for this model (`template:`, a Jinja file), or remove the row."
    )
