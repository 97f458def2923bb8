"""References aggregated over spans, from pairs files of real tokenizers to targets and training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_recipes import QUICK, run_of
from tiny_references import HARD_TEXTS, pair, reference, write_pairs

from mrpo_pipeline.dataset import reference_span_logps as module
from mrpo_pipeline.dataset.loss_compatibility import check_losses
from mrpo_pipeline.dataset.pair_targets import pair_targets
from mrpo_pipeline.dataset.reference_logps import open_caches
from mrpo_pipeline.dataset.reference_span_logps import pair_spans
from mrpo_pipeline.dataset.splits import check_method, load_splits
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.evaluation import evaluate_recipe
from mrpo_pipeline.exports import export_targets
from mrpo_pipeline.exports.targets_file import write_targets
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import Method, parse_recipe
from mrpo_pipeline.recipe.describe_method import describe

# A byte-level BPE, a SentencePiece-like BPE with byte fallback, and a Unigram.
TOKENIZERS = {"base": "qwen", "sentencepiece": "llama2", "unigram": "gemma"}


def emoji_rows() -> list[dict[str, Any]]:
    texts = [
        *HARD_TEXTS,
        "Words and 🎉🎉 between 👨‍👩‍👧‍👦 families, and more words to be cut off at some place or other.",
    ]
    return [
        pair(f"Number {i}?", text, texts[(i + 3) % len(texts)] + " Or not.", id=f"e{i}", domain=("a", "b")[i % 2])
        for i, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three references with three kinds of tokenizer over texts that they split differently, some cut."""
    folder = tmp_path_factory.mktemp("spans")
    write_pairs(folder / "pairs.jsonl", emoji_rows())
    models = {
        name: reference(folder / name, ("llama", "phi", "gemma2")[at], kind, seed=at)
        for at, (name, kind) in enumerate(TOKENIZERS.items())
    }
    pairs = {"train": str(folder / "pairs.jsonl"), "eval_fraction": 0.2}
    return run_of(folder, models, pairs=pairs, limits={"max_length": 48, "max_prompt_length": 24})


def with_method(run: Any, **keys: Any) -> Any:
    document = run.model_dump(mode="json")
    if "references" in keys:
        document["references"] = {name: document["references"][name] for name in keys.pop("references")}
    document["method"] |= keys
    return parse_recipe(document)


def rows_on_disk(run: Any, name: str) -> dict[str, dict[str, Any]]:
    """The cached rows, read with a plain Parquet reader."""
    frame = pl.read_parquet(Path(run.cache) / name / "shards" / "*.parquet")
    return {row["completion_id"]: row for row in frame.iter_rows(named=True)}


def slow_spans(rows: list[dict[str, Any]], cut: int | None) -> list[list[float]]:
    tokens = [list(zip(row["byte_ends"], row["logprobs"], strict=True)) for row in rows]
    ends_turn = [own.pop()[1] if row["complete"] else None for own, row in zip(tokens, rows, strict=True)]
    tokens = [[(end, logp) for end, logp in own if cut is None or end <= cut] for own in tokens]
    shared = sorted(set.intersection(*({end for end, _ in own} for own in tokens)))
    spans = []
    for before, end in zip([-1, *shared], [*shared, math.inf], strict=True):
        inside = [[logp for at, logp in own if before < at <= end] for own in tokens]
        if end != math.inf or any(inside):
            spans.append([math.fsum(own) for own in inside])
    return spans if cut is not None else [*spans, ends_turn]


def slow_target(aggregate: str, spans: list[list[float]], weights: list[float], factors: list[float]) -> float:
    total = []
    for span in spans:
        logps = [logp * factor for logp, factor in zip(span, factors, strict=True)]
        sign = -1 if aggregate == "harmonic" else 1
        total.append(sign * math.log(math.fsum(a * math.exp(sign * x) for a, x in zip(weights, logps, strict=True))))
    return math.fsum(total)


def frame_of(run: Any) -> pl.DataFrame:
    return load_splits(run, open_caches(run))["train"].pairs.frame


def test_some_of_these_are_cut_and_some_are_not_and_no_two_tokenizers_agree(scored: Any) -> None:
    """The premise of the tests below."""
    frame = frame_of(scored)
    cuts = pl.concat([frame["chosen_cut"], frame["rejected_cut"]])
    assert 2 < cuts.null_count() < len(cuts) - 2
    ends = [{i: row["byte_ends"] for i, row in rows_on_disk(scored, name).items()} for name in TOKENIZERS]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert sum(ends[one][i] != ends[other][i] for i in ends[0]) > len(ends[0]) / 2


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"aggregate": "arithmetic"},
        {"trust_region": {"kind": "off"}, "weights": "uniform"},
        {"normalize": "byte", "aggregate": "arithmetic", "trust_region": {"kind": "fixed", "epsilon": 0.05}},
        {"references": ["sentencepiece", "unigram"]},
        {"references": ["unigram", "base"], "weights": [0.2, 0.8]},
    ],
    ids=str,
)
def test_mrpo_targets_writes_the_mixture_over_spans(scored: Any, tmp_path: Path, keys: dict[str, Any]) -> None:
    run = with_method(scored, aggregate_over="span", **keys)
    write_targets(run, tmp_path / "targets.parquet")
    written = pl.read_parquet(tmp_path / "targets.parquet")
    frame = frame_of(run)
    names = written["references"][0].to_list()
    on_disk = [rows_on_disk(run, name) for name in names]
    assert written.height == frame.height > 5
    for row, read in zip(written.iter_rows(named=True), frame.iter_rows(named=True), strict=True):
        for side in ("chosen", "rejected"):
            spans = slow_spans([rows[read[f"{side}_id"]] for rows in on_disk], read[f"{side}_cut"])
            sums, clipped = row[f"logps_{side}"], row[f"clipped_{side}"]
            np.testing.assert_allclose(np.sum(spans, axis=0), sums, rtol=1e-12)
            unit = 1
            if run.method.normalize == "byte":
                unit = read[f"{side}_cut"] or len(read[side].encode())
            factors = [c * unit / s for c, s in zip(clipped, sums, strict=True)]
            expected = slow_target(run.method.aggregate, spans, row["weights"], factors) / unit
            assert row[f"target_{side}"] == pytest.approx(expected, rel=1e-11)


