"""Completions of several messages: end of the prompt, allowed contents, truncation and display."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import PairTable, parse_prompt, read_pairs
from mrpo_pipeline.pairs.completion import (
    completion_messages,
    completion_text,
    cut_messages,
    dump_completion,
    text_bytes,
)
from mrpo_pipeline.pairs.identity import prompt_settings
from mrpo_pipeline.pairs.readable_text import readable_completion, readable_prompt

USER = {"role": "user", "content": "Weather?"}
ASK = {"role": "assistant", "content": "", "tool_calls": [{"name": "w", "arguments": {"city": "Paris"}}]}
OTHER_ASK = {"role": "assistant", "content": "", "tool_calls": [{"name": "w", "arguments": {"city": "Rome"}}]}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text}


def read(folder: Path, row: dict[str, Any], **options: Any) -> PairTable:
    (folder / "pairs.jsonl").write_text(json.dumps(row))
    return read_pairs(str(folder / "pairs.jsonl"), **options)


def only(table: PairTable) -> tuple[Any, Any, Any]:
    [(prompt, chosen, rejected)] = table.frame.select("prompt", "chosen", "rejected").rows()
    return parse_prompt(prompt), completion_messages(chosen), completion_messages(rejected)


LONG = [ASK, result("12"), says("12 °C.")]
SHORT = [says("No idea.")]
# (prompt, chosen, rejected) after the common part of the row
CASES: list[tuple[list[Any], list[Any], list[Any]]] = [
    ([USER], LONG, SHORT),
    ([USER], [says("I look."), *LONG], [OTHER_ASK, result("9"), says("9 °C.")]),
    ([USER, says("Where?"), USER], LONG, SHORT),
    ([{"role": "system", "content": "s"}, USER, ASK, result("12")], [says("12 °C.")], SHORT),
    # Only the last answers differ: calls and results that both sides share are the prompt.
    ([USER, ASK, result("12")], [says("12 °C.")], [says("Cold.")]),
    # The calls are the same and their results differ: the assistant must speak next, so the calls are in both completions.
    ([USER], LONG, [ASK, result("9"), says("9 °C.")]),
    ([USER], [ASK, result("1"), result("2"), says("a")], [ASK, result("1"), result("3"), says("a")]),
    ([USER], [says("a"), says("b")], [says("a"), says("c")]),
    ([USER, ASK, result("1")], [OTHER_ASK, result("2"), says("b")], [OTHER_ASK, result("3"), says("b")]),
]


@pytest.mark.parametrize("form", ["explicit", "implicit", "repeated", "a string", "ranked"])
@pytest.mark.parametrize(("prompt", "chosen", "rejected"), CASES)
def test_the_prompt_ends_before_the_assistant_turn(
    tmp_path: Path, form: str, prompt: list[Any], chosen: list[Any], rejected: list[Any]
) -> None:
    whole = [*prompt, *chosen], [*prompt, *rejected]
    row = {
        "explicit": {"prompt": prompt, "chosen": chosen, "rejected": rejected},
        "implicit": {"chosen": whole[0], "rejected": whole[1]},
        "repeated": {"prompt": prompt, "chosen": whole[0], "rejected": whole[1]},
        "a string": {"prompt": "Weather?", "chosen": whole[0], "rejected": whole[1]},
        "ranked": {"prompt": prompt, "completions": [rejected, chosen], "ranks": [2, 1]},
    }[form]
    assert only(read(tmp_path, row)) == (prompt, chosen, rejected)


def test_a_prompt_string_is_the_user_before_several_messages(tmp_path: Path) -> None:
    assert only(read(tmp_path, {"prompt": "Weather?", "chosen": LONG, "rejected": SHORT})) == ([USER], LONG, SHORT)


def test_a_user_inside_a_completion_is_refused(tmp_path: Path) -> None:
    row = {"prompt": [USER], "chosen": [*LONG, USER, says("x")], "rejected": SHORT}
    with pytest.raises(UserError, match=r"several messages: .*\(assistant, tool, assistant, user, assistant\)"):
        read(tmp_path, row)


def test_an_answer_prefix_is_prepended_to_the_first_message(tmp_path: Path) -> None:
    answer_prefix = says("Well, ", thinking="hm")
    row = {"prompt": [USER, answer_prefix], "chosen": [says("no."), *LONG], "rejected": SHORT}
    prompt, chosen, rejected = only(read(tmp_path, row))
    assert (prompt, chosen[0]["content"], chosen[0]["reasoning_content"]) == ([USER], "Well, no.", "hm")
    assert (chosen[1:], rejected) == (LONG, [says("Well, No idea.", reasoning_content="hm")])
    for one in ({**row, "prompt": [USER, ASK]}, {**row, "chosen": [says("no.", thinking="oh")]}):
        with pytest.raises(UserError, match="begun answer"):
            read(tmp_path, one)


def test_sides_that_differ_only_in_structure_are_a_pair(tmp_path: Path) -> None:
    row = {"prompt": [USER], "chosen": [says("b", thinking="a")], "rejected": [says("ab")]}
    frame = read(tmp_path, row).frame
    assert completion_text(frame["chosen"][0]) == completion_text(frame["rejected"][0]) == "ab"
    row = {"prompt": [USER], "chosen": LONG, "rejected": [ASK, result("9"), LONG[2]]}
    assert read(tmp_path, row).frame.height == 1
    with pytest.raises(UserError, match="chosen equals rejected"):
        read(tmp_path, {"prompt": [USER], "chosen": LONG, "rejected": LONG})


TOOLS = [
    {"type": "function", "function": {"name": "w", "parameters": {"properties": {"city": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "n", "parameters": {"properties": {"days": {"default": None}}}}},
]
ROWS: list[dict[str, Any]] = [
    {"prompt": [USER], "chosen": LONG, "rejected": SHORT, "tools": TOOLS, "chat_template_kwargs": {"deep": True}},
    {"prompt": [USER], "rejected": [says("", thinking="hm", tool_calls=[{"name": "n", "arguments": {"days": 3, "at": {"x": None}}}])],
     "chosen": [says("x", reasoning_content="hm")], "tools": TOOLS[:1], "chat_template_kwargs": {"effort": "low"}},
]  # fmt: skip


def test_keys_that_arrow_fills_with_null_are_absent(tmp_path: Path) -> None:
    """Structs have the keys of all rows; JSON columns only those that were written."""
    rows = [{**row, **{side: [*map(filled, row[side])] for side in ("chosen", "rejected")}} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "structs.parquet")
    texts = {"prompt": pa.list_(pa.json_()), "chosen": pa.list_(pa.json_()), "rejected": pa.list_(pa.json_()),
             "tools": pa.list_(pa.json_()), "chat_template_kwargs": pa.json_()}  # fmt: skip
    columns = {
        name: pa.array([as_texts(row[name]) for row in ROWS], pa.list_(pa.string()) if pa.types.is_list(kind) else pa.string())
        for name, kind in texts.items()
    }  # fmt: skip
    pq.write_table(
        pa.table({name: columns[name].cast(kind) for name, kind in texts.items()}), tmp_path / "json.parquet"
    )
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    lines, structs, exact = (
        read_pairs(str(tmp_path / name)).frame for name in ("lines.jsonl", "structs.parquet", "json.parquet")
    )
    assert exact["pair_id"].to_list() == lines["pair_id"].to_list()
    call = completion_messages(lines["rejected"][1])[0]["tool_calls"][0]
    assert call["arguments"] == {"days": 3, "at": {"x": None}}
    read = structs.select("chosen", "rejected").rows()
    assert [list(map(completion_messages, sides)) for sides in read] == [
        [LONG, SHORT],
        [[says("x", reasoning_content="hm")],
         [says("", reasoning_content="hm", tool_calls=[{"name": "n", "arguments": {"days": 3, "at": {}}}])]],
    ]  # fmt: skip
    properties = [
        tool["function"]["parameters"]["properties"] for tool in prompt_settings(structs["prompt"][0]).tools or ()
    ]
    assert properties == [{"city": {"type": "string"}}, {"days": {}}]
    assert [prompt_settings(prompt).template_kwargs for prompt in structs["prompt"]] == [
        {"deep": True},
        {"effort": "low"},
    ]


def test_messages_written_as_text_in_a_parquet_file_keep_their_nulls(tmp_path: Path) -> None:
    row = {side: json.dumps(ROWS[1][side]) for side in ("prompt", "chosen", "rejected")}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pairs.parquet")
    rejected = only(read_pairs(str(tmp_path / "pairs.parquet"), serialized="parse"))[2]
    assert rejected[0]["tool_calls"][0]["arguments"] == {"days": 3, "at": {"x": None}}


def filled(message: dict[str, Any]) -> dict[str, Any]:
    """A message with all keys and arguments as an object, as in TRL's data."""
    calls = message.get("tool_calls")
    forms = calls and [{"type": "function", "id": None, "function": call} for call in calls]
    return {"thinking": None, "reasoning_content": None, **message, "tool_calls": forms, "name": None}


