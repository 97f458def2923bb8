"""Replace the texts of a conversation with placeholders, to split a rendering into texts and the template's own output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mrpo_pipeline.pairs.identity import Message
from mrpo_pipeline.rendering.content_location import trimmed_variants
from mrpo_pipeline.rendering.prompt_rendering import spellings

SlotKind = Literal["reasoning", "content", "name", "result"]

# Reasoning in tags, with the white space before the answer.
_TAGGED = re.compile(r"\s*(?:<think>|\[THINK\]|◁think▷).*(?:</think>|\[/THINK\]|◁/think▷)\s*(?=\S)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Slot:
    """A text of a message that the template should write unchanged."""

    message: int  # index in the conversation
    kind: SlotKind
    call: int  # index of the call for names, else 0
    text: str
    tagged: str = ""  # reasoning in tags at the beginning of a content, which a template may treat as reasoning


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the rendering: a text, or the template's own output (`slot` is None)."""

    text: str
    slot: Slot | None = None


def slots_of(messages: Sequence[Message], first: int) -> list[Slot]:
    slots = []
    for index in range(first, len(messages)):
        message = messages[index]
        kind: SlotKind = "content" if message["role"] == "assistant" else "result"
        if message.get("reasoning_content", "").strip():
            slots.append(Slot(index, "reasoning", 0, message["reasoning_content"]))
        if message["content"].strip():  # templates may drop blank contents
            tags = _TAGGED.match(message["content"]) if kind == "content" else None
            slots.append(Slot(index, kind, 0, message["content"], tags[0] if tags else ""))
        slots += [Slot(index, "name", i, call["name"]) for i, call in enumerate(message.get("tool_calls", ()))]
    return slots


def make_placeholders(slots: Sequence[Slot], messages: Sequence[Message]) -> list[str]:
    stem, everything = "qZ", repr(messages)
    while stem + "slot" in everything:
        stem += "7qZ"
    return [f"{stem}slot{i}X" for i in range(len(slots))]


def with_placeholders(messages: Sequence[Message], slots: Sequence[Slot], marks: Sequence[str]) -> list[Message]:
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


def split_pieces(scaffold: str, slots: Sequence[Slot], marks: Sequence[str]) -> list[Piece]:
    """Alternating scaffold and slots. A repeated tool name belongs to the scaffold."""
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
            # Tagged reasoning belongs to the text if the template writes it unchanged.
            before = next((one for one in trimmed_variants(slot.tagged) if one and pieces[-1].text.endswith(one)), "")
            pieces[-1] = Piece(pieces[-1].text.removesuffix(before) if before else pieces[-1].text)
            pieces += [Piece(before, slot), Piece("")]
    return pieces


def filled(full: str, scaffold: list[Piece]) -> list[Piece] | None:
    """The scaffold with its slots filled from the rendering `full`; None if they do not match."""
    if not full.startswith(scaffold[0].text):
        return None
    pieces, at = [scaffold[0]], len(scaffold[0].text)
    for hole, after in zip(scaffold[1::2], scaffold[2::2], strict=True):
        slot = hole.slot
        if slot is None:
            return None
        if slot.tagged and not hole.text:
            return None
        ways = [way for one in trimmed_variants(slot.text) for way in spellings(one, slot.kind == "result")]
        found = next((way for way in ways if full.startswith(way + after.text, at)), None)
        if found is None:
            return None
        pieces += [Piece(found, slot), after]
        at += len(found) + len(after.text)
    return pieces if at == len(full) else None


def mask_all(value: Any, mask: Any) -> Any:
    """Apply `mask` to every text in a value."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {mask(key): mask_all(item, mask) for key, item in value.items()}
    if isinstance(value, list):
        return [mask_all(item, mask) for item in value]
    return value
