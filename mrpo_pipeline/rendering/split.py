"""Prompt and completion out of the encoding of a whole conversation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import Message
from mrpo_pipeline.rendering.boundary import Seam, Spans, first_from
from mrpo_pipeline.rendering.byte_offsets import TokenBytes, byte_ends
from mrpo_pipeline.rendering.end_of_turn import TurnEnd
from mrpo_pipeline.rendering.escaped_tokenizer import PrivateClone
from mrpo_pipeline.rendering.prompt_frame import PromptFrame
from mrpo_pipeline.rendering.stretches import Layout, stretch_ends
from mrpo_pipeline.rendering.templates import ChatTemplate


@dataclass(frozen=True, slots=True)
class Rendered:
    """A completion as one model reads it.

    Attributes:
        prompt_ids: (P,) int32, P >= 1: what stands before the content; nothing of it is scored.
        completion_ids: (T,) int32, T >= 1: the content's tokens, and the end-of-turn token last.
        byte_ends: (T,) int32, never decreasing: end of each token in the UTF-8 bytes of the completion's canonical text
            (``pairs.completion``); the end-of-turn token's is their number.
        scored: (T,) bool: False for tokens of the context between the assistant's messages; None: all are scored.
    """

    prompt_ids: npt.NDArray[np.int32]
    completion_ids: npt.NDArray[np.int32]
    byte_ends: npt.NDArray[np.int32]
    scored: npt.NDArray[np.bool_] | None = None

    @property
    def scored_ids(self) -> npt.NDArray[np.int32]:
        """(S,) int32: the tokens that are scored."""
        return self.completion_ids if self.scored is None else self.completion_ids[self.scored]

    @property
    def scored_ends(self) -> npt.NDArray[np.int32]:
        """(S,) int32: their byte ends."""
        return self.byte_ends if self.scored is None else self.byte_ends[self.scored]

    def scored_within(self, length: int) -> int:
        """Number of scored tokens among the completion's first `length`."""
        if self.scored is None:
            return min(max(length, 0), len(self.completion_ids))
        return int(self.scored[: max(length, 0)].sum())

    def beginning(self, count: int) -> Rendered:
        """As far as the first `count` scored tokens reach, the context between them included."""
        if self.scored is None:
            return Rendered(self.prompt_ids, self.completion_ids[:count], self.byte_ends[:count])
        length = int(np.flatnonzero(self.scored)[count - 1]) + 1 if count else 0
        scored = self.scored[:length]
        kept = None if scored.all() else scored
        return Rendered(self.prompt_ids, self.completion_ids[:length], self.byte_ends[:length], kept)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt made ready once for all its completions. `messages` is None for raw text."""

    clone: PrivateClone
    content: str | list[Message]  # as given
    written: PromptFrame | None  # by the template, control strings masked
    prefix: str  # renamed, as it is encoded
    suffix: str  # renamed
    seam: int  # where in `prefix` the model's own writing starts
    shape: tuple[bool, ...]  # raw text, with a system message, several turns
    controls: bool  # whether it holds control strings
    template: ChatTemplate  # with what belongs to this prompt


@dataclass(frozen=True, slots=True)
class Job:
    """One text to encode: `prefix + content + suffix`, all of it renamed."""

    prompt: Prompt
    prefix: str
    content: str
    suffix: str
    seam: int  # where in the prefix the prompt ends
    lead: int  # bytes of the completion before the content: white space the template trimmed
    total: int  # bytes of the completion as given
    controls: bool = False  # whether the data hold control strings
    layout: Layout | None = None  # of a completion that is more than a text
    breaks: list[int] = field(default_factory=list)  # where the encoding was broken; known once it is split


class Splitter:
    """Splits encodings of one model.

    Args:
        tokenizer: HF tokenizer; not changed.
        backend: its JSON, decoded.
        end: how a turn ends.
        name: what to call the model in messages.
        template: what to call its template.
    """

    def __init__(self, tokenizer: Any, backend: dict[str, Any], end: TurnEnd, name: str, template: str) -> None:
        self._name, self._template_name, self._end = name, template, end
        self._bytes = TokenBytes(backend, tokenizer.backend_tokenizer)
        self._seam = Seam(backend)
        self._end_id: int | None = tokenizer.convert_tokens_to_ids(end.token) if end.token else None
        self._eos_id: int | None = tokenizer.eos_token_id
        self._id_of = tokenizer.convert_tokens_to_ids
        self.prepended = prepended_ids(tokenizer)
        self._context_id = next((i for i in (tokenizer.bos_token_id, self._eos_id) if i is not None), None)
        self.swallowed = False  # whether a token ever reached from a content into what the template writes behind it

    def split(self, job: Job, encoding: Any) -> Rendered:
        """Prompt and completion out of the encoding of the whole text."""
        if job.layout is not None:
            return self._split_layout(job, job.layout, encoding)
        clone, content = job.prompt.clone, job.content
        ids, spans = encoding.ids, encoding.offsets
        content_start = len(job.prefix)
        content_end = content_start + len(content)
        text = job.prefix + content + job.suffix
        breaks = job.breaks
        # No token may reach into the completion, nor from its content into what the template writes behind it.
        while content and (at := self._crossed(spans, text, breaks, job.seam, content_end)) is not None:
            breaks[:] = sorted([*breaks, at])
            ids, spans = self._seam.encode_apart(clone, _parts(text, breaks))
        split = first_from(spans, job.seam)
        end = self._end_of_turn(job, spans, split, content_end)
        last = split + first_from(spans[split:end], content_end)
        original = clone.original_ids[ids[:end]] if end else np.zeros(0, dtype=np.int32)
        if last == split and content.strip():
            raise UserError(
                f"The tokenizer of {self._name} makes no token at all of the completion {content[:60]!r}: expected one whose vocabulary "
                "covers the text. Give the model's own (`tokenizer:`)."
            )
        pieces = self._bytes.of(original[split:last].tolist())
        inner = job.lead + byte_ends(content, spans[split:last], content_start, pieces, job.total - job.lead)

        if end == len(ids) or not job.suffix:  # what the template wrote after the content is no part of the turn
            end = last
        end_id = self._eos_id if job.prompt.written is None else self._end_id
        if end_id is None:
            raise UserError(
                f"{self._template_name} writes no control token after an answer, and the tokenizer has no `eos_token` "
                "to end it with: give a tokenizer that names one (`tokenizer:`), or another template (`template:`)."
            )
        completion_ids = np.append(original[split:end], end_id).astype(np.int32)
        ends = np.full(len(completion_ids), job.total, dtype=np.int32)
        ends[: len(inner)] = inner
        return Rendered(self.complete_prompt(original[:split]), completion_ids, ends)

    def _split_layout(self, job: Job, layout: Layout, encoding: Any) -> Rendered:
        """A completion with reasoning, tool calls or several messages: in the tokens that the complete text has."""
        clone, text, breaks = job.prompt.clone, layout.text, job.breaks
        ids, spans = encoding.ids, encoding.offsets
        for _ in layout.edges:
            at = next((e for e in layout.edges if e not in breaks and self._seam.crossed(spans, text, e)), None)
            if at is None:
                break
            breaks[:] = sorted([*breaks, at])
            ids, spans = self._seam.encode_apart(clone, _parts(text, breaks))
        split, end = first_from(spans, job.seam), first_from(spans, layout.stretches[-1].end)
        original = clone.original_ids[ids[:end]]
        ends, scored = stretch_ends(layout, spans[:end], original.tolist(), split, self._bytes)
        completion_ids = original[split:]
        if layout.end_token is not None:
            completion_ids = np.append(completion_ids, self._id_of(layout.end_token))
            ends, scored = np.append(ends, job.total), np.append(scored, True)
        ends[-1] = job.total
        return Rendered(
            self.complete_prompt(original[:split]),
            completion_ids.astype(np.int32),
            ends.astype(np.int32),
            None if scored.all() else scored,
        )

    def _end_of_turn(self, job: Job, spans: list[tuple[int, int]], split: int, content_end: int) -> int:
        """Index of the token that ends the turn; the number of tokens where the template writes none."""
        name = job.prompt.clone.names.get(self._end.control or "")
        at = job.suffix.find(name) if name else -1
        if at >= 0:
            for i in range(len(spans) - 1, split - 1, -1):
                if spans[i][0] <= content_end + at < spans[i][1]:
                    return i
        return len(spans)

    def _crossed(self, spans: Spans, text: str, breaks: list[int], start: int, end: int) -> int | None:
        """The edge of the completion that a token reaches across; None where none does."""
        if start not in breaks and self._seam.crossed(spans, text, start):
            return start
        if end < len(text) and end not in breaks and self._seam.crossed(spans, text, end):
            self.swallowed = True
            return end
        return None

    def complete_prompt(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Put first what the tokenizer itself puts first, unless it is there, be it behind white space of the template."""
        if self.prepended and not self._starts_text(ids):
            ids = np.concatenate((self.prepended, ids))
        if len(ids) == 0 and self._context_id is not None:
            ids = np.array([self._context_id])
        return ids.astype(np.int32)

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes that each token stands for."""
        return self._bytes.of(ids)

    def ends_itself(self, job: Job) -> bool:
        """Whether the token that ends the turn is added, and not found in what the template writes."""
        if job.layout is not None:
            return job.layout.end_token is not None
        name = job.prompt.clone.names.get(self._end.control or "")
        return not job.suffix or name is None or name not in job.suffix

    def _starts_text(self, ids: npt.NDArray[np.int32]) -> bool:
        """Whether the ids start with what the tokenizer puts first, be it behind white space."""
        first = self.prepended
        if ids[: len(first)].tolist() == first:
            return True
        at = np.flatnonzero(ids == first[0])[:1]
        if not len(at) or ids[at[0] : at[0] + len(first)].tolist() != first:
            return False
        return not b"".join(self._bytes.of(ids[: at[0]].tolist())).strip()


def _parts(text: str, breaks: Sequence[int]) -> list[str]:
    edges = [0, *breaks, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def prepended_ids(tokenizer: Any) -> list[int]:
    """Ids the tokenizer puts before a text of its own accord (BOS, as a rule)."""
    plain = tokenizer("x", add_special_tokens=False)["input_ids"]
    full = tokenizer("x")["input_ids"]
    for i in range(len(full) - len(plain) + 1):
        if full[i : i + len(plain)] == plain:
            return [int(token) for token in full[:i]]
    return []
