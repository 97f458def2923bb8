"""Prompt and completion to token ids: the only place where text becomes tokens."""

import contextlib
import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.files import refuse_gguf
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.rendering.chat_template import ChatTemplate, UntrustedModelError
from mrpo_pipeline.rendering.encoding_preparation import JobBuilder
from mrpo_pipeline.rendering.encoding_split import Rendered, Splitter
from mrpo_pipeline.rendering.end_of_turn import find_turn_end
from mrpo_pipeline.rendering.escaped_tokenizer import (
    EscapedTokenizer,
    EscapedTokenizers,
    control_tokens,
    role_markers,
    text_pieces,
)
from mrpo_pipeline.rendering.identity import identity
from mrpo_pipeline.rendering.own_rendering_comparison import RenderingCheck
from mrpo_pipeline.rendering.renderer_cache import KnownRenderer, find, keep, key_of, place_of
from mrpo_pipeline.rendering.tokenizer import LoadedTokenizer, with_model_files
from mrpo_pipeline.rendering.tokenizer_source import load_tokenizer
from mrpo_pipeline.rendering.vocabulary_reuse import holds_no_control, record, without_vocabulary

_BATCH = 256  # texts encoded at a time, because offsets take far more memory than ids


class Renderer:
    """Renders conversations for one model with its own tokenizer and chat template.

    The content is located in the full rendering. The text before it is the prompt (except spaces between the generation
    prompt and the content, which the model generates itself). The first control token after it ends the turn (the
    tokenizer's `eos_token` if the template writes none). Control strings in the data are encoded as text. An empty prompt,
    possible with raw text only, becomes the BOS or else the EOS token.

    Args:
        tokenizer: a Hugging Face fast tokenizer; not changed.
        template: `auto` (the tokenizer's own, or PLAIN_TEMPLATE), `plain`, or the path of a Jinja file.
        template_kwargs: template arguments (`enable_thinking`).
        name: name of the model in messages.
        loaded: related information from the model's files.
        known: the identity, if another process computed it.
    Raises:
        UserError: the tokenizer is not a fast one or has no end token, or the template fails.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str = "auto",
        template_kwargs: Mapping[str, Any] | None = None,
        name: str = "",
        loaded: LoadedTokenizer | None = None,
        known: Mapping[str, str] | None = None,
    ) -> None:
        loaded = loaded or LoadedTokenizer(tokenizer)
        self.name = name or getattr(tokenizer, "name_or_path", "") or "the model"
        self.notices: list[str] = []
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"The tokenizer of {self.name} ({type(tokenizer).__name__}) has no fast version (`tokenizer.json`), which is needed for "
                "token offsets. Set `tokenizer:` of this model to a fast tokenizer, such as one saved by `convert_slow_tokenizer`."
            )
        self._template = ChatTemplate(
            tokenizer, template, self.name, fallback=loaded.template, arguments=template_kwargs
        )
        self.reading: list[str] = []
        """Notices about a tokenizer or template that is not the model's own."""
        if self._template.is_plain:
            why = "" if template == "plain" else ", because its tokenizer has no chat template"
            self.reading.append(f"conversations are rendered by the plain template{why}")
        backend = loaded.settings or json.loads(tokenizer.backend_tokenizer.to_str())
        scaffold = ""
        with contextlib.suppress(UserError):  # a template for a single turn has no scaffold between turns
            scaffold = self._template.scaffold()
        written = f"{scaffold} {tokenizer.bos_token} {tokenizer.eos_token}"
        controls = control_tokens(backend, tokenizer.all_special_tokens, written)
        controls |= role_markers(backend, scaffold)
        self._settings = loaded.settings
        if self._settings is None and holds_no_control(backend, controls.difference(text_pieces(backend, controls))):
            self._settings = without_vocabulary(backend)
        shared = tokenizer.backend_tokenizer if self._settings else None
        self._escaped = EscapedTokenizers(self._settings or backend, controls, shared)
        self.bos = str(tokenizer.bos_token or "")
        stops = [token for token in tokenizer.convert_ids_to_tokens(list(loaded.stops)) if token]
        end = find_turn_end(self._template, self._escaped.for_texts(), stops, tokenizer.eos_token)
        self._jobs = JobBuilder(self._template, self._escaped, end, stops, self.notices)
        if end.notice:
            self.notices.append(end.notice)
        self._splitter = Splitter(tokenizer, backend, end, self.name, self._template.name)
        self.check = RenderingCheck.of(tokenizer, loaded.own, backend, self._splitter, self.name)
        self._checking = False
        if known is None:
            known = identity(self, tokenizer, backend, self._template, self._escaped, self._splitter)
        self._identity = known
        self._checking = True

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        revision: str | None = None,
        tokenizer: str | None = None,
        adapter: str | None = None,
        template: str = "auto",
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        name: str = "",
    ) -> "Renderer":
        """Renderer of a model folder or Hub name. `tokenizer` is another source for the tokenizer, and `adapter` may provide one
        (see `load_tokenizer`). `revision` applies to the model's own tokenizer only.
        """
        source = ModelSource.model_construct(
            model=model,
            revision=revision,
            tokenizer=tokenizer,
            adapter=adapter,
            template=template,
            template_kwargs=dict(template_kwargs or {}),
            trust_remote_code=trust_remote_code,
        )
        return cls.of(source.named(name or model))

    @classmethod
    def of(cls, source: ModelSource) -> "Renderer":
        """Renderer of a model; no weights are read.

        If another process knows it, its vocabulary is parsed once and its identity is not computed again.
        """
        with _no_garbage_collection():
            return cls._of(source)

    @classmethod
    def _of(cls, source: ModelSource) -> "Renderer":
        refuse_gguf(source.name, source.tokenizer or source.model)
        key = key_of(source)
        known = find(key) if key else None
        if known and (loaded := known.load(source)):
            renderer = cls._made(source, loaded, known.identity)
            renderer.reading = list(known.reading)
            if key == key_of(source):  # files may change meanwhile
                return renderer
        found, notices = load_tokenizer(source)
        loaded = with_model_files(found, source)
        renderer = cls._made(source, loaded)
        renderer.reading += [line for line in notices if source.template == "auto" or "chat template" not in line]
        if known is None and key and key == key_of(source):
            recorded = record(found, renderer._settings, loaded.own) if renderer._settings else None
            place = place_of(source, str(found.name_or_path))
            keep(key, KnownRenderer(renderer.identity(), renderer.reading, place, recorded))
        return renderer

    @classmethod
    def _made(cls, source: ModelSource, loaded: LoadedTokenizer, known: Mapping[str, str] | None = None) -> "Renderer":
        return cls(
            loaded.tokenizer,
            template=source.template,
            template_kwargs=source.template_kwargs,
            name=source.name,
            loaded=loaded,
            known=known,
        )

    def render(self, items: Sequence[tuple[str, str]]) -> list[Rendered]:
        """Render (canonical prompt, completion) pairs; it is fastest if completions of one prompt are adjacent."""
        rendered: list[Rendered] = []
        for start in range(0, len(items), _BATCH):
            jobs = [self._jobs.job(prompt, completion) for prompt, completion in items[start : start + _BATCH]]
            texts = [job.prefix + job.content + job.suffix for job in jobs]
            encodings = _encode_in_order([job.prompt.escaped for job in jobs], texts)
            split = [self._splitter.split(job, encoding) for job, encoding in zip(jobs, encodings, strict=True)]
            for (_, completion), job, one in zip(items[start : start + _BATCH], jobs, split, strict=True):
                if self._checking and self.check.due(job, completion):
                    self.check.compare(completion, job, one)
            rendered += split
        return rendered

    def render_each(self, items: Sequence[tuple[str, str]]) -> list[Rendered | UserError]:
        """Like ``render``, with the error in place of an item that cannot be rendered."""
        try:
            return list(self.render(items))
        except UntrustedModelError:
            raise
        except UserError as error:
            if len(items) == 1:
                return [error]
        # Bisect, because few of many items fail.
        middle = len(items) // 2
        return [*self.render_each(items[:middle]), *self.render_each(items[middle:])]

    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        """Number of tokens of each canonical prompt, including the template's output before an answer.

        Raw text that ends with white space may have one token more or less before a completion, because some tokenizers
        split white space depending on the text after it.
        """
        lengths: list[int] = []
        for start in range(0, len(prompts), _BATCH):
            made = [self._jobs.prompt(prompt, "") for prompt in prompts[start : start + _BATCH]]
            encodings = _encode_in_order([p.escaped for p in made], [p.prefix[: p.prompt_end] for p in made])
            for prompt, encoding in zip(made, encodings, strict=True):
                lengths.append(len(self._splitter.complete_prompt(prompt.escaped.original_ids[encoding.ids])))
        return lengths

    def control_strings(self, text: str) -> list[str]:
        """Distinct control tokens of this tokenizer in the text, in order of appearance."""
        return self._escaped.control_strings(text)

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """Bytes of each token; for a control token, of its string."""
        return self._splitter.token_bytes(ids)

    def user_message_affixes(self) -> tuple[str, str]:
        """(before, after): the generation prompt around a single user message, without BOS; empty for the plain template.

        Raises UserError: the template does not write the message exactly once.
        """
        if self._template.is_plain:
            return "", ""
        mark = "qZquestionX7"
        parts = self._template.generation_prompt([{"role": "user", "content": mark}]).split(mark)
        if len(parts) != 2:
            raise UserError(f"{self._template.name} writes a user message {len(parts) - 1} times; expected once.")
        return parts[0].removeprefix(self.bos), parts[1]

    @property
    def thinks_first(self) -> bool:
        """Whether the generation prompt differs from the output before an answer, such as by a thinking block."""
        return self._template.thinks_first()

    def identity(self) -> dict[str, str]:
        """Everything that determines the ids, as fields of a fingerprint.

        `tokenizer` and `template` are hashes (SHA-256, 32 hex digits); `end_of_turn` is the token that ends an answer in a
        chat, `end_of_text` the one after raw text; `prepended` the tokens before a text; `template_date` the date for
        templates that use one; `rendering` the version of the rules and the model's traits.
        """
        return dict(self._identity)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A large vocabulary has half a million lists, none of them garbage, which the collector would visit again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _encode_in_order(escaped_set: Sequence[EscapedTokenizer], texts: Sequence[str]) -> list[Any]:
    """Encodings of the texts, each by its own tokenizer."""
    encodings: list[Any] = [None] * len(texts)
    for escaped in {id(escaped): escaped for escaped in escaped_set}.values():
        chosen = [i for i, other in enumerate(escaped_set) if other is escaped]
        batch = escaped.backend.encode_batch([texts[i] for i in chosen], add_special_tokens=False)
        for i, encoding in zip(chosen, batch, strict=True):
            encodings[i] = encoding
    return encodings
