"""Chat templates as text: a conversation in, and where the completion's content stands in the rendering."""

import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.checks import reason_of
from mrpo_pipeline.rendering.template_limits import TemplateFaultError, TemplateLimitError, Watched

TEMPLATE_DATE = "2024-07-26"
"""The date every template that asks for one is told (`strftime_now`): the default Llama 3.1's own template prints."""

PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- message['content'] + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- 'Assistant:\\n' + message['content'] -}}{{- eos_token | default('') -}}{{- '\\n\\n' -}}
{%- else -%}
{{- 'User:\\n' + message['content'] + '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:\\n' -}}{%- endif -%}
"""
"""What a tokenizer without a template of its own gets. The newline after a role keeps tokens from reaching across."""

_DATE = datetime.fromisoformat(TEMPLATE_DATE)

# The longest templates in use have some 20 kB.
MAX_TEMPLATE_BYTES = 1 << 20

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes round a completion's content: `prefix + content + suffix`."""

    prefix: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Located:
    """A completion found in the full rendering, `prefix + content + suffix`.

    `content` is the completion less the white space the template trimmed, `start` its first char in the completion.
    """

    prefix: str
    content: str
    suffix: str
    start: int


class UntrustedModelError(UserError):
    """The fault is the template's or the tokenizer's, not a row's: no further row is tried."""


class UnboundedTemplateError(UntrustedModelError):
    """A template that takes too long or too much memory."""


class ChatTemplate:
    """A tokenizer's chat template, or the one given instead of it.

    Args:
        tokenizer: HF tokenizer, for its template and the names of its special tokens.
        template: `auto` (the tokenizer's own, else `beside`, else PLAIN_TEMPLATE), `plain`, or the path of a Jinja file.
        owner: what to call the model in messages.
        beside: text of a template that the model has elsewhere in its files.
        arguments: what the template takes beside the messages (`enable_thinking`).
    Raises:
        UserError: the template cannot be read, or fails on one user message and one answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        owner: str,
        *,
        beside: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._arguments = dict(arguments or {})
        self.text, self.name = _template_text(tokenizer, template, owner, beside)
        self.is_plain = self.text == PLAIN_TEMPLATE
        self._write = Watched(self._rendered)
        user, system = {"role": "user", "content": "question"}, "systemprobe"
        # A processor's template may take a content as a list of parts only.
        self._as_parts = False
        try:
            self.frame([user])
        except UnboundedTemplateError:
            raise
        except UserError as error:
            self._as_parts = True
            try:
                self.frame([user])
            except UserError:
                raise error from None
        self.system_fault = ""  # why system messages are merged into the first user message; empty: they are not
        self.system_late = False  # whether it is written only where no answer follows
        try:
            if system not in self._render([{"role": "system", "content": system}, user]):
                self.system_fault = "leaves it out"
            else:
                self.system_late = system not in self.frame([{"role": "system", "content": system}, user]).prefix
        except UserError:
            self.system_fault = "refuses it"

    def merge_system(self, messages: Sequence[Message]) -> list[Message]:
        """Put leading system messages into the first user message, blank line between."""
        count = 0
        while count < len(messages) and messages[count]["role"] == "system":
            count += 1
        system, rest = [m["content"] for m in messages[:count] if m["content"]], list(messages[count:])
        if not rest or (system and rest[0]["role"] != "user"):
            return [{"role": "user", "content": "\n\n".join(system)}, *rest]
        if not system:
            return rest
        return [{**rest[0], "content": "\n\n".join([*system, rest[0]["content"]])}, *rest[1:]]

    def scaffold(self) -> str:
        """What the template writes between the turns of a conversation, before the last answer."""
        marks = ("probe0x", "probe1x", "probe2x")
        prefix = self._three_turns(marks)
        for mark in marks[:-1]:
            prefix = prefix.replace(mark, "")
        return prefix.split(marks[-1])[0]

    def after_earlier_answer(self) -> str | None:
        """What the template writes between an answer and the user's next message; None where it takes one turn only."""
        try:
            after = self._three_turns(("probe0x", "probe1x", "probe2x")).split("probe1x")[-1]
        except UserError:
            return None
        return after.split("probe2x")[0]

    def _three_turns(self, contents: Sequence[str]) -> str:
        roles = ("user", "assistant", "user")
        return self.frame([{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]).prefix

    def frame(self, messages: Sequence[Message]) -> Frame:
        """What stands before and after the content of an answer to these messages."""
        sentinel = "qZanswerX7"
        while any(sentinel in message["content"] for message in messages):
            sentinel += "7qZ"
        parts = self._render([*messages, {"role": "assistant", "content": sentinel}]).split(sentinel)
        if len(parts) != 2:
            raise UserError(
                f"{self.name} writes the assistant's answer {len(parts) - 1} times, where once was expected: "
                "give another template (`template:` of the model, a Jinja file or `plain`)."
            )
        return Frame(*parts)

    def thinks_first(self) -> bool:
        """Whether the generation prompt is not what stands before an answer in a full conversation."""
        asked = [{"role": "user", "content": "question"}]
        return self.generation_prompt(asked).rstrip() != self.frame(asked).prefix.rstrip()

    def generation_prompt(self, messages: Sequence[Message]) -> str:
        """The text a model is given to answer to."""
        return self._render(messages, add_generation_prompt=True)

    def conversation(self, messages: Sequence[Message], completion: str) -> str:
        """All that the template writes of a prompt and its completion."""
        return self._render([*messages, {"role": "assistant", "content": completion}])

    def locate(self, messages: Sequence[Message], completion: str, frame: Frame) -> Located:
        """Find a completion in the full rendering.

        Args:
            messages: the prompt.
            completion: the assistant's content.
            frame: `self.frame(messages)`; a template that treats some contents specially may depart from its prefix.
        Raises:
            UserError: the template changes the completion by more than white space at its ends.
        """
        full = self._render([*messages, {"role": "assistant", "content": completion}])
        before, after = frame.prefix, frame.suffix
        if full.startswith(before) and full.endswith(after) and len(full) >= len(before) + len(after):
            content = full[len(before) : len(full) - len(after)]
            start = _place(content, completion)
            if start is not None:
                return Located(before, content, after, start)
        if full.endswith(after):
            head = full[: len(full) - len(after)]
            for trimmed in _trimmings(completion):
                start = _place(trimmed, completion)
                if head.endswith(trimmed) and start is not None:
                    return Located(head[: len(head) - len(trimmed)], trimmed, after, start)
        shown = completion if len(completion) <= 80 else completion[:77] + "..."
        raise UserError(
            f"{self.name} does not write the completion {shown!r} as it stands (beyond trimming white space at its "
            "ends), so its tokens cannot be told from the template's: give another template for this model "
            "(`template:`, a Jinja file or `plain`), or take the row out."
        )

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        try:
            given = [_in_parts(message) for message in messages] if self._as_parts else list(messages)
            return self._write(given, add_generation_prompt)
        except TemplateLimitError as error:
            raise UnboundedTemplateError(
                f"{self.name} does not render a conversation within bounds: {error}. Expected a template that writes the "
                "messages and ends. Give another one for this model (`template:`, a Jinja file or `plain`)."
            ) from None
        except (
            TemplateFaultError
        ) as error:  # a template is a program of its own: Jinja's errors, TypeError, what it raises
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"{self.name} fails on a conversation of roles {roles[:200]} ({error.kind}: {reason_of(error)}): expected "
                "one that writes it. Mend the data, or give another template for this model (`template:`, a Jinja file or `plain`)."
            ) from error

    def _rendered(self, messages: list[Message], add_generation_prompt: bool) -> str:
        """What the template writes. It runs as long as the template lets it: called through ``self._write``."""
        text: str = self._tokenizer.apply_chat_template(
            messages,
            chat_template=self.text,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            strftime_now=_DATE.strftime,
            **self._arguments,
        )
        return text


