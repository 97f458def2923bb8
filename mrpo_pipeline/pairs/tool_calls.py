"""Tool calls of a message in the forms that data have them, brought to `{"name", "arguments", "id"}`.

OpenAI's and TRL's `tool_calls` (`{"type": "function", "id", "function": {"name", "arguments"}}`, or the function bare), its older
`function_call`, and a turn of ShareGPT whose text is the calls as JSON. Arguments are an object, or a JSON text of one.
"""

import re
from typing import Any

from mrpo_pipeline.pairs.bad_row import BadRowError, found, quoted
from mrpo_pipeline.pairs.json_values import checked, parsed
from mrpo_pipeline.pairs.paths import is_filled

Call = dict[str, Any]

UNREADABLE = "unreadable tool call"
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


def read_calls(item: dict[Any, Any], where: str, filled: bool = False) -> list[Call]:
    """The calls of a message's `tool_calls` or `function_call`; none where it has neither.

    `filled`: see `json_values.checked`. Raises BadRowError.
    """
    value, single = item.get("tool_calls"), item.get("function_call")
    calls: list[Call] = []
    if is_filled(value):
        calls = _listed(value, f"{where}.tool_calls", filled)
    if not is_filled(single) or (isinstance(single, dict) and not any(map(is_filled, single.values()))):
        return calls
    called = _listed(single, f"{where}.function_call", filled)
    if calls and [_without_id(one) for one in calls] != [_without_id(one) for one in called]:
        raise BadRowError(UNREADABLE, f"`{where}` has `tool_calls` and another `function_call`; expected one of them")
    return calls or called


def read_written_calls(value: Any, where: str, filled: bool = False) -> tuple[str, list[Call]]:
    """Reasoning and calls of a turn whose text is one call or a list of them as JSON, behind a `<think>` block or none.

    Raises BadRowError.
    """
    thought = ""
    if isinstance(value, str) and (found_thought := _THOUGHT.match(value)):
        thought, value = found_thought[1].strip("\n"), value[found_thought.end() :]
    if not is_filled(value):
        raise BadRowError(UNREADABLE, f"`{where}` is empty; expected a call with name and arguments as JSON")
    return thought, _listed(value, where, filled)


def _listed(value: Any, where: str, filled: bool) -> list[Call]:
    if isinstance(value, str):
        value, filled = parsed(value, where, UNREADABLE), False
    if isinstance(value, dict):
        return [_call(value, where, filled)]
    if not isinstance(value, list) or not value:
        raise BadRowError(UNREADABLE, f"`{where}` is {found(value)}; expected a list of calls")
    return [_call(one, f"{where}[{index}]", filled) for index, one in enumerate(value)]


def _call(value: Any, where: str, filled: bool) -> Call:
    if isinstance(value, str):
        value, filled = parsed(value, where, UNREADABLE), False
    if not isinstance(value, dict):
        raise BadRowError(UNREADABLE, f"`{where}` is {found(value)}; expected a call with name and arguments")
    kind = value.get("type")
    function = value.get("function")
    if kind not in (None, "", "function") or (function is not None and not isinstance(function, dict)):
        what = f"the type {quoted(kind)}" if isinstance(kind, str) and kind != "function" else found(function)
        raise BadRowError("unsupported tool", f"`{where}` has {what}; expected the call of a function")
    if function is None:
        function = value
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadRowError(UNREADABLE, f"`{where}` has the name {found(name)}; expected the name of a function")
    arguments = function.get("arguments")
    if arguments is None:
        arguments = function.get("parameters")  # as Llama 3.1 writes a call
    call = {"name": checked(name, where), "arguments": _arguments(arguments, f"{where}.arguments", filled)}
    identifier = value.get("id")
    if identifier is not None and identifier != "":
        call["id"] = text_of(identifier, f"{where}.id")
    return call


def _arguments(value: Any, where: str, filled: bool) -> dict[str, Any]:
    if isinstance(value, str):
        value, filled = parsed(value, where, UNREADABLE) if value.strip() else None, False
    value = checked({} if value is None else value, where, filled=filled)
    if filled and value == []:  # a map of Arrow without entries
        return {}
    if not isinstance(value, dict):
        raise BadRowError(UNREADABLE, f"`{where}` is {found(value)}; expected an object with named values")
    return value


def text_of(value: Any, where: str) -> str:
    """A name or identifier. Raises BadRowError."""
    if not isinstance(value, str):
        raise BadRowError("wrong type", f"`{where}` is {found(value)}; expected a string")
    text: str = checked(value, where)
    return text


def _without_id(call: Call) -> Call:
    return {key: value for key, value in call.items() if key != "id"}
