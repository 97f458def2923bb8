"""Split the encoding of a complete conversation into prompt and completion."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import Message
from mrpo_pipeline.rendering.assistant_turns import TurnLayout, turn_byte_ends
from mrpo_pipeline.rendering.byte_offsets import TokenBytes, byte_ends
from mrpo_pipeline.rendering.chat_template import ChatTemplate
from mrpo_pipeline.rendering.end_of_turn import TurnEnd, no_end_token
from mrpo_pipeline.rendering.escaped_tokenizer import EscapedTokenizer
from mrpo_pipeline.rendering.prompt_rendering import PromptFrame
from mrpo_pipeline.rendering.token_boundary import Spans, TokenBoundary, first_from


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt and completion as one model reads them.

    Attributes:
        prompt_ids: (P,) int32, P >= 1: tokens before the content, not scored.
        completion_ids: (T,) int32, T >= 1: tokens of the content, followed by the end-of-turn token.
        byte_ends: (T,) int32, non-decreasing: end of each token in the UTF-8 bytes of the completion's canonical text
            (``pairs.completion``); the end-of-turn token ends at the number of these bytes.
        scored: (T,) bool: False for context between assistant messages; None: all are scored.
    """

    prompt_ids: npt.NDArray[np.int32]
    completion_ids: npt.NDArray[np.int32]
    byte_ends: npt.NDArray[np.int32]
    scored: npt.NDArray[np.bool_] | None = None

    @property
    def scored_ids(self) -> npt.NDArray[np.int32]:
        """(S,) int32: scored tokens."""
        return self.completion_ids if self.scored is None else self.completion_ids[self.scored]

    @property
    def scored_ends(self) -> npt.NDArray[np.int32]:
        """(S,) int32: byte ends of the scored tokens."""
        return self.byte_ends if self.scored is None else self.byte_ends[self.scored]

    def scored_within(self, length: int) -> int:
        """Number of scored tokens in the first `length` tokens of the completion."""
        if self.scored is None:
            return min(max(length, 0), len(self.completion_ids))
        return int(self.scored[: max(length, 0)].sum())

    def beginning(self, count: int) -> Rendered:
        """Truncate after the first `count` scored tokens; context between them is kept."""
        if self.scored is None:
            return Rendered(self.prompt_ids, self.completion_ids[:count], self.byte_ends[:count])
        length = int(np.flatnonzero(self.scored)[count - 1]) + 1 if count else 0
        scored = self.scored[:length]
        kept = None if scored.all() else scored
        return Rendered(self.prompt_ids, self.completion_ids[:length], self.byte_ends[:length], kept)


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A rendered prompt, shared by all its completions."""

    escaped: EscapedTokenizer
    content: str | list[Message]  # unchanged
    written: PromptFrame | None  # rendering with masked control strings; None for raw text
    prefix: str  # escaped
    suffix: str  # escaped
    prompt_end: int  # index in `prefix` at which the model's own output starts
    shape: tuple[bool, ...]  # raw text, system message, several turns, tools, structured messages
    controls: bool  # whether it contains control strings
    template: ChatTemplate  # with the settings of this prompt


@dataclass(frozen=True, slots=True)
class Job:
    """One text to encode: `prefix + content + suffix`, escaped."""

    prompt: PreparedPrompt
    prefix: str
    content: str
    suffix: str
    prompt_end: int  # index in the prefix at which the prompt ends
    lead: int  # bytes of white space that the template trimmed before the content
    total: int  # bytes of the completion
    controls: bool = False  # whether the data contains control strings
    layout: TurnLayout | None = None  # for a completion that is not plain text
    breaks: list[int] = field(default_factory=list)  # positions at which the encoding was split, set by `Splitter`


class Splitter:
    """Splits the encodings of one model.

    Args:
        tokenizer: HF tokenizer; not changed.
        backend: its JSON, decoded.
        end: end of a turn.
        name: name of the model in messages.
        template: name of its template.
    """

    def __init__(self, tokenizer: Any, backend: dict[str, Any], end: TurnEnd, name: str, template: str) -> None:
        self._name, self._template_name, self._end = name, template, end
        self._bytes = TokenBytes(backend, tokenizer.backend_tokenizer)
        self._boundary = TokenBoundary(backend)
        self._end_id: int | None = tokenizer.convert_tokens_to_ids(end.token) if end.token else None
        self._eos_id: int | None = tokenizer.eos_token_id
        self._id_of = tokenizer.convert_tokens_to_ids
        self.prepended = prepended_ids(tokenizer)
        self._context_id = next((i for i in (tokenizer.bos_token_id, self._eos_id) if i is not None), None)
        self.crossed_end = False  # whether a token ever crossed the end of a content

    def split(self, job: Job, encoding: Any) -> Rendered:
        """Split the encoding of the complete text into prompt and completion."""
        if job.layout is not None:
            return self._split_layout(job, job.layout, encoding)
        escaped, content = job.prompt.escaped, job.content
        ids, spans = encoding.ids, encoding.offsets
        content_start = len(job.prefix)
        content_end = content_start + len(content)
        text = job.prefix + content + job.suffix
        breaks = job.breaks
        # No token may cross the start of the completion or the end of its content.
        while content and (at := self._crossed(spans, text, breaks, job.prompt_end, content_end)) is not None:
            breaks[:] = sorted([*breaks, at])
            ids, spans = self._boundary.encode_apart(escaped, _parts(text, breaks))
        split = first_from(spans, job.prompt_end)
        end = self._end_of_turn(job, spans, split, content_end)
        last = split + first_from(spans[split:end], content_end)
        original = escaped.original_ids[ids[:end]] if end else np.zeros(0, dtype=np.int32)
        if last == split and content.strip():
            raise UserError(
                f"The tokenizer of {self._name} encodes the completion {content[:60]!r} to no tokens; expected a vocabulary that covers "
                "the text. Set the model's own tokenizer (`tokenizer:`)."
            )
        pieces = self._bytes.of(original[split:last].tolist())
        inner = job.lead + byte_ends(content, spans[split:last], content_start, pieces, job.total - job.lead)

        if end == len(ids) or not job.suffix:  # the template's output after the content is not part of the turn
            end = last
        end_id = self._eos_id if job.prompt.written is None else self._end_id
        if end_id is None:
            raise UserError(no_end_token(self._template_name))
        completion_ids = np.append(original[split:end], end_id).astype(np.int32)
        ends = np.full(len(completion_ids), job.total, dtype=np.int32)
        ends[: len(inner)] = inner
        return Rendered(self.complete_prompt(original[:split]), completion_ids, ends)

    def _split_layout(self, job: Job, layout: TurnLayout, encoding: Any) -> Rendered:
        """Split a completion with reasoning, tool calls or several messages."""
        escaped, text, breaks = job.prompt.escaped, layout.text, job.breaks
        ids, spans = encoding.ids, encoding.offsets
        for _ in layout.edges:
            at = next((e for e in layout.edges if e not in breaks and self._boundary.crossed(spans, text, e)), None)
            if at is None:
                break
            breaks[:] = sorted([*breaks, at])
            ids, spans = self._boundary.encode_apart(escaped, _parts(text, breaks))
        split, end = first_from(spans, job.prompt_end), first_from(spans, layout.turns[-1].end)
        original = escaped.original_ids[ids[:end]]
        ends, scored = turn_byte_ends(layout, spans[:end], original.tolist(), split, self._bytes)
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
        """Index of the token that ends the turn; the number of tokens if there is none."""
        name = job.prompt.escaped.names.get(self._end.control or "")
        at = job.suffix.find(name) if name else -1
        if at >= 0:
            for i in range(len(spans) - 1, split - 1, -1):
                if spans[i][0] <= content_end + at < spans[i][1]:
                    return i
        return len(spans)

    def _crossed(self, spans: Spans, text: str, breaks: list[int], start: int, end: int) -> int | None:
        """Edge of the completion that a token crosses, or None."""
        if start not in breaks and self._boundary.crossed(spans, text, start):
            return start
        if end < len(text) and end not in breaks and self._boundary.crossed(spans, text, end):
            self.crossed_end = True
            return end
        return None

    def complete_prompt(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Prepend the tokenizer's own first tokens, unless the prompt has them, possibly after white space of the template."""
        if self.prepended and not self._starts_text(ids):
            ids = np.concatenate((self.prepended, ids))
        if len(ids) == 0 and self._context_id is not None:
            ids = np.array([self._context_id])
        return ids.astype(np.int32)

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """Bytes of each token."""
        return self._bytes.of(ids)

    def ends_itself(self, job: Job) -> bool:
        """Whether the end-of-turn token is added rather than written by the template."""
        if job.layout is not None:
            return job.layout.end_token is not None
        name = job.prompt.escaped.names.get(self._end.control or "")
        return not job.suffix or name is None or name not in job.suffix

    def _starts_text(self, ids: npt.NDArray[np.int32]) -> bool:
        """Whether the ids start with the tokenizer's own first tokens, possibly after white space."""
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
    """Ids that the tokenizer prepends to a text, usually BOS."""
    plain = tokenizer("x", add_special_tokens=False)["input_ids"]
    full = tokenizer("x")["input_ids"]
    for i in range(len(full) - len(plain) + 1):
        if full[i : i + len(plain)] == plain:
            return [int(token) for token in full[:i]]
    return []
