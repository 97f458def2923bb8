"""Reasoning, tool calls and tool results in all supported formats give one canonical message."""

import json
from pathlib import Path
from typing import Any

import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import PairTable, dump_prompt, parse_prompt, read_pairs
from mrpo_pipeline.pairs.completion import completion_messages, completion_text
from mrpo_pipeline.pairs.identity import prompt_settings

USER = {"role": "user", "content": "Weather in Paris?"}
PLAIN = [{"role": "assistant", "content": "No idea."}]
CALL = {"name": "weather", "arguments": {"city": "Paris", "days": 2}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
FUNCTION = {"name": "weather", "arguments": '{"city": "Paris", "days": 2}'}
SCHEMA = {"name": "weather", "description": "now", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": SCHEMA}


def read(folder: Path, *rows: dict[str, Any], **options: Any) -> PairTable:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_pairs(str(path), **options)


def chosen(folder: Path, side: Any, **options: Any) -> list[dict[str, Any]]:
    """Messages of a completion after reading."""
    table = read(folder, {"prompt": [USER], "chosen": side, "rejected": PLAIN}, **options)
    return completion_messages(table.frame["chosen"][0])


def call_with(**more: Any) -> dict[str, Any]:
    return {**CALLING, "tool_calls": [{**CALL, **more}]}


# (message in the data, canonical message)
MESSAGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # Calls: OpenAI's with arguments as text, with an id and no content; TRL's with an object; the function bare; older ones.
    ({"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}]}, call_with(id="c1")),
    ({"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]}, CALLING),
    ({"role": "assistant", "content": "", "tool_calls": [CALL], "function_call": None, "audio": None}, CALLING),
    ({"role": "assistant", "content": "", "tool_calls": [CALL], "function_call": {"name": None, "arguments": ""}}, CALLING),
    ({"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])}, CALLING),
    ({"role": "assistant", "content": "", "tool_calls": [json.dumps(CALL)]}, CALLING),
    ({"role": "assistant", "content": None, "function_call": FUNCTION}, CALLING),
    ({"role": "assistant", "content": "", "function_call": FUNCTION, "tool_calls": [{"id": "c1", "function": CALL}]}, call_with(id="c1")),
    ({"role": "assistant", "content": "", "tool_calls": [{"name": "now", "arguments": ""}]},
     {**CALLING, "tool_calls": [{"name": "now", "arguments": {}}]}),
    ({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "now"}}]},
     {**CALLING, "tool_calls": [{"name": "now", "arguments": {}}]}),
    ({"role": "assistant", "content": "I look.", "tool_calls": [CALL]}, {**CALLING, "content": "I look."}),
    # A null inside arguments is kept in formats that store objects as they were written.
    ({"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": None, "b": [{"c": None}]}}]},
     {**CALLING, "tool_calls": [{"name": "f", "arguments": {"a": None, "b": [{"c": None}]}}]}),
    # ShareGPT and LLaMA-Factory, ms-swift.
    ({"from": "function_call", "value": json.dumps(CALL)}, CALLING),
    ({"from": "function_call", "value": json.dumps([CALL, {"name": "b", "arguments": {}}])},
     {**CALLING, "tool_calls": [CALL, {"name": "b", "arguments": {}}]}),
    ({"from": "function_call", "value": "<think>\nhm\n</think>\n" + json.dumps(CALL)}, {**CALLING, "reasoning_content": "hm"}),
    ({"role": "tool_call", "content": json.dumps(CALL)}, CALLING),
    # Reasoning: every name, and as parts of the content.
    *(({"role": "assistant", "content": "x", key: "hm"}, {"role": "assistant", "content": "x", "reasoning_content": "hm"})
      for key in ("reasoning_content", "reasoning", "thinking")),
    ({"role": "assistant", "content": "x", "reasoning": "hm", "thinking": "hm"},
     {"role": "assistant", "content": "x", "reasoning_content": "hm"}),
    ({"role": "assistant", "content": [{"type": "thinking", "thinking": "h", "signature": "s"}, {"type": "text", "text": "x"}]},
     {"role": "assistant", "content": "x", "reasoning_content": "h"}),
    ({"role": "assistant", "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]},
                                       {"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
     {"role": "assistant", "content": "xy", "reasoning_content": "hm"}),
    ({"role": "assistant", "thinking": "only", "content": None}, {"role": "assistant", "content": "", "reasoning_content": "only"}),
    ({"role": "assistant", "thinking": "hm", "tool_calls": [CALL]}, {**CALLING, "reasoning_content": "hm"}),
    # Blank reasoning is absent, and the answer is plain text.
    ({"role": "assistant", "content": "x", "reasoning_content": " \n", "tool_calls": [], "refusal": None},
     {"role": "assistant", "content": "x"}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "canonical"), MESSAGES)
def test_a_message_is_read_in_every_format(tmp_path: Path, given: dict[str, Any], canonical: dict[str, Any]) -> None:
    wanted = {key: canonical[key] for key in ("role", "content", "reasoning_content", "tool_calls") if key in canonical}
    assert chosen(tmp_path, [given]) == chosen(tmp_path, given) == [wanted]


RESULTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"role": "tool", "content": "12", "tool_call_id": "c1", "name": "weather"}, {"tool_call_id": "c1", "name": "weather"}),
    ({"role": "tool", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}], "tool_calls": None}, {}),
    ({"role": "function", "name": "weather", "content": "12"}, {"name": "weather"}),
    ({"role": "ipython", "content": "12"}, {}),
    ({"from": "observation", "value": "12"}, {}),
    ({"from": "tool", "value": "12"}, {}),
    ({"role": "tool_response", "content": "12"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "more"), RESULTS)
