"""Check chat messages and normalize them to `identity.Message`.

Input: `role` and `content`, or ShareGPT's `from` and `value`; reasoning, tool calls and tool results in the formats of OpenAI, TRL,
Anthropic (thinking), ShareGPT and LLaMA-Factory. Other keys (`weight`, timestamps) are dropped, so they change neither rendering nor
ids. Unsupported keys of the conversation (images, audio) are errors unless null or empty, which is how Parquet writes absent keys.
"""

from typing import Any

from mrpo_pipeline.pairs.field_paths import is_filled
from mrpo_pipeline.pairs.identity import Message
from mrpo_pipeline.pairs.row_errors import BadRowError, check_string, check_text, describe, quoted
from mrpo_pipeline.pairs.tool_calls import read_calls, read_written_calls, text_of

ROLES = ("system", "user", "assistant", "tool")
_PLAIN = ("system", "user", "assistant")
_BOTH = ("role", "content")
# ShareGPT's names, in messages of `from` and `value`.
_FROM = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
# Other roles of a tool result, and of an assistant turn that consists of calls.
_TOOL = ("tool", "function", "ipython", "observation", "function_response", "tool_response")
_CALLS = ("function_call", "tool_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")

# Unsupported key of a message or type of a content part → error reason.
_UNSUPPORTED = {
    "tool_use": "tool call",
    "tool_result": "tool call",
    "image": "image",
    "images": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "input_audio": "audio",
    "video": "video",
    "videos": "video",
    "redacted_thinking": "unreadable reasoning",
    "tools": "tools in a message",
    "functions": "tools in a message",
}


def read_messages(value: list[Any], name: str, drop_nulls: bool = False) -> list[Message]:
    """Check a list of messages and return it in canonical form; `name` is the column, for errors.

    `drop_nulls`: see `json_values.check_json`.
    Raises BadRowError: a message is not an object, its role is unknown, a system message is not the first, content is
    not text, calls cannot be parsed, or there are images, audio or video.
    """
    messages: list[Message] = []
    for index, item in enumerate(value):
        plain = _plain(item)
        if plain is not None and (index == 0 or plain["role"] != "system"):
            messages.append(plain)
            continue
        message = read_message(item, f"{name}[{index}]", drop_nulls)
        role = message["role"]
        if index > 0:
            if role == "system":
                where = f"{name}[{index}]"
                raise BadRowError("system message not first", f"`{where}` has the role system; expected it first")
            if role == "assistant" and _is_written_call(item) and messages[-1]["role"] == "assistant":
                _add_calls(messages[-1], message)
                continue
        messages.append(message)
    return messages


def read_message(item: Any, where: str, drop_nulls: bool = False) -> Message:
    """Check one message and return it in canonical form; see `read_messages`."""
    if not isinstance(item, dict):
        raise BadRowError("wrong type", f"`{where}` is {describe(item)}; expected a message with role and content")
    plain = _plain(item)
    if plain is not None:
        return plain
    role, content = item.get("role"), item.get("content")
    _refuse_unsupported(item, where)
    has_content = "content" in item
    if role is None and content is None and "from" in item and "value" in item:
        role, content, has_content = item["from"], item["value"], True
        role = _FROM.get(role, role) if isinstance(role, str) else role
    elif role is None and "role" not in item:
        raise BadRowError("message without role", f"`{where}` is {describe(item)}; expected role and content")
    if role in _CALLS:
        return _written_calls(item, content, where, drop_nulls)
    if role in _TOOL:
        return _tool_result(item, content, where)
    if role not in _PLAIN:
        raise BadRowError("unknown role", f"`{where}` has the role {quoted(role)}; expected {', '.join(ROLES)}")
    if role != "assistant":
        _refuse_keys(item, ("tool_calls", "function_call", "tool_call_id", *_REASONING), role, where)
    elif is_filled(item.get("tool_call_id")):
        _refuse_keys(item, ("tool_call_id",), role, where)
    text, thoughts = ("", "") if content is None else _content(content, f"{where}.content", role == "assistant")
    message: Message = {"role": role, "content": text}
    if role == "assistant":
        _add_reasoning(message, item, thoughts, where)
        calls = read_calls(item, where, drop_nulls)
        if calls:
            message["tool_calls"] = calls
    if content is None and len(message) == 2:
        if not has_content:
            raise BadRowError("message without content", f"`{where}` is {describe(item)}; expected role and content")
        raise BadRowError("wrong type", f"`{where}.content` is {describe(content)}; expected a string")
    return message


def _plain(item: Any) -> Message | None:
    """Fast path for a message with only role and content; None for any other."""
    if type(item) is not dict:
        return None
    role, content = item.get("role"), item.get("content")
    if role not in _PLAIN or not isinstance(content, str) or "\0" in content:
        return None
    if len(item) > 2 and any(value is not None for key, value in item.items() if key not in _BOTH):
        return None
    return {"role": role, "content": content}


