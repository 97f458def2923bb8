"""Reasoning, tool calls and tools in a file for TRL, read back by TRL and by our reader."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from tiny_tokenizers import qwen

from mrpo_pipeline.dataset.reference_logps import CachedPairs
from mrpo_pipeline.exports import trl as for_trl
from mrpo_pipeline.exports.export import write_frame
from mrpo_pipeline.exports.trl import UNSCORED
from mrpo_pipeline.pairs import read_pairs
from mrpo_pipeline.pairs.completion import cut_messages
from mrpo_pipeline.recipe import Recipe

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

# Prints the template's input; a call's argument that is text would have escaped quotes.
TEMPLATE = """{{ {"tools": tools, "deep": deep | default(none)} | tojson }}{% for m in messages %}<|im_start|>{{ m | tojson }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"""
CALL = {"name": "w", "arguments": {"city": "Paris", "at": None}, "id": "c1"}
FUNCTION = {"type": "function", "id": "c1", "function": {"name": "w", "arguments": {"city": "Paris", "at": None}}}
TOOL = {"type": "function", "function": {"name": "w", "parameters": {"type": "object", "default": None}}}
USER = {"role": "user", "content": "Weather?"}
CALLING = {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "12", "tool_call_id": "c1", "name": "w"}
PLAIN = {"role": "assistant", "content": "No idea."}
ROWS: list[dict[str, Any]] = [
    {"prompt": [USER], "chosen": [CALLING], "rejected": [PLAIN], "tools": [TOOL], "chat_template_kwargs": {"deep": True}},
    {"prompt": [USER], "chosen": [PLAIN], "rejected": [{"role": "assistant", "content": "Cold."}]},
    {"prompt": [USER, CALLING, RESULT], "chosen": [{"role": "assistant", "content": "12 °C."}], "rejected": [PLAIN], "tools": [TOOL]},
]  # fmt: skip


def prepared(folder: Path, rows: list[dict[str, Any]], **columns: list[Any]) -> CachedPairs:
    """Pairs in the form that exports read, without a renderer."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    frame = read_pairs(str(folder / "rows.jsonl")).frame
    names = {"prompt_ids": [[1]], "chosen_ids": [[2]], "rejected_ids": [[3]], "chosen_cut": [None], "rejected_cut": [None],
             "chosen_scored": [None], "rejected_scored": [None]}  # fmt: skip
    made = {name: pl.Series(name, columns.get(name, values * len(rows))) for name, values in names.items()}
    frame = frame.with_columns(pl.col("prompt").alias("prompt_read"), *made.values())
    return CachedPairs(frame, ["base"], np.zeros((len(rows), 1)), np.zeros((len(rows), 1)), {})


def exported(folder: Path, pairs: CachedPairs) -> tuple[Path, dict[str, int]]:
    frame, left_out = for_trl.rows(pairs, cast(Recipe, None))
    write_frame(frame.drop("index"), folder / "targets.parquet", for_trl.json_columns(frame))
    return folder / "targets.parquet", left_out


def test_our_reader_round_trips(tmp_path: Path) -> None:
    pairs = prepared(tmp_path, ROWS)
    file, left_out = exported(tmp_path, pairs)
    assert read_pairs(str(file)).frame["pair_id"].to_list() == pairs.frame["pair_id"].to_list()
    assert not left_out


def test_trl_reads_the_same_messages(tmp_path: Path) -> None:
    file, _ = exported(tmp_path, prepared(tmp_path, ROWS))
    data = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "read"))
    data = data.remove_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    tokenizer = qwen(TEMPLATE)
    config = trl.DPOConfig(str(tmp_path), max_length=None, bf16=False, use_cpu=True, report_to="none")
    read = trl.DPOTrainer._prepare_dataset(None, data, tokenizer, config, "train")
    calling = {**CALLING, "tool_calls": [FUNCTION]}
    given = [
        ([TOOL], True, [USER, calling], [USER, PLAIN]),
        (None, None, [USER, PLAIN], [USER, {"role": "assistant", "content": "Cold."}]),
        (
            [TOOL],
            None,
            [USER, calling, RESULT, {"role": "assistant", "content": "12 °C."}],
            [USER, calling, RESULT, PLAIN],
        ),
    ]
    for row, (tools, deep, *sides) in zip(read, given, strict=True):
        for side, messages in zip(("chosen_ids", "rejected_ids"), sides, strict=True):
            wanted = tokenizer.apply_chat_template(messages, tools=tools, deep=deep, return_dict=True)["input_ids"]
            assert row["prompt_ids"] + row[side] == wanted


def test_plain_pairs_stay_columns_of_role_and_content(tmp_path: Path) -> None:
    file, _ = exported(tmp_path, prepared(tmp_path, ROWS[1:2]))
    frame = pl.read_parquet(file)
    assert frame.columns == ["pair_id", "prompt", "chosen", "rejected", "prompt_ids", "chosen_ids", "rejected_ids"]
    assert frame["chosen"].to_list() == [[PLAIN]]


def test_a_truncated_side_has_its_messages_up_to_the_cut(tmp_path: Path) -> None:
    pairs = prepared(tmp_path, ROWS, chosen_cut=[2, 3, None])
    file, _ = exported(tmp_path, pairs)
    chosen = read_pairs(str(file), on_bad_row="skip").frame["chosen"].to_list()
    assert cut_messages(chosen[0], None) == [{"role": "assistant", "content": "", "reasoning_content": "hm"}]
    assert chosen[1] == "No "


def test_pairs_with_context_inside_a_side_are_left_out_and_counted(tmp_path: Path) -> None:
    pairs = prepared(tmp_path, ROWS, rejected_scored=[None, [True, False], None])
    file, left_out = exported(tmp_path, pairs)
    assert left_out == {UNSCORED: 1}
    kept = pairs.frame["pair_id"].to_list()
    assert pl.read_parquet(file, columns=["pair_id"])["pair_id"].to_list() == [kept[0], kept[2]]
