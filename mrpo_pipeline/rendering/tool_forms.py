"""Reasoning, tool calls and their results in the form that a chat template takes, found by trying.

Templates agree on `role` and `content` alone. Each form is tried on a probe conversation, once for a model and only where the data
have such messages; the first whose text holds what was given is the model's.
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
class Form:
    """What a template takes.

    Attributes:
        reasoning: the key that it reads, or ``parts``: content as a list of parts, that of reasoning of type thinking, its text as it
            is or (``parts of parts``) as a list of parts itself.
        arguments: ``object``, or ``text``: as JSON text.
        wrapped: whether a call is ``{"type", "id", "function": {…}}``.
        ids: of calls, ``given``, ``nine`` letters and digits (made where the data have others), ``functions``
            (`functions.NAME:INDEX`), or ``none``.
        no_content: content of a message of calls alone is None instead of an empty text.
        results: role of a tool's result.
    """

    reasoning: str = REASONING_KEYS[0]
    arguments: str = "object"
    wrapped: bool = True
    ids: str = "given"
    no_content: bool = False
    results: str = "tool"

    def written(self, messages: Sequence[Message]) -> list[Message]:
        """Canonical messages in this form."""
        made: list[Message] = []
        open_calls: list[str | None] = []  # of the calls whose result has not come
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
        if self.ids == "nine":
            return given if given is not None and _NINE.fullmatch(given) else nine(given or f"call {index}")
        return given if self.ids == "given" else None


def nine(name: str) -> str:
    """Nine letters and digits, the same for the same name."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=9).digest()
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest)


_QUESTION: Message = {"role": "user", "content": "qZaskX1"}
_ANSWER: Message = {"role": "assistant", "content": "qZanswerX6"}
_ARGUMENTS = ({"qZkeyX2": "qZvalueX2", "deep": {"qZflag": True}, "n": 471}, {"other": "qZvalueX4"})


def _probe(ids: bool) -> list[Message]:
    """Two calls and their results, one behind another."""
    messages, names = [_QUESTION], (("qZnameX2", "qZresultX3"), ("qZnameX4", "qZresultX5"))
    for (name, result), arguments, own in zip(names, _ARGUMENTS, ("call_1a2b3c", "call_4d5e6f"), strict=True):
        call = {"name": name, "arguments": arguments, **({"id": own} if ids else {})}
        answer = {"role": "tool", "content": result, "name": name, **({"tool_call_id": own} if ids else {})}
        messages += [{"role": "assistant", "content": "", "tool_calls": [call]}, answer]
    return messages


def call_probe() -> Message:
    """A message of one call, whose last text is qZvalueX9."""
    return {"role": "assistant", "content": "", "tool_calls": [{"name": "qZnameX9", "arguments": {"q": "qZvalueX9"}}]}


class Forms:
    """The form of one template, each part found when it is first asked for.

    Args:
        render: what the template writes of messages in its form.
        name: what to call the template.
    """

    def __init__(self, render: Render, name: str) -> None:
        self._render, self._name = render, name
        self._reasoning: str | UserError | None = None
        self._calls: dict[bool, Form | UserError] = {}

    def written(self, messages: Sequence[Message]) -> list[Message]:
        """Canonical messages as the template takes them.

        Raises:
            UserError: the template cannot write what they hold, in any form.
        """
        form = Form()
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        if calls or any(message["role"] == "tool" for message in messages):
            form = self._form_of_calls(bool(calls) and all("id" in call for call in calls))
        if any(message.get("reasoning_content") for message in messages):
            form = replace(form, reasoning=self._form_of_reasoning())
        return form.written(messages)

    def writes_reasoning(self) -> bool:
        """Whether it has a place for reasoning."""
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
        # Some keep it before tool calls alone (Kimi K2 Thinking): what they do with an answer's is seen row by row.
        for answer, last in ((_ANSWER, _ANSWER["content"]), (call_probe(), "qZnameX9")):
            conversation = [_QUESTION, {**answer, "reasoning_content": "qZthoughtX5"}]
            for key in (*REASONING_KEYS, *PARTS):
                with suppress(UserError):
                    form = (
                        replace(self._form_of_calls(False), reasoning=key)
                        if answer is not _ANSWER
                        else Form(reasoning=key)
                    )
                    text = self._render(form.written(conversation))
                    # A list may be written as Python writes it: then its keys are there.
                    if _in_order(text, ["qZthoughtX5", last]) and "type" not in _between(text, last):
                        return key
        return None

    def _form_of_calls(self, ids: bool) -> Form:
        if ids not in self._calls:
            self._calls[ids] = self._find_calls(ids)
        found = self._calls[ids]
        if isinstance(found, UserError):
            raise UserError(str(found))
        return found

    def _find_calls(self, ids: bool) -> Form | UserError:
        probe = _probe(ids)
        loose: Form | None = None
        written = False  # whether any form has the calls
        for form in _forms_of_calls(ids):
            text = self._text(form.written(probe))
            if text is None or not _holds_calls(text):
                continue
            written = True
            if not _in_order(text, ["qZnameX2", "qZresultX3", "qZnameX4", "qZresultX5"]):
                continue
            if '"qZflag":true' in "".join(text.split()):  # JSON, and not as Python writes it
                return form
            loose = loose or form
        return loose or self._cannot("tool results" if written else "tool calls")

    def _text(self, messages: list[Message]) -> str | None:
        for more in ([_ANSWER], []):  # some refuse a conversation that ends in a result, some an answer behind one
            given = messages if messages[-1]["role"] == "assistant" and messages[-1]["content"] else [*messages, *more]
            try:
                return self._render(given)
            except UserError:
                continue
        return None

    def _cannot(self, what: str) -> UserError:
        return UserError(cannot_write(self._name, what))


def cannot_write(name: str, what: str) -> str:
    """The message for data that a template has no place for."""
    return (
        f"{name} cannot write {what}, which the row holds: expected a template that does. Give another template for this model "
        "(`template:`, a Jinja file), or take such rows out."
    )


def _forms_of_calls(ids: bool) -> Iterator[Form]:
    kinds = ("given", "nine", "functions", "none") if ids else ("none", "nine", "functions")
    for results, wrapped, no_content, kind, arguments in product(
        ("tool", "ipython"), (True, False), (False, True), kinds, ("object", "text")
    ):
        yield Form(arguments=arguments, wrapped=wrapped, ids=kind, no_content=no_content, results=results)


def _holds_calls(text: str) -> bool:
    """Whether names and arguments of both calls of the probe are there."""
    leaves = ("qZkeyX2", "qZvalueX2", "qZflag", "471", "qZvalueX4")
    return _in_order(text, ("qZnameX2", "qZnameX4")) and all(leaf in text for leaf in leaves)


def _between(text: str, last: str) -> str:
    """What is between reasoning and answer of the probe."""
    return text.split("qZthoughtX5")[-1].split(last)[0]


def _in_order(text: str, marks: Sequence[str]) -> bool:
    at = 0
    for mark in marks:
        at = text.find(mark, at)
        if at < 0:
            return False
        at += len(mark)
    return True
