"""At every stage, input = output + dropped by reason; a lost pair stops the run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_recipes import recipe
from tiny_references import pair, plain_pairs, reference, write_pairs

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.dataset import prepare, reference_logps, truncate
from mrpo_pipeline.dataset.prepare import prepare_splits
from mrpo_pipeline.dataset.reference_logps import join_references, open_caches
from mrpo_pipeline.dataset.splits import load_splits
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.pairs import PairTable, split_by_prompt
from mrpo_pipeline.pairs.counts import require_balance
from mrpo_pipeline.plan import plan_run
from mrpo_pipeline.policy import run as policy_run
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.scoring import run, score_references
from mrpo_pipeline.scoring.job import job_of

# Rejects answers with one word and prompts with another, like templates that rewrite tool calls.
FUSSY = (
    "{% for m in messages %}{% if 'forbidden' in m['content'] %}{{ raise_exception('not this word') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + (m['content'] | replace('rewritten', 'REWRITTEN')) + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ROWS = [
    *plain_pairs(4),
    pair("A question?", "This is rewritten.", "This is not."),
    pair("A forbidden question?", "Yes.", "No."),
]


def asked(one: Recipe, **pairs: Any) -> Recipe:
    """The recipe with changed keys under ``pairs``."""
    document = one.model_dump(mode="json")
    document["pairs"] |= pairs
    return parse_recipe(document)


def fussy(folder: Path) -> Path:
    reference(folder, "llama", "qwen")
    (folder / "chat_template.jinja").write_text(FUSSY)
    return folder


def test_unbalanced_counts_stop_the_run_and_are_listed() -> None:
    require_balance("a stage", 10, 7, {"too long": 2, "empty": 1})
    with pytest.raises(RunError, match=r"a stage.*10 pairs went in, 7 came out and 2 were dropped \(too long: 2\)"):
        require_balance("a stage", 10, 7, {"too long": 2})


def test_a_policy_s_template_that_does_not_write_a_row_names_it_or_counts_it(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", ROWS)
    references = {"base": fussy(tmp_path / "base")}
    with pytest.raises(UserError, match=r"pairs\.jsonl: row 5: .*fails on a conversation.*--on-bad-row skip"):
        prepare_splits(recipe(tmp_path, references, pairs))
    skipping = asked(recipe(tmp_path, references, pairs), on_bad_row="skip")
    prepared = prepare_splits(skipping)["train"]
    assert prepared.counts.dropped == {"the policy's template does not write it": 2}
    assert (prepared.counts.read, prepared.frame.height) == (6, 4)
    assert score_references(skipping)[0].scored == 8


def test_a_reference_s_template_that_does_not_write_a_row_stops_or_drops_its_pair_for_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", ROWS)
    references = {"base": reference(tmp_path / "base", "llama", "qwen"), "fussy": fussy(tmp_path / "fussy")}
    stopping = recipe(tmp_path, references, pairs)
    skipping = asked(recipe(tmp_path, references, pairs), on_bad_row="skip")
    with pytest.raises(UserError, match=r"fussy: completion [0-9a-f]{32}: .*--on-bad-row skip.*begins '"):
        score_references(stopping)
    with pytest.raises(UserError, match="changes the completion"):
        plan_run(stopping)

    planned = {one.name: one for one in plan_run(skipping).references}
    assert planned["fussy"].unfit.value == 3
    base, strict = score_references(skipping)
    assert (base.scored + base.cached, base.unwritten) == (12, 0)
    assert (strict.scored + strict.cached, strict.unwritten, strict.unfit) == (9, 3, 0)
    again = score_references(skipping)[1]
    assert (again.scored, again.cached, again.unwritten) == (0, 9, 3)
    # With on_bad_row: error, a cache that was filled while skipping such rows does not hide them.
    with pytest.raises(UserError, match="--on-bad-row skip"):
        score_references(stopping)

    caplog.set_level(logging.WARNING, logger="mrpo")
    logging.getLogger("mrpo").propagate = True
    split = load_splits(skipping, open_caches(skipping), "train")["train"]
    counts = split.counts
    reason = "are not written by the template of fussy"
    assert (counts.read, counts.used, counts.dropped) == (6, 4, {reason: 2})
    assert f"2 of 6 pairs are left out for all references: {reason}" in caplog.text
    assert str(counts) == f"6 pairs read = 4 used + 2 dropped (2 {reason})"


def test_a_pair_that_two_references_cannot_read_is_counted_once(tmp_path: Path) -> None:
    rows = [*plain_pairs(3), pair("Long?", "word " * 60, "short")]
    pairs = write_pairs(tmp_path / "pairs.jsonl", rows)
    references = {
        "base": reference(tmp_path / "base", "llama", "qwen"),
        "one": reference(tmp_path / "one", "llama", "qwen", max_position_embeddings=64),
        "two": reference(tmp_path / "two", "llama", "qwen", max_position_embeddings=72),
    }
    small = recipe(tmp_path, references, pairs)
    score_references(small)
    joined = join_references(open_caches(small), prepare_splits(small)["train"])
    assert joined.frame.height == 3
    assert joined.dropped == {"do not fit the context of one and do not fit the context of two": 1}


def test_a_pair_lost_between_two_stages_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a stage loses a row, its count stops the run."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", plain_pairs(6))
    small = recipe(tmp_path, {"base": reference(tmp_path / "base", "llama", "qwen")}, pairs)

    def losing(function: Any) -> Any:
        return lambda *given, **named: function(*given, **named).head(-1)

    with monkeypatch.context() as patch:
        patch.setattr(truncate, "_prepare_batch", losing(truncate._prepare_batch))
        with pytest.raises(RunError, match=r"counts of cutting train pairs.*6 pairs went in, 5 came out"):
            score_references(small)
    with monkeypatch.context() as patch:

        def split(*given: Any, **named: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
            rest, held_out = split_by_prompt(*given, **named)
            return rest.head(2), held_out

        patch.setattr(prepare, "split_by_prompt", split)
        held_out = asked(small, eval_fraction=0.3)
        with pytest.raises(RunError, match="counts of holding out eval pairs"):
            score_references(held_out)
    with monkeypatch.context() as patch:

        def without_last(*given: Any) -> Any:
            job = job_of(*given)
            job.missing = job.missing.head(-1)
            return job

        patch.setattr(run, "job_of", without_last)
        with pytest.raises(RunError, match=r"counts of scoring base.*12 completions \(the first that lacks is"):
            score_references(small)
    score_references(small)
    with monkeypatch.context() as patch:
        patch.setattr(
            reference_logps, "_readable", lambda caches, frame: (pl.Series([True] * 5 + [False]).to_numpy(), {})
        )
        with pytest.raises(RunError, match="counts of joining pairs with the references"):
            load_splits(small, open_caches(small))
    splits = load_splits(small, open_caches(small))
    splits["train"].prepared.counts.drop("nobody knows")
    with pytest.raises(RunError, match="6 pairs went in, 6 came out and 1 were dropped"):
        _ = splits["train"].counts


def test_every_command_shows_the_counts_at_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*plain_pairs(6), pair("Long?", "word " * 60, "short")]
    pairs = write_pairs(tmp_path / "pairs.jsonl", rows)
    references = {
        "base": reference(tmp_path / "base", "llama", "qwen"),
        "small": reference(tmp_path / "small", "llama", "qwen", max_position_embeddings=64),
    }
    document = recipe(tmp_path, references, pairs).model_dump(mode="json")
    document |= {"training": {"max_steps": 1, "save_strategy": "no"}, "output_dir": str(tmp_path / "out")}
    one = parse_recipe(document)
    caplog.set_level(logging.INFO, logger="mrpo")
    logging.getLogger("mrpo").propagate = True
    score_references(one)
    assert caplog.messages[-4:-2] == [
        "train: 7 pairs read = 7 used + 0 dropped",
        "7 pairs are 14 distinct completions.",
    ]
    assert caplog.messages[-2].startswith("base: 14 completions wanted, 14 scored, 0 cached already")
    assert "small: 14 completions wanted, 13 scored, 0 cached already, 1 do not fit its context" in caplog.messages[-1]
    policy_run.train_recipe(one)
    assert caplog.messages[-1] == "train: 7 pairs read = 6 used + 1 dropped (1 do not fit the context of small)"


def overflowing(folder: Path) -> Path:
    """Finite weights that overflow in the forward pass."""
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_nan_never_enters_the_cache_and_the_completion_is_named(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", plain_pairs(3))
    broken = overflowing(reference(tmp_path / "base", "llama", "qwen"))
    with pytest.raises(
        RunError, match=r"base: in completion [0-9a-f]{32} .*nan.*Weights that hold NaN.*begins '"
    ) as told:
        score_references(recipe(tmp_path, {"base": broken}, pairs))
    assert json.dumps(plain_pairs(3)).count(str(told.value).split("begins '")[1][:12])
    assert not list((tmp_path / "cache" / "base" / "shards").glob("*.parquet"))
    assert ReferenceCache.open(tmp_path / "cache", "base").stats().rows == 0


def test_a_table_of_pairs_keeps_its_skipped_rows_through_a_split() -> None:
    frame = pl.DataFrame({"prompt": ["a", "b", "c"], "chosen": ["x"] * 3, "rejected": ["y"] * 3})
    settings = parse_recipe({"pairs": {"train": "x.jsonl", "eval_fraction": 0.4}}).pairs
    split = prepare.hold_out(settings, {"train": PairTable(frame, {"null chosen": 2})})
    assert split["train"].skipped == {"null chosen": 2}
    assert sum(part.frame.height for part in split.values()) == 3
