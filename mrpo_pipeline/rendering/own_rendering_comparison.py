"""Compare the first conversations of a renderer with the output of the model's own tokenizer and template.

The renderer makes many assumptions about templates and tokenizers. So the first conversations of each shape (with or without system
message, reasoning, several turns) are also rendered directly: the template's complete text, encoded by the tokenizer file of the
model. Differences that docs/rendering.md explains are counted; any other is an error.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.completion import completion_messages, completion_parts
from mrpo_pipeline.pairs.identity import Message
from mrpo_pipeline.rendering.byte_offsets import component_types
from mrpo_pipeline.rendering.chat_template import UntrustedModelError
from mrpo_pipeline.rendering.encoding_split import Job, Rendered, Splitter
from mrpo_pipeline.rendering.prompt_rendering import FROM_GENERATION_PROMPT, written_to

EACH = 3  # conversations per shape

EXACT = "exact"
CONTROL_STRINGS = "control strings in the data are text"
CONTEXT = "an empty prompt is read as one token"
BOS_FIRST = "the tokenizer's BOS, which the template does not write"
END_ADDED = "the end-of-turn token, which the template does not write"
APART = "no token crosses an edge of the completion"
NORMALIZED = "the tokenizer changes the text (normalisation, white space)"
UNKNOWN = "characters outside the vocabulary"

_REASONING = ("</think>", "[/THINK]", "◁/think▷")
# Pre-tokenizers that drop white space, which cannot be decoded.
_DROP_SPACES = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"}


class RenderingMismatchError(UntrustedModelError):
    """A conversation is rendered differently than by the model's own tokenizer and template, for no known reason."""


