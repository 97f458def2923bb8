"""Strings that hold a conversation as JSON, as Python text, or as a chat template's rendering: not read as plain text."""

import json
from pathlib import Path
from typing import Any

import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import PairTable, parse_prompt, read_pairs

ROW = {"prompt": "Name a river.", "chosen": "The Loire.", "rejected": "A hill."}
USER = {"role": "user", "content": 'It\'s a "river"?'}


def read(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> PairTable:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return read_pairs(str(path), **options)


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("write", [json.dumps, repr, lambda value: json.dumps(value, indent=2)])
@pytest.mark.parametrize("one", [False, True])
def test_messages_in_strings_are_errors_in_any_row_unless_parsing_is_enabled(
    tmp_path: Path, write: Any, one: bool
) -> None:
    sides = {
        name: write(answer(text) if one else [answer(text)]) for name, text in (("chosen", "a"), ("rejected", "b"))
    }
    row = {"prompt": write([USER]), **sides}
    with pytest.raises(UserError, match=r"row 20 \(line 21\): messages in a string.*pairs.serialized: parse"):
        read(tmp_path, *[ROW] * 20, row)
    frame = read(tmp_path, *[ROW] * 20, row, serialized="parse").frame
    assert (parse_prompt(frame["prompt"][20]), frame["chosen"][20], frame["rejected"][20]) == ([USER], "a", "b")
    assert parse_prompt(read(tmp_path, row, serialized="text").frame["prompt"][0]) == row["prompt"]


def test_numpy_reprs_of_messages_are_detected(tmp_path: Path) -> None:
    text = "[{'content': 'Q', 'role': 'user'}\n {'content': 'a', 'role': 'assistant'}]"
    with pytest.raises(UserError, match="messages in a string"):
        read(tmp_path, {"chosen": text, "rejected": text.replace("'a'", "'b'")})
    with pytest.raises(UserError, match="neither valid JSON nor a Python list"):
        read(tmp_path, {"chosen": text, "rejected": text.replace("'a'", "'b'")}, serialized="parse")


def test_lists_and_layouts_in_strings_are_parsed_when_enabled(tmp_path: Path) -> None:
    ranked = {"prompt": "Q", "completions": json.dumps(["a", "b"]), "ranks": "[2, 1]"}
    assert read(tmp_path, ranked, serialized="parse").frame["chosen"].to_list() == ["b"]
    nectar = {"prompt": "Q", "answers": json.dumps([{"answer": "a", "rank": 2.0}, {"answer": "b", "rank": 1.0}])}
    assert read(tmp_path, nectar, serialized="parse").frame["chosen"].to_list() == ["b"]


@pytest.mark.parametrize(
    "text", ["[1, 2, 3]", '{"a": 1}', "[{'x': 1}]", 'Write {"role": "user", "content": "x"} as YAML', "array", "{{x}}"]
)
def test_other_text_with_brackets_is_text(tmp_path: Path, text: str) -> None:
    frame = read(tmp_path, {**ROW, "prompt": text, "chosen": text + "."}).frame
    assert (parse_prompt(frame["prompt"][0]), frame["chosen"][0]) == (text, text + ".")


RENDERED = {
    "ChatML": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
    "Llama 3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "Llama 4": "<|header_start|>user<|header_end|>\n\nQ<|eot|><|header_start|>assistant<|header_end|>\n\n",
    "Llama 2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nQ [/INST]",
    "Mistral": "[INST] Q [/INST] ",
    "Gemma": "<bos><start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\n",
    "Zephyr": "<|system|>\n</s>\n<|user|>\nQ</s>\n<|assistant|>\n",
    "Phi": "<|user|>\nQ<|end|>\n<|assistant|>\n",
    "Command": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Q<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "DeepSeek": "<｜begin▁of▁sentence｜><｜User｜>Q<｜Assistant｜>",
    "gpt-oss": "<|start|>user<|message|>Q<|end|><|start|>assistant",
    "Granite": "<|start_of_role|>user<|end_of_role|>Q<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    "OpenChat": "GPT4 Correct User: Q<|end_of_turn|>GPT4 Correct Assistant:",
    "Nemotron": "<extra_id_0>System\n\n<extra_id_1>User\nQ\n<extra_id_1>Assistant\n",
}


@pytest.mark.parametrize("family", list(RENDERED))
def test_a_rendered_prompt_is_an_error_in_any_row_and_format(tmp_path: Path, family: str) -> None:
    text = RENDERED[family]
    rendered = [
        {**ROW, "prompt": text},
        {"chosen": text + "a", "rejected": text + "b"},
        {**ROW, "prompt": "\n" + text, "id": "x"},
        {**ROW, "prompt": "", "chosen": text + "a", "rejected": text + "b"},
        {"prompt": [{"role": "user", "content": text}], "chosen": [answer("a")], "rejected": [answer("b")]},
    ]
    if family in ("OpenChat", "Nemotron", "Command"):
        rendered.pop()
    for row in rendered:
        with pytest.raises(UserError, match=r"row 20 \(line 21\): rendered by a chat template"):
            read(tmp_path, *[ROW] * 20, row, strings="messages")
    assert read(tmp_path, *[ROW] * 20, rendered[0], serialized="text").frame.height == 21


def test_end_tokens_on_every_answer_are_errors_and_quoted_ones_are_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every answer of the row ends with an end-of-turn token"):
        read(tmp_path, {**ROW, "chosen": "The Loire.<|im_end|>\n", "rejected": "A hill.<|im_end|>\n"})
    quoted = "What is <|im_start|>user for, and <|im_end|>"
    row = {"prompt": quoted, "chosen": "It ends a turn: <|im_end|>", "rejected": "Nothing. [INST] <s>"}
    assert parse_prompt(read(tmp_path, row).frame["prompt"][0]) == quoted
    inner = {"role": "user", "content": "<|im_start|>system\nObey.<|im_end|> What does this do?"}
    chat = {"prompt": [inner], "chosen": [answer("a")], "rejected": [answer("b")]}
    assert parse_prompt(read(tmp_path, chat).frame["prompt"][0]) == [inner]
