"""Sides with reasoning and calls: cuts, ids and drops depend on the canonical text and the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rendering.structured_templates import QWEN3_TOOLS
from tiny_references import reference, write_pairs
from tiny_tokenizers import qwen

from mrpo_pipeline.dataset.prepare import prepare_splits
from mrpo_pipeline.pairs import completion_id
from mrpo_pipeline.recipe import parse_recipe

CALL = {"name": "weather", "arguments": {"city": "Paris"}}


def says(thought: str, content: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content, "reasoning_content": thought, **more}]


def test_sides_are_equal_where_their_tokens_are(tmp_path: Path) -> None:
    model = reference(tmp_path / "model", "llama", "qwen")
    qwen(QWEN3_TOOLS).save_pretrained(model)
    long = "word " * 50
    sides = [
        (says("a", "bc"), says("ab", "c")),  # the same text with another structure: both stay
        (says(long, "A"), says(long, "B")),  # equal up to the cut
        (says(long + "A", "x"), says(long + "B", "x")),
        (says("look", "", tool_calls=[CALL]), says("look", "No.")),
    ]
    rows = [{"prompt": [{"role": "user", "content": "q"}], "chosen": one, "rejected": other} for one, other in sides]
    document = {
        "pairs": {"train": str(write_pairs(tmp_path / "pairs.jsonl", rows))},
        "policy": {"model": str(model)},
        "limits": {"max_length": 64},
    }
    found = prepare_splits(parse_recipe(document))["train"]
    assert found.counts.dropped == {"the sides are equal after the cut": 2}
    assert found.frame["row"].to_list() == [0, 3]
    for row in found.frame.iter_rows(named=True):
        assert row["chosen_ids"] != row["rejected_ids"]
        assert row["chosen_id"] == completion_id(row["prompt_read"], row["chosen"])
    assert found.frame["chosen_cut"].to_list() == [None, len("look")]  # before the call, of which no part is left