def _written_calls(item: dict[Any, Any], content: Any, where: str, drop_nulls: bool) -> Message:
    """An assistant turn whose text is its calls."""
    _refuse_keys(item, ("tool_calls", "function_call", "tool_call_id"), "function_call", where)
    thought, calls = read_written_calls(content, where, drop_nulls)
    message: Message = {"role": "assistant", "content": ""}
    _add_reasoning(message, item, thought, where)
    return {**message, "tool_calls": calls}


def _is_written_call(item: dict[Any, Any]) -> bool:
    return item.get("role") in _CALLS or (item.get("role") is None and item.get("from") in _CALLS)


def _add_calls(message: Message, calling: Message) -> None:
    """Append a turn of calls to the assistant turn before it."""
    if "reasoning_content" in calling:
        texts = [message.get("reasoning_content", ""), calling["reasoning_content"]]
        if message["content"]:
            raise BadRowError("reasoning behind content", "a turn of calls has reasoning after the assistant's text")
        message["reasoning_content"] = "".join(texts)
    message["tool_calls"] = [*message.get("tool_calls", ()), *calling["tool_calls"]]


def _tool_result(item: dict[Any, Any], content: Any, where: str) -> Message:
    _refuse_keys(item, ("tool_calls", "function_call", *_REASONING), "tool", where)
    if isinstance(content, dict):
        raise BadRowError(
            "wrong type", f"`{where}.content` is {describe(content)}; expected text (write the result as JSON)"
        )
    text = "" if content is None else _content(content, f"{where}.content", False)[0]
    message: Message = {"role": "tool", "content": text}
    for key in ("tool_call_id", "name"):
        if is_filled(item.get(key)):
            message[key] = text_of(item[key], f"{where}.{key}")
    return message


def _add_reasoning(message: Message, item: dict[Any, Any], thoughts: str, where: str) -> None:
    """Add the reasoning from a key of the message or from its content parts. Blank reasoning is absent."""
    texts = {thoughts: "content"} if thoughts.strip() else {}
    for key in _REASONING:
        if is_filled(item.get(key)):
            texts.setdefault(check_string(item[key], f"{where}.{key}"), key)
    if len(texts) > 1:
        keys = " and ".join(f"`{key}`" for key in texts.values())
        raise BadRowError("two texts of reasoning", f"`{where}` has different reasoning in {keys}")
    for text in texts:
        message["reasoning_content"] = text


def _content(content: Any, where: str, may_think: bool) -> tuple[str, str]:
    """(text, reasoning) of a message's content."""
    if isinstance(content, str):
        return check_text(content, where), ""
    if not isinstance(content, list):
        raise BadRowError("wrong type", f"`{where}` is {describe(content)}; expected a string")
    texts: list[str] = []
    thoughts: list[str] = []
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        if may_think and isinstance(part, dict) and part.get("type") in _REASONING[1:]:
            thoughts.append(_thought(part, at))
            if "".join(texts).strip():
                raise BadRowError("reasoning behind content", f"`{at}` is reasoning after text; expected it before")
        else:
            texts.append(_part(part, at))
    # Chat templates concatenate text parts without a separator.
    return "".join(texts), "".join(thoughts)


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise BadRowError("wrong type", f"`{where}` is {describe(part)}; expected a part of type text")
    kind = part.get("type")
    reason = _UNSUPPORTED.get(kind) if isinstance(kind, str) else None
    if reason is not None:
        raise BadRowError(reason, f"`{where}` has the type {quoted(kind)}; only text is supported")
    _refuse_unsupported(part, where)
    if kind != "text":
        raise BadRowError("unknown content part", f"`{where}` has the type {quoted(kind)}; expected text")
    return check_string(part.get("text"), f"{where}.text")


def _thought(part: dict[Any, Any], where: str) -> str:
    """Text of a reasoning part, which may be a list of text parts (Magistral)."""
    key = next((key for key in ("thinking", "reasoning", "text") if is_filled(part.get(key))), "thinking")
    if part.get("closed") is False:
        raise BadRowError("unreadable reasoning", f"`{where}` is unclosed reasoning, so the answer would continue it")
    value = part.get(key)
    if isinstance(value, list):
        return "".join(_part(one, f"{where}.{key}[{index}]") for index, one in enumerate(value))
    return check_string("" if value is None else value, f"{where}.{key}")


def _refuse_keys(item: dict[Any, Any], keys: tuple[str, ...], role: str, where: str) -> None:
    for key in keys:
        if is_filled(item.get(key)):
            raise BadRowError("key of another role", f"`{where}` has `{key}`, which the role {role} does not allow")


def _refuse_unsupported(item: dict[Any, Any], where: str) -> None:
    for key, value in item.items():
        reason = _UNSUPPORTED.get(key)
        if reason is not None and value is not None and value != [] and value != {} and value != "":
            hint = "; use a column `tools`" if reason == "tools in a message" else ""
            raise BadRowError(reason, f"`{where}` has `{key}`, which is not supported here{hint}")