@dataclass
class RenderingCheck:
    """Compares renderings and counts the results.

    Attributes:
        counts: conversations by result: `exact`, or a reason for a difference; one conversation may have several.
        conversations: number compared.
    """

    name: str
    splitter: Splitter
    own: Any
    normalizes: bool
    drops_spaces: bool
    unknown: int | None
    counts: Counter[str] = field(default_factory=Counter)
    conversations: int = 0
    _seen: Counter[tuple[object, ...]] = field(default_factory=Counter)

    @classmethod
    def of(cls, tokenizer: Any, own: Any, backend: dict[str, Any], splitter: Splitter, name: str) -> RenderingCheck:
        """Args: as for ``Renderer``; `own`: tokenizer of the model's file, None for the loaded one."""
        from tokenizers import Tokenizer

        pre = set(component_types(backend["pre_tokenizer"]))
        drops = bool(pre & _DROP_SPACES) or backend["model"]["type"] in ("WordPiece", "WordLevel")
        own = own if own is not None else tokenizer.backend_tokenizer
        if backend["model"].get("dropout"):  # the encoding would be random
            own = Tokenizer.from_str(json.dumps({**backend, "model": {**backend["model"], "dropout": None}}))
        normalizes = backend["normalizer"] is not None
        return cls(name, splitter, own, normalizes, drops, tokenizer.unk_token_id)

    def due(self, job: Job, completion: str) -> bool:
        """Whether a conversation is among the first of its shape. Call it once per conversation."""
        shape: tuple[object, ...] = (*job.prompt.shape, any(mark in completion for mark in _REASONING))
        if job.layout is not None:
            parts = completion_parts(completion)
            shape = (*shape, len(job.layout.turns) > 1, *sorted({part.kind for part in parts}))
        if self._seen[shape] >= EACH:
            return False
        self._seen[shape] += 1
        return True

    def summary(self) -> str:
        """Number of conversations and results on one line."""
        results = "; ".join(f"{reason}: {count:,}" for reason, count in self.counts.most_common())
        return f"{self.conversations:,} first conversations compared with the model's own tokenizer and template: {results}"

    def compare(self, completion: str, job: Job, rendered: Rendered) -> None:
        """Compare one rendering and count the result.

        Raises:
            RenderingMismatchError: a difference has no known reason.
        """
        reasons = self._reasons(job.prompt.content, completion, job, rendered)
        self.conversations += 1
        self.counts.update(reasons or [EXACT])

    def _reasons(self, prompt: str | list[Message], completion: str, job: Job, rendered: Rendered) -> list[str]:
        reasons = [] if job.prompt.written is None else list(job.prompt.written.reasons)
        if job.layout is not None:  # the beginning was chosen for this completion
            reasons = [reason for reason in reasons if reason != FROM_GENERATION_PROMPT] + [
                FROM_GENERATION_PROMPT
            ] * job.layout.from_generation_prompt
        ours = [*rendered.prompt_ids.tolist(), *rendered.completion_ids.tolist()]
        read = job.prompt.escaped.original(job.prefix + job.content + job.suffix)
        if not reasons:
            plain = _plain(job, prompt, completion)
            if read != plain:
                raise self._mismatch("the text is not the template's output", [read], [plain])
        if not isinstance(prompt, str):
            self._check_generation_prompt(job, prompt, read, reasons)
        first = self.splitter.prepended
        own = self.own.encode(read, add_special_tokens=False).ids
        if not job.prefix and not first:
            ours = ours[1:]
            reasons.append(CONTEXT)
        if first and ours[: len(first)] == first and own[: len(first)] != first:
            ours = ours[len(first) :]
            reasons.append(BOS_FIRST)
        if first and ours[: 2 * len(first)] == first * 2:
            raise self._mismatch(
                f"it starts with {self._strings(first)} twice", self._strings(ours[:8]), self._strings(own[:8])
            )
        if job.controls:
            return [*reasons, CONTROL_STRINGS]
        reasons += self._ids_differ(job, ours, own)
        return reasons + self._unread(job, rendered)

    def _check_generation_prompt(self, job: Job, prompt: list[Message], read: str, reasons: Sequence[str]) -> None:
        """Up to the last user text, the rendering must equal the generation prompt."""
        try:
            generation_prompt = job.prompt.escaped.unmask(job.prompt.template.generation_prompt(prompt))
        except UserError:  # the template has no generation prompt
            return
        end = written_to(generation_prompt, prompt)
        if end is not None and not reasons and not read.startswith(generation_prompt[:end]):
            raise self._mismatch(
                "its generation prompt differs before the end of the last user text", [read], [generation_prompt[:end]]
            )

    def _ids_differ(self, job: Job, ours: list[int], own: list[int]) -> list[str]:
        if own[: len(ours)] == ours:
            return []
        if own[: len(ours) - 1] == ours[:-1] and self.splitter.ends_itself(job):
            return [END_ADDED]
        if job.breaks:
            kept = own[: max(len(ours) + 64, 0)]
            # A run of unknown characters is one or several tokens, depending on where it is split.
            text, theirs = (self._text([i for i in ids if i != self.unknown]) for ids in (ours[:-1], kept))
            if _squeezed(theirs).startswith(_squeezed(text)):
                return [APART, *([END_ADDED] if self.splitter.ends_itself(job) else [])]
        at = _first_difference(ours, own)
        a, b = (self._strings(ids[max(at - 4, 0) : at + 8]) for ids in (ours, own))
        raise self._mismatch(f"token {at} differs", a, b)

    def _unread(self, job: Job, rendered: Rendered) -> list[str]:
        """Reasons why the content's tokens do not decode to its text."""
        if job.layout is not None:
            parts = [part.text for turn in job.layout.turns for part in turn.parts]
            return list(dict.fromkeys(one for part in parts for one in self._unread_in(part, rendered)))
        return self._unread_in(job.content, rendered)

    def _unread_in(self, content: str, rendered: Rendered) -> list[str]:
        ids = rendered.completion_ids[:-1].tolist()
        text = self._text(ids)
        if self.unknown is not None and self.unknown in ids:
            return [UNKNOWN]
        if content.strip(" ") in text or content.strip() == text.strip():
            return []
        if self.normalizes or self.drops_spaces or "▁" in content:
            return [NORMALIZED]
        raise self._mismatch("its tokens do not decode to the text", [content], [text])

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.own.decode(list(ids), skip_special_tokens=False))

    def _strings(self, ids: Sequence[int]) -> list[str]:
        return [f"{self.own.id_to_token(i)!r} ({i})" for i in ids]

    def _mismatch(self, what: str, ours: Sequence[str], theirs: Sequence[str]) -> RenderingMismatchError:
        return RenderingMismatchError(
            f"{self.name}: the rendering differs from the model's own tokenizer and template: {what}. Such log-probs may be wrong, so "
            "the run stops. Set the model's own tokenizer (`tokenizer:`) or another template (`template:`, a Jinja file or `plain`), "
            "and inspect it with `mrpo render`.\n" + "\n".join(_side_by_side(ours, theirs))
        )


def _plain(job: Job, prompt: str | list[Message], completion: str) -> str:
    """The conversation rendered directly by the template."""
    if isinstance(prompt, str):
        return prompt + completion
    # Tools and template arguments with control strings are masked.
    return job.prompt.escaped.unmask(job.prompt.template.render([*prompt, *completion_messages(completion)]))


def _squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _side_by_side(ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """Two texts around their first difference, or two lists of tokens."""
    if len(ours) == len(theirs) == 1:
        at = _first_difference(ours[0], theirs[0])
        ours, theirs = ([repr(text[max(at - 40, 0) : at + 80])] for text in (ours[0], theirs[0]))
    return ["  rendered here:  " + " ".join(ours), "  by its files:   " + " ".join(theirs)]


def _first_difference(one: Sequence[object], other: Sequence[object]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
