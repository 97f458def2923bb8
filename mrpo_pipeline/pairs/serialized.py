"""Strings that are serialized conversations: JSON or Python text of messages, or the rendering of a chat template.

Read as plain text, such a string would be trained on including its braces or control tokens.
"""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from mrpo_pipeline.pairs.row_errors import BadRowError, quoted

Serialized = Literal["error", "parse", "text"]

# `[{"role": …` and similar, with JSON or Python quotes; numpy writes no comma between objects.
_BODY = "content|value|tool_calls|function_call"
_MESSAGES = re.compile(
    rf"""\s*(?:array\()?\[?\s*\{{\s*(['"])(?:role|from|name|weight|tool_call_id|reasoning_content|{_BODY})\1\s*:"""
)
_BOTH_KEYS = (re.compile(r"""(['"])(?:role|from)\1\s*:"""), re.compile(rf"""(['"])(?:{_BODY})\1\s*:"""))

_ROLE = r"(?:system|user|assistant|developer|model|human|tool|ipython)"
_BOS = (
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<BOS_TOKEN>|<｜begin▁of▁sentence｜>"
    r"|\[gMASK\](?:<sop>)?|<\|endoftext\|>|\]~!b\[)*\s*"
)
# Beginning of a turn in each family of templates; a rendering begins with one.
_OPENINGS = {
    "ChatML": rf"<\|im_start\|>\s*{_ROLE}\b",
    "Llama 3": rf"<\|start_header_id\|>\s*{_ROLE}\s*<\|end_header_id\|>",
    "Llama 4": rf"<\|header_start\|>\s*{_ROLE}\s*<\|header_end\|>",
    "Llama 2 or Mistral": r"\[INST\](?=.*\[/INST\])|\[SYSTEM_PROMPT\](?=.*\[/SYSTEM_PROMPT\])|\[AVAILABLE_TOOLS\]",
    "Gemma": rf"<start_of_turn>\s*{_ROLE}\b|<\|turn>\s*{_ROLE}\b",
    "Zephyr or Phi": r"<\|(?:system|user|assistant)\|>",
    "Command": r"<\|START_OF_TURN_TOKEN\|>",
    "DeepSeek": r"<｜(?:User|Assistant)｜>",
    "gpt-oss": rf"<\|start\|>\s*{_ROLE}\b",
    "Granite": rf"<\|start_of_role\|>\s*{_ROLE}",
    "OpenChat": r"GPT4 Correct (?:User|Assistant):(?=.*<\|end_of_turn\|>)",
    "Kimi": r"<\|im_(?:system|user|assistant)\|>",
    "EXAONE": r"\[\|(?:system|user|assistant)\|\]",
    "MiniMax": rf"\]~b\]\s*(?:ai|{_ROLE})\b",
    "Nemotron": r"<extra_id_0>\s*System\b|<extra_id_1>\s*(?:User|Assistant)\b",
}
_OPENING = {family: re.compile(_BOS + f"(?:{pattern})", re.DOTALL) for family, pattern in _OPENINGS.items()}
# End-of-turn tokens, which scripts append to answers for trainers that add none.
_ENDINGS = (
    "<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "<turn|>", "<|end|>",
    "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<|return|>", "<|end_of_role|>", "[|endofturn|]",
)  # fmt: skip
# Beginning of an answer at the end of a rendering.
_ANSWER_BEGINS = re.compile(
    r"(?:<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|<\|header_start\|>assistant<\|header_end\|>"
    r"|<start_of_turn>model|<\|turn>model|<\|assistant\|>|<｜Assistant｜>|<\|CHATBOT_TOKEN\|>|<\|start\|>assistant"
    r"|<\|start_of_role\|>assistant<\|end_of_role\|>|<\|im_assistant\|>assistant<\|im_middle\|>|\[\|assistant\|\]|\[/INST\])\s*\Z"
)
_FIRST = frozenset("<[]G")
_LAST = frozenset(">]lt")


def check_serialized(value: Any, name: str, mode: Serialized) -> Any:
    """Return a side or prompt, with strings of messages parsed in `mode` "parse"; "text" accepts every string unchanged.

    Raises BadRowError for a rendering of a chat template, and in `mode` "error" for a string of messages.
    """
    if mode == "text":
        return value
    if isinstance(value, str):
        if value.lstrip()[:1] in ("[", "{", "a") and looks_like_messages(value):
            return _parsed(value, name) if mode == "parse" else _refuse_messages(value, name)
        family = rendered_family(value)
        if family is not None:
            raise _rendered(value, name, family)
    for index, message in enumerate(value if isinstance(value, list) else [value]):
        content = message.get("content", message.get("value")) if isinstance(message, dict) else None
        # A quoted turn is content; text that begins like a turn and ends with the beginning of an answer is a rendering.
        if isinstance(content, str) and opens_a_turn(content) and begins_an_answer(content):
            raise _rendered(content, f"{name}[{index}]", "the complete prompt in one message")
    return value


def refuse_end_tokens(completions: Sequence[str], names: Sequence[str]) -> None:
    """Raise BadRowError if every completion ends with an end-of-turn token, which some scripts append for other trainers."""
    if all(completion.rstrip().endswith(_ENDINGS) for completion in completions):
        raise _rendered(
            completions[0].rstrip()[-40:], names[0], "every answer of the row ends with an end-of-turn token"
        )


def looks_like_messages(text: str) -> bool:
    """Whether a string looks like a message or a list of messages in JSON or Python syntax."""
    return bool(_MESSAGES.match(text)) and text.rstrip()[-1:] in "]})" and all(key.search(text) for key in _BOTH_KEYS)


def _refuse_messages(text: str, name: str) -> Any:
    raise BadRowError(
        "messages in a string",
        f"`{name}` is a string that holds messages ({quoted(text)}); set `pairs.serialized: parse` to parse such strings, or "
        "text to use them unchanged",
    )


def parse_literal(text: str) -> list[Any] | dict[Any, Any] | None:
    """List or object that a string holds in JSON or Python syntax; None for any other string."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | dict):
            return value
    return None


def _parsed(text: str, name: str) -> Any:
    value = parse_literal(text)
    if value is not None:
        return value
    raise BadRowError(
        "unreadable messages in a string",
        f"`{name}` looks like messages ({quoted(text)}), but is neither valid JSON nor a Python list; write the messages as JSON",
    )


def opens_a_turn(text: str) -> str | None:
    """Family of chat templates whose turns begin like this text, or None."""
    if text.lstrip()[:1] not in _FIRST:
        return None
    return next((family for family, opening in _OPENING.items() if opening.match(text)), None)


def begins_an_answer(text: str) -> bool:
    """Whether a text ends with the beginning of an assistant turn."""
    bare = text.rstrip()
    return bare[-1:] in _LAST and bool(_ANSWER_BEGINS.search(bare[-120:]))


def rendered_family(text: str) -> str | None:
    """Family of chat templates that rendered a string; None for other text, including text that quotes a turn."""
    return opens_a_turn(text) or ("it ends with the beginning of an answer" if begins_an_answer(text) else None)


def _rendered(text: str, name: str, family: str) -> BadRowError:
    return BadRowError(
        "rendered by a chat template",
        f"`{name}` is rendered by a chat template ({family}): {quoted(text)}. Each model applies its own template, so these "
        "control tokens would be read as text. Use the original messages (role and content), or set `pairs.serialized: text` if "
        "it is content",
    )
