"""A renderer's first conversations compared with the model's own tokenizer and template, before it is trusted.

What a template or a tokenizer does is assumed in many places. So the first conversations of each shape (with a system message or
not, one turn or several, with reasoning or not) are rendered a second time, the plain way: the template's complete text, encoded by
the tokenizer of the model's own file. A difference is counted where docs/rendering.md gives its reason; any other is an error.
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
from mrpo_pipeline.rendering.prompt_frame import AS_ASKED, written_to
from mrpo_pipeline.rendering.split import Job, Rendered, Splitter
from mrpo_pipeline.rendering.templates import UntrustedModelError

EACH = 3  # conversations of a shape

EXACT = "exact"
CONTROL_STRINGS = "control strings in the data are text"
CONTEXT = "a prompt without text is read as one token"
BOS_FIRST = "the tokenizer's first token, which the template does not write"
END_ADDED = "the end of the turn, which the template does not write"
APART = "no token reaches across an edge of the completion"
NORMALIZED = "the tokenizer changes the text (normalisation, white space)"
UNKNOWN = "characters outside the vocabulary"

_REASONING = ("</think>", "[/THINK]", "◁/think▷")
# Pre-tokenizers that drop white space: tokens do not give it back.
_DROP_SPACES = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"}


class RenderingMismatchError(UntrustedModelError):
    """A conversation is read in another way than the model's own tokenizer and template give, for no known reason."""


@dataclass
class Proof:
    """What was compared, and with what result.

    Attributes:
        counts: conversations by result: `exact`, or a reason why they differ; one may have several.
        conversations: how many were compared.
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
    def of(cls, tokenizer: Any, own: Any, backend: dict[str, Any], splitter: Splitter, name: str) -> Proof:
        """Args: as of ``Renderer``; `own` the tokenizer of the model's file, None for the one that was loaded."""
        from tokenizers import Tokenizer

        pre = set(component_types(backend["pre_tokenizer"]))
        drops = bool(pre & _DROP_SPACES) or backend["model"]["type"] in ("WordPiece", "WordLevel")
        own = own if own is not None else tokenizer.backend_tokenizer
        if backend["model"].get("dropout"):  # it would read one text in many ways
            own = Tokenizer.from_str(json.dumps({**backend, "model": {**backend["model"], "dropout": None}}))
        normalizes = backend["normalizer"] is not None
        return cls(name, splitter, own, normalizes, drops, tokenizer.unk_token_id)

    def due(self, job: Job, completion: str) -> bool:
        """Whether a conversation is among the first of its shape; asked once for each."""
        shape: tuple[object, ...] = (*job.prompt.shape, any(mark in completion for mark in _REASONING))
        if job.layout is not None:
            parts = completion_parts(completion)
            shape = (*shape, len(job.layout.stretches) > 1, *sorted({part.kind for part in parts}))
        if self._seen[shape] >= EACH:
            return False
        self._seen[shape] += 1
        return True

    def summary(self) -> str:
        """One line: how many conversations, and with what result."""
        found = "; ".join(f"{reason}: {count:,}" for reason, count in self.counts.most_common())
        return (
            f"{self.conversations:,} first conversations compared with the model's own tokenizer and template: {found}"
        )

    def check(self, completion: str, job: Job, rendered: Rendered) -> None:
        """Compare one rendering; its reasons are counted.

        Raises:
            RenderingMismatchError: for a difference without a known reason.
        """
        reasons = self._reasons(job.prompt.content, completion, job, rendered)
        self.conversations += 1
        self.counts.update(reasons or [EXACT])

    def _reasons(self, prompt: str | list[Message], completion: str, job: Job, rendered: Rendered) -> list[str]:
        reasons = [] if job.prompt.written is None else list(job.prompt.written.reasons)
        if job.layout is not None:  # what its head is was decided for this completion
            reasons = [reason for reason in reasons if reason != AS_ASKED] + [AS_ASKED] * job.layout.asked
        ours = [*rendered.prompt_ids.tolist(), *rendered.completion_ids.tolist()]
        read = job.prompt.clone.original(job.prefix + job.content + job.suffix)
        if not reasons:
            plain = _plain(job, prompt, completion)
            if read != plain:
                raise self._mismatch("the text is not what its template writes", [read], [plain])
        if not isinstance(prompt, str):
            self._check_asked(job, prompt, read, reasons)
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

    def _check_asked(self, job: Job, prompt: list[Message], read: str, reasons: Sequence[str]) -> None:
        """What the model is given to answer to is what is read, up to the last user's text."""
        try:
            asked = job.prompt.clone.unmask(job.prompt.template.generation_prompt(prompt))
        except UserError:  # it does not write one
            return
        end = written_to(asked, prompt)
        if end is not None and not reasons and not read.startswith(asked[:end]):
            what = "its generation prompt is another text up to the last user's"
            raise self._mismatch(what, [read], [asked[:end]])

    def _ids_differ(self, job: Job, ours: list[int], own: list[int]) -> list[str]:
        if own[: len(ours)] == ours:
            return []
        if own[: len(ours) - 1] == ours[:-1] and self.splitter.ends_itself(job):
            return [END_ADDED]
        if job.breaks:
            kept = own[: max(len(ours) + 64, 0)]
            # A run of unknown characters is one token or several, by where it is parted.
            text, theirs = (self._text([i for i in ids if i != self.unknown]) for ids in (ours[:-1], kept))
            if _squeezed(theirs).startswith(_squeezed(text)):
                return [APART, *([END_ADDED] if self.splitter.ends_itself(job) else [])]
        at = next((i for i, (a, b) in enumerate(zip(ours, own, strict=False)) if a != b), min(len(ours), len(own)))
        a, b = (self._strings(ids[max(at - 4, 0) : at + 8]) for ids in (ours, own))
        raise self._mismatch(f"token {at} is another", a, b)

    def _unread(self, job: Job, rendered: Rendered) -> list[str]:
        """Whether the content's tokens give its text back."""
        if job.layout is not None:
            parts = [part.text for stretch in job.layout.stretches for part in stretch.parts]
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
        raise self._mismatch("its tokens do not give the text back", [content], [text])

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.own.decode(list(ids), skip_special_tokens=False))

    def _strings(self, ids: Sequence[int]) -> list[str]:
        return [f"{self.own.id_to_token(i)!r} ({i})" for i in ids]

    def _mismatch(self, what: str, ours: Sequence[str], theirs: Sequence[str]) -> RenderingMismatchError:
        return RenderingMismatchError(
            f"{self.name} is not read as its own tokenizer and template read it: {what}. Expected the same, or a difference that "
            "docs/rendering.md explains; the run stops before numbers are computed that may be wrong. Give the model's own tokenizer "
            "(`tokenizer:`) or another template (`template:`, a Jinja file or `plain`), and look with `mrpo render`.\n"
            + "\n".join(_side_by_side(ours, theirs))
        )


def _plain(job: Job, prompt: str | list[Message], completion: str) -> str:
    """What is read, rendered the plain way."""
    if isinstance(prompt, str):
        return prompt + completion
    # Tools and arguments of the prompt are masked where they hold control strings.
    return job.prompt.clone.unmask(job.prompt.template.whole([*prompt, *completion_messages(completion)]))


def _squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _side_by_side(ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """Two texts from a little before they part, or two lists of tokens."""
    if len(ours) == len(theirs) == 1:
        one, other = ours[0], theirs[0]
        at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        ours, theirs = ([repr(text[max(at - 40, 0) : at + 80])] for text in (one, other))
    return ["  read here:     " + " ".join(ours), "  by its files:  " + " ".join(theirs)]
