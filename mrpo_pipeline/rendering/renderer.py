"""From a prompt and a completion to the ids a model reads: the one place where text becomes tokens."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.files import refuse_gguf
from mrpo_pipeline.rendering.end_of_turn import find_turn_end
from mrpo_pipeline.rendering.escaped_tokenizer import CloneSet, PrivateClone, control_tokens, role_markers
from mrpo_pipeline.rendering.identity import identity
from mrpo_pipeline.rendering.jobs import Jobs
from mrpo_pipeline.rendering.proof import Proof
from mrpo_pipeline.rendering.split import Job, Rendered, Splitter
from mrpo_pipeline.rendering.templates import ChatTemplate, UntrustedModelError
from mrpo_pipeline.rendering.tokenizer import LoadedTokenizer, with_model_files
from mrpo_pipeline.rendering.tokenizer_source import load_tokenizer

_BATCH = 256  # texts encoded at a time; their offsets take far more memory than their ids


class Renderer:
    """Renders conversations for one model, through its own tokenizer and chat template.

    The content is located in the full rendering; what stands before it is the prompt (but for spaces between the
    generation prompt and the content, which the model writes itself), and the first control token behind it ends the
    turn (the tokenizer's `eos_token` where the template writes none). Control strings in the data are encoded as text.
    A prompt without any token, which only raw text can give, becomes the BOS or else the EOS token.

    Args:
        tokenizer: a Hugging Face fast tokenizer; not changed.
        template: `auto` (the tokenizer's own, or PLAIN_TEMPLATE), `plain`, or the path of a Jinja file.
        template_kwargs: what the template is given beside the messages (`enable_thinking`).
        name: what to call the model in messages.
        loaded: what the model's files say beside the tokenizer.
    Raises:
        UserError: the tokenizer is not a fast one, has no end token, or the template fails.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str = "auto",
        template_kwargs: Mapping[str, Any] | None = None,
        name: str = "",
        loaded: LoadedTokenizer | None = None,
    ) -> None:
        loaded = loaded or LoadedTokenizer(tokenizer)
        self.name = name or getattr(tokenizer, "name_or_path", "") or "the model"
        self.notices: list[str] = []
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"The tokenizer of {self.name} ({type(tokenizer).__name__}) has no fast form (`tokenizer.json`), and "
                "rendering needs one to tell where each token ends in the text: give a fast tokenizer for this model "
                "(`tokenizer:`), for instance one saved by `convert_slow_tokenizer`."
            )
        self._template = ChatTemplate(tokenizer, template, self.name, beside=loaded.template, arguments=template_kwargs)
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
        self.bos = str(tokenizer.bos_token or "")
        stops = [token for token in tokenizer.convert_ids_to_tokens(list(loaded.stops)) if token]
        end = find_turn_end(self._template, self._clones.clone_for(), stops, tokenizer.eos_token)
        self._jobs = Jobs(self._template, self._clones, end, stops, self.notices)
        if end.notice:
            self.notices.append(end.notice)
        self._splitter = Splitter(tokenizer, backend, end, self.name, self._template.name)
        self.proof = Proof.of(tokenizer, loaded.own, backend, self._splitter, self.name)
        self._proving = False
        self._identity = identity(self, tokenizer, backend, self._template, self._clones, self._splitter)
        self._proving = True

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
        """Renderer of a model folder or hub name; `tokenizer` names another place for the tokenizer alone, and `adapter` what
        may bring one (see `load_tokenizer`).

        `revision` is the model's; it holds for its own tokenizer only.
        """
        refuse_gguf(name or model, tokenizer or model)
        found, notices = load_tokenizer(
            model,
            revision=revision,
            tokenizer=tokenizer,
            adapter=adapter,
            trust_remote_code=trust_remote_code,
            name=name,
        )
        loaded = with_model_files(found, model, revision, name or model)
        renderer = cls(found, template=template, template_kwargs=template_kwargs, name=name or model, loaded=loaded)
        renderer.reading += [line for line in notices if template == "auto" or "chat template" not in line]
        return renderer

    def render(self, items: Sequence[tuple[str, str]]) -> list[Rendered]:
        """Render (canonical prompt, completion) pairs; completions of one prompt are cheapest side by side."""
        rendered: list[Rendered] = []
        for start in range(0, len(items), _BATCH):
            jobs = [self._jobs.job(prompt, completion) for prompt, completion in items[start : start + _BATCH]]
            texts = [job.prefix + job.content + job.suffix for job in jobs]
            encodings = _encode_in_order([job.prompt.clone for job in jobs], texts)
            split = [self._splitter.split(job, encoding) for job, encoding in zip(jobs, encodings, strict=True)]
            if self._proving:
                self._prove(items[start : start + _BATCH], jobs, split)
            rendered += split
        return rendered

    def _prove(self, items: Sequence[tuple[str, str]], jobs: Sequence[Job], rendered: Sequence[Rendered]) -> None:
        """Compare the first conversations of each shape with the model's own reading."""
        for (_, completion), job, one in zip(items, jobs, rendered, strict=True):
            if self.proof.due(job, completion):
                self.proof.check(completion, job, one)

    def render_each(self, items: Sequence[tuple[str, str]]) -> list[Rendered | UserError]:
        """As ``render``; in the place of an item that cannot be rendered stands what is wrong with it."""
        try:
            return list(self.render(items))
        except UntrustedModelError:
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
            made = [self._jobs.prompt(prompt, "") for prompt in prompts[start : start + _BATCH]]
            encodings = _encode_in_order([p.clone for p in made], [p.prefix[: p.seam] for p in made])
            for prompt, encoding in zip(made, encodings, strict=True):
                lengths.append(len(self._splitter.complete_prompt(prompt.clone.original_ids[encoding.ids])))
        return lengths

    def control_strings(self, text: str) -> list[str]:
        """Control tokens of this tokenizer that stand in the text, each once, in order of appearance."""
        return self._clones.control_strings(text)

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes that each token stands for; of a control token its string's."""
        return self._splitter.token_bytes(ids)

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
        a template that asks for it; `rendering` the rules, and by name those that only models of some trait have.
        """
        return dict(self._identity)


def _encode_in_order(clones: Sequence[PrivateClone], texts: Sequence[str]) -> list[Any]:
    """Encodings of the texts, each by its own clone."""
    encodings: list[Any] = [None] * len(texts)
    for clone in {id(clone): clone for clone in clones}.values():
        chosen = [i for i, other in enumerate(clones) if other is clone]
        batch = clone.backend.encode_batch([texts[i] for i in chosen], add_special_tokens=False)
        for i, encoding in zip(chosen, batch, strict=True):
            encodings[i] = encoding
    return encodings
