"""`mrpo targets --for fairseq2`: read as fairseq2 0.4.6 reads it, the file gives the policy's ids and log π̃."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_references import pair, reference, write_pairs
from transformers import AutoTokenizer

from mrpo_pipeline.dataset.reference_logps import pair_targets
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.exports import export_targets
from mrpo_pipeline.exports.fairseq2 import CUT, OTHER_IDS
from mrpo_pipeline.exports.parquet import cached_split
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.scoring import score_references

ROWS = [
    pair("Why is the sky blue?", "Light is scattered: 日本語 👍🏽.", "It isn't."),
    pair([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "Hello.", "Go away."),
    pair("Tell me", "many words go on " * 40, "brief"),
    pair("Say <|eot_id|>", "control <|eot_id|> as text", "no"),
    pair("Last", "yes", "no"),
]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("fairseq2")
    base = reference(folder / "base", "llama", "llama3")
    recipe = parse_recipe(
        {
            "pairs": {"train": str(write_pairs(folder / "pairs.jsonl", ROWS))},
            "policy": {"model": str(base)},
            "references": {"base": {"model": str(base)}},
            "cache": str(folder / "cache"),
            "limits": {"max_length": 120},
            "scoring": {"engine": "transformers"},
        }
    )
    score_references(recipe)
    return recipe


def read_as_fairseq2(line: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    """Its reader's steps: BOS and source (mode prompt), target and end token (mode prompt_response), control strings and all."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")  # use_eot: true
    return {
        "prompt_ids": [tokenizer.bos_token_id, *encode(line["src"])],
        "chosen_ids": [*encode(line["tgt_chosen"]), end],
        "rejected_ids": [*encode(line["tgt_rejected"]), end],
    }


def test_what_fairseq2_reads_are_the_ids_and_targets_of_the_policy(scored: Recipe, tmp_path: Path) -> None:
    export = export_targets(scored, "fairseq2", tmp_path / "targets.jsonl")
    lines = [json.loads(line) for line in export.file.read_text(encoding="utf-8").splitlines()]
    pairs = cached_split(scored, "train")
    targets = pair_targets(pairs, scored.method)
    tokenizer = AutoTokenizer.from_pretrained(scored.required_policy().model)
    rows = pairs.frame.to_dicts()
    assert [line["id"] for line in lines] == [rows[i]["pair_id"] for i in (0, 1, 4)]
    for line, i in zip(lines, (0, 1, 4), strict=True):
        assert set(line) == {
            "id", "src", "tgt_chosen", "tgt_rejected", "reference_score_chosen", "reference_score_rejected",
        }  # fmt: skip
        for name, ids in read_as_fairseq2(line, tokenizer).items():
            assert ids == rows[i][name]
        assert line["reference_score_chosen"] == targets.target_chosen[i]
        assert line["reference_score_rejected"] == targets.target_rejected[i]
        assert isinstance(line["reference_score_chosen"], float) and line["reference_score_chosen"] != 0


def test_pairs_that_fairseq2_would_read_otherwise_are_left_out_and_counted(scored: Recipe, tmp_path: Path) -> None:
    export = export_targets(scored, "fairseq2", tmp_path / "targets.jsonl")
    assert export.left_out == {CUT: 1, OTHER_IDS: 1} and export.pairs == 3
    assert "1 pairs left out" in export.text() and "reference_model: null" in export.text()


def test_where_no_pair_is_left_nothing_is_written(scored: Recipe, tmp_path: Path) -> None:
    document = scored.model_dump(mode="json")
    document["pairs"]["train"] = str(write_pairs(tmp_path / "pairs.jsonl", ROWS[2:4]))
    with pytest.raises(UserError, match="None of 2 pairs"):
        export_targets(parse_recipe(document), "fairseq2", tmp_path / "targets.jsonl")
    assert not (tmp_path / "targets.jsonl").exists()
