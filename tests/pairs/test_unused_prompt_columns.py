"""A column with a part of the prompt is used, ignored by name, or an error; never dropped silently."""

import json
from pathlib import Path
from typing import Any

import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import PairTable, parse_prompt, read_pairs

ROW = {"prompt": "Name a river.", "chosen": "The Loire.", "rejected": "A hill."}
USER = {"role": "user", "content": "Name a river."}


def read(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> PairTable:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return read_pairs(str(path), **options)


def prompt(table: PairTable) -> Any:
    return parse_prompt(table.frame["prompt"][0])


@pytest.mark.parametrize(
    ("column", "value", "suggestion"),
    [
        ("sys_prompt", "Be brief.", "{system: sys_prompt}"),
        ("input", "In France.", "{prompt: [prompt, input]}"),
        ("Context", "In France.", "{prompt: [Context, prompt]}"),
        ("history", [["Hi", "Hello"]], "layout"),
        ("passage", "A text.", "ignore_columns: [passage]"),
        ("initial_reasoning", "Step 1:", "step_dpo"),
        ("messages", [USER, {"role": "assistant", "content": "The Loire."}, {"role": "user", "content": "More."}], "layout"),
    ],
)  # fmt: skip
def test_an_unused_part_of_the_prompt_is_an_error_in_any_row(
    tmp_path: Path, column: str, value: Any, suggestion: str
) -> None:
    late = [ROW] * 40 + [{**ROW, column: value}]
    with pytest.raises(UserError, match="would be lost") as caught:
        read(tmp_path, *late, on_bad_row="skip")
    assert "row 40" in str(caught.value) and suggestion in str(caught.value)
    table = read(tmp_path, *late, ignore_columns=[column])
    assert table.frame.height == 41
    assert json.loads(table.frame["extra"][40]) == {column: value}


@pytest.mark.parametrize(
    "extra",
    [
        {"system": None, "input": "", "history": [], "context": "  ", "messages": None},
        {"question": "Name a river."},
        {"messages": [USER, {"role": "assistant", "content": "The Loire."}]},
        {"messages": json.dumps([USER, {"role": "assistant", "content": "The Loire."}])},
        {"conversation": [{"input": "Name a river.", "output": "The Loire."}]},
        {"turns": 1, "context": 5},
    ],
)
def test_empty_columns_and_repetitions_lose_nothing(tmp_path: Path, extra: dict[str, Any]) -> None:
    assert prompt(read(tmp_path, {**ROW, **extra})) == "Name a river."


def test_a_part_that_only_an_answer_repeats_is_an_error(tmp_path: Path) -> None:
    row = {
        "prompt": "Correct the sentence.",
        "input": "It rain.",
        "chosen": "It rain.\nIt rains.",
        "rejected": "It rain.",
    }
    with pytest.raises(UserError, match="would be lost"):
        read(tmp_path, row)
    short = {"prompt": "Is 14 even?", "input": "4", "chosen": "yes", "rejected": "no"}
    with pytest.raises(UserError, match="would be lost"):
        read(tmp_path, short)


def test_the_prompt_is_built_from_several_columns(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "Rain.", "chosen": "Pluie.", "rejected": "Rain."}
    with pytest.raises(UserError, match=r"'input' holds 'Rain\.'"):
        read(tmp_path, row, columns={"prompt": "instruction"})
    both = {"prompt": ["instruction", "input"]}
    assert prompt(read(tmp_path, row, columns=both)) == "Translate.\n\nRain."
    assert prompt(read(tmp_path, {**row, "input": " "}, columns=both)) == "Translate."
    turns = {
        "history": [USER, {"role": "assistant", "content": "The Loire."}],
        "q": "More?",
        "chosen": "a",
        "rejected": "b",
    }
    assert prompt(read(tmp_path, turns, columns={"prompt": ["history", "q"]})) == [
        *turns["history"],
        {"role": "user", "content": "More?"},
    ]
    nested = {"info": {"post": "P"}, "chosen": "a", "rejected": "b"}
    assert prompt(read(tmp_path, nested, columns={"prompt": "info.post"})) == "P"


def test_a_system_column_is_the_first_message(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    mapped = {"system": "rules"}
    assert prompt(read(tmp_path, {**ROW, "rules": "Be brief."}, columns=mapped)) == [system, USER]
    assert prompt(read(tmp_path, {**ROW, "rules": ""}, columns=mapped)) == [USER]
    chat = {"rules": "Be brief.", "chosen": [system, USER, {"role": "assistant", "content": "a"}],
            "rejected": [system, USER, {"role": "assistant", "content": "b"}]}  # fmt: skip
    assert prompt(read(tmp_path, chat, columns=mapped)) == [system, USER]
    with pytest.raises(UserError, match="two system messages"):
        read(tmp_path, {**chat, "rules": "Be long."}, columns=mapped)
