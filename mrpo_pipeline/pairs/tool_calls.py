"""Normalize the tool calls of a message to `{"name", "arguments", "id"}`.

Input: `tool_calls` of OpenAI and TRL (`{"type": "function", "id", "function": {"name", "arguments"}}`, or the bare function), the
older `function_call`, and ShareGPT turns with calls as JSON text. Arguments are an object or its JSON text.
"""

import re
from typing import Any

from mrpo_pipeline.pairs.field_paths import is_filled
from mrpo_pipeline.pairs.json_values import check_json, parse_json
from mrpo_pipeline.pairs.row_errors import BadRowError, check_string, describe, quoted

Call = dict[str, Any]

UNREADABLE = "unreadable tool call"
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


def read_calls(item: dict[Any, Any], where: str, drop_nulls: bool = False) -> list[Call]:
    """Calls in `tool_calls` or `function_call` of a message; empty if it has neither.

    `drop_nulls`: see `json_values.check_json`. Raises BadRowError.
    """
    value, single = item.get("tool_calls"), item.get("function_call")
    calls: list[Call] = []
    if is_filled(value):
        calls = _listed(value, f"{where}.tool_calls", drop_nulls)
    if not is_filled(single) or (isinstance(single, dict) and not any(map(is_filled, single.values()))):
        return calls
    called = _listed(single, f"{where}.function_call", drop_nulls)
    if calls and [_without_id(one) for one in calls] != [_without_id(one) for one in called]:
        raise BadRowError(UNREADABLE, f"`{where}` has different `tool_calls` and `function_call`; expected one of them")
    return calls or called


def read_written_calls(value: Any, where: str, drop_nulls: bool = False) -> tuple[str, list[Call]]:
    """(reasoning, calls) of a turn whose text is JSON of one call or a list, after an optional `<think>` block.

    Raises BadRowError.
    """
    thought = ""
    if isinstance(value, str) and (found_thought := _THOUGHT.match(value)):
        thought, value = found_thought[1].strip("\n"), value[found_thought.end() :]
    if not is_filled(value):
        raise BadRowError(UNREADABLE, f"`{where}` is empty; expected a call with name and arguments as JSON")
    return thought, _listed(value, where, drop_nulls)


def _listed(value: Any, where: str, drop_nulls: bool) -> list[Call]:
    if isinstance(value, str):
        value, drop_nulls = parse_json(value, where, UNREADABLE), False
    if isinstance(value, dict):
        return [_call(value, where, drop_nulls)]
    if not isinstance(value, list) or not value:
        raise BadRowError(UNREADABLE, f"`{where}` is {describe(value)}; expected a list of calls")
    return [_call(one, f"{where}[{index}]", drop_nulls) for index, one in enumerate(value)]


def _call(value: Any, where: str, drop_nulls: bool) -> Call:
    if isinstance(value, str):
        value, drop_nulls = parse_json(value, where, UNREADABLE), False
    if not isinstance(value, dict):
        raise BadRowError(UNREADABLE, f"`{where}` is {describe(value)}; expected a call with name and arguments")
    kind = value.get("type")
    function = value.get("function")
    if kind not in (None, "", "function") or (function is not None and not isinstance(function, dict)):
        what = f"the type {quoted(kind)}" if isinstance(kind, str) and kind != "function" else describe(function)
        raise BadRowError("unsupported tool", f"`{where}` has {what}; expected a function call")
    if function is None:
        function = value
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadRowError(UNREADABLE, f"`{where}` has the name {describe(name)}; expected a function name")
    arguments = function.get("arguments")
    if arguments is None:
        arguments = function.get("parameters")  # as Llama 3.1 writes a call
    call = {"name": check_json(name, where), "arguments": _arguments(arguments, f"{where}.arguments", drop_nulls)}
    identifier = value.get("id")
    if identifier is not None and identifier != "":
        call["id"] = text_of(identifier, f"{where}.id")
    return call


def _arguments(value: Any, where: str, drop_nulls: bool) -> dict[str, Any]:
    if isinstance(value, str):
        value, drop_nulls = parse_json(value, where, UNREADABLE) if value.strip() else None, False
    value = check_json({} if value is None else value, where, drop_nulls=drop_nulls)
    if drop_nulls and value == []:  # a map of Arrow without entries
        return {}
    if not isinstance(value, dict):
        raise BadRowError(UNREADABLE, f"`{where}` is {describe(value)}; expected an object")
    return value


def text_of(value: Any, where: str) -> str:
    """A name or identifier. Raises BadRowError."""
    text: str = check_json(check_string(value, where), where)
    return text


def _without_id(call: Call) -> Call:
    return {key: value for key, value in call.items() if key != "id"}
