"""From a prompt and a completion to the ids a model reads: the one place where text becomes tokens."""

import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.files import refuse_gguf
from mrpo_pipeline.pairs.identity import parse_prompt
from mrpo_pipeline.rendering.boundary import Seam, first_from
from mrpo_pipeline.rendering.byte_offsets import TokenBytes, byte_ends
from mrpo_pipeline.rendering.escaped_tokenizer import CloneSet, PrivateClone, control_tokens, role_markers, text_pieces
from mrpo_pipeline.rendering.templates import (
    TEMPLATE_DATE,
    ChatTemplate,
    Frame,
    Message,
    UnboundedTemplateError,
    uses_date,
)
from mrpo_pipeline.rendering.tokenizer_source import load_tokenizer

# Goes into the identity: raise it when a change here gives other ids for the same text.
RULES = "1"
_BATCH = 256  # texts encoded at a time; their offsets take far more memory than their ids
_FRAMES_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Rendered:
    """A completion as one model reads it.

    Attributes:
        prompt_ids: (P,) int32, P >= 1: what stands before the content; nothing of it is scored.
        completion_ids: (T,) int32, T >= 1: the content's tokens, and the end-of-turn token last.
        byte_ends: (T,) int32, never decreasing: end of each token in the UTF-8 bytes of the completion as given; the
            end-of-turn token's is their number.
    """

    prompt_ids: npt.NDArray[np.int32]
    completion_ids: npt.NDArray[np.int32]
    byte_ends: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt made ready once for all its completions. `messages` is None for raw text."""

    clone: PrivateClone
    messages: list[Message] | None  # control strings masked
    frame: Frame  # as the template writes it
    prefix: str  # renamed, as it is encoded
    suffix: str  # renamed
    seam: int  # where in `prefix` the model's own writing starts


@dataclass(frozen=True, slots=True)
class _Job:
    """One text to encode: `prefix + content + suffix`, all of it renamed."""

    prompt: _Prompt
    prefix: str
    content: str
    suffix: str
    seam: int  # where in the prefix the prompt ends
    lead: int  # bytes of the completion before the content: white space the template trimmed
    total: int  # bytes of the completion as given


class Renderer:
    """Renders conversations for one model, through its own tokenizer and chat template.

    The content is located in the full rendering; what stands before it is the prompt (but for spaces between the
    generation prompt and the content, which the model writes itself), and the first control token behind it ends the
    turn (the tokenizer's `eos_token` where the template writes none). Control strings in the data are encoded as text.
    A prompt without any token, which only raw text can give, becomes the BOS or else the EOS token.

    Args:
        tokenizer: a Hugging Face fast tokenizer; not changed.
        template: `auto` (the tokenizer's own, or PLAIN_TEMPLATE), `plain`, or the path of a Jinja file.
        name: what to call the model in messages.
    Raises:
        UserError: the tokenizer is not a fast one, has no end token, or the template fails.
    """

    def __init__(self, tokenizer: Any, *, template: str = "auto", name: str = "") -> None:
        self.name = name or getattr(tokenizer, "name_or_path", "") or "the model"
        self.notices: list[str] = []
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"The tokenizer of {self.name} ({type(tokenizer).__name__}) has no fast form (`tokenizer.json`), and "
                "rendering needs one to tell where each token ends in the text: give a fast tokenizer for this model "
                "(`tokenizer:`), for instance one saved by `convert_slow_tokenizer`."
            )
        self._template = ChatTemplate(tokenizer, template, self.name)
        self.reading: list[str] = []
        """How the model reads conversations where that is not by its own tokenizer and template: for a user to know."""
        if self._template.is_plain:
            why = "" if template == "plain" else ", as its tokenizer has no chat template"
            self.reading.append(f"conversations are read by the plain template{why}")
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        scaffold = ""
        with contextlib.suppress(UserError):  # a template for one turn only has no scaffold between turns
            scaffold = self._template.scaffold()
        written = f"{scaffold} {tokenizer.bos_token} {tokenizer.eos_token}"
        controls = control_tokens(backend, tokenizer.all_special_tokens, written)
        controls |= role_markers(backend, scaffold)
        self._clones = CloneSet(backend, controls)
        self._bytes = TokenBytes(backend, tokenizer.backend_tokenizer)
        self._seam = Seam(backend)
        self._eos_id: int | None = tokenizer.eos_token_id
        self._prepended = _prepended_ids(tokenizer)
        self.bos = str(tokenizer.bos_token or "")
        self._context_id = next((i for i in (tokenizer.bos_token_id, self._eos_id) if i is not None), None)
        self._frames: OrderedDict[tuple[str, str], _Prompt] = OrderedDict()
        self._identity = self._describe(tokenizer, backend)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        revision: str | None = None,
        tokenizer: str | None = None,
        adapter: str | None = None,
        template: str = "auto",
        trust_remote_code: bool = False,
        name: str = "",
    ) -> "Renderer":
        """Renderer of a model folder or hub name; `tokenizer` names another place for the tokenizer alone, and `adapter` what
        may bring one (see `load_tokenizer`).

        `revision` is the model's; it holds for its own tokenizer only.
        """
        refuse_gguf(name or model, tokenizer or model)
        loaded, notices = load_tokenizer(
            model,
            revision=revision,
            tokenizer=tokenizer,
            adapter=adapter,
            trust_remote_code=trust_remote_code,
            name=name,
        )
        renderer = cls(loaded, template=template, name=name or model)
        if template == "auto":
            renderer.reading += notices
        return renderer

    def render(self, items: Sequence[tuple[str, str]]) -> list[Rendered]:
        """Render (canonical prompt, completion) pairs; completions of one prompt are cheapest side by side."""
        rendered: list[Rendered] = []
        for start in range(0, len(items), _BATCH):
            jobs = [self._job(prompt, completion) for prompt, completion in items[start : start + _BATCH]]
            texts = [job.prefix + job.content + job.suffix for job in jobs]
            encodings = _encode_in_order([job.prompt.clone for job in jobs], texts)
            rendered += [self._cut_out(job, encoding) for job, encoding in zip(jobs, encodings, strict=True)]
        return rendered

    def render_each(self, items: Sequence[tuple[str, str]]) -> list[Rendered | UserError]:
        """As ``render``; in the place of an item that cannot be rendered stands what is wrong with it."""
        try:
            return list(self.render(items))
        except UnboundedTemplateError:
            raise
        except UserError as error:
            if len(items) == 1:
                return [error]
        # By halves: of many items few are such, and the rest costs what it costs.
        middle = len(items) // 2
        return [*self.render_each(items[:middle]), *self.render_each(items[middle:])]

    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each canonical prompt, with what the template writes before an answer.

        Raw text that ends in white space may come to a token more or less in front of a completion, since some
        vocabularies part white space by what follows it.
        """
        lengths: list[int] = []
        for start in range(0, len(prompts), _BATCH):
            made = [self._prompt(prompt, "") for prompt in prompts[start : start + _BATCH]]
            encodings = _encode_in_order([p.clone for p in made], [p.prefix[: p.seam] for p in made])
            for prompt, encoding in zip(made, encodings, strict=True):
                lengths.append(len(self._complete_prompt(prompt.clone.original_ids[encoding.ids])))
        return lengths

    def control_strings(self, text: str) -> list[str]:
        """Control tokens of this tokenizer that stand in the text, each once, in order of appearance."""
        return self._clones.control_strings(text)

    def round_user_message(self) -> tuple[str, str]:
        """What the template writes before and after a single user's message when an answer is asked for, without BOS.

        Both empty for the plain template. Raises UserError: the template does not write the message once.
        """
        if self._template.is_plain:
            return "", ""
        mark = "qZquestionX7"
        parts = self._template.generation_prompt([{"role": "user", "content": mark}]).split(mark)
        if len(parts) != 2:
            raise UserError(f"{self._template.name} writes a user's message {len(parts) - 1} times; expected once.")
        return parts[0].removeprefix(self.bos), parts[1]

    @property
    def thinks_first(self) -> bool:
        """Whether the template's generation prompt is not what it writes before an answer: a block of thinking, open or empty."""
        return self._template.thinks_first()

    def identity(self) -> dict[str, str]:
        """What decides the ids, as fields of a fingerprint.

        `tokenizer` and `template` are hashes (SHA-256, 32 hex digits); `end_of_turn` is the token that ends an answer
        in a chat, `end_of_text` one after raw text; `prepended` the tokens put first; `template_date` the date told to
        a template that asks for it.
        """
        return dict(self._identity)

    def _describe(self, tokenizer: Any, backend: dict[str, Any]) -> dict[str, str]:
        probe = json.dumps([{"role": "user", "content": "question"}])
        kept = {key: value for key, value in backend.items() if key not in _NOT_IDS}
        named = {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items()) if k in self._template.text}
        text = text_pieces(backend, self._clones.controls)
        end = int(self.render([(probe, "answer")])[0].completion_ids[-1])
        return {
            "tokenizer": _hash([kept, self._clones.controls, *([text] if text else [])]),
            "template": ("plain:" if self._template.is_plain else "") + _hash([self._template.text, named]),
            "template_date": TEMPLATE_DATE if uses_date(self._template.text) else "",
            "end_of_turn": tokenizer.convert_ids_to_tokens(end),
            "end_of_text": str(tokenizer.eos_token or ""),
            "prepended": " ".join(tokenizer.convert_ids_to_tokens(self._prepended)),
            "rendering": RULES,
        }

    def _prompt(self, prompt: str, completion: str) -> _Prompt:
        """The prompt made ready, from memory where it can be."""
        clone = self._clones.clone_for(prompt, completion)
        key = (prompt, clone.seam)
        if key in self._frames:
            self._frames.move_to_end(key)
            return self._frames[key]
        made = self._make_prompt(clone, parse_prompt(prompt))
        self._frames[key] = made
        if len(self._frames) > _FRAMES_KEPT:
            self._frames.popitem(last=False)
        return made

    def _make_prompt(self, clone: PrivateClone, prompt: str | list[Message]) -> _Prompt:
        if isinstance(prompt, str):
            return _Prompt(clone, None, Frame(prompt, ""), prompt, "", len(prompt))
        messages = [{"role": m["role"], "content": self._masked(clone, m["content"])} for m in prompt]
        if messages and messages[0]["role"] == "system" and self._template.system_fault:
            messages = self._template.merge_system(messages)
            notice = (
                f"{self._template.name} takes no system message (it {self._template.system_fault}): system messages "
                "are merged into the first user message."
            )
            if notice not in self.notices:
                self.notices.append(notice)
        frame = self._template.frame(messages)
        prefix, suffix = clone.rename(frame.prefix), clone.rename(frame.suffix)
        return _Prompt(clone, messages, frame, prefix, suffix, self._written_from(clone, messages, prefix))

    def _masked(self, clone: PrivateClone, content: str) -> str:
        return clone.mask(content) if self._clones.holds_control(content) else content

    def _job(self, prompt_text: str, completion: str) -> _Job:
        prompt = self._prompt(prompt_text, completion)
        total = len(completion.encode())
        if prompt.messages is None:
            return _Job(prompt, prompt.prefix, completion, "", prompt.seam, 0, total)
        clone = prompt.clone
        masked = self._masked(clone, completion)
        found = self._template.locate(prompt.messages, masked, prompt.frame)
        prefix, seam = prompt.prefix, prompt.seam
        if found.prefix != prompt.frame.prefix:
            prefix = clone.rename(found.prefix)
            seam = len(prefix)
        content = clone.unmask(found.content) if masked is not completion else found.content
        return _Job(prompt, prefix, content, prompt.suffix, seam, len(masked[: found.start].encode()), total)

    def _cut_out(self, job: _Job, encoding: Any) -> Rendered:
        """Prompt and completion out of the encoding of the whole text."""
        clone, content = job.prompt.clone, job.content
        ids, spans = encoding.ids, encoding.offsets
        split, content_start = first_from(spans, job.seam), len(job.prefix)
        before, after = job.prefix[: job.seam], job.prefix[job.seam :] + content + job.suffix
        if content and self._seam.crossed(spans, split, before, after):
            prompt_ids, ids, spans, start = self._seam.encode_apart(clone, before, after)
            split, content_start = len(prompt_ids), start + len(job.prefix) - job.seam
            ids = prompt_ids + ids
            spans = [(0, 0)] * split + spans

        content_end = content_start + len(content)
        end = self._end_of_turn(job, spans, split, content_end)
        last = split + first_from(spans[split:end], content_end)
        original = clone.original_ids[ids[:end]] if end else np.zeros(0, dtype=np.int32)
        if last == split and content.strip():
            raise UserError(
                f"The tokenizer of {self.name} makes no token at all of the completion {content[:60]!r}: expected one whose vocabulary "
                "covers the text. Give the model's own (`tokenizer:`)."
            )
        pieces = self._bytes.of(original[split:last].tolist())
        inner = job.lead + byte_ends(content, spans[split:last], content_start, pieces, job.total - job.lead)

        if end < len(ids) and job.suffix:
            end_id = int(clone.original_ids[ids[end]])
        elif self._eos_id is not None:
            end_id, end = self._eos_id, last  # what the template wrote after the content is no part of the turn
        else:
            raise UserError(
                f"{self._template.name} writes no control token after an answer, and the tokenizer has no `eos_token` "
                "to end it with: give a tokenizer that names one (`tokenizer:`), or another template (`template:`)."
            )
        completion_ids = np.append(original[split:end], end_id).astype(np.int32)
        ends = np.full(len(completion_ids), job.total, dtype=np.int32)
        ends[: len(inner)] = inner
        return Rendered(self._complete_prompt(original[:split]), completion_ids, ends)

    def _end_of_turn(self, job: _Job, spans: list[tuple[int, int]], split: int, content_end: int) -> int:
        """Index of the first control token after the content; the number of tokens where there is none."""
        at = job.prompt.clone.first_control(job.suffix)
        if at is not None:
            for i in range(len(spans) - 1, split - 1, -1):
                if spans[i][0] <= content_end + at < spans[i][1]:
                    return i
        return len(spans)

    def _written_from(self, clone: PrivateClone, messages: list[Message], prefix: str) -> int:
        """Where in the prefix the prompt ends: behind the generation prompt if nothing but spaces follows it.

        Llama-2's template writes a space between `[/INST]` and the answer. The model is asked to go on after
        `[/INST]`, and what it writes first is the token of that space and its first word: TRL parts them there as well.
        """
        if not prefix.endswith(" "):
            return len(prefix)
        try:
            given = clone.rename(self._template.generation_prompt(messages))
        except UserError:  # a template may refuse to go on without an answer
            return len(prefix)
        spaces_follow = prefix.startswith(given) and not prefix[len(given) :].strip(" ")
        return len(given) if spaces_follow else len(prefix)

    def _complete_prompt(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Put first what the tokenizer itself puts first, unless it is there."""
        if self._prepended and ids[: len(self._prepended)].tolist() != self._prepended:
            ids = np.concatenate((self._prepended, ids))
        if len(ids) == 0 and self._context_id is not None:
            ids = np.array([self._context_id])
        return ids.astype(np.int32)


# Parts of a tokenizer's JSON that do not change how text becomes ids here.
_NOT_IDS = ("version", "truncation", "padding", "post_processor", "decoder")


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _encode_in_order(clones: Sequence[PrivateClone], texts: Sequence[str]) -> list[Any]:
    """Encodings of the texts, each by its own clone."""
    encodings: list[Any] = [None] * len(texts)
    for clone in {id(clone): clone for clone in clones}.values():
        chosen = [i for i, other in enumerate(clones) if other is clone]
        batch = clone.backend.encode_batch([texts[i] for i in chosen], add_special_tokens=False)
        for i, encoding in zip(chosen, batch, strict=True):
            encodings[i] = encoding
    return encodings


def _prepended_ids(tokenizer: Any) -> list[int]:
    """Ids the tokenizer puts before a text of its own accord (BOS, as a rule)."""
    plain = tokenizer("x", add_special_tokens=False)["input_ids"]
    full = tokenizer("x")["input_ids"]
    for i in range(len(full) - len(plain) + 1):
        if full[i : i + len(plain)] == plain:
            return [int(token) for token in full[:i]]
    return []
