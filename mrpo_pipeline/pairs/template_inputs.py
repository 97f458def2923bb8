"""What a row gives a chat template beside its messages: the tools, and the template's own arguments."""

from typing import Any

from mrpo_pipeline.pairs.bad_row import BadRowError, found, quoted
from mrpo_pipeline.pairs.identity import PromptSettings
from mrpo_pipeline.pairs.json_values import checked, parsed
from mrpo_pipeline.pairs.paths import is_filled

UNREADABLE_TOOLS = "unreadable tools"
UNREADABLE_ARGUMENTS = "unreadable chat_template_kwargs"


def read_settings(tools: Any, template_kwargs: Any, filled: bool = False) -> PromptSettings:
    """The values of a row's columns `tools` and `chat_template_kwargs`; what is null or empty is absent.

    `filled`: see `json_values.checked`. Raises BadRowError.
    """
    return PromptSettings(_tools(tools, filled) or None, _kwargs(template_kwargs, filled) or None)


def _tools(value: Any, filled: bool) -> list[dict[str, Any]]:
    if isinstance(value, str) and value.strip():
        value, filled = parsed(value, "tools", UNREADABLE_TOOLS), False
    if not is_filled(value):
        return []
    listed = [value] if isinstance(value, dict) else value
    if not isinstance(listed, list):
        raise BadRowError(UNREADABLE_TOOLS, f"`tools` is {found(value)}; expected a list of function schemas")
    return [_tool(one, f"tools[{index}]", filled) for index, one in enumerate(listed)]


def _tool(value: Any, where: str, filled: bool) -> dict[str, Any]:
    """One tool as `{"type": "function", "function": {"name", …}}`; a bare function is put into that form."""
    if isinstance(value, str):
        value, filled = parsed(value, where, UNREADABLE_TOOLS), False
    if not isinstance(value, dict):
        raise BadRowError(UNREADABLE_TOOLS, f"`{where}` is {found(value)}; expected a function schema")
    tool: dict[str, Any] = checked(value, where, filled=filled)
    kind = tool.get("type")
    function = tool.get("function")
    if kind not in (None, "function") and (function is not None or "parameters" not in tool or kind != "object"):
        raise BadRowError("unsupported tool", f"`{where}` has the type {_shown(kind)}; expected a function")
    if function is None:
        function = {key: inner for key, inner in tool.items() if key != "type"}
        tool = {"type": "function", "function": function}
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise BadRowError(UNREADABLE_TOOLS, f"`{where}` has the name {found(name)}; expected the schema of a function")
    return tool if kind is not None else {"type": "function", **tool}


def _kwargs(value: Any, filled: bool) -> dict[str, Any]:
    if isinstance(value, str) and value.strip():
        value, filled = parsed(value, "chat_template_kwargs", UNREADABLE_ARGUMENTS), False
    if not is_filled(value):
        return {}
    value = checked(value, "chat_template_kwargs", filled=filled)
    if not isinstance(value, dict):
        raise BadRowError(UNREADABLE_ARGUMENTS, f"`chat_template_kwargs` is {found(value)}; expected an object")
    return {key: inner for key, inner in value.items() if inner is not None}


def _shown(kind: Any) -> str:
    return quoted(kind) if isinstance(kind, str) else found(kind)
