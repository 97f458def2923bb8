"""Prompts and completions as text for people."""

import json
from collections.abc import Iterator, Sequence

from mrpo_pipeline.pairs.completion import completion_messages, is_plain
from mrpo_pipeline.pairs.identity import Message, parse_prompt, prompt_settings


def readable_prompt(prompt: str) -> str:
    """Raw text unchanged, or a line per message, with tools and template arguments first."""
    content = parse_prompt(prompt)
    if isinstance(content, str):
        return content
    tools, template_kwargs = prompt_settings(prompt)
    lines = [f"tools: {', '.join(tool['function']['name'] for tool in tools)}"] if tools else []
    if template_kwargs:
        lines.append(f"template arguments: {json.dumps(template_kwargs, ensure_ascii=False)}")
    return "\n".join([*lines, *_lines(content)])


def readable_completion(completion: str) -> str:
    """A completion's text, or a line per part."""
    return completion if is_plain(completion) else "\n".join(_lines(completion_messages(completion)))


def _lines(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        if "reasoning_content" in message:
            yield f"reasoning: {message['reasoning_content']}"
        calls = message.get("tool_calls", ())
        if message["content"] or not (calls or "reasoning_content" in message):
            yield f"{message['role']}: {message['content']}"
        for call in calls:
            yield f"tool call: {call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}"