def test_a_tool_result_is_read_in_every_format_in_prompts_and_completions(
    tmp_path: Path, given: dict[str, Any], more: dict[str, Any]
) -> None:
    result = {"role": "tool", "content": "12", **more}
    assert chosen(tmp_path, [CALLING, given, *PLAIN])[1] == result
    table = read(tmp_path, {"prompt": [USER, CALLING, given], "chosen": "12 °C.", "rejected": "13 °C."} | SIDES)
    assert parse_prompt(table.frame["prompt"][0]) == [USER, CALLING, result]


SIDES = {"chosen": [{"role": "assistant", "content": "12 °C."}], "rejected": PLAIN}


def test_an_empty_tool_result_is_kept(tmp_path: Path) -> None:
    for content in ("", None, []):
        assert chosen(tmp_path, [CALLING, {"role": "tool", "content": content}, *PLAIN])[1]["content"] == ""


def test_calls_after_an_assistant_text_belong_to_the_same_turn(tmp_path: Path) -> None:
    turns = [
        {"from": "gpt", "value": "I look."},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "function_call", "value": json.dumps({"name": "b", "arguments": {}})},
        {"from": "observation", "value": "12"},
        {"from": "gpt", "value": "12 °C."},
    ]
    first, *rest = chosen(tmp_path, turns)
    assert first == {**CALLING, "content": "I look.", "tool_calls": [CALL, {"name": "b", "arguments": {}}]}
    assert [message["role"] for message in rest] == ["tool", "assistant"]


def test_all_formats_of_a_conversation_have_the_same_id(tmp_path: Path) -> None:
    openai = {
        "prompt": [USER, {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": FUNCTION}]},
                   {"role": "tool", "content": "12"}],
        "chosen": [{"role": "assistant", "reasoning_content": "hm", "content": "x"}], "rejected": PLAIN, "tools": [TOOL],
    }  # fmt: skip
    sharegpt = {
        "conversations": [{"from": "human", "value": USER["content"]}, {"from": "function_call", "value": json.dumps(CALL)},
                          {"from": "observation", "value": "12"}],
        "chosen": {"from": "gpt", "value": "x", "thinking": "hm"}, "rejected": {"from": "gpt", "value": "No idea."},
        "tools": json.dumps([SCHEMA]),
    }  # fmt: skip
    one, other = read(tmp_path, openai), read(tmp_path, sharegpt)
    assert one.frame["pair_id"].to_list() == other.frame["pair_id"].to_list()
    assert "tools `tools`" in other.read_as[0] and "llamafactory_sharegpt" in other.read_as[0]


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], [SCHEMA], SCHEMA,
                                   [{"type": "function", **SCHEMA}], [{"function": SCHEMA}]])  # fmt: skip
