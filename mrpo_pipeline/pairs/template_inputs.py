"""Inputs of a chat template from a row, besides its messages: tools and template arguments."""

from typing import Any

from mrpo_pipeline.pairs.field_paths import is_filled
from mrpo_pipeline.pairs.identity import PromptSettings
from mrpo_pipeline.pairs.json_values import check_json, parse_json
from mrpo_pipeline.pairs.row_errors import BadRowError, describe, quoted

UNREADABLE_TOOLS = "unreadable tools"
UNREADABLE_ARGUMENTS = "unreadable chat_template_kwargs"


def read_settings(tools: Any, template_kwargs: Any, drop_nulls: bool = False) -> PromptSettings:
    """Parse the columns `tools` and `chat_template_kwargs`; null and empty values are absent.

    `drop_nulls`: see `json_values.check_json`. Raises BadRowError.
    """
    return PromptSettings(_tools(tools, drop_nulls) or None, _kwargs(template_kwargs, drop_nulls) or None)


def _tools(value: Any, drop_nulls: bool) -> list[dict[str, Any]]:
    if isinstance(value, str) and value.strip():
        value, drop_nulls = parse_json(value, "tools", UNREADABLE_TOOLS), False
    if not is_filled(value):
        return []
    listed = [value] if isinstance(value, dict) else value
    if not isinstance(listed, list):
        raise BadRowError(UNREADABLE_TOOLS, f"`tools` is {describe(value)}; expected a list of function schemas")
    return [_tool(one, f"tools[{index}]", drop_nulls) for index, one in enumerate(listed)]


def _tool(value: Any, where: str, drop_nulls: bool) -> dict[str, Any]:
    """Normalize a tool to `{"type": "function", "function": {"name", …}}`."""
    if isinstance(value, str):
        value, drop_nulls = parse_json(value, where, UNREADABLE_TOOLS), False
    if not isinstance(value, dict):
        raise BadRowError(UNREADABLE_TOOLS, f"`{where}` is {describe(value)}; expected a function schema")
    tool: dict[str, Any] = check_json(value, where, drop_nulls=drop_nulls)
    kind = tool.get("type")
    function = tool.get("function")
    if kind not in (None, "function") and (function is not None or "parameters" not in tool or kind != "object"):
        raise BadRowError("unsupported tool", f"`{where}` has the type {quoted(kind)}; expected function")
    if function is None:
        function = {key: inner for key, inner in tool.items() if key != "type"}
        tool = {"type": "function", "function": function}
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise BadRowError(UNREADABLE_TOOLS, f"`{where}` has the name {describe(name)}; expected a function schema")
    return tool if kind is not None else {"type": "function", **tool}


def _kwargs(value: Any, drop_nulls: bool) -> dict[str, Any]:
    if isinstance(value, str) and value.strip():
        value, drop_nulls = parse_json(value, "chat_template_kwargs", UNREADABLE_ARGUMENTS), False
    if not is_filled(value):
        return {}
    value = check_json(value, "chat_template_kwargs", drop_nulls=drop_nulls)
    if not isinstance(value, dict):
        raise BadRowError(UNREADABLE_ARGUMENTS, f"`chat_template_kwargs` is {describe(value)}; expected an object")
    return {key: inner for key, inner in value.items() if inner is not None}
