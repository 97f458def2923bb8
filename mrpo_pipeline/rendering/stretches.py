"""The assistant's messages of a completion as stretches of one text: what is scored, and which bytes of it each token ends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.completion import completion_parts
from mrpo_pipeline.rendering.boundary import Spans, first_from
from mrpo_pipeline.rendering.byte_offsets import TokenBytes, byte_ends
from mrpo_pipeline.rendering.end_of_turn import TurnEnd
from mrpo_pipeline.rendering.escaped_tokenizer import PrivateClone
from mrpo_pipeline.rendering.marked_texts import Piece
from mrpo_pipeline.rendering.structured import Written


class Part(NamedTuple):
    """A text of a message: chars of the rendering, and bytes of the completion's canonical text."""

    start: int
    text: str
    first_byte: int
    end_byte: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """An assistant's message.

    Attributes:
        start, end: chars of the text that is encoded: from behind the generation prompt to behind its end token.
        ended: whether the text has its end token.
        parts: its reasoning and content.
        first_byte: bytes of the canonical text before the message.
        end_byte: bytes up to its end; what is written of tool calls, and behind the parts, ends there.
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
class Layout:
    """A rendering with control strings renamed, and its stretches.

    Attributes:
        end_token: what ends the last message where the text has no token for it; None where it has.
        asked: see ``Written``.
    """

    text: str
    stretches: tuple[Stretch, ...]
    end_token: str | None
    asked: bool

    @property
    def edges(self) -> list[int]:
        """Places that no token may reach across."""
        edges = [edge for stretch in self.stretches for edge in (stretch.start, stretch.end)]
        return [edge for edge in dict.fromkeys(edges) if 0 < edge < len(self.text)]


class Ends(NamedTuple):
    """How messages end: `turn` an answer, `calls` the token behind tool calls (None: none is written), `stops` of the model."""

    turn: TurnEnd
    calls: str | None
    stops: frozenset[str]

    def of(self, clone: PrivateClone, calls: bool) -> str:
        """The characters that end a message."""
        tokens = {self.turn.control, *self.stops, *([self.calls] if calls else [])}
        return "".join(clone.names[token] for token in tokens if token in clone.names)


def lay_out(
    written: Written,
    completion: str,
    messages: Sequence[dict[str, object]],
    first: int,
    clone: PrivateClone,
    ends: Ends,
    name: str,
) -> Layout:
    """Rename control strings, and find where each message ends.

    Args:
        written: the conversation, control strings of its texts masked.
        completion: as it is given.
        messages: the completion's; `first` is the index of the first of them in the conversation.
    """
    text, parts_at, starts, closed, texts_at = _renamed(written, clone)
    bytes_of: dict[tuple[int, str], tuple[int, int, str]] = {}
    total = 0
    for part in completion_parts(completion):
        size = len(part.text.encode())
        bytes_of[part.message, part.kind] = (total, total + size, part.text)
        total += size
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    stretches: list[Stretch] = []
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
        # It ends before the next message's text, be that a result.
        later = [begin for message, begin, _ in texts_at if message > first + index]
        limit = min([*starts[n + 1 : n + 2], *later, len(text)])
        upper = closed[n] if n < len(closed) else None
        found = _end(text, at, limit, clone, ends.of(clone, calls), n + 1 == len(indices), upper)
        if found is None:
            raise UserError(
                f"{name} writes one of several messages of a completion without an end that can be told: give another template for this "
                "model (`template:`, a Jinja file), or take the row out."
            )
        end, ended = found
        upto = max([end_ for _, end_, _ in own.values()], default=done)
        stretches.append(Stretch(starts[n], end, ended, tuple(parts), done, upto, calls))
        done = upto
    last = stretches[-1]
    added = None if last.ended else (ends.calls if last.calls and ends.calls else ends.turn.token)
    if not last.ended and added is None:
        raise UserError(
            f"{name} writes no control token after an answer, and the tokenizer has no `eos_token` to end it with: give a tokenizer "
            "that names one (`tokenizer:`), or another template (`template:`)."
        )
    return Layout(text, tuple(stretches), added, written.asked)


def _renamed(
    written: Written, clone: PrivateClone
) -> tuple[str, dict[int, list[tuple[str, int, str]]], list[int], list[int | None], list[tuple[int, int, int]]]:
    """The text, where each message's reasoning and content are in it, the starts, the closed ends, and of every text its
    message, from and to."""
    cuts = sorted({*written.starts, *(at for at in written.closed if at is not None)})
    moved: dict[int, int] = {}
    parts_at: dict[int, list[tuple[str, int, str]]] = {}
    texts_at: list[tuple[int, int, int]] = []
    out: list[str] = []
    size = raw = 0
    for piece in written.pieces:
        for at, text in _cut(piece, raw, cuts):
            moved.setdefault(at, size)
            made = clone.unmask(text) if piece.slot else clone.rename(text)
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
    """The piece in parts that start at the cuts, each with its place in the rendering."""
    if piece.slot is not None:
        return [(raw, piece.text)]
    inside = [raw, *(at for at in cuts if raw < at < raw + len(piece.text)), raw + len(piece.text)]
    return [(a, piece.text[a - raw : b - raw]) for a, b in itertools.pairwise(inside)]


def _end(
    text: str, at: int, limit: int, clone: PrivateClone, ends: str, last: bool, closed: int | None
) -> tuple[int, bool] | None:
    """Behind the end token, and whether there is one; None where it cannot be told."""
    found = next((i for i in range(at, limit) if text[i] in ends), None) if ends else None
    if found is not None:
        return found + 1, True
    if last:
        return max(at, len(text.rstrip())), False
    if closed is not None and at <= closed <= limit:
        return closed, False
    control = clone.characters.search(text, at, limit)  # Harmony ends earlier answers with another token than the last
    return (control.end(), True) if control else None


def stretch_ends(
    layout: Layout, spans: Spans, ids: Sequence[int], split: int, token_bytes: TokenBytes
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Byte ends and which tokens are scored, of the tokens from `split` on.

    Args:
        spans: char offsets of all tokens. ids: their original ids.
    """
    count = len(spans)
    ends = np.zeros(count, dtype=np.int32)
    scored = np.zeros(count, dtype=np.bool_)
    for stretch in layout.stretches:
        a, b = first_from(spans, stretch.start), first_from(spans, stretch.end)
        scored[a:b] = True
        ends[a:] = stretch.first_byte
        at = a
        for part in stretch.parts:
            stop = part.start + len(part.text)
            i = next((i for i in range(at, b) if spans[i][1] > part.start), b)
            j = max(first_from(spans, stop), i)
            own = byte_ends(
                part.text, spans[i:j], part.start, token_bytes.of(ids[i:j]), part.end_byte - part.first_byte
            )
            ends[i:j] = part.first_byte + own
            ends[j:] = part.end_byte
            at = j
        ends[at:] = stretch.end_byte  # what is written behind the parts, tool calls and the end token among it
    return np.maximum.accumulate(ends[split:]), scored[split:]
