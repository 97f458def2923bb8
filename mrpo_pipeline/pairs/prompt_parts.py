"""Columns that well-known sets use for a part of the prompt, and that no pair has read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.bad_row import quoted
from mrpo_pipeline.pairs.completion import completion_messages
from mrpo_pipeline.pairs.identity import Message, parse_prompt, prompt_settings
from mrpo_pipeline.pairs.rows import Pair
from mrpo_pipeline.pairs.serialized import written_out

_LONG = 24  # characters of a text that is hardly found in another by chance
_NO_TEXT = frozenset({"role", "from", "name", "type", "id", "tool_call_id", "weight", "train", "loss"})
_SPOKEN = ("content", "reasoning_content", "tool_calls")
_SYSTEM = ("system", "system_prompt", "system_message", "sys_prompt", "custom_system_prompt")


def refuse_unused(
    file: str,
    row: int,
    value: Mapping[str, Any],
    columns: Sequence[str],
    pairs: Sequence[Pair],
    prompt_columns: Sequence[str],
) -> None:
    """Refuse a row of which one of `columns` holds text that its prompt, read from `prompt_columns`, lacks.

    A column that repeats the prompt, or messages that repeat prompt and answer, lose nothing.
    Raises UserError.
    """
    prompt = parse_prompt(pairs[0].prompt)
    asked = [prompt] if isinstance(prompt, str) else _spoken(prompt)
    asked += _texts(prompt_settings(pairs[0].prompt).tools)
    answers = [
        text for pair in pairs for side in (pair.chosen, pair.rejected) for text in _spoken(completion_messages(side))
    ]
    for column in columns:
        cell = value[column]
        if isinstance(cell, str):
            cell = written_out(cell) or cell
        repeated = asked if isinstance(cell, str) else [*asked, *answers]
        missing = next(_missing(cell, repeated), None)
        if missing is not None:
            raise UserError(
                f"{file}: row {row}: the column {column!r} holds {quoted(missing)}, which the prompt does not have: a part of "
                f"the prompt would be dropped. {_way_out(column, prompt_columns)}, or leave it out on purpose by "
                f"`pairs.ignore_columns: [{column}]`."
            )


def _way_out(column: str, prompt_columns: Sequence[str]) -> str:
    name = column.lower()
    if name in _SYSTEM:
        return f"Map it (`pairs.columns: {{system: {column}}}`)"
    if name.startswith(("initial_reason", "prefix", "partial_", "response_prefix")):
        return "If it begins both answers, name `pairs.layout: step_dpo`, or write it into both"
    built = [*prompt_columns, column] if name in ("input", "inputs") else [column, *prompt_columns]
    return (
        f"Build the prompt of both (`pairs.columns: {{prompt: [{', '.join(built)}]}}`, joined by a blank line) or name a layout "
        "(`mrpo recipes layouts`)"
    )


def _spoken(messages: Sequence[Message]) -> list[str]:
    """Every text of some messages: content, reasoning, and the texts in the arguments of calls."""
    return [text for message in messages for key in _SPOKEN for text in _texts(message.get(key))]


def _missing(cell: Any, repeated: Sequence[str]) -> Iterator[str]:
    """The texts of a cell that none of `repeated` has; one that is JSON (the arguments of a call) is there if its texts are."""
    for text in _texts(cell):
        if not _holds(repeated, text):
            inner = written_out(text)
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


def _holds(texts: Sequence[str], wanted: str) -> bool:
    """Whether one of the texts has it: as lines of its own, or anywhere where it is too long for chance."""
    for text in texts:
        start = text.find(wanted)
        while start >= 0:
            before, after = text[:start].rstrip(" \t")[-1:], text[start + len(wanted) :].lstrip(" \t")[:1]
            if len(wanted) >= _LONG or (before in ("", "\n") and after in ("", "\n")):
                return True
            start = text.find(wanted, start + 1)
    return False
