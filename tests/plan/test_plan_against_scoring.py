"""The plan of stage one against the scoring that follows: exact counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planned_run import made_pairs, run
from tiny_references import pair, write_pairs

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.plan import plan_run
from mrpo_pipeline.scoring import score_references


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``plan_run`` with every function that reads weights patched to fail."""
    import safetensors
    import transformers

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan read weights")

    def plan(*args: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(safetensors, "safe_open", refuse)
            patch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
            return plan_run(*args, **options)

    return plan


def test_tokens_counts_and_bytes_are_those_of_scoring(tmp_path: Path, planned: Callable[..., Any]) -> None:
    recipe = run(tmp_path, made_pairs(300), references=2)
    plan = planned(recipe)
    reports = {report.name: report for report in score_references(recipe)}
    assert plan.data.sampled_share == 1
    for one in plan.references:
        report = reports[one.name]
        assert (one.cached.value, one.to_score.value, one.tokens.value) == (0, report.scored, report.tokens)
        assert one.tokens.error == 0 < one.cache_bytes.error
        stats = ReferenceCache.open(recipe.cache, one.name).stats()
        assert one.completion_tokens.value == stats.tokens
        # The log-probs of an untrained model compress better than a trained one's.
        assert one.cache_bytes.value == pytest.approx(stats.size, rel=0.08)


def test_cached_completions_are_not_counted_again(tmp_path: Path, planned: Callable[..., Any]) -> None:
    rows = made_pairs(120)
    score_references(run(tmp_path, rows[:60]))
    recipe = run(tmp_path, rows)
    (plan,) = planned(recipe).references
    (report,) = score_references(recipe)
    assert (plan.cached.value, plan.to_score.value, plan.tokens.value) == (report.cached, report.scored, report.tokens)
    (done,) = planned(recipe).references
    assert (done.to_score.value, done.tokens.value, done.cache_bytes.value) == (0, 0, 0)
    assert done.cached.value == done.completions.value


def test_of_seven_completions_in_21_pairs_seven_are_scored(tmp_path: Path, planned: Callable[..., Any]) -> None:
    row = {"prompt": "Which?", "completions": [f"answer number {i}" for i in range(7)], "ranks": list(range(7))}
    recipe = run(tmp_path, [row])
    plan = planned(recipe)
    assert (plan.data.pairs, plan.data.completions.value, plan.references[0].to_score.value) == (21, 7, 7)
    assert "7 distinct completions to score per reference (42 sides of pairs)" in plan.table()
    assert score_references(recipe)[0].scored == 7


def test_completions_beyond_the_context_are_counted_and_their_pairs_dropped(
    tmp_path: Path, planned: Callable[..., Any]
) -> None:
    rows = [pair("q", "word " * 300, "short"), *made_pairs(20, longest=10)]
    recipe = run(tmp_path, rows, limits={"max_length": 2048})
    plan = planned(recipe)
    (report,) = score_references(recipe)
    assert plan.references[0].unfit.value == report.unfit == 1
    assert plan.references[0].tokens.value == report.tokens
    assert plan.training.pairs.value == 20
    # Scoring has recorded it: the plan reads the record.
    assert planned(recipe).references[0].unfit.value == 1


def test_dropped_cut_and_bad_rows_are_counted(tmp_path: Path, planned: Callable[..., Any]) -> None:
    rows = [*made_pairs(20, longest=8), pair("q", "same " * 300 + "one", "same " * 300 + "two"), {"prompt": "x"}]
    recipe = run(tmp_path, rows, limits={"max_length": 300}, pairs={"on_bad_row": "skip"})
    data = planned(recipe).data
    assert data.rows == 22 and sum(data.bad_rows.values()) == 1
    assert data.splits["train"].dropped["the sides are equal after the cut"].value == 1
    assert data.splits["train"].kept.value == 20
    recipe = run(tmp_path, rows)
    with pytest.raises(UserError, match=r"row 21 \(line 22\)"):
        planned(recipe)


def test_a_cache_of_another_reference_is_refused(tmp_path: Path, planned: Callable[..., Any]) -> None:
    rows = made_pairs(6)
    score_references(run(tmp_path, rows))
    recipe = run(tmp_path, rows, references=2)
    other = recipe.references["other"]
    recipe = recipe.model_copy(update={"references": {"base": other}})
    with pytest.raises(UserError, match="was not computed by the reference that this run names"):
        planned(recipe)


def test_a_plan_needs_no_weight_files(tmp_path: Path, planned: Callable[..., Any]) -> None:
    recipe = run(tmp_path, made_pairs(30))
    complete = planned(recipe)
    (tmp_path / "llama" / "model.safetensors").unlink()
    bare = planned(recipe)
    for name in ("tokens", "completion_tokens", "cache_bytes", "parameters", "memory", "flops", "hours"):
        assert getattr(bare.references[0], name) == getattr(complete.references[0], name)
    assert bare.training == complete.training


def test_an_unavailable_reference_is_unknown_and_the_others_are_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: Callable[..., Any]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = run(tmp_path, made_pairs(10))
    there = recipe.references["base"]
    absent = there.model_copy(update={"model": "nobody/has-this-model"})
    plan = planned(recipe.model_copy(update={"references": {"base": there, "absent": absent}}))
    base, other = plan.references
    assert base.tokens is not None and not base.unknown
    assert other.to_score.value == base.to_score.value
    assert other.tokens is None and other.hours is None and other.memory is None
    assert any("nobody/has-this-model" in reason for reason in other.unknown)
    assert "absent: unknown: tokens, cache bytes and hours" in plan.table()


def test_a_plan_without_a_policy_is_refused(tmp_path: Path, planned: Callable[..., Any]) -> None:
    recipe = run(tmp_path, made_pairs(4)).model_copy(update={"policy": None})
    with pytest.raises(UserError, match="names no policy"):
        planned(recipe)


def test_as_json_it_is_plain_numbers_with_units_in_their_names(tmp_path: Path, planned: Callable[..., Any]) -> None:
    recipe = run(tmp_path, made_pairs(20), pairs={"eval_fraction": 0.3})
    document = json.loads(json.dumps(planned(recipe).as_dict()))
    assert set(document) == {
        "data", "references", "training", "gpu", "cpu", "device", "notices", "short_contexts", "pairs_left",
    }  # fmt: skip
    assert set(document["data"]["splits"]) == {"train", "eval"}
    (base,) = document["references"]
    assert isinstance(base["tokens"], int) and isinstance(base["cache_bytes"], int)
    assert isinstance(document["training"]["memory"]["peak_bytes"], int)
    assert document["gpu"] is None and document["device"] == "cpu"
    assert document["cpu"]["gflops"]["float32"] > 0 and document["training"]["hours"] > 0
    assert (
        "Hours are for this machine's CPU when idle, 1 thread at 55% of the measured matrix-product speed"
        in planned(recipe).table()
    )


def test_hours_are_for_the_gpu_that_is_named(tmp_path: Path, planned: Callable[..., Any]) -> None:
    recipe = run(tmp_path, made_pairs(10))
    half, full, twice = (
        planned(recipe, gpu="A100", efficiency=share, gpus=count) for share, count in ((0.2, 1), (0.4, 1), (0.4, 2))
    )
    assert half.references[0].hours.value == pytest.approx(2 * full.references[0].hours.value)
    assert full.references[0].hours.value == pytest.approx(2 * twice.references[0].hours.value)
    flops = full.references[0].flops.value
    assert full.references[0].hours.value == pytest.approx(flops / (0.4 * 311.9e12) / 3600)
    assert full.device == "gpu" and full.cpu is None
    none = planned(recipe, gpu="none")
    assert none.gpu is None and none.references[0].hours is None and none.references[0].flops is not None
    for wrong in ({"gpu": "abacus"}, {"efficiency": 0.0}, {"efficiency": 1.5}, {"gpus": 0}):
        with pytest.raises(UserError, match="expected"):
            planned(recipe, **wrong)


def test_every_way_to_give_pairs_is_planned_alike(tmp_path: Path, planned: Callable[..., Any]) -> None:
    import polars as pl

    rows = made_pairs(40)
    recipe = run(tmp_path, rows)
    lines = planned(recipe)
    pl.DataFrame(rows).write_parquet(tmp_path / "pairs.parquet")
    write_pairs(tmp_path / "pairs.json", [])
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    for name in ("pairs.parquet", "pairs.json"):
        other = recipe.model_copy(update={"pairs": recipe.pairs.model_copy(update={"train": str(tmp_path / name)})})
        assert planned(other).references == lines.references
