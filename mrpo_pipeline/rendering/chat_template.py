"""Render conversations with a chat template, and locate the completion's content in the result."""

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.checks import reason_of
from mrpo_pipeline.pairs.identity import Message, PromptSettings
from mrpo_pipeline.rendering.content_location import Frame, Located, find_content
from mrpo_pipeline.rendering.message_formats import FormatFinder, cannot_write
from mrpo_pipeline.rendering.template_sandbox import LimitedFunction, TemplateFaultError, TemplateLimitError
from mrpo_pipeline.rendering.template_source import PLAIN_TEMPLATE, TEMPLATE_DATE, template_text, tool_template
from mrpo_pipeline.rendering.template_variables import check_arguments, undeclared

_DATE = datetime.fromisoformat(TEMPLATE_DATE)
_VIEWS_KEPT = 256  # each row may have its own arguments
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "qZtoolX8",
        "description": "A probe.",
        "parameters": {
            "type": "object",
            "properties": {"q": {"type": "string", "description": "A text."}},
            "required": ["q"],
        },
    },
}


class UntrustedModelError(UserError):
    """An error of the template or tokenizer rather than of a row: no further row is tried."""


class UnboundedTemplateError(UntrustedModelError):
    """A template exceeds its limits of time or memory."""


class ChatTemplate:
    """The chat template of a tokenizer, or a template configured in its place.

    Args:
        tokenizer: HF tokenizer, for its template and special tokens.
        template: `auto` (the tokenizer's own, else `fallback`, else PLAIN_TEMPLATE), `plain`, or the path of a Jinja file.
        owner: name of the model in messages.
        fallback: text of a template in other files of the model.
        arguments: template arguments (`enable_thinking`).
    Raises:
        UserError: the template cannot be read, or fails on a user message with an answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        owner: str,
        *,
        fallback: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.text, self.name = template_text(tokenizer, template, owner, fallback)
        self.is_plain = self.text == PLAIN_TEMPLATE
        self._write = LimitedFunction(self._rendered)
        self._owner = owner
        self._tools: list[dict[str, Any]] | None = None
        self.tool_text = tool_template(tokenizer) if template == "auto" else None
        """Jinja text for conversations with tools, if the tokenizer has a separate one."""
        self._writes_tools: bool | None = None
        self._forms = FormatFinder(self._run, self.name)
        self._views: dict[str, ChatTemplate] = {}
        self._variables: list[str] | None = None
        self.arguments: dict[str, Any] = {}
        """Arguments that the template reads."""
        self.unused: list[str] = []
        """Arguments of the model or of rows that the template does not read."""
        self.arguments = self._used(arguments or {})
        user, system = {"role": "user", "content": "question"}, "systemprobe"
        # A processor's template may accept content only as a list of parts.
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
        self.system_fault = ""  # why system messages are merged into the first user message; empty: they are kept
        self.system_late = False  # whether a system message is written only if no answer follows
        try:
            if system not in self.render([{"role": "system", "content": system}, user]):
                self.system_fault = "drops it"
            else:
                self.system_late = system not in self.frame([{"role": "system", "content": system}, user]).prefix
        except UserError:
            self.system_fault = "rejects it"

    @property
    def texts(self) -> list[str]:
        """All Jinja texts in use."""
        return [self.text, *([self.tool_text] if self.tool_text else [])]

    def merge_system(self, messages: Sequence[Message]) -> list[Message]:
        """Merge leading system messages into the first user message, separated by a blank line."""
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
        """The template's own output in a conversation, up to the last answer."""
        marks = ("probe0x", "probe1x", "probe2x")
        prefix = self._three_turns(marks)
        for mark in marks[:-1]:
            prefix = prefix.replace(mark, "")
        return prefix.split(marks[-1])[0]

    def after_earlier_answer(self) -> str | None:
        """The template's output between an answer and the next user message; None if it supports one turn only."""
        try:
            after = self._three_turns(("probe0x", "probe1x", "probe2x")).split("probe1x")[-1]
        except UserError:
            return None
        return after.split("probe2x")[0]

    def _three_turns(self, contents: Sequence[str]) -> str:
        roles = ("user", "assistant", "user")
        return self.frame([{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]).prefix

    def frame(self, messages: Sequence[Message]) -> Frame:
        """Output before and after the content of an answer to these messages."""
        sentinel = "qZanswerX7"
        while any(sentinel in message["content"] for message in messages):
            sentinel += "7qZ"
        parts = self.render([*messages, {"role": "assistant", "content": sentinel}]).split(sentinel)
        if len(parts) != 2:
            raise UserError(
                f"{self.name} writes the assistant's answer {len(parts) - 1} times; expected once. Set another template (`template:` "
                "of the model, a Jinja file or `plain`)."
            )
        return Frame(*parts)

    def thinks_first(self) -> bool:
        """Whether the generation prompt differs from the output before an answer in a full conversation."""
        question = [{"role": "user", "content": "question"}]
        return self.generation_prompt(question).rstrip() != self.frame(question).prefix.rstrip()

    def generation_prompt(self, messages: Sequence[Message]) -> str:
        """Rendering that the model continues with its answer."""
        return self.render(messages, add_generation_prompt=True)

    def locate(self, messages: Sequence[Message], completion: str, frame: Frame) -> Located:
        """Locate a completion in the full rendering.

        Args:
            messages: the prompt.
            completion: the assistant's content.
            frame: `self.frame(messages)`; the prefix may differ for contents that the template treats specially.
        Raises:
            UserError: the template changes more than white space at the ends of the completion.
        """
        full = self.render([*messages, {"role": "assistant", "content": completion}])
        found = find_content(full, completion, frame)
        if found is not None:
            return found
        shown = completion if len(completion) <= 80 else completion[:77] + "..."
        raise UserError(
            f"{self.name} changes the completion {shown!r} by more than white space at its ends, so its tokens cannot be located. Set "
            "another template for this model (`template:`, a Jinja file or `plain`), or remove the row."
        )

    def with_settings(self, settings: PromptSettings) -> "ChatTemplate":
        """The template with the tools and arguments of a prompt; its arguments override the model's individually.

        Raises UserError: an argument is reserved, or the template does not support tools.
        """
        if not (settings.tools or settings.template_kwargs):
            return self
        key = json.dumps([bool(settings.tools), settings.template_kwargs], sort_keys=True)
        if key not in self._views:  # copies share the process that renders
            if len(self._views) >= _VIEWS_KEPT:
                self._views.clear()
            view = self._views[key] = copy.copy(self)
            view.arguments = {**self.arguments, **self._used(settings.template_kwargs or {})}
            view._tools = [_PROBE_TOOL] if settings.tools else None
            view._forms = FormatFinder(view._run, self.name)
        if not settings.tools:
            return self._views[key]
        self._views[key]._require_tools()
        made = copy.copy(self._views[key])
        made._tools = settings.tools
        return made

    @property
    def tool_names(self) -> list[str]:
        """Names of the tools of the prompt."""
        return [str(tool.get("function", tool).get("name", "")) for tool in self._tools or ()]

    def _require_tools(self) -> None:
        """Raise UserError if the template does not write tools."""
        if self._writes_tools is None:
            try:
                self._writes_tools = "qZtoolX8" in self.generation_prompt([{"role": "user", "content": "question"}])
            except UserError:
                self._writes_tools = False
        if not self._writes_tools:
            raise UserError(cannot_write(self.name, "tools"))

    def _used(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that the template reads; others are added to `unused`."""
        if not arguments:
            return {}
        check_arguments(arguments, self._owner)
        if self._variables is None:
            try:
                self._variables = [
                    name for text in self.texts for name in json.loads(LimitedFunction(undeclared)(text))
                ]
            except (TemplateFaultError, TemplateLimitError):  # rendering reports the error
                return dict(arguments)
        read = {key: value for key, value in arguments.items() if key in self._variables}
        self.unused += [key for key in arguments if key not in read and key not in self.unused]
        return read

    def with_earlier_reasoning(self, messages: list[Message]) -> list[Message]:
        """Drop the reasoning of earlier answers if the template does not support reasoning; templates that do drop it as well."""
        if not any("reasoning_content" in message for message in messages) or self._forms.writes_reasoning():
            return messages
        return [{key: value for key, value in message.items() if key != "reasoning_content"} for message in messages]

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """Render canonical messages."""
        if any(len(message) > 2 or message["role"] == "tool" for message in messages):
            messages = self._forms.apply(messages)
        return self._run(messages, add_generation_prompt)

    def _run(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        try:
            given = [_in_parts(message) for message in messages] if self._as_parts else list(messages)
            return self._write(given, add_generation_prompt, self._tools, self.arguments)
        except TemplateLimitError as error:
            raise UnboundedTemplateError(
                f"{self.name} exceeds the limits on time and memory: {error}; expected one that stays below them. Set another "
                "template for this model (`template:`, a Jinja file or `plain`)."
            ) from None
        except TemplateFaultError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"{self.name} fails on a conversation with the roles {roles[:200]} ({error.kind}: {reason_of(error)}). Correct the "
                "data, or set another template for this model (`template:`, a Jinja file or `plain`)."
            ) from error

    def _rendered(
        self,
        messages: list[Message],
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None,
        arguments: dict[str, Any],
    ) -> str:
        """Render without limits; call it through ``self._write``."""
        text: str = self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=self.tool_text if tools and self.tool_text else self.text,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            strftime_now=_DATE.strftime,
            **arguments,
        )
        return text


def _in_parts(message: Message) -> Message:
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}] if isinstance(content, str) else content}
