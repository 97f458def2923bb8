"""Strings that hold a conversation in another form: JSON or Python text of messages, or a chat template's rendering.

Read as plain text, such a string would be trained on with its braces or its control tokens spelled out.
"""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from mrpo_pipeline.pairs.bad_row import BadRowError, quoted

Serialized = Literal["error", "parse", "text"]

# `[{"role": …` and its kin, in JSON's quotes or Python's; numpy writes no comma between the objects.
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
# How a turn opens in each family of templates; a rendering begins with one.
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
# What ends a turn, at the end of an answer: scripts put it there for trainers that add none.
_ENDINGS = (
    "<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "<turn|>", "<|end|>",
    "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<|return|>", "<|end_of_role|>", "[|endofturn|]",
)  # fmt: skip
# A turn that opens within: the end of a rendering that begins with a text of its own.
_ANSWER_BEGINS = re.compile(
    r"(?:<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|<\|header_start\|>assistant<\|header_end\|>"
    r"|<start_of_turn>model|<\|turn>model|<\|assistant\|>|<｜Assistant｜>|<\|CHATBOT_TOKEN\|>|<\|start\|>assistant"
    r"|<\|start_of_role\|>assistant<\|end_of_role\|>|<\|im_assistant\|>assistant<\|im_middle\|>|\[\|assistant\|\]|\[/INST\])\s*\Z"
)
_FIRST = frozenset("<[]G")
_LAST = frozenset(">]lt")


def admit(value: Any, name: str, mode: Serialized) -> Any:
    """A side or prompt as it may be read: strings that hold messages parsed or refused, renderings refused.

    Raises BadRowError. `mode` "text" lets every string through as it is.
    """
    if mode == "text":
        return value
    if isinstance(value, str):
        if value.lstrip()[:1] in ("[", "{", "a") and holds_messages(value):
            return _parsed(value, name) if mode == "parse" else _refuse_messages(value, name)
        family = rendered_family(value)
        if family is not None:
            raise _rendered(value, name, family)
    for index, message in enumerate(value if isinstance(value, list) else [value]):
        content = message.get("content", message.get("value")) if isinstance(message, dict) else None
        # A quotation of a turn is content; what opens like a turn and ends where an answer begins is no quotation.
        if isinstance(content, str) and opens_a_turn(content) and begins_an_answer(content):
            raise _rendered(content, f"{name}[{index}]", "the whole prompt in one message")
    return value


def refuse_end_tokens(completions: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a row of which every completion ends in an end-of-turn token, as scripts for other trainers write them.

    Raises BadRowError.
    """
    if all(completion.rstrip().endswith(_ENDINGS) for completion in completions):
        raise _rendered(
            completions[0].rstrip()[-40:], names[0], "it ends in an end-of-turn token, as every answer of the row does"
        )


def holds_messages(text: str) -> bool:
    """Whether a string is a written-out list of messages (or one message), in JSON or as Python prints it."""
    return bool(_MESSAGES.match(text)) and text.rstrip()[-1:] in "]})" and all(key.search(text) for key in _BOTH_KEYS)


def _refuse_messages(text: str, name: str) -> Any:
    raise BadRowError(
        "messages in a string",
        f"`{name}` is a string that holds messages ({quoted(text)}); set `pairs.serialized: parse` to read such strings as "
        "the messages, or text to take them as they are",
    )


def written_out(text: str) -> list[Any] | dict[Any, Any] | None:
    """The list or object that a string holds as JSON or Python text; None for any other string."""
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
    value = written_out(text)
    if value is not None:
        return value
    raise BadRowError(
        "unreadable messages in a string",
        f"`{name}` looks like messages ({quoted(text)}) and is neither JSON nor a Python list, as where a table was written "
        "from arrays; write the messages as JSON",
    )


def opens_a_turn(text: str) -> str | None:
    """The family of chat templates of which a text begins with a turn's opening."""
    if text.lstrip()[:1] not in _FIRST:
        return None
    return next((family for family, opening in _OPENING.items() if opening.match(text)), None)


def begins_an_answer(text: str) -> bool:
    """Whether a text ends in the opening of an assistant's turn."""
    bare = text.rstrip()
    return bare[-1:] in _LAST and bool(_ANSWER_BEGINS.search(bare[-120:]))


def rendered_family(text: str) -> str | None:
    """The family of chat templates that a string is a rendering of; None for any other text, quotations within included."""
    return opens_a_turn(text) or ("it ends in the opening of an answer" if begins_an_answer(text) else None)


def _rendered(text: str, name: str, family: str) -> BadRowError:
    return BadRowError(
        "rendered by a chat template",
        f"`{name}` is rendered by a chat template ({family}): {quoted(text)}. Each model puts its own template around "
        "messages, so these control tokens would be read as text. Give the messages (role and content) that it was made of, "
        "or set `pairs.serialized: text` if it is content",
    )
