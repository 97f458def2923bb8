"""Texts of a conversation, marks in their place, and the rendering in pieces: texts, and what the template writes between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mrpo_pipeline.pairs.identity import Message
from mrpo_pipeline.rendering.placing import trims
from mrpo_pipeline.rendering.prompt_frame import spellings

SlotKind = Literal["reasoning", "content", "name", "result"]

# Reasoning in tags, and what is between it and the answer.
_TAGGED = re.compile(r"\s*(?:<think>|\[THINK\]|◁think▷).*(?:</think>|\[/THINK\]|◁/think▷)\s*(?=\S)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Slot:
    """A text of a message, which the template is to write as it stands."""

    message: int  # index in the conversation
    kind: SlotKind
    call: int  # which call it names; 0 for other kinds
    text: str
    tagged: str = ""  # the reasoning in tags that a content begins with: a template may treat it as such


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the rendering: a text, or what the template writes between texts (`slot` is None)."""

    text: str
    slot: Slot | None = None


def slots_of(messages: Sequence[Message], first: int) -> list[Slot]:
    slots = []
    for index in range(first, len(messages)):
        message = messages[index]
        kind: SlotKind = "content" if message["role"] == "assistant" else "result"
        if message.get("reasoning_content", "").strip():
            slots.append(Slot(index, "reasoning", 0, message["reasoning_content"]))
        if message["content"].strip():  # white space alone is what a template may leave out
            tags = _TAGGED.match(message["content"]) if kind == "content" else None
            slots.append(Slot(index, kind, 0, message["content"], tags[0] if tags else ""))
        slots += [Slot(index, "name", i, call["name"]) for i, call in enumerate(message.get("tool_calls", ()))]
    return slots


def marks_for(slots: Sequence[Slot], messages: Sequence[Message]) -> list[str]:
    stem, everything = "qZ", repr(messages)
    while stem + "slot" in everything:
        stem += "7qZ"
    return [f"{stem}slot{i}X" for i in range(len(slots))]


def with_marks(messages: Sequence[Message], slots: Sequence[Slot], marks: Sequence[str]) -> list[Message]:
    made = [dict(message) for message in messages]
    for slot, mark in zip(slots, marks, strict=True):
        message = made[slot.message]
        if slot.kind == "name":
            calls = list(message["tool_calls"])
            calls[slot.call] = {**calls[slot.call], "name": mark}
            message["tool_calls"] = calls
        else:
            message["reasoning_content" if slot.kind == "reasoning" else "content"] = slot.tagged + mark
    return made


def in_pieces(scaffold: str, slots: Sequence[Slot], marks: Sequence[str]) -> list[Piece]:
    """Scaffold and slots in turn; a name that is written again is scaffold."""
    known = dict(zip(marks, slots, strict=True))
    pieces: list[Piece] = [Piece("")]
    if not marks:
        return [Piece(scaffold)]
    for part in re.split(f"({'|'.join(map(re.escape, sorted(marks, key=len, reverse=True)))})", scaffold):
        slot = known.get(part)
        seen = slot is not None and any(piece.slot is slot for piece in pieces)
        if slot is None or (seen and slot.kind == "name"):
            pieces[-1] = Piece(pieces[-1].text + (part if slot is None else slot.text))
        else:
            # What the template writes of reasoning in tags is the text's own where it is written as it stands.
            before = next((one for one in trims(slot.tagged) if one and pieces[-1].text.endswith(one)), "")
            pieces[-1] = Piece(pieces[-1].text.removesuffix(before) if before else pieces[-1].text)
            pieces += [Piece(before, slot), Piece("")]
    return pieces


def filled(full: str, scaffold: list[Piece]) -> list[Piece] | None:
    """The scaffold filled with the texts as they are written; None where the rendering is another."""
    if not full.startswith(scaffold[0].text):
        return None
    pieces, at = [scaffold[0]], len(scaffold[0].text)
    for hole, after in zip(scaffold[1::2], scaffold[2::2], strict=True):
        slot = hole.slot
        if slot is None:
            return None
        if slot.tagged and not hole.text:
            return None
        ways = [way for one in trims(slot.text) for way in spellings(one, slot.kind == "result")]
        found = next((way for way in ways if full.startswith(way + after.text, at)), None)
        if found is None:
            return None
        pieces += [Piece(found, slot), after]
        at += len(found) + len(after.text)
    return pieces if at == len(full) else None


def mask_all(value: Any, mask: Any) -> Any:
    """A value with `mask` applied to every text in it."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {mask(key): mask_all(item, mask) for key, item in value.items()}
    if isinstance(value, list):
        return [mask_all(item, mask) for item in value]
    return value
