"""Every kind of bad row is reported with file, row and reason, or skipped and counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import read_pairs

USER = {"role": "user", "content": "What is tea?"}


def answer(text: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text, **more}]


def row(**changes: Any) -> dict[str, Any]:
    """A valid row with some columns changed; `...` removes one."""
    whole = {"prompt": [USER], "chosen": answer("A drink."), "rejected": answer("A boat."), **changes}
    return {key: value for key, value in whole.items() if value is not ...}


def calling(call: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": None, "tool_calls": [call]}]


def ranked(**changes: Any) -> dict[str, Any]:
    whole = {"prompt": "Q", "completions": ["a", "b", "c"], "ranks": [1, 2, 3], **changes}
    return {key: value for key, value in whole.items() if value is not ...}


# (reason, expected detail, row as an object or a line of bytes)
BAD: list[tuple[str, str, Any]] = [
    ("missing rejected", "no `rejected`", row(rejected=...)),
    ("missing chosen", "no `chosen`", row(chosen=...)),
    ("null chosen", "`chosen` is null", row(chosen=None)),
    ("wrong type", "`chosen` is a number (5)", row(chosen=5)),
    ("wrong type", "`rejected` is a boolean (true)", row(rejected=True)),
    ("wrong type", "`prompt` is an object (keys 'role', 'content')", row(prompt=USER)),
    ("wrong type", "`chosen[0]` is a string ('A drink.')", row(chosen=["A drink."])),
    ("wrong type", "`chosen[0].content` is null", row(chosen=answer(None))),
    ("wrong type", "`rejected[0].content` is a number (1.5)", row(rejected=answer(1.5))),
    ("wrong type", "`id` is a number (1.5)", row(id=1.5)),
    ("wrong type", "`id` is a boolean (false)", row(id=False)),
    ("mixed forms", "one", row(prompt=..., chosen="text")),
    ("mixed forms", "are strings and some are messages", row(chosen="text")),
    ("empty completion", "`chosen` is blank", row(chosen=answer(" \t\r\n\u3000"))),
    ("empty completion", "`rejected`", row(rejected=answer(""))),
    ("empty completion", "`rejected` has no assistant message", row(rejected=[])),
    ("empty completion", "`chosen` has no assistant message", row(chosen=[USER])),
    ("empty completion", "`chosen`", {"prompt": "Q", "chosen": "", "rejected": "x"}),
    ("chosen equals rejected", "same text", row(rejected=answer("A drink."))),
    (
        "chosen equals rejected",
        "same messages",
        row(prompt=..., chosen=[USER, *answer("x")], rejected=[USER, *answer("x")]),
    ),
    ("chosen equals rejected", "same text", {"chosen": "\n\nAssistant: x", "rejected": "\n\nAssistant: x"}),
    ("unknown role", "'bot'; expected system, user, assistant, tool", row(chosen=[{"role": "bot", "content": "x"}])),
    ("unknown role", "'Assistant'", row(chosen=[{"role": "Assistant", "content": "x"}])),
    ("unknown role", "null", row(chosen=[{"role": None, "content": "x"}])),
    ("unknown role", "a list", row(chosen=[{"role": ["user"], "content": "x"}])),
    ("message without role", "keys 'from', 'content'", row(chosen=[{"from": "gpt", "content": "x"}])),
    ("unknown role", "'bot'", row(chosen=[{"from": "bot", "value": "x"}])),
    ("completion not by the assistant", "role tool", row(chosen=[{"from": "observation", "value": "x"}])),
    ("message without content", "keys 'role'", row(chosen=[{"role": "assistant"}])),
    ("system message not first", "`prompt[1]`", row(prompt=[USER, {"role": "system", "content": "s"}])),
    ("unreadable tool call", "the name null", row(chosen=calling({"id": "1"}))),
    ("unreadable tool call", "is not valid JSON", row(chosen=calling({"name": "f", "arguments": "{'a': 1}"}))),
    ("unreadable tool call", "'a' occurs twice", row(chosen=calling({"name": "f", "arguments": '{"a": 1, "a": 2}'}))),
    ("unreadable tool call", "NaN", row(chosen=calling({"name": "f", "arguments": '{"a": NaN}'}))),
    ("unreadable tool call", "is a list", row(chosen=calling({"name": "f", "arguments": "[1]"}))),
    ("unreadable tool call", "a number (3)", row(chosen=calling(3))),
    (
        "unreadable tool call",
        "different `tool_calls` and `function_call`",
        row(chosen=[{**calling({"name": "f"})[0], "function_call": {"name": "g"}}]),
    ),
    ("unreadable tool call", "is empty", row(chosen=[{"from": "function_call", "value": " "}])),
    ("unreadable tool call", "'weather(Paris)'", row(chosen=[{"from": "function_call", "value": "weather(Paris)"}])),
    ("unsupported tool", "'custom'", row(chosen=calling({"type": "custom", "custom": {"name": "f"}}))),
    ("unsupported tool", "'web_search'", row(tools=[{"type": "web_search"}])),
    ("not a finite number", "inf", row(chosen=calling({"name": "f", "arguments": '{"a": 1e999}'}))),
    ("not a finite number", "inf", row(tools=[{"name": "f", "maximum": float("inf")}])),
    ("lone surrogate", "\\ud800", row(chosen=calling({"name": "f", "arguments": '{"a": "\\ud800"}'}))),
    ("NUL character", "arguments", row(chosen=calling({"name": "f", "arguments": '{"a": "\\u0000"}'}))),
    (
        "invalid JSON",
        "nested too deep",
        row(chosen=calling({"name": "f", "arguments": {"a": json.loads("[" * 99 + "]" * 99)}})),
    ),
    (
        "tools in a message",
        "use a column `tools`",
        row(prompt=[{"role": "system", "content": "s", "tools": [{"name": "f"}]}, USER]),
    ),
    ("unreadable tools", "the name null", row(tools=[{"description": "search"}])),
    ("unreadable tools", "is not valid JSON", row(tools="search(query)")),
    ("unreadable tools", "a number (1)", row(tools=[1])),
    ("unreadable chat_template_kwargs", "is a list", row(chat_template_kwargs=["enable_thinking"])),
    (
        "tools beside raw text",
        "strings: messages",
        {"prompt": "q", "chosen": "a", "rejected": "b", "tools": [{"name": "f"}]},
    ),
    (
        "chat_template_kwargs beside raw text",
        "",
        {"prompt": "q", "chosen": "a", "rejected": "b", "chat_template_kwargs": {"x": 1}},
    ),
    (
        "key of another role",
        "`tool_calls`, which the role user does not allow",
        row(prompt=[{**USER, "tool_calls": [{"name": "f"}]}]),
    ),
    (
        "key of another role",
        "`thinking`, which the role tool does not allow",
        row(prompt=[USER, {"role": "tool", "content": "x", "thinking": "y"}]),
    ),
    ("wrong type", "write the result as JSON", row(prompt=[USER, {"role": "tool", "content": {"a": 1}}])),
    ("wrong type", "`chosen[0].reasoning`", row(chosen=answer("x", reasoning={"effort": "low"}))),
    (
        "two texts of reasoning",
        "different reasoning in `reasoning` and `thinking`",
        row(chosen=answer("x", thinking="a", reasoning="b")),
    ),
    (
        "reasoning behind content",
        "",
        row(chosen=answer([{"type": "text", "text": "x"}, {"type": "thinking", "thinking": "y"}])),
    ),
    ("unreadable reasoning", "redacted_thinking", row(chosen=answer([{"type": "redacted_thinking", "data": "x"}]))),
    ("tool call", "'tool_use'", row(chosen=answer([{"type": "tool_use", "name": "f", "input": {}}]))),
    (
        "completion not by the assistant",
        "ends with a message of the role tool",
        row(chosen=[*calling({"name": "f"}), {"role": "tool", "content": "x"}]),
    ),
    (
        "completion not by the assistant",
        "begins with a message of the role tool",
        row(chosen=[{"role": "tool", "content": "x"}, *answer("y")]),
    ),
    (
        "empty completion",
        "a blank assistant message",
        row(chosen=[*calling({"name": "f"}), {"role": "tool", "content": "x"}, *answer(" ")]),
    ),
    ("empty completion", "a blank assistant message", row(chosen=[*answer("x"), *answer("")])),
    ("audio", "`audios`", row(audios=["cat.mp3"])),
    ("video", "`video`", row(video="cat.mp4")),
    (
        "prompt does not end in a user message",
        "role assistant; expected user or tool",
        row(prompt=[USER, *calling({"name": "f"})]),
    ),
    (
        "image",
        "'image_url'",
        row(prompt=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]),
    ),
    ("image", "'image'", row(prompt=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}])),
    ("image", "`images`", row(images=["cat.png"])),
    ("audio", "'input_audio'", row(prompt=[{"role": "user", "content": [{"type": "input_audio"}]}])),
    ("unknown content part", "'poem'", row(chosen=answer([{"type": "poem", "text": "x"}]))),
    ("unknown content part", "null", row(chosen=answer([{"text": "x"}]))),
    ("wrong type", "`chosen[0].content[0]` is a string", row(chosen=answer(["x"]))),
    ("several messages", "(assistant, user, assistant)", row(chosen=[*answer("x"), USER, *answer("y")])),
    ("completion not by the assistant", "role user", row(chosen=[{"role": "user", "content": "x"}])),
    (
        "prompt does not end in a user message",
        "role assistant",
        row(prompt=[USER, *answer("Well")], chosen="a", rejected="b"),
    ),
    ("prompt does not end in a user message", "role assistant", row(prompt=[USER, *answer("a"), USER, *answer("b")])),
    ("empty prompt", "no user message", row(prompt=[])),
    ("empty prompt", "no user message", row(prompt=[{"role": "system", "content": "Be brief."}])),
    ("empty prompt", "no user message", row(prompt=[{"role": "user", "content": " "}])),
    ("empty prompt", "`prompt` is blank", {"prompt": "\n", "chosen": "a", "rejected": "b"}),
    ("no prompt", "first messages of `chosen` and `rejected` differ", row(prompt=...)),
    ("no prompt", "\\n\\nAssistant:", {"chosen": "The sky is blue", "rejected": "The sky is green"}),
    (
        "rendered by a chat template",
        "Use the original messages",
        {"chosen": "<|im_start|>assistant\na", "rejected": "<|im_start|>assistant\nb"},
    ),
    ("several turns", "'Human:'", {"chosen": "\n\nAssistant: a\n\nHuman: more", "rejected": "\n\nAssistant: b"}),
    ("conversations differ", "`rejected`", row(prompt="Q", chosen=[USER, *answer("a")])),
    (
        "conversation without the prompt",
        "",
        row(prompt="Q", chosen=[USER, *answer("a")], rejected=[USER, *answer("b")]),
    ),
    ("NUL character", "`chosen[0].content` holds U+0000 at character 1", row(chosen=answer("a\0b"))),
    ("NUL character", "`prompt`", {"prompt": "\0", "chosen": "a", "rejected": "b"}),
    ("too few completions", "holds 1", ranked(completions=["a"], ranks=[1])),
    ("no ranks or scores", "no preference", ranked(ranks=...)),
    ("no strict preference", "rank", ranked(ranks=[1, 1, 1])),
    ("no strict preference", "rank", ranked(completions=["a", "a"], ranks=[1, 2])),
    ("lengths differ", "2 numbers for 3 completions", ranked(ranks=[1, 2])),
    ("wrong type", "`ranks[1]` is a string ('2')", ranked(ranks=[1, "2", 3])),
    ("wrong type", "`ranks[0]` is a boolean (true)", ranked(ranks=[True, 2, 3])),
    ("wrong type", "`scores` is a number (3)", ranked(ranks=..., scores=3)),
    ("wrong type", "`completions` is a string", ranked(completions="abc")),
    ("wrong type", "`completions[1]` is null", ranked(completions=["a", None, "c"])),
    ("ranks and scores disagree", "completions 0 and 2", ranked(scores=[1.0, 1.0, 2.0])),
    ("missing prompt", "no `prompt`", ranked(prompt=...)),
    ("empty completion", "`completions[2]`", ranked(completions=["a", "b", " "])),
    ("mixed forms", "`completions[0]`", ranked(completions=["a", "b", answer("c")])),
    ("not an object", "a list", b"[1, 2]"),
    ("not an object", "null", b"null"),
    ("invalid JSON", "character 1", b"{chosen: 1}"),
    ("invalid JSON", "Extra data", b'{"chosen": 1} {"chosen": 2}'),
    ("invalid JSON", "control character", b'{"chosen": "a\tb"}'),
    ("invalid JSON", "nested too deep", b'{"chosen": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    ("duplicate key", "'chosen' occurs twice", b'{"prompt": "q", "chosen": "a", "chosen": "c", "rejected": "b"}'),
    (
        "duplicate key",
        "'role' occurs twice",
        b'{"prompt": [{"role": "a", "role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}',
    ),
    ("wrong type", "a number (nan)", b'{"prompt": "q", "chosen": NaN, "rejected": "b"}'),
    ("wrong type", "a number (inf)", b'{"prompt": 1e999, "chosen": "a", "rejected": "b"}'),
    ("wrong type", "a number (inf)", b'{"prompt": "q", "chosen": "a", "rejected": ' + b"9" * 5000 + b"}"),
    ("wrong type", "a number (1e+17)", row(id=1e17)),
    ("not a finite number", "`scores[1]` is nan", ranked(ranks=..., scores=[1, float("nan"), 2])),
    ("not a finite number", "`ranks[0]` is -inf", ranked(ranks=[float("-inf"), 1, 2])),
    ("too many completions", "512 at most", ranked(completions=["a"] * 513, ranks=[1] * 513)),
    (
        "too many pairs",
        "435 pairs",
        ranked(prompt="q" * 700_000, completions=[str(i) for i in range(30)], ranks=[*range(30)]),
    ),
    ("lone surrogate", "\\ud800", b'{"prompt": "q", "chosen": "\\ud800", "rejected": "b"}'),
    ("lone surrogate", "\\udc00", b'{"prompt": "q", "chosen": "a", "rejected": "\\uDC00"}'),
    ("invalid UTF-8", "byte 27 of the row (0xff)", b'{"prompt": "q", "chosen": "\xff", "rejected": "b"}'),
    ("invalid UTF-8", "0xed", b'{"prompt": "\xed\xa0\x80", "chosen": "a", "rejected": "b"}'),
    ("invalid UTF-8", "0xc0", b'{"prompt": "\xc0\xaf", "chosen": "a", "rejected": "b"}'),
]


def line(bad: Any) -> bytes:
    return bad if isinstance(bad, bytes) else json.dumps(bad).encode()


@pytest.mark.parametrize(("reason", "detail", "bad"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_a_bad_row_is_reported_with_file_row_line_reason_and_detail(
    tmp_path: Path, reason: str, detail: str, bad: Any
) -> None:
    path = tmp_path / "pairs.jsonl"
    good = json.dumps(row()).encode()
    path.write_bytes(b"\n".join([good, b"", good, line(bad), good]) + b"\n")
    with pytest.raises(UserError) as caught:
        read_pairs(str(path))
    # Rows count from 0 without blank lines, lines from 1.
    listed = next(one for one in str(caught.value).splitlines() if one.startswith("  "))
    assert listed.startswith(f"  {path}: row 2 (line 4): {reason}: ")
    assert detail in listed
    assert "1 of 4 rows" in str(caught.value)

    table = read_pairs(str(path), on_bad_row="skip")
    assert table.skipped == {reason: 1}
    assert table.frame["row"].to_list() == [0, 1, 3]
    assert table.rows == 4


def test_there_are_enough_kinds_of_bad_row() -> None:
    assert len({reason for reason, _, _ in BAD}) >= 30


def test_the_first_ten_are_listed_with_the_count_and_further_reasons_by_their_first_row(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [row(chosen=1)] * 15 + [row(chosen=answer(""))] * 3 + [row()]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError) as caught:
        read_pairs(str(path))
    message = str(caught.value)
    listed = [one.strip() for one in message.splitlines() if one.startswith("  ")]
    assert [one.split(": ")[1] for one in listed] == [
        *[f"row {index} (line {index + 1})" for index in range(10)],
        "row 15 (line 16)",
    ]
    assert "18 of 19 rows" in message
    assert "wrong type 15, empty completion 3" in message
    assert "--on-bad-row skip" in message


def test_bad_rows_of_all_files_are_reported_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row()) + "\n" + json.dumps(row(chosen=None)))
    with pytest.raises(UserError) as caught:
        read_pairs(str(tmp_path))
    assert f"{tmp_path}/a.jsonl: row 1" in str(caught.value)
    assert f"{tmp_path}/b.jsonl: row 1" in str(caught.value)


def test_nothing_left_after_skipping_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row(chosen=None)))
    with pytest.raises(UserError, match="No pair is left from 1 rows: null chosen 1"):
        read_pairs(str(path), on_bad_row="skip")


def test_a_file_without_the_columns_of_a_pair_names_its_own(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen_response": "a", "rejected": "b"}))
    with pytest.raises(UserError, match=r"missing chosen.*did you mean 'chosen_response'") as caught:
        read_pairs(str(path))
    assert "'prompt', 'chosen_response', 'rejected'" in str(caught.value)


def test_null_and_empty_tool_calls_and_other_message_keys_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = row(
        prompt=[{"name": "Ann", **USER, "weight": 1}],
        chosen=answer("x", tool_calls=[], function_call=None, reasoning_content=""),
        images=[],
        tools=None,
    )
    path.write_text(json.dumps(good) + "\n" + json.dumps(row(chosen=answer("x"))))
    frame = read_pairs(str(path)).frame
    assert frame["pair_id"].n_unique() == 1
    assert frame["prompt"].to_list() == ['[{"role":"user","content":"What is tea?"}]'] * 2


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row()))
    with pytest.raises(UserError, match="`strings` is 'chat'; expected text or messages"):
        read_pairs(str(path), strings="chat")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="`on_bad_row` is 'ignore'"):
        read_pairs(str(path), on_bad_row="ignore")  # type: ignore[arg-type]
