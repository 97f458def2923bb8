"""Pairs as the policy reads them: cuts, drops, and complete counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_references import pair, reference, write_pairs

from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions
from mrpo_pipeline.pairs import completion_id
from mrpo_pipeline.recipe import parse_recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference(tmp_path_factory.mktemp("models") / "base", "llama", "qwen")


def prepared(folder: Path, model: Path, rows: list[dict[str, Any]], **limits: int) -> Any:
    write_pairs(folder / "pairs.jsonl", rows)
    document = {"pairs": {"train": str(folder / "pairs.jsonl")}, "policy": {"model": str(model)}, "limits": limits}
    return prepare_splits(parse_recipe(document))["train"]


def test_pairs_in_are_pairs_out_and_pairs_dropped(tmp_path: Path, model: Path) -> None:
    same_start = "word " * 50
    rows = [
        pair("fits", "good", "bad"),
        pair("cut", "many words " * 40, "few"),
        pair("equal after the cut", same_start + "A", same_start + "B"),
        pair("one becomes the other", "word " * 40, same_start),
        pair([{"role": "system", "content": "rules " * 60}, {"role": "user", "content": "hi"}], "good", "bad"),
    ]
    found = prepared(tmp_path, model, rows, max_length=48, max_prompt_length=32)
    assert found.counts.read == 5 == found.frame.height + sum(found.counts.dropped.values())
    assert found.counts.dropped == {"the sides are equal after the cut": 2, "prompt does not fit max_prompt_length": 1}
    assert found.counts.cut_completions == 1
    for row in found.frame.iter_rows(named=True):
        for side in ("chosen", "rejected"):
            assert row["prompt_tokens"] + len(row[f"{side}_ids"]) <= 48
            assert row[f"{side}_cut"] is None or row[f"{side}_cut"] <= len(row[side].encode())


def test_a_long_prompt_loses_its_oldest_turns_and_its_ids_follow(tmp_path: Path, model: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "old question " * 8},
        {"role": "assistant", "content": "old answer"},
        {"role": "user", "content": "new question"},
    ]
    found = prepared(tmp_path, model, [pair(turns, "good", "bad")], max_length=120, max_prompt_length=60)
    (row,) = found.frame.iter_rows(named=True)
    assert found.counts.cut_prompts == 1
    assert "old" not in row["prompt_read"]
    assert "Be brief." in row["prompt_read"] and "new question" in row["prompt_read"]
    assert row["chosen_id"] == completion_id(row["prompt_read"], "good")


def test_the_furthest_cut_of_a_completion_is_wanted_once(tmp_path: Path, model: Path) -> None:
    rows = [pair("q", "shared answer", f"other {i}") for i in range(3)]
    wanted = wanted_completions([prepared(tmp_path, model, rows)])
    assert wanted.height == 4
    assert wanted["cut"].null_count() == 4
