"""A completion as one string: plain text, or serialized messages with reasoning, tool calls or several turns.

One assistant message with content only is stored as its text. Any other completion is MARK and the JSON list of its messages.
Its canonical text is the same for every model: reasoning, content and tool calls (as JSON) of each assistant message, concatenated.
Other messages (tool results) are context and not part of it. Byte ends and cuts refer to its UTF-8 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

import polars as pl

from mrpo_pipeline.pairs.identity import Message, dump_messages

MARK = "\x1emessages:"
"""Prefix of a serialized completion. A text that begins with it is serialized, too."""

Kind = Literal["reasoning", "content", "calls"]


class Part(NamedTuple):
    """One part of the canonical text: index of its message, and kind."""

    message: int
    kind: Kind
    text: str


def dump_completion(messages: Sequence[Message]) -> str:
    """Serialize canonical messages that begin and end with the assistant's."""
    if len(messages) == 1 and messages[0].keys() <= {"role", "content"}:
        content: str = messages[0]["content"]
        if not content.startswith(MARK):
            return content
    return MARK + dump_messages(messages)


def is_plain(completion: str) -> bool:
    """Whether a completion is stored as its text."""
    return not completion.startswith(MARK)


def completion_messages(completion: str) -> list[Message]:
    """The canonical messages of a completion."""
    if is_plain(completion):
        return [{"role": "assistant", "content": completion}]
    messages: list[Message] = json.loads(completion.removeprefix(MARK))
    return messages


def completion_parts(completion: str) -> list[Part]:
    """Non-empty parts of the canonical text, in order."""
    parts = []
    for index, message in enumerate(completion_messages(completion)):
        if message["role"] == "assistant":
            parts += _parts_of(message, index)
    return parts


def _parts_of(message: Message, index: int) -> list[Part]:
    calls = "".join(_call(call) for call in message.get("tool_calls", ()))
    texts = (message.get("reasoning_content", ""), message["content"], calls)
    kinds: tuple[Kind, ...] = ("reasoning", "content", "calls")
    return [Part(index, kind, text) for kind, text in zip(kinds, texts, strict=True) if text]


def completion_text(completion: str) -> str:
    """Canonical text, whose UTF-8 bytes byte ends and cuts refer to."""
    return completion if is_plain(completion) else "".join(part.text for part in completion_parts(completion))


def cut_messages(completion: str, cut: int | None) -> list[Message]:
    """Messages of a completion up to a byte offset of its canonical text (None: all). Calls of a message are kept or dropped together."""
    messages = completion_messages(completion)
    if cut is None:
        return messages
    kept: list[Message] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if kept and cut <= 0:
            break
        short: Message = {"role": "assistant", "content": ""}
        for part in _parts_of(message, index):
            size = len(part.text.encode())
            if part.kind == "calls":
                if cut >= size:
                    short["tool_calls"] = message["tool_calls"]
            elif cut > 0:
                key = "content" if part.kind == "content" else "reasoning_content"
                short[key] = part.text if cut >= size else part.text.encode()[:cut].decode()
            cut -= size
        kept += [*messages[len(kept) : index], short]
    return kept


def text_bytes(completions: pl.Series) -> pl.Series:
    """(N,) int64: size of each completion's canonical text in UTF-8 bytes."""
    sizes = completions.str.len_bytes().cast(pl.Int64)
    structured = completions.str.starts_with(MARK)
    if not structured.any():
        return sizes
    own = [len(completion_text(one).encode()) for one in completions.filter(structured)]
    return sizes.scatter(structured.arg_true(), own)


def _call(call: dict[str, object]) -> str:
    return json.dumps(
        {"name": call["name"], "arguments": call["arguments"]}, ensure_ascii=False, separators=(", ", ": ")
    )