def test_one_reference_is_itself_to_the_last_bit_and_geometric_is_the_same_either_way(
    scored: Any, tmp_path: Path
) -> None:
    for keys in (
        {"references": ["base"]},
        {"aggregate": "geometric"},
        {"aggregate": "single:unigram"},
        {"name": "dpo"},
    ):
        found = []
        for over in ("span", "completion"):
            write_targets(with_method(scored, aggregate_over=over, **keys), tmp_path / f"{over}.parquet")
            found.append(pl.read_parquet(tmp_path / f"{over}.parquet"))
        assert found[0].equals(found[1])


def test_the_same_reference_twice_is_itself_to_the_last_bit(scored: Any, tmp_path: Path) -> None:
    document = scored.model_dump(mode="json")
    twin = tmp_path / "cache" / "twin"
    twin.parent.mkdir()
    for name, source in (("base", "base"), ("twin", "base")):
        folder = tmp_path / "cache" / name
        for file in (Path(scored.cache) / source).rglob("*"):
            if file.is_file() and file.parent.name in (source, "shards"):
                (folder / file.relative_to(Path(scored.cache) / source)).parent.mkdir(parents=True, exist_ok=True)
                text = file.read_bytes()
                (folder / file.relative_to(Path(scored.cache) / source)).write_bytes(text)
    document["references"] = dict.fromkeys(("base", "twin"), document["references"]["base"])
    document |= {"cache": str(tmp_path / "cache")}
    document["method"] |= {"aggregate_over": "span"}
    for aggregate in ("harmonic", "arithmetic"):
        document["method"]["aggregate"] = aggregate
        write_targets(parse_recipe(document), tmp_path / "targets.parquet")
        written = pl.read_parquet(tmp_path / "targets.parquet")
        for side in ("chosen", "rejected"):
            assert written[f"target_{side}"].to_list() == written[f"logps_{side}"].list.first().to_list()


def test_pairs_dealt_out_in_small_blocks_give_the_same_targets(scored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_method(scored, aggregate_over="span")
    pairs = load_splits(run, open_caches(run))["train"].pairs
    whole = pair_targets(pairs, run.method)
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "BLOCK", 9)  # 3 pairs a block for 3 references
    assert len(list(pair_spans(pairs.frame, pairs.caches))) > 3
    parts = pair_targets(pairs, run.method)
    np.testing.assert_array_equal(whole.target_chosen, parts.target_chosen)
    np.testing.assert_array_equal(whole.target_rejected, parts.target_rejected)


def test_training_export_and_evaluation_take_the_same_targets(scored: Any, tmp_path: Path) -> None:
    document = with_method(scored, aggregate_over="span", beta=0.3).model_dump(mode="json")
    run = parse_recipe(document | {"output_dir": str(tmp_path / "out"), "training": {**QUICK, "max_steps": 2}})
    results = train_recipe(run)
    pairs = load_splits(run, open_caches(run))["train"].pairs
    targets = pair_targets(pairs, run.method)
    assert results["refs/effective_k"] == targets.diagnostics["refs/effective_k"]
    assert "harmonic aggregate over spans, adaptive weights" in (tmp_path / "out" / "README.md").read_text()
    evaluation = evaluate_recipe(run)
    # Before training the policy is the anchor: the reward margin is β(Δ_1 − Δ_π̃) of the held-out pairs.
    held_out = load_splits(run, open_caches(run))["eval"].pairs
    over_spans = pair_targets(held_out, run.method)
    apart = (held_out.logps_chosen[:, 0] - over_spans.target_chosen) - (
        held_out.logps_rejected[:, 0] - over_spans.target_rejected
    )
    assert evaluation.before["rewards/margins"] == pytest.approx(0.3 * apart.mean(), rel=1e-4)
    exported = export_targets(run, "trl", tmp_path / "trl.parquet")
    frame = pl.read_parquet(exported.file)
    np.testing.assert_array_equal(frame["ref_chosen_logps"].to_numpy(), targets.target_chosen)


def test_hypo_each_floors_margins_of_pairs_and_not_of_spans() -> None:
    method = Method.model_validate({"loss": "hypo-each", "aggregate_over": "span"})
    with pytest.raises(UserError, match="aggregate_over is span, and the spans of the two sides are not the same"):
        check_losses(method, ["a", "b"])


def test_step_scoped_weights_are_refused_before_anything_is_read(scored: Any) -> None:
    with pytest.raises(UserError, match="thompson"):
        check_method(
            with_method(scored, aggregate_over="span", weights="thompson"),
            Method.model_validate({"aggregate_over": "span", "weights": "thompson"}),
        )


def test_the_description_mentions_spans() -> None:
    assert "arithmetic aggregate over spans" in describe(Method(aggregate="arithmetic", aggregate_over="span"))
    assert "span" not in describe(Method(aggregate="geometric", aggregate_over="span"))
    assert "span" not in describe(Method(name="multi-dpo", aggregate_over="span"))
