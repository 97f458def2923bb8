"""A prompt as the model is asked to answer it: every message of it stands in what is read.

A template may write a system message only where the user's message is the last (Mistral's do), and so leave it out of
prompt and completion together. What a model is given to answer to, its generation prompt, decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.rendering.templates import ChatTemplate, Frame, Message, UnboundedTemplateError

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
    if missing is None:
        return PromptFrame(messages, frame)
    last = messages[-1]["content"].strip()
    try:
        asked = template.generation_prompt(messages)
    except UnboundedTemplateError:
        raise
    except UserError:
        asked = ""
    head = _joined(asked, frame.prefix, last)
    if head is not None and left_out(asked, messages) is None:
        return PromptFrame(messages, frame, head, (AS_ASKED,))
    if missing["role"] == "system" and messages[0]["role"] == "system":
        merged = template.merge_system(messages)
        frame = template.frame(merged)
        if left_out(frame.prefix, merged) is None:
            return PromptFrame(merged, frame, (0, ""), (MERGED,))
    shown = " ".join(missing["content"].split())[:60]
    raise UserError(
        f"{template.name} leaves out a message of the prompt ({missing['role']}: {shown!r}): expected one that writes all of a "
        "conversation. Give another template for this model (`template:`, a Jinja file or `plain`), or take the row out."
    )


def written_to(text: str, messages: Sequence[Message]) -> int | None:
    """Where the contents end in a rendering, one behind another; None where one is not found. System messages may stand anywhere."""
    at = 0
    for message in messages:
        core = _core(message)
        if message["role"] != "system":
            found = text.find(core, at)
            if found < 0:
                return None
            at = found + len(core)
    return at


def _joined(asked: str, prefix: str, last: str) -> tuple[int, str] | None:
    """The prefix with the generation prompt's text up to the last user's: how many of its chars give way to what text.

    Both go on in the same way behind the last user's text, the prefix perhaps longer.
    """
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
            found = text.find(core, at)
            if found >= 0:
                at = found + len(core)
            elif not _holds_most(text, core):
                return message
    for message, core in zip(messages, cores, strict=True):
        if message["role"] == "system" and core:
            # As often as in all messages together: a user may repeat what the system message says.
            found = text.count(core)
            if found < sum(other.count(core) for other in cores) and (found or not _holds_most(text, core)):
                return message
    return None


def _core(message: Message) -> str:
    content: str = message["content"]
    if message["role"] == "assistant":
        content = _REASONING_END.split(content)[-1]
    return content.strip()


def _holds_most(text: str, core: str) -> bool:
    """Whether a template that changes contents may have written this one: most of its words are there."""
    words = set(core.split())
    return 2 * len(words & set(text.split())) > len(words)
