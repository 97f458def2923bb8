"""Render a prompt so that it contains every message.

A template may write a system message only if a user message is last (Mistral's do), and so drop it when an answer follows.
The generation prompt, which the model continues at inference, decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import Message
from mrpo_pipeline.rendering.chat_template import ChatTemplate, UnboundedTemplateError
from mrpo_pipeline.rendering.content_location import Frame
from mrpo_pipeline.rendering.message_formats import cannot_write

# Reasons why a prompt differs from the template's rendering with an answer.
MERGED = "system message merged into the first user message"
EMPTY_SYSTEM = "empty system message dropped"
FROM_GENERATION_PROMPT = "prompt taken from the generation prompt"
# End of reasoning; templates drop the reasoning of earlier turns.
_REASONING_END = re.compile(r"</\w*(?:think|thought|reason)\w*>|\[/THINK\]|◁/think▷", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PromptFrame:
    """A prompt and the output around its answers.

    Attributes:
        messages: prompt as passed to the template: a system message may be merged.
        frame: output of the template around an answer.
        head: (chars, text): the first chars of the prefix are replaced by this text; (0, "") for an unchanged prefix.
        reasons: documented differences from the template's own rendering.
    """

    messages: list[Message]
    frame: Frame
    head: tuple[int, str] = (0, "")
    reasons: tuple[str, ...] = ()

    def read(self, prefix: str) -> str:
        """The prefix of a rendering of this prompt, with its head replaced."""
        chars, text = self.head
        return text + prefix[chars:]


def prompt_frame(template: ChatTemplate, messages: list[Message]) -> PromptFrame:
    """Render a frame that contains every message.

    Raises:
        UserError: the template fails on the messages, or drops one in every rendering.
    """
    if messages and messages[0]["role"] == "system" and template.system_fault:
        merged = _framed(template, template.merge_system(messages))
        return PromptFrame(merged.messages, merged.frame, merged.head, (MERGED, *merged.reasons))
    if template.system_late and len(messages) > 1 and messages[0] == {"role": "system", "content": ""}:
        # Only the generation prompt would contain an empty system turn.
        rest = _framed(template, messages[1:])
        return PromptFrame(rest.messages, rest.frame, rest.head, (EMPTY_SYSTEM, *rest.reasons))
    return _framed(template, messages)


def _framed(template: ChatTemplate, messages: list[Message]) -> PromptFrame:
    frame = template.frame(messages)
    missing = find_dropped(frame.prefix, messages)
    thoughts = dropped_reasoning(frame.prefix, messages)
    if missing is None and not thoughts and not template.tool_names:
        return PromptFrame(messages, frame)
    try:
        generation_prompt = template.generation_prompt(messages)
    except UnboundedTemplateError:
        raise
    except UserError:
        generation_prompt = ""
    head = replaced_head(generation_prompt, frame.prefix, messages[-1])
    # A template may write tools and their instructions only if a user message is last.
    tools = bool(template.tool_names) and head is not None and frame.prefix[: head[0]] != head[1]
    more = missing is not None or tools or any(thought in generation_prompt for thought in thoughts)
    if more and head is not None and find_dropped(generation_prompt, messages) is None:
        return PromptFrame(messages, frame, head, (FROM_GENERATION_PROMPT,))
    if tools or has_more(generation_prompt, frame.prefix, template.tool_names):
        raise UserError(cannot_write(template.name, "tools before an answer"))
    if missing is None:  # such models never see earlier reasoning
        return PromptFrame(messages, frame)
    if missing["role"] == "system" and messages[0]["role"] == "system":
        merged = template.merge_system(messages)
        frame = template.frame(merged)
        if find_dropped(frame.prefix, merged) is None:
            return PromptFrame(merged, frame, (0, ""), (MERGED,))
    shown = " ".join(missing["content"].split())[:60] or ", ".join(c["name"] for c in missing.get("tool_calls", ()))
    raise UserError(
        f"{template.name} drops a message of the prompt ({missing['role']}: {shown!r}). Set another template for this model "
        "(`template:`, a Jinja file or `plain`), or remove the row."
    )


def written_to(text: str, messages: Sequence[Message]) -> int | None:
    """End of the last content in a rendering; None if the contents are not found in order. System messages may be anywhere."""
    at = 0
    for message in messages:
        if message["role"] != "system":
            found = place_in(text, message, at)
            if found is None:
                return None
            at = found[1]
    return at


def place_in(text: str, message: Message, start: int = 0, *, last: bool = False) -> tuple[int, int] | None:
    """(start, end) of the first (or last) occurrence of a content; a tool result may be written as a JSON string."""
    for written in spellings(_core(message), message["role"] == "tool"):
        found = text.rfind(written, start) if last else text.find(written, start)
        if found >= 0:
            return found, found + len(written)
    return None


def spellings(text: str, in_json: bool) -> list[str]:
    """The text, and with `in_json` its JSON escapes."""
    escaped = (json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]) if in_json else ()
    return list(dict.fromkeys([text, *escaped]))


def dropped_reasoning(text: str, messages: Sequence[Message]) -> list[str]:
    """Reasoning of earlier messages that is not in the text."""
    thoughts = [message["reasoning_content"].strip() for message in messages if message.get("reasoning_content")]
    return [thought for thought in thoughts if thought not in text]


def has_more(generation_prompt: str, text: str, names: Sequence[str]) -> bool:
    """Whether a rendering `generation_prompt` mentions tools more often than `text`."""
    return any(generation_prompt.count(name) > text.count(name) for name in names)


def replaced_head(generation_prompt: str, prefix: str, message: Message) -> tuple[int, str] | None:
    """(chars, text): the first chars of the prefix can be replaced by this text of the generation prompt, up to the end of the
    last message's content. None if the text after that content differs (the prefix may be longer).
    """
    for last in spellings(message["content"].strip(), message["role"] == "tool"):
        p = generation_prompt.rfind(last)
        while last and p >= 0:
            tail = generation_prompt[p + len(last) :].rstrip()
            q = prefix.rfind(last)
            while q >= 0:
                if prefix.startswith(tail, q + len(last)):
                    return q + len(last), generation_prompt[: p + len(last)]
                q = prefix.rfind(last, 0, q + len(last) - 1)
            p = generation_prompt.rfind(last, 0, p + len(last) - 1)
    return None


def find_dropped(text: str, messages: Sequence[Message]) -> Message | None:
    """First message that is missing from the text. Templates may trim, change white space and drop earlier reasoning."""
    cores = [_core(message) for message in messages]
    at = 0
    for message, core in zip(messages, cores, strict=True):
        if message["role"] != "system" and core:
            found = place_in(text, message, at)
            if found is not None:
                at = found[1]
            elif not _holds_most(text, core):
                return message
        if any(not holds_call(text, call) for call in message.get("tool_calls", ())):
            return message
    for message, core in zip(messages, cores, strict=True):
        if message["role"] == "system" and core:
            # It must occur as often as in all messages together, because a user may quote the system message.
            times = text.count(core)
            if times < sum(other.count(core) for other in cores) and (times or not _holds_most(text, core)):
                return message
    return None


def holds_call(text: str, call: dict[str, Any]) -> bool:
    """Whether the text has a call's name and all values of its arguments, as text or as JSON."""
    return call["name"] in text and all(any(way in text for way in ways) for ways in _leaves(call["arguments"]))


def _leaves(value: Any) -> Iterator[list[str]]:
    """Possible spellings of each key and value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield spellings(key, True)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield [*spellings(value.strip(), True), *spellings(json.dumps(value.strip(), ensure_ascii=False)[1:-1], True)]
    else:
        yield [str(value), json.dumps(value)]


def _core(message: Message) -> str:
    content: str = message["content"]
    if message["role"] == "assistant":
        content = _REASONING_END.split(content)[-1]
    return content.strip()


def _holds_most(text: str, core: str) -> bool:
    """Whether the text has more than half of the distinct words, as after a template that edits contents."""
    words = set(core.split())
    return 2 * len(words & set(text.split())) > len(words)
