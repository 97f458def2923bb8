"""Chat messages in a row: checked, and brought to plain `{"role", "content"}`.

Messages of ShareGPT's `from` and `value` are read as such.
Keys other than these two (`name`, `weight`, timestamps and the like) are left out, so they change neither the
rendering nor an id. Keys that carry part of the conversation in another form (tool calls, images, reasoning) refuse
the row by name where they hold anything; null and empty values count as absent, as Parquet writes them so.
"""

from typing import Any

from mrpo_pipeline.pairs.bad_row import BadRowError, check_text, found, quoted

Message = dict[str, str]

ROLES = ("system", "user", "assistant")
# ShareGPT's names, in messages of `from` and `value`.
_FROM = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "observation": "tool",
         "function_call": "function", "function_response": "tool"}  # fmt: skip

# Key of a message, or type of a content part → the reason it is refused by.
_UNSUPPORTED = {
    "tool_calls": "tool call",
    "tool_call_id": "tool call",
    "function_call": "tool call",
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
    "reasoning": "reasoning apart from the content",
    "reasoning_content": "reasoning apart from the content",
    "thinking": "reasoning apart from the content",
}
_TOOL_ROLES = ("tool", "function", "ipython")


def read_messages(value: list[Any], name: str) -> list[Message]:
    """Check a list of messages and return it as plain ones; `name` is the column, for the refusal.

    Raises BadRowError: a message that is no object, an unknown role, a system message that is not the first, content
    that is no text, tool calls, images, reasoning in its own key.
    """
    messages = []
    for index, item in enumerate(value):
        where = f"{name}[{index}]"
        message = read_message(item, where)
        if index > 0 and message["role"] == "system":
            raise BadRowError("system message not first", f"`{where}` has the role system; only the first message may")
        messages.append(message)
    return messages


def read_message(item: Any, where: str) -> Message:
    """Check one message and return it plain; see `read_messages`."""
    if not isinstance(item, dict):
        raise BadRowError("wrong type", f"`{where}` is {found(item)}; expected a message with role and content")
    if len(item) > 2:
        _refuse_unsupported(item, where)
    if "from" in item and "value" in item and item.get("role") is None and item.get("content") is None:
        spoken = item["from"]
        item = {"role": _FROM.get(spoken, spoken) if isinstance(spoken, str) else spoken, "content": item["value"]}
    role = item.get("role")
    if role in _TOOL_ROLES:
        raise BadRowError("tool call", f"`{where}` has the role {role}; tool calls are not supported")
    if role is None and "role" not in item:
        raise BadRowError("message without role", f"`{where}` is {found(item)}; expected role and content")
    if role not in ROLES:
        text = quoted(role) if isinstance(role, str) else found(role)
        raise BadRowError("unknown role", f"`{where}` has the role {text}; expected {', '.join(ROLES)}")
    if "content" not in item:
        raise BadRowError("message without content", f"`{where}` is {found(item)}; expected role and content")
    return {"role": role, "content": _content(item["content"], f"{where}.content")}


def _content(content: Any, where: str) -> str:
    if isinstance(content, list):
        # Chat templates write text parts one behind the other with nothing between.
        return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise BadRowError("wrong type", f"`{where}` is {found(content)}; expected a string")
    return check_text(content, where)


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise BadRowError("wrong type", f"`{where}` is {found(part)}; expected a part of type text")
    kind = part.get("type")
    reason = _UNSUPPORTED.get(kind) if isinstance(kind, str) else None
    if reason is not None:
        raise BadRowError(reason, f"`{where}` is a part of type {quoted(str(kind))}; only text is supported")
    _refuse_unsupported(part, where)
    if kind != "text":
        kind_found = quoted(kind) if isinstance(kind, str) else found(kind)
        raise BadRowError("unknown content part", f"`{where}` has the type {kind_found}; expected text")
    text = part.get("text")
    if not isinstance(text, str):
        raise BadRowError("wrong type", f"`{where}.text` is {found(text)}; expected a string")
    return check_text(text, where)


def _refuse_unsupported(item: dict[Any, Any], where: str) -> None:
    for key, value in item.items():
        reason = _UNSUPPORTED.get(key)
        if reason is not None and value is not None and value != [] and value != {} and value != "":
            raise BadRowError(reason, f"`{where}` holds `{key}`, which is not supported")