def test_tools_and_arguments_of_the_template_are_part_of_the_prompt(tmp_path: Path, tools: Any) -> None:
    row = {"prompt": [USER], **SIDES, "tools": tools, "chat_template_kwargs": {"enable_thinking": False, "x": None}}
    frame = read(tmp_path, row).frame
    assert prompt_settings(frame["prompt"][0]) == ([TOOL], {"enable_thinking": False})
    assert parse_prompt(frame["prompt"][0]) == [USER]
    assert frame["extra"].to_list() == [None]
    plain = read(tmp_path, {"prompt": [USER], **SIDES}).frame
    assert frame["pair_id"][0] != plain["pair_id"][0]


@pytest.mark.parametrize("empty", [None, [], {}, "", "[]", "{}", "null"])
def test_empty_tools_and_arguments_change_nothing(tmp_path: Path, empty: Any) -> None:
    frame = read(tmp_path, {"prompt": [USER], **SIDES, "tools": empty, "chat_template_kwargs": empty}).frame
    assert frame["prompt"].to_list() == [dump_prompt([USER])]


def test_other_columns_are_mapped_and_strings_as_turns_have_tools(tmp_path: Path) -> None:
    row = {
        "prompt": "Tea?",
        "chosen": "yes",
        "rejected": "no",
        "functions": [SCHEMA],
        "how": {"args": '{"deep": true}'},
    }
    columns = {"tools": "functions", "chat_template_kwargs": "how.args"}
    frame = read(tmp_path, row, columns=columns, strings="messages").frame
    assert prompt_settings(frame["prompt"][0]) == ([TOOL], {"deep": True})
    with pytest.raises(UserError, match=r"no row has the column 'function'.*did you mean 'functions'"):
        read(tmp_path, row, columns={"tools": "function"}, strings="messages")


def test_json_strings_of_messages_with_only_calls_are_detected(tmp_path: Path) -> None:
    text = json.dumps([{"role": "assistant", "tool_calls": [CALL]}])
    row = {"prompt": json.dumps([USER]), "chosen": text, "rejected": json.dumps(PLAIN)}
    with pytest.raises(UserError, match="messages in a string"):
        read(tmp_path, row)
    frame = read(tmp_path, row, serialized="parse").frame
    assert completion_messages(frame["chosen"][0]) == [CALLING]


def test_a_conversation_repeated_in_another_column_loses_nothing(tmp_path: Path) -> None:
    asked = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [{"function": FUNCTION}]},
        {"role": "tool", "content": "12"},
    ]
    row = {"prompt": asked, **SIDES, "messages": [*asked, {"role": "assistant", "content": "12 °C."}]}
    assert read(tmp_path, row).frame.height == 1
    other = {"role": "assistant", "tool_calls": [{"function": {**FUNCTION, "arguments": '{"city": "Rome"}'}}]}
    row["messages"] = [USER, other, *asked[2:]]
    with pytest.raises(UserError, match="'messages' holds 'Rome'"):
        read(tmp_path, row)


def test_structure_distinguishes_completions_of_equal_text(tmp_path: Path) -> None:
    """Equal text with a different structure is a different completion."""
    thinking = {"role": "assistant", "content": "b", "thinking": "a"}
    row = {"prompt": [USER], "chosen": [thinking], "rejected": [{"role": "assistant", "content": "ab"}]}
    frame = read(tmp_path, row).frame
    assert completion_text(frame["chosen"][0]) == completion_text(frame["rejected"][0]) == "ab"
