"""Find the format in which a chat template accepts reasoning, tool calls and tool results.

Templates agree on `role` and `content` only. Each format is tried on a probe conversation, once per model and only if the data needs
it; the first one whose rendering contains everything is used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import Message

Render = Callable[[list[Message]], str]

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
PARTS = ("parts", "parts of parts")
_NINE = re.compile(r"[A-Za-z0-9]{9}")
_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class MessageFormat:
    """Message format of a template.

    Attributes:
        reasoning: key of the reasoning; ``parts``: content is a list of parts, with a part of type thinking; ``parts of parts``: the
            thinking part is itself a list.
        arguments: ``object``, or ``text`` for JSON text.
        wrapped: whether a call is ``{"type", "id", "function": {…}}``.
        ids: call ids: ``given``, ``nine`` letters and digits (hashed from other ids), ``functions`` (`functions.NAME:INDEX`), or
            ``none``.
        no_content: content of a message with only calls is None instead of "".
        results: role of a tool result.
    """

    reasoning: str = REASONING_KEYS[0]
    arguments: str = "object"
    wrapped: bool = True
    ids: str = "given"
    no_content: bool = False
    results: str = "tool"

    def apply(self, messages: Sequence[Message]) -> list[Message]:
        """Convert canonical messages to this format."""
        made: list[Message] = []
        open_calls: list[str | None] = []  # ids of calls without a result so far
        given: dict[str, str | None] = {}
        count = 0
        for message in messages:
            if message["role"] == "assistant":
                calls = message.get("tool_calls", [])
                open_calls = [self._id(call, count + i) for i, call in enumerate(calls)]
                given |= {call["id"]: own for call, own in zip(calls, open_calls, strict=True) if "id" in call}
                count += len(calls)
                made.append(self._assistant(message, calls, open_calls))
            elif message["role"] == "tool":
                named = message.get("tool_call_id")
                own = given.get(named, named) if named else next(iter(open_calls), None)
                if own in open_calls:
                    open_calls.remove(own)
                made.append(self._result(message, own))
            else:
                made.append(message)
        return made

    def _assistant(self, message: Message, calls: Sequence[dict[str, Any]], ids: Sequence[str | None]) -> Message:
        reasoning, content = message.get("reasoning_content"), message["content"]
        made: Message = {"role": "assistant", "content": content}
        if reasoning and self.reasoning in PARTS:
            thinking = reasoning if self.reasoning == PARTS[0] else [{"type": "text", "text": reasoning}]
            made["content"] = [{"type": "thinking", "thinking": thinking}]
            made["content"] += [{"type": "text", "text": content}] if content else []
        elif reasoning:
            made[self.reasoning] = reasoning
        if calls:
            if not content and self.no_content and not (reasoning and self.reasoning in PARTS):
                made["content"] = None
            made["tool_calls"] = [self._call(call, own) for call, own in zip(calls, ids, strict=True)]
        return made

    def _call(self, call: dict[str, Any], own: str | None) -> dict[str, Any]:
        arguments = call["arguments"]
        function = {
            "name": call["name"],
            "arguments": json.dumps(arguments, ensure_ascii=False) if self.arguments == "text" else arguments,
        }
        named = {} if own is None else {"id": own}
        return {"type": "function", **named, "function": function} if self.wrapped else {**function, **named}

    def _result(self, message: Message, own: str | None) -> Message:
        made = {"role": self.results, "content": message["content"]}
        if own is not None:
            made["tool_call_id"] = own
        if "name" in message:
            made["name"] = message["name"]
        return made

    def _id(self, call: dict[str, Any], index: int) -> str | None:
        given = call.get("id")
        if self.ids == "functions":
            return f"functions.{call['name']}:{index}"
        if self.ids == "nine_characters":
            return given if given is not None and _NINE.fullmatch(given) else nine_characters(given or f"call {index}")
        return given if self.ids == "given" else None


def nine_characters(name: str) -> str:
    """Hash of a name as nine letters and digits."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=9).digest()
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest)


_QUESTION: Message = {"role": "user", "content": "qZaskX1"}
_ANSWER: Message = {"role": "assistant", "content": "qZanswerX6"}
_ARGUMENTS = ({"qZkeyX2": "qZvalueX2", "deep": {"qZflag": True}, "n": 471}, {"other": "qZvalueX4"})


def _probe(ids: bool) -> list[Message]:
    """Two calls, each followed by its result."""
    messages, names = [_QUESTION], (("qZnameX2", "qZresultX3"), ("qZnameX4", "qZresultX5"))
    for (name, result), arguments, own in zip(names, _ARGUMENTS, ("call_1a2b3c", "call_4d5e6f"), strict=True):
        call = {"name": name, "arguments": arguments, **({"id": own} if ids else {})}
        answer = {"role": "tool", "content": result, "name": name, **({"tool_call_id": own} if ids else {})}
        messages += [{"role": "assistant", "content": "", "tool_calls": [call]}, answer]
    return messages