def _in_parts(message: Message) -> Message:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _template_text(tokenizer: Any, template: str, owner: str, beside: str | None) -> tuple[str, str]:
    """The Jinja text, and what to call it in messages."""
    if template == "plain":
        return PLAIN_TEMPLATE, f"The plain template (for {owner})"
    if template == "auto":
        if not tokenizer.chat_template and beside:
            return beside, f"The chat template of {owner}"
        if not tokenizer.chat_template:
            return PLAIN_TEMPLATE, f"The plain template (for {owner}, which has none)"
        try:
            return str(tokenizer.get_chat_template()), f"The chat template of {owner}"
        except ValueError as error:  # several named templates, none of them the default
            raise UserError(
                f"The chat template of {owner} cannot be chosen ({reason_of(error)}): expected one, or one called `default`. Give a "
                "Jinja file as `template`."
            ) from error
    try:
        path = Path(template)
        state = path.stat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > MAX_TEMPLATE_BYTES:  # a pipe would wait for ever
            raise OSError(f"no file, or one of more than {MAX_TEMPLATE_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8"), f"The template {template} (for {owner})"
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The template {template!r} for {owner} cannot be read ({error}): expected `auto`, `plain` or the path of "
            "a Jinja file in UTF-8. Correct `template`."
        ) from error


def _trimmings(text: str) -> list[str]:
    """The text with white space off its ends in the ways templates do it, the longest forms first."""
    ways: list[Callable[[str], str]] = [
        lambda s: s,
        lambda s: s.rstrip("\n"),
        lambda s: s.lstrip("\n"),
        lambda s: s.strip("\n"),
        str.rstrip,
        str.lstrip,
        str.strip,
    ]
    return [way(text) for way in ways]


def _place(content: str, completion: str) -> int | None:
    """Where `content` starts in the completion, if it is the completion less white space at its ends."""
    core = completion.strip()
    if not core:
        return 0 if completion.startswith(content) else None
    # Aligned by the first character that is not white space: both hold the same core, or it is not the completion.
    start = (len(completion) - len(completion.lstrip())) - (len(content) - len(content.lstrip()))
    if start < 0 or core not in content or completion[start : start + len(content)] != content:
        return None
    return start


def uses_date(template: str) -> bool:
    return re.search(r"\bstrftime_now\b", template) is not None
