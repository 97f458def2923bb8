"""What names a prompt, a completion and a pair: their content alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from json.encoder import encode_basestring as _string
from typing import Any, NamedTuple

Message = dict[str, Any]
"""`role` and `content` (a text); where it has them `reasoning_content` (a text), `tool_calls` (each `name`, `arguments`, and `id`
where it is named), and of a tool's result `tool_call_id` and `name`."""

Prompt = str | list[Message]
"""Raw text, or messages."""

_MESSAGE = '{"role":%s,"content":%s}'
_MORE = ("reasoning_content", "tool_calls", "tool_call_id", "name")


class PromptSettings(NamedTuple):
    """What a chat template is given beside the messages of a prompt."""

    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] | None = None


_NO_SETTINGS = PromptSettings()


def dump_prompt(prompt: Prompt, settings: PromptSettings = _NO_SETTINGS) -> str:
    """The canonical JSON text of a prompt: a JSON string for raw text, a JSON list for messages, an object where tools or
    arguments of the template belong to them.

    Messages are written with `role` and `content` in that order whatever the order in `prompt`, then the keys of `Message` that
    are there; others are left out. Raw text and messages never share a canonical form.
    """
    if isinstance(prompt, str):
        return _string(prompt)
    messages = dump_messages(prompt)
    if not (settings.tools or settings.template_kwargs):
        return messages
    more = {key: value for key, value in settings._asdict().items() if value}
    return f'{{"messages":{messages},{_json(more)[1:]}'


def dump_messages(messages: Sequence[Message]) -> str:
    """The canonical JSON list of messages."""
    # What json's encoder writes for such a list, in a third of the time.
    return f"[{','.join([_dump_message(message) for message in messages])}]"


def _dump_message(message: Message) -> str:
    text = _MESSAGE % (_string(message["role"]), _string(message["content"]))
    if len(message) > 2:
        more = {key: message[key] for key in _MORE if key in message}
        text = f"{text[:-1]},{_json(more)[1:]}" if more else text
    return text


def parse_prompt(prompt: str) -> Prompt:
    """The prompt that `dump_prompt` wrote: a string, or a list of messages."""
    value = json.loads(prompt)
    messages: Prompt = value["messages"] if isinstance(value, dict) else value
    return messages


def prompt_settings(prompt: str) -> PromptSettings:
    """What belongs to the messages of a canonical prompt."""
    if not prompt.startswith("{"):
        return PromptSettings()
    value = json.loads(prompt)
    return PromptSettings(value.get("tools"), value.get("template_kwargs"))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def completion_id(prompt: str, completion: str) -> str:
    """128-bit id of one completion to one prompt, as 32 hex digits.

    `prompt` is canonical (`dump_prompt`). The id depends on the content alone: not on file, order or reference.
    It is BLAKE2b with a 16-byte digest over the parts "completion", prompt, completion, each as UTF-8 behind its length
    in bytes (unsigned 64-bit, little-endian), so no two lists of parts share an encoding.
    """
    return _digest("completion", prompt, completion)


def pair_id(prompt: str, chosen: str, rejected: str) -> str:
    """128-bit id of a pair, as `completion_id` over "pair", prompt, chosen, rejected: swapped sides differ."""
    return _digest("pair", prompt, chosen, rejected)


def _digest(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
