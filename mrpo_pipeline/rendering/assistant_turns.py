"""Assistant messages of a completion as turns of one text: which tokens are scored, and the byte end of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.completion import completion_parts
from mrpo_pipeline.rendering.byte_offsets import TokenBytes, byte_ends
from mrpo_pipeline.rendering.end_of_turn import TurnEnd, no_end_token
from mrpo_pipeline.rendering.escaped_tokenizer import EscapedTokenizer
from mrpo_pipeline.rendering.placeholders import Piece
from mrpo_pipeline.rendering.structured_completion import WrittenConversation
from mrpo_pipeline.rendering.token_boundary import Spans, first_from


class Part(NamedTuple):
    """A text of a message: char index in the rendering, and byte range in the completion's canonical text."""

    start: int
    text: str
    first_byte: int
    end_byte: int


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """An assistant message.

    Attributes:
        start, end: char range in the encoded text, from after the generation prompt to after the end token.
        ended: whether the text has its end token.
        parts: its reasoning and content.
        first_byte: bytes of the canonical text before the message.
        end_byte: bytes up to its end, which is also the byte end of tool calls and of text after the parts.
        calls: whether it has tool calls.
    """

    start: int
    end: int
    ended: bool
    parts: tuple[Part, ...]
    first_byte: int
    end_byte: int
    calls: bool


@dataclass(frozen=True, slots=True)
class TurnLayout:
    """An escaped rendering and its assistant turns.

    Attributes:
        end_token: token to append to the last message; None if the text has an end token.
        from_generation_prompt: see ``WrittenConversation``.
    """

    text: str
    turns: tuple[AssistantTurn, ...]
    end_token: str | None
    from_generation_prompt: bool

    @property
    def edges(self) -> list[int]:
        """Positions that no token may cross."""
        edges = [edge for turn in self.turns for edge in (turn.start, turn.end)]
        return [edge for edge in dict.fromkeys(edges) if 0 < edge < len(self.text)]


class EndTokens(NamedTuple):
    """Ends of messages: `turn` of an answer, `calls` the token after tool calls or None, `stops` the stop tokens of the model."""

    turn: TurnEnd
    calls: str | None
    stops: frozenset[str]

    def of(self, escaped: EscapedTokenizer, calls: bool) -> str:
        """Characters that end a message."""
        tokens = {self.turn.control, *self.stops, *([self.calls] if calls else [])}
        return "".join(escaped.names[token] for token in tokens if token in escaped.names)


def layout_turns(
    written: WrittenConversation,
    completion: str,
    messages: Sequence[dict[str, object]],
    first: int,
    escaped: EscapedTokenizer,
    ends: EndTokens,
    name: str,
) -> TurnLayout:
    """Rename control strings, and locate the end of each message.

    Args:
        written: the conversation with masked control strings.
        completion: unchanged.
        messages: of the completion; `first` is the index of the first one in the conversation.
    """
    text, parts_at, starts, closed, texts_at = _renamed(written, escaped)
    bytes_of: dict[tuple[int, str], tuple[int, int, str]] = {}
    total = 0
    for part in completion_parts(completion):
        size = len(part.text.encode())
        bytes_of[part.message, part.kind] = (total, total + size, part.text)
        total += size
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    turns: list[AssistantTurn] = []
    done = 0
    for n, index in enumerate(indices):
        own = {kind: value for (message, kind), value in bytes_of.items() if message == index}
        parts = []
        for kind, start, piece in parts_at.get(first + index, ()):
            begin, end, given = own[kind]
            lead = len(given[: given.find(piece)].encode()) if piece in given else 0
            parts.append(Part(start, piece, begin + lead, end))
        calls = "calls" in own
        at = max([starts[n], *(stop for message, _, stop in texts_at if message == first + index)])
        # It ends before the text of the next message or tool result.
        later = [begin for message, begin, _ in texts_at if message > first + index]
        limit = min([*starts[n + 1 : n + 2], *later, len(text)])
        upper = closed[n] if n < len(closed) else None
        found = _end(text, at, limit, escaped, ends.of(escaped, calls), n + 1 == len(indices), upper)
        if found is None:
            raise UserError(
                f"{name} writes no detectable end after one of several messages of a completion. Set another template for this model "
                "(`template:`, a Jinja file), or remove the row."
            )
        end, ended = found
        upto = max([end_ for _, end_, _ in own.values()], default=done)
        turns.append(AssistantTurn(starts[n], end, ended, tuple(parts), done, upto, calls))
        done = upto
    last = turns[-1]
    added = None if last.ended else (ends.calls if last.calls and ends.calls else ends.turn.token)
    if not last.ended and added is None:
        raise UserError(no_end_token(name))
    return TurnLayout(text, tuple(turns), added, written.from_generation_prompt)


