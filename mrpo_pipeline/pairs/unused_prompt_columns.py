"""Detect columns that probably hold a part of the prompt and are not used."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.completion import completion_messages
from mrpo_pipeline.pairs.identity import Message, parse_prompt, prompt_settings
from mrpo_pipeline.pairs.row_errors import quoted
from mrpo_pipeline.pairs.row_pairs import Pair
from mrpo_pipeline.pairs.serialized import parse_literal

_LONG = 24  # characters; a text of this length is not contained in another by chance
_NO_TEXT = frozenset({"role", "from", "name", "type", "id", "tool_call_id", "weight", "train", "loss"})
_TEXT_KEYS = ("content", "reasoning_content", "tool_calls")
_SYSTEM = ("system", "system_prompt", "system_message", "sys_prompt", "custom_system_prompt")


def refuse_unused(
    file: str,
    row: int,
    value: Mapping[str, Any],
    columns: Sequence[str],
    pairs: Sequence[Pair],
    prompt_columns: Sequence[str],
) -> None:
    """Raise UserError if one of `columns` holds text that is missing from the prompt, which is built from `prompt_columns`.

    A column may repeat the prompt, and messages may repeat prompt and answer.
    """
    prompt = parse_prompt(pairs[0].prompt)
    prompt_texts = [prompt] if isinstance(prompt, str) else _message_texts(prompt)
    prompt_texts += _texts(prompt_settings(pairs[0].prompt).tools)
    answers = [
        text
        for pair in pairs
        for side in (pair.chosen, pair.rejected)
        for text in _message_texts(completion_messages(side))
    ]
    for column in columns:
        cell = value[column]
        if isinstance(cell, str):
            cell = parse_literal(cell) or cell
        repeated = prompt_texts if isinstance(cell, str) else [*prompt_texts, *answers]
        missing = next(_missing(cell, repeated), None)
        if missing is not None:
            raise UserError(
                f"{file}: row {row}: the column {column!r} holds {quoted(missing)}, which is not in the prompt and would be lost. "
                f"{_suggestion(column, prompt_columns)}, or drop it with `pairs.ignore_columns: [{column}]`."
            )


def _suggestion(column: str, prompt_columns: Sequence[str]) -> str:
    name = column.lower()
    if name in _SYSTEM:
        return f"Map it (`pairs.columns: {{system: {column}}}`)"
    if name.startswith(("initial_reason", "prefix", "partial_", "response_prefix")):
        return "If it begins both answers, set `pairs.layout: step_dpo` or prepend it to both"
    built = [*prompt_columns, column] if name in ("input", "inputs") else [column, *prompt_columns]
    return (
        f"Build the prompt from both (`pairs.columns: {{prompt: [{', '.join(built)}]}}`, joined by a blank line), use a layout "
        "(`mrpo recipes layouts`)"
    )


def _message_texts(messages: Sequence[Message]) -> list[str]:
    """All texts of messages: content, reasoning, and texts in the arguments of calls."""
    return [text for message in messages for key in _TEXT_KEYS for text in _texts(message.get(key))]


def _missing(cell: Any, repeated: Sequence[str]) -> Iterator[str]:
    """Texts of a cell that are not in `repeated`. For a JSON text (call arguments), the texts inside it are compared."""
    for text in _texts(cell):
        if not _holds(repeated, text):
            inner = parse_literal(text)
            if inner is None:
                yield text
            else:
                yield from _missing(inner, repeated)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, Mapping):
        return [text for key, inner in value.items() if key not in _NO_TEXT for text in _texts(inner)]
    return [text for inner in value for text in _texts(inner)] if isinstance(value, list | tuple) else []


def _holds(texts: Sequence[str], part: str) -> bool:
    """Whether one of the texts contains `part`: on lines of its own, or anywhere if it is long."""
    if len(part) >= _LONG:
        return any(part in text for text in texts)
    alone = re.compile(rf"(?:^|\n)[ \t]*{re.escape(part)}[ \t]*(?:\n|\Z)")
    return any(alone.search(text) for text in texts)