def call_probe() -> Message:
    """A message with one call whose last text is qZvalueX9."""
    return {"role": "assistant", "content": "", "tool_calls": [{"name": "qZnameX9", "arguments": {"q": "qZvalueX9"}}]}


class FormatFinder:
    """Finds the format of a template, lazily.

    Args:
        render: renders messages in the template's format.
        name: name of the template for messages.
    """

    def __init__(self, render: Render, name: str) -> None:
        self._render, self._name = render, name
        self._reasoning: str | UserError | None = None
        self._calls: dict[bool, MessageFormat | UserError] = {}

    def apply(self, messages: Sequence[Message]) -> list[Message]:
        """Convert canonical messages to the template's format.

        Raises:
            UserError: the template does not support their contents in any format.
        """
        form = MessageFormat()
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        if calls or any(message["role"] == "tool" for message in messages):
            form = self._form_of_calls(bool(calls) and all("id" in call for call in calls))
        if any(message.get("reasoning_content") for message in messages):
            form = replace(form, reasoning=self._form_of_reasoning())
        return form.apply(messages)

    def writes_reasoning(self) -> bool:
        """Whether the template supports reasoning."""
        try:
            return bool(self._form_of_reasoning())
        except UserError:
            return False

    def _form_of_reasoning(self) -> str:
        if self._reasoning is None:
            self._reasoning = self._find_reasoning() or self._cannot("reasoning")
        if isinstance(self._reasoning, UserError):
            raise UserError(str(self._reasoning))
        return self._reasoning

    def _find_reasoning(self) -> str | None:
        # Some keep it only before tool calls (Kimi K2 Thinking); reasoning before an answer is then checked per row.
        for answer, last in ((_ANSWER, _ANSWER["content"]), (call_probe(), "qZnameX9")):
            conversation = [_QUESTION, {**answer, "reasoning_content": "qZthoughtX5"}]
            for key in (*REASONING_KEYS, *PARTS):
                with suppress(UserError):
                    form = (
                        replace(self._form_of_calls(False), reasoning=key)
                        if answer is not _ANSWER
                        else MessageFormat(reasoning=key)
                    )
                    text = self._render(form.apply(conversation))
                    # A list printed as Python code would contain the key "type".
                    if _in_order(text, ["qZthoughtX5", last]) and "type" not in _between(text, last):
                        return key
        return None

    def _form_of_calls(self, ids: bool) -> MessageFormat:
        if ids not in self._calls:
            self._calls[ids] = self._find_calls(ids)
        found = self._calls[ids]
        if isinstance(found, UserError):
            raise UserError(str(found))
        return found

    def _find_calls(self, ids: bool) -> MessageFormat | UserError:
        probe = _probe(ids)
        loose: MessageFormat | None = None
        written = False  # whether any format renders the calls
        for form in _forms_of_calls(ids):
            text = self._text(form.apply(probe))
            if text is None or not _holds_calls(text):
                continue
            written = True
            if not _in_order(text, ["qZnameX2", "qZresultX3", "qZnameX4", "qZresultX5"]):
                continue
            if '"qZflag":true' in "".join(text.split()):  # JSON rather than Python syntax
                return form
            loose = loose or form
        return loose or self._cannot("tool results" if written else "tool calls")

    def _text(self, messages: list[Message]) -> str | None:
        for more in (
            [_ANSWER],
            [],
        ):  # some templates reject a conversation that ends with a result, some an answer after one
            given = messages if messages[-1]["role"] == "assistant" and messages[-1]["content"] else [*messages, *more]
            try:
                return self._render(given)
            except UserError:
                continue
        return None

    def _cannot(self, what: str) -> UserError:
        return UserError(cannot_write(self._name, what))


def cannot_write(name: str, what: str) -> str:
    """Message for data that a template does not support."""
    return (
        f"{name} does not support {what}, which the row contains. Set another template for this model (`template:`, a Jinja file), or "
        "remove such rows."
    )


def _forms_of_calls(ids: bool) -> Iterator[MessageFormat]:
    kinds = ("given", "nine_characters", "functions", "none") if ids else ("none", "nine_characters", "functions")
    for results, wrapped, no_content, kind, arguments in product(
        ("tool", "ipython"), (True, False), (False, True), kinds, ("object", "text")
    ):
        yield MessageFormat(arguments=arguments, wrapped=wrapped, ids=kind, no_content=no_content, results=results)


def _holds_calls(text: str) -> bool:
    """Whether the text has names and arguments of both calls of the probe."""
    leaves = ("qZkeyX2", "qZvalueX2", "qZflag", "471", "qZvalueX4")
    return _in_order(text, ("qZnameX2", "qZnameX4")) and all(leaf in text for leaf in leaves)


def _between(text: str, last: str) -> str:
    """Text between the reasoning and the answer of the probe."""
    return text.split("qZthoughtX5")[-1].split(last)[0]


def _in_order(text: str, marks: Sequence[str]) -> bool:
    at = 0
    for mark in marks:
        at = text.find(mark, at)
        if at < 0:
            return False
        at += len(mark)
    return True