def _renamed(
    written: WrittenConversation, escaped: EscapedTokenizer
) -> tuple[str, dict[int, list[tuple[str, int, str]]], list[int], list[int | None], list[tuple[int, int, int]]]:
    """(text, reasoning and content by message, starts, closed ends, (message, start, end) of every text)."""
    cuts = sorted({*written.starts, *(at for at in written.closed if at is not None)})
    moved: dict[int, int] = {}
    parts_at: dict[int, list[tuple[str, int, str]]] = {}
    texts_at: list[tuple[int, int, int]] = []
    out: list[str] = []
    size = raw = 0
    for piece in written.pieces:
        for at, text in _cut(piece, raw, cuts):
            moved.setdefault(at, size)
            made = escaped.unmask(text) if piece.slot else escaped.rename(text)
            out.append(made)
            size += len(made)
        if piece.slot is not None:
            slot = piece.slot
            texts_at.append((slot.message, size - len(out[-1]), size))
            if slot.kind in ("reasoning", "content"):
                parts_at.setdefault(slot.message, []).append((slot.kind, size - len(out[-1]), out[-1]))
        raw += len(piece.text)
    moved.setdefault(raw, size)
    starts = [moved[at] for at in written.starts]
    return "".join(out), parts_at, starts, [None if at is None else moved[at] for at in written.closed], texts_at


def _cut(piece: Piece, raw: int, cuts: Sequence[int]) -> list[tuple[int, str]]:
    """Split a piece at the cuts: (char index in the rendering, text)."""
    if piece.slot is not None:
        return [(raw, piece.text)]
    inside = [raw, *(at for at in cuts if raw < at < raw + len(piece.text)), raw + len(piece.text)]
    return [(a, piece.text[a - raw : b - raw]) for a, b in itertools.pairwise(inside)]


def _end(
    text: str, at: int, limit: int, escaped: EscapedTokenizer, ends: str, last: bool, closed: int | None
) -> tuple[int, bool] | None:
    """(end of the message, whether it has an end token), or None if the end is unknown."""
    found = next((i for i in range(at, limit) if text[i] in ends), None) if ends else None
    if found is not None:
        return found + 1, True
    if last:
        return max(at, len(text.rstrip())), False
    if closed is not None and at <= closed <= limit:
        return closed, False
    control = escaped.characters.search(
        text, at, limit
    )  # Harmony ends earlier answers with another token than the last
    return (control.end(), True) if control else None


def turn_byte_ends(
    layout: TurnLayout, spans: Spans, ids: Sequence[int], split: int, token_bytes: TokenBytes
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """(byte ends, scored mask) of the tokens from `split` on.

    Args:
        spans: char offsets of all tokens.
        ids: their original ids.
    """
    count = len(spans)
    ends = np.zeros(count, dtype=np.int32)
    scored = np.zeros(count, dtype=np.bool_)
    for turn in layout.turns:
        a, b = first_from(spans, turn.start), first_from(spans, turn.end)
        scored[a:b] = True
        ends[a:] = turn.first_byte
        at = a
        for part in turn.parts:
            stop = part.start + len(part.text)
            i = next((i for i in range(at, b) if spans[i][1] > part.start), b)
            j = max(first_from(spans, stop), i)
            own = byte_ends(
                part.text, spans[i:j], part.start, token_bytes.of(ids[i:j]), part.end_byte - part.first_byte
            )
            ends[i:j] = part.first_byte + own
            ends[j:] = part.end_byte
            at = j
        ends[at:] = turn.end_byte  # text after the parts: tool calls, end token
    return np.maximum.accumulate(ends[split:]), scored[split:]
