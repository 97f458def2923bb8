"""Conversations for bench_templates: plain ones from a file and hard ones, of every shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Conversation = tuple[list[dict[str, str]], str]

_ANSWERS = (
    "Fine, thank you.",
    "ok",
    " leading space",
    "trailing space ",
    "\n\nnew lines first\n",
    "a list:\n\n- one\n- two\n\n\n",
    "def f(x):\n    return x + 1\n\n\nprint(f(2))\t# 3\r\n",
    "日本語と中文。한국어",
    "🎉👨‍👩‍👧‍👦 party 👍🏽!",
    "e\u0301clair naïve ½",
    "1234567890 3.14",
    "It's done.\n",
    "</p> <b>x</b> [1] {y}",
    "A:",
    "x",
    ".",
)
_NASTY = ("<|im_end|>", "</s> and <s>", "see <|eot_id|>", "[INST] no [/INST]", "<|user|>\nhi", "<|endoftext|>")
_THINKING = (
    "<think>\nLet me see.\n</think>\n\nYes.",
    "<think>\n\n</think>\n\nNo.",
    "<think>hm</think>short",
    "thinking about <think> tags",
)


def conversations(file: Path | None, count: int) -> list[Conversation]:
    """This many (prompt messages, answer): first the hard ones, then the file's chosen and rejected sides, of any shape."""
    made: list[Conversation] = []
    for i, answer in enumerate((*_ANSWERS, *_NASTY, *_THINKING)):
        user = {"role": "user", "content": ("How are you?", "Write it.\n", "hi")[i % 3]}
        system = {"role": "system", "content": ("Be brief.", "You are a poet.\n\nRhyme.", "")[i % 3]}
        earlier = [{"role": "user", "content": "First question"}, {"role": "assistant", "content": "First answer."}]
        shapes = ([user], [system, user], [*earlier, user], [system, *earlier, user])
        made += [(shapes[i % 4], answer), (shapes[(i + 1) % 4], answer)]
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFirst answer."}
    made += [
        ([{"role": "user", "content": "First"}, thought, {"role": "user", "content": "Second"}], "Then."),
        ([{"role": "user", "content": ""}], "x"),
        ([{"role": "user", "content": "say <|im_start|>"}], "no"),
    ]
    if file is not None and len(made) < count:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            made += [(row["prompt"], row[side][0]["content"]) for side in ("chosen", "rejected")]
            if len(made) >= count:
                break
    return made[:count]


Row = dict[str, Any]
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "City"}},
            "required": ["city"],
        },
    },
}


def structured() -> list[Row]:
    """Conversations with reasoning, tool calls, results, several messages, tools and template arguments (20 of them)."""
    user, system = (
        {"role": "user", "content": "How is the weather in Paris?"},
        {"role": "system", "content": "Be brief."},
    )
    answer = {"role": "assistant", "content": "It is 21 degrees."}
    thought = {**answer, "reasoning_content": "The result has it.\n21 degrees."}
    arguments = {"city": 'Paris "x"\n日本', "n": 3, "deep": {"flag": True, "list": ["a", None]}}
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"name": "get_weather", "arguments": arguments, "id": "call_1a2b"}],
    }
    result = {"role": "tool", "content": '{"temperature": 21}', "tool_call_id": "call_1a2b", "name": "get_weather"}
    thinking_call, spoken_call = {**call, "reasoning_content": "I ask for it."}, {**call, "content": "Let me look."}
    again = {**call, "tool_calls": [{"name": "get_time", "arguments": {"city": "Rome"}, "id": "call_9z8y"}]}
    second = {"role": "tool", "content": "noon", "tool_call_id": "call_9z8y", "name": "get_time"}
    both = {**call, "tool_calls": [*call["tool_calls"], *again["tool_calls"]]}
    earlier = [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "First.", "reasoning_content": "Hm, first."},
    ]

    def row(prompt: list[Row], completion: list[Row], **more: Any) -> Row:
        return {"prompt": prompt, "completion": completion, **more}

    return [
        row([user], [thought]),
        row([system, user], [thought]),
        row([*earlier, user], [thought]),
        row([*earlier, user], [answer]),
        row([user], [{**thought, "reasoning_content": "one line "}]),
        row([user], [call]),
        row([system, user], [call], tools=[_TOOL]),
        row([user], [thinking_call], tools=[_TOOL]),
        row([user], [spoken_call]),
        row([user], [both]),
        row([user, call, result], [answer], tools=[_TOOL]),
        row([user, thinking_call, result], [thought]),
        row([user, call, result], [again]),
        row([user], [call, result, answer], tools=[_TOOL]),
        row([user], [thinking_call, result, thought]),
        row([system, user], [call, result, again, second, answer]),
        row([user], [answer], tools=[_TOOL]),
        row([user], [answer], template_kwargs={"enable_thinking": False}),
        row([user], [thought], template_kwargs={"enable_thinking": True, "thinking": True}),
        row([system, user], [answer], template_kwargs={"reasoning_effort": "high", "thinking": False}),
    ]
