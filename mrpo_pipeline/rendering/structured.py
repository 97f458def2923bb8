"""Where a completion with reasoning, tool calls or several messages is in what a template writes of it.

The conversation is rendered as it is, and once more with each text replaced by a mark: what is between the marks is the template's
own writing, and the first rendering has to be that with the texts themselves. So no text is looked for by chance.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import Message
from mrpo_pipeline.rendering.marked_texts import (
    Piece,
    Slot,
    SlotKind,
    filled,
    in_pieces,
    marks_for,
    slots_of,
    with_marks,
)
from mrpo_pipeline.rendering.prompt_frame import dropped_reasoning, holds_call, joined, left_out, place_in
from mrpo_pipeline.rendering.templates import ChatTemplate, UnboundedTemplateError
from mrpo_pipeline.rendering.tool_forms import cannot_write

_WORDS: dict[SlotKind, str] = {
    "reasoning": "reasoning",
    "content": "content beside reasoning or tool calls",
    "name": "tool calls",
    "result": "tool results",
}


@dataclass(frozen=True, slots=True)
class Written:
    """A conversation in pieces.

    Attributes:
        pieces: they make up the rendering.
        starts: for each assistant's message of the completion the char at which the model's own writing starts, as rendered.
        closed: for each but the last where it ends at the latest, where no control token ends it; None where it cannot be known.
        asked: whether it begins as the model is given it, and not as the template writes it once an answer follows.
    """

    pieces: list[Piece]
    starts: list[int]
    closed: list[int | None]
    asked: bool


def write(template: ChatTemplate, prompt: list[Message], completion: list[Message]) -> Written:
    """Render and find.

    Args:
        template: with what belongs to the prompt.
        prompt: canonical messages, as the template takes them (a system message may be merged).
        completion: canonical messages, the assistant's first and last.
    Raises:
        UserError: the template does not write all of it as it stands.
    """
    messages = [*prompt, *completion]
    slots = slots_of(messages, len(prompt))
    marks = marks_for(slots, messages)
    head, pieces = _aligned(template, messages, len(prompt), slots, marks)
    _check_calls(template, messages, len(prompt), pieces)
    indices = [i for i in range(len(prompt), len(messages)) if messages[i]["role"] == "assistant"]
    text = "".join(piece.text for piece in pieces)
    starts = [_start(template, messages, index, text, pieces) for index in indices]
    if any(b <= a for a, b in itertools.pairwise(starts)):
        raise UserError(_not_as_given(template, "several messages"))
    closed = [_closed(template, messages[: index + 1], text) for index in indices[:-1]]
    return Written(pieces, starts, closed, bool(head))


def _aligned(
    template: ChatTemplate, messages: list[Message], first: int, slots: list[Slot], marks: list[str]
) -> tuple[int, list[Piece]]:
    """The message that the head was asked for (0: none), and the pieces."""
    head, scaffold = _complete(template, with_marks(messages, slots, marks), first, slots, marks)
    full = _with_head(template, messages, head)
    found = in_pieces(scaffold, slots, marks)
    pieces = filled(full, found) if len(found) == 2 * len(slots) + 1 else None
    if pieces is None:
        raise UserError(_not_as_given(template, _kinds(slots)))
    return head, pieces


def _complete(
    template: ChatTemplate, marked: list[Message], first: int, slots: Sequence[Slot], marks: Sequence[str]
) -> tuple[int, str]:
    """A rendering that holds all, as a whole or behind what the model is given at one of its messages."""
    text, prompt = template.whole(marked), marked[:first]
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
        raise UserError(cannot_write(template.name, _WORDS[missing.kind]))
    out = left_out(text, prompt)
    what = "the order of such messages" if out is None else f"a message of the prompt ({out['role']})"
    raise UserError(cannot_write(template.name, what))


def _holds(text: str, prompt: Sequence[Message], marks: Sequence[str]) -> bool:
    at = 0
    for mark in marks:
        at = text.find(mark, at)
        if at < 0:
            return False
    return left_out(text, prompt) is None


def _with_head(template: ChatTemplate, messages: list[Message], index: int) -> str:
    text = template.whole(messages)
    made = _headed(template, messages, index, text) if index else text
    if made is None:
        raise UserError(_not_as_given(template, "several messages"))
    return made


def _headed(template: ChatTemplate, messages: list[Message], index: int, text: str) -> str | None:
    """The rendering, up to the message before `index` as the model is given it there."""
    asked = _asked(template, messages[:index])
    head = joined(asked, text, messages[index - 1]) if asked else None
    return None if head is None else head[1] + text[head[0] :]


def _asked(template: ChatTemplate, messages: list[Message]) -> str:
    try:
        return template.generation_prompt(messages)
    except UnboundedTemplateError:
        raise
    except UserError:  # it does not write one
        return ""


def _check_calls(template: ChatTemplate, messages: list[Message], first: int, pieces: list[Piece]) -> None:
    """Every value of every call is written in its message."""
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
    """Where the model writes a message: behind its generation prompt where that is written so, else at the message's first text."""
    before, first, at = 0, None, 0  # the end of the last text before it, the start of its own first one
    for piece in pieces:
        if piece.slot is not None and piece.slot.message < index:
            before = at + len(piece.text)
        elif piece.slot is not None and piece.slot.message == index and first is None:
            first = at
        at += len(piece.text)
    limit = len(text) if first is None else first
    asked = _asked(template, messages[:index])
    if asked and text.startswith(asked) and before <= len(asked) <= limit:
        return len(asked)
    last = messages[index - 1]
    given = place_in(asked, last, last=True) if asked and last["content"].strip() else None
    if not before:
        found = place_in(text[:limit], last, last=True)
        before = found[1] if found else 0
    if given is not None:
        tail = asked[given[1] :]
        if text.startswith(tail, before) and before + len(tail) <= limit:
            return before + len(tail)
    is_text = any(p.slot and p.slot.message == index and p.slot.kind in ("reasoning", "content") for p in pieces)
    if is_text and first is not None:
        return first
    tail = asked[given[1] :] if given is not None else ""
    same = next((i for i, (a, b) in enumerate(zip(tail, text[before:], strict=False)) if a != b), len(tail))
    same = max((text.rfind(edge, before, before + same) for edge in "\n>])"), default=before - 1) + 1
    return min(max(same, before), limit)


def _closed(template: ChatTemplate, messages: list[Message], text: str) -> int | None:
    """Where a conversation that ends with a message ends in the complete text, if that goes on from there."""
    try:
        closed = template.whole(messages).rstrip()
    except UnboundedTemplateError:
        raise
    except UserError:
        return None
    return len(closed) if text.startswith(closed) else None


def _kinds(slots: Sequence[Slot]) -> str:
    kinds = list(dict.fromkeys(_WORDS[slot.kind] for slot in slots))
    return ", ".join(kinds) or "the completion"


def _not_as_given(template: ChatTemplate, what: str) -> str:
    return (
        f"{template.name} does not write {what} of a completion as it stands (beyond trimming white space at the ends), so its tokens "
        "cannot be told from the template's: give another template for this model (`template:`, a Jinja file), or take the row out."
    )
