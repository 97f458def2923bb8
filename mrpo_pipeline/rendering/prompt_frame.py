"""A prompt as the model is asked to answer it: every message of it stands in what is read.

A template may write a system message only where the user's message is the last (Mistral's do), and so leave it out of
prompt and completion together. What a model is given to answer to, its generation prompt, decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import Message
from mrpo_pipeline.rendering.placing import Frame
from mrpo_pipeline.rendering.templates import ChatTemplate, UnboundedTemplateError
from mrpo_pipeline.rendering.tool_forms import cannot_write

# Reasons why a prompt is not read as the template writes it round an answer.
MERGED = "system message merged into the first user message"
EMPTY_SYSTEM = "empty system message left out"
AS_ASKED = "prompt as the generation prompt writes it"
# What ends the reasoning of an answer; templates leave it out of earlier turns.
_REASONING_END = re.compile(r"</\w*(?:think|thought|reason)\w*>|\[/THINK\]|◁/think▷", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PromptFrame:
    """What is written round an answer to a prompt.

    Attributes:
        messages: the prompt as the template takes it: a system message may be merged.
        frame: prefix and suffix as the template writes them round an answer.
        head: (chars, text): the first chars of the prefix are read as this text; (0, "") for a prefix read as it is.
        reasons: in what, by the contract, it departs from the template's own rendering.
    """

    messages: list[Message]
    frame: Frame
    head: tuple[int, str] = (0, "")
    reasons: tuple[str, ...] = ()

    def read(self, prefix: str) -> str:
        """The prefix of a rendering of this prompt, as it is read."""
        chars, text = self.head
        return text + prefix[chars:]


def prompt_frame(template: ChatTemplate, messages: list[Message]) -> PromptFrame:
    """Render the frame, with every message in it.

    Raises:
        UserError: the template fails on the messages, or leaves one out however it is asked.
    """
    if messages and messages[0]["role"] == "system" and template.system_fault:
        merged = _framed(template, template.merge_system(messages))
        return PromptFrame(merged.messages, merged.frame, merged.head, (MERGED, *merged.reasons))
    if template.system_late and len(messages) > 1 and messages[0] == {"role": "system", "content": ""}:
        # The generation prompt alone would write what stands round it.
        rest = _framed(template, messages[1:])
        return PromptFrame(rest.messages, rest.frame, rest.head, (EMPTY_SYSTEM, *rest.reasons))
    return _framed(template, messages)


def _framed(template: ChatTemplate, messages: list[Message]) -> PromptFrame:
    frame = template.frame(messages)
    missing = left_out(frame.prefix, messages)
    thoughts = dropped_reasoning(frame.prefix, messages)
    if missing is None and not thoughts and not template.tool_names:
        return PromptFrame(messages, frame)
    try:
        asked = template.generation_prompt(messages)
    except UnboundedTemplateError:
        raise
    except UserError:
        asked = ""
    head = joined(asked, frame.prefix, messages[-1])
    # Tools, and what a template says of them, may be written only where the user's message is the last.
    tools = bool(template.tool_names) and head is not None and frame.prefix[: head[0]] != head[1]
    more = missing is not None or tools or any(thought in asked for thought in thoughts)
    if more and head is not None and left_out(asked, messages) is None:
        return PromptFrame(messages, frame, head, (AS_ASKED,))
    if tools or has_more(asked, frame.prefix, template.tool_names):
        raise UserError(cannot_write(template.name, "tools before an answer"))
    if missing is None:  # no model of this kind is given it
        return PromptFrame(messages, frame)
    if missing["role"] == "system" and messages[0]["role"] == "system":
        merged = template.merge_system(messages)
        frame = template.frame(merged)
        if left_out(frame.prefix, merged) is None:
            return PromptFrame(merged, frame, (0, ""), (MERGED,))
    shown = " ".join(missing["content"].split())[:60] or ", ".join(c["name"] for c in missing.get("tool_calls", ()))
    raise UserError(
        f"{template.name} leaves out a message of the prompt ({missing['role']}: {shown!r}): expected one that writes all of a "
        "conversation. Give another template for this model (`template:`, a Jinja file or `plain`), or take the row out."
    )


def written_to(text: str, messages: Sequence[Message]) -> int | None:
    """Where the contents end in a rendering, one behind another; None where one is not found. System messages may stand anywhere."""
    at = 0
    for message in messages:
        if message["role"] != "system":
            found = place_in(text, message, at)
            if found is None:
                return None
            at = found[1]
    return at


def place_in(text: str, message: Message, start: int = 0, *, last: bool = False) -> tuple[int, int] | None:
    """Where the first (or last) writing of a content starts and ends; a tool's result may be written as a JSON string."""
    for written in spellings(_core(message), message["role"] == "tool"):
        found = text.rfind(written, start) if last else text.find(written, start)
        if found >= 0:
            return found, found + len(written)
    return None


def spellings(text: str, in_json: bool) -> list[str]:
    """The text as it stands and, where asked for, as it is written in JSON."""
    return (
        list(dict.fromkeys([text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]]))
        if in_json
        else [text]
    )


def dropped_reasoning(text: str, messages: Sequence[Message]) -> list[str]:
    """Reasoning of earlier messages that the text lacks."""
    thoughts = [message["reasoning_content"].strip() for message in messages if message.get("reasoning_content")]
    return [thought for thought in thoughts if thought not in text]


def has_more(asked: str, text: str, names: Sequence[str]) -> bool:
    """Whether a rendering has tools that another lacks."""
    return any(asked.count(name) > text.count(name) for name in names)


def joined(asked: str, prefix: str, message: Message) -> tuple[int, str] | None:
    """The prefix with the generation prompt's text up to a message's content, the last one that an answer is given to: how many
    of the prefix's chars give way to what text.

    Both go on in the same way behind that content, the prefix perhaps longer.
    """
    for last in spellings(message["content"].strip(), message["role"] == "tool"):
        p = asked.rfind(last)
        while last and p >= 0:
            tail = asked[p + len(last) :].rstrip()
            q = prefix.rfind(last)
            while q >= 0:
                if prefix.startswith(tail, q + len(last)):
                    return q + len(last), asked[: p + len(last)]
                q = prefix.rfind(last, 0, q + len(last) - 1)
            p = asked.rfind(last, 0, p + len(last) - 1)
    return None


def left_out(text: str, messages: Sequence[Message]) -> Message | None:
    """The first message that the text lacks; templates may trim, change white space, and drop the reasoning of earlier answers."""
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
            # As often as in all messages together: a user may repeat what the system message says.
            times = text.count(core)
            if times < sum(other.count(core) for other in cores) and (times or not _holds_most(text, core)):
                return message
    return None


def holds_call(text: str, call: dict[str, Any]) -> bool:
    """Whether a call's name and all values of its arguments are there, as text or as JSON."""
    return call["name"] in text and all(any(way in text for way in ways) for ways in _leaves(call["arguments"]))


def _leaves(value: Any) -> Iterator[list[str]]:
    """The ways to write each value and key."""
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
    """Whether a template that changes contents may have written this one: most of its words are there."""
    words = set(core.split())
    return 2 * len(words & set(text.split())) > len(words)
