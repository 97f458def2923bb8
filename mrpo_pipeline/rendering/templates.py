"""Chat templates as text: a conversation in, and where the completion's content stands in the rendering."""

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.checks import reason_of
from mrpo_pipeline.pairs.identity import Message, PromptSettings
from mrpo_pipeline.rendering.placing import Frame, Located, find_content
from mrpo_pipeline.rendering.template_arguments import check_arguments, undeclared, used
from mrpo_pipeline.rendering.template_limits import TemplateFaultError, TemplateLimitError, Watched
from mrpo_pipeline.rendering.template_text import PLAIN_TEMPLATE, TEMPLATE_DATE, template_text, tool_template
from mrpo_pipeline.rendering.tool_forms import Forms, cannot_write

_DATE = datetime.fromisoformat(TEMPLATE_DATE)
_VIEWS_KEPT = 256  # rows may have arguments of their own, each another
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
        self.text, self.name = template_text(tokenizer, template, owner, beside)
        self.is_plain = self.text == PLAIN_TEMPLATE
        self._write = Watched(self._rendered)
        self._owner = owner
        self._tools: list[dict[str, Any]] | None = None
        self._tool_text = tool_template(tokenizer) if template == "auto" else None
        self._writes_tools: bool | None = None
        self._forms = Forms(self._write_as_given, self.name)
        self._views: dict[str, ChatTemplate] = {}
        self._variables: list[str] | None = None
        self.arguments: dict[str, Any] = {}
        """Those that the template reads: others change nothing."""
        self.unused: list[str] = []
        """Arguments of the model or of rows that it does not read."""
        self.arguments = self._used(arguments or {})
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
        found = find_content(full, completion, frame)
        if found is not None:
            return found
        shown = completion if len(completion) <= 80 else completion[:77] + "..."
        raise UserError(
            f"{self.name} does not write the completion {shown!r} as it stands (beyond trimming white space at its "
            "ends), so its tokens cannot be told from the template's: give another template for this model "
            "(`template:`, a Jinja file or `plain`), or take the row out."
        )

    def given(self, settings: PromptSettings) -> "ChatTemplate":
        """The template with what belongs to a prompt: its tools, and arguments that override the model's one by one.

        Raises UserError: an argument is not a user's to give, or the template has no place for tools.
        """
        if not (settings.tools or settings.template_kwargs):
            return self
        key = json.dumps([bool(settings.tools), settings.template_kwargs], sort_keys=True)
        if key not in self._views:  # the process that writes is shared
            if len(self._views) >= _VIEWS_KEPT:
                self._views.clear()
            view = self._views[key] = copy.copy(self)
            view.arguments = {**self.arguments, **self._used(settings.template_kwargs or {})}
            view._tools = [_PROBE_TOOL] if settings.tools else None
            view._forms = Forms(view._write_as_given, self.name)
        if not settings.tools:
            return self._views[key]
        self._views[key]._require_tools()
        made = copy.copy(self._views[key])
        made._tools = settings.tools
        return made

    @property
    def tool_names(self) -> list[str]:
        """Names of the tools that the template is given."""
        return [str(tool.get("function", tool).get("name", "")) for tool in self._tools or ()]

    def _require_tools(self) -> None:
        """Raises UserError: the template has no place for the tools that it is given."""
        if self._writes_tools is None:
            try:
                self._writes_tools = "qZtoolX8" in self.generation_prompt([{"role": "user", "content": "question"}])
            except UserError:
                self._writes_tools = False
        if not self._writes_tools:
            raise UserError(cannot_write(self.name, "tools"))

    def _used(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that the template reads; the others are noted."""
        if not arguments:
            return {}
        check_arguments(arguments, self._owner)
        if self._variables is None:
            try:
                self._variables = json.loads(Watched(undeclared)(self.text))
            except (TemplateFaultError, TemplateLimitError):  # rendering tells what is wrong with the template
                return dict(arguments)
        read = used(arguments, self._variables)
        self.unused += [key for key in arguments if key not in read and key not in self.unused]
        return read

    def with_earlier_reasoning(self, messages: list[Message]) -> list[Message]:
        """A prompt as the template can take it: where it has no place for reasoning, that of earlier answers is left out, as those
        that have one do with earlier turns."""
        if not any("reasoning_content" in message for message in messages) or self._forms.writes_reasoning():
            return messages
        return [{key: value for key, value in message.items() if key != "reasoning_content"} for message in messages]

    def whole(self, messages: Sequence[Message]) -> str:
        """All that the template writes of a conversation in canonical form."""
        return self._render(messages)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        if any(len(message) > 2 or message["role"] == "tool" for message in messages):
            messages = self._forms.written(messages)
        return self._write_as_given(messages, add_generation_prompt)

    def _write_as_given(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        try:
            given = [_in_parts(message) for message in messages] if self._as_parts else list(messages)
            return self._write(given, add_generation_prompt, self._tools, self.arguments)
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

    def _rendered(
        self,
        messages: list[Message],
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None,
        arguments: dict[str, Any],
    ) -> str:
        """What the template writes. It runs as long as the template lets it: called through ``self._write``."""
        text: str = self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=self._tool_text if tools and self._tool_text else self.text,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            strftime_now=_DATE.strftime,
            **arguments,
        )
        return text


def _in_parts(message: Message) -> Message:
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}] if isinstance(content, str) else content}