def as_texts(value: Any) -> Any:
    return [*map(json.dumps, value)] if isinstance(value, list) else json.dumps(value)


def test_a_map_of_arrow_is_the_object_of_arguments(tmp_path: Path) -> None:
    call = pa.struct({"name": pa.string(), "arguments": pa.map_(pa.string(), pa.string())})
    message = pa.struct({"role": pa.string(), "content": pa.string(), "tool_calls": pa.list_(call)})
    side = [says("", tool_calls=[{"name": "w", "arguments": [("city", "Paris")]}, {"name": "n", "arguments": []}])]
    columns = {"prompt": [[USER]], "chosen": [side], "rejected": [SHORT]}
    table = pa.table({name: pa.array(value, pa.list_(message)) for name, value in columns.items()})
    pq.write_table(table, tmp_path / "pairs.parquet")
    chosen = only(read_pairs(str(tmp_path / "pairs.parquet")))[1]
    assert [call["arguments"] for call in chosen[0]["tool_calls"]] == [{"city": "Paris"}, {}]


def test_a_cut_keeps_complete_calls_and_drops_trailing_results() -> None:
    completion = dump_completion(
        [says("é!", reasoning_content="hm", tool_calls=ASK["tool_calls"]), result("12"), says("cold")]
    )
    calls = len(completion_text(dump_completion([ASK])).encode())
    short = {4: "é", 2: "", 1: ""}
    for cut, content in short.items():
        (message,) = cut_messages(completion, cut)
        assert message.get("reasoning_content") == "hm"[:cut] and message["content"] == content
        assert "tool_calls" not in message
    assert "tool_calls" not in cut_messages(completion, 5 + calls - 1)[0]
    assert cut_messages(completion, 5 + calls) == [completion_messages(completion)[0]]
    assert cut_messages(completion, 5 + calls + 2)[1:] == [result("12"), says("co")]
    assert cut_messages(completion, None) == cut_messages(completion, 5 + calls + 4) == completion_messages(completion)
    assert cut_messages("plain", 2) == [says("pl")]
    assert text_bytes(pl.Series([completion, "é", completion])).to_list() == [9 + calls, 2, 9 + calls]


def test_the_readable_form_shows_every_part(tmp_path: Path) -> None:
    table = read(
        tmp_path, {**ROWS[0], "chosen": [says("I look.", thinking="hm", tool_calls=ASK["tool_calls"]), *LONG[1:]]}
    )
    [(prompt, chosen, rejected)] = table.frame.select("prompt", "chosen", "rejected").rows()
    assert readable_prompt(prompt) == 'tools: w, n\ntemplate arguments: {"deep": true}\nuser: Weather?'
    assert readable_completion(chosen).splitlines() == [
        "reasoning: hm", "assistant: I look.", 'tool call: w {"city": "Paris"}', "tool: 12", "assistant: 12 °C.",
    ]  # fmt: skip
    assert readable_completion(rejected) == "No idea."
